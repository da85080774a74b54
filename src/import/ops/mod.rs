//! ONNX operators, one file per family.

mod attention;
mod collective;
mod contrib;
mod contrib_attention;
mod contrib_moe;
mod contrib_quant;
mod decompose;
mod layout;
mod math;
mod norms;
mod quant;
mod shape;

use super::context::{Context, OpError, Result, Val};
use super::proto::NodeProto;

/// Whether there is an importer for a node's operator.
pub(super) fn supported(n: &NodeProto) -> bool {
    if n.op_type() == collective::DIST {
        return true;
    }
    match n.domain() {
        "" | "ai.onnx" => {
            shape::OPS.contains(&n.op_type())
                || layout::OPS.contains(&n.op_type())
                || decompose::OPS.contains(&n.op_type())
                || math::supported(n.op_type())
                || attention::OPS.contains(&n.op_type())
                || norms::OPS.contains(&n.op_type())
                || quant::OPS.contains(&n.op_type())
        }
        "com.microsoft" => {
            norms::CONTRIB.contains(&n.op_type())
                || collective::CONTRIB.contains(&n.op_type())
                || contrib::supported(n.op_type())
        }
        quant::DOMAIN => quant::TRT.contains(&n.op_type()),
        _ => false,
    }
}

/// Every operator that has an importer: domain and name.
pub(super) fn names() -> Vec<(&'static str, &'static str)> {
    let own = [
        shape::OPS,
        layout::OPS,
        decompose::OPS,
        math::BINARY,
        math::UNARY,
        math::OTHERS,
        attention::OPS,
        norms::OPS,
        quant::OPS,
    ];
    let contributed = [norms::CONTRIB, collective::CONTRIB, contrib::OPS];
    let own = own.into_iter().flatten().map(|&n| ("", n));
    let contributed = contributed.into_iter().flatten().map(|&n| ("com.microsoft", n));
    own.chain(contributed).chain(quant::TRT.iter().map(|&n| (quant::DOMAIN, n))).collect()
}

/// Whether a node only moves elements, whatever their type.
pub(super) fn moves(n: &NodeProto) -> bool {
    matches!(n.domain(), "" | "ai.onnx") && (layout::OPS.contains(&n.op_type()) || n.op_type() == "Identity")
}

/// Whether a node may have operands of quantised types.
pub(super) fn takes_quantised(n: &NodeProto) -> bool {
    moves(n) || quant::takes(n)
}

/// Whether a node may have an operand of four-bit codes, which it takes apart.
pub(super) fn takes_codes(n: &NodeProto, dtype: crate::ir::DType) -> bool {
    use crate::ir::DType;
    n.domain() == "com.microsoft" && n.op_type() == "GatherBlockQuantized" && matches!(dtype, DType::I4 | DType::U4)
}

/// Imports one node: its results in order.
pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    if n.domain() == "com.microsoft" && contrib::supported(n.op_type()) {
        return contrib::import(cx, n);
    }
    // Shape arithmetic on known integers needs no node, whatever the operator.
    if matches!(n.domain(), "" | "ai.onnx") {
        if let Some(v) = shape::evaluate(cx, n)? {
            return Ok(vec![Val::Sym(v)]);
        }
        if n.op_type() == "Split"
            && let Some(parts) = shape::split(cx, n)?
        {
            return Ok(parts.into_iter().map(Val::Sym).collect());
        }
    }
    if !supported(n) {
        return Err(OpError::from("it is none of sinter's own operators"));
    }
    let op = n.op_type();
    if n.domain() == quant::DOMAIN || quant::OPS.contains(&op) {
        return quant::import(cx, n);
    }
    if layout::OPS.contains(&op) {
        // Codes and zero points of quantised weights arrive as constants where they are small.
        if let Some(results) = super::standard::moved_codes(cx, n)? {
            return Ok(results);
        }
        layout::import(cx, n)
    } else if decompose::OPS.contains(&op) {
        decompose::import(cx, n)
    } else if math::supported(op) {
        math::import(cx, n)
    } else if attention::OPS.contains(&op) {
        attention::import(cx, n)
    } else if norms::OPS.contains(&op) || norms::CONTRIB.contains(&op) {
        norms::import(cx, n)
    } else if op == collective::DIST || collective::CONTRIB.contains(&op) {
        collective::import(cx, n)
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
