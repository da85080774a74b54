//! Soft-max and its kin, and the largest elements.

use std::cmp::Ordering;

use super::super::elem::{Lanes, is_int, make, map_rows, wrong_type};
use super::super::{Args, Call, Data, StandardError, axis, floats, from_bytes, from_floats, integers, native};
use super::fold::order;
use crate::attr::Safe;
use crate::cpu::reduce::softmax_row;
use crate::cpu::{math, simd};
use crate::dtype::DType;
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;

/// The lanes of an operator that took its operand as a matrix before opset 13: all axes from `axis` on were one.
fn lanes(c: &Call, x: &View<'_>) -> Result<Lanes> {
    let rank = x.shape.len();
    if c.opset >= 13 {
        return Ok(Lanes::along(x.shape, axis(c.int("axis").unwrap_or(-1), rank)?));
    }
    let a = c.int("axis").unwrap_or(1);
    let a = if a == rank as i64 { rank } else { axis(a, rank)? };
    Ok(Lanes { outer: x.shape[..a].iter().product(), len: x.shape[a..].iter().product(), inner: 1 })
}

/// A function of each lane of floating-point numbers.
fn by_lane(x: &View<'_>, lanes: Lanes, f: impl Fn(&mut [f64])) -> Result<Vec<Option<Data>>> {
    if !x.dtype.is_float() {
        return Err(wrong_type(x.dtype));
    }
    let mut values = floats(x);
    let mut lane = vec![0.0; lanes.len];
    for start in lanes.starts() {
        lane.iter_mut().zip(lanes.lane(start)).for_each(|(l, p)| *l = values[p]);
        f(&mut lane);
        lane.iter().zip(lanes.lane(start)).for_each(|(l, p)| values[p] = *l);
    }
    Ok(vec![Some(from_floats(x.dtype, x.shape, values)?)])
}

fn largest(lane: &[f64]) -> f64 {
    lane.iter().fold(f64::NEG_INFINITY, |m, &v| if v > m || v.is_nan() { v } else { m })
}

/// Whether the lanes are rows of a type that is computed with in f32.
fn narrow_rows(x: &View<'_>, lanes: Lanes) -> bool {
    matches!(x.dtype, DType::F32 | DType::F16 | DType::BF16) && lanes.inner == 1 && lanes.len > 0
}

pub(super) fn softmax(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = x.tensor(0)?;
    let lanes = lanes(c, &x)?;
    if narrow_rows(&x, lanes) {
        let rows = |from: &[f32], to: &mut [f32]| {
            to.copy_from_slice(from);
            to.chunks_exact_mut(lanes.len).for_each(|row| softmax_row(row, Safe::No));
        };
        return Ok(vec![Some(map_rows(&x, lanes.len, rows)?)]);
    }
    by_lane(&x, lanes, |lane| {
        let top = largest(lane);
        lane.iter_mut().for_each(|v| *v = (*v - top).exp());
        let sum: f64 = lane.iter().sum();
        lane.iter_mut().for_each(|v| *v /= sum);
    })
}

/// Log-soft-max in place.
pub(super) fn log_softmax_of(lane: &mut [f64]) {
    let top = largest(lane);
    let sum: f64 = lane.iter().map(|v| (v - top).exp()).sum();
    lane.iter_mut().for_each(|v| *v = *v - top - sum.ln());
}

/// Log-soft-max of f32; the sum and its logarithm are in f64.
fn log_softmax_row(row: &[f32], out: &mut [f32]) {
    let top = simd::max(row);
    simd::map(
        row,
        out,
        #[inline(always)]
        move |v| math::exp(v - top),
    );
    let from = f64::from(top) + simd::sum(out).ln();
    simd::map(row, out, move |v| (f64::from(v) - from) as f32);
}

pub(super) fn log_softmax(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = x.tensor(0)?;
    let lanes = lanes(c, &x)?;
    if narrow_rows(&x, lanes) {
        let rows = |from: &[f32], to: &mut [f32]| {
            let rows = from.chunks_exact(lanes.len).zip(to.chunks_exact_mut(lanes.len));
            rows.for_each(|(row, out)| log_softmax_row(row, out));
        };
        return Ok(vec![Some(map_rows(&x, lanes.len, rows)?)]);
    }
    by_lane(&x, lanes, log_softmax_of)
}

/// 1 at the first of the largest elements, else 0.
pub(super) fn hardmax(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = x.tensor(0)?;
    by_lane(&x, lanes(c, &x)?, |lane| {
        let first = (0..lane.len()).reduce(|best, i| if order(lane[i], lane[best]).is_gt() { i } else { best });
        lane.fill(0.0);
        if let Some(i) = first {
            lane[i] = 1.0;
        }
    })
}

/// Lanes whose norm is 0 become 0.
pub(super) fn lp_normalization(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = x.tensor(0)?;
    let p = c.int("p").unwrap_or(2);
    if p != 1 && p != 2 {
        return Err(StandardError::new(format!("`p` is {p}; it must be 1 or 2")));
    }
    let lanes = Lanes::along(x.shape, axis(c.int("axis").unwrap_or(-1), x.shape.len())?);
    by_lane(&x, lanes, |lane| {
        let norm = match p {
            1 => lane.iter().map(|v| v.abs()).sum(),
            _ => lane.iter().map(|v| v * v).sum::<f64>().sqrt(),
        };
        lane.iter_mut().for_each(|v| *v = if norm == 0.0 { 0.0 } else { *v / norm });
    })
}

/// The number of elements that `TopK` takes.
pub(super) fn top_k_count(c: &Call, operand: Option<&[i64]>) -> Result<usize> {
    let k = match (c.opset < 10, operand) {
        (true, _) => c.required_int("k")?,
        (false, Some(&[k])) => k,
        (false, other) => return Err(StandardError::new(format!("operand 1 must be one number, got {other:?}"))),
    };
    usize::try_from(k).map_err(|_| StandardError::new(format!("the {k} largest elements cannot be taken")))
}

/// Values and positions, best first; of equal ones the earlier.
pub(super) fn top_k(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    let k = top_k_count(c, args.ints(1)?.as_deref())?;
    let a = axis(c.int("axis").unwrap_or(-1), x.shape.len())?;
    let lanes = Lanes::along(x.shape, a);
    if k > lanes.len {
        return Err(StandardError::new(format!("{k} elements of the {} along axis {a} cannot be taken", lanes.len)));
    }
    let largest = c.flag("largest", true);
    let positions = if is_int(x.dtype) {
        let v = integers(&x);
        best(lanes, k, |a, b| if largest { v[b].cmp(&v[a]) } else { v[a].cmp(&v[b]) })
    } else if x.dtype == DType::F32 && !simd::fold(&native::<f32>(&x), false, |any, v| any | v.is_nan(), |a, b| a | b) {
        let v = native::<f32>(&x);
        if lanes.inner == 1 {
            best_rows(&v, lanes.len, k, largest)
        } else {
            let by = |a: f32, b: f32| a.partial_cmp(&b).unwrap_or(Ordering::Equal);
            best(lanes, k, |a, b| if largest { by(v[b], v[a]) } else { by(v[a], v[b]) })
        }
    } else if x.dtype.is_float() {
        let v = floats(&x);
        best(lanes, k, |a, b| if largest { order(v[b], v[a]) } else { order(v[a], v[b]) })
    } else {
        return Err(wrong_type(x.dtype));
    };
    let mut shape = x.shape.to_vec();
    shape[a] = k;
    let size = x.dtype.size();
    let mut bytes = Vec::with_capacity(positions.len() * size);
    positions.iter().for_each(|&p| bytes.extend_from_slice(&x.bytes[p * size..][..size]));
    let index = positions.iter().map(|&p| (p / lanes.inner % lanes.len) as i64);
    Ok(vec![Some(from_bytes(x.dtype, &shape, &bytes)?), Some(make(DType::I64, &shape, index)?)])
}

/// As [`best`], of rows of numbers: a row is read once, beside the best so far, which the last of them bounds.
fn best_rows(v: &[f32], len: usize, k: usize, largest: bool) -> Vec<usize> {
    let mut out = vec![0; v.len() / len.max(1) * k];
    if k == 0 {
        return out;
    }
    // A row is worth a thread.
    simd::parts(&mut out, k, rayon::current_num_threads(), |at, out| {
        let first = at / k * len;
        best_of_row(&v[first..first + len], largest, out);
        out.iter_mut().for_each(|p| *p += first);
    });
    out
}

/// Elements that are compared with the bound at a time.
const RUN: usize = 32;

/// The positions of the first elements of a row.
fn best_of_row(row: &[f32], largest: bool, out: &mut [usize]) {
    let k = out.len();
    let sign = move |v: f32| if largest { -v } else { v };
    let by = |a: &(f32, usize), b: &(f32, usize)| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1));
    // Twice as many as are wanted, before the worse half goes.
    let most = 2 * k.max(8);
    let mut kept: Vec<(f32, usize)> = Vec::with_capacity(most);
    let mut bound = f32::INFINITY;
    for (r, run) in row.chunks(RUN).enumerate() {
        // An element that is equal to the bound comes too late, unless there is room.
        let any = simd::fold(run, false, move |any, v| any | (sign(v) < bound), |a, b| a | b);
        if !any && kept.len() >= k {
            continue;
        }
        for (i, &value) in run.iter().enumerate() {
            let value = sign(value);
            if value < bound || kept.len() < k {
                kept.push((value, r * RUN + i));
                if kept.len() == most {
                    kept.select_nth_unstable_by(k - 1, by);
                    kept.truncate(k);
                    bound = kept[k - 1].0;
                }
            }
        }
    }
    kept.sort_unstable_by(by);
    out.iter_mut().zip(kept).for_each(|(o, (_, i))| *o = i);
}

/// Positions of the first `k` elements of each lane in an order, in row-major order of the result.
fn best(lanes: Lanes, k: usize, compare: impl Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut out = vec![0; lanes.outer * k * lanes.inner];
    let by = |a: &usize, b: &usize| compare(*a, *b).then(a.cmp(b));
    for (n, start) in lanes.starts().enumerate() {
        let mut lane: Vec<usize> = lanes.lane(start).collect();
        if k < lane.len() {
            lane.select_nth_unstable_by(k, by);
            lane.truncate(k);
        }
        lane.sort_unstable_by(by);
        let first = n / lanes.inner * k * lanes.inner + n % lanes.inner;
        lane.into_iter().enumerate().for_each(|(i, p)| out[first + i * lanes.inner] = p);
    }
    out
}
