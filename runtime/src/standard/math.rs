//! Element-wise operators on any element type: arithmetic, comparison, bits, activations, conversions.

use super::Entry;

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[];
