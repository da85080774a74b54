//! Operators that move, select or build elements where shapes or indices depend on data, and products of matrices.

use super::Entry;

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[];
