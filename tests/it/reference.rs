//! The evaluator in f64 against the kernels, against ONNX Runtime's outputs, and against closed forms.

use sinter::check::eval::{Array, Evaluator, Reason, Rounding, whole};
use sinter::check::outputs;
use sinter::check::random::Random;
use sinter::ir::{self, Bindings, DType, Dim, Graph, MeshAxis, Node, Op, Real, Safe, TensorType};
use sinter_runtime::compare::{Tolerance, compare};

use crate::fixtures;

#[test]
fn models_agree_with_onnx_runtime() {
    for name in fixtures::BUNDLED.iter().chain(&["phi3-dynamo-op18-past"]) {
        let dir = fixtures::model(name);
        let model = fixtures::import(&dir);
        let graph = &model.graph;
        let mut bindings = Bindings::new();
        let leaves = graph.nodes().filter_map(|(_, n)| match &n.op {
            Op::Input { name, .. } => Some((name.clone(), n.ty().clone())),
            _ => None,
        });
        let leaves: Vec<_> = leaves.collect();
        let names: Vec<String> = leaves.iter().map(|(n, _)| n.clone()).collect();
        let inputs = fixtures::tensors(&dir, "input", &names);
        for (name, ty) in &leaves {
            for (d, &n) in ty.shape.iter().zip(&inputs[name].shape) {
                if let Some(symbol) = d.as_sym() {
                    bindings.insert(symbol.to_owned(), n as i64);
                }
            }
        }
        let names: Vec<String> = graph.outputs().iter().map(|o| o.name.clone()).collect();
        let expected = fixtures::tensors(&dir, "output", &names);
        for (output, t) in outputs(graph, 1, &bindings, &inputs, &model.weights).unwrap() {
            let c = compare(&t, &expected[&output], Tolerance::F32);
            assert!(c.pass, "{name}: `{output}` differs by {:.3e} {}", c.max_abs, c.reason.unwrap_or_default());
        }
    }
}

/// Evaluates a graph in text form exactly; leaves are given by name, and the outputs are those of every rank.
fn run(tp: usize, body: &str, leaves: &[(&str, &[usize], &[f64])]) -> Result<Vec<Vec<Array>>, String> {
    let graph = ir::parse(&format!("graph \"case\" {{\n{body}\n}}\n")).map_err(|e| e.to_string())?;
    ir::verify(&graph).map_err(|e| e.to_string())?;
    let bindings = Bindings::new();
    let mut evaluator = Evaluator::new(&graph, tp, &bindings, Rounding::Exact);
    for (name, shape, data) in leaves {
        let id = graph.nodes().find(|(_, n)| n.name == *name).unwrap().0;
        evaluator.set(id, Array { shape: shape.to_vec(), data: data.to_vec() });
    }
    let values = evaluator.run().map_err(|e| e.to_string())?;
    let of = |o: &ir::Output| values[o.value.index()][0].iter().map(|a| Array::clone(a)).collect();
    Ok(graph.outputs().iter().map(of).collect())
}

/// The elements of the only output on one rank.
fn one(body: &str, leaves: &[(&str, &[usize], &[f64])]) -> Vec<f64> {
    run(1, body, leaves).unwrap().remove(0).remove(0).data
}

/// `y = op(x)` on vectors of one type.
fn apply(dtype: &str, op: &str, operands: &[&[f64]], result: &str) -> Result<Vec<f64>, String> {
    let n = operands[0].len();
    let names: Vec<String> = (0..operands.len()).map(|i| format!("x{i}")).collect();
    let mut body: String = names.iter().map(|x| format!("input %{x}: {dtype}[{n}]\n")).collect();
    let (op, attrs) = op.split_once(' ').unwrap_or((op, ""));
    let list: Vec<String> = names.iter().map(|x| format!("%{x}")).collect();
    body += &format!("%y: {result}[{n}] = {op}({}) {attrs}\noutput \"y\" = %y", list.join(", "));
    let shape = [n];
    let leaves: Vec<(&str, &[usize], &[f64])> =
        names.iter().zip(operands).map(|(x, d)| (x.as_str(), &shape[..], *d)).collect();
    Ok(run(1, &body, &leaves)?.remove(0).remove(0).data)
}

#[track_caller]
fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (a, b) in got.iter().zip(want) {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{got:?} is not {want:?}");
    }
}

#[test]
fn integers_follow_their_rules() {
    let int = |op: &str, a: &[f64], b: &[f64]| apply("i64", op, &[a, b], "i64");
    assert_eq!(int("div", &[7.0, -7.0, 7.0, -7.0], &[2.0, 2.0, -2.0, -2.0]).unwrap(), [3.0, -3.0, -3.0, 3.0]);
    assert_eq!(int("div", &[9007199254740991.0], &[9007199254740990.0]).unwrap(), [1.0]);
    assert_eq!(int("pow", &[-3.0, 2.0, -1.0, 2.0], &[3.0, 0.0, -3.0, -1.0]).unwrap(), [-27.0, 1.0, -1.0, 0.0]);
    assert!(int("div", &[1.0], &[0.0]).unwrap_err().contains("`y` (div): integer division by zero"));
    assert!(int("pow", &[0.0], &[-1.0]).unwrap_err().contains("division by zero"));
    assert!(int("mul", &[94906267.0], &[94906267.0]).unwrap_err().contains("2^53"));
    assert!(int("pow", &[3.0], &[40.0]).unwrap_err().contains("2^53"));
    assert_eq!(apply("u8", "sub", &[&[1.0], &[2.0]], "u8").unwrap(), [255.0]);
    assert_eq!(apply("i32", "add", &[&[2147483647.0], &[1.0]], "i32").unwrap(), [-2147483648.0]);
    let zero = apply("i64", "neg", &[&[0.0]], "i64").unwrap();
    assert!(zero[0].is_sign_positive());
    // The type of a power is that of the base.
    let body = "input %a: i64[2]\ninput %b: f32[2]\n%y: i64[2] = pow(%a, %b)\noutput \"y\" = %y";
    assert_eq!(one(body, &[("a", &[2], &[10.0, 2.0]), ("b", &[2], &[0.5, -1.0])]), [3.0, 0.0]);
    assert_eq!(apply("f32", "cast {to = i32}", &[&[-1.7, 1.7]], "i32").unwrap(), [-1.0, 1.0]);
    assert_eq!(apply("f32", "cast {to = bool}", &[&[-0.5, 0.0]], "bool").unwrap(), [1.0, 0.0]);
    let mean = "input %x: i64[2, 2]\n%y: i64[2] = reduce_mean(%x) {axes = [1], keepdims = false}\noutput \"y\" = %y";
    let refused = run(1, mean, &[("x", &[2, 2], &[1.0, 2.0, -1.0, -2.0])]).unwrap_err();
    assert!(refused.contains("`reduce_mean` of i64"), "{refused}");
}

#[test]
fn functions_have_their_known_values() {
    let float = |op: &str, x: &[f64]| apply("f64", op, &[x], "f64").unwrap();
    assert_eq!(float("floor", &[-1.5, 1.5]), [-2.0, 1.0]);
    assert_eq!(float("ceil", &[-1.5, 1.5]), [-1.0, 2.0]);
    let x = [-0.5, 0.0, 0.1, 1.0, 2.0, 2.9999, 3.0, 3.5, 4.0, 5.9, 7.0, f64::NEG_INFINITY];
    let want = [
        -0.5204998778130465,
        0.0,
        0.1124629160182849,
        0.8427007929497149,
        0.9953222650189527,
        0.9999778955735178,
        0.9999779095030014,
        0.9999992569016276,
        0.9999999845827421,
        1.0,
        1.0,
        -1.0,
    ];
    // By the C library; the last bits may differ.
    close(&float("erf", &x), &want, 1e-15);
    assert!(float("erf", &[f64::NAN])[0].is_nan());
    assert_eq!(float("erf", &[1e-300])[0], 1e-300 * std::f64::consts::FRAC_2_SQRT_PI);
    let x = [-1.5, 1.0, 3.0];
    close(&float("gelu", &x), &[-0.10021080190328713, 0.8413447460685429, 2.99595030590511], 1e-15);
    close(&float("gelu {tanh = true}", &x), &[-0.10042842301976707, 0.8411919906082768, 2.996362607918227], 1e-15);
    close(&float("silu", &[0.0, 2.0]), &[0.0, 1.7615941559557649], 1e-15);
    close(&float("log", &[1.0, std::f64::consts::E]), &[0.0, 1.0], 1e-15);
    assert_eq!(float("relu", &[-1.0, 2.0]), [0.0, 2.0]);
    assert_eq!(apply("bool", "not", &[&[0.0, 1.0]], "bool").unwrap(), [1.0, 0.0]);
    assert_eq!(apply("bool", "or", &[&[0.0, 0.0, 1.0], &[0.0, 1.0, 1.0]], "bool").unwrap(), [0.0, 1.0, 1.0]);
    assert_eq!(apply("i32", "min", &[&[1.0, 2.0], &[2.0, 1.0]], "i32").unwrap(), [1.0, 1.0]);
    let (a, b) = ([1.0, 2.0, 3.0, f64::NAN], [2.0, 2.0, 2.0, f64::NAN]);
    for (op, want) in [
        ("equal", [0.0, 1.0, 0.0, 0.0]),
        ("less", [1.0, 0.0, 0.0, 0.0]),
        ("less_equal", [1.0, 1.0, 0.0, 0.0]),
        ("greater", [0.0, 0.0, 1.0, 0.0]),
        ("greater_equal", [0.0, 1.0, 1.0, 0.0]),
    ] {
        assert_eq!(apply("f32", op, &[&a, &b], "bool").unwrap(), want, "{op}");
    }
    let nan = apply("f64", "max", &[&[1.0, f64::NAN], &[f64::NAN, 1.0]], "f64").unwrap();
    assert!(nan.iter().all(|v| v.is_nan()));
}

#[test]
fn storage_rounds_and_exact_does_not() {
    let text = "graph \"case\" {\n  input %x: f32[1]\n  %y: bf16[1] = cast(%x) {to = bf16}\n  output \"y\" = %y\n}\n";
    let graph = ir::parse(text).unwrap();
    let bindings = Bindings::new();
    let value = |rounding| {
        let mut e = Evaluator::new(&graph, 2, &bindings, rounding);
        e.set(graph.ids().next().unwrap(), Array { shape: vec![1], data: vec![1.001] });
        e.run().unwrap()[1][0][1].data[0]
    };
    assert_eq!((value(Rounding::Exact), value(Rounding::Storage)), (1.001, 1.0));
}

#[test]
fn layouts_move_elements() {
    let x: Vec<f64> = (0..6).map(f64::from).collect();
    let x = ("x", &[2usize, 3][..], &x[..]);
    let of = |line: &str| one(&format!("input %x: f32[2, 3]\n{line}\noutput \"y\" = %y"), &[x]);
    assert_eq!(of("%y: f32[2, 2] = slice(%x) {axis = 1, start = 0, end = 3, step = 2}"), [0.0, 2.0, 3.0, 5.0]);
    assert_eq!(of("%y: f32[3, 2] = transpose(%x) {perm = [1, 0]}"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(of("%y: f32[3] = reduce_sum(%x) {axes = [0], keepdims = false}"), [3.0, 5.0, 7.0]);
    assert_eq!(of("%y: f32[] = reduce_max(%x) {axes = [0, 1], keepdims = false}"), [5.0]);
    assert_eq!(of("%y: f32[2, 2, 3] = expand(%x) {shape = [2, 1, 1]}")[6..], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let index = |line: &str, i: &[f64]| {
        let body = format!("input %x: f32[2, 3]\ninput %i: i64[2, 1]\n{line}\noutput \"y\" = %y");
        run(1, &body, &[x, ("i", &[2, 1], i)]).map(|mut o| o.remove(0).remove(0).data)
    };
    let gather = "%y: f32[2, 2, 1] = gather(%x, %i) {axis = 1}";
    assert_eq!(index(gather, &[2.0, -3.0]).unwrap(), [2.0, 0.0, 5.0, 3.0]);
    let e = index(gather, &[0.0, 3.0]).unwrap_err();
    assert_eq!(e, "`y` (gather): index 3 is outside the extent 3");
    assert_eq!(index("%y: f32[2, 3] = gather_nd(%x, %i)", &[-1.0, 0.0]).unwrap(), [3.0, 4.0, 5.0, 0.0, 1.0, 2.0]);
    assert_eq!(index("%y: f32[2] = gather_nd(%x, %i) {batch_dims = 1}", &[1.0, -1.0]).unwrap(), [1.0, 5.0]);
    let select = "input %x: f32[2, 3]\ninput %c: bool[2, 1]\ninput %z: f32[3]\n%y: f32[2, 3] = where(%c, %x, %z)\n\
                  output \"y\" = %y";
    let z = ("z", &[3usize][..], &[7.0, 8.0, 9.0][..]);
    assert_eq!(one(select, &[x, z, ("c", &[2, 1], &[0.0, 1.0])]), [7.0, 8.0, 9.0, 3.0, 4.0, 5.0]);
    assert_eq!(one("%y: i64[2] = dims() {values = [3, 4]}\noutput \"y\" = %y", &[]), [3.0, 4.0]);
    assert_eq!(one("%y: i64[3] = range() {start = 5, limit = 0, step = -2}\noutput \"y\" = %y", &[]), [5.0, 3.0, 1.0]);
}

#[test]
fn products_broadcast() {
    let body = "input %a: f64[2]\ninput %b: f64[2, 2, 2]\n%y: f64[2, 2] = matmul(%a, %b)\n\
                %z: f64[2, 2] = matmul(%a, %b) {trans_b = true}\noutput \"y\" = %y\noutput \"z\" = %z";
    let b: Vec<f64> = (1..9).map(f64::from).collect();
    let out = run(1, body, &[("a", &[2], &[1.0, 10.0]), ("b", &[2, 2, 2], &b)]).unwrap();
    assert_eq!(out[0][0].data, [31.0, 42.0, 75.0, 86.0]);
    assert_eq!(out[1][0].data, [21.0, 43.0, 65.0, 87.0]);
}

/// Attention of queries of width 1 with value rows 1 and 10.
fn attention(attrs: &str, mask: Option<(&str, &[f64])>, q: &[f64]) -> Vec<f64> {
    let s = q.len();
    let (line, operand) = match mask {
        Some((dtype, _)) => (format!("input %m: {dtype}[{s}, 2]\n"), ", %m"),
        None => (String::new(), ""),
    };
    let body = format!(
        "input %q: f64[1, 1, {s}, 1]\ninput %k: f64[1, 1, 2, 1]\ninput %v: f64[1, 1, 2, 1]\n{line}\
         %y: f64[1, 1, {s}, 1] = attention(%q, %k, %v{operand}) {{scale = 1.0{attrs}}}\noutput \"y\" = %y"
    );
    let (qs, ms) = ([1, 1, s, 1], [s, 2]);
    let mut leaves: Vec<(&str, &[usize], &[f64])> =
        vec![("q", &qs, q), ("k", &[1, 1, 2, 1], &[0.0, 1.0]), ("v", &[1, 1, 2, 1], &[1.0, 10.0])];
    leaves.extend(mask.map(|(_, data)| ("m", &ms[..], data)));
    one(&body, &leaves)
}

#[test]
fn attention_masks_caps_and_keeps_rows_safe() {
    let two = |a: f64, b: f64| (a.exp() + 10.0 * b.exp()) / (a.exp() + b.exp());
    close(&attention("", None, &[3.0]), &[two(0.0, 3.0)], 1e-14);
    close(&attention(", softcap = 2.0", None, &[3.0]), &[two(0.0, 2.0 * 1.5f64.tanh())], 1e-14);
    // The cap comes before the mask, so that what is masked stays masked.
    let masked = ("f64", &[f64::NEG_INFINITY, 0.0][..]);
    assert_eq!(attention(", softcap = 2.0", Some(masked), &[3.0]), [10.0]);
    close(&attention("", Some(("f64", &[2.0, 0.0])), &[1.0]), &[two(2.0, 1.0)], 1e-14);
    assert_eq!(attention("", Some(("bool", &[1.0, 0.0])), &[1.0]), [1.0]);
    let none = ("bool", &[0.0, 0.0][..]);
    assert_eq!(attention(", safe = true", Some(none), &[1.0]), [0.0]);
    assert!(attention("", Some(none), &[1.0])[0].is_nan());
    // Two queries: the first sees one key. One query: it is the last and sees all.
    close(&attention(", causal = true", None, &[1.0, 1.0]), &[1.0, two(0.0, 1.0)], 1e-14);
    close(&attention(", causal = true", None, &[1.0]), &[two(0.0, 1.0)], 1e-14);
    // Three queries for two keys: the first sees none.
    close(&attention(", causal = true, safe = true", None, &[1.0; 3]), &[0.0, 1.0, two(0.0, 1.0)], 1e-14);
}

#[test]
fn attention_groups_query_heads() {
    let body = "input %q: f64[1, 4, 1, 1]\ninput %k: f64[1, 2, 1, 1]\n%y: f64[1, 4, 1, 1] = attention(%q, %k, %k) \
                {scale = 1.0}\noutput \"y\" = %y";
    let q = ("q", &[1usize, 4, 1, 1][..], &[0.0; 4][..]);
    assert_eq!(one(body, &[q, ("k", &[1, 2, 1, 1], &[5.0, 7.0])]), [5.0, 5.0, 7.0, 7.0]);
}

#[test]
fn rotary_turns_pairs() {
    let of = |attrs: &str| {
        let body = format!(
            "input %x: f64[1, 4]\ninput %c: f64[2]\ninput %s: f64[1, 2]\n%y: f64[1, 4] = rotary(%x, %c, %s) {attrs}\n\
             output \"y\" = %y"
        );
        let x = ("x", &[1usize, 4][..], &[1.0, 2.0, 3.0, 4.0][..]);
        one(&body, &[x, ("c", &[2], &[0.0, 1.0]), ("s", &[1, 2], &[1.0, 0.0])])
    };
    // A quarter turn of the first pair.
    assert_eq!(of(""), [-3.0, 2.0, 1.0, 4.0]);
    assert_eq!(of("{interleaved = true}"), [-2.0, 1.0, 3.0, 4.0]);
}

#[test]
fn ranks_share_parts_and_gather_them() {
    let body = "input %x: f64[4]\n%p: f64[2] = shard(%x) {dim = 0, axis = tp, parts = 2}\n\
                %g: f64[4] = all_gather(%p) {dim = 0, axis = tp, parts = 2}\n%s: f64[2] = all_reduce(%p) {axis = tp}\n\
                output \"p\" = %p\noutput \"g\" = %g\noutput \"s\" = %s";
    let out = run(4, body, &[("x", &[4], &[1.0, 2.0, 3.0, 4.0])]).unwrap();
    let data: Vec<&[f64]> = out[0].iter().map(|a| &a.data[..]).collect();
    assert_eq!(data, [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [3.0, 4.0]]);
    assert!(out[1].iter().all(|a| a.data == [1.0, 2.0, 3.0, 4.0]));
    assert!(out[2].iter().all(|a| a.data == [8.0, 12.0]));
    assert!(run(3, body, &[("x", &[4], &[0.0; 4])]).unwrap_err().contains("do not divide 3 ranks"));

    let body = "input %w: f64[4, 1]\ninput %i: i64[3]\n%p: f64[2, 1] = shard(%w) {dim = 0, axis = tp, parts = 2}\n\
                %y: f64[3, 1] = vocab_gather(%p, %i) {axis = tp}\noutput \"y\" = %y";
    let out = run(2, body, &[("w", &[4, 1], &[1.0, 2.0, 3.0, 4.0]), ("i", &[3], &[0.0, 3.0, -3.0])]).unwrap();
    assert_eq!(out[0][0].data, [1.0, 0.0, 2.0]);
    assert_eq!(out[0][1].data, [0.0, 4.0, 0.0]);
}

#[test]
fn what_has_no_value_is_an_error() {
    let text = "graph \"case\" {\n  input %x: f32[n, 4]\n  %y: f32[n, 4] = neg(%x)\n  output \"y\" = %y\n}\n";
    let graph = ir::parse(text).unwrap();
    let x = graph.ids().next().unwrap();
    let error = |n: i64, tp: usize, value: Option<Array>| {
        let bindings = if n < 0 { Bindings::new() } else { Bindings::from([("n".to_owned(), n)]) };
        let mut e = Evaluator::new(&graph, tp, &bindings, Rounding::Exact);
        value.into_iter().for_each(|v| e.set(x, v));
        e.run().unwrap_err()
    };
    assert_eq!(error(-1, 1, None).to_string(), "`x` (input): symbol `n` has no value");
    assert_eq!(error(1, 1, None).reason, Reason::NoValue);
    assert!(matches!(error(1 << 40, 1, None).reason, Reason::TooLarge(_)));
    assert!(matches!(error(1, 0, None).reason, Reason::Unsupported(_)));
    let short = Array { shape: vec![1, 4], data: vec![0.0; 3] };
    assert!(matches!(error(1, 1, Some(short)).reason, Reason::Misfit(_)));
    let other = Array { shape: vec![2, 2], data: vec![0.0; 4] };
    assert!(matches!(error(1, 1, Some(other)).reason, Reason::Misfit(_)));
}

#[test]
fn parts_of_results_are_joined() {
    let mut graph = Graph::new("case");
    let ty = |n: i64| TensorType::new(DType::F64, vec![Dim::from(n)]);
    let x = graph.input("x", ty(4));
    let part = graph.add("p", Op::Shard { dim: 0, axis: MeshAxis::Tp, parts: 2 }, &[x]).unwrap();
    let name = "y".to_owned();
    let op = Op::OutputSharded { name, dim: 0, axis: MeshAxis::Tp, parts: 2 };
    let y = graph.add("y", op, &[part]).unwrap();
    let bindings = Bindings::new();
    let mut e = Evaluator::new(&graph, 4, &bindings, Rounding::Exact);
    let given = Array { shape: vec![4], data: vec![1.0, 2.0, 3.0, 4.0] };
    e.set(x, given.clone());
    let values = e.run().unwrap();
    assert!(values[y.index()][0].iter().all(|a| **a == given));
    let cut = |parts| ir::Part { dim: 0, axis: MeshAxis::Tp, parts };
    assert_eq!(whole(&values[part.index()][0], Some(cut(2))), Ok(given));
    assert!(whole(&values[part.index()][0], Some(cut(3))).is_err());
    assert!(whole(&values[part.index()][0], Some(ir::Part { dim: 1, ..cut(2) })).is_err());
}

/// Operators with attributes that may or may not fit.
fn any_operators() -> Vec<Op> {
    let mut out = ir::op::instances();
    for a in [-1, 0, 1, 5] {
        out.extend([
            Op::Gather { axis: a },
            Op::GatherNd { batch_dims: a },
            Op::Concat { axis: a },
            Op::Softmax { axis: a, safe: Safe::Masked },
            Op::Transpose { perm: vec![1, a] },
            Op::ReduceMean { axes: vec![a], keepdims: false },
            Op::ReduceMax { axes: vec![0, a], keepdims: true },
            Op::Shard { dim: a, axis: MeshAxis::Tp, parts: 2 },
            Op::AllGather { dim: a, axis: MeshAxis::Tp, parts: 2 },
            Op::OutputSharded { name: "y".to_owned(), dim: a, axis: MeshAxis::Tp, parts: a },
            Op::Slice { axis: 0, start: Dim::from(a), end: Dim::from(i64::MAX), step: 2 },
            Op::Slice { axis: 1, start: Dim::from(0), end: Dim::from(a), step: a },
            Op::Range { start: Dim::from(i64::MIN), limit: Dim::from(i64::MAX), step: a },
            Op::Expand { shape: vec![Dim::from(a), Dim::from(1 << 40), Dim::from(1 << 40)] },
            Op::Reshape { shape: vec![Dim::from(a), Dim::from(3)] },
            Op::Get { index: a },
        ]);
    }
    for to in DType::CORE {
        out.push(Op::Cast { to });
    }
    for axis in [MeshAxis::Tp, MeshAxis::Pp] {
        out.extend([Op::AllReduce { axis }, Op::VocabGather { axis }]);
        out.push(Op::ArResidualLayerNorm { axis, eps: Real(0.0) });
    }
    out.push(Op::Matmul { trans_b: true });
    out.push(Op::Attention { scale: Real(1.0), causal: true, softcap: Real(1.0), safe: Safe::Masked });
    out
}

#[test]
fn no_graph_makes_it_panic() {
    let huge = 1i64 << 40;
    let shapes: [&[i64]; 13] = [
        &[],
        &[0],
        &[2],
        &[3],
        &[2, 3],
        &[3, 2],
        &[2, 2],
        &[0, huge],
        &[huge, huge, 0],
        &[0, huge, huge],
        &[1, 2, 3, 2],
        &[1, 0, 2, 2],
        &[-1, 2],
    ];
    let dtypes = [DType::F32, DType::F32, DType::F16, DType::I64, DType::U8, DType::Bool];
    let numbers = [0.0, 1.0, -2.0, 0.5, f64::NAN, f64::INFINITY, 1e300, 3.0, -1.0];
    let mut random = Random::new(1);
    let mut evaluated = 0;
    for op in any_operators() {
        for round in 0..400 {
            let mut pick = |n: usize| random.number() as usize % n;
            let arity = if round % 50 == 0 { pick(4) } else { op.info().min_inputs + pick(2) };
            // Half of the time all operands are alike, so that they often fit.
            let (like, shape, dtype) = (pick(2) == 0, pick(shapes.len()), pick(dtypes.len()));
            let mut graph = Graph::new("any");
            let mut leaves = vec![];
            for i in 0..arity {
                let (s, d) = if like { (shape, dtype) } else { (pick(shapes.len()), pick(dtypes.len())) };
                let ty = TensorType::new(dtypes[d], shapes[s].iter().map(|&n| Dim::from(n)).collect::<Vec<_>>());
                leaves.push(graph.input(&format!("x{i}"), ty));
            }
            let types: Vec<&[TensorType]> = leaves.iter().map(|&l| &graph.node(l).types[..]).collect();
            let types = ir::infer(&op, &types).unwrap_or_else(|_| {
                let shape = shapes[pick(shapes.len())].iter().map(|&n| Dim::from(n)).collect::<Vec<_>>();
                vec![TensorType::new(dtypes[pick(dtypes.len())], shape); 1 + pick(2)]
            });
            let name = "y".to_owned();
            let rest = (vec![], vec![], None);
            let node = Node {
                op: op.clone(),
                inputs: leaves.clone(),
                types,
                name,
                origin: rest.0,
                rules: rest.1,
                why: None,
                stage: rest.2,
            };
            graph.push(node);
            let bindings = Bindings::new();
            let mut e = Evaluator::new(&graph, 1 + pick(4), &bindings, [Rounding::Exact, Rounding::Storage][pick(2)]);
            for id in leaves {
                let shape: Vec<usize> =
                    graph.node(id).ty().shape.iter().map(|d| d.as_const().unwrap_or(0).max(0) as usize).collect();
                let n = if shape.contains(&0) { 0 } else { shape.iter().product() };
                let data = (0..n).map(|_| numbers[pick(if round % 2 == 0 { 2 } else { numbers.len() })]).collect();
                e.set(id, Array { shape, data });
            }
            evaluated += usize::from(e.run().is_ok());
        }
    }
    println!("{evaluated} graphs have values");
    assert!(evaluated > 1000);
}
