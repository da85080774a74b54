// rotary: rotates pairs of the last axis by the angles of cos and sin.
//
// x is [lead axes, width], cos and sin broadcast to [lead axes, half], each with an element type of its own. Of each row the first
// 2 * half elements are rotated and the rest is copied. Pairs are (j, j + half), or (2 j, 2 j + 1) where INTERLEAVED. One of the lead
// axes may be `heads`, along which cos and sin do not change: a thread loads them once for R heads. A unit is V pairs, or 2 V elements
// that are copied; a block owns blockDim.x neighbouring units of R heads each. Arithmetic is in f32.
#include "index.cuh"

// Offsets are in elements. A position is taken apart into (group of heads, outer axes, unit of the row).
struct RotaryArguments {
  const void* x;
  const void* cos;
  const void* sin;
  void* y;
  Axis per_row;
  Axis axis[MAX_AXES];
  i64 step[MAX_AXES];
  i64 cos_step[MAX_AXES];
  i64 sin_step[MAX_AXES];
  i64 rank;
  i64 work;
  i64 heads;
  i64 head_step;
  i64 half;
  i64 width;
  i64 cos_last;
  i64 sin_last;
  u32 cos_type;
  u32 sin_type;
};

// V elements, or one.
template <class T, int V>
struct Part {
  T v;
  __device__ __forceinline__ void load(const T* p) { v = *p; }
  __device__ __forceinline__ void store(T* p) const { *p = v; }
  __device__ __forceinline__ void get(float (&out)[V]) const { out[0] = to_f32(v); }
  __device__ __forceinline__ void set(const float (&in)[V]) { v = from_f32<T>(in[0]); }
};

template <class T>
struct Part<T, PER_PACK<T>> {
  Pack v;
  __device__ __forceinline__ void load(const T* p) { v = load_pack(p); }
  __device__ __forceinline__ void store(T* p) const { store_pack(p, v); }
  __device__ __forceinline__ void get(float (&out)[PER_PACK<T>]) const { unpack<T>(v, out); }
  __device__ __forceinline__ void set(const float (&in)[PER_PACK<T>]) { v = pack<T>(in); }
};

template <class T, int V, int R, bool INTERLEAVED>
__device__ __forceinline__ void rotate(const RotaryArguments& a) {
  i64 rest = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (rest >= a.work) return;
  i64 outer = divide(rest, a.per_row);
  i64 unit = rest - outer * a.per_row.extent;
  i64 at = 0, cos_at = 0, sin_at = 0;
#pragma unroll 1
  for (int d = int(a.rank) - 1; d >= 0; d--) {
    i64 next = divide(outer, a.axis[d]);
    i64 i = outer - next * a.axis[d].extent;
    at += i * a.step[d];
    cos_at += i * a.cos_step[d];
    sin_at += i * a.sin_step[d];
    outer = next;
  }
  i64 head = outer * R;
  i64 j = unit * V;
  bool rotated = j < a.half;
  // Where the two parts of the unit lie in a row. The last unit that is copied may have one part only.
  i64 low = rotated && !INTERLEAVED ? j : 2 * j;
  i64 high = rotated && !INTERLEAVED ? j + a.half : low + V;
  bool both = high < a.width;
  const T* x = static_cast<const T*>(a.x) + at;
  T* y = static_cast<T*>(a.y) + at;
  Part<T, V> p[R], q[R];
#pragma unroll
  for (int r = 0; r < R; r++) {
    if (head + r >= a.heads) break;
    i64 row = (head + r) * a.head_step;
    p[r].load(x + row + low);
    if (both) q[r].load(x + row + high);
  }
  float c[V], s[V];
  if (rotated) {
    if constexpr (V > 1) {
      load_parameter<T>(a.cos, a.cos_type, cos_at + j, c);
      load_parameter<T>(a.sin, a.sin_type, sin_at + j, s);
    } else {
      c[0] = load_as_f32(a.cos, a.cos_type, cos_at + j * a.cos_last);
      s[0] = load_as_f32(a.sin, a.sin_type, sin_at + j * a.sin_last);
    }
  }
#pragma unroll
  for (int r = 0; r < R; r++) {
    if (head + r >= a.heads) return;
    i64 row = (head + r) * a.head_step;
    if (rotated) {
      float u[V], v[V];
      p[r].get(u);
      q[r].get(v);
#pragma unroll
      for (int k = 0; k < V; k++) {
        if constexpr (INTERLEAVED && V > 1) {
          // The two parts are 2 V elements in a row: pair k is elements 2 k and 2 k + 1 of them.
          if (k < V / 2) {
            float first = u[2 * k] * c[k] - u[2 * k + 1] * s[k];
            u[2 * k + 1] = u[2 * k + 1] * c[k] + u[2 * k] * s[k];
            u[2 * k] = first;
          } else {
            int i = 2 * k - V;
            float first = v[i] * c[k] - v[i + 1] * s[k];
            v[i + 1] = v[i + 1] * c[k] + v[i] * s[k];
            v[i] = first;
          }
        } else {
          float first = u[k] * c[k] - v[k] * s[k];
          v[k] = v[k] * c[k] + u[k] * s[k];
          u[k] = first;
        }
      }
      p[r].set(u);
      q[r].set(v);
    }
    p[r].store(y + row + low);
    if (both) q[r].store(y + row + high);
  }
}
