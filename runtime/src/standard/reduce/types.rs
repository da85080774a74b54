//! Types of the results of reductions.

use super::super::infer::{self, Operand, Partial, required};
use super::super::{Call, StandardError};
use super::{fold, loss, norm, select};
use crate::dim::Dim;
use crate::dtype::{DType, TensorType};

type Result<T> = std::result::Result<T, StandardError>;

/// Extents after some axes are reduced.
fn reduced(c: &Call, dtype: DType, shape: &[Dim], cut: &[bool]) -> Partial {
    let keep = c.flag("keepdims", true);
    let rest = shape.iter().zip(cut).filter(|(_, c)| keep || !**c);
    Partial::known(dtype, rest.map(|(d, c)| if *c { Dim::from(1) } else { d.clone() }))
}

/// A reduction over axes from the attribute or the second operand.
pub(super) fn reduce(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let ty = required(x, 0)?.ty;
    if ty.dtype == DType::Opaque {
        return Err(StandardError::new("operand 0 is no tensor of numbers"));
    }
    if let Some(o) = x.get(1).copied().flatten() {
        let ints = o.ints();
        let none = o.ty.shape.iter().any(|d| d.as_const() == Some(0));
        if ints.is_none() && !none {
            // Which axes they are depends on data; how many remain too, unless all stay as 1.
            return Ok(vec![match c.flag("keepdims", true) {
                true => Partial::ranked(ty.dtype, ty.rank()),
                false => match remaining(c, ty, &o) {
                    Some(rank) => Partial::ranked(ty.dtype, rank),
                    None => Partial::unranked(ty.dtype),
                },
            }]);
        }
        let cut = fold::axes(c, Some(ints.unwrap_or_default()), ty.rank())?;
        return Ok(vec![reduced(c, ty.dtype, &ty.shape, &cut)]);
    }
    let cut = fold::axes(c, None, ty.rank())?;
    Ok(vec![reduced(c, ty.dtype, &ty.shape, &cut)])
}

/// The number of axes that remain where as many are cut as an operand has elements.
fn remaining(c: &Call, ty: &TensorType, axes: &Operand<'_>) -> Option<usize> {
    let n = usize::try_from(axes.ty.elements().as_const()?).ok()?;
    match n {
        0 if c.flag("noop_with_empty_axes", false) => Some(ty.rank()),
        0 => Some(0),
        n => ty.rank().checked_sub(n),
    }
}

/// A position along one axis.
pub(super) fn position(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let ty = required(x, 0)?.ty;
    let mut cut = vec![false; ty.rank()];
    cut[infer::axis(c.int("axis").unwrap_or(0), ty.rank())?] = true;
    Ok(vec![reduced(c, DType::I64, &ty.shape, &cut)])
}

/// One result like the first operand, which has floating-point elements.
pub(super) fn float(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let d = required(x, 0)?.ty.dtype;
    if !d.is_float() {
        return Err(StandardError::new(format!(
            "`{}` takes floating-point numbers of 16 to 64 bits, got {d}",
            c.title()
        )));
    }
    infer::same(c, x)
}

pub(super) fn top_k(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let ty = required(x, 0)?.ty;
    let a = infer::axis(c.int("axis").unwrap_or(-1), ty.rank())?;
    let known = match x.get(1).copied().flatten() {
        Some(o) => o.values.and_then(|v| if v.len() == 1 { v.first().cloned() } else { None }),
        None => Some(Dim::from(select::top_k_count(c, None)? as i64)),
    };
    if let (Some(k), Some(n)) = (known.as_ref().and_then(Dim::as_const), ty.shape[a].as_const())
        && (k < 0 || k > n)
    {
        return Err(StandardError::new(format!("{k} elements of the {n} along axis {a} cannot be taken")));
    }
    let mut shape: Vec<Option<Dim>> = ty.shape.iter().cloned().map(Some).collect();
    shape[a] = known;
    Ok([ty.dtype, DType::I64].into_iter().map(|dtype| Partial { dtype, shape: Some(shape.clone()) }).collect())
}

/// Whether an operand broadcasts to a shape, as far as constants show.
fn fits(c: &Call, o: &Operand<'_>, shape: &[Dim]) -> Result<()> {
    let mine = &o.ty.shape;
    let wrong = |(a, b): (&Dim, &Dim)| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a != 1 && a != b);
    if mine.len() <= shape.len() && !mine.iter().rev().zip(shape.iter().rev()).any(wrong) {
        return Ok(());
    }
    Err(StandardError::new(format!("`{}`: {mine:?} does not broadcast to {shape:?}", c.title())))
}

/// Result, mean and inverse deviation.
pub(super) fn layer_norm(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let mut out = float(c, x)?;
    let ty = required(x, 0)?.ty;
    fits(c, &required(x, 1)?, &ty.shape)?;
    if let Some(b) = x.get(2).copied().flatten() {
        fits(c, &b, &ty.shape)?;
    }
    let from = infer::axis(c.int("axis").unwrap_or(-1), ty.rank())?;
    let kept = ty.shape.iter().enumerate().map(|(i, d)| if i < from { d.clone() } else { Dim::from(1) });
    let statistics = Partial::known(norm::stash(c)?, kept);
    out.extend([statistics.clone(), statistics]);
    Ok(out)
}

/// The result has the scale's type.
pub(super) fn rms_norm(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let scale = required(x, 1)?;
    let ty = required(x, 0)?.ty;
    infer::axis(c.int("axis").unwrap_or(-1), ty.rank())?;
    fits(c, &scale, &ty.shape)?;
    let out = float(c, x)?;
    Ok(out.into_iter().map(|p| Partial { dtype: scale.ty.dtype, ..p }).collect())
}

/// An operand must have as many elements as there are channels (or groups), as far as constants show.
fn by_channel(c: &Call, x: &[Option<Operand<'_>>], operands: std::ops::Range<usize>, n: &Dim) -> Result<()> {
    for i in operands {
        let found = required(x, i)?.ty.elements();
        if matches!((found.as_const(), n.as_const()), (Some(a), Some(b)) if a != b) {
            return Err(StandardError::new(format!("`{}`: operand {i} has {found} elements; it needs {n}", c.title())));
        }
    }
    Ok(())
}

fn channels<'a>(c: &Call, x: &[Option<Operand<'a>>]) -> Result<&'a Dim> {
    let shape = &required(x, 0)?.ty.shape;
    shape.get(1).ok_or_else(|| StandardError::new(format!("`{}`: {shape:?} has no axis of channels", c.title())))
}

/// Result, and statistics like the given ones.
pub(super) fn batch_norm(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let n = channels(c, x)?;
    if c.opset >= 9 || c.flag("spatial", true) {
        by_channel(c, x, 1..5, n)?;
    }
    let mut out = float(c, x)?;
    let statistics = required(x, 3)?.ty;
    let statistics = Partial::known(statistics.dtype, statistics.shape.iter().cloned());
    out.extend(std::iter::repeat_n(statistics, if c.opset < 14 { 4 } else { 2 }));
    Ok(out)
}

pub(super) fn instance_norm(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    by_channel(c, x, 1..3, channels(c, x)?)?;
    float(c, x)
}

pub(super) fn group_norm(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let (n, groups) = (channels(c, x)?, c.required_int("num_groups")?);
    if groups <= 0 || n.as_const().is_some_and(|n| n % groups != 0) {
        return Err(StandardError::new(format!("{n} channels cannot be cut into {groups} groups")));
    }
    let each = if c.opset < 21 { Dim::from(groups) } else { n.clone() };
    by_channel(c, x, 1..3, &each)?;
    float(c, x)
}

pub(super) fn local_response(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    channels(c, x)?;
    float(c, x)
}

/// Loss, and the logarithms of the probabilities.
pub(super) fn losses(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let logs = float(c, x)?;
    channels(c, x)?;
    let (scores, target) = (required(x, 0)?.ty, required(x, 1)?.ty);
    if target.rank() + 1 != scores.rank() {
        return Err(StandardError::new(format!(
            "targets of rank {} for scores of rank {}",
            target.rank(),
            scores.rank()
        )));
    }
    let shape = if loss::keeps_all(c)? { target.shape.clone() } else { vec![] };
    let mut out = vec![Partial::known(scores.dtype, shape)];
    out.extend(logs);
    Ok(out)
}

pub(super) fn det(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    float(c, x)?;
    let ty = required(x, 0)?.ty;
    let [batch @ .., m, n] = &ty.shape[..] else {
        return Err(StandardError::new(format!("{:?} is no matrix", ty.shape)));
    };
    if matches!((m.as_const(), n.as_const()), (Some(m), Some(n)) if m != n) {
        return Err(StandardError::new(format!("{m} x {n} is no square matrix")));
    }
    Ok(vec![Partial::known(ty.dtype, batch.iter().cloned())])
}
