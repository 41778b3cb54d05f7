// Loops over rows on as many threads as torch uses.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ft {

// Below this many elements waking a thread costs more than it saves.
constexpr int64_t WORTH_THREADS = 16384;

// What a thread that is held up leaves to the others is at most one part.
constexpr int64_t PARTS_A_THREAD = 4;

// body(i) for each i below `count`, by whichever thread is free: one that the system holds up does less. Who computes
// what must not change the result.
template <class Body>
inline void over_tasks(int64_t count, int threads, const Body& body) {
    if (threads < 2 || count < 2) {  // OpenMP's own way to do so takes a microsecond
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic)
#endif
    for (int64_t i = 0; i < count; ++i) body(i);
}

// body(first, last) for even parts of 0..rows, more of them than `threads`; in one where the work is small.
template <class Body>
inline void over_rows(int64_t rows, int64_t elements_a_row, int threads, const Body& body) {
    const int64_t worth = rows * elements_a_row / WORTH_THREADS, most = PARTS_A_THREAD * threads;
    const int64_t parts = worth < 1 || threads < 2 ? 1 : std::min({rows, most, std::max<int64_t>(worth, threads)});
    over_tasks(parts, threads, [&](int64_t part) { body(rows * part / parts, rows * (part + 1) / parts); });
}

}  // namespace ft
