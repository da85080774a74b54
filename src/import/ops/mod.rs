//! ONNX operators, one file per family.

mod layout;
mod math;
mod nn;
mod shape;

use super::context::{Context, OpError, Result, Val};
use super::proto::NodeProto;

/// Whether there is an importer for a node's operator.
pub(super) fn supported(n: &NodeProto) -> bool {
    match n.domain() {
        "" | "ai.onnx" => {
            shape::OPS.contains(&n.op_type())
                || layout::OPS.contains(&n.op_type())
                || math::supported(n.op_type())
                || nn::OPS.contains(&n.op_type())
        }
        "com.microsoft" => nn::CONTRIB.contains(&n.op_type()),
        _ => false,
    }
}

/// Whether a node only moves elements, whatever their type.
pub(super) fn moves(n: &NodeProto) -> bool {
    matches!(n.domain(), "" | "ai.onnx") && (layout::OPS.contains(&n.op_type()) || n.op_type() == "Identity")
}

/// Imports one node: its results in order.
pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    // Shape arithmetic on known integers needs no node.
    if let Some(v) = shape::evaluate(cx, n)? {
        return Ok(vec![Val::Sym(v)]);
    }
    let op = n.op_type();
    if layout::OPS.contains(&op) {
        layout::import(cx, n)
    } else if math::supported(op) {
        math::import(cx, n)
    } else if nn::OPS.contains(&op) || nn::CONTRIB.contains(&op) {
        nn::import(cx, n)
    } else {
        shape::import(cx, n)
    }
}

/// The opset before 7 since which an operator means the same as in 7. The others had attributes for broadcasting, types
/// or shapes that later versions do not have.
pub(super) fn since(op: &str) -> Option<i64> {
    Some(match op {
        "Abs" | "ArgMax" | "ArgMin" | "Ceil" | "Clip" | "Constant" | "Elu" | "Exp" | "Flatten" | "Floor" | "Gather"
        | "HardSigmoid" | "Hardmax" | "Identity" | "LRN" | "LeakyRelu" | "Log" | "LogSoftmax" | "LpNormalization"
        | "MatMul" | "Max" | "Mean" | "Min" | "Neg" | "Not" | "Reciprocal" | "ReduceL1" | "ReduceL2"
        | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean" | "ReduceMin" | "ReduceProd"
        | "ReduceSum" | "ReduceSumSquare" | "Relu" | "Shape" | "Sigmoid" | "Size" | "Slice" | "Softmax"
        | "Softplus" | "Softsign" | "Sqrt" | "Squeeze" | "Sum" | "Tanh" | "TopK" | "Transpose" | "Unsqueeze" => 1,
        "Split" => 2,
        "Concat" => 4,
        "Reshape" => 5,
        "Cast" | "InstanceNormalization" | "Selu" | "Tile" => 6,
        _ => return None,
    })
}

/// An axis counted from the front.
fn axis(axis: i64, rank: usize) -> Result<usize> {
    let a = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(a)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| OpError::from(format!("axis {axis} is outside rank {rank}")))
}
