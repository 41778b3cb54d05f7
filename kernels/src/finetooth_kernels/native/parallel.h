// Loops over rows on as many threads as torch uses.
#pragma once

#include <cstdint>

namespace ft {

// Below this many elements waking a thread costs more than it saves.
constexpr int64_t WORTH_THREADS = 16384;

// body(first, last) for `threads` even parts of 0..rows; in one where the work is small.
template <class Body>
inline void over_rows(int64_t rows, int64_t elements_a_row, int threads, const Body& body) {
    const int64_t parts = rows * elements_a_row < WORTH_THREADS ? 1 : rows < threads ? rows : threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(parts)) if (parts > 1) schedule(static, 1)
#endif
    for (int64_t part = 0; part < parts; ++part) body(rows * part / parts, rows * (part + 1) / parts);
}

}  // namespace ft
