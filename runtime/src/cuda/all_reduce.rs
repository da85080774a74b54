//! Launchers of `all_reduce.cu`: sums over the ranks of a group, alone and with a residual.

use std::fmt;

use super::exchange::{ExchangeArguments, Member, PACK};
use super::launch::{Check, type_name};
use super::{DeviceInfo, Kernel, Launch, LaunchError, View, ViewMut};
use crate::dtype::DType;

/// Threads of a block.
const THREADS: u32 = 512;

/// Packs in a run of the two-shot exchange; `RUN` of all_reduce.cu.
const RUN: usize = 64;

/// How a sum travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Every rank sends everything to every other one, and sums for itself: one exchange, for small messages.
    OneShot,
    /// Every rank sums a part and sends the sums: two exchanges, each of a part, for large messages.
    TwoShot,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::OneShot => "one_shot",
            Way::TwoShot => "two_shot",
        })
    }
}

impl Way {
    /// Both ways.
    pub const ALL: [Way; 2] = [Way::OneShot, Way::TwoShot];

    /// The better way for a message. The thresholds are those of TensorRT-LLM's heuristic for NVLink (its file
    /// allreduceOp.cpp): 16.8, 1.05 and 0.26 million elements on Hopper with 2, 4 and 8 ranks, later chips 16.8, 2.1 and 1.05.
    pub fn for_message(ranks: usize, elements: usize, capability: u32) -> Way {
        let limit = match (ranks, capability) {
            (..=2, _) => 1 << 24,
            (..=4, ..100) => 1 << 20,
            (..=4, _) => 1 << 21,
            (_, ..100) => 1 << 18,
            _ => 1 << 20,
        };
        if elements < limit { Way::OneShot } else { Way::TwoShot }
    }

    /// Bytes of a buffer that a sum of `bytes` takes.
    pub fn capacity(self, ranks: usize, bytes: usize) -> Option<usize> {
        self.used(ranks, bytes.div_ceil(PACK), RUN)?.checked_mul(PACK)
    }

    /// Units of a buffer that a message of `units` takes, which two shots deal out in runs of `run`.
    pub(super) fn used(self, ranks: usize, units: usize, run: usize) -> Option<usize> {
        match self {
            Way::OneShot => units.checked_mul(ranks),
            Way::TwoShot => {
                let share = units.div_ceil(run * ranks).checked_mul(run)?;
                share.checked_mul(ranks)?.checked_add(units)
            }
        }
    }
}

/// `AllReduceArguments` of all_reduce.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Arguments {
    exchange: ExchangeArguments,
    x: u64,
    residual: u64,
    y: u64,
    n: i64,
}

fn kernel(way: Way, dtype: DType, ranks: usize) -> Kernel {
    let body = format!("all_reduce_{way}<{}, {ranks}>", type_name(dtype));
    Kernel::without_spills(
        "all_reduce.cu",
        format!("all_reduce_{way}_{dtype}_ranks{ranks}"),
        THREADS,
        "AllReduceArguments",
        &body,
    )
}

/// Every kernel of this launcher.
pub(super) fn catalog() -> Vec<Kernel> {
    let mut out = vec![];
    for way in Way::ALL {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            out.extend([2, 4, 8].map(|ranks| kernel(way, dtype, ranks)));
        }
    }
    out
}

/// Blocks for `wanted` units of work. All blocks of all ranks on a device are resident together, for they wait for each other: each
/// takes a multiprocessor of its own.
pub(super) fn resident_grid(c: Check, member: &Member, wanted: usize, info: &DeviceInfo) -> Result<u32, LaunchError> {
    let room = info.multiprocessors as usize / member.ranks_on_device.max(1);
    c.that(room > 0, || {
        format!(
            "{} ranks on a device of {} multiprocessors cannot run at a time",
            member.ranks_on_device, info.multiprocessors
        )
    })?;
    Ok(wanted.clamp(1, room) as u32)
}

/// y = the sum of x over the ranks [+ residual], rounded once. All but x are equal on all ranks.
///
/// x, residual and y have the same shape and start at multiples of 16 bytes; y may be the residual or x. Without elements nothing
/// is launched, on any rank.
pub fn all_reduce(
    way: Way,
    member: &Member,
    x: &View<'_>,
    residual: Option<&View<'_>>,
    y: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    let c = Check("all_reduce");
    c.float("x", x)?;
    for (name, v) in [("x", Some(x)), ("residual", residual), ("y", Some(y))] {
        let Some(v) = v else { continue };
        c.typed(name, v, x.dtype, x.shape)?;
        c.that(v.address.is_multiple_of(PACK as u64), || {
            format!("{name} at {:#x} is not aligned to 16 bytes", v.address)
        })?;
        if v.address != y.address {
            c.apart((name, v), ("y", y))?;
        }
    }
    let bytes = x.len() * x.dtype.size();
    member.has_room(c, way.capacity(member.ranks, bytes), || format!("{way} of {bytes} bytes"))?;
    let packs = bytes.div_ceil(PACK);
    let grid = if packs == 0 { 0 } else { resident_grid(c, member, packs.div_ceil(THREADS as usize), info)? };
    let arguments = Arguments {
        exchange: member.arguments,
        x: x.address,
        residual: residual.map_or(0, |r| r.address),
        y: y.address,
        n: x.len() as i64,
    };
    Ok(Launch::new(kernel(way, x.dtype, member.ranks), grid, THREADS, 0, &arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(address: u64, shape: &[usize]) -> View<'_> {
        View { address, dtype: DType::BF16, shape, bytes: 1 << 40 }
    }

    #[test]
    fn the_launch_follows_message_and_group() {
        let (m, info) = (Member::imagined(1, 4, 1, 1 << 24), DeviceInfo::h200());
        let (x, y) = (view(0x1000, &[16, 1024]), view(0x100_0000, &[16, 1024]));
        let l = all_reduce(Way::OneShot, &m, &x, None, &y, &info).unwrap();
        assert_eq!(l.to_string(), "all_reduce_one_shot_bf16_ranks4 grid 4 block 512 shared 0");
        assert!(catalog().contains(&l.kernel));
        // Eight ranks on one device share its 132 multiprocessors.
        let m = Member::imagined(1, 8, 8, 1 << 40);
        let (x, y) = (view(0x1000, &[1 << 14, 1024]), view(0x1_0000_0000, &[1 << 14, 1024]));
        assert_eq!(all_reduce(Way::TwoShot, &m, &x, None, &y, &info).unwrap().grid, 16);
        let empty = view(0x1000, &[0, 8]);
        assert_eq!(all_reduce(Way::TwoShot, &m, &empty, None, &empty, &info).unwrap().grid, 0);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let (m, info) = (Member::imagined(0, 2, 1, 1 << 10), DeviceInfo::h200());
        let refused = |x: &View<'_>, r: Option<&View<'_>>, y: &View<'_>| {
            all_reduce(Way::OneShot, &m, x, r, y, &info).unwrap_err().to_string()
        };
        let (x, y) = (view(0x1000, &[64]), view(0x2000, &[64]));
        assert!(all_reduce(Way::OneShot, &m, &x, Some(&y), &y, &info).is_ok());
        assert!(refused(&view(0x1008, &[64]), None, &y).contains("not aligned to 16 bytes"));
        assert!(refused(&x, None, &view(0x2000, &[32])).contains("expected bf16[64]"));
        assert!(refused(&x, None, &view(0x1010, &[64])).contains("share memory"));
        assert!(refused(&view(0x1000, &[512]), None, &view(0x2000, &[512])).contains("needs 2048 bytes of workspace"));
        let ints = View { dtype: DType::I32, ..x };
        assert!(refused(&ints, None, &y).contains("type i32"));
        let crowded = DeviceInfo { multiprocessors: 4, ..info.clone() };
        let many = Member::imagined(0, 8, 8, 1 << 20);
        let e = all_reduce(Way::OneShot, &many, &x, None, &y, &crowded).unwrap_err();
        assert!(e.to_string().contains("8 ranks on a device of 4 multiprocessors"), "{e}");
    }

    #[test]
    fn capacity_covers_what_the_kernels_write() {
        assert_eq!(Way::OneShot.capacity(4, 100), Some(7 * 4 * 16));
        assert_eq!(Way::TwoShot.capacity(2, 16 * 129), Some((128 * 2 + 129) * 16));
        assert_eq!(Way::OneShot.capacity(8, usize::MAX), None);
        assert_eq!(Way::for_message(2, 8 << 20, 90), Way::OneShot);
        assert_eq!(Way::for_message(8, 1 << 18, 90), Way::TwoShot);
    }
}
