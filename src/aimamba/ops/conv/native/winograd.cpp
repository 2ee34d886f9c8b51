// 3 x 3 convolutions by Winograd's F(4 x 4, 3 x 3) in float32, with the norm before and the residual after in one pass.
//
// A tile of 4 x 4 outputs depends on 6 x 6 inputs. Inputs, weights and outputs are mapped linearly, so that 36 products
// replace 144 (Lavin and Gray, arXiv 1509.09308). The points 0, +-sqrt(1/2), +-sqrt(2) and infinity have the smallest
// rounding error. An image (H, W, C) is cut into regions of a few tiles whose numbers stay in the cache of one core.
// Regions and the order of every sum depend only on the shape, so results are the same for every number of threads.
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "native/simd.h"
#include "native/threads.h"

namespace {

using namespace aim;

constexpr int SIDE = 6, POINTS = SIDE * SIDE, TILE = 4;
constexpr int PANEL = 32, VECTORS = PANEL / W;  // outputs that are computed together
constexpr int ROWS = REGISTERS == 32 ? 8 : 6;   // maximum number of tiles that are computed together
constexpr int BLOCK = 2;                        // vectors of a product
constexpr int LINE = 16;                        // floats of a cache line
constexpr float A = 0.70710678118654752f, A2 = 0.5f, A3 = A2 * A;
constexpr float B = 1.41421356237309505f, B2 = 2.0f, B3 = B2 * B;

struct Convolution {
    const float* input;          // (H, W, C)
    const float *scale, *shift;  // (C), or null: convolve silu(input * scale + shift) instead of the input
    const float* weights;        // (phases, K / PANEL, POINTS, C, PANEL)
    const float* bias;           // (K)
    const float* residual;       // added to the output, of the same shape, may be the same memory; or null
    float* output;               // (H, W, K); doubled: (2 H, 2 W, K)
    int height, width, inputs, outputs;
    int doubled;  // every input pixel becomes 2 x 2 output pixels, each with its own weights (4 phases)
};

inline void map_input(const Floats d[6], Floats v[6]) {
    const Floats even_a = d[4] - B2 * d[2], odd_a = A * d[3] - (A * B2) * d[1];
    const Floats even_b = d[4] - A2 * d[2], odd_b = B * d[3] - (B * A2) * d[1];
    v[0] = d[0] - (A2 + B2) * d[2] + d[4];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = d[1] - (A2 + B2) * d[3] + d[5];
}

inline void map_output(const Floats m[6], Floats y[4]) {
    const Floats even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = A * odd_a + B * odd_b;
    y[2] = A2 * even_a + B2 * even_b;
    y[3] = A3 * odd_a + B3 * odd_b + m[5];
}

// Multiply tiles (COUNT, C) by BLOCK vectors of the weights (C, PANEL), into (COUNT, PANEL). If these are a part of a
// panel, the weights that are needed `next` are prefetched, as the processor does not foresee them.
template <int COUNT>
void multiply(const float* tiles, const float* weights, const float* next, float* products, int inputs) {
    Floats sums[COUNT][BLOCK] = {};
    for (int c = 0; c < inputs; ++c) {
        if constexpr (BLOCK < VECTORS) __builtin_prefetch(next + c * PANEL);
        Floats w[BLOCK];
        for (int n = 0; n < BLOCK; ++n) w[n] = load<Floats>(weights + c * PANEL + n * W);
#pragma GCC unroll 8
        for (int t = 0; t < COUNT; ++t)
            for (int n = 0; n < BLOCK; ++n) sums[t][n] += tiles[t * inputs + c] * w[n];
    }
    for (int t = 0; t < COUNT; ++t)
        for (int n = 0; n < BLOCK; ++n) store(products + t * PANEL + n * W, sums[t][n]);
}

template <int MOST>
void multiply(int count, const float* tiles, const float* weights, const float* next, float* products, int inputs) {
    if constexpr (MOST > 1)
        if (count < MOST) return multiply<MOST - 1>(count, tiles, weights, next, products, inputs);
    multiply<MOST>(tiles, weights, next, products, inputs);
}

class Region {
  public:
    static int down() { return 4; }
    static int across(int inputs) { return inputs <= 128 ? 8 : 4; }

    explicit Region(const Convolution& job) : job_(job) {
        const size_t tiles = size_t(down()) * across(job.inputs), inputs = job.inputs;
        const size_t places = size_t(TILE * down() + 2) * (TILE * across(job.inputs) + 2);
        memory_.reset(new float[places * inputs + POINTS * tiles * (inputs + PANEL) + LINE]);  // not filled
        active_ = memory_.get() + (LINE - reinterpret_cast<uintptr_t>(memory_.get()) / sizeof(float) % LINE) % LINE;
        mapped_ = active_ + places * inputs;
        products_ = mapped_ + POINTS * tiles * inputs;
    }

    // Compute the outputs of panels first ... last - 1 for the tiles from row `top` and column `left` on. Their sums
    // and sums of squares by output go to `moments` (2, K).
    void run(int top, int left, int first, int last, float* moments) {
        top_ = top, left_ = left;
        down_ = std::min(down(), (job_.height + TILE - 1) / TILE - top);
        across_ = std::min(across(job_.inputs), (job_.width + TILE - 1) / TILE - left);
        activate();
        map_inputs();
        for (int panel = first; panel < last; ++panel)
            for (int phase = 0; phase < (job_.doubled ? 4 : 1); ++phase) {
                multiply_all(phase * (job_.outputs / PANEL) + panel);
                for (int k = 0; k < PANEL; k += W) write(phase, panel * PANEL, k, moments);
            }
    }

  private:
    int tiles() const { return down_ * across_; }

    // Compute the inputs of all tiles after norm and swish; zero outside the image.
    void activate() {
        const int width = TILE * across_ + 2, inputs = job_.inputs;
        float* to = active_;
        for (int y = TILE * top_ - 1; y < TILE * (top_ + down_) + 1; ++y)
            for (int x = TILE * left_ - 1; x < TILE * left_ - 1 + width; ++x, to += inputs) {
                const bool inside = y >= 0 && x >= 0 && y < job_.height && x < job_.width;
                const float* from = job_.input + (size_t(y) * job_.width + x) * inputs;
                if (!inside) std::memset(to, 0, sizeof(float) * inputs);
                else if (!job_.scale) std::memcpy(to, from, sizeof(float) * inputs);
                else
                    for (int c = 0; c < inputs; c += W)
                        store(to + c, silu(load<Floats>(from + c) * load<Floats>(job_.scale + c) +
                                           load<Floats>(job_.shift + c)));
            }
    }

    void map_inputs() {
        const int width = TILE * across_ + 2, inputs = job_.inputs;
        for (int t = 0; t < tiles(); ++t) {
            const float* from = active_ + (size_t(TILE) * (t / across_) * width + TILE * (t % across_)) * inputs;
            for (int c = 0; c < inputs; c += W) {
                Floats half[SIDE][SIDE];
                for (int x = 0; x < SIDE; ++x) {
                    Floats column[SIDE], mapped[SIDE];
                    for (int y = 0; y < SIDE; ++y)
                        column[y] = load<Floats>(from + (size_t(y) * width + x) * inputs + c);
                    map_input(column, mapped);
                    for (int y = 0; y < SIDE; ++y) half[y][x] = mapped[y];
                }
                for (int y = 0; y < SIDE; ++y) {
                    Floats mapped[SIDE];
                    map_input(half[y], mapped);
                    for (int x = 0; x < SIDE; ++x)
                        store(mapped_ + (size_t(SIDE * y + x) * tiles() + t) * inputs + c, mapped[x]);
                }
            }
        }
    }

    void multiply_all(int panel) {
        const size_t inputs = job_.inputs;
        const float* weights = job_.weights + panel * POINTS * inputs * PANEL;
        const int groups = (tiles() + ROWS - 1) / ROWS;
        for (int point = 0; point < POINTS; ++point, weights += inputs * PANEL)
            for (int block = 0; block < VECTORS; block += BLOCK) {
                const float *from = mapped_ + point * tiles() * inputs, *now = weights + block * W;
                const float* next = block + BLOCK < VECTORS ? now + BLOCK * W : weights + inputs * PANEL;
                float* to = products_ + size_t(point) * tiles() * PANEL + block * W;
                for (int i = 0; i < groups; ++i) {
                    const int t = tiles() * i / groups, end = tiles() * (i + 1) / groups;
                    multiply<ROWS>(end - t, from + t * inputs, now, next, to + t * PANEL, job_.inputs);
                }
            }
    }

    void write(int phase, int panel, int k, float* moments) {
        const int step = job_.doubled ? 2 : 1;
        const Floats bias = load<Floats>(job_.bias + panel + k);
        Floats sum = {}, squares = {};
        for (int t = 0; t < tiles(); ++t) {
            Floats half[TILE][SIDE];
            for (int x = 0; x < SIDE; ++x) {
                Floats column[SIDE], mapped[TILE];
                for (int y = 0; y < SIDE; ++y)
                    column[y] = load<Floats>(products_ + (size_t(SIDE * y + x) * tiles() + t) * PANEL + k);
                map_output(column, mapped);
                for (int y = 0; y < TILE; ++y) half[y][x] = mapped[y];
            }
            const int top = TILE * (top_ + t / across_), left = TILE * (left_ + t % across_);
            for (int y = 0; y < TILE && top + y < job_.height; ++y) {
                Floats mapped_row[TILE];
                map_output(half[y], mapped_row);
                const size_t row = size_t(top + y) * step + phase / 2;
                for (int x = 0; x < TILE && left + x < job_.width; ++x) {
                    const size_t place = row * job_.width * step + (left + x) * step + phase % 2;
                    Floats value = mapped_row[x] + bias;
                    if (job_.residual) value += load<Floats>(job_.residual + place * job_.outputs + panel + k);
                    store(job_.output + place * job_.outputs + panel + k, value);
                    sum += value;
                    squares += value * value;
                }
            }
        }
        for (float* to : {moments + panel + k, moments + job_.outputs + panel + k}) {
            store(to, phase ? load<Floats>(to) + sum : sum);
            sum = squares;
        }
    }

    const Convolution& job_;
    std::unique_ptr<float[]> memory_;
    float *active_, *mapped_, *products_;
    int top_ = 0, left_ = 0, down_ = 0, across_ = 0;
};

}  // namespace

extern "C" {

// See Convolution; `moments` (2, K) gets the sum and the sum of squares of every output channel.
void aim_convolve(const float* input, const float* scale, const float* shift, const float* weights, const float* bias,
                  const float* residual, float* output, double* moments, int height, int width, int inputs, int outputs,
                  int doubled, int threads) {
    const Convolution job{input,  scale,  shift, weights, bias,    residual,
                          output, height, width, inputs,  outputs, doubled};
    const int rows = (height + TILE - 1) / TILE, columns = (width + TILE - 1) / TILE, panels = outputs / PANEL;
    const int across = (columns + Region::across(inputs) - 1) / Region::across(inputs);
    const int regions = (rows + Region::down() - 1) / Region::down() * across;
    // With few regions, panels are split into groups too: mapping inputs again costs little beside many products.
    const int groups = std::min(panels, (2 * threads + regions - 1) / regions), tasks = regions * groups;
    std::vector<float> parts(size_t(regions) * 2 * outputs);
    Threads(std::min(threads, tasks)).run(1, [&](Threads::Course& course) {
        Region region(job);
        course.share(tasks, [&](int i) {
            const int place = i / groups, group = i % groups;
            region.run(place / across * Region::down(), place % across * Region::across(inputs),
                       panels * group / groups, panels * (group + 1) / groups, &parts[size_t(place) * 2 * outputs]);
        });
    });
    std::fill(moments, moments + 2 * outputs, 0.0);
    for (int i = 0; i < regions; ++i)
        for (int k = 0; k < 2 * outputs; ++k) moments[k] += parts[size_t(i) * 2 * outputs + k];
}
}
