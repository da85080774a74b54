//! Tensors made from a shape or from a few numbers.

use super::moved::{Source, assemble, carried, dims, extents, length, unknown};
use crate::dim::count_steps;
use crate::dtype::DType;
use crate::standard::elem::dtype_of_code;
use crate::standard::infer::required;
use crate::standard::{
    Args, Call, Data, Operand, Partial, StandardError, Strings, count, floats, from_bytes, from_floats, from_ints,
    integers,
};
use crate::tensor::Tensor;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

pub(super) fn constant_of_shape(c: &Call, x: &Args<'_>) -> Results {
    let shape = extents(&x.ints(0)?.ok_or_else(|| StandardError::new("operand 0, the shape, is missing"))?)?;
    let Some(value) = c.constant("value") else { return Ok(vec![Some(Tensor::zeros(DType::F32, &shape)?.into())]) };
    let value = Data::constant(value)?;
    let source = Source::data(&value).filter(|s| s.len() == 1);
    let source = source.ok_or_else(|| StandardError::new("`value` is not one element"))?;
    Ok(vec![Some(source.take(&shape, 1, std::iter::repeat(0))?)])
}

pub(super) fn constant_of_shape_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let dtype = c.constant("value").map_or(DType::F32, |v| v.dtype);
    let x = required(x, 0)?;
    Ok(vec![match x.values {
        Some(v) => carried(dtype, v.iter().cloned().map(Some)),
        None => unknown(dtype, length(&x)),
    }])
}

/// The element type that `EyeLike` makes.
fn eye_dtype(c: &Call, of: DType) -> Result<DType> {
    match c.int("dtype").map_or(Ok(of), dtype_of_code)? {
        DType::Opaque => Err(StandardError::new("the identity matrix of strings is not supported")),
        d => Ok(d),
    }
}

pub(super) fn eye_like(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let (rows, columns) = match *v.shape {
        [n] => (n, n),
        [r, c] => (r, c),
        _ => return Err(StandardError::new(format!("{:?} is no matrix", v.shape))),
    };
    let k = c.int("k").unwrap_or(0);
    let dtype = eye_dtype(c, v.dtype)?;
    let n = count(dtype, &[rows, columns])?;
    let one = |i: usize| (i % columns) as i64 - (i / columns) as i64 == k;
    Ok(vec![Some(match dtype.is_float() || dtype.is_minifloat() {
        true => from_floats(dtype, &[rows, columns], (0..n).map(|i| f64::from(u8::from(one(i)))))?,
        false => from_ints(dtype, &[rows, columns], (0..n).map(|i| i128::from(one(i))))?,
    })])
}

pub(super) fn eye_like_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let x = required(x, 0)?;
    let dtype = eye_dtype(c, x.ty.dtype)?;
    match &x.ty.shape[..] {
        [n] => Ok(vec![Partial::known(dtype, [n.clone(), n.clone()])]),
        [r, c] => Ok(vec![Partial::known(dtype, [r.clone(), c.clone()])]),
        _ => Err(StandardError::new(format!("{} is no matrix", x.ty))),
    }
}

pub(super) fn range(_: &Call, x: &Args<'_>) -> Results {
    let v = [x.tensor(0)?, x.tensor(1)?, x.tensor(2)?];
    let dtype = v[0].dtype;
    if let Some(w) = v.iter().find(|w| w.dtype != dtype || w.len() != 1) {
        return Err(StandardError::new(format!("{}{:?} is no bound of a range of {dtype}", w.dtype, w.shape)));
    }
    let zero = || StandardError::new("the step of a range is 0");
    let large = || StandardError::new("the range does not fit into memory");
    if !dtype.is_float() && !dtype.is_minifloat() {
        let (start, limit, delta) = (integers(&v[0])[0], integers(&v[1])[0], integers(&v[2])[0]);
        if delta == 0 {
            return Err(zero());
        }
        let span = if delta > 0 { limit - start } else { start - limit };
        let n = if span > 0 { (span - 1) / delta.abs() + 1 } else { 0 };
        let n = usize::try_from(n).map_err(|_| large())?;
        count(dtype, &[n])?;
        return Ok(vec![Some(from_ints(dtype, &[n], (0..n).map(|i| start + i as i128 * delta))?)]);
    }
    let (start, limit, delta) = (floats(&v[0])[0], floats(&v[1])[0], floats(&v[2])[0]);
    if delta == 0.0 {
        return Err(zero());
    }
    // The count in the type itself, as its subtraction and division round.
    let n = match dtype {
        DType::F64 => ((limit - start) / delta).ceil(),
        _ => f64::from(((limit as f32 - start as f32) / delta as f32).ceil()),
    };
    if n.is_nan() || n >= 9e15 {
        return Err(large());
    }
    let n = n.max(0.0) as usize;
    count(dtype, &[n])?;
    Ok(vec![Some(from_floats(dtype, &[n], (0..n).map(|i| start + i as f64 * delta))?)])
}

pub(super) fn range_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let start = required(x, 0)?;
    let n = match (start.values, required(x, 1)?.values, required(x, 2)?.ints().as_deref()) {
        // Ranges of other element types than these round.
        (Some([a]), Some([b]), Some(&[step])) if step != 0 => Some(count_steps(a, b, step)),
        _ => None,
    };
    Ok(vec![carried(start.ty.dtype, [n])])
}

pub(super) fn one_hot(c: &Call, x: &Args<'_>) -> Results {
    let places = x.tensor(0)?;
    let values = Source::of(x, 2)?;
    let depth = x.scalar(1)?.ok_or_else(|| StandardError::new("operand 1, the depth, is missing"))?.trunc();
    if values.len() != 2 || !(0.0..9e15).contains(&depth) {
        return Err(StandardError::new(format!("a depth of {depth} with {} values", values.len())));
    }
    let depth = depth as usize;
    let at = hot_axis(c, places.shape.len())?;
    let mut shape = places.shape.to_vec();
    shape.insert(at, depth);
    count(values.dtype(), &shape)?;
    // A negative index counts from the end; one outside the depth is off everywhere.
    let wrap = |v: f64| if v < 0.0 { v + depth as f64 } else { v };
    let place: Vec<f64> = floats(&places).into_iter().map(wrap).collect();
    let inner: usize = places.shape[at..].iter().product();
    let outer: usize = places.shape[..at].iter().product();
    let picks = (0..outer).flat_map(|o| {
        let place = &place;
        (0..depth).flat_map(move |d| (0..inner).map(move |i| (0, usize::from(place[o * inner + i] == d as f64))))
    });
    Ok(vec![Some(assemble(&shape, 1, &[values], picks)?)])
}

fn hot_axis(c: &Call, rank: usize) -> Result<usize> {
    crate::standard::axis(c.int("axis").unwrap_or(-1), rank + 1)
}

pub(super) fn one_hot_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (places, depth, values) = (required(x, 0)?, required(x, 1)?, required(x, 2)?);
    let mut shape = dims(&places);
    let depth = match depth.values {
        Some([d]) => Some(d.clone()),
        _ => None,
    };
    shape.insert(hot_axis(c, places.rank())?, depth);
    Ok(vec![carried(values.ty.dtype, shape)])
}

/// A tensor of zeros, or of empty strings, of one element.
pub(super) fn blank(dtype: DType) -> Result<Data> {
    match dtype {
        DType::Opaque => Ok(Strings { shape: vec![], values: vec![String::new()] }.into()),
        d => from_bytes(d, &[], &vec![0; d.size()]),
    }
}
