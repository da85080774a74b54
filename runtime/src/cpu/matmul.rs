//! Matrix products through the `gemm` crate.
use gemm::Parallelism;

use super::convert::{floats, round_to, typed, typed_mut, widen};
use super::skinny::Skinny;
use super::{KernelError, Result, broadcast_shape};
use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// A matrix in a slice: rows, columns and the steps between them.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_step: usize,
    pub(crate) col_step: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix.
    pub(crate) fn rows(data: &'a [T], rows: usize, cols: usize) -> Matrix<'a, T> {
        Matrix { data, rows, cols, row_step: cols, col_step: 1 }
    }

    /// The transposed matrix over the same data.
    pub(crate) fn t(self) -> Matrix<'a, T> {
        Matrix { rows: self.cols, cols: self.rows, row_step: self.col_step, col_step: self.row_step, ..self }
    }

    fn last(&self) -> Option<usize> {
        self.rows
            .checked_sub(1)?
            .checked_mul(self.row_step)?
            .checked_add(self.cols.checked_sub(1)?.checked_mul(self.col_step)?)
    }
}

/// out := scale * a * b, with `out` row-major and `out_step` elements from row to row.
pub(crate) fn product<T: Skinny>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    out: &mut [T],
    out_step: usize,
    (zero, scale): (T, T),
    parallelism: Parallelism,
) -> Result {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    if m == 0 || n == 0 {
        return Ok(());
    }
    let last = (m - 1) * out_step + n - 1;
    if k == 0 && last < out.len() {
        for row in out.chunks_mut(out_step.max(1)).take(m) {
            row[..n].fill(zero);
        }
        return Ok(());
    }
    let inside = |i: Option<usize>, len: usize| i.is_some_and(|i| i < len);
    if b.rows != k
        || out_step < n
        || last >= out.len()
        || !inside(a.last(), a.data.len())
        || !inside(b.last(), b.data.len())
    {
        return Err(KernelError::Shape(format!("a product of {m}x{k} and {}x{n} matrices", b.rows)));
    }
    let threads = match parallelism {
        Parallelism::Rayon(threads) if m * k * n >= 1 << 18 => threads,
        _ => 1,
    };
    if T::few_rows(a, b, scale, out, out_step, threads) {
        return Ok(());
    }
    // SAFETY: the greatest offset that each matrix reaches was just checked to lie within its slice, and
    // `out` is borrowed mutably, so it overlaps neither operand. `T` is f32 or f64, which gemm handles.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_step as isize,
            false,
            a.data.as_ptr(),
            a.col_step as isize,
            a.row_step as isize,
            b.data.as_ptr(),
            b.col_step as isize,
            b.row_step as isize,
            zero,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}

/// How a product is split into single matrices.
struct Layout {
    m: usize,
    k: usize,
    n: usize,
    /// Index of the matrix of a and of b, per matrix of the result.
    batch: Vec<(usize, usize)>,
}

impl Layout {
    fn of(a: &View<'_>, b: &View<'_>, trans_b: bool, out: &ViewMut<'_>) -> Result<Layout> {
        let misfit = |why: &str| {
            let b_name = if trans_b { "transposed " } else { "" };
            KernelError::Shape(format!("{:?} times {b_name}{:?}: {why}", a.shape, b.shape))
        };
        let matrix = |s: &[usize], row: bool| match *s {
            [] => None,
            [n] if row => Some((vec![], 1, n)),
            [n] => Some((vec![], n, 1)),
            [ref lead @ .., r, c] => Some((lead.to_vec(), r, c)),
        };
        let (mut a_lead, mut m, k) = matrix(a.shape, true).ok_or_else(|| misfit("a scalar"))?;
        let (b_lead, r, c) = matrix(b.shape, trans_b).ok_or_else(|| misfit("a scalar"))?;
        let (k_b, n) = if trans_b { (c, r) } else { (r, c) };
        if k != k_b {
            return Err(misfit("the inner extents differ"));
        }
        let mut shape = broadcast_shape(&a_lead, &b_lead)?;
        let lead = shape.clone();
        shape.extend((a.shape.len() > 1).then_some(m));
        shape.extend((b.shape.len() > 1).then_some(n));
        if shape != out.shape {
            return Err(misfit(&format!("the result is {shape:?}, but the plan declares {:?}", out.shape)));
        }
        if b_lead.iter().all(|&d| d == 1) {
            // One matrix b: the leading axes of a are more rows.
            m *= a_lead.iter().product::<usize>();
            a_lead.clear();
            return Ok(Layout { m, k, n, batch: vec![(0, 0)] });
        }
        let numbers = |s: &[usize]| (0..s.iter().product()).collect::<Vec<usize>>();
        let walk = super::walk::Walk::broadcast(&lead, [&a_lead, &b_lead])?;
        let mut batch = vec![(0, 0); lead.iter().product()];
        walk.zip(&numbers(&a_lead), &numbers(&b_lead), &mut batch, |x, y| (x, y));
        Ok(Layout { m, k, n, batch })
    }
}

/// Elements of b that are converted to f32 at a time.
const PANEL_ELEMENTS: usize = 1 << 20;

/// Matrix product over the last two axes; leading axes broadcast.
pub(super) fn matmul(a: &View<'_>, b: &View<'_>, trans_b: bool, out: &mut ViewMut<'_>, threads: usize) -> Result {
    if a.dtype != b.dtype {
        return Err(KernelError::Mixed(a.dtype, b.dtype));
    }
    if out.dtype != a.dtype {
        return Err(KernelError::Mixed(a.dtype, out.dtype));
    }
    let layout = Layout::of(a, b, trans_b, out)?;
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    match a.dtype {
        DType::F32 => {
            let (a, b) = (typed::<f32>(a.bytes), typed::<f32>(b.bytes));
            in_place(&layout, &a, &b, trans_b, typed_mut(out.bytes)?, (0.0, 1.0), parallelism)
        }
        DType::F64 => {
            let (a, b) = (typed::<f64>(a.bytes), typed::<f64>(b.bytes));
            in_place(&layout, &a, &b, trans_b, typed_mut(out.bytes)?, (0.0, 1.0), parallelism)
        }
        DType::F16 | DType::BF16 => in_panels(&layout, &floats(a)?, b, trans_b, out, parallelism),
        d => Err(KernelError::DType(d)),
    }
}

fn oriented<T>(data: &[T], k: usize, n: usize, trans_b: bool) -> Matrix<'_, T> {
    if trans_b { Matrix::rows(data, n, k).t() } else { Matrix::rows(data, k, n) }
}

fn in_place<T: Skinny>(
    layout: &Layout,
    a: &[T],
    b: &[T],
    trans_b: bool,
    out: &mut [T],
    constants: (T, T),
    parallelism: Parallelism,
) -> Result {
    let Layout { m, k, n, ref batch } = *layout;
    for (i, &(ia, ib)) in batch.iter().enumerate() {
        let a = Matrix::rows(&a[ia * m * k..(ia + 1) * m * k], m, k);
        let b = oriented(&b[ib * k * n..(ib + 1) * k * n], k, n, trans_b);
        product(a, b, &mut out[i * m * n..(i + 1) * m * n], n, constants, parallelism)?;
    }
    Ok(())
}

/// Converts b panel by panel, so that a weight is never held in f32 as a whole.
fn in_panels(
    layout: &Layout,
    a: &[f32],
    b: &View<'_>,
    trans_b: bool,
    out: &mut ViewMut<'_>,
    parallelism: Parallelism,
) -> Result {
    let Layout { m, k, n, ref batch } = *layout;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let size = b.dtype.size();
    let width = (PANEL_ELEMENTS / k.max(1)).clamp(1, n);
    let mut panel = vec![0.0f32; k * width];
    let mut result = vec![0.0f32; m * width];
    for (i, &(ia, ib)) in batch.iter().enumerate() {
        let a = Matrix::rows(&a[ia * m * k..(ia + 1) * m * k], m, k);
        let b_bytes = &b.bytes[ib * k * n * size..(ib + 1) * k * n * size];
        let out_bytes = &mut out.bytes[i * m * n * size..(i + 1) * m * n * size];
        for first in (0..n).step_by(width) {
            let w = width.min(n - first);
            if trans_b {
                widen(b.dtype, &b_bytes[first * k * size..(first + w) * k * size], &mut panel[..k * w])?;
            } else {
                for (r, row) in panel[..k * w].chunks_exact_mut(w).enumerate() {
                    let start = (r * n + first) * size;
                    widen(b.dtype, &b_bytes[start..start + w * size], row)?;
                }
            }
            product(a, oriented(&panel[..k * w], k, w, trans_b), &mut result[..m * w], w, (0.0, 1.0), parallelism)?;
            for (r, row) in result[..m * w].chunks_exact(w).enumerate() {
                let start = (r * n + first) * size;
                round_to(b.dtype, row, &mut out_bytes[start..start + w * size])?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, error, noise, run_f64, to};
    use super::*;
    use crate::op::Op;
    use crate::tensor::Tensor;

    /// One matrix product by its definition.
    fn naive(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize), trans_b: bool) -> Vec<f64> {
        let at = |l: usize, j: usize| if trans_b { b[j * k + l] } else { b[l * n + j] };
        (0..m * n).map(|i| (0..k).map(|l| a[i / n * k + l] * at(l, i % n)).sum()).collect()
    }

    fn shape_b(k: usize, n: usize, trans_b: bool) -> [usize; 2] {
        if trans_b { [n, k] } else { [k, n] }
    }

    #[test]
    fn products_match_the_definition_in_every_type() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (1, 64, 33), (17, 31, 1)] {
            for trans_b in [false, true] {
                let (a, b) = (noise(&[m, k], 1), noise(&shape_b(k, n, trans_b), 2));
                for (dtype, tolerance) in
                    [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 1e-2)]
                {
                    let (a, b) = (to(dtype, &a), to(dtype, &b));
                    let want = naive(&a.to_f64(), &b.to_f64(), (m, k, n), trans_b);
                    assert_close(&run_f64(Op::Matmul { trans_b }, &[&a, &b], dtype, &[m, n]), &want, tolerance);
                }
            }
        }
    }

    #[test]
    fn single_rows_are_scaled_and_cover_all_columns() {
        for (k, n) in [(1, 1), (5, 257), (300, 513), (64, 31)] {
            let (a, b) = (noise(&[k], 1), noise(&[k * n], 2));
            let (x, y) = (a.to_f64(), b.to_f64());
            let (a, b): (Vec<f32>, Vec<f32>) =
                (x.iter().map(|&v| v as f32).collect(), y.iter().map(|&v| v as f32).collect());
            for (trans, threads) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
                let mut out = vec![7.0f32; n];
                let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
                product(Matrix::rows(&a, 1, k), oriented(&b, k, n, trans), &mut out, n, (0.0, 0.5), parallelism)
                    .unwrap();
                let want: Vec<f64> = naive(&x, &y, (1, k, n), trans).iter().map(|v| v * 0.5).collect();
                assert_close(&out.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), &want, 1e-5);
            }
        }
    }

    #[test]
    fn panels_cover_wide_weights() {
        // 2048 x 1030 elements are three panels, the last one narrow.
        let (m, k, n) = (2, 2048, 1030);
        for trans_b in [false, true] {
            let a = to(DType::BF16, &noise(&[m, k], 1));
            let b = to(DType::BF16, &noise(&shape_b(k, n, trans_b), 2));
            let want = naive(&a.to_f64(), &b.to_f64(), (m, k, n), trans_b);
            assert_close(&run_f64(Op::Matmul { trans_b }, &[&a, &b], DType::BF16, &[m, n]), &want, 1e-2);
        }
    }

    #[test]
    fn leading_axes_broadcast() {
        let (a, b) = (noise(&[2, 1, 3, 4], 1), noise(&[5, 4, 2], 2));
        let y = run_f64(Op::Matmul { trans_b: false }, &[&a, &b], DType::F32, &[2, 5, 3, 2]);
        let (av, bv) = (a.to_f64(), b.to_f64());
        let want: Vec<f64> =
            (0..10).flat_map(|i| naive(&av[i / 5 * 12..][..12], &bv[i % 5 * 8..][..8], (3, 4, 2), false)).collect();
        assert_close(&y, &want, 1e-5);
        let row = noise(&[4], 3);
        let y = run_f64(Op::Matmul { trans_b: false }, &[&row, &noise(&[4, 2], 4)], DType::F32, &[2]);
        assert_eq!(y.len(), 2);
    }

    #[test]
    fn empty_and_misfitting_shapes() {
        let a = Tensor::zeros(DType::F32, &[2, 0]).unwrap();
        let b = Tensor::zeros(DType::F32, &[0, 3]).unwrap();
        assert_eq!(run_f64(Op::Matmul { trans_b: false }, &[&a, &b], DType::F32, &[2, 3]), [0.0; 6]);
        let a = Tensor::zeros(DType::BF16, &[0, 4]).unwrap();
        let b = Tensor::zeros(DType::BF16, &[4, 3]).unwrap();
        assert!(run_f64(Op::Matmul { trans_b: false }, &[&a, &b], DType::BF16, &[0, 3]).is_empty());
        let (a, b) = (noise(&[2, 3], 1), noise(&[4, 5], 2));
        let e = error(Op::Matmul { trans_b: false }, &[&a, &b], DType::F32, &[2, 5]);
        assert!(e.contains("[2, 3] times [4, 5]"), "{e}");
    }
}
