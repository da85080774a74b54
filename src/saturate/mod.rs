//! Saturate: an e-graph holds sharding, stage boundaries and fusions of a program at once.

pub mod analysis;
mod ematch;
mod from_ir;
pub mod language;
mod run;

pub use self::from_ir::{Program, load};
pub use self::run::{Known, Provenance, RuleConflict, RuleStats, SaturateConfig, SaturateStats, StopReason, saturate};
