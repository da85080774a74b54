// Positions in tensors of up to eight axes: a linear index is taken apart by exact division through multiplication.
#pragma once
#include "common.cuh"

constexpr int MAX_AXES = 8;

// An extent d with shift = ceil(log2(d)) and multiplier = ceil(2^(63 + shift) / d), so that the product with 2 n, shifted right by
// 64 + shift bits, is n / d for every n from 0 to 2^63 - 1.
struct Axis {
  i64 extent;
  u64 multiplier;
  i64 shift;
};

// n / axis.extent for n >= 0.
__device__ __forceinline__ i64 divide(i64 n, const Axis& axis) { return i64(__umul64hi(u64(n) << 1, axis.multiplier) >> axis.shift); }
