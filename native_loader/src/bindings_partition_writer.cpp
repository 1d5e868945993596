#include <optional>
#include <string>

#include "bindings.hpp"
#include "partition_writer.hpp"

namespace firstlight::bindings {

void bind_partition_writer(nb::module_& module) {
    nb::class_<PartitionSummary>(module, "PartitionSummary", "Size and chunk checksums of a finished partition.")
        .def_ro("size_bytes", &PartitionSummary::size_bytes)
        .def_ro("chunk_crc32c", &PartitionSummary::chunk_crc32c);
    nb::class_<PartitionWriter>(module, "PartitionWriter",
                                "Writes one partition file front to back with its checksums. One thread at a time.")
        .def(
            "__init__",
            [](PartitionWriter* self, const std::string& path, std::uint64_t chunk_bytes,
               std::uint64_t expected_bytes) {
                new (self) PartitionWriter(
                    without_gil([&] { return PartitionWriter::create(path, chunk_bytes, expected_bytes); }));
            },
            nb::arg("path"), nb::kw_only(), nb::arg("chunk_bytes"), nb::arg("expected_bytes") = 0,
            "`path` must not exist. Reserves `expected_bytes` on the disk.\n\nRaises: DiskFull, StorageError.")
        .def_prop_ro("position", &PartitionWriter::position)
        .def(
            "append",
            [](PartitionWriter& self, nb::handle data) {
                const InputBuffer buffer(data);
                without_gil([&] { return self.append(buffer.data(), buffer.size_bytes()); });
            },
            nb::arg("data"), nb::sig("def append(self, data: bytes | bytearray | memoryview) -> None"),
            "Raises: DiskFull, StorageError; after either, every later call raises it again.")
        .def(
            "pad_to", [](PartitionWriter& self, std::uint64_t alignment) {
                without_gil([&] { return self.pad_to(alignment); });
            },
            nb::arg("alignment"), "Appends zeros up to the next multiple of `alignment`, at most 4096.")
        .def(
            "finish", [](PartitionWriter& self) { return without_gil([&] { return self.finish(); }); },
            "Pads to 4 KiB and fsyncs.");
}

}  // namespace firstlight::bindings
