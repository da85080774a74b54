//! Cases for rules: graph text in, extracted graph out, and the graph with the rule's own terms where
//! extraction does not take them. `sinter::check::case` says what a case is.

use std::path::Path;

use sinter::check::case::Case;
use sinter::ir::{self, Graph};
use sinter::rules::RuleSet;

/// Checks a case; the text of the extracted graph and of that with the rule's terms.
fn check(path: &Path, rules: &RuleSet) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    let case = Case::parse(&format!("{name}.txt"), &name, &text).map_err(|e| e.to_string())?;
    let checked = case.check(rules).map_err(|e| e.to_string())?;
    let mut text = ir::print(&checked.extracted);
    // Larger cases show the whole, and what was extracted anyway is not shown twice.
    if let Some(forced) = checked.forced
        && case.fires() == Some(&name)
        && operators(&forced) != operators(&checked.extracted)
    {
        text += &format!("\n; with the terms of {name}\n{}", ir::print(&forced));
    }
    Ok(text)
}

/// The operators of a graph, whatever their order.
fn operators(graph: &Graph) -> Vec<String> {
    let mut out: Vec<String> = graph.nodes().map(|(_, n)| n.op.to_string()).collect();
    out.sort_unstable();
    out
}

#[test]
fn rules_fire_and_keep_values() {
    let rules = RuleSet::bundled().unwrap();
    let mut problems = vec![];
    insta::glob!("../cases/saturate", "*.txt", |path| match check(path, &rules) {
        Ok(text) => insta::assert_snapshot!(text),
        Err(e) => problems.push(format!("{}: {e}", path.file_name().unwrap().display())),
    });
    assert!(problems.is_empty(), "{} cases fail:\n{}", problems.len(), problems.join("\n"));
}
