//! Codes of eight and four bits: the definitions, and the kernels that quantise without a norm.

use super::super::quantize::{fp8_token, quantize_fp8, quantize_nvfp4};
use super::super::{DeviceInfo, Launch, LaunchError, View};
use super::ranks::{Random, tensor};
use super::rows::{Placed, cpu, place, sets};
use super::{Benchmark, Case, CheckError, Difference, Harness, Size, Timed};
use crate::attr::Real;
use crate::cpu::quantize::swizzled_len;
use crate::dtype::{DType, element_f64};
use crate::minifloat::{decode, encode};
use crate::norm::Quant;
use crate::op::Op;
use crate::tensor::Tensor;

const E4M3: DType = DType::F8E4M3FN;

/// The largest magnitude; NaN where there is one.
fn largest(x: &[f32]) -> f32 {
    if x.iter().any(|v| v.is_nan()) { f32::NAN } else { x.iter().fold(0.0, |m, v| v.abs().max(m)) }
}

/// The code of v / scale, whose quotient is rounded to `precision`.
fn code(v: f32, scale: f32, precision: DType) -> u8 {
    let quotient = v / scale;
    let rounded = match precision {
        DType::F16 => half::f16::from_f32(quotient).to_f64(),
        DType::BF16 => half::bf16::from_f32(quotient).to_f64(),
        _ => f64::from(quotient),
    };
    encode(E4M3, rounded, true)
}

/// Codes and, where they are results, scales of rows, by the definition of the operators.
pub(super) fn quantised(quant: Quant, x: &Tensor, scale: Option<&Tensor>) -> Result<Vec<Vec<u8>>, CheckError> {
    let n = x.shape.last().copied().unwrap_or(1).max(1);
    let values: Vec<f32> = x.to_f64().into_iter().map(|v| v as f32).collect();
    let single = || match scale {
        Some(s) if s.len() == 1 => Ok((element_f64(s.dtype, s.bytes()) as f32, s.dtype)),
        _ => Err(CheckError::Reference("a scale is missing".to_owned())),
    };
    Ok(match quant {
        Quant::None => vec![],
        Quant::Fp8 => {
            let (scale, precision) = single()?;
            vec![values.iter().map(|&v| code(v, scale, precision)).collect()]
        }
        Quant::Fp8Token { floor } => {
            let floor = floor.0 as f32;
            let scale = |row: &[f32]| {
                let s = largest(row) / 448.0;
                if s <= floor { floor } else { s }
            };
            let scales: Vec<f32> = values.chunks(n).map(scale).collect();
            let rows = values.chunks(n).zip(&scales);
            let codes = rows.flat_map(|(row, &s)| row.iter().map(move |&v| code(v, s, DType::F32))).collect();
            vec![codes, bytemuck::cast_slice(&scales).to_vec()]
        }
        Quant::Nvfp4 => {
            let (scale, _) = single()?;
            let blocks = n / 16;
            let tiles = blocks.div_ceil(4);
            let mut codes = vec![];
            let mut scales = vec![0; swizzled_len(values.len() / n, blocks).unwrap_or(0)];
            for (i, block) in values.chunks(16).enumerate() {
                let sf = encode(E4M3, f64::from(largest(block) / 6.0 * scale), true);
                let decoded = decode(E4M3, sf) as f32;
                let factor = if decoded == 0.0 { 0.0 } else { scale / decoded };
                let four = |v: f32| encode(DType::F4E2M1, f64::from(v * factor), true);
                codes.extend(block.chunks(2).map(|pair| four(pair[0]) | four(pair[1]) << 4));
                let (r, b) = (i / blocks, i % blocks);
                scales[((r / 128 * tiles + b / 4) * 32 + r % 32) * 16 + r / 32 % 4 * 4 + b % 4] = sf;
            }
            vec![codes, scales]
        }
    })
}

/// Checks that a result has these bytes, or NaN where NaN is wanted.
pub(super) fn same_bytes(name: &str, got: &Tensor, want: &[u8]) -> Result<(), CheckError> {
    differing(name, got, want, 0.0)
}

/// Checks that at most a share of the elements of a result is not as wanted. The payload of a NaN of at least 16 bits is free: devices write
/// 0x7fffffff where the host writes 0x7fc00000.
pub(super) fn differing(name: &str, got: &Tensor, want: &[u8], share: f64) -> Result<(), CheckError> {
    let (bytes, size) = (got.bytes(), got.dtype.size());
    if bytes.len() != want.len() {
        return Err(CheckError::Reference(format!("{name}: {} bytes for {}", want.len(), bytes.len())));
    }
    let is_nan = |b: &[u8]| size > 1 && element_f64(got.dtype, b).is_nan();
    let mut wrong = bytes
        .chunks_exact(size)
        .zip(want.chunks_exact(size))
        .enumerate()
        .filter(|(_, (g, w))| g != w && !(is_nan(g) && is_nan(w)));
    let Some((i, (g, w))) = wrong.next() else { return Ok(()) };
    let (count, n) = (1 + wrong.count(), want.len() / size);
    if count as f64 <= share * n as f64 {
        return Ok(());
    }
    let hex = |b: &[u8]| b.iter().rev().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    let place = format!("{name} {}{:?}: element {i} is {}, expected {}", got.dtype, got.shape, hex(g), hex(w));
    Err(CheckError::Differs(format!("{place}; {count} of {n} differ")))
}

/// A quantisation without a norm.
#[derive(Clone, Copy)]
struct Kernel {
    quant: Quant,
    scale: DType,
}

const PER_TENSOR: Kernel = Kernel { quant: Quant::Fp8, scale: DType::F32 };
const TOKEN: Kernel = Kernel { quant: Quant::Fp8Token { floor: Real(0.001) }, scale: DType::F32 };
const NVFP4: Kernel = Kernel { quant: Quant::Nvfp4, scale: DType::F32 };

impl Kernel {
    fn name(self) -> &'static str {
        match self.quant {
            Quant::Fp8Token { .. } => "fp8_token",
            Quant::Nvfp4 => "quantize_nvfp4",
            _ => "quantize_fp8",
        }
    }

    fn with_scale(self, scale: DType) -> Kernel {
        Kernel { scale, ..self }
    }

    fn results(self, shape: &[usize]) -> Vec<(DType, Vec<usize>)> {
        let with_last = |last: usize| {
            let mut s = shape.to_vec();
            s.iter_mut().rev().take(1).for_each(|d| *d = last);
            s
        };
        let n = shape.last().copied().unwrap_or(1);
        let rows: usize = shape.iter().rev().skip(1).product();
        match self.quant {
            Quant::Fp8Token { .. } => vec![(E4M3, shape.to_vec()), (DType::F32, with_last(1))],
            Quant::Nvfp4 => {
                vec![(DType::U8, with_last(n / 2)), (E4M3, vec![swizzled_len(rows, n / 16).unwrap_or(0)])]
            }
            _ => vec![(E4M3, shape.to_vec())],
        }
    }

    fn launch(self, x: &[View<'_>], out: &[View<'_>], info: &DeviceInfo) -> Result<Launch, LaunchError> {
        match self.quant {
            Quant::Fp8Token { floor } => fp8_token(&x[0], floor.0, &out[0], &out[1], info),
            Quant::Nvfp4 => quantize_nvfp4(&x[0], &x[1], &out[0], &out[1], info),
            _ => quantize_fp8(&x[0], &x[1], &out[0], info),
        }
    }

    fn scale(self) -> Result<Tensor, CheckError> {
        tensor(self.scale, &[1], &[if self.quant == Quant::Nvfp4 { 350.0 } else { 0.0043 }])
    }

    /// What the operators of the CPU give.
    fn on_cpu(self, x: &Tensor, shape: &[usize]) -> Result<Vec<Tensor>, CheckError> {
        let results = self.results(shape);
        let inputs = [x.clone(), self.scale()?];
        match self.quant {
            Quant::Fp8Token { floor } => {
                let t = cpu(&Op::Fp8Scale { floor }, &inputs[..1], shape, &results[1..])?.remove(0);
                let q = cpu(&Op::QuantizeFp8 {}, &[x.clone(), t.clone()], shape, &results[..1])?.remove(0);
                Ok(vec![q, t])
            }
            Quant::Nvfp4 => cpu(&Op::QuantizeNvfp4 {}, &inputs, shape, &results),
            _ => cpu(&Op::QuantizeFp8 {}, &inputs, shape, &results),
        }
    }

    fn run(self, h: &Harness<'_>, dtype: DType, shape: &[usize], offset: usize) -> Result<Difference, CheckError> {
        let mut values = Random::new(7).floats(shape.iter().product());
        let n = shape.last().copied().unwrap_or(1);
        // A row of zeros, and a row with what is no number.
        if values.len() >= 3 * n && n >= 8 {
            values[n..2 * n].fill(0.0);
            values[2 * n..2 * n + 5].copy_from_slice(&[f32::NAN, f32::INFINITY, -0.0, f32::NEG_INFINITY, 6e4]);
        }
        let x = tensor(dtype, shape, &values)?;
        let scale = self.scale()?;
        let places = [place(h, dtype, shape, offset, Some(&x))?, place(h, self.scale, &[1], 0, Some(&scale))?];
        let mut out = vec![];
        for (i, (d, s)) in self.results(shape).iter().enumerate() {
            out.push(place(h, *d, s, if i == 0 { offset } else { 0 }, None)?);
        }
        let views: Vec<View<'_>> = places.iter().map(Placed::view).collect();
        let results: Vec<View<'_>> = out.iter().map(Placed::view).collect();
        h.run(&self.launch(&views, &results, h.device.info())?)?;
        let want = quantised(self.quant, &x, Some(&scale))?;
        let host = self.on_cpu(&x, shape)?;
        for ((i, place), want) in out.iter().enumerate().zip(&want) {
            let name = if i == 0 { "q" } else { "scales" };
            let got = place.read(h)?;
            same_bytes(name, &got, want)?;
            same_bytes("the CPU's result", &got, host[i].bytes())?;
        }
        Ok(Difference { elements: values.len(), ..Difference::default() })
    }

    /// The last row of many; the others are not touched, except by the kernel.
    fn run_last(
        self,
        h: &Harness<'_>,
        dtype: DType,
        shape: [usize; 2],
        offset: usize,
    ) -> Result<Difference, CheckError> {
        let [rows, n] = shape;
        let before = offset + (rows - 1) * n;
        let x = tensor(dtype, &[1, n], &Random::new(9).floats(n))?;
        let scale = self.scale()?;
        let (data, step) = (h.device.alloc((offset + rows * n) * dtype.size())?, h.upload(&scale)?);
        h.device.upload_at(&h.stream, &data, before * dtype.size(), x.bytes())?;
        let results = self.results(&shape);
        let mut buffers = vec![];
        for (d, s) in &results {
            buffers.push(h.device.alloc(offset + s.iter().product::<usize>() * d.size())?);
        }
        let shifted = |v: View<'_>, bytes: usize| (v.address + bytes as u64, v.bytes - bytes);
        let (address, bytes) = shifted(data.view(dtype, &shape), offset * dtype.size());
        let views = [View { address, dtype, shape: &shape, bytes }, step.view(self.scale, &[1])];
        let mut out: Vec<View<'_>> = buffers.iter().zip(&results).map(|(b, (d, s))| b.view(*d, s)).collect();
        if self.quant == Quant::Fp8 {
            (out[0].address, out[0].bytes) = shifted(out[0], offset);
        }
        h.run(&self.launch(&views, &out, h.device.info())?)?;
        let want = quantised(self.quant, &x, Some(&scale))?.remove(0);
        let mut got = Tensor::zeros(DType::U8, &[want.len()]).map_err(|e| CheckError::Reference(e.to_string()))?;
        let start = (out[0].address - buffers[0].address()) as usize + (rows - 1) * want.len();
        h.device.download_at(&h.stream, &buffers[0], start, got.bytes_mut())?;
        same_bytes("the last row", &got, &want)?;
        Ok(Difference { elements: n, ..Difference::default() })
    }
}

pub(super) fn cases() -> Vec<Case> {
    const F32: DType = DType::F32;
    const F16: DType = DType::F16;
    const BF16: DType = DType::BF16;
    let mut out = vec![];
    let mut push = |kernel: Kernel, dtype: DType, shape: &'static [usize], offset: usize, size: Size| {
        let from = if offset > 0 { format!(" from element {offset}") } else { String::new() };
        let label = format!("{dtype}{shape:?} scale {}{from}", kernel.scale);
        out.push(Case::new(kernel.name(), label, size, move |h| kernel.run(h, dtype, shape, offset)));
    };
    push(PER_TENSOR, BF16, &[3, 5, 37], 0, Size::Small);
    push(PER_TENSOR.with_scale(BF16), BF16, &[3, 5, 37], 0, Size::Small);
    push(PER_TENSOR.with_scale(F16), F32, &[70_003], 0, Size::Small);
    push(PER_TENSOR, F16, &[5, 101], 3, Size::Small);
    push(PER_TENSOR, F32, &[1], 0, Size::Small);
    push(TOKEN, BF16, &[3, 160], 0, Size::Small);
    push(TOKEN, F32, &[3, 1028], 0, Size::Small);
    push(TOKEN, F16, &[2, 2, 31], 0, Size::Small);
    push(NVFP4, F16, &[4, 240], 0, Size::Small);
    push(NVFP4, F32, &[3, 528], 0, Size::Small);
    push(NVFP4, BF16, &[5, 32], 1, Size::Small);
    for kernel in [PER_TENSOR, TOKEN, NVFP4] {
        for dtype in [F32, F16, BF16] {
            for shape in
                [&[33, 64][..], &[500, 1024], &[1, 8192], &[300, 8192], &[150, 16384], &[20, 32_768], &[3, 65_552]]
            {
                push(kernel, dtype, shape, 0, Size::Large);
            }
            push(kernel, dtype, &[64, 4128], 1, Size::Large);
        }
        push(kernel, BF16, &[16384, 8192], 0, Size::Large);
    }
    for (kernel, shape, offset) in [
        (PER_TENSOR, [(1 << 18) + 1, 8192], 0),
        (PER_TENSOR, [(1 << 18) + 1, 8192], 1),
        (TOKEN, [(1 << 18) + 1, 8192], 0),
        (NVFP4, [(1 << 18) + 1, 8192], 0),
    ] {
        let label = format!("bf16{shape:?} from element {offset} beyond 2^31");
        out.push(Case::new(kernel.name(), label, Size::Large, move |h| kernel.run_last(h, BF16, shape, offset)));
    }
    out
}

pub(super) fn benchmarks() -> Vec<Benchmark> {
    let kernels = [PER_TENSOR, TOKEN, NVFP4].into_iter();
    let shapes = kernels.flat_map(|k| [64, 4096, 16384].map(|rows| (k, [rows, 8192])));
    shapes
        .map(|(k, shape)| Benchmark::new(k.name(), format!("bf16{shape:?}"), move |h| prepare(h, k, &shape)))
        .collect()
}

fn prepare(h: &Harness<'_>, kernel: Kernel, shape: &[usize]) -> Result<Timed, CheckError> {
    let mut operands = vec![(DType::BF16, shape.to_vec())];
    let n = shape.last().copied().unwrap_or(1);
    let mut data = vec![tensor(DType::BF16, &[64, n], &Random::new(3).floats(64 * n))?];
    if !matches!(kernel.quant, Quant::Fp8Token { .. }) {
        operands.push((kernel.scale, vec![1]));
        data.push(kernel.scale()?);
    }
    sets(h, &operands, &kernel.results(shape), &data, |x, out| Ok(kernel.launch(x, out, h.device.info())?))
}
