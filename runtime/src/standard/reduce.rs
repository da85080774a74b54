//! Reductions, soft-max and its kin, norms, selections of the largest, losses.

use super::Entry;

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[];
