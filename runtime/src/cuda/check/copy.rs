//! Copies against the place that each element comes from, and against the CPU back end.

use super::super::copy as launchers;
use super::super::launch::{Launch, LaunchError, View};
use super::super::{DeviceBuffer, DeviceInfo};
use super::host::{coordinates, cpu, download, position, random, shifted, upload};
use super::{Benchmark, Case, CheckError, Difference, Harness, Limit, Size, Timed};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::Tensor;

/// One element type of each size.
const TYPES: [DType; 4] = [DType::U8, DType::BF16, DType::F32, DType::I64];

/// The launches of one operator.
fn launches(op: &Op, x: &[View<'_>], out: &View<'_>, info: &DeviceInfo) -> Result<Vec<Launch>, LaunchError> {
    let known = |d: &Dim| d.as_const().unwrap_or(0);
    match op {
        Op::Concat { axis } => launchers::concat(x, *axis, out, info),
        Op::Transpose { perm } => launchers::transpose(&x[0], perm, out, info).map(|l| vec![l]),
        Op::Expand { .. } => launchers::expand(&x[0], out, info).map(|l| vec![l]),
        Op::Slice { axis, start, end, step } => {
            launchers::slice(&x[0], *axis, (known(start), known(end), *step), out, info).map(|l| vec![l])
        }
        _ => launchers::reshape(&x[0], out, info).map(|l| vec![l]),
    }
}

/// Which operand an element of the result comes from, and where it lies there.
fn origin(op: &Op, at: &[usize], shapes: &[&[usize]], i: usize) -> (usize, usize) {
    let mut from = at.to_vec();
    let index = |axis: &i64| axis.rem_euclid(shapes[0].len() as i64) as usize;
    match op {
        Op::Transpose { perm } => perm.iter().zip(at).for_each(|(p, a)| from[*p as usize] = *a),
        Op::Expand { .. } => {
            from = at[at.len() - shapes[0].len()..].to_vec();
            from.iter_mut().zip(shapes[0]).filter(|(_, d)| **d == 1).for_each(|(a, _)| *a = 0);
        }
        Op::Slice { axis, start, step, .. } => {
            let a = index(axis);
            from[a] = (start.as_const().unwrap_or(0) + at[a] as i64 * step) as usize;
        }
        Op::Concat { axis } => {
            let a = index(axis);
            for (k, s) in shapes.iter().enumerate() {
                if from[a] < s[a] {
                    return (k, position(&from, s));
                }
                from[a] -= s[a];
            }
        }
        _ => return (0, i),
    }
    (0, position(&from, shapes[0]))
}

fn run(
    h: &Harness<'_>,
    op: &Op,
    dtype: DType,
    shapes: &[Vec<usize>],
    to: &[usize],
    shift: usize,
) -> Result<Difference, CheckError> {
    let x = shapes.iter().zip(1..).map(|(s, k)| random(dtype, s, k)).collect::<Result<Vec<_>, _>>()?;
    let buffers = x.iter().map(|t| upload(h, t, shift)).collect::<Result<Vec<_>, _>>()?;
    let y = h.result(dtype, &[to.iter().product::<usize>() + 2 * shift])?;
    let views: Vec<View<'_>> = buffers.iter().zip(&x).map(|(b, t)| shifted(b, dtype, &t.shape, shift)).collect();
    for launch in launches(op, &views, &shifted(&y, dtype, to, shift), h.device.info())? {
        h.run(&launch)?;
    }
    let got = download(h, &y, dtype, to, shift)?;
    let values: Vec<Vec<f64>> = x.iter().map(Tensor::to_f64).collect();
    let sides: Vec<&[usize]> = x.iter().map(|t| &t.shape[..]).collect();
    let place = |i| origin(op, &coordinates(i, to), &sides, i);
    let want: Vec<f64> = (0..got.len()).map(place).map(|(k, i)| values[k][i]).collect();
    let by_cpu = cpu(op, &x.iter().collect::<Vec<_>>(), dtype, to)?;
    if by_cpu.bytes() != got.bytes() {
        return Err(CheckError::Differs("the CPU's result has other bytes".to_owned()));
    }
    h.compare("y", &got, &want, Limit::Exact)
}

struct Sample(Op, Vec<Vec<usize>>, Vec<usize>, Size);

fn transpose(from: &[usize], perm: &[i64], size: Size) -> Sample {
    let to = perm.iter().map(|&p| from[p as usize]).collect();
    Sample(Op::Transpose { perm: perm.to_vec() }, vec![from.to_vec()], to, size)
}

fn slice(from: &[usize], axis: usize, (start, end, step): (i64, i64, i64), extent: usize) -> Sample {
    let mut to = from.to_vec();
    to[axis] = extent;
    let op = Op::Slice { axis: axis as i64, start: start.into(), end: end.into(), step };
    Sample(op, vec![from.to_vec()], to, Size::Small)
}

fn expand(from: &[usize], to: &[usize]) -> Sample {
    let shape = to.iter().map(|&d| Dim::from(d as i64)).collect();
    Sample(Op::Expand { shape }, vec![from.to_vec()], to.to_vec(), Size::Small)
}

fn concat(from: &[&[usize]], axis: i64, to: &[usize]) -> Sample {
    Sample(Op::Concat { axis }, from.iter().map(|s| s.to_vec()).collect(), to.to_vec(), Size::Small)
}

fn samples() -> Vec<Sample> {
    use Size::{Large, Small};
    let same = |n: &[usize]| {
        let shape = n.iter().map(|&d| Dim::from(d as i64)).collect();
        Sample(Op::Reshape { shape }, vec![n.to_vec()], n.to_vec(), Small)
    };
    vec![
        same(&[1]),
        same(&[37, 53]),
        same(&[0, 3]),
        transpose(&[70, 132], &[1, 0], Small),
        transpose(&[33, 61], &[1, 0], Small),
        transpose(&[2, 5, 3, 16], &[0, 2, 1, 3], Small),
        transpose(&[2, 17, 3, 20], &[3, 2, 0, 1], Small),
        transpose(&[2, 3, 2, 2, 3, 2, 2, 5], &[7, 5, 3, 1, 0, 2, 4, 6], Small),
        transpose(&[9, 3], &[1, 0], Small),
        transpose(&[2048, 4096], &[1, 0], Large),
        transpose(&[3, 1031, 2053], &[2, 0, 1], Large),
        transpose(&[4, 1024, 32, 128], &[0, 2, 1, 3], Large),
        expand(&[5, 1], &[2, 5, 3]),
        expand(&[64], &[9, 64]),
        expand(&[40, 1], &[40, 32]),
        expand(&[], &[2, 2]),
        slice(&[6, 40], 1, (8, 24, 1), 16),
        slice(&[6, 40], 1, (39, -1, -3), 14),
        slice(&[7, 4, 3], 0, (1, 6, 2), 3),
        slice(&[7, 4], 0, (5, 2, 1), 0),
        concat(&[&[3, 8], &[3, 0], &[3, 24]], 1, &[3, 32]),
        concat(&[&[2, 3, 5], &[1, 3, 5]], 0, &[3, 3, 5]),
        concat(&[&[2, 3, 5], &[2, 4, 5]], -2, &[2, 7, 5]),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    let mut out = vec![];
    for dtype in TYPES {
        for shift in [0, 1] {
            for Sample(op, shapes, to, size) in samples() {
                let label = format!("{dtype} {shapes:?} to {to:?}, {shift} elements after a multiple of 256 bytes");
                out.push(Case::new(op.name(), label, size, move |h| run(h, &op, dtype, &shapes, &to, shift)));
            }
        }
    }
    out
}

/// Launches on two pairs of buffers.
fn time(
    h: &Harness<'_>,
    from: &[usize],
    to: &[usize],
    launch: impl Fn(&View<'_>, &View<'_>) -> Result<Launch, LaunchError>,
) -> Result<Timed, CheckError> {
    let d = DType::BF16;
    let (mut launches, mut buffers): (_, Vec<DeviceBuffer>) = (vec![], vec![]);
    for round in 0..2 {
        let (x, y) = (h.upload(&random(d, from, round)?)?, h.result(d, to)?);
        launches.push(launch(&x.view(d, from), &y.view(d, to))?);
        buffers.extend([x, y]);
    }
    let bytes = 2 * buffers.first().map_or(0, DeviceBuffer::len) as u64;
    Ok(Timed { launches, buffers, bytes })
}

pub(super) fn benchmarks() -> Vec<Benchmark> {
    let turned = |from: &'static [usize], perm: &'static [i64]| {
        let to: Vec<usize> = perm.iter().map(|&p| from[p as usize]).collect();
        let label = format!("bf16 {from:?} to {to:?}");
        Benchmark::new("transpose", label, move |h| {
            time(h, from, &to, |x, y| launchers::transpose(x, perm, y, h.device.info()))
        })
    };
    let whole: &[usize] = &[1 << 27];
    vec![
        turned(&[4, 1024, 32, 128], &[0, 2, 1, 3]),
        turned(&[8192, 8192], &[1, 0]),
        Benchmark::new("reshape", format!("bf16 {whole:?}"), move |h| {
            time(h, whole, whole, |x, y| launchers::reshape(x, y, h.device.info()))
        }),
    ]
}
