//! Elements picked by indices.

use super::moved::{Source, carried, dims, index, unknown};
use crate::cpu::simd;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::elem::fill_by;
use crate::standard::infer::required;
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, axis, native, strides};
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// The indices at a position with their shape.
pub(super) fn indices<'a>(x: &Args<'a>, i: usize) -> Result<(Vec<i64>, &'a [usize])> {
    let shape = x.tensor(i)?.shape;
    Ok((x.ints(i)?.unwrap_or_default(), shape))
}

pub(super) fn gather(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let (list, extents) = indices(x, 1)?;
    let at = axis(c.int("axis").unwrap_or(0), data.rank())?;
    let n = data.shape[at];
    let picked: Vec<usize> = list.iter().map(|&i| index(i, n)).collect::<Result<_>>()?;
    let shape = [&data.shape[..at], extents, &data.shape[at + 1..]].concat();
    let outer: usize = data.shape[..at].iter().product();
    let block: usize = data.shape[at + 1..].iter().product();
    if shape.contains(&0) {
        return Ok(vec![Some(data.take(&shape, 1, [])?)]);
    }
    let starts = (0..outer).flat_map(|o| picked.iter().map(move |i| (o * n + i) * block));
    Ok(vec![Some(data.take(&shape, block, starts)?)])
}

pub(super) fn gather_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (data, i) = (required(x, 0)?, required(x, 1)?);
    if data.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    let at = axis(c.int("axis").unwrap_or(0), data.rank())?;
    let mut shape = dims(&data);
    shape.splice(at..=at, dims(&i));
    Ok(vec![carried(data.ty.dtype, shape)])
}

pub(super) fn gather_elements(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let (list, shape) = indices(x, 1)?;
    let at = axis(c.int("axis").unwrap_or(0), data.rank())?;
    let same = |d: usize| d == at || shape[d] == data.shape[d];
    if let Some(v) = data.numbers()
        && shape.len() == data.rank()
        && (0..shape.len()).all(same)
    {
        return Ok(vec![Some(lanes(&v, shape, &list, at)?)]);
    }
    let starts = along(data.shape, shape, &list, at)?;
    Ok(vec![Some(data.take(shape, 1, starts)?)])
}

/// The elements of each lane along an axis that its indices name; the other axes are those of the data.
fn lanes(v: &View<'_>, shape: &[usize], list: &[i64], at: usize) -> Result<Data> {
    let n = v.shape[at];
    let (low, high) = (simd::fold(list, 0, Ord::min, Ord::min), simd::fold(list, 0, Ord::max, Ord::max));
    if !list.is_empty() {
        index(low, n).and_then(|_| index(high, n))?;
    }
    let (inner, len) = (shape[at + 1..].iter().product::<usize>(), shape[at]);
    macro_rules! pick {
        ($t:ty) => {{
            let from = native::<$t>(v);
            let size = (len * inner).max(1);
            fill_by(v.dtype, shape, size, |start, out: &mut [$t]| {
                let from = &from[start / size * n * inner..][..n * inner];
                if inner == 1 {
                    for (o, &i) in out.iter_mut().zip(&list[start..]) {
                        // Adds the extent to what is negative.
                        *o = from[(i + (i >> 63 & n as i64)) as usize];
                    }
                    return;
                }
                for (k, (o, &i)) in out.iter_mut().zip(&list[start..]).enumerate() {
                    let i = if i < 0 { i + n as i64 } else { i } as usize;
                    *o = from[i * inner + k % inner];
                }
            })
        }};
    }
    match v.dtype.size() {
        1 => pick!(u8),
        2 => pick!(u16),
        4 => pick!(u32),
        _ => pick!(u64),
    }
}

/// The position in `data` that each index along axis `at` names; the other coordinates are those of the index itself.
pub(super) fn along(data: &[usize], shape: &[usize], list: &[i64], at: usize) -> Result<Vec<usize>> {
    let fits = |d: usize| d == at || shape[d] <= data[d];
    if shape.len() != data.len() || !(0..data.len()).all(fits) {
        return Err(StandardError::new(format!("indices of shape {shape:?} do not fit {data:?} along axis {at}")));
    }
    let steps = strides(data);
    let mut walk: Vec<isize> = steps.iter().map(|&s| s as isize).collect();
    walk[at] = 0;
    let base = super::moved::Walk::new(shape, &walk, 0);
    base.zip(list).map(|(b, &i)| Ok(b + index(i, data[at])? * steps[at])).collect()
}

pub(super) fn gather_elements_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (data, i) = (required(x, 0)?, required(x, 1)?);
    if data.ty.dtype != DType::Opaque {
        axis(c.int("axis").unwrap_or(0), data.rank())?;
        if data.rank() != i.rank() {
            return Err(StandardError::new(format!("indices {} do not have the rank of {}", i.ty, data.ty)));
        }
    }
    Ok(vec![carried(data.ty.dtype, dims(&i))])
}

/// The start and length of the runs that tuples of indices name: shape of the tuples, positions, elements per run.
pub(super) fn tuples(data: &[usize], list: &[i64], shape: &[usize], batch: usize) -> Result<(Vec<usize>, usize)> {
    let misfit =
        || StandardError::new(format!("indices of shape {shape:?} do not fit {data:?} with {batch} batch axes"));
    let &width = shape.last().ok_or_else(misfit)?;
    if batch + width > data.len() || shape.len() <= batch || data[..batch] != shape[..batch] {
        return Err(misfit());
    }
    let steps = strides(data);
    let block: usize = data[batch + width..].iter().product();
    let inner: usize = shape[batch..shape.len() - 1].iter().product();
    let step: usize = data[batch..].iter().product();
    let n: usize = shape[..shape.len() - 1].iter().product();
    let mut starts = Vec::with_capacity(n);
    for t in 0..n {
        let mut at = t / inner.max(1) * step;
        for (k, &i) in list[t * width..(t + 1) * width].iter().enumerate() {
            at += index(i, data[batch + k])? * steps[batch + k];
        }
        starts.push(at);
    }
    Ok((starts, block))
}

pub(super) fn gather_nd(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let (list, shape) = indices(x, 1)?;
    let batch = usize::try_from(c.int("batch_dims").unwrap_or(0)).unwrap_or(usize::MAX / 2);
    let (starts, block) = tuples(data.shape, &list, shape, batch)?;
    let width = shape.last().copied().unwrap_or(0);
    let out = [&shape[..shape.len() - 1], &data.shape[batch + width..]].concat();
    if out.contains(&0) {
        return Ok(vec![Some(data.take(&out, 1, [])?)]);
    }
    Ok(vec![Some(data.take(&out, block, starts)?)])
}

pub(super) fn gather_nd_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (data, i) = (required(x, 0)?, required(x, 1)?);
    if data.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    let misfit = || StandardError::new(format!("indices {} do not fit {}", i.ty, data.ty));
    let batch = usize::try_from(c.int("batch_dims").unwrap_or(0)).map_err(|_| misfit())?;
    let last = i.ty.shape.last().ok_or_else(misfit)?;
    let Some(width) = last.as_const() else { return Ok(vec![unknown(data.ty.dtype, None)]) };
    let rest = data.ty.shape.get(batch.saturating_add(width.max(0) as usize)..).ok_or_else(misfit)?;
    let lead = i.ty.shape[..i.rank() - 1].iter();
    Ok(vec![carried(data.ty.dtype, lead.chain(rest).cloned().map(Some))])
}

pub(super) fn compress(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let condition = x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the condition, is missing"))?;
    let (at, flat) = match c.int("axis") {
        Some(a) => (axis(a, data.rank())?, data.shape.to_vec()),
        None => (0, vec![data.len()]),
    };
    let n = flat[at];
    if condition.iter().enumerate().any(|(i, &v)| v != 0 && i >= n) {
        return Err(StandardError::new(format!("a condition of {} elements selects beyond {n}", condition.len())));
    }
    let kept: Vec<usize> = (0..condition.len()).filter(|&i| condition[i] != 0).collect();
    let outer: usize = flat[..at].iter().product();
    let block: usize = flat[at + 1..].iter().product();
    let mut shape = flat.clone();
    shape[at] = kept.len();
    if shape.contains(&0) {
        return Ok(vec![Some(data.take(&shape, 1, [])?)]);
    }
    let starts = (0..outer).flat_map(|o| kept.iter().map(move |i| (o * n + i) * block));
    Ok(vec![Some(data.take(&shape, block, starts)?)])
}

pub(super) fn compress_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    if data.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    let Some(a) = c.int("axis") else { return Ok(vec![carried(data.ty.dtype, [None::<Dim>])]) };
    let mut shape = dims(&data);
    shape[axis(a, data.rank())?] = None;
    Ok(vec![carried(data.ty.dtype, shape)])
}
