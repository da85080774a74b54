//! The attention operators of ONNX Runtime.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, Val};
use super::super::proto::NodeProto;
use super::attention::{
    How, Mask, angles, count, extents, head_count, merge_heads, part, positions, rotate, scale, split_heads,
};
use crate::ir::{DType, Dim, NodeId, Op, Real, Safe, Shape};

fn one() -> Dim {
    Dim::from(1)
}

/// Fails where an operand or result is in use that is not supported.
fn refuse_inputs(n: &NodeProto, list: &[(usize, &str)]) -> Result<()> {
    match list.iter().find(|(i, _)| n.input.get(*i).is_some_and(|s| !s.is_empty())) {
        Some((_, name)) => Err(OpError::from(format!("the operand `{name}` is not supported"))),
        None => Ok(()),
    }
}

fn refuse_output(n: &NodeProto, i: usize, name: &str) -> Result<()> {
    match n.output.get(i) {
        Some(o) if !o.is_empty() => Err(OpError::from(format!("the result `{name}` is not supported"))),
        _ => Ok(()),
    }
}

fn refuse_flags(n: &NodeProto, names: &[&str]) -> Result<()> {
    match names.iter().find(|name| attrs::int(n, name).unwrap_or(0) != 0) {
        Some(name) => Err(OpError::from(format!("`{name}` other than 0 is not supported"))),
        None => Ok(()),
    }
}

/// A vector of integers as i64 [batch, 1, 1, 1].
fn per_row(cx: &mut Context<'_>, x: NodeId, batch: &Dim) -> Result<NodeId> {
    let x = if cx.ty(x).dtype == DType::I64 { x } else { cx.add(Op::Cast { to: DType::I64 }, &[x])? };
    cx.reshape(x, vec![batch.clone(), one(), one(), one()])
}

/// `GroupQueryAttention`: a cache whose rows have lengths of their own, causal, with rotary embedding.
pub(super) fn group_query(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    refuse_flags(n, &["qk_output", "kv_cache_bit_width"])?;
    refuse_inputs(n, &[(12, "k_scale"), (13, "v_scale"), (16, "query_seqlens")])?;
    refuse_output(n, 3, "output_qk")?;
    let (heads, groups) = (head_count(n, "num_heads")?, head_count(n, "kv_num_heads")?);
    let [mut q, mut k, v] = separate(cx, n, heads, groups)?;
    let [batch, _, tokens, width] = extents(cx, q, "the query")?;
    if let (Some(qw), Some(kw)) = (cx.optional(n, 14)?, cx.optional(n, 15)?) {
        let both = attrs::float(n, "qk_norm_epsilon").unwrap_or(1e-6);
        let eps = |name| Real(f64::from(attrs::float(n, name).unwrap_or(both)));
        q = cx.add(Op::RmsNorm { eps: eps("q_norm_epsilon") }, &[q, qw])?;
        k = cx.add(Op::RmsNorm { eps: eps("k_norm_epsilon") }, &[k, kw])?;
    }

    // Rows have `length` tokens after this step; `kept` of them lie in the cache.
    let last = cx.operand(n, 5)?;
    let last = per_row(cx, last, &batch)?;
    let unit = cx.scalar(DType::I64, 1.0);
    let length = cx.add(Op::Add {}, &[last, unit])?;
    let new = count(cx, &tokens)?;
    let kept = cx.add(Op::Sub {}, &[length, new])?;
    let none = cx.scalar(DType::I64, 0.0);
    let kept = cx.add(Op::Max {}, &[kept, none])?;
    let steps = positions(cx, &tokens, vec![one(), one(), tokens.clone(), one()])?;
    let place = cx.add(Op::Add {}, &[kept, steps])?;

    let total = cx.symbolic(n, 6)?.filter(|s| s.values.len() == 1).map(|s| s.values[0].clone()).ok_or(
        "`total_sequence_length` must follow from shapes, such as that of the attention mask, and not be data",
    )?;
    if attrs::flag(n, "do_rotary", false) {
        let mut at = cx.reshape(place, vec![batch.clone(), tokens.clone()])?;
        if let Some(given) = cx.optional(n, 9)? {
            at = given_positions(cx, given, &tokens, &total)?;
        }
        let (cos, sin) = (angles(cx, n, 7, at)?, angles(cx, n, 8, at)?);
        // As ONNX Runtime: any other number than 1 means halves.
        let interleaved = attrs::int(n, "rotary_interleaved") == Some(1);
        q = rotate(cx, q, cos, sin, interleaved)?;
        k = rotate(cx, k, cos, sin, interleaved)?;
    }
    let window = attrs::int(n, "local_window_size").filter(|&w| w >= 0);
    let causal = attrs::flag(n, "causal", true);
    let (mut keys, mut values) = (k, v);
    let (mut length, mut place) = (length, place);
    let mut presents = None;
    if attrs::flag(n, "sliding_window_cache", false) {
        let (Some(past_k), Some(past_v)) = (cx.optional(n, 3)?, cx.optional(n, 4)?) else {
            return Err(OpError::from("`sliding_window_cache` needs the caches of keys and values"));
        };
        let Some(size) = window.filter(|&w| w > 0 && causal) else {
            return Err(OpError::from("`sliding_window_cache` needs a `local_window_size` above 0, and `causal`"));
        };
        refuse_inputs(n, &[(10, "attention_bias")])?;
        let ring = Ring::new(cx, [past_k, k], [length, kept], size)?;
        (keys, values) = (ring.staged(cx, past_k, k)?, ring.staged(cx, past_v, v)?);
        presents = Some([ring.present(cx, keys)?, ring.present(cx, values)?]);
        // From here on, positions count from the first key that is at hand.
        length = cx.add(Op::Sub {}, &[length, ring.origin])?;
        place = cx.add(Op::Sub {}, &[place, ring.origin])?;
    } else if let (Some(past_k), Some(past_v)) = (cx.optional(n, 3)?, cx.optional(n, 4)?) {
        let [_, _, held, _] = extents(cx, past_k, "past_key")?;
        let lengths = cx.reshape(length, vec![batch.clone()])?;
        let append = Op::Append { tokens: held.larger(&total) };
        keys = cx.add(append.clone(), &[past_k, k, lengths])?;
        values = cx.add(append, &[past_v, v, lengths])?;
    }

    let n_keys = cx.shape(keys)[2].clone();
    let key = positions(cx, &n_keys, vec![one(), one(), one(), n_keys.clone()])?;
    let mut mask = Mask::default();
    let inside = cx.add(Op::Less {}, &[key, length])?;
    mask.keep(cx, inside)?;
    if causal {
        let seen = cx.add(Op::LessEqual {}, &[key, place])?;
        mask.keep(cx, seen)?;
        if let Some(window) = window {
            let window = cx.scalar(DType::I64, window as f64);
            let before = cx.add(Op::Sub {}, &[place, window])?;
            let near = cx.add(Op::Greater {}, &[key, before])?;
            mask.keep(cx, near)?;
        }
    }
    if let Some(bias) = cx.optional(n, 10)? {
        let bias = reach(cx, bias, &n_keys)?;
        mask.add(cx, bias)?;
    }
    let mut operands = vec![q, keys, values];
    operands.extend(mask.build(cx)?);
    if let Some(sink) = cx.optional(n, 11)? {
        operands.push(cx.reshape(sink, vec![Dim::from(heads), one(), one()])?);
    } else if attrs::int(n, "smooth_softmax").unwrap_or(0) > 0 {
        let dtype = cx.ty(q).dtype;
        operands.push(cx.scalar(dtype, 0.0));
    }
    let how = How {
        scale: scale(n, &width)?,
        softcap: f64::from(attrs::float(n, "softcap").unwrap_or(0.0)),
        causal: false,
        safe: Safe::No,
    };
    let y = cx.add(how.op(), &operands)?;
    let y = merge_heads(cx, y)?;
    let [keys, values] = presents.unwrap_or([keys, values]);
    Ok([y, keys, values].map(Val::Node).to_vec())
}

/// A cache that holds the last tokens only: `sliding_window_cache`. With capacity C and a window of W, a row of T tokens has
/// its last L(T) of them at hand: all T up to C, and T - G ceil((T - C) / G) beyond, where G = C - W + 1.
struct Ring {
    /// [batch, heads, C, width] and the number of new tokens.
    shape: [Dim; 4],
    new: Dim,
    /// Tokens of each row that lay in the cache, as i64 [batch].
    held: NodeId,
    /// Absolute position of the first key that is at hand, [batch, 1, 1, 1].
    origin: NodeId,
    /// Keys at hand that leave the cache, and those that stay, [batch, 1, 1, 1].
    gone: NodeId,
    stay: NodeId,
}

impl Ring {
    /// `length` and `kept` count the tokens of each row after and before this step.
    fn new(cx: &mut Context<'_>, [past, k]: [NodeId; 2], [length, kept]: [NodeId; 2], window: i64) -> Result<Ring> {
        let shape: [Dim; 4] = extents(cx, past, "past_key")?;
        let [_, _, new, _] = extents(cx, k, "key")?;
        if shape[2].as_const().is_some_and(|c| c < window) {
            return Err(OpError::from(format!("a cache of {} tokens for a window of {window}", shape[2])));
        }
        let capacity = count(cx, &shape[2])?;
        let step = count(cx, &(&shape[2] - &Dim::from(window - 1)))?;
        let resident = |cx: &mut Context<'_>, tokens: NodeId| -> Result<NodeId> {
            let over = cx.add(Op::Sub {}, &[tokens, capacity])?;
            let unit = cx.scalar(DType::I64, 1.0);
            let almost = cx.add(Op::Sub {}, &[step, unit])?;
            let rounded = cx.add(Op::Add {}, &[over, almost])?;
            let times = cx.add(Op::Div {}, &[rounded, step])?;
            let gone = cx.add(Op::Mul {}, &[times, step])?;
            let left = cx.add(Op::Sub {}, &[tokens, gone])?;
            let all = cx.add(Op::LessEqual {}, &[tokens, capacity])?;
            cx.add(Op::Where {}, &[all, tokens, left])
        };
        let (held, stay) = (resident(cx, kept)?, resident(cx, length)?);
        let origin = cx.add(Op::Sub {}, &[kept, held])?;
        let at_hand = cx.add(Op::Sub {}, &[length, origin])?;
        let gone = cx.add(Op::Sub {}, &[at_hand, stay])?;
        let held = cx.reshape(held, vec![shape[0].clone()])?;
        Ok(Ring { shape, new, held, origin, gone, stay })
    }

    /// Number of places for the old and the new tokens.
    fn places(&self) -> Dim {
        &self.shape[2] + &self.new
    }

    /// The tokens of the cache, and the new ones behind them.
    fn staged(&self, cx: &mut Context<'_>, past: NodeId, x: NodeId) -> Result<NodeId> {
        let new = count(cx, &self.new)?;
        let lengths = cx.add(Op::Add {}, &[self.held, new])?;
        cx.add(Op::Append { tokens: self.places() }, &[past, x, lengths])
    }

    /// The cache after this step: the tokens that stay, then zeros.
    fn present(&self, cx: &mut Context<'_>, staged: NodeId) -> Result<NodeId> {
        let [batch, heads, capacity, _] = &self.shape;
        let width = cx.shape(staged)[3].clone();
        let (rows, places) = (batch * heads, self.places());
        let slot = positions(cx, capacity, vec![one(), one(), capacity.clone(), one()])?;
        let from = cx.add(Op::Add {}, &[self.gone, slot])?;
        let last = count(cx, &(&places - &one()))?;
        let from = cx.add(Op::Min {}, &[from, last])?;
        let row = positions(cx, &rows, vec![batch.clone(), heads.clone(), one(), one()])?;
        let stride = count(cx, &places)?;
        let start = cx.add(Op::Mul {}, &[row, stride])?;
        let from = cx.add(Op::Add {}, &[start, from])?;
        let from = cx.reshape(from, vec![batch.clone(), heads.clone(), capacity.clone()])?;
        let flat = cx.reshape(staged, vec![&rows * &places, width])?;
        let moved = cx.add(Op::Gather { axis: 0 }, &[flat, from])?;
        let filled = cx.add(Op::Less {}, &[slot, self.stay])?;
        let dtype = cx.ty(staged).dtype;
        let zero = cx.scalar(dtype, 0.0);
        cx.add(Op::Where {}, &[filled, moved, zero])
    }
}

/// Queries, keys and values as [batch, heads, tokens, width], given apart or side by side.
fn separate(cx: &mut Context<'_>, n: &NodeProto, heads: i64, groups: i64) -> Result<[NodeId; 3]> {
    let q = cx.operand(n, 0)?;
    let [_, _, all] = extents(cx, q, "the query")?;
    let parts = match (cx.optional(n, 1)?, cx.optional(n, 2)?) {
        (Some(k), Some(v)) => [q, k, v],
        (None, None) => {
            let width = all
                .div_exact(&Dim::from(heads + 2 * groups))
                .ok_or_else(|| OpError::from(format!("{all} columns are not those of {heads} + 2 * {groups} heads")))?;
            let at = |n: i64| &Dim::from(n) * &width;
            let (a, b) = (at(heads), at(heads + groups));
            [part(cx, q, 2, &Dim::from(0), &a)?, part(cx, q, 2, &a, &b)?, part(cx, q, 2, &b, &all)?]
        }
        _ => return Err(OpError::from("key and value are given only together")),
    };
    let [q, k, v] = parts;
    Ok([split_heads(cx, q, heads)?, split_heads(cx, k, groups)?, split_heads(cx, v, groups)?])
}

/// Positions that are given hold for a prompt only in their first element, from which the tokens are counted.
fn given_positions(cx: &mut Context<'_>, given: NodeId, tokens: &Dim, total: &Dim) -> Result<NodeId> {
    if tokens.as_const() == Some(1) {
        return Ok(given);
    }
    let row = part(cx, given, 0, &Dim::from(0), &one())?;
    let first = part(cx, row, 1, &Dim::from(0), &one())?;
    let steps = positions(cx, tokens, vec![one(), tokens.clone()])?;
    let counted = cx.add(Op::Add {}, &[first, steps])?;
    if tokens == total {
        return cx.add(Op::Expand { shape: cx.shape(given) }, &[counted]);
    }
    // One token alone is its own first, so that only prompts of several tokens differ.
    let (new, all) = (count(cx, tokens)?, count(cx, total)?);
    let prompt = cx.add(Op::Equal {}, &[new, all])?;
    let unit = cx.scalar(DType::I64, 1.0);
    let several = cx.add(Op::Greater {}, &[new, unit])?;
    let prompt = cx.add(Op::And {}, &[prompt, several])?;
    cx.add(Op::Where {}, &[prompt, counted, given])
}

/// A bias [.., keys] with zeros for the keys that it does not reach.
fn reach(cx: &mut Context<'_>, bias: NodeId, keys: &Dim) -> Result<NodeId> {
    let mut shape = cx.shape(bias);
    let axis = shape.len().checked_sub(1).ok_or("attention_bias is a scalar")?;
    if shape[axis] == *keys {
        return Ok(bias);
    }
    shape[axis] = keys - &shape[axis];
    let dtype = cx.ty(bias).dtype;
    let zero = cx.scalar(dtype, 0.0);
    let rest = cx.add(Op::Expand { shape }, &[zero])?;
    let y = cx.add(Op::Concat { axis: axis as i64 }, &[bias, rest])?;
    Ok(y)
}

/// `MultiHeadAttention`.
pub(super) fn multi_head(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    refuse_inputs(n, &[(8, "past_sequence_length"), (9, "cache_indirection")])?;
    refuse_output(n, 3, "qk")?;
    let heads = head_count(n, "num_heads")?;
    let q = cx.operand(n, 0)?;
    let (key, value) = (cx.optional(n, 1)?, cx.optional(n, 2)?);
    let bias = Bias::of(cx, n, heads)?;
    let rank = |cx: &Context<'_>, x: Option<NodeId>| x.map_or(0, |x| cx.ty(x).rank());
    let forms = (cx.ty(q).rank(), rank(cx, key), key, value);
    let [q, mut k, mut v] = match forms {
        // [batch, tokens, heads, 3, width]
        (5, ..) => {
            let [q, k, v] = [taken(cx, q, 0)?, taken(cx, q, 1)?, taken(cx, q, 2)?];
            [bias.by_head(cx, q, 0)?, bias.by_head(cx, k, 1)?, bias.by_head(cx, v, 2)?]
        }
        // [batch, tokens, heads, 2, width]
        (3, 5, Some(kv), None) => {
            let [k, v] = [taken(cx, kv, 0)?, taken(cx, kv, 1)?];
            [bias.split(cx, q, 0)?, bias.by_head(cx, k, 1)?, bias.by_head(cx, v, 2)?]
        }
        // The keys of another sequence, apart by heads already; they have their bias.
        (3, 4, Some(k), Some(v)) => [bias.split(cx, q, 0)?, k, v],
        (3, 3, Some(k), Some(v)) => [bias.split(cx, q, 0)?, bias.split(cx, k, 1)?, bias.split(cx, v, 2)?],
        _ => return Err(OpError::from("query, key and value have none of the forms of the operator")),
    };
    let [_, _, tokens, width] = extents(cx, q, "query")?;
    let [_, _, new, _] = extents(cx, k, "key")?;
    if let (Some(past_k), Some(past_v)) = (cx.optional(n, 6)?, cx.optional(n, 7)?) {
        k = cx.add(Op::Concat { axis: 2 }, &[past_k, k])?;
        v = cx.add(Op::Concat { axis: 2 }, &[past_v, v])?;
    }
    let causal = attrs::flag(n, "unidirectional", false);
    if causal && tokens != new {
        return Err(OpError::from("`unidirectional` with another number of keys than of queries is not supported"));
    }
    let mut mask = Mask::default();
    if let Some(m) = cx.optional(n, 4)? {
        key_mask(cx, n, &mut mask, m, [q, k])?;
    }
    if let Some(bias) = cx.optional(n, 5)? {
        mask.add(cx, bias)?;
    }
    let how = How { scale: scale(n, &width)?, softcap: 0.0, causal, safe: Safe::No };
    let mut operands = vec![q, k, v];
    operands.extend(mask.build(cx)?);
    let y = cx.add(how.op(), &operands)?;
    let y = merge_heads(cx, y)?;
    Ok([y, k, v].map(Val::Node).to_vec())
}

/// The biases of queries, keys and values, one behind the other.
struct Bias {
    all: Option<NodeId>,
    heads: i64,
}

impl Bias {
    fn of(cx: &mut Context<'_>, n: &NodeProto, heads: i64) -> Result<Bias> {
        Ok(Bias { all: cx.optional(n, 3)?, heads })
    }

    /// The bias of operand `i`, `columns` long: keys are as wide as queries, and values come last.
    fn part(&self, cx: &mut Context<'_>, i: i64, columns: &Dim) -> Result<Option<NodeId>> {
        let Some(all) = self.all else { return Ok(None) };
        let [whole] = extents(cx, all, "bias")?;
        let start = if i == 2 { &whole - columns } else { &Dim::from(i) * columns };
        let end = &start + columns;
        part(cx, all, 0, &start, &end).map(Some)
    }

    /// [batch, tokens, heads * width] with its bias, apart by heads.
    fn split(&self, cx: &mut Context<'_>, x: NodeId, i: i64) -> Result<NodeId> {
        let [_, _, columns] = extents(cx, x, "an operand")?;
        let x = match self.part(cx, i, &columns)? {
            Some(b) => cx.add(Op::Add {}, &[x, b])?,
            None => x,
        };
        split_heads(cx, x, self.heads)
    }

    /// [batch, heads, tokens, width] with its bias.
    fn by_head(&self, cx: &mut Context<'_>, x: NodeId, i: i64) -> Result<NodeId> {
        let [_, heads, _, width] = extents(cx, x, "an operand")?;
        match self.part(cx, i, &(&heads * &width))? {
            Some(b) => {
                let b = cx.reshape(b, vec![heads, one(), width])?;
                cx.add(Op::Add {}, &[x, b])
            }
            None => Ok(x),
        }
    }
}

/// Part `i` of [batch, tokens, heads, parts, width] as [batch, heads, tokens, width].
fn taken(cx: &mut Context<'_>, x: NodeId, i: i64) -> Result<NodeId> {
    let [b, tokens, heads, _, width] = extents(cx, x, "a packed operand")?;
    let y = part(cx, x, 3, &Dim::from(i), &Dim::from(i + 1))?;
    let y = cx.reshape(y, vec![b, tokens, heads, width])?;
    cx.transpose(y, vec![0, 2, 1, 3])
}

/// A mask in one of the forms of ONNX Runtime: ends [batch], ends and starts [2 batch], or a number that is
/// not 0 for each key [batch, keys] or [batch, queries, keys]. Hidden keys get `mask_filter_value` added.
fn key_mask(cx: &mut Context<'_>, n: &NodeProto, mask: &mut Mask, m: NodeId, [q, k]: [NodeId; 2]) -> Result<()> {
    let [batch, _, queries, _] = extents(cx, q, "query")?;
    let keys = cx.shape(k)[2].clone();
    let shape = cx.shape(m);
    let dtype = cx.ty(m).dtype;
    let keep = match &shape[..] {
        [len] if *len == batch || *len == &batch * &Dim::from(2) => {
            let key = positions(cx, &keys, vec![one(), one(), one(), keys.clone()])?;
            let end = part(cx, m, 0, &Dim::from(0), &batch)?;
            let end = per_row(cx, end, &batch)?;
            let mut keep = cx.add(Op::Less {}, &[key, end])?;
            if *len != batch {
                let start = part(cx, m, 0, &batch, len)?;
                let start = per_row(cx, start, &batch)?;
                let after = cx.add(Op::GreaterEqual {}, &[key, start])?;
                keep = cx.add(Op::And {}, &[keep, after])?;
            }
            keep
        }
        [b, t] if (b, t) == (&batch, &keys) => nonzero(cx, m, dtype, vec![batch, one(), one(), keys])?,
        [b, s, t] if (b, s, t) == (&batch, &queries, &keys) => {
            nonzero(cx, m, dtype, vec![batch, one(), queries, keys])?
        }
        // The mask's own extents may turn out to be those of the operands.
        [b, .., t] if shape.len() <= 3 => {
            let pairs =
                [(b, &batch), (t, &keys), (&shape[shape.len() - 2], if shape.len() == 3 { &queries } else { b })];
            let open = pairs.into_iter().find(|(x, y)| x != y && (x.as_const().is_none() || y.as_const().is_none()));
            let message = format!("a mask {} for {batch} rows of {queries} queries and {keys} keys", cx.ty(m));
            return Err(OpError { conflict: open.map(|(x, y)| (x.clone(), y.clone())), ..OpError::from(message) });
        }
        _ => {
            return Err(OpError::from(format!(
                "a mask {} for {batch} rows of {queries} queries and {keys} keys is not supported",
                cx.ty(m)
            )));
        }
    };
    let float = cx.ty(q).dtype;
    let zero = cx.scalar(float, 0.0);
    let hidden = cx.scalar(float, f64::from(attrs::float(n, "mask_filter_value").unwrap_or(-10000.0)));
    let add = cx.add(Op::Where {}, &[keep, zero, hidden])?;
    mask.add(cx, add)
}

fn nonzero(cx: &mut Context<'_>, m: NodeId, dtype: DType, shape: Shape) -> Result<NodeId> {
    let zero = cx.scalar(dtype, 0.0);
    let m = cx.reshape(m, shape)?;
    cx.add(Op::Greater {}, &[m, zero])
}

/// `Attention`: projection of queries, keys and values by one weight, and attention.
pub(super) fn packed(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    refuse_flags(n, &["do_rotary", "past_present_share_buffer"])?;
    refuse_inputs(n, &[(6, "past_sequence_length")])?;
    let heads = head_count(n, "num_heads")?;
    let (x, w) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
    let mut y = cx.add(Op::Matmul { trans_b: false }, &[x, w])?;
    if let Some(bias) = cx.optional(n, 2)? {
        y = cx.add(Op::Add {}, &[y, bias])?;
    }
    let [_, tokens, all] = extents(cx, y, "the projection")?;
    let sizes: Vec<Dim> = match attrs::ints(n, "qkv_hidden_sizes") {
        Some(s) if s.len() == 3 => s.into_iter().map(Dim::from).collect(),
        Some(s) => return Err(OpError::from(format!("`qkv_hidden_sizes` {s:?} are not three"))),
        None => vec![all.div_exact(&Dim::from(3)).ok_or("the columns of the weight do not divide by 3")?; 3],
    };
    let (a, b) = (sizes[0].clone(), &sizes[0] + &sizes[1]);
    let q = part(cx, y, 2, &Dim::from(0), &a)?;
    let k = part(cx, y, 2, &a, &b)?;
    let v = part(cx, y, 2, &b, &all)?;
    let (q, mut k, mut v) = (split_heads(cx, q, heads)?, split_heads(cx, k, heads)?, split_heads(cx, v, heads)?);
    let width = cx.shape(q)[3].clone();
    if let Some(past) = cx.optional(n, 4)? {
        // [2, batch, heads, tokens, width]
        for (i, x) in [&mut k, &mut v].into_iter().enumerate() {
            let i = i as i64;
            let old = part(cx, past, 0, &Dim::from(i), &Dim::from(i + 1))?;
            let shape = cx.shape(old)[1..].to_vec();
            let old = cx.reshape(old, shape)?;
            *x = cx.add(Op::Concat { axis: 2 }, &[old, *x])?;
        }
    }
    let mut mask = Mask::default();
    if let Some(m) = cx.optional(n, 3)? {
        key_mask(cx, n, &mut mask, m, [q, k])?;
    }
    if let Some(bias) = cx.optional(n, 5)? {
        mask.add(cx, bias)?;
    }
    let how =
        How { scale: scale(n, &width)?, softcap: 0.0, causal: attrs::flag(n, "unidirectional", false), safe: Safe::No };
    let mut operands = vec![q, k, v];
    operands.extend(mask.build(cx)?);
    let y = cx.add(how.op(), &operands)?;
    let y = merge_heads(cx, y)?;
    debug_assert_eq!(cx.shape(y)[1], tokens);
    if n.output.get(1).is_none_or(String::is_empty) {
        return Ok(vec![Val::Node(y)]);
    }
    let mut halves = [k, v];
    for h in &mut halves {
        let mut shape = vec![one()];
        shape.extend(cx.shape(*h));
        *h = cx.reshape(*h, shape)?;
    }
    let present = cx.add(Op::Concat { axis: 0 }, &halves)?;
    Ok([y, present].map(Val::Node).to_vec())
}
