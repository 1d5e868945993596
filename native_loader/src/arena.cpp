#include "arena.hpp"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <string>
#include <utility>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace firstlight {
namespace {

constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;

// The kernel's new mount calls (Linux 5.2), by number: older C libraries have neither wrappers nor constants.
constexpr unsigned kFsopenCloexec = 1;
constexpr unsigned kFsconfigSetString = 1;
constexpr unsigned kFsconfigCreate = 6;
constexpr unsigned kFsmountCloexec = 1;

Result<FileDescriptor> open_memfd(unsigned flags) {
    FileDescriptor fd(::memfd_create("firstlight-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags));
    if (!fd.is_open()) return system_failure(ErrorCode::out_of_memory, "memfd_create", errno);
    return fd;
}

bool set_option(int context, const char* key, const char* value) {
    return ::syscall(SYS_fsconfig, context, kFsconfigSetString, key, value, 0) == 0;
}

// The mount is never attached to the directory tree: it ends with its last open file, so not even a killed
// process leaves one behind.
Result<FileDescriptor> open_on_huge_tmpfs(std::uint64_t size_bytes) {
    FileDescriptor context(static_cast<int>(::syscall(SYS_fsopen, "tmpfs", kFsopenCloexec)));
    if (!context.is_open()) return system_failure(ErrorCode::out_of_memory, "fsopen tmpfs", errno);
    const std::string limit = std::to_string(size_bytes);
    if (!set_option(context.get(), "huge", "always") || !set_option(context.get(), "size", limit.c_str()) ||
        ::syscall(SYS_fsconfig, context.get(), kFsconfigCreate, nullptr, nullptr, 0) != 0)
        return system_failure(ErrorCode::out_of_memory, "configure tmpfs", errno);
    FileDescriptor mount(static_cast<int>(::syscall(SYS_fsmount, context.get(), kFsmountCloexec, 0)));
    if (!mount.is_open()) return system_failure(ErrorCode::out_of_memory, "fsmount tmpfs", errno);
    FileDescriptor file(::openat(mount.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (!file.is_open()) return system_failure(ErrorCode::out_of_memory, "open on tmpfs", errno);
    return file;
}

Result<FileDescriptor> open_backing(ArenaKind kind, std::uint64_t size_bytes) {
    if (kind == ArenaKind::hugetlb) return open_memfd(MFD_HUGETLB | MFD_HUGE_2MB);
    if (kind == ArenaKind::tmpfs) return open_on_huge_tmpfs(size_bytes);
    return open_memfd(0);
}

}  // namespace

std::string_view name_of(ArenaKind kind) {
    switch (kind) {
        case ArenaKind::automatic: return "auto";
        case ArenaKind::hugetlb: return "hugetlb";
        case ArenaKind::tmpfs: return "tmpfs";
        case ArenaKind::memfd: return "memfd";
        case ArenaKind::anonymous: return "anonymous";
    }
    return "unknown";
}

Result<Arena> Arena::over(FileDescriptor fd, std::uint64_t size_bytes, ArenaKind kind) {
    if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0)
        return system_failure(ErrorCode::out_of_memory, "size the arena", errno);
    // For hugetlb this is where missing pages show: the mapping reserves them or fails.
    Result<Mapping> mapping = Mapping::of_file(fd.get(), size_bytes, Access::read_write);
    if (!mapping) return mapping.error();
    if (kind == ArenaKind::memfd) {
        (void)::madvise(mapping.value().data(), size_bytes, MADV_HUGEPAGE);  // heard where shmem_enabled is "advise"
        mapping.value().prefer_huge_pages();
    }
    // Our own mapping stays writable; nobody can make another one, or cut the file under a reader. A tmpfs
    // file takes no seals: there only the read-only descriptor protects it.
    if (kind != ArenaKind::tmpfs &&
        ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) != 0 &&
        errno != EINVAL)  // kernels before 5.1 know no F_SEAL_FUTURE_WRITE
        return system_failure(ErrorCode::out_of_memory, "seal the arena", errno);
    return Arena(std::move(fd), std::move(mapping.value()), kind);
}

Result<Arena> Arena::create(std::uint64_t size_bytes, ArenaKind kind) {
    if (size_bytes == 0 || size_bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / 2)
        return Error{ErrorCode::invalid_argument, "an arena cannot have " + std::to_string(size_bytes) + " bytes",
                     0, "", std::nullopt};
    const std::uint64_t rounded = (size_bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    if (kind == ArenaKind::anonymous) {
        Result<Mapping> mapping = Mapping::anonymous(rounded);
        if (!mapping) return mapping.error();
        return Arena(FileDescriptor(), std::move(mapping.value()), kind);
    }
    if (kind != ArenaKind::automatic) {
        Result<FileDescriptor> fd = open_backing(kind, rounded);
        if (!fd) return fd.error();
        return over(std::move(fd.value()), rounded, kind);
    }
    for (const ArenaKind candidate : {ArenaKind::hugetlb, ArenaKind::tmpfs}) {
        Result<Arena> arena = create(rounded, candidate);
        if (arena) return arena;
    }
    return create(rounded, ArenaKind::memfd);
}

bool Arena::has_huge_pages() const {
    if (kind_ == ArenaKind::memfd) return can_collapse();
    return kind_ == ArenaKind::hugetlb || kind_ == ArenaKind::tmpfs;
}

Result<FileDescriptor> Arena::read_only_fd() const {
    if (!fd_.is_open())
        return Error{ErrorCode::invalid_argument, "an anonymous arena has no descriptor", 0, "", std::nullopt};
    const std::string self = "/proc/self/fd/" + std::to_string(fd_.get());
    FileDescriptor fd(::open(self.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.is_open()) return system_failure(ErrorCode::read_failed, "reopen the arena for reading", errno);
    return fd;
}

}  // namespace firstlight
