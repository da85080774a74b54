//! `sinter optimize`: compile a model into a plan.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use sinter_runtime::plan::{PlanWriter, WeightData};

use super::options::{CompileOptions, ModelOptions, own_rules};
use super::{Failure, OutFile, Outcome, deliver, emit, report, say, summary};
use crate::emit::{Dialect, Form};
use crate::explain;
use crate::import::{self, Imported};
use crate::ir::{self, print};
use crate::lower;
use crate::pipeline::{Compiled, compile};
use crate::timing::Timings;

/// Options of `sinter optimize`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The ONNX file.
    model: PathBuf,
    #[command(flatten)]
    compile: CompileOptions,
    #[command(flatten)]
    model_options: ModelOptions,
    /// Folder for the plan. A plan that is there already is replaced, anything else is left alone. With --emit onnx:
    /// the ONNX file for one rank, the folder for several.
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Write the result as ONNX in place of a plan: one file with its data beside it, or for several ranks
    /// a folder with rank0.onnx, rank1.onnx and so on.
    #[arg(long, value_enum, value_name = "FORMAT", requires = "output")]
    emit: Option<Format>,
    /// What fused operators become in ONNX: local functions over standard operators, or ONNX Runtime's own operators.
    #[arg(long, value_enum, default_value_t = DialectName::Standard, requires = "emit")]
    dialect: DialectName,
    /// Write a report as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
    /// Fail with exit code 1 unless so many sites are fused: N in all, or NAME=N of one kind.
    #[arg(long, value_name = "N|NAME=N")]
    require_fused: Vec<String>,
}

/// Products other than a plan.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Onnx,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DialectName {
    Standard,
    Ort,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let report_file = o.report.as_deref().map(OutFile::report).transpose()?;
    let config = o.compile.config()?;
    let kernels: Vec<&str> = config.rules.kernels().iter().map(|k| k.name.as_str()).collect();
    let demands = o.require_fused.iter().map(|d| Demand::parse(d, &kernels)).collect::<Result<Vec<_>, _>>()?;
    let mut timings = Timings::default();
    let model = timings.time("import", || import::open(&o.model).and_then(|m| o.model_options.apply(m).import()))?;
    let compiled = compile(&model, &config)?;
    let mut emitted = None;
    match (&o.output, o.emit) {
        (Some(path), Some(Format::Onnx)) => {
            let dialect = match o.dialect {
                DialectName::Standard => Dialect::Standard,
                DialectName::Ort => Dialect::Ort,
            };
            let form = Form { dialect, opset: model.opset };
            emitted = Some(timings.time("write", || emit::write(path, &compiled.plan, &model.weights, form))?);
        }
        (Some(dir), None) => timings.time("write", || write(dir, &model, &compiled))?,
        (None, _) => {}
    }
    let own = report::OwnRules {
        names: own_rules(&config.rules).map(|r| r.name.clone()).collect(),
        verified: !o.compile.trusts_rules(),
    };
    let r = report::Report::new(&o.model, &model, &compiled, own, &timings);
    let mut text = summary::text(&r, &compiled, o.output.as_deref().filter(|_| emitted.is_none()));
    text += &emitted.unwrap_or_default();
    deliver(report_file, &r, &text)?;
    let mut outcome = Outcome::Done;
    for d in &demands {
        if let Some(why) = d.unmet(&r) {
            say(&format!("check failed: {why}"));
            outcome = Outcome::CheckFailed;
        }
    }
    Ok(outcome)
}

/// Writes the plan folder: all of it, or nothing.
fn write(dir: &Path, model: &Imported, compiled: &Compiled) -> Result<(), Failure> {
    let mut w = PlanWriter::create(dir)?;
    let plan = &compiled.plan;
    let bar = progress(plan.mapping.world() as u64, "writing weights of rank");
    for rank in 0..plan.mapping.world() {
        // Ranks make up data that is absent when they load the plan.
        let mut entries = lower::weight_entries(plan, rank, &model.weights)?;
        entries.retain(|e| matches!(e.source, WeightData::Bytes(_)));
        w.weights(rank, &entries)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let defaults = plan.inputs.iter().filter(|i| i.default);
    let defaults: Vec<_> =
        defaults.map(|i| lower::default_entry(plan, i, None, &model.weights)).collect::<Result<_, _>>()?;
    if !defaults.is_empty() {
        w.defaults(&defaults)?;
    }
    for s in 0..plan.mapping.pp {
        w.text(&format!("stage{s}.sir"), &readable(dir, print(&stage_graph(&compiled.graph, s)), s)?)?;
    }
    w.text(explain::FILE, &(serde_json::to_string(&compiled.record)? + "\n"))?;
    w.finish(plan.clone())?;
    Ok(())
}

/// A stage's text, which must read back as it is.
fn readable(dir: &Path, text: String, s: usize) -> Result<String, Failure> {
    let read = crate::ir::parse(&text)
        .map_err(|e| e.to_string())
        .and_then(|g| crate::ir::verify(&g).map_err(|e| e.to_string()));
    read.map_err(|e| {
        format!(
            "no plan was written to {}: the text of stage {s} would not read back as it is ({e})\n  this is a defect of sinter; please \
             report it with the model",
            dir.display()
        )
    })?;
    Ok(text)
}

/// The part of the program that one stage computes, for people.
fn stage_graph(graph: &crate::ir::Graph, stage: usize) -> crate::ir::Graph {
    let mut out = graph.clone();
    let here = |id: crate::ir::NodeId| graph.node(id).stage.unwrap_or(stage) == stage;
    let outputs: Vec<_> = graph.outputs().iter().filter(|o| here(o.value)).cloned().collect();
    let sent: Vec<_> = graph
        .nodes()
        .filter(|(_, n)| matches!(n.op, crate::ir::Op::Boundary { .. }) && here(n.inputs[0]))
        .map(|(_, n)| crate::ir::Output {
            name: format!("send {} to stage {}", graph.node(n.inputs[0]).name, n.stage.unwrap_or(0)),
            value: n.inputs[0],
            state: false,
            part: None,
        })
        .collect();
    out.replace_outputs(outputs.into_iter().chain(sent).collect());
    out.without_dead_nodes()
}

/// A progress bar on long work; it shows only on a terminal.
pub(super) fn progress(len: u64, what: &str) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new(len);
    let style = indicatif::ProgressStyle::with_template("{prefix} {pos}/{len} {wide_bar} {elapsed}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar
}

/// `--require-fused`.
struct Demand {
    name: Option<String>,
    count: usize,
}

impl Demand {
    fn parse(text: &str, kernels: &[&str]) -> Result<Demand, Failure> {
        let (name, count) = match text.split_once('=') {
            Some((n, c)) => (Some(n.to_owned()), c),
            None => (None, text),
        };
        let bundled = || ir::op::table().iter().filter(|i| i.class == ir::Class::Fused && i.name != "kernel");
        let known = || bundled().map(|i| i.name).chain(kernels.iter().copied());
        if let Some(n) = &name
            && !known().any(|k| k == n)
        {
            let list: Vec<&str> = known().collect();
            return Err(format!("--require-fused {text}: fused operators are {}", list.join(", ")).into());
        }
        let count = count.parse().map_err(|_| format!("--require-fused {text}: expected N or NAME=N"))?;
        Ok(Demand { name, count })
    }

    fn unmet(&self, r: &report::Report) -> Option<String> {
        let (what, found) = match &self.name {
            None => ("fused sites".to_owned(), r.fused.values().sum()),
            Some(n) => (n.clone(), r.fused.get(n.as_str()).copied().unwrap_or(0)),
        };
        (found < self.count).then(|| format!("{} {what} are required, {found} were fused", self.count))
    }
}
