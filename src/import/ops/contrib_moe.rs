//! Mixtures of experts of ONNX Runtime: `MoE`, and `QMoE` with weights of few bits.
//!
//! The k experts with the largest scores are chosen for each token. Only their matrices are multiplied.

use super::super::attrs;
use super::super::context::{Context, OpError, Result};
use super::super::proto::NodeProto;
use super::attention::{extents, part};
use super::contrib_quant::{view, zero_points};
use crate::ir::{Dim, NodeId, Op, Safe};

/// Where a layer's operands stand in the list of the node.
struct Slots {
    weights: usize,
    scales: Option<usize>,
    bias: usize,
    zeros: usize,
    bits: &'static str,
}

const PLAIN: [Slots; 3] = [
    Slots { weights: 2, scales: None, bias: 3, zeros: 0, bits: "" },
    Slots { weights: 4, scales: None, bias: 5, zeros: 0, bits: "" },
    Slots { weights: 6, scales: None, bias: 7, zeros: 0, bits: "" },
];

const PACKED: [Slots; 3] = [
    Slots { weights: 2, scales: Some(3), bias: 4, zeros: 11, bits: "fc1_expert_weight_bits" },
    Slots { weights: 5, scales: Some(6), bias: 7, zeros: 12, bits: "fc2_expert_weight_bits" },
    Slots { weights: 8, scales: Some(9), bias: 10, zeros: 13, bits: "fc3_expert_weight_bits" },
];

/// The matrices of one layer of the experts: [experts, n, k], or packed with scales and zero points.
struct Layer {
    operands: Vec<NodeId>,
    bias: Option<NodeId>,
    bits: i64,
}

impl Layer {
    fn of(cx: &mut Context<'_>, n: &NodeProto, s: &Slots) -> Result<Option<Layer>> {
        let Some(w) = cx.optional(n, s.weights)? else { return Ok(None) };
        let bias = cx.optional(n, s.bias)?;
        let Some(scales) = s.scales else { return Ok(Some(Layer { operands: vec![w], bias, bits: 0 })) };
        let bits = attrs::int(n, s.bits).or_else(|| attrs::int(n, "expert_weight_bits")).unwrap_or(4);
        if !matches!(bits, 2 | 4 | 8) {
            return Err(OpError::from(format!("{bits} bits are not supported; 2, 4 and 8 are")));
        }
        // Without blocks, one scale is for a whole row.
        let given = cx.optional(n, scales)?.ok_or("the scales of packed experts are missing")?;
        let shape = cx.shape(given);
        let mut runs = shape.clone();
        if runs.len() == 2 {
            runs.push(Dim::from(1));
        }
        let mut operands = vec![w, view(cx, n, scales, runs.clone())?];
        if let Some(zeros) = zero_points(cx, n, s.zeros, bits, &shape)? {
            operands.push(cx.reshape(zeros, runs)?);
        }
        Ok(Some(Layer { operands, bias, bits }))
    }

    /// The product of x [tokens, slots or 1, k] with rows `start..end` of each token's experts.
    fn product(&self, cx: &mut Context<'_>, x: NodeId, expert: NodeId, rows: Option<(Dim, Dim)>) -> Result<NodeId> {
        let mut own = self.operands.clone();
        if let Some((start, end)) = &rows {
            for w in &mut own {
                *w = part(cx, *w, 1, start, end)?;
            }
        }
        let mut operands = vec![x, own[0], expert];
        operands.extend(&own[1..]);
        cx.add(Op::ExpertMatmul { bits: self.bits }, &operands)
    }

    /// The biases of each token's experts.
    fn biases(&self, cx: &mut Context<'_>, expert: NodeId, rows: Option<(Dim, Dim)>) -> Result<Option<NodeId>> {
        let Some(mut b) = self.bias else { return Ok(None) };
        if let Some((start, end)) = &rows {
            b = part(cx, b, 1, start, end)?;
        }
        cx.add(Op::Gather { axis: 0 }, &[b, expert]).map(Some)
    }

    fn apply(&self, cx: &mut Context<'_>, x: NodeId, expert: NodeId, rows: Option<(Dim, Dim)>) -> Result<NodeId> {
        let y = self.product(cx, x, expert, rows.clone())?;
        match self.biases(cx, expert, rows)? {
            Some(b) => cx.add(Op::Add {}, &[y, b]),
            None => Ok(y),
        }
    }
}

/// `MoE` and `QMoE`.
pub(super) fn experts(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let packed = n.op_type() == "QMoE";
    refuse(n, packed)?;
    let (x, scores) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
    let shape = cx.shape(x);
    let width = shape.last().cloned().ok_or("the input is a scalar")?;
    let [tokens, _] = extents(cx, scores, "router_probs")?;
    let k = attrs::int(n, "k").unwrap_or(1);
    let slots = if packed { &PACKED } else { &PLAIN };
    let up = Layer::of(cx, n, &slots[0])?.ok_or("the weights of the first layer are missing")?;
    let down = Layer::of(cx, n, &slots[1])?.ok_or("the weights of the second layer are missing")?;
    let gate = Layer::of(cx, n, &slots[2])?;

    let (share, expert) = route(cx, n, scores, k, packed)?;
    let rows = cx.reshape(x, vec![tokens.clone(), Dim::from(1), width])?;
    let hidden = hidden(cx, n, &up, gate.as_ref(), rows, expert)?;
    let share = cx.reshape(share, vec![tokens, Dim::from(k), Dim::from(1)])?;
    // The shares of products and biases are added up apart, so that a sum over ranks meets the products alone.
    let sum = |cx: &mut Context<'_>, y: NodeId| {
        let y = cx.add(Op::Mul {}, &[y, share])?;
        cx.add(Op::ReduceSum { axes: vec![1], keepdims: false }, &[y])
    };
    let y = down.product(cx, hidden, expert, None)?;
    let mut y = sum(cx, y)?;
    if let Some(b) = down.biases(cx, expert, None)? {
        let b = sum(cx, b)?;
        y = cx.add(Op::Add {}, &[y, b])?;
    }
    cx.reshape(y, shape)
}

fn refuse(n: &NodeProto, packed: bool) -> Result<()> {
    if attrs::flag(n, "use_sparse_mixer", false) {
        return Err(OpError::from("`use_sparse_mixer` is not supported"));
    }
    if !packed {
        return Ok(());
    }
    match attrs::text(n, "quant_type").as_deref() {
        None | Some("int") => {}
        Some(other) => return Err(OpError::from(format!("`quant_type` {other} is not supported; int is"))),
    }
    if attrs::int(n, "weights_prepacked").unwrap_or(-1) > 0 {
        return Err(OpError::from("weights that are prepacked for one kind of device are not supported"));
    }
    match n.input.iter().skip(15).position(|i| !i.is_empty()) {
        Some(i) => Err(OpError::from(format!("operand {} is not supported", i + 15))),
        None => Ok(()),
    }
}

/// Per token, the shares of its experts [tokens, k] and which they are.
fn route(cx: &mut Context<'_>, n: &NodeProto, scores: NodeId, k: i64, packed: bool) -> Result<(NodeId, NodeId)> {
    let normal = |cx: &mut Context<'_>, share: NodeId| {
        let total = cx.add(Op::ReduceSum { axes: vec![1], keepdims: true }, &[share])?;
        cx.add(Op::Div {}, &[share, total])
    };
    let normalize = attrs::flag(n, "normalize_routing_weights", false);
    let given = if packed { cx.optional(n, 14)? } else { None };
    let softmax = Op::Softmax { axis: 1, safe: Safe::No };
    // `MoE` takes the shares before the choice, `QMoE` among what is chosen. The choice is the same.
    let of = if packed { scores } else { cx.add(softmax.clone(), &[scores])? };
    let chosen = cx.add(Op::Largest { k }, &[of])?;
    let expert = cx.add(Op::Get { index: 1 }, &[chosen])?;
    let share = match given {
        Some(weights) => {
            let [tokens, slots] = extents(cx, expert, "the choice of experts")?;
            let at = cx.reshape(expert, vec![tokens.clone(), slots.clone(), Dim::from(1)])?;
            let taken = cx.add(Op::GatherNd { batch_dims: 1 }, &[weights, at])?;
            cx.reshape(taken, vec![tokens, slots])?
        }
        None => cx.add(Op::Get { index: 0 }, &[chosen])?,
    };
    let share = match (packed, given) {
        (true, None) => cx.add(softmax, &[share])?,
        _ if normalize => normal(cx, share)?,
        _ => share,
    };
    Ok((share, expert))
}

/// The result of the first layer and its activation.
fn hidden(
    cx: &mut Context<'_>,
    n: &NodeProto,
    up: &Layer,
    gate: Option<&Layer>,
    x: NodeId,
    expert: NodeId,
) -> Result<NodeId> {
    let kind = attrs::text(n, "activation_type").unwrap_or_else(|| "relu".to_owned());
    if kind == "swiglu" {
        let all = cx.shape(up.operands[0])[1].clone();
        let half = || all.div_exact(&Dim::from(2)).ok_or("the rows of the first layer are odd in number");
        let [g, l] = match (attrs::int(n, "swiglu_fusion").unwrap_or(0), gate) {
            (0, Some(gate)) => [up.apply(cx, x, expert, None)?, gate.apply(cx, x, expert, None)?],
            (1, None) => {
                // Pairs side by side.
                let y = up.apply(cx, x, expert, None)?;
                let [tokens, slots, _] = extents(cx, y, "the first layer")?;
                let pairs = cx.reshape(y, vec![tokens.clone(), slots.clone(), half()?, Dim::from(2)])?;
                let mut halves = [pairs; 2];
                for (i, h) in halves.iter_mut().enumerate() {
                    let i = i as i64;
                    let one = part(cx, pairs, 3, &Dim::from(i), &Dim::from(i + 1))?;
                    *h = cx.reshape(one, vec![tokens.clone(), slots.clone(), half()?])?;
                }
                halves
            }
            (2, None) => {
                let half = half()?;
                let first = up.apply(cx, x, expert, Some((Dim::from(0), half.clone())))?;
                [first, up.apply(cx, x, expert, Some((half, all)))?]
            }
            (fusion, _) => {
                return Err(OpError::from(format!("`swiglu_fusion` {fusion} does not fit the weights that are given")));
            }
        };
        return swiglu(cx, n, g, l);
    }
    let y = up.apply(cx, x, expert, None)?;
    let y = match kind.as_str() {
        "relu" => cx.add(Op::Relu {}, &[y])?,
        "gelu" => cx.add(Op::Gelu { tanh: true }, &[y])?,
        "silu" => cx.add(Op::Silu {}, &[y])?,
        "identity" => y,
        other => return Err(OpError::from(format!("the activation `{other}` is not supported"))),
    };
    match gate {
        Some(gate) => {
            let z = gate.apply(cx, x, expert, None)?;
            cx.add(Op::Mul {}, &[y, z])
        }
        None => Ok(y),
    }
}

/// G sigmoid(alpha G) (L + beta) of what is clamped.
fn swiglu(cx: &mut Context<'_>, n: &NodeProto, mut g: NodeId, mut l: NodeId) -> Result<NodeId> {
    let dtype = cx.ty(g).dtype;
    let number = |cx: &mut Context<'_>, name: &str, default: f32| {
        let v = attrs::float(n, name).unwrap_or(default);
        (f64::from(v), cx.scalar(dtype, f64::from(v)))
    };
    if let Some(limit) = attrs::float(n, "swiglu_limit").filter(|l| l.is_finite()) {
        let (high, low) = (cx.scalar(dtype, f64::from(limit)), cx.scalar(dtype, -f64::from(limit)));
        g = cx.add(Op::Min {}, &[g, high])?;
        l = cx.add(Op::Min {}, &[l, high])?;
        l = cx.add(Op::Max {}, &[l, low])?;
    }
    let (alpha, factor) = number(cx, "activation_alpha", 1.0);
    let (beta, offset) = number(cx, "activation_beta", 0.0);
    if beta != 0.0 {
        l = cx.add(Op::Add {}, &[l, offset])?;
    }
    let inner = if alpha == 1.0 { g } else { cx.add(Op::Mul {}, &[g, factor])? };
    let gate = cx.add(Op::Sigmoid {}, &[inner])?;
    let g = cx.add(Op::Mul {}, &[g, gate])?;
    cx.add(Op::Mul {}, &[g, l])
}
