"""
C++ core of native_loader: memory as descriptors, direct reads with checksums, partition files.

Every call releases the GIL while it reads, writes, waits or copies, and raises firstlight.domain.errors.
"""

from collections.abc import Sequence

def crc32c(data: bytes | bytearray | memoryview, seed: int = 0) -> int:
    """CRC32C of `data` appended to what `seed` is the checksum of."""

def crc32c_implementation() -> str:
    """What crc32c runs on here: 'sse4.2', 'armv8-crc' or 'software'."""

class Arena:
    """
    Memory as a file descriptor that outlives its readers.

    Closing it leaves running loads, exported memoryviews and other processes' mappings valid.
    """

    def __init__(self, size_bytes: int, kind: str = "auto") -> None:
        """
        `size_bytes` is rounded up to 2 MiB; `kind` is auto, hugetlb, tmpfs, memfd or anonymous.

        Raises: PoolFull if the machine does not grant it, InvalidInput.
        """

    @property
    def kind(self) -> str:
        """What the machine granted: hugetlb, tmpfs, memfd or anonymous."""

    @property
    def has_huge_pages(self) -> bool:
        """Whether readers map it 2 MiB at a time, once it is prefaulted."""

    @property
    def size_bytes(self) -> int: ...
    def read_only_fd(self) -> int:
        """
        A new descriptor, the caller's to close, through which the memory can only be read.
        """

    def prefault(self, threads: int = 1) -> None:
        """
        Makes every page resident. Raises: PoolFull if the machine has too few.
        """

    def buffer(self, offset: int = 0, length: int | None = None) -> memoryview:
        """Writable bytes of the arena, not copied; they keep the mapping alive."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copies `data` in, without the GIL."""

    def close(self) -> None:
        """Idempotent."""

    def __enter__(self) -> Arena: ...
    def __exit__(self, *exception: object) -> None: ...

class ArenaView:
    """
    A read-only mapping of another process's arena. Closing it leaves exported memoryviews valid.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        """
        Maps the first `size_bytes` of `fd`, which stays the caller's to close.
        """

    @property
    def size_bytes(self) -> int: ...
    def populate(self, offset: int = 0, length: int | None = None, threads: int = 1) -> None:
        """Maps the pages ahead of need, so that first use takes no fault."""

    def buffer(self, offset: int = 0, length: int | None = None) -> memoryview:
        """Read-only bytes of the arena, not copied; they keep the mapping alive."""

    def close(self) -> None:
        """Idempotent."""

    def __enter__(self) -> ArenaView: ...
    def __exit__(self, *exception: object) -> None: ...

class ProgressBoard:
    """
    Which chunks of an ordered list are there, in a small memory that other processes can watch.

    Its creator alone marks chunks. If the creator is killed nobody fails the board: watch for that death.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        """`lengths` are the chunks' bytes, in their order."""

    @staticmethod
    def attach(fd: int) -> ProgressBoard:
        """
        A watcher's read-only view; `fd` stays the caller's to close. Raises: InvalidInput.
        """

    def read_only_fd(self) -> int:
        """
        A new descriptor, the caller's to close, for another process's attach().
        """

    @property
    def chunks(self) -> int: ...
    @property
    def bytes_total(self) -> int: ...
    @property
    def bytes_done(self) -> int: ...
    @property
    def prefix_bytes(self) -> int:
        """Done without a hole, counted along the list."""

    @property
    def is_ended(self) -> bool:
        """All done, or failed."""

    @property
    def has_failed(self) -> bool: ...
    def is_chunk_done(self, index: int) -> bool: ...
    def mark_done(self, index: int) -> None:
        """
        The chunk's bytes are in memory and verified. Idempotent, from any thread.

        Raises: InvalidInput for a watcher, or an index outside of the list.
        """

    def fail(self) -> None:
        """
        Nothing more will come: wakes every waiter. No effect once all is done.
        """

    def wait_prefix(self, size_bytes: int, timeout_s: float | None = None) -> bool:
        """
        True once the first `size_bytes` are there; False at the timeout, or if they will not come.
        """

    def wait_chunk(self, index: int, timeout_s: float | None = None) -> bool:
        """
        True once that chunk is there; False at the timeout, or if it will not come.
        """

class Segment:
    """A range of a file and where in the arena it goes."""

    def __init__(
        self, *, path: str, file_offset: int, length: int, arena_offset: int, crc32c: int | None = None
    ) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def file_offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def arena_offset(self) -> int: ...
    @property
    def crc32c(self) -> int | None: ...

class LoadReport:
    """What a finished load did."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def cpu_seconds(self) -> float:
        """Of the job's own threads, checksums included."""

    @property
    def checksum_seconds(self) -> float:
        """CPU seconds, too."""

    @property
    def io_mode(self) -> str:
        """'direct', 'buffered', or 'mixed'."""

    @property
    def backend(self) -> str:
        """'io_uring', 'threads', or 'mixed' when a ring broke on the way."""

    @property
    def read_again(self) -> list[int]:
        """Indices of the segments that failed once and passed when read again."""

class LoadJob:
    """
    Reads segments into an arena on threads of its own; the first begin first.

    It starts when constructed. Deleting it cancels it.
    """

    def __init__(
        self,
        arena: Arena,
        segments: Sequence[Segment],
        *,
        threads: int | None = None,
        direct: bool = True,
        populate: bool = False,
        board: ProgressBoard | None = None,
        backend: str = "auto",
        queue_depth: int = 16,
        block_bytes: int = 4194304,
        registered: bool = False,
        verify: bool = True,
    ) -> None:
        """
        `populate` makes memory resident ahead of the reads, for an arena that was not prefaulted.
        `threads` None suits the machine; more are of use where one core cannot sum what the device delivers.
        `backend` is auto, io_uring or threads: auto is io_uring where the kernel has it and files are read
        directly. `queue_depth` blocks of `block_bytes` (a multiple of 4096) are asked for at a time;
        `registered` has the kernel keep the arena's pages at hand; `verify` False skips the checksums.
        `board` has one chunk per segment: marked as each is there and verified, failed if the load fails.

        Raises: CheckpointMissing, ReadFailed, InvalidInput (a segment outside of the arena, another board).
        """

    @property
    def bytes_total(self) -> int: ...
    @property
    def bytes_done(self) -> int:
        """Verified bytes, in whole segments."""

    @property
    def prefix_bytes(self) -> int:
        """Verified bytes without a hole, counted along the list of segments."""

    @property
    def first_read_at_unix_s(self) -> float | None:
        """When its first read went to the kernel (Unix time); None before."""

    @property
    def is_done(self) -> bool:
        """Ended, well or not."""

    @property
    def io_mode(self) -> str:
        """'direct', 'buffered' where O_DIRECT was refused, or 'mixed'."""

    @property
    def backend(self) -> str:
        """'io_uring', 'threads', or 'mixed' when a ring broke on the way."""

    @property
    def event_fd(self) -> int:
        """
        Readable once the job has ended. Owned by the job: watch it, neither read nor close it.
        """

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once the job has ended, False at the timeout."""

    def wait_prefix(self, size_bytes: int, timeout_s: float | None = None) -> bool:
        """
        True once the first `size_bytes` are there; False at the timeout or if the job ended without them.
        """

    def cancel(self) -> None:
        """Stops before the next read; wait() tells when it has."""

    def pause(self) -> None:
        """
        Leaves the device to others: what is under way is read, nothing else until resume() or cancel().
        """

    def resume(self) -> None:
        """Goes on after pause()."""

    def prioritize(self, first_index: int) -> None:
        """
        Segments from this one on are read next, those before it after them. What is under way goes on.
        """

    def result(self, timeout_s: float | None = None) -> LoadReport:
        """
        Waits, then answers the report or raises what went wrong.

        Raises: ChecksumMismatch (a segment failed twice; field `chunk` is its index),
        ManifestInvalid(rule='out_of_file') for a file cut short, ReadFailed, PoolFull, Cancelled;
        TimeoutError if it has not ended in time.
        """

class PartitionSummary:
    """Size and chunk checksums of a finished partition."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def chunk_crc32c(self) -> list[int]: ...

class PartitionWriter:
    """
    Writes one partition file front to back with its checksums. One thread at a time.
    """

    def __init__(self, path: str, *, chunk_bytes: int, expected_bytes: int = 0) -> None:
        """
        `path` must not exist. Reserves `expected_bytes` on the disk.

        Raises: DiskFull, StorageError.
        """

    @property
    def position(self) -> int: ...
    def append(self, data: bytes | bytearray | memoryview) -> None:
        """
        Raises: DiskFull, StorageError; after either, every later call raises it again.
        """

    def pad_to(self, alignment: int) -> None:
        """Appends zeros up to the next multiple of `alignment`, at most 4096."""

    def finish(self) -> PartitionSummary:
        """Pads to 4 KiB and fsyncs."""

class GpuFacts:
    """One GPU, as the driver describes it."""

    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def uuid(self) -> str:
        """
        32 hexadecimal digits; the same in every process, whatever CUDA_VISIBLE_DEVICES hides.
        """

    @property
    def memory_bytes(self) -> int: ...

class CudaDriver:
    """
    The CUDA driver of this machine, found when it is asked for.

    After this a process may fork only to exec.
    """

    def __init__(self, library: str = "libcuda.so.1") -> None:
        """`library` is another only in tests. Raises: GpuUnavailable."""

    @property
    def version(self) -> int:
        """Of the driver's interface: 13000 is CUDA 13.0."""

    def gpus(self) -> list[GpuFacts]:
        """
        Every GPU this process may use; takes no memory on any. Raises: GpuError.
        """

    def open(self, index: int) -> GpuDevice:
        """
        Begin to use a GPU: some hundred MB of it go to this process.

        Raises: GpuUnavailable, GpuError.
        """

class GpuDevice:
    """One GPU in use; its context is the one torch shares."""

    @property
    def facts(self) -> GpuFacts: ...
    @property
    def free_bytes(self) -> int: ...
    def allocate(self, size_bytes: int) -> GpuMemory:
        """
        Memory of its own, in blocks of 2 MiB. Raises: GpuMemoryFull, GpuError.
        """

    def open_memory(self, handle: bytes, size_bytes: int) -> GpuMemory:
        """
        Another process's memory by its handle; it must not free it before this is closed.

        Raises: GpuError, InvalidInput.
        """

class GpuMemory:
    """
    Memory on a GPU, this process's or another's.

    Closing it leaves running copies valid; what was made from `pointer` is not.
    """

    @property
    def pointer(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def device_index(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """
        Bytes in a row, for torch.as_tensor and others, which keep this object alive.
        """

    def handle(self) -> bytes:
        """What another process opens it by. Raises: GpuError."""

    def read(self, offset: int, length: int) -> bytes:
        """A copy of its bytes, for checks. Raises: InvalidInput, GpuError."""

    def close(self) -> None:
        """Idempotent."""

class GpuPinning:
    """
    Registers an arena with the driver, for copies at the bus's rate.

    It works in the background. Closing it takes the registration back.
    """

    def __init__(self, device: GpuDevice, arena: Arena, *, piece_bytes: int = 68719476736) -> None: ...
    @property
    def pinned_bytes(self) -> int: ...
    def wait(self, timeout_s: float | None = None) -> bool:
        """True once it has ended, well or not."""

    @property
    def refusal(self) -> str | None:
        """What the driver said when it pinned no more, or None."""

    def close(self) -> None:
        """Idempotent; jobs that copy from it keep it until they end."""

class GpuChunk:
    """
    A range of host memory, where on the GPU it goes, and which chunk it is.
    """

    def __init__(
        self, *, source_offset: int, device_offset: int, length: int, index: int, source_prefix_bytes: int = 0
    ) -> None: ...
    @property
    def source_offset(self) -> int: ...
    @property
    def device_offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def index(self) -> int:
        """On the job's progress board."""

    @property
    def source_prefix_bytes(self) -> int:
        """How far the source's board must be for it to be there."""

class GpuCopyReport:
    """What a finished copy did, and by which way."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def pinned_bytes(self) -> int:
        """Straight from registered memory."""

    @property
    def bounced_bytes(self) -> int:
        """By way of a registered ring."""

    @property
    def pageable_bytes(self) -> int:
        """As the driver copies unregistered memory."""

    @property
    def seconds(self) -> float: ...
    @property
    def waited_s(self) -> float:
        """Of those, for bytes that were not in memory yet."""

class GpuCopyJob:
    """
    Copies chunks from host memory to a GPU, in order, as they become there.

    It starts when constructed. Deleting it cancels it. `board` gets a mark for each chunk
    that is on the GPU, and fails if one cannot be.
    """

    def __init__(
        self,
        target: GpuMemory,
        source: Arena | ArenaView,
        chunks: Sequence[GpuChunk],
        board: ProgressBoard,
        *,
        source_board: ProgressBoard | None = None,
        pinning: GpuPinning | None = None,
        streams: int = 2,
        depth: int = 6,
        piece_bytes: int = 33554432,
        bounce_bytes: int = 8388608,
    ) -> None:
        """
        Without `source_board` the bytes are there. At most `depth` copies of `piece_bytes` are in flight.
        What `pinning` does not cover goes through a registered ring of `depth` times `bounce_bytes`.

        Raises: InvalidInput (a chunk outside of source, target or board), GpuError.
        """

    @property
    def bytes_total(self) -> int: ...
    @property
    def bytes_done(self) -> int: ...
    @property
    def is_done(self) -> bool:
        """Ended, well or not: source and target are not touched any more."""

    @property
    def event_fd(self) -> int:
        """
        Readable once the job has ended. Owned by the job: watch it, neither read nor close it.
        """

    def cancel(self) -> None:
        """Stops before the next chunk; wait() tells when it has."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once the job has ended, False at the timeout."""

    def result(self, timeout_s: float | None = None) -> GpuCopyReport:
        """
        Waits, then answers the report or raises what went wrong.

        Raises: GpuError (field `driver_error`), ReadFailed (the source failed), Cancelled; TimeoutError.
        """

def has_ordered_products() -> bool:
    """Whether this processor has what `multiply_in_order` needs."""

def multiply_in_order(
    rows: int, weights: int, products: int, *, count: int, outputs: int, inputs: int, block: int
) -> None:
    """
    Products of up to three float32 rows (count, inputs) with weights (outputs, inputs), summed in order.

    Addresses of contiguous memory, which the caller holds: wrapping each would cost more than a small
    product. `block` inputs are summed on their own before they are added.

    Raises: InvalidInput.
    """
