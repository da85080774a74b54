//! `sinter run`: execute a plan on all ranks, and compare.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use sinter_runtime::compare::{self, Comparison, Tolerance};
use sinter_runtime::executor::{self, RunConfig, RunError, RunResult, WeightSource};
use sinter_runtime::plan::{self, Plan, ReferenceWeights, Source};
use sinter_runtime::standard::Data;
use sinter_runtime::tensor::Tensor;

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
    /// Run so many times; the fastest time is reported.
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

#[derive(Debug, Serialize)]
struct Check {
    max_abs: f64,
    max_rel: f64,
    pass: bool,
    /// Outputs that differ too much.
    failed: Vec<String>,
    /// Tolerance by element type of the outputs: absolute, relative.
    tolerance: BTreeMap<&'static str, [f64; 2]>,
}

#[derive(Debug, Serialize)]
struct Verify {
    #[serde(flatten)]
    check: Check,
    /// The first tensor that differs, in the order of the unoptimised program.
    first_bad: Option<String>,
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
    };
    let result = executor::run(plan, weights, &inputs.tensors, &config);
    bar.finish_and_clear();
    let result = result?;

    let expect = expected.map(|e| check(o, &result, &e));
    let mut time_ms = BTreeMap::new();
    time_ms.insert("run", result.total_ms.iter().copied().fold(f64::INFINITY, f64::min));
    let verify = if o.verify { Some(verify(o, plan, whole, &inputs, &result, &mut time_ms)?) } else { None };

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
    let report = Report { schema: 1, ranks: plan.mapping.world(), backend: "cpu", outputs, expect, verify, time_ms };
    let text = summary(&report);
    deliver(report_file, &report, &text)?;
    let checks = [report.expect.as_ref(), report.verify.as_ref().map(|v| &v.check)];
    let failed = checks.into_iter().flatten().any(|c| !c.pass);
    Ok(if failed { Outcome::CheckFailed } else { Outcome::Done })
}

fn tolerance(o: &Options, t: &Tensor) -> Tolerance {
    let base = Tolerance::of(t.dtype);
    match (o.atol, o.rtol) {
        (None, None) => base,
        (abs, rel) => Tolerance { name: "given", abs: abs.unwrap_or(0.0), rel: rel.unwrap_or(0.0) },
    }
}

fn check(o: &Options, actual: &RunResult, expected: &data::Values) -> Check {
    let mut out = Check { max_abs: 0.0, max_rel: 0.0, pass: true, failed: vec![], tolerance: BTreeMap::new() };
    let mut pairs: Vec<(&String, Comparison)> = vec![];
    for (name, t) in &actual.outputs {
        let Some(e) = expected.tensors.get(name) else { continue };
        let tol = tolerance(o, t);
        out.tolerance.insert(t.dtype.name(), [tol.abs, tol.rel]);
        pairs.push((name, compare::compare(t, e, tol)));
    }
    for (name, d) in &actual.data {
        let tensor = || expected.tensors.get(name).cloned().map(Data::from);
        let Some(e) = expected.data.get(name).cloned().or_else(tensor) else { continue };
        pairs.push((name, compare::compare_data(d, &e, &|t| tolerance(o, t))));
    }
    for (name, c) in pairs {
        out.max_abs = out.max_abs.max(c.max_abs);
        out.max_rel = out.max_rel.max(c.max_rel);
        if !c.pass {
            out.pass = false;
            let why = c
                .reason
                .unwrap_or_else(|| format!("max |difference| {:.3e} at {:?}", c.max_abs, c.worst.unwrap_or_default()));
            out.failed.push(format!("{name}: {why}"));
        }
    }
    out
}

/// Runs the unoptimised program and compares; on a difference, the first tensor that both programs have
/// and that differs is named.
fn verify(
    o: &Options,
    plan: &Plan,
    whole: &dyn WeightSource,
    inputs: &data::Values,
    result: &RunResult,
    time_ms: &mut BTreeMap<&'static str, f64>,
) -> Result<Verify, Failure> {
    let config = RunConfig {
        timeout: Duration::from_secs(o.timeout),
        trace: true,
        progress: None,
        repeat: 1,
        data: Some(&inputs.data),
    };
    let reference = executor::run_reference(plan, whole, &inputs.tensors, &config)?;
    time_ms.insert("reference", reference.total_ms.iter().copied().fold(f64::INFINITY, f64::min));
    let expected = data::Values {
        tensors: reference.outputs.iter().cloned().collect(),
        data: reference.data.iter().cloned().collect(),
    };
    let check = check(o, result, &expected);
    let mut first_bad = None;
    if !check.pass {
        let order = plan.reference.iter().flat_map(|s| &s.values).map(|v| v.name.as_str());
        first_bad = compare::bisect(&result.trace, &reference.trace, order).map(|(name, d)| {
            d.reason
                .map_or_else(|| format!("{name} (max |difference| {:.3e})", d.max_abs), |why| format!("{name} ({why})"))
        });
    }
    Ok(Verify { check, first_bad })
}

fn summary(r: &Report) -> String {
    let run = r.time_ms.get("run").copied().unwrap_or(0.0);
    let mut t = format!("ran on {} cpu rank{} in {run:.1} ms\n", r.ranks, if r.ranks == 1 { "" } else { "s" });
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
    }
    if let Some(b) = r.verify.as_ref().and_then(|v| v.first_bad.as_ref()) {
        t += &format!("  first tensor that differs: {b}\n");
    }
    t
}
