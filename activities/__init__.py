"""Temporal activities: what workflows ask for, done with SQL, gRPC and patience.

`control` runs on any control worker, `host` in the agent of one GPU host. Every activity may run twice,
in part or at the same time as a dead attempt's remains, and ends in the same state.
"""
