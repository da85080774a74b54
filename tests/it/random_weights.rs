//! Models without their weights: data is made up, the same for every mapping, and plans record the seed.

use std::path::Path;

use prost::Message as _;
use sinter::import::proto::{ModelProto, StringStringEntryProto, tensor_proto::DataLocation};
use sinter_runtime::compare::{Tolerance, compare};
use sinter_runtime::io::read_npy_file;
use sinter_runtime::plan;
use sinter_runtime::tensor::Tensor;

use crate::{cli, fixtures};

/// Takes the data of weights of at least so many bytes out of a model: it lies in a file that is not there, or it is
/// empty.
fn strip(dir: &Path, name: &str, least: usize, external: bool) -> usize {
    let from = fixtures::model(name);
    fixtures::copy(&from, dir);
    let mut m = ModelProto::decode(&std::fs::read(from.join("model.onnx")).unwrap()[..]).unwrap();
    let mut stripped = 0;
    for t in &mut m.graph.as_mut().unwrap().initializer {
        if t.raw_data().len() < least {
            continue;
        }
        stripped += 1;
        t.raw_data = (!external).then(Default::default);
        if external {
            let entry =
                |k: &str, v: &str| StringStringEntryProto { key: Some(k.to_owned()), value: Some(v.to_owned()) };
            t.data_location = Some(DataLocation::External as i32);
            t.external_data = vec![entry("location", "model.onnx.data")];
        }
    }
    std::fs::write(dir.join("model.onnx"), m.encode_to_vec()).unwrap();
    stripped
}

fn outputs(dir: &Path) -> Vec<Tensor> {
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|p| read_npy_file(p).unwrap()).collect()
}

/// Whether two runs gave the same.
fn agree(a: &[Tensor], b: &[Tensor]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| compare(a, b, Tolerance::of(a.dtype)).pass)
}

#[test]
fn all_mappings_compute_the_same() {
    for (name, external) in [("llama-dynamo-op18-past", true), ("phi3-dynamo-op18-past", false)] {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let n = strip(dir, name, 200, external);
        let run = |plan: &str, out: &str, more: &[&str]| {
            let args = ["run", plan, "--inputs", ".", "--verify", "--outputs", out];
            cli::check(dir, 0, &[&args[..], more].concat());
            outputs(&dir.join(out))
        };
        let want = run("model.onnx", "direct", &["--random-weights", "7"]);
        assert!(want.iter().any(|t| t.dtype.is_float() && t.to_f64().iter().all(|v| v.is_finite() && v.abs() < 1e3)));
        for (tp, pp) in [("1", "1"), ("2", "1"), ("1", "2"), ("2", "2"), ("4", "1")] {
            let args = ["optimize", "model.onnx", "--tp", tp, "--pp", pp, "-o", "plan", "--random-weights", "7"];
            let said = cli::check(dir, 0, &args).stdout;
            let note = format!("data of {n} of ");
            assert!(said.contains(&note) && said.contains("weights is absent and made up, seed 7"), "{said}");
            assert!(agree(&run("plan", "out", &[]), &want), "{name} tp {tp} pp {pp}");
            std::fs::remove_dir_all(dir.join("out")).unwrap();
        }
        // The plan holds no numbers of these weights.
        let (p, _) = plan::load(&dir.join("plan")).unwrap();
        assert_eq!(p.random.len(), n);
        let held: u64 = p.files.iter().filter(|f| f.name.ends_with("safetensors")).map(|f| f.bytes).sum();
        let made: usize = p.random.iter().map(|w| w.shape.iter().product::<usize>() * w.dtype.size()).sum();
        assert!(held < 64 * 1024 && made > 300 * 1024, "{held} {made}");
        // Another seed, other numbers; real weights, other numbers.
        let other = run("model.onnx", "other", &["--random-weights", "8"]);
        assert!(!agree(&other, &want) && !agree(&outputs_of_the_model(name), &want));
    }
}

fn outputs_of_the_model(name: &str) -> Vec<Tensor> {
    vec![read_npy_file(&fixtures::model(name).join("output_0.npy")).unwrap()]
}

#[test]
fn data_that_is_there_is_used() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fixtures::copy(&fixtures::model("qwen2-dynamo-op18-none"), dir);
    let said = cli::check(dir, 0, &["optimize", "model.onnx", "-o", "plan", "--random-weights", "1"]).stdout;
    assert!(!said.contains("made up"), "{said}");
    cli::check(dir, 0, &["run", "plan", "--inputs", ".", "--expect", "."]);
}

#[test]
fn onnx_files_hold_the_numbers() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    strip(dir, "qwen3-dynamo-op23-none", 200, true);
    cli::check(dir, 0, &["run", "model.onnx", "--inputs", ".", "--outputs", "want", "--random-weights", "3"]);
    let args = ["optimize", "model.onnx", "--tp", "2", "--emit", "onnx", "-o", "out", "--random-weights", "3"];
    cli::check(dir, 0, &args);
    cli::check(dir, 0, &["optimize", "model.onnx", "--tp", "2", "-o", "plan", "--random-weights", "3"]);
    // A column of the plan and the data file hold the same numbers.
    let (p, held) = plan::load(&dir.join("plan")).unwrap();
    let m = ModelProto::decode(&std::fs::read(dir.join("out/rank1.onnx")).unwrap()[..]).unwrap();
    let data = std::fs::read(dir.join("out/rank1.onnx.data")).unwrap();
    let mut compared = 0;
    for t in m.graph.unwrap().initializer.iter().filter(|t| t.data_location() == DataLocation::External) {
        let number = |k: &str| t.external_data.iter().find(|e| e.key() == k).unwrap().value().parse::<usize>().unwrap();
        let bytes = &data[number("offset")..][..number("length")];
        assert_eq!(
            &*sinter_runtime::executor::WeightSource::weight(&held, 1, t.name()).unwrap(),
            bytes,
            "{}",
            t.name()
        );
        compared += 1;
    }
    assert!(compared > 5 && p.random.len() > 5);
}

#[test]
fn absent_data_is_an_error_that_names_the_option() {
    for external in [true, false] {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        strip(dir, "llama3-dynamo-op18-none", 200, external);
        let ended = cli::check(dir, 2, &["optimize", "model.onnx"]);
        assert!(ended.stderr.contains("make it up with --random-weights SEED"), "{}", ended.stderr);
        cli::check(dir, 0, &["optimize", "model.onnx", "--random-weights", "1", "-o", "plan"]);
        let ended = cli::check(dir, 2, &["run", "plan", "--inputs", ".", "--random-weights", "1"]);
        assert!(ended.stderr.contains("a plan records how its weights are made up"), "{}", ended.stderr);
        // The record is part of what a plan's reader checks.
        let json = std::fs::read_to_string(dir.join("plan/plan.json")).unwrap();
        let wrong = json.replacen("\"seed\": 1,", "\"seed\": 2,", 1);
        assert_ne!(json, wrong);
        std::fs::write(dir.join("plan/plan.json"), wrong).unwrap();
        let ended = cli::check(dir, 2, &["run", "plan", "--inputs", "."]);
        assert!(ended.stderr.contains("it was changed or damaged"), "{}", ended.stderr);
    }
}
