//! The integration tests, outside in: the command line, whole models, then single stages.
//!
//! Cases are data under `tests/cases/<module>`; each module has one function that checks one case.
#![allow(clippy::print_stdout, reason = "tests say what they skip and what they measured")]

/// Wrong input of every kind gives one clear error and nothing else.
mod bad_input;
/// Output that cannot be written.
mod bad_output;
/// Plans and inputs that `run` must refuse.
mod bad_plan;
/// Local functions and bodies of control flow.
mod bodies;
/// Builders of small and broken inputs.
mod broken;
/// The real binary: exit codes, reports, products.
mod cli;
/// Operators that ONNX Runtime adds to ONNX.
mod contrib;
/// Equal inputs give byte-equal plans.
mod determinism;
/// Differences between graphs, and the commands that tell them.
mod diff;
/// Plans as ONNX files, read back and run.
mod emit;
/// Older opsets, bodies and packed weights in emitted files.
mod emit_versions;
/// How steps came about, and why operators stand apart.
mod explain;
/// What random models found.
mod finds;
/// Bundled and optional models, and how to compile and run them.
mod fixtures;
/// Random bytes and text never cause a panic.
mod fuzz;
mod fuzz_models;
/// What models take and give, against ONNX Runtime.
mod interfaces;
/// CUDA kernels on a machine without CUDA: what is refused, the table of registers, the scripts.
mod kernels;
/// Weights that are larger than what may be held in memory.
mod large;
/// Every model under every mapping, against ONNX Runtime's outputs.
mod matrix;
/// Decoders with quantised products.
mod quantised;
/// Models whose weight data is absent.
mod random_weights;
/// The evaluator in f64 against the kernels, ONNX Runtime and closed forms.
mod reference;
/// Cases of rules that are wrong, and the commands for rule folders.
mod rule_cases;
/// What is written about rules: the reference and the advice.
mod rule_docs;
/// Rule files with mistakes: all of them are reported, with their places.
mod rule_errors;
/// Folders of rule files with a manifest.
mod rule_packs;
/// What rules do on a model, counted.
mod rule_stats;
/// One case per rule: that it fires, what becomes of the graph, and that the values stay the same.
mod saturate;
/// Every spelling of a norm and a residual sum is recognised, with and without communication in the model.
mod spellings;
/// Shape arithmetic on symbolic extents, against ONNX Runtime.
mod symbols;
/// The text form of graphs.
mod text;
/// The layering that ARCHITECTURE.md states, and other rules on source files.
mod tidy;
/// The tutorial is executed.
mod tutorial;
/// Rules are judged by evaluating both sides.
mod verdicts;
mod verify;
/// Any programs of the e-graphs, and the dearest ones, compute what the cheapest computes.
mod worst;
