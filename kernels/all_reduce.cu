// All-reduce over peers' memory, alone and with a residual.
//
// x and y are [n] elements of T in n / PER_PACK<T> packs of 16 bytes and a rest; exchange.cuh tells how packs travel. The sum runs over ranks 0, 1, ...
// in f32, then the residual is added, and the result is rounded to T once: all ranks get the same bits, by either way.
//
// all_reduce_one_shot: each rank sends all of x to all peers and sums for itself. all_reduce_two_shot: packs are dealt out in runs of RUN; each rank
// sums its runs and sends the sums to its peers. Threads own packs in steps of the grid; every block is resident, for they wait for other ranks.
#include "exchange.cuh"

struct AllReduceArguments {
  Exchange exchange;
  const void* x;
  const void* residual;  // may be null
  void* y;
  i64 n;
};

constexpr i64 RUN = 64;

// Packs of n elements, the last one possibly incomplete.
template <class T>
__device__ __forceinline__ i64 packs_of(i64 n) {
  return (n + PER_PACK<T> - 1) / PER_PACK<T>;
}

template <class T>
__device__ __forceinline__ Pack load_packed(const void* x, i64 i, i64 n) {
  const T* p = static_cast<const T*>(x) + i * PER_PACK<T>;
  if ((i + 1) * PER_PACK<T> <= n) return load_pack(p);
  float v[PER_PACK<T>];
#pragma unroll
  for (int j = 0; j < PER_PACK<T>; j++) v[j] = i * PER_PACK<T> + j < n ? to_f32(p[j]) : 0.0f;
  return pack<T>(v);
}

template <class T>
__device__ __forceinline__ void store_packed(void* y, i64 i, i64 n, const Pack& v) {
  T* p = static_cast<T*>(y) + i * PER_PACK<T>;
  if ((i + 1) * PER_PACK<T> <= n) {
    store_pack(p, v);
    return;
  }
  float w[PER_PACK<T>];
  unpack<T>(v, w);
#pragma unroll
  for (int j = 0; j < PER_PACK<T>; j++) {
    if (i * PER_PACK<T> + j < n) p[j] = from_f32<T>(w[j]);
  }
}

// The sum of what the ranks gave, and of the residual if there is one, rounded to T.
template <class T, int RANKS>
__device__ __forceinline__ Pack sum_of_ranks(const Pack (&given)[RANKS], bool has_residual, const Pack& residual) {
  float sum[PER_PACK<T>], v[PER_PACK<T>];
  unpack<T>(given[0], sum);
#pragma unroll
  for (int k = 1; k < RANKS; k++) {
    unpack<T>(given[k], v);
#pragma unroll
    for (int j = 0; j < PER_PACK<T>; j++) sum[j] += v[j];
  }
  if (has_residual) {
    unpack<T>(residual, v);
#pragma unroll
    for (int j = 0; j < PER_PACK<T>; j++) sum[j] += v[j];
  }
  return pack<T>(sum);
}

template <class T, int RANKS>
__device__ __forceinline__ void all_reduce_one_shot(const AllReduceArguments& a) {
  Call call(a.exchange);
  i64 packs = packs_of<T>(a.n), step = i64(gridDim.x) * blockDim.x, first = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  u32 rank = a.exchange.rank;
  for (i64 i = first; i < packs; i += step) {
    Pack own = sendable(load_packed<T>(a.x, i, a.n));
#pragma unroll
    for (u32 k = 0; k < RANKS; k++) {
      if (k != rank) call.send(k, i64(rank) * packs + i, own);
    }
  }
  for (i64 i = first; i < packs; i += step) {
    Pack given[RANKS];
    Pack own = sendable(load_packed<T>(a.x, i, a.n));
    Pack residual = a.residual ? load_packed<T>(a.residual, i, a.n) : Pack{{0u, 0u, 0u, 0u}};
    call.receive<RANKS>(i, packs, true, 0, given);
#pragma unroll
    for (u32 k = 0; k < RANKS; k++) {
      if (k == rank) given[k] = own;
    }
    store_packed<T>(a.y, i, a.n, sum_of_ranks<T, RANKS>(given, a.residual != nullptr, residual));
  }
  call.finish(RANKS * packs);
}

// Buffers hold what each rank gave of the runs that are dealt to the owner, then all sums.
template <class T, int RANKS>
__device__ __forceinline__ void all_reduce_two_shot(const AllReduceArguments& a) {
  Call call(a.exchange);
  i64 packs = packs_of<T>(a.n), step = i64(gridDim.x) * blockDim.x, first = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  i64 share = (packs + RUN * RANKS - 1) / (RUN * RANKS) * RUN, sums = RANKS * share;
  u32 rank = a.exchange.rank;
  for (i64 i = first; i < packs; i += step) {
    u32 owner = u32(i / RUN % RANKS);
    i64 at = i / (RUN * RANKS) * RUN + i % RUN;
    if (owner != rank) call.send(owner, i64(rank) * share + at, sendable(load_packed<T>(a.x, i, a.n)));
  }
  for (i64 i = first; i < packs; i += step) {
    if (u32(i / RUN % RANKS) != rank) continue;
    i64 at = i / (RUN * RANKS) * RUN + i % RUN;
    Pack given[RANKS];
    Pack own = sendable(load_packed<T>(a.x, i, a.n));
    Pack residual = a.residual ? load_packed<T>(a.residual, i, a.n) : Pack{{0u, 0u, 0u, 0u}};
    call.receive<RANKS>(at, share, true, 0, given);
#pragma unroll
    for (u32 k = 0; k < RANKS; k++) {
      if (k == rank) given[k] = own;
    }
    Pack sum = sendable(sum_of_ranks<T, RANKS>(given, a.residual != nullptr, residual));
#pragma unroll
    for (u32 k = 0; k < RANKS; k++) {
      if (k != rank) call.send(k, sums + i, sum);
    }
    store_packed<T>(a.y, i, a.n, sum);
  }
  for (i64 i = first; i < packs; i += step) {
    u32 owner = u32(i / RUN % RANKS);
    if (owner == rank) continue;
    Pack sum[1];
    call.receive<1>(sums + i, 0, false, owner, sum);
    store_packed<T>(a.y, i, a.n, sum[0]);
  }
  call.finish(sums + packs);
}
