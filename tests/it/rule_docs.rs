//! What is written about rules: the reference comes from the program, and the advice is true.

use sinter::check::{Verdict, VerifyConfig, refusal, verify};
use sinter::rules::signature::{ValueSort, result};
use sinter::rules::vocab::FUNCTIONS;
use sinter::rules::{RuleError, RuleSet, reference};

use crate::fixtures::root;

fn readme() -> String {
    std::fs::read_to_string(root().join("rules/README.md")).unwrap()
}

/// Fenced blocks with their language.
fn blocks(text: &str) -> Vec<(&str, &str)> {
    let mut parts = text.split("```");
    parts.next();
    let mut out = vec![];
    while let (Some(block), Some(_)) = (parts.next(), parts.next()) {
        out.push(block.split_once('\n').unwrap());
    }
    out
}

#[test]
fn the_reference_is_that_of_the_program() {
    let path = root().join("rules/REFERENCE.md");
    if std::env::var("INSTA_UPDATE").is_ok_and(|v| v == "always") {
        std::fs::write(&path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == reference(), "rules/REFERENCE.md is not up to date: run `make bless`");
}

#[test]
fn it_is_known_what_each_function_gives() {
    for f in FUNCTIONS.iter().filter(|f| f.name != "if") {
        assert_ne!(result(f.name), ValueSort::Any, "`{}` has no row in rules/signature.rs", f.name);
    }
}

#[test]
fn advised_rules_are_well_formed_and_true() {
    let text = readme();
    let (mut advised, mut problems) = (0, vec![]);
    for (_, block) in blocks(&text).iter().filter(|(language, _)| *language == "lisp") {
        let Some(at) = block.find(";; better") else { continue };
        // The snippets leave the phase to the file.
        let source = format!("(phase shard)\n{}", &block[at..]);
        let rules = match RuleSet::read([("README.md", source.as_str())]) {
            Ok(rules) => rules,
            Err(e) => {
                problems.push(format!("{e}\n{source}"));
                continue;
            }
        };
        for rule in rules.rules() {
            advised += 1;
            let verdict = verify(rule, None, VerifyConfig::standard());
            if !matches!(verdict, Verdict::Holds { .. }) {
                problems.push(refusal(&rules, rule, &verdict).unwrap_or_default());
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(advised >= 9, "only {advised} snippets are marked `better`");
}

#[test]
fn the_example_of_errors_is_what_people_see() {
    let text = readme();
    let section = &text[text.find("\n## Errors").unwrap()..];
    let blocks = blocks(section);
    let [("lisp", source), (_, shown)] = blocks[..] else { panic!("{} blocks", blocks.len()) };
    match RuleSet::read([("r/mine.rules", source)]) {
        Err(RuleError::Invalid(errors)) => assert_eq!(errors.join("\n"), shown.trim_end()),
        _ => panic!("the example has no mistake"),
    }
}
