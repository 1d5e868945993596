#include <chrono>
#include <optional>
#include <string>

#include "bindings.hpp"
#include "load_job.hpp"
#include "wait_interruptibly.hpp"

namespace firstlight::bindings {
namespace {

using std::chrono::nanoseconds;

// Joining a job's threads may take a read's time; the interpreter must not stand still for it.
struct PyLoadJob {
    std::unique_ptr<LoadJob> job;
    explicit PyLoadJob(std::unique_ptr<LoadJob> started) : job(std::move(started)) {}
    ~PyLoadJob() {
        nb::gil_scoped_release release;
        job.reset();
    }
};

bool wait_done(const PyLoadJob& self, std::optional<double> timeout_s) {
    return wait_interruptibly(
        timeout_s, [&](nanoseconds slice) { return self.job->wait_for(slice); }, [] { return false; });
}

void bind_values(nb::module_& module) {
    nb::class_<Segment>(module, "Segment", "A range of a file and where in the arena it goes.")
        .def(
            "__init__",
            [](Segment* self, std::string path, std::uint64_t file_offset, std::uint64_t length,
               std::uint64_t arena_offset, std::optional<std::uint32_t> crc32c) {
                new (self) Segment{std::move(path), file_offset, length, arena_offset, crc32c};
            },
            nb::kw_only(), nb::arg("path"), nb::arg("file_offset"), nb::arg("length"), nb::arg("arena_offset"),
            nb::arg("crc32c") = nb::none())
        .def_ro("path", &Segment::path)
        .def_ro("file_offset", &Segment::file_offset)
        .def_ro("length", &Segment::length)
        .def_ro("arena_offset", &Segment::arena_offset)
        .def_ro("crc32c", &Segment::crc32c);
    nb::class_<LoadReport>(module, "LoadReport", "What a finished load did.")
        .def_ro("size_bytes", &LoadReport::size_bytes)
        .def_ro("seconds", &LoadReport::seconds)
        .def_ro("io_mode", &LoadReport::io_mode, "'direct', 'buffered', or 'mixed'.")
        .def_ro("read_again", &LoadReport::read_again,
                "Indices of the segments that failed once and passed when read again.");
}

}  // namespace

void bind_load_job(nb::module_& module) {
    bind_values(module);
    nb::class_<PyLoadJob>(module, "LoadJob",
                          "Reads segments into an arena on threads of its own; the first begin first.\n\n"
                          "It starts when constructed. Deleting it cancels it.")
        .def(
            "__init__",
            [](PyLoadJob* self, PyArena& arena, std::vector<Segment> segments, unsigned threads, bool direct,
               bool populate, const PyProgressBoard* board) {
                LoadOptions options;
                options.threads = threads;
                options.direct = direct;
                options.populate = populate;
                if (board != nullptr) options.board = board->board;
                const std::shared_ptr<Mapping> memory = arena.get().mapping();
                new (self) PyLoadJob(
                    without_gil([&] { return LoadJob::start(memory, std::move(segments), options); }));
            },
            nb::arg("arena"), nb::arg("segments"), nb::kw_only(), nb::arg("threads") = 4, nb::arg("direct") = true,
            nb::arg("populate") = false, nb::arg("board") = nb::none(),
            "`populate` makes memory resident just before it is read, for an arena that was not prefaulted.\n"
            "`board` has one chunk per segment: marked as each is there and verified, failed if the load fails.\n\n"
            "Raises: CheckpointMissing, ReadFailed, InvalidInput (a segment outside of the arena, another board).")
        .def_prop_ro("bytes_total", [](const PyLoadJob& self) { return self.job->bytes_total(); })
        .def_prop_ro("bytes_done", [](const PyLoadJob& self) { return self.job->bytes_done(); },
                     "Verified bytes, in whole segments.")
        .def_prop_ro("prefix_bytes", [](const PyLoadJob& self) { return self.job->prefix_bytes(); },
                     "Verified bytes without a hole, counted along the list of segments.")
        .def_prop_ro("is_done", [](const PyLoadJob& self) { return self.job->is_done(); },
                     "Ended, well or not.")
        .def_prop_ro("io_mode", [](const PyLoadJob& self) { return std::string(self.job->io_mode()); },
                     "'direct', 'buffered' where O_DIRECT was refused, or 'mixed'.")
        .def_prop_ro("event_fd", [](const PyLoadJob& self) { return self.job->event_fd(); },
                     "Readable once the job has ended. Owned by the job: watch it, neither read nor close it.")
        .def("wait", &wait_done, nb::arg("timeout_s") = nb::none(),
             "True once the job has ended, False at the timeout.")
        .def(
            "wait_prefix",
            [](const PyLoadJob& self, std::uint64_t size_bytes, std::optional<double> timeout_s) {
                return wait_interruptibly(
                    timeout_s, [&](nanoseconds slice) { return self.job->wait_prefix_for(size_bytes, slice); },
                    [&] { return self.job->is_done(); });
            },
            nb::arg("size_bytes"), nb::arg("timeout_s") = nb::none(),
            "True once the first `size_bytes` are there; False at the timeout or if the job ended without them.")
        .def("cancel", [](PyLoadJob& self) { self.job->cancel(); },
             "Stops before the next read; wait() tells when it has.")
        .def(
            "result",
            [](const PyLoadJob& self, std::optional<double> timeout_s) {
                if (!wait_done(self, timeout_s)) {
                    PyErr_SetString(PyExc_TimeoutError, "the load has not ended");
                    throw nb::python_error();
                }
                return without_gil([&] { return self.job->result(); });
            },
            nb::arg("timeout_s") = nb::none(),
            "Waits, then answers the report or raises what went wrong.\n\n"
            "Raises: ChecksumMismatch (a segment failed twice; field `chunk` is its index),\n"
            "ManifestInvalid(rule='out_of_file') for a file cut short, ReadFailed, PoolFull, Cancelled;\n"
            "TimeoutError if it has not ended in time.");
}

}  // namespace firstlight::bindings
