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
    static Vec add(Vec sum, Unit a, const Unit* b) { return sum + a * load(b); }
    template <class T>
    static Unit pack(const T* a, const T*) { return widened(*a); }
    static void round(const float* values, Unit* to) { store(to, load(values)); }
    static void interleave(const float* first, const float*, Unit* to) { store(to, load(first)); }
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
    static __m256i rounded(const float* values) { return (__m256i)_mm512_cvtneps_pbh((__m512)load(values)); }
    static void round(const float* values, Unit* to) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(values));
    }
    static void interleave(const float* first, const float* second, Unit* to) {
        const __m512i low = _mm512_cvtepu16_epi32(rounded(first)), high = _mm512_cvtepu16_epi32(rounded(second));
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
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

// sums[TILE][WIDTH vectors] (+)= A[TILE][k] B[k][WIDTH vectors]; strides in units, of `sums` in floats.
template <class C, int WIDTH>
inline void tile(const typename C::Unit* a, int64_t a_row, int64_t a_k, const typename C::Unit* b, int64_t b_k,
                 int64_t b_vector, int64_t k, float* sums, int64_t sums_row, int64_t sums_vector, bool add) {
    Vec s[TILE][WIDTH];
    FT_UNROLL for (int r = 0; r < TILE; ++r)
        FT_UNROLL for (int v = 0; v < WIDTH; ++v) s[r][v] = add ? load(sums + r * sums_row + v * sums_vector) : Vec{};
    for (int64_t i = 0; i < k; ++i)
        FT_UNROLL for (int r = 0; r < TILE; ++r) {
            const typename C::Unit one = a[r * a_row + i * a_k];
            FT_UNROLL for (int v = 0; v < WIDTH; ++v) s[r][v] = C::add(s[r][v], one, b + i * b_k + v * b_vector);
        }
    FT_UNROLL for (int r = 0; r < TILE; ++r)
        FT_UNROLL for (int v = 0; v < WIDTH; ++v) store(sums + r * sums_row + v * sums_vector, s[r][v]);
}

// The product of `rows` (a multiple of TILE) rows of A with `vectors` vectors of B.
template <class C>
inline void product(int64_t rows, int64_t vectors, const typename C::Unit* a, int64_t a_row, int64_t a_k,
                    const typename C::Unit* b, int64_t b_k, int64_t b_vector, int64_t k, float* sums,
                    int64_t sums_row, bool add) {
    int64_t v = 0;
    for (; v + WIDE <= vectors; v += WIDE)
        for (int64_t r = 0; r < rows; r += TILE)
            tile<C, WIDE>(a + r * a_row, a_row, a_k, b + v * b_vector, b_k, b_vector, k, sums + r * sums_row + v * LANES,
                          sums_row, LANES, add);
    for (; v < vectors; ++v)
        for (int64_t r = 0; r < rows; r += TILE)
            tile<C, 1>(a + r * a_row, a_row, a_k, b + v * b_vector, b_k, b_vector, k, sums + r * sums_row + v * LANES,
                       sums_row, LANES, add);
}

// The same where A lies the other way round: its rows next to each other, `a_k` units from one k to the next. `turned` has
// room for it, where the products want it as rows.
template <class C>
inline void product_of_columns(int64_t rows, int64_t vectors, const typename C::Unit* a, int64_t a_k,
                               const typename C::Unit* b, int64_t b_k, int64_t b_vector, int64_t k, float* sums,
                               int64_t sums_row, bool add, typename C::Unit*) {
    product<C>(rows, vectors, a, 1, a_k, b, b_k, b_vector, k, sums, sums_row, add);
}

#if FT_TILES
template <>
inline void product<TiledPairs>(int64_t rows, int64_t vectors, const uint32_t* a, int64_t a_row, int64_t,
                                const uint32_t* b, int64_t b_k, int64_t b_vector, int64_t k, float* sums,
                                int64_t sums_row, bool add) {
    constexpr int64_t UNITS = TILE_BYTES / sizeof(uint32_t);
    const int64_t a_bytes = a_row * sizeof(uint32_t), b_bytes = b_k * sizeof(uint32_t), row = sums_row * sizeof(float);
    written(a);
    for (int64_t r = 0; r < rows; r += BOTH_ROWS)
        for (int64_t v = 0; v < vectors; v += 2) {
            float* to = sums + r * sums_row + v * LANES;
            begin_sums<true>(to, row, add);
            for (int64_t i = 0; i < k; i += UNITS) {
                const uint32_t* right = b + i * b_k + v * b_vector;
                multiply_tiles<true, false>(a + r * a_row + i, a_bytes, right, right + b_vector, b_bytes);
            }
            end_sums<true>(to, row);
        }
}

template <>
inline void product_of_columns<TiledPairs>(int64_t rows, int64_t vectors, const uint32_t* a, int64_t a_k,
                                           const uint32_t* b, int64_t b_k, int64_t b_vector, int64_t k, float* sums,
                                           int64_t sums_row, bool add, uint32_t* turned) {
    for (int64_t i = 0; i < k; i += LANES)
        for (int64_t r = 0; r < rows; r += LANES)
            transpose_block(reinterpret_cast<const char*>(a + i * a_k + r), a_k * sizeof(uint32_t),
                            reinterpret_cast<char*>(turned + r * k + i), k * sizeof(uint32_t));
    product<TiledPairs>(rows, vectors, turned, k, 1, b, b_k, b_vector, k, sums, sums_row, add);
}
#endif

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
            Unit* to = lanes + at * size / C::EACH;
            for (int64_t panel = 0; panel < padded; panel += LANES)
                for (int64_t k = 0; k < size / C::EACH; ++k)
                    for (int64_t j = panel; j < panel + LANES; ++j, ++to) {
                        const T* value = from + j * stride + k * C::EACH;
                        *to = j < count ? C::pack(value, value + C::EACH - 1) : Unit{};
                    }
        }
        if (pairs != nullptr) {
            Unit* to = pairs + at / C::EACH * size;
            for (int64_t j = 0; j < padded; j += C::EACH)
                for (int64_t d = 0; d < size; ++d, ++to) {
                    const T* value = from + j * stride + d;
                    *to = j >= count ? Unit{} : C::pack(value, j + C::EACH - 1 < count ? value + (C::EACH - 1) * stride : &zero);
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
        for (int64_t q = 0; q < queries; ++q)
            for (int64_t k = 0; k < size / C::EACH; ++k, ++to) {
                const T* value = from + q * stride + g * head_stride + k * C::EACH;
                *to = C::pack(value, value + C::EACH - 1);
            }
    std::fill(to, to + (padded - group * queries) * size / C::EACH, typename C::Unit{});
}

// A block's rows as B of a product over rows: [rows / EACH][size].
template <class C>
inline void pair_rows(const typename C::Unit* rows, int64_t padded, int64_t size, typename C::Unit* to) {
    using Half = typename std::conditional<C::EACH == 1, float, BFloat16>::type;
    const Half* from = reinterpret_cast<const Half*>(rows);
    for (int64_t r = 0; r < padded; r += C::EACH)
        for (int64_t d = 0; d < size; ++d, ++to) *to = C::pack(from + r * size + d, from + (r + C::EACH - 1) * size + d);
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
    float *delta_ = nullptr, *d_keys_ = nullptr, *d_values_ = nullptr;
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
    const int64_t group = shape_.group(), size = shape_.size, most = longest_;
    [[maybe_unused]] const typename C::Ready ready;
    char* at = memory;
    U* queries_kd = take<C>(at, block_rows() * size / C::EACH);
    float* scores = take_floats(at, block_rows() * most);
    U* weights = take<C>(at, block_rows() * most / C::EACH);
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
                product<C>(padded, std::min(CHUNK, run.padded - c) / LANES, queries_kd, size / C::EACH, 1,
                           keys_[unit.kv_head].lanes + (run.at + c) * size / C::EACH, LANES, LANES * size / C::EACH,
                           size / C::EACH, scores + run.column + c, columns, false);
        for (int64_t r = 0; r < padded; ++r) {
            float* row = scores + r * columns;
            U* to = weights + r * columns / C::EACH;
            if (r >= rows) {
                std::fill(to, to + columns / C::EACH, U{});
                continue;
            }
            const int64_t q = from + r % count;
            float highest = -INFINITY;
            for (const Run& run : runs) {
                const int64_t visible = seen(run, q);
                Vec best = all(-INFINITY);
                int64_t c = 0;
                for (; c + LANES <= visible; c += LANES) {
                    const Vec next = load(row + run.column + c);
                    best = next > best ? next : best;
                }
                for (int i = 0; i < LANES; ++i) highest = std::max(highest, best[i]);
                for (; c < visible; ++c) highest = std::max(highest, row[run.column + c]);
            }
            Vec total{};
            for (const Run& run : runs) {
                const int64_t visible = seen(run, q);
                for (int64_t c = 0; c < run.padded; c += LANES) {
                    float* some = row + run.column + c;
                    Vec weight = exponential((load(some) - highest) * scale_);
                    for (int i = 0; c + LANES > visible && i < LANES; ++i)
                        if (c + i >= visible) weight[i] = 0;
                    total += weight;
                    store(some, weight);
                    C::round(some, to + (run.column + c) / C::EACH);
                }
            }
            divisors[r] = sum(total);
            lse[(unit.kv_head * group + r / count) * shape_.rows + start + q] = highest * scale_ + std::log(divisors[r]);
        }
        bool add = false;
        for (const Run& run : runs)
            for (int64_t c = 0; c < run.padded; c += CHUNK) {
                product<C>(padded, size / LANES, weights + (run.column + c) / C::EACH, columns / C::EACH, 1,
                           values_[unit.kv_head].pairs + (run.at + c) / C::EACH * size, size, LANES,
                           std::min(CHUNK, run.padded - c) / C::EACH, sums, size, add);
                add = true;
            }
        for (int64_t r = 0; r < rows; ++r) {
            T* to = out + ((start + from + r % count) * shape_.heads + unit.kv_head * group + r / count) * size;
            for (int64_t d = 0; d < size; ++d) narrow(sums[r * size + d] / divisors[r], to + d);
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
            for (int64_t h = 0; h < shape_.kv_heads; ++h) units.push_back({s, h, from, to, (to - from) * (above + to)});
        }
    }
    sort_by_cost(units);
    const int64_t count = units.size(), most = longest_, rows = block_rows();
    const size_t room = rows * (shape_.size * 8 + most * 8 + 4) + 1024;
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
    U *queries, *grads, *query_pairs, *grad_pairs;  // the block's rows as A and as B
    float *scores, *d_weights;                      // [rows][CHUNK]
    U *weights_k, *d_scores_k;                      // [rows / EACH][CHUNK]: A of products over rows
    U* d_scores;                                    // [rows][CHUNK / EACH]: A of a product over columns
    U* turned;                                      // [CHUNK][rows / EACH]: one of the products over rows, as rows
    float* d_queries;                               // [rows][size]
    float *lse, *delta;                             // [rows]

    Room(char* at, int64_t rows, int64_t size) {
        queries = take<C>(at, rows * size / C::EACH);
        grads = take<C>(at, rows * size / C::EACH);
        query_pairs = take<C>(at, rows * size / C::EACH);
        grad_pairs = take<C>(at, rows * size / C::EACH);
        scores = take_floats(at, rows * CHUNK);
        d_weights = take_floats(at, rows * CHUNK);
        weights_k = take<C>(at, rows * CHUNK / C::EACH);
        d_scores_k = take<C>(at, rows * CHUNK / C::EACH);
        d_scores = take<C>(at, rows * CHUNK / C::EACH);
        turned = take<C>(at, rows * CHUNK / C::EACH);
        d_queries = take_floats(at, rows * size);
        lse = take_floats(at, rows);
        delta = take_floats(at, rows);
    }
    static size_t bytes(int64_t rows, int64_t size) { return rows * (size * 20 + CHUNK * 24 + 8) + 1024; }

    // Read the block's rows; `first` is its first row of the stream.
    void read(const Attention& of, int64_t first, int64_t kv_head, int64_t count, int64_t padded, const float* lse_hn,
              const T* grad) {
        const int64_t group = of.shape_.group(), size = of.shape_.size, heads = of.shape_.heads;
        gather<C>(of.query(first, kv_head), of.shape_.width(), size, group, count, padded, size, queries);
        gather<C>(grad + (first * heads + kv_head * group) * size, heads * size, size, group, count, padded, size, grads);
        pair_rows<C>(queries, padded, size, query_pairs);
        pair_rows<C>(grads, padded, size, grad_pairs);
        for (int64_t r = 0; r < group * count; ++r) {
            const int64_t place = (kv_head * group + r / count) * of.shape_.rows + first + r % count;
            lse[r] = lse_hn[place];
            delta[r] = of.delta_[place];
        }
    }

    // Probabilities and what the scores get, for `columns` keys from packed row `key`; row r sees the first visible(r).
    template <class Visible>
    void weigh(const Attention& of, int64_t kv_head, int64_t key, int64_t columns, int64_t rows, int64_t padded,
               const Visible& visible) {
        const int64_t size = of.shape_.size / C::EACH;
        product<C>(padded, columns / LANES, queries, size, 1, of.keys_[kv_head].lanes + key * size, LANES, LANES * size,
                   size, scores, CHUNK, false);
        product<C>(padded, columns / LANES, grads, size, 1, of.values_[kv_head].lanes + key * size, LANES, LANES * size,
                   size, d_weights, CHUNK, false);
        for (int64_t r = 0; r < padded; ++r) {
            const int64_t can_see = r < rows ? visible(r) : 0;
            for (int64_t c = 0; c < columns; c += LANES) {
                float *score = scores + r * CHUNK + c, *d_weight = d_weights + r * CHUNK + c;
                Vec weight{}, d_score{};
                if (c < can_see) {
                    weight = exponential(load(score) * of.scale_ - lse[r]);
                    d_score = weight * (load(d_weight) - delta[r]);
                    for (int i = 0; c + LANES > can_see && i < LANES; ++i)
                        if (c + i >= can_see) weight[i] = d_score[i] = 0;
                }
                store(score, weight);
                store(d_weight, d_score);
                C::round(d_weight, d_scores + (r * CHUNK + c) / C::EACH);
                if (r % C::EACH == C::EACH - 1) {
                    const int64_t to = r / C::EACH * CHUNK + c, before = (C::EACH - 1) * CHUNK;
                    C::interleave(score - before, score, weights_k + to);
                    C::interleave(d_weight - before, d_weight, d_scores_k + to);
                }
            }
        }
    }

    // dV += P^T dO and dK += dS^T Q for the keys last weighed.
    void add_to_keys(int64_t columns, int64_t padded, int64_t size, float* d_key, float* d_value) const {
        const int64_t vectors = size / LANES, k = padded / C::EACH;
        product_of_columns<C>(columns, vectors, weights_k, CHUNK, grad_pairs, size, LANES, k, d_value, size, true, turned);
        product_of_columns<C>(columns, vectors, d_scores_k, CHUNK, query_pairs, size, LANES, k, d_key, size, true, turned);
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
                product<C>(padded, size / LANES, room.d_scores, CHUNK / C::EACH, 1,
                           keys_[unit.kv_head].pairs + (run.at + c) / C::EACH * size, size, LANES, columns / C::EACH,
                           room.d_queries, size, add);
                add = true;
                if (run.own) room.add_to_keys(columns, padded, size, d_key + c * size, d_value + c * size);
            }
        }
        for (int64_t r = 0; r < rows; ++r) {
            T* to = d_qkv + (start + from + r % count) * shape_.width() + (unit.kv_head * group + r / count) * size;
            for (int64_t d = 0; d < size; ++d) narrow(room.d_queries[r * size + d] * scale_, to + d);
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
            float total = 0;
            for (int64_t d = 0; d < size; d += LANES) {
                Vec some;
                for (int i = 0; i < LANES; ++i) some[i] = widened(o[d + i]) * widened(g[d + i]);
                total += sum(some);
            }
            delta_[h * shape_.rows + row] = total;
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
            for (int64_t j = 0; j < tree_.length(s); ++j) {
                const int64_t from = (h * places_.total + places_.at[s] + j) * size;
                T* to = d_qkv + (tree_.starts[s] + j) * shape_.width() + (heads + h) * size;
                for (int64_t d = 0; d < size; ++d) narrow(d_keys_[from + d] * scale_, to + d);
                for (int64_t d = 0; d < size; ++d) narrow(d_values_[from + d], to + kv_heads * size + d);
            }
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
                                const int64_t* stops, const int64_t* path_offsets, const int64_t* paths, int64_t segments,
                                int64_t rows, int64_t heads, int64_t kv_heads, int64_t size, float scale, int threads) {
    const ft::Tree tree{segments, starts, stops, path_offsets, paths};
    const ft::Shape shape{rows, heads, kv_heads, size};
    return !attend(dtype, qkv, tree, shape, scale, threads, [&](auto& attention, auto number) {
        return attention.forward(static_cast<decltype(number)*>(out), lse);
    });
}

FT_API int ft_attention_backward(int dtype, const void* qkv, const void* out, const float* lse, const void* grad, void* d_qkv,
                                 const int64_t* starts, const int64_t* stops, const int64_t* path_offsets,
                                 const int64_t* paths, int64_t segments, int64_t rows, int64_t heads, int64_t kv_heads,
                                 int64_t size, float scale, int threads) {
    const ft::Tree tree{segments, starts, stops, path_offsets, paths};
    const ft::Shape shape{rows, heads, kv_heads, size};
    return !attend(dtype, qkv, tree, shape, scale, threads, [&](auto& attention, auto number) {
        using T = decltype(number);
        return attention.backward(static_cast<const T*>(out), lse, static_cast<const T*>(grad), static_cast<T*>(d_qkv));
    });
}
