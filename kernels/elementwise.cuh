// Chains of elementwise operators as one kernel: the parts that generated code is made of.
//
// The results have one shape, row-major, of `rank` merged axes; an operand has a step per axis, 0 where it is broadcast. A unit is V
// elements that lie side by side on the last axis. A block owns blockDim.x * U neighbouring units, a thread every blockDim.x-th of
// them, and all its operands are on their way before the first is used. Every operator computes in f32 (f64, i64 for such operands)
// and rounds to its own element type, so that a chain gives the same bits as its operators one by one. No multiplication is
// contracted with an addition.
#pragma once
#include "index.cuh"

using i8 = signed char;
using i32 = int;

constexpr int MAX_OPERANDS = 8;
constexpr int MAX_RESULTS = 4;

struct e4m3 {
  u8 bits;
};

struct boolean {
  u8 bits;
};

// Steps are in elements per unit on the last axis, per element on the others. Bit k of `spread` says that operand k has one element
// for a whole unit. Where `tail` elements follow the last unit, there is one axis, and the first block computes them.
struct ElementwiseArguments {
  const void* operand[MAX_OPERANDS];
  void* result[MAX_RESULTS];
  Axis axis[MAX_AXES];
  i64 step[MAX_AXES][MAX_OPERANDS];
  i64 units;
  i64 tail;
  u32 rank;
  u32 spread;
};

// ---- storage types to what is computed with, and back ----

__device__ __forceinline__ float value(float v) { return v; }
__device__ __forceinline__ float value(f16 v) { return to_f32(v); }
__device__ __forceinline__ float value(bf16 v) { return to_f32(v); }
__device__ __forceinline__ float value(e4m3 v) { return from_e4m3(v.bits); }
__device__ __forceinline__ double value(double v) { return v; }
__device__ __forceinline__ i64 value(i64 v) { return v; }
__device__ __forceinline__ i64 value(i32 v) { return v; }
__device__ __forceinline__ i64 value(i8 v) { return v; }
__device__ __forceinline__ i64 value(u8 v) { return v; }
__device__ __forceinline__ i64 value(boolean v) { return v.bits != 0; }

__device__ __forceinline__ boolean truth(bool v) { return boolean{u8(v)}; }

// v in f32 with the lowest bit set where it is not exact, so that rounding it again rounds v once.
__device__ __forceinline__ float rounded_to_odd(double v) {
  float near = float(v);
  if (double(near) == v || !(v == v)) return near;
  u32 bits = __float_as_uint(near);
  if (fabs(double(near)) > fabs(v)) bits -= 1;
  return __uint_as_float(bits | 1u);
}

template <class T>
struct Storage;

template <>
struct Storage<float> {
  static __device__ __forceinline__ float of(float v) { return v; }
  static __device__ __forceinline__ float of(double v) { return float(v); }
  static __device__ __forceinline__ float of(i64 v) { return float(v); }
};

template <>
struct Storage<double> {
  static __device__ __forceinline__ double of(float v) { return v; }
  static __device__ __forceinline__ double of(double v) { return v; }
  static __device__ __forceinline__ double of(i64 v) { return double(v); }
};

template <class T>
struct HalfStorage {
  static __device__ __forceinline__ T of(float v) { return from_f32<T>(v); }
  static __device__ __forceinline__ T of(double v) { return from_f32<T>(rounded_to_odd(v)); }
  static __device__ __forceinline__ T of(i64 v) { return from_f32<T>(float(v)); }
};

template <>
struct Storage<f16> : HalfStorage<f16> {};
template <>
struct Storage<bf16> : HalfStorage<bf16> {};

template <>
struct Storage<e4m3> {
  static __device__ __forceinline__ e4m3 of(float v) { return e4m3{to_e4m3(v)}; }
};

// Towards zero; numbers beyond the range become its ends, NaN becomes 0.
template <class F>
__device__ __forceinline__ i64 to_integer(F v) {
  if (!(v == v)) return 0;
  if (v >= F(9223372036854775808.0)) return 0x7fffffffffffffffll;
  if (v < F(-9223372036854775808.0)) return -0x7fffffffffffffffll - 1;
  return i64(v);
}

// Integers wrap.
template <class T>
struct IntegerStorage {
  static __device__ __forceinline__ T of(float v) { return T(u64(to_integer(v))); }
  static __device__ __forceinline__ T of(double v) { return T(u64(to_integer(v))); }
  static __device__ __forceinline__ T of(i64 v) { return T(u64(v)); }
};

template <>
struct Storage<i64> : IntegerStorage<i64> {};
template <>
struct Storage<i32> : IntegerStorage<i32> {};
template <>
struct Storage<i8> : IntegerStorage<i8> {};
template <>
struct Storage<u8> : IntegerStorage<u8> {};

template <>
struct Storage<boolean> {
  template <class R>
  static __device__ __forceinline__ boolean of(R v) {
    return truth(v != R(0));
  }
};

template <class T, class R>
__device__ __forceinline__ T as(R v) {
  return Storage<T>::of(v);
}

// ---- operators ----

namespace op {

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float sub(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float div(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double sub(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double div(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ i64 add(i64 a, i64 b) { return i64(u64(a) + u64(b)); }
__device__ __forceinline__ i64 sub(i64 a, i64 b) { return i64(u64(a) - u64(b)); }
__device__ __forceinline__ i64 mul(i64 a, i64 b) { return i64(u64(a) * u64(b)); }
// b is not 0.
__device__ __forceinline__ i64 div(i64 a, i64 b) { return b == -1 ? i64(0 - u64(a)) : a / b; }

__device__ __forceinline__ float pow(float a, float b) { return ::powf(a, b); }
__device__ __forceinline__ double pow(double a, double b) { return ::pow(a, b); }
__device__ __forceinline__ i64 pow(i64 a, i64 b) {
  if (b < 0) return a == 1 ? 1 : a == -1 ? 1 - 2 * (b & 1) : 0;
  u64 base = u64(a), product = 1;
  for (u64 n = u64(b) < 0xffffffffull ? u64(b) : 0xffffffffull; n; n >>= 1) {
    if (n & 1) product *= base;
    base *= base;
  }
  return i64(product);
}
// An exponent of another type than the base is taken in f64.
__device__ __forceinline__ float pow_wide(float a, double b) { return float(::pow(double(a), b)); }
__device__ __forceinline__ double pow_wide(double a, double b) { return ::pow(a, b); }
__device__ __forceinline__ i64 pow_wide(i64 a, double b) { return to_integer(::pow(double(a), b)); }

// NaN wins.
template <class R>
__device__ __forceinline__ R max(R a, R b) {
  return !(a == a) || a > b ? a : b;
}
template <class R>
__device__ __forceinline__ R min(R a, R b) {
  return !(a == a) || a < b ? a : b;
}

template <class R>
__device__ __forceinline__ bool is_nan(R v) {
  return !(v == v);
}
// NaN stays NaN.
template <class R>
__device__ __forceinline__ R relu(R v) {
  return v < R(0) ? R(0) : v;
}

__device__ __forceinline__ float neg(float v) { return -v; }
__device__ __forceinline__ double neg(double v) { return -v; }
__device__ __forceinline__ i64 neg(i64 v) { return i64(0 - u64(v)); }
__device__ __forceinline__ float abs(float v) { return ::fabsf(v); }
__device__ __forceinline__ double abs(double v) { return ::fabs(v); }
__device__ __forceinline__ i64 abs(i64 v) { return v < 0 ? neg(v) : v; }
__device__ __forceinline__ float floor(float v) { return ::floorf(v); }
__device__ __forceinline__ double floor(double v) { return ::floor(v); }
__device__ __forceinline__ i64 floor(i64 v) { return v; }
__device__ __forceinline__ float ceil(float v) { return ::ceilf(v); }
__device__ __forceinline__ double ceil(double v) { return ::ceil(v); }
__device__ __forceinline__ i64 ceil(i64 v) { return v; }

__device__ __forceinline__ float sqrt(float v) { return __fsqrt_rn(v); }
__device__ __forceinline__ double sqrt(double v) { return ::sqrt(v); }
__device__ __forceinline__ float exp(float v) { return ::expf(v); }
__device__ __forceinline__ double exp(double v) { return ::exp(v); }
__device__ __forceinline__ float log(float v) { return ::logf(v); }
__device__ __forceinline__ double log(double v) { return ::log(v); }
__device__ __forceinline__ float tanh(float v) { return ::tanhf(v); }
__device__ __forceinline__ double tanh(double v) { return ::tanh(v); }
__device__ __forceinline__ float erf(float v) { return ::erff(v); }
__device__ __forceinline__ double erf(double v) { return ::erf(v); }
__device__ __forceinline__ float sin(float v) { return ::sinf(v); }
__device__ __forceinline__ double sin(double v) { return ::sin(v); }
__device__ __forceinline__ float cos(float v) { return ::cosf(v); }
__device__ __forceinline__ double cos(double v) { return ::cos(v); }

template <class R>
__device__ __forceinline__ R reciprocal(R v) {
  return div(R(1), v);
}
template <class R>
__device__ __forceinline__ R sigmoid(R v) {
  return div(R(1), add(R(1), exp(-v)));
}
template <class R>
__device__ __forceinline__ R silu(R v) {
  return div(v, add(R(1), exp(-v)));
}
template <class R>
__device__ __forceinline__ R gelu_erf(R v) {
  return mul(mul(R(0.5), v), add(R(1), erf(mul(v, R(0.70710678118654752440)))));
}
template <class R>
__device__ __forceinline__ R gelu_tanh(R v) {
  R inner = mul(R(0.79788456080286535588), add(v, mul(mul(mul(R(0.044715), v), v), v)));
  return mul(mul(R(0.5), v), add(R(1), tanh(inner)));
}

}  // namespace op

// ---- V elements in registers ----

template <int BYTES>
struct alignas(BYTES) Unit {
  u32 word[BYTES / 4];
};
template <>
struct alignas(2) Unit<2> {
  u16 word[1];
};
template <>
struct alignas(1) Unit<1> {
  u8 word[1];
};

__device__ __forceinline__ float from_bits(u32 b, float) { return __uint_as_float(b); }
__device__ __forceinline__ i32 from_bits(u32 b, i32) { return i32(b); }
__device__ __forceinline__ f16 from_bits(u32 b, f16) { return f16{u16(b)}; }
__device__ __forceinline__ bf16 from_bits(u32 b, bf16) { return bf16{u16(b)}; }
__device__ __forceinline__ e4m3 from_bits(u32 b, e4m3) { return e4m3{u8(b)}; }
__device__ __forceinline__ boolean from_bits(u32 b, boolean) { return boolean{u8(b)}; }
__device__ __forceinline__ i8 from_bits(u32 b, i8) { return i8(u8(b)); }
__device__ __forceinline__ u8 from_bits(u32 b, u8) { return u8(b); }
__device__ __forceinline__ i64 from_bits(u64 b, i64) { return i64(b); }
__device__ __forceinline__ double from_bits(u64 b, double) { return __longlong_as_double(i64(b)); }

__device__ __forceinline__ u32 to_bits(float v) { return __float_as_uint(v); }
__device__ __forceinline__ u32 to_bits(i32 v) { return u32(v); }
__device__ __forceinline__ u32 to_bits(f16 v) { return v.bits; }
__device__ __forceinline__ u32 to_bits(bf16 v) { return v.bits; }
__device__ __forceinline__ u32 to_bits(e4m3 v) { return v.bits; }
__device__ __forceinline__ u32 to_bits(boolean v) { return v.bits; }
__device__ __forceinline__ u32 to_bits(i8 v) { return u8(v); }
__device__ __forceinline__ u32 to_bits(u8 v) { return v; }
__device__ __forceinline__ u64 to_bits(i64 v) { return u64(v); }
__device__ __forceinline__ u64 to_bits(double v) { return u64(__double_as_longlong(v)); }

template <class T, int V>
struct Items {
  static constexpr int SIZE = int(sizeof(T));
  static constexpr int BYTES = V * SIZE;
  static constexpr int WORDS = (BYTES + 3) / 4;
  u32 word[WORDS];

  __device__ __forceinline__ T get(int j) const {
    if constexpr (SIZE == 8) {
      return from_bits(u64(word[2 * j]) | u64(word[2 * j + 1]) << 32, T());
    } else {
      constexpr int EACH = 4 / SIZE;
      return from_bits(word[j / EACH] >> (j % EACH * 8 * SIZE), T());
    }
  }

  // Elements are set in order.
  __device__ __forceinline__ void set(int j, T v) {
    if constexpr (SIZE == 8) {
      word[2 * j] = u32(to_bits(v));
      word[2 * j + 1] = u32(to_bits(v) >> 32);
    } else {
      constexpr int EACH = 4 / SIZE;
      u32 bits = to_bits(v) << (j % EACH * 8 * SIZE);
      word[j / EACH] = j % EACH == 0 ? bits : word[j / EACH] | bits;
    }
  }

  // Elements from `at` on, or that one V times.
  __device__ __forceinline__ void load(const void* p, i64 at, bool spread) {
    const T* from = static_cast<const T*>(p) + at;
    if (V > 1 && spread) {
      T one = *from;
#pragma unroll
      for (int j = 0; j < V; j++) set(j, one);
      return;
    }
    constexpr int PART = BYTES < 16 ? BYTES : 16;
    const Unit<PART>* parts = reinterpret_cast<const Unit<PART>*>(from);
#pragma unroll
    for (int i = 0; i < BYTES / PART; i++) {
      Unit<PART> part = parts[i];
#pragma unroll
      for (int j = 0; j < (PART + 3) / 4; j++) word[i * ((PART + 3) / 4) + j] = part.word[j];
    }
  }

  __device__ __forceinline__ void store(void* p, i64 at) const {
    Unit<BYTES> whole;
#pragma unroll
    for (int j = 0; j < WORDS; j++) whole.word[j] = word[j];
    *reinterpret_cast<Unit<BYTES>*>(static_cast<T*>(p) + at) = whole;
  }
};

// ---- the kernel ----

// Runs the chain C on units of V elements. Operands may share memory with a result, element for element.
template <class C, int V, int U>
__device__ __forceinline__ void run_chain(const ElementwiseArguments& a) {
  i64 first = i64(blockIdx.x) * (i64(blockDim.x) * U) + threadIdx.x;
  typename C::template Loaded<V> x[U];
#pragma unroll
  for (int u = 0; u < U; u++) {
    i64 rest = first + i64(u) * blockDim.x;
    if (rest >= a.units) break;
    i64 at[MAX_OPERANDS] = {};
#pragma unroll 1
    for (int d = int(a.rank) - 1; d > 0; d--) {
      i64 outer = divide(rest, a.axis[d]);
      i64 i = rest - outer * a.axis[d].extent;
#pragma unroll
      for (int k = 0; k < C::OPERANDS; k++) at[k] += i * a.step[d][k];
      rest = outer;
    }
#pragma unroll
    for (int k = 0; k < C::OPERANDS; k++) at[k] += rest * a.step[0][k];
    C::template load<V>(a, at, x[u]);
  }
#pragma unroll
  for (int u = 0; u < U; u++) {
    i64 unit = first + i64(u) * blockDim.x;
    if (unit >= a.units) break;
    C::template store<V>(a, unit * V, x[u]);
  }
  if constexpr (V > 1) {
    if (blockIdx.x > 0 || i64(threadIdx.x) >= a.tail) return;
    i64 i = a.units * V + threadIdx.x;
    i64 at[MAX_OPERANDS] = {};
#pragma unroll
    for (int k = 0; k < C::OPERANDS; k++) at[k] = a.step[0][k] == 0 ? 0 : i;
    typename C::template Loaded<1> one;
    C::template load<1>(a, at, one);
    C::template store<1>(a, i, one);
  }
}
