//! Soft-max against its definition in f64, and against the CPU back end.

use super::super::softmax::softmax;
use super::host::{cpu, download, random, shifted, tensor, upload};
use super::{Benchmark, Case, CheckError, Difference, Harness, Limit, Size, Timed};
use crate::attr::Safe;
use crate::dtype::DType;
use crate::op::Op;

#[derive(Clone)]
struct Sample {
    dtype: DType,
    shape: Vec<usize>,
    axis: usize,
    safe: bool,
    shift: usize,
    in_place: bool,
}

impl Sample {
    /// Masked positions, and one row each with nothing but -infinity, with NaN and with large numbers.
    fn input(&self) -> Result<Vec<f64>, CheckError> {
        let mut x = random(self.dtype, &self.shape, 3)?.to_f64();
        let inner: usize = self.shape[self.axis + 1..].iter().product();
        let n = self.shape[self.axis];
        for (i, v) in x.iter_mut().enumerate() {
            let (row, j) = (i / (n * inner) * inner + i % inner, i / inner % n);
            match row % 5 {
                1 => *v = f64::NEG_INFINITY,
                2 if j == n / 2 => *v = f64::NAN,
                3 => *v *= 1000.0,
                4 if j % 3 == 1 => *v = f64::NEG_INFINITY,
                _ => {}
            }
        }
        Ok(x)
    }

    fn run(&self, h: &Harness<'_>) -> Result<Difference, CheckError> {
        let x = tensor(self.dtype, &self.shape, self.input()?)?;
        let bx = upload(h, &x, self.shift)?;
        let by = h.result(self.dtype, &[x.len() + 2 * self.shift])?;
        let y = if self.in_place { &bx } else { &by };
        let place = |b| shifted(b, self.dtype, &self.shape, self.shift);
        h.run(&softmax(&place(&bx), self.axis as i64, self.safe, &place(y), h.device.info())?)?;
        let got = download(h, y, self.dtype, &self.shape, self.shift)?;
        let values = x.to_f64();
        let inner: usize = self.shape[self.axis + 1..].iter().product();
        let n = self.shape[self.axis];
        let mut want = vec![0.0; values.len()];
        let rows = if values.is_empty() { 0 } else { values.len() / n };
        for row in 0..rows {
            let start = row / inner * n * inner + row % inner;
            let row: Vec<f64> = (0..n).map(|j| values[start + j * inner]).collect();
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
            let empty = row.iter().all(|v| *v == f64::NEG_INFINITY);
            for (j, v) in row.iter().enumerate() {
                want[start + j * inner] = if empty && self.safe { 0.0 } else { (v - max).exp() / sum };
            }
        }
        // Probabilities may be small: they are as exact as exp of a difference in f32.
        let limit = match self.dtype {
            DType::F32 => Limit::Steps { steps: 32.0, floor: 1e-3 },
            _ => Limit::Steps { steps: 1.02, floor: 1e-3 },
        };
        let by_cpu = cpu(
            &Op::Softmax { axis: self.axis as i64, safe: if self.safe { Safe::Masked } else { Safe::No } },
            &[&x],
            self.dtype,
            &self.shape,
        )?;
        h.compare("y, by the CPU", &got, &by_cpu.to_f64(), limit)?;
        h.compare("y", &got, &want, limit)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut out = vec![];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let sample = |shape: &[usize], axis| {
            let shape = shape.to_vec();
            Sample { dtype, shape, axis, safe: false, shift: 0, in_place: false }
        };
        let safe = |shape: &[usize], axis| Sample { safe: true, ..sample(shape, axis) };
        let v = 16 / dtype.size();
        let size = |small: bool| if small { Size::Small } else { Size::Large };
        let bf16 = dtype == DType::BF16;
        let samples = [
            (sample(&[9, 64], 1), Size::Small),
            (safe(&[9, 64], 1), Size::Small),
            (sample(&[3, 3, 1], 2), size(bf16)),
            (sample(&[0, 4], 1), size(bf16)),
            (Sample { shift: 1, in_place: true, ..sample(&[6, 32], 1) }, size(bf16)),
            (safe(&[5, 61], 1), size(bf16)),
            (Sample { in_place: true, ..sample(&[7, 128 * v], 1) }, size(bf16)),
            (safe(&[5, 128 * v + 8], 1), size(bf16)),
            (sample(&[5, 4 * 128 * v + 64], 1), size(dtype == DType::F32)),
            (safe(&[5, 4097], 1), size(bf16)),
            (Sample { in_place: true, ..sample(&[2, 13, 5], 1) }, Size::Small),
            (safe(&[7, 2, 3], 0), Size::Small),
            (sample(&[4096, 4096], 1), Size::Large),
            (safe(&[4096, 1031], 1), Size::Large),
            (sample(&[64, 16384], 1), Size::Large),
            (safe(&[64, 32768], 1), Size::Large),
            (sample(&[64, 131_072], 1), Size::Large),
            (safe(&[64, 512, 130], 1), Size::Large),
        ];
        for (s, size) in samples {
            let label =
                format!("{dtype}{:?} axis {}, safe {}, {} in place {}", s.shape, s.axis, s.safe, s.shift, s.in_place);
            out.push(Case::new("softmax", label, size, move |h| s.run(h)));
        }
    }
    out
}

fn time(h: &Harness<'_>) -> Result<Timed, CheckError> {
    let (d, shape) = (DType::BF16, [32 * 128, 4096]);
    let (mut launches, mut buffers) = (vec![], vec![]);
    for round in 0..4 {
        let (x, y) = (h.upload(&random(d, &shape, round)?)?, h.result(d, &shape)?);
        launches.push(softmax(&x.view(d, &shape), 1, false, &y.view(d, &shape), h.device.info())?);
        buffers.extend([x, y]);
    }
    Ok(Timed { launches, buffers, bytes: 2 * 2 * 32 * 128 * 4096 })
}

pub(super) fn benchmarks() -> Vec<Benchmark> {
    vec![Benchmark::new("softmax", "bf16 4096x4096".to_owned(), time)]
}
