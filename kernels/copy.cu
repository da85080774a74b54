// Copies between row-major and strided tensors: copy, expand, slice, concat (one launch for each operand), transpose.
//
// copy_walk: a thread moves up to four words of one size, which it finds by taking its position apart into at most eight axes. A block
// owns 4 * blockDim.x neighbouring words of the result.
// transpose_tiles: the last axis of the result (rows of a tile) and that of the operand (columns) are two axes. A block owns one
// tile of 32 by 32 words of four bytes, each of M elements, and turns it in shared memory, so that both sides move whole lines.
#include "index.cuh"

// Steps are in words on the operand's and on the result's side. With a tail there is one axis of 16-byte words, and `tail` bytes
// follow the last one.
struct CopyArguments {
  const void* x;
  void* y;
  Axis axis[MAX_AXES];
  i64 from[MAX_AXES];
  i64 to[MAX_AXES];
  i64 words;
  i64 tail;
  i64 rank;
};

template <class T>
__device__ __forceinline__ void copy_walk(const CopyArguments& a) {
  constexpr int U = 4;
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  i64 first = i64(blockIdx.x) * (i64(blockDim.x) * U) + threadIdx.x;
  T v[U];
  i64 to[U];
#pragma unroll
  for (int u = 0; u < U; u++) {
    i64 rest = first + i64(u) * blockDim.x;
    if (rest >= a.words) break;
    i64 from = 0;
    to[u] = 0;
#pragma unroll 1
    for (int d = int(a.rank) - 1; d > 0; d--) {
      i64 outer = divide(rest, a.axis[d]);
      i64 i = rest - outer * a.axis[d].extent;
      from += i * a.from[d];
      to[u] += i * a.to[d];
      rest = outer;
    }
    to[u] += rest * a.to[0];
    v[u] = x[from + rest * a.from[0]];
  }
#pragma unroll
  for (int u = 0; u < U; u++) {
    if (first + i64(u) * blockDim.x >= a.words) break;
    y[to[u]] = v[u];
  }
  if (sizeof(T) == 16 && blockIdx.x == 0 && i64(threadIdx.x) < a.tail) {
    i64 i = a.words * i64(sizeof(T)) + threadIdx.x;
    static_cast<u8*>(a.y)[i] = static_cast<const u8*>(a.x)[i];
  }
}

// The operand has steps row_step and 1 along rows and columns, the result 1 and column_step, both in elements. Tiles are numbered by
// outer axes, then tiles of rows, then tiles of columns.
struct TransposeArguments {
  const void* x;
  void* y;
  Axis column_tiles;
  Axis row_tiles;
  Axis axis[MAX_AXES];
  i64 from[MAX_AXES];
  i64 to[MAX_AXES];
  i64 rows;
  i64 columns;
  i64 row_step;
  i64 column_step;
  i64 rank;
};

// M * M elements in M words: word k holds element k of each.
template <int M>
__device__ __forceinline__ void turn(u32 (&w)[M]) {
  constexpr int BITS = 32 / M;
  if constexpr (M > 1) {
    u32 out[M];
#pragma unroll
    for (int k = 0; k < M; k++) {
      out[k] = 0;
#pragma unroll
      for (int i = 0; i < M; i++) out[k] |= (w[i] >> (k * BITS) & ((1u << BITS) - 1u)) << (i * BITS);
    }
#pragma unroll
    for (int k = 0; k < M; k++) w[k] = out[k];
  }
}

// Words of type W hold M elements each; rows and columns are multiples of M. A block has 256 threads.
template <class W, int M>
__device__ __forceinline__ void transpose_tiles(const TransposeArguments& a) {
  constexpr int WARPS = 8;
  __shared__ W tile[WARP * M][WARP + 1];
  const W* x = static_cast<const W*>(a.x);
  W* y = static_cast<W*>(a.y);
  int lane = int(threadIdx.x) % WARP, warp = int(threadIdx.x) / WARP;
  i64 rest = divide(blockIdx.x, a.column_tiles);
  i64 column = (i64(blockIdx.x) - rest * a.column_tiles.extent) * (WARP * M);
  i64 outer = divide(rest, a.row_tiles);
  i64 row = (rest - outer * a.row_tiles.extent) * (WARP * M);
  i64 from = 0, to = 0;
#pragma unroll 1
  for (int d = int(a.rank) - 1; d >= 0; d--) {
    i64 next = divide(outer, a.axis[d]);
    i64 i = outer - next * a.axis[d].extent;
    from += i * a.from[d];
    to += i * a.to[d];
    outer = next;
  }
  W w[WARP / WARPS][M];
#pragma unroll
  for (int q = 0; q < WARP / WARPS; q++) {
#pragma unroll
    for (int i = 0; i < M; i++) {
      i64 r = row + (q * WARPS + warp) * M + i, c = column + lane * M;
      if (r < a.rows && c < a.columns) w[q][i] = x[(from + r * a.row_step + c) / M];
    }
  }
#pragma unroll
  for (int q = 0; q < WARP / WARPS; q++) {
    if constexpr (M > 1) turn(w[q]);
#pragma unroll
    for (int k = 0; k < M; k++) tile[lane * M + k][q * WARPS + warp] = w[q][k];
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q < WARP * M / WARPS; q++) {
    i64 r = row + lane * M, c = column + q * WARPS + warp;
    if (r < a.rows && c < a.columns) y[(to + c * a.column_step + r) / M] = tile[q * WARPS + warp][lane];
  }
}
