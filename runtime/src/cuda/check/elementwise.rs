//! Elementwise chains against their meaning in f64, rounded after each step, and against the CPU back end.

use super::super::chain::{Chain, Operand};
use super::super::copy;
use super::super::elementwise as launchers;
use super::super::launch::{LaunchError, View};
use super::host::{coordinates, cpu, download, position, random, shifted, upload};
use super::{Benchmark, Case, CheckError, Difference, Harness, Limit, Size, Timed};
use crate::dim::Dim;
use crate::dtype::{DType, Literal};
use crate::op::Op;
use crate::tensor::Tensor;
use Operand::{Input, Step};

/// What an operator means for numbers; booleans are 0 and 1.
fn meaning(op: &Op, x: &[f64]) -> Option<f64> {
    let truth = |b: bool| f64::from(u8::from(b));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let gelu = |x: f64, tanh: bool| {
        0.5 * x
            * (1.0
                + if tanh {
                    ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()
                } else {
                    libm::erf(x / 2.0f64.sqrt())
                })
    };
    let nan = |a: f64, b: f64, c: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { c };
    Some(match (op, x) {
        (Op::Neg {}, [x]) => -x,
        (Op::Abs {}, [x]) => x.abs(),
        (Op::Sqrt {}, [x]) => x.sqrt(),
        (Op::Reciprocal {}, [x]) => 1.0 / x,
        (Op::Exp {}, [x]) => x.exp(),
        (Op::Log {}, [x]) => x.ln(),
        (Op::Sigmoid {}, [x]) => sigmoid(*x),
        (Op::Tanh {}, [x]) => x.tanh(),
        (Op::Erf {}, [x]) => libm::erf(*x),
        (Op::Cos {}, [x]) => x.cos(),
        (Op::Sin {}, [x]) => x.sin(),
        (Op::Relu {}, [x]) => nan(*x, *x, x.max(0.0)),
        (Op::Floor {}, [x]) => x.floor(),
        (Op::Ceil {}, [x]) => x.ceil(),
        (Op::Not {}, [x]) => 1.0 - x,
        (Op::IsNan {}, [x]) => truth(x.is_nan()),
        (Op::Silu {}, [x]) => x * sigmoid(*x),
        (Op::Gelu { tanh }, [x]) => gelu(*x, *tanh),
        (Op::Cast { .. } | Op::Expand { .. }, [x]) => *x,
        (Op::Add {}, [a, b]) => a + b,
        (Op::Sub {}, [a, b]) => a - b,
        (Op::Mul {}, [a, b]) => a * b,
        (Op::Div {} | Op::QuantizeFp8 {}, [a, b]) => a / b,
        (Op::Pow {}, [a, b]) => a.powf(*b),
        (Op::Max {}, [a, b]) => nan(*a, *b, a.max(*b)),
        (Op::Min {}, [a, b]) => nan(*a, *b, a.min(*b)),
        (Op::And {}, [a, b]) => a * b,
        (Op::Or {}, [a, b]) => a.max(*b),
        (Op::Equal {}, [a, b]) => truth(a == b),
        (Op::Less {}, [a, b]) => truth(a < b),
        (Op::LessEqual {}, [a, b]) => truth(a <= b),
        (Op::Greater {}, [a, b]) => truth(a > b),
        (Op::GreaterEqual {}, [a, b]) => truth(a >= b),
        (Op::Where {}, [c, a, b]) => [*b, *a][usize::from(*c != 0.0)],
        (Op::SiluMul {}, [g, u]) => g * sigmoid(*g) * u,
        (Op::GeluMul { tanh }, [g, u]) => gelu(*g, *tanh) * u,
        _ => return None,
    })
}

/// Operators whose result is the same on every device.
fn is_exact(op: &Op) -> bool {
    !matches!(
        op,
        Op::Exp {}
            | Op::Log {}
            | Op::Sigmoid {}
            | Op::Tanh {}
            | Op::Erf {}
            | Op::Cos {}
            | Op::Sin {}
            | Op::Silu {}
            | Op::Gelu { .. }
            | Op::Pow {}
            | Op::SiluMul {}
            | Op::GeluMul { .. }
    )
}

/// A number as an element type holds it; kernels compute in f32 before they round to a smaller type.
fn rounded(dtype: DType, v: f64) -> f64 {
    match dtype {
        DType::F64 => v,
        DType::F32 => f64::from(v as f32),
        DType::F16 => half::f16::from_f32(v as f32).to_f64(),
        DType::BF16 => half::bf16::from_f32(v as f32).to_f64(),
        DType::F8E4M3FN => crate::minifloat::decode(dtype, crate::minifloat::encode(dtype, f64::from(v as f32), true)),
        DType::Bool => f64::from(u8::from(v != 0.0)),
        DType::I32 => f64::from(v as i64 as i32),
        DType::I8 => f64::from(v as i64 as i8),
        DType::U8 => f64::from(v as i64 as u8),
        _ => v.trunc(),
    }
}

/// Where each element of `shape` finds its own in an operand that broadcasts to it.
fn broadcast(shape: &[usize], operand: &[usize]) -> Vec<usize> {
    let lead = shape.len() - operand.len();
    let place = |i: usize| -> Vec<usize> {
        coordinates(i, shape)[lead..].iter().zip(operand).map(|(at, d)| if *d == 1 { 0 } else { *at }).collect()
    };
    (0..shape.iter().product()).map(|i| position(&place(i), operand)).collect()
}

/// The results of a chain in f64, rounded after each step.
fn reference(chain: &Chain, x: &[Tensor], whole: &[usize]) -> Result<Vec<Vec<f64>>, CheckError> {
    let wide: Vec<(Vec<f64>, &[usize])> = x.iter().map(|t| (t.to_f64(), &t.shape[..])).collect();
    let n = whole.iter().product();
    let mut made: Vec<Vec<f64>> = vec![];
    for (op, inputs, dtype) in chain.program() {
        let operands: Vec<Vec<f64>> = inputs
            .iter()
            .map(|o| match *o {
                Input(k) => broadcast(whole, wide[k].1).into_iter().map(|i| wide[k].0[i]).collect(),
                Step(k) => made[k].clone(),
            })
            .collect();
        let element = |i: usize| -> Result<f64, CheckError> {
            if let Op::Const { value } = op {
                return Ok(value.splat().unwrap_or(f64::NAN));
            }
            let x: Vec<f64> = operands.iter().map(|o| o[i]).collect();
            let v = meaning(op, &x).ok_or_else(|| CheckError::Reference(format!("no meaning of `{}`", op.name())))?;
            Ok(rounded(dtype, v))
        };
        made.push((0..n).map(element).collect::<Result<_, _>>()?);
    }
    Ok(chain.stored().iter().map(|&i| made[i].clone()).collect())
}

/// The results of a chain by the CPU back end, step by step.
fn on_cpu(chain: &Chain, x: &[Tensor], whole: &[usize]) -> Result<Vec<Vec<f64>>, CheckError> {
    let shapes: Vec<&[usize]> = x.iter().map(|t| &t.shape[..]).collect();
    let shapes = chain.shapes(&shapes, whole).map_err(CheckError::Reference)?;
    let mut made: Vec<Tensor> = vec![];
    for ((op, inputs, dtype), shape) in chain.program().zip(&shapes) {
        let operands: Vec<&Tensor> = inputs
            .iter()
            .map(|o| match *o {
                Input(k) => &x[k],
                Step(k) => &made[k],
            })
            .collect();
        made.push(cpu(op, &operands, dtype, shape)?);
    }
    Ok(chain.stored().iter().map(|&i| made[i].to_f64()).collect())
}

/// A chain on random operands.
struct Sample {
    kernel: &'static str,
    name: String,
    chain: Box<dyn Fn() -> Result<Chain, LaunchError> + Send + Sync>,
    shapes: Vec<Vec<usize>>,
    whole: Vec<usize>,
    /// Elements by which operands and results are moved away from an aligned address.
    shift: usize,
    /// The first result takes the memory of the first operand.
    in_place: bool,
    size: Size,
}

impl Sample {
    fn case(self) -> Case {
        let label = format!("{} {:?}", self.name, self.whole);
        Case::new(self.kernel, label, self.size, move |h| self.run(h))
    }

    fn run(&self, h: &Harness<'_>) -> Result<Difference, CheckError> {
        let chain = (self.chain)()?;
        let mut x = vec![];
        for (k, (shape, &dtype)) in self.shapes.iter().zip(chain.operands()).enumerate() {
            x.push(random(dtype, shape, k as u64 + 1)?);
        }
        let buffers = x.iter().map(|t| upload(h, t, self.shift)).collect::<Result<Vec<_>, _>>()?;
        let view = |b, dtype, shape| shifted(b, dtype, shape, self.shift);
        let n: usize = self.whole.iter().product();
        let types: Vec<DType> = chain.results().collect();
        let results = types.iter().map(|&d| h.result(d, &[n + 2 * self.shift])).collect::<Result<Vec<_>, _>>()?;
        let operands: Vec<View<'_>> = buffers.iter().zip(&x).map(|(b, t)| view(b, t.dtype, &t.shape)).collect();
        let at = |i: usize| if self.in_place && i == 0 { &buffers[0] } else { &results[i] };
        let outs: Vec<View<'_>> = types.iter().enumerate().map(|(i, &d)| view(at(i), d, &self.whole)).collect();
        h.run(&chain.launch(&operands, &outs, h.device.info())?)?;
        let wanted = reference(&chain, &x, &self.whole)?;
        let on_cpu = on_cpu(&chain, &x, &self.whole)?;
        let exact = chain.program().all(|(op, ..)| is_exact(op));
        let mut d = Difference::default();
        for (i, &dtype) in types.iter().enumerate() {
            let got = download(h, at(i), dtype, &self.whole, self.shift)?;
            let limit = match (exact, Limit::of(dtype)) {
                (true, _) => Limit::Exact,
                // Each step may round to the other side.
                (_, Limit::Steps { steps, floor }) => {
                    let wide = if dtype == DType::F64 { 16.0 } else { 1.0 };
                    Limit::Steps { steps: steps * wide * chain.program().count() as f64, floor }
                }
                (_, other) => other,
            };
            d = d.join(h.compare(&format!("result {i}"), &got, &wanted[i], limit)?);
            // Both may be off by the limit.
            let twice = match limit {
                Limit::Steps { steps, floor } => Limit::Steps { steps: 2.0 * steps, floor },
                other => other,
            };
            h.compare(&format!("result {i}, by the CPU"), &got, &on_cpu[i], twice)?;
        }
        Ok(d)
    }
}

/// A case of a chain; its operands have the shapes given, and the results the shape `whole`.
fn sample(
    kernel: &'static str,
    name: impl Into<String>,
    whole: &[usize],
    shapes: &[&[usize]],
    chain: impl Fn() -> Result<Chain, LaunchError> + Send + Sync + 'static,
) -> Sample {
    Sample {
        kernel,
        name: name.into(),
        chain: Box::new(chain),
        shapes: shapes.iter().map(|s| s.to_vec()).collect(),
        whole: whole.to_vec(),
        shift: 0,
        in_place: false,
        size: Size::Small,
    }
}

fn single(op: Op, types: &[DType]) -> impl Fn() -> Result<Chain, LaunchError> + Send + Sync + 'static {
    let types = types.to_vec();
    move || Chain::new(&[(op.clone(), (0..types.len()).map(Input).collect())], &types, &[0])
}

/// Every operator of one float type at once: each is a result of one of a few chains.
fn all_float_operators(d: DType) -> Vec<Sample> {
    let unary = [
        vec![Op::Neg {}, Op::Abs {}, Op::Relu {}, Op::Floor {}],
        vec![Op::Exp {}, Op::Tanh {}, Op::Sigmoid {}, Op::Erf {}],
        vec![Op::Sin {}, Op::Cos {}, Op::Silu {}, Op::Gelu { tanh: true }],
        vec![Op::Gelu { tanh: false }, Op::Ceil {}, Op::Reciprocal {}, Op::IsNan {}],
    ];
    let mut out = vec![];
    for ops in unary {
        let names: Vec<&str> = ops.iter().map(Op::name).collect();
        out.push(sample("elementwise", format!("{d} {}", names.join(" ")), &[7, 13], &[&[7, 13]], move || {
            let steps: Vec<_> = ops.iter().map(|op| (op.clone(), vec![Input(0)])).collect();
            Chain::new(&steps, &[d], &[0, 1, 2, 3])
        }));
    }
    let positive = move || {
        let steps = [
            (Op::Abs {}, vec![Input(0)]),
            (Op::Sqrt {}, vec![Step(0)]),
            (Op::Log {}, vec![Step(0)]),
            (Op::Pow {}, vec![Step(0), Input(1)]),
            (Op::Const { value: Literal::scalar(d, 2.0) }, vec![]),
            (Op::Pow {}, vec![Input(0), Step(4)]),
        ];
        Chain::new(&steps, &[d; 2], &[1, 2, 3, 5])
    };
    out.push(sample("elementwise", format!("{d} sqrt log pow"), &[5, 9], &[&[5, 9], &[9]], positive));
    for ops in [
        vec![Op::Add {}, Op::Sub {}, Op::Mul {}, Op::Div {}],
        vec![Op::Max {}, Op::Min {}, Op::Less {}, Op::Equal {}],
        vec![Op::LessEqual {}, Op::Greater {}, Op::GreaterEqual {}],
    ] {
        let names: Vec<&str> = ops.iter().map(Op::name).collect();
        let name = format!("{d} {}", names.join(" "));
        out.push(sample("elementwise", name, &[3, 4, 6], &[&[3, 4, 6], &[4, 1]], move || {
            let steps: Vec<_> = ops.iter().map(|op| (op.clone(), vec![Input(0), Input(1)])).collect();
            Chain::new(&steps, &[d; 2], &(0..ops.len()).collect::<Vec<_>>())
        }));
    }
    out
}

fn all_integer_operators(d: DType) -> Vec<Sample> {
    let divided = move || {
        let three = (Op::Const { value: Literal::scalar(d, 3.0) }, vec![]);
        let steps = [three, (Op::Div {}, vec![Input(0), Step(0)]), (Op::Pow {}, vec![Input(0), Step(0)])];
        Chain::new(&steps, &[d], &[1, 2])
    };
    let wrap = move || {
        let steps = [
            (Op::Add {}, vec![Input(0), Input(1)]),
            (Op::Mul {}, vec![Step(0), Input(1)]),
            (Op::Sub {}, vec![Step(1), Input(0)]),
            (Op::Neg {}, vec![Step(2)]),
            (Op::Abs {}, vec![Step(3)]),
        ];
        Chain::new(&steps, &[d; 2], &[4, 3, 1, 0])
    };
    let choose = move || {
        let steps = [
            (Op::Less {}, vec![Input(0), Input(1)]),
            (Op::Max {}, vec![Input(0), Input(1)]),
            (Op::Min {}, vec![Input(0), Input(1)]),
            (Op::Where {}, vec![Step(0), Step(1), Step(2)]),
            (Op::Cast { to: DType::F32 }, vec![Step(3)]),
            (Op::Cast { to: DType::Bool }, vec![Step(2)]),
        ];
        Chain::new(&steps, &[d; 2], &[3, 4, 5])
    };
    vec![
        sample("elementwise", format!("{d} div pow"), &[41], &[&[41]], divided),
        sample("elementwise", format!("{d} add mul sub neg abs"), &[3, 11], &[&[3, 11], &[3, 1]], wrap),
        sample("elementwise", format!("{d} less max min where cast"), &[64], &[&[64], &[]], choose),
    ]
}

fn f32_steps() -> Result<Chain, LaunchError> {
    // A product that is added to must not be contracted, and bf16 is rounded in between.
    let steps = [
        (Op::Mul {}, vec![Input(0), Input(1)]),
        (Op::Add {}, vec![Step(0), Input(2)]),
        (Op::Cast { to: DType::BF16 }, vec![Step(1)]),
        (Op::Cast { to: DType::F32 }, vec![Step(2)]),
        (Op::Sub {}, vec![Step(3), Step(1)]),
    ];
    Chain::new(&steps, &[DType::F32; 3], &[4, 1])
}

fn masks() -> Result<Chain, LaunchError> {
    let whole = vec![Dim::from(2), Dim::from(3), Dim::from(4), Dim::from(8)];
    let steps = [
        (Op::LessEqual {}, vec![Input(0), Input(1)]),
        (Op::And {}, vec![Step(0), Input(2)]),
        (Op::Const { value: Literal::scalar(DType::F16, 0.0) }, vec![]),
        (Op::Const { value: Literal::scalar(DType::F16, -65504.0) }, vec![]),
        (Op::Where {}, vec![Step(1), Step(2), Step(3)]),
        (Op::Expand { shape: whole.clone() }, vec![Step(4)]),
        (Op::Not {}, vec![Step(1)]),
        (Op::Or {}, vec![Step(6), Step(0)]),
        (Op::Expand { shape: whole }, vec![Step(7)]),
    ];
    Chain::new(&steps, &[DType::I64, DType::I64, DType::Bool], &[5, 8])
}

pub(super) fn cases() -> Vec<Case> {
    let mut out: Vec<Sample> = vec![];
    let bf16 = DType::BF16;
    for d in [DType::F32, DType::F16, bf16] {
        // Packs, a tail, one element, no element, rows by a vector, by a column, unaligned, in place.
        let gated =
            |whole: &[usize]| sample("silu_mul", d.name(), whole, &[whole, whole], single(Op::SiluMul {}, &[d, d]));
        out.extend([gated(&[3, 1031]), gated(&[1]), gated(&[0, 8])]);
        out.push(Sample { shift: 1, name: format!("{d} unaligned"), ..gated(&[37]) });
        out.push(Sample { in_place: true, name: format!("{d} in place"), ..gated(&[5, 64]) });
        out.push(Sample { size: Size::Large, ..gated(&[4096, 14336]) });
        let vector = |w: &[usize], x: &[usize], size| Sample {
            size,
            ..sample("mul", d.name(), w, &[w, x], single(Op::Mul {}, &[d, d]))
        };
        out.push(vector(&[5, 64], &[64], Size::Small));
        out.push(vector(&[5, 64], &[5, 1], Size::Small));
        out.push(vector(&[2, 3, 7], &[2, 1, 7], Size::Small));
        out.push(vector(&[4096, 8192], &[8192], Size::Large));
        out.push(vector(&[4096, 8191], &[4096, 1], Size::Large));
        let quantised = single(Op::QuantizeFp8 {}, &[d, DType::F32]);
        out.push(sample("elementwise", format!("{d} to e4m3 by scales"), &[5, 64], &[&[5, 64], &[5, 1]], quantised));
        for tanh in [false, true] {
            let op = Op::GeluMul { tanh };
            let size = if d == bf16 { Size::Small } else { Size::Large };
            out.push(Sample {
                size,
                ..sample("gelu_mul", format!("{d} tanh {tanh}"), &[2, 40], &[&[2, 40], &[2, 40]], single(op, &[d, d]))
            });
        }
        let swish =
            sample("elementwise", format!("{d} x * sigmoid(x) * y"), &[2, 517], &[&[2, 517], &[517]], move || {
                launchers::swish_chain(d)
            });
        let two = sample("elementwise", format!("{d} with two results"), &[9, 32], &[&[9, 32], &[32]], move || {
            launchers::two_results_chain(d)
        });
        let scaled =
            sample("elementwise", format!("{d} from e4m3 by a scale"), &[4, 48], &[&[4, 48], &[4, 1]], move || {
                launchers::dequantize_chain(d)
            });
        let large = |s: Sample| if d == bf16 { s } else { Sample { size: Size::Large, ..s } };
        out.extend([large(swish), large(two), large(scaled)]);
        for to in [DType::F32, DType::F16, bf16, DType::F8E4M3FN, DType::I32, DType::I8, DType::Bool] {
            let cast = sample("cast", format!("{d} to {to}"), &[299], &[&[299]], single(Op::Cast { to }, &[d]));
            let small = d == bf16 || (d == DType::F32 && to == DType::F16);
            out.push(if small { cast } else { Sample { size: Size::Large, ..cast } });
        }
    }
    for d in [bf16, DType::F32, DType::F16, DType::F64] {
        // The emulated driver compiles each of them: some types are for a GPU only.
        let few = |i: usize| matches!(d, DType::BF16) || (i >= 3 && d != DType::F16 && i != 5);
        let all = all_float_operators(d).into_iter().enumerate();
        out.extend(all.map(|(i, s)| Sample { size: if few(i) { Size::Small } else { Size::Large }, ..s }));
    }
    for d in [DType::I64, DType::I32, DType::I8, DType::U8] {
        let size = if matches!(d, DType::I64 | DType::U8) { Size::Small } else { Size::Large };
        out.extend(all_integer_operators(d).into_iter().map(|s| Sample { size, ..s }));
    }
    let w = [6, 33];
    out.push(sample("elementwise", "f32 product and sum", &w, &[&w, &w, &[33]], f32_steps));
    out.push(sample("elementwise", "mask", &[2, 3, 4, 8], &[&[8], &[4, 1], &[2, 1, 1, 8]], masks));
    out.push(sample("elementwise", "f16 filled with a constant", &[3, 43], &[], || {
        let steps = [
            (Op::Const { value: Literal::scalar(DType::F16, -1.5) }, vec![]),
            (Op::Expand { shape: vec![Dim::sym("n"), Dim::from(43)] }, vec![Step(0)]),
        ];
        Chain::new(&steps, &[], &[1])
    }));
    let mut cases: Vec<Case> = out.into_iter().map(Sample::case).collect();
    cases.push(Case::new("elementwise", "beyond 2^31 elements".to_owned(), Size::Large, far));
    cases
}

/// A row is spread over more than 2^31 elements, these are compared with another row, and the last rows are cut out.
fn far(h: &Harness<'_>) -> Result<Difference, CheckError> {
    let (d, row, whole, end) = (DType::U8, [255], [(1 << 23) + (1 << 16), 255], [2, 255]);
    let (a, b) = (random(d, &row, 1)?, random(d, &row, 2)?);
    let (xa, xb) = (h.upload(&a)?, h.upload(&b)?);
    let (x, y, last) = (h.result(d, &whole)?, h.result(d, &whole)?, h.result(d, &end)?);
    let info = h.device.info();
    h.run(&copy::expand(&xa.view(d, &row), &x.view(d, &whole), info)?)?;
    let operands = [x.view(d, &whole), xb.view(d, &row)];
    h.run(&launchers::operator(&Op::Max {}, &operands, &y.view(d, &whole), info)?)?;
    let cut = (whole[0] as i64 - 2, i64::MAX, 1);
    h.run(&copy::slice(&y.view(d, &whole), 0, cut, &last.view(d, &end), info)?)?;
    let want: Vec<f64> = a.to_f64().iter().zip(b.to_f64()).map(|(a, b)| a.max(b)).collect();
    h.compare("the last rows", &h.download(&last, d, &end)?, &want.repeat(2), Limit::Exact)
}

fn time_silu_mul(h: &Harness<'_>) -> Result<Timed, CheckError> {
    let (d, shape) = (DType::BF16, [4096, 14336]);
    let (mut launches, mut buffers) = (vec![], vec![]);
    for round in 0..2 {
        let (gate, up) = (h.upload(&random(d, &shape, round)?)?, h.upload(&random(d, &shape, 10 + round)?)?);
        let out = h.result(d, &shape)?;
        launches.push(launchers::silu_mul(
            &gate.view(d, &shape),
            &up.view(d, &shape),
            &out.view(d, &shape),
            h.device.info(),
        )?);
        buffers.extend([gate, up, out]);
    }
    Ok(Timed { launches, buffers, bytes: 3 * 2 * 4096 * 14336 })
}

pub(super) fn benchmarks() -> Vec<Benchmark> {
    vec![Benchmark::new("silu_mul", "bf16 4096x14336".to_owned(), time_silu_mul)]
}
