//! Calls of operators in unit tests.

use super::{Arg, Call, Data, Operand, Partial, StandardError, Strings, Value, from_floats, from_ints, lookup, run};
use crate::attr::Real;
use crate::dim::Dim;
use crate::dtype::{DType, TensorType};

/// A call with attributes, of opset 25 where no other is set.
pub(super) fn call(op: &str, attrs: &[(&str, Value)]) -> Call {
    let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    Call { op: op.to_owned(), opset: 25, attrs, ..Call::default() }
}

/// The same call of another opset.
pub(super) fn at(opset: i64, call: Call) -> Call {
    Call { opset, ..call }
}

pub(super) fn int(v: i64) -> Value {
    Value::Int(v)
}

pub(super) fn float(v: f64) -> Value {
    Value::Float(Real(v))
}

pub(super) fn text(v: &str) -> Value {
    Value::Text(v.to_owned())
}

pub(super) fn f(dtype: DType, shape: &[usize], v: &[f64]) -> Data {
    from_floats(dtype, shape, v.iter().copied()).unwrap()
}

pub(super) fn f32s(shape: &[usize], v: &[f64]) -> Data {
    f(DType::F32, shape, v)
}

pub(super) fn i(dtype: DType, shape: &[usize], v: &[i128]) -> Data {
    from_ints(dtype, shape, v.iter().copied()).unwrap()
}

pub(super) fn strings(shape: &[usize], v: &[&str]) -> Data {
    Strings { shape: shape.to_vec(), values: v.iter().map(|s| (*s).to_owned()).collect() }.into()
}

/// All of the first `n` results.
pub(super) fn results(call: &Call, operands: &[&Data], n: usize) -> Result<Vec<Data>, StandardError> {
    let call = Call { present: vec![true; operands.len()], wanted: vec![true; n], ..call.clone() };
    let args: Vec<Arg<'_>> = operands.iter().map(|d| d.arg()).collect();
    run(&call, &args)
}

/// The first result.
pub(super) fn one(call: &Call, operands: &[&Data]) -> Data {
    results(call, operands, 1).unwrap().remove(0)
}

pub(super) fn error(call: &Call, operands: &[&Data]) -> String {
    results(call, operands, 1).unwrap_err().to_string()
}

/// The numbers of a tensor.
pub(super) fn numbers(d: &Data) -> Vec<f64> {
    match d {
        Data::Tensor(t) => t.to_f64(),
        other => panic!("{}", other.describe()),
    }
}

/// Types of the results for operands of some types, `?` in place of an extent for one that is not known.
pub(super) fn types(call: &Call, operands: &[(DType, &[&str])]) -> Result<Vec<Partial>, StandardError> {
    let parse = |s: &&str| Dim::parse(s).unwrap();
    let all: Vec<TensorType> =
        operands.iter().map(|(d, s)| TensorType::new(*d, s.iter().map(parse).collect::<Vec<_>>())).collect();
    let views: Vec<Option<Operand<'_>>> = all.iter().map(|ty| Some(Operand { ty, values: None })).collect();
    (lookup("", &call.op).unwrap().infer)(call, &views)
}

/// The form of a type in tests: `f32[n, ?, 2]`.
pub(super) fn show(p: &Partial) -> String {
    let extent = |d: &Option<Dim>| d.as_ref().map_or("?".to_owned(), Dim::to_string);
    match &p.shape {
        None => format!("{}[..]", p.dtype),
        Some(s) => format!("{}[{}]", p.dtype, s.iter().map(extent).collect::<Vec<_>>().join(", ")),
    }
}
