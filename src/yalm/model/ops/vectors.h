// Vectors of fp32 numbers, 16 with AVX-512, else 8 (AVX2): sums, the greater of two, rounding, x * 2^power, 2^x.

#pragma once

#include <immintrin.h>

namespace {

#ifdef __AVX512F__
constexpr int WIDTH = 16;
typedef __m512 Floats;
typedef __m512i Ints;
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Floats value) { _mm512_storeu_ps(to, value); }
inline Floats splat(float value) { return _mm512_set1_ps(value); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline float total(Floats values) { return _mm512_reduce_add_ps(values); }
inline Floats greater(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats whole(Floats x) { return _mm512_roundscale_ps(x, 0); }
inline Floats times_power(Floats x, Floats power) { return _mm512_scalef_ps(x, power); }
#else
constexpr int WIDTH = 8;
typedef __m256 Floats;
typedef __m256i Ints;
inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Floats value) { _mm256_storeu_ps(to, value); }
inline Floats splat(float value) { return _mm256_set1_ps(value); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline float total(Floats values) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline Floats greater(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats whole(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats times_power(Floats x, Floats power) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
#endif

constexpr float LOG2E = 1.4426950408889634f;

// 2^x for x <= 0, by the polynomial on [-1/2, 1/2] of least relative error, 2e-9; no result is below 2^-126.
inline Floats power_of_two(Floats x) {
    x = greater(splat(-126.0f), x);  // in this order NaN comes through
    Floats n = whole(x), f = x - n;
    Floats y = splat(1.535336188319500e-4f);
    y = fused(y, f, splat(1.339887440266574e-3f));
    y = fused(y, f, splat(9.618437357674640e-3f));
    y = fused(y, f, splat(5.550332471162809e-2f));
    y = fused(y, f, splat(2.402264791363012e-1f));
    y = fused(y, f, splat(6.931472028550421e-1f));
    y = fused(y, f, splat(1.0f));
    return times_power(y, n);
}

}  // namespace
