//! The CUDA path without a GPU: launchers, NVRTC's place, module cache and kernels on an emulated driver.

mod bench;
mod emulator;
mod far;
mod norm;

use sinter_runtime::cuda::check::{Harness, Size, cases};

/// Every small case of one or more kernels.
fn check(kernels: &[&str]) {
    let harness = Harness::new(emulator::device()).unwrap();
    let cases: Vec<_> = cases().into_iter().filter(|c| c.size == Size::Small && kernels.contains(&c.kernel)).collect();
    assert!(!cases.is_empty(), "no case of {kernels:?}");
    let failed: Vec<String> =
        cases.iter().filter_map(|c| c.run(&harness).err().map(|e| format!("{} {}: {e}", c.kernel, c.label))).collect();
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn conversions_agree_with_the_reference() {
    check(&["convert"]);
}

#[test]
fn ranks_sum_in_any_order() {
    emulator::disorder(7);
    check(&["all_reduce"]);
    emulator::disorder(0);
}

#[test]
fn ranks_sum_and_normalise() {
    check(&[
        "ar_residual_rms_norm",
        "ar_residual_layer_norm",
        "ar_residual_rms_norm_quant_fp8",
        "ar_residual_layer_norm_quant_fp8",
        "ar_residual_rms_norm_quant_fp8_token",
        "ar_residual_layer_norm_quant_fp8_token",
        "ar_residual_rms_norm_quant_nvfp4",
        "ar_residual_layer_norm_quant_nvfp4",
    ]);
}

#[test]
fn chains_agree_with_their_meaning() {
    check(&["elementwise", "silu_mul", "gelu_mul", "mul", "cast"]);
}

#[test]
fn copies_agree_with_their_meaning() {
    check(&["transpose", "reshape", "expand", "slice", "concat"]);
}

#[test]
fn gathers_agree_with_their_meaning() {
    check(&["gather", "vocab_gather"]);
}

#[test]
fn rotary_embeddings_agree_with_the_definition() {
    check(&["rotary"]);
}

#[test]
fn softmax_agrees_with_the_definition() {
    check(&["softmax"]);
}
