// Products of few rows with a large matrix, summed in a given order, so that they come out bit for bit as the same
// rows do among many in a library whose kernels sum in that order.
//
//   y[r][n] = (sum of block 0) + (sum of block 1) + …      each block a chain of fused multiply-adds, k ascending
//
// A library's own kernels for one or two rows sum in another order than those for many, and a stream's last bits
// would depend on its neighbours in the batch.
#pragma once

#include <cstddef>

namespace firstlight {

inline constexpr std::size_t kMostOrderedRows = 3;

struct OrderedProduct {
    const float* rows;     // (count, inputs), contiguous
    const float* weights;  // (outputs, inputs), contiguous
    float* products;       // (count, outputs), contiguous
    std::size_t count;     // 1 to kMostOrderedRows
    std::size_t outputs;
    std::size_t inputs;
    std::size_t block;  // inputs summed on their own before they are added
};

// Whether this processor has what they need (AVX2 and FMA).
bool has_ordered_products();

// Only where has_ordered_products(). Reads the weights once, at the speed of one core's memory.
void multiply_in_order(const OrderedProduct& product);

}  // namespace firstlight
