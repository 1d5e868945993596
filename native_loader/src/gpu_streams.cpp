#include "gpu_streams.hpp"

namespace firstlight {

Result<GpuStreams> GpuStreams::create(std::shared_ptr<const GpuDevice> device, unsigned streams, unsigned depth) {
    GpuStreams made(std::move(device));
    const CurrentGpu current(*made.device_);
    if (!current.status()) return current.status().error();
    const CudaApi& api = made.device_->api();
    for (unsigned index = 0; index < streams; ++index) {
        CudaStream stream = nullptr;
        const CudaResult result = api.stream_create(&stream, kCudaStreamNonBlocking);
        if (const Status got = made.device_->check(result, "cuStreamCreate"); !got) return got.error();
        made.streams_.push_back(stream);
    }
    for (unsigned index = 0; index < depth; ++index) {
        CudaEvent event = nullptr;
        const CudaResult result = api.event_create(&event, kCudaEventBlockingSync | kCudaEventDisableTiming);
        if (const Status got = made.device_->check(result, "cuEventCreate"); !got) return got.error();
        made.events_.push_back(event);
    }
    return Result<GpuStreams>(std::move(made));
}

GpuStreams::~GpuStreams() {
    if (device_ == nullptr) return;
    const CurrentGpu current(*device_);
    for (const CudaEvent event : events_) (void)device_->api().event_destroy(event);
    for (const CudaStream stream : streams_) (void)device_->api().stream_destroy(stream);
}

Status GpuStreams::copy(std::uint64_t number, CudaPointer to, const void* from, std::uint64_t length) const {
    const CudaStream stream = streams_[number % streams_.size()];
    if (const Status got =
            device_->check(device_->api().memcpy_htod_async(to, from, length, stream), "cuMemcpyHtoDAsync");
        !got)
        return got;
    return device_->check(device_->api().event_record(events_[number % events_.size()], stream), "cuEventRecord");
}

Status GpuStreams::wait(std::uint64_t number) const {
    return device_->check(device_->api().event_synchronize(events_[number % events_.size()]), "cuEventSynchronize");
}

void GpuStreams::drain() const {
    for (const CudaStream stream : streams_) (void)device_->api().stream_synchronize(stream);
}

}  // namespace firstlight
