#include <set>
#include <vector>

#include "block_order.hpp"
#include "check.hpp"
#include "read_plan.hpp"

using namespace firstlight;

namespace {

constexpr BlockSizes kSizes{64 << 10, 128 << 10};

// Every byte of every segment once, in order, and what is said to be aligned is.
bool is_sound(const std::vector<Segment>& segments, const ReadPlan& plan) {
    std::size_t block = 0;
    for (std::size_t index = 0; index < segments.size(); ++index) {
        if (plan.first_block[index] != block) return false;
        std::uint64_t at = 0;
        for (; block < plan.first_block[index + 1]; ++block) {
            const Block& b = plan.blocks[block];
            if (b.segment != index || b.offset != at || b.length == 0 || b.length > kSizes.block_bytes) return false;
            if (b.is_aligned && ((segments[index].file_offset + at) % 4096 != 0 || b.length % 4096 != 0 ||
                                 (segments[index].arena_offset + at) % 4096 != 0))
                return false;
            at += b.length;
        }
        if (at != segments[index].length) return false;
    }
    return block == plan.blocks.size();
}

}  // namespace

TEST(plans_cover_every_byte_once) {
    for (const std::uint64_t file_offset : {0, 1, 4096, 5000, 8191})
        for (const std::uint64_t arena_offset : {0, 1, 4096, 904, 4095})
            for (const std::uint64_t length : {1, 4095, 4096, 4097, 65'536, 700'001}) {
                const std::vector<Segment> segments = {{"a", file_offset, length, arena_offset, std::nullopt},
                                                       {"b", 0, 4096, 0, std::nullopt}};
                EXPECT(is_sound(segments, plan_reads(segments, kSizes)));
            }
}

TEST(all_but_head_and_tail_are_read_directly) {
    const ReadPlan plan = plan_reads({{"a", 5000, 1'000'000, 904, std::nullopt}}, kSizes);
    std::uint64_t through_the_cache = 0;
    for (const Block& block : plan.blocks)
        if (!block.is_aligned) through_the_cache += block.length;
    EXPECT(through_the_cache < 2 * 4096);
}

TEST(the_last_reads_are_short) {
    const ReadPlan plan = plan_reads({{"a", 0, 1 << 20, 0, std::nullopt}}, kSizes);
    EXPECT(plan.blocks.front().length == kSizes.block_bytes);
    EXPECT(plan.blocks.back().length == kSizes.block_bytes / 4);
    std::uint64_t small = 0;
    for (const Block& block : plan.blocks) small += block.length < kSizes.block_bytes ? block.length : 0;
    EXPECT(small == kSizes.tail_bytes);
}

TEST(blocks_are_handed_out_once_and_the_urgent_first) {
    BlockOrder order(10);
    std::vector<std::size_t> taken;
    const auto take = [&](int count) {
        for (int i = 0; i < count; ++i)
            if (const auto block = order.take()) taken.push_back(*block);
    };
    take(2);
    order.prioritize(6);
    take(1);
    order.prioritize(4);
    take(100);
    EXPECT((taken == std::vector<std::size_t>{0, 1, 6, 4, 5, 7, 8, 9, 2, 3}));
    order.prioritize(0);
    EXPECT(!order.take() && !BlockOrder(0).take());
}
