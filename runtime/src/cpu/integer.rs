//! Products of matrices of integers of at most eight bits, with sums of 32 bits that wrap.
//!
//! Both operands are widened to 16 bits without their zero points and laid out in pairs along the inner extent, so that
//! one instruction multiplies two pairs and adds them up. Tiles of the result stay in registers.
#![allow(clippy::needless_range_loop, reason = "the compiler vectorises loops over the indices of several arrays")]

use rayon::prelude::*;

/// Rows of a tile.
const TALL: usize = 8;
/// Columns of a tile.
const WIDE: usize = 32;

/// Two neighbours along the inner extent.
type Pair = [i16; 2];

/// Rows of the left operand in blocks of up to [`TALL`], each laid out pair by pair.
pub(crate) struct Left {
    pairs: Vec<[Pair; TALL]>,
    rows: usize,
    depth: usize,
}

/// An element of an operand.
pub(crate) trait Element: Copy + Sync {
    const ZERO: Self;
    /// Its value.
    fn wide(self) -> i16;
}

impl Element for u8 {
    const ZERO: Self = 0;
    #[inline(always)]
    fn wide(self) -> i16 {
        i16::from(self)
    }
}

impl Element for i8 {
    const ZERO: Self = 0;
    #[inline(always)]
    fn wide(self) -> i16 {
        i16::from(self)
    }
}

impl Element for i16 {
    const ZERO: Self = 0;
    #[inline(always)]
    fn wide(self) -> i16 {
        self
    }
}

/// Zero points: one for all, or one for each row or column.
#[derive(Clone, Copy)]
pub(crate) enum Zero<'a> {
    One(i16),
    Each(&'a [i16]),
}

impl Zero<'_> {
    fn at(&self, i: usize) -> i16 {
        match self {
            Zero::One(z) => *z,
            Zero::Each(z) => z[i],
        }
    }
}

impl Left {
    /// Packs a row-major matrix of `rows` x `depth`; zero points are by row.
    pub(crate) fn new<T: Element>(a: &[T], rows: usize, depth: usize, zero: Zero<'_>) -> Left {
        let half = depth.div_ceil(2);
        let mut pairs = vec![[[0i16; 2]; TALL]; rows.div_ceil(TALL) * half];
        for r in 0..rows {
            let line = &a[r * depth..][..depth];
            let (z, block) = (zero.at(r), &mut pairs[r / TALL * half..][..half]);
            for (to, from) in block.iter_mut().zip(line.chunks(2)) {
                to[r % TALL] = [from[0].wide() - z, from.get(1).map_or(0, |b| b.wide() - z)];
            }
        }
        Left { pairs, rows, depth }
    }
}

/// Packs the columns of a right operand from `first` on; columns that are not there are zeros.
fn panel<T: Element>(b: &[T], columns: usize, first: usize, zero: Zero<'_>, out: &mut [[Pair; WIDE]]) {
    let width = WIDE.min(columns - first);
    let depth = b.len() / columns;
    let mut z = [0i16; WIDE];
    z[..width].iter_mut().enumerate().for_each(|(i, z)| *z = zero.at(first + i));
    super::simd::vectorised(
        #[inline(always)]
        || {
            for (i, to) in out.iter_mut().enumerate() {
                // Zero points themselves stand for what is not there.
                let mut lines = [z; 2];
                for (half, line) in lines.iter_mut().enumerate() {
                    let at = 2 * i + half;
                    if at >= depth {
                        continue;
                    }
                    let from = &b[at * columns + first..][..width];
                    match <&[T; WIDE]>::try_from(from) {
                        Ok(from) => {
                            for c in 0..WIDE {
                                line[c] = from[c].wide();
                            }
                        }
                        Err(_) => line.iter_mut().zip(from).for_each(|(o, v)| *o = v.wide()),
                    }
                }
                for c in 0..WIDE {
                    to[c] = [lines[0][c] - z[c], lines[1][c] - z[c]];
                }
            }
        },
    );
}

/// The tile of `R` rows: sums of products of pairs.
#[inline(always)]
fn plain<const R: usize>(a: &[[Pair; TALL]], b: &[[Pair; WIDE]]) -> [[i32; WIDE]; R] {
    let mut sums = [[0i32; WIDE]; R];
    for (a, b) in a.iter().zip(b) {
        for r in 0..R {
            for c in 0..WIDE {
                let (x, y) = (a[r].map(i32::from), b[c].map(i32::from));
                sums[r][c] = sums[r][c].wrapping_add(x[0] * y[0] + x[1] * y[1]);
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Pair, TALL, WIDE};

    pulp::simd_type! {
        /// 512-bit vectors; the compiler makes one instruction of product and sum where the processor has it.
        pub(super) struct Dot512 {
            pub(super) avx512f: "avx512f",
            pub(super) avx512bw: "avx512bw",
            pub(super) avx512vnni: "avx512vnni",
        }
    }

    /// Instructions with which a tile is computed: `$n` vectors make [`WIDE`] columns, of which `$pass` at a time stay in registers with
    /// the sums of `R` rows, the first of which is `row`.
    macro_rules! tile {
        ($name:ident, $simd:ty, $vector:ident, $n:literal, $pass:literal, $zero:expr, $splat:expr, $madd:expr, $add:expr) => {
            #[inline(always)]
            pub(super) fn $name<const R: usize>(
                v: $simd,
                (a, row): (&[[Pair; TALL]], usize),
                b: &[[Pair; WIDE]],
                out: &mut [[i32; WIDE]],
            ) {
                const PART: usize = WIDE / $n * $pass;
                for h in 0..$n / $pass {
                    let mut sums = [[$zero(v); $pass]; R];
                    for (a, b) in a.iter().zip(b) {
                        let b: [std::arch::x86_64::$vector; $n] = pulp::cast(*b);
                        for r in 0..R {
                            let x = $splat(v, pulp::cast(a[row + r]));
                            for i in 0..$pass {
                                sums[r][i] = $add(v, sums[r][i], $madd(v, x, b[h * $pass + i]));
                            }
                        }
                    }
                    for r in 0..R {
                        let part: [i32; PART] = pulp::cast(sums[r]);
                        out[row + r][h * PART..(h + 1) * PART].copy_from_slice(&part);
                    }
                }
            }
        };
    }

    // 32 registers hold a whole tile of 8 rows, 16 a quarter of one.
    tile!(
        tile512,
        Dot512,
        __m512i,
        2,
        2,
        |v: Dot512| v.avx512f._mm512_setzero_si512(),
        |v: Dot512, x: i32| v.avx512f._mm512_set1_epi32(x),
        |v: Dot512, x, y| v.avx512bw._mm512_madd_epi16(x, y),
        |v: Dot512, x, y| v.avx512f._mm512_add_epi32(x, y)
    );
    tile!(
        tile256,
        pulp::x86::V3,
        __m256i,
        4,
        2,
        |v: pulp::x86::V3| v.avx._mm256_setzero_si256(),
        |v: pulp::x86::V3, x: i32| v.avx._mm256_set1_epi32(x),
        |v: pulp::x86::V3, x, y| v.avx2._mm256_madd_epi16(x, y),
        |v: pulp::x86::V3, x, y| v.avx2._mm256_add_epi32(x, y)
    );

    /// Columns that are multiplied at a time where the right operand is read in place.
    pub(super) const STEP: usize = 16;

    /// Adds the products of four elements of a row with those of four lines to `sums`, [`STEP`] columns at a time. Of each step, `sums`
    /// holds the columns in the order 0 to 3, 8 to 11, 4 to 7, 12 to 15.
    #[inline(always)]
    pub(super) fn four_lines<T: super::Element>(v: pulp::x86::V3, a: [i16; 4], lines: [&[T]; 4], sums: &mut [i32]) {
        let (x, y) =
            (v.avx._mm256_set1_epi32(pulp::cast([a[0], a[1]])), v.avx._mm256_set1_epi32(pulp::cast([a[2], a[3]])));
        let [p, q, r, s] = lines.map(|l| l.as_chunks::<STEP>().0);
        let wide = |c: &[T; STEP]| -> std::arch::x86_64::__m256i {
            let mut w = [0i16; STEP];
            for i in 0..STEP {
                w[i] = c[i].wide();
            }
            pulp::cast(w)
        };
        for ((((p, q), r), s), sums) in p.iter().zip(q).zip(r).zip(s).zip(sums.as_chunks_mut::<STEP>().0) {
            let (p, q, r, s) = (wide(p), wide(q), wide(r), wide(s));
            let low = v.avx2._mm256_add_epi32(
                v.avx2._mm256_madd_epi16(x, v.avx2._mm256_unpacklo_epi16(p, q)),
                v.avx2._mm256_madd_epi16(y, v.avx2._mm256_unpacklo_epi16(r, s)),
            );
            let high = v.avx2._mm256_add_epi32(
                v.avx2._mm256_madd_epi16(x, v.avx2._mm256_unpackhi_epi16(p, q)),
                v.avx2._mm256_madd_epi16(y, v.avx2._mm256_unpackhi_epi16(r, s)),
            );
            let [old_low, old_high]: [std::arch::x86_64::__m256i; 2] = pulp::cast(*sums);
            *sums = pulp::cast([v.avx2._mm256_add_epi32(old_low, low), v.avx2._mm256_add_epi32(old_high, high)]);
        }
    }
}

/// A tile with the widest instructions of the processor.
fn tile<const R: usize>(a: &[[Pair; TALL]], b: &[[Pair; WIDE]], out: &mut [[i32; WIDE]; TALL]) {
    let out = &mut out[..R];
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(v) = x86::Dot512::try_new() {
            return v.vectorize(
                #[inline(always)]
                || x86::tile512::<R>(v, (a, 0), b, out),
            );
        }
        if let Some(v) = pulp::x86::V3::try_new() {
            return pulp::Simd::vectorize(
                v,
                #[inline(always)]
                || match R {
                    TALL => {
                        x86::tile256::<4>(v, (a, 0), b, out);
                        x86::tile256::<4>(v, (a, 4), b, out);
                    }
                    _ => x86::tile256::<R>(v, (a, 0), b, out),
                },
            );
        }
    }
    super::simd::vectorised(
        #[inline(always)]
        || out.copy_from_slice(&plain::<R>(a, b)),
    );
}

/// A product: for each [`WIDE`] columns of the result, a piece of each row.
pub(crate) struct Product {
    pieces: Vec<[i32; WIDE]>,
    rows: usize,
    columns: usize,
}

impl Product {
    /// The pieces of a row of the result, each with the column that it starts at.
    pub(crate) fn row(&self, r: usize) -> impl Iterator<Item = (usize, &[i32])> {
        let first = (0..self.columns).step_by(WIDE);
        first.map(move |c| (c, &self.pieces[c / WIDE * self.rows + r][..WIDE.min(self.columns - c)]))
    }
}

/// Pieces of a row that a thread computes at a time.
const PIECES: usize = 8;

/// The product of one row, which reads the right operand in place; false where the processor lacks the instructions. `out` has as many
/// elements as there are columns or more.
#[cfg(target_arch = "x86_64")]
fn one_row<T: Element>(
    left: &Left,
    right: &[T],
    columns: usize,
    zero: Zero<'_>,
    threads: usize,
    out: &mut [i32],
) -> bool {
    let Some(v) = pulp::x86::V3::try_new() else { return false };
    let row: Vec<i16> = left.pairs.iter().flat_map(|tall| tall[0]).take(left.depth).collect();
    let total = row.iter().fold(0i32, |s, &a| s.wrapping_add(i32::from(a)));
    let threads = if left.depth * columns >= 1 << 18 { threads } else { 1 };
    super::simd::parts(out, PIECES * WIDE, threads, |first, out| {
        let width = out.len().min(columns - first);
        let whole = width / x86::STEP * x86::STEP;
        let out = &mut out[..width];
        let line = |l: usize| &right[l * columns + first..][..width];
        let zeros = [T::ZERO; PIECES * WIDE];
        pulp::Simd::vectorize(
            v,
            #[inline(always)]
            || {
                for l in (0..row.len()).step_by(4) {
                    let a = std::array::from_fn(|i| row.get(l + i).copied().unwrap_or(0));
                    let lines = std::array::from_fn(|i| if l + i < row.len() { line(l + i) } else { &zeros[..width] });
                    x86::four_lines(v, a, lines.map(|l: &[T]| &l[..whole]), &mut out[..whole]);
                    for c in whole..width {
                        for i in 0..4 {
                            out[c] = out[c].wrapping_add(i32::from(a[i]) * i32::from(lines[i][c].wide()));
                        }
                    }
                }
            },
        );
        for step in out[..whole].as_chunks_mut::<{ x86::STEP }>().0 {
            let (a, rest) = step.split_at_mut(8);
            a[4..].swap_with_slice(&mut rest[..4]);
        }
        for (c, o) in out.iter_mut().enumerate() {
            *o = o.wrapping_sub(total.wrapping_mul(i32::from(zero.at(first + c))));
        }
    });
    true
}

#[cfg(not(target_arch = "x86_64"))]
fn one_row<T: Element>(_: &Left, _: &[T], _: usize, _: Zero<'_>, _: usize, _: &mut [i32]) -> bool {
    false
}

/// The product with a row-major matrix of `columns` columns; its zero points are by column. `left.depth` is its number of rows.
pub(crate) fn product<T: Element>(left: &Left, right: &[T], columns: usize, zero: Zero<'_>, threads: usize) -> Product {
    let (rows, half) = (left.rows, left.depth.div_ceil(2));
    let mut pieces = vec![[0i32; WIDE]; columns.div_ceil(WIDE) * rows];
    if rows == 0 || columns == 0 || left.depth == 0 {
        return Product { pieces, rows, columns };
    }
    let right = &right[..left.depth * columns];
    if rows == 1 && one_row(left, right, columns, zero, threads, pieces.as_flattened_mut()) {
        return Product { pieces, rows, columns };
    }
    let one = |packed: &mut Vec<[Pair; WIDE]>, (p, out): (usize, &mut [[i32; WIDE]])| {
        packed.resize(half, [[0; 2]; WIDE]);
        panel(right, columns, p * WIDE, zero, packed);
        let mut sums = [[0i32; WIDE]; TALL];
        for (a, out) in left.pairs.chunks_exact(half).zip(out.chunks_mut(TALL)) {
            match out.len() {
                1 => tile::<1>(a, packed, &mut sums),
                2 => tile::<2>(a, packed, &mut sums),
                3 | 4 => tile::<4>(a, packed, &mut sums),
                _ => tile::<TALL>(a, packed, &mut sums),
            }
            out.copy_from_slice(&sums[..out.len()]);
        }
    };
    if threads > 1 && rows * left.depth * columns >= 1 << 18 {
        pieces.par_chunks_mut(rows).enumerate().for_each_init(Vec::new, one);
    } else {
        let mut scratch = vec![];
        pieces.chunks_mut(rows).enumerate().for_each(|part| one(&mut scratch, part));
    }
    Product { pieces, rows, columns }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(a: &[i64], b: &[i64], (m, k, n): (usize, usize, usize)) -> Vec<i32> {
        (0..m * n).map(|i| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum::<i64>() as i32).collect()
    }

    fn rows(p: &Product) -> Vec<i32> {
        (0..p.rows).flat_map(|r| p.row(r).flat_map(|(_, v)| v.to_vec()).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn products_are_exact_for_all_extents() {
        for (m, k, n) in [(1, 1, 1), (1, 7, 33), (2, 8, 32), (3, 5, 31), (4, 64, 65), (9, 300, 100), (17, 513, 40)] {
            let a: Vec<u8> = (0..m * k).map(|i| (i * 97 % 256) as u8).collect();
            let b: Vec<i8> = (0..k * n).map(|i| (i * 61 % 256) as u8 as i8).collect();
            let za: Vec<i16> = (0..m).map(|i| (i * 31 % 256) as i16).collect();
            let zb: Vec<i16> = (0..n).map(|i| (i * 17 % 256) as i16 - 128).collect();
            let wide_a: Vec<i64> = a.iter().enumerate().map(|(i, &v)| i64::from(v) - i64::from(za[i / k])).collect();
            let wide_b: Vec<i64> = b.iter().enumerate().map(|(i, &v)| i64::from(v) - i64::from(zb[i % n])).collect();
            let want = naive(&wide_a, &wide_b, (m, k, n));
            for threads in [1, 2] {
                let left = Left::new(&a, m, k, Zero::Each(&za));
                assert_eq!(rows(&product(&left, &b, n, Zero::Each(&zb), threads)), want, "{m} x {k} x {n}");
            }
            // The same with operands that are wide and centred already.
            let (a, b): (Vec<i16>, Vec<i16>) =
                (wide_a.iter().map(|&v| v as i16).collect(), wide_b.iter().map(|&v| v as i16).collect());
            let left = Left::new(&a, m, k, Zero::One(0));
            assert_eq!(rows(&product(&left, &b, n, Zero::One(0), 1)), want);
            // Every processor has these instructions.
            let mut packed = vec![[[0i16; 2]; WIDE]; k.div_ceil(2)];
            panel(&b, n, 0, Zero::One(0), &mut packed);
            let first = plain::<1>(&left.pairs[..k.div_ceil(2)], &packed);
            let width = WIDE.min(n);
            assert_eq!(first[0][..width], want[..width]);
        }
    }

    #[test]
    fn sums_wrap() {
        let k = 200_000;
        let left = Left::new(&vec![255u8; k], 1, k, Zero::One(0));
        let y = product(&left, &vec![255u8; k], 1, Zero::One(0), 1);
        assert_eq!(rows(&y), [(255i64 * 255 * k as i64) as i32]);
    }
}
