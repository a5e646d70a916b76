// y[m][n] = bias[n] + sum over k of x[m][k] * w[n][k] on CPUs, and what a layer does with it next.
//
// Weights are fp32 or bf16, which become fp32 in registers; all else is fp32.
//
// The weight comes in panels of PANEL of its rows, each (K, PANEL) one behind the other and the last one filled up with
// zeros, so that it is read from one end to the other. A tile of up to ROWS rows of x with a panel has its sums in
// registers. Few rows go through a whole panel at once: memory bounds them. Many go through it by DEPTH of its numbers,
// which the first-level cache holds, and by HEIGHT rows at a time, which the second one does (Goto & van de Geijn 2008,
// "Anatomy of high-performance matrix multiplication"). Sums do not depend on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

// Rows and vectors of a tile, so that with AVX2 all 16 registers are used and no more.
constexpr int ROWS = 6, VECTORS = 2;
constexpr long PANEL = VECTORS * WIDTH, DEPTH = 256, HEIGHT = 96;
// Up to here rows are few; two tiles of a panel then, which the second-level cache holds for the second one.
constexpr long FEW = 2 * ROWS;
// Panels of a task, so that a thread that is held up leaves its work to the others.
constexpr long TASK = 4;

inline Floats weights(const float* from) { return load(from); }
inline Floats weights(const uint16_t* from) {
#ifdef __AVX512F__
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
#else
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16));
#endif
}

// x/2 (1 + erf(x/sqrt 2)), by Abramowitz & Stegun's 7.1.26, as in torch: within 2.5e-7 |x|.
inline Floats gelu(Floats x) {
    Floats size = greater(x, splat(0) - x), t = splat(1) / fused(size, splat(0.3275911f * 0.70710678f), splat(1));
    Floats y = splat(1.061405429f);
    y = fused(y, t, splat(-1.453152027f));
    y = fused(y, t, splat(1.421413741f));
    y = fused(y, t, splat(-0.284496736f));
    y = fused(y, t, splat(0.254829592f));
    // The tail on x's side away from 0: half of 1 - erf(|x|/sqrt 2).
    Floats tail = splat(0.5f) * y * t * power_of_two(x * x * splat(-0.5f * LOG2E));
    return greater(x, splat(0)) - size * tail;
}

// What the sums of a product meet.
struct After {
    const float *bias, *times;  // bias (N); times (M, N) or null: multiplied with
    bool is_gelu;               // before that
};

struct Part {
    long row, column, columns;  // of y: the tile's first row, its panel's first column and columns
    bool first, last;           // whether its sums begin here, and end
};

template <int R, class Weight>
inline void tile(const float* x, long x_row, const Weight* panel, long depth, float* y, long y_row, const After& after,
                 const Part& part) {
    Floats sum[R][VECTORS];
    // A panel that is not full meets bias, y and times in a copy.
    float edge[R * PANEL], factors[R * PANEL];
    float* to = y + part.row * y_row + part.column;
    const float* times = after.times && part.last ? after.times + part.row * y_row + part.column : nullptr;
    long to_row = y_row, times_row = y_row;
    float* whole = to;
    // Where the sums begin.
    const float* from = part.first ? after.bias + part.column : to;
    long from_row = part.first ? 0 : y_row;
    if (part.columns < PANEL) {
        std::memset(edge, 0, sizeof(edge));
        std::memset(factors, 0, sizeof(factors));
        for (int r = 0; r < R; r++) {
            const float* old = part.first ? after.bias + part.column : to + r * y_row;
            std::memcpy(edge + r * PANEL, old, part.columns * sizeof(float));
            if (times) std::memcpy(factors + r * PANEL, times + r * y_row, part.columns * sizeof(float));
        }
        from = whole = edge, from_row = to_row = PANEL;
        if (times) times = factors, times_row = PANEL;
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int n = 0; n < VECTORS; n++) sum[r][n] = load(from + r * from_row + n * WIDTH);
    for (long k = 0; k < depth; k++, panel += PANEL) {
        Floats right[VECTORS];
#pragma GCC unroll 2
        for (int n = 0; n < VECTORS; n++) {
            right[n] = weights(panel + n * WIDTH);
            asm("" : "+v"(right[n]));  // once into a register; the compiler would read it again for every row
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            Floats left = splat(x[r * x_row + k]);
#pragma GCC unroll 2
            for (int n = 0; n < VECTORS; n++) sum[r][n] = fused(left, right[n], sum[r][n]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int n = 0; n < VECTORS; n++) store(whole + r * to_row + n * WIDTH, sum[r][n]);
    if (part.last && (after.is_gelu || times))
        for (int r = 0; r < R; r++)
            for (int n = 0; n < VECTORS; n++) {
                float* at = whole + r * to_row + n * WIDTH;
                Floats value = after.is_gelu ? gelu(load(at)) : load(at);
                store(at, times ? value * load(times + r * times_row + n * WIDTH) : value);
            }
    if (part.columns < PANEL)
        for (int r = 0; r < R; r++) std::memcpy(to + r * y_row, edge + r * PANEL, part.columns * sizeof(float));
}

// `rows` tiles' rows, ROWS or fewer at a time.
template <class Weight>
inline void tiles(long rows, long height, const float* x, long x_row, const Weight* panel, long depth, float* y,
                  long y_row, const After& after, Part part) {
    for (; rows > 0; rows -= height, x += height * x_row, part.row += height) switch (std::min(rows, height)) {
            case 1: tile<1>(x, x_row, panel, depth, y, y_row, after, part); break;
            case 2: tile<2>(x, x_row, panel, depth, y, y_row, after, part); break;
            case 3: tile<3>(x, x_row, panel, depth, y, y_row, after, part); break;
            case 4: tile<4>(x, x_row, panel, depth, y, y_row, after, part); break;
            case 5: tile<5>(x, x_row, panel, depth, y, y_row, after, part); break;
            case 6: tile<6>(x, x_row, panel, depth, y, y_row, after, part); break;
        }
}

template <class Weight>
void product(const float* x, const Weight* weight, float* y, long m, long n, long k, const After& after, int threads) {
    long panels = (n + PANEL - 1) / PANEL, depth = m > FEW ? DEPTH : k, height = m > FEW ? HEIGHT : m;
    // Few rows in as many tiles as needed, of about equal height.
    long few = (m + ROWS - 1) / ROWS, rows = m > FEW ? ROWS : (m + few - 1) / few;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long task = 0; task < panels; task += TASK)
        for (long row = 0; row < m; row += height)
            for (long from = 0; from < k; from += depth)
                for (long panel = task; panel < std::min(task + TASK, panels); panel++) {
                    long column = panel * PANEL, to = std::min(from + depth, k);
                    Part part{row, column, std::min(PANEL, n - column), from == 0, to == k};
                    tiles(std::min(height, m - row), rows, x + row * k + from, k, weight + (panel * k + from) * PANEL,
                          to - from, y, n, after, part);
                }
}

}  // namespace

// x (M, K), weight (ceil(N / panel), K, panel), bias (N), times (M, N) or null, y (M, N), contiguous.
extern "C" {
long packed_panel() { return PANEL; }

void packed_linear(const float* x, const void* weight, const float* bias, const float* times, float* y, long m, long n,
                   long k, int is_bf16, int is_gelu, int threads) {
    After after{bias, times, bool(is_gelu)};
    if (is_bf16) return product(x, (const uint16_t*)weight, y, m, n, k, after, threads);
    product(x, (const float*)weight, y, m, n, k, after, threads);
}
}
