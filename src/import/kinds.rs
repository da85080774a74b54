//! The types of ONNX values, tensors and others.

use sinter_runtime::standard::{Extents, Kind, Partial};

use super::proto::{TensorShapeProto, TypeProto, ValueInfoProto, type_proto::Value};
use super::weights;
use crate::ir::DType;

/// ONNX's number of the element type of strings.
pub(crate) const STRING: i32 = 8;

/// What the model says that a value is. Ranks are believed, extents are not.
pub(super) fn declared(v: &ValueInfoProto) -> Option<Kind> {
    v.r#type.as_ref().and_then(kind)
}

/// What a type says, extents aside; `None` where the kind of value is not supported.
pub(super) fn kind(t: &TypeProto) -> Option<Kind> {
    let rank = |s: &Option<TensorShapeProto>| -> Extents { s.as_ref().map(|s| vec![None; s.dim.len()]) };
    match t.value.as_ref()? {
        Value::TensorType(t) if t.elem_type() == STRING => Some(Kind::Strings(rank(&t.shape))),
        Value::TensorType(t) => {
            Some(Kind::Tensor(Partial { dtype: weights::dtype(t.elem_type())?, shape: rank(&t.shape) }))
        }
        Value::SequenceType(s) => Some(Kind::Sequence(Box::new(kind(s.elem_type.as_deref()?)?))),
        Value::OptionalType(o) => Some(Kind::Optional(Box::new(kind(o.elem_type.as_deref()?)?))),
        _ => None,
    }
}

/// The kind of an input that is no tensor of numbers.
pub(super) fn opaque(v: &ValueInfoProto) -> Option<Kind> {
    declared(v).filter(|k| k.dtype() == Some(DType::Opaque))
}

/// A tensor of an element type given by number, of no known rank.
pub(super) fn element(code: i64) -> Option<Kind> {
    let code = i32::try_from(code).ok()?;
    if code == STRING {
        return Some(Kind::Strings(None));
    }
    Some(Kind::Tensor(Partial { dtype: weights::dtype(code)?, shape: None }))
}
