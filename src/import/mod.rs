//! Import: an ONNX file becomes a typed graph with symbolic shapes, and weights that stay in the file.
//!
//! Integer arithmetic on shapes is evaluated symbolically, so the `Shape`, `Gather`, `Concat` chains of
//! exporters vanish into attributes of `Reshape`, `Expand` and `Slice`. Nothing is fused here.

mod attrs;
mod body;
mod compute;
mod context;
mod error;
mod foreign;
mod functions;
mod inline;
mod kinds;
mod ops;
pub mod proto;
mod standard;
mod symbols;
mod weights;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use petgraph::graph::{DiGraph, NodeIndex};
use prost::Message as _;
use sinter_runtime::plan::Assumption;
use sinter_runtime::standard::Kind;

use self::context::{Context, Val};
pub use self::error::ImportError;
use self::functions::{Functions, Names};
pub(crate) use self::kinds::STRING;
use self::proto::{ModelProto, NodeProto, TensorProto, ValueInfoProto};
use self::symbols::Known;
use self::weights::Store;
pub use self::weights::{Weight, Weights};
pub(crate) use self::weights::{data_type, dtype as element_type, packed_bits};
use crate::ir::{DType, Dim, Graph, Op, Shape, TensorType};

/// Oldest opset of the default domain that is read. Older models are read where all their operators mean the same there.
pub const MIN_OPSET: i64 = 7;
/// Newest opset of the default domain that is read.
pub const MAX_OPSET: i64 = 28;

/// A model in memory. The weights refer to the mapped files.
#[derive(Debug)]
pub struct Imported {
    /// The program.
    pub graph: Graph,
    /// The weights that it uses.
    pub weights: Weights,
    /// Opset of the default domain.
    pub opset: i64,
    /// Number of ONNX nodes.
    pub n_nodes: usize,
    /// Number of tensor-parallel ranks that the model's own communication states, where it states one.
    pub ranks: Option<usize>,
    /// What inputs and outputs are that are no tensors of numbers, in the text form of [`Kind`].
    pub kinds: BTreeMap<String, String>,
    /// Inputs with a default value, which is in `weights` under the input's name.
    pub defaults: BTreeSet<String>,
    /// Where the model's declarations are not followed.
    pub notes: Vec<String>,
    /// The declared shapes of inputs whose shape in the graph follows from [`Imported::assumptions`].
    pub declared: BTreeMap<String, Shape>,
    /// What the graph takes for granted about the extents of inputs.
    pub assumptions: Vec<Assumption>,
}

/// The data of a stand-alone tensor message: element type, shape and elements.
pub fn read_tensor(t: &TensorProto) -> Result<(DType, Vec<usize>, bytes::Bytes), ImportError> {
    let w = Store::new(Path::new("")).load(t)?;
    let shape = w.ty.shape.iter().map(|d| d.as_const().unwrap_or(0) as usize).collect();
    Ok((w.ty.dtype, shape, w.bytes))
}

/// ONNX's number of an element type whose messages hold one element after the other.
pub fn tensor_code(dtype: DType) -> Option<i32> {
    (1..64).find(|&c| weights::dtype(c) == Some(dtype)).filter(|_| weights::packed_bits(dtype).is_none())
}

/// A decoded model file.
pub struct Model {
    path: std::path::PathBuf,
    proto: ModelProto,
    /// Seed of weight data that is made up.
    seed: Option<u64>,
    /// Whether inputs with default values are constants.
    frozen: bool,
}

/// Since this version of the file format, an initializer that is also an input of the graph is the default value of that
/// input. Older files list every initializer among the inputs; all of them are constants there.
const DEFAULTS_SINCE: i64 = 4;

/// Every operator that can be imported: domain and name, sorted.
pub fn operators() -> Vec<(String, String)> {
    let own = ops::names();
    let all = own.into_iter().chain(standard::names()).map(|(d, n)| (d.to_owned(), n.to_owned()));
    let all: BTreeSet<(String, String)> = all.collect();
    all.into_iter().collect()
}

/// Reads and decodes a model file; the tensor data stays in the mapped file.
pub fn open(path: &Path) -> Result<Model, ImportError> {
    if path.is_dir() {
        return Err(folder(path));
    }
    let bytes = weights::map_file(path).map_err(|cause| ImportError::Read { path: path.to_owned(), cause })?;
    let refuse = |cause: String| match foreign::recognise(&bytes) {
        Some(f) => ImportError::Foreign { path: path.to_owned(), what: f.what.to_owned(), help: f.help.to_owned() },
        None => ImportError::Decode { path: path.to_owned(), cause },
    };
    let proto = ModelProto::decode(bytes.clone()).map_err(|e| refuse(e.to_string()))?;
    if proto.graph.is_none() {
        return Err(refuse("it contains no graph".into()));
    }
    Ok(Model { path: path.to_owned(), proto, seed: None, frozen: false })
}

/// The error for a folder in place of a model; it names the models in the folder.
pub fn folder(path: &Path) -> ImportError {
    let entries =
        std::fs::read_dir(path).map(|d| d.flatten().map(|e| e.path()).collect::<Vec<_>>()).unwrap_or_default();
    let mut models: Vec<String> = entries
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
        .collect();
    models.sort();
    let help = match &models[..] {
        _ if path.join(sinter_runtime::plan::PLAN_FILE).is_file() => {
            "it holds a plan, which `run`, `show`, `explain` and `diff` read; name the .onnx file that it was made from"
                .to_owned()
        }
        [] => "name a model file; none in the folder ends with .onnx".to_owned(),
        [one] => format!("name the model in it: {}", path.join(one).display()),
        [first, ..] => format!("name one of the {} models in it, such as {}", models.len(), path.join(first).display()),
    };
    ImportError::Foreign { path: path.to_owned(), what: "a folder".to_owned(), help }
}

impl Model {
    /// Makes up the data of weights that is absent: the files that should hold it are not there, or it is empty. The
    /// numbers follow from the seed and the weights' names.
    pub fn with_random_weights(self, seed: Option<u64>) -> Model {
        Model { seed, ..self }
    }

    /// Makes constants of inputs with default values: they are no longer inputs.
    pub fn with_frozen_defaults(self, frozen: bool) -> Model {
        Model { frozen, ..self }
    }

    fn nodes(&self) -> &[NodeProto] {
        self.proto.graph.as_ref().map_or(&[], |g| &g.node)
    }

    fn opset(&self) -> Option<i64> {
        self.proto.opset_import.iter().find(|o| matches!(o.domain(), "" | "ai.onnx")).map(|o| o.version())
    }

    /// Whether the operators of an opset of the default domain are known, as far as the model uses them.
    fn reads(&self, opset: i64) -> bool {
        let old = |n: &NodeProto| opset < MIN_OPSET && ops::since(n.op_type()).is_some_and(|v| opset >= v);
        let mut nodes = self.nodes().iter().filter(|n| matches!(n.domain(), "" | "ai.onnx"));
        (MIN_OPSET..=MAX_OPSET).contains(&opset) || nodes.all(old)
    }

    /// The graph as ONNX nodes, one a line, for models that cannot be imported.
    pub fn listing(&self) -> String {
        let mut out = String::new();
        for n in self.nodes() {
            let attrs: Vec<&str> = n.attribute.iter().map(|a| a.name()).collect();
            let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
            let _ = writeln!(out, "{} = {}({}){attrs}", n.output.join(", "), qualified(n), n.input.join(", "));
        }
        out
    }

    /// Turns the model into a graph.
    pub fn import(&self) -> Result<Imported, ImportError> {
        let found = self.opset().unwrap_or(0);
        if !self.reads(found) {
            return Err(ImportError::Opset { path: self.path.clone(), found, min: MIN_OPSET, max: MAX_OPSET });
        }
        let functions = Functions::new(&self.proto);
        let unknown: Vec<_> = self
            .nodes()
            .iter()
            .chain(functions.reachable(self.nodes()))
            .filter(|n| functions.called(n).is_none() && !ops::supported(n) && !standard::supported(n))
            .map(|n| (qualified(n), node_name(n).to_owned()))
            .collect();
        if !unknown.is_empty() {
            return Err(ImportError::Unknown { nodes: unknown, total: self.nodes().len() });
        }
        if functions.expanded(self.nodes()) > functions::MAX_NODES {
            return Err(ImportError::Structure(functions::too_large()));
        }
        let order = topological_order(self.nodes())?;
        // Two symbols may turn out to be equal (or one to be an expression of others) only while shapes
        // are inferred; then the import starts over with that knowledge, and states it.
        let mut known = Known::declared(self.proto.graph.as_ref());
        loop {
            match self.attempt(&order, &known)? {
                Attempt::Done(imported) => return Ok(*imported),
                Attempt::Learned(symbol, dim, why) => known.add(symbol, dim, why),
            }
        }
    }

    fn attempt(&self, order: &[usize], known: &Known) -> Result<Attempt, ImportError> {
        let graph = self.proto.graph.as_ref().ok_or_else(|| ImportError::Structure("no graph".into()))?;
        let name = match graph.name() {
            "" => self.path.file_stem().map_or("model".into(), |s| s.to_string_lossy().into_owned()),
            n => n.to_owned(),
        };
        let mut initializers: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name(), t)).collect();
        if initializers.len() != graph.initializer.len() {
            return Err(ImportError::Structure("two initializers have the same name".into()));
        }
        let overridable = self.proto.ir_version() >= DEFAULTS_SINCE && !self.frozen;
        let inputs: BTreeSet<&str> = graph.input.iter().map(|i| i.name()).collect();
        let mut defaults: BTreeMap<&str, Weight> = BTreeMap::new();
        let mut store = Store::new(&self.path).random(self.seed);
        if overridable {
            for t in graph.initializer.iter().filter(|t| inputs.contains(t.name()) && t.data_type() != STRING) {
                defaults.insert(t.name(), store.load(t)?);
                initializers.remove(t.name());
            }
        }
        let mut cx = Context::new(
            &name,
            initializers,
            declared_types(graph),
            functions::opsets(&self.proto.opset_import),
            Functions::new(&self.proto),
            Names::of(&self.proto),
            store,
        );
        let sparse = graph.sparse_initializer.iter().map(standard::dense).collect::<Result<Vec<_>, _>>();
        let mut sparse: BTreeMap<String, Weight> =
            sparse.map_err(|e| ImportError::Structure(e.message))?.into_iter().collect();
        for name in graph.input.iter().map(|i| i.name()).filter(|_| overridable) {
            if let Some(w) = sparse.remove(name) {
                defaults.insert(name, w);
            }
        }
        let mut declared = BTreeMap::new();
        for input in &graph.input {
            if cx.is_initializer(input.name()) || sparse.contains_key(input.name()) {
                continue;
            }
            let kind = kinds::opaque(input);
            let mut ty = match (&kind, defaults.remove(input.name())) {
                (Some(_), None) => TensorType::new(DType::Opaque, vec![]),
                (None, None) => input_type(input, &known.names)?,
                (_, Some(value)) => {
                    let ty = default_type(input, &value, &known.names)?;
                    cx.define_default(input.name(), value);
                    ty
                }
            };
            let stated = ty.shape.clone();
            ty.shape.iter_mut().for_each(|d| *d = d.substitute(&known.equal));
            if ty.shape != stated {
                declared.insert(input.name().to_owned(), stated);
            }
            let id = cx.graph.input(input.name(), ty);
            if let Some(k) = kind {
                cx.kinds.insert(id, k);
            }
            cx.define(input.name(), Val::Node(id))?;
        }
        for (name, w) in sparse {
            let v = cx.define_constant(&name, w);
            cx.define(&name, v)?;
        }
        cx.symbols = known.names.clone();
        for (_, n) in cx.graph.nodes() {
            if let Op::Input { shape, .. } = &n.op {
                shape.iter().for_each(|d| d.collect_symbols(&mut cx.symbols));
            }
        }
        for &i in order {
            let node = &graph.node[i];
            match cx.import_node(node) {
                Ok(()) => {}
                Err(e) => {
                    let learned = e.conflict.as_ref().and_then(|(a, b)| cx.learn(a, b));
                    if let Some((symbol, dim)) = learned {
                        let why = format!("node `{}` ({}) takes no others", node_name(node), qualified(node));
                        return Ok(Attempt::Learned(symbol, dim, why));
                    }
                    return Err(ImportError::Node {
                        index: i,
                        name: node_name(node).to_owned(),
                        op: qualified(node),
                        message: e.message,
                        inputs: cx.describe_inputs(node),
                    });
                }
            }
        }
        let mut notes = vec![];
        let mut seen = BTreeSet::new();
        for o in &graph.output {
            if !seen.insert(o.name()) {
                return Err(ImportError::Structure(format!("two outputs are called `{}`", o.name())));
            }
            let value = cx
                .node_of(o.name())
                .map_err(|e| ImportError::Structure(format!("output `{}`: {}", o.name(), e.message)))?;
            notes.extend(contradiction(o, cx.graph.node(value).ty()));
            cx.graph.output(o.name(), value);
        }
        if graph.output.is_empty() {
            return Err(ImportError::Structure("the graph has no output".into()));
        }
        let mut opaque = BTreeMap::new();
        let inputs = graph.input.iter().filter(|i| !cx.is_initializer(i.name())).map(|i| i.name().to_owned());
        for name in inputs.chain(graph.output.iter().map(|o| o.name().to_owned())).collect::<Vec<_>>() {
            if let Ok(id) = cx.node_of(&name)
                && cx.ty(id).dtype == DType::Opaque
            {
                // What execution alone shows is what the model says.
                let declared = || graph.output.iter().find(|o| o.name() == name).and_then(kinds::declared);
                let kind = Some(cx.kind(id)).filter(|k| *k != Kind::Unknown).or_else(declared).unwrap_or_default();
                opaque.insert(name, kind.to_string());
            }
        }
        let (ranks, defaults) = (cx.ranks, cx.defaults());
        let mut assumptions = known.stated();
        assumptions.append(&mut cx.assumptions);
        let (graph, weights) = cx.finish();
        let opset = self.opset().unwrap_or(0);
        let n_nodes = order.len();
        Ok(Attempt::Done(Box::new(Imported {
            graph,
            weights,
            opset,
            n_nodes,
            ranks,
            kinds: opaque,
            defaults,
            notes,
            declared,
            assumptions,
        })))
    }
}

enum Attempt {
    Done(Box<Imported>),
    /// A symbol is equal to an expression, and what says so.
    Learned(String, Dim, String),
}

fn qualified(n: &NodeProto) -> String {
    match n.domain() {
        "" | "ai.onnx" => n.op_type().to_owned(),
        d => format!("{d}::{}", n.op_type()),
    }
}

fn node_name(n: &NodeProto) -> &str {
    match n.name() {
        "" => n.output.first().map_or("", String::as_str),
        name => name,
    }
}

/// The nodes in an order in which each value is produced before it is used.
fn topological_order(nodes: &[NodeProto]) -> Result<Vec<usize>, ImportError> {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (i, n) in nodes.iter().enumerate() {
        for o in n.output.iter().filter(|o| !o.is_empty()) {
            if let Some(first) = producer.insert(o, i) {
                return Err(ImportError::Structure(format!(
                    "value `{o}` is produced by node {first} `{}` and by node {i} `{}`",
                    node_name(&nodes[first]),
                    node_name(n)
                )));
            }
        }
    }
    let mut sorted = true;
    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(nodes.len(), nodes.len() * 2);
    for _ in nodes {
        graph.add_node(());
    }
    for (i, n) in nodes.iter().enumerate() {
        let captured = functions::captured(n);
        let reads = n.input.iter().map(String::as_str).chain(captured);
        for p in reads.filter_map(|name| producer.get(name)) {
            sorted &= *p < i;
            graph.add_edge(NodeIndex::new(*p), NodeIndex::new(i), ());
        }
    }
    if sorted {
        // The file's own order keeps the plan in the order in which the exporter wrote the layers.
        return Ok((0..nodes.len()).collect());
    }
    petgraph::algo::toposort(&graph, None).map(|order| order.iter().map(|n| n.index()).collect()).map_err(|_| {
        let cycle = petgraph::algo::tarjan_scc(&graph)
            .into_iter()
            .find(|c| c.len() > 1 || graph.find_edge(c[0], c[0]).is_some())
            .unwrap_or_default();
        let mut members: Vec<usize> = cycle.iter().map(|n| n.index()).collect();
        members.sort_unstable();
        let names: Vec<String> = members.iter().take(8).map(|&i| format!("`{}`", node_name(&nodes[i]))).collect();
        let more = if members.len() > 8 { format!(" and {} more", members.len() - 8) } else { String::new() };
        ImportError::Structure(format!("nodes form a cycle: {}{more}", names.join(", ")))
    })
}

/// The type that an input is declared with. `taken` are the names of extents.
fn input_type(v: &ValueInfoProto, taken: &BTreeSet<String>) -> Result<TensorType, ImportError> {
    use proto::tensor_shape_proto::dimension::Value as D;
    let bad = |m: &str| ImportError::Structure(format!("input `{}` {m}", v.name()));
    let t = tensor_type(v).ok_or_else(|| bad("is not a tensor"))?;
    let code = t.elem_type();
    let dtype = weights::dtype(code)
        .ok_or_else(|| bad(&format!("has element type {}, which is not supported", weights::dtype_name(code))))?;
    let shape = t.shape.as_ref().ok_or_else(|| bad("has no rank; export it with a shape, symbolic where it varies"))?;
    let dims = shape.dim.iter().enumerate().map(|(i, d)| match &d.value {
        Some(D::DimValue(n)) if *n >= 0 => Dim::from(*n),
        Some(D::DimParam(p)) if !p.trim().is_empty() => Dim::sym(&symbols::name(p)),
        // An extent without a name is one of its own; old files write it as -1.
        _ => Dim::sym(&symbols::unnamed(v.name(), i, taken)),
    });
    Ok(TensorType { dtype, shape: dims.collect() })
}

/// What the model states about its values.
fn declared_types(graph: &proto::GraphProto) -> HashMap<String, Kind> {
    let all = graph.value_info.iter().chain(&graph.output);
    all.filter_map(|v| Some((v.name().to_owned(), kinds::declared(v)?))).collect()
}

fn tensor_type(v: &ValueInfoProto) -> Option<&proto::type_proto::Tensor> {
    match v.r#type.as_ref()?.value.as_ref()? {
        proto::type_proto::Value::TensorType(t) => Some(t),
        _ => None,
    }
}

/// The type of an input with a default value: as declared, or that of the value where the input is declared without one.
fn default_type(v: &ValueInfoProto, value: &Weight, taken: &BTreeSet<String>) -> Result<TensorType, ImportError> {
    if tensor_type(v).is_none_or(|t| t.shape.is_none()) {
        return Ok(value.ty.clone());
    }
    let declared = input_type(v, taken)?;
    let fits = |d: &Dim, n: &Dim| d.as_const().is_none() || d == n;
    if declared.dtype == value.ty.dtype
        && declared.rank() == value.ty.rank()
        && declared.shape.iter().zip(&value.ty.shape).all(|(d, n)| fits(d, n))
    {
        return Ok(declared);
    }
    let why = format!("input `{}` is declared as {declared}, but its default value is {}", v.name(), value.ty);
    Err(ImportError::Structure(why))
}

/// Says so where an output is declared with another type than the graph gives it. As in ONNX Runtime, the latter holds.
fn contradiction(v: &ValueInfoProto, inferred: &TensorType) -> Option<String> {
    use proto::tensor_shape_proto::dimension::Value as D;
    // Strings have no extents before they exist.
    let t = tensor_type(v).filter(|_| inferred.dtype != DType::Opaque)?;
    let dtype = weights::dtype(t.elem_type());
    let wrong = dtype.is_some_and(|d| d != inferred.dtype)
        || t.shape.as_ref().is_some_and(|s| {
            s.dim.len() != inferred.rank()
                || s.dim.iter().zip(&inferred.shape).any(|(d, i)| match (&d.value, i.as_const()) {
                    (Some(D::DimValue(n)), Some(m)) => *n >= 0 && *n != m,
                    _ => false,
                })
        });
    if !wrong {
        return None;
    }
    let extent = |d: &proto::tensor_shape_proto::Dimension| match &d.value {
        Some(D::DimValue(n)) => n.to_string(),
        Some(D::DimParam(p)) => p.clone(),
        None => "?".to_owned(),
    };
    let shape = t.shape.as_ref().map_or("?".to_owned(), |s| s.dim.iter().map(extent).collect::<Vec<_>>().join(", "));
    let dtype = dtype.map_or_else(|| weights::dtype_name(t.elem_type()), |d| d.to_string());
    Some(format!(
        "output `{}` is declared as {dtype}[{shape}], but the graph computes {inferred}, which holds",
        v.name()
    ))
}
