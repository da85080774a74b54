//! Typed attribute values of operators, with one text form and one JSON form.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::body::Body;
use crate::dim::{Dim, Shape};
use crate::dtype::{DType, Literal};
use crate::standard::Call;

/// An `f64` that compares and hashes by its bits, so that operators can be e-graph keys.
#[derive(Clone, Copy)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Real {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// An axis of the device mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MeshAxis {
    /// Tensor parallelism.
    Tp,
    /// Pipeline parallelism.
    Pp,
}

impl MeshAxis {
    /// The name used in rules, text forms and plans.
    pub fn name(self) -> &'static str {
        match self {
            MeshAxis::Tp => "tp",
            MeshAxis::Pp => "pp",
        }
    }

    /// The inverse of [`MeshAxis::name`].
    pub fn parse(s: &str) -> Option<MeshAxis> {
        [MeshAxis::Tp, MeshAxis::Pp].into_iter().find(|a| a.name() == s)
    }
}

/// Which rows of a soft-max are zeros instead of NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Safe {
    /// None: `false` in text forms.
    #[default]
    No,
    /// Those whose elements are all -infinity, such as rows that a mask hides: `true`. NaN stays NaN.
    Masked,
    /// All that would be NaN: `always`.
    Always,
}

impl Safe {
    /// The value used in rules, text forms and plans.
    pub fn name(self) -> &'static str {
        match self {
            Safe::No => "false",
            Safe::Masked => "true",
            Safe::Always => "always",
        }
    }

    /// The inverse of [`Safe::name`].
    pub fn parse(s: &str) -> Option<Safe> {
        [Safe::No, Safe::Masked, Safe::Always].into_iter().find(|a| a.name() == s)
    }
}

/// The kind of an attribute, as declared in the operator table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrKind {
    /// 64-bit integer.
    Int,
    /// List of integers.
    Ints,
    /// Floating-point number.
    Real,
    /// `true` or `false`.
    Bool,
    /// Element type.
    DType,
    /// Symbolic extent.
    Dim,
    /// List of symbolic extents.
    Dims,
    /// Mesh axis.
    Axis,
    /// Which rows of a soft-max are zeros.
    Safe,
    /// Text.
    Str,
    /// Small tensor.
    Lit,
    /// What a declared kernel computes.
    Body,
    /// A call of a standard operator.
    Call,
}

/// An attribute value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant is described by its AttrKind")]
pub enum Attr {
    Int(i64),
    Ints(Vec<i64>),
    Real(Real),
    Bool(bool),
    DType(DType),
    Dim(Dim),
    Dims(Shape),
    Axis(MeshAxis),
    Safe(Safe),
    Str(String),
    Lit(Literal),
    Body(Body),
    Call(Arc<Call>),
}

/// A Rust type that an operator's field may have.
pub trait AttrField: Sized {
    /// Its kind.
    const KIND: AttrKind;
    /// Into the dynamic form.
    fn to_attr(&self) -> Attr;
    /// From the dynamic form; `None` when the kind differs.
    fn from_attr(a: &Attr) -> Option<Self>;
    /// Some value of the type.
    fn placeholder() -> Self;
}

macro_rules! attr_field {
    ($($ty:ty => $kind:ident, $some:expr);* $(;)?) => {$(
        impl AttrField for $ty {
            const KIND: AttrKind = AttrKind::$kind;
            fn to_attr(&self) -> Attr {
                Attr::$kind(self.clone())
            }
            fn from_attr(a: &Attr) -> Option<Self> {
                match a {
                    Attr::$kind(v) => Some(v.clone()),
                    _ => None,
                }
            }
            fn placeholder() -> Self {
                $some
            }
        }
    )*};
}

attr_field! {
    i64 => Int, 0;
    Vec<i64> => Ints, vec![];
    Real => Real, Real(0.0);
    bool => Bool, false;
    DType => DType, DType::F32;
    Dim => Dim, Dim::from(0);
    Shape => Dims, vec![];
    MeshAxis => Axis, MeshAxis::Tp;
    Safe => Safe, Safe::No;
    String => Str, String::new();
    Literal => Lit, Literal::ints(DType::I64, vec![0], &[]);
    Arc<Call> => Call, Arc::default();
    Body => Body, Body { name: String::new(), operands: 0, steps: vec![], results: vec![] };
}

impl Attr {
    /// The kind of this value.
    pub fn kind(&self) -> AttrKind {
        match self {
            Attr::Int(_) => AttrKind::Int,
            Attr::Ints(_) => AttrKind::Ints,
            Attr::Real(_) => AttrKind::Real,
            Attr::Bool(_) => AttrKind::Bool,
            Attr::DType(_) => AttrKind::DType,
            Attr::Dim(_) => AttrKind::Dim,
            Attr::Dims(_) => AttrKind::Dims,
            Attr::Axis(_) => AttrKind::Axis,
            Attr::Safe(_) => AttrKind::Safe,
            Attr::Str(_) => AttrKind::Str,
            Attr::Lit(_) => AttrKind::Lit,
            Attr::Body(_) => AttrKind::Body,
            Attr::Call(_) => AttrKind::Call,
        }
    }

    /// Converts between kinds that carry the same value (an integer where a dimension is wanted, and so on).
    pub fn coerce(self, kind: AttrKind) -> Option<Attr> {
        Some(match (self, kind) {
            (a, k) if a.kind() == k => a,
            (Attr::Bool(b), AttrKind::Safe) => Attr::Safe(if b { Safe::Masked } else { Safe::No }),
            (Attr::Int(n), AttrKind::Dim) => Attr::Dim(Dim::from(n)),
            (Attr::Int(n), AttrKind::Real) => Attr::Real(Real(n as f64)),
            (Attr::Dim(d), AttrKind::Int) => Attr::Int(d.as_const()?),
            (Attr::Ints(v), AttrKind::Dims) => Attr::Dims(v.into_iter().map(Dim::from).collect()),
            (Attr::Dims(v), AttrKind::Ints) => Attr::Ints(v.iter().map(Dim::as_const).collect::<Option<_>>()?),
            _ => return None,
        })
    }

    /// Reads the form that `Display` writes, given the kind.
    pub fn parse(kind: AttrKind, text: &str) -> Option<Attr> {
        let text = text.trim();
        let list = || {
            let body = text.strip_prefix('[')?.strip_suffix(']')?.trim();
            Some(if body.is_empty() { vec![] } else { split_top_level(body) })
        };
        Some(match kind {
            AttrKind::Int => Attr::Int(text.parse().ok()?),
            AttrKind::Ints => Attr::Ints(list()?.iter().map(|s| s.trim().parse().ok()).collect::<Option<_>>()?),
            AttrKind::Real => Attr::Real(Real(text.parse().ok()?)),
            AttrKind::Bool => Attr::Bool(text.parse().ok()?),
            AttrKind::DType => Attr::DType(DType::parse(text)?),
            AttrKind::Dim => Attr::Dim(Dim::parse(text).ok()?),
            AttrKind::Dims => Attr::Dims(list()?.iter().map(|s| Dim::parse(s).ok()).collect::<Option<_>>()?),
            AttrKind::Axis => Attr::Axis(MeshAxis::parse(text)?),
            AttrKind::Safe => Attr::Safe(Safe::parse(text)?),
            AttrKind::Str => Attr::Str(serde_json::from_str(text).ok()?),
            AttrKind::Lit => Attr::Lit(Literal::parse(text)?),
            AttrKind::Body => Attr::Body(Body::parse(&serde_json::from_str::<String>(text).ok()?)?),
            AttrKind::Call => Attr::Call(Arc::new(Call::parse(&serde_json::from_str::<String>(text).ok()?)?)),
        })
    }

    /// The JSON form: numbers, booleans and lists natural, all else as text.
    pub fn to_json(&self) -> Value {
        match self {
            Attr::Int(n) => Value::from(*n),
            Attr::Ints(v) => Value::from(v.clone()),
            Attr::Bool(b) => Value::from(*b),
            Attr::Safe(s @ (Safe::No | Safe::Masked)) => Value::from(*s == Safe::Masked),
            Attr::Real(r) if r.0.is_finite() => Value::from(r.0),
            Attr::Str(s) => Value::from(s.clone()),
            Attr::Body(b) => Value::from(b.to_string()),
            Attr::Call(c) => serde_json::to_value(&**c).unwrap_or(Value::Null),
            Attr::Dims(v) => v.iter().map(|d| serde_json::to_value(d).unwrap_or(Value::Null)).collect(),
            other => Value::from(other.to_string()),
        }
    }

    /// The inverse of [`Attr::to_json`].
    pub fn from_json(kind: AttrKind, v: &Value) -> Option<Attr> {
        Some(match (kind, v) {
            (AttrKind::Int, v) => Attr::Int(v.as_i64()?),
            (AttrKind::Ints, Value::Array(a)) => Attr::Ints(a.iter().map(Value::as_i64).collect::<Option<_>>()?),
            (AttrKind::Safe, Value::Bool(b)) => Attr::Safe(if *b { Safe::Masked } else { Safe::No }),
            (AttrKind::Bool, v) => Attr::Bool(v.as_bool()?),
            (AttrKind::Real, Value::Number(n)) => Attr::Real(Real(n.as_f64()?)),
            (AttrKind::Str, v) => Attr::Str(v.as_str()?.to_owned()),
            (AttrKind::Dims, v) => Attr::Dims(serde_json::from_value(v.clone()).ok()?),
            (AttrKind::Body, Value::String(s)) => Attr::Body(Body::parse(s)?),
            (AttrKind::Call, v @ Value::Object(_)) => Attr::Call(Arc::new(serde_json::from_value(v.clone()).ok()?)),
            (kind, Value::String(s)) => Attr::parse(kind, s)?,
            _ => return None,
        })
    }
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attr::Int(n) => write!(f, "{n}"),
            Attr::Ints(v) => write!(f, "{v:?}"),
            Attr::Real(r) => write!(f, "{:?}", r.0),
            Attr::Bool(b) => write!(f, "{b}"),
            Attr::DType(d) => write!(f, "{d}"),
            Attr::Dim(d) => write!(f, "{d}"),
            Attr::Dims(v) => write!(f, "{v:?}"),
            Attr::Axis(a) => f.write_str(a.name()),
            Attr::Safe(s) => f.write_str(s.name()),
            Attr::Str(s) => write!(f, "{}", Value::from(s.as_str())),
            Attr::Lit(l) => write!(f, "{l}"),
            Attr::Body(b) => write!(f, "{}", Value::from(b.to_string())),
            Attr::Call(c) => write!(f, "{}", Value::from(c.to_string())),
        }
    }
}

/// Splits at commas that are outside brackets, parentheses and strings.
pub fn split_top_level(text: &str) -> Vec<&str> {
    let (mut out, mut depth, mut start) = (vec![], 0i32, 0);
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}
