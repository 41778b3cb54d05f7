// Sums of numbers in another precision than theirs, in one pass: torch makes a copy of them first.
#include "elements.h"
#include "parallel.h"

namespace ft {
namespace {

template <bool ADD, class From, class To>
void scaled(const From* from, To* to, float factor, int64_t count, int threads) {
    over_rows(count, 1, threads, [=](int64_t first, int64_t last) {
        const From* __restrict x = from;
        To* __restrict y = to;
#pragma omp simd
        for (int64_t i = first; i < last; ++i) {
            const float value = widened(x[i]);
            y[i] = narrowed<To>(ADD ? fused(value, factor, widened(y[i])) : value * factor);
        }
    });
}

template <bool ADD>
void scaled(int from_dtype, const void* from, int to_dtype, void* to, float factor, int64_t count, int threads) {
    const auto into = [&](const auto* x) {
        if (to_dtype == FLOAT32)
            scaled<ADD>(x, static_cast<float*>(to), factor, count, threads);
        else
            scaled<ADD>(x, static_cast<BFloat16*>(to), factor, count, threads);
    };
    if (from_dtype == FLOAT32)
        into(static_cast<const float*>(from));
    else
        into(static_cast<const BFloat16*>(from));
}

}  // namespace
}  // namespace ft

// to = from * factor, or to += from * factor where `add`; computed in float32 and rounded once.
FT_API void ft_scaled(int from_dtype, const void* from, int to_dtype, void* to, float factor, int add, int64_t count,
                      int threads) {
    if (add)
        ft::scaled<true>(from_dtype, from, to_dtype, to, factor, count, threads);
    else
        ft::scaled<false>(from_dtype, from, to_dtype, to, factor, count, threads);
}
