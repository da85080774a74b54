//! Cases of rules that are wrong, and the commands that run and start rule folders.

use std::path::Path;

use sinter::check::case::Case;
use sinter::rules::RuleSet;

use crate::cli::check as sinter;

/// Why a case does not pass.
fn check(path: &Path, rules: &RuleSet) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let name = path.file_stem().unwrap().to_string_lossy();
    match Case::parse(&format!("{name}.txt"), &name, &text).and_then(|c| c.check(rules)) {
        Ok(_) => Err("the case passes".to_owned()),
        Err(e) => Ok(e.to_string()),
    }
}

#[test]
fn wrong_cases_are_refused_with_their_line() {
    let rules = RuleSet::bundled().unwrap();
    let mut problems = vec![];
    insta::glob!("../cases/case_errors", "*.txt", |path| match check(path, &rules) {
        Ok(text) => insta::assert_snapshot!(text),
        Err(e) => problems.push(format!("{}: {e}", path.file_name().unwrap().display())),
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A case on which `x * sigmoid(x) * up` is computed in the phase `fuse`.
const GATE: &str = ";; phases: fuse
graph \"case\" {
  input %x: f32[batch, 8]
  input %up: f32[batch, 8]
  %g: f32[batch, 8] = sigmoid(%x)
  %s: f32[batch, 8] = mul(%x, %g)
  %y: f32[batch, 8] = mul(%s, %up)
  output \"y\" = %y
}
";

#[test]
fn a_new_rule_passes_its_cases_in_every_phase() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    for phase in ["raise", "shard", "fuse"] {
        let name = format!("my-{phase}");
        let made = sinter(dir, 0, &["rules", "new", &name, "--phase", phase]).stdout;
        assert_eq!(made.matches("wrote ").count(), 3, "{made}");
        // Alone and with the others.
        sinter(dir, 0, &["rules", "new", &name, "--phase", phase, "--dir", phase]);
        let tested = sinter(dir, 0, &["rules", "test", phase]).stdout;
        assert!(tested.ends_with("2 cases: 2 ok, 0 failed\n"), "{tested}");
        let case = std::fs::read_to_string(dir.join(format!("rules/cases/{name}.txt"))).unwrap();
        let (before, after) = case.split_once(";; after\n").unwrap();
        assert!(!before.contains(after), "the example of {phase} changes nothing:\n{case}");
    }
    let tested = sinter(dir, 0, &["rules", "test", "rules"]).stdout;
    assert!(tested.ends_with("6 cases: 6 ok, 0 failed\n"), "{tested}");
    assert!(!tested.contains("note:"), "{tested}");
    assert!(sinter(dir, 0, &["rules", "list", "--rules", "rules"]).stdout.contains("my-shard"));
}

#[test]
fn failures_say_what_differs() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    std::fs::create_dir_all(dir.join("own/cases")).unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.join("own").join(name), text).unwrap();
    let rule = |name: &str, guard: &str| {
        format!("(rule {name} :phase fuse (mul (mul ?x (sigmoid ?x)) ?up) => (silu_mul ?x ?up) :if ({guard}))\n")
    };
    let wrong = "(rule wrong :phase fuse (neg (sigmoid ?x)) => (sigmoid ?x))\n";
    let uncased = "(rule uncased :phase fuse (neg (neg ?x)) => ?x)\n";
    put("own.rules", &format!("{}{wrong}{uncased}", rule("gate", "(same-shape ?x ?up)")));
    put("cases/gate.txt", GATE);
    let broadcast = GATE.replace("%up: f32[batch, 8]", "%up: f32[8]");
    put("cases/blocked-gate.txt", &broadcast.replacen(";; phases", ";; blocked: gate\n;; phases", 1));
    let tested = sinter(dir, 0, &["rules", "test", "own"]).stdout;
    assert!(tested.contains("ok      own/cases/gate.txt (no `;; after`: --update writes it)\n"), "{tested}");
    assert!(tested.contains("note: rule `uncased` has no case: write own/cases/uncased.txt\n"), "{tested}");
    assert!(tested.contains("note: rule `wrong` has no case") && !tested.contains("rule `gate`"), "{tested}");

    // What is written is accepted, and nothing is written again.
    let tested = sinter(dir, 0, &["rules", "test", "own", "--update"]).stdout;
    assert_eq!(tested.matches(" (written)").count(), 2, "{tested}");
    let case = std::fs::read_to_string(dir.join("own/cases/gate.txt")).unwrap();
    assert!(case.starts_with(GATE) && case.contains("= silu_mul(%x, %up)"), "{case}");
    let tested = sinter(dir, 0, &["rules", "test", "own", "--update"]).stdout;
    assert!(!tested.contains("(written)"), "{tested}");

    // Another graph than the one stated.
    put("cases/gate.txt", &case.replace("silu_mul(%x, %up)", "silu_mul(%up, %x)"));
    let tested = sinter(dir, 1, &["rules", "test", "own"]).stdout;
    for line in ["  -   %y: f32[batch, 8] = silu_mul(%up, %x)\n", "  +   %y: f32[batch, 8] = silu_mul(%x, %up)\n"] {
        assert!(tested.contains(line), "{tested}");
    }
    assert!(tested.ends_with("2 cases: 1 ok, 1 failed\n"), "{tested}");
    put("cases/gate.txt", &case);

    // A rule whose sides differ, though extraction would not take its terms.
    let negated = GATE.replace("= mul(%s, %up)", "= neg(%g)").replace("sigmoid(%x)", "sigmoid(%up)");
    put("cases/wrong.txt", &negated);
    let tested = sinter(dir, 1, &["rules", "test", "own"]).stdout;
    assert!(tested.contains("FAILED  own/cases/wrong.txt: the extracted graph computes another `y`"), "{tested}");
    let before = std::fs::read_to_string(dir.join("own/cases/wrong.txt")).unwrap();
    sinter(dir, 1, &["rules", "test", "own", "--update"]);
    assert_eq!(std::fs::read_to_string(dir.join("own/cases/wrong.txt")).unwrap(), before, "a failure is not accepted");
    std::fs::remove_file(dir.join("own/cases/wrong.txt")).unwrap();

    // Without the guard the rule equates different types.
    put("own.rules", &rule("gate", ""));
    let tested = sinter(dir, 1, &["rules", "test", "own"]).stdout;
    assert!(tested.contains("FAILED  own/cases/blocked-gate.txt: "), "{tested}");

    // A case that cannot be run as it is written does not hide the others.
    put("own.rules", &rule("gate", "(same-shape ?x ?up)"));
    put("cases/blocked-gate.txt", ";; phase: fuse\n");
    let ended = sinter(dir, 2, &["rules", "test", "own"]);
    assert!(ended.stdout.contains("FAILED  own/cases/blocked-gate.txt:1: unknown key `phase`"), "{}", ended.stdout);
    assert!(ended.stdout.contains("ok      own/cases/gate.txt\n"), "{}", ended.stdout);
    assert_eq!(ended.stderr, "error: 1 of 2 cases cannot be run as they are written\n");
}
