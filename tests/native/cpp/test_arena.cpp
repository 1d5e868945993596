#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "arena.hpp"
#include "check.hpp"

using namespace firstlight;

TEST(arenas_are_populated_by_many_threads_and_read_through_their_descriptor) {
    for (const ArenaKind kind : {ArenaKind::automatic, ArenaKind::memfd}) {
        auto arena = Arena::create(80 << 20, kind);
        EXPECT(arena.ok() && arena.value().prefault(4).ok());
        std::memset(arena.value().mapping()->data(), 7, 80 << 20);
        auto fd = arena.value().read_only_fd();
        EXPECT(fd.ok());
        auto view = Mapping::of_file(fd.value().get(), 80 << 20, Access::read_only);
        EXPECT(view.ok() && view.value().populate(4097, (64 << 20) - 1, 3).ok());
        EXPECT(view.value().data()[(80 << 20) - 1] == std::byte{7});
        EXPECT(!view.value().populate(1, 80 << 20, 1).ok());
        EXPECT(Mapping::of_file(fd.value().get(), (80 << 20) + 1, Access::read_only).ok() == false);
    }
}

TEST(touching_makes_pages_resident_and_keeps_what_is_there) {
    auto memory = Mapping::anonymous(2 << 20);
    EXPECT(memory.ok());
    ::madvise(memory.value().data(), 2 << 20, MADV_NOHUGEPAGE);
    memory.value().data()[4096] = std::byte{5};
    touch_pages(memory.value().data(), 2 << 20, Access::read_write);
    EXPECT(memory.value().data()[4096] == std::byte{5});
    std::vector<unsigned char> is_resident((2 << 20) / 4096);
    EXPECT(::mincore(memory.value().data(), 2 << 20, is_resident.data()) == 0);
    for (const unsigned char page : is_resident) EXPECT((page & 1) == 1);
}

TEST(populating_keeps_what_is_there) {
    auto arena = Arena::create(2 << 20, ArenaKind::memfd);
    std::memset(arena.value().mapping()->data(), 9, 2 << 20);
    EXPECT(arena.value().prefault(2).ok());
    for (std::size_t at = 0; at < (2 << 20); at += 4096)
        EXPECT(arena.value().mapping()->data()[at] == std::byte{9});
}

namespace {

// Of the mapping that holds `address`: how much of it is mapped by huge pages, from what the kernel says of it.
std::uint64_t huge_bytes_at(const void* address) {
    std::FILE* file = std::fopen("/proc/self/smaps", "r");
    char line[512];
    std::uint64_t kilobytes = 0;
    bool is_it = false;
    while (file != nullptr && std::fgets(line, sizeof line, file) != nullptr) {
        unsigned long begin = 0, end = 0, found = 0;
        if (std::sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            is_it = begin <= reinterpret_cast<unsigned long>(address) && reinterpret_cast<unsigned long>(address) < end;
        else if (is_it && (std::sscanf(line, "ShmemPmdMapped: %lu", &found) == 1 ||
                           std::sscanf(line, "FilePmdMapped: %lu", &found) == 1))
            kilobytes += found;
    }
    if (file != nullptr) std::fclose(file);
    return kilobytes << 10;
}

}  // namespace

TEST(prefaulting_a_memfd_makes_its_pages_huge_where_the_kernel_can) {
    auto arena = Arena::create(16 << 20, ArenaKind::memfd);
    std::byte* const data = arena.value().mapping()->data();
    EXPECT(reinterpret_cast<std::uintptr_t>(data) % (2 << 20) == 0);
    data[5 << 20] = std::byte{7};
    EXPECT(arena.value().prefault(2).ok());
    for (std::size_t at = 0; at < (16 << 20); at += 4096) EXPECT(data[at] == (at == 5 << 20 ? std::byte{7} : std::byte{0}));
    auto fd = arena.value().read_only_fd();
    auto view = Mapping::of_file(fd.value().get(), 16 << 20, Access::read_only);
    EXPECT(view.ok() && view.value().populate(0, 16 << 20, 1).ok());
    if (!arena.value().has_huge_pages()) return;
    // A machine short of free huge pages may grant fewer, but not none just after it granted the probe's.
    EXPECT(huge_bytes_at(data) >= 2 << 20);
    EXPECT(huge_bytes_at(view.value().data()) >= 2 << 20);
}

TEST(aligned_mappings_leave_no_addresses_behind) {
    const auto mappings = [] {
        std::FILE* file = std::fopen("/proc/self/maps", "r");
        int lines = 0;
        for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) lines += c == '\n';
        std::fclose(file);
        return lines;
    };
    const int before = mappings();
    {
        auto arena = Arena::create(6 << 20, ArenaKind::memfd);
        EXPECT(arena.ok() && mappings() <= before + 2);
    }
    EXPECT(mappings() <= before);
}
