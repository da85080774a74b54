//! Kernels of one operand that compute element by element, and products with such a function of the other operand.

use super::convert::{float_blocks, floats, ints, typed, typed_mut, write_floats, write_ints};
use super::simd::{BLOCK, each, map, parts};
use super::walk::Walk;
use super::{KernelError, Result, broadcast_shape, expect, math};
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::{View, ViewMut};

/// Replaces the elements of a block.
type Block = fn(&mut [f32]);

/// A function of f32.
fn block(op: &Op) -> Option<Block> {
    Some(match op {
        Op::Neg {} => |v| each(v, |x| -x),
        Op::Abs {} => |v| each(v, f32::abs),
        Op::Sqrt {} => |v| each(v, f32::sqrt),
        Op::Reciprocal {} => |v| each(v, f32::recip),
        Op::Exp {} => |v| each(v, math::exp),
        Op::Log {} => |v| each(v, math::ln),
        Op::Sigmoid {} => |v| each(v, math::sigmoid),
        Op::Tanh {} => |v| each(v, math::tanh),
        Op::Erf {} => |v| each(v, math::erf),
        Op::Cos {} => |v| each(v, f32::cos),
        Op::Sin {} => |v| each(v, f32::sin),
        // Written as a comparison so that NaN stays NaN.
        Op::Relu {} => |v| each(v, |x| if x < 0.0 { 0.0 } else { x }),
        Op::Floor {} => |v| each(v, f32::floor),
        Op::Ceil {} => |v| each(v, f32::ceil),
        Op::Silu {} => |v| each(v, math::silu),
        Op::Gelu { tanh: false } => |v| each(v, math::gelu_erf),
        Op::Gelu { tanh: true } => |v| each(v, math::gelu_tanh),
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
        d if d.is_float() => float_blocks(x, out, 1, threads, block(op).ok_or_else(unsupported)?),
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
