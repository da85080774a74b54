//! Tests of convolutions and pools against their definitions.

use crate::dtype::DType;
use crate::standard::testing::{call, close, compute, error, ints, list, noise, one, shape, tensor, text, values};
use crate::standard::{Call, Data, Value};

/// A convolution of one or two axes by its definition.
fn by_definition(
    x: &Data,
    w: &Data,
    groups: usize,
    [strides, dilations, begin]: [&[usize]; 3],
    out: &[usize],
) -> Vec<f64> {
    let (xs, ws) = (shape(x), shape(w));
    let (x, w) = (values(x), values(w));
    let (image, kernel) = (&xs[2..], &ws[2..]);
    let at = |mut i: usize, s: &[usize]| {
        let mut found = vec![0; s.len()];
        for d in (0..s.len()).rev() {
            found[d] = i % s[d];
            i /= s[d];
        }
        found
    };
    let (plane, windows, size): (usize, usize, usize) =
        (image.iter().product(), out.iter().product(), kernel.iter().product());
    let per_group = ws[0] / groups;
    let mut y = vec![];
    for n in 0..xs[0] {
        for m in 0..ws[0] {
            for o in 0..windows {
                let o = at(o, out);
                let mut sum = 0.0;
                for c in 0..ws[1] {
                    'element: for k in 0..size {
                        let k_at = at(k, kernel);
                        let mut place = 0;
                        for d in 0..image.len() {
                            let p = (o[d] * strides[d] + k_at[d] * dilations[d]) as i64 - begin[d] as i64;
                            if p < 0 || p >= image[d] as i64 {
                                continue 'element;
                            }
                            place = place * image[d] + p as usize;
                        }
                        let channel = m / per_group * ws[1] + c;
                        sum += x[(n * xs[1] + channel) * plane + place] * w[(m * ws[1] + c) * size + k];
                    }
                }
                y.push(sum);
            }
        }
    }
    y
}

fn conv(attrs: &[(&str, Value)]) -> Call {
    call("Conv", 11, attrs)
}

#[test]
fn convolutions_agree_with_their_definition() {
    // (image, weight, groups, strides, dilations, pads)
    type Case<'a> = (&'a [usize], &'a [usize], usize, &'a [usize], &'a [usize], &'a [i64]);
    let cases: &[Case<'_>] = &[
        (&[2, 3, 9], &[4, 3, 3], 1, &[1], &[1], &[1, 1]),
        (&[1, 4, 11], &[4, 1, 4], 4, &[1], &[1], &[3, 0]),
        (&[1, 4, 11], &[8, 2, 2], 2, &[3], &[2], &[0, 2]),
        (&[2, 2, 5, 7], &[3, 2, 3, 2], 1, &[2, 1], &[1, 2], &[1, 0, 2, 1]),
        (&[1, 6, 4, 5], &[6, 1, 3, 3], 6, &[1, 2], &[1, 1], &[1, 1, 1, 1]),
        (&[1, 3, 4, 4], &[5, 3, 1, 1], 1, &[1, 1], &[1, 1], &[0, 0, 0, 0]),
        (&[1, 3, 4, 4], &[5, 3, 1, 1], 1, &[2, 2], &[1, 1], &[0, 0, 0, 0]),
        (&[1, 2, 3, 4, 5], &[4, 2, 2, 3, 2], 1, &[1, 2, 1], &[1, 1, 2], &[0, 1, 0, 1, 1, 0]),
        // The window does not fit: no result.
        (&[1, 2, 2], &[1, 2, 4], 1, &[1], &[1], &[0, 1]),
    ];
    for &(xs, ws, groups, strides, dilations, pads) in cases {
        let rank = strides.len();
        let as_ints = |v: &[usize]| ints(&v.iter().map(|&v| v as i64).collect::<Vec<_>>());
        let c = conv(&[
            ("group", Value::Int(groups as i64)),
            ("strides", as_ints(strides)),
            ("dilations", as_ints(dilations)),
            ("pads", ints(pads)),
        ]);
        let begin: Vec<usize> = pads[..rank].iter().map(|&p| p as usize).collect();
        for dtype in [DType::F32, DType::F64] {
            let (x, w) = (noise(dtype, xs, 3), noise(dtype, ws, 5));
            let y = one(&c, &[x.clone(), w.clone()]);
            let expected = by_definition(&x, &w, groups, [strides, dilations, &begin], &shape(&y)[2..]);
            close(&values(&y), &expected);
        }
        let (x, w) = (noise(DType::U8, xs, 3), noise(DType::I8, ws, 5));
        let y = one(&Call { op: "ConvInteger".to_owned(), ..c }, &[x.clone(), w.clone()]);
        assert_eq!(values(&y), by_definition(&x, &w, groups, [strides, dilations, &begin], &shape(&y)[2..]));
    }
}

#[test]
fn a_large_image_goes_in_blocks() {
    // More columns than one block holds.
    let (x, w) = (noise(DType::F32, &[1, 16, 260, 120], 1), noise(DType::F32, &[2, 16, 3, 3], 2));
    let y = one(&conv(&[("pads", ints(&[1, 1, 1, 1]))]), &[x.clone(), w.clone()]);
    let all = values(&y);
    let expected = by_definition(&x, &w, 1, [&[1, 1], &[1, 1], &[1, 1]], &[260, 120]);
    close(&all, &expected);
}

#[test]
fn a_transposed_convolution_is_the_adjoint() {
    // <conv(x), y> = <x, transposed(y)>
    for (strides, pads, groups) in [([2, 1], [1, 0, 0, 1], 1), ([1, 3], [0, 1, 1, 0], 2)] {
        let attrs = [("strides", ints(&strides)), ("pads", ints(&pads)), ("group", Value::Int(groups))];
        let w = noise(DType::F64, &[4, 4 / groups as usize, 3, 2], 1);
        let x = noise(DType::F64, &[1, 4, 7, 7], 2);
        let cx = one(&conv(&attrs), &[x.clone(), w.clone()]);
        let y = noise(DType::F64, &shape(&cx), 3);
        let back = one(&call("ConvTranspose", 11, &attrs), &[y.clone(), w]);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        // The transposed one may end before the image does; the rest has no part in the product.
        let (rows, columns) = (shape(&back)[2], shape(&back)[3]);
        let cut: Vec<f64> = (0..4)
            .flat_map(|c| (0..rows).flat_map(move |i| (0..columns).map(move |j| (c * 7 + i) * 7 + j)))
            .map(|i| values(&x)[i])
            .collect();
        assert!((dot(&values(&cx), &values(&y)) - dot(&cut, &values(&back))).abs() < 1e-9);
    }
}

#[test]
fn pools_count_only_what_is_there() {
    let x = tensor(DType::F32, &[1, 1, 3], &[1.0, 2.0, 6.0]);
    let pool = |op: &str, attrs: &[(&str, Value)]| values(&one(&call(op, 19, attrs), std::slice::from_ref(&x)));
    let base = [("kernel_shape", ints(&[2])), ("strides", ints(&[2])), ("pads", ints(&[1, 1]))];
    assert_eq!(pool("AveragePool", &base), [1.0, 4.0]);
    let all = [&base[..], &[("count_include_pad", Value::Int(1)), ("ceil_mode", Value::Int(1))]].concat();
    assert_eq!(pool("AveragePool", &all), [0.5, 4.0]);
    assert_eq!(pool("MaxPool", &base), [1.0, 6.0]);
    assert_eq!(pool("LpPool", &[("kernel_shape", ints(&[2])), ("p", Value::Int(1))]), [3.0, 8.0]);
    let mut c = call("MaxPool", 12, &[("kernel_shape", ints(&[2, 2])), ("storage_order", Value::Int(1))]);
    c.wanted = vec![true; 2];
    let image = tensor(DType::I8, &[1, 1, 2, 3], &[1.0, 5.0, 2.0, 3.0, 4.0, 7.0]);
    let r = compute(&c, &[Some(image)]).unwrap();
    // Column by column, the positions of 5 and 7 are 2 and 5.
    assert_eq!((values(&r[0]), values(&r[1])), (vec![5.0, 7.0], vec![2.0, 5.0]));
    assert!(error(&call("MaxPool", 12, &[]), std::slice::from_ref(&x)).contains("`kernel_shape` is missing"));
    assert!(error(&call("MaxPool", 12, &[("kernel_shape", ints(&[2, 2]))]), &[x]).contains("`kernel_shape` is [2, 2]"));
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let x = noise(DType::F32, &[1, 4, 8], 1);
    assert!(error(&conv(&[]), &[x.clone(), noise(DType::F32, &[2, 3, 3], 1)]).contains("does not fit"));
    assert!(
        error(&conv(&[("group", Value::Int(0))]), &[x.clone(), noise(DType::F32, &[2, 4, 3], 1)]).contains("0 groups")
    );
    assert!(
        error(&conv(&[("strides", ints(&[0]))]), &[x.clone(), noise(DType::F32, &[2, 4, 3], 1)]).contains("`strides`")
    );
    assert!(
        error(&conv(&[]), &[x, noise(DType::F32, &[2, 4, 3], 1), noise(DType::F32, &[3], 1)]).contains("a bias of [3]")
    );
}

#[test]
fn resize_of_old_versions_takes_the_element_before() {
    let x = tensor(DType::F32, &[1, 1, 1, 3], &[1.0, 2.0, 3.0]);
    let scales = tensor(DType::F32, &[4], &[1.0, 1.0, 1.0, 2.0]);
    let old = one(&call("Resize", 10, &[("mode", text("nearest"))]), &[x.clone(), scales.clone()]);
    assert_eq!(values(&old), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
    assert_eq!(old, one(&call("Upsample", 9, &[]), &[x.clone(), scales]));
    // Half an element beyond the edge shows the edge.
    let none = tensor(DType::F32, &[0], &[]);
    let c = call("Resize", 13, &[("mode", text("linear"))]);
    assert_eq!(
        values(&one(&c, &[x.clone(), none.clone(), none.clone(), list(&[1, 1, 1, 6])])),
        [1.0, 1.25, 1.75, 2.25, 2.75, 3.0]
    );
    assert!(
        error(&call("Resize", 13, &[("mode", text("area"))]), &[x, none.clone(), none, list(&[1, 1, 1, 6])])
            .contains("`mode` is `area`")
    );
}
