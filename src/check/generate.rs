//! Instances of a rule: small programs that its left side matches, with both sides in one graph.
//!
//! The left side is built from the leaves up. Types of operands are chosen so that operators accept
//! them, guards are evaluated on the facts of what was built, and what does not fit is thrown away.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::hints::Hint;
use super::random::Random;
use super::shapes::{self, Pool, ty};
use crate::ir::{
    Attr, AttrKind, Bindings, Class, DType, Dim, Graph, Literal, Mapping, MeshAxis, Node, NodeId, Op, OpInfo, OpRef,
    Real, TensorType, op,
};
use crate::rules::eval::{self, Bind, Known};
use crate::rules::facts::Facts;
use crate::rules::lang::{
    AttrPattern, GuardKind, Head, OpClass, OpPattern, Pattern, Purpose, Rule, Target, Template, VarId,
};
use crate::saturate::analysis::facts_of;

/// A program in which a rule's left side occurs, with its right side beside it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Leaves, both sides and nothing else.
    pub graph: Graph,
    /// Sizes of the mesh axes.
    pub mapping: Mapping,
    /// Values of the symbols.
    pub bindings: Bindings,
    /// Values of the rule's variables.
    pub binds: Vec<Option<Bind<NodeId>>>,
    /// Left and right of each equation that the rule states.
    pub pairs: Vec<(NodeId, NodeId)>,
    /// Constants that stand for a number of the rule, exactly.
    pub exact: Vec<(NodeId, f64)>,
    /// Facts by node.
    pub facts: Vec<Facts>,
    /// The nodes before this one are the left side and its leaves.
    pub n_left: usize,
}

/// Why there is no instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Miss {
    /// What was chosen has no type.
    Untyped,
    /// This guard does not hold.
    Guard(usize),
    /// The right side has no type there, so that the rule does not apply.
    Right(String),
}

type Attempt<T> = Result<T, Miss>;

/// What is tried in one attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) tp: usize,
    /// Size of the extents, below [`shapes::LEVELS`].
    pub(super) level: usize,
    /// Which operator stands for a class of operators.
    pub(super) turn: usize,
    /// The guard that is left out.
    pub(super) without: Option<usize>,
}

/// Most elements of a tensor.
const MAX_ELEMENTS: i64 = 1 << 12;

/// One attempt at an instance.
pub(super) fn attempt(rule: &Rule, hints: &BTreeMap<VarId, Hint>, t: Trial, random: &mut Random) -> Attempt<Instance> {
    let staged = mentions_boundary(&rule.pattern);
    let mapping = Mapping { tp: t.tp, pp: if staged { 2 } else { 1 } };
    let mut bindings = Bindings::new();
    let symbol = random.chance(25).then(|| {
        bindings.insert("n".to_owned(), *random.pick(&[1, 2, 3, 4, 6]));
        Dim::sym("n")
    });
    let pool = Pool::new(random, t.tp, t.level, symbol);
    let mut b = Builder {
        hints,
        random,
        pool,
        mapping,
        turn: t.turn,
        staged,
        parts: t.tp as i64,
        graph: Graph::new("instance"),
        facts: vec![],
        binds: vec![None; rule.vars.len()],
        exact: vec![],
    };
    let want = b.root_type();
    let root = b.pattern(&rule.pattern, &want)?;
    for (i, g) in rule.guards.iter().enumerate() {
        let needed = g.purpose == Purpose::Equality && t.without != Some(i) || matches!(g.kind, GuardKind::Let(..));
        // Guards of `:when` are not needed for equality; verification takes their word and leaves them out.
        let mut binds = std::mem::take(&mut b.binds);
        let holds = eval::holds(&b, g, &mut binds, &mapping);
        b.binds = binds;
        if needed && !holds {
            return Err(Miss::Guard(i));
        }
    }
    let n_left = b.graph.len();
    let mut pairs = vec![];
    for (target, template) in &rule.yields {
        let right = b.template(template)?;
        match target {
            Target::Root => pairs.push((root, right)),
            Target::Var(v) => match &b.binds[*v] {
                Some(Bind::Class(left)) => pairs.push((*left, right)),
                _ => b.binds[*v] = Some(Bind::Class(right)),
            },
        }
    }
    let Builder { graph, facts, binds, exact, .. } = b;
    for (_, n) in graph.nodes() {
        for t in &n.types {
            let elements = t.elements().eval(&bindings).map_err(|_| Miss::Untyped)?;
            if !(0..=MAX_ELEMENTS).contains(&elements) {
                return Err(Miss::Untyped);
            }
        }
    }
    Ok(Instance { graph, mapping, bindings, binds, pairs, exact, facts, n_left })
}

fn mentions_boundary(p: &Pattern) -> bool {
    match p {
        Pattern::Op(o) => {
            matches!(&o.head, Head::Op(k) if k.0.name == "boundary") || o.args.iter().any(mentions_boundary)
        }
        _ => false,
    }
}

struct Builder<'r> {
    hints: &'r BTreeMap<VarId, Hint>,
    random: &'r mut Random,
    pool: Pool,
    mapping: Mapping,
    turn: usize,
    staged: bool,
    /// Distinct parts that varying leaves have.
    parts: i64,
    graph: Graph,
    facts: Vec<Facts>,
    binds: Vec<Option<Bind<NodeId>>>,
    exact: Vec<(NodeId, f64)>,
}

impl Known<NodeId> for Builder<'_> {
    fn facts(&self, id: NodeId) -> &Facts {
        &self.facts[id.index()]
    }
}

const FLOATS: [DType; 6] = [DType::F32, DType::F32, DType::F32, DType::F16, DType::BF16, DType::F64];

impl Builder<'_> {
    fn add(&mut self, op: Op, inputs: &[NodeId]) -> Attempt<NodeId> {
        let children: Vec<&Facts> = inputs.iter().map(|i| &self.facts[i.index()]).collect();
        let facts = facts_of(&op, &children).map_err(|_| Miss::Untyped)?;
        let name = match &op {
            Op::Input { name, .. } | Op::Weight { name, .. } => name.clone(),
            _ => format!("{}.{}", op.name(), self.graph.len()),
        };
        let types = facts.types.to_vec();
        let stage = facts.stage.and_then(|s| usize::try_from(s).ok());
        let node = Node { op, inputs: inputs.to_vec(), types, name, origin: vec![], rules: vec![], why: None, stage };
        self.facts.push(facts);
        Ok(self.graph.push(node))
    }

    fn ty(&self, id: NodeId) -> &TensorType {
        self.facts[id.index()].ty()
    }

    fn root_type(&mut self) -> TensorType {
        let dtype = match self.random.below(20) {
            0 => DType::I64,
            1 => DType::Bool,
            _ => *self.random.pick(&FLOATS),
        };
        let rank = *self.random.pick(&[1, 2, 2, 3, 3, 4, 4, 4]);
        ty(dtype, self.pool.shape(self.random, rank))
    }

    fn float(&mut self, want: DType) -> DType {
        if want.is_float() { want } else { *self.random.pick(&FLOATS) }
    }

    fn hint(&self, v: VarId) -> Hint {
        self.hints.get(&v).cloned().unwrap_or_default()
    }

    fn bound(&self, v: VarId) -> Option<NodeId> {
        match &self.binds[v] {
            Some(Bind::Class(n)) => Some(*n),
            _ => None,
        }
    }

    fn pattern(&mut self, p: &Pattern, want: &TensorType) -> Attempt<NodeId> {
        match p {
            Pattern::Var(v) => match self.bound(*v) {
                Some(n) => Ok(n),
                None => {
                    let n = self.leaf(*v, want)?;
                    self.binds[*v] = Some(Bind::Class(n));
                    Ok(n)
                }
            },
            Pattern::Number(x) => {
                let n = self.constant(*x, want.dtype, &want.shape, false)?;
                self.exact.push((n, *x));
                Ok(n)
            }
            Pattern::Op(o) => {
                // A named term that occurs twice is built once.
                if let Some(n) = o.var.and_then(|v| self.bound(v)) {
                    return Ok(n);
                }
                let n = self.operator(o, want)?;
                if let Some(v) = o.var {
                    self.binds[v] = Some(Bind::Class(n));
                }
                Ok(n)
            }
        }
    }

    /// A constant with equal elements: a scalar most often, else of a shape that broadcasts.
    fn constant(&mut self, x: f64, dtype: DType, shape: &[Dim], scalar: bool) -> Attempt<NodeId> {
        let one = Literal::scalar(dtype, x);
        let shape: Vec<usize> = match self.random.below(10) {
            0 => vec![1; 1 + self.random.below(2)],
            1 if !scalar => {
                let to = shapes::broadcasts_to(self.random, shape);
                to.iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok()).unwrap_or(1)).collect()
            }
            _ => vec![],
        };
        let n: usize = shape.iter().product();
        if n > 64 {
            return Err(Miss::Untyped);
        }
        let value = Literal { dtype, shape, data: one.data.repeat(n) };
        self.add(Op::Const { value }, &[])
    }

    /// A tensor for a variable of the rule.
    fn leaf(&mut self, v: VarId, want: &TensorType) -> Attempt<NodeId> {
        let h = self.hint(v);
        let mut t = want.clone();
        if let Some(rank) = h.rank
            && t.rank() != rank
        {
            t.shape = self.pool.shape(self.random, rank);
        }
        if self.random.chance(90) {
            if let Some(x) = h.vector_of.and_then(|x| self.bound(x)) {
                t.shape = self.ty(x).shape.last().cloned().into_iter().collect();
            } else if let Some(x) = h.shaped_as.and_then(|x| self.bound(x)) {
                t.shape.clone_from(&self.ty(x).shape.clone());
            } else if let Some(x) = h.covered_by.and_then(|x| self.bound(x)) {
                let shape = self.ty(x).shape.clone();
                t.shape = shapes::broadcasts_to(self.random, &shape);
            }
        }
        if let Some((x, axis)) = &h.broadcasts_over
            && self.random.chance(80)
            && let Some(x) = self.bound(*x)
            && let Some(Attr::Int(d)) = eval::eval(self, axis, &self.binds, &self.mapping)
            && let Some(below) = (self.ty(x).rank() as i64 - d).try_into().ok().and_then(|n| t.rank().checked_sub(n))
            && below < t.rank()
        {
            t.shape[below] = Dim::from(1);
        }
        if h.constant && self.random.chance(95) {
            let x = h.value.filter(|_| self.random.chance(90));
            let x = x.unwrap_or_else(|| *self.random.pick(&[0.5, 2.0, -1.5, 0.125, 3.0, 1.0]));
            let shape = if h.rank == Some(0) { vec![] } else { t.shape.clone() };
            return self.constant(x, t.dtype, &shape, h.scalar);
        }
        // Now and then something else than what was asked for: what guards must exclude, or types refuse.
        match self.random.below(24) {
            0 => t.dtype = *self.random.pick(&FLOATS),
            1 => t.shape = shapes::partner(self.random, &self.pool, &t.shape),
            2 => {
                let rank = self.random.below(5);
                t.shape = self.pool.shape(self.random, rank);
            }
            _ => {}
        }
        // The same tensor as another variable's.
        if self.random.chance(6) {
            let same = self.binds.iter().flatten().find_map(|b| match b {
                Bind::Class(n) if self.facts[n.index()].types[..] == [t.clone()] => Some(*n),
                _ => None,
            });
            if let Some(n) = same {
                return Ok(n);
            }
        }
        let r = self.random.below(100);
        match (h.weight, h.leaf, h.computed, h.replicated) {
            (true, ..) if r < 80 => self.weight(t),
            (true, ..) if r < 92 => self.computed_weight(t),
            (_, true, ..) if r < 45 => self.weight(t),
            (_, true, ..) if r < 92 => self.input(t),
            (_, _, true, _) if r < 92 => self.computed(t),
            (_, _, _, true) if r < 30 => self.weight(t),
            (_, _, _, true) if r < 60 => self.input(t),
            (_, _, _, true) if r < 92 => self.computed(t),
            _ => match self.random.below(10) {
                0 | 1 => self.input(t),
                2 => self.weight(t),
                3 => self.computed(t),
                4 if self.staged => self.computed(t),
                _ => self.varying(t),
            },
        }
    }

    fn input(&mut self, t: TensorType) -> Attempt<NodeId> {
        let name = format!("input.{}", self.graph.len());
        self.add(Op::Input { name, dtype: t.dtype, shape: t.shape }, &[])
    }

    fn weight(&mut self, t: TensorType) -> Attempt<NodeId> {
        if t.shape.iter().any(|d| d.as_const().is_none()) {
            return self.input(t);
        }
        let name = format!("weight.{}", self.graph.len());
        self.add(Op::Weight { name, dtype: t.dtype, shape: t.shape }, &[])
    }

    fn computed_weight(&mut self, t: TensorType) -> Attempt<NodeId> {
        let w = self.weight(t.clone())?;
        if t.dtype.is_float() { self.add(Op::Neg {}, &[w]) } else { Ok(w) }
    }

    /// A replicated tensor that depends on an input and on a matrix, so that it belongs to a stage.
    fn computed(&mut self, t: TensorType) -> Attempt<NodeId> {
        let x = self.input(t.clone())?;
        self.with_matrix(x, t.dtype)
    }

    fn with_matrix(&mut self, x: NodeId, dtype: DType) -> Attempt<NodeId> {
        if !dtype.is_float() {
            return Ok(x);
        }
        let w = self.weight(ty(dtype, vec![Dim::from(2), Dim::from(2)]))?;
        let top = self.add(Op::ReduceMax { axes: vec![0, 1], keepdims: false }, &[w])?;
        self.add(Op::Add {}, &[x, top])
    }

    /// A tensor that differs between the ranks.
    fn varying(&mut self, t: TensorType) -> Attempt<NodeId> {
        let parts = self.parts;
        let shard = Op::Shard { dim: 0, axis: MeshAxis::Tp, parts };
        let mut whole = if t.shape.is_empty() { vec![Dim::from(1)] } else { t.shape.clone() };
        whole[0] = &whole[0] * &Dim::from(parts);
        let x = self.input(ty(t.dtype, whole))?;
        let mut x = self.add(shard, &[x])?;
        if t.shape.is_empty() {
            x = self.add(Op::Reshape { shape: vec![] }, &[x])?;
        }
        if self.staged { self.with_matrix(x, t.dtype) } else { Ok(x) }
    }

    fn operator(&mut self, o: &OpPattern, want: &TensorType) -> Attempt<NodeId> {
        let (info, fixed) = match &o.head {
            Head::Op(kind) => (kind.0, None),
            Head::Class(v, class) => {
                let op = match &self.binds[*v] {
                    Some(Bind::Op(op)) => op.clone(),
                    _ => {
                        let op = self.any_of(*class, want)?;
                        self.binds[*v] = Some(Bind::Op(op.clone()));
                        op
                    }
                };
                (op.row(), Some(op))
            }
        };
        // Attributes that shape the operands come first.
        let mut attrs: Vec<Option<Attr>> = vec![None; info.attrs.len()];
        if let Some(op) = &fixed {
            attrs = op.attrs().into_iter().map(Some).collect();
        } else {
            for (i, a) in info.attrs.iter().enumerate() {
                if !matches!(a.name, "dim" | "axes" | "perm" | "shape" | "start" | "end" | "step")
                    && !(a.name == "axis" && a.kind == AttrKind::Int && !matches!(info.name, "concat" | "gather"))
                {
                    attrs[i] = Some(self.attr(&o.attrs[i], info, i, &[], want, &attrs)?);
                }
            }
        }
        let before = self.parts;
        if let Some(Some(Attr::Int(p))) = info.attrs.iter().position(|a| a.name == "parts").map(|i| &attrs[i])
            && info.name != "shard"
        {
            self.parts = *p;
        }
        let inputs = self.operands(o, info, &attrs, want);
        self.parts = before;
        let inputs = inputs?;
        let types: Vec<TensorType> = inputs
            .iter()
            .map(|i| self.facts[i.index()].types.first().cloned().ok_or(Miss::Untyped))
            .collect::<Result<_, _>>()?;
        for i in 0..attrs.len() {
            if attrs[i].is_none() {
                attrs[i] = Some(self.attr(&o.attrs[i], info, i, &types, want, &attrs)?);
            }
        }
        let attrs: Vec<Attr> = attrs.into_iter().flatten().collect();
        let op = Op::from_attrs(info.name, &attrs).ok_or(Miss::Untyped)?;
        self.add(op, &inputs)
    }

    /// An operator of a class; all of them take turns.
    fn any_of(&mut self, class: OpClass, want: &TensorType) -> Attempt<OpRef> {
        let rows: Vec<&'static OpInfo> = op::table().iter().filter(|i| class.contains_class(i.class)).collect();
        let info = rows[self.turn % rows.len()];
        let mut attrs = vec![];
        for a in &info.attrs {
            attrs.push(match a.kind {
                AttrKind::Bool => Attr::Bool(self.random.chance(50)),
                AttrKind::DType if want.dtype.is_float() => Attr::DType(want.dtype),
                AttrKind::DType => Attr::DType(*self.random.pick(&FLOATS)),
                _ => return Err(Miss::Untyped),
            });
        }
        Op::from_attrs(info.name, &attrs).map(OpRef::new).ok_or(Miss::Untyped)
    }

    /// The operands: first terms, then bound variables and numbers, then new variables, which adapt.
    fn operands(
        &mut self,
        o: &OpPattern,
        info: &'static OpInfo,
        attrs: &[Option<Attr>],
        want: &TensorType,
    ) -> Attempt<Vec<NodeId>> {
        let more = match o.rest {
            Some(_) => self.random.below(3).min(info.max_inputs - o.args.len() - o.optional.len()),
            None => 0,
        };
        let optional: Vec<bool> = o.optional.iter().map(|_| self.random.chance(60)).collect();
        let n = o.args.len() + optional.iter().filter(|t| **t).count() + more;
        let mut nodes: Vec<Option<NodeId>> = vec![None; n];
        let mut order: Vec<usize> = (0..o.args.len()).collect();
        order.sort_by_key(|&i| match &o.args[i] {
            Pattern::Op(_) => 0,
            Pattern::Var(v) if self.bound(*v).is_some() => 1,
            Pattern::Var(_) => 2,
            Pattern::Number(_) => 3,
        });
        order.extend(o.args.len()..n);
        for i in order {
            let known: Vec<Option<TensorType>> =
                nodes.iter().map(|n| n.and_then(|n| self.facts[n.index()].types.first().cloned())).collect();
            let t = self.operand_type(info, i, attrs, want, &known)?;
            nodes[i] = Some(match o.args.get(i) {
                Some(p) => self.pattern(p, &t)?,
                None => self.varying_or_input(t)?,
            });
        }
        let nodes: Vec<NodeId> = nodes.into_iter().flatten().collect();
        let mut left = nodes.get(o.args.len()..).unwrap_or(&[]);
        for (&v, taken) in o.optional.iter().zip(optional) {
            let (these, others) = left.split_at(usize::from(taken).min(left.len()));
            left = others;
            self.binds[v] = Some(Bind::Classes(SmallVec::from_slice(these)));
        }
        if let Some(v) = o.rest {
            self.binds[v] = Some(Bind::Classes(SmallVec::from_slice(left)));
        }
        Ok(nodes)
    }

    fn varying_or_input(&mut self, t: TensorType) -> Attempt<NodeId> {
        if self.random.chance(30) { self.varying(t) } else { self.input(t) }
    }

    /// A type for operand `i`, given the types of those that are chosen already.
    fn operand_type(
        &mut self,
        info: &'static OpInfo,
        i: usize,
        attrs: &[Option<Attr>],
        want: &TensorType,
        known: &[Option<TensorType>],
    ) -> Attempt<TensorType> {
        let attr = |name: &str| info.attrs.iter().position(|a| a.name == name).and_then(|p| attrs[p].clone());
        let int = |name: &str| match attr(name) {
            Some(Attr::Int(n)) => Some(n),
            _ => None,
        };
        let sibling = known.iter().flatten().next().cloned();
        let r = &mut *self.random;
        let pool = &self.pool;
        let shape = want.shape.clone();
        Ok(match info.name {
            "not" | "and" | "or" => match &sibling {
                Some(s) => ty(DType::Bool, shapes::partner(r, pool, &s.shape)),
                None => ty(DType::Bool, shape),
            },
            "cast" | "is_nan" => {
                let dtype =
                    if r.chance(25) { *r.pick(&[DType::I64, DType::Bool, DType::I32]) } else { *r.pick(&FLOATS) };
                ty(if info.name == "is_nan" { *r.pick(&FLOATS) } else { dtype }, shape)
            }
            "where" => {
                let dtype = if i == 0 { DType::Bool } else { want.dtype };
                let dtype = match known.get(if i == 1 { 2 } else { 1 }).cloned().flatten() {
                    Some(t) if i > 0 => t.dtype,
                    _ => dtype,
                };
                let base = sibling.map_or(shape, |s| s.shape);
                ty(dtype, shapes::broadcasts_to(r, &base))
            }
            _ if matches!(info.class, Class::Binary | Class::Commutative)
                || matches!(info.name, "silu_mul" | "gelu_mul") =>
            {
                match sibling {
                    Some(s) => ty(s.dtype, shapes::partner(r, pool, &s.shape)),
                    None => {
                        let compares =
                            matches!(info.name, "equal" | "less" | "less_equal" | "greater" | "greater_equal");
                        let dtype = if compares || want.dtype == DType::Bool { *r.pick(&FLOATS) } else { want.dtype };
                        ty(dtype, if r.chance(15) { shapes::broadcasts_to(r, &shape) } else { shape })
                    }
                }
            }
            _ if info.class == Class::Unary => {
                let any = matches!(info.name, "neg" | "abs" | "relu") && want.dtype != DType::Bool;
                if any { want.clone() } else { ty(self.float(want.dtype), shape) }
            }
            "reduce_sum" | "reduce_mean" | "reduce_max" | "softmax" => {
                let shape = if shape.is_empty() { pool.shape(r, 2) } else { shape };
                ty(self.float(want.dtype), shape)
            }
            "matmul" => self.matmul_operand(i, attr("trans_b") == Some(Attr::Bool(true)), want, known),
            "rms_norm" | "layer_norm" => match (i, &known[0]) {
                (0, _) | (_, None) => {
                    let shape = if shape.is_empty() { pool.shape(r, 2) } else { shape };
                    ty(self.float(want.dtype), shape)
                }
                (_, Some(x)) => self.parameter(&x.clone()),
            },
            "add_rms_norm" | "add_layer_norm" | "ar_residual_rms_norm" | "ar_residual_layer_norm" => {
                match (i, known.iter().take(2).flatten().next()) {
                    (_, None) => {
                        let shape = if shape.is_empty() { pool.shape(r, 2) } else { shape };
                        ty(self.float(want.dtype), shape)
                    }
                    (0 | 1, Some(x)) => x.clone(),
                    (_, Some(x)) => self.parameter(&x.clone()),
                }
            }
            "rotary" => match (i, &known[0]) {
                (0, _) | (_, None) => {
                    let mut s = if shape.is_empty() { pool.shape(r, 3) } else { shape };
                    let n = s.len();
                    s[n - 1] = pool.even(r);
                    ty(self.float(want.dtype), s)
                }
                (_, Some(x)) => {
                    let (last, lead) = x.shape.split_last().ok_or(Miss::Untyped)?;
                    let mut s = shapes::broadcasts_to(r, lead);
                    s.push(last.div_exact(&Dim::from(2)).ok_or(Miss::Untyped)?);
                    ty(x.dtype, s)
                }
            },
            "attention" => self.attention_operand(i, want, known)?,
            "reshape" => {
                let s = if r.chance(30) { shape } else { shapes::reshaped(r, &shape) };
                ty(want.dtype, s)
            }
            "transpose" => {
                let p = shapes::permutation(r, shape.len());
                ty(want.dtype, p.iter().map(|&i| shape[i as usize].clone()).collect())
            }
            "expand" => ty(want.dtype, shapes::broadcasts_to(r, &shape)),
            "concat" => match sibling {
                None => {
                    let mut s = if shape.is_empty() { pool.shape(r, 1) } else { shape };
                    if let Some(d) = int("axis").and_then(|a| s.get_mut(usize::try_from(a).ok()?)) {
                        *d = pool.dim(r);
                    }
                    ty(want.dtype, s)
                }
                Some(mut t) => {
                    if r.chance(40)
                        && let Some(d) = int("axis").and_then(|a| t.shape.get_mut(usize::try_from(a).ok()?))
                    {
                        *d = pool.dim(r);
                    }
                    t
                }
            },
            "gather" | "vocab_gather" => {
                if i == 0 {
                    let rank = if info.name == "gather" && r.chance(20) { 1 + r.below(3) } else { 2 };
                    let mut s = pool.shape(r, rank);
                    if r.chance(60) {
                        s[0] = pool.multiple(r);
                    }
                    ty(want.dtype, s)
                } else {
                    let rank = 1 + r.below(2);
                    ty(*r.pick(&[DType::I64, DType::I64, DType::I32]), pool.shape(r, rank))
                }
            }
            "gather_nd" => {
                if i == 0 {
                    let rank = 2 + r.below(2);
                    ty(want.dtype, pool.shape(r, rank))
                } else {
                    let mut s = pool.shape(r, 2);
                    s[1] = Dim::from(1);
                    ty(DType::I64, s)
                }
            }
            "shard" => {
                let mut s = if shape.is_empty() { pool.shape(r, 1) } else { shape };
                let d = r.below(s.len());
                s[d] = &s[d] * &Dim::from(int("parts").unwrap_or(1));
                ty(want.dtype, s)
            }
            "all_gather" | "output_sharded" => {
                let mut s = if shape.is_empty() { pool.shape(r, 1) } else { shape };
                let d = r.below(s.len());
                if let Some(part) = s[d].div_exact(&Dim::from(int("parts").unwrap_or(1))) {
                    s[d] = part;
                }
                ty(want.dtype, s)
            }
            _ => want.clone(),
        })
    }

    /// Weight or bias of a norm: a vector, of the same element type most often.
    fn parameter(&mut self, x: &TensorType) -> TensorType {
        let dtype = if self.random.chance(80) { x.dtype } else { *self.random.pick(&FLOATS) };
        ty(dtype, x.shape.last().cloned().into_iter().collect())
    }

    fn matmul_operand(
        &mut self,
        i: usize,
        trans_b: bool,
        want: &TensorType,
        known: &[Option<TensorType>],
    ) -> TensorType {
        let dtype = known.iter().flatten().next().map(|t| t.dtype);
        let dtype = dtype.unwrap_or_else(|| self.float(want.dtype));
        let (r, pool) = (&mut *self.random, &self.pool);
        if i == 0 {
            let mut s = if want.shape.len() < 2 { pool.shape(r, 2) } else { want.shape.clone() };
            let n = s.len();
            s[n - 1] = match &known[1] {
                Some(b) if b.rank() >= 2 => b.shape[b.rank() - if trans_b { 1 } else { 2 }].clone(),
                _ => pool.dim(r),
            };
            return ty(dtype, s);
        }
        let a = known[0].as_ref().map_or(&want.shape, |t| &t.shape);
        let k = a.last().cloned().unwrap_or_else(|| Dim::from(2));
        let n = if r.chance(50) { pool.multiple(r) } else { pool.dim(r) };
        let lead = a.get(..a.len().saturating_sub(2)).unwrap_or(&[]);
        let mut s = if r.chance(50) { vec![] } else { shapes::broadcasts_to(r, lead) };
        s.extend(if trans_b { [n, k] } else { [k, n] });
        ty(dtype, s)
    }

    fn attention_operand(&mut self, i: usize, want: &TensorType, known: &[Option<TensorType>]) -> Attempt<TensorType> {
        let at = |i: usize| known.get(i).cloned().flatten().filter(|t: &TensorType| t.rank() == 4);
        let dtype = known.iter().take(3).flatten().next().map(|t| t.dtype);
        let dtype = dtype.unwrap_or_else(|| self.float(want.dtype));
        let (r, pool) = (&mut *self.random, &self.pool);
        let any = || [0, 1, 2].into_iter().find_map(at);
        let Some(other) = any() else {
            let s = if want.rank() == 4 { want.shape.clone() } else { pool.shape(r, 4) };
            return Ok(ty(dtype, s));
        };
        let (q, k, v) = (at(0), at(1), at(2));
        let mut s = other.shape.clone();
        match i {
            0 => {
                let groups = Dim::from(1 + r.below(3) as i64);
                s[1] = &s[1] * &groups;
                s[2] = if r.chance(50) { s[2].clone() } else { pool.dim(r) };
                if let Some(k) = k {
                    s[3].clone_from(&k.shape[3]);
                }
            }
            1 | 2 => {
                if let Some(same) = if i == 1 { &v } else { &k } {
                    s[1].clone_from(&same.shape[1]);
                    s[2].clone_from(&same.shape[2]);
                } else {
                    s[2] = if r.chance(50) { s[2].clone() } else { pool.dim(r) };
                    match r.below(4) {
                        0 => s[1] = Dim::from(1),
                        1 => {
                            let parts = Dim::from(*r.pick(&[2, 3]));
                            s[1] = s[1].div_exact(&parts).unwrap_or_else(|| s[1].clone());
                        }
                        _ => {}
                    }
                }
                match (&q, &k) {
                    (Some(q), _) if i == 1 => s[3].clone_from(&q.shape[3]),
                    _ if i == 2 && r.chance(40) => s[3] = pool.dim(r),
                    _ => {}
                }
            }
            _ => {
                let (q, k) = (q.ok_or(Miss::Untyped)?, k.ok_or(Miss::Untyped)?);
                let scores = [q.shape[0].clone(), q.shape[1].clone(), q.shape[2].clone(), k.shape[2].clone()];
                let mask = shapes::broadcasts_to(r, &scores);
                let dtype = if r.chance(25) { DType::Bool } else { dtype };
                return Ok(ty(dtype, mask));
            }
        }
        Ok(ty(dtype, s))
    }

    /// A value for an attribute, given the types of the operands.
    fn attr(
        &mut self,
        p: &AttrPattern,
        info: &'static OpInfo,
        index: usize,
        x: &[TensorType],
        want: &TensorType,
        others: &[Option<Attr>],
    ) -> Attempt<Attr> {
        let v = match p {
            AttrPattern::Is(a) => return Ok(a.clone()),
            AttrPattern::Var(v) => *v,
        };
        if let Some(Bind::Attr(a)) = &self.binds[v] {
            return Ok(a.clone());
        }
        let a = &info.attrs[index];
        let hint = self.hint(v);
        let mut chosen = None;
        if self.random.chance(90) {
            let known = hint.equals.iter().find_map(|e| eval::eval(self, e, &self.binds, &self.mapping));
            chosen = known.and_then(|a2| a2.coerce(a.kind));
            if let (None, Some((f, x, at))) = (&chosen, hint.shape_of) {
                chosen = self.shape_for(f, x, at);
            }
        }
        let value = match chosen {
            Some(c) => c,
            None => self.any_attr(info, index, x, want, others, &hint)?,
        };
        self.binds[v] = Some(Bind::Attr(value.clone()));
        Ok(value)
    }

    /// The shapes that the guards `repeats-heads` and `merges-batch` ask for.
    fn shape_for(&mut self, function: &str, x: VarId, at: usize) -> Option<Attr> {
        let s = self.ty(self.bound(x)?).shape.clone();
        if s.len() != 4 {
            return None;
        }
        let times = Dim::from(1 + self.turn as i64 % 3);
        let [b, h, t, d] = [0, 1, 2, 3].map(|i| s[i].clone());
        Some(Attr::Dims(match (function, at) {
            ("repeats-heads", 1) => vec![b, h, Dim::from(1), t, d],
            ("repeats-heads", 2) => vec![b, h, times, t, d],
            ("repeats-heads", 3) => vec![b, &h * &times, t, d],
            ("merges-batch", 1) => vec![&b * &h, t, d],
            ("merges-batch", 2) => vec![b, h, d, t],
            _ => return None,
        }))
    }

    fn any_attr(
        &mut self,
        info: &'static OpInfo,
        index: usize,
        x: &[TensorType],
        want: &TensorType,
        others: &[Option<Attr>],
        hint: &Hint,
    ) -> Attempt<Attr> {
        let r = &mut *self.random;
        let a = &info.attrs[index];
        let rank = x.first().map_or(want.rank(), TensorType::rank);
        let shape = x.first().map_or(&want.shape, |t| &t.shape);
        let axis = |r: &mut Random, rank: usize| {
            let last = rank.saturating_sub(1);
            (if r.chance(40) { last } else { r.below(rank.max(1)) }) as i64
        };
        Ok(match (a.name, a.kind) {
            ("dim" | "axis", AttrKind::Int) => Attr::Int(axis(r, rank)),
            ("axes", _) => {
                let mut axes: Vec<i64> = (0..rank as i64).filter(|_| r.chance(40)).collect();
                if axes.is_empty() || r.chance(60) {
                    axes = vec![rank as i64 - 1];
                }
                Attr::Ints(axes)
            }
            ("perm", _) if hint.swaps_last_two && rank >= 2 && r.chance(80) => {
                let mut p: Vec<i64> = (0..rank as i64).collect();
                p.swap(rank - 1, rank - 2);
                Attr::Ints(p)
            }
            ("perm", _) => Attr::Ints(shapes::permutation(r, rank)),
            ("shape", _) if info.name == "expand" => {
                let s = shape.iter().map(|d| if d.as_const() == Some(1) { self.pool.dim(r) } else { d.clone() });
                Attr::Dims(s.collect())
            }
            ("shape", _) => {
                let product = |s: &[Dim]| s.iter().fold(Dim::from(1), |p, d| &p * d);
                let fits = product(shape) == product(&want.shape);
                Attr::Dims(if fits && r.chance(60) { want.shape.clone() } else { shapes::reshaped(r, shape) })
            }
            ("start" | "end", _) => {
                let at = info.attrs.iter().position(|b| b.name == "axis").and_then(|p| others[p].clone());
                let Some(Attr::Int(axis)) = at else { return Err(Miss::Untyped) };
                let n = usize::try_from(axis).ok().and_then(|d| shape.get(d)).and_then(Dim::as_const);
                let Some(n) = n else { return Err(Miss::Untyped) };
                let start = info.attrs.iter().position(|b| b.name == "start").and_then(|p| others[p].clone());
                let value = match (a.name, start.and_then(|s| s.coerce(AttrKind::Int))) {
                    ("end", Some(Attr::Int(s))) => *r.pick(&[n, n, n / 2, s + (n - s + 1) / 2, s + 1]),
                    _ => *r.pick(&[0, 0, n / 2, r_below(n)]),
                };
                Attr::Dim(Dim::from(value.clamp(0, n)))
            }
            ("step", _) => Attr::Int(if r.chance(70) { 1 } else { 2 }),
            ("parts", _) => Attr::Int(if r.chance(85) { self.mapping.tp as i64 } else { self.divisor() }),
            ("stage", _) => Attr::Int(1),
            ("index", _) => Attr::Int(r.below(2) as i64),
            ("batch_dims", _) => Attr::Int(0),
            ("eps", _) => Attr::Real(Real(*r.pick(&[1e-5, 1e-6, 1e-12, 1e-20, 0.25, 1.5]))),
            ("softcap", _) => Attr::Real(Real(*r.pick(&[0.0, 0.0, 2.5, 30.0]))),
            (_, AttrKind::Real) => Attr::Real(Real(*r.pick(&[1.0, 0.125, 0.7, -0.3, 2.0]))),
            (_, AttrKind::Bool) => Attr::Bool(r.chance(50)),
            (_, AttrKind::DType) => {
                Attr::DType(if r.chance(70) && want.dtype.is_float() { want.dtype } else { *r.pick(&FLOATS) })
            }
            (_, AttrKind::Axis) => Attr::Axis(MeshAxis::Tp),
            (_, AttrKind::Str) => Attr::Str("y".to_owned()),
            (_, AttrKind::Int) => Attr::Int(r.below(3) as i64),
            _ => return Err(Miss::Untyped),
        })
    }

    fn divisor(&mut self) -> i64 {
        let tp = self.mapping.tp as i64;
        let all: Vec<i64> = (1..=tp).filter(|d| tp % d == 0).collect();
        *self.random.pick(&all)
    }

    fn template(&mut self, t: &Template) -> Attempt<NodeId> {
        let none = || Miss::Right("an attribute has no value".to_owned());
        match t {
            Template::Var(v) => self.bound(*v).ok_or_else(none),
            Template::Const { value, like } => {
                let like = self.bound(*like).ok_or_else(none)?;
                let dtype = self.ty(like).dtype;
                // The value of a constant that stands for a number is that number.
                let x = match eval::eval(self, value, &self.binds, &self.mapping).ok_or_else(none)? {
                    Attr::Real(r) => r.0,
                    Attr::Int(n) => n as f64,
                    _ => return Err(none()),
                };
                let n = self.add(Op::Const { value: Literal::scalar(dtype, x) }, &[])?;
                self.exact.push((n, x));
                Ok(n)
            }
            Template::Op { head, args, rest } => {
                let mut inputs = vec![];
                for a in args {
                    inputs.push(self.template(a)?);
                }
                inputs.extend(eval::spliced(rest, &self.binds).ok_or_else(none)?);
                let op = eval::template_op(self, head, &self.binds, &self.mapping).ok_or_else(none)?;
                let children: Vec<&Facts> = inputs.iter().map(|i| &self.facts[i.index()]).collect();
                facts_of(&op, &children).map_err(Miss::Right)?;
                self.add((*op).clone(), &inputs)
            }
        }
    }
}

/// A position below `n` that depends on nothing else.
fn r_below(n: i64) -> i64 {
    (n - 1).max(0) / 3
}
