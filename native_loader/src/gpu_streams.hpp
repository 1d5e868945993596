// A ring of copies in flight: streams taken in turn, one event for each copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "gpu_device.hpp"
#include "result.hpp"

namespace firstlight {

class GpuStreams {
public:
    static Result<GpuStreams> create(std::shared_ptr<const GpuDevice> device, unsigned streams, unsigned depth);
    GpuStreams(GpuStreams&&) noexcept = default;
    GpuStreams& operator=(GpuStreams&&) = delete;
    ~GpuStreams();

    // Copy number `number`. The device must be current.
    Status copy(std::uint64_t number, CudaPointer to, const void* from, std::uint64_t length) const;
    // Until copy `number` is on the device; it and the ones before it on its stream.
    Status wait(std::uint64_t number) const;
    // Until nothing moves any more, whatever went wrong before.
    void drain() const;

private:
    explicit GpuStreams(std::shared_ptr<const GpuDevice> device) : device_(std::move(device)) {}

    std::shared_ptr<const GpuDevice> device_;  // null once moved from
    std::vector<CudaStream> streams_;
    std::vector<CudaEvent> events_;
};

}  // namespace firstlight
