#include "source_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "read_plan.hpp"

namespace firstlight {
namespace {

bool is_aligned(std::uint64_t value) { return value % kDirectAlignmentBytes == 0; }

FileDescriptor open_for_reading(const std::string& path, int extra_flags) {
    int fd = -1;
    do fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | extra_flags);
    while (fd < 0 && errno == EINTR);
    return FileDescriptor(fd);
}

Error truncated(const std::string& path, std::uint64_t end) {
    return Error{ErrorCode::file_truncated, path + " ends before byte " + std::to_string(end), 0, path, std::nullopt};
}

}  // namespace

SourceFile::SourceFile(std::string path, FileDescriptor direct, FileDescriptor buffered, PositionalRead read_call)
    : path_(std::move(path)),
      direct_fd_(std::move(direct)),
      buffered_fd_(std::move(buffered)),
      direct_(direct_fd_.is_open()),
      read_call_(read_call) {}

SourceFile::SourceFile(SourceFile&& other) noexcept
    : path_(std::move(other.path_)),
      direct_fd_(std::move(other.direct_fd_)),
      buffered_fd_(std::move(other.buffered_fd_)),
      direct_(other.direct_.load()),
      read_call_(other.read_call_) {}

Result<SourceFile> SourceFile::open(const std::string& path, bool direct, PositionalRead read_call) {
    // Always opened too: it serves unaligned tails, and takes over if the device refuses direct reads later.
    FileDescriptor buffered = open_for_reading(path, 0);
    if (!buffered.is_open())
        return system_failure(errno == ENOENT ? ErrorCode::file_missing : ErrorCode::read_failed,
                              "cannot open " + path, errno, path);
    FileDescriptor direct_fd;
    if (direct) {
        direct_fd = open_for_reading(path, O_DIRECT);
        if (!direct_fd.is_open() && errno != EINVAL)
            return system_failure(ErrorCode::read_failed, "cannot open " + path, errno, path);
    }
    return SourceFile(path, std::move(direct_fd), std::move(buffered), read_call);
}

Status SourceFile::read_through(int fd, std::byte* into, std::uint64_t length, std::uint64_t offset,
                                bool is_direct) {
    while (length > 0) {
        const ssize_t got = read_call_(fd, into, length, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EINVAL && is_direct) {
            direct_.store(false, std::memory_order_relaxed);
            return read_through(buffered_fd_.get(), into, length, offset, false);
        }
        if (got < 0) return system_failure(ErrorCode::read_failed, "cannot read " + path_, errno, path_);
        if (got == 0) return truncated(path_, offset + length);
        const auto step = static_cast<std::uint64_t>(got);
        into += step;
        offset += step;
        length -= step;
        // A short direct read that ends off the alignment cannot be continued directly.
        if (is_direct && length > 0 && !is_aligned(offset))
            return read_through(buffered_fd_.get(), into, length, offset, false);
    }
    return Done{};
}

Status SourceFile::read(std::byte* into, std::uint64_t length, std::uint64_t offset) {
    const bool can_be_direct = is_direct() && is_aligned(offset) && is_aligned(reinterpret_cast<std::uintptr_t>(into));
    const std::uint64_t direct_length = can_be_direct ? length / kDirectAlignmentBytes * kDirectAlignmentBytes : 0;
    if (direct_length > 0) {
        Status status = read_through(direct_fd_.get(), into, direct_length, offset, true);
        if (!status.ok()) return status;
    }
    return read_through(buffered_fd_.get(), into + direct_length, length - direct_length, offset + direct_length,
                        false);
}

}  // namespace firstlight
