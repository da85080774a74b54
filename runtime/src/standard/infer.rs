//! Types of results, as far as they follow from the operands' types and known values.
#![allow(dead_code, reason = "the families use what they need")]

use super::{Call, StandardError};
use crate::dim::{Dim, Shape};
use crate::dtype::{DType, TensorType};

type Result<T> = std::result::Result<T, StandardError>;

/// What is known about an operand before it exists.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Its type; [`DType::Opaque`] and no extents for what is no tensor of numbers.
    pub ty: &'a TensorType,
    /// Its elements, where they are known integers or extents: a vector or scalar of shapes, axes, bounds.
    pub values: Option<&'a [Dim]>,
}

impl Operand<'_> {
    /// The elements, where they are known integers.
    pub fn ints(&self) -> Option<Vec<i64>> {
        self.values?.iter().map(Dim::as_const).collect()
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.ty.rank()
    }
}

/// What is known about a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Element type.
    pub dtype: DType,
    /// Extents, `None` where only execution shows them; `None` altogether where the rank is not known.
    pub shape: Option<Vec<Option<Dim>>>,
}

impl Partial {
    /// A known type.
    pub fn known(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Partial {
        Partial { dtype, shape: Some(shape.into_iter().map(Some).collect()) }
    }

    /// A known rank.
    pub fn ranked(dtype: DType, rank: usize) -> Partial {
        Partial { dtype, shape: Some(vec![None; rank]) }
    }

    /// Only the element type is known.
    pub fn unranked(dtype: DType) -> Partial {
        Partial { dtype, shape: None }
    }

    /// What is no tensor of numbers.
    pub fn opaque() -> Partial {
        Partial { dtype: DType::Opaque, shape: Some(vec![]) }
    }
}

/// The operand at a position, which must be there.
pub(super) fn required<'a>(x: &[Option<Operand<'a>>], i: usize) -> Result<Operand<'a>> {
    x.get(i).copied().flatten().ok_or_else(|| StandardError::new(format!("operand {i} is missing")))
}

/// One result of the type of the first operand.
pub(super) fn same(_: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let t = required(x, 0)?.ty;
    Ok(vec![Partial::known(t.dtype, t.shape.iter().cloned())])
}

/// One result of the shape of the first operand, boolean.
pub(super) fn same_bool(_: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    Ok(vec![Partial::known(DType::Bool, required(x, 0)?.ty.shape.iter().cloned())])
}

/// The shape that shapes have together by NumPy's rules.
pub(super) fn broadcast(shapes: &[&Shape]) -> Result<Vec<Option<Dim>>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out: Vec<Option<Dim>> = vec![Some(Dim::from(1)); rank];
    for s in shapes {
        for (o, d) in out[rank - s.len()..].iter_mut().zip(s.iter()) {
            let Some(a) = o.take() else { continue };
            if let (Some(x), Some(y)) = (a.as_const(), d.as_const())
                && x != y
                && x != 1
                && y != 1
            {
                return Err(StandardError::new(format!("{shapes:?} do not broadcast")));
            }
            *o = Some(a.join(d));
        }
    }
    Ok(out)
}

/// All operands broadcast together, in the type of the first.
pub(super) fn elementwise(_: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let shapes: Vec<&Shape> = x.iter().flatten().map(|o| &o.ty.shape).collect();
    Ok(vec![Partial { dtype: required(x, 0)?.ty.dtype, shape: Some(broadcast(&shapes)?) }])
}

/// All operands broadcast together, boolean.
pub(super) fn comparison(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    Ok(elementwise(c, x)?.into_iter().map(|p| Partial { dtype: DType::Bool, ..p }).collect())
}

/// One result of the first operand's element type and rank; its extents depend on data.
pub(super) fn same_rank(_: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let t = required(x, 0)?.ty;
    Ok(vec![Partial::ranked(t.dtype, t.rank())])
}

/// An axis counted from the front.
pub(super) fn axis(a: i64, rank: usize) -> Result<usize> {
    super::axis(a, rank)
}
