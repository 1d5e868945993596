"""Versions of the control worker's code, as Temporal's worker versioning names them."""

from __future__ import annotations

# A deployment's name may hold no dot.
CONTROL_DEPLOYMENT = "firstlight-control"
