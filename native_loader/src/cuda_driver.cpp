#include "cuda_driver.hpp"

#include <dlfcn.h>

#include <array>

namespace firstlight {
namespace {

Error no_driver(const std::string& message) {
    return Error{ErrorCode::gpu_unavailable, message, 0, "", std::nullopt};
}

ErrorCode code_of_cuda(CudaResult result) {
    switch (result) {
        case CudaResult::out_of_memory: return ErrorCode::gpu_out_of_memory;
        case CudaResult::no_device:
        case CudaResult::invalid_device:
        case CudaResult::not_initialized: return ErrorCode::gpu_unavailable;
        default: return ErrorCode::gpu_failed;
    }
}

std::string hexadecimal_uuid(const CudaUuid& uuid) {
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (const unsigned char byte : uuid.bytes) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

// Looks calls up one after another and remembers the first that is missing.
class Resolver {
public:
    explicit Resolver(void* library) : library_(library) {}
    template <class Function>
    void operator()(Function& function, const char* name) {
        function = reinterpret_cast<Function>(::dlsym(library_, name));
        if (function == nullptr && missing_.empty()) missing_ = name;
    }
    const std::string& missing() const { return missing_; }

private:
    void* library_;
    std::string missing_;
};

}  // namespace

Status CudaDriver::resolve(void* library) {
    Resolver find(library);
    // The names are those that cuda.h maps its calls to: an unversioned one would be an ABI of CUDA 3.
    find(api_.init, "cuInit");
    find(api_.driver_get_version, "cuDriverGetVersion");
    find(api_.get_error_name, "cuGetErrorName");
    find(api_.get_error_string, "cuGetErrorString");
    find(api_.device_get_count, "cuDeviceGetCount");
    find(api_.device_get, "cuDeviceGet");
    find(api_.device_get_name, "cuDeviceGetName");
    find(api_.device_get_uuid, "cuDeviceGetUuid_v2");
    find(api_.device_total_mem, "cuDeviceTotalMem_v2");
    find(api_.primary_ctx_retain, "cuDevicePrimaryCtxRetain");
    find(api_.primary_ctx_release, "cuDevicePrimaryCtxRelease_v2");
    find(api_.ctx_push_current, "cuCtxPushCurrent_v2");
    find(api_.ctx_pop_current, "cuCtxPopCurrent_v2");
    find(api_.mem_get_info, "cuMemGetInfo_v2");
    find(api_.mem_alloc, "cuMemAlloc_v2");
    find(api_.mem_free, "cuMemFree_v2");
    find(api_.mem_host_register, "cuMemHostRegister_v2");
    find(api_.mem_host_unregister, "cuMemHostUnregister");
    find(api_.memcpy_htod_async, "cuMemcpyHtoDAsync_v2");
    find(api_.memcpy_dtoh, "cuMemcpyDtoH_v2");
    find(api_.stream_create, "cuStreamCreate");
    find(api_.stream_synchronize, "cuStreamSynchronize");
    find(api_.stream_destroy, "cuStreamDestroy_v2");
    find(api_.event_create, "cuEventCreate");
    find(api_.event_record, "cuEventRecord");
    find(api_.event_synchronize, "cuEventSynchronize");
    find(api_.event_destroy, "cuEventDestroy_v2");
    find(api_.ipc_get_mem_handle, "cuIpcGetMemHandle");
    find(api_.ipc_open_mem_handle, "cuIpcOpenMemHandle_v2");
    find(api_.ipc_close_mem_handle, "cuIpcCloseMemHandle");
    if (!find.missing().empty()) return no_driver("the CUDA driver is too old: it has no " + find.missing());
    return Done{};
}

Result<std::shared_ptr<const CudaDriver>> CudaDriver::open(const std::string& library) {
    // Never closed again: the driver keeps threads and exit handlers of its own.
    void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* why = ::dlerror();
        return no_driver("no CUDA driver on this machine: " + std::string(why != nullptr ? why : library.c_str()));
    }
    std::shared_ptr<CudaDriver> driver(new CudaDriver());
    const Status resolved = driver->resolve(handle);
    if (!resolved) return resolved.error();
    if (const Status started = driver->check(driver->api_.init(0), "cuInit"); !started)
        return no_driver(started.error().message);
    if (const Status asked = driver->check(driver->api_.driver_get_version(&driver->version_), "cuDriverGetVersion");
        !asked)
        return asked.error();
    return std::shared_ptr<const CudaDriver>(std::move(driver));
}

Status CudaDriver::check(CudaResult result, const char* call) const {
    if (result == CudaResult::success) return Done{};
    const char* name = nullptr;
    const char* text = nullptr;
    // Neither is given for a number the driver does not know.
    if (api_.get_error_name(result, &name) != CudaResult::success || name == nullptr) name = "CUDA_ERROR_UNKNOWN";
    if (api_.get_error_string(result, &text) != CudaResult::success || text == nullptr) text = "no description";
    Error error{code_of_cuda(result), std::string(call) + ": " + name + " (" + text + ")", 0, "", std::nullopt};
    error.driver_error = name;
    return error;
}

Result<GpuFacts> CudaDriver::facts(int index) const {
    CudaDevice device = 0;
    std::array<char, 256> name{};
    CudaUuid uuid{};
    std::size_t bytes = 0;
    if (const Status got = check(api_.device_get(&device, index), "cuDeviceGet"); !got) return got.error();
    if (const Status got = check(api_.device_get_name(name.data(), static_cast<int>(name.size()) - 1, device),
                                 "cuDeviceGetName");
        !got)
        return got.error();
    if (const Status got = check(api_.device_get_uuid(&uuid, device), "cuDeviceGetUuid"); !got) return got.error();
    if (const Status got = check(api_.device_total_mem(&bytes, device), "cuDeviceTotalMem"); !got) return got.error();
    return GpuFacts{index, name.data(), hexadecimal_uuid(uuid), bytes};
}

Result<std::vector<GpuFacts>> CudaDriver::devices() const {
    int count = 0;
    if (const Status got = check(api_.device_get_count(&count), "cuDeviceGetCount"); !got) return got.error();
    std::vector<GpuFacts> found;
    for (int index = 0; index < count; ++index) {
        Result<GpuFacts> one = facts(index);
        if (!one) return one.error();
        found.push_back(std::move(one.value()));
    }
    return found;
}

}  // namespace firstlight
