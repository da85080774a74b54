//! Operators that move elements.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, SymTensor, Val};
use super::super::proto::NodeProto;
use super::axis;
use crate::ir::{Dim, NodeId, Op, Shape, SliceBounds, broadcast, reshaped, slice_bounds};
use sinter_runtime::plan::Relation;

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
            let mut nonzero = vec![];
            let target = reshaped(&shape, &target, !attrs::flag(n, "allowzero", false), Some(&mut nonzero))?;
            let known = target.into_iter().collect::<Option<Shape>>();
            let known = known.ok_or("the sign of an extent shows only during execution")?;
            let late = nonzero.iter().any(|d| cx.is_late(d));
            if late {
                return Err(OpError::from("whether an extent is 0 shows only during execution"));
            }
            let y = cx.reshape(x, known)?;
            nonzero.into_iter().for_each(|d| cx.assume(d, Relation::AtLeast, Dim::from(1)));
            y
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
                None => {
                    for (d, c) in shape.iter().zip(&mut cut) {
                        *c = d.as_const() == Some(1);
                        // The rank cannot depend on extents.
                        if d.as_const().is_none() && d.bounds().0 <= 1 {
                            cx.assume(d.clone(), Relation::Different, Dim::from(1));
                        }
                    }
                }
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
        let SliceBounds { start, end, .. } = slice_bounds(&starts[i], &ends[i], step, extent);
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
                if let Some(each) = shape[a].div_exact(&Dim::from(parts)) {
                    return pieces(cx, x, a, vec![each; parts as usize]);
                }
                if cx.opset < 18 {
                    return Err(OpError::from("the extent may not divide evenly"));
                }
                return chunks(cx, x, a, parts);
            };
            // All parts are equal but the last, which may be smaller.
            let each = (extent + parts - 1) / parts;
            (0..parts).map(|i| Dim::from((extent - i * each).clamp(0, each))).collect()
        }
    };
    pieces(cx, x, a, sizes)
}

/// Equal parts of an extent that they may not divide: the last ones are smaller, or empty.
fn chunks(cx: &mut Context<'_>, x: NodeId, a: usize, parts: i64) -> Result<Vec<Val>> {
    let extent = cx.shape(x)[a].clone();
    let each = (&extent + &Dim::from(parts - 1)).floor_div(&Dim::from(parts));
    let edge = |i: i64| if i == parts { extent.clone() } else { (&each * &Dim::from(i)).smaller(&extent) };
    (0..parts)
        .map(|i| Ok(Val::Node(cx.add(Op::Slice { axis: a as i64, start: edge(i), end: edge(i + 1), step: 1 }, &[x])?)))
        .collect()
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
