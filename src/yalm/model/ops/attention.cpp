// Causal self-attention with rotary positions, forward and backward, in fp32 on CPUs.
//
// qkv is what the projection gives, (batch, seq, heads, 3, size), the context (batch, seq, heads, size), and qkv's
// gradient comes in qkv's layout: nothing is split, turned or transposed in memory around it. A task is one head of one
// sequence. It packs queries (turned, and scaled so that exp is exp2), keys (turned) and values into whole vectors and
// panels; then all work is one kind of product, whose tiles stay in registers.
//
// Forward holds the scores of a block of queries with all their keys, so that a softmax is one of whole rows. Backward
// computes the scores again, block by block, from the logarithms of the sums (Dao et al. 2022, arXiv 2205.14135,
// section 3.1). What lies above the diagonal is left out, but for tiles of 4 queries and a vector of keys. Sums do not
// depend on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "vectors.h"

namespace {

// Lanes that take part.
#ifdef __AVX512F__
typedef __mmask16 Mask;
inline Mask lanes(long first, long last) { return Mask(((1u << last) - 1) & ~((1u << first) - 1)); }
inline Floats select(Mask mask, Floats yes, Floats no) { return _mm512_mask_blend_ps(mask, no, yes); }
inline float greatest(Floats values) { return _mm512_reduce_max_ps(values); }
#else
typedef __m256 Mask;
inline Mask lanes(long first, long last) {
    const Floats lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return _mm256_and_ps(_mm256_cmp_ps(lane, splat(float(first)), _CMP_GE_OQ),
                         _mm256_cmp_ps(lane, splat(float(last)), _CMP_LT_OQ));
}
inline Floats select(Mask mask, Floats yes, Floats no) { return _mm256_blendv_ps(no, yes, mask); }
inline float greatest(Floats values) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}
#endif

// Of the lanes that hold columns from `column` on, those with first <= column < last.
inline Mask between(long column, long first, long last) {
    return lanes(std::clamp(first - column, 0L, long(WIDTH)), std::clamp(last - column, 0L, long(WIDTH)));
}

// Rows of a register tile and vectors of its columns, so that all registers are used and no more.
constexpr int ROWS = 4, VECTORS = WIDTH == 16 ? 4 : 2;
// Queries of a block, keys of a panel.
constexpr long BLOCK = 64;
constexpr float LN2 = 0.6931471805599453f;

inline long padded(long count, long multiple) { return (count + multiple - 1) / multiple * multiple; }

inline float dot(const float* a, const float* b, long count) {
    Floats sum = splat(0);
    float rest = 0;
    long i = 0;
    for (; i + WIDTH <= count; i += WIDTH) sum = fused(load(a + i), load(b + i), sum);
    for (; i < count; i++) rest += a[i] * b[i];
    return total(sum) + rest;
}

// c[r][n] (+)= sum over k of a[r * row + k * step] * b[k * b_row + n], for ROWS rows and N vectors.
template <int N, bool ADD>
inline void tile(const float* a, long row, long step, const float* b, long b_row, float* c, long c_row, long depth) {
    Floats sum[ROWS][N];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[r][n] = ADD ? load(c + r * c_row + n * WIDTH) : splat(0);
    for (long k = 0; k < depth; k++, a += step, b += b_row) {
        Floats right[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            right[n] = load(b + n * WIDTH);
            asm("" : "+v"(right[n]));  // once into a register; the compiler would read it again for every row
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            Floats left = splat(a[r * row]);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sum[r][n] = fused(left, right[n], sum[r][n]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) store(c + r * c_row + n * WIDTH, sum[r][n]);
}

// The same for any number of columns in whole vectors.
template <bool ADD>
inline void strip(const float* a, long row, long step, const float* b, long b_row, float* c, long c_row, long columns,
                  long depth) {
    constexpr long most = VECTORS * WIDTH;
    for (; columns >= most; columns -= most, b += most, c += most)
        tile<VECTORS, ADD>(a, row, step, b, b_row, c, c_row, depth);
    switch (columns / WIDTH) {
        case 1: return tile<1, ADD>(a, row, step, b, b_row, c, c_row, depth);
        case 2: return tile<2, ADD>(a, row, step, b, b_row, c, c_row, depth);
        case 3: return tile<3, ADD>(a, row, step, b, b_row, c, c_row, depth);
    }
}

// One head of one sequence: its sizes, where it lies, and what it has of the others' inputs.
struct Head {
    long seq, size;
    long at, stride;           // in the context: the first position, and the way to the next; three times that in qkv
    const float *cos, *sin;    // (seq, size / 2)
    const long* starts;        // the first position that each one sees, never falling; none: 0 for all
    long rows, width, matrix;  // padded to blocks and vectors

    Head(long task, long seq, long heads, long size, const float* cos, const float* sin, long angle_step,
         const long* starts)
        : seq(seq), size(size), at((task / heads * seq * heads + task % heads) * size), stride(heads * size),
          cos(cos + task / heads * angle_step), sin(sin + task / heads * angle_step),
          starts(starts ? starts + task / heads * seq : nullptr), rows(padded(seq, BLOCK)),
          width(padded(size, WIDTH)), matrix(rows * width) {}

    long start(long position) const { return starts ? starts[position] : 0; }
};

// Room for a head, in numbers; all parts are whole lines of the cache.
long forward_room(const Head& head) { return 4 * head.matrix + BLOCK * (head.rows + head.width + 1); }
long backward_room(const Head& head) { return 9 * head.matrix + 2 * BLOCK * BLOCK + head.rows; }

inline float* take(float*& room, long numbers) {
    float* taken = room;
    room += numbers;
    return taken;
}

// A position's numbers turned by its angles, or back with sign -1, and scaled.
inline void turn(const Head& head, long position, const float* from, float* to, float scale, float sign) {
    long half = head.size / 2;
    const float *cos = head.cos + position * half, *sin = head.sin + position * half;
    for (long d = 0; d < half; d++) {
        float a = from[d], b = from[d + half], c = cos[d] * scale, s = sin[d] * (scale * sign);
        to[d] = c * a - s * b;
        to[d + half] = s * a + c * b;
    }
}

// Queries, keys and values, (rows, width) each, with zeros past the sequence and past the head's size.
struct Packed {
    float *query, *key, *value;

    Packed(const Head& head, const float* qkv, float*& room)
        : query(take(room, head.matrix)), key(take(room, head.matrix)), value(take(room, head.matrix)) {
        std::memset(query, 0, 3 * head.matrix * sizeof(float));
        for (long s = 0; s < head.seq; s++) {
            const float* from = qkv + 3 * (head.at + s * head.stride);
            turn(head, s, from, query + s * head.width, LOG2E / std::sqrt(float(head.size)), 1);
            turn(head, s, from + head.size, key + s * head.width, 1, 1);
            std::memcpy(value + s * head.width, from + 2 * head.size, head.size * sizeof(float));
        }
    }
};

// (rows, width) to panels: the one with row r holds (width, BLOCK) at r / BLOCK * BLOCK * width.
float* panels(const Head& head, const float* from, float*& room) {
    float* to = take(room, head.matrix);
    for (long r = 0; r < head.rows; r += 4)
        for (long d = 0; d < head.width; d += 4) {
            const float* corner = from + r * head.width + d;
            __m128 rows[4];
            for (int i = 0; i < 4; i++) rows[i] = _mm_loadu_ps(corner + i * head.width);
            _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
            float* at = to + r / BLOCK * BLOCK * head.width + d * BLOCK + r % BLOCK;
            for (int i = 0; i < 4; i++) _mm_storeu_ps(at + i * BLOCK, rows[i]);
        }
    return to;
}

// Scores of the queries from `row` on, with the keys of a panel up to the last one that they see; the columns written.
inline long scores(const Head& head, const float* query, const float* keys, long row, long panel, float* to,
                   long to_row) {
    long columns = padded(std::min(BLOCK, row + ROWS - panel), WIDTH);
    strip<false>(query + row * head.width, head.width, 1, keys + panel * head.width, BLOCK, to, to_row, columns,
                 head.width);
    return columns;
}

void forward(const Head& head, const float* qkv, float* context, float* log_sums, float* turned, float* room) {
    long width = head.width;
    Packed packed(head, qkv, room);
    for (long s = 0; turned && s < head.seq; s++)
        std::memcpy(turned + head.at + s * head.stride, packed.key + s * width, head.size * sizeof(float));
    float *keys = panels(head, packed.key, room), *shares = take(room, BLOCK * head.rows);
    float *output = take(room, BLOCK * width), *parts = take(room, BLOCK);
    for (long block = 0; block < head.seq; block += BLOCK) {
        long last = std::min(block + BLOCK, head.seq), first = head.start(block) / BLOCK * BLOCK;
        for (long panel = first; panel < last; panel += BLOCK)
            for (long row = block; row < last; row += ROWS)
                scores(head, packed.query, keys, row, panel, shares + (row - block) * head.rows + panel, head.rows);
        for (long row = block; row < last; row++) {
            float* line = shares + (row - block) * head.rows;
            long from = head.start(row), end = padded(row + 1, WIDTH);
            Floats most = splat(-INFINITY), sum = splat(0);
            for (long c = first; c < end; c += WIDTH)
                most = greater(most, select(between(c, from, row + 1), load(line + c), splat(-INFINITY)));
            float peak = greatest(most);
            for (long c = first; c < end; c += WIDTH) {
                Floats share = power_of_two(load(line + c) - splat(peak));
                share = select(between(c, from, row + 1), share, splat(0));
                store(line + c, share);
                sum = sum + share;
            }
            log_sums[row] = peak + std::log2(total(sum));
            parts[row - block] = 1 / total(sum);
        }
        for (long row = block; row < last; row += ROWS)
            strip<false>(shares + (row - block) * head.rows + first, head.rows, 1, packed.value + first * width, width,
                         output + (row - block) * width, width, width, row + ROWS - first);
        for (long row = block; row < last; row++)
            for (long d = 0; d < head.size; d++)
                context[head.at + row * head.stride + d] = output[(row - block) * width + d] * parts[row - block];
    }
}

void backward(const Head& head, const float* qkv, const float* context, const float* log_sums, const float* grad,
              float* grad_qkv, float* room) {
    long width = head.width;
    Packed packed(head, qkv, room);
    float *keys = panels(head, packed.key, room), *values = panels(head, packed.value, room);
    float *upstream = take(room, head.matrix), *of_query = take(room, head.matrix);
    float *of_key = take(room, head.matrix), *of_value = take(room, head.matrix);
    float *shares = take(room, BLOCK * BLOCK), *of_scores = take(room, BLOCK * BLOCK), *inner = take(room, head.rows);
    std::memset(upstream, 0, 4 * head.matrix * sizeof(float));  // and the three that follow
    for (long s = 0; s < head.seq; s++) {
        const float *from = grad + head.at + s * head.stride, *with = context + head.at + s * head.stride;
        std::memcpy(upstream + s * width, from, head.size * sizeof(float));
        inner[s] = dot(from, with, head.size);
    }
    for (long panel = 0; panel < head.seq; panel += BLOCK) {
        long keys_end = std::min(panel + BLOCK, head.seq);
        for (long block = panel; block < head.seq; block += BLOCK) {
            long last = std::min(block + BLOCK, head.seq);
            if (head.start(block) >= keys_end) break;
            for (long row = block; row < last; row += ROWS) {
                float *share = shares + (row - block) * BLOCK, *of_score = of_scores + (row - block) * BLOCK;
                long columns = scores(head, packed.query, keys, row, panel, share, BLOCK);
                scores(head, upstream, values, row, panel, of_score, BLOCK);
                for (long r = row; r < std::min(row + ROWS, last); r++, share += BLOCK, of_score += BLOCK) {
                    Floats log_sum = splat(log_sums[r]), mean = splat(inner[r]);
                    for (long c = 0; c < columns; c += WIDTH) {
                        Mask seen = between(panel + c, head.start(r), r + 1);
                        Floats p = select(seen, power_of_two(load(share + c) - log_sum), splat(0));
                        store(share + c, p);
                        store(of_score + c, select(seen, p * (load(of_score + c) - mean), splat(0)));
                    }
                }
                strip<true>(of_scores + (row - block) * BLOCK, BLOCK, 1, packed.key + panel * width, width,
                            of_query + row * width, width, width, std::min(BLOCK, row + ROWS - panel));
            }
            // Four keys at a time, with the queries that see at least one of them.
            for (long key = panel; key < keys_end; key += ROWS) {
                long row = std::max(block, key), at = (row - block) * BLOCK + key - panel;
                strip<true>(shares + at, 1, BLOCK, upstream + row * width, width, of_value + key * width, width, width,
                            last - row);
                strip<true>(of_scores + at, 1, BLOCK, packed.query + row * width, width, of_key + key * width, width,
                            width, last - row);
            }
        }
    }
    for (long s = 0; s < head.seq; s++) {
        float* to = grad_qkv + 3 * (head.at + s * head.stride);
        turn(head, s, of_query + s * width, to, 1 / std::sqrt(float(head.size)), -1);
        turn(head, s, of_key + s * width, to + head.size, LN2, -1);
        std::memcpy(to + 2 * head.size, of_value + s * width, head.size * sizeof(float));
    }
}

// to[d] = part * sum over positions of shares[p] * values[p * size + d], for N vectors of columns.
template <int N>
inline void weigh(const float* shares, const float* values, long length, long size, float part, float* to) {
    Floats sum[N];
    for (int n = 0; n < N; n++) sum[n] = splat(0);
    for (long p = 0; p < length; p++, values += size) {
        Floats share = splat(shares[p]);
        for (int n = 0; n < N; n++) sum[n] = fused(share, load(values + n * WIDTH), sum[n]);
    }
    for (int n = 0; n < N; n++) store(to + n * WIDTH, sum[n] * splat(part));
}

// A single turned query of a head with the keys and values, (length, size), that a cache has of it.
void step(const float* query, const float* keys, const float* values, long length, long size, float* context,
          float* shares) {
    float scale = LOG2E / std::sqrt(float(size)), peak = -INFINITY;
    for (long p = 0; p < length; p++) {
        shares[p] = scale * dot(query, keys + p * size, size);
        peak = std::max(peak, shares[p]);
    }
    std::fill(shares + length, shares + padded(length, WIDTH), -INFINITY);
    Floats sum = splat(0);
    for (long p = 0; p < length; p += WIDTH) {
        Floats share = power_of_two(load(shares + p) - splat(peak));
        store(shares + p, share);
        sum = sum + share;
    }
    float part = 1 / total(sum);
    long d = 0;
    for (; d + 4 * WIDTH <= size; d += 4 * WIDTH) weigh<4>(shares, values + d, length, size, part, context + d);
    for (; d + WIDTH <= size; d += WIDTH) weigh<1>(shares, values + d, length, size, part, context + d);
    for (; d < size; d++) {
        float rest = 0;
        for (long p = 0; p < length; p++) rest += shares[p] * values[p * size + d];
        context[d] = rest * part;
    }
}

}  // namespace

// All contiguous: qkv and its gradient (batch, seq, heads, 3, size); context and its gradient (batch, seq, heads,
// size); log_sums (batch, heads, seq), to base 2; cos and sin (seq, size / 2), or with an angle_step of seq * size / 2
// such ones for each sequence; starts (batch, seq) or null; turned keys (batch, seq, heads, size) or null, if not asked
// for; room for each thread.
extern "C" {
long attention_room(long seq, long size, int is_backward) {
    Head head(0, seq, 1, size, nullptr, nullptr, 0, nullptr);
    return is_backward ? backward_room(head) : forward_room(head);
}

void attention_forward(const float* qkv, const float* cos, const float* sin, const long* starts, float* context,
                       float* log_sums, float* turned, float* room, long batch, long seq, long heads, long size,
                       long angle_step, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long task = 0; task < batch * heads; task++) {
        Head head(task, seq, heads, size, cos, sin, angle_step, starts);
        forward(head, qkv, context, log_sums + task * seq, turned, room + omp_get_thread_num() * forward_room(head));
    }
}

void attention_backward(const float* qkv, const float* cos, const float* sin, const long* starts, const float* context,
                        const float* log_sums, const float* grad, float* grad_qkv, float* room, long batch, long seq,
                        long heads, long size, long angle_step, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long task = 0; task < batch * heads; task++) {
        Head head(task, seq, heads, size, cos, sin, angle_step, starts);
        backward(head, qkv, context, log_sums + task * seq, grad, grad_qkv,
                 room + omp_get_thread_num() * backward_room(head));
    }
}

// A query, a key and a value a text, those of row b and head h at b * row + h * head; key and value are put into the
// text's last slot, lengths[b] - 1, first. Contiguous: context (batch, heads, size),
// lengths (batch), keys and values (batch, heads, capacity, size).
void attention_step(const float* query, long query_row, long query_head, const float* key, long key_row, long key_head,
                    const float* value, long value_row, long value_head, float* keys, float* values,
                    const long* lengths, float* context, float* room, long batch, long heads, long size, long capacity,
                    int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long task = 0; task < batch * heads; task++) {
        long b = task / heads, h = task % heads, at = task * capacity * size, last = at + (lengths[b] - 1) * size;
        std::memcpy(keys + last, key + b * key_row + h * key_head, size * sizeof(float));
        std::memcpy(values + last, value + b * value_row + h * value_head, size * sizeof(float));
        step(query + b * query_row + h * query_head, keys + at, values + at, lengths[b], size, context + task * size,
             room + omp_get_thread_num() * padded(capacity, WIDTH));
    }
}
}
