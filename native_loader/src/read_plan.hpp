// Cuts segments into the reads that a device is asked for.
//
//   segment   |-----------------------------------------------------|
//   blocks    |h|---- direct ----|---- direct ----|-- direct --| t  |
//
// A direct block begins and ends on 4 KiB, in the file and in memory. What cannot (an unaligned head or tail, or a
// segment whose memory and file offsets differ modulo 4 KiB) is read through the page cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace firstlight {

constexpr std::uint64_t kDirectAlignmentBytes = 4096;

struct Segment {
    std::string path;
    std::uint64_t file_offset = 0;
    std::uint64_t length = 0;
    std::uint64_t arena_offset = 0;
    std::optional<std::uint32_t> crc32c;  // not verified when absent
};

struct Block {
    std::size_t segment;
    std::uint64_t offset;  // within the segment
    std::uint64_t length;
    bool is_aligned;
};

struct ReadPlan {
    std::vector<Block> blocks;             // in the segments' order
    std::vector<std::size_t> first_block;  // per segment, and one past the last: its blocks are [i] to [i + 1]
};

struct BlockSizes {
    std::uint64_t block_bytes;  // a multiple of 4096
    // So many bytes at the end are read in quarters of a block: the last requests to come back are then short
    // ones, spread over whoever is idle, instead of one long one that everybody waits for.
    std::uint64_t tail_bytes;
};

ReadPlan plan_reads(const std::vector<Segment>& segments, const BlockSizes& sizes);

}  // namespace firstlight
