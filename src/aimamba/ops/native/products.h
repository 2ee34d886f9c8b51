// Blocks of matrix products whose operands are in the cache: numbers in float32, or pairs of bfloat16 if the processor
// has an instruction for them. Sums are float32.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "native/simd.h"

namespace aim {

constexpr int ROWS = W == 16 ? 8 : 4, BLOCK = 2, SPAN = BLOCK * W;  // a block of (ROWS, SPAN) sums fits into registers

struct Freed {
    void operator()(void* memory) const { std::free(memory); }
};

// Memory aligned to cache lines.
template <typename N>
using Buffer = std::unique_ptr<N[], Freed>;

template <typename N = float>
Buffer<N> buffer(size_t count) {
    constexpr size_t LINE = 64, APART = 5 * LINE;  // so that buffers of equal size do not share their page offsets
    return Buffer<N>(static_cast<N*>(std::aligned_alloc(LINE, (count * sizeof(N) + LINE - 1) / LINE * LINE + APART)));
}

// Two terms of a product, the earlier one in the lower half.
using Pair = uint32_t;

// The unit in which matrices of type T are multiplied, and the number of terms in a unit.
#if defined(__AVX512BF16__)
template <typename T>
using UnitOf = std::conditional_t<std::is_same_v<T, float>, float, Pair>;
#else
template <typename T>
using UnitOf = float;
#endif
template <typename Unit>
constexpr int TERMS = std::is_same_v<Unit, float> ? 1 : 2;
template <typename Unit>
using Units = std::conditional_t<std::is_same_v<Unit, float>, Floats, Words>;

inline Floats add_product(Floats sums, float left, Floats right) { return sums + left * right; }

#if defined(__AVX512BF16__)
inline Floats add_product(Floats sums, Pair left, Words right) {
    return Floats(_mm512_dpbf16_ps(__m512(sums), (__m512bh)(Words{} + left), (__m512bh)right));
}
#endif

using Sums = Floats[ROWS][BLOCK];

// The sums over `depth` units of a[row r, unit k] b[unit k, vector n], where `a` has any strides.
template <typename Unit>
inline void multiply(const Unit* a, size_t row, size_t step, const Unit* b, size_t stride, int depth, Sums& sums) {
    Sums own = {};  // local, so that the compiler keeps it in registers
    for (int k = 0; k < depth; ++k) {
        Units<Unit> right[BLOCK];
        for (int n = 0; n < BLOCK; ++n) right[n] = load<Units<Unit>>(b + k * stride + n * W);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            for (int n = 0; n < BLOCK; ++n) own[r][n] = add_product(own[r][n], a[r * row + k * step], right[n]);
    }
    std::memcpy(&sums, &own, sizeof own);
}

// Like `multiply`, but adds the product times a factor to `sums`.
template <typename Unit>
inline void multiply_add(float factor, const Unit* a, size_t row, size_t step, const Unit* b, size_t stride, int depth,
                         Sums& sums) {
    Sums added;
    multiply(a, row, step, b, stride, depth, added);
    for (int r = 0; r < ROWS; ++r)
        for (int n = 0; n < BLOCK; ++n) sums[r][n] += factor * added[r][n];
}

inline Words rounded_bits(Floats v) {
    const Words bits = as_words(v);
    return bits + 0x7fff + ((bits >> 16) & 1);
}

// Pack neighbouring rows into units: (rows, columns) to (rows / TERMS, columns).
template <typename Unit>
void stack(const float* from, size_t stride, int rows, int columns, Unit* to, size_t to_stride) {
    for (int r = 0; r < rows; r += TERMS<Unit>)
        for (int c = 0; c < columns; c += W) {
            const float* place = from + r * stride + c;
            Unit* unit = to + r / TERMS<Unit> * to_stride + c;
            if constexpr (TERMS<Unit> == 1) store(unit, load<Floats>(place));
            else
                store(unit, (rounded_bits(load<Floats>(place)) >> 16) |
                                (rounded_bits(load<Floats>(place + stride)) & 0xffff0000));
        }
}

// Pack neighbouring columns into units: (rows, columns) to (rows, columns / TERMS).
template <typename Unit>
void join(const float* from, size_t stride, int rows, int columns, Unit* to, size_t to_stride) {
    using Number = std::conditional_t<TERMS<Unit> == 1, float, bfloat16>;
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; c += W)
            store_floats(reinterpret_cast<Number*>(to + r * to_stride) + c, load<Floats>(from + r * stride + c));
}

// Transpose (rows, columns) to (columns, rows).
template <typename Unit>
void transpose(const Unit* from, size_t stride, int rows, int columns, Unit* to, size_t to_stride) {
    for (int c = 0; c < columns; ++c)
        for (int r = 0; r < rows; ++r) to[c * to_stride + r] = from[r * stride + c];
}

}  // namespace aim
