// Products of few rows with a weight that was packed for them: what writing tokens one after the other spends its time
// in. A weight is read from memory once, and every row meets it while it is in the cache.
//
// Letters: N rows, D inputs, O outputs. The packed weight is cut into panels of PANEL outputs; a panel holds, input by
// input (bfloat16 on machines that multiply pairs: two inputs by two), its outputs next to each other. Missing outputs
// of the last panel are zeros; it is half as wide where one half would be nothing else. A panel may hold some inputs only,
// where the others are zeros: those of B mostly are, which stands for several modules. Each number is one sum over the
// inputs in an order that depends on their number alone, and is that of mm.cpp; so it does not depend on how many rows there are, nor on the threads. Nor on what other rows are
// added: rows of several adapters share the product with the base, and each adds its own low-rank one.
#include <algorithm>
#include <vector>

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
    const int64_t* parts = nullptr;  // [panels][3]: where in `packed`, and its inputs from where up to where; null: all
};

// Some inputs of a term, and the panel's numbers for them.
template <class T>
struct Stretch {
    Left<T> left;
    const T* panel;
    int64_t inputs;
};

// Bytes of a panel that are multiplied in a step.
template <class T, int HALVES>
constexpr int64_t STEP_BYTES = HALVES * LANES * TOGETHER<T> * sizeof(T);

// sums[ROWS][2] (+)= rows of the stretch, `row` first.
template <class T, int ROWS, int LINES, int HALVES>
void block(const Stretch<T>& stretch, int64_t row, bool add, Ahead ahead, float* kept) {
    Vec sums[ROWS][2];
    for (int r = 0; r < ROWS; ++r)
        for (int half = 0; half < HALVES; ++half) sums[r][half] = add ? load(kept + (2 * r + half) * LANES) : Vec{};
    const Left<T>& left = stretch.left;
    multiply<ROWS, LINES, HALVES>({left.at + row * left.row, left.row, left.step}, stretch.panel, stretch.inputs, sums, ahead);
    for (int r = 0; r < ROWS; ++r)
        for (int half = 0; half < HALVES; ++half) store(kept + (2 * r + half) * LANES, sums[r][half]);
}

// `count` rows, known only now, as a constant.
template <class T, int HALVES, int ROWS = MOST_ROWS>
FT_INLINE void any_block(const Stretch<T>& stretch, int64_t row, int64_t count, bool add, Ahead ahead, float* kept) {
    constexpr int LINES = (STEP_BYTES<T, HALVES> + 63) / 64;
    if (count == ROWS)
        return LINES > 1 && ahead.bytes * TOGETHER<T> > 64
                   ? block<T, ROWS, LINES, HALVES>(stretch, row, add, ahead, kept)
                   : block<T, ROWS, 1, HALVES>(stretch, row, add, ahead, kept);
    if constexpr (ROWS > 1) any_block<T, HALVES, ROWS - 1>(stretch, row, count, add, ahead, kept);
}

// Rows from `first` on that have a second term of their own, with as many outputs as its weight has.
struct Run {
    int64_t first, rows;
    Rows term;
    int64_t outputs;

    // Its rows among those from `row` up to `end`, for a panel: from `from` up to `until`.
    bool meets(int64_t row, int64_t end, int64_t panel, int64_t& from, int64_t& until) const {
        from = std::max(row, first);
        until = std::min(end, first + rows);
        return from < until && panel * PANEL < outputs && term.inputs > 0;
    }
};

struct Runs {
    const Run* of;
    int64_t count;
};

// The sums of `rows` rows (+)= a term's products with a panel, stretch by stretch: each is read from memory once.
template <class T, int HALVES>
void add_panel(const Rows& term, int64_t row, int64_t rows, int64_t panel, bool add, float* kept) {
    constexpr int64_t WIDTH = HALVES * LANES, MOST = STRETCH_BYTES / (PANEL * sizeof(T));
    const int64_t blocks = (rows + MOST_ROWS - 1) / MOST_ROWS;
    const int64_t all[3] = {panel * PANEL * term.inputs, 0, term.inputs};
    const int64_t* part = term.parts == nullptr ? all : term.parts + 3 * panel;
    const T* packed = static_cast<const T*>(term.packed) + part[0];
    for (int64_t k = part[1]; k < part[2]; k += MOST, add = true) {
        const Left<T> left{static_cast<const T*>(term.x) + row * term.x_stride + k, term.x_stride, TOGETHER<T>};
        const Stretch<T> stretch{left, packed + (k - part[1]) * WIDTH, std::min(MOST, part[2] - k)};
        // what lies behind is next; each block asks for its part of it, so that memory is never idle
        const char* next = reinterpret_cast<const char*>(stretch.panel + stretch.inputs * WIDTH);
        const int64_t bytes = WIDTH * sizeof(T) / blocks;
        for (int64_t b = 0; b < blocks; ++b) {  // blocks of nearly the same size
            const int64_t from = rows * b / blocks, count = rows * (b + 1) / blocks - from;
            const Ahead ahead{next + b * bytes * stretch.inputs, bytes};
            any_block<T, HALVES>(stretch, from, count, add, ahead, kept + from * PANEL);
        }
    }
}

// The same; the term's `outputs` say how wide the panel is.
template <class T>
void add_term(const Rows& term, int64_t outputs, int64_t row, int64_t rows, int64_t panel, bool add, float* kept) {
    if (outputs - panel * PANEL > LANES)
        add_panel<T, 2>(term, row, rows, panel, add, kept);
    else
        add_panel<T, 1>(term, row, rows, panel, add, kept);
}

// One panel and `rows` rows: the term that all have, then each run's own.
template <class T, class Out>
void panel_by_rows(const Rows& all, const Runs& runs, const Ends<T, Out>& ends, int64_t row, int64_t rows,
                   int64_t panel) {
    alignas(64) float kept[MOST_BLOCKS * MOST_ROWS * PANEL];
    // a panel may have no inputs, and half of it no outputs
    if (all.inputs == 0 || all.parts != nullptr || ends.outputs - panel * PANEL <= LANES)
        std::fill(kept, kept + rows * PANEL, 0.0f);
    if (all.inputs > 0) add_term<T>(all, ends.outputs, row, rows, panel, false, kept);
    for (int64_t n = 0; n < runs.count; ++n) {
        const Run& run = runs.of[n];
        int64_t from, until;
        if (run.meets(row, row + rows, panel, from, until))
            add_term<T>(run.term, run.outputs, from - run.first, until - from, panel, true, kept + (from - row) * PANEL);
    }
    for (int64_t r = 0; r < rows; ++r) {
        const Vec sums[1][2] = {{load(kept + r * PANEL), load(kept + r * PANEL + LANES)}};
        ends.template write<1>(row + r, panel * PANEL, sums);
    }
}

#if FT_TILES
inline void add_tiles(Tiles& tiles, const Rows& term, int64_t row, int64_t rows, int64_t panel, bool add, float* sums) {
    const BFloat16* x = static_cast<const BFloat16*>(term.x) + row * term.x_stride;
    const BFloat16* packed = static_cast<const BFloat16*>(term.packed) + panel * PANEL * term.inputs;
    multiply(tiles, {x, term.x_stride, packed, term.inputs, row == 0}, rows, sums, add);
}

// One panel on matrix units.
template <class Out>
void panel_by_tiles(Tiles& tiles, const Rows& all, const Runs& runs, const Ends<BFloat16, Out>& ends, int64_t rows,
                    int64_t panel) {
    alignas(64) float sums[BOTH_ROWS * PANEL];
    for (int64_t row = 0; row < rows; row += BOTH_ROWS) {
        const int64_t count = std::min(BOTH_ROWS, rows - row);
        if (all.inputs == 0)
            std::fill(sums, sums + count * PANEL, 0.0f);
        else
            add_tiles(tiles, all, row, count, panel, false, sums);
        for (int64_t n = 0; n < runs.count; ++n) {
            const Run& run = runs.of[n];
            int64_t from, until;
            if (run.meets(row, row + count, panel, from, until))
                add_tiles(tiles, run.term, from - run.first, until - from, panel, all.inputs > 0,
                          sums + (from - row) * PANEL);
        }
        write_sums(ends, row, count, panel * PANEL, sums);
    }
}
#endif

template <class T, class Out>
void few_rows(const Rows& all, const Runs& runs, const void* bias, const void* base, int64_t base_stride, void* out,
              int64_t rows, int64_t outputs, int threads) {
    const Ends<T, Out> ends{static_cast<const T*>(bias), static_cast<const Out*>(base), base_stride,
                            static_cast<Out*>(out), outputs, outputs};
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
    int64_t inputs = all.inputs;
    for (int64_t n = 0; n < runs.count; ++n) inputs += runs.of[n].term.inputs;
    over_rows(panels, PANEL * inputs, threads, [&](int64_t first, int64_t last) {
#if FT_TILES
        if constexpr (std::is_same_v<T, BFloat16>)
            if (tiles_allowed()) {
                Tiles tiles;
                for (int64_t panel = first; panel < last; ++panel) panel_by_tiles(tiles, all, runs, ends, rows, panel);
                return;
            }
#endif
        for (int64_t panel = first; panel < last; ++panel)
            for (int64_t row = 0; row < rows; row += MOST_BLOCKS * MOST_ROWS)
                panel_by_rows(all, runs, ends, row, std::min<int64_t>(MOST_BLOCKS * MOST_ROWS, rows - row), panel);
    });
}

}  // namespace
}  // namespace ft

// How a weight is packed: outputs in a panel, how many the last has at least, and inputs that stand together. Matrix
// units take whole panels, of all inputs.
FT_API void ft_few_rows_layout(int dtype, int64_t* panel, int64_t* least, int64_t* together) {
    *panel = ft::PANEL;
    *least = ft::LANES;
#if FT_TILES
    if (dtype == ft::BFLOAT16 && ft::tiles_allowed()) *least = ft::PANEL;
#endif
    *together = dtype == ft::BFLOAT16 ? ft::TOGETHER<ft::BFloat16> : ft::TOGETHER<float>;
}

// out = x W^T + bias + base, and to the rows of each run x2 W2^T of its own, summed in float32. Without inputs there is
// no W. `out_dtype` is that of base and out. `runs`: for each one the first row, how many, x2, its stride, W2 packed, its
// inputs, outputs and parts; of outputs that W2 lacks nothing is added. `parts` of a weight: see `Rows`.
FT_API void ft_few_rows(int dtype, int out_dtype, const void* x, int64_t x_stride, const void* packed, int64_t inputs,
                        const int64_t* parts, const int64_t* runs, int64_t count, const void* bias, const void* base,
                        int64_t base_stride, void* out, int64_t rows, int64_t outputs, int threads) {
    std::vector<ft::Run> found;
    found.reserve(count);
    for (const int64_t* run = runs; run < runs + 8 * count; run += 8)
        found.push_back({run[0], run[1],
                         {reinterpret_cast<const void*>(run[2]), run[3], reinterpret_cast<const void*>(run[4]), run[5],
                          reinterpret_cast<const int64_t*>(run[7])},
                         run[6]});
    const ft::Rows all{x, x_stride, packed, inputs, parts};
    const ft::Runs of{found.data(), count};
    if (dtype == ft::FLOAT32)
        ft::few_rows<float, float>(all, of, bias, base, base_stride, out, rows, outputs, threads);
    else if (out_dtype == ft::FLOAT32)
        ft::few_rows<ft::BFloat16, float>(all, of, bias, base, base_stride, out, rows, outputs, threads);
    else
        ft::few_rows<ft::BFloat16, ft::BFloat16>(all, of, bias, base, base_stride, out, rows, outputs, threads);
}
