//! Operators that make, cut, join or move elements, by lists of positions in row-major data.

use super::{Array, Local, Reason, Result, axis, elements, fits, misfit};
use crate::ir::{DType, Op};

/// Steps of a row-major shape.
pub(super) fn steps(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        // A step is used only where every extent is positive, and then it is small.
        out[i - 1] = out[i].saturating_mul(shape[i]);
    }
    out
}

/// The positions that a walk over axes of some (extent, step) meets; the last axis is the fastest.
pub(super) fn walk(axes: impl IntoIterator<Item = (usize, usize)> + Clone) -> Vec<usize> {
    if axes.clone().into_iter().any(|(extent, _)| extent == 0) {
        return vec![];
    }
    let mut out = vec![0];
    for (extent, step) in axes.into_iter().filter(|a| a.0 > 1) {
        out = out.into_iter().flat_map(|p: usize| (0..extent).map(move |k| p + k * step)).collect();
    }
    out
}

/// The shape of two operands together.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    let one = |i: usize| match (at(a, i), at(b, i)) {
        (x, 1) => Ok(x),
        (1, y) => Ok(y),
        (x, y) if x == y => Ok(x),
        _ => misfit(format!("{a:?} and {b:?} do not broadcast")),
    };
    (0..rank).map(one).collect()
}

/// For each element of a shape, the position of the operand's element that it reads by broadcasting.
pub(super) fn spread(operand: &[usize], shape: &[usize]) -> Result<Vec<usize>> {
    let Some(lead) = shape.len().checked_sub(operand.len()) else {
        return misfit(format!("{operand:?} does not broadcast to {shape:?}"));
    };
    if operand.iter().zip(&shape[lead..]).any(|(&d, &s)| d != s && d != 1) {
        return misfit(format!("{operand:?} does not broadcast to {shape:?}"));
    }
    elements(shape)?;
    let own = steps(operand);
    let step = |i: usize| if i < lead || operand[i - lead] == 1 { 0 } else { own[i - lead] };
    Ok(walk((0..shape.len()).map(|i| (shape[i], step(i)))))
}

fn take(x: &Array, shape: &[usize], positions: Vec<usize>) -> Array {
    Array::new(shape, positions.into_iter().map(|p| x.data[p]).collect())
}

/// Entries of x along one axis, which give a result of the declared shape.
fn entries(x: &Array, axis: usize, at: &[usize], declared: &[usize]) -> Array {
    if declared.contains(&0) {
        return Array::new(declared, vec![]);
    }
    let inner: usize = x.shape[axis + 1..].iter().product();
    let mut data = Vec::with_capacity(elements(declared).unwrap_or(0));
    for whole in x.data.chunks_exact((x.shape[axis] * inner).max(1)) {
        at.iter().for_each(|&i| data.extend_from_slice(&whole[i * inner..(i + 1) * inner]));
    }
    Array::new(declared, data)
}

/// Part `index` of `parts` along an axis.
pub(super) fn part(x: &Array, axis: usize, index: usize, parts: usize, declared: &[usize]) -> Result<Array> {
    let mut shape = x.shape.clone();
    let Some(extent) = shape.get_mut(axis).filter(|d| d.is_multiple_of(parts)) else {
        return misfit(format!("axis {axis} of {:?} does not divide into {parts} parts", x.shape));
    };
    *extent /= parts;
    let n = *extent;
    fits(&shape, declared)?;
    if declared.contains(&0) {
        return Ok(Array::new(declared, vec![]));
    }
    let at: Vec<usize> = (index * n..(index + 1) * n).collect();
    Ok(entries(x, axis, &at, declared))
}

/// Joins along an axis.
pub(super) fn concat(x: &[&Array], axis: usize, declared: &[usize]) -> Result<Array> {
    let mut total = 0usize;
    for v in x {
        let others =
            |s: &[usize]| s.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, &d)| d).collect::<Vec<_>>();
        if v.shape.len() != declared.len() || axis >= declared.len() || others(&v.shape) != others(declared) {
            return misfit(format!("{:?} is no piece of {declared:?} along axis {axis}", v.shape));
        }
        total = total.saturating_add(v.shape[axis]);
    }
    let mut shape = declared.to_vec();
    if let Some(d) = shape.get_mut(axis) {
        *d = total;
    }
    fits(&shape, declared)?;
    let n = elements(declared)?;
    let mut data = Vec::with_capacity(n);
    if n > 0 {
        let inner: usize = declared[axis + 1..].iter().product();
        let outer: usize = declared[..axis].iter().product();
        for i in 0..outer {
            for v in x {
                let piece = v.shape[axis] * inner;
                data.extend_from_slice(&v.data[i * piece..(i + 1) * piece]);
            }
        }
    }
    Ok(Array::new(declared, data))
}

/// start, start + step, ... up to but without limit.
pub(super) fn range(start: i128, limit: i128, step: i128, declared: &[usize]) -> Result<Array> {
    let (span, stride) = if step < 0 { (start - limit, -step) } else { (limit - start, step) };
    if stride == 0 {
        return misfit("a range with step 0");
    }
    let n = (span.max(0) + stride - 1) / stride;
    fits(&[usize::try_from(n).unwrap_or(usize::MAX)], declared)?;
    Ok(Array::new(declared, (0..n).map(|i| (start + i * step) as f64).collect()))
}

/// An index that may count from the end.
fn position(index: f64, extent: usize) -> Result<usize> {
    let from_start = if index < 0.0 { index + extent as f64 } else { index };
    if from_start >= 0.0 && from_start < extent as f64 && from_start.fract() == 0.0 {
        return Ok(from_start as usize);
    }
    Err(Reason::Index { index, extent })
}

/// Rows of a table that is split over the ranks; rows of other ranks are zero.
pub(super) fn vocab_gather(
    table: &Array,
    indices: &Array,
    rank: usize,
    ranks: usize,
    declared: &[usize],
) -> Result<Array> {
    let [rows, width] = table.shape[..] else { return misfit(format!("a table {:?}", table.shape)) };
    let shape = [&indices.shape[..], &[width]].concat();
    fits(&shape, declared)?;
    let total = rows.checked_mul(ranks).ok_or_else(|| Reason::TooLarge(format!("{rows} rows per rank")))?;
    let mut data = Vec::with_capacity(elements(declared)?);
    for &i in &indices.data {
        let row = position(i, total)?;
        if width > 0 && row / rows == rank {
            data.extend_from_slice(&table.data[row % rows * width..(row % rows + 1) * width]);
        } else {
            data.resize(data.len() + width, 0.0);
        }
    }
    Ok(Array::new(declared, data))
}

impl Local<'_> {
    fn index_type(&self) -> Result<()> {
        match self.dtypes[1] {
            DType::I64 | DType::I32 => Ok(()),
            d => Err(Reason::Unsupported(format!("indices of type {d}"))),
        }
    }

    /// Any operator that moves elements.
    pub(super) fn moved(&self) -> Result<Vec<Array>> {
        let (x, declared) = (self.x[0], &self.declared[0][..]);
        Ok(vec![match self.op {
            Op::Reshape { shape } => {
                let shape = self.shape(shape)?;
                fits(&shape, declared)?;
                if elements(&shape)? != x.data.len() {
                    return misfit(format!("{:?} cannot become {shape:?}", x.shape));
                }
                Array::new(&shape, x.data.clone())
            }
            Op::Transpose { perm } => {
                let from: Vec<usize> = perm.iter().map(|&p| axis(p, x.shape.len())).collect::<Result<_>>()?;
                let all = (0..x.shape.len()).all(|a| from.contains(&a));
                if !all || from.len() != x.shape.len() {
                    return misfit(format!("{perm:?} is no permutation of {} axes", x.shape.len()));
                }
                let shape: Vec<usize> = from.iter().map(|&a| x.shape[a]).collect();
                fits(&shape, declared)?;
                let steps = steps(&x.shape);
                take(x, &shape, walk(from.iter().map(|&a| (x.shape[a], steps[a]))))
            }
            Op::Expand { shape } => {
                let shape = broadcast(&x.shape, &self.shape(shape)?)?;
                fits(&shape, declared)?;
                take(x, &shape, spread(&x.shape, &shape)?)
            }
            Op::Concat { axis: a } => {
                if self.dtypes.iter().any(|d| *d != self.dtypes[0]) {
                    return misfit(format!("pieces of {:?}", self.dtypes));
                }
                concat(self.x, axis(*a, x.shape.len())?, declared)?
            }
            Op::Slice { axis: a, start, end, step } => {
                let a = axis(*a, x.shape.len())?;
                let (start, end) = (i128::from(self.eval(start)?), i128::from(self.eval(end)?));
                let step = i128::from(*step);
                if step < 1 {
                    return Err(Reason::Unsupported(format!("step {step}")));
                }
                let count = ((end - start).max(0) + step - 1) / step;
                let mut shape = x.shape.clone();
                shape[a] = usize::try_from(count).unwrap_or(usize::MAX);
                fits(&shape, declared)?;
                // The extremes are inside before the list is made.
                let last = start + (count - 1) * step;
                if count > 0 && (start < 0 || last >= x.shape[a] as i128) {
                    let index = if start < 0 { start } else { last } as f64;
                    return Err(Reason::Index { index, extent: x.shape[a] });
                }
                if declared.contains(&0) {
                    return Ok(vec![Array::new(declared, vec![])]);
                }
                let at: Vec<usize> = (0..count).map(|i| (start + i * step) as usize).collect();
                entries(x, a, &at, declared)
            }
            Op::Append { .. } => self.append()?,
            Op::Gather { axis: a } => {
                self.index_type()?;
                let a = axis(*a, x.shape.len())?;
                let indices = self.x[1];
                fits(&[&x.shape[..a], &indices.shape[..], &x.shape[a + 1..]].concat(), declared)?;
                let at = indices.data.iter().map(|&i| position(i, x.shape[a])).collect::<Result<Vec<_>>>()?;
                entries(x, a, &at, declared)
            }
            Op::GatherNd { batch_dims } => self.gather_nd(*batch_dims)?,
            op => return Err(Reason::Unsupported(format!("the operator `{}`", op.name()))),
        }])
    }

    /// Row by row: what is kept of the past, the new tokens, zeros.
    fn append(&self) -> Result<Array> {
        let (past, new, length) = (self.x[0], self.x[1], self.x[2]);
        let declared = &self.declared[0][..];
        let (&[b, h, p, d], &[_, _, s, _], &[_, _, t, _]) = (&past.shape[..], &new.shape[..], declared) else {
            return misfit("a cache has four axes");
        };
        if new.shape != [b, h, s, d] || length.shape != [b] || declared != [b, h, t, d] {
            return misfit(format!("a cache {:?} with {:?} and lengths {:?}", past.shape, new.shape, length.shape));
        }
        let mut data = vec![];
        for row in 0..b * h {
            let kept = (length.data[row / h] - s as f64).max(0.0);
            if kept > p as f64 || kept + s as f64 > t as f64 {
                return Err(Reason::Index { index: length.data[row / h], extent: t.min(p + s) });
            }
            let kept = kept as usize;
            data.extend_from_slice(&past.data[row * p * d..(row * p + kept) * d]);
            data.extend_from_slice(&new.data[row * s * d..(row + 1) * s * d]);
            data.resize((row + 1) * t * d, 0.0);
        }
        Ok(Array::new(declared, data))
    }

    fn gather_nd(&self, batch_dims: i64) -> Result<Array> {
        self.index_type()?;
        let (x, indices, declared) = (self.x[0], self.x[1], &self.declared[0][..]);
        let outside = || Reason::Misfit(format!("{:?} does not address {:?}", indices.shape, x.shape));
        let batch = usize::try_from(batch_dims).map_err(|_| outside())?;
        let (&width, lead) = indices.shape.split_last().ok_or_else(outside)?;
        let end =
            batch.checked_add(width).filter(|&e| e <= x.shape.len() && batch <= lead.len()).ok_or_else(outside)?;
        if lead[..batch] != x.shape[..batch] {
            return Err(outside());
        }
        fits(&[lead, &x.shape[end..]].concat(), declared)?;
        if declared.contains(&0) {
            return Ok(Array::new(declared, vec![]));
        }
        let steps = steps(&x.shape);
        let inner: usize = x.shape[end..].iter().product();
        let batches = walk((0..batch).map(|i| (x.shape[i], steps[i])));
        let per_batch: usize = lead[batch..].iter().product();
        let mut data = Vec::with_capacity(elements(declared)?);
        for i in 0..batches.len() * per_batch {
            let mut from = batches[i / per_batch];
            for k in 0..width {
                from += steps[batch + k] * position(indices.data[i * width + k], x.shape[batch + k])?;
            }
            data.extend_from_slice(&x.data[from..from + inner]);
        }
        Ok(Array::new(declared, data))
    }
}
