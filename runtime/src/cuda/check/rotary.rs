//! Rotary embeddings against their definition in f64, and against the CPU back end.

use super::super::launch::View;
use super::super::rotary::rotary;
use super::host::{coordinates, cpu, download, position, random, shifted, upload};
use super::{Benchmark, Case, CheckError, Difference, Harness, Limit, Size, Timed};
use crate::dtype::DType;
use crate::op::Op;

#[derive(Clone)]
struct Sample {
    dtype: DType,
    /// Element types of cos and sin.
    angles: [DType; 2],
    x: Vec<usize>,
    /// Shapes of cos and sin.
    at: [Vec<usize>; 2],
    interleaved: bool,
    rotated: usize,
    shift: usize,
    in_place: bool,
}

impl Sample {
    fn run(&self, h: &Harness<'_>) -> Result<Difference, CheckError> {
        let x = random(self.dtype, &self.x, 1)?;
        let angles = [0, 1].map(|i| random(self.angles[i], &self.at[i], 2 + i as u64));
        let [cos, sin] = angles;
        let (cos, sin) = (cos?, sin?);
        let (bx, bc, bs) = (upload(h, &x, self.shift)?, h.upload(&cos)?, h.upload(&sin)?);
        let by = h.result(self.dtype, &[x.len() + 2 * self.shift])?;
        let place = |b| shifted(b, self.dtype, &self.x, self.shift);
        let y = if self.in_place { &bx } else { &by };
        let (c, s) = (bc.view(cos.dtype, &cos.shape), bs.view(sin.dtype, &sin.shape));
        h.run(&rotary((&place(&bx), &c, &s), self.interleaved, self.rotated, &place(y), h.device.info())?)?;
        let got = download(h, y, self.dtype, &self.x, self.shift)?;

        let (xv, cv, sv) = (x.to_f64(), cos.to_f64(), sin.to_f64());
        let half = self.rotated / 2;
        let angle = |values: &[f64], shape: &[usize], place: &[usize], j: usize| {
            let mut at = place.to_vec();
            at[place.len() - 1] = j;
            let at: Vec<usize> =
                at[at.len() - shape.len()..].iter().zip(shape).map(|(a, d)| if *d == 1 { 0 } else { *a }).collect();
            values[position(&at, shape)]
        };
        let want = (0..x.len()).map(|i| {
            let place = coordinates(i, &self.x);
            let e = place[place.len() - 1];
            if e >= self.rotated {
                return xv[i];
            }
            let (j, first) = if self.interleaved { (e / 2, e % 2 == 0) } else { (e % half, e < half) };
            let apart = if self.interleaved { 1 } else { half };
            let (c, s) = (angle(&cv, &cos.shape, &place, j), angle(&sv, &sin.shape, &place, j));
            if first { xv[i] * c - xv[i + apart] * s } else { xv[i] * c + xv[i - apart] * s }
        });
        if self.rotated == self.x[self.x.len() - 1] {
            let op = Op::Rotary { interleaved: self.interleaved };
            let by_cpu = cpu(&op, &[&x, &cos, &sin], self.dtype, &self.x)?;
            h.compare("y, by the CPU", &got, &by_cpu.to_f64(), self.limit())?;
        }
        h.compare("y", &got, &want.collect::<Vec<_>>(), self.limit())
    }

    /// Two products of numbers up to 4 may cancel.
    fn limit(&self) -> Limit {
        match Limit::of(self.dtype) {
            Limit::Steps { steps, .. } => Limit::Steps { steps, floor: 4.0 },
            other => other,
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut out = vec![];
    let (f32, bf16) = (DType::F32, DType::BF16);
    for dtype in [f32, DType::F16, bf16] {
        for interleaved in [false, true] {
            let sample = |x: &[usize], cos: &[usize]| Sample {
                dtype,
                angles: [f32, f32],
                x: x.to_vec(),
                at: [cos.to_vec(), cos.to_vec()],
                interleaved,
                rotated: x[x.len() - 1],
                shift: 0,
                in_place: false,
            };
            let size = |dtype_runs_small: bool| if dtype_runs_small { Size::Small } else { Size::Large };
            let few = dtype == bf16 || !interleaved;
            let mut samples = vec![
                (sample(&[2, 5, 3, 32], &[3, 16]), size(few)),
                (sample(&[2, 3, 5, 16], &[2, 1, 5, 8]), size(few)),
                (Sample { in_place: true, angles: [bf16, f32], ..sample(&[2, 4, 3, 32], &[3, 16]) }, size(few)),
                (Sample { rotated: 16, ..sample(&[3, 2, 40], &[2, 8]) }, size(few)),
                (Sample { shift: 1, ..sample(&[3, 16], &[3, 8]) }, size(few)),
                (Sample { rotated: 6, ..sample(&[2, 3, 13], &[3, 3]) }, size(few)),
                (sample(&[2, 3, 6], &[1]), size(few)),
                (sample(&[4, 32, 1024, 128], &[1024, 64]), Size::Large),
                (sample(&[4, 32, 1021, 128], &[4, 1, 1021, 64]), Size::Large),
            ];
            let two = Sample { at: [vec![5, 8], vec![2, 1, 1, 8]], ..sample(&[2, 3, 5, 16], &[5, 8]) };
            samples.push((two, size(few)));
            for (s, size) in samples {
                let layout = if interleaved { "interleaved" } else { "halves" };
                let label = format!("{dtype}{:?} {layout}, {} rotated by {:?}, {}", s.x, s.rotated, s.at, s.shift);
                out.push(Case::new("rotary", label, size, move |h| s.run(h)));
            }
        }
    }
    out
}

fn time(h: &Harness<'_>) -> Result<Timed, CheckError> {
    let (d, shape, angles) = (DType::BF16, [4, 32, 1024, 128], [1024, 64]);
    let (cos, sin) = (h.upload(&random(DType::F32, &angles, 1)?)?, h.upload(&random(DType::F32, &angles, 2)?)?);
    let (mut launches, mut buffers) = (vec![], vec![]);
    for round in 0..3 {
        let (x, y) = (h.upload(&random(d, &shape, round)?)?, h.result(d, &shape)?);
        let (c, s): (View<'_>, View<'_>) = (cos.view(DType::F32, &angles), sin.view(DType::F32, &angles));
        launches.push(rotary((&x.view(d, &shape), &c, &s), false, 128, &y.view(d, &shape), h.device.info())?);
        buffers.extend([x, y]);
    }
    buffers.extend([cos, sin]);
    Ok(Timed { launches, buffers, bytes: 2 * 2 * 4 * 32 * 1024 * 128 + 2 * 4 * 1024 * 64 })
}

pub(super) fn benchmarks() -> Vec<Benchmark> {
    vec![Benchmark::new("rotary", "bf16 [4, 32, 1024, 128]".to_owned(), time)]
}
