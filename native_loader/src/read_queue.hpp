// Reads that are asked for now and come back later, in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "result.hpp"

namespace firstlight {

struct ReadRequest {
    int fd;
    std::byte* into;
    std::uint64_t length;
    std::uint64_t offset;
    std::uint64_t tag;  // the asker's own, given back with the completion
};

struct ReadCompletion {
    std::uint64_t tag;
    std::int64_t outcome;  // bytes read, fewer than asked for too; or a negated errno
};

// Used by one thread at a time. The memory of a request belongs to the queue until its completion is popped.
class ReadQueue {
public:
    virtual ~ReadQueue() = default;
    // The caller keeps no more than the queue's depth between push() and pop().
    virtual void push(const ReadRequest& request) = 0;
    // Gives what was pushed to the kernel. After an error the queue takes no more; what was not accepted never
    // comes back, what was still does.
    virtual Status submit() = 0;
    // Sleeps until pop() has an answer. Only when in_flight() > 0.
    virtual void wait() = 0;
    virtual std::optional<ReadCompletion> pop() = 0;
    virtual unsigned in_flight() const = 0;  // accepted by the kernel and not popped
};

using OpenReadQueue = std::function<Result<std::unique_ptr<ReadQueue>>(unsigned depth)>;

}  // namespace firstlight
