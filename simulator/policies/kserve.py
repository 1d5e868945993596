"""KServe: a pod per instance, whose init container downloads the model, and a grace period for the last."""

from __future__ import annotations

from typing import ClassVar

from simulator.entities import Instance
from simulator.policies.ray_serve import RayServe


class KServe(RayServe):
    """Scaled by the requests in flight; `pod` is its loader: what a container's start takes as well."""

    name: ClassVar[str] = "kserve"
    loader: ClassVar[str] = "pod"

    def keep_alive_s(self, instance: Instance) -> float | None:
        """Knative's stable window and its grace period for the last pod."""
        return self.options.get("keep_alive_s", 30.0)
