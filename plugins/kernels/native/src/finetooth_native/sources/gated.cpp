// Gated activations, act(gate) * up, where gate and up stand side by side in a row: what gated.py computes with torch
// operations, in one pass and in float32 between reading and writing.
#include "elements.h"
#include "parallel.h"

namespace ft {
namespace {

// What the Python side calls the activations.
enum Activation : int { SILU = 0, GELU_TANH = 1, GELU = 2 };

struct Curve {
    float value, slope;
};

// silu(x) = x s(x), with s the logistic function; slope s (1 + x (1 - s)).
struct Silu {
    static FT_INLINE float value(float x) { return x * sigmoid(x).value; }
    static FT_INLINE Curve curve(float x) {
        const Sigmoid s = sigmoid(x);
        return Curve{x * s.value, s.value * (1.0f + x * s.complement)};
    }
};

// x (1 + tanh u) / 2 = x s(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel, 2016, arXiv:1606.08415).
struct GeluTanh {
    static FT_INLINE float twice_u(float x) { return 1.59576912f * fused(0.044715f * x * x, x, x); }
    static FT_INLINE float value(float x) { return x * sigmoid(twice_u(x)).value; }
    static FT_INLINE Curve curve(float x) {
        const Sigmoid s = sigmoid(twice_u(x));
        const float inner = 1.59576912f * fused(0.134145f * x, x, 1.0f);
        // 0 before `inner`, which may be beyond float32, wherever the curve is straight
        return Curve{x * s.value, fused(x * (s.value * s.complement), inner, s.value)};
    }
};

// x Phi(x); slope Phi(x) + x phi(x).
struct Gelu {
    static FT_INLINE float value(float x) { return x * normal(x).cumulative; }
    static FT_INLINE Curve curve(float x) {
        const Normal n = normal(x);
        return Curve{x * n.cumulative, fused(x, n.density, n.cumulative)};
    }
};

template <class T, class A>
void forward(const T* gate_up, T* y, int64_t rows, int64_t width, int threads) {
    over_rows(rows, width, threads, [=](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; ++n) {
            const T* __restrict gate = gate_up + 2 * n * width;
            const T* __restrict up = gate + width;
            T* __restrict out = y + n * width;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) out[i] = narrowed<T>(A::value(widened(gate[i])) * widened(up[i]));
        }
    });
}

template <class T, class A>
void backward(const T* grad, const T* gate_up, T* d_gate_up, int64_t rows, int64_t width, int threads) {
    over_rows(rows, 2 * width, threads, [=](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; ++n) {
            const T* __restrict g = grad + n * width;
            const T* __restrict gate = gate_up + 2 * n * width;
            const T* __restrict up = gate + width;
            T* __restrict d_gate = d_gate_up + 2 * n * width;
            T* __restrict d_up = d_gate + width;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) {
                const Curve act = A::curve(widened(gate[i]));
                const float d_y = widened(g[i]);
                d_up[i] = narrowed<T>(d_y * act.value);
                d_gate[i] = narrowed<T>(d_y * widened(up[i]) * act.slope);
            }
        }
    });
}

template <class T>
void forward_of(int activation, const void* gate_up, void* y, int64_t rows, int64_t width, int threads) {
    const T* in = static_cast<const T*>(gate_up);
    T* out = static_cast<T*>(y);
    if (activation == SILU) return forward<T, Silu>(in, out, rows, width, threads);
    if (activation == GELU_TANH) return forward<T, GeluTanh>(in, out, rows, width, threads);
    return forward<T, Gelu>(in, out, rows, width, threads);
}

template <class T>
void backward_of(int activation, const void* grad, const void* gate_up, void* d_gate_up, int64_t rows, int64_t width,
                 int threads) {
    const T* g = static_cast<const T*>(grad);
    const T* in = static_cast<const T*>(gate_up);
    T* out = static_cast<T*>(d_gate_up);
    if (activation == SILU) return backward<T, Silu>(g, in, out, rows, width, threads);
    if (activation == GELU_TANH) return backward<T, GeluTanh>(g, in, out, rows, width, threads);
    return backward<T, Gelu>(g, in, out, rows, width, threads);
}

}  // namespace
}  // namespace ft

FT_API void ft_gated(int dtype, int activation, const void* gate_up, void* y, int64_t rows, int64_t width,
                     int threads) {
    if (dtype == ft::BFLOAT16) {
        ft::forward_of<ft::BFloat16>(activation, gate_up, y, rows, width, threads);
    } else {
        ft::forward_of<float>(activation, gate_up, y, rows, width, threads);
    }
}

FT_API void ft_gated_backward(int dtype, int activation, const void* grad, const void* gate_up, void* d_gate_up,
                              int64_t rows, int64_t width, int threads) {
    if (dtype == ft::BFLOAT16) {
        ft::backward_of<ft::BFloat16>(activation, grad, gate_up, d_gate_up, rows, width, threads);
    } else {
        ft::backward_of<float>(activation, grad, gate_up, d_gate_up, rows, width, threads);
    }
}
