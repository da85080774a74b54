//! sinter compiles model graphs for a grid of devices.
//!
//! | stage | from | to | module |
//! |---|---|---|---|
//! | import | ONNX files | typed [`ir::Graph`], shapes symbolic | [`import`] |
//! | raise | decomposed operators | norms, rotary embedding, attention, activations | [`saturate`] with `rules/raise*.rules` |
//! | partition | raised graph | `boundary` operators between pipeline stages | [`partition`] |
//! | saturate | e-graph and rules | saturated e-graph | [`saturate`] |
//! | extract | e-graph and cost model | SPMD graph | [`extract`], [`cost`] |
//! | lower | SPMD graph | plan with buffers and certificate | [`lower`] |
//! | run | plan | outputs | the runtime crate |
//!
//! [`pipeline`] is the one place that runs them in order; [`cli`] is the command line.
#![forbid(unsafe_code)]

pub mod ir;

pub mod import;
pub mod rules;

pub mod saturate;

pub mod partition;

pub mod cost;
pub mod extract;

pub mod lower;

pub mod emit;

pub mod check;

pub mod diff;

pub mod pipeline;

pub mod cli;
pub mod diag;
pub mod explain;
pub mod timing;
