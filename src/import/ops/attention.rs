//! Attention and rotary embedding of ONNX, and what their contributed forms share with them.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, SymTensor, Val};
use super::super::proto::NodeProto;
use crate::ir::{DType, Dim, NodeId, Op, Real, Safe, Shape};

pub(super) const OPS: &[&str] = &["RotaryEmbedding", "Attention"];

pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    match n.op_type() {
        "RotaryEmbedding" => Ok(vec![Val::Node(rotary_embedding(cx, n)?)]),
        "Attention" => attention(cx, n),
        other => Err(OpError::from(format!("`{other}` has no importer"))),
    }
}

/// An extent as an i64 scalar.
pub(super) fn count(cx: &mut Context<'_>, d: &Dim) -> Result<NodeId> {
    cx.materialise(&Val::Sym(SymTensor { dtype: DType::I64, values: vec![d.clone()], scalar: true }), "")
}

/// 0, 1, ... below `n`, in a shape of `n` elements.
pub(super) fn positions(cx: &mut Context<'_>, n: &Dim, shape: Shape) -> Result<NodeId> {
    let range = cx.add(Op::Range { start: Dim::from(0), limit: n.clone(), step: 1 }, &[])?;
    cx.reshape(range, shape)
}

/// Part `start..end` of an axis, or the operand itself where that is all.
pub(super) fn part(cx: &mut Context<'_>, x: NodeId, axis: usize, start: &Dim, end: &Dim) -> Result<NodeId> {
    let shape = cx.shape(x);
    let extent = shape.get(axis).ok_or_else(|| OpError::from(format!("{} has no axis {axis}", cx.ty(x))))?;
    if start.as_const() == Some(0) && end == extent {
        return Ok(x);
    }
    cx.add(Op::Slice { axis: axis as i64, start: start.clone(), end: end.clone(), step: 1 }, &[x])
}

/// The extents of a tensor of a known rank.
pub(super) fn extents<const N: usize>(cx: &Context<'_>, x: NodeId, what: &str) -> Result<[Dim; N]> {
    <[Dim; N]>::try_from(cx.shape(x)).map_err(|s| OpError::from(format!("{what} has rank {}, not {N}", s.len())))
}

/// [batch, tokens, heads * width] as [batch, heads, tokens, width].
pub(super) fn split_heads(cx: &mut Context<'_>, x: NodeId, heads: i64) -> Result<NodeId> {
    let [b, tokens, all] = extents(cx, x, "an operand with heads")?;
    let heads = Dim::from(heads);
    let width = all
        .div_exact(&heads)
        .ok_or_else(|| OpError::from(format!("the width {all} is no multiple of the number of heads, {heads}")))?;
    let split = cx.reshape(x, vec![b, tokens, heads, width])?;
    cx.transpose(split, vec![0, 2, 1, 3])
}

/// [batch, heads, tokens, width] as [batch, tokens, heads * width].
pub(super) fn merge_heads(cx: &mut Context<'_>, x: NodeId) -> Result<NodeId> {
    let t = cx.transpose(x, vec![0, 2, 1, 3])?;
    let [b, tokens, heads, width] = extents(cx, t, "the result of attention")?;
    cx.reshape(t, vec![b, tokens, &heads * &width])
}

/// Rows of a table of angles [positions, n] at some positions. The table is held as a vector, so that it is no
/// matrix to be divided: every rank and stage looks its angles up by itself, and nothing is exchanged for them.
pub(super) fn angles(cx: &mut Context<'_>, n: &NodeProto, i: usize, at: NodeId) -> Result<NodeId> {
    let table = cx.operand(n, i)?;
    let (shape, elements) = (cx.shape(table), cx.ty(table).elements());
    let flat = super::contrib_quant::view(cx, n, i, vec![elements])?;
    let table = cx.reshape(flat, shape)?;
    cx.add(Op::Gather { axis: 0 }, &[table, at])
}

/// A number of heads, which must be given and positive.
pub(super) fn head_count(n: &NodeProto, name: &str) -> Result<i64> {
    attrs::int(n, name).filter(|&h| h > 0).ok_or_else(|| OpError::from(format!("`{name}` is needed")))
}

/// The attribute `scale`, or 1 / sqrt(width) where it is absent or 0.
pub(super) fn scale(n: &NodeProto, width: &Dim) -> Result<f64> {
    match attrs::float(n, "scale") {
        Some(s) if s != 0.0 => Ok(f64::from(s)),
        _ => match width.as_const() {
            Some(w) if w > 0 => Ok(1.0 / (w as f64).sqrt()),
            _ => Err(OpError::from("the head width is not constant, and no scale is given")),
        },
    }
}

/// Which keys a query sees, and what is added to its scores.
#[derive(Default)]
pub(super) struct Mask {
    keep: Option<NodeId>,
    add: Option<NodeId>,
}

impl Mask {
    /// Only where this is true as well.
    pub(super) fn keep(&mut self, cx: &mut Context<'_>, keep: NodeId) -> Result<()> {
        self.keep = Some(match self.keep {
            Some(k) => cx.add(Op::And {}, &[k, keep])?,
            None => keep,
        });
        Ok(())
    }

    /// This is added to the scores.
    pub(super) fn add(&mut self, cx: &mut Context<'_>, add: NodeId) -> Result<()> {
        self.add = Some(match self.add {
            Some(a) => cx.add(Op::Add {}, &[a, add])?,
            None => add,
        });
        Ok(())
    }

    /// One mask for both.
    pub(super) fn build(&self, cx: &mut Context<'_>) -> Result<Option<NodeId>> {
        match (self.keep, self.add) {
            (Some(keep), Some(add)) => {
                let dtype = cx.ty(add).dtype;
                let hidden = cx.scalar(dtype, f64::NEG_INFINITY);
                cx.add(Op::Where {}, &[keep, add, hidden]).map(Some)
            }
            (keep, add) => Ok(keep.or(add)),
        }
    }
}

/// Rotates the first 2 n entries of each head of [batch, heads, tokens, width] by cos and sin
/// [batch or 1, tokens, n].
pub(super) fn rotate(cx: &mut Context<'_>, x: NodeId, cos: NodeId, sin: NodeId, interleaved: bool) -> Result<NodeId> {
    let mut angles = [cos, sin];
    for t in &mut angles {
        let [b, tokens, n] = extents(cx, *t, "cos or sin")?;
        *t = cx.reshape(*t, vec![b, Dim::from(1), tokens, n])?;
    }
    rotate_by(cx, x, angles, interleaved)
}

/// The same for cos and sin that broadcast to [batch, heads, tokens, n].
fn rotate_by(cx: &mut Context<'_>, x: NodeId, [cos, sin]: [NodeId; 2], interleaved: bool) -> Result<NodeId> {
    let last = |cx: &Context<'_>, x: NodeId| cx.shape(x).last().cloned().ok_or(OpError::from("a scalar has no heads"));
    let (width, n) = (last(cx, x)?, last(cx, cos)?);
    let rotated = &n * &Dim::from(2);
    if rotated == width {
        return cx.add(Op::Rotary { interleaved }, &[x, cos, sin]);
    }
    let axis = cx.ty(x).rank() - 1;
    let head = part(cx, x, axis, &Dim::from(0), &rotated)?;
    let tail = part(cx, x, axis, &rotated, &width)?;
    let head = cx.add(Op::Rotary { interleaved }, &[head, cos, sin])?;
    cx.add(Op::Concat { axis: axis as i64 }, &[head, tail])
}

fn rotary_embedding(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let x = cx.operand(n, 0)?;
    let (cos, sin) = match cx.optional(n, 3)? {
        Some(at) => (angles(cx, n, 1, at)?, angles(cx, n, 2, at)?),
        None => (cx.operand(n, 1)?, cx.operand(n, 2)?),
    };
    let interleaved = attrs::flag(n, "interleaved", false);
    let shape = cx.shape(x);
    // A token-major operand [batch, tokens, heads * width] gets its heads apart first.
    let (y, head_axis) = match shape.len() {
        4 => (x, 1),
        3 => {
            let heads = Dim::from(head_count(n, "num_heads")?);
            let width = shape[2].div_exact(&heads).ok_or("the width is no multiple of `num_heads`")?;
            (cx.reshape(x, vec![shape[0].clone(), shape[1].clone(), heads, width])?, 2)
        }
        r => return Err(OpError::from(format!("operand of rank {r}"))),
    };
    let mut angles = [cos, sin];
    for t in &mut angles {
        let mut s = extents::<3>(cx, *t, "cos or sin")?.to_vec();
        s.insert(head_axis, Dim::from(1));
        *t = cx.reshape(*t, s)?;
    }
    let rotated = attrs::int(n, "rotary_embedding_dim").filter(|&d| d != 0);
    if let (Some(d), Some(half)) = (rotated, cx.shape(angles[0])[3].as_const())
        && d != half * 2
    {
        return Err(OpError::from(format!("`rotary_embedding_dim` is {d}, but cos has {half} columns")));
    }
    if rotated.is_none() && &cx.shape(angles[0])[3] * &Dim::from(2) != cx.shape(y)[3] {
        return Err(OpError::from("cos has not half the columns of a head, and `rotary_embedding_dim` is not given"));
    }
    let z = rotate_by(cx, y, angles, interleaved)?;
    cx.reshape(z, shape)
}

/// A mask [.., keys] that may have fewer columns than there are keys: the rest is hidden.
fn widened(cx: &mut Context<'_>, mask: NodeId, keys: &Dim) -> Result<NodeId> {
    let shape = cx.shape(mask);
    let Some((last, lead)) = shape.split_last() else { return Ok(mask) };
    let (Some(have), Some(want)) = (last.as_const(), keys.as_const()) else { return Ok(mask) };
    if have >= want || have == 1 {
        return Ok(mask);
    }
    let dtype = cx.ty(mask).dtype;
    let hidden = cx.scalar(dtype, if dtype == DType::Bool { 0.0 } else { f64::NEG_INFINITY });
    let mut rest = lead.to_vec();
    rest.push(Dim::from(want - have));
    let rest = cx.add(Op::Expand { shape: rest }, &[hidden])?;
    cx.add(Op::Concat { axis: lead.len() as i64 }, &[mask, rest])
}

fn attention(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    let (mut q, mut k, mut v) = (cx.operand(n, 0)?, cx.operand(n, 1)?, cx.operand(n, 2)?);
    let token_major = cx.ty(q).rank() == 3;
    if token_major {
        let (hq, hk) = (head_count(n, "q_num_heads")?, head_count(n, "kv_num_heads")?);
        (q, k, v) = (split_heads(cx, q, hq)?, split_heads(cx, k, hk)?, split_heads(cx, v, hk)?);
    }
    let [_, _, queries, width] = extents(cx, q, "the query")?;
    let [_, _, new, _] = extents(cx, k, "the key")?;
    let mut past = Dim::from(0);
    match (cx.optional(n, 4)?, cx.optional(n, 5)?) {
        (Some(past_k), Some(past_v)) => {
            past = extents::<4>(cx, past_k, "the past key")?[2].clone();
            k = cx.add(Op::Concat { axis: 2 }, &[past_k, k])?;
            v = cx.add(Op::Concat { axis: 2 }, &[past_v, v])?;
        }
        (None, None) => {}
        _ => return Err(OpError::from("past keys and past values are given only together")),
    }
    let keys = cx.shape(k)[2].clone();
    let mut mask = Mask::default();
    if let Some(m) = cx.optional(n, 3)? {
        let m = widened(cx, m, &keys)?;
        if cx.ty(m).dtype == DType::Bool { mask.keep(cx, m)? } else { mask.add(cx, m)? }
    }
    // Query i stands at `offset` + i and sees the keys up to there: behind the past, or at the end of what is
    // valid of a cache that is kept outside. The last query of the operator `attention` sees all keys.
    let causal = attrs::flag(n, "is_causal", false);
    let lengths = cx.optional(n, 6)?;
    let window = |name: &str| attrs::int(n, name).filter(|&w| w >= 0);
    let (left, right) = (window("left_window_size"), window("right_window_size"));
    let plain = causal && queries == new && lengths.is_none();
    if causal && !plain || left.is_some() || right.is_some() || lengths.is_some() {
        let one = || Dim::from(1);
        let key = positions(cx, &keys, vec![one(), keys.clone()])?;
        let place = match lengths {
            None => {
                let end = &past + &queries;
                let query = cx.add(Op::Range { start: past, limit: end, step: 1 }, &[])?;
                cx.reshape(query, vec![queries.clone(), one()])?
            }
            Some(lengths) => {
                let [b] = extents(cx, lengths, "`nonpad_kv_seqlen`")?;
                let lengths = cx.reshape(lengths, vec![b, one(), one(), one()])?;
                let inside = cx.add(Op::Less {}, &[key, lengths])?;
                mask.keep(cx, inside)?;
                let own = count(cx, &queries)?;
                let offset = cx.add(Op::Sub {}, &[lengths, own])?;
                let query = positions(cx, &queries, vec![queries.clone(), one()])?;
                cx.add(Op::Add {}, &[offset, query])?
            }
        };
        let mut bound = |cx: &mut Context<'_>, op: Op, by: i64| {
            let by = cx.scalar(DType::I64, by as f64);
            let at = cx.add(Op::Add {}, &[place, by])?;
            let near = cx.add(op, &[key, at])?;
            mask.keep(cx, near)
        };
        if causal && !plain {
            bound(cx, Op::LessEqual {}, 0)?;
        }
        if let Some(left) = left {
            bound(cx, Op::GreaterEqual {}, -left)?;
        }
        if let Some(right) = right {
            bound(cx, Op::LessEqual {}, right)?;
        }
    }
    let mask = mask.build(cx)?;
    let how = How {
        scale: scale(n, &width)?,
        softcap: f64::from(attrs::float(n, "softcap").unwrap_or(0.0)),
        causal: plain,
        safe: Safe::Masked,
    };
    let mut operands = vec![q, k, v];
    operands.extend(mask);
    let y = cx.add(how.op(), &operands)?;
    let y = if token_major { merge_heads(cx, y)? } else { y };
    let mut out = [y, k, v].map(Val::Node).to_vec();
    if n.output.get(3).is_some_and(|o| !o.is_empty()) {
        let mode = attrs::int(n, "qk_matmul_output_mode").unwrap_or(0);
        out.push(Val::Node(scores(cx, [q, k], mask, &how, mode)?));
    }
    Ok(out)
}

/// How an attention makes scores.
pub(super) struct How {
    pub(super) scale: f64,
    pub(super) softcap: f64,
    pub(super) causal: bool,
    /// Whether a query that sees no key gives zeros.
    pub(super) safe: Safe,
}

impl How {
    /// The operator of the program.
    pub(super) fn op(&self) -> Op {
        Op::Attention { scale: Real(self.scale), causal: self.causal, softcap: Real(self.softcap), safe: self.safe }
    }
}

/// The scores of an attention, for their own sake: 0 scaled, 1 capped, 2 masked, 3 after the soft-max.
fn scores(cx: &mut Context<'_>, [q, mut k]: [NodeId; 2], mask: Option<NodeId>, how: &How, mode: i64) -> Result<NodeId> {
    if !(0..=3).contains(&mode) {
        return Err(OpError::from(format!("`qk_matmul_output_mode` {mode} is none of 0 to 3")));
    }
    let dtype = cx.ty(q).dtype;
    let ([b, heads, queries, _], [_, groups, keys, width]) = (extents(cx, q, "query")?, extents(cx, k, "key")?);
    if heads != groups {
        let times = heads.div_exact(&groups).ok_or("the query heads are no multiple of the key heads")?;
        let one = Dim::from(1);
        k = cx.reshape(k, vec![b.clone(), groups.clone(), one, keys.clone(), width.clone()])?;
        k = cx.add(Op::Expand { shape: vec![b.clone(), groups, times, keys.clone(), width.clone()] }, &[k])?;
        k = cx.reshape(k, vec![b, heads, keys.clone(), width])?;
    }
    let by = |cx: &mut Context<'_>, x: NodeId, factor: f64| {
        let c = cx.scalar(dtype, factor);
        cx.add(Op::Mul {}, &[x, c])
    };
    let product = cx.add(Op::Matmul { trans_b: true }, &[q, k])?;
    let mut y = by(cx, product, how.scale)?;
    if mode >= 1 && how.softcap != 0.0 {
        y = by(cx, y, 1.0 / how.softcap)?;
        y = cx.add(Op::Tanh {}, &[y])?;
        y = by(cx, y, how.softcap)?;
    }
    if mode >= 2 {
        let mut all = Mask::default();
        if let Some(m) = mask {
            if cx.ty(m).dtype == DType::Bool { all.keep(cx, m)? } else { all.add(cx, m)? }
        }
        if how.causal {
            let key = positions(cx, &keys, vec![Dim::from(1), keys.clone()])?;
            let first = &keys - &queries;
            let query = cx.add(Op::Range { start: first, limit: keys.clone(), step: 1 }, &[])?;
            let query = cx.reshape(query, vec![queries, Dim::from(1)])?;
            let seen = cx.add(Op::LessEqual {}, &[key, query])?;
            all.keep(cx, seen)?;
        }
        if let Some(add) = all.add {
            y = cx.add(Op::Add {}, &[y, add])?;
        }
        if let Some(keep) = all.keep {
            let hidden = cx.scalar(dtype, f64::NEG_INFINITY);
            y = cx.add(Op::Where {}, &[keep, y, hidden])?;
        }
    }
    if mode == 3 { cx.add(Op::Softmax { axis: 3, safe: how.safe }, &[y]) } else { Ok(y) }
}
