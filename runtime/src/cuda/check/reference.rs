//! The CPU back end as a reference.

use super::CheckError;
use crate::comm::Solo;
use crate::cpu::{self, Env};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::{Tensor, View, ViewMut};

/// What the CPU kernel of an operator computes; `results` are the types of all its results.
pub(super) fn on_cpu(op: &Op, x: &[&Tensor], results: &[(DType, Vec<usize>)]) -> Result<Vec<Tensor>, CheckError> {
    let fail = |e: String| CheckError::Reference(format!("{}: {e}", op.name()));
    let mut out = results
        .iter()
        .map(|(dtype, shape)| Tensor::zeros(*dtype, shape).map_err(|e| fail(e.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    let operands: Vec<View<'_>> = x.iter().map(|t| t.view()).collect();
    let mut places: Vec<Option<ViewMut<'_>>> = out.iter_mut().map(|t| Some(t.view_mut())).collect();
    let mut env = Env { bindings: &Bindings::new(), threads: 1, comm: &mut Solo };
    cpu::execute(op, &operands, &mut places, &mut env).map_err(|e| fail(e.to_string()))?;
    Ok(out)
}
