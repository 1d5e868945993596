"""Engine processes: tokens in, tokens out, on memory the store owns.

Promises: an attach costs only the bytes; one request's failure or end never changes another's tokens.
Knows no text, no database and no workflow. `client` is what a supervisor uses; the rest runs in the engine.
"""
