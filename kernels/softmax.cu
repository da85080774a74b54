// softmax: exp(x - max) / sum along an axis, in f32.
//
// softmax_rows: the axis is the last one; the row lies in registers, K units of V elements a thread. A warp owns a row, or a block
// does where WHOLE_BLOCK. softmax_long: a block owns a row, reads it twice. softmax_columns: x is [outer, n, inner]; a thread owns one
// column of n elements, neighbouring threads have neighbouring columns, and x is read twice.
//
// A row without an element above -infinity is NaN, and zeros where `safe`; a row with NaN is NaN.
#include "common.cuh"

struct SoftmaxArguments {
  const void* x;
  void* y;
  i64 rows;
  i64 n;
  i64 inner;
  i64 safe;
};

// A factor for exp(x - max). The sum is at least 1 where an element is above -infinity, else 0; it may be NaN.
__device__ __forceinline__ float softmax_scale(float sum, i64 safe) { return safe && sum == 0.0f ? 0.0f : 1.0f / sum; }

template <class T, int V>
__device__ __forceinline__ void load_unit(const T* p, float (&out)[V]) {
  if constexpr (V == 1) {
    out[0] = to_f32(*p);
  } else {
    unpack<T>(load_pack(p), out);
  }
}

template <class T, int V>
__device__ __forceinline__ void store_unit(T* p, const float (&v)[V]) {
  if constexpr (V == 1) {
    *p = from_f32<T>(v[0]);
  } else {
    store_pack(p, pack<T>(v));
  }
}

template <class T, int V, int K, bool WHOLE_BLOCK>
__device__ __forceinline__ void softmax_rows(const SoftmaxArguments& a) {
  __shared__ float scratch[2][WARP];
  int lane = int(threadIdx.x) % WARP, width = WHOLE_BLOCK ? int(blockDim.x) : WARP;
  int first = WHOLE_BLOCK ? int(threadIdx.x) : lane;
  i64 row = WHOLE_BLOCK ? i64(blockIdx.x) : i64(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (row >= a.rows) return;
  const T* x = static_cast<const T*>(a.x) + row * a.n;
  T* y = static_cast<T*>(a.y) + row * a.n;
  float v[K][V];
#pragma unroll
  for (int k = 0; k < K; k++) {
    int i = (k * width + first) * V;
    if (i < a.n) {
      load_unit<T, V>(x + i, v[k]);
    } else {
#pragma unroll
      for (int j = 0; j < V; j++) v[k][j] = -__uint_as_float(0x7f800000u);
    }
  }
  float largest = Largest::EMPTY;
#pragma unroll
  for (int k = 0; k < K; k++) {
#pragma unroll
    for (int j = 0; j < V; j++) largest = fmaxf(largest, v[k][j]);
  }
  largest = WHOLE_BLOCK ? reduce_block<Largest>(largest, scratch[0]) : reduce_warp<Largest>(largest);
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < K; k++) {
#pragma unroll
    for (int j = 0; j < V; j++) {
      v[k][j] = expf(v[k][j] - largest);
      sum += v[k][j];
    }
  }
  sum = WHOLE_BLOCK ? reduce_block<Sum>(sum, scratch[1]) : reduce_warp<Sum>(sum);
  float scale = softmax_scale(sum, a.safe);
#pragma unroll
  for (int k = 0; k < K; k++) {
    int i = (k * width + first) * V;
    if (i >= a.n) break;
#pragma unroll
    for (int j = 0; j < V; j++) v[k][j] *= scale;
    store_unit<T, V>(y + i, v[k]);
  }
}

// The largest element so far, and the sum of exp(x - largest).
struct Running {
  float largest = Largest::EMPTY;
  float sum = 0.0f;

  template <int V>
  __device__ __forceinline__ void take(const float (&v)[V]) {
    float top = largest;
#pragma unroll
    for (int j = 0; j < V; j++) top = fmaxf(top, v[j]);
    sum *= expf(largest - top);
#pragma unroll
    for (int j = 0; j < V; j++) sum += expf(v[j] - top);
    largest = top;
  }
};

template <class T, int V>
__device__ __forceinline__ void softmax_long(const SoftmaxArguments& a) {
  __shared__ float scratch[2][WARP];
  i64 row = blockIdx.x;
  if (row >= a.rows) return;
  const T* x = static_cast<const T*>(a.x) + row * a.n;
  T* y = static_cast<T*>(a.y) + row * a.n;
  i64 step = i64(blockDim.x) * V;
  Running run;
  for (i64 i = i64(threadIdx.x) * V; i < a.n; i += step) {
    float v[V];
    load_unit<T, V>(x + i, v);
    run.take(v);
  }
  float largest = reduce_block<Largest>(run.largest, scratch[0]);
  float sum = reduce_block<Sum>(run.sum * expf(run.largest - largest), scratch[1]);
  float scale = softmax_scale(sum, a.safe);
  for (i64 i = i64(threadIdx.x) * V; i < a.n; i += step) {
    float v[V];
    load_unit<T, V>(x + i, v);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = expf(v[j] - largest) * scale;
    store_unit<T, V>(y + i, v);
  }
}

template <class T>
__device__ __forceinline__ void softmax_columns(const SoftmaxArguments& a) {
  i64 column = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= a.rows) return;
  i64 outer = column / a.inner;
  i64 start = outer * a.n * a.inner + (column - outer * a.inner);
  const T* x = static_cast<const T*>(a.x) + start;
  T* y = static_cast<T*>(a.y) + start;
  constexpr int U = 4;
  Running run;
  i64 i = 0;
  for (; i + U <= a.n; i += U) {
    float v[U];
#pragma unroll
    for (int u = 0; u < U; u++) v[u] = to_f32(x[(i + u) * a.inner]);
    run.take(v);
  }
  for (; i < a.n; i++) {
    float v[1] = {to_f32(x[i * a.inner])};
    run.take(v);
  }
  float scale = softmax_scale(run.sum, a.safe);
#pragma unroll 4
  for (i = 0; i < a.n; i++) y[i * a.inner] = from_f32<T>(expf(to_f32(x[i * a.inner]) - run.largest) * scale);
}
