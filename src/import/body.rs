//! Bodies of control flow as programs of standard operators.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sinter_runtime::standard::{Constant, Program, ProgramNode, Value};

use super::context::{Context, OpError, Result};
use super::functions::Body;
use super::proto::{GraphProto, NodeProto};
use super::weights::Weight;
use super::{inline, kinds, node_name, qualified, standard};
use crate::ir::{Dim, TensorType};

/// Constants of bodies of more bytes than this are weights of the model.
const MAX_CONSTANT: usize = 1 << 10;

/// Collects the calls of a body.
struct Builder {
    program: Program,
    /// Names that have a value in the body.
    local: BTreeSet<String>,
    /// Names of the model that stand for others.
    alias: HashMap<String, String>,
    captured: BTreeSet<String>,
}

/// The program of a body.
pub(super) fn program(cx: &mut Context<'_>, g: &GraphProto) -> Result<Program> {
    inline::enter(cx, g.name().to_owned(), false)?;
    let result = build(cx, g);
    inline::leave(cx);
    result
}

fn build(cx: &mut Context<'_>, g: &GraphProto) -> Result<Program> {
    let mut b = Builder {
        program: Program::default(),
        local: BTreeSet::new(),
        alias: HashMap::new(),
        captured: BTreeSet::new(),
    };
    for i in &g.input {
        b.local.insert(i.name().to_owned());
        b.program.inputs.push(i.name().to_owned());
    }
    for t in &g.initializer {
        let value = standard::tensor(t)?;
        b.constant(cx, t.name(), value)?;
    }
    for i in super::topological_order(&g.node).map_err(|e| OpError::from(e.to_string()))? {
        b.node(cx, &g.node[i])?;
    }
    for o in &g.output {
        let name = b.read(o.name());
        b.program.outputs.push(name);
        b.program.declared.push(kinds::declared(o).unwrap_or_default().to_string());
    }
    Ok(b.program)
}

impl Builder {
    /// The name in the program under which a value of the model is read.
    fn read(&mut self, name: &str) -> String {
        let name = self.alias.get(name).map_or(name, String::as_str).to_owned();
        if !self.local.contains(&name) && self.captured.insert(name.clone()) {
            self.program.captures.push(name.clone());
        }
        name
    }

    fn define(&mut self, name: &str) -> Result<()> {
        if self.local.insert(name.to_owned()) {
            Ok(())
        } else {
            Err(OpError::from(format!("`{name}` is defined twice")))
        }
    }

    /// A constant of the body; a large one becomes a weight of the model that the body captures.
    fn constant(&mut self, cx: &mut Context<'_>, name: &str, value: Constant) -> Result<()> {
        if value.data.len() <= MAX_CONSTANT {
            self.define(name)?;
            self.program.constants.insert(name.to_owned(), value);
            return Ok(());
        }
        let weight = cx.names.fresh(format!("{name}/weight"));
        let shape: Vec<Dim> = value.shape.iter().map(|&d| Dim::from(d as i64)).collect();
        let w = Weight::new(TensorType::new(value.dtype, shape), value.data.into());
        let v = cx.define_constant(&weight, w);
        cx.define(&weight, v).map_err(|e| OpError::from(e.to_string()))?;
        self.alias.insert(name.to_owned(), weight);
        Ok(())
    }

    fn node(&mut self, cx: &mut Context<'_>, n: &NodeProto) -> Result<()> {
        let at = |e: OpError| {
            if e.inside || !e.fallback && e.conflict.is_none() {
                return e;
            }
            OpError { message: format!("in `{}` ({}): {}", node_name(n), qualified(n), e.message), inside: true, ..e }
        };
        if let Some(f) = cx.functions.called(n)
            && !(n.domain() == "com.microsoft" && standard::supported(n))
        {
            return self.call(cx, f, n).map_err(at);
        }
        if n.op_type() == "Constant" && matches!(n.domain(), "" | "ai.onnx") {
            let name = n.output.first().map_or("", String::as_str);
            let value = standard::constant_value(n).map_err(at)?;
            return self.constant(cx, name, value).map_err(at);
        }
        if !standard::supported(n) {
            return Err(at(OpError::from("the operator is not supported in the body of another")));
        }
        let mut call = standard::call(cx, n).map_err(at)?;
        let used = n.input.iter().rposition(|i| !i.is_empty()).map_or(0, |i| i + 1);
        call.present = n.input[..used].iter().map(|i| !i.is_empty()).collect();
        let mut inputs: Vec<String> = vec![];
        for name in n.input.iter().filter(|i| !i.is_empty()) {
            inputs.push(self.read(name));
        }
        // Bodies within this one name what they capture as the model does.
        for v in call.attrs.values_mut() {
            let Value::Graph(inner) = v else { continue };
            let mut renamed = BTreeMap::new();
            for c in &mut inner.captures {
                let name = self.read(c);
                if name != *c {
                    renamed.insert(std::mem::replace(c, name.clone()), name.clone());
                }
                inputs.push(name);
            }
            if !renamed.is_empty() {
                rename(inner, &renamed);
            }
        }
        let mut outputs = vec![];
        for o in n.output.iter().filter(|o| !o.is_empty()) {
            self.define(o).map_err(at)?;
            outputs.push(o.clone());
        }
        self.program.nodes.push(ProgramNode { call, inputs, outputs });
        Ok(())
    }

    /// The nodes of a function in place of its call.
    fn call(&mut self, cx: &mut Context<'_>, f: &super::proto::FunctionProto, n: &NodeProto) -> Result<()> {
        inline::enter(cx, inline::title(f), true)?;
        inline::count(cx, f.node.len())?;
        let opsets = inline::opsets_of(cx, f)?;
        let prefix = match node_name(n) {
            "" => n.op_type(),
            name => name,
        };
        let inlined = Body::function(f, n).inline(&mut cx.names, prefix, &n.input)?;
        let saved = cx.enter_opsets(opsets);
        let done = inlined.nodes.iter().try_for_each(|n| self.node(cx, n));
        cx.enter_opsets(saved);
        inline::leave(cx);
        done?;
        if n.output.len() > inlined.outputs.len() {
            return Err(OpError::from(format!(
                "it has {} results, the function {}",
                n.output.len(),
                inlined.outputs.len()
            )));
        }
        for (o, inner) in n.output.iter().zip(&inlined.outputs).filter(|(o, _)| !o.is_empty()) {
            let name = self.alias.get(inner).unwrap_or(inner).clone();
            self.alias.insert(o.clone(), name);
        }
        Ok(())
    }
}

/// Other names for values that a body reads from around it.
fn rename(p: &mut Program, names: &BTreeMap<String, String>) {
    let local: BTreeSet<&String> =
        p.inputs.iter().chain(p.constants.keys()).chain(p.nodes.iter().flat_map(|n| &n.outputs)).collect();
    let names: BTreeMap<String, String> =
        names.iter().filter(|(old, _)| !local.contains(old)).map(|(a, b)| (a.clone(), b.clone())).collect();
    let change = |name: &mut String| {
        if let Some(new) = names.get(name) {
            name.clone_from(new);
        }
    };
    for n in &mut p.nodes {
        n.inputs.iter_mut().for_each(change);
        for v in n.call.attrs.values_mut() {
            if let Value::Graph(inner) = v {
                inner.captures.iter_mut().for_each(change);
                rename(inner, &names);
            }
        }
    }
    p.outputs.iter_mut().for_each(change);
}
