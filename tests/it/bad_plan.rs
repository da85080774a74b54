//! Plans and inputs that `run` must refuse.

use std::path::Path;

use sinter_runtime::io::write_npy;
use sinter_runtime::tensor::Tensor;

use crate::bad_input::check_all;
use crate::{broken, cli, fixtures};

const RUN: [&str; 6] = ["run", "plan", "--inputs", "model", "--outputs", "out"];

/// The model with its inputs, and a plan for two ranks.
fn planned(dir: &Path) -> Vec<&'static str> {
    fixtures::copy(&fixtures::model("llama-dynamo-op18-past"), &dir.join("model"));
    let ended = cli::sinter(dir, &["optimize", "model/model.onnx", "--tp", "2", "-o", "plan"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    RUN.to_vec()
}

/// Changes a file of the plan.
fn edited(dir: &Path, file: &str, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<&'static str> {
    let args = planned(dir);
    let path = dir.join("plan").join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    edit(&mut bytes);
    std::fs::write(path, bytes).unwrap();
    args
}

fn removed(dir: &Path, file: &str) -> Vec<&'static str> {
    let args = planned(dir);
    std::fs::remove_file(dir.join(file)).unwrap();
    args
}

/// Replaces an input.
fn input(dir: &Path, file: &str, tensor: &Tensor) -> Vec<&'static str> {
    let args = planned(dir);
    write_npy(&dir.join("model").join(file), tensor).unwrap();
    args
}

/// The inputs as an archive, under changed names.
fn archive(dir: &Path, rename: impl Fn(usize) -> Option<String>) -> Vec<&'static str> {
    planned(dir);
    let read = |i: usize| std::fs::read(dir.join(format!("model/input_{i}.npy"))).unwrap();
    let names: Vec<(String, Vec<u8>)> = (0..7).filter_map(|i| Some((rename(i)?, read(i)))).collect();
    let arrays: Vec<(&str, Vec<u8>)> = names.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    broken::npz(&dir.join("inputs.npz"), &arrays);
    vec!["run", "plan", "--inputs", "inputs.npz", "--outputs", "out"]
}

#[test]
fn plans() {
    let text = check_all(&[
        ("absent", |_| RUN.to_vec()),
        ("not-a-plan", |d| {
            std::fs::create_dir(d.join("plan")).unwrap();
            RUN.to_vec()
        }),
        ("plan-byte", |d| {
            edited(d, "plan.json", |b| {
                let at = b.windows(6).position(|w| w == b"matmul").unwrap();
                b[at] = b'n';
            })
        }),
        ("plan-truncated", |d| edited(d, "plan.json", |b| b.truncate(40))),
        ("plan-version", |d| {
            edited(d, "plan.json", |b| {
                *b = String::from_utf8(b.clone()).unwrap().replacen("\"version\": 1", "\"version\": 2", 1).into_bytes();
            })
        }),
        ("digest-missing", |d| removed(d, "plan/plan.json.blake3")),
        ("weight-byte", |d| {
            edited(d, "rank1.safetensors", |b| {
                let at = b.len() - 5;
                b[at] ^= 1;
            })
        }),
        ("weights-truncated", |d| edited(d, "rank0.safetensors", |b| b.truncate(b.len() - 8))),
        ("weights-missing", |d| removed(d, "plan/rank1.safetensors")),
        ("text-changed", |d| edited(d, "stage0.sir", |b| b.push(b'\n'))),
    ]);
    insta::assert_snapshot!(text);
}

#[test]
fn inputs() {
    let text = check_all(&[
        ("wrong-dtype", |d| input(d, "input_0.npy", &Tensor::from_f32(&[2, 7], &[1.0; 14]).unwrap())),
        ("wrong-rank", |d| input(d, "input_0.npy", &Tensor::from_i64(&[14], &[1; 14]).unwrap())),
        ("wrong-extent", |d| input(d, "input_2.npy", &Tensor::from_i64(&[2, 3], &[1; 6]).unwrap())),
        ("short-mask", |d| input(d, "input_1.npy", &Tensor::from_i64(&[2, 3], &[1; 6]).unwrap())),
        ("out-of-vocabulary", |d| {
            let path = fixtures::model("llama-dynamo-op18-past").join("input_0.npy");
            let mut t = sinter_runtime::io::read_npy_file(&path).unwrap();
            t.bytes_mut()[..8].copy_from_slice(&100_000i64.to_le_bytes());
            input(d, "input_0.npy", &t)
        }),
        ("missing", |d| removed(d, "model/input_2.npy")),
        ("surplus", |d| input(d, "input_7.npy", &Tensor::from_i64(&[1], &[1]).unwrap())),
        ("not-an-array", |d| {
            let args = planned(d);
            std::fs::write(d.join("model/input_0.npy"), "text").unwrap();
            args
        }),
        ("no-folder", |d| {
            planned(d);
            vec!["run", "plan", "--inputs", "absent", "--outputs", "out"]
        }),
        ("archive-wrong-name", |d| {
            archive(d, |i| Some(if i == 2 { "positions".to_owned() } else { format!("input_{i}") }))
        }),
        ("archive-missing", |d| archive(d, |i| (i != 2).then(|| format!("input_{i}")))),
        ("archive-surplus", |d| {
            archive(d, |i| Some(if i == 6 { "input_60".to_owned() } else { format!("input_{i}") }))
        }),
        ("archive-broken", |d| {
            let args = archive(d, |i| Some(format!("input_{i}")));
            std::fs::write(d.join("inputs.npz"), b"PK\x03\x04 no archive").unwrap();
            args
        }),
        ("expected-missing", |d| {
            let args = removed(d, "model/output_3.npy");
            [&args[..], &["--expect", "model"]].concat()
        }),
    ]);
    insta::assert_snapshot!(text);
}

#[test]
fn a_whole_archive_is_accepted() {
    let temp = tempfile::tempdir().unwrap();
    let args = archive(temp.path(), |i| Some(format!("input_{i}")));
    let ended = cli::sinter(temp.path(), &args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}
