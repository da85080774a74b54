//! Conversions between all element types, strings included.

use super::super::elem::{Float, Int, bits, by_float, by_int, dtype_of_code, is_int, is_signed, make};
use super::super::{Arg, Args, Call, Data, StandardError, Strings, floats, from_floats, from_ints, integers, native};
use super::super::{count, from_bytes};
use crate::dtype::DType;
use crate::minifloat;
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;

/// How numbers outside of a small type become numbers of it.
#[derive(Clone, Copy)]
struct Mode {
    saturate: bool,
    /// Rounding to powers of two.
    powers: Powers,
}

#[derive(Clone, Copy)]
enum Powers {
    Up,
    Down,
    Nearest,
}

fn mode(c: &Call) -> Result<Mode> {
    let powers = match c.text("round_mode").unwrap_or("up") {
        "up" => Powers::Up,
        "down" => Powers::Down,
        "nearest" => Powers::Nearest,
        other => {
            return Err(StandardError::new(format!("there is no rounding `{other}`; use `up`, `down` or `nearest`")));
        }
    };
    Ok(Mode { saturate: c.flag("saturate", true), powers })
}

pub(super) fn cast(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    convert(x.required(0)?, dtype_of_code(c.required_int("to")?)?, mode(c)?)
}

pub(super) fn cast_like(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let to = match x.required(1)? {
        Arg::Tensor(v) => v.dtype,
        Arg::Other(Data::Strings(_)) => DType::Opaque,
        other => return Err(StandardError::new(format!("operand 1 is {}, not a tensor", other.describe()))),
    };
    convert(x.required(0)?, to, mode(c)?)
}

/// `Opaque` stands for strings.
fn convert(x: Arg<'_>, to: DType, mode: Mode) -> Result<Vec<Option<Data>>> {
    Ok(vec![Some(match x {
        Arg::Tensor(v) if to == DType::Opaque => Strings { shape: v.shape.to_vec(), values: texts(&v) }.into(),
        Arg::Tensor(v) => numbers(&v, to, mode)?,
        Arg::Other(Data::Strings(s)) if to == DType::Opaque => s.as_ref().clone().into(),
        Arg::Other(Data::Strings(s)) => parse(s, to, mode)?,
        other => return Err(StandardError::new(format!("operand 0 is {}, not a tensor", other.describe()))),
    })])
}

/// Numbers as numbers of another type.
fn numbers(x: &View<'_>, to: DType, mode: Mode) -> Result<Data> {
    if x.dtype == to {
        return from_bytes(to, x.shape, x.bytes);
    }
    // The common case without a detour.
    if x.dtype.is_float() && to.is_float() {
        return by_float!(x.dtype, A => by_float!(to, B => {
            make(to, x.shape, native::<A>(x).iter().map(|v| B::narrow(v.wide())))
        }, _ => Err(super::super::elem::wrong_type(to))), _ => Err(super::super::elem::wrong_type(x.dtype)));
    }
    if is_int(x.dtype) && is_int(to) {
        return by_int!(x.dtype, A => by_int!(to, B => {
            make(to, x.shape, native::<A>(x).iter().map(|v| B::wrap(v.wide())))
        }, _ => Err(super::super::elem::wrong_type(to))), _ => Err(super::super::elem::wrong_type(x.dtype)));
    }
    if x.dtype.is_float() || x.dtype.is_minifloat() {
        return from_numbers(to, x.shape, floats(x), mode);
    }
    let ints = integers(x);
    match to {
        // One rounding.
        DType::F32 => make(to, x.shape, ints.into_iter().map(|v| v as f32)),
        d if d.is_minifloat() => from_numbers(to, x.shape, ints.into_iter().map(|v| v as f64), mode),
        _ => from_ints(to, x.shape, ints),
    }
}

/// Floating-point numbers in any type.
fn from_numbers(to: DType, shape: &[usize], v: impl IntoIterator<Item = f64>, mode: Mode) -> Result<Data> {
    match to {
        d if d.is_float() => from_floats(d, shape, v),
        DType::F8E8M0 => make(to, shape, v.into_iter().map(|v| power_of_two(v, mode))),
        d if d.is_minifloat() => make(to, shape, v.into_iter().map(|v| minifloat::encode(d, v, mode.saturate))),
        DType::Bool => make(to, shape, v.into_iter().map(|v| u8::from(v != 0.0))),
        DType::U64 => make(to, shape, v.into_iter().map(|v| if v < 0.0 { v as i64 as u64 } else { v as u64 })),
        d => from_ints(d, shape, v.into_iter().map(|v| i128::from(v as i64))),
    }
}

/// The code of a power of two: the exponent with a bias of 127. A number rounds away from zero, towards it, or to the
/// nearer power with ties up; numbers out of range become the nearest power where that is asked for, else NaN.
fn power_of_two(v: f64, mode: Mode) -> u8 {
    const NAN: u8 = 0xff;
    let a = v.abs();
    if v.is_nan() || (v.is_infinite() && !mode.saturate) {
        return NAN;
    }
    if a == 0.0 {
        return if mode.saturate { 0 } else { NAN };
    }
    if a.is_infinite() {
        return NAN - 1;
    }
    let (mut down, mut rest) = (a.log2().floor() as i32, 0.0);
    // The logarithm may be rounded to the next integer.
    for _ in 0..2 {
        rest = a / 2f64.powi(down);
        down += i32::from(rest >= 2.0) - i32::from(rest < 1.0);
    }
    let exponent = match mode.powers {
        Powers::Down => down,
        Powers::Up => down + i32::from(rest > 1.0),
        Powers::Nearest => down + i32::from(rest >= 1.5),
    };
    match exponent + 127 {
        e @ 0..=254 => e as u8,
        e if mode.saturate => e.clamp(0, 254) as u8,
        _ => NAN,
    }
}

/// The shortest decimals that read back to the same elements. Booleans are `True` and `False`.
fn texts(x: &View<'_>) -> Vec<String> {
    match x.dtype {
        DType::Bool => x.bytes.iter().map(|&b| if b != 0 { "True".to_owned() } else { "False".to_owned() }).collect(),
        d if d.is_float() || d.is_minifloat() => floats(x).into_iter().map(|v| text(d, v)).collect(),
        _ => integers(x).into_iter().map(|v| v.to_string()).collect(),
    }
}

fn text(d: DType, v: f64) -> String {
    if !v.is_finite() {
        return if v.is_nan() {
            "nan"
        } else if v > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = match d {
        DType::F64 => format!("{v:e}"),
        DType::F32 => format!("{:e}", v as f32),
        _ => {
            let same = |t: &String| t.parse::<f64>().is_ok_and(|w| super::super::elem::round_to(d, w) == v);
            (0..17).map(|p| format!("{v:.p$e}")).find(same).unwrap_or_else(|| format!("{v:e}"))
        }
    };
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if v != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    // Plain: the digits with the point moved.
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |d| ("-", d));
    let digits: String = digits.chars().filter(|c| *c != '.').collect();
    let zeros = |n: i32| "0".repeat(n.max(0) as usize);
    if exponent < 0 {
        return format!("{sign}0.{}{digits}", zeros(-exponent - 1));
    }
    let whole = exponent as usize + 1;
    let padded = format!("{digits}{}", zeros(whole as i32 - digits.len() as i32));
    let (whole, rest) = padded.split_at(whole);
    format!("{sign}{whole}.{}", if rest.is_empty() { "0" } else { rest })
}

/// Strings as numbers.
fn parse(s: &Strings, to: DType, mode: Mode) -> Result<Data> {
    let wrong = |t: &str| StandardError::new(format!("the string `{t}` is no number"));
    let number = |t: &String| t.trim().parse::<f64>().map_err(|_| wrong(t));
    if to == DType::F32 {
        let read = |t: &String| t.trim().parse::<f32>().map_err(|_| wrong(t));
        return make(to, &s.shape, s.values.iter().map(read).collect::<Result<Vec<_>>>()?);
    }
    if to.is_float() || to.is_minifloat() {
        return from_numbers(to, &s.shape, s.values.iter().map(number).collect::<Result<Vec<_>>>()?, mode);
    }
    let integer = |t: &String| match (t.trim(), t.trim().parse::<i128>()) {
        (_, Ok(v)) => Ok(v),
        ("True" | "true", _) if to == DType::Bool => Ok(1),
        ("False" | "false", _) if to == DType::Bool => Ok(0),
        _ if to == DType::Bool => Ok(i128::from(number(t)? != 0.0)),
        _ => Ok(number(t)? as i128),
    };
    from_ints(to, &s.shape, s.values.iter().map(integer).collect::<Result<Vec<_>>>()?)
}

/// The same bits as elements of another type of as many bits.
pub(super) fn bit_cast(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = x.tensor(0)?;
    let to = dtype_of_code(c.required_int("to")?)?;
    if to == DType::Opaque {
        return Err(StandardError::new("bits of strings cannot be taken"));
    }
    if bits(to) != bits(x.dtype) {
        return Err(StandardError::new(format!(
            "{} has {} bits and {to} has {}; they must be equal",
            x.dtype,
            bits(x.dtype),
            bits(to)
        )));
    }
    count(to, x.shape)?;
    if bits(to) >= 8 && to != DType::Bool {
        return Ok(vec![Some(from_bytes(to, x.shape, x.bytes)?)]);
    }
    // Small types have a byte for each element, in which negative numbers are extended.
    let up = 8 - bits(to);
    let element = |b: &u8| match to {
        DType::Bool => u8::from(*b != 0),
        d if is_signed(d) => ((b << up) as i8 >> up) as u8,
        _ => b << up >> up,
    };
    Ok(vec![Some(make(to, x.shape, x.bytes.iter().map(element))?)])
}
