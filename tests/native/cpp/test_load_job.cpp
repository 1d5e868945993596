// Loads by blocking reads, through devices that misbehave: the seam is the positional read itself, everything else
// is real. What a ring makes of the same faults is in test_read_queue.cpp.
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "arena.hpp"
#include "check.hpp"
#include "crc32c.hpp"
#include "load_job.hpp"
#include "temporary_file.hpp"

using namespace firstlight;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kChunk = 1 << 20;
std::atomic<int> calls{0};
std::atomic<int> faults_left{0};

ssize_t read_short(int fd, void* buffer, std::size_t size, off_t offset) {
    return ::pread(fd, buffer, std::min<std::size_t>(size, 5000), offset);
}

ssize_t read_interrupted(int fd, void* buffer, std::size_t size, off_t offset) {
    if (calls++ % 2 == 0) {
        errno = EINTR;
        return -1;
    }
    return ::pread(fd, buffer, size, offset);
}

ssize_t read_refusing_once(int fd, void* buffer, std::size_t size, off_t offset) {
    if (faults_left.fetch_sub(1) > 0) {
        errno = EINVAL;
        return -1;
    }
    return ::pread(fd, buffer, size, offset);
}

ssize_t read_failing(int fd, void* buffer, std::size_t size, off_t offset) {
    if (faults_left.fetch_sub(1) > 0) {
        errno = EIO;
        return -1;
    }
    return ::pread(fd, buffer, size, offset);
}

ssize_t read_flipping(int fd, void* buffer, std::size_t size, off_t offset) {
    const ssize_t got = ::pread(fd, buffer, size, offset);
    if (got > 0 && faults_left.fetch_sub(1) > 0) *static_cast<unsigned char*>(buffer) ^= 1;
    return got;
}

ssize_t read_slowly(int fd, void* buffer, std::size_t size, off_t offset) {
    std::this_thread::sleep_for(5ms);  // the device's time, not the test's
    return ::pread(fd, buffer, size, offset);
}

struct Case {
    std::vector<unsigned char> bytes = pattern(6 * kChunk);
    TemporaryFile file{bytes};
    Result<Arena> arena = Arena::create(8 * kChunk, ArenaKind::memfd);

    std::vector<Segment> segments() const {
        std::vector<Segment> found;
        for (std::size_t at = 0; at < bytes.size(); at += kChunk)
            found.push_back({file.path(), at, kChunk, at, crc32c(bytes.data() + at, kChunk)});
        return found;
    }
    Result<std::unique_ptr<LoadJob>> start(PositionalRead read, unsigned threads = 3) {
        LoadOptions options;
        options.read_call = read;
        options.backend = Backend::threads;
        options.threads = threads;
        return LoadJob::start(arena.value().mapping(), segments(), options);
    }
    bool is_loaded() const {
        return std::memcmp(arena.value().mapping()->data(), bytes.data(), bytes.size()) == 0;
    }
};

}  // namespace

TEST(an_undisturbed_load_is_complete) {
    Case c;
    auto job = c.start(nullptr);
    EXPECT(job.ok() && job.value()->wait_for(30s));
    EXPECT(job.value()->result().ok() && c.is_loaded());
    EXPECT(job.value()->prefix_bytes() == c.bytes.size());
}

TEST(short_reads_are_continued) {
    Case c;
    auto job = c.start(read_short);
    EXPECT(job.value()->wait_for(30s));
    EXPECT(job.value()->result().ok() && c.is_loaded());
}

TEST(interrupted_reads_are_repeated) {
    Case c;
    calls = 0;
    auto job = c.start(read_interrupted);
    EXPECT(job.value()->wait_for(30s));
    EXPECT(job.value()->result().ok() && c.is_loaded());
}

TEST(a_device_that_refuses_direct_reads_is_read_buffered) {
    Case c;
    faults_left = 1;
    auto job = c.start(read_refusing_once);
    EXPECT(job.value()->wait_for(30s));
    EXPECT(job.value()->result().ok() && c.is_loaded());
    EXPECT(std::string(job.value()->io_mode()) == "buffered");
}

TEST(a_chunk_that_fails_once_is_read_again) {
    for (const PositionalRead read : {read_failing, read_flipping}) {
        Case c;
        faults_left = 1;
        auto job = c.start(read);
        EXPECT(job.value()->wait_for(30s));
        const auto report = job.value()->result();
        EXPECT(report.ok() && c.is_loaded());
        EXPECT(report.ok() && report.value().read_again.size() == 1);
    }
}

TEST(a_chunk_that_fails_twice_fails_the_job_and_is_named) {
    const std::pair<PositionalRead, ErrorCode> cases[] = {{read_failing, ErrorCode::read_failed},
                                                          {read_flipping, ErrorCode::checksum_mismatch}};
    for (const auto& [read, code] : cases) {
        Case c;
        faults_left = 2;
        auto job = c.start(read, 1);
        EXPECT(job.value()->wait_for(30s));
        const auto report = job.value()->result();
        EXPECT(!report.ok() && report.error().code == code);
        EXPECT(!report.ok() && report.error().chunk == 0U && report.error().path == c.file.path());
        EXPECT(job.value()->prefix_bytes() == 0);
    }
}

TEST(the_prefix_never_runs_ahead_of_the_bytes) {
    Case c;
    auto job = c.start(read_slowly);
    for (std::size_t end = kChunk; end <= c.bytes.size(); end += kChunk) {
        EXPECT(job.value()->wait_prefix_for(end, 30s));
        EXPECT(std::memcmp(c.arena.value().mapping()->data(), c.bytes.data(), end) == 0);
    }
}

TEST(a_cancelled_load_ends_soon_and_says_so) {
    Case c;
    auto job = c.start(read_slowly, 1);
    EXPECT(job.value()->wait_prefix_for(kChunk, 30s));
    job.value()->cancel();
    EXPECT(job.value()->wait_for(30s));
    const auto report = job.value()->result();
    EXPECT(!report.ok() && report.error().code == ErrorCode::cancelled);
}

TEST(a_load_can_be_dropped_at_any_moment) {
    for (int round = 0; round < 20; ++round) {
        Case c;
        auto job = c.start(round % 2 == 0 ? nullptr : read_slowly);
        if (round % 3 == 0) (void)job.value()->wait_prefix_for(kChunk, 30s);
    }
    EXPECT(true);
}

TEST(a_paused_load_goes_on_where_it_was) {
    for (int round = 0; round < 4; ++round) {
        Case c;
        auto job = c.start(round % 2 == 0 ? nullptr : read_slowly);
        job.value()->pause();
        if (round % 3 == 0) EXPECT(!job.value()->wait_for(1ms) || job.value()->result().ok());
        job.value()->resume();
        job.value()->pause();
        job.value()->resume();
        EXPECT(job.value()->wait_for(30s) && job.value()->result().ok() && c.is_loaded());
    }
}

TEST(a_paused_load_can_be_cancelled_and_dropped) {
    for (int round = 0; round < 4; ++round) {
        Case c;
        auto job = c.start(read_slowly);
        job.value()->pause();
        if (round % 2 == 0) continue;
        std::jthread canceller([&] { job.value()->cancel(); });
        job.value()->pause();
        EXPECT(job.value()->wait_for(30s));
    }
}

TEST(several_threads_may_wait_at_once) {
    Case c;
    auto job = c.start(read_slowly);
    std::atomic<int> woken{0};
    {
        std::vector<std::jthread> waiters;
        for (std::size_t i = 1; i <= 4; ++i)
            waiters.emplace_back([&, i] {
                if (job.value()->wait_prefix_for(i * kChunk, 30s)) ++woken;
                (void)job.value()->bytes_done();
                (void)job.value()->io_mode();
                if (job.value()->wait_for(30s)) ++woken;
            });
    }
    EXPECT(woken == 8);
}
