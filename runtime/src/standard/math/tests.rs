//! What ONNX's node tests do not show: wrapping, 64-bit unsigned numbers, empty tensors, NaN, ties.

use super::super::probe::{at, call, error, f, f32s, float, i, int, numbers, one, results, show, strings, text, types};
use super::super::{Data, Value};
use crate::dtype::DType;

const NAN: f64 = f64::NAN;

#[test]
fn integers_wrap_and_divide_towards_zero() {
    let a = i(DType::I8, &[3], &[127, -128, -7]);
    let b = i(DType::I8, &[3], &[1, -1, 2]);
    assert_eq!(numbers(&one(&call("Add", &[]), &[&a, &b])), [-128., 127., -5.]);
    assert_eq!(numbers(&one(&call("Div", &[]), &[&a, &b])), [127., -128., -3.]);
    assert_eq!(numbers(&one(&call("Mod", &[]), &[&a, &b])), [0., 0., 1.]);
    assert_eq!(numbers(&one(&call("Mod", &[("fmod", int(1))]), &[&a, &b])), [0., 0., -1.]);
    assert_eq!(numbers(&one(&call("Neg", &[]), &[&a])), [-127., -128., 7.]);
    assert_eq!(numbers(&one(&call("Abs", &[]), &[&a])), [127., -128., 7.]);
    let zero = i(DType::I8, &[], &[0]);
    assert!(error(&call("Div", &[]), &[&a, &zero]).contains("divided by zero"));
    assert!(error(&call("Mod", &[]), &[&a, &zero]).contains("divided by zero"));
    let none = i(DType::I8, &[0], &[]);
    assert_eq!(one(&call("Add", &[]), &[&none, &zero]), none);
    assert!(error(&call("Mod", &[]), &[&f32s(&[1], &[1.]), &f32s(&[1], &[1.])]).contains("fmod"));
}

#[test]
fn unsigned_64_bit_numbers_are_exact() {
    let top = i128::from(u64::MAX);
    let a = i(DType::U64, &[2], &[top, 1 << 63]);
    let b = i(DType::U64, &[2], &[2, 3]);
    assert_eq!(one(&call("Add", &[]), &[&a, &b]), i(DType::U64, &[2], &[1, (1 << 63) + 3]));
    assert_eq!(one(&call("Mul", &[]), &[&a, &b]), i(DType::U64, &[2], &[top - 1, 1 << 63]));
    assert_eq!(one(&call("Div", &[]), &[&a, &b]), i(DType::U64, &[2], &[top / 2, (1 << 63) / 3]));
    assert_eq!(one(&call("Max", &[]), &[&a, &b]), a);
    assert_eq!(one(&call("Greater", &[]), &[&a, &b]), i(DType::Bool, &[2], &[1, 1]));
    let shift = call("BitShift", &[("direction", text("RIGHT"))]);
    assert_eq!(one(&shift, &[&a, &i(DType::U64, &[], &[63])]), i(DType::U64, &[2], &[1, 1]));
    assert_eq!(one(&shift, &[&a, &i(DType::U64, &[], &[64])]), i(DType::U64, &[2], &[0, 0]));
    assert!(error(&shift, &[&i(DType::I8, &[1], &[1]), &i(DType::I8, &[1], &[1])]).contains("not supported"));
    assert_eq!(
        one(&call("Cast", &[("to", int(13))]), &[&f(DType::F64, &[1], &[1.8e19])]),
        i(DType::U64, &[1], &[18_000_000_000_000_000_000])
    );
}

#[test]
fn powers_take_the_base_type() {
    let a = i(DType::I64, &[3], &[3, -2, 10]);
    let power = call("Pow", &[]);
    assert_eq!(
        one(&power, &[&a, &i(DType::U8, &[3], &[39, 63, 2])]),
        i(DType::I64, &[3], &[4052555153018976267, -(1 << 63), 100])
    );
    assert_eq!(one(&power, &[&a, &f32s(&[], &[0.5])]), i(DType::I64, &[3], &[1, 0, 3]));
    assert_eq!(one(&power, &[&a, &i(DType::I64, &[], &[-1])]), i(DType::I64, &[3], &[0, 0, 0]));
    assert_eq!(numbers(&one(&power, &[&f32s(&[2], &[4., 9.]), &f(DType::F64, &[], &[0.5])])), [2., 3.]);
}

#[test]
fn largest_and_smallest_pass_nan_on() {
    let (a, b) = (f32s(&[3], &[NAN, 1., 2.]), f32s(&[3], &[1., NAN, 3.]));
    for (op, last) in [("Max", 3.), ("Min", 2.)] {
        let y = numbers(&one(&call(op, &[]), &[&a, &b, &f32s(&[], &[2.5])]));
        assert!(y[0].is_nan() && y[1].is_nan(), "{op} {y:?}");
        assert_eq!(y[2], if last == 3. { 3. } else { 2. });
    }
    assert_eq!(numbers(&one(&call("Less", &[]), &[&a, &b])), [0., 0., 1.]);
    let clip = one(&call("Clip", &[]), &[&a, &f32s(&[], &[1.5]), &f32s(&[], &[1.75])]);
    assert!(numbers(&clip)[0].is_nan());
    assert_eq!(numbers(&clip)[1..], [1.5, 1.75]);
}

#[test]
fn limits_come_from_attributes_or_operands() {
    let x = f32s(&[3], &[-3., 0., 3.]);
    let old = at(6, call("Clip", &[("min", float(-1.)), ("max", float(2.))]));
    assert_eq!(numbers(&one(&old, &[&x])), [-1., 0., 2.]);
    // The upper limit wins where it is the lower one.
    assert_eq!(numbers(&one(&call("Clip", &[]), &[&x, &f32s(&[], &[2.]), &f32s(&[], &[1.])])), [1., 1., 1.]);
    let n = i(DType::U64, &[2], &[i128::from(u64::MAX), 0]);
    assert_eq!(
        one(&call("Clip", &[]), &[&n, &i(DType::U64, &[], &[1])]),
        i(DType::U64, &[2], &[i128::from(u64::MAX), 1])
    );
    assert!(error(&call("Clip", &[]), &[&x, &f32s(&[2], &[1., 2.])]).contains("not one element"));
}

#[test]
fn ties_are_rounded_to_even() {
    let x = f32s(&[6], &[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]);
    assert_eq!(numbers(&one(&call("Round", &[]), &[&x])), [0., 2., 2., -0., -2., -2.]);
    let q = call("QuantizeLinear", &[]);
    let one_scale = f32s(&[], &[1.]);
    assert_eq!(numbers(&one(&q, &[&x, &one_scale, &i(DType::I8, &[], &[1])])), [1., 3., 3., 1., -1., -1.]);
    // Without a zero point, elements are unsigned; numbers beyond the range become its limits.
    assert_eq!(numbers(&one(&q, &[&f32s(&[3], &[-4., 254.5, 1e9]), &one_scale])), [0., 254., 255.]);
}

#[test]
fn scales_go_by_axis_and_block() {
    let x = i(DType::I8, &[2, 3], &[1, 2, 3, 4, 5, 6]);
    let axis = call("DequantizeLinear", &[("axis", int(0))]);
    assert_eq!(numbers(&one(&axis, &[&x, &f32s(&[2], &[1., 10.])])), [1., 2., 3., 40., 50., 60.]);
    let block = call("DequantizeLinear", &[("axis", int(1)), ("block_size", int(2))]);
    let scale = f32s(&[2, 2], &[1., 10., 100., 1000.]);
    assert_eq!(numbers(&one(&block, &[&x, &scale])), [1., 2., 30., 400., 500., 6000.]);
    assert!(error(&block, &[&x, &f32s(&[2, 3], &[1.; 6])]).contains("[2, 2]"));
    assert!(error(&axis, &[&x, &f32s(&[3], &[1.; 3])]).contains("needs 2"));
    let wanted = call("QuantizeLinear", &[("output_dtype", int(22))]);
    assert!(error(&wanted, &[&f32s(&[1], &[1.]), &f32s(&[], &[1.]), &i(DType::U8, &[], &[0])]).contains("zero point"));
}

#[test]
fn products_of_integers_wrap_in_32_bits() {
    let a = i(DType::U8, &[2, 2], &[1, 2, 3, 4]);
    let b = i(DType::I8, &[2], &[-1, 1]);
    let y = one(&call("MatMulInteger", &[]), &[&a, &b, &i(DType::U8, &[2], &[1, 3])]);
    assert_eq!(y, i(DType::I32, &[2], &[1, 1]));
    assert!(error(&call("MatMulInteger", &[]), &[&a, &i(DType::I8, &[3, 1], &[0; 3])]).contains("differ"));
    let none = one(&call("MatMulInteger", &[]), &[&i(DType::U8, &[2, 0], &[]), &i(DType::I8, &[0, 1], &[])]);
    assert_eq!(none, i(DType::I32, &[2, 1], &[0, 0]));
}

#[test]
fn casts_between_all_kinds() {
    let to = |code: i64, x: &Data| one(&call("Cast", &[("to", int(code))]), &[x]);
    assert_eq!(to(3, &i(DType::I16, &[2], &[200, -200])), i(DType::I8, &[2], &[-56, 56]));
    assert_eq!(to(22, &i(DType::I16, &[2], &[9, -9])), i(DType::I4, &[2], &[-7, 7]));
    assert_eq!(to(9, &f32s(&[4], &[0., -0., 0.25, NAN])), i(DType::Bool, &[4], &[0, 0, 1, 1]));
    // One rounding from 64-bit integers to f32.
    assert_eq!(
        numbers(&to(1, &i(DType::I64, &[1], &[(1 << 60) + (1 << 36) + 1]))),
        [((1i64 << 60) + (1 << 37)) as f64]
    );
    let e8m0 = |x: &[f64], mode: &str, saturate: i64| {
        let c = call("Cast", &[("to", int(24)), ("round_mode", text(mode)), ("saturate", int(saturate))]);
        numbers(&one(&c, &[&f32s(&[x.len()], x)]))
    };
    assert_eq!(e8m0(&[3., 4., 5.], "up", 1), [4., 4., 8.]);
    assert_eq!(e8m0(&[3., 4., 5.], "down", 1), [2., 4., 4.]);
    assert_eq!(e8m0(&[3., 4., 5.], "nearest", 1), [4., 4., 4.]);
    assert!(e8m0(&[0., NAN], "nearest", 0).iter().all(|v| v.is_nan()));
    assert_eq!(e8m0(&[f64::INFINITY], "up", 1), [2f64.powi(127)]);
    let c = call("Cast", &[("to", int(24)), ("round_mode", text("odd"))]);
    assert!(error(&c, &[&f32s(&[1], &[1.])]).contains("`odd`"));
}

#[test]
fn casts_from_and_to_strings() {
    let to = |code: i64, x: &Data| one(&call("Cast", &[("to", int(code))]), &[x]);
    let shown = |x: &Data| match to(8, x) {
        Data::Strings(s) => s.values.join(" "),
        other => panic!("{}", other.describe()),
    };
    let x = f32s(&[9], &[0.1, -1.0, 1e-5, 1e16, 123456.0, 0., NAN, f64::INFINITY, 0.001]);
    assert_eq!(shown(&x), "0.1 -1.0 1e-05 1e+16 123456.0 0.0 nan inf 0.001");
    assert_eq!(shown(&f(DType::F16, &[2], &[0.1, 65504.])), "0.1 65500.0");
    assert_eq!(shown(&f(DType::F64, &[1], &[0.1f32 as f64])), "0.10000000149011612");
    assert_eq!(shown(&i(DType::U64, &[1], &[i128::from(u64::MAX)])), "18446744073709551615");
    assert_eq!(shown(&i(DType::Bool, &[2], &[0, 1])), "False True");
    let s = strings(&[4], &["3.5", " -INF", "1e2", "NaN"]);
    let y = numbers(&to(1, &s));
    assert_eq!(y[..3], [3.5, f64::NEG_INFINITY, 100.]);
    assert!(y[3].is_nan());
    assert_eq!(to(13, &strings(&[1], &["18446744073709551615"])), i(DType::U64, &[1], &[i128::from(u64::MAX)]));
    assert!(error(&call("Cast", &[("to", int(7))]), &[&strings(&[1], &["x"])]).contains("`x` is no number"));
}

#[test]
fn bits_are_kept() {
    let c = |code: i64| call("BitCast", &[("to", int(code))]);
    assert_eq!(one(&c(6), &[&f32s(&[1], &[1.])]), i(DType::I32, &[1], &[0x3f80_0000]));
    assert_eq!(one(&c(21), &[&i(DType::I4, &[2], &[-1, 3])]), i(DType::U4, &[2], &[15, 3]));
    assert_eq!(one(&c(22), &[&i(DType::U4, &[2], &[15, 3])]), i(DType::I4, &[2], &[-1, 3]));
    assert!(error(&c(7), &[&f32s(&[1], &[1.])]).contains("must be equal"));
    assert!(types(&c(7), &[(DType::F32, &["n"])]).is_err());
}

#[test]
fn running_sums_of_any_kind() {
    let x = i(DType::I32, &[2, 3], &[1, 2, 3, 4, 5, 6]);
    let run =
        |op: &str, attrs: &[(&str, Value)], axis: i128| one(&call(op, attrs), &[&x, &i(DType::I64, &[], &[axis])]);
    assert_eq!(numbers(&run("CumSum", &[], -1)), [1., 3., 6., 4., 9., 15.]);
    assert_eq!(numbers(&run("CumSum", &[("reverse", int(1)), ("exclusive", int(1))], 1)), [5., 3., 0., 11., 6., 0.]);
    assert_eq!(numbers(&run("CumProd", &[("exclusive", int(1))], 0)), [1., 1., 1., 1., 2., 3.]);
    assert!(error(&call("CumSum", &[]), &[&x, &i(DType::I64, &[], &[2])]).contains("axis 2"));
    let none = i(DType::I32, &[2, 0], &[]);
    assert_eq!(one(&call("CumSum", &[]), &[&none, &i(DType::I64, &[], &[1])]), none);
}

#[test]
fn dropout_changes_nothing_outside_of_training() {
    let x = f32s(&[2], &[1., 2.]);
    let y = results(&call("Dropout", &[]), &[&x], 2).unwrap();
    assert_eq!(y, [x.clone(), i(DType::Bool, &[2], &[1, 1])]);
    assert_eq!(results(&at(7, call("Dropout", &[])), &[&x], 2).unwrap()[1], f32s(&[2], &[1., 1.]));
    let train = i(DType::Bool, &[], &[1]);
    assert_eq!(one(&call("Dropout", &[]), &[&x, &f32s(&[], &[0.]), &train]), x);
    assert!(error(&call("Dropout", &[]), &[&x, &f32s(&[], &[0.5]), &train]).contains("not supported"));
}

#[test]
fn strings_compare_and_choose() {
    let (a, b) = (strings(&[2], &["x", "y"]), strings(&[], &["y"]));
    assert_eq!(one(&call("Equal", &[]), &[&a, &b]), i(DType::Bool, &[2], &[0, 1]));
    let y = one(&call("Where", &[]), &[&i(DType::Bool, &[2], &[1, 0]), &a, &b]);
    assert_eq!(y, strings(&[2], &["x", "y"]));
    assert!(error(&call("Where", &[]), &[&f32s(&[2], &[1., 0.]), &a, &b]).contains("not bool"));
}

#[test]
fn activations_stay_finite() {
    let x = f32s(&[3], &[-1000., 0., 1000.]);
    let y = |op: &str| numbers(&one(&call(op, &[]), &[&x]));
    assert_eq!(y("Softplus"), [0., f64::from(std::f32::consts::LN_2), 1000.]);
    assert_eq!(y("Sigmoid"), [0., 0.5, 1.]);
    assert_eq!(y("Mish"), [0., 0., 1000.]);
    assert_eq!(y("Elu"), [-1., 0., 1000.]);
    assert_eq!(y("Swish"), [0., 0., 1000.]);
    assert_eq!(y("Sign"), [-1., 0., 1.]);
    let shrink = call("Shrink", &[("lambd", float(1.5)), ("bias", float(1.))]);
    assert_eq!(numbers(&one(&shrink, &[&i(DType::I8, &[3], &[-3, 1, 3])])), [-2., 0., 2.]);
}

#[test]
fn types_say_what_does_not_fit() {
    let t = |op: &str, x: &[(DType, &[&str])]| types(&call(op, &[]), x).map(|p| show(&p[0])).map_err(|e| e.message);
    use DType::{Bool, F16, F32, I64};
    assert_eq!(t("Add", &[(F16, &["n", "4"]), (F16, &["4"])]).unwrap(), "f16[n, 4]");
    assert_eq!(t("Add", &[(F16, &["n"]), (F16, &["m"])]).unwrap(), "f16[join(m, n)]");
    assert_eq!(t("Less", &[(F32, &["n", "1"]), (F32, &["3"])]).unwrap(), "bool[n, 3]");
    assert_eq!(t("Pow", &[(F32, &["n"]), (I64, &[])]).unwrap(), "f32[n]");
    assert_eq!(t("MatMulInteger", &[(DType::U8, &["b", "m", "3"]), (DType::U8, &["3", "n"])]).unwrap(), "i32[b, m, n]");
    assert!(t("Add", &[(F32, &["2"]), (F32, &["3"])]).unwrap_err().contains("broadcast"));
    assert!(t("Add", &[(F32, &["2"]), (I64, &["2"])]).unwrap_err().contains("one element type"));
    assert!(t("Exp", &[(I64, &["2"])]).unwrap_err().contains("floating-point"));
    assert!(t("And", &[(Bool, &["2"]), (I64, &["2"])]).unwrap_err().contains("booleans"));
    assert!(t("PRelu", &[(F32, &["2"]), (F32, &["3", "2"])]).unwrap_err().contains("slope"));
    assert!(t("MatMulInteger", &[(DType::U8, &["3", "4"]), (DType::U8, &["3", "4"])]).unwrap_err().contains("differ"));
}
