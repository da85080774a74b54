//! The e-class analysis: types, constants, and what is replicated over which mesh axis.

use std::sync::Arc;

use egg::{Analysis, DidMerge, EGraph, Id};

use super::language::ENode;
use crate::ir::{Class, MeshAxis, Op, TensorType, infer};
use crate::rules::facts::Facts;

/// The e-graph of the compiler.
pub type Graph = EGraph<ENode, Knowledge>;

/// The analysis, with the classes that changed since they were last taken.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// Classes that are new, or whose terms or facts changed.
    pub changed: Vec<Id>,
}

/// The facts of a term, or why it is no term.
pub fn facts_of(op: &Op, children: &[&Facts]) -> Result<Facts, String> {
    let operands: Vec<&[TensorType]> = children.iter().map(|f| &f.types[..]).collect();
    let types = infer(op, &operands).map_err(|e| e.message)?;
    let mut stage = None;
    for s in children.iter().filter_map(|f| f.stage) {
        match stage.replace(s) {
            Some(t) if t != s => return Err(format!("`{}` of values of stages {t} and {s}", op.name())),
            _ => {}
        }
    }
    let leaf_class = op.info().class == Class::Leaf;
    let any_varies = children.iter().any(|f| f.varies_over_tp);
    let varies_over_tp = match op {
        Op::Shard { axis: MeshAxis::Tp, .. } => true,
        Op::AllReduce { axis: MeshAxis::Tp } | Op::AllGather { axis: MeshAxis::Tp, .. } => false,
        Op::VocabGather { axis: MeshAxis::Tp } => true,
        Op::OutputSharded { .. } => false,
        op if op.norm().is_some_and(|n| n.axis() == Some(MeshAxis::Tp)) => {
            children[1..].iter().any(|f| f.varies_over_tp)
        }
        _ => any_varies,
    };
    // A weight with more than one axis longer than 1 belongs to the stage that uses it.
    let weight = match op {
        Op::Weight { .. } | Op::Const { .. } => true,
        Op::Input { .. } | Op::Dims { .. } | Op::Range { .. } => false,
        _ => !children.is_empty() && children.iter().all(|f| f.weight),
    };
    let free = match op {
        Op::Weight { .. } => !types[0].is_matrix(),
        Op::Input { .. } => true,
        _ if leaf_class => true,
        Op::AllReduce { .. } | Op::AllGather { .. } => false,
        _ => children.iter().all(|f| f.free),
    };
    if let Op::Boundary { stage: s } = op {
        stage = Some(*s);
    } else if stage.is_none() && !free && !weight && !leaf_class {
        // What depends on weights and has crossed no boundary belongs to the first stage.
        stage = Some(0);
    }
    let constant = match op {
        Op::Const { value } => Some(value.clone()),
        _ => None,
    };
    // The host cuts one range out of a weight, not a range of a range.
    let range_of_weight = matches!(op, Op::Slice { step: 1, .. })
        && children[0].leaf
        && children[0].weight
        && children[0].constant.is_none()
        && !children[0].range_of_weight;
    let leaf = leaf_class || range_of_weight;
    Ok(Facts { types: types.into(), constant, weight, free, leaf, range_of_weight, varies_over_tp, stage })
}

/// The facts of every node of a graph.
pub fn facts(graph: &crate::ir::Graph) -> Result<Vec<Facts>, String> {
    let mut out: Vec<Facts> = Vec::with_capacity(graph.len());
    for (_, n) in graph.nodes() {
        let children: Vec<&Facts> = n.inputs.iter().map(|i| &out[i.index()]).collect();
        let f = facts_of(&n.op, &children)?;
        out.push(f);
    }
    Ok(out)
}

impl Analysis<ENode> for Knowledge {
    type Data = Facts;

    fn make(egraph: &mut EGraph<ENode, Self>, enode: &ENode, _id: Id) -> Facts {
        let children: Vec<&Facts> = enode.children.iter().map(|&c| &egraph[c].data).collect();
        // Terms are checked before they are added, so that this cannot fail; were it to, the empty type
        // would make every later use of the class fail its own check.
        facts_of(&enode.op, &children).unwrap_or_else(|_| Facts::of_types(Arc::from([])))
    }

    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        let before = a.clone();
        // Equal terms: what is known of one is known of the other.
        a.constant = a.constant.take().or(b.constant.clone());
        a.weight |= b.weight;
        a.free |= b.free;
        a.leaf |= b.leaf;
        a.range_of_weight |= b.range_of_weight;
        a.varies_over_tp &= b.varies_over_tp;
        a.stage = match (a.stage, b.stage) {
            (Some(x), Some(y)) => Some(x.max(y)),
            // A free term may be computed by any stage.
            _ => None,
        };
        DidMerge(*a != before, *a != b)
    }

    fn modify(egraph: &mut EGraph<ENode, Self>, id: Id) {
        egraph.analysis.changed.push(id);
    }
}
