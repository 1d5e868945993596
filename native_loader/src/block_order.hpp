// Hands out the blocks of a plan, each once, to whichever worker is idle; what is urgent can be moved to the front.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>

namespace firstlight {

class BlockOrder {
public:
    explicit BlockOrder(std::size_t count) {
        if (count > 0) ranges_.push_back({0, count});
    }

    std::optional<std::size_t> take() {
        const std::lock_guard lock(mutex_);
        if (ranges_.empty()) return std::nullopt;
        Range& front = ranges_.front();
        const std::size_t index = front.begin++;
        if (front.begin == front.end) ranges_.pop_front();
        return index;
    }

    // Those from `first` on that nobody has taken come next, in order; the others after them, in theirs.
    void prioritize(std::size_t first) {
        const std::lock_guard lock(mutex_);
        std::deque<Range> urgent;
        std::deque<Range> rest;
        for (const Range& range : ranges_) {
            if (range.end > first) urgent.push_back({std::max(range.begin, first), range.end});
            if (range.begin < first) rest.push_back({range.begin, std::min(range.end, first)});
        }
        const auto by_index = [](const Range& a, const Range& b) { return a.begin < b.begin; };
        std::sort(urgent.begin(), urgent.end(), by_index);
        std::sort(rest.begin(), rest.end(), by_index);
        urgent.insert(urgent.end(), rest.begin(), rest.end());
        ranges_ = std::move(urgent);
    }

private:
    struct Range {
        std::size_t begin;
        std::size_t end;
    };

    std::mutex mutex_;  // taken once per block of megabytes
    std::deque<Range> ranges_;
};

}  // namespace firstlight
