// all_reduce(x) + residual, its norm, and the quantised norm: ar_residual_rms_norm, ar_residual_layer_norm and their variants.
//
// x, residual, sum and norm are T [rows, columns]; a block owns a row at a time and holds it in registers as norm.cuh says. The sum runs over
// ranks 0, 1, ... in f32, the residual is added, and the result is rounded to T once, before the norm. One shot: every rank sends its rows to all
// ranks. Two shot: row r belongs to rank r % RANKS, which sums it and sends the sum with the residual; so the residual of other rows is not
// read. Both give all ranks the same bits. exchange.cuh tells how packs travel; every block is resident.
#include "exchange.cuh"
#include "norm.cuh"
#include "all_reduce.cu"

struct AllReduceNormArguments {
  Exchange exchange;
  NormParameters norm;
  const void* x;
  const void* residual;
  // null: not stored
  void* sum;
};

// Most threads of a block.
constexpr int AR_THREADS = 512;

// NVFP4: the rows of padding, dealt out to the blocks.
template <Quant Q>
__device__ __forceinline__ void pad_rows(const NormParameters& p) {
  if constexpr (Q == NVFP4) {
    for (i64 row = p.rows + blockIdx.x; row < (p.rows + 127) / 128 * 128; row += gridDim.x) pad_scales<BlockTeam>(p, row);
  }
}

// Pack `at` of a row: the sum of what the ranks gave in the packs `from`, `from + stride`, .., and of the residual.
template <class T, int RANKS>
__device__ __forceinline__ Pack receive_sum(Call& call, const AllReduceNormArguments& a, i64 at, i64 from, i64 stride) {
  Pack residual = load_pack(static_cast<const T*>(a.residual) + at * PER_PACK<T>), given[RANKS];
  call.receive<RANKS>(from, stride, 0, given);
  return sum_of_ranks<T, RANKS>(given, true, residual);
}

// Ends a row whose sums the threads have staged, each its own packs.
template <class T, Norm N, Quant Q, int VPT>
__device__ __forceinline__ void finish_staged(const AllReduceNormArguments& a, i64 row, const Pack* staged, float* scratch) {
  RowParameters<T, N, Q, BlockTeam, VPT> parameters(a.norm);
  int packs = int(a.norm.columns) / PER_PACK<T>;
  Pack sum[VPT];
#pragma unroll
  for (int i = 0; i < VPT; i++) {
    int at = threadIdx.x + i * blockDim.x;
    sum[i] = Pack{};
    if (at < packs) {
      sum[i] = staged[at];
      if (a.sum) store_pack(static_cast<T*>(a.sum) + (row * packs + at) * PER_PACK<T>, sum[i]);
    }
  }
  finish_row<T, N, Q, BlockTeam, VPT>(a.norm, row, sum, parameters, scratch);
}

template <class T, Norm N, Quant Q, int RANKS, int VPT>
__device__ __forceinline__ void all_reduce_norm_one_shot(const AllReduceNormArguments& a) {
  __shared__ float scratch[2 * ROW_SCRATCH];
  __shared__ Pack staged[VPT * AR_THREADS];
  Call call(a.exchange);
  i64 rows = a.norm.rows, packs = a.norm.columns / PER_PACK<T>, all = rows * packs;
  u32 rank = a.exchange.rank;
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    for (i64 at = threadIdx.x; at < packs; at += blockDim.x) {
      Pack own = sendable(load_pack(static_cast<const T*>(a.x) + (row * packs + at) * PER_PACK<T>));
#pragma unroll
      for (u32 k = 0; k < RANKS; k++) call.send(k, i64(rank) * all + row * packs + at, own);
    }
  }
  int turn = 0;
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    for (int at = threadIdx.x; at < packs; at += blockDim.x) {
      staged[at] = receive_sum<T, RANKS>(call, a, row * packs + at, row * packs + at, all);
    }
    finish_staged<T, N, Q, VPT>(a, row, staged, scratch + turn * ROW_SCRATCH);
  }
  pad_rows<Q>(a.norm);
  call.finish(RANKS * all);
}

// Buffers hold what each rank gave of the rows of the owner, then all sums.
template <class T, Norm N, Quant Q, int RANKS, int VPT>
__device__ __forceinline__ void all_reduce_norm_two_shot(const AllReduceNormArguments& a) {
  __shared__ float scratch[2 * ROW_SCRATCH];
  __shared__ Pack staged[VPT * AR_THREADS];
  Call call(a.exchange);
  i64 rows = a.norm.rows, packs = a.norm.columns / PER_PACK<T>, all = rows * packs;
  i64 share = (rows + RANKS - 1) / RANKS * packs, sums = RANKS * share;
  u32 rank = a.exchange.rank;
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    for (i64 at = threadIdx.x; at < packs; at += blockDim.x) {
      Pack own = sendable(load_pack(static_cast<const T*>(a.x) + (row * packs + at) * PER_PACK<T>));
      call.send(u32(row % RANKS), i64(rank) * share + row / RANKS * packs + at, own);
    }
  }
  // First the rows that peers wait for, then those of the peers.
  int turn = 0;
#pragma unroll 1
  for (int pass = 0; pass < 2; pass++) {
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
      u32 owner = u32(row % RANKS);
      if ((owner == rank) != (pass == 0)) continue;
      for (int at = threadIdx.x; at < packs; at += blockDim.x) {
        Pack sum;
        if (pass == 0) {
          sum = sendable(receive_sum<T, RANKS>(call, a, row * packs + at, row / RANKS * packs + at, share));
#pragma unroll
          for (u32 k = 0; k < RANKS; k++) {
            if (k != rank) call.send(k, sums + row * packs + at, sum);
          }
        } else {
          Pack one[1];
          call.receive<1>(sums + row * packs + at, 0, owner, one);
          sum = one[0];
        }
        staged[at] = sum;
      }
      finish_staged<T, N, Q, VPT>(a, row, staged, scratch + turn * ROW_SCRATCH);
      turn ^= 1;
    }
  }
  pad_rows<Q>(a.norm);
  call.finish(sums + all);
}
