//! Sequences and optional values.

use super::super::kind::{Kind, Known};
use super::super::{Arg, Args, Call, Data, StandardError, axis, from_bools, from_ints};
use super::flow::tensor;
use super::pieces::{self, Block};
use crate::dtype::DType;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;

fn one(d: Data) -> Results {
    Ok(vec![Some(d)])
}

/// The elements of a sequence operand.
fn sequence<'a>(x: &Args<'a>, i: usize) -> Result<&'a [Data]> {
    match x.required(i)? {
        Arg::Other(Data::Sequence(s)) => Ok(s),
        Arg::Other(Data::Optional(Some(d))) if matches!(**d, Data::Sequence(_)) => match &**d {
            Data::Sequence(s) => Ok(s),
            _ => Ok(&[]),
        },
        other => Err(StandardError::new(format!("operand {i} is {}, not a sequence", other.describe()))),
    }
}

/// A position in a sequence, counted from the end where it is negative; `last` is the largest one allowed.
fn position(x: &Args<'_>, i: usize, len: usize, last: Option<usize>) -> Result<usize> {
    let Some(v) = x.ints(i)? else { return Ok(last.unwrap_or(0)) };
    let &[p] = &v[..] else { return Err(StandardError::new(format!("a position has {} elements", v.len()))) };
    let at = if p < 0 { p.saturating_add(len as i64) } else { p };
    usize::try_from(at)
        .ok()
        .filter(|at| last.is_some_and(|l| *at <= l))
        .ok_or_else(|| StandardError::new(format!("position {p} is outside a sequence of {len}")))
}

pub(super) fn empty(_: &Call, _: &Args<'_>) -> Results {
    one(Data::Sequence(vec![]))
}

pub(super) fn construct(_: &Call, x: &Args<'_>) -> Results {
    let all: Vec<Data> = (0..x.len()).map(|i| x.required(i)?.to_data()).collect::<Result<_>>()?;
    if all.windows(2).any(|w| w[0].dtype() != w[1].dtype()) {
        return Err(StandardError::new("its operands have different element types"));
    }
    one(Data::Sequence(all))
}

pub(super) fn at(_: &Call, x: &Args<'_>) -> Results {
    let s = sequence(x, 0)?;
    one(s[position(x, 1, s.len(), s.len().checked_sub(1))?].clone())
}

pub(super) fn insert(_: &Call, x: &Args<'_>) -> Results {
    let s = sequence(x, 0)?;
    let p = position(x, 2, s.len(), Some(s.len()))?;
    let element = x.required(1)?.to_data()?;
    if s.first().is_some_and(|f| f.dtype() != element.dtype()) {
        return Err(StandardError::new("the tensor has another element type than the sequence"));
    }
    let mut out = Vec::with_capacity(s.len() + 1);
    out.extend_from_slice(&s[..p]);
    out.push(element);
    out.extend_from_slice(&s[p..]);
    one(Data::Sequence(out))
}

pub(super) fn erase(_: &Call, x: &Args<'_>) -> Results {
    let mut s = sequence(x, 0)?.to_vec();
    if s.is_empty() {
        return Err(StandardError::new("the sequence is empty"));
    }
    s.remove(position(x, 1, s.len(), s.len().checked_sub(1))?);
    one(Data::Sequence(s))
}

pub(super) fn length(_: &Call, x: &Args<'_>) -> Results {
    one(from_ints(DType::I64, &[], [sequence(x, 0)?.len() as i128])?)
}

pub(super) fn split(c: &Call, x: &Args<'_>) -> Results {
    let whole = Block::of(x.required(0)?)?;
    let a = axis(c.int("axis").unwrap_or(0), whole.shape.len())?;
    let extent = whole.shape[a];
    let mut sizes: Vec<usize> = vec![];
    let given = x.ints(1)?;
    let scalar = x.optional(1)?.is_some_and(|v| v.shape.is_empty());
    match given.as_deref() {
        None => sizes = vec![1; extent],
        Some(&[n]) if scalar => {
            let n = usize::try_from(n)
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(|| StandardError::new(format!("parts of {n} elements")))?;
            let mut left = extent;
            while left > 0 {
                sizes.push(n.min(left));
                left -= n.min(left);
            }
        }
        Some(list) => {
            for &n in list {
                sizes.push(usize::try_from(n).map_err(|_| StandardError::new(format!("a part of {n} elements")))?);
            }
            if sizes.iter().try_fold(0usize, |a, &b| a.checked_add(b)) != Some(extent) {
                return Err(StandardError::new(format!("parts of {sizes:?} do not make up an extent of {extent}")));
            }
        }
    }
    let squeeze = given.is_none() && !c.flag("keepdims", true);
    let mut out = vec![];
    let mut from = 0;
    for n in sizes {
        let part = if squeeze { whole.take(a, from)? } else { whole.cut(a, from, from + n)? };
        out.push(part.into_data()?);
        from += n;
    }
    one(Data::Sequence(out))
}

pub(super) fn concat(c: &Call, x: &Args<'_>) -> Results {
    let s = sequence(x, 0)?;
    let a = c.required_int("axis")?;
    let rank = match s.first() {
        Some(d) => Block::data(d)?.shape.len(),
        None => return Err(StandardError::new("the sequence is empty")),
    };
    if c.flag("new_axis", false) {
        return one(pieces::stack(s, axis(a, rank + 1)?)?.into_data()?);
    }
    let blocks = s.iter().map(Block::data).collect::<Result<Vec<_>>>()?;
    one(pieces::concat(&blocks, axis(a, rank)?)?.into_data()?)
}

pub(super) fn optional(_: &Call, x: &Args<'_>) -> Results {
    one(Data::Optional(match x.get(0) {
        Some(a) => Some(Box::new(a.to_data()?)),
        None => None,
    }))
}

pub(super) fn has_element(_: &Call, x: &Args<'_>) -> Results {
    // What is no optional value is there.
    let there = !matches!(x.get(0), None | Some(Arg::Other(Data::Optional(None))));
    one(from_bools(&[], [there])?)
}

pub(super) fn element(_: &Call, x: &Args<'_>) -> Results {
    one(match x.required(0)? {
        Arg::Other(Data::Optional(Some(d))) => (**d).clone(),
        Arg::Other(Data::Optional(None)) => return Err(StandardError::new("the optional value is empty")),
        other => other.to_data()?,
    })
}

/// The kinds of the results of this file's operators.
pub(super) fn kinds(c: &Call, x: &[Option<Known>]) -> Result<Option<Vec<Kind>>> {
    let missing = |i: usize| StandardError::new(format!("operand {i} is missing"));
    let get = |i: usize| x.get(i).and_then(Option::as_ref).map(|k| &k.kind).ok_or_else(|| missing(i));
    let elements = |i: usize| match get(i)? {
        Kind::Sequence(k) => Ok((**k).clone()),
        Kind::Optional(k) => match &**k {
            Kind::Sequence(k) => Ok((**k).clone()),
            _ => Ok(Kind::Unknown),
        },
        Kind::Unknown => Ok(Kind::Unknown),
        other => Err(StandardError::new(format!("operand {i} is {other}, not a sequence"))),
    };
    let sequence = |k: Kind| Kind::Sequence(Box::new(k));
    Ok(Some(vec![match c.op.as_str() {
        "Identity" => get(0)?.clone(),
        "SequenceEmpty" => match c.text("dtype").and_then(Kind::parse) {
            Some(k) => sequence(k),
            None => return Err(StandardError::new("its `dtype` is not supported")),
        },
        "SequenceConstruct" => {
            let mut all = get(0)?.clone();
            for i in 1..x.len() {
                all = all.join(get(i)?)?;
            }
            sequence(all)
        }
        "SequenceAt" => elements(0)?,
        "SequenceInsert" => sequence(elements(0)?.join(get(1)?)?),
        "SequenceErase" => sequence(elements(0)?),
        "SequenceLength" => Kind::scalar(DType::I64),
        "SplitToSequence" => {
            let whole = get(0)?;
            let Some(mut shape) = whole.extents().cloned() else { return Ok(Some(vec![sequence(whole.clone())])) };
            let a = axis(c.int("axis").unwrap_or(0), shape.len())?;
            if x.get(1).is_some_and(Option::is_some) {
                shape[a] = None;
            } else if c.flag("keepdims", true) {
                shape[a] = Some(1.into());
            } else {
                shape.remove(a);
            }
            sequence(whole.with(Some(shape)))
        }
        "ConcatFromSequence" => {
            let k = elements(0)?;
            let Some(mut shape) = k.extents().cloned() else { return Ok(Some(vec![k])) };
            let a = c.required_int("axis")?;
            if c.flag("new_axis", false) {
                shape.insert(axis(a, shape.len() + 1)?, None);
            } else {
                let a = axis(a, shape.len())?;
                shape[a] = None;
            }
            k.with(Some(shape))
        }
        "Optional" => Kind::Optional(Box::new(match x.first() {
            Some(Some(k)) => k.kind.clone(),
            _ => c.text("type").and_then(Kind::parse).unwrap_or_default(),
        })),
        "OptionalHasElement" => tensor(DType::Bool, Some(vec![])),
        "OptionalGetElement" => match get(0)? {
            Kind::Optional(k) => (**k).clone(),
            other => other.clone(),
        },
        _ => return Ok(None),
    }]))
}
