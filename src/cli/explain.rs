//! `sinter explain`: how the steps of a plan came about, and why others stand apart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use sinter_runtime::plan::{Plan, Source, Stage, Step};

use super::{Failure, Outcome, counted, load_plan, print, summary};
use crate::explain::{self, Bound, FILE, Made, Record, VERSION};
use crate::ir::{Op, value_name};

/// Options of `sinter explain`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The plan folder.
    plan: PathBuf,
    /// Explain one site in full: the name of a value, of an ONNX node, or of an operator.
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// A step with its place.
struct Site<'p> {
    stage: usize,
    index: usize,
    step: &'p Step,
    /// Names of its results; of a send, of what it sends.
    values: Vec<&'p str>,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let (plan, _) = load_plan(&o.plan)?;
    let record = read(&o.plan, &plan)?;
    let sites: Vec<Site<'_>> = plan.stages.iter().enumerate().flat_map(|(s, stage)| sites(s, stage)).collect();
    let chosen = o.site.as_ref().map(|name| find(name, &plan, &sites)).transpose()?;
    let text = if o.json {
        let list: Vec<Value> = match &chosen {
            None => sites.iter().filter(|s| s.step.why.is_some()).map(|s| site_json(&record, s, false)).collect(),
            Some(found) => found.iter().map(|s| site_json(&record, s, true)).collect(),
        };
        serde_json::to_string_pretty(&json!({ "schema": 1, "sites": list, "unfused": record.unfused }))? + "\n"
    } else {
        match &chosen {
            None => overview(&o.plan, &plan, &record, &sites),
            Some(found) => several(&record, found),
        }
    };
    print(&text)?;
    Ok(Outcome::Done)
}

/// Reads the record of a plan folder. A file that the plan lists was checked against its digest.
fn read(dir: &Path, plan: &Plan) -> Result<Record, Failure> {
    let file = dir.join(FILE);
    let again = "\n  help: write the plan again with this version of `sinter optimize`";
    if !plan.files.iter().any(|f| f.name == FILE) {
        return Err(format!("{}: the plan has no {FILE}, so that it cannot be explained{again}", dir.display()).into());
    }
    let text = std::fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let wrong = |why: String| format!("{}: {why}{again}", file.display());
    #[derive(serde::Deserialize)]
    struct Head {
        version: u64,
    }
    let head: Head = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if head.version != u64::from(VERSION) {
        return Err(wrong(format!("version {} is not supported, only {VERSION}", head.version)).into());
    }
    let record: Record = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    record.check().map_err(wrong)?;
    let known = |s: &Step| s.why.is_none_or(|w| (w as usize) < record.entries.len());
    if !plan.stages.iter().flat_map(|s| &s.steps).all(known) {
        return Err(wrong("a step refers to an entry that is not there".into()).into());
    }
    Ok(record)
}

fn sites(stage: usize, s: &Stage) -> impl Iterator<Item = Site<'_>> {
    s.steps.iter().enumerate().map(move |(index, step)| {
        let mut values: Vec<&str> = step.outputs.iter().flatten().map(|v| s.value(*v).name.as_str()).collect();
        if step.outputs.is_empty() {
            values.extend(step.inputs.iter().map(|v| s.value(*v).name.as_str()));
        }
        Site { stage, index, step, values }
    })
}

/// Most names that a line of the overview shows.
const NAMES: usize = 3;

/// For each stage the operators that rules made, by the last rule; then what stands apart.
fn overview(dir: &Path, plan: &Plan, record: &Record, sites: &[Site<'_>]) -> String {
    let given = sites.iter().filter(|s| s.step.why.is_none()).count();
    let mut t = format!(
        "{}: {}, {} of them made by rules, {given} as in the model\n",
        dir.display(),
        counted(sites.len(), "step"),
        sites.len() - given
    );
    for stage in 0..plan.stages.len() {
        let _ = writeln!(t, "stage {stage}");
        let mut groups: Vec<(&str, &str, Vec<&Site<'_>>)> = vec![];
        for s in sites.iter().filter(|s| s.stage == stage && s.step.why.is_some()) {
            let (op, rule) = (s.step.op.title(), last_rule(record, s.step.why));
            match groups.iter_mut().find(|g| g.0 == op && g.1 == rule) {
                Some(g) => g.2.push(s),
                None => groups.push((op, rule, vec![s])),
            }
        }
        let count = |g: &(_, _, Vec<_>)| g.2.len().to_string().len();
        let digits = groups.iter().map(count).max().unwrap_or(0);
        let ops = groups.iter().map(|g| g.0.len()).max().unwrap_or(0);
        let rules = groups.iter().map(|g| g.1.len()).max().unwrap_or(0);
        for (op, rule, list) in groups {
            let mut names: Vec<String> = list.iter().take(NAMES).map(|s| name(s)).collect();
            if list.len() > NAMES {
                names.push("..".to_owned());
            }
            let n = list.len();
            let _ = writeln!(t, "  {n:>digits$} {op:ops$}  by {rule:rules$}  {}", names.join(" "));
        }
    }
    summary::unfused(&mut t, &record.unfused);
    t += "one of them in full: --site NAME, a value, an ONNX node or an operator\n";
    t
}

/// The value that a step is called by: its first result.
fn name(s: &Site<'_>) -> String {
    s.values.first().map_or_else(String::new, |v| value_name(v))
}

/// The rule that made a step.
fn last_rule(record: &Record, why: Option<u32>) -> &str {
    let entry = why.and_then(|w| record.entries.get(w as usize));
    entry.and_then(|e| record.rules.get(e.rule as usize)).map_or("", |r| &r.name)
}

/// The steps that a name stands for: by value, or else by ONNX node, or else by operator.
fn find<'s, 'p>(name: &str, plan: &Plan, sites: &'s [Site<'p>]) -> Result<Vec<&'s Site<'p>>, Failure> {
    let name = name.strip_prefix('%').unwrap_or(name);
    let by_value = |s: &&Site<'_>| s.values.contains(&name) && !s.step.outputs.is_empty();
    let by_node = |s: &&Site<'_>| s.step.origin.iter().any(|o| o == name);
    let by_op = |s: &&Site<'_>| s.step.op.title() == name;
    let ways: [&dyn Fn(&&Site<'_>) -> bool; 3] = [&by_value, &by_node, &by_op];
    for way in ways {
        let found: Vec<&Site<'_>> = sites.iter().filter(|s| way(s)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let values = plan.stages.iter().flat_map(|s| s.values.iter().map(move |v| (s, v)));
    if let Some((stage, mut v)) = values.into_iter().find(|(_, v)| v.name == name) {
        let what = match &v.source {
            Source::Input { .. } => "an input".to_owned(),
            Source::Weight { .. } => "a weight".to_owned(),
            _ => {
                // Aliases name earlier values.
                while let Source::Alias(of) = &v.source {
                    v = stage.value(*of);
                }
                format!("{} in another shape: explain that one", value_name(&v.name))
            }
        };
        return Err(format!("no step makes `{name}`: it is {what}").into());
    }
    let near = |v: &str| !name.is_empty() && v.contains(name) || !v.is_empty() && name.contains(v);
    let names = |s: &'s Site<'p>| s.values.iter().copied().chain(s.step.origin.iter().map(String::as_str));
    let mut close: Vec<&str> = vec![];
    for v in sites.iter().flat_map(names).filter(|v| near(v)) {
        if !close.contains(&v) && close.len() < 4 {
            close.push(v);
        }
    }
    let hint = if close.is_empty() { String::new() } else { format!("; close to it are {}", close.join(", ")) };
    Err(format!(
        "no step makes a value called `{name}`, comes from an ONNX node of that name or is such an operator{hint}\n  \
         help: `sinter explain PLAN` lists the steps, `sinter show PLAN` the programs; an ONNX node that only \
         changes a shape has no step"
    )
    .into())
}

/// Most steps that are explained at once.
const MOST: usize = 4;

fn several(record: &Record, found: &[&Site<'_>]) -> String {
    let mut t = String::new();
    for s in found.iter().take(MOST) {
        site(&mut t, record, s);
    }
    if let Some(rest) = found.get(MOST..).filter(|r| !r.is_empty()) {
        let names: Vec<String> = rest.iter().take(MOST).map(|s| name(s)).collect();
        let dots = if rest.len() > MOST { ", .." } else { "" };
        let _ = writeln!(t, "and {}: {}{dots}", counted(rest.len(), "more step"), names.join(", "));
    }
    t
}

/// What a step is, in a line.
fn title(s: &Site<'_>) -> String {
    let names: Vec<String> = s.values.iter().map(|v| value_name(v)).collect();
    let names = names.join(", ");
    // A declared kernel by its name; its body is in the program's text.
    let op = match &s.step.op {
        Op::Kernel { body } => body.name.clone(),
        op => op.to_string(),
    };
    match s.step.outputs.is_empty() {
        true => format!("stage {} step {}: {op} of {names}", s.stage, s.index),
        false => format!("stage {} step {}: {names} = {op}", s.stage, s.index),
    }
}

/// The whole chain of one step.
fn site(t: &mut String, record: &Record, s: &Site<'_>) {
    let _ = writeln!(t, "{}", title(s));
    if !s.step.origin.is_empty() {
        let _ = writeln!(t, "  computes the ONNX nodes {}", s.step.origin.join(", "));
    }
    let entries = record.chain(s.step.why);
    if entries.is_empty() {
        t.push_str("  as in the model: no rule changed it\n");
    }
    // A rule is told in full where it occurs first.
    let mut told: BTreeMap<u32, usize> = BTreeMap::new();
    let number_of = |entry: u32| entries.binary_search(&(entry as usize)).map_or(0, |i| i + 1);
    for (i, e) in entries.iter().filter_map(|i| record.entries.get(*i)).enumerate() {
        explain::application(t, record, e, i + 1, told.get(&e.rule).copied(), &number_of);
        told.entry(e.rule).or_insert(i + 1);
    }
    for w in record.unfused.iter().filter(|w| w.stage == s.stage && s.values.contains(&w.node.as_str())) {
        let _ = writeln!(t, "  not fused: {}", w.reason);
    }
}

fn site_json(record: &Record, s: &Site<'_>, full: bool) -> Value {
    let entries = record.chain(s.step.why);
    let mut out = json!({
        "stage": s.stage,
        "step": s.index,
        "op": s.step.op.to_string(),
        "values": s.values,
        "origin": s.step.origin,
        "rule": last_rule(record, s.step.why),
    });
    if full {
        let number_of = |entry: u32| entries.binary_search(&(entry as usize)).map_or(0, |i| i + 1);
        let list = entries.iter().enumerate().map(|(n, i)| entry_json(record, n + 1, *i, &number_of));
        out["chain"] = list.collect();
    } else {
        out["applications"] = entries.len().into();
    }
    out
}

fn entry_json(record: &Record, number: usize, entry: usize, number_of: &dyn Fn(u32) -> usize) -> Value {
    let e = &record.entries[entry];
    let rule = &record.rules[e.rule as usize];
    let tensor = |t: u32| {
        let (name, ty) = record.tensors[t as usize];
        json!({ "name": record.text(name), "type": record.text(ty) })
    };
    let mut vars = serde_json::Map::new();
    for (name, b) in rule.vars.iter().zip(&e.vars) {
        let value = match b {
            Bound::Nothing => continue,
            Bound::Text(t) => record.text(*t).into(),
            Bound::Tensors((ts,)) => ts.iter().map(|t| tensor(*t)).collect(),
            Bound::Tensor(t, known) => {
                let mut v = tensor(*t);
                v["replicated"] = (known & Bound::REPLICATED > 0).into();
                v["weight"] = (known & Bound::WEIGHT > 0).into();
                v["leaf"] = (known & Bound::LEAF > 0).into();
                v["free"] = (known & Bound::FREE > 0).into();
                v
            }
        };
        vars.insert(name.clone(), value);
    }
    let took = e.took.iter().map(|t| match &t.made {
        Made::By(f) => json!({ "term": explain::term(record, t), "made_by": number_of(*f) }),
        Made::Nodes(nodes) => {
            let nodes: Vec<&str> = nodes.iter().map(|n| record.text(*n)).collect();
            json!({ "term": explain::term(record, t), "nodes": nodes })
        }
    });
    json!({
        "number": number,
        "rule": rule.name,
        "phase": rule.phase,
        "place": rule.place,
        "doc": rule.doc,
        "left": rule.left,
        "right": rule.right,
        "guards": rule.guards,
        "vars": vars,
        "took": took.collect::<Vec<_>>(),
    })
}
