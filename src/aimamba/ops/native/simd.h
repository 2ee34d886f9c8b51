// Vectors of floats as wide as the machine's registers, with the vector extensions of GCC and Clang.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace aim {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

typedef float Floats __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint32_t Words __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef int16_t Shorts __attribute__((vector_size(2 * W)));
typedef int8_t Bytes __attribute__((vector_size(W)));

using bfloat16 = uint16_t;

template <typename V, typename T>
inline V load(const T* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <typename V, typename T>
inline void store(T* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

inline Floats floats(float value) { return value - Floats{}; }  // a difference, because -0 + 0 is +0

inline Floats as_floats(Words bits) {
    Floats v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

inline Words as_words(Floats v) {
    Words bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits;
}

template <typename T>
inline T sum_of_parts(T (&part)[W]) {
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) part[i] += part[i + half];
    return part[0];
}

inline float sum(Floats v) {
    float part[W];
    std::memcpy(part, &v, sizeof part);
    return sum_of_parts(part);
}

inline int sum(Ints v) {
    int32_t part[W];
    std::memcpy(part, &v, sizeof part);
    return sum_of_parts(part);
}

// Round numbers below 2^22 to integers, ties to even. The sum with 1.5 * 2^23 has them in its last bits.
inline Ints whole(Floats v) {
    const Floats shifted = v + 12582912.0f;
    Ints bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4b400000;
}

// Load W numbers of either dtype as float32.
inline Floats load_floats(const float* from) { return load<Floats>(from); }

inline Floats load_floats(const bfloat16* from) {
    return as_floats(__builtin_convertvector(load<Halves>(from), Words) << 16);
}

// Round to the nearest bfloat16, ties to even. Numbers must be finite.
inline Halves round_to_bfloat16(Floats v) {
    const Words bits = as_words(v);
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
}

inline float widened(float x) { return x; }

inline float widened(bfloat16 x) { return as_floats(Words{} + (uint32_t(x) << 16))[0]; }

inline void store_floats(float* to, Floats v) { store(to, v); }

inline void store_floats(bfloat16* to, Floats v) { store(to, round_to_bfloat16(v)); }

// exp with a relative error of 2e-7: 2^n 2^f with |f| <= 1/2, the second factor by its Taylor polynomial.
inline Floats exponential(Floats x) {
    x = x > 88.0f ? floats(88.0f) : x;
    x = x < -87.0f ? floats(-87.0f) : x;
    const Floats scaled = x * 1.44269504f;
    const Floats shifted = scaled + 12582912.0f;  // 1.5 * 2^23: the sum is rounded to an integer
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
    Floats p = floats(1.0f / 5040);
    for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + coefficient;
    const Words power = (__builtin_convertvector(__builtin_convertvector(n, Ints), Words) + 127) << 23;
    return p * as_floats(power);
}

inline Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

}  // namespace aim
