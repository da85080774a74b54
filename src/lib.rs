//! sinter compiles model graphs for a grid of devices.
#![forbid(unsafe_code)]
pub mod import;
pub mod ir;
