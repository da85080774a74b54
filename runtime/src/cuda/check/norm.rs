//! Norms, alone and with quantised results: every path of the launcher, element types, in place, and beyond 2^31 elements.

use super::super::norm::norm;
use super::super::{View, ViewMut};
use super::harness::unit;
use super::quantize::{differing, quantised, same_bytes};
use super::ranks::{Random, tensor};
use super::rows::{Placed, Types, cpu, place, results, sets};
use super::{Benchmark, Case, CheckError, Difference, Harness, Limit, Size, Timed};
use crate::attr::{Attr, Real};
use crate::dtype::DType;
use crate::norm::{Kind, Norm, Quant, Sum};
use crate::op::Op;
use crate::tensor::Tensor;

const EPS: f64 = 1e-5;

/// A norm on rows of one shape.
#[derive(Clone)]
struct Rows {
    op: Op,
    norm: Norm,
    dtype: DType,
    /// Type of weight and bias.
    parameter: DType,
    /// Type of the scale.
    scale: DType,
    shape: Vec<usize>,
    /// How many elements behind the start of its memory each tensor lies.
    offset: usize,
    /// Whether the norm takes the place of x, and the sum that of r.
    in_place: bool,
}

/// An operator by its name.
fn operator(name: &str, floor: f64) -> Result<Op, CheckError> {
    let unknown = || CheckError::Reference(format!("no operator `{name}`"));
    let row = crate::op::table().iter().find(|r| r.name == name).ok_or_else(unknown)?;
    let attrs: Vec<Attr> =
        row.attrs.iter().map(|a| Attr::Real(if a.name == "floor" { Real(floor) } else { Real(EPS) })).collect();
    Op::from_attrs(name, &attrs).ok_or_else(unknown)
}

impl Rows {
    fn new(name: &str, dtype: DType, shape: &[usize]) -> Result<Rows, CheckError> {
        let op = operator(name, 0.0)?;
        let norm = op.norm().ok_or_else(|| CheckError::Reference(format!("`{name}` is no norm")))?;
        let (parameter, scale) = (dtype, DType::F32);
        Ok(Rows { op, norm, dtype, parameter, scale, shape: shape.to_vec(), offset: 0, in_place: false })
    }

    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Element types and shapes of the operands: summands, weight, bias, scale.
    fn operands(&self) -> Vec<(DType, Vec<usize>)> {
        let mut out = vec![(self.dtype, self.shape.clone()); self.norm.summands()];
        out.extend(vec![(self.parameter, vec![self.columns()]); self.norm.parameters()]);
        out.extend(self.norm.scale().map(|_| (self.scale, vec![])));
        out
    }

    /// Element types and shapes of the results: norm, codes, scales, sum.
    fn results(&self) -> Result<Types, CheckError> {
        results(&self.norm, self.dtype, &self.shape)
    }

    /// Operands of `rows` rows; the last of several rows has a sum of zeros.
    fn data(&self, rows: usize) -> Result<Vec<Tensor>, CheckError> {
        let n = self.columns();
        let mut random = Random::new((rows * n) as u64);
        let mut values = |len: usize, middle: f32, half: f32| -> Vec<f32> {
            random.floats(len).into_iter().map(|v| middle + half * v).collect()
        };
        let zeros = if rows > 1 { (rows - 1) * n } else { rows * n };
        let shape = [rows, n];
        let mut x = values(rows * n, 0.5, 3.0);
        x[zeros..].fill(if self.norm.sum == Sum::None { 0.0 } else { 1.5 });
        let mut out = vec![tensor(self.dtype, &shape, &x)?];
        if self.norm.sum != Sum::None {
            let mut r = values(rows * n, -0.25, 1.0);
            r[zeros..].fill(-1.5);
            out.push(tensor(self.dtype, &shape, &r)?);
        }
        out.push(tensor(self.parameter, &[n], &values(n, 1.0, 0.5))?);
        if self.norm.kind == Kind::Layer {
            out.push(tensor(self.parameter, &[n], &values(n, 0.0, 0.25))?);
        }
        match self.norm.quant {
            Quant::Fp8 => out.push(tensor(self.scale, &[], &[0.0043])?),
            Quant::Nvfp4 => out.push(tensor(self.scale, &[], &[350.0])?),
            _ => {}
        }
        Ok(out)
    }

    /// The norm of rounded sums, in f64.
    fn reference(&self, sum: &[f64], operands: &[Tensor]) -> Vec<f64> {
        let n = self.columns();
        let first = self.norm.summands();
        let weight = operands[first].to_f64();
        let bias = (self.norm.kind == Kind::Layer).then(|| operands[first + 1].to_f64());
        let mut out = Vec::with_capacity(sum.len());
        for row in sum.chunks_exact(n) {
            let mean = if bias.is_some() { row.iter().sum::<f64>() / n as f64 } else { 0.0 };
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
            let deviation = (variance + EPS).sqrt();
            let shift = |i: usize| bias.as_ref().map_or(0.0, |b| b[i]);
            out.extend(row.iter().zip(&weight).enumerate().map(|(i, (v, w))| (v - mean) / deviation * w + shift(i)));
        }
        out
    }

    /// x + r, each sum in f32 and rounded to the type of x.
    fn sums(&self, operands: &[Tensor]) -> Result<Tensor, CheckError> {
        if self.norm.sum == Sum::None {
            return Ok(operands[0].clone());
        }
        let (x, r) = (operands[0].to_f64(), operands[1].to_f64());
        let sums: Vec<f32> = x.iter().zip(&r).map(|(x, r)| *x as f32 + *r as f32).collect();
        tensor(self.dtype, &operands[0].shape, &sums)
    }

    /// Launches; returns the results, which are `None` where `bare` leaves out norm and sum.
    fn launch(&self, h: &Harness<'_>, operands: &[Tensor], bare: bool) -> Result<Vec<Option<Tensor>>, CheckError> {
        let types = self.operands();
        let x: Vec<Placed> = operands
            .iter()
            .zip(&types)
            .map(|(t, (dtype, shape))| place(h, *dtype, shape, self.offset, Some(t)))
            .collect::<Result<_, _>>()?;
        let types = self.results()?;
        let last = types.len() - 1;
        let summed = self.norm.sum != Sum::None;
        let mut places = vec![];
        for (i, (dtype, shape)) in types.iter().enumerate() {
            let optional = i == 0 || (summed && i == last);
            // Swizzled scales are aligned always.
            let offset = if self.norm.quant == Quant::Nvfp4 && i == 2 { 0 } else { self.offset };
            places.push(match (optional, self.in_place) {
                (true, _) if bare => None,
                (true, true) => Some(if i == 0 { x[0].clone() } else { x[1].clone() }),
                _ => Some(place(h, *dtype, shape, offset, None)?),
            });
        }
        let views: Vec<View<'_>> = x.iter().map(Placed::view).collect();
        let out: Vec<Option<ViewMut<'_>>> = places.iter().map(|p| p.as_ref().map(Placed::view)).collect();
        h.run(&norm(&self.op, &views, &out, h.device.info())?)?;
        places.iter().map(|p| p.as_ref().map(|p| p.read(h)).transpose()).collect()
    }

    fn run(&self, h: &Harness<'_>) -> Result<Difference, CheckError> {
        let operands = self.data(self.rows())?;
        let got = self.launch(h, &operands, false)?;
        let types = self.results()?;
        let host = cpu(&self.op, &operands, &self.shape, &types)?;
        let missing = || CheckError::Reference("a result is missing".to_owned());
        let result = |i: usize| got.get(i).and_then(Option::as_ref).ok_or_else(missing);

        let sum = self.sums(&operands)?;
        if self.norm.sum != Sum::None {
            let i = types.len() - 1;
            h.compare("sum", result(i)?, &sum.to_f64(), Limit::Exact)?;
            same_bytes("sum", result(i)?, host[i].bytes())?;
        }
        let normed = result(0)?;
        let limit = Limit::of(self.dtype);
        let d = h.compare("norm", normed, &self.reference(&sum.to_f64(), &operands), limit)?;
        h.compare("norm of the CPU", normed, &host[0].to_f64(), limit)?;
        if self.norm.quant == Quant::None {
            return Ok(d);
        }
        // Codes follow from the norm that was stored; without it they are the same.
        let scale = self.norm.scale().and_then(|i| operands.get(i));
        let bare = self.launch(h, &operands, true)?;
        for (i, want) in quantised(self.norm.quant, normed, scale)?.iter().enumerate() {
            let name = if i == 0 { "q" } else { "scales" };
            same_bytes(name, result(i + 1)?, want)?;
            same_bytes("without the norm", bare.get(i + 1).and_then(Option::as_ref).ok_or_else(missing)?, want)?;
            // The CPU's norm may be off by some roundings, and with it the scale of a token or the code of a number.
            let (got, by_cpu) = (result(i + 1)?, &host[i + 1]);
            if got.dtype == DType::F32 {
                let steps = 16.0 * unit(self.dtype) / unit(DType::F32);
                h.compare("scales of the CPU", got, &by_cpu.to_f64(), Limit::Steps { steps, floor: 0.0 })?;
            } else {
                differing(name, got, by_cpu.bytes(), 0.1)?;
            }
        }
        Ok(d)
    }

    /// The last row of many; memory before it is not touched, except by the kernel.
    fn run_last(&self, h: &Harness<'_>) -> Result<Difference, CheckError> {
        let one = Rows { shape: vec![1, self.columns()], ..self.clone() };
        let mut operands = one.data(1)?;
        let n = self.columns();
        let before = (self.rows() - 1) * n;
        let sum = one.sums(&operands)?;
        let want = one.reference(&sum.to_f64(), &operands);
        let mut buffers = vec![];
        for (i, (dtype, shape)) in self.operands().iter().enumerate() {
            let bytes = shape.iter().product::<usize>() * dtype.size();
            let b = h.device.alloc(bytes)?;
            let start = if i < self.norm.summands() { before * dtype.size() } else { 0 };
            h.device.upload_at(&h.stream, &b, start, operands[i].bytes())?;
            buffers.push(b);
        }
        let types = self.results()?;
        let quantised_results = types.len() - 1 - usize::from(self.norm.sum != Sum::None);
        let mut codes = vec![];
        for (dtype, shape) in types.iter().skip(1).take(quantised_results) {
            codes.push(h.device.alloc(shape.iter().product::<usize>() * dtype.size())?);
        }
        let in_types = self.operands();
        let views: Vec<View<'_>> = buffers.iter().zip(&in_types).map(|(b, (d, s))| b.view(*d, s)).collect();
        let mut out = vec![Some(views[0])];
        out.extend(codes.iter().zip(types.iter().skip(1)).map(|(b, (d, s))| Some(b.view(*d, s))));
        if self.norm.sum != Sum::None {
            out.push(Some(views[1]));
        }
        h.run(&norm(&self.op, &views, &out, h.device.info())?)?;

        let size = self.dtype.size();
        let mut row = tensor(self.dtype, &[1, n], &vec![0.0; n])?;
        h.device.download_at(&h.stream, &buffers[0], before * size, row.bytes_mut())?;
        let d = h.compare("norm", &row, &want, Limit::of(self.dtype))?;
        if self.norm.sum != Sum::None {
            let mut total = operands.remove(1);
            h.device.download_at(&h.stream, &buffers[1], before * size, total.bytes_mut())?;
            same_bytes("sum", &total, sum.bytes())?;
        }
        let scale = self.data(1)?.pop();
        let all_scales = types.get(2).map(|(_, s)| s.iter().product::<usize>());
        for (i, want) in quantised(self.norm.quant, &row, scale.as_ref())?.into_iter().enumerate() {
            let last = self.rows() - 1;
            // Swizzled scales of a row lie apart: those of its first block column are compared.
            let (start, want) = match (i, self.norm.quant) {
                (0, _) => (last * want.len(), want),
                (_, Quant::Nvfp4) => {
                    let start = crate::cpu::quantize::swizzled(last, 0, n / 16);
                    let fits = all_scales.is_some_and(|len| start < len);
                    (start, if fits { want[..1].to_vec() } else { vec![] })
                }
                _ => (last * 4, want),
            };
            let mut got = Tensor::zeros(DType::U8, &[want.len()]).map_err(|e| CheckError::Reference(e.to_string()))?;
            h.device.download_at(&h.stream, &codes[i], start, got.bytes_mut())?;
            same_bytes("codes of the last row", &got, &want)?;
        }
        Ok(d)
    }
}

/// Names of the norms of one rank.
fn names() -> impl Iterator<Item = &'static str> {
    let norm = |name| Norm::by_name(name).filter(|n| matches!(n.sum, Sum::None | Sum::Local));
    crate::op::table().iter().map(|r| r.name).filter(move |name| norm(name).is_some())
}

/// (operator, type, type of weight and bias, type of the scale, shape, offset, in place)
type Row = (&'static str, DType, DType, DType, &'static [usize], usize, bool);

const F32: DType = DType::F32;
const F16: DType = DType::F16;
const BF16: DType = DType::BF16;

/// Small shapes that reach every path, by the launcher's choice for few multiprocessors.
const SMALL: &[Row] = &[
    ("rms_norm", BF16, BF16, F32, &[3, 5, 128], 0, false),
    ("rms_norm", F32, F32, F32, &[7, 1], 0, false),
    ("rms_norm", BF16, BF16, F32, &[17], 0, true),
    ("rms_norm", BF16, F32, F32, &[4, 64], 1, true),
    ("rms_norm", BF16, BF16, F32, &[5, 400], 0, false),
    ("rms_norm", F16, F32, F32, &[6, 1000], 0, false),
    ("rms_norm", BF16, F16, F32, &[2, 1032], 0, true),
    ("rms_norm", F32, BF16, F32, &[5, 1040], 0, false),
    ("rms_norm", F32, F32, F32, &[5, 4112], 0, false),
    ("rms_norm", F32, F32, F32, &[1, 8208], 0, false),
    ("rms_norm", F32, F32, F32, &[1, 16392], 0, true),
    ("layer_norm", BF16, F32, F32, &[3, 96], 0, false),
    ("layer_norm", F16, F16, F32, &[5, 520], 0, true),
    ("layer_norm", BF16, BF16, F32, &[2, 264], 0, false),
    ("layer_norm", F32, F32, F32, &[5, 1040], 0, false),
    ("layer_norm", BF16, F16, F32, &[3, 77], 0, false),
    ("layer_norm", F32, F16, F32, &[1, 16392], 0, false),
    ("add_rms_norm", BF16, BF16, F32, &[4, 2, 256], 0, true),
    ("add_rms_norm", BF16, F32, F32, &[3, 1040], 0, false),
    ("add_rms_norm", BF16, BF16, F32, &[5, 2056], 0, true),
    ("add_rms_norm", F16, BF16, F32, &[1, 301], 0, true),
    ("add_rms_norm", F32, F32, F32, &[1, 16392], 0, true),
    ("add_layer_norm", F16, F32, F32, &[3, 128], 0, false),
    ("add_layer_norm", F32, F32, F32, &[2, 260], 0, true),
    ("add_layer_norm", BF16, BF16, F32, &[2, 75], 0, true),
    ("rms_norm_quant_fp8", BF16, BF16, F32, &[3, 160], 0, false),
    ("add_rms_norm_quant_fp8", F16, F16, F16, &[2, 1032], 0, false),
    ("layer_norm_quant_fp8", BF16, BF16, F32, &[2, 99], 0, false),
    ("add_layer_norm_quant_fp8", BF16, BF16, BF16, &[5, 1032], 0, true),
    ("rms_norm_quant_fp8_token", BF16, BF16, F32, &[3, 160], 0, false),
    ("add_rms_norm_quant_fp8_token", BF16, BF16, F32, &[5, 1040], 0, true),
    ("layer_norm_quant_fp8_token", F32, F32, F32, &[1, 16392], 0, true),
    ("add_layer_norm_quant_fp8_token", F16, F16, F32, &[2, 35], 0, true),
    ("rms_norm_quant_nvfp4", BF16, BF16, F32, &[3, 80], 0, false),
    ("rms_norm_quant_nvfp4", BF16, BF16, F32, &[130, 16], 0, false),
    ("add_rms_norm_quant_nvfp4", BF16, BF16, F32, &[2, 272], 0, true),
    ("add_rms_norm_quant_nvfp4", F32, F32, F32, &[5, 1040], 0, false),
    ("layer_norm_quant_nvfp4", F16, F16, F32, &[1, 32784], 0, false),
    ("add_layer_norm_quant_nvfp4", BF16, BF16, F32, &[2, 48], 1, false),
];

/// Last rows that begin beyond 2^31 elements, one for each way to count them.
const BEYOND: &[(&str, DType, [usize; 2])] = &[
    ("rms_norm", BF16, [(1 << 21) + 8, 1024]),
    ("add_rms_norm", BF16, [(1 << 18) + 1, 8192]),
    ("layer_norm", F32, [32_766, 65_544]),
    ("add_layer_norm", BF16, [262_178, 8191]),
    ("add_rms_norm_quant_fp8", BF16, [(1 << 18) + 1, 8192]),
    ("add_rms_norm_quant_fp8_token", BF16, [(1 << 18) + 1, 8192]),
    ("add_rms_norm_quant_nvfp4", BF16, [(1 << 18) + 1, 8192]),
    ("rms_norm_quant_nvfp4", BF16, [65_530, 32_784]),
];

fn label(dtype: DType, parameter: DType, scale: DType, shape: &[usize], offset: usize, in_place: bool) -> String {
    let offset = if offset > 0 { format!(" from element {offset}") } else { String::new() };
    let place = if in_place { " in place" } else { "" };
    format!("{dtype}{shape:?} weight {parameter} scale {scale}{offset}{place}")
}

pub(super) fn cases() -> Vec<Case> {
    let mut out = vec![];
    let mut push = |row: Row, size: Size| {
        let (name, dtype, parameter, scale, shape, offset, in_place) = row;
        out.push(Case::new(name, label(dtype, parameter, scale, shape, offset, in_place), size, move |h| {
            Rows { parameter, scale, offset, in_place, ..Rows::new(name, dtype, shape)? }.run(h)
        }));
    };
    SMALL.iter().for_each(|row| push(*row, Size::Small));
    let widths: [&'static [usize]; 11] = [
        &[33, 128],
        &[1000, 320],
        &[1000, 768],
        &[7, 1008],
        &[300, 4096],
        &[1, 8192],
        &[300, 8192],
        &[257, 16384],
        &[150, 24_576],
        &[3, 65_552],
        &[64, 2, 4128],
    ];
    for name in names() {
        for dtype in [F32, F16, BF16] {
            for (i, shape) in widths.into_iter().enumerate() {
                let types = [dtype, F32, F16, BF16];
                let nvfp4 = name.ends_with("nvfp4");
                let scale = if nvfp4 { F32 } else { types[i % 4] };
                push((name, dtype, types[i % 4], scale, shape, usize::from(i == 10), i % 3 == 1), Size::Large);
            }
        }
        push((name, BF16, BF16, F32, &[16384, 8192], 0, false), Size::Large);
    }
    for odd in [&[19, 4095], &[40, 333]] {
        for name in names().filter(|n| !n.ends_with("nvfp4")) {
            push((name, BF16, BF16, F32, odd, 0, false), Size::Large);
        }
    }
    for &(name, dtype, shape) in BEYOND {
        let [rows, n] = shape;
        out.push(Case::new(name, format!("{dtype}[{rows}, {n}] beyond 2^31"), Size::Large, move |h| {
            Rows { in_place: true, ..Rows::new(name, dtype, &shape)? }.run_last(h)
        }));
    }
    out
}

pub(super) fn benchmarks() -> Vec<Benchmark> {
    let mut shapes: Vec<(&'static str, [usize; 2])> = vec![];
    for name in ["rms_norm", "add_rms_norm"] {
        shapes.extend([1, 16, 64, 4096, 16384].map(|rows| (name, [rows, 8192])));
        shapes.extend([(name, [4096, 4096]), (name, [4096, 1000])]);
    }
    shapes.extend(["layer_norm", "add_layer_norm"].map(|name| (name, [4096, 8192])));
    for name in names().filter(|n| n.contains("_quant_")) {
        shapes.extend([4096, 16384].map(|rows| (name, [rows, 8192])));
    }
    shapes
        .into_iter()
        .map(|(name, shape)| Benchmark::new(name, format!("bf16{shape:?}"), move |h| prepare(h, name, &shape)))
        .collect()
}

fn prepare(h: &Harness<'_>, name: &str, shape: &[usize]) -> Result<Timed, CheckError> {
    let rows = Rows::new(name, BF16, shape)?;
    let (operands, mut results) = (rows.operands(), rows.results()?);
    // What is quantised is not stored otherwise.
    let skip = usize::from(rows.norm.quant != Quant::None);
    results.drain(..skip);
    let few = Rows { shape: vec![shape[0].min(64), shape[1]], ..rows.clone() };
    let data = few.data(shape[0].min(64))?;
    sets(h, &operands, &results, &data, |x, out| {
        let mut all = vec![None; skip];
        all.extend(out.iter().map(|v| Some(*v)));
        Ok(norm(&rows.op, x, &all, h.device.info())?)
    })
}
