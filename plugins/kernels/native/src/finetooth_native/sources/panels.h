// The innermost loop of matrix products: a few rows times a panel of outputs, summed in registers.
//
// A panel holds PANEL outputs, input by input next to each other (bfloat16 on machines that multiply pairs: two inputs
// by two). Missing outputs, and the second input of a pair that has none, are zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "elements.h"
#include "vectors.h"

namespace ft {

constexpr int PANEL = 2 * LANES;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MOST_ROWS = 12;  // with two vectors each, as many sums as there are registers for
#else
constexpr int MOST_ROWS = 6;
#endif

#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;
#else
constexpr bool PAIRS = false;
#endif

// Inputs that stand together in a panel.
template <class T>
constexpr int TOGETHER = PAIRS && std::is_same_v<T, BFloat16> ? 2 : 1;

// Rows of the left factor: where they begin, and how far it is to the next row, and to the next input (pairs: the next
// two, which lie side by side).
template <class T>
struct Left {
    const T* at;
    int64_t row, step;
};

// What to ask memory for while something is multiplied: so many bytes for each input.
struct Ahead {
    const char* at = nullptr;
    int64_t bytes = 0;

    // LINES of 64 bytes, as many as hold what `inputs` of them stand for.
    template <int LINES>
    FT_INLINE void fetch(int64_t input) const {
        for (int line = 0; line < LINES; ++line) __builtin_prefetch(at + input * bytes + 64 * line);
    }
};

// sums[r] += left[r] . panel. LINES: of what is `ahead` for each step; none: nothing is asked for. HALVES: of a panel's
// outputs, which stand as close together as there are of them.
template <int ROWS, int LINES = 0, int HALVES = 2, class T>
FT_INLINE void multiply(Left<T> left, const T* panel, int64_t inputs, Vec (&sums)[ROWS][2], Ahead ahead = {}) {
    const T* x = left.at;
    for (int64_t d = 0; d < inputs; ++d, x += left.step) {
        const T* at = panel + d * HALVES * LANES;
        const Vec first = load(at), second = load(HALVES > 1 ? at + LANES : at);
        ahead.fetch<LINES>(d);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const Vec value = all(widened(x[r * left.row]));
            sums[r][0] = fused(value, first, sums[r][0]);
            if constexpr (HALVES > 1) sums[r][1] = fused(value, second, sums[r][1]);
        }
    }
}

#if defined(__AVX512BF16__)
template <int ROWS, int LINES = 0, int HALVES = 2>
FT_INLINE void multiply(Left<BFloat16> left, const BFloat16* panel, int64_t inputs, Vec (&sums)[ROWS][2],
                        Ahead ahead = {}) {
    const BFloat16* x = left.at;
    const int64_t even = inputs & ~int64_t{1};
    for (int64_t d = 0; d < even; d += 2, x += left.step) {
        const BFloat16* at = panel + d * HALVES * LANES;
        const __m512bh first = (__m512bh)_mm512_loadu_si512(at);
        const __m512bh second = (__m512bh)_mm512_loadu_si512(HALVES > 1 ? at + 2 * LANES : at);
        ahead.fetch<LINES>(d);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            int32_t pair;
            std::memcpy(&pair, x + r * left.row, sizeof pair);
            const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
            sums[r][0] = (Vec)_mm512_dpbf16_ps((__m512)sums[r][0], value, first);
            if constexpr (HALVES > 1) sums[r][1] = (Vec)_mm512_dpbf16_ps((__m512)sums[r][1], value, second);
        }
    }
    if (even == inputs) return;
    const BFloat16* last = panel + even * HALVES * LANES;
    const __m512bh first = (__m512bh)_mm512_loadu_si512(last);
    const __m512bh second = (__m512bh)_mm512_loadu_si512(HALVES > 1 ? last + 2 * LANES : last);
    for (int r = 0; r < ROWS; ++r) {  // what lies behind the last input is not the row's
        const __m512bh value = (__m512bh)_mm512_set1_epi32(x[r * left.row].bits);
        sums[r][0] = (Vec)_mm512_dpbf16_ps((__m512)sums[r][0], value, first);
        if constexpr (HALVES > 1) sums[r][1] = (Vec)_mm512_dpbf16_ps((__m512)sums[r][1], value, second);
    }
}
#endif

// Whether `write_past` can write rows so far apart from there on.
template <class T>
bool can_write_past(const T* to, int64_t row) {
#if defined(__AVX512F__)
    return std::is_same_v<T, float> && reinterpret_cast<uintptr_t>(to) % 64 == 0 && row * sizeof(T) % 64 == 0;
#else
    return false;
#endif
}

// Without taking it into the caches.
template <class T>
FT_INLINE void write_past(const float* values, T* to) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>)
        for (int o = 0; o < PANEL; o += LANES) _mm512_stream_ps(to + o, _mm512_loadu_ps(values + o));
#endif
}

// To be called by the thread that wrote, before others read.
inline void wrote_past() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

// What is added to sums before they are rounded, and where they go: Out is T, or float where T is narrower.
template <class T, class Out>
struct Ends {
    const T* bias;  // [O] or null
    const Out* base;  // [N][O], or null
    int64_t base_row;
    Out* out;
    int64_t out_row, outputs;
    bool past = false;  // write past the caches: what is larger than they are would be read first, to be overwritten

    // Ask for the memory that `write` will write to, while there is still something to compute. Not where rows are a
    // multiple of a page apart: they would push each other, and the left factor's, out of the one set of the first cache
    // that all of them fall into.
    template <int ROWS>
    FT_INLINE void fetch(int64_t row, int64_t start) const {
        constexpr int64_t LINE = 64 / sizeof(Out);
        if (past || out_row * static_cast<int64_t>(sizeof(Out)) % 4096 == 0) return;
        for (int r = 0; r < ROWS; ++r)
            for (int64_t o = 0; o < PANEL; o += LINE) __builtin_prefetch(out + (row + r) * out_row + start + o, 1);
    }

    template <int ROWS>
    FT_INLINE void write(int64_t row, int64_t start, const Vec (&sums)[ROWS][2]) const {
        const int64_t width = std::min<int64_t>(PANEL, outputs - start);
        for (int r = 0; r < ROWS; ++r) {
            float values[PANEL];
            store(values, sums[r][0]);
            store(values + LANES, sums[r][1]);
            if (bias != nullptr)
                for (int64_t o = 0; o < width; ++o) values[o] += widened(bias[start + o]);
            if (base != nullptr) {
                const Out* __restrict from = base + (row + r) * base_row + start;
                for (int64_t o = 0; o < width; ++o) values[o] += widened(from[o]);
            }
            Out* __restrict to = out + (row + r) * out_row + start;
            if (past && width == PANEL)
                write_past(values, to);
            else if (width == PANEL)
                for (int o = 0; o < PANEL; ++o) narrow(values[o], to + o);
            else
                for (int64_t o = 0; o < width; ++o) narrow(values[o], to + o);
        }
    }
};

}  // namespace ft
