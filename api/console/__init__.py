"""The console: one page for operators, and the event stream that it shows.

The page is plain files without a build step, data or a key in them. What it shows comes over one stream, made
by one producer for all viewers; what it does goes through the same admin routes as the command line.
"""
