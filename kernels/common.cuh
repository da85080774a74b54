// What all kernels share: element types, 16-byte packs, reductions over a warp and a block, and small floats.
//
// No header of CUDA is included, so that NVRTC alone compiles every kernel. Arithmetic is in f32; storage types round to
// nearest, ties to even. SINTER_EMULATED is set where a host compiler builds the kernels for tests; then `emulated.hpp`
// stands for the built-in functions, and nothing here is assembly.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
// The largest finite value of e4m3, and of e2m1.
constexpr float E4M3_MAX = 448.0f;
constexpr float E2M1_MAX = 6.0f;

// ---- element types ----

struct f16 {
  u16 bits;
};

struct bf16 {
  u16 bits;
};

// Element types as numbers, for operands whose type does not change the kernel; launch.rs has the same numbers.
enum ElementType : u32 { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_BF16 = 2 };

__device__ __forceinline__ float to_f32(float v) { return v; }

__device__ __forceinline__ float to_f32(bf16 v) { return __uint_as_float(u32(v.bits) << 16); }

__device__ __forceinline__ float to_f32(f16 v) {
#ifdef SINTER_EMULATED
  return emulated_f16_to_f32(v.bits);
#else
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
  return out;
#endif
}

template <class T>
__device__ __forceinline__ T from_f32(float v);

template <>
__device__ __forceinline__ float from_f32<float>(float v) {
  return v;
}

template <>
__device__ __forceinline__ f16 from_f32<f16>(float v) {
  f16 out;
#ifdef SINTER_EMULATED
  out.bits = emulated_f32_to_f16(v);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
#endif
  return out;
}

template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float v) {
  bf16 out;
#ifdef SINTER_EMULATED
  out.bits = emulated_f32_to_bf16(v);
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
#endif
  return out;
}

// Two values of a type of two bytes, the first in the low half.
template <class T>
__device__ __forceinline__ u32 from_f32_pair(float low, float high) {
  return u32(from_f32<T>(low).bits) | u32(from_f32<T>(high).bits) << 16;
}

#ifndef SINTER_EMULATED
template <>
__device__ __forceinline__ u32 from_f32_pair<f16>(float low, float high) {
  u32 out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

template <>
__device__ __forceinline__ u32 from_f32_pair<bf16>(float low, float high) {
  u32 out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
#endif

// v as it is after a store to T and a load.
template <class T>
__device__ __forceinline__ float through(float v) {
  return to_f32(from_f32<T>(v));
}

// Element i of an operand whose type is known at run time only. All threads agree on the type.
__device__ __forceinline__ float load_as_f32(const void* p, u32 type, i64 i) {
  if (type == TYPE_F16) return to_f32(static_cast<const f16*>(p)[i]);
  if (type == TYPE_BF16) return to_f32(static_cast<const bf16*>(p)[i]);
  return static_cast<const float*>(p)[i];
}

// ---- packs of 16 bytes ----

struct alignas(16) Pack {
  u32 word[4];
};

// Elements of a pack.
template <class T>
constexpr int PER_PACK = 16 / int(sizeof(T));

template <class T>
__device__ __forceinline__ Pack load_pack(const T* p) {
  return *reinterpret_cast<const Pack*>(p);
}

template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack& v) {
  *reinterpret_cast<Pack*>(p) = v;
}

// The elements of a pack in f32. Element order is memory order.
template <class T>
__device__ __forceinline__ void unpack(const Pack& p, float (&out)[PER_PACK<T>]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = __uint_as_float(p.word[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      T low, high;
      low.bits = u16(p.word[i] & 0xffffu);
      high.bits = u16(p.word[i] >> 16);
      out[2 * i] = to_f32(low);
      out[2 * i + 1] = to_f32(high);
    }
  }
}

template <class T>
__device__ __forceinline__ Pack pack(const float (&v)[PER_PACK<T>]) {
  Pack p;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; i++) p.word[i] = __float_as_uint(v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) p.word[i] = from_f32_pair<T>(v[2 * i], v[2 * i + 1]);
  }
  return p;
}

// PER_PACK<T> elements of a parameter from element i on, whatever its type. The operand starts at a multiple of 16 bytes, and i is a
// multiple of PER_PACK<T>.
template <class T>
__device__ __forceinline__ void load_parameter(const void* p, u32 type, i64 i, float (&out)[PER_PACK<T>]) {
  constexpr int N = PER_PACK<T>;
  if (type == TYPE_F32) {
    const float* q = static_cast<const float*>(p) + i;
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      Pack v = load_pack(q + j);
#pragma unroll
      for (int k = 0; k < 4; k++) out[j + k] = __uint_as_float(v.word[k]);
    }
  } else {
    u32 w[N / 2];
    const u16* q = static_cast<const u16*>(p) + i;
    if constexpr (N == 8) {
      Pack v = load_pack(q);
#pragma unroll
      for (int j = 0; j < N / 2; j++) w[j] = v.word[j];
    } else {
      u64 v = *reinterpret_cast<const u64*>(q);
      w[0] = u32(v);
      w[1] = u32(v >> 32);
    }
#pragma unroll
    for (int j = 0; j < N / 2; j++) {
      u16 low = u16(w[j] & 0xffffu), high = u16(w[j] >> 16);
      out[2 * j] = type == TYPE_F16 ? to_f32(f16{low}) : to_f32(bf16{low});
      out[2 * j + 1] = type == TYPE_F16 ? to_f32(f16{high}) : to_f32(bf16{high});
    }
  }
}

// ---- reductions ----

struct Sum {
  static __device__ __forceinline__ float join(float a, float b) { return a + b; }
  static constexpr float EMPTY = 0.0f;
};

// The larger number; NaN only where both are.
struct Largest {
  static __device__ __forceinline__ float join(float a, float b) { return fmaxf(a, b); }
  static constexpr float EMPTY = -3.402823466e+38f;
};

// The same result in all lanes of the warp, in a fixed order.
template <class R>
__device__ __forceinline__ float reduce_warp(float v) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    v = R::join(v, __shfl_xor_sync(ALL_LANES, v, distance));
  }
  return v;
}

// The same result in all threads of the block, in a fixed order. The block has a multiple of WARP threads. `scratch` is
// shared memory of one float per warp; a block that reduces again at once passes another one.
template <class R>
__device__ __forceinline__ float reduce_block(float v, float* scratch) {
  v = reduce_warp<R>(v);
  int warps = int(blockDim.x) / WARP;
  if (warps == 1) return v;
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = v;
  __syncthreads();
  v = int(threadIdx.x % WARP) < warps ? scratch[threadIdx.x % WARP] : R::EMPTY;
  return reduce_warp<R>(v);
}

// ---- small floats ----

// e4m3 without infinity: the nearest code, ties to even; beyond +-448 the largest, NaN to 0x7f.
__device__ __forceinline__ u8 to_e4m3(float v) {
#if !defined(SINTER_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  u16 out;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(0.0f), "f"(v));
  return u8(out & 0xffu);
#else
  u32 bits = __float_as_uint(v);
  u32 sign = bits >> 24 & 0x80u;
  u32 magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  // 464 is half-way between 448 and the step after it.
  if (magnitude >= 0x43e80000u) return u8(sign | 0x7eu);
  // Below 2^-6 codes are multiples of 2^-9; adding 2^14 leaves these, rounded, in the lowest bits of the sum.
  if (magnitude < 0x3c800000u) {
    u32 sum = __float_as_uint(__uint_as_float(magnitude) + 16384.0f);
    return u8(sign | (sum - __float_as_uint(16384.0f)));
  }
  u32 odd = magnitude >> 20 & 1u;
  u32 code = ((magnitude + 0x7ffffu + odd) >> 20) - (120u << 3);
  return u8(sign | (code > 0x7eu ? 0x7eu : code));
#endif
}

// Two codes, the first in the low byte.
__device__ __forceinline__ u32 to_e4m3_pair(float low, float high) {
#if !defined(SINTER_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  u16 out;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
  return out;
#else
  return u32(to_e4m3(low)) | u32(to_e4m3(high)) << 8;
#endif
}

__device__ __forceinline__ float from_e4m3(u8 code) {
  u32 magnitude = code & 0x7fu;
  u32 sign = u32(code & 0x80u) << 24;
  if (magnitude == 0x7fu) return __uint_as_float(0x7fc00000u);
  if (magnitude < 8u) return __uint_as_float(sign | __float_as_uint(float(magnitude) * 0.001953125f));
  return __uint_as_float(sign | ((magnitude << 20) + (120u << 23)));
}

// e2m1 in the low four bits: the nearest code, ties to even; beyond +-6 the largest. v is not NaN.
__device__ __forceinline__ u32 to_e2m1_number(float v) {
  float a = fminf(fabsf(v), E2M1_MAX);
  // 1, 2 or 4: codes are multiples of half of it.
  u32 power = __float_as_uint(fmaxf(a, 1.0f)) & 0x7f800000u;
  // Adding 2^22 times the power leaves a, in such multiples and rounded, in the lowest bits of the sum; two more for each doubling make
  // the code of it, and rounding to even is kept.
  u32 magic = power + (power >> 22) + ((22u << 23) - 254u);
  u32 code = __float_as_uint(a + __uint_as_float(magic));
  return (code & 7u) | (__float_as_uint(v) >> 28 & ~7u);
}

// As to_e2m1_number; NaN to 8.
__device__ __forceinline__ u32 to_e2m1(float v) { return v == v ? to_e2m1_number(v) : 8u; }

// Position of the scale of block column b in row r among the swizzled scales: tiles of 128 rows by 4 block columns, of
// which `tiles` lie beside each other; within a tile, row r % 32 has its four quarters of 32 rows side by side.
__device__ __forceinline__ i64 swizzled(i64 r, i64 b, i64 tiles) {
  return (r / 128 * tiles + b / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + b % 4;
}
