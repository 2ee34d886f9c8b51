// Products of packed matrices with a few rows. Every number is summed in the same order for every number of rows and
// threads.
#pragma once

#include "native/matrix.h"

namespace aim {

// Products of S panels with M rows: out[m] gets 2 S vectors.

template <int M, int S>
inline void multiply_float32(const float* w, const Panels& panels, const Inputs& x, int row, Floats (*out)[2 * S]) {
    Floats total[M][2 * S] = {};
    const float* from[M];
    for (int m = 0; m < M; ++m) from[m] = x.plain(row + m);
    for (int k = 0; k < x.width(); ++k, w += PANEL) {
        Floats weight[2 * S];
        for (int v = 0; v < 2 * S; ++v) weight[v] = load<Floats>(w + panels.place<W>(v));
        panels.foresee<S>(w);
        for (int m = 0; m < M; ++m) {
            const Floats value = floats(from[m][k]);
            for (int v = 0; v < 2 * S; ++v) total[m][v] += weight[v] * value;
        }
    }
    std::memcpy(out, total, sizeof total);
}

template <int M, int S>
inline void multiply_bfloat16(const bfloat16* w, const Panels& panels, const Inputs& x, int row, Floats (*out)[2 * S]) {
#if defined(__AVX512BF16__)
    __m512 total[M][2 * S];
    const bfloat16* from[M];
    for (int m = 0; m < M; ++m) {
        from[m] = x.halves(row + m);
        for (int v = 0; v < 2 * S; ++v) total[m][v] = _mm512_setzero_ps();
    }
    for (int k = 0; k < x.width(); k += 2, w += 2 * PANEL) {
        __m512bh weight[2 * S];
        for (int v = 0; v < 2 * S; ++v) weight[v] = (__m512bh)_mm512_loadu_si512(w + panels.place<2 * W>(v));
        for (int m = 0; m < M; ++m) {
            const __m512bh pair = (__m512bh)_mm512_set1_epi32(load<int32_t>(from[m] + k));
            for (int v = 0; v < 2 * S; ++v) total[m][v] = _mm512_dpbf16_ps(total[m][v], weight[v], pair);
        }
    }
#else
    Floats total[M][2 * S] = {};
    const float* from[M];
    for (int m = 0; m < M; ++m) from[m] = x.plain(row + m);
    for (int k = 0; k < x.width(); k += 2, w += 2 * PANEL) {
        panels.foresee<S>(w);
        for (int v = 0; v < 2 * S; ++v) {
            const Words pairs = load<Words>(w + panels.place<2 * W>(v));
            const Floats even = as_floats(pairs << 16), odd = as_floats(pairs & 0xffff0000u);
            for (int m = 0; m < M; ++m) {
                total[m][v] += even * from[m][k];
                total[m][v] += odd * from[m][k + 1];
            }
        }
    }
#endif
    std::memcpy(out, total, sizeof total);
}

template <int M, int S>
inline void multiply_int8(const int8_t* w, const Panels& panels, const Inputs& x, int row, Floats (*out)[2 * S]) {
    const int width = x.width();
#if defined(__AVX512VNNI__)
    __m512i high[M][2 * S], low[M][2 * S];
    const int8_t* from[M];
    for (int m = 0; m < M; ++m) {
        from[m] = x.bytes(row + m);
        for (int v = 0; v < 2 * S; ++v) high[m][v] = low[m][v] = _mm512_setzero_si512();
    }
    for (int k = 0; k < width; k += 4, w += 4 * PANEL) {
        __m512i weight[2 * S];
        for (int v = 0; v < 2 * S; ++v) weight[v] = _mm512_loadu_si512(w + panels.place<4 * W>(v));
        for (int m = 0; m < M; ++m) {
            const __m512i upper = _mm512_set1_epi32(load<int32_t>(from[m] + k));
            const __m512i lower = _mm512_set1_epi32(load<int32_t>(from[m] + width + k));
            for (int v = 0; v < 2 * S; ++v) {
                high[m][v] = _mm512_dpbusd_epi32(high[m][v], weight[v], upper);
                low[m][v] = _mm512_dpbusd_epi32(low[m][v], weight[v], lower);
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < 2 * S; ++v) {
            Ints upper, lower;
            std::memcpy(&upper, &high[m][v], sizeof upper);
            std::memcpy(&lower, &low[m][v], sizeof lower);
            upper -= 128 * x.high_sum(row + m);
            lower -= 128 * x.low_sum(row + m);
            // 256 upper + lower can overflow 32 bits, so they are added as floats.
            const Floats total =
                __builtin_convertvector(upper, Floats) * 256.0f + __builtin_convertvector(lower, Floats);
            out[m][v] = total * load<Floats>(panels.scales + W * v) * x.scale(row + m);
        }
#elif defined(__AVX2__) && !defined(__AVX512F__)
    constexpr int STRETCH = 512;  // a sum of this many products of 8 and 15 bits fits into 32 bits
    Floats total[M][2 * S] = {};
    const int16_t* from[M];
    for (int m = 0; m < M; ++m) from[m] = x.words(row + m);
    for (int begin = 0; begin < width; begin += STRETCH) {
        __m256i sums[M][2 * S];
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < 2 * S; ++v) sums[m][v] = _mm256_setzero_si256();
        for (int k = begin; k < std::min(begin + STRETCH, width); k += 2, w += 2 * PANEL) {
            panels.foresee<S>(w);
            __m256i weight[2 * S];
            for (int v = 0; v < 2 * S; ++v) weight[v] = _mm256_cvtepi8_epi16(load<__m128i>(w + panels.place<2 * W>(v)));
            for (int m = 0; m < M; ++m) {
                const __m256i pair = _mm256_set1_epi32(load<int32_t>(from[m] + k));
                for (int v = 0; v < 2 * S; ++v)
                    sums[m][v] = _mm256_add_epi32(sums[m][v], _mm256_madd_epi16(weight[v], pair));
            }
        }
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < 2 * S; ++v) total[m][v] += Floats(_mm256_cvtepi32_ps(sums[m][v]));
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < 2 * S; ++v)
            out[m][v] = total[m][v] * load<Floats>(panels.scales + W * v) * x.scale(row + m);
#else
    Floats total[M][2 * S] = {};
    const float* from[M];
    for (int m = 0; m < M; ++m) from[m] = x.plain(row + m);
    for (int k = 0; k < width; k += 4, w += 4 * PANEL)
        for (int v = 0; v < 2 * S; ++v) {
            const Ints fours = load<Ints>(w + panels.place<4 * W>(v));
            for (int i = 0; i < 4; ++i) {
                const Floats weight = __builtin_convertvector((fours << (24 - 8 * i)) >> 24, Floats);
                for (int m = 0; m < M; ++m) total[m][v] += weight * from[m][k + i];
            }
        }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < 2 * S; ++v) out[m][v] = total[m][v] * load<Floats>(panels.scales + W * v);
#endif
}

// Multiply S panels with rows from `row` on, M at a time; `take(row, first output, 2 vectors)` gets the results.
template <int M, int S = 1, typename Take>
inline int multiply_blocks(const Panels& panels, const Inputs& x, int row, int rows, const Take& take) {
    Floats out[M][2 * S];
    for (; row + M <= rows; row += M) {
        const char* w = panels.weights;
        if (panels.kind == Kind::float32)
            multiply_float32<M, S>(reinterpret_cast<const float*>(w), panels, x, row, out);
        else if (panels.kind == Kind::bfloat16)
            multiply_bfloat16<M, S>(reinterpret_cast<const bfloat16*>(w), panels, x, row, out);
        else multiply_int8<M, S>(reinterpret_cast<const int8_t*>(w), panels, x, row, out);
        for (int m = 0; m < M; ++m)
            for (int s = 0; s < S; ++s) take(row + m, panels.output + s * PANEL, &out[m][2 * s]);
    }
    return row;
}

// Convert a panel of bfloat16 to float32.
inline Panels unpacked(const Panels& panel, int inputs) {
    static thread_local std::vector<float> numbers;
    numbers.resize(size_t(PANEL) * inputs);
    const auto* from = reinterpret_cast<const bfloat16*>(panel.weights);
    float* to = numbers.data();
    for (int k = 0; k < inputs; k += 2, from += 2 * PANEL, to += 2 * PANEL)
        for (int v = 0; v < 2; ++v) {
            const Words pairs = load<Words>(from + 2 * W * v);
            store(to + W * v, as_floats(pairs << 16));
            store(to + PANEL + W * v, as_floats(pairs & 0xffff0000u));
            panel.foresee<1>(from + W * v);
        }
    return {Kind::float32, reinterpret_cast<const char*>(numbers.data()), nullptr, panel.apart, 0, panel.output};
}

// Panels of one task. With one or two rows it multiplies them together, so that more sums and more reads are in flight.
constexpr int TOGETHER = W == 16 ? 1 : 2;

inline int tasks_of(const Matrix& matrix) { return (matrix.panels() + TOGETHER - 1) / TOGETHER; }

template <typename Take>
inline void multiply(const Matrix& matrix, int task, const Inputs& x, int rows, const Take& take) {
    constexpr size_t NEAR = 768;
    constexpr int MOST = REGISTERS == 32 ? 8 : 6;  // rows whose sums, 2 vectors each, fit into registers
    const int first = task * TOGETHER, last = std::min(first + TOGETHER, matrix.panels());
    if (rows <= 2 && last - first == TOGETHER) {
        const Panels panels = matrix.at(first, NEAR);
        const int row = multiply_blocks<2, TOGETHER>(panels, x, 0, rows, take);
        multiply_blocks<1, TOGETHER>(panels, x, row, rows, take);
        return;
    }
    for (int index = first; index < last; ++index) {
        Panels panel = matrix.at(index, rows > MOST ? matrix.panel_bytes() : NEAR);
        if (matrix.kind == Kind::bfloat16 && !BFLOAT16_DOTS && rows > MOST) panel = unpacked(panel, matrix.inputs);
        int row = 0;
        if constexpr (MOST == 8)
            if (!x.bytewise()) row = multiply_blocks<8>(panel, x, row, rows, take);  // bytes need two sums each
        row = multiply_blocks<6>(panel, x, row, rows, take);
        row = multiply_blocks<4>(panel, x, row, rows, take);
        row = multiply_blocks<2>(panel, x, row, rows, take);
        multiply_blocks<1>(panel, x, row, rows, take);
    }
}

}  // namespace aim
