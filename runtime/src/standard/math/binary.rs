//! Functions of elements of several operands, which are broadcast together.

use std::borrow::Cow;

use super::super::elem::{
    Float, bits, bools, by_float, compare, is_int, make, range, same_type, spread, wrong_type, zip_float, zip_int,
};
use super::super::{
    Arg, Args, Call, Data, StandardError, Strings, broadcast, broadcast_index, floats, from_bytes, integers, native,
};
use crate::dtype::DType;
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;

fn one(d: Result<Data>) -> Result<Vec<Option<Data>>> {
    Ok(vec![Some(d?)])
}

/// A function of two numbers.
fn numbers(x: &Args<'_>, f: impl Fn(f64, f64) -> f64, i: impl Fn(i128, i128) -> i128) -> Result<Vec<Option<Data>>> {
    let (a, b) = (x.tensor(0)?, x.tensor(1)?);
    one(if is_int(a.dtype) { zip_int(&a, &b, i) } else { zip_float(&a, &b, f) })
}

pub(super) fn add(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    numbers(x, |a, b| a + b, |a, b| a + b)
}

pub(super) fn sub(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    numbers(x, |a, b| a - b, |a, b| a - b)
}

pub(super) fn mul(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    numbers(x, |a, b| a * b, |a, b| a.wrapping_mul(b))
}

/// Refuses integer divisors that are 0.
fn no_zero(b: &View<'_>) -> Result<()> {
    if is_int(b.dtype) && integers(b).contains(&0) {
        return Err(StandardError::new("an integer is divided by zero"));
    }
    Ok(())
}

/// Integers are divided towards zero.
pub(super) fn div(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    no_zero(&x.tensor(1)?)?;
    numbers(x, |a, b| a / b, |a, b| a.checked_div(b).unwrap_or(0))
}

/// The remainder with the divisor's sign, or with `fmod` that of the dividend.
pub(super) fn modulo(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (a, b) = (x.tensor(0)?, x.tensor(1)?);
    no_zero(&b)?;
    if c.flag("fmod", false) {
        return numbers(x, |a, b| a % b, |a, b| a.checked_rem(b).unwrap_or(0));
    }
    if !is_int(a.dtype) {
        return Err(StandardError::new(format!("operands of type {} need `fmod` to be 1", a.dtype)));
    }
    let floor_rem = |a: i128, b: i128| {
        let r = a.checked_rem(b).unwrap_or(0);
        if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
    };
    one(zip_int(&a, &b, floor_rem))
}

/// A power of an integer modulo 2^128.
fn int_power(mut base: i128, mut exponent: u128) -> i128 {
    let mut out = 1i128;
    while exponent > 0 {
        if exponent & 1 == 1 {
            out = out.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        exponent >>= 1;
    }
    out
}

/// The result has the base's type; the exponent may have another. An integer base wraps; what is no integer is truncated.
pub(super) fn pow(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (a, b) = (x.tensor(0)?, x.tensor(1)?);
    let shape = broadcast(&[a.shape, b.shape])?;
    if is_int(a.dtype) && is_int(b.dtype) {
        let base = spread(Cow::Owned(integers(&a)), a.shape, &shape)?;
        let exponent = spread(Cow::Owned(integers(&b)), b.shape, &shape)?;
        let power = |(&a, &b): (&i128, &i128)| match u128::try_from(b) {
            Ok(b) => int_power(a, b),
            Err(_) => (a as f64).powf(b as f64) as i64 as i128,
        };
        return one(super::super::from_ints(a.dtype, &shape, base.iter().zip(&*exponent).map(power)));
    }
    let exponent = spread(Cow::Owned(floats(&b)), b.shape, &shape)?;
    one(by_float!(a.dtype, T => {
        let base = spread(native::<T>(&a), a.shape, &shape)?;
        make(a.dtype, &shape, base.iter().zip(&*exponent).map(|(a, b)| T::narrow(a.wide().powf(*b))))
    }, _ => {
        if !is_int(a.dtype) {
            return Err(wrong_type(a.dtype));
        }
        let base = spread(Cow::Owned(floats(&a)), a.shape, &shape)?;
        let power = |(a, b): (&f64, &f64)| i128::from(a.powf(*b) as i64);
        super::super::from_ints(a.dtype, &shape, base.iter().zip(&*exponent).map(power))
    }))
}

/// A chain of a function of two numbers over all operands.
fn chain(x: &Args<'_>, f: impl Fn(f64, f64) -> f64, i: impl Fn(i128, i128) -> i128) -> Result<Vec<Option<Data>>> {
    let first = x.tensor(0)?;
    let mut out = from_bytes(first.dtype, first.shape, first.bytes)?;
    for k in 1..x.len() {
        let Arg::Tensor(a) = out.arg() else { return Err(StandardError::new("a result is no tensor")) };
        let b = x.tensor(k)?;
        out = if is_int(a.dtype) { zip_int(&a, &b, &i) } else { zip_float(&a, &b, &f) }?;
    }
    if !is_int(first.dtype) && !first.dtype.is_float() {
        return Err(wrong_type(first.dtype));
    }
    one(Ok(out))
}

/// The larger number; NaN if one is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// The smaller number; NaN if one is.
fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || a < b { a } else { b }
}

pub(super) fn max(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    chain(x, larger, i128::max)
}

pub(super) fn min(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    chain(x, smaller, i128::min)
}

pub(super) fn sum(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    chain(x, |a, b| a + b, |a, b| a + b)
}

pub(super) fn mean(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let all: Vec<View<'_>> = (0..x.len()).map(|i| x.tensor(i)).collect::<Result<_>>()?;
    let shapes: Vec<&[usize]> = all.iter().map(|v| v.shape).collect();
    let shape = broadcast(&shapes)?;
    let first = all.first().ok_or_else(|| StandardError::new("operand 0 is missing"))?;
    if !first.dtype.is_float() {
        return Err(wrong_type(first.dtype));
    }
    let mut sum = vec![0.0; super::super::count(DType::U8, &shape)?];
    for v in &all {
        same_type(first, v)?;
        let values = spread(Cow::Owned(floats(v)), v.shape, &shape)?;
        sum.iter_mut().zip(&*values).for_each(|(s, v)| *s += v);
    }
    let n = all.len() as f64;
    one(super::super::from_floats(first.dtype, &shape, sum.into_iter().map(|s| s / n)))
}

fn truths(x: &Args<'_>, f: impl Fn(bool, bool) -> bool) -> Result<Vec<Option<Data>>> {
    let (a, b) = (x.tensor(0)?, x.tensor(1)?);
    for v in [&a, &b] {
        if v.dtype != DType::Bool {
            return Err(wrong_type(v.dtype));
        }
    }
    one(compare(&a, &b, |_, _| false, |a, b| f(*a != 0, *b != 0)))
}

pub(super) fn and(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    truths(x, |a, b| a && b)
}

pub(super) fn or(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    truths(x, |a, b| a || b)
}

pub(super) fn xor(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    truths(x, |a, b| a != b)
}

pub(super) fn equal(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    if matches!(x.get(0), Some(Arg::Other(Data::Strings(_)))) {
        let (a, b) = (x.strings(0)?, x.strings(1)?);
        let shape = broadcast(&[&a.shape, &b.shape])?;
        let (ia, ib) = (broadcast_index(&a.shape, &shape)?, broadcast_index(&b.shape, &shape)?);
        return one(bools(&shape, ia.iter().zip(&ib).map(|(&i, &k)| a.values[i] == b.values[k])));
    }
    one(compare(&x.tensor(0)?, &x.tensor(1)?, f64::eq, i128::eq))
}

pub(super) fn less(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    one(compare(&x.tensor(0)?, &x.tensor(1)?, |a, b| a < b, |a, b| a < b))
}

pub(super) fn less_equal(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    one(compare(&x.tensor(0)?, &x.tensor(1)?, |a, b| a <= b, |a, b| a <= b))
}

pub(super) fn greater(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    one(compare(&x.tensor(0)?, &x.tensor(1)?, |a, b| a > b, |a, b| a > b))
}

pub(super) fn greater_equal(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    one(compare(&x.tensor(0)?, &x.tensor(1)?, |a, b| a >= b, |a, b| a >= b))
}

pub(super) fn bitwise_and(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    one(zip_int(&x.tensor(0)?, &x.tensor(1)?, |a, b| a & b))
}

pub(super) fn bitwise_or(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    one(zip_int(&x.tensor(0)?, &x.tensor(1)?, |a, b| a | b))
}

pub(super) fn bitwise_xor(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    one(zip_int(&x.tensor(0)?, &x.tensor(1)?, |a, b| a ^ b))
}

/// Shifts unsigned integers; all bits are gone after as many steps as there are bits.
pub(super) fn bit_shift(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (a, b) = (x.tensor(0)?, x.tensor(1)?);
    if !is_int(a.dtype) || range(a.dtype).0 < 0 {
        return Err(wrong_type(a.dtype));
    }
    let width = i128::from(bits(a.dtype));
    one(match c.text("direction") {
        Some("LEFT") => zip_int(&a, &b, |a, b| if b < width { a << b } else { 0 }),
        Some("RIGHT") => zip_int(&a, &b, |a, b| if b < width { a >> b } else { 0 }),
        other => Err(StandardError::new(format!("`direction` is {other:?}; it must be `LEFT` or `RIGHT`"))),
    })
}

/// The slope is broadcast to the first operand.
pub(super) fn prelu(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (a, slope) = (x.tensor(0)?, x.tensor(1)?);
    if broadcast(&[a.shape, slope.shape])? != a.shape {
        return Err(StandardError::new(format!("the slope {:?} does not broadcast to {:?}", slope.shape, a.shape)));
    }
    numbers(x, |x, s| if x < 0.0 { x * s } else { x }, |x, s| if x < 0 { x * s } else { x })
}

/// Takes elements of any type, strings too.
pub(super) fn select(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let condition = x.tensor(0)?;
    if condition.dtype != DType::Bool {
        return Err(StandardError::new(format!("the condition is {}, not bool", condition.dtype)));
    }
    if matches!(x.get(1), Some(Arg::Other(Data::Strings(_)))) {
        let (a, b) = (x.strings(1)?, x.strings(2)?);
        let shape = broadcast(&[condition.shape, &a.shape, &b.shape])?;
        let which = spread(native::<u8>(&condition), condition.shape, &shape)?;
        let (ia, ib) = (broadcast_index(&a.shape, &shape)?, broadcast_index(&b.shape, &shape)?);
        let pick = |i: usize| if which[i] != 0 { &a.values[ia[i]] } else { &b.values[ib[i]] };
        let values = (0..which.len()).map(|i| pick(i).clone()).collect();
        return one(Ok(Strings { shape, values }.into()));
    }
    let (a, b) = (x.tensor(1)?, x.tensor(2)?);
    same_type(&a, &b)?;
    let shape = broadcast(&[condition.shape, a.shape, b.shape])?;
    let which = spread(native::<u8>(&condition), condition.shape, &shape)?;
    macro_rules! pick {
        ($t:ty) => {{
            let (x, y) = (spread(native::<$t>(&a), a.shape, &shape)?, spread(native::<$t>(&b), b.shape, &shape)?);
            make(a.dtype, &shape, which.iter().zip(x.iter().zip(&*y)).map(|(c, (x, y))| if *c != 0 { *x } else { *y }))
        }};
    }
    one(match a.dtype.size() {
        1 => pick!(u8),
        2 => pick!(u16),
        4 => pick!(u32),
        _ => pick!(u64),
    })
}
