//! The entries of a record. They are many, so they are written as lists instead of objects.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One application of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Index of the rule.
    pub rule: u32,
    /// What the rule's variables stood for.
    pub vars: Vec<Bound>,
    /// The terms that the left side took, from the root down.
    pub took: Vec<Taken>,
}

/// What a variable stood for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bound {
    /// The left side does not bind it.
    Nothing,
    /// An attribute or an operator, as text.
    Text(u32),
    /// A tensor, with the facts that were known of it: the sum of [`Bound::REPLICATED`] and so on.
    Tensor(u32, u8),
    /// Any number of tensors.
    Tensors((Vec<u32>,)),
}

impl Bound {
    /// Equal on all ranks of the tensor axis.
    pub const REPLICATED: u8 = 1;
    /// Computed from weights and constants alone.
    pub const WEIGHT: u8 = 2;
    /// A weight, a constant or a graph input.
    pub const LEAF: u8 = 4;
    /// Computed from graph inputs, constants and vectors alone.
    pub const FREE: u8 = 8;
}

/// A term that a rule's left side took.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// The tensor that it computes.
    pub tensor: u32,
    /// The operator with its attributes.
    pub op: u32,
    /// The tensors that it reads.
    pub operands: Vec<u32>,
    /// Where it comes from.
    pub made: Made,
}

/// Where a term comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Made {
    /// The entry that made it.
    By(u32),
    /// It is these ONNX nodes. None at all: an input, a weight, or what partition put in.
    Nodes(Vec<u32>),
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (self.rule, &self.vars, &self.took).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (rule, vars, took) = Deserialize::deserialize(d)?;
        Ok(Entry { rule, vars, took })
    }
}

impl Serialize for Taken {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (self.tensor, self.op, &self.operands, &self.made).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Taken {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (tensor, op, operands, made) = Deserialize::deserialize(d)?;
        Ok(Taken { tensor, op, operands, made })
    }
}
