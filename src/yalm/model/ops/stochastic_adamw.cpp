// AdamW in one pass, with weights and moments in fp32 or bf16; see stochastic_adamw.py, whose bits these are.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr long BLOCK = 4096;

typedef uint16_t Half;

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float value_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float read(float value) { return value; }
inline float read(Half value) { return value_of(uint32_t(value) << 16); }

inline void round_at_random(float* to, float value, uint32_t) { *to = value; }
inline void round_at_random(Half* to, float value, uint32_t random) { *to = Half((bits_of(value) + random) >> 16); }

inline void round_to_nearest(float* to, float value) { *to = value; }
inline void round_to_nearest(Half* to, float value) {
    uint32_t bits = bits_of(value);
    *to = value == value ? Half((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) : Half(0x7FC0);
}

inline uint32_t mixed(uint32_t bits) {
    bits = (bits ^ (bits >> 16)) * 0x7FEB352Du;
    bits = (bits ^ (bits >> 15)) * 0x846CA68Bu;
    return bits ^ (bits >> 16);
}

struct Update {
    float keep, beta1, beta2, rate, correction, eps;
    uint32_t first_key, second_key;
};

template <class Weight, class Gradient, class Moment>
void step(Weight* weight, const Gradient* gradient, Moment* mean, Moment* square, long n, uint32_t place, Update by) {
    for (long i = 0; i < n; i++) {
        uint32_t random = mixed(mixed((place + uint32_t(i)) ^ by.first_key) ^ by.second_key);
        float g = read(gradient[i]), m = read(mean[i]), v = read(square[i]);
        m += (g - m) * (1 - by.beta1);
        v = v * by.beta2 + g * g * (1 - by.beta2);
        float w = read(weight[i]) * by.keep - by.rate * m / (std::sqrt(v) / by.correction + by.eps);
        round_at_random(weight + i, w, random & 0xFFFF);
        round_to_nearest(mean + i, m);
        round_at_random(square + i, v, random >> 16);
    }
}

template <class Weight, class Gradient, class Moment>
void steps(void* weight, const void* gradient, void* mean, void* square, long rows, long columns, uint32_t place,
           long whole, Update by, int threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++)
        for (long start = 0; start < columns; start += BLOCK) {
            long at = row * columns + start;
            step((Weight*)weight + at, (const Gradient*)gradient + at, (Moment*)mean + at, (Moment*)square + at,
                 std::min(BLOCK, columns - start), place + uint32_t(row * whole + start), by);
        }
}

typedef void (*Steps)(void*, const void*, void*, void*, long, long, uint32_t, long, Update, int);

}  // namespace

extern "C" {
// Each (rows, columns), contiguous; the flags say which are bf16, the moments together. `place` is the number of their
// first element in a tensor of `whole` columns.
void stochastic_adamw(void* weight, const void* gradient, void* mean, void* square, int half_weight, int half_gradient,
                      int half_moments, long rows, long columns, uint32_t place, long whole, float keep, float beta1,
                      float beta2, float rate, float correction, float eps, uint32_t first_key, uint32_t second_key,
                      int threads) {
    static const Steps kinds[] = {
        steps<float, float, float>, steps<float, float, Half>, steps<float, Half, float>, steps<float, Half, Half>,
        steps<Half, float, float>,  steps<Half, float, Half>,  steps<Half, Half, float>,  steps<Half, Half, Half>,
    };
    Update by = {keep, beta1, beta2, rate, correction, eps, first_key, second_key};
    kinds[4 * half_weight + 2 * half_gradient + half_moments](weight, gradient, mean, square, rows, columns, place,
                                                              whole, by, threads);
}
}
