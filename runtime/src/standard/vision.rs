//! Convolution, pooling, resampling and what detectors need.

use super::Entry;

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[];
