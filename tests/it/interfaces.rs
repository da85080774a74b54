//! What models take and give: inputs with default values, names, declarations, parts of weights. The cases in
//! `fixtures/interfaces` have the outputs of ONNX Runtime.

use std::path::{Path, PathBuf};

use crate::{cli, fixtures};

/// Cases whose plans cannot be written as ONNX files, and why.
const NOT_EMITTED: &[(&str, &str)] = &[];

fn cases() -> Vec<PathBuf> {
    let dir = fixtures::root().join("fixtures/interfaces");
    let mut out: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    out.sort();
    assert!(out.len() > 30, "{}", out.len());
    out
}

fn case(name: &str) -> String {
    fixtures::root().join("fixtures/interfaces").join(name).display().to_string()
}

/// Runs a model or plan on a case's inputs, and compares with its outputs.
fn compare(dir: &Path, what: &str, case: &str, problems: &mut Vec<String>) {
    let inputs = format!("{case}/inputs");
    let ended = cli::sinter(dir, &["run", what, "--inputs", &inputs, "--expect", case, "--verify"]);
    if ended.code != Some(0) {
        problems.push(format!("{case} as {what}: {}{}", ended.stdout, ended.stderr));
    }
}

#[test]
fn models_plans_and_files_give_what_onnx_runtime_gives() {
    let mut problems = vec![];
    for path in cases() {
        let case = path.display().to_string();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let model = format!("{case}/model.onnx");
        compare(dir, &model, &case, &mut problems);
        for (tp, plan) in [("1", "plan"), ("2", "plan2")] {
            let ended = cli::sinter(dir, &["optimize", &model, "--tp", tp, "-o", plan]);
            if ended.code != Some(0) {
                problems.push(format!("{name} tp {tp}: {}", ended.stderr));
                continue;
            }
            compare(dir, plan, &case, &mut problems);
        }
        let ended = cli::sinter(dir, &["optimize", &model, "--emit", "onnx", "-o", "emitted.onnx"]);
        match NOT_EMITTED.iter().find(|(n, _)| *n == name) {
            Some((_, why)) => assert!(ended.code == Some(2) && ended.stderr.contains(why), "{name}: {}", ended.stderr),
            None if ended.code == Some(0) => compare(dir, "emitted.onnx", &case, &mut problems),
            None => problems.push(format!("{name} emitted: {}", ended.stderr)),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn outputs_are_read_back_by_their_names() {
    let case = case("names");
    let (model, inputs) = (format!("{case}/model.onnx"), format!("{case}/inputs"));
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    cli::check(dir, 0, &["run", &model, "--inputs", &inputs, "--outputs", "out"]);
    let mut names: Vec<_> = std::fs::read_dir(dir.join("out"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.len() < 100)
        .collect();
    names.sort();
    // The seventh has a name of 300 characters.
    assert_eq!(names, ["%2E.%2Fup.npy", "%2E..npy", "%6Futput_2.npy", "a%252Fb.npy", "a%2Fb.npy", "a_b.npy"]);
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1, "nothing is written outside of the folder");
    cli::check(dir, 0, &["run", &model, "--inputs", &inputs, "--expect", "out"]);
    // An older run's file makes room, a folder in its place does not.
    cli::check(dir, 0, &["run", &model, "--inputs", &inputs, "--outputs", "out"]);
    std::fs::remove_file(dir.join("out/a_b.npy")).unwrap();
    std::fs::create_dir(dir.join("out/a_b.npy")).unwrap();
    let ended = cli::check(dir, 2, &["run", &model, "--inputs", &inputs, "--outputs", "out"]);
    assert!(ended.stderr.contains("cannot replace out/a_b.npy"), "{}", ended.stderr);
    // `a_b` must not be read as `a/b`, of which there is no file.
    std::fs::remove_dir(dir.join("out/a_b.npy")).unwrap();
    std::fs::rename(dir.join("out/a%2Fb.npy"), dir.join("out/a_b.npy")).unwrap();
    let ended = cli::check(dir, 2, &["run", &model, "--inputs", &inputs, "--expect", "out"]);
    assert!(ended.stderr.contains("a_b.npy may be output 0 or output 1"), "{}", ended.stderr);
}

#[test]
fn surplus_files_and_arrays_are_reported() {
    let case = case("default-fixed-unfed");
    let model = format!("{case}/model.onnx");
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let folder = |files: &[(&str, &str)]| {
        drop(std::fs::remove_dir_all(dir.join("in")));
        std::fs::create_dir(dir.join("in")).unwrap();
        for (from, to) in files {
            std::fs::copy(Path::new(&case).join(from), dir.join("in").join(to)).unwrap();
        }
    };
    let refused = |why: &str| {
        let ended = cli::check(dir, 2, &["run", &model, "--inputs", "in"]);
        assert!(ended.stderr.contains(why), "{why}: {}", ended.stderr);
    };
    let x = "inputs/x.npy";
    folder(&[(x, "x.npy"), (x, "w.npy")]);
    refused("the file w.npy is surplus: no input has this name");
    folder(&[(x, "input_0.npy"), (x, "input_7.npy")]);
    refused("the file input_7.npy is surplus: there are 3 inputs");
    folder(&[(x, "x.npy"), (x, "input_0.npy")]);
    refused("x.npy and input_0.npy may both be input 0");
    folder(&[]);
    refused("`x`: there is none of x.npy, input_0.npy, input_0.pb");
    // Outputs, and files of other kinds, may lie beside the inputs.
    folder(&[(x, "x.npy"), ("output_0.npy", "output_0.npy"), ("output_0.npy", "y.npy"), ("model.onnx", "model.onnx")]);
    cli::check(dir, 0, &["run", &model, "--inputs", "in"]);
}

#[test]
fn inputs_with_default_values_can_be_constants() {
    let case = case("default-fixed-fed");
    let (model, inputs) = (format!("{case}/model.onnx"), format!("{case}/inputs"));
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let ended = cli::check(dir, 0, &["optimize", &model, "--tp", "2", "-o", "plan"]);
    assert!(ended.stdout.contains("2 inputs have default values: `a`, `b`"), "{}", ended.stdout);
    cli::check(dir, 0, &["optimize", &model, "--freeze-defaults", "-o", "frozen"]);
    for args in [&["run", "frozen"][..], &["run", &model, "--freeze-defaults"]] {
        let ended = cli::check(dir, 2, &[args, &["--inputs", &inputs]].concat());
        assert!(ended.stderr.contains("the file a.npy is surplus"), "{}", ended.stderr);
    }
    let ended = cli::check(dir, 2, &["run", "plan", "--freeze-defaults", "--inputs", &inputs]);
    assert!(ended.stderr.contains("--freeze-defaults is for an ONNX file"), "{}", ended.stderr);
    // A plan without its default values is not a plan.
    std::fs::remove_file(dir.join("plan/defaults.safetensors")).unwrap();
    cli::check(dir, 2, &["run", "plan", "--inputs", &inputs]);
}

#[test]
fn declarations_that_are_not_followed_are_stated() {
    let case = case("declared-rank");
    let (model, inputs) = (format!("{case}/model.onnx"), format!("{case}/inputs"));
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let note = "output `y` is declared as f32[n, 4], but the graph computes f32[n, 1, 4], which holds";
    let ended = cli::check(dir, 0, &["optimize", &model, "--report", "o.json"]);
    assert!(ended.stdout.contains(&format!("note: {note}")), "{}", ended.stdout);
    let ended = cli::check(dir, 0, &["run", &model, "--inputs", &inputs, "--report", "r.json"]);
    assert!(ended.stdout.contains(&format!("note: {note}")), "{}", ended.stdout);
    let report = |file: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(dir.join(file)).unwrap()).unwrap()
    };
    assert_eq!((&report("o.json")["model"]["notes"][0], &report("r.json")["notes"][0]), (&note.into(), &note.into()));
}

#[test]
fn options_without_a_meaning_are_refused() {
    let case = case("weight-slice");
    let (model, inputs) = (format!("{case}/model.onnx"), format!("{case}/inputs"));
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    for (option, value) in [("--atol", "-1"), ("--atol", "NaN"), ("--rtol", "-1e-3"), ("--rtol", "inf")] {
        let ended = cli::check(dir, 2, &["run", &model, "--inputs", &inputs, option, value]);
        assert!(ended.stderr.contains("a tolerance is a finite number, 0 or larger"), "{}", ended.stderr);
    }
    cli::check(dir, 0, &["run", &model, "--inputs", &inputs, "--expect", &case, "--atol", "0.1", "--rtol", "0"]);
    let refused = |args: &[&str], why: &str| {
        let ended = cli::check(dir, 2, args);
        assert!(ended.stderr.contains(why), "{args:?}: {}", ended.stderr);
    };
    refused(&["optimize", &model, "--no-rule", "raise-sliu"], "did you mean `raise-silu`?");
    cli::check(dir, 0, &["optimize", &model, "--no-rule", "raise-silu", "--no-rule", "raise-silu"]);
    refused(&["optimize", &model, "--pp", "3"], "--pp 3 is impossible");
    let ended = cli::sinter(dir, &["optimize", &model, "--pp", "3"]);
    assert!(!ended.stderr.contains("--pp 0"), "{}", ended.stderr);

    cli::check(dir, 0, &["optimize", &model, "-o", "plan"]);
    let whole = cli::check(dir, 0, &["show", "plan"]).stdout;
    assert_eq!(cli::check(dir, 0, &["show", "plan", "--stage", "0"]).stdout, whole);
    assert_eq!(cli::check(dir, 0, &["show", "plan", "--stage", "extract"]).stdout, whole);
    refused(&["show", "plan", "--stage", "1"], "the pipeline stages of the plan are 0 to 0");
    refused(&["show", "plan", "--stage", "raise"], "a plan holds the extracted program alone");
    refused(&["show", "plan", "--tp", "2"], "a plan is printed as it is");
    refused(&["show", &model, "--stage", "1"], "names a pipeline stage, which plans have");
    refused(&["show", &model, "--stage", "fuse"], "stages of compilation are import, raise and extract");
}

#[test]
fn what_is_not_a_model_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let files: [(&str, &[u8], &str); 6] = [
        ("a.pt", b"PK\x03\x04 archive/data.pkl", "it is a PyTorch file"),
        ("a.onnx.gz", b"\x1f\x8b\x08\0\0\0\0\0", "it is compressed with gzip"),
        ("a.txt", b"not a model\n", "it is a text file"),
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0{\"a\":0}", "it is a safetensors file"),
        ("lfs.onnx", b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        ("empty.onnx", b"", "it is empty"),
    ];
    for (name, bytes, why) in files {
        std::fs::write(dir.join(name), bytes).unwrap();
        for args in [&["optimize", name][..], &["show", name], &["run", name, "--inputs", "."]] {
            let ended = cli::check(dir, 2, args);
            assert!(ended.stderr.contains(why) && ended.stderr.contains("help:"), "{args:?}: {}", ended.stderr);
        }
    }
    std::fs::create_dir(dir.join("folder")).unwrap();
    let ended = cli::check(dir, 2, &["optimize", "folder"]);
    assert!(ended.stderr.contains("it is a folder") && ended.stderr.contains("none in the folder"), "{}", ended.stderr);
    std::fs::copy(Path::new(&case("names")).join("model.onnx"), dir.join("folder/m.onnx")).unwrap();
    for args in [&["optimize", "folder"][..], &["run", "folder", "--inputs", "."], &["show", "folder"]] {
        let ended = cli::check(dir, 2, args);
        assert!(ended.stderr.contains("name the model in it: folder/m.onnx"), "{}", ended.stderr);
    }
}

#[test]
fn new_rules_do_not_go_to_the_bundled_ones_unasked() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fixtures::copy(&fixtures::root().join("rules"), &dir.join("rules"));
    let files = || std::fs::read_dir(dir.join("rules")).unwrap().count();
    let before = files();
    let ended = cli::check(dir, 2, &["rules", "new", "my-rule"]);
    assert!(ended.stderr.contains("the folder rules holds sinter's bundled rules"), "{}", ended.stderr);
    assert_eq!(files(), before);
    cli::check(dir, 0, &["rules", "new", "my-rule", "--dir", "rules"]);
    cli::check(dir, 0, &["rules", "new", "my-rule", "--dir", "mine"]);
}
