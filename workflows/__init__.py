"""Temporal workflows: what Firstlight has begun, it finishes or undoes.

Workflow code knows the contracts and the domain only. Activities are called by method through
`host_calls` and `control_calls`; time-outs and retries stand in `policies`.
"""
