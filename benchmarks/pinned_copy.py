"""The yardstick of copies to a GPU: the driver's own pinned memory, one stream, calls as large as it takes.

Spoken to the driver directly, by none of the loader's code, so that it measures the machine.
"""

from __future__ import annotations

import ctypes
import time
from types import TracebackType

from native_loader import GpuMemory

BUFFER_BYTES = 256 << 20


class DriverRefused(RuntimeError):
    """A call of the driver failed."""


class PinnedCopy:
    """A buffer of memory that the driver has allocated and pinned, and a stream. Raises: DriverRefused."""

    def __init__(self, library: str, *, index: int = 0) -> None:
        self._cuda = ctypes.CDLL(library)
        self._device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        self._buffer = ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), index)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    def __enter__(self) -> PinnedCopy:
        self._call("cuCtxPushCurrent_v2", self._context)
        self._call("cuMemHostAlloc", ctypes.byref(self._buffer), ctypes.c_size_t(BUFFER_BYTES), 0)
        self._call("cuStreamCreate", ctypes.byref(self._stream), 1)
        ctypes.memset(self._buffer, 1, BUFFER_BYTES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuMemFreeHost", self._buffer)
        self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def bytes_per_s(self, target: GpuMemory, size_bytes: int) -> float:
        """Of copying so many bytes, over and over into the same memory; twice, the faster."""
        return max(self._once(target, size_bytes) for _ in range(2))

    def _once(self, target: GpuMemory, size_bytes: int) -> float:
        piece = min(BUFFER_BYTES, target.size_bytes)
        began_s = time.perf_counter()
        for at in range(0, size_bytes, piece):
            length = ctypes.c_size_t(min(piece, size_bytes - at))
            pointer = ctypes.c_ulonglong(target.pointer)
            self._call("cuMemcpyHtoDAsync_v2", pointer, self._buffer, length, self._stream)
        self._call("cuStreamSynchronize", self._stream)
        return size_bytes / (time.perf_counter() - began_s)

    # Any ctypes value: each call has arguments of its own.
    def _call(self, name: str, *arguments: object) -> None:
        if (result := getattr(self._cuda, name)(*arguments)) != 0:
            raise DriverRefused(f"{name} answered {result}")
