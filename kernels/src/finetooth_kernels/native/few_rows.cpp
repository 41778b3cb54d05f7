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

struct Rows {
    const void* x;
    int64_t x_stride;
    const void* packed;
    int64_t inputs;
};

template <class T, class Out, int ROWS>
void block(const Rows (&terms)[2], const Ends<T, Out>& ends, int64_t row, int64_t panel) {
    Vec sums[ROWS][2] = {};
    for (const Rows& term : terms) {
        if (term.inputs == 0) continue;
        const T* x = static_cast<const T*>(term.x) + row * term.x_stride;
        multiply<ROWS>(Left<T>{x, term.x_stride, TOGETHER<T>},
                       static_cast<const T*>(term.packed) + panel * PANEL * term.inputs, term.inputs, sums);
    }
    ends.write(row, panel * PANEL, sums);
}

// `count` rows, known only now, as a constant.
template <class T, class Out, int ROWS = MOST_ROWS>
FT_INLINE void any_block(const Rows (&terms)[2], const Ends<T, Out>& ends, int64_t row, int64_t count, int64_t panel) {
    if (count == ROWS) return block<T, Out, ROWS>(terms, ends, row, panel);
    if constexpr (ROWS > 1) any_block<T, Out, ROWS - 1>(terms, ends, row, count, panel);
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
            multiply(tiles, {x, term.x_stride, packed, term.inputs}, count, sums, add);
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
    const int64_t panels = (outputs + PANEL - 1) / PANEL, blocks = (rows + MOST_ROWS - 1) / MOST_ROWS;
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
            for (int64_t b = 0; b < blocks; ++b) {  // blocks of nearly the same size
                const int64_t row = rows * b / blocks;
                any_block<T, Out>(terms, ends, row, rows * (b + 1) / blocks - row, panel);
            }
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
