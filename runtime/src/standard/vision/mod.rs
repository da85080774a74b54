//! Convolution, pooling, resampling and what detectors need.

mod conv;
mod detect;
mod grid;
mod pool;
mod resize;
#[cfg(test)]
mod tests;
mod window;

use super::{Entry, row};

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[
    row("AffineGrid", grid::affine_grid, grid::affine_grid_type),
    row("AveragePool", pool::average_pool, pool::pool_type),
    row("Conv", conv::conv, conv::conv_type),
    row("ConvInteger", conv::conv_integer, conv::conv_integer_type),
    row("ConvTranspose", conv::conv_transpose, conv::conv_transpose_type),
    row("DeformConv", detect::deform_conv, detect::deform_conv_type),
    row("GlobalAveragePool", pool::global_average_pool, pool::global_type),
    row("GlobalLpPool", pool::global_lp_pool, pool::global_type),
    row("GlobalMaxPool", pool::global_max_pool, pool::global_type),
    row("GridSample", grid::grid_sample, grid::grid_sample_type),
    row("LpPool", pool::lp_pool, pool::pool_type),
    row("MaxPool", pool::max_pool, pool::pool_type),
    row("MaxRoiPool", detect::max_roi_pool, detect::max_roi_pool_type),
    row("MaxUnpool", pool::max_unpool, pool::max_unpool_type),
    row("NonMaxSuppression", detect::non_max_suppression, detect::non_max_suppression_type),
    row("QLinearConv", conv::qlinear_conv, conv::qlinear_conv_type),
    row("Resize", resize::resize, resize::resize_type),
    row("RoiAlign", detect::roi_align, detect::roi_align_type),
    row("Upsample", resize::resize, resize::resize_type),
];
