// What follows the sums of a row: the norm over its elements, the quantised norm, and their stores. The kernels of norm.cu,
// of quantize.cu and of the fused all-reduces end here.
//
// A team of threads, a warp or a block, owns a row of `columns` elements. The row is held in registers as packs of 16 bytes: thread t of
// n has the packs t, t + n, .., VPT of them, and zeros where the row has no more. Statistics are in f32; the norm is rounded to T
// before it is quantised.
#pragma once
#include "common.cuh"
#include "quantize.cuh"

enum Norm { NO_NORM, RMS_NORM, LAYER_NORM };

// Rows of `columns` elements; addresses are multiples of 16, a scale's and scale_out's of their element's size.
struct NormParameters {
  // [columns], of weight_type; LAYER_NORM: bias likewise.
  const void* weight;
  const void* bias;
  // T [rows, columns]; null: not stored.
  void* norm;
  // FP8, FP8_TOKEN: e4m3 [rows, columns]. NVFP4: u8 [rows, columns / 2], the even element in the low bits.
  void* q;
  // FP8_TOKEN: float [rows]. NVFP4: e4m3, swizzled, with zeros as padding to 128 rows and 4 blocks.
  void* scale_out;
  // FP8, NVFP4: one number of scale_type.
  const void* scale;
  i64 rows;
  i64 columns;
  float eps;
  // FP8_TOKEN: the least scale.
  float floor;
  u32 weight_type;
  u32 bias_type;
  u32 scale_type;
  // FP8: the type that a quotient is rounded to before its code is taken.
  u32 quotient_type;
};

// The threads that own a row.
struct WarpTeam {
  static __device__ __forceinline__ u32 thread() { return threadIdx.x % WARP; }
  static __device__ __forceinline__ u32 threads() { return WARP; }
  template <class R>
  static __device__ __forceinline__ float reduce(float v, float*) {
    return reduce_warp<R>(v);
  }
};

struct BlockTeam {
  static __device__ __forceinline__ u32 thread() { return threadIdx.x; }
  static __device__ __forceinline__ u32 threads() { return blockDim.x; }
  template <class R>
  static __device__ __forceinline__ float reduce(float v, float* scratch) {
    return reduce_block<R>(v, scratch);
  }
};

// Shared memory that a block needs for a row, in floats. A block that does one row after the other takes two such pieces in turn.
constexpr int ROW_SCRATCH = 3 * WARP;

template <class T>
constexpr u32 TYPE_OF = TYPE_F32;
template <>
constexpr u32 TYPE_OF<f16> = TYPE_F16;
template <>
constexpr u32 TYPE_OF<bf16> = TYPE_BF16;

// A parameter at the packs of a thread. Where it has the type T and registers suffice, it is read at once, so that the reads overlap
// the reduction; otherwise where it is used.
template <class T, int VPT, bool HELD>
struct Parameter {
  const void* at;
  u32 type;
  Pack packs[HELD ? VPT : 1];

  template <class Team>
  __device__ __forceinline__ void read(const void* from, u32 from_type, u32 row_packs, Team) {
    at = from;
    type = from_type;
    if constexpr (HELD) {
      u32 held = type == TYPE_OF<T> ? row_packs : 0;
#pragma unroll
      for (int i = 0; i < VPT; i++) {
        u32 k = Team::thread() + i * Team::threads();
        packs[i] = Pack{};
        if (k < held) packs[i] = load_pack(static_cast<const T*>(at) + k * PER_PACK<T>);
      }
    }
  }

  // The values at pack i of the thread, which starts at an element of the row.
  __device__ __forceinline__ void get(int i, u32 element, float (&out)[PER_PACK<T>]) const {
    if constexpr (HELD) {
      if (type == TYPE_OF<T>) {
        unpack<T>(packs[i], out);
        return;
      }
    }
    load_parameter<T>(at, type, element, out);
  }
};

// Ends what the compiler knows of the packs, so that it unpacks them again where they are used next and does not hold twice as many
// registers in f32 until then.
template <int VPT>
__device__ __forceinline__ void keep_packed(Pack (&v)[VPT]) {
#ifndef SINTER_EMULATED
#pragma unroll
  for (int i = 0; i < VPT; i++) {
    asm volatile("" : "+r"(v[i].word[0]), "+r"(v[i].word[1]), "+r"(v[i].word[2]), "+r"(v[i].word[3]));
  }
#endif
}

// What a row reads before its reductions beside its elements: the weight at the packs of a thread, and the scale.
template <class T, Norm N, Quant Q, class Team, int VPT>
struct RowParameters {
  Parameter<T, VPT, VPT * PER_PACK<T> <= 16> weight;

  float inverse_columns, scale;

  // Begins the reads; to be called after the row's own reads.
  __device__ __forceinline__ explicit RowParameters(const NormParameters& p) {
    u32 packs = u32(p.columns) / PER_PACK<T>;
    if constexpr (N != NO_NORM) {
      weight.read(p.weight, p.weight_type, packs, Team());
      inverse_columns = 1.0f / float(u32(p.columns));
    }
    if constexpr (Q == FP8 || Q == NVFP4) scale = load_as_f32(p.scale, p.scale_type, 0);
  }
};

// The mean and 1 / deviation that a norm applies to a row.
template <class T, Norm N, class Team, int VPT>
__device__ __forceinline__ void row_statistics(const NormParameters& p, Pack (&sum)[VPT], float inverse_columns,
                                               float* scratch, float& mean, float& factor) {
  u32 packs = u32(p.columns) / PER_PACK<T>;
  if constexpr (N == LAYER_NORM) {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < VPT; i++) {
      float v[PER_PACK<T>];
      unpack<T>(sum[i], v);
#pragma unroll
      for (int j = 0; j < PER_PACK<T>; j++) total += v[j];
    }
    mean = Team::template reduce<Sum>(total, scratch + WARP) * inverse_columns;
    keep_packed(sum);
  } else {
    mean = 0.0f;
  }
  float square = 0.0f;
#pragma unroll
  for (int i = 0; i < VPT; i++) {
    float v[PER_PACK<T>];
    unpack<T>(sum[i], v);
    float part = 0.0f;
#pragma unroll
    for (int j = 0; j < PER_PACK<T>; j++) part = fmaf(v[j] - mean, v[j] - mean, part);
    // Zeros beyond the row are no elements.
    square += N == RMS_NORM || Team::thread() + i * Team::threads() < packs ? part : 0.0f;
  }
  factor = 1.0f / sqrtf(Team::template reduce<Sum>(square, scratch) * inverse_columns + p.eps);
  keep_packed(sum);
}

// Pack i of a thread after the norm, rounded to T.
template <class T, Norm N, class Parameters>
__device__ __forceinline__ Pack normalised(const NormParameters& p, const Parameters& parameters, const Pack& sum, int i,
                                           u32 element, float mean, float factor) {
  constexpr int E = PER_PACK<T>;
  if constexpr (N == NO_NORM) return sum;
  float v[E], weight[E];
  unpack<T>(sum, v);
  parameters.weight.get(i, element, weight);
#pragma unroll
  for (int j = 0; j < E; j++) v[j] = (v[j] - mean) * factor * weight[j];
  if constexpr (N == LAYER_NORM) {
    float bias[E];
    load_parameter<T>(p.bias, p.bias_type, element, bias);
#pragma unroll
    for (int j = 0; j < E; j++) v[j] += bias[j];
  }
  return pack<T>(v);
}

// Stores the codes of a pack that begins at this element of all rows; `inside`: the row has it.
template <class T>
__device__ __forceinline__ void finish_fp8(const NormParameters& p, const Pack& y, i64 element, bool inside, const Divisor& by,
                                           u32 quotient_type) {
  constexpr int E = PER_PACK<T>;
  float v[E];
  u32 code[E / 4];
  unpack<T>(y, v);
  to_fp8<E>(v, by, quotient_type, code);
  if (inside) store_fp8<E>(p.q, element, code);
}

// As finish_fp8, for pack `at` of a row. Lanes beside each other hold the packs of a block; a row has whole blocks.
template <class T>
__device__ __forceinline__ void finish_nvfp4(const NormParameters& p, const Pack& y, i64 row, u32 at, bool inside, float scale) {
  constexpr int E = PER_PACK<T>;
  constexpr u32 LANES = NVFP4_BLOCK / E;
  float v[E];
  unpack<T>(y, v);
  float largest = largest_magnitude(v);
#pragma unroll
  for (u32 distance = 1; distance < LANES; distance *= 2) {
    largest = Magnitude::join(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
  }
  BlockScale b(largest, scale);
  u64 code = to_fp4<E>(v, b.factor, largest);
  if (!inside) return;
  u8* q = static_cast<u8*>(p.q) + (row * p.columns + at * E) / 2;
  if constexpr (E == 8) *reinterpret_cast<u32*>(q) = u32(code);
  if constexpr (E == 4) *reinterpret_cast<u16*>(q) = u16(code);
  if (at % LANES == 0) static_cast<u8*>(p.scale_out)[swizzled(row, at / LANES, scale_tiles(p.columns))] = b.code;
}

// Normalises the sums of a row, quantises the norm, and stores what is asked for. All threads of the team call it.
template <class T, Norm N, Quant Q, class Team, int VPT>
__device__ __forceinline__ void finish_row(const NormParameters& p, i64 row, Pack (&sum)[VPT],
                                           const RowParameters<T, N, Q, Team, VPT>& parameters, float* scratch) {
  constexpr int E = PER_PACK<T>;
  u32 thread = Team::thread(), threads = Team::threads();
  u32 packs = u32(p.columns) / E;
  i64 start = row * p.columns;
  float mean = 0.0f, factor = 1.0f;
  if constexpr (N != NO_NORM) row_statistics<T, N, Team, VPT>(p, sum, parameters.inverse_columns, scratch, mean, factor);

  Divisor by(Q == FP8 ? parameters.scale : 1.0f);
  // FP8_TOKEN: `sum` holds the norm from here on.
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < VPT; i++) {
    u32 at = thread + i * threads;
    bool inside = at < packs;
    Pack y{};
    if (inside) {
      y = normalised<T, N>(p, parameters, sum[i], i, at * E, mean, factor);
      if (N != NO_NORM && p.norm) store_pack(static_cast<T*>(p.norm) + start + at * E, y);
    }
    if constexpr (Q == FP8) finish_fp8<T>(p, y, start + at * E, inside, by, p.quotient_type);
    if constexpr (Q == NVFP4) finish_nvfp4<T>(p, y, row, at, inside, parameters.scale);
    if constexpr (Q == FP8_TOKEN) {
      float v[E];
      unpack<T>(y, v);
      largest = Magnitude::join(largest, largest_magnitude(v));
      sum[i] = y;
    }
  }
  if constexpr (Q == FP8_TOKEN) {
    largest = Team::template reduce<Magnitude>(largest, scratch + 2 * WARP);
    keep_packed(sum);
    float scale = fp8_scale(largest, p.floor);
    if (thread == 0) static_cast<float*>(p.scale_out)[row] = scale;
    by = Divisor(scale);
#pragma unroll
    for (int i = 0; i < VPT; i++) {
      u32 at = thread + i * threads;
      finish_fp8<T>(p, sum[i], start + at * E, at < packs, by, TYPE_F32);
    }
  }
  if constexpr (Q == NVFP4) {
    i64 tiles = scale_tiles(p.columns);
    u32 blocks = u32(p.columns) / NVFP4_BLOCK;
    if (blocks + thread < tiles * 4) static_cast<u8*>(p.scale_out)[swizzled(row, blocks + thread, tiles)] = 0;
  }
}

// NVFP4: zeros for the scales of a row between `rows` and the next multiple of 128.
template <class Team>
__device__ __forceinline__ void pad_scales(const NormParameters& p, i64 row) {
  i64 tiles = scale_tiles(p.columns);
  u8* scales = static_cast<u8*>(p.scale_out);
  // The four block columns of a tile are one word.
  for (i64 t = Team::thread(); t < tiles; t += Team::threads()) {
    *reinterpret_cast<u32*>(scales + swizzled(row, 4 * t, tiles)) = 0;
  }
}
