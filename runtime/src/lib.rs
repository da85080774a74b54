//! Reads sinter plans and executes them on all ranks.
//!
//! This crate knows plans and nothing of ONNX, e-graphs or rules. It also holds the vocabulary that
//! the compiler shares with it: element types, symbolic extents and the operator table.
#![warn(missing_docs)]

pub mod attr;
pub mod body;
pub mod comm;
pub mod compare;
pub mod cpu;
pub mod cuda;
pub mod dim;
pub mod dtype;
pub mod executor;
pub mod io;
pub mod map;
pub mod minifloat;
pub mod norm;
pub mod op;
pub mod plan;
pub mod precision;
pub mod random;
pub mod standard;
pub mod tensor;
