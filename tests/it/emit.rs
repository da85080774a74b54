//! Plans as ONNX files: what they look like, that they compute what the model computes, and how they are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use prost::Message as _;
use sinter::import::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_proto::DataLocation, tensor_shape_proto::dimension::Value as D, type_proto,
};

use crate::broken::node;
use crate::{cli, fixtures};

pub(crate) fn read(path: &Path) -> ModelProto {
    ModelProto::decode(&std::fs::read(path).unwrap()[..]).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn graph(m: &ModelProto) -> &GraphProto {
    m.graph.as_ref().unwrap()
}

fn shape(v: &ValueInfoProto) -> String {
    let Some(type_proto::Value::TensorType(t)) = v.r#type.as_ref().and_then(|t| t.value.as_ref()) else { panic!() };
    let dim = |d: &Option<D>| match d {
        Some(D::DimValue(n)) => n.to_string(),
        Some(D::DimParam(p)) => p.clone(),
        None => "?".to_owned(),
    };
    let dims: Vec<String> = t.shape.iter().flat_map(|s| &s.dim).map(|d| dim(&d.value)).collect();
    format!("{}: {}[{}]", v.name(), t.elem_type(), dims.join(", "))
}

fn attribute(a: &AttributeProto) -> String {
    let value = match AttributeType::try_from(a.r#type.unwrap_or(0)).unwrap() {
        _ if a.ref_attr_name.is_some() => format!("@{}", a.ref_attr_name()),
        AttributeType::Float => format!("{:?}", a.f()),
        AttributeType::Int => a.i().to_string(),
        AttributeType::String => String::from_utf8(a.s().to_vec()).unwrap(),
        AttributeType::Ints => format!("{:?}", a.ints),
        AttributeType::Tensor => a.t.as_ref().map(inline).unwrap(),
        AttributeType::Floats => format!("{:?}", a.floats),
        AttributeType::Strings => {
            format!("{:?}", a.strings.iter().map(|s| String::from_utf8_lossy(s)).collect::<Vec<_>>())
        }
        AttributeType::Graph => {
            let g = a.g.as_ref().unwrap();
            let names = |list: &[ValueInfoProto]| list.iter().map(ValueInfoProto::name).collect::<Vec<_>>().join(", ");
            let mut body = String::new();
            nodes(&g.node, &mut body);
            format!("({}) -> ({}):\n{}", names(&g.input), names(&g.output), body.replace("  ", "    "))
        }
        other => panic!("{other:?}"),
    };
    format!("{} = {value}", a.name())
}

/// A small tensor.
fn inline(t: &TensorProto) -> String {
    format!("type {} {:?} {:02x?}", t.data_type(), t.dims, t.raw_data())
}

fn nodes(list: &[NodeProto], text: &mut String) {
    for n in list {
        let op =
            if n.domain().is_empty() { n.op_type().to_owned() } else { format!("{}::{}", n.domain(), n.op_type()) };
        let attributes: Vec<String> = n.attribute.iter().map(attribute).collect();
        let attributes = if attributes.is_empty() { String::new() } else { format!(" {{{}}}", attributes.join(", ")) };
        writeln!(text, "  {} = {op}({}){attributes}", n.output.join(", "), n.input.join(", ")).unwrap();
    }
}

/// A model for the eye.
pub(crate) fn text(m: &ModelProto) -> String {
    let g = graph(m);
    let opsets: Vec<String> = m.opset_import.iter().map(|o| format!("{:?} {}", o.domain(), o.version())).collect();
    let mut t = format!("ir {} opsets {}\n", m.ir_version(), opsets.join(", "));
    for p in &m.metadata_props {
        writeln!(t, "meta {} = {}", p.key(), p.value()).unwrap();
    }
    g.input.iter().for_each(|v| writeln!(t, "input {}", shape(v)).unwrap());
    for i in &g.initializer {
        let data = match i.data_location() {
            DataLocation::External => {
                i.external_data.iter().map(|e| format!("{} {}", e.key(), e.value())).collect::<Vec<_>>().join(", ")
            }
            DataLocation::Default if i.raw_data().len() <= 16 => inline(i),
            DataLocation::Default => format!("{} bytes", i.raw_data().len()),
        };
        writeln!(t, "initializer {} {:?}: {data}", i.name(), i.dims).unwrap();
    }
    nodes(&g.node, &mut t);
    g.output.iter().for_each(|v| writeln!(t, "output {}", shape(v)).unwrap());
    for f in &m.functions {
        writeln!(t, "function {}({}) {:?} -> {}", f.name(), f.input.join(", "), f.attribute, f.output.join(", "))
            .unwrap();
        nodes(&f.node, &mut t);
    }
    t
}

/// Writes a model as ONNX and returns the program's words.
pub(crate) fn emit(dir: &Path, model: &Path, out: &str, more: &[&str]) -> String {
    let model = model.join("model.onnx");
    let args = ["optimize", model.to_str().unwrap(), "--emit", "onnx", "-o", out];
    cli::check(dir, 0, &[&args[..], more].concat()).stdout
}

/// Values are read behind the node that makes them; bodies see what is around them, and nothing around them sees theirs.
fn in_order(list: &[NodeProto], known: &mut BTreeSet<String>, check: &dyn Fn(&NodeProto)) {
    for n in list {
        for i in &n.input {
            assert!(known.contains(i), "{} reads {i} before it is made", n.op_type());
        }
        for g in n.attribute.iter().filter_map(|a| a.g.as_ref()) {
            let mut inner = known.clone();
            for i in &g.input {
                assert!(inner.insert(i.name().to_owned()), "{} is made twice", i.name());
            }
            in_order(&g.node, &mut inner, check);
            g.output.iter().for_each(|o| assert!(g.node.iter().any(|n| n.output.iter().any(|x| x == o.name()))));
        }
        for o in n.output.iter().filter(|o| !o.is_empty()) {
            assert!(known.insert(o.clone()), "{o} is made twice");
        }
        check(n);
    }
}

/// What every reader asks of a file: each value is defined once and before it is read, functions and operator sets
/// are declared, and data lies within its file on pages of its own.
pub(crate) fn sound(m: &ModelProto, path: &Path) {
    let g = graph(m);
    let mut known: BTreeSet<&str> = BTreeSet::from([""]);
    for name in g.input.iter().map(ValueInfoProto::name).chain(g.initializer.iter().map(TensorProto::name)) {
        assert!(known.insert(name), "{name} is defined twice");
    }
    let domains: BTreeSet<&str> = m.opset_import.iter().map(|o| o.domain()).collect();
    let ordered = |list: &'_ [NodeProto], known: &mut BTreeSet<String>| {
        in_order(list, known, &|n| {
            let function = m.functions.iter().any(|f| f.domain() == n.domain() && f.name() == n.op_type());
            assert_eq!(n.domain() == "sinter", function, "{}", n.op_type());
            assert!(domains.contains(n.domain()), "{}", n.domain());
        });
    };
    let mut names: BTreeSet<String> = known.iter().map(|s| (*s).to_owned()).collect();
    ordered(&g.node, &mut names);
    g.output.iter().for_each(|o| assert!(names.contains(o.name()), "{}", o.name()));
    for f in &m.functions {
        ordered(&f.node, &mut f.input.iter().cloned().collect());
        f.output.iter().for_each(|o| assert!(f.node.iter().any(|n| n.output.contains(o)), "{o}"));
    }
    let mut end = 0;
    for t in g.initializer.iter().filter(|t| t.data_location() == DataLocation::External) {
        let get = |key: &str| t.external_data.iter().find(|e| e.key() == key).unwrap().value();
        let (offset, length): (u64, u64) = (get("offset").parse().unwrap(), get("length").parse().unwrap());
        assert_eq!(get("location"), format!("{}.data", path.file_name().unwrap().to_str().unwrap()));
        assert!(offset % 4096 == 0 && offset >= end, "{}", t.name());
        end = offset + length;
    }
    let data = path.with_file_name(format!("{}.data", path.file_name().unwrap().to_str().unwrap()));
    assert_eq!(std::fs::metadata(data).map_or(0, |m| m.len()), end);
}

/// The nodes of a call, with the function's body in its place.
fn inlined(n: &NodeProto, functions: &[FunctionProto]) -> Vec<NodeProto> {
    let Some(f) = functions.iter().find(|f| f.domain() == n.domain() && f.name() == n.op_type()) else {
        return vec![n.clone()];
    };
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    names.extend(f.input.iter().map(String::as_str).zip(n.input.iter().cloned()));
    names.extend(f.output.iter().map(String::as_str).zip(n.output.iter().cloned()));
    let mut out = vec![];
    for inner in &f.node {
        let mut inner = inner.clone();
        for s in inner.input.iter_mut().chain(&mut inner.output).filter(|s| !s.is_empty()) {
            *s = names.get(s.as_str()).cloned().unwrap_or_else(|| format!("{}/{s}", n.name()));
        }
        for a in &mut inner.attribute {
            if let Some(name) = a.ref_attr_name.take() {
                let value = n.attribute.iter().find(|v| v.name() == name).unwrap().clone();
                *a = AttributeProto { name: a.name.clone(), ..value };
            }
        }
        out.extend(inlined(&inner, functions));
    }
    out
}

fn int_attribute(name: &str, value: i64) -> AttributeProto {
    let r#type = Some(AttributeType::Int as i32);
    AttributeProto { name: Some(name.to_owned()), i: Some(value), r#type, ..AttributeProto::default() }
}

/// `part I of N along axis D` of the metadata, by name of the input or output.
fn parts(m: &ModelProto, what: &str) -> BTreeMap<String, [i64; 3]> {
    let of = |key: &str| key.strip_prefix(&format!("sinter.{what}.")).map(str::to_owned);
    let number = |s: &str| s.split(' ').filter_map(|w| w.parse().ok()).collect::<Vec<i64>>().try_into().unwrap();
    m.metadata_props.iter().filter_map(|p| Some((of(p.key())?, number(p.value())))).collect()
}

/// The files of all ranks as one model: collectives become sums and joins over the ranks, and the parts of inputs and
/// outputs are cut and joined as the host does.
fn merged(ranks: &[ModelProto], tp: usize, interface: &GraphProto) -> ModelProto {
    let mut all = GraphProto { name: Some("merged".to_owned()), ..GraphProto::default() };
    all.input.clone_from(&interface.input);
    all.output.clone_from(&interface.output);
    let inputs: BTreeSet<&str> = interface.input.iter().map(ValueInfoProto::name).collect();
    let mut held: BTreeMap<(usize, &str), String> = BTreeMap::new();
    for (stage, files) in ranks.chunks(tp).enumerate() {
        let name = |r: usize, s: &str| format!("s{stage}r{r}/{s}");
        for (r, m) in files.iter().enumerate() {
            let cut = parts(m, "input");
            for v in &graph(m).input {
                let to = name(r, v.name());
                if let Some(&[index, n, axis]) = cut.get(v.name()) {
                    let split: Vec<String> = (0..n).map(|i| format!("{to}.{i}")).collect();
                    let split: Vec<&str> = split.iter().map(String::as_str).collect();
                    let mut cut = node(&to, "Split", &[v.name()], &split);
                    cut.attribute = vec![int_attribute("axis", axis), int_attribute("num_outputs", n)];
                    all.node.push(cut);
                    all.node.push(node(&to, "Identity", &[split[index as usize]], &[&to]));
                } else if inputs.contains(v.name()) {
                    all.node.push(node(&to, "Identity", &[v.name()], &[&to]));
                } else {
                    let sent = &held[&(r, v.name())];
                    all.node.push(node(&to, "Identity", &[sent], &[&to]));
                }
            }
            for t in &graph(m).initializer {
                all.initializer.push(TensorProto { name: Some(name(r, t.name())), ..t.clone() });
            }
        }
        // All ranks have the same nodes, but for what depends on their place.
        let bodies: Vec<Vec<NodeProto>> =
            files.iter().map(|m| graph(m).node.iter().flat_map(|n| inlined(n, &m.functions)).collect()).collect();
        for (r, body) in bodies.iter().enumerate() {
            for n in body {
                let mut n = n.clone();
                n.name = n.name.map(|s| name(r, &s));
                let every = |s: &String| -> Vec<String> { (0..tp).map(|r| name(r, s)).collect() };
                match n.op_type() {
                    "AllReduce" | "AllGather" => {
                        assert_eq!(n.domain(), "com.microsoft");
                        let reduce = n.op_type() == "AllReduce";
                        n.input = every(&n.input[0]);
                        n.domain = None;
                        n.op_type = Some(if reduce { "Sum" } else { "Concat" }.to_owned());
                        n.attribute.retain(|a| a.name() == "axis");
                    }
                    _ => n.input.iter_mut().filter(|s| !s.is_empty()).for_each(|s| *s = name(r, s)),
                }
                n.output.iter_mut().filter(|s| !s.is_empty()).for_each(|s| *s = name(r, s));
                all.node.push(n);
            }
        }
        for (r, m) in files.iter().enumerate() {
            for v in &graph(m).output {
                held.insert((r, v.name()), name(r, v.name()));
            }
        }
        for v in graph(&files[0]).output.iter().filter(|v| interface.output.iter().any(|o| o.name() == v.name())) {
            match parts(&files[0], "output").get(v.name()) {
                None => all.node.push(node(v.name(), "Identity", &[&name(0, v.name())], &[v.name()])),
                Some(&[_, n, axis]) => {
                    let kept: Vec<String> = (0..n as usize).map(|i| name(i * tp / n as usize, v.name())).collect();
                    let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
                    let mut join = node(v.name(), "Concat", &kept, &[v.name()]);
                    join.attribute = vec![int_attribute("axis", axis)];
                    all.node.push(join);
                }
            }
        }
    }
    ModelProto { graph: Some(all), functions: vec![], ..ranks[0].clone() }
}

/// Runs a model and compares with the outputs of a folder.
pub(crate) fn runs(dir: &Path, file: &str, model: &Path) {
    let model = model.to_str().unwrap();
    let ended = cli::sinter(dir, &["run", file, "--inputs", model, "--expect", model]);
    assert_eq!(ended.code, Some(0), "{model} {file}\n{}\n{}", ended.stdout, ended.stderr);
}

#[test]
fn a_file_for_one_rank_computes_what_the_model_computes() {
    for model in fixtures::decoders() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let said = emit(dir, &model, "out.onnx", &[]);
        assert!(said.contains("wrote out.onnx: "), "{said}");
        let m = read(&dir.join("out.onnx"));
        sound(&m, &dir.join("out.onnx"));
        let original = read(&model.join("model.onnx"));
        let interface = |m: &ModelProto| -> Vec<Vec<String>> {
            [&graph(m).input, &graph(m).output].map(|l| l.iter().map(|v| v.name().to_owned()).collect()).to_vec()
        };
        assert_eq!(interface(&m), interface(&original), "{}", model.display());
        // Functions are put in place of their calls here.
        let mut flat = merged(std::slice::from_ref(&m), 1, graph(&m));
        flat.opset_import.retain(|o| o.domain().is_empty());
        std::fs::write(dir.join("flat.onnx"), flat.encode_to_vec()).unwrap();
        runs(dir, "flat.onnx", &model);
        emit(dir, &model, "ort.onnx", &["--dialect", "ort"]);
        let m = read(&dir.join("ort.onnx"));
        sound(&m, &dir.join("ort.onnx"));
        assert!(graph(&m).node.iter().any(|n| n.domain() == "com.microsoft"), "{}", model.display());
    }
}

#[test]
fn the_files_of_all_ranks_compute_what_the_model_computes() {
    for name in fixtures::BUNDLED {
        let model = fixtures::model(name);
        let original = read(&model.join("model.onnx"));
        for (tp, pp) in [(2, 1), (1, 2), (2, 2), (4, 1)] {
            let temp = tempfile::tempdir().unwrap();
            let dir = temp.path();
            emit(dir, &model, "out", &["--tp", &tp.to_string(), "--pp", &pp.to_string()]);
            let mut ranks = vec![];
            for r in 0..tp * pp {
                let path = dir.join(format!("out/rank{r}.onnx"));
                let m = read(&path);
                sound(&m, &path);
                let collectives =
                    |m: &ModelProto| graph(m).node.iter().filter(|n| n.op_type().starts_with("All")).count();
                assert_eq!(collectives(&m) > 0, tp > 1, "{name} tp {tp}");
                ranks.push(m);
            }
            let m = merged(&ranks, tp, graph(&original));
            std::fs::write(dir.join("out/merged.onnx"), m.encode_to_vec()).unwrap();
            runs(dir, "out/merged.onnx", &model);
        }
    }
}

#[test]
fn what_a_file_looks_like() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let model = fixtures::model("llama-dynamo-op18-past");
    emit(dir, &model, "standard.onnx", &[]);
    insta::assert_snapshot!("emit_standard", text(&read(&dir.join("standard.onnx"))));
    emit(dir, &model, "ort.onnx", &["--dialect", "ort"]);
    insta::assert_snapshot!("emit_ort", text(&read(&dir.join("ort.onnx"))));
    let said = emit(dir, &model, "ranks", &["--tp", "2", "--pp", "2"]);
    assert!(said.contains("wrote rank0.onnx to rank3.onnx into ranks"), "{said}");
    insta::assert_snapshot!("emit_rank3", text(&read(&dir.join("ranks/rank3.onnx"))));
}

#[test]
fn equal_inputs_give_equal_files() {
    let temp = tempfile::tempdir().unwrap();
    let model = fixtures::model("qwen3-dynamo-op18-past");
    for folder in ["a", "b"] {
        let dir = temp.path().join(folder);
        std::fs::create_dir(&dir).unwrap();
        emit(&dir, &model, "out.onnx", &["--dialect", "ort"]);
    }
    for file in ["out.onnx", "out.onnx.data"] {
        let [a, b] = ["a", "b"].map(|f| std::fs::read(temp.path().join(f).join(file)).unwrap());
        assert!(a == b, "{file}");
    }
}

#[test]
fn a_place_that_cannot_be_written_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let model = fixtures::model("qwen2-dynamo-op18-none").join("model.onnx");
    let model = model.to_str().unwrap();
    std::fs::create_dir(dir.join("folder")).unwrap();
    std::fs::write(dir.join("file"), "mine").unwrap();
    for (args, message) in [
        (&["-o", "folder"][..], "folder is a folder: with one rank, --emit onnx writes a file"),
        (&["-o", "file", "--tp", "2"], "file is a file: with 2 ranks, --emit onnx writes a folder"),
        (&["-o", "missing/out.onnx"], "cannot write the ONNX file missing/out.onnx: entity not found"),
        (&[], "--output <PATH>"),
    ] {
        let ended = cli::sinter(dir, &[&["optimize", model, "--emit", "onnx"], args].concat());
        assert_eq!(ended.code, Some(2), "{args:?}");
        assert!(ended.stderr.contains(message), "{args:?}: {}", ended.stderr);
    }
    assert_eq!(std::fs::read(dir.join("file")).unwrap(), b"mine");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2);
    // What is there is replaced, data and all.
    for _ in 0..2 {
        emit(dir, Path::new(model).parent().unwrap(), "out.onnx", &[]);
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 4);
}
