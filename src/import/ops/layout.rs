//! Operators that move elements.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, SymTensor, Val};
use super::super::proto::NodeProto;
use super::axis;
use crate::ir::{Dim, NodeId, Op, Shape, broadcast};

pub(super) const OPS: &[&str] = &[
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Expand",
    "Concat",
    "Slice",
    "Split",
    "Gather",
    "GatherND",
];

pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    let x = cx.operand(n, 0)?;
    let shape = cx.shape(x);
    let rank = shape.len();
    let one = match n.op_type() {
        "Reshape" => {
            let target = cx.symbolic(n, 1)?.ok_or("the shape is missing")?.values;
            let target = resolve(&shape, &target, attrs::flag(n, "allowzero", false))?;
            cx.reshape(x, target)?
        }
        "Flatten" => {
            let a = attrs::int(n, "axis").unwrap_or(1);
            let a = if a == rank as i64 { rank } else { axis(a, rank)? };
            let product = |s: &[Dim]| s.iter().fold(Dim::from(1), |p, d| &p * d);
            cx.reshape(x, vec![product(&shape[..a]), product(&shape[a..])])?
        }
        "Squeeze" => {
            let axes = axes(cx, n)?;
            let mut cut = vec![false; rank];
            match axes {
                Some(list) => {
                    for a in list {
                        let a = axis(a, rank)?;
                        if shape[a].as_const() != Some(1) {
                            return Err(OpError::from(format!("axis {a} of {shape:?} is not 1")));
                        }
                        cut[a] = true;
                    }
                }
                // An extent that is 1 at run time goes as well.
                None if shape.iter().any(|d| d.as_const().is_none()) => {
                    return Err(OpError::from("which axes go depends on the extents at run time"));
                }
                None => shape.iter().zip(&mut cut).for_each(|(d, c)| *c = d.as_const() == Some(1)),
            }
            let kept = shape.iter().zip(&cut).filter(|(_, c)| !**c).map(|(d, _)| d.clone());
            cx.reshape(x, kept.collect())?
        }
        "Unsqueeze" => {
            let list = axes(cx, n)?.ok_or("the axes are missing")?;
            let full = rank + list.len();
            let mut new = vec![false; full];
            for a in list {
                if std::mem::replace(&mut new[axis(a, full)?], true) {
                    return Err(OpError::from(format!("axis {a} is named twice")));
                }
            }
            let mut rest = shape.into_iter();
            let target: Option<Shape> = new.iter().map(|&n| if n { Some(Dim::from(1)) } else { rest.next() }).collect();
            cx.reshape(x, target.ok_or("the axes do not fit")?)?
        }
        "Transpose" => {
            let perm = attrs::ints(n, "perm").unwrap_or_else(|| (0..rank as i64).rev().collect());
            cx.transpose(x, perm)?
        }
        "Expand" => {
            let target = cx.symbolic(n, 1)?.ok_or("the shape is missing")?.values;
            let full = broadcast(&shape, &target)?;
            if full == shape { x } else { cx.add(Op::Expand { shape: full }, &[x])? }
        }
        "Concat" => {
            let a = axis(attrs::required_int(n, "axis")?, rank)? as i64;
            let parts: Vec<NodeId> = (0..n.input.len()).map(|i| cx.operand(n, i)).collect::<Result<_>>()?;
            if parts.len() == 1 { x } else { cx.add(Op::Concat { axis: a }, &parts)? }
        }
        "Slice" => slice(cx, n, x)?,
        "Split" => return split(cx, n, x),
        "Gather" => {
            let idx = cx.operand(n, 1)?;
            let a = axis(attrs::int(n, "axis").unwrap_or(0), rank)? as i64;
            cx.add(Op::Gather { axis: a }, &[x, idx])?
        }
        "GatherND" => {
            let idx = cx.operand(n, 1)?;
            let mut at = cx.shape(idx);
            if at.len() > 1
                && at.last().and_then(Dim::as_const) == Some(1)
                && attrs::int(n, "batch_dims").unwrap_or(0) == 0
            {
                // Whole entries along the first axis.
                at.pop();
                let idx = cx.reshape(idx, at)?;
                return Ok(vec![Val::Node(cx.add(Op::Gather { axis: 0 }, &[x, idx])?)]);
            }
            cx.add(Op::GatherNd { batch_dims: attrs::int(n, "batch_dims").unwrap_or(0) }, &[x, idx])?
        }
        other => return Err(OpError::from(format!("`{other}` has no importer"))),
    };
    Ok(vec![Val::Node(one)])
}

/// Axes from the attribute (before opset 13) or the second operand.
fn axes(cx: &mut Context<'_>, n: &NodeProto) -> Result<Option<Vec<i64>>> {
    match attrs::ints(n, "axes") {
        Some(a) => Ok(Some(a)),
        None => cx.const_ints(n, 1),
    }
}

/// The shape that a reshape asks for: 0 copies an extent, -1 takes what is left.
fn resolve(shape: &[Dim], target: &[Dim], allowzero: bool) -> Result<Shape> {
    let product = |s: &mut dyn Iterator<Item = &Dim>| s.fold(Dim::from(1), |p, d| &p * d);
    let mut out: Shape = Vec::with_capacity(target.len());
    let mut free = None;
    for (i, d) in target.iter().enumerate() {
        match d.as_const() {
            Some(-1) if free.replace(i).is_some() => {
                return Err(OpError::from(format!("{target:?}: at most one extent may be -1")));
            }
            Some(-1) => out.push(Dim::from(1)),
            Some(0) if !allowzero => {
                out.push(
                    shape
                        .get(i)
                        .cloned()
                        .ok_or_else(|| OpError::from(format!("{target:?}: nothing to copy for extent {i}")))?,
                );
            }
            Some(c) if c < -1 => return Err(OpError::from(format!("{target:?}: negative extent"))),
            _ => out.push(d.clone()),
        }
    }
    if let Some(i) = free {
        let all = product(&mut shape.iter());
        let rest = product(&mut out.iter());
        out[i] = all.div_exact(&rest).ok_or_else(|| {
            OpError::from(format!("cannot infer extent {i} of {target:?}: {all} is no multiple of {rest}"))
        })?;
    }
    Ok(out)
}

fn slice(cx: &mut Context<'_>, n: &NodeProto, mut x: NodeId) -> Result<NodeId> {
    let list = |cx: &mut Context<'_>, i: usize, name: &str| -> Result<Option<Vec<Dim>>> {
        Ok(match attrs::ints(n, name) {
            Some(v) => Some(v.into_iter().map(Dim::from).collect()),
            None => cx.symbolic(n, i)?.map(|s: SymTensor| s.values),
        })
    };
    let starts = list(cx, 1, "starts")?.ok_or("the starts are missing")?;
    let ends = list(cx, 2, "ends")?.ok_or("the ends are missing")?;
    let axes = list(cx, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).map(Dim::from).collect());
    let steps = list(cx, 4, "steps")?.unwrap_or_else(|| vec![Dim::from(1); starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err(OpError::from("starts, ends, axes and steps differ in length"));
    }
    for i in 0..starts.len() {
        let shape = cx.shape(x);
        let a = axis(axes[i].as_const().ok_or("the axes are not constant")?, shape.len())?;
        let step = steps[i].as_const().filter(|&s| s > 0).ok_or("steps must be positive constants")?;
        let extent = &shape[a];
        let bound = |d: &Dim| -> Dim {
            match (d.as_const(), extent.as_const()) {
                (Some(c), Some(e)) => Dim::from(if c < 0 { c.saturating_add(e) } else { c }.clamp(0, e)),
                (Some(i64::MIN), None) => Dim::from(0),
                (Some(c), None) if c < 0 => &Dim::from(c) + extent,
                (Some(c), None) if c >= i64::from(i32::MAX) => extent.clone(),
                (Some(0), None) => Dim::from(0),
                // What is padded to whole blocks has one.
                (Some(1), None) if extent.counts_blocks() => d.clone(),
                (Some(_), None) => d.smaller(extent),
                (None, _) => d.clone(),
            }
        };
        let (start, end) = (bound(&starts[i]), bound(&ends[i]));
        let end = match (start.as_const(), end.as_const()) {
            (Some(s), Some(e)) if e < s => start.clone(),
            _ => end,
        };
        if step == 1 && start.as_const() == Some(0) && end == *extent {
            continue;
        }
        x = cx.add(Op::Slice { axis: a as i64, start, end, step }, &[x])?;
    }
    Ok(x)
}

fn split(cx: &mut Context<'_>, n: &NodeProto, x: NodeId) -> Result<Vec<Val>> {
    let shape = cx.shape(x);
    let a = axis(attrs::int(n, "axis").unwrap_or(0), shape.len())?;
    let given: Option<Vec<Dim>> = match attrs::ints(n, "split") {
        Some(v) => Some(v.into_iter().map(Dim::from).collect()),
        None => cx.symbolic(n, 1)?.map(|s| s.values),
    };
    let sizes = match given {
        Some(s) => s,
        None => {
            let parts = attrs::int(n, "num_outputs").unwrap_or(n.output.len() as i64).max(1);
            let Some(extent) = shape[a].as_const() else {
                let each = shape[a].div_exact(&Dim::from(parts)).ok_or("the extent does not divide evenly")?;
                return pieces(cx, x, a, vec![each; parts as usize]);
            };
            // All parts are equal but the last, which may be smaller.
            let each = (extent + parts - 1) / parts;
            (0..parts).map(|i| Dim::from((extent - i * each).clamp(0, each))).collect()
        }
    };
    pieces(cx, x, a, sizes)
}

fn pieces(cx: &mut Context<'_>, x: NodeId, a: usize, sizes: Vec<Dim>) -> Result<Vec<Val>> {
    let total = sizes.iter().fold(Dim::from(0), |s, d| &s + d);
    let extent = cx.shape(x)[a].clone();
    if total != extent {
        return Err(OpError::from(format!("the parts {sizes:?} do not add up to {extent}")));
    }
    let mut start = Dim::from(0);
    let mut out = Vec::new();
    for s in sizes {
        let end = &start + &s;
        let id = cx.add(Op::Slice { axis: a as i64, start: start.clone(), end: end.clone(), step: 1 }, &[x])?;
        out.push(Val::Node(id));
        start = end;
    }
    Ok(out)
}
