//! Builds ONNX nodes: the main graph of a file, or the body of a local function.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use sinter_runtime::standard::{Constant, Kind};

use super::versions::{NATIVE, Opsets};
use super::{EmitError, Result};
use crate::import;
use crate::import::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
};
use crate::ir::{DType, Dim, Literal, TensorType, unique_name};

/// The domain of local functions.
pub(super) const DOMAIN: &str = "sinter";
/// The domain of ONNX Runtime's contributed operators.
pub(super) const CONTRIB: &str = "com.microsoft";
/// A value of the file: its name and its type.
#[derive(Clone, Debug)]
pub(super) struct Val {
    pub(super) name: String,
    pub(super) ty: TensorType,
}

/// Nodes under construction.
#[derive(Default)]
pub(super) struct Builder {
    /// The nodes so far, in topological order.
    pub(super) nodes: Vec<NodeProto>,
    /// Small constants, inline.
    pub(super) initializers: Vec<TensorProto>,
    /// Bodies of local functions by name.
    pub(super) functions: Vec<FunctionProto>,
    /// Where the extent behind a symbol is read: value and axis.
    pub(super) symbols: BTreeMap<String, (String, usize)>,
    /// Opsets by domain.
    pub(super) opsets: Opsets,
    /// What values are that are no tensors of numbers of a known rank.
    pub(super) kinds: BTreeMap<String, Kind>,
    /// Set in the body of a function or of control flow, where constants are nodes.
    is_function: bool,
    /// Values whose elements are finite numbers, whatever the inputs are.
    pub(super) finite: BTreeSet<String>,
    /// Attributes that the body refers to, with the values of the call.
    params: Vec<(String, f32)>,
    taken: BTreeSet<String>,
    /// Constants, chains of shape arithmetic and masks by what they are.
    cache: BTreeMap<String, String>,
    cached: BTreeSet<String>,
    /// First part of the names that are made up.
    pub(super) hint: String,
}

impl Builder {
    /// An empty main graph.
    pub(super) fn new(opsets: Opsets) -> Builder {
        Builder { opsets, ..Builder::default() }
    }

    /// Whether the opset has norms and rotary embeddings.
    pub(super) fn is_native(&self) -> bool {
        self.opsets.of("") >= NATIVE
    }

    /// Remembers where an extent can be read.
    pub(super) fn symbol(&mut self, symbol: &str, value: &str, axis: usize) {
        self.symbols.entry(symbol.to_owned()).or_insert((value.to_owned(), axis));
    }

    /// Keeps a name from being made up.
    pub(super) fn reserve(&mut self, name: &str) -> bool {
        self.taken.insert(name.to_owned())
    }

    /// Whether every element of a value is known to be a finite number.
    pub(super) fn is_finite(&self, name: &str) -> bool {
        self.finite.contains(name)
    }

    /// A name that nothing has yet.
    pub(super) fn unique(&mut self, base: &str) -> String {
        unique_name(&mut self.taken, base)
    }

    /// Adds a node with one result.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.call("", op, inputs, 1, attributes).pop().unwrap_or_default()
    }

    /// Adds a node with `n` results.
    pub(super) fn call(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        n: usize,
        attributes: Vec<AttributeProto>,
    ) -> Vec<String> {
        let base = format!("{}.{op}", self.hint);
        let outputs: Vec<String> = (0..n).map(|_| self.unique(&base)).collect();
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&s| s.to_owned()).collect(),
            output: outputs.clone(),
            op_type: Some(op.to_owned()),
            domain: (!domain.is_empty()).then(|| domain.to_owned()),
            attribute: attributes,
            ..NodeProto::default()
        });
        outputs
    }

    /// A value that is made once.
    pub(super) fn once(
        &mut self,
        key: String,
        name: &str,
        make: impl FnOnce(&mut Builder) -> Result<String>,
    ) -> Result<String> {
        if let Some(found) = self.cache.get(&key) {
            return Ok(found.clone());
        }
        let hint = std::mem::replace(&mut self.hint, name.to_owned());
        let made = make(self);
        self.hint = hint;
        let made = made?;
        self.cache.insert(key, made.clone());
        self.cached.insert(made.clone());
        Ok(made)
    }

    /// Adds nodes to a body in place of the graph, and gives them. What is made once in the body is not known behind it.
    pub(super) fn scope<T>(&mut self, make: impl FnOnce(&mut Builder) -> Result<T>) -> Result<(Vec<NodeProto>, T)> {
        // A body has its constants itself: it is whole wherever it is put.
        let is_function = std::mem::replace(&mut self.is_function, true);
        let nodes = std::mem::take(&mut self.nodes);
        let (cache, cached) = (std::mem::take(&mut self.cache), std::mem::take(&mut self.cached));
        let made = make(self);
        let inner = std::mem::replace(&mut self.nodes, nodes);
        (self.cache, self.cached, self.is_function) = (cache, cached, is_function);
        Ok((inner, made?))
    }

    /// Gives the result `from` of the nodes that were added since `start` another name; false where it is not
    /// theirs alone.
    pub(super) fn rename(&mut self, start: usize, from: &str, to: &str) -> bool {
        let made = |n: &NodeProto| n.output.iter().any(|o| o == from);
        if self.cached.contains(from) || !self.nodes[start..].iter().any(made) {
            return false;
        }
        for n in &mut self.nodes[start..] {
            n.input.iter_mut().chain(&mut n.output).filter(|s| *s == from).for_each(|s| to.clone_into(s));
            let bodies = n.attribute.iter_mut().filter_map(|a| a.g.as_mut());
            bodies.for_each(|g| rename_within(g, from, to));
        }
        if let Some(kind) = self.kinds.remove(from) {
            self.kinds.insert(to.to_owned(), kind);
        }
        self.symbols.values_mut().filter(|(s, _)| s == from).for_each(|(s, _)| to.clone_into(s));
        true
    }

    /// A constant tensor.
    pub(super) fn constant(&mut self, value: &Literal) -> Result<String> {
        let data_type = data_type(value.dtype)?;
        let key = format!("literal {value}");
        self.once(key, &format!("const.{}", value.dtype), |b| {
            let mut t = TensorProto {
                dims: value.shape.iter().map(|&d| d as i64).collect(),
                data_type: Some(data_type),
                raw_data: Some(Bytes::from(raw(value.dtype, &value.data))),
                ..TensorProto::default()
            };
            if b.is_function {
                return Ok(b.op("Constant", &[], vec![tensor("value", t)]));
            }
            let name = b.unique(&b.hint.clone());
            t.name = Some(name.clone());
            b.initializers.push(t);
            Ok(name)
        })
    }

    /// A vector of integers.
    pub(super) fn ints(&mut self, values: &[i64]) -> Result<String> {
        self.constant(&Literal::ints(DType::I64, vec![values.len()], values))
    }

    /// A scalar.
    pub(super) fn scalar(&mut self, dtype: DType, value: f64) -> Result<String> {
        self.constant(&Literal::scalar(dtype, value))
    }

    /// A number that a function takes as an attribute, as a scalar of a type.
    pub(super) fn param(&mut self, name: &str, dtype: DType, value: f64) -> Result<String> {
        // Attributes are binary32.
        if !self.is_function || dtype == DType::F64 {
            return self.scalar(dtype, value);
        }
        if !self.params.iter().any(|(n, _)| n == name) {
            self.params.push((name.to_owned(), value as f32));
        }
        self.once(format!("param {name} {dtype}"), name, |b| {
            let reference = AttributeProto {
                name: Some("value_float".to_owned()),
                ref_attr_name: Some(name.to_owned()),
                r#type: Some(AttributeType::Float as i32),
                ..AttributeProto::default()
            };
            let x = b.op("Constant", &[], vec![reference]);
            b.cast(&x, DType::F32, dtype)
        })
    }

    /// A value as another element type.
    pub(super) fn cast(&mut self, x: &str, from: DType, to: DType) -> Result<String> {
        if from == to {
            return Ok(x.to_owned());
        }
        Ok(self.op("Cast", &[x], vec![int("to", data_type(to)?.into())]))
    }

    /// Calls the local function with a body, which is written down on its first use. `operands` have types, so
    /// that the body can tell what to compute; their names in it are those of `names`.
    pub(super) fn function(
        &mut self,
        name: &str,
        doc: &str,
        operands: &[(&str, &Val)],
        results: &[&str],
        body: impl FnOnce(&mut Builder, &[Val]) -> Result<Vec<String>>,
    ) -> Result<Vec<String>> {
        let mut inner =
            Builder { is_function: true, opsets: self.opsets.clone(), hint: "v".to_owned(), ..Builder::default() };
        let mut inside = vec![];
        for (n, v) in operands {
            inner.reserve(n);
            inside.push(Val { name: (*n).to_owned(), ty: v.ty.clone() });
            for (axis, d) in v.ty.shape.iter().enumerate() {
                if let Some(s) = d.as_sym() {
                    inner.symbols.entry(s.to_owned()).or_insert(((*n).to_owned(), axis));
                }
            }
        }
        let made = body(&mut inner, &inside)?;
        for (from, to) in made.iter().zip(results) {
            if !inner.reserve(to) || !inner.rename(0, from, to) {
                let attributes = vec![];
                let copy = inner.op("Identity", &[from], attributes);
                inner.rename(0, &copy, to);
            }
        }
        inner.tidy_names();
        let mut f = FunctionProto {
            domain: Some(DOMAIN.to_owned()),
            doc_string: Some(doc.to_owned()),
            input: operands.iter().map(|(n, _)| (*n).to_owned()).collect(),
            output: results.iter().map(|n| (*n).to_owned()).collect(),
            attribute: inner.params.iter().map(|(n, _)| n.clone()).collect(),
            opset_import: opsets(inner.nodes.iter(), &inner.opsets),
            node: inner.nodes,
            ..FunctionProto::default()
        };
        // Functions of the body are functions of the file.
        for g in inner.functions {
            if !self.functions.contains(&g) {
                self.functions.push(g);
            }
        }
        // The same name with another body is another variant.
        let mut variant = 1;
        let called = loop {
            let called = if variant == 1 { name.to_owned() } else { format!("{name}_{variant}") };
            f.name = Some(called.clone());
            match self.functions.iter().find(|g| g.name == f.name) {
                None => {
                    self.functions.push(f);
                    break called;
                }
                Some(g) if *g == f => break called,
                Some(_) => variant += 1,
            }
        };
        let attributes = inner.params.iter().map(|(n, v)| float(n, *v)).collect();
        let inputs: Vec<&str> = operands.iter().map(|(_, v)| v.name.as_str()).collect();
        Ok(self.call(DOMAIN, &called, &inputs, results.len(), attributes))
    }

    /// Short names for the values inside a function.
    fn tidy_names(&mut self) {
        let made: Vec<String> = self.nodes.iter().flat_map(|n| n.output.iter().cloned()).collect();
        for (i, from) in made.iter().filter(|n| n.contains('.')).enumerate() {
            let to = format!("v{i}");
            for n in &mut self.nodes {
                n.input.iter_mut().chain(&mut n.output).filter(|s| *s == from).for_each(|s| to.clone_into(s));
            }
        }
    }

    /// An extent as a vector of one element.
    pub(super) fn extent(&mut self, d: &Dim) -> Result<String> {
        if let Some(n) = d.as_const() {
            return self.ints(&[n]);
        }
        self.once(format!("extent {d}"), "dim", |b| {
            if let Some(s) = d.as_sym() {
                let (value, axis) = b.symbols.get(s).cloned().ok_or_else(|| EmitError::Symbol(s.to_owned()))?;
                let axis = axis as i64;
                return Ok(b.op("Shape", &[&value], vec![int("start", axis), int("end", axis + 1)]));
            }
            let mut sum: Option<String> = None;
            let terms = d.products();
            // The constant comes last, negative terms become differences.
            let (mut terms, constants): (Vec<_>, Vec<_>) = terms.into_iter().partition(|(_, f)| !f.is_empty());
            terms.sort_by_key(|(c, _)| *c < 0);
            for (c, factors) in terms.iter().chain(&constants) {
                let mut product: Option<String> = None;
                let magnitude = if sum.is_some() { c.abs() } else { *c };
                if magnitude != 1 || factors.is_empty() {
                    product = Some(b.ints(&[magnitude])?);
                }
                for f in factors {
                    let v = b.factor(f)?;
                    product = Some(match product {
                        None => v,
                        Some(p) => b.op("Mul", &[&v, &p], vec![]),
                    });
                }
                let product = product.unwrap_or_default();
                sum = Some(match sum {
                    None => product,
                    Some(s) => b.op(if *c < 0 { "Sub" } else { "Add" }, &[&s, &product], vec![]),
                });
            }
            sum.ok_or_else(|| EmitError::Symbol(d.to_string()))
        })
    }

    fn factor(&mut self, f: &crate::ir::Factor) -> Result<String> {
        use crate::ir::Factor as F;
        match f {
            F::Symbol(s) => self.extent(&Dim::sym(s)),
            // Operands that are no less than zero are rounded down by ONNX too.
            F::Floor(a, b) if a.is_natural() && b.is_natural() => self.pair("Div", a, b),
            F::Div(a, b) => self.pair("Div", a, b),
            F::Join(a, b) => {
                let (x, y) = (self.extent(a)?, self.extent(b)?);
                let one = self.ints(&[1])?;
                let is_one = self.op("Equal", &[&x, &one], vec![]);
                Ok(self.op("Where", &[&is_one, &y, &x], vec![]))
            }
            F::Floor(a, b) => {
                // Exact for either sign: the remainder has the sign of the divisor.
                let (x, y) = (self.extent(a)?, self.extent(b)?);
                let rest = self.op("Mod", &[&x, &y], vec![]);
                let whole = self.op("Sub", &[&x, &rest], vec![]);
                Ok(self.op("Div", &[&whole, &y], vec![]))
            }
            F::Mod(a, b) => self.pair("Mod", a, b),
            F::Min(a, b) => self.pair("Min", a, b),
            F::Max(a, b) => self.pair("Max", a, b),
        }
    }

    fn pair(&mut self, op: &str, a: &Dim, b: &Dim) -> Result<String> {
        let (x, y) = (self.extent(a)?, self.extent(b)?);
        Ok(self.op(op, &[&x, &y], vec![]))
    }

    /// An extent as a scalar.
    pub(super) fn extent_scalar(&mut self, d: &Dim) -> Result<String> {
        if let Some(n) = d.as_const() {
            return self.constant(&Literal::ints(DType::I64, vec![], &[n]));
        }
        let vector = self.extent(d)?;
        self.once(format!("scalar {d}"), "dim", |b| {
            let axes = b.ints(&[0])?;
            Ok(b.op("Squeeze", &[&vector, &axes], vec![]))
        })
    }

    /// Extents as a vector.
    pub(super) fn extents(&mut self, dims: &[Dim]) -> Result<String> {
        if let Some(all) = dims.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>() {
            return self.ints(&all);
        }
        self.once(format!("extents {dims:?}"), "shape", |b| {
            // Neighbouring constants are one operand.
            let mut parts: Vec<String> = vec![];
            let mut run: Vec<i64> = vec![];
            for d in dims {
                match d.as_const() {
                    Some(n) => run.push(n),
                    None => {
                        if !run.is_empty() {
                            parts.push(b.ints(&std::mem::take(&mut run))?);
                        }
                        parts.push(b.extent(d)?);
                    }
                }
            }
            if !run.is_empty() {
                parts.push(b.ints(&run)?);
            }
            if let [one] = &parts[..] {
                return Ok(one.clone());
            }
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            Ok(b.op("Concat", &parts, vec![int("axis", 0)]))
        })
    }
}

/// The operator sets that nodes use.
pub(super) fn opsets<'a>(nodes: impl Iterator<Item = &'a NodeProto>, versions: &Opsets) -> Vec<OperatorSetIdProto> {
    let mut domains: BTreeSet<&str> = BTreeSet::from([""]);
    nodes.for_each(|n| {
        each_node(n, &mut |n| {
            domains.insert(n.domain());
        })
    });
    domains
        .into_iter()
        .map(|d| OperatorSetIdProto { domain: Some(d.to_owned()), version: Some(versions.of(d)) })
        .collect()
}

/// A node and those of its bodies.
pub(super) fn each_node<'a>(n: &'a NodeProto, visit: &mut dyn FnMut(&'a NodeProto)) {
    visit(n);
    for g in n.attribute.iter().filter_map(|a| a.g.as_ref()) {
        g.node.iter().for_each(|inner| each_node(inner, visit));
    }
}

/// Another name for a value that bodies read; their own values have names of their own.
fn rename_within(g: &mut GraphProto, from: &str, to: &str) {
    for n in &mut g.node {
        n.input.iter_mut().filter(|s| *s == from).for_each(|s| to.clone_into(s));
        n.attribute.iter_mut().filter_map(|a| a.g.as_mut()).for_each(|g| rename_within(g, from, to));
    }
}

/// The ONNX number of an element type.
pub(super) fn data_type(dtype: DType) -> Result<i32> {
    import::data_type(dtype).ok_or(EmitError::DType(dtype))
}

/// The data of a tensor as ONNX files hold it: elements of less than a byte share bytes.
fn raw(dtype: DType, data: &[u8]) -> Vec<u8> {
    let Some(bits) = import::packed_bits(dtype) else { return data.to_vec() };
    let mut out = vec![];
    super::packed::pack(bits, data, &mut out);
    out
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

pub(super) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

pub(super) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

pub(super) fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.as_bytes().to_vec()), ..attribute(name, AttributeType::String) }
}

pub(super) fn floats(name: &str, values: impl Iterator<Item = f32>) -> AttributeProto {
    AttributeProto { floats: values.collect(), ..attribute(name, AttributeType::Floats) }
}

pub(super) fn strings(name: &str, values: &[String]) -> AttributeProto {
    let values = values.iter().map(|s| s.as_bytes().to_vec()).collect();
    AttributeProto { strings: values, ..attribute(name, AttributeType::Strings) }
}

/// An attribute that is a tensor, of strings too.
pub(super) fn constant_tensor(name: &str, c: &Constant) -> Result<AttributeProto> {
    let mut value = TensorProto { dims: c.shape.iter().map(|&d| d as i64).collect(), ..TensorProto::default() };
    if c.dtype == DType::Opaque {
        value.data_type = Some(import::STRING);
        value.string_data = c.texts.iter().map(|s| s.as_bytes().to_vec()).collect();
    } else {
        value.data_type = Some(data_type(c.dtype)?);
        value.raw_data = Some(Bytes::from(raw(c.dtype, &c.data)));
    }
    Ok(tensor(name, value))
}

/// An attribute that is a type.
pub(super) fn type_value(name: &str, value: TypeProto) -> AttributeProto {
    AttributeProto { tp: Some(value), ..attribute(name, AttributeType::TypeProto) }
}

/// An attribute that is a graph.
pub(super) fn graph_value(name: &str, value: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(value), ..attribute(name, AttributeType::Graph) }
}

/// A body: operands and results have names, and types where they are known.
pub(super) fn graph(
    name: &str,
    inputs: Vec<ValueInfoProto>,
    nodes: Vec<NodeProto>,
    outputs: Vec<ValueInfoProto>,
) -> GraphProto {
    GraphProto { name: Some(name.to_owned()), node: nodes, input: inputs, output: outputs, ..GraphProto::default() }
}

/// A node.
pub(super) fn node(
    domain: &str,
    op: &str,
    inputs: &[String],
    outputs: &[String],
    attributes: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        input: inputs.to_vec(),
        output: outputs.to_vec(),
        op_type: Some(op.to_owned()),
        domain: (!domain.is_empty()).then(|| domain.to_owned()),
        attribute: attributes,
        ..NodeProto::default()
    }
}

fn tensor(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(value), ..attribute(name, AttributeType::Tensor) }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind as i32), ..AttributeProto::default() }
}
