//! Functions that the standard library lacks.

/// Where the series gives way to the continued fraction.
const TAIL: f64 = 3.0;

/// The error function, to a few units in the last place.
///
/// Abramowitz and Stegun, Handbook of Mathematical Functions: the series 7.1.6, whose terms are all
/// positive, and beyond [`TAIL`] the continued fraction 7.1.14 for its complement.
pub(super) fn erf(x: f64) -> f64 {
    let z = x.abs();
    if z.is_nan() {
        return z;
    }
    let value = if z < TAIL {
        let (mut term, mut sum, mut n) = (z, z, 1.0);
        while term > sum * 1e-17 {
            term *= 2.0 * z * z / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-z * z).exp() * sum
    } else if z < 6.0 {
        // z + (1/2)/(z + 1/(z + (3/2)/(z + ...))), from the inside.
        let fraction = (1..=60).rev().fold(z, |f, k| z + f64::from(k) / 2.0 / f);
        1.0 - 0.5 * std::f64::consts::FRAC_2_SQRT_PI * (-z * z).exp() / fraction
    } else {
        // 1 - erf(6) is below 2^-53.
        1.0
    };
    value.copysign(x)
}
