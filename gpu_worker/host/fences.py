"""The highest fencing epoch seen for each GPU, kept on disk so that a restarted supervisor knows it too."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from firstlight.domain.errors import StaleEpoch
from gpu_worker.store.disk import write_atomically

log = logging.getLogger("host.fences")


class Fences:
    """An owner with a lower epoch than one seen before has been replaced, whatever it believes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._epochs = _read(path)

    def highest(self, gpu_index: int) -> int:
        return self._epochs.get(gpu_index, 0)

    def check(self, gpu_indices: Iterable[int], epoch: int) -> None:
        """Raises: StaleEpoch when any of the GPUs has seen a higher one."""
        for gpu_index in gpu_indices:
            if epoch < self.highest(gpu_index):
                raise StaleEpoch(
                    f"epoch {epoch} is stale: GPU {gpu_index} has been given away under epoch "
                    f"{self.highest(gpu_index)}",
                    gpu_index=gpu_index,
                    epoch=epoch,
                )

    def raise_to(self, gpu_indices: Iterable[int], epoch: int) -> None:
        """Check, then let nothing lower pass again. Raises: StaleEpoch."""
        gpu_indices = list(gpu_indices)
        self.check(gpu_indices, epoch)
        if any(epoch > self.highest(gpu_index) for gpu_index in gpu_indices):
            self._epochs.update(dict.fromkeys(gpu_indices, epoch))
            write_atomically(self._path, json.dumps({str(gpu): seen for gpu, seen in self._epochs.items()}))


def _read(path: Path) -> dict[int, int]:
    try:
        return {int(gpu): int(epoch) for gpu, epoch in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as failure:
        log.warning("epochs of %s are unreadable (%s); starting from none", path, failure)
        return {}
