// Codes of eight and four bits, as the operators quantize_fp8, fp8_scale and quantize_nvfp4 define them. Arithmetic is in f32.
#pragma once
#include "common.cuh"

enum Quant { NO_QUANT, FP8, FP8_TOKEN, NVFP4 };

// Elements of a row that share a block scale.
constexpr int NVFP4_BLOCK = 16;

// The larger of two magnitudes; NaN wins. Without a sign, floats have the order of their bits.
struct Magnitude {
  static __device__ __forceinline__ float join(float a, float b) {
    return __uint_as_float(max(__float_as_uint(a), __float_as_uint(b)));
  }
  static constexpr float EMPTY = 0.0f;
};

// The largest magnitude of some values.
template <int E>
__device__ __forceinline__ float largest_magnitude(const float (&v)[E]) {
  float out = 0.0f;
#pragma unroll
  for (int i = 0; i < E; i++) out = Magnitude::join(out, fabsf(v[i]));
  return out;
}

// The scale of a row of this largest magnitude: at least `floor`; NaN wins.
__device__ __forceinline__ float fp8_scale(float largest, float floor) {
  float scale = largest / E4M3_MAX;
  return scale <= floor ? floor : scale;
}

// Divides many numbers by the same one. A quotient between 2^-16 and 2^16 is correctly rounded (Markstein, "Computation of
// elementary functions on the IBM RISC System/6000 processor", 1990); other quotients have the same e4m3 code as that.
struct Divisor {
  float scale, inverse, lift;

  __device__ __forceinline__ explicit Divisor(float by) {
    // A power of two that both sides are multiplied by keeps the remainders of extreme scales in range.
    float magnitude = fabsf(by);
    lift = magnitude < 0x1p-80f ? 0x1p64f : magnitude > 0x1p80f ? 0x1p-64f : 1.0f;
    scale = by * lift;
    inverse = 1.0f / scale;
  }

  __device__ __forceinline__ float divide(float v) const {
    v *= lift;
    float rough = v * inverse;
    float near = fmaf(fmaf(-rough, scale, v), inverse, rough);
    float exact = fmaf(fmaf(-near, scale, v), inverse, near);
    // Where a remainder would be infinite or NaN, `rough` is zero, infinite, NaN, or saturates.
    return fabsf(rough) > 0x1p-16f && fabsf(rough) < 0x1p16f ? exact : rough;
  }
};

__device__ __forceinline__ float rounded_quotient(float v, u32 type) {
  return type == TYPE_F16 ? through<f16>(v) : type == TYPE_BF16 ? through<bf16>(v) : v;
}

// E codes, four a word, of quotients that are rounded to `quotient_type` first.
template <int E>
__device__ __forceinline__ void to_fp8(const float (&v)[E], const Divisor& by, u32 quotient_type, u32 (&out)[E / 4]) {
  float q[E];
#pragma unroll
  for (int i = 0; i < E; i++) q[i] = by.divide(v[i]);
  if (quotient_type == TYPE_F16) {
#pragma unroll
    for (int i = 0; i < E; i++) q[i] = through<f16>(q[i]);
  } else if (quotient_type == TYPE_BF16) {
#pragma unroll
    for (int i = 0; i < E; i++) q[i] = through<bf16>(q[i]);
  }
#pragma unroll
  for (int i = 0; i < E / 4; i++) {
    out[i] = to_e4m3_pair(q[4 * i], q[4 * i + 1]) | to_e4m3_pair(q[4 * i + 2], q[4 * i + 3]) << 16;
  }
}

// E codes of e4m3 from element i on, which is a multiple of E.
template <int E>
__device__ __forceinline__ void store_fp8(void* q, i64 i, const u32 (&code)[E / 4]) {
  u8* at = static_cast<u8*>(q) + i;
  if constexpr (E == 4) {
    *reinterpret_cast<u32*>(at) = code[0];
  } else {
#pragma unroll
    for (int j = 0; j < E / 8; j++) {
      reinterpret_cast<u64*>(at)[j] = u64(code[2 * j]) | u64(code[2 * j + 1]) << 32;
    }
  }
}

// The scale of a block of this largest magnitude, as a code, and what the block's elements are multiplied by.
struct BlockScale {
  u8 code;
  float factor;

  __device__ __forceinline__ BlockScale(float largest, float scale) {
    code = to_e4m3(largest / E2M1_MAX * scale);
    float block = from_e4m3(code);
    factor = block == 0.0f ? 0.0f : scale / block;
  }
};

// E codes of e2m1, the first in the lowest bits. `largest` is the largest magnitude of v.
template <int E>
__device__ __forceinline__ u64 to_fp4(const float (&v)[E], float factor, float largest) {
  static_assert(E <= 16, "codes of a word of 64 bits");
  constexpr int PER_WORD = E < 8 ? E : 8;
  u64 out = 0;
  const float infinity = __uint_as_float(0x7f800000u);
  if (fabsf(largest * factor) < infinity && fabsf(factor) < infinity) {
    // No product is NaN. A code enters a word at the top, whose lower bits move down.
#pragma unroll
    for (int i = 0; i < E; i += PER_WORD) {
      u32 word = 0;
#pragma unroll
      for (int j = 0; j < PER_WORD; j++) word = word >> 4 | to_e2m1_number(v[i + j] * factor) << 28;
      out |= u64(word >> 4 * (8 - PER_WORD)) << 4 * i;
    }
    return out;
  }
#pragma unroll
  for (int i = 0; i < E; i++) out |= u64(to_e2m1(v[i] * factor)) << 4 * i;
  return out;
}

// Number of tiles beside each other that swizzled scales of rows of `columns` elements take.
__device__ __forceinline__ i64 scale_tiles(i64 columns) { return (columns / NVFP4_BLOCK + 3) / 4; }
