//! Shape arithmetic on symbolic extents: each case is a model, and what ONNX Runtime computes from it at some extents.
//!
//! `tests/ort/fuzz_shapes.py --model MODEL --record tests/cases/symbols/NAME` writes a case.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message as _;
use sinter::emit::{Dialect, Form, emit};
use sinter::import::proto::{
    AttributeProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto, tensor_shape_proto,
    type_proto,
};
use sinter::import::{self, Imported};
use sinter::ir::{DType, Dim, Op, TensorType};
use sinter_runtime::executor::{self, RunConfig};
use sinter_runtime::tensor::Tensor;

use crate::{broken, fixtures};

/// What is computed at some extents: outputs by name, with element type, extents and values.
struct Point {
    extents: BTreeMap<String, i64>,
    outputs: BTreeMap<String, (String, Vec<usize>, Vec<f64>)>,
}

fn points(text: &str) -> Vec<Point> {
    let mut out: Vec<Point> = vec![];
    for line in text.lines() {
        if let Some(result) = line.strip_prefix("  ") {
            let (head, values) = result.split_once(':').unwrap();
            let [name, dtype, shape] = head.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let shape = shape.split(',').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
            let values = values.split_whitespace().map(|v| v.parse().unwrap()).collect();
            out.last_mut().unwrap().outputs.insert(name.to_owned(), (dtype.to_owned(), shape, values));
            continue;
        }
        let extents =
            line.split(' ').map(|e| e.split_once('=').unwrap()).map(|(k, v)| (k.to_owned(), v.parse().unwrap()));
        out.push(Point { extents: extents.collect(), outputs: BTreeMap::new() });
    }
    out
}

/// The inputs that `feeds` of the script makes.
fn inputs(declared: &[(String, DType, Vec<Dim>)], extents: &BTreeMap<String, i64>) -> BTreeMap<String, Tensor> {
    let one = |(i, (name, dtype, shape)): (usize, &(String, DType, Vec<Dim>))| {
        let shape: Vec<usize> = shape.iter().map(|d| d.eval(extents).unwrap() as usize).collect();
        let n: usize = shape.iter().product();
        let bytes: Vec<u8> = match dtype {
            DType::F32 => {
                (0..n).flat_map(|v| ((v as f32 + 1.0) * if i % 2 == 0 { 1.0 } else { -1.0 }).to_le_bytes()).collect()
            }
            DType::I64 => (0..n as i64).flat_map(|v| (v % 3).to_le_bytes()).collect(),
            other => panic!("inputs of {other}"),
        };
        (name.clone(), Tensor::from_bytes(*dtype, &shape, &bytes).unwrap())
    };
    declared.iter().enumerate().map(one).collect()
}

fn values(t: &Tensor) -> Vec<f64> {
    let bytes = t.bytes();
    match t.dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        DType::I32 => bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        DType::I64 => bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
        DType::Bool => bytes.iter().map(|&b| b.into()).collect(),
        other => panic!("outputs of {other}"),
    }
}

fn check(model: &Imported, what: &str, tp: usize, points: &[Point]) {
    let compiled = fixtures::compiled(model, tp, 1);
    let declared: Vec<_> =
        compiled.plan.inputs.iter().map(|i| (i.name.clone(), i.ty.dtype, i.shape().clone())).collect();
    for p in points {
        let about = format!("{what}, tp {tp}, at {:?}", p.extents);
        for (name, got) in fixtures::run(&compiled.plan, &model.weights, &inputs(&declared, &p.extents)) {
            let (dtype, shape, want) = &p.outputs[&name];
            assert_eq!((got.dtype.to_string(), &got.shape), (dtype.clone(), shape), "{about}: {name}");
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
            assert!(values(&got).iter().zip(want).all(near), "{about}: {name} is {:?}, not {want:?}", values(&got));
        }
    }
}

fn case(path: &Path) {
    let points = points(&std::fs::read_to_string(path.with_extension("txt")).unwrap());
    assert!(!points.is_empty(), "{}: no extents", path.display());
    let open =
        |p: &Path| import::open(p).and_then(|m| m.import()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let model = open(path);
    let name = path.file_stem().unwrap().to_string_lossy();
    for tp in [1, 2] {
        check(&model, &name, tp, &points);
    }
    let compiled = fixtures::compiled(&model, 1, 1);
    let form = Form { dialect: Dialect::Standard, opset: model.opset };
    let file = emit(&compiled.plan, 0, &model.weights, form, "emitted.bin").unwrap();
    assert!(file.data.is_empty(), "{name}: weights of cases are small");
    let dir = tempfile::tempdir().unwrap();
    let emitted = dir.path().join("emitted.onnx");
    std::fs::write(&emitted, file.bytes()).unwrap();
    // Declared shapes are those of the model.
    let again = open(&emitted);
    let shapes = |m: &Imported| {
        let inputs = m.graph.nodes().filter(|(_, n)| matches!(n.op, Op::Input { .. }));
        let shape = |n: &str, t: &TensorType| m.declared.get(n).unwrap_or(&t.shape).clone();
        inputs.map(|(_, n)| format!("{}{:?}", n.name, shape(&n.name, n.ty()))).collect::<Vec<_>>()
    };
    assert_eq!(shapes(&again), shapes(&model), "{name}");
    check(&again, &format!("{name}, emitted"), 1, &points);
}

#[test]
fn extents_follow_the_rules_of_onnx_at_every_size() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/symbols");
    let mut cases: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    cases.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    cases.sort();
    assert!(cases.len() > 10);
    cases.iter().for_each(|p| case(p));
}

fn axis(v: i64) -> AttributeProto {
    let kind = attribute_proto::AttributeType::Int as i32;
    AttributeProto { name: Some("axis".to_owned()), i: Some(v), r#type: Some(kind), ..AttributeProto::default() }
}

/// An f32 value with named extents; numbers are constant ones.
fn declared(name: &str, dims: &[&str]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |d: &&str| {
        let value = d.parse().map_or_else(|_| Value::DimParam((*d).to_owned()), Value::DimValue);
        Dimension { value: Some(value), ..Dimension::default() }
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(shape) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(ty), ..ValueInfoProto::default() }
}

fn model_of(inputs: &[(&str, &[&str])], nodes: Vec<NodeProto>, output: &str) -> Imported {
    let mut m = broken::model(nodes, vec![]);
    let g = m.graph.as_mut().unwrap();
    g.input = inputs.iter().map(|(n, d)| declared(n, d)).collect();
    g.output = vec![ValueInfoProto { name: Some(output.to_owned()), ..ValueInfoProto::default() }];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, m.encode_to_vec()).unwrap();
    import::open(&path).and_then(|m| m.import()).unwrap_or_else(|e| panic!("{e}"))
}

/// The outputs' shapes for inputs of the given shapes, or what is wrong with these.
fn shapes_of(model: &Imported, shapes: &[&[usize]]) -> Result<Vec<Vec<usize>>, String> {
    let compiled = fixtures::compiled(model, 1, 1);
    let names = compiled.plan.inputs.iter().map(|i| i.name.clone());
    let given = names.zip(shapes).map(|(n, s)| (n, Tensor::zeros(DType::F32, s).unwrap())).collect();
    let held = fixtures::held(&compiled.plan, &model.weights);
    let done = executor::run(&compiled.plan, &held, &given, &RunConfig::default()).map_err(|e| e.to_string())?;
    Ok(done.outputs.into_iter().map(|(_, t)| t.shape).collect())
}

#[test]
fn any_legal_name_is_one_extent() {
    for name in ["batch-size", "batch_size*num_heads", "667_dim0", "a b", "(x", "min", "n\"m", "7.5", "("] {
        let m = model_of(&[("x", &[name, "4"])], vec![broken::node("neg", "Neg", &["x"], &["y"])], "y");
        assert_eq!(shapes_of(&m, &[&[3, 4]]), Ok(vec![vec![3, 4]]), "{name}");
        assert!(m.assumptions.is_empty(), "{name}");
    }
}

#[test]
fn a_name_that_is_an_expression_of_extents_is_checked() {
    let add = broken::node("add", "Concat", &["x", "y"], &["s"]);
    let add = NodeProto { attribute: vec![axis(0)], ..add };
    let sum = broken::node("sum", "Add", &["s", "mask"], &["z"]);
    let inputs: [(&str, &[&str]); 3] = [("x", &["past", "4"]), ("y", &["seq", "4"]), ("mask", &["past + seq", "4"])];
    let m = model_of(&inputs, vec![add, sum], "z");
    assert_eq!(m.graph.outputs().len(), 1);
    assert_eq!(shapes_of(&m, &[&[2, 4], &[3, 4], &[5, 4]]), Ok(vec![vec![5, 4]]));
    let e = shapes_of(&m, &[&[2, 4], &[3, 4], &[6, 4]]).unwrap_err();
    for part in ["\"past + seq\" = past + seq", "\"past + seq\" is 6, axis 0 of `mask`", "found 6 and 5"] {
        assert!(e.contains(part), "{part}: {e}");
    }
}

#[test]
fn what_onnx_demands_is_stated_and_checked() {
    let product = broken::node("product", "MatMul", &["a", "b"], &["y"]);
    let m = model_of(&[("a", &["n", "k"]), ("b", &["l", "m"])], vec![product], "y");
    let [one] = &m.assumptions[..] else { panic!("{:?}", m.assumptions) };
    assert!(one.why.contains("`product` (MatMul)"), "{one:?}");
    assert_eq!(shapes_of(&m, &[&[2, 3], &[3, 5]]), Ok(vec![vec![2, 5]]));
    let e = shapes_of(&m, &[&[2, 3], &[4, 5]]).unwrap_err();
    for part in ["k is 3, axis 1 of `a`", "l is 4, axis 0 of `b`", "`product` (MatMul)"] {
        assert!(e.contains(part), "{part}: {e}");
    }
    // Broadcasting demands nothing: either extent may be 1.
    let sum = broken::node("sum", "Add", &["a", "b"], &["y"]);
    let m = model_of(&[("a", &["n", "4"]), ("b", &["m", "4"])], vec![sum], "y");
    assert!(m.assumptions.is_empty());
    for (n, k, want) in [(1, 5, 5), (5, 1, 5), (3, 3, 3), (0, 1, 0), (1, 0, 0)] {
        assert_eq!(shapes_of(&m, &[&[n, 4], &[k, 4]]), Ok(vec![vec![want, 4]]));
    }
    assert!(shapes_of(&m, &[&[2, 4], &[3, 4]]).unwrap_err().contains("m = 3 and n = 2 do not broadcast"));
}
