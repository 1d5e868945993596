"""What is read from files: scenarios, traces and data sets, and what is said where they are wrong."""

from __future__ import annotations

import re
from inspect import getmodule, getsource
from itertools import pairwise
from pathlib import Path

import pytest
from simulator_scenes import scene

from firstlight.domain.errors import InvalidInput
from simulator.policies import firstlight_ahead
from simulator.policies.catalogue import POLICIES
from simulator.policies.firstlight import Firstlight
from simulator.policy import Policy
from simulator.scenario import all_scenarios, find_scenarios, read_scenarios, with_trace
from simulator.workload import models_of, requests_of

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:13.9799600,110,27
2023-11-16 18:18:13.9799600,7,1
"""


def yaml_of(scenario_name: str = "mine", **replaced: str) -> str:
    fields = {
        "name": scenario_name,
        "title": "Mine",
        "duration_s": "10",
        "fleet": "{hosts: 1, gpus_per_host: 1, gpu_memory_gb: 48, dram_pool_gb: 100, ssd_gb: 1000, "
        "ssd_copies: 1, ssd_gb_per_s: 5, gpu_gb_per_s: 20, network_gb_per_s: 1}",
        "models": "[{name: m, count: 2, size_gb: 10, prefill_tokens_per_s: 1000, decode_tokens_per_s: 10}]",
        "arrivals": "{requests_per_s: 1}",
        "lengths": "{kind: gsm8k}",
        "loaders": "{fast: {ssd_share: 1, gpu_share: 1, overhead_s: 0}, "
        "plain: {ssd_share: 1, gpu_share: 1, overhead_s: 0}}",
        **replaced,
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value)


def test_what_comes_along_is_valid_and_has_names_of_its_own() -> None:
    scenarios = all_scenarios()
    assert len({one.name for one in scenarios}) == len(scenarios) >= 20
    assert [one.name for one in find_scenarios("gpus")] == [f"gpus-{count}" for count in (1, 2, 3, 4)]
    assert [one.name for one in find_scenarios("gpus-3")] == ["gpus-3"]


def test_a_sweep_changes_the_fields_it_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml_of() + "sweep: [{name: a, models.0.count: 3}, {name: b, arrivals.requests_per_s: 2.5}]"
    )
    first, second = read_scenarios(file)
    assert (first.name, first.models[0].count, first.arrivals.requests_per_s) == ("a", 3, 1.0)
    assert (second.name, second.models[0].count, second.arrivals.requests_per_s) == ("b", 2, 2.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fleet: [", "is not YAML"),
        ("- 1", "a scenario is a mapping"),
        (yaml_of(title=""), "title: Field required"),
        (yaml_of() + "colour: red", "colour: Extra inputs are not permitted"),
        (yaml_of(duration_s="-1"), "duration_s: Input should be greater than 0"),
        (yaml_of(arrivals="{kind: uniform}"), "arrivals.kind"),
        (yaml_of(models="[]"), "models"),
        (
            yaml_of(models="[{name: m, count: 1, size_gb: 90, gpus: 2, prefill_tokens_per_s: 1, "
            "decode_tokens_per_s: 1}]"),
            "m needs 2 GPUs, a host has 1",
        ),
        (
            yaml_of(models="[{name: m, count: 1, size_gb: 90, prefill_tokens_per_s: 1, "
            "decode_tokens_per_s: 1}]"),
            "m has 90.0 GB, its GPUs hold less",
        ),
        (yaml_of(loaders="{fast: {ssd_share: 1, gpu_share: 1, overhead_s: 0}}"), "loaders lacks 'plain'"),
        (yaml_of() + "sweep: {a: 1}", "sweep: must be a list"),
        (yaml_of() + "sweep: [{models.7.count: 1}]", "sweep: there is no field models.7.count"),
        (yaml_of(policies="{firstlite: {prefetch: 0}}"), "policies: there is no policy 'firstlite'"),
        (yaml_of(policies="{random: {keep_alive: 1}}"), "random has no option 'keep_alive'; it has"),
        (yaml_of(policies="{clockwork: {keep_alive_s: 1}}"), "'keep_alive_s'; it has none"),
        (yaml_of(policies="{random: {keep_alive_s: long}}"), "policies.random.keep_alive_s: Input should be"),
        (yaml_of() + "base: ../else.yaml", "there is no '../else.yaml' beside it"),
    ],
)  # fmt: skip
def test_a_wrong_scenario_is_refused_with_the_file_and_the_field(
    tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_scenarios(file)
    assert says in caught.value.message
    assert str(file) in caught.value.message


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_policy_names_the_options_that_it_reads(policy: type[Policy]) -> None:
    modules = [getmodule(kind) for kind in policy.__mro__ if issubclass(kind, Policy)]
    # Firstlight hands its own on.
    modules += [firstlight_ahead] if policy is Firstlight else []
    sources = "".join(getsource(one) for one in modules if one)
    read = set(re.findall(r'options\.get\(\s*"(\w+)"', sources))
    assert policy.option_names == read


def test_a_scenario_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        read_scenarios(Path("/nowhere/mine.yaml"))
    with pytest.raises(InvalidInput, match="there is no scenario 'gsm9k'"):
        find_scenarios("gsm9k")


def test_a_trace_gives_times_and_tokens_window_by_window(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    scenario = with_trace(scene(duration_s=30.0, arrivals={"kind": "trace"}), file)
    models = models_of(scenario)
    first = requests_of(scenario, models, 0)
    assert [(one.prompt_tokens, one.output_tokens) for one in first] == [(4808, 10), (3180, 8), (110, 27)]
    assert [one.arrival_s for one in first] == pytest.approx([0.0, 0.052, 10.0])
    # 70 s hold two windows of 30: the second one is empty, the third seed begins anew.
    assert requests_of(scenario, models, 1) == []
    assert len(requests_of(scenario, models, 2)) == 3


def test_without_a_path_a_trace_has_a_stand_in() -> None:
    scenario = scene(arrivals={"kind": "trace", "requests_per_s": 2.0}, lengths={"kind": "azure-code"})
    requests = requests_of(scenario, models_of(scenario), 0)
    assert len(requests) == 120
    prompts = sorted(one.prompt_tokens for one in requests)
    assert 1000 < prompts[60] < 2200


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "line 2: needs TIMESTAMP"),
        (TRACE + "yesterday,1,1\n", "line 6: needs TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
    ],
)
def test_a_wrong_trace_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    scenario = with_trace(scene(arrivals={"kind": "trace"}), file)
    with pytest.raises(InvalidInput, match=says):
        requests_of(scenario, models_of(scenario), 0)


def test_lengths_come_from_questions_and_answers(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "12345678", "answer": "1234567890123456"}\n')
    scenario = scene(lengths={"kind": "gsm8k", "path": str(file)})
    requests = requests_of(scenario, models_of(scenario), 0)
    assert {(one.prompt_tokens, one.output_tokens) for one in requests} == {(2, 4)}
    file.write_text('{"question": "12345678"}\n')
    with pytest.raises(InvalidInput, match="line 1: not a JSON object with two texts"):
        requests_of(scenario, models_of(scenario), 0)


def test_bursts_have_the_rate_and_the_spread_that_was_asked_for() -> None:
    scenario = scene(duration_s=2000.0, arrivals={"kind": "gamma", "cv": 8.0, "requests_per_s": 1.0})
    times = [one.arrival_s for one in requests_of(scenario, models_of(scenario), 1)]
    assert len(times) == 2000 and times == sorted(times) and times[-1] <= 2000.0
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert 5.0 < deviation / mean < 12.0


def test_zipf_makes_some_models_popular() -> None:
    scenario = scene(
        models__0__count=8, arrivals={"kind": "gamma", "cv": 1.0, "requests_per_s": 20.0, "zipf": 1.0}
    )
    counts: dict[str, int] = {}
    for one in requests_of(scenario, models_of(scenario), 1):
        counts[one.model.name] = counts.get(one.model.name, 0) + 1
    ordered = sorted(counts.values(), reverse=True)
    # 1200 requests over harmonic weights: 442 for the first, 55 for the eighth.
    assert 380 < ordered[0] < 500 and 30 < ordered[-1] < 85
