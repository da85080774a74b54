//! Running sums and products.

use super::super::elem::{Float, Int, Lanes, by_float, by_int, make, wrong_type};
use super::super::{Args, Call, Data, StandardError, axis, native};
use crate::dtype::DType;

type Result<T> = std::result::Result<T, StandardError>;

pub(super) fn cum_sum(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    run(c, x, (0.0, |a, b| a + b), (0, |a: i128, b| a.wrapping_add(b)))
}

pub(super) fn cum_prod(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    run(c, x, (1.0, |a, b| a * b), (1, |a: i128, b| a.wrapping_mul(b)))
}

fn run(
    c: &Call,
    args: &Args<'_>,
    float: (f64, impl Fn(f64, f64) -> f64),
    int: (i128, impl Fn(i128, i128) -> i128),
) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    let a = match args.ints(1)?.as_deref() {
        Some(&[a]) => axis(a, x.shape.len())?,
        other => return Err(StandardError::new(format!("operand 1 must be one axis, got {other:?}"))),
    };
    let lanes = Lanes::along(x.shape, a);
    let (exclusive, reverse) = (c.flag("exclusive", false), c.flag("reverse", false));
    macro_rules! scan {
        ($t:ty, $from:expr, $neutral:expr, $f:expr) => {{
            let x_elements = native::<$t>(&x);
            let mut out = x_elements.to_vec();
            for start in lanes.starts() {
                let mut so_far = $neutral;
                for i in 0..lanes.len {
                    let at = start + if reverse { lanes.len - 1 - i } else { i } * lanes.inner;
                    let next = $f(so_far, x_elements[at].wide());
                    out[at] = $from(if exclusive { so_far } else { next });
                    so_far = next;
                }
            }
            make(x.dtype, x.shape, out)
        }};
    }
    Ok(vec![Some(by_float!(
        x.dtype,
        T => scan!(T, T::narrow, float.0, float.1),
        _ => by_int!(x.dtype, T => scan!(T, T::wrap, int.0, int.1), _ => Err(wrong_type(x.dtype)))
    )?)])
}
