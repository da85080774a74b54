//! Elements written at indices.

use super::gather::{along, indices, tuples};
use super::moved::{Source, index};
use crate::dtype::DType;
use crate::standard::{
    Args, Call, Data, StandardError, Strings, axis, floats, from_floats, from_ints, integers, strides,
};
use crate::tensor::Tensor;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;

/// How an update meets what is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reduction {
    None,
    Add,
    Mul,
    Max,
    Min,
}

fn reduction(c: &Call) -> Result<Reduction> {
    Ok(match c.text("reduction").unwrap_or("none") {
        "none" => Reduction::None,
        "add" => Reduction::Add,
        "mul" => Reduction::Mul,
        "max" => Reduction::Max,
        "min" => Reduction::Min,
        r => {
            return Err(StandardError::new(format!(
                "the reduction `{r}` is unknown; there are none, add, mul, max and min"
            )));
        }
    })
}

/// Writes runs of `block` updates at the given positions, one after the other.
fn written(data: Source<'_>, updates: Source<'_>, block: usize, starts: &[usize], how: Reduction) -> Result<Data> {
    if updates.dtype() != data.dtype() {
        return Err(StandardError::new(format!("updates of {} for data of {}", updates.dtype(), data.dtype())));
    }
    let end = |s: &usize| s.checked_add(block).is_none_or(|e| e > data.len());
    if starts.len().checked_mul(block) != Some(updates.len()) || starts.iter().any(end) {
        return Err(StandardError::new(format!("updates of shape {:?} do not fit the indices", updates.shape)));
    }
    if how == Reduction::None {
        return overwritten(data, updates, block, starts);
    }
    let (Some(old), Some(new)) = (data.numbers(), updates.numbers()) else {
        return Err(StandardError::new("strings have no reduction"));
    };
    let to = starts.iter().flat_map(|&s| s..s + block);
    if old.dtype.is_float() || old.dtype.is_minifloat() {
        let mut out = floats(&old);
        let nan = |a: f64, b: f64| a.is_nan() || b.is_nan();
        for (at, v) in to.zip(floats(&new)) {
            let o = &mut out[at];
            *o = match how {
                Reduction::Add => *o + v,
                Reduction::Mul => *o * v,
                Reduction::Max | Reduction::Min if nan(*o, v) => f64::NAN,
                Reduction::Max => o.max(v),
                Reduction::Min => o.min(v),
                Reduction::None => v,
            };
        }
        return from_floats(old.dtype, old.shape, out);
    }
    let mut out = integers(&old);
    for (at, v) in to.zip(integers(&new)) {
        let o = &mut out[at];
        *o = match how {
            // Only the low 64 bits count in the end.
            Reduction::Add => i128::from((*o as i64).wrapping_add(v as i64)),
            Reduction::Mul => i128::from((*o as i64).wrapping_mul(v as i64)),
            Reduction::Max => (*o).max(v),
            Reduction::Min => (*o).min(v),
            Reduction::None => v,
        };
    }
    from_ints(old.dtype, old.shape, out)
}

fn overwritten(data: Source<'_>, updates: Source<'_>, block: usize, starts: &[usize]) -> Result<Data> {
    if let (Some(old), Some(new)) = (data.texts(), updates.texts()) {
        let mut values = old.to_vec();
        for (at, v) in starts.iter().flat_map(|&s| s..s + block).zip(new) {
            values[at].clone_from(v);
        }
        return Ok(Strings { shape: data.shape.to_vec(), values }.into());
    }
    let (Some(old), Some(new)) = (data.numbers(), updates.numbers()) else {
        return Err(StandardError::new("numbers and strings do not go together"));
    };
    let mut out = Tensor::from_bytes(old.dtype, old.shape, old.bytes)?;
    let (size, run) = (old.dtype.size(), block * old.dtype.size());
    let bytes = out.bytes_mut();
    for (&s, from) in starts.iter().zip(new.bytes.chunks_exact(run.max(1))) {
        bytes[s * size..s * size + run].copy_from_slice(from);
    }
    Ok(out.into())
}

pub(super) fn scatter_elements(c: &Call, x: &Args<'_>) -> Results {
    let (data, updates) = (Source::of(x, 0)?, Source::of(x, 2)?);
    let (list, shape) = indices(x, 1)?;
    if updates.shape != shape {
        return Err(StandardError::new(format!("updates of shape {:?} for indices of shape {shape:?}", updates.shape)));
    }
    let at = axis(c.int("axis").unwrap_or(0), data.rank())?;
    let starts = along(data.shape, shape, &list, at)?;
    Ok(vec![Some(written(data, updates, 1, &starts, reduction(c)?)?)])
}

pub(super) fn scatter_nd(c: &Call, x: &Args<'_>) -> Results {
    let (data, updates) = (Source::of(x, 0)?, Source::of(x, 2)?);
    let (list, shape) = indices(x, 1)?;
    let (starts, block) = tuples(data.shape, &list, shape, 0)?;
    let width = shape.last().copied().unwrap_or(0);
    let expected = [&shape[..shape.len() - 1], &data.shape[width..]].concat();
    if updates.shape != expected {
        return Err(StandardError::new(format!(
            "updates of shape {:?}, the indices ask for {expected:?}",
            updates.shape
        )));
    }
    Ok(vec![Some(written(data, updates, block, &starts, reduction(c)?)?)])
}

pub(super) fn tensor_scatter(c: &Call, x: &Args<'_>) -> Results {
    let (data, updates) = (Source::of(x, 0)?, Source::of(x, 1)?);
    let at = axis(c.int("axis").unwrap_or(-2), data.rank())?;
    let misfit = || {
        StandardError::new(format!(
            "an update of shape {:?} does not fit {:?} along axis {at}",
            updates.shape, data.shape
        ))
    };
    let fits = |d: usize| if d == at { updates.shape[d] <= data.shape[d] } else { updates.shape[d] == data.shape[d] };
    if at == 0 || updates.rank() != data.rank() || !(0..data.rank()).all(fits) {
        return Err(misfit());
    }
    let batch = data.shape[0];
    let first = match x.ints(2)? {
        Some(v) if v.len() == batch => v,
        Some(v) => return Err(StandardError::new(format!("{} write indices for a batch of {batch}", v.len()))),
        None => vec![0; batch],
    };
    let circular = match c.text("mode").unwrap_or("linear") {
        "linear" => false,
        "circular" => true,
        m => return Err(StandardError::new(format!("the mode `{m}` is unknown; there are linear and circular"))),
    };
    let (n, length) = (data.shape[at], updates.shape[at]);
    let outer: usize = data.shape[..at].iter().product();
    let block = strides(data.shape)[at];
    let per_sample = outer / batch.max(1);
    let mut starts = Vec::with_capacity(outer.saturating_mul(length));
    for o in 0..outer {
        for i in 0..length as i64 {
            let to = first[o / per_sample.max(1)].saturating_add(i);
            let to = if circular { to.rem_euclid(n as i64) as usize } else { index(to, n)? };
            starts.push((o * n + to) * block);
        }
    }
    if updates.dtype() == DType::Opaque || block > 0 {
        return Ok(vec![Some(written(data, updates, block, &starts, Reduction::None)?)]);
    }
    Ok(vec![Some(data.reshaped(data.shape)?)])
}
