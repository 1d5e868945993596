"""`firstlight explain MODEL`: what a start would be answered now, and every host term by term."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.text import Text

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson, ModelArgument
from firstlight.cli.output import console, print_json, rate, seconds, size, table

EDGES = {
    "remote_to_ssd": "from its source",
    "peer_to_dram": "from a peer",
    "ssd_to_dram": "SSD → DRAM",
    "dram_to_gpu": "DRAM → GPU",
}
VERDICTS = {"place": "green", "migrate": "green", "wait": "yellow", "reject": "red"}


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: firstlight explain qwen · firstlight explain qwen --host host-a --json")(
        explain
    )


def explain(
    model: ModelArgument,
    host: Annotated[str | None, typer.Option("--host", help="Only this host.")] = None,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Say where a model would be started now and why: every host, term by term. Changes nothing."""
    with ApiClient(api, key) as client:
        found = client.get(f"/admin/v1/models/{quote(model, safe='')}/explain")
    if host is not None:
        found["candidates"] = [one for one in found["candidates"] if one["host_id"] == host]
    if as_json:
        print_json(found)
        return
    _print_decision(found)
    for candidate in _in_order(found):
        console.print()
        _print_candidate(candidate, is_chosen=candidate["host_id"] == found["decision"]["host_id"])


# Any below: JSON of an explanation, as the API answers it.
def _print_decision(found: Mapping[str, Any]) -> None:
    decision = found["decision"]
    kind = decision["kind"]
    gpus = f"{found['gpu_count']} GPU{'s' if found['gpu_count'] > 1 else ''}"
    console.print(Text.assemble((found["model"], "bold"), f", {size(found['size_bytes'])}, {gpus}"))
    console.print(Text.assemble("now: ", (_verdict(decision), VERDICTS[kind])), soft_wrap=True)
    for victim in decision["victims"]:
        console.print(f"  first {escape(_victim(victim))}")
    if found["ready"]:
        console.print(
            f"[dim]{len(found['ready'])} of its instances serve already: "
            "requests go there while there is room[/]"
        )


def _verdict(decision: Mapping[str, Any]) -> str:
    if decision["kind"] in ("place", "migrate"):
        gpus = ", ".join(str(index) for index in decision["gpu_indices"])
        return (
            f"start on {decision['host_id']}, GPU {gpus}, ready in {seconds(decision['ready_in_s'])}: "
            f"{decision['reason']}"
        )
    if decision["kind"] == "wait":
        when = f", {seconds(decision['ready_in_s'])}" if decision["ready_in_s"] is not None else ""
        what = f" ({decision['instance_id']})" if decision["instance_id"] else ""
        return f"wait{when}: {decision['reason']}{what}"
    return f"refuse, try again in {seconds(decision['retry_after_s'])}: {decision['reason']}"


def _victim(victim: Mapping[str, Any]) -> str:
    who = f"{victim['instance_id']} of {victim['model_name']}"
    if victim["action"] == "evict":
        return f"{who} ends: it is idle ({seconds(victim['seconds'])})"
    onto = f", onto {victim['to_instance_id']}" if victim["to_instance_id"] else ""
    return f"{who} moves to {victim['to_host']}{onto} ({seconds(victim['seconds'])})"


def _in_order(found: Mapping[str, Any]) -> list[Any]:
    """The chosen host first, then the soonest."""

    def key(candidate: Mapping[str, Any]) -> tuple[bool, float, str]:
        estimate = candidate["estimate"]
        total_s = estimate["total_s"] if estimate else float("inf")
        return candidate["host_id"] != found["decision"]["host_id"], total_s, candidate["host_id"]

    return sorted(found["candidates"], key=key)


def _print_candidate(candidate: Mapping[str, Any], *, is_chosen: bool) -> None:
    estimate = candidate["estimate"]
    if estimate is None:
        console.print(Text.assemble((candidate["host_id"], "bold"), f"  {candidate['reason']}"))
        return
    verdict = ("chosen", "green") if is_chosen else ("possible", "dim")
    console.print(Text.assemble((candidate["host_id"], "bold"), "  ", verdict))
    shown = table("  TERM", "SECONDS", "BECAUSE")
    first, *others = candidate["ways"]
    for row in _terms(first, candidate):
        shown.add_row(*row)
    shown.add_row("  [bold]ready[/]", f"[bold]{seconds(estimate['total_s'])}[/]", "")
    for way in others:
        shown.add_row("  [dim]or[/]", f"[dim]{seconds(way['total_s'])}[/]", f"[dim]{_origin(way)}[/]")
    console.print(shown)


def _terms(way: Mapping[str, Any], candidate: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "  bytes", "", f"[dim]{_origin(way)}[/]"
    for edge in way["edges"]:
        if edge["queued_bytes"] and not edge["is_beside"]:
            yield "  queue", seconds(edge["queue_s"]), f"{size(edge['queued_bytes'])} promised to others"
        name = EDGES.get(edge["edge"], edge["edge"])
        took = f"({seconds(edge['transfer_s'])})" if edge["is_beside"] else seconds(edge["transfer_s"])
        yield f"  {name}", took, _edge(edge)
    free_s = candidate["estimate"]["free_s"]
    if free_s or candidate["victims"]:
        gone = "; ".join(_victim(victim) for victim in candidate["victims"])
        yield "  free GPUs", seconds(free_s), f"what is longer than the bytes' way: {escape(gone)}"
    how = "learned of this model on such hosts" if way["is_attach_learned"] else "not learned yet"
    yield "  attach", seconds(way["attach_s"]), how
    yield "  control", seconds(way["control_s"]), "workflow, SQL, and what the bytes do not hide of them"


def _edge(edge: Mapping[str, Any]) -> str:
    seen = edge["observations"]
    known = f"seen {seen} times" if seen > 1 else "seen once" if seen else "as probed or assumed"
    at = f"{size(edge['size_bytes'])} at {rate(edge['bandwidth_bytes_per_s'])}"
    late = f" + {seconds(edge['overhead_s'])}" if edge["overhead_s"] else ""
    beside = "; beside the above, counts as far as that does not hide it" if edge["is_beside"] else ""
    return f"{at}{late}, {known}{beside}"


def _origin(way: Mapping[str, Any]) -> str:
    names: dict[str, str] = {
        "remote": "from its source, into DRAM and SSD at once",
        "peer": f"from {way['peer_host_id']}'s store",
        "ssd": "on this host's SSD",
        "dram": "in this host's DRAM",
    }
    return names.get(way["tier"], str(way["tier"]))
