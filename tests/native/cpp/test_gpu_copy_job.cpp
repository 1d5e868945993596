// Copies to a GPU on several threads, against the stand-in of the driver: its memory is the host's, so that the
// sanitizers see every byte that moves. No GPU is involved.
#include <cstdlib>
#include <cstring>
#include <thread>

#include "arena.hpp"
#include "check.hpp"
#include "cuda_driver.hpp"
#include "gpu_copy_job.hpp"
#include "gpu_device.hpp"
#include "gpu_pinning.hpp"
#include "progress_board.hpp"
#include "temporary_file.hpp"

using namespace firstlight;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t kGpuChunk = 1 << 20;
constexpr std::uint64_t kGpuBytes = 12 * kGpuChunk;

std::shared_ptr<const CudaDriver> standin_driver() {
    ::setenv("STANDIN_CUDA_DELAY_US", "300", 0);
    auto driver = CudaDriver::open(FIRSTLIGHT_CUDA_STANDIN);
    EXPECT(driver.ok());
    return driver.value();
}

struct GpuCase {
    std::vector<unsigned char> bytes = pattern(kGpuBytes);
    std::shared_ptr<const GpuDevice> device = GpuDevice::open(standin_driver(), 0).value();
    Result<Arena> arena = Arena::create(kGpuBytes, ArenaKind::memfd);
    std::shared_ptr<GpuMemory> memory = GpuMemory::allocate(device, kGpuBytes).value();
    std::shared_ptr<ProgressBoard> source_board = new_board();
    std::shared_ptr<ProgressBoard> board = new_board();
    std::shared_ptr<GpuPinning> pinning;

    static std::shared_ptr<ProgressBoard> new_board() {
        return ProgressBoard::create(std::vector<std::uint64_t>(kGpuBytes / kGpuChunk, kGpuChunk)).value();
    }
    std::unique_ptr<GpuCopyJob> start(bool follows) {
        std::vector<GpuChunk> chunks;
        for (std::uint64_t at = 0; at < kGpuBytes; at += kGpuChunk)
            chunks.push_back({at, at, kGpuChunk, at / kGpuChunk, at + kGpuChunk});
        GpuCopyOptions options;
        options.streams = 3;
        options.bounce_bytes = 2 << 20;
        options.piece_bytes = 700'000;
        auto job = GpuCopyJob::start(memory, arena.value().mapping(), chunks, follows ? source_board : nullptr, board,
                                     pinning, options);
        EXPECT(job.ok());
        return std::move(job.value());
    }
    void put(std::uint64_t at) { std::memcpy(arena.value().mapping()->data() + at, bytes.data() + at, kGpuChunk); }
    bool is_copied() const {
        std::vector<unsigned char> found(kGpuBytes);
        return memory->read(0, kGpuBytes, found.data()).ok() && found == bytes;
    }
};

}  // namespace

TEST(a_gpu_copy_follows_the_bytes_and_the_pinning_meanwhile) {
    GpuCase c;
    c.pinning = GpuPinning::start(c.device, c.arena.value().mapping(), 4 << 20).value();
    auto job = c.start(true);
    for (std::uint64_t at = 0; at < kGpuBytes; at += kGpuChunk) {
        c.put(at);
        EXPECT(c.source_board->mark_done(at / kGpuChunk).ok());
    }
    EXPECT(job->wait_for(30s) && job->result().ok());
    EXPECT(c.is_copied() && c.board->is_ended() && !c.board->has_failed());
    EXPECT(job->result().value().size_bytes() == kGpuBytes);
}

TEST(a_gpu_copy_by_the_ring_never_uses_a_slot_too_early) {
    GpuCase c;
    for (std::uint64_t at = 0; at < kGpuBytes; at += kGpuChunk) c.put(at);
    auto job = c.start(false);
    EXPECT(job->wait_for(30s) && job->result().ok());
    EXPECT(c.is_copied() && job->result().value().bounced_bytes == kGpuBytes);
}

TEST(a_gpu_copy_is_cancelled_from_another_thread_at_any_time) {
    for (int round = 0; round < 8; ++round) {
        GpuCase c;
        for (std::uint64_t at = 0; at < kGpuBytes; at += kGpuChunk) c.put(at);
        auto job = c.start(false);
        std::jthread other([&] {
            while (job->bytes_done() < static_cast<std::uint64_t>(round) * kGpuChunk && !job->is_done())
                std::this_thread::yield();
            job->cancel();
        });
        EXPECT(job->wait_for(30s));
        const auto result = job->result();
        EXPECT(result.ok() ? c.is_copied() : result.error().code == ErrorCode::cancelled && c.board->has_failed());
    }
}

TEST(a_gpu_copy_that_is_dropped_leaves_nothing_running) {
    GpuCase c;
    auto job = c.start(true);
    c.put(0);
    EXPECT(c.source_board->mark_done(0).ok());
    job.reset();
    EXPECT(c.board->has_failed() || c.board->bytes_done() == kGpuChunk);
}
