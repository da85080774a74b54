//! Launches of rotary embeddings.

use super::index::{Axis, MAX_AXES, Walk, blocks, broadcast_steps, row_major};
use super::launch::{Check, DeviceInfo, Launch, LaunchError, View, ViewMut, type_code, type_name};
use super::source::Kernel;
use crate::dtype::DType;

const THREADS: u32 = 128;

/// Heads that a thread rotates by the same angles.
const HEADS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Arguments {
    x: u64,
    cos: u64,
    sin: u64,
    y: u64,
    per_row: Axis,
    axis: [Axis; MAX_AXES],
    step: [i64; MAX_AXES],
    cos_step: [i64; MAX_AXES],
    sin_step: [i64; MAX_AXES],
    rank: i64,
    work: i64,
    heads: i64,
    head_step: i64,
    half: i64,
    width: i64,
    cos_last: i64,
    sin_last: i64,
    cos_type: u32,
    sin_type: u32,
}

fn kernel(dtype: DType, v: usize, interleaved: bool) -> Kernel {
    let layout = if interleaved { "interleaved" } else { "halves" };
    let name = format!("rotary_{dtype}_{layout}_x{v}");
    let body = format!("rotate<{}, {v}, {HEADS}, {interleaved}>", type_name(dtype));
    Kernel::new("rotary.cu", name, THREADS, "RotaryArguments", &body)
}

pub(super) fn catalog() -> Vec<Kernel> {
    let mut out = vec![];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for interleaved in [false, true] {
            out.extend([16 / dtype.size(), 1].map(|v| kernel(dtype, v, interleaved)));
        }
    }
    out
}

/// (x, cos, sin): rotates pairs of the first `rotated` elements of the last axis, and copies the others; the operator of plans rotates
/// all of them. cos and sin broadcast to half of `rotated`, and may have other element types than x. The result may have x's memory.
pub fn rotary(
    (x, cos, sin): (&View<'_>, &View<'_>, &View<'_>),
    interleaved: bool,
    rotated: usize,
    out: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    let c = Check("rotary");
    for (name, v) in [("x", x), ("cos", cos), ("sin", sin)] {
        c.float(name, v)?;
        c.view(name, v)?;
    }
    c.typed("the result", out, x.dtype, x.shape)?;
    if x.address != out.address {
        c.apart(("x", x), ("the result", out))?;
    }
    c.apart(("cos", cos), ("the result", out))?;
    c.apart(("sin", sin), ("the result", out))?;
    let Some((&width, lead)) = x.shape.split_last() else { return c.fail("x has no axis") };
    c.that(rotated.is_multiple_of(2) && rotated <= width, || {
        format!("{rotated} elements of {width} cannot be rotated in pairs")
    })?;
    let half = rotated / 2;
    let pairs = [lead, &[half]].concat();
    let spread = |name: &str, v: &View<'_>| match broadcast_steps(&pairs, v.shape) {
        Some(mut steps) => Ok((steps.pop().unwrap_or(0), steps)),
        None => c.fail(format!("{name} {:?} does not broadcast to {pairs:?}", v.shape)),
    };
    let ((cos_last, cos_steps), (sin_last, sin_steps)) = (spread("cos", cos)?, spread("sin", sin)?);
    let mut x_steps = row_major(x.shape);
    x_steps.pop();
    let mut walk = Walk::new(lead, &[x_steps, cos_steps, sin_steps]);
    // The innermost axis along which the angles stay.
    let still = (0..walk.rank()).rev().find(|&d| walk.extents[d] > 1 && walk.steps[d][1..] == [0, 0]);
    let (heads, head_step) = match still {
        Some(d) => (walk.extents.remove(d), walk.steps.remove(d)[0]),
        None => (1, 0),
    };
    let v = 16 / x.dtype.size();
    let even = |n: usize| n.is_multiple_of(v);
    let steps_are_even = walk.steps.iter().flatten().chain([&head_step]).all(|s| s % v as i64 == 0);
    let aligned = [x, cos, sin, out].iter().all(|w| w.address.is_multiple_of(16));
    // A vector of one angle does not change along the row.
    let packs = even(half) && even(width) && aligned && steps_are_even && (cos_last, sin_last) == (1, 1) && half > 0;
    let v = if packs { v } else { 1 };
    let per_row = half / v + ((width - rotated) / v).div_ceil(2);
    let rows: usize = walk.extents.iter().product();
    let work = if x.is_empty() { 0 } else { rows * per_row * heads.div_ceil(HEADS) };
    let mut a = Arguments {
        x: x.address,
        cos: cos.address,
        sin: sin.address,
        y: out.address,
        per_row: Axis::new(per_row),
        axis: walk.axes(c)?,
        step: [0; MAX_AXES],
        cos_step: [0; MAX_AXES],
        sin_step: [0; MAX_AXES],
        rank: walk.rank() as i64,
        work: work as i64,
        heads: heads as i64,
        head_step,
        half: half as i64,
        width: width as i64,
        cos_last,
        sin_last,
        cos_type: type_code(cos.dtype),
        sin_type: type_code(sin.dtype),
    };
    for (d, s) in walk.steps.iter().enumerate() {
        (a.step[d], a.cos_step[d], a.sin_step[d]) = (s[0], s[1], s[2]);
    }
    let (grid, block) = blocks(c, work, 1, (THREADS, THREADS / 2), info)?;
    Ok(Launch::new(kernel(x.dtype, v, interleaved), grid, block, 0, &a))
}

#[cfg(test)]
mod tests {
    use super::super::launch::view_at as view;
    use super::*;

    const X: u64 = 1 << 30;
    const Y: u64 = 1 << 40;
    const COS: u64 = 1 << 45;
    const SIN: u64 = 1 << 46;

    fn launch(x: &[usize], cos: &[usize], rotated: usize, shift: u64) -> Result<Launch, LaunchError> {
        let (d, f) = (DType::BF16, DType::F32);
        let operands = (&view(X + shift, d, x), &view(COS, f, cos), &view(SIN, f, cos));
        rotary(operands, false, rotated, &view(Y, d, x), &DeviceInfo::h200())
    }

    #[test]
    fn packs_and_heads() {
        let pick = |x: &[usize], cos: &[usize], rotated, shift| {
            let l = launch(x, cos, rotated, shift).unwrap();
            assert!(catalog().contains(&l.kernel));
            (l.kernel.name, l.grid)
        };
        let (packed, single) = ("rotary_bf16_halves_x8".to_owned(), "rotary_bf16_halves_x1".to_owned());
        // 8 units a row, 4 heads a thread.
        assert_eq!(pick(&[4, 32, 1024, 128], &[1024, 64], 128, 0), (packed.clone(), 4 * 8 * 1024 * 8 / 128));
        assert_eq!(pick(&[4, 32, 1024, 128], &[4, 1, 1024, 64], 128, 0).0, packed);
        assert_eq!(pick(&[4, 32, 1024, 128], &[1024, 64], 128, 2).0, single);
        assert_eq!(pick(&[2, 3, 20], &[3, 10], 20, 0).0, single);
        assert_eq!(pick(&[2, 3, 32], &[3, 1], 32, 0).0, single);
        assert_eq!(pick(&[2, 3, 32], &[3, 8], 16, 0).0, packed);
        assert_eq!(pick(&[0, 3, 32], &[3, 16], 32, 0).1, 0);
    }

    #[test]
    fn wrong_operands_are_refused() {
        let e = |r: Result<Launch, LaunchError>| r.unwrap_err().to_string();
        assert!(e(launch(&[2, 7], &[2, 3], 7, 0)).contains("7 elements of 7"));
        assert!(e(launch(&[2, 8], &[2, 5], 10, 0)).contains("10 elements of 8"));
        assert!(e(launch(&[2, 8], &[2, 3], 8, 0)).contains("cos [2, 3] does not broadcast to [2, 4]"));
        assert!(e(launch(&[], &[1], 0, 0)).contains("no axis"));
        let (d, s, t) = (DType::BF16, [2usize, 8], [2usize, 4]);
        let x = view(X, d, &s);
        let (cos, sin) = (view(COS, d, &t), view(SIN, d, &t));
        let info = DeviceInfo::h200();
        assert!(rotary((&x, &cos, &sin), true, 8, &x, &info).is_ok());
        assert!(e(rotary((&x, &cos, &sin), true, 8, &view(X + 16, d, &s), &info)).contains("x and the result share"));
        assert!(e(rotary((&x, &x, &sin), true, 8, &view(Y, d, &s), &info)).contains("cos [2, 8]"));
        let ints = view(COS, DType::I32, &t);
        assert!(e(rotary((&x, &ints, &sin), true, 8, &view(Y, d, &s), &info)).contains("type i32"));
        assert!(e(rotary((&x, &cos, &sin), true, 8, &view(Y, DType::F32, &s), &info)).contains("expected bf16"));
    }
}
