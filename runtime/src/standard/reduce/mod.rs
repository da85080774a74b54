//! Reductions, soft-max and its kin, norms, selections of the largest, losses.

mod fold;
mod loss;
mod norm;
mod select;
#[cfg(test)]
mod tests;
mod types;

use super::{Entry, row};

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[
    row("ArgMax", fold::arg_max, types::position),
    row("ArgMin", fold::arg_min, types::position),
    row("BatchNormalization", norm::batch, types::batch_norm),
    row("Det", loss::det, types::det),
    row("GroupNormalization", norm::group, types::group_norm),
    row("Hardmax", select::hardmax, types::float),
    row("InstanceNormalization", norm::instance, types::instance_norm),
    row("LRN", norm::local_response, types::local_response),
    row("LayerNormalization", norm::layer, types::layer_norm),
    row("LogSoftmax", select::log_softmax, types::float),
    row("LpNormalization", select::lp_normalization, types::float),
    row("MeanVarianceNormalization", norm::mean_variance, types::float),
    row("NegativeLogLikelihoodLoss", loss::negative_log_likelihood, types::losses),
    row("RMSNormalization", norm::rms, types::rms_norm),
    row("ReduceL1", fold::l1, types::reduce),
    row("ReduceL2", fold::l2, types::reduce),
    row("ReduceLogSum", fold::log_sum, types::reduce),
    row("ReduceLogSumExp", fold::log_sum_exp, types::reduce),
    row("ReduceMax", fold::max, types::reduce),
    row("ReduceMean", fold::mean, types::reduce),
    row("ReduceMin", fold::min, types::reduce),
    row("ReduceProd", fold::prod, types::reduce),
    row("ReduceSum", fold::sum, types::reduce),
    row("ReduceSumSquare", fold::sum_square, types::reduce),
    row("Softmax", select::softmax, types::float),
    row("SoftmaxCrossEntropyLoss", loss::softmax_cross_entropy, types::losses),
    row("TopK", select::top_k, types::top_k),
];
