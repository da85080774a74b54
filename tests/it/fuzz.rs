//! Random and damaged input is refused or accepted, but never causes a panic.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use sinter::check::case::Case;
use sinter::import;
use sinter::ir;
use sinter::rules::{BUNDLED, RuleSet, parse_file};

use crate::fixtures;

/// The smallest bundled model.
static MODEL: LazyLock<Vec<u8>> =
    LazyLock::new(|| std::fs::read(fixtures::model("llama3-dynamo-op18-none").join("model.onnx")).unwrap());

/// A printed graph.
static GRAPH: LazyLock<String> =
    LazyLock::new(|| ir::print(&fixtures::import(&fixtures::model("llama3-dynamo-op18-none")).graph));

/// A graph that stays readable after some edits.
const SMALL: &str = "graph \"x\" {
  input %x: f32[batch, 4]
  %y: f32[batch, 4] = neg(%x)
  %z: f32[batch, 2] = slice(%y) {axis = 1, start = 0, end = 2}
  output \"y\" = %z
}
";

/// Opens bytes as a model and imports it as far as possible.
fn check_model(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    check_file(&path);
}

fn check_file(path: &Path) {
    let Ok(model) = import::open(path) else { return };
    drop(model.listing());
    if let Ok(i) = model.import() {
        ir::verify(&i.graph).unwrap();
    }
}

/// What parses must also print and verify without a panic.
fn check_graph(text: &str) {
    if let Ok(g) = ir::parse(text) {
        drop(ir::verify(&g));
        let printed = ir::print(&g);
        let back = ir::parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
        assert_eq!(ir::print(&back), printed);
    }
}

/// Errors must render.
fn check_rules(text: &str) {
    if let Err(errors) = parse_file("fuzz.rules", text) {
        assert!(!errors.is_empty());
        errors.iter().for_each(|e| drop(e.render(text)));
    }
}

/// The cases of the bundled rules with their names, in a fixed order.
static CASES: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let entries = std::fs::read_dir(fixtures::root().join("tests/cases/saturate")).unwrap();
    let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    let name = |p: &Path| p.file_stem().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
});

/// A case passes or does not, but no rule makes another program of it. A kernel's panic is in the message.
fn check_case(name: &str, text: &str) {
    static RULES: LazyLock<RuleSet> = LazyLock::new(|| RuleSet::bundled().unwrap());
    let checked = Case::parse("fuzz.txt", name, text).and_then(|c| c.check(&RULES));
    if let Err(e) = checked {
        let e = e.to_string();
        assert!(!e.contains("panic") && !e.contains("computes another"), "{e}\n{text}");
    }
}

/// Replaces, removes and doubles characters.
fn damage(text: &str, edits: &[(usize, u8, char)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for &(at, kind, c) in edits {
        if chars.is_empty() {
            break;
        }
        let at = at % chars.len();
        match kind % 4 {
            0 => chars[at] = c,
            1 => drop(chars.remove(at)),
            2 => chars.insert(at, c),
            _ => chars.truncate(at),
        }
    }
    chars.into_iter().collect()
}

fn edits() -> impl Strategy<Value = Vec<(usize, u8, char)>> {
    let c = prop_oneof![Just('('), Just(')'), Just('"'), Just('?'), Just('%'), Just(';'), Just('ü'), any::<char>()];
    prop::collection::vec((any::<usize>(), any::<u8>(), c), 1..6)
}

/// Few cases, or `PROPTEST_CASES`; failures are printed and not written into the source folder.
fn config(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn random_bytes_are_no_model(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        check_model(&bytes);
    }

    #[test]
    fn damaged_models(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        tail in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        header in any::<bool>(),
    ) {
        let mut bytes = MODEL.clone();
        // The nodes come before the tensor data, which hardly matters.
        let reach = if header { bytes.len().min(60_000) } else { bytes.len() };
        for (at, to) in edits {
            bytes[at.index(reach)] = to;
        }
        if let Some(end) = tail {
            bytes.truncate(end.index(bytes.len()));
        }
        check_model(&bytes);
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn random_text(text in "\\PC{0,200}") {
        check_graph(&text);
        check_rules(&text);
    }

    #[test]
    fn random_rules(words in prop::collection::vec(
        prop::sample::select(vec!["(", ")", "rule", "a", "=>", ":if", ":match", ":yield", ":phase", "fuse", "?x", "?f:unary",
            "?m...", "mul", "neg", "softmax", ":axis", "1", "-2.5", "true", "tp", "let", "=", "const", ":like", ";; c\n"]), 0..40)) {
        check_rules(&words.join(" "));
        check_rules(&format!("(phase fuse) (rule a {})", words.join(" ")));
    }

    #[test]
    fn damaged_rules(file in 0..BUNDLED.len(), edits in edits()) {
        check_rules(&damage(BUNDLED[file].1, &edits));
    }

    #[test]
    fn damaged_graphs(start in any::<prop::sample::Index>(), edits in edits()) {
        let lines: Vec<&str> = GRAPH.lines().collect();
        let start = start.index(lines.len());
        let few = lines[start..lines.len().min(start + 12)].join("\n");
        check_graph(&damage(&format!("graph \"x\" {{\n{few}\n}}\n"), &edits));
        check_graph(&damage(SMALL, &edits));
    }

    #[test]
    fn damaged_cases(
        file in any::<prop::sample::Index>(),
        digits in prop::collection::vec((any::<prop::sample::Index>(), prop::char::range('0', '9')), 1..3),
        others in prop::option::weighted(0.2, edits()),
    ) {
        // Other numbers leave the case readable, so that it is executed.
        let (name, text) = &CASES[file.index(CASES.len())];
        let mut text: Vec<char> = text.chars().collect();
        let is_place = |i: usize| text[i].is_ascii_digit() && !text[..i].ends_with(&['f']) && !text[..i].ends_with(&['f', '3']);
        let places: Vec<usize> = (0..text.len()).filter(|&i| is_place(i)).collect();
        digits.iter().filter(|_| !places.is_empty()).for_each(|(at, c)| text[places[at.index(places.len())]] = *c);
        let text: String = text.into_iter().collect();
        check_case(name, &damage(&text, &others.unwrap_or_default()));
    }
}
