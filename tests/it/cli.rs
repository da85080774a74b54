//! The real binary, as people and scripts use it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::fixtures;

/// What a run of the program left behind.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the program in a folder, as a person does.
pub(crate) fn sinter(dir: &Path, args: &[&str]) -> Ended {
    ended(Command::new(env!("CARGO_BIN_EXE_sinter")).current_dir(dir).args(args).env_remove("CI"))
}

/// Runs the program in a folder, as a CI job does.
pub(crate) fn sinter_in_ci(dir: &Path, args: &[&str]) -> Ended {
    ended(Command::new(env!("CARGO_BIN_EXE_sinter")).current_dir(dir).args(args).env("CI", "true"))
}

fn ended(command: &mut Command) -> Ended {
    let out = command.output().unwrap();
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    Ended { code: out.status.code(), stdout: text(&out.stdout), stderr: text(&out.stderr) }
}

/// Runs the program and checks its exit code.
pub(crate) fn check(dir: &Path, code: i32, args: &[&str]) -> Ended {
    let ended = sinter(dir, args);
    assert_eq!(ended.code, Some(code), "{args:?}\n{}\n{}", ended.stdout, ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    ended
}

/// A fresh folder with a bundled model in `model`.
pub(crate) fn workplace() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    fixtures::copy(&fixtures::model("llama-dynamo-op18-past"), &temp.path().join("model"));
    temp
}

/// The keys of the contract, `a.b` inside of `a`, `a[].b` in every element of `a`.
pub(crate) fn check_keys(report: &Value, keys: &[&str]) {
    fn find<'v>(value: &'v Value, path: &[&str], out: &mut Vec<Option<&'v Value>>) {
        let Some((first, rest)) = path.split_first() else { return out.push(Some(value)) };
        match first.strip_suffix("[]") {
            Some(name) => match value.get(name).and_then(Value::as_array) {
                Some(list) => list.iter().for_each(|v| find(v, rest, out)),
                None => out.push(None),
            },
            None => match value.get(first) {
                Some(v) => find(v, rest, out),
                None => out.push(None),
            },
        }
    }
    for key in keys {
        let mut found = vec![];
        find(report, &key.split('.').collect::<Vec<_>>(), &mut found);
        assert!(!found.is_empty() && found.iter().all(Option::is_some), "`{key}` is missing in {report:#}");
    }
}

#[test]
fn plans_run_and_agree() {
    let temp = workplace();
    let dir = temp.path();
    check(dir, 0, &["optimize", "model/model.onnx", "--tp", "2", "--pp", "2", "-o", "plan"]);
    let ended =
        check(dir, 0, &["run", "plan", "--inputs", "model", "--expect", "model", "--verify", "--outputs", "out"]);
    assert!(ended.stdout.contains("agrees with the expected outputs"), "{}", ended.stdout);
    assert!(ended.stdout.contains("agrees with the unoptimised program"), "{}", ended.stdout);
    let names: Vec<_> = std::fs::read_dir(dir.join("out")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    // A model runs as a plan for one rank, and an existing plan is replaced.
    check(dir, 0, &["run", "model/model.onnx", "--inputs", "model", "--expect", "model"]);
    check(dir, 0, &["optimize", "model/model.onnx", "-o", "plan"]);
    check(dir, 0, &["run", "plan", "--inputs", "model", "--expect", "model"]);
    assert!(!dir.join("plan/rank1.safetensors").exists());
}

#[test]
fn unmet_demands_and_differences_are_exit_code_1() {
    let temp = workplace();
    let dir = temp.path();
    let optimize = |demand: &str, code: i32| {
        check(dir, code, &["optimize", "model/model.onnx", "--tp", "2", "--require-fused", demand])
    };
    optimize("6", 0);
    optimize("ar_residual_rms_norm=4", 0);
    assert!(optimize("7", 1).stderr.contains("check failed: 7 fused sites are required, 6 were fused"));
    optimize("add_rms_norm=1", 1);
    // The caches of the model are not what it computes for the prompt.
    std::fs::copy(dir.join("model/output_1.npy"), dir.join("model/output_2.npy")).unwrap();
    let ended = check(dir, 1, &["run", "model/model.onnx", "--inputs", "model", "--expect", "model"]);
    assert!(ended.stdout.contains("DIFFERS from the expected outputs"), "{}", ended.stdout);
    assert!(ended.stdout.contains("present.0.value: max |difference|"), "{}", ended.stdout);
}

#[test]
fn reports_keep_their_keys() {
    let temp = workplace();
    let dir = temp.path();
    let args = ["optimize", "model/model.onnx", "--tp", "2", "--pp", "2", "-o", "plan", "--report", "report.json"];
    check(dir, 0, &args);
    let read = |name: &str| serde_json::from_str(&std::fs::read_to_string(dir.join(name)).unwrap()).unwrap();
    let report: Value = read("report.json");
    check_keys(
        &report,
        &[
            "schema",
            "model.path",
            "model.nodes",
            "model.weights",
            "model.weight_bytes",
            "model.random_weights",
            "model.opset",
            "mapping.tp",
            "mapping.pp",
            "mapping.cp",
            "mapping.attention_dp",
            "mapping.moe_tp",
            "mapping.moe_ep",
            "mapping.world",
            "saturate.stop",
            "saturate.iterations",
            "saturate.e_nodes",
            "saturate.e_classes",
            "extract.original_ns",
            "extract.greedy_ns",
            "extract.chosen_ns",
            "extract.bound_ns",
            "ops.matmul",
            "ops.all_reduce",
            "ops.rms_norm",
            "fused.ar_residual_rms_norm",
            "fused.add_rms_norm",
            "unfused[].op",
            "unfused[].node",
            "unfused[].reason",
            "stages[].index",
            "stages[].ops",
            "stages[].fused",
            "stages[].weight_bytes_per_rank",
            "stages[].sends",
            "certificate.groups",
            "certificate.collectives",
            "certificate.ok",
            "time_ms.import",
            "time_ms.raise",
            "time_ms.partition",
            "time_ms.saturate",
            "time_ms.extract",
            "time_ms.explain",
            "unfused[].op",
            "unfused[].node",
            "unfused[].stage",
            "unfused[].rule",
            "unfused[].unmet",
            "unfused[].tensor",
            "unfused[].reason",
            "time_ms.lower",
            "time_ms.write",
            "time_ms.total",
            "peak_rss_bytes",
        ],
    );
    assert_eq!(report["schema"], 1);
    assert_eq!(report["saturate"]["stop"], "saturated");
    let sends = report["stages"][0]["sends"].as_array().unwrap();
    assert!(!sends.is_empty(), "{report:#}");
    sends.iter().for_each(|s| check_keys(s, &["name", "dtype", "shape"]));

    check(dir, 0, &["run", "plan", "--inputs", "model", "--expect", "model", "--verify", "--report", "run.json"]);
    let report: Value = read("run.json");
    check_keys(
        &report,
        &[
            "schema",
            "ranks",
            "backend",
            "outputs[].name",
            "outputs[].dtype",
            "outputs[].shape",
            "expect.max_abs",
            "expect.max_rel",
            "expect.pass",
            "verify.max_abs",
            "verify.max_rel",
            "verify.pass",
            "verify.first_bad",
            "time_ms.run",
            "time_ms.median",
        ],
    );
    assert_eq!((&report["ranks"], &report["expect"]["pass"]), (&Value::from(4), &Value::from(true)));
}

#[test]
fn a_report_on_standard_output_is_all_that_is_there() {
    let temp = workplace();
    let ended = check(temp.path(), 0, &["optimize", "model/model.onnx", "--report", "-"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["mapping"]["world"], 1);
    assert!(ended.stderr.contains("certificate:"), "the summary goes to standard error: {}", ended.stderr);
}

#[test]
fn show_prints_what_it_can_read_again() {
    let temp = workplace();
    let dir = temp.path();
    for args in [&["--stage", "import"][..], &["--stage", "raise"], &["--stage", "extract", "--tp", "2", "--pp", "2"]] {
        let shown = check(dir, 0, &[&["show", "model/model.onnx"], args].concat()).stdout;
        std::fs::write(dir.join("shown.sir"), &shown).unwrap();
        assert_eq!(check(dir, 0, &["show", "shown.sir"]).stdout, shown, "{args:?}");
    }
    check(dir, 0, &["optimize", "model/model.onnx", "--pp", "2", "-o", "plan"]);
    let shown = check(dir, 0, &["show", "plan"]).stdout;
    assert_eq!(shown.matches("\n}\n").count(), 2, "one graph a stage");
}

#[test]
fn rules_are_listed_and_can_be_left_out_or_added() {
    let temp = workplace();
    let dir = temp.path();
    let listed = check(dir, 0, &["rules", "list"]).stdout;
    for rule in sinter::rules::RuleSet::bundled().unwrap().rules() {
        assert!(listed.contains(&rule.name), "{} is not listed", rule.name);
    }
    check(dir, 1, &["optimize", "model/model.onnx", "--no-rule", "silu-mul", "--require-fused", "silu_mul=1"]);
    std::fs::create_dir(dir.join("more")).unwrap();
    let text = ";; twice negated\n(rule negated-twice :phase raise (neg (neg ?x)) => ?x)\n";
    std::fs::write(dir.join("more/own.rules"), text).unwrap();
    assert!(check(dir, 0, &["rules", "list", "--rules", "more"]).stdout.contains("negated-twice"));
    // Packs and kernels are listed by name.
    std::fs::create_dir(dir.join("pack")).unwrap();
    std::fs::write(dir.join("pack/pack.json"), r#"{"name": "norms", "version": "1.2.0", "description": "x"}"#).unwrap();
    let kernel = "; not a comment of the kernel\n\n;; relu of a norm\n\
                  (kernel norm_relu (?x ?w) :attrs (?eps) :yield ((relu (rms_norm ?x ?w :eps ?eps))))\n\
                  (rule norm-relu :phase fuse (relu (rms_norm ?x ?w :eps ?e)) => (norm_relu ?x ?w :eps ?e))\n";
    std::fs::write(dir.join("pack/norms.rules"), kernel).unwrap();
    let listed = check(dir, 0, &["rules", "list", "--rules", "pack"]).stdout;
    assert!(listed.contains("pack norms 1.2.0 (pack)\nfuse   norm-relu"), "{listed}");
    assert!(listed.contains("kernel norm_relu  relu of a norm  (pack/norms.rules:4)"), "{listed}");
    check(dir, 0, &["optimize", "model/model.onnx", "--rules", "more"]);
}

#[test]
fn rules_of_the_caller_are_verified_before_they_are_used() {
    let temp = workplace();
    let dir = temp.path();
    std::fs::create_dir(dir.join("more")).unwrap();
    let text = "(rule inside :phase fuse (add (all_reduce ?x ?a) ?r) => (all_reduce (add ?x ?r) ?a))\n";
    std::fs::write(dir.join("more/own.rules"), text).unwrap();
    let args = ["optimize", "model/model.onnx", "--tp", "2", "--rules", "more", "-o", "plan"];
    let ended = check(dir, 1, &args);
    assert!(ended.stderr.contains("the two sides of rule `inside` differ"), "{}", ended.stderr);
    assert!(ended.stderr.contains("counter-example with tp 2"), "{}", ended.stderr);
    assert!(!dir.join("plan").exists());
    check(dir, 1, &["run", "model/model.onnx", "--inputs", "model", "--rules", "more"]);
    check(dir, 1, &["rules", "verify", "--rules", "more", "--rule", "inside"]);
    let ended = check(dir, 0, &[&args[..], &["--trust-rules"]].concat());
    assert!(ended.stdout.contains("your rules: 1, trusted without verification"), "{}", ended.stdout);
}

#[test]
fn help_and_version_are_no_errors() {
    let temp = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["--version"], &["optimize", "--help"], &["run", "--help"], &["show", "--help"]] {
        assert!(!check(temp.path(), 0, args).stdout.is_empty(), "{args:?}");
    }
    check(temp.path(), 2, &["optimise"]);
}
