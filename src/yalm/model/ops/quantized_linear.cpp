// Products with weights of 8 or 4 bits in the plain layout of yalm/model/quantize.py, on CPUs.
//
// y[m][n] = bias[n] + sum over k of x[m][k] * w[n][k], all in fp32. Weights become fp32 in registers, so memory is read
// once, at a quarter or an eighth of fp32's bytes, up to 8 rows of x. Work goes by tiles of R rows of the weight and B
// rows of x, whose sums stay in registers for a panel of columns that the first-level cache holds for all B rows.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

// Codes of one byte each to numbers, and the two nibbles of bytes to indices.
#ifdef __AVX512F__
inline Ints bytes(const uint8_t* from) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)); }
inline Floats numbers(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
}
#else
inline Ints bytes(const uint8_t* from) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)); }
inline Floats numbers(const int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}
#endif

constexpr long GROUP = 128, HALF = 64;
// Columns of a panel, in groups: 8 rows of x are 32 KiB.
constexpr long PANEL_GROUPS = 8;
// A row's part of a panel is too short for the processor to foresee: it is asked for this many tiles before its use.
constexpr long AHEAD = 2;
// Rows of a task: its sums, one vector for each row of weight and x, stay in the cache between panels.
constexpr long ROWS = 32;
constexpr int MAX_BATCH = 8;

// What a row's groups of a panel need besides their codes.
struct Panel {
    float step[PANEL_GROUPS], offset[PANEL_GROUPS];
    int8_t rest[GROUP];
};

// A group of one row: `decode(c, first, second)` gives the columns from c and from 64 + c on.
struct Int8Group {
    const int8_t* codes;
    inline void decode(int c, Floats& first, Floats& second) const {
        first = numbers(codes + c);
        second = numbers(codes + HALF + c);
    }
};

struct Int8 {
    typedef Int8Group Group;
    const int8_t* weight;
    const float* scale;
    long columns;
    // The last group may be cut off by the row's end.
    inline void prepare(long n, long, long end, Panel& panel) const {
        long left = columns - (end - 1) * GROUP;
        if (left >= GROUP) return;
        std::memset(panel.rest, 0, GROUP);
        std::memcpy(panel.rest, weight + (n + 1) * columns - left, left);
    }
    inline Group group(long n, long g, long, const Panel& panel) const {
        return {columns - g * GROUP >= GROUP ? weight + n * columns + g * GROUP : panel.rest};
    }
    inline void prefetch(long n, long g) const {
        __builtin_prefetch(weight + n * columns + g * GROUP);
        __builtin_prefetch(weight + n * columns + g * GROUP + HALF);
    }
    inline float row_scale(long n) const { return scale[n]; }
};

// The 16 values that codes of the group stand for are looked up in one register, or computed where it holds only 8.
struct Int4Group {
    const uint8_t* codes;
#ifdef __AVX512F__
    Floats values;
    inline void decode(int c, Floats& first, Floats& second) const {
        Ints pairs = bytes(codes + c);
        first = _mm512_permutexvar_ps(pairs, values);  // looks at the low 4 bits of every index
        second = _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), values);
    }
#else
    Floats scale, offset;
    inline void decode(int c, Floats& first, Floats& second) const {
        Ints pairs = bytes(codes + c);
        first = fused(_mm256_cvtepi32_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(15))), scale, offset);
        second = fused(_mm256_cvtepi32_ps(_mm256_srli_epi32(pairs, 4)), scale, offset);
    }
#endif
};

struct Int4 {
    typedef Int4Group Group;
    const uint8_t* weight;
    const uint16_t* scale;  // bf16
    const uint8_t* zero;
    long groups;
    // Scales and offsets of a panel at once: one by one they take as long as the products.
    inline void prepare(long n, long begin, long end, Panel& panel) const {
        const uint16_t* steps = scale + n * groups + begin;
        const uint8_t* zeros = zero + n * groups + begin;
        for (long i = 0; i < end - begin; i++) {
            uint32_t bits = uint32_t(steps[i]) << 16;
            std::memcpy(panel.step + i, &bits, sizeof(bits));
            panel.offset[i] = -panel.step[i] * float(zeros[i]);
        }
    }
    inline Group group(long n, long g, long i, const Panel& panel) const {
        const uint8_t* codes = weight + (n * groups + g) * HALF;
#ifdef __AVX512F__
        const Floats numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        return {codes, fused(numbers, splat(panel.step[i]), splat(panel.offset[i]))};
#else
        return {codes, splat(panel.step[i]), splat(panel.offset[i])};
#endif
    }
    inline void prefetch(long n, long g) const { __builtin_prefetch(weight + (n * groups + g) * HALF); }
    inline float row_scale(long) const { return 1; }
};

// Adds to sums[B][R] the products of a panel's groups, x[b][k] with rows n … n + R - 1 (the last one again past the end).
template <class Codes, int R, int B>
void panel(const Codes& codes, long n, long rows, const float* x, long stride, long begin, long end, Floats* sums) {
    constexpr int CHAINS = B == 1 ? 2 : 1;
    Floats sum[CHAINS][R][B] = {};
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) sum[0][r][b] = sums[r * B + b];
    Panel panels[R];
    for (int r = 0; r < R; r++) codes.prepare(std::min(n + r, rows - 1), begin, end, panels[r]);
    for (long g = begin; g < end; g++) {
        typename Codes::Group group[R];
        for (int r = 0; r < R; r++) {
            group[r] = codes.group(std::min(n + r, rows - 1), g, g - begin, panels[r]);
            codes.prefetch(n + r + AHEAD * R, g);
        }
        const float* at = x + g * GROUP;
#pragma GCC unroll 1
        for (int c = 0; c < HALF; c += WIDTH) {
            Floats first[R], second[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) group[r].decode(c, first[r], second[r]);
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) {
                Floats left = load(at + b * stride + c), right = load(at + b * stride + HALF + c);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    sum[0][r][b] = fused(first[r], left, sum[0][r][b]);
                    sum[CHAINS - 1][r][b] = fused(second[r], right, sum[CHAINS - 1][r][b]);
                }
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) sums[r * B + b] = CHAINS == 2 ? sum[0][r][b] + sum[1][r][b] : sum[0][r][b];
}

template <class Codes, int R, int B>
void tile(const Codes& codes, const float* x, const float* bias, float* y, long rows, long groups, long first,
          long last) {
    Floats sums[(ROWS + R) * B] = {};
    for (long begin = 0; begin < groups; begin += PANEL_GROUPS)
        for (long n = first; n < last; n += R)
            panel<Codes, R, B>(codes, n, rows, x, groups * GROUP, begin, std::min(begin + PANEL_GROUPS, groups),
                               sums + (n - first) * B);
    for (long n = first; n < last; n++)
        for (int b = 0; b < B; b++)
            y[b * rows + n] = total(sums[(n - first) * B + b]) * codes.row_scale(n) + bias[n];
}

template <class Codes>
void product(const Codes& codes, const float* x, const float* bias, float* y, long batch, long rows, long groups,
             int threads) {
    typedef void (*Tile)(const Codes&, const float*, const float*, float*, long, long, long, long);
    static const Tile tiles[MAX_BATCH] = {tile<Codes, 4, 1>, tile<Codes, 4, 2>, tile<Codes, 4, 3>, tile<Codes, 4, 4>,
                                          tile<Codes, 2, 5>, tile<Codes, 2, 6>, tile<Codes, 2, 7>, tile<Codes, 2, 8>};
    long parts = (batch + MAX_BATCH - 1) / MAX_BATCH;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long first = 0; first < rows; first += ROWS) {
        long last = std::min(first + ROWS, rows);
        for (long part = 0; part < parts; part++) {
            long from = batch * part / parts, to = batch * (part + 1) / parts;
            tiles[to - from - 1](codes, x + from * groups * GROUP, bias, y + from * rows, rows, groups, first, last);
        }
    }
}

template <class Codes>
void values(const Codes& codes, float* out, long rows, long groups, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long n = 0; n < rows; n++) {
        float* at = out + n * groups * GROUP;
        Floats scale = splat(codes.row_scale(n));
        Panel panel;
        for (long g = 0; g < groups; g++, at += GROUP) {
            if (g % PANEL_GROUPS == 0) codes.prepare(n, g, std::min(g + PANEL_GROUPS, groups), panel);
            typename Codes::Group group = codes.group(n, g, g % PANEL_GROUPS, panel);
            for (int c = 0; c < HALF; c += WIDTH) {
                Floats left, right;
                group.decode(c, left, right);
                store(at + c, left * scale);
                store(at + HALF + c, right * scale);
            }
        }
    }
}

}  // namespace

// x is (batch, groups * 128), zeros past the columns; y is (batch, rows); values are (rows, groups * 128); all contiguous.
extern "C" {
void int8_product(const float* x, const int8_t* weight, const float* scale, const float* bias, float* y, long batch,
                  long rows, long columns, int threads) {
    long groups = (columns + GROUP - 1) / GROUP;
    product(Int8{weight, scale, columns}, x, bias, y, batch, rows, groups, threads);
}

void int4_product(const float* x, const uint8_t* weight, const uint16_t* scale, const uint8_t* zero, const float* bias,
                  float* y, long batch, long rows, long columns, int threads) {
    long groups = (columns + GROUP - 1) / GROUP;
    product(Int4{weight, scale, zero, groups}, x, bias, y, batch, rows, groups, threads);
}

void int8_values(const int8_t* weight, const float* scale, float* out, long rows, long columns, int threads) {
    values(Int8{weight, scale, columns}, out, rows, (columns + GROUP - 1) / GROUP, threads);
}

void int4_values(const uint8_t* weight, const uint16_t* scale, const uint8_t* zero, float* out, long rows,
                 long columns, int threads) {
    long groups = (columns + GROUP - 1) / GROUP;
    values(Int4{weight, scale, zero, groups}, out, rows, groups, threads);
}
}
