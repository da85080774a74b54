//! Saturate: an e-graph holds sharding, stage boundaries and fusions of a program at once.

pub mod analysis;
mod derive;
mod ematch;
mod explain;
mod from_ir;
pub mod language;
mod names;
mod run;
mod why_not;

pub use self::explain::{explain, unfused};
pub use self::from_ir::{Program, load};
pub use self::run::{Known, Provenance, RuleConflict, RuleStats, SaturateConfig, SaturateStats, StopReason, saturate};
