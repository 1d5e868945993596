#include "read_plan.hpp"

#include <algorithm>

namespace firstlight {
namespace {

std::uint64_t align_down(std::uint64_t value) { return value / kDirectAlignmentBytes * kDirectAlignmentBytes; }

// The end of the block that begins at `at`, both in the file.
std::uint64_t block_end(std::uint64_t at, std::uint64_t end, std::uint64_t block_bytes, bool can_be_direct) {
    const std::uint64_t limit = end - at > block_bytes ? at + block_bytes : end;
    if (!can_be_direct) return limit;
    if (at % kDirectAlignmentBytes != 0) return std::min(limit, align_down(at) + kDirectAlignmentBytes);
    return align_down(limit) > at ? align_down(limit) : limit;
}

}  // namespace

ReadPlan plan_reads(const std::vector<Segment>& segments, const BlockSizes& sizes) {
    std::uint64_t left = 0;
    for (const Segment& segment : segments) left += segment.length;
    const std::uint64_t small_bytes = std::max(align_down(sizes.block_bytes / 4), kDirectAlignmentBytes);
    ReadPlan plan;
    for (std::size_t index = 0; index < segments.size(); ++index) {
        const Segment& segment = segments[index];
        const std::uint64_t end = segment.file_offset + segment.length;
        const bool can_be_direct = segment.file_offset % kDirectAlignmentBytes == segment.arena_offset % kDirectAlignmentBytes;
        plan.first_block.push_back(plan.blocks.size());
        for (std::uint64_t at = segment.file_offset; at < end;) {
            const std::uint64_t block_bytes = left > sizes.tail_bytes ? sizes.block_bytes : small_bytes;
            const std::uint64_t stop = block_end(at, end, block_bytes, can_be_direct);
            const bool is_aligned = can_be_direct && at % kDirectAlignmentBytes == 0 && stop % kDirectAlignmentBytes == 0;
            plan.blocks.push_back({index, at - segment.file_offset, stop - at, is_aligned});
            left -= stop - at;
            at = stop;
        }
    }
    plan.first_block.push_back(plan.blocks.size());
    return plan;
}

}  // namespace firstlight
