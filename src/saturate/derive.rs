//! Derivations: from the terms of an extracted program back to those of the graph that went in.
//!
//! What an application of a rule took follows from what its variables were bound to, so that nothing
//! but the bindings is recorded while the e-graph grows.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};

use egg::{Id, Language as _};
use rustc_hash::{FxHashMap, FxHasher};

use super::from_ir::Program;
use super::language::{ENode, OpRef};
use super::names::Names;
use super::run::{Known, Provenance};
use crate::explain::{Bound, Entry, Made, Recorder, RuleText, Taken};
use crate::ir::{Attr, Graph, NodeId, Op, TensorType};
use crate::rules::RuleSet;
use crate::rules::eval::Bind;
use crate::rules::lang::{AttrPattern, Head, OpPattern, Pattern, Rule};

/// Adds the derivations of some terms to a record, and returns for each term the entry that made it.
///
/// `graph` is the one that the e-graph was made from; its nodes' entries go on.
pub(super) fn derive(
    program: &Program,
    graph: &Graph,
    names: &Names<'_>,
    rules: &RuleSet,
    terms: &[(NodeId, ENode)],
    recorder: &mut Recorder,
) -> Vec<Option<u32>> {
    let sources = Sources::new(program, graph);
    let mut needed: BTreeMap<u32, (&Provenance, Vec<TakenTerm<'_>>)> = BTreeMap::new();
    let mut todo: Vec<&Provenance> = vec![];
    let made_by = |n: &ENode| match sources.get(n) {
        Some(Source::Made(at)) => Some(&*program.made[at].1),
        _ => None,
    };
    todo.extend(terms.iter().filter_map(|(_, n)| made_by(n)));
    // A tensor filled with a number is told as little as the number: who was first to fill it has no part in what
    // others do with it.
    let filled = |n: &ENode| {
        let constant = |c: &Id| program.eg[*c].data.constant.is_some();
        matches!(*n.op, Op::Expand { .. }) && n.children().iter().all(constant)
    };
    while let Some(p) = todo.pop() {
        if let std::collections::btree_map::Entry::Vacant(e) = needed.entry(p.id) {
            let mut taken = Taker { program, sources: &sources, p }.all();
            taken.retain(|t| !filled(t.node));
            todo.extend(taken.iter().filter_map(|t| made_by(t.node)));
            e.insert((p, taken));
        }
    }
    // The numbers of applications grow with time, so that each entry comes after what it builds on.
    let mut entry_of: FxHashMap<u32, u32> = FxHashMap::default();
    let mut known: FxHashMap<String, u32> =
        recorder.record.rules.iter().enumerate().map(|(i, r)| (r.name.clone(), i as u32)).collect();
    let mut w = Writer {
        names,
        recorder,
        tensors: vec![None; program.eg.nodes().len()],
        ops: FxHashMap::default(),
        attrs: FxHashMap::default(),
        types: FxHashMap::default(),
    };
    let made = |n: &ENode, entry_of: &FxHashMap<u32, u32>| match sources.get(n)? {
        Source::Given(id) => graph.node(id).why,
        Source::Made(at) => entry_of.get(&program.made[at].1.id).copied(),
    };
    for (id, (p, taken)) in &needed {
        let rule = match known.get(&p.rule.name) {
            Some(r) => *r,
            None => {
                let n = w.recorder.record.rules.len() as u32;
                w.recorder.record.rules.push(rule_text(rules, &p.rule));
                known.insert(p.rule.name.clone(), n);
                n
            }
        };
        let vars = (0..p.binds.len()).map(|v| w.bound(p, v)).collect();
        let mut took = Vec::with_capacity(taken.len());
        for t in taken {
            let nodes = |w: &mut Writer<'_, '_>| match sources.get(t.node) {
                Some(Source::Given(id)) => graph.node(id).origin.iter().map(|o| w.recorder.text(o)).collect(),
                _ => vec![],
            };
            let from = made(t.node, &entry_of).map_or_else(|| Made::Nodes(nodes(&mut w)), Made::By);
            took.push(w.taken(t, from));
        }
        w.recorder.record.entries.push(Entry { rule, vars, took });
        entry_of.insert(*id, w.recorder.record.entries.len() as u32 - 1);
    }
    terms.iter().map(|(_, n)| made(n, &entry_of)).collect()
}

fn rule_text(rules: &RuleSet, rule: &Rule) -> RuleText {
    let text = |span: &crate::rules::sexpr::Span| rules.excerpt(rule, span);
    RuleText {
        name: rule.name.clone(),
        phase: rule.phase.name().to_owned(),
        place: format!("{}:{}", rule.file, rule.line),
        doc: rule.doc.clone(),
        left: text(&rule.left_span),
        right: text(&rule.right_span),
        guards: rule.guards.iter().map(|g| text(&g.span)).collect(),
        vars: rule.vars.clone(),
    }
}

/// Where a term comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// It is a node of the graph.
    Given(NodeId),
    /// A rule made it: its place in `Program::made`.
    Made(usize),
}

/// The source of every term: the graph before any rule, an earlier application before a later one.
struct Sources<'p> {
    program: &'p Program,
    /// Nodes of the graph that the e-graph was made from.
    given: usize,
    /// By hash of the term's canonical form; where that is taken by another term, the next. Nodes of the graph
    /// come first, then `Program::made`. Terms are not copied for this: they are many.
    table: FxHashMap<u64, usize>,
}

impl<'p> Sources<'p> {
    fn new(program: &'p Program, graph: &Graph) -> Self {
        let mut out = Sources { program, given: graph.len(), table: FxHashMap::default() };
        out.table.reserve(graph.len() + program.made.len());
        for place in 0..graph.len() + program.made.len() {
            if let Err(hash) = out.place(out.node(place)) {
                out.table.insert(hash, place);
            }
        }
        out
    }

    fn node(&self, place: usize) -> &'p ENode {
        match place.checked_sub(self.given) {
            None => &self.program.original[place].1,
            Some(at) => &self.program.made[at].0,
        }
    }

    /// Where a term stands in the table, or else the free hash that it would get.
    fn place(&self, node: &ENode) -> Result<usize, u64> {
        let find = |c: &Id| self.program.eg.find(*c);
        let mut hasher = FxHasher::default();
        node.op.hash(&mut hasher);
        node.children.iter().for_each(|c| find(c).hash(&mut hasher));
        let mut hash = hasher.finish();
        while let Some(&place) = self.table.get(&hash) {
            let have = self.node(place);
            if have.op == node.op && have.children.iter().map(find).eq(node.children.iter().map(find)) {
                return Ok(place);
            }
            hash = hash.wrapping_add(1);
        }
        Err(hash)
    }

    fn get(&self, node: &ENode) -> Option<Source> {
        let place = self.place(node).ok()?;
        Some(match place.checked_sub(self.given) {
            None => Source::Given(NodeId(place as u32)),
            Some(at) => Source::Made(at),
        })
    }
}

/// A term that a pattern took, with its class.
struct TakenTerm<'p> {
    class: Id,
    node: &'p ENode,
}

/// Finds the terms that an application of a rule took.
struct Taker<'p> {
    program: &'p Program,
    sources: &'p Sources<'p>,
    p: &'p Provenance,
}

impl<'p> Taker<'p> {
    /// The terms from the root of the pattern down. A term that is named and used twice is given once.
    fn all(&self) -> Vec<TakenTerm<'p>> {
        let mut out: Vec<TakenTerm<'p>> = vec![];
        if let Pattern::Op(root) = &self.p.rule.pattern {
            self.take(root, &mut self.p.covers.iter(), &mut out);
        }
        let mut once: Vec<TakenTerm<'p>> = Vec::with_capacity(out.len());
        for t in out {
            if !once.iter().any(|o| o.class == t.class && o.node == t.node) {
                once.push(t);
            }
        }
        once
    }

    /// Finds the term of one operator of a pattern, and those below it; its class.
    fn take<'c>(
        &self,
        o: &OpPattern,
        covers: &mut impl Iterator<Item = &'c Id>,
        out: &mut Vec<TakenTerm<'p>>,
    ) -> Option<Id> {
        let eg = &self.program.eg;
        let binds = &self.p.binds;
        let class = eg.find(*covers.next()?);
        let at = out.len();
        // A number leaves open which constant it was.
        let mut children: Vec<Option<Id>> = vec![];
        for a in &o.args {
            children.push(match a {
                Pattern::Op(inner) => self.take(inner, covers, out),
                Pattern::Var(v) => match &binds[*v] {
                    Some(Bind::Class(c)) => Some(eg.find(*c)),
                    _ => None,
                },
                Pattern::Number(_) => None,
            });
        }
        for v in o.optional.iter().chain(&o.rest) {
            if let Some(Bind::Classes(list)) = &binds[*v] {
                children.extend(list.iter().map(|c| Some(eg.find(*c))));
            }
        }
        let wanted = |op: &OpRef| match &o.head {
            Head::Class(v, _) => matches!(&binds[*v], Some(Bind::Op(b)) if b == op),
            Head::Op(kind) => {
                let is = |(want, have): (&AttrPattern, &Attr)| match want {
                    AttrPattern::Is(a) => a == have,
                    AttrPattern::Var(v) => matches!(&binds[*v], Some(Bind::Attr(a)) if a == have),
                };
                std::ptr::eq(op.row(), kind.0) && (o.attrs.is_empty() || o.attrs.iter().zip(&op.attrs()).all(is))
            }
        };
        let same =
            |have: &mut dyn Iterator<Item = Id>| have.zip(&children).all(|(h, c)| c.is_none_or(|c| c == eg.find(h)));
        let fits = |n: &&ENode| {
            let c = n.children();
            let swapped = || n.op.commutes() && same(&mut [c[1], c[0]].into_iter());
            c.len() == children.len() && (same(&mut c.iter().copied()) || swapped()) && wanted(&n.op)
        };
        // Of several, the one that was there first was there when the rule was applied.
        if let Some(n) =
            eg[class].nodes.iter().filter(fits).min_by_key(|n| (self.sources.get(n).is_none(), self.sources.get(n)))
        {
            out.insert(at, TakenTerm { class, node: n });
        }
        Some(class)
    }
}

/// Writes classes and operators into a record, each once.
struct Writer<'w, 'p> {
    names: &'w Names<'p>,
    recorder: &'w mut Recorder,
    /// By class.
    tensors: Vec<Option<u32>>,
    ops: FxHashMap<OpRef, u32>,
    attrs: FxHashMap<Attr, u32>,
    types: FxHashMap<&'p [TensorType], u32>,
}

impl<'p> Writer<'_, 'p> {
    fn tensor(&mut self, class: Id) -> u32 {
        let program: &'p Program = self.names.program();
        let class = program.eg.find(class);
        if let Some(t) = self.tensors[usize::from(class)] {
            return t;
        }
        let name = self.recorder.text(&self.names.class(class));
        let facts = &program.eg[class].data;
        let ty = match self.types.get(&*facts.types) {
            // A constant has its value beside its type.
            Some(t) if facts.constant.is_none() => *t,
            _ => {
                let t = self.recorder.text(&self.names.ty(class));
                if facts.constant.is_none() {
                    self.types.insert(&facts.types, t);
                }
                t
            }
        };
        let t = self.recorder.tensor(name, ty);
        self.tensors[usize::from(class)] = Some(t);
        t
    }

    fn op(&mut self, op: &OpRef) -> u32 {
        if let Some(t) = self.ops.get(op) {
            return *t;
        }
        let t = self.recorder.text(&op.to_string());
        self.ops.insert(op.clone(), t);
        t
    }

    fn taken(&mut self, t: &TakenTerm<'_>, made: Made) -> Taken {
        let tensor = self.tensor(t.class);
        let op = self.op(&t.node.op);
        let operands = t.node.children().iter().map(|c| self.tensor(*c)).collect();
        Taken { tensor, op, operands, made }
    }

    fn bound(&mut self, p: &Provenance, v: usize) -> Bound {
        match &p.binds[v] {
            _ if p.rule.vars[v].starts_with('_') => Bound::Nothing,
            None => Bound::Nothing,
            Some(Bind::Attr(a)) => Bound::Text(match self.attrs.get(a) {
                Some(t) => *t,
                None => {
                    let t = self.recorder.text(&a.to_string());
                    self.attrs.insert(a.clone(), t);
                    t
                }
            }),
            Some(Bind::Op(op)) => Bound::Text(self.op(op)),
            Some(Bind::Class(c)) => {
                let facts = p.facts.get(v).copied().flatten().map_or(0, bits);
                Bound::Tensor(self.tensor(*c), facts)
            }
            Some(Bind::Classes(cs)) => Bound::Tensors((cs.iter().map(|c| self.tensor(*c)).collect(),)),
        }
    }
}

/// Facts as a record holds them.
pub(super) fn bits(k: Known) -> u8 {
    let bit = |holds: bool, b: u8| if holds { b } else { 0 };
    bit(k.replicated, Bound::REPLICATED)
        + bit(k.weight, Bound::WEIGHT)
        + bit(k.leaf, Bound::LEAF)
        + bit(k.free, Bound::FREE)
}
