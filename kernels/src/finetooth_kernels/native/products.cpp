// Products of few rows with a weight that was packed for them: what writing tokens one after the other spends its time
// in. A weight is read from memory once, and every row meets it while it is in the cache.
//
// Letters: N rows, D inputs, O outputs. The packed weight is cut into panels of PANEL outputs; a panel holds, input by
// input (bfloat16 on machines that multiply pairs: two inputs by two), its outputs next to each other. Missing outputs
// of the last panel are zeros. Each number is one sum over the inputs in order, so it does not depend on how many rows
// there are, nor on the threads.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "elements.h"
#include "parallel.h"
#include "vectors.h"

namespace ft {
namespace {

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

struct Rows {
    const void* x;
    int64_t x_stride;
    const void* packed;
    const void* bias;  // [O] or null
    const void* base;  // [N][O], added, or null
    int64_t base_stride;
    void* out;  // [N][O]
    int64_t rows, inputs, outputs;
};

// sums[r] = x[r] . panel
template <int ROWS>
FT_INLINE void multiply(const float* x, int64_t stride, const float* panel, int64_t inputs, Vec (&sums)[ROWS][2]) {
    for (int64_t d = 0; d < inputs; ++d) {
        const Vec first = load(panel + d * PANEL), second = load(panel + d * PANEL + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const Vec value = all(x[r * stride + d]);
            sums[r][0] += value * first;
            sums[r][1] += value * second;
        }
    }
}

#if defined(__AVX512BF16__)
template <int ROWS>
FT_INLINE void multiply(const BFloat16* x, int64_t stride, const BFloat16* panel, int64_t inputs,
                        Vec (&sums)[ROWS][2]) {
    for (int64_t d = 0; d < inputs; d += 2) {
        const __m512bh first = (__m512bh)_mm512_loadu_si512(panel + d * PANEL);
        const __m512bh second = (__m512bh)_mm512_loadu_si512(panel + d * PANEL + 2 * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            int32_t pair;
            std::memcpy(&pair, x + r * stride + d, sizeof pair);
            const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
            sums[r][0] = (Vec)_mm512_dpbf16_ps((__m512)sums[r][0], value, first);
            sums[r][1] = (Vec)_mm512_dpbf16_ps((__m512)sums[r][1], value, second);
        }
    }
}
#else
template <int ROWS>
FT_INLINE void multiply(const BFloat16* x, int64_t stride, const BFloat16* panel, int64_t inputs,
                        Vec (&sums)[ROWS][2]) {
    for (int64_t d = 0; d < inputs; ++d) {
        const Vec first = load(panel + d * PANEL), second = load(panel + d * PANEL + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const Vec value = all(widened(x[r * stride + d]));
            sums[r][0] += value * first;
            sums[r][1] += value * second;
        }
    }
}
#endif

template <class T, int ROWS>
void block(const Rows& rows, int64_t row, int64_t panel) {
    Vec sums[ROWS][2] = {};
    const T* x = static_cast<const T*>(rows.x) + row * rows.x_stride;
    multiply<ROWS>(x, rows.x_stride, static_cast<const T*>(rows.packed) + panel * PANEL * rows.inputs, rows.inputs,
                   sums);
    const int64_t start = panel * PANEL, width = std::min<int64_t>(PANEL, rows.outputs - start);
    for (int r = 0; r < ROWS; ++r) {
        float values[PANEL];
        store(values, sums[r][0]);
        store(values + LANES, sums[r][1]);
        if (rows.bias != nullptr) {
            const T* bias = static_cast<const T*>(rows.bias) + start;
            for (int64_t o = 0; o < width; ++o) values[o] += widened(bias[o]);
        }
        if (rows.base != nullptr) {
            const T* base = static_cast<const T*>(rows.base) + (row + r) * rows.base_stride + start;
            for (int64_t o = 0; o < width; ++o) values[o] += widened(base[o]);
        }
        T* out = static_cast<T*>(rows.out) + (row + r) * rows.outputs + start;
        for (int64_t o = 0; o < width; ++o) narrow(values[o], out + o);
    }
}

// `count` rows, known only now, as a constant.
template <class T, int ROWS = MOST_ROWS>
FT_INLINE void any_block(const Rows& rows, int64_t row, int64_t count, int64_t panel) {
    if (count == ROWS) return block<T, ROWS>(rows, row, panel);
    if constexpr (ROWS > 1) any_block<T, ROWS - 1>(rows, row, count, panel);
}

template <class T>
void few_rows(const Rows& rows, int threads) {
    const int64_t panels = (rows.outputs + PANEL - 1) / PANEL;
    const int64_t blocks = (rows.rows + MOST_ROWS - 1) / MOST_ROWS;
    over_rows(panels, PANEL * rows.inputs, threads, [&](int64_t first, int64_t last) {
        for (int64_t panel = first; panel < last; ++panel)
            for (int64_t b = 0; b < blocks; ++b) {  // blocks of nearly the same size
                const int64_t row = rows.rows * b / blocks;
                any_block<T>(rows, row, rows.rows * (b + 1) / blocks - row, panel);
            }
    });
}

}  // namespace
}  // namespace ft

// How a weight is packed: outputs in a panel, and inputs that stand together.
FT_API void ft_few_rows_layout(int dtype, int64_t* panel, int64_t* together) {
    *panel = ft::PANEL;
    *together = dtype == ft::BFLOAT16 && ft::PAIRS ? 2 : 1;
}

// out = x W^T + bias + base, summed in float32.
FT_API void ft_few_rows(int dtype, const void* x, int64_t x_stride, const void* packed, const void* bias,
                        const void* base, int64_t base_stride, void* out, int64_t rows, int64_t inputs,
                        int64_t outputs, int threads) {
    const ft::Rows given{x, x_stride, packed, bias, base, base_stride, out, rows, inputs, outputs};
    if (dtype == ft::FLOAT32)
        ft::few_rows<float>(given, threads);
    else
        ft::few_rows<ft::BFloat16>(given, threads);
}
