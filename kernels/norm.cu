// rms_norm, layer_norm, add_rms_norm and add_layer_norm, alone and with quantised results (_quant_fp8, _quant_fp8_token, _quant_nvfp4);
// without a norm fp8_token and quantize_nvfp4.
//
// x, r, sum, norm: T [rows, columns], row-major. sum = x + r rounded to T; the norm is over the last axis, with f32 statistics.
//
// norm_warp: a warp owns a row; VPT packs of 16 bytes per lane.
// norm_block: a block owns a row; VPT packs per thread, held in registers from the only read to the last store.
// norm_loop: a block owns a row of any length and alignment, and reads it once per pass.
//
// sum may be x or r, norm may be x: a thread has read an element, in its last pass, when it stores there.
#include "norm.cuh"

struct NormArguments {
  NormParameters p;
  const void* x;
  // With ADD: null where there is none.
  const void* r;
  void* sum;
};

// The thread's packs of x, or of x + r, which are stored.
template <class T, bool ADD, class Team, int VPT>
__device__ __forceinline__ void load_row(const NormArguments& a, i64 row, Pack (&v)[VPT], Pack (&r)[VPT]) {
  constexpr int E = PER_PACK<T>;
  int packs = int(a.p.columns) / E;
  const T* x_row = static_cast<const T*>(a.x) + row * a.p.columns;
  const T* r_row = static_cast<const T*>(a.r) + row * a.p.columns;
#pragma unroll
  for (int i = 0; i < VPT; i++) {
    int at = Team::thread() + i * Team::threads();
    v[i] = Pack{};
    if (at < packs) v[i] = load_pack(x_row + at * E);
    if constexpr (ADD) {
      r[i] = Pack{};
      if (at < packs) r[i] = load_pack(r_row + at * E);
    }
  }
}

template <class T, class Team, int VPT>
__device__ __forceinline__ void add_row(const NormArguments& a, i64 row, Pack (&v)[VPT], const Pack (&r)[VPT]) {
  constexpr int E = PER_PACK<T>;
  int packs = int(a.p.columns) / E;
#pragma unroll
  for (int i = 0; i < VPT; i++) {
    float sum[E], other[E];
    unpack<T>(v[i], sum);
    unpack<T>(r[i], other);
#pragma unroll
    for (int j = 0; j < E; j++) sum[j] += other[j];
    v[i] = pack<T>(sum);
    int at = Team::thread() + i * Team::threads();
    if (a.sum && at < packs) store_pack(static_cast<T*>(a.sum) + row * a.p.columns + at * E, v[i]);
  }
}

template <class T, bool ADD, Norm N, Quant Q, class Team, int VPT>
__device__ __forceinline__ void norm_row(const NormArguments& a, i64 row, float* scratch) {
  if (row >= a.p.rows) {
    if constexpr (Q == NVFP4) pad_scales<Team>(a.p, row);
    return;
  }
  Pack v[VPT], r[VPT];
  load_row<T, ADD, Team, VPT>(a, row, v, r);
  RowParameters<T, N, Team, VPT> parameters(a.p);
  if constexpr (ADD) add_row<T, Team, VPT>(a, row, v, r);
  finish_row<T, N, Q, Team, VPT>(a.p, row, v, parameters, scratch);
}

// NVFP4: the grid also has the rows of the scales' padding.
template <class T, bool ADD, Norm N, Quant Q, int VPT>
__device__ __forceinline__ void norm_warp(const NormArguments& a) {
  i64 row = i64(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  // Rows of the padding are done by whole warps.
  if (Q == NVFP4 && row >= (a.p.rows + 127) / 128 * 128) return;
  norm_row<T, ADD, N, Q, WarpTeam, VPT>(a, row, nullptr);
}

template <class T, bool ADD, Norm N, Quant Q, int VPT>
__device__ __forceinline__ void norm_block(const NormArguments& a) {
  __shared__ float scratch[ROW_SCRATCH];
  norm_row<T, ADD, N, Q, BlockTeam, VPT>(a, blockIdx.x, scratch);
}
