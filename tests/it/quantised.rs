//! Decoders with quantised products: on one rank and on several, with the fusions and the bytes that are expected.

use std::collections::BTreeMap;

use sinter::import::Imported;
use sinter::ir::DType;
use sinter::lower::step_counts;
use sinter::pipeline::Compiled;
use sinter_runtime::compare::{Tolerance, compare};
use sinter_runtime::plan::Source;

use crate::{cli, fixtures};

/// Of logits with a deviation of 1. Where a sum in another order is quantised to the neighbour, the difference is that of
/// one product in 64; without such a site it is below 1e-5.
const TOLERANCE: Tolerance = Tolerance { name: "quantised", abs: 2e-2, rel: 0.0 };

/// The models with what follows `rms_norm` in the name of their fused norms.
const FORMS: [(&str, &str); 3] = [
    ("decoder-fp8-static", "_quant_fp8"),
    ("decoder-fp8-token", "_quant_fp8_token"),
    ("decoder-nvfp4", "_quant_nvfp4"),
];

/// Layers of the models.
const LAYERS: usize = 2;

fn values(name: &str, model: &Imported, c: &Compiled) {
    let dir = fixtures::model(name);
    let inputs: Vec<String> = c.plan.inputs.iter().map(|i| i.name.clone()).collect();
    let outputs: Vec<String> = c.plan.outputs.iter().map(|o| o.name.clone()).collect();
    let expected = fixtures::tensors(&dir, "output", &outputs);
    for (output, t) in fixtures::run(&c.plan, &model.weights, &fixtures::tensors(&dir, "input", &inputs)) {
        let d = compare(&t, &expected[&output], TOLERANCE);
        println!("{name} {:?} {output}: max difference {:.1e}", c.plan.mapping, d.max_abs);
        assert!(d.pass, "{name} {:?}: {output} differs by {:.3e}", c.plan.mapping, d.max_abs);
    }
}

/// Each rank keeps its share of every weight of few bits, in few bits.
fn shares(name: &str, model: &Imported, c: &Compiled) {
    let mut found: BTreeMap<&str, i64> = BTreeMap::new();
    for v in c.plan.stages.iter().flat_map(|s| &s.values) {
        if let (true, Source::Weight { weight, .. }) = (v.ty.dtype.is_quantised(), &v.source) {
            *found.entry(weight).or_default() += v.ty.bytes().as_const().unwrap();
        }
    }
    let quantised = model.weights.0.iter().filter(|(_, w)| w.ty.dtype.is_quantised());
    let mut matrices = 0;
    for (weight, w) in quantised {
        matrices += usize::from(w.ty.dtype != DType::F8E4M3FN || !name.contains("nvfp4"));
        let (whole, part) = (w.ty.bytes().as_const().unwrap(), found[weight.as_str()]);
        assert_eq!(part * c.plan.mapping.tp as i64, whole, "{name} {:?}: `{weight}`", c.plan.mapping);
    }
    assert_eq!(matrices, 7 * LAYERS + 1, "{name}");
}

#[test]
fn quantised_decoders_are_cut_and_fused() {
    for (name, suffix) in FORMS {
        let model = fixtures::import(&fixtures::model(name));
        for (tp, pp) in [(1, 1), (2, 1), (2, 2)] {
            let c = fixtures::compiled(&model, tp, pp);
            values(name, &model, &c);
            shares(name, &model, &c);
            let (ops, fused) = step_counts(&c.plan.stages);
            let place = format!("{name} tp {tp} pp {pp}: {ops:?} {fused:?}");
            let sites = if tp > 1 { "ar_residual_rms_norm" } else { "add_rms_norm" };
            assert_eq!(fused[&format!("{sites}{suffix}")[..]], 2 * LAYERS, "{place}");
            assert_eq!(fused[&format!("rms_norm{suffix}")[..]], 1, "{place}");
            let norms = fused.iter().filter(|(op, _)| op.contains("norm")).map(|(_, n)| n).sum::<usize>();
            assert_eq!(norms, 2 * LAYERS + 1, "{place}");
            // That of the embedding stands alone.
            assert_eq!(ops["all_reduce"], usize::from(tp > 1), "{place}");
            assert_eq!(c.stop(), "saturated");
        }
    }
}

#[test]
fn eight_bits_are_written_as_onnx_and_four_are_refused() {
    for (name, _) in FORMS {
        let temp = tempfile::tempdir().unwrap();
        let dir = fixtures::model(name);
        let (model, dir) = (dir.join("model.onnx"), dir.to_str().unwrap().to_owned());
        let args = ["optimize", model.to_str().unwrap(), "--emit", "onnx", "-o", "out.onnx"];
        if name.ends_with("nvfp4") {
            let ended = cli::check(temp.path(), 2, &args);
            assert!(ended.stderr.contains("cannot be written as ONNX"), "{}", ended.stderr);
            continue;
        }
        cli::check(temp.path(), 0, &args);
        cli::check(temp.path(), 0, &["run", "out.onnx", "--inputs", &dir, "--expect", &dir]);
    }
}
