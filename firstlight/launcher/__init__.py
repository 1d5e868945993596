"""Composition roots, one per process role, and the launcher that runs all of them on one machine."""
