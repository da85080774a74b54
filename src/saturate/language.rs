//! The e-graph's nodes: `ir::Op` with e-class operands.

use std::mem::Discriminant;

use egg::{Id, Language};
use smallvec::SmallVec;

use crate::ir::Op;
pub use crate::ir::OpRef;

/// An e-node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ENode {
    /// What is computed.
    pub op: OpRef,
    /// The operands' e-classes.
    pub children: SmallVec<[Id; 4]>,
}

impl Language for ENode {
    type Discriminant = Discriminant<Op>;

    fn discriminant(&self) -> Self::Discriminant {
        std::mem::discriminant(&*self.op)
    }

    fn matches(&self, other: &Self) -> bool {
        self.op == other.op && self.children.len() == other.children.len()
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}
