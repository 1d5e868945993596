#include "bindings_gpu.hpp"

#include <cstring>
#include <optional>
#include <string>

#include "wait_interruptibly.hpp"

namespace firstlight::bindings {
namespace {

using std::chrono::nanoseconds;

CudaIpcHandle handle_from(const nb::bytes& bytes) {
    CudaIpcHandle handle{};
    if (bytes.size() != sizeof handle.bytes)
        raise(Error{ErrorCode::invalid_argument, "a handle of GPU memory has 64 bytes", 0, "", std::nullopt});
    std::memcpy(handle.bytes, bytes.c_str(), sizeof handle.bytes);
    return handle;
}

nb::bytes read_memory(PyGpuMemory& self, std::uint64_t offset, std::uint64_t length) {
    const std::shared_ptr<GpuMemory> memory = self.get();
    if (!memory->contains(offset, length))
        raise(Error{ErrorCode::invalid_argument, "range is outside of the GPU memory", 0, "", std::nullopt});
    std::string content(length, '\0');
    without_gil([&] { return memory->read(offset, length, content.data()); });
    return nb::bytes(content.data(), content.size());
}

void bind_driver(nb::module_& module) {
    nb::class_<GpuFacts>(module, "GpuFacts", "One GPU, as the driver describes it.")
        .def_ro("index", &GpuFacts::index)
        .def_ro("name", &GpuFacts::name)
        .def_ro("uuid", &GpuFacts::uuid,
                "32 hexadecimal digits; the same in every process, whatever CUDA_VISIBLE_DEVICES hides.")
        .def_ro("memory_bytes", &GpuFacts::memory_bytes);
    nb::class_<PyCudaDriver>(module, "CudaDriver",
                             "The CUDA driver of this machine, found when it is asked for.\n\n"
                             "After this a process may fork only to exec.")
        .def(
            "__init__",
            [](PyCudaDriver* self, const std::string& library) {
                new (self) PyCudaDriver{without_gil([&] { return CudaDriver::open(library); })};
            },
            nb::arg("library") = CudaDriver::kLibrary,
            "`library` is another only in tests. Raises: GpuUnavailable.")
        .def_prop_ro("version", [](const PyCudaDriver& self) { return self.driver->version(); },
                     "Of the driver's interface: 13000 is CUDA 13.0.")
        .def(
            "gpus", [](const PyCudaDriver& self) { return without_gil([&] { return self.driver->devices(); }); },
            "Every GPU this process may use; takes no memory on any. Raises: GpuError.")
        .def(
            "open",
            [](const PyCudaDriver& self, int index) {
                return PyGpuDevice{without_gil([&] { return GpuDevice::open(self.driver, index); })};
            },
            nb::arg("index"), "Begin to use a GPU: some hundred MB of it go to this process.\n\n"
                              "Raises: GpuUnavailable, GpuError.");
}

void bind_device(nb::module_& module) {
    nb::class_<PyGpuDevice>(module, "GpuDevice", "One GPU in use; its context is the one torch shares.")
        .def_prop_ro("facts", [](const PyGpuDevice& self) { return self.device->facts(); })
        .def_prop_ro("free_bytes",
                     [](const PyGpuDevice& self) { return without_gil([&] { return self.device->free_bytes(); }); })
        .def(
            "allocate",
            [](const PyGpuDevice& self, std::uint64_t size_bytes) {
                return PyGpuMemory{without_gil([&] { return GpuMemory::allocate(self.device, size_bytes); })};
            },
            nb::arg("size_bytes"), "Memory of its own, in blocks of 2 MiB. Raises: GpuMemoryFull, GpuError.")
        .def(
            "open_memory",
            [](const PyGpuDevice& self, const nb::bytes& handle, std::uint64_t size_bytes) {
                const CudaIpcHandle wanted = handle_from(handle);
                return PyGpuMemory{without_gil([&] { return GpuMemory::open(self.device, wanted, size_bytes); })};
            },
            nb::arg("handle"), nb::arg("size_bytes"),
            "Another process's memory by its handle; it must not free it before this is closed.\n\n"
            "Raises: GpuError, InvalidInput.");
    nb::class_<PyGpuMemory>(module, "GpuMemory",
                            "Memory on a GPU, this process's or another's.\n\n"
                            "Closing it leaves running copies valid; what was made from `pointer` is not.")
        .def_prop_ro("pointer", [](PyGpuMemory& self) { return self.get()->pointer(); })
        .def_prop_ro("size_bytes", [](PyGpuMemory& self) { return self.get()->size_bytes(); })
        .def_prop_ro("device_index", [](PyGpuMemory& self) { return self.get()->device()->facts().index; })
        .def_prop_ro("__cuda_array_interface__",
                     [](PyGpuMemory& self) {
                         nb::dict description;
                         description["shape"] = nb::make_tuple(self.get()->size_bytes());
                         description["typestr"] = "|u1";
                         description["data"] = nb::make_tuple(self.get()->pointer(), false);
                         description["version"] = 3;
                         description["strides"] = nb::none();
                         return description;
                     },
                     nb::for_getter(nb::sig("def __cuda_array_interface__(self) -> dict[str, object]")),
                     "Bytes in a row, for torch.as_tensor and others, which keep this object alive.")
        .def(
            "handle",
            [](PyGpuMemory& self) {
                const std::shared_ptr<GpuMemory> memory = self.get();
                const CudaIpcHandle handle = without_gil([&] { return memory->handle(); });
                return nb::bytes(handle.bytes, sizeof handle.bytes);
            },
            "What another process opens it by. Raises: GpuError.")
        .def("read", &read_memory, nb::arg("offset"), nb::arg("length"),
             "A copy of its bytes, for checks. Raises: InvalidInput, GpuError.")
        .def(
            "close",
            [](PyGpuMemory& self) {
                // Freeing may wait for the device; the interpreter must not.
                std::shared_ptr<GpuMemory> memory = std::move(self.memory);
                nb::gil_scoped_release release;
                memory.reset();
            },
            "Idempotent.");
}

void bind_pinning(nb::module_& module) {
    nb::class_<PyGpuPinning>(module, "GpuPinning",
                             "Registers an arena with the driver, for copies at the bus's rate.\n\n"
                             "It works in the background. Closing it takes the registration back.")
        .def(
            "__init__",
            [](PyGpuPinning* self, const PyGpuDevice& device, PyArena& arena, std::uint64_t piece_bytes) {
                const std::shared_ptr<Mapping> memory = arena.get().mapping();
                new (self) PyGpuPinning{
                    without_gil([&] { return GpuPinning::start(device.device, memory, piece_bytes); })};
            },
            nb::arg("device"), nb::arg("arena"), nb::kw_only(), nb::arg("piece_bytes") = GpuPinning::kPieceBytes)
        .def_prop_ro("pinned_bytes", [](PyGpuPinning& self) { return self.get()->pinned_bytes(); })
        .def(
            "wait",
            [](PyGpuPinning& self, std::optional<double> timeout_s) {
                const std::shared_ptr<GpuPinning> pinning = self.get();
                return wait_interruptibly(
                    timeout_s, [&](nanoseconds slice) { return pinning->wait_for(slice); }, [] { return false; });
            },
            nb::arg("timeout_s") = nb::none(), "True once it has ended, well or not.")
        .def_prop_ro(
            "refusal",
            [](PyGpuPinning& self) -> std::optional<std::string> {
                const std::optional<Error> refusal = self.get()->refusal();
                if (!refusal) return std::nullopt;
                return refusal->message;
            },
            "What the driver said when it pinned no more, or None.")
        .def(
            "close",
            [](PyGpuPinning& self) {
                std::shared_ptr<GpuPinning> pinning = std::move(self.pinning);
                nb::gil_scoped_release release;
                pinning.reset();
            },
            "Idempotent; jobs that copy from it keep it until they end.");
}

}  // namespace

const std::shared_ptr<GpuMemory>& PyGpuMemory::get() const {
    if (!memory) raise(Error{ErrorCode::invalid_argument, "the GPU memory is closed", 0, "", std::nullopt});
    return memory;
}

const std::shared_ptr<GpuPinning>& PyGpuPinning::get() const {
    if (!pinning) raise(Error{ErrorCode::invalid_argument, "the pinning is closed", 0, "", std::nullopt});
    return pinning;
}

void bind_gpu(nb::module_& module) {
    bind_driver(module);
    bind_device(module);
    bind_pinning(module);
    bind_gpu_copy_job(module);
}

}  // namespace firstlight::bindings
