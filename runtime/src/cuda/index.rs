//! How kernels walk tensors of several axes: steps, merging of axes, and division by extents. `index.cuh` is the other half.

use super::launch::{Check, DeviceInfo, LaunchError};

/// Axes that a kernel walks after merging; `index.cuh` has the same number.
pub(super) const MAX_AXES: usize = 8;

/// The largest number of blocks of a launch.
const MAX_GRID: usize = i32::MAX as usize;

/// An extent, and what divides by it through multiplication.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Axis {
    extent: i64,
    multiplier: u64,
    shift: i64,
}

impl Axis {
    /// Any extent; 0 divides like 1.
    pub(super) fn new(extent: usize) -> Axis {
        let d = extent.max(1) as u128;
        let shift = d.next_power_of_two().trailing_zeros();
        Axis { extent: extent as i64, multiplier: (1u128 << (63 + shift)).div_ceil(d) as u64, shift: i64::from(shift) }
    }
}

/// Steps, in elements, of a row-major shape.
pub(super) fn row_major(shape: &[usize]) -> Vec<i64> {
    let mut steps = vec![1i64; shape.len()];
    for i in (1..shape.len()).rev() {
        steps[i - 1] = steps[i].saturating_mul(shape[i] as i64);
    }
    steps
}

/// Steps of an operand that is broadcast to `out` by NumPy's rules: 0 where it has one element.
pub(super) fn broadcast_steps(out: &[usize], shape: &[usize]) -> Option<Vec<i64>> {
    let lead = out.len().checked_sub(shape.len())?;
    let mut steps = vec![0; out.len()];
    for (i, (&d, step)) in shape.iter().zip(row_major(shape)).enumerate() {
        if d == out[lead + i] {
            steps[lead + i] = if d == 1 { 0 } else { step };
        } else if d != 1 {
            return None;
        }
    }
    Some(steps)
}

/// Axes of a walk with the steps of several operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// Extents; at least one.
    pub(super) extents: Vec<usize>,
    /// Steps by axis, then operand.
    pub(super) steps: Vec<Vec<i64>>,
}

impl Walk {
    /// Merges neighbouring axes that every operand walks as one, and leaves out those of extent 1. `steps` is by operand, then axis.
    pub(super) fn new(shape: &[usize], steps: &[Vec<i64>]) -> Walk {
        let mut walk = Walk { extents: vec![], steps: vec![] };
        for (i, &d) in shape.iter().enumerate().filter(|(_, d)| **d != 1) {
            let here: Vec<i64> = steps.iter().map(|s| s[i]).collect();
            match (walk.extents.last_mut(), walk.steps.last_mut()) {
                (Some(extent), Some(outer))
                    if outer.iter().zip(&here).all(|(o, h)| Some(*o) == h.checked_mul(d as i64)) =>
                {
                    *extent *= d;
                    *outer = here;
                }
                _ => {
                    walk.extents.push(d);
                    walk.steps.push(here);
                }
            }
        }
        if walk.extents.is_empty() {
            walk.extents.push(1);
            walk.steps.push(vec![0; steps.len()]);
        }
        walk
    }

    /// Number of axes.
    pub(super) fn rank(&self) -> usize {
        self.extents.len()
    }

    /// The axes for a kernel, refused where there are too many.
    pub(super) fn axes(&self, check: Check) -> Result<[Axis; MAX_AXES], LaunchError> {
        check.that(self.rank() <= MAX_AXES, || {
            format!("the operands walk {} axes after merging; at most {MAX_AXES} are supported", self.rank())
        })?;
        let mut axes = [Axis::new(1); MAX_AXES];
        axes.iter_mut().zip(&self.extents).for_each(|(a, &d)| *a = Axis::new(d));
        Ok(axes)
    }
}

/// Blocks for `work` units of which one block does `per_block`.
pub(super) fn grid(check: Check, work: usize, per_block: usize) -> Result<u32, LaunchError> {
    let blocks = work.div_ceil(per_block);
    match u32::try_from(blocks) {
        Ok(n) if blocks <= MAX_GRID => Ok(n),
        _ => check.fail(format!("{blocks} blocks are needed; a launch has at most {MAX_GRID}")),
    }
}

/// Grid and block for `work` units of which a thread does `per_thread`. A block has `most` threads, and half as many, down to `fewest`,
/// while that leaves multiprocessors without one.
pub(super) fn blocks(
    check: Check,
    work: usize,
    per_thread: usize,
    (most, fewest): (u32, u32),
    info: &DeviceInfo,
) -> Result<(u32, u32), LaunchError> {
    let mut block = most;
    while block > fewest && work.div_ceil(block as usize * per_thread) < info.multiprocessors as usize {
        block /= 2;
    }
    Ok((grid(check, work, block as usize * per_thread)?, block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplication_divides() {
        let top = i64::MAX as u64;
        let mut extents: Vec<u64> = (1..2000).collect();
        extents.extend((0..63).flat_map(|b| [(1u64 << b) - 1, 1 << b, (1 << b) + 1]).filter(|d| (1..=top).contains(d)));
        for d in extents {
            let a = Axis::new(d as usize);
            let near = (0..20).flat_map(|k| {
                let m = (top / d).saturating_sub(k) * d;
                [m.saturating_sub(1), m, m + 1, (k * (d >> 5)) & top, top - k, k]
            });
            for n in near.filter(|n| *n <= top) {
                let product = u128::from(n << 1) * u128::from(a.multiplier);
                assert_eq!((product >> 64 >> a.shift) as u64, n / d, "{n} / {d}");
            }
        }
    }

    #[test]
    fn axes_merge_where_all_operands_agree() {
        let walk = |out: &[usize], shapes: &[&[usize]]| {
            let steps: Vec<Vec<i64>> = shapes.iter().map(|s| broadcast_steps(out, s).unwrap()).collect();
            Walk::new(out, &steps)
        };
        let w = walk(&[2, 3, 4], &[&[2, 3, 4], &[]]);
        assert_eq!((w.extents, w.steps), (vec![24], vec![vec![1, 0]]));
        let w = walk(&[2, 3, 4], &[&[2, 3, 4], &[4]]);
        assert_eq!((w.extents, w.steps), (vec![6, 4], vec![vec![4, 0], vec![1, 1]]));
        let w = walk(&[2, 3, 4], &[&[2, 1, 4]]);
        assert_eq!((w.extents, w.steps), (vec![2, 3, 4], vec![vec![4], vec![0], vec![1]]));
        let w = walk(&[1, 1], &[&[1]]);
        assert_eq!((w.extents, w.steps), (vec![1], vec![vec![0]]));
        assert_eq!(broadcast_steps(&[2, 3], &[2]), None);
        assert_eq!(broadcast_steps(&[3], &[1, 3]), None);
        let odd: Vec<usize> = vec![2; 9];
        let steps: Vec<i64> = (0..9).map(|i| 1 << i).collect();
        assert!(Walk::new(&odd, &[steps]).axes(Check("x")).unwrap_err().what.contains("9 axes"));
        assert!(grid(Check("x"), usize::MAX, 4).is_err());
        assert_eq!(grid(Check("x"), 0, 4), Ok(0));
    }
}
