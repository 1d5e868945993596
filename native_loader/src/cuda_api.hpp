// What we call of the CUDA driver, as it is exported by name. No header of CUDA's is needed to build this; where one
// is installed, a test holds these declarations against it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace firstlight {

// The driver's own numbers, of those that are told apart here. Any other value is a failure too.
enum class CudaResult : int {
    success = 0,
    invalid_value = 1,
    out_of_memory = 2,
    not_initialized = 3,
    no_device = 100,
    invalid_device = 101,
    invalid_context = 201,
    not_ready = 600,
};

using CudaDevice = int;
using CudaPointer = unsigned long long;  // an address on the device (or, unified, of it)
using CudaContext = struct CudaContextTag*;
using CudaStream = struct CudaStreamTag*;
using CudaEvent = struct CudaEventTag*;

struct CudaUuid {
    unsigned char bytes[16];
};

struct CudaIpcHandle {
    unsigned char bytes[64];
};

constexpr unsigned kCudaHostRegisterPortable = 0x1;  // pinned for every context of the process
constexpr unsigned kCudaStreamNonBlocking = 0x1;     // not ordered behind the legacy default stream
constexpr unsigned kCudaEventBlockingSync = 0x1;     // a wait sleeps; it does not spin
constexpr unsigned kCudaEventDisableTiming = 0x2;
constexpr unsigned kCudaIpcLazyEnablePeerAccess = 0x1;

struct CudaApi {
    CudaResult (*init)(unsigned flags);
    CudaResult (*driver_get_version)(int* version);
    CudaResult (*get_error_name)(CudaResult result, const char** name);
    CudaResult (*get_error_string)(CudaResult result, const char** text);
    CudaResult (*device_get_count)(int* count);
    CudaResult (*device_get)(CudaDevice* device, int ordinal);
    CudaResult (*device_get_name)(char* name, int size, CudaDevice device);
    CudaResult (*device_get_uuid)(CudaUuid* uuid, CudaDevice device);
    CudaResult (*device_total_mem)(std::size_t* bytes, CudaDevice device);
    CudaResult (*primary_ctx_retain)(CudaContext* context, CudaDevice device);
    CudaResult (*primary_ctx_release)(CudaDevice device);
    CudaResult (*ctx_push_current)(CudaContext context);
    CudaResult (*ctx_pop_current)(CudaContext* context);
    CudaResult (*mem_get_info)(std::size_t* free, std::size_t* total);
    CudaResult (*mem_alloc)(CudaPointer* pointer, std::size_t bytes);
    CudaResult (*mem_free)(CudaPointer pointer);
    CudaResult (*mem_host_register)(void* address, std::size_t bytes, unsigned flags);
    CudaResult (*mem_host_unregister)(void* address);
    CudaResult (*memcpy_htod_async)(CudaPointer to, const void* from, std::size_t bytes, CudaStream stream);
    CudaResult (*memcpy_dtoh)(void* to, CudaPointer from, std::size_t bytes);
    CudaResult (*stream_create)(CudaStream* stream, unsigned flags);
    CudaResult (*stream_synchronize)(CudaStream stream);
    CudaResult (*stream_destroy)(CudaStream stream);
    CudaResult (*event_create)(CudaEvent* event, unsigned flags);
    CudaResult (*event_record)(CudaEvent event, CudaStream stream);
    CudaResult (*event_synchronize)(CudaEvent event);
    CudaResult (*event_destroy)(CudaEvent event);
    CudaResult (*ipc_get_mem_handle)(CudaIpcHandle* handle, CudaPointer pointer);
    CudaResult (*ipc_open_mem_handle)(CudaPointer* pointer, CudaIpcHandle handle, unsigned flags);
    CudaResult (*ipc_close_mem_handle)(CudaPointer pointer);
};

}  // namespace firstlight
