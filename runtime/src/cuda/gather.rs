//! Launches that look entries up by index.
//!
//! Indices are in device memory, so that a launcher cannot check them. The kernel gives zeros for an index that is out of range, and
//! leaves its position in a status word: the caller sets it to [`NO_ERROR`] before the launch and reads it after.

use super::copy::{WIDTHS, resolve_axis, word};
use super::index::{Axis, blocks};
use super::launch::{Check, DeviceInfo, Launch, LaunchError, View, ViewMut};
use super::source::Kernel;
use crate::dtype::DType;

/// What the status word, of type u64, holds where every index was in range: all bits set. Anything else is the smallest
/// position of an index that was not.
pub const NO_ERROR: u64 = u64::MAX;

const THREADS: u32 = 256;

/// Words that a thread moves.
const WORDS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Arguments {
    data: u64,
    indices: u64,
    y: u64,
    status: u64,
    words: Axis,
    n: Axis,
    total: i64,
    extent: i64,
    low: i64,
    rows: i64,
    wide: i64,
}

fn kernel(width: u64) -> Kernel {
    let name = format!("gather_entries_{}", width * 8);
    Kernel::new("gather.cu", name, THREADS, "GatherArguments", &format!("gather_entries<{}>", word(width)))
}

pub(super) fn catalog() -> Vec<Kernel> {
    WIDTHS.iter().map(|(width, _)| kernel(*width)).collect()
}

/// Which of `extent` entries the data holds: all of an axis, or those of one rank.
struct Held {
    extent: usize,
    low: usize,
}

fn launch(
    c: Check,
    (data, axis): (&View<'_>, usize),
    indices: &View<'_>,
    held: &Held,
    status: &ViewMut<'_>,
    out: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    c.view("data", data)?;
    c.view("indices", indices)?;
    c.that(matches!(indices.dtype, DType::I32 | DType::I64), || {
        format!("indices are of type {}; i32 and i64 are supported", indices.dtype)
    })?;
    let shape = [&data.shape[..axis], indices.shape, &data.shape[axis + 1..]].concat();
    c.typed("the result", out, data.dtype, &shape)?;
    c.typed("the status", status, DType::U64, &[])?;
    for (name, v) in [("data", data), ("indices", indices)] {
        c.apart((name, v), ("the result", out))?;
        c.apart((name, v), ("the status", status))?;
    }
    c.apart(("the result", out), ("the status", status))?;
    let entry = data.shape[axis + 1..].iter().product::<usize>() * data.dtype.size();
    let fits = |w: &u64| {
        entry.is_multiple_of(*w as usize) && data.address.is_multiple_of(*w) && out.address.is_multiple_of(*w)
    };
    let width = WIDTHS.iter().map(|(w, _)| *w).find(fits).unwrap_or(1);
    let words = entry / width as usize;
    let total = if out.is_empty() { 0 } else { out.len() * data.dtype.size() / width as usize };
    let a = Arguments {
        data: data.address,
        indices: indices.address,
        y: out.address,
        status: status.address,
        words: Axis::new(words),
        n: Axis::new(indices.len()),
        total: total as i64,
        extent: held.extent as i64,
        low: held.low as i64,
        rows: data.shape[axis] as i64,
        wide: i64::from(indices.dtype == DType::I64),
    };
    let (grid, block) = blocks(c, total, WORDS, (THREADS, 64), info)?;
    Ok(Launch::new(kernel(width), grid, block, 0, &a))
}

/// (data, indices): entries of data along an axis; negative indices count from the end.
pub fn gather(
    data: &View<'_>,
    indices: &View<'_>,
    axis: i64,
    status: &ViewMut<'_>,
    out: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    let c = Check("gather");
    let axis = resolve_axis(c, axis, data.shape)?;
    let held = Held { extent: data.shape[axis], low: 0 };
    launch(c, (data, axis), indices, &held, status, out, info)
}

/// (rows of this rank, indices): rows of a table that is split evenly over `size` ranks, of which this is rank `index`; rows of
/// others are zero.
pub fn vocab_gather(
    table: &View<'_>,
    indices: &View<'_>,
    (index, size): (usize, usize),
    status: &ViewMut<'_>,
    out: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    let c = Check("vocab_gather");
    let axis = resolve_axis(c, 0, table.shape)?;
    c.that(index < size, || format!("there is no rank {index} of {size}"))?;
    let extent = table.shape[axis].checked_mul(size).filter(|n| i64::try_from(*n).is_ok());
    let Some(extent) = extent else { return c.fail(format!("a table of {size} times {:?} is too large", table.shape)) };
    let held = Held { extent, low: index * table.shape[axis] };
    launch(c, (table, axis), indices, &held, status, out, info)
}

#[cfg(test)]
mod tests {
    use super::super::launch::view_at as view;
    use super::*;

    const X: u64 = 1 << 30;
    const I: u64 = 1 << 35;
    const Y: u64 = 1 << 40;
    const STATUS: View<'static> = View { address: 1 << 25, dtype: DType::U64, shape: &[], bytes: 8 };

    #[test]
    fn words_are_as_wide_as_entries_allow() {
        let pick = |x: &[usize], shift: u64| {
            let (i, y) = ([5usize], [5, x[1]]);
            let (data, out) = (view(X + shift, DType::BF16, x), view(Y, DType::BF16, &y));
            let l = gather(&data, &view(I, DType::I64, &i), 0, &STATUS, &out, &DeviceInfo::h200()).unwrap();
            assert!(catalog().contains(&l.kernel));
            (l.kernel.name, l.grid, l.block)
        };
        assert_eq!(pick(&[100, 8192], 0), ("gather_entries_128".to_owned(), 20, 64));
        assert_eq!(pick(&[100, 4], 0).0, "gather_entries_64");
        assert_eq!(pick(&[100, 6], 0).0, "gather_entries_32");
        assert_eq!(pick(&[100, 6], 2).0, "gather_entries_16");
        assert_eq!(pick(&[100, 0], 0).1, 0);
    }

    #[test]
    fn wrong_operands_are_refused() {
        let (s, n, y) = ([10usize, 4], [3usize], [3usize, 4]);
        let (data, i, out) = (view(X, DType::F32, &s), view(I, DType::I32, &n), view(Y, DType::F32, &y));
        let info = DeviceInfo::h200();
        let e = |r: Result<Launch, LaunchError>| r.unwrap_err().to_string();
        assert!(gather(&data, &i, 0, &STATUS, &out, &info).is_ok());
        assert!(e(gather(&data, &i, 2, &STATUS, &out, &info)).contains("no axis 2"));
        assert!(e(gather(&data, &i, 1, &STATUS, &out, &info)).contains("expected f32[10, 3]"));
        assert!(e(gather(&data, &view(I, DType::U8, &n), 0, &STATUS, &out, &info)).contains("i32 and i64"));
        assert!(e(gather(&data, &i, 0, &view(8, DType::I64, &[]), &out, &info)).contains("the status is i64[]"));
        assert!(e(gather(&data, &i, 0, &STATUS, &view(X + 16, DType::F32, &y), &info)).contains("share memory"));
        assert!(e(vocab_gather(&data, &i, (2, 2), &STATUS, &out, &info)).contains("no rank 2 of 2"));
        assert!(e(vocab_gather(&data, &i, (0, usize::MAX), &STATUS, &out, &info)).contains("too large"));
        assert!(e(vocab_gather(&view(X, DType::F32, &[]), &i, (0, 1), &STATUS, &out, &info)).contains("no axis 0"));
    }
}
