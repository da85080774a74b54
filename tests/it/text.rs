//! The text form of graphs: it reads back, and what cannot be read is refused with its line.

use std::path::Path;

use sinter::ir;

use crate::fixtures;

/// Why a text is refused: by the parser, or else by the verifier.
fn check(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    match ir::parse(&text) {
        Err(e) if e.line == 0 || e.line > text.lines().count() => Err(format!("there is no line {}", e.line)),
        Err(e) => Ok(e.to_string()),
        Ok(g) => ir::verify(&g).err().map(|e| e.to_string()).ok_or("accepted".to_owned()),
    }
}

/// `parse` gives the graph that was printed.
fn check_round_trip(graph: &ir::Graph) {
    let text = ir::print(graph);
    let back = ir::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", graph.name));
    assert_eq!(ir::print(&back), text, "{}", graph.name);
    ir::verify(&back).unwrap_or_else(|e| panic!("{}: {e}", graph.name));
    assert_eq!(back.outputs().len(), graph.outputs().len());
}

#[test]
fn printed_graphs_read_back() {
    for dir in fixtures::BUNDLED.iter().map(|n| fixtures::model(n)) {
        let model = fixtures::import(&dir);
        check_round_trip(&model.graph);
        let c = fixtures::compiled(&model, 2, 2);
        check_round_trip(&c.raised);
        check_round_trip(&c.graph);
    }
}

#[test]
fn unreadable_texts_are_refused_with_their_line() {
    let mut problems = vec![];
    insta::glob!("../cases/text", "*.sir", |path| match check(path) {
        Ok(text) => insta::assert_snapshot!(text),
        Err(e) => problems.push(format!("{}: {e}", path.file_name().unwrap().display())),
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
