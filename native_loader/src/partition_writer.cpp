#include "partition_writer.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "crc32c.hpp"

namespace firstlight {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{1} << 20;
// Linux cuts a single write at 2 GiB less a page; smaller pieces also let the device start early.
constexpr std::uint64_t kWriteBytes = std::uint64_t{16} << 20;
constexpr std::uint64_t kPartitionAlignmentBytes = 4096;

bool is_out_of_space(int system_error) {
    return system_error == ENOSPC || system_error == EDQUOT || system_error == EFBIG;
}

Error write_failure(int system_error, const std::string& path) {
    const ErrorCode code = is_out_of_space(system_error) ? ErrorCode::disk_full : ErrorCode::write_failed;
    return system_failure(code, "cannot write " + path, system_error, path);
}

}  // namespace

PartitionWriter::PartitionWriter(FileDescriptor fd, std::string path, std::uint64_t chunk_bytes)
    : fd_(std::move(fd)), path_(std::move(path)), chunk_bytes_(chunk_bytes) {
    staging_.reserve(kStagingBytes);
}

PartitionWriter PartitionWriter::over(FileDescriptor fd, const std::string& path, std::uint64_t chunk_bytes) {
    return PartitionWriter(std::move(fd), path, chunk_bytes);
}

Result<PartitionWriter> PartitionWriter::create(const std::string& path, std::uint64_t chunk_bytes,
                                                std::uint64_t expected_bytes) {
    if (chunk_bytes == 0 || chunk_bytes % kPartitionAlignmentBytes != 0)
        return Error{ErrorCode::invalid_argument, "chunks must be a multiple of 4096 bytes", 0, path, std::nullopt};
    FileDescriptor fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!fd.is_open()) return write_failure(errno, path);
    if (expected_bytes > 0 &&
        ::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(expected_bytes)) != 0 &&
        is_out_of_space(errno)) {
        const int system_error = errno;
        ::unlink(path.c_str());
        return write_failure(system_error, path);
    }
    return over(std::move(fd), path, chunk_bytes);
}

Status PartitionWriter::fail(int system_error) {
    error_ = write_failure(system_error, path_);
    return *error_;
}

void PartitionWriter::add_to_checksums(const std::byte* data, std::uint64_t length) {
    while (length > 0) {
        const std::uint64_t step = std::min(length, chunk_bytes_ - open_chunk_bytes_);
        open_chunk_crc_ = crc32c(data, step, open_chunk_crc_);
        open_chunk_bytes_ += step;
        data += step;
        length -= step;
        if (open_chunk_bytes_ < chunk_bytes_) return;
        chunk_crc32c_.push_back(std::exchange(open_chunk_crc_, 0));
        open_chunk_bytes_ = 0;
    }
}

Status PartitionWriter::write_out(const std::byte* data, std::uint64_t length) {
    while (length > 0) {
        const ssize_t put = ::write(fd_.get(), data, std::min(length, kWriteBytes));
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return fail(errno);
        if (put == 0) return fail(EIO);
        const auto step = static_cast<std::uint64_t>(put);
        // Only a hint to start writing back now, so that the fsync at the end finds little left to do.
        (void)::sync_file_range(fd_.get(), static_cast<off_t>(written_), put, SYNC_FILE_RANGE_WRITE);
        written_ += step;
        data += step;
        length -= step;
    }
    return Done{};
}

Status PartitionWriter::flush() {
    Status status = write_out(staging_.data(), staging_.size());
    staging_.clear();
    return status;
}

Status PartitionWriter::append(const std::byte* data, std::uint64_t length) {
    if (error_) return *error_;
    if (!fd_.is_open())
        return Error{ErrorCode::invalid_argument, path_ + " is finished", 0, path_, std::nullopt};
    // In pieces, so that each is still in the cache when it is written after being summed.
    while (length > 0) {
        const std::uint64_t step = std::min<std::uint64_t>(length, kStagingBytes);
        add_to_checksums(data, step);
        if (staging_.size() + step > kStagingBytes) {
            Status status = flush();
            if (!status.ok()) return status;
        }
        if (step == kStagingBytes) {
            Status status = write_out(data, step);
            if (!status.ok()) return status;
        } else {
            staging_.insert(staging_.end(), data, data + step);
        }
        position_ += step;
        data += step;
        length -= step;
    }
    return Done{};
}

Status PartitionWriter::pad_to(std::uint64_t alignment) {
    static constexpr std::array<std::byte, 4096> kZeros{};
    if (alignment == 0 || alignment > kZeros.size())
        return Error{ErrorCode::invalid_argument, "alignment must be 1 to 4096", 0, path_, std::nullopt};
    return append(kZeros.data(), (alignment - position_ % alignment) % alignment);
}

Result<PartitionSummary> PartitionWriter::finish() {
    Status status = pad_to(kPartitionAlignmentBytes);
    if (status.ok()) status = flush();
    if (!status.ok()) return status.error();
    if (open_chunk_bytes_ > 0) chunk_crc32c_.push_back(std::exchange(open_chunk_crc_, 0));
    open_chunk_bytes_ = 0;
    if (::fsync(fd_.get()) != 0) return fail(errno).error();
    // Loads read past the page cache; these pages would only push out somebody else's.
    (void)::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
    fd_.reset();
    return PartitionSummary{position_, chunk_crc32c_};
}

}  // namespace firstlight
