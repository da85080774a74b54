//! Verification of rules: true ones hold, wrong ones are refused with a counter-example, guards are needed.

use std::path::Path;

use sinter::check::{self, Verdict, VerifyConfig, refusal};
use sinter::rules::{Pack, RuleSet};

/// Every rule of the program holds on random instances.
#[test]
fn bundled_rules_hold() {
    let rules = RuleSet::bundled().unwrap();
    let mut problems = vec![];
    for rule in rules.rules() {
        let verdict = check::verify(rule, None, VerifyConfig::standard());
        problems.extend(refusal(&rules, rule, &verdict));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Without any one guard of its `:if` each rule of the program is wrong, and verification notices. Guards of
/// `:when` are left out whenever a rule is verified.
#[test]
fn a_rule_without_one_of_its_guards_is_refused() {
    let rules = RuleSet::bundled().unwrap();
    let (mut problems, mut guards) = (vec![], 0);
    for rule in rules.rules() {
        for (i, verdict) in check::mutations(rule, VerifyConfig::standard()) {
            guards += 1;
            if !matches!(verdict, Verdict::Wrong(_)) {
                let guard = rules.excerpt(rule, &rule.guards[i].span);
                problems.push(format!("{}:{}: {} holds without {guard}", rule.file, rule.line, rule.name));
            }
        }
    }
    println!("{guards} guards left out");
    assert!(guards > 60);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What people are told of a wrong rule.
fn check(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let pack = Pack::read("", None, &[(name.clone(), text)]);
    let rules = RuleSet::load(vec![pack], &[]).map_err(|e| e.to_string())?;
    let mut out = String::new();
    for rule in rules.rules().iter().filter(|r| r.file.ends_with(&name)) {
        let verdict = check::verify(rule, None, VerifyConfig::standard());
        let text = refusal(&rules, rule, &verdict).ok_or_else(|| format!("`{}` is accepted", rule.name))?;
        out += &format!("{text}\n");
    }
    Ok(out)
}

#[test]
fn wrong_rules_are_refused_with_a_counter_example() {
    let mut problems = vec![];
    insta::glob!("../cases/wrong_rules", "*.rules", |path| match check(path) {
        Ok(text) => insta::assert_snapshot!(text),
        Err(e) => problems.push(format!("{}: {e}", path.file_name().unwrap().display())),
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
