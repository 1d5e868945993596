"""One pass from a source to DRAM and SSD: bytes are fetched, cast, summed, made known and written once each.

    source ──requests──▶ chunk buffers (the arena, or a ring) ──CRC32C──▶ board: in DRAM
                                                              └──────────▶ partition file ──▶ journal: on SSD

Chunks are asked for in execution order. Nothing here knows models: a `StreamPlan` says which bytes go where.
"""
