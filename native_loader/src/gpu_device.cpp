#include "gpu_device.hpp"

#include <limits>
#include <string>
#include <utility>

namespace firstlight {
namespace {

constexpr std::uint64_t kGpuBlockBytes = std::uint64_t{2} << 20;

Error bad_request(const std::string& message) {
    return Error{ErrorCode::invalid_argument, message, 0, "", std::nullopt};
}

}  // namespace

Result<std::shared_ptr<const GpuDevice>> GpuDevice::open(std::shared_ptr<const CudaDriver> driver, int index) {
    Result<std::vector<GpuFacts>> all = driver->devices();
    if (!all) return all.error();
    if (index < 0 || static_cast<std::size_t>(index) >= all.value().size())
        return Error{ErrorCode::gpu_unavailable,
                     "there is no GPU " + std::to_string(index) + ": the driver shows " +
                         std::to_string(all.value().size()),
                     0, "", std::nullopt};
    CudaDevice device = 0;
    CudaContext context = nullptr;
    if (const Status got = driver->check(driver->api().device_get(&device, index), "cuDeviceGet"); !got)
        return got.error();
    if (const Status got = driver->check(driver->api().primary_ctx_retain(&context, device),
                                         "cuDevicePrimaryCtxRetain");
        !got)
        return got.error();
    return std::shared_ptr<const GpuDevice>(new GpuDevice(
        std::move(driver), std::move(all.value()[static_cast<std::size_t>(index)]), device, context));
}

GpuDevice::~GpuDevice() { (void)driver_->api().primary_ctx_release(device_); }

Result<std::uint64_t> GpuDevice::free_bytes() const {
    const CurrentGpu current(*this);
    if (!current.status()) return current.status().error();
    std::size_t free = 0;
    std::size_t total = 0;
    if (const Status got = check(api().mem_get_info(&free, &total), "cuMemGetInfo"); !got) return got.error();
    return static_cast<std::uint64_t>(free);
}

CurrentGpu::CurrentGpu(const GpuDevice& device)
    : device_(device), status_(device.check(device.api().ctx_push_current(device.context()), "cuCtxPushCurrent")) {}

CurrentGpu::~CurrentGpu() {
    CudaContext popped = nullptr;
    if (status_.ok()) (void)device_.api().ctx_pop_current(&popped);
}

Result<std::shared_ptr<GpuMemory>> GpuMemory::allocate(std::shared_ptr<const GpuDevice> device,
                                                       std::uint64_t size_bytes) {
    if (size_bytes == 0 || size_bytes > std::numeric_limits<std::uint64_t>::max() - kGpuBlockBytes)
        return bad_request("GPU memory cannot have " + std::to_string(size_bytes) + " bytes");
    const CurrentGpu current(*device);
    if (!current.status()) return current.status().error();
    const std::uint64_t rounded = (size_bytes + kGpuBlockBytes - 1) / kGpuBlockBytes * kGpuBlockBytes;
    CudaPointer pointer = 0;
    if (const Status got = device->check(device->api().mem_alloc(&pointer, rounded), "cuMemAlloc"); !got) {
        Error error = got.error();
        error.message = std::to_string(rounded) + " bytes on " + device->facts().name + ": " + error.message;
        return error;
    }
    return std::shared_ptr<GpuMemory>(new GpuMemory(std::move(device), pointer, size_bytes, true));
}

Result<std::shared_ptr<GpuMemory>> GpuMemory::open(std::shared_ptr<const GpuDevice> device,
                                                   const CudaIpcHandle& handle, std::uint64_t size_bytes) {
    const CurrentGpu current(*device);
    if (!current.status()) return current.status().error();
    CudaPointer pointer = 0;
    if (const Status got = device->check(
            device->api().ipc_open_mem_handle(&pointer, handle, kCudaIpcLazyEnablePeerAccess), "cuIpcOpenMemHandle");
        !got)
        return got.error();
    return std::shared_ptr<GpuMemory>(new GpuMemory(std::move(device), pointer, size_bytes, false));
}

GpuMemory::~GpuMemory() {
    const CurrentGpu current(*device_);
    // A destructor has nobody to answer to; a driver that fails here has failed a copy before.
    (void)(is_own_ ? device_->api().mem_free(pointer_) : device_->api().ipc_close_mem_handle(pointer_));
}

Result<CudaIpcHandle> GpuMemory::handle() const {
    const CurrentGpu current(*device_);
    if (!current.status()) return current.status().error();
    CudaIpcHandle handle{};
    if (const Status got = device_->check(device_->api().ipc_get_mem_handle(&handle, pointer_), "cuIpcGetMemHandle");
        !got)
        return got.error();
    return handle;
}

Status GpuMemory::read(std::uint64_t offset, std::uint64_t length, void* to) const {
    if (!contains(offset, length)) return bad_request("range is outside of the GPU memory");
    const CurrentGpu current(*device_);
    if (!current.status()) return current.status();
    return device_->check(device_->api().memcpy_dtoh(to, pointer_ + offset, length), "cuMemcpyDtoH");
}

}  // namespace firstlight
