//! Evaluates SPMD graphs in f64 on simulated ranks: a second opinion that shares no code with the kernels.
//!
//! The ranks of one column differ only over tp, and a value that is equal on several ranks is computed
//! once. Results are checked against the types of the graph.

mod compute;
mod elementwise;
mod layout;
mod quant;
mod special;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ir::norm::{Quant, Sum};
use crate::ir::{Bindings, Body, Class, DType, Dim, Graph, MeshAxis, Node, NodeId, Norm, Op, Part};

/// Most elements of one tensor.
const MAX_ELEMENTS: usize = 1 << 24;
/// Most elements of all tensors of a graph on all ranks.
const MAX_TOTAL: usize = 1 << 28;
/// Most ranks.
const MAX_RANKS: usize = 1 << 10;
/// Integers of at least this magnitude are not exact.
const EXACT_LIMIT: f64 = 9_007_199_254_740_992.0;

/// A tensor as f64 numbers, whatever its element type; integers and truth values are exact below 2^53.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Extents; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub data: Vec<f64>,
}

/// How results are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Floating-point results stay exact (f64): two sides of an equation differ only by f64 rounding. Quantised results
    /// are rounded nevertheless.
    Exact,
    /// As `Exact`, but a cast rounds to its type: what a program loses by its own words.
    Casts,
    /// Every result is rounded to its element type, as storage does; fused and norm operators round once, at
    /// the end.
    Storage,
}

/// By tp rank. Ranks of one column differ only over tp; `boundary` is the identity. Equal pointers mean
/// that the ranks hold the same tensor.
pub type PerRank = Vec<Arc<Array>>;

/// Why a graph has no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`{node}` ({op}): {reason}")]
pub struct EvalError {
    /// The node; `None` where the graph as a whole is refused.
    pub id: Option<NodeId>,
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: &'static str,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a node or its operands.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Reason {
    /// A symbolic extent has no value, or no usable one.
    #[error("{0}")]
    Extent(String),
    /// Nobody gave the input or weight a value.
    #[error("the leaf has no value; give it one with `set`")]
    NoValue,
    /// An index lies outside the tensor.
    #[error("index {index} is outside the extent {extent}")]
    Index {
        /// The index as given.
        index: f64,
        /// Number of entries.
        extent: usize,
    },
    /// Shapes or element types do not fit each other, the attributes or the graph's types.
    #[error("{0}")]
    Misfit(String),
    /// An integer was divided by zero, or zero raised to a negative integer power.
    #[error("integer division by zero")]
    DivisionByZero,
    /// An integer result that f64 does not hold exactly.
    #[error("an integer result of magnitude 2^53 or more is not exact")]
    Inexact,
    /// A tensor, or all of them together, would take too much memory.
    #[error("{0} elements are too many to evaluate")]
    TooLarge(String),
    /// An operand that must be equal on all ranks is not.
    #[error("operand {0} differs between the ranks, and the kernel may read that of any rank")]
    Varies(usize),
    /// The evaluator does not know what this means.
    #[error("{0} is not supported")]
    Unsupported(String),
}

type Result<T> = std::result::Result<T, Reason>;

fn misfit<T>(message: impl Into<String>) -> Result<T> {
    Err(Reason::Misfit(message.into()))
}

/// Number of elements of a shape, where that is not too many.
fn elements(shape: &[usize]) -> Result<usize> {
    if shape.contains(&0) {
        return Ok(0);
    }
    let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    n.filter(|&n| n <= MAX_ELEMENTS).ok_or_else(|| Reason::TooLarge(format!("{shape:?}")))
}

/// Checks the shape that an operator computes against the graph's, before anything is allocated.
fn fits(shape: &[usize], declared: &[usize]) -> Result<()> {
    if shape == declared { Ok(()) } else { misfit(format!("the result is {shape:?}, the graph says {declared:?}")) }
}

fn axis(of: i64, rank: usize) -> Result<usize> {
    let axis = usize::try_from(of).ok().filter(|&a| a < rank);
    axis.ok_or_else(|| Reason::Misfit(format!("axis {of} is outside rank {rank}")))
}

impl Array {
    /// A tensor whose length has been checked.
    fn new(shape: &[usize], data: Vec<f64>) -> Array {
        Array { shape: shape.to_vec(), data }
    }

    fn is_whole(&self) -> bool {
        elements(&self.shape) == Ok(self.data.len())
    }
}

impl Rounding {
    /// Rounds computed values as this says; integers wrap to their type and must be exact.
    fn store(self, dtype: DType, data: &mut [f64]) -> Result<()> {
        match (dtype, self) {
            (DType::F64, _) => {}
            (d, Rounding::Exact | Rounding::Casts) if d.is_float() => {}
            (DType::F32, _) => data.iter_mut().for_each(|v| *v = f64::from(*v as f32)),
            (DType::F16, _) => data.iter_mut().for_each(|v| *v = sinter_runtime::dtype::f16_from_f64(*v).to_f64()),
            (DType::BF16, _) => data.iter_mut().for_each(|v| *v = sinter_runtime::dtype::bf16_from_f64(*v).to_f64()),
            // Quantised numbers have no exact counterpart.
            (d, _) if d.is_quantised() => data.iter_mut().for_each(|v| *v = quant::round(d, *v)),
            _ => {
                for v in data {
                    *v = wrap(dtype, *v)?;
                }
            }
        }
        Ok(())
    }
}

/// An integer result in its type.
fn wrap(dtype: DType, v: f64) -> Result<f64> {
    if v.is_nan() || v.abs() >= EXACT_LIMIT {
        return Err(Reason::Inexact);
    }
    let n = v as i64;
    Ok(match dtype {
        DType::I32 => f64::from(n as i32),
        DType::I8 => f64::from(n as i8),
        DType::U8 => f64::from(n as u8),
        DType::Bool => f64::from(u8::from(n != 0)),
        // There is no negative zero among integers.
        _ => v + 0.0,
    })
}

/// An operand: per rank, and its element type.
struct Operand<'a> {
    by_rank: &'a PerRank,
    dtype: DType,
}

fn operand(by_rank: &PerRank, dtype: DType) -> Operand<'_> {
    Operand { by_rank, dtype }
}

/// What a local operator computes on.
struct Local<'a> {
    op: &'a Op,
    x: &'a [&'a Array],
    dtypes: &'a [DType],
    /// The shapes of the results by the graph.
    declared: &'a [Vec<usize>],
    bindings: &'a Bindings,
    by: Rounding,
}

impl Local<'_> {
    fn eval(&self, d: &Dim) -> Result<i64> {
        d.eval(self.bindings).map_err(Reason::Extent)
    }

    fn shape(&self, shape: &[Dim]) -> Result<Vec<usize>> {
        shape.iter().map(|d| extent(d, self.bindings)).collect()
    }
}

fn extent(d: &Dim, bindings: &Bindings) -> Result<usize> {
    let n = d.eval(bindings).map_err(Reason::Extent)?;
    usize::try_from(n).map_err(|_| Reason::Extent(format!("the extent `{d}` is {n}")))
}

/// Computes the values of a graph on every rank of a column.
pub struct Evaluator<'a> {
    graph: &'a Graph,
    tp: usize,
    bindings: &'a Bindings,
    rounding: Rounding,
    given: BTreeMap<NodeId, Array>,
}

/// Refuses operands that differ between the ranks where a kernel takes those of one rank for all.
fn equal_on_ranks(x: &[Operand<'_>]) -> Result<()> {
    let varies = |o: &Operand<'_>| o.by_rank.windows(2).any(|w| w[0] != w[1]);
    match x.iter().position(varies) {
        Some(i) => Err(Reason::Varies(i + 1)),
        None => Ok(()),
    }
}

impl<'a> Evaluator<'a> {
    /// An evaluator without values for the leaves.
    pub fn new(graph: &'a Graph, tp: usize, bindings: &'a Bindings, rounding: Rounding) -> Self {
        Evaluator { graph, tp, bindings, rounding, given: BTreeMap::new() }
    }

    /// Sets the value of a leaf (input or weight: the same on every rank), or of a constant in place of its
    /// literal.
    pub fn set(&mut self, node: NodeId, value: Array) {
        self.given.insert(node, value);
    }

    /// Evaluates every node; the result has, per node, per result of the node (tuples have several), per
    /// rank, an array.
    pub fn run(mut self) -> std::result::Result<Vec<Vec<PerRank>>, EvalError> {
        let graph = self.graph;
        let whole = |reason| EvalError { id: None, node: graph.name.clone(), op: "graph", reason };
        if self.tp == 0 || self.tp > MAX_RANKS {
            return Err(whole(Reason::Unsupported(format!("a column of {} ranks", self.tp))));
        }
        if let Some(id) = self.given.keys().find(|id| id.index() >= graph.len()) {
            return Err(whole(Reason::Misfit(format!("a value is given for node {}, which does not exist", id.0))));
        }
        let mut values: Vec<Vec<PerRank>> = Vec::with_capacity(graph.len());
        let mut left = MAX_TOTAL;
        for (id, node) in graph.nodes() {
            let made = self.node(id, node, &values, &mut left);
            let error = |reason| EvalError { id: Some(id), node: node.name.clone(), op: node.op.name(), reason };
            values.push(made.map_err(error)?);
        }
        Ok(values)
    }

    fn node(&mut self, id: NodeId, node: &Node, values: &[Vec<PerRank>], left: &mut usize) -> Result<Vec<PerRank>> {
        let info = node.op.info();
        if node.inputs.len() < info.min_inputs
            || node.inputs.len() > info.max_inputs
            || node.types.len() != node.op.outputs()
        {
            return misfit(format!("{} operands and {} results", node.inputs.len(), node.types.len()));
        }
        let shape = |s: &[Dim]| s.iter().map(|d| extent(d, self.bindings)).collect::<Result<Vec<usize>>>();
        let declared: Vec<Vec<usize>> = node.types.iter().map(|t| shape(&t.shape)).collect::<Result<_>>()?;
        let one = matches!(node.op, Op::AllGather { .. } | Op::AllReduce { .. } | Op::OutputSharded { .. });
        let cuts = matches!(node.op, Op::Shard { .. } | Op::VocabGather { .. });
        let shared = |i: &NodeId| values.get(i.index()).is_some_and(|of| of.iter().all(is_shared));
        let distinct = if one || !cuts && node.inputs.iter().all(shared) { 1 } else { self.tp };
        for s in &declared {
            let n = elements(s)?.saturating_mul(distinct);
            *left = left.checked_sub(n).ok_or_else(|| Reason::TooLarge(format!("more than {MAX_TOTAL}")))?;
        }
        let results = self.results(id, node, values, &declared)?;
        for (r, want) in results.iter().zip(&declared) {
            r.iter().try_for_each(|a| fits(&a.shape, want))?;
        }
        Ok(results)
    }

    fn results(
        &mut self,
        id: NodeId,
        node: &Node,
        values: &[Vec<PerRank>],
        declared: &[Vec<usize>],
    ) -> Result<Vec<PerRank>> {
        let op = &node.op;
        let given = self.given.remove(&id);
        if op.info().class == Class::Leaf {
            let dtype = node.ty().dtype;
            check_dtype(op, &[], dtype)?;
            let value = self.leaf(op, given, dtype, &declared[0])?;
            return Ok(vec![self.shared(value)]);
        }
        if given.is_some() {
            return misfit("only leaves are given values");
        }
        if let (Op::Get { index }, [of]) = (op, &node.inputs[..]) {
            let tuple = values.get(of.index()).map_or(&[][..], Vec::as_slice);
            let part = usize::try_from(*index).ok().and_then(|i| tuple.get(i));
            return match part {
                Some(r) => Ok(vec![r.clone()]),
                None => misfit(format!("result {index} of a tuple of {}", tuple.len())),
            };
        }
        let mut x = Vec::with_capacity(node.inputs.len());
        for i in &node.inputs {
            match values.get(i.index()).map(Vec::as_slice) {
                Some([by_rank]) => x.push(Operand { by_rank, dtype: self.graph.node(*i).ty().dtype }),
                Some(_) => return misfit("an operand is a tuple"),
                None => return misfit(format!("operand {} is not an earlier node", i.0)),
            }
        }
        self.apply(node, x, declared)
    }

    /// The results of an operator that is no leaf.
    fn apply(&mut self, node: &Node, x: Vec<Operand<'_>>, declared: &[Vec<usize>]) -> Result<Vec<PerRank>> {
        let op = &node.op;
        let dtypes: Vec<DType> = x.iter().map(|o| o.dtype).collect();
        for t in &node.types {
            // The results of some operators have types of their own.
            let own = matches!(op, Op::Largest { .. } | Op::QuantizeNvfp4 {})
                || op.norm().is_some_and(|n| n.quant != Quant::None);
            if !own {
                check_dtype(op, &dtypes, t.dtype)?;
            }
        }
        match op {
            Op::Boundary { .. } | Op::Output { .. } => Ok(vec![x[0].by_rank.clone()]),
            Op::Shard { dim, axis, parts } => {
                let parts = self.parts(*axis, *parts)?;
                let dim = self::axis(*dim, declared[0].len())?;
                let part_of = |rank: usize| rank * parts / self.tp;
                let mut out: PerRank = Vec::with_capacity(self.tp);
                for rank in 0..self.tp {
                    let whole = &x[0].by_rank[rank];
                    let twin = (0..rank)
                        .find(|&p| part_of(p) == part_of(rank) && Arc::ptr_eq(&x[0].by_rank[p], whole))
                        .map(|p| out[p].clone());
                    out.push(match twin {
                        Some(twin) => twin,
                        None => Arc::new(layout::part(whole, dim, part_of(rank), parts, &declared[0])?),
                    });
                }
                Ok(vec![out])
            }
            Op::AllGather { dim, axis, parts } | Op::OutputSharded { dim, axis, parts, .. } => {
                let parts = self.parts(*axis, *parts)?;
                let dim = self::axis(*dim, declared[0].len())?;
                let all = layout::concat(&distinct(x[0].by_rank, parts), dim, &declared[0])?;
                Ok(vec![self.shared(all)])
            }
            Op::AllReduce { axis } => {
                let mut sum = self.sum(x[0].by_rank, *axis)?;
                self.rounding.store(dtypes[0], &mut sum.data)?;
                Ok(vec![self.shared(sum)])
            }
            Op::VocabGather { axis } => {
                self.parts(*axis, 1)?;
                let rank = |r: usize| {
                    let (table, indices) = (&x[0].by_rank[r], &x[1].by_rank[r]);
                    Ok(Arc::new(layout::vocab_gather(table, indices, r, self.tp, &declared[0])?))
                };
                Ok(vec![(0..self.tp).map(rank).collect::<Result<_>>()?])
            }
            Op::Kernel { body } => self.body(body, &x),
            Op::Send { .. } | Op::Recv { .. } => Err(Reason::Unsupported("a transfer between stages".to_owned())),
            op => match op.norm() {
                Some(n) => self.norm(&n, &x, declared),
                None => {
                    let stored: Vec<DType> = node.types.iter().map(|t| t.dtype).collect();
                    self.by_rank(op, &x, &stored, declared)
                }
            },
        }
    }

    /// The results of a norm, each by the operator that computes it alone. The sum is rounded as it is stored before it is
    /// normalised, and the norm before it is quantised.
    fn norm(&self, n: &Norm, x: &[Operand<'_>], declared: &[Vec<usize>]) -> Result<Vec<PerRank>> {
        let dtype = x[0].dtype;
        let shape = declared.get(..1).unwrap_or_default();
        let step = |op: &Op, x: &[Operand<'_>], stored: DType, declared: &[Vec<usize>]| {
            let made = self.by_rank(op, x, &[stored], declared)?;
            made.into_iter().next().ok_or_else(|| Reason::Misfit("a step without a result".to_owned()))
        };
        let reduced = match n.axis() {
            Some(axis) => {
                equal_on_ranks(&x[1..])?;
                Some(self.shared(self.sum(x[0].by_rank, axis)?))
            }
            None => None,
        };
        let first = reduced.as_ref().unwrap_or(x[0].by_rank);
        let sum = match n.sum {
            Sum::None => None,
            _ => Some(step(&Op::Add {}, &[operand(first, dtype), operand(x[1].by_rank, x[1].dtype)], dtype, shape)?),
        };
        let mut read = vec![operand(sum.as_ref().unwrap_or(first), dtype)];
        let parameters = &x[n.summands()..n.summands() + n.parameters()];
        read.extend(parameters.iter().map(|p| operand(p.by_rank, p.dtype)));
        let normed = step(&n.plain(), &read, dtype, shape)?;
        let of_norm = || operand(&normed, dtype);
        let scale = n.scale().map(|i| operand(x[i].by_rank, x[i].dtype));
        let behind = declared.get(1..).unwrap_or_default();
        let mut quantised = match (n.quant, scale) {
            (Quant::Fp8, Some(scale)) => {
                vec![step(&Op::QuantizeFp8 {}, &[of_norm(), scale], DType::F8E4M3FN, shape)?]
            }
            (Quant::Fp8Token { floor }, _) => {
                let one = behind.get(1..2).unwrap_or_default();
                let scale = step(&Op::Fp8Scale { floor }, &[of_norm()], DType::F32, one)?;
                let both = [of_norm(), operand(&scale, DType::F32)];
                vec![step(&Op::QuantizeFp8 {}, &both, DType::F8E4M3FN, shape)?, scale]
            }
            (Quant::Nvfp4, Some(scale)) => {
                let stored = [DType::U8, DType::F8E4M3FN];
                self.by_rank(&Op::QuantizeNvfp4 {}, &[of_norm(), scale], &stored, behind.get(..2).unwrap_or_default())?
            }
            _ => vec![],
        };
        let mut results = vec![normed.clone()];
        results.append(&mut quantised);
        results.extend(sum);
        Ok(results)
    }

    /// The results of a declared kernel: its steps, one after the other.
    fn body(&mut self, body: &Body, x: &[Operand<'_>]) -> Result<Vec<PerRank>> {
        if !body.is_sound() || x.len() != body.operands {
            return misfit("a kernel whose body does not fit its operands");
        }
        let mut values: Vec<(PerRank, DType)> = x.iter().map(|o| (o.by_rank.clone(), o.dtype)).collect();
        for s in &body.steps {
            let shape: Vec<usize> = s.ty.shape.iter().map(|d| extent(d, self.bindings)).collect::<Result<_>>()?;
            elements(&shape)?;
            let made = if s.op.info().class == Class::Leaf {
                self.shared(self.leaf(&s.op, None, s.ty.dtype, &shape)?)
            } else {
                let operands =
                    s.inputs.iter().map(|&n| Operand { by_rank: &values[n].0, dtype: values[n].1 }).collect();
                let node = Node {
                    op: s.op.clone(),
                    inputs: vec![],
                    types: vec![s.ty.clone()],
                    name: body.name.clone(),
                    origin: vec![],
                    rules: vec![],
                    why: None,
                    stage: None,
                };
                let made = self.apply(&node, operands, std::slice::from_ref(&shape))?;
                made.into_iter().next().ok_or_else(|| Reason::Misfit("a step without a result".to_owned()))?
            };
            made.iter().try_for_each(|a| fits(&a.shape, &shape))?;
            values.push((made, s.ty.dtype));
        }
        Ok(body.results.iter().map(|&n| values[n].0.clone()).collect())
    }

    /// A tensor that every rank holds.
    fn shared(&self, value: Array) -> PerRank {
        let value = Arc::new(value);
        vec![value; self.tp]
    }

    fn leaf(&self, op: &Op, given: Option<Array>, dtype: DType, declared: &[usize]) -> Result<Array> {
        let own = match (op, given) {
            (Op::Input { .. } | Op::Weight { .. } | Op::Const { .. }, Some(mut value)) => {
                if !value.is_whole() {
                    return misfit(format!("a value {:?} of {} elements", value.shape, value.data.len()));
                }
                if dtype.is_float() || dtype.is_quantised() {
                    self.rounding.store(dtype, &mut value.data)?;
                }
                value
            }
            (_, Some(_)) => return misfit("only inputs, weights and constants are given values"),
            (Op::Const { value }, None) => Array::new(&value.shape, value.to_f64()),
            (Op::Dims { values, scalar }, None) => {
                let data = values.iter().map(|d| d.eval(self.bindings).map(|n| n as f64)).collect::<Vec<_>>();
                let data = data.into_iter().collect::<std::result::Result<Vec<_>, _>>().map_err(Reason::Extent)?;
                let shape = if *scalar { vec![] } else { vec![data.len()] };
                Array::new(&shape, data)
            }
            (Op::Range { start, limit, step }, None) => {
                let bound = |d: &Dim| d.eval(self.bindings).map(i128::from).map_err(Reason::Extent);
                layout::range(bound(start)?, bound(limit)?, i128::from(*step), declared)?
            }
            (Op::Input { .. } | Op::Weight { .. }, None) => return Err(Reason::NoValue),
            (op, None) => return Err(Reason::Unsupported(format!("the leaf `{}`", op.name()))),
        };
        if own.is_whole() { Ok(own) } else { misfit(format!("{} elements for {:?}", own.data.len(), own.shape)) }
    }

    /// A number of parts, which divides the number of ranks.
    fn parts(&self, axis: MeshAxis, parts: i64) -> Result<usize> {
        if axis != MeshAxis::Tp {
            return Err(Reason::Unsupported(format!("communication over {}", axis.name())));
        }
        let parts = usize::try_from(parts).ok().filter(|&p| p > 0 && self.tp.is_multiple_of(p));
        parts.ok_or_else(|| Reason::Misfit(format!("the parts do not divide {} ranks", self.tp)))
    }

    /// The sum over the ranks, not yet rounded.
    fn sum(&self, x: &PerRank, axis: MeshAxis) -> Result<Array> {
        self.parts(axis, 1)?;
        let mut sum = Array::clone(&x[0]);
        for other in &x[1..] {
            fits(&other.shape, &sum.shape)?;
            sum.data.iter_mut().zip(&other.data).for_each(|(s, v)| *s += v);
        }
        Ok(sum)
    }

    /// Computes an operator without communication once per distinct list of operands.
    fn by_rank(&self, op: &Op, x: &[Operand<'_>], stored: &[DType], declared: &[Vec<usize>]) -> Result<Vec<PerRank>> {
        let dtypes: Vec<DType> = x.iter().map(|o| o.dtype).collect();
        let mut results: Vec<PerRank> = vec![Vec::with_capacity(self.tp); declared.len()];
        for rank in 0..self.tp {
            let same = |p: &usize| x.iter().all(|o| Arc::ptr_eq(&o.by_rank[*p], &o.by_rank[rank]));
            if let Some(twin) = (0..rank).find(same) {
                for r in &mut results {
                    let shared = r[twin].clone();
                    r.push(shared);
                }
                continue;
            }
            let operands: Vec<&Array> = x.iter().map(|o| &*o.by_rank[rank]).collect();
            let local =
                Local { op, x: &operands, dtypes: &dtypes, declared, bindings: self.bindings, by: self.rounding };
            let made = local.compute()?;
            if made.len() != results.len() {
                return misfit(format!("{} results", made.len()));
            }
            for ((r, mut array), stored) in results.iter_mut().zip(made).zip(stored) {
                if !(moves(op) || matches!(op, Op::Cast { to } if dtypes[0] == *to)) {
                    let by = match (op, self.rounding) {
                        (Op::Cast { .. }, Rounding::Casts) => Rounding::Storage,
                        (_, by) => by,
                    };
                    by.store(*stored, &mut array.data)?;
                }
                r.push(Arc::new(array));
            }
        }
        Ok(results)
    }
}

/// Whether every rank holds the same tensor.
fn is_shared(by_rank: &PerRank) -> bool {
    by_rank.iter().all(|a| Arc::ptr_eq(a, &by_rank[0]))
}

/// Whether results are elements of operands, which are rounded already.
fn moves(op: &Op) -> bool {
    op.info().class == Class::Layout || matches!(op, Op::Where {} | Op::Max {} | Op::Min {} | Op::ReduceMax { .. })
}

/// The distinct parts that ranks hold, in order.
fn distinct(by_rank: &PerRank, parts: usize) -> Vec<&Array> {
    (0..parts).map(|i| &*by_rank[i * by_rank.len() / parts]).collect()
}

/// Checks the element type that the graph gives a result.
fn check_dtype(op: &Op, x: &[DType], declared: DType) -> Result<()> {
    let own = match op {
        Op::Input { dtype, .. } | Op::Weight { dtype, .. } => Some(*dtype),
        Op::Const { value } => Some(value.dtype),
        Op::Dims { .. } | Op::Range { .. } => Some(DType::I64),
        Op::Cast { to } => Some(*to),
        Op::Not {} | Op::IsNan {} | Op::And {} | Op::Or {} => Some(DType::Bool),
        Op::Equal {} | Op::Less {} | Op::LessEqual {} | Op::Greater {} | Op::GreaterEqual {} => Some(DType::Bool),
        Op::QuantizeFp8 {} | Op::Fp4Scale {} => Some(DType::F8E4M3FN),
        Op::QuantizeFp4 {} | Op::UnpackFp4 {} => Some(DType::F4E2M1),
        Op::Fp8Scale { .. } => Some(DType::F32),
        Op::Where {} | Op::Dequantize { .. } => x.get(1).copied(),
        _ => x.first().copied(),
    };
    if own.is_none_or(|d| d == declared) {
        return Ok(());
    }
    misfit(format!("the graph says that the result is {declared}"))
}

/// The whole of a result as the host sees it: the join of its parts, or what rank 0 holds.
pub fn whole(value: &PerRank, part: Option<Part>) -> Result<Array> {
    let first = value.first().ok_or_else(|| Reason::Misfit("no rank holds a value".to_owned()))?;
    let Some(part) = part else { return Ok(Array::clone(first)) };
    if part.axis != MeshAxis::Tp || part.parts == 0 || !value.len().is_multiple_of(part.parts) {
        return misfit(format!("{} parts over {} on {} ranks", part.parts, part.axis.name(), value.len()));
    }
    let mut shape = first.shape.clone();
    let cut = shape.get_mut(part.dim).ok_or_else(|| Reason::Misfit(format!("no axis {}", part.dim)))?;
    *cut = cut.saturating_mul(part.parts);
    elements(&shape)?;
    layout::concat(&distinct(value, part.parts), part.dim, &shape)
}
