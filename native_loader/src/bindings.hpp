// What the binding files share: errors to exceptions, buffers in, buffers out.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <utility>

#include "arena.hpp"
#include "mapping.hpp"
#include "progress_board.hpp"
#include "result.hpp"

namespace firstlight::bindings {

namespace nb = nanobind;

// Raises the member of firstlight.domain.errors that stands for `error`. Needs the GIL.
[[noreturn]] void raise(const Error& error);

// Runs `call` without the GIL, then answers its value or raises its error.
template <class Call>
auto without_gil(Call&& call) {
    auto result = [&] {
        nb::gil_scoped_release release;
        return call();
    }();
    if (!result.ok()) raise(result.error());
    return std::move(result.value());
}

// A contiguous buffer of the caller's, held for the time of a call.
class InputBuffer {
public:
    explicit InputBuffer(nb::handle object) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
    }
    InputBuffer(const InputBuffer&) = delete;
    InputBuffer& operator=(const InputBuffer&) = delete;
    ~InputBuffer() { PyBuffer_Release(&view_); }
    const std::byte* data() const { return static_cast<const std::byte*>(view_.buf); }
    std::size_t size_bytes() const { return static_cast<std::size_t>(view_.len); }

private:
    Py_buffer view_{};
};

// A memoryview of part of a mapping; it keeps the mapping alive, whatever becomes of its owner.
nb::object memoryview_of(const std::shared_ptr<Mapping>& mapping, std::uint64_t offset,
                         std::optional<std::uint64_t> length, Access access);

// What Python calls an Arena; empty once closed.
struct PyArena {
    std::optional<Arena> arena;
    Arena& get();  // raises InvalidInput once closed
};

// What Python calls a ProgressBoard. Shared with the jobs that mark or watch it.
struct PyProgressBoard {
    std::shared_ptr<ProgressBoard> board;
};

// What Python calls an ArenaView; empty once closed.
struct PyArenaView {
    std::shared_ptr<Mapping> mapping;
    const std::shared_ptr<Mapping>& get() const;  // raises InvalidInput once closed
};

void bind_arena(nb::module_& module);
void bind_gpu(nb::module_& module);
void bind_load_job(nb::module_& module);
void bind_ordered_products(nb::module_& module);
void bind_progress_board(nb::module_& module);
void bind_partition_writer(nb::module_& module);

}  // namespace firstlight::bindings
