// A value or an error. The core never throws: every way a call can fail is an ErrorCode.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace firstlight {

enum class ErrorCode {
    invalid_argument,   // the caller's figures make no sense; nothing was done
    file_missing,       // a file of the checkpoint does not exist
    file_truncated,     // a file ends before the bytes it is said to hold
    checksum_mismatch,  // a chunk's bytes differ, twice
    read_failed,        // the device answered a read with an error
    write_failed,       // the device answered a write with an error
    disk_full,          // no space (or quota) left on the device
    out_of_memory,      // the machine has not the memory that was asked for
    cancelled,          // someone asked for it to stop
    gpu_unavailable,    // no driver, no such device, or one that does not start
    gpu_out_of_memory,  // the GPU has not the memory that was asked for
    gpu_failed,         // the driver answered with any other error
};

struct Error {
    ErrorCode code;
    std::string message;
    int system_error = 0;                // errno of the call that failed, 0 if none did
    std::string path;                    // "" if no file is concerned
    std::optional<std::uint64_t> chunk;  // index of the segment of the job
    std::string driver_error = {};       // the GPU driver's own name of it, "" if no driver is concerned
};

template <class Value>
class [[nodiscard]] Result {
public:
    Result(Value value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

    bool ok() const { return state_.index() == 0; }
    explicit operator bool() const { return ok(); }
    Value& value() { return *std::get_if<0>(&state_); }  // only when ok()
    const Value& value() const { return *std::get_if<0>(&state_); }
    const Error& error() const { return *std::get_if<1>(&state_); }  // only when not ok()

private:
    std::variant<Value, Error> state_;
};

struct Done {};
using Status = Result<Done>;

// `what` and the operating system's words for `system_error`.
Error system_failure(ErrorCode code, const std::string& what, int system_error, const std::string& path = "");

}  // namespace firstlight
