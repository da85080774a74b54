// rms_norm, layer_norm, add_rms_norm and add_layer_norm, alone and with quantised results (_quant_fp8, _quant_fp8_token, _quant_nvfp4);
// without a norm fp8_token and quantize_nvfp4.
//
// x, r, sum, norm: T [rows, columns], row-major. sum = x + r rounded to T; the norm is over the last axis, with f32 statistics.
//
// norm_warp: a warp owns a row; VPT packs of 16 bytes per lane.
// norm_block: a block owns a row; VPT packs per thread, held in registers from the only read to the last store.
// norm_loop: a block owns a row of any length and alignment, and reads it once per pass.
//
// sum may be x or r, norm may be x: a thread has read an element, in its last pass, when it stores there.
#include "norm.cuh"

struct NormArguments {
  NormParameters p;
  const void* x;
  // With ADD: null where there is none.
  const void* r;
  void* sum;
};

// The thread's packs of x, or of x + r, which are stored.
template <class T, bool ADD, class Team, int VPT>
__device__ __forceinline__ void load_row(const NormArguments& a, i64 row, Pack (&v)[VPT], Pack (&r)[VPT]) {
  constexpr int E = PER_PACK<T>;
  u32 packs = u32(a.p.columns) / E;
  const T* x_row = static_cast<const T*>(a.x) + row * a.p.columns;
  const T* r_row = static_cast<const T*>(a.r) + row * a.p.columns;
#pragma unroll
  for (int i = 0; i < VPT; i++) {
    u32 at = Team::thread() + i * Team::threads();
    v[i] = Pack{};
    if (at < packs) v[i] = load_pack(x_row + at * E);
    if constexpr (ADD) {
      r[i] = Pack{};
      if (at < packs) r[i] = load_pack(r_row + at * E);
    }
  }
}

template <class T, class Team, int VPT>
__device__ __forceinline__ void add_row(const NormArguments& a, i64 row, Pack (&v)[VPT], const Pack (&r)[VPT]) {
  constexpr int E = PER_PACK<T>;
  u32 packs = u32(a.p.columns) / E;
#pragma unroll
  for (int i = 0; i < VPT; i++) {
    float sum[E], other[E];
    unpack<T>(v[i], sum);
    unpack<T>(r[i], other);
#pragma unroll
    for (int j = 0; j < E; j++) sum[j] += other[j];
    v[i] = pack<T>(sum);
    u32 at = Team::thread() + i * Team::threads();
    if (a.sum && at < packs) store_pack(static_cast<T*>(a.sum) + row * a.p.columns + at * E, v[i]);
  }
}

template <class T, bool ADD, Norm N, Quant Q, class Team, int VPT>
__device__ __forceinline__ void norm_row(const NormArguments& a, i64 row, float* scratch) {
  if (row >= a.p.rows) {
    if constexpr (Q == NVFP4) pad_scales<Team>(a.p, row);
    return;
  }
  Pack v[VPT], r[VPT];
  load_row<T, ADD, Team, VPT>(a, row, v, r);
  RowParameters<T, N, Q, Team, VPT> parameters(a.p);
  if constexpr (ADD) add_row<T, Team, VPT>(a, row, v, r);
  finish_row<T, N, Q, Team, VPT>(a.p, row, v, parameters, scratch);
}

// NVFP4: the grid also has the rows of the scales' padding.
template <class T, bool ADD, Norm N, Quant Q, int VPT>
__device__ __forceinline__ void norm_warp(const NormArguments& a) {
  i64 row = i64(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  // Rows of the padding are done by whole warps.
  if (Q == NVFP4 && row >= (a.p.rows + 127) / 128 * 128) return;
  norm_row<T, ADD, N, Q, WarpTeam, VPT>(a, row, nullptr);
}

template <class T, bool ADD, Norm N, Quant Q, int VPT>
__device__ __forceinline__ void norm_block(const NormArguments& a) {
  __shared__ float scratch[ROW_SCRATCH];
  norm_row<T, ADD, N, Q, BlockTeam, VPT>(a, blockIdx.x, scratch);
}

// ---- rows of any length and alignment ----

// E elements from p on; PACKED: p is a multiple of 16 bytes.
template <class T, bool PACKED, int E>
__device__ __forceinline__ void load_chunk(const T* p, float (&out)[E]) {
  if constexpr (PACKED) {
    constexpr int N = PER_PACK<T>;
#pragma unroll
    for (int i = 0; i < E; i += N) {
      float v[N];
      unpack<T>(load_pack(p + i), v);
#pragma unroll
      for (int j = 0; j < N; j++) out[i + j] = v[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < E; i++) out[i] = to_f32(p[i]);
  }
}

template <class T, bool PACKED, int E>
__device__ __forceinline__ void store_chunk(T* p, const float (&v)[E]) {
  if constexpr (PACKED) {
    constexpr int N = PER_PACK<T>;
#pragma unroll
    for (int i = 0; i < E; i += N) {
      float part[N];
#pragma unroll
      for (int j = 0; j < N; j++) part[j] = v[i + j];
      store_pack(p + i, pack<T>(part));
    }
  } else {
#pragma unroll
    for (int i = 0; i < E; i++) p[i] = from_f32<T>(v[i]);
  }
}

// The elements of a parameter from `element` on.
template <class T, bool PACKED, int E>
__device__ __forceinline__ void parameter_chunk(const void* p, u32 type, i64 element, float (&out)[E]) {
  if constexpr (PACKED) {
    constexpr int N = PER_PACK<T>;
#pragma unroll
    for (int i = 0; i < E; i += N) {
      float v[N];
      load_parameter<T>(p, type, element + i, v);
#pragma unroll
      for (int j = 0; j < N; j++) out[i + j] = v[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < E; i++) out[i] = load_as_f32(p, type, element + i);
  }
}

// A row that is read once per pass. Thread t has chunks t, t + threads, .. of E elements.
template <class T, bool ADD, Norm N, Quant Q, bool PACKED>
struct LongRow {
  // A thread has whole blocks of NVFP4.
  static constexpr int E = Q == NVFP4 ? NVFP4_BLOCK : PACKED ? PER_PACK<T> : 1;
  const NormArguments& a;
  i64 start, chunks;
  float mean, factor;

  __device__ __forceinline__ LongRow(const NormArguments& a, i64 row)
      : a(a), start(row * a.p.columns), chunks(a.p.columns / E), mean(0.0f), factor(1.0f) {}

  // x, or x + r rounded to T. In the first pass that is stored; later the thread reads what it stored.
  __device__ __forceinline__ void load(i64 chunk, bool first, float (&v)[E]) const {
    i64 at = start + chunk * E;
    T* sum = static_cast<T*>(a.sum);
    if (ADD && !first && sum) {
      load_chunk<T, PACKED, E>(sum + at, v);
      return;
    }
    load_chunk<T, PACKED, E>(static_cast<const T*>(a.x) + at, v);
    if constexpr (ADD) {
      float r[E];
      load_chunk<T, PACKED, E>(static_cast<const T*>(a.r) + at, r);
#pragma unroll
      for (int j = 0; j < E; j++) v[j] = through<T>(v[j] + r[j]);
      if (first && sum) store_chunk<T, PACKED, E>(sum + at, v);
    }
  }

  // The norm rounded to T, in a pass that is not the first with ADD.
  __device__ __forceinline__ void load_norm(i64 chunk, float (&v)[E]) const {
    load(chunk, false, v);
    if constexpr (N != NO_NORM) {
      float weight[E];
      parameter_chunk<T, PACKED, E>(a.p.weight, a.p.weight_type, chunk * E, weight);
#pragma unroll
      for (int j = 0; j < E; j++) v[j] = (v[j] - mean) * factor * weight[j];
      if constexpr (N == LAYER_NORM) {
        float bias[E];
        parameter_chunk<T, PACKED, E>(a.p.bias, a.p.bias_type, chunk * E, bias);
#pragma unroll
        for (int j = 0; j < E; j++) v[j] += bias[j];
      }
#pragma unroll
      for (int j = 0; j < E; j++) v[j] = through<T>(v[j]);
    }
  }

  // Calls f with every chunk of the thread.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    for (i64 chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) f(chunk);
  }

  __device__ __forceinline__ void statistics(float* scratch) {
    float n = float(a.p.columns);
    float square = 0.0f, total = 0.0f;
    each([&](i64 chunk) {
      float v[E];
      load(chunk, true, v);
#pragma unroll
      for (int j = 0; j < E; j++) {
        total += v[j];
        square = fmaf(v[j], v[j], square);
      }
    });
    if constexpr (N == LAYER_NORM) {
      mean = reduce_block<Sum>(total, scratch + WARP) / n;
      square = 0.0f;
      each([&](i64 chunk) {
        float v[E];
        load(chunk, false, v);
#pragma unroll
        for (int j = 0; j < E; j++) square = fmaf(v[j] - mean, v[j] - mean, square);
      });
    }
    factor = 1.0f / sqrtf(reduce_block<Sum>(square, scratch) / n + a.p.eps);
  }
};

// The grid is that of norm_block.
template <class T, bool ADD, Norm N, Quant Q, bool PACKED>
__device__ __forceinline__ void norm_loop(const NormArguments& a) {
  __shared__ float scratch[ROW_SCRATCH];
  const NormParameters& p = a.p;
  i64 row = blockIdx.x;
  if (row >= p.rows) {
    if constexpr (Q == NVFP4) pad_scales<BlockTeam>(p, row);
    return;
  }
  using Row = LongRow<T, ADD, N, Q, PACKED>;
  constexpr int E = Row::E;
  Row r(a, row);
  if constexpr (N != NO_NORM) r.statistics(scratch);
  float scale = 1.0f;
  u32 quotient_type = p.quotient_type;
  if constexpr (Q == FP8 || Q == NVFP4) scale = load_as_f32(p.scale, p.scale_type, 0);
  if constexpr (Q == FP8_TOKEN) {
    float largest = 0.0f;
    r.each([&](i64 chunk) {
      float v[E];
      r.load_norm(chunk, v);
      largest = Magnitude::join(largest, largest_magnitude(v));
    });
    scale = fp8_scale(reduce_block<Magnitude>(largest, scratch + 2 * WARP), p.floor);
    quotient_type = TYPE_F32;
    if (threadIdx.x == 0) static_cast<float*>(p.scale_out)[row] = scale;
  }
  Divisor by(scale);
  i64 tiles = scale_tiles(p.columns);
  r.each([&](i64 chunk) {
    float v[E];
    r.load_norm(chunk, v);
    i64 at = r.start + chunk * E;
    if (N != NO_NORM && p.norm) store_chunk<T, PACKED, E>(static_cast<T*>(p.norm) + at, v);
    if constexpr (Q == FP8 || Q == FP8_TOKEN) {
      if constexpr (E >= 4) {
        u32 code[E / 4];
        to_fp8<E>(v, by, quotient_type, code);
        store_fp8<E>(p.q, at, code);
      } else {
        static_cast<u8*>(p.q)[at] = to_e4m3(rounded_quotient(by.divide(v[0]), quotient_type));
      }
    }
    if constexpr (Q == NVFP4) {
      float largest = largest_magnitude(v);
      BlockScale b(largest, scale);
      u64 code = to_fp4<E>(v, b.factor, largest);
      u8* q = static_cast<u8*>(p.q) + at / 2;
      if constexpr (PACKED) {
        *reinterpret_cast<u64*>(q) = code;
      } else {
#pragma unroll
        for (int j = 0; j < E / 2; j++) q[j] = u8(code >> 8 * j);
      }
      static_cast<u8*>(p.scale_out)[swizzled(row, chunk, tiles)] = b.code;
    }
  });
  if constexpr (Q == NVFP4) {
    i64 block = r.chunks + threadIdx.x;
    if (block < tiles * 4) static_cast<u8*>(p.scale_out)[swizzled(row, block, tiles)] = 0;
  }
}
