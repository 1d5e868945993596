#include "ring.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "file_descriptor.hpp"

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif

namespace firstlight {

#if defined(IORING_FEAT_RW_CUR_POS) && defined(SYS_io_uring_setup)  // headers of Linux 5.6 or later
namespace {

#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif

constexpr std::uint64_t kLargestBufferBytes = std::uint64_t{1} << 30;  // the kernel's own limit per registered buffer

// A shared mapping of part of the ring. A forked child must not have it: two processes moving one ring's heads
// and tails would lose requests.
class RingMemory {
public:
    RingMemory() = default;
    RingMemory(int fd, std::size_t size_bytes, std::uint64_t offset)
        : data_(::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                       static_cast<off_t>(offset))),
          size_bytes_(size_bytes) {
        if (is_mapped()) (void)::madvise(data_, size_bytes_, MADV_DONTFORK);
    }
    RingMemory(const RingMemory&) = delete;
    RingMemory& operator=(const RingMemory&) = delete;
    ~RingMemory() {
        if (is_mapped()) ::munmap(data_, size_bytes_);
    }
    bool is_mapped() const { return data_ != MAP_FAILED; }
    template <class Value>
    Value* at(std::size_t offset) const {
        return reinterpret_cast<Value*>(static_cast<std::byte*>(data_) + offset);
    }

private:
    void* data_ = MAP_FAILED;
    std::size_t size_bytes_ = 0;
};

int enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags) {
    return static_cast<int>(::syscall(SYS_io_uring_enter, fd, to_submit, min_complete, flags, nullptr, 0));
}

class Ring final : public ReadQueue {
public:
    Ring(FileDescriptor fd, const io_uring_params& params)
        : fd_(std::move(fd)),
          rings_(fd_.get(),
                 std::max<std::size_t>(params.sq_off.array + params.sq_entries * sizeof(std::uint32_t),
                                       params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe)),
                 IORING_OFF_SQ_RING),
          entries_(fd_.get(), params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES),
          params_(params) {}

    ~Ring() override {
        // Closing a ring does not wait for its reads, and their memory may be somebody else's soon.
        while (in_flight_ > 0) {
            wait();
            while (pop()) continue;
        }
    }

    bool is_mapped() const { return rings_.is_mapped() && entries_.is_mapped(); }
    void register_memory(std::span<std::byte> memory);

    void push(const ReadRequest& request) override;
    Status submit() override;
    void wait() override;
    std::optional<ReadCompletion> pop() override;
    unsigned in_flight() const override { return in_flight_; }

private:
    std::atomic_ref<std::uint32_t> word(std::size_t offset) const {
        return std::atomic_ref<std::uint32_t>(*rings_.at<std::uint32_t>(offset));
    }

    FileDescriptor fd_;
    RingMemory rings_;
    RingMemory entries_;
    io_uring_params params_;
    std::span<std::byte> registered_;
    unsigned pushed_ = 0;  // in the ring, not yet given to the kernel
    unsigned in_flight_ = 0;
};

void Ring::register_memory(std::span<std::byte> memory) {
    std::vector<struct iovec> pieces;
    for (std::size_t at = 0; at < memory.size(); at += kLargestBufferBytes)
        pieces.push_back({memory.data() + at, std::min<std::size_t>(kLargestBufferBytes, memory.size() - at)});
    if (::syscall(SYS_io_uring_register, fd_.get(), IORING_REGISTER_BUFFERS, pieces.data(), pieces.size()) == 0)
        registered_ = memory;
}

void Ring::push(const ReadRequest& request) {
    auto tail = word(params_.sq_off.tail);
    const std::uint32_t mask = params_.sq_entries - 1;
    const std::uint32_t slot = tail.load(std::memory_order_relaxed) & mask;
    io_uring_sqe& entry = entries_.at<io_uring_sqe>(0)[slot];
    entry = io_uring_sqe{};
    entry.opcode = IORING_OP_READ;
    entry.fd = request.fd;
    entry.addr = reinterpret_cast<std::uintptr_t>(request.into);
    entry.len = static_cast<std::uint32_t>(request.length);
    entry.off = request.offset;
    entry.user_data = request.tag;
    const std::less_equal<const std::byte*> not_after;
    if (!registered_.empty() && not_after(registered_.data(), request.into) &&
        not_after(request.into + request.length, registered_.data() + registered_.size())) {
        const auto start = static_cast<std::uint64_t>(request.into - registered_.data());
        const std::uint64_t piece = start / kLargestBufferBytes;
        if ((start + request.length - 1) / kLargestBufferBytes == piece) {
            entry.opcode = IORING_OP_READ_FIXED;
            entry.buf_index = static_cast<std::uint16_t>(piece);
        }
    }
    rings_.at<std::uint32_t>(params_.sq_off.array)[slot] = slot;
    tail.store(tail.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    ++pushed_;
}

Status Ring::submit() {
    while (pushed_ > 0) {
        const int taken = enter(fd_.get(), pushed_, 0, 0);
        if (taken < 0 && errno == EINTR) continue;
        // The kernel is short of room for requests: those that come back make some.
        if (taken < 0 && (errno == EAGAIN || errno == EBUSY) && in_flight_ > 0) return Done{};
        if (taken <= 0) {
            pushed_ = 0;
            return system_failure(ErrorCode::read_failed, "io_uring_enter", taken < 0 ? errno : EIO);
        }
        pushed_ -= static_cast<unsigned>(taken);
        in_flight_ += static_cast<unsigned>(taken);
    }
    return Done{};
}

void Ring::wait() {
    const std::uint32_t head = word(params_.cq_off.head).load(std::memory_order_relaxed);
    while (word(params_.cq_off.tail).load(std::memory_order_acquire) == head) {
        if (enter(fd_.get(), 0, 1, IORING_ENTER_GETEVENTS) >= 0 || errno == EINTR) continue;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // never give up: a read is writing to memory
    }
}

std::optional<ReadCompletion> Ring::pop() {
    auto head = word(params_.cq_off.head);
    const std::uint32_t at = head.load(std::memory_order_relaxed);
    if (word(params_.cq_off.tail).load(std::memory_order_acquire) == at) return std::nullopt;
    const io_uring_cqe& entry = rings_.at<io_uring_cqe>(params_.cq_off.cqes)[at & (params_.cq_entries - 1)];
    const ReadCompletion completion{entry.user_data, entry.res};
    head.store(at + 1, std::memory_order_release);
    --in_flight_;
    return completion;
}

Result<std::unique_ptr<Ring>> open(unsigned depth) {
    io_uring_params params{};
    FileDescriptor fd;
    for (const unsigned flags : {IORING_SETUP_CLAMP | IORING_SETUP_COOP_TASKRUN, IORING_SETUP_CLAMP}) {
        params = io_uring_params{};
        params.flags = flags;
        fd = FileDescriptor(static_cast<int>(::syscall(SYS_io_uring_setup, depth, &params)));
        if (fd.is_open() || errno != EINVAL) break;
    }
    if (!fd.is_open()) return system_failure(ErrorCode::read_failed, "io_uring_setup", errno);
    constexpr unsigned kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS;
    if ((params.features & kNeeded) != kNeeded || params.sq_entries < depth)
        return Error{ErrorCode::read_failed, "this kernel's io_uring is too old", 0, "", std::nullopt};
    auto ring = std::make_unique<Ring>(std::move(fd), params);
    if (!ring->is_mapped()) return system_failure(ErrorCode::out_of_memory, "map the ring", errno);
    return ring;
}

}  // namespace

Result<std::unique_ptr<ReadQueue>> open_ring(unsigned depth, std::span<std::byte> registered) {
    Result<std::unique_ptr<Ring>> ring = open(depth);
    if (!ring) return ring.error();
    if (!registered.empty()) ring.value()->register_memory(registered);
    return std::unique_ptr<ReadQueue>(std::move(ring.value()));
}

#else

Result<std::unique_ptr<ReadQueue>> open_ring(unsigned, std::span<std::byte>) {
    return Error{ErrorCode::read_failed, "built without io_uring", ENOSYS, "", std::nullopt};
}

#endif

}  // namespace firstlight
