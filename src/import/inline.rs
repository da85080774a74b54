//! Calls of local functions, and control flow whose course is known at import: its bodies join the graph.

use super::attrs;
use super::context::{Context, OpError, Result, SymTensor, Val};
use super::functions::{self, Body, Inlined, MAX_DEPTH, MAX_NODES, Opsets};
use super::proto::{FunctionProto, GraphProto, NodeProto, attribute_proto::AttributeType};
use super::{node_name, ops, qualified};
use crate::ir::{DType, Dim, NodeId, Op, Shape};

/// All unrolled loops of a model together add at most this many nodes; a loop beyond that is executed as a loop.
pub(super) const MAX_UNROLLED: usize = 4096;

/// What has been inlined so far.
#[derive(Default)]
pub(super) struct Progress {
    nodes: usize,
    unrolled: usize,
    /// The functions and bodies that the node at hand is in.
    within: Vec<String>,
}

/// Imports a node by the nodes of its body, where it has one whose course is known.
pub(super) fn inline(cx: &mut Context<'_>, n: &NodeProto) -> Result<bool> {
    let depth = cx.progress.within.len();
    let result = attempt(cx, n);
    cx.progress.within.truncate(depth);
    result
}

fn attempt(cx: &mut Context<'_>, n: &NodeProto) -> Result<bool> {
    if let Some(f) = cx.functions.called(n) {
        // What sinter's own importers understand says more than the nodes that define it.
        if n.domain() == "com.microsoft" && ops::supported(n) {
            match cx.import_plain(n) {
                Ok(()) => return Ok(true),
                Err(e) if e.conflict.is_some() => return Err(e),
                Err(_) => {}
            }
        }
        return call(cx, f, n).map(|()| true);
    }
    if !matches!(n.domain(), "" | "ai.onnx") {
        return Ok(false);
    }
    match n.op_type() {
        "If" => branch(cx, n),
        "Loop" => unroll(cx, n),
        _ => Ok(false),
    }
}

fn prefix(n: &NodeProto) -> String {
    match node_name(n) {
        "" => n.op_type().to_owned(),
        name => name.to_owned(),
    }
}

/// The attribute that is a graph.
pub(super) fn graph<'n>(n: &'n NodeProto, name: &str) -> Result<&'n GraphProto> {
    let found = n.attribute.iter().find(|a| a.name() == name && a.r#type() == AttributeType::Graph);
    found.and_then(|a| a.g.as_ref()).ok_or_else(|| OpError::from(format!("attribute `{name}` is missing")))
}

/// The operator sets by which the body of a function is read.
pub(super) fn opsets_of(cx: &Context<'_>, f: &FunctionProto) -> Result<Opsets> {
    let mut all = functions::opsets(&f.opset_import);
    // What the function does not state, the model does.
    let missing: Vec<_> = cx.opsets.iter().filter(|(d, _)| !all.contains_key(*d)).collect();
    all.extend(missing.into_iter().map(|(d, v)| (d.clone(), *v)));
    let v = all.get("").copied().unwrap_or(0);
    if !(super::MIN_OPSET..=super::MAX_OPSET).contains(&v) {
        return Err(OpError::from(format!(
            "the function `{}` uses opset {v} of the default domain; this version reads opsets {} to {}",
            f.name(),
            super::MIN_OPSET,
            super::MAX_OPSET
        )));
    }
    Ok(all)
}

/// Enters a function or a body. The error says that it calls itself, or goes too deep.
pub(super) fn enter(cx: &mut Context<'_>, name: String, is_function: bool) -> Result<()> {
    let within = &mut cx.progress.within;
    if is_function && within.contains(&name) {
        return Err(OpError::fatal(format!("the function `{name}` calls itself, which ONNX does not allow")));
    }
    if within.len() >= MAX_DEPTH {
        return Err(OpError::fatal(format!("functions and bodies are nested deeper than {MAX_DEPTH}")));
    }
    within.push(name);
    Ok(())
}

pub(super) fn leave(cx: &mut Context<'_>) {
    cx.progress.within.pop();
}

/// Counts nodes that functions add.
pub(super) fn count(cx: &mut Context<'_>, n: usize) -> Result<()> {
    cx.progress.nodes += n;
    if cx.progress.nodes > MAX_NODES {
        return Err(OpError::fatal(functions::too_large()));
    }
    Ok(())
}

/// A name for a function that no other has.
pub(super) fn title(f: &FunctionProto) -> String {
    let overload = if f.overload().is_empty() { String::new() } else { format!("#{}", f.overload()) };
    match f.domain() {
        "" | "ai.onnx" => format!("{}{overload}", f.name()),
        d => format!("{d}::{}{overload}", f.name()),
    }
}

fn call(cx: &mut Context<'_>, f: &FunctionProto, n: &NodeProto) -> Result<()> {
    enter(cx, title(f), true)?;
    count(cx, f.node.len())?;
    let opsets = opsets_of(cx, f)?;
    let inlined = Body::function(f, n).inline(&mut cx.names, &prefix(n), &n.input)?;
    let saved = cx.enter_opsets(opsets);
    let done = nodes(cx, &inlined);
    cx.enter_opsets(saved);
    leave(cx);
    done?;
    define(cx, n, &inlined.outputs)
}

/// Imports the nodes of a body.
fn nodes(cx: &mut Context<'_>, body: &Inlined<'_>) -> Result<()> {
    for (name, t) in &body.initializers {
        let v = cx.constant(name, t)?;
        cx.define(name, v).map_err(|e| OpError::from(e.to_string()))?;
    }
    for (name, v) in &body.declared {
        if let Some(k) = super::kinds::declared(v) {
            cx.declared.insert(name.clone(), k);
        }
    }
    for n in &body.nodes {
        cx.import_node(n).map_err(|e| {
            let inputs = cx.describe_inputs(n);
            let message = if e.inside {
                e.message
            } else {
                format!("in `{}` ({}): {}; inputs: {inputs}", node_name(n), qualified(n), e.message)
            };
            OpError { message, inside: true, ..e }
        })?;
    }
    Ok(())
}

/// Gives the results of a body the names of the node's.
fn define(cx: &mut Context<'_>, n: &NodeProto, outputs: &[String]) -> Result<()> {
    if n.output.len() > outputs.len() {
        return Err(OpError::from(format!("it has {} results, its body {}", n.output.len(), outputs.len())));
    }
    for (name, inner) in n.output.iter().zip(outputs).filter(|(n, _)| !n.is_empty()) {
        let v = cx.value(inner)?;
        cx.define(name, v).map_err(|e| OpError::from(e.to_string()))?;
    }
    Ok(())
}

/// The value of a condition or count, where it is a known integer.
fn known(cx: &mut Context<'_>, n: &NodeProto, i: usize) -> Result<Option<i64>> {
    Ok(match cx.input(n, i)? {
        Some(Val::Sym(s)) => match s.ints().as_deref() {
            Some([v]) => Some(*v),
            _ => None,
        },
        Some(Val::Node(id)) => match &cx.graph.node(id).op {
            Op::Const { value } => value.to_i64().filter(|v| v.len() == 1).map(|v| v[0]),
            _ => None,
        },
        None => None,
    })
}

fn branch(cx: &mut Context<'_>, n: &NodeProto) -> Result<bool> {
    let Some(condition) = known(cx, n, 0)? else { return Ok(false) };
    let g = graph(n, if condition != 0 { "then_branch" } else { "else_branch" })?;
    enter(cx, prefix(n), false)?;
    let inlined = Body::graph(g).inline(&mut cx.names, &prefix(n), &[])?;
    let done = nodes(cx, &inlined);
    leave(cx);
    done?;
    define(cx, n, &inlined.outputs)?;
    Ok(true)
}

/// Whether a body makes a condition that is true as long as the one that it gets is.
fn always_goes_on(g: &GraphProto) -> bool {
    let Some(mut name) = g.output.first().map(|o| o.name()) else { return false };
    let is_true = |t: &super::proto::TensorProto| {
        super::read_tensor(t).is_ok_and(|(d, _, bytes)| d == DType::Bool && bytes[..] == [1])
    };
    for _ in 0..=g.node.len() {
        if g.input.get(1).is_some_and(|i| i.name() == name) {
            return true;
        }
        if let Some(t) = g.initializer.iter().find(|t| t.name() == name) {
            return is_true(t);
        }
        match g.node.iter().find(|n| n.output.first().is_some_and(|o| o == name)) {
            Some(n) if n.op_type() == "Identity" && !n.input.is_empty() => name = &n.input[0],
            Some(n) if n.op_type() == "Constant" => return attrs::tensor(n, "value").is_some_and(is_true),
            _ => return false,
        }
    }
    false
}

/// Writes out a loop of few rounds, so that rules see its body.
fn unroll(cx: &mut Context<'_>, n: &NodeProto) -> Result<bool> {
    let g = graph(n, "body")?;
    let Some(trips) = known(cx, n, 0)? else { return Ok(false) };
    let condition = match n.input.get(1).map(String::as_str) {
        None | Some("") => 1,
        Some(_) => match known(cx, n, 1)? {
            Some(c) => c,
            None => return Ok(false),
        },
    };
    let trips = if condition == 0 { 0 } else { usize::try_from(trips).unwrap_or(0) };
    let carried = g.input.len().saturating_sub(2);
    let scans = g.output.len().saturating_sub(1 + carried);
    let cost = trips.saturating_mul(functions::size(g).max(1));
    if g.output.len() != 1 + carried + scans
        || n.input.len() < 2 + carried
        || trips > 1 && !always_goes_on(g)
        || n.output.len() > carried + scans
        || trips == 0 && scans > 0
        || cx.progress.unrolled.saturating_add(cost) > MAX_UNROLLED
    {
        return Ok(false);
    }
    cx.progress.unrolled += cost;
    enter(cx, prefix(n), false)?;
    let found = rounds(cx, n, g, trips);
    leave(cx);
    let results = match found {
        Ok(results) => results,
        Err(e) if e.conflict.is_some() || !e.fallback => return Err(e),
        // The loop itself may do what its rounds one by one do not.
        Err(_) => return Ok(false),
    };
    for (o, v) in n.output.iter().zip(results).filter(|(o, _)| !o.is_empty()) {
        cx.define(o, v).map_err(|e| OpError::from(e.to_string()))?;
    }
    Ok(true)
}

/// The results of a loop of so many rounds.
fn rounds(cx: &mut Context<'_>, n: &NodeProto, g: &GraphProto, trips: usize) -> Result<Vec<Val>> {
    let carried = g.input.len() - 2;
    let mut state: Vec<String> = n.input[2..2 + carried].to_vec();
    let mut scans: Vec<Vec<NodeId>> = vec![vec![]; g.output.len() - 1 - carried];
    for i in 0..trips {
        let prefix = format!("{}/{i}", prefix(n));
        let mut operands = vec![];
        for (what, dtype, value) in [("iteration", DType::I64, i as i64), ("condition", DType::Bool, 1)] {
            let name = cx.names.fresh(format!("{prefix}/{what}"));
            let v = Val::Sym(SymTensor { dtype, values: vec![Dim::from(value)], scalar: true });
            cx.define(&name, v).map_err(|e| OpError::from(e.to_string()))?;
            operands.push(name);
        }
        operands.append(&mut state);
        let inlined = Body::graph(g).inline(&mut cx.names, &prefix, &operands)?;
        nodes(cx, &inlined)?;
        state = inlined.outputs[1..=carried].to_vec();
        for (all, name) in scans.iter_mut().zip(&inlined.outputs[1 + carried..]) {
            let id = cx.node_of(name)?;
            if cx.ty(id).dtype == DType::Opaque {
                return Err(OpError::from("it stacks what is no tensor of numbers"));
            }
            all.push(id);
        }
    }
    let mut out = vec![];
    for name in &state {
        out.push(cx.value(name)?);
    }
    for all in scans {
        let mut parts = vec![];
        for id in all {
            let mut shape: Shape = cx.shape(id);
            shape.insert(0, Dim::from(1));
            parts.push(cx.reshape(id, shape)?);
        }
        let id = if parts.len() == 1 { parts[0] } else { cx.add(Op::Concat { axis: 0 }, &parts)? };
        out.push(Val::Node(id));
    }
    Ok(out)
}
