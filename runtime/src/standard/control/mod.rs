//! Control flow, sequences, optional values, strings, and what carries them.

mod flow;
mod pieces;
mod sequence;
mod strings;

pub(super) use strings::moved_strings;

use super::infer::{Operand, Partial};
use super::kind::{Kind, Known};
use super::{Args, Call, Data, Entry, StandardError, from_bytes, row};
use crate::dim::Dim;
use crate::dtype::DType;

type Result<T> = std::result::Result<T, StandardError>;

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[
    row("Constant", constant, by_kind),
    row("Identity", identity, by_kind),
    row("If", flow::if_else, by_kind),
    row("Loop", flow::repeat, by_kind),
    row("Scan", flow::scan, by_kind),
    row("SequenceMap", flow::map, by_kind),
    row("SequenceEmpty", sequence::empty, by_kind),
    row("SequenceConstruct", sequence::construct, by_kind),
    row("SequenceAt", sequence::at, by_kind),
    row("SequenceInsert", sequence::insert, by_kind),
    row("SequenceErase", sequence::erase, by_kind),
    row("SequenceLength", sequence::length, by_kind),
    row("SplitToSequence", sequence::split, by_kind),
    row("ConcatFromSequence", sequence::concat, by_kind),
    row("Optional", sequence::optional, by_kind),
    row("OptionalHasElement", sequence::has_element, by_kind),
    row("OptionalGetElement", sequence::element, by_kind),
    row("StringConcat", strings::concat, by_kind),
    row("StringNormalizer", strings::normalize, by_kind),
    row("StringSplit", strings::split, by_kind),
    row("RegexFullMatch", strings::full_match, by_kind),
];

/// The results of this family are no tensors alone; [`kinds`] tells what they are.
fn by_kind(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let known = |o: &Operand<'_>| Known { kind: Kind::of(o.ty), values: o.values.map(<[Dim]>::to_vec) };
    let x: Vec<Option<Known>> = x.iter().map(|o| o.as_ref().map(known)).collect();
    let partial = |k: Kind| match k {
        Kind::Tensor(p) => Ok(p),
        Kind::Unknown => Err(StandardError::new("the type of a result is not known")),
        _ => Ok(Partial::opaque()),
    };
    kinds(c, &x, &[])?.unwrap_or_default().into_iter().map(partial).collect()
}

/// What the results of a call are; `None` for the operators of other families on numbers.
pub(super) fn kinds(c: &Call, x: &[Option<Known>], captured: &[Known]) -> Result<Option<Vec<Kind>>> {
    if !c.domain.is_empty() {
        return Ok(None);
    }
    match c.op.as_str() {
        "Constant" => constant_kind(c).map(Some),
        "If" => flow::if_kinds(c, captured).map(Some),
        "Loop" => flow::repeat_kinds(c, x, captured).map(Some),
        "Scan" => flow::scan_kinds(c, x, captured).map(Some),
        "SequenceMap" => flow::map_kinds(c, x, captured).map(Some),
        _ => match sequence::kinds(c, x)? {
            Some(found) => Ok(Some(found)),
            None => strings::kinds(c, x),
        },
    }
}

fn constant(c: &Call, _: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let value = c.constant("value").ok_or_else(|| StandardError::new("it has no `value`"))?;
    Ok(vec![Some(Data::constant(value)?)])
}

fn constant_kind(c: &Call) -> Result<Vec<Kind>> {
    let value = c.constant("value").ok_or_else(|| StandardError::new("it has no `value`"))?;
    let shape = Some(value.shape.iter().map(|&d| Some(Dim::from(d as i64))).collect());
    Ok(vec![if value.dtype == DType::Opaque { Kind::Strings(shape) } else { flow::tensor(value.dtype, shape) }])
}

fn identity(_: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    Ok(vec![Some(match x.required(0)? {
        super::Arg::Tensor(v) => from_bytes(v.dtype, v.shape, v.bytes)?,
        other => other.to_data()?,
    })])
}
