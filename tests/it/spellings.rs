//! Any spelling of RMSNorm, LayerNorm and residual sum: each is recognised, fused and computes the same.
//!
//! A row of the matrix is a network of two layers with five norms and four residual sums. Its norms and sums are
//! written as the row says. Each row is compiled as it is, and with an all-reduce in front of each sum.

mod net;
mod rows;

use sinter::import::{self, Imported};
use sinter::lower::step_counts;
use sinter::pipeline::{Compiled, compile};

use self::net::{Comm, NORMS, Net, SUMS};
use self::rows::{Kind, Row};
use crate::fixtures;

fn imported(net: &Net) -> Result<Imported, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, net.bytes()).map_err(|e| e.to_string())?;
    import::open(&path).and_then(|m| m.import()).map_err(|e| e.to_string())
}

fn compiled(model: &Imported, tp: usize) -> Result<Compiled, String> {
    compile(model, &fixtures::config(tp, 1)).map_err(|e| e.to_string())
}

/// Norms that stand alone, those that are fused with a sum, and those that are fused with an all-reduce.
fn norms(c: &Compiled) -> [usize; 3] {
    let (ops, fused) = step_counts(&c.plan.stages);
    [
        ops["rms_norm"] + ops["layer_norm"],
        fused["add_rms_norm"] + fused["add_layer_norm"],
        fused["ar_residual_rms_norm"] + fused["ar_residual_layer_norm"],
    ]
}

/// What is wrong with the values of a compiled row.
fn values(row: &Row, comm: Comm, model: &Imported, c: &Compiled) -> Result<(), String> {
    let ranks = if comm == Comm::None { 1 } else { c.plan.mapping.tp };
    let (inputs, expected) = net::example(row, ranks);
    let outputs = fixtures::run(&c.plan, &model.weights, &inputs);
    let [(_, y)] = &outputs[..] else { return Err("the model has one output".to_owned()) };
    net::close(row, &y.to_f64(), &expected)
}

/// Compiles and runs a row; what is wrong with it.
fn check(row: &Row, comm: Comm, tp: usize) -> Result<(), String> {
    let model = imported(&Net::of(row, comm, tp))?;
    let c = compiled(&model, tp)?;
    let found = norms(&c);
    let want = match (row.kind == Kind::Other, tp) {
        (true, _) => [0, 0, 0],
        (_, 1) => [NORMS - SUMS, SUMS, 0],
        _ => [NORMS - SUMS, 0, SUMS],
    };
    if found != want {
        return Err(format!("norms [alone, with sum, with all-reduce] are {found:?}, not {want:?}"));
    }
    if c.stop() != "saturated" {
        return Err(c.stop());
    }
    values(row, comm, &model, &c)
}

fn check_all(rows: &[Row], variants: &[(Comm, usize)]) {
    let mut problems = vec![];
    for row in rows {
        for &(comm, tp) in variants {
            if let Err(e) = check(row, comm, tp) {
                problems.push(format!("{} ({comm:?}, tp {tp}): {e}", row.name));
            }
        }
    }
    println!("{} spellings, {} problems", rows.len(), problems.len());
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// On one rank and cut over two.
const PLAIN: [(Comm, usize); 2] = [(Comm::None, 1), (Comm::None, 2)];
/// With communication in the model; on one rank a sum over the ranks changes nothing.
const COMMUNICATING: [(Comm, usize); 3] = [(Comm::AllReduce, 1), (Comm::AllReduce, 2), (Comm::DistCollective, 2)];

#[test]
fn spellings_of_the_published_matrix_are_recognised() {
    let rows = rows::published();
    assert_eq!(rows.len(), 20);
    check_all(&rows, &[&PLAIN[..], &COMMUNICATING[..]].concat());
}

#[test]
fn further_spellings_are_recognised() {
    let rows = rows::further();
    check_all(&rows, &[&PLAIN[..], &COMMUNICATING[..]].concat());
}

#[test]
fn what_is_no_norm_stays_apart() {
    check_all(&rows::negative(), &[(Comm::None, 1), (Comm::AllReduce, 2)]);
}

#[test]
fn small_epsilons_survive() {
    let rows = rows::epsilons();
    check_all(&rows, &PLAIN);
    for row in &rows {
        let model = imported(&Net::of(row, Comm::None, 1)).unwrap();
        let c = compiled(&model, 1).unwrap();
        let eps: Vec<f64> = c.plan.stages[0]
            .steps
            .iter()
            .filter_map(|s| match s.op {
                sinter::ir::Op::RmsNorm { eps }
                | sinter::ir::Op::AddRmsNorm { eps }
                | sinter::ir::Op::LayerNorm { eps }
                | sinter::ir::Op::AddLayerNorm { eps } => Some(eps.0),
                _ => None,
            })
            .collect();
        assert_eq!(eps.len(), NORMS, "{}", row.name);
        let near = |e: &f64| (e - row.eps).abs() <= 1e-6 * row.eps;
        assert!(eps.iter().all(near), "{}: {eps:?} for {}", row.name, row.eps);
        // A row of zeros has no other norm than zero: without its epsilon it would be no number.
        let (mut inputs, _) = net::example(row, 1);
        inputs.values_mut().for_each(|t| t.bytes_mut().fill(0));
        let outputs = fixtures::run(&c.plan, &model.weights, &inputs);
        assert!(outputs.iter().all(|(_, t)| t.to_f64().iter().all(|v| v.is_finite())), "{}", row.name);
    }
}

#[test]
fn a_model_that_communicates_is_not_cut_again() {
    let row = &rows::published()[0];
    let model = imported(&Net::of(row, Comm::DistCollective, 2)).unwrap();
    let c = compiled(&model, 2).unwrap();
    let cut = c
        .plan
        .stages
        .iter()
        .flat_map(|s| &s.values)
        .any(|v| matches!(&v.source, sinter_runtime::plan::Source::Weight { part: Some(_), .. }));
    assert!(!cut, "each rank holds the weights of the file");
    // The unoptimised program on one rank computes the same.
    let (inputs, expected) = net::example(row, 2);
    let y = fixtures::run_reference_on(&c.plan, &model.weights, &inputs);
    net::close(row, &y[0].1.to_f64(), &expected).unwrap();
    // The number of ranks that the model states is the one to compile for.
    let e = compiled(&model, 4).unwrap_err();
    assert!(e.contains("communicates between 2 ranks") && e.contains("--tp 2"), "{e}");
}
