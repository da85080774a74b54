//! The reference program of a model that communicates: one rank stands for all.

use crate::ir::{Graph, Literal, Node, NodeId, Op};

/// The graph without communication, for one rank. All ranks read the same weights and inputs, so that a sum over
/// `tp` of them is `tp` times the value of one.
pub(super) fn alone(graph: &Graph, tp: usize) -> Graph {
    let mut out = Graph::new(&graph.name);
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.len());
    for (_, n) in graph.nodes() {
        let mut node = n.clone();
        node.inputs.iter_mut().for_each(|i| *i = map[i.index()]);
        if let Op::AllReduce { .. } = n.op {
            let value = Literal::scalar(n.ty().dtype, tp as f64);
            let types = vec![value.tensor_type()];
            let name = format!("{}.ranks", n.name);
            let (inputs, origin, rules) = (vec![], n.origin.clone(), vec![]);
            let ranks = Node { op: Op::Const { value }, inputs, types, name, origin, rules, why: None, stage: None };
            node.inputs.push(out.push(ranks));
            node.op = Op::Mul {};
        }
        map.push(out.push(node));
    }
    for o in graph.outputs() {
        out.push_output(crate::ir::Output { value: map[o.value.index()], ..o.clone() });
    }
    out
}
