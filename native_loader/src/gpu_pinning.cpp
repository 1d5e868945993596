#include "gpu_pinning.hpp"

#include <algorithm>
#include <utility>

namespace firstlight {
namespace {

constexpr std::uint64_t kPinGranuleBytes = std::uint64_t{2} << 20;

}  // namespace

Result<std::shared_ptr<GpuPinning>> GpuPinning::start(std::shared_ptr<const GpuDevice> device,
                                                      std::shared_ptr<Mapping> memory, std::uint64_t piece_bytes) {
    if (piece_bytes == 0 || piece_bytes % kPinGranuleBytes != 0)
        return Error{ErrorCode::invalid_argument, "memory is pinned in multiples of 2 MiB", 0, "", std::nullopt};
    std::shared_ptr<GpuPinning> pinning(new GpuPinning(std::move(device), std::move(memory), piece_bytes));
    pinning->thread_ = std::jthread([own = pinning.get()] { own->work(); });
    return pinning;
}

void GpuPinning::work() {
    const Status status = register_all();
    const std::lock_guard lock(mutex_);
    if (!status) refusal_ = status.error();
    is_ended_ = true;
    ended_.notify_all();
}

Status GpuPinning::register_all() {
    const CurrentGpu current(*device_);
    if (!current.status()) return current.status();
    for (std::uint64_t at = 0; at < memory_->size_bytes() && !stop_.load();) {
        const std::uint64_t length = within_piece(at, memory_->size_bytes() - at);
        const CudaResult result =
            device_->api().mem_host_register(memory_->data() + at, length, kCudaHostRegisterPortable);
        if (const Status got = device_->check(result, "cuMemHostRegister"); !got) return got;
        at += length;
        pinned_bytes_.store(at, std::memory_order_release);
    }
    return Done{};
}

GpuPinning::~GpuPinning() {
    stop_.store(true);
    if (thread_.joinable()) thread_.join();
    const CurrentGpu current(*device_);
    for (std::uint64_t at = 0; at < pinned_bytes(); at += piece_bytes_)
        (void)device_->api().mem_host_unregister(memory_->data() + at);
}

bool GpuPinning::wait_for(std::chrono::nanoseconds timeout) const {
    std::unique_lock lock(mutex_);
    return ended_.wait_for(lock, timeout, [&] { return is_ended_; });
}

std::optional<Error> GpuPinning::refusal() const {
    const std::lock_guard lock(mutex_);
    return refusal_;
}

std::uint64_t GpuPinning::within_piece(std::uint64_t offset, std::uint64_t length) const {
    return std::min(length, piece_bytes_ - offset % piece_bytes_);
}

}  // namespace firstlight
