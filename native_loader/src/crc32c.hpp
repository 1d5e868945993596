// CRC32C (Castagnoli, reflected polynomial 0x82F63B78), as iSCSI, ext4 and object stores use it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace firstlight {

// The checksum of `seed`'s bytes followed by these: crc32c(b, crc32c(a)) == crc32c(a + b).
std::uint32_t crc32c(const void* data, std::size_t size_bytes, std::uint32_t seed = 0);

// The checksum of two pieces from each one's own: crc32c(a + b) from crc32c(a), crc32c(b) and b's length. It lets
// pieces be summed in the order in which a device delivers them.
std::uint32_t crc32c_joined(std::uint32_t first, std::uint32_t second, std::uint64_t second_bytes);

// The portable implementation, always present; tests hold the two against each other.
std::uint32_t crc32c_software(const void* data, std::size_t size_bytes, std::uint32_t seed = 0);

// What crc32c() runs on here: "sse4.2", "armv8-crc" or "software".
const char* crc32c_implementation();

namespace detail {

// Appending a fixed number of zero bytes to a message is a linear map on its checksum register: one table
// per register byte applies it in four look-ups. It is what joins three independently computed streams.
struct ZeroAppendTable {
    std::uint32_t entry[4][256];
    std::uint32_t apply(std::uint32_t crc) const {
        return entry[0][crc & 0xFF] ^ entry[1][(crc >> 8) & 0xFF] ^ entry[2][(crc >> 16) & 0xFF] ^
               entry[3][crc >> 24];
    }
};

// Memory feeds streams that run on for long faster than streams that jump every few pages (26 against 17 GB/s): its
// prefetchers need a run-up. The shorter ones are for what is left.
constexpr std::size_t kLongStreamBytes = 128 << 10;
constexpr std::size_t kMediumStreamBytes = 8 << 10;
constexpr std::size_t kShortStreamBytes = 256;

struct StreamTables {
    ZeroAppendTable of_long;
    ZeroAppendTable of_medium;
    ZeroAppendTable of_short;
};

// Register in, register out (no inversion). Only callable where the instruction exists.
std::uint32_t crc32c_hardware(std::uint32_t crc, const unsigned char* data, std::size_t size_bytes,
                              const StreamTables& tables);
bool has_crc32c_instruction();
const char* hardware_name();

}  // namespace detail
}  // namespace firstlight
