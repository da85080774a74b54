//! Functions of one element.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::super::elem::{bools, is_int, map_blocks, map_float, map_int, wrong_type};
use super::super::{Args, Call, Data, StandardError, floats};
use crate::cpu::math;
use crate::cpu::simd::map;
use crate::dtype::DType;

type Result<T> = std::result::Result<T, StandardError>;

fn one(d: Result<Data>) -> Result<Vec<Option<Data>>> {
    Ok(vec![Some(d?)])
}

/// Kernels of functions that have a form in f32 which the compiler vectorises.
macro_rules! block_functions {
    ($($name:ident = $narrow:expr, $wide:expr;)*) => {$(
        pub(super) fn $name(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
            one(map_blocks(&x.tensor(0)?, |x, o| map(x, o, $narrow), $wide))
        }
    )*};
}

block_functions! {
    sqrt = f32::sqrt, f64::sqrt;
    reciprocal = |x| 1.0 / x, |x| 1.0 / x;
    exp = math::exp, f64::exp;
    log = math::ln, f64::ln;
    sigmoid = math::sigmoid, sigmoid_of;
    tanh = math::tanh, f64::tanh;
    erf = math::erf, libm::erf;
    floor = f32::floor, f64::floor;
    ceil = f32::ceil, f64::ceil;
    round = f32::round_ties_even, f64::round_ties_even;
}

/// Kernels of functions of floating-point elements without attributes.
macro_rules! float_functions {
    ($($name:ident = $f:expr;)*) => {$(
        pub(super) fn $name(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
            one(map_float(&x.tensor(0)?, $f))
        }
    )*};
}

float_functions! {
    cos = f64::cos;
    sin = f64::sin;
    tan = f64::tan;
    acos = f64::acos;
    asin = f64::asin;
    atan = f64::atan;
    cosh = f64::cosh;
    sinh = f64::sinh;
    acosh = f64::acosh;
    asinh = f64::asinh;
    atanh = f64::atanh;
    hard_swish = |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0);
    mish = |x| x * softplus_of(x).tanh();
    softplus = softplus_of;
    softsign = |x| x / (1.0 + x.abs());
}

/// Kernels of functions of signed numbers.
macro_rules! number_functions {
    ($($name:ident = $float:expr, $int:expr;)*) => {$(
        pub(super) fn $name(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
            let x = x.tensor(0)?;
            one(if is_int(x.dtype) { map_int(&x, $int) } else { map_float(&x, $float) })
        }
    )*};
}

number_functions! {
    abs = f64::abs, i128::abs;
    neg = |x| -x, |x| -x;
    sign = |x| if x == 0.0 || x.is_nan() { x } else { x.signum() }, i128::signum;
    relu = |x| if x < 0.0 { 0.0 } else { x }, |x| x.max(0);
}

fn sigmoid_of(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + exp(x)) that does not overflow.
fn softplus_of(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p() + if x.is_nan() { x } else { 0.0 }
}

fn not_a_number(call: &Call, x: &Args<'_>, f: impl Fn(f64) -> bool) -> Result<Vec<Option<Data>>> {
    let x = x.tensor(0)?;
    if !x.dtype.is_float() && !x.dtype.is_minifloat() {
        return Err(StandardError::new(format!("`{}` takes floating-point numbers, got {}", call.op, x.dtype)));
    }
    one(bools(x.shape, floats(&x).into_iter().map(f)))
}

pub(super) fn is_nan(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    not_a_number(c, x, f64::is_nan)
}

pub(super) fn is_inf(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (negative, positive) = (c.flag("detect_negative", true), c.flag("detect_positive", true));
    not_a_number(c, x, |v| v.is_infinite() && if v < 0.0 { negative } else { positive })
}

pub(super) fn not(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = x.tensor(0)?;
    if x.dtype != DType::Bool {
        return Err(wrong_type(x.dtype));
    }
    one(bools(x.shape, x.bytes.iter().map(|&b| b == 0)))
}

pub(super) fn bitwise_not(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    one(map_int(&x.tensor(0)?, |v| !v))
}

pub(super) fn elu(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let alpha = c.float("alpha").unwrap_or(1.0);
    let short = alpha as f32;
    let blocks = move |x: &[f32], o: &mut [f32]| map(x, o, move |v| if v < 0.0 { short * math::exp_m1(v) } else { v });
    one(map_blocks(&x.tensor(0)?, blocks, move |x| if x < 0.0 { alpha * x.exp_m1() } else { x }))
}

pub(super) fn selu(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let alpha = c.float("alpha").unwrap_or(1.673_263_192_176_818_8);
    let gamma = c.float("gamma").unwrap_or(1.050_701_022_148_132_3);
    let (a, g) = (alpha as f32, gamma as f32);
    let blocks = move |x: &[f32], o: &mut [f32]| map(x, o, move |v| g * if v > 0.0 { v } else { a * math::exp_m1(v) });
    one(map_blocks(&x.tensor(0)?, blocks, move |x| gamma * if x > 0.0 { x } else { alpha * x.exp_m1() }))
}

pub(super) fn celu(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let alpha = c.float("alpha").unwrap_or(1.0);
    if alpha == 0.0 {
        return Err(StandardError::new("`alpha` is 0"));
    }
    let f = move |x: f64| if x.is_nan() { x } else { x.max(0.0) + (alpha * (x / alpha).exp_m1()).min(0.0) };
    one(map_float(&x.tensor(0)?, f))
}

pub(super) fn leaky_relu(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let alpha = c.float("alpha").unwrap_or(0.01);
    let short = alpha as f32;
    let blocks = move |x: &[f32], o: &mut [f32]| map(x, o, move |v| if v < 0.0 { short } else { 1.0 } * v);
    one(map_blocks(&x.tensor(0)?, blocks, move |x| if x < 0.0 { alpha * x } else { x }))
}

pub(super) fn thresholded_relu(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let alpha = c.float("alpha").unwrap_or(1.0);
    one(map_float(&x.tensor(0)?, move |x| if x > alpha || x.is_nan() { x } else { 0.0 }))
}

pub(super) fn hard_sigmoid(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (alpha, beta) = (c.float("alpha").unwrap_or(0.2), c.float("beta").unwrap_or(0.5));
    let (a, b) = (alpha as f32, beta as f32);
    let blocks = move |x: &[f32], o: &mut [f32]| map(x, o, move |v| (a * v + b).clamp(0.0, 1.0));
    one(map_blocks(&x.tensor(0)?, blocks, move |x| (alpha * x + beta).clamp(0.0, 1.0)))
}

pub(super) fn swish(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let alpha = c.float("alpha").unwrap_or(1.0);
    one(map_float(&x.tensor(0)?, move |x| x * sigmoid_of(alpha * x)))
}

/// x * Phi(x), or its approximation with a hyperbolic tangent (arXiv 1606.08415).
pub(super) fn gelu(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = x.tensor(0)?;
    one(match c.text("approximate").unwrap_or("none") {
        "none" => map_blocks(&x, |x, o| map(x, o, math::gelu_erf), |x| 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2))),
        "tanh" => map_blocks(
            &x,
            |x, o| map(x, o, math::gelu_tanh),
            |x| 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()),
        ),
        other => Err(StandardError::new(format!("there is no approximation `{other}`; use `none` or `tanh`"))),
    })
}

pub(super) fn shrink(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (bias, lambd) = (c.float("bias").unwrap_or(0.0), c.float("lambd").unwrap_or(0.5));
    let f = move |x: f64| {
        if x < -lambd {
            x + bias
        } else if x > lambd {
            x - bias
        } else {
            0.0
        }
    };
    let x = x.tensor(0)?;
    one(if is_int(x.dtype) { map_int(&x, |v| f(v as f64) as i128) } else { map_float(&x, f) })
}

/// Limits from attributes (opset 6) or operands (since 11); a limit above the other gives the upper one.
pub(super) fn clip(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    if is_int(x.dtype) {
        let limit = |i: usize| match args.optional(i)? {
            None => Ok(None),
            Some(v) => match super::super::integers(&v)[..] {
                [v] => Ok(Some(v)),
                _ => Err(StandardError::new(format!("operand {i} has the shape {:?}, not one element", v.shape))),
            },
        };
        let (low, high) = (limit(1)?, limit(2)?);
        return one(map_int(&x, |v| high.map_or(i128::MAX, |h| h).min(low.map_or(v, |l| v.max(l)))));
    }
    let (low, high) = if c.opset < 11 {
        (c.float("min").or(Some(f64::from(f32::MIN))), c.float("max").or(Some(f64::from(f32::MAX))))
    } else {
        (args.scalar(1)?, args.scalar(2)?)
    };
    let (low, high) = (low.unwrap_or(f64::NEG_INFINITY), high.unwrap_or(f64::INFINITY));
    let (least, most) = (low as f32, high as f32);
    // NaN stays, and limits that are NaN limit nothing.
    let blocks = move |x: &[f32], o: &mut [f32]| {
        map(x, o, move |v| {
            let v = if v < least { least } else { v };
            if v > most { most } else { v }
        });
    };
    one(map_blocks(&x, blocks, move |v| {
        let v = if v < low { low } else { v };
        if v > high { high } else { v }
    }))
}

/// Dropout leaves the data as it is where it does not train, or drops nothing.
pub(super) fn dropout(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    let training = args.scalar(2)?.is_some_and(|t| t != 0.0);
    if training && args.scalar(1)?.unwrap_or(0.5) != 0.0 {
        return Err(StandardError::new("random results are not supported: training mode with a ratio other than 0"));
    }
    let mask = match super::dropout_mask_type(c, x.dtype) {
        DType::Bool => bools(x.shape, std::iter::repeat_n(true, x.len()))?,
        d => super::super::from_floats(d, x.shape, std::iter::repeat_n(1.0, x.len()))?,
    };
    Ok(vec![Some(super::super::from_bytes(x.dtype, x.shape, x.bytes)?), Some(mask)])
}
