//! Types of norms and of operators that quantise.

use super::{DType, Dim, InferError, Inferred, Op, Result, Shape, TensorType, broadcast, elements, fail, float, same};
use crate::ir::norm::{Norm, Quant, Sum};

/// Elements of a row that share a block scale.
const BLOCK: i64 = 16;

/// Any norm: its operands are the summands, weight, bias and scale, its results the norm, its quantised form and the sum.
pub(super) fn norm(op: &Op, n: &Norm, x: &[&TensorType]) -> Result<Inferred> {
    let first = x[0];
    if n.sum != Sum::None && x[1] != first {
        return fail(format!("`{}` adds {first} and {}", op.name(), x[1]));
    }
    float(op, first)?;
    let Some(width) = first.shape.last() else { return fail(format!("`{}` of a scalar", op.name())) };
    for p in &x[n.summands()..n.summands() + n.parameters()] {
        float(op, p)?;
        if p.rank() != 1 {
            return fail(format!("a parameter of `{}` is {p}, not a vector", op.name()));
        }
        same("width and parameter", width, &p.shape[0])?;
    }
    let mut results = vec![first.clone()];
    if n.quant != Quant::None {
        narrow(op, first)?;
    }
    let scale = n.scale().map(|i| x[i]);
    let fp8 = || TensorType { dtype: DType::F8E4M3FN, shape: first.shape.clone() };
    match (n.quant, scale) {
        (Quant::Fp8, Some(scale)) => {
            single(op, scale, None)?;
            results.push(fp8());
        }
        (Quant::Fp8Token { .. }, _) => {
            let shape = with_last(op, &first.shape, |_| Some(Dim::from(1)))?;
            results.extend([fp8(), TensorType { dtype: DType::F32, shape }]);
        }
        (Quant::Nvfp4, Some(scale)) => {
            single(op, scale, Some(DType::F32))?;
            results.extend(nvfp4(op, &first.shape)?);
        }
        _ => {}
    }
    results.extend((n.sum != Sum::None).then(|| first.clone()));
    Ok(if results.len() == 1 { Inferred::One(first.clone()) } else { Inferred::Many(results) })
}

/// A float type of at most 32 bits, which quantisation computes with.
pub(super) fn narrow(op: &Op, t: &TensorType) -> Result<()> {
    float(op, t)?;
    if t.dtype == DType::F64 { fail(format!("`{}` takes f32, f16 or bf16, not f64", op.name())) } else { Ok(()) }
}

/// A scale of one element.
pub(super) fn single(op: &Op, scale: &TensorType, dtype: Option<DType>) -> Result<()> {
    narrow(op, scale)?;
    if dtype.is_some_and(|d| d != scale.dtype) || elements(&scale.shape).as_const() != Some(1) {
        return fail(format!(
            "the scale of `{}` is {scale}, not one number{}",
            op.name(),
            match dtype {
                Some(d) => format!(" of {d}"),
                None => String::new(),
            }
        ));
    }
    Ok(())
}

/// A shape with another last extent.
pub(super) fn with_last(op: &Op, shape: &[Dim], last: impl FnOnce(&Dim) -> Option<Dim>) -> Result<Shape> {
    let Some((d, lead)) = shape.split_last() else { return fail(format!("`{}` of a scalar", op.name())) };
    let last = last(d).ok_or_else(|| {
        InferError::from(format!("rows of {d} in `{}` do not divide into blocks of {BLOCK}", op.name()))
    })?;
    Ok([lead, &[last]].concat())
}

/// The shape of the scales of blocks of 16.
pub(super) fn block_scales(op: &Op, shape: &[Dim]) -> Result<Shape> {
    with_last(op, shape, |d| d.div_exact(&Dim::from(BLOCK)))
}

/// The number of swizzled scales, padding included.
pub(super) fn swizzled(lead: &[Dim], blocks: &Dim) -> Dim {
    let up = |d: &Dim, n: i64| &(d + &Dim::from(n - 1)).floor_div(&Dim::from(n)) * &Dim::from(n);
    &up(&elements(lead), 128) * &up(blocks, 4)
}

/// The results of `quantize_nvfp4`.
pub(super) fn nvfp4(op: &Op, shape: &[Dim]) -> Result<Vec<TensorType>> {
    let scales = block_scales(op, shape)?;
    let Some((blocks, lead)) = scales.split_last() else { return fail("a scalar") };
    let packed = with_last(op, shape, |_| Some(blocks * &Dim::from(BLOCK / 2)))?;
    Ok(vec![
        TensorType { dtype: DType::U8, shape: packed },
        TensorType { dtype: DType::F8E4M3FN, shape: vec![swizzled(lead, blocks)] },
    ])
}

/// (x, scale): the result has the shape of x.
pub(super) fn quantize_fp8(op: &Op, x: &[&TensorType]) -> Result<TensorType> {
    narrow(op, x[0])?;
    narrow(op, x[1])?;
    if broadcast(&x[0].shape, &x[1].shape)? != x[0].shape {
        return fail(format!("the scale {} of `quantize_fp8` does not broadcast to {}", x[1], x[0]));
    }
    Ok(TensorType { dtype: DType::F8E4M3FN, shape: x[0].shape.clone() })
}
