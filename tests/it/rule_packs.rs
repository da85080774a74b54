//! Rule packs: folders of rule files with a manifest. Each folder of `tests/cases/rule_packs` is one.

use std::path::Path;
use std::process::Command;

use sinter::rules::{MANIFEST, Pack, RuleError, RuleSet};

use crate::fixtures::root;

fn pack(dir: &Path) -> Pack {
    let mut files = vec![];
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".rules") {
            files.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
    let manifest = std::fs::read_to_string(dir.join(MANIFEST)).unwrap();
    Pack::read(&dir.file_name().unwrap().to_string_lossy(), Some(&manifest), &files)
}

fn case(name: &str) -> Pack {
    pack(&root().join("tests/cases/rule_packs").join(name))
}

fn errors(packs: Vec<Pack>) -> String {
    match RuleSet::load(packs, &[]) {
        Err(RuleError::Invalid(errors)) => errors.join("\n"),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("the packs were accepted"),
    }
}

#[test]
fn every_defect_of_a_manifest_is_reported_with_its_place() {
    insta::glob!("../cases/rule_packs", "*/pack.json", |path| {
        let p = pack(path.parent().unwrap());
        if p.name.as_deref() != Some("whole") {
            insta::assert_snapshot!(errors(vec![p]));
        }
    });
}

#[test]
fn a_manifest_names_the_pack_and_orders_its_files() {
    let rules = RuleSet::load(vec![case("whole")], &[]).unwrap();
    let [p] = rules.packs() else { panic!("{} packs", rules.packs().len()) };
    assert_eq!((p.name.as_deref(), p.version.as_deref()), (Some("whole"), Some("1.2.0")));
    let names: Vec<&str> = rules.rules().iter().rev().take(2).map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["pack-abs-of-neg", "pack-neg-of-neg"]);
    let own = rules.get("pack-abs-of-neg").unwrap();
    assert_eq!(own.file, "whole/first.rules");
    assert_eq!(rules.pack_of(own).and_then(|p| p.name.as_deref()), Some("whole"));
    assert!(rules.pack_of(rules.get("raise-silu").unwrap()).is_none());
}

#[test]
fn two_packs_of_one_name_are_refused() {
    let mut other = case("whole");
    other.folder = "other".to_owned();
    for (name, text) in &mut other.files {
        *name = name.replace("whole", "other");
        *text = text.replace("rule pack-", "rule other-");
    }
    let text = errors(vec![case("whole"), other]);
    assert!(text.starts_with("error: two rule packs are called `whole`: whole and other\n"), "{text}");
    assert!(text.contains("rule `other-neg-of-neg` says the same as `pack-neg-of-neg`"), "{text}");
}

#[test]
fn a_rule_that_is_left_out_makes_no_other_superfluous() {
    let own = || {
        let text = "(rule own-silu :phase raise (mul ?x (sigmoid ?x)) => (silu ?x))".to_owned();
        Pack::read("own", None, &[("own.rules".to_owned(), text)])
    };
    let text = errors(vec![own()]);
    assert!(text.contains("`own-silu` says the same as `raise-silu`"), "{text}");
    assert!(text.contains("--no-rule raise-silu"), "{text}");
    let rules = RuleSet::load(vec![own()], &["raise-silu".to_owned()]).unwrap();
    assert!(rules.get("own-silu").is_ok() && rules.get("raise-silu").is_err());
}

#[test]
fn a_more_general_rule_of_a_pack_is_no_mistake() {
    let text = "(rule any-power :phase raise (pow ?x ?two) => (mul ?x ?x) :if ((= (value ?two) 2)))".to_owned();
    let general = "(rule any-silu :phase raise (mul ?x (sigmoid ?y)) => (silu ?x) :if ((same-shape ?x ?y)))".to_owned();
    let files = [("a.rules".to_owned(), text), ("b.rules".to_owned(), general)];
    assert!(RuleSet::load(vec![Pack::read("own", None, &files)], &[]).is_ok());
}

#[test]
fn the_command_line_reads_packs() {
    let run = |folder: &str| {
        let dir = root().join("tests/cases/rule_packs").join(folder);
        Command::new(env!("CARGO_BIN_EXE_sinter")).args(["rules", "list", "--rules"]).arg(dir).output().unwrap()
    };
    let good = run("whole");
    assert_eq!(good.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&good.stdout).contains("pack-neg-of-neg"));
    let bad = run("many");
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("pack.json:4:3"));
}

#[test]
fn damaged_manifests_never_panic() {
    let text = std::fs::read_to_string(root().join("tests/cases/rule_packs/many/pack.json")).unwrap();
    let read = |t: &str| Pack::read("damaged", Some(t), &[("a.rules".to_owned(), String::new())]);
    for at in 0..text.len() {
        read(&text[..at]);
        for with in ["", "\"", "{", "]", ",", "\\", "é", "0"] {
            let damaged = format!("{}{with}{}", &text[..at], &text[at + 1..]);
            read(&damaged);
        }
    }
}
