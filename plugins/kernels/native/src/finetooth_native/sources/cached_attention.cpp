// Attention of one query a row to the keys and values of a cache: what is written token by token looks back with it. Keys
// and values are read once for all query heads that share them, and scores never leave the cache of the processor.
//
// Letters: R rows, P prompts with n rows each (R = P n), H query heads, K key-value heads, D numbers a head, C columns.
// A row sees the columns of its prompt from `starts` on, then its own. Sums go over what it sees, in that order, so what
// a row gets depends neither on the other rows, nor on how wide its prompt's columns are, nor on the threads.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "elements.h"
#include "parallel.h"
#include "vectors.h"

namespace ft {
namespace {

constexpr int MOST_HEADS = 4;  // query heads that meet a key while it is in a register
constexpr int WIDE = 4;        // vectors of an output whose sums are in registers at once

struct Cached {
    const void* qkv;  // [R][H + 2 K][D]: queries, the newest keys, the newest values
    void* out;        // [R][H][D]
    void* own;        // keys [R][K][C][D] and, `own_half` numbers on, values
    int64_t own_half, own_row, own_head;
    const void* above;  // of prompts, likewise with W columns; or null, and the row's own columns hold its prompt
    int64_t above_half, above_prompt, above_head, width;
    const int64_t* starts;  // [P] first column of a prompt; or null for 0
    int64_t rows, samples, heads, kv_heads, size, columns;
    float scale;
};

// Some columns' keys and values.
template <class T>
struct Span {
    const T* keys;
    const T* values;
    int64_t count;
};

// sums[h] = queries[h] * key, lane by lane
template <class T, int HEADS>
FT_INLINE void meet(const float* queries, const T* key, int64_t size, Vec (&sums)[HEADS]) {
    for (int h = 0; h < HEADS; ++h) sums[h] = Vec{};
    for (int64_t d = 0; d < size; d += LANES) {
        const Vec part = load(key + d);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) sums[h] = fused(load(queries + h * size + d), part, sums[h]);
    }
}

// scores[h][c] = scale queries[h] . key c, for HEADS heads
template <class T, int HEADS>
FT_INLINE void score(const float* queries, const Span<T>& span, int64_t size, float scale, float* scores,
                     int64_t stride) {
    Vec sums[HEADS];
    int64_t c = 0;
#if defined(__AVX512F__)
    alignas(64) float kept[HEADS][LANES * LANES];
    for (; c + LANES <= span.count; c += LANES) {
        for (int i = 0; i < LANES; ++i) {
            meet<T, HEADS>(queries, span.keys + (c + i) * size, size, sums);
#pragma GCC unroll 4
            for (int h = 0; h < HEADS; ++h) store(kept[h] + i * LANES, sums[h]);
        }
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) store(scores + h * stride + c, scale * folded_each(kept[h]));
    }
#endif
    for (; c < span.count; ++c) {
        meet<T, HEADS>(queries, span.keys + c * size, size, sums);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) scores[h * stride + c] = scale * folded(sums[h]);
    }
}

// sums[h][v] += weight[h][c] value c, for VECTORS vectors of it
template <class T, int HEADS, int VECTORS>
FT_INLINE void weigh(const float* weights, int64_t stride, const Span<T>& span, int64_t size, int64_t at,
                     Vec (&sums)[HEADS][VECTORS]) {
    for (int64_t c = 0; c < span.count; ++c) {
        const T* value = span.values + c * size + at;
        Vec parts[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) parts[v] = load(value + v * LANES);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
            const Vec weight = all(weights[h * stride + c]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[h][v] = fused(weight, parts[v], sums[h][v]);
        }
    }
}

template <class T, int HEADS, int VECTORS>
FT_INLINE void weighted(const float* weights, int64_t stride, const float* shares, const Span<T> (&spans)[2],
                        int64_t size, int64_t at, T* out) {
    Vec sums[HEADS][VECTORS] = {};
    weigh<T, HEADS, VECTORS>(weights, stride, spans[0], size, at, sums);
    weigh<T, HEADS, VECTORS>(weights + spans[0].count, stride, spans[1], size, at, sums);
    for (int h = 0; h < HEADS; ++h)
        for (int v = 0; v < VECTORS; ++v) narrow(sums[h][v] * shares[h], out + h * size + at + v * LANES);
}

// scores become exp(score - largest), the rest of the last vector 0; returns 1 / their sum
inline float softmax(float* scores, int64_t count) {
    float largest = scores[0];
    for (int64_t c = 1; c < count; ++c) largest = scores[c] > largest ? scores[c] : largest;
    const int64_t padded = (count + LANES - 1) / LANES * LANES;
    for (int64_t c = count; c < padded; ++c) scores[c] = largest;
    Vec total{};
    for (int64_t c = 0; c < padded; c += LANES) {
        Vec weight = exponential(load(scores + c) - largest);
        if (c + LANES > count)
            for (int64_t i = count - c; i < LANES; ++i) weight[i] = 0;
        store(scores + c, weight);
        total += weight;
    }
    return 1 / folded(total);
}

// HEADS query heads of one row and key-value head
template <class T, int HEADS>
void attend(const Cached& c, const T* queries, const Span<T> (&spans)[2], float* memory, T* out) {
    const int64_t seen = spans[0].count + spans[1].count, stride = (seen + LANES - 1) / LANES * LANES;
    float* wide = memory;
    float* scores = memory + HEADS * c.size;
    for (int64_t i = 0; i < HEADS * c.size; ++i) wide[i] = widened(queries[i]);
    score<T, HEADS>(wide, spans[0], c.size, c.scale, scores, stride);
    score<T, HEADS>(wide, spans[1], c.size, c.scale, scores + spans[0].count, stride);
    float shares[HEADS];
    for (int h = 0; h < HEADS; ++h) shares[h] = softmax(scores + h * stride, seen);
    int64_t at = 0;
    for (; at + WIDE * LANES <= c.size; at += WIDE * LANES)
        weighted<T, HEADS, WIDE>(scores, stride, shares, spans, c.size, at, out);
    for (; at < c.size; at += LANES) weighted<T, HEADS, 1>(scores, stride, shares, spans, c.size, at, out);
}

// `count` heads, known only now, as a constant.
template <class T, int HEADS = MOST_HEADS>
FT_INLINE void any_heads(const Cached& c, int64_t count, const T* queries, const Span<T> (&spans)[2], float* memory,
                         T* out) {
    if (count == HEADS) return attend<T, HEADS>(c, queries, spans, memory, out);
    if constexpr (HEADS > 1) any_heads<T, HEADS - 1>(c, count, queries, spans, memory, out);
}

// One row and key-value head: takes the newest column, then looks at all.
template <class T>
void one(const Cached& c, int64_t row, int64_t head, float* memory) {
    const int64_t group = c.heads / c.kv_heads, prompt = row / c.samples;
    const int64_t start = c.starts == nullptr ? 0 : c.starts[prompt];
    const T* given = static_cast<const T*>(c.qkv) + row * (c.heads + 2 * c.kv_heads) * c.size;
    T* keys = static_cast<T*>(c.own) + row * c.own_row + head * c.own_head;
    T* values = keys + c.own_half;
    const int64_t newest = (c.columns - 1) * c.size;
    std::memcpy(keys + newest, given + (c.heads + head) * c.size, c.size * sizeof(T));
    std::memcpy(values + newest, given + (c.heads + c.kv_heads + head) * c.size, c.size * sizeof(T));

    Span<T> spans[2] = {{keys, values, 0}, {keys, values, c.columns}};
    if (c.above == nullptr) {
        spans[1] = {keys + start * c.size, values + start * c.size, c.columns - start};
    } else {
        const T* first = static_cast<const T*>(c.above) + prompt * c.above_prompt + head * c.above_head + start * c.size;
        spans[0] = {first, first + c.above_half, c.width - start};
    }
    T* out = static_cast<T*>(c.out) + row * c.heads * c.size;
    for (int64_t h = head * group; h < (head + 1) * group; h += MOST_HEADS)
        any_heads<T>(c, std::min<int64_t>(MOST_HEADS, (head + 1) * group - h), given + h * c.size, spans, memory,
                     out + h * c.size);
}

// Rows of a prompt follow each other for one head, which finds the prompt's keys in the cache from the second on.
template <class T>
bool all_rows(const Cached& c, int threads) {
    const int64_t seen = c.columns + c.width, work = seen * c.size * (c.heads / c.kv_heads);
    const int64_t numbers = MOST_HEADS * (c.size + seen + LANES);
    bool failed = false;
    over_rows(c.rows * c.kv_heads, work, threads, [&](int64_t first, int64_t last) {
        float* memory = reinterpret_cast<float*>(scratch<2>(numbers * sizeof(float)));
        if (memory == nullptr) {
#pragma omp atomic write
            failed = true;
            return;
        }
        for (int64_t i = first; i < last; ++i) {
            const int64_t prompt = i / (c.samples * c.kv_heads), within = i % (c.samples * c.kv_heads);
            one<T>(c, prompt * c.samples + within % c.samples, within / c.samples, memory);
        }
    });
    return !failed;
}

}  // namespace
}  // namespace ft

// Writes the newest keys and values into column `*columns` - 1 of `own`, and (R, H D) into `out`. Returns 1 if there was
// no memory to work in. `size` is a multiple of 16.
FT_API int ft_cached_attention(int dtype, const void* qkv, void* out, void* own, const int64_t* own_strides,
                               const void* above, const int64_t* above_strides, int64_t width, const int64_t* starts,
                               const int64_t* columns, int64_t rows, int64_t samples, int64_t heads, int64_t kv_heads,
                               int64_t size, float scale, int threads) {
    const ft::Cached given{qkv,
                           out,
                           own,
                           own_strides[0],
                           own_strides[1],
                           own_strides[2],
                           above,
                           above_strides[0],
                           above_strides[1],
                           above_strides[2],
                           width,
                           starts,
                           rows,
                           samples,
                           heads,
                           kv_heads,
                           size,
                           *columns,
                           scale};
    return dtype == ft::FLOAT32 ? !ft::all_rows<float>(given, threads) : !ft::all_rows<ft::BFloat16>(given, threads);
}
