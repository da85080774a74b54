//! Sums over ranks with residual, norm and quantised norm: the sum exactly, the norm against the CPU's on that sum, and the codes exactly
//! as the CPU makes them of the norm.

use super::super::all_reduce::Way;
use super::super::all_reduce_norm::{all_reduce_norm, capacity};
use super::super::exchange::Member;
use super::super::{DeviceBuffer, Launch, Stream, View};
use super::ranks::{Random, group, on_ranks, pause, sum_of_ranks, tensor};
use super::reference::on_cpu;
use super::rows::{Types, results};
use super::{Case, CheckError, Difference, Harness, Limit, Size};
use crate::attr::{MeshAxis, Real};
use crate::dtype::DType;
use crate::norm::{Norm, Quant};
use crate::op::Op;
use crate::tensor::Tensor;

/// Which sums, and how often.
#[derive(Clone, Copy)]
struct Plan {
    dtype: DType,
    ranks: usize,
    way: Way,
    /// Rows of the calls, one after the other.
    rows: &'static [usize],
    columns: usize,
    turns: usize,
}

/// The operands of a call, and the sum that they give.
struct Round {
    x: Vec<Tensor>,
    residual: Tensor,
    sum: Tensor,
    types: Types,
}

impl Round {
    fn new(n: &Norm, p: &Plan, rows: usize, random: &mut Random) -> Result<Round, CheckError> {
        let shape = [rows, p.columns];
        let mut make = || tensor(p.dtype, &shape, &random.floats(rows * p.columns));
        let x = (0..p.ranks).map(|_| make()).collect::<Result<Vec<_>, _>>()?;
        let residual = make()?;
        let sum = sum_of_ranks(&x, Some(&residual))?;
        Ok(Round { x, residual, sum, types: results(n, p.dtype, &shape)? })
    }
}

/// What all ranks share besides the residual: weight, bias, scale.
fn parameters(n: &Norm, p: &Plan, random: &mut Random) -> Result<Vec<Tensor>, CheckError> {
    // The weight has a type of its own.
    let types = [DType::F32, p.dtype];
    let mut out = types[..n.parameters()]
        .iter()
        .map(|&t| tensor(t, &[p.columns], &random.floats(p.columns)))
        .collect::<Result<Vec<_>, _>>()?;
    if n.scale().is_some() {
        out.push(tensor(DType::F32, &[1], &[if n.quant == Quant::Fp8 { 0.0061 } else { 213.0 }])?);
    }
    Ok(out)
}

/// Compares what one rank has.
fn judge(
    h: &Harness<'_>,
    n: &Norm,
    name: &str,
    round: &Round,
    parameters: &[Tensor],
    got: &[Tensor],
) -> Result<Difference, CheckError> {
    let [norm, quantised @ .., sum] = got else { return Err(CheckError::Reference("no results".to_owned())) };
    let mut d = h.compare(&format!("{name}, sum"), sum, &round.sum.to_f64(), Limit::Exact)?;
    let operands: Vec<&Tensor> = std::iter::once(&round.sum).chain(&parameters[..n.parameters()]).collect();
    let wanted = on_cpu(&n.plain(), &operands, &round.types[..1])?;
    d = d.join(h.compare(&format!("{name}, norm"), norm, &wanted[0].to_f64(), limit(norm.dtype))?);
    let last = parameters.last().ok_or_else(|| CheckError::Reference("no parameters".to_owned()))?;
    let types = &round.types[1..round.types.len() - 1];
    let wanted = match n.quant {
        Quant::None => vec![],
        Quant::Fp8 => on_cpu(&Op::QuantizeFp8 {}, &[norm, last], types)?,
        Quant::Fp8Token { floor } => {
            let scale = on_cpu(&Op::Fp8Scale { floor }, &[norm], &types[1..])?;
            let mut out = on_cpu(&Op::QuantizeFp8 {}, &[norm, &scale[0]], &types[..1])?;
            out.extend(scale);
            out
        }
        Quant::Nvfp4 => on_cpu(&Op::QuantizeNvfp4 {}, &[norm, last], types)?,
    };
    for (i, (got, wanted)) in quantised.iter().zip(&wanted).enumerate() {
        d = d.join(h.compare(&format!("{name}, quantised result {i}"), got, &wanted.to_f64(), Limit::Exact)?);
    }
    Ok(d)
}

/// A bias may cancel what it is added to, which is of the order of 1: the result is as exact as that is.
fn limit(dtype: DType) -> Limit {
    match Limit::of(dtype) {
        Limit::Steps { steps, .. } if dtype == DType::F32 => Limit::Steps { steps, floor: 1.0 },
        other => other,
    }
}

fn run(h: &Harness<'_>, op: &Op, p: &Plan) -> Result<Difference, CheckError> {
    let n = op.norm().ok_or_else(|| CheckError::Reference(format!("{} is no norm", op.name())))?;
    let mut random = Random::new(p.columns as u64);
    let rounds = p.rows.iter().map(|&r| Round::new(&n, p, r, &mut random)).collect::<Result<Vec<_>, _>>()?;
    let parameters = parameters(&n, p, &mut random)?;
    let longest = p.rows.iter().max().copied().unwrap_or(1);
    let row_bytes = p.columns * p.dtype.size();
    // The two-shot sum of a long row deals out more than whole rows.
    let bytes = capacity(p.way, p.ranks, longest, row_bytes).map(|b| b + 16 * 64 * p.ranks);
    let bytes = bytes.ok_or_else(|| CheckError::Reference("too large".to_owned()))?;
    let group = group(h, p.ranks, bytes)?;

    let prepare = |rank: usize| {
        let member = group.member(rank).ok_or_else(|| CheckError::Reference(format!("no rank {rank}")))?;
        rounds.iter().map(|r| Call::new(h, op, p.way, &member, rank, r, &parameters)).collect::<Result<Vec<_>, _>>()
    };
    let body = |rank: usize, calls: &Vec<Call>, stream: &Stream| {
        let mut random = Random::new(rank as u64);
        let mut worst = Difference::default();
        let mut codes: Vec<Vec<Tensor>> = vec![];
        for turn in 0..p.turns {
            // Norm and sum are stored in even turns; in odd ones only what is quantised, which has to be the same.
            let all = turn % 2 == 0 || n.quant == Quant::None;
            for (i, (round, call)) in rounds.iter().zip(calls).enumerate() {
                call.results.iter().try_for_each(|b| h.poison(stream, b))?;
                pause(&mut random);
                let launches = if all { &call.all } else { &call.quantised };
                launches.iter().try_for_each(|l| h.enqueue(stream, l))?;
                group.check(rank, stream)?;
                let read = |k: usize| h.download_on(stream, &call.results[k], round.types[k].0, &round.types[k].1);
                let name = format!("rank {rank}, turn {turn}, {} rows", p.rows[i]);
                let last = call.results.len() - 1;
                if all {
                    let got = (0..=last).map(read).collect::<Result<Vec<_>, _>>()?;
                    worst = worst.join(judge(h, &n, &name, round, &parameters, &got)?);
                    match codes.get_mut(i) {
                        Some(place) => *place = got,
                        None => codes.push(got),
                    }
                } else {
                    let before = codes.get(i).map_or(&[][..], Vec::as_slice);
                    for (k, wanted) in before.iter().enumerate().take(last).skip(1) {
                        let (name, got) = (format!("{name}, result {k}"), read(k)?);
                        worst = worst.join(h.compare(&name, &got, &wanted.to_f64(), Limit::Exact)?);
                    }
                }
            }
        }
        Ok(worst)
    };
    Ok(on_ranks(h, p.ranks, prepare, body)?.into_iter().fold(Difference::default(), Difference::join))
}

/// One rank's part in a round: its memory, and the launches.
struct Call {
    results: Vec<DeviceBuffer>,
    /// Every result is stored.
    all: Vec<Launch>,
    /// Only what is quantised is stored; none where nothing is.
    quantised: Vec<Launch>,
    _operands: Vec<DeviceBuffer>,
}

impl Call {
    fn new(
        h: &Harness<'_>,
        op: &Op,
        way: Way,
        member: &Member,
        rank: usize,
        round: &Round,
        parameters: &[Tensor],
    ) -> Result<Call, CheckError> {
        let tensors: Vec<&Tensor> = [&round.x[rank], &round.residual].into_iter().chain(parameters).collect();
        let buffers = tensors.iter().map(|t| h.upload(t)).collect::<Result<Vec<_>, _>>()?;
        let operands: Vec<View<'_>> = buffers.iter().zip(&tensors).map(|(b, t)| view(b, t)).collect();
        let results = round.types.iter().map(|(d, s)| h.result(*d, s)).collect::<Result<Vec<_>, _>>()?;
        let last = results.len() - 1;
        let launches = |stored: &dyn Fn(usize) -> bool| {
            let out = results.iter().zip(&round.types).enumerate();
            let out: Vec<Option<View<'_>>> = out.map(|(k, (b, (d, s)))| stored(k).then(|| b.view(*d, s))).collect();
            let launches = all_reduce_norm(op, way, member, &operands, &out, h.device.info())?;
            launches.iter().try_for_each(|l| h.device.load(&l.kernel))?;
            Ok::<_, CheckError>(launches)
        };
        let all = launches(&|_| true)?;
        let quantised = if last > 1 { launches(&|k| k > 0 && k < last)? } else { vec![] };
        Ok(Call { results, all, quantised, _operands: buffers })
    }
}

fn view<'a>(b: &'a DeviceBuffer, t: &'a Tensor) -> View<'a> {
    b.view(t.dtype, &t.shape)
}

/// Every operator of the launcher, with attributes.
fn operators() -> Vec<Op> {
    let (axis, eps, floor) = (MeshAxis::Tp, Real(1e-5), Real(1e-4));
    vec![
        Op::ArResidualRmsNorm { axis, eps },
        Op::ArResidualLayerNorm { axis, eps },
        Op::ArResidualRmsNormQuantFp8 { axis, eps },
        Op::ArResidualLayerNormQuantFp8 { axis, eps },
        Op::ArResidualRmsNormQuantFp8Token { axis, eps, floor },
        Op::ArResidualLayerNormQuantFp8Token { axis, eps, floor },
        Op::ArResidualRmsNormQuantNvfp4 { axis, eps },
        Op::ArResidualLayerNormQuantNvfp4 { axis, eps },
    ]
}

fn case(op: &Op, p: Plan, size: Size) -> Case {
    let label = format!("{} {} {} ranks, {:?} x {}, {} turns", p.way, p.dtype, p.ranks, p.rows, p.columns, p.turns);
    let op = op.clone();
    Case::of_ranks(op.name(), label, size, move |h| run(h, &op, &p))
}

pub(super) fn cases() -> Vec<Case> {
    let mut out = vec![];
    let types = [DType::BF16, DType::F16, DType::F32];
    for (i, op) in operators().iter().enumerate() {
        let small = |dtype, ranks, way, columns| Plan { dtype, ranks, way, rows: &[3, 1, 5], columns, turns: 2 };
        // Each operator once by each way, with changing element types, ranks and widths.
        for (j, way) in Way::ALL.into_iter().enumerate() {
            let plan = small(types[(i + j) % 3], [2, 4, 8][(i + 2 * j) % 3], way, [64, 208][j]);
            out.push(case(op, plan, Size::Small));
        }
        for way in Way::ALL {
            for dtype in types {
                for ranks in [2, 4, 8] {
                    let base = small(dtype, ranks, way, 8192);
                    let columns = if dtype == DType::F32 { 4096 } else { 8192 };
                    out.push(case(op, Plan { rows: &[1, 7, 64, 300], columns, turns: 4, ..base }, Size::Large));
                    out.push(case(op, Plan { rows: &[16, 129], columns: 4096 + 16, turns: 2, ..base }, Size::Large));
                }
            }
        }
    }
    let often =
        Plan { dtype: DType::BF16, ranks: 2, way: Way::OneShot, rows: &[1, 4, 2, 9, 3], columns: 1024, turns: 2000 };
    let op = &operators()[0];
    for way in Way::ALL {
        // Rows that no register holds.
        let long = Plan { dtype: DType::F32, ranks: 2, way, rows: &[2, 1], columns: 8200, turns: 1 };
        out.push(case(op, long, Size::Small));
        out.push(case(&operators()[4], Plan { columns: 40_000, dtype: DType::BF16, turns: 2, ..long }, Size::Large));
        for ranks in [2, 4, 8] {
            out.push(case(op, Plan { way, ranks, ..often }, Size::Large));
        }
    }
    out
}
