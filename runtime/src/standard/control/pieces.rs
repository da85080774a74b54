//! Tensors of any element type, strings among them, cut and joined along an axis.

use std::borrow::Cow;

use super::super::{Arg, Data, StandardError, Strings, from_bytes};
use crate::dtype::DType;

type Result<T> = std::result::Result<T, StandardError>;

/// The elements of a tensor, in row-major order.
pub(super) enum Elements<'a> {
    /// Bytes of numbers.
    Numbers(DType, Cow<'a, [u8]>),
    Texts(Cow<'a, [String]>),
}

/// A tensor of any element type.
pub(super) struct Block<'a> {
    pub(super) shape: Vec<usize>,
    pub(super) elements: Elements<'a>,
}

impl<'a> Block<'a> {
    /// The tensor that an operand is.
    pub(super) fn of(a: Arg<'a>) -> Result<Block<'a>> {
        match a {
            Arg::Tensor(v) => {
                Ok(Block { shape: v.shape.to_vec(), elements: Elements::Numbers(v.dtype, Cow::Borrowed(v.bytes)) })
            }
            Arg::Other(d) => Block::data(d),
        }
    }

    /// The tensor that a value is.
    pub(super) fn data(d: &'a Data) -> Result<Block<'a>> {
        match d {
            Data::Tensor(t) => {
                Ok(Block { shape: t.shape.clone(), elements: Elements::Numbers(t.dtype, Cow::Borrowed(t.bytes())) })
            }
            Data::Strings(s) => {
                Ok(Block { shape: s.shape.clone(), elements: Elements::Texts(Cow::Borrowed(&s.values)) })
            }
            other => Err(StandardError::new(format!("{} is no tensor", other.describe()))),
        }
    }

    pub(super) fn into_data(self) -> Result<Data> {
        match self.elements {
            Elements::Numbers(dtype, bytes) => from_bytes(dtype, &self.shape, &bytes),
            Elements::Texts(values) => Ok(Strings { shape: self.shape, values: values.into_owned() }.into()),
        }
    }

    /// Elements `from..to` along an axis.
    pub(super) fn cut(&self, axis: usize, from: usize, to: usize) -> Result<Block<'static>> {
        let extent = *self.shape.get(axis).ok_or_else(|| outside(axis, &self.shape))?;
        if from > to || to > extent {
            return Err(StandardError::new(format!("{from}..{to} along axis {axis} is outside {:?}", self.shape)));
        }
        let inner: usize = self.shape[axis + 1..].iter().product();
        let mut shape = self.shape.clone();
        shape[axis] = to - from;
        let elements = match &self.elements {
            Elements::Numbers(d, b) => Elements::Numbers(*d, Cow::Owned(cut(b, extent, inner * d.size(), from, to))),
            Elements::Texts(t) => Elements::Texts(Cow::Owned(cut(t, extent, inner, from, to))),
        };
        Ok(Block { shape, elements })
    }

    /// Element `index` along an axis, without the axis.
    pub(super) fn take(&self, axis: usize, index: usize) -> Result<Block<'static>> {
        let mut b = self.cut(axis, index, index + 1)?;
        b.shape.remove(axis);
        Ok(b)
    }

    /// With an axis of extent 1 at a position.
    pub(super) fn unsqueeze(mut self, axis: usize) -> Result<Block<'a>> {
        if axis > self.shape.len() {
            return Err(outside(axis, &self.shape));
        }
        self.shape.insert(axis, 1);
        Ok(self)
    }
}

fn outside(axis: usize, shape: &[usize]) -> StandardError {
    StandardError::new(format!("axis {axis} is outside {shape:?}"))
}

/// Rows `from..to` of each group of `extent` rows of `inner` elements.
fn cut<T: Clone>(x: &[T], extent: usize, inner: usize, from: usize, to: usize) -> Vec<T> {
    if extent * inner == 0 {
        return vec![];
    }
    x.chunks_exact(extent * inner).flat_map(|c| c[from * inner..to * inner].iter().cloned()).collect()
}

/// Joins rows of several tensors; each comes with the number of its elements in one group.
fn interleave<T: Clone>(parts: &[(&[T], usize)], groups: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.0.len()).sum());
    for g in 0..groups {
        for (x, n) in parts {
            out.extend_from_slice(&x[g * n..(g + 1) * n]);
        }
    }
    out
}

/// Joins tensors along an axis; they agree in all else.
pub(super) fn concat(parts: &[Block<'_>], axis: usize) -> Result<Block<'static>> {
    let first = parts.first().ok_or_else(|| StandardError::new("there is nothing to join"))?;
    if axis >= first.shape.len() {
        return Err(outside(axis, &first.shape));
    }
    let mut shape = first.shape.clone();
    shape[axis] = 0;
    for p in parts {
        let fits = p.shape.len() == shape.len() && (0..shape.len()).all(|i| i == axis || p.shape[i] == shape[i]);
        if !fits {
            return Err(StandardError::new(format!(
                "tensors of {:?} and {:?} do not join along axis {axis}",
                first.shape, p.shape
            )));
        }
        shape[axis] += p.shape[axis];
    }
    let groups: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let mixed = || StandardError::new("the tensors have different element types");
    let elements = match &first.elements {
        Elements::Numbers(d, _) => {
            let mut all: Vec<(&[u8], usize)> = vec![];
            for p in parts {
                match &p.elements {
                    Elements::Numbers(e, b) if e == d => all.push((b, p.shape[axis] * inner * d.size())),
                    _ => return Err(mixed()),
                }
            }
            Elements::Numbers(*d, Cow::Owned(interleave(&all, groups)))
        }
        Elements::Texts(_) => {
            let mut all: Vec<(&[String], usize)> = vec![];
            for p in parts {
                match &p.elements {
                    Elements::Texts(t) => all.push((t, p.shape[axis] * inner)),
                    Elements::Numbers(..) => return Err(mixed()),
                }
            }
            Elements::Texts(Cow::Owned(interleave(&all, groups)))
        }
    };
    Ok(Block { shape, elements })
}

/// Stacks tensors of one shape along a new axis.
pub(super) fn stack(parts: &[Data], axis: usize) -> Result<Block<'static>> {
    let blocks = parts.iter().map(|d| Block::data(d)?.unsqueeze(axis)).collect::<Result<Vec<_>>>()?;
    concat(&blocks, axis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn cut_pieces_join_again() {
        let t: Data = Tensor::from_f32(&[2, 3, 2], &(0..12).map(|v| v as f32).collect::<Vec<_>>()).unwrap().into();
        for axis in 0..3 {
            let whole = Block::data(&t).unwrap();
            let n = whole.shape[axis];
            let parts: Vec<Block<'_>> = (0..n).map(|i| whole.cut(axis, i, i + 1).unwrap()).collect();
            assert_eq!(concat(&parts, axis).unwrap().into_data().unwrap(), t);
            let parts: Vec<Data> = (0..n).map(|i| whole.take(axis, i).unwrap().into_data().unwrap()).collect();
            assert_eq!(stack(&parts, axis).unwrap().into_data().unwrap(), t);
        }
        assert!(Block::data(&t).unwrap().cut(1, 2, 4).is_err() && Block::data(&t).unwrap().cut(3, 0, 0).is_err());
    }

    #[test]
    fn strings_are_cut_as_numbers_are() {
        let values = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let s: Data = Strings { shape: vec![2, 2], values }.into();
        let column = Block::data(&s).unwrap().take(1, 1).unwrap().into_data().unwrap();
        assert_eq!(column, Strings { shape: vec![2], values: vec!["b".into(), "d".into()] }.into());
        let number = Tensor::from_f32(&[2], &[0.0; 2]).unwrap().into();
        assert!(stack(&[column, number], 0).is_err());
    }
}
