//! Weights that are larger than what may be held in memory: they are mapped, cut by offset, streamed and released.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use prost::Message as _;
use serde_json::Value;
use sinter::import::proto::{AttributeProto, ModelProto, StringStringEntryProto, TensorProto};
use sinter_runtime::plan;

use crate::{broken, cli};

/// Width of the square weights: 4 MiB each.
const WIDTH: usize = 1024;
const WEIGHTS: usize = 75;
const BYTES: u64 = (WIDTH * WIDTH * 4) as u64;

/// The offset of a weight. Half of them lie beyond 4 GiB.
fn offset(i: usize) -> u64 {
    let base = if i.is_multiple_of(2) { 0 } else { 5 << 30 };
    base + i as u64 * BYTES
}

/// A chain of products whose weights lie in one file with holes: 300 MiB of weights in 5.3 GiB of file.
fn chain(dir: &Path) {
    let external = |i: usize| {
        let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.to_owned()), value: Some(v) };
        TensorProto {
            dims: vec![WIDTH as i64; 2],
            external_data: vec![
                entry("location", "model.data".to_owned()),
                entry("offset", offset(i).to_string()),
                entry("length", BYTES.to_string()),
            ],
            ..broken::external(&format!("w{i}"), "model.data", 0)
        }
    };
    let name = |i: usize| if i == WEIGHTS { "y".to_owned() } else { format!("x{i}") };
    let nodes = (0..WEIGHTS).map(|i| {
        let x = if i == 0 { "x".to_owned() } else { name(i) };
        broken::node(&format!("n{i}"), "MatMul", &[&x, &format!("w{i}")], &[&name(i + 1)])
    });
    let mut model: ModelProto = broken::model(nodes.collect(), (0..WEIGHTS).map(external).collect());
    let graph = model.graph.as_mut().unwrap();
    for v in graph.input.iter_mut().chain(&mut graph.output) {
        use sinter::import::proto::{tensor_shape_proto::dimension::Value as D, type_proto};
        let Some(type_proto::Value::TensorType(t)) = v.r#type.as_mut().and_then(|t| t.value.as_mut()) else { panic!() };
        t.shape.as_mut().unwrap().dim[1].value = Some(D::DimValue(WIDTH as i64));
    }
    std::fs::write(dir.join("model.onnx"), model.encode_to_vec()).unwrap();
    let mut data = File::create(dir.join("model.data")).unwrap();
    data.set_len(offset(WEIGHTS)).unwrap();
    // Something to find again, at the end of a weight beyond 4 GiB.
    data.seek(SeekFrom::Start(offset(73) + BYTES - 8)).unwrap();
    data.write_all(&[1.5f32.to_le_bytes(), (-2.5f32).to_le_bytes()].concat()).unwrap();
}

/// Peak memory of a compilation, as the program reports it.
fn peak(dir: &Path, args: &[&str]) -> u64 {
    let out = cli::check(dir, 0, &[&["optimize", "model.onnx", "--report", "-"], args].concat()).stdout;
    let report: Value = serde_json::from_str(&out).unwrap();
    report["peak_rss_bytes"].as_u64().unwrap()
}

#[test]
fn peak_memory_does_not_follow_the_weights() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    chain(dir);
    let without = peak(dir, &[]);
    // 0.2 of 2.7 GiB, with all pages of mapped files counted.
    let allowed = WEIGHTS as u64 * BYTES * 2 / 27;
    for args in [
        &["-o", "plan"][..],
        &["-o", "plan2", "--tp", "2"],
        &["-o", "out.onnx", "--emit", "onnx"],
        &["-o", "out", "--emit", "onnx", "--dialect", "ort", "--tp", "2"],
        &["-o", "made", "--random-weights", "1"],
    ] {
        let with = peak(dir, args);
        println!("{args:?}: {} KiB, {} KiB without output", with >> 10, without >> 10);
        assert!(with < without + allowed, "{args:?}: {with} bytes, {without} without output");
    }
    let (_, held) = plan::load(&dir.join("plan")).unwrap();
    let w = sinter_runtime::executor::WeightSource::weight(&held, 0, "w73").unwrap();
    assert_eq!(w.len() as u64, BYTES);
    assert_eq!(&w[w.len() - 8..], [1.5f32.to_le_bytes(), (-2.5f32).to_le_bytes()].concat());
    // The same weight by the other way out.
    let m = ModelProto::decode(&std::fs::read(dir.join("out.onnx")).unwrap()[..]).unwrap();
    let graph = m.graph.unwrap();
    let t = graph.initializer.iter().find(|t| t.name() == "w73").unwrap();
    let at: usize = t.external_data.iter().find(|e| e.key() == "offset").unwrap().value().parse().unwrap();
    let data = std::fs::read(dir.join("out.onnx.data")).unwrap();
    assert_eq!(&data[at + w.len() - 8..at + w.len()], &w[w.len() - 8..]);
    assert!(graph.node.iter().all(|n| n.attribute == Vec::<AttributeProto>::new()));
}

#[test]
fn random_weights_take_no_memory_at_all_until_they_are_read() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    chain(dir);
    std::fs::remove_file(dir.join("model.data")).unwrap();
    let peak = peak(dir, &["-o", "plan", "--tp", "2", "--random-weights", "1"]);
    assert!(peak < 64 << 20, "{peak}");
    let written: u64 = std::fs::read_dir(dir.join("plan")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(written < 1 << 20, "{written}");
}
