#include <chrono>
#include <optional>
#include <utility>

#include "bindings_gpu.hpp"
#include "wait_interruptibly.hpp"

namespace firstlight::bindings {
namespace {

using std::chrono::nanoseconds;

// Joining a job's threads may take a copy's time; the interpreter must not stand still for it.
struct PyGpuCopyJob {
    std::unique_ptr<GpuCopyJob> job;
    explicit PyGpuCopyJob(std::unique_ptr<GpuCopyJob> started) : job(std::move(started)) {}
    ~PyGpuCopyJob() {
        nb::gil_scoped_release release;
        job.reset();
    }
};

bool wait_done(const PyGpuCopyJob& self, std::optional<double> timeout_s) {
    return wait_interruptibly(
        timeout_s, [&](nanoseconds slice) { return self.job->wait_for(slice); }, [] { return false; });
}

GpuCopyReport result_of(const PyGpuCopyJob& self, std::optional<double> timeout_s) {
    if (!wait_done(self, timeout_s)) {
        PyErr_SetString(PyExc_TimeoutError, "the copy has not ended");
        throw nb::python_error();
    }
    return without_gil([&] { return self.job->result(); });
}

std::shared_ptr<Mapping> memory_of(nb::handle source) {
    if (nb::isinstance<PyArena>(source)) return nb::cast<PyArena&>(source).get().mapping();
    return nb::cast<PyArenaView&>(source).get();
}

void start(PyGpuCopyJob* self, const PyGpuMemory& target, nb::handle source, std::vector<GpuChunk> chunks,
           const PyProgressBoard& board, const PyProgressBoard* source_board, const PyGpuPinning* pinning,
           unsigned streams, unsigned depth, std::uint64_t piece_bytes, std::uint64_t bounce_bytes) {
    const std::shared_ptr<Mapping> memory = memory_of(source);
    GpuCopyOptions options;
    options.streams = streams;
    options.depth = depth;
    options.piece_bytes = piece_bytes;
    options.bounce_bytes = bounce_bytes;
    const std::shared_ptr<GpuMemory> to = target.get();
    const auto from_board = source_board != nullptr ? source_board->board : nullptr;
    const auto registered = pinning != nullptr ? pinning->get() : nullptr;
    new (self) PyGpuCopyJob(without_gil([&] {
        return GpuCopyJob::start(to, memory, std::move(chunks), from_board, board.board, registered, options);
    }));
}

void bind_values(nb::module_& module) {
    nb::class_<GpuChunk>(module, "GpuChunk", "A range of host memory, where on the GPU it goes, and which chunk it is.")
        .def(
            "__init__",
            [](GpuChunk* self, std::uint64_t source_offset, std::uint64_t device_offset, std::uint64_t length,
               std::uint64_t index, std::uint64_t source_prefix_bytes) {
                new (self) GpuChunk{source_offset, device_offset, length, index, source_prefix_bytes};
            },
            nb::kw_only(), nb::arg("source_offset"), nb::arg("device_offset"), nb::arg("length"), nb::arg("index"),
            nb::arg("source_prefix_bytes") = 0)
        .def_ro("source_offset", &GpuChunk::source_offset)
        .def_ro("device_offset", &GpuChunk::device_offset)
        .def_ro("length", &GpuChunk::length)
        .def_ro("index", &GpuChunk::index, "On the job's progress board.")
        .def_ro("source_prefix_bytes", &GpuChunk::source_prefix_bytes,
                "How far the source's board must be for it to be there.");
    nb::class_<GpuCopyReport>(module, "GpuCopyReport", "What a finished copy did, and by which way.")
        .def_prop_ro("size_bytes", &GpuCopyReport::size_bytes)
        .def_ro("pinned_bytes", &GpuCopyReport::pinned_bytes, "Straight from registered memory.")
        .def_ro("bounced_bytes", &GpuCopyReport::bounced_bytes, "By way of a registered ring.")
        .def_ro("pageable_bytes", &GpuCopyReport::pageable_bytes, "As the driver copies unregistered memory.")
        .def_ro("seconds", &GpuCopyReport::seconds)
        .def_ro("waited_s", &GpuCopyReport::waited_s, "Of those, for bytes that were not in memory yet.");
}

}  // namespace

void bind_gpu_copy_job(nb::module_& module) {
    bind_values(module);
    nb::class_<PyGpuCopyJob>(module, "GpuCopyJob",
                             "Copies chunks from host memory to a GPU, in order, as they become there.\n\n"
                             "It starts when constructed. Deleting it cancels it. `board` gets a mark for each chunk\n"
                             "that is on the GPU, and fails if one cannot be.")
        .def("__init__", &start, nb::arg("target"), nb::arg("source"), nb::arg("chunks"), nb::arg("board"),
             nb::kw_only(), nb::arg("source_board") = nb::none(), nb::arg("pinning") = nb::none(),
             nb::arg("streams") = GpuCopyOptions{}.streams, nb::arg("depth") = GpuCopyOptions{}.depth,
             nb::arg("piece_bytes") = GpuCopyOptions{}.piece_bytes,
             nb::arg("bounce_bytes") = GpuCopyOptions{}.bounce_bytes,
             nb::sig("def __init__(self, target: GpuMemory, source: Arena | ArenaView, chunks: Sequence[GpuChunk], "
                     "board: ProgressBoard, *, source_board: ProgressBoard | None = None, "
                     "pinning: GpuPinning | None = None, streams: int = 2, depth: int = 6, "
                     "piece_bytes: int = 33554432, bounce_bytes: int = 8388608) -> None"),
             "Without `source_board` the bytes are there. At most `depth` copies of `piece_bytes` are in flight.\n"
             "What `pinning` does not cover goes through a registered ring of `depth` times `bounce_bytes`.\n\n"
             "Raises: InvalidInput (a chunk outside of source, target or board), GpuError.")
        .def_prop_ro("bytes_total", [](const PyGpuCopyJob& self) { return self.job->bytes_total(); })
        .def_prop_ro("bytes_done", [](const PyGpuCopyJob& self) { return self.job->bytes_done(); })
        .def_prop_ro("is_done", [](const PyGpuCopyJob& self) { return self.job->is_done(); },
                     "Ended, well or not: source and target are not touched any more.")
        .def_prop_ro("event_fd", [](const PyGpuCopyJob& self) { return self.job->event_fd(); },
                     "Readable once the job has ended. Owned by the job: watch it, neither read nor close it.")
        .def("cancel", [](PyGpuCopyJob& self) { self.job->cancel(); },
             "Stops before the next chunk; wait() tells when it has.")
        .def("wait", &wait_done, nb::arg("timeout_s") = nb::none(),
             "True once the job has ended, False at the timeout.")
        .def("result", &result_of, nb::arg("timeout_s") = nb::none(),
             "Waits, then answers the report or raises what went wrong.\n\n"
             "Raises: GpuError (field `driver_error`), ReadFailed (the source failed), Cancelled; TimeoutError.");
}

}  // namespace firstlight::bindings
