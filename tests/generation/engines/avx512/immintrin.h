// A stand-in for the compiler's header: what the kernel uses of AVX-512, in plain C++, so that the code for machines
// with AVX512-BF16 and VNNI is tested on those without.
#pragma once

#include <cstdint>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64)));
typedef long long __m512i __attribute__((vector_size(64)));
typedef uint16_t __m512bh __attribute__((vector_size(64)));

inline void _mm_pause() { __builtin_ia32_pause(); }
inline unsigned _mm_getcsr() { return __builtin_ia32_stmxcsr(); }
inline void _mm_setcsr(unsigned value) { __builtin_ia32_ldmxcsr(value); }

inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512i _mm512_setzero_si512() { return __m512i{}; }

inline __m512i _mm512_loadu_si512(const void* from) {
    __m512i value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline __m512i _mm512_set1_epi32(int value) {
    int32_t all[16];
    for (int32_t& each : all) each = value;
    return _mm512_loadu_si512(all);
}

// Sums of four products of an unsigned and a signed byte.
inline __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i left, __m512i right) {
    int32_t out[16];
    uint8_t a[64];
    int8_t b[64];
    std::memcpy(out, &sums, 64);
    std::memcpy(a, &left, 64);
    std::memcpy(b, &right, 64);
    for (int i = 0; i < 64; ++i) out[i / 4] += int(a[i]) * int(b[i]);
    return _mm512_loadu_si512(out);
}

inline float widened_bfloat16(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Sums of two products of bfloat16.
inline __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh left, __m512bh right) {
    for (int i = 0; i < 32; ++i) sums[i / 2] += widened_bfloat16(left[i]) * widened_bfloat16(right[i]);
    return sums;
}
