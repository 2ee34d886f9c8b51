// The forward pass of the kernel for whole sequences.
#pragma once

#include "mixer/native/sequence.h"

namespace aim {

template <typename T>
class SequenceForward {
  public:
    // For the backward pass `ssd` (B, L, E) gets y before the skip, and `inverse` (B, L) one over the root mean square.
    SequenceForward(const Mixer<T>& mixer, const Team& team, float* ssd, float* inverse, T* out)
        : mixer_(mixer), ssd_(ssd) {
        const Shape& shape = mixer.shape;
        shared_ = shared_parts(mixer, team, Layout::joined);
        gated_ = buffer(size_t(shape.batch) * shape.length * shape.inner());
        team.share(shape.batch * shape.heads, [&](int task) { head(task / shape.heads, task % shape.heads); });
        const int tiles = shape.tiles();
        team.share(shape.batch * tiles, [&](int task) {
            const int b = task / tiles, begin = task % tiles * TILE;
            for (int t = begin; t < std::min(begin + TILE, shape.length); ++t)
                normalise(size_t(b) * shape.length + t, inverse, out);
        });
    }

  private:
    using Unit = UnitOf<T>;
    static constexpr int K = TERMS<Unit>;

    void head(int b, int h) const {
        const Shape& shape = mixer_.shape;
        const int P = shape.width, pitch = shape.pitch(), channel = h * P;
        const auto decays = mixer_.decays(b, h);
        const float* similarity = shared_[b].similarity.get();
        const Unit* units = shared_[b].units.get();
        const Buffer<float> x = buffer(TILE * P), scaled = buffer(TILE * P), decayed = buffer(TILE * TILE);
        const Buffer<Unit> u = buffer<Unit>(TILE / K * P), weights = buffer<Unit>(TILE * TILE / K);
        const Buffer<Unit> faded = buffer<Unit>(size_t(shape.padded()) / K * P);  // u, decayed to the end of its tile
        for (int tile = 0; tile < shape.tiles(); ++tile) {
            const int begin = tile * TILE;
            for (int t = begin; t < begin + TILE && t < shape.length; ++t)  // the gate, which `keep` reads
                prefetch(mixer_.row(b) + size_t(t) * shape.projected() + channel, P);
            mixer_.convolve(b, channel, P, begin, begin + TILE, x.get());
            for (int i = 0; i < TILE * P; i += W) {
                const Floats value = silu(load<Floats>(x.get() + i));
                store(x.get() + i, value);
                store(scaled.get() + i, value * decays.dt[begin + i / P]);
            }
            stack(scaled.get(), P, TILE, P, u.get(), P);
            for (int i = 0; i < TILE * P; i += W)
                store(scaled.get() + i, load<Floats>(scaled.get() + i) * decays.right[begin + i / P]);
            stack(scaled.get(), P, TILE, P, faded.get() + size_t(begin) / K * P, P);
            decays.within(tile, similarity + size_t(begin) * pitch + begin, pitch, decayed.get());
            join(decayed.get(), TILE, TILE, TILE, weights.get(), TILE / K);
            for (int t = 0; t < TILE && begin + t < shape.length; t += ROWS)
                for (int p = 0; p < P; p += SPAN) {
                    Sums y, earlier = {};
                    multiply(weights.get() + t * TILE / K, TILE / K, 1, u.get() + p, P, (t + ROWS) / K, y);
                    for (int from = 0; from < tile; ++from)
                        multiply_add(decays.between(from, tile), units + (size_t(begin + t) * pitch + from * TILE) / K,
                                     pitch / K, 1, faded.get() + size_t(from) * TILE / K * P + p, P, TILE / K, earlier);
                    for (int r = 0; r < ROWS && begin + t + r < shape.length; ++r)
                        for (int n = 0; n < BLOCK; ++n)
                            keep(b, begin + t + r, h, p + n * W, y[r][n] + decays.left[begin + t + r] * earlier[r][n],
                                 load<Floats>(x.get() + (t + r) * P + p + n * W));
                }
        }
    }

    // Store y for the backward pass, and y with the skip and the gate.
    void keep(int b, int t, int h, int p, Floats y, Floats x) const {
        const Shape& shape = mixer_.shape;
        const size_t place = (size_t(b) * shape.length + t) * shape.inner() + h * shape.width + p;
        store(ssd_ + place, y);
        const Floats z = load_floats(mixer_.row(b) + size_t(t) * shape.projected() + h * shape.width + p);
        store(gated_.get() + place, (y + mixer_.skip[h] * x) * silu(z));
    }

    void normalise(size_t token, float* inverse, T* out) const {
        const int inner = mixer_.shape.inner();
        const float* from = gated_.get() + token * inner;
        Floats squares{};
        for (int e = 0; e < inner; e += W) squares += load<Floats>(from + e) * load<Floats>(from + e);
        inverse[token] = 1.0f / std::sqrt(sum(squares) / inner + mixer_.eps);
        for (int e = 0; e < inner; e += W)
            store_floats(out + token * inner + e,
                         load<Floats>(from + e) * inverse[token] * load<Floats>(mixer_.norm_weight + e));
    }

    const Mixer<T>& mixer_;
    float* const ssd_;
    std::vector<Shared<Unit>> shared_;
    Buffer<float> gated_;
};

}  // namespace aim
