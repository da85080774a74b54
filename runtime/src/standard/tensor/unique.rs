//! What is there: positions that are not zero, and distinct elements.

use std::cmp::Ordering;

use super::moved::{Source, carried, dims, from_i64};
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, axis, floats, from_ints, integers, strides};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

pub(super) fn non_zero(_: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let set: Vec<usize> = match (data.texts(), data.numbers()) {
        (Some(t), _) => (0..t.len()).filter(|&i| !t[i].is_empty()).collect(),
        (_, Some(v)) => floats(&v).iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect(),
        _ => vec![],
    };
    let steps = strides(data.shape);
    let found = (0..data.rank()).flat_map(|d| {
        let (step, n) = (steps[d], data.shape[d]);
        set.iter().map(move |i| (i / step % n) as i128)
    });
    Ok(vec![Some(from_ints(DType::I64, &[data.rank(), set.len()], found)?)])
}

pub(super) fn non_zero_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let x = required(x, 0)?;
    let rank = (x.ty.dtype != DType::Opaque).then(|| (x.rank() as i64).into());
    Ok(vec![carried(DType::I64, [rank, None])])
}

/// Elements that can be put in order.
enum Keys<'a> {
    Floats(Vec<f64>),
    Ints(Vec<i128>),
    Texts(&'a [String]),
}

impl Keys<'_> {
    fn compare(&self, a: usize, b: usize) -> Ordering {
        match self {
            Keys::Ints(v) => v[a].cmp(&v[b]),
            Keys::Texts(v) => v[a].cmp(&v[b]),
            // NaN is one value, behind all others; both zeros are one.
            Keys::Floats(v) => match (v[a].is_nan(), v[b].is_nan()) {
                (false, false) => v[a].partial_cmp(&v[b]).unwrap_or(Ordering::Equal),
                (x, y) => x.cmp(&y),
            },
        }
    }
}

pub(super) fn unique(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let keys = match (data.texts(), data.numbers()) {
        (Some(t), _) => Keys::Texts(t),
        (_, Some(v)) if v.dtype.is_float() || v.dtype.is_minifloat() => Keys::Floats(floats(&v)),
        (_, Some(v)) => Keys::Ints(integers(&v)),
        _ => return Err(StandardError::new("operand 0 is no tensor")),
    };
    let (at, flat) = match c.int("axis") {
        Some(a) => (axis(a, data.rank())?, data.shape.to_vec()),
        None => (0, vec![data.len()]),
    };
    let n = flat[at];
    let inner: usize = flat[at + 1..].iter().product();
    let outer: usize = flat[..at].iter().product();
    // Slices compare by their elements in order.
    let compare = |a: usize, b: usize| {
        let places = (0..outer).flat_map(|o| (0..inner).map(move |i| o * n * inner + i));
        places.map(|p| keys.compare(p + a * inner, p + b * inner)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    };
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| compare(a, b).then(a.cmp(&b)));
    // Runs of equal slices; the first of a run is its first occurrence.
    let mut groups: Vec<Vec<usize>> = vec![];
    for i in order {
        match groups.last_mut() {
            Some(g) if compare(g[0], i).is_eq() => g.push(i),
            _ => groups.push(vec![i]),
        }
    }
    if !c.flag("sorted", true) {
        groups.sort_by_key(|g| g[0]);
    }
    let firsts: Vec<i64> = groups.iter().map(|g| g[0] as i64).collect();
    let counts: Vec<i64> = groups.iter().map(|g| g.len() as i64).collect();
    let mut inverse = vec![0i64; n];
    for (k, g) in groups.iter().enumerate() {
        g.iter().for_each(|&i| inverse[i] = k as i64);
    }
    let mut shape = flat.clone();
    shape[at] = groups.len();
    let picks = (0..outer).flat_map(|o| groups.iter().map(move |g| (o * n + g[0]) * inner));
    let y = if shape.contains(&0) { data.take(&shape, 1, [])? } else { data.take(&shape, inner, picks)? };
    Ok(vec![Some(y), Some(from_i64(&firsts)?), Some(from_i64(&inverse)?), Some(from_i64(&counts)?)])
}

pub(super) fn unique_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    let opaque = data.ty.dtype == DType::Opaque;
    let open = || Partial::ranked(DType::I64, 1);
    let (y, n) = match c.int("axis") {
        _ if opaque => (Partial::opaque(), None),
        Some(a) => {
            let at = axis(a, data.rank())?;
            let mut shape = dims(&data);
            let n = shape[at].take();
            (carried(data.ty.dtype, shape), n)
        }
        None => (carried(data.ty.dtype, [None]), Some(data.ty.elements())),
    };
    Ok(vec![y, open(), carried(DType::I64, [n]), open()])
}
