//! `sinter rules stats`: what each rule does on a model, and how long it takes.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::super::options::{CheckedRules, MeshOptions};
use super::super::{Failure, OutFile, Outcome, counted, deliver};
use crate::import;
use crate::pipeline::{CompileConfig, Compiled, compile};
use crate::rules::RuleSet;

/// Options of `sinter rules stats`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The ONNX file.
    model: PathBuf,
    #[command(flatten)]
    mesh: MeshOptions,
    #[command(flatten)]
    rules: CheckedRules,
    /// Write a report as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    model: String,
    tp: usize,
    pp: usize,
    /// `saturated`, or the limit that was hit.
    stop: String,
    matches: usize,
    applied: usize,
    time_ms: f64,
    /// In the order in which rules are read.
    rules: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    phase: &'static str,
    place: String,
    /// Places where the left side and the guards held.
    matches: usize,
    /// Times that it changed the e-graph.
    applied: usize,
    time_ms: f64,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let report_file = o.report.as_deref().map(OutFile::report).transpose()?;
    let config = CompileConfig::standard(o.mesh.mapping(), o.rules.load()?)?;
    let model = import::open(&o.model)?.import()?;
    let compiled = compile(&model, &config)?;
    let report = Report::new(o, &config.rules, &compiled);
    let text = text(&report);
    deliver(report_file, &report, &text)?;
    Ok(Outcome::Done)
}

impl Report {
    fn new(o: &Options, rules: &RuleSet, compiled: &Compiled) -> Report {
        let mapping = o.mesh.mapping();
        let mut r = Report {
            schema: 1,
            model: o.model.display().to_string(),
            tp: mapping.tp,
            pp: mapping.pp,
            stop: compiled.stop(),
            matches: 0,
            applied: 0,
            time_ms: 0.0,
            rules: vec![],
        };
        let mut total = Duration::ZERO;
        for rule in rules.rules() {
            let found = compiled.saturate.iter().filter(|(phase, _)| *phase == rule.phase);
            let s = found.filter_map(|(_, s)| s.rules.get(&rule.name)).next().copied().unwrap_or_default();
            r.matches += s.matches;
            r.applied += s.applied;
            total += s.time;
            r.rules.push(Entry {
                name: rule.name.clone(),
                phase: rule.phase.name(),
                place: format!("{}:{}", rule.file, rule.line),
                matches: s.matches,
                applied: s.applied,
                time_ms: ms(s.time),
            });
        }
        r.time_ms = ms(total);
        r
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A table, the dearest rule first, and the rules that matched nowhere below it.
fn text(r: &Report) -> String {
    let (mut live, mut dead): (Vec<&Entry>, Vec<&Entry>) = r.rules.iter().partition(|e| e.matches > 0);
    for list in [&mut live, &mut dead] {
        list.sort_by(|a, b| b.time_ms.total_cmp(&a.time_ms));
    }
    let width = r.rules.iter().map(|e| e.name.len()).max().unwrap_or(0).max("no match".len());
    let mut t = format!("{}: tp {} x pp {}, {}\n", r.model, r.tp, r.pp, r.stop);
    let _ = writeln!(t, "{:width$}  phase  matches  applied  time in ms", "rule");
    for (list, title) in [(&live, ""), (&dead, "no match")] {
        if !list.is_empty() && !title.is_empty() {
            let _ = writeln!(t, "{title}");
        }
        for e in list {
            row(&mut t, width, &e.name, e.phase, e.matches, e.applied, e.time_ms);
        }
    }
    row(&mut t, width, "total", "", r.matches, r.applied, r.time_ms);
    let _ = writeln!(t, "{} matched, {} did not", counted(live.len(), "rule"), dead.len());
    t
}

fn row(t: &mut String, width: usize, name: &str, phase: &str, matches: usize, applied: usize, time: f64) {
    let _ = writeln!(t, "{name:width$}  {phase:5}  {matches:7}  {applied:7}  {time:10.3}");
}
