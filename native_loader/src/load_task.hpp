// What the workers of one load share: which block is next, what became of each, which segments are whole.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "block_order.hpp"
#include "load_options.hpp"
#include "mapping.hpp"
#include "progress_board.hpp"
#include "read_plan.hpp"
#include "result.hpp"
#include "source_file.hpp"

namespace firstlight {

class LoadTask {
public:
    // Validates every segment and opens every file.
    static Result<std::unique_ptr<LoadTask>> create(std::shared_ptr<Mapping> memory, std::vector<Segment> segments,
                                                    const LoadOptions& options);
    ~LoadTask();  // fails the board unless all is there
    LoadTask(const LoadTask&) = delete;
    LoadTask& operator=(const LoadTask&) = delete;

    const std::vector<Segment>& segments() const { return segments_; }
    ProgressBoard& board() const { return *board_; }
    bool is_all_there() const { return board_->bytes_done() == board_->bytes_total(); }
    std::size_t direct_files() const;
    std::string first_buffered() const;  // path of the first file that is not read directly, "" if none
    const char* io_mode() const;  // "direct", "buffered" or "mixed"

    void stop() {
        stop_.store(true);
        resume();  // workers that were held find out
    }
    bool is_stopped() const { return stop_.load(); }
    // Workers finish the blocks that they have, and take no other until resume().
    void pause() {
        paused_.store(true);
        if (is_stopped()) resume();  // a stop that came between must not be waited for
    }
    void resume() {
        paused_.store(false);
        paused_.notify_all();
    }
    // Segments from this one on are read before the others.
    void prioritize(std::size_t segment) { order_.prioritize(plan_.first_block[segment]); }

    // The next block for an idle worker, waited for while paused; nothing when none is left or it was stopped.
    std::optional<std::size_t> take() {
        while (paused_.load() && !is_stopped()) paused_.wait(true);
        return is_stopped() ? std::nullopt : order_.take();
    }
    // The request that a queue can serve, or nothing: then read_now().
    std::optional<ReadRequest> request_for(std::size_t block) const;
    // Reads the block's bytes from `done` on, in the calling thread.
    Status read_now(std::size_t block, std::uint64_t done);
    // A read goes to the kernel now.
    void note_read() {
        if (first_read_ns_.load(std::memory_order_relaxed) != 0) return;
        std::int64_t none = 0;
        const auto now = std::chrono::system_clock::now().time_since_epoch();
        first_read_ns_.compare_exchange_strong(none, std::chrono::nanoseconds(now).count());
    }
    // Unix time of the first read, in nanoseconds; 0 before it.
    std::int64_t first_read_ns() const { return first_read_ns_.load(); }
    // To be called once per block: sums it, and completes its segment with the last. A segment that came out
    // wrong is read again here, once.
    void finish(std::size_t block, const Status& status);
    // Makes the memory of the segments resident, in their order. A read that comes first takes the faults itself.
    void populate();

    // What went wrong, once all workers have left.
    std::optional<Error> outcome() const;
    std::vector<std::uint64_t> read_again() const;
    double checksum_seconds() const { return static_cast<double>(checksum_ns_.load()) * 1e-9; }

private:
    LoadTask(std::shared_ptr<Mapping> memory, std::vector<Segment> segments, const LoadOptions& options);

    Status adopt_board(std::shared_ptr<ProgressBoard> board);
    Status open_files(const LoadOptions& options);
    bool is_verified(std::size_t segment) const { return verify_ && segments_[segment].crc32c; }
    std::byte* memory_of(const Block& block) const;
    void sum(std::size_t block);
    void finish_segment(std::size_t segment);
    Status read_segment_again(std::size_t segment);
    Status verify(std::size_t segment) const;
    void fail(std::size_t segment, Error error);

    const std::shared_ptr<Mapping> memory_;
    const std::vector<Segment> segments_;
    const ReadPlan plan_;
    const bool verify_;
    std::vector<SourceFile> files_;
    std::vector<std::size_t> file_of_;  // per segment: index into files_
    std::shared_ptr<ProgressBoard> board_;

    BlockOrder order_;
    std::atomic<bool> stop_{false};
    std::atomic<bool> paused_{false};
    std::atomic<std::size_t> next_populated_{0};
    std::atomic<std::uint64_t> checksum_ns_{0};
    std::atomic<std::int64_t> first_read_ns_{0};
    std::vector<std::uint32_t> block_crc32c_;
    std::vector<std::atomic<std::size_t>> blocks_left_;    // per segment
    std::vector<std::atomic<bool>> must_be_read_again_;  // per segment

    mutable std::mutex mutex_;  // guards all below
    std::optional<Error> error_;
    std::vector<std::uint64_t> read_again_;
};

}  // namespace firstlight
