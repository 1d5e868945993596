// Reads segments of files into memory on threads of its own, verifying each as it passes.
//
//   files      partition-0.bin  |--seg 0--|--seg 1--|--seg 2--|
//   memory     arena            ....|--seg 0--|--seg 1--|--seg 2--|....
//                                   <- prefix ->        ^ bytes_done counts this one too, prefix waits for seg 1
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "event.hpp"
#include "mapping.hpp"
#include "progress_board.hpp"
#include "result.hpp"
#include "source_file.hpp"

namespace firstlight {

struct Segment {
    std::string path;
    std::uint64_t file_offset = 0;
    std::uint64_t length = 0;
    std::uint64_t arena_offset = 0;
    std::optional<std::uint32_t> crc32c;  // not verified when absent
};

struct LoadOptions {
    unsigned threads = 4;
    bool direct = true;     // O_DIRECT where the file system takes it
    bool populate = false;  // make each segment's memory resident just before it is read
    std::shared_ptr<ProgressBoard> board;  // to mark, one chunk per segment; the job makes its own when null
    PositionalRead read = nullptr;  // ::pread when null
};

struct LoadReport {
    std::uint64_t size_bytes = 0;
    double seconds = 0;
    std::string io_mode;
    std::vector<std::uint64_t> read_again;  // indices of segments that failed once and passed the second time
};

class LoadJob {
public:
    // Validates every segment, opens every file, starts the threads. Segments begin in the given order.
    static Result<std::unique_ptr<LoadJob>> start(std::shared_ptr<Mapping> memory, std::vector<Segment> segments,
                                                  const LoadOptions& options);
    LoadJob(const LoadJob&) = delete;
    LoadJob& operator=(const LoadJob&) = delete;
    ~LoadJob();  // cancels and waits for the reads under way

    std::uint64_t bytes_total() const { return bytes_total_; }
    std::uint64_t bytes_done() const { return board_->bytes_done(); }
    std::uint64_t prefix_bytes() const { return board_->prefix_bytes(); }  // verified without a hole, counted along the list of segments
    bool is_done() const;
    const char* io_mode() const;  // "direct", "buffered" or "mixed"
    int event_fd() const { return finished_event_.fd(); }
    void cancel() { stop_.store(true); }

    // True once finished (well or not) within the time; no timeout waits for ever.
    bool wait_for(std::chrono::nanoseconds timeout) const;
    // True once the first `bytes` are there; false at the timeout or when the job ended without them.
    bool wait_prefix_for(std::uint64_t bytes, std::chrono::nanoseconds timeout) const;
    // Only when is_done().
    Result<LoadReport> result() const;

private:
    LoadJob(std::shared_ptr<Mapping> memory, std::vector<Segment> segments, const LoadOptions& options);

    Status adopt_board(std::shared_ptr<ProgressBoard> board);
    Status open_files(const LoadOptions& options);
    Status check_segments() const;
    void work();
    Status load(std::size_t index);
    Status load_once(std::size_t index);
    void fail(std::size_t index, Error error);
    void leave();

    const std::shared_ptr<Mapping> memory_;
    const std::vector<Segment> segments_;
    const bool populate_;
    std::vector<SourceFile> files_;
    std::vector<std::size_t> file_of_;  // per segment: index into files_
    std::uint64_t bytes_total_ = 0;
    std::shared_ptr<ProgressBoard> board_;

    std::atomic<bool> stop_{false};
    std::atomic<std::size_t> next_{0};

    mutable std::mutex mutex_;  // guards all below
    mutable std::condition_variable changed_;
    std::size_t workers_left_ = 0;
    bool finished_ = false;
    std::optional<Error> error_;
    LoadReport report_;

    Event finished_event_;
    const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
    std::vector<std::jthread> pool_;  // last: its threads end before anything they use
};

}  // namespace firstlight
