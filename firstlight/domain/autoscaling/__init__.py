"""What is warm before anybody asks, how long it stays so, and how many of it there are.

Pure policies over a model's arrival history and the scheduler's picture of the fleet, chosen by name in the
settings. No I/O and no clock: the control plane and the simulator call the very same functions.
"""
