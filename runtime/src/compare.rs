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

/// How the elements of a tensor are judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judge {
    /// How far they may be apart.
    pub tolerance: Tolerance,
    /// The type that they were computed in: beyond its greatest number, an infinity is a number rounded up.
    pub computed: DType,
    /// What one step of a quantisation changes, where the elements are such steps. A few may be one step apart.
    pub step: Option<f64>,
    /// Whether the expected values were computed beyond the range of the type: what is not finite on either side then agrees.
    pub overflowed: bool,
}

impl Judge {
    /// By a tolerance alone.
    pub fn by(tolerance: Tolerance, computed: DType) -> Judge {
        Judge { tolerance, computed, step: None, overflowed: false }
    }

    /// The elements of `n` that may be one step apart: rounding brings as many to the other side of the middle between two steps.
    fn steps_of(&self, n: usize) -> usize {
        let part = 256.0 * Tolerance::of(self.computed).rel;
        ((part.min(1.0) * n as f64) as usize).max(1)
    }
}

/// The greatest finite number of a type.
fn greatest(d: DType) -> f64 {
    match d {
        DType::F32 => f64::from(f32::MAX),
        DType::F16 => 65504.0,
        DType::BF16 => f64::from(half::bf16::MAX),
        _ => f64::MAX,
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
    /// Elements that are one step of a quantisation apart and pass for it.
    pub one_step: usize,
    /// Elements that are finite on neither side, and not equal.
    pub overflow: usize,
}

impl Comparison {
    /// Of equal values.
    pub const EQUAL: Comparison =
        Comparison { pass: true, max_abs: 0.0, max_rel: 0.0, worst: None, reason: None, one_step: 0, overflow: 0 };

    /// Of values that cannot be compared.
    pub fn unlike(reason: String) -> Comparison {
        Comparison {
            pass: false,
            max_abs: f64::INFINITY,
            max_rel: f64::INFINITY,
            reason: Some(reason),
            ..Comparison::EQUAL
        }
    }
}

/// Compares element by element. NaN equals NaN, and an infinity equals the same infinity.
pub fn compare(actual: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Comparison {
    judge(actual, expected, &Judge::by(tolerance, actual.dtype))
}

/// As [`compare`], by what is known of how the elements were computed.
pub fn judge(actual: &Tensor, expected: &Tensor, judge: &Judge) -> Comparison {
    let mut c = Comparison::EQUAL;
    if (actual.dtype, &actual.shape) != (expected.dtype, &expected.shape) {
        let (a, b) = (actual, expected);
        return Comparison::unlike(format!("expected {}{:?}, got {}{:?}", b.dtype, b.shape, a.dtype, a.shape));
    }
    if !actual.dtype.is_float() && actual.bytes() == expected.bytes() {
        return c;
    }
    let size = actual.dtype.size();
    let inexact = actual.dtype.is_float() || actual.dtype.is_quantised();
    let tolerance = judge.tolerance;
    let pairs = actual.bytes().chunks_exact(size).zip(expected.bytes().chunks_exact(size));
    let mut worst = (f64::NEG_INFINITY, None);
    // What only passes as one step, should there be more of it than rounding explains.
    let mut apart = (f64::NEG_INFINITY, None);
    for (i, (x, y)) in pairs.enumerate() {
        let (a, b) = (crate::dtype::element_f64(actual.dtype, x), crate::dtype::element_f64(actual.dtype, y));
        if x == y || (inexact && a == b) || (a.is_nan() && b.is_nan()) {
            continue;
        }
        if judge.overflowed && !a.is_finite() && !b.is_finite() {
            c.overflow += 1;
            continue;
        }
        if beyond(a, b, judge) {
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
        let mut ok = diff.is_finite() && diff <= allowed;
        let excess = if diff.is_finite() { diff - allowed } else { f64::INFINITY };
        if let (false, Some(step)) = (ok, judge.step)
            && diff <= step + allowed
        {
            ok = true;
            c.one_step += 1;
            if apart.1.is_none() || excess > apart.0 {
                apart = (excess, Some(i));
            }
        }
        c.pass &= ok;
        if worst.1.is_none() || excess > worst.0 {
            worst = (excess, Some(i));
        }
    }
    let n = actual.len();
    if c.one_step > judge.steps_of(n) {
        let (steps, most) = (c.one_step, judge.steps_of(n));
        c.pass = false;
        c.reason = Some(format!("{steps} of {n} elements are one quantisation step apart, rounding explains {most}"));
        worst = apart;
    }
    c.worst = worst.1.map(|i| unravel(i, &actual.shape));
    c
}

/// Whether one number is the infinity that the other becomes by rounding.
fn beyond(a: f64, b: f64, judge: &Judge) -> bool {
    let (infinite, finite) = if a.is_infinite() { (a, b) } else { (b, a) };
    let reach = finite.abs() * (1.0 + judge.tolerance.rel) + judge.tolerance.abs;
    infinite.is_infinite()
        && finite.is_finite()
        && infinite.signum() == finite.signum()
        && reach >= greatest(judge.computed)
}

/// Compares values of any kind: tensors of numbers within a tolerance for their element type, all else exactly. Sequences are
/// compared element by element.
pub fn compare_data(actual: &Data, expected: &Data, tolerance: &dyn Fn(&Tensor) -> Tolerance) -> Comparison {
    let (differs, equal) = (Comparison::unlike, Comparison::EQUAL);
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
    bisect_by(actual, expected, order, |_, t| Judge::by(Tolerance::of(t.dtype), t.dtype))
}

/// As [`bisect`], with the judge of each expected value by name.
pub fn bisect_by<'a>(
    actual: &BTreeMap<String, Tensor>,
    expected: &BTreeMap<String, Tensor>,
    order: impl IntoIterator<Item = &'a str>,
    how: impl Fn(&str, &Tensor) -> Judge,
) -> Option<(&'a str, Comparison)> {
    order.into_iter().find_map(|name| {
        let (a, b) = (actual.get(name)?, expected.get(name)?);
        let c = judge(a, b, &how(name, b));
        (!c.pass).then_some((name, c))
    })
}

/// How far a perturbed value is from the value itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Largest absolute change of an element that is finite on both sides.
    pub abs: f64,
    /// The same relative to the largest magnitude.
    pub rel: f64,
}

/// The change of a value, element by element; `None` where shapes or types differ or no element is finite.
pub fn change(from: &Tensor, to: &Tensor) -> Option<Change> {
    if (from.dtype, &from.shape) != (to.dtype, &to.shape) {
        return None;
    }
    let (mut abs, mut largest) = (None, 0.0f64);
    for (a, b) in from.to_f64().into_iter().zip(to.to_f64()) {
        if a.is_finite() && b.is_finite() {
            abs = Some(abs.unwrap_or(0.0f64).max((a - b).abs()));
            largest = largest.max(a.abs());
        }
    }
    abs.map(|abs| Change { abs, rel: if abs == 0.0 { 0.0 } else { abs / largest.max(f64::MIN_POSITIVE) } })
}

/// The relative change that perturbs numbers of a type: 1e-6, or where that is lost in rounding, the distance of neighbours.
pub fn perturbation(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => 1e-6,
    }
}

/// Perturbs floating-point elements, up and down by their position; others stay.
pub fn perturb(dtype: DType, bytes: &mut [u8]) {
    let by = perturbation(dtype);
    let size = dtype.size();
    if !dtype.is_float() {
        return;
    }
    for (i, element) in bytes.chunks_exact_mut(size).enumerate() {
        let v = crate::dtype::element_f64(dtype, element);
        let up = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0;
        let mut out = vec![];
        crate::dtype::push_element(dtype, v * if up { 1.0 + by } else { 1.0 - by }, 0, &mut out);
        element.copy_from_slice(&out);
    }
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

    #[test]
    fn one_step_of_a_quantisation_is_no_difference_where_rounding_explains_it() {
        let q = |codes: &[u8]| Tensor::from_bytes(DType::U8, &[codes.len()], codes).unwrap();
        let steps = Judge { step: Some(1.0), ..Judge::by(Tolerance::EXACT, DType::F32) };
        let (mut a, b) = (vec![7u8; 400], vec![7u8; 400]);
        (0..10).for_each(|i| a[i * 40] = if i % 2 == 0 { 8 } else { 6 });
        let c = judge(&q(&a), &q(&b), &steps);
        assert_eq!((c.pass, c.one_step), (true, 10));
        // Half of all elements is no matter of rounding.
        (0..200).for_each(|i| a[i] = 8);
        let c = judge(&q(&a), &q(&b), &steps);
        assert!(!c.pass && c.reason.unwrap().contains("one quantisation step apart"));
        // Nor are two steps.
        let c = judge(&q(&[9, 7]), &q(&[7, 7]), &steps);
        assert_eq!((c.pass, c.worst), (false, Some(vec![0])));
        // Steps of 0.5 in a real number.
        let real = Judge { step: Some(0.5), ..Judge::by(Tolerance::F32, DType::F32) };
        assert!(judge(&f(&[1.5, 2.0]), &f(&[1.0, 2.0]), &real).pass);
        assert!(!judge(&f(&[1.8, 2.0]), &f(&[1.0, 2.0]), &real).pass);
    }

    #[test]
    fn overflow_at_the_end_of_the_range_and_overflow_that_is_shared() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let half = Judge::by(Tolerance::F16, DType::F16);
        assert!(judge(&f(&[inf, -65504.0]), &f(&[65504.0, -inf]), &half).pass);
        assert!(!judge(&f(&[inf]), &f(&[-65504.0]), &half).pass && !judge(&f(&[inf]), &f(&[100.0]), &half).pass);
        assert!(!judge(&f(&[inf]), &f(&[65504.0]), &Judge::by(Tolerance::F16, DType::F32)).pass);
        let shared = Judge { overflowed: true, ..half };
        let c = judge(&f(&[inf, nan, 1.0]), &f(&[nan, -inf, 1.0]), &shared);
        assert_eq!((c.pass, c.overflow), (true, 2));
        assert!(!judge(&f(&[inf]), &f(&[nan]), &half).pass && !judge(&f(&[inf]), &f(&[1.0]), &shared).pass);
    }

    #[test]
    fn perturbations_change_every_number_a_little() {
        for d in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let x = Tensor::from_literal(&crate::dtype::Literal::scalar(d, 1.5)).unwrap();
            let mut y = x.clone();
            perturb(d, y.bytes_mut());
            let c = change(&x, &y).unwrap();
            assert!(c.rel > 0.0 && c.rel <= 2.0 * perturbation(d), "{d} {c:?}");
        }
        let x = Tensor::from_i64(&[1], &[3]).unwrap();
        let mut y = x.clone();
        perturb(DType::I64, y.bytes_mut());
        assert_eq!(x, y);
    }
}
