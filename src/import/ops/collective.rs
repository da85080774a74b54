//! Communication between ranks that a model already contains.
//!
//! Such a model is the program of each rank of a tensor-parallel group: all of them read the weights of
//! the file as they are.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, Val};
use super::super::proto::NodeProto;
use crate::ir::{MeshAxis, Op};

/// Operators of ONNX Runtime's own domain.
pub(super) const CONTRIB: &[&str] = &["AllReduce"];

/// TensorRT's operator for several devices; it stands in any domain.
pub(super) const DIST: &str = "DistCollective";

pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    if n.op_type() == DIST {
        all_reduce_of_devices(cx, n)?;
        if n.input.len() != 1 {
            return Err(OpError::from(format!("`{DIST}` takes 1 operand, not {}", n.input.len())));
        }
    }
    let mut out = vec![];
    for i in 0..n.input.len() {
        let x = cx.operand(n, i)?;
        out.push(Val::Node(cx.add(Op::AllReduce { axis: MeshAxis::Tp }, &[x])?));
    }
    Ok(out)
}

/// Checks that the attributes of a `DistCollective` ask for a sum over all ranks, and notes how many there are.
fn all_reduce_of_devices(cx: &mut Context<'_>, n: &NodeProto) -> Result<()> {
    let text = |name: &str| attrs::text(n, name).map(|t| t.to_ascii_lowercase());
    let what = text("collective_operation").ok_or("attribute `collective_operation` is missing")?;
    if what != "all_reduce" {
        return Err(OpError::from(format!("collective_operation `{what}` is not supported; all_reduce is")));
    }
    let how = text("reduce_op").unwrap_or_else(|| "sum".to_owned());
    if how != "sum" {
        return Err(OpError::from(format!("reduce_op `{how}` is not supported; sum is")));
    }
    // Without a number above 1 the file does not say how many ranks there are.
    let mut stated: Vec<i64> = ["nb_rank", "group_size"].iter().filter_map(|a| attrs::int(n, a)).collect();
    for name in ["group", "groups"] {
        let members = attrs::ints(n, name).unwrap_or_default();
        let in_order = members.iter().enumerate().all(|(i, &m)| m == i as i64);
        if !in_order {
            return Err(OpError::from(format!("`{name}` {members:?} is not the group of all ranks 0, 1, ..")));
        }
        stated.push(members.len() as i64);
    }
    stated.retain(|&s| s > 1);
    for s in stated {
        let s = usize::try_from(s).unwrap_or(usize::MAX);
        match cx.ranks {
            Some(r) if r != s => {
                return Err(OpError::from(format!("it states {s} ranks, and the model states {r} elsewhere")));
            }
            _ => cx.ranks = Some(s),
        }
    }
    Ok(())
}
