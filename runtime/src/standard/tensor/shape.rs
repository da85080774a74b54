//! Shapes as values, and the same elements under another shape.

use super::moved::{Source, axes, carried, dims, extents, from_i64, length, unknown};
use crate::dim::{Dim, reshaped};
use crate::dtype::DType;
use crate::standard::infer::{self, required};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, broadcast, from_ints};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// The range of axes that `Shape` reports.
fn reported(c: &Call, rank: usize) -> std::ops::Range<usize> {
    let clamp = |v: i64| (if v < 0 { v.saturating_add(rank as i64) } else { v }).clamp(0, rank as i64) as usize;
    let start = clamp(c.int("start").unwrap_or(0));
    start..clamp(c.int("end").unwrap_or(rank as i64)).max(start)
}

pub(super) fn shape(c: &Call, x: &Args<'_>) -> Results {
    let s = Source::of(x, 0)?.shape;
    Ok(vec![Some(from_i64(&s[reported(c, s.len())].iter().map(|&d| d as i64).collect::<Vec<_>>())?)])
}

pub(super) fn shape_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let x = required(x, 0)?;
    Ok(vec![match x.ty.dtype {
        DType::Opaque => Partial::ranked(DType::I64, 1),
        _ => Partial::known(DType::I64, [Dim::from(reported(c, x.rank()).len() as i64)]),
    }])
}

pub(super) fn size(_: &Call, x: &Args<'_>) -> Results {
    Ok(vec![Some(from_ints(DType::I64, &[], [Source::of(x, 0)?.len() as i128])?)])
}

pub(super) fn size_type(_: &Call, _: &[Option<Operand<'_>>]) -> Types {
    Ok(vec![Partial::known(DType::I64, [])])
}

pub(super) fn reshape(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let target = match c.ints("shape") {
        Some(s) => s.to_vec(),
        None => x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the shape, is missing"))?,
    };
    let misfit = || StandardError::new(format!("{:?} cannot become {target:?}", data.shape));
    let keep = !c.flag("allowzero", false);
    let mut out = vec![];
    let mut open = None;
    for (i, &d) in target.iter().enumerate() {
        out.push(match d {
            0 if keep => *data.shape.get(i).ok_or_else(misfit)?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            d => usize::try_from(d).map_err(|_| misfit())?,
        });
    }
    if let Some(i) = open {
        let rest = out.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n > 0).ok_or_else(misfit)?;
        out[i] = data.len() / rest;
    }
    Ok(vec![Some(data.reshaped(&out)?)])
}

pub(super) fn reshape_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    let (dtype, known) = (data.ty.dtype, dtype_known(&data));
    let attribute: Option<Vec<Dim>> = c.ints("shape").map(|s| s.iter().map(|&d| Dim::from(d)).collect());
    let (target, rank) = match &attribute {
        Some(a) => (Some(&a[..]), Some(a.len())),
        None => {
            let t = required(x, 1)?;
            (t.values, length(&t))
        }
    };
    let Some(target) = target.filter(|_| known) else { return Ok(vec![unknown(dtype, rank)]) };
    let out = reshaped(&data.ty.shape, target, !c.flag("allowzero", false), None);
    let out = out.map_err(|e| StandardError::new(format!("{}: {e}", data.ty)))?;
    let counts = (data.ty.elements().as_const(), out.iter().flatten().fold(Dim::from(1), |n, d| &n * d).as_const());
    if let (Some(a), Some(b)) = counts
        && a != b
        && out.iter().all(Option::is_some)
    {
        return Err(StandardError::new(format!("{} has {a} elements, the shape {target:?} has {b}", data.ty)));
    }
    Ok(vec![carried(dtype, out)])
}

/// Whether extents of an operand are known at all.
fn dtype_known(x: &Operand<'_>) -> bool {
    x.ty.dtype != DType::Opaque
}

pub(super) fn flatten(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let at = flat_axis(c, data.rank())?;
    let (rows, columns) = data.shape.split_at(at);
    Ok(vec![Some(data.reshaped(&[rows.iter().product(), columns.iter().product()])?)])
}

fn flat_axis(c: &Call, rank: usize) -> Result<usize> {
    let axis = c.int("axis").unwrap_or(1);
    let at = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    usize::try_from(at)
        .ok()
        .filter(|&a| a <= rank)
        .ok_or_else(|| StandardError::new(format!("axis {axis} is outside rank {rank}")))
}

pub(super) fn flatten_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    if !dtype_known(&data) {
        return Ok(vec![Partial::opaque()]);
    }
    let (rows, columns) = data.ty.shape.split_at(flat_axis(c, data.rank())?);
    let product = |d: &[Dim]| Some(d.iter().fold(Dim::from(1), |n, d| &n * d));
    Ok(vec![carried(data.ty.dtype, [product(rows), product(columns)])])
}

/// The axes of `Squeeze` and `Unsqueeze`: an attribute before opset 13, an operand since.
fn listed(c: &Call, x: &Args<'_>) -> Result<Option<Vec<i64>>> {
    match c.ints("axes") {
        Some(a) => Ok(Some(a.to_vec())),
        None => x.ints(1),
    }
}

pub(super) fn squeeze(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let gone = match listed(c, x)? {
        Some(a) => axes(&a, data.rank())?,
        None => (0..data.rank()).filter(|&i| data.shape[i] == 1).collect(),
    };
    if let Some(&a) = gone.iter().find(|&&a| data.shape[a] != 1) {
        return Err(StandardError::new(format!("axis {a} of {:?} is not 1", data.shape)));
    }
    let kept: Vec<usize> = (0..data.rank()).filter(|i| !gone.contains(i)).map(|i| data.shape[i]).collect();
    Ok(vec![Some(data.reshaped(&kept)?)])
}

/// The axes that are known before execution: of an attribute or operand, and how many there are.
fn known_axes(c: &Call, x: &[Option<Operand<'_>>]) -> (bool, Option<Vec<i64>>, Option<usize>) {
    if let Some(a) = c.ints("axes") {
        return (true, Some(a.to_vec()), Some(a.len()));
    }
    match x.get(1).copied().flatten() {
        Some(o) => (true, o.ints(), length(&o)),
        None => (false, None, None),
    }
}

pub(super) fn squeeze_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    let dtype = data.ty.dtype;
    if !dtype_known(&data) {
        return Ok(vec![Partial::opaque()]);
    }
    let shape = &data.ty.shape;
    let (given, list, n) = known_axes(c, x);
    let gone = match (given, list) {
        (true, Some(a)) => axes(&a, data.rank())?,
        (true, None) => return Ok(vec![unknown(dtype, n.and_then(|n| data.rank().checked_sub(n)))]),
        (false, _) if shape.iter().all(|d| d.as_const().is_some()) => {
            (0..data.rank()).filter(|&i| shape[i].as_const() == Some(1)).collect()
        }
        (false, _) => return Ok(vec![unknown(dtype, None)]),
    };
    if let Some(&a) = gone.iter().find(|&&a| shape[a].as_const().is_some_and(|n| n != 1)) {
        return Err(StandardError::new(format!("axis {a} of {} is not 1", data.ty)));
    }
    Ok(vec![carried(dtype, (0..data.rank()).filter(|i| !gone.contains(i)).map(|i| Some(shape[i].clone())))])
}

/// A shape with extents of 1 at axes of the result.
fn unsqueezed<T: Clone>(shape: &[T], list: &[i64], one: &T) -> Result<Vec<T>> {
    let rank = shape.len() + list.len();
    let new = axes(list, rank)?;
    let mut old = shape.iter();
    Ok((0..rank).map(|i| if new.contains(&i) { one } else { old.next().unwrap_or(one) }.clone()).collect())
}

pub(super) fn unsqueeze(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let list = listed(c, x)?.ok_or_else(|| StandardError::new("the axes are missing"))?;
    Ok(vec![Some(data.reshaped(&unsqueezed(data.shape, &list, &1)?)?)])
}

pub(super) fn unsqueeze_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    if !dtype_known(&data) {
        return Ok(vec![Partial::opaque()]);
    }
    let (_, list, n) = known_axes(c, x);
    Ok(vec![match list {
        Some(a) => carried(data.ty.dtype, unsqueezed(&dims(&data), &a, &Some(Dim::from(1)))?),
        None => unknown(data.ty.dtype, n.map(|n| n + data.rank())),
    }])
}

/// The permutation of `Transpose`; axes in reverse order without one.
fn permutation(c: &Call, rank: usize) -> Result<Vec<usize>> {
    let Some(perm) = c.ints("perm") else { return Ok((0..rank).rev().collect()) };
    if perm.len() != rank {
        return Err(StandardError::new(format!("the permutation {perm:?} is not of {rank} axes")));
    }
    axes(perm, rank)
}

pub(super) fn transpose(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let perm = permutation(c, data.rank())?;
    let strides = crate::standard::strides(data.shape);
    let shape: Vec<usize> = perm.iter().map(|&a| data.shape[a]).collect();
    let walk: Vec<isize> = perm.iter().map(|&a| strides[a] as isize).collect();
    Ok(vec![Some(data.strided(&shape, &shape, &walk, 0)?)])
}

pub(super) fn transpose_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    if !dtype_known(&data) {
        return Ok(vec![Partial::opaque()]);
    }
    let perm = permutation(c, data.rank())?;
    Ok(vec![carried(data.ty.dtype, perm.iter().map(|&a| Some(data.ty.shape[a].clone())))])
}

pub(super) fn expand(_: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let target = extents(&x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the shape, is missing"))?)?;
    let shape = broadcast(&[data.shape, &target])?;
    let lead = shape.len() - data.rank();
    let own = crate::standard::strides(data.shape);
    let step = |i: usize| match i.checked_sub(lead) {
        Some(d) if data.shape[d] == shape[i] => own[d] as isize,
        _ => 0,
    };
    let walk: Vec<isize> = (0..shape.len()).map(step).collect();
    Ok(vec![Some(data.strided(&shape, &shape, &walk, 0)?)])
}

pub(super) fn expand_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (data, target) = (required(x, 0)?, required(x, 1)?);
    if !dtype_known(&data) {
        return Ok(vec![Partial::opaque()]);
    }
    Ok(vec![match target.values {
        Some(v) => carried(data.ty.dtype, infer::broadcast(&[&data.ty.shape, &v.to_vec()])?),
        None => unknown(data.ty.dtype, length(&target).map(|n| n.max(data.rank()))),
    }])
}
