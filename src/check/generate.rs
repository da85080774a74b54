//! Instances of a rule: small programs that its left side matches, with both sides in one graph.
//!
//! The left side is built from the leaves up. Types of operands are chosen so that operators accept
//! them, guards are evaluated on the facts of what was built, and what does not fit is thrown away.

mod choose;

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::hints::Hint;
use super::random::Random;
use super::shapes::{self, Pool, ty};
use crate::ir::{
    Attr, AttrKind, Bindings, DType, Dim, Graph, Literal, Mapping, MeshAxis, Node, NodeId, Op, OpInfo, OpRef,
    TensorType, broadcasts_always, op,
};
use crate::rules::eval::{self, Bind, Known};
use crate::rules::facts::Facts;
use crate::rules::lang::{GuardKind, Head, OpClass, OpPattern, Pattern, Purpose, Rule, Target, Template, VarId};
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
    /// Whether tensors may have no elements.
    pub(super) empty: bool,
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
    let pool = Pool::new(random, t.tp, t.level, symbol, t.empty);
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
            // No other type holds it, so that no constant of one matches.
            Pattern::Number(x) if !want.dtype.is_float() && x.fract() != 0.0 => Err(Miss::Untyped),
            Pattern::Number(x) => {
                let n = self.constant(*x, want.dtype, &want.shape)?;
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
    fn constant(&mut self, x: f64, dtype: DType, shape: &[Dim]) -> Attempt<NodeId> {
        let shape: Vec<usize> = match self.random.below(10) {
            0 => vec![1; 1 + self.random.below(2)],
            1 => shapes::extents(&shapes::broadcasts_to(self.random, shape)),
            _ => vec![],
        };
        self.constant_of(x, dtype, &shape)
    }

    fn constant_of(&mut self, x: f64, dtype: DType, shape: &[usize]) -> Attempt<NodeId> {
        let n: usize = shape.iter().product();
        if n > 64 {
            return Err(Miss::Untyped);
        }
        let value = Literal { dtype, shape: shape.to_vec(), data: Literal::scalar(dtype, x).data.repeat(n) };
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
            let x = x.unwrap_or_else(|| *self.random.pick(&[0.5, 2.0, -1.5, 0.125, 3.0, 1.0, 0.5, 2.0, 0.0, 100.0]));
            return match (h.single, h.scalar) {
                (true, _) => {
                    let rank = self.random.below(3);
                    self.constant_of(x, t.dtype, &vec![1; rank])
                }
                (_, true) => self.constant_of(x, t.dtype, &[]),
                _ if h.misshapen && self.random.chance(75) => {
                    let shape: Vec<usize> = if self.random.chance(60) {
                        vec![1; 1 + self.random.below(5)]
                    } else {
                        shapes::extents(&shapes::partner(self.random, &self.pool, &t.shape))
                    };
                    self.constant_of(x, t.dtype, &shape)
                }
                _ => self.constant(x, t.dtype, &t.shape.clone()),
            };
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
            (true, ..) if r < 72 => self.weight(t),
            (true, ..) if r < 84 => self.computed_weight(t),
            (true, ..) if r < 92 => self.part_of_weight(t),
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

    /// A weight that differs between the ranks.
    fn part_of_weight(&mut self, mut t: TensorType) -> Attempt<NodeId> {
        let parts = self.parts;
        let Some(d) = t.shape.first_mut() else { return self.weight(t) };
        *d = &*d * &Dim::from(parts);
        let w = self.weight(t)?;
        self.add(Op::Shard { dim: 0, axis: MeshAxis::Tp, parts }, &[w])
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
                let of_operand = match a.name {
                    "dim" | "axes" | "perm" | "shape" | "start" | "end" | "step" | "tokens" => true,
                    "axis" => a.kind == AttrKind::Int && !matches!(info.name, "concat" | "gather"),
                    _ => false,
                };
                if !of_operand {
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
        let made = self.add(op, &inputs)?;
        let types: Vec<&[TensorType]> = inputs.iter().map(|i| &self.facts[i.index()].types[..]).collect();
        let result = &self.facts[made.index()].types[..];
        if !eval::numbers_are_neutral(&self.graph.node(made).op, &types, &o.args, result) {
            return Err(Miss::Untyped);
        }
        Ok(made)
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
        // Now and then the other way round, so that terms adapt to new variables.
        if self.random.chance(20) {
            order.reverse();
        }
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

    fn template(&mut self, t: &Template) -> Attempt<NodeId> {
        let none = || Miss::Right("an attribute has no value".to_owned());
        match t {
            Template::Var(v) => self.bound(*v).ok_or_else(none),
            Template::Const { value, like } => {
                let like = self.bound(*like).ok_or_else(none)?;
                let dtype = self.ty(like).dtype;
                // The value of a constant that stands for a number is that number.
                let x = eval::number(self, value, &self.binds, &self.mapping).ok_or_else(none)?;
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
                let children: Vec<&Facts> = inputs.iter().map(|i| &self.facts[i.index()]).collect();
                let op = eval::template_op(self, head, &self.binds, &self.mapping, &children).ok_or_else(none)?;
                facts_of(&op, &children).map_err(Miss::Right)?;
                let operands: Vec<&[TensorType]> = children.iter().map(|f| &f.types[..]).collect();
                if !broadcasts_always(&op, &operands) {
                    return Err(Miss::Right("the operands do not broadcast for all values of the symbols".to_owned()));
                }
                self.add((*op).clone(), &inputs)
            }
        }
    }
}
