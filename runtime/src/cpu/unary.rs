//! Kernels of one operand that compute element by element, and products with such a function of the other operand.

use super::convert::{float_map, floats, ints, typed, typed_mut, write_floats, write_ints};
use super::simd::{BLOCK, map, parts};
use super::walk::Walk;
use super::{KernelError, Result, broadcast_shape, expect, math};
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::{View, ViewMut};

/// Replaces the elements of a block.
type Block = fn(&mut [f32]);

/// Computes elements from others.
type Map = fn(&[f32], &mut [f32]);

/// A function of elements of f32.
fn block(op: &Op) -> Option<Map> {
    Some(match op {
        Op::Neg {} => |x, o| map(x, o, |x| -x),
        Op::Abs {} => |x, o| map(x, o, f32::abs),
        Op::Sqrt {} => |x, o| map(x, o, f32::sqrt),
        Op::Reciprocal {} => |x, o| map(x, o, f32::recip),
        Op::Exp {} => |x, o| map(x, o, math::exp),
        Op::Log {} => |x, o| map(x, o, math::ln),
        Op::Sigmoid {} => |x, o| map(x, o, math::sigmoid),
        Op::Tanh {} => |x, o| map(x, o, math::tanh),
        Op::Erf {} => |x, o| map(x, o, math::erf),
        Op::Cos {} => |x, o| map(x, o, f32::cos),
        Op::Sin {} => |x, o| map(x, o, f32::sin),
        // Written as a comparison so that NaN stays NaN.
        Op::Relu {} => |x, o| map(x, o, |x| if x < 0.0 { 0.0 } else { x }),
        Op::Floor {} => |x, o| map(x, o, f32::floor),
        Op::Ceil {} => |x, o| map(x, o, f32::ceil),
        Op::Silu {} => |x, o| map(x, o, math::silu),
        Op::Gelu { tanh: false } => |x, o| map(x, o, math::gelu_erf),
        Op::Gelu { tanh: true } => |x, o| map(x, o, math::gelu_tanh),
        _ => return None,
    })
}

/// A function of f64.
fn wide(op: &Op) -> Option<fn(f64) -> f64> {
    Some(match op {
        Op::Neg {} => |x| -x,
        Op::Abs {} => f64::abs,
        Op::Sqrt {} => f64::sqrt,
        Op::Reciprocal {} => f64::recip,
        Op::Exp {} => f64::exp,
        Op::Log {} => f64::ln,
        Op::Sigmoid {} => |x| 1.0 / (1.0 + (-x).exp()),
        Op::Tanh {} => f64::tanh,
        Op::Erf {} => libm::erf,
        Op::Cos {} => f64::cos,
        Op::Sin {} => f64::sin,
        Op::Relu {} => |x| if x < 0.0 { 0.0 } else { x },
        Op::Floor {} => f64::floor,
        Op::Ceil {} => f64::ceil,
        Op::Silu {} => |x| x / (1.0 + (-x).exp()),
        Op::Gelu { tanh: false } => |x| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Op::Gelu { tanh: true } => |x| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        },
        _ => return None,
    })
}

/// Any unary operator but `cast`.
pub(super) fn unary(op: &Op, x: &View<'_>, out: &mut ViewMut<'_>, threads: usize) -> Result {
    match op {
        Op::Not {} => {
            expect(out, DType::Bool, x.shape)?;
            if x.dtype != DType::Bool {
                return Err(KernelError::DType(x.dtype));
            }
            map(x.bytes, out.bytes, |v| u8::from(v == 0));
            return Ok(());
        }
        Op::IsNan {} => {
            expect(out, DType::Bool, x.shape)?;
            if x.dtype == DType::F64 {
                map(&typed::<f64>(x.bytes), out.bytes, |v| u8::from(v.is_nan()));
            } else {
                map(&floats(x)?, out.bytes, |v| u8::from(v.is_nan()));
            }
            return Ok(());
        }
        _ => {}
    }
    expect(out, x.dtype, x.shape)?;
    let unsupported = || KernelError::DType(x.dtype);
    match x.dtype {
        DType::F64 => {
            let f = wide(op).ok_or_else(unsupported)?;
            let x = typed::<f64>(x.bytes);
            parts(typed_mut::<f64>(out.bytes)?, BLOCK, threads, |at, o| {
                o.iter_mut().zip(&x[at..]).for_each(|(o, &v)| *o = f(v));
            });
            Ok(())
        }
        d if d.is_float() => float_map(x, out, 1, threads, block(op).ok_or_else(unsupported)?),
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

/// (gate, up): f(gate) * up, with one rounding.
pub(super) fn gated(gate: &View<'_>, up: &View<'_>, out: &mut ViewMut<'_>, threads: usize, f: Block) -> Result {
    if gate.dtype != up.dtype {
        return Err(KernelError::Mixed(gate.dtype, up.dtype));
    }
    let shape = broadcast_shape(gate.shape, up.shape)?;
    expect(out, gate.dtype, &shape)?;
    let w = Walk::broadcast(&shape, [gate.shape, up.shape])?;
    let (mut g, u) = (floats(gate)?.into_owned(), floats(up)?);
    parts(&mut g, BLOCK, threads, |_, part| f(part));
    write_floats(out, |o| {
        w.zip(&g, &u, o, |g, u| g * u);
        Ok(())
    })
}
