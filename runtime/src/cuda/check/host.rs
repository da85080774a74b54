//! What references are made of: random tensors, the CPU back end, and rounding.

use super::super::DeviceBuffer;
use super::super::launch::View;
use super::reference::on_cpu;
use super::{CheckError, Harness};
use crate::dtype::{DType, push_element};
use crate::op::Op;
use crate::tensor::Tensor;

/// Random bits that depend on the seed and the position alone (the finalizer of SplitMix64).
pub(super) fn bits(seed: u64, i: usize) -> u64 {
    let mut x =
        seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number of -1..1.
pub(super) fn unit(seed: u64, i: usize) -> f64 {
    (bits(seed, i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Floats of -4..4, integers of -100..100 (0..200 where there is no sign), booleans.
pub(super) fn random(dtype: DType, shape: &[usize], seed: u64) -> Result<Tensor, CheckError> {
    let n: usize = shape.iter().product();
    let values = (0..n).map(|i| match dtype {
        DType::Bool => (bits(seed, i) & 1) as f64,
        DType::U8 => (bits(seed, i) % 200) as f64,
        d if d.is_float() || d.is_minifloat() => 4.0 * unit(seed, i),
        _ => (100.0 * unit(seed, i)).round(),
    });
    tensor(dtype, shape, values)
}

/// A tensor of rounded numbers.
pub(super) fn tensor(
    dtype: DType,
    shape: &[usize],
    values: impl IntoIterator<Item = f64>,
) -> Result<Tensor, CheckError> {
    let mut bytes = vec![];
    values.into_iter().for_each(|v| push_element(dtype, v, v as i64, &mut bytes));
    Tensor::from_bytes(dtype, shape, &bytes).map_err(|e| CheckError::Reference(e.to_string()))
}

/// What the CPU back end computes on one rank, for an operator with one result.
pub(super) fn cpu(op: &Op, x: &[&Tensor], dtype: DType, shape: &[usize]) -> Result<Tensor, CheckError> {
    Ok(on_cpu(op, x, &[(dtype, shape.to_vec())])?.remove(0))
}

/// Where element `i` of a row-major tensor lies on each axis.
pub(super) fn coordinates(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (a, d) in at.iter_mut().zip(shape).rev() {
        *a = i % d;
        i /= d;
    }
    at
}

/// The number of the element at a place of a row-major tensor.
pub(super) fn position(at: &[usize], shape: &[usize]) -> usize {
    at.iter().zip(shape).fold(0, |n, (a, d)| n * d + a)
}

/// A tensor in device memory, `shift` elements after the start of its buffer.
pub(super) fn shifted<'a>(buffer: &DeviceBuffer, dtype: DType, shape: &'a [usize], shift: usize) -> View<'a> {
    let bytes = shift * dtype.size();
    View { address: buffer.address() + bytes as u64, dtype, shape, bytes: buffer.len().saturating_sub(bytes) }
}

/// Copies a tensor to the device, `shift` elements after the start of a buffer.
pub(super) fn upload(h: &Harness<'_>, t: &Tensor, shift: usize) -> Result<DeviceBuffer, CheckError> {
    let mut bytes = vec![0x55; shift * t.dtype.size()];
    bytes.extend_from_slice(t.bytes());
    let t =
        Tensor::from_bytes(t.dtype, &[t.len() + shift], &bytes).map_err(|e| CheckError::Reference(e.to_string()))?;
    h.upload(&t)
}

/// Copies a result to the host that starts `shift` elements after the start of its buffer. What comes before it and after it must
/// be as it was.
pub(super) fn download(
    h: &Harness<'_>,
    buffer: &DeviceBuffer,
    dtype: DType,
    shape: &[usize],
    shift: usize,
) -> Result<Tensor, CheckError> {
    let (n, size) = (shape.iter().product::<usize>(), dtype.size());
    let all = h.download(buffer, dtype, &[buffer.len() / size])?;
    let (before, rest) = all.bytes().split_at(shift * size);
    let (data, after) = rest.split_at(n * size);
    if let Some(b) =
        before.iter().chain(after).find(|b| **b != before.first().or(after.first()).copied().unwrap_or(**b))
    {
        return Err(CheckError::Differs(format!("a byte beside the result {shape:?} became {b:#x}")));
    }
    Tensor::from_bytes(dtype, shape, data).map_err(|e| CheckError::Reference(e.to_string()))
}
