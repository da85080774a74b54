//! Rule files with mistakes: the exact text that people are shown.
//!
//! The header line `;; errors: N` states how many mistakes a file has; all of them must be reported.

use std::path::Path;

use sinter::rules::{RuleError, RuleSet};

/// The rendered errors of a file.
fn check(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let expected: Option<usize> = text.lines().next().and_then(|l| l.strip_prefix(";; errors: ")?.trim().parse().ok());
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    match RuleSet::read([(name.as_str(), text.as_str())]) {
        Ok(_) => Err("no mistake was found".to_owned()),
        Err(RuleError::Invalid(errors)) if Some(errors.len()) == expected => Ok(errors.join("\n")),
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
        Ok(text) => insta::assert_snapshot!(text),
        Err(e) => problems.push(format!("{}: {e}", path.file_name().unwrap().display())),
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn mistakes_of_several_files_are_reported_together() {
    let good = "(rule a :phase raise (mul ?x (sigmoid ?x)) => (silu ?x))";
    let again = "(rule a :phase raise (neg (neg ?x)) => ?x)";
    let bad = "(rule b :phase raise (nag ?x) => ?x)";
    let Err(RuleError::Invalid(errors)) = RuleSet::read([("a.rules", good), ("b.rules", again), ("c.rules", bad)])
    else {
        panic!("two mistakes were accepted");
    };
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(
        errors[0].contains("b.rules:1:7") && errors[0].contains("first defined in a.rules, line 1"),
        "{}",
        errors[0]
    );
    assert!(errors[1].contains("c.rules:1:23") && errors[1].contains("did you mean `neg`?"), "{}", errors[1]);
}
