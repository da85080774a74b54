//! Numbers of eight and four bits: their scales, their codes, and the layouts that devices read.
//!
//! The arithmetic is in f32 throughout, in the order that the functions state, so that a device gives the same codes.

use super::convert::{floats, write_floats};
use super::walk::Walk;
use super::{KernelError, Result, expect};
use crate::dtype::DType;
use crate::minifloat;
use crate::tensor::{View, ViewMut};

/// Largest f8e4m3fn.
pub const FP8_MAX: f32 = 448.0;
/// Largest f4e2m1.
pub const FP4_MAX: f32 = 6.0;
/// Elements of a row that share a block scale.
pub const BLOCK: usize = 16;
/// Rows and blocks of a tile of swizzled block scales.
const TILE: (usize, usize) = (128, 4);

/// The larger number; NaN wins.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// The largest magnitude; NaN where there is one, 0 of nothing.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, v| larger(m, v.abs()))
}

/// The scale of a row: its largest magnitude / 448, and at least `floor`.
pub fn fp8_scale(row: &[f32], floor: f32) -> f32 {
    larger(largest(row) / FP8_MAX, floor)
}

/// The f8e4m3fn of x / scale, with the quotient rounded to `precision` where that is f16 or bf16.
pub fn fp8(x: f32, scale: f32, precision: DType) -> u8 {
    let quotient = x / scale;
    let rounded = match precision {
        DType::F16 => half::f16::from_f32(quotient).to_f32(),
        DType::BF16 => half::bf16::from_f32(quotient).to_f32(),
        _ => quotient,
    };
    minifloat::encode(DType::F8E4M3FN, f64::from(rounded), true)
}

/// The scale of a block in f8e4m3fn: its largest magnitude / 6 * scale.
pub fn fp4_scale(block: &[f32], scale: f32) -> u8 {
    minifloat::encode(DType::F8E4M3FN, f64::from(largest(block) / FP4_MAX * scale), true)
}

/// What the elements of a block are multiplied by: scale / block scale, and 0 where that is 0.
fn factor(block_scale: u8, scale: f32) -> f32 {
    let block = minifloat::decode(DType::F8E4M3FN, block_scale) as f32;
    if block == 0.0 { 0.0 } else { scale / block }
}

/// The f4e2m1 codes of a block, one a byte.
pub fn fp4(block: &[f32], block_scale: u8, scale: f32, out: &mut [u8]) {
    let factor = factor(block_scale, scale);
    for (o, &v) in out.iter_mut().zip(block) {
        *o = minifloat::encode(DType::F4E2M1, f64::from(v * factor), true);
    }
}

/// Where the scale of a row and a block lies, in bytes.
pub fn swizzled(row: usize, block: usize, blocks: usize) -> usize {
    let tile = row / TILE.0 * blocks.div_ceil(TILE.1) + block / TILE.1;
    tile * TILE.0 * TILE.1 + row % 32 * 16 + row % TILE.0 / 32 * 4 + block % TILE.1
}

/// Bytes of the scales of some rows and blocks, padding included.
pub fn swizzled_len(rows: usize, blocks: usize) -> Option<usize> {
    rows.checked_next_multiple_of(TILE.0)?.checked_mul(blocks.checked_next_multiple_of(TILE.1)?)
}

/// Rows of `width` elements, a multiple of 16, as two codes a byte in `q` and swizzled block scales in `sf`.
///
/// `q` has half as many bytes as `x` elements, `sf` as many as [`swizzled_len`] tells; either may be absent.
pub fn nvfp4(x: &[f32], width: usize, scale: f32, mut q: Option<&mut [u8]>, mut sf: Option<&mut [u8]>) {
    if let Some(sf) = &mut sf {
        sf.fill(0);
    }
    let blocks = width / BLOCK;
    let mut codes = [0; BLOCK];
    for (i, block) in x.chunks_exact(BLOCK).enumerate() {
        let block_scale = fp4_scale(block, scale);
        if let Some(o) = sf.as_deref_mut().and_then(|sf| sf.get_mut(swizzled(i / blocks, i % blocks, blocks))) {
            *o = block_scale;
        }
        if let Some(q) = q.as_deref_mut().and_then(|q| q.get_mut(i * BLOCK / 2..(i + 1) * BLOCK / 2)) {
            fp4(block, block_scale, scale, &mut codes);
            q.iter_mut().zip(codes.chunks_exact(2)).for_each(|(o, pair)| *o = pair[0] | pair[1] << 4);
        }
    }
}

/// The one element of a scale.
pub(super) fn single(scale: &View<'_>) -> Result<f32> {
    match *floats(scale)? {
        [s] => Ok(s),
        _ => Err(KernelError::Shape(format!("a scale {:?} of more than one element", scale.shape))),
    }
}

/// As [`single`], in f32.
pub(super) fn single_f32(scale: &View<'_>) -> Result<f32> {
    if scale.dtype == DType::F32 { single(scale) } else { Err(KernelError::DType(scale.dtype)) }
}

/// Width of rows that divide into blocks.
fn blocked(x: &View<'_>) -> Result<usize> {
    match x.shape.last() {
        Some(&n) if n.is_multiple_of(BLOCK) => Ok(n),
        _ => Err(KernelError::Shape(format!("rows of {:?} do not divide into blocks of {BLOCK}", x.shape))),
    }
}

/// A shape with another last extent.
fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut out = shape.to_vec();
    if let Some(d) = out.last_mut() {
        *d = last;
    }
    out
}

/// (x, scale): x / scale in f8e4m3fn.
pub(super) fn quantize_fp8(x: &View<'_>, scale: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    expect(out, DType::F8E4M3FN, x.shape)?;
    if super::broadcast_shape(x.shape, scale.shape)? != x.shape {
        return Err(KernelError::Shape(format!("a scale {:?} for {:?}", scale.shape, x.shape)));
    }
    let walk = Walk::broadcast(x.shape, [x.shape, scale.shape])?;
    let (precision, x, scale) = (scale.dtype, floats(x)?, floats(scale)?);
    walk.zip(&x, &scale, out.bytes, |v, s| fp8(v, s, precision));
    Ok(())
}

/// One scale for each row.
pub(super) fn fp8_scales(x: &View<'_>, floor: f64, out: &mut ViewMut<'_>) -> Result {
    let Some(&n) = x.shape.last() else { return Err(KernelError::Shape("a scalar has no rows".to_owned())) };
    expect(out, DType::F32, &with_last(x.shape, 1))?;
    let x = floats(x)?;
    write_floats(out, |o| {
        let rows = (0..o.len()).map(|r| &x[r * n..(r + 1) * n]);
        o.iter_mut().zip(rows).for_each(|(o, row)| *o = fp8_scale(row, floor as f32));
        Ok(())
    })
}

/// (x, scale): one scale for each block.
pub(super) fn fp4_scales(x: &View<'_>, scale: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    let width = blocked(x)?;
    expect(out, DType::F8E4M3FN, &with_last(x.shape, width / BLOCK))?;
    let (x, scale) = (floats(x)?, single_f32(scale)?);
    out.bytes.iter_mut().zip(x.chunks_exact(BLOCK)).for_each(|(o, block)| *o = fp4_scale(block, scale));
    Ok(())
}

/// (x, block scales, scale).
pub(super) fn quantize_fp4(x: &View<'_>, blocks: &View<'_>, scale: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    let width = blocked(x)?;
    expect(out, DType::F4E2M1, x.shape)?;
    if blocks.dtype != DType::F8E4M3FN {
        return Err(KernelError::DType(blocks.dtype));
    }
    if blocks.shape != with_last(x.shape, width / BLOCK) {
        return Err(KernelError::Shape(format!("block scales {:?} for {:?}", blocks.shape, x.shape)));
    }
    let (x, scale) = (floats(x)?, single_f32(scale)?);
    let rows = out.bytes.chunks_exact_mut(BLOCK).zip(x.chunks_exact(BLOCK)).zip(blocks.bytes);
    rows.for_each(|((o, block), &b)| fp4(block, b, scale, o));
    Ok(())
}

/// Codes two a byte, and swizzled block scales, of rows that are already f32.
pub(super) fn quantize_nvfp4(x: &[f32], shape: &[usize], scale: f32, out: &mut [Option<ViewMut<'_>>]) -> Result {
    let width = shape.last().copied().unwrap_or(0);
    let [q, sf] = out else { return Err(KernelError::NotAStep(format!("{} results", out.len()))) };
    let rows = x.len().checked_div(width).unwrap_or(0);
    let len = swizzled_len(rows, width / BLOCK);
    let Some(len) = len.filter(|_| width.is_multiple_of(BLOCK)) else {
        return Err(KernelError::Shape(format!("rows of {shape:?} do not divide into blocks of {BLOCK}")));
    };
    q.as_ref().map_or(Ok(()), |q| expect(q, DType::U8, &with_last(shape, width / 2)))?;
    sf.as_ref().map_or(Ok(()), |sf| expect(sf, DType::F8E4M3FN, &[len]))?;
    nvfp4(x, width, scale, q.as_mut().map(|q| &mut *q.bytes), sf.as_mut().map(|sf| &mut *sf.bytes));
    Ok(())
}

/// Codes two a byte to one a byte.
pub(super) fn unpack_fp4(q: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    let Some(&bytes) = q.shape.last() else { return Err(KernelError::Shape("a scalar has no rows".to_owned())) };
    if q.dtype != DType::U8 {
        return Err(KernelError::DType(q.dtype));
    }
    expect(out, DType::F4E2M1, &with_last(q.shape, bytes.saturating_mul(2)))?;
    for (o, &pair) in out.bytes.chunks_exact_mut(2).zip(q.bytes) {
        o.copy_from_slice(&[pair & 15, pair >> 4]);
    }
    Ok(())
}

/// Swizzled block scales in rows.
pub(super) fn unswizzle_scales(sf: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    if sf.dtype != DType::F8E4M3FN || out.dtype != DType::F8E4M3FN {
        return Err(KernelError::DType(if sf.dtype == DType::F8E4M3FN { out.dtype } else { sf.dtype }));
    }
    let blocks = out.shape.last().copied().unwrap_or(0);
    let rows = out.len().checked_div(blocks).unwrap_or(0);
    if out.shape.is_empty() || swizzled_len(rows, blocks) != Some(sf.len()) || sf.shape.len() != 1 {
        return Err(KernelError::Shape(format!("{:?} are no swizzled scales of {:?}", sf.shape, out.shape)));
    }
    for (i, o) in out.bytes.iter_mut().enumerate() {
        *o = sf.bytes[swizzled(i / blocks, i % blocks, blocks)];
    }
    Ok(())
}

/// Converts to a type of quantised tensors: to the nearest code, ties to even, saturating.
pub(super) fn encode(x: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    let wide = super::convert::wide(x)?;
    out.bytes.iter_mut().zip(&wide).for_each(|(o, &v)| *o = minifloat::encode(out.dtype, v, true));
    Ok(())
}

/// Converts from a type of quantised tensors, whose numbers every float type holds exactly.
pub(super) fn decode(x: &View<'_>, out: &mut ViewMut<'_>) -> Result {
    let values: Vec<f32> = (0..=u8::MAX).map(|c| minifloat::decode(x.dtype, c) as f32).collect();
    if out.dtype == DType::F64 {
        let bytes = super::convert::typed_mut::<f64>(out.bytes)?;
        bytes.iter_mut().zip(x.bytes).for_each(|(o, &c)| *o = f64::from(values[usize::from(c)]));
        return Ok(());
    }
    write_floats(out, |o| {
        o.iter_mut().zip(x.bytes).for_each(|(o, &c)| *o = values[usize::from(c)]);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{error, f32s, noise, run, run_f64, to};
    use super::*;
    use crate::attr::Real;
    use crate::dim::Dim;
    use crate::op::Op;
    use crate::tensor::Tensor;

    #[test]
    fn fp8_rounds_the_quotient_and_saturates() {
        let x = f32s(&[2, 3], &[1.0, -3.0, 1000.0, 0.3, f32::NAN, -17.0]);
        let y = run_f64(Op::QuantizeFp8 {}, &[&x, &f32s(&[], &[0.5])], DType::F8E4M3FN, &[2, 3]);
        assert_eq!(y[..4], [2.0, -6.0, 448.0, 0.625]);
        assert!(y[4].is_nan() && y[5] == -32.0);
        let per_row = f32s(&[2, 1], &[1.0, 0.1]);
        let y = run_f64(Op::QuantizeFp8 {}, &[&x, &per_row], DType::F8E4M3FN, &[2, 3]);
        assert_eq!((y[1], y[3]), (-3.0, 3.0));
        // 8.48 / 1 is nearer to 8; as bf16 it is 8.5, a tie, which goes to the even 8.
        let scale = to(DType::BF16, &f32s(&[1], &[1.0]));
        let y = run_f64(Op::QuantizeFp8 {}, &[&f32s(&[2], &[8.51, 9.49]), &scale], DType::F8E4M3FN, &[2]);
        assert_eq!(y, [8.0, 10.0]);
        let y = run_f64(Op::QuantizeFp8 {}, &[&f32s(&[1], &[8.51]), &f32s(&[], &[1.0])], DType::F8E4M3FN, &[1]);
        assert_eq!(y, [9.0]);
        assert!(error(Op::QuantizeFp8 {}, &[&per_row, &x], DType::F8E4M3FN, &[2, 1]).contains("a scale [2, 3]"));
    }

    #[test]
    fn scales_of_rows_have_a_floor() {
        let x = f32s(&[3, 2], &[1.0, -896.0, 0.0, 0.0, f32::NAN, 2.0]);
        let y = run_f64(Op::Fp8Scale { floor: Real(0.125) }, &[&x], DType::F32, &[3, 1]);
        assert_eq!(y[..2], [2.0, 0.125]);
        assert!(y[2].is_nan());
    }

    #[test]
    fn nvfp4_is_the_packed_form_of_the_plain_operators() {
        for (rows, width, dtype) in [(3usize, 32usize, DType::F32), (130, 80, DType::BF16), (1, 16, DType::F16)] {
            let x = to(dtype, &noise(&[rows, width], 7));
            let scale = f32s(&[], &[30.0]);
            let blocks = width / BLOCK;
            let b = run(Op::Fp4Scale {}, &[&x, &scale], DType::F8E4M3FN, &[rows, blocks]).unwrap();
            let q = run(Op::QuantizeFp4 {}, &[&x, &b, &scale], DType::F4E2M1, &[rows, width]).unwrap();
            let len = swizzled_len(rows, blocks).unwrap();
            assert_eq!(len, rows.next_multiple_of(128) * blocks.next_multiple_of(4));
            let mut packed = Tensor::zeros(DType::U8, &[rows, width / 2]).unwrap();
            let mut sf = Tensor::zeros(DType::F8E4M3FN, &[len]).unwrap();
            let bindings = crate::dim::Bindings::new();
            let mut env = super::super::Env { bindings: &bindings, threads: 1, comm: &mut crate::comm::Solo };
            let views = [x.view(), scale.view()];
            let out = &mut [Some(packed.view_mut()), Some(sf.view_mut())];
            super::super::execute(&Op::QuantizeNvfp4 {}, &views, out, &mut env).unwrap();
            assert_eq!(run(Op::UnpackFp4 {}, &[&packed], DType::F4E2M1, &[rows, width]).unwrap(), q);
            let shape = vec![Dim::from(rows as i64), Dim::from(blocks as i64)];
            let rows_of = run(Op::UnswizzleScales { shape }, &[&sf], DType::F8E4M3FN, &[rows, blocks]).unwrap();
            assert_eq!(rows_of, b);
            let used: usize = rows_of.bytes().iter().filter(|c| **c != 0).count();
            assert_eq!(sf.bytes().iter().filter(|c| **c != 0).count(), used, "padding is zero");
            // What is taken apart again is near what was put in: half of the widest step of a block.
            let (codes, scales) = (q.to_f64(), b.to_f64());
            for (i, v) in x.to_f64().into_iter().enumerate() {
                let back = codes[i] * scales[i / BLOCK] / 30.0;
                assert!((v - back).abs() <= 0.2, "{v} became {back}");
            }
        }
    }

    #[test]
    fn places_of_scales_follow_the_tiles() {
        assert_eq!(swizzled(0, 0, 8), 0);
        assert_eq!((swizzled(1, 0, 8), swizzled(32, 0, 8), swizzled(0, 1, 8)), (16, 4, 1));
        assert_eq!((swizzled(0, 4, 8), swizzled(128, 0, 8), swizzled(128, 0, 5)), (512, 1024, 1024));
        assert_eq!(swizzled_len(1, 1), Some(512));
        assert_eq!(swizzled_len(usize::MAX, 4), None);
    }

    #[test]
    fn zeros_and_infinities_have_codes() {
        let x = f32s(&[2, 16], &[[0.0; 16], [f32::INFINITY; 16]].concat());
        let scale = f32s(&[1], &[1.0]);
        let b = run(Op::Fp4Scale {}, &[&x, &scale], DType::F8E4M3FN, &[2, 1]).unwrap();
        assert_eq!(b.to_f64(), [0.0, 448.0]);
        let q = run_f64(Op::QuantizeFp4 {}, &[&x, &b, &scale], DType::F4E2M1, &[2, 16]);
        assert!(q[..16].iter().all(|v| *v == 0.0) && q[16..].iter().all(|v| *v == 6.0));
        let odd = f32s(&[1, 8], &[0.0; 8]);
        assert!(error(Op::Fp4Scale {}, &[&odd, &scale], DType::F8E4M3FN, &[1, 0]).contains("blocks of 16"));
    }

    #[test]
    fn casts_go_to_and_from_floats() {
        for from in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let x = to(from, &f32s(&[4], &[0.3, -1000.0, 5.0, 0.0]));
            let eight = run(Op::Cast { to: DType::F8E4M3FN }, &[&x], DType::F8E4M3FN, &[4]).unwrap();
            assert_eq!(eight.to_f64(), [0.3125, -448.0, 5.0, 0.0]);
            let four = run(Op::Cast { to: DType::F4E2M1 }, &[&x], DType::F4E2M1, &[4]).unwrap();
            assert_eq!(four.to_f64(), [0.5, -6.0, 4.0, 0.0]);
            assert_eq!(run_f64(Op::Cast { to: from }, &[&eight], from, &[4]), eight.to_f64());
            assert_eq!(run_f64(Op::Cast { to: from }, &[&four], from, &[4]), four.to_f64());
        }
        let whole = super::super::testing::i64s(&[1], &[1]);
        assert!(error(Op::Cast { to: DType::F8E4M3FN }, &[&whole], DType::F8E4M3FN, &[1]).contains("no kernel"));
    }
}
