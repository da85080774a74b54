//! Random models of every operator, with operands and attributes that rarely fit: whatever imports is compiled and
//! executed. Nothing may panic, hang, or allocate beyond a limit.
//!
//! `SINTER_FUZZ_SECONDS` sets how long it runs (`make fuzz`: a minute); the seeds follow from `SINTER_FUZZ_SEED`, and
//! `SINTER_FUZZ_TRACE` prints each, which finds the one that hangs.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use prost::Message as _;
use sinter::check::random::Random;
use sinter::import::{self, operators, proto};
use sinter::ir::Mapping;
use sinter::pipeline::{CompileConfig, compile};
use sinter::rules::RuleSet;
use sinter_runtime::dtype::DType;
use sinter_runtime::executor::{self, RunConfig};
use sinter_runtime::tensor::Tensor;

use proto::attribute_proto::AttributeType;
use proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_shape_proto::Dimension, tensor_shape_proto::dimension, type_proto,
};

/// A model may not take longer; the limit is wide, for machines are busy.
const LIMIT: Duration = Duration::from_secs(20);
/// The process may not grow beyond it, in KiB.
const MEMORY: u64 = 6 << 20;

/// Element type numbers of ONNX with the type here.
const TYPES: &[(i32, DType)] = &[
    (1, DType::F32),
    (1, DType::F32),
    (1, DType::F32),
    (7, DType::I64),
    (7, DType::I64),
    (9, DType::Bool),
    (6, DType::I32),
    (10, DType::F16),
    (16, DType::BF16),
    (11, DType::F64),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (12, DType::U32),
    (13, DType::U64),
    (17, DType::F8E4M3FN),
    (22, DType::I4),
];

/// Attributes of integer, list and text kind that operators read.
const INTS: &[&str] = &[
    "axis",
    "keepdims",
    "to",
    "allowzero",
    "batch_dims",
    "blocksize",
    "block_size",
    "bits",
    "center_point_box",
    "ceil_mode",
    "count_include_pad",
    "detect_negative",
    "end",
    "exclusive",
    "fmod",
    "group",
    "hidden_size",
    "input_forget",
    "interleaved",
    "is_causal",
    "k",
    "K",
    "N",
    "keepdims",
    "kv_num_heads",
    "largest",
    "new_axis",
    "noop_with_empty_axes",
    "num_heads",
    "num_outputs",
    "num_scan_inputs",
    "onesided",
    "output_dtype",
    "p",
    "q_num_heads",
    "reverse",
    "rotary_embedding_dim",
    "saturate",
    "select_last_index",
    "size",
    "sorted",
    "stash_type",
    "start",
    "time_axis",
    "batch_axis",
    "transA",
    "transB",
    "training_mode",
    "upper",
    "dtype",
    "layout",
    "storage_order",
    "antialias",
    "inverse",
    "cond",
];
const LISTS: &[&str] = &[
    "axes",
    "perm",
    "pads",
    "strides",
    "dilations",
    "kernel_shape",
    "output_padding",
    "output_shape",
    "split",
    "shape",
    "starts",
    "ends",
    "steps",
    "scales",
    "value_ints",
    "block_shape",
    "scan_input_axes",
];
const FLOATS: &[&str] = &[
    "epsilon",
    "alpha",
    "beta",
    "gamma",
    "bias",
    "clip",
    "scale",
    "softcap",
    "momentum",
    "lambd",
    "max",
    "min",
    "ratio",
    "spatial_scale",
    "value_float",
    "value",
    "cubic_coeff_a",
    "extrapolation_value",
];
const TEXTS: &[(&str, &[&str])] = &[
    ("mode", &["constant", "reflect", "edge", "wrap", "linear", "nearest", "cubic", "DCR", "CRD", "avg", "max"]),
    ("equation", &["ij,jk->ik", "ii->i", "...ij->...ji", "bhi,bhj->bij", "a,,b", "i->ij"]),
    ("reduction", &["none", "add", "mul", "max", "mean", "sum", "bogus"]),
    ("direction", &["forward", "reverse", "bidirectional", "LEFT", "RIGHT"]),
    ("auto_pad", &["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]),
    ("approximate", &["tanh", "none", "bogus"]),
    ("coordinate_transformation_mode", &["asymmetric", "half_pixel", "align_corners", "tf_crop_and_resize"]),
];

fn small(r: &mut Random) -> i64 {
    if r.chance(4) { *r.pick(&[i64::MIN, i64::MAX, 1 << 40, -(1 << 40), 1 << 34]) } else { r.below(9) as i64 - 3 }
}

fn attribute(r: &mut Random) -> AttributeProto {
    let named = |name: &str, kind: AttributeType| AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(kind as i32),
        ..Default::default()
    };
    match r.below(4) {
        0 => AttributeProto { i: Some(small(r)), ..named(r.pick::<&str>(INTS), AttributeType::Int) },
        1 => {
            let n = r.below(5);
            AttributeProto {
                ints: (0..n).map(|_| small(r)).collect(),
                ..named(r.pick::<&str>(LISTS), AttributeType::Ints)
            }
        }
        2 => {
            let f = *r.pick(&[0.0, 1e-5, -1.0, 2.5, f32::INFINITY, f32::NAN]);
            AttributeProto { f: Some(f), ..named(r.pick::<&str>(FLOATS), AttributeType::Float) }
        }
        _ => {
            let (name, values) = r.pick(TEXTS);
            AttributeProto { s: Some(r.pick(values).as_bytes().to_vec()), ..named(name, AttributeType::String) }
        }
    }
}

fn value_info(name: &str, code: i32, shape: &[Option<i64>]) -> ValueInfoProto {
    let dim = |(i, d): (usize, &Option<i64>)| Dimension {
        value: Some(match d {
            Some(n) => dimension::Value::DimValue(*n),
            None => dimension::Value::DimParam(format!("s{}", i % 2)),
        }),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(code),
        shape: Some(TensorShapeProto { dim: shape.iter().enumerate().map(dim).collect() }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}

/// A random model, and the inputs that it declares: name, type, shape.
fn model(r: &mut Random, all: &[(String, String)]) -> (ModelProto, Vec<(String, DType, Vec<usize>)>) {
    let mut graph = GraphProto { name: Some("fuzz".to_owned()), ..Default::default() };
    let mut values: Vec<String> = vec![];
    let mut inputs = vec![];
    // One shape for several inputs makes them fit more often.
    let common: Vec<i64> = (0..r.below(5)).map(|_| *r.pick(&[0, 1, 1, 2, 2, 3, 4, 5])).collect();
    for i in 0..1 + r.below(3) {
        let (code, dtype) = *r.pick(TYPES);
        let shape: Vec<i64> =
            if r.chance(60) { common.clone() } else { (0..r.below(5)).map(|_| *r.pick(&[0, 1, 2, 3, 4])).collect() };
        let name = format!("x{i}");
        // Symbols repeat, so that only equal extents may have them.
        let symbolic = shape.windows(2).all(|w| w[0] == w[1]) && r.chance(30);
        let declared: Vec<Option<i64>> = shape.iter().map(|&d| if symbolic { None } else { Some(d) }).collect();
        graph.input.push(value_info(&name, code, &declared));
        inputs.push((name.clone(), dtype, shape.iter().map(|&d| d as usize).collect()));
        values.push(name);
    }
    for i in 0..r.below(3) {
        let n = r.below(5);
        let name = format!("c{i}");
        let ints = TensorProto {
            name: Some(name.clone()),
            data_type: Some(7),
            dims: if n == 1 && r.chance(50) { vec![] } else { vec![n as i64] },
            int64_data: (0..n).map(|_| small(r)).collect(),
            ..Default::default()
        };
        graph.initializer.push(ints);
        values.push(name);
    }
    for i in 0..1 + r.below(3) {
        let (domain, op) = r.pick(all).clone();
        let operands = r.below(5);
        let operand = |r: &mut Random| if r.chance(8) { String::new() } else { r.pick(&values).clone() };
        let input = (0..operands).map(|_| operand(r)).collect();
        let output: Vec<String> = (0..1 + r.below(2)).map(|o| format!("y{i}_{o}")).collect();
        let attribute = (0..r.below(4)).map(|_| attribute(r)).collect();
        values.extend(output.iter().cloned());
        graph.output.extend(output.iter().map(|o| ValueInfoProto { name: Some(o.clone()), ..Default::default() }));
        graph.node.push(NodeProto {
            op_type: Some(op),
            domain: Some(domain),
            input,
            output,
            attribute,
            ..Default::default()
        });
    }
    let opset = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
    let version = *r.pick(&[11, 13, 17, 18, 20, 21, 23]);
    let opset_import = vec![opset("", version), opset("com.microsoft", 1), opset("ai.onnx.ml", 3)];
    (ModelProto { ir_version: Some(10), graph: Some(graph), opset_import, ..Default::default() }, inputs)
}

/// Imports, compiles and executes. The stage that it reached, and what it says.
fn attempt(bytes: &[u8], inputs: &[(String, DType, Vec<usize>)], r: &mut Random) -> (&'static str, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    let model = match import::open(&path).and_then(|m| m.import()) {
        Ok(m) => m,
        Err(e) => return ("import", e.to_string()),
    };
    let rules = RuleSet::bundled().unwrap();
    let config = CompileConfig::standard(Mapping { tp: 1, pp: 1 }, rules).unwrap();
    let compiled = match compile(&model, &config) {
        Ok(c) => c,
        Err(e) => return ("compile", e.to_string()),
    };
    let given: BTreeMap<String, Tensor> = inputs
        .iter()
        .map(|(name, dtype, shape)| {
            let mut t = Tensor::zeros(*dtype, shape).unwrap();
            t.bytes_mut().iter_mut().for_each(|b| *b = if r.chance(50) { 0 } else { r.below(3) as u8 });
            (name.clone(), t)
        })
        .collect();
    let weights = compiled_weights(&model);
    match executor::run(&compiled.plan, &weights, &given, &RunConfig::default()) {
        Ok(_) => ("done", String::new()),
        Err(e) => ("run", e.to_string()),
    }
}

fn compiled_weights(model: &import::Imported) -> BTreeMap<(usize, String), Tensor> {
    let tensor = |w: &import::Weight| {
        let shape: Vec<usize> = w.ty.shape.iter().map(|d| d.as_const().unwrap() as usize).collect();
        Tensor::from_bytes(w.ty.dtype, &shape, &w.bytes).unwrap()
    };
    model.weights.0.iter().map(|(k, w)| ((0, k.clone()), tensor(w))).collect()
}

/// The most memory that the process has had, in KiB; 0 where the system does not say.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

#[test]
fn random_models_of_every_operator() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (seconds, first) = (number("SINTER_FUZZ_SECONDS", 5), number("SINTER_FUZZ_SEED", 1));
    let trace = std::env::var_os("SINTER_FUZZ_TRACE").is_some();
    let all = operators();
    assert!(all.len() > 150, "{}", all.len());
    let start = Instant::now();
    let mut reached: BTreeMap<&str, usize> = BTreeMap::new();
    let mut problems = vec![];
    for seed in first.. {
        if start.elapsed() > Duration::from_secs(seconds) {
            break;
        }
        let mut r = Random::new(seed);
        let (proto, inputs) = model(&mut r, &all);
        let bytes = proto.encode_to_vec();
        let began = Instant::now();
        if trace {
            println!("seed {seed}");
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| attempt(&bytes, &inputs, &mut r)));
        let (stage, text) = outcome.unwrap_or_else(|_| ("panic", "panic outside of the executor".to_owned()));
        *reached.entry(stage).or_default() += 1;
        let wrong = if text.contains("panic") || stage == "compile" {
            text
        } else if began.elapsed() > LIMIT {
            format!("it took {:?}", began.elapsed())
        } else if peak() > MEMORY {
            format!("the process has {} KiB", peak())
        } else {
            continue;
        };
        let node = |n: &NodeProto| {
            format!("{} = {}({}) {:?}", n.output.join(","), n.op_type(), n.input.join(","), n.attribute)
        };
        let nodes: Vec<String> = proto.graph.iter().flat_map(|g| &g.node).map(node).collect();
        problems.push(format!("SINTER_FUZZ_SEED={seed}: {stage}: {wrong}\ninputs {inputs:?}\n{}", nodes.join("\n")));
        if problems.len() == 10 {
            break;
        }
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n\n"));
    println!("{reached:?}");
    // Most do not fit, but enough do.
    assert!(reached.get("done").copied().unwrap_or(0) > 0, "{reached:?}");
}

/// Positions at the end of the range of integers overflowed when their end was computed.
#[test]
fn positions_at_the_end_of_all_integers() {
    let ints = |name: &str, dims: Vec<i64>, v: i64| TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(7),
        dims,
        int64_data: vec![v],
        ..Default::default()
    };
    let node = NodeProto {
        op_type: Some("ScatterND".to_owned()),
        input: ["x", "at", "new"].map(str::to_owned).to_vec(),
        output: vec!["y".to_owned()],
        ..Default::default()
    };
    let graph = GraphProto {
        input: vec![value_info("x", 7, &[Some(3)])],
        initializer: vec![ints("at", vec![1, 1], i64::MAX), ints("new", vec![1], 1)],
        node: vec![node],
        output: vec![ValueInfoProto { name: Some("y".to_owned()), ..Default::default() }],
        ..Default::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(18) }];
    let model = ModelProto { ir_version: Some(10), graph: Some(graph), opset_import, ..Default::default() };
    let inputs = [("x".to_owned(), DType::I64, vec![3])];
    let (stage, text) = attempt(&model.encode_to_vec(), &inputs, &mut Random::new(1));
    assert!(stage == "run" && !text.contains("panic"), "{stage}: {text}");
}
