//! Launches that move elements: copies of slices, joins, broadcasts and transposed tensors.

use super::index::{Axis, MAX_AXES, Walk, broadcast_steps, grid, row_major};
use super::launch::{Check, DeviceInfo, Launch, LaunchError, View, ViewMut};
use super::source::Kernel;

const FILE: &str = "copy.cu";

/// Threads of a block.
const THREADS: u32 = 256;

/// Words that a thread moves.
const WORDS: usize = 4;

/// Words along each side of a tile.
const TILE: usize = 32;

/// Extents below this are not worth a tile.
const NARROW: usize = 16;

/// Words of 1, 2, 4, 8 and 16 bytes in `common.cuh`.
pub(super) const WIDTHS: [(u64, &str); 5] = [(16, "Pack"), (8, "u64"), (4, "u32"), (2, "u16"), (1, "u8")];

/// The word of a width.
pub(super) fn word(width: u64) -> &'static str {
    WIDTHS.iter().find(|(w, _)| *w == width).map_or("u8", |(_, name)| name)
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct CopyArguments {
    x: u64,
    y: u64,
    axis: [Axis; MAX_AXES],
    from: [i64; MAX_AXES],
    to: [i64; MAX_AXES],
    words: i64,
    tail: i64,
    rank: i64,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct TransposeArguments {
    x: u64,
    y: u64,
    column_tiles: Axis,
    row_tiles: Axis,
    axis: [Axis; MAX_AXES],
    from: [i64; MAX_AXES],
    to: [i64; MAX_AXES],
    rows: i64,
    columns: i64,
    row_step: i64,
    column_step: i64,
    rank: i64,
}

fn walk_kernel(width: u64) -> Kernel {
    let name = format!("copy_walk_{}", width * 8);
    Kernel::new(FILE, name, THREADS, "CopyArguments", &format!("copy_walk<{}>", word(width)))
}

/// A kernel for tiles of words with `m` elements of `size` bytes.
fn tile_kernel(size: u64, m: u64) -> Kernel {
    let name = format!("transpose_tiles_{}_{m}", size * 8);
    Kernel::new(FILE, name, THREADS, "TransposeArguments", &format!("transpose_tiles<{}, {m}>", word(size * m)))
}

pub(super) fn catalog() -> Vec<Kernel> {
    let walks = WIDTHS.iter().map(|(width, _)| walk_kernel(*width));
    walks.chain([(1, 1), (1, 4), (2, 1), (2, 2), (4, 1), (8, 1)].map(|(size, m)| tile_kernel(size, m))).collect()
}

/// Elements of `shape` from one place to another; steps are in elements.
struct Move<'a> {
    from: u64,
    to: u64,
    size: u64,
    shape: &'a [usize],
    from_steps: Vec<i64>,
    to_steps: Vec<i64>,
}

impl Move<'_> {
    fn launch(self, c: Check, info: &DeviceInfo) -> Result<Launch, LaunchError> {
        let walk = Walk::new(self.shape, &[self.from_steps.clone(), self.to_steps.clone()]);
        match self.tiles(&walk, c)? {
            Some(launch) => Ok(launch),
            None => self.walk(walk, c, info),
        }
    }

    /// Word by word: the widest words that everything is a multiple of.
    fn walk(&self, mut walk: Walk, c: Check, info: &DeviceInfo) -> Result<Launch, LaunchError> {
        let last = walk.rank() - 1;
        let side_by_side = walk.steps[last] == [1, 1] || walk.extents == [1];
        let bytes = walk.extents[last] as u64 * self.size;
        let whole = walk.rank() == 1;
        let fits = |width: u64| {
            let steps =
                walk.steps[..last].iter().flatten().all(|s| (s.unsigned_abs() * self.size).is_multiple_of(width));
            let length = (whole && width == 16) || bytes.is_multiple_of(width);
            length && steps && self.from.is_multiple_of(width) && self.to.is_multiple_of(width)
        };
        let width = WIDTHS
            .iter()
            .map(|(width, _)| *width)
            .filter(|width| *width == self.size || (side_by_side && *width > self.size))
            .find(|width| fits(*width))
            .unwrap_or(self.size);
        let mut tail = 0;
        if width != self.size {
            walk.extents[last] = (bytes / width) as usize;
            tail = bytes % width;
            for s in walk.steps[..last].iter_mut().flatten() {
                *s = *s * self.size as i64 / width as i64;
            }
            walk.steps[last] = vec![1, 1];
        }
        let words: usize = walk.extents.iter().product();
        let mut a = CopyArguments {
            x: self.from,
            y: self.to,
            axis: walk.axes(c)?,
            from: [0; MAX_AXES],
            to: [0; MAX_AXES],
            words: words as i64,
            tail: tail as i64,
            rank: walk.rank() as i64,
        };
        for (d, s) in walk.steps.iter().enumerate() {
            (a.from[d], a.to[d]) = (s[0], s[1]);
        }
        let mut block = THREADS;
        while block > 64 && words.div_ceil(block as usize * WORDS) < info.multiprocessors as usize {
            block /= 2;
        }
        let grid = grid(c, words, block as usize * WORDS)?.max(u32::from(tail > 0));
        Ok(Launch::new(walk_kernel(width), grid, block, 0, &a))
    }

    /// By tiles, where the operand's last axis is not that of the result.
    fn tiles(&self, walk: &Walk, c: Check) -> Result<Option<Launch>, LaunchError> {
        let last = walk.rank() - 1;
        let Some(j) = walk.steps.iter().position(|s| s[0] == 1) else { return Ok(None) };
        let (rows, columns) = (walk.extents[last], walk.extents[j]);
        if j == last || walk.steps[last][1] != 1 || rows < NARROW || columns < NARROW {
            return Ok(None);
        }
        let outer: Vec<usize> = (0..last).filter(|d| *d != j).collect();
        let (row_step, column_step) = (walk.steps[last][0], walk.steps[j][1]);
        let m = if self.size < 4 { 4 / self.size } else { 1 };
        let even = |s: i64| s % m as i64 == 0;
        let wide = m > 1
            && (rows as u64).is_multiple_of(m)
            && (columns as u64).is_multiple_of(m)
            && self.from.is_multiple_of(4)
            && self.to.is_multiple_of(4)
            && even(row_step)
            && even(column_step)
            && outer.iter().all(|d| walk.steps[*d].iter().all(|s| even(*s)));
        let m = if wide { m } else { 1 };
        let side = TILE * m as usize;
        let (row_tiles, column_tiles) = (rows.div_ceil(side), columns.div_ceil(side));
        let beside = Walk {
            extents: outer.iter().map(|d| walk.extents[*d]).collect(),
            steps: outer.iter().map(|d| walk.steps[*d].clone()).collect(),
        };
        let mut a = TransposeArguments {
            x: self.from,
            y: self.to,
            column_tiles: Axis::new(column_tiles),
            row_tiles: Axis::new(row_tiles),
            axis: beside.axes(c)?,
            from: [0; MAX_AXES],
            to: [0; MAX_AXES],
            rows: rows as i64,
            columns: columns as i64,
            row_step,
            column_step,
            rank: beside.rank() as i64,
        };
        for (d, s) in beside.steps.iter().enumerate() {
            (a.from[d], a.to[d]) = (s[0], s[1]);
        }
        let tiles = beside.extents.iter().product::<usize>() * row_tiles * column_tiles;
        Ok(Some(Launch::new(tile_kernel(self.size, m), grid(c, tiles, 1)?, THREADS, 0, &a)))
    }
}

/// An axis that may count from the end.
pub(super) fn resolve_axis(c: Check, axis: i64, shape: &[usize]) -> Result<usize, LaunchError> {
    let a = if axis < 0 { axis.saturating_add(shape.len() as i64) } else { axis };
    match usize::try_from(a) {
        Ok(a) if a < shape.len() => Ok(a),
        _ => c.fail(format!("no axis {axis} in a tensor {shape:?}")),
    }
}

fn checked(c: Check, x: &View<'_>, out: &ViewMut<'_>, shape: &[usize]) -> Result<(), LaunchError> {
    c.view("x", x)?;
    c.typed("the result", out, x.dtype, shape)?;
    c.apart(("x", x), ("the result", out))
}

fn moved<'a>(x: &View<'_>, out: &ViewMut<'a>, from_steps: Vec<i64>) -> Move<'a> {
    let to_steps = row_major(out.shape);
    Move { from: x.address, to: out.address, size: x.dtype.size() as u64, shape: out.shape, from_steps, to_steps }
}

/// The same elements in the same order; the shapes may differ.
pub fn reshape(x: &View<'_>, out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    let c = Check("reshape");
    let same = crate::tensor::byte_len(x.dtype, x.shape) == crate::tensor::byte_len(out.dtype, out.shape);
    c.that(same, || format!("x {}{:?} cannot become {}{:?}", x.dtype, x.shape, out.dtype, out.shape))?;
    checked(c, x, out, out.shape)?;
    moved(x, out, row_major(out.shape)).launch(c, info)
}

/// Result axis i is operand axis `perm[i]`.
pub fn transpose(x: &View<'_>, perm: &[i64], out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    let c = Check("transpose");
    let axes = perm.iter().map(|&p| resolve_axis(c, p, x.shape)).collect::<Result<Vec<_>, _>>()?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    c.that(sorted.into_iter().eq(0..x.shape.len()), || {
        format!("{perm:?} is not a permutation of the axes of {:?}", x.shape)
    })?;
    let shape: Vec<usize> = axes.iter().map(|&a| x.shape[a]).collect();
    checked(c, x, out, &shape)?;
    let steps = row_major(x.shape);
    moved(x, out, axes.iter().map(|&a| steps[a]).collect()).launch(c, info)
}

/// Broadcasts to the shape of the result.
pub fn expand(x: &View<'_>, out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    let c = Check("expand");
    let Some(steps) = broadcast_steps(out.shape, x.shape) else {
        return c.fail(format!("x {:?} does not broadcast to {:?}", x.shape, out.shape));
    };
    checked(c, x, out, out.shape)?;
    moved(x, out, steps).launch(c, info)
}

/// Elements start, start + step, ... below end (above end for a negative step) along one axis.
///
/// `start` and `end` are positions, clamped to the extent; they do not count from the end.
pub fn slice(
    x: &View<'_>,
    axis: i64,
    (start, end, step): (i64, i64, i64),
    out: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    let c = Check("slice");
    let axis = resolve_axis(c, axis, x.shape)?;
    let n = x.shape[axis] as i64;
    c.that(step != 0, || "the step is 0".to_owned())?;
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let (first, limit) = (start.clamp(low, high), end.clamp(low, high));
    let distance = if step > 0 { limit - first } else { first - limit };
    let count = distance.max(0).unsigned_abs().div_ceil(step.unsigned_abs());
    let mut shape = x.shape.to_vec();
    shape[axis] = count as usize;
    checked(c, x, out, &shape)?;
    let mut steps = row_major(x.shape);
    let mut m = moved(x, out, vec![]);
    if count > 0 {
        m.from = m.from.wrapping_add_signed(steps[axis] * first * x.dtype.size() as i64);
    }
    steps[axis] = steps[axis].saturating_mul(step);
    m.from_steps = steps;
    m.launch(c, info)
}

/// Joins along an axis: one launch for each operand that has elements.
pub fn concat(x: &[View<'_>], axis: i64, out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Vec<Launch>, LaunchError> {
    let c = Check("concat");
    let Some(first) = x.first() else { return c.fail("no operand") };
    let axis = resolve_axis(c, axis, first.shape)?;
    let mut shape = first.shape.to_vec();
    shape[axis] = 0;
    for (i, v) in x.iter().enumerate() {
        let name = format!("operand {i}");
        c.view(&name, v)?;
        let fits = v.shape.len() == shape.len()
            && v.shape.iter().zip(&shape).enumerate().all(|(i, (a, b))| i == axis || a == b);
        c.that(fits && v.dtype == first.dtype, || {
            format!("{name} {}{:?} does not join {}{:?}", v.dtype, v.shape, first.dtype, first.shape)
        })?;
        let Some(sum) = shape[axis].checked_add(v.shape[axis]) else { return c.fail("the result is too large") };
        shape[axis] = sum;
    }
    c.typed("the result", out, first.dtype, &shape)?;
    let (mut launches, mut at) = (vec![], 0);
    let to_steps = row_major(out.shape);
    for (i, v) in x.iter().enumerate() {
        c.apart((&format!("operand {i}"), v), ("the result", out))?;
        if !v.is_empty() {
            let size = v.dtype.size() as u64;
            let to = out.address + at as u64 * to_steps[axis] as u64 * size;
            let from_steps = row_major(v.shape);
            let m = Move { from: v.address, to, size, shape: v.shape, from_steps, to_steps: to_steps.clone() };
            launches.push(m.launch(c, info)?);
        }
        at += v.shape[axis];
    }
    Ok(launches)
}

#[cfg(test)]
mod tests {
    use super::super::launch::view_at as view;
    use super::*;
    use crate::dtype::DType;

    const INFO: fn() -> DeviceInfo = DeviceInfo::h200;
    const X: u64 = 1 << 30;
    const Y: u64 = 1 << 40;

    fn turned(dtype: DType, shape: &[usize], perm: &[i64]) -> Launch {
        let to: Vec<usize> = perm.iter().map(|&p| shape[p as usize]).collect();
        transpose(&view(X, dtype, shape), perm, &view(Y, dtype, &to), &INFO()).unwrap()
    }

    #[test]
    fn a_kernel_is_chosen_by_axes_and_alignment() {
        let name = |d, shape: &[usize], perm: &[i64]| turned(d, shape, perm).kernel.name;
        // The last axis stays.
        assert_eq!(name(DType::BF16, &[4, 1024, 32, 128], &[0, 2, 1, 3]), "copy_walk_128");
        assert_eq!(name(DType::BF16, &[4, 1024, 32, 6], &[0, 2, 1, 3]), "copy_walk_32");
        assert_eq!(name(DType::BF16, &[8192, 8192], &[1, 0]), "transpose_tiles_16_2");
        assert_eq!(name(DType::BF16, &[8192, 8191], &[1, 0]), "transpose_tiles_16_1");
        assert_eq!(name(DType::U8, &[64, 32, 8], &[2, 1, 0]), "copy_walk_8");
        assert_eq!(name(DType::U8, &[64, 3, 32], &[2, 1, 0]), "transpose_tiles_8_4");
        assert_eq!(name(DType::F32, &[2, 64, 32], &[0, 2, 1]), "transpose_tiles_32_1");
        assert_eq!(name(DType::I64, &[64, 32], &[1, 0]), "transpose_tiles_64_1");
        assert_eq!(turned(DType::BF16, &[2, 100, 70], &[0, 2, 1]).grid, 2 * 2 * 2);
        assert_eq!(turned(DType::F32, &[2, 100, 70], &[0, 2, 1]).grid, 2 * 4 * 3);
        // Bytes of one run: whole words and a tail.
        let (n, m) = ([33usize], [3usize, 11]);
        let l = reshape(&view(X, DType::U8, &n), &view(Y, DType::U8, &m), &INFO()).unwrap();
        assert_eq!((l.kernel.name.as_str(), l.grid), ("copy_walk_128", 1));
        let l = reshape(&view(X + 1, DType::U8, &n), &view(Y, DType::U8, &m), &INFO()).unwrap();
        assert_eq!(l.kernel.name, "copy_walk_8");
        let few = [3usize];
        let l = reshape(&view(X, DType::U8, &few), &view(Y, DType::U8, &few), &INFO()).unwrap();
        assert_eq!((l.kernel.name.as_str(), l.grid), ("copy_walk_128", 1));
        let names: Vec<String> = catalog().into_iter().map(|k| k.name).collect();
        for (d, shape) in [(DType::U8, [64, 64]), (DType::F16, [64, 63]), (DType::F64, [64, 64]), (DType::I32, [4, 4])]
        {
            assert!(names.contains(&name(d, &shape, &[1, 0])));
        }
    }

    #[test]
    fn wrong_operands_are_refused() {
        let s = [4usize, 6];
        let (x, flat) = (view(X, DType::F32, &s), [24usize]);
        let e = |r: Result<Launch, LaunchError>| r.unwrap_err().to_string();
        let out = view(Y, DType::F32, &s);
        assert!(e(transpose(&x, &[0, 0], &out, &INFO())).contains("not a permutation"));
        assert!(e(transpose(&x, &[0, 2], &out, &INFO())).contains("no axis 2"));
        assert_eq!(e(transpose(&x, &[1, 0], &out, &INFO())), "transpose: the result is f32[4, 6], expected f32[6, 4]");
        assert!(e(reshape(&x, &view(Y, DType::F16, &s), &INFO())).contains("cannot become f16"));
        assert!(e(reshape(&x, &view(X + 16, DType::F32, &flat), &INFO())).contains("share memory"));
        assert!(e(expand(&x, &view(Y, DType::F32, &flat), &INFO())).contains("does not broadcast"));
        assert!(e(slice(&x, 0, (0, 4, 0), &out, &INFO())).contains("step is 0"));
        assert!(e(slice(&x, 2, (0, 4, 1), &out, &INFO())).contains("no axis 2"));
        assert!(e(slice(&x, 0, (1, 4, 1), &out, &INFO())).contains("expected f32[3, 6]"));
        let cut = |range, n: usize| slice(&x, 1, range, &view(Y, DType::F32, &[4, n]), &INFO()).map(|l| l.grid);
        assert_eq!(cut((5, -1, -2), 3), Ok(1));
        assert_eq!(cut((3, 2, 1), 0), Ok(0));
        assert_eq!(cut((i64::MIN, i64::MAX, i64::MAX), 1), Ok(1));
        assert_eq!(cut((i64::MAX, i64::MIN, i64::MIN), 1), Ok(1));
        let join = |x: &[View<'_>], axis, out: &[usize]| {
            concat(x, axis, &view(Y, DType::F32, out), &INFO()).map(|l| l.len()).map_err(|e| e.to_string())
        };
        let none = [0usize, 6];
        assert_eq!(join(&[x, view(X, DType::F32, &none), x], 0, &[8, 6]), Ok(2));
        assert!(join(&[], 0, &[8, 6]).unwrap_err().contains("no operand"));
        assert!(join(&[x, view(X, DType::F32, &flat)], 0, &[8, 6]).unwrap_err().contains("does not join"));
        assert!(join(&[x, x], 0, &[8, 7]).unwrap_err().contains("expected f32[8, 6]"));
        let half = view(Y + 48, DType::F32, &s);
        assert!(join(&[x, half], 0, &[8, 6]).unwrap_err().contains("operand 1 and the result share memory"));
    }
}
