//! Every dense decoder under every mapping: values, fusion counts, weight shares and costs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sinter::import::Imported;
use sinter::ir::{Op, TensorType};
use sinter::lower::step_counts;
use sinter::pipeline::{Compiled, compile};
use sinter_runtime::compare::{Tolerance, compare};
use sinter_runtime::plan::{Source, Stage, certify};

use crate::fixtures;

/// Largest difference from ONNX Runtime's outputs.
const TOLERANCE: Tolerance = Tolerance { name: "matrix", abs: 1e-4, rel: 0.0 };

/// Layers of every model of the testbed.
const LAYERS: usize = 2;

/// Collects what is wrong instead of stopping at the first defect.
struct Checker {
    place: String,
    problems: Vec<String>,
}

impl Checker {
    fn that(&mut self, ok: bool, what: impl FnOnce() -> String) {
        if !ok {
            self.problems.push(format!("{}: {}", self.place, what()));
        }
    }

    fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, found: T, expected: T) {
        self.that(found == expected, || format!("{what} is {found:?}, expected {expected:?}"));
    }
}

/// Compiles, runs and checks one model under one mapping; the largest difference.
fn check(dir: &Path, model: &Imported, c: &Compiled, problems: &mut Vec<String>) -> f64 {
    let m = c.plan.mapping;
    let place = format!("{} tp {} pp {}", dir.file_name().unwrap().display(), m.tp, m.pp);
    let mut check = Checker { place, problems: vec![] };
    let worst = values(&mut check, dir, model, c);
    counts(&mut check, dir, model, c);
    weights(&mut check, model, c);
    check.equal("the stop reason", c.stop(), "saturated".to_owned());
    let e = &c.extract;
    let costs = [e.original_ns, e.greedy_ns, e.chosen_ns, e.bound_ns];
    // The imported program holds every weight whole, so that the price on surplus bytes is part of it.
    check.that(costs.is_sorted_by(|a, b| a >= b), || format!("original >= greedy >= chosen >= bound fails: {costs:?}"));
    let certificate = certify(&m, &c.plan.stages);
    check.that(certificate.is_ok_and(|found| found == c.plan.certificate), || {
        "the certificate is not that of the stages".into()
    });
    problems.append(&mut check.problems);
    worst
}

fn values(check: &mut Checker, dir: &Path, model: &Imported, c: &Compiled) -> f64 {
    let inputs: Vec<String> = c.plan.inputs.iter().map(|i| i.name.clone()).collect();
    let outputs: Vec<String> = c.plan.outputs.iter().map(|o| o.name.clone()).collect();
    let expected = fixtures::tensors(dir, "output", &outputs);
    let mut worst = 0.0f64;
    for (name, t) in fixtures::run(&c.plan, &model.weights, &fixtures::tensors(dir, "input", &inputs)) {
        let d = compare(&t, &expected[&name], TOLERANCE);
        check.that(d.pass, || format!("{name} differs by {:.3e} {}", d.max_abs, d.reason.unwrap_or_default()));
        worst = worst.max(d.max_abs);
    }
    worst
}

/// Norms over the last axis of the residual stream, which is as wide as the embedding.
fn plain_norms(stages: &[Stage], width: i64) -> usize {
    let steps = stages.iter().flat_map(|s| s.steps.iter().map(move |t| (s, t)));
    steps
        .filter(|(s, t)| {
            let last = |i: usize| s.value(t.inputs[i]).ty.shape.last().and_then(sinter::ir::Dim::as_const);
            matches!(t.op, Op::RmsNorm { .. }) && last(1) == Some(width)
        })
        .count()
}

fn counts(check: &mut Checker, dir: &Path, model: &Imported, c: &Compiled) {
    let (ops, fused) = step_counts(&c.plan.stages);
    let tp = c.plan.mapping.tp;
    let (ar, plain) = if tp > 1 { (2 * LAYERS, 0) } else { (0, 2 * LAYERS) };
    check.equal("ar_residual_rms_norm", fused["ar_residual_rms_norm"], ar);
    check.equal("add_rms_norm", fused["add_rms_norm"], plain);
    check.equal("silu_mul", fused["silu_mul"], LAYERS);
    check.equal("attention", ops["attention"], LAYERS);
    let table = model.graph.nodes().find_map(|(_, n)| match n.op {
        Op::Gather { axis: 0 } => Some(model.graph.node(n.inputs[0]).ty()),
        _ => None,
    });
    let width = table.and_then(|t| t.shape[1].as_const()).unwrap();
    check.equal("plain norms of the residual stream", plain_norms(&c.plan.stages, width), 1);
    let head_norms =
        if dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with("qwen3")) { 2 * LAYERS } else { 0 };
    check.equal("rms_norm", ops["rms_norm"], 1 + head_norms);
    // Each all-reduce is part of a fused kernel but that of the embedding.
    check.equal("all_reduce", ops["all_reduce"], usize::from(tp > 1));
}

fn is_matrix(t: &TensorType) -> bool {
    t.shape.iter().filter(|d| d.as_const() != Some(1)).count() > 1
}

fn bytes(t: &TensorType) -> i64 {
    t.bytes().as_const().unwrap()
}

/// Each rank holds its share of the matrices; the stages together hold the model.
fn weights(check: &mut Checker, model: &Imported, c: &Compiled) {
    let tp = c.plan.mapping.tp as i64;
    let mut held: BTreeMap<&str, Vec<(usize, i64)>> = BTreeMap::new();
    for (s, stage) in c.plan.stages.iter().enumerate() {
        for v in &stage.values {
            let Source::Weight { weight, .. } = &v.source else { continue };
            if is_matrix(&v.ty) {
                held.entry(weight).or_default().push((s, bytes(&v.ty)));
            }
        }
    }
    for (name, parts) in &held {
        let whole = bytes(&model.weights.0[*name].ty);
        for (s, part) in parts {
            check.that(part * tp == whole, || format!("stage {s} holds {part} of the {whole} bytes of `{name}`"));
        }
        let stages: BTreeSet<usize> = parts.iter().map(|p| p.0).collect();
        check.that(stages.len() == parts.len(), || format!("`{name}` is held twice by one rank"));
    }
    let matrices = model.weights.0.iter().filter(|(_, w)| is_matrix(&w.ty));
    let missing: Vec<&String> = matrices.map(|(n, _)| n).filter(|n| !held.contains_key(n.as_str())).collect();
    check.that(missing.is_empty(), || format!("no rank holds {missing:?}"));
    // A table that is both embedding and head belongs to the first and to the last stage.
    let twice: Vec<&str> = held.iter().filter(|(_, p)| p.len() > 1).map(|(n, _)| *n).collect();
    let tied = |n: &str| model.graph.nodes().any(|(_, g)| matches!(g.op, Op::Gather { .. }) && reads(model, g, n));
    check.that(twice.iter().all(|n| tied(n)), || format!("more than one stage holds {twice:?}"));
}

fn reads(model: &Imported, node: &sinter::ir::Node, weight: &str) -> bool {
    node.inputs.iter().any(|&i| model.graph.node(i).name == weight)
}

#[test]
fn every_model_agrees_under_every_mapping() {
    let mut problems = vec![];
    let mut worst = (0.0, String::new());
    for dir in fixtures::decoders() {
        let model = fixtures::import(&dir);
        for (tp, pp) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            let d = check(&dir, &model, &fixtures::compiled(&model, tp, pp), &mut problems);
            if d > worst.0 {
                worst = (d, format!("{} tp {tp} pp {pp}", dir.display()));
            }
        }
    }
    println!("largest difference {:.3e} ({})", worst.0, worst.1);
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn ranks_share_key_heads_where_there_are_fewer_heads_than_ranks() {
    let dir = fixtures::model("llama-dynamo-op18-past");
    let model = fixtures::import(&dir);
    let mut problems = vec![];
    check_shared(&dir, &model, &mut problems);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Key and value weights are held in two parts, the others in four.
fn check_shared(dir: &Path, model: &Imported, problems: &mut Vec<String>) {
    let c = fixtures::compiled(model, 4, 1);
    let mut check = Checker { place: "tp 4".to_owned(), problems: vec![] };
    values(&mut check, dir, model, &c);
    counts(&mut check, dir, model, &c);
    let mut parts: BTreeMap<usize, usize> = BTreeMap::new();
    for v in &c.plan.stages[0].values {
        if let Source::Weight { part, .. } = &v.source
            && is_matrix(&v.ty)
        {
            *parts.entry(part.map_or(1, |p| p.parts)).or_default() += 1;
        }
    }
    check.that(!parts.contains_key(&1), || format!("whole matrices: {parts:?}"));
    check.that(parts.keys().all(|p| [2, 4].contains(p)), || format!("{parts:?}"));
    problems.append(&mut check.problems);
}

#[test]
fn stages_may_be_given_by_their_layers() {
    let dir = fixtures::model("llama-dynamo-op18-past");
    let model = fixtures::import(&dir);
    let mut config = fixtures::config(2, 2);
    config.layers_per_stage = Some(vec![1, 1]);
    let given = compile(&model, &config).unwrap();
    assert_eq!(given.plan, fixtures::compiled(&model, 2, 2).plan, "one layer each is the balance by cost");
    let mut problems = vec![];
    check(&dir, &model, &given, &mut problems);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn fused_weights_are_taken_apart_and_put_together_again() {
    let dir = fixtures::model("phi3-dynamo-op18-past");
    let model = fixtures::import(&dir);
    for (tp, pp) in [(2, 1), (2, 2), (4, 1)] {
        let c = fixtures::compiled(&model, tp, pp);
        let mut check = Checker { place: format!("phi3 tp {tp} pp {pp}"), problems: vec![] };
        values(&mut check, &dir, &model, &c);
        let (ops, fused) = step_counts(&c.plan.stages);
        check.equal("ar_residual_rms_norm", fused["ar_residual_rms_norm"], 2 * LAYERS);
        // Nothing is gathered inside a layer: only the logits are.
        check.equal("all_gather", ops["all_gather"], 1);
        let outputs = fixtures::run_reference(&c.plan, &model.weights, &dir);
        let names: Vec<String> = outputs.iter().map(|(n, _)| n.clone()).collect();
        let expected = fixtures::tensors(&dir, "output", &names);
        for (name, t) in outputs {
            check.that(compare(&t, &expected[&name], TOLERANCE).pass, || format!("reference {name} differs"));
        }
        assert!(check.problems.is_empty(), "{}", check.problems.join("\n"));
    }
}
