// As many floats as a register of the machine holds as one value, in the compiler's vector extension.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ft {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using Vec = float __attribute__((vector_size(4 * LANES)));
using VecUnaligned __attribute__((aligned(4))) = Vec;
static_assert(alignof(VecUnaligned) == 4, "rows begin anywhere");  // clang drops it where it stands beside the size
using Ints = int32_t __attribute__((vector_size(4 * LANES)));

struct BFloat16 {
    uint16_t bits;
};

inline Vec load(const float* at) { return *reinterpret_cast<const VecUnaligned*>(at); }
inline void store(float* at, Vec value) { *reinterpret_cast<VecUnaligned*>(at) = value; }
inline Vec all(float value) { return value - Vec{}; }  // x - 0 is x, which compilers know; -0 + 0 is not -0

// a b + c, rounded once where the machine has an instruction for it. Said wherever it is meant, and compilers fuse
// nothing else (-ffp-contract=off): by their own lights they fuse in one copy of a loop and not in another, and what is
// computed with rows beside it would have other bits than what is computed alone.
inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
inline Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

inline float widened(float value) { return value; }
inline float widened(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// LANES of them, each made a float.
inline Vec load(const BFloat16* at) {
#if defined(__AVX512F__)
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    Vec values;
    for (int i = 0; i < LANES; ++i) values[i] = widened(at[i]);
    return values;
#endif
}

inline void narrow(float value, float* to) { *to = value; }
// Round to nearest, ties to even; NaN stays NaN.
inline void narrow(float value, BFloat16* to) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to->bits = value != value ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// LANES of them.
inline void narrow(Vec values, float* to) { store(to, values); }
inline void narrow(Vec values, BFloat16* to) {
#if defined(__AVX512F__)
    // as above: the machine's own instruction makes 0 of the smallest
    const __m512i bits = (__m512i)values, last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff));
    const __m512i upper = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __mmask16 unordered = _mm512_cmp_ps_mask((__m512)values, (__m512)values, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(upper, unordered, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(kept));
#else
    for (int i = 0; i < LANES; ++i) narrow(values[i], to + i);
#endif
}

// The first `count` of them, `rest` behind.
inline Vec leading(Vec values, int64_t count, float rest) {
    if (count >= LANES) return values;
    static constexpr int32_t NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Ints lane;
    std::memcpy(&lane, NUMBERS, sizeof lane);
    return lane < static_cast<int32_t>(count) ? values : all(rest);
}

// In pairs: the halves, their halves, ...
inline float folded(Vec value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)value);
#else
    float parts[LANES];
    store(parts, value);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
    return parts[0];
#endif
}

// Of numbers; what is no number does not count.
inline float largest(Vec value) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)value);
#else
    float most = value[0];
    for (int i = 1; i < LANES; ++i) most = value[i] > most ? value[i] : most;
    return most;
#endif
}

// exp to 2 ulp for x <= 88, at least exp(-87); NaN stays NaN. 2^n e^r with |r| <= ln2 / 2, e^r by its series.
inline Vec exponential(Vec x) {
    x = x < -87.0f ? all(-87.0f) : x;
    const Vec shifted = fused(x, all(1.44269504f), all(12582912.0f));  // 1.5 * 2^23: low bits are round(x log2 e)
    const Vec n = shifted - 12582912.0f;
    const Vec r = fused(n, all(-1.42860677e-6f), fused(n, all(-0.693145752f), x));
    constexpr float SERIES[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    Vec p = all(1.0f / 5040);
#pragma GCC unroll 7
    for (const float next : SERIES) p = fused(p, r, all(next));
    const Ints power = ((Ints)shifted + (127 - 0x4b400000)) << 23;
    return p * (Vec)power;
}

#if defined(__AVX512F__)
// r[column][row] = from[row][column], 32 bits each, for LANES rows and columns; rows are so many bytes apart.
inline void transposed(const char* from, int64_t from_row, __m512i (&r)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * from_row);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// to[column][row] = from[row][column], likewise.
inline void transpose_block(const char* from, int64_t from_row, char* to, int64_t to_row) {
    __m512i r[16];
    transposed(from, from_row, r);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * to_row, r[i]);
}

// What `folded` makes of each of LANES vectors, by the same additions: all of them at once cost what two cost one by one.
inline Vec folded_each(const float* vectors) {
    __m512i lanes[16];
    transposed(reinterpret_cast<const char*>(vectors), LANES * sizeof(float), lanes);
#pragma GCC unroll 4
    for (int width = LANES / 2; width > 0; width /= 2)
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i)
            lanes[i] = _mm512_castps_si512(
                _mm512_add_ps(_mm512_castsi512_ps(lanes[i]), _mm512_castsi512_ps(lanes[i + width])));
    return (Vec)_mm512_castsi512_ps(lanes[0]);
}
#endif

// Memory of the calling thread that lives as long as it and grows as asked; what it held is lost when it grows.
template <int SLOT>
inline char* scratch(size_t bytes) {
    struct Kept {
        char* memory = nullptr;
        size_t size = 0;
        ~Kept() { std::free(memory); }
    };
    static thread_local Kept kept;
    if (kept.size < bytes) {
        std::free(kept.memory);
        kept.size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        kept.memory = static_cast<char*>(std::aligned_alloc(4096, kept.size));
        if (kept.memory == nullptr) kept.size = 0;
    }
    return kept.memory;
}

}  // namespace ft
