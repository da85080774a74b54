// Stands for CUDA's built-in types and functions where a host compiler builds the kernels. Each thread of a block is a fiber of
// the emulated driver (driver.cpp); barriers and shuffles are the places where a fiber gives way.
#pragma once
#define SINTER_EMULATED 1
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
// One block runs at a time on a thread of the host.
#define __shared__ static thread_local

struct emulated_index { unsigned x, y, z; };
extern "C" {
const emulated_index* emulated_thread();
const emulated_index* emulated_block();
const emulated_index* emulated_block_size();
const emulated_index* emulated_grid();
void emulated_sync_block();
void emulated_sync_warp(unsigned mask);
// What lane `source` gave.
uint64_t emulated_shuffle(unsigned mask, uint64_t value, int source);
unsigned emulated_ballot(unsigned mask, int predicate);
void* emulated_dynamic_shared();
// Lets other fibers and other ranks run.
void emulated_pause();
unsigned long long emulated_nanoseconds();
}
#define threadIdx (*emulated_thread())
#define blockIdx (*emulated_block())
#define blockDim (*emulated_block_size())
#define gridDim (*emulated_grid())

inline void __syncthreads() { emulated_sync_block(); }
inline void __syncwarp(unsigned mask = ~0u) { emulated_sync_warp(mask); }
inline void __threadfence() { __sync_synchronize(); }
inline void __threadfence_system() { __sync_synchronize(); }
inline void __nanosleep(unsigned) { emulated_pause(); }

template <class T> T emulated_shuffled(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = emulated_shuffle(mask, bits, source);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
inline int emulated_lane() { return int(threadIdx.x & 31); }
template <class T> T __shfl_sync(unsigned mask, T v, int source) { return emulated_shuffled(mask, v, source & 31); }
template <class T> T __shfl_xor_sync(unsigned mask, T v, int distance) { return emulated_shuffled(mask, v, emulated_lane() ^ distance); }
template <class T> T __shfl_down_sync(unsigned mask, T v, int distance) {
  int source = emulated_lane() + distance;
  return emulated_shuffled(mask, v, source < 32 ? source : emulated_lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulated_ballot(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return emulated_ballot(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emulated_ballot(mask, !predicate) == 0; }

inline unsigned __float_as_uint(float v) { unsigned b; memcpy(&b, &v, 4); return b; }
inline float __uint_as_float(unsigned b) { float v; memcpy(&v, &b, 4); return v; }
inline int __float_as_int(float v) { int b; memcpy(&b, &v, 4); return b; }
inline float __int_as_float(int b) { float v; memcpy(&v, &b, 4); return v; }
inline float rsqrtf(float v) { return float(1.0 / sqrt(double(v))); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline long long __double_as_longlong(double v) { long long b; memcpy(&b, &v, 8); return b; }
inline double __longlong_as_double(long long b) { double v; memcpy(&v, &b, 8); return v; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
template <class T> T __ldg(const T* p) { return *p; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }

inline unsigned atomicAdd(unsigned* p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
inline unsigned long long atomicMin(unsigned long long* p, unsigned long long v) {
  unsigned long long old = *p;
  while (old > v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}
inline unsigned atomicCAS(unsigned* p, unsigned expected, unsigned v) {
  __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}
inline unsigned atomicExch(unsigned* p, unsigned v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }

inline float emulated_f16_to_f32(uint16_t h) {
  unsigned sign = unsigned(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x400u) return __uint_as_float(sign | __float_as_uint(float(magnitude) * 5.9604644775390625e-8f));
  return __uint_as_float(sign | ((magnitude << 13) + (112u << 23)));
}
inline uint16_t emulated_f32_to_f16(float v) {
  unsigned bits = __float_as_uint(v), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(0x7fffu);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Adding 0.5 leaves multiples of 2^-24, rounded, in the lowest bits.
    float sum = __uint_as_float(magnitude) + 0.5f;
    return uint16_t(sign | (__float_as_uint(sum) - 0x3f000000u));
  }
  return uint16_t(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13));
}
inline uint16_t emulated_f32_to_bf16(float v) {
  unsigned bits = __float_as_uint(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(0x7fffu);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
