// Cross entropy of logits on CPUs, whose gradient takes their place: a row is read for its largest logit, becomes
// exponents while it is in the second-level cache, and is scaled there. fp32.

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

// Numbers whose exponents are summed in fp32, before their sum joins the others' in fp64.
constexpr long CHAIN = 64 * WIDTH;

const float FLOOR = -INFINITY;

// The vector at `from`, with `fill` in place of what lies behind `count` numbers.
inline Floats some(const float* from, long count, float fill) {
    if (count >= WIDTH) return load(from);
    float numbers[WIDTH];
    std::fill(std::copy(from, from + count, numbers), numbers + WIDTH, fill);
    return load(numbers);
}

inline void store_some(float* to, long count, Floats values) {
    if (count >= WIDTH) return store(to, values);
    float numbers[WIDTH];
    store(numbers, values);
    std::copy(numbers, numbers + count, to);
}

float largest(const float* x, long n) {
    Floats most[2] = {splat(FLOOR), splat(FLOOR)};
    for (long i = 0; i < n; i += 2 * WIDTH)
        for (int part = 0; part < 2; part++) {
            long at = i + part * WIDTH;
            if (at < n) most[part] = greater(most[part], some(x + at, n - at, FLOOR));
        }
    float numbers[WIDTH];
    store(numbers, greater(most[0], most[1]));
    return *std::max_element(numbers, numbers + WIDTH);
}

}  // namespace

extern "C" {
// logits (N, V) contiguous, targets (N), weights (N) or null, losses (N). With weights the logits become
// weight * (softmax - one-hot of the target); without, they stay.
void softmax_losses(float* logits, const long* targets, const float* weights, float* losses, long rows, long words,
                    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        float *x = logits + row * words, most = largest(x, words), of_target = x[targets[row]];
        double sum = 0;
        for (long start = 0; start < words; start += CHAIN) {
            Floats sums = splat(0);
            long end = std::min(start + CHAIN, words);
            for (long i = start; i < end; i += WIDTH) {
                Floats power = power_of_two((some(x + i, end - i, FLOOR) - splat(most)) * splat(LOG2E));
                sums = sums + power;
                if (weights) store_some(x + i, end - i, power);
            }
            sum += total(sums);
        }
        losses[row] = float(std::log(sum) + (double(most) - of_target));
        if (!weights) continue;
        float scale = float(weights[row] / sum);
        for (long i = 0; i < words; i += WIDTH) store_some(x + i, words - i, some(x + i, words - i, 0) * splat(scale));
        x[targets[row]] -= weights[row];
    }
}
}
