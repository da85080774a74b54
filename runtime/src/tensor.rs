//! Dense tensors in host memory, and borrowed views of them.

use std::collections::TryReserveError;

use crate::dtype::{DType, Literal, element_f64};

/// Zero-initialised bytes that start at a multiple of eight, so that any element type may be read in place.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Aligned {
    words: Vec<u64>,
    len: usize,
}

impl Aligned {
    /// `len` zero bytes; the error means that there is not enough memory.
    pub(crate) fn zeroed(len: usize) -> Result<Aligned, TryReserveError> {
        let n = len.div_ceil(8);
        let mut words = Vec::new();
        words.try_reserve_exact(n)?;
        words.resize(n, 0);
        Ok(Aligned { words, len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

/// A tensor in row-major order.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Extents; empty for a scalar.
    pub shape: Vec<usize>,
    data: Aligned,
}

/// Why a tensor cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TensorError {
    /// The shape asks for another number of bytes than there are.
    #[error("{dtype}{shape:?} has {expected} bytes, got {got}")]
    Length {
        /// Element type.
        dtype: DType,
        /// Extents.
        shape: Vec<usize>,
        /// Bytes that the type needs.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// The tensor is larger than memory.
    #[error("{dtype}{shape:?} does not fit into memory")]
    TooLarge {
        /// Element type.
        dtype: DType,
        /// Extents.
        shape: Vec<usize>,
    },
}

/// Bytes of a tensor; `None` when the number overflows.
pub fn byte_len(dtype: DType, shape: &[usize]) -> Option<usize> {
    // Zero extents first: a tensor without elements is small however large its other extents are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d)).filter(|&n| isize::try_from(n).is_ok())
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, TensorError> {
        let too_large = || TensorError::TooLarge { dtype, shape: shape.to_vec() };
        let len = byte_len(dtype, shape).ok_or_else(too_large)?;
        let data = Aligned::zeroed(len).map_err(|_| too_large())?;
        Ok(Tensor { dtype, shape: shape.to_vec(), data })
    }

    /// A tensor from little-endian row-major elements.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor, TensorError> {
        let expected = byte_len(dtype, shape);
        if expected != Some(bytes.len()) {
            return Err(match expected {
                Some(expected) => TensorError::Length { dtype, shape: shape.to_vec(), expected, got: bytes.len() },
                None => TensorError::TooLarge { dtype, shape: shape.to_vec() },
            });
        }
        let mut t = Tensor::zeros(dtype, shape)?;
        t.bytes_mut().copy_from_slice(bytes);
        Ok(t)
    }

    /// An f32 tensor.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Result<Tensor, TensorError> {
        Tensor::from_bytes(DType::F32, shape, bytemuck::cast_slice(values))
    }

    /// An i64 tensor.
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Result<Tensor, TensorError> {
        Tensor::from_bytes(DType::I64, shape, bytemuck::cast_slice(values))
    }

    /// The tensor of a literal.
    pub fn from_literal(literal: &Literal) -> Result<Tensor, TensorError> {
        Tensor::from_bytes(literal.dtype, &literal.shape, &literal.data)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes().len() / self.dtype.size()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// The elements, little-endian in row-major order. The slice starts at a multiple of eight bytes.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// The elements for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.data.bytes_mut()
    }

    /// The elements as `f64`; integers beyond 2^53 lose precision.
    pub fn to_f64(&self) -> Vec<f64> {
        self.bytes().chunks_exact(self.dtype.size()).map(|b| element_f64(self.dtype, b)).collect()
    }

    /// A view of the whole tensor.
    pub fn view(&self) -> View<'_> {
        View { dtype: self.dtype, shape: &self.shape, bytes: self.bytes() }
    }

    /// A view of the whole tensor for writing.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { dtype: self.dtype, shape: &self.shape, bytes: self.data.bytes_mut() }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values = self.to_f64();
        let more = if values.len() > 8 { ", .." } else { "" };
        write!(f, "{}{:?}({:?}{more})", self.dtype, self.shape, &values[..values.len().min(8)])
    }
}

/// A borrowed tensor: what a kernel reads. The bytes are exactly those of the type, at any alignment.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: &'a [usize],
    /// Elements in row-major order.
    pub bytes: &'a [u8],
}

impl View<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// A borrowed tensor that a kernel writes, aligned for its element type.
pub struct ViewMut<'a> {
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: &'a [usize],
    /// Elements in row-major order.
    pub bytes: &'a mut [u8],
}

impl ViewMut<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Calls `run` with the byte range of each contiguous run of a window of a tensor, in row-major order.
/// The window has one range of positions per axis, within the shape.
pub fn for_each_run(
    dtype: DType,
    shape: &[usize],
    window: &[std::ops::Range<usize>],
    mut run: impl FnMut(std::ops::Range<usize>),
) {
    if window.iter().any(|w| w.is_empty()) {
        return;
    }
    // Axes after the last restricted one are contiguous.
    let Some(k) = (0..shape.len()).rev().find(|&d| window[d] != (0..shape[d])) else {
        run(0..shape.iter().product::<usize>() * dtype.size());
        return;
    };
    let inner = shape[k + 1..].iter().product::<usize>() * dtype.size();
    let length = window[k].len() * inner;
    let mut at: Vec<usize> = window[..k].iter().map(|w| w.start).collect();
    loop {
        let row = at.iter().zip(shape).fold(0, |r, (i, n)| r * n + i);
        let start = (row * shape[k] + window[k].start) * inner;
        run(start..start + length);
        let Some(d) = (0..k).rev().find(|&d| at[d] + 1 < window[d].end) else { return };
        at[d] += 1;
        (d + 1..k).for_each(|e| at[e] = window[e].start);
    }
}

/// Copies part `index` of `parts` along `dim` out of the row-major bytes of a tensor.
///
/// The caller has checked that `parts` divides the extent and that `bytes` has the length of the type.
pub(crate) fn for_each_piece(
    dtype: DType,
    shape: &[usize],
    dim: usize,
    index: usize,
    parts: usize,
    mut piece: impl FnMut(std::ops::Range<usize>),
) {
    let outer: usize = shape[..dim].iter().product();
    let row: usize = shape[dim..].iter().product::<usize>() * dtype.size();
    let chunk = row / parts;
    if chunk == 0 {
        return;
    }
    for o in 0..outer {
        let start = o * row + index * chunk;
        piece(start..start + chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_aligned_and_checked() {
        for n in 0..20 {
            let t = Tensor::zeros(DType::U8, &[n]).unwrap();
            assert_eq!((t.bytes().len(), t.bytes().as_ptr() as usize % 8), (n, 0));
        }
        assert!(Tensor::from_bytes(DType::F32, &[2], &[0; 7]).is_err());
        assert!(Tensor::zeros(DType::F64, &[usize::MAX, 2]).is_err());
        assert_eq!(Tensor::zeros(DType::F64, &[usize::MAX, 2, 0]).unwrap().len(), 0);
        let t = Tensor::from_literal(&Literal::ints(DType::I32, vec![2], &[3, -4])).unwrap();
        assert_eq!(t.to_f64(), [3.0, -4.0]);
    }

    #[test]
    fn runs_cover_a_window_in_order() {
        let data: Vec<u8> = (0..24).collect();
        let take = |window: &[std::ops::Range<usize>]| {
            let mut out: Vec<u8> = vec![];
            for_each_run(DType::U8, &[2, 4, 3], window, |r| out.extend_from_slice(&data[r]));
            out
        };
        assert_eq!(take(&[0..2, 0..4, 0..3]), data);
        assert_eq!(take(&[1..2, 0..4, 0..3]), data[12..]);
        assert_eq!(take(&[0..2, 1..3, 0..3]), [3, 4, 5, 6, 7, 8, 15, 16, 17, 18, 19, 20]);
        assert_eq!(take(&[0..2, 1..2, 1..3]), [4, 5, 16, 17]);
        assert!(take(&[0..2, 2..2, 0..3]).is_empty());
    }

    #[test]
    fn pieces_cut_along_any_axis() {
        let data: Vec<u8> = (0..24).collect();
        let cut = |dim, index, parts| {
            let mut out: Vec<u8> = vec![];
            for_each_piece(DType::U8, &[2, 4, 3], dim, index, parts, |r| out.extend_from_slice(&data[r]));
            out
        };
        assert_eq!(cut(0, 1, 2), (12..24).collect::<Vec<u8>>());
        assert_eq!(cut(1, 1, 2), [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]);
        assert_eq!(cut(2, 2, 3), [2, 5, 8, 11, 14, 17, 20, 23]);
    }
}
