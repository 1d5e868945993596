"""Supervisors of the Postgres and the Temporal that `firstlight up` brings along, from wheels."""
