//! Tests of recurrent networks, transforms and random numbers. Numbers of the networks are those of ONNX Runtime 1.31.

use crate::attr::Real;
use crate::dtype::DType;
use crate::standard::testing::{
    call, close, compute, error, float, ints, list, noise, one, scalar, shape, tensor, text, values, words,
};
use crate::standard::{Call, Constant, Data, Value, from_ints};

/// Operands of a network of two directions: three steps, two samples of lengths 3 and 2, two features, two states.
fn operands(gates: usize, cell_state: bool) -> Vec<Option<Data>> {
    let n = |shape: &[usize], seed: u64| Some(noise(DType::F32, shape, seed));
    let mut x = vec![
        n(&[3, 2, 2], 1),
        n(&[2, gates * 2, 2], 2),
        n(&[2, gates * 2, 2], 3),
        n(&[2, gates * 4], 4),
        Some(from_ints(DType::I32, &[2], [3, 2]).unwrap()),
        n(&[2, 2, 2], 5),
    ];
    if cell_state {
        x.extend([n(&[2, 2, 2], 6), n(&[2, 6], 7)]);
    }
    x
}

fn network(op: &str, attrs: &[(&str, Value)], results: usize) -> Call {
    let mut c = call(op, 14, attrs);
    c.attrs.insert("direction".to_owned(), text("bidirectional"));
    c.wanted = vec![true; results];
    c
}

#[test]
fn networks_agree_with_onnx_runtime() {
    let r = compute(&network("LSTM", &[("clip", float(0.9))], 3), &operands(4, true)).unwrap();
    #[rustfmt::skip]
    close(&values(&r[0]), &[
        0.036314, 0.099375, -0.036626, 0.024676, -0.399299, -0.368922, -0.157965, -0.319369, 0.051456, 0.164304, 0.044030, 0.127735,
        -0.288102, -0.341290, -0.027922, -0.013400, 0.099565, 0.302576, 0.0, 0.0, -0.147981, -0.185072, 0.0, 0.0,
    ]);
    close(&values(&r[1]), &[0.099565, 0.302576, 0.044030, 0.127735, -0.399299, -0.368922, -0.157965, -0.319369]);
    close(&values(&r[2]), &[0.359140, 0.485569, 0.150672, 0.267886, -0.761876, -0.768028, -0.578143, -0.483716]);

    let r = compute(&network("GRU", &[("linear_before_reset", Value::Int(1))], 2), &operands(3, false)).unwrap();
    close(&values(&r[1]), &[-0.564454, -0.283378, 0.108523, 0.022738, 0.898958, 0.444182, 0.449727, 0.418126]);
    let r = compute(&network("GRU", &[], 2), &operands(3, false)).unwrap();
    close(&values(&r[1]), &[-0.726954, -0.471932, -0.063378, -0.231650, 0.901395, 0.493415, 0.472185, 0.430484]);

    let names = Value::Texts(vec!["Relu".to_owned(), "Tanh".to_owned()]);
    let r = compute(&network("RNN", &[("activations", names)], 2), &operands(1, false)).unwrap();
    close(&values(&r[1]), &[0.154805, 0.0, 0.0, 0.0, -0.959956, -0.116341, -0.832883, 0.096826]);
}

#[test]
fn the_other_layout_exchanges_axes() {
    let mut x = operands(4, true);
    let c = network("LSTM", &[], 3);
    let first = compute(&c, &x).unwrap();
    let swap = |d: &Data, perm: &[i64]| one(&call("Transpose", 13, &[("perm", ints(perm))]), std::slice::from_ref(d));
    for i in [0, 5, 6] {
        x[i] = x[i].as_ref().map(|d| swap(d, &[1, 0, 2]));
    }
    let mut c = c;
    c.attrs.insert("layout".to_owned(), Value::Int(1));
    let second = compute(&c, &x).unwrap();
    assert_eq!(swap(&first[0], &[2, 0, 1, 3]), second[0]);
    assert_eq!(swap(&first[1], &[1, 0, 2]), second[1]);
    assert_eq!(swap(&first[2], &[1, 0, 2]), second[2]);
}

#[test]
fn operands_of_networks_are_checked() {
    let bad = |c: &Call, x: &[Option<Data>]| compute(c, x).unwrap_err().message;
    let mut x = operands(4, true);
    x[3] = Some(noise(DType::F32, &[2, 3], 1));
    assert!(bad(&network("LSTM", &[], 1), &x).contains("the bias does not fit"));
    let mut x = operands(4, true);
    x[4] = Some(from_ints(DType::I32, &[2], [4, 1]).unwrap());
    assert!(bad(&network("LSTM", &[], 1), &x).contains("a length of a sequence"));
    let names = Value::Texts(vec!["Gelu".to_owned(); 2]);
    assert!(bad(&network("RNN", &[("activations", names)], 1), &operands(1, false)).contains("`Gelu` is unknown"));
}

#[test]
fn transforms_agree_with_their_definition() {
    for n in [1usize, 2, 7, 12, 30, 400 / 8] {
        let x = noise(DType::F64, &[1, n, 2], n as u64);
        let v = values(&x);
        let mut expected = vec![];
        for k in 0..n {
            let (mut re, mut im) = (0.0, 0.0);
            for j in 0..n {
                let a = -2.0 * std::f64::consts::PI * (j * k) as f64 / n as f64;
                re += v[2 * j] * a.cos() - v[2 * j + 1] * a.sin();
                im += v[2 * j] * a.sin() + v[2 * j + 1] * a.cos();
            }
            expected.extend([re, im]);
        }
        let y = one(&call("DFT", 20, &[]), std::slice::from_ref(&x));
        close(&values(&y), &expected);
        let back = one(&call("DFT", 17, &[("inverse", Value::Int(1))]), &[y]);
        close(&values(&back), &v);
    }
    // Half of the spectrum of real numbers is enough to get them back.
    for n in [8i64, 9] {
        let x = noise(DType::F64, &[2, n as usize, 1], 3);
        let half = one(&call("DFT", 20, &[("onesided", Value::Int(1))]), &[x.clone(), scalar(n)]);
        assert_eq!(shape(&half), [2, n as usize / 2 + 1, 2]);
        let both = [("onesided", Value::Int(1)), ("inverse", Value::Int(1))];
        let back = one(&call("DFT", 20, &both), &[half, scalar(n), scalar(1)]);
        close(&values(&back), &values(&x));
    }
    let x = noise(DType::F32, &[1, 10, 1], 1);
    assert!(error(&call("DFT", 20, &[]), &[x.clone(), scalar(4), scalar(2)]).contains("holds the parts"));
    let none = None;
    let too_long = compute(&call("STFT", 17, &[]), &[Some(x), Some(scalar(2)), none, Some(scalar(11))]).unwrap_err();
    assert!(too_long.message.contains("frames of 11 in signals of 10"));
}

#[test]
fn a_spectrogram_is_made_of_transforms_of_frames() {
    let x = noise(DType::F64, &[1, 20, 1], 9);
    let y = one(
        &call("STFT", 17, &[]),
        &[x.clone(), scalar(3), one(&call("HannWindow", 17, &[("output_datatype", Value::Int(11))]), &[scalar(8)])],
    );
    assert_eq!(shape(&y), [1, 5, 5, 2]);
    let window = values(&one(&call("HannWindow", 17, &[("output_datatype", Value::Int(11))]), &[scalar(8)]));
    let frame: Vec<f64> = values(&x)[6..14].iter().zip(window).map(|(a, b)| a * b).collect();
    let dft = one(&call("DFT", 20, &[("onesided", Value::Int(1))]), &[tensor(DType::F64, &[1, 8, 1], &frame)]);
    close(&values(&y)[20..30], &values(&dft));
}

#[test]
fn random_numbers_are_those_of_their_seed() {
    let c = |op: &str, seed: f64| {
        call(
            op,
            22,
            &[
                ("shape", ints(&[4000])),
                ("seed", float(seed)),
                ("mean", float(2.0)),
                ("scale", float(3.0)),
                ("low", float(-1.0)),
            ],
        )
    };
    let run = |c: &Call| values(&compute(c, &[]).unwrap()[0]);
    let normal = run(&c("RandomNormal", 1.0));
    assert_eq!(normal, run(&c("RandomNormal", 1.0)));
    assert_ne!(normal, run(&c("RandomNormal", 2.0)));
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let m = mean(&normal);
    let deviation = mean(&normal.iter().map(|v| (v - m) * (v - m)).collect::<Vec<_>>()).sqrt();
    assert!((m - 2.0).abs() < 0.2 && (deviation - 3.0).abs() < 0.2, "{m} {deviation}");
    let uniform = run(&c("RandomUniform", 1.0));
    assert!(mean(&uniform).abs() < 0.05 && uniform.iter().all(|v| (-1.0..1.0).contains(v)));
    let odds = tensor(DType::F32, &[1, 3], &[0.0, f64::NEG_INFINITY, 3f64.ln()]);
    let draws = values(&one(&call("Multinomial", 22, &[("sample_size", Value::Int(2000))]), &[odds]));
    let share = draws.iter().filter(|&&d| d == 2.0).count() as f64 / 2000.0;
    assert!((share - 0.75).abs() < 0.05 && !draws.contains(&1.0), "{share}");
    let coins = values(&one(&call("Bernoulli", 22, &[]), &[tensor(DType::F32, &[3], &[0.0, 1.0, 1.0])]));
    assert_eq!(coins, [0.0, 1.0, 1.0]);
}

fn ml(op: &str, attrs: &[(&str, Value)]) -> Call {
    Call { domain: "ai.onnx.ml".to_owned(), ..call(op, 4, attrs) }
}

#[test]
fn labels_map_between_all_kinds() {
    let strings = |v: &[&str]| Value::Texts(v.iter().map(|s| (*s).to_owned()).collect());
    let to_words = ml("LabelEncoder", &[("keys_int64s", ints(&[1, 2])), ("values_strings", strings(&["a", "b"]))]);
    assert_eq!(one(&to_words, &[list(&[2, 1, 7])]), words(&[3], &["b", "a", "_Unused"]));
    let to_floats = ml(
        "LabelEncoder",
        &[
            ("keys_floats", Value::Floats(vec![Real(f64::NAN), Real(0.0)])),
            ("values_floats", Value::Floats(vec![Real(5.0), Real(6.0)])),
            ("default_float", float(-3.0)),
        ],
    );
    assert_eq!(values(&one(&to_floats, &[tensor(DType::F32, &[3], &[f64::NAN, -0.0, 1.0])])), [5.0, 6.0, -3.0]);
    let old = ml("LabelEncoder", &[("classes_strings", strings(&["x", "y"])), ("default_int64", Value::Int(-9))]);
    assert_eq!(values(&one(&old, &[words(&[2], &["y", "z"])])), [1.0, -9.0]);
    assert_eq!(one(&old, &[list(&[0, 5])]), words(&[2], &["x", "_Unused"]));
    let uneven = ml("LabelEncoder", &[("keys_int64s", ints(&[1])), ("values_int64s", ints(&[1, 2]))]);
    assert!(error(&uneven, &[list(&[1])]).contains("1 keys for 2 values"));
}

#[test]
fn a_tree_that_goes_round_is_refused() {
    let constant = |dtype: DType, v: &[f64]| {
        let Data::Tensor(t) = tensor(dtype, &[v.len()], v) else { panic!() };
        Value::Tensor(Constant { dtype, shape: t.shape.clone(), data: t.bytes().to_vec(), texts: vec![] })
    };
    let tree = |next: i64, leaf: i64| {
        ml(
            "TreeEnsemble",
            &[
                ("tree_roots", ints(&[0])),
                ("nodes_modes", constant(DType::F32, &[0.0])),
                ("nodes_splits", constant(DType::F32, &[0.5])),
                ("nodes_featureids", ints(&[0])),
                ("nodes_truenodeids", ints(&[next])),
                ("nodes_trueleafs", ints(&[leaf])),
                ("nodes_falsenodeids", ints(&[1])),
                ("nodes_falseleafs", ints(&[1])),
                ("leaf_targetids", ints(&[0, 1])),
                ("leaf_weights", constant(DType::F32, &[2.0, 4.0])),
                ("n_targets", Value::Int(2)),
            ],
        )
    };
    let x = tensor(DType::F32, &[2, 1], &[0.0, 1.0]);
    assert_eq!(values(&one(&tree(0, 1), std::slice::from_ref(&x))), [2.0, 0.0, 0.0, 4.0]);
    assert!(error(&tree(0, 0), std::slice::from_ref(&x)).contains("goes round in a circle"));
    assert!(error(&tree(7, 1), &[x]).contains("nodes_truenodeids"));
}
