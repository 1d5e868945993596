#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "bindings.hpp"
#include "progress_board.hpp"
#include "wait_interruptibly.hpp"

namespace firstlight::bindings {
namespace {

using std::chrono::nanoseconds;

void check(const Status& status) {
    if (!status.ok()) raise(status.error());
}

std::size_t checked_index(const PyProgressBoard& self, std::uint64_t index) {
    if (index >= self.board->chunks())
        raise(Error{ErrorCode::invalid_argument, "the progress board has no chunk " + std::to_string(index), 0, "",
                    std::nullopt});
    return index;
}

void bind_waits(nb::class_<PyProgressBoard>& type) {
    type.def(
            "wait_prefix",
            [](const PyProgressBoard& self, std::uint64_t size_bytes, std::optional<double> timeout_s) {
                return wait_interruptibly(
                    timeout_s, [&](nanoseconds slice) { return self.board->wait_prefix_for(size_bytes, slice); },
                    [&] { return self.board->is_ended(); });
            },
            nb::arg("size_bytes"), nb::arg("timeout_s") = nb::none(),
            "True once the first `size_bytes` are there; False at the timeout, or if they will not come.")
        .def(
            "wait_chunk",
            [](const PyProgressBoard& self, std::uint64_t index, std::optional<double> timeout_s) {
                const std::size_t chunk = checked_index(self, index);
                return wait_interruptibly(
                    timeout_s, [&](nanoseconds slice) { return self.board->wait_chunk_for(chunk, slice); },
                    [&] { return self.board->is_ended(); });
            },
            nb::arg("index"), nb::arg("timeout_s") = nb::none(),
            "True once that chunk is there; False at the timeout, or if it will not come.");
}

void bind_marks(nb::class_<PyProgressBoard>& type) {
    type.def(
            "mark_done", [](PyProgressBoard& self, std::uint64_t index) { check(self.board->mark_done(index)); },
            nb::arg("index"),
            "The chunk's bytes are in memory and verified. Idempotent, from any thread.\n\n"
            "Raises: InvalidInput for a watcher, or an index outside of the list.")
        .def("fail", [](PyProgressBoard& self) { check(self.board->fail()); },
             "Nothing more will come: wakes every waiter. No effect once all is done.");
}

}  // namespace

void bind_progress_board(nb::module_& module) {
    auto type = nb::class_<PyProgressBoard>(
        module, "ProgressBoard",
        "Which chunks of an ordered list are there, in a small memory that other processes can watch.\n\n"
        "Its creator alone marks chunks. If the creator is killed nobody fails the board: watch for that death.");
    type.def(
            "__init__",
            [](PyProgressBoard* self, std::vector<std::uint64_t> lengths) {
                Result<std::shared_ptr<ProgressBoard>> board = ProgressBoard::create(std::move(lengths));
                if (!board) raise(board.error());
                new (self) PyProgressBoard{std::move(board.value())};
            },
            nb::arg("lengths"), "`lengths` are the chunks' bytes, in their order.")
        .def_static(
            "attach",
            [](int fd) {
                Result<std::shared_ptr<ProgressBoard>> board = ProgressBoard::attach(fd);
                if (!board) raise(board.error());
                return PyProgressBoard{std::move(board.value())};
            },
            nb::arg("fd"),
            "A watcher's read-only view; `fd` stays the caller's to close. Raises: InvalidInput.")
        .def(
            "read_only_fd",
            [](const PyProgressBoard& self) {
                Result<FileDescriptor> fd = self.board->read_only_fd();
                if (!fd) raise(fd.error());
                return fd.value().release();
            },
            "A new descriptor, the caller's to close, for another process's attach().")
        .def_prop_ro("chunks", [](const PyProgressBoard& self) { return self.board->chunks(); })
        .def_prop_ro("bytes_total", [](const PyProgressBoard& self) { return self.board->bytes_total(); })
        .def_prop_ro("bytes_done", [](const PyProgressBoard& self) { return self.board->bytes_done(); })
        .def_prop_ro("prefix_bytes", [](const PyProgressBoard& self) { return self.board->prefix_bytes(); },
                     "Done without a hole, counted along the list.")
        .def_prop_ro("is_ended", [](const PyProgressBoard& self) { return self.board->is_ended(); },
                     "All done, or failed.")
        .def_prop_ro("has_failed", [](const PyProgressBoard& self) { return self.board->has_failed(); })
        .def(
            "is_chunk_done",
            [](const PyProgressBoard& self, std::uint64_t index) {
                return self.board->is_chunk_done(checked_index(self, index));
            },
            nb::arg("index"));
    bind_marks(type);
    bind_waits(type);
}

}  // namespace firstlight::bindings
