//! What differs between two graphs: the lines that a reviewer reads.

use std::path::Path;

use sinter::diff::{Diff, Kind, diff};
use sinter::ir::{self, Graph};
use sinter::pipeline::compile;

use crate::cli::{check as ends, check_keys, sinter_in_ci, workplace};
use crate::{cli, fixtures};

fn graph(text: &str) -> Result<Graph, String> {
    let g = ir::parse(text).map_err(|e| e.to_string())?;
    ir::verify(&g).map_err(|e| e.to_string())?;
    Ok(g)
}

/// The differences as text, all forms of it.
fn render(d: &Diff) -> String {
    let verdict = if d.is_equal() { "equal" } else { "different" };
    format!("{verdict}\n## lines\n{}## full\n{}## stat\n{}", d.text(false), d.text(true), d.stat())
}

/// A graph is equal to itself, and the differences of the other direction are as many.
fn check(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (a, b) = text.split_once(";; ---\n").ok_or("no line `;; ---`")?;
    let (a, b) = (graph(a)?, graph(b)?);
    for g in [&a, &b] {
        let d = diff(g, g);
        if !d.is_equal() || !d.notes.is_empty() {
            return Err(format!("differs from itself:\n{}", d.text(true)));
        }
    }
    let (there, back) = (diff(&a, &b), diff(&b, &a));
    if there.hunks.len() != back.hunks.len() {
        return Err(format!("one way:\n{}other way:\n{}", there.text(true), back.text(true)));
    }
    Ok(render(&there))
}

#[test]
fn differences_are_told_in_few_lines() {
    let mut problems = vec![];
    insta::glob!("../cases/diff", "*.txt", |path| match check(path) {
        Ok(text) => insta::assert_snapshot!(text),
        Err(e) => problems.push(format!("{}: {e}", path.file_name().unwrap().display())),
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Another name for every value and weight.
fn renamed(g: &Graph) -> Graph {
    let mut out = g.clone();
    for id in g.ids() {
        let node = out.node_mut(id);
        match &mut node.op {
            ir::Op::Input { .. } => continue,
            ir::Op::Weight { name, .. } => *name = format!("p{}", id.0),
            _ => {}
        }
        node.name = format!("v{}", id.0);
    }
    out
}

#[test]
fn names_are_no_part_of_the_program() {
    for dir in fixtures::BUNDLED.iter().map(|n| fixtures::model(n)) {
        let g = fixtures::compiled(&fixtures::import(&dir), 2, 2).graph;
        let d = diff(&g, &renamed(&g));
        assert!(d.is_equal(), "{}:\n{}", dir.display(), d.text(false));
        assert_eq!(d.notes.len(), 1);
    }
}

/// Without a rule, as `--no-rule` does it.
fn without(dir: &Path, rules: &[&str], tp: usize, pp: usize) -> Graph {
    let mut config = fixtures::config(tp, pp);
    config.rules.ban(&rules.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>()).unwrap();
    compile(&fixtures::import(dir), &config).unwrap().graph
}

/// A fusion that is taken apart by hand, at the site with a number.
fn take_apart(g: &Graph, site: usize) -> Graph {
    let mut out = Graph::new(&g.name);
    let mut map = vec![];
    let mut seen = 0;
    let mut parts = None;
    for (_, n) in g.nodes() {
        let inputs: Vec<ir::NodeId> = n.inputs.iter().map(|i| map[i.index()]).collect();
        let fused = matches!(n.op, ir::Op::ArResidualRmsNorm { .. });
        seen += usize::from(fused);
        let new = match &n.op {
            ir::Op::ArResidualRmsNorm { axis, eps } if seen - 1 == site && parts.is_none() => {
                let sum = out.add("apart.reduce", ir::Op::AllReduce { axis: *axis }, &inputs[..1]).unwrap();
                let sum = out.add("apart.sum", ir::Op::Add {}, &[sum, inputs[1]]).unwrap();
                let norm = out.add("apart.norm", ir::Op::RmsNorm { eps: *eps }, &[sum, inputs[2]]).unwrap();
                parts = Some((map.len(), norm, sum));
                norm
            }
            ir::Op::Get { index } if parts.is_some_and(|p| p.0 == n.inputs[0].index()) => {
                let (_, norm, sum) = parts.unwrap();
                if *index == 0 { norm } else { sum }
            }
            _ => out.push(ir::Node { inputs, ..n.clone() }),
        };
        map.push(new);
    }
    for o in g.outputs() {
        out.push_output(ir::Output { value: map[o.value.index()], ..o.clone() });
    }
    out
}

#[test]
fn one_lost_fusion_is_one_line() {
    for dir in fixtures::BUNDLED.iter().map(|n| fixtures::model(n)) {
        let g = fixtures::compiled(&fixtures::import(&dir), 2, 1).graph;
        let sites = g.nodes().filter(|(_, n)| matches!(n.op, ir::Op::ArResidualRmsNorm { .. })).count();
        assert_eq!(sites, 4, "{}", dir.display());
        for site in 0..sites {
            // Names do not matter to it.
            for other in [take_apart(&g, site), renamed(&take_apart(&g, site))] {
                let d = diff(&g, &other);
                assert_eq!(d.hunks.len(), 1, "{}, site {site}:\n{}", dir.display(), d.text(true));
                assert_eq!(d.hunks[0].kind, Kind::FusionLost);
                assert_eq!(d.hunks[0].before, ["ar_residual_rms_norm"]);
                assert_eq!(d.hunks[0].after, ["all_reduce", "add", "rms_norm"]);
                assert_eq!(d.hunks[0].sites.len(), 1);
            }
        }
    }
}

#[test]
fn banned_rules_change_few_lines() {
    let dir = fixtures::model("llama-dynamo-op18-past");
    let mut text = String::new();
    for (rules, tp, pp) in [
        (&["ar-residual-rms-norm"][..], 2, 1),
        (&["ar-residual-rms-norm", "add-rms-norm"], 2, 1),
        (&["ar-residual-rms-norm"], 2, 2),
        (&["silu-mul"], 2, 2),
    ] {
        let d = diff(&without(&dir, &[], tp, pp), &without(&dir, rules, tp, pp));
        text += &format!("## tp {tp}, pp {pp}, without {}\n{}{}", rules.join(", "), d.text(false), d.stat());
    }
    insta::assert_snapshot!(text);
}

#[test]
fn another_mesh_changes_few_lines() {
    let dir = fixtures::model("qwen3-dynamo-op18-past");
    let d = diff(&without(&dir, &[], 1, 1), &without(&dir, &[], 2, 1));
    insta::assert_snapshot!(d.text(false));
}

const MESH: [&str; 4] = ["--tp", "2", "--pp", "2"];
const MODEL: &str = "model/model.onnx";

#[test]
fn plans_are_compared() {
    let temp = workplace();
    let dir = temp.path();
    let plan = |name: &str, more: &[&str]| {
        ends(dir, 0, &[&["optimize", MODEL, "-o", name], more].concat());
    };
    plan("full", &MESH);
    plan("lost", &[&MESH[..], &["--no-rule", "ar-residual-rms-norm", "--no-rule", "add-rms-norm"]].concat());
    plan("flat", &["--tp", "2"]);
    assert_eq!(ends(dir, 0, &["diff", "full", "full"]).stdout, "no difference\n");
    let lost = ends(dir, 1, &["diff", "full", "lost"]);
    let flat = ends(dir, 1, &["diff", "full", "flat"]);
    let stat = ends(dir, 1, &["diff", "full", "lost", "--stat"]);
    insta::assert_snapshot!(format!("{}## flat\n{}## stat\n{}", lost.stdout, flat.stdout, stat.stdout));
    // The stages of a plan are the program that the plan was made from.
    ends(dir, 0, &[&["diff", "full", MODEL, "--stage", "extract"], &MESH[..]].concat());
    ends(dir, 0, &[&["snapshot", MODEL, "kept.sir"], &MESH[..]].concat());
    ends(dir, 0, &["diff", "full", "kept.sir"]);
    ends(dir, 1, &["diff", "kept.sir", "lost", "--full"]);
    ends(dir, 1, &["diff", "kept.sir", "full/stage0.sir"]);

    ends(dir, 1, &["diff", "full", "lost", "--report", "report.json"]);
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("report.json")).unwrap()).unwrap();
    let keys = ["schema", "equal", "notes", "ops.before", "ops.after", "fused.before", "fused.after"];
    check_keys(&report, &keys);
    let keys = ["kind", "stage", "before", "after", "names", "count"].map(|k| format!("hunks[].{k}"));
    check_keys(&report, &keys.each_ref().map(String::as_str));
    assert_eq!(report["equal"], false);
    assert_eq!(report["hunks"][0]["kind"], "fusion-lost");
    assert_eq!(report["fused"]["before"], 6);
    assert_eq!(report["fused"]["after"], 2);
    let ended = ends(dir, 0, &["diff", "full", "full", "--report", "-"]);
    assert!(ended.stdout.starts_with('{') && ended.stderr == "no difference\n", "{}", ended.stderr);
}

#[test]
fn snapshots_keep_a_graph_under_review() {
    let temp = workplace();
    let dir = temp.path();
    let args = |more: &[&'static str]| [&["snapshot", MODEL, "kept.sir", "--tp", "2"], more].concat();
    let kept = || std::fs::read_to_string(dir.join("kept.sir")).ok();
    // In CI a missing file is a failed check.
    let ended = sinter_in_ci(dir, &args(&[]));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("check failed: there is no snapshot kept.sir"), "{}", ended.stderr);
    assert_eq!(kept(), None);
    assert_eq!(ends(dir, 0, &args(&[])).stdout, "wrote kept.sir: 137 nodes\n");
    let first = kept().unwrap();
    assert_eq!(sinter_in_ci(dir, &args(&[])).code, Some(0));
    // A lost fusion fails the check and leaves the file alone.
    let ended = ends(dir, 1, &args(&["--no-rule", "silu-mul"]));
    assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
    assert!(ended.stdout.starts_with("- fused  silu_mul -> silu, mul   x2: "), "{}", ended.stdout);
    assert!(ended.stderr.starts_with("check failed: the graph is not the one in kept.sir"), "{}", ended.stderr);
    assert_eq!(kept().unwrap(), first);
    let ended = ends(dir, 0, &args(&["--no-rule", "silu-mul", "--update"]));
    assert!(ended.stdout.ends_with("wrote kept.sir: 139 nodes\n"), "{}", ended.stdout);
    assert_ne!(kept().unwrap(), first);
    ends(dir, 0, &args(&["--update"]));
    assert_eq!(kept().unwrap(), first);
    // Another name is no failure, but the file is no longer what would be written.
    std::fs::write(dir.join("kept.sir"), first.replace("%linear_3.matmul", "%other")).unwrap();
    let ended = ends(dir, 0, &args(&[]));
    assert!(ended.stdout.contains("kept.sir is the same program"), "{}", ended.stdout);
    assert!(ended.stdout.starts_with("note: 1 renamed value: %other -> %linear_3.matmul\n"), "{}", ended.stdout);
    // A broken file can be replaced, but not compared.
    std::fs::write(dir.join("kept.sir"), "graph").unwrap();
    assert!(ends(dir, 2, &args(&[])).stderr.contains("help: `--update` replaces the file"));
    ends(dir, 0, &args(&["--update"]));
    assert_eq!(kept().unwrap(), first);
    ends(dir, 0, &["snapshot", MODEL, "imported.sir", "--stage", "import"]);
    ends(dir, 0, &["diff", MODEL, "imported.sir"]);
}

#[test]
fn texts_stay_where_nothing_changes() {
    // Lines that are in one text only, and names that moved to other values, come from the lost fusions alone.
    let dir = fixtures::model("llama-dynamo-op18-past");
    let full = ir::print(&without(&dir, &[], 2, 2));
    for (rule, limit) in [("silu-mul", 4), ("ar-residual-rms-norm", 16)] {
        let other = ir::print(&without(&dir, &[rule], 2, 2));
        let lines: Vec<&str> = full.lines().collect();
        let kept: Vec<&str> = other.lines().filter(|l| lines.contains(l)).collect();
        let lost = lines.len() - kept.len();
        assert!(lost <= limit, "{rule}: {lost} lines changed");
        // What stays is in the same order.
        let mut rest = lines.iter();
        let moved: Vec<&&str> = kept.iter().filter(|l| !rest.any(|r| r == *l)).collect();
        assert!(moved.is_empty(), "{rule}: {moved:?}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let temp = workplace();
    let dir = temp.path();
    ends(dir, 0, &["optimize", MODEL, "-o", "plan"]);
    std::fs::create_dir(dir.join("folder")).unwrap();
    std::fs::write(dir.join("broken.sir"), "graph \"g\" {\n  input %x: f32[n\n}\n").unwrap();
    std::fs::write(dir.join("good.sir"), "graph \"g\" {\n  input %x: f32[n]\n  output \"x\" = %x\n}\n").unwrap();
    std::fs::create_dir(dir.join("changed")).unwrap();
    fixtures::copy(&dir.join("plan"), &dir.join("changed"));
    std::fs::write(dir.join("changed/stage0.sir"), "graph").unwrap();
    let cases: [&[&str]; 9] = [
        &["diff", "plan", "missing.sir"],
        &["diff", "plan", "missing.onnx"],
        &["diff", "folder", "plan"],
        &["diff", "good.sir", "broken.sir"],
        &["diff", "plan", "changed"],
        &["diff", "plan", MODEL],
        &["diff", "good.sir", "good.sir", "--report", "no/report.json"],
        &["snapshot", "missing.onnx", "kept.sir"],
        &["snapshot", MODEL, "no/kept.sir"],
    ];
    let mut text = String::new();
    for args in cases {
        let ended = cli::check(dir, 2, args);
        assert_eq!(ended.stdout, "", "{args:?}");
        text += &format!("## {}\n{}", args.join(" "), ended.stderr);
    }
    assert!(!dir.join("kept.sir").exists());
    insta::assert_snapshot!(text);
}

/// The graph with one operand of one node exchanged.
fn reading(g: &Graph, node: ir::NodeId, slot: usize, other: ir::NodeId) -> Graph {
    let mut out = Graph::new(&g.name);
    for (id, n) in g.nodes() {
        let mut n = n.clone();
        if id == node {
            n.inputs[slot] = other;
        }
        out.push(n);
    }
    g.outputs().iter().for_each(|o| out.push_output(o.clone()));
    out
}

#[test]
fn no_change_goes_unnoticed() {
    let g = fixtures::compiled(&fixtures::import(&fixtures::model("qwen3-dynamo-op18-past")), 2, 2).graph;
    let (mut changes, mut lines) = (0, 0);
    for (id, n) in g.nodes() {
        for (slot, &i) in n.inputs.iter().enumerate() {
            let same = |o: &ir::NodeId| *o != i && g.node(*o).types == g.node(i).types;
            for other in [g.ids().take(id.index()).find(same), g.ids().take(id.index()).filter(same).last()] {
                let Some(changed) = other.map(|o| reading(&g, id, slot, o)).filter(|c| ir::verify(c).is_ok()) else {
                    continue;
                };
                for b in [renamed(&changed), changed] {
                    let (d, back) = (diff(&g, &b), diff(&b, &g));
                    assert!(!d.is_equal() && !back.is_equal(), "{} reads another value at {slot}", n.name);
                    lines += d.hunks.len();
                    changes += 1;
                }
            }
        }
    }
    assert!(changes > 200, "{changes} changes");
    assert!(lines < 2 * changes, "{lines} lines for {changes} changes");
}
