// The only file compiled for an instruction the machine may lack. It includes no standard C++ header, so that
// no inline function compiled for that instruction can be picked by the linker for the rest of the program.
#include "crc32c.hpp"

#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace firstlight::detail {

#if defined(__x86_64__) || defined(__aarch64__)
namespace {

inline uint64_t load_word(const unsigned char* data) {
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

#if defined(__x86_64__)
inline uint32_t step_word(uint32_t crc, uint64_t word) {
    return static_cast<uint32_t>(_mm_crc32_u64(crc, word));
}
inline uint32_t step_byte(uint32_t crc, unsigned char byte) { return _mm_crc32_u8(crc, byte); }
#else
inline uint32_t step_word(uint32_t crc, uint64_t word) { return __crc32cd(crc, word); }
inline uint32_t step_byte(uint32_t crc, unsigned char byte) { return __crc32cb(crc, byte); }
#endif

// The instruction takes three cycles and one can start each cycle, so three independent streams of
// `Stream` bytes each run side by side:  |--- a ---|--- b ---|--- c ---|
template <size_t Stream>
uint32_t three_streams(uint32_t crc, const unsigned char*& data, size_t& size_bytes, const ZeroAppendTable& table) {
    while (size_bytes >= 3 * Stream) {
        uint32_t a = crc;
        uint32_t b = 0;
        uint32_t c = 0;
        for (size_t at = 0; at < Stream; at += 8) {
            a = step_word(a, load_word(data + at));
            b = step_word(b, load_word(data + Stream + at));
            c = step_word(c, load_word(data + 2 * Stream + at));
        }
        crc = table.apply(table.apply(a) ^ b) ^ c;
        data += 3 * Stream;
        size_bytes -= 3 * Stream;
    }
    return crc;
}

}  // namespace

uint32_t crc32c_hardware(uint32_t crc, const unsigned char* data, size_t size_bytes, const StreamTables& tables) {
    crc = three_streams<kLongStreamBytes>(crc, data, size_bytes, tables.of_long);
    crc = three_streams<kMediumStreamBytes>(crc, data, size_bytes, tables.of_medium);
    crc = three_streams<kShortStreamBytes>(crc, data, size_bytes, tables.of_short);
    for (; size_bytes >= 8; data += 8, size_bytes -= 8) crc = step_word(crc, load_word(data));
    for (; size_bytes > 0; ++data, --size_bytes) crc = step_byte(crc, *data);
    return crc;
}
#else
uint32_t crc32c_hardware(uint32_t crc, const unsigned char*, size_t, const StreamTables&) {
    return crc;  // never called: has_crc32c_instruction() is false
}
#endif

bool has_crc32c_instruction() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("sse4.2") != 0;
#elif defined(__aarch64__)
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#else
    return false;
#endif
}

const char* hardware_name() {
#if defined(__x86_64__)
    return "sse4.2";
#else
    return "armv8-crc";
#endif
}

}  // namespace firstlight::detail
