//! Kernels of two and three operands that compute element by element, with broadcasting.

use std::ops::{Add, Div, Mul, Sub};

use bytemuck::Pod;
use half::{bf16, f16};

use super::convert::{Half, floats, ints, typed, typed_mut, write_floats, write_ints};
use super::simd::{BLOCK, map, pairs, vectorised};
use super::walk::Walk;
use super::{KernelError, Result, broadcast_shape, by_width, expect};
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::{View, ViewMut};

/// What arithmetic needs of a number type beyond comparison.
trait Number: Copy + PartialOrd + Send + Sync {
    fn add(self, o: Self) -> Self;
    fn sub(self, o: Self) -> Self;
    fn mul(self, o: Self) -> Self;
    fn div(self, o: Self) -> Self;
    fn pow(self, o: Self) -> Self;
    fn max(self, o: Self) -> Self;
    fn min(self, o: Self) -> Self;
}

macro_rules! float_number {
    ($t:ident) => {
        impl Number for $t {
            fn add(self, o: Self) -> Self {
                Add::add(self, o)
            }
            fn sub(self, o: Self) -> Self {
                Sub::sub(self, o)
            }
            fn mul(self, o: Self) -> Self {
                Mul::mul(self, o)
            }
            fn div(self, o: Self) -> Self {
                Div::div(self, o)
            }
            fn pow(self, o: Self) -> Self {
                self.powf(o)
            }
            // NaN wins, as in NumPy and ONNX.
            fn max(self, o: Self) -> Self {
                if self.is_nan() || self > o { self } else { o }
            }
            fn min(self, o: Self) -> Self {
                if self.is_nan() || self < o { self } else { o }
            }
        }
    };
}
float_number!(f32);
float_number!(f64);

macro_rules! integer_number {
    ($($t:ident)*) => {$(
        impl Number for $t {
            fn add(self, o: Self) -> Self {
                self.wrapping_add(o)
            }
            fn sub(self, o: Self) -> Self {
                self.wrapping_sub(o)
            }
            fn mul(self, o: Self) -> Self {
                self.wrapping_mul(o)
            }
            fn div(self, o: Self) -> Self {
                // The caller refuses zero divisors.
                if o == 0 { 0 } else { self.wrapping_div(o) }
            }
            fn pow(self, o: Self) -> Self {
                int_power(i64::from(self), i64::from(o)) as Self
            }
            fn max(self, o: Self) -> Self {
                Ord::max(self, o)
            }
            fn min(self, o: Self) -> Self {
                Ord::min(self, o)
            }
        }
    )*};
}
integer_number!(i64 i32 i8 u8);

/// A power that wraps; fractions are truncated.
fn int_power(base: i64, exponent: i64) -> i64 {
    match (base, exponent) {
        (_, 0..) => base.wrapping_pow(u32::try_from(exponent).unwrap_or(u32::MAX)),
        (1, _) => 1,
        (-1, _) => 1 - 2 * (exponent & 1),
        _ => 0,
    }
}

fn arithmetic<T: Number>(op: &Op, w: &Walk<2>, a: &[T], b: &[T], out: &mut [T]) -> Result {
    match op {
        Op::Add {} => w.zip(a, b, out, T::add),
        Op::Sub {} => w.zip(a, b, out, T::sub),
        Op::Mul {} => w.zip(a, b, out, T::mul),
        Op::Div {} => w.zip(a, b, out, T::div),
        Op::Pow {} => w.zip(a, b, out, T::pow),
        Op::Max {} => w.zip(a, b, out, T::max),
        Op::Min {} => w.zip(a, b, out, T::min),
        op => return Err(KernelError::NotAStep(op.name().to_owned())),
    }
    Ok(())
}

fn compare<T: Number>(op: &Op, w: &Walk<2>, a: &[T], b: &[T], out: &mut [u8]) -> Result {
    match op {
        Op::Equal {} => w.zip(a, b, out, |x, y| u8::from(x == y)),
        Op::Less {} => w.zip(a, b, out, |x, y| u8::from(x < y)),
        Op::LessEqual {} => w.zip(a, b, out, |x, y| u8::from(x <= y)),
        Op::Greater {} => w.zip(a, b, out, |x, y| u8::from(x > y)),
        Op::GreaterEqual {} => w.zip(a, b, out, |x, y| u8::from(x >= y)),
        op => return Err(KernelError::NotAStep(op.name().to_owned())),
    }
    Ok(())
}

/// Any binary operator, with broadcasting.
pub(super) fn binary(op: &Op, a: &View<'_>, b: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    let shape = broadcast_shape(a.shape, b.shape)?;
    let w = Walk::broadcast(&shape, [a.shape, b.shape])?;
    let compares = matches!(op, Op::Equal {} | Op::Less {} | Op::LessEqual {} | Op::Greater {} | Op::GreaterEqual {});
    let logical = matches!(op, Op::And {} | Op::Or {});
    expect(out, if compares || logical { DType::Bool } else { a.dtype }, &shape)?;
    if logical {
        if (a.dtype, b.dtype) != (DType::Bool, DType::Bool) {
            return Err(KernelError::Mixed(a.dtype, b.dtype));
        }
        let and = matches!(op, Op::And {});
        w.zip(a.bytes, b.bytes, out.bytes, |x, y| u8::from(if and { x != 0 && y != 0 } else { x != 0 || y != 0 }));
        return Ok(());
    }
    if let Op::Pow {} = op
        && a.dtype != b.dtype
    {
        return pow_mixed(&w, a, b, out);
    }
    if a.dtype != b.dtype {
        return Err(KernelError::Mixed(a.dtype, b.dtype));
    }
    match a.dtype {
        DType::F64 => {
            let (x, y) = (typed::<f64>(a.bytes), typed::<f64>(b.bytes));
            if compares {
                compare(op, &w, &x, &y, out.bytes)
            } else {
                arithmetic(op, &w, &x, &y, typed_mut(out.bytes)?)
            }
        }
        DType::F32 => {
            let (x, y) = (typed::<f32>(a.bytes), typed::<f32>(b.bytes));
            if compares {
                return compare(op, &w, &x, &y, out.bytes);
            }
            let o = typed_mut(out.bytes)?;
            if let (Op::Pow {}, Some(f)) = (op, small_power(&y)) {
                f(&x, o);
                return Ok(());
            }
            arithmetic(op, &w, &x, &y, o)
        }
        DType::F16 if !compares => halves::<f16>(op, &w, a, b, out),
        DType::BF16 if !compares => halves::<bf16>(op, &w, a, b, out),
        d if d.is_float() => compare(op, &w, &floats(a)?, &floats(b)?, out.bytes),
        DType::I32 => integers::<i32>(op, &w, a, b, out, compares),
        DType::I64 => integers::<i64>(op, &w, a, b, out, compares),
        DType::I8 => integers::<i8>(op, &w, a, b, out, compares),
        DType::U8 => integers::<u8>(op, &w, a, b, out, compares),
        d => {
            let (x, y) = (ints(a)?, ints(b)?);
            if compares {
                return compare(op, &w, &x, &y, out.bytes);
            }
            if d == DType::Bool && !matches!(op, Op::Max {} | Op::Min {}) {
                return Err(KernelError::DType(d));
            }
            write_ints(out, |o| arithmetic(op, &w, &x, &y, o))
        }
    }
}

fn integers<T: Number + Pod + Default>(
    op: &Op,
    w: &Walk<2>,
    a: &View<'_>,
    b: &View<'_>,
    out: &mut ViewMut<'_>,
    compares: bool,
) -> Result {
    let (x, y) = (typed::<T>(a.bytes), typed::<T>(b.bytes));
    if compares {
        return compare(op, w, &x, &y, out.bytes);
    }
    if matches!(op, Op::Div {}) && !out.is_empty() && y.iter().any(|v| *v == T::default()) {
        return Err(KernelError::DivisionByZero);
    }
    arithmetic(op, w, &x, &y, typed_mut(out.bytes)?)
}

/// Computes powers of the first operand into the second.
type Power = fn(&[f32], &mut [f32]);

/// Powers by one small exponent, which are products.
fn small_power(exponent: &[f32]) -> Option<Power> {
    match *exponent {
        [2.0] => Some(|x, o| map(x, o, |v| v * v)),
        [3.0] => Some(|x, o| map(x, o, |v| v * v * v)),
        [1.0] => Some(|x, o| o.copy_from_slice(x)),
        _ => None,
    }
}

/// Arithmetic in f32 on blocks of f16 or bf16.
fn halves<T: Half>(op: &Op, w: &Walk<2>, a: &View<'_>, b: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    let f: fn(f32, f32) -> f32 = match op {
        Op::Pow {} => f32::powf,
        Op::Max {} => <f32 as Number>::max,
        Op::Min {} => <f32 as Number>::min,
        _ => |_, _| f32::NAN,
    };
    let combine = |x: &mut [f32], y: &[f32]| match op {
        Op::Add {} => pairs(x, y, |x, y| x + y),
        Op::Sub {} => pairs(x, y, |x, y| x - y),
        Op::Mul {} => pairs(x, y, |x, y| x * y),
        Op::Div {} => pairs(x, y, |x, y| x / y),
        _ => pairs(x, y, f),
    };
    if !matches!(op, Op::Add {} | Op::Sub {} | Op::Mul {} | Op::Div {} | Op::Pow {} | Op::Max {} | Op::Min {}) {
        return Err(KernelError::NotAStep(op.name().to_owned()));
    }
    let (x, y, o) = (typed::<T>(a.bytes), typed::<T>(b.bytes), typed_mut::<T>(out.bytes)?);
    let (mut wide_x, mut wide_y) = ([0f32; BLOCK], [0f32; BLOCK]);
    let read = |from: &[T], at: usize, step: usize, to: &mut [f32]| match step {
        1 => T::widen(&from[at..at + to.len()], to),
        0 => {
            T::widen(&from[at..=at], &mut to[..1]);
            let v = to[0];
            to.fill(v);
        }
        _ => to
            .iter_mut()
            .enumerate()
            .for_each(|(i, to)| T::widen(&from[at + i * step..][..1], std::slice::from_mut(to))),
    };
    w.rows(|start, [ix, iy], n, [sx, sy]| {
        let (sx, sy) = (sx as usize, sy as usize);
        for (block, part) in o[start..start + n].chunks_mut(BLOCK).enumerate() {
            let (wide_x, wide_y, at) = (&mut wide_x[..part.len()], &mut wide_y[..part.len()], block * BLOCK);
            read(&x, ix + at * sx, sx, wide_x);
            read(&y, iy + at * sy, sy, wide_y);
            combine(wide_x, wide_y);
            T::narrow(wide_x, part);
        }
    });
    Ok(())
}

/// `pow` with an exponent of another type than the base.
fn pow_mixed(w: &Walk<2>, a: &View<'_>, b: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    let exponent: Vec<f64> =
        if b.dtype.is_float() { super::convert::wide(b)? } else { ints(b)?.iter().map(|&v| v as f64).collect() };
    match a.dtype {
        // The square of an f32 is exact in f64, so that one rounding remains.
        DType::F32 if exponent[..] == [2.0] => map(&typed::<f32>(a.bytes), typed_mut(out.bytes)?, |v: f32| v * v),
        DType::F64 => w.zip(&typed::<f64>(a.bytes), &exponent, typed_mut(out.bytes)?, f64::powf),
        d if d.is_float() => {
            let x = floats(a)?;
            write_floats(out, |o| {
                w.zip(&x, &exponent, o, |x, y| f64::from(x).powf(y) as f32);
                Ok(())
            })?;
        }
        _ => {
            let x = ints(a)?;
            write_ints(out, |o| {
                w.zip(&x, &exponent, o, |x, y| (x as f64).powf(y) as i64);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// `where`: a where the condition holds, else b.
pub(super) fn select(c: &View<'_>, a: &View<'_>, b: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    if c.dtype != DType::Bool {
        return Err(KernelError::DType(c.dtype));
    }
    if a.dtype != b.dtype {
        return Err(KernelError::Mixed(a.dtype, b.dtype));
    }
    let shape = broadcast_shape(c.shape, &broadcast_shape(a.shape, b.shape)?)?;
    expect(out, a.dtype, &shape)?;
    let w = Walk::broadcast(&shape, [c.shape, a.shape, b.shape])?;
    by_width!(a.dtype, T => {
        let (x, y, o) = (typed::<T>(a.bytes), typed::<T>(b.bytes), typed_mut::<T>(out.bytes)?);
        w.rows(|start, [ic, ix, iy], n, [sc, sx, sy]| {
            let (o, [sc, sx, sy]) = (&mut o[start..start + n], [sc, sx, sy].map(|s| s as usize));
            match (sc, sx, sy) {
                (0, ..) => {
                    let (from, at, step) = if c.bytes[ic] != 0 { (&x, ix, sx) } else { (&y, iy, sy) };
                    match step {
                        0 => o.fill(from[at]),
                        1 => o.copy_from_slice(&from[at..at + n]),
                        s => o.iter_mut().zip(from[at..].iter().step_by(s)).for_each(|(o, v)| *o = *v),
                    }
                }
                (1, 1, 1) => choose(o, &c.bytes[ic..], &x[ix..], &y[iy..]),
                (1, 1, 0) => choose_or(o, &c.bytes[ic..], &x[ix..], y[iy], false),
                (1, 0, 1) => choose_or(o, &c.bytes[ic..], &y[iy..], x[ix], true),
                _ => {
                    for (i, o) in o.iter_mut().enumerate() {
                        *o = if c.bytes[ic + i * sc] != 0 { x[ix + i * sx] } else { y[iy + i * sy] };
                    }
                }
            }
        });
    });
    Ok(())
}

/// Elements of `x` where the condition holds, else of `y`.
fn choose<T: Copy>(out: &mut [T], condition: &[u8], x: &[T], y: &[T]) {
    vectorised(
        #[inline(always)]
        move || {
            for (((o, &c), &x), &y) in out.iter_mut().zip(condition).zip(x).zip(y) {
                *o = if c != 0 { x } else { y };
            }
        },
    );
}

/// `other` where the condition is as said, else elements of `x`.
fn choose_or<T: Copy>(out: &mut [T], condition: &[u8], x: &[T], other: T, holds: bool) {
    vectorised(
        #[inline(always)]
        move || {
            for ((o, &c), &x) in out.iter_mut().zip(condition).zip(x) {
                *o = if (c != 0) == holds { other } else { x };
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bools, error, f32s, i64s, run, run_f64};
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn binaries_broadcast_in_every_way() {
        let a = f32s(&[2, 3], &[1., 2., 3., 4., 5., 6.]);
        let row = f32s(&[3], &[10., 20., 30.]);
        let col = f32s(&[2, 1], &[100., 200.]);
        assert_eq!(run_f64(Op::Add {}, &[&a, &row], DType::F32, &[2, 3]), [11., 22., 33., 14., 25., 36.]);
        assert_eq!(run_f64(Op::Sub {}, &[&row, &a], DType::F32, &[2, 3]), [9., 18., 27., 6., 15., 24.]);
        assert_eq!(run_f64(Op::Mul {}, &[&col, &row], DType::F32, &[2, 3]), [1e3, 2e3, 3e3, 2e3, 4e3, 6e3]);
        assert_eq!(run_f64(Op::Div {}, &[&a, &f32s(&[], &[2.])], DType::F32, &[2, 3]), [0.5, 1., 1.5, 2., 2.5, 3.]);
        let empty = f32s(&[0, 3], &[]);
        assert!(run_f64(Op::Add {}, &[&empty, &row], DType::F32, &[0, 3]).is_empty());
        assert!(error(Op::Add {}, &[&a, &f32s(&[2], &[1., 2.])], DType::F32, &[2, 3]).contains("[2, 3] and [2]"));
        assert!(error(Op::Add {}, &[&a, &row], DType::F32, &[6]).contains("declares f32[6]"));
        assert!(error(Op::Add {}, &[&a, &i64s(&[3], &[1, 2, 3])], DType::F32, &[2, 3]).contains("f32 and i64"));
    }

    #[test]
    fn integers_truncate_and_refuse_zero_divisors() {
        let a = i64s(&[4], &[7, -7, 7, i64::MIN]);
        let b = i64s(&[4], &[2, 2, -2, -1]);
        let q = run(Op::Div {}, &[&a, &b], DType::I64, &[4]).unwrap();
        assert_eq!(q, i64s(&[4], &[3, -3, -3, i64::MIN]));
        assert!(error(Op::Div {}, &[&a, &i64s(&[], &[0])], DType::I64, &[4]).contains("division by zero"));
        assert_eq!(run_f64(Op::Pow {}, &[&b, &i64s(&[], &[3])], DType::I64, &[4]), [8., 8., -8., -1.]);
        let small = run(Op::Cast { to: DType::I8 }, &[&i64s(&[2], &[300, -1])], DType::I8, &[2]).unwrap();
        assert_eq!(small.to_f64(), [44., -1.]);
    }

    #[test]
    fn nan_and_comparisons() {
        let a = f32s(&[3], &[1., f32::NAN, 3.]);
        let b = f32s(&[3], &[2., 2., f32::NAN]);
        assert!(run_f64(Op::Max {}, &[&a, &b], DType::F32, &[3])[1..].iter().all(|v| v.is_nan()));
        assert_eq!(run_f64(Op::Less {}, &[&a, &b], DType::Bool, &[3]), [1., 0., 0.]);
        assert_eq!(run_f64(Op::IsNan {}, &[&a], DType::Bool, &[3]), [0., 1., 0.]);
        let c = bools(&[3, 1], &[true, false, true]);
        assert_eq!(
            run_f64(Op::Where {}, &[&c, &i64s(&[2], &[1, 2]), &i64s(&[], &[9])], DType::I64, &[3, 2]),
            [1., 2., 9., 9., 1., 2.]
        );
        assert_eq!(run_f64(Op::Not {}, &[&c], DType::Bool, &[3, 1]), [0., 1., 0.]);
    }

    #[test]
    fn half_types_round_once() {
        let x = run(Op::Cast { to: DType::BF16 }, &[&f32s(&[2], &[1.0, 256.0])], DType::BF16, &[2]).unwrap();
        // 257 is not a bf16; the sum rounds to even.
        let sum = run(Op::Add {}, &[&x, &x], DType::BF16, &[2]).unwrap();
        assert_eq!(sum.to_f64(), [2., 512.]);
        let one = Tensor::from_literal(&crate::dtype::Literal::scalar(DType::BF16, 1.0)).unwrap();
        assert_eq!(run_f64(Op::Add {}, &[&x, &one], DType::BF16, &[2]), [2., 256.]);
        let g = run_f64(Op::Gelu { tanh: false }, &[&f32s(&[2], &[1.0, -1.0])], DType::F32, &[2]);
        assert!((g[0] - 0.841_344_7).abs() < 1e-6 && (g[1] + 0.158_655_3).abs() < 1e-6);
        let s = run_f64(Op::SiluMul {}, &[&f32s(&[1], &[2.0]), &f32s(&[1], &[3.0])], DType::F32, &[1]);
        assert!((s[0] - 6.0 / (1.0 + (-2f64).exp())).abs() < 1e-6);
        let t = run_f64(Op::GeluMul { tanh: true }, &[&f32s(&[1], &[1.0]), &f32s(&[1], &[1.0])], DType::F32, &[1]);
        assert!((t[0] - 0.841_192).abs() < 1e-5);
    }
}
