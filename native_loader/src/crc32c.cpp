#include "crc32c.hpp"

#include <array>
#include <cstring>

namespace firstlight {
namespace {

constexpr std::uint32_t kPolynomial = 0x82F63B78U;
using SlicingTables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr SlicingTables make_slicing_tables() {
    SlicingTables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
        tables[0][byte] = crc;
    }
    for (std::size_t slice = 1; slice < 8; ++slice)
        for (std::size_t byte = 0; byte < 256; ++byte)
            tables[slice][byte] = (tables[slice - 1][byte] >> 8) ^ tables[0][tables[slice - 1][byte] & 0xFF];
    return tables;
}

constexpr SlicingTables kTables = make_slicing_tables();

constexpr std::uint32_t step_byte(std::uint32_t crc, unsigned char byte) {
    return (crc >> 8) ^ kTables[0][(crc ^ byte) & 0xFF];
}

// Eight bytes at a time through eight tables. Bytes are gathered one by one, so byte order does not matter.
std::uint32_t software_register(std::uint32_t crc, const unsigned char* data, std::size_t size_bytes) {
    for (; size_bytes >= 8; data += 8, size_bytes -= 8) {
        crc = kTables[7][(crc ^ data[0]) & 0xFF] ^ kTables[6][((crc >> 8) ^ data[1]) & 0xFF] ^
              kTables[5][((crc >> 16) ^ data[2]) & 0xFF] ^ kTables[4][((crc >> 24) ^ data[3]) & 0xFF] ^
              kTables[3][data[4]] ^ kTables[2][data[5]] ^ kTables[1][data[6]] ^ kTables[0][data[7]];
    }
    for (; size_bytes > 0; ++data, --size_bytes) crc = step_byte(crc, *data);
    return crc;
}

// A register is a polynomial over GF(2), its highest power in the lowest bit; the product is reduced.
constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
    std::uint32_t product = 0;
    for (std::uint32_t bit = std::uint32_t{1} << 31; bit != 0; bit >>= 1) {
        if ((a & bit) != 0) product ^= b;
        b = (b >> 1) ^ ((b & 1) != 0 ? kPolynomial : 0);
    }
    return product;
}

// x^(8 * bytes): multiplying a register by it appends that many zero bytes to its message.
constexpr std::uint32_t zero_bytes_factor(std::uint64_t bytes) {
    std::uint32_t factor = std::uint32_t{1} << 31;  // x^0
    for (std::uint32_t power = std::uint32_t{1} << 23; bytes != 0; bytes >>= 1) {  // from x^8
        if ((bytes & 1) != 0) factor = multiply(factor, power);
        power = multiply(power, power);
    }
    return factor;
}

detail::ZeroAppendTable make_zero_append_table(std::size_t zero_bytes) {
    const std::uint32_t factor = zero_bytes_factor(zero_bytes);
    detail::ZeroAppendTable table{};
    for (std::uint32_t slot = 0; slot < 4; ++slot)
        for (std::uint32_t byte = 0; byte < 256; ++byte)
            table.entry[slot][byte] = multiply(factor, byte << (8 * slot));
    return table;
}

}  // namespace

std::uint32_t crc32c_software(const void* data, std::size_t size_bytes, std::uint32_t seed) {
    return ~software_register(~seed, static_cast<const unsigned char*>(data), size_bytes);
}

std::uint32_t crc32c(const void* data, std::size_t size_bytes, std::uint32_t seed) {
    static const bool in_hardware = detail::has_crc32c_instruction();
    if (!in_hardware) return crc32c_software(data, size_bytes, seed);
    static const detail::StreamTables tables{make_zero_append_table(detail::kLongStreamBytes),
                                             make_zero_append_table(detail::kMediumStreamBytes),
                                             make_zero_append_table(detail::kShortStreamBytes)};
    return ~detail::crc32c_hardware(~seed, static_cast<const unsigned char*>(data), size_bytes, tables);
}

std::uint32_t crc32c_joined(std::uint32_t first, std::uint32_t second, std::uint64_t second_bytes) {
    return multiply(zero_bytes_factor(second_bytes), first) ^ second;
}

const char* crc32c_implementation() {
    return detail::has_crc32c_instruction() ? detail::hardware_name() : "software";
}

}  // namespace firstlight
