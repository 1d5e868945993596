#include <sys/mman.h>
#include <unistd.h>

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
