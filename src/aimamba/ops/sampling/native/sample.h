// Sampling a token from the logits of an image and of its unconditional row.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "native/simd.h"

namespace aim {

// Settings of one image, as `aimamba.ops.sampling.logits.sample` has them.
struct Sampling {
    float temperature, top_p, min_p;
    int64_t top_k;
};

// The k-th largest of some numbers; NaN, which has no order, counts as the smallest.
inline float kth_largest(const float* values, int count, int64_t k) {
    std::vector<float> copy(values, values + count);
    for (float& value : copy)
        if (!(value == value)) value = -std::numeric_limits<float>::infinity();
    std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), std::greater<float>());
    return copy[k - 1];
}

// Keep the largest weights that together reach the share p of all, at least one; set the others to 0.
inline void keep_top_p(float* weights, int count, float p) {
    std::vector<int> order;
    double total = 0, tail = 0;
    for (int i = 0; i < count; ++i)
        if (weights[i] > 0) order.push_back(i), total += weights[i];
    std::sort(order.begin(), order.end(),
              [&](int a, int b) { return weights[a] != weights[b] ? weights[a] < weights[b] : a < b; });
    for (size_t place = 0; place + 1 < order.size(); ++place) {
        tail += weights[order[place]];
        if (tail > (1 - double(p)) * total) break;
        weights[order[place]] = 0;
    }
}

// Guide (u + scale (c - u)), divide by the temperature, leave out what top-k, top-p and min-p do, and invert the
// cumulative distribution at `uniform`; temperature 0 chooses the most likely token. The sum is in float64, in a fixed
// order.
inline int sample(const float* logits, const float* unconditional, float scale, const Sampling& settings,
                  double uniform, int count) {
    std::vector<float> weights(count + W, -std::numeric_limits<float>::infinity());
    for (int i = 0; i < count; ++i) weights[i] = unconditional[i] + (logits[i] - unconditional[i]) * scale;
    const int best = int(std::max_element(weights.begin(), weights.begin() + count) - weights.begin());
    if (settings.temperature == 0.0f) return best;
    const float largest = weights[best], sharpness = 1.0f / settings.temperature;
    std::vector<bool> left_out;
    if (settings.top_k > 0 && settings.top_k < count) {
        const float threshold = kth_largest(weights.data(), count, settings.top_k);
        for (int i = 0; i < count; ++i) left_out.push_back(weights[i] < threshold);
    }
    for (int i = 0; i < count; i += W)
        store(&weights[i], exponential((load_floats(&weights[i]) - largest) * sharpness));
    for (size_t i = 0; i < left_out.size(); ++i)
        if (left_out[i]) weights[i] = 0;
    if (settings.top_p < 1.0f) keep_top_p(weights.data(), count, settings.top_p);
    double total = 0;
    int last = best;
    for (int i = 0; i < count; ++i) {
        if (weights[i] < settings.min_p) weights[i] = 0;
        if (weights[i] > 0) last = i;
        total += weights[i];
    }
    const double target = uniform * total;
    double sum = 0;
    for (int i = 0; i < count; ++i)
        if ((sum += weights[i]) > target) return i;
    return last;
}

}  // namespace aim
