// quantize_fp8 with one scale: x of type T and n elements, q e4m3; the quotient is rounded to quotient_type before its code is taken.
// fp8_token and quantize_nvfp4 are rows of norm.cu without a norm.
//
// quantize_fp8: a block owns blockDim.x * PACKS packs of 16 bytes; the last thread does the elements behind the last pack.
// quantize_fp8_any: a block owns blockDim.x elements at any alignment.
#include "quantize.cuh"

struct QuantizeArguments {
  const void* x;
  // One number of scale_type.
  const void* scale;
  void* q;
  i64 n;
  u32 scale_type;
  u32 quotient_type;
};

template <class T, int PACKS>
__device__ __forceinline__ void quantize_fp8(const QuantizeArguments& a) {
  constexpr int E = PER_PACK<T>;
  const T* x = static_cast<const T*>(a.x);
  i64 packs = a.n / E;
  i64 first = i64(blockIdx.x) * (i64(blockDim.x) * PACKS) + threadIdx.x;
  Pack v[PACKS];
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    i64 at = first + i * i64(blockDim.x);
    v[i] = Pack{};
    if (at < packs) v[i] = load_pack(x + at * E);
  }
  Divisor by(load_as_f32(a.scale, a.scale_type, 0));
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    i64 at = first + i * i64(blockDim.x);
    float part[E];
    u32 code[E / 4];
    unpack<T>(v[i], part);
    to_fp8<E>(part, by, a.quotient_type, code);
    if (at < packs) store_fp8<E>(a.q, at * E, code);
  }
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == blockDim.x - 1) {
    for (i64 i = packs * E; i < a.n; i++) {
      static_cast<u8*>(a.q)[i] = to_e4m3(rounded_quotient(by.divide(to_f32(x[i])), a.quotient_type));
    }
  }
}

template <class T>
__device__ __forceinline__ void quantize_fp8_any(const QuantizeArguments& a) {
  i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= a.n) return;
  Divisor by(load_as_f32(a.scale, a.scale_type, 0));
  float v = to_f32(static_cast<const T*>(a.x)[i]);
  static_cast<u8*>(a.q)[i] = to_e4m3(rounded_quotient(by.divide(v), a.quotient_type));
}
