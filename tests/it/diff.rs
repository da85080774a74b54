//! What differs between two graphs: the lines that a reviewer reads.

use std::path::Path;

use sinter::diff::{Diff, Kind, diff};
use sinter::ir::{self, Graph};
use sinter::pipeline::compile;

use crate::fixtures;

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
