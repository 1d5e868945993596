"""Everything of a comparison on one page: tables and plots, nothing to load from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from firstlight.domain.fleet import Tier
from simulator.charts import bars, lines
from simulator.outcome import Outcome, quantile
from simulator.scenario import Scenario
from simulator.statistics import Interval
from simulator.summary import Key, Summary

# What a line of a plot is drawn through at most.
POINTS = 200
# Start-up latency over time is averaged over so many stretches of the scenario.
STRETCHES = 40
_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem;color:#1c1c1c}
table{border-collapse:collapse;margin:.6rem 0 1rem}td,th{padding:.15rem .6rem;text-align:right}
td:first-child,th:first-child{text-align:left}thead th{border-bottom:1px solid #999}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:1rem}
figure{margin:0;border:1px solid #ddd;padding:.4rem}figcaption{font-weight:600}
.grid{stroke:#e4e4e4}.tick,.axis,.legend{fill:#444}small{color:#666}
"""
_COLUMNS = (
    ("start-up p50 s", "startup_p50_s"),
    ("p95 s", "startup_p95_s"),
    ("p99 s", "startup_p99_s"),
    ("TTFT p50 s", "ttft_p50_s"),
    ("p95 s", "ttft_p95_s"),
    ("p99 s", "ttft_p99_s"),
    ("inside time-out", "inside_share"),
    ("warm", "warm_share"),
    ("migrations", "migrations"),
    ("preemptions", "preemptions"),
    ("GPUs used", "gpu_used_share"),
)


def page(
    scenarios: Sequence[Scenario],
    summaries: Mapping[Key, Summary],
    outcomes: Mapping[Key, Outcome],
) -> str:
    """`outcomes`: one seed's run per scenario and policy, which the plots show."""
    body = "".join(_section(scenario, summaries, outcomes) for scenario in scenarios)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Simulated fleets</title>'
        f"<style>{_STYLE}</style></head><body><h1>Simulated fleets</h1>"
        "<p>Tables: means over all seeds ± 95%. Plots: the first seed.</p>"
        f"{body}</body></html>"
    )


def _section(scenario: Scenario, summaries: Mapping[Key, Summary], outcomes: Mapping[Key, Outcome]) -> str:
    own = {policy: one for (name, policy), one in outcomes.items() if name == scenario.name}
    fleet = scenario.fleet
    facts = (
        f"{fleet.hosts} hosts × {fleet.gpus_per_host} GPUs, "
        f"{sum(kind.count for kind in scenario.models)} models, "
        f"{scenario.duration_s:.0f} s, time-out {scenario.timeout_s:.0f} s"
    )
    figures = "".join(
        f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"
        for caption, drawing in _plots(own).items()
        if drawing
    )
    return (
        f'<section id="{escape(scenario.name)}"><h2>{escape(scenario.title)}</h2>'
        f"<small>{escape(facts)}</small>"
        f'{_table(scenario.name, summaries)}<div class="plots">{figures}</div></section>'
    )


def _table(scenario: str, summaries: Mapping[Key, Summary]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in _COLUMNS)
    rows = "".join(
        f"<tr><td>{escape(policy)}</td>"
        + "".join(f"<td>{_cell(figure, summary.interval(figure))}</td>" for _, figure in _COLUMNS)
        + "</tr>"
        for (where, policy), summary in summaries.items()
        if where == scenario
    )
    return f"<table><thead><tr><th>policy</th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(figure: str, value: Interval) -> str:
    if figure.endswith("_share"):
        return f"{value.mean:.1%}"
    if figure.endswith("_s"):
        return f"{value.mean:.2f} ± {value.half:.2f}"
    return f"{value.mean:.1f}"


def _plots(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {
        "Start-up latency, share of requests": lines(
            "start-up latency",
            {name: _cdf(one.startup_s) for name, one in outcomes.items()},
            x="seconds",
            y="share",
            x_log=True,
        ),
        "Time to first token, share of requests": lines(
            "time to first token",
            {name: _cdf(one.ttft_s) for name, one in outcomes.items()},
            x="seconds",
            y="share",
            x_log=True,
        ),
        "Start-up latency over time": lines(
            "start-up latency over time",
            {name: _means(one.over_time) for name, one in outcomes.items()},
            x="time of arrival, s",
            y="mean, s",
        ),
        "GPUs in use": lines(
            "GPUs in use",
            {name: _use(one) for name, one in outcomes.items()},
            x="time, s",
            y="GPUs that compute",
            as_steps=True,
        ),
        "Starts by tier": bars(
            "starts by tier",
            {
                name: {tier.value: float(one.starts.get(tier.value, 0)) for tier in reversed(Tier)}
                for name, one in outcomes.items()
            },
            x="starts",
        ),
        "Migrations, preemptions and evictions of idle instances": bars(
            "migrations, preemptions, evictions",
            {
                name: {
                    "migrations": float(one.migrations),
                    "preemptions": float(one.preemptions),
                    "evictions": float(one.evictions),
                }
                for name, one in outcomes.items()
            },
            x="number",
        ),
    }


def _cdf(ordered: Sequence[float]) -> list[tuple[float, float]]:
    steps = min(POINTS, len(ordered))
    return [(quantile(ordered, step / steps), step / steps) for step in range(1, steps + 1)]


def _means(over_time: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if not over_time:
        return []
    width_s = max(1e-9, over_time[-1][0] / STRETCHES)
    found: dict[int, list[float]] = {}
    for at_s, startup_s in over_time:
        found.setdefault(int(at_s / width_s), []).append(startup_s)
    return [((place + 0.5) * width_s, sum(rows) / len(rows)) for place, rows in sorted(found.items())]


def _use(outcome: Outcome) -> list[tuple[float, float]]:
    """GPUs that compute, at evenly spaced moments."""
    if not outcome.gpu_use:
        return []
    found, place, used = [], 0, 0
    for step in range(POINTS + 1):
        at_s = outcome.ended_s * step / POINTS
        while place < len(outcome.gpu_use) and outcome.gpu_use[place][0] <= at_s:
            used = outcome.gpu_use[place][2]
            place += 1
        found.append((at_s, float(used)))
    return found
