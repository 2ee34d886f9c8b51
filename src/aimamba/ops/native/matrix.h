// Weight matrices packed for a few rows of inputs, and their products.
//
// A matrix (outputs, inputs) is cut into panels of 2 W outputs. Within a panel the weights stand in the order in which
// the product reads them: group by group of inputs (1 in float32, 2 in bfloat16, 4 in int8), output by output. So they
// stream through once, whatever the number of rows. Every number of a product is summed in one order, the same for
// every number of rows and threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

#include "simd.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace aim {

enum class Kind : int { float32 = 0, bfloat16 = 1, int8 = 2 };

constexpr int PANEL = 2 * W;

// How inputs are kept for a kind of weights: as the instructions of this machine want them.
#if defined(__AVX512BF16__)
constexpr bool BFLOAT16_DOTS = true;
#else
constexpr bool BFLOAT16_DOTS = false;
#endif
#if defined(__AVX512VNNI__)
constexpr bool INT8_DOTS = true;
#else
constexpr bool INT8_DOTS = false;
#endif

class Memory {  // aligned to large pages, which the system is asked for
  public:
    explicit Memory(size_t bytes = 0) {
        constexpr size_t page = size_t{1} << 21;
        if (bytes == 0) return;
        const size_t rounded = (bytes + page - 1) / page * page;
        if (posix_memalign(&start_, bytes < page ? 64 : page, rounded) != 0) throw std::bad_alloc();
#if defined(__linux__)
        madvise(start_, rounded, MADV_HUGEPAGE);
#endif
    }
    Memory(Memory&& other) noexcept : start_(other.start_) { other.start_ = nullptr; }
    Memory& operator=(Memory&& other) noexcept {
        std::swap(start_, other.start_);
        return *this;
    }
    ~Memory() { std::free(start_); }

    template <typename T>
    T* as() const {
        return static_cast<T*>(start_);
    }

  private:
    void* start_ = nullptr;
};

struct Matrix {
    Kind kind = Kind::float32;
    int outputs = 0, inputs = 0;
    Memory weights;
    std::vector<float> scales;  // of every output, padded to whole panels; int8 alone

    int panels() const { return (outputs + PANEL - 1) / PANEL; }
    size_t panel_bytes() const {
        return size_t(PANEL) * inputs * (kind == Kind::float32 ? 4 : kind == Kind::bfloat16 ? 2 : 1);
    }

    Matrix() = default;
    Matrix(Kind kind, int outputs, int inputs)
        : kind(kind), outputs(outputs), inputs(inputs), weights(panels() * panel_bytes()) {
        if (kind == Kind::int8) scales.assign(size_t(panels()) * PANEL, 1.0f);
    }

    // Fill one panel from `values` (outputs, inputs); int8 has one scale an output, so that its largest weight is 127.
    void pack(int panel, const float* values) {
        const int group = kind == Kind::float32 ? 1 : kind == Kind::bfloat16 ? 2 : 4;
        for (int i = 0; i < PANEL; ++i) {
            const int row = panel * PANEL + i;
            const float* from = row < outputs ? values + size_t(row) * inputs : nullptr;
            float inverse = 1.0f;
            if (kind == Kind::int8 && from) {
                float largest = 0;
                for (int k = 0; k < inputs; ++k) largest = std::max(largest, std::fabs(from[k]));
                if (largest > 0) scales[row] = largest / 127, inverse = 127 / largest;
            }
            for (int k = 0; k < inputs; ++k) {
                const float value = from ? from[k] : 0.0f;
                const size_t place =
                    size_t(panel) * PANEL * inputs + size_t(k / group) * PANEL * group + i * group + k % group;
                if (kind == Kind::float32) weights.as<float>()[place] = value;
                else if (kind == Kind::bfloat16) weights.as<bfloat16>()[place] = rounded(value);
                else weights.as<int8_t>()[place] = int8_t(std::lrintf(value * inverse)) ^ flip();
            }
        }
    }

  private:
    static bfloat16 rounded(float value) { return round_to_bfloat16(floats(value))[0]; }

    // The dot products of x86 take one unsigned operand: there the weights are kept 128 too large.
    static int8_t flip() { return INT8_DOTS ? int8_t(-128) : int8_t(0); }
};

// Rows of inputs in the form that the products of one kind of weights take.
//
// For int8 weights a row becomes whole numbers of 15 bits times a scale, kept as high and low bytes, so that the inputs
// lose next to nothing; the sum undoes that the weights are 128 too large.
class Inputs {
  public:
    Inputs(Kind kind, int rows, int width)
        : kind_(kind),
          width_(width),
          data_(size_t(rows) * width * 4 + 64),
          scale_(rows),
          high_sum_(rows),
          low_sum_(rows) {}

    int width() const { return width_; }
    bool quantised() const { return kind_ == Kind::int8 && INT8_DOTS; }
    bool halved() const { return kind_ == Kind::bfloat16 && BFLOAT16_DOTS; }

    void set(int row, const float* values) {
        if (halved()) {
            for (int k = 0; k < width_; k += W) store_floats(halves(row) + k, load_floats(values + k));
        } else if (quantised()) {
            Floats largest = floats(1e-30f);
            for (int k = 0; k < width_; k += W) {
                const Floats v = load_floats(values + k), size = v < 0.0f ? -v : v;
                largest = size > largest ? size : largest;
            }
            float top = 0;
            for (int i = 0; i < W; ++i) top = std::max(top, largest[i]);
            const float per = 32500.0f / top;
            int upper_sum = 0, lower_sum = 0;
            int8_t *high = bytes(row), *low = bytes(row) + width_;
            for (int k = 0; k < width_; ++k) {
                const int whole = int(std::lrintf(values[k] * per)), upper = (whole + 128) >> 8;
                high[k] = int8_t(upper);
                low[k] = int8_t(whole - 256 * upper);
                upper_sum += high[k];
                lower_sum += low[k];
            }
            scale_[row] = top / 32500.0f;
            high_sum_[row] = upper_sum;
            low_sum_[row] = lower_sum;
        } else {
            std::copy(values, values + width_, plain(row));
        }
    }

    float* plain(int row) const { return data_.as<float>() + size_t(row) * width_; }
    bfloat16* halves(int row) const { return data_.as<bfloat16>() + size_t(row) * width_; }
    int8_t* bytes(int row) const { return data_.as<int8_t>() + size_t(row) * width_ * 2; }  // all high, then all low
    float scale(int row) const { return scale_[row]; }
    int high_sum(int row) const { return high_sum_[row]; }
    int low_sum(int row) const { return low_sum_[row]; }

  private:
    Kind kind_;
    int width_;
    Memory data_;
    std::vector<float> scale_;
    std::vector<int> high_sum_, low_sum_;
};

// ---- products of one panel with M rows: out[m] gets 2 vectors ----

template <int M>
inline void multiply_float32(const float* w, const Inputs& x, int row, Floats (*out)[2]) {
    Floats total[M][2] = {};
    const float* from[M];
    for (int m = 0; m < M; ++m) from[m] = x.plain(row + m);
    for (int k = 0; k < x.width(); ++k, w += PANEL) {
        const Floats w0 = load<Floats>(w), w1 = load<Floats>(w + W);
        for (int m = 0; m < M; ++m) {
            const Floats value = floats(from[m][k]);
            total[m][0] += w0 * value;
            total[m][1] += w1 * value;
        }
    }
    for (int m = 0; m < M; ++m) out[m][0] = total[m][0], out[m][1] = total[m][1];
}

template <int M>
inline void multiply_bfloat16(const bfloat16* w, const Inputs& x, int row, Floats (*out)[2]) {
#if defined(__AVX512BF16__)
    __m512 total[M][2];
    const bfloat16* from[M];
    for (int m = 0; m < M; ++m) {
        from[m] = x.halves(row + m);
        total[m][0] = total[m][1] = _mm512_setzero_ps();
    }
    for (int k = 0; k < x.width(); k += 2, w += 2 * PANEL) {
        const __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w1 = (__m512bh)_mm512_loadu_si512(w + 2 * W);
        for (int m = 0; m < M; ++m) {
            const __m512bh pair = (__m512bh)_mm512_set1_epi32(load<int32_t>(from[m] + k));
            total[m][0] = _mm512_dpbf16_ps(total[m][0], w0, pair);
            total[m][1] = _mm512_dpbf16_ps(total[m][1], w1, pair);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < 2; ++v) std::memcpy(&out[m][v], &total[m][v], sizeof(Floats));
#else
    Floats total[M][2] = {};
    const float* from[M];
    for (int m = 0; m < M; ++m) from[m] = x.plain(row + m);
    for (int k = 0; k < x.width(); k += 2, w += 2 * PANEL)
        for (int v = 0; v < 2; ++v) {
            const Words pairs = load<Words>(w + 2 * W * v);
            const Floats even = as_floats(pairs << 16), odd = as_floats(pairs & 0xffff0000u);
            for (int m = 0; m < M; ++m) total[m][v] += even * from[m][k] + odd * from[m][k + 1];
        }
    for (int m = 0; m < M; ++m) out[m][0] = total[m][0], out[m][1] = total[m][1];
#endif
}

template <int M>
inline void multiply_int8(const int8_t* w, const Inputs& x, int row, const float* scales, Floats (*out)[2]) {
#if defined(__AVX512VNNI__)
    __m512i high[M][2], low[M][2];
    const int8_t* from[M];
    for (int m = 0; m < M; ++m) {
        from[m] = x.bytes(row + m);
        for (int v = 0; v < 2; ++v) high[m][v] = low[m][v] = _mm512_setzero_si512();
    }
    const int width = x.width();
    for (int k = 0; k < width; k += 4, w += 4 * PANEL) {
        const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 4 * W);
        for (int m = 0; m < M; ++m) {
            const __m512i upper = _mm512_set1_epi32(load<int32_t>(from[m] + k));
            const __m512i lower = _mm512_set1_epi32(load<int32_t>(from[m] + width + k));
            high[m][0] = _mm512_dpbusd_epi32(high[m][0], w0, upper);
            high[m][1] = _mm512_dpbusd_epi32(high[m][1], w1, upper);
            low[m][0] = _mm512_dpbusd_epi32(low[m][0], w0, lower);
            low[m][1] = _mm512_dpbusd_epi32(low[m][1], w1, lower);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < 2; ++v) {
            Ints upper, lower;
            std::memcpy(&upper, &high[m][v], sizeof upper);
            std::memcpy(&lower, &low[m][v], sizeof lower);
            upper -= 128 * x.high_sum(row + m);
            lower -= 128 * x.low_sum(row + m);
            // 256 upper + lower can pass 32 bits: they meet as floats.
            const Floats total =
                __builtin_convertvector(upper, Floats) * 256.0f + __builtin_convertvector(lower, Floats);
            out[m][v] = total * load<Floats>(scales + W * v) * x.scale(row + m);
        }
#else
    Floats total[M][2] = {};
    const float* from[M];
    for (int m = 0; m < M; ++m) from[m] = x.plain(row + m);
    for (int k = 0; k < x.width(); k += 4, w += 4 * PANEL)
        for (int v = 0; v < 2; ++v) {
            const Ints fours = load<Ints>(w + 4 * W * v);
            for (int i = 0; i < 4; ++i) {
                const Floats weight = __builtin_convertvector((fours << (24 - 8 * i)) >> 24, Floats);
                for (int m = 0; m < M; ++m) total[m][v] += weight * from[m][k + i];
            }
        }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < 2; ++v) out[m][v] = total[m][v] * load<Floats>(scales + W * v);
#endif
}

template <int M>
inline void multiply_rows(const Matrix& matrix, int panel, const Inputs& x, int row, Floats (*out)[2]) {
    const char* w = matrix.weights.as<char>() + panel * matrix.panel_bytes();
    if (matrix.kind == Kind::float32) multiply_float32<M>(reinterpret_cast<const float*>(w), x, row, out);
    else if (matrix.kind == Kind::bfloat16) multiply_bfloat16<M>(reinterpret_cast<const bfloat16*>(w), x, row, out);
    else multiply_int8<M>(reinterpret_cast<const int8_t*>(w), x, row, matrix.scales.data() + panel * PANEL, out);
}

// Multiply one panel with all rows; `take(row, first output, 2 vectors)` gets the results.
template <int M, typename Take>
inline int multiply_blocks(const Matrix& matrix, int panel, const Inputs& x, int row, int rows, const Take& take) {
    Floats out[M][2];
    for (; row + M <= rows; row += M) {
        multiply_rows<M>(matrix, panel, x, row, out);
        for (int m = 0; m < M; ++m) take(row + m, panel * PANEL, out[m]);
    }
    return row;
}

template <typename Take>
inline void multiply(const Matrix& matrix, int panel, const Inputs& x, int rows, const Take& take) {
    int row = 0;  // sums in registers: 2 vectors a row, 4 where inputs are bytes in two parts
    if (!x.quantised()) row = multiply_blocks<8>(matrix, panel, x, row, rows, take);
    row = multiply_blocks<6>(matrix, panel, x, row, rows, take);
    row = multiply_blocks<4>(matrix, panel, x, row, rows, take);
    row = multiply_blocks<2>(matrix, panel, x, row, rows, take);
    multiply_blocks<1>(matrix, panel, x, row, rows, take);
}

}  // namespace aim
