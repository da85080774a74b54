//! Quantisation to eight and four bits of floating point: the standard's `QuantizeLinear` and `DequantizeLinear`, and the
//! operators of NVIDIA's exporters (domain `trt`).
//!
//! Other quantised types are left to the standard operators.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, Val};
use super::super::proto::NodeProto;
use super::super::weights;
use super::axis;
use crate::ir::{DType, Dim, NodeId, Op, Shape};

pub(super) const OPS: &[&str] = &["QuantizeLinear", "DequantizeLinear"];
pub(super) const TRT: &[&str] = &["TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear", "TRT_FP4DynamicQuantize"];
/// The domain of [`TRT`].
pub(super) const DOMAIN: &str = "trt";

/// Elements of a row that share a block scale.
const BLOCK: i64 = 16;

/// Whether a node may have operands of quantised types.
pub(super) fn takes(n: &NodeProto) -> bool {
    match n.domain() {
        "" | "ai.onnx" => OPS.contains(&n.op_type()) || matches!(n.op_type(), "Cast" | "CastLike"),
        d => d == DOMAIN,
    }
}

pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    let one = |id: NodeId| Ok(vec![Val::Node(id)]);
    match n.op_type() {
        "QuantizeLinear" => one(quantize(cx, n)?),
        "DequantizeLinear" => one(dequantize(cx, n)?),
        "TRT_FP8QuantizeLinear" => {
            let (x, scale) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
            let layout = layout(cx, n, x, scale, -1, 0)?;
            let scale = cx.reshape(scale, layout.scale)?;
            one(cx.add(Op::QuantizeFp8 {}, &[x, scale])?)
        }
        "TRT_FP8DequantizeLinear" => {
            let (x, scale) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
            check_quantised(cx, x)?;
            let to = cx.ty(scale).dtype;
            let layout = layout(cx, n, x, scale, -1, 0)?;
            one(product(cx, x, scale, &layout, to)?)
        }
        "TRT_FP4DynamicQuantize" => dynamic_fp4(cx, n),
        other => Err(OpError::from(format!("the operator `{other}` of the domain `{DOMAIN}` is not supported"))),
    }
}

fn check_quantised(cx: &Context<'_>, x: NodeId) -> Result<()> {
    match cx.ty(x).dtype {
        d if d.is_quantised() => Ok(()),
        d => Err(OpError::from(format!("elements of type {d} are not supported; f8e4m3fn and f4e2m1 are"))),
    }
}

/// How scales lie beside the elements: both are reshaped until they broadcast.
struct Layout {
    /// The shape of the elements, blocks apart.
    x: Shape,
    /// The shape of the scales.
    scale: Shape,
}

/// One scale for all, one for each position of an axis, or one for each block of an axis.
fn layout(cx: &Context<'_>, n: &NodeProto, x: NodeId, scale: NodeId, default_axis: i64, block: i64) -> Result<Layout> {
    let (shape, given) = (cx.shape(x), cx.shape(scale));
    let one = Dim::from(1);
    if block == 0 && given.len() <= 1 && given.iter().all(|d| *d == one) {
        return Ok(Layout { x: shape, scale: vec![] });
    }
    let a = axis(attrs::int(n, "axis").unwrap_or(default_axis), shape.len())?;
    if block == 0 {
        if given[..] != shape[a..=a] {
            return Err(OpError::from(format!("scales {given:?} along axis {a} of {shape:?}")));
        }
        let mut scale = vec![one; shape.len() - a];
        scale[0] = shape[a].clone();
        return Ok(Layout { x: shape, scale });
    }
    let blocks = shape[a].div_exact(&Dim::from(block)).filter(|_| block > 0);
    let Some(blocks) = blocks else {
        return Err(OpError::from(format!("blocks of {block} along axis {a} of {shape:?} are not supported")));
    };
    let mut want = shape.clone();
    want[a] = blocks.clone();
    if given != want {
        return Err(OpError::from(format!("scales {given:?} for blocks of {block} along axis {a} of {shape:?}")));
    }
    let (mut apart, mut beside) = (shape, want);
    apart[a] = blocks;
    apart.insert(a + 1, Dim::from(block));
    beside.insert(a + 1, one);
    Ok(Layout { x: apart, scale: beside })
}

fn cast(cx: &mut Context<'_>, x: NodeId, to: DType) -> Result<NodeId> {
    if cx.ty(x).dtype == to { Ok(x) } else { cx.add(Op::Cast { to }, &[x]) }
}

/// An element type that an attribute names; 0 and absence mean none.
fn named_type(n: &NodeProto, attribute: &str) -> Result<Option<DType>> {
    match attrs::int(n, attribute) {
        None | Some(0) => Ok(None),
        Some(code) => {
            let dtype = i32::try_from(code).ok().and_then(weights::dtype);
            dtype.map(Some).ok_or_else(|| OpError::from(format!("element type {code} is not supported")))
        }
    }
}

/// Refuses zero points other than zero.
fn no_zero_point(cx: &mut Context<'_>, n: &NodeProto) -> Result<()> {
    if cx.input(n, 2)?.is_none() {
        return Ok(());
    }
    match cx.constant_data(n, 2)? {
        Some(w) if w.bytes.iter().all(|b| *b == 0) => Ok(()),
        _ => Err(OpError::from("a zero point other than zero is not supported")),
    }
}

/// The element type of the result of `QuantizeLinear`.
fn target(cx: &mut Context<'_>, n: &NodeProto) -> Result<DType> {
    let zero = cx.input(n, 2)?.map(|z| cx.dtype_of(&z));
    Ok(named_type(n, "output_dtype")?.or(zero).unwrap_or(DType::U8))
}

fn quantize(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let to = target(cx, n)?;
    if !to.is_quantised() {
        return Err(OpError::from(format!("quantisation to {to} is a standard operator")));
    }
    if to == DType::F8E4M3FN && !attrs::flag(n, "saturate", true) {
        return Err(OpError::from("quantisation that does not saturate is a standard operator"));
    }
    no_zero_point(cx, n)?;
    let (x, scale) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
    let shape = cx.shape(x);
    let layout = layout(cx, n, x, scale, 1, attrs::int(n, "block_size").unwrap_or(0))?;
    // The division is of numbers of this type.
    let precision = named_type(n, "precision")?.unwrap_or(cx.ty(scale).dtype);
    let (from, of) = (cx.ty(x).dtype, cx.ty(scale).dtype);
    if [precision, from, of].iter().any(|d| !d.is_float() || *d == DType::F64) {
        return Err(OpError::from(format!("quantisation of {from} by {of} in {precision} is a standard operator")));
    }
    let scale = cast(cx, scale, precision)?;
    let scale = cx.reshape(scale, layout.scale)?;
    let x = if precision == DType::F32 && to == DType::F8E4M3FN { x } else { cast(cx, x, precision)? };
    let x = cx.reshape(x, layout.x)?;
    let q = match to {
        DType::F8E4M3FN => cx.add(Op::QuantizeFp8 {}, &[x, scale])?,
        _ => {
            let quotient = cx.add(Op::Div {}, &[x, scale])?;
            cx.add(Op::Cast { to }, &[quotient])?
        }
    };
    cx.reshape(q, shape)
}

fn dequantize(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let (x, scale) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
    check_quantised(cx, x)?;
    no_zero_point(cx, n)?;
    let of = cx.ty(scale).dtype;
    let to = named_type(n, "output_dtype")?.unwrap_or(of);
    if !of.is_float() || !to.is_float() {
        return Err(OpError::from(format!("scales of type {of} are not supported by sinter's own operators")));
    }
    let layout = layout(cx, n, x, scale, 1, attrs::int(n, "block_size").unwrap_or(0))?;
    product(cx, x, scale, &layout, to)
}

/// The elements times their scales. The product is rounded once to the type of the scales, or to f32 where the result has
/// another type.
fn product(cx: &mut Context<'_>, x: NodeId, scale: NodeId, layout: &Layout, to: DType) -> Result<NodeId> {
    let shape = cx.shape(x);
    let of = cx.ty(scale).dtype;
    let within = if of == to || of == DType::F64 { of } else { DType::F32 };
    let x = cx.reshape(x, layout.x.clone())?;
    let (x, scale) = (cast(cx, x, within)?, cast(cx, scale, within)?);
    let scale = cx.reshape(scale, layout.scale.clone())?;
    let y = cx.add(Op::Mul {}, &[x, scale])?;
    let y = cast(cx, y, to)?;
    cx.reshape(y, shape)
}

/// (x, scale) to codes of four bits and the scales of their blocks: x / (block scale * scale), with block scales that make
/// the largest magnitude of a block 6.
fn dynamic_fp4(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    let (x, scale) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
    let rank = cx.ty(x).rank();
    let along = axis(attrs::int(n, "axis").unwrap_or(-1), rank)?;
    let block = attrs::int(n, "block_size").unwrap_or(BLOCK);
    let scale_type = named_type(n, "scale_type")?.unwrap_or(DType::F8E4M3FN);
    if along + 1 != rank || block != BLOCK || scale_type != DType::F8E4M3FN {
        return Err(OpError::from(format!(
            "blocks of {block} along axis {along} with scales of type {scale_type} are not supported; blocks of {BLOCK} of the last \
             axis with f8e4m3fn are"
        )));
    }
    let scale = cast(cx, scale, DType::F32)?;
    let inverse = cx.add(Op::Reciprocal {}, &[scale])?;
    let blocks = cx.add(Op::Fp4Scale {}, &[x, inverse])?;
    let codes = cx.add(Op::QuantizeFp4 {}, &[x, blocks, inverse])?;
    Ok(vec![Val::Node(codes), Val::Node(blocks)])
}
