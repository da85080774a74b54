//! A call of a standard operator: which one, its attributes, and which of its operands and results are there.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::StandardError;
use crate::attr::Real;
use crate::dtype::{DType, TensorType};

/// A call of an ONNX operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Domain; empty for the default one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Operator type.
    pub op: String,
    /// Version of the domain's operator set that the model uses.
    pub opset: i64,
    /// Attributes by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attrs: BTreeMap<String, Value>,
    /// By position, whether the operand is there. Operands of bodies ([`Program::captures`]) come behind, without an entry.
    pub present: Vec<bool>,
    /// By position, whether the result is wanted.
    pub wanted: Vec<bool>,
    /// Types of the wanted results. Extents that only execution shows are symbols of their own.
    #[serde(default)]
    pub results: Vec<TensorType>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each variant is named after its ONNX kind")]
pub enum Value {
    Int(i64),
    Float(Real),
    Text(String),
    Tensor(Constant),
    Graph(Box<Program>),
    Ints(Vec<i64>),
    Floats(Vec<Real>),
    Texts(Vec<String>),
}

/// A tensor in an attribute or a body.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// Element type; `opaque` for strings.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// Row-major little-endian elements.
    #[serde(default, with = "hex", skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<u8>,
    /// Elements of a tensor of strings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
}

/// The graph of a body of `If`, `Loop`, `Scan` and the like. Names are those of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Formal operands.
    #[serde(default)]
    pub inputs: Vec<String>,
    /// Names of values of the surrounding graph that it reads, directly or in bodies within it. The call has them as
    /// operands behind its own: those of its first graph attribute (by name), then those of the next.
    #[serde(default)]
    pub captures: Vec<String>,
    /// Constants by name.
    #[serde(default)]
    pub constants: BTreeMap<String, Constant>,
    /// Calls in an order in which values are defined before they are read.
    #[serde(default)]
    pub nodes: Vec<ProgramNode>,
    /// Names of the results.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// What the model says that the results are, in the text form of [`Kind`](super::Kind).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub declared: Vec<String>,
}

/// A call within a body.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramNode {
    /// What to compute.
    pub call: Call,
    /// Names of the operands, without those that are absent; captured values of its own bodies behind.
    pub inputs: Vec<String>,
    /// Names of the wanted results.
    pub outputs: Vec<String>,
}

type Result<T> = std::result::Result<T, StandardError>;

impl Call {
    /// The operator with its domain, for messages.
    pub fn title(&self) -> String {
        if self.domain.is_empty() { self.op.clone() } else { format!("{}::{}", self.domain, self.op) }
    }

    /// Whether equal operands give equal results: it draws no random numbers and has no body that might.
    pub fn is_function(&self) -> bool {
        let random = self.op.starts_with("Random") || matches!(&self.op[..], "Bernoulli" | "Multinomial" | "Dropout");
        !random && !self.attrs.values().any(|v| matches!(v, Value::Graph(_)))
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attrs.get(name) {
            Some(Value::Int(v)) => Some(*v),
            _ => None,
        }
    }

    /// A flag, stored as an integer.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.int(name).map_or(default, |v| v != 0)
    }

    /// A floating-point attribute.
    pub fn float(&self, name: &str) -> Option<f64> {
        match self.attrs.get(name) {
            Some(Value::Float(v)) => Some(v.0),
            _ => None,
        }
    }

    /// A text attribute.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.attrs.get(name) {
            Some(Value::Text(v)) => Some(v),
            _ => None,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attrs.get(name) {
            Some(Value::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// A list of numbers.
    pub fn floats(&self, name: &str) -> Option<Vec<f64>> {
        match self.attrs.get(name) {
            Some(Value::Floats(v)) => Some(v.iter().map(|r| r.0).collect()),
            _ => None,
        }
    }

    /// A list of texts.
    pub fn texts(&self, name: &str) -> Option<&[String]> {
        match self.attrs.get(name) {
            Some(Value::Texts(v)) => Some(v),
            _ => None,
        }
    }

    /// A tensor attribute.
    pub fn constant(&self, name: &str) -> Option<&Constant> {
        match self.attrs.get(name) {
            Some(Value::Tensor(v)) => Some(v),
            _ => None,
        }
    }

    /// A body.
    pub fn graph(&self, name: &str) -> Result<&Program> {
        match self.attrs.get(name) {
            Some(Value::Graph(v)) => Ok(v),
            _ => Err(StandardError::new(format!("attribute `{name}` is missing"))),
        }
    }

    /// An attribute that must be present.
    pub fn required_int(&self, name: &str) -> Result<i64> {
        self.int(name).ok_or_else(|| StandardError::new(format!("attribute `{name}` is missing")))
    }

    /// Whether the result at a position is wanted.
    pub fn wants(&self, i: usize) -> bool {
        self.wanted.get(i).copied().unwrap_or(false)
    }

    /// The element type of a wanted result, by its position among all results.
    pub fn result_dtype(&self, i: usize) -> Option<DType> {
        let at = self.wanted.get(..i)?.iter().filter(|w| **w).count();
        self.wants(i).then(|| self.results.get(at).map(|t| t.dtype)).flatten()
    }

    /// Reads the form that `Display` writes.
    pub fn parse(text: &str) -> Option<Call> {
        serde_json::from_str(text).ok()
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Real {
    /// Infinities and NaN have no number in JSON; they are texts.
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        if self.0.is_finite() { s.serialize_f64(self.0) } else { s.collect_str(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(f64),
            Text(String),
        }
        match Form::deserialize(d)? {
            Form::Number(v) => Ok(Real(v)),
            Form::Text(t) => t.parse().map(Real).map_err(|_| serde::de::Error::custom(format!("`{t}` is no number"))),
        }
    }
}

/// Bytes as hexadecimal digits.
mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(data: &[u8], s: S) -> Result<S::Ok, S::Error> {
        let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
        s.serialize_str(&data.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        let digit = |c: u8| char::from(c).to_digit(16).map(|n| n as u8);
        let pair = |p: &[u8]| Some(digit(p[0])? << 4 | digit(*p.get(1)?)?);
        text.as_bytes()
            .chunks(2)
            .map(pair)
            .collect::<Option<_>>()
            .ok_or_else(|| D::Error::custom("no hexadecimal digits"))
    }
}
