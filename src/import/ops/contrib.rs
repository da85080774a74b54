//! ONNX Runtime's own operators (domain `com.microsoft`), taken apart into operators of the program.
//!
//! The contracts are those of ONNX Runtime's operator schemas; where they leave a choice, its CPU kernels decide.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, Val};
use super::super::proto::NodeProto;
use super::attention::{self, extents};
use super::{contrib_attention, contrib_moe, contrib_quant};
use crate::ir::{DType, Dim, NodeId, Op, Real};

pub(super) const OPS: &[&str] = &[
    "Attention",
    "BiasAdd",
    "BiasGelu",
    "BiasSplitGelu",
    "EmbedLayerNormalization",
    "FastGelu",
    "FusedGemm",
    "FusedMatMul",
    "GatherBlockQuantized",
    "Gelu",
    "GroupQueryAttention",
    "MatMulNBits",
    "MoE",
    "MultiHeadAttention",
    "QMoE",
    "QuickGelu",
    "RotaryEmbedding",
    "TransposeMatMul",
];

pub(super) fn supported(op: &str) -> bool {
    OPS.contains(&op)
}

pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    let one = |id: NodeId| Ok(vec![Val::Node(id)]);
    match n.op_type() {
        "GroupQueryAttention" => contrib_attention::group_query(cx, n),
        "MultiHeadAttention" => contrib_attention::multi_head(cx, n),
        "Attention" => contrib_attention::packed(cx, n),
        "MatMulNBits" => one(contrib_quant::matmul(cx, n)?),
        "MoE" | "QMoE" => one(contrib_moe::experts(cx, n)?),
        "GatherBlockQuantized" => one(contrib_quant::gather(cx, n)?),
        "RotaryEmbedding" => one(rotary(cx, n)?),
        "EmbedLayerNormalization" => embed(cx, n),
        "FusedMatMul" | "TransposeMatMul" => one(fused_matmul(cx, n)?),
        "FusedGemm" => one(fused_gemm(cx, n)?),
        _ => one(pointwise(cx, n)?),
    }
}

fn pointwise(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let mut x = cx.operand(n, 0)?;
    match n.op_type() {
        "Gelu" => cx.add(Op::Gelu { tanh: false }, &[x]),
        "BiasGelu" => {
            let b = cx.operand(n, 1)?;
            x = cx.add(Op::Add {}, &[x, b])?;
            cx.add(Op::Gelu { tanh: false }, &[x])
        }
        "FastGelu" => {
            if let Some(b) = cx.optional(n, 1)? {
                x = cx.add(Op::Add {}, &[x, b])?;
            }
            cx.add(Op::Gelu { tanh: true }, &[x])
        }
        "QuickGelu" => {
            let alpha = f64::from(attrs::float(n, "alpha").unwrap_or(1.702));
            let dtype = cx.ty(x).dtype;
            let mut inner = x;
            if alpha != 1.0 {
                let c = cx.scalar(dtype, alpha);
                inner = cx.add(Op::Mul {}, &[x, c])?;
            }
            let gate = cx.add(Op::Sigmoid {}, &[inner])?;
            cx.add(Op::Mul {}, &[x, gate])
        }
        "BiasAdd" => {
            let (b, skip) = (cx.operand(n, 1)?, cx.operand(n, 2)?);
            x = cx.add(Op::Add {}, &[x, b])?;
            cx.add(Op::Add {}, &[x, skip])
        }
        "BiasSplitGelu" => {
            let b = cx.operand(n, 1)?;
            x = cx.add(Op::Add {}, &[x, b])?;
            let shape = cx.shape(x);
            let Some((all, lead)) = shape.split_last() else { return Err(OpError::from("a scalar")) };
            let axis = lead.len();
            let half = all.div_exact(&Dim::from(2)).ok_or("the width is odd")?;
            let left = attention::part(cx, x, axis, &Dim::from(0), &half)?;
            let right = attention::part(cx, x, axis, &half, all)?;
            let gate = cx.add(Op::Gelu { tanh: false }, &[right])?;
            cx.add(Op::Mul {}, &[left, gate])
        }
        other => Err(OpError::from(format!("`{other}` has no importer"))),
    }
}

/// Positions are given per token, or as one offset for all.
fn rotary(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let (x, given) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
    let table = cx.operand(n, 2)?;
    if attrs::float(n, "scale").is_some_and(|s| s != 1.0) {
        return Err(OpError::from("a `scale` other than 1 is not supported"));
    }
    let half = extents::<2>(cx, table, "cos_cache")?[1].clone();
    let rotated = &half * &Dim::from(2);
    let heads = attrs::int(n, "num_heads").unwrap_or(0);
    let token_major = cx.ty(x).rank() == 3;
    let heads_of = if token_major {
        let all = cx.shape(x)[2].clone();
        // Without a number of heads, the columns of cos tell how wide one is.
        let heads = match heads {
            0 => all.div_exact(&rotated).and_then(|h| h.as_const()).ok_or("cos_cache does not fit the width")?,
            h => h,
        };
        attention::split_heads(cx, x, heads)?
    } else {
        x
    };
    let [_, _, tokens, _] = extents(cx, heads_of, "the operand")?;
    let at = token_positions(cx, given, &tokens)?;
    let (cos, sin) = (attention::angles(cx, n, 2, at)?, attention::angles(cx, n, 3, at)?);
    let y = attention::rotate(cx, heads_of, cos, sin, attrs::flag(n, "interleaved", false))?;
    if token_major { attention::merge_heads(cx, y) } else { Ok(y) }
}

/// Positions [batch, tokens], or the first of them [1].
fn token_positions(cx: &mut Context<'_>, given: NodeId, tokens: &Dim) -> Result<NodeId> {
    let shape = cx.shape(given);
    match &shape[..] {
        [one] if one.as_const() == Some(1) => {
            let steps = attention::positions(cx, tokens, vec![Dim::from(1), tokens.clone()])?;
            cx.add(Op::Add {}, &[steps, given])
        }
        [_, _] => Ok(given),
        _ => Err(OpError::from(format!("position_ids {} is neither [1] nor [batch, tokens]", cx.ty(given)))),
    }
}

/// The product of operands that may be read transposed.
fn fused_matmul(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let mut x = [cx.operand(n, 0)?, cx.operand(n, 1)?];
    for (side, name) in ["A", "B"].iter().enumerate() {
        let rank = cx.ty(x[side]).rank() as i64;
        let mut perm: Vec<i64> = (0..rank).collect();
        if attrs::flag(n, &format!("transBatch{name}"), false) && rank > 2 {
            // The first axis goes behind those of the batch.
            perm = (1..rank - 1).chain([0, rank - 1]).collect();
        }
        if attrs::flag(n, &format!("trans{name}"), false) && rank > 1 {
            perm.swap(rank as usize - 1, rank as usize - 2);
        }
        x[side] = cx.transpose(x[side], perm)?;
    }
    let y = cx.add(Op::Matmul { trans_b: false }, &x)?;
    scaled(cx, y, attrs::float(n, "alpha"))
}

fn scaled(cx: &mut Context<'_>, x: NodeId, factor: Option<f32>) -> Result<NodeId> {
    match factor {
        None | Some(1.0) => Ok(x),
        Some(f) => {
            let dtype = cx.ty(x).dtype;
            let c = cx.scalar(dtype, f64::from(f));
            cx.add(Op::Mul {}, &[x, c])
        }
    }
}

fn fused_gemm(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let (mut a, b) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
    if attrs::flag(n, "transA", false) {
        a = cx.transpose(a, vec![1, 0])?;
    }
    let y = cx.add(Op::Matmul { trans_b: attrs::flag(n, "transB", false) }, &[a, b])?;
    let mut y = scaled(cx, y, attrs::float(n, "alpha"))?;
    if let Some(c) = cx.optional(n, 2)? {
        let c = scaled(cx, c, attrs::float(n, "beta"))?;
        y = cx.add(Op::Add {}, &[y, c])?;
    }
    let dtype = cx.ty(y).dtype;
    match attrs::text(n, "activation").as_deref() {
        None | Some("") => Ok(y),
        Some("Relu") => cx.add(Op::Relu {}, &[y]),
        Some("Tanh") => cx.add(Op::Tanh {}, &[y]),
        Some("Sigmoid") => cx.add(Op::Sigmoid {}, &[y]),
        Some("LeakyRelu") => {
            let zero = cx.scalar(dtype, 0.0);
            let low = cx.add(Op::Min {}, &[y, zero])?;
            let low = scaled(cx, low, Some(attrs::float(n, "activation_alpha").unwrap_or(0.01)))?;
            let high = cx.add(Op::Relu {}, &[y])?;
            cx.add(Op::Add {}, &[high, low])
        }
        Some(other) => Err(OpError::from(format!("the activation `{other}` is not supported"))),
    }
}

/// The sum of word, position and segment embeddings, and its layer norm.
fn embed(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    let ids = cx.operand(n, 0)?;
    let (words, places) = (cx.operand(n, 2)?, cx.operand(n, 3)?);
    let [batch, tokens] = extents(cx, ids, "input_ids")?;
    let at = match cx.optional(n, 8)? {
        Some(at) => at,
        None => attention::positions(cx, &tokens, vec![Dim::from(1), tokens.clone()])?,
    };
    let word = cx.add(Op::Gather { axis: 0 }, &[words, ids])?;
    let place = cx.add(Op::Gather { axis: 0 }, &[places, at])?;
    let mut sum = cx.add(Op::Add {}, &[word, place])?;
    if let (Some(segments), Some(table)) = (cx.optional(n, 1)?, cx.optional(n, 4)?) {
        let segment = cx.add(Op::Gather { axis: 0 }, &[table, segments])?;
        sum = cx.add(Op::Add {}, &[sum, segment])?;
    }
    let (gamma, beta) = (cx.operand(n, 5)?, cx.operand(n, 6)?);
    let eps = Real(f64::from(attrs::float(n, "epsilon").unwrap_or(1e-12)));
    let y = cx.add(Op::LayerNorm { eps }, &[sum, gamma, beta])?;
    // The number of words, as far as there is a mask.
    let index = match cx.optional(n, 7)? {
        Some(mask) => {
            let dtype = cx.ty(mask).dtype;
            let one = cx.scalar(dtype, 1.0);
            let kept = cx.add(Op::Equal {}, &[mask, one])?;
            let kept = cx.add(Op::Cast { to: DType::I32 }, &[kept])?;
            cx.add(Op::ReduceSum { axes: vec![1], keepdims: false }, &[kept])?
        }
        None => {
            let zero = cx.scalar(DType::I32, 0.0);
            cx.add(Op::Expand { shape: vec![batch] }, &[zero])?
        }
    };
    Ok([y, index, sum].map(Val::Node).to_vec())
}
