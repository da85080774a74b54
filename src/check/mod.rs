//! Check: rules and cases are judged by evaluation.

pub mod eval;
