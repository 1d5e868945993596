"""Every policy by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from firstlight.domain.errors import InvalidInput
from simulator.policies.clockwork import Clockwork
from simulator.policies.firstlight import Firstlight
from simulator.policies.infless import Infless
from simulator.policies.kserve import KServe
from simulator.policies.rainbowcake import RainbowCake
from simulator.policies.random import RandomPolicy
from simulator.policies.ray_serve import RayServe, RayServeCached
from simulator.policies.serverlessllm import ServerlessLlm
from simulator.policies.shepherd import Shepherd
from simulator.policy import Policy

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        RandomPolicy,
        Shepherd,
        ServerlessLlm,
        RayServe,
        RayServeCached,
        KServe,
        Clockwork,
        Infless,
        RainbowCake,
        Firstlight,
    )
}


def policy_named(name: str) -> type[Policy]:
    """Raises: InvalidInput, which names them all."""
    if name not in POLICIES:
        raise InvalidInput(f"there is no policy {name!r}; there are {', '.join(POLICIES)}")
    return POLICIES[name]


def check_options(options: Mapping[str, Iterable[str]]) -> None:
    """That there are these policies and options. Raises: InvalidInput, which names those there are."""
    for name, given in options.items():
        known = policy_named(name).option_names
        for option in given:
            if option not in known:
                there_are = f"it has {', '.join(sorted(known))}" if known else "it has none"
                raise InvalidInput(f"{name} has no option {option!r}; {there_are}")
