"""Which process is killed at which point of a migration: all of them, or a few by chance.

FAULT_SEED=7            the few of that seed (without it, one that is printed)
FAULT_CASES=all         every point with every process
FAULT_CASES=A/B,C/D     process B at point A, and D at C
FAULT_REPEATS=3         each of them so often
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

from tests.chaos.migration_platform import Victims

# In the order in which a migration comes through them: of LiveMigration and the lives it begins and ends,
# and of the requests between the engines.
POINTS = (
    "bring_up begins",
    "bring_up ends",
    "record_start begins",
    "record_start ends",
    "begin_drain begins",
    "begin_drain ends",
    "move_requests begins",
    "round sent",
    "request held",
    "request handed over",
    "stream moved",
    "move_requests ends",
    "finish_migration begins",
    "finish_migration ends",
    "stop_instance begins",
    "stop_instance ends",
    "finish_instance begins",
    "finish_instance ends",
)
# Rows of the failure table that chance may not leave out.
ALWAYS = (
    ("request held", "source engine"),
    ("bring_up begins", "destination agent"),
    ("stream moved", "destination engine"),
)
CHANCES = 4

Case = tuple[str, str]


def every_case() -> list[Case]:
    return [(point, victim) for point in POINTS for victim in Victims.NAMES]


def by_chance(seed: int, number: int) -> Case:
    """The `number`th case of a seed: of `CHANCES` cases no two kill the same process."""
    chance = random.Random(seed)
    victims = chance.sample(Victims.NAMES, CHANCES)
    points = [chance.choice(POINTS) for _ in victims]
    return points[number], victims[number]


def named_cases(environment: Mapping[str, str] = os.environ) -> dict[str, Case | int]:
    """What to run, by a name that is the same in every process; a number is one that chance decides."""
    wanted = environment.get("FAULT_CASES", "")
    if not wanted:
        few = {f"{point}-{victim}": (point, victim) for point, victim in ALWAYS}
        return {**few, **{f"chance-{number}": number for number in range(CHANCES)}}
    known = every_case()
    cases = known if wanted == "all" else [_parsed(text) for text in wanted.split(",")]
    if unknown := [case for case in cases if case not in known]:
        raise ValueError(f"no such case: {unknown}")
    repeats = int(environment.get("FAULT_REPEATS", "1"))
    return {f"{p}-{v}-{n}": (p, v) for n in range(repeats) for p, v in cases}


def _parsed(text: str) -> Case:
    point, _, victim = text.partition("/")
    return point.strip(), victim.strip()
