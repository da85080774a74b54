//! How steps came about, and why operators stand apart: derivations of every bundled model, cases of
//! reasons, and the command.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use sinter::check::choice::{Preference, choose};
use sinter::cost::{CostModel, DEFAULT, Device, Objective};
use sinter::explain::{Made, Record, term};
use sinter::extract::{self, ExtractStats, Extracted};
use sinter::ir::{self, Class, Mapping};
use sinter::lower::weight_entries;
use sinter::pipeline::{Compiled, compile_with};
use sinter::rules::{Phase, RuleSet};
use sinter::saturate::{self, SaturateConfig};
use sinter_runtime::plan::{Plan, PlanWriter, Step};

use crate::bad_input::check_all;
use crate::cli::{check, workplace};
use crate::fixtures;

/// The ONNX nodes that a chain of rules starts from.
fn nodes(record: &Record, why: u32) -> BTreeSet<&str> {
    let entries = record.chain(Some(why)).into_iter().map(|i| &record.entries[i]);
    let made = entries.flat_map(|e| &e.took).map(|t| &t.made);
    made.filter_map(|m| match m {
        Made::By(_) => None,
        Made::Nodes(list) => Some(list.iter().map(|n| record.text(*n))),
    })
    .flatten()
    .collect()
}

/// What is wrong with the record of a compilation.
fn problems(c: &Compiled) -> Vec<String> {
    let record = &c.record;
    let mut out: Vec<String> = record.check().err().into_iter().collect();
    for (i, e) in record.entries.iter().enumerate() {
        let rule = &record.rules[e.rule as usize];
        if e.took.is_empty() {
            out.push(format!("entry {i}, {}: took nothing", rule.name));
        }
        for t in &e.took {
            let op = record.text(t.op).split(' ').next().unwrap_or_default();
            let info = ir::op::table().iter().find(|o| o.name == op).unwrap();
            // Leaves are there from the start, and partition puts boundaries in.
            let given = info.class == Class::Leaf || op == "boundary";
            if matches!(&t.made, Made::Nodes(n) if n.is_empty()) && !given {
                out.push(format!("entry {i}, {}: nothing made {}", rule.name, term(record, t)));
            }
        }
    }
    for (s, stage) in c.plan.stages.iter().enumerate() {
        for step in &stage.steps {
            out.extend(step_problem(record, step).map(|p| format!("stage {s}, {} {:?}: {p}", step.op, step.origin)));
        }
    }
    out
}

/// What is wrong with the derivation of one step.
fn step_problem(record: &Record, step: &Step) -> Option<String> {
    let Some(why) = step.why else {
        // A step that no rule made is one of the model, a constant or a transfer.
        let transfer = matches!(step.op, ir::Op::Send { .. } | ir::Op::Recv { .. });
        let given = transfer || step.op.info().class == Class::Leaf || !step.origin.is_empty();
        let untold = !step.rules.is_empty() || !given;
        return untold.then(|| format!("nothing is known of it; rules {:?}", step.rules));
    };
    let reached = nodes(record, why);
    let missing: Vec<&String> = step.origin.iter().filter(|o| !reached.contains(o.as_str())).collect();
    if reached.is_empty() {
        return Some("its chain reaches no ONNX node".into());
    }
    (!missing.is_empty()).then(|| format!("its chain does not reach {missing:?}"))
}

#[test]
fn every_step_leads_back_to_onnx_nodes() {
    let mut out = vec![];
    for name in fixtures::BUNDLED {
        let model = fixtures::import(&fixtures::model(name));
        for (tp, pp) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            let c = fixtures::compiled(&model, tp, pp);
            assert!(!c.record.entries.is_empty(), "{name}");
            out.extend(problems(&c).into_iter().map(|p| format!("{name} tp {tp} pp {pp}: {p}")));
        }
    }
    assert!(out.is_empty(), "{} problems:\n{}", out.len(), out.join("\n"));
}

#[test]
fn every_term_can_be_derived_whatever_is_extracted() {
    let mut out = vec![];
    for name in fixtures::BUNDLED {
        let model = fixtures::import(&fixtures::model(name));
        for choice in [Preference::Dearest, Preference::Random(1), Preference::Random(2)] {
            let compiled = compile_with(&model, &fixtures::config(2, 2), &|phases, program, graph, cost| {
                // Layers are told by their attention, which a choice may leave in its parts.
                if phases == [Phase::Raise] {
                    return extract::extract(program, graph, cost);
                }
                let c = choose(program, graph, cost, choice)?;
                Ok(Extracted { graph: c.graph, terms: c.terms, stats: ExtractStats::default() })
            });
            out.extend(problems(&compiled.unwrap()).into_iter().map(|p| format!("{name} {choice:?}: {p}")));
        }
    }
    assert!(out.is_empty(), "{} problems:\n{}", out.len(), out.join("\n"));
}

/// The value of a header line of a case.
fn header<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|l| l.strip_prefix(";;")?.trim_start().strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// The reasons for what stands apart in a graph. `rules` are in place of the bundled ones.
fn reasons(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let graph = ir::parse(&text).unwrap();
    ir::verify(&graph).unwrap();
    let size = |key| header(&text, key).map_or(1, |n| n.parse().unwrap());
    let mapping = Mapping { tp: size("tp"), pp: size("pp") };
    let mut rules = match header(&text, "rules") {
        Some(own) => RuleSet::read([("own.rules", format!(";; x == x\n{own}\n").as_str())]),
        None => RuleSet::bundled(),
    }
    .unwrap();
    let banned: Vec<String> =
        header(&text, "no-rule").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    rules.ban(&banned).unwrap();
    let device = Device::parse("h200", DEFAULT).unwrap();
    let cost = CostModel::new(device, mapping, Objective::Memory, &graph);
    let mut program = saturate::load(&graph);
    for phase in [Phase::Shard, Phase::Fuse] {
        let made = &mut program.made;
        saturate::saturate(&mut program.eg, &rules.phase(phase), &mapping, SaturateConfig::standard(), made).unwrap();
    }
    let found = extract::extract(&program, &graph, &cost).unwrap();
    let list = saturate::unfused(&program, (&graph, &found.graph), &found.terms, &rules, &mapping);
    let mut out = String::new();
    for w in list {
        let none = |s: String| if s.is_empty() { "-".to_owned() } else { s };
        out += &format!("{} %{}: {}\n", w.op, w.node, w.reason);
        out += &format!("  rule {}\n  unmet {}\n  tensor {}\n", none(w.rule), none(w.unmet), none(w.tensor));
    }
    out
}

#[test]
fn reasons_name_rule_condition_and_tensor() {
    insta::glob!("../cases/why_not", "*.txt", |path| insta::assert_snapshot!(reasons(path)));
}

/// A folder with a plan in `plan`.
fn planned(args: &[&str]) -> tempfile::TempDir {
    let temp = workplace();
    check(temp.path(), 0, &[&["optimize", "model/model.onnx", "-o", "plan"], args].concat());
    temp
}

#[test]
fn explain_tells_each_kind_of_site() {
    let temp = planned(&["--tp", "2", "--pp", "2"]);
    let explain = |args: &[&str]| check(temp.path(), 0, &[&["explain", "plan"], args].concat()).stdout;
    let mut text = explain(&[]);
    // A norm that stands apart, a fused step far from the model's start, an ONNX node, a transfer, and what stayed.
    for site in ["mul_4", "%mul_212", "node_linear_4", "send", "concat"] {
        text += &format!("\n$ sinter explain plan --site {site}\n{}", explain(&["--site", site]));
    }
    insta::assert_snapshot!(text);
    let full = explain(&["--site", "ar_residual_rms_norm"]);
    assert_eq!(full.matches("\nstage ").count() + 1, 4, "{full}");
    let json: Value = serde_json::from_str(&explain(&["--site", "mul_212", "--json"])).unwrap();
    let chain = json["sites"][0]["chain"].as_array().unwrap();
    let last = chain.last().unwrap();
    assert_eq!((&json["schema"], &last["rule"]), (&1.into(), &"ar-residual-rms-norm".into()));
    assert_eq!((&last["vars"]["r"]["replicated"], &last["guards"][0]), (&true.into(), &"(replicated ?r ?axis)".into()));
    for (i, e) in chain.iter().enumerate() {
        for t in e["took"].as_array().unwrap() {
            let made_by = t.get("made_by").map(|n| n.as_u64().unwrap());
            assert!(made_by.is_none_or(|n| (1..=i as u64).contains(&n)), "{e:#}");
        }
    }
    let json: Value = serde_json::from_str(&explain(&["--json"])).unwrap();
    assert!(json["sites"].as_array().unwrap().len() > 20 && json["unfused"].as_array().unwrap().len() == 2);
}

#[test]
fn what_cannot_be_explained_is_refused() {
    fn edited(dir: &Path, edit: impl FnOnce(&Path)) -> Vec<&'static str> {
        written(dir, |_, _| true);
        edit(&dir.join("plan"));
        vec!["explain", "plan"]
    }
    /// Writes a plan with another record, or with none.
    fn written(dir: &Path, edit: impl FnOnce(&mut Plan, &mut String) -> bool) -> Vec<&'static str> {
        let model = fixtures::import(&fixtures::model("llama-dynamo-op18-past"));
        let c = fixtures::compiled(&model, 1, 1);
        let mut record = serde_json::to_string(&c.record).unwrap();
        let mut plan = c.plan;
        let mut w = PlanWriter::create(&dir.join("plan")).unwrap();
        w.weights(0, &weight_entries(&plan, 0, &model.weights).unwrap()).unwrap();
        if edit(&mut plan, &mut record) {
            w.text("explain.json", &record).unwrap();
        }
        w.finish(plan).unwrap();
        vec!["explain", "plan"]
    }
    fn replaced(dir: &Path, from: &str, to: &str) -> Vec<&'static str> {
        written(dir, |_, record| {
            assert!(record.contains(from), "{from}");
            *record = record.replacen(from, to, 1);
            true
        })
    }
    let text = check_all(&[
        ("not-a-plan", |d| {
            std::fs::create_dir(d.join("plan")).unwrap();
            vec!["explain", "plan"]
        }),
        ("unknown-site", |d| [edited(d, |_| {}), vec!["--site", "linear_"]].concat()),
        ("alias", |d| [edited(d, |_| {}), vec!["--site", "%view_4"]].concat()),
        ("weight", |d| [edited(d, |_| {}), vec!["--site", "m.model.norm.weight"]].concat()),
        ("empty-site", |d| [edited(d, |_| {}), vec!["--site", ""]].concat()),
        ("changed", |d| edited(d, |p| std::fs::write(p.join("explain.json"), "{}").unwrap())),
        ("removed", |d| edited(d, |p| std::fs::remove_file(p.join("explain.json")).unwrap())),
        ("without-record", |d| written(d, |_, _| false)),
        ("of-another-version", |d| replaced(d, "\"version\":1", "\"version\":2")),
        ("cut-short", |d| replaced(d, "\"unfused\":[", "")),
        ("unknown-rule", |d| replaced(d, "\"entries\":[[0,", "\"entries\":[[900,")),
        ("step-out-of-range", |d| {
            written(d, |plan, _| {
                plan.stages[0].steps[0].why = Some(99999);
                true
            })
        }),
    ]);
    insta::assert_snapshot!(text);
}

/// Runs the commands of a section of README.md in a folder; each line below a command must be a line of
/// its output. `...` stands for lines, or for the rest of a line.
#[test]
fn the_readme_shows_what_is_printed() {
    let readme = std::fs::read_to_string(fixtures::root().join("README.md")).unwrap();
    let section = readme.split("\n## ").find(|s| s.starts_with("Why is it so")).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let model = "fixtures/models/llama-dynamo-op18-past";
    fixtures::copy(&fixtures::root().join(model), &temp.path().join(model));
    let (mut output, mut checked): (Option<Vec<String>>, usize) = (None, 0);
    for line in section.lines() {
        let Some(line) = line.strip_prefix("    ") else {
            output = output.filter(|_| line.is_empty());
            continue;
        };
        if let Some(command) = line.strip_prefix("$ sinter ") {
            let ended = check(temp.path(), 0, &command.split(' ').collect::<Vec<_>>());
            output = Some(ended.stdout.lines().map(|l| l.trim().to_owned()).collect());
            continue;
        }
        let Some(lines) = &output else { continue };
        let found = match line.trim().strip_suffix("...") {
            Some(start) => lines.iter().any(|l| l.starts_with(start.trim_end())),
            None => lines.iter().any(|l| l == line.trim()),
        };
        assert!(found, "`{line}` is not in the output:\n{}", lines.join("\n"));
        checked += 1;
    }
    assert!(checked > 20, "{checked} lines");
}
