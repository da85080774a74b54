//! Nodes that sinter's own operators do not express: they become calls of standard operators.
//!
//! A call on constants is computed at import. Extents that only execution shows become symbols of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use sinter_runtime::attr::Real;
use sinter_runtime::standard::{self, Arg, Call, Constant, Data, Kind, Known, Value};
use sinter_runtime::tensor::Tensor;

use super::context::{Context, OpError, Result, SymTensor, Val};
use super::proto::{AttributeProto, NodeProto, SparseTensorProto, TensorProto, attribute_proto::AttributeType};
use super::weights::{Store, Weight};
use super::{attrs, body, kinds};
use crate::ir::{DType, Dim, Literal, NodeId, Op, TensorType};

/// Constants of more bytes than this are not computed with at import.
const MAX_FOLD: usize = 1 << 16;
/// Sparse tensors of more elements than this are refused.
const MAX_DENSE: usize = 1 << 28;

pub(super) use sinter_runtime::standard::names;

/// Whether there is a standard operator for a node.
pub(super) fn supported(n: &NodeProto) -> bool {
    let domain = if n.domain() == "ai.onnx" { "" } else { n.domain() };
    standard::lookup(domain, n.op_type()).is_some()
}

/// Imports a node as a call. `declared` are the types that the model itself states for its results.
pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto, declared: &[Option<Kind>]) -> Result<Vec<Val>> {
    let mut call = call(cx, n)?;
    let used = n.input.iter().rposition(|i| !i.is_empty()).map_or(0, |i| i + 1);
    call.present = n.input[..used].iter().map(|i| !i.is_empty()).collect();
    let mut operands: Vec<Option<Val>> = vec![];
    for i in 0..used {
        operands.push(cx.input(n, i)?);
    }
    let captured: Vec<String> = captures(&call).map(str::to_owned).collect();
    let mut captured_vals = vec![];
    for name in &captured {
        captured_vals.push(cx.value(name)?);
    }
    let has_body = call.attrs.values().any(|v| matches!(v, Value::Graph(_)));
    if !operands.is_empty()
        && !has_body
        && let Some(results) = fold(cx, &call, &operands)?
    {
        let names = n.output.iter().filter(|o| !o.is_empty());
        let mut results =
            names.zip(results).map(|(name, d)| constant(cx, name, d)).collect::<Result<Vec<_>>>()?.into_iter();
        let empty = || Val::Sym(SymTensor { dtype: DType::I64, values: vec![], scalar: false });
        return Ok(n
            .output
            .iter()
            .map(|o| if o.is_empty() { empty() } else { results.next().unwrap_or_else(empty) })
            .collect());
    }
    let mut ids: Vec<Option<NodeId>> = vec![];
    for (i, v) in operands.iter().enumerate() {
        ids.push(match v {
            Some(v) => Some(cx.materialise(v, &n.input[i])?),
            None => None,
        });
    }
    let mut inner = vec![];
    for (name, v) in captured.iter().zip(&captured_vals) {
        inner.push(cx.materialise(v, name)?);
    }
    let describe = |cx: &Context<'_>, id: NodeId, v: &Val| {
        let values = match v {
            Val::Sym(s) => Some(s.values.clone()),
            Val::Node(_) => None,
        };
        Known { kind: cx.kind(id), values }
    };
    let known: Vec<Option<Known>> =
        ids.iter().zip(&operands).map(|(id, v)| Some(describe(cx, (*id)?, v.as_ref()?))).collect();
    let outer: Vec<Known> = inner.iter().zip(&captured_vals).map(|(id, v)| describe(cx, *id, v)).collect();
    let inferred = standard::kinds(&call, &known, &outer).map_err(|e| OpError::from(e.message))?;
    let (mut found, mut made) = (vec![], vec![]);
    for (i, name) in n.output.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
        let k = inferred.get(i).ok_or_else(|| format!("output {i} `{name}` is not supported"))?;
        let (k, ty, symbols) = complete(cx, name, k, declared.get(i).and_then(Option::as_ref))?;
        call.results.push(ty);
        made.push(symbols);
        found.push(k);
    }
    let mut inputs: Vec<NodeId> = ids.into_iter().flatten().collect();
    inputs.append(&mut inner);
    let n_results = call.results.len();
    let id = cx.add(Op::Standard { call: Arc::new(call) }, &inputs)?;
    let mut next = 0;
    let mut out = vec![];
    for o in &n.output {
        // What is not wanted is never read.
        let index = if o.is_empty() { 0 } else { next };
        next += usize::from(!o.is_empty());
        let id = if n_results == 1 { id } else { cx.add(Op::Get { index: index as i64 }, &[id])? };
        if !o.is_empty() {
            for (symbol, axis) in made.get(index).into_iter().flatten() {
                cx.shows(symbol, id, *axis);
            }
        }
        if let Some(k) = found.get(index)
            && cx.graph.node(id).ty().dtype == DType::Opaque
        {
            cx.kinds.insert(id, k.clone());
        }
        out.push(Val::Node(id));
    }
    Ok(out)
}

/// The results of a node that moves elements of small constants of eight bits, which others read as packed codes.
pub(super) fn moved_codes(cx: &mut Context<'_>, n: &NodeProto) -> Result<Option<Vec<Val>>> {
    let Some(first) = cx.input(n, 0)? else { return Ok(None) };
    if !matches!(cx.dtype_of(&first), DType::U8 | DType::I8) || !supported(n) || n.output.iter().any(String::is_empty) {
        return Ok(None);
    }
    let mut operands = vec![];
    for i in 0..n.input.len() {
        operands.push(cx.input(n, i)?);
    }
    if operands.iter().flatten().any(|v| known(cx, v).is_none()) {
        return Ok(None);
    }
    let mut call = call(cx, n)?;
    call.present = operands.iter().map(Option::is_some).collect();
    let Some(results) = fold(cx, &call, &operands)? else { return Ok(None) };
    n.output.iter().zip(results).map(|(name, d)| constant(cx, name, d)).collect::<Result<Vec<_>>>().map(Some)
}

/// Symbols of extents that only execution shows, with their axes.
type Unknown = Vec<(String, usize)>;

/// The type of a result: unknown extents get symbols of their own, which are returned with their axes.
fn complete(
    cx: &mut Context<'_>,
    name: &str,
    found: &Kind,
    declared: Option<&Kind>,
) -> Result<(Kind, TensorType, Unknown)> {
    // The declared rank is believed, its extents are not; execution checks the rank.
    let kind = match (found, declared) {
        (Kind::Unknown, Some(d)) => d.clone(),
        (Kind::Tensor(p), Some(d)) if p.shape.is_none() && d.dtype() == Some(p.dtype) => d.clone(),
        (Kind::Sequence(_) | Kind::Optional(_), Some(d)) if found.join(d).is_ok() => richer(found, d),
        _ => found.clone(),
    };
    // A tensor of a rank that only execution shows is a value of any kind until an operator or a declaration gives it one.
    let (Kind::Tensor(p), Some(shape)) = (&kind, kind.extents().cloned()) else {
        return Ok((kind, TensorType { dtype: DType::Opaque, shape: vec![] }, vec![]));
    };
    let dtype = p.dtype;
    let base: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut made = vec![];
    let mut fresh = |i: usize| {
        let name = cx.late_symbol(&base, i);
        made.push((name.clone(), i));
        Dim::sym(&name)
    };
    let shape = shape.into_iter().enumerate().map(|(i, d)| d.unwrap_or_else(|| fresh(i))).collect();
    Ok((kind, TensorType { dtype, shape }, made))
}

/// What is found about a sequence or an optional value; what is declared where nothing is.
fn richer(found: &Kind, declared: &Kind) -> Kind {
    match (found, declared) {
        (Kind::Sequence(a), Kind::Sequence(b)) => Kind::Sequence(Box::new(richer(a, b))),
        (Kind::Optional(a), Kind::Optional(b)) => Kind::Optional(Box::new(richer(a, b))),
        (Kind::Unknown, d) => d.clone(),
        (f, d) if f.extents().is_none() && f.dtype() == d.dtype() => d.clone(),
        (f, _) => f.clone(),
    }
}

/// Names of the values that the bodies of a call read from around it.
fn captures(call: &Call) -> impl Iterator<Item = &str> {
    let graphs = call.attrs.values().filter_map(|v| match v {
        Value::Graph(g) => Some(g),
        _ => None,
    });
    graphs.flat_map(|g| g.captures.iter().map(String::as_str))
}

/// The call of a node, its operands and result types aside.
pub(super) fn call(cx: &mut Context<'_>, n: &NodeProto) -> Result<Call> {
    let mut attrs = BTreeMap::new();
    for a in &n.attribute {
        attrs.insert(a.name().to_owned(), value(cx, a)?);
    }
    if n.op_type() == "SequenceEmpty" {
        // A type, as `Optional` has one.
        let code = attrs::int(n, "dtype").unwrap_or(1);
        let kind = kinds::element(code).ok_or_else(|| format!("element type {code} is not supported"))?;
        attrs.insert("dtype".to_owned(), Value::Text(kind.to_string()));
    }
    let domain = if n.domain() == "ai.onnx" { "" } else { n.domain() };
    Ok(Call {
        domain: domain.to_owned(),
        op: n.op_type().to_owned(),
        opset: cx.opset_of(domain),
        attrs,
        wanted: n.output.iter().map(|o| !o.is_empty()).collect(),
        ..Call::default()
    })
}

fn value(cx: &mut Context<'_>, a: &AttributeProto) -> Result<Value> {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    Ok(match a.r#type() {
        AttributeType::Int => Value::Int(a.i()),
        AttributeType::Float => Value::Float(Real(f64::from(a.f()))),
        AttributeType::String => Value::Text(text(a.s())),
        AttributeType::Ints => Value::Ints(a.ints.clone()),
        AttributeType::Floats => Value::Floats(a.floats.iter().map(|&v| Real(f64::from(v))).collect()),
        AttributeType::Strings => Value::Texts(a.strings.iter().map(|s| text(s)).collect()),
        AttributeType::Tensor => match &a.t {
            Some(t) => Value::Tensor(tensor(t)?),
            None => return Err(OpError::from(format!("attribute `{}` has no tensor", a.name()))),
        },
        AttributeType::Graph => match &a.g {
            Some(g) => Value::Graph(Box::new(body::program(cx, g)?)),
            None => return Err(OpError::from(format!("attribute `{}` has no graph", a.name()))),
        },
        AttributeType::TypeProto => match a.tp.as_ref().and_then(kinds::kind) {
            Some(k) => Value::Text(k.to_string()),
            None => return Err(OpError::from(format!("the type in attribute `{}` is not supported", a.name()))),
        },
        AttributeType::SparseTensor => match &a.sparse_tensor {
            Some(s) => Value::Tensor(from_weight(dense(s)?.1)),
            None => return Err(OpError::from(format!("attribute `{}` has no tensor", a.name()))),
        },
        other => {
            return Err(OpError::from(format!(
                "attribute `{}` is of the kind {other:?}, which is not supported",
                a.name()
            )));
        }
    })
}

fn from_weight(w: Weight) -> Constant {
    let shape = w.ty.shape.iter().map(|d| d.as_const().unwrap_or(0) as usize).collect();
    Constant { dtype: w.ty.dtype, shape, data: w.bytes.to_vec(), texts: vec![] }
}

/// The value of a `Constant`.
pub(super) fn constant_value(n: &NodeProto) -> Result<Constant> {
    let plain = |dtype, shape: Vec<usize>, data: Vec<u8>| Constant { dtype, shape, data, texts: vec![] };
    let strings = |shape: Vec<usize>, texts: Vec<String>| Constant { dtype: DType::Opaque, shape, data: vec![], texts };
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let a = n.attribute.first().ok_or("it has no value")?;
    Ok(match a.name() {
        "value" => tensor(a.t.as_ref().ok_or("its value is no tensor")?)?,
        "sparse_value" => from_weight(dense(a.sparse_tensor.as_ref().ok_or("its value is no sparse tensor")?)?.1),
        "value_int" => plain(DType::I64, vec![], a.i().to_le_bytes().to_vec()),
        "value_ints" => plain(DType::I64, vec![a.ints.len()], a.ints.iter().flat_map(|v| v.to_le_bytes()).collect()),
        "value_float" => plain(DType::F32, vec![], a.f().to_le_bytes().to_vec()),
        "value_floats" => {
            plain(DType::F32, vec![a.floats.len()], a.floats.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        "value_string" => strings(vec![], vec![text(a.s())]),
        "value_strings" => strings(vec![a.strings.len()], a.strings.iter().map(|s| text(s)).collect()),
        other => return Err(OpError::from(format!("a constant by `{other}` is not supported"))),
    })
}

/// A sparse tensor with all of its elements, and its name. Positions are row-major numbers, or one index per axis.
pub(super) fn dense(s: &SparseTensorProto) -> Result<(String, Weight)> {
    let mut store = Store::new(std::path::Path::new(""));
    let mut load = |t: &Option<TensorProto>, what: &str| {
        let t = t.as_ref().ok_or_else(|| OpError::from(format!("a sparse tensor has no {what}")))?;
        store.load(t).map_err(|e| OpError::from(e.to_string()))
    };
    let (values, indices) = (load(&s.values, "values")?, load(&s.indices, "indices")?);
    let name = s.values.as_ref().map_or("", |t| t.name()).to_owned();
    let wrong = |why: &str| OpError::from(format!("the sparse tensor `{name}` {why}"));
    let shape: Vec<usize> = s
        .dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| wrong("has a negative extent")))
        .collect::<Result<_>>()?;
    let size = values.ty.dtype.size();
    let n = values.bytes.len() / size;
    let total = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).filter(|t| *t <= MAX_DENSE);
    let total = total.ok_or_else(|| wrong(&format!("has more than {MAX_DENSE} elements, which is not supported")))?;
    let at = Literal { dtype: indices.ty.dtype, shape: vec![], data: indices.bytes.to_vec() }
        .to_i64()
        .ok_or_else(|| wrong("has indices that are no integers"))?;
    let width = if indices.ty.rank() == 2 { shape.len() } else { 1 };
    if at.len() != n * width {
        return Err(wrong(&format!("has {n} values and {} indices", at.len())));
    }
    let mut bytes = vec![0u8; total * size];
    for (i, v) in values.bytes.chunks_exact(size).enumerate() {
        let index = &at[i * width..(i + 1) * width];
        let place = if indices.ty.rank() == 2 {
            index
                .iter()
                .zip(&shape)
                .try_fold(0usize, |p, (&x, &d)| usize::try_from(x).ok().filter(|x| *x < d).map(|x| p * d + x))
        } else {
            usize::try_from(index[0]).ok().filter(|p| *p < total)
        };
        let p = place.ok_or_else(|| wrong("has an index outside its shape"))? * size;
        bytes[p..p + size].copy_from_slice(v);
    }
    let shape: Vec<Dim> = s.dims.iter().map(|&d| Dim::from(d)).collect();
    Ok((name.clone(), Weight::new(TensorType { dtype: values.ty.dtype, shape }, bytes.into())))
}

/// A tensor message as a constant.
pub(super) fn tensor(t: &TensorProto) -> Result<Constant> {
    let extents = || t.dims.iter().map(|&d| usize::try_from(d).map_err(|_| OpError::from(format!("extent {d}"))));
    if t.data_type() == 8 {
        let texts = t.string_data.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect();
        return Ok(Constant { dtype: DType::Opaque, shape: extents().collect::<Result<_>>()?, data: vec![], texts });
    }
    let w = Store::new(std::path::Path::new("")).load(t).map_err(|e| OpError::from(e.to_string()))?;
    let shape = extents().collect::<Result<_>>()?;
    Ok(Constant { dtype: w.ty.dtype, shape, data: w.bytes.to_vec(), texts: vec![] })
}

/// A constant tensor of strings.
pub(super) fn strings(cx: &mut Context<'_>, name: &str, value: Constant) -> Result<Val> {
    let shape = value.shape.iter().map(|&d| Some(Dim::from(d as i64))).collect();
    let call = Call {
        op: "Constant".to_owned(),
        opset: 13,
        attrs: BTreeMap::from([("value".to_owned(), Value::Tensor(value))]),
        wanted: vec![true],
        results: vec![TensorType::new(DType::Opaque, vec![])],
        ..Call::default()
    };
    let id = cx.add(Op::Standard { call: Arc::new(call) }, &[])?;
    cx.graph.node_mut(id).name = name.to_owned();
    cx.kinds.insert(id, Kind::Strings(Some(shape)));
    Ok(Val::Node(id))
}

/// The results of a call whose operands are all small constants.
fn fold(cx: &mut Context<'_>, call: &Call, operands: &[Option<Val>]) -> Result<Option<Vec<Data>>> {
    let mut data = vec![];
    for v in operands.iter().flatten() {
        match known(cx, v) {
            Some(d) => data.push(d),
            None => return Ok(None),
        }
    }
    let args: Vec<Arg<'_>> = data.iter().map(Data::arg).collect();
    let results = match standard::with_limit(MAX_FOLD, || standard::run(call, &args)) {
        Ok(results) => results,
        Err(e) if e.too_large => return Ok(None),
        Err(e) => return Err(OpError::from(e.message)),
    };
    let small = |d: &Data| match d {
        Data::Tensor(t) => t.dtype.is_core() && t.bytes().len() <= MAX_FOLD,
        _ => false,
    };
    Ok(results.iter().all(small).then_some(results))
}

/// The data of a small constant.
fn known(cx: &Context<'_>, v: &Val) -> Option<Data> {
    let literal = match v {
        Val::Sym(s) => {
            let ints = s.ints()?;
            Literal::ints(s.dtype, if s.scalar { vec![] } else { vec![ints.len()] }, &ints)
        }
        Val::Node(id) => match &cx.graph.node(*id).op {
            Op::Const { value } => value.clone(),
            Op::Weight { name, .. } => {
                let w = cx.weight(name).filter(|w| w.random.is_none() && w.bytes.len() <= MAX_FOLD)?;
                let shape = w.ty.shape.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect::<Option<_>>()?;
                Literal { dtype: w.ty.dtype, shape, data: w.bytes.to_vec() }
            }
            _ => return None,
        },
    };
    Tensor::from_literal(&literal).ok().map(Data::from)
}

/// A computed constant as a value of the import.
fn constant(cx: &mut Context<'_>, name: &str, d: Data) -> Result<Val> {
    let Data::Tensor(t) = d else { return Err(OpError::from("a constant that is no tensor of numbers")) };
    let shape: Vec<Dim> = t.shape.iter().map(|&d| Dim::from(d as i64)).collect();
    let ty = TensorType { dtype: t.dtype, shape };
    Ok(cx.define_constant(name, Weight::new(ty, t.bytes().to_vec().into())))
}
