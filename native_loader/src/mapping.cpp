#include "mapping.hpp"

#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "file_descriptor.hpp"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace firstlight {
namespace {

// Large enough that a page-table walk is amortised, small enough that threads share the work evenly.
constexpr std::uint64_t kPopulatePieceBytes = std::uint64_t{32} << 20;
constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;

std::uintptr_t align_up(std::uintptr_t value) { return (value + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes; }

// The kernel collapses only where there is a page already.
bool collapse_huge_page(std::byte* data) {
    touch_pages(data, 1, Access::read_write);
    return ::madvise(data, kHugePageBytes, MADV_COLLAPSE) == 0;
}

// Reserves whole 2 MiB of addresses, of which there is an aligned part that is large enough, maps the file there and
// gives the rest back. `size_bytes` is rounded up to what is to be unmapped: hugetlb takes no less.
void* map_aligned(int fd, std::size_t& size_bytes, int protection) {
    const std::size_t wanted = size_bytes;
    size_bytes = align_up(size_bytes);
    const std::size_t reserved = size_bytes + kHugePageBytes;
    void* const base = ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return MAP_FAILED;
    const auto begin = reinterpret_cast<std::uintptr_t>(base);
    const std::uintptr_t start = align_up(begin);
    void* const data = ::mmap(reinterpret_cast<void*>(start), wanted, protection, MAP_SHARED | MAP_FIXED, fd, 0);
    if (data == MAP_FAILED) {
        const int system_error = errno;
        ::munmap(base, reserved);
        errno = system_error;
        return MAP_FAILED;
    }
    if (start > begin) ::munmap(base, start - begin);
    ::munmap(reinterpret_cast<void*>(start + size_bytes), begin + kHugePageBytes - start);
    return data;
}

}  // namespace

bool can_collapse() {
    static const bool answer = [] {
        const FileDescriptor fd(::memfd_create("firstlight-probe", MFD_CLOEXEC));
        if (!fd.is_open() || ::ftruncate(fd.get(), static_cast<off_t>(kHugePageBytes)) != 0) return false;
        const Result<Mapping> probe = Mapping::of_file(fd.get(), kHugePageBytes, Access::read_write);
        return probe.ok() && collapse_huge_page(probe.value().data());
    }();
    return answer;
}

void touch_pages(std::byte* data, std::uint64_t length, Access access) {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    for (std::uint64_t at = 0; at < length; at += page) {
        auto* byte = reinterpret_cast<volatile unsigned char*>(data + at);
        if (access == Access::read_only) {
            (void)*byte;
            continue;
        }
        // A plain read and write-back could undo a byte a load puts here in between. This writes a zero over
        // a zero or nothing at all, in one step; a byte that is not zero is proof of a resident page.
        unsigned char expected = 0;
        __atomic_compare_exchange_n(byte, &expected, static_cast<unsigned char>(0), false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED);
    }
}

Result<Mapping> Mapping::of_file(int fd, std::size_t size_bytes, Access access) {
    struct stat info {};
    if (::fstat(fd, &info) != 0) return system_failure(ErrorCode::invalid_argument, "fstat", errno);
    // A mapping past the end of the file would be a SIGBUS in waiting.
    if (size_bytes == 0 || static_cast<std::uint64_t>(info.st_size) < size_bytes)
        return Error{ErrorCode::invalid_argument,
                     "cannot map " + std::to_string(size_bytes) + " bytes of a file of " +
                         std::to_string(info.st_size), 0, "", std::nullopt};
    const int protection = access == Access::read_write ? PROT_READ | PROT_WRITE : PROT_READ;
    std::size_t mapped_bytes = size_bytes;
    void* data = size_bytes < kHugePageBytes ? ::mmap(nullptr, size_bytes, protection, MAP_SHARED, fd, 0)
                                             : map_aligned(fd, mapped_bytes, protection);
    if (data == MAP_FAILED) return system_failure(ErrorCode::out_of_memory, "mmap", errno);
    return Mapping(static_cast<std::byte*>(data), size_bytes, mapped_bytes, access);
}

Result<Mapping> Mapping::anonymous(std::size_t size_bytes) {
    if (size_bytes == 0) return Error{ErrorCode::invalid_argument, "cannot map 0 bytes", 0, "", std::nullopt};
    void* data = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return system_failure(ErrorCode::out_of_memory, "mmap", errno);
    (void)::madvise(data, size_bytes, MADV_HUGEPAGE);  // a wish: small pages serve as well, more slowly
    return Mapping(static_cast<std::byte*>(data), size_bytes, size_bytes, Access::read_write);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      mapped_bytes_(other.mapped_bytes_),
      access_(other.access_),
      prefers_huge_pages_(other.prefers_huge_pages_) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
    std::swap(access_, other.access_);
    std::swap(prefers_huge_pages_, other.prefers_huge_pages_);
    return *this;
}

Mapping::~Mapping() {
    if (data_ != nullptr) ::munmap(data_, mapped_bytes_);
}

void Mapping::collapse(std::uint64_t offset, std::uint64_t length) const {
    const std::uint64_t end = offset + length;
    for (std::uint64_t at = align_up(offset); at + kHugePageBytes <= end; at += kHugePageBytes)
        // Without a free huge page small ones must do; asking for the rest would only search in vain again.
        if (!collapse_huge_page(data_ + at)) return;
}

Status Mapping::populate_piece(std::uint64_t offset, std::uint64_t length) const {
    if (prefers_huge_pages_ && can_collapse()) collapse(offset, length);
    const int advice = access_ == Access::read_write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
    while (::madvise(data_ + offset, length, advice) != 0) {
        if (errno == EINTR || errno == EAGAIN) continue;
        if (errno != EINVAL)
            return system_failure(ErrorCode::out_of_memory, "cannot make memory resident", errno);
        touch_pages(data_ + offset, length, access_);
        break;
    }
    return Done{};
}

Status Mapping::populate(std::uint64_t offset, std::uint64_t length, unsigned threads) const {
    if (!contains(offset, length))
        return Error{ErrorCode::invalid_argument, "range is outside of the mapping", 0, "", std::nullopt};
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const std::uint64_t start = offset / page * page;
    const std::uint64_t end = offset + length;
    const std::uint64_t pieces = (end - start + kPopulatePieceBytes - 1) / kPopulatePieceBytes;
    std::atomic<std::uint64_t> next{0};
    std::mutex mutex;
    std::optional<Error> failure;
    const auto work = [&] {
        for (std::uint64_t piece = next++; piece < pieces; piece = next++) {
            const std::uint64_t at = start + piece * kPopulatePieceBytes;
            const Status status = populate_piece(at, std::min(kPopulatePieceBytes, end - at));
            if (status.ok()) continue;
            next = pieces;
            const std::lock_guard lock(mutex);
            failure = status.error();
        }
    };
    {
        const std::uint64_t extra = std::min<std::uint64_t>(std::max(threads, 1U), pieces);
        std::vector<std::jthread> pool;
        for (std::uint64_t i = 1; i < extra; ++i) pool.emplace_back(work);
        work();
    }
    if (failure) return *failure;
    return Done{};
}

}  // namespace firstlight
