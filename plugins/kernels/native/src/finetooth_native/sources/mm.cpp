// Products of matrices: out = left right (+ a second left right) (+ bias) (+ base), summed in float32 and rounded once.
//
// The right factor is cut into panels of PANEL outputs, each put into the order of the innermost loop in the core's own
// cache just before all rows meet it: no second copy of a weight is kept or written to memory. Letters: N rows, K
// inputs, O outputs. Each number is one sum over the inputs in an order that depends on their number alone (in order, or
// as tiles.h has it), so it does not depend on how many rows or threads there are.
#include <vector>

#include "panels.h"
#include "parallel.h"
#include "tiles.h"

namespace ft {
namespace {

struct Factors {
    const void* left;
    int64_t left_row, left_in;  // from one row, one input to the next: inputs stand side by side, or (tiles) rows do
    const void* right;
    int64_t right_in, right_out;
    int64_t inputs;
};

struct Product {
    Factors factors[2];
    int count;
    int64_t rows, outputs;

    int64_t blocks() const { return (rows + MOST_ROWS - 1) / MOST_ROWS; }
    // Blocks of nearly the same size.
    int64_t block_row(int64_t block) const { return rows * block / blocks(); }
    int64_t panels() const { return (outputs + PANEL - 1) / PANEL; }
};

// Some inputs of one pair of factors, and where their panel stands in the scratch.
struct Piece {
    int factors;
    int64_t first, count, at;
    bool joins = false;  // tiles: so few that they go along with the piece before
};

constexpr int64_t AHEAD = 16;               // inputs whose part of a panel is asked for before it is packed
constexpr int64_t PAST_BYTES = 48 << 20;    // results from this size on stay in no cache
constexpr int64_t MOST_BYTES = 288 * 1024;  // of a panel: with the rows it fits a core's second cache

template <class T>
int64_t padded(int64_t inputs) {
    return (inputs + TOGETHER<T> - 1) / TOGETHER<T> * TOGETHER<T>;
}

// to[column][row] = from[row][column], 32 bits each, for PANEL rows.
void transpose(const char* from, int64_t row_bytes, int64_t columns, char* to) {
    int64_t column = 0;
#if defined(__AVX512F__)
    for (; column + LANES <= columns; column += LANES)
        for (int64_t row = 0; row < PANEL; row += LANES)
            transpose_block(from + row * row_bytes + column * 4, row_bytes, to + (column * PANEL + row) * 4, PANEL * 4);
#endif
    for (; column < columns; ++column)
        for (int row = 0; row < PANEL; ++row)
            std::memcpy(to + (column * PANEL + row) * 4, from + row * row_bytes + column * 4, 4);
}

// panel[input] = from[input], for PANEL outputs.
template <class T>
void stack(const T* from, int64_t right_in, int64_t inputs, T* panel) {
    for (int64_t k = 0; k < inputs; ++k) std::memcpy(panel + k * PANEL, from + k * right_in, PANEL * sizeof(T));
}

#if defined(__AVX512BF16__)
// Two inputs at a time: their numbers for each output stand together.
void stack(const BFloat16* from, int64_t right_in, int64_t inputs, BFloat16* panel) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                                           39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    for (int64_t k = 0; k < inputs; k += 2) {
        const BFloat16* pair = from + k * right_in;
        // inputs lie far apart: no machine fetches the next by itself
        for (int i = 0; i < 2; ++i) __builtin_prefetch(pair + (AHEAD + i) * right_in);
        const __m512i a = _mm512_loadu_si512(pair), b = _mm512_loadu_si512(pair + right_in);
        _mm512_storeu_si512(panel + k * PANEL, _mm512_permutex2var_epi16(a, first, b));
        _mm512_storeu_si512(panel + (k + 1) * PANEL, _mm512_permutex2var_epi16(a, second, b));
    }
}
#endif

// `count` inputs from `first` on, of `width` outputs from `start` on, as a panel.
template <class T>
void pack(const Factors& of, int64_t first, int64_t count, int64_t start, int64_t width, T* panel) {
    constexpr int together = TOGETHER<T>;
    const T* from = static_cast<const T*>(of.right) + first * of.right_in + start * of.right_out;
    const int64_t even = count / together * together;
    if (width < PANEL || even < count) std::memset(panel, 0, sizeof(T) * padded<T>(count) * PANEL);
    if (width == PANEL && of.right_in == 1 && sizeof(T) * together == 4) {
        transpose(reinterpret_cast<const char*>(from), of.right_out * static_cast<int64_t>(sizeof(T)), even / together,
                  reinterpret_cast<char*>(panel));
    } else if (width == PANEL && of.right_out == 1) {
        stack(from, of.right_in, even, panel);
    } else {
        for (int64_t k = 0; k < even; ++k)
            for (int64_t o = 0; o < width; ++o)
                panel[k / together * together * PANEL + o * together + k % together] =
                    from[k * of.right_in + o * of.right_out];
    }
    for (int64_t k = even; k < count; ++k)
        for (int64_t o = 0; o < width; ++o)
            panel[even * PANEL + o * together] = from[k * of.right_in + o * of.right_out];
}

// One part of the work: some blocks of rows, with one panel after the other.
template <class T, class Out>
struct Part {
    const Product& product;
    const Ends<T, Out>& ends;
    const std::vector<Piece>& pieces;
    int64_t first_block, last_block;
    T* panel;
    float* kept;  // sums between pieces

    template <int ROWS>
    void tile(int64_t block, int64_t start, size_t begin, size_t end) const {
        Vec sums[ROWS][2] = {};
        const int64_t row = product.block_row(block);
        float* sum = kept + (block - first_block) * MOST_ROWS * PANEL;
        if (begin > 0)
            for (int r = 0; r < ROWS; ++r) {
                sums[r][0] = load(sum + r * PANEL);
                sums[r][1] = load(sum + r * PANEL + LANES);
            }
        if (end == pieces.size()) ends.template fetch<ROWS>(row, start);
        for (size_t i = begin; i < end; ++i) {
            const Piece& piece = pieces[i];
            const Factors& of = product.factors[piece.factors];
            const T* left = static_cast<const T*>(of.left) + row * of.left_row + piece.first;
            multiply<ROWS>(Left<T>{left, of.left_row, TOGETHER<T>}, panel + piece.at, piece.count, sums);
        }
        if (end == pieces.size()) return ends.write(row, start, sums);
        for (int r = 0; r < ROWS; ++r) {
            store(sum + r * PANEL, sums[r][0]);
            store(sum + r * PANEL + LANES, sums[r][1]);
        }
    }

    // `count` rows, known only now, as a constant.
    template <int ROWS = MOST_ROWS>
    FT_INLINE void any_tile(int64_t count, int64_t block, int64_t start, size_t begin, size_t end) const {
        if (count == ROWS) return tile<ROWS>(block, start, begin, end);
        if constexpr (ROWS > 1) any_tile<ROWS - 1>(count, block, start, begin, end);
    }

    void compute(int64_t index) const {
        const int64_t start = index * PANEL, width = std::min<int64_t>(PANEL, product.outputs - start);
        for (size_t begin = 0; begin < pieces.size();) {
            size_t end = begin;  // the pieces whose panels stand in the scratch together
            do {
                const Piece& piece = pieces[end];
                pack(product.factors[piece.factors], piece.first, piece.count, start, width, panel + piece.at);
                ++end;
            } while (end < pieces.size() && pieces[end].at > 0);
            for (int64_t block = first_block; block < last_block; ++block)
                any_tile(product.block_row(block + 1) - product.block_row(block), block, start, begin, end);
            begin = end;
        }
        if (ends.past) wrote_past();
    }
};

template <class T>
std::vector<Piece> pieces_of(const Product& product, int64_t most) {
    std::vector<Piece> pieces;
    int64_t used = 0;
    for (int f = 0; f < product.count; ++f)
        for (int64_t first = 0; first < product.factors[f].inputs;) {
            if (used >= most) used = 0;
            const int64_t left = product.factors[f].inputs - first, count = std::min(left, most - used);
            pieces.push_back({f, first, count, used * PANEL});
            first += count;
            used += padded<T>(count);
        }
    return pieces;
}

// How many threads share the panels; the others' share is of the rows.
int among_panels(int64_t panels, int threads) {
    for (int t = threads; t > 1; --t)
        if (threads % t == 0 && (panels % t == 0 || panels >= 8 * t)) return t;
    return 1;
}

template <class T, class Out>
void compute(const Product& product, const Ends<T, Out>& ends, int threads) {
    const int64_t most = MOST_BYTES / static_cast<int64_t>(sizeof(T)) / PANEL, blocks = product.blocks();
    const std::vector<Piece> pieces = pieces_of<T>(product, most);
    const bool splits = std::any_of(pieces.begin() + 1, pieces.end(), [](const Piece& piece) { return piece.at == 0; });
    const int64_t panels = product.panels();
    if (product.rows * product.outputs * product.factors[0].inputs < WORTH_THREADS * 8) threads = 1;
    const int lines = threads / among_panels(panels, threads);
    over_tasks(panels * lines, threads, [&](int64_t task) {
        const int64_t line = task / panels, from = blocks * line / lines, to = blocks * (line + 1) / lines;
        T* panel = reinterpret_cast<T*>(scratch<5>(MOST_BYTES + sizeof(T) * PANEL * 2));
        const size_t sums = splits ? sizeof(float) * (to - from) * MOST_ROWS * PANEL : 0;
        const Part<T, Out> mine{product, ends, pieces, from, to, panel, reinterpret_cast<float*>(scratch<6>(sums))};
        mine.compute(task % panels);
    });
}

#if FT_TILES
constexpr int64_t GROUP_BYTES = 1024 * 1024;  // of panels that stay in a core's second cache while all rows meet them
constexpr int64_t WORTH_PACKING = 512;       // rows that a panel is packed for, at least, where every thread has some
constexpr int64_t WORTH_A_THREAD = 64;       // rows that a thread has, at least
constexpr int64_t CHUNK_INPUTS = 576;        // of rows that stay in the first cache while they meet panels
constexpr int64_t LEAST_INPUTS = 384;        // of rows that are worth taking sums out and in again
constexpr int64_t FEW_INPUTS = 64;           // that are not worth sums of their own
constexpr int64_t CROWDED_BYTES = 2048;      // rows a multiple of this apart push each other out of the first cache
constexpr int64_t ROWS_A_PRODUCT = 4;        // written while tiles are multiplied
constexpr int64_t MOST_WAITING = 8 << 20;    // bytes of a thread's sums that wait for the next stage
// Few whole panels of many inputs would fit, and all rows be read anew for every few panels. In stages more panels fit; sums
// go out and come back between them. With g panels of k inputs in GROUP_BYTES, numbers moved are fewest near these.
constexpr int64_t STAGE_INPUTS = 1536, WORTH_STAGES = 2 * STAGE_INPUTS;

inline int64_t whole_tiles(int64_t inputs) { return (inputs + TILE_INPUTS - 1) / TILE_INPUTS * TILE_INPUTS; }

// The inputs in chunks of nearly the same size, whose panels stand in the scratch one behind the other: of all inputs, or
// of a stage, after which the next begin anew.
inline std::vector<Piece> chunks_of(const Product& product) {
    const int64_t every = product.factors[0].inputs + (product.count > 1 ? product.factors[1].inputs : 0);
    int64_t most = every <= WORTH_STAGES ? every + 2 * TILE_INPUTS : STAGE_INPUTS;
    // Rows that are turned come line by line from far away, once for each group of panels: all panels as one group.
    const int64_t inputs_of_all = GROUP_BYTES / static_cast<int64_t>(sizeof(BFloat16)) / (product.panels() * PANEL);
    if (product.factors[0].left_in != 1 && inputs_of_all >= LEAST_INPUTS)
        most = inputs_of_all / TILE_INPUTS * TILE_INPUTS;
    const int64_t longest = std::min(CHUNK_INPUTS, most);
    std::vector<Piece> chunks;
    int64_t used = 0;
    for (int f = 0; f < product.count; ++f) {
        const int64_t inputs = product.factors[f].inputs, count = (inputs + longest - 1) / longest;
        // whole tiles, so that sums are those of few_rows.cpp
        const int64_t each = whole_tiles((inputs + count - 1) / count);
        for (int64_t first = 0; first < inputs; first += each) {
            const int64_t size = std::min(each, inputs - first);
            if (used + size > most) used = 0;
            chunks.push_back({f, first, size, used * PANEL, f > 0 && used > 0 && inputs <= FEW_INPUTS});
            used += whole_tiles(size);
        }
    }
    return chunks;
}

// to[row][input] = from[input][row], rows CHUNK_INPUTS apart: two inputs at a time as in a panel, then 16 pairs turned.
inline void turn(const BFloat16* from, int64_t left_in, int64_t rows, int64_t inputs, BFloat16* to) {
    int64_t k = 0;
    if (rows == BOTH_ROWS)
        for (; k + TILE_INPUTS <= inputs; k += TILE_INPUTS) {
            alignas(64) BFloat16 pairs[TILE_INPUTS * PANEL];
            stack(from + k * left_in, left_in, TILE_INPUTS, pairs);
            const char* at = reinterpret_cast<const char*>(pairs);
            for (int64_t row = 0; row < BOTH_ROWS; row += LANES)
                transpose_block(at + row * 4, PANEL * 4, reinterpret_cast<char*>(to + row * CHUNK_INPUTS + k),
                                CHUNK_INPUTS * sizeof(BFloat16));
        }
    for (; k < inputs; ++k)
        for (int64_t row = 0; row < rows; ++row) to[row * CHUNK_INPUTS + k] = from[k * left_in + row];
}

// Some rows of a chunk for tiles to load: where they lie, or in `near` where they lie the other way round, so that they
// would push each other out of the first cache, or end within a tile: zeros are behind them then.
inline Left<BFloat16> rows_of(const Factors& of, const Piece& chunk, int64_t row, int64_t rows, BFloat16* near) {
    const BFloat16* left = static_cast<const BFloat16*>(of.left) + row * of.left_row + chunk.first * of.left_in;
    const bool crowded = of.left_row * sizeof(BFloat16) % CROWDED_BYTES == 0;
    const int64_t end = whole_tiles(chunk.count);
    if (of.left_in == 1 && !crowded && end == chunk.count) return {left, of.left_row, TOGETHER<BFloat16>};
    if (of.left_in != 1) turn(left, of.left_in, rows, chunk.count, near);
    for (int64_t r = 0; r < rows; ++r) {
        BFloat16* to = near + r * CHUNK_INPUTS;
        const BFloat16* from = of.left_in == 1 ? left + r * of.left_row : to;
        for (int64_t k = of.left_in == 1 ? 0 : end - TILE_INPUTS; k < end; k += TILE_INPUTS) {
            const __mmask32 some = ~uint32_t{0} >> std::max<int64_t>(0, k + TILE_INPUTS - chunk.count);
            _mm512_storeu_si512(to + k, _mm512_maskz_loadu_epi16(some, from + k));
        }
    }
    written(near);
    return {near, CHUNK_INPUTS, TOGETHER<BFloat16>};
}

// The same on matrix units: rows meet a group of panels at a time, since they come from farther away than panels do.
template <class Out>
struct TilePart {
    const Product& product;
    const Ends<BFloat16, Out>& ends;
    const std::vector<Piece>& chunks;
    int64_t first_row, last_row, panel_size;
    BFloat16* packed;
    float* kept;  // sums between chunks: of every panel, and where sums wait for panels that follow, of every row

    void pack_panel(int64_t panel, size_t begin, size_t end, BFloat16* to) const {
        const int64_t start = panel * PANEL, width = std::min<int64_t>(PANEL, product.outputs - start);
        for (size_t i = begin; i < end; ++i) {
            const Piece& chunk = chunks[i];
            pack(product.factors[chunk.factors], chunk.first, chunk.count, start, width, to + chunk.at);
            const int64_t packed_inputs = padded<BFloat16>(chunk.count), rest = whole_tiles(chunk.count) - packed_inputs;
            if (rest > 0) std::memset(to + chunk.at + packed_inputs * PANEL, 0, sizeof(BFloat16) * rest * PANEL);
        }
    }

    void compute(int64_t first_panel, int64_t last_panel, size_t begin, size_t end, bool keeps) const {
        for (int64_t panel = first_panel; panel < last_panel; ++panel)
            pack_panel(panel, begin, end, packed + (panel - first_panel) * panel_size);
        const int64_t apart = keeps ? last_row - first_row : BOTH_ROWS;  // one panel's sums from the next one's
        Waiting<Out> waiting(ends);
        const auto write_some = [&] { waiting.write(ROWS_A_PRODUCT); };
        Tiles tiles;
        alignas(64) BFloat16 near[2][BOTH_ROWS * CHUNK_INPUTS];
        for (int64_t row = first_row; row < last_row; row += BOTH_ROWS) {
            const int64_t rows = std::min(BOTH_ROWS, last_row - row);
            const auto term_of = [&](size_t i, BFloat16* place) {
                const Left<BFloat16> left = rows_of(product.factors[chunks[i].factors], chunks[i], row, rows, place);
                return Term{left.at, left.row, packed + chunks[i].at, whole_tiles(chunks[i].count)};
            };
            for (size_t i = begin, next; i < end; i = next) {
                next = i + 1;
                Term term = term_of(i, near[0]), more{};
                if (next < end && chunks[next].joins) more = term_of(next++, near[1]);
                for (int64_t panel = first_panel; panel < last_panel; ++panel) {
                    float* sums = kept + ((panel - first_panel) * apart + (keeps ? row - first_row : 0)) * PANEL;
                    multiply(tiles, term, rows, sums, i > 0, write_some, more);
                    term.panel += panel_size;
                    if (more.inputs > 0) more.panel += panel_size;
                    waiting.write_all();
                    if (next == chunks.size()) waiting.take(sums, row, rows, panel * PANEL);
                }
            }
            if (last_panel - first_panel == 1) waiting.write_all();  // before the next sums take their place
        }
        waiting.write_all();
    }
};

template <class Out>
void compute_tiles(const Product& product, const Ends<BFloat16, Out>& ends, int threads) {
    const std::vector<Piece> chunks = chunks_of(product);
    std::vector<size_t> stages;  // where chunks begin whose panels do not stand beside those before
    int64_t panel_size = 0;
    for (size_t i = 0; i < chunks.size(); ++i) {
        if (chunks[i].at == 0) stages.push_back(i);
        panel_size = std::max(panel_size, chunks[i].at + whole_tiles(chunks[i].count) * PANEL);
    }
    const bool keeps = stages.size() > 1;
    stages.push_back(chunks.size());
    const int64_t panels = product.panels(), blocks = (product.rows + BOTH_ROWS - 1) / BOTH_ROWS;
    if (product.rows * product.outputs * product.factors[0].inputs < WORTH_THREADS * 64) threads = 1;
    const int64_t fitting = std::max<int64_t>(1, GROUP_BYTES / sizeof(BFloat16) / panel_size);
    const int64_t groups = std::max<int64_t>((panels + fitting - 1) / fitting, std::min<int64_t>(threads, panels));
    int64_t lines = 1;
    const auto splits_into = [&](int64_t parts, int64_t least) {
        while (groups * lines < parts && product.rows >= 2 * lines * least) lines *= 2;
    };
    splits_into(threads, WORTH_A_THREAD);
    splits_into(PARTS_A_THREAD * threads, WORTH_PACKING);
    const int64_t row_bytes = (panels + groups - 1) / groups * PANEL * static_cast<int64_t>(sizeof(float));
    while (keeps && product.rows * row_bytes > MOST_WAITING * lines && product.rows >= 2 * lines * WORTH_PACKING)
        lines *= 2;
    over_tasks(groups * lines, threads, [&](int64_t task) {
        const int64_t group = task % groups, line = task / groups;
        const int64_t first = panels * group / groups, last = panels * (group + 1) / groups;
        const int64_t from = blocks * line / lines * BOTH_ROWS;
        const int64_t to = std::min(blocks * (line + 1) / lines * BOTH_ROWS, product.rows);
        BFloat16* packed = reinterpret_cast<BFloat16*>(scratch<5>(sizeof(BFloat16) * panel_size * (last - first)));
        const int64_t sums = (keeps ? to - from : BOTH_ROWS) * (last - first) * PANEL;
        float* kept = reinterpret_cast<float*>(scratch<6>(sizeof(float) * sums));
        const TilePart<Out> mine{product, ends, chunks, from, to, panel_size, packed, kept};
        for (size_t stage = 0; stage + 1 < stages.size(); ++stage)
            mine.compute(first, last, stages[stage], stages[stage + 1], keeps);
        if (ends.past) wrote_past();
    });
}
#endif

template <class T, class Out>
void compute(const Product& product, const void* bias, const void* base, int64_t base_row, void* out, int threads) {
    Out* to = static_cast<Out*>(out);
    const bool past = product.rows * product.outputs * static_cast<int64_t>(sizeof(Out)) >= PAST_BYTES &&
                      can_write_past(to, product.outputs);
    const Ends<T, Out> ends{static_cast<const T*>(bias), static_cast<const Out*>(base), base_row, to,
                            product.outputs,             product.outputs,               past};
#if FT_TILES
    if constexpr (std::is_same_v<T, BFloat16>)
        if (tiles_allowed()) return compute_tiles<Out>(product, ends, threads);
#endif
    compute<T, Out>(product, ends, threads);
}

}  // namespace
}  // namespace ft

// Whether products here are faster than torch's on such a machine: of pairs of bfloat16.
FT_API int ft_mm_is_fast(int dtype) { return dtype == ft::BFLOAT16 && ft::PAIRS ? 1 : 0; }

// Whether they take left factors whose rows stand next to each other: on tiles.
FT_API int ft_mm_turns(int dtype) {
#if FT_TILES
    return dtype == ft::BFLOAT16 && ft::tiles_allowed() ? 1 : 0;
#else
    return 0;
#endif
}

// out = left right + left2 right2 + bias + base; left is [N][K], right [K][O]; the second pair where its inputs are not 0.
// `out_dtype` is that of base and out.
FT_API void ft_mm(int dtype, int out_dtype, const void* left, int64_t left_row, int64_t left_in, const void* right,
                  int64_t right_in, int64_t right_out, int64_t inputs, const void* left2, int64_t left2_row,
                  int64_t left2_in, const void* right2, int64_t right2_in, int64_t right2_out, int64_t inputs2,
                  const void* bias, const void* base, int64_t base_row, void* out, int64_t rows, int64_t outputs,
                  int threads) {
    const ft::Product product{{{left, left_row, left_in, right, right_in, right_out, inputs},
                               {left2, left2_row, left2_in, right2, right2_in, right2_out, inputs2}},
                              inputs2 > 0 ? 2 : 1, rows, outputs};
    if (dtype == ft::FLOAT32)
        ft::compute<float, float>(product, bias, base, base_row, out, threads);
    else if (out_dtype == ft::FLOAT32)
        ft::compute<ft::BFloat16, float>(product, bias, base, base_row, out, threads);
    else
        ft::compute<ft::BFloat16, ft::BFloat16>(product, bias, base, base_row, out, threads);
}
