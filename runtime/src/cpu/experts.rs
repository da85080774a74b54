//! Mixtures of experts: the choice of experts, and products with the matrices of those that are chosen.

use gemm::Parallelism;

use super::convert::{floats, ints, typed, typed_mut, widen, write_floats};
use super::matmul::{Matrix, product};
use super::{KernelError, Result, expect};
use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// (scores): the k largest of each row in falling order, and their positions. Equal ones stand in order of position.
pub(super) fn largest(x: &View<'_>, k: i64, out: &mut [Option<ViewMut<'_>>]) -> Result {
    let misfit = || KernelError::Shape(format!("the {k} largest of rows {:?}", x.shape));
    let (&width, lead) = x.shape.split_last().ok_or_else(misfit)?;
    let k = usize::try_from(k).ok().filter(|&k| k <= width).ok_or_else(misfit)?;
    let shape = [lead, &[k]].concat();
    let values = floats(x)?;
    let mut found = Vec::with_capacity(lead.iter().product::<usize>() * k);
    for row in values.chunks_exact(width.max(1)) {
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|&a, &b| falling(row[a], row[b]).then(b.cmp(&a)));
        found.extend_from_slice(&order[..k]);
    }
    let [numbers, at] = out else { return Err(misfit()) };
    if let Some(out) = numbers {
        expect(out, x.dtype, &shape)?;
        write_floats(out, |o| {
            for (i, (o, &j)) in o.iter_mut().zip(&found).enumerate() {
                *o = values[i / k * width + j];
            }
            Ok(())
        })?;
    }
    if let Some(out) = at {
        expect(out, DType::I64, &shape)?;
        typed_mut::<i64>(out.bytes)?.iter_mut().zip(&found).for_each(|(o, &j)| *o = j as i64);
    }
    Ok(())
}

/// From the largest number on, with both zeros equal and NaN first.
fn falling(a: f32, b: f32) -> std::cmp::Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| b.total_cmp(&a))
}

/// The matrices of the experts, [experts, n, k], as they are or of few bits.
struct Weights<'a, 'v> {
    x: &'a [View<'v>],
    bits: i64,
}

impl Weights<'_, '_> {
    /// The matrix of one expert, row by row.
    fn of(&self, expert: usize, out: &mut [f32]) -> Result {
        let w = &self.x[1];
        let rows = |v: &View<'_>| v.bytes.len() / v.shape[0].max(1);
        let part = |v: &View<'_>| expert * rows(v)..(expert + 1) * rows(v);
        if self.bits == 0 {
            return widen(w.dtype, &w.bytes[part(w)], out);
        }
        let read = |v: &View<'_>| -> Result<Vec<f32>> {
            let bytes = &v.bytes[part(v)];
            if v.dtype == DType::U8 {
                return Ok(bytes.iter().map(|&b| f32::from(b)).collect());
            }
            let mut read = vec![0.0; bytes.len() / v.dtype.size()];
            widen(v.dtype, bytes, &mut read)?;
            Ok(read)
        };
        let scale = read(&self.x[3])?;
        let zero = match self.x.get(4) {
            Some(z) => read(z)?,
            None => vec![f32::from(1u8 << (self.bits - 1)); scale.len()],
        };
        let packed: std::borrow::Cow<'_, [u8]> = typed(&w.bytes[part(w)]);
        super::packed::unpack(&packed, self.bits, &scale, &zero, out);
        Ok(())
    }
}

/// (x, w, expert[, scale[, zero]]): each row of x [tokens, slots or 1, k] times the transposed matrix of its expert.
pub(super) fn product_by_expert(x: &[View<'_>], bits: i64, out: &mut ViewMut<'_>) -> Result {
    let (a, w, expert) = (&x[0], &x[1], &x[2]);
    let misfit =
        || KernelError::Shape(format!("{:?} times the experts {:?} chosen by {:?}", a.shape, w.shape, expert.shape));
    let (&[tokens, own, k], &[experts, n, columns], &[t, slots]) = (a.shape, w.shape, expert.shape) else {
        return Err(misfit());
    };
    let per_byte = if bits == 0 { 1 } else { 8 / bits.clamp(1, 8) as usize };
    if t != tokens || !(own == slots || own == 1) || columns * per_byte != k || (bits == 0) != (x.len() == 3) {
        return Err(misfit());
    }
    if bits != 0 {
        let fits = |v: &View<'_>| matches!(v.shape, &[e, r, runs] if (e, r) == (experts, n) && runs > 0 && k.is_multiple_of(runs));
        if w.dtype != DType::U8 || !x[3..].iter().all(fits) || x.get(4).is_some_and(|z| z.shape != x[3].shape) {
            return Err(misfit());
        }
    }
    expect(out, a.dtype, &[tokens, slots, n])?;
    let a = floats(a)?;
    let mut rows: Vec<Vec<usize>> = vec![vec![]; experts];
    for (i, &e) in ints(expert)?.iter().enumerate() {
        // Negative ones count from the end.
        let at =
            usize::try_from(if e < 0 { e.saturating_add(experts as i64) } else { e }).ok().filter(|&e| e < experts);
        rows[at.ok_or(KernelError::Index { index: e, extent: experts })?].push(i);
    }
    let weights = Weights { x, bits };
    let mut matrix = vec![0.0f32; n * k];
    write_floats(out, |o| {
        for (e, rows) in rows.iter().enumerate().filter(|(_, r)| !r.is_empty()) {
            weights.of(e, &mut matrix)?;
            let mut chosen = Vec::with_capacity(rows.len() * k);
            for &i in rows {
                let row = if own == 1 { i / slots } else { i };
                chosen.extend_from_slice(&a[row * k..(row + 1) * k]);
            }
            let mut results = vec![0.0f32; rows.len() * n];
            let right = Matrix::rows(&matrix, n, k).t();
            let left = Matrix::rows(&chosen, rows.len(), k);
            product(left, right, &mut results, n, (0.0, 1.0), Parallelism::None)?;
            for (&i, result) in rows.iter().zip(results.chunks_exact(n.max(1))) {
                o[i * n..(i + 1) * n].copy_from_slice(result);
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{error, f32s, i64s, run_f64};
    use crate::dtype::DType;
    use crate::op::Op;
    use crate::tensor::Tensor;

    #[test]
    fn each_row_meets_its_expert() {
        let w = f32s(&[2, 1, 2], &[1., 2., 10., 20.]);
        let op = || Op::ExpertMatmul { bits: 0 };
        let x = f32s(&[2, 1, 2], &[1., 1., 2., 3.]);
        let y = run_f64(op(), &[&x, &w, &i64s(&[2, 2], &[0, 1, 1, 0])], DType::F32, &[2, 2, 1]);
        assert_eq!(y, [3., 30., 80., 8.]);
        let x = f32s(&[1, 2, 2], &[1., 1., 2., 3.]);
        let y = run_f64(op(), &[&x, &w, &i64s(&[1, 2], &[1, 1])], DType::F32, &[1, 2, 1]);
        assert_eq!(y, [30., 80.]);
        let e = error(op(), &[&x, &w, &i64s(&[1, 2], &[1, 2])], DType::F32, &[1, 2, 1]);
        assert!(e.contains("index 2 is outside the extent 2"), "{e}");
    }

    #[test]
    fn experts_of_few_bits() {
        let w = Tensor::from_bytes(DType::U8, &[2, 1, 1], &[0x21, 0x9f]).unwrap();
        let scale = f32s(&[2, 1, 2], &[1., 2., 0.5, 4.]);
        let x = f32s(&[1, 1, 2], &[1., 10.]);
        let at = i64s(&[1, 2], &[0, 1]);
        let y = run_f64(Op::ExpertMatmul { bits: 4 }, &[&x, &w, &at, &scale], DType::F32, &[1, 2, 1]);
        assert_eq!(y, [-7. - 120., 3.5 + 40.]);
        let zero = Tensor::from_bytes(DType::U8, &[2, 1, 2], &[0, 0, 15, 9]).unwrap();
        let y = run_f64(Op::ExpertMatmul { bits: 4 }, &[&x, &w, &at, &scale, &zero], DType::F32, &[1, 2, 1]);
        assert_eq!(y, [1. + 40., 0.]);
    }
}
