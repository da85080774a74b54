//! `sinter run`: execute a plan on all ranks, and compare.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use sinter_runtime::compare::Tolerance;
use sinter_runtime::executor::{self, RunConfig, RunError, WeightSource};
use sinter_runtime::plan::{InputDecl, Plan, ReferenceWeights, WeightData, WeightEntry};
use sinter_runtime::tensor::Tensor;

use super::judge::{Check, Diagnosis, Judging, Verdict, Verify};
use super::options::{CheckedRules, ModelOptions};
use super::{Failure, OutFile, Outcome, counted, data, deliver, load_plan};
use crate::import::{self, Weights};
use crate::ir::Mapping;
use crate::lower;
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
    #[arg(long, value_name = "X", value_parser = tolerance_value, allow_hyphen_values = true)]
    atol: Option<f64>,
    /// Largest relative difference allowed in addition, instead of the tolerance for each element type.
    #[arg(long, value_name = "X", value_parser = tolerance_value, allow_hyphen_values = true)]
    rtol: Option<f64>,
    /// Give up when no rank finishes a step for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Run N times and report the median and the fastest time, loading left out.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    repeat: u16,
    #[command(flatten)]
    model_options: ModelOptions,
    #[command(flatten)]
    rules: CheckedRules,
}

/// A tolerance: comparisons with a negative number or with NaN would mean nothing.
fn tolerance_value(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v >= 0.0 && v.is_finite() => Ok(v),
        Ok(_) => Err("a tolerance is a finite number, 0 or larger".to_owned()),
        Err(_) => Err("not a number".to_owned()),
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: u32,
    ranks: usize,
    /// Where the model's declarations are not followed.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    notes: &'a [String],
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

/// What a plan for one rank reads of a model's own files, by key: the weight itself, or the part that the plan cuts from it.
struct ModelWeights<'a> {
    data: BTreeMap<String, Cow<'a, [u8]>>,
    plan: &'a Plan,
    /// Default values of inputs are among them.
    all: &'a Weights,
}

impl<'a> ModelWeights<'a> {
    /// The weights of the plan's stage.
    fn new(plan: &'a Plan, weights: &'a Weights) -> Result<ModelWeights<'a>, Failure> {
        ModelWeights::of(lower::weight_entries(plan, 0, weights)?, plan, weights)
    }

    /// The weights of its reference program.
    fn reference(plan: &'a Plan, weights: &'a Weights) -> Result<ModelWeights<'a>, Failure> {
        ModelWeights::of(lower::reference_entries(plan, weights)?, plan, weights)
    }

    fn of(entries: Vec<WeightEntry<'a>>, plan: &'a Plan, all: &'a Weights) -> Result<ModelWeights<'a>, Failure> {
        let bytes = |e: WeightEntry<'a>| {
            let data = match e.source {
                // Kernels read elements in place where they are aligned, which a weight within an ONNX file need not be.
                WeightData::Bytes(all) if e.shape == e.source_shape => {
                    match all.as_ptr().addr() % e.dtype.size().max(1) {
                        0 => Cow::Borrowed(all),
                        _ => Cow::Owned(all.to_vec()),
                    }
                }
                _ => Cow::Owned(e.tensor()?.bytes().to_vec()),
            };
            Ok((e.key, data))
        };
        Ok(ModelWeights { data: entries.into_iter().map(bytes).collect::<Result<_, Failure>>()?, plan, all })
    }
}

impl WeightSource for ModelWeights<'_> {
    fn weight(&self, rank: usize, key: &str) -> Result<Cow<'_, [u8]>, RunError> {
        let found = self.data.get(key).map(|b| Cow::Borrowed(&b[..]));
        found.ok_or_else(|| RunError::Weight { rank, key: key.to_owned(), why: "the model has no such weight".into() })
    }

    fn default(&self, input: &InputDecl) -> Result<Option<Tensor>, RunError> {
        let made = lower::default_entry(self.plan, input, None, self.all).map_err(|e| e.to_string());
        let value = made.and_then(|e| e.tensor().map_err(|e| e.to_string()));
        value.map(Some).map_err(|e| RunError::Inputs(vec![e]))
    }
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    if o.plan.is_dir() {
        o.model_options.refuse_for_plan()?;
        let (plan, weights) = load_plan(&o.plan)?;
        weights.prepare()?;
        return execute(o, &plan, &weights, &ReferenceWeights::new(&plan, &weights), &[]);
    }
    let model = o.model_options.apply(import::open(&o.plan)?).import()?;
    let compiled = compile(&model, &CompileConfig::standard(Mapping { tp: 1, pp: 1 }, o.rules.load()?)?)?;
    let plan = &compiled.plan;
    // Only `--verify` executes the reference program.
    let whole = if o.verify {
        ModelWeights::reference(plan, &model.weights)?
    } else {
        ModelWeights::of(vec![], plan, &model.weights)?
    };
    execute(o, plan, &ModelWeights::new(plan, &model.weights)?, &whole, &model.notes)
}

fn execute(
    o: &Options,
    plan: &Plan,
    weights: &dyn WeightSource,
    whole: &dyn WeightSource,
    notes: &[String],
) -> Result<Outcome, Failure> {
    let report_file = o.report.as_deref().map(OutFile::report).transpose()?;
    let input_names: Vec<data::Declared> = plan.inputs.iter().map(Into::into).collect();
    let output_names: Vec<data::Declared> = plan.outputs.iter().map(Into::into).collect();
    let inputs = data::read(&o.inputs, data::Side { prefix: "input", values: &input_names, others: &output_names })?;
    let read = |p| data::read(p, data::Side { prefix: "output", values: &output_names, others: &input_names });
    let expected = o.expect.as_deref().map(read).transpose()?;
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
        data::write(dir, &output_names, &result.outputs, &result.data)?;
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
    let report = Report {
        schema: 1,
        ranks: plan.mapping.world(),
        notes,
        backend: "cpu",
        outputs,
        expect,
        verify,
        diagnosis,
        time_ms,
    };
    let text = summary(&report, o.repeat);
    deliver(report_file, &report, &text)?;
    let checks = [report.expect.as_ref(), report.verify.as_ref().map(|v| &v.check)];
    let failed = checks.into_iter().flatten().any(|c| !c.pass);
    Ok(if failed { Outcome::CheckFailed } else { Outcome::Done })
}

fn summary(r: &Report<'_>, repeat: u16) -> String {
    let time = |key: &str| r.time_ms.get(key).copied().unwrap_or(0.0);
    let ranks = counted(r.ranks, "cpu rank");
    let mut t = match repeat {
        1 => format!("ran on {ranks} in {:.1} ms\n", time("run")),
        n => format!("ran {n} times on {ranks}: median {:.3} ms, fastest {:.3} ms\n", time("median"), time("run")),
    };
    for n in r.notes {
        t += &format!("note: {n}\n");
    }
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
