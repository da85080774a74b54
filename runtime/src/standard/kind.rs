//! What is known about a value of any kind before it exists: tensors, strings, sequences, optional values.

use std::collections::BTreeSet;
use std::fmt;

use super::infer::{Operand, Partial};
use super::{Call, StandardError, control, lookup};
use crate::dim::{Dim, Shape};
use crate::dtype::{DType, TensorType};

type Result<T> = std::result::Result<T, StandardError>;

/// Extents, `None` where only execution shows them; `None` altogether where the rank is not known.
pub type Extents = Option<Vec<Option<Dim>>>;

/// What a value is, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is known.
    #[default]
    Unknown,
    /// A tensor of numbers.
    Tensor(Partial),
    /// A tensor of strings.
    Strings(Extents),
    /// A sequence, and what its elements have in common.
    Sequence(Box<Kind>),
    /// An optional value.
    Optional(Box<Kind>),
}

/// What is known about an operand.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// What it is.
    pub kind: Kind,
    /// Its elements, where they are known integers or extents.
    pub values: Option<Vec<Dim>>,
}

impl From<Kind> for Known {
    fn from(kind: Kind) -> Known {
        Known { kind, values: None }
    }
}

impl From<Partial> for Kind {
    fn from(p: Partial) -> Kind {
        if p.dtype == DType::Opaque { Kind::Unknown } else { Kind::Tensor(p) }
    }
}

impl Kind {
    /// The kind of a value of the graph; nothing is known of what is no tensor of numbers.
    pub fn of(ty: &TensorType) -> Kind {
        Partial::known(ty.dtype, ty.shape.iter().cloned()).into()
    }

    /// A tensor with one element and no axes.
    pub fn scalar(dtype: DType) -> Kind {
        Partial::known(dtype, []).into()
    }

    /// Element type of a tensor of numbers, [`DType::Opaque`] for other kinds; `None` where nothing is known.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Kind::Unknown => None,
            Kind::Tensor(p) => Some(p.dtype),
            _ => Some(DType::Opaque),
        }
    }

    /// Extents of a tensor.
    pub fn extents(&self) -> Option<&Vec<Option<Dim>>> {
        match self {
            Kind::Tensor(p) => p.shape.as_ref(),
            Kind::Strings(s) => s.as_ref(),
            _ => None,
        }
    }

    /// The same with other extents.
    pub fn with(&self, shape: Extents) -> Kind {
        match self {
            Kind::Tensor(p) => Kind::Tensor(Partial { dtype: p.dtype, shape }),
            Kind::Strings(_) => Kind::Strings(shape),
            other => other.clone(),
        }
    }

    /// What two values have in common. The error says why no value is both.
    pub fn join(&self, other: &Kind) -> Result<Kind> {
        let extents = |a: &Extents, b: &Extents| match (a, b) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                Some(a.iter().zip(b).map(|(x, y)| if x == y { x.clone() } else { None }).collect())
            }
            _ => None,
        };
        Ok(match (self, other) {
            (Kind::Unknown, _) | (_, Kind::Unknown) => Kind::Unknown,
            (Kind::Tensor(a), Kind::Tensor(b)) if a.dtype == b.dtype => {
                Kind::Tensor(Partial { dtype: a.dtype, shape: extents(&a.shape, &b.shape) })
            }
            (Kind::Strings(a), Kind::Strings(b)) => Kind::Strings(extents(a, b)),
            (Kind::Sequence(a), Kind::Sequence(b)) => Kind::Sequence(Box::new(a.join(b)?)),
            (Kind::Optional(a), Kind::Optional(b)) => Kind::Optional(Box::new(a.join(b)?)),
            // A value may stand for an optional one that has it.
            (Kind::Optional(_), _) | (_, Kind::Optional(_)) => Kind::Unknown,
            (a, b) => return Err(StandardError::new(format!("one value is {a}, another {b}"))),
        })
    }

    /// The same with only those extents that satisfy a condition.
    pub fn keep(&self, wanted: &dyn Fn(&Dim) -> bool) -> Kind {
        let filter =
            |s: &Extents| s.as_ref().map(|s| s.iter().map(|d| d.clone().filter(|d| wanted(d))).collect::<Vec<_>>());
        match self {
            Kind::Unknown => Kind::Unknown,
            Kind::Tensor(p) => Kind::Tensor(Partial { dtype: p.dtype, shape: filter(&p.shape) }),
            Kind::Strings(s) => Kind::Strings(filter(s)),
            Kind::Sequence(k) => Kind::Sequence(Box::new(k.keep(wanted))),
            Kind::Optional(k) => Kind::Optional(Box::new(k.keep(wanted))),
        }
    }

    /// Reads the form that `Display` writes; symbolic extents read as unknown ones.
    pub fn parse(text: &str) -> Option<Kind> {
        let inner = |prefix: &str| text.strip_prefix(prefix)?.strip_suffix(')');
        if let Some(k) = inner("sequence(") {
            return Some(Kind::Sequence(Box::new(Kind::parse(k)?)));
        }
        if let Some(k) = inner("optional(") {
            return Some(Kind::Optional(Box::new(Kind::parse(k)?)));
        }
        if text == "unknown" {
            return Some(Kind::Unknown);
        }
        let (name, shape) = match text.strip_suffix(']') {
            None => (text, None),
            Some(t) => {
                let (name, list) = t.split_once('[')?;
                let list = list.split(',').map(str::trim).filter(|d| !d.is_empty());
                (name, Some(list.map(|d| d.parse::<i64>().ok().map(Dim::from)).collect()))
            }
        };
        if name == "string" {
            return Some(Kind::Strings(shape));
        }
        Some(Kind::Tensor(Partial { dtype: DType::parse(name).filter(|d| *d != DType::Opaque)?, shape }))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = |f: &mut fmt::Formatter<'_>, s: &Extents| {
            let Some(s) = s else { return Ok(()) };
            let text = |d: &Option<Dim>| d.as_ref().map_or("?".to_owned(), Dim::to_string);
            write!(f, "[{}]", s.iter().map(text).collect::<Vec<_>>().join(", "))
        };
        match self {
            Kind::Unknown => f.write_str("unknown"),
            Kind::Tensor(p) => {
                write!(f, "{}", p.dtype)?;
                shape(f, &p.shape)
            }
            Kind::Strings(s) => {
                f.write_str("string")?;
                shape(f, s)
            }
            Kind::Sequence(k) => write!(f, "sequence({k})"),
            Kind::Optional(k) => write!(f, "optional({k})"),
        }
    }
}

/// Whether an extent is a symbol that stands for an unknown one.
fn made_up(d: &Dim) -> bool {
    let mut symbols = BTreeSet::new();
    d.collect_symbols(&mut symbols);
    symbols.iter().any(|s| s.starts_with('?'))
}

/// The kinds of a call's results by position. `captured` are values that bodies read from around the call.
pub fn kinds(call: &Call, x: &[Option<Known>], captured: &[Known]) -> Result<Vec<Kind>> {
    let error = |e: StandardError| StandardError::new(format!("{}: {}", call.title(), e.message));
    if let Some(found) = control::kinds(call, x, captured).map_err(error)? {
        return Ok(found);
    }
    let entry = lookup(&call.domain, &call.op)
        .ok_or_else(|| StandardError::new(format!("the operator {} is not supported", call.title())))?;
    // Operators that only move elements do so with strings as they do with integers.
    let strings = x.iter().flatten().any(|k| matches!(k.kind, Kind::Strings(_)));
    let moved = if strings { control::moved_strings(call) } else { None };
    let mut types: Vec<Option<TensorType>> = vec![];
    let mut fresh = 0;
    for known in x {
        let Some(known) = known else {
            types.push(None);
            continue;
        };
        let dtype = match &known.kind {
            Kind::Unknown => return Ok(vec![Kind::Unknown; call.wanted.len()]),
            Kind::Tensor(p) => p.dtype,
            Kind::Strings(_) if moved.is_some() => DType::I64,
            Kind::Strings(_) => DType::Opaque,
            // The operator may know what to do with it; it has no extents.
            Kind::Sequence(_) | Kind::Optional(_) => {
                types.push(Some(TensorType { dtype: DType::Opaque, shape: vec![] }));
                continue;
            }
        };
        let Some(shape) = known.kind.extents() else { return Ok(vec![Kind::Unknown; call.wanted.len()]) };
        let shape: Shape = shape
            .iter()
            .map(|d| {
                d.clone().unwrap_or_else(|| {
                    fresh += 1;
                    Dim::sym(&format!("?{fresh}"))
                })
            })
            .collect();
        types.push(Some(TensorType { dtype, shape }));
    }
    let operands: Vec<Option<Operand<'_>>> = types
        .iter()
        .zip(x)
        .map(|(ty, k)| ty.as_ref().map(|ty| Operand { ty, values: k.as_ref().and_then(|k| k.values.as_deref()) }))
        .collect();
    let found = (entry.infer)(call, &operands).map_err(error)?;
    Ok(found
        .into_iter()
        .enumerate()
        .map(|(i, p)| {
            let kind = if moved.is_some_and(|n| i < n) { Kind::Strings(p.shape) } else { Kind::from(p) };
            if fresh > 0 { kind.keep(&|d| !made_up(d)) } else { kind }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_back() {
        for text in ["unknown", "f32", "f32[]", "string[?, 3]", "optional(sequence(i64[2, ?]))", "sequence(string)"] {
            assert_eq!(Kind::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "f33", "sequence(", "f32[", "opaque", "sequence(f32"] {
            assert_eq!(Kind::parse(text), None, "{text}");
        }
    }

    #[test]
    fn joins_keep_what_is_common() {
        let k = |t: &str| Kind::parse(t).unwrap();
        assert_eq!(k("f32[2, 3]").join(&k("f32[2, 4]")).unwrap(), k("f32[2, ?]"));
        assert_eq!(k("f32[2]").join(&k("f32[2, 4]")).unwrap(), k("f32"));
        assert_eq!(k("sequence(f32[1])").join(&k("sequence(f32)")).unwrap(), k("sequence(f32)"));
        assert!(k("f32[2]").join(&k("i64[2]")).is_err() && k("f32").join(&k("sequence(f32)")).is_err());
    }
}
