//! Rule files with mistakes: the exact text that people are shown.
//!
//! The header line `;; errors: N` states how many mistakes a file has; all of them must be reported. Each kind
//! of mistake has the files `KIND-1.rules`, `KIND-2.rules`, .. and `KIND-ok.rules`, which looks alike and has none.

use std::collections::BTreeMap;
use std::path::Path;

use sinter::rules::{RuleError, RuleSet};

use crate::fixtures::root;

/// Every kind of mistake that reading finds.
const KINDS: &[&str] = &[
    "attribute-kind",
    "attribute-twice",
    "disconnected-term",
    "duplicate-name",
    "element-types",
    "equal-sides",
    "get-out-of-range",
    "guard-argument",
    "guard-arity",
    "guard-kind",
    "kernel",
    "let-in-when",
    "missing-attribute",
    "no-name",
    "no-phase",
    "no-sides",
    "operand-order",
    "operator-arity",
    "shadowed-variable",
    "subsumed",
    "syntax",
    "tuple-and-tensor",
    "two-sorts",
    "unbound-variable",
    "undirected-sum",
    "unknown-attribute",
    "unknown-form",
    "unknown-guard",
    "unknown-keyword",
    "unknown-operator",
    "unknown-phase",
    "unused-binding",
    "wrong-sort",
];

/// The rendered errors of a file; `None` where there are to be none.
fn check(path: &Path) -> Result<Option<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let expected: Option<usize> = text.lines().next().and_then(|l| l.strip_prefix(";; errors: ")?.trim().parse().ok());
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    match RuleSet::read([(name.as_str(), text.as_str())]) {
        Ok(_) if expected == Some(0) => Ok(None),
        Ok(_) => Err("no mistake was found".to_owned()),
        Err(RuleError::Invalid(errors)) if Some(errors.len()) == expected => Ok(Some(errors.join("\n"))),
        Err(RuleError::Invalid(errors)) => {
            Err(format!("{} mistakes instead of {expected:?}:\n{}", errors.len(), errors.join("\n")))
        }
        Err(e) => Err(e.to_string()),
    }
}

#[test]
fn every_mistake_is_reported_with_its_place() {
    let mut problems = vec![];
    insta::glob!("../cases/rule_errors", "*.rules", |path| match check(path) {
        Ok(Some(text)) => insta::assert_snapshot!(text),
        Ok(None) => {}
        Err(e) => problems.push(format!("{}: {e}", path.file_name().unwrap().display())),
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_kind_of_mistake_is_shown_twice_and_avoided_once() {
    let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for entry in std::fs::read_dir(root().join("tests/cases/rule_errors")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let (kind, which) = name.trim_end_matches(".rules").rsplit_once('-').unwrap();
        if which != "ok" && which.parse::<usize>().is_err() {
            continue;
        }
        let (failing, passing) = found.entry(kind.to_owned()).or_default();
        *if which == "ok" { passing } else { failing } += 1;
    }
    for kind in KINDS {
        let (failing, passing) = found.remove(*kind).unwrap_or_default();
        assert!(failing >= 2 && passing >= 1, "{kind}: {failing} failing and {passing} passing examples");
    }
    assert!(found.is_empty(), "not in KINDS: {found:?}");
}

#[test]
fn mistakes_of_several_files_are_reported_together() {
    let good = "(rule a :phase raise (mul ?x (sigmoid ?x)) => (silu ?x))";
    let again = "(rule a :phase raise (neg (neg ?x)) => ?x)\n(rule c :phase fuse (mul (sigmoid ?x) ?x) => (silu ?x))";
    let bad = "(rule b :phase raise (nag ?x) => ?x)";
    let Err(RuleError::Invalid(errors)) = RuleSet::read([("a.rules", good), ("b.rules", again), ("c.rules", bad)])
    else {
        panic!("three mistakes were accepted");
    };
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn nesting_has_a_limit() {
    let text = format!("(rule deep :phase raise {}?x{} => ?x)", "(neg ".repeat(100_000), ")".repeat(100_000));
    let Err(RuleError::Invalid(errors)) = RuleSet::read([("deep.rules", text.as_str())]) else {
        panic!("a term of 100000 operators was accepted");
    };
    assert!(errors[0].contains("nested deeper"), "{}", &errors[0][..200]);
}

#[test]
fn named_terms_that_multiply_are_refused() {
    let terms: Vec<String> = (0..60).map(|i| format!("(?t{} (add ?t{i} ?t{i}))", i + 1)).collect();
    let rule = |left: &str, right: &str| format!("(rule wide :phase raise :match {left} :yield {right})");
    let text = rule(&format!("({})", terms.join(" ")), "((?t60 (neg ?t0)))");
    let Err(RuleError::Invalid(errors)) = RuleSet::read([("wide.rules", text.as_str())]) else {
        panic!("a pattern of 2^60 terms was accepted");
    };
    assert!(errors.len() == 1 && errors[0].contains("more than 1000 terms"), "{errors:?}");
    // On the right each name is built once.
    let text = rule("((?t0 (neg ?x)))", &format!("({} (?t0 (abs ?t60)))", terms.join(" ")));
    assert!(RuleSet::read([("wide.rules", text.as_str())]).is_ok());
}
