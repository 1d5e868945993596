"""The checkpoint store of one GPU host: SSD cache, DRAM pool, downloads, loads.

One process per host, without torch: it owns the arena that engines map read-only, and survives their crashes.
"""
