// Rows of logits to log-probabilities, and in their place the gradient of the log-probability: what linear_logprob.py
// computes with torch operations on blocks of rows, in three passes over a row that stays in the cache.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "elements.h"
#include "parallel.h"

namespace ft {
namespace {

constexpr int64_t PART = 1024;  // numbers summed in float32 before the sum goes on in float64

struct Targets {
    const int64_t* ids;
    int64_t each;  // a row
};

struct Scores {
    float* logprobs;        // [rows][each]
    float* log_normalizer;  // [rows]
    float* entropy;         // [rows] or null
    int64_t* top1;          // [rows] or null
};

template <class T>
float largest(const T* row, int64_t vocabulary, float slope) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t v = 0; v < vocabulary; ++v) {
        const float z = widened(row[v]) * slope;
        top = z > top ? z : top;
    }
    return top;
}

// Where `top` first stands; the last place if it is nowhere, being no number.
template <class T>
int64_t first_of(const T* row, int64_t vocabulary, float slope, float top) {
    for (int64_t start = 0; start < vocabulary; start += PART) {
        const int64_t stop = std::min(start + PART, vocabulary);
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int64_t v = start; v < stop; ++v) found |= widened(row[v]) * slope == top;
        for (int64_t v = start; found && v < stop; ++v)
            if (widened(row[v]) * slope == top) return v;
    }
    return vocabulary - 1;
}

// Sums over a part of exp(shifted), and of that times shifted. One piece of code for logits of every type: a loop over
// bfloat16 would be cut into other lanes than one over float, and equal logits would have other sums.
template <bool ENTROPY>
__attribute__((noinline)) void sum_part(const float* shifted, int64_t count, float* sum, float* of_logits) {
    float part = 0, weighted = 0;
#pragma omp simd reduction(+ : part, weighted)
    for (int64_t v = 0; v < count; ++v) {
        const float e = exp_of_negative(shifted[v]);
        part += e;
        // an entry switched off (-inf) adds 0, not 0 * inf
        if (ENTROPY) weighted = fused(e, shifted[v] < -1000.0f ? -1000.0f : shifted[v], weighted);
    }
    *sum = part;
    *of_logits = weighted;
}

template <class T, bool ENTROPY>
void sums(const T* row, int64_t vocabulary, float slope, float top, double* total, double* weighted) {
    alignas(64) float shifted[PART];
    for (int64_t start = 0; start < vocabulary; start += PART) {
        const int64_t count = std::min(PART, vocabulary - start);
#pragma omp simd
        for (int64_t v = 0; v < count; ++v) shifted[v] = fused(widened(row[start + v]), slope, -top);
        float part, of_logits;
        sum_part<ENTROPY>(shifted, count, &part, &of_logits);
        *total += part;
        if (ENTROPY) *weighted += of_logits;
    }
}

// The gradient of a row's log-probability, from the row's beginning on, in numbers at most as wide: it overwrites only
// what was read before.
template <class T, class Gradient>
void replace(T* row, int64_t vocabulary, int64_t wanted, float slope, float top, float inverse) {
    const float target = widened(row[wanted]) * slope;
    char* to = reinterpret_cast<char*>(row);
    for (int64_t start = 0; start < vocabulary; start += PART) {
        const int64_t count = std::min(PART, vocabulary - start);
        Gradient part[PART];
#pragma omp simd
        for (int64_t v = 0; v < count; ++v)
            part[v] = narrowed<Gradient>(-exp_of_negative(fused(widened(row[start + v]), slope, -top)) * inverse);
        std::memcpy(to + start * sizeof(Gradient), part, count * sizeof(Gradient));
    }
    const Gradient at_target = narrowed<Gradient>(fused(-exp_of_negative(target - top), inverse, 1.0f));
    std::memcpy(to + wanted * sizeof(Gradient), &at_target, sizeof(Gradient));
}

template <class T, class Gradient>
void score(T* logits, int64_t rows, int64_t vocabulary, Targets targets, Scores out, float slope, bool gradient,
           int threads) {
    over_rows(rows, vocabulary, threads, [=](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; ++n) {
            T* row = logits + n * vocabulary;
            const float top = largest(row, vocabulary, slope);
            double total = 0, weighted = 0;
            if (out.entropy != nullptr)
                sums<T, true>(row, vocabulary, slope, top, &total, &weighted);
            else
                sums<T, false>(row, vocabulary, slope, top, &total, &weighted);
            const double log_total = std::log(total);
            if (out.top1 != nullptr) out.top1[n] = first_of(row, vocabulary, slope, top);  // may be `wanted`
            const float normalizer = static_cast<float>(top + log_total);
            out.log_normalizer[n] = normalizer;
            const int64_t* wanted = targets.ids + n * targets.each;
            for (int64_t k = 0; k < targets.each; ++k)
                out.logprobs[n * targets.each + k] = static_cast<float>(fused(widened(row[wanted[k]]), slope, -top) - log_total);
            if (out.entropy != nullptr) out.entropy[n] = static_cast<float>(log_total - weighted / total);
            if (!gradient) continue;
            replace<T, Gradient>(row, vocabulary, wanted[0], slope, top, static_cast<float>(1.0 / total));
        }
    });
}

}  // namespace
}  // namespace ft

// logits: the linear layer's output; a logit is slope times that. `ids` may be `top1`, which is written first. With
// `gradient` (one target a row) the gradient of the log-probability with respect to the logit takes the place of each,
// in `gradient_dtype`: where that is narrower than the logits, it stands in the first half of a row.
FT_API void ft_head_rows(int dtype, int gradient_dtype, void* logits, const int64_t* ids, float* logprobs,
                         float* log_normalizer, float* entropy, int64_t* top1, int64_t rows, int64_t vocabulary,
                         int64_t each, float slope, int gradient, int threads) {
    const ft::Targets targets{ids, each};
    const ft::Scores out{logprobs, log_normalizer, entropy, top1};
    const bool also = gradient != 0;
    if (dtype == ft::BFLOAT16)
        ft::score<ft::BFloat16, ft::BFloat16>(static_cast<ft::BFloat16*>(logits), rows, vocabulary, targets, out, slope,
                                              also, threads);
    else if (gradient_dtype == ft::BFLOAT16)
        ft::score<float, ft::BFloat16>(static_cast<float*>(logits), rows, vocabulary, targets, out, slope, also,
                                       threads);
    else
        ft::score<float, float>(static_cast<float*>(logits), rows, vocabulary, targets, out, slope, also, threads);
}
