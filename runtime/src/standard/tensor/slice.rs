//! Parts of tensors, and tensors made of parts.

use super::moved::{Source, assemble, axes, carried, dims, extents, length, unknown};
use crate::dim::{Dim, slice_bounds};
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, axis, strides};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

pub(super) fn concat(c: &Call, x: &Args<'_>) -> Results {
    let parts: Vec<Source<'_>> = (0..x.len()).map(|i| Source::of(x, i)).collect::<Result<_>>()?;
    let first = parts.first().ok_or_else(|| StandardError::new("there is no operand"))?;
    let at = axis(c.required_int("axis")?, first.rank())?;
    join(&parts, at).map(|d| vec![Some(d)])
}

/// Tensors one behind the other along an axis.
pub(in crate::standard) fn join(parts: &[Source<'_>], at: usize) -> Result<Data> {
    let first = parts.first().ok_or_else(|| StandardError::new("there is no operand"))?;
    let mut shape = first.shape.to_vec();
    shape[at] = 0;
    for p in parts {
        let same = |i: usize| i == at || p.shape[i] == first.shape[i];
        if p.rank() != first.rank() || !(0..p.rank()).all(same) {
            let all: Vec<_> = parts.iter().map(|p| p.shape).collect();
            return Err(StandardError::new(format!("{all:?} cannot be joined along axis {at}")));
        }
        shape[at] = shape[at].saturating_add(p.shape[at]);
    }
    let outer: usize = shape[..at].iter().product();
    let inner: usize = shape[at + 1..].iter().product();
    // Runs of one length: whole pieces where all parts are alike, rows otherwise.
    let alike = parts.iter().all(|p| p.shape[at] == first.shape[at]);
    let (block, runs) = if alike { (inner * first.shape[at], 1) } else { (inner, 0) };
    if shape.contains(&0) {
        return first.take(&shape, 1, []);
    }
    let picks = (0..outer).flat_map(|o| {
        parts.iter().enumerate().flat_map(move |(s, p)| {
            let n = if runs == 1 { 1 } else { p.shape[at] };
            (0..n).map(move |i| (s, (o * n + i) * block))
        })
    });
    assemble(&shape, block, parts, picks)
}

pub(super) fn concat_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let first = required(x, 0)?;
    if first.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    let at = axis(c.required_int("axis")?, first.rank())?;
    let mut shape = first.ty.shape.clone();
    for (i, p) in x.iter().flatten().enumerate().skip(1) {
        if p.ty.dtype != first.ty.dtype {
            return Err(StandardError::new(format!("operand {i} is {}, operand 0 is {}", p.ty, first.ty)));
        }
        let clash = |(a, b): (&Dim, &Dim)| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a != b);
        let others =
            |s: &[Dim]| s.iter().enumerate().filter(|(d, _)| *d != at).map(|(_, d)| d.clone()).collect::<Vec<_>>();
        if p.rank() != shape.len() || others(&shape).iter().zip(&others(&p.ty.shape)).any(clash) {
            return Err(StandardError::new(format!(
                "{} and operand {i}, {}, cannot be joined along axis {at}",
                first.ty, p.ty
            )));
        }
        for (d, (a, b)) in shape.iter_mut().zip(&p.ty.shape).enumerate() {
            if d == at {
                *a = &*a + b;
            } else if a.as_const().is_none() && b.as_const().is_some() {
                *a = b.clone();
            }
        }
    }
    Ok(vec![carried(first.ty.dtype, shape.into_iter().map(Some))])
}

/// Start and number of elements of a slice of an extent.
pub(in crate::standard) fn bounds(start: i64, end: i64, step: i64, extent: usize) -> Result<(i64, usize)> {
    if step == 0 {
        return Err(StandardError::new("the step of a slice is 0"));
    }
    let n = extent as i64;
    if n == 0 {
        return Ok((0, 0));
    }
    let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    // A start beyond either end is moved to the last element there, unlike NumPy's.
    let (start, end) = match step > 0 {
        true => (wrap(start).clamp(0, n), wrap(end).clamp(0, n)),
        false => (wrap(start).clamp(0, n - 1), wrap(end).clamp(-1, n - 1)),
    };
    let span = if step > 0 { end - start } else { start - end };
    let stride = step.unsigned_abs();
    Ok((start, if span > 0 { (span as u64).div_ceil(stride) as usize } else { 0 }))
}

pub(super) fn slice(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let list = |name: &str, i: usize| match c.ints(name) {
        Some(v) => Ok(Some(v.to_vec())),
        None => x.ints(i),
    };
    let starts = list("starts", 1)?.ok_or_else(|| StandardError::new("`starts` is missing"))?;
    let ends = list("ends", 2)?.ok_or_else(|| StandardError::new("`ends` is missing"))?;
    let at = match list("axes", 3)? {
        Some(a) => axes(&a, data.rank())?,
        None => (0..starts.len()).collect(),
    };
    let steps = x.ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || at.len() != starts.len() || steps.len() != starts.len() || at.len() > data.rank() {
        return Err(StandardError::new(format!(
            "the slice of {:?} has {} starts, {} ends, {} axes and {} steps",
            data.shape,
            starts.len(),
            ends.len(),
            at.len(),
            steps.len()
        )));
    }
    let mut shape = data.shape.to_vec();
    let mut walk: Vec<isize> = strides(data.shape).iter().map(|&s| s as isize).collect();
    let mut offset = 0isize;
    for (i, &a) in at.iter().enumerate() {
        let (first, n) = bounds(starts[i], ends[i], steps[i], data.shape[a])?;
        offset += first as isize * walk[a];
        // The step of an axis with one element does not matter, and may overflow.
        walk[a] = if n > 1 { walk[a] * steps[i] as isize } else { walk[a] };
        shape[a] = n;
    }
    Ok(vec![Some(data.strided(&shape, &shape, &walk, offset)?)])
}

pub(super) fn slice_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    if data.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    let operand = |i: usize| x.get(i).copied().flatten();
    let list = |name: &str, i: usize| match c.ints(name) {
        Some(v) => Some(v.to_vec()),
        None => operand(i)?.ints(),
    };
    let symbolic = |name: &str, i: usize| match c.ints(name) {
        Some(v) => Some(v.iter().map(|&v| Dim::from(v)).collect()),
        None => operand(i)?.values.map(<[Dim]>::to_vec),
    };
    let count = c.ints("starts").map(<[i64]>::len).or_else(|| length(&operand(1)?)).or_else(|| length(&operand(2)?));
    let given = c.ints("axes").is_some() || operand(3).is_some();
    let touched: Vec<usize> = match (given, list("axes", 3), count) {
        (true, Some(a), _) => axes(&a, data.rank())?,
        (false, _, Some(n)) => (0..n.min(data.rank())).collect(),
        _ => (0..data.rank()).collect(),
    };
    let mut out = dims(&data);
    let (starts, ends): (Option<Vec<Dim>>, Option<Vec<Dim>>) = (symbolic("starts", 1), symbolic("ends", 2));
    let steps = match operand(4) {
        Some(s) => s.ints(),
        None => Some(vec![1; touched.len()]),
    };
    for (i, &a) in touched.iter().enumerate() {
        let at = |l: &Option<Vec<Dim>>| l.as_ref().and_then(|l| l.get(i).cloned());
        let step = steps.as_ref().and_then(|l| l.get(i).copied());
        let extent = &data.ty.shape[a];
        out[a] = match (at(&starts), at(&ends), step) {
            (Some(s), Some(e), Some(step)) if !given || list("axes", 3).is_some() => {
                match (s.as_const(), e.as_const(), extent.as_const()) {
                    (Some(s), Some(e), Some(n)) => Some(Dim::from(bounds(s, e, step, n.max(0) as usize)?.1 as i64)),
                    _ if step == 0 => return Err(StandardError::new("the step of a slice is 0")),
                    _ => Some(slice_bounds(&s, &e, step, extent).count),
                }
            }
            _ => None,
        };
    }
    Ok(vec![carried(data.ty.dtype, out)])
}

/// The extents of the parts of `Split`.
fn parts(c: &Call, given: Option<&[i64]>, extent: usize) -> Result<Vec<usize>> {
    let misfit = |what: String| StandardError::new(format!("an extent of {extent} cannot be split into {what}"));
    if let Some(list) = given {
        let sizes = extents(list)?;
        return match sizes.iter().try_fold(0usize, |n, &d| n.checked_add(d)) == Some(extent)
            && sizes.len() >= c.wanted.len()
        {
            true => Ok(sizes),
            false => Err(misfit(format!("{list:?}"))),
        };
    }
    let n = match c.int("num_outputs") {
        Some(n) => usize::try_from(n).unwrap_or(0),
        None => c.wanted.len(),
    };
    if n == 0 || n < c.wanted.len() || c.opset < 18 && !extent.is_multiple_of(n) {
        return Err(misfit(format!("{n} equal parts")));
    }
    let chunk = extent.div_ceil(n);
    Ok((0..n).map(|i| chunk.min(extent.saturating_sub(i * chunk))).collect())
}

pub(super) fn split(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let at = axis(c.int("axis").unwrap_or(0), data.rank())?;
    let given = match c.ints("split") {
        Some(s) => Some(s.to_vec()),
        None => x.ints(1)?,
    };
    let walk: Vec<isize> = strides(data.shape).iter().map(|&s| s as isize).collect();
    let mut first = 0;
    let mut out = vec![];
    for (i, n) in parts(c, given.as_deref(), data.shape[at])?.into_iter().enumerate() {
        let mut shape = data.shape.to_vec();
        shape[at] = n;
        let part = || data.strided(&shape, &shape, &walk, first * walk[at]);
        out.push(if c.wants(i) { Some(part()?) } else { None });
        first += n as isize;
    }
    Ok(out)
}

/// The extents of equal parts of a symbolic extent. Since opset 18 the last ones may be smaller.
fn equal_parts(c: &Call, extent: &Dim, n: usize) -> Vec<Option<Dim>> {
    let all = c.int("num_outputs").unwrap_or(n as i64).max(1);
    if let Some(each) = extent.div_exact(&Dim::from(all)) {
        return vec![Some(each); n];
    }
    if c.opset < 18 {
        return vec![Some(extent.floor_div(&Dim::from(all))); n];
    }
    let chunk = (extent + &Dim::from(all - 1)).floor_div(&Dim::from(all));
    let zero = Dim::from(0);
    let rest = |i: i64| (extent - &(&chunk * &Dim::from(i))).larger(&zero).smaller(&chunk);
    (0..n as i64).map(|i| Some(rest(i))).collect()
}

pub(super) fn split_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    let n = c.wanted.len();
    if data.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque(); n]);
    }
    let at = axis(c.int("axis").unwrap_or(0), data.rank())?;
    let operand = x.get(1).copied().flatten();
    let extent = data.ty.shape[at].as_const().map(|e| e.max(0) as usize);
    let given = c.ints("split").map(<[i64]>::to_vec).or_else(|| operand?.ints());
    let sizes: Vec<Option<Dim>> = match (given, extent) {
        (given, Some(e)) if given.is_some() || operand.is_none() => {
            parts(c, given.as_deref(), e)?.into_iter().map(|d| Some(Dim::from(d as i64))).collect()
        }
        (Some(list), None) => list.iter().map(|&d| Some(Dim::from(d))).collect(),
        _ => match operand.and_then(|o| o.values) {
            Some(v) => v.iter().cloned().map(Some).collect(),
            None if operand.is_none() => equal_parts(c, &data.ty.shape[at], n),
            None => vec![None; n],
        },
    };
    let part = |i: usize| {
        let mut shape = dims(&data);
        shape[at] = sizes.get(i).cloned().flatten();
        carried(data.ty.dtype, shape)
    };
    Ok((0..n).map(part).collect())
}

pub(super) fn tile(_: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let repeats = extents(&x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the repeats, is missing"))?)?;
    if repeats.len() != data.rank() {
        return Err(StandardError::new(format!("{repeats:?} has not one number per axis of {:?}", data.shape)));
    }
    let shape: Vec<usize> = data.shape.iter().zip(&repeats).map(|(d, r)| d.saturating_mul(*r)).collect();
    let steps = strides(data.shape);
    let walk: Vec<usize> = repeats.iter().zip(data.shape).flat_map(|(&r, &d)| [r, d]).collect();
    let steps: Vec<isize> = steps.iter().flat_map(|&s| [0, s as isize]).collect();
    Ok(vec![Some(data.strided(&shape, &walk, &steps, 0)?)])
}

pub(super) fn tile_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (data, repeats) = (required(x, 0)?, required(x, 1)?);
    if data.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    let Some(r) = repeats.values else { return Ok(vec![unknown(data.ty.dtype, Some(data.rank()))]) };
    if r.len() != data.rank() {
        return Err(StandardError::new(format!("{} has not {} axes, as there are repeats", data.ty, r.len())));
    }
    Ok(vec![carried(data.ty.dtype, data.ty.shape.iter().zip(r).map(|(d, r)| Some(d * r)))])
}
