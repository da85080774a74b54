//! Verdicts of `run --expect --verify` on the models of fixtures/verdicts, which `tests/ort/make_verdicts.py` writes: outputs of
//! ONNX Runtime, some of them changed by hand.

use crate::{cli, fixtures};

#[test]
fn verdicts_are_those_that_the_fixtures_state() {
    let base = fixtures::root().join("fixtures/verdicts");
    let mut cases: Vec<_> = std::fs::read_dir(&base).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 12, "{cases:?}");
    for case in cases {
        let verdict = std::fs::read_to_string(case.join("verdict.txt")).unwrap();
        let mut lines = verdict.lines();
        let code: i32 = lines.next().unwrap().parse().unwrap();
        let dir = case.to_str().unwrap();
        let ended = cli::check(
            &base,
            code,
            &["run", &format!("{dir}/model.onnx"), "--inputs", dir, "--expect", dir, "--verify"],
        );
        for line in lines {
            assert!(ended.stdout.contains(line), "{dir}: no `{line}` in\n{}", ended.stdout);
        }
        assert!(ended.stdout.contains("agrees with the unoptimised program"), "{dir}:\n{}", ended.stdout);
    }
}
