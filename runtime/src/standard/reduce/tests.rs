//! What ONNX's node tests do not show: empty sets, 64-bit unsigned numbers, NaN, old opsets, wrong shapes.

use super::super::probe::{at, call, error, f, f32s, float, i, int, numbers, one, results, show, text, types};
use super::super::{Data, Value};
use crate::dtype::DType;

const NAN: f64 = f64::NAN;

fn axes(v: &[i64]) -> Value {
    Value::Ints(v.to_vec())
}

#[test]
fn empty_sets_have_neutral_results() {
    let none = f32s(&[2, 0], &[]);
    let over = |op: &str| numbers(&one(&call(op, &[("axes", axes(&[1])), ("keepdims", int(0))]), &[&none]));
    assert_eq!(over("ReduceSum"), [0., 0.]);
    assert_eq!(over("ReduceProd"), [1., 1.]);
    assert_eq!(over("ReduceMax"), [f64::NEG_INFINITY; 2]);
    assert_eq!(over("ReduceMin"), [f64::INFINITY; 2]);
    assert_eq!(over("ReduceLogSumExp"), [f64::NEG_INFINITY; 2]);
    assert!(over("ReduceMean").iter().all(|v| v.is_nan()));
    let ints = i(DType::U8, &[0], &[]);
    assert_eq!(numbers(&one(&call("ReduceMax", &[]), &[&ints])), [0.]);
    assert_eq!(numbers(&one(&call("ReduceMin", &[]), &[&ints])), [255.]);
    assert_eq!(numbers(&one(&call("ReduceMin", &[]), &[&i(DType::Bool, &[0], &[])])), [1.]);
    assert!(error(&call("ReduceMean", &[]), &[&ints]).contains("no integers"));
    assert!(error(&call("ArgMax", &[("axis", int(1))]), &[&none]).contains("no element"));
}

#[test]
fn integers_are_exact() {
    let top = i128::from(u64::MAX);
    let x = i(DType::U64, &[2], &[top, 3]);
    assert_eq!(one(&call("ReduceSum", &[]), &[&x]), i(DType::U64, &[1], &[2]));
    assert_eq!(one(&call("ReduceMean", &[]), &[&x]), i(DType::U64, &[1], &[(top + 3) / 2]));
    assert_eq!(one(&call("ReduceMax", &[]), &[&x]), i(DType::U64, &[1], &[top]));
    assert_eq!(one(&call("ReduceProd", &[]), &[&x]), i(DType::U64, &[1], &[top - 2]));
    let close = i(DType::I64, &[2], &[(1 << 60) + 1, 1 << 60]);
    assert_eq!(numbers(&one(&call("ArgMin", &[]), &[&close])), [1.]);
    assert!(error(&call("ReduceSum", &[]), &[&i(DType::Bool, &[1], &[1])]).contains("not supported"));
}

#[test]
fn axes_come_from_attribute_or_operand() {
    let x = f32s(&[2, 2], &[1., 2., 3., 4.]);
    let none = i(DType::I64, &[0], &[]);
    let noop = [("noop_with_empty_axes", int(1))];
    assert_eq!(numbers(&one(&call("ReduceSum", &[]), &[&x, &none])), [10.]);
    assert_eq!(numbers(&one(&call("ReduceSumSquare", &noop), &[&x, &none])), [1., 4., 9., 16.]);
    assert_eq!(numbers(&one(&call("ReduceSum", &[]), &[&x, &i(DType::I64, &[1], &[-2])])), [4., 6.]);
    assert_eq!(numbers(&one(&call("ReduceL2", &[("axes", axes(&[1]))]), &[&f32s(&[1, 2], &[3., 4.])])), [5.]);
    assert!(error(&call("ReduceSum", &[]), &[&x, &i(DType::I64, &[1], &[2])]).contains("axis 2"));
}

#[test]
fn nan_and_infinities() {
    let x = f32s(&[3], &[1., NAN, 3.]);
    assert!(numbers(&one(&call("ReduceMax", &[]), &[&x]))[0].is_nan());
    assert!(numbers(&one(&call("ReduceMin", &[]), &[&x]))[0].is_nan());
    assert_eq!(numbers(&one(&call("ArgMax", &[]), &[&x])), [1.]);
    assert_eq!(numbers(&one(&call("ArgMin", &[]), &[&x])), [1.]);
    let inf = f32s(&[2], &[f64::INFINITY, 1.]);
    assert_eq!(numbers(&one(&call("ReduceLogSumExp", &[]), &[&inf])), [f64::INFINITY]);
    assert_eq!(
        numbers(&one(&call("ReduceLogSumExp", &[]), &[&f32s(&[2], &[1000., 1000.])])),
        [f64::from((1000. + 2f64.ln()) as f32)]
    );
}

#[test]
fn soft_max_took_matrices_before_opset_13() {
    let x = f32s(&[2, 1, 2], &[0., 0., 0., 0.]);
    let old = at(11, call("Softmax", &[]));
    assert_eq!(numbers(&one(&old, &[&x])), [0.5; 4]);
    assert_eq!(numbers(&one(&at(11, call("Softmax", &[("axis", int(0))])), &[&x])), [0.25; 4]);
    assert_eq!(numbers(&one(&call("Softmax", &[("axis", int(1))]), &[&x])), [1.; 4]);
    assert_eq!(numbers(&one(&old, &[&f32s(&[2], &[1., 2.])])), [1., 1.]);
    assert_eq!(numbers(&one(&call("Hardmax", &[]), &[&f32s(&[3], &[1., 5., 5.])])), [0., 1., 0.]);
    let none = f32s(&[2, 0], &[]);
    assert_eq!(one(&call("LogSoftmax", &[]), &[&none]), none);
}

#[test]
fn top_elements_keep_the_order_of_equal_ones() {
    let x = f32s(&[2, 4], &[1., 3., 3., 2., NAN, 0., -1., 5.]);
    let k = |n: i128| i(DType::I64, &[1], &[n]);
    let y = results(&call("TopK", &[]), &[&x, &k(3)], 2).unwrap();
    assert_eq!(numbers(&y[1]), [1., 2., 3., 0., 3., 1.]);
    let y = results(&call("TopK", &[("largest", int(0)), ("axis", int(0))]), &[&x, &k(1)], 2).unwrap();
    assert_eq!((numbers(&y[0]), numbers(&y[1])), (vec![1., 0., -1., 2.], vec![0., 1., 1., 0.]));
    assert!(error(&call("TopK", &[]), &[&x, &k(5)]).contains("5 elements of the 4"));
    assert!(error(&call("TopK", &[]), &[&x, &k(-1)]).contains("-1"));
    let old = at(9, call("TopK", &[("k", int(1))]));
    assert_eq!(numbers(&results(&old, &[&x], 2).unwrap()[1]), [1., 0.]);
    assert_eq!(numbers(&results(&call("TopK", &[]), &[&x, &k(0)], 2).unwrap()[1]), Vec::<f64>::new());
    assert_eq!(show(&types(&old, &[(DType::F32, &["n", "4"])]).unwrap()[1]), "i64[n, 1]");
}

#[test]
fn norms_of_batches_and_groups() {
    let x = f32s(&[2, 2], &[1., 2., 3., 6.]);
    let (one_, zero) = (f32s(&[2], &[1., 1.]), f32s(&[2], &[0., 0.]));
    let train =
        call("BatchNormalization", &[("training_mode", int(1)), ("epsilon", float(0.)), ("momentum", float(0.5))]);
    let y = results(&train, &[&x, &one_, &zero, &zero, &one_], 3).unwrap();
    assert_eq!(numbers(&y[0]), [-1., -1., 1., 1.]);
    assert_eq!((numbers(&y[1]), numbers(&y[2])), (vec![1., 2.], vec![1., 2.5]));
    // Before opset 14, further results ask for training.
    let old = at(9, call("BatchNormalization", &[("epsilon", float(0.))]));
    assert_eq!(numbers(&results(&old, &[&x, &one_, &zero, &zero, &one_], 5).unwrap()[4]), [1., 4.]);
    assert_eq!(numbers(&one(&old, &[&x, &one_, &zero, &zero, &one_])), [1., 2., 3., 6.]);
    let positions = at(7, call("BatchNormalization", &[("spatial", int(0)), ("epsilon", float(0.))]));
    let x3 = f32s(&[1, 1, 2], &[1., 2.]);
    assert_eq!(numbers(&one(&positions, &[&x3, &f32s(&[1, 2], &[2., 3.]), &zero, &zero, &one_])), [2., 6.]);
    let group = call("GroupNormalization", &[("num_groups", int(3))]);
    assert!(error(&group, &[&x, &one_, &zero]).contains("3 groups"));
    assert!(types(&group, &[(DType::F32, &["n", "2"]), (DType::F32, &["2"]), (DType::F32, &["2"])]).is_err());
    let layer = results(
        &call("LayerNormalization", &[("axis", int(0)), ("epsilon", float(0.))]),
        &[&f32s(&[2], &[1., 3.]), &one_],
        3,
    );
    let layer = layer.unwrap();
    assert_eq!((numbers(&layer[0]), numbers(&layer[1]), numbers(&layer[2])), (vec![-1., 1.], vec![2.], vec![1.]));
    let mixed = one(&call("RMSNormalization", &[("epsilon", float(0.))]), &[&f(DType::F16, &[2], &[1., 1.]), &one_]);
    assert_eq!(mixed, f32s(&[2], &[1., 1.]));
    assert_eq!(
        numbers(&one(&call("LpNormalization", &[("p", int(1))]), &[&f32s(&[2, 2], &[0., 0., -1., 3.])])),
        [0., 0., -0.25, 0.75]
    );
}

#[test]
fn losses_refuse_unknown_classes() {
    let x = f32s(&[2, 2], &[-1., -2., -3., -4.]);
    let target = |v: &[i128]| i(DType::I64, &[v.len()], v);
    let loss = |attrs: &[(&str, Value)], t: &Data| one(&call("NegativeLogLikelihoodLoss", attrs), &[&x, t]);
    assert_eq!(numbers(&loss(&[], &target(&[0, 1]))), [2.5]);
    assert_eq!(numbers(&loss(&[("ignore_index", int(-5))], &target(&[-5, 1]))), [4.]);
    assert_eq!(numbers(&loss(&[("reduction", text("none"))], &target(&[0, 1]))), [1., 4.]);
    assert!(error(&call("NegativeLogLikelihoodLoss", &[]), &[&x, &target(&[0, 2])]).contains("target 2"));
    assert!(error(&call("NegativeLogLikelihoodLoss", &[]), &[&x, &target(&[0])]).contains("must be [2]"));
    assert!(
        error(&call("SoftmaxCrossEntropyLoss", &[("reduction", text("max"))]), &[&x, &target(&[0, 1])])
            .contains("`max`")
    );
}

#[test]
fn determinants() {
    let det = |shape: &[usize], v: &[f64]| numbers(&one(&call("Det", &[]), &[&f32s(shape, v)]));
    assert_eq!(det(&[2, 2], &[0., 1., 1., 0.]), [-1.]);
    assert_eq!(det(&[2, 2], &[1., 2., 2., 4.]), [0.]);
    assert_eq!(det(&[2, 1, 1], &[3., -4.]), [3., -4.]);
    assert_eq!(det(&[0, 0], &[]), [1.]);
    assert!(error(&call("Det", &[]), &[&f32s(&[1, 2], &[1., 2.])]).contains("square"));
    assert!(types(&call("Det", &[]), &[(DType::F32, &["2", "3"])]).is_err());
}

#[test]
fn types_of_reductions() {
    let t = |c: &super::super::Call, x: &[(DType, &[&str])]| types(c, x).map(|p| show(&p[0])).map_err(|e| e.message);
    use DType::{F32, I64};
    let sum = call("ReduceSum", &[]);
    assert_eq!(t(&sum, &[(F32, &["n", "3"])]).unwrap(), "f32[1, 1]");
    assert_eq!(t(&sum, &[(F32, &["n", "3"]), (I64, &["1"])]).unwrap(), "f32[?, ?]");
    let flat = call("ReduceSum", &[("keepdims", int(0))]);
    assert_eq!(t(&flat, &[(F32, &["n", "3"]), (I64, &["1"])]).unwrap(), "f32[?]");
    assert_eq!(t(&flat, &[(F32, &["n", "3"]), (I64, &["k"])]).unwrap(), "f32[..]");
    let old = call("ReduceL1", &[("keepdims", int(0)), ("axes", axes(&[-1]))]);
    assert_eq!(t(&old, &[(F32, &["n", "3"])]).unwrap(), "f32[n]");
    assert_eq!(t(&call("ArgMax", &[("axis", int(1))]), &[(F32, &["n", "3"])]).unwrap(), "i64[n, 1]");
    let layer = call("LayerNormalization", &[]);
    assert!(t(&layer, &[(F32, &["n", "3"]), (F32, &["4"])]).unwrap_err().contains("broadcast"));
    assert!(t(&call("Softmax", &[]), &[(I64, &["n"])]).unwrap_err().contains("floating-point"));
}
