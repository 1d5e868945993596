"""Workflows that failed: found, read, replayed, verified, ended. Knows Temporal and Postgres, no terminal.

Whatever is asked of it twice is done once; what would do harm is refused with the reason. A rehearsal says
what would happen and changes nothing.
"""
