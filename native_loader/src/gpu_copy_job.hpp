// Copies chunks from host memory to one GPU as they become there, on several streams and two threads of its own.
//
//   source board   |#|#|#|.|.|     what is in DRAM (or was before: no board)
//   issuer         waits for the next chunk, in order; hands it to a stream; never more than `depth` in flight
//   reaper         waits for the oldest copy; marks it
//   device board   |#|.|.|.|.|     what is on the GPU
//
// A copy is taken straight from registered memory. Memory that is not registered (yet) goes by way of a small ring
// that is; where not even that is granted, the driver is given pageable memory. Slower, and the same bytes.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "event.hpp"
#include "gpu_device.hpp"
#include "gpu_pinning.hpp"
#include "gpu_streams.hpp"
#include "mapping.hpp"
#include "progress_board.hpp"
#include "result.hpp"

namespace firstlight {

struct GpuChunk {
    std::uint64_t source_offset = 0;
    std::uint64_t device_offset = 0;
    std::uint64_t length = 0;
    std::uint64_t index = 0;                // on the device board
    std::uint64_t source_prefix_bytes = 0;  // how far the source board must be for it to be there
};

struct GpuCopyOptions {
    unsigned streams = 2;
    unsigned depth = 6;                                     // copies in flight
    std::uint64_t piece_bytes = std::uint64_t{32} << 20;    // a longer chunk is cut
    std::uint64_t bounce_bytes = std::uint64_t{8} << 20;    // of one slot of the ring
};

struct GpuCopyReport {
    std::uint64_t pinned_bytes = 0;
    std::uint64_t bounced_bytes = 0;
    std::uint64_t pageable_bytes = 0;
    double seconds = 0;          // from the start to the last byte on the GPU
    double waited_s = 0;         // of those, for the source
    std::uint64_t size_bytes() const { return pinned_bytes + bounced_bytes + pageable_bytes; }
};

class GpuCopyJob {
public:
    // `source_board` null: the bytes are there. `board` is this job's to mark, and shared with the jobs of a
    // checkpoint's other partitions. `pinning` null, or of another mapping: nothing is registered.
    static Result<std::unique_ptr<GpuCopyJob>> start(std::shared_ptr<GpuMemory> target,
                                                     std::shared_ptr<Mapping> source, std::vector<GpuChunk> chunks,
                                                     std::shared_ptr<ProgressBoard> source_board,
                                                     std::shared_ptr<ProgressBoard> board,
                                                     std::shared_ptr<GpuPinning> pinning,
                                                     const GpuCopyOptions& options);
    GpuCopyJob(const GpuCopyJob&) = delete;
    GpuCopyJob& operator=(const GpuCopyJob&) = delete;
    ~GpuCopyJob();  // cancels and waits for the copies under way

    std::uint64_t bytes_total() const { return bytes_total_; }
    std::uint64_t bytes_done() const { return bytes_done_.load(std::memory_order_acquire); }
    bool is_done() const;
    int event_fd() const { return finished_event_.fd(); }
    void cancel() { stop_.store(true); }
    // True once ended, well or not: nothing reads the source or writes the target any more.
    bool wait_for(std::chrono::nanoseconds timeout) const;
    // Only when is_done().
    Result<GpuCopyReport> result() const;

private:
    GpuCopyJob(std::shared_ptr<GpuMemory> target, std::shared_ptr<Mapping> source, std::vector<GpuChunk> chunks,
               std::shared_ptr<ProgressBoard> source_board, std::shared_ptr<ProgressBoard> board,
               std::shared_ptr<GpuPinning> pinning, const GpuCopyOptions& options);

    struct InFlight {
        std::uint64_t length = 0;
        std::uint64_t chunk = 0;  // index on the boards
        bool is_last = false;     // of its chunk
    };

    Status check_chunks() const;
    Status open_ring();
    void issue();
    Status issue_all();
    Status await_source(const GpuChunk& chunk);
    Status issue_chunk(const GpuChunk& chunk);
    Status issue_piece(std::uint64_t from, std::uint64_t to, InFlight piece);
    const std::byte* staged(std::uint64_t from, std::uint64_t length, std::size_t slot);
    std::uint64_t piece_length(std::uint64_t from, std::uint64_t left);
    void open_bounce();
    Status await_slot();
    void reap();
    Status reap_one(std::uint64_t number);
    void remember(const Error& error);
    void finish();

    const std::shared_ptr<GpuMemory> target_;
    const std::shared_ptr<Mapping> source_;
    const std::vector<GpuChunk> chunks_;
    const std::shared_ptr<ProgressBoard> source_board_;
    const std::shared_ptr<ProgressBoard> board_;
    const std::shared_ptr<GpuPinning> pinning_;
    const GpuCopyOptions options_;
    std::uint64_t bytes_total_ = 0;

    std::optional<GpuStreams> ring_;            // streams, and an event for each copy in flight
    std::shared_ptr<Mapping> bounce_;           // the issuer's alone; null until needed
    std::shared_ptr<GpuPinning> bounce_pinning_;
    bool is_bounce_refused_ = false;

    std::atomic<bool> stop_{false};
    std::atomic<std::uint64_t> bytes_done_{0};

    mutable std::mutex mutex_;  // guards all below
    mutable std::condition_variable changed_;
    std::vector<InFlight> in_flight_;  // ring of `depth`, by number of the copy
    std::uint64_t issued_ = 0;
    std::uint64_t reaped_ = 0;
    bool is_issuing_ = true;
    bool finished_ = false;
    std::optional<Error> error_;
    GpuCopyReport report_;

    Event finished_event_;
    const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
    std::jthread reaper_;  // last: the threads end before anything they use
    std::jthread issuer_;
};

}  // namespace firstlight
