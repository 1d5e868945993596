"""Who asks for which model when, and for how many tokens: from a seed, or from a real trace."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from random import Random

from firstlight.domain.errors import InvalidInput
from simulator.entities import ModelSpec, Request
from simulator.scenario import GB, Arrivals, Lengths, Models, Scenario

# Tokens are about this many characters of English.
CHARACTERS_PER_TOKEN = 4.0
# What a model takes at most, prompt or answer: OPT's context, and for code what the trace shows.
LONGEST_TOKENS = {"gsm8k": 2048, "sharegpt": 2048, "azure-code": 8192}
# (median, sigma) of a lognormal for prompt and answer: fitted by eye to what the data sets are known for.
# GSM8K: word problems of two or three sentences, a worked answer. ShareGPT: chats, four times as long.
_LOGNORMAL = {
    "gsm8k": ((60.0, 0.35), (95.0, 0.40)),
    "sharegpt": ((130.0, 1.10), (260.0, 0.85)),
    "azure-code": ((1500.0, 0.85), (15.0, 1.00)),
}


def models_of(scenario: Scenario) -> tuple[ModelSpec, ...]:
    """`count` models of each kind, their names numbered."""
    return tuple(_spec(kind, index) for kind in scenario.models for index in range(kind.count))


def requests_of(scenario: Scenario, models: Sequence[ModelSpec], seed: int) -> list[Request]:
    """The seed's requests in order of arrival; every policy gets the same.

    Raises: InvalidInput for a trace or data set that cannot be read.
    """
    # A generator each, so that one figure of the scenario changed leaves the others' draws alone.
    arrivals, choice, sizes = (Random(f"{seed}/{part}") for part in ("arrivals", "models", "lengths"))
    if scenario.arrivals.kind == "trace" and scenario.arrivals.path is not None:
        rows = list(_trace(scenario.arrivals.path, scenario.duration_s, seed))
        times, lengths = [row[0] for row in rows], [row[1:] for row in rows]
    else:
        times = _gamma_times(scenario, arrivals)
        lengths = _lengths(scenario.lengths, len(times), sizes)
    if scenario.arrivals.of == "model" and scenario.arrivals.kind == "gamma":
        chosen = _times_per_model(scenario, models, arrivals)
        times, who = [time for time, _ in chosen], [model for _, model in chosen]
        lengths = _lengths(scenario.lengths, len(times), sizes)
    else:
        order = list(models)
        choice.shuffle(order)
        weights = [rank**-scenario.arrivals.zipf for rank in range(1, len(order) + 1)]
        who = choice.choices(order, weights, k=len(times))
    return [
        Request(index, model, time, prompt, output)
        for index, (time, model, (prompt, output)) in enumerate(zip(times, who, lengths, strict=True))
    ]


def _spec(kind: Models, index: int) -> ModelSpec:
    return ModelSpec(
        name=f"{kind.name}-{index + 1}",
        size_bytes=int(kind.size_gb * GB),
        gpus=kind.gpus,
        prefill_tokens_per_s=kind.prefill_tokens_per_s,
        decode_tokens_per_s=kind.decode_tokens_per_s,
        layers=kind.layers,
    )


def _gamma_times(scenario: Scenario, random: Random) -> list[float]:
    count = max(1, round(scenario.arrivals.requests_per_s * scenario.duration_s))
    return _scaled(_gaps(scenario.arrivals, count, random), scenario.duration_s)


def _gaps(arrivals: Arrivals, count: int, random: Random) -> list[float]:
    # A gamma with shape k has a coefficient of variation of 1/√k; its scale does not matter here.
    shape = 1.0 / arrivals.cv**2
    return [random.gammavariate(shape, 1.0) for _ in range(count)]


def _scaled(gaps: Sequence[float], duration_s: float) -> list[float]:
    """Times with these gaps, stretched so that just so many requests come within the duration."""
    total = sum(gaps) or 1.0
    times, at = [], 0.0
    for gap in gaps:
        at += gap
        times.append(duration_s * at / total)
    return times


def _times_per_model(
    scenario: Scenario, models: Sequence[ModelSpec], random: Random
) -> list[tuple[float, ModelSpec]]:
    """Each model's bursts are its own; a cyclic shift keeps them from all ending with the duration."""
    total = round(scenario.arrivals.requests_per_s * scenario.duration_s)
    weights = [rank**-scenario.arrivals.zipf for rank in range(1, len(models) + 1)]
    found: list[tuple[float, ModelSpec]] = []
    for model, weight in zip(models, weights, strict=True):
        share = total * weight / sum(weights)
        count = int(share) + (random.random() < share % 1)
        shift_s = random.random() * scenario.duration_s
        for time in _scaled(_gaps(scenario.arrivals, count, random), scenario.duration_s):
            found.append(((time + shift_s) % scenario.duration_s, model))
    return sorted(found, key=lambda one: (one[0], one[1].name))


def _lengths(lengths: Lengths, count: int, random: Random) -> list[tuple[int, int]]:
    if lengths.kind == "fixed":
        return [(lengths.prompt_tokens, lengths.output_tokens)] * count
    if lengths.path is not None:
        known = _data_set(lengths.path)
        return [random.choice(known) for _ in range(count)]
    prompt, output = _LOGNORMAL[lengths.kind]
    longest = LONGEST_TOKENS[lengths.kind]
    return [(_drawn(prompt, longest, random), _drawn(output, longest, random)) for _ in range(count)]


def _drawn(law: tuple[float, float], longest: int, random: Random) -> int:
    median, sigma = law
    return max(1, min(longest, round(median * random.lognormvariate(0.0, sigma))))


def _data_set(file: Path) -> list[tuple[int, int]]:
    """JSON lines with `question` and `answer`, or `prompt` and `output`, as texts."""
    found = []
    try:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            prompt = row.get("question", row.get("prompt"))
            answer = row.get("answer", row.get("output"))
            found.append((_tokens(prompt), _tokens(answer)))
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{file}, line {len(found) + 1}: not a JSON object with two texts") from error
    if not found:
        raise InvalidInput(f"{file} holds no question")
    return found


def _tokens(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


def _trace(file: Path, duration_s: float, seed: int) -> Iterator[tuple[float, int, int]]:
    """(seconds, prompt, output) of a window of the trace; each seed takes the next window."""
    rows = _trace_rows(file)
    whole_s = rows[-1][0]
    windows = max(1, int(whole_s // duration_s))
    begin_s = (seed % windows) * duration_s
    for at_s, prompt, output in rows:
        if begin_s <= at_s < begin_s + duration_s:
            yield at_s - begin_s, prompt, output


def _trace_rows(file: Path) -> list[tuple[float, int, int]]:
    rows: list[tuple[float, int, int]] = []
    try:
        with file.open(newline="") as lines:
            first: datetime | None = None
            for row in csv.DictReader(lines):
                # Seven digits of a second are one more than Python reads.
                at = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26])
                first = first or at
                tokens = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                rows.append(((at - first).total_seconds(), max(1, tokens[0]), max(1, tokens[1])))
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise InvalidInput(
            f"{file}, line {len(rows) + 2}: needs TIMESTAMP, ContextTokens and GeneratedTokens"
        ) from error
    if not rows:
        raise InvalidInput(f"{file} holds no request")
    return rows
