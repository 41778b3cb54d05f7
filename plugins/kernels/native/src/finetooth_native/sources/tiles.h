// Matrix units that multiply tiles of bfloat16 (AMX): 32 rows times a panel in four tiles of float32 sums.
//
// A tile holds 16 rows of 64 bytes. Of the left factor those are rows as they lie in memory, 32 inputs of each; of a
// panel, 16 pairs of inputs for 16 outputs, as panels.h packs them. A product sums 32 inputs, the even and the odd ones
// apart, and adds both to the sum. So sums depend on where tiles begin, which is at multiples of 32 inputs everywhere,
// but not on which row of a tile a row is, nor on how many others there are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "panels.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define FT_TILES 1
#include <sys/syscall.h>
#include <unistd.h>

namespace ft {

constexpr int64_t TILE_ROWS = 16, BOTH_ROWS = 2 * TILE_ROWS;
constexpr int64_t TILE_INPUTS = 32;
constexpr int64_t TILE_BYTES = 64;  // of a tile's row

// Whether the system lets this process use them: it is asked once. Where it does not, pairs are multiplied, which sums
// in another order.
inline bool tiles_allowed() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return allowed;
}

// All that was written, `at` too, is in memory before what follows: compilers do not know what loads of tiles read. (What
// stores of tiles write they do know.)
FT_INLINE void written(const void* at) { __asm__ volatile("" : : "r"(at) : "memory"); }

// The calling thread's tiles for as long as this lives: sums of the upper rows in 0 and 1, of the lower in 2 and 3;
// rows in 4 and 5; a panel's halves in 6 and 7.
class Tiles {
  public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() {
        if (rows_ > 0) _tile_release();
    }

    // For products of so many rows, at most BOTH_ROWS.
    FT_INLINE void shape(int64_t rows) {
        if (rows == rows_) return;
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        const uint8_t upper = std::min(rows, TILE_ROWS), lower = rows > TILE_ROWS ? rows - TILE_ROWS : 1;
        const uint8_t counts[8] = {upper, upper, lower, lower, upper, lower, TILE_ROWS, TILE_ROWS};
        for (int t = 0; t < 8; ++t) {
            shapes.bytes[t] = TILE_BYTES;
            shapes.rows[t] = counts[t];
        }
        written(&shapes);
        _tile_loadconfig(&shapes);
        rows_ = rows;
    }

  private:
    int64_t rows_ = 0;
};

// One pair of factors: rows, so many numbers apart, and their panel.
struct Term {
    const BFloat16* left = nullptr;
    int64_t left_row = 0;
    const BFloat16* panel = nullptr;
    int64_t inputs = 0;
    bool far = false;  // the panel is in no cache: ask for what lies behind before it is needed
};

// From `sums` where they go on, else from 0; rows are `row` bytes apart, a row's two vectors `vector` floats.
template <bool LOWER>
FT_INLINE void begin_sums(const float* sums, int64_t row, bool add, int64_t vector = LANES) {
    const char* lower = reinterpret_cast<const char*>(sums) + TILE_ROWS * row;
    if (add) {
        _tile_loadd(0, sums, row);
        _tile_loadd(1, sums + vector, row);
        if (LOWER) _tile_loadd(2, lower, row);
        if (LOWER) _tile_loadd(3, lower + vector * sizeof(float), row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if (LOWER) _tile_zero(2);
        if (LOWER) _tile_zero(3);
    }
}

template <bool LOWER>
FT_INLINE void end_sums(float* sums, int64_t row, int64_t vector = LANES) {
    char* lower = reinterpret_cast<char*>(sums) + TILE_ROWS * row;
    _tile_stored(0, sums, row);
    _tile_stored(1, sums + vector, row);
    if (LOWER) _tile_stored(2, lower, row);
    if (LOWER) _tile_stored(3, lower + vector * sizeof(float), row);
}

// The sums += rows `left_row` bytes apart times two tiles of the right factor, whose rows are `right_row` bytes apart.
// PAST: those pass by the first cache, where the left factor's rows stay for the next.
template <bool LOWER, bool PAST>
FT_INLINE void multiply_tiles(const void* left, int64_t left_row, const void* first, const void* second,
                              int64_t right_row) {
    // all loads first: one between products holds both up
    _tile_loadd(4, left, left_row);
    if (LOWER) _tile_loadd(5, static_cast<const char*>(left) + TILE_ROWS * left_row, left_row);
    if (PAST) {
        _tile_stream_loadd(6, first, right_row);
        _tile_stream_loadd(7, second, right_row);
    } else {
        _tile_loadd(6, first, right_row);
        _tile_loadd(7, second, right_row);
    }
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (LOWER) _tile_dpbf16ps(2, 5, 6);
    if (LOWER) _tile_dpbf16ps(3, 5, 7);
}

template <bool LOWER>
FT_INLINE void multiply_panel(const BFloat16* left, int64_t left_row, const BFloat16* panel) {
    constexpr int64_t PAIR = PANEL * 2 * sizeof(BFloat16);
    multiply_tiles<LOWER, true>(left, left_row * sizeof(BFloat16), panel, panel + PANEL, PAIR);
}

// Into the second cache: two tiles' bytes.
FT_INLINE void fetch_ahead(const void* at) {
    for (int64_t byte = 0; byte < 2 * TILE_ROWS * TILE_BYTES; byte += 64)
        __builtin_prefetch(static_cast<const char*>(at) + byte, 0, 2);
}

// Nothing else to do while tiles are multiplied.
struct Nothing {
    void operator()() const {}
};

// The sums in the tiles += `rows` rows of a term times its panel. `beside` is called between products: what the other
// units of the core do meanwhile takes no time.
template <bool LOWER, class Beside>
FT_INLINE void add_term(const Term& term, int64_t rows, const Beside& beside) {
    const int64_t whole = term.inputs / TILE_INPUTS * TILE_INPUTS, rest = term.inputs - whole;
    for (int64_t k = 0; k < whole; k += TILE_INPUTS) {
        const BFloat16* panel = term.panel + k * PANEL;
        if (term.far) fetch_ahead(panel + 2 * TILE_INPUTS * PANEL);
        multiply_panel<LOWER>(term.left + k, term.left_row, panel);
        beside();
    }
    if (rest == 0) return;
    // what lies behind the last input is neither the row's nor the panel's
    alignas(64) BFloat16 left[BOTH_ROWS * TILE_INPUTS], panel[TILE_INPUTS * PANEL];
    const __mmask32 some = (uint32_t{1} << rest) - 1;
    for (int64_t r = 0; r < rows; ++r)
        _mm512_store_si512(left + r * TILE_INPUTS, _mm512_maskz_loadu_epi16(some, term.left + r * term.left_row + whole));
    const int64_t filled = (rest + 1) / 2 * 2 * PANEL;
    std::memcpy(panel, term.panel + whole * PANEL, filled * sizeof(BFloat16));
    std::memset(panel + filled, 0, (TILE_INPUTS * PANEL - filled) * sizeof(BFloat16));
    written(left);
    written(panel);
    multiply_panel<LOWER>(left, TILE_INPUTS, panel);
}

template <bool LOWER, class Beside>
void multiply(const Term& term, const Term& more, int64_t rows, float* sums, bool add, const Beside& beside) {
    constexpr int64_t ROW = PANEL * sizeof(float);
    begin_sums<LOWER>(sums, ROW, add);
    add_term<LOWER>(term, rows, beside);
    if (more.inputs > 0) add_term<LOWER>(more, rows, beside);
    end_sums<LOWER>(sums, ROW);
}

// sums[rows][PANEL] (+)= the products of the term, and of a second one, for at most BOTH_ROWS rows.
template <class Beside = Nothing>
inline void multiply(Tiles& tiles, const Term& term, int64_t rows, float* sums, bool add, const Beside& beside = {},
                     const Term& more = {}) {
    tiles.shape(rows);
    written(sums);
    if (rows > TILE_ROWS)
        multiply<true>(term, more, rows, sums, add, beside);
    else
        multiply<false>(term, more, rows, sums, add, beside);
}

// Adds to the sums what else there is, rounds and writes them.
template <class Out>
FT_INLINE void write_sums(const Ends<BFloat16, Out>& ends, int64_t row, int64_t rows, int64_t start, const float* sums) {
    if (ends.outputs - start >= PANEL && !ends.past) {
        const Vec none{}, first_bias = ends.bias == nullptr ? none : load(ends.bias + start),
                  second_bias = ends.bias == nullptr ? none : load(ends.bias + start + LANES);
        for (int64_t r = 0; r < rows; ++r) {
            Vec first = load(sums + r * PANEL) + first_bias, second = load(sums + r * PANEL + LANES) + second_bias;
            if (ends.base != nullptr) {
                const Out* from = ends.base + (row + r) * ends.base_row + start;
                first += load(from);
                second += load(from + LANES);
            }
            Out* to = ends.out + (row + r) * ends.out_row + start;
            narrow(first, to);
            narrow(second, to + LANES);
        }
        return;
    }
    for (int64_t r = 0; r < rows; ++r) {
        const Vec values[1][2] = {{load(sums + r * PANEL), load(sums + r * PANEL + LANES)}};
        ends.template write<1>(row + r, start, values);
    }
}

// Sums that are whole, to be written little by little while the next are computed.
template <class Out>
class Waiting {
  public:
    explicit Waiting(const Ends<BFloat16, Out>& ends) : ends_(ends) {}

    void take(const float* sums, int64_t row, int64_t rows, int64_t start) {
        sums_ = sums;
        row_ = row;
        left_ = rows;
        start_ = start;
    }
    void write(int64_t most) {
        const int64_t rows = std::min(most, left_);
        if (rows == 0) return;
        write_sums(ends_, row_, rows, start_, sums_);
        sums_ += rows * PANEL;
        row_ += rows;
        left_ -= rows;
    }
    void write_all() { write(left_); }

  private:
    const Ends<BFloat16, Out>& ends_;
    const float* sums_ = nullptr;
    int64_t row_ = 0, left_ = 0, start_ = 0;
};

}  // namespace ft
#else
#define FT_TILES 0
#endif
