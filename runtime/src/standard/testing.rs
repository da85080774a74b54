//! Help for the tests of kernels: calls by name, and type rules held against results.

use std::collections::BTreeMap;

use super::{Call, Data, Operand, StandardError, Strings, Value, from_floats, from_ints, lookup, run};
use crate::attr::Real;
use crate::dim::Dim;
use crate::dtype::{DType, TensorType};

/// A call of an operator in a version of the default domain.
pub(super) fn call(op: &str, opset: i64, attrs: &[(&str, Value)]) -> Call {
    Call {
        op: op.to_owned(),
        opset,
        attrs: attrs.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect::<BTreeMap<_, _>>(),
        wanted: vec![true],
        ..Call::default()
    }
}

pub(super) fn ints(v: &[i64]) -> Value {
    Value::Ints(v.to_vec())
}

pub(super) fn text(v: &str) -> Value {
    Value::Text(v.to_owned())
}

pub(super) fn float(v: f64) -> Value {
    Value::Float(Real(v))
}

/// A tensor of floating-point numbers.
pub(super) fn tensor(dtype: DType, shape: &[usize], v: &[f64]) -> Data {
    from_floats(dtype, shape, v.iter().copied()).unwrap()
}

/// Numbers that look random, from -1 to 1.
pub(super) fn noise(dtype: DType, shape: &[usize], seed: u64) -> Data {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % 2001) as f64 / 1000.0 - 1.0
    };
    let n = shape.iter().product();
    let v: Vec<f64> = (0..n).map(|_| next()).collect();
    match dtype.is_float() || dtype.is_minifloat() {
        true => tensor(dtype, shape, &v),
        false => from_ints(dtype, shape, v.iter().map(|v| (v * 9.0) as i128)).unwrap(),
    }
}

/// A vector of indices, axes or extents.
pub(super) fn list(v: &[i64]) -> Data {
    from_ints(DType::I64, &[v.len()], v.iter().map(|&v| i128::from(v))).unwrap()
}

/// A scalar integer.
pub(super) fn scalar(v: i64) -> Data {
    from_ints(DType::I64, &[], [i128::from(v)]).unwrap()
}

/// A tensor of strings.
pub(super) fn words(shape: &[usize], v: &[&str]) -> Data {
    Strings { shape: shape.to_vec(), values: v.iter().map(|s| (*s).to_owned()).collect() }.into()
}

/// The elements of a tensor of numbers.
pub(super) fn values(d: &Data) -> Vec<f64> {
    match d {
        Data::Tensor(t) => t.to_f64(),
        other => panic!("{} has no numbers", other.describe()),
    }
}

/// The extents of a tensor.
pub(super) fn shape(d: &Data) -> Vec<usize> {
    match d {
        Data::Tensor(t) => t.shape.clone(),
        Data::Strings(s) => s.shape.clone(),
        other => panic!("{} has no shape", other.describe()),
    }
}

/// What is known about a value: its constant shape and, where it is a small vector of integers, its elements.
fn known(d: &Data, with_values: bool) -> (TensorType, Option<Vec<Dim>>) {
    match d {
        Data::Tensor(t) => {
            let ty = TensorType::new(t.dtype, t.shape.iter().map(|&d| Dim::from(d as i64)).collect::<Vec<_>>());
            let small = with_values && t.dtype == DType::I64 && t.shape.len() <= 1;
            (ty, small.then(|| t.to_f64().iter().map(|&v| Dim::from(v as i64)).collect()))
        }
        _ => (TensorType::new(DType::Opaque, vec![]), None),
    }
}

/// Computes a call, and checks that the type rule promises nothing that the results do not keep: with the values of operands
/// known, and without.
pub(super) fn compute(c: &Call, operands: &[Option<Data>]) -> Result<Vec<Data>, StandardError> {
    let mut c = c.clone();
    c.present = operands.iter().map(Option::is_some).collect();
    let present: Vec<&Data> = operands.iter().flatten().collect();
    let results = run(&c, &present.iter().map(|d| d.arg()).collect::<Vec<_>>())?;
    let infer = lookup(&c.domain, &c.op).unwrap().infer;
    for with_values in [true, false] {
        let types: Vec<_> = operands.iter().map(|o| o.as_ref().map(|d| known(d, with_values))).collect();
        let views: Vec<Option<Operand<'_>>> =
            types.iter().map(|t| t.as_ref().map(|(ty, v)| Operand { ty, values: v.as_deref() })).collect();
        let rules = infer(&c, &views).unwrap_or_else(|e| panic!("the type rule of {}: {e}", c.title()));
        let wanted = c.wanted.iter().zip(&rules).filter(|(w, _)| **w).map(|(_, r)| r);
        for (d, rule) in results.iter().zip(wanted) {
            assert_eq!(d.dtype(), rule.dtype, "{}: the element type", c.title());
            let Data::Tensor(t) = d else { continue };
            let Some(promised) = &rule.shape else { continue };
            assert_eq!(promised.len(), t.shape.len(), "{}: rank of {} against {promised:?}", c.title(), d.describe());
            for (p, &n) in promised.iter().zip(&t.shape) {
                if let Some(p) = p {
                    assert_eq!(p.as_const(), Some(n as i64), "{}: {} against {promised:?}", c.title(), d.describe());
                }
            }
        }
    }
    Ok(results)
}

/// The only result of a call.
pub(super) fn one(c: &Call, operands: &[Data]) -> Data {
    let operands: Vec<Option<Data>> = operands.iter().cloned().map(Some).collect();
    compute(c, &operands).unwrap_or_else(|e| panic!("{e}")).remove(0)
}

/// The message of a call that cannot be computed.
pub(super) fn error(c: &Call, operands: &[Data]) -> String {
    let operands: Vec<Option<Data>> = operands.iter().cloned().map(Some).collect();
    match compute(c, &operands) {
        Err(e) => e.message,
        Ok(r) => panic!("{} gave {}", c.title(), r[0].describe()),
    }
}

/// Asserts that two lists of numbers are equal but for rounding.
pub(super) fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= 1e-5 * (1.0 + y.abs()), "element {i}: {x} against {y}");
    }
}
