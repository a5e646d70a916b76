// y[m][n] = bias[n] + sum over k of x[m][k] * b[n][k] on CPUs, and what a layer does with it next.
//
// b is fp32 or bf16, which becomes fp32 in registers; all else is fp32.
//
// b is read in panels of PANEL of its rows, each (K, PANEL) one behind the other and the last one filled up with zeros,
// so that it is read from one end to the other. A tile of up to ROWS rows of a with a panel has its sums in registers.
// Few rows go through a whole panel at once: memory bounds them. Many are laid in tiles themselves, (depth, ROWS), and
// go through a panel by DEPTH of its numbers and by HEIGHT rows at a time, which the second-level cache holds (Goto & van
// de Geijn 2008, "Anatomy of high-performance matrix multiplication"); the next panel is asked for meanwhile. Sums do not
// depend on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "vectors.h"

namespace {

// Rows and vectors of a tile, so that with AVX2 all 16 registers are used and no more.
constexpr int ROWS = 6, VECTORS = 2;
constexpr long PANEL = VECTORS * WIDTH, DEPTH = 768, HEIGHT = 16 * ROWS;
// Products that are summed one after another, before their sum joins the others': rounding adds up along the way.
constexpr long CHAIN = 192;
// Up to here rows are few; two tiles of a panel then, which the second-level cache holds for the second one.
constexpr long FEW = 2 * ROWS;
// Panels of a task, so that a thread that is held up leaves its work to the others.
constexpr long TASK_OF_FEW = 4, TASK = 8;
// Rows that are laid in tiles at a time: the room that takes stays in the third-level cache.
constexpr long ROWS_LAID = 21 * HEIGHT;

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

// Row r of a has its number k at x[r * x_row + k * x_step]. The panel that follows lies `next` numbers further on.
template <int R, class Weight>
inline void tile(const float* x, long x_row, long x_step, const Weight* panel, long next, long depth, float* y,
                 long y_row, const After& after, const Part& part) {
    // A panel that is not full meets bias, y and times in a copy.
    float edge[R * PANEL], factors[R * PANEL];
    float* to = y + part.row * y_row + part.column;
    const float* times = after.times && part.last ? after.times + part.row * y_row + part.column : nullptr;
    long to_row = y_row, times_row = y_row;
    float* whole = to;
    // What the first sums are added to.
    const float* from = part.first ? after.bias + part.column : to;
    long from_row = part.first ? 0 : y_row;
    if (part.columns < PANEL) {
        std::memset(edge, 0, sizeof(edge));
        std::memset(factors, 0, sizeof(factors));
        for (int r = 0; r < R; r++) {
            std::memcpy(edge + r * PANEL, from + r * from_row, part.columns * sizeof(float));
            if (times) std::memcpy(factors + r * PANEL, times + r * y_row, part.columns * sizeof(float));
        }
        from = whole = edge, from_row = to_row = PANEL;
        if (times) times = factors, times_row = PANEL;
    }
    for (long left = depth; left > 0; left -= CHAIN, from = whole, from_row = to_row) {
        Floats sum[R][VECTORS];
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int n = 0; n < VECTORS; n++) sum[r][n] = splat(0);
        for (long k = std::min(CHAIN, left); k > 0; k--, panel += PANEL, x += x_step) {
            _mm_prefetch((const char*)(panel + next), _MM_HINT_T1);
            // Once into registers, which have names: the compiler would read an array's again for every row.
            Floats first = weights(panel), second = weights(panel + WIDTH);
            asm("" : "+v"(first), "+v"(second));
#pragma GCC unroll 6
            for (int r = 0; r < R; r++) {
                Floats number = splat(x[r * x_row]);
                sum[r][0] = fused(number, first, sum[r][0]);
                sum[r][1] = fused(number, second, sum[r][1]);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int n = 0; n < VECTORS; n++)
                store(whole + r * to_row + n * WIDTH, sum[r][n] + load(from + r * from_row + n * WIDTH));
    }
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

// `rows` rows of a with a panel, `height` (ROWS or fewer) at a time.
template <class Weight>
inline void tiles(long rows, long height, const float* x, long x_row, long x_step, long x_tile, const Weight* panel,
                  long next, long depth, float* y, long y_row, const After& after, Part part) {
    for (; rows > 0; rows -= height, x += x_tile, part.row += height) switch (std::min(rows, height)) {
            case 1: tile<1>(x, x_row, x_step, panel, next, depth, y, y_row, after, part); break;
            case 2: tile<2>(x, x_row, x_step, panel, next, depth, y, y_row, after, part); break;
            case 3: tile<3>(x, x_row, x_step, panel, next, depth, y, y_row, after, part); break;
            case 4: tile<4>(x, x_row, x_step, panel, next, depth, y, y_row, after, part); break;
            case 5: tile<5>(x, x_row, x_step, panel, next, depth, y, y_row, after, part); break;
            case 6: tile<6>(x, x_row, x_step, panel, next, depth, y, y_row, after, part); break;
        }
}

template <class Weight>
void few_rows(const float* x, const Weight* panels, float* y, long m, long n, long k, const After& after, int threads) {
    long count = (n + PANEL - 1) / PANEL, passes = (m + ROWS - 1) / ROWS;
    long height = (m + passes - 1) / passes;  // about equal ones
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long task = 0; task < count; task += TASK_OF_FEW)
        for (long panel = task; panel < std::min(task + TASK_OF_FEW, count); panel++) {
            Part part{0, panel * PANEL, std::min(PANEL, n - panel * PANEL), true, true};
            tiles(m, height, x, k, 1, height * k, panels + panel * k * PANEL, k * PANEL, k, y, n, after, part);
        }
}

// `count` rows of x, ROWS or fewer, as (depth, ROWS), with zeros in place of those that are missing.
inline void lay(const float* x, long x_row, long count, long depth, float* to) {
    if (count < ROWS) std::memset(to, 0, depth * ROWS * sizeof(float));
    long turned = count / 4 * 4, end = depth / 4 * 4;
    for (long r = 0; r < turned; r += 4)
        for (long k = 0; k < end; k += 4) {
            __m128 rows[4];
            for (int i = 0; i < 4; i++) rows[i] = _mm_loadu_ps(x + (r + i) * x_row + k);
            _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
            for (int i = 0; i < 4; i++) _mm_storeu_ps(to + (k + i) * ROWS + r, rows[i]);
        }
    for (long r = 0; r < count; r++)
        for (long k = r < turned ? end : 0; k < depth; k++) to[k * ROWS + r] = x[r * x_row + k];
}

// Room of this thread for what is laid out; made once, so that no call pays for fresh pages.
float* room() {
    struct Free {
        void operator()(void* at) const { std::free(at); }
    };
    thread_local std::unique_ptr<void, Free> kept(std::aligned_alloc(64, ROWS_LAID * DEPTH * sizeof(float)));
    return (float*)kept.get();
}

// False if there is no memory.
template <class Weight>
bool many_rows(const float* x, const Weight* panels, float* y, long m, long n, long k, const After& after,
               int threads) {
    float* rows = room();
    if (!rows) return false;
    long parts = std::max(1L, (k + DEPTH - 1) / DEPTH), step = (k + parts - 1) / parts;
#pragma omp parallel num_threads(threads)
    for (long row = 0; row < m; row += ROWS_LAID)
        for (long from = 0; from < k; from += step) {
            long height = std::min(ROWS_LAID, m - row), depth = std::min(step, k - from);
#pragma omp for schedule(dynamic, 4)
            for (long r = 0; r < height; r += ROWS)
                lay(x + (row + r) * k + from, k, std::min<long>(ROWS, height - r), depth, rows + r * depth);
            long wide = TASK * PANEL, across = (n + wide - 1) / wide, down = (height + HEIGHT - 1) / HEIGHT;
#pragma omp for schedule(dynamic)
            for (long task = 0; task < across * down; task++) {
                long top = task % down * HEIGHT, left = task / down * wide;
                for (long column = left; column < std::min(left + wide, n); column += PANEL) {
                    Part part{row + top, column, std::min(PANEL, n - column), from == 0, from + depth == k};
                    tiles(std::min(HEIGHT, height - top), ROWS, rows + top * depth, 1, ROWS, ROWS * depth,
                          panels + column * k + from * PANEL, k * PANEL, depth, y, n, after, part);
                }
            }
        }
    return true;
}

}  // namespace

extern "C" {
long matmul_panel() { return PANEL; }

// x (M, K), weight (ceil(N / panel), K, panel), bias (N), times (M, N) or null, y (M, N), contiguous.
// False where there is no memory.
int packed_linear(const float* x, const void* weight, const float* bias, const float* times, float* y, long m, long n,
                  long k, int is_bf16, int is_gelu, int threads) {
    After after{bias, times, bool(is_gelu)};
    auto product = [&](auto* panels) {
        if (m > FEW) return many_rows(x, panels, y, m, n, k, after, threads);
        few_rows(x, panels, y, m, n, k, after, threads);
        return true;
    };
    return is_bf16 ? product((const uint16_t*)weight) : product((const float*)weight);
}
}
