// The part of a Mamba-2 mixer between its two projections, for all tokens at once, forward and backward: convolution,
// SSD, skip, gate and norm. Intermediate numbers stay in the cache of one core; see sequence.h.
#include "mixer/native/sequence_backward.h"
#include "mixer/native/sequence_forward.h"

namespace {

using namespace aim;

struct Inputs {
    const void* projected;
    const float *conv_weight, *conv_bias, *dt_bias, *rates, *skip, *norm_weight;
};

struct Outputs {
    void* projected;
    float *conv_weight, *conv_bias, *dt_bias, *rates, *skip, *norm_weight;
};

template <typename T>
Mixer<T> mixer_of(const Shape& shape, const Inputs& from, float eps) {
    return {shape,
            static_cast<const T*>(from.projected),
            from.conv_weight,
            from.conv_bias,
            from.dt_bias,
            from.rates,
            from.skip,
            from.norm_weight,
            eps};
}

template <typename T>
void forward(const Shape& shape, const Inputs& from, float eps, float* ssd, float* inverse, void* out,
             const Team& team) {
    SequenceForward<T>(mixer_of<T>(shape, from, eps), team, ssd, inverse, static_cast<T*>(out));
}

template <typename T>
void backward(const Shape& shape, const Inputs& from, float eps, const float* ssd, const float* inverse,
              const void* out, const void* dout, const Outputs& to, const Team& team) {
    const SequenceGradients<T> into = {
        static_cast<T*>(to.projected), to.conv_weight, to.conv_bias, to.dt_bias, to.rates, to.skip, to.norm_weight};
    SequenceBackward<T>(mixer_of<T>(shape, from, eps), team, ssd, inverse, static_cast<const T*>(out),
                        static_cast<const T*>(dout), into);
}

}  // namespace

// `shape`, `from` and `to` point to the fields of Shape, Inputs and Outputs, in their order. With `narrow`, `projected`
// and the output are bfloat16, else float32.
extern "C" void aim_mixer_sequence(int narrow, const int* shape, const void* from, float eps, float* ssd,
                                   float* inverse, void* out, void* parallel, int threads) {
    const auto& sizes = *reinterpret_cast<const Shape*>(shape);
    const auto& inputs = *static_cast<const Inputs*>(from);
    const Team team(parallel, threads);
    (narrow ? forward<bfloat16> : forward<float>)(sizes, inputs, eps, ssd, inverse, out, team);
}

extern "C" void aim_mixer_sequence_backward(int narrow, const int* shape, const void* from, float eps, const float* ssd,
                                            const float* inverse, const void* out, const void* dout, const void* to,
                                            void* parallel, int threads) {
    const auto& sizes = *reinterpret_cast<const Shape*>(shape);
    const auto& inputs = *static_cast<const Inputs*>(from);
    const auto& outputs = *static_cast<const Outputs*>(to);
    const Team team(parallel, threads);
    (narrow ? backward<bfloat16> : backward<float>)(sizes, inputs, eps, ssd, inverse, out, dout, outputs, team);
}
