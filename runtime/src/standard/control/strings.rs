//! Tensors of strings.

use std::collections::BTreeSet;

use super::super::elem::dtype_of_code;
use super::super::kind::{Kind, Known};
use super::super::{Arg, Args, Call, Data, StandardError, Strings, broadcast, broadcast_index, from_bools, from_ints};
use super::flow::tensor;
use crate::dtype::DType;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;

/// ONNX's number of the element type of strings.
const STRING: i64 = 8;

/// Operators of other families that only move or compare elements, and how many of their results hold the elements.
const MOVES: &[(&str, usize)] = &[
    ("Compress", 1),
    ("Concat", 1),
    ("DepthToSpace", 1),
    ("Equal", 0),
    ("Expand", 1),
    ("Flatten", 1),
    ("Gather", 1),
    ("GatherElements", 1),
    ("GatherND", 1),
    ("Reshape", 1),
    ("ReverseSequence", 1),
    ("Scatter", 1),
    ("ScatterElements", 1),
    ("ScatterND", 1),
    ("Shape", 0),
    ("Size", 0),
    ("Slice", 1),
    ("SpaceToDepth", 1),
    ("Split", usize::MAX),
    ("Squeeze", 1),
    ("Tile", 1),
    ("Transpose", 1),
    ("Trilu", 1),
    ("Unique", 1),
    ("Unsqueeze", 1),
    ("Where", 1),
];

/// How many results of a call hold strings where operands do; `None` where the operator does not take strings as it takes
/// integers.
pub(in super::super) fn moved_strings(c: &Call) -> Option<usize> {
    let plain = c.domain.is_empty() && c.text("reduction").is_none_or(|r| r == "none");
    MOVES.iter().find(|(name, _)| plain && *name == c.op).map(|m| m.1)
}

fn strings<'a>(x: &Args<'a>, i: usize) -> Result<&'a Strings> {
    match x.required(i)? {
        Arg::Other(Data::Strings(s)) => Ok(s),
        other => Err(StandardError::new(format!("operand {i} is {}, not strings", other.describe()))),
    }
}

fn one(shape: &[usize], values: Vec<String>) -> Results {
    Ok(vec![Some(Strings { shape: shape.to_vec(), values }.into())])
}

pub(super) fn concat(_: &Call, x: &Args<'_>) -> Results {
    let (a, b) = (strings(x, 0)?, strings(x, 1)?);
    let shape = broadcast(&[&a.shape, &b.shape])?;
    let pairs = broadcast_index(&a.shape, &shape)?.into_iter().zip(broadcast_index(&b.shape, &shape)?);
    one(&shape, pairs.map(|(i, j)| format!("{}{}", a.values[i], b.values[j])).collect())
}

pub(super) fn full_match(c: &Call, x: &Args<'_>) -> Results {
    let s = strings(x, 0)?;
    let pattern = c.text("pattern").unwrap_or_default();
    let expression = regex::Regex::new(&format!(r"\A(?:{pattern})\z"))
        .map_err(|e| StandardError::new(format!("the pattern `{pattern}` is not supported: {e}")))?;
    Ok(vec![Some(from_bools(&s.shape, s.values.iter().map(|t| expression.is_match(t)))?)])
}

pub(super) fn split(c: &Call, x: &Args<'_>) -> Results {
    let s = strings(x, 0)?;
    let limit = c.int("maxsplit").and_then(|n| usize::try_from(n).ok());
    let delimiter = c.text("delimiter").unwrap_or_default();
    let parts: Vec<Vec<&str>> = s.values.iter().map(|t| pieces(t, delimiter, limit)).collect();
    let longest = parts.iter().map(Vec::len).max().unwrap_or(0);
    let mut shape = s.shape.clone();
    shape.push(longest);
    let padded = parts
        .iter()
        .flat_map(|p| p.iter().map(|t| (*t).to_owned()).chain(std::iter::repeat_n(String::new(), longest - p.len())));
    let counts = from_ints(DType::I64, &s.shape, parts.iter().map(|p| p.len() as i128))?;
    Ok(vec![Some(Strings { shape, values: padded.collect() }.into()), Some(counts)])
}

/// The pieces of a text; at whitespace, which is dropped at both ends, where there is no delimiter.
fn pieces<'a>(text: &'a str, delimiter: &str, limit: Option<usize>) -> Vec<&'a str> {
    if !delimiter.is_empty() {
        return match limit {
            Some(n) => text.splitn(n + 1, delimiter).collect(),
            None => text.split(delimiter).collect(),
        };
    }
    let Some(limit) = limit else { return text.split_whitespace().collect() };
    let mut out = vec![];
    let mut rest = text.trim_start();
    while !rest.is_empty() && out.len() < limit {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        out.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    if !rest.is_empty() {
        out.push(rest.trim_end());
    }
    out
}

/// Languages whose upper and lower case are not those of Unicode's default.
const OTHER_CASE: &[&str] = &["tr", "az", "lt"];

pub(super) fn normalize(c: &Call, x: &Args<'_>) -> Results {
    let s = strings(x, 0)?;
    if !matches!(s.shape[..], [_] | [1, _]) {
        return Err(StandardError::new(format!("it takes [n] or [1, n], not {:?}", s.shape)));
    }
    let locale = c.text("locale").unwrap_or_default();
    if OTHER_CASE.iter().any(|l| locale.to_lowercase().starts_with(l)) {
        return Err(StandardError::new(format!("the locale `{locale}` is not supported")));
    }
    let action = c.text("case_change_action").unwrap_or("NONE");
    let change = |t: &str| match action {
        "LOWER" => Ok(t.to_lowercase()),
        "UPPER" => Ok(t.to_uppercase()),
        "NONE" => Ok(t.to_owned()),
        other => Err(StandardError::new(format!("`case_change_action` is `{other}`"))),
    };
    let sensitive = c.flag("is_case_sensitive", false);
    let key = |t: &str| if sensitive { t.to_owned() } else { t.to_lowercase() };
    let stops: BTreeSet<String> = c.texts("stopwords").unwrap_or_default().iter().map(|t| key(t)).collect();
    let kept = s.values.iter().filter(|t| !stops.contains(&key(t)));
    let mut values = kept.map(|t| change(t)).collect::<Result<Vec<_>>>()?;
    // Nothing at all becomes one empty string.
    if values.is_empty() {
        values.push(String::new());
    }
    let mut shape = s.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = values.len();
    }
    one(&shape, values)
}

/// The kinds of the results of this file's operators.
pub(super) fn kinds(c: &Call, x: &[Option<Known>]) -> Result<Option<Vec<Kind>>> {
    let kind = |i: usize| x.get(i).and_then(Option::as_ref).map(|k| &k.kind);
    let is_strings = |k: Option<&Kind>| matches!(k, Some(Kind::Strings(_)));
    let extents = |i: usize| kind(i).and_then(Kind::extents).cloned();
    let text = |i: usize| match kind(i) {
        Some(Kind::Strings(_) | Kind::Unknown) => Ok(()),
        Some(k) => Err(StandardError::new(format!("operand {i} is {k}, not strings"))),
        None => Err(StandardError::new(format!("operand {i} is missing"))),
    };
    let both = || -> Result<_> {
        let (Some(a), Some(b)) = (extents(0), extents(1)) else { return Ok(None) };
        let rank = a.len().max(b.len());
        let at = |s: &[Option<crate::dim::Dim>], i: usize| match (i + s.len()).checked_sub(rank) {
            Some(i) => s[i].clone(),
            None => Some(1.into()),
        };
        let one = |d: &Option<crate::dim::Dim>| d.as_ref().is_some_and(|d| d.as_const() == Some(1));
        let pair = |i: usize| match (at(&a, i), at(&b, i)) {
            (x, y) if x == y || one(&y) => x,
            (x, y) if one(&x) => y,
            _ => None,
        };
        Ok(Some((0..rank).map(pair).collect()))
    };
    Ok(Some(match c.op.as_str() {
        "StringConcat" => {
            text(0)?;
            text(1)?;
            vec![Kind::Strings(both()?)]
        }
        "StringNormalizer" => {
            text(0)?;
            let shape = extents(0).map(|mut s| {
                if let Some(last) = s.last_mut() {
                    *last = None;
                }
                s
            });
            vec![Kind::Strings(shape)]
        }
        "RegexFullMatch" => {
            text(0)?;
            vec![tensor(DType::Bool, extents(0))]
        }
        "StringSplit" => {
            text(0)?;
            let shape = extents(0);
            let longer = shape.clone().map(|s| s.into_iter().chain([None]).collect());
            vec![Kind::Strings(longer), tensor(DType::I64, shape)]
        }
        "Equal" if is_strings(kind(0)) => vec![tensor(DType::Bool, both()?)],
        "Cast" if c.int("to") == Some(STRING) => vec![Kind::Strings(extents(0))],
        "CastLike" if is_strings(kind(1)) => vec![Kind::Strings(extents(0))],
        "Cast" | "CastLike" if is_strings(kind(0)) => {
            let dtype = match kind(1) {
                Some(k) => k.dtype(),
                None => c.int("to").and_then(|t| dtype_of_code(t).ok()),
            };
            match dtype {
                Some(d) => vec![tensor(d, extents(0))],
                None => return Err(StandardError::new("a cast of strings to this type is not supported")),
            }
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_as_python_cuts_them() {
        assert_eq!(pieces("  a  b c ", "", None), ["a", "b", "c"]);
        assert_eq!(pieces("  a  b c ", "", Some(1)), ["a", "b c"]);
        assert_eq!(pieces("a--b--c", "--", Some(1)), ["a", "b--c"]);
        assert_eq!(pieces("", "-", None), [""]);
        assert!(pieces("  ", "", Some(3)).is_empty());
    }
}
