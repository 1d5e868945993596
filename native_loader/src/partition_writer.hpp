// Writes one partition file from front to back, computing its chunk checksums in the same pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "file_descriptor.hpp"
#include "result.hpp"

namespace firstlight {

struct PartitionSummary {
    std::uint64_t size_bytes = 0;
    std::vector<std::uint32_t> chunk_crc32c;
};

class PartitionWriter {
public:
    // Creates `path`, which must not exist. `expected_bytes` are reserved on the disk at once if not 0.
    static Result<PartitionWriter> create(const std::string& path, std::uint64_t chunk_bytes,
                                          std::uint64_t expected_bytes);
    // For a descriptor opened by the caller; `path` only names it in errors.
    static PartitionWriter over(FileDescriptor fd, const std::string& path, std::uint64_t chunk_bytes);

    std::uint64_t position() const { return position_; }
    // After an error every later call answers with the same error.
    Status append(const std::byte* data, std::uint64_t length);
    Status pad_to(std::uint64_t alignment);
    // Pads to 4 KiB, flushes and fsyncs; nothing can be appended after.
    Result<PartitionSummary> finish();

private:
    PartitionWriter(FileDescriptor fd, std::string path, std::uint64_t chunk_bytes);

    void add_to_checksums(const std::byte* data, std::uint64_t length);
    Status write_out(const std::byte* data, std::uint64_t length);
    Status flush();
    Status fail(int system_error);

    FileDescriptor fd_;
    std::string path_;
    std::uint64_t chunk_bytes_;
    std::uint64_t position_ = 0;
    std::uint64_t written_ = 0;
    std::vector<std::byte> staging_;  // small tensors gather here, so that they do not become small writes
    std::uint32_t open_chunk_crc_ = 0;
    std::uint64_t open_chunk_bytes_ = 0;
    std::vector<std::uint32_t> chunk_crc32c_;
    std::optional<Error> error_;
};

}  // namespace firstlight
