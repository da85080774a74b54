//! Products, norms, activations, rotary embedding and attention.
//!
//! In the standard dialect each is a local function over standard operators, in the dialect of ONNX Runtime a
//! contributed operator where its contract fits. ONNX Runtime inlines functions before it optimises.

use super::builder::{Builder, CONTRIB, Val, float, int, ints, string};
use super::ops::Place;
use super::{Dialect, Result};
use crate::ir::{DType, Dim, TensorType};

/// How scores are made from products.
pub(super) struct Scores {
    pub(super) scale: f64,
    pub(super) causal: bool,
    /// 0 for none.
    pub(super) softcap: f64,
    /// Whether rows without a key are zeros.
    pub(super) safe: bool,
    /// Whether all rows that would be NaN are zeros.
    pub(super) always: bool,
}

/// Calls a function with one result.
fn function(
    b: &mut Builder,
    name: &str,
    doc: &str,
    operands: &[(&str, &Val)],
    body: impl FnOnce(&mut Builder, &[Val]) -> Result<String>,
) -> Result<String> {
    let mut out = b.function(name, doc, operands, &["y"], |b, x| Ok(vec![body(b, x)?]))?;
    Ok(out.pop().unwrap_or_default())
}

fn contrib(
    b: &mut Builder,
    op: &str,
    inputs: &[&str],
    attributes: Vec<crate::import::proto::AttributeProto>,
) -> String {
    b.call(CONTRIB, op, inputs, 1, attributes).pop().unwrap_or_default()
}

/// Zeros where an element is not a number.
pub(super) fn zero_where_nan(b: &mut Builder, x: &str, dtype: DType) -> Result<String> {
    let zero = b.scalar(dtype, 0.0)?;
    let nan = b.op("IsNaN", &[x], vec![]);
    Ok(b.op("Where", &[&nan, &zero, x], vec![]))
}

/// Matrix product; the last axes of the second operand may have to be exchanged.
pub(super) fn matmul(b: &mut Builder, p: &Place, x: &[Val], trans_b: bool) -> Result<String> {
    if !trans_b {
        return Ok(b.op("MatMul", &[&x[0].name, &x[1].name], vec![]));
    }
    if p.dialect == Dialect::Ort && x[0].ty.dtype == DType::F32 && x[0].ty.rank() >= 2 {
        return Ok(contrib(b, "FusedMatMul", &[&x[0].name, &x[1].name], vec![int("transB", 1)]));
    }
    let turned = transposed(b, &x[1])?;
    Ok(b.op("MatMul", &[&x[0].name, &turned], vec![]))
}

/// The operand with its last two axes exchanged.
fn transposed(b: &mut Builder, x: &Val) -> Result<String> {
    let mut perm: Vec<i64> = (0..x.ty.rank() as i64).collect();
    if let [.., second, last] = &mut perm[..] {
        std::mem::swap(second, last);
    }
    Ok(b.op("Transpose", &[&x.name], vec![ints("perm", &perm)]))
}

pub(super) fn gelu(b: &mut Builder, x: &str, tanh: bool) -> String {
    b.op("Gelu", &[x], if tanh { vec![string("approximate", "tanh")] } else { vec![] })
}

pub(super) fn silu(b: &mut Builder, p: &Place, x: &Val) -> Result<String> {
    if p.dialect == Dialect::Ort && x.ty.dtype == DType::F32 {
        return Ok(contrib(b, "QuickGelu", &[&x.name], vec![float("alpha", 1.0)]));
    }
    function(b, "Silu", "x * sigmoid(x).", &[("x", x)], |b, x| Ok(silu_body(b, &x[0].name)))
}

fn silu_body(b: &mut Builder, x: &str) -> String {
    let s = b.op("Sigmoid", &[x], vec![]);
    b.op("Mul", &[x, &s], vec![])
}

pub(super) fn silu_mul(b: &mut Builder, p: &Place, x: &[Val]) -> Result<String> {
    if p.dialect == Dialect::Ort && x[0].ty.dtype == DType::F32 {
        let gate = silu(b, p, &x[0])?;
        return Ok(b.op("Mul", &[&gate, &x[1].name], vec![]));
    }
    function(b, "SiluMul", "silu(gate) * up.", &[("gate", &x[0]), ("up", &x[1])], |b, x| {
        let gate = silu_body(b, &x[0].name);
        Ok(b.op("Mul", &[&gate, &x[1].name], vec![]))
    })
}

pub(super) fn gelu_mul(b: &mut Builder, p: &Place, x: &[Val], tanh: bool) -> Result<String> {
    let body = |b: &mut Builder, x: &[Val]| {
        let gate = gelu(b, &x[0].name, tanh);
        Ok(b.op("Mul", &[&gate, &x[1].name], vec![]))
    };
    if p.dialect == Dialect::Ort {
        return body(b, x);
    }
    function(b, "GeluMul", "gelu(gate) * up.", &[("gate", &x[0]), ("up", &x[1])], body)
}

/// The type in which norms compute.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in f32; x has the name and type given.
fn rms_body(b: &mut Builder, x: &str, dtype: DType, w: &Val, eps: f64) -> Result<String> {
    let t = wide(dtype);
    // The native norm computes in f32.
    if b.is_native() && w.ty.dtype == dtype && t == DType::F32 {
        let attributes = vec![int("axis", -1), float("epsilon", eps as f32), int("stash_type", 1)];
        return Ok(b.op("RMSNormalization", &[x, &w.name], attributes));
    }
    let x = b.cast(x, dtype, t)?;
    let w = b.cast(&w.name, w.ty.dtype, t)?;
    let (two, axes) = (b.scalar(t, 2.0)?, b.ints(&[-1])?);
    let square = b.op("Pow", &[&x, &two], vec![]);
    let mean = b.op("ReduceMean", &[&square, &axes], vec![int("keepdims", 1)]);
    let eps = b.param("epsilon", t, eps)?;
    let sum = b.op("Add", &[&mean, &eps], vec![]);
    let root = b.op("Sqrt", &[&sum], vec![]);
    let scaled = b.op("Div", &[&x, &root], vec![]);
    let y = b.op("Mul", &[&scaled, &w], vec![]);
    b.cast(&y, t, dtype)
}

/// Whether the contributed norms take these operands: rows of rank 2 or 3, all of one type.
fn fits_contrib(p: &Place, x: &[Val]) -> bool {
    let dtype = x[0].ty.dtype;
    p.dialect == Dialect::Ort
        && matches!(dtype, DType::F32 | DType::F16)
        && x.iter().all(|v| v.ty.dtype == dtype)
        && matches!(x[0].ty.rank(), 2 | 3)
}

pub(super) fn rms_norm(b: &mut Builder, x: &[Val], eps: f64) -> Result<String> {
    let dtype = x[0].ty.dtype;
    let same = x.iter().all(|v| v.ty.dtype == dtype);
    if b.is_native() && same && dtype != DType::F64 {
        return rms_body(b, &x[0].name, dtype, &x[1], eps);
    }
    // ONNX Runtime makes its own operator of the function's body, which the schemas of ONNX do not have.
    let doc = "x / sqrt(mean(x^2) + epsilon) * weight over the last axis.";
    function(b, "RmsNorm", doc, &[("x", &x[0]), ("weight", &x[1])], |b, x| rms_body(b, &x[0].name, dtype, &x[1], eps))
}

/// (x, weight, bias).
pub(super) fn layer_norm(b: &mut Builder, x: &[Val], eps: f64) -> Result<String> {
    layer_norm_of(b, &x[0].name, x[0].ty.dtype, &x[1..], eps)
}

fn layer_norm_of(b: &mut Builder, x: &str, dtype: DType, params: &[Val], eps: f64) -> Result<String> {
    // Parameters of another type are not rounded to that of x.
    let t = if params.iter().all(|v| v.ty.dtype == dtype) { dtype } else { wide(dtype) };
    let x = b.cast(x, dtype, t)?;
    let w = b.cast(&params[0].name, params[0].ty.dtype, t)?;
    let bias = b.cast(&params[1].name, params[1].ty.dtype, t)?;
    let y = b.op("LayerNormalization", &[&x, &w, &bias], vec![int("axis", -1), float("epsilon", eps as f32)]);
    b.cast(&y, t, dtype)
}

/// (x, r, ...) with x summed over the ranks.
pub(super) fn all_reduced(b: &mut Builder, x: &[Val]) -> Vec<Val> {
    let mut out = x.to_vec();
    out[0].name = contrib(b, "AllReduce", &[&x[0].name], vec![]);
    out
}

/// A contributed norm of a sum; its fourth result is the sum.
fn skip_norm(b: &mut Builder, x: &[Val], eps: f64, wanted: &[bool]) -> Vec<String> {
    let op = "SkipSimplifiedLayerNormalization";
    let names: Vec<&str> = x.iter().map(|v| v.name.as_str()).collect();
    let attributes = vec![float("epsilon", eps as f32)];
    if wanted.get(1) != Some(&true) {
        let y = contrib(b, op, &names, attributes);
        return vec![y, String::new()];
    }
    let results = b.call(CONTRIB, op, &names, 4, attributes);
    if let Some(n) = b.nodes.last_mut() {
        // Mean and inverse deviation are not computed.
        n.output[1].clear();
        n.output[2].clear();
    }
    vec![results[0].clone(), results[3].clone()]
}

/// (x, r, weight) to (rms_norm(x + r), x + r).
pub(super) fn add_rms_norm(b: &mut Builder, p: &Place, x: &[Val], eps: f64, wanted: &[bool]) -> Result<Vec<String>> {
    if fits_contrib(p, x) {
        return Ok(skip_norm(b, x, eps, wanted));
    }
    let operands = [("x", &x[0]), ("r", &x[1]), ("weight", &x[2])];
    let dtype = x[0].ty.dtype;
    b.function("AddRmsNorm", "rms_norm(x + r) and x + r.", &operands, &["y", "sum"], |b, x| {
        let sum = b.op("Add", &[&x[0].name, &x[1].name], vec![]);
        Ok(vec![rms_body(b, &sum, dtype, &x[2], eps)?, sum])
    })
}

/// (x, r, weight, bias) to (layer_norm(x + r), x + r).
pub(super) fn add_layer_norm(b: &mut Builder, p: &Place, x: &[Val], eps: f64) -> Result<Vec<String>> {
    let dtype = x[0].ty.dtype;
    if p.dialect == Dialect::Ort {
        // The contributed SkipLayerNormalization is up to ten times slower on a CPU than these two; ONNX Runtime makes
        // it of them where it is faster.
        let sum = b.op("Add", &[&x[0].name, &x[1].name], vec![]);
        return Ok(vec![layer_norm_of(b, &sum, dtype, &x[2..], eps)?, sum]);
    }
    let operands = [("x", &x[0]), ("r", &x[1]), ("weight", &x[2]), ("bias", &x[3])];
    b.function("AddLayerNorm", "layer_norm(x + r) and x + r.", &operands, &["y", "sum"], |b, x| {
        let sum = b.op("Add", &[&x[0].name, &x[1].name], vec![]);
        Ok(vec![layer_norm_of(b, &sum, dtype, &x[2..], eps)?, sum])
    })
}

/// (x, cos, sin): rotates pairs of the last axis.
pub(super) fn rotary(b: &mut Builder, p: &Place, x: &[Val], interleaved: bool) -> Result<String> {
    if (p.dialect == Dialect::Ort || b.is_native())
        && let Some(y) = one_rotary(b, x, interleaved)?
    {
        return Ok(y);
    }
    if interleaved {
        let operands = [("x", &x[0]), ("cos", &x[1]), ("sin", &x[2])];
        let doc = "Rotates neighbouring pairs of the last axis; cos and sin have half its extent.";
        return function(b, "RotaryInterleaved", doc, &operands, interleaved_body);
    }
    // Tables of full width are made once for all layers: it takes fewer nodes to rotate by them.
    let wide = |b: &mut Builder, v: &Val, negate: bool| {
        let name = b.once(format!("wide {negate} {}", v.name), "rotary", |b| {
            let first = if negate { b.op("Neg", &[&v.name], vec![]) } else { v.name.clone() };
            Ok(b.op("Concat", &[&first, &v.name], vec![int("axis", -1)]))
        })?;
        let mut ty = v.ty.clone();
        if let Some(last) = ty.shape.last_mut() {
            *last = &*last * &Dim::from(2);
        }
        Ok::<Val, super::EmitError>(Val { name, ty })
    };
    let (cos, sin) = (wide(b, &x[1], false)?, wide(b, &x[2], true)?);
    let doc = "x * cos + (x with its halves exchanged) * sin; the first half of sin is negated.";
    function(b, "Rotary", doc, &[("x", &x[0]), ("cos", &cos), ("sin", &sin)], |b, x| {
        let halves = b.call("", "Split", &[&x[0].name], 2, vec![int("axis", -1), int("num_outputs", 2)]);
        let turned = b.op("Concat", &[&halves[1], &halves[0]], vec![int("axis", -1)]);
        let straight = b.op("Mul", &[&x[0].name, &x[1].name], vec![]);
        let turned = b.op("Mul", &[&turned, &x[2].name], vec![]);
        Ok(b.op("Add", &[&straight, &turned], vec![]))
    })
}

fn interleaved_body(b: &mut Builder, x: &[Val]) -> Result<String> {
    let (from, to, axis) = ([b.ints(&[0])?, b.ints(&[1])?], b.ints(&[i64::MAX])?, b.ints(&[-1])?);
    let step = b.ints(&[2])?;
    let half = |b: &mut Builder, f: &str| b.op("Slice", &[&x[0].name, f, &to, &axis, &step], vec![]);
    let (even, odd) = (half(b, &from[0]), half(b, &from[1]));
    let mul = |b: &mut Builder, x: &str, y: &str| b.op("Mul", &[x, y], vec![]);
    let (even_cos, odd_sin) = (mul(b, &even, &x[1].name), mul(b, &odd, &x[2].name));
    let (odd_cos, even_sin) = (mul(b, &odd, &x[1].name), mul(b, &even, &x[2].name));
    let first = b.op("Sub", &[&even_cos, &odd_sin], vec![]);
    let second = b.op("Add", &[&odd_cos, &even_sin], vec![]);
    let first = b.op("Unsqueeze", &[&first, &axis], vec![]);
    let second = b.op("Unsqueeze", &[&second, &axis], vec![]);
    let pairs = b.op("Concat", &[&first, &second], vec![int("axis", -1)]);
    let shape = b.op("Shape", &[&x[0].name], vec![]);
    Ok(b.op("Reshape", &[&pairs, &shape], vec![]))
}

/// The rotary embedding as one operator. In the contributed one, cos and sin are tables with one row per token, which the
/// tokens read in order; the native one takes them as they are.
fn one_rotary(b: &mut Builder, x: &[Val], interleaved: bool) -> Result<Option<String>> {
    let one = Dim::from(1);
    let [batch, _, tokens, width] = &x[0].ty.shape[..] else { return Ok(None) };
    let Some(half) = width.div_exact(&Dim::from(2)) else { return Ok(None) };
    let per_token = |v: &Val| {
        let s = &v.ty.shape;
        s.len() == 4 && s[1] == one && s[2] == *tokens && s[3] == half && (s[0] == *batch || s[0] == one)
    };
    let fits = (x[0].ty.dtype == DType::F32 || b.is_native()) && x.iter().all(|v| v.ty.dtype == x[0].ty.dtype);
    if !fits || !per_token(&x[1]) || !per_token(&x[2]) || x[1].ty.shape != x[2].ty.shape || half.as_const().is_none() {
        return Ok(None);
    }
    let shared = x[1].ty.shape[0] == one;
    if b.is_native() && shared && *batch != one {
        return Ok(None);
    }
    let rows = [Dim::from(-1), half.clone()];
    let native = b.is_native();
    let table = |b: &mut Builder, v: &Val| {
        let name = v.name.clone();
        b.once(format!("table {name}"), "rotary", |b| {
            if native {
                // The heads, of which there is one. A reshape with an extent to infer fails where there are no elements.
                let heads = b.ints(&[1])?;
                return Ok(b.op("Squeeze", &[&name, &heads], vec![]));
            }
            let shape = b.extents(&rows)?;
            Ok(b.op("Reshape", &[&name, &shape], vec![]))
        })
    };
    let (cos, sin) = (table(b, &x[1])?, table(b, &x[2])?);
    let attributes = vec![int("interleaved", interleaved.into())];
    if b.is_native() {
        return Ok(Some(b.op("RotaryEmbedding", &[&x[0].name, &cos, &sin], attributes)));
    }
    let positions = if shared && *batch != one {
        // One position means: from here on, in every row of the batch.
        b.ints(&[0])?
    } else {
        b.once(format!("positions {batch} {tokens}"), "rotary", |b| {
            let start = b.extent_scalar(&Dim::from(0))?;
            let limit = b.extent_scalar(&(batch * tokens))?;
            let step = b.extent_scalar(&one)?;
            let all = b.op("Range", &[&start, &limit, &step], vec![]);
            let shape = b.extents(&[batch.clone(), tokens.clone()])?;
            Ok(b.op("Reshape", &[&all, &shape], vec![]))
        })?
    };
    Ok(Some(contrib(b, "RotaryEmbedding", &[&x[0].name, &positions, &cos, &sin], attributes)))
}

/// What is added to the scores, and which rows keep any score.
struct Bias {
    value: Option<Val>,
    /// Boolean, false for queries that see no key.
    rows: Option<String>,
    /// Whether a row of scores may be -infinity throughout.
    empty: bool,
}

/// (q, k, v[, mask]) as [batch, heads, tokens, width].
pub(super) fn attention(b: &mut Builder, p: &Place, x: &[Val], how: &Scores) -> Result<String> {
    let bias = bias(b, x, how)?;
    let dtype = x[0].ty.dtype;
    if let Some(sink) = x.get(4) {
        if how.always {
            return Err(super::EmitError::Operator("attention with a sink and zeros for NaN".to_owned()));
        }
        let y = attention_with_sink(b, x, bias.value.as_ref(), sink, how)?;
        return match bias.rows {
            None => Ok(y),
            Some(rows) => {
                let zero = b.scalar(dtype, 0.0)?;
                Ok(b.op("Where", &[&rows, &y, &zero], vec![]))
            }
        };
    }
    let mut operands = vec![("q", &x[0]), ("k", &x[1]), ("v", &x[2])];
    operands.extend(bias.value.as_ref().map(|v| ("bias", v)));
    let guard = how.always || how.safe && bias.empty && bias.rows.is_none();
    let y = if p.dialect == Dialect::Ort {
        let all: Vec<Val> = operands.iter().map(|(_, v)| (*v).clone()).collect();
        attention_body(b, p, &all, how, guard)?
    } else {
        let doc = "softmax(q k^T * scale + bias) v; query heads share key heads in order.";
        function(b, "Attention", doc, &operands, |b, x| attention_body(b, p, x, how, guard))?
    };
    match bias.rows {
        None => Ok(y),
        Some(rows) => {
            let zero = b.scalar(dtype, 0.0)?;
            Ok(b.op("Where", &[&rows, &y, &zero], vec![]))
        }
    }
}

/// The sink is one more score of each query, of a key without value.
fn attention_with_sink(b: &mut Builder, x: &[Val], bias: Option<&Val>, sink: &Val, how: &Scores) -> Result<String> {
    let dtype = x[0].ty.dtype;
    let heads = &x[0].ty.shape[1];
    let same = heads == &x[1].ty.shape[1];
    let mut k = x[1].clone();
    let mut v = x[2].name.clone();
    if !same {
        k.name = repeated(b, &k, heads)?;
        v = repeated(b, &x[2], heads)?;
    }
    let scale = b.scalar(dtype, how.scale)?;
    let q = b.op("Mul", &[&x[0].name, &scale], vec![]);
    let k = transposed(b, &k)?;
    let mut s = b.op("MatMul", &[&q, &k], vec![]);
    if how.softcap != 0.0 {
        let cap = b.scalar(dtype, how.softcap)?;
        let part = b.op("Div", &[&s, &cap], vec![]);
        let part = b.op("Tanh", &[&part], vec![]);
        s = b.op("Mul", &[&part, &cap], vec![]);
    }
    if let Some(bias) = bias {
        s = b.op("Add", &[&s, &bias.name], vec![]);
    }
    let rows = b.op("Shape", &[&s], vec![int("start", 0), int("end", 3)]);
    let one = b.ints(&[1])?;
    let shape = b.op("Concat", &[&rows, &one], vec![int("axis", 0)]);
    let sink = b.op("Expand", &[&sink.name, &shape], vec![]);
    let all = b.op("Concat", &[&s, &sink], vec![int("axis", -1)]);
    let w = b.op("Softmax", &[&all], vec![int("axis", -1)]);
    let (zero, end, axis) = (b.ints(&[0])?, b.ints(&[-1])?, b.ints(&[3])?);
    let w = b.op("Slice", &[&w, &zero, &end, &axis], vec![]);
    Ok(b.op("MatMul", &[&w, &v], vec![]))
}

fn attention_body(b: &mut Builder, p: &Place, x: &[Val], how: &Scores, guard: bool) -> Result<String> {
    let dtype = x[0].ty.dtype;
    let heads = |v: &Val| v.ty.shape[1].as_const();
    let (hq, hk) = (&x[0].ty.shape[1], &x[1].ty.shape[1]);
    // Queries that share a key head become rows of one matrix, so that keys and values are not copied.
    let grouped = if hq == hk { None } else { heads(&x[0]).zip(heads(&x[1])) };
    let mut q = x[0].name.clone();
    let mut k = x[1].clone();
    let mut v = x[2].name.clone();
    let to = |b: &mut Builder, x: &str, heads: i64| {
        let shape = b.ints(&[0, heads, -1, 0])?;
        Ok::<_, super::EmitError>(b.op("Reshape", &[x, &shape], vec![]))
    };
    if let Some((_, hk)) = grouped {
        q = to(b, &q, hk)?;
    } else if hq != hk {
        k.name = repeated(b, &k, hq)?;
        v = repeated(b, &x[2], hq)?;
    }
    let mut s = if p.dialect == Dialect::Ort && dtype == DType::F32 {
        let attributes = vec![float("alpha", how.scale as f32), int("transB", 1)];
        contrib(b, "FusedMatMul", &[&q, &k.name], attributes)
    } else {
        if how.scale != 1.0 {
            let scale = b.param("scale", dtype, how.scale)?;
            q = b.op("Mul", &[&q, &scale], vec![]);
        }
        let k = transposed(b, &k)?;
        b.op("MatMul", &[&q, &k], vec![])
    };
    if how.softcap != 0.0 {
        let cap = b.param("softcap", dtype, how.softcap)?;
        let part = b.op("Div", &[&s, &cap], vec![]);
        let part = b.op("Tanh", &[&part], vec![]);
        s = b.op("Mul", &[&part, &cap], vec![]);
    }
    if let Some(bias) = x.get(3) {
        if let Some((hq, _)) = grouped {
            s = to(b, &s, hq)?;
        }
        s = b.op("Add", &[&s, &bias.name], vec![]);
    }
    let mut w = b.op("Softmax", &[&s], vec![int("axis", -1)]);
    if guard {
        w = zero_where_nan(b, &w, dtype)?;
    }
    if let (Some((_, hk)), true) = (grouped, x.len() > 3) {
        w = to(b, &w, hk)?;
    }
    let y = b.op("MatMul", &[&w, &v], vec![]);
    match grouped {
        Some((hq, _)) => to(b, &y, hq),
        None => Ok(y),
    }
}

/// Key heads repeated for the query heads that share them; numbers of heads may be symbolic.
fn repeated(b: &mut Builder, x: &Val, heads: &Dim) -> Result<String> {
    let [batch, hk, tokens, width] = &x.ty.shape[..] else { return Ok(x.name.clone()) };
    let group = heads.div_exact(hk).unwrap_or_else(|| Dim::from(1));
    let axis = b.ints(&[2])?;
    let apart = b.op("Unsqueeze", &[&x.name, &axis], vec![]);
    let one = Dim::from(1);
    let wide = b.extents(&[one.clone(), one.clone(), group, one.clone(), one])?;
    let copies = b.op("Expand", &[&apart, &wide], vec![]);
    let shape = b.extents(&[batch.clone(), heads.clone(), tokens.clone(), width.clone()])?;
    Ok(b.op("Reshape", &[&copies, &shape], vec![]))
}

/// The lowest finite number of a type.
fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::MIN,
        DType::F16 => -65504.0,
        DType::BF16 => -3.389_531_389_251_535_5e38,
        _ => f64::from(f32::MIN),
    }
}

fn bias(b: &mut Builder, x: &[Val], how: &Scores) -> Result<Bias> {
    let dtype = x[0].ty.dtype;
    let (queries, keys) = (&x[0].ty.shape[2], &x[1].ty.shape[2]);
    let mask = x.get(3);
    let ty = |shape: &[Dim]| TensorType::new(dtype, shape.to_vec());
    let causal = if how.causal { Some(causal(b, queries, keys)?) } else { None };
    match (mask, causal) {
        (None, None) => Ok(Bias { value: None, rows: None, empty: false }),
        (Some(m), None) if m.ty.dtype != DType::Bool => {
            let name = b.cast(&m.name, m.ty.dtype, dtype)?;
            let empty = !b.is_finite(&m.name);
            Ok(Bias { value: Some(Val { name, ty: TensorType::new(dtype, m.ty.shape.clone()) }), rows: None, empty })
        }
        (Some(m), Some((keep, shape))) if m.ty.dtype != DType::Bool => {
            let name = b.once(format!("causal bias {} {keep} {dtype}", m.name), "mask", |b| {
                let never = b.scalar(dtype, f64::NEG_INFINITY)?;
                let add = b.cast(&m.name, m.ty.dtype, dtype)?;
                Ok(b.op("Where", &[&keep, &add, &never], vec![]))
            })?;
            let shape = crate::ir::broadcast(&m.ty.shape, &shape).unwrap_or(shape);
            Ok(Bias { value: Some(Val { name, ty: ty(&shape) }), rows: None, empty: true })
        }
        (mask, causal) => {
            let (keep, shape) = match (mask, causal) {
                (Some(m), None) => (m.name.clone(), m.ty.shape.clone()),
                (None, Some(c)) => c,
                (Some(m), Some((c, shape))) => {
                    let both =
                        b.once(format!("keep {} {c}", m.name), "mask", |b| Ok(b.op("And", &[&m.name, &c], vec![])))?;
                    (both, crate::ir::broadcast(&m.ty.shape, &shape).unwrap_or(shape))
                }
                (None, None) => return Ok(Bias { value: None, rows: None, empty: false }),
            };
            // A causal mask alone hides all keys of a query only where keys are fewer than queries.
            let empty = mask.is_some() || (keys - queries).products().iter().any(|(c, _)| *c < 0);
            let hidden = if how.safe { lowest(dtype) } else { f64::NEG_INFINITY };
            let name = b.once(format!("bias {keep} {hidden} {dtype}"), "mask", |b| {
                let (zero, hidden) = (b.scalar(dtype, 0.0)?, b.scalar(dtype, hidden)?);
                Ok(b.op("Where", &[&keep, &zero, &hidden], vec![]))
            })?;
            let rows = if how.safe && empty {
                Some(b.once(format!("rows {keep}"), "mask", |b| {
                    let axes = b.ints(&[-1])?;
                    let number = b.cast(&keep, DType::Bool, DType::F32)?;
                    let any = b.op("ReduceMax", &[&number, &axes], vec![int("keepdims", 1)]);
                    b.cast(&any, DType::F32, DType::Bool)
                })?)
            } else {
                None
            };
            Ok(Bias { value: Some(Val { name, ty: ty(&shape) }), rows, empty })
        }
    }
}

/// True where a query sees a key: the last query sees every key.
fn causal(b: &mut Builder, queries: &Dim, keys: &Dim) -> Result<(String, Vec<Dim>)> {
    let name = b.once(format!("causal {queries} {keys}"), "causal", |b| {
        let (zero, one) = (b.extent_scalar(&Dim::from(0))?, b.extent_scalar(&Dim::from(1))?);
        let (first, end) = (b.extent_scalar(&(keys - queries))?, b.extent_scalar(keys)?);
        let query = b.op("Range", &[&first, &end, &one], vec![]);
        let axis = b.ints(&[-1])?;
        let query = b.op("Unsqueeze", &[&query, &axis], vec![]);
        let key = b.op("Range", &[&zero, &end, &one], vec![]);
        Ok(b.op("LessOrEqual", &[&key, &query], vec![]))
    })?;
    Ok((name, vec![queries.clone(), keys.clone()]))
}
