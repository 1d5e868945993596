"""What runs on a GPU host: supervisor, checkpoint store, engine processes.

Knows no database and no workflow: a host's data plane outlives any outage of the control plane.
"""
