//! Emit: a plan as ONNX files, one per rank.
//!
//! A file holds what its rank computes. In the standard dialect, fused operators are local functions over standard
//! operators, so that every ONNX runtime can load it; in the dialect of ONNX Runtime they are its contributed operators.
//! Standard ONNX has no collectives: with tp > 1 both dialects use `AllReduce` and `AllGather` of `com.microsoft`.
//! What crosses a stage boundary is an output of one file and an input of the other, under one name.

mod builder;
mod convert;
mod nn;
mod ops;
mod packed;
mod quant;
mod special;
mod standard;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use prost::Message as _;
use sinter_runtime::plan::{Plan, Source, Stage, Value, ValueId, WeightEntry};
use sinter_runtime::standard::Kind;

use self::builder::{Builder, Val, data_type, each_node, opsets};
use self::ops::Place;
use self::versions::{NATIVE, OPSET, Opsets};
use crate::import::proto::{
    FunctionProto, GraphProto, ModelProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_proto::DataLocation, tensor_shape_proto::Dimension, tensor_shape_proto::dimension,
    type_proto,
};
use crate::import::{Weights, element_type, packed_bits};
use crate::ir::{DType, Dim, Op, TensorType, unique_name};
use crate::lower::{self, LowerError};

/// Which operators stand for fused ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Local functions over standard operators.
    Standard,
    /// The contributed operators of ONNX Runtime.
    Ort,
}

/// Why a plan cannot be written as ONNX.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// An operator has no ONNX form.
    #[error("`{0}` cannot be written as ONNX")]
    Operator(String),
    /// What an operator of an opset means has no form in the opset of the file.
    #[error("{op} of opset {opset} cannot be written as ONNX: {why}")]
    Version {
        /// The operator.
        op: String,
        /// The model's opset.
        opset: i64,
        /// What stands against it.
        why: String,
    },
    /// No opset takes operands of these types.
    #[error("the {op} that makes `{value}` cannot be written as ONNX: no opset has it for {types}")]
    Types {
        /// The operator.
        op: String,
        /// The first result.
        value: String,
        /// Element types of the operands.
        types: String,
    },
    /// A node that the opset of the file does not have.
    #[error("defect: the {op} that makes `{value}` does not exist in opset {opset}: {why}")]
    Invalid {
        /// The operator.
        op: String,
        /// The first result.
        value: String,
        /// The file's opset.
        opset: i64,
        /// What is wrong.
        why: String,
    },
    /// The operator of a named value has none.
    #[error("value `{value}`: {cause}")]
    At {
        /// The value.
        value: String,
        /// What is wrong.
        cause: Box<EmitError>,
    },
    /// An element type is not part of ONNX.
    #[error("element type {0} cannot be written as ONNX")]
    DType(DType),
    /// No input tells an extent.
    #[error("the extent `{0}` is that of no input of the file, so no node can compute it")]
    Symbol(String),
    /// Nothing tells what a value is that leaves a stage.
    #[error("value `{0}` crosses stages, and what it is only a run tells: use --pp 1")]
    Kind(String),
    /// A defect of the compiler.
    #[error(transparent)]
    Lower(#[from] LowerError),
}

/// The result of a function of this module.
pub(crate) type Result<T, E = EmitError> = std::result::Result<T, E>;

/// Weights of at least so many bytes lie in the data file.
const EXTERNAL: usize = 1024;
/// Offsets in the data file are multiples of it, so that readers can map them.
pub const PAGE: u64 = 4096;

/// A weight in the data file.
pub struct Blob<'w> {
    /// Where it starts.
    pub offset: u64,
    /// What it is.
    pub weight: WeightEntry<'w>,
}

impl Blob<'_> {
    /// Its length in the file, where elements of less than a byte share bytes.
    pub fn bytes(&self) -> usize {
        match packed_bits(self.weight.dtype) {
            Some(bits) => self.weight.bytes().div_ceil(8 / bits),
            None => self.weight.bytes(),
        }
    }

    /// Writes it; it is never held in memory as a whole.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Some(bits) = packed_bits(self.weight.dtype) else { return self.weight.write(out) };
        let mut packer = packed::Packer::new(bits, out);
        self.weight.write(&mut packer)?;
        packer.finish()
    }
}

/// The ONNX file of a rank.
pub struct File<'w> {
    /// The model; its large initializers refer to the data file.
    pub model: ModelProto,
    /// What the data file holds, by ascending offset; empty where there is none.
    pub data: Vec<Blob<'w>>,
}

impl File<'_> {
    /// The contents of the model file.
    pub fn bytes(&self) -> Vec<u8> {
        self.model.encode_to_vec()
    }

    /// Number of nodes of the main graph.
    pub fn nodes(&self) -> usize {
        self.model.graph.as_ref().map_or(0, |g| g.node.len())
    }
}

/// How files are written.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Which operators stand for fused ones.
    pub dialect: Dialect,
    /// Opset of the default domain in the model that was compiled. What reads the model reads the files, which are of
    /// opset 21, or 23 for models of opset 23 and newer, or of a newer one where an operator of the model needs it.
    pub opset: i64,
}

/// The file of one rank of a plan. `data` is the name of the data file, beside the model.
pub fn emit<'w>(plan: &Plan, rank: usize, weights: &'w Weights, form: Form, data: &str) -> Result<File<'w>> {
    let dialect = form.dialect;
    let base = if form.opset >= NATIVE && dialect == Dialect::Standard { NATIVE } else { OPSET };
    let (s, column) = (rank / plan.mapping.tp, rank % plan.mapping.tp);
    let place = Place { dialect, index: column, size: plan.mapping.tp };
    let mut opsets = versions::opsets(plan, base)?;
    loop {
        let r = build(plan, s, place, &opsets)?;
        // Element types that a newer opset takes may come with operators of the compiler's own.
        let newer = r.newest()?;
        if newer <= opsets.of("") {
            return r.finish(weights, rank, data);
        }
        opsets = versions::opsets(plan, newer)?;
    }
}

/// The file of a stage with its nodes.
fn build<'p>(plan: &'p Plan, s: usize, place: Place, opsets: &Opsets) -> Result<Rank<'p>> {
    // The kind of a sequence, string or optional value follows from the nodes that make it, in earlier stages too.
    let mut sent = BTreeMap::new();
    let first = if plan.stages.iter().any(sends_opaque) { 0 } else { s };
    for stage in first..s {
        let r = Rank::new(plan, stage, place, opsets.clone(), sent).nodes()?;
        sent = r.boundaries.values().filter_map(|n| Some((n.clone(), r.b.kinds.get(n)?.clone()))).collect();
    }
    Rank::new(plan, s, place, opsets.clone(), sent).nodes()
}

/// Whether a stage sends a sequence, string or optional value.
fn sends_opaque(stage: &Stage) -> bool {
    let opaque = |v: &ValueId| stage.value(*v).ty.dtype == DType::Opaque;
    stage.steps.iter().any(|t| matches!(t.op, Op::Send { .. }) && t.inputs.iter().any(opaque))
}

/// The file of a rank under construction.
struct Rank<'p> {
    plan: &'p Plan,
    stage: &'p Stage,
    s: usize,
    place: Place,
    /// What crosses stages, by stage and value of the sender.
    boundaries: BTreeMap<(usize, ValueId), String>,
    b: Builder,
    /// ONNX names of the values so far.
    names: BTreeMap<ValueId, String>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    /// Inputs with default values, by index into the plan's, and the parts that the file is given.
    defaults: Vec<(usize, Option<crate::ir::Part>)>,
    infos: Vec<ValueInfoProto>,
    metadata: Vec<StringStringEntryProto>,
}

impl<'p> Rank<'p> {
    /// The file without nodes; `sent` is what values of earlier stages are that are no tensors of numbers.
    fn new(plan: &'p Plan, s: usize, place: Place, opsets: Opsets, sent: BTreeMap<String, Kind>) -> Rank<'p> {
        let mut b = Builder::new(opsets);
        b.kinds = sent;
        Rank {
            plan,
            stage: &plan.stages[s],
            s,
            place,
            boundaries: boundaries(plan),
            b,
            names: BTreeMap::new(),
            inputs: vec![],
            outputs: vec![],
            defaults: vec![],
            infos: vec![],
            metadata: vec![],
        }
    }

    /// The file with its nodes.
    fn nodes(mut self) -> Result<Rank<'p>> {
        self.reserve_names();
        self.declare_inputs()?;
        for step in &self.stage.steps {
            let name = step.outputs.iter().flatten().next().map_or("send", |v| &self.stage.value(*v).name).to_owned();
            self.step(step).map_err(|e| match e {
                EmitError::At { .. } | EmitError::Lower(_) => e,
                cause => EmitError::At { value: name, cause: Box::new(cause) },
            })?;
        }
        self.declare_outputs()?;
        Ok(self)
    }

    /// What a value is that crosses stages; `None` for a tensor of numbers.
    fn crossing(&self, name: &str, ty: &TensorType) -> Result<Option<String>> {
        match self.b.kinds.get(name) {
            _ if ty.dtype != DType::Opaque => Ok(None),
            Some(kind) if *kind != Kind::Unknown => Ok(Some(kind.to_string())),
            _ => Err(EmitError::Kind(name.to_owned())),
        }
    }

    /// Names that belong to the interface are not made up for anything else.
    fn reserve_names(&mut self) {
        let plan = self.plan;
        for name in plan.inputs.iter().map(|i| &i.name).chain(plan.outputs.iter().map(|o| &o.name)) {
            self.b.reserve(name);
        }
        for name in self.boundaries.values() {
            self.b.reserve(name);
        }
    }

    /// Inputs of the model that this stage reads, then what it receives. With one stage, all inputs of the model.
    fn declare_inputs(&mut self) -> Result<()> {
        let (plan, stage) = (self.plan, self.stage);
        let read = read_values(stage, plan, self.s);
        let mut needed = symbols(stage, &read);
        let mut received = vec![];
        for step in &stage.steps {
            if let (Op::Recv { stage: from, tag }, [Some(v)]) = (&step.op, &step.outputs[..]) {
                let name = self.boundary(*from, *tag)?;
                received.push(Val { name: name.clone(), ty: stage.value(*v).ty.clone() });
                self.names.insert(*v, name);
            }
        }
        let named = |ty: &TensorType| ty.shape.iter().filter_map(|d| d.as_sym().map(str::to_owned)).collect::<Vec<_>>();
        // Extents that the stage can read from what it is given anyway.
        let given = stage.values.iter().zip(&read).filter(|(v, r)| **r && matches!(v.source, Source::Input { .. }));
        let mut told: BTreeSet<String> = given.flat_map(|(v, _)| named(&v.ty)).collect();
        told.extend(received.iter().flat_map(|v| named(&v.ty)));
        for (index, decl) in plan.inputs.iter().enumerate() {
            let forms: Vec<(ValueId, &Value, _)> = stage
                .values
                .iter()
                .enumerate()
                .filter(|(i, _)| read[*i])
                .filter_map(|(i, v)| match &v.source {
                    Source::Input { index: n, part } if *n == index => Some((ValueId(i), v, *part)),
                    _ => None,
                })
                .collect();
            let only = decl.ty.shape.iter().filter_map(Dim::as_sym).any(|s| needed.contains(s) && !told.contains(s));
            if forms.is_empty() && plan.mapping.pp > 1 && !only {
                continue;
            }
            // A file that needs a part alone is given the part alone.
            let parts: BTreeSet<_> = forms.iter().map(|f| f.2.map(|p| (p.dim, p.parts))).collect();
            let (ty, part) = match (&forms[..], parts.len()) {
                ([(_, v, Some(part)), ..], 1) => (v.ty.clone(), Some(*part)),
                _ => (decl.ty.clone(), None),
            };
            self.see(&decl.name, &ty, &mut needed);
            // What the model declares is not narrowed.
            let shown = if part.is_none() { decl.declared_type() } else { ty };
            self.see(&decl.name, &shown, &mut needed);
            self.inputs.push(declaration(&decl.name, &shown, decl.kind.as_deref())?);
            if let Some(kind) = decl.kind.as_deref().and_then(Kind::parse) {
                self.b.kinds.insert(decl.name.clone(), kind);
            }
            if decl.default {
                self.defaults.push((index, part));
            }
            if let Some(p) = part {
                self.note_part("input", &decl.name, p);
            }
            for (id, _, form) in forms {
                let name = match form.filter(|_| part.is_none()) {
                    None => decl.name.clone(),
                    Some(f) => {
                        let x = Val { name: decl.name.clone(), ty: decl.ty.clone() };
                        self.b.hint = format!("{}.part", decl.name);
                        ops::shard(&mut self.b, &self.place, &x, f.dim as i64, f.parts as i64)?
                    }
                };
                self.names.insert(id, name);
            }
        }
        for v in received {
            self.see(&v.name, &v.ty, &mut needed);
            let kind = self.crossing(&v.name, &v.ty)?;
            self.inputs.push(declaration(&v.name, &v.ty, kind.as_deref())?);
        }
        Ok(())
    }

    /// Extents are read from the first value that has them.
    fn see(&mut self, name: &str, ty: &TensorType, needed: &mut BTreeSet<String>) {
        for (axis, d) in ty.shape.iter().enumerate() {
            if let Some(s) = d.as_sym() {
                needed.remove(s);
                self.b.symbols.entry(s.to_owned()).or_insert((name.to_owned(), axis));
            }
        }
    }

    /// The name of what the stage receives.
    fn boundary(&self, from: i64, tag: i64) -> Result<String> {
        let missing = || EmitError::Operator(format!("recv {tag} from stage {from}"));
        let s = usize::try_from(from).map_err(|_| missing())?;
        let stage = self.plan.stages.get(s).ok_or_else(missing)?;
        let is_it = |op: &Op| matches!(op, Op::Send { stage, tag: t } if *stage == self.s as i64 && *t == tag);
        let send = stage.steps.iter().find(|t| is_it(&t.op)).ok_or_else(missing)?;
        let id = send.inputs.first().ok_or_else(missing)?;
        self.boundaries.get(&(s, *id)).cloned().ok_or_else(missing)
    }

    fn note(&mut self, key: String, value: String) {
        self.metadata.push(StringStringEntryProto { key: Some(key), value: Some(value) });
    }

    fn note_part(&mut self, what: &str, name: &str, p: crate::ir::Part) {
        let index = p.of(self.place.index, self.place.size);
        self.note(format!("sinter.{what}.{name}"), format!("part {index} of {} along axis {}", p.parts, p.dim));
    }

    /// The value as an operand. Weights are declared when they are first read, reshapes when they are needed.
    fn operand(&mut self, id: ValueId) -> Result<Val> {
        let v = self.stage.value(id);
        if !self.names.contains_key(&id) {
            let name = match &v.source {
                Source::Weight { .. } => self.b.unique(&v.name),
                Source::Alias(of) => {
                    // A reshape of a reshape is one, unless it would have to compute its shape.
                    let root = self.stage.storage(id);
                    let plain = ops::is_plain_reshape(&self.stage.value(root).ty.shape, &v.ty.shape);
                    let x = self.operand(if plain { root } else { *of })?;
                    let start = self.b.nodes.len();
                    self.b.hint.clone_from(&v.name);
                    let op = Op::Reshape { shape: v.ty.shape.clone() };
                    let made = ops::emit(&mut self.b, &self.place, &op, &[x], &[true])?;
                    self.named(start, id, made.into_iter().next().unwrap_or_default())?
                }
                _ => return Err(EmitError::Operator(format!("{} is read before it is made", v.name))),
            };
            self.names.insert(id, name);
        }
        Ok(Val { name: self.names[&id].clone(), ty: v.ty.clone() })
    }

    /// Gives a result the name of its value.
    fn named(&mut self, start: usize, id: ValueId, made: String) -> Result<String> {
        let v = self.stage.value(id);
        let wanted = self.interface_name(id);
        let name = match &wanted {
            Some(name) => name.clone(),
            None => self.b.unique(&v.name),
        };
        if !self.b.rename(start, &made, &name) {
            return Ok(made);
        }
        if wanted.is_none() && v.ty.dtype != DType::Opaque {
            self.infos.push(info(&name, &v.ty)?);
        }
        Ok(name)
    }

    /// The name that a result has outside of the file.
    fn interface_name(&self, id: ValueId) -> Option<String> {
        let (plan, s) = (self.plan, self.s);
        let output = plan.outputs.iter().find(|o| o.stage == s && o.value == id).map(|o| o.name.clone());
        output.or_else(|| self.boundaries.get(&(s, id)).cloned())
    }

    fn step(&mut self, step: &sinter_runtime::plan::Step) -> Result<()> {
        if matches!(step.op, Op::Recv { .. } | Op::Send { .. }) {
            return Ok(());
        }
        let stage = self.stage;
        let before = self.b.nodes.len();
        let operands = step.inputs.iter().map(|&v| self.operand(v)).collect::<Result<Vec<_>>>()?;
        let wanted: Vec<bool> = step.outputs.iter().map(Option::is_some).collect();
        let start = self.b.nodes.len();
        let first = step.outputs.iter().flatten().next();
        self.b.hint = first.map_or_else(|| step.op.name().to_owned(), |&v| stage.value(v).name.clone());
        let made = ops::emit(&mut self.b, &self.place, &step.op, &operands, &wanted)?;
        for (id, made) in step.outputs.iter().zip(made) {
            let Some(id) = *id else { continue };
            let name = self.named(start, id, made)?;
            if is_finite(&step.op, &operands, &self.b, stage.value(id).ty.dtype) {
                self.b.finite.insert(name.clone());
            }
            self.names.insert(id, name);
        }
        // Nodes tell the ONNX node whose work they do.
        for n in &mut self.b.nodes[before..] {
            if let Some(origin) = step.origin.first() {
                n.metadata_props =
                    vec![StringStringEntryProto { key: Some("sinter.origin".to_owned()), value: Some(origin.clone()) }];
            }
        }
        Ok(())
    }

    /// The model's outputs that this stage makes, then what it sends.
    fn declare_outputs(&mut self) -> Result<()> {
        let (plan, s) = (self.plan, self.s);
        let mut declared = BTreeSet::new();
        for o in plan.outputs.iter().filter(|o| o.stage == s) {
            self.deliver(o.value, &o.name, o.kind.as_deref(), &mut declared)?;
            if let Some(p) = o.part {
                self.note_part("output", &o.name, p);
            }
        }
        for ((from, id), name) in self.boundaries.clone() {
            if from == self.s {
                let v = self.operand(id)?;
                let kind = self.crossing(&v.name, &v.ty)?;
                if let Some(kind) = kind.as_deref().and_then(Kind::parse) {
                    self.b.kinds.insert(name.clone(), kind);
                }
                self.deliver(id, &name, kind.as_deref(), &mut declared)?;
            }
        }
        Ok(())
    }

    fn deliver(&mut self, id: ValueId, name: &str, kind: Option<&str>, declared: &mut BTreeSet<String>) -> Result<()> {
        if !declared.insert(name.to_owned()) {
            return Ok(());
        }
        let v = self.operand(id)?;
        if v.name != name {
            let start = self.b.nodes.len();
            let copy = self.b.op("Identity", &[&v.name], vec![]);
            self.b.rename(start, &copy, name);
        }
        self.outputs.push(declaration(name, &v.ty, kind)?);
        Ok(())
    }

    /// The oldest opset of the default domain, from the file's on, in which all operands may have their element types.
    fn newest(&self) -> Result<i64> {
        let of_info = |v: &ValueInfoProto| match v.r#type.as_ref().and_then(|t| t.value.as_ref()) {
            Some(type_proto::Value::TensorType(t)) => element_type(t.elem_type()),
            _ => None,
        };
        let mut known: BTreeMap<&str, DType> = BTreeMap::new();
        let declared = self.inputs.iter().chain(&self.outputs).chain(&self.infos);
        known.extend(declared.filter_map(|v| Some((v.name(), of_info(v)?))));
        known.extend(self.b.initializers.iter().filter_map(|t| Some((t.name(), element_type(t.data_type())?))));
        let values = self.names.iter().map(|(id, n)| (n.as_str(), self.stage.value(*id).ty.dtype));
        known.extend(values.filter(|(_, d)| *d != DType::Opaque));
        let mut opset = self.b.opsets.of("");
        for n in self.b.nodes.iter().filter(|n| n.domain().is_empty()) {
            if versions::history("", n.op_type()).is_none() {
                continue;
            }
            let since = versions::taken_since(n, opset, &|name| known.get(name).copied());
            let (op, value) = (n.op_type().to_owned(), n.output.first().cloned().unwrap_or_default());
            let types = || n.input.iter().filter_map(|i| known.get(i.as_str())).map(|d| d.name()).collect::<Vec<_>>();
            opset = opset.max(since.ok_or_else(|| EmitError::Types { op, value, types: types().join(", ") })?);
        }
        Ok(opset)
    }

    /// Whether every node is an operator of the file's opsets.
    fn check(&self, functions: &[FunctionProto]) -> Result<()> {
        let mut wrong = None;
        for n in self.b.nodes.iter().chain(functions.iter().flat_map(|f| &f.node)) {
            each_node(n, &mut |n| {
                let opset = self.b.opsets.of(n.domain());
                let Some(version) = versions::at(n.domain(), n.op_type(), opset) else { return };
                if let Err(why) = version.check(n) {
                    let (op, value) = (n.op_type().to_owned(), n.output.first().cloned().unwrap_or_default());
                    wrong.get_or_insert(EmitError::Invalid { op, value, opset, why });
                }
            });
        }
        wrong.map_or(Ok(()), Err)
    }

    fn finish<'w>(mut self, weights: &'w Weights, rank: usize, data: &str) -> Result<File<'w>> {
        let used: BTreeMap<&str, &str> = self
            .names
            .iter()
            .filter_map(|(id, name)| match &self.stage.value(*id).source {
                Source::Weight { key, .. } => Some((key.as_str(), name.as_str())),
                _ => None,
            })
            .collect();
        let mut initializers = vec![];
        let (mut blobs, mut end) = (vec![], 0u64);
        let read = lower::weight_entries(self.plan, rank, weights)?;
        let read = read.into_iter().filter_map(|w| Some((*used.get(w.key.as_str())?, w)));
        let mut defaults = vec![];
        for (i, part) in &self.defaults {
            let input = &self.plan.inputs[*i];
            let part = part.map(|p| (p, self.place.index));
            defaults.push((input.name.as_str(), lower::default_entry(self.plan, input, part, weights)?));
        }
        for (name, w) in read.chain(defaults) {
            let mut t = TensorProto {
                name: Some(name.to_owned()),
                dims: w.shape.iter().map(|&d| d as i64).collect(),
                data_type: Some(data_type(w.dtype)?),
                ..TensorProto::default()
            };
            let blob = Blob { offset: end.next_multiple_of(PAGE), weight: w };
            let length = blob.bytes();
            if length < EXTERNAL {
                let mut data = vec![];
                blob.write(&mut data).map_err(|e| LowerError::Invalid(e.to_string()))?;
                t.raw_data = Some(data.into());
            } else {
                let offset = blob.offset;
                end = offset + length as u64;
                let entry =
                    |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
                t.data_location = Some(DataLocation::External as i32);
                t.external_data = vec![
                    entry("location", data.to_owned()),
                    entry("offset", offset.to_string()),
                    entry("length", length.to_string()),
                ];
                blobs.push(blob);
            }
            initializers.push(t);
        }
        initializers.append(&mut self.b.initializers);
        let m = self.plan.mapping;
        if m.world() > 1 {
            for (key, value) in [("rank", rank), ("stage", self.s), ("tp", m.tp), ("pp", m.pp)] {
                self.note(format!("sinter.{key}"), value.to_string());
            }
        }
        for n in &mut self.b.nodes {
            n.name = n.output.iter().find(|o| !o.is_empty()).cloned();
        }
        let functions = std::mem::take(&mut self.b.functions);
        let mut opset_import =
            opsets(self.b.nodes.iter().chain(functions.iter().flat_map(|f| &f.node)), &self.b.opsets);
        opset_import.sort_by(|a, b| a.domain.cmp(&b.domain));
        self.check(&functions)?;
        let opset = self.b.opsets.of("");
        let graph = GraphProto {
            name: Some(self.plan.model.clone()),
            node: self.b.nodes,
            initializer: initializers,
            input: self.inputs,
            output: self.outputs,
            value_info: self.infos,
            ..GraphProto::default()
        };
        let model = ModelProto {
            // The version of the file format that came with the opset.
            ir_version: Some(ir_version(opset)),
            opset_import,
            producer_name: Some("sinter".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(graph),
            functions,
            metadata_props: self.metadata,
            ..ModelProto::default()
        };
        Ok(File { model, data: blobs })
    }
}

/// The version of the file format that came with an opset.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=22 => 10,
        23 => 11,
        24 => 12,
        25..=27 => 13,
        _ => 14,
    }
}

/// Whether every element of a result is a finite number, whatever the inputs are.
fn is_finite(op: &Op, x: &[Val], b: &Builder, dtype: DType) -> bool {
    // Sums with the lowest binary16 overflow easily.
    if dtype == DType::F16 {
        return false;
    }
    match op {
        Op::Const { value } => value.to_f64().iter().all(|v| v.is_finite()),
        Op::Where {} => x[1..].iter().all(|v| b.is_finite(&v.name)),
        Op::Expand { .. } | Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => {
            x.first().is_some_and(|v| b.is_finite(&v.name))
        }
        _ => false,
    }
}

/// The values that cross stages, by stage and value of the sender, with their names in both files.
fn boundaries(plan: &Plan) -> BTreeMap<(usize, ValueId), String> {
    let mut out = BTreeMap::new();
    let interface = plan.inputs.iter().map(|i| &i.name).chain(plan.outputs.iter().map(|o| &o.name));
    let mut taken: BTreeSet<String> = interface.cloned().collect();
    for (s, stage) in plan.stages.iter().enumerate() {
        for step in stage.steps.iter().filter(|t| matches!(t.op, Op::Send { .. })) {
            let Some(&id) = step.inputs.first() else { continue };
            if out.contains_key(&(s, id)) {
                continue;
            }
            // An output of the model that is also sent crosses under its own name.
            let output = plan.outputs.iter().find(|o| o.stage == s && o.value == id);
            let name = output.map_or_else(|| unique_name(&mut taken, &stage.value(id).name), |o| o.name.clone());
            out.insert((s, id), name);
        }
    }
    out
}

/// By value, whether a step or a result of the plan reads it, reshaped or not.
fn read_values(stage: &Stage, plan: &Plan, s: usize) -> Vec<bool> {
    let mut read = vec![false; stage.values.len()];
    stage.steps.iter().flat_map(|t| &t.inputs).for_each(|v| read[v.0] = true);
    plan.outputs.iter().filter(|o| o.stage == s).for_each(|o| read[o.value.0] = true);
    for i in (0..read.len()).rev() {
        if let (true, Source::Alias(of)) = (read[i], &stage.values[i].source) {
            read[of.0] = true;
        }
    }
    read
}

/// The symbols in the types of a stage's values.
fn symbols(stage: &Stage, read: &[bool]) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for (v, _) in stage.values.iter().zip(read).filter(|(_, r)| **r) {
        v.ty.shape.iter().for_each(|d| d.collect_symbols(&mut out));
    }
    out
}

/// The declaration of an input or output; `kind` describes a sequence, string or optional value.
fn declaration(name: &str, ty: &TensorType, kind: Option<&str>) -> Result<ValueInfoProto> {
    match kind.and_then(Kind::parse) {
        None => info(name, ty),
        Some(kind) => Ok(ValueInfoProto {
            name: Some(name.to_owned()),
            r#type: Some(standard::type_of(&kind)?),
            ..ValueInfoProto::default()
        }),
    }
}

/// The declaration of a value.
fn info(name: &str, ty: &TensorType) -> Result<ValueInfoProto> {
    let dim = |d: &Dim| Dimension {
        value: Some(match d.as_const() {
            Some(n) => dimension::Value::DimValue(n),
            None => dimension::Value::DimParam(d.as_sym().map_or_else(|| d.to_string(), str::to_owned)),
        }),
        ..Dimension::default()
    };
    let shape = TensorShapeProto { dim: ty.shape.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(data_type(ty.dtype)?), shape: Some(shape) };
    Ok(ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    })
}
