"""What workflows and activities say to each other; neither imports the other.

One dataclass in, one out, at every activity, signal and workflow. Fields are JSON-able, small and only ever
added with a default, so that histories of older releases still replay.
"""
