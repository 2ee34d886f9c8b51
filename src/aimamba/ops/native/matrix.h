// Weight matrices packed for products with a few rows, and these rows.
//
// A matrix (outputs, inputs) is cut into panels of 2 W outputs. Within a panel the weights are in the order in which
// the product reads them: group by group of inputs (1 in float32, 2 in bfloat16, 2 or 4 in int8), output by output. So
// they are read once, in order, whatever the number of rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

#include "native/simd.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace aim {

enum class Kind : int { float32 = 0, bfloat16 = 1, int8 = 2 };

constexpr int PANEL = 2 * W;

// The form of inputs for each kind of weights depends on the instructions of this machine.
#if defined(__AVX512BF16__)
constexpr bool BFLOAT16_DOTS = true;
#else
constexpr bool BFLOAT16_DOTS = false;
#endif

// int8 weights are multiplied with inputs of 15 bits: as four bytes twice, high and low; as two words; or as floats.
#if defined(__AVX512VNNI__)
constexpr bool INT8_BYTES = true, INT8_WORDS = false;
#elif defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool INT8_BYTES = false, INT8_WORDS = true;
#else
constexpr bool INT8_BYTES = false, INT8_WORDS = false;
#endif

class Memory {  // aligned to large pages, which it asks the system for
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

// Neighbouring panels of a matrix, or one panel unpacked.
struct Panels {
    Kind kind;
    const char* weights;
    const float* scales;
    size_t apart;  // numbers of a panel
    size_t ahead;  // distance in bytes to prefetch at
    int output;    // the first one

    // Offset of the weights of vector v, if each vector takes `SIZE` numbers.
    template <int SIZE>
    size_t place(int v) const {
        return v / 2 * apart + v % 2 * SIZE;
    }

    // Prefetch what will be read soon. Measurements showed no gain for wider vectors.
    template <int S, typename N>
    void foresee(const N* w) const {
        constexpr int SECOND_LEVEL = 2;
        if constexpr (W < 16)
            for (int s = 0; s < S; ++s)
                __builtin_prefetch(reinterpret_cast<const char*>(w + s * apart) + ahead, 0, SECOND_LEVEL);
    }
};

struct Matrix {
    Kind kind = Kind::float32;
    int outputs = 0, inputs = 0;
    Memory weights;
    std::vector<float> scales;  // of every output, padded to whole panels; only for int8

    int panels() const { return (outputs + PANEL - 1) / PANEL; }
    size_t panel_bytes() const {
        return size_t(PANEL) * inputs * (kind == Kind::float32 ? 4 : kind == Kind::bfloat16 ? 2 : 1);
    }

    // Panels from `panel` on.
    Panels at(int panel, size_t ahead) const {
        return {kind,
                weights.as<char>() + panel * panel_bytes(),
                scales.data() + (kind == Kind::int8 ? panel * PANEL : 0),
                size_t(PANEL) * inputs,
                ahead,
                panel * PANEL};
    }

    Matrix() = default;
    Matrix(Kind kind, int outputs, int inputs)
        : kind(kind), outputs(outputs), inputs(inputs), weights(panels() * panel_bytes()) {
        if (kind == Kind::int8) scales.assign(size_t(panels()) * PANEL, 1.0f);
    }

    // Fill one panel from `values` (outputs, inputs). int8 has one scale an output, which makes its largest weight 127.
    void pack(int panel, const float* values) {
        const int group = kind == Kind::float32 ? 1 : kind == Kind::bfloat16 || INT8_WORDS ? 2 : 4;
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

    // The dot products of x86 take one unsigned operand, so there weights are stored with 128 added.
    static int8_t flip() { return INT8_BYTES ? int8_t(-128) : int8_t(0); }
};

// Rows of inputs in the form that the products of one kind of weights take.
//
// For int8 weights a row becomes integers of 15 bits times a scale, stored as high and low bytes, so that the inputs
// lose little precision. Their sums are kept to correct for the 128 added to the weights.
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
    bool bytewise() const { return kind_ == Kind::int8 && INT8_BYTES; }
    bool wordwise() const { return kind_ == Kind::int8 && INT8_WORDS; }
    bool halved() const { return kind_ == Kind::bfloat16 && BFLOAT16_DOTS; }

    void set(int row, const float* values) {
        if (halved()) {
            for (int k = 0; k < width_; k += W) store_floats(halves(row) + k, load_floats(values + k));
        } else if (bytewise() || wordwise()) {
            Floats largest = floats(1e-30f);
            for (int k = 0; k < width_; k += W) {
                const Floats v = load_floats(values + k), size = v < 0.0f ? -v : v;
                largest = size > largest ? size : largest;
            }
            float top = 0;
            for (int i = 0; i < W; ++i) top = std::max(top, largest[i]);
            scale_[row] = top / WHOLE;
            Ints upper_sum{}, lower_sum{};
            for (int k = 0; k < width_; k += W) {
                const Ints number = whole(load_floats(values + k) * (WHOLE / top));
                if (wordwise()) {
                    store(words(row) + k, __builtin_convertvector(number, Shorts));
                    continue;
                }
                const Ints upper = (number + 128) >> 8, lower = number - 256 * upper;
                store(bytes(row) + k, __builtin_convertvector(upper, Bytes));
                store(bytes(row) + width_ + k, __builtin_convertvector(lower, Bytes));
                upper_sum += upper;
                lower_sum += lower;
            }
            high_sum_[row] = sum(upper_sum);
            low_sum_[row] = sum(lower_sum);
        } else {
            std::copy(values, values + width_, plain(row));
        }
    }

    float* plain(int row) const { return data_.as<float>() + size_t(row) * width_; }
    bfloat16* halves(int row) const { return data_.as<bfloat16>() + size_t(row) * width_; }
    int16_t* words(int row) const { return data_.as<int16_t>() + size_t(row) * width_; }
    int8_t* bytes(int row) const { return data_.as<int8_t>() + size_t(row) * width_ * 2; }  // all high, then all low
    float scale(int row) const { return scale_[row]; }
    int high_sum(int row) const { return high_sum_[row]; }
    int low_sum(int row) const { return low_sum_[row]; }

  private:
    static constexpr float WHOLE = 32500.0f;  // what the largest input of a row becomes

    Kind kind_;
    int width_;
    Memory data_;
    std::vector<float> scale_;
    std::vector<int> high_sum_, low_sum_;
};

}  // namespace aim
