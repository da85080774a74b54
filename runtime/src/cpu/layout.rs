//! Kernels that make or move elements without computing on them.

use super::convert::{typed, typed_mut, write_ints};
use super::walk::Walk;
use super::{Env, KernelError, Result, by_width, expect, resolve_axis};
use crate::dim::Dim;
use crate::tensor::{View, ViewMut};

/// Symbolic extents as integers.
pub(super) fn dims(values: &[Dim], out: &mut ViewMut<'_>, env: &Env<'_>) -> Result {
    let v: Vec<i64> = values.iter().map(|d| env.eval(d)).collect::<Result<_>>()?;
    if out.len() != v.len() {
        return Err(KernelError::Shape(format!("{} extents for a result {:?}", v.len(), out.shape)));
    }
    write_ints(out, |o| {
        o.copy_from_slice(&v);
        Ok(())
    })
}

/// start, start + step, ... up to but without limit.
pub(super) fn range(start: i64, limit: i64, step: i64, out: &mut ViewMut<'_>) -> Result {
    if step == 0 {
        return Err(KernelError::Shape("a range with step 0".to_owned()));
    }
    let distance = if step > 0 { i128::from(limit) - i128::from(start) } else { i128::from(start) - i128::from(limit) };
    let n = distance.max(0).unsigned_abs().div_ceil(u128::from(step.unsigned_abs()));
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    expect(out, out.dtype, &[n])?;
    write_ints(out, |o| {
        o.iter_mut().enumerate().for_each(|(i, o)| *o = start.wrapping_add((i as i64).wrapping_mul(step)));
        Ok(())
    })
}

/// The same elements under another shape.
pub(super) fn reshape(x: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    if x.dtype != out.dtype || x.bytes.len() != out.bytes.len() {
        let (d, s) = (out.dtype, out.shape);
        return Err(KernelError::Shape(format!("{}{:?} cannot become {d}{s:?}", x.dtype, x.shape)));
    }
    out.bytes.copy_from_slice(x.bytes);
    Ok(())
}

/// Steps, in elements, of a row-major shape.
fn row_major(shape: &[usize]) -> Vec<isize> {
    let mut steps = vec![1isize; shape.len()];
    for i in (1..shape.len()).rev() {
        steps[i - 1] = steps[i] * shape[i] as isize;
    }
    steps
}

/// Copies with explicit steps.
fn strided(x: &View<'_>, start: isize, steps: &[[isize; 1]], out: &mut ViewMut<'_>) -> Result {
    if out.is_empty() {
        return Ok(());
    }
    let walk = Walk::strided(out.shape, steps);
    by_width!(x.dtype, T => walk.copy([start], &typed::<T>(x.bytes), typed_mut::<T>(out.bytes)?));
    Ok(())
}

/// Result axis i is operand axis perm[i].
pub(super) fn transpose(x: &View<'_>, perm: &[i64], out: &mut ViewMut<'_>) -> Result {
    let axes: Vec<usize> = perm.iter().map(|&p| resolve_axis(p, x.shape.len())).collect::<Result<_>>()?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..x.shape.len()) {
        return Err(KernelError::Shape(format!("{perm:?} is not a permutation of the axes of {:?}", x.shape)));
    }
    let shape: Vec<usize> = axes.iter().map(|&a| x.shape[a]).collect();
    expect(out, x.dtype, &shape)?;
    let steps = row_major(x.shape);
    let steps: Vec<[isize; 1]> = axes.iter().map(|&a| [steps[a]]).collect();
    strided(x, 0, &steps, out)
}

/// Broadcasts to the shape of the result.
pub(super) fn expand(x: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    expect(out, x.dtype, out.shape)?;
    let walk = Walk::broadcast(out.shape, [x.shape])?;
    by_width!(x.dtype, T => walk.copy([0], &typed::<T>(x.bytes), typed_mut::<T>(out.bytes)?));
    Ok(())
}

/// Joins along an axis.
pub(super) fn concat(x: &[View<'_>], axis: i64, out: &mut ViewMut<'_>) -> Result {
    let Some(first) = x.first() else { return Err(KernelError::NotAStep("concat of nothing".to_owned())) };
    let axis = resolve_axis(axis, first.shape.len())?;
    let mut shape = first.shape.to_vec();
    shape[axis] = 0;
    for v in x {
        let fits = v.shape.len() == shape.len()
            && v.shape.iter().zip(&shape).enumerate().all(|(i, (a, b))| i == axis || a == b);
        if !fits || v.dtype != first.dtype {
            return Err(KernelError::Shape(format!(
                "{}{:?} does not join {}{:?}",
                v.dtype, v.shape, first.dtype, first.shape
            )));
        }
        shape[axis] += v.shape[axis];
    }
    expect(out, first.dtype, &shape)?;
    let chunk = |s: &[usize]| s[axis..].iter().product::<usize>() * first.dtype.size();
    let row = chunk(&shape);
    if row == 0 {
        return Ok(());
    }
    let mut at = 0;
    for v in x {
        let n = chunk(v.shape);
        if n > 0 {
            for (src, dst) in v.bytes.chunks_exact(n).zip(out.bytes.chunks_exact_mut(row)) {
                dst[at..at + n].copy_from_slice(src);
            }
        }
        at += n;
    }
    Ok(())
}

/// Elements start, start + step, ... below end (above end for a negative step) along one axis.
///
/// `start` and `end` are positions, clamped to the extent; they do not count from the end.
pub(super) fn slice(x: &View<'_>, axis: i64, start: i64, end: i64, step: i64, out: &mut ViewMut<'_>) -> Result {
    let axis = resolve_axis(axis, x.shape.len())?;
    let n = x.shape[axis] as i64;
    let count = match step {
        0 => return Err(KernelError::Shape("a slice with step 0".to_owned())),
        1.. => (end.clamp(0, n) - start.clamp(0, n)).max(0).unsigned_abs().div_ceil(step.unsigned_abs()),
        _ => (start.clamp(-1, n - 1) - end.clamp(-1, n - 1)).max(0).unsigned_abs().div_ceil(step.unsigned_abs()),
    };
    let first = if step > 0 { start.clamp(0, n) } else { start.clamp(-1, n - 1) };
    let mut shape = x.shape.to_vec();
    shape[axis] = count as usize;
    expect(out, x.dtype, &shape)?;
    let mut steps: Vec<[isize; 1]> = row_major(x.shape).into_iter().map(|s| [s]).collect();
    let origin = steps[axis][0] * first as isize;
    steps[axis][0] = steps[axis][0].saturating_mul(step as isize);
    strided(x, origin, &steps, out)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{error, f32s, i64s, run_f64, to};
    use super::*;
    use crate::dtype::DType;
    use crate::op::Op;

    #[test]
    fn transposes_and_expands() {
        let x = i64s(&[2, 3], &[1, 2, 3, 4, 5, 6]);
        assert_eq!(run_f64(Op::Transpose { perm: vec![1, 0] }, &[&x], DType::I64, &[3, 2]), [1., 4., 2., 5., 3., 6.]);
        let y: Vec<f32> = (0..24).map(|v| v as f32).collect();
        let y = to(DType::F16, &f32s(&[2, 3, 4], &y));
        let t = run_f64(Op::Transpose { perm: vec![0, 2, 1] }, &[&y], DType::F16, &[2, 4, 3]);
        assert_eq!(t[..6], [0., 4., 8., 1., 5., 9.]);
        let t = run_f64(Op::Transpose { perm: vec![2, 0, 1] }, &[&y], DType::F16, &[4, 2, 3]);
        assert_eq!(t[..7], [0., 4., 8., 12., 16., 20., 1.]);
        assert!(error(Op::Transpose { perm: vec![0, 0] }, &[&x], DType::I64, &[2, 2]).contains("permutation"));
        let shape = vec![Dim::from(2), Dim::from(2)];
        let e = run_f64(Op::Expand { shape }, &[&i64s(&[2, 1], &[7, 8])], DType::I64, &[2, 2]);
        assert_eq!(e, [7., 7., 8., 8.]);
    }

    #[test]
    fn slices_and_joins() {
        let x = i64s(&[2, 4], &[0, 1, 2, 3, 4, 5, 6, 7]);
        let cut = |start: i64, end: i64, step, shape: &[usize]| {
            let op = Op::Slice { axis: -1, start: start.into(), end: end.into(), step };
            run_f64(op, &[&x], DType::I64, shape)
        };
        assert_eq!(cut(1, 3, 1, &[2, 2]), [1., 2., 5., 6.]);
        assert_eq!(cut(1, 100, 2, &[2, 2]), [1., 3., 5., 7.]);
        assert_eq!(cut(3, -1, -2, &[2, 2]), [3., 1., 7., 5.]);
        assert!(cut(3, 2, 1, &[2, 0]).is_empty());
        let a = i64s(&[2, 1], &[1, 2]);
        let none = i64s(&[2, 0], &[]);
        let joined = run_f64(Op::Concat { axis: 1 }, &[&a, &none, &x], DType::I64, &[2, 5]);
        assert_eq!(joined, [1., 0., 1., 2., 3., 2., 4., 5., 6., 7.]);
        assert!(error(Op::Concat { axis: 0 }, &[&a, &x], DType::I64, &[4, 4]).contains("does not join"));
        assert!(error(Op::Concat { axis: 7 }, &[&a], DType::I64, &[2, 1]).contains("no axis 7"));
    }

    #[test]
    fn extents_become_tensors() {
        let n = Dim::sym("n");
        let op = Op::Dims { values: vec![n.clone(), Dim::from(5)], scalar: false };
        assert_eq!(run_f64(op, &[], DType::I64, &[2]), [3., 5.]);
        let op = Op::Range { start: Dim::from(1), limit: &n + &Dim::from(3), step: 2 };
        assert_eq!(run_f64(op, &[], DType::I64, &[3]), [1., 3., 5.]);
        let unknown = Op::Dims { values: vec![Dim::sym("m")], scalar: true };
        assert!(error(unknown, &[], DType::I64, &[]).contains('m'));
        let op = Op::Const { value: crate::dtype::Literal::scalar(DType::F32, 0.5) };
        assert_eq!(run_f64(op, &[], DType::F32, &[]), [0.5]);
        let x = f32s(&[2, 3], &[0.; 6]);
        assert!(error(Op::Reshape { shape: vec![] }, &[&x], DType::F32, &[5]).contains("cannot become"));
    }
}
