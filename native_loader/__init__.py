"""Firstlight's checkpoint loader."""
