//! Launchers of `all_reduce_norm.cu`: the sum over the ranks and the residual, its norm, and the quantised norm.

use super::all_reduce::{Way, all_reduce, resident_grid};
use super::exchange::{ExchangeArguments, Member, PACK};
use super::launch::{Check, type_name};
use super::norm::{NormParameters, Rows, norm, template_names};
use super::{DeviceInfo, Kernel, Launch, LaunchError, View, ViewMut};
use crate::attr::Attr;
use crate::dtype::DType;
use crate::norm::{Norm, Sum};
use crate::op::{self, Op};

/// Most threads of a block; `AR_THREADS` of all_reduce_norm.cu.
const THREADS: usize = 512;

/// Packs of a row that a thread may hold, ascending.
const PACKS: [usize; 2] = [1, 4];

/// `AllReduceNormArguments` of all_reduce_norm.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Arguments {
    exchange: ExchangeArguments,
    norm: NormParameters,
    x: u64,
    residual: u64,
    sum: u64,
}

fn kernel(name: &str, n: &Norm, way: Way, dtype: DType, ranks: usize, packs: usize) -> Kernel {
    let (kind, quant) = template_names(Some(n.kind), n.quant);
    let body = format!("all_reduce_norm_{way}<{}, {kind}, {quant}, {ranks}, {packs}>", type_name(dtype));
    let name = format!("{name}_{dtype}_{way}_ranks{ranks}_packs{packs}");
    Kernel::without_spills("all_reduce_norm.cu", name, THREADS as u32, "AllReduceNormArguments", &body)
}

/// Every kernel of this launcher.
pub(super) fn catalog() -> Vec<Kernel> {
    let mut out = vec![];
    for (name, n) in op::table().iter().filter_map(|row| Some((row.name, Norm::by_name(row.name)?))) {
        if !matches!(n.sum, Sum::AllReduce(_)) {
            continue;
        }
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for way in Way::ALL {
                for ranks in [2, 4, 8] {
                    out.extend(PACKS.map(|packs| kernel(name, &n, way, dtype, ranks, packs)));
                }
            }
        }
    }
    out
}

/// Bytes of a buffer that a message of some rows takes: two shots deal out whole rows.
pub fn capacity(way: Way, ranks: usize, rows: usize, row_bytes: usize) -> Option<usize> {
    way.used(ranks, rows, 1)?.checked_mul(row_bytes)
}

/// The norm without the all-reduce: the operator that is left where the sum is there already.
fn local(op: &Op) -> Option<Op> {
    let name = op.name().strip_prefix("ar_residual_")?;
    let given: Vec<(&str, Attr)> = op.info().attrs.iter().map(|a| a.name).zip(op.attrs()).collect();
    let attrs = op::info(name)?.attrs.iter().map(|a| Some(given.iter().find(|(n, _)| *n == a.name)?.1.clone()));
    Op::from_attrs(name, &attrs.collect::<Option<Vec<_>>>()?)
}

/// The sum of x over the ranks and the residual, its norm, and the quantised norm, with operands and results in the order
/// of the operator. Results that are `None` are not stored; codes and scales are needed.
///
/// A row that registers hold takes one launch. A longer one takes two, the second on the sum, which then needs memory: its own, or that
/// of the norm. Rows have whole packs of 16 bytes, at multiples of 16. Without elements nothing is launched, on any rank.
pub fn all_reduce_norm(
    op: &Op,
    way: Way,
    member: &Member,
    x: &[View<'_>],
    out: &[Option<ViewMut<'_>>],
    info: &DeviceInfo,
) -> Result<Vec<Launch>, LaunchError> {
    let c = Check(op.name());
    let Some(n) = op.norm().filter(|n| matches!(n.sum, Sum::AllReduce(_))) else {
        return c.fail("no norm of a sum over ranks");
    };
    let rows = Rows::of_norm(c, &n, x, out)?;
    rows.apart()?;
    let (count, columns) = (rows.parameters.rows as usize, rows.parameters.columns as usize);
    let (dtype, row_bytes) = (x[0].dtype, columns * x[0].dtype.size());
    if count == 0 {
        return Ok(vec![]);
    }
    c.that(rows.packed(), || {
        format!("rows of {row_bytes} bytes; whole packs of {PACK} bytes are needed, at multiples of {PACK}")
    })?;
    let packs = row_bytes / PACK;
    let Some(&held) = PACKS.iter().find(|&&p| packs <= p * THREADS) else {
        let Some(sum) = out.last().copied().flatten().or(out.first().copied().flatten()) else {
            return c.fail(format!(
                "rows of {row_bytes} bytes are too long for registers; the sum or the norm needs memory"
            ));
        };
        let Some(rest) = local(op) else { return c.fail("no norm of one rank") };
        let first = all_reduce(way, member, &x[0], Some(&x[1]), &sum, info)?;
        let operands: Vec<View<'_>> = std::iter::once(sum).chain(x[2..].iter().copied()).collect();
        return Ok(vec![first, norm(&rest, &operands, &out[..out.len() - 1], info)?]);
    };
    let needed = capacity(way, member.ranks, count, row_bytes);
    member.has_room(c, needed, || format!("{way} of {count} rows of {row_bytes} bytes"))?;
    let arguments = Arguments {
        exchange: member.arguments,
        norm: rows.parameters,
        x: x[0].address,
        residual: x[1].address,
        sum: out.last().copied().flatten().map_or(0, |s| s.address),
    };
    let block = packs.div_ceil(held).next_multiple_of(32);
    let grid = resident_grid(c, member, count, info)?;
    let kernel = kernel(op.name(), &n, way, dtype, member.ranks, held);
    Ok(vec![Launch::new(kernel, grid, block as u32, 0, &arguments)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{MeshAxis, Real};

    const OP: Op = Op::ArResidualRmsNorm { axis: MeshAxis::Tp, eps: Real(1e-6) };

    fn view(address: u64, shape: &[usize]) -> View<'_> {
        View { address, dtype: DType::BF16, shape, bytes: 1 << 40 }
    }

    fn launches(columns: usize, member: &Member, sum: bool) -> Result<Vec<Launch>, LaunchError> {
        let (shape, w) = ([2, 8, columns], [columns]);
        let at = |i: u64| view(i << 32, &shape);
        let x = [at(1), at(2), view(3 << 32, &w)];
        all_reduce_norm(&OP, Way::OneShot, member, &x, &[Some(at(4)), sum.then(|| at(5))], &DeviceInfo::h200())
    }

    #[test]
    fn the_launch_follows_the_row() {
        let m = Member::imagined(0, 2, 1, 1 << 30);
        let names = |columns| launches(columns, &m, false).unwrap().iter().map(Launch::to_string).collect::<Vec<_>>();
        assert_eq!(names(4096), ["ar_residual_rms_norm_bf16_one_shot_ranks2_packs1 grid 16 block 512 shared 0"]);
        assert_eq!(names(8192), ["ar_residual_rms_norm_bf16_one_shot_ranks2_packs4 grid 16 block 256 shared 0"]);
        let long = names(20_000);
        assert!(long[0].starts_with("all_reduce_one_shot_bf16") && long[1].starts_with("rms_norm_bf16"), "{long:?}");
        let catalog = catalog();
        assert!(launches(4096, &m, true).unwrap().iter().all(|l| catalog.contains(&l.kernel)));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let m = Member::imagined(0, 2, 1, 1 << 10);
        assert!(launches(4096, &m, true).unwrap_err().what.contains("needs 262144 bytes of workspace"));
        let m = Member::imagined(0, 2, 1, 1 << 30);
        assert!(launches(4097, &m, true).unwrap_err().what.contains("whole packs"));
        let x = [view(1 << 32, &[4, 64]), view(2 << 32, &[4, 64]), view(3 << 32, &[64])];
        let local = Op::AddRmsNorm { eps: Real(1e-6) };
        let out = [Some(view(4 << 32, &[4, 64])), None];
        let e = all_reduce_norm(&local, Way::OneShot, &m, &x, &out, &DeviceInfo::h200()).unwrap_err();
        assert!(e.what.contains("no norm of a sum over ranks"));
        assert!(all_reduce_norm(&OP, Way::OneShot, &m, &x[..2], &out, &DeviceInfo::h200()).is_err());
    }

    #[test]
    fn every_operator_has_a_norm_of_one_rank() {
        for op in op::instances().into_iter().filter(|o| o.name().starts_with("ar_residual_")) {
            assert_eq!(format!("ar_residual_{}", local(&op).unwrap().name()), op.name());
        }
    }
}
