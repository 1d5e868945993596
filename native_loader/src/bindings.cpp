#include "bindings.hpp"

#include "crc32c.hpp"

namespace firstlight::bindings {
namespace {

const char* exception_name(ErrorCode code) {
    switch (code) {
        case ErrorCode::invalid_argument: return "InvalidInput";
        case ErrorCode::file_missing: return "CheckpointMissing";
        case ErrorCode::file_truncated: return "ManifestInvalid";
        case ErrorCode::checksum_mismatch: return "ChecksumMismatch";
        case ErrorCode::read_failed: return "ReadFailed";
        case ErrorCode::write_failed: return "StorageError";
        case ErrorCode::disk_full: return "DiskFull";
        case ErrorCode::out_of_memory: return "PoolFull";
        case ErrorCode::cancelled: return "Cancelled";
        case ErrorCode::gpu_unavailable: return "GpuUnavailable";
        case ErrorCode::gpu_out_of_memory: return "GpuMemoryFull";
        case ErrorCode::gpu_failed: return "GpuError";
    }
    return "FirstlightError";
}

}  // namespace

void raise(const Error& error) {
    nb::dict fields;
    if (!error.path.empty()) fields["path"] = nb::str(error.path.c_str());
    if (error.chunk) fields["chunk"] = nb::int_(*error.chunk);
    if (error.system_error != 0) fields["errno"] = nb::int_(error.system_error);
    if (!error.driver_error.empty()) fields["driver_error"] = nb::str(error.driver_error.c_str());
    // The manifest was right about the file when it was opened, or never: either way it is outside of it now.
    if (error.code == ErrorCode::file_truncated) fields["rule"] = nb::str("out_of_file");
    const nb::object type = nb::module_::import_("firstlight.domain.errors").attr(exception_name(error.code));
    const nb::object exception = type(nb::str(error.message.c_str()), **fields);
    PyErr_SetObject(type.ptr(), exception.ptr());
    throw nb::python_error();
}

nb::object memoryview_of(const std::shared_ptr<Mapping>& mapping, std::uint64_t offset,
                         std::optional<std::uint64_t> length, Access access) {
    if (offset > mapping->size_bytes()) raise(Error{ErrorCode::invalid_argument, "offset is outside of the mapping", 0, "", std::nullopt});
    const std::uint64_t size = length.value_or(mapping->size_bytes() - offset);
    if (!mapping->contains(offset, size)) raise(Error{ErrorCode::invalid_argument, "range is outside of the mapping", 0, "", std::nullopt});
    auto held = std::make_unique<std::shared_ptr<Mapping>>(mapping);
    nb::capsule owner(held.get(), [](void* p) noexcept { delete static_cast<std::shared_ptr<Mapping>*>(p); });
    held.release();
    auto* data = reinterpret_cast<std::uint8_t*>(mapping->data() + offset);
    const std::size_t shape[1] = {size};
    if (access == Access::read_only)
        return nb::cast(nb::ndarray<nb::memview, const std::uint8_t, nb::ndim<1>>(data, 1, shape, owner));
    return nb::cast(nb::ndarray<nb::memview, std::uint8_t, nb::ndim<1>>(data, 1, shape, owner));
}

}  // namespace firstlight::bindings

NB_MODULE(_native, module) {
    using namespace firstlight;
    using namespace firstlight::bindings;
    module.doc() =
        "C++ core of native_loader: memory as descriptors, direct reads with checksums, partition files.\n\n"
        "Every call releases the GIL while it reads, writes, waits or copies, and raises firstlight.domain.errors.";
    // A store or engine that exits holds its arena to the end on purpose; the kernel takes it back.
    nb::set_leak_warnings(false);
    module.def(
        "crc32c",
        [](nb::handle data, std::uint32_t seed) {
            const InputBuffer buffer(data);
            nb::gil_scoped_release release;
            return crc32c(buffer.data(), buffer.size_bytes(), seed);
        },
        nb::arg("data"), nb::arg("seed") = 0,
        nb::sig("def crc32c(data: bytes | bytearray | memoryview, seed: int = 0) -> int"),
        "CRC32C of `data` appended to what `seed` is the checksum of.");
    module.def("crc32c_implementation", &crc32c_implementation,
               "What crc32c runs on here: 'sse4.2', 'armv8-crc' or 'software'.");
    bind_arena(module);
    bind_progress_board(module);
    bind_load_job(module);
    bind_partition_writer(module);
    bind_gpu(module);
    bind_ordered_products(module);
}
