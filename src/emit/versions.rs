//! What ONNX's schemas say of each version of each operator: `schemas.txt`, which `make schemas` generates.
//!
//! The table tells which versions mean the same by themselves. What changes otherwise is said in `convert.rs`; what
//! neither says is refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use sinter_runtime::plan::Plan;
use sinter_runtime::standard::{Call, Value};

use super::{EmitError, Result};
use crate::import::proto::{AttributeProto, NodeProto, attribute_proto::AttributeType};
use crate::ir::{DType, Op};

/// The opset of the default domain in files, unless a model needs a newer one.
pub(super) const OPSET: i64 = 21;
/// The opset in files for models that need as much themselves: it has norms and rotary embeddings of its own.
pub(super) const NATIVE: i64 = 23;
/// Versions before this one are those of opset 7: the importer admits older operators only where they mean the same.
pub(super) const OLDEST: i64 = 7;

/// One version of an operator.
#[derive(Debug)]
pub(super) struct Schema {
    /// First opset in which it holds.
    pub(super) since: i64,
    /// Whether opsets from here on lack the operator.
    pub(super) deprecated: bool,
    inputs: Vec<Parameter>,
    outputs: Vec<Parameter>,
    attributes: Vec<Attribute>,
    /// The element types that stand behind the names in parameters; `@N` is a set that the first lines of the table define.
    types: Vec<(&'static str, &'static str)>,
    /// Digest of the documentation.
    digest: &'static str,
}

/// Whether an operand must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Single,
    Optional,
    Variadic,
}

/// An operand or result.
#[derive(Clone, Copy, Debug)]
struct Parameter {
    presence: Presence,
    /// An element type, or a name of several.
    ty: &'static str,
}

impl PartialEq for Parameter {
    /// Element types may differ.
    fn eq(&self, other: &Parameter) -> bool {
        self.presence == other.presence
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Attribute {
    name: &'static str,
    kind: &'static str,
    required: bool,
    default: Option<&'static str>,
}

/// What is known about a step from one version to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Operands, attributes, defaults and the documentation are the same; element types may differ.
    Same,
    /// The interface is the same, the documentation is not.
    Reworded,
    /// The interface differs, or the operator is gone.
    Changed,
}

/// By domain, then by operator.
type Table = HashMap<&'static str, HashMap<&'static str, Vec<Schema>>>;

/// The table as it is generated.
const TEXT: &str = include_str!("schemas.txt");

/// All versions of an operator, oldest first.
pub(super) fn history(domain: &str, op: &str) -> Option<&'static [Schema]> {
    static TABLE: LazyLock<Table> = LazyLock::new(|| parse(TEXT));
    TABLE.get(domain)?.get(op).map(Vec::as_slice)
}

/// The version of an operator in an opset.
pub(super) fn at(domain: &str, op: &str, opset: i64) -> Option<&'static Schema> {
    history(domain, op)?.iter().rev().find(|s| s.since <= opset)
}

/// Lines that do not fit are left out; a test finds them.
fn parse(text: &'static str) -> Table {
    let mut table = Table::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[domain, name, since, inputs, outputs, attributes, types, digest] = &fields[..] else { continue };
        let (since, deprecated) = since.strip_prefix('-').map_or((since, false), |s| (s, true));
        let Ok(since) = since.parse() else { continue };
        let parameter = |p: &'static str| {
            let presence = match p.as_bytes().first() {
                Some(b'?') => Presence::Optional,
                Some(b'*') => Presence::Variadic,
                _ => Presence::Single,
            };
            Parameter { presence, ty: p.rsplit(':').next().unwrap_or_default() }
        };
        let schema = Schema {
            since,
            deprecated,
            inputs: inputs.split_whitespace().map(parameter).collect(),
            outputs: outputs.split_whitespace().map(parameter).collect(),
            attributes: attributes.split_whitespace().filter_map(attribute).collect(),
            types: types.split_whitespace().filter_map(|t| t.split_once('=')).collect(),
            digest,
        };
        table.entry(domain).or_default().entry(name).or_default().push(schema);
    }
    table
}

fn attribute(text: &'static str) -> Option<Attribute> {
    let (name, rest) = text.split_once(':')?;
    let (kind, default) = rest.split_once('=').map_or((rest, None), |(k, d)| (k, Some(d)));
    let (name, required) = name.strip_prefix('!').map_or((name, false), |n| (n, true));
    Some(Attribute { name, kind, required, default })
}

impl Schema {
    /// What distinguishes the next version from this one.
    pub(super) fn step(&self, next: &Schema) -> Step {
        if next.deprecated
            || (&self.inputs, &self.outputs, &self.attributes) != (&next.inputs, &next.outputs, &next.attributes)
        {
            Step::Changed
        } else if self.digest != next.digest {
            Step::Reworded
        } else {
            Step::Same
        }
    }

    /// Whether an operand may have an element type.
    fn takes(&self, position: usize, dtype: DType) -> bool {
        static SETS: LazyLock<HashMap<&str, &str>> =
            LazyLock::new(|| TEXT.lines().filter(|l| l.starts_with('@')).filter_map(|l| l.split_once('\t')).collect());
        let last = self.inputs.last().filter(|p| p.presence == Presence::Variadic);
        let Some(p) = self.inputs.get(position).or(last) else { return false };
        let set = self.types.iter().find(|(name, _)| *name == p.ty).map_or(p.ty, |(_, set)| set);
        SETS.get(set).copied().unwrap_or(set).split(',').any(|t| t == dtype.name())
    }

    /// Whether all operands of which the element type is known may have it.
    fn takes_all(&self, n: &NodeProto, dtype: &dyn Fn(&str) -> Option<DType>) -> bool {
        n.input.iter().enumerate().all(|(i, name)| dtype(name).is_none_or(|d| self.takes(i, d)))
    }

    /// Whether a node has the form of this version: the error says what is wrong.
    pub(super) fn check(&self, n: &NodeProto) -> Result<(), String> {
        if self.deprecated {
            return Err("the operator is gone".to_owned());
        }
        count("operands", &self.inputs, &n.input)?;
        count("results", &self.outputs, &n.output)?;
        for a in &n.attribute {
            let Some(known) = self.attributes.iter().find(|k| k.name == a.name()) else {
                return Err(format!("there is no attribute `{}`", a.name()));
            };
            if kind(a) != Some(known.kind) {
                return Err(format!("attribute `{}` is no {}", a.name(), known.kind));
            }
        }
        match self.attributes.iter().find(|k| k.required && n.attribute.iter().all(|a| a.name() != k.name)) {
            Some(k) => Err(format!("attribute `{}` is missing", k.name)),
            None => Ok(()),
        }
    }
}

fn count(what: &str, formal: &[Parameter], names: &[String]) -> Result<(), String> {
    let variadic = formal.last().is_some_and(|p| p.presence == Presence::Variadic);
    if names.len() > formal.len() && !variadic {
        return Err(format!("it has {} {what}, {} are the most", names.len(), formal.len()));
    }
    // Results need not be read.
    let missing = |(i, p): (usize, &Parameter)| {
        p.presence == Presence::Single && names.get(i).is_none_or(|n| n.is_empty() && what == "operands")
    };
    match formal.iter().enumerate().position(missing) {
        Some(i) => Err(format!("{what}: number {i} is missing")),
        None => Ok(()),
    }
}

/// The name of an attribute's kind in the table.
fn kind(a: &AttributeProto) -> Option<&'static str> {
    Some(match AttributeType::try_from(a.r#type?).ok()? {
        AttributeType::Float => "float",
        AttributeType::Int => "int",
        AttributeType::String => "string",
        AttributeType::Tensor => "tensor",
        AttributeType::Graph => "graph",
        AttributeType::SparseTensor => "sparse_tensor",
        AttributeType::TypeProto => "type_proto",
        AttributeType::Floats => "floats",
        AttributeType::Ints => "ints",
        AttributeType::Strings => "strings",
        _ => return None,
    })
}

/// The opsets of the files of a plan, by domain; a domain of which there is no table has version 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Opsets(BTreeMap<String, i64>);

impl Opsets {
    pub(super) fn of(&self, domain: &str) -> i64 {
        self.0.get(domain).copied().unwrap_or(1)
    }

    /// The default domain alone.
    pub(super) fn plain(opset: i64) -> Opsets {
        Opsets(BTreeMap::from([(String::new(), opset)]))
    }
}

/// The oldest opsets from `base` on in which every operator of a plan has at least the version that the model means, so that
/// no node has to be written in the form of an older version than its own, and in which all element types exist.
pub(super) fn opsets(plan: &Plan, base: i64) -> Result<Opsets> {
    let mut found = Opsets::plain(base);
    for stage in &plan.stages {
        for v in &stage.values {
            raise(&mut found, "", since_type(v.ty.dtype));
        }
        for step in &stage.steps {
            if let Op::Standard { call } = &step.op {
                needs(call, &mut found)?;
            }
        }
    }
    Ok(found)
}

fn raise(found: &mut Opsets, domain: &str, opset: i64) {
    let at = found.0.entry(domain.to_owned()).or_insert(opset);
    *at = (*at).max(opset);
}

/// The opset that brought an element type.
fn since_type(dtype: DType) -> i64 {
    match dtype {
        DType::F4E2M1 => 23,
        DType::F8E8M0 => 24,
        DType::I2 | DType::U2 => 25,
        _ => OPSET,
    }
}

fn needs(call: &Call, found: &mut Opsets) -> Result<()> {
    if history(&call.domain, &call.op).is_some() {
        let version = at(&call.domain, &call.op, meant(call)).ok_or_else(|| EmitError::Version {
            op: call.title(),
            opset: call.opset,
            why: NONE.to_owned(),
        })?;
        // Other domains are few and change as a whole: their files are of the model's own version.
        let opset = if call.domain.is_empty() && !version.deprecated { version.since } else { call.opset };
        if !(call.domain.is_empty() && version.deprecated) {
            raise(found, &call.domain, opset);
        }
    }
    for v in call.attrs.values() {
        match v {
            Value::Graph(body) => body.nodes.iter().try_for_each(|n| needs(&n.call, found))?,
            Value::Tensor(c) => raise(found, "", since_type(c.dtype)),
            _ => {}
        }
    }
    Ok(())
}

/// The first opset from that of a node on in which its operands may have the element types that they have; `None` where
/// there is none, or where the operator is in no schema.
pub(super) fn taken_since(n: &NodeProto, opset: i64, dtype: &dyn Fn(&str) -> Option<DType>) -> Option<i64> {
    let history = history(n.domain(), n.op_type())?;
    let now = at(n.domain(), n.op_type(), opset)?;
    let mut all = history.iter().filter(|s| s.since >= now.since && !s.deprecated);
    all.find(|s| s.takes_all(n, dtype) && s.check(n).is_ok()).map(|s| s.since.max(opset))
}

/// Why an operator has no version.
pub(super) const NONE: &str = "the opset has no such operator";

/// The opset whose meaning a call has.
pub(super) fn meant(call: &Call) -> i64 {
    if call.domain.is_empty() { call.opset.max(OLDEST) } else { call.opset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        let text = TEXT;
        let rows = text.lines().filter(|l| !l.starts_with(['#', '@'])).count();
        let table = parse(text);
        let all = || table.iter().flat_map(|(d, ops)| ops.iter().map(move |(op, v)| (d, op, v)));
        assert_eq!(all().map(|(_, _, v)| v.len()).sum::<usize>(), rows);
        for (domain, op, versions) in all() {
            assert!(versions.is_sorted_by(|a, b| a.since < b.since), "{domain} {op}");
            for (i, s) in versions.iter().enumerate() {
                // Optional operands come last, what repeats is the last of all.
                for list in [&s.inputs, &s.outputs] {
                    let variadic = list.iter().position(|p| p.presence == Presence::Variadic);
                    assert!(variadic.is_none_or(|v| v + 1 == list.len()), "{domain} {op} {i}");
                }
            }
        }
        let s = at("", "Split", 18).unwrap();
        assert_eq!((s.since, s.inputs.len(), s.outputs[0].presence), (18, 2, Presence::Variadic));
        assert_eq!(at("", "RoiAlign", 15).unwrap().step(at("", "RoiAlign", 16).unwrap()), Step::Changed);
        assert_eq!(at("", "Acos", 21).unwrap().step(at("", "Acos", 22).unwrap()), Step::Same);
        assert!(at("", "Cos", 22).unwrap().takes(0, DType::BF16) && !at("", "Cos", 21).unwrap().takes(0, DType::BF16));
        assert!(
            at("", "Concat", 13).unwrap().takes(7, DType::F16) && !at("", "Gather", 13).unwrap().takes(1, DType::F32)
        );
        assert!(at("", "Upsample", 21).unwrap().deprecated && at("", "Gelu", 19).is_none());
    }
}
