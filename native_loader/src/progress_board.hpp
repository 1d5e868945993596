// Which chunks of an ordered list are there, in a small memory that other processes can watch.
//
//   Header | one byte per chunk        a sealed memfd, written by its creator alone, mapped read-only by watchers
//
// Every change bumps a futex word and wakes it. A wait is a system call that sleeps, never a loop that looks.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "file_descriptor.hpp"
#include "mapping.hpp"
#include "result.hpp"

namespace firstlight {

class ProgressBoard {
public:
    // In this process alone chunks can be marked. `lengths` are bytes; no chunks at all is a board that has ended.
    static Result<std::shared_ptr<ProgressBoard>> create(std::vector<std::uint64_t> lengths);
    // A watcher's view through the creator's read_only_fd(), which stays the caller's.
    static Result<std::shared_ptr<ProgressBoard>> attach(int fd);
    ProgressBoard(const ProgressBoard&) = delete;
    ProgressBoard& operator=(const ProgressBoard&) = delete;

    // A new descriptor for another process's attach().
    Result<FileDescriptor> read_only_fd() const;

    bool is_watcher() const { return creator_ == 0; }
    const std::vector<std::uint64_t>& lengths() const { return lengths_; }  // empty for a watcher
    std::size_t chunks() const;
    std::uint64_t bytes_total() const;
    std::uint64_t bytes_done() const;
    std::uint64_t prefix_bytes() const;  // done without a hole, counted along the list
    bool is_ended() const;               // all done, or failed
    bool has_failed() const;
    bool is_chunk_done(std::size_t index) const;  // false outside of the list

    // Idempotent, from any thread. The chunk's bytes must be in memory before. invalid_argument for a watcher, and
    // in a process forked from the creator's.
    Status mark_done(std::size_t index);
    // Nothing more will come. No effect once all chunks are done.
    Status fail();

    // True once it is there. False at the timeout, or when the board failed without it. A creator that was
    // killed never fails its board, so a watcher's caller must notice that death by other means.
    bool wait_prefix_for(std::uint64_t size_bytes, std::chrono::nanoseconds timeout) const;
    bool wait_chunk_for(std::size_t index, std::chrono::nanoseconds timeout) const;

private:
    struct Header;

    ProgressBoard(FileDescriptor fd, Mapping mapping, std::vector<std::uint64_t> lengths)
        : fd_(std::move(fd)), mapping_(std::move(mapping)), lengths_(std::move(lengths)) {}

    Status check_writer() const;
    Header& header() const;
    std::uint8_t& flag(std::size_t index) const;
    void advance_prefix();
    void announce();
    template <class IsThere>
    bool wait_until(IsThere is_there, std::chrono::nanoseconds timeout) const;

    FileDescriptor fd_;
    Mapping mapping_;
    std::vector<std::uint64_t> lengths_;
    pid_t creator_ = 0;  // 0: a watcher
    std::mutex mutex_;  // one writer at a time; readers take none
    std::size_t prefix_count_ = 0;
};

}  // namespace firstlight
