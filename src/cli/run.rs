//! `sinter run`: execute a plan on all ranks, and compare.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use sinter_runtime::compare::Tolerance;
use sinter_runtime::executor::{self, RunConfig, RunError, WeightSource};
use sinter_runtime::plan::{self, Plan, ReferenceWeights, Source};
use sinter_runtime::tensor::Tensor;

use super::judge::{Check, Diagnosis, Judging, Verdict, Verify};
use super::options::{CheckedRules, RandomOptions};
use super::{Failure, OutFile, Outcome, data, deliver};
use crate::import::{self, Weights};
use crate::ir::Mapping;
use crate::pipeline::{CompileConfig, compile};

/// Options of `sinter run`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// A plan folder, or an ONNX file, which runs as a plan for one rank.
    plan: PathBuf,
    /// Inputs: an .npz file, or a folder with <name>.npy, input_<i>.npy or input_<i>.pb.
    #[arg(long, value_name = "PATH")]
    inputs: PathBuf,
    /// Compare with expected outputs, given likewise (output_<i>).
    #[arg(long, value_name = "PATH")]
    expect: Option<PathBuf>,
    /// Compare with the unoptimised program; on a difference, find the first tensor that is wrong.
    #[arg(long)]
    verify: bool,
    /// Write the outputs into this folder as <name>.npy.
    #[arg(long, value_name = "DIR")]
    outputs: Option<PathBuf>,
    /// Write a report as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
    /// Largest absolute difference allowed, instead of the tolerance for each element type.
    #[arg(long, value_name = "X")]
    atol: Option<f64>,
    /// Largest relative difference allowed in addition, instead of the tolerance for each element type.
    #[arg(long, value_name = "X")]
    rtol: Option<f64>,
    /// Give up when no rank finishes a step for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Run so many times; the median and the fastest time are reported. Loading is not part of them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    repeat: u16,
    #[command(flatten)]
    random: RandomOptions,
    #[command(flatten)]
    rules: CheckedRules,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    ranks: usize,
    backend: &'static str,
    outputs: Vec<Output>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expect: Option<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verify: Option<Verify>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diagnosis: Option<Diagnosis>,
    time_ms: BTreeMap<&'static str, f64>,
}

#[derive(Debug, Serialize)]
struct Output {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    /// What it is, where it is no tensor of numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<String>,
}

/// A model's weights in its own file, for a plan with one rank.
struct ModelWeights<'a> {
    plan: &'a Plan,
    weights: &'a Weights,
    /// Data that is made up, by the weight's name.
    made: BTreeMap<&'a str, Tensor>,
}

impl<'a> ModelWeights<'a> {
    fn new(plan: &'a Plan, weights: &'a Weights) -> Result<ModelWeights<'a>, Failure> {
        let made = weights.random().map(|w| {
            let mut t = Tensor::zeros(w.dtype, &w.shape).map_err(|e| format!("weight `{}`: {e}", w.name))?;
            w.fill(0, t.bytes_mut());
            Ok((w.name.as_str(), t))
        });
        Ok(ModelWeights { plan, weights, made: made.collect::<Result<_, Failure>>()? })
    }
}

impl WeightSource for ModelWeights<'_> {
    fn weight(&self, rank: usize, key: &str) -> Result<Cow<'_, [u8]>, RunError> {
        let reference = self.plan.reference.iter().flat_map(|s| &s.values);
        // With one rank no weight is cut.
        let name = self.plan.stages[0].values.iter().chain(reference).find_map(|v| match &v.source {
            Source::Weight { key: k, weight, range: None, part: None } if k == key => Some(weight),
            _ => None,
        });
        if let Some(made) = name.and_then(|n| self.made.get(n.as_str())) {
            return Ok(Cow::Borrowed(made.bytes()));
        }
        let found = name.and_then(|n| self.weights.0.get(n));
        let error = || RunError::Weight { rank, key: key.to_owned(), why: "the model has no such weight".into() };
        Ok(Cow::Borrowed(&found.ok_or_else(error)?.bytes))
    }
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    if o.plan.is_dir() {
        if o.random.is_given() {
            return Err("--random-weights is for an ONNX file: a plan records how its weights are made up".into());
        }
        let (plan, weights) = plan::load(&o.plan)?;
        weights.prepare()?;
        return execute(o, &plan, &weights, &ReferenceWeights::new(&plan, &weights));
    }
    let model = o.random.apply(import::open(&o.plan)?).import()?;
    let compiled = compile(&model, &CompileConfig::standard(Mapping { tp: 1, pp: 1 }, o.rules.load()?)?)?;
    let weights = ModelWeights::new(&compiled.plan, &model.weights)?;
    execute(o, &compiled.plan, &weights, &weights)
}

fn execute(o: &Options, plan: &Plan, weights: &dyn WeightSource, whole: &dyn WeightSource) -> Result<Outcome, Failure> {
    let report_file = o.report.as_deref().map(OutFile::report).transpose()?;
    let input_names: Vec<data::Declared> = plan.inputs.iter().map(Into::into).collect();
    let output_names: Vec<data::Declared> = plan.outputs.iter().map(Into::into).collect();
    let inputs = data::read(&o.inputs, "input", &input_names)?;
    let expected = match &o.expect {
        Some(p) => Some(data::read(p, "output", &output_names)?),
        None => None,
    };
    let bar = super::optimize::progress(plan.stages.iter().map(|s| s.steps.len() as u64).sum(), "step");
    let tick = |p: executor::Progress| {
        if p.rank.is_multiple_of(plan.mapping.tp) {
            bar.inc(1);
        }
    };
    let config = RunConfig {
        timeout: Duration::from_secs(o.timeout),
        trace: o.verify,
        progress: Some(&tick),
        repeat: o.repeat.into(),
        data: Some(&inputs.data),
        alter: None,
    };
    let result = executor::run(plan, weights, &inputs.tensors, &config);
    bar.finish_and_clear();
    let result = result?;

    let mut time_ms = BTreeMap::new();
    let mut times = result.total_ms.clone();
    times.sort_by(f64::total_cmp);
    time_ms.insert("run", times.first().copied().unwrap_or(0.0));
    time_ms.insert("median", times.get(times.len() / 2).copied().unwrap_or(0.0));
    let config = RunConfig { trace: true, progress: None, repeat: 1, ..config };
    let given = match (o.atol, o.rtol) {
        (None, None) => None,
        (abs, rel) => Some(Tolerance { name: "given", abs: abs.unwrap_or(0.0), rel: rel.unwrap_or(0.0) }),
    };
    let judge = Judging::new(plan, (weights, whole), &inputs, config, given);
    let Verdict { expect, verify, diagnosis } = judge.all(&result, expected.as_ref(), o.verify, &mut time_ms)?;

    if let Some(dir) = &o.outputs {
        data::write(dir, &result.outputs, &result.data)?;
    }
    let tensors = result.outputs.iter().map(|(name, t)| Output {
        name: name.clone(),
        dtype: t.dtype.name(),
        shape: t.shape.clone(),
        what: None,
    });
    let others = result.data.iter().map(|(name, d)| Output {
        name: name.clone(),
        dtype: d.dtype().name(),
        shape: vec![],
        what: Some(d.describe()),
    });
    let order = |o: &Output| plan.outputs.iter().position(|p| p.name == o.name);
    let mut outputs: Vec<Output> = tensors.chain(others).collect();
    outputs.sort_by_key(order);
    let report =
        Report { schema: 1, ranks: plan.mapping.world(), backend: "cpu", outputs, expect, verify, diagnosis, time_ms };
    let text = summary(&report, o.repeat);
    deliver(report_file, &report, &text)?;
    let checks = [report.expect.as_ref(), report.verify.as_ref().map(|v| &v.check)];
    let failed = checks.into_iter().flatten().any(|c| !c.pass);
    Ok(if failed { Outcome::CheckFailed } else { Outcome::Done })
}

fn summary(r: &Report, repeat: u16) -> String {
    let time = |key: &str| r.time_ms.get(key).copied().unwrap_or(0.0);
    let ranks = format!("{} cpu rank{}", r.ranks, if r.ranks == 1 { "" } else { "s" });
    let mut t = match repeat {
        1 => format!("ran on {ranks} in {:.1} ms\n", time("run")),
        n => format!("ran {n} times on {ranks}: median {:.3} ms, fastest {:.3} ms\n", time("median"), time("run")),
    };
    for out in r.outputs.iter().take(4) {
        match &out.what {
            Some(what) => t += &format!("  {}: {what}\n", out.name),
            None => t += &format!("  {}: {}{:?}\n", out.name, out.dtype, out.shape),
        }
    }
    if r.outputs.len() > 4 {
        t += &format!("  and {} more\n", r.outputs.len() - 4);
    }
    let verify = r.verify.as_ref().map(|v| &v.check);
    for (what, c) in [("expected outputs", r.expect.as_ref()), ("unoptimised program", verify)] {
        let Some(c) = c else { continue };
        let verdict = if c.pass { "agrees with" } else { "DIFFERS from" };
        t += &format!("{verdict} the {what}: max |difference| {:.3e}\n", c.max_abs);
        for f in c.failed.iter().take(8) {
            t += &format!("  {f}\n");
        }
        for n in &c.notes {
            t += &format!("  {n}\n");
        }
    }
    if let Some(b) = r.verify.as_ref().and_then(|v| v.first_bad.as_ref()) {
        t += &format!("  first tensor that differs: {b}\n");
    }
    for line in r.diagnosis.iter().flat_map(Diagnosis::lines) {
        t += &format!("  {line}\n");
    }
    t
}
