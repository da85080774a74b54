//! `sinter explain`: how the steps of a plan came about, and why others stand apart.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use sinter_runtime::plan::{self, Plan, Stage, Step};

use super::{Failure, Outcome, print};
use crate::explain::{Entry, FILE, Record, VERSION};

/// Options of `sinter explain`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The plan folder.
    plan: PathBuf,
    /// Explain one site in full: the name of a value, of an ONNX node, or of an operator.
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
}

/// A step with its place.
struct Site<'p> {
    stage: usize,
    index: usize,
    step: &'p Step,
    values: Vec<&'p str>,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let (plan, _) = plan::load(&o.plan)?;
    let record = read(&o.plan)?;
    let sites: Vec<Site<'_>> = plan.stages.iter().enumerate().flat_map(|(s, stage)| sites(s, stage)).collect();
    let text = match &o.site {
        None => overview(&o.plan, &plan, &record, &sites),
        Some(name) => one(name, &record, &sites)?,
    };
    print(&text)?;
    Ok(Outcome::Done)
}

/// Reads the record of a plan folder. Its digest has been checked with the plan.
fn read(dir: &Path) -> Result<Record, Failure> {
    let file = dir.join(FILE);
    let text = std::fs::read_to_string(&file).map_err(|e| {
        format!(
            "cannot read {}: {e}\n  help: write the plan again with this version of `sinter optimize`",
            file.display()
        )
    })?;
    let record: Record = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    if record.version != VERSION {
        return Err(format!("{}: version {} is not supported, only {VERSION}", file.display(), record.version).into());
    }
    let earlier = |(i, e): (usize, &Entry)| {
        (e.rule as usize) < record.rules.len() && e.took.iter().filter_map(|t| t.from).all(|f| (f as usize) < i)
    };
    if !record.entries.iter().enumerate().all(earlier) {
        return Err(format!("{}: an entry refers to what does not come before it", file.display()).into());
    }
    Ok(record)
}

fn sites(stage: usize, s: &Stage) -> impl Iterator<Item = Site<'_>> {
    s.steps.iter().enumerate().map(move |(index, step)| {
        let values = step.outputs.iter().flatten().map(|v| s.value(*v).name.as_str()).collect();
        Site { stage, index, step, values }
    })
}

/// One line for each step that rules made, then what stands apart.
fn overview(dir: &Path, plan: &Plan, record: &Record, sites: &[Site<'_>]) -> String {
    let mut t = format!("{}: {} steps in {} stages\n", dir.display(), sites.len(), plan.stages.len());
    for s in sites.iter().filter(|s| s.step.why.is_some()) {
        let names: Vec<String> = s.values.iter().map(|v| format!("%{v}")).collect();
        let _ = writeln!(
            t,
            "stage {} step {}: {} {} by {}",
            s.stage,
            s.index,
            s.step.op.name(),
            names.join(", "),
            last_rule(record, s.step.why)
        );
    }
    if !record.unfused.is_empty() {
        t += "not fused\n";
    }
    for w in &record.unfused {
        let _ = writeln!(t, "  stage {}: {} %{}: {}", w.stage, w.op, w.node, w.reason);
    }
    t += "explain one of them in full with --site NAME\n";
    t
}

/// The entries that an entry builds on, in order, itself last.
fn chain(record: &Record, why: Option<u32>) -> BTreeSet<usize> {
    let mut out = BTreeSet::new();
    let mut todo: Vec<usize> = why.map(|w| w as usize).into_iter().collect();
    while let Some(i) = todo.pop() {
        if let Some(e) = record.entries.get(i)
            && out.insert(i)
        {
            todo.extend(e.took.iter().filter_map(|t| t.from).map(|f| f as usize));
        }
    }
    out
}

/// The rule that made a step, and how many applications it builds on.
fn last_rule(record: &Record, why: Option<u32>) -> String {
    let chain = chain(record, why);
    let Some(last) = chain.last().and_then(|i| record.entries.get(*i)) else { return String::new() };
    let name = &record.rules[last.rule as usize].name;
    match chain.len() - 1 {
        0 => name.clone(),
        1 => format!("{name}, after 1 other"),
        n => format!("{name}, after {n} others"),
    }
}

/// Most steps that one name may stand for.
const MOST: usize = 4;

fn one(name: &str, record: &Record, sites: &[Site<'_>]) -> Result<String, Failure> {
    let name = name.trim_start_matches('%');
    let by_value = |s: &&Site<'_>| s.values.contains(&name);
    let by_node = |s: &&Site<'_>| s.step.origin.iter().any(|o| o == name);
    let by_op = |s: &&Site<'_>| s.step.op.name() == name;
    let mut found: Vec<&Site<'_>> = sites.iter().filter(by_value).collect();
    if found.is_empty() {
        found = sites.iter().filter(by_node).collect();
    }
    if found.is_empty() {
        found = sites.iter().filter(by_op).collect();
    }
    if found.is_empty() {
        let close: Vec<&str> = sites
            .iter()
            .flat_map(|s| &s.values)
            .copied()
            .filter(|v| v.contains(name) || name.contains(v))
            .take(4)
            .collect();
        let hint = if close.is_empty() { String::new() } else { format!("; close to it are {}", close.join(", ")) };
        return Err(format!(
            "no step makes a value called `{name}`, comes from an ONNX node of that name or is such an operator{hint}\n  \
             help: `sinter explain PLAN` lists the steps"
        )
        .into());
    }
    let mut t = String::new();
    for s in found.iter().take(MOST) {
        site(&mut t, record, s);
    }
    if found.len() > MOST {
        let _ = writeln!(t, "and {} more steps; name a value to choose one", found.len() - MOST);
    }
    Ok(t)
}

/// The whole chain of one step.
fn site(t: &mut String, record: &Record, s: &Site<'_>) {
    let names: Vec<String> = s.values.iter().map(|v| format!("%{v}")).collect();
    let _ = writeln!(t, "stage {} step {}: {} = {}", s.stage, s.index, names.join(", "), s.step.op);
    if !s.step.origin.is_empty() {
        let _ = writeln!(t, "  computes the ONNX nodes {}", s.step.origin.join(", "));
    }
    let entries: Vec<usize> = chain(record, s.step.why).into_iter().collect();
    if entries.is_empty() {
        t.push_str("  as imported: no rule changed it\n");
    }
    let number = |from: u32| entries.binary_search(&(from as usize)).map_or(0, |i| i + 1);
    for (n, &i) in entries.iter().enumerate() {
        let e = &record.entries[i];
        let r = &record.rules[e.rule as usize];
        let _ = writeln!(t, "{:3}. {} ({}, {}): {}", n + 1, r.name, r.phase, r.place, r.doc);
        for k in &e.took {
            let from = match k.from {
                Some(f) => format!("made in {}", number(f)),
                None if k.nodes.is_empty() => String::new(),
                None => format!("ONNX {}", k.nodes.join(", ")),
            };
            let _ = writeln!(t, "       took   {}{}{from}", k.term, if from.is_empty() { "" } else { "   ; " });
        }
        for (v, value) in &e.vars {
            let _ = writeln!(t, "       where  ?{v} = {value}");
        }
        for g in &r.guards {
            let _ = writeln!(t, "       held   {g}");
        }
        let _ = writeln!(t, "       gives  {}", r.right);
    }
    for w in record.unfused.iter().filter(|w| s.values.contains(&w.node.as_str())) {
        let _ = writeln!(t, "  not fused: {}", w.reason);
    }
}
