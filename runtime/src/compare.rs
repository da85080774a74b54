//! Compares results with expected values, and finds the first value that went wrong.

use std::collections::BTreeMap;

use crate::dtype::DType;
use crate::standard::Data;
use crate::tensor::Tensor;

/// How far a value may be from what is expected: |a - b| <= abs + rel * |b|.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Its name in reports.
    pub name: &'static str,
    /// Absolute part.
    pub abs: f64,
    /// Part relative to the expected value.
    pub rel: f64,
}

impl Tolerance {
    /// Equal values only.
    pub const EXACT: Tolerance = Tolerance { name: "exact", abs: 0.0, rel: 0.0 };
    /// For f64 results.
    pub const F64: Tolerance = Tolerance { name: "f64", abs: 1e-9, rel: 1e-9 };
    /// For f32 results.
    pub const F32: Tolerance = Tolerance { name: "f32", abs: 1e-4, rel: 1e-4 };
    /// For f16 results.
    pub const F16: Tolerance = Tolerance { name: "f16", abs: 2e-2, rel: 2e-2 };
    /// For bf16 results.
    pub const BF16: Tolerance = Tolerance { name: "bf16", abs: 1e-1, rel: 5e-2 };
    /// For f8e4m3fn results: one step, for sums in another order may round to the neighbour.
    pub const F8E4M3FN: Tolerance = Tolerance { name: "f8e4m3fn", abs: 0.001_953_125, rel: 0.125 };
    /// For f4e2m1 results: one step.
    pub const F4E2M1: Tolerance = Tolerance { name: "f4e2m1", abs: 0.7, rel: 0.34 };

    /// The step of the ladder for an element type.
    pub fn of(dtype: DType) -> Tolerance {
        match dtype {
            DType::F64 => Tolerance::F64,
            DType::F32 => Tolerance::F32,
            DType::F16 => Tolerance::F16,
            DType::BF16 => Tolerance::BF16,
            DType::F8E4M3FN => Tolerance::F8E4M3FN,
            DType::F4E2M1 => Tolerance::F4E2M1,
            _ => Tolerance::EXACT,
        }
    }
}

/// The outcome of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Whether every element is within the tolerance.
    pub pass: bool,
    /// Largest absolute difference; infinite where only one side is a number or finite.
    pub max_abs: f64,
    /// Largest difference relative to the expected value, over expected values other than zero.
    pub max_rel: f64,
    /// Index of the element that exceeds the tolerance most, or differs most where none does.
    pub worst: Option<Vec<usize>>,
    /// Why the tensors cannot be compared at all.
    pub reason: Option<String>,
}

/// Compares element by element. NaN equals NaN, and an infinity equals the same infinity.
pub fn compare(actual: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Comparison {
    let mut c = Comparison { pass: true, max_abs: 0.0, max_rel: 0.0, worst: None, reason: None };
    if (actual.dtype, &actual.shape) != (expected.dtype, &expected.shape) {
        c.pass = false;
        (c.max_abs, c.max_rel) = (f64::INFINITY, f64::INFINITY);
        let (a, b) = (actual, expected);
        c.reason = Some(format!("expected {}{:?}, got {}{:?}", b.dtype, b.shape, a.dtype, a.shape));
        return c;
    }
    if !actual.dtype.is_float() && actual.bytes() == expected.bytes() {
        return c;
    }
    let size = actual.dtype.size();
    let inexact = actual.dtype.is_float() || actual.dtype.is_quantised();
    let pairs = actual.bytes().chunks_exact(size).zip(expected.bytes().chunks_exact(size));
    let mut worst = (f64::NEG_INFINITY, None);
    for (i, (x, y)) in pairs.enumerate() {
        let (a, b) = (crate::dtype::element_f64(actual.dtype, x), crate::dtype::element_f64(actual.dtype, y));
        if x == y || (inexact && a == b) || (a.is_nan() && b.is_nan()) {
            continue;
        }
        // Integers beyond 2^53 may differ although they are equal as `f64`.
        let diff = if inexact { (a - b).abs() } else { (a - b).abs().max(1.0) };
        let diff = if diff.is_nan() || a.is_infinite() || b.is_infinite() { f64::INFINITY } else { diff };
        c.max_abs = c.max_abs.max(diff);
        if b != 0.0 {
            c.max_rel = c.max_rel.max(if b.is_finite() { diff / b.abs() } else { f64::INFINITY });
        }
        let allowed = tolerance.abs + tolerance.rel * b.abs();
        let ok = diff.is_finite() && diff <= allowed;
        c.pass &= ok;
        let excess = if diff.is_finite() { diff - allowed } else { f64::INFINITY };
        if worst.1.is_none() || excess > worst.0 {
            worst = (excess, Some(i));
        }
    }
    c.worst = worst.1.map(|i| unravel(i, &actual.shape));
    c
}

/// Compares values of any kind: tensors of numbers within a tolerance for their element type, all else exactly. Sequences are
/// compared element by element.
pub fn compare_data(actual: &Data, expected: &Data, tolerance: &dyn Fn(&Tensor) -> Tolerance) -> Comparison {
    let differs = |reason: String| Comparison {
        pass: false,
        max_abs: f64::INFINITY,
        max_rel: f64::INFINITY,
        worst: None,
        reason: Some(reason),
    };
    let equal = Comparison { pass: true, max_abs: 0.0, max_rel: 0.0, worst: None, reason: None };
    match (actual, expected) {
        (Data::Tensor(a), Data::Tensor(b)) => compare(a, b, tolerance(a)),
        (Data::Strings(a), Data::Strings(b)) if a.shape == b.shape => {
            match a.values.iter().zip(&b.values).position(|(x, y)| x != y) {
                None => equal,
                Some(i) => Comparison {
                    worst: Some(unravel(i, &a.shape)),
                    ..differs(format!(
                        "expected {:?} at {:?}, got {:?}",
                        b.values[i],
                        unravel(i, &a.shape),
                        a.values[i]
                    ))
                },
            }
        }
        (Data::Optional(None), Data::Optional(None)) => equal,
        (Data::Optional(Some(a)), Data::Optional(Some(b))) => compare_data(a, b, tolerance),
        (Data::Sequence(a), Data::Sequence(b)) if a.len() == b.len() => {
            let mut worst = equal;
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                let c = compare_data(x, y, tolerance);
                worst.max_abs = worst.max_abs.max(c.max_abs);
                worst.max_rel = worst.max_rel.max(c.max_rel);
                if !c.pass && worst.pass {
                    worst.pass = false;
                    let why = c.reason.unwrap_or_else(|| {
                        format!("max |difference| {:.3e} at {:?}", c.max_abs, c.worst.clone().unwrap_or_default())
                    });
                    worst.reason = Some(format!("element {i}: {why}"));
                    worst.worst = c.worst;
                }
            }
            worst
        }
        // A value stands for an optional one that has it.
        (Data::Optional(Some(a)), b) => compare_data(a, b, tolerance),
        (a, Data::Optional(Some(b))) => compare_data(a, b, tolerance),
        (a, b) => differs(format!("expected {}, got {}", b.describe(), a.describe())),
    }
}

/// The index of element `i` in row-major order.
pub fn unravel(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (x, &d) in index.iter_mut().zip(shape).rev() {
        *x = i.checked_rem(d).unwrap_or(0);
        i = i.checked_div(d).unwrap_or(0);
    }
    index
}

/// The first value in `order` that both traces have and that differs, with the difference.
pub fn bisect<'a>(
    actual: &BTreeMap<String, Tensor>,
    expected: &BTreeMap<String, Tensor>,
    order: impl IntoIterator<Item = &'a str>,
) -> Option<(&'a str, Comparison)> {
    order.into_iter().find_map(|name| {
        let (a, b) = (actual.get(name)?, expected.get(name)?);
        let c = compare(a, b, Tolerance::of(b.dtype));
        (!c.pass).then_some((name, c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f(v: &[f32]) -> Tensor {
        Tensor::from_f32(&[v.len()], v).unwrap()
    }

    #[test]
    fn tolerances_and_special_values() {
        let c = compare(&f(&[1.0, 100.0]), &f(&[1.00005, 100.005]), Tolerance::F32);
        assert!(c.pass && c.max_abs > 0.004 && c.max_rel < 1e-4);
        let c = compare(&f(&[1.0, 2.0, 5.0]), &f(&[1.0, 2.5, 5.1]), Tolerance::F32);
        assert_eq!((c.pass, c.worst, c.max_abs), (false, Some(vec![1]), 0.5));
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert!(compare(&f(&[nan, inf]), &f(&[nan, inf]), Tolerance::F32).pass);
        for (a, b) in [(nan, 1.0), (1.0, nan), (inf, -inf), (inf, 1.0), (1.0, inf)] {
            let c = compare(&f(&[a]), &f(&[b]), Tolerance::BF16);
            assert_eq!((c.pass, c.max_abs), (false, f64::INFINITY), "{a} {b}");
        }
        let c = compare(&f(&[1.0]), &f(&[1.0, 2.0]), Tolerance::F32);
        assert!(!c.pass && c.reason.unwrap().contains("expected f32[2], got f32[1]"));
    }

    #[test]
    fn integers_are_exact() {
        let a = Tensor::from_i64(&[1], &[1 << 53]).unwrap();
        let b = Tensor::from_i64(&[1], &[(1 << 53) + 1]).unwrap();
        assert!(!compare(&a, &b, Tolerance::of(DType::I64)).pass);
        assert!(compare(&b, &b, Tolerance::EXACT).pass);
    }

    #[test]
    fn quantised_numbers_may_be_neighbours() {
        let of = |d: DType, codes: &[u8]| Tensor::from_bytes(d, &[codes.len()], codes).unwrap();
        for (d, n) in [(DType::F8E4M3FN, 0x7eu8), (DType::F4E2M1, 7)] {
            for code in 0..n {
                let (a, b) = (of(d, &[code]), of(d, &[code + 1]));
                assert!(compare(&a, &b, Tolerance::of(d)).pass && compare(&b, &a, Tolerance::of(d)).pass, "{d} {code}");
                assert!(!compare(&a, &b, Tolerance::EXACT).pass);
            }
            let far = compare(&of(d, &[n]), &of(d, &[n - 3]), Tolerance::of(d));
            assert!(!far.pass);
        }
    }

    #[test]
    fn bisect_finds_the_first_difference_in_order() {
        let trace =
            |list: &[(&str, f32)]| list.iter().map(|(n, v)| ((*n).to_owned(), f(&[*v]))).collect::<BTreeMap<_, _>>();
        let (a, b) =
            (trace(&[("x", 1.0), ("y", 2.0), ("z", 3.0)]), trace(&[("x", 1.0), ("y", 2.5), ("z", 4.0), ("w", 0.0)]));
        assert_eq!(bisect(&a, &b, ["w", "x", "z", "y"]).unwrap().0, "z");
        assert_eq!(bisect(&a, &b, ["w", "x", "y", "z"]).unwrap().0, "y");
        assert!(bisect(&a, &b, ["x", "w"]).is_none());
    }
}
