// How ranks give each other packs of 16 bytes through memory that their peers address.
//
// Data is its own flag (Lamport): a word of a buffer holds EMPTY until a peer writes it, and no word that is written is EMPTY,
// for negative zero in the upper half and zero in the lower one, or the negative zero of f32, become zero. Each rank has
// three buffers. Call n uses buffer n % 3 and empties buffer (n + 2) % 3, which call n - 1 has used and call n + 2 will use. A rank begins call
// n + 2 after it has had data of call n + 1 of all its peers, and these were sent after the peers' call n, so that the buffer is empty by then.
// The number of the call is in device memory: a launch that is recorded in a graph may be replayed.
#pragma once
#include "common.cuh"

constexpr u32 EMPTY = 0x80000000u;
constexpr int MAX_RANKS = 8;

// Of one rank, in its own memory.
struct ExchangeState {
  // Number of calls that are done.
  u32 serial;
  // Blocks of the present call that are done.
  u32 blocks_done;
  // Packs that the last use of each buffer has written at most.
  u32 used[3];
  // Set once by the thread that gives up: 1, then the peer and the number of the call. Nothing waits while it is set.
  u32 failed;
  u32 failed_peer;
  u32 failed_serial;
};

struct Exchange {
  // Three buffers of `capacity` packs of each rank, one after the other.
  Pack* buffers[MAX_RANKS];
  ExchangeState* state;
  i64 capacity;
  // Nanoseconds after which a thread gives up.
  u64 patience;
  u32 rank;
  u32 unused;
};

__device__ __forceinline__ void store_shared(Pack* p, const Pack& v) {
#ifdef SINTER_EMULATED
  for (int i = 0; i < 4; i++) __atomic_store_n(&p->word[i], v.word[i], __ATOMIC_RELAXED);
#else
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
               : "memory");
#endif
}

__device__ __forceinline__ Pack load_shared(const Pack* p) {
  Pack v;
#ifdef SINTER_EMULATED
  for (int i = 0; i < 4; i++) v.word[i] = __atomic_load_n(&p->word[i], __ATOMIC_RELAXED);
#else
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(p)
               : "memory");
#endif
  return v;
}

__device__ __forceinline__ u64 nanoseconds() {
#ifdef SINTER_EMULATED
  return emulated_nanoseconds();
#else
  u64 t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
#endif
}

// A pack without EMPTY.
__device__ __forceinline__ Pack sendable(Pack v) {
#pragma unroll
  for (int i = 0; i < 4; i++) v.word[i] = v.word[i] == EMPTY ? 0u : v.word[i];
  return v;
}

__device__ __forceinline__ bool arrived(const Pack& v) {
  return v.word[0] != EMPTY && v.word[1] != EMPTY && v.word[2] != EMPTY && v.word[3] != EMPTY;
}

// One call, as one thread sees it.
struct Call {
  const Exchange& e;
  u32 serial;
  // Nothing has been waited for in vain.
  bool sound = true;

  __device__ __forceinline__ explicit Call(const Exchange& exchange) : e(exchange) {
    serial = *static_cast<volatile u32*>(&e.state->serial);
  }

  // Pack i of the present buffer of a rank.
  __device__ __forceinline__ Pack* slot(u32 rank, i64 i) const { return e.buffers[rank] + i64(serial % 3) * e.capacity + i; }

  __device__ __forceinline__ void send(u32 to, i64 i, const Pack& v) const { store_shared(slot(to, i), v); }

  // Waits for N packs in the own buffer, of which pack k lies at `at + k * stride` and comes from rank k; that of this rank (`own`) is
  // there already, and `skip_own` says so. After a failure packs are zero.
  template <int N>
  __device__ __forceinline__ void receive(i64 at, i64 stride, bool skip_own, u32 first_peer, Pack (&out)[N]) {
    u64 started = 0;
    for (u32 spins = 0;; spins++) {
      u32 missing = 0;
#pragma unroll
      for (int k = 0; k < N; k++) {
        if (!(skip_own && u32(k) == e.rank)) out[k] = load_shared(slot(e.rank, at + k * stride));
      }
#pragma unroll
      for (int k = N - 1; k >= 0; k--) {
        if (!(skip_own && u32(k) == e.rank) && !arrived(out[k])) missing = u32(k) + 1;
      }
      if (missing == 0) return;
      if (sound && spins % 256 == 255) {
        u64 now = nanoseconds();
        if (started == 0) started = now;
        if (*static_cast<volatile u32*>(&e.state->failed) != 0) sound = false;
        if (now - started > e.patience) {
          sound = false;
          if (atomicCAS(&e.state->failed, 0u, 1u) == 0u) {
            e.state->failed_peer = first_peer + missing - 1;
            e.state->failed_serial = serial;
          }
        }
      }
      if (!sound) {
#pragma unroll
        for (int k = 0; k < N; k++) {
          if (!(skip_own && u32(k) == e.rank) && !arrived(out[k])) out[k] = Pack{{0u, 0u, 0u, 0u}};
        }
        return;
      }
#ifdef SINTER_EMULATED
      __nanosleep(20);
#endif
    }
  }

  // Ends the call for the block: empties the buffer of the call before, and the last block counts the call. `used` is the number of
  // packs of a buffer that this call may have written, on any rank.
  __device__ __forceinline__ void finish(i64 used) {
    u32 before = (serial + 2) % 3;
    i64 n = *static_cast<volatile u32*>(&e.state->used[before]);
    Pack* p = e.buffers[e.rank] + i64(before) * e.capacity;
    for (i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += i64(gridDim.x) * blockDim.x) {
      p[i] = Pack{{EMPTY, EMPTY, EMPTY, EMPTY}};
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      if (atomicAdd(&e.state->blocks_done, 1u) == gridDim.x - 1) {
        e.state->blocks_done = 0;
        e.state->used[before] = 0;
        e.state->used[serial % 3] = u32(used);
        __threadfence();
        e.state->serial = serial + 1;
      }
    }
  }
};
