"""What this host's devices can do, before any load has shown it: what the estimator starts from.

Measured once a boot and volume, behind the store's start and while it moves nothing, and kept in the state
directory: a store that is started again knows at once, and after a boot the last figures serve until new ones
are there. The volume is measured twice and the better one counts: what starts beside the store takes the
cores that a read needs (a ninth of the true rate was seen on two of them).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from firstlight.domain.errors import FirstlightError
from gpu_worker.store.disk import write_atomically
from gpu_worker.store.gpu_handover import GpuHandover
from gpu_worker.store.gpu_probe import measure_copy
from gpu_worker.store.ssd_probe import Disturbed, measure_reads

log = logging.getLogger("store.probe")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Who comes just after the store's start finds the device free.
QUIET_FOR_S = 2.0
# By then whatever was started together runs.
AGAIN_AFTER_S = 60.0
# A store that is always busy learns from its loads.
TRIES = 20


@dataclass(frozen=True, slots=True)
class Figures:
    """Bytes a second; 0: not measured, or no such device."""

    ssd_read_bytes_per_s: float = 0.0
    dram_to_gpu_bytes_per_s: float = 0.0


class Prober:
    """Belongs to the store's event loop. `figures` are the kept ones until `run` has new ones."""

    def __init__(
        self,
        *,
        ssd_root: Path,
        state_dir: Path,
        quiet_for_s: float = QUIET_FOR_S,
        again_after_s: float = AGAIN_AFTER_S,
    ) -> None:
        self._ssd_root = ssd_root
        self._path = state_dir / "probe.json"
        self._quiet_for_s = quiet_for_s
        self._again_after_s = again_after_s
        self._best = 0.0
        self._of = {"boot_id": _boot_id(), "device": os.stat(ssd_root).st_dev}
        self.figures, self.is_fresh = self._kept()

    async def run(self, *, is_quiet: Callable[[], bool], gpu: GpuHandover) -> None:
        """Measure what is not known since this boot; never raises for a device's sake."""
        if self.is_fresh:
            return
        has_measured = await self._until_measured(is_quiet)
        await self._measure_gpu(gpu)
        if not has_measured:
            return
        # Not of this boot yet, as far as a successor is concerned: it measures anew.
        self._keep({**self._of, "boot_id": ""})
        await asyncio.sleep(self._again_after_s)
        await self._until_measured(is_quiet)
        self.is_fresh = True
        self._keep(self._of)

    async def _until_measured(self, is_quiet: Callable[[], bool]) -> bool:
        for _ in range(TRIES):
            await asyncio.sleep(self._quiet_for_s)
            if not is_quiet():
                continue
            try:
                return await self._measure_ssd(is_quiet)
            except Disturbed:
                log.info("probe of the SSD put off: a load came")
        return False

    async def _measure_ssd(self, is_quiet: Callable[[], bool]) -> bool:
        """False if the volume refuses. Raises: Disturbed."""
        try:
            found = await asyncio.to_thread(measure_reads, self._ssd_root, is_quiet=is_quiet)
        except (OSError, FirstlightError) as failure:
            log.warning("the SSD could not be measured, its estimates start from a guess: %s", failure)
            return False
        log.info(
            "ssd read_bytes_per_s=%.3g by=%s bytes=%d passes=%d in_s=%.2f folder=%s",
            found.bytes_per_s,
            found.io_mode,
            found.size_bytes,
            found.passes,
            found.took_s,
            self._ssd_root,
        )
        # Of this process; a figure from before the boot does not count.
        self._best = max(self._best, found.bytes_per_s)
        self.figures = replace(self.figures, ssd_read_bytes_per_s=self._best)
        return True

    async def _measure_gpu(self, gpu: GpuHandover) -> None:
        try:
            device = await gpu.first_device()
            if device is None:
                return
            bytes_per_s = await asyncio.to_thread(measure_copy, device)
        except FirstlightError as failure:
            log.warning("copies to the GPU could not be measured: %s", failure.message)
            return
        log.info("gpu=%s copy_bytes_per_s=%.3g from pinned memory", device.facts.name, bytes_per_s)
        self.figures = replace(self.figures, dram_to_gpu_bytes_per_s=bytes_per_s)

    def _kept(self) -> tuple[Figures, bool]:
        """Of this volume, and whether they are of this boot."""
        try:
            record = json.loads(self._path.read_text())
            figures = Figures(**{name: float(record[name]) for name in asdict(Figures())})
            if record["device"] != self._of["device"]:
                raise ValueError("another volume")
        except (OSError, ValueError, KeyError, TypeError) as reason:
            log.info("nothing is known of this volume yet (%s)", reason)
            return Figures(), False
        is_fresh = record.get("boot_id") == self._of["boot_id"]
        when = "since this boot" if is_fresh else "from before this boot, to be measured again"
        log.info("ssd read_bytes_per_s=%.3g %s", figures.ssd_read_bytes_per_s, when)
        return figures, is_fresh

    def _keep(self, of: Mapping[str, object]) -> None:
        try:
            write_atomically(self._path, json.dumps({**of, **asdict(self.figures)}))
        except OSError as failure:
            log.warning("the figures are not kept: %s", failure)


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
