//! Declared kernels: their bodies, one operator after the other.

use super::{Env, KernelError, Result, execute};
use crate::body::Body;
use crate::tensor::{Tensor, View, ViewMut};

pub(super) fn kernel(body: &Body, x: &[View<'_>], out: &mut [Option<ViewMut<'_>>], env: &mut Env<'_>) -> Result {
    if !body.is_sound() || x.len() != body.operands {
        return Err(KernelError::NotAStep(format!("{} operands of kernel `{}`", x.len(), body.name)));
    }
    let mut made: Vec<Tensor> = vec![];
    for s in &body.steps {
        let extent = |d| env.eval(d).and_then(|n| usize::try_from(n).map_err(|e| KernelError::Shape(e.to_string())));
        let shape: Vec<usize> = s.ty.shape.iter().map(extent).collect::<Result<_>>()?;
        let mut t = Tensor::zeros(s.ty.dtype, &shape).map_err(|e| KernelError::Shape(e.to_string()))?;
        let operand = |&n: &usize| match n.checked_sub(x.len()) {
            None => x[n],
            Some(i) => made[i].view(),
        };
        let operands: Vec<View<'_>> = s.inputs.iter().map(operand).collect();
        execute(&s.op, &operands, &mut [Some(t.view_mut())], env)?;
        made.push(t);
    }
    for (o, &n) in out.iter_mut().zip(&body.results) {
        let Some(o) = o else { continue };
        let t = &made[n - x.len()];
        if (o.dtype, o.shape) != (t.dtype, &t.shape[..]) {
            let (have, want) = (t.view(), &*o);
            return Err(KernelError::Shape(format!(
                "kernel `{}` gives {}{:?} for {}{:?}",
                body.name, have.dtype, have.shape, want.dtype, want.shape
            )));
        }
        o.bytes.copy_from_slice(t.bytes());
    }
    Ok(())
}
