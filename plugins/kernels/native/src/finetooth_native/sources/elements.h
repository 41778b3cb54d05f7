// Numbers one at a time, written so that compilers make vector code of loops over them: no branch, no call.
#pragma once

#include <cstdint>
#include <cstring>

#include "vectors.h"

#define FT_API extern "C" __attribute__((visibility("default")))
#define FT_INLINE inline __attribute__((always_inline))

namespace ft {

// What the Python side calls the dtypes.
enum Dtype : int { FLOAT32 = 0, BFLOAT16 = 1 };

template <class T>
FT_INLINE T narrowed(float value) {
    T to;
    narrow(value, &to);
    return to;
}

FT_INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

FT_INLINE float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// exp(x) for x <= 0, within 1.2e-7 of it (relative); 0 below the smallest normal number.
//
// x = n ln 2 + r with |r| <= ln(2) / 2. exp(r) is a polynomial of degree 6, fitted for the least largest relative error
// (1.9e-9); 2^n goes into the exponent bits. Adding and taking away 1.5 * 2^23 rounds to a whole number and leaves that
// number in the lowest bits, without a conversion that NaN would make undefined.
FT_INLINE float exp_of_negative(float x) {
    const float shifted = fused(x, 1.44269504f, 12582912.0f);
    const float n = shifted - 12582912.0f;
    float r = fused(n, -0.693359375f, x);  // ln 2 in two parts; the first has few bits, so n times it is exact
    r = fused(n, 2.12194440e-4f, r);
    float p = 0.00138367934f;
    p = fused(p, r, 0.00837485678f);
    p = fused(p, r, 0.0416682288f);
    p = fused(p, r, 0.166664198f);
    p = fused(p, r, 0.499999911f);
    p = fused(p, r, 1.0f);
    p = fused(p, r, 1.0f);
    const float power = float_of((bits_of(shifted) + 127u) << 23);
    const float product = p * power;
    return x < -87.33654f ? 0.0f : product;
}

// The logistic function and its complement, each exact where it is small.
struct Sigmoid {
    float value, complement;
};

FT_INLINE Sigmoid sigmoid(float x) {
    const float e = exp_of_negative(-__builtin_fabsf(x));
    const float large = 1.0f / (1.0f + e);
    const float small = e * large;
    return Sigmoid{x < 0.0f ? small : large, x < 0.0f ? large : small};
}

// The normal distribution's cumulative probability and its density.
//
// With z = |x| / sqrt(2) and t = 1 / (1 + 0.4 z), erfc(z) = exp(-z^2) t P(t): P is smooth on the whole line, here of
// degree 8, fitted for the least largest relative error (6.4e-8) up to z = 10, where float32 ends.
struct Normal {
    float cumulative, density;
};

FT_INLINE Normal normal(float x) {
    const float z = __builtin_fabsf(x) * 0.707106781f;
    const float e = exp_of_negative(-0.5f * x * x);
    const float t = 1.0f / fused(0.4f, z, 1.0f);
    float p = 0.0416132957f;
    p = fused(p, t, -0.142083749f);
    p = fused(p, t, 0.0876612216f);
    p = fused(p, t, 0.0837283283f);
    p = fused(p, t, 0.0827063054f);
    p = fused(p, t, 0.192126498f);
    p = fused(p, t, 0.202214241f);
    p = fused(p, t, 0.226396978f);
    p = fused(p, t, 0.225636959f);
    const float tail = 0.5f * e * t * p;
    return Normal{x < 0.0f ? tail : 1.0f - tail, e * 0.398942280f};
}

}  // namespace ft
