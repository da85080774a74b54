//! sinter compiles model graphs for a grid of devices.
#![forbid(unsafe_code)]
pub mod cost;
pub mod diag;
pub mod extract;
pub mod import;
pub mod ir;
pub mod rules;
pub mod saturate;
