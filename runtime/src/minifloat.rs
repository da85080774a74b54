//! Floating-point formats of at most eight bits, by their codes.
//!
//! Source of the formats: "8-bit Numerical Formats for Deep Neural Networks" (arXiv 2206.02915) for the FNUZ ones, "FP8 Formats
//! for Deep Learning" (arXiv 2209.05433) for the others, and the OCP Microscaling specification 1.0 for `f4e2m1` and `f8e8m0`.

use std::sync::LazyLock;

use crate::dtype::DType;

struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    /// Codes without sign above the largest finite one.
    infinity: Option<u8>,
    /// The code that a NaN gets, sign included.
    nan: Option<u8>,
    /// Whether there is a sign bit.
    signed: bool,
    /// Whether the code of negative zero means NaN instead.
    unsigned_zero: bool,
}

fn format(dtype: DType) -> Option<Format> {
    let f = |exponent_bits, mantissa_bits, bias, infinity, nan, unsigned_zero| {
        Some(Format { exponent_bits, mantissa_bits, bias, infinity, nan, signed: true, unsigned_zero })
    };
    match dtype {
        DType::F8E4M3FN => f(4, 3, 7, None, Some(0x7f), false),
        DType::F8E4M3FNUZ => f(4, 3, 8, None, Some(0x80), true),
        DType::F8E5M2 => f(5, 2, 15, Some(0x7c), Some(0x7f), false),
        DType::F8E5M2FNUZ => f(5, 2, 16, None, Some(0x80), true),
        DType::F4E2M1 => f(2, 1, 1, None, None, false),
        DType::F8E8M0 => Some(Format {
            exponent_bits: 8,
            mantissa_bits: 0,
            bias: 127,
            infinity: None,
            nan: Some(0xff),
            signed: false,
            unsigned_zero: false,
        }),
        _ => None,
    }
}

impl Format {
    /// Value of a code without sign.
    fn magnitude(&self, code: u8) -> f64 {
        let mantissa = f64::from(code & ((1u16 << self.mantissa_bits) - 1) as u8);
        let exponent = i32::from(code >> self.mantissa_bits);
        let step = 0.5f64.powi(self.mantissa_bits as i32);
        if exponent == 0 && self.signed {
            return mantissa * step * 2f64.powi(1 - self.bias);
        }
        (1.0 + mantissa * step) * 2f64.powi(exponent - self.bias)
    }

    /// The finite values without sign in ascending order; their index is their code.
    fn finite(&self) -> Vec<f64> {
        let codes = 1u16 << (self.exponent_bits + self.mantissa_bits);
        let special =
            |c: u16| self.infinity.is_some_and(|i| c >= u16::from(i)) || self.nan.is_some_and(|n| c == u16::from(n));
        (0..codes).filter(|&c| !special(c)).map(|c| self.magnitude(c as u8)).collect()
    }
}

/// The finite values without sign of each format, by [`index`].
static FINITE: LazyLock<Vec<Vec<f64>>> =
    LazyLock::new(|| DType::MINIFLOATS.iter().filter_map(|&d| format(d)).map(|f| f.finite()).collect());

fn index(dtype: DType) -> Option<usize> {
    DType::MINIFLOATS.iter().position(|&d| d == dtype)
}

/// The value of a code; NaN for a type that is no small float.
pub fn decode(dtype: DType, code: u8) -> f64 {
    let Some(f) = format(dtype) else { return f64::NAN };
    let sign = 1u8 << (f.exponent_bits + f.mantissa_bits).min(7);
    let negative = f.signed && code & sign != 0;
    let magnitude = if f.signed { code & (sign - 1) } else { code };
    if f.nan == Some(code) || (f.unsigned_zero && code == sign) {
        return f64::NAN;
    }
    let value = match f.infinity {
        Some(i) if magnitude == i => f64::INFINITY,
        Some(i) if magnitude > i => return f64::NAN,
        _ if f.nan == Some(magnitude) => return f64::NAN,
        _ => f.magnitude(magnitude),
    };
    if negative { -value } else { value }
}

/// The code nearest to a value, ties to the even code. What lies beyond the largest finite value becomes that value if
/// `saturate` is set, else infinity, else NaN, whichever the format has. A format without sign takes the magnitude.
pub fn encode(dtype: DType, value: f64, saturate: bool) -> u8 {
    let (Some(f), Some(finite)) = (format(dtype), index(dtype).and_then(|i| FINITE.get(i))) else { return 0 };
    let last = finite.len() - 1;
    if value.is_nan() {
        // Without a code for it, negative zero is taken, as the `ml_dtypes` package does.
        return f.nan.unwrap_or(1 << (f.exponent_bits + f.mantissa_bits));
    }
    let a = value.abs();
    // A value is too large where it would be rounded to the step after the last.
    let beyond = finite[last] + (finite[last] - finite[last - 1]) / 2.0;
    let too_large = if last % 2 == 0 { a > beyond } else { a >= beyond };
    let code = if a.is_infinite() || too_large {
        match (saturate, f.infinity, f.nan) {
            (false, Some(i), _) => i,
            (false, None, Some(n)) => return n,
            _ => last as u8,
        }
    } else {
        let above = finite.partition_point(|&v| v < a).min(last);
        let below = above.saturating_sub(1);
        let (down, up) = (a - finite[below], finite[above] - a);
        let even = if above % 2 == 0 { above } else { below };
        (if down < up {
            below
        } else if up < down {
            above
        } else {
            even
        }) as u8
    };
    let sign = f.signed && value.is_sign_negative() && !(f.unsigned_zero && code == 0);
    code | if sign { 1 << (f.exponent_bits + f.mantissa_bits).min(7) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives() {
        for d in DType::MINIFLOATS {
            let codes = if d == DType::F4E2M1 { 16u16 } else { 256 };
            for c in 0..codes {
                let v = decode(d, c as u8);
                if v.is_finite() {
                    assert_eq!(encode(d, v, true), c as u8, "{d} {c:#x} {v}");
                }
            }
        }
    }

    #[test]
    fn limits_and_ties() {
        let e4m3 = DType::F8E4M3FN;
        assert_eq!(decode(e4m3, 0x7e), 448.0);
        assert_eq!((encode(e4m3, 1e9, true), encode(e4m3, 1e9, false)), (0x7e, 0x7f));
        assert_eq!(
            (encode(e4m3, 463.9, false), encode(e4m3, 464.0, false), encode(e4m3, 465.0, false)),
            (0x7e, 0x7e, 0x7f)
        );
        assert_eq!(encode(DType::F8E5M2, -1e9, false), 0xfc);
        assert_eq!(decode(DType::F8E4M3FNUZ, 0x7f), 240.0);
        assert_eq!(encode(DType::F8E4M3FNUZ, -0.0, true), 0);
        assert_eq!(decode(DType::F4E2M1, 7), 6.0);
        assert_eq!((encode(DType::F4E2M1, 0.25, true), encode(DType::F4E2M1, 0.75, true)), (0, 2));
        assert_eq!((decode(DType::F8E8M0, 127), encode(DType::F8E8M0, 4.0, true)), (1.0, 129));
    }
}
