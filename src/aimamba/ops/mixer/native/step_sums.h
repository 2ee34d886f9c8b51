// Norms and sums of the decoding step: over one row, or over the cached tokens of one head.
#pragma once

#include <cmath>

#include "native/simd.h"

namespace aim {

constexpr float EPSILON = 1e-5f;

inline float root_mean_square(const float* x, int width) {
    Floats squares{};
    for (int i = 0; i < width; i += W) squares += load_floats(x + i) * load_floats(x + i);
    return 1.0f / std::sqrt(sum(squares) / width + EPSILON);
}

template <typename T>
inline float dot(const float* a, const T* b, int width) {
    Floats even{}, odd{};
    int i = 0;
    for (; i + W < width; i += 2 * W) {
        even += load_floats(a + i) * load_floats(b + i);
        odd += load_floats(a + i + W) * load_floats(b + i + W);
    }
    if (i < width) even += load_floats(a + i) * load_floats(b + i);
    return sum(even + odd);
}

// out = norm(x) * (1 + scale) + shift
inline void modulate(const float* x, const float* norm, const float* shift, const float* scale, int width, float* out) {
    const float factor = root_mean_square(x, width);
    for (int i = 0; i < width; i += W)
        store(out + i, load_floats(x + i) * factor * load_floats(norm + i) * (1.0f + load_floats(scale + i)) +
                           load_floats(shift + i));
}

// Prefetch V vectors of a later row. Not done for wider vectors, where it was not measured.
template <int V, typename T>
inline void foresee(const T* x) {
    constexpr int AHEAD = 1024, LINE = 64;
    if constexpr (W < 16 && V > 1)
        for (int byte = 0; byte < int(V * W * sizeof(T)); byte += LINE)
            __builtin_prefetch(reinterpret_cast<const char*>(x) + AHEAD + byte);
}

// y (V vectors) = sum over s of share_s x_s, for `count` rows of x.
template <int V, typename T>
inline void weighted_sum(const T* x, const float* share, int count, int P, float* y) {
    constexpr int APART = V < 8 ? 2 : 1;  // rows with separate sums, so that enough additions are in flight
    Floats total[APART][V] = {};
    int s = 0;
    for (; s + APART <= count; s += APART)
        for (int i = 0; i < APART; ++i, x += P) {
            foresee<V>(x);
            for (int v = 0; v < V; ++v) total[i][v] += share[s + i] * load_floats(x + v * W);
        }
    for (int v = 0; v < V; ++v) {
        if (s < count) total[0][v] += share[s] * load_floats(x + v * W);
        store(y + v * W, APART == 2 ? total[0][v] + total[APART - 1][v] : total[0][v]);
    }
}

// y (P) = sum over s of share_s x_s, for `count` rows of x. Sums as much of a row at once as registers hold.
template <typename T>
inline void weighted_sum(const T* x, const float* share, int count, int P, float* y) {
    constexpr int MOST = 64 / W;
    int p = 0;
    for (; p + MOST * W <= P; p += MOST * W) weighted_sum<MOST>(x + p, share, count, P, y + p);
    for (; p + 4 * W <= P; p += 4 * W) weighted_sum<4>(x + p, share, count, P, y + p);
    for (; p < P; p += W) weighted_sum<1>(x + p, share, count, P, y + p);
}

}  // namespace aim
