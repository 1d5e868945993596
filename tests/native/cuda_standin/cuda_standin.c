/* A stand-in of the CUDA driver's interface: the names libcuda.so.1 exports, over host memory. No GPU is involved.
 *
 * Device memory is a memfd, so that another process can open it by its handle; a stream is a thread with a queue, and
 * sleeps a random while before each copy. It is stricter than the real driver where that finds our mistakes:
 *   - a call without a current context, from a forked child, or before cuInit is refused;
 *   - a copy must lie within one allocation, and its host range be registered whole or not at all;
 *   - what is registered is read when the copy runs, not when it is asked for: reuse it too early and bytes are wrong;
 *   - everything lent is counted (standin_live), so that a test can ask for zero.
 * Failures: standin_fail("cuMemAlloc_v2", after, result, is_sticky), or STANDIN_CUDA_FAIL=call:after:result:sticky.
 * Other settings: STANDIN_CUDA_DEVICES (2), STANDIN_CUDA_MEMORY_MIB (4096), STANDIN_CUDA_DELAY_US (0), _SEED (1).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <fcntl.h>
#include <unistd.h>

#ifdef STANDIN_WITH_CUDA_H
#include <cuda.h> /* the compiler then holds every definition below against NVIDIA's own declaration */
#else
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st* CUcontext;
typedef struct CUstream_st* CUstream;
typedef struct CUevent_st* CUevent;
typedef struct { char bytes[16]; } CUuuid;
typedef struct { char reserved[64]; } CUipcMemHandle;
enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_PERMITTED = 800,
    CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
    CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713,
};
#endif
#define EXPORT __attribute__((visibility("default")))
#define SLOTS 256
#define STACK 16

struct CUctx_st { int device; int references; };
struct allocation { char* data; size_t bytes; int fd; int device; int is_import; int references; uint64_t id; };
struct range { char* data; size_t bytes; };
struct operation { struct operation* next; char* to; char* from; size_t bytes; int owns_from; CUevent event; uint64_t ticket; };
struct CUevent_st { uint64_t asked, reached; };
struct CUstream_st {
    pthread_t thread;
    struct operation* first;
    struct operation* last;
    int is_busy, is_ending;
    unsigned seed;
};
struct handle_content { uint64_t magic; int32_t pid; int32_t fd; uint64_t bytes; uint64_t id; int32_t device; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pid_t started_in;
static struct CUctx_st contexts[SLOTS];
static struct allocation allocations[SLOTS];
static struct range registered[SLOTS];
static size_t used_bytes[SLOTS];
static int loses_copies;
static int live_streams, live_events, sticky, busy_copies, most_busy_copies;
static uint64_t next_id = 1;
static unsigned seeds;
static __thread CUcontext stack[STACK];
static __thread int depth;
static struct { char call[64]; int after, result, is_sticky, is_set; } fault;

static long setting(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text ? atol(text) : otherwise;
}
static int device_count(void) { return (int)setting("STANDIN_CUDA_DEVICES", 2); }
static size_t memory_bytes(void) { return (size_t)setting("STANDIN_CUDA_MEMORY_MIB", 4096) << 20; }

EXPORT void standin_fail(const char* call, int after, int result, int is_sticky) {
    pthread_mutex_lock(&lock);
    snprintf(fault.call, sizeof fault.call, "%s", call);
    fault.after = after, fault.result = result, fault.is_sticky = is_sticky, fault.is_set = call[0] != 0;
    sticky = 0;
    pthread_mutex_unlock(&lock);
}

/* Copies are said to be done, and move nothing. */
EXPORT void standin_lose_copies(int loses) { __atomic_store_n(&loses_copies, loses, __ATOMIC_SEQ_CST); }

static int count_live(void) {
    int found = live_streams + live_events;
    for (int i = 0; i < SLOTS; ++i) found += !!allocations[i].data + !!registered[i].data;
    return found;
}
/* Allocations, imports, registrations, streams and events that have not been given back. */
EXPORT int standin_live(void) {
    pthread_mutex_lock(&lock);
    int found = count_live();
    pthread_mutex_unlock(&lock);
    return found;
}

EXPORT int standin_contexts(void) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < SLOTS; ++i) found += contexts[i].references;
    pthread_mutex_unlock(&lock);
    return found;
}

/* With the lock. What a call answers before it does anything. */
static int refusal(const char* call, int needs_context) {
    if (started_in == 0 || started_in != getpid()) return CUDA_ERROR_NOT_INITIALIZED;
    if (sticky) return sticky;
    if (fault.is_set && strcmp(fault.call, call) == 0 && fault.after-- <= 0) {
        if (fault.is_sticky) sticky = fault.result;
        else fault.is_set = 0;
        return fault.result;
    }
    if (needs_context && (depth == 0 || stack[depth - 1]->references == 0)) return CUDA_ERROR_INVALID_CONTEXT;
    return CUDA_SUCCESS;
}
#define BEGIN(call, needs_context)                        \
    pthread_mutex_lock(&lock);                            \
    CUresult answer = (CUresult)refusal(call, needs_context); \
    if (answer != CUDA_SUCCESS) goto end
#define END                        \
    end:                           \
    pthread_mutex_unlock(&lock);   \
    return answer
#define REFUSE(code)   \
    do {               \
        answer = code; \
        goto end;      \
    } while (0)

EXPORT CUresult cuInit(unsigned flags) {
    pthread_mutex_lock(&lock);
    (void)flags;
    CUresult answer = device_count() > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
    const char* wanted = getenv("STANDIN_CUDA_FAIL");
    if (wanted && started_in == 0) {
        fault.is_set = sscanf(wanted, "%63[^:]:%d:%d:%d", fault.call, &fault.after, &fault.result, &fault.is_sticky) == 4;
    }
    if (started_in != 0 && started_in != getpid()) answer = CUDA_ERROR_NOT_INITIALIZED;
    if (answer == CUDA_SUCCESS) {
        started_in = getpid();
        seeds = (unsigned)setting("STANDIN_CUDA_SEED", 1);
        answer = (CUresult)refusal("cuInit", 0);
    }
    pthread_mutex_unlock(&lock);
    return answer;
}

EXPORT CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

static const struct { int code; const char* name; const char* text; } names[] = {
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "already registered"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
};
static CUresult describe(CUresult code, const char** answer, int wants_name) {
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i)
        if (names[i].code == (int)code) {
            *answer = wants_name ? names[i].name : names[i].text;
            return CUDA_SUCCESS;
        }
    *answer = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}
EXPORT CUresult cuGetErrorName(CUresult code, const char** name) { return describe(code, name, 1); }
EXPORT CUresult cuGetErrorString(CUresult code, const char** text) { return describe(code, text, 0); }

EXPORT CUresult cuDeviceGetCount(int* count) {
    BEGIN("cuDeviceGetCount", 0);
    *count = device_count();
    END;
}
EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    BEGIN("cuDeviceGet", 0);
    if (ordinal < 0 || ordinal >= device_count()) REFUSE(CUDA_ERROR_INVALID_DEVICE);
    *device = ordinal;
    END;
}
EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    BEGIN("cuDeviceGetName", 0);
    snprintf(name, (size_t)length, "Stand-in GPU %d (host memory)", device);
    END;
}
EXPORT CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
    BEGIN("cuDeviceGetUuid_v2", 0);
    memset(uuid, 0xA0 + device, sizeof *uuid);
    END;
}
EXPORT CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    BEGIN("cuDeviceTotalMem_v2", 0);
    (void)device;
    *bytes = memory_bytes();
    END;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    BEGIN("cuDevicePrimaryCtxRetain", 0);
    contexts[device].device = device;
    contexts[device].references++;
    *context = &contexts[device];
    END;
}
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    pthread_mutex_lock(&lock);
    CUresult answer = CUDA_SUCCESS;
    if (contexts[device].references == 0) REFUSE(CUDA_ERROR_INVALID_CONTEXT);
    contexts[device].references--;
    END;
}
EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
    BEGIN("cuCtxPushCurrent_v2", 0);
    if (context == NULL || context->references == 0 || depth == STACK) REFUSE(CUDA_ERROR_INVALID_CONTEXT);
    stack[depth++] = context;
    END;
}
EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* context) {
    if (depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
    *context = stack[--depth];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetInfo_v2(size_t* available, size_t* total) {
    BEGIN("cuMemGetInfo_v2", 1);
    *total = memory_bytes();
    *available = *total - used_bytes[stack[depth - 1]->device];
    END;
}

/* With the lock. */
static struct allocation* new_allocation(void) {
    for (int i = 0; i < SLOTS; ++i)
        if (allocations[i].data == NULL) return &allocations[i];
    abort();
}
static struct allocation* allocation_of(CUdeviceptr pointer, size_t bytes) {
    const char* at = (const char*)(uintptr_t)pointer;
    for (int i = 0; i < SLOTS; ++i)
        if (allocations[i].data && at >= allocations[i].data && bytes <= allocations[i].bytes &&
            at + bytes <= allocations[i].data + allocations[i].bytes)
            return &allocations[i];
    return NULL;
}
static struct allocation* allocation_at(CUdeviceptr pointer) {
    struct allocation* found = allocation_of(pointer, 1);
    return found && found->data == (char*)(uintptr_t)pointer ? found : NULL;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
    BEGIN("cuMemAlloc_v2", 1);
    int device = stack[depth - 1]->device;
    if (bytes == 0) REFUSE(CUDA_ERROR_INVALID_VALUE);
    if (bytes > memory_bytes() - used_bytes[device]) REFUSE(CUDA_ERROR_OUT_OF_MEMORY);
    int fd = memfd_create("standin-gpu", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) REFUSE(CUDA_ERROR_OUT_OF_MEMORY);
    char* data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) REFUSE(CUDA_ERROR_OUT_OF_MEMORY);
    *new_allocation() = (struct allocation){data, bytes, fd, device, 0, 1, next_id++};
    used_bytes[device] += bytes;
    *pointer = (CUdeviceptr)(uintptr_t)data;
    END;
}

/* With the lock: whether a copy to these bytes is queued or running. Freeing under one is the caller's mistake. */
static void forget(struct allocation* gone) {
    munmap(gone->data, gone->bytes);
    if (gone->fd >= 0) close(gone->fd);
    if (!gone->is_import) used_bytes[gone->device] -= gone->bytes;
    memset(gone, 0, sizeof *gone);
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr pointer) {
    pthread_mutex_lock(&lock);
    CUresult answer = CUDA_SUCCESS;
    struct allocation* gone = allocation_at(pointer);
    if (gone == NULL || gone->is_import || depth == 0) REFUSE(CUDA_ERROR_INVALID_VALUE);
    forget(gone);
    END;
}

EXPORT CUresult cuIpcGetMemHandle(CUipcMemHandle* handle, CUdeviceptr pointer) {
    BEGIN("cuIpcGetMemHandle", 1);
    struct allocation* own = allocation_at(pointer);
    if (own == NULL || own->is_import) REFUSE(CUDA_ERROR_INVALID_VALUE);
    struct handle_content content = {0x5354414e44494e00u, getpid(), own->fd, own->bytes, own->id, own->device};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &content, sizeof content);
    END;
}
EXPORT CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* pointer, CUipcMemHandle handle, unsigned flags) {
    BEGIN("cuIpcOpenMemHandle_v2", 1);
    struct handle_content content;
    memcpy(&content, &handle, sizeof content);
    if (content.magic != 0x5354414e44494e00u || flags != 1) REFUSE(CUDA_ERROR_INVALID_VALUE);
    /* As the real one: a process cannot import what it exported. */
    if (content.pid == getpid()) REFUSE(CUDA_ERROR_INVALID_CONTEXT);
    if (content.device != stack[depth - 1]->device) REFUSE(CUDA_ERROR_INVALID_VALUE);
    for (int i = 0; i < SLOTS; ++i)
        if (allocations[i].is_import == content.pid && allocations[i].id == content.id) {
            allocations[i].references++;
            *pointer = (CUdeviceptr)(uintptr_t)allocations[i].data;
            goto end;
        }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", content.pid, content.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) REFUSE(CUDA_ERROR_INVALID_VALUE);
    char* data = mmap(NULL, content.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (data == MAP_FAILED) REFUSE(CUDA_ERROR_INVALID_VALUE);
    *new_allocation() =
        (struct allocation){data, content.bytes, -1, content.device, content.pid, 1, content.id};
    *pointer = (CUdeviceptr)(uintptr_t)data;
    END;
}
EXPORT CUresult cuIpcCloseMemHandle(CUdeviceptr pointer) {
    pthread_mutex_lock(&lock);
    CUresult answer = CUDA_SUCCESS;
    struct allocation* gone = allocation_at(pointer);
    if (gone == NULL || !gone->is_import || depth == 0) REFUSE(CUDA_ERROR_INVALID_VALUE);
    if (--gone->references == 0) forget(gone);
    END;
}

/* With the lock. 1: registered whole, by one call; 0: not at all; -1: partly. */
static int registration_of(const char* data, size_t bytes) {
    for (int i = 0; i < SLOTS; ++i) {
        if (registered[i].data == NULL) continue;
        const char* end = registered[i].data + registered[i].bytes;
        if (data >= registered[i].data && data + bytes <= end) return 1;
        if (data < end && data + bytes > registered[i].data) return -1;
    }
    return 0;
}
EXPORT CUresult cuMemHostRegister_v2(void* data, size_t bytes, unsigned flags) {
    BEGIN("cuMemHostRegister_v2", 1);
    if (flags != 1 || (uintptr_t)data % 4096 != 0) REFUSE(CUDA_ERROR_INVALID_VALUE);
    if (registration_of(data, bytes) != 0) REFUSE(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    int slot = 0;
    while (registered[slot].data != NULL) slot++;
    registered[slot] = (struct range){data, bytes};
    END;
}
EXPORT CUresult cuMemHostUnregister(void* data) {
    pthread_mutex_lock(&lock);
    CUresult answer = CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    for (int i = 0; i < SLOTS; ++i)
        if (registered[i].data == data && data != NULL) {
            registered[i].data = NULL;
            answer = CUDA_SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    return answer;
}

EXPORT CUresult cuMemHostAlloc(void** data, size_t bytes, unsigned flags) {
    (void)flags;
    if (posix_memalign(data, 4096, bytes) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    return cuMemHostRegister_v2(*data, bytes, 1);
}
EXPORT CUresult cuMemFreeHost(void* data) {
    CUresult answer = cuMemHostUnregister(data);
    free(data);
    return answer;
}

static void note_copy(int change) {
    pthread_mutex_lock(&lock);
    busy_copies += change;
    if (busy_copies > most_busy_copies) most_busy_copies = busy_copies;
    pthread_mutex_unlock(&lock);
}
/* The most copies that ever ran at one time; asked for, it begins anew. */
EXPORT int standin_most_copies(void) {
    pthread_mutex_lock(&lock);
    int found = most_busy_copies;
    most_busy_copies = 0;
    pthread_mutex_unlock(&lock);
    return found;
}

static void* run_stream(void* argument) {
    CUstream stream = argument;
    const long delay_us = setting("STANDIN_CUDA_DELAY_US", 0);
    pthread_mutex_lock(&lock);
    while (1) {
        struct operation* next = stream->first;
        if (next == NULL) {
            if (stream->is_ending) break;
            pthread_cond_wait(&changed, &lock);
            continue;
        }
        stream->first = next->next;
        stream->is_busy = 1;
        pthread_mutex_unlock(&lock);
        if (next->to != NULL) {
            note_copy(1);
            if (delay_us > 0) usleep((useconds_t)(rand_r(&stream->seed) % delay_us));
            if (!__atomic_load_n(&loses_copies, __ATOMIC_SEQ_CST)) memcpy(next->to, next->from, next->bytes);
            if (next->owns_from) free(next->from);
            note_copy(-1);
        }
        pthread_mutex_lock(&lock);
        if (next->event != NULL && next->ticket > next->event->reached) next->event->reached = next->ticket;
        free(next);
        stream->is_busy = 0;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}
/* With the lock. */
static void enqueue(CUstream stream, struct operation what) {
    struct operation* one = malloc(sizeof *one);
    *one = what;
    if (stream->first == NULL) stream->first = one;
    else stream->last->next = one;
    stream->last = one;
    pthread_cond_broadcast(&changed);
}

EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
    BEGIN("cuStreamCreate", 1);
    (void)flags;
    *stream = calloc(1, sizeof **stream);
    (*stream)->seed = seeds++;
    live_streams++;
    pthread_create(&(*stream)->thread, NULL, run_stream, *stream);
    END;
}
EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    pthread_mutex_lock(&lock);
    while (stream->first != NULL || stream->is_busy) pthread_cond_wait(&changed, &lock);
    CUresult answer = (CUresult)refusal("cuStreamSynchronize", 1);
    pthread_mutex_unlock(&lock);
    return answer;
}
EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    pthread_mutex_lock(&lock);
    stream->is_ending = 1;
    live_streams--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    pthread_join(stream->thread, NULL);
    free(stream);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventCreate(CUevent* event, unsigned flags) {
    BEGIN("cuEventCreate", 1);
    (void)flags;
    *event = calloc(1, sizeof **event);
    live_events++;
    END;
}
EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    BEGIN("cuEventRecord", 1);
    enqueue(stream, (struct operation){.event = event, .ticket = ++event->asked});
    END;
}
EXPORT CUresult cuEventQuery(CUevent event) {
    BEGIN("cuEventQuery", 1);
    if (event->reached < event->asked) answer = (CUresult)600;
    END;
}
EXPORT CUresult cuEventSynchronize(CUevent event) {
    BEGIN("cuEventSynchronize", 1);
    while (event->reached < event->asked) pthread_cond_wait(&changed, &lock);
    END;
}
EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    pthread_mutex_lock(&lock);
    live_events--;
    pthread_mutex_unlock(&lock);
    free(event);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    BEGIN("cuMemcpyHtoDAsync_v2", 1);
    struct allocation* target = allocation_of(to, bytes);
    if (target == NULL || target->device != stack[depth - 1]->device) REFUSE(CUDA_ERROR_INVALID_VALUE);
    int is_registered = registration_of(from, bytes);
    if (is_registered < 0) REFUSE(CUDA_ERROR_INVALID_VALUE);
    char* source = (char*)from;
    if (!is_registered) {
        source = malloc(bytes); /* pageable: staged by the time the call returns */
        memcpy(source, from, bytes);
    }
    enqueue(stream, (struct operation){.to = (char*)(uintptr_t)to, .from = source, .bytes = bytes, .owns_from = !is_registered});
    END;
}
EXPORT CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    BEGIN("cuMemcpyDtoH_v2", 1);
    if (allocation_of(from, bytes) == NULL) REFUSE(CUDA_ERROR_INVALID_VALUE);
    memcpy(to, (const void*)(uintptr_t)from, bytes);
    END;
}
