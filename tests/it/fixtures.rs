//! Bundled models in `fixtures/models`, and a wider testbed where there is one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sinter::import::{self, Imported, Weights};
use sinter::ir::Mapping;
use sinter::lower;
use sinter::pipeline::{CompileConfig, Compiled, compile};
use sinter::rules::RuleSet;
use sinter_runtime::executor::{self, RunConfig};
use sinter_runtime::io::read_npy_file;
use sinter_runtime::plan::{self, Plan, PlanWeights, PlanWriter, ReferenceWeights};
use sinter_runtime::tensor::Tensor;

/// The models that are part of the repository.
pub(crate) const BUNDLED: &[&str] = &[
    "llama-dynamo-op18-past",
    "llama3-dynamo-op18-none",
    "mistral-dynamo-op20-past",
    "qwen2-dynamo-op18-none",
    "qwen3-dynamo-op18-past",
    "qwen3-dynamo-op23-none",
];

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of a bundled model.
pub(crate) fn model(name: &str) -> PathBuf {
    root().join("fixtures/models").join(name)
}

/// The wider testbed: `$SINTER_TESTBED`, or a folder beside the repository.
pub(crate) fn testbed() -> Option<PathBuf> {
    let dir = std::env::var_os("SINTER_TESTBED").map_or_else(|| root().join("../shared/testbed"), PathBuf::from);
    dir.is_dir().then_some(dir)
}

/// The folders of all dense decoders: bundled ones, and those of the testbed.
pub(crate) fn decoders() -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = BUNDLED.iter().map(|n| model(n)).collect();
    let Some(dir) = testbed() else {
        println!("skipped: no testbed (set SINTER_TESTBED); only the bundled models are checked");
        return out;
    };
    for arch in ["llama", "llama3", "mistral", "qwen2", "qwen3"] {
        for opset in [18, 20, 23] {
            for kv in ["none", "past"] {
                let name = format!("{arch}-dynamo-op{opset}-{kv}");
                let path = dir.join(&name);
                if path.is_dir() && !BUNDLED.contains(&name.as_str()) {
                    out.push(path);
                }
            }
        }
    }
    out
}

/// Imports the model of a folder.
pub(crate) fn import(dir: &Path) -> Imported {
    import::open(&dir.join("model.onnx")).and_then(|m| m.import()).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

/// A configuration with the bundled rules and device.
pub(crate) fn config(tp: usize, pp: usize) -> CompileConfig {
    CompileConfig::standard(Mapping { tp, pp }, RuleSet::bundled().unwrap()).unwrap()
}

/// Compiles with the bundled rules.
pub(crate) fn compiled(model: &Imported, tp: usize, pp: usize) -> Compiled {
    compile(model, &config(tp, pp)).unwrap_or_else(|e| panic!("tp {tp}, pp {pp}: {e}"))
}

/// Writes a plan, reads it back and runs it on all ranks.
pub(crate) fn run(plan: &Plan, weights: &Weights, inputs: &BTreeMap<String, Tensor>) -> Vec<(String, Tensor)> {
    let (_folder, plan, held) = written(plan, weights);
    executor::run(&plan, &held, inputs, &RunConfig::default()).unwrap().outputs
}

/// The weights of every rank of a plan.
pub(crate) fn held(plan: &Plan, weights: &Weights) -> PlanWeights {
    written(plan, weights).2
}

/// The outputs of a plan's unoptimised program, with the weights put together from the rank files.
pub(crate) fn run_reference(plan: &Plan, weights: &Weights, dir: &Path) -> Vec<(String, Tensor)> {
    let names: Vec<String> = plan.inputs.iter().map(|i| i.name.clone()).collect();
    run_reference_on(plan, weights, &tensors(dir, "input", &names))
}

/// The same on given inputs.
pub(crate) fn run_reference_on(
    plan: &Plan,
    weights: &Weights,
    inputs: &BTreeMap<String, Tensor>,
) -> Vec<(String, Tensor)> {
    let (_folder, plan, held) = written(plan, weights);
    let whole = ReferenceWeights::new(&plan, &held);
    executor::run_reference(&plan, &whole, inputs, &RunConfig::default()).unwrap().outputs
}

/// Writes a plan into a temporary folder and reads it back.
fn written(plan: &Plan, weights: &Weights) -> (tempfile::TempDir, Plan, PlanWeights) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("plan");
    let mut w = PlanWriter::create(&dir).unwrap();
    for rank in 0..plan.mapping.world() {
        w.weights(rank, &lower::weight_entries(plan, rank, weights).unwrap()).unwrap();
    }
    w.finish(plan.clone()).unwrap();
    let (plan, held) = plan::load(&dir).unwrap();
    (folder, plan, held)
}

/// The tensors `<prefix>_<i>.npy` of a folder, named after the graph's.
pub(crate) fn tensors(dir: &Path, prefix: &str, names: &[String]) -> BTreeMap<String, Tensor> {
    let read = |(i, name): (usize, &String)| {
        let file = dir.join(format!("{prefix}_{i}.npy"));
        (name.clone(), read_npy_file(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())))
    };
    names.iter().enumerate().map(read).collect()
}

/// Copies the files of a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
