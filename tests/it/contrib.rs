//! ONNX Runtime's own operators: small models in `fixtures/contrib`, with the outputs of its CPU kernels.

use std::path::PathBuf;

use sinter::ir::Op;
use sinter_runtime::compare::{Tolerance, compare};
use sinter_runtime::io::read_npy_file;
use sinter_runtime::plan::{Source, Stage, Value};

use crate::fixtures;

/// Largest difference from ONNX Runtime's outputs, by what the values are held in.
const SINGLE: Tolerance = Tolerance { name: "contrib", abs: 2e-5, rel: 1e-5 };
const HALF: Tolerance = Tolerance { name: "contrib f16", abs: 1e-2, rel: 1e-2 };

/// Models of which each of two ranks computes half the heads, or half the columns.
const CUT: &[&str] = &[
    "attention-ends-and-starts",
    "attention-mask-and-wide-values",
    "gqa-bias-sink-partial-rotary",
    "gqa-half",
    "gqa-packed-rotary",
    "gqa-prompt-positions",
    "gqa-ragged-decode",
    "gqa-ragged-prompt",
    "gqa-separate-window-cap",
    "gqa-shared-buffer",
    "gqa-smooth-interleaved-positions",
    "mha-causal-past",
    "mha-cross-lengths",
    "mha-packed",
    "mha-packed-keys",
    "mha-score-bias",
    "mha-wide-values",
    "moe-relu",
    "moe-silu-without-bias",
    "moe-swiglu",
    "nbits-two-layers",
    "qmoe-4-blocks-swiglu",
    "qmoe-4-blocks-zeros",
];

fn cases() -> Vec<PathBuf> {
    let dir = fixtures::root().join("fixtures/contrib");
    let mut out: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    out.sort();
    assert!(out.len() >= CUT.len());
    out
}

/// Bytes of the matrices that a rank holds.
fn matrices(stage: &Stage) -> i64 {
    let weights = stage.values.iter().filter(|v| matches!(v.source, Source::Weight { .. }));
    // Whole weights are kept for the reference program as well.
    let read = |v: &&Value| {
        let at = stage.values.iter().position(|o| o.name == v.name);
        stage.steps.iter().any(|s| s.inputs.iter().any(|i| Some(i.0) == at))
    };
    weights.filter(read).filter(|v| v.ty.is_matrix()).map(|v| v.ty.bytes().as_const().unwrap_or(0)).sum()
}

#[test]
fn outputs_are_those_of_onnx_runtime() {
    let mut problems = vec![];
    for dir in cases() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let model = fixtures::import(&dir);
        let mut held = vec![];
        for tp in [1, 2] {
            let compiled = fixtures::compiled(&model, tp, 1);
            let names: Vec<String> = compiled.plan.inputs.iter().map(|i| i.name.clone()).collect();
            let outputs = fixtures::run(&compiled.plan, &model.weights, &fixtures::tensors(&dir, "input", &names));
            for (i, (output, got)) in outputs.iter().enumerate() {
                let want = read_npy_file(&dir.join(format!("output_{i}.npy"))).unwrap();
                let tolerance = if want.dtype == sinter::ir::DType::F32 { SINGLE } else { HALF };
                let d = compare(got, &want, tolerance);
                if !d.pass {
                    problems.push(format!("{name} tp {tp}: {output} differs by {}", d.max_abs));
                }
            }
            let heads = |op: &Op| matches!(op, Op::Attention { .. });
            let found = compiled.plan.stages[0].steps.iter().filter(|s| heads(&s.op)).count();
            let expected = usize::from(["gqa", "mha", "attention"].iter().any(|p| name.starts_with(p)));
            if found != expected {
                problems.push(format!("{name} tp {tp}: {found} attentions, expected {expected}"));
            }
            held.push(matrices(&compiled.plan.stages[0]));
        }
        if CUT.contains(&name.as_str()) && held[1] * 2 != held[0] {
            problems.push(format!("{name}: two ranks hold {} bytes each, one holds {}", held[1], held[0]));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
