//! Extraction for tests: the terms that one rule made are taken wherever there is a choice.
//!
//! The cost model takes few of the rules' terms; a rule is checked by executing what it says.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use egg::{Id, Language as _};
use sinter::ir::{Class, Graph, Node, NodeId, Op, Output, Part};
use sinter::saturate::Program;
use sinter::saturate::language::ENode;

/// What a term costs that computes; leaves, their parts and what the tested rule made cost 1. Costs are
/// positive, so that the cheapest terms form no cycle.
const COMPUTED: u64 = 1000;

/// The program with the terms of a rule, and whether it has any of them.
pub(crate) fn forced(program: &Program, graph: &Graph, rule: &str) -> (Graph, bool) {
    let eg = &program.eg;
    let made: HashSet<ENode> = program
        .made
        .iter()
        .filter(|(_, p)| p.rule.name == rule)
        .map(|(n, _)| n.clone().map_children(|c| eg.find(c)))
        .collect();
    let mut term = cheapest(program, &made);
    // Terms of the rule that cost more than what they replace are taken unless they form a cycle.
    for (class, node) in all_terms(program).filter(|(_, n)| made.contains(n)) {
        let old = term.insert(class, node);
        if !acyclic(program, &term) {
            term.insert(class, old.unwrap());
        }
    }
    let mut b = Builder { program, term, out: Graph::new(&graph.name), map: BTreeMap::new(), taken: BTreeSet::new() };
    for (id, n) in graph.nodes().filter(|(_, n)| matches!(n.op, Op::Input { .. })) {
        let new = b.out.push(n.clone());
        b.taken.insert(n.name.clone());
        b.map.insert(eg.find(program.classes[id.index()]), new);
    }
    for (o, &root) in graph.outputs().iter().zip(&program.roots) {
        let root = b.term[&eg.find(root)].clone();
        let value = b.add(eg.find(root.children[0]));
        let part = match &*root.op {
            Op::OutputSharded { dim, axis, parts, .. } => {
                Some(Part { dim: *dim as usize, axis: *axis, parts: *parts as usize })
            }
            _ => None,
        };
        b.out.push_output(Output { value, part, ..o.clone() });
    }
    let uses = b.map.keys().any(|c| b.term.get(c).is_some_and(|t| made.contains(t)))
        || program.roots.iter().any(|r| made.contains(&b.term[&eg.find(*r)]));
    (b.out, uses)
}

/// Every term with its class, in a fixed order.
fn all_terms(program: &Program) -> impl Iterator<Item = (Id, ENode)> {
    let eg = &program.eg;
    let mut ids: Vec<Id> = eg.classes().map(|c| c.id).collect();
    ids.sort_unstable();
    let terms = move |id: Id| eg[id].nodes.iter().map(move |n| (id, n.clone().map_children(|c| eg.find(c))));
    ids.into_iter().flat_map(terms)
}

/// Whether the terms that the roots lead to form no cycle.
fn acyclic(program: &Program, term: &BTreeMap<Id, ENode>) -> bool {
    fn visit(id: Id, term: &BTreeMap<Id, ENode>, open: &mut BTreeMap<Id, bool>) -> bool {
        if let Some(&is_open) = open.get(&id) {
            return !is_open;
        }
        open.insert(id, true);
        let ok = term[&id].children.iter().all(|&c| visit(c, term, open));
        open.insert(id, false);
        ok
    }
    let mut open = BTreeMap::new();
    program.roots.iter().all(|&r| visit(program.eg.find(r), term, &mut open))
}

/// The cheapest term of each class.
fn cheapest(program: &Program, made: &HashSet<ENode>) -> BTreeMap<Id, ENode> {
    let eg = &program.eg;
    let mut best: BTreeMap<Id, (u64, ENode)> = BTreeMap::new();
    loop {
        let mut changed = false;
        for (id, node) in all_terms(program) {
            let leaf = match &*node.op {
                Op::Shard { .. } => eg[node.children[0]].data.leaf,
                op => op.info().class == Class::Leaf,
            };
            let own = if leaf || made.contains(&node) { 1 } else { COMPUTED };
            let sum = node.children.iter().try_fold(own, |s: u64, c| Some(s.saturating_add(best.get(c)?.0)));
            if let Some(sum) = sum
                && best.get(&id).is_none_or(|(b, _)| sum < *b)
            {
                best.insert(id, (sum, node));
                changed = true;
            }
        }
        if !changed {
            return best.into_iter().map(|(id, (_, n))| (id, n)).collect();
        }
    }
}

struct Builder<'p> {
    program: &'p Program,
    term: BTreeMap<Id, ENode>,
    out: Graph,
    map: BTreeMap<Id, NodeId>,
    taken: BTreeSet<String>,
}

impl Builder<'_> {
    fn add(&mut self, class: Id) -> NodeId {
        if let Some(&n) = self.map.get(&class) {
            return n;
        }
        let term = self.term[&class].clone();
        let inputs: Vec<NodeId> = term.children.iter().map(|&c| self.add(self.program.eg.find(c))).collect();
        let data = &self.program.eg[class].data;
        let op = (*term.op).clone();
        let leaf = op.info().class == Class::Leaf;
        let name = match &op {
            Op::Weight { name, .. } | Op::Input { name, .. } => name.clone(),
            _ => (0..).map(|i| format!("{}.{i}", op.name())).find(|n| !self.taken.contains(n)).unwrap(),
        };
        self.taken.insert(name.clone());
        let stage = if leaf { None } else { data.stage.map(|s| s as usize) };
        let node =
            Node { op, inputs, types: data.types.to_vec(), name, origin: vec![], rules: vec![], why: None, stage };
        let id = self.out.push(node);
        self.map.insert(class, id);
        id
    }
}
