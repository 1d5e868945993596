"""What was measured of a machine, as a scenario that is told nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import log
from random import Random
from statistics import median, pstdev

from simulator.scenario import Scenario

# A copy that does not take place: the engine computes in the memory that the bytes are in.
NO_COPY_GB_PER_S = 1e6
# Seconds after a start within which a host makes its next engine: once it is bound it rests for a second.
REPLACING_S = (1.0, 2.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of starts, from request to first token less a warm request's, and what requests are like."""

    # One start at a time.
    dram_s: tuple[float, ...]
    ssd_s: tuple[float, ...]
    # From DRAM too: two in the same moment, and one while the engine of another is replaced.
    beside_s: tuple[float, ...]
    after_s: tuple[float, ...]
    # First token and whole answer of requests to an instance that runs.
    warm_s: tuple[float, ...]
    answer_s: tuple[float, ...]
    # As the platform recorded them of single starts: attach and control of those from DRAM, load from SSD.
    attach_s: tuple[float, ...]
    control_s: tuple[float, ...]
    load_s: tuple[float, ...]
    size_bytes: int
    prompt_tokens: int
    output_tokens: int

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prompt_tokens / max(1e-6, median(self.warm_s))

    @property
    def decode_tokens_per_s(self) -> float:
        decoding_s = median(self.answer_s) - median(self.warm_s)
        return (self.output_tokens - 1) / max(1e-6, decoding_s)

    @property
    def first_pass_s(self) -> float:
        """What of a start from DRAM is neither control nor attach: the engine's first pass."""
        return max(0.0, median(self.dram_s) - median(self.attach_s) - median(self.control_s))

    @property
    def disk_gb_per_s(self) -> float:
        return self.size_bytes / 1e9 / max(1e-3, median(self.load_s))

    @property
    def hidden_load(self) -> float:
        """Part of a load that costs a first token nothing: what a start from SSD does not take longer by."""
        longer_s = max(0.0, median(self.ssd_s) - median(self.dram_s))
        return max(0.0, 1.0 - longer_s / max(1e-3, median(self.load_s)))

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm of single starts, each tier about its own median."""
        logs = [log(max(1e-4, one / median(rows))) for rows in (self.dram_s, self.ssd_s) for one in rows]
        return min(1.0, pstdev(logs)) if len(logs) > 1 else 0.0

    def slowdown(self, beside_s: Sequence[float]) -> float:
        """Times as long that first tokens took which were asked for beside other work, at least once."""
        if not beside_s:
            return 1.0
        warm_s = median(self.warm_s)
        return max(1.0, (median(beside_s) + warm_s) / (median(self.dram_s) + warm_s))

    def joined(self, later: Measured) -> Measured:
        """Both taken together: what the machine was like between the two."""
        return replace(
            later,
            **{
                field.name: getattr(self, field.name) + getattr(later, field.name)
                for field in fields(self)
                if isinstance(getattr(self, field.name), tuple)
            },
        )

    def sentence(self) -> str:
        return (
            f"told to the simulator: control {median(self.control_s) * 1e3:.0f} ms, "
            f"attach {median(self.attach_s) * 1e3:.0f} ms, first pass {self.first_pass_s * 1e3:.0f} ms more, "
            f"disk {self.disk_gb_per_s:.2f} GB/s of which {self.hidden_load:.0%} hidden, "
            f"prefill {self.prefill_tokens_per_s:.0f} and decode {self.decode_tokens_per_s:.0f} tokens/s, "
            f"noise {self.noise:.2f}, beside another start {self.slowdown(self.beside_s):.2f} times, "
            f"after one {self.slowdown(self.after_s):.2f} times as long"
        )


def trace_of(count: int, *, models: int, mean_gap_s: float, random: Random) -> tuple[tuple[float, int], ...]:
    """(arrival, model): a Poisson process, every model as likely as any other."""
    at_s, found = 0.0, []
    for _ in range(count):
        at_s += random.expovariate(1.0 / mean_gap_s)
        found.append((at_s, random.randrange(models)))
    return tuple(found)


def blocks_of(trace: Sequence[tuple[float, int]], count: int) -> list[tuple[tuple[float, int], ...]]:
    """The trace in `count` parts of about as many requests, each on a clock of its own."""
    ends = [round(len(trace) * (part + 1) / count) for part in range(count)]
    found = []
    for begin, end in zip([0, *ends], ends, strict=False):
        since_s = trace[begin - 1][0] if begin else 0.0
        found.append(tuple((at_s - since_s, model) for at_s, model in trace[begin:end]))
    return [block for block in found if block]


def scenario_of(measured: Measured, *, models: int, keep_alive_s: float, duration_s: float) -> Scenario:
    """Two hosts of one place each, as the platform is started, with every checkpoint on both SSDs."""
    loader = {"ssd_share": 1.0, "gpu_share": 1.0, "overhead_s": 0.0}
    return Scenario.model_validate(
        {
            "name": "calibration",
            "title": "This machine",
            "duration_s": duration_s,
            "fleet": {
                "hosts": 2,
                "gpus_per_host": 1,
                "gpu_memory_gb": 1000,
                "dram_pool_gb": 2.147,
                "ssd_gb": 21.47,
                "ssd_copies": 2,
                "ssd_gb_per_s": measured.disk_gb_per_s,
                "gpu_gb_per_s": NO_COPY_GB_PER_S,
                "network_gb_per_s": 1.0,
                "attach_s": median(measured.attach_s),
                "control_s": median(measured.control_s),
                "first_pass_s": measured.first_pass_s,
                "hidden_load": measured.hidden_load,
                "noise": measured.noise,
                "shared_machine": {
                    "computing": measured.slowdown(measured.beside_s),
                    "replacing": measured.slowdown(measured.after_s),
                    "replacing_from_s": REPLACING_S[0],
                    "replacing_until_s": REPLACING_S[1],
                },
            },
            "models": [
                {
                    "name": "m",
                    "count": models,
                    "size_gb": measured.size_bytes / 1e9,
                    "prefill_tokens_per_s": measured.prefill_tokens_per_s,
                    "decode_tokens_per_s": measured.decode_tokens_per_s,
                }
            ],
            "arrivals": {"requests_per_s": 1.0},
            "lengths": {
                "kind": "fixed",
                "prompt_tokens": measured.prompt_tokens,
                "output_tokens": measured.output_tokens,
            },
            "loaders": {"fast": loader, "plain": loader},
            "policies": {
                "firstlight": {"keep_alive_s": keep_alive_s, "adaptive_keep_alive": 0.0, "prefetch": 0.0}
            },
        }
    )


def startup_s(ttft_s: float, warm_s: Sequence[float]) -> float:
    """What of a first token's time is not the engine's own work; a warm request's is none."""
    return max(0.0, ttft_s - median(warm_s))
