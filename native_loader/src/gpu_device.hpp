// One GPU as this process uses it: its primary context, memory on it, and the owners of what the driver lends.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cuda_driver.hpp"
#include "result.hpp"

namespace firstlight {

// The device's primary context, which every library of the process shares; held as long as this lives.
class GpuDevice {
public:
    // gpu_unavailable when there is no such device.
    static Result<std::shared_ptr<const GpuDevice>> open(std::shared_ptr<const CudaDriver> driver, int index);
    GpuDevice(const GpuDevice&) = delete;
    GpuDevice& operator=(const GpuDevice&) = delete;
    ~GpuDevice();

    const GpuFacts& facts() const { return facts_; }
    const CudaDriver& driver() const { return *driver_; }
    const CudaApi& api() const { return driver_->api(); }
    CudaContext context() const { return context_; }
    Status check(CudaResult result, const char* call) const { return driver_->check(result, call); }
    Result<std::uint64_t> free_bytes() const;

private:
    GpuDevice(std::shared_ptr<const CudaDriver> driver, GpuFacts facts, CudaDevice device, CudaContext context)
        : driver_(std::move(driver)), facts_(std::move(facts)), device_(device), context_(context) {}

    std::shared_ptr<const CudaDriver> driver_;
    GpuFacts facts_;
    CudaDevice device_;
    CudaContext context_;
};

// Makes the device current on this thread for a scope. Pushed, not set: whoever else computes on this thread
// (torch, say) finds the device it left.
class CurrentGpu {
public:
    explicit CurrentGpu(const GpuDevice& device);
    CurrentGpu(const CurrentGpu&) = delete;
    CurrentGpu& operator=(const CurrentGpu&) = delete;
    ~CurrentGpu();
    const Status& status() const { return status_; }

private:
    const GpuDevice& device_;
    Status status_;
};

// Memory on a GPU: our own, or another process's that was opened by its handle.
class GpuMemory {
public:
    // Rounded up to 2 MiB: smaller allocations share a block, and a handle gives away all of its block.
    static Result<std::shared_ptr<GpuMemory>> allocate(std::shared_ptr<const GpuDevice> device,
                                                       std::uint64_t size_bytes);
    // `handle` is of an allocation of at least `size_bytes` in another process; this one's own is refused by the
    // driver. Its owner must not free it before this is gone.
    static Result<std::shared_ptr<GpuMemory>> open(std::shared_ptr<const GpuDevice> device,
                                                   const CudaIpcHandle& handle, std::uint64_t size_bytes);
    GpuMemory(const GpuMemory&) = delete;
    GpuMemory& operator=(const GpuMemory&) = delete;
    ~GpuMemory();

    CudaPointer pointer() const { return pointer_; }
    std::uint64_t size_bytes() const { return size_bytes_; }
    bool contains(std::uint64_t offset, std::uint64_t length) const {
        return offset <= size_bytes_ && length <= size_bytes_ - offset;
    }
    const std::shared_ptr<const GpuDevice>& device() const { return device_; }
    Result<CudaIpcHandle> handle() const;
    // Copies [offset, offset + length) to `to`; for checks, not for speed.
    Status read(std::uint64_t offset, std::uint64_t length, void* to) const;

private:
    GpuMemory(std::shared_ptr<const GpuDevice> device, CudaPointer pointer, std::uint64_t size_bytes, bool is_own)
        : device_(std::move(device)), pointer_(pointer), size_bytes_(size_bytes), is_own_(is_own) {}

    std::shared_ptr<const GpuDevice> device_;
    CudaPointer pointer_;
    std::uint64_t size_bytes_;
    bool is_own_;
};

}  // namespace firstlight
