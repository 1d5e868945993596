// A file read past the page cache where it can be, through it where it must be.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "file_descriptor.hpp"
#include "result.hpp"

namespace firstlight {

// ::pread, or in tests something that fails like a device.
using PositionalRead = ssize_t (*)(int fd, void* buffer, std::size_t size_bytes, off_t offset);

class SourceFile {
public:
    // Tries O_DIRECT first unless `direct` is false.
    static Result<SourceFile> open(const std::string& path, bool direct, PositionalRead read_call);
    SourceFile(SourceFile&& other) noexcept;

    const std::string& path() const { return path_; }
    // False once the file system has refused a direct read, too.
    bool is_direct() const { return direct_.load(std::memory_order_relaxed); }
    int direct_fd() const { return direct_fd_.get(); }  // only when is_direct()
    // Fills `into` with exactly `length` bytes from `offset`. Callable from many threads.
    Status read(std::byte* into, std::uint64_t length, std::uint64_t offset);

private:
    SourceFile(std::string path, FileDescriptor direct, FileDescriptor buffered, PositionalRead read_call);
    Status read_through(int fd, std::byte* into, std::uint64_t length, std::uint64_t offset, bool is_direct);

    std::string path_;
    FileDescriptor direct_fd_;
    FileDescriptor buffered_fd_;
    std::atomic<bool> direct_;
    PositionalRead read_call_;
};

}  // namespace firstlight
