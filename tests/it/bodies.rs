//! Local functions, and control flow whose course is known at import or only when it runs.

use std::collections::BTreeMap;

use prost::Message as _;
use sinter::import::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, type_proto,
};
use sinter::import::{self, ImportError, Imported};
use sinter_runtime::executor::{self, RunConfig};
use sinter_runtime::standard::{Data, Strings};
use sinter_runtime::tensor::Tensor;

use crate::broken::{model, node, value};
use crate::fixtures;

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind as i32), ..AttributeProto::default() }
}

fn int(name: &str, v: i64) -> AttributeProto {
    AttributeProto { i: Some(v), ..attribute(name, AttributeType::Int) }
}

fn body(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(g), ..attribute(name, AttributeType::Graph) }
}

/// An attribute of a function's node that the call gives.
fn reference(name: &str, to: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { ref_attr_name: Some(to.to_owned()), ..attribute(name, kind) }
}

fn with(n: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto { attribute: attributes, ..n }
}

fn scalar(name: &str, kind: DataType, bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(kind as i32),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}

/// 4 x 4 numbers that grow along the diagonal.
fn weight(name: &str, scale: f32) -> TensorProto {
    let data: Vec<u8> =
        (0..16).flat_map(|i| if i % 5 == 0 { scale + i as f32 / 16.0 } else { 0.125 }.to_le_bytes()).collect();
    TensorProto { dims: vec![4, 4], ..scalar(name, DataType::Float, data) }
}

fn plain(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() }
}

fn graph(inputs: &[&str], nodes: Vec<NodeProto>, outputs: &[&str]) -> GraphProto {
    GraphProto {
        name: Some("body".to_owned()),
        input: inputs.iter().map(|n| plain(n)).collect(),
        node: nodes,
        output: outputs.iter().map(|n| plain(n)).collect(),
        ..GraphProto::default()
    }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
    let opset = OperatorSetIdProto { version: Some(18), ..OperatorSetIdProto::default() };
    let own = OperatorSetIdProto { domain: Some("local".to_owned()), version: Some(1) };
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("local".to_owned()),
        input: inputs.iter().map(|s| (*s).to_owned()).collect(),
        output: outputs.iter().map(|s| (*s).to_owned()).collect(),
        node: nodes,
        opset_import: vec![opset, own],
        ..FunctionProto::default()
    }
}

fn call(name: &str, function: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { domain: Some("local".to_owned()), ..node(name, function, inputs, outputs) }
}

fn imported(m: &ModelProto) -> Result<Imported, ImportError> {
    let dir = tempfile::tempdir().unwrap();
    crate::broken::save(dir.path(), m);
    // The bytes are those of the message.
    assert_eq!(std::fs::read(dir.path().join("model.onnx")).unwrap(), m.encode_to_vec());
    import::open(&dir.path().join("model.onnx"))?.import()
}

fn x() -> Vec<f32> {
    (0..8).map(|i| i as f32 / 4.0 - 0.5).collect()
}

/// The output of a model whose inputs are `x` of shape [2, 4] and others, equal under both mappings.
fn outputs(m: &ModelProto, others: &[(&str, Tensor)]) -> Vec<f64> {
    let m = imported(m).unwrap_or_else(|e| panic!("{e}"));
    let mut inputs = BTreeMap::from([("x".to_owned(), Tensor::from_f32(&[2, 4], &x()).unwrap())]);
    inputs.extend(others.iter().map(|(n, t)| ((*n).to_owned(), t.clone())));
    let mut found: Vec<Vec<f64>> = vec![];
    for (tp, pp) in [(1, 1), (2, 2)] {
        let plan = fixtures::compiled(&m, tp, pp).plan;
        let out = fixtures::run(&plan, &m.weights, &inputs);
        found.push(out[0].1.to_f64());
    }
    for (a, b) in found[0].iter().zip(&found[1]) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{found:?}");
    }
    found.swap_remove(0)
}

/// `x` times a 4 x 4 matrix.
fn times(x: &[f32], w: &TensorProto) -> Vec<f32> {
    let raw = w.raw_data.clone().unwrap();
    let w: Vec<f32> = raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    (0..x.len()).map(|i| (0..4).map(|k| x[i / 4 * 4 + k] * w[k * 4 + i % 4]).sum()).collect()
}

fn close(found: &[f64], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - f64::from(*b)).abs() <= 1e-4 * f64::from(b.abs().max(1.0)), "{found:?}\n{expected:?}");
    }
}

/// Two layers of a function that calls another; its attribute comes from the call or is the default, and an operand is absent.
#[test]
fn functions_are_inlined() {
    let inner = FunctionProto {
        attribute_proto: vec![AttributeProto { f: Some(2.0), ..attribute("factor", AttributeType::Float) }],
        ..function(
            "scale",
            &["x", "limit"],
            &["y"],
            vec![
                with(node("", "Constant", &[], &["t"]), vec![reference("value_float", "factor", AttributeType::Float)]),
                node("", "Mul", &["x", "t"], &["product"]),
                node("", "Clip", &["product", "", "limit"], &["y"]),
            ],
        )
    };
    let outer = FunctionProto {
        attribute: vec!["by".to_owned()],
        ..function(
            "layer",
            &["x", "w", "limit"],
            &["y"],
            vec![
                node("", "MatMul", &["x", "w"], &["t"]),
                with(call("", "scale", &["t", "limit"], &["y"]), vec![reference("factor", "by", AttributeType::Float)]),
            ],
        )
    };
    let by = AttributeProto { f: Some(0.5), ..attribute("by", AttributeType::Float) };
    // A value of the graph has the name that the first call's value would get.
    let nodes = vec![
        with(call("a", "layer", &["x", "v"], &["h"]), vec![by]),
        node("", "Identity", &["h"], &["a/t"]),
        call("b", "layer", &["a/t", "w", "limit"], &["y"]),
    ];
    let limit = scalar("limit", DataType::Float, 1.5f32.to_le_bytes().to_vec());
    let (v, w) = (weight("v", 1.0), weight("w", -1.0));
    let m = ModelProto { functions: vec![outer, inner], ..model(nodes, vec![v.clone(), w.clone(), limit]) };
    let h: Vec<f32> = times(&x(), &v).iter().map(|v| v * 0.5).collect();
    let expected: Vec<f32> = times(&h, &w).iter().map(|v| (v * 2.0).min(1.5)).collect();
    close(&outputs(&m, &[]), &expected);
}

#[test]
fn functions_that_cannot_be_inlined_are_refused() {
    let refused = |functions: Vec<FunctionProto>, part: &str| {
        let m = ModelProto { functions, ..model(vec![call("a", "f", &["x"], &["y"])], vec![]) };
        let e = imported(&m).unwrap_err().to_string();
        assert!(e.contains(part), "{e}");
    };
    let f = |nodes| function("f", &["x"], &["y"], nodes);
    refused(vec![f(vec![call("", "f", &["x"], &["y"])])], "calls itself");
    let g = function("g", &["x"], &["y"], vec![call("", "f", &["x"], &["y"])]);
    refused(vec![f(vec![call("", "g", &["x"], &["y"])]), g], "calls itself");
    refused(vec![f(vec![node("", "Relu", &["z"], &["y"])])], "`z` is neither an operand of the function");
    refused(vec![f(vec![node("", "NoSuch", &["x"], &["y"])])], "NoSuch");
    let two = call("a", "f", &["x", "x"], &["y"]);
    let m = ModelProto { functions: vec![f(vec![node("", "Relu", &["x"], &["y"])])], ..model(vec![two], vec![]) };
    assert!(imported(&m).unwrap_err().to_string().contains("2 operands"));
    // Each of these calls the next one twice: a graph of 2^40 nodes.
    let doubling = |i: usize| {
        let next = format!("f{}", i + 1);
        let nodes = match i {
            40 => vec![node("", "Relu", &["x"], &["y"])],
            _ => vec![call("p", &next, &["x"], &["t"]), call("q", &next, &["t"], &["y"])],
        };
        function(&if i == 0 { "f".to_owned() } else { format!("f{i}") }, &["x"], &["y"], nodes)
    };
    refused((0..=40).map(doubling).collect(), "expand to more than");
}

/// The branch that the shape selects is part of the graph, the other one is not; it may hold what is not supported.
#[test]
fn a_branch_that_shapes_select_is_inlined() {
    let branch = |op: &str| graph(&[], vec![node("", op, &["x"], &["r"])], &["r"]);
    let condition = with(
        node("choice", "If", &["wide"], &["h"]),
        vec![body("then_branch", branch("Relu")), body("else_branch", branch("NoSuch"))],
    );
    let four = scalar("four", DataType::Int64, 4i64.to_le_bytes().to_vec());
    let one = scalar("one", DataType::Int64, 1i64.to_le_bytes().to_vec());
    let w = weight("w", 1.0);
    let nodes = vec![
        node("", "Shape", &["x"], &["s"]),
        node("", "Gather", &["s", "one"], &["width"]),
        node("", "GreaterOrEqual", &["width", "four"], &["wide"]),
        condition,
        node("", "MatMul", &["h", "w"], &["t"]),
        node("", "MatMul", &["t", "w"], &["y"]),
    ];
    let m = model(nodes, vec![four, one, w.clone()]);
    let relu: Vec<f32> = x().iter().map(|v| v.max(0.0)).collect();
    close(&outputs(&m, &[]), &times(&times(&relu, &w), &w));
    let text = sinter::ir::print(&imported(&m).unwrap().graph);
    assert!(!text.contains("standard"), "{text}");
}

/// A loop of so many rounds that each multiply by a captured matrix and stack what they have.
fn power(count: &str, condition: &str) -> Vec<NodeProto> {
    let round = graph(
        &["i", "go", "s"],
        vec![node("", "MatMul", &["s", "w"], &["t"]), node("", "Identity", &["go"], &["on"])],
        &["on", "t", "t"],
    );
    vec![with(node("loop", "Loop", &[count, condition, "x"], &["last", "all"]), vec![body("body", round)])]
}

#[test]
fn short_loops_are_unrolled() {
    let three = scalar("three", DataType::Int64, 3i64.to_le_bytes().to_vec());
    let w = weight("w", 0.5);
    let mut nodes = power("three", "");
    nodes.push(with(node("", "ReduceSum", &["all", "zero"], &["sum"]), vec![int("keepdims", 0)]));
    nodes.push(node("", "MatMul", &["sum", "w"], &["p"]));
    nodes.push(node("", "Add", &["p", "last"], &["y"]));
    let zero = TensorProto { dims: vec![1], ..scalar("zero", DataType::Int64, vec![0; 8]) };
    let m = model(nodes, vec![three, w.clone(), zero]);
    let text = sinter::ir::print(&imported(&m).unwrap().graph);
    assert!(!text.contains("standard") && text.matches("matmul").count() == 4, "{text}");
    let powers = [times(&x(), &w), times(&times(&x(), &w), &w), times(&times(&times(&x(), &w), &w), &w)];
    let sum: Vec<f32> = (0..8).map(|i| powers.iter().map(|p| p[i]).sum()).collect();
    let expected: Vec<f32> = times(&sum, &w).iter().zip(&powers[2]).map(|(a, b)| a + b).collect();
    close(&outputs(&m, &[]), &expected);
}

/// A loop over as many rounds as an input says, before and behind products that are divided among ranks.
#[test]
fn loops_over_data_run_on_every_rank() {
    // Every round adds the captured rows once more.
    let round = graph(
        &["i", "go", "s"],
        vec![node("", "SequenceInsert", &["s", "h"], &["t"]), node("", "Identity", &["go"], &["on"])],
        &["on", "t"],
    );
    let first = node("", "SequenceConstruct", &["h"], &["first"]);
    let looped = with(node("loop", "Loop", &["n", "", "first"], &["parts"]), vec![body("body", round)]);
    let joined = with(node("", "ConcatFromSequence", &["parts"], &["rows"]), vec![int("axis", 0)]);
    let w = weight("w", 1.0);
    let nodes = vec![
        node("", "MatMul", &["x", "w"], &["h"]),
        first,
        looped,
        joined,
        node("", "MatMul", &["rows", "w"], &["y"]),
    ];
    let mut m = model(nodes, vec![w.clone()]);
    let g = m.graph.as_mut().unwrap();
    let number = type_proto::Tensor { elem_type: Some(DataType::Int64 as i32), shape: Some(Default::default()) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(number)), ..TypeProto::default() };
    g.input.push(ValueInfoProto { r#type: Some(ty), ..plain("n") });
    g.output = vec![plain("y")];
    let text = sinter::ir::print(&imported(&m).unwrap().graph);
    assert!(text.matches("matmul").count() == 2 && text.contains("standard"), "{text}");
    let once = times(&times(&x(), &w), &w);
    for n in [0, 2] {
        let found = outputs(&m, &[("n", Tensor::from_i64(&[], &[n]).unwrap())]);
        close(&found, &once.repeat(n as usize + 1));
    }
}

#[test]
fn loops_without_end_are_refused() {
    let round = graph(&["i", "go", "s"], vec![node("", "Identity", &["go"], &["on"])], &["on", "s"]);
    let m = model(vec![with(node("loop", "Loop", &["", "", "x"], &["y"]), vec![body("body", round)])], vec![]);
    let m = imported(&m).unwrap();
    let plan = fixtures::compiled(&m, 1, 1).plan;
    let inputs = BTreeMap::from([("x".to_owned(), Tensor::from_f32(&[2, 4], &x()).unwrap())]);
    let e = executor::run(&plan, &BTreeMap::new(), &inputs, &RunConfig::default()).unwrap_err().to_string();
    assert!(e.contains("never end"), "{e}");
}

/// Strings and sequences go in and come out, also across stages.
#[test]
fn values_that_are_no_tensors_pass() {
    let strings = || {
        let t = type_proto::Tensor { elem_type: Some(DataType::String as i32), shape: Some(Default::default()) };
        TypeProto { value: Some(type_proto::Value::TensorType(t)), ..TypeProto::default() }
    };
    let nodes = vec![
        node("", "StringConcat", &["name", "name"], &["twice"]),
        node("", "MatMul", &["x", "w"], &["h"]),
        node("", "MatMul", &["h", "w"], &["y"]),
        node("", "SequenceConstruct", &["h", "y"], &["both"]),
    ];
    let mut m = model(nodes, vec![weight("w", 1.0)]);
    let g = m.graph.as_mut().unwrap();
    g.input.push(ValueInfoProto { r#type: Some(strings()), ..plain("name") });
    g.output = vec![value("y"), plain("twice"), plain("both")];
    let m = imported(&m).unwrap();
    let text = |t: &str| Data::from(Strings { shape: vec![], values: vec![t.to_owned()] });
    let data = BTreeMap::from([("name".to_owned(), text("ab"))]);
    let inputs = BTreeMap::from([("x".to_owned(), Tensor::from_f32(&[2, 4], &x()).unwrap())]);
    for (tp, pp) in [(1, 1), (2, 2)] {
        let plan = fixtures::compiled(&m, tp, pp).plan;
        let config = RunConfig { data: Some(&data), ..RunConfig::default() };
        let held = fixtures::held(&plan, &m.weights);
        let result = executor::run(&plan, &held, &inputs, &config).unwrap();
        assert_eq!(result.data[0], ("twice".to_owned(), text("abab")));
        let Data::Sequence(both) = &result.data[1].1 else { panic!("{:?}", result.data) };
        assert_eq!(both.len(), 2);
        assert_eq!(both[1], Data::from(result.outputs[0].1.clone()));
        let e = executor::run(&plan, &held, &inputs, &RunConfig::default()).unwrap_err().to_string();
        assert!(e.contains("`name` is missing"), "{e}");
    }
}
