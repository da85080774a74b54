//! Plans of several ranks compute the right values, and fail as a whole with one clear message.

mod support;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sinter_runtime::attr::Real;
use sinter_runtime::dim::Dim;
use sinter_runtime::dtype::{DType, Literal, TensorType};
use sinter_runtime::executor::{Progress, RunConfig, RunError, WeightSource, run};
use sinter_runtime::op::Op;
use sinter_runtime::plan::*;
use sinter_runtime::tensor::Tensor;
use support::*;

type Weights = BTreeMap<(usize, String), Tensor>;

/// The weights of the small network, cut by hand.
fn mlp_parts() -> Weights {
    let (w1, w2) = mlp_weights();
    let (v1, v2) = (w1.to_f64(), w2.to_f64());
    let mut all = Weights::new();
    for rank in 0..2 {
        let cut: Vec<f32> = (0..12).map(|i| v1[i / 3 * 6 + rank * 3 + i % 3] as f32).collect();
        all.insert((rank, "w1".to_owned()), tensor(&[4, 3], &cut));
        let cut: Vec<f32> = v2[rank * 6..][..6].iter().map(|&v| v as f32).collect();
        all.insert((rank, "w2".to_owned()), tensor(&[3, 2], &cut));
    }
    all
}

fn quick() -> RunConfig<'static> {
    RunConfig { timeout: Duration::from_millis(200), ..RunConfig::default() }
}

fn message(plan: &Plan, weights: &dyn WeightSource, inputs: &[(&str, &Tensor)]) -> String {
    run(plan, weights, &named(inputs), &quick()).unwrap_err().to_string()
}

#[test]
fn tensor_and_pipeline_ranks_compute_together() {
    let x = count(&[3, 4], 0.5);
    let seen = AtomicUsize::new(0);
    let progress = |p: Progress| {
        assert!(p.step < p.n_steps);
        seen.fetch_add(1, Ordering::Relaxed);
    };
    let config = RunConfig { repeat: 3, progress: Some(&progress), ..RunConfig::default() };
    let result = run(&mlp(), &mlp_parts(), &named(&[("x", &x)]), &config).unwrap();
    let (w1, w2) = mlp_weights();
    let (xv, w1, w2) = (x.to_f64(), w1.to_f64(), w2.to_f64());
    let h: Vec<f64> =
        (0..18).map(|i| (0..4).map(|k| xv[i / 6 * 4 + k] * w1[k * 6 + i % 6]).sum::<f64>().max(0.0)).collect();
    let z: Vec<f64> = (0..6).map(|i| -(0..6).map(|k| h[i / 2 * 6 + k] * w2[k * 2 + i % 2]).sum::<f64>()).collect();
    assert_eq!(result.outputs[0], ("z".to_owned(), tensor(&[3, 2], &z.iter().map(|&v| v as f32).collect::<Vec<_>>())));
    assert_eq!(result.outputs[1].1, result.outputs[0].1);
    assert_eq!(result.total_ms.len(), 3);
    assert_eq!(result.step_ms.iter().map(Vec::len).collect::<Vec<_>>(), [5, 4]);
    assert_eq!(seen.into_inner(), 3 * (2 * 5 + 2 * 4));
    // The same plan with other extents, none included.
    for n in [0, 1, 7] {
        let x = Tensor::zeros(DType::F32, &[n, 4]).unwrap();
        let result = run(&mlp(), &mlp_parts(), &named(&[("x", &x)]), &quick()).unwrap();
        assert_eq!(result.outputs[0].1.shape, [n, 2]);
    }
}

#[test]
fn replicated_parts_and_inputs_are_cut_and_joined() {
    // Two distinct parts on four ranks.
    let mut b = Builder::default();
    let x = b.input(0, "x", &["2", "n"], part(0, 2));
    let x = {
        b.0.values[x.0].ty = ty(&["1", "n"]);
        x
    };
    let doubled = b.add(Op::Add {}, &[x, x], "d", &["1", "n"]);
    let all = b.add(Op::AllGather { dim: 0, axis: TP, parts: 2 }, &[doubled], "all", &["2", "n"]);
    let flat = b.value("flat", ty(&["2*n"]), Source::Alias(all));
    let outputs = vec![output("flat", &["2*n"], 0, flat, None), output("d", &["2", "n"], 0, doubled, part(0, 2))];
    let plan = plan(4, vec![input("x", &["2", "n"])], outputs, vec![b.0]);
    verify(&plan).unwrap();
    let result = run(&plan, &Weights::new(), &named(&[("x", &count(&[2, 3], 1.0))]), &quick()).unwrap();
    assert_eq!(result.outputs[0].1, count(&[6], 2.0));
    assert_eq!(result.outputs[1].1, count(&[2, 3], 2.0));
}

#[test]
fn sums_run_from_rank_zero_upward_and_fused_norms_use_them() {
    // 1 and -1 cancel only if the sum is taken in rank order: (big + -big) + 1.
    let mut b = Builder::default();
    let w = b.weight("w", &["1", "2"], None);
    let g = b.weight("g", &["2"], None);
    let s = b.add(Op::AllReduce { axis: TP }, &[w], "s", &["1", "2"]);
    let (y, t) = (b.buffer("y", &["1", "2"]), b.buffer("t", &["1", "2"]));
    b.step(Op::ArResidualRmsNorm { axis: TP, eps: Real(0.0) }, &[w, s, g], &[Some(y), Some(t)]);
    let outputs = vec![
        output("s", &["1", "2"], 0, s, None),
        output("y", &["1", "2"], 0, y, None),
        output("t", &["1", "2"], 0, t, None),
    ];
    let plan = plan(3, vec![], outputs, vec![b.0]);
    let mut weights = Weights::new();
    for (rank, v) in [1e8f32, -1e8, 1.0].into_iter().enumerate() {
        weights.insert((rank, "w".to_owned()), tensor(&[1, 2], &[v, 2.0]));
        weights.insert((rank, "g".to_owned()), tensor(&[2], &[1.0, 10.0]));
    }
    let result = run(&plan, &weights, &BTreeMap::new(), &quick()).unwrap();
    let values: Vec<Vec<f64>> = result.outputs.iter().map(|(_, t)| t.to_f64()).collect();
    assert_eq!((&values[0][..], &values[2][..]), (&[1.0, 6.0][..], &[2.0, 12.0][..]));
    let rms = (74.0f64).sqrt();
    assert!((values[1][0] - 2.0 / rms).abs() < 1e-6 && (values[1][1] - 120.0 / rms).abs() < 1e-5);
}

#[test]
fn vocabulary_tables_are_looked_up_in_parts() {
    let plan_of = |ids: &[i64]| {
        let mut b = Builder::default();
        let table = b.weight("e", &["2", "1"], part(0, 2));
        let literal = Literal::ints(DType::I64, vec![ids.len()], ids);
        let bytes = vec![Dim::from(8 * ids.len() as i64)];
        b.0.buffers.push(Buffer { bytes });
        let ids_ty = TensorType::new(DType::I64, vec![Dim::from(ids.len() as i64)]);
        let i = b.value("ids", ids_ty, Source::Buffer(0));
        b.step(Op::Const { value: literal }, &[], &[Some(i)]);
        let n = ids.len().to_string();
        let mine = b.add(Op::VocabGather { axis: TP }, &[table, i], "mine", &[&n, "1"]);
        let sum = b.add(Op::AllReduce { axis: TP }, &[mine], "sum", &[&n, "1"]);
        plan(2, vec![], vec![output("sum", &[&n, "1"], 0, sum, None)], vec![b.0])
    };
    let mut weights = Weights::new();
    weights.insert((0, "e".to_owned()), tensor(&[2, 1], &[10.0, 11.0]));
    weights.insert((1, "e".to_owned()), tensor(&[2, 1], &[12.0, 13.0]));
    let result = run(&plan_of(&[3, 0, -2, 1]), &weights, &BTreeMap::new(), &quick()).unwrap();
    assert_eq!(result.outputs[0].1.to_f64(), [13.0, 10.0, 12.0, 11.0]);
    let e = message(&plan_of(&[4]), &weights, &[]);
    assert!(e.contains("step 1 (vocab_gather") && e.contains("index 4 is outside the extent 4"), "{e}");
}

#[test]
fn a_call_that_the_certificate_does_not_have_is_refused() {
    let x = count(&[1, 4], 1.0);
    let mut plan = mlp();
    plan.certificate.groups.iter_mut().find(|g| g.group == "tp0").unwrap().calls[0].op = "all_gather".to_owned();
    let e = message(&plan, &mlp_parts(), &[("x", &x)]);
    assert!(e.contains("step 3 (all_reduce (f32[1, 2]) -> (f32[1, 2]))"), "{e}");
    assert!(
        e.contains("position 0 of group tp0: expected all_gather of f32[n, 2], got all_reduce of f32[1, 2]"),
        "{e}"
    );
    let mut plan = mlp();
    plan.certificate.groups.iter_mut().find(|g| g.group == "tp1").unwrap().calls.clear();
    assert!(message(&plan, &mlp_parts(), &[("x", &x)]).contains("expected no call, got all_gather"));
    let mut plan = mlp();
    let group = plan.certificate.groups.iter_mut().find(|g| g.group == "tp1").unwrap();
    group.calls.push(group.calls[0].clone());
    assert!(message(&plan, &mlp_parts(), &[("x", &x)]).contains("got the end of the program"));
}

/// Fails or panics when one rank asks for a weight.
struct Broken {
    parts: Weights,
    rank: usize,
    panics: bool,
}

impl WeightSource for Broken {
    fn weight(&self, rank: usize, key: &str) -> Result<Cow<'_, [u8]>, RunError> {
        if rank == self.rank && key == "w2" {
            assert!(!self.panics, "the disk is gone");
            return Err(RunError::Weight { rank, key: key.to_owned(), why: "the disk is gone".to_owned() });
        }
        self.parts.weight(rank, key)
    }
}

#[test]
fn a_rank_that_dies_takes_the_others_along_at_once() {
    for panics in [false, true] {
        let weights = Broken { parts: mlp_parts(), rank: 1, panics };
        let config = RunConfig { timeout: Duration::from_secs(600), ..RunConfig::default() };
        let start = Instant::now();
        let e = run(&mlp(), &weights, &named(&[("x", &count(&[1, 4], 1.0))]), &config).unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(e.starts_with("rank 1, step 2 (matmul (") && e.contains("the disk is gone"), "{e}");
    }
}

#[test]
fn waiting_for_what_never_comes_ends() {
    let mut plan = mlp();
    // The certificate still lists the transfer, the first stage no longer makes it.
    plan.stages[0].steps.pop();
    let e = message(&plan, &mlp_parts(), &[("x", &count(&[1, 4], 1.0))]);
    assert!(e.contains("expected send of f32[n, 2], got the end") || e.contains("for rank [0]"), "{e}");
    let group = |p: &mut Plan| p.certificate.groups.retain(|g| g.group.starts_with("tp"));
    group(&mut plan);
    assert!(message(&plan, &mlp_parts(), &[("x", &count(&[1, 4], 1.0))]).contains("expected no call"));

    // Both stages receive first.
    let stage = |peer: i64| {
        let mut b = Builder::default();
        let y = b.add(Op::Recv { stage: peer, tag: 0 }, &[], "y", &["2"]);
        b.step(Op::Send { stage: peer, tag: 0 }, &[y], &[]);
        (b.0, y)
    };
    let ((first, y), (second, _)) = (stage(1), stage(0));
    let mut plan = support::plan(1, vec![], vec![output("y", &["2"], 0, y, None)], vec![first, second]);
    assert!(verify(&plan).unwrap_err().to_string().contains("deadlock: rank 0 waits at step 0 (recv)"));
    let call = Call { op: "send".to_owned(), dtype: DType::F32, shape: vec![Dim::from(2)] };
    for (group, ranks) in [("pp0-1.0", vec![0, 1]), ("pp1-0.0", vec![1, 0])] {
        plan.certificate.groups.push(GroupCertificate { group: group.to_owned(), ranks, calls: vec![call.clone()] });
    }
    let start = Instant::now();
    let e = message(&plan, &Weights::new(), &[]);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(e.contains("step 0 (recv () -> (f32[2]))") && e.contains("waited 0.2"), "{e}");
}

#[test]
fn values_that_do_not_fit_their_storage_are_refused() {
    let x = count(&[1, 4], 1.0);
    let mut plan = mlp();
    plan.stages[0].buffers[1].bytes = vec![Dim::from(4)];
    let e = message(&plan, &mlp_parts(), &[("x", &x)]);
    assert!(e.contains("step 1 (relu") && e.contains("`r.part` needs 12 bytes, its buffer has 4"), "{e}");
    let mut plan = mlp();
    plan.stages[0].buffers[1].bytes = vec![Dim::from(i64::MAX / 2)];
    assert!(message(&plan, &mlp_parts(), &[("x", &x)]).contains("no memory"));
    let mut weights = mlp_parts();
    weights.insert((0, "w1".to_owned()), count(&[5], 1.0));
    let e = message(&mlp(), &weights, &[("x", &x)]);
    assert!(e.contains("rank 0, step 0 (matmul") && e.contains("`w1` needs 48 bytes, its storage has 20"), "{e}");
    assert!(message(&mlp(), &mlp_parts(), &[]).contains("`x` is missing, expected f32[n, 4]"));
    let mut plan = mlp();
    plan.stages[0].steps[0].inputs[0] = ValueId(77);
    assert!(message(&plan, &mlp_parts(), &[("x", &x)]).contains("value 77 does not exist"));
}
