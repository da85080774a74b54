//! Nodes that sinter's own operators do not express: they become calls of standard operators.
//!
//! A call on constants is computed at import. Extents that only execution shows become symbols of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use sinter_runtime::attr::Real;
use sinter_runtime::standard::{self, Arg, Call, Constant, Data, Operand, Partial, Value};
use sinter_runtime::tensor::Tensor;

use super::context::{Context, OpError, Result, SymTensor, Val};
use super::proto::{AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType};
use super::weights::{Store, Weight};
use crate::ir::{DType, Dim, Literal, NodeId, Op, TensorType};

/// Constants of more bytes than this are not computed with at import.
const MAX_FOLD: usize = 1 << 16;

pub(super) use sinter_runtime::standard::names;

/// Whether there is a standard operator for a node.
pub(super) fn supported(n: &NodeProto) -> bool {
    standard::lookup(n.domain(), n.op_type()).is_some()
}

/// Imports a node as a call. `declared` are the types that the model itself states for its results.
pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto, declared: &[Option<Partial>]) -> Result<Vec<Val>> {
    let entry = standard::lookup(n.domain(), n.op_type()).ok_or("there is no such operator")?;
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
    if !operands.is_empty()
        && captured.is_empty()
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
    let types: Vec<Option<TensorType>> = ids.iter().map(|id| id.map(|id| cx.ty(id).clone())).collect();
    let views: Vec<Option<Operand<'_>>> = types
        .iter()
        .zip(&operands)
        .map(|(ty, v)| {
            let values = match v {
                Some(Val::Sym(s)) => Some(&s.values[..]),
                _ => None,
            };
            ty.as_ref().map(|ty| Operand { ty, values })
        })
        .collect();
    let inferred = (entry.infer)(&call, &views).map_err(|e| OpError::from(e.message))?;
    for (i, name) in n.output.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
        let found = inferred.get(i).ok_or_else(|| format!("output {i} `{name}` is not supported"))?;
        call.results.push(complete(cx, name, found, declared.get(i).and_then(Option::as_ref))?);
    }
    let mut inputs: Vec<NodeId> = ids.into_iter().flatten().collect();
    for (name, v) in captured.iter().zip(&captured_vals) {
        inputs.push(cx.materialise(v, name)?);
    }
    let n_results = call.results.len();
    let id = cx.add(Op::Standard { call: Arc::new(call) }, &inputs)?;
    let mut next = 0;
    let mut out = vec![];
    for o in &n.output {
        // What is not wanted is never read.
        let index = if o.is_empty() { 0 } else { next };
        next += i64::from(!o.is_empty());
        out.push(Val::Node(if n_results == 1 { id } else { cx.add(Op::Get { index }, &[id])? }));
    }
    Ok(out)
}

/// The type of a result: unknown extents get symbols of their own.
fn complete(cx: &mut Context<'_>, name: &str, found: &Partial, declared: Option<&Partial>) -> Result<TensorType> {
    let shape = match (&found.shape, declared.and_then(|d| d.shape.as_ref())) {
        (Some(s), _) => s.clone(),
        // The declared rank is believed, its extents are not; execution checks the rank.
        (None, Some(s)) => vec![None; s.len()],
        (None, None) => {
            return Err(OpError::from(format!(
                "the rank of `{name}` depends on data, and the model does not declare it"
            )));
        }
    };
    let base: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let shape = shape.into_iter().enumerate().map(|(i, d)| d.unwrap_or_else(|| cx.late_symbol(&base, i))).collect();
    Ok(TensorType { dtype: found.dtype, shape })
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
fn call(cx: &mut Context<'_>, n: &NodeProto) -> Result<Call> {
    let mut attrs = BTreeMap::new();
    for a in &n.attribute {
        if let Some(v) = value(a)? {
            attrs.insert(a.name().to_owned(), v);
        }
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

fn value(a: &AttributeProto) -> Result<Option<Value>> {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    Ok(Some(match a.r#type() {
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
        AttributeType::Graph => return Err(OpError::from(format!("the body `{}` is not supported", a.name()))),
        AttributeType::TypeProto => return Ok(None),
        other => {
            return Err(OpError::from(format!(
                "attribute `{}` is of the kind {other:?}, which is not supported",
                a.name()
            )));
        }
    }))
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
    let results = standard::run(call, &args).map_err(|e| OpError::from(e.message))?;
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
                let w = cx.weight(name).filter(|w| w.bytes.len() <= MAX_FOLD)?;
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
    Ok(cx.define_constant(name, Weight { ty, bytes: t.bytes().to_vec().into() }))
}
