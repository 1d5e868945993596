#include "load_worker.hpp"

#include <algorithm>
#include <cerrno>
#include <deque>
#include <optional>
#include <vector>

namespace firstlight {
namespace {

class QueueReader {
public:
    QueueReader(LoadTask& task, ReadQueue& queue, unsigned depth)
        : task_(task), queue_(queue), slots_(depth), window_(std::clamp(depth / 4, std::min(depth, 2U), depth)) {
        for (std::size_t slot = depth; slot > 0; --slot) free_.push_back(slot - 1);
    }

    // True when no block is left, false when the queue broke. Either way nothing is in flight any more.
    bool run() {
        while (true) {
            ask();
            if (!queue_.submit().ok()) return give_up();
            // The device has its next reads: now there is time to sum one block that it has delivered, and then to
            // look again, so that a thread that gets little of its core still keeps the queue full.
            if (!answers_.empty())
                settle();
            else if (queue_.in_flight() > 0)
                queue_.wait();
            else
                return true;
            collect();
        }
    }

private:
    struct Slot {
        ReadRequest request{};   // what is still missing of the block
        std::size_t block = 0;
        std::uint64_t done = 0;  // bytes of it that have come
        bool is_busy = false;
    };
    struct Answer {
        std::size_t block;
        std::uint64_t done;
        std::int64_t outcome;  // of its last read
        bool is_whole;
    };

    void ask() {
        while (slots_.size() - free_.size() < window_ && answers_.size() < slots_.size()) {
            const std::optional<std::size_t> block = task_.take();
            if (!block) return;
            std::optional<ReadRequest> request = task_.request_for(*block);
            if (!request) {
                answers_.push_back({*block, 0, 0, false});  // to be read by a call, like any that the queue leaves
                continue;
            }
            const std::size_t slot = free_.back();
            free_.pop_back();
            request->tag = slot;
            slots_[slot] = {*request, *block, 0, true};
            task_.note_read();
            queue_.push(*request);
        }
    }

    // What has come so far.
    void collect() {
        while (const std::optional<ReadCompletion> completion = queue_.pop()) {
            Slot& slot = slots_[completion->tag];
            const auto got = static_cast<std::uint64_t>(std::max<std::int64_t>(completion->outcome, 0));
            slot.done += got;
            slot.request = {slot.request.fd, slot.request.into + got, slot.request.length - got,
                            slot.request.offset + got, slot.request.tag};
            const bool is_whole = slot.request.length == 0;
            // A short read that ends on the alignment goes on where it stopped.
            if (!is_whole && got > 0 && got % kDirectAlignmentBytes == 0 && !is_broken_) {
                queue_.push(slot.request);
                continue;
            }
            answers_.push_back({slot.block, slot.done, completion->outcome, is_whole});
            slot.is_busy = false;
            window_ = std::min(window_ + 1, slots_.size());
            free_.push_back(completion->tag);
        }
    }

    void settle() {
        const Answer answer = answers_.front();
        answers_.pop_front();
        if (answer.is_whole)
            task_.finish(answer.block, Done{});
        else if (answer.outcome == -EIO)  // the device has spoken; whatever else stopped a read, a call finds out
            task_.finish(answer.block, system_failure(ErrorCode::read_failed, "read", EIO));
        else
            task_.finish(answer.block, task_.read_now(answer.block, answer.done));
    }

    bool give_up() {
        is_broken_ = true;
        while (queue_.in_flight() > 0) {
            queue_.wait();
            collect();
        }
        for (const Slot& slot : slots_)
            if (slot.is_busy) answers_.push_back({slot.block, slot.done, 0, false});
        while (!answers_.empty()) settle();
        return false;
    }

    LoadTask& task_;
    ReadQueue& queue_;
    std::vector<Slot> slots_;
    std::vector<std::size_t> free_;
    std::deque<Answer> answers_;
    // A device serves all that it is asked for at once, so the first of many comes as late as the last: few are asked
    // for at first, and one more for each that comes. Never one alone: if that is slow, all would wait for it.
    std::size_t window_;
    bool is_broken_ = false;
};

}  // namespace

void read_by_calls(LoadTask& task) {
    while (const std::optional<std::size_t> block = task.take()) task.finish(*block, task.read_now(*block, 0));
}

bool read_by_queue(LoadTask& task, ReadQueue& queue, unsigned depth) {
    if (QueueReader(task, queue, depth).run()) return true;
    read_by_calls(task);
    return false;
}

}  // namespace firstlight
