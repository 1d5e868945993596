#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "check.hpp"
#include "progress_board.hpp"

using namespace firstlight;
using namespace std::chrono_literals;

namespace {

std::shared_ptr<ProgressBoard> board_of(std::vector<std::uint64_t> lengths) {
    auto board = ProgressBoard::create(std::move(lengths));
    EXPECT(board.ok());
    return board.value();
}

std::shared_ptr<ProgressBoard> watcher_of(const ProgressBoard& board) {
    auto fd = board.read_only_fd();
    EXPECT(fd.ok());
    auto watcher = ProgressBoard::attach(fd.value().get());
    EXPECT(watcher.ok());
    return watcher.value();
}

}  // namespace

TEST(a_prefix_waits_for_its_holes) {
    const auto board = board_of({10, 20, 30});
    const auto watcher = watcher_of(*board);
    EXPECT(watcher->chunks() == 3 && watcher->bytes_total() == 60 && watcher->prefix_bytes() == 0);
    EXPECT(board->mark_done(1).ok() && board->mark_done(1).ok());
    EXPECT(watcher->bytes_done() == 20 && watcher->prefix_bytes() == 0 && watcher->is_chunk_done(1));
    EXPECT(watcher->wait_chunk_for(1, 0ns) && !watcher->wait_prefix_for(1, 1ms));
    EXPECT(board->mark_done(0).ok());
    EXPECT(watcher->prefix_bytes() == 30 && !watcher->is_ended());
    EXPECT(board->mark_done(2).ok());
    EXPECT(watcher->prefix_bytes() == 60 && watcher->is_ended() && !watcher->has_failed());
    EXPECT(board->fail().ok() && !watcher->has_failed());
    EXPECT(!watcher->wait_prefix_for(61, 10s));
}

TEST(a_board_of_nothing_has_ended) {
    EXPECT(board_of({})->is_ended());
    EXPECT(board_of({})->wait_prefix_for(0, 10s));
}

TEST(figures_that_make_no_sense_are_refused) {
    EXPECT(!ProgressBoard::create({1, 0}).ok());
    EXPECT(!ProgressBoard::create({~std::uint64_t{0}, 1}).ok());
    EXPECT(!board_of({1})->mark_done(1).ok());
}

TEST(only_the_creator_writes) {
    const auto board = board_of({1, 1});
    const auto watcher = watcher_of(*board);
    EXPECT(!watcher->mark_done(0).ok() && !watcher->fail().ok());
    auto fd = board->read_only_fd();
    EXPECT(::mmap(nullptr, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd.value().get(), 0) == MAP_FAILED);
    const std::string again = "/proc/self/fd/" + std::to_string(fd.value().get());
    const FileDescriptor writable(::open(again.c_str(), O_RDWR));
    EXPECT(::mmap(nullptr, 1, PROT_READ | PROT_WRITE, MAP_SHARED, writable.get(), 0) == MAP_FAILED);
    EXPECT(::pwrite(writable.get(), "x", 1, 0) < 0);
}

TEST(a_descriptor_of_something_else_is_refused) {
    const FileDescriptor pipe_or_null(::open("/dev/null", O_RDONLY));
    EXPECT(!ProgressBoard::attach(pipe_or_null.get()).ok());
    EXPECT(!ProgressBoard::attach(-1).ok());
    const FileDescriptor garbage(::memfd_create("x", MFD_ALLOW_SEALING));
    EXPECT(::ftruncate(garbage.get(), 4096) == 0);
    EXPECT(!ProgressBoard::attach(garbage.get()).ok());
    EXPECT(::fcntl(garbage.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    EXPECT(!ProgressBoard::attach(garbage.get()).ok());
}

TEST(a_failure_wakes_every_waiter) {
    const auto board = board_of({1, 1});
    const auto watcher = watcher_of(*board);
    std::atomic<int> refused{0};
    {
        std::vector<std::jthread> waiters;
        for (int i = 0; i < 4; ++i)
            waiters.emplace_back([&, i] {
                const ProgressBoard& seen = i % 2 == 0 ? *board : *watcher;
                if (!seen.wait_prefix_for(2, 30s)) ++refused;
            });
        EXPECT(board->mark_done(1).ok() && board->fail().ok());
    }
    EXPECT(refused == 4 && watcher->has_failed() && watcher->is_chunk_done(1));
}

TEST(many_threads_mark_and_many_watch) {
    constexpr std::size_t kChunks = 600;
    const auto board = board_of(std::vector<std::uint64_t>(kChunks, 7));
    std::atomic<int> holes{0};
    {
        std::vector<std::jthread> threads;
        for (std::size_t part = 0; part < 3; ++part)
            threads.emplace_back([&, part] {
                for (std::size_t i = part; i < kChunks; i += 3) (void)board->mark_done(i);
            });
        for (int i = 0; i < 3; ++i)
            threads.emplace_back([&] {
                const auto watcher = watcher_of(*board);
                for (std::size_t k = 1; k <= kChunks; ++k)
                    if (!watcher->wait_prefix_for(k * 7, 30s) || !watcher->is_chunk_done(k - 1)) ++holes;
            });
    }
    EXPECT(holes == 0 && board->bytes_done() == kChunks * 7 && board->is_ended());
}

TEST(a_watcher_in_another_process_sleeps_until_it_is_woken) {
    const auto board = board_of({5, 5});
    auto fd = board->read_only_fd();
    int ready[2];
    EXPECT(::pipe(ready) == 0);
    const pid_t child = ::fork();
    if (child == 0) {  // answers by its exit status alone; the checks' counter is not shared
        auto watcher = ProgressBoard::attach(fd.value().get());
        if (!watcher.ok() || ::write(ready[1], "r", 1) != 1) ::_exit(1);
        if (!watcher.value()->wait_prefix_for(10, 30s)) ::_exit(2);
        ::_exit(watcher.value()->prefix_bytes() == 10 ? 0 : 3);
    }
    char byte = 0;
    EXPECT(::read(ready[0], &byte, 1) == 1);
    EXPECT(!board->wait_chunk_for(0, 200ms));  // the time in which a child that spins would burn
    EXPECT(board->mark_done(1).ok() && board->mark_done(0).ok());
    int status = -1;
    struct rusage usage {};
    EXPECT(::wait4(child, &status, 0, &usage) == child && status == 0);
    EXPECT(usage.ru_utime.tv_sec == 0 && usage.ru_utime.tv_usec + usage.ru_stime.tv_usec < 100'000);
    ::close(ready[0]);
    ::close(ready[1]);
}
