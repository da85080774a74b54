//! Functions of f32 without branches or calls, which the compiler vectorises inside [`vectorised`](super::simd::vectorised).
//!
//! Each is within 2 units in the last place of the exact value; the tests below measure it.

/// Adding this to a number below 2^22 rounds it to an integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;

/// A whole number of at most 2^22 as an integer; NaN is 0. The conversion of the language, which saturates, is not vectorised.
#[inline(always)]
pub(crate) fn small_int(v: f32) -> i32 {
    let v = if v.is_nan() { 0.0 } else { v };
    (v + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// As [`small_int`], for numbers of 32 bits.
#[inline(always)]
pub(crate) fn int_of(v: f64) -> i32 {
    let v = if v.is_nan() { 0.0 } else { v };
    // Adding 1.5 * 2^52 leaves the integer in the low bits.
    (v + 6_755_399_441_055_744.0).to_bits() as i32
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// n and p with e^x = 2^n (1 + p), for x between -104 and 89; NaN gives NaN.
#[inline(always)]
fn split_exp(x: f32) -> (i32, f32) {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let whole = shifted - ROUND;
    // ln 2 in two parts; the product with the first is exact.
    let r = whole.mul_add(-0.693_145_75, x);
    let r = whole.mul_add(-1.428_606_8e-6, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    (n, p.mul_add(r * r, r))
}

/// e^x - 1.
#[inline(always)]
pub(crate) fn exp_m1(x: f32) -> f32 {
    let inside = if x > 88.0 { 88.0 } else { x };
    let inside = if inside < -104.0 { -104.0 } else { inside };
    let (n, p) = split_exp(inside);
    // 2^n p + (2^n - 1), where the second is exact or as small as the first is large.
    let power = power_of_two(if n < -126 { -126 } else { n });
    let y = power.mul_add(p, power - 1.0);
    // The smallest numbers are their own results.
    let y = if x.abs() < 1e-7 { x } else { y };
    if x > 88.0 { exp(x) } else { y }
}

/// e^x.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Beyond these bounds the result is 0 or infinite. NaN fails both comparisons and stays.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (n, p) = split_exp(x);
    let p = p + 1.0;
    // In two factors, for results below the normal numbers and for 2^128.
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// The error function.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    // 1 - e^(t * P(t)) for large arguments.
    let far = (-1.728_534_7e-5f32).mul_add(t, 3.831_971_3e-4);
    let u = (-3.883_964_4e-3f32).mul_add(t, 2.425_462_2e-2);
    let far = far.mul_add(s, u);
    let far = far.mul_add(t, -1.067_778_8e-1);
    let far = far.mul_add(t, -6.348_467e-1);
    let far = far.mul_add(t, -1.287_175_1e-1);
    let far = far.mul_add(t, -t);
    // Beyond 4 the result is 1 already.
    let far = if t > 4.0 { -20.0 } else { far };
    let far = (1.0 - exp(far)).copysign(x);
    // An odd polynomial for small ones.
    let near = (-5.967_617e-4f32).mul_add(s, 4.991_194_2e-3);
    let near = near.mul_add(s, -2.676_813_5e-2);
    let near = near.mul_add(s, 1.128_199_3e-1);
    let near = near.mul_add(s, -3.761_253_4e-1);
    let near = near.mul_add(s, 1.283_791_7e-1);
    let near = near.mul_add(x, x);
    let y = if t > 0.927_734_4 { far } else { near };
    if x.is_nan() { x } else { y }
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let far = 1.0 - 2.0 / (exp(2.0 * t) + 1.0);
    let near = -5.704_988_7e-3f32;
    let near = near.mul_add(s, 2.063_909e-2);
    let near = near.mul_add(s, -5.373_971_6e-2);
    let near = near.mul_add(s, 1.333_144_2e-1);
    let near = near.mul_add(s, -3.333_328_4e-1);
    let near = (near * s).mul_add(x, x);
    if t > 0.625 { far.copysign(x) } else { near }
}

/// The natural logarithm.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    // Numbers below the normal ones are scaled first.
    let small = x < f32::MIN_POSITIVE;
    let (scaled, shift) = if small { (x * 8_388_608.0, -23.0) } else { (x, 0.0) };
    let bits = scaled.to_bits();
    // The mantissa in [sqrt(1/2), sqrt(2)).
    let e = (bits.wrapping_sub(0x3f35_04f3) as i32) >> 23;
    let m = f32::from_bits(bits.wrapping_sub((e << 23) as u32));
    let (f, e) = (m - 1.0, e as f32 + shift);
    let p = 7.037_683_6e-2f32;
    let p = p.mul_add(f, -1.151_461e-1);
    let p = p.mul_add(f, 1.167_699_9e-1);
    let p = p.mul_add(f, -1.242_014_1e-1);
    let p = p.mul_add(f, 1.424_932_3e-1);
    let p = p.mul_add(f, -1.666_805_8e-1);
    let p = p.mul_add(f, 2.000_071_5e-1);
    let p = p.mul_add(f, -2.499_999_4e-1);
    let p = p.mul_add(f, 3.333_333e-1);
    let z = f * f;
    let y = p * f * z;
    let y = e.mul_add(-2.121_944_4e-4, y);
    let y = z.mul_add(-0.5, y);
    let y = e.mul_add(0.693_359_4, f + y);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// 1 / (1 + e^-x), also where e^-x is too large.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let above = if x < 0.0 { e } else { 1.0 };
    above / (1.0 + e)
}

/// x * sigmoid(x).
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The exact Gaussian error linear unit.
#[inline(always)]
pub(crate) fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Its approximation by a hyperbolic tangent.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + tanh(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error over floats of all magnitudes, in units in the last place.
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0.0f64;
        for bits in (0..=u32::MAX).step_by(49_999) {
            let x = f32::from_bits(bits);
            let (y, want) = (f(x), exact(f64::from(x)));
            let rounded = want as f32;
            if !rounded.is_finite() || !y.is_finite() {
                assert!(y == rounded || (y.is_nan() && rounded.is_nan()), "at {x:e}: {y} instead of {rounded}");
                continue;
            }
            let a = rounded.abs().max(f32::MIN_POSITIVE);
            let unit = f64::from(f32::from_bits(a.to_bits() + 1) - a);
            worst = worst.max((f64::from(y) - want).abs() / unit);
        }
        worst
    }

    #[test]
    fn within_two_units_in_the_last_place() {
        assert!(worst(exp, f64::exp) < 1.1);
        assert!(worst(exp_m1, f64::exp_m1) < 2.0);
        assert!(worst(erf, libm::erf) < 1.1);
        assert!(worst(tanh, f64::tanh) < 1.4);
        assert!(worst(ln, f64::ln) < 0.9);
        assert!(worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp())) < 2.0);
    }

    #[test]
    fn integers_of_whole_numbers() {
        for v in [0, 1, -1, 255, -32_768, 4_194_304, -4_194_304] {
            assert_eq!((small_int(v as f32), int_of(f64::from(v))), (v, v));
        }
        assert_eq!([i32::MIN, i32::MAX].map(|v| int_of(f64::from(v))), [i32::MIN, i32::MAX]);
        assert_eq!((small_int(f32::NAN), int_of(f64::NAN), small_int(-0.0)), (0, 0, 0));
    }

    #[test]
    fn special_values() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!((exp(inf), exp(-inf), exp(0.0), exp(200.0), exp(-200.0)), (inf, 0.0, 1.0, inf, 0.0));
        assert_eq!((exp_m1(inf), exp_m1(-inf), exp_m1(-0.0), exp_m1(1e-30)), (inf, -1.0, 0.0, 1e-30));
        assert_eq!((erf(inf), erf(-inf), erf(0.0)), (1.0, -1.0, 0.0));
        assert_eq!((tanh(inf), tanh(-inf), tanh(1e-30)), (1.0, -1.0, 1e-30));
        assert_eq!((ln(0.0), ln(inf), ln(1.0)), (-inf, inf, 0.0));
        assert!(ln(-1.0).is_nan() && [exp, exp_m1, erf, tanh, ln, sigmoid].iter().all(|f| f(nan).is_nan()));
        assert_eq!((sigmoid(inf), sigmoid(-inf)), (1.0, 0.0));
    }
}
