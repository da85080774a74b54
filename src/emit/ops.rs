//! One operator of a plan as ONNX nodes.

use super::builder::{Builder, CONTRIB, Val, int};
use super::{Dialect, EmitError, Result, nn, quant, special, standard};
use crate::ir::norm::Quant;
use crate::ir::{Body, DType, Dim, Literal, Op, Safe, TensorType};

/// What the nodes of one rank depend on.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) dialect: Dialect,
    /// Position in the tensor group.
    pub(super) index: usize,
    /// Size of the tensor group.
    pub(super) size: usize,
}

/// Adds the nodes of an operator. `wanted` tells which results something reads.
pub(super) fn emit(b: &mut Builder, p: &Place, op: &Op, x: &[Val], wanted: &[bool]) -> Result<Vec<String>> {
    if let Some((narrow, wide)) = moved_wide(op, x) {
        return moved(b, p, op, x, wanted, (narrow, wide));
    }
    let one = |name: String| Ok(vec![name]);
    let names: Vec<&str> = x.iter().map(|v| v.name.as_str()).collect();
    let plain = |b: &mut Builder, op: &str| one(b.op(op, &names, vec![]));
    match op {
        Op::Const { value } => one(b.constant(value)?),
        Op::Dims { values, scalar: true } => one(b.extent_scalar(&values[0])?),
        Op::Dims { values, scalar: false } => one(b.extents(values)?),
        Op::Range { start, limit, step } => {
            let (start, limit) = (b.extent_scalar(start)?, b.extent_scalar(limit)?);
            let step = b.constant(&Literal::ints(DType::I64, vec![], &[*step]))?;
            one(b.op("Range", &[&start, &limit, &step], vec![]))
        }

        Op::Neg {} => plain(b, "Neg"),
        Op::Abs {} => plain(b, "Abs"),
        Op::Sqrt {} => plain(b, "Sqrt"),
        Op::Reciprocal {} => plain(b, "Reciprocal"),
        Op::Exp {} => plain(b, "Exp"),
        Op::Log {} => plain(b, "Log"),
        Op::Sigmoid {} => plain(b, "Sigmoid"),
        Op::Tanh {} => plain(b, "Tanh"),
        Op::Erf {} => plain(b, "Erf"),
        Op::Cos {} => plain(b, "Cos"),
        Op::Sin {} => plain(b, "Sin"),
        // ONNX Runtime has no kernel of integers for it.
        Op::Relu {} if !x[0].ty.dtype.is_float() => {
            let zero = b.scalar(x[0].ty.dtype, 0.0)?;
            one(b.op("Max", &[&x[0].name, &zero], vec![]))
        }
        Op::Relu {} => plain(b, "Relu"),
        Op::Floor {} => plain(b, "Floor"),
        Op::Ceil {} => plain(b, "Ceil"),
        Op::Not {} => plain(b, "Not"),
        Op::IsNan {} => plain(b, "IsNaN"),
        Op::Cast { to } => one(b.cast(names[0], x[0].ty.dtype, *to)?),
        Op::Add {} => plain(b, "Add"),
        Op::Sub {} => plain(b, "Sub"),
        Op::Mul {} => plain(b, "Mul"),
        Op::Div {} => plain(b, "Div"),
        Op::Pow {} => plain(b, "Pow"),
        Op::Max {} => plain(b, "Max"),
        Op::Min {} => plain(b, "Min"),
        Op::And {} => plain(b, "And"),
        Op::Or {} => plain(b, "Or"),
        Op::Equal {} => plain(b, "Equal"),
        Op::Less {} => plain(b, "Less"),
        Op::LessEqual {} => plain(b, "LessOrEqual"),
        Op::Greater {} => plain(b, "Greater"),
        Op::GreaterEqual {} => plain(b, "GreaterOrEqual"),
        Op::Where {} => plain(b, "Where"),

        Op::ReduceSum { axes, keepdims } => one(reduce(b, "ReduceSum", names[0], axes, *keepdims)?),
        Op::ReduceMean { axes, keepdims } => one(reduce(b, "ReduceMean", names[0], axes, *keepdims)?),
        Op::ReduceMax { axes, keepdims } => one(reduce(b, "ReduceMax", names[0], axes, *keepdims)?),
        Op::Softmax { axis, safe } => {
            let y = b.op("Softmax", &names, vec![int("axis", *axis)]);
            one(if *safe == Safe::No { y } else { nn::zero_where_nan(b, &y, x[0].ty.dtype)? })
        }
        Op::Matmul { trans_b } => one(nn::matmul(b, p, x, *trans_b)?),
        Op::Silu {} => one(nn::silu(b, p, &x[0])?),
        Op::Gelu { tanh } => one(nn::gelu(b, names[0], *tanh)),
        Op::SiluMul {} => one(nn::silu_mul(b, p, x)?),
        Op::GeluMul { tanh } => one(nn::gelu_mul(b, p, x, *tanh)?),
        Op::RmsNorm { eps } => one(nn::rms_norm(b, x, eps.0)?),
        Op::LayerNorm { eps } => one(nn::layer_norm(b, x, eps.0)?),
        Op::AddRmsNorm { eps } => nn::add_rms_norm(b, p, x, eps.0, wanted),
        Op::AddLayerNorm { eps } => nn::add_layer_norm(b, p, x, eps.0),
        Op::ArResidualRmsNorm { eps, .. } => {
            let summed = nn::all_reduced(b, x);
            nn::add_rms_norm(b, p, &summed, eps.0, wanted)
        }
        Op::ArResidualLayerNorm { eps, .. } => {
            let summed = nn::all_reduced(b, x);
            nn::add_layer_norm(b, p, &summed, eps.0)
        }
        Op::Rotary { interleaved } => one(nn::rotary(b, p, x, *interleaved)?),
        Op::Standard { call } => standard::standard(b, call, x),
        Op::Largest { k } => special::largest(b, &x[0], *k),
        Op::ExpertMatmul { bits } => one(special::expert_matmul(b, x, *bits)?),
        Op::Dequantize { bits } => one(special::dequantize(b, x, *bits)?),
        Op::Append { tokens } => one(special::append(b, x, tokens)?),
        Op::Attention { scale, causal, softcap, safe } => {
            let (masked, always) = (*safe == Safe::Masked, *safe == Safe::Always);
            let how = nn::Scores { scale: scale.0, causal: *causal, softcap: softcap.0, safe: masked, always };
            one(nn::attention(b, p, x, &how)?)
        }

        Op::Reshape { shape } => one(reshape(b, &x[0], shape)?),
        Op::Transpose { perm } => one(b.op("Transpose", &names, vec![super::builder::ints("perm", perm)])),
        Op::Expand { shape } => one(expand(b, &x[0], shape)?),
        Op::Concat { axis } => one(b.op("Concat", &names, vec![int("axis", *axis)])),
        Op::Slice { axis, start, end, step } => one(slice(b, &x[0], *axis, start, end, *step)?),
        Op::Gather { axis } => one(b.op("Gather", &names, vec![int("axis", *axis)])),
        Op::GatherNd { batch_dims } => {
            let indices = b.cast(names[1], x[1].ty.dtype, DType::I64)?;
            one(b.op("GatherND", &[names[0], &indices], vec![int("batch_dims", *batch_dims)]))
        }

        Op::Shard { dim, parts, .. } => one(shard(b, p, &x[0], *dim, *parts)?),
        Op::AllReduce { .. } => one(b.call(CONTRIB, "AllReduce", &names, 1, vec![]).pop().unwrap_or_default()),
        Op::AllGather { dim, parts, .. } => one(all_gather(b, p, names[0], *dim, *parts)?),
        Op::VocabGather { .. } => one(vocab_gather(b, p, x)?),
        Op::Kernel { body } => kernel(b, p, body, x),
        Op::QuantizeFp8 {} => one(quant::quantize_fp8(b, &x[0], &x[1])?),
        Op::Fp8Scale { floor } => one(quant::fp8_scale(b, &x[0], floor.0)?),
        other => match other.norm() {
            Some(n) if matches!(n.quant, Quant::Fp8 | Quant::Fp8Token { .. }) => quant::norm(b, p, &n, x, wanted),
            _ => Err(EmitError::Operator(other.title().to_owned())),
        },
    }
}

/// The element type of what an operator moves, and the type of eight bits that stands for it: operators of ONNX that move elements take
/// none of fewer bits, but for casts, reshapes and transpositions.
fn moved_wide(op: &Op, x: &[Val]) -> Option<(DType, DType)> {
    let moves = matches!(
        op,
        Op::Gather { .. }
            | Op::GatherNd { .. }
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Expand { .. }
            | Op::Shard { .. }
            | Op::AllGather { .. }
    );
    let narrow = x.first().filter(|_| moves)?.ty.dtype;
    match narrow {
        DType::I4 | DType::I2 => Some((narrow, DType::I8)),
        DType::U4 | DType::U2 => Some((narrow, DType::U8)),
        _ => None,
    }
}

/// An operator on elements that are widened for it and narrowed again.
fn moved(
    b: &mut Builder,
    p: &Place,
    op: &Op,
    x: &[Val],
    wanted: &[bool],
    (narrow, wide): (DType, DType),
) -> Result<Vec<String>> {
    let mut operands = x.to_vec();
    for v in operands.iter_mut().filter(|v| v.ty.dtype == narrow) {
        v.name = b.cast(&v.name, narrow, wide)?;
        v.ty.dtype = wide;
    }
    let made = emit(b, p, op, &operands, wanted)?;
    made.iter().map(|y| b.cast(y, wide, narrow)).collect()
}

fn reduce(b: &mut Builder, op: &str, x: &str, axes: &[i64], keepdims: bool) -> Result<String> {
    if axes.is_empty() {
        // No axes would mean all of them.
        return Ok(x.to_owned());
    }
    let axes = b.ints(axes)?;
    Ok(b.op(op, &[x, &axes], vec![int("keepdims", keepdims.into())]))
}

/// The shape operand of a reshape: 0 where an extent stays, -1 where it follows from the others. `None` where it has
/// to be computed; a constant extent of 0 would be read as a copy.
fn plain_shape(from: &[Dim], to: &[Dim]) -> Option<Vec<i64>> {
    let target: Vec<i64> = to
        .iter()
        .enumerate()
        .map(|(i, d)| match d.as_const() {
            Some(n) => n,
            None if from.get(i) == Some(d) => 0,
            None => -1,
        })
        .collect();
    let has_zero = to.iter().any(|d| d.as_const() == Some(0));
    // Beside an extent of 0, nothing follows from the others.
    let open: Vec<usize> = (0..to.len()).filter(|&i| target[i] == -1).collect();
    let follows = match open[..] {
        [] => true,
        [i] => to.iter().enumerate().all(|(j, d)| j == i || d.bounds().0 > 0),
        _ => false,
    };
    (!has_zero && follows).then_some(target)
}

/// Whether a reshape needs no arithmetic on extents.
pub(super) fn is_plain_reshape(from: &[Dim], to: &[Dim]) -> bool {
    plain_shape(from, to).is_some()
}

/// The axes of 1 that a shape has beyond another.
fn ones(short: &[Dim], long: &[Dim]) -> Option<Vec<i64>> {
    let mut rest = short.iter().peekable();
    let mut axes = vec![];
    for (i, d) in long.iter().enumerate() {
        let left = long.len() - i;
        if rest.peek() == Some(&d) && (d.as_const() != Some(1) || rest.len() >= left) {
            rest.next();
        } else if d.as_const() == Some(1) {
            axes.push(i as i64);
        } else {
            return None;
        }
    }
    (rest.next().is_none() && !axes.is_empty()).then_some(axes)
}

fn reshape(b: &mut Builder, x: &Val, shape: &[Dim]) -> Result<String> {
    if x.ty.shape == shape {
        return Ok(x.name.clone());
    }
    let plain = plain_shape(&x.ty.shape, shape);
    // Axes of 1 come and go without a shape.
    for (op, short, long) in [("Unsqueeze", &x.ty.shape[..], shape), ("Squeeze", shape, &x.ty.shape[..])] {
        if let (None, Some(axes)) = (&plain, ones(short, long)) {
            let axes = b.ints(&axes)?;
            return Ok(b.op(op, &[&x.name, &axes], vec![]));
        }
    }
    let (to, attributes) = match plain {
        Some(target) => (b.ints(&target)?, vec![]),
        None => (b.extents(shape)?, vec![int("allowzero", 1)]),
    };
    Ok(b.op("Reshape", &[&x.name, &to], attributes))
}

/// Broadcasts; extents that stay are 1 in the shape operand.
fn expand(b: &mut Builder, x: &Val, shape: &[Dim]) -> Result<String> {
    let lead = shape.len().saturating_sub(x.ty.rank());
    let to: Vec<Dim> = shape
        .iter()
        .enumerate()
        .map(|(i, d)| match i.checked_sub(lead).and_then(|i| x.ty.shape.get(i)) {
            Some(have) if have == d => Dim::from(1),
            _ => d.clone(),
        })
        .collect();
    if x.ty.shape == shape {
        return Ok(x.name.clone());
    }
    let to = b.extents(&to)?;
    Ok(b.op("Expand", &[&x.name, &to], vec![]))
}

fn slice(b: &mut Builder, x: &Val, axis: i64, start: &Dim, end: &Dim, step: i64) -> Result<String> {
    let whole = usize::try_from(axis).ok().and_then(|a| x.ty.shape.get(a));
    let from = b.extent(start)?;
    let to = if whole == Some(end) { b.ints(&[i64::MAX])? } else { b.extent(end)? };
    let axes = b.ints(&[axis])?;
    if step == 1 {
        return Ok(b.op("Slice", &[&x.name, &from, &to, &axes], vec![]));
    }
    let step = b.ints(&[step])?;
    Ok(b.op("Slice", &[&x.name, &from, &to, &axes, &step], vec![]))
}

/// The part of a value that a rank of the tensor group has.
pub(super) fn shard(b: &mut Builder, p: &Place, x: &Val, dim: i64, parts: i64) -> Result<String> {
    let bad = || EmitError::Operator(format!("shard of axis {dim} in {parts} parts"));
    let (axis, count) = (usize::try_from(dim).map_err(|_| bad())?, usize::try_from(parts).map_err(|_| bad())?);
    let each = x.ty.shape.get(axis).and_then(|d| d.div_exact(&Dim::from(parts))).ok_or_else(bad)?;
    let index = (p.index * count / p.size) as i64;
    slice(b, x, dim, &(&each * &Dim::from(index)), &(&each * &Dim::from(index + 1)), 1)
}

/// Joins the distinct parts that the ranks hold.
fn all_gather(b: &mut Builder, p: &Place, x: &str, dim: i64, parts: i64) -> Result<String> {
    let size = p.size as i64;
    let attributes = vec![int("group_size", size), int("axis", dim)];
    let all = b.call(CONTRIB, "AllGather", &[x], 1, attributes).pop().unwrap_or_default();
    if parts == size {
        return Ok(all);
    }
    // Neighbouring ranks hold the same part: one of each is kept.
    let each = b.call("", "Split", &[&all], p.size, vec![int("axis", dim), int("num_outputs", size)]);
    let kept: Vec<&str> =
        (0..parts).filter_map(|i| each.get((i * size / parts) as usize)).map(String::as_str).collect();
    Ok(b.op("Concat", &kept, vec![int("axis", dim)]))
}

/// Rows of a table that is split over the ranks; rows of other ranks are zero.
fn vocab_gather(b: &mut Builder, p: &Place, x: &[Val]) -> Result<String> {
    let rows = x[0].ty.shape.first().and_then(Dim::as_const);
    let rows = rows.ok_or_else(|| EmitError::Operator("vocab_gather of a table of unknown extent".to_owned()))?;
    let index = b.cast(&x[1].name, x[1].ty.dtype, DType::I64)?;
    let int = |b: &mut Builder, v: i64| b.constant(&Literal::ints(DType::I64, vec![], &[v]));
    let (zero, total) = (int(b, 0)?, int(b, rows * p.size as i64)?);
    let (low, rows) = (int(b, rows * p.index as i64)?, int(b, rows)?);
    // Negative indices count from the end.
    let negative = b.op("Less", &[&index, &zero], vec![]);
    let turned = b.op("Add", &[&index, &total], vec![]);
    let wrapped = b.op("Where", &[&negative, &turned, &index], vec![]);
    let local = b.op("Sub", &[&wrapped, &low], vec![]);
    let above = b.op("GreaterOrEqual", &[&local, &zero], vec![]);
    let below = b.op("Less", &[&local, &rows], vec![]);
    let mine = b.op("And", &[&above, &below], vec![]);
    let at = b.op("Where", &[&mine, &local, &zero], vec![]);
    let found = b.op("Gather", &[&x[0].name, &at], vec![]);
    let last = b.ints(&[-1])?;
    let mine = b.op("Unsqueeze", &[&mine, &last], vec![]);
    let nothing = b.scalar(x[0].ty.dtype, 0.0)?;
    Ok(b.op("Where", &[&mine, &found, &nothing], vec![]))
}

/// A declared kernel: a local function with its body, or the body's nodes where extents of the body cannot be
/// read from the operands.
fn kernel(b: &mut Builder, p: &Place, body: &Body, x: &[Val]) -> Result<Vec<String>> {
    let names: Vec<String> = (0..x.len()).map(|i| format!("x{i}")).collect();
    let results: Vec<String> = (0..body.results.len()).map(|i| format!("y{i}")).collect();
    let operands: Vec<(&str, &Val)> = names.iter().map(String::as_str).zip(x).collect();
    let results: Vec<&str> = results.iter().map(String::as_str).collect();
    let doc = format!("The declared kernel `{}`.", body.name);
    // Functions of standard operators alone: contributed ones are for the main graph.
    let place = Place { dialect: Dialect::Standard, ..*p };
    match b.function(&body.name, &doc, &operands, &results, |b, x| steps(b, &place, body, x)) {
        Err(EmitError::Symbol(_)) => steps(b, p, body, x),
        done => done,
    }
}

fn steps(b: &mut Builder, p: &Place, body: &Body, x: &[Val]) -> Result<Vec<String>> {
    let mut values = x.to_vec();
    for s in &body.steps {
        let operands: Vec<Val> = s.inputs.iter().filter_map(|&n| values.get(n).cloned()).collect();
        let name = emit(b, p, &s.op, &operands, &[true])?.pop().unwrap_or_default();
        let ty: TensorType = s.ty.clone();
        values.push(Val { name, ty });
    }
    Ok(body.results.iter().filter_map(|&n| values.get(n)).map(|v| v.name.clone()).collect())
}
