//! Kernels that compute element by element.

use std::ops::{Add, Div, Mul, Sub};

use super::convert::{floats, ints, typed, typed_mut, write_floats, write_ints};
use super::walk::Walk;
use super::{KernelError, Result, broadcast_shape, by_width, expect};
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::{View, ViewMut};

/// The unary float functions of one width.
macro_rules! unary_table {
    ($name:ident, $t:ident, $erf:path, $silu:expr, $gelu_erf:expr, $gelu_tanh:expr) => {
        fn $name(op: &Op) -> Option<fn($t) -> $t> {
            Some(match op {
                Op::Neg {} => |x| -x,
                Op::Abs {} => $t::abs,
                Op::Sqrt {} => $t::sqrt,
                Op::Reciprocal {} => $t::recip,
                Op::Exp {} => $t::exp,
                Op::Log {} => $t::ln,
                Op::Sigmoid {} => |x| 1.0 / (1.0 + (-x).exp()),
                Op::Tanh {} => $t::tanh,
                Op::Erf {} => $erf,
                Op::Cos {} => $t::cos,
                Op::Sin {} => $t::sin,
                // Written as a comparison so that NaN stays NaN.
                Op::Relu {} => |x| if x < 0.0 { 0.0 } else { x },
                Op::Floor {} => $t::floor,
                Op::Ceil {} => $t::ceil,
                Op::Silu {} => $silu,
                Op::Gelu { tanh: false } => $gelu_erf,
                Op::Gelu { tanh: true } => $gelu_tanh,
                _ => return None,
            })
        }
    };
}

unary_table!(unary_f32, f32, libm::erff, silu, gelu_erf, gelu_tanh);
unary_table!(
    unary_f64,
    f64,
    libm::erf,
    |x| x / (1.0 + (-x).exp()),
    |x| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
    |x| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        0.5 * x * (1.0 + inner.tanh())
    }
);

/// x * sigmoid(x).
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// The exact Gaussian error linear unit.
pub(super) fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Its approximation by tanh.
pub(super) fn gelu_tanh(x: f32) -> f32 {
    let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// Any unary operator but `cast`.
pub(super) fn unary(op: &Op, x: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    match op {
        Op::Not {} => {
            expect(out, DType::Bool, x.shape)?;
            if x.dtype != DType::Bool {
                return Err(KernelError::DType(x.dtype));
            }
            out.bytes.iter_mut().zip(x.bytes).for_each(|(o, &v)| *o = u8::from(v == 0));
            return Ok(());
        }
        Op::IsNan {} => {
            expect(out, DType::Bool, x.shape)?;
            let wide = super::convert::wide(x)?;
            out.bytes.iter_mut().zip(&wide).for_each(|(o, v)| *o = u8::from(v.is_nan()));
            return Ok(());
        }
        _ => {}
    }
    expect(out, x.dtype, x.shape)?;
    let unsupported = || KernelError::DType(x.dtype);
    match x.dtype {
        DType::F64 => {
            let f = unary_f64(op).ok_or_else(unsupported)?;
            typed_mut::<f64>(out.bytes)?.iter_mut().zip(&*typed::<f64>(x.bytes)).for_each(|(o, &v)| *o = f(v));
            Ok(())
        }
        d if d.is_float() => {
            let f = unary_f32(op).ok_or_else(unsupported)?;
            let x = floats(x)?;
            write_floats(out, |o| {
                o.iter_mut().zip(&*x).for_each(|(o, &v)| *o = f(v));
                Ok(())
            })
        }
        DType::Bool => Err(unsupported()),
        _ => {
            let f: fn(i64) -> i64 = match op {
                Op::Neg {} => i64::wrapping_neg,
                Op::Abs {} => i64::wrapping_abs,
                Op::Relu {} => |v| Ord::max(v, 0),
                Op::Floor {} | Op::Ceil {} => |v| v,
                _ => return Err(unsupported()),
            };
            let x = ints(x)?;
            write_ints(out, |o| {
                o.iter_mut().zip(&*x).for_each(|(o, &v)| *o = f(v));
                Ok(())
            })
        }
    }
}

/// What arithmetic needs of a number type beyond comparison.
trait Number: Copy + PartialOrd {
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

impl Number for i64 {
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
        match (self, o) {
            (_, 0..) => self.wrapping_pow(u32::try_from(o).unwrap_or(u32::MAX)),
            (1, _) => 1,
            (-1, _) => 1 - 2 * (o & 1),
            _ => 0,
        }
    }
    fn max(self, o: Self) -> Self {
        Ord::max(self, o)
    }
    fn min(self, o: Self) -> Self {
        Ord::min(self, o)
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
        d if d.is_float() => {
            let (x, y) = (floats(a)?, floats(b)?);
            if compares {
                return compare(op, &w, &x, &y, out.bytes);
            }
            write_floats(out, |o| arithmetic(op, &w, &x, &y, o))
        }
        d => {
            let (x, y) = (ints(a)?, ints(b)?);
            if compares {
                return compare(op, &w, &x, &y, out.bytes);
            }
            if d == DType::Bool && !matches!(op, Op::Max {} | Op::Min {}) {
                return Err(KernelError::DType(d));
            }
            if matches!(op, Op::Div {}) && !out.is_empty() && y.contains(&0) {
                return Err(KernelError::DivisionByZero);
            }
            write_ints(out, |o| arithmetic(op, &w, &x, &y, o))
        }
    }
}

/// `pow` with an exponent of another type than the base.
fn pow_mixed(w: &Walk<2>, a: &View<'_>, b: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    let exponent: Vec<f64> =
        if b.dtype.is_float() { super::convert::wide(b)? } else { ints(b)?.iter().map(|&v| v as f64).collect() };
    match a.dtype {
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
            for (i, o) in o[start..start + n].iter_mut().enumerate() {
                let yes = c.bytes[ic + i * sc as usize] != 0;
                *o = if yes { x[ix + i * sx as usize] } else { y[iy + i * sy as usize] };
            }
        });
    });
    Ok(())
}

/// (gate, up): f(gate) * up.
pub(super) fn gated(gate: &View<'_>, up: &View<'_>, out: &mut ViewMut<'_>, f: impl Fn(f32) -> f32) -> Result {
    if gate.dtype != up.dtype {
        return Err(KernelError::Mixed(gate.dtype, up.dtype));
    }
    let shape = broadcast_shape(gate.shape, up.shape)?;
    expect(out, gate.dtype, &shape)?;
    let w = Walk::broadcast(&shape, [gate.shape, up.shape])?;
    let (g, u) = (floats(gate)?, floats(up)?);
    write_floats(out, |o| {
        w.zip(&g, &u, o, |g, u| f(g) * u);
        Ok(())
    })
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
