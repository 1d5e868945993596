// Compiled only where a CUDA toolkit is installed: our declarations against NVIDIA's, call by call.
#include <cuda.h>

#include <cstddef>
#include <tuple>
#include <type_traits>

#include "cuda_api.hpp"

using namespace firstlight;

// Passed the same way: two pointers, or two plain values of one size. What is pointed to is compared by size too.
template <class Ours, class Theirs>
constexpr bool same_argument() {
    if constexpr (std::is_pointer_v<Ours> != std::is_pointer_v<Theirs>) return false;
    else if constexpr (!std::is_pointer_v<Ours>)
        return sizeof(Ours) == sizeof(Theirs) && alignof(Ours) == alignof(Theirs) &&
               std::is_class_v<Ours> == std::is_class_v<Theirs>;
    else {
        using A = std::remove_pointer_t<Ours>;
        using B = std::remove_pointer_t<Theirs>;
        if constexpr (std::is_void_v<A> || std::is_void_v<B>) return std::is_void_v<A> && std::is_void_v<B>;
        // A handle: both are incomplete.
        else if constexpr (requires { sizeof(A); } && requires { sizeof(B); }) return sizeof(A) == sizeof(B);
        else return !requires { sizeof(A); } && !requires { sizeof(B); };
    }
}

template <class Ours, class Theirs>
struct SameCall : std::false_type {};
template <class OursResult, class... Ours, class TheirsResult, class... Theirs>
struct SameCall<OursResult (*)(Ours...), TheirsResult (*)(Theirs...)>
    : std::bool_constant<sizeof...(Ours) == sizeof...(Theirs) && sizeof(OursResult) == sizeof(TheirsResult)> {
    static constexpr bool arguments = [] {
        if constexpr (sizeof...(Ours) != sizeof...(Theirs)) return false;
        else return (same_argument<Ours, Theirs>() && ...);
    }();
};

// `member` of CudaApi against what cuda.h declares under the name it maps `call` to.
#define HOLDS(member, call)                                                      \
    static_assert(SameCall<decltype(CudaApi::member), decltype(&call)>::value);   \
    static_assert(SameCall<decltype(CudaApi::member), decltype(&call)>::arguments)

HOLDS(init, cuInit);
HOLDS(driver_get_version, cuDriverGetVersion);
HOLDS(get_error_name, cuGetErrorName);
HOLDS(get_error_string, cuGetErrorString);
HOLDS(device_get_count, cuDeviceGetCount);
HOLDS(device_get, cuDeviceGet);
HOLDS(device_get_name, cuDeviceGetName);
HOLDS(device_get_uuid, cuDeviceGetUuid);
HOLDS(device_total_mem, cuDeviceTotalMem);
HOLDS(primary_ctx_retain, cuDevicePrimaryCtxRetain);
HOLDS(primary_ctx_release, cuDevicePrimaryCtxRelease);
HOLDS(ctx_push_current, cuCtxPushCurrent);
HOLDS(ctx_pop_current, cuCtxPopCurrent);
HOLDS(mem_get_info, cuMemGetInfo);
HOLDS(mem_alloc, cuMemAlloc);
HOLDS(mem_free, cuMemFree);
HOLDS(mem_host_register, cuMemHostRegister);
HOLDS(mem_host_unregister, cuMemHostUnregister);
HOLDS(memcpy_htod_async, cuMemcpyHtoDAsync);
HOLDS(memcpy_dtoh, cuMemcpyDtoH);
HOLDS(stream_create, cuStreamCreate);
HOLDS(stream_synchronize, cuStreamSynchronize);
HOLDS(stream_destroy, cuStreamDestroy);
HOLDS(event_create, cuEventCreate);
HOLDS(event_record, cuEventRecord);
HOLDS(event_synchronize, cuEventSynchronize);
HOLDS(event_destroy, cuEventDestroy);
HOLDS(ipc_get_mem_handle, cuIpcGetMemHandle);
HOLDS(ipc_open_mem_handle, cuIpcOpenMemHandle);
HOLDS(ipc_close_mem_handle, cuIpcCloseMemHandle);

#define SAME_NUMBER(ours, theirs) static_assert(static_cast<long>(ours) == static_cast<long>(theirs))
SAME_NUMBER(CudaResult::success, CUDA_SUCCESS);
SAME_NUMBER(CudaResult::invalid_value, CUDA_ERROR_INVALID_VALUE);
SAME_NUMBER(CudaResult::out_of_memory, CUDA_ERROR_OUT_OF_MEMORY);
SAME_NUMBER(CudaResult::not_initialized, CUDA_ERROR_NOT_INITIALIZED);
SAME_NUMBER(CudaResult::no_device, CUDA_ERROR_NO_DEVICE);
SAME_NUMBER(CudaResult::invalid_device, CUDA_ERROR_INVALID_DEVICE);
SAME_NUMBER(CudaResult::invalid_context, CUDA_ERROR_INVALID_CONTEXT);
SAME_NUMBER(CudaResult::not_ready, CUDA_ERROR_NOT_READY);
SAME_NUMBER(kCudaHostRegisterPortable, CU_MEMHOSTREGISTER_PORTABLE);
SAME_NUMBER(kCudaStreamNonBlocking, CU_STREAM_NON_BLOCKING);
SAME_NUMBER(kCudaEventBlockingSync, CU_EVENT_BLOCKING_SYNC);
SAME_NUMBER(kCudaEventDisableTiming, CU_EVENT_DISABLE_TIMING);
SAME_NUMBER(kCudaIpcLazyEnablePeerAccess, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
