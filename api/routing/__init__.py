"""Which engine takes which request: a table in memory, fed by notifications, and a queue per model.

Does no I/O of its own: notices come in as values, demand goes out as a callback.
"""
