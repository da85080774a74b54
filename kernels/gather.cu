// Entries of a table by index: gather along an axis, and vocab_gather, whose table is split over ranks by rows.
//
// data is [outer, rows, words], indices [n], the result [outer, n, words] with words of one size. A thread moves up to four words; a
// block owns 4 * blockDim.x neighbouring words of the result. No word is computed on.
#include "index.cuh"

// Indices count from the end of `extent` where they are negative. Of the `extent` entries, data holds `rows` from entry `low` on; the
// others are zero. Indices outside give zeros, and the smallest position of one is left in `status`.
struct GatherArguments {
  const void* data;
  const void* indices;
  void* y;
  u64* status;
  Axis words;
  Axis n;
  i64 total;
  i64 extent;
  i64 low;
  i64 rows;
  i64 wide;
};

template <class T>
__device__ __forceinline__ void gather_entries(const GatherArguments& a) {
  constexpr int U = 4;
  i64 first = i64(blockIdx.x) * (i64(blockDim.x) * U) + threadIdx.x;
  i64 at[U];
#pragma unroll
  for (int u = 0; u < U; u++) {
    i64 unit = first + i64(u) * blockDim.x;
    at[u] = -1;
    if (unit >= a.total) continue;
    i64 entry = divide(unit, a.words);
    i64 word = unit - entry * a.words.extent;
    i64 outer = divide(entry, a.n);
    i64 position = entry - outer * a.n.extent;
    i64 i = a.wide ? static_cast<const i64*>(a.indices)[position] : i64(static_cast<const int*>(a.indices)[position]);
    if (i < 0) i += a.extent;
    if (i < 0 || i >= a.extent) {
      if (word == 0 && outer == 0) atomicMin(a.status, u64(position));
      continue;
    }
    i -= a.low;
    if (i >= 0 && i < a.rows) at[u] = (outer * a.rows + i) * a.words.extent + word;
  }
  T v[U] = {};
#pragma unroll
  for (int u = 0; u < U; u++) {
    if (at[u] >= 0) v[u] = static_cast<const T*>(a.data)[at[u]];
  }
#pragma unroll
  for (int u = 0; u < U; u++) {
    i64 unit = first + i64(u) * blockDim.x;
    if (unit >= a.total) return;
    static_cast<T*>(a.y)[unit] = v[u];
  }
}
