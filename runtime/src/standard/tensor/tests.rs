//! Tests of what moves elements, over all element types.

use crate::dim::Dim;
use crate::dtype::{DType, TensorType};
use crate::standard::testing::{
    call, close, compute, error, float, ints, list, noise, one, scalar, shape, tensor, text, values, words,
};
use crate::standard::{Data, Operand, Value, from_ints, lookup};

#[test]
fn elements_of_every_type_are_moved() {
    for dtype in DType::ALL {
        let x = noise(dtype, &[2, 3, 4], 7);
        let turned = one(&call("Transpose", 13, &[("perm", ints(&[2, 0, 1]))]), std::slice::from_ref(&x));
        assert_eq!(shape(&turned), [4, 2, 3], "{dtype}");
        let back = one(&call("Transpose", 13, &[("perm", ints(&[1, 2, 0]))]), &[turned]);
        assert_eq!(back, x, "{dtype}");
        let gathered = one(&call("Gather", 13, &[("axis", Value::Int(1))]), &[x.clone(), list(&[-1, 0])]);
        let sliced = one(&call("Slice", 13, &[]), &[x.clone(), list(&[2]), list(&[-9]), list(&[1]), list(&[-2])]);
        assert_eq!(gathered, sliced, "{dtype}");
        let twice = one(&call("Concat", 13, &[("axis", Value::Int(0))]), &[x.clone(), x.clone()]);
        assert_eq!(twice, one(&call("Tile", 13, &[]), &[x, list(&[2, 1, 1])]), "{dtype}");
    }
}

#[test]
fn strings_are_moved_as_numbers_are() {
    let x = words(&[2, 2], &["a", "b", "c", "a"]);
    assert_eq!(one(&call("Transpose", 13, &[]), std::slice::from_ref(&x)), words(&[2, 2], &["a", "c", "b", "a"]));
    assert_eq!(one(&call("Expand", 13, &[]), &[words(&[1], &["z"]), list(&[2, 1])]), words(&[2, 1], &["z", "z"]));
    assert_eq!(
        one(&call("GatherND", 13, &[]), &[x.clone(), one(&call("Reshape", 13, &[]), &[list(&[1, 0]), list(&[1, 2])])]),
        words(&[1], &["c"])
    );
    let padded = one(&call("Pad", 13, &[]), &[x.clone(), list(&[0, 1, 0, 0])]);
    assert_eq!(padded, words(&[2, 3], &["", "a", "b", "", "c", "a"]));
    let scattered = one(
        &call("ScatterElements", 13, &[]),
        &[x.clone(), from_ints(DType::I64, &[1, 2], [1, 0]).unwrap(), words(&[1, 2], &["p", "q"])],
    );
    assert_eq!(scattered, words(&[2, 2], &["a", "q", "p", "a"]));
    let mut unique = call("Unique", 11, &[]);
    unique.wanted = vec![true; 4];
    let r = compute(&unique, &[Some(x.clone())]).unwrap();
    assert_eq!(r[0], words(&[3], &["a", "b", "c"]));
    assert_eq!([&r[1], &r[2], &r[3]].map(values), [vec![0.0, 1.0, 2.0], vec![0.0, 1.0, 2.0, 0.0], vec![2.0, 1.0, 1.0]]);
    assert_eq!(values(&one(&call("Shape", 15, &[]), std::slice::from_ref(&x))), [2.0, 2.0]);
    assert!(
        error(
            &call("ScatterElements", 18, &[("reduction", text("add"))]),
            &[x, from_ints(DType::I64, &[1, 1], [0]).unwrap(), words(&[1, 1], &["p"])]
        )
        .contains("no reduction")
    );
}

#[test]
fn indices_and_shapes_that_do_not_fit_are_refused() {
    let x = noise(DType::F32, &[2, 3], 1);
    let c = |op: &str| call(op, 13, &[]);
    assert!(error(&c("Gather"), &[x.clone(), list(&[2])]).contains("index 2 is outside the extent 2"));
    assert!(error(&c("Reshape"), &[x.clone(), list(&[4, -1])]).contains("cannot become"));
    assert!(error(&c("Reshape"), &[x.clone(), list(&[-1, -1])]).contains("cannot become"));
    assert!(error(&c("Expand"), &[x.clone(), list(&[2, 4])]).contains("do not broadcast"));
    assert!(error(&c("Tile"), &[x.clone(), list(&[2])]).contains("one number per axis"));
    assert!(
        error(&c("Slice"), &[x.clone(), list(&[0]), list(&[1]), list(&[0]), list(&[0])])
            .contains("step of a slice is 0")
    );
    assert!(
        error(&call("Pad", 13, &[("mode", text("edge"))]), &[x.clone(), list(&[-2, 0, 1, 0])])
            .contains("nothing to repeat")
    );
    assert!(error(&c("MatMul"), &[x.clone(), x.clone()]).contains("inner extents"));
    assert!(error(&c("Expand"), &[x, list(&[1 << 40, 1 << 40, 1, 1])]).contains("the limit of a result"));
}

#[test]
fn pads_repeat_beyond_the_extent_and_may_remove() {
    let x = tensor(DType::F32, &[3], &[1.0, 2.0, 3.0]);
    let pad =
        |mode: &str, pads: &[i64]| values(&one(&call("Pad", 19, &[("mode", text(mode))]), &[x.clone(), list(pads)]));
    assert_eq!(pad("reflect", &[4, 1]), [1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0]);
    assert_eq!(pad("wrap", &[1, 4]), [3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0]);
    assert_eq!(pad("edge", &[-1, 2]), [2.0, 3.0, 3.0, 3.0]);
    assert_eq!(pad("constant", &[1, -2]), [0.0, 1.0]);
    assert_eq!(
        values(&one(&call("Pad", 10, &[("pads", ints(&[1, 0])), ("value", float(5.0))]), &[x])),
        [5.0, 1.0, 2.0, 3.0]
    );
}

#[test]
fn a_slice_backwards_starts_at_the_nearest_element() {
    let x = list(&[0, 1, 2, 3]);
    let slice = |s: i64, e: i64, step: i64| {
        values(&one(&call("Slice", 13, &[]), &[x.clone(), list(&[s]), list(&[e]), list(&[0]), list(&[step])]))
    };
    assert_eq!(slice(100, -100, -1), [3.0, 2.0, 1.0, 0.0]);
    assert_eq!(slice(i64::MAX, i64::MIN, i64::MIN + 1), [3.0]);
    assert_eq!(slice(-6, -100, -3), [0.0]);
    assert_eq!(slice(-100, 100, 3), [0.0, 3.0]);
    assert!(slice(3, 1, 1).is_empty());
}

#[test]
fn integers_multiply_and_wrap() {
    let big = from_ints(DType::U64, &[1, 2], [i128::from(u64::MAX), 3]).unwrap();
    let one_column = from_ints(DType::U64, &[2, 1], [2, 5]).unwrap();
    let wrapped = one(&call("MatMul", 13, &[]), &[big, one_column]);
    assert_eq!(wrapped, from_ints(DType::U64, &[1, 1], [13]).unwrap());
    let a = from_ints(DType::I32, &[2, 2], [1, 2, 3, 4]).unwrap();
    let bias = from_ints(DType::I32, &[2], [10, 20]).unwrap();
    let y = one(&call("Gemm", 13, &[("transB", Value::Int(1))]), &[a.clone(), a, bias]);
    assert_eq!(values(&y), [15.0, 31.0, 21.0, 45.0]);
}

#[test]
fn einsum_agrees_with_sums_by_definition() {
    let (a, b) = (noise(DType::F64, &[2, 3, 4], 3), noise(DType::F64, &[2, 4, 5], 4));
    let (x, y) = (values(&a), values(&b));
    let c = |equation: &str| call("Einsum", 12, &[("equation", text(equation))]);
    let product = values(&one(&c("bij,bjk->ikb"), &[a.clone(), b.clone()]));
    let mut expected = vec![];
    for i in 0..3 {
        for k in 0..5 {
            for n in 0..2 {
                expected.push((0..4).map(|j| x[(n * 3 + i) * 4 + j] * y[(n * 4 + j) * 5 + k]).sum::<f64>());
            }
        }
    }
    close(&product, &expected);
    // A letter of only one operand, and only letters that stay.
    close(
        &values(&one(&c("bij,bkl->b"), &[a.clone(), b])),
        &(0..2)
            .map(|n| x[n * 12..n * 12 + 12].iter().sum::<f64>() * y[n * 20..n * 20 + 20].iter().sum::<f64>())
            .collect::<Vec<_>>(),
    );
    // An axis of 1 under the ellipsis repeats.
    let row = noise(DType::F64, &[1, 4], 5);
    let w = values(&row);
    let scaled = values(&one(&c("...j,...j->...j"), &[a.clone(), row]));
    close(&scaled, &x.iter().enumerate().map(|(i, v)| v * w[i % 4]).collect::<Vec<_>>());
    assert!(error(&c("ij->i"), std::slice::from_ref(&a)).contains("does not name the 3 axes"));
    assert!(error(&c("ijk->iz"), &[a]).contains("in no operand"));
}

#[test]
fn reductions_of_scatter_meet_twice() {
    let x = tensor(DType::F16, &[3], &[1.0, 2.0, 3.0]);
    let at = from_ints(DType::I64, &[3, 1], [1, 1, 2]).unwrap();
    let up = tensor(DType::F16, &[3], &[5.0, 7.0, 0.5]);
    let run = |how: &str| {
        values(&one(&call("ScatterND", 18, &[("reduction", text(how))]), &[x.clone(), at.clone(), up.clone()]))
    };
    assert_eq!(run("add"), [1.0, 14.0, 3.5]);
    assert_eq!(run("mul"), [1.0, 70.0, 1.5]);
    assert_eq!(run("min"), [1.0, 2.0, 0.5]);
    assert_eq!(run("max"), [1.0, 7.0, 3.0]);
    assert_eq!(run("none"), [1.0, 7.0, 0.5]);
}

#[test]
fn ranges_count_in_every_type() {
    let f = |a: f64, b: f64, s: f64| {
        values(&one(&call("Range", 11, &[]), &[a, b, s].map(|v| tensor(DType::F32, &[], &[v]))))
    };
    assert_eq!(f(0.0, 1.0, 0.25), [0.0, 0.25, 0.5, 0.75]);
    assert!(f(0.0, 1.0, -1.0).is_empty());
    assert_eq!(values(&one(&call("Range", 11, &[]), &[scalar(10), scalar(4), scalar(-3)])), [10.0, 7.0]);
    assert!(error(&call("Range", 11, &[]), &[scalar(1), scalar(2), scalar(0)]).contains("the step of a range is 0"));
}

/// The extents that a type rule gives for symbolic operands.
fn symbolic(op: &str, attrs: &[(&str, Value)], types: &[TensorType], known: &[Option<Vec<Dim>>]) -> Vec<String> {
    let views: Vec<Option<Operand<'_>>> =
        types.iter().zip(known).map(|(ty, v)| Some(Operand { ty, values: v.as_deref() })).collect();
    let rules = (lookup("", op).unwrap().infer)(&call(op, 18, attrs), &views).unwrap();
    let extents = rules[0].shape.clone().unwrap();
    extents.iter().map(|d| d.as_ref().map_or("?".to_owned(), Dim::to_string)).collect()
}

#[test]
fn type_rules_keep_symbols() {
    let n = Dim::sym("n");
    let x = TensorType::new(DType::F32, vec![n.clone(), Dim::from(4), Dim::from(6)]);
    let i = |len: i64| TensorType::new(DType::I64, vec![Dim::from(len)]);
    let dims = |v: &[i64]| Some(v.iter().map(|&d| Dim::from(d)).collect::<Vec<_>>());
    assert_eq!(symbolic("Reshape", &[], &[x.clone(), i(2)], &[None, dims(&[0, -1])]), ["n", "24"]);
    assert_eq!(symbolic("Reshape", &[], &[x.clone(), i(3)], &[None, None]), ["?", "?", "?"]);
    assert_eq!(
        symbolic("Concat", &[("axis", Value::Int(0))], &[x.clone(), x.clone()], &[None, None]),
        ["2*n", "4", "6"]
    );
    assert_eq!(
        symbolic("Slice", &[], &[x.clone(), i(1), i(1), i(1)], &[None, dims(&[1]), None, dims(&[2])]),
        ["n", "4", "?"]
    );
    assert_eq!(symbolic("Pad", &[], &[x.clone(), i(6)], &[None, dims(&[1, 0, 0, 2, 0, 0])]), ["n + 3", "4", "6"]);
    assert_eq!(symbolic("Flatten", &[("axis", Value::Int(2))], std::slice::from_ref(&x), &[None]), ["4*n", "6"]);
    let w = TensorType::new(DType::F32, vec![Dim::from(8), Dim::from(4), Dim::from(3)]);
    let y = TensorType::new(DType::F32, vec![Dim::from(1), Dim::from(4), n]);
    let strided = [("strides", ints(&[2])), ("pads", ints(&[1, 1]))];
    assert_eq!(symbolic("Conv", &strided, &[y.clone(), w.clone()], &[None, None]), ["1", "8", "floor(n + 1, 2)"]);
    let turned = TensorType::new(DType::F32, vec![Dim::from(4), Dim::from(8), Dim::from(3)]);
    assert_eq!(symbolic("ConvTranspose", &strided, &[y, turned], &[None, None]), ["1", "8", "2*n - 1"]);
}

#[test]
fn a_mirrored_shape_is_kept_where_nothing_is_selected() {
    let x = noise(DType::F32, &[2, 3], 1);
    let none: Data = from_ints(DType::I64, &[0], []).unwrap();
    assert_eq!(shape(&one(&call("Gather", 13, &[("axis", Value::Int(1))]), &[x.clone(), none])), [2, 0]);
    let nothing = from_ints(DType::Bool, &[2], [0, 0]).unwrap();
    assert_eq!(shape(&one(&call("Compress", 11, &[("axis", Value::Int(0))]), &[x.clone(), nothing])), [0, 3]);
    assert_eq!(shape(&one(&call("NonZero", 13, &[]), &[noise(DType::F32, &[0, 2], 1)])), [2, 0]);
    assert_eq!(shape(&one(&call("Tile", 13, &[]), &[x, list(&[0, 2])])), [0, 6]);
}
