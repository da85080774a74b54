//! Reductions over any axes, and positions of the largest and smallest.

use super::super::elem::{Lanes, is_int, make, range, wrong_type};
use super::super::{
    Args, Call, Data, StandardError, axis, count, floats, from_floats, from_ints, integers, native, strides,
};
use crate::cpu::reduce::accumulate;
use crate::cpu::simd;
use crate::cpu::walk::Walk;
use crate::dtype::DType;
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;

/// Which axes are reduced, from the attribute or the second operand.
pub(super) fn axes(c: &Call, operand: Option<Vec<i64>>, rank: usize) -> Result<Vec<bool>> {
    let given = c.ints("axes").map(<[i64]>::to_vec).or(operand).unwrap_or_default();
    if given.is_empty() {
        return Ok(vec![!c.flag("noop_with_empty_axes", false); rank]);
    }
    let mut out = vec![false; rank];
    for a in given {
        out[axis(a, rank)?] = true;
    }
    Ok(out)
}

/// What a reduction needs: where the sum of each element is.
struct Groups {
    /// Shape of the result.
    shape: Vec<usize>,
    /// Number of sums.
    n: usize,
    /// From the elements to their sums.
    walk: Walk<1>,
    /// Number of elements of each sum.
    each: usize,
}

impl Groups {
    fn new(c: &Call, args: &Args<'_>, x: &View<'_>) -> Result<Groups> {
        let cut = axes(c, args.ints(1)?, x.shape.len())?;
        let kept: Vec<usize> = x.shape.iter().zip(&cut).map(|(&d, &c)| if c { 1 } else { d }).collect();
        let each = x.shape.iter().zip(&cut).filter(|(_, c)| **c).map(|(d, _)| d).product();
        let shape = match c.flag("keepdims", true) {
            true => kept.clone(),
            false => x.shape.iter().zip(&cut).filter(|(_, c)| !**c).map(|(d, _)| *d).collect(),
        };
        let steps: Vec<[isize; 1]> =
            strides(&kept).into_iter().zip(&cut).map(|(s, &c)| [if c { 0 } else { s as isize }]).collect();
        Ok(Groups { n: count(DType::U8, &kept)?, walk: Walk::strided(x.shape, &steps), shape, each })
    }

    fn fold<T: Copy, A: Copy>(
        &self,
        values: &[T],
        start: A,
        f: impl Fn(A, T) -> A + Copy + 'static,
        join: impl Fn(A, A) -> A + Copy + 'static,
    ) -> Vec<A> {
        let mut out = vec![start; self.n];
        accumulate(&self.walk, values, &mut out, start, f, join);
        out
    }

    /// A reduction of floating-point numbers in f64.
    fn floats(
        &self,
        x: &View<'_>,
        start: f64,
        f: impl Fn(f64, f64) -> f64 + Copy + 'static,
        join: impl Fn(f64, f64) -> f64 + Copy + 'static,
    ) -> Vec<f64> {
        match x.dtype {
            DType::F32 => self.fold(&native::<f32>(x), start, move |a, v: f32| f(a, f64::from(v)), join),
            _ => self.fold(&floats(x), start, f, join),
        }
    }
}

/// A reduction whose steps are in f64. Integer types take the result truncated.
fn real(
    c: &Call,
    args: &Args<'_>,
    each: impl Fn(f64) -> f64 + Copy + 'static,
    finish: impl Fn(f64, f64) -> f64,
) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    if !x.dtype.is_float() && !is_int(x.dtype) {
        return Err(wrong_type(x.dtype));
    }
    let g = Groups::new(c, args, &x)?;
    let sums = g.floats(&x, 0.0, move |a, b| a + each(b), |a, b| a + b);
    let n = g.each as f64;
    Ok(vec![Some(from_floats(x.dtype, &g.shape, sums.into_iter().map(|s| finish(s, n)))?)])
}

/// A reduction that is exact on integers, which wrap: its start, what an element adds, and how partial results join.
fn number(
    c: &Call,
    args: &Args<'_>,
    float: (f64, impl Fn(f64, f64) -> f64 + Copy + 'static, impl Fn(f64, f64) -> f64 + Copy + 'static),
    int: (i128, impl Fn(i128, i128) -> i128 + Copy + 'static, impl Fn(i128, i128) -> i128 + Copy + 'static),
) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    let g = Groups::new(c, args, &x)?;
    Ok(vec![Some(match x.dtype {
        d if d.is_float() => from_floats(d, &g.shape, g.floats(&x, float.0, float.1, float.2))?,
        d if is_int(d) || d == DType::Bool => from_ints(d, &g.shape, g.fold(&integers(&x), int.0, int.1, int.2))?,
        d => return Err(wrong_type(d)),
    })])
}

fn no_bool(args: &Args<'_>) -> Result<()> {
    if args.tensor(0)?.dtype == DType::Bool { Err(wrong_type(DType::Bool)) } else { Ok(()) }
}

pub(super) fn sum(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    no_bool(x)?;
    number(c, x, (0.0, |a, b| a + b, |a, b| a + b), (0, i128::wrapping_add, i128::wrapping_add))
}

pub(super) fn prod(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    no_bool(x)?;
    number(c, x, (1.0, |a, b| a * b, |a, b| a * b), (1, i128::wrapping_mul, i128::wrapping_mul))
}

/// The largest number, NaN if there is one; the least of the type where there is none at all.
pub(super) fn max(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (low, _) = range(x.tensor(0)?.dtype);
    let larger = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
    number(c, x, (f64::NEG_INFINITY, larger, larger), (low, i128::max, i128::max))
}

/// The smallest number, NaN if there is one; the greatest of the type where there is none at all.
pub(super) fn min(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (_, high) = range(x.tensor(0)?.dtype);
    let smaller = |a: f64, b: f64| if b < a || b.is_nan() { b } else { a };
    number(c, x, (f64::INFINITY, smaller, smaller), (high, i128::min, i128::min))
}

/// Means of integers are truncated; of no number at all, there is none.
pub(super) fn mean(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    if !is_int(x.dtype) {
        return real(c, args, |v| v, |s, n| s / n);
    }
    let g = Groups::new(c, args, &x)?;
    let sums = g.fold(&integers(&x), 0i128, |a, b| a + b, |a, b| a + b);
    if g.each == 0 && g.n > 0 {
        return Err(StandardError::new("the mean of no integers does not exist"));
    }
    Ok(vec![Some(from_ints(x.dtype, &g.shape, sums.into_iter().map(|s| s / g.each as i128))?)])
}

pub(super) fn l1(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    no_bool(x)?;
    number(c, x, (0.0, |a, b| a + b.abs(), |a, b| a + b), (0, |a, b| a.wrapping_add(b.abs()), i128::wrapping_add))
}

pub(super) fn sum_square(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    no_bool(x)?;
    number(
        c,
        x,
        (0.0, |a, b| a + b * b, |a, b| a + b),
        (0, |a, b| a.wrapping_add(b.wrapping_mul(b)), i128::wrapping_add),
    )
}

pub(super) fn l2(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    real(c, x, |v| v * v, |s, _| s.sqrt())
}

pub(super) fn log_sum(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    real(c, x, |v| v, |s, _| s.ln())
}

/// The largest number is taken out of the sum, so that no exponential overflows.
pub(super) fn log_sum_exp(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    if !x.dtype.is_float() && !is_int(x.dtype) {
        return Err(wrong_type(x.dtype));
    }
    let g = Groups::new(c, args, &x)?;
    let larger = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
    let values = floats(&x);
    let top = g.fold(&values, f64::NEG_INFINITY, larger, larger);
    let mut sums = vec![0.0; g.n];
    g.walk.rows(|start, [at], n, [step]| {
        for (i, v) in values[start..start + n].iter().enumerate() {
            let o = at + i * step as usize;
            // Infinities are their own difference.
            sums[o] += if *v == top[o] { 1.0 } else { (v - top[o]).exp() };
        }
    });
    let y = sums.into_iter().zip(top).map(|(s, t)| if t == f64::NEG_INFINITY { t } else { s.ln() + t });
    Ok(vec![Some(from_floats(x.dtype, &g.shape, y)?)])
}

/// A comparison that puts NaN above all numbers, for positions and orders.
pub(super) fn order(a: f64, b: f64) -> std::cmp::Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// The position of the best element of each lane; `better` holds if the second is to be taken instead of the first.
fn position<T: Copy>(
    c: &Call,
    x: &View<'_>,
    values: &[T],
    better: impl Fn(T, T) -> bool,
    equal: impl Fn(T, T) -> bool,
) -> Result<Vec<Option<Data>>> {
    let a = axis(c.int("axis").unwrap_or(0), x.shape.len())?;
    let lanes = Lanes::along(x.shape, a);
    let last = c.flag("select_last_index", false);
    let mut shape = x.shape.to_vec();
    if c.flag("keepdims", true) {
        shape[a] = 1;
    } else {
        shape.remove(a);
    }
    if lanes.len == 0 && count(DType::U8, &shape)? > 0 {
        return Err(StandardError::new(format!("axis {a} has no element to choose")));
    }
    let best = |start: usize| {
        let mut at = 0;
        let mut value = values[start];
        for (i, p) in lanes.lane(start).enumerate().skip(1) {
            if better(value, values[p]) || (last && equal(value, values[p])) {
                (at, value) = (i, values[p]);
            }
        }
        at as i64
    };
    let starts = if lanes.len == 0 { vec![] } else { lanes.starts().collect() };
    Ok(vec![Some(make(DType::I64, &shape, starts.into_iter().map(best))?)])
}

/// As [`position`], of rows of f32 without NaN: the best number first, then where it is.
fn position_in_rows(c: &Call, x: &View<'_>, largest: bool) -> Result<Option<Vec<Option<Data>>>> {
    let a = axis(c.int("axis").unwrap_or(0), x.shape.len())?;
    let lanes = Lanes::along(x.shape, a);
    if x.dtype != DType::F32 || lanes.inner != 1 || lanes.len == 0 {
        return Ok(None);
    }
    let values = native::<f32>(x);
    if simd::fold(&values, false, |any, v: f32| any | v.is_nan(), |a, b| a | b) {
        return Ok(None);
    }
    let last = c.flag("select_last_index", false);
    let mut shape = x.shape.to_vec();
    shape[a] = 1;
    if !c.flag("keepdims", true) {
        shape.remove(a);
    }
    let smaller = |a: f32, b: f32| if b < a { b } else { a };
    let mut found = vec![0i64; x.len() / lanes.len];
    simd::parts(&mut found, 1, rayon::current_num_threads(), |at, out| {
        for (i, o) in out.iter_mut().enumerate() {
            let row = &values[(at + i) * lanes.len..][..lanes.len];
            let best = if largest { simd::max(row) } else { simd::fold(row, f32::INFINITY, smaller, smaller) };
            let is = |v: &f32| *v == best;
            *o = if last { row.iter().rposition(is) } else { row.iter().position(is) }.unwrap_or(0) as i64;
        }
    });
    Ok(Some(vec![Some(make(DType::I64, &shape, found)?)]))
}

pub(super) fn arg_max(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    if is_int(x.dtype) {
        return position(c, &x, &integers(&x), |a, b| b > a, |a, b| a == b);
    }
    if let Some(found) = position_in_rows(c, &x, true)? {
        return Ok(found);
    }
    // A NaN is taken for the largest number, as NumPy does.
    position(c, &x, &floats(&x), |a, b| order(b, a).is_gt(), |a, b| order(a, b).is_eq())
}

pub(super) fn arg_min(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    if is_int(x.dtype) {
        return position(c, &x, &integers(&x), |a, b| b < a, |a, b| a == b);
    }
    if let Some(found) = position_in_rows(c, &x, false)? {
        return Ok(found);
    }
    // A NaN is taken for the smallest number, as NumPy does.
    position(c, &x, &floats(&x), |a, b| order(-b, -a).is_gt(), |a, b| order(a, b).is_eq())
}
