// Waiting for the core from Python: without the GIL, yet Ctrl-C and other signals' handlers run.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>

#include "bindings.hpp"

namespace firstlight::bindings {

// Calls `wait(slice)` until it is true, the time is up, `is_over()`, or a signal's handler raises.
template <class Wait, class IsOver>
bool wait_interruptibly(std::optional<double> timeout_s, Wait wait, IsOver is_over) {
    using std::chrono::nanoseconds;
    using std::chrono::steady_clock;
    constexpr nanoseconds kSlice = std::chrono::milliseconds(100);
    constexpr double kForeverSeconds = 1e9;
    const auto deadline = steady_clock::now() + std::chrono::duration_cast<steady_clock::duration>(
        std::chrono::duration<double>(std::clamp(timeout_s.value_or(kForeverSeconds), 0.0, kForeverSeconds)));
    while (true) {
        const nanoseconds left = std::max(nanoseconds(0), nanoseconds(deadline - steady_clock::now()));
        bool is_there = false;
        {
            nb::gil_scoped_release release;
            is_there = wait(std::min(left, kSlice));
        }
        if (is_there || left == nanoseconds(0) || is_over()) return is_there;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }
}

}  // namespace firstlight::bindings
