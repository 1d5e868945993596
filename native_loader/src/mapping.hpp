// Sole owner of one memory mapping, and the ways to make its pages resident ahead of need.
#pragma once

#include <cstddef>
#include <cstdint>

#include "result.hpp"

namespace firstlight {

enum class Access { read_only, read_write };

// Makes pages resident on kernels that cannot be asked to (before 5.14). Never changes a byte, not even one
// that a load is writing at the same moment.
void touch_pages(std::byte* data, std::uint64_t length, Access access);

// Whether this kernel makes huge pages of shared memory when asked to outright (Linux 6.1), which it does for anyone
// and also where /sys/kernel/mm/transparent_hugepage/shmem_enabled is "never". Probed once per process.
bool can_collapse();

class Mapping {
public:
    // A shared mapping of the first `size_bytes` of `fd`; the mapping outlives the descriptor. It begins on 2 MiB,
    // without which huge pages would be mapped as small ones.
    static Result<Mapping> of_file(int fd, std::size_t size_bytes, Access access);
    // Private zeroed memory, of transparent huge pages where the machine allows.
    static Result<Mapping> anonymous(std::size_t size_bytes);

    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();

    std::byte* data() const { return data_; }
    std::size_t size_bytes() const { return size_bytes_; }
    Access access() const { return access_; }
    bool contains(std::uint64_t offset, std::uint64_t length) const {
        return offset <= size_bytes_ && length <= size_bytes_ - offset;
    }
    // From now on populate() makes huge pages of the whole 2 MiB in its range first, where can_collapse().
    void prefer_huge_pages() { prefers_huge_pages_ = true; }
    // Makes [offset, offset + length) resident and mapped, on up to `threads` threads.
    Status populate(std::uint64_t offset, std::uint64_t length, unsigned threads) const;

private:
    Mapping(std::byte* data, std::size_t size_bytes, std::size_t mapped_bytes, Access access)
        : data_(data), size_bytes_(size_bytes), mapped_bytes_(mapped_bytes), access_(access) {}

    void collapse(std::uint64_t offset, std::uint64_t length) const;
    Status populate_piece(std::uint64_t offset, std::uint64_t length) const;

    std::byte* data_ = nullptr;
    std::size_t size_bytes_ = 0;
    std::size_t mapped_bytes_ = 0;  // whole huge pages of addresses
    Access access_ = Access::read_only;
    bool prefers_huge_pages_ = false;
};

}  // namespace firstlight
