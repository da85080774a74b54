//! The e-graph's nodes: `ir::Op` with e-class operands.

use std::hash::{Hash, Hasher};
use std::mem::Discriminant;
use std::sync::Arc;

use egg::{Id, Language};
use rustc_hash::FxHasher;
use smallvec::SmallVec;

use crate::ir::{Op, OpInfo};

/// An operator with its hash, shared between e-nodes.
#[derive(Clone, Debug)]
pub struct OpRef {
    op: Arc<Op>,
    hash: u64,
    row: &'static OpInfo,
}

impl OpRef {
    /// Wraps an operator.
    pub fn new(op: Op) -> OpRef {
        let mut h = FxHasher::default();
        op.hash(&mut h);
        OpRef { hash: h.finish(), row: op.info(), op: Arc::new(op) }
    }

    /// The operator's row in the table; as `Op::info`, without the look-up.
    pub fn row(&self) -> &'static OpInfo {
        self.row
    }
}

impl std::ops::Deref for OpRef {
    type Target = Op;
    fn deref(&self) -> &Op {
        &self.op
    }
}

impl PartialEq for OpRef {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.op, &other.op) || self.op == other.op)
    }
}

impl Eq for OpRef {}

impl Hash for OpRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl PartialOrd for OpRef {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OpRef {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        if Arc::ptr_eq(&self.op, &other.op) { std::cmp::Ordering::Equal } else { self.op.cmp(&other.op) }
    }
}

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
