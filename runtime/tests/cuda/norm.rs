//! Norms and quantisation, alone and fused.

use sinter_runtime::cuda::check::{Harness, cases};

use crate::{check, emulator};

#[test]
fn norms_agree_with_the_reference() {
    check(&["rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm"]);
}

#[test]
fn quantised_norms_agree_with_the_reference() {
    check(&[
        "rms_norm_quant_fp8",
        "add_rms_norm_quant_fp8",
        "layer_norm_quant_fp8",
        "add_layer_norm_quant_fp8",
        "rms_norm_quant_fp8_token",
        "add_rms_norm_quant_fp8_token",
        "layer_norm_quant_fp8_token",
        "add_layer_norm_quant_fp8_token",
        "rms_norm_quant_nvfp4",
        "add_rms_norm_quant_nvfp4",
        "layer_norm_quant_nvfp4",
        "add_layer_norm_quant_nvfp4",
    ]);
}

#[test]
fn quantisation_agrees_with_the_reference() {
    check(&["quantize_fp8", "fp8_token", "quantize_nvfp4"]);
}

/// (kernel, element type and shape, the block of the last row)
const BEYOND: &[(&str, &str, u32)] = &[
    ("rms_norm", "bf16[2097160, 1024]", 2_097_159 / 8),
    ("add_rms_norm", "bf16[262145, 8192]", 262_144),
    ("layer_norm", "f32[32766, 65544]", 32_765),
    ("add_layer_norm", "bf16[262178, 8191]", 262_177),
    ("add_rms_norm_quant_fp8_token", "bf16[262145, 8192]", 262_144),
    ("add_rms_norm_quant_nvfp4", "bf16[262145, 8192]", 262_144),
    ("quantize_fp8", "bf16[262145, 8192] from element 0", 262_144),
];

/// Elements beyond 2^31 are where they belong: only the last row is computed, and only its memory is used.
#[test]
fn rows_beyond_2_to_the_31_elements() {
    let harness = Harness::new(emulator::device()).unwrap();
    for (kernel, label, block) in BEYOND {
        let all = cases();
        let case = all.iter().find(|c| c.kernel == *kernel && c.label.starts_with(label) && c.label.contains("2^31"));
        let case = case.unwrap_or_else(|| panic!("no case {kernel} {label}"));
        emulator::with_blocks(*block, 1, || case.run(&harness)).unwrap_or_else(|e| panic!("{kernel} {label}: {e}"));
    }
}
