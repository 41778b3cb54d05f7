// Root-mean-square norms, rotary embeddings and dropout, a row at a time: what rms_norm.py, rotary.py and dropout.py
// compute with torch operations, with the same roundings, but each number read and written once.
#include "elements.h"
#include "parallel.h"

namespace ft {
namespace {

// Rows whose part of the weight's gradient is summed before it is added to the others: the sum is the same however many
// threads there are, and no float32 sum is long.
constexpr int64_t ROWS_A_SUM = 32;

template <class T>
float inverse_root(const T* __restrict x, int64_t width, float eps) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) {
        const float value = widened(x[i]);
        sum = fused(value, value, sum);
    }
    return 1.0f / __builtin_sqrtf(sum / static_cast<float>(width) + eps);
}

// y = w round(x r); rows may be wider (T) than the weight and the result (U).
template <class T, class U>
void scale_row(const T* __restrict x, const U* __restrict weight, U* __restrict y, int64_t width, float inverse) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        const T normalised = narrowed<T>(widened(x[i]) * inverse);
        y[i] = narrowed<U>(widened(normalised) * widened(weight[i]));
    }
}

template <class T, class U>
void norm_forward(const T* x, const U* weight, U* y, float* inverse, int64_t rows, int64_t width, float eps,
                  int threads) {
    over_rows(rows, width, threads, [=](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; ++n) {
            inverse[n] = inverse_root(x + n * width, width, eps);
            scale_row(x + n * width, weight, y + n * width, width, inverse[n]);
        }
    });
}

// With n = x r and g = w dy: dx = r (g - n mean(g n)), plus what reaches x on another way, if anything does.
template <bool ADD, class T, class U>
void row_backward(const U* __restrict grad, const T* __restrict beside, const T* __restrict x,
                  const U* __restrict weight, T* __restrict d_x, int64_t width, float inverse) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i)
        sum = fused(widened(grad[i]) * widened(weight[i]), widened(x[i]) * inverse, sum);
    const float mean = sum / static_cast<float>(width);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        const float value = fused(widened(grad[i]), widened(weight[i]), -(widened(x[i]) * inverse * mean));
        d_x[i] = narrowed<T>(ADD ? fused(value, inverse, widened(beside[i])) : value * inverse);
    }
}

template <class T, class U>
void norm_backward(const U* grad, const T* beside, const T* x, const U* weight, const float* inverse, T* d_x,
                   int64_t rows, int64_t width, int threads) {
    over_rows(rows, width, threads, [=](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; ++n) {
            const int64_t at = n * width;
            if (beside == nullptr) {
                row_backward<false>(grad + at, beside, x + at, weight, d_x + at, width, inverse[n]);
            } else {
                row_backward<true>(grad + at, beside + at, x + at, weight, d_x + at, width, inverse[n]);
            }
        }
    });
}

// dw = sum over rows of dy n, a partial sum for each `ROWS_A_SUM` rows first; `partial` is (ceil(rows / that), width).
template <class T, class U>
void weight_backward(const U* grad, const T* x, const float* inverse, float* partial, U* d_weight, int64_t rows,
                     int64_t width, int threads) {
    const int64_t sums = (rows + ROWS_A_SUM - 1) / ROWS_A_SUM;
    over_rows(sums, ROWS_A_SUM * width, threads, [=](int64_t first, int64_t last) {
        for (int64_t s = first; s < last; ++s) {
            float* __restrict sum = partial + s * width;
            for (int64_t i = 0; i < width; ++i) sum[i] = 0.0f;
            const int64_t end = (s + 1) * ROWS_A_SUM < rows ? (s + 1) * ROWS_A_SUM : rows;
            for (int64_t n = s * ROWS_A_SUM; n < end; ++n) {
                const U* __restrict g = grad + n * width;
                const T* __restrict value = x + n * width;
                const float r = inverse[n];
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) sum[i] = fused(widened(value[i]) * r, widened(g[i]), sum[i]);
            }
        }
    });
    over_rows(width, sums, threads, [=](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            double total = 0.0;
            for (int64_t s = 0; s < sums; ++s) total += static_cast<double>(partial[s * width + i]);
            d_weight[i] = narrowed<U>(static_cast<float>(total));
        }
    });
}

// Pairs (i, i + half) of a row's leading heads turn by the row's angles, backwards where `sign` is -1.
template <class T>
void rotate_rows(const T* x, const float* cosine, const float* sine, T* out, int64_t rows, int64_t heads,
                 int64_t turning, int64_t size, int64_t half, float sign, int threads) {
    over_rows(rows, heads * size, threads, [=](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; ++n) {
            const float* __restrict c = cosine + n * half;
            const float* __restrict s = sine + n * half;
            const int64_t row = n * heads * size;
            for (int64_t head = 0; head < turning; ++head) {
                const T* __restrict in = x + row + head * size;
                T* __restrict turned = out + row + head * size;
#pragma omp simd
                for (int64_t i = 0; i < half; ++i) {
                    const float a = widened(in[i]), b = widened(in[half + i]), angle_sine = sign * s[i];
                    turned[i] = narrowed<T>(fused(a, c[i], -(b * angle_sine)));
                    turned[half + i] = narrowed<T>(fused(b, c[i], a * angle_sine));
                }
                std::memcpy(turned + 2 * half, in + 2 * half, (size - 2 * half) * sizeof(T));
            }
            const int64_t rest = row + turning * size;
            std::memcpy(out + rest, x + rest, (heads - turning) * size * sizeof(T));
        }
    });
}

// What the mixed words of row and column leave of each number, times `scale`: see finetooth_steps.draws.
template <class T>
void drop_rows(const T* x, const uint32_t* row_words, const uint32_t* column_words, T* out, int64_t rows, int64_t width,
               int32_t threshold, float scale, int threads) {
    over_rows(rows, width, threads, [=](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; ++n) {
            const T* __restrict in = x + n * width;
            T* __restrict y = out + n * width;
            const uint32_t row = row_words[n];
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) {
                uint32_t word = row ^ column_words[i];
                word = (word ^ (word >> 16)) * 0x85EBCA6Bu;
                word = (word ^ (word >> 13)) * 0xC2B2AE35u;
                word ^= word >> 16;
                const float value = widened(in[i]) * scale;
                y[i] = narrowed<T>(static_cast<int32_t>(word) >= threshold ? value : 0.0f);
            }
        }
    });
}

}  // namespace
}  // namespace ft

// call(number), with a number of the type that `dtype` names.
template <class Call>
static void with_type(int dtype, const Call& call) {
    if (dtype == ft::BFLOAT16) {
        call(ft::BFloat16{});
    } else {
        call(float{});
    }
}

// The same with two numbers: of the type of rows, and of that of weights; rows are as wide as weights or wider.
template <class Call>
static void with_types(int rows, int weights, const Call& call) {
    if (rows == weights) {
        with_type(rows, [&](auto number) { call(number, number); });
    } else {
        call(float{}, ft::BFloat16{});
    }
}

FT_API void ft_rms_norm(int dtype, int weight_dtype, const void* x, const void* weight, void* y, float* inverse,
                        int64_t rows, int64_t width, float eps, int threads) {
    with_types(dtype, weight_dtype, [=](auto row, auto number) {
        using T = decltype(row);
        using U = decltype(number);
        ft::norm_forward(static_cast<const T*>(x), static_cast<const U*>(weight), static_cast<U*>(y), inverse, rows,
                         width, eps, threads);
    });
}

// `beside` may be null.
FT_API void ft_rms_norm_backward(int dtype, int weight_dtype, const void* grad, const void* beside, const void* x,
                                 const void* weight, const float* inverse, void* d_x, int64_t rows, int64_t width,
                                 int threads) {
    with_types(dtype, weight_dtype, [=](auto row, auto number) {
        using T = decltype(row);
        using U = decltype(number);
        ft::norm_backward(static_cast<const U*>(grad), static_cast<const T*>(beside), static_cast<const T*>(x),
                          static_cast<const U*>(weight), inverse, static_cast<T*>(d_x), rows, width, threads);
    });
}

FT_API void ft_rms_norm_weight_backward(int dtype, int weight_dtype, const void* grad, const void* x,
                                        const float* inverse, float* partial, void* d_weight, int64_t rows,
                                        int64_t width, int threads) {
    with_types(dtype, weight_dtype, [=](auto row, auto number) {
        using T = decltype(row);
        using U = decltype(number);
        ft::weight_backward(static_cast<const U*>(grad), static_cast<const T*>(x), inverse, partial,
                            static_cast<U*>(d_weight), rows, width, threads);
    });
}

FT_API int64_t ft_rms_norm_rows_a_sum() { return ft::ROWS_A_SUM; }

FT_API void ft_rotate(int dtype, const void* x, const float* cosine, const float* sine, void* out, int64_t rows,
                      int64_t heads, int64_t turning, int64_t size, int64_t half, float sign, int threads) {
    with_type(dtype, [=](auto number) {
        using T = decltype(number);
        ft::rotate_rows(static_cast<const T*>(x), cosine, sine, static_cast<T*>(out), rows, heads, turning, size, half,
                        sign, threads);
    });
}

FT_API void ft_dropped(int dtype, const void* x, const uint32_t* row_words, const uint32_t* column_words, void* out,
                       int64_t rows, int64_t width, int32_t threshold, float scale, int threads) {
    with_type(dtype, [=](auto number) {
        using T = decltype(number);
        ft::drop_rows(static_cast<const T*>(x), row_words, column_words, static_cast<T*>(out), rows, width, threshold,
                      scale, threads);
    });
}

FT_API int ft_has_threads() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
