//! Measurements of norms of sums beside the separate kernels that they replace, on one rank and on several.

use super::super::all_reduce::{Way, all_reduce};
use super::super::all_reduce_norm::{all_reduce_norm, capacity};
use super::super::elementwise::add;
use super::super::exchange::Member;
use super::super::norm::norm;
use super::super::{DeviceBuffer, Launch, View};
use super::ranks::group;
use super::rows::repeated;
use super::{Benchmark, CheckError, Harness, TimedCalls, host};
use crate::attr::{MeshAxis, Real};
use crate::dtype::DType;
use crate::op::Op;

const DTYPE: DType = DType::BF16;
const COLUMNS: usize = 8192;
const EPS: Real = Real(1e-5);

/// Bytes that the tensors of all calls take together, about; more than a cache holds.
const ROTATING: usize = 1 << 29;

/// Random rows are repeated from here on.
const RANDOM_ROWS: usize = 64;

/// Tensors of one rank in one call.
struct Operands {
    x: DeviceBuffer,
    residual: DeviceBuffer,
    weight: DeviceBuffer,
    /// The sum over the ranks, where it is stored.
    reduced: DeviceBuffer,
    sum: DeviceBuffer,
    y: DeviceBuffer,
}

impl Operands {
    fn new(h: &Harness<'_>, rows: usize, seed: u64) -> Result<Operands, CheckError> {
        let make = |seed| {
            let part = host::random(DTYPE, &[rows.min(RANDOM_ROWS), COLUMNS], seed)?;
            repeated(h, rows * COLUMNS * DTYPE.size(), Some(&part))
        };
        let weight = h.upload(&host::random(DTYPE, &[COLUMNS], seed)?)?;
        let result = || h.result(DTYPE, &[rows, COLUMNS]);
        let (x, residual) = (make(seed)?, make(seed + 1)?);
        Ok(Operands { x, residual, weight, reduced: result()?, sum: result()?, y: result()? })
    }

    fn buffers(self) -> [DeviceBuffer; 6] {
        [self.x, self.residual, self.weight, self.reduced, self.sum, self.y]
    }
}

/// What is measured.
#[derive(Clone, Copy)]
enum What {
    /// A sum, then its norm.
    Apart,
    /// The all-reduce with residual and norm in one kernel.
    Fused,
    /// The all-reduce, the sum with the residual, and the norm.
    AllApart,
}

impl What {
    fn launches(
        self,
        h: &Harness<'_>,
        o: &Operands,
        rows: usize,
        member: Option<(Way, &Member)>,
    ) -> Result<Vec<Launch>, CheckError> {
        let shape = [rows, COLUMNS];
        let v = |b: &DeviceBuffer| View { address: b.address(), dtype: DTYPE, shape: &shape, bytes: b.len() };
        let (x, residual, reduced, sum, y) = (v(&o.x), v(&o.residual), v(&o.reduced), v(&o.sum), v(&o.y));
        let (weight, info) = (o.weight.view(DTYPE, &[COLUMNS]), h.device.info());
        let apart = |x: &View<'_>| {
            let norm = norm(&Op::RmsNorm { eps: EPS }, &[sum, weight], &[Some(y)], info)?;
            Ok::<_, CheckError>(vec![add(x, &residual, &sum, info)?, norm])
        };
        Ok(match (self, member) {
            (What::Fused, Some((way, member))) => {
                let op = Op::ArResidualRmsNorm { axis: MeshAxis::Tp, eps: EPS };
                all_reduce_norm(&op, way, member, &[x, residual, weight], &[Some(y), Some(sum)], info)?
            }
            (What::AllApart, Some((way, member))) => {
                let mut out = vec![all_reduce(way, member, &x, None, &reduced, info)?];
                out.extend(apart(&reduced)?);
                out
            }
            _ => apart(&x)?,
        })
    }

    fn prepare(self, h: &Harness<'_>, rows: usize, ranks: usize) -> Result<TimedCalls, CheckError> {
        let size = rows * COLUMNS * DTYPE.size();
        let sets = ROTATING.div_ceil(5 * size * ranks).clamp(2, 16);
        let way = Way::for_message(ranks, rows * COLUMNS, h.device.info().capability);
        let too_large = || CheckError::Reference(format!("{rows} rows are too large"));
        let group = match ranks {
            1 => None,
            _ => {
                let fused = capacity(way, ranks, rows, COLUMNS * DTYPE.size()).ok_or_else(too_large)?;
                Some(group(h, ranks, fused.max(way.capacity(ranks, size).ok_or_else(too_large)?))?)
            }
        };
        let (mut calls, mut buffers) = (vec![], vec![]);
        for set in 0..sets {
            let mut call = vec![];
            for rank in 0..ranks {
                let o = Operands::new(h, rows, (set * ranks + rank) as u64)?;
                let member = group.as_ref().and_then(|g| g.member(rank));
                call.push(self.launches(h, &o, rows, member.as_ref().map(|m| (way, m)))?);
                buffers.extend(o.buffers());
            }
            calls.push(call);
        }
        // Both operands are read, the sum and its norm are written.
        Ok(TimedCalls { group, calls, buffers, bytes: (4 * size * ranks) as u64 })
    }
}

pub(super) fn benchmarks() -> Vec<Benchmark> {
    let mut out = vec![];
    for rows in [1, 16, 64, 4096, 16384] {
        let label = format!("bf16[{rows}, {COLUMNS}]");
        out.push(Benchmark::of_calls("add_then_rms_norm", label, move |h| What::Apart.prepare(h, rows, 1)));
    }
    for ranks in [2, 4, 8] {
        for rows in [1, 64, 1024] {
            let label = format!("bf16[{rows}, {COLUMNS}], {ranks} ranks");
            let fused = move |h: &Harness<'_>| What::Fused.prepare(h, rows, ranks);
            out.push(Benchmark::of_calls("ar_residual_rms_norm", label.clone(), fused));
            let apart = move |h: &Harness<'_>| What::AllApart.prepare(h, rows, ranks);
            out.push(Benchmark::of_calls("all_reduce_then_add_then_rms_norm", label, apart));
        }
    }
    out
}
