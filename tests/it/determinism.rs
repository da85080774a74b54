//! Equal inputs give byte-equal plans, wherever the model lies and on however many threads.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::fixtures;

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |e: std::io::Result<std::fs::DirEntry>| {
        let e = e.unwrap();
        (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())
    };
    std::fs::read_dir(dir).unwrap().map(read).collect()
}

/// Compiles a copy of a model in a folder of its own, in a process of its own.
fn plan(model: &Path, folder: &str, threads: &str) -> BTreeMap<String, Vec<u8>> {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join(folder);
    fixtures::copy(model, &dir);
    let out = temp.path().join("plan");
    let status = Command::new(env!("CARGO_BIN_EXE_sinter"))
        .current_dir(&dir)
        .env("RAYON_NUM_THREADS", threads)
        .args(["optimize", "model.onnx", "--tp", "2", "--pp", "2", "-o"])
        .arg(&out)
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    files(&out)
}

fn check(name: &str) {
    let model = fixtures::model(name);
    let a = plan(&model, "a", "1");
    let b = plan(&model, "another/folder with a longer name", "2");
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{name}");
    for rank in 0..4 {
        assert!(a.contains_key(&format!("rank{rank}.safetensors")), "{name}");
    }
    let differ: Vec<&String> = a.keys().filter(|k| a[*k] != b[*k]).collect();
    assert!(differ.is_empty(), "{name}: {differ:?} differ");
}

#[test]
fn plans_do_not_depend_on_folder_or_threads() {
    fixtures::BUNDLED.iter().for_each(|name| check(name));
}
