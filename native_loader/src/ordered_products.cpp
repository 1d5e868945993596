#include "ordered_products.hpp"

#include <algorithm>
#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace firstlight {

#if defined(__x86_64__)

namespace {

constexpr std::size_t kLanes = 8;

#define FIRSTLIGHT_AVX2 __attribute__((target("avx2,fma")))

// Eight consecutive inputs of eight outputs, turned so that each register holds one input of all eight.
FIRSTLIGHT_AVX2 inline void load_turned(const float* from, std::size_t stride, __m256 (&turned)[kLanes]) {
    __m256 row[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) row[i] = _mm256_loadu_ps(from + i * stride);
    __m256 pair[kLanes];
    for (std::size_t i = 0; i < kLanes; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    __m256 quad[kLanes];
    for (std::size_t half = 0; half < kLanes; half += 4) {
        quad[half] = _mm256_shuffle_ps(pair[half], pair[half + 2], 0x44);
        quad[half + 1] = _mm256_shuffle_ps(pair[half], pair[half + 2], 0xEE);
        quad[half + 2] = _mm256_shuffle_ps(pair[half + 1], pair[half + 3], 0x44);
        quad[half + 3] = _mm256_shuffle_ps(pair[half + 1], pair[half + 3], 0xEE);
    }
    for (std::size_t i = 0; i < 4; ++i) {
        turned[i] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20);
        turned[i + 4] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31);
    }
}

// One input of eight outputs; for the inputs behind the last whole eight of a block.
FIRSTLIGHT_AVX2 inline __m256 load_column(const float* from, std::size_t stride) {
    alignas(32) float column[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) column[i] = from[i * stride];
    return _mm256_load_ps(column);
}

template <std::size_t Rows>
FIRSTLIGHT_AVX2 void eight_outputs(const OrderedProduct& product, std::size_t output) {
    const float* weights = product.weights + output * product.inputs;
    __m256 total[Rows];
    for (std::size_t begin = 0; begin < product.inputs; begin += product.block) {
        const std::size_t end = std::min(begin + product.block, product.inputs);
        __m256 sum[Rows];
        for (std::size_t r = 0; r < Rows; ++r) sum[r] = _mm256_setzero_ps();
        std::size_t k = begin;
        for (; k + kLanes <= end; k += kLanes) {
            __m256 turned[kLanes];
            load_turned(weights + k, product.inputs, turned);
            for (std::size_t i = 0; i < kLanes; ++i)
                for (std::size_t r = 0; r < Rows; ++r)
                    sum[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(product.rows + r * product.inputs + k + i), turned[i],
                                             sum[r]);
        }
        for (; k < end; ++k) {
            const __m256 column = load_column(weights + k, product.inputs);
            for (std::size_t r = 0; r < Rows; ++r)
                sum[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(product.rows + r * product.inputs + k), column, sum[r]);
        }
        for (std::size_t r = 0; r < Rows; ++r) total[r] = begin == 0 ? sum[r] : _mm256_add_ps(total[r], sum[r]);
    }
    for (std::size_t r = 0; r < Rows; ++r) _mm256_storeu_ps(product.products + r * product.outputs + output, total[r]);
}

FIRSTLIGHT_AVX2 float one_output(const OrderedProduct& product, std::size_t row, std::size_t output) {
    const float* left = product.rows + row * product.inputs;
    const float* right = product.weights + output * product.inputs;
    float total = 0;
    for (std::size_t begin = 0; begin < product.inputs; begin += product.block) {
        const std::size_t end = std::min(begin + product.block, product.inputs);
        float sum = 0;
        for (std::size_t k = begin; k < end; ++k) sum = std::fma(left[k], right[k], sum);
        total = begin == 0 ? sum : total + sum;
    }
    return total;
}

template <std::size_t Rows>
void all_outputs(const OrderedProduct& product) {
    std::size_t output = 0;
    for (; output + kLanes <= product.outputs; output += kLanes) eight_outputs<Rows>(product, output);
    for (; output < product.outputs; ++output)
        for (std::size_t r = 0; r < Rows; ++r)
            product.products[r * product.outputs + output] = one_output(product, r, output);
}

}  // namespace

bool has_ordered_products() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

void multiply_in_order(const OrderedProduct& product) {
    if (product.inputs == 0) {
        std::fill_n(product.products, product.count * product.outputs, 0.0F);
        return;
    }
    switch (product.count) {
        case 1: return all_outputs<1>(product);
        case 2: return all_outputs<2>(product);
        default: return all_outputs<3>(product);
    }
}

#else

bool has_ordered_products() { return false; }

void multiply_in_order(const OrderedProduct&) {}

#endif

}  // namespace firstlight
