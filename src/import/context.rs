//! The state of an import, and the values that nodes exchange.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::functions::{Functions, Names, Opsets};
use super::proto::{NodeProto, TensorProto};
use super::weights::{Store, Weight, Weights};
use super::{ImportError, compute, inline, ops, standard};
use crate::ir::{Attr, Class, DType, Dim, Graph, InferError, Literal, NodeId, Op, Shape, TensorType};
use sinter_runtime::plan::{Assumption, Relation};
use sinter_runtime::standard::Kind;

/// Integer tensors up to this many elements are tracked symbolically: shapes, axes, slice bounds.
pub(super) const MAX_SYMBOLIC: usize = 256;

/// Why one node cannot be imported.
#[derive(Debug)]
pub(super) struct OpError {
    pub(super) message: String,
    /// Two extents that would have to be equal.
    pub(super) conflict: Option<(Dim, Dim)>,
    /// Whether the symbolic one of them may be 1 instead.
    pub(super) or_one: bool,
    /// Whether the operands are right and only sinter's own operators cannot express the node.
    pub(super) fallback: bool,
    /// Whether the message names a node of a function or body already.
    pub(super) inside: bool,
}

impl OpError {
    /// An error of the model, whatever could express the node.
    pub(super) fn fatal(message: String) -> Self {
        OpError { message, conflict: None, or_one: false, fallback: false, inside: false }
    }
}

impl From<String> for OpError {
    fn from(message: String) -> Self {
        OpError { message, conflict: None, or_one: false, fallback: true, inside: false }
    }
}

impl From<&str> for OpError {
    fn from(message: &str) -> Self {
        OpError::from(message.to_owned())
    }
}

impl From<InferError> for OpError {
    fn from(e: InferError) -> Self {
        OpError { message: e.message, conflict: e.conflict, or_one: e.or_one, fallback: false, inside: false }
    }
}

pub(super) type Result<T> = std::result::Result<T, OpError>;

/// A value during import.
#[derive(Clone, Debug)]
pub(super) enum Val {
    /// Computed by the graph.
    Node(NodeId),
    /// An integer vector or scalar whose elements are known expressions; it has no node until one needs it.
    Sym(SymTensor),
}

/// An integer (or boolean, as 0 and 1) tensor of rank 0 or 1 with known elements.
#[derive(Clone, Debug)]
pub(super) struct SymTensor {
    pub(super) dtype: DType,
    pub(super) values: Shape,
    pub(super) scalar: bool,
}

impl SymTensor {
    pub(super) fn ints(&self) -> Option<Vec<i64>> {
        self.values.iter().map(Dim::as_const).collect()
    }
}

/// The value of an operator on constants of one element. One operation in f64, rounded to a narrower type, is the
/// correctly rounded one of that type.
fn fold(op: &Op, x: &[&Literal]) -> Option<Literal> {
    let dtype = x.first()?.dtype;
    let shape = x.iter().map(|l| &l.shape).max_by_key(|s| s.len())?.clone();
    let v: Vec<f64> = x.iter().map(|l| l.splat()).collect::<Option<_>>()?;
    let value = match (op, &v[..]) {
        (Op::Cast { to }, [a]) if to.is_float() => return Some(Literal { shape, ..Literal::scalar(*to, *a) }),
        (Op::Neg {}, [a]) => -a,
        (Op::Sqrt {}, [a]) => a.sqrt(),
        (Op::Reciprocal {}, [a]) => a.recip(),
        (Op::Add {}, [a, b]) => a + b,
        (Op::Sub {}, [a, b]) => a - b,
        (Op::Mul {}, [a, b]) => a * b,
        (Op::Div {}, [a, b]) => a / b,
        _ => return None,
    };
    let same = x.iter().all(|l| l.dtype == dtype && dtype.is_float());
    same.then(|| Literal { shape, ..Literal::scalar(dtype, value) })
}

/// Refuses results that are fewer than the node wants.
fn all_wanted(node: &NodeProto, results: Vec<Val>) -> Result<Vec<Val>> {
    let used = node.output.iter().rposition(|o| !o.is_empty()).map_or(0, |i| i + 1);
    if used > results.len() {
        return Err(OpError::from(format!("output {} `{}` is not supported", used - 1, node.output[used - 1])));
    }
    Ok(results)
}

/// The state of an import.
pub(super) struct Context<'a> {
    pub(super) graph: Graph,
    pub(super) opset: i64,
    /// Opsets of all domains, for the function at hand.
    pub(super) opsets: Opsets,
    /// What the model states about its values.
    pub(super) declared: HashMap<String, Kind>,
    /// What is known about nodes that are no tensors of numbers.
    pub(super) kinds: HashMap<NodeId, Kind>,
    /// The model's local functions.
    pub(super) functions: Functions<'a>,
    /// Names of all values.
    pub(super) names: Names,
    pub(super) progress: inline::Progress,
    /// Symbols made for extents that only execution shows, with the value and axis that show them.
    late: BTreeMap<String, (NodeId, usize)>,
    /// Symbols of the inputs.
    pub(super) symbols: BTreeSet<String>,
    /// What the import takes for granted about extents.
    pub(super) assumptions: Vec<Assumption>,
    /// Number of ranks that the model's own communication states.
    pub(super) ranks: Option<usize>,
    vals: HashMap<String, Val>,
    initializers: HashMap<&'a str, &'a TensorProto>,
    store: Store,
    weights: Weights,
    /// Inputs whose default values are among the weights.
    defaults: std::collections::BTreeSet<String>,
    /// Nodes made for symbolic values and constants.
    materialised: HashMap<String, NodeId>,
    /// Name of the node at hand, for the nodes made on its behalf.
    origin: String,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        name: &str,
        initializers: HashMap<&'a str, &'a TensorProto>,
        declared: HashMap<String, Kind>,
        opsets: Opsets,
        functions: Functions<'a>,
        names: Names,
        store: Store,
    ) -> Self {
        Context {
            graph: Graph::new(name),
            opset: opsets.get("").copied().unwrap_or(0),
            opsets,
            declared,
            kinds: HashMap::new(),
            functions,
            names,
            progress: inline::Progress::default(),
            late: BTreeMap::new(),
            symbols: BTreeSet::new(),
            assumptions: vec![],
            ranks: None,
            vals: HashMap::new(),
            initializers,
            store,
            weights: Weights::default(),
            defaults: std::collections::BTreeSet::new(),
            materialised: HashMap::new(),
            origin: String::new(),
        }
    }

    pub(super) fn is_initializer(&self, name: &str) -> bool {
        self.initializers.contains_key(name)
    }

    /// Keeps the default value of an input, which no node may rely on.
    pub(super) fn define_default(&mut self, name: &str, value: Weight) {
        self.weights.0.insert(name.to_owned(), value);
        self.defaults.insert(name.to_owned());
    }

    /// The inputs that have default values.
    pub(super) fn defaults(&self) -> std::collections::BTreeSet<String> {
        self.defaults.clone()
    }

    pub(super) fn define(&mut self, name: &str, val: Val) -> std::result::Result<(), ImportError> {
        if self.vals.insert(name.to_owned(), val).is_some() || self.is_initializer(name) {
            return Err(ImportError::Structure(format!("value `{name}` is defined twice")));
        }
        Ok(())
    }

    /// Imports a node, or the nodes that it stands for.
    pub(super) fn import_node(&mut self, node: &NodeProto) -> Result<()> {
        if inline::inline(self, node)? { Ok(()) } else { self.import_plain(node) }
    }

    /// Imports a node as an operator.
    pub(super) fn import_plain(&mut self, node: &NodeProto) -> Result<()> {
        super::node_name(node).clone_into(&mut self.origin);
        super::attrs::check_flags(node)?;
        let own = if self.is_foreign(node)? {
            Err(OpError::from("it has operands of element types that sinter's own operators do not compute with"))
        } else {
            ops::import(self, node)
                .and_then(|results| self.only_core(results))
                .and_then(|results| all_wanted(node, results))
        };
        let results = match own {
            Ok(results) => results,
            // Two extents that may turn out to be equal: the import starts over with that knowledge.
            Err(e)
                if !(e.or_one && standard::supported(node))
                    && e.conflict.as_ref().is_some_and(|(a, b)| self.learn(a, b).is_some()) =>
            {
                return Err(e);
            }
            // What sinter's own operators do not express may be a call of the standard operator.
            Err(e) if standard::supported(node) => {
                let declared: Vec<Option<Kind>> =
                    node.output.iter().map(|o| self.declared.get(o.as_str()).cloned()).collect();
                standard::import(self, node, &declared).map_err(|f| if e.fallback { f } else { e })?
            }
            Err(e) => return Err(e),
        };
        for (name, val) in node.output.iter().zip(results).filter(|(n, _)| !n.is_empty()) {
            self.define(name, val).map_err(|e| OpError::from(e.to_string()))?;
        }
        Ok(())
    }

    /// Whether an operand has an element type that only standard operators take.
    fn is_foreign(&mut self, node: &NodeProto) -> Result<bool> {
        let (moves, quantised) = (ops::moves(node), ops::takes_quantised(node));
        for i in 0..node.input.len() {
            let dtype = match self.input(node, i)? {
                Some(Val::Node(id)) => self.graph.node(id).types.first().map(|t| t.dtype),
                Some(Val::Sym(s)) => Some(s.dtype),
                None => None,
            };
            let own = |d: DType| d.is_core() || moves || quantised && d.is_quantised() || ops::takes_codes(node, d);
            if dtype.is_some_and(|d| d == DType::Opaque || !own(d)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Refuses results that sinter's own operators cannot compute.
    fn only_core(&self, results: Vec<Val>) -> Result<Vec<Val>> {
        let computed = |id: NodeId| !matches!(self.graph.node(id).op.info().class, Class::Layout | Class::Leaf);
        for v in &results {
            if let Val::Node(id) = v
                && let Some(t) = self.graph.node(*id).types.first()
                && !t.dtype.is_core()
                && !t.dtype.is_quantised()
                && computed(*id)
            {
                return Err(OpError::from(format!("sinter's own operators do not compute {}", t.dtype)));
            }
        }
        Ok(results)
    }

    /// The operand at a position; `None` where it is absent.
    pub(super) fn input(&mut self, node: &NodeProto, i: usize) -> Result<Option<Val>> {
        match node.input.get(i).map(String::as_str) {
            None | Some("") => Ok(None),
            Some(name) => self.value(name).map(Some),
        }
    }

    /// Whether an extent depends on data.
    pub(super) fn is_late(&self, d: &Dim) -> bool {
        !self.late_symbols([d]).is_empty()
    }

    /// The symbols of extents that depend on data.
    fn late_symbols<'d>(&self, dims: impl IntoIterator<Item = &'d Dim>) -> BTreeSet<String> {
        let mut symbols = BTreeSet::new();
        dims.into_iter().for_each(|d| d.collect_symbols(&mut symbols));
        symbols.retain(|s| self.late.contains_key(s));
        symbols
    }

    /// Takes a relation between extents for granted, on behalf of the node at hand.
    pub(super) fn assume(&mut self, left: Dim, relation: Relation, right: Dim) {
        let known = |a: &Assumption| (&a.left, a.relation, &a.right) == (&left, relation, &right);
        let decided = match relation {
            Relation::AtMost => (&right - &left).is_natural(),
            Relation::AtLeast => (&left - &right).is_natural(),
            Relation::Equal => left == right,
            Relation::Different => false,
        };
        if !decided && !self.assumptions.iter().any(known) {
            self.assumptions.push(Assumption { left, relation, right, why: format!("node `{}`", self.origin) });
        }
    }

    /// A symbol for an extent that only execution shows.
    pub(super) fn late_symbol(&mut self, base: &str, axis: usize) -> String {
        let mut name = format!("{base}_dim{axis}");
        while self.late.contains_key(&name) || !self.symbols.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    /// Remembers which value shows the extent behind a symbol.
    pub(super) fn shows(&mut self, symbol: &str, value: NodeId, axis: usize) {
        self.late.insert(symbol.to_owned(), (value, axis));
    }

    /// Goes on with other operator sets, and returns those so far.
    pub(super) fn enter_opsets(&mut self, opsets: Opsets) -> Opsets {
        self.opset = opsets.get("").copied().unwrap_or(0);
        std::mem::replace(&mut self.opsets, opsets)
    }

    /// What is known about a node's value.
    pub(super) fn kind(&self, id: NodeId) -> Kind {
        self.kinds.get(&id).cloned().unwrap_or_else(|| Kind::of(self.ty(id)))
    }

    /// The version of a domain's operators that the model uses.
    pub(super) fn opset_of(&self, domain: &str) -> i64 {
        self.opsets.get(domain).copied().unwrap_or(1)
    }

    /// The data of a weight.
    pub(super) fn weight(&self, name: &str) -> Option<&Weight> {
        self.weights.0.get(name)
    }

    pub(super) fn value(&mut self, name: &str) -> Result<Val> {
        if let Some(v) = self.vals.get(name) {
            return Ok(v.clone());
        }
        let Some(&t) = self.initializers.get(name) else {
            return Err(OpError::from(format!("value `{name}` is neither an input, an initializer nor a result")));
        };
        let val = self.constant(name, t)?;
        self.vals.insert(name.to_owned(), val.clone());
        Ok(val)
    }

    /// A constant tensor: small integers symbolically, other scalars as literals, the rest as weights.
    pub(super) fn constant(&mut self, name: &str, t: &TensorProto) -> Result<Val> {
        if t.data_type() == 8 {
            let value = standard::tensor(t)?;
            return standard::strings(self, name, value);
        }
        let w = self.store.load(t).map_err(|e| OpError::from(e.to_string()))?;
        Ok(self.define_constant(name, w))
    }

    /// A constant tensor with its data.
    pub(super) fn define_constant(&mut self, name: &str, w: Weight) -> Val {
        let n: usize = w.ty.shape.iter().map(|d| d.as_const().unwrap_or(0) as usize).product();
        let shape: Vec<usize> = w.ty.shape.iter().map(|d| d.as_const().unwrap_or(0) as usize).collect();
        let literal = |w: &Weight| Literal { dtype: w.ty.dtype, shape: shape.clone(), data: w.bytes.to_vec() };
        if !w.ty.dtype.is_float() && w.ty.dtype.is_core() && shape.len() <= 1 && n <= MAX_SYMBOLIC {
            let values = literal(&w).to_i64().unwrap_or_default();
            let values = values.into_iter().map(Dim::from).collect();
            return Val::Sym(SymTensor { dtype: w.ty.dtype, values, scalar: shape.is_empty() });
        }
        if n == 1 {
            let value = literal(&w);
            return Val::Node(self.leaf(name, Op::Const { value }, vec![w.ty.clone()]));
        }
        let id = self.graph.weight(name, w.ty.clone());
        self.weights.0.insert(name.to_owned(), w);
        Val::Node(id)
    }

    fn leaf(&mut self, name: &str, op: Op, types: Vec<TensorType>) -> NodeId {
        self.graph.push(crate::ir::Node {
            op,
            inputs: vec![],
            types,
            name: name.to_owned(),
            origin: vec![],
            rules: vec![],
            why: None,
            stage: None,
        })
    }

    /// The operand at a position as a node, which must be present.
    pub(super) fn operand(&mut self, node: &NodeProto, i: usize) -> Result<NodeId> {
        match self.input(node, i)? {
            Some(v) => self.materialise(&v, node.input.get(i).map_or("", String::as_str)),
            None => Err(OpError::from(format!("operand {i} is missing"))),
        }
    }

    /// The operand at a position as a node, where it is present.
    pub(super) fn optional(&mut self, node: &NodeProto, i: usize) -> Result<Option<NodeId>> {
        match self.input(node, i)? {
            Some(v) => self.materialise(&v, node.input.get(i).map_or("", String::as_str)).map(Some),
            None => Ok(None),
        }
    }

    /// The operand at a position as known integers, where it is present.
    pub(super) fn symbolic(&mut self, node: &NodeProto, i: usize) -> Result<Option<SymTensor>> {
        match self.input(node, i)? {
            None => Ok(None),
            Some(Val::Sym(s)) => Ok(Some(s)),
            Some(Val::Node(_)) => Err(OpError::from(format!(
                "operand {i} `{}` must be computable from shapes and constants, but depends on data",
                node.input[i]
            ))),
        }
    }

    /// The operand at a position as constant integers, where it is present.
    pub(super) fn const_ints(&mut self, node: &NodeProto, i: usize) -> Result<Option<Vec<i64>>> {
        match self.symbolic(node, i)? {
            None => Ok(None),
            Some(s) => s.ints().map(Some).ok_or_else(|| OpError::from(format!("operand {i} is not constant"))),
        }
    }

    /// The elements of an operand that is constant, where it is present.
    pub(super) fn constant_data(&mut self, node: &NodeProto, i: usize) -> Result<Option<Weight>> {
        Ok(match self.input(node, i)? {
            Some(Val::Node(id)) => self.constant_of(id),
            Some(Val::Sym(s)) => s.ints().map(|ints| {
                let value = Literal::ints(s.dtype, if s.scalar { vec![] } else { vec![ints.len()] }, &ints);
                Weight::new(value.tensor_type(), bytes::Bytes::from(value.data))
            }),
            None => None,
        })
    }

    /// The elements of a constant, reshaped or not.
    fn constant_of(&self, id: NodeId) -> Option<Weight> {
        let node = self.graph.node(id);
        match &node.op {
            Op::Weight { name, .. } => self.weights.0.get(name).cloned(),
            Op::Const { value } => Some(Weight::new(value.tensor_type(), bytes::Bytes::from(value.data.clone()))),
            Op::Reshape { shape } if shape.iter().all(|d| d.as_const().is_some()) => {
                Some(Weight { ty: node.ty().clone(), ..self.constant_of(node.inputs[0])? })
            }
            _ => None,
        }
    }

    /// The integers of an operand that is constant, where it is present; an error where it is not constant.
    pub(super) fn const_ints_of(&mut self, node: &NodeProto, i: usize) -> Result<Option<Vec<i64>>> {
        if self.input(node, i)?.is_none() {
            return Ok(None);
        }
        let data = self.constant_data(node, i)?;
        let literal = data.map(|w| Literal { dtype: w.ty.dtype, shape: vec![], data: w.bytes.to_vec() });
        let ints = literal.and_then(|l| l.to_i64());
        ints.map(Some).ok_or_else(|| OpError::from(format!("operand {i} is no constant of integers")))
    }

    /// The element type of a value.
    pub(super) fn dtype_of(&self, val: &Val) -> DType {
        match val {
            Val::Node(id) => self.ty(*id).dtype,
            Val::Sym(s) => s.dtype,
        }
    }

    /// A weight whose data the import gives another form. The name says which one it is made from.
    pub(super) fn made_weight(&mut self, name: &str, weight: Weight) -> NodeId {
        let key = format!("made {name} {}", weight.ty);
        if let Some(&id) = self.materialised.get(&key) {
            return id;
        }
        let base = if name.is_empty() { "weight" } else { name };
        let free = |n: &String| !self.weights.0.contains_key(n);
        let name = (0..).map(|i| if i == 0 { base.to_owned() } else { format!("{base}.{i}") }).find(free);
        let name = name.unwrap_or_else(|| base.to_owned());
        let id = self.graph.weight(&name, weight.ty.clone());
        self.weights.0.insert(name, weight);
        self.materialised.insert(key, id);
        id
    }

    /// A node for a value.
    pub(super) fn materialise(&mut self, val: &Val, name: &str) -> Result<NodeId> {
        let sym = match val {
            Val::Node(id) => return Ok(*id),
            Val::Sym(s) => s,
        };
        let key = format!("{sym:?}");
        if let Some(&id) = self.materialised.get(&key) {
            return Ok(id);
        }
        let op = match sym.ints() {
            Some(ints) => {
                let shape = if sym.scalar { vec![] } else { vec![ints.len()] };
                Op::Const { value: Literal::ints(sym.dtype, shape, &ints) }
            }
            None if sym.values.iter().any(|d| self.is_late(d)) => {
                let id = compute::values(self, sym)?;
                self.materialised.insert(key, id);
                return Ok(id);
            }
            None if sym.dtype == DType::I64 => Op::Dims { values: sym.values.clone(), scalar: sym.scalar },
            None => {
                let extents = self.materialise(&Val::Sym(SymTensor { dtype: DType::I64, ..sym.clone() }), name)?;
                let id = self.add(Op::Cast { to: sym.dtype }, &[extents])?;
                self.materialised.insert(key, id);
                return Ok(id);
            }
        };
        let types = crate::ir::infer(&op, &[])?;
        let id = self.leaf(name, op, types);
        self.materialised.insert(key, id);
        Ok(id)
    }

    /// A scalar that holds an extent.
    pub(super) fn materialise_dim(&mut self, d: &Dim) -> Result<NodeId> {
        self.materialise(&Val::Sym(SymTensor { dtype: DType::I64, values: vec![d.clone()], scalar: true }), "")
    }

    /// Adds a node on behalf of the ONNX node at hand. The last one added carries the result's name.
    pub(super) fn add(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId> {
        let values: Option<Vec<&Literal>> = inputs.iter().map(|&i| self.single(i)).collect();
        if let Some(value) = values.and_then(|v| fold(&op, &v)) {
            return Ok(self.literal(value));
        }
        // A constant of one element means the same as a scalar wherever the other operand has its axes.
        let mut inputs = inputs.to_vec();
        if inputs.len() == 2 && matches!(op.info().class, Class::Binary | Class::Commutative) {
            for (i, other) in [(0, 1), (1, 0)] {
                // The other operand as it stands: the second of two such constants keeps its axes.
                let (x, y) = (inputs[i], inputs[other]);
                let rank = self.ty(x).rank();
                if rank > 0
                    && rank <= self.ty(y).rank()
                    && let Some(value) = self.single(x).cloned()
                {
                    inputs[i] = self.literal(Literal { shape: vec![], ..value });
                }
            }
        }
        let inputs = &inputs[..];
        self.check_late(&op, inputs)?;
        if op.computes_in_f32() && inputs.iter().any(|&i| self.ty(i).dtype == DType::F64) {
            return Err(OpError::from("sinter's own operator computes in f32, not in f64"));
        }
        let id = self.graph.add("", op, inputs)?;
        self.graph.node_mut(id).origin = vec![self.origin.clone()];
        Ok(id)
    }

    /// Refuses an operator that reads an extent before the value that shows it exists: one of its operands must depend on that value.
    fn check_late(&self, op: &Op, inputs: &[NodeId]) -> Result<()> {
        if self.late.is_empty() || matches!(op, Op::Standard { .. }) {
            return Ok(());
        }
        let attrs = op.attrs();
        let dims = attrs.iter().flat_map(|a| match a {
            Attr::Dim(d) => std::slice::from_ref(d),
            Attr::Dims(d) => &d[..],
            _ => &[],
        });
        let used = self.late_symbols(dims);
        if used.is_empty() {
            return Ok(());
        }
        let shown = self.late_symbols(inputs.iter().flat_map(|&i| &self.graph.node(i).types).flat_map(|t| &t.shape));
        match used.difference(&shown).next() {
            Some(s) => Err(OpError::from(format!("the extent `{s}` depends on data"))),
            None => Ok(()),
        }
    }

    /// The value and axis that show the extent behind a symbol.
    pub(super) fn shown_by(&self, symbol: &str) -> Option<(NodeId, usize)> {
        self.late.get(symbol).copied()
    }

    /// The value of a constant with one element.
    fn single(&self, id: NodeId) -> Option<&Literal> {
        match &self.graph.node(id).op {
            Op::Const { value } if value.len() == 1 => Some(value),
            _ => None,
        }
    }

    /// A scalar constant.
    pub(super) fn scalar(&mut self, dtype: DType, value: f64) -> NodeId {
        self.literal(Literal::scalar(dtype, value))
    }

    fn literal(&mut self, value: Literal) -> NodeId {
        let ty = value.tensor_type();
        let key = format!("literal {value}");
        if let Some(&id) = self.materialised.get(&key) {
            return id;
        }
        let id = self.leaf("", Op::Const { value }, vec![ty]);
        self.materialised.insert(key, id);
        id
    }

    pub(super) fn ty(&self, id: NodeId) -> &TensorType {
        self.graph.node(id).ty()
    }

    pub(super) fn shape(&self, id: NodeId) -> Shape {
        self.ty(id).shape.clone()
    }

    /// A reshape, or the operand itself where the shape is the same.
    pub(super) fn reshape(&mut self, x: NodeId, shape: Shape) -> Result<NodeId> {
        if self.ty(x).shape == shape { Ok(x) } else { self.add(Op::Reshape { shape }, &[x]) }
    }

    /// A transposition, or the operand itself where nothing moves.
    pub(super) fn transpose(&mut self, x: NodeId, perm: Vec<i64>) -> Result<NodeId> {
        let identity = perm.iter().enumerate().all(|(i, &p)| i as i64 == p);
        if identity { Ok(x) } else { self.add(Op::Transpose { perm }, &[x]) }
    }

    pub(super) fn node_of(&mut self, name: &str) -> Result<NodeId> {
        let v = self.value(name)?;
        self.materialise(&v, name)
    }

    pub(super) fn describe_inputs(&mut self, node: &NodeProto) -> String {
        let text = |cx: &mut Self, name: &str| match name {
            "" => "-".to_owned(),
            name => match cx.value(name) {
                Ok(Val::Node(id)) => format!("{name}: {}", cx.ty(id)),
                Ok(Val::Sym(s)) => format!("{name} = {:?}", s.values),
                Err(_) if cx.is_initializer(name) => format!("{name}: unreadable weight"),
                Err(_) => format!("{name}: undefined"),
            },
        };
        node.input.iter().map(|n| text(self, n)).collect::<Vec<_>>().join(", ")
    }

    /// Names the nodes after the values of the model, drops what is unused, and returns the result.
    pub(super) fn finish(mut self) -> (Graph, Weights) {
        let mut names: Vec<(&String, NodeId)> = self
            .vals
            .iter()
            .filter_map(|(name, v)| match v {
                Val::Node(id) => Some((name, *id)),
                Val::Sym(_) => None,
            })
            .collect();
        // Several names may stand for one value; the alphabetically first one of the shortest is kept.
        names.sort_by_key(|(name, _)| (name.len(), name.as_str()));
        let mut taken = std::collections::BTreeSet::new();
        let mut named = vec![false; self.graph.len()];
        for id in self.graph.ids() {
            if matches!(self.graph.node(id).op, Op::Input { .. } | Op::Weight { .. }) {
                taken.insert(self.graph.node(id).name.clone());
                named[id.index()] = true;
            }
        }
        for o in self.graph.outputs().to_vec() {
            if !named[o.value.index()] && taken.insert(o.name.clone()) {
                self.graph.node_mut(o.value).name = o.name;
                named[o.value.index()] = true;
            }
        }
        for (name, id) in names {
            if !named[id.index()] && taken.insert(name.clone()) {
                self.graph.node_mut(id).name.clone_from(name);
                named[id.index()] = true;
            }
        }
        for id in self.graph.ids().filter(|id| !named[id.index()]).collect::<Vec<_>>() {
            let node = self.graph.node(id);
            let base = match (&node.name[..], node.origin.first()) {
                ("", Some(o)) => format!("{o}.{}", node.op.name()),
                ("", None) => node.op.name().to_owned(),
                (name, _) => name.to_owned(),
            };
            let name =
                (0..).map(|i| if i == 0 { base.clone() } else { format!("{base}.{i}") }).find(|n| !taken.contains(n));
            let name = name.unwrap_or(base);
            taken.insert(name.clone());
            self.graph.node_mut(id).name = name;
        }
        let graph = self.graph.without_dead_nodes();
        let used: std::collections::BTreeSet<&str> = graph
            .nodes()
            .filter_map(|(_, n)| match &n.op {
                Op::Weight { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .chain(self.defaults.iter().map(String::as_str))
            .collect();
        self.weights.0.retain(|name, _| used.contains(name.as_str()));
        (graph, self.weights)
    }
}
