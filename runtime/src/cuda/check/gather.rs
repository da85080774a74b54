//! Gathers against the entry that each index names, and against the CPU back end.

use super::super::gather as launchers;
use super::super::launch::View;
use super::host::{bits, coordinates, cpu, download, position, random, shifted, tensor, upload};
use super::{Benchmark, Case, CheckError, Difference, Harness, Limit, Size, Timed};
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::Tensor;

/// Indices of both signs, the first and the last one among them.
fn indices(dtype: DType, shape: &[usize], extent: usize) -> Result<Tensor, CheckError> {
    let n: usize = shape.iter().product();
    let extent = extent as i64;
    let pick = |i: usize| match i {
        0 => -extent,
        1 => extent - 1,
        _ => (bits(9, i) % (2 * extent) as u64) as i64 - extent,
    };
    tensor(dtype, shape, (0..n).map(|i| pick(i) as f64))
}

/// The status word before a launch.
fn clear(h: &Harness<'_>) -> Result<super::super::DeviceBuffer, CheckError> {
    let status = h.device.alloc(8)?;
    h.device.fill(&h.stream, &status, 0xff)?;
    Ok(status)
}

fn read(h: &Harness<'_>, status: &super::super::DeviceBuffer) -> Result<u64, CheckError> {
    let mut word = [0; 8];
    h.device.download(&h.stream, status, &mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// A table, the axis along which entries are looked up, and the indices.
struct Sample {
    dtype: DType,
    data: Vec<usize>,
    axis: usize,
    index: (DType, Vec<usize>),
    /// Rank and number of ranks, for a table that is split.
    split: Option<(usize, usize)>,
    shift: usize,
}

impl Sample {
    fn run(&self, h: &Harness<'_>) -> Result<Difference, CheckError> {
        let (extent, low) = match self.split {
            Some((rank, size)) => (self.data[0] * size, self.data[0] * rank),
            None => (self.data[self.axis], 0),
        };
        let x = random(self.dtype, &self.data, 1)?;
        let i = indices(self.index.0, &self.index.1, extent)?;
        let shape = [&self.data[..self.axis], &self.index.1, &self.data[self.axis + 1..]].concat();
        let (data, at, status) = (upload(h, &x, self.shift)?, h.upload(&i)?, clear(h)?);
        let y = h.result(self.dtype, &[shape.iter().product::<usize>() + 2 * self.shift])?;
        let view = |b, shape| shifted(b, self.dtype, shape, self.shift);
        let (table, out) = (view(&data, &self.data), view(&y, &shape));
        let (ids, word) = (at.view(self.index.0, &self.index.1), status.view(DType::U64, &[]));
        let info = h.device.info();
        h.run(&match self.split {
            Some(place) => launchers::vocab_gather(&table, &ids, place, &word, &out, info)?,
            None => launchers::gather(&table, &ids, self.axis as i64, &word, &out, info)?,
        })?;
        let found = read(h, &status)?;
        if found != launchers::NO_ERROR {
            return Err(CheckError::Differs(format!("index {found} is said to be out of range")));
        }
        let got = download(h, &y, self.dtype, &shape, self.shift)?;
        let (values, ids) = (x.to_f64(), i.to_f64());
        let rank = self.index.1.len();
        let want = (0..got.len()).map(|n| {
            let place = coordinates(n, &shape);
            let i = ids[position(&place[self.axis..self.axis + rank], &self.index.1)] as i64;
            let entry = (if i < 0 { i + extent as i64 } else { i }) - low as i64;
            let held = usize::try_from(entry).ok().filter(|e| *e < self.data[self.axis]);
            let Some(entry) = held else { return 0.0 };
            let from = [&place[..self.axis], &[entry], &place[self.axis + rank..]].concat();
            values[position(&from, &self.data)]
        });
        if self.split.is_none() {
            let by_cpu = cpu(&Op::Gather { axis: self.axis as i64 }, &[&x, &i], self.dtype, &shape)?;
            if by_cpu.bytes() != got.bytes() {
                return Err(CheckError::Differs("the CPU's result has other bytes".to_owned()));
            }
        }
        h.compare("y", &got, &want.collect::<Vec<_>>(), Limit::Exact)
    }
}

/// Two indices are out of range: the smaller position is told, and their entries are zero.
fn out_of_range(h: &Harness<'_>) -> Result<Difference, CheckError> {
    let (d, data, n, shape) = (DType::F32, [6, 5], [70], [70, 5]);
    let x = random(d, &data, 1)?;
    let wrong = |i: usize| [None, Some(6), Some(-7), Some(i32::MIN)][usize::from(i == 61) + 2 * usize::from(i == 43)];
    let ids: Vec<f64> = (0..70).map(|i| f64::from(wrong(i).unwrap_or(i as i32 % 12 - 6))).collect();
    let (table, at, status) = (h.upload(&x)?, h.upload(&tensor(DType::I32, &n, ids.iter().copied())?)?, clear(h)?);
    let y = h.result(d, &shape)?;
    let word = status.view(DType::U64, &[]);
    let (t, i, out) = (table.view(d, &data), at.view(DType::I32, &n), y.view(d, &shape));
    h.run(&launchers::gather(&t, &i, 0, &word, &out, h.device.info())?)?;
    let found = read(h, &status)?;
    if found != 43 {
        return Err(CheckError::Differs(format!("the status is {found}, expected 43")));
    }
    let values = x.to_f64();
    let want: Vec<f64> = (0..350)
        .map(|n| match wrong(n / 5) {
            Some(_) => 0.0,
            None => values[(ids[n / 5] as i64).rem_euclid(6) as usize * 5 + n % 5],
        })
        .collect();
    h.compare("y", &h.download(&y, d, &shape)?, &want, Limit::Exact)
}

pub(super) fn cases() -> Vec<Case> {
    let mut out = vec![Case::new("gather", "out of range".to_owned(), Size::Small, out_of_range)];
    let (i32, i64) = (DType::I32, DType::I64);
    for dtype in [DType::U8, DType::BF16, DType::F32, i64] {
        let tables: [(&[usize], usize, DType, &[usize], Option<(usize, usize)>, usize, Size); 9] = [
            (&[11, 64], 0, i64, &[3, 5], None, 0, Size::Small),
            (&[11, 37], 0, i32, &[7], None, 0, Size::Small),
            (&[11, 64], 0, i32, &[7], None, 1, Size::Small),
            (&[3, 7, 5], 1, i64, &[2, 2], None, 0, Size::Small),
            (&[4, 9], 1, i32, &[], None, 0, Size::Small),
            (&[1], 0, i64, &[1], None, 0, Size::Small),
            (&[6, 24], 0, i64, &[2, 9], Some((1, 3)), 0, Size::Small),
            (&[32000, 4096], 0, i64, &[4, 1024], None, 0, Size::Large),
            (&[16000, 4096], 0, i32, &[4, 1024], Some((7, 8)), 0, Size::Large),
        ];
        for (data, axis, index, shape, split, shift, size) in tables {
            let kernel = if split.is_some() { "vocab_gather" } else { "gather" };
            let label = format!("{dtype}{data:?} axis {axis} by {index}{shape:?}, {shift} elements after a boundary");
            let (data, index) = (data.to_vec(), (index, shape.to_vec()));
            let sample = Sample { dtype, data, axis, index, split, shift };
            out.push(Case::new(kernel, label, size, move |h| sample.run(h)));
        }
    }
    out
}

fn time(h: &Harness<'_>) -> Result<Timed, CheckError> {
    let (d, data, n, shape) = (DType::BF16, [32000, 8192], [4096], [4096, 8192]);
    let (x, at, status) = (h.upload(&random(d, &data, 1)?)?, h.upload(&indices(DType::I64, &n, data[0])?)?, clear(h)?);
    let (mut launches, mut buffers) = (vec![], vec![]);
    let view = |b| -> View<'_> { super::super::DeviceBuffer::view(b, DType::U64, &[]) };
    for _ in 0..2 {
        let y = h.result(d, &shape)?;
        let (table, ids, out) = (x.view(d, &data), at.view(DType::I64, &n), y.view(d, &shape));
        launches.push(launchers::gather(&table, &ids, 0, &view(&status), &out, h.device.info())?);
        buffers.push(y);
    }
    buffers.extend([x, at, status]);
    Ok(Timed { launches, buffers, bytes: 2 * 2 * 4096 * 8192 + 8 * 4096 })
}

pub(super) fn benchmarks() -> Vec<Benchmark> {
    vec![Benchmark::new("gather", "bf16 4096 tokens of 8192".to_owned(), time)]
}
