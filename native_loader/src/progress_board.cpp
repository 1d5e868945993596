#include "progress_board.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <limits>
#include <new>
#include <string>
#include <thread>
#include <utility>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace firstlight {
namespace {

using std::chrono::nanoseconds;
using std::chrono::steady_clock;

constexpr std::uint64_t kMagic = 0x3144524f42544c46;  // "FLTBORD1"
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

enum State : std::uint32_t { running = 0, complete = 1, failed = 2 };

Error invalid(const std::string& message) {
    return Error{ErrorCode::invalid_argument, message, 0, "", std::nullopt};
}

// Sleeps until `word` is no longer `seen`, for at most `timeout`. Without FUTEX_PRIVATE: the waker may be another
// process. A watcher's mapping is read-only, which the kernel accepts for waiting on memory that has a file.
void sleep_while(const std::atomic<std::uint32_t>& word, std::uint32_t seen, nanoseconds timeout) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(timeout);
    const struct timespec limit {seconds.count(), (timeout - seconds).count()};
    const long answer = ::syscall(SYS_futex, &word, FUTEX_WAIT, seen, &limit, nullptr, 0);
    if (answer == 0 || errno == EAGAIN || errno == EINTR || errno == ETIMEDOUT) return;
    // A kernel that refuses (a sandbox's filter, say) must not turn the wait into a busy loop.
    std::this_thread::sleep_for(std::min<nanoseconds>(timeout, std::chrono::milliseconds(1)));
}

}  // namespace

struct ProgressBoard::Header {
    std::uint64_t magic;
    std::uint64_t chunks;
    std::uint64_t bytes_total;
    std::atomic<std::uint64_t> bytes_done;
    std::atomic<std::uint64_t> prefix_bytes;
    std::atomic<std::uint32_t> state;
    std::atomic<std::uint32_t> changes;  // the futex
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free,
              "a lock hidden in this process would mean nothing to the other");

Result<std::shared_ptr<ProgressBoard>> ProgressBoard::create(std::vector<std::uint64_t> lengths) {
    std::uint64_t total = 0;
    for (const std::uint64_t length : lengths) {
        if (length == 0) return invalid("a chunk has no bytes");
        if (length > std::numeric_limits<std::uint64_t>::max() - total) return invalid("the chunks' bytes overflow");
        total += length;
    }
    FileDescriptor fd(::memfd_create("firstlight-progress", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd.is_open()) return system_failure(ErrorCode::out_of_memory, "memfd_create", errno);
    const std::uint64_t size_bytes = sizeof(Header) + lengths.size();
    if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0)
        return system_failure(ErrorCode::out_of_memory, "size the progress board", errno);
    Result<Mapping> mapping = Mapping::of_file(fd.get(), size_bytes, Access::read_write);
    if (!mapping) return mapping.error();
    // Kernels before 5.1 know no F_SEAL_FUTURE_WRITE; there the read-only descriptor alone protects the board.
    if (::fcntl(fd.get(), F_ADD_SEALS, kSeals | F_SEAL_FUTURE_WRITE) != 0 &&
        ::fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0)
        return system_failure(ErrorCode::out_of_memory, "seal the progress board", errno);
    new (mapping.value().data()) Header{kMagic, lengths.size(), total, 0, 0, lengths.empty() ? complete : running, 0};
    std::shared_ptr<ProgressBoard> board(
        new ProgressBoard(std::move(fd), std::move(mapping.value()), std::move(lengths)));
    board->creator_ = ::getpid();
    return board;
}

Result<std::shared_ptr<ProgressBoard>> ProgressBoard::attach(int fd) {
    FileDescriptor own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    struct stat info {};
    if (!own.is_open() || ::fstat(own.get(), &info) != 0)
        return system_failure(ErrorCode::invalid_argument, "attach to a progress board", errno);
    const auto size_bytes = static_cast<std::uint64_t>(info.st_size);
    // A file that could still be cut would be a SIGBUS in waiting.
    const int seals = ::fcntl(own.get(), F_GET_SEALS);
    if (size_bytes < sizeof(Header) || seals < 0 || (seals & F_SEAL_SHRINK) == 0)
        return invalid("the descriptor is not a progress board");
    Result<Mapping> mapping = Mapping::of_file(own.get(), size_bytes, Access::read_only);
    if (!mapping) return mapping.error();
    std::shared_ptr<ProgressBoard> board(new ProgressBoard(std::move(own), std::move(mapping.value()), {}));
    if (board->header().magic != kMagic || board->chunks() != size_bytes - sizeof(Header))
        return invalid("the descriptor is not a progress board");
    return board;
}

Result<FileDescriptor> ProgressBoard::read_only_fd() const {
    const std::string self = "/proc/self/fd/" + std::to_string(fd_.get());
    FileDescriptor fd(::open(self.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.is_open()) return system_failure(ErrorCode::read_failed, "reopen the progress board", errno);
    return fd;
}

ProgressBoard::Header& ProgressBoard::header() const { return *reinterpret_cast<Header*>(mapping_.data()); }

std::uint8_t& ProgressBoard::flag(std::size_t index) const {
    return *reinterpret_cast<std::uint8_t*>(mapping_.data() + sizeof(Header) + index);
}

std::size_t ProgressBoard::chunks() const { return header().chunks; }
std::uint64_t ProgressBoard::bytes_total() const { return header().bytes_total; }
std::uint64_t ProgressBoard::bytes_done() const { return header().bytes_done.load(std::memory_order_acquire); }
std::uint64_t ProgressBoard::prefix_bytes() const { return header().prefix_bytes.load(std::memory_order_acquire); }
bool ProgressBoard::is_ended() const { return header().state.load(std::memory_order_acquire) != running; }
bool ProgressBoard::has_failed() const { return header().state.load(std::memory_order_acquire) == failed; }

bool ProgressBoard::is_chunk_done(std::size_t index) const {
    return index < chunks() && std::atomic_ref(flag(index)).load(std::memory_order_acquire) != 0;
}

Status ProgressBoard::check_writer() const {
    // A forked child shares the memory but not the load: what it clears up must not fail the parent's.
    if (creator_ == ::getpid()) return Done{};
    return invalid("only the creator of a progress board writes to it");
}

Status ProgressBoard::mark_done(std::size_t index) {
    Status status = check_writer();
    if (!status.ok()) return status;
    if (index >= lengths_.size()) return invalid("the progress board has no chunk " + std::to_string(index));
    {
        const std::lock_guard lock(mutex_);
        if (is_chunk_done(index)) return Done{};
        std::atomic_ref(flag(index)).store(1, std::memory_order_release);
        advance_prefix();
        const std::uint64_t done =
            header().bytes_done.fetch_add(lengths_[index], std::memory_order_acq_rel) + lengths_[index];
        std::uint32_t expected = running;
        if (done == bytes_total()) header().state.compare_exchange_strong(expected, complete);
    }
    announce();
    return Done{};
}

void ProgressBoard::advance_prefix() {
    std::uint64_t prefix = prefix_bytes();
    while (prefix_count_ < lengths_.size() && is_chunk_done(prefix_count_)) prefix += lengths_[prefix_count_++];
    header().prefix_bytes.store(prefix, std::memory_order_release);
}

Status ProgressBoard::fail() {
    Status status = check_writer();
    if (!status.ok()) return status;
    std::uint32_t expected = running;
    if (header().state.compare_exchange_strong(expected, failed)) announce();
    return Done{};
}

void ProgressBoard::announce() {
    header().changes.fetch_add(1, std::memory_order_acq_rel);
    ::syscall(SYS_futex, &header().changes, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

template <class IsThere>
bool ProgressBoard::wait_until(IsThere is_there, nanoseconds timeout) const {
    // A hundred days are for ever, and a deadline that cannot overflow.
    const auto deadline = steady_clock::now() + std::min<nanoseconds>(timeout, std::chrono::hours(2400));
    while (true) {
        // Read before the look: a change in between makes the sleep return at once.
        const std::uint32_t seen = header().changes.load(std::memory_order_acquire);
        if (is_there()) return true;
        if (is_ended()) return is_there();  // the last chunk may have come between the two looks
        const nanoseconds left = deadline - steady_clock::now();
        if (left <= nanoseconds(0)) return false;
        sleep_while(header().changes, seen, left);
    }
}

bool ProgressBoard::wait_prefix_for(std::uint64_t size_bytes, nanoseconds timeout) const {
    return wait_until([&] { return prefix_bytes() >= size_bytes; }, timeout);
}

bool ProgressBoard::wait_chunk_for(std::size_t index, nanoseconds timeout) const {
    return wait_until([&] { return is_chunk_done(index); }, timeout);
}

}  // namespace firstlight
