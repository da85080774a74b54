//! Random numbers. ONNX does not say how they are made, so they agree with no other implementation; equal calls make equal
//! numbers, on every rank and in every run.

use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::elem::dtype_of_code;
use crate::standard::infer::required;
use crate::standard::tensor::{carried, dims, extents};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, floats, from_floats, from_ints};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// The generator SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    /// A generator of the attribute `seed`; 0 without it.
    fn of(c: &Call) -> Random {
        Random(c.float("seed").unwrap_or(0.0).to_bits())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to 1, 1 excluded.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number of the standard normal distribution, after Box and Muller (1958).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }
}

/// The element type: the attribute `dtype`, else that of the operand, else f32.
fn dtype(c: &Call, like: Option<DType>) -> Result<DType> {
    c.int("dtype").map_or(Ok(like.unwrap_or(DType::F32)), dtype_of_code)
}

/// Fills a shape.
fn filled(c: &Call, dtype: DType, shape: &[usize]) -> Result<Data> {
    let n = count(dtype, shape)?;
    let mut random = Random::of(c);
    let value = |name: &str, default: f64| c.float(name).unwrap_or(default);
    if c.op.starts_with("RandomNormal") {
        let (mean, scale) = (value("mean", 0.0), value("scale", 1.0));
        return from_floats(dtype, shape, (0..n).map(|_| mean + scale * random.normal()));
    }
    let (low, high) = (value("low", 0.0), value("high", 1.0));
    from_floats(dtype, shape, (0..n).map(|_| low + (high - low) * random.uniform()))
}

pub(super) fn random(c: &Call, _: &Args<'_>) -> Results {
    let shape = c.ints("shape").ok_or_else(|| StandardError::new("attribute `shape` is missing"))?;
    Ok(vec![Some(filled(c, dtype(c, None)?, &extents(shape)?)?)])
}

pub(super) fn random_type(c: &Call, _: &[Option<Operand<'_>>]) -> Types {
    let shape = c.ints("shape").ok_or_else(|| StandardError::new("attribute `shape` is missing"))?;
    Ok(vec![Partial::known(dtype(c, None)?, shape.iter().map(|&d| Dim::from(d)))])
}

pub(super) fn random_like(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    Ok(vec![Some(filled(c, dtype(c, Some(v.dtype))?, v.shape)?)])
}

pub(super) fn like_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let x = required(x, 0)?;
    Ok(vec![carried(dtype(c, Some(x.ty.dtype))?, dims(&x))])
}

pub(super) fn bernoulli(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let dtype = dtype(c, Some(v.dtype))?;
    let mut random = Random::of(c);
    let draws: Vec<bool> = floats(&v).into_iter().map(|p| random.uniform() < p).collect();
    Ok(vec![Some(match dtype.is_float() || dtype.is_minifloat() {
        true => from_floats(dtype, v.shape, draws.into_iter().map(|d| f64::from(u8::from(d))))?,
        false => from_ints(dtype, v.shape, draws.into_iter().map(i128::from))?,
    })])
}

/// The number of draws of `Multinomial`, and its element type.
fn draws(c: &Call) -> Result<(usize, DType)> {
    let n = c.int("sample_size").unwrap_or(1);
    let n = usize::try_from(n).map_err(|_| StandardError::new(format!("`sample_size` is {n}")))?;
    Ok((n, c.int("dtype").map_or(Ok(DType::I32), dtype_of_code)?))
}

pub(super) fn multinomial(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let (n, dtype) = draws(c)?;
    let &[batch, classes] = v.shape else {
        return Err(StandardError::new(format!("{:?} is no batch of logarithms of weights", v.shape)));
    };
    if classes == 0 {
        return Err(StandardError::new("there is no class to draw"));
    }
    count(dtype, &[batch, n])?;
    let values = floats(&v);
    let mut random = Random::of(c);
    let mut out: Vec<i128> = vec![];
    for row in values.chunks_exact(classes) {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = row.iter().map(|v| (v - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        for _ in 0..n {
            let mut left = random.uniform() * total;
            let found = weights.iter().position(|w| {
                left -= w;
                left < 0.0
            });
            out.push(found.unwrap_or(classes - 1) as i128);
        }
    }
    Ok(vec![Some(from_ints(dtype, &[batch, n], out)?)])
}

pub(super) fn multinomial_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let x = required(x, 0)?;
    let (n, dtype) = draws(c)?;
    Ok(vec![carried(dtype, [x.ty.shape.first().cloned(), Some(Dim::from(n as i64))])])
}
