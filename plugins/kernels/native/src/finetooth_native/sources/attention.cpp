// Causal attention over segments of one stream, forward and backward; the mathematics is in segment_attention.py.
//
// A segment's queries see the keys of its path: the segments above it, whole, then its own up to themselves. Keys and
// values are packed once a call, each segment from a new panel, so that every product below is one inner loop:
// rows of A, one number (or pair of bf16 numbers) at a time, times vectors of B. The G heads that share a key-value
// head are rows of one block. Each unit of work writes what no other unit writes, so results do not depend on how the
// units meet the threads.

#include <algorithm>
#include <cmath>
#include <vector>

#include "elements.h"
#include "tiles.h"

namespace ft {
namespace {

// so that a tile's sums are registers at -O2 too
#define FT_UNROLL _Pragma("GCC unroll 4")

constexpr int TILE = 4;            // rows of A whose sums are in registers at once
constexpr int64_t BLOCK_ROWS = 64; // rows (queries times heads of a group) of a block
constexpr int64_t CHUNK = 64;      // columns whose scores are made and used while they are in the first cache
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDE = 4;            // vectors of B beside each other; 32 registers
#else
constexpr int WIDE = 2;
#endif

// What the inner loops multiply: floats, or pairs of bf16 where the machine has an instruction for them.
struct Floats {
    using Unit = float;
    static constexpr int64_t EACH = 1;
    static constexpr int64_t ROWS = TILE, COLUMNS = LANES;  // what rows and columns are multiples of
    struct Ready {};
    static Vec add(Vec sum, Unit a, const Unit* b) { return fused(all(a), load(b), sum); }
    template <class T>
    static Unit pack(const T* a, const T*) { return widened(*a); }
    static void round(Vec values, Unit* to) { store(to, values); }
    static void interleave(Vec first, Vec, Unit* to) { store(to, first); }
    template <class T>
    static void interleave(const T* first, const T*, Unit* to) {
        store(to, load(first));
    }
};

#if defined(__AVX512BF16__)
struct Pairs {
    using Unit = uint32_t;
    static constexpr int64_t EACH = 2;
    static constexpr int64_t ROWS = TILE, COLUMNS = LANES;
    struct Ready {};
    static Vec add(Vec sum, Unit a, const Unit* b) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)),
                                     (__m512bh)_mm512_loadu_si512(b));
    }
    static Unit pack(const BFloat16* a, const BFloat16* b) { return a->bits | static_cast<uint32_t>(b->bits) << 16; }
    static __m256i rounded(Vec values) { return (__m256i)_mm512_cvtneps_pbh((__m512)values); }
    static void round(Vec values, Unit* to) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(values));
    }
    static void interleave(__m256i first, __m256i second, Unit* to) {
        const __m512i low = _mm512_cvtepu16_epi32(first), high = _mm512_cvtepu16_epi32(second);
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    static void interleave(Vec first, Vec second, Unit* to) { interleave(rounded(first), rounded(second), to); }
    static void interleave(const BFloat16* first, const BFloat16* second, Unit* to) {
        interleave(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)),
                   _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)), to);
    }
};
#endif

#if FT_TILES
// The same pairs on matrix units.
struct TiledPairs : Pairs {
    static constexpr int64_t ROWS = BOTH_ROWS, COLUMNS = PANEL;
    struct Ready {  // for as long as it lives, products can be computed
        Tiles tiles;
        Ready() { tiles.shape(BOTH_ROWS); }
    };
};
#endif

struct Shape {
    int64_t rows, heads, kv_heads, size;
    int64_t group() const { return heads / kv_heads; }
    int64_t width() const { return (heads + 2 * kv_heads) * size; }
};

struct Tree {
    int64_t count;
    const int64_t* starts;        // first row of each segment
    const int64_t* stops;         // behind its last row
    const int64_t* given;         // how many of its first rows are only seen, and get nothing
    const int64_t* path_offsets;  // where its path begins in `paths`; one more than segments
    const int64_t* paths;         // the segments above it, from the first
    int64_t columns = 1;          // what padded lengths are multiples of
    int64_t length(int64_t s) const { return stops[s] - starts[s]; }
    int64_t padded(int64_t s) const { return (length(s) + columns - 1) / columns * columns; }
    int64_t above(int64_t s) const {  // columns of the segments above it
        int64_t total = 0;
        for (int64_t i = path_offsets[s]; i < path_offsets[s + 1]; ++i) total += padded(paths[i]);
        return total;
    }
};

// Where a product goes: so many floats from one row, and from one vector of a row, to the next.
struct Sums {
    float* at;
    int64_t row, vector = LANES;
};

// sums[TILE][WIDTH vectors] (+)= A[TILE][k] B[k][WIDTH vectors]; strides of A and B in units.
template <class C, int WIDTH>
inline void tile(const typename C::Unit* a, int64_t a_row, const typename C::Unit* b, int64_t b_k, int64_t b_vector,
                 int64_t k, float* sums, const Sums& to, bool add) {
    Vec s[TILE][WIDTH];
    FT_UNROLL for (int r = 0; r < TILE; ++r)
        FT_UNROLL for (int v = 0; v < WIDTH; ++v) s[r][v] = add ? load(sums + r * to.row + v * to.vector) : Vec{};
    for (int64_t i = 0; i < k; ++i)
        FT_UNROLL for (int r = 0; r < TILE; ++r) {
            const typename C::Unit one = a[r * a_row + i];
            FT_UNROLL for (int v = 0; v < WIDTH; ++v) s[r][v] = C::add(s[r][v], one, b + i * b_k + v * b_vector);
        }
    FT_UNROLL for (int r = 0; r < TILE; ++r)
        FT_UNROLL for (int v = 0; v < WIDTH; ++v) store(sums + r * to.row + v * to.vector, s[r][v]);
}

// The product of `rows` (a multiple of TILE) rows of A with `vectors` vectors of B.
template <class C>
inline void product(int64_t rows, int64_t vectors, const typename C::Unit* a, int64_t a_row, const typename C::Unit* b,
                    int64_t b_k, int64_t b_vector, int64_t k, const Sums& sums, bool add) {
    int64_t v = 0;
    for (; v + WIDE <= vectors; v += WIDE)
        for (int64_t r = 0; r < rows; r += TILE)
            tile<C, WIDE>(a + r * a_row, a_row, b + v * b_vector, b_k, b_vector, k,
                          sums.at + r * sums.row + v * sums.vector, sums, add);
    for (; v < vectors; ++v)
        for (int64_t r = 0; r < rows; r += TILE)
            tile<C, 1>(a + r * a_row, a_row, b + v * b_vector, b_k, b_vector, k,
                       sums.at + r * sums.row + v * sums.vector, sums, add);
}

#if FT_TILES
template <>
inline void product<TiledPairs>(int64_t rows, int64_t vectors, const uint32_t* a, int64_t a_row, const uint32_t* b,
                                int64_t b_k, int64_t b_vector, int64_t k, const Sums& sums, bool add) {
    constexpr int64_t UNITS = TILE_BYTES / sizeof(uint32_t);
    const int64_t a_bytes = a_row * sizeof(uint32_t), b_bytes = b_k * sizeof(uint32_t);
    const int64_t row = sums.row * sizeof(float);
    written(a);
    for (int64_t r = 0; r < rows; r += BOTH_ROWS)
        for (int64_t v = 0; v < vectors; v += 2) {
            float* to = sums.at + r * sums.row + v * sums.vector;
            begin_sums<true>(to, row, add, sums.vector);
            for (int64_t i = 0; i < k; i += UNITS) {
                const uint32_t* right = b + i * b_k + v * b_vector;
                multiply_tiles<true, false>(a + r * a_row + i, a_bytes, right, right + b_vector, b_bytes);
            }
            end_sums<true>(to, row, sums.vector);
        }
}
#endif

// to[column][row] = from[row][column], 32 bits each; rows of `from` are `from_row` bytes apart.
template <class U>
inline void transpose(const void* from, int64_t from_row, int64_t rows, int64_t columns, U* to) {
    static_assert(sizeof(U) == 4, "32 bits");
    const char* bytes = static_cast<const char*>(from);
    for (int64_t row = 0; row < rows;) {
        int64_t column = 0, step = 1;
#if defined(__AVX512F__)
        step = std::min<int64_t>(LANES, rows - row);
        for (; step == LANES && column + LANES <= columns; column += LANES)
            transpose_block(bytes + row * from_row + column * 4, from_row, reinterpret_cast<char*>(to + column * rows + row),
                            rows * 4);
#endif
        for (; column < columns; ++column)
            for (int64_t r = row; r < row + step; ++r) std::memcpy(to + column * rows + r, bytes + r * from_row + column * 4, 4);
        row += step;
    }
}

// The keys or values of one key-value head, packed for both kinds of product; room for the padded rows of the stream.
template <class C>
struct Packed {
    using Unit = typename C::Unit;
    Unit* lanes = nullptr;  // [panel][size / EACH][LANES rows]: B of a product over the head's size
    Unit* pairs = nullptr;  // [row / EACH][size]: B of a product over rows

    template <class T>
    void fill(const T* from, int64_t stride, int64_t count, int64_t padded, int64_t at, int64_t size) const {
        static const T zero{};
        if (lanes != nullptr) {
            for (int64_t panel = 0; panel < padded; panel += LANES) {
                Unit* to = lanes + (at + panel) * size / C::EACH;
                if constexpr (sizeof(T) * C::EACH == sizeof(Unit))
                    if (panel + LANES <= count) {
                        transpose(from + panel * stride, stride * sizeof(T), LANES, size / C::EACH, to);
                        continue;
                    }
                for (int64_t k = 0; k < size / C::EACH; ++k)
                    for (int64_t j = panel; j < panel + LANES; ++j, ++to) {
                        const T* value = from + j * stride + k * C::EACH;
                        *to = j < count ? C::pack(value, value + C::EACH - 1) : Unit{};
                    }
            }
        }
        if (pairs != nullptr) {
            Unit* to = pairs + at / C::EACH * size;
            for (int64_t j = 0; j < padded; j += C::EACH)
                for (int64_t d = 0; d < size; d += LANES, to += LANES) {
                    const T* value = from + j * stride + d;
                    if (j + C::EACH <= count)
                        C::interleave(value, value + (C::EACH - 1) * stride, to);
                    else
                        for (int i = 0; i < LANES; ++i) to[i] = j < count ? C::pack(value + i, &zero) : Unit{};
                }
        }
    }
};

// Where each segment's packed rows begin, and how many there are.
struct Places {
    std::vector<int64_t> at;
    int64_t total = 0;
    explicit Places(const Tree& tree) : at(tree.count) {
        for (int64_t s = 0; s < tree.count; ++s) {
            at[s] = total;
            total += tree.padded(s);
        }
    }
};

// One run of columns of a block's scores: the keys of one segment.
struct Run {
    int64_t at;      // first packed row
    int64_t column;  // first column
    int64_t count;   // keys
    int64_t padded;
    bool own;
};

inline void path_of(const Tree& tree, const Places& places, int64_t s, std::vector<Run>& runs) {
    runs.clear();
    int64_t column = 0;
    const auto append = [&](int64_t other, bool own) {
        runs.push_back({places.at[other], column, tree.length(other), tree.padded(other), own});
        column += tree.padded(other);
    };
    for (int64_t i = tree.path_offsets[s]; i < tree.path_offsets[s + 1]; ++i) append(tree.paths[i], false);
    append(s, true);
}

inline int64_t ceiling(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// A block's rows of A: [rows padded to C::ROWS][size / EACH], head after head; rows without a query are zero.
template <class C, class T>
inline void gather(const T* from, int64_t stride, int64_t head_stride, int64_t group, int64_t queries, int64_t padded,
                   int64_t size, typename C::Unit* to) {
    for (int64_t g = 0; g < group; ++g)
        for (int64_t q = 0; q < queries; ++q, to += size / C::EACH) {
            const T* value = from + q * stride + g * head_stride;
            if constexpr (sizeof(T) * C::EACH == sizeof(*to))
                std::memcpy(to, value, size * sizeof(T));
            else
                for (int64_t k = 0; k < size; ++k) to[k] = C::pack(value + k, value + k);
        }
    std::fill(to, to + (padded - group * queries) * size / C::EACH, typename C::Unit{});
}

// A block's rows as A of a product over rows: [size][rows / EACH]. `room` has as much.
template <class C>
inline void turn(const typename C::Unit* rows, int64_t padded, int64_t size, typename C::Unit* room, typename C::Unit* to) {
    using Half = typename std::conditional<C::EACH == 1, float, BFloat16>::type;
    const Half* from = reinterpret_cast<const Half*>(rows);
    if constexpr (C::EACH > 1)
        for (int64_t r = 0; r < padded; r += C::EACH)
            for (int64_t d = 0; d < size; d += LANES)
                C::interleave(from + r * size + d, from + (r + C::EACH - 1) * size + d, room + r / C::EACH * size + d);
    transpose(C::EACH > 1 ? room : rows, size * 4, padded / C::EACH, size, to);
}

// to[row][size] = factor from, which stands in panels of LANES rows: [panel][size][LANES].
template <class T>
inline void write_panels(const float* from, int64_t rows, int64_t size, float factor, T* to, int64_t to_row) {
    for (int64_t panel = 0; panel < rows; panel += LANES)
        for (int64_t d = 0; d < size; d += LANES) {
            float turned[LANES * LANES];
            transpose(from + panel * size + d * LANES, LANES * 4, LANES, LANES, turned);
            for (int64_t j = panel; j < std::min(panel + LANES, rows); ++j)
                narrow(load(turned + (j - panel) * LANES) * factor, to + j * to_row + d);
        }
}

struct Unit {
    int64_t segment, kv_head, from, to;
    int64_t cost;
};

inline void sort_by_cost(std::vector<Unit>& units) {
    std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) { return a.cost > b.cost; });
}

template <class C>
inline typename C::Unit* take(char*& at, int64_t units) {
    auto* taken = reinterpret_cast<typename C::Unit*>(at);
    at += ceiling(units * static_cast<int64_t>(sizeof(typename C::Unit)), 64);
    return taken;
}

inline float* take_floats(char*& at, int64_t count) {
    auto* taken = reinterpret_cast<float*>(at);
    at += ceiling(count * 4, 64);
    return taken;
}

template <class C, class T>
class Attention {
  public:
    using U = typename C::Unit;

    Attention(const T* qkv, const Tree& tree, const Shape& shape, float scale, int threads)
        : qkv_(qkv), tree_(tree), shape_(shape), places_(tree), longest_(longest()), scale_(scale), threads_(threads) {}

    bool forward(T* out, float* lse);
    bool backward(const T* out, const float* lse, const T* grad, T* d_qkv);

  private:
    int64_t queries() const { return std::max<int64_t>(1, BLOCK_ROWS / shape_.group()); }
    int64_t block_rows() const { return ceiling(queries() * shape_.group(), C::ROWS); }
    const T* query(int64_t row, int64_t kv_head) const {
        return qkv_ + row * shape_.width() + kv_head * shape_.group() * shape_.size;
    }
    bool pack(bool forward);
    void forward_unit(const Unit& unit, T* out, float* lse, std::vector<Run>& runs, char* memory) const;
    void query_unit(const Unit& unit, const float* lse, const T* grad, T* d_qkv, std::vector<Run>& runs, char* memory) const;
    void key_unit(const Unit& unit, const float* lse, const T* grad, char* memory) const;
    int64_t longest() const;
    struct Room;

    const T* qkv_;
    Tree tree_;
    Shape shape_;
    Places places_;
    int64_t longest_;  // columns of the longest path
    float scale_;
    int threads_;
    std::vector<Packed<C>> keys_, values_;
    float *delta_ = nullptr, *d_keys_ = nullptr, *d_values_ = nullptr;  // gradients: [kv_head][panel][size][LANES rows]
};

template <class C, class T>
int64_t Attention<C, T>::longest() const {
    int64_t most = 0;
    for (int64_t s = 0; s < tree_.count; ++s) most = std::max(most, tree_.above(s) + tree_.padded(s));
    return most;
}

template <class C, class T>
bool Attention<C, T>::pack(bool forward) {
    const int64_t units = places_.total * shape_.size / C::EACH, each = ceiling(units * sizeof(U), 64);
    const int64_t kinds = forward ? 2 : 3;
    const int64_t wide = forward ? 0 : 2 * shape_.kv_heads * ceiling(places_.total * shape_.size * 4, 64);
    const int64_t deltas = forward ? 0 : ceiling(shape_.heads * shape_.rows * 4, 64);
    char* at = scratch<0>(kinds * shape_.kv_heads * each + wide + deltas);
    if (at == nullptr) return false;
    keys_.resize(shape_.kv_heads);
    values_.resize(shape_.kv_heads);
    for (int64_t h = 0; h < shape_.kv_heads; ++h) {
        keys_[h].lanes = take<C>(at, units);
        if (forward) {
            values_[h].pairs = take<C>(at, units);
        } else {
            keys_[h].pairs = take<C>(at, units);
            values_[h].lanes = take<C>(at, units);
        }
    }
    if (!forward) {
        d_keys_ = take_floats(at, shape_.kv_heads * places_.total * shape_.size);
        d_values_ = take_floats(at, shape_.kv_heads * places_.total * shape_.size);
        delta_ = take_floats(at, shape_.heads * shape_.rows);
    }
    const int64_t count = tree_.count * shape_.kv_heads;
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
    for (int64_t i = 0; i < count; ++i) {
        const int64_t s = i / shape_.kv_heads, h = i % shape_.kv_heads;
        const T* key = qkv_ + tree_.starts[s] * shape_.width() + (shape_.heads + h) * shape_.size;
        const T* value = key + shape_.kv_heads * shape_.size;
        keys_[h].fill(key, shape_.width(), tree_.length(s), tree_.padded(s), places_.at[s], shape_.size);
        values_[h].fill(value, shape_.width(), tree_.length(s), tree_.padded(s), places_.at[s], shape_.size);
    }
    return true;
}

// How many keys of a run query number `q` of its segment sees.
inline int64_t seen(const Run& run, int64_t q) { return run.own ? std::min(run.count, q + 1) : run.count; }

template <class C, class T>
void Attention<C, T>::forward_unit(const Unit& unit, T* out, float* lse, std::vector<Run>& runs, char* memory) const {
    const int64_t group = shape_.group(), size = shape_.size;
    [[maybe_unused]] const typename C::Ready ready;
    char* at = memory;
    U* queries_kd = take<C>(at, block_rows() * size / C::EACH);
    // Not a multiple of 4096 bytes from row to row: they would push each other out of one set of the first cache.
    const int64_t stride = longest_ + LANES;
    float* scores = take_floats(at, block_rows() * stride);
    U* weights = reinterpret_cast<U*>(scores);  // in the scores' place, from each row's beginning on
    float* sums = take_floats(at, block_rows() * size);
    float* divisors = take_floats(at, block_rows());
    path_of(tree_, places_, unit.segment, runs);
    const int64_t start = tree_.starts[unit.segment];
    for (int64_t from = unit.from; from < unit.to; from += queries()) {
        const int64_t count = std::min(queries(), unit.to - from), rows = group * count, padded = ceiling(rows, C::ROWS);
        gather<C>(query(start + from, unit.kv_head), shape_.width(), size, group, count, padded, size, queries_kd);
        runs.back().padded = ceiling(from + count, C::COLUMNS);  // keys behind the last query are not looked at
        const int64_t columns = runs.back().column + runs.back().padded;
        for (const Run& run : runs)
            for (int64_t c = 0; c < run.padded; c += CHUNK)
                product<C>(padded, std::min(CHUNK, run.padded - c) / LANES, queries_kd, size / C::EACH,
                           keys_[unit.kv_head].lanes + (run.at + c) * size / C::EACH, LANES, LANES * size / C::EACH,
                           size / C::EACH, {scores + run.column + c, stride}, false);
        for (int64_t r = 0; r < padded; ++r) {
            const float* row = scores + r * stride;
            U* to = weights + r * stride;
            if (r >= rows) {
                std::fill(to, to + columns / C::EACH, U{});
                continue;
            }
            const int64_t q = from + r % count;
            Vec best = all(-INFINITY);
            for (const Run& run : runs) {
                const int64_t visible = seen(run, q);
                for (int64_t c = 0; c < visible; c += LANES) {
                    const Vec next = leading(load(row + run.column + c), visible - c, -INFINITY);
                    best = next > best ? next : best;
                }
            }
            const float highest = largest(best);
            Vec total{};
            for (const Run& run : runs) {
                const int64_t visible = seen(run, q);
                for (int64_t c = 0; c < run.padded; c += LANES) {
                    const Vec score = load(row + run.column + c);
                    const Vec weight = leading(exponential((score - highest) * scale_), visible - c, 0.0f);
                    total += weight;
                    C::round(weight, to + (run.column + c) / C::EACH);
                }
            }
            divisors[r] = folded(total);
            lse[(unit.kv_head * group + r / count) * shape_.rows + start + q] = fused(highest, scale_, std::log(divisors[r]));
        }
        bool add = false;
        for (const Run& run : runs)
            for (int64_t c = 0; c < run.padded; c += CHUNK) {
                product<C>(padded, size / LANES, weights + (run.column + c) / C::EACH, stride,
                           values_[unit.kv_head].pairs + (run.at + c) / C::EACH * size, size, LANES,
                           std::min(CHUNK, run.padded - c) / C::EACH, {sums, size}, add);
                add = true;
            }
        for (int64_t r = 0; r < rows; ++r) {
            T* to = out + ((start + from + r % count) * shape_.heads + unit.kv_head * group + r / count) * size;
            const float share = 1 / divisors[r];
            for (int64_t d = 0; d < size; d += LANES) narrow(load(sums + r * size + d) * share, to + d);
        }
    }
}

template <class C, class T>
bool Attention<C, T>::forward(T* out, float* lse) {
    if (!pack(true)) return false;
    std::vector<Unit> units;
    const int64_t step = 4 * queries();
    for (int64_t s = 0; s < tree_.count; ++s) {
        const int64_t above = tree_.above(s);
        for (int64_t from = 0; from < tree_.length(s); from += step) {
            const int64_t to = std::min(from + step, tree_.length(s));
            if (to <= tree_.given[s]) continue;
            for (int64_t h = 0; h < shape_.kv_heads; ++h) units.push_back({s, h, from, to, (to - from) * (above + to)});
        }
    }
    sort_by_cost(units);
    const int64_t count = units.size();
    const size_t room = block_rows() * (shape_.size * 8 + (longest_ + LANES) * 4 + 4) + 1024;
    bool whole = true;
#pragma omp parallel num_threads(threads_) reduction(&& : whole)
    {
        std::vector<Run> runs;
        char* memory = scratch<1>(room);
        whole = memory != nullptr;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; ++i)
            if (memory != nullptr) forward_unit(units[i], out, lse, runs, memory);
    }
    return whole;
}

// What a block of backward works in.
template <class C, class T>
struct Attention<C, T>::Room {
    U *queries, *grads;                      // the block's rows as A: [rows][size / EACH]
    U *turned_queries, *turned_grads;        // as A of products over rows: [size][rows / EACH]
    float *scores, *d_weights;               // [rows][CHUNK]
    U *weight_pairs, *d_score_pairs;         // as B of products over rows: [rows / EACH][CHUNK]
    U* d_scores;                             // as A of a product over columns: [rows][CHUNK / EACH]
    float* d_queries;                        // [rows][size]
    float *lse, *delta;                      // [rows]

    Room(char* at, int64_t rows, int64_t size) {
        queries = take<C>(at, rows * size / C::EACH);
        grads = take<C>(at, rows * size / C::EACH);
        turned_queries = take<C>(at, rows * size / C::EACH);
        turned_grads = take<C>(at, rows * size / C::EACH);
        scores = take_floats(at, rows * CHUNK);
        d_weights = take_floats(at, rows * CHUNK);
        weight_pairs = take<C>(at, rows * CHUNK / C::EACH);
        d_score_pairs = take<C>(at, rows * CHUNK / C::EACH);
        d_scores = take<C>(at, rows * CHUNK / C::EACH);
        d_queries = take_floats(at, rows * size);
        lse = take_floats(at, rows);
        delta = take_floats(at, rows);
    }
    static size_t bytes(int64_t rows, int64_t size) { return rows * (size * 20 + CHUNK * 20 + 8) + 1024; }

    // Read the block's rows; `first` is its first row of the stream.
    void read(const Attention& of, int64_t first, int64_t kv_head, int64_t count, int64_t padded, const float* lse_hn,
              const T* grad) {
        const int64_t group = of.shape_.group(), size = of.shape_.size, heads = of.shape_.heads;
        gather<C>(of.query(first, kv_head), of.shape_.width(), size, group, count, padded, size, queries);
        gather<C>(grad + (first * heads + kv_head * group) * size, heads * size, size, group, count, padded, size, grads);
        // what they work in is free until their products' first numbers are written
        turn<C>(queries, padded, size, reinterpret_cast<U*>(d_queries), turned_queries);
        turn<C>(grads, padded, size, reinterpret_cast<U*>(d_queries), turned_grads);
        for (int64_t g = 0; g < group; ++g) {
            const int64_t place = (kv_head * group + g) * of.shape_.rows + first;
            std::copy_n(lse_hn + place, count, lse + g * count);
            std::copy_n(of.delta_ + place, count, delta + g * count);
        }
    }

    // Probabilities and what the scores get, for `columns` keys from packed row `key`; row r sees the first visible(r).
    template <class Visible>
    void weigh(const Attention& of, int64_t kv_head, int64_t key, int64_t columns, int64_t rows, int64_t padded,
               const Visible& visible) {
        const int64_t size = of.shape_.size / C::EACH;
        product<C>(padded, columns / LANES, queries, size, of.keys_[kv_head].lanes + key * size, LANES, LANES * size, size,
                   {scores, CHUNK}, false);
        product<C>(padded, columns / LANES, grads, size, of.values_[kv_head].lanes + key * size, LANES, LANES * size, size,
                   {d_weights, CHUNK}, false);
        for (int64_t first = 0; first < padded; first += C::EACH) {
            int64_t can_see[C::EACH];
            for (int e = 0; e < C::EACH; ++e) can_see[e] = first + e < rows ? visible(first + e) : 0;
            for (int64_t c = 0; c < columns; c += LANES) {
                Vec weight[C::EACH] = {}, d_score[C::EACH] = {};
                FT_UNROLL for (int e = 0; e < C::EACH; ++e) {
                    const int64_t r = first + e, at = r * CHUNK + c;
                    if (c < can_see[e]) {
                        weight[e] = leading(exponential(fused(load(scores + at), all(of.scale_), all(-lse[r]))), can_see[e] - c, 0.0f);
                        d_score[e] = leading(weight[e] * (load(d_weights + at) - delta[r]), can_see[e] - c, 0.0f);
                    }
                    C::round(d_score[e], d_scores + at / C::EACH);
                }
                const int64_t to = first / C::EACH * CHUNK + c;
                C::interleave(weight[0], weight[C::EACH - 1], weight_pairs + to);
                C::interleave(d_score[0], d_score[C::EACH - 1], d_score_pairs + to);
            }
        }
    }

    // dV += P^T dO and dK += dS^T Q for the keys last weighed, from panel to panel.
    void add_to_keys(int64_t columns, int64_t padded, int64_t size, float* d_key, float* d_value) const {
        const int64_t vectors = columns / LANES, k = padded / C::EACH, panel = LANES * size;
        product<C>(size, vectors, turned_grads, k, weight_pairs, CHUNK, LANES, k, {d_value, LANES, panel}, true);
        product<C>(size, vectors, turned_queries, k, d_score_pairs, CHUNK, LANES, k, {d_key, LANES, panel}, true);
    }
};

// The queries of a segment: their gradient, and what they add to the segment's own keys and values.
template <class C, class T>
void Attention<C, T>::query_unit(const Unit& unit, const float* lse, const T* grad, T* d_qkv, std::vector<Run>& runs,
                                 char* memory) const {
    const int64_t group = shape_.group(), size = shape_.size;
    Room room(memory, block_rows(), size);
    [[maybe_unused]] const typename C::Ready ready;
    path_of(tree_, places_, unit.segment, runs);
    const Run own = runs.back();
    const int64_t start = tree_.starts[unit.segment];
    float* d_key = d_keys_ + (unit.kv_head * places_.total + own.at) * size;
    float* d_value = d_values_ + (unit.kv_head * places_.total + own.at) * size;
    std::fill(d_key, d_key + own.padded * size, 0.0f);
    std::fill(d_value, d_value + own.padded * size, 0.0f);
    for (int64_t from = 0; from < tree_.length(unit.segment); from += queries()) {
        const int64_t count = std::min(queries(), tree_.length(unit.segment) - from);
        const int64_t rows = group * count, padded = ceiling(rows, C::ROWS);
        room.read(*this, start + from, unit.kv_head, count, padded, lse, grad);
        bool add = false;
        for (const Run& run : runs) {
            const int64_t end = run.own ? ceiling(from + count, C::COLUMNS) : run.padded;
            for (int64_t c = 0; c < end; c += CHUNK) {
                const int64_t columns = std::min(CHUNK, end - c);
                room.weigh(*this, unit.kv_head, run.at + c, columns, rows, padded,
                           [&](int64_t r) { return seen(run, from + r % count) - c; });
                product<C>(padded, size / LANES, room.d_scores, CHUNK / C::EACH,
                           keys_[unit.kv_head].pairs + (run.at + c) / C::EACH * size, size, LANES, columns / C::EACH,
                           {room.d_queries, size}, add);
                add = true;
                if (run.own) room.add_to_keys(columns, padded, size, d_key + c * size, d_value + c * size);
            }
        }
        for (int64_t r = 0; r < rows; ++r) {
            T* to = d_qkv + (start + from + r % count) * shape_.width() + (unit.kv_head * group + r / count) * size;
            for (int64_t d = 0; d < size; d += LANES) narrow(load(room.d_queries + r * size + d) * scale_, to + d);
        }
    }
}

// What the queries of all segments below add to some keys (from, to) of a segment.
template <class C, class T>
void Attention<C, T>::key_unit(const Unit& unit, const float* lse, const T* grad, char* memory) const {
    const int64_t group = shape_.group(), size = shape_.size, at = places_.at[unit.segment] + unit.from;
    Room room(memory, block_rows(), size);
    [[maybe_unused]] const typename C::Ready ready;
    const int64_t columns = ceiling(unit.to - unit.from, C::COLUMNS);
    float* d_key = d_keys_ + (unit.kv_head * places_.total + at) * size;
    float* d_value = d_values_ + (unit.kv_head * places_.total + at) * size;
    for (int64_t below = unit.segment + 1; below < tree_.count; ++below) {
        const int64_t *first = tree_.paths + tree_.path_offsets[below], *last = tree_.paths + tree_.path_offsets[below + 1];
        if (std::find(first, last, unit.segment) == last) continue;
        for (int64_t from = tree_.starts[below]; from < tree_.stops[below]; from += queries()) {
            const int64_t count = std::min(queries(), tree_.stops[below] - from);
            const int64_t rows = group * count, padded = ceiling(rows, C::ROWS);
            room.read(*this, from, unit.kv_head, count, padded, lse, grad);
            room.weigh(*this, unit.kv_head, at, columns, rows, padded, [&](int64_t) { return unit.to - unit.from; });
            room.add_to_keys(columns, padded, size, d_key, d_value);
        }
    }
}

template <class C, class T>
bool Attention<C, T>::backward(const T* out, const float* lse, const T* grad, T* d_qkv) {
    if (!pack(false)) return false;
    const int64_t size = shape_.size, heads = shape_.heads, kv_heads = shape_.kv_heads;
#pragma omp parallel for num_threads(threads_) schedule(static)
    for (int64_t row = 0; row < shape_.rows; ++row)
        for (int64_t h = 0; h < heads; ++h) {
            const T *o = out + (row * heads + h) * size, *g = grad + (row * heads + h) * size;
            Vec total{};
            for (int64_t d = 0; d < size; d += LANES) total = fused(load(o + d), load(g + d), total);
            delta_[h * shape_.rows + row] = folded(total);
        }
    std::vector<Unit> own, above;
    std::vector<int64_t> below(tree_.count, 0);
    for (int64_t s = 0; s < tree_.count; ++s) {
        int64_t columns = tree_.length(s) / 2;
        for (int64_t i = tree_.path_offsets[s]; i < tree_.path_offsets[s + 1]; ++i) {
            columns += tree_.length(tree_.paths[i]);
            below[tree_.paths[i]] += tree_.length(s);
        }
        for (int64_t h = 0; h < kv_heads; ++h) own.push_back({s, h, 0, tree_.length(s), columns * tree_.length(s)});
    }
    for (int64_t s = 0; s < tree_.count; ++s)
        for (int64_t from = 0; below[s] > 0 && from < tree_.length(s); from += CHUNK) {
            const int64_t to = std::min(from + CHUNK, tree_.length(s));
            for (int64_t h = 0; h < kv_heads; ++h) above.push_back({s, h, from, to, (to - from) * below[s]});
        }
    sort_by_cost(own);
    sort_by_cost(above);
    const int64_t own_count = own.size(), above_count = above.size();
    const size_t room = Room::bytes(block_rows(), size);
    bool whole = true;
#pragma omp parallel num_threads(threads_) reduction(&& : whole)
    {
        std::vector<Run> runs;
        char* memory = scratch<1>(room);
        whole = memory != nullptr;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < own_count; ++i)
            if (memory != nullptr) query_unit(own[i], lse, grad, d_qkv, runs, memory);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < above_count; ++i)
            if (memory != nullptr) key_unit(above[i], lse, grad, memory);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tree_.count * kv_heads; ++i) {
            const int64_t s = i / kv_heads, h = i % kv_heads;
            const int64_t from = (h * places_.total + places_.at[s]) * size;
            T* to = d_qkv + tree_.starts[s] * shape_.width() + (heads + h) * size;
            write_panels(d_keys_ + from, tree_.length(s), size, scale_, to, shape_.width());
            write_panels(d_values_ + from, tree_.length(s), size, 1.0f, to + kv_heads * size, shape_.width());
        }
    }
    return whole;
}

}  // namespace
}  // namespace ft

// work(Attention) with the numbers and instructions for this dtype on this machine.
template <class Work>
bool attend(int dtype, const void* qkv, ft::Tree tree, const ft::Shape& shape, float scale, int threads, const Work& work) {
    const auto attend_as = [&](auto kind, auto number) {
        using C = decltype(kind);
        using T = decltype(number);
        tree.columns = C::COLUMNS;
        ft::Attention<C, T> attention(static_cast<const T*>(qkv), tree, shape, scale, threads);
        return work(attention, number);
    };
    if (dtype == ft::FLOAT32) return attend_as(ft::Floats{}, float{});
#if FT_TILES
    if (shape.size % ft::TILE_INPUTS == 0 && ft::tiles_allowed()) return attend_as(ft::TiledPairs{}, ft::BFloat16{});
#endif
#if defined(__AVX512BF16__)
    return attend_as(ft::Pairs{}, ft::BFloat16{});
#else
    return attend_as(ft::Floats{}, ft::BFloat16{});
#endif
}

// Returns 0, or 1 where there was no memory.
FT_API int ft_attention(int dtype, const void* qkv, void* out, float* lse, const int64_t* starts,
                                const int64_t* stops, const int64_t* given, const int64_t* path_offsets,
                                const int64_t* paths, int64_t segments, int64_t rows, int64_t heads, int64_t kv_heads,
                                int64_t size, float scale, int threads) {
    const ft::Tree tree{segments, starts, stops, given, path_offsets, paths};
    const ft::Shape shape{rows, heads, kv_heads, size};
    return !attend(dtype, qkv, tree, shape, scale, threads, [&](auto& attention, auto number) {
        return attention.forward(static_cast<decltype(number)*>(out), lse);
    });
}

FT_API int ft_attention_backward(int dtype, const void* qkv, const void* out, const float* lse, const void* grad, void* d_qkv,
                                 const int64_t* starts, const int64_t* stops, const int64_t* given,
                                 const int64_t* path_offsets, const int64_t* paths, int64_t segments, int64_t rows,
                                 int64_t heads, int64_t kv_heads, int64_t size, float scale, int threads) {
    const ft::Tree tree{segments, starts, stops, given, path_offsets, paths};
    const ft::Shape shape{rows, heads, kv_heads, size};
    return !attend(dtype, qkv, tree, shape, scale, threads, [&](auto& attention, auto number) {
        using T = decltype(number);
        return attention.backward(static_cast<const T*>(out), lse, static_cast<const T*>(grad), static_cast<T*>(d_qkv));
    });
}
