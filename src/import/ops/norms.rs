//! Norms in their native and contributed forms.
//!
//! Operators that hold several steps are split into sums and norms, so that a better fusion can take them.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, Val};
use super::super::proto::NodeProto;
use super::axis;
use crate::ir::{DType, Dim, NodeId, Op, Real, Shape};

pub(super) const OPS: &[&str] = &["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"];

/// Operators of ONNX Runtime's own domain.
pub(super) const CONTRIB: &[&str] = &[
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];

/// Epsilon of the operators of ONNX where none is written.
const EPSILON: f64 = 1e-5;
/// Epsilon of ONNX Runtime's skip norms where none is written.
const SKIP_EPSILON: f64 = 1e-12;

pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    match n.op_type() {
        "LayerNormalization" => native(cx, n, true),
        "RMSNormalization" | "SimplifiedLayerNormalization" => native(cx, n, false),
        "SkipLayerNormalization" => skip(cx, n, true),
        "SkipSimplifiedLayerNormalization" => skip(cx, n, false),
        other => Err(OpError::from(format!("`{other}` has no importer"))),
    }
}

fn epsilon(n: &NodeProto, default: f64) -> f64 {
    attrs::float(n, "epsilon").map_or(default, f64::from)
}

/// Whether an output is asked for.
fn wants(n: &NodeProto, output: usize) -> bool {
    n.output.get(output).is_some_and(|o| !o.is_empty())
}

fn product(shape: &[Dim]) -> Dim {
    shape.iter().fold(Dim::from(1), |p, d| &p * d)
}

/// A scale or bias as a vector over the normalised axes, where it is one for all rows. `over` is their shape.
fn vector(cx: &mut Context<'_>, p: NodeId, over: &[Dim]) -> Result<Option<NodeId>> {
    let shape = cx.shape(p);
    if shape.len() == 1 && over.len() == 1 && shape[0] == over[0] {
        return Ok(Some(p));
    }
    let lead = shape.len().saturating_sub(over.len());
    if shape[..lead].iter().any(|d| d.as_const() != Some(1)) {
        return Ok(None);
    }
    let own = cx.reshape(p, shape[lead..].to_vec())?;
    let whole = if shape[lead..] == *over { own } else { cx.add(Op::Expand { shape: over.to_vec() }, &[own])? };
    if cx.shape(whole) != over {
        return Ok(None);
    }
    Ok(Some(cx.reshape(whole, vec![product(over)])?))
}

fn filled(cx: &mut Context<'_>, dtype: DType, value: f64, width: &Dim) -> Result<NodeId> {
    let scalar = cx.scalar(dtype, value);
    cx.add(Op::Expand { shape: vec![width.clone()] }, &[scalar])
}

/// What a norm is taken of, and its parameters.
struct Norm {
    x: NodeId,
    w: Option<NodeId>,
    b: Option<NodeId>,
    eps: f64,
    /// Whether the mean is subtracted.
    centred: bool,
    /// The first normalised axis.
    axis: usize,
}

/// The norm over the axes from `axis` on, as one over the last axis.
fn norm(cx: &mut Context<'_>, p: &Norm) -> Result<NodeId> {
    let shape = cx.shape(p.x);
    let over = shape[p.axis..].to_vec();
    let width = product(&over);
    let mut flat: Shape = shape[..p.axis].to_vec();
    flat.push(width.clone());
    let x = cx.reshape(p.x, flat)?;
    let dtype = cx.ty(x).dtype;
    let mut apart = vec![];
    let mut take = |cx: &mut Context<'_>, op: Op, v: Option<NodeId>| -> Result<Option<NodeId>> {
        let Some(v) = v else { return Ok(None) };
        let found = vector(cx, v, &over)?;
        if found.is_none() {
            apart.push((op, v));
        }
        Ok(found)
    };
    let w = take(cx, Op::Mul {}, p.w)?;
    // A bias is added after a scale that stands apart.
    let b = match w.is_none() && p.w.is_some() {
        true => p.b.inspect(|b| apart.push((Op::Add {}, *b))).and(None),
        false => take(cx, Op::Add {}, p.b)?,
    };
    let w = match w {
        Some(w) => w,
        None => filled(cx, dtype, 1.0, &width)?,
    };
    let eps = Real(p.eps);
    let y = match (p.centred, b) {
        (true, Some(b)) => cx.add(Op::LayerNorm { eps }, &[x, w, b])?,
        (true, None) => {
            let b = filled(cx, dtype, 0.0, &width)?;
            cx.add(Op::LayerNorm { eps }, &[x, w, b])?
        }
        (false, b) => {
            let y = cx.add(Op::RmsNorm { eps }, &[x, w])?;
            match b {
                Some(b) => cx.add(Op::Add {}, &[y, b])?,
                None => y,
            }
        }
    };
    let mut y = cx.reshape(y, shape.clone())?;
    for (op, v) in apart {
        y = cx.add(op, &[y, v])?;
    }
    if cx.shape(y) != shape {
        return Err(OpError::from(format!("scale or bias does not broadcast to {shape:?}")));
    }
    Ok(y)
}

/// The mean and the inverse deviation, where they are asked for, in f32 and with axes of 1.
fn statistics(cx: &mut Context<'_>, p: &Norm) -> Result<(NodeId, NodeId)> {
    let axes: Vec<i64> = (p.axis..cx.ty(p.x).rank()).map(|a| a as i64).collect();
    let x = if cx.ty(p.x).dtype == DType::F32 { p.x } else { cx.add(Op::Cast { to: DType::F32 }, &[p.x])? };
    let mean = cx.add(Op::ReduceMean { axes: axes.clone(), keepdims: true }, &[x])?;
    let d = if p.centred { cx.add(Op::Sub {}, &[x, mean])? } else { x };
    let square = cx.add(Op::Mul {}, &[d, d])?;
    let mut v = cx.add(Op::ReduceMean { axes, keepdims: true }, &[square])?;
    let eps = cx.scalar(DType::F32, p.eps);
    v = cx.add(Op::Add {}, &[v, eps])?;
    v = cx.add(Op::Sqrt {}, &[v])?;
    Ok((mean, cx.add(Op::Reciprocal {}, &[v])?))
}

fn native(cx: &mut Context<'_>, n: &NodeProto, centred: bool) -> Result<Vec<Val>> {
    let x = cx.operand(n, 0)?;
    let axis = axis(attrs::int(n, "axis").unwrap_or(-1), cx.ty(x).rank())?;
    if attrs::int(n, "stash_type").unwrap_or(1) != 1 {
        return Err(OpError::from("only norms computed in float32 (stash_type 1) are supported"));
    }
    let w = Some(cx.operand(n, 1)?);
    let b = if centred { cx.optional(n, 2)? } else { None };
    let p = Norm { x, w, b, eps: epsilon(n, EPSILON), centred, axis };
    let mut out = vec![norm(cx, &p)?];
    if wants(n, 1) || wants(n, 2) {
        let (mean, inverse) = statistics(cx, &p)?;
        out.extend(if centred { vec![mean, inverse] } else { vec![inverse] });
    }
    Ok(out.into_iter().map(Val::Node).collect())
}

/// ONNX Runtime's norm of a residual sum: (x, skip, scale, [beta,] bias) to (norm, mean, inverse deviation, sum).
fn skip(cx: &mut Context<'_>, n: &NodeProto, centred: bool) -> Result<Vec<Val>> {
    let (x, skip, w) = (cx.operand(n, 0)?, cx.operand(n, 1)?, cx.operand(n, 2)?);
    let (b, bias) = match centred {
        true => (cx.optional(n, 3)?, cx.optional(n, 4)?),
        false => (None, cx.optional(n, 3)?),
    };
    let branch = match bias {
        Some(bias) => cx.add(Op::Add {}, &[x, bias])?,
        None => x,
    };
    let sum = cx.add(Op::Add {}, &[branch, skip])?;
    if cx.shape(sum) != cx.shape(x) {
        return Err(OpError::from(format!("skip {} does not broadcast to {}", cx.ty(skip), cx.ty(x))));
    }
    let axis = axis(-1, cx.ty(sum).rank())?;
    let p = Norm { x: sum, w: Some(w), b, eps: epsilon(n, SKIP_EPSILON), centred, axis };
    let y = norm(cx, &p)?;
    let (mean, inverse) = match wants(n, 1) || wants(n, 2) {
        true => statistics(cx, &p)?,
        false => (y, y),
    };
    Ok([y, mean, inverse, sum].map(Val::Node).to_vec())
}
