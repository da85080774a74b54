//! Sums over ranks that share a device, in many rounds of changing size, with pauses.

use std::time::Duration;

use super::super::all_reduce::{Way, all_reduce};
use super::super::exchange::{Group, Member};
use super::super::{CudaError, DeviceBuffer, Launch, View};
use super::ranks::{Random, group, on_ranks, pause, sum_of_ranks, tensor};
use super::{Case, CheckError, Difference, Harness, Limit, Size};
use crate::dtype::DType;
use crate::tensor::Tensor;

/// Operands of a round: that of each rank, and the residual.
struct Round {
    x: Vec<Tensor>,
    residual: Option<Tensor>,
    n: usize,
}

fn rounds(dtype: DType, ranks: usize, lengths: &[usize]) -> Result<Vec<Round>, CheckError> {
    let mut random = Random::new(ranks as u64);
    let mut out = vec![];
    for (i, &n) in lengths.iter().enumerate() {
        let mut make = || tensor(dtype, &[n], &random.floats(n));
        let mut x = (0..ranks).map(|_| make()).collect::<Result<Vec<_>, _>>()?;
        let residual = (i % 2 == 1).then(make).transpose()?;
        // Negative zeros are what a buffer holds before data comes.
        let size = dtype.size();
        if let Some(first) = x.first_mut().map(Tensor::bytes_mut).filter(|b| b.len() >= 8) {
            first[..8].fill(0);
            first[3] = 0x80;
            first[size - 1] = 0x80;
        }
        out.push(Round { x, residual, n });
    }
    Ok(out)
}

fn run(
    h: &Harness<'_>,
    way: Way,
    dtype: DType,
    ranks: usize,
    lengths: &[usize],
    repeat: usize,
) -> Result<Difference, CheckError> {
    let rounds = rounds(dtype, ranks, lengths)?;
    let longest = lengths.iter().max().copied().unwrap_or(0) * dtype.size();
    let capacity = way.capacity(ranks, longest).ok_or_else(|| CheckError::Reference("too large".to_owned()))?;
    let group = group(h, ranks, capacity)?;
    let wanted = rounds
        .iter()
        .map(|r| Ok(sum_of_ranks(&r.x, r.residual.as_ref())?.to_f64()))
        .collect::<Result<Vec<_>, CheckError>>()?;
    let prepare = |rank: usize| {
        let member = group.member(rank).ok_or_else(|| CheckError::Reference(format!("no rank {rank}")))?;
        rounds.iter().map(|r| Call::new(h, way, &member, dtype, rank, r)).collect::<Result<Vec<_>, _>>()
    };
    let all = on_ranks(h, ranks, prepare, |rank, calls, stream| {
        let mut random = Random::new(100 + rank as u64);
        let mut worst = Difference::default();
        for turn in 0..repeat {
            for (i, (r, call)) in rounds.iter().zip(calls).enumerate() {
                h.poison(stream, &call.y)?;
                pause(&mut random);
                h.enqueue(stream, &call.launch)?;
                // Not after every call: some calls follow each other without a halt.
                if turn % 2 == 0 || i + 1 == rounds.len() {
                    group.check(rank, stream)?;
                    let got = h.download_on(stream, &call.y, dtype, &[r.n])?;
                    let name = format!("rank {rank}, turn {turn}, {} elements", r.n);
                    worst = worst.join(h.compare(&name, &got, &wanted[i], Limit::Exact)?);
                }
            }
        }
        Ok(worst)
    })?;
    Ok(all.into_iter().fold(Difference::default(), Difference::join))
}

/// One rank's part in a round: its memory, and the launch.
struct Call {
    y: DeviceBuffer,
    launch: Launch,
    _operands: Vec<DeviceBuffer>,
}

impl Call {
    fn new(
        h: &Harness<'_>,
        way: Way,
        member: &Member,
        dtype: DType,
        rank: usize,
        round: &Round,
    ) -> Result<Call, CheckError> {
        let shape = [round.n];
        let mut operands = vec![h.upload(&round.x[rank])?];
        if let Some(t) = &round.residual {
            operands.push(h.upload(t)?);
        }
        let y = h.result(dtype, &shape)?;
        let view = |b: &DeviceBuffer| View { address: b.address(), dtype, shape: &shape, bytes: b.len() };
        let residual = operands.get(1).map(view);
        let launch = all_reduce(way, member, &view(&operands[0]), residual.as_ref(), &view(&y), h.device.info())?;
        h.device.load(&launch.kernel)?;
        Ok(Call { y, launch, _operands: operands })
    }
}

/// A rank that does not come is named in time; after a reset the group works again.
fn missing_rank(h: &Harness<'_>, way: Way) -> Result<Difference, CheckError> {
    let (dtype, shape, patience) = (DType::F32, [1000], Duration::from_millis(100));
    let capacity = way.capacity(2, 4000).ok_or_else(|| CheckError::Reference("too large".to_owned()))?;
    let group = Group::new(&vec![h.device.clone(); 2], capacity, patience)?;
    let x = tensor(dtype, &shape, &Random::new(3).floats(1000))?;
    let round = Round { x: vec![x; 2], residual: None, n: 1000 };
    let prepare = |rank: usize| {
        let member = group.member(rank).ok_or_else(|| CheckError::Reference(format!("no rank {rank}")))?;
        Call::new(h, way, &member, dtype, rank, &round)
    };
    let call = |ranks: &[usize]| {
        on_ranks(h, 2, prepare, |rank, call, stream| {
            if !ranks.contains(&rank) {
                return Ok(());
            }
            h.enqueue(stream, &call.launch)?;
            Ok(group.check(rank, stream)?)
        })
    };
    call(&[0, 1])?;
    match call(&[0]) {
        Err(CheckError::Cuda(CudaError::Exchange { rank: 0, peer: 1, call: 1, .. })) => {}
        Err(e) => return Err(e),
        Ok(_) => return Err(CheckError::Differs("a call without rank 1 was not noticed".to_owned())),
    }
    group.reset()?;
    call(&[0, 1])?;
    Ok(Difference::default())
}

pub(super) fn cases() -> Vec<Case> {
    let mut out = vec![];
    for way in Way::ALL {
        out.push(Case::of_ranks("all_reduce", format!("{way} without rank 1"), Size::Small, move |h| {
            missing_rank(h, way)
        }));
    }
    for way in Way::ALL {
        for (dtype, ranks) in [(DType::F32, 2), (DType::BF16, 4), (DType::F16, 8), (DType::BF16, 2)] {
            out.push(Case::of_ranks("all_reduce", format!("{way} {dtype} {ranks} ranks"), Size::Small, move |h| {
                run(h, way, dtype, ranks, &[1, 7, 1000, 8, 4099], 3)
            }));
        }
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for ranks in [2, 4, 8] {
                let label = format!("{way} {dtype} {ranks} ranks, 10000 calls");
                out.push(Case::of_ranks("all_reduce", label, Size::Large, move |h| {
                    run(h, way, dtype, ranks, &[1, 8192, 123_457, 64, 3], 2000)
                }));
            }
            out.push(Case::of_ranks("all_reduce", format!("{way} {dtype} 4 ranks, large"), Size::Large, move |h| {
                run(h, way, dtype, 4, &[16 << 20, 3, (8 << 20) + 5], 3)
            }));
        }
    }
    out
}
