// Sampling a token from the logits of an image and of its unconditional row.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "native/simd.h"

namespace aim {

// Guide (u + scale (c - u)), divide by the temperature, leave out tokens less likely than min_p times the most likely
// one, and invert the cumulative distribution at `uniform`; temperature 0 chooses the most likely token. The sum is in
// float64, in a fixed order.
inline int sample(const float* logits, const float* unconditional, float scale, float temperature, float min_p,
                  double uniform, int count) {
    std::vector<float> weights(count + W, -std::numeric_limits<float>::infinity());
    for (int i = 0; i < count; ++i) weights[i] = unconditional[i] + (logits[i] - unconditional[i]) * scale;
    const int best = int(std::max_element(weights.begin(), weights.begin() + count) - weights.begin());
    if (temperature == 0.0f) return best;
    const float largest = weights[best], sharpness = 1.0f / temperature;
    for (int i = 0; i < count; i += W)
        store(&weights[i], exponential((load_floats(&weights[i]) - largest) * sharpness));
    double total = 0;
    int last = best;
    for (int i = 0; i < count; ++i) {
        if (weights[i] < min_p) weights[i] = 0;
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
