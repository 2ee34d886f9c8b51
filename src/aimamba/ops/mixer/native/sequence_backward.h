// The backward pass of the kernel for whole sequences.
#pragma once

#include "mixer/native/sequence_gradients.h"

namespace aim {

template <typename T>
class SequenceBackward {
  public:
    SequenceBackward(const Mixer<T>& mixer, const Team& team, const float* ssd, const float* inverse, const T* out,
                     const T* dout, const SequenceGradients<T>& into)
        : mixer_(mixer), ssd_(ssd), inverse_(inverse), dout_(dout), into_(into) {
        const Shape& shape = mixer.shape;
        const int tiles = shape.tiles(), padded = shape.padded(), pitch = shape.pitch();
        const int groups = std::min(shape.heads, std::max(1, TASKS / shape.batch));
        shared_ = shared_parts(mixer, team, Layout::stacked);
        common_ = buffer(size_t(shape.batch) * shape.length);
        team.share(shape.batch * tiles, [&](int task) {
            const int b = task / tiles, begin = task % tiles * TILE;
            for (int t = begin; t < std::min(begin + TILE, shape.length); ++t) norm(size_t(b) * shape.length + t, out);
        });
        const size_t square = size_t(padded) * pitch;
        const Buffer<float> dsimilarity = buffer(shape.batch * groups * square);
        team.share(shape.batch * groups, [&](int task) {
            const int b = task / groups, group = task % groups;
            float* own = dsimilarity.get() + task * square;
            for (int t = 0; t < padded; ++t) std::fill_n(own + size_t(t) * pitch, (t / TILE + 1) * TILE, 0.0f);
            for (int h = shape.heads * group / groups; h < shape.heads * (group + 1) / groups; ++h) head(b, h, own);
        });
        team.share(shape.batch * tiles, [&](int task) {
            const int b = task / tiles, tile = task % tiles;
            float* total = dsimilarity.get() + b * groups * square;
            for (int group = 1; group < groups; ++group)
                for (int t = tile * TILE; t < (tile + 1) * TILE; ++t)
                    for (int s = 0; s < (tile + 1) * TILE; s += W) {
                        float* place = total + size_t(t) * pitch + s;
                        store(place, load<Floats>(place) + load<Floats>(place + group * square));
                    }
        });
        const int slices = 2 * shape.state / LANES;
        team.share(shape.batch * slices, [&](int task) {
            const int b = task / slices;
            projections(b, task % slices * LANES, dsimilarity.get() + b * groups * square);
        });
    }

  private:
    using Unit = UnitOf<T>;
    static constexpr int K = TERMS<Unit>;
    static constexpr int TASKS = 16;  // at least this many, to keep up to as many threads busy

    // The part of the gradient of the norm that all features of a token share.
    void norm(size_t token, const T* out) const {
        const int inner = mixer_.shape.inner();
        Floats products{};
        for (int e = 0; e < inner; e += W)
            products += load_floats(dout_ + token * inner + e) * load_floats(out + token * inner + e);
        common_[token] = sum(products) / inner * inverse_[token];
    }

    // The memory of one head. Matrices of units are the operands of products.
    struct Head {
        int b, index, channel;
        Decays decays;
        Buffer<float> x, slope, dy, du;      // (S, P); `slope` is that of the swish after the convolution
        Buffer<Unit> u, faded_u;             // (P, pitch), joined and transposed; faded: decayed to the end of its tile
        Buffer<Unit> dy_rows, faded_rows;    // (S, P), joined; faded: decayed back to the start of its tile
        Buffer<Unit> dy_terms, faded_terms;  // (S, P), stacked
        Exponents exponents;

        Head(const Mixer<T>& mixer, int b, int h)
            : b(b), index(h), channel(h * mixer.shape.width), decays(mixer.decays(b, h)) {
            const size_t size = size_t(mixer.shape.padded()) * mixer.shape.width;
            const size_t turned = size_t(mixer.shape.pitch()) * mixer.shape.width / K;
            for (auto* floats : {&x, &slope, &dy, &du}) *floats = buffer(size);
            for (auto* units : {&u, &faded_u}) *units = buffer<Unit>(turned);
            for (auto* units : {&dy_rows, &faded_rows, &dy_terms, &faded_terms}) *units = buffer<Unit>(size / K);
        }
    };

    // Compute all gradients of one head except those of B and C, for which its part is added to `dsimilarity`.
    void head(int b, int h, float* dsimilarity) const {
        const Shape& shape = mixer_.shape;
        const int P = shape.width;
        Head head(mixer_, b, h);
        enter(head);
        open_gates(head);
        const Buffer<float> weights = buffer(TILE * TILE), decay = buffer(TILE * TILE), ones = buffer(TILE * TILE);
        std::fill_n(ones.get(), TILE * TILE, 1.0f);
        for (int tile = 0; tile < shape.tiles(); ++tile) {
            const size_t begin = size_t(tile) * TILE;
            const float* similarity = shared_[b].similarity.get() + begin * shape.pitch() + begin;
            head.decays.within(tile, similarity, shape.pitch(), weights.get());
            head.decays.within(tile, ones.get(), TILE, decay.get());
            inputs(head, tile, weights.get());
            pairs(head, tile, decay.get(), dsimilarity);
        }
        steps(head);
        for (int t = 0; t < shape.padded(); ++t)
            for (int p = t * P; p < (t + 1) * P; p += W) {
                const Floats dx = head.decays.dt[t] * load<Floats>(head.du.get() + p) +
                                  mixer_.skip[h] * load<Floats>(head.dy.get() + p);
                store(head.du.get() + p, dx * load<Floats>(head.slope.get() + p));
            }
        convolution_gradients(mixer_, into_, b, head.channel, P, head.du.get());
    }

    // Compute the inputs of the SSD: x and u.
    void enter(Head& head) const {
        const int P = mixer_.shape.width, pitch = mixer_.shape.pitch();
        const Buffer<float> scaled = buffer(TILE * P), faded = buffer(TILE * P);
        const Buffer<Unit> joined = buffer<Unit>(TILE * P / K);
        mixer_.convolve(head.b, head.channel, P, 0, mixer_.shape.padded(), head.slope.get());
        for (int begin = 0; begin < mixer_.shape.padded(); begin += TILE) {
            for (int t = begin; t < begin + TILE; ++t)
                for (int p = 0; p < P; p += W) {
                    const size_t place = size_t(t) * P + p, within = size_t(t - begin) * P + p;
                    const Gate gate(load<Floats>(head.slope.get() + place));
                    store(head.slope.get() + place, gate.slope);
                    store(head.x.get() + place, gate.opening);
                    store(scaled.get() + within, gate.opening * head.decays.dt[t]);
                    store(faded.get() + within, gate.opening * (head.decays.dt[t] * head.decays.right[t]));
                }
            join(scaled.get(), P, TILE, P, joined.get(), P / K);
            transpose(joined.get(), P / K, TILE, P / K, head.u.get() + begin, pitch);
            join(faded.get(), P, TILE, P, joined.get(), P / K);
            transpose(joined.get(), P / K, TILE, P / K, head.faded_u.get() + begin, pitch);
        }
    }

    // Compute the gradient of y, and those of z, of the weight of the norm and of the skip.
    void open_gates(Head& head) const {
        const Shape& shape = mixer_.shape;
        const int P = shape.width;
        const Buffer<float> faded = buffer(TILE * P);
        float* dweight = into_.norm_weight + size_t(head.b) * shape.inner() + head.channel;
        std::fill_n(dweight, P, 0.0f);
        double dskip = 0;
        for (int begin = 0; begin < shape.padded(); begin += TILE) {
            Floats of_tile{};
            float* dy = head.dy.get() + size_t(begin) * P;
            for (int t = 0; t < TILE; ++t) {
                foresee(head, begin + t + AHEAD);
                for (int p = 0; p < P; p += W) {
                    Floats value{};
                    if (begin + t < shape.length) {
                        const Floats x = load<Floats>(head.x.get() + size_t(begin + t) * P + p);
                        const Floats skipped = mixer_.skip[head.index] * x;
                        value = open_gate(head.b, begin + t, head.channel + p, skipped, dweight + p);
                        of_tile += value * x;
                    }
                    store(dy + t * P + p, value);
                    store(faded.get() + t * P + p, value * head.decays.left[begin + t]);
                }
            }
            dskip += sum(of_tile);
            const size_t place = size_t(begin) * P / K;
            join(dy, P, TILE, P, head.dy_rows.get() + place, P / K);
            stack(dy, P, TILE, P, head.dy_terms.get() + place, P);
            join(faded.get(), P, TILE, P, head.faded_rows.get() + place, P / K);
            stack(faded.get(), P, TILE, P, head.faded_terms.get() + place, P);
        }
        into_.skip[size_t(head.b) * shape.heads + head.index] = float(dskip);
    }

    // Prefetch what `open_gates` reads and writes for token t.
    void foresee(const Head& head, int t) const {
        const Shape& shape = mixer_.shape;
        if (t >= shape.length) return;
        const size_t token = size_t(head.b) * shape.length + t;
        prefetch(mixer_.projected + token * shape.projected() + head.channel, shape.width);
        prefetch(ssd_ + token * shape.inner() + head.channel, shape.width);
        prefetch(dout_ + token * shape.inner() + head.channel, shape.width);
        prefetch<true>(into_.projected + token * shape.projected() + head.channel, shape.width);
    }

    // Compute the gradients of u in a tile, given its decayed products (C_t . B_s) in `weights`.
    void inputs(Head& head, int tile, const float* weights) const {
        const Shape& shape = mixer_.shape;
        const int P = shape.width, pitch = shape.pitch(), begin = tile * TILE;
        const Unit* similarity = shared_[head.b].units.get();
        const Buffer<Unit> own = buffer<Unit>(TILE * TILE / K);
        stack(weights, TILE, TILE, TILE, own.get(), TILE);
        for (int s = 0; s < TILE; s += ROWS)
            for (int p = 0; p < P; p += SPAN) {
                Sums within, later = {};
                multiply(own.get() + s / K * TILE + s, 1, TILE, head.dy_terms.get() + size_t(begin + s) / K * P + p, P,
                         (TILE - s) / K, within);
                for (int to = tile + 1; to < shape.tiles(); ++to)
                    multiply_add(head.decays.between(tile, to), similarity + size_t(to) * TILE / K * pitch + begin + s,
                                 1, pitch, head.faded_terms.get() + size_t(to) * TILE / K * P + p, P, TILE / K, later);
                for (int r = 0; r < ROWS; ++r)
                    for (int n = 0; n < BLOCK; ++n)
                        store(head.du.get() + size_t(begin + s + r) * P + p + n * W,
                              within[r][n] + head.decays.right[begin + s + r] * later[r][n]);
            }
    }

    // Add the gradients of C_t . B_s, and compute those of the exponents, for t in a tile.
    void pairs(Head& head, int tile, const float* decay, float* dsimilarity) const {
        const Shape& shape = mixer_.shape;
        const int P = shape.width, pitch = shape.pitch(), begin = tile * TILE;
        const float* similarity = shared_[head.b].similarity.get();
        Exponents& exponents = head.exponents;
        for (int t = begin; t < begin + TILE && t < shape.length; t += ROWS) {
            const auto add = [&](int s, const Sums& sums, float* columns, Floats* rows, const auto& weight) {
                for (int n = 0; n < BLOCK; ++n) {
                    const int place = s + n * W;
                    Floats column = load<Floats>(columns + place);
                    for (int r = 0; r < ROWS; ++r) {
                        const size_t pair = size_t(t + r) * pitch + place;
                        const Floats value = weight(r, place) * sums[r][n];
                        store(dsimilarity + pair, load<Floats>(dsimilarity + pair) + value);
                        // The product of a token with itself does not decay.
                        const Floats exponent = up_to(t + r - 1, place, value * load<Floats>(similarity + pair));
                        rows[r] += exponent;
                        column += exponent;
                    }
                    store(columns + place, column);
                }
            };
            Sums sums;
            for (int from = 0; from < tile; ++from) {
                const Floats between = floats(head.decays.between(from, tile));
                Floats rows[ROWS] = {};
                for (int s = from * TILE; s < (from + 1) * TILE; s += SPAN) {
                    multiply(head.faded_rows.get() + size_t(t) * P / K, P / K, 1, head.faded_u.get() + s, pitch, P / K,
                             sums);
                    add(s, sums, exponents.later, rows, [&](int, int) { return between; });
                }
                for (int r = 0; r < ROWS; ++r) exponents.before[t + r] += sum(rows[r]);
                for (int r = 0; r < ROWS; ++r) exponents.pairs[tile][from] += sum(rows[r]);
            }
            Floats rows[ROWS] = {};
            for (int s = begin; s < t + ROWS; s += SPAN) {
                multiply(head.dy_rows.get() + size_t(t) * P / K, P / K, 1, head.u.get() + s, pitch, P / K, sums);
                add(s, sums, exponents.column, rows,
                    [&](int r, int s) { return load<Floats>(decay + (t + r - begin) * TILE + s - begin); });
            }
            for (int r = 0; r < ROWS; ++r) exponents.row[t + r] = sum(rows[r]);
        }
    }

    // Return the gradient of W features of y, given that of the output; write that of z, add that of the norm's weight.
    Floats open_gate(int b, int t, int feature, Floats skipped, float* dweight) const {
        const Shape& shape = mixer_.shape;
        const size_t token = size_t(b) * shape.length + t, place = token * shape.inner() + feature;
        const Gate gate(load_floats(mixer_.row(b) + size_t(t) * shape.projected() + feature));
        const Floats y = load<Floats>(ssd_ + place) + skipped, dout = load_floats(dout_ + place);
        const Floats normal = inverse_[token] * y * gate.opening;
        store(dweight, load<Floats>(dweight) + dout * normal);
        const Floats dgated =
            inverse_[token] * dout * load<Floats>(mixer_.norm_weight + feature) - common_[token] * normal;
        store_floats(into_.projected + token * shape.projected() + feature, dgated * y * gate.slope);
        return dgated * gate.opening;
    }

    // Compute the gradients of the step sizes, of their bias and of the decay rate.
    void steps(const Head& head) const {
        const Shape& shape = mixer_.shape;
        const Decays& decays = head.decays;
        const int P = shape.width, column = shape.inner() + shape.channels() + head.index;
        const float rate = mixer_.rates[head.index];
        double dlogs[MOST_TILES * TILE], drate = 0, dbias = 0;
        head.exponents.around(shape.tiles(), dlogs);
        for (int t = 0; t < shape.length; ++t) {
            Floats written{};
            for (int p = t * P; p < (t + 1) * P; p += W)
                written += load<Floats>(head.du.get() + p) * load<Floats>(head.x.get() + p);
            const double dlog = decays.dt[t] * rate < LOWEST_LOG_DECAY ? 0.0 : dlogs[t];
            const double dstep = (sum(written) + dlog * rate) / (1.0 + std::exp(-double(decays.raw[t])));
            drate += dlog * decays.dt[t];
            dbias += dstep;
            T narrow[W];
            store_floats(narrow, floats(float(dstep)));
            into_.projected[(size_t(head.b) * shape.length + t) * shape.projected() + column] = narrow[0];
        }
        into_.rates[size_t(head.b) * shape.heads + head.index] = float(drate);
        into_.dt_bias[size_t(head.b) * shape.heads + head.index] = float(dbias);
    }

    // Compute the gradients of LANES channels of (B, C), from `first` on, given those of the products C_t . B_s.
    void projections(int b, int first, const float* dsimilarity) const {
        const Shape& shape = mixer_.shape;
        const int padded = shape.padded(), pitch = shape.pitch(), state = shape.state;
        const Buffer<float> pre = buffer(size_t(padded) * LANES), gradient = buffer(size_t(padded) * LANES);
        mixer_.convolve(b, shape.inner() + first, LANES, 0, padded, pre.get());
        for (int t = 0; t < padded; t += ROWS)
            for (int c = 0; c < LANES; c += SPAN) {
                Sums sums;
                const int channel = first + c;
                if (channel < state)
                    multiply(dsimilarity + size_t(t) * pitch + t, 1, pitch,
                             shared_[b].C.get() + size_t(t) * state + channel, state, padded - t, sums);
                else
                    multiply(dsimilarity + size_t(t) * pitch, pitch, 1, shared_[b].B.get() + channel - state, state,
                             t + ROWS, sums);
                for (int r = 0; r < ROWS; ++r)
                    for (int n = 0; n < BLOCK; ++n) {
                        const size_t place = size_t(t + r) * LANES + c + n * W;
                        store(gradient.get() + place, sums[r][n] * Gate(load<Floats>(pre.get() + place)).slope);
                    }
            }
        convolution_gradients(mixer_, into_, b, shape.inner() + first, LANES, gradient.get());
    }

    const Mixer<T>& mixer_;
    const float* const ssd_;
    const float* const inverse_;
    const T* const dout_;
    const SequenceGradients<T>& into_;
    std::vector<Shared<Unit>> shared_;
    Buffer<float> common_;  // (B, L)
};

}  // namespace aim
