//! `sinter rules stats` counts what rules do on a model, and `sinter rules reference` prints the reference.

use serde_json::Value;

use crate::cli::{check, check_keys, workplace};

const MODEL: &str = "model/model.onnx";

/// The columns of a rule: phase, matches, applications.
fn row(text: &str, rule: &str) -> Option<(String, usize, usize)> {
    let words = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let found = words.filter(|w| w.first() == Some(&rule)).collect::<Vec<_>>();
    match found[..] {
        [] => None,
        [ref w] => {
            assert!(w.len() == 5 && w[4].parse::<f64>().is_ok(), "{w:?}");
            Some((w[1].to_owned(), w[2].parse().unwrap(), w[3].parse().unwrap()))
        }
        _ => panic!("{rule} has {} rows", found.len()),
    }
}

#[test]
fn rules_that_fire_are_counted_and_dead_ones_stand_apart() {
    let temp = workplace();
    let dir = temp.path();
    let text = check(dir, 0, &["rules", "stats", MODEL, "--tp", "2"]).stdout;
    assert!(text.starts_with("model/model.onnx: tp 2 x pp 1, saturated\n"), "{text}");
    let header: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(header, ["rule", "phase", "matches", "applied", "time", "in", "ms"]);
    let (phase, matches, applied) = row(&text, "silu-mul").unwrap();
    assert_eq!((&*phase, applied), ("fuse", 4));
    assert!(matches >= applied);
    assert_eq!(row(&text, "gelu-mul"), Some(("fuse".to_owned(), 0, 0)));
    let place = |what: &str| text.find(&format!("\n{what}")).unwrap();
    assert!(place("silu-mul ") < place("no match\n") && place("no match\n") < place("gelu-mul "), "{text}");
    assert!(place("gelu-mul ") < place("total "), "{text}");
    // One rank has nothing to cut.
    let alone = check(dir, 0, &["rules", "stats", MODEL]).stdout;
    assert_eq!(row(&alone, "shard-matmul-columns"), Some(("shard".to_owned(), 0, 0)));
    assert!(row(&text, "shard-matmul-columns").unwrap().1 > 0);
    // The dearest one stands first.
    let live = text.lines().skip(2).take_while(|l| *l != "no match");
    let times: Vec<f64> = live.map(|l| l.split_whitespace().last().unwrap().parse().unwrap()).collect();
    assert!(times.len() > 10 && times.is_sorted_by(|a, b| a >= b), "{text}");
}

#[test]
fn banned_rules_are_absent_and_those_of_the_caller_are_present() {
    let temp = workplace();
    let dir = temp.path();
    std::fs::create_dir(dir.join("own")).unwrap();
    let own = "(phase raise)\n;; -(-x) == x\n(rule negated-twice (neg (neg ?x)) => ?x)\n\
               (phase fuse)\n;; x * sigmoid(x) * up\n\
               (rule own-silu (mul (silu ?x) ?u) => (mul (mul ?x (sigmoid ?x)) ?u) :when ((same-shape ?x ?u)))\n";
    std::fs::write(dir.join("own/own.rules"), own).unwrap();
    let text = check(dir, 0, &["rules", "stats", MODEL, "--rules", "own", "--no-rule", "silu-mul"]).stdout;
    assert_eq!(row(&text, "silu-mul"), None);
    assert_eq!(row(&text, "negated-twice"), Some(("raise".to_owned(), 0, 0)));
    assert!(row(&text, "own-silu").unwrap().2 >= 2, "{text}");
    // A wrong rule is refused before it is used.
    std::fs::write(dir.join("own/own.rules"), own.replace("(neg (neg ?x)) => ?x", "(neg (neg ?x)) => (neg ?x)"))
        .unwrap();
    check(dir, 1, &["rules", "stats", MODEL, "--rules", "own"]);
    check(dir, 2, &["rules", "stats", MODEL, "--no-rule", "silu-mull"]);
    check(dir, 2, &["rules", "stats", "absent.onnx"]);
}

#[test]
fn the_report_keeps_its_keys_and_order() {
    let temp = workplace();
    let dir = temp.path();
    let report: Value =
        serde_json::from_str(&check(dir, 0, &["rules", "stats", MODEL, "--report", "-"]).stdout).unwrap();
    check_keys(
        &report,
        &[
            "schema",
            "model",
            "tp",
            "pp",
            "stop",
            "matches",
            "applied",
            "time_ms",
            "rules[].name",
            "rules[].phase",
            "rules[].place",
            "rules[].matches",
            "rules[].applied",
            "rules[].time_ms",
        ],
    );
    assert_eq!(report["schema"], 1);
    let rules = report["rules"].as_array().unwrap();
    let sum = |key: &str| rules.iter().map(|r| r[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((report["matches"].as_u64(), report["applied"].as_u64()), (Some(sum("matches")), Some(sum("applied"))));
    let listed = check(dir, 0, &["rules", "list"]).stdout;
    let names: Vec<&str> = listed.lines().map(|l| l.split_whitespace().nth(1).unwrap()).collect();
    assert!(rules.iter().map(|r| r["name"].as_str().unwrap()).eq(names));
}

#[test]
fn the_reference_is_printed() {
    let temp = tempfile::tempdir().unwrap();
    assert_eq!(check(temp.path(), 0, &["rules", "reference"]).stdout, sinter::rules::reference());
}
