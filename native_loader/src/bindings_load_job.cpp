#include <atomic>
#include <chrono>
#include <optional>
#include <string>

#include "bindings.hpp"
#include "load_job.hpp"
#include "wait_interruptibly.hpp"

namespace firstlight::bindings {
namespace {

using std::chrono::nanoseconds;

const LoadOptions kDefaults;

// Joining a job's threads may take a read's time; the interpreter must not stand still for it.
struct PyLoadJob {
    std::unique_ptr<LoadJob> job;
    bool wants_direct;
    PyLoadJob(std::unique_ptr<LoadJob> started, bool direct) : job(std::move(started)), wants_direct(direct) {}
    ~PyLoadJob() {
        nb::gil_scoped_release release;
        job.reset();
    }
};

Backend parse_backend(const std::string& name) {
    for (const Backend backend : {Backend::automatic, Backend::io_uring, Backend::threads})
        if (name_of(backend) == name) return backend;
    raise(Error{ErrorCode::invalid_argument, "no backend is called " + name, 0, "", std::nullopt});
}

// Once per process: a slower way to read is the machine's, not the load's.
void warn_once(std::atomic<bool>& has_warned, const std::string& message) {
    if (has_warned.exchange(true)) return;
    nb::module_::import_("logging").attr("getLogger")("native_loader").attr("warning")(nb::str(message.c_str()));
}

void warn_of_slow_reads(const LoadJob& job, bool wants_direct) {
    static std::atomic<bool> has_warned_of_threads{false};
    static std::atomic<bool> has_warned_of_buffers{false};
    if (!job.why_no_ring().empty())
        warn_once(has_warned_of_threads, "no io_uring here, reading with threads instead: " + job.why_no_ring());
    if (wants_direct && job.segments() > 0 && std::string_view(job.io_mode()) != "direct")
        warn_once(has_warned_of_buffers, "reading through the page cache: the file system of " + job.first_buffered() +
                                             " refuses direct reads");
}

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
        .def_ro("cpu_seconds", &LoadReport::cpu_seconds, "Of the job's own threads, checksums included.")
        .def_ro("checksum_seconds", &LoadReport::checksum_seconds, "CPU seconds, too.")
        .def_ro("io_mode", &LoadReport::io_mode, "'direct', 'buffered', or 'mixed'.")
        .def_ro("backend", &LoadReport::backend, "'io_uring', 'threads', or 'mixed' when a ring broke on the way.")
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
            [](PyLoadJob* self, PyArena& arena, std::vector<Segment> segments,
               std::optional<unsigned> threads, bool direct, bool populate, const PyProgressBoard* board,
               const std::string& backend, unsigned queue_depth, std::uint64_t block_bytes, bool registered,
               bool verify) {
                LoadOptions options;
                options.backend = parse_backend(backend);
                options.threads = threads.value_or(0);
                options.queue_depth = queue_depth;
                options.block_bytes = block_bytes;
                options.registered = registered;
                options.verify = verify;
                options.direct = direct;
                options.populate = populate;
                if (board != nullptr) options.board = board->board;
                const std::shared_ptr<Mapping> memory = arena.get().mapping();
                auto job = without_gil([&] { return LoadJob::start(memory, std::move(segments), options); });
                new (self) PyLoadJob(std::move(job), direct);
            },
            nb::arg("arena"), nb::arg("segments"), nb::kw_only(), nb::arg("threads") = nb::none(),
            nb::arg("direct") = true,
            nb::arg("populate") = false, nb::arg("board") = nb::none(),
            nb::arg("backend") = "auto", nb::arg("queue_depth") = kDefaults.queue_depth,
            nb::arg("block_bytes") = kDefaults.block_bytes, nb::arg("registered") = kDefaults.registered,
            nb::arg("verify") = true,
            "`populate` makes memory resident ahead of the reads, for an arena that was not prefaulted.\n"
            "`threads` None suits the machine; more are of use where one core cannot sum what the device delivers.\n"
            "`backend` is auto, io_uring or threads: auto is io_uring where the kernel has it and files are read\n"
            "directly. `queue_depth` blocks of `block_bytes` (a multiple of 4096) are asked for at a time;\n"
            "`registered` has the kernel keep the arena's pages at hand; `verify` False skips the checksums.\n"
            "`board` has one chunk per segment: marked as each is there and verified, failed if the load fails.\n\n"
            "Raises: CheckpointMissing, ReadFailed, InvalidInput (a segment outside of the arena, another board).")
        .def_prop_ro("bytes_total", [](const PyLoadJob& self) { return self.job->bytes_total(); })
        .def_prop_ro("bytes_done", [](const PyLoadJob& self) { return self.job->bytes_done(); },
                     "Verified bytes, in whole segments.")
        .def_prop_ro("prefix_bytes", [](const PyLoadJob& self) { return self.job->prefix_bytes(); },
                     "Verified bytes without a hole, counted along the list of segments.")
        .def_prop_ro("first_read_at_unix_s",
                     [](const PyLoadJob& self) -> std::optional<double> {
                         const std::int64_t at_ns = self.job->first_read_ns();
                         if (at_ns == 0) return std::nullopt;
                         return static_cast<double>(at_ns) * 1e-9;
                     },
                     "When its first read went to the kernel (Unix time); None before.")
        .def_prop_ro("is_done", [](const PyLoadJob& self) { return self.job->is_done(); },
                     "Ended, well or not.")
        .def_prop_ro("io_mode", [](const PyLoadJob& self) { return std::string(self.job->io_mode()); },
                     "'direct', 'buffered' where O_DIRECT was refused, or 'mixed'.")
        .def_prop_ro("backend", [](const PyLoadJob& self) { return std::string(self.job->backend()); },
                     "'io_uring', 'threads', or 'mixed' when a ring broke on the way.")
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
        .def("pause", [](PyLoadJob& self) { self.job->pause(); },
             "Leaves the device to others: what is under way is read, nothing else until resume() or cancel().")
        .def("resume", [](PyLoadJob& self) { self.job->resume(); }, "Goes on after pause().")
        .def(
            "prioritize",
            [](PyLoadJob& self, std::uint64_t first_index) {
                if (first_index >= self.job->segments())
                    raise(Error{ErrorCode::invalid_argument, "the job has no segment " + std::to_string(first_index),
                                0, "", std::nullopt});
                self.job->prioritize(first_index);
            },
            nb::arg("first_index"),
            "Segments from this one on are read next, those before it after them. What is under way goes on.")
        .def(
            "result",
            [](const PyLoadJob& self, std::optional<double> timeout_s) {
                if (!wait_done(self, timeout_s)) {
                    PyErr_SetString(PyExc_TimeoutError, "the load has not ended");
                    throw nb::python_error();
                }
                warn_of_slow_reads(*self.job, self.wants_direct);
                return without_gil([&] { return self.job->result(); });
            },
            nb::arg("timeout_s") = nb::none(),
            "Waits, then answers the report or raises what went wrong.\n\n"
            "Raises: ChecksumMismatch (a segment failed twice; field `chunk` is its index),\n"
            "ManifestInvalid(rule='out_of_file') for a file cut short, ReadFailed, PoolFull, Cancelled;\n"
            "TimeoutError if it has not ended in time.");
}

}  // namespace firstlight::bindings
