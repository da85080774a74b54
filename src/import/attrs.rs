//! Typed access to the attributes of an ONNX node.

use super::context::{OpError, Result};
use super::proto::{AttributeProto, NodeProto, TensorProto};

fn find<'a>(n: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    n.attribute.iter().find(|a| a.name() == name)
}

/// An integer attribute.
pub(super) fn int(n: &NodeProto, name: &str) -> Option<i64> {
    find(n, name).map(AttributeProto::i)
}

/// An integer attribute that must be present.
pub(super) fn required_int(n: &NodeProto, name: &str) -> Result<i64> {
    int(n, name).ok_or_else(|| OpError::from(format!("attribute `{name}` is missing")))
}

/// A flag, stored as an integer.
pub(super) fn flag(n: &NodeProto, name: &str, default: bool) -> bool {
    int(n, name).map_or(default, |v| v != 0)
}

/// The attributes that are flags, whatever the operator.
const FLAGS: &[&str] = &[
    "align_corners",
    "allowzero",
    "antialias",
    "causal",
    "ceil_mode",
    "center_point_box",
    "count_include_pad",
    "detect_negative",
    "detect_positive",
    "do_rotary",
    "exclude_outside",
    "exclusive",
    "fmod",
    "input_forget",
    "interleaved",
    "inverse",
    "is_case_sensitive",
    "is_causal",
    "keepdims",
    "largest",
    "linear_before_reset",
    "new_axis",
    "noop_with_empty_axes",
    "normalize_routing_weights",
    "onesided",
    "periodic",
    "reverse",
    "saturate",
    "select_last_index",
    "sliding_window_cache",
    "sorted",
    "spatial",
    "training_mode",
    "transA",
    "transB",
    "unidirectional",
    "upper",
    "use_sparse_mixer",
];

/// Refuses flags that are neither 0 nor 1: some runtimes take them for set, others do not.
pub(super) fn check_flags(n: &NodeProto) -> Result<()> {
    for name in FLAGS {
        if let Some(v) = int(n, name).filter(|v| !(0..=1).contains(v)) {
            return Err(OpError::from(format!("attribute `{name}` is {v}; it must be 0 or 1")));
        }
    }
    Ok(())
}

/// A floating-point attribute.
pub(super) fn float(n: &NodeProto, name: &str) -> Option<f32> {
    find(n, name).map(AttributeProto::f)
}

/// A list of integers.
pub(super) fn ints(n: &NodeProto, name: &str) -> Option<Vec<i64>> {
    find(n, name).map(|a| a.ints.clone())
}

/// A list of numbers.
pub(super) fn floats(n: &NodeProto, name: &str) -> Option<Vec<f32>> {
    find(n, name).map(|a| a.floats.clone())
}

/// A text attribute.
pub(super) fn text(n: &NodeProto, name: &str) -> Option<String> {
    find(n, name).map(|a| String::from_utf8_lossy(a.s()).into_owned())
}

/// A tensor attribute.
pub(super) fn tensor<'a>(n: &'a NodeProto, name: &str) -> Option<&'a TensorProto> {
    find(n, name).and_then(|a| a.t.as_ref())
}
