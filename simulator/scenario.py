"""A scenario as its YAML file says it, checked, and spread out into one per point of its sweep."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from firstlight.domain.errors import InvalidInput

SCENARIOS = Path(__file__).parent / "scenarios"
GB = 1e9


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SharedMachine(Strict):
    """How starts slow each other down where hosts are parts of one machine; hosts of their own do not."""

    # Times as long while another instance starts or computes; while an engine that was bound is replaced.
    computing: float = Field(default=1.0, ge=1, le=100)
    replacing: float = Field(default=1.0, ge=1, le=100)
    # When that is, counted from the start that took the engine.
    replacing_from_s: float = Field(default=0.0, ge=0)
    replacing_until_s: float = Field(default=0.0, ge=0)


class Fleet(Strict):
    """Hosts that are all alike. Rates are what the hardware gives to one transfer at a time."""

    hosts: int = Field(ge=1, le=4096)
    gpus_per_host: int = Field(ge=1, le=64)
    gpu_memory_gb: float = Field(gt=0)
    dram_pool_gb: float = Field(ge=0)
    ssd_gb: float = Field(gt=0)
    # On how many hosts' SSDs each checkpoint lies at the beginning, in turn; 0: only at the source.
    ssd_copies: int = Field(ge=0)
    ssd_gb_per_s: float = Field(gt=0)
    gpu_gb_per_s: float = Field(gt=0)
    network_gb_per_s: float = Field(gt=0)
    source_gb_per_s: float | None = Field(default=None, gt=0)
    # Binding an engine, and what the control plane adds, to every start.
    attach_s: float = Field(default=0.1, ge=0)
    control_s: float = Field(default=0.05, ge=0)
    # What an engine's first pass takes longer than its later ones.
    first_pass_s: float = Field(default=0.0, ge=0)
    # Part of a load that the first pass hides behind, where a policy computes while loading.
    hidden_load: float = Field(default=1.0, ge=0, le=1)
    shared_machine: SharedMachine = SharedMachine()
    # Until an idle instance that is told to end has given its GPUs back.
    evict_s: float = Field(default=0.05, ge=0)
    # Standard deviation of the logarithm of every transfer's time.
    noise: float = Field(default=0.05, ge=0, le=1)


class Models(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")
    count: int = Field(ge=1, le=10_000)
    size_gb: float = Field(gt=0)
    gpus: int = Field(default=1, ge=1, le=64)
    layers: int = Field(default=32, ge=1)
    prefill_tokens_per_s: float = Field(gt=0)
    decode_tokens_per_s: float = Field(gt=0)


class Arrivals(Strict):
    """`gamma`: gaps with coefficient of variation `cv`, drawn for the whole fleet or for each model.

    `trace`: a file in the format of the Azure LLM inference trace; without a path, a stand-in like it.
    """

    kind: Literal["gamma", "trace"] = "gamma"
    requests_per_s: float = Field(default=1.0, gt=0)
    cv: float = Field(default=8.0, gt=0)
    of: Literal["fleet", "model"] = "fleet"
    # Popularity of the n-th model is n^-zipf.
    zipf: float = Field(default=0.0, ge=0)
    path: Path | None = None


class Lengths(Strict):
    kind: Literal["gsm8k", "sharegpt", "azure-code", "fixed"]
    prompt_tokens: int = Field(default=64, ge=1)
    output_tokens: int = Field(default=64, ge=1)
    path: Path | None = None


class Loader(Strict):
    """What a system's way to load makes of the hardware's rates, and what it adds to each start."""

    ssd_share: float = Field(gt=0, le=1)
    gpu_share: float = Field(gt=0, le=1)
    overhead_s: float = Field(ge=0)


class Migration(Strict):
    """seconds = seconds_per_token · tokens + overhead_s, and the pause within which a stream shows."""

    seconds_per_token: float = Field(default=2e-4, ge=0)
    overhead_s: float = Field(default=0.1, ge=0)
    pause_s: float = Field(default=0.05, ge=0)


class Scenario(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,80}$")
    title: str
    duration_s: float = Field(gt=0)
    timeout_s: float = Field(default=300.0, gt=0)
    max_concurrency: int = Field(default=1, ge=1)
    fleet: Fleet
    models: tuple[Models, ...] = Field(min_length=1)
    arrivals: Arrivals
    lengths: Lengths
    loaders: dict[str, Loader]
    migration: Migration = Migration()
    # Options of policies by their names.
    policies: dict[str, dict[str, float]] = Field(default_factory=dict)

    @field_validator("policies")
    @classmethod
    def _are_known(cls, policies: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        # Not above: policies decide over a cluster, which is made of a scenario.
        from simulator.policies.catalogue import check_options

        try:
            check_options(policies)
        except InvalidInput as error:
            raise ValueError(error.message) from error
        return policies

    @model_validator(mode="after")
    def _can_be_served(self) -> Scenario:
        fleet = self.fleet
        for model in self.models:
            if model.gpus > fleet.gpus_per_host:
                raise ValueError(f"{model.name} needs {model.gpus} GPUs, a host has {fleet.gpus_per_host}")
            if model.size_gb > model.gpus * fleet.gpu_memory_gb:
                raise ValueError(f"{model.name} has {model.size_gb} GB, its GPUs hold less")
            if model.size_gb > fleet.ssd_gb:
                raise ValueError(f"{model.name} has {model.size_gb} GB, an SSD holds less")
        if len({model.name for model in self.models}) < len(self.models):
            raise ValueError("two models have one name")
        for name in ("fast", "plain"):
            if name not in self.loaders:
                raise ValueError(f"loaders lacks {name!r}")
        return self


def read_scenarios(file: Path) -> tuple[Scenario, ...]:
    """Every scenario of a file: one, or one per point of its `sweep`.

    Raises: InvalidInput that names the file and the field.
    """
    try:
        body = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, dict):
        raise InvalidInput(f"{file}: a scenario is a mapping of fields")
    try:
        return tuple(Scenario.model_validate(one) for one in _points(file, body))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "scenario"
        raise InvalidInput(f"{file}: {field}: {first['msg'].removeprefix('Value error, ')}") from error


def all_scenarios() -> tuple[Scenario, ...]:
    """Those that come along, by file. Raises: InvalidInput."""
    return tuple(scenario for file in _files() for scenario in read_scenarios(file))


def find_scenarios(name: str) -> tuple[Scenario, ...]:
    """A file of one's own, or what comes along under this name: a file's, or a single scenario's.

    Raises: InvalidInput.
    """
    if name.endswith((".yaml", ".yml")):
        return read_scenarios(Path(name))
    found = tuple(one for file in _files() if file.stem == name for one in read_scenarios(file))
    found = found or tuple(one for one in all_scenarios() if one.name == name)
    if not found:
        known = ", ".join(file.stem for file in _files())
        raise InvalidInput(f"there is no scenario {name!r}; there are {known}, and YAML files of your own")
    return found


def with_trace(scenario: Scenario, trace: Path | None) -> Scenario:
    """The same with the requests of a real trace, if it is one that replays a trace."""
    if trace is None or scenario.arrivals.kind != "trace":
        return scenario
    return scenario.model_copy(update={"arrivals": scenario.arrivals.model_copy(update={"path": trace})})


def _files() -> list[Path]:
    return sorted(file for file in SCENARIOS.glob("*.yaml") if not file.name.endswith(".base.yaml"))


# Any: YAML, checked by the models above.
def _points(file: Path, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    sweep = body.pop("sweep", None)
    if base := body.pop("base", None):
        body = _merged(_base(file, base), body)
    if sweep is None:
        yield body
        return
    if not isinstance(sweep, list) or not all(isinstance(point, dict) for point in sweep):
        raise InvalidInput(f"{file}: sweep: must be a list of mappings from fields to values")
    for point in sweep:
        one = deepcopy(body)
        for path, value in point.items():
            _set(file, one, str(path).split("."), value)
        yield one


def _base(file: Path, name: Any) -> dict[str, Any]:
    """Fields that several files share: a file beside this one."""
    base = file.parent / str(name)
    if base.parent != file.parent or not base.is_file():
        raise InvalidInput(f"{file}: base: there is no {name!r} beside it")
    try:
        body = yaml.safe_load(base.read_text())
    except yaml.YAMLError as error:
        raise InvalidInput(f"{base} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, dict):
        raise InvalidInput(f"{base}: must be a mapping of fields")
    return body


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = deepcopy(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def _set(file: Path, body: Any, path: list[str], value: Any) -> None:
    *parents, last = path
    where = body
    try:
        for part in parents:
            where = where[int(part)] if isinstance(where, list) else where[part]
        where[int(last) if isinstance(where, list) else last] = value
    except (KeyError, IndexError, ValueError, TypeError):
        raise InvalidInput(f"{file}: sweep: there is no field {'.'.join(path)}") from None
