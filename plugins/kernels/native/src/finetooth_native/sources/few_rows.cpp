// Products of few rows with a weight that was packed for them: what writing tokens one after the other spends its time
// in. A weight is read from memory once, and every row meets it while it is in the cache.
//
// Letters: N rows, D inputs, O outputs. The packed weight is cut into panels of PANEL outputs; a panel holds, input by
// input (bfloat16 on machines that multiply pairs: two inputs by two), its outputs next to each other. Missing outputs
// of the last panel are zeros. Each number is one sum over the inputs in an order that depends on their number alone, and
// is that of mm.cpp; so it does not depend on how many rows there are, nor on the threads.
#include "panels.h"
#include "parallel.h"
#include "tiles.h"

namespace ft {
namespace {

constexpr int64_t STRETCH_BYTES = 16 * 1024;  // of a panel: with the rows it fits a core's first cache
constexpr int64_t MOST_BLOCKS = 6;            // whose sums are kept meanwhile

struct Rows {
    const void* x;
    int64_t x_stride;
    const void* packed;
    int64_t inputs;
};

// Some inputs of a term, and the panel's numbers for them.
template <class T>
struct Stretch {
    Left<T> left;
    const T* panel;
    int64_t inputs;
};

// sums[ROWS][2] (+)= rows of the stretch, `row` first. FETCH: ask for what lies behind it, which is next.
template <class T, int ROWS, bool FETCH>
void block(const Stretch<T>& stretch, int64_t row, bool add, float* kept) {
    Vec sums[ROWS][2];
    for (int r = 0; r < ROWS; ++r)
        for (int half = 0; half < 2; ++half) sums[r][half] = add ? load(kept + (2 * r + half) * LANES) : Vec{};
    const Left<T>& left = stretch.left;
    multiply<ROWS, FETCH>({left.at + row * left.row, left.row, left.step}, stretch.panel, stretch.inputs, sums);
    for (int r = 0; r < ROWS; ++r)
        for (int half = 0; half < 2; ++half) store(kept + (2 * r + half) * LANES, sums[r][half]);
}

// `count` rows, known only now, as a constant.
template <class T, int ROWS = MOST_ROWS>
FT_INLINE void any_block(const Stretch<T>& stretch, int64_t row, int64_t count, bool add, bool fetch, float* kept) {
    if (count == ROWS)
        return fetch ? block<T, ROWS, true>(stretch, row, add, kept) : block<T, ROWS, false>(stretch, row, add, kept);
    if constexpr (ROWS > 1) any_block<T, ROWS - 1>(stretch, row, count, add, fetch, kept);
}

// One panel and `rows` rows, stretch by stretch: each is read from memory once.
template <class T, class Out>
void panel_by_rows(const Rows (&terms)[2], const Ends<T, Out>& ends, int64_t row, int64_t rows, int64_t panel) {
    constexpr int64_t MOST = STRETCH_BYTES / (PANEL * sizeof(T));
    alignas(64) float kept[MOST_BLOCKS * MOST_ROWS * PANEL];
    const int64_t blocks = (rows + MOST_ROWS - 1) / MOST_ROWS;
    bool add = false;
    for (const Rows& term : terms)
        for (int64_t k = 0; k < term.inputs; k += MOST, add = true) {
            const T* packed = static_cast<const T*>(term.packed) + panel * PANEL * term.inputs;
            const Left<T> left{static_cast<const T*>(term.x) + row * term.x_stride + k, term.x_stride, TOGETHER<T>};
            const Stretch<T> stretch{left, packed + k * PANEL, std::min(MOST, term.inputs - k)};
            for (int64_t b = 0; b < blocks; ++b) {  // blocks of nearly the same size
                const int64_t from = rows * b / blocks, count = rows * (b + 1) / blocks - from;
                any_block(stretch, from, count, add, b == blocks - 1, kept + from * PANEL);
            }
        }
    for (int64_t r = 0; r < rows; ++r) {
        const Vec sums[1][2] = {{load(kept + r * PANEL), load(kept + r * PANEL + LANES)}};
        ends.template write<1>(row + r, panel * PANEL, sums);
    }
}

#if FT_TILES
// One panel on matrix units.
template <class Out>
void panel_by_tiles(Tiles& tiles, const Rows (&terms)[2], const Ends<BFloat16, Out>& ends, int64_t rows, int64_t panel) {
    alignas(64) float sums[BOTH_ROWS * PANEL];
    for (int64_t row = 0; row < rows; row += BOTH_ROWS) {
        const int64_t count = std::min(BOTH_ROWS, rows - row);
        bool add = false;
        for (const Rows& term : terms) {
            if (term.inputs == 0) continue;
            const BFloat16* x = static_cast<const BFloat16*>(term.x) + row * term.x_stride;
            const BFloat16* packed = static_cast<const BFloat16*>(term.packed) + panel * PANEL * term.inputs;
            multiply(tiles, {x, term.x_stride, packed, term.inputs, row == 0}, count, sums, add);
            add = true;
        }
        write_sums(ends, row, count, panel * PANEL, sums);
    }
}
#endif

template <class T, class Out>
void few_rows(const Rows (&terms)[2], const void* bias, const void* base, int64_t base_stride, void* out, int64_t rows,
              int64_t outputs, int threads) {
    const Ends<T, Out> ends{static_cast<const T*>(bias), static_cast<const Out*>(base), base_stride,
                            static_cast<Out*>(out), outputs, outputs};
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
    over_rows(panels, PANEL * (terms[0].inputs + terms[1].inputs), threads, [&](int64_t first, int64_t last) {
#if FT_TILES
        if constexpr (std::is_same_v<T, BFloat16>)
            if (tiles_allowed()) {
                Tiles tiles;
                for (int64_t panel = first; panel < last; ++panel) panel_by_tiles(tiles, terms, ends, rows, panel);
                return;
            }
#endif
        for (int64_t panel = first; panel < last; ++panel)
            for (int64_t row = 0; row < rows; row += MOST_BLOCKS * MOST_ROWS)
                panel_by_rows(terms, ends, row, std::min<int64_t>(MOST_BLOCKS * MOST_ROWS, rows - row), panel);
    });
}

}  // namespace
}  // namespace ft

// How a weight is packed: outputs in a panel, and inputs that stand together.
FT_API void ft_few_rows_layout(int dtype, int64_t* panel, int64_t* together) {
    *panel = ft::PANEL;
    *together = dtype == ft::BFLOAT16 ? ft::TOGETHER<ft::BFloat16> : ft::TOGETHER<float>;
}

// out = x W^T + x2 W2^T + bias + base, summed in float32; the second pair where its inputs are not 0. `out_dtype` is
// that of base and out.
FT_API void ft_few_rows(int dtype, int out_dtype, const void* x, int64_t x_stride, const void* packed, int64_t inputs,
                        const void* x2, int64_t x2_stride, const void* packed2, int64_t inputs2, const void* bias,
                        const void* base, int64_t base_stride, void* out, int64_t rows, int64_t outputs, int threads) {
    const ft::Rows terms[2] = {{x, x_stride, packed, inputs}, {x2, x2_stride, packed2, inputs2}};
    if (dtype == ft::FLOAT32)
        ft::few_rows<float, float>(terms, bias, base, base_stride, out, rows, outputs, threads);
    else if (out_dtype == ft::FLOAT32)
        ft::few_rows<ft::BFloat16, float>(terms, bias, base, base_stride, out, rows, outputs, threads);
    else
        ft::few_rows<ft::BFloat16, ft::BFloat16>(terms, bias, base, base_stride, out, rows, outputs, threads);
}
