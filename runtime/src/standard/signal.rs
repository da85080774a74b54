//! Recurrent networks, quantised operators, transforms, random numbers and optimiser steps.

use super::Entry;

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[];
