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
