//! ONNX operators, one file per family.

mod attention;
mod contrib;
mod contrib_attention;
mod contrib_moe;
mod contrib_quant;
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
                || attention::OPS.contains(&n.op_type())
        }
        "com.microsoft" => nn::CONTRIB.contains(&n.op_type()) || contrib::supported(n.op_type()),
        _ => false,
    }
}

/// Imports one node: its results in order.
pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    if n.domain() == "com.microsoft" && contrib::supported(n.op_type()) {
        return contrib::import(cx, n);
    }
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
    } else if attention::OPS.contains(&op) {
        attention::import(cx, n)
    } else {
        shape::import(cx, n)
    }
}

/// An axis counted from the front.
fn axis(axis: i64, rank: usize) -> Result<usize> {
    let a = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(a)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| OpError::from(format!("axis {axis} is outside rank {rank}")))
}
