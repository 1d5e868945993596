// The CUDA driver of this machine, found when it is asked for: one build serves machines with GPUs and without.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda_api.hpp"
#include "result.hpp"

namespace firstlight {

struct GpuFacts {
    int index = 0;
    std::string name;
    std::string uuid;  // 32 hexadecimal digits; the same in every process, whatever CUDA_VISIBLE_DEVICES hides
    std::uint64_t memory_bytes = 0;
};

class CudaDriver {
public:
    static constexpr const char* kLibrary = "libcuda.so.1";

    // gpu_unavailable when there is no such library, it lacks a call, or the driver does not start.
    // A process that has done this may fork only to exec: the driver does not survive in a child.
    static Result<std::shared_ptr<const CudaDriver>> open(const std::string& library = kLibrary);

    const CudaApi& api() const { return api_; }
    int version() const { return version_; }  // 13000 is CUDA 13.0
    Result<std::vector<GpuFacts>> devices() const;
    // ok, or an error that carries the driver's own name for `result`.
    Status check(CudaResult result, const char* call) const;

private:
    CudaDriver() = default;
    Status resolve(void* library);
    Result<GpuFacts> facts(int index) const;

    CudaApi api_{};
    int version_ = 0;
};

}  // namespace firstlight
