//! Plans are written whole, read back equal, and refused when anything about them is off.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use sinter_runtime::compare::{Tolerance, bisect, compare};
use sinter_runtime::executor::{RunConfig, run, run_reference};
use sinter_runtime::plan::*;
use support::*;

/// A folder that is removed at the end of a test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("sinter-plan-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn write(dir: &Path, plan: Plan) {
    let (w1, w2) = mlp_weights();
    let mut w = PlanWriter::create(dir).unwrap();
    for rank in 0..plan.mapping.world() {
        w.weights(rank, &mlp_entries(&w1, &w2, rank)).unwrap();
    }
    w.text("stage0.sir", "text\n").unwrap();
    w.finish(plan).unwrap();
}

fn load_error(dir: &Path) -> String {
    match load(dir) {
        Ok(_) => panic!("the plan was accepted"),
        Err(e) => e.to_string(),
    }
}

/// Changes the plan and makes its digest fit again.
fn edit(dir: &Path, change: impl FnOnce(String) -> String) {
    let json = change(fs::read_to_string(dir.join(PLAN_FILE)).unwrap());
    fs::write(dir.join(PLAN_FILE), &json).unwrap();
    fs::write(dir.join(DIGEST_FILE), blake3::hash(json.as_bytes()).to_hex().as_str()).unwrap();
}

#[test]
fn written_plans_read_back_and_run_like_their_reference() {
    let folder = Folder::new("round");
    let dir = folder.0.join("plan");
    write(&dir, mlp());
    let (plan, weights) = load(&dir).unwrap();
    assert_eq!(plan.stages, mlp().stages);
    assert_eq!(plan.files.len(), 5);
    let (w1, w2) = mlp_weights();
    assert_eq!(*weights.whole(&plan, "w1").unwrap(), *w1.bytes());
    assert_eq!(*weights.whole(&plan, "w2").unwrap(), *w2.bytes());
    assert!(weights.whole(&plan, "w3").is_err());

    let inputs = named(&[("x", &count(&[3, 4], 0.25))]);
    let config = RunConfig { trace: true, ..RunConfig::default() };
    let result = run(&plan, &weights, &inputs, &config).unwrap();
    let reference = run_reference(&plan, &ReferenceWeights::new(&plan, &weights), &inputs, &config).unwrap();
    for ((name, a), (_, b)) in result.outputs.iter().zip(&reference.outputs) {
        assert!(compare(a, b, Tolerance::F32).pass, "{name}: {a:?} {b:?}");
    }
    assert!(result.outputs[0].1.to_f64().iter().any(|v| *v != 0.0));
    assert_eq!(result.trace.keys().collect::<Vec<_>>(), ["y", "z"]);
    assert_eq!(reference.trace.len(), 5);
    let mut wrong = result.trace.clone();
    wrong.get_mut("y").unwrap().bytes_mut()[3] ^= 0x40;
    assert!(bisect(&result.trace, &reference.trace, ["h", "y", "z"]).is_none());
    assert_eq!(bisect(&wrong, &reference.trace, ["h", "y", "z"]).unwrap().0, "y");
}

#[test]
fn bytes_do_not_depend_on_the_order_of_weights() {
    let folder = Folder::new("bytes");
    let (w1, w2) = mlp_weights();
    let mut contents = vec![];
    for turn in 0..2 {
        let dir = folder.0.join(format!("plan{turn}"));
        let mut w = PlanWriter::create(&dir).unwrap();
        let mut entries = mlp_entries(&w1, &w2, 1);
        entries.push(WeightEntry {
            key: "a8".to_owned(),
            dtype: sinter_runtime::dtype::DType::U8,
            shape: vec![3],
            source: WeightData::Bytes(&[1, 2, 3]),
            source_shape: vec![3],
            range: None,
            cut: None,
        });
        if turn == 1 {
            entries.reverse();
        }
        w.weights(0, &entries).unwrap();
        for rank in 1..mlp().mapping.world() {
            w.weights(rank, &mlp_entries(&w1, &w2, rank)).unwrap();
        }
        w.finish(mlp()).unwrap();
        contents.push(fs::read(dir.join("rank0.safetensors")).unwrap());
    }
    assert_eq!(contents[0], contents[1]);
    let header = u64::from_le_bytes(contents[0][..8].try_into().unwrap()) as usize;
    assert_eq!((8 + header) % 64, 0);
    let parsed = safetensors::SafeTensors::deserialize(&contents[0]).unwrap();
    assert_eq!(parsed.tensor("a8").unwrap().data(), [1, 2, 3]);
    assert_eq!(parsed.tensor("w2").unwrap().data(), &w2.bytes()[24..]);
    assert_eq!(contents[0].len(), 8 + header + 48 + 24 + 3);
}

#[test]
fn what_would_not_read_back_is_not_written() {
    let folder = Folder::new("unreadable");
    let dir = folder.0.join("plan");
    let (w1, w2) = mlp_weights();
    let write_with = |ranks: usize, plan: Plan| {
        let mut w = PlanWriter::create(&dir).unwrap();
        for rank in 0..ranks {
            w.weights(rank, &mlp_entries(&w1, &w2, rank)).unwrap();
        }
        w.finish(plan).unwrap_err().to_string()
    };
    let world = mlp().mapping.world();
    let e = write_with(1, mlp());
    assert!(e.contains("would not read back") && e.contains("is missing"), "{e}");
    let mut with_default = mlp();
    with_default.inputs[0].default = true;
    let e = write_with(world, with_default);
    assert!(e.contains("the default value of the input `x` is missing"), "{e}");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn folders_are_replaced_only_when_they_hold_a_plan() {
    let folder = Folder::new("place");
    let dir = folder.0.join("plan");
    fs::create_dir(&dir).unwrap();
    write(&dir, mlp());
    let mut other = mlp();
    other.model = "other".to_owned();
    write(&dir, other);
    assert_eq!(load(&dir).unwrap().0.model, "other");
    // A writer that is dropped leaves the old plan, and nothing else.
    let mut dropped = PlanWriter::create(&dir).unwrap();
    dropped.text("stage0.sir", "half").unwrap();
    assert!(matches!(dropped.text("stage0.sir", ""), Err(WriteError::Name(_))));
    assert!(matches!(dropped.text("../x", ""), Err(WriteError::Name(_))));
    drop(dropped);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    assert_eq!(load(&dir).unwrap().0.model, "other");

    let mine = folder.0.join("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("thesis.txt"), "x").unwrap();
    for path in [&mine, &mine.join("thesis.txt")] {
        let e = PlanWriter::create(path).err().unwrap();
        assert!(matches!(e, WriteError::Occupied(_)), "{e}");
    }
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let folder = Folder::new("weights");
    let (w1, w2) = mlp_weights();
    let mut w = PlanWriter::create(&folder.0.join("plan")).unwrap();
    let mut entries = mlp_entries(&w1, &w2, 0);
    entries[0].shape = vec![2, 2];
    assert!(w.weights(0, &entries).unwrap_err().to_string().contains("`w2`: the part has shape [3, 2], not [2, 2]"));
    entries[0].cut = Some((0, 2, 5));
    assert!(w.weights(0, &entries).unwrap_err().to_string().contains("part 2 of 5 along axis 0"));
    entries[0].source = WeightData::Bytes(&[0; 3]);
    assert!(w.weights(0, &entries).unwrap_err().to_string().contains("3 bytes for f32[6, 2]"));
}

#[test]
fn changed_plans_are_refused_with_the_reason() {
    let folder = Folder::new("changed");
    let dir = folder.0.join("plan");
    let fresh = || write(&dir, mlp());
    fresh();
    assert!(load_error(&folder.0).contains("cannot read"));

    let json = fs::read_to_string(dir.join(PLAN_FILE)).unwrap();
    fs::write(dir.join(PLAN_FILE), json.replace("\"test\"", "\"tast\"")).unwrap();
    assert!(load_error(&dir).contains("its digest is not that in plan.json.blake3"));

    fresh();
    edit(&dir, |_| r#"{"version": 2, "something": "new"}"#.to_owned());
    let e = load_error(&dir);
    assert!(e.contains("plan version 2, this program reads version 1: run `sinter optimize` again"), "{e}");
    fresh();
    edit(&dir, |_| "{".to_owned());
    assert!(load_error(&dir).contains("not a plan"));

    fresh();
    let file = dir.join("rank0.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let e = load_error(&dir);
    assert!(e.contains("rank0.safetensors: its digest is not that in the plan"), "{e}");
    fs::write(&file, &bytes[..last]).unwrap();
    assert!(load_error(&dir).contains("bytes instead of"));
    fs::remove_file(&file).unwrap();
    assert!(load_error(&dir).contains("cannot read"));

    fresh();
    edit(&dir, |j| j.replacen("\"key\": \"w1\"", "\"key\": \"w9\"", 1));
    let e = load_error(&dir);
    assert!(e.contains("rank0.safetensors: not a plan: the weight `w9` is missing"), "{e}");
    fresh();
    edit(&dir, |j| j.replacen("\"weight\": \"w1\"", "\"weight\": \"w9\"", 1));
    assert!(load_error(&dir).contains("no rank holds the weight `w1`"));
    fresh();
    edit(&dir, |j| j.replacen("\"all_reduce\"", "\"all_gather\"", 1));
    assert!(load(&dir).is_err());
}

#[test]
fn every_contradiction_is_found() {
    let broken = |change: &dyn Fn(&mut Plan)| {
        let mut plan = mlp();
        change(&mut plan);
        plan.certificate = mlp().certificate;
        verify(&plan).unwrap_err().to_string()
    };
    verify(&mlp()).unwrap();
    let check = |expected: &str, change: &dyn Fn(&mut Plan)| {
        let e = broken(change);
        assert!(e.contains(expected), "{expected}: {e}");
    };
    check("1 stages for pp = 2", &|p| drop(p.stages.pop()));
    check("value 99 does not exist", &|p| p.stages[0].steps[0].inputs[0] = ValueId(99));
    check("1 operands", &|p| p.stages[0].steps[0].inputs.truncate(1));
    check("buffer 9 does not exist", &|p| p.stages[0].values[3].source = Source::Buffer(9));
    check("aliases form a circle", &|p| p.stages[0].values[3].source = Source::Alias(ValueId(3)));
    check("reads `r.part`, which has no value yet", &|p| p.stages[0].steps.swap(1, 2));
    check("shares buffer 0 with `y.partial`", &|p| {
        p.stages[0].values[5].source = Source::Buffer(0);
        p.stages[0].steps[3].inputs[0] = ValueId(3);
    });
    check("over another of its own operands", &|p| p.stages[0].values[4].source = Source::Buffer(0));
    check("uses the symbol `m`", &|p| p.stages[0].values[3].ty = ty(&["m", "3"]));
    check("3 parts for 2 ranks", &|p| p.outputs[1].part = part(1, 3));
    check("output `z` is value 99", &|p| p.outputs[0].value = ValueId(99));
    check("input 4 does not exist", &|p| p.stages[0].values[0].source = Source::Input { index: 4, part: None });
    check("the reference program has no value `z2`", &|p| {
        p.reference.as_mut().unwrap().values[7].name = "q".to_owned()
    });
    check("rank 0 sends tag 7 to rank 2, which never receives it", &|p| {
        let send = p.stages[0].steps[4].clone();
        p.stages[0].steps.push(send);
    });
    check("the certificate is not that of the stages", &|p| {
        let s = p.stages[0].steps[3].clone();
        let extra = p.stages[0].values[6].clone();
        p.stages[0].values.push(Value { name: "again".to_owned(), source: Source::Buffer(4), ..extra });
        p.stages[0].buffers.push(Buffer { bytes: vec![] });
        p.stages[0].steps.push(Step { outputs: vec![Some(ValueId(7))], ..s });
    });
}
