// Loads through rings that misbehave. The ring underneath is the kernel's; a test's queue only spoils its answers.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "arena.hpp"
#include "check.hpp"
#include "crc32c.hpp"
#include "load_job.hpp"
#include "ring.hpp"
#include "temporary_file.hpp"

using namespace firstlight;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kChunk = 256 << 10;
constexpr std::uint64_t kBlock = 64 << 10;

using Spoil = std::function<void(const ReadRequest&, ReadCompletion&)>;

// `spoil` may change what a read is said to have brought, and the bytes it brought.
class SpoilingQueue final : public ReadQueue {
public:
    SpoilingQueue(std::unique_ptr<ReadQueue> ring, Spoil spoil, int submits_left)
        : ring_(std::move(ring)), spoil_(std::move(spoil)), submits_left_(submits_left) {}
    void push(const ReadRequest& request) override {
        if (requests_.size() <= request.tag) requests_.resize(request.tag + 1);
        requests_[request.tag] = request;
        ring_->push(request);
    }
    Status submit() override {
        if (submits_left_-- > 0) return ring_->submit();
        return system_failure(ErrorCode::read_failed, "io_uring_enter", ENOMEM);
    }
    void wait() override { ring_->wait(); }
    std::optional<ReadCompletion> pop() override {
        std::optional<ReadCompletion> completion = ring_->pop();
        if (completion) spoil_(requests_[completion->tag], *completion);
        return completion;
    }
    unsigned in_flight() const override { return ring_->in_flight(); }

private:
    std::unique_ptr<ReadQueue> ring_;
    Spoil spoil_;
    std::vector<ReadRequest> requests_;
    int submits_left_;
};

struct Case {
    std::vector<unsigned char> bytes = pattern(12 * kChunk + 1000);
    TemporaryFile file{bytes};
    Result<Arena> arena = Arena::create(bytes.size(), ArenaKind::memfd);
    LoadOptions options;

    Case() {
        options.backend = Backend::io_uring;
        options.threads = 2;
        options.queue_depth = 6;
        options.block_bytes = kBlock;
    }
    void spoil(Spoil how, int submits = 1 << 30) {
        options.open_queue = [how = std::move(how), submits](unsigned depth) -> Result<std::unique_ptr<ReadQueue>> {
            auto ring = open_ring(depth);
            if (!ring) return ring.error();
            return std::unique_ptr<ReadQueue>(new SpoilingQueue(std::move(ring.value()), how, submits));
        };
    }
    std::vector<Segment> segments() const {
        std::vector<Segment> found;
        for (std::size_t at = 0; at < bytes.size(); at += kChunk) {
            const std::size_t length = std::min(kChunk, bytes.size() - at);
            found.push_back({file.path(), at, length, at, crc32c(bytes.data() + at, length)});
        }
        return found;
    }
    Result<std::unique_ptr<LoadJob>> start() const {
        return LoadJob::start(arena.value().mapping(), segments(), options);
    }
    Result<LoadReport> load() const {
        auto job = start();
        if (!job) return job.error();
        EXPECT(job.value()->wait_for(30s));
        return job.value()->result();
    }
    bool is_loaded() const {
        return std::memcmp(arena.value().mapping()->data(), bytes.data(), bytes.size()) == 0;
    }
};

// A machine whose kernel or sandbox has no io_uring has nothing to test here, and says so.
bool has_ring() {
    static const bool is_there = [] {
        const auto ring = open_ring(4);
        if (!ring.ok()) std::printf("no io_uring here: %s\n", ring.error().message.c_str());
        return ring.ok();
    }();
    return is_there;
}

}  // namespace

#define RING_TEST(name)            \
    static void name##_on_a_ring(); \
    TEST(name) {                   \
        if (has_ring()) name##_on_a_ring(); \
    }                              \
    static void name##_on_a_ring()

RING_TEST(a_ring_reads_every_byte) {
    for (const bool registered : {false, true})
        for (const unsigned depth : {1U, 3U, 64U}) {
            Case c;
            c.options.registered = registered;
            c.options.queue_depth = depth;
            const auto report = c.load();
            EXPECT(report.ok() && c.is_loaded());
            EXPECT(report.ok() && report.value().backend == "io_uring" && report.value().read_again.empty());
            EXPECT(report.ok() && report.value().checksum_seconds > 0 &&
                   report.value().cpu_seconds >= report.value().checksum_seconds);
        }
}

RING_TEST(short_completions_are_continued) {
    for (const std::int64_t most : {4096, 5000, 1}) {
        Case c;
        c.spoil([most](const ReadRequest& request, ReadCompletion& completion) {
            if (completion.outcome <= most) return;
            std::memset(request.into + most, 0xAA, static_cast<std::size_t>(completion.outcome - most));
            completion.outcome = most;
        });
        const auto report = c.load();
        EXPECT(report.ok() && c.is_loaded() && report.value().read_again.empty());
    }
}

RING_TEST(refusals_of_a_ring_are_read_by_calls) {
    for (const int error : {EINTR, EAGAIN, EINVAL, EOPNOTSUPP, ECANCELED}) {
        Case c;
        c.spoil([error, seen = 0](const ReadRequest& request, ReadCompletion& completion) mutable {
            if (++seen % 3 != 0 || completion.outcome < 0) return;
            std::memset(request.into, 0xAA, request.length);
            completion.outcome = -error;
        });
        const auto report = c.load();
        EXPECT(report.ok() && c.is_loaded() && report.value().read_again.empty());
    }
}

RING_TEST(what_a_device_fails_once_is_read_again) {
    for (const bool flips : {false, true}) {
        Case c;
        auto faults = std::make_shared<std::atomic<int>>(1);
        c.spoil([flips, faults](const ReadRequest& request, ReadCompletion& completion) {
            if (faults->fetch_sub(1) <= 0) return;
            if (flips) request.into[request.length - 1] ^= std::byte{0x10};
            else completion.outcome = -EIO;
        });
        const auto report = c.load();
        EXPECT(report.ok() && c.is_loaded());
        EXPECT(report.ok() && report.value().read_again.size() == 1);
    }
}

RING_TEST(what_stays_wrong_fails_the_load_and_is_named) {
    Case c;
    std::vector<Segment> segments = c.segments();
    segments[5].crc32c = *segments[5].crc32c ^ 1;
    auto job = LoadJob::start(c.arena.value().mapping(), segments, c.options);
    EXPECT(job.ok() && job.value()->wait_for(30s));
    const auto report = job.value()->result();
    EXPECT(!report.ok() && report.error().code == ErrorCode::checksum_mismatch && report.error().chunk == 5U);
    EXPECT(job.value()->prefix_bytes() <= 5 * kChunk);
}

RING_TEST(a_file_cut_under_a_load_is_truncated) {
    Case c;
    auto is_cut = std::make_shared<std::atomic<bool>>(false);
    const std::string path = c.file.path();
    c.spoil([is_cut, path](const ReadRequest&, ReadCompletion&) {
        if (!is_cut->exchange(true)) EXPECT(::truncate(path.c_str(), 2 * kChunk + 100) == 0);
    });
    c.options.queue_depth = 1;
    c.options.threads = 1;
    const auto report = c.load();
    EXPECT(!report.ok() && report.error().code == ErrorCode::file_truncated && report.error().path == path);
}

RING_TEST(a_ring_that_breaks_on_the_way_is_left_for_calls) {
    for (const int submits : {0, 1, 2, 5}) {
        Case c;
        c.spoil([](const ReadRequest&, ReadCompletion&) {}, submits);
        const auto report = c.load();
        EXPECT(report.ok() && c.is_loaded());
        EXPECT(report.ok() && report.value().backend == "mixed");
    }
}

TEST(a_machine_without_rings_reads_with_threads) {
    Case c;
    c.options.open_queue = [](unsigned) -> Result<std::unique_ptr<ReadQueue>> {
        return system_failure(ErrorCode::read_failed, "io_uring_setup", EPERM);
    };
    auto job = c.start();
    EXPECT(!job.ok() && job.error().system_error == EPERM);  // io_uring was asked for
    c.options.backend = Backend::automatic;
    job = c.start();
    EXPECT(job.ok() && job.value()->wait_for(30s) && job.value()->result().ok() && c.is_loaded());
    EXPECT(job.value()->backend() == "threads" && !job.value()->why_no_ring().empty());
}

RING_TEST(a_second_ring_that_is_refused_leaves_the_first) {
    Case c;
    auto opened = std::make_shared<int>(0);
    c.options.open_queue = [opened](unsigned depth) -> Result<std::unique_ptr<ReadQueue>> {
        if (++*opened > 1) return system_failure(ErrorCode::read_failed, "io_uring_setup", ENOMEM);
        return open_ring(depth);
    };
    const auto report = c.load();
    EXPECT(report.ok() && c.is_loaded() && report.value().backend == "io_uring");
}

RING_TEST(a_ring_can_be_dropped_with_reads_in_flight) {
    for (int round = 0; round < 20; ++round) {
        Case c;
        auto job = c.start();
        EXPECT(job.ok());
        if (round % 2 == 0) job.value()->cancel();
        if (round % 3 == 0) (void)job.value()->wait_prefix_for(kChunk, 30s);
    }
}

RING_TEST(what_is_urgent_comes_first) {
    Case c;
    auto offsets = std::make_shared<std::vector<std::uint64_t>>();
    std::atomic<bool> may_go{false};
    c.options.threads = c.options.queue_depth = 1;
    c.spoil([&, offsets](const ReadRequest& request, ReadCompletion&) {
        may_go.wait(false);
        offsets->push_back(request.offset);
    });
    auto job = c.start();
    job.value()->prioritize(8);
    may_go = true;
    may_go.notify_all();
    EXPECT(job.value()->wait_for(30s) && job.value()->result().ok() && c.is_loaded());
    // One block may have been asked for before.
    EXPECT((*offsets)[1] >= 8 * kChunk);
}

RING_TEST(a_forked_child_leaves_its_parents_load_alone) {
    Case c;
    std::atomic<bool> may_go{false};
    c.spoil([&](const ReadRequest&, ReadCompletion&) { may_go.wait(false); });
    auto job = c.start();
    const pid_t child = ::fork();
    if (child == 0) {
        job.value().reset();
        ::_exit(0);
    }
    int status = -1;
    EXPECT(::waitpid(child, &status, 0) == child && status == 0);
    may_go = true;
    may_go.notify_all();
    EXPECT(job.value()->wait_for(30s) && job.value()->result().ok() && c.is_loaded());
}

namespace {

// Keeps the first completion back until it is told to let go.
class HoldingQueue final : public ReadQueue {
public:
    HoldingQueue(std::unique_ptr<ReadQueue> ring, std::atomic<bool>& may_go) : ring_(std::move(ring)), may_go_(may_go) {}
    void push(const ReadRequest& request) override { ring_->push(request); }
    Status submit() override { return ring_->submit(); }
    void wait() override {
        if (ring_->in_flight() > 0) return ring_->wait();
        may_go_.wait(false);
    }
    std::optional<ReadCompletion> pop() override {
        std::optional<ReadCompletion> completion = ring_->pop();
        if (completion && !has_held_) {
            has_held_ = true;
            held_ = std::exchange(completion, ring_->pop());
        }
        return completion || !may_go_ ? completion : std::exchange(held_, std::nullopt);
    }
    unsigned in_flight() const override { return ring_->in_flight() + (held_ ? 1 : 0); }

private:
    std::unique_ptr<ReadQueue> ring_;
    std::atomic<bool>& may_go_;
    bool has_held_ = false;
    std::optional<ReadCompletion> held_;
};

}  // namespace

RING_TEST(one_slow_request_holds_up_only_its_own_chunk) {
    Case c;
    std::atomic<bool> may_go{false};
    c.options.threads = 1;
    c.options.queue_depth = 4;
    c.options.open_queue = [&](unsigned depth) -> Result<std::unique_ptr<ReadQueue>> {
        auto ring = open_ring(depth);
        if (!ring) return ring.error();
        return std::unique_ptr<ReadQueue>(new HoldingQueue(std::move(ring.value()), may_go));
    };
    std::vector<std::uint64_t> lengths;
    for (const Segment& segment : c.segments()) lengths.push_back(segment.length);
    auto board = ProgressBoard::create(lengths);
    c.options.board = board.value();
    auto job = c.start();
    for (std::size_t chunk = 1; chunk < lengths.size(); ++chunk) EXPECT(board.value()->wait_chunk_for(chunk, 30s));
    EXPECT(!board.value()->is_chunk_done(0) && board.value()->prefix_bytes() == 0);
    may_go = true;
    may_go.notify_all();
    EXPECT(job.value()->wait_for(30s) && job.value()->result().ok() && c.is_loaded());
}
