//! Kernels that exchange data with other ranks, or cut a value for one.

use std::sync::Arc;

use super::convert::{ints, round_to, typed, typed_mut, widen, write_ints};
use super::{Env, KernelError, Result, expect, resolve_axis};
use crate::attr::MeshAxis;
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::{View, ViewMut, for_each_piece};

fn same_length(parts: &[Arc<[u8]>], x: &View<'_>) -> Result {
    match parts.iter().find(|p| p.len() != x.bytes.len()) {
        None => Ok(()),
        Some(p) => Err(KernelError::Shape(format!("another rank gave {} bytes, this one {}", p.len(), x.bytes.len()))),
    }
}

/// The sum over the ranks in f32, from rank 0 upward, not yet rounded.
pub(super) fn sum_of_ranks(op: &Op, x: &View<'_>, env: &mut Env<'_>) -> Result<Vec<f32>> {
    let parts = env.comm.exchange(op.name(), x)?;
    same_length(&parts, x)?;
    let mut sum = vec![0.0; x.len()];
    let mut part = vec![0.0; x.len()];
    for (i, p) in parts.iter().enumerate() {
        if i == 0 {
            widen(x.dtype, p, &mut sum)?;
        } else {
            widen(x.dtype, p, &mut part)?;
            sum.iter_mut().zip(&part).for_each(|(s, v)| *s += v);
        }
    }
    Ok(sum)
}

/// Sum over the ranks.
pub(super) fn all_reduce(op: &Op, x: &View<'_>, out: Option<&mut ViewMut<'_>>, env: &mut Env<'_>) -> Result {
    if x.dtype == DType::F64 {
        let parts = env.comm.exchange(op.name(), x)?;
        same_length(&parts, x)?;
        let Some(out) = out else { return Ok(()) };
        expect(out, x.dtype, x.shape)?;
        let sum = typed_mut::<f64>(out.bytes)?;
        sum.fill(0.0);
        for p in &parts {
            sum.iter_mut().zip(&*typed::<f64>(p)).for_each(|(s, v)| *s += v);
        }
        return Ok(());
    }
    if x.dtype.is_float() {
        let sum = sum_of_ranks(op, x, env)?;
        let Some(out) = out else { return Ok(()) };
        expect(out, x.dtype, x.shape)?;
        return round_to(out.dtype, &sum, out.bytes);
    }
    let parts = env.comm.exchange(op.name(), x)?;
    same_length(&parts, x)?;
    let Some(out) = out else { return Ok(()) };
    expect(out, x.dtype, x.shape)?;
    write_ints(out, |o| {
        o.fill(0);
        for p in &parts {
            let v = ints(&View { bytes: p, ..*x })?;
            o.iter_mut().zip(&*v).for_each(|(o, &v)| *o = o.wrapping_add(v));
        }
        Ok(())
    })
}

/// Joins the distinct parts that the ranks hold: those of ranks 0, size/parts, 2*size/parts, ...
pub(super) fn all_gather(
    op: &Op,
    x: &View<'_>,
    dim: i64,
    parts: i64,
    out: Option<&mut ViewMut<'_>>,
    env: &mut Env<'_>,
) -> Result {
    let dim = resolve_axis(dim, x.shape.len())?;
    let given = env.comm.exchange(op.name(), x)?;
    same_length(&given, x)?;
    let parts = divisor(parts, given.len())?;
    let Some(out) = out else { return Ok(()) };
    let mut shape = x.shape.to_vec();
    shape[dim] *= parts;
    expect(out, x.dtype, &shape)?;
    for i in 0..parts {
        place(&given[i * given.len() / parts], out, dim, i, parts);
    }
    Ok(())
}

/// Writes part `index` of `parts` along `dim` into a whole tensor.
fn place(part: &[u8], out: &mut ViewMut<'_>, dim: usize, index: usize, parts: usize) {
    let mut at = 0;
    for_each_piece(out.dtype, out.shape, dim, index, parts, |r| {
        let n = r.len();
        out.bytes[r].copy_from_slice(&part[at..at + n]);
        at += n;
    });
}

/// A number of parts, which divides the number of ranks.
fn divisor(parts: i64, size: usize) -> Result<usize> {
    usize::try_from(parts)
        .ok()
        .filter(|&p| p > 0 && size.is_multiple_of(p))
        .ok_or_else(|| KernelError::Shape(format!("{parts} parts for {size} ranks")))
}

/// This rank's part of a value that every rank holds.
pub(super) fn shard(
    x: &View<'_>,
    dim: i64,
    axis: MeshAxis,
    parts: i64,
    out: &mut ViewMut<'_>,
    env: &Env<'_>,
) -> Result {
    let dim = resolve_axis(dim, x.shape.len())?;
    let (index, size) = (env.comm.index(axis), env.comm.size(axis));
    let parts = divisor(parts, size)?;
    if !x.shape[dim].is_multiple_of(parts) {
        return Err(KernelError::Shape(format!("{parts} parts along axis {dim} of {:?}", x.shape)));
    }
    let mut shape = x.shape.to_vec();
    shape[dim] /= parts;
    expect(out, x.dtype, &shape)?;
    let mut at = 0;
    for_each_piece(x.dtype, x.shape, dim, index * parts / size, parts, |r| {
        let n = r.len();
        out.bytes[at..at + n].copy_from_slice(&x.bytes[r]);
        at += n;
    });
    Ok(())
}

fn stage_index(stage: i64) -> Result<usize> {
    usize::try_from(stage).map_err(|_| KernelError::NotAStep(format!("a transfer with stage {stage}")))
}

/// Sends to another stage.
pub(super) fn send(x: &View<'_>, stage: i64, tag: i64, env: &mut Env<'_>) -> Result {
    Ok(env.comm.send(stage_index(stage)?, tag, x)?)
}

/// Receives from another stage.
pub(super) fn recv(stage: i64, tag: i64, out: &mut ViewMut<'_>, env: &mut Env<'_>) -> Result {
    Ok(env.comm.recv(stage_index(stage)?, tag, out)?)
}
