//! Normal forms, and values.

use super::*;

fn d(s: &str) -> Dim {
    Dim::parse(s).unwrap()
}

#[test]
fn expressions_have_one_normal_form() {
    assert_eq!(d("seq + past"), d("past+seq"));
    assert_eq!(d("2*(a + b) - a"), d("a + 2*b"));
    assert_eq!(d("((batch*seq)//batch)"), d("seq"));
    assert_eq!(d("a - a"), Dim::from(0));
    assert_eq!(d("2*seq + 2*past").div_exact(&d("past + seq")), Some(Dim::from(2)));
    assert_eq!(d("batch*seq").div_exact(&d("past")), None);
    assert_eq!(d("7").floor_div(&d("2")), Dim::from(3));
}

#[test]
fn display_reads_back() {
    for s in
        ["0", "-3", "batch*seq", "-a + 2*b*b + 7", "floor(seq + 1, 8)", "min(128, seq)*2", "mod(8 - mod(seq, 8), 8)"]
    {
        assert_eq!(Dim::parse(&d(s).to_string()).unwrap(), d(s), "{s}");
    }
}

#[test]
fn evaluation_names_the_missing_symbol() {
    let b = Bindings::from([("seq".to_owned(), 7)]);
    assert_eq!(d("seq*2 + 1").eval(&b), Ok(15));
    assert_eq!(d("seq + past").eval(&b).unwrap_err(), "symbol `past` has no value");
}

#[test]
fn bad_text_is_refused() {
    for s in ["", "a b", "3x", "(a", "a +", "min(a)", &"(".repeat(500)] {
        assert!(Dim::parse(s).is_err(), "{s}");
    }
}

#[test]
fn padding_to_a_multiple_is_a_multiple() {
    let d = |t: &str| Dim::parse(t).unwrap();
    let padded = d("seq + mod(8 - mod(seq, 8), 8)");
    assert_eq!(padded, d("seq + mod(-seq, 8)"));
    assert_eq!(padded.modulo(&Dim::from(8)), Dim::from(0));
    let chunks = padded.floor_div(&Dim::from(8));
    assert_eq!(&chunks * &Dim::from(16), &padded * &Dim::from(2));
    let all = &d("8 * batch") * &padded;
    assert_eq!(all.div_exact(&d("64 * batch")), Some(chunks.clone()));
    assert_eq!(all.div_exact(&d("128 * batch")), None);
    assert_eq!(padded.smaller(&d("seq")), d("seq"));
    assert_eq!(padded.larger(&d("seq")), padded);
    assert_eq!(d("8 * seq + 3").floor_div(&Dim::from(8)), d("seq"));
    assert_eq!(d("8 * seq - 3").modulo(&Dim::from(8)), Dim::from(5));
    assert_eq!(d("a - b").smaller(&d("a")), d("min(a, a - b)").smaller(&d("a")));
    for seq in [0i64, 1, 7, 8, 9, 31] {
        let b = Bindings::from([("seq".to_owned(), seq)]);
        let want = (seq + 7) / 8 * 8;
        assert_eq!((padded.eval(&b), chunks.eval(&b)), (Ok(want), Ok(want / 8)), "{seq}");
        for (e, want) in [
            ("mod(3 * seq - 5, 4)", (3 * seq - 5).rem_euclid(4)),
            ("floor(12 * seq + 7, 6)", (12 * seq + 7).div_euclid(6)),
        ] {
            assert_eq!(d(e).eval(&b), Ok(want), "{e} at {seq}");
        }
    }
}

#[test]
fn any_name_reads_back() {
    for name in
        ["batch-size", "batch_size*num_heads", "667_dim0", "a b", "\"", "\\", "min", "über", "7", "-", "x.y:z", "(a+b)"]
    {
        let s = Dim::sym(name);
        let twice = &(&s * &s) + &Dim::from(i64::MIN);
        for d in [s, twice] {
            assert_eq!(Dim::parse(&d.to_string()), Ok(d.clone()), "{name}: {d}");
        }
    }
}

#[test]
fn nested_floors_are_one() {
    assert_eq!(d("(n // 5) // 2"), d("n // 10"));
    assert_eq!(d("((n - 10) // 5 + 1 - 3) // 2 + 1"), d("n // 10 - 1"));
    assert_eq!(d("(2*n + 3) // 4"), d("(n + 1) // 2"));
    assert_eq!(d("div(div(n - 9, 3), 2)"), d("div(n - 9, 6)"));
    let mut deep = d("n");
    for _ in 0..70 {
        deep = (&deep + &Dim::from(1)).floor_div(&Dim::from(2));
    }
    assert_eq!(Dim::parse(&deep.to_string()), Ok(deep));
}

#[test]
fn broadcasts_are_sets() {
    let join = |a: &str, b: &str| d(a).join(&d(b));
    assert_eq!(join("n", "m"), join("m", "n"));
    assert_eq!(join("join(n, m)", "n"), join("n", "m"));
    assert_eq!((join("n", "1"), join("4", "n"), join("n + 2", "m")), (d("n"), d("4"), d("n + 2")));
    // The last `seq` of `past + seq` tokens.
    let tail = slice_bounds(&d("-seq"), &Dim::from(i64::MAX), 1, &d("past + seq")).count;
    assert_eq!(tail.join(&d("seq")), d("seq"));
    // A table of 128 positions of which seq are taken.
    assert_eq!((join("seq", "min(128, seq)"), join("min(128, seq)", "seq")), (d("seq"), d("seq")));
    assert_ne!(join("seq", "min(m, seq)"), d("seq"));
    let b = Bindings::from([("n".to_owned(), 1), ("m".to_owned(), 4)]);
    assert_eq!(join("n", "m").eval(&b), Ok(4));
    let b = Bindings::from([("n".to_owned(), 3), ("m".to_owned(), 4)]);
    assert_eq!(join("n", "m").eval(&b).unwrap_err(), "the extents m = 4 and n = 3 do not broadcast");
}

#[test]
fn long_products_stay_short() {
    let mut product = Dim::from(1);
    for i in 0..24 {
        product = &product * &(&Dim::sym(&format!("a{i}")) + &Dim::sym(&format!("b{i}")));
    }
    let b: Bindings = (0..24).flat_map(|i| [(format!("a{i}"), 1), (format!("b{i}"), 1)]).collect();
    assert_eq!(product.eval(&b), Ok(1 << 24));
    assert_eq!(Dim::parse(&product.to_string()).unwrap().eval(&b), Ok(1 << 24));
    assert!(Dim::parse(&"(a+b)*".repeat(3000)).is_err());
}

/// Numbers that follow each other without a pattern.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// What ONNX computes, for every binding at once; `None` where it divides by zero, or extents do not broadcast.
type Values = Vec<Option<i64>>;

fn lift(a: &Values, b: &Values, f: impl Fn(i64, i64) -> Option<i64>) -> Values {
    a.iter().zip(b).map(|(a, b)| f((*a)?, (*b)?)).collect()
}

#[test]
fn every_rewriting_keeps_the_value() {
    let extents = [0i64, 1, 2, 3, 7, 8, 31];
    let bindings: Vec<Bindings> = extents
        .iter()
        .flat_map(|&n| [0, 1, 2, 5, 9].map(|m| Bindings::from([("n".to_owned(), n), ("m".to_owned(), m)])))
        .collect();
    let mut dice = Dice(1);
    let mut known: Vec<(Dim, Values)> = vec![];
    for round in 0..6000 {
        if round % 40 == 0 {
            known = ["n", "m"].iter().map(|s| (Dim::sym(s), bindings.iter().map(|b| Some(b[*s])).collect())).collect();
        }
        let (a, x) = known[dice.roll(known.len() as u64) as usize].clone();
        let (b, y) = if dice.roll(3) == 0 {
            known[dice.roll(known.len() as u64) as usize].clone()
        } else {
            let c = [-8, -5, -3, -2, -1, 0, 1, 2, 3, 4, 6, 10][dice.roll(12) as usize];
            (Dim::from(c), vec![Some(c); bindings.len()])
        };
        let sign = |a: i64, b: i64, r: i64| {
            if r != 0 && (r < 0) != (b < 0) { (r + b, (a - r - b) / b) } else { (r, (a - r) / b) }
        };
        let (name, dim, values): (_, Dim, Values) = match dice.roll(13) {
            0 => ("+", &a + &b, lift(&x, &y, |a, b| Some(a.wrapping_add(b)))),
            1 => ("-", &a - &b, lift(&x, &y, |a, b| Some(a.wrapping_sub(b)))),
            2 => ("*", &a * &b, lift(&x, &y, |a, b| Some(a.wrapping_mul(b)))),
            3 => ("floor", a.floor_div(&b), lift(&x, &y, |a, b| (b != 0).then(|| sign(a, b, a.wrapping_rem(b)).1))),
            4 => ("mod", a.modulo(&b), lift(&x, &y, |a, b| (b != 0).then(|| sign(a, b, a.wrapping_rem(b)).0))),
            5 => ("div", a.quotient(&b), lift(&x, &y, |a, b| (b != 0).then(|| a.wrapping_div(b)))),
            6 => ("fmod", a.remainder(&b), lift(&x, &y, |a, b| (b != 0).then(|| a.wrapping_rem(b)))),
            7 => ("min", a.smaller(&b), lift(&x, &y, |a, b| Some(a.min(b)))),
            8 => ("max", a.larger(&b), lift(&x, &y, |a, b| Some(a.max(b)))),
            9 => ("less", a.less(&b), lift(&x, &y, |a, b| Some(i64::from(a < b)))),
            10 => ("equal", a.equal(&b), lift(&x, &y, |a, b| Some(i64::from(a == b)))),
            11 => ("abs", a.magnitude(), lift(&x, &y, |a, _| Some(a.wrapping_abs()))),
            _ if a.is_natural() && b.is_natural() => (
                "join",
                a.join(&b),
                lift(&x, &y, |a, b| if a == 1 { Some(b) } else { (b == 1 || a == b).then_some(a) }),
            ),
            _ => continue,
        };
        if dim.size().1 > 40 || values.iter().flatten().any(|v| v.abs() > 1 << 40) {
            continue;
        }
        let (low, high) = dim.bounds();
        let natural = dim.is_natural();
        let again = Dim::parse(&dim.to_string()).unwrap_or_else(|e| panic!("{dim}: {e}"));
        for (b, v) in bindings.iter().zip(&values) {
            let Some(v) = *v else { continue };
            let about = format!("{a} {name} {b:?}: {dim}");
            assert_eq!(dim.eval(b), Ok(v), "{about}");
            assert_eq!(again.eval(b), Ok(v), "{about}, read back as {again}");
            assert!((low..=high).contains(&v.into()) && (!natural || v >= 0), "{about} is {v}, not in {low}..={high}");
        }
        known.push((dim, values));
    }
}

#[test]
fn slices_and_reshapes_are_those_of_onnx() {
    let text = [
        "n",
        "-n",
        "n - 5",
        "3 - n",
        "-3",
        "2",
        "0",
        "9223372036854775807",
        "-9223372036854775808",
        "m",
        "-m",
        "n - m",
    ];
    let steps = [1i64, 2, 3, -1, -2];
    for start in text {
        for end in text {
            for step in steps {
                for extent in ["n", "n + m", "4", "min(n, 3)"] {
                    let found = slice_bounds(&d(start), &d(end), step, &d(extent));
                    for n in [0, 1, 2, 3, 6, 9] {
                        for m in [0i64, 1, 4] {
                            let b = Bindings::from([("n".to_owned(), n), ("m".to_owned(), m)]);
                            let value = |t: &str| d(t).eval(&b).unwrap();
                            let e = value(extent);
                            let wrap = |v: i64| if v < 0 { v.saturating_add(e) } else { v };
                            let (s, t) = (wrap(value(start)), wrap(value(end)));
                            let span = if e == 0 {
                                0
                            } else if step > 0 {
                                t.clamp(0, e) - s.clamp(0, e)
                            } else {
                                s.clamp(0, e - 1) - t.clamp(-1, e - 1)
                            };
                            let count = (span.max(0) + step.abs() - 1) / step.abs();
                            assert_eq!(
                                found.count.eval(&b),
                                Ok(count),
                                "{start}:{end}:{step} of {extent}, {n} {m}: {found:?}"
                            );
                            if step > 0 && count > 0 {
                                assert_eq!(found.start.eval(&b), Ok(s.clamp(0, e)), "{start}:{end} of {extent}");
                            }
                        }
                    }
                }
            }
        }
    }
    let shape = |s: &[&str]| s.iter().map(|s| d(s)).collect::<Vec<_>>();
    let of = |s: &[&str], t: &[&str]| reshaped(&shape(s), &shape(t), true, None).unwrap();
    assert_eq!(of(&["b", "s", "8"], &["0", "-1", "4"]), [Some(d("b")), Some(d("2*s")), Some(d("4"))]);
    assert_eq!(of(&["n", "4"], &["m", "4"]), [Some(d("n")), Some(d("4"))]);
    assert_eq!(of(&["n", "4"], &["n - 3", "-1"])[0], None);
    assert_eq!(of(&["b", "s", "8"], &["b*s", "8"]), [Some(d("b*s")), Some(d("8"))]);
    assert_eq!(of(&["b", "4", "s", "8"], &["4*b", "8", "s"])[0], Some(d("4*b")));
    let mut nonzero = vec![];
    let plain = reshaped(&shape(&["n", "m", "4"]), &shape(&["n", "-1", "m"]), true, Some(&mut nonzero)).unwrap();
    assert_eq!((plain, nonzero), (vec![Some(d("n")), Some(d("4")), Some(d("m"))], vec![d("m")]));
    let exact = of(&["n", "m", "4"], &["n", "-1", "m"]);
    let b = Bindings::from([("n".to_owned(), 3), ("m".to_owned(), 0)]);
    assert_eq!(exact.iter().map(|d| d.as_ref().unwrap().eval(&b).unwrap()).collect::<Vec<_>>(), [3, 0, 4]);
    // Where n is 3, the 0 copies it.
    let copied = of(&["n", "4"], &["max(n - 3, 0)", "-1"])[0].clone().unwrap();
    assert_eq!(copied.eval(&Bindings::from([("n".to_owned(), 3)])), Ok(3));
}
