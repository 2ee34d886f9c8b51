// Gradients of the gate and of the convolution, and where to write the gradients of the kernel for whole sequences.
#pragma once

#include "mixer/native/sequence.h"

namespace aim {

struct Gate {
    Floats opening, slope;  // silu(z) and its derivative

    explicit Gate(Floats z) {
        const Floats share = sigmoid(z);
        opening = z * share;
        slope = share * (1.0f + z * (1.0f - share));
    }
};

// Where to write the gradients. Those of parameters are partial, one for each row of the batch; the caller sums them.
template <typename T>
struct SequenceGradients {
    T* projected;        // (B, L, E + C + H)
    float* conv_weight;  // (B, TAPS, C)
    float* conv_bias;    // (B, C)
    float* dt_bias;      // (B, H)
    float* rates;        // (B, H)
    float* skip;         // (B, H)
    float* norm_weight;  // (B, E)
};

// Compute the gradients of the inputs, weights and biases of the convolution of channels first ... first + count - 1,
// given the gradient (S, count) of its output.
template <typename T>
void convolution_gradients(const Mixer<T>& mixer, const SequenceGradients<T>& into, int b, int first, int count,
                           const float* gradient) {
    const Shape& shape = mixer.shape;
    const int length = shape.length, channels = shape.channels();
    const size_t step = shape.projected();
    const T* inputs = mixer.row(b) + shape.inner() + first;
    T* dinputs = into.projected + size_t(b) * length * step + shape.inner() + first;
    for (int c = 0; c < count; c += W) {
        Floats weight[TAPS], dweight[TAPS] = {}, dbias{};
        for (int k = 0; k < TAPS; ++k) weight[k] = load<Floats>(mixer.conv_weight + k * channels + first + c);
        for (int t = 0; t < length; ++t) {
            const Floats input = load_floats(inputs + t * step + c);
            Floats dinput{};
            for (int k = 0; k < TAPS; ++k) {
                const int reader = t + TAPS - 1 - k;
                if (reader >= length) continue;
                const Floats value = load<Floats>(gradient + size_t(reader) * count + c);
                dinput += weight[k] * value;
                dweight[k] += input * value;
            }
            dbias += load<Floats>(gradient + size_t(t) * count + c);
            store_floats(dinputs + t * step + c, dinput);
        }
        for (int k = 0; k < TAPS; ++k)
            store(into.conv_weight + (size_t(b) * TAPS + k) * channels + first + c, dweight[k]);
        store(into.conv_bias + size_t(b) * channels + first + c, dbias);
    }
}

}  // namespace aim
