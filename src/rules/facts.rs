//! What is known about every term of an e-class; what guards read.

use std::sync::Arc;

use crate::ir::{Literal, MeshAxis, TensorType};

/// Facts that hold for every term of an e-class, on every rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// One type per result.
    pub types: Arc<[TensorType]>,
    /// The value, where it is a constant.
    pub constant: Option<Literal>,
    /// Computed from weights and constants alone.
    pub weight: bool,
    /// Computed from graph inputs, constants and vectors alone, so that every stage may recompute it.
    pub free: bool,
    /// An input or weight leaf, a constant, or a range of a weight: a part of it costs nothing to cut.
    pub leaf: bool,
    /// A range of a weight leaf.
    pub range_of_weight: bool,
    /// Whether the ranks of the tensor axis may hold different values.
    pub varies_over_tp: bool,
    /// The pipeline stage that holds it; `None` where every stage may.
    pub stage: Option<i64>,
}

impl Facts {
    /// Only the types are known: the value may be anything, and differ between the ranks.
    pub fn of_types(types: Arc<[TensorType]>) -> Facts {
        Facts {
            types,
            constant: None,
            weight: false,
            free: false,
            leaf: false,
            range_of_weight: false,
            varies_over_tp: true,
            stage: None,
        }
    }

    /// The type of a value with one result.
    pub fn ty(&self) -> &TensorType {
        &self.types[0]
    }

    /// Whether the ranks of an axis all hold the same value.
    pub fn replicated(&self, axis: MeshAxis) -> bool {
        match axis {
            MeshAxis::Tp => !self.varies_over_tp,
            MeshAxis::Pp => true,
        }
    }
}
