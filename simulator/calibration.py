"""What was measured of a machine, as a scenario that is told nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from random import Random
from statistics import median, pstdev

from simulator.scenario import Scenario

# A copy that does not take place: the engine computes in the memory that the bytes are in.
NO_COPY_GB_PER_S = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of single starts, from request to an engine that could compute, and what requests are like."""

    dram_s: tuple[float, ...]
    ssd_s: tuple[float, ...]
    # First token and whole answer of requests to an instance that runs.
    warm_s: tuple[float, ...]
    answer_s: tuple[float, ...]
    attach_s: float
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
    def control_s(self) -> float:
        return max(0.0, median(self.dram_s) - self.attach_s)

    @property
    def disk_gb_per_s(self) -> float:
        """By what a start from SSD takes longer than one from DRAM."""
        return self.size_bytes / 1e9 / max(1e-3, median(self.ssd_s) - median(self.dram_s))

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm of starts, each tier about its own median."""
        logs = [log(max(1e-4, one / median(rows))) for rows in (self.dram_s, self.ssd_s) for one in rows]
        return min(1.0, pstdev(logs)) if len(logs) > 1 else 0.0

    def joined(self, later: Measured) -> Measured:
        """Both taken together: what the machine was like between the two."""
        return replace(
            later,
            dram_s=self.dram_s + later.dram_s,
            ssd_s=self.ssd_s + later.ssd_s,
            warm_s=self.warm_s + later.warm_s,
            answer_s=self.answer_s + later.answer_s,
            attach_s=(self.attach_s + later.attach_s) / 2,
        )

    def sentence(self) -> str:
        return (
            f"told to the simulator: control {self.control_s * 1e3:.0f} ms, "
            f"attach {self.attach_s * 1e3:.0f} ms, disk {self.disk_gb_per_s:.2f} GB/s, "
            f"prefill {self.prefill_tokens_per_s:.0f} and decode {self.decode_tokens_per_s:.0f} tokens/s, "
            f"noise {self.noise:.2f}"
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
                "attach_s": measured.attach_s,
                "control_s": measured.control_s,
                "noise": measured.noise,
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
