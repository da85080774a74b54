//! Normalisation in its native and contributed forms.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, Val};
use super::super::proto::NodeProto;
use super::axis;
use crate::ir::{DType, NodeId, Op, Real};

pub(super) const OPS: &[&str] = &["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"];

/// Operators of ONNX Runtime's own domain.
pub(super) const CONTRIB: &[&str] = &["SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"];

pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    let one = |id: NodeId| Ok(vec![Val::Node(id)]);
    match n.op_type() {
        "LayerNormalization" => {
            let (x, w) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
            let eps = norm_attributes(cx, n, x)?;
            let b = match cx.optional(n, 2)? {
                Some(b) => b,
                None => {
                    let ty = cx.ty(w).clone();
                    let zero = cx.scalar(ty.dtype, 0.0);
                    cx.add(Op::Expand { shape: ty.shape }, &[zero])?
                }
            };
            one(cx.add(Op::LayerNorm { eps }, &[x, w, b])?)
        }
        "RMSNormalization" | "SimplifiedLayerNormalization" => {
            let (x, w) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
            let eps = norm_attributes(cx, n, x)?;
            one(cx.add(Op::RmsNorm { eps }, &[x, w])?)
        }
        "SkipSimplifiedLayerNormalization" => {
            // Split again into addition and norm, so that a better fusion can take them.
            let (x, skip, w) = (cx.operand(n, 0)?, cx.operand(n, 1)?, cx.operand(n, 2)?);
            let mut sum = cx.add(Op::Add {}, &[x, skip])?;
            if let Some(bias) = cx.optional(n, 3)? {
                sum = cx.add(Op::Add {}, &[sum, bias])?;
            }
            let eps = Real(f64::from(attrs::float(n, "epsilon").unwrap_or(1e-5)));
            let y = cx.add(Op::RmsNorm { eps }, &[sum, w])?;
            // The statistics of a row, which nobody reads most often; then these nodes are dropped.
            let last = vec![cx.ty(sum).rank() as i64 - 1];
            let wide = if cx.ty(sum).dtype == DType::F32 { sum } else { cx.add(Op::Cast { to: DType::F32 }, &[sum])? };
            let mean = cx.add(Op::ReduceMean { axes: last.clone(), keepdims: true }, &[wide])?;
            let square = cx.add(Op::Mul {}, &[wide, wide])?;
            let square = cx.add(Op::ReduceMean { axes: last, keepdims: true }, &[square])?;
            let small = cx.scalar(DType::F32, eps.0);
            let square = cx.add(Op::Add {}, &[square, small])?;
            let root = cx.add(Op::Sqrt {}, &[square])?;
            let inverse = cx.add(Op::Reciprocal {}, &[root])?;
            Ok([y, mean, inverse, sum].map(Val::Node).to_vec())
        }
        other => Err(OpError::from(format!("`{other}` has no importer"))),
    }
}

fn norm_attributes(cx: &Context<'_>, n: &NodeProto, x: NodeId) -> Result<Real> {
    let rank = cx.ty(x).rank();
    if axis(attrs::int(n, "axis").unwrap_or(-1), rank)? + 1 != rank {
        return Err(OpError::from("only the norm over the last axis is supported"));
    }
    if attrs::int(n, "stash_type").unwrap_or(1) != 1 {
        return Err(OpError::from("only norms computed in float32 (stash_type 1) are supported"));
    }
    Ok(Real(f64::from(attrs::float(n, "epsilon").unwrap_or(1e-5))))
}
