//! Calls of standard operators as nodes of the file's opsets, with their bodies.

use std::collections::BTreeMap;

use sinter_runtime::standard::{Call, Constant, Kind, Known, Program, Value, kinds};

use super::builder::{
    Builder, Val, constant_tensor, data_type, float, floats, graph, graph_value, int, ints, node, string, strings,
    type_value,
};
use super::convert::{Draft, Operand, Refusal, convert};
use super::{EmitError, Result, versions};
use crate::import::STRING;
use crate::import::proto::{
    AttributeProto, GraphProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto::Dimension,
    tensor_shape_proto::dimension, type_proto,
};
use crate::ir::{DType, Literal};

/// Adds the node of a call.
pub(super) fn standard(b: &mut Builder, call: &Call, x: &[Val]) -> Result<Vec<String>> {
    let known = |b: &Builder, v: &Val| match v.ty.dtype {
        DType::Opaque => b.kinds.get(&v.name).cloned().unwrap_or_default(),
        _ => Kind::of(&v.ty),
    };
    let all: Vec<Operand> = x.iter().map(|v| Operand { name: v.name.clone(), kind: known(b, v) }).collect();
    let own = call.present.iter().filter(|p| **p).count().min(all.len());
    let (operands, captured) = all.split_at(own);
    let found = write(b, call, operands, captured)?;
    let mut out: Vec<String> = vec![];
    for (r, t) in found.into_iter().zip(&call.results) {
        if t.dtype == DType::Opaque {
            b.kinds.insert(r.name.clone(), r.kind);
        }
        // Extents that only execution shows are read from the results.
        for (axis, d) in t.shape.iter().enumerate() {
            if let Some(s) = d.as_sym() {
                b.symbol(s, &r.name, axis);
            }
        }
        out.push(r.name);
    }
    Ok(out)
}

/// Adds the node of a call: the results that something reads.
fn write(b: &mut Builder, call: &Call, operands: &[Operand], captured: &[Operand]) -> Result<Vec<Operand>> {
    let refuse = |why: String| EmitError::Version { op: call.title(), opset: call.opset, why };
    let mut rest = operands.iter();
    let inputs: Vec<Operand> = call
        .present
        .iter()
        .map(|p| if *p { rest.next().cloned().unwrap_or_default() } else { Operand::default() })
        .collect();
    let found = result_kinds(call, &inputs, captured);
    let mut attributes = vec![];
    let mut outer = captured.iter();
    for (name, v) in &call.attrs {
        attributes.push(match v {
            Value::Graph(p) => {
                let read: Vec<Operand> = outer.by_ref().take(p.captures.len()).cloned().collect();
                graph_value(name, body(b, name, p, &formal_kinds(call, &inputs), &read)?)
            }
            other => attribute(call, name, other)?,
        });
    }
    let mut d =
        Draft { op: call.op.clone(), inputs, attributes, wanted: call.wanted.clone(), grows: false, after: vec![] };
    let known = versions::history(&call.domain, &call.op).is_some();
    if known {
        if versions::meant(call) == versions::OLDEST && call.domain.is_empty() {
            // Hints to the runtimes of old, without a meaning.
            d.attributes.retain(|a| !matches!(a.name(), "consumed_inputs" | "is_test"));
        }
        let to = b.opsets.of(&call.domain);
        convert(b, &mut d, &call.domain, versions::meant(call), to).map_err(|e| match e {
            Refusal::Why(why) => refuse(why),
            Refusal::Error(e) => e,
        })?;
    }
    while d.inputs.last().is_some_and(|i| i.name.is_empty()) {
        d.inputs.pop();
    }
    let names: Vec<&str> = d.inputs.iter().map(|i| i.name.as_str()).collect();
    let mut results = b.call(&call.domain, &d.op, &names, d.wanted.len(), d.attributes);
    if let (true, Some(n)) = (known, b.nodes.last()) {
        let version = versions::at(&call.domain, &d.op, b.opsets.of(&call.domain));
        version.ok_or_else(|| versions::NONE.to_owned()).and_then(|v| v.check(n)).map_err(refuse)?;
    }
    for after in d.after {
        after(b, &mut results)?;
    }
    let mut out = vec![];
    for (i, name) in results.into_iter().enumerate().filter(|(i, _)| call.wants(*i)) {
        out.push(Operand { name, kind: found.get(i).cloned().unwrap_or_default() });
    }
    Ok(out)
}

/// What the results are, as far as it is known.
fn result_kinds(call: &Call, inputs: &[Operand], captured: &[Operand]) -> Vec<Kind> {
    let known = |o: &Operand| Known::from(o.kind.clone());
    let x: Vec<Option<Known>> = inputs.iter().map(|o| (!o.name.is_empty()).then(|| known(o))).collect();
    let outer: Vec<Known> = captured.iter().map(known).collect();
    // A model that was imported has operands that fit; what cannot be told here is not needed.
    kinds(call, &x, &outer).unwrap_or_default()
}

/// What is known of the operands of a call's bodies: types, and no extents.
fn formal_kinds(call: &Call, inputs: &[Operand]) -> Vec<Kind> {
    let loose = |o: &Operand| o.kind.with(None);
    match (call.domain.as_str(), call.op.as_str()) {
        ("", "Loop") => {
            let own = [Kind::scalar(DType::I64), Kind::scalar(DType::Bool)];
            own.into_iter().chain(inputs.iter().skip(2).map(loose)).collect()
        }
        // The operands of opset 8 begin with sequence lengths.
        ("", "Scan") => inputs.iter().skip(usize::from(call.opset < 9)).map(loose).collect(),
        ("", "SequenceMap") => {
            let element = |o: &Operand| match &o.kind {
                Kind::Sequence(k) => k.with(None),
                other => other.with(None),
            };
            inputs.iter().map(element).collect()
        }
        _ => vec![],
    }
}

fn attribute(call: &Call, name: &str, value: &Value) -> Result<AttributeProto> {
    Ok(match value {
        Value::Int(v) => int(name, *v),
        Value::Float(v) => float(name, v.0 as f32),
        // Types are kept as texts.
        Value::Text(v) if (call.op.as_str(), name) == ("SequenceEmpty", "dtype") => {
            int(name, i64::from(element_type(&Kind::parse(v).unwrap_or_default())?))
        }
        Value::Text(v) if (call.op.as_str(), name) == ("Optional", "type") => {
            type_value(name, type_of(&Kind::parse(v).unwrap_or_default())?)
        }
        Value::Text(v) => string(name, v),
        Value::Ints(v) => ints(name, v),
        Value::Floats(v) => floats(name, v.iter().map(|r| r.0 as f32)),
        Value::Texts(v) => strings(name, v),
        Value::Tensor(c) => constant_tensor(name, c)?,
        Value::Graph(_) => return Err(EmitError::Operator(format!("{} with a body", call.title()))),
    })
}

/// A body; `inputs` is what is known of its operands, `captured` what it reads from around it.
fn body(b: &mut Builder, name: &str, p: &Program, inputs: &[Kind], captured: &[Operand]) -> Result<GraphProto> {
    let hint = b.hint.clone();
    let formal: Vec<String> = p.inputs.iter().map(|n| b.unique(&format!("{hint}.{n}"))).collect();
    let mut values: BTreeMap<&str, Operand> = BTreeMap::new();
    values.extend(p.captures.iter().map(String::as_str).zip(captured.iter().cloned()));
    for (i, (n, made)) in p.inputs.iter().zip(&formal).enumerate() {
        values.insert(n, Operand { name: made.clone(), kind: inputs.get(i).cloned().unwrap_or_default() });
    }
    let (mut nodes, mut results) = b.scope(|b| {
        for (n, c) in &p.constants {
            values.insert(n, constant(b, c)?);
        }
        for n in &p.nodes {
            let missing = || EmitError::Operator(format!("{} that reads a value without a definition", n.call.title()));
            let read: Option<Vec<Operand>> = n.inputs.iter().map(|i| values.get(i.as_str()).cloned()).collect();
            let read = read.ok_or_else(missing)?;
            let own = n.call.present.iter().filter(|p| **p).count().min(read.len());
            b.hint = format!("{hint}.{}", n.outputs.first().map_or(n.call.op.as_str(), String::as_str));
            let made = write(b, &n.call, &read[..own], &read[own..])?;
            values.extend(n.outputs.iter().map(String::as_str).zip(made));
        }
        let missing = |n: &String| EmitError::Operator(format!("a body without its result `{n}`"));
        p.outputs
            .iter()
            .map(|n| values.get(n.as_str()).cloned().ok_or_else(|| missing(n)))
            .collect::<Result<Vec<Operand>>>()
    })?;
    b.hint = hint;
    // Results are made by nodes of the body, each by one of its own.
    for i in 0..results.len() {
        let name = results[i].name.clone();
        let made = nodes.iter().any(|n| n.output.contains(&name));
        if !made || results[..i].iter().any(|r| r.name == name) {
            let copy = b.unique(&format!("{}.result", b.hint));
            nodes.push(node("", "Identity", &[name], std::slice::from_ref(&copy), vec![]));
            results[i].name = copy;
        }
    }
    for n in &mut nodes {
        n.name = n.output.iter().find(|o| !o.is_empty()).cloned();
    }
    let inputs = formal.iter().enumerate().map(|(i, n)| info(n, inputs.get(i))).collect();
    // Extents of results are left to the rounds.
    let declared = |i: usize| p.declared.get(i).and_then(|t| Kind::parse(t)).unwrap_or_default();
    let outputs = results
        .iter()
        .enumerate()
        .map(|(i, r)| {
            let found = Some(&r.kind).filter(|k| **k != Kind::Unknown);
            info(&r.name, Some(&found.unwrap_or(&declared(i)).with(None)))
        })
        .collect();
    Ok(graph(name, inputs, nodes, outputs))
}

/// The declaration of a value of a body, with its type where that is known.
fn info(name: &str, kind: Option<&Kind>) -> ValueInfoProto {
    let r#type = kind.and_then(|k| type_of(k).ok());
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

/// A constant of a body.
fn constant(b: &mut Builder, c: &Constant) -> Result<Operand> {
    let shape = c.shape.iter().map(|&d| Some((d as i64).into())).collect();
    if c.dtype == DType::Opaque {
        let name = b.op("Constant", &[], vec![constant_tensor("value", c)?]);
        return Ok(Operand { name, kind: Kind::Strings(Some(shape)) });
    }
    let name = b.constant(&Literal { dtype: c.dtype, shape: c.shape.clone(), data: c.data.clone() })?;
    Ok(Operand { name, kind: Kind::scalar(c.dtype).with(Some(shape)) })
}

/// ONNX's number of the element type of a tensor.
fn element_type(kind: &Kind) -> Result<i32> {
    match kind {
        Kind::Tensor(p) => data_type(p.dtype),
        Kind::Strings(_) => Ok(STRING),
        other => Err(EmitError::Operator(format!("a value of the type {other}"))),
    }
}

/// A kind as a type of ONNX.
pub(super) fn type_of(kind: &Kind) -> Result<TypeProto> {
    let inner = |k: &Kind| Ok::<_, EmitError>(Some(Box::new(type_of(k)?)));
    let value = match kind {
        Kind::Sequence(k) => type_proto::Value::SequenceType(Box::new(type_proto::Sequence { elem_type: inner(k)? })),
        Kind::Optional(k) => type_proto::Value::OptionalType(Box::new(type_proto::Optional { elem_type: inner(k)? })),
        tensor => {
            let dim = |d: &Option<crate::ir::Dim>| Dimension {
                value: d.as_ref().map(|d| match d.as_const() {
                    Some(n) => dimension::Value::DimValue(n),
                    None => dimension::Value::DimParam(d.to_string()),
                }),
                ..Dimension::default()
            };
            let shape = tensor.extents().map(|e| TensorShapeProto { dim: e.iter().map(dim).collect() });
            type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(element_type(tensor)?), shape })
        }
    };
    Ok(TypeProto { value: Some(value), ..TypeProto::default() })
}
