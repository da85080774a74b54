//! Products of few rows with a matrix: each element of the matrix is read once and not laid out anew.

use pulp::{Arch, Simd, WithSimd};

use super::matmul::Matrix;
use super::simd::parts;

/// The most rows that are multiplied here; with more, laying out the matrix pays.
pub(super) const MOST_ROWS: usize = 8;
/// Columns whose sums stay in the first-level cache where the matrix is read row by row.
const COLUMNS: usize = 512;
/// Rows of the matrix that are added up before they are added to the result, which bounds the error of the sums.
const ROWS: usize = 256;
/// Rows that are read side by side.
const ABREAST: usize = 8;
/// Columns that a thread takes at a time where the matrix is read column by column.
const DOTS: usize = 64;

/// What products of few rows are computed in.
pub(crate) trait Skinny: Copy + Send + Sync + 'static {
    /// out := scale * a * b for at most [`MOST_ROWS`] rows, whose elements lie side by side, where the elements of the columns of `b` do,
    /// too, or for one row where those of the rows of `b` do; false in other cases. `out` has `step` elements from row to row.
    fn few_rows(
        a: Matrix<'_, Self>,
        b: Matrix<'_, Self>,
        scale: Self,
        out: &mut [Self],
        step: usize,
        threads: usize,
    ) -> bool;
}

macro_rules! skinny {
    ($module:ident, $t:ident, $vector:ident, $as_simd:ident, $as_mut_simd:ident, $splat:ident, $mul_add:ident, $reduce:ident) => {
        mod $module {
            use super::*;

            /// Products of `R` rows and `L` lines.
            #[inline(always)]
            fn dots<S: Simd, const R: usize, const L: usize>(
                simd: S,
                a: [&[$t]; R],
                lines: [&[$t]; L],
            ) -> [[$t; L]; R] {
                let mut sums = [[simd.$splat(0.0); L]; R];
                let (a, a_rest) = (a.map(|v| S::$as_simd(v).0), a.map(|v| S::$as_simd(v).1));
                let (b, b_rest) = (lines.map(|v| S::$as_simd(v).0), lines.map(|v| S::$as_simd(v).1));
                for i in 0..a[0].len() {
                    let mut x = [simd.$splat(0.0); R];
                    for r in 0..R {
                        x[r] = a[r][i];
                    }
                    for l in 0..L {
                        let y = b[l][i];
                        for r in 0..R {
                            sums[r][l] = simd.$mul_add(x[r], y, sums[r][l]);
                        }
                    }
                }
                let mut out = [[0.0; L]; R];
                for r in 0..R {
                    for l in 0..L {
                        let rest: $t = a_rest[r].iter().zip(b_rest[l]).map(|(x, y)| x * y).sum();
                        out[r][l] = simd.$reduce(sums[r][l]) + rest;
                    }
                }
                out
            }

            /// Products of rows with columns from `first` on: a column's results lie side by side in `out`.
            struct Dots<'a, 'b> {
                a: Matrix<'a, $t>,
                b: Matrix<'a, $t>,
                first: usize,
                out: &'b mut [$t],
            }

            impl Dots<'_, '_> {
                #[inline(always)]
                fn block<S: Simd, const R: usize, const L: usize>(&mut self, simd: S, row: usize, column: usize) {
                    let (a, b, k, m) = (self.a, self.b, self.a.cols, self.a.rows);
                    let rows: [&[$t]; R] = std::array::from_fn(|r| &a.data[(row + r) * a.row_step..][..k]);
                    let line = |l: usize| &b.data[(self.first + column + l) * b.col_step..][..k];
                    let y = dots::<S, R, L>(simd, rows, std::array::from_fn(line));
                    for l in 0..L {
                        for r in 0..R {
                            self.out[(column + l) * m + row + r] = y[r][l];
                        }
                    }
                }
            }

            impl WithSimd for Dots<'_, '_> {
                type Output = ();

                #[inline(always)]
                fn with_simd<S: Simd>(mut self, simd: S) {
                    let (m, n) = (self.a.rows, self.out.len() / self.a.rows);
                    let mut row = 0;
                    while row < m {
                        // Eight sums stay in registers.
                        let (rows, lines) = match m - row {
                            1 => (1, 8),
                            2 | 3 => (2, 4),
                            _ => (4, 2),
                        };
                        for c in (0..n / lines * lines).step_by(lines) {
                            match rows {
                                1 => self.block::<S, 1, 8>(simd, row, c),
                                2 => self.block::<S, 2, 4>(simd, row, c),
                                _ => self.block::<S, 4, 2>(simd, row, c),
                            }
                        }
                        for c in n / lines * lines..n {
                            match rows {
                                1 => self.block::<S, 1, 1>(simd, row, c),
                                2 => self.block::<S, 2, 1>(simd, row, c),
                                _ => self.block::<S, 4, 1>(simd, row, c),
                            }
                        }
                        row += rows;
                    }
                }
            }

            /// sums += the products of elements of a row with as many lines of the matrix.
            struct Lines<'a, 'b, const N: usize> {
                a: [$t; N],
                lines: [&'a [$t]; N],
                sums: &'b mut [$t],
            }

            impl<const N: usize> WithSimd for Lines<'_, '_, N> {
                type Output = ();

                #[inline(always)]
                fn with_simd<S: Simd>(self, simd: S) {
                    let x = self.a.map(|v| simd.$splat(v));
                    let (lines, rest) = (self.lines.map(|v| S::$as_simd(v).0), self.lines.map(|v| S::$as_simd(v).1));
                    let (sums, sums_rest) = S::$as_mut_simd(self.sums);
                    let lines = lines.map(|l| &l[..sums.len()]);
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let mut s = *sum;
                        for l in 0..N {
                            s = simd.$mul_add(x[l], lines[l][i], s);
                        }
                        *sum = s;
                    }
                    for (i, sum) in sums_rest.iter_mut().enumerate() {
                        for l in 0..N {
                            *sum += self.a[l] * rest[l][i];
                        }
                    }
                }
            }

            impl Skinny for $t {
                fn few_rows(
                    a: Matrix<'_, $t>,
                    b: Matrix<'_, $t>,
                    scale: $t,
                    out: &mut [$t],
                    step: usize,
                    threads: usize,
                ) -> bool {
                    let (m, n) = (a.rows, b.cols);
                    if a.col_step != 1 || m == 0 || m > MOST_ROWS {
                        return false;
                    }
                    let arch = Arch::new();
                    if b.row_step == 1 {
                        let by_column = |out: &mut [$t]| {
                            parts(out, DOTS * m, threads, |at, out| {
                                arch.dispatch(Dots { a, b, first: at / m, out: &mut *out });
                                out.iter_mut().for_each(|o| *o *= scale);
                            });
                        };
                        if m == 1 {
                            by_column(&mut out[..n]);
                            return true;
                        }
                        let mut turned = vec![0.0; m * n];
                        by_column(&mut turned);
                        for (r, row) in out.chunks_mut(step).take(m).enumerate() {
                            row[..n].iter_mut().zip(turned[r..].iter().step_by(m)).for_each(|(o, v)| *o = *v);
                        }
                        return true;
                    }
                    if b.col_step != 1 || m != 1 {
                        return false;
                    }
                    parts(&mut out[..n], COLUMNS, threads, |first, out| {
                        out.fill(0.0);
                        let n = out.len();
                        let mut sums = [0.0; COLUMNS];
                        for (block, a) in a.data[..a.cols].chunks(ROWS).enumerate() {
                            let sums = &mut sums[..n];
                            sums.fill(0.0);
                            let line = |l: usize| &b.data[(block * ROWS + l) * b.row_step + first..][..n];
                            let (several, rest) = a.as_chunks::<ABREAST>();
                            for (i, &a) in several.iter().enumerate() {
                                let lines = std::array::from_fn(|l| line(ABREAST * i + l));
                                arch.dispatch(Lines { a, lines, sums: &mut *sums });
                            }
                            for (i, &a) in rest.iter().enumerate() {
                                let lines = [line(ABREAST * several.len() + i)];
                                arch.dispatch(Lines { a: [a], lines, sums: &mut *sums });
                            }
                            out.iter_mut().zip(&*sums).for_each(|(o, s)| *o += s);
                        }
                        out.iter_mut().for_each(|o| *o *= scale);
                    });
                    true
                }
            }
        }
    };
}

skinny!(single, f32, f32s, as_simd_f32s, as_mut_simd_f32s, splat_f32s, mul_add_e_f32s, reduce_sum_f32s);
skinny!(double, f64, f64s, as_simd_f64s, as_mut_simd_f64s, splat_f64s, mul_add_e_f64s, reduce_sum_f64s);

#[cfg(test)]
mod tests {
    use gemm::Parallelism;

    use super::super::matmul::product;
    use super::*;

    #[test]
    fn few_rows_cover_the_whole_result() {
        for m in 1..=MOST_ROWS + 1 {
            for (k, n) in [(1, 1), (5, 257), (300, 521), (64, 31), (17, 9)] {
                let a: Vec<f32> = (0..m * k).map(|i| ((i * 37) % 19) as f32 - 9.0).collect();
                let b: Vec<f32> = (0..k * n).map(|i| ((i * 61) % 23) as f32 - 11.0).collect();
                for turned in [false, true] {
                    let matrix = if turned { Matrix::rows(&b, n, k).t() } else { Matrix::rows(&b, k, n) };
                    let at = |l: usize, c: usize| f64::from(b[if turned { c * k + l } else { l * n + c }]);
                    let want = |r: usize, c: usize| {
                        (0..k).map(|l| f64::from(a[r * k + l]) * at(l, c)).sum::<f64>() as f32 * 0.5
                    };
                    for parallelism in [Parallelism::None, Parallelism::Rayon(2)] {
                        // Two elements behind each row are not the product's.
                        let step = n + 2;
                        let mut out = vec![7.0; m * step];
                        product(Matrix::rows(&a, m, k), matrix, &mut out, step, (0.0, 0.5), parallelism).unwrap();
                        for (r, row) in out.chunks(step).enumerate() {
                            assert!((0..n).all(|c| row[c] == want(r, c)), "{m} x {k} x {n}");
                            assert_eq!(row[n..], [7.0; 2]);
                        }
                    }
                }
            }
        }
    }
}
