//! The verifier that runs between any two stages.
//!
//! A graph that passes never makes a later stage panic; a stage that panics on one is at fault.

use std::collections::BTreeSet;

use super::{Graph, TensorType, infer};

/// A defect of a graph. Import errors are found before a graph exists, so this is a defect of the
/// stage that made the graph, or of a text form that was written by hand.
#[derive(Debug, thiserror::Error)]
#[error("`{node}`: {message}")]
pub struct VerifyError {
    /// Name of the node or output.
    pub node: String,
    /// What is wrong.
    pub message: String,
}

/// Checks order, arity, types, names and outputs.
pub fn verify(graph: &Graph) -> Result<(), VerifyError> {
    let mut names = BTreeSet::new();
    for (id, node) in graph.nodes() {
        let error = |message: String| VerifyError { node: node.name.clone(), message };
        if !names.insert(&node.name) {
            return Err(error("the name is used twice".into()));
        }
        if let Some(late) = node.inputs.iter().find(|i| **i >= id) {
            return Err(error(format!("operand {} is not an earlier node", late.0)));
        }
        let operands: Vec<&[_]> = node.inputs.iter().map(|&i| &graph.node(i).types[..]).collect();
        let types = infer(&node.op, &operands).map_err(|e| error(e.message))?;
        if types != node.types {
            let text = |types: &[TensorType]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(error(format!(
                "declared as {}, but `{}` gives {}",
                text(&node.types),
                node.op.name(),
                text(&types)
            )));
        }
    }
    let mut results = BTreeSet::new();
    for o in graph.outputs() {
        let error = |message: String| VerifyError { node: format!("output {}", o.name), message };
        if o.value.index() >= graph.len() {
            return Err(error("names a node that does not exist".into()));
        }
        if graph.node(o.value).types.len() != 1 {
            return Err(error("is a tuple".into()));
        }
        if !results.insert(&o.name) {
            return Err(error("the name is used twice".into()));
        }
        if o.part.is_some_and(|p| p.dim >= graph.node(o.value).ty().rank()) {
            return Err(error("is cut along an axis that it does not have".into()));
        }
    }
    Ok(())
}
