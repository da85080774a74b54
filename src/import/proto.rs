//! The ONNX messages, generated from the files in `proto/`.
#![allow(clippy::all, unreachable_pub, rustdoc::all, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
