//! Executes the bodies of control flow: calls one after the other, each value freed after its last use.

use std::collections::{BTreeSet, HashMap};
use std::sync::OnceLock;

use super::kind::{self, Kind, Known};
use super::{Arg, Data, Program, ProgramNode, StandardError};
use crate::dim::Dim;
use crate::dtype::{DType, element_i64};

type Result<T> = std::result::Result<T, StandardError>;

/// Where a body keeps a value.
type Slot = usize;

/// A body with its names resolved, to be executed any number of times.
pub(super) struct Prepared<'p> {
    slots: usize,
    inputs: Vec<Slot>,
    captures: Vec<Slot>,
    constants: Vec<(Slot, Data)>,
    nodes: Vec<Node<'p>>,
    outputs: Vec<Slot>,
    /// Results of the nodes that give the same in every round.
    same: OnceLock<Vec<(Slot, Data)>>,
}

struct Node<'p> {
    node: &'p ProgramNode,
    inputs: Vec<Slot>,
    outputs: Vec<Slot>,
    /// Whether it reads constants and captured values alone, directly or through others that do.
    same: bool,
    /// Values that are not read any more.
    free: Vec<Slot>,
}

/// A value during execution.
enum Value<'a> {
    None,
    /// Lent by the caller.
    Lent(Arg<'a>),
    /// A constant or a result.
    Own(Data),
}

impl ProgramNode {
    /// What it makes, for messages.
    fn describe(&self) -> String {
        format!("{} that makes `{}`", self.call.title(), self.outputs.first().map_or("", String::as_str))
    }
}

impl<'p> Prepared<'p> {
    /// Resolves names. The error names a value that is read before it exists, or defined twice.
    pub(super) fn new(p: &'p Program) -> Result<Prepared<'p>> {
        let mut slots: HashMap<&str, Slot> = HashMap::new();
        let define = |name: &'p str, slots: &mut HashMap<&'p str, Slot>| {
            let n = slots.len();
            match slots.insert(name, n) {
                None => Ok(n),
                Some(_) => Err(StandardError::new(format!("`{name}` is defined twice in a body"))),
            }
        };
        let inputs = p.inputs.iter().map(|n| define(n, &mut slots)).collect::<Result<Vec<_>>>()?;
        let captures = p.captures.iter().map(|n| define(n, &mut slots)).collect::<Result<Vec<_>>>()?;
        let mut constants = vec![];
        for (name, c) in &p.constants {
            constants.push((define(name, &mut slots)?, Data::constant(c)?));
        }
        let find = |name: &str, slots: &HashMap<&str, Slot>| {
            let missing = || StandardError::new(format!("`{name}` is read in a body before it has a value"));
            slots.get(name).copied().ok_or_else(missing)
        };
        let mut nodes = vec![];
        let mut same: BTreeSet<Slot> = captures.iter().chain(constants.iter().map(|(s, _)| s)).copied().collect();
        for node in &p.nodes {
            let inputs = node.inputs.iter().map(|n| find(n, &slots)).collect::<Result<Vec<_>>>()?;
            let outputs = node.outputs.iter().map(|n| define(n, &mut slots)).collect::<Result<Vec<_>>>()?;
            let keeps = node.call.is_function() && inputs.iter().all(|s| same.contains(s));
            if keeps {
                same.extend(&outputs);
            }
            nodes.push(Node { node, inputs, outputs, same: keeps, free: vec![] });
        }
        let outputs = p.outputs.iter().map(|n| find(n, &slots)).collect::<Result<Vec<_>>>()?;
        let mut last: Vec<Option<usize>> = vec![None; slots.len()];
        for (i, n) in nodes.iter().enumerate() {
            n.inputs.iter().chain(&n.outputs).for_each(|&s| last[s] = Some(i));
        }
        // Constants and lent values cost nothing to keep; results of the body stay.
        for s in inputs.iter().chain(&captures).chain(constants.iter().map(|(s, _)| s)).chain(&outputs) {
            last[*s] = None;
        }
        for (s, i) in last.iter().enumerate().filter_map(|(s, i)| Some((s, (*i)?))) {
            nodes[i].free.push(s);
        }
        Ok(Prepared { slots: slots.len(), inputs, captures, constants, nodes, outputs, same: OnceLock::new() })
    }

    /// Number of formal operands.
    pub(super) fn arity(&self) -> usize {
        self.inputs.len()
    }

    /// Executes the body. All rounds capture the same values.
    pub(super) fn run(&self, inputs: Vec<Data>, captured: &[Arg<'_>]) -> Result<Vec<Data>> {
        if inputs.len() != self.inputs.len() || captured.len() != self.captures.len() {
            return Err(StandardError::new(format!(
                "a body with {} operands and {} captured values is given {} and {}",
                self.inputs.len(),
                self.captures.len(),
                inputs.len(),
                captured.len()
            )));
        }
        let mut values: Vec<Value<'_>> = (0..self.slots).map(|_| Value::None).collect();
        self.inputs.iter().zip(inputs).for_each(|(&s, d)| values[s] = Value::Own(d));
        self.captures.iter().zip(captured).for_each(|(&s, a)| values[s] = Value::Lent(*a));
        self.constants.iter().for_each(|(s, d)| values[*s] = Value::Lent(d.arg()));
        let known = self.same.get();
        known.into_iter().flatten().for_each(|(s, d)| values[*s] = Value::Own(d.clone()));
        let mut found = vec![];
        for n in self.nodes.iter().filter(|n| known.is_none() || !n.same) {
            let error =
                |e: StandardError| StandardError::new(format!("in a body, the {}: {}", n.node.describe(), e.message));
            let results = n.compute(&values).map_err(error)?;
            if results.len() != n.outputs.len() {
                return Err(error(StandardError::new(format!("it makes {} results", results.len()))));
            }
            for (&s, d) in n.outputs.iter().zip(results) {
                if n.same && known.is_none() {
                    found.push((s, d.clone()));
                }
                values[s] = Value::Own(d);
            }
            n.free.iter().for_each(|&s| values[s] = Value::None);
        }
        if known.is_none() {
            let _ = self.same.set(found);
        }
        let result = |&s: &Slot| match &values[s] {
            Value::Own(d) => Ok(d.clone()),
            Value::Lent(a) => a.to_data(),
            Value::None => Err(StandardError::new("a result of a body has no value")),
        };
        self.outputs.iter().map(result).collect()
    }
}

impl Node<'_> {
    fn compute(&self, values: &[Value<'_>]) -> Result<Vec<Data>> {
        let call = &self.node.call;
        // A copy by name needs no copy of the data.
        if let ("Identity", "", [s]) = (call.op.as_str(), call.domain.as_str(), &self.inputs[..])
            && let Value::Own(d) = &values[*s]
        {
            return Ok(vec![d.clone()]);
        }
        let operands: Vec<Arg<'_>> = self
            .inputs
            .iter()
            .map(|&s| match &values[s] {
                Value::Own(d) => Ok(d.arg()),
                Value::Lent(a) => Ok(*a),
                Value::None => Err(StandardError::new("an operand has no value")),
            })
            .collect::<Result<_>>()?;
        super::run(call, &operands)
    }
}

/// The kinds of a body's results, given those of its operands and of what it captures.
pub(super) fn body_kinds(p: &Program, inputs: &[Known], captured: &[Known]) -> Result<Vec<Kind>> {
    let mut known: HashMap<&str, Known> = HashMap::new();
    known.extend(p.inputs.iter().map(String::as_str).zip(inputs.iter().cloned()));
    known.extend(p.captures.iter().map(String::as_str).zip(captured.iter().cloned()));
    for (name, c) in &p.constants {
        let shape: Vec<Option<Dim>> = c.shape.iter().map(|&d| Some(Dim::from(d as i64))).collect();
        if c.dtype == DType::Opaque {
            known.insert(name, Kind::Strings(Some(shape)).into());
            continue;
        }
        let integers = !c.dtype.is_float() && !c.dtype.is_minifloat() && c.shape.len() <= 1;
        let values = integers.then(|| {
            c.data.chunks_exact(c.dtype.size()).map(|b| Dim::from(element_i64(c.dtype, b))).collect::<Vec<_>>()
        });
        let kind = Kind::Tensor(super::Partial { dtype: c.dtype, shape: Some(shape) });
        known.insert(name, Known { kind, values });
    }
    for n in &p.nodes {
        let mut names = n.inputs.iter();
        let mut at = vec![];
        for &present in &n.call.present {
            at.push(if present {
                Some(names.next().and_then(|n| known.get(n.as_str())).cloned().unwrap_or_default())
            } else {
                None
            });
        }
        let inner: Vec<Known> = names.map(|n| known.get(n.as_str()).cloned().unwrap_or_default()).collect();
        let found = kind::kinds(&n.call, &at, &inner)
            .map_err(|e| StandardError::new(format!("in a body, the {}: {}", n.describe(), e.message)))?;
        let wanted = n.call.wanted.iter().zip(found.into_iter().chain(std::iter::repeat(Kind::Unknown)));
        let results = wanted.filter(|(w, _)| **w).map(|(_, k)| k);
        known.extend(n.outputs.iter().map(String::as_str).zip(results.map(Known::from)));
    }
    let declared = |i: usize| p.declared.get(i).and_then(|t| Kind::parse(t));
    let result = |(i, o): (usize, &String)| {
        let found = known.get(o.as_str()).map(|k| k.kind.clone()).unwrap_or_default();
        // The declared rank of a result is believed, its extents are not.
        match (&found, declared(i)) {
            (Kind::Unknown, Some(d)) => d.keep(&|_| false),
            (Kind::Tensor(p), Some(d)) if p.shape.is_none() && d.dtype() == Some(p.dtype) => d.keep(&|_| false),
            _ => found,
        }
    };
    Ok(p.outputs.iter().enumerate().map(result).collect())
}
