// What Python holds of a GPU.
#pragma once

#include <memory>

#include "bindings.hpp"
#include "cuda_driver.hpp"
#include "gpu_copy_job.hpp"
#include "gpu_device.hpp"
#include "gpu_pinning.hpp"

namespace firstlight::bindings {

struct PyCudaDriver {
    std::shared_ptr<const CudaDriver> driver;
};

struct PyGpuDevice {
    std::shared_ptr<const GpuDevice> device;
};

struct PyGpuMemory {
    std::shared_ptr<GpuMemory> memory;
    const std::shared_ptr<GpuMemory>& get() const;  // raises InvalidInput once closed
};

struct PyGpuPinning {
    std::shared_ptr<GpuPinning> pinning;
    const std::shared_ptr<GpuPinning>& get() const;  // raises InvalidInput once closed
};

void bind_gpu_copy_job(nb::module_& module);

}  // namespace firstlight::bindings
