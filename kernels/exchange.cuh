// How ranks give each other packs of 16 bytes through memory that their peers address.
//
// Data is its own flag (Lamport): a word of a buffer holds EMPTY until a peer writes it, and no word that is written is EMPTY,
// for negative zero in the upper half and zero in the lower one, or the negative zero of f32, become zero. Each rank has
// three buffers, of which calls take turns: a call of phase p uses buffer p and empties buffer (p + 2) % 3, which call n - 1 has used and call
// n + 2 will use. The phase is kept beside the number of the call, for 2^32 is not divisible by 3. A rank begins call n + 2 after it has had data of call n + 1 of all its peers, and these were sent after the peers' call n, so that the buffer is empty by then.
// The number of the call is in device memory: a launch that is recorded in a graph may be replayed.
#pragma once
#include "common.cuh"

constexpr u32 EMPTY = 0x80000000u;
constexpr int MAX_RANKS = 8;

// Of one rank, in its own memory.
struct ExchangeState {
  // Number of calls that are done; wraps.
  u32 serial;
  // The buffer of the present call: 0, 1 or 2.
  u32 phase;
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
  u32 serial, phase;
  // Nothing has been waited for in vain.
  bool sound = true;

  __device__ __forceinline__ explicit Call(const Exchange& exchange) : e(exchange) {
    serial = *static_cast<volatile u32*>(&e.state->serial);
    phase = *static_cast<volatile u32*>(&e.state->phase);
  }

  // Pack i of the present buffer of a rank.
  __device__ __forceinline__ Pack* slot(u32 rank, i64 i) const { return e.buffers[rank] + i64(phase) * e.capacity + i; }

  __device__ __forceinline__ void send(u32 to, i64 i, const Pack& v) const { store_shared(slot(to, i), v); }

  // Waits for the packs `at`, `at + stride`, .. of the own buffer, of which the k-th comes from rank first + k. After a failure what
  // is missing is undefined.
  template <int N>
  __device__ __forceinline__ void receive(i64 at, i64 stride, u32 first, Pack (&out)[N]) {
    const Pack* p = slot(e.rank, at);
    u64 started = 0;
    for (u32 spins = 1;; spins++) {
#pragma unroll
      for (int k = 0; k < N; k++) out[k] = load_shared(p + k * stride);
      // Not a mask of missing packs compared with zero: for two ranks NVRTC 13.0 makes machine code that ends the loop where both are missing, not
      // where neither is.
      bool all = true;
#pragma unroll
      for (int k = 0; k < N; k++) all = all && arrived(out[k]);
      if (all || !sound) return;
      if (spins % 256 == 0) {
        u32 peer = first;
#pragma unroll
        for (int k = N - 1; k >= 0; k--) peer = arrived(out[k]) ? peer : first + k;
        sound = hopeful(started, peer);
      }
#ifdef SINTER_EMULATED
      __nanosleep(20);
#endif
    }
  }

  // Whether it makes sense to go on waiting for a peer.
  __device__ __forceinline__ bool hopeful(u64& started, u32 peer) const {
    u64 now = nanoseconds();
    if (started == 0) started = now;
    if (*static_cast<volatile u32*>(&e.state->failed) != 0) return false;
    if (now - started <= e.patience) return true;
    if (atomicCAS(&e.state->failed, 0u, 1u) == 0u) {
      e.state->failed_peer = peer;
      e.state->failed_serial = serial;
    }
    return false;
  }

  // Ends the call for the block: empties the buffer of the call before, and the last block counts the call. `used` is the number of
  // packs of a buffer that this call may have written, on any rank.
  __device__ __forceinline__ void finish(i64 used) {
    u32 before = phase == 0 ? 2 : phase - 1;
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
        e.state->used[phase] = u32(used);
        e.state->phase = phase == 2 ? 0 : phase + 1;
        __threadfence();
        e.state->serial = serial + 1;
      }
    }
  }
};
