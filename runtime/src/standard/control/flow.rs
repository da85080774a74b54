//! `If`, `Loop`, `Scan` and `SequenceMap`: operators with bodies.

use super::super::kind::{Kind, Known};
use super::super::program::{Prepared, body_kinds};
use super::super::{Arg, Args, Call, Data, Partial, Program, StandardError, Value, axis, from_bools, from_ints};
use super::pieces::{self, Block};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::tensor::Tensor;

type Result<T> = std::result::Result<T, StandardError>;

/// A trip count from here on is none at all.
const UNBOUNDED: i128 = i64::MAX as i128 >> 1;

/// The captured values of one body; those of all bodies follow each other by the name of the attribute.
fn captured<'x, T>(c: &Call, name: &str, all: &'x [T]) -> Result<&'x [T]> {
    let mut at = 0;
    for (key, v) in &c.attrs {
        let Value::Graph(g) = v else { continue };
        let end = at + g.captures.len();
        if key == name {
            return all.get(at..end).ok_or_else(|| StandardError::new(format!("`{name}` lacks captured values")));
        }
        at = end;
    }
    Err(StandardError::new(format!("attribute `{name}` is missing")))
}

/// The only element of a condition.
fn truth(d: Arg<'_>) -> Result<bool> {
    let error = || StandardError::new(format!("a condition is {}, not one boolean", d.describe()));
    let v = match d {
        Arg::Tensor(v) => v,
        Arg::Other(Data::Tensor(t)) => t.view(),
        Arg::Other(_) => return Err(error()),
    };
    match v.bytes {
        [b] if v.dtype == DType::Bool => Ok(*b != 0),
        _ => Err(error()),
    }
}

fn wrap(values: Vec<Data>) -> Vec<Option<Data>> {
    values.into_iter().map(Some).collect()
}

pub(super) fn if_else(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let name = if truth(x.required(0)?)? { "then_branch" } else { "else_branch" };
    Ok(wrap(Prepared::new(c.graph(name)?)?.run(vec![], captured(c, name, &x.captured)?)?))
}

pub(super) fn if_kinds(c: &Call, outer: &[Known]) -> Result<Vec<Kind>> {
    let branch = |name: &str| body_kinds(c.graph(name)?, &[], captured(c, name, outer)?);
    let (a, b) = (branch("then_branch")?, branch("else_branch")?);
    if a.len() != b.len() {
        return Err(StandardError::new(format!("its branches have {} and {} results", a.len(), b.len())));
    }
    a.iter().zip(&b).map(|(a, b)| a.join(b)).collect()
}

/// Whether the condition that a body makes is always true, given that the one it gets is.
fn never_stops(body: &Program) -> bool {
    let Some(mut name) = body.outputs.first() else { return false };
    loop {
        if body.inputs.get(1) == Some(name) {
            return true;
        }
        if let Some(c) = body.constants.get(name) {
            return c.dtype == DType::Bool && c.data == [1];
        }
        match body.nodes.iter().find(|n| n.outputs.first() == Some(name)) {
            Some(n) if n.call.op == "Identity" && n.call.domain.is_empty() => match n.inputs.first() {
                Some(i) => name = i,
                None => return false,
            },
            _ => return false,
        }
    }
}

pub(super) fn repeat(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let body = c.graph("body")?;
    let program = Prepared::new(body)?;
    let n = carried(body)?;
    let trips = match x.ints(0)?.as_deref() {
        None => None,
        Some([n]) => Some(i128::from(*n)),
        Some(v) => return Err(StandardError::new(format!("the trip count has {} elements", v.len()))),
    };
    let mut go = match x.get(1) {
        Some(a) => truth(a)?,
        None => true,
    };
    let bound = trips.filter(|&n| n < UNBOUNDED);
    if go && bound.is_none() && never_stops(body) {
        return Err(StandardError::new(
            "it has neither a trip count nor a condition that may become false: it would never end",
        ));
    }
    let shape = x.optional(0)?.map_or(vec![], |v| v.shape.to_vec());
    let mut state: Vec<Data> = (0..n).map(|i| x.required(i + 2)?.to_data()).collect::<Result<_>>()?;
    let mut scans: Vec<Vec<Data>> = vec![vec![]; body.outputs.len() - 1 - n];
    let mut i = 0i128;
    while go && bound.is_none_or(|n| i < n) {
        let mut inputs = vec![from_ints(DType::I64, &shape, [i])?, from_bools(&[], [true])?];
        inputs.append(&mut state);
        let mut results = program.run(inputs, &x.captured)?.into_iter();
        go = match results.next() {
            Some(d) => truth(d.arg())?,
            None => true,
        };
        state = results.by_ref().take(n).collect();
        scans.iter_mut().zip(results).for_each(|(s, d)| s.push(d));
        i += 1;
    }
    let mut out = wrap(state);
    for (k, parts) in scans.iter().enumerate() {
        out.push(stacked(c, n + k, parts, 0, "Loop")?);
    }
    Ok(out)
}

/// The results of all rounds along a new axis. Where there was no round, the shape must be in the program.
fn stacked(c: &Call, result: usize, parts: &[Data], axis: usize, what: &str) -> Result<Option<Data>> {
    if !parts.is_empty() || !c.wants(result) {
        return if c.wants(result) { Ok(Some(pieces::stack(parts, axis)?.into_data()?)) } else { Ok(None) };
    }
    let at = c.wanted.iter().take(result).filter(|w| **w).count();
    let error = |why: &str| StandardError::new(format!("a {what} of no round, {why}, is not supported"));
    let ty = c.results.get(at).ok_or_else(|| error("in a body, with a result that has an axis of rounds"))?;
    if ty.dtype == DType::Opaque {
        return Err(error("whose result has a shape that nothing else shows"));
    }
    let extent = |(i, d): (usize, &Dim)| match d.as_const() {
        _ if i == axis => 0,
        Some(n) => usize::try_from(n).unwrap_or(0),
        // As nothing shows it, it may be anything.
        None => 0,
    };
    let shape: Vec<usize> = ty.shape.iter().enumerate().map(extent).collect();
    Ok(Some(Tensor::zeros(ty.dtype, &shape)?.into()))
}

/// Number of values that a loop carries.
fn carried(body: &Program) -> Result<usize> {
    match body.inputs.len().checked_sub(2) {
        Some(n) if body.outputs.len() > n => Ok(n),
        _ => Err(StandardError::new(format!(
            "its body has {} operands and {} results",
            body.inputs.len(),
            body.outputs.len()
        ))),
    }
}

/// The kinds of carried values that stay the same from round to round, and all results of a round.
fn settle(start: Vec<Kind>, round: impl Fn(&[Kind]) -> Result<Vec<Kind>>) -> Result<(Vec<Kind>, Vec<Kind>)> {
    let mut state = start;
    // Each time at least one extent or rank is given up.
    loop {
        let results = round(&state)?;
        let next: Vec<Kind> = state.iter().zip(&results).map(|(a, b)| a.join(b)).collect::<Result<_>>()?;
        if next == state {
            return Ok((state, results));
        }
        state = next;
    }
}

fn kind_at(x: &[Option<Known>], i: usize) -> Result<Kind> {
    let k = x.get(i).and_then(Option::as_ref).ok_or_else(|| StandardError::new(format!("operand {i} is missing")))?;
    Ok(k.kind.clone())
}

pub(super) fn repeat_kinds(c: &Call, x: &[Option<Known>], outer: &[Known]) -> Result<Vec<Kind>> {
    let body = c.graph("body")?;
    let n = carried(body)?;
    let counter = match x.first() {
        Some(Some(k)) => k.kind.clone(),
        _ => Kind::scalar(DType::I64),
    };
    let round = |state: &[Kind]| {
        let mut inputs: Vec<Known> = vec![counter.clone().into(), Kind::scalar(DType::Bool).into()];
        inputs.extend(state.iter().cloned().map(Known::from));
        Ok(body_kinds(body, &inputs, outer)?.split_off(1))
    };
    let (mut out, results) = settle((0..n).map(|i| kind_at(x, i + 2)).collect::<Result<_>>()?, round)?;
    for k in results.iter().skip(n) {
        // Where there is no round, only constant extents are known.
        let k = k.keep(&|d| d.as_const().is_some());
        let shape = k.extents().map(|s| std::iter::once(None).chain(s.iter().cloned()).collect());
        out.push(k.with(shape));
    }
    Ok(out)
}

/// Where a `Scan` finds its operands and puts its results.
struct ScanForm {
    /// Position of the first state.
    first: usize,
    states: usize,
    scans: usize,
    /// Axes of scanned operands and of results; `None` for axis 0.
    input_axes: Vec<i64>,
    output_axes: Vec<i64>,
    input_reversed: Vec<bool>,
    output_reversed: Vec<bool>,
}

impl ScanForm {
    fn of(c: &Call, operands: usize) -> Result<ScanForm> {
        let body = c.graph("body")?;
        let first = usize::from(c.opset < 9);
        let scans = usize::try_from(c.required_int("num_scan_inputs")?).unwrap_or(0);
        let states = operands
            .checked_sub(first + scans)
            .filter(|s| s + scans == body.inputs.len() && *s <= body.outputs.len() && scans > 0)
            .ok_or_else(|| {
                StandardError::new(format!(
                    "it has {operands} operands, {scans} of them scanned, and its body {} operands and {} results",
                    body.inputs.len(),
                    body.outputs.len()
                ))
            })?;
        let outputs = body.outputs.len() - states;
        let list = |name: &str, n: usize| -> Result<Vec<i64>> {
            match c.ints(name) {
                None => Ok(vec![0; n]),
                Some(v) if v.len() == n => Ok(v.to_vec()),
                Some(v) => Err(StandardError::new(format!("`{name}` has {} elements, not {n}", v.len()))),
            }
        };
        let flags = |name: &str, n| -> Result<Vec<bool>> { Ok(list(name, n)?.iter().map(|&d| d != 0).collect()) };
        let directions = if c.opset < 9 { "directions" } else { "scan_input_directions" };
        Ok(ScanForm {
            first,
            states,
            scans,
            input_axes: list("scan_input_axes", scans)?,
            output_axes: list("scan_output_axes", outputs)?,
            input_reversed: flags(directions, scans)?,
            output_reversed: flags("scan_output_directions", outputs)?,
        })
    }
}

pub(super) fn scan(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let form = ScanForm::of(c, x.len())?;
    let program = Prepared::new(c.graph("body")?)?;
    let operands: Vec<Arg<'_>> = (form.first..x.len()).map(|i| x.required(i)).collect::<Result<_>>()?;
    if c.opset < 9 {
        return batches(c, x, &form, &program, &operands);
    }
    let blocks = operands.iter().map(|a| Block::of(*a)).collect::<Result<Vec<_>>>();
    let scanned = &blocks.as_deref().map_err(Clone::clone)?[form.states..];
    let state = operands[..form.states].iter().map(Arg::to_data).collect::<Result<_>>()?;
    let mut length = None;
    let mut axes = vec![];
    for (b, &a) in scanned.iter().zip(&form.input_axes) {
        let a = axis(a, b.shape.len())?;
        if length.replace(b.shape[a]).is_some_and(|n| n != b.shape[a]) {
            return Err(StandardError::new("its scanned operands have different lengths"));
        }
        axes.push(a);
    }
    let length = length.unwrap_or(0);
    let (state, scans) = rounds(&form, &program, state, scanned, &axes, length, &x.captured)?;
    let mut out = wrap(state);
    for (k, mut parts) in scans.into_iter().enumerate() {
        if parts.is_empty() {
            return Err(StandardError::new("a scan over an axis of extent 0 is not supported"));
        }
        if form.output_reversed[k] {
            parts.reverse();
        }
        let rank = Block::data(&parts[0])?.shape.len() + 1;
        out.push(Some(pieces::stack(&parts, axis(form.output_axes[k], rank)?)?.into_data()?));
    }
    Ok(out)
}

/// All rounds of a scan: the last states, and by scanned result its parts.
fn rounds(
    form: &ScanForm,
    program: &Prepared<'_>,
    mut state: Vec<Data>,
    scanned: &[Block<'_>],
    axes: &[usize],
    length: usize,
    captured: &[Arg<'_>],
) -> Result<(Vec<Data>, Vec<Vec<Data>>)> {
    let mut scans: Vec<Vec<Data>> = vec![vec![]; form.output_axes.len()];
    for i in 0..length {
        let mut inputs = std::mem::take(&mut state);
        for (k, b) in scanned.iter().enumerate() {
            let at = if form.input_reversed[k] { length - 1 - i } else { i };
            inputs.push(b.take(axes[k], at)?.into_data()?);
        }
        let mut results = program.run(inputs, captured)?.into_iter();
        state = results.by_ref().take(form.states).collect();
        scans.iter_mut().zip(results).for_each(|(s, d)| s.push(d));
    }
    Ok((state, scans))
}

/// The first form of `Scan`: every operand has a batch axis, scanned ones the sequence behind it, and sequences may be
/// shorter than the axis. What lies behind the end of a sequence is zero in the results.
fn batches(
    c: &Call,
    x: &Args<'_>,
    form: &ScanForm,
    program: &Prepared<'_>,
    operands: &[Arg<'_>],
) -> Result<Vec<Option<Data>>> {
    let blocks = operands.iter().map(|a| Block::of(*a)).collect::<Result<Vec<_>>>()?;
    let sequence = blocks.get(form.states).map(|b| &b.shape[..]);
    let &[batch, longest, ..] = sequence.unwrap_or_default() else {
        return Err(StandardError::new("its scanned operands lack the axes of batch and sequence"));
    };
    let lengths = match x.ints(0)? {
        Some(l) => l.iter().map(|&n| usize::try_from(n).unwrap_or(usize::MAX)).collect(),
        None => vec![longest; batch],
    };
    if lengths.len() != batch || lengths.iter().any(|&n| n > longest) {
        return Err(StandardError::new(format!("its lengths {lengths:?} do not fit [{batch}, {longest}]")));
    }
    let mut columns: Vec<Vec<Data>> = vec![vec![]; form.states + form.output_axes.len()];
    for (i, &length) in lengths.iter().enumerate() {
        let rows = blocks.iter().map(|b| b.take(0, i)).collect::<Result<Vec<_>>>()?;
        if rows[form.states..].iter().any(|b| b.shape.first() != Some(&longest)) {
            return Err(StandardError::new("its scanned operands have different lengths"));
        }
        let mut rows = rows.into_iter();
        let state = rows.by_ref().take(form.states).map(Block::into_data).collect::<Result<_>>()?;
        let scanned: Vec<Block<'_>> = rows.collect();
        let (state, scans) = rounds(form, program, state, &scanned, &vec![0; form.scans], length, &x.captured)?;
        for (column, d) in columns.iter_mut().zip(state) {
            column.push(d);
        }
        for (column, mut parts) in columns[form.states..].iter_mut().zip(scans) {
            let Some(first) = parts.first() else {
                return Err(StandardError::new("a scan over an empty sequence is not supported"));
            };
            let Data::Tensor(t) = first else {
                return Err(StandardError::new("a scan of this opset that makes strings is not supported"));
            };
            let zero = Data::from(Tensor::zeros(t.dtype, &t.shape)?);
            parts.resize(longest, zero);
            column.push(pieces::stack(&parts, 0)?.into_data()?);
        }
    }
    if c.opset < 9 && batch == 0 {
        return Err(StandardError::new("a scan over no batch is not supported"));
    }
    columns.iter().map(|parts| Ok(Some(pieces::stack(parts, 0)?.into_data()?))).collect()
}

pub(super) fn scan_kinds(c: &Call, x: &[Option<Known>], outer: &[Known]) -> Result<Vec<Kind>> {
    let form = ScanForm::of(c, x.len())?;
    let body = c.graph("body")?;
    let batched = c.opset < 9;
    let mut scanned = vec![];
    let (mut length, mut batch) = (None, None);
    for (k, &a) in form.input_axes.iter().enumerate() {
        let kind = kind_at(x, form.first + form.states + k)?;
        let Some(mut shape) = kind.extents().cloned() else {
            scanned.push(kind.with(None));
            continue;
        };
        let a = if batched { axis(1, shape.len())? } else { axis(a, shape.len())? };
        length = length.or(shape.remove(a));
        if batched {
            batch = batch.or(shape.remove(0));
        }
        scanned.push(kind.with(Some(shape)));
    }
    let unbatched = |k: Kind| {
        let shape = k.extents().map(|s| s.iter().skip(usize::from(batched)).cloned().collect());
        k.with(shape)
    };
    let start = (0..form.states).map(|i| Ok(unbatched(kind_at(x, form.first + i)?))).collect::<Result<_>>()?;
    let round = |state: &[Kind]| {
        let inputs: Vec<Known> = state.iter().chain(&scanned).cloned().map(Known::from).collect();
        body_kinds(body, &inputs, outer)
    };
    let (state, results) = settle(start, round)?;
    let insert = |k: &Kind, at: i64, d: &Option<Dim>| -> Result<Kind> {
        let Some(mut shape) = k.extents().cloned() else { return Ok(k.clone()) };
        let at = axis(at, shape.len() + 1)?;
        shape.insert(at, d.clone());
        Ok(k.with(Some(shape)))
    };
    let mut out = vec![];
    for (k, kind) in state.iter().chain(&results[form.states..]).enumerate() {
        let kind = match k.checked_sub(form.states) {
            Some(s) => insert(kind, if batched { 0 } else { form.output_axes[s] }, &length)?,
            None => kind.clone(),
        };
        out.push(if batched { insert(&kind, 0, &batch)? } else { kind });
    }
    Ok(out)
}

pub(super) fn map(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let program = Prepared::new(c.graph("body")?)?;
    let operands = (0..x.len()).map(|i| x.required(i)).collect::<Result<Vec<_>>>()?;
    let Some(Arg::Other(Data::Sequence(first))) = operands.first() else {
        return Err(StandardError::new("operand 0 is no sequence"));
    };
    if operands.len() != program.arity() {
        return Err(StandardError::new(format!("its body takes {} operands", program.arity())));
    }
    let mut out: Vec<Vec<Data>> = vec![vec![]; c.wanted.len()];
    for i in 0..first.len() {
        let element = |a: &Arg<'_>| match a {
            Arg::Other(Data::Sequence(s)) => {
                s.get(i).cloned().ok_or_else(|| StandardError::new("its sequences have different lengths"))
            }
            other => other.to_data(),
        };
        let inputs = operands.iter().map(element).collect::<Result<_>>()?;
        out.iter_mut().zip(program.run(inputs, &x.captured)?).for_each(|(s, d)| s.push(d));
    }
    Ok(out.into_iter().map(|s| Some(Data::Sequence(s))).collect())
}

pub(super) fn map_kinds(c: &Call, x: &[Option<Known>], outer: &[Known]) -> Result<Vec<Kind>> {
    let element = |i: usize| {
        Ok(Known::from(match kind_at(x, i)? {
            Kind::Sequence(k) => *k,
            other => other,
        }))
    };
    let inputs: Vec<Known> = (0..x.len()).map(element).collect::<Result<_>>()?;
    let found = body_kinds(c.graph("body")?, &inputs, outer)?;
    Ok(found.into_iter().map(|k| Kind::Sequence(Box::new(k))).collect())
}

/// Kinds of results that are tensors of one shape; a help for the table of this family.
pub(super) fn tensor(dtype: DType, shape: Option<Vec<Option<Dim>>>) -> Kind {
    Kind::Tensor(Partial { dtype, shape })
}
