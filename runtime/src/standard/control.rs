//! Control flow, sequences, optional values, strings, and what carries them.

use super::infer::{self, Operand, Partial};
use super::{Args, Call, Data, Entry, StandardError, from_bytes, row};
use crate::dim::Dim;
use crate::dtype::DType;

type Result<T> = std::result::Result<T, StandardError>;

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[row("Constant", constant, constant_type), row("Identity", identity, infer::same)];

fn constant(c: &Call, _: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let value = c.constant("value").ok_or_else(|| StandardError::new("it has no `value`"))?;
    Ok(vec![Some(Data::constant(value)?)])
}

fn constant_type(c: &Call, _: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let value = c.constant("value").ok_or_else(|| StandardError::new("it has no `value`"))?;
    if value.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    Ok(vec![Partial::known(value.dtype, value.shape.iter().map(|&d| Dim::from(d as i64)))])
}

fn identity(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    Ok(vec![Some(match x.required(0)? {
        super::Arg::Tensor(v) => from_bytes(v.dtype, v.shape, v.bytes)?,
        other => other.to_data()?,
    })])
}
