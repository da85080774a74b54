//! Tensors on the device for cases and measurements of kernels that work on rows.

use std::rc::Rc;

use super::super::{DeviceBuffer, Launch, View};
use super::reference::on_cpu;
use super::{CheckError, Harness, Timed};
use crate::cpu::quantize::{BLOCK, swizzled_len};
use crate::dtype::DType;
use crate::norm::{Norm, Quant, Sum};
use crate::op::Op;
use crate::tensor::{Tensor, byte_len};

/// Element types and shapes.
pub(super) type Types = Vec<(DType, Vec<usize>)>;

/// A tensor in device memory, some elements behind the start of a buffer.
#[derive(Clone)]
pub(super) struct Placed {
    buffer: Rc<DeviceBuffer>,
    dtype: DType,
    shape: Vec<usize>,
    start: usize,
}

fn bytes(dtype: DType, shape: &[usize]) -> Result<usize, CheckError> {
    byte_len(dtype, shape).ok_or_else(|| CheckError::Reference(format!("{dtype}{shape:?} is too large")))
}

/// Memory for a tensor, `offset` elements behind the start of its buffer, with data or with a byte that no case expects.
pub(super) fn place(
    h: &Harness<'_>,
    dtype: DType,
    shape: &[usize],
    offset: usize,
    data: Option<&Tensor>,
) -> Result<Placed, CheckError> {
    let start = offset * dtype.size();
    let buffer = h.result(DType::U8, &[start + bytes(dtype, shape)?])?;
    if let Some(t) = data {
        h.device.upload_at(&h.stream, &buffer, start, t.bytes())?;
    }
    Ok(Placed { buffer: Rc::new(buffer), dtype, shape: shape.to_vec(), start })
}

impl Placed {
    pub(super) fn view(&self) -> View<'_> {
        View {
            address: self.buffer.address() + self.start as u64,
            dtype: self.dtype,
            shape: &self.shape,
            bytes: self.buffer.len() - self.start,
        }
    }

    pub(super) fn read(&self, h: &Harness<'_>) -> Result<Tensor, CheckError> {
        let mut t = Tensor::zeros(self.dtype, &self.shape).map_err(|e| CheckError::Reference(e.to_string()))?;
        h.device.download_at(&h.stream, &self.buffer, self.start, t.bytes_mut())?;
        Ok(t)
    }
}

/// The results of an operator on the CPU. The operands that have as many elements as `shape` get it.
pub(super) fn cpu(
    op: &Op,
    operands: &[Tensor],
    shape: &[usize],
    results: &[(DType, Vec<usize>)],
) -> Result<Vec<Tensor>, CheckError> {
    let mut operands = operands.to_vec();
    let n: usize = shape.iter().product();
    operands.iter_mut().filter(|t| t.len() == n && t.shape.len() > 1).for_each(|t| t.shape = shape.to_vec());
    on_cpu(op, &operands.iter().collect::<Vec<_>>(), results)
}

/// Element types and shapes of a norm's results: norm, codes, scales, sum.
pub(super) fn results(n: &Norm, dtype: DType, shape: &[usize]) -> Result<Types, CheckError> {
    let (width, rows) = (shape.last().copied().unwrap_or(1), shape.iter().rev().skip(1).product());
    let with_last = |last: usize| {
        let mut s = shape.to_vec();
        s.iter_mut().rev().take(1).for_each(|d| *d = last);
        s
    };
    let mut out = vec![(dtype, shape.to_vec())];
    match n.quant {
        Quant::None => {}
        Quant::Fp8 => out.push((DType::F8E4M3FN, shape.to_vec())),
        Quant::Fp8Token { .. } => out.extend([(DType::F8E4M3FN, shape.to_vec()), (DType::F32, with_last(1))]),
        Quant::Nvfp4 => {
            let scales = swizzled_len(rows, width / BLOCK);
            let scales =
                scales.ok_or_else(|| CheckError::Reference(format!("the scales of {shape:?} are too large")))?;
            out.extend([(DType::U8, with_last(width / 2)), (DType::F8E4M3FN, vec![scales])]);
        }
    }
    out.extend((n.sum != Sum::None).then(|| (dtype, shape.to_vec())));
    Ok(out)
}

/// Memory that repeats the bytes of a tensor; of undefined contents where there are none.
pub(super) fn repeated(h: &Harness<'_>, bytes: usize, data: Option<&Tensor>) -> Result<DeviceBuffer, CheckError> {
    let buffer = h.device.alloc(bytes)?;
    let piece = data.map_or(&[][..], Tensor::bytes);
    if !piece.is_empty() {
        for start in (0..bytes).step_by(piece.len()) {
            let n = piece.len().min(bytes - start);
            h.device.upload_at(&h.stream, &buffer, start, &piece[..n])?;
        }
    }
    Ok(buffer)
}

/// Bytes that the launches of a measurement touch together; more than any cache holds.
const ROUND: usize = 512 << 20;

/// Launches on as many sets of buffers as a round needs. `data` is repeated in each operand.
pub(super) fn sets(
    h: &Harness<'_>,
    operands: &[(DType, Vec<usize>)],
    results: &[(DType, Vec<usize>)],
    data: &[Tensor],
    launch: impl Fn(&[View<'_>], &[View<'_>]) -> Result<Launch, CheckError>,
) -> Result<Timed, CheckError> {
    let mut total = 0;
    for (dtype, shape) in operands.iter().chain(results) {
        total += bytes(*dtype, shape)?;
    }
    let count = ROUND.div_ceil(total.max(1)).clamp(1, 64);
    let mut timed = Timed { launches: vec![], buffers: vec![], bytes: total as u64 };
    for _ in 0..count {
        let mut set = vec![];
        for (i, (dtype, shape)) in operands.iter().chain(results).enumerate() {
            set.push(repeated(h, bytes(*dtype, shape)?, data.get(i))?);
        }
        let views: Vec<View<'_>> =
            set.iter().zip(operands.iter().chain(results)).map(|(b, (d, s))| b.view(*d, s)).collect();
        let (x, out) = views.split_at(operands.len());
        timed.launches.push(launch(x, out)?);
        timed.buffers.extend(set);
    }
    Ok(timed)
}
