"""The supervisor of one GPU host: starts, restarts and ends the store, the engines and the host agent."""
