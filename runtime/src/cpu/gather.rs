//! Kernels that look entries up by index.

use super::convert::ints;
use super::{Env, KernelError, Result, expect, resolve_axis};
use crate::attr::MeshAxis;
use crate::tensor::{View, ViewMut};

/// An index that may count from the end.
fn position(index: i64, extent: usize) -> Result<usize> {
    let n = extent as i64;
    let i = if index < 0 { index.saturating_add(n) } else { index };
    usize::try_from(i).ok().filter(|&i| i < extent).ok_or(KernelError::Index { index, extent })
}

/// (data, indices): entries of data along an axis.
pub(super) fn gather(data: &View<'_>, indices: &View<'_>, axis: i64, out: &mut ViewMut<'_>) -> Result {
    let axis = resolve_axis(axis, data.shape.len())?;
    let shape = [&data.shape[..axis], indices.shape, &data.shape[axis + 1..]].concat();
    expect(out, data.dtype, &shape)?;
    let extent = data.shape[axis];
    let at: Vec<usize> = ints(indices)?.iter().map(|&i| position(i, extent)).collect::<Result<_>>()?;
    let entry = data.shape[axis + 1..].iter().product::<usize>() * data.dtype.size();
    if out.is_empty() {
        return Ok(());
    }
    for (src, dst) in data.bytes.chunks_exact(extent * entry).zip(out.bytes.chunks_exact_mut(at.len() * entry)) {
        for (&i, d) in at.iter().zip(dst.chunks_exact_mut(entry)) {
            d.copy_from_slice(&src[i * entry..(i + 1) * entry]);
        }
    }
    Ok(())
}

/// (data, indices): the last axis of indices addresses data after `batch_dims` leading axes.
pub(super) fn gather_nd(data: &View<'_>, indices: &View<'_>, batch_dims: i64, out: &mut ViewMut<'_>) -> Result {
    let misfit = || {
        KernelError::Shape(format!(
            "indices {:?} do not address {:?} after {batch_dims} axes",
            indices.shape, data.shape
        ))
    };
    let batch = usize::try_from(batch_dims).map_err(|_| misfit())?;
    let (&width, lead) = indices.shape.split_last().ok_or_else(misfit)?;
    if batch > lead.len() || batch + width > data.shape.len() || lead[..batch] != data.shape[..batch] {
        return Err(misfit());
    }
    let (addressed, rest) = data.shape[batch..].split_at(width);
    expect(out, data.dtype, &[lead, rest].concat())?;
    let entry = rest.iter().product::<usize>() * data.dtype.size();
    if out.is_empty() {
        return Ok(());
    }
    let index = ints(indices)?;
    let per_batch: usize = lead[batch..].iter().product();
    let block: usize = addressed.iter().product::<usize>() * entry;
    for (i, dst) in out.bytes.chunks_exact_mut(entry).enumerate() {
        let tuple = &index[i * width..(i + 1) * width];
        let mut at = 0;
        for (&v, &extent) in tuple.iter().zip(addressed) {
            at = at * extent + position(v, extent)?;
        }
        let start = i / per_batch * block + at * entry;
        dst.copy_from_slice(&data.bytes[start..start + entry]);
    }
    Ok(())
}

/// (rows of this rank, indices): rows of a table that is split over the ranks; rows of others are zero.
pub(super) fn vocab_gather(
    table: &View<'_>,
    indices: &View<'_>,
    axis: MeshAxis,
    out: &mut ViewMut<'_>,
    env: &Env<'_>,
) -> Result {
    let (&rows, rest) =
        table.shape.split_first().ok_or_else(|| KernelError::Shape("a vocabulary table without an axis".to_owned()))?;
    expect(out, table.dtype, &[indices.shape, rest].concat())?;
    let total =
        rows.checked_mul(env.comm.size(axis)).ok_or_else(|| KernelError::Shape("a table too large".to_owned()))?;
    let low = env.comm.index(axis) * rows;
    let entry = rest.iter().product::<usize>() * table.dtype.size();
    // Every rank checks every index, so that all of them fail alike.
    let at: Vec<usize> = ints(indices)?.iter().map(|&i| position(i, total)).collect::<Result<_>>()?;
    if out.is_empty() {
        return Ok(());
    }
    for (&i, dst) in at.iter().zip(out.bytes.chunks_exact_mut(entry)) {
        match i.checked_sub(low).filter(|&i| i < rows) {
            Some(i) => dst.copy_from_slice(&table.bytes[i * entry..(i + 1) * entry]),
            None => dst.fill(0),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{error, f32s, i64s, run_f64};
    use crate::dtype::DType;
    use crate::op::Op;

    #[test]
    fn gathers_along_axes() {
        let x = f32s(&[2, 3], &[0., 1., 2., 3., 4., 5.]);
        let i = i64s(&[2], &[2, -3]);
        assert_eq!(run_f64(Op::Gather { axis: 1 }, &[&x, &i], DType::F32, &[2, 2]), [2., 0., 5., 3.]);
        let scalar = i64s(&[], &[1]);
        assert_eq!(run_f64(Op::Gather { axis: 0 }, &[&x, &scalar], DType::F32, &[3]), [3., 4., 5.]);
        let e = error(Op::Gather { axis: 1 }, &[&x, &i64s(&[1], &[3])], DType::F32, &[2, 1]);
        assert_eq!(e, "index 3 is outside the extent 3");
        let none = f32s(&[0, 3], &[]);
        assert!(error(Op::Gather { axis: 0 }, &[&none, &scalar], DType::F32, &[3]).contains("extent 0"));
    }

    #[test]
    fn gathers_by_tuples() {
        let x = f32s(&[2, 2, 2], &[0., 1., 2., 3., 4., 5., 6., 7.]);
        let i = i64s(&[2, 2], &[0, 1, 1, 0]);
        let op = Op::GatherNd { batch_dims: 0 };
        assert_eq!(run_f64(op, &[&x, &i], DType::F32, &[2, 2]), [2., 3., 4., 5.]);
        let i = i64s(&[2, 1], &[1, 0]);
        let op = Op::GatherNd { batch_dims: 1 };
        assert_eq!(run_f64(op.clone(), &[&x, &i], DType::F32, &[2, 2]), [2., 3., 4., 5.]);
        assert!(error(op, &[&x, &i64s(&[2, 1], &[2, 0])], DType::F32, &[2, 2]).contains("index 2"));
        let bad = i64s(&[1, 4], &[0; 4]);
        assert!(error(Op::GatherNd { batch_dims: 0 }, &[&x, &bad], DType::F32, &[1]).contains("do not address"));
    }
}
