//! Reductions over axes, and soft-max.

use super::convert::{float_blocks, floats, ints, typed, typed_mut, write_floats, write_ints};
use super::simd::{self, each, fold, pairs, vectorised};
use super::walk::Walk;
use super::{KernelError, Result, expect, math, resolve_axis};
use crate::attr::Safe;
use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// Which reduction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sum,
    Mean,
    Max,
}

/// Reduces over axes. Floats accumulate in f64.
pub(super) fn reduce(kind: Kind, x: &View<'_>, axes: &[i64], keepdims: bool, out: &mut ViewMut<'_>) -> Result {
    let rank = x.shape.len();
    let mut reduced = vec![false; rank];
    for &a in axes {
        reduced[resolve_axis(a, rank)?] = true;
    }
    let keep = |i: usize| if reduced[i] { keepdims.then_some(1) } else { Some(x.shape[i]) };
    let shape: Vec<usize> = (0..rank).filter_map(keep).collect();
    expect(out, x.dtype, &shape)?;
    // Steps of the result while the operand is visited in order.
    let mut steps = vec![[0isize; 1]; rank];
    let mut step = 1;
    for i in (0..rank).rev() {
        if !reduced[i] {
            steps[i] = [step];
            step *= x.shape[i] as isize;
        }
    }
    let walk = Walk::strided(x.shape, &steps);
    let count: usize = (0..rank).filter(|&i| reduced[i]).map(|i| x.shape[i]).product();
    let n = out.len();
    if x.dtype == DType::Bool {
        return Err(KernelError::DType(x.dtype));
    }
    if !x.dtype.is_float() {
        let v = ints(x)?;
        if count == 0 && n > 0 && kind != Kind::Sum {
            return Err(KernelError::Shape(format!("nothing to reduce in {:?}", x.shape)));
        }
        let start = if kind == Kind::Max { i64::MIN } else { 0 };
        let f = if kind == Kind::Max { i64::max } else { i64::wrapping_add };
        return write_ints(out, |o| {
            o.fill(start);
            accumulate(&walk, &v, o, start, f, f);
            if kind == Kind::Mean {
                o.iter_mut().for_each(|o| *o /= count as i64);
            }
            Ok(())
        });
    }
    let start = if kind == Kind::Max { f64::NEG_INFINITY } else { 0.0 };
    let mut sums = vec![start; n];
    let larger = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
    let sum = |a: f64, b: f64| a + b;
    match (x.dtype, kind) {
        (DType::F64, Kind::Max) => accumulate(&walk, &typed::<f64>(x.bytes), &mut sums, start, larger, larger),
        (DType::F64, _) => accumulate(&walk, &typed::<f64>(x.bytes), &mut sums, start, sum, sum),
        (_, Kind::Max) => {
            accumulate(&walk, &floats(x)?, &mut sums, start, move |a, b: f32| larger(a, f64::from(b)), larger);
        }
        _ => accumulate(&walk, &floats(x)?, &mut sums, start, |a, b: f32| a + f64::from(b), sum),
    }
    if kind == Kind::Mean {
        sums.iter_mut().for_each(|s| *s /= count as f64);
    }
    if out.dtype == DType::F64 {
        typed_mut::<f64>(out.bytes)?.copy_from_slice(&sums);
        return Ok(());
    }
    write_floats(out, |o| {
        o.iter_mut().zip(&sums).for_each(|(o, &s)| *o = s as f32);
        Ok(())
    })
}

/// Reduces into elements that a walk finds; `join` brings partial results together.
pub(crate) fn accumulate<T: Copy, A: Copy>(
    walk: &Walk<1>,
    x: &[T],
    into: &mut [A],
    neutral: A,
    f: impl Fn(A, T) -> A + Copy + 'static,
    join: impl Fn(A, A) -> A + Copy + 'static,
) {
    walk.rows(|start, [at], n, [step]| {
        let row = &x[start..start + n];
        match step {
            0 => into[at] = join(into[at], fold(row, neutral, f, join)),
            1 => {
                let into = &mut into[at..at + n];
                vectorised(
                    #[inline(always)]
                    move || {
                        for (o, &v) in into.iter_mut().zip(row) {
                            *o = f(*o, v);
                        }
                    },
                );
            }
            _ => {
                for (i, &v) in row.iter().enumerate() {
                    let o = &mut into[at + i * step as usize];
                    *o = f(*o, v);
                }
            }
        }
    });
}

/// Soft-max along an axis.
pub(super) fn softmax(x: &View<'_>, axis: i64, safe: Safe, out: &mut ViewMut<'_>, threads: usize) -> Result {
    let axis = resolve_axis(axis, x.shape.len())?;
    expect(out, x.dtype, x.shape)?;
    let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    if out.is_empty() {
        return if x.dtype.is_float() && x.dtype != DType::F64 { Ok(()) } else { Err(KernelError::DType(x.dtype)) };
    }
    float_blocks(x, out, n * inner, threads, |part| {
        if inner == 1 {
            part.chunks_exact_mut(n).for_each(|row| softmax_row(row, safe));
        } else {
            part.chunks_exact_mut(n * inner).for_each(|block| softmax_columns(block, inner, safe));
        }
    })
}

/// Soft-max of one row in place; `safe` says when it is zeros instead of NaN.
pub(crate) fn softmax_row(row: &mut [f32], safe: Safe) {
    let max = simd::max(row);
    if max == f32::NEG_INFINITY && safe == Safe::Masked && !row.iter().any(|v| v.is_nan()) {
        row.fill(0.0);
        return;
    }
    each(
        row,
        #[inline(always)]
        move |v| math::exp(v - max),
    );
    let sum = simd::sum(row);
    if safe == Safe::Always && sum.is_nan() {
        row.fill(0.0);
        return;
    }
    let scale = (1.0 / sum) as f32;
    each(row, move |v| v * scale);
}

/// Soft-max of the columns of a matrix of `inner` columns in place.
fn softmax_columns(block: &mut [f32], inner: usize, safe: Safe) {
    let (mut max, mut sum) = (vec![f32::NEG_INFINITY; inner], vec![0f64; inner]);
    block.chunks_exact(inner).for_each(|row| pairs(&mut max, row, |m, v| if v > m { v } else { m }));
    for row in block.chunks_exact_mut(inner) {
        let (max, sum) = (&max, &mut sum);
        vectorised(
            #[inline(always)]
            move || {
                for ((v, &m), s) in row.iter_mut().zip(max).zip(sum) {
                    // What is -infinity throughout, or NaN, does not become a number.
                    let masked = safe == Safe::Masked && m == f32::NEG_INFINITY && !v.is_nan();
                    *v = if masked { 0.0 } else { math::exp(*v - m) };
                    *s += f64::from(*v);
                }
            },
        );
    }
    // A column of zeros stays one.
    let masked = |m: f32, s: f64| safe == Safe::Masked && m == f32::NEG_INFINITY && s == 0.0;
    let scale: Vec<f32> =
        max.iter().zip(&sum).map(|(&m, &s)| if masked(m, s) { 0.0 } else { (1.0 / s) as f32 }).collect();
    let always = safe == Safe::Always;
    let scaled = move |v: f32, s: f32| if always && s.is_nan() { 0.0 } else { v * s };
    block.chunks_exact_mut(inner).for_each(|row| pairs(row, &scale, scaled));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, bools, error, f32s, i64s, noise, run_f64, to};
    use super::*;
    use crate::op::Op;

    #[test]
    fn reduces_over_any_axes() {
        let x = f32s(&[2, 2, 2], &[1., 2., 3., 4., 5., 6., 7., 8.]);
        let sum = |axes: &[i64], keepdims, shape: &[usize]| {
            run_f64(Op::ReduceSum { axes: axes.to_vec(), keepdims }, &[&x], DType::F32, shape)
        };
        assert_eq!(sum(&[-1], true, &[2, 2, 1]), [3., 7., 11., 15.]);
        assert_eq!(sum(&[0, 2], false, &[2]), [14., 22.]);
        assert_eq!(sum(&[1], false, &[2, 2]), [4., 6., 12., 14.]);
        assert_eq!(sum(&[0, 1, 2], false, &[]), [36.]);
        let mean = Op::ReduceMean { axes: vec![1], keepdims: false };
        assert_eq!(run_f64(mean, &[&to(DType::F64, &x)], DType::F64, &[2, 2]), [2., 3., 6., 7.]);
        let max = Op::ReduceMax { axes: vec![0], keepdims: true };
        assert_eq!(run_f64(max.clone(), &[&i64s(&[3], &[-5, -2, -9])], DType::I64, &[1]), [-2.]);
        assert!(run_f64(max.clone(), &[&f32s(&[2], &[1., f32::NAN])], DType::F32, &[1])[0].is_nan());
        assert!(error(max.clone(), &[&i64s(&[0], &[])], DType::I64, &[1]).contains("nothing to reduce"));
        assert!(error(max, &[&bools(&[1], &[true])], DType::Bool, &[1]).contains("bool"));
    }

    #[test]
    fn softmax_on_any_axis_and_masked_rows() {
        let x = noise(&[2, 3, 4], 1);
        for (axis, stride) in [(2i64, 1usize), (1, 4), (0, 12)] {
            let y = run_f64(Op::Softmax { axis, safe: Safe::No }, &[&x], DType::F32, &[2, 3, 4]);
            let n = x.shape[axis as usize];
            let v = x.to_f64();
            let want: Vec<f64> = (0..24)
                .map(|i| {
                    let base = i - (i / stride % n) * stride;
                    v[i].exp() / (0..n).map(|j| v[base + j * stride].exp()).sum::<f64>()
                })
                .collect();
            assert_close(&y, &want, 1e-6);
        }
        let masked = f32s(&[1, 2], &[f32::NEG_INFINITY; 2]);
        assert_eq!(run_f64(Op::Softmax { axis: 1, safe: Safe::Masked }, &[&masked], DType::F32, &[1, 2]), [0., 0.]);
        assert!(run_f64(Op::Softmax { axis: 1, safe: Safe::No }, &[&masked], DType::F32, &[1, 2])[0].is_nan());
        let nan = f32s(&[1, 2], &[f32::NAN, 1.0]);
        for (x, masked_too) in [(&masked, true), (&nan, false)] {
            assert_eq!(run_f64(Op::Softmax { axis: 1, safe: Safe::Always }, &[x], DType::F32, &[1, 2]), [0., 0.]);
            let y = run_f64(Op::Softmax { axis: 1, safe: Safe::Masked }, &[x], DType::F32, &[1, 2]);
            assert_eq!(y == [0., 0.], masked_too, "{y:?}");
        }
        let wide = to(DType::F64, &masked);
        assert!(error(Op::Softmax { axis: 1, safe: Safe::No }, &[&wide], DType::F64, &[1, 2]).contains("f64"));
    }
}
