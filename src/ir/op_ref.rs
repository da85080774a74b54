//! Operators with their hash, shared between many nodes.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::FxHasher;

use super::{Op, OpInfo};

/// An operator with its hash, shared.
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
