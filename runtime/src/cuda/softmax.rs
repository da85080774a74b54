//! Launches of soft-max.

use super::copy::resolve_axis;
use super::index::{blocks, grid};
use super::launch::{Check, DeviceInfo, Launch, LaunchError, View, ViewMut, type_name};
use super::source::Kernel;
use crate::dtype::DType;

const FILE: &str = "softmax.cu";

/// Threads of a block whose warps have a row each, and of one that computes columns.
const WARPS_BLOCK: u32 = 128;

/// Threads of a block with a row.
const ROW_BLOCKS: [u32; 4] = [128, 256, 512, 1024];

/// Units of a row that a thread keeps.
const KEPT: [usize; 3] = [1, 2, 4];

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Arguments {
    x: u64,
    y: u64,
    rows: i64,
    n: i64,
    inner: i64,
    safe: i64,
}

#[derive(Clone, Copy)]
enum Path {
    /// A row in the registers of a warp: units of `v` elements, of which a thread keeps `k`.
    Warp { v: usize, k: usize },
    /// A row in the registers of a block.
    Block { v: usize, k: usize, threads: u32 },
    /// A row that is read twice.
    Long { v: usize },
    /// Another axis than the last.
    Columns,
}

fn kernel(dtype: DType, path: Path) -> Kernel {
    let t = type_name(dtype);
    let (name, threads, body) = match path {
        Path::Warp { v, k } => {
            (format!("softmax_{dtype}_warp_x{v}_{k}"), WARPS_BLOCK, format!("softmax_rows<{t}, {v}, {k}, false>"))
        }
        Path::Block { v, k, threads } => {
            let name = format!("softmax_{dtype}_block{threads}_x{v}_{k}");
            (name, threads, format!("softmax_rows<{t}, {v}, {k}, true>"))
        }
        Path::Long { v } => (format!("softmax_{dtype}_long_x{v}"), 1024, format!("softmax_long<{t}, {v}>")),
        Path::Columns => (format!("softmax_{dtype}_columns"), WARPS_BLOCK, format!("softmax_columns<{t}>")),
    };
    Kernel::new(FILE, name, threads, "SoftmaxArguments", &body)
}

/// The paths of rows in units of `v` elements, in the order in which they are tried, with the longest row of each.
fn paths(v: usize) -> Vec<(Path, usize)> {
    let warps = KEPT.map(|k| (Path::Warp { v, k }, 32 * v * k));
    let blocks = ROW_BLOCKS.map(|threads| (Path::Block { v, k: 4, threads }, threads as usize * v * 4));
    warps.into_iter().chain(blocks).collect()
}

pub(super) fn catalog() -> Vec<Kernel> {
    let mut out = vec![];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for v in [16 / dtype.size(), 1] {
            out.extend(paths(v).into_iter().map(|(p, _)| kernel(dtype, p)));
            out.push(kernel(dtype, Path::Long { v }));
        }
        out.push(kernel(dtype, Path::Columns));
    }
    out
}

/// Soft-max along an axis; `safe` gives zeros where every element is -infinity. The result may have x's memory.
pub fn softmax(
    x: &View<'_>,
    axis: i64,
    safe: bool,
    out: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    let c = Check("softmax");
    c.float("x", x)?;
    c.view("x", x)?;
    c.typed("the result", out, x.dtype, x.shape)?;
    if x.address != out.address {
        c.apart(("x", x), ("the result", out))?;
    }
    let axis = resolve_axis(c, axis, x.shape)?;
    let n = x.shape[axis];
    let inner: usize = if x.is_empty() { 1 } else { x.shape[axis + 1..].iter().product() };
    let rows = if x.is_empty() { 0 } else { x.len() / n };
    let a = Arguments {
        x: x.address,
        y: out.address,
        rows: rows as i64,
        n: n as i64,
        inner: inner as i64,
        safe: i64::from(safe),
    };
    if inner > 1 {
        let (grid, block) = blocks(c, rows, 1, (WARPS_BLOCK, WARPS_BLOCK / 2), info)?;
        return Ok(Launch::new(kernel(x.dtype, Path::Columns), grid, block, 0, &a));
    }
    let v = 16 / x.dtype.size();
    let packs = n.is_multiple_of(v) && x.address.is_multiple_of(16) && out.address.is_multiple_of(16);
    let v = if packs { v } else { 1 };
    let path = paths(v).into_iter().find(|(_, longest)| n <= *longest).map_or(Path::Long { v }, |(p, _)| p);
    let (block, rows_per_block) = match path {
        Path::Warp { .. } => (WARPS_BLOCK, WARPS_BLOCK as usize / 32),
        Path::Block { threads, .. } => (threads, 1),
        _ => (1024, 1),
    };
    Ok(Launch::new(kernel(x.dtype, path), grid(c, rows, rows_per_block)?, block, 0, &a))
}

#[cfg(test)]
mod tests {
    use super::super::launch::view_at as view;
    use super::*;

    const X: u64 = 1 << 30;
    const Y: u64 = 1 << 40;

    fn launch(shape: &[usize], axis: i64, shift: u64) -> Result<Launch, LaunchError> {
        let d = DType::BF16;
        softmax(&view(X + shift, d, shape), axis, false, &view(Y, d, shape), &DeviceInfo::h200())
    }

    #[test]
    fn a_path_is_chosen_by_length() {
        let pick = |shape: &[usize], axis, shift| {
            let l = launch(shape, axis, shift).unwrap();
            assert!(catalog().contains(&l.kernel), "{}", l.kernel.name);
            (l.kernel.name.trim_start_matches("softmax_bf16_").to_owned(), l.grid, l.block)
        };
        let is = |name: &str, grid, block| (name.to_owned(), grid, block);
        assert_eq!(pick(&[9, 64], -1, 0), is("warp_x8_1", 3, 128));
        assert_eq!(pick(&[9, 1024], 1, 0), is("warp_x8_4", 3, 128));
        assert_eq!(pick(&[9, 1032], 1, 0), is("block128_x8_4", 9, 128));
        assert_eq!(pick(&[4096, 4096], 1, 0), is("block128_x8_4", 4096, 128));
        assert_eq!(pick(&[9, 32768], 1, 0), is("block1024_x8_4", 9, 1024));
        assert_eq!(pick(&[9, 32776], 1, 0), is("long_x8", 9, 1024));
        assert_eq!(pick(&[9, 65], 1, 0), is("warp_x1_4", 3, 128));
        assert_eq!(pick(&[9, 64], 1, 2), is("warp_x1_2", 3, 128));
        assert_eq!(pick(&[9, 4097], 1, 0), is("long_x1", 9, 1024));
        assert_eq!(pick(&[9, 7, 3], 1, 0), is("columns", 1, 64));
        assert_eq!(pick(&[9, 7, 1], 1, 0), is("warp_x1_1", 3, 128));
        assert_eq!(pick(&[0, 7], 1, 0).1, 0);
        assert_eq!(pick(&[7, 0], 1, 0).1, 0);
    }

    #[test]
    fn wrong_operands_are_refused() {
        let e = |r: Result<Launch, LaunchError>| r.unwrap_err().to_string();
        assert!(e(launch(&[2, 3], 2, 0)).contains("no axis 2"));
        assert!(e(launch(&[], 0, 0)).contains("no axis 0"));
        let s = [2usize, 3];
        let (d, info) = (DType::F64, DeviceInfo::h200());
        assert!(e(softmax(&view(X, d, &s), 0, false, &view(Y, d, &s), &info)).contains("type f64"));
        let f = DType::F32;
        assert!(e(softmax(&view(X, f, &s), 0, false, &view(X + 4, f, &s), &info)).contains("share memory"));
        assert!(softmax(&view(X, f, &s), 0, true, &view(X, f, &s), &info).is_ok());
    }
}
