"""A discrete-event replay of a whole fleet, which calls the scheduler that runs in production.

What it promises: one scenario, policy and seed give one outcome, to the bit; no GPU is held twice and no
request is lost. What it does not know: Temporal, Postgres, processes: what they cost is a figure of
the scenario.
"""
