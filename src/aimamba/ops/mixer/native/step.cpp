// One decoding step of AiM with Mamba-2, from the residual of every row to its logits (see
// aimamba/generation/engines/native.py).
//
// Shape letters: R rows, D width, E inner width, H heads, P head width, N state size, K slots of the cache,
// V vocabulary.

#include <memory>

#include "mixer/native/step_sums.h"
#include "native/panels.h"
#include "native/threads.h"
#include "sampling/native/sample.h"

namespace aim {

struct Shape {
    int layers, width, inner, heads, state, taps, vocabulary;
    int first, later;  // number of cached tokens when they are folded into the state: the first time, and afterwards
    int slots;         // K: the larger of `first` and `later`, or less if no image is that long
    int head() const { return inner / heads; }
    int convolved() const { return inner + 2 * state; }
};

struct Layer {
    Matrix in_proj, out_proj;
    std::vector<float> norm, conv_weight, conv_bias, dt_bias, A, D, gate_norm;  // conv_weight (taps, E + 2 N)
};

// The memory of one block for all rows. `inputs`, `B` and `weights` are the cache of the dual form: x and B of past
// tokens and, for every head, dt times the decay since. `folded` is the state of older tokens, `carry` its decay since.
struct Memories {
    float* window;   // (R, taps - 1, E + 2 N), oldest first
    void* inputs;    // (R, H, K, P), in float32 or bfloat16
    void* B;         // (R, K, N), likewise
    float* weights;  // (R, H, K)
    float* folded;   // (R, H, N, P); null if no image is long enough
    float* carry;    // (R, H)
};

constexpr int MOST_IN_HEAD = 256;

using Course = Threads::Course;

class Stepper {
  public:
    Shape shape;
    Kind kind;
    std::vector<Layer> layers;
    Matrix head;
    std::vector<float> norm, final_norm;

    Stepper(Shape shape, Kind kind, int threads) : shape(shape), kind(kind), threads_(threads) {}

    Matrix packed(const float* values, int outputs, int inputs) {
        Matrix matrix(kind, outputs, inputs);
        threads_.run(
            1, [&](Course& course) { course.share(matrix.panels(), [&](int panel) { matrix.pack(panel, values); }); });
        return matrix;
    }

    // residual (R, D) is overwritten; modulation (R, layers, 3, D); final_modulation (R, 2, D); logits (R, V).
    void step(int rows, float* residual, const float* modulation, const float* final_modulation,
              const Memories* memories, const int64_t* positions, float* logits) {
        reserve(rows);
        threads_.run(5 * shape.layers + 2, [&](Course& course) {
            for (int index = 0; index < shape.layers; ++index)
                block(course, rows, index, residual, modulation, memories[index], positions);
            end(course, rows, residual, final_modulation, logits);
        });
    }

    // Sample a token for every image; `unconditional` holds the index of each image's unconditional row.
    void sample_all(int images, const float* logits, const int64_t* unconditional, const float* scales,
                    const float* temperatures, const int64_t* top_ks, const float* top_ps, const float* min_ps,
                    const double* uniforms, int64_t* tokens) {
        const int count = shape.vocabulary;
        threads_.run(1, [&](Course& course) {
            course.share(images, [&](int i) {
                tokens[i] = sample(logits + size_t(i) * count, logits + size_t(unconditional[i]) * count, scales[i],
                                   {temperatures[i], top_ps[i], min_ps[i], top_ks[i]}, uniforms[i], count);
            });
        });
    }

  private:
    Threads threads_;
    int rows_ = 0;
    std::unique_ptr<Inputs> narrow_, wide_;             // inputs of in_proj and head (R, D), and of out_proj (R, E)
    std::vector<float> gate_, convolved_, dt_, gated_;  // silu(z) (R, E), (R, E + 2 N), (R, H), (R, E)

    void reserve(int rows) {
        if (rows <= rows_) return;
        narrow_ = std::make_unique<Inputs>(kind, rows, shape.width);
        wide_ = std::make_unique<Inputs>(kind, rows, shape.inner);
        gate_.resize(size_t(rows) * shape.inner);
        convolved_.resize(size_t(rows) * shape.convolved());
        dt_.resize(size_t(rows) * shape.heads);
        gated_.resize(size_t(rows) * shape.inner);
        rows_ = rows;
    }

    void block(Course& course, int rows, int index, float* residual, const float* modulation, const Memories& memory,
               const int64_t* positions) {
        const Layer& layer = layers[index];
        const int width = shape.width;
        const auto role = [&](int row, int which) {
            return modulation + ((size_t(row) * shape.layers + index) * 3 + which) * width;
        };
        course.share(rows, [&](int row) {
            std::vector<float> modulated(width);
            modulate(residual + size_t(row) * width, layer.norm.data(), role(row, 0), role(row, 1), width,
                     modulated.data());
            narrow_->set(row, modulated.data());
        });
        course.share(tasks_of(layer.in_proj), [&](int task) {
            multiply(layer.in_proj, task, *narrow_, rows, [&](int row, int first, const Floats* values) {
                for (int v = 0; v < 2; ++v)
                    take_projection(layer, memory, row, positions[row], first + v * W, values[v]);
            });
        });
        const int parts = std::min(shape.heads, (2 * threads_.count() + rows - 1) / rows);
        course.share(rows * parts, [&](int task) {
            const int row = task / parts, part = task % parts;
            const int from = shape.heads * part / parts, to = shape.heads * (part + 1) / parts;
            if (kind == Kind::float32) ssd<float>(layer, memory, row, positions[row], from, to);
            else ssd<bfloat16>(layer, memory, row, positions[row], from, to);
            if (parts == 1) normalise(layer, row);
        });
        if (parts > 1) course.share(rows, [&](int row) { normalise(layer, row); });
        course.share(tasks_of(layer.out_proj), [&](int task) {
            multiply(layer.out_proj, task, *wide_, rows, [&](int row, int first, const Floats* values) {
                for (int v = 0; v < 2 && first + v * W < width; ++v) {
                    float* to = residual + size_t(row) * width + first + v * W;
                    store(to, load_floats(to) + load_floats(role(row, 2) + first + v * W) * values[v]);
                }
            });
        });
    }

    // Number of tokens in a row's cache before the one at `position`, which is also the slot of that one.
    int cached(int64_t position) const {
        return int(position < shape.first ? position : (position - shape.first) % shape.later);
    }

    // Handle W numbers of the projection (z, x, B, C, dt): apply silu, convolve and cache, or compute step sizes.
    void take_projection(const Layer& layer, const Memories& memory, int row, int64_t position, int place,
                         Floats value) {
        const int inner = shape.inner, channels = shape.convolved(), past = shape.taps - 1;
        if (place < inner) {
            store(&gate_[size_t(row) * inner + place], silu(value));
        } else if (place < inner + channels) {
            const int channel = place - inner;
            float* window = memory.window + size_t(row) * past * channels + channel;
            const float* weight = layer.conv_weight.data() + channel;
            Floats y = load_floats(layer.conv_bias.data() + channel);
            for (int tap = 0; tap < past; ++tap) {
                float* to = window + size_t(tap) * channels;
                y += load_floats(weight + size_t(tap) * channels) * load_floats(to);
                store(to, tap + 1 < past ? load_floats(to + channels) : value);
            }
            y = silu(y + load_floats(weight + size_t(past) * channels) * value);
            store(&convolved_[size_t(row) * channels + channel], y);
            if (kind == Kind::float32) remember<float>(memory, row, position, channel, y);
            else remember<bfloat16>(memory, row, position, channel, y);
        } else {
            const int first = place - inner - channels;
            for (int i = 0; i < W && first + i < shape.heads; ++i) {
                const float raw = value[i] + layer.dt_bias[first + i];
                dt_[size_t(row) * shape.heads + first + i] = raw > 20.0f ? raw : std::log1p(std::exp(raw));
            }
        }
    }

    template <typename T>
    void remember(const Memories& memory, int row, int64_t position, int channel, Floats value) {
        const int slot = cached(position), P = shape.head(), K = shape.slots;
        if (channel < shape.inner) {
            const size_t head = size_t(row) * shape.heads + channel / P;
            store_floats(static_cast<T*>(memory.inputs) + (head * K + slot) * P + channel % P, value);
        } else if (channel < shape.inner + shape.state) {
            store_floats(static_cast<T*>(memory.B) + (size_t(row) * K + slot) * shape.state + channel - shape.inner,
                         value);
        }
    }

    // y_t = sum over cached s of (C_t . B_s) weight_s x_s, plus the part of the folded state; then the skip and the
    // gate. For heads from ... to - 1.
    template <typename T>
    void ssd(const Layer& layer, const Memories& memory, int row, int64_t position, int from, int to) {
        const int P = shape.head(), N = shape.state, K = shape.slots, count = cached(position) + 1;
        const bool has_state = position >= shape.first;
        const bool full = memory.folded && count == (has_state ? shape.later : shape.first);
        const float *x = &convolved_[size_t(row) * shape.convolved()], *C = x + shape.inner + N;
        const T* B = static_cast<const T*>(memory.B) + size_t(row) * K * N;
        std::vector<float> similarity(count), share(count);
        for (int s = 0; s < count; ++s) similarity[s] = dot(C, B + size_t(s) * N, N);
        for (int head = from; head < to; ++head) {
            const size_t place = size_t(row) * shape.heads + head;
            const float dt = dt_[place], decay = std::exp(dt * layer.A[head]);
            const T* cache = static_cast<const T*>(memory.inputs) + place * K * P;
            float *weight = memory.weights + place * K, *folded = memory.folded + place * N * P;
            for (int s = 0; s + 1 < count; ++s) weight[s] *= decay;
            weight[count - 1] = dt;
            for (int s = 0; s < count; ++s) share[s] = similarity[s] * weight[s];
            if (has_state) memory.carry[place] *= decay;
            float y[MOST_IN_HEAD];
            weighted_sum(cache, share.data(), count, P, y);
            if (has_state) {
                float older[MOST_IN_HEAD];
                weighted_sum(folded, C, N, P, older);
                for (int p = 0; p < P; ++p) y[p] += memory.carry[place] * older[p];
            }
            const size_t to = size_t(row) * shape.inner + head * P;
            for (int p = 0; p < P; p += W) {
                const Floats all = load_floats(y + p) + layer.D[head] * load_floats(x + head * P + p);
                store(&gated_[to + p], all * load_floats(&gate_[to + p]));
            }
            if (full) {
                fold(cache, B, weight, count, has_state ? memory.carry[place] : 0.0f, folded);
                memory.carry[place] = 1.0f;
            }
        }
    }

    // state (N, P) = carry state + sum over cached s of weight_s B_s x_s^T
    template <typename T>
    void fold(const T* x, const T* B, const float* weight, int count, float carry, float* state) const {
        const int P = shape.head(), N = shape.state;
        std::vector<float> share(count);
        float added[MOST_IN_HEAD];
        for (int n = 0; n < N; ++n, state += P) {
            for (int s = 0; s < count; ++s) share[s] = weight[s] * widened(B[size_t(s) * N + n]);
            weighted_sum(x, share.data(), count, P, added);
            for (int p = 0; p < P; ++p) state[p] = carry == 0.0f ? added[p] : carry * state[p] + added[p];
        }
    }

    void normalise(const Layer& layer, int row) {
        float* x = &gated_[size_t(row) * shape.inner];
        const float factor = root_mean_square(x, shape.inner);
        for (int i = 0; i < shape.inner; i += W)
            store(x + i, load_floats(x + i) * factor * load_floats(layer.gate_norm.data() + i));
        wide_->set(row, x);
    }

    void end(Course& course, int rows, const float* residual, const float* final_modulation, float* logits) {
        const int width = shape.width;
        course.share(rows, [&](int row) {
            const float *x = residual + size_t(row) * width, *shift = final_modulation + size_t(row) * 2 * width;
            std::vector<float> normed(width), modulated(width);
            const float factor = root_mean_square(x, width);
            for (int i = 0; i < width; i += W) store(&normed[i], load_floats(x + i) * factor * load_floats(&norm[i]));
            modulate(normed.data(), final_norm.data(), shift, shift + width, width, modulated.data());
            narrow_->set(row, modulated.data());
        });
        course.share(tasks_of(head), [&](int task) {
            multiply(head, task, *narrow_, rows, [&](int row, int first, const Floats* values) {
                float* to = logits + size_t(row) * shape.vocabulary + first;
                std::memcpy(to, values, sizeof(float) * std::min(PANEL, shape.vocabulary - first));
            });
        });
    }
};

std::vector<float> copied(const float* from, size_t count) { return std::vector<float>(from, from + count); }

}  // namespace aim

extern "C" {

void* aim_create(const int* shape, int kind, int threads) {
    aim::Shape all;
    static_assert(sizeof all == 10 * sizeof(int), "the fields of Shape");
    std::memcpy(&all, shape, sizeof all);
    return new aim::Stepper(all, static_cast<aim::Kind>(kind), threads);
}

void aim_destroy(void* stepper) { delete static_cast<aim::Stepper*>(stepper); }

// Add the weights of the next block, in float32; everything is copied.
void aim_add_layer(void* stepper, const float* in_proj, const float* out_proj, const float* norm,
                   const float* conv_weight, const float* conv_bias, const float* dt_bias, const float* A,
                   const float* D, const float* gate_norm) {
    auto& to = *static_cast<aim::Stepper*>(stepper);
    const aim::Shape& shape = to.shape;
    const int channels = shape.convolved();
    to.layers.push_back({to.packed(in_proj, shape.inner + channels + shape.heads, shape.width),
                         to.packed(out_proj, shape.width, shape.inner), aim::copied(norm, shape.width),
                         aim::copied(conv_weight, size_t(shape.taps) * channels), aim::copied(conv_bias, channels),
                         aim::copied(dt_bias, shape.heads), aim::copied(A, shape.heads), aim::copied(D, shape.heads),
                         aim::copied(gate_norm, shape.inner)});
}

void aim_set_head(void* stepper, const float* weight, const float* norm, const float* final_norm) {
    auto& to = *static_cast<aim::Stepper*>(stepper);
    to.head = to.packed(weight, to.shape.vocabulary, to.shape.width);
    to.norm = aim::copied(norm, to.shape.width);
    to.final_norm = aim::copied(final_norm, to.shape.width);
}

// `memories`: for every block the addresses of window, inputs, B, weights, folded and carry.
void aim_step(void* stepper, int rows, float* residual, const float* modulation, const float* final_modulation,
              void* const* memories, const int64_t* positions, float* logits) {
    static_assert(sizeof(aim::Memories) == 6 * sizeof(void*), "the fields of Memories");
    static_cast<aim::Stepper*>(stepper)->step(rows, residual, modulation, final_modulation,
                                              reinterpret_cast<const aim::Memories*>(memories), positions, logits);
}

// `unconditional`: for every image the index of its unconditional row of logits, or of its own row.
void aim_sample(void* stepper, int images, const float* logits, const int64_t* unconditional, const float* scales,
                const float* temperatures, const int64_t* top_ks, const float* top_ps, const float* min_ps,
                const double* uniforms, int64_t* tokens) {
    static_cast<aim::Stepper*>(stepper)->sample_all(images, logits, unconditional, scales, temperatures, top_ks, top_ps,
                                                    min_ps, uniforms, tokens);
}
}
