// Shared by the forward and the backward pass of the kernel for whole sequences: products, decays, the convolution.
//
// SSD is computed in its dual form (Dao and Gu, arXiv 2405.21060, section 3): with total_t the running sum of
// log-decays and u_s = dt_s x_s,
//
//     y_t = sum over s <= t of (C_t . B_s) exp(total_t - total_s) u_s.
//
// Tokens are split into tiles. Between two tiles the exponential factors into one part of t, one of s and one of the
// two tiles, which leaves a matrix product with (C_t . B_s), shared by all heads. Up to about 4 N tokens this takes
// fewer operations than the chunked form with its states. Tasks and the order of every sum depend only on the shape, so
// results are the same for every number of threads.
//
// Shape letters: B batch, L tokens, S tokens rounded up to whole tiles, H heads, P head width, E = H P, N state size,
// C = E + 2 N convolved channels.
#pragma once

#include <cmath>
#include <cstddef>
#include <memory>
#include <vector>

#include "native/products.h"
#include "native/team.h"

namespace aim {

constexpr int TILE = 64;
constexpr int LANES = 32;  // P and N are multiples of it
constexpr int TAPS = 4, MOST_TILES = 8;
constexpr float LOWEST_LOG_DECAY = -60.0f;

struct Shape {
    int batch, length, heads, width, state;

    int tiles() const { return (length + TILE - 1) / TILE; }
    int padded() const { return tiles() * TILE; }
    int pitch() const { return padded() + 16; }  // between rows of tokens; keeps columns out of the same cache sets
    int inner() const { return heads * width; }
    int channels() const { return inner() + 2 * state; }
    int projected() const { return inner() + channels() + heads; }
};

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// `value` in the lanes first, first + 1, ... up to `last`, and 0 beyond.
inline Floats up_to(int last, int first, Floats value) {
    Ints lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    return lane + first <= last ? value : Floats{};
}

// The processor does not prefetch short rows that are far apart, so rows are prefetched this many rows ahead.
constexpr int AHEAD = 6;

template <bool WRITTEN = false, typename N>
inline void prefetch(const N* row, int count) {
    const auto* bytes = reinterpret_cast<const char*>(row);
    for (size_t i = 0; i < count * sizeof(N); i += 64) __builtin_prefetch(bytes + i, WRITTEN);
}

// Step sizes and decays of one head of one row.
struct Decays {
    float raw[MOST_TILES * TILE];    // step sizes before softplus
    float dt[MOST_TILES * TILE];     // 0 beyond the last token
    float local[MOST_TILES * TILE];  // log-decay from the start of the tile to each token, included
    float left[MOST_TILES * TILE];   // its exponential
    float right[MOST_TILES * TILE];  // the decay from after a token to the end of its tile
    float across[MOST_TILES];        // the decay through a whole tile

    template <typename T>
    Decays(const Shape& shape, const T* steps, float bias, float rate) {
        for (int t = 0; t < shape.padded(); ++t) {
            raw[t] = t < shape.length ? widened(steps[size_t(t) * shape.projected()]) + bias : 0.0f;
            dt[t] = t < shape.length ? softplus(raw[t]) : 0.0f;
            local[t] = (t % TILE ? local[t - 1] : 0.0f) + std::max(dt[t] * rate, LOWEST_LOG_DECAY);
        }
        for (int tile = 0; tile < shape.tiles(); ++tile) {
            const float* own = local + tile * TILE;
            for (int t = 0; t < TILE; t += W) {
                const Floats logs = load<Floats>(own + t);
                store(left + tile * TILE + t, exponential(logs));
                store(right + tile * TILE + t, exponential(own[TILE - 1] - logs));
            }
            across[tile] = left[tile * TILE + TILE - 1];
        }
    }

    // The decay from the end of tile `from` to the start of the later tile `to`.
    float between(int from, int to) const {
        float product = 1.0f;
        for (int tile = from + 1; tile < to; ++tile) product *= across[tile];
        return product;
    }

    // `weights` (TILE, stride) times exp(total_t - total_s) for s <= t in a tile, else 0: (TILE, TILE).
    void within(int tile, const float* weights, size_t stride, float* out) const {
        const float* own = local + tile * TILE;
        for (int t = 0; t < TILE; ++t)
            for (int s = 0; s < TILE; s += W) {
                Floats value{};
                if (s <= t)
                    value = exponential(own[t] - load<Floats>(own + s)) * load<Floats>(weights + t * stride + s);
                store(out + t * TILE + s, up_to(t, s, value));
            }
    }
};

// Gradients of the exponents total_t - total_s of one head, kept as sums over pairs of tokens. Pairs on the same side
// of a token cancel; such numbers are only added within a tile, to lose little precision.
struct Exponents {
    float row[MOST_TILES * TILE] = {}, column[MOST_TILES * TILE] = {};    // of a token and its own tile
    float before[MOST_TILES * TILE] = {}, later[MOST_TILES * TILE] = {};  // of a token and earlier or later tiles
    float pairs[MOST_TILES][MOST_TILES] = {};                             // of a tile and an earlier one

    // The gradient of each token's log-decay: the sum over all pairs that span the token.
    void around(int tiles, double* dlogs) const {
        for (int tile = 0; tile < tiles; ++tile) {
            const int begin = tile * TILE, end = begin + TILE;
            double sum = 0;
            for (int to = tile + 1; to < tiles; ++to)
                for (int from = 0; from < tile; ++from) sum += pairs[to][from];
            for (int t = begin; t < end; ++t) {
                dlogs[t] = sum;
                sum += later[t];
            }
            sum = 0;
            for (int t = end - 1; t >= begin; --t) {
                sum += double(row[t]) - column[t] + before[t];
                dlogs[t] += sum;
            }
        }
    }
};

// The inputs of the kernel; T is float or bfloat16.
template <typename T>
struct Mixer {
    Shape shape;
    const T* projected;        // (B, L, E + C + H): gate z, convolved part (x, B, C), step sizes
    const float* conv_weight;  // (TAPS, C), oldest first
    const float* conv_bias;    // (C)
    const float* dt_bias;      // (H)
    const float* rates;        // (H), A
    const float* skip;         // (H), D
    const float* norm_weight;  // (E)
    float eps;

    const T* row(int b) const { return projected + size_t(b) * shape.length * shape.projected(); }

    Decays decays(int b, int h) const {
        return {shape, row(b) + shape.inner() + shape.channels() + h, dt_bias[h], rates[h]};
    }

    // Convolve channels first ... first + count - 1, before the swish, of tokens begin ... end - 1: (., count). Zeros
    // beyond the last token.
    void convolve(int b, int first, int count, int begin, int end, float* out) const {
        const T* from = row(b) + shape.inner() + first;
        const int step = shape.projected(), channels = shape.channels();
        for (int t = begin; t < end; ++t) {
            if (t + AHEAD < shape.length) prefetch(from + size_t(t + AHEAD) * step, count);
            for (int c = 0; c < count; c += W) {
                Floats sums{};
                if (t < shape.length) {
                    sums = load<Floats>(conv_bias + first + c);
                    for (int k = 0; k < TAPS; ++k) {
                        const int source = t - (TAPS - 1) + k;
                        if (source >= 0)
                            sums += load<Floats>(conv_weight + size_t(k) * channels + first + c) *
                                    load_floats(from + size_t(source) * step + c);
                    }
                }
                store(out + size_t(t - begin) * count + c, sums);
            }
        }
    }
};

// B, C and their products for one row of the batch, which all heads share.
template <typename Unit>
struct Shared {
    Buffer<float> B, C;        // (S, N)
    Buffer<float> similarity;  // C_t . B_s: (S, pitch), tiles on and below the diagonal
    Buffer<Unit> units;        // `similarity` in units, stacked or joined

    explicit Shared(const Shape& shape)
        : B(buffer(size_t(shape.padded()) * shape.state)),
          C(buffer(size_t(shape.padded()) * shape.state)),
          similarity(buffer(size_t(shape.padded()) * shape.pitch())),
          units(buffer<Unit>(size_t(shape.padded()) * shape.pitch() / TERMS<Unit>)) {}
};

enum class Layout { joined, stacked };

template <typename T>
std::vector<Shared<UnitOf<T>>> shared_parts(const Mixer<T>& mixer, const Team& team, Layout layout) {
    using Unit = UnitOf<T>;
    const Shape& shape = mixer.shape;
    const int tiles = shape.tiles(), pitch = shape.pitch(), state = shape.state;
    std::vector<Shared<Unit>> shared;
    for (int b = 0; b < shape.batch; ++b) shared.emplace_back(shape);
    const Buffer<float> turned = buffer(size_t(shape.batch) * state * pitch);  // B: (N, pitch)
    team.share(shape.batch * tiles, [&](int task) {
        const int b = task / tiles, begin = task % tiles * TILE;
        for (int second = 0; second < 2; ++second) {
            float* out = (second ? shared[b].C : shared[b].B).get() + size_t(begin) * state;
            mixer.convolve(b, shape.inner() + second * state, state, begin, begin + TILE, out);
            for (int i = 0; i < TILE * state; i += W) store(out + i, silu(load<Floats>(out + i)));
        }
        transpose(shared[b].B.get() + size_t(begin) * state, state, TILE, state,
                  turned.get() + size_t(b) * state * pitch + begin, pitch);
    });
    team.share(shape.batch * tiles, [&](int task) {
        const int b = task / tiles, begin = task % tiles * TILE;
        const float* C = shared[b].C.get() + size_t(begin) * state;
        float* out = shared[b].similarity.get() + size_t(begin) * pitch;
        for (int t = 0; t < TILE; t += ROWS)
            for (int s = 0; s < begin + TILE; s += SPAN) {
                Sums sums;
                multiply(C + size_t(t) * state, state, 1, turned.get() + size_t(b) * state * pitch + s, pitch, state,
                         sums);
                for (int r = 0; r < ROWS; ++r)
                    for (int n = 0; n < BLOCK; ++n) store(out + size_t(t + r) * pitch + s + n * W, sums[r][n]);
            }
        Unit* units = shared[b].units.get();
        if (layout == Layout::stacked)
            stack(out, pitch, TILE, begin + TILE, units + size_t(begin) / TERMS<Unit> * pitch, pitch);
        else join(out, pitch, TILE, begin + TILE, units + size_t(begin) * (pitch / TERMS<Unit>), pitch / TERMS<Unit>);
    });
    return shared;
}

}  // namespace aim
