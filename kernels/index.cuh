// Positions in tensors of up to eight axes: a linear index is taken apart by exact division through multiplication.
#pragma once
#include "common.cuh"

constexpr int MAX_AXES = 8;

// An extent d below 2^31 with shift = 31 + ceil(log2(d)) and multiplier = ceil(2^shift / d), so that (n * multiplier) >> shift is
// n / d for every n below 2^31. For longer extents the multiplier is 0.
struct Axis {
  i64 extent;
  u32 multiplier;
  u32 shift;
};

// n / axis.extent for n >= 0.
__device__ __forceinline__ i64 divide(i64 n, const Axis& axis) {
  if (n < 0x80000000ll) return i64(u64(u32(n)) * axis.multiplier >> axis.shift);
  return n / axis.extent;
}
