#include <cstring>
#include <optional>
#include <string>

#include "arena.hpp"
#include "bindings.hpp"

namespace firstlight::bindings {
namespace {

ArenaKind parse_kind(const std::string& name) {
    for (const ArenaKind kind : {ArenaKind::automatic, ArenaKind::hugetlb, ArenaKind::tmpfs, ArenaKind::memfd,
                                 ArenaKind::anonymous})
        if (name_of(kind) == name) return kind;
    raise(Error{ErrorCode::invalid_argument, "no arena kind is called " + name, 0, "", std::nullopt});
}

[[noreturn]] void raise_closed(const char* what) {
    raise(Error{ErrorCode::invalid_argument, std::string("the ") + what + " is closed", 0, "", std::nullopt});
}

}  // namespace

Arena& PyArena::get() {
    if (!arena) raise_closed("arena");
    return *arena;
}

const std::shared_ptr<Mapping>& PyArenaView::get() const {
    if (!mapping) raise_closed("view");
    return mapping;
}

namespace {

void write_bytes(PyArena& self, std::uint64_t offset, nb::handle data) {
    const InputBuffer buffer(data);
    const std::shared_ptr<Mapping> mapping = self.get().mapping();
    if (!mapping->contains(offset, buffer.size_bytes()))
        raise(Error{ErrorCode::invalid_argument, "range is outside of the arena", 0, "", std::nullopt});
    nb::gil_scoped_release release;
    std::memcpy(mapping->data() + offset, buffer.data(), buffer.size_bytes());
}

void bind_view(nb::module_& module) {
    nb::class_<PyArenaView>(module, "ArenaView",
                            "A read-only mapping of another process's arena. Closing it leaves exported "
                            "memoryviews valid.")
        .def(
            "__init__",
            [](PyArenaView* self, int fd, std::uint64_t size_bytes) {
                Mapping mapping = without_gil([&] { return Mapping::of_file(fd, size_bytes, Access::read_only); });
                new (self) PyArenaView{std::make_shared<Mapping>(std::move(mapping))};
            },
            nb::arg("fd"), nb::arg("size_bytes"),
            "Maps the first `size_bytes` of `fd`, which stays the caller's to close.")
        .def_prop_ro("size_bytes", [](const PyArenaView& self) { return self.get()->size_bytes(); })
        .def(
            "populate",
            [](const PyArenaView& self, std::uint64_t offset, std::optional<std::uint64_t> length, unsigned threads) {
                const std::shared_ptr<Mapping> mapping = self.get();
                const std::uint64_t size =
                    length.value_or(offset <= mapping->size_bytes() ? mapping->size_bytes() - offset : 0);
                without_gil([&] { return mapping->populate(offset, size, threads); });
            },
            nb::arg("offset") = 0, nb::arg("length") = nb::none(), nb::arg("threads") = 1,
            "Maps the pages ahead of need, so that first use takes no fault.")
        .def(
            "buffer",
            [](const PyArenaView& self, std::uint64_t offset, std::optional<std::uint64_t> length) {
                return memoryview_of(self.get(), offset, length, Access::read_only);
            },
            nb::arg("offset") = 0, nb::arg("length") = nb::none(),
            nb::sig("def buffer(self, offset: int = 0, length: int | None = None) -> memoryview"),
            "Read-only bytes of the arena, not copied; they keep the mapping alive.")
        .def("close", [](PyArenaView& self) { self.mapping.reset(); }, "Idempotent.")
        .def("__enter__", [](nb::handle self) { return nb::borrow(self); },
             nb::sig("def __enter__(self) -> ArenaView"))
        .def("__exit__", [](PyArenaView& self, nb::args) { self.mapping.reset(); },
             nb::sig("def __exit__(self, *exception: object) -> None"));
}

}  // namespace

void bind_arena(nb::module_& module) {
    nb::class_<PyArena>(module, "Arena",
                        "Memory as a file descriptor that outlives its readers.\n\n"
                        "Closing it leaves running loads, exported memoryviews and other processes' mappings "
                        "valid.")
        .def(
            "__init__",
            [](PyArena* self, std::uint64_t size_bytes, const std::string& kind) {
                const ArenaKind wanted = parse_kind(kind);
                Arena arena = without_gil([&] { return Arena::create(size_bytes, wanted); });
                new (self) PyArena{std::move(arena)};
            },
            nb::arg("size_bytes"), nb::arg("kind") = "auto",
            "`size_bytes` is rounded up to 2 MiB; `kind` is auto, hugetlb, tmpfs, memfd or anonymous.\n\n"
            "Raises: PoolFull if the machine does not grant it, InvalidInput.")
        .def_prop_ro("kind", [](PyArena& self) { return std::string(name_of(self.get().kind())); },
                     "What the machine granted: hugetlb, tmpfs, memfd or anonymous.")
        .def_prop_ro("has_huge_pages", [](PyArena& self) { return self.get().has_huge_pages(); },
                     "Whether readers map it 2 MiB at a time, once it is prefaulted.")
        .def_prop_ro("size_bytes", [](PyArena& self) { return self.get().size_bytes(); })
        .def(
            "read_only_fd",
            [](PyArena& self) {
                // With the GIL, which keeps another thread from closing the arena meanwhile.
                Result<FileDescriptor> fd = self.get().read_only_fd();
                if (!fd) raise(fd.error());
                return fd.value().release();
            },
            "A new descriptor, the caller's to close, through which the memory can only be read.")
        .def(
            "prefault",
            [](PyArena& self, unsigned threads) {
                const std::shared_ptr<Mapping> mapping = self.get().mapping();
                without_gil([&] { return mapping->populate(0, mapping->size_bytes(), threads); });
            },
            nb::arg("threads") = 1, "Makes every page resident. Raises: PoolFull if the machine has too few.")
        .def(
            "buffer",
            [](PyArena& self, std::uint64_t offset, std::optional<std::uint64_t> length) {
                return memoryview_of(self.get().mapping(), offset, length, Access::read_write);
            },
            nb::arg("offset") = 0, nb::arg("length") = nb::none(),
            nb::sig("def buffer(self, offset: int = 0, length: int | None = None) -> memoryview"),
            "Writable bytes of the arena, not copied; they keep the mapping alive.")
        .def("write", &write_bytes, nb::arg("offset"), nb::arg("data"),
             nb::sig("def write(self, offset: int, data: bytes | bytearray | memoryview) -> None"),
             "Copies `data` in, without the GIL.")
        .def("close", [](PyArena& self) { self.arena.reset(); }, "Idempotent.")
        .def("__enter__", [](nb::handle self) { return nb::borrow(self); }, nb::sig("def __enter__(self) -> Arena"))
        .def("__exit__", [](PyArena& self, nb::args) { self.arena.reset(); },
             nb::sig("def __exit__(self, *exception: object) -> None"));
    bind_view(module);
}

}  // namespace firstlight::bindings
