//! Nodes of older opsets, bodies, sequences and packed weights in emitted files; the table of operator versions.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use prost::Message as _;
use sinter::import::proto::{AttributeProto, OperatorSetIdProto, attribute_proto::AttributeType};

use crate::broken::{self, node};
use crate::{cli, emit, fixtures};

/// The folders that `tests/ort/check_versions.py --write` makes; the outputs are ONNX Runtime's.
fn folders() -> Vec<PathBuf> {
    let dir = fixtures::root().join("fixtures/emit");
    let mut out: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    out.sort();
    assert!(!out.is_empty());
    out
}

#[test]
fn what_older_nodes_mean_is_kept() {
    let mut all = String::new();
    for model in folders() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let name = model.file_name().unwrap().to_str().unwrap().to_owned();
        emit::runs(dir, model.join("model.onnx").to_str().unwrap(), &model);
        for dialect in ["standard", "ort"] {
            let file = format!("{dialect}.onnx");
            emit::emit(dir, &model, &file, &["--dialect", dialect]);
            let m = emit::read(&dir.join(&file));
            emit::sound(&m, &dir.join(&file));
            // The file means the same to what reads files of its opset.
            emit::runs(dir, &file, &model);
            if dialect == "standard" {
                writeln!(all, "---- {name}\n{}", emit::text(&m)).unwrap();
            }
        }
    }
    insta::assert_snapshot!("emit_versions", all);
}

#[test]
fn what_has_no_newer_form_is_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let text = |name: &str, value: &str| AttributeProto {
        name: Some(name.to_owned()),
        s: Some(value.as_bytes().to_vec()),
        r#type: Some(AttributeType::String as i32),
        ..AttributeProto::default()
    };
    let mut resize = node("r", "Resize", &["x", "roi", "scales"], &["y"]);
    resize.attribute = vec![text("mode", "nearest"), text("coordinate_transformation_mode", "tf_half_pixel_for_nn")];
    let scalars = |name: &str, values: &[f32]| sinter::import::proto::TensorProto {
        dims: vec![values.len() as i64],
        raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()),
        ..broken::weight(name)
    };
    let mut m = broken::model(vec![resize], vec![scalars("roi", &[]), scalars("scales", &[1.0, 2.0])]);
    m.opset_import = vec![OperatorSetIdProto { domain: None, version: Some(11) }];
    m.graph.as_mut().unwrap().output = vec![broken::value("y")];
    let declared = m.graph.as_mut().unwrap();
    declared.output[0].r#type = None;
    std::fs::write(dir.join("model.onnx"), m.encode_to_vec()).unwrap();
    let ended = cli::sinter(dir, &["optimize", "model.onnx", "--emit", "onnx", "-o", "out.onnx"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("Resize of opset 11 cannot be written as ONNX: "), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(!dir.join("out.onnx").exists());
}

/// The table is that of the `onnx` package of which it says that it was made. `make schemas` makes it again.
#[test]
fn the_table_of_versions_is_that_of_the_schemas() {
    let root = fixtures::root();
    let table = root.join("src/emit/schemas.txt");
    let text = std::fs::read_to_string(&table).unwrap();
    let made_from = text.split("from onnx ").nth(1).and_then(|t| t.split(',').next()).unwrap();
    let python = std::env::var_os("SINTER_PYTHON").map_or_else(|| root.join("target/venv/bin/python"), PathBuf::from);
    let version = Command::new(&python).args(["-c", "import onnx; print(onnx.__version__)"]).output();
    let version = version.map(|v| String::from_utf8_lossy(&v.stdout).trim().to_owned()).unwrap_or_default();
    if version != made_from {
        println!(
            "skipped: {} has no onnx {made_from} (make schemas installs it; or set SINTER_PYTHON)",
            python.display()
        );
        return;
    }
    let script = root.join("tests/ort/make_schemas.py");
    let done = Command::new(&python).arg(script).arg("--check").arg(table).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
