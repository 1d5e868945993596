// Reads segments of files into memory on threads of its own, verifying each as it passes.
//
//   files      partition-0.bin  |--seg 0--|--seg 1--|--seg 2--|
//   memory     arena            ....|--seg 0--|--seg 1--|--seg 2--|....
//                                   <- prefix ->        ^ bytes_done counts this one too, prefix waits for seg 1
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "event.hpp"
#include "load_options.hpp"
#include "load_task.hpp"
#include "mapping.hpp"
#include "result.hpp"

namespace firstlight {

class LoadJob {
public:
    // Validates every segment, opens every file, starts the threads. Segments begin in the given order.
    static Result<std::unique_ptr<LoadJob>> start(std::shared_ptr<Mapping> memory, std::vector<Segment> segments,
                                                  const LoadOptions& options);
    LoadJob(const LoadJob&) = delete;
    LoadJob& operator=(const LoadJob&) = delete;
    // Cancels and waits for the reads under way. In a forked child, which has the object but not its threads,
    // it does nothing at all.
    ~LoadJob();

    std::int64_t first_read_ns() const { return task_->first_read_ns(); }
    std::uint64_t bytes_total() const { return task_->board().bytes_total(); }
    std::uint64_t bytes_done() const { return task_->board().bytes_done(); }
    std::uint64_t prefix_bytes() const { return task_->board().prefix_bytes(); }
    std::size_t segments() const { return task_->segments().size(); }
    bool is_done() const;
    const char* io_mode() const { return task_->io_mode(); }
    std::string first_buffered() const { return task_->first_buffered(); }
    std::string_view backend() const;  // "io_uring", "threads", or "mixed" once a ring was lost
    const std::string& why_no_ring() const { return why_no_ring_; }  // "" unless threads were the second choice
    int event_fd() const { return finished_event_.fd(); }
    void cancel() { task_->stop(); }
    void pause() { task_->pause(); }
    void resume() { task_->resume(); }
    void prioritize(std::size_t segment) { task_->prioritize(segment); }

    // True once finished (well or not) within the time.
    bool wait_for(std::chrono::nanoseconds timeout) const;
    // True once the first `bytes` are there; false at the timeout or when the job ended without them.
    bool wait_prefix_for(std::uint64_t bytes, std::chrono::nanoseconds timeout) const {
        return task_->board().wait_prefix_for(bytes, timeout);
    }
    // Only when is_done().
    Result<LoadReport> result() const;

private:
    explicit LoadJob(std::unique_ptr<LoadTask> task);

    Status open_queues(const LoadOptions& options, const Mapping& memory);
    Status start_threads(const LoadOptions& options);
    template <class Work>
    Status start_thread(Work work);
    void leave(double cpu_seconds);

    const pid_t process_;
    const std::unique_ptr<LoadTask> task_;
    std::vector<std::unique_ptr<ReadQueue>> queues_;  // until each is its worker's
    unsigned depth_ = 0;
    bool has_ring_ = false;
    std::string why_no_ring_;
    std::atomic<bool> has_lost_ring_{false};

    mutable std::mutex mutex_;  // guards all below
    mutable std::condition_variable changed_;
    std::size_t workers_left_ = 0;
    bool finished_ = false;
    LoadReport report_;

    Event finished_event_;
    const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
    std::vector<std::jthread> pool_;  // last: its threads end before anything they use
};

}  // namespace firstlight
