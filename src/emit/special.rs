//! Experts, weights of few bits, and caches with row lengths as ONNX nodes.

use super::builder::{Builder, Val, int, string};
use super::{EmitError, Result};
use crate::ir::{DType, Dim, Literal};

/// The k largest of each row, and where they are. `TopK` takes the first of equal ones, so that rows are turned round for it.
pub(super) fn largest(b: &mut Builder, x: &Val, k: i64) -> Result<Vec<String>> {
    let width = x.ty.shape.last().ok_or_else(|| EmitError::Operator("the largest of a scalar".to_owned()))?;
    let (k, back, behind) = (b.ints(&[k])?, b.ints(&[-1])?, b.ints(&[i64::MIN])?);
    let turned = b.op("Slice", &[&x.name, &back, &behind, &back, &back], vec![]);
    let mut found = b.call("", "TopK", &[&turned, &k], 2, vec![int("axis", -1)]);
    let last = b.extent_scalar(&(width - &Dim::from(1)))?;
    found[1] = b.op("Sub", &[&last, &found[1]], vec![]);
    Ok(found)
}

/// Each token times the transposed matrices of its experts.
pub(super) fn expert_matmul(b: &mut Builder, x: &[Val], bits: i64) -> Result<String> {
    let w = if bits == 0 { x[1].name.clone() } else { dequantize(b, &[&x[1..2], &x[3..]].concat(), bits)? };
    let chosen = b.op("Gather", &[&w, &x[2].name], vec![int("axis", 0)]);
    let last = b.ints(&[-1])?;
    let column = b.op("Unsqueeze", &[&x[0].name, &last], vec![]);
    let y = b.op("MatMul", &[&chosen, &column], vec![]);
    Ok(b.op("Squeeze", &[&y, &last], vec![]))
}

/// Numbers of few bits as (number - zero) * scale.
pub(super) fn dequantize(b: &mut Builder, x: &[Val], bits: i64) -> Result<String> {
    let bad = || EmitError::Operator(format!("dequantize of {} with {bits} bits", x[0].ty));
    let (Some((m, lead)), Some(runs)) = (x[0].ty.shape.split_last(), x[1].ty.shape.last()) else { return Err(bad()) };
    let (Some(m), Some(runs)) = (m.as_const(), runs.as_const()) else { return Err(bad()) };
    if !matches!(bits, 1 | 2 | 4 | 8) || runs <= 0 {
        return Err(bad());
    }
    let per_byte = 8 / bits;
    let width = m * per_byte;
    let u8s = |b: &mut Builder, v: i64| b.constant(&Literal::ints(DType::U8, vec![], &[v]));
    let mut parts = vec![];
    let last = b.ints(&[-1])?;
    for i in 0..per_byte {
        let mut part = x[0].name.clone();
        if i > 0 {
            let by = u8s(b, i * bits)?;
            part = b.op("BitShift", &[&part, &by], vec![string("direction", "RIGHT")]);
        }
        if bits < 8 {
            let mask = u8s(b, (1 << bits) - 1)?;
            part = b.op("BitwiseAnd", &[&part, &mask], vec![]);
        }
        parts.push(b.op("Unsqueeze", &[&part, &last], vec![]));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let all = if let [one] = parts[..] { one.to_owned() } else { b.op("Concat", &parts, vec![int("axis", -1)]) };
    // The leading axes stay; their extents may be those of a run.
    let shape = |b: &mut Builder, tail: &[i64]| {
        let stays = |d: &Dim| d.as_const() != Some(0);
        if lead.iter().all(stays) {
            let keep: Vec<i64> = lead.iter().map(|d| d.as_const().unwrap_or(0)).collect();
            return b.ints(&[&keep[..], tail].concat());
        }
        let tail: Vec<Dim> = tail.iter().map(|&n| Dim::from(n)).collect();
        b.extents(&[lead, &tail].concat())
    };
    let reshape = |b: &mut Builder, x: &str, tail: &[i64]| {
        let to = shape(b, tail)?;
        let empty = lead.iter().any(|d| d.as_const() == Some(0));
        let attributes = if empty { vec![int("allowzero", 1)] } else { vec![] };
        Ok::<_, EmitError>(b.op("Reshape", &[x, &to], attributes))
    };
    let numbers = reshape(b, &all, &[runs, width / runs])?;
    let dtype = x[1].ty.dtype;
    let numbers = b.cast(&numbers, DType::U8, dtype)?;
    let zero = match x.get(2) {
        None => b.scalar(dtype, f64::from(1u32 << (bits - 1)))?,
        Some(z) => {
            let z = b.cast(&z.name, z.ty.dtype, dtype)?;
            b.op("Unsqueeze", &[&z, &last], vec![])
        }
    };
    let scale = b.op("Unsqueeze", &[&x[1].name, &last], vec![]);
    let from_zero = b.op("Sub", &[&numbers, &zero], vec![]);
    let scaled = b.op("Mul", &[&from_zero, &scale], vec![]);
    reshape(b, &scaled, &[width])
}

/// A cache whose rows have lengths of their own, after the new tokens: row by row the tokens are taken from
/// past ++ new ++ zeros.
pub(super) fn append(b: &mut Builder, x: &[Val], tokens: &Dim) -> Result<String> {
    let bad = || EmitError::Operator(format!("append of {} to {}", x[1].ty, x[0].ty));
    let ([batch, heads, past, width], [_, _, new, _]) = (&x[0].ty.shape[..], &x[1].ty.shape[..]) else {
        return Err(bad());
    };
    let one = Dim::from(1);
    let zero = b.scalar(x[0].ty.dtype, 0.0)?;
    let row = b.extents(&[batch.clone(), heads.clone(), one, width.clone()])?;
    let empty = b.op("Expand", &[&zero, &row], vec![]);
    let all = b.op("Concat", &[&x[0].name, &x[1].name, &empty], vec![int("axis", 2)]);
    // Position t of a row with p old tokens: t, then past + t - p, then the zeros behind.
    let (n, old, behind) = (b.extent_scalar(new)?, b.extent_scalar(past)?, b.extent_scalar(&(past + new))?);
    let length = b.cast(&x[2].name, x[2].ty.dtype, DType::I64)?;
    let int0 = b.constant(&Literal::ints(DType::I64, vec![], &[0]))?;
    let int1 = b.constant(&Literal::ints(DType::I64, vec![], &[1]))?;
    let p = b.op("Sub", &[&length, &n], vec![]);
    let p = b.op("Max", &[&p, &int0], vec![]);
    let column = b.ints(&[-1, 1])?;
    let p = b.op("Reshape", &[&p, &column], vec![]);
    let limit = b.extent_scalar(tokens)?;
    let t = b.op("Range", &[&int0, &limit, &int1], vec![]);
    let is_old = b.op("Less", &[&t, &p], vec![]);
    let end = b.op("Add", &[&p, &n], vec![]);
    let is_new = b.op("Less", &[&t, &end], vec![]);
    let from_new = b.op("Sub", &[&t, &p], vec![]);
    let from_new = b.op("Add", &[&from_new, &old], vec![]);
    let at = b.op("Where", &[&is_new, &from_new, &behind], vec![]);
    let at = b.op("Where", &[&is_old, &t, &at], vec![]);
    let axes = b.ints(&[1, 3])?;
    let at = b.op("Unsqueeze", &[&at, &axes], vec![]);
    let shape = b.extents(&[batch.clone(), heads.clone(), tokens.clone(), width.clone()])?;
    let at = b.op("Expand", &[&at, &shape], vec![]);
    Ok(b.op("GatherElements", &[&all, &at], vec![int("axis", 2)]))
}
