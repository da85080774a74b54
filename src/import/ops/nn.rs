//! Normalisation, rotary embedding and attention, in their native and contributed forms.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, Val};
use super::super::proto::NodeProto;
use super::axis;
use crate::ir::{DType, Dim, NodeId, Op, Real};

pub(super) const OPS: &[&str] =
    &["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "RotaryEmbedding", "Attention"];

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
            if n.output.iter().skip(1).take(2).any(|o| !o.is_empty()) {
                return Err(OpError::from("the mean and inverse deviation outputs are not supported"));
            }
            Ok([y, y, y, sum].map(Val::Node).to_vec())
        }
        "RotaryEmbedding" => one(rotary(cx, n)?),
        "Attention" => attention(cx, n),
        other => Err(OpError::from(format!("`{other}` has no importer"))),
    }
}

fn norm_attributes(cx: &Context<'_>, n: &NodeProto, x: NodeId) -> Result<Real> {
    let rank = cx.ty(x).rank();
    if cx.ty(x).dtype == DType::F64 {
        return Err(OpError::from("norms of f64 are not supported: they compute in f32"));
    }
    if axis(attrs::int(n, "axis").unwrap_or(-1), rank)? + 1 != rank {
        return Err(OpError::from("only the norm over the last axis is supported"));
    }
    if attrs::int(n, "stash_type").unwrap_or(1) != 1 {
        return Err(OpError::from("only norms computed in float32 (stash_type 1) are supported"));
    }
    Ok(Real(f64::from(attrs::float(n, "epsilon").unwrap_or(1e-5))))
}

fn rotary(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let x = cx.operand(n, 0)?;
    let (mut cos, mut sin) = (cx.operand(n, 1)?, cx.operand(n, 2)?);
    if let Some(positions) = cx.optional(n, 3)? {
        cos = cx.add(Op::Gather { axis: 0 }, &[cos, positions])?;
        sin = cx.add(Op::Gather { axis: 0 }, &[sin, positions])?;
    }
    let interleaved = attrs::flag(n, "interleaved", false);
    let shape = cx.shape(x);
    // A token-major operand [batch, tokens, heads * width] gets its heads apart first.
    let (y, head_axis) = match shape.len() {
        4 => (x, 1),
        3 => {
            let heads =
                Dim::from(attrs::int(n, "num_heads").filter(|&h| h > 0).ok_or("`num_heads` is needed for rank 3")?);
            let width = shape[2].div_exact(&heads).ok_or("the width is no multiple of `num_heads`")?;
            (cx.reshape(x, vec![shape[0].clone(), shape[1].clone(), heads, width])?, 2)
        }
        r => return Err(OpError::from(format!("operand of rank {r}"))),
    };
    for t in [&mut cos, &mut sin] {
        let mut s = cx.shape(*t);
        if s.len() != 3 {
            return Err(OpError::from(format!("cos or sin {} is not [batch, tokens, width / 2]", cx.ty(*t))));
        }
        s.insert(head_axis, Dim::from(1));
        *t = cx.reshape(*t, s)?;
    }
    let width = cx.shape(y)[3].clone();
    let rotated = match attrs::int(n, "rotary_embedding_dim").unwrap_or(0) {
        0 => width.clone(),
        d => Dim::from(d),
    };
    let z = if rotated == width {
        cx.add(Op::Rotary { interleaved }, &[y, cos, sin])?
    } else {
        let zero = Dim::from(0);
        let head = cx.add(Op::Slice { axis: 3, start: zero, end: rotated.clone(), step: 1 }, &[y])?;
        let tail = cx.add(Op::Slice { axis: 3, start: rotated, end: width, step: 1 }, &[y])?;
        let head = cx.add(Op::Rotary { interleaved }, &[head, cos, sin])?;
        cx.add(Op::Concat { axis: 3 }, &[head, tail])?
    };
    cx.reshape(z, shape)
}

fn attention(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    if n.output.get(3).is_some_and(|o| !o.is_empty()) {
        return Err(OpError::from("the output of the product of queries and keys is not supported"));
    }
    let (mut q, mut k, mut v) = (cx.operand(n, 0)?, cx.operand(n, 1)?, cx.operand(n, 2)?);
    let token_major = cx.ty(q).rank() == 3;
    if token_major {
        let heads = |name: &str| {
            attrs::int(n, name).filter(|&h| h > 0).ok_or_else(|| OpError::from(format!("`{name}` is needed")))
        };
        let (hq, hk) = (heads("q_num_heads")?, heads("kv_num_heads")?);
        for (t, h) in [(&mut q, hq), (&mut k, hk), (&mut v, hk)] {
            let s = cx.shape(*t);
            let (h, [b, tokens, width]) = (Dim::from(h), &s[..]) else {
                return Err(OpError::from("operands differ in rank"));
            };
            let width = width.div_exact(&h).ok_or("the width is no multiple of the number of heads")?;
            let split = cx.reshape(*t, vec![b.clone(), tokens.clone(), h, width])?;
            *t = cx.transpose(split, vec![0, 2, 1, 3])?;
        }
    }
    let causal = attrs::flag(n, "is_causal", false);
    let tokens = |shape: &[Dim]| shape.get(2).cloned();
    if causal && tokens(&cx.shape(q)) != tokens(&cx.shape(k)) {
        // ONNX lets query i see the keys up to i there; the last query of `attention` sees all keys.
        return Err(OpError::from(
            "causal attention over another number of new keys than of queries is not supported; export it with a mask",
        ));
    }
    if let (Some(past_k), Some(past_v)) = (cx.optional(n, 4)?, cx.optional(n, 5)?) {
        k = cx.add(Op::Concat { axis: 2 }, &[past_k, k])?;
        v = cx.add(Op::Concat { axis: 2 }, &[past_v, v])?;
    }
    let shape = cx.shape(q);
    let [_, _, _, width] = &shape[..] else { return Err(OpError::from("operands are neither of rank 3 nor 4")) };
    let scale = match attrs::float(n, "scale") {
        Some(s) if s != 0.0 => f64::from(s),
        _ => match width.as_const() {
            Some(w) if w > 0 => 1.0 / (w as f64).sqrt(),
            _ => return Err(OpError::from("the head width is not constant, and no scale is given")),
        },
    };
    let softcap = f64::from(attrs::float(n, "softcap").unwrap_or(0.0));
    let op = Op::Attention { scale: Real(scale), causal, softcap: Real(softcap), safe: false };
    let y = match cx.optional(n, 3)? {
        Some(mask) => cx.add(op, &[q, k, v, mask])?,
        None => cx.add(op, &[q, k, v])?,
    };
    let y = if token_major {
        let t = cx.transpose(y, vec![0, 2, 1, 3])?;
        let s = cx.shape(t);
        cx.reshape(t, vec![s[0].clone(), s[1].clone(), &s[2] * &s[3]])?
    } else {
        y
    };
    Ok([y, k, v].map(Val::Node).to_vec())
}
