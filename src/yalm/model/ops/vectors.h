// Vectors of fp32 numbers: 16 with AVX-512, else 8 (AVX2).

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
#endif

}  // namespace
