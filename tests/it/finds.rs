//! Small models on which a random search found a difference from ONNX Runtime: `fixtures/finds`, with its outputs.

use std::path::PathBuf;

use crate::cli::{check, sinter};
use crate::fixtures;

fn cases() -> Vec<PathBuf> {
    let dir = fixtures::root().join("fixtures/finds");
    let mut out: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    out.sort();
    assert!(!out.is_empty());
    out
}

/// The model itself, plans for one rank and for two, and the emitted file give the expected outputs.
#[test]
fn finds_stay_fixed() {
    let mut problems = vec![];
    for dir in cases() {
        let work = tempfile::tempdir().unwrap();
        let path = |p: &str| dir.join(p).to_string_lossy().into_owned();
        // A model without inputs has no such folder.
        let inputs = if dir.join("inputs").is_dir() { path("inputs") } else { path("") };
        let (model, expected) = (path("model.onnx"), path("expected"));
        let ways: [(&str, &[&str]); 4] = [
            ("run MODEL", &[]),
            ("plan", &["-o", "plan"]),
            ("plan of two ranks", &["--tp", "2", "-o", "plan2"]),
            ("emitted file", &["--emit", "onnx", "-o", "emitted.onnx"]),
        ];
        for (way, compile) in ways {
            let target = compile.last().copied().unwrap_or(&model);
            if !compile.is_empty() {
                let made = sinter(work.path(), &[&["optimize", &model], compile].concat());
                if made.code != Some(0) {
                    problems.push(format!("{}: {way}: {}", dir.display(), made.stderr));
                    continue;
                }
            }
            let ran = sinter(work.path(), &["run", target, "--inputs", &inputs, "--expect", &expected]);
            if ran.code != Some(0) {
                problems.push(format!("{}: {way}: {}{}", dir.display(), ran.stdout, ran.stderr));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The choice of experts is a tuple; it does not cross to another stage as a whole.
#[test]
fn experts_may_lie_on_a_later_stage() {
    for name in ["moe-relu", "qmoe-8-rows"] {
        let work = tempfile::tempdir().unwrap();
        let dir = fixtures::root().join("fixtures/contrib").join(name).to_string_lossy().into_owned();
        let model = format!("{dir}/model.onnx");
        check(work.path(), 0, &["optimize", &model, "--pp", "2", "-o", "plan"]);
        check(work.path(), 0, &["run", "plan", "--inputs", &dir, "--expect", &dir]);
    }
}
