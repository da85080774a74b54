//! Quantisation to f8e4m3fn as ONNX nodes.

use super::Result;
use super::builder::{Builder, Val, int};
use super::ops::{Place, emit};
use crate::ir::norm::{Quant, Sum};
use crate::ir::{DType, Dim, Literal, Norm, TensorType};

/// (x, scale): `QuantizeLinear` where its definition is that of the operator, else the quotient, converted.
pub(super) fn quantize_fp8(b: &mut Builder, x: &Val, scale: &Val) -> Result<String> {
    let to = DType::F8E4M3FN;
    if (x.ty.dtype, scale.ty.dtype) == (DType::F32, DType::F32) && scale.ty.elements() == Dim::from(1) {
        let step = match scale.ty.rank() {
            0 => scale.name.clone(),
            _ => {
                let none = b.ints(&[])?;
                b.op("Reshape", &[&scale.name, &none], vec![])
            }
        };
        let zero = b.constant(&Literal::scalar(to, 0.0))?;
        return Ok(b.op("QuantizeLinear", &[&x.name, &step, &zero], vec![]));
    }
    let wide = b.cast(&x.name, x.ty.dtype, DType::F32)?;
    let step = b.cast(&scale.name, scale.ty.dtype, DType::F32)?;
    let quotient = b.op("Div", &[&wide, &step], vec![]);
    let rounded = b.cast(&quotient, DType::F32, scale.ty.dtype)?;
    b.cast(&rounded, scale.ty.dtype, to)
}

/// The scale of each row.
pub(super) fn fp8_scale(b: &mut Builder, x: &Val, floor: f64) -> Result<String> {
    let wide = b.cast(&x.name, x.ty.dtype, DType::F32)?;
    let last = b.ints(&[-1])?;
    let magnitude = b.op("Abs", &[&wide], vec![]);
    let most = b.op("ReduceMax", &[&magnitude, &last], vec![int("keepdims", 1)]);
    let largest = b.scalar(DType::F32, 448.0)?;
    let scale = b.op("Div", &[&most, &largest], vec![]);
    if floor == 0.0 {
        return Ok(scale);
    }
    let floor = b.scalar(DType::F32, floor)?;
    Ok(b.op("Max", &[&scale, &floor], vec![]))
}

/// A norm as it is without quantisation, then its quantised form.
pub(super) fn norm(b: &mut Builder, p: &Place, n: &Norm, x: &[Val], wanted: &[bool]) -> Result<Vec<String>> {
    let op = n.without_quant();
    let operands = &x[..n.summands() + n.parameters()];
    let sum = n.sum != Sum::None;
    let read: Vec<bool> = if sum { vec![true, wanted.last() == Some(&true)] } else { vec![true] };
    let mut results = emit(b, p, &op, operands, &read)?;
    let total = if sum { results.pop() } else { None };
    let name = results.pop().unwrap_or_default();
    let normed = Val { name: name.clone(), ty: x[0].ty.clone() };
    let mut out = vec![name];
    match (n.quant, n.scale().map(|i| &x[i])) {
        (Quant::Fp8, Some(scale)) => out.push(quantize_fp8(b, &normed, scale)?),
        (Quant::Fp8Token { floor }, _) => {
            let name = fp8_scale(b, &normed, floor.0)?;
            let mut shape = normed.ty.shape.clone();
            shape.iter_mut().rev().take(1).for_each(|d| *d = Dim::from(1));
            let scale = Val { name: name.clone(), ty: TensorType { dtype: DType::F32, shape } };
            out.push(quantize_fp8(b, &normed, &scale)?);
            out.push(name);
        }
        _ => {}
    }
    out.extend(total);
    Ok(out)
}
