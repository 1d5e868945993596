// Registers memory with the driver, so that copies to GPUs run at the bus's rate; in the background, piece by piece.
//
//   mapping   |== piece 0 ==|== piece 1 ==|-- piece 2 --|-- piece 3 --|
//             <- registered ------------->  the rest is copied by way of a small registered ring meanwhile
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "gpu_device.hpp"
#include "mapping.hpp"
#include "result.hpp"

namespace firstlight {

class GpuPinning {
public:
    static constexpr std::uint64_t kPieceBytes = std::uint64_t{64} << 30;

    // Begins at once, for every GPU of the process. A piece that is refused ends it; the ones before stay.
    static Result<std::shared_ptr<GpuPinning>> start(std::shared_ptr<const GpuDevice> device,
                                                     std::shared_ptr<Mapping> memory,
                                                     std::uint64_t piece_bytes = kPieceBytes);
    GpuPinning(const GpuPinning&) = delete;
    GpuPinning& operator=(const GpuPinning&) = delete;
    ~GpuPinning();  // waits for the piece under way, then unregisters all

    const std::shared_ptr<Mapping>& memory() const { return memory_; }
    std::uint64_t pinned_bytes() const { return pinned_bytes_.load(std::memory_order_acquire); }
    bool wait_for(std::chrono::nanoseconds timeout) const;  // true once it has ended, well or not
    std::optional<Error> refusal() const;
    // How much of [offset, offset + length) one copy may take: never across two pieces, since the driver refuses
    // a range that is partly registered.
    std::uint64_t within_piece(std::uint64_t offset, std::uint64_t length) const;
    bool is_pinned(std::uint64_t offset, std::uint64_t length) const { return offset + length <= pinned_bytes(); }

private:
    GpuPinning(std::shared_ptr<const GpuDevice> device, std::shared_ptr<Mapping> memory, std::uint64_t piece_bytes)
        : device_(std::move(device)), memory_(std::move(memory)), piece_bytes_(piece_bytes) {}
    void work();
    Status register_all();

    const std::shared_ptr<const GpuDevice> device_;
    const std::shared_ptr<Mapping> memory_;
    const std::uint64_t piece_bytes_;
    std::atomic<std::uint64_t> pinned_bytes_{0};
    std::atomic<bool> stop_{false};
    mutable std::mutex mutex_;  // guards the next three
    mutable std::condition_variable ended_;
    bool is_ended_ = false;
    std::optional<Error> refusal_;
    std::jthread thread_;
};

}  // namespace firstlight
