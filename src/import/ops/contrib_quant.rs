//! Operators of ONNX Runtime on weights of few bits. The weights stay packed; `dequantize` reads them.

use super::super::attrs;
use super::super::context::{Context, OpError, Result};
use super::super::proto::{AttributeProto, NodeProto, attribute_proto::AttributeType};
use super::super::weights::Weight;
use super::attention::part;
use super::axis;
use crate::ir::{DType, Dim, NodeId, Op, Shape, TensorType};

/// The opset since which `DequantizeLinear` has blocks.
const BLOCKED: i64 = 21;

/// Number of bits, which must divide a byte.
fn bits(n: &NodeProto) -> Result<i64> {
    let b = attrs::int(n, "bits").unwrap_or(4);
    if matches!(b, 2 | 4 | 8) {
        Ok(b)
    } else {
        Err(OpError::from(format!("{b} bits are not supported; 2, 4 and 8 are")))
    }
}

/// An operand under another shape: the same bytes of the file, where it is a weight.
pub(super) fn view(cx: &mut Context<'_>, n: &NodeProto, i: usize, shape: Shape) -> Result<NodeId> {
    let x = match cx.constant_data(n, i)?.filter(|w| w.ty.shape != shape) {
        Some(w) if w.ty.elements() == (TensorType { dtype: w.ty.dtype, shape: shape.clone() }).elements() => {
            let ty = TensorType { dtype: w.ty.dtype, shape };
            let name = n.input.get(i).map_or("", String::as_str).to_owned();
            return Ok(cx.made_weight(&name, Weight::new(ty, w.bytes)));
        }
        _ => cx.operand(n, i)?,
    };
    cx.reshape(x, shape)
}

/// Packed zero points, one per scale; rows of them start at whole bytes.
pub(super) fn zero_points(
    cx: &mut Context<'_>,
    n: &NodeProto,
    i: usize,
    bits: i64,
    shape: &Shape,
) -> Result<Option<NodeId>> {
    let Some(x) = cx.input(n, i)? else { return Ok(None) };
    let dtype = cx.dtype_of(&x);
    if dtype != DType::U8 || bits == 8 {
        return view(cx, n, i, shape.clone()).map(Some);
    }
    let extents: Option<Vec<usize>> =
        shape.iter().map(|d| d.as_const().and_then(|d| usize::try_from(d).ok())).collect();
    let (Some(data), Some(extents)) = (cx.constant_data(n, i)?, extents) else {
        return Err(OpError::from("packed zero points must be constant"));
    };
    let Some((&runs, lead)) = extents.split_last() else { return Err(OpError::from("a scale per run is needed")) };
    let per_byte = 8 / bits as usize;
    let (rows, row) = (lead.iter().product::<usize>(), runs.div_ceil(per_byte));
    if data.bytes.len() != rows * row {
        return Err(OpError::from(format!("{} bytes of zero points, {rows} rows of {row} expected", data.bytes.len())));
    }
    let mut out = Vec::with_capacity(rows * runs);
    for row in data.bytes.chunks_exact(row.max(1)) {
        let numbers =
            row.iter().flat_map(|&b| (0..per_byte).map(move |i| b >> (i as i64 * bits) & (u8::MAX >> (8 - bits))));
        out.extend(numbers.take(runs));
    }
    let ty = TensorType { dtype: DType::U8, shape: shape.clone() };
    let name = n.input.get(i).map_or("", String::as_str).to_owned();
    Ok(Some(cx.made_weight(&name, Weight::new(ty, out.into()))))
}

/// x times a weight of few bits, held row by row of the result: `MatMulNBits`.
pub(super) fn matmul(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let x = cx.operand(n, 0)?;
    let (k, cols) = (attrs::required_int(n, "K")?, attrs::required_int(n, "N")?);
    let (block, bits) = (attrs::required_int(n, "block_size")?, bits(n)?);
    if k <= 0 || cols <= 0 || block <= 0 || block * bits % 8 != 0 {
        return Err(OpError::from(format!("K {k}, N {cols}, block size {block}: not the extents of a weight")));
    }
    if attrs::int(n, "weight_prepacked").unwrap_or(0) != 0 {
        return Err(OpError::from("a weight that is prepacked for one kind of device is not supported"));
    }
    let blocks = (k + block - 1) / block;
    if let Some(groups) = cx.const_ints_of(n, 4)?
        && (groups.len() as i64 != k || (0..k).zip(&groups).any(|(i, &g)| i / block != g))
    {
        return Err(OpError::from("`g_idx` that permutes the rows is not supported"));
    }
    let packed = view(cx, n, 1, vec![Dim::from(cols), Dim::from(blocks * block * bits / 8)])?;
    let runs = vec![Dim::from(cols), Dim::from(blocks)];
    let scales = view(cx, n, 2, runs.clone())?;
    let mut operands = vec![packed, scales];
    operands.extend(zero_points(cx, n, 3, bits, &runs)?);
    let w = cx.add(Op::Dequantize { bits }, &operands)?;
    let w = part(cx, w, 1, &Dim::from(0), &Dim::from(k))?;
    let y = cx.add(Op::Matmul { trans_b: true }, &[x, w])?;
    match cx.optional(n, 5)? {
        Some(bias) => cx.add(Op::Add {}, &[y, bias]),
        None => Ok(y),
    }
}

/// Rows of a table of few bits: `GatherBlockQuantized`.
pub(super) fn gather(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let table = cx.operand(n, 0)?;
    if matches!(cx.ty(table).dtype, DType::I4 | DType::U4) {
        return gather_typed(cx, n);
    }
    let bits = bits(n)?;
    let (data, at) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
    let rank = cx.ty(data).rank();
    let rows = axis(attrs::int(n, "gather_axis").unwrap_or(0), rank)?;
    let along = axis(attrs::int(n, "quantize_axis").unwrap_or(1), rank)?;
    if cx.ty(data).dtype != DType::U8 || rank != 2 || rows != 0 || along != 1 {
        return Err(OpError::from(format!(
            "a table {} gathered along axis {rows} and packed along axis {along} is not supported; u8 matrices of packed rows are",
            cx.ty(data)
        )));
    }
    let scales = cx.operand(n, 2)?;
    let shape = cx.shape(scales);
    let mut operands = vec![data, scales];
    operands.extend(zero_points(cx, n, 3, bits, &shape)?);
    for x in &mut operands {
        *x = cx.add(Op::Gather { axis: 0 }, &[*x, at])?;
    }
    cx.add(Op::Dequantize { bits }, &operands)
}

/// Rows of a table whose elements are of four bits, each with a type of its own: the rows, their scales and zero points are
/// gathered and then dequantised by blocks, as `Gather` and `DequantizeLinear` do it.
fn gather_typed(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let (table, at) = (cx.operand(n, 0)?, cx.operand(n, 1)?);
    let rank = cx.ty(table).rank();
    let rows = axis(attrs::int(n, "gather_axis").unwrap_or(0), rank)?;
    let along = axis(attrs::int(n, "quantize_axis").unwrap_or(1), rank)?;
    if rows == along {
        return Err(OpError::from(format!("axis {rows} is both gathered and quantised")));
    }
    let int = |name: &str, v: i64| AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(v),
        ..AttributeProto::default()
    };
    let mut gathered = vec![];
    for (i, what) in [(0, "rows"), (2, "scales"), (3, "zeros")] {
        let Some(from) = n.input.get(i).filter(|s| !s.is_empty()) else { continue };
        let to = cx.names.fresh(format!("{}/{what}", n.output[0]));
        cx.import_node(&NodeProto {
            op_type: Some("Gather".to_owned()),
            name: n.name.clone(),
            input: vec![from.clone(), n.input[1].clone()],
            output: vec![to.clone()],
            attribute: vec![int("axis", rows as i64)],
            ..NodeProto::default()
        })?;
        gathered.push(to);
    }
    // Indices take the place of the gathered axis.
    let along = if along < rows { along } else { along + cx.ty(at).rank() - 1 };
    let block = attrs::int(n, "block_size").unwrap_or(128);
    let to = cx.names.fresh(format!("{}/numbers", n.output[0]));
    let mut opsets = cx.opsets.clone();
    let opset = opsets.entry(String::new()).or_insert(BLOCKED);
    *opset = (*opset).max(BLOCKED);
    let saved = cx.enter_opsets(opsets);
    let done = cx.import_node(&NodeProto {
        op_type: Some("DequantizeLinear".to_owned()),
        name: n.name.clone(),
        input: gathered,
        output: vec![to.clone()],
        attribute: vec![int("axis", along as i64), int("block_size", block)],
        ..NodeProto::default()
    });
    cx.enter_opsets(saved);
    done?;
    cx.node_of(&to)
}
