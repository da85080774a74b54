//! Operators that move, select or build elements where shapes or indices depend on data, and products of matrices.

mod build;
mod einsum;
mod gather;
mod matmul;
mod moved;
mod pad;
mod scatter;
mod select;
mod shape;
mod slice;
#[cfg(test)]
mod tests;
mod unique;

pub(super) use matmul::{Numbers, multiply, parallelism};
pub(super) use moved::{Source, carried, dims, extents, unknown};

use super::{Entry, infer, row};

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[
    row("CenterCropPad", pad::center_crop_pad, pad::center_crop_pad_type),
    row("Col2Im", select::col2im, select::col2im_type),
    row("Compress", gather::compress, gather::compress_type),
    row("Concat", slice::concat, slice::concat_type),
    row("ConstantOfShape", build::constant_of_shape, build::constant_of_shape_type),
    row("DepthToSpace", select::depth_to_space, select::depth_to_space_type),
    row("Einsum", einsum::einsum, einsum::einsum_type),
    row("Expand", shape::expand, shape::expand_type),
    row("EyeLike", build::eye_like, build::eye_like_type),
    row("Flatten", shape::flatten, shape::flatten_type),
    row("Gather", gather::gather, gather::gather_type),
    row("GatherElements", gather::gather_elements, gather::gather_elements_type),
    row("GatherND", gather::gather_nd, gather::gather_nd_type),
    row("Gemm", matmul::gemm, matmul::gemm_type),
    row("MatMul", matmul::matmul, matmul::matmul_type),
    row("NonZero", unique::non_zero, unique::non_zero_type),
    row("OneHot", build::one_hot, build::one_hot_type),
    row("Pad", pad::pad, pad::pad_type),
    row("Range", build::range, build::range_type),
    row("Reshape", shape::reshape, shape::reshape_type),
    row("ReverseSequence", select::reverse_sequence, infer::same),
    row("Scatter", scatter::scatter_elements, infer::same),
    row("ScatterElements", scatter::scatter_elements, infer::same),
    row("ScatterND", scatter::scatter_nd, infer::same),
    row("Shape", shape::shape, shape::shape_type),
    row("Size", shape::size, shape::size_type),
    row("Slice", slice::slice, slice::slice_type),
    row("SpaceToDepth", select::space_to_depth, select::space_to_depth_type),
    row("Split", slice::split, slice::split_type),
    row("Squeeze", shape::squeeze, shape::squeeze_type),
    row("TensorScatter", scatter::tensor_scatter, infer::same),
    row("Tile", slice::tile, slice::tile_type),
    row("Transpose", shape::transpose, shape::transpose_type),
    row("Trilu", select::trilu, infer::same),
    row("Unique", unique::unique, unique::unique_type),
    row("Unsqueeze", shape::unsqueeze, shape::unsqueeze_type),
];
