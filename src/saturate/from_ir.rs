//! From a graph to an e-graph.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use egg::Id;

use super::analysis::{Graph as EGraph, Knowledge};
use super::language::{ENode, OpRef};
use super::run::Provenance;
use crate::ir::{Graph, NodeId, Op};

/// An e-graph with the program that it was made from.
pub struct Program {
    /// The e-graph.
    pub eg: EGraph,
    /// The class of each result, as an `output` term, in the model's order.
    pub roots: Vec<Id>,
    /// The class of every node of the graph, by node.
    pub classes: Vec<Id>,
    /// The e-nodes of the original program, by node, then by output; operands as they were added.
    pub original: Vec<(Id, ENode)>,
    /// Who made which e-node.
    pub made: Vec<(ENode, Arc<Provenance>)>,
}

/// Adds a verified graph to a new e-graph.
pub fn load(graph: &Graph) -> Program {
    let mut eg = EGraph::new(Knowledge::default());
    let mut classes: Vec<Id> = Vec::with_capacity(graph.len());
    let mut original = Vec::with_capacity(graph.len());
    let mut add = |eg: &mut EGraph, op: Op, children: Vec<Id>| {
        let node = ENode { op: OpRef::new(op), children: children.into() };
        let id = eg.add(node.clone());
        original.push((id, node));
        id
    };
    for (_, n) in graph.nodes() {
        let children = n.inputs.iter().map(|i: &NodeId| classes[i.index()]).collect();
        let id = add(&mut eg, n.op.clone(), children);
        classes.push(id);
    }
    let mut roots = vec![];
    for o in graph.outputs() {
        let op = Op::Output { name: o.name.clone(), state: o.state };
        roots.push(add(&mut eg, op, vec![classes[o.value.index()]]));
    }
    eg.rebuild();
    Program { eg, roots, classes, original, made: vec![] }
}

impl Program {
    /// The e-nodes that a rule made, in canonical form.
    pub fn made_by(&self, rule: &str) -> HashSet<ENode> {
        use egg::Language as _;
        let made = self.made.iter().filter(|(_, p)| p.rule.name == rule);
        made.map(|(n, _)| n.clone().map_children(|c| self.eg.find(c))).collect()
    }

    /// Who made each e-node first, by its canonical form.
    pub fn provenance(&self) -> HashMap<ENode, &Arc<Provenance>> {
        use egg::Language as _;
        let canonical = |n: &ENode| n.clone().map_children(|c| self.eg.find(c));
        self.made.iter().rev().map(|(n, p)| (canonical(n), p)).collect()
    }
}
