#include "check.hpp"
#include "crc32c.hpp"
#include "temporary_file.hpp"

using namespace firstlight;

TEST(checksum_of_the_standard_example) {
    EXPECT(crc32c("123456789", 9) == 0xE3069283U);
    EXPECT(crc32c_software("123456789", 9) == 0xE3069283U);
}

TEST(hardware_and_software_agree_at_every_length_and_alignment) {
    const auto bytes = pattern(3 * (128 << 10) + 3 * 8192 + 3 * 256 + 300);
    for (std::size_t start = 0; start < 9; ++start) {
        for (std::size_t length = 0; length < 1000; ++length)
            if (crc32c(bytes.data() + start, length, 7) != crc32c_software(bytes.data() + start, length, 7)) {
                EXPECT(!"implementations differ");
                return;
            }
        const std::size_t rest = bytes.size() - start;
        EXPECT(crc32c(bytes.data() + start, rest) == crc32c_software(bytes.data() + start, rest));
    }
}

TEST(checksums_chain) {
    const auto bytes = pattern(100'000);
    const std::uint32_t whole = crc32c(bytes.data(), bytes.size());
    for (const std::size_t cut : {std::size_t{0}, std::size_t{1}, std::size_t{24'577}, bytes.size()})
        EXPECT(crc32c(bytes.data() + cut, bytes.size() - cut, crc32c(bytes.data(), cut)) == whole);
}

TEST(checksums_of_pieces_join_in_any_grouping) {
    const auto bytes = pattern(70'000);
    const std::uint32_t whole = crc32c(bytes.data(), bytes.size());
    for (const std::size_t cut : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{69'999}, bytes.size()}) {
        const std::uint32_t first = crc32c(bytes.data(), cut);
        const std::uint32_t second = crc32c(bytes.data() + cut, bytes.size() - cut);
        EXPECT(crc32c_joined(first, second, bytes.size() - cut) == whole);
    }
}
