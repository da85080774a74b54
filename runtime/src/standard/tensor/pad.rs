//! Tensors with more or fewer elements at the ends of their axes.

use super::build::blank;
use super::moved::{Source, assemble, axes, carried, dims, extents};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, from_floats, from_ints, strides};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// What the elements beyond the ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

fn mode(c: &Call) -> Result<Mode> {
    Ok(match c.text("mode").unwrap_or("constant") {
        "constant" => Mode::Constant,
        "reflect" => Mode::Reflect,
        "edge" => Mode::Edge,
        "wrap" => Mode::Wrap,
        m => {
            return Err(StandardError::new(format!(
                "the mode `{m}` is unknown; there are constant, reflect, edge and wrap"
            )));
        }
    })
}

/// For each position of a padded axis the position it shows, `None` for the constant. Negative numbers of elements remove them
/// before the others are added.
pub(super) fn positions(n: usize, before: i64, after: i64, mode: Mode) -> Result<Vec<Option<usize>>> {
    let large = || StandardError::new(format!("{n} elements cannot be padded by {before} and {after}"));
    let total = (n as i64).checked_add(before).and_then(|t| t.checked_add(after)).and_then(|t| usize::try_from(t).ok());
    let total = total.ok_or_else(large)?;
    count(DType::I64, &[total])?;
    let first = before.min(0).saturating_neg();
    let kept = n as i64 - first + after.min(0);
    if mode != Mode::Constant && kept <= 0 && total > 0 {
        return Err(StandardError::new(format!("there is nothing to repeat in an axis of {n} elements")));
    }
    let show = |i: i64| {
        let i = i - before.max(0);
        let at = match mode {
            Mode::Constant => return (0..kept).contains(&i).then_some((first + i) as usize),
            Mode::Edge => i.clamp(0, kept - 1),
            Mode::Wrap => i.rem_euclid(kept),
            Mode::Reflect if kept == 1 => 0,
            Mode::Reflect => {
                let at = i.rem_euclid(2 * (kept - 1));
                at.min(2 * (kept - 1) - at)
            }
        };
        Some((first + at) as usize)
    };
    Ok((0..total as i64).map(show).collect())
}

/// Pads every axis by the given numbers of elements.
fn padded(data: Source<'_>, pads: &[(i64, i64)], mode: Mode, value: Source<'_>) -> Result<Data> {
    let tables: Vec<Vec<Option<usize>>> = data
        .shape
        .iter()
        .zip(pads)
        .map(|(&n, &(before, after))| positions(n, before, after, mode))
        .collect::<Result<_>>()?;
    let shape: Vec<usize> = tables.iter().map(Vec::len).collect();
    count(data.dtype(), &shape)?;
    let Some((last, lead)) = tables.split_last() else { return data.reshaped(&[]) };
    let steps = strides(data.shape);
    let rows: usize = shape[..shape.len() - 1].iter().product();
    let row = |r: usize| {
        let mut rest = r;
        let mut base = Some(0usize);
        for (d, table) in lead.iter().enumerate().rev() {
            base = base.zip(table[rest % table.len()]).map(|(b, i)| b + i * steps[d]);
            rest /= table.len();
        }
        base
    };
    let picks = (0..rows).flat_map(|r| {
        let base = row(r);
        last.iter().map(move |&i| base.zip(i).map_or((1, 0), |(b, i)| (0, b + i)))
    });
    assemble(&shape, 1, &[data, value], picks)
}

/// The pads of each axis out of `[begins.., ends..]` of some axes.
fn spread(pads: &[i64], on: &[usize], rank: usize) -> Result<Vec<(i64, i64)>> {
    if pads.len() != 2 * on.len() {
        return Err(StandardError::new(format!(
            "{} pads for {} axes; each has one at either end",
            pads.len(),
            on.len()
        )));
    }
    let mut out = vec![(0, 0); rank];
    for (i, &a) in on.iter().enumerate() {
        out[a] = (pads[i], pads[on.len() + i]);
    }
    Ok(out)
}

pub(super) fn pad(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let pads = match c.ints("pads") {
        Some(p) => p.to_vec(),
        None => x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the pads, is missing"))?,
    };
    let on = match x.ints(3)? {
        Some(a) => axes(&a, data.rank())?,
        None => (0..data.rank()).collect(),
    };
    let blank = match c.float("value") {
        Some(v) if data.dtype() != DType::Opaque => match data.dtype() {
            d if d.is_float() || d.is_minifloat() => from_floats(d, &[], [v])?,
            d => from_ints(d, &[], [v as i128])?,
        },
        _ => blank(data.dtype())?,
    };
    let value = match x.has(2) {
        true => Some(Source::of(x, 2)?),
        false => Source::data(&blank),
    };
    let value = value.filter(|v| v.len() == 1).ok_or_else(|| StandardError::new("the constant is not one element"))?;
    Ok(vec![Some(padded(data, &spread(&pads, &on, data.rank())?, mode(c)?, value)?)])
}

pub(super) fn pad_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    if data.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    mode(c)?;
    let operand = |i: usize| x.get(i).copied().flatten();
    let pads: Option<Vec<Dim>> = match c.ints("pads") {
        Some(p) => Some(p.iter().map(|&d| Dim::from(d)).collect()),
        None => operand(1).and_then(|o| o.values).map(<[Dim]>::to_vec),
    };
    let on = match operand(3) {
        Some(o) => o.ints().map(|a| axes(&a, data.rank())).transpose()?,
        None => Some((0..data.rank()).collect()),
    };
    let mut out = dims(&data);
    match (pads, on) {
        (Some(p), Some(on)) if p.len() == 2 * on.len() => {
            for (i, &a) in on.iter().enumerate() {
                out[a] = Some(&(&data.ty.shape[a] + &p[i]) + &p[on.len() + i]);
            }
        }
        (Some(p), Some(on)) => {
            return Err(StandardError::new(format!("{} pads for {} axes of {}", p.len(), on.len(), data.ty)));
        }
        (None, Some(on)) => on.iter().for_each(|&a| out[a] = None),
        _ => out.fill(None),
    }
    Ok(vec![carried(data.ty.dtype, out)])
}

pub(super) fn center_crop_pad(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let target = extents(&x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the shape, is missing"))?)?;
    let on = match c.ints("axes") {
        Some(a) => axes(a, data.rank())?,
        None => (0..data.rank()).collect(),
    };
    if on.len() != target.len() {
        return Err(StandardError::new(format!("{target:?} are not the extents of {} axes", on.len())));
    }
    let mut pads = vec![(0, 0); data.rank()];
    for (&a, &n) in on.iter().zip(&target) {
        let more = n as i64 - data.shape[a] as i64;
        // The smaller half comes first, whether elements are added or removed.
        pads[a] = (more / 2, more - more / 2);
    }
    let blank = blank(data.dtype())?;
    let value = Source::data(&blank).ok_or_else(|| StandardError::new("no value to pad with"))?;
    Ok(vec![Some(padded(data, &pads, Mode::Constant, value)?)])
}

pub(super) fn center_crop_pad_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (data, target) = (required(x, 0)?, required(x, 1)?);
    if data.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    let on = match c.ints("axes") {
        Some(a) => axes(a, data.rank())?,
        None => (0..data.rank()).collect(),
    };
    let mut out = dims(&data);
    for (i, &a) in on.iter().enumerate() {
        out[a] = target.values.and_then(|v| v.get(i).cloned());
    }
    Ok(vec![carried(data.ty.dtype, out)])
}
