//! `sinter diff`: what differs between two models, texts or plans.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use sinter_runtime::plan::{DEFAULTS_FILE, Plan};

use super::graphs::{self, StageName};
use super::options::{CheckedRules, MeshOptions};
use super::{Failure, OutFile, Outcome, counted, deliver, load_plan};
use crate::diff::{Diff, Kind, diff, fused};
use crate::import;
use crate::ir::{Graph, Node, NodeId, Output};
use crate::pipeline::CompileConfig;

/// Options of `sinter diff`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An ONNX file, a graph in text form (*.sir), or a plan folder.
    a: PathBuf,
    /// What to compare with it.
    b: PathBuf,
    /// Count operators instead: before and after, those whose number changed.
    #[arg(long)]
    stat: bool,
    /// After each difference, the lines of the text form at every place.
    #[arg(long, conflicts_with = "stat")]
    full: bool,
    /// Write a report as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
    /// The stage of compilation after which to compare ONNX files; `import` where not given.
    #[arg(long, value_enum)]
    stage: Option<StageName>,
    #[command(flatten)]
    mesh: MeshOptions,
    #[command(flatten)]
    rules: CheckedRules,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: u32,
    equal: bool,
    hunks: Vec<HunkReport<'a>>,
    notes: &'a [String],
    ops: Change<&'a BTreeMap<String, usize>>,
    fused: Change<usize>,
}

#[derive(Debug, Serialize)]
struct Change<T> {
    before: T,
    after: T,
}

#[derive(Debug, Serialize)]
struct HunkReport<'a> {
    kind: &'static str,
    stage: Option<usize>,
    before: &'a [String],
    after: &'a [String],
    names: Vec<&'a str>,
    count: usize,
}

/// What is compared.
struct Side {
    graph: Graph,
    plan: Option<Plan>,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let report_file = o.report.as_deref().map(OutFile::report).transpose()?;
    comparable(o)?;
    let (a, b) = (read(o, &o.a)?, read(o, &o.b)?);
    let mut d = diff(&a.graph, &b.graph);
    if let (Some(p), Some(q)) = (&a.plan, &b.plan) {
        plans(&mut d, p, q);
    }
    let text = match (o.stat, d.is_equal()) {
        (true, _) => d.stat(),
        (false, true) => format!("no difference\n{}", d.text(o.full)),
        (false, false) => d.text(o.full),
    };
    deliver(report_file, &report(&d), &text)?;
    Ok(if d.is_equal() { Outcome::Done } else { Outcome::CheckFailed })
}

fn report(d: &Diff) -> Report<'_> {
    let hunks = d.hunks.iter().map(|h| HunkReport {
        kind: h.kind.name(),
        stage: h.stage,
        before: &h.before,
        after: &h.after,
        names: h.names().collect(),
        count: h.sites.len(),
    });
    Report {
        schema: 1,
        equal: d.is_equal(),
        hunks: hunks.collect(),
        notes: &d.notes,
        ops: Change { before: &d.before, after: &d.after },
        fused: Change { before: fused(&d.before), after: fused(&d.after) },
    }
}

/// A plan holds what extraction made. A model that was only imported differs from it everywhere, which
/// is no answer.
fn comparable(o: &Options) -> Result<(), Failure> {
    let is_model = |p: &Path| p.is_file() && !graphs::is_text(p);
    for (plan, model) in [(&o.a, &o.b), (&o.b, &o.a)] {
        if plan.is_dir() && is_model(model) && o.stage != Some(StageName::Extract) {
            let (plan, model) = (plan.display(), model.display());
            return Err(format!(
                "{plan} is compiled and {model} is not\n  help: add `--stage extract` with the plan's --tp and --pp"
            )
            .into());
        }
    }
    Ok(())
}

fn read(o: &Options, path: &Path) -> Result<Side, Failure> {
    if path.is_dir() {
        let (plan, _) = load_plan(path)?;
        let parse = |(s, t): (usize, &String)| graphs::parse(&path.join(format!("stage{s}.sir")), t);
        let stages: Vec<Graph> =
            graphs::stage_texts(path, &plan)?.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        return Ok(Side { graph: join(&stages, &plan), plan: Some(plan) });
    }
    if graphs::is_text(path) {
        return Ok(Side { graph: graphs::text_file(path)?, plan: None });
    }
    let model = import::open(path)?.import()?;
    let config = || Ok(CompileConfig::standard(o.mesh.mapping(), o.rules.load()?)?);
    Ok(Side { graph: graphs::at_stage(model, o.stage.unwrap_or(StageName::Import), config)?, plan: None })
}

/// The program of which each stage's text is a part. What stages share has one name in all of them, and what
/// they send each other are outputs of their texts only.
fn join(stages: &[Graph], plan: &Plan) -> Graph {
    let mut out = Graph::new(stages.first().map_or("", |g| &g.name));
    let mut known: BTreeMap<String, NodeId> = BTreeMap::new();
    let mut results: BTreeMap<String, Output> = BTreeMap::new();
    for g in stages {
        let mut map = vec![];
        for (_, n) in g.nodes() {
            let id = known.get(&n.name).copied().unwrap_or_else(|| {
                let inputs = n.inputs.iter().map(|i| map[i.index()]).collect();
                out.push(Node { inputs, ..n.clone() })
            });
            known.insert(n.name.clone(), id);
            map.push(id);
        }
        for o in g.outputs() {
            results.insert(o.name.clone(), Output { value: map[o.value.index()], ..o.clone() });
        }
    }
    plan.outputs.iter().filter_map(|o| results.remove(&o.name)).for_each(|o| out.push_output(o));
    out
}

/// What the programs do not show.
fn plans(d: &mut Diff, p: &Plan, q: &Plan) {
    let mesh = |p: &Plan| format!("tp {} x pp {}", p.mapping.tp, p.mapping.pp);
    if p.mapping != q.mapping {
        d.push(Kind::Mapping, mesh(p), mesh(q));
    }
    let calls = |p: &Plan| {
        let calls: usize = p.certificate.groups.iter().map(|g| g.calls.len()).sum();
        format!("{}, {}", counted(p.certificate.groups.len(), "group"), counted(calls, "call"))
    };
    if calls(p) != calls(q) {
        d.push(Kind::Certificate, calls(p), calls(q));
    }
    // Other weights in an equal program are another checkpoint, not another program.
    if d.is_equal() {
        let digests = |p: &Plan| -> BTreeSet<(String, String)> {
            let weights = p.files.iter().filter(|f| f.name.ends_with(".safetensors") && f.name != DEFAULTS_FILE);
            weights.map(|f| (f.name.clone(), f.blake3.clone())).collect()
        };
        let n = digests(p).difference(&digests(q)).count();
        if n > 0 {
            d.notes.push(format!("the weights of {} differ", counted(n, "rank")));
        }
        let defaults = |p: &Plan| p.files.iter().find(|f| f.name == DEFAULTS_FILE).map(|f| f.blake3.clone());
        if defaults(p) != defaults(q) {
            d.notes.push("the default values of inputs differ".to_owned());
        }
    }
}
