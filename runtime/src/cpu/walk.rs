//! Visits the elements of a result in order while following broadcast or strided operands.

use super::KernelError;
use super::simd::parts;

/// Elements from which on several threads combine two operands.
const PARALLEL: usize = 1 << 17;

/// The extents of a result and, per axis, the steps of `N` operands in elements.
///
/// Axes that can be visited as one are merged, so equal shapes, scalars and trailing suffixes become one
/// or two long rows.
pub(crate) struct Walk<const N: usize> {
    dims: Vec<usize>,
    steps: Vec<[isize; N]>,
}

impl<const N: usize> Walk<N> {
    /// Operands of `shapes` broadcast to `out` by NumPy's rules.
    pub(crate) fn broadcast(out: &[usize], shapes: [&[usize]; N]) -> Result<Walk<N>, KernelError> {
        let mut steps = vec![[0isize; N]; out.len()];
        for (n, shape) in shapes.iter().enumerate() {
            let misfit = || KernelError::Shape(format!("{shape:?} does not broadcast to {out:?}"));
            let lead = out.len().checked_sub(shape.len()).ok_or_else(misfit)?;
            let mut step = 1isize;
            for (i, &d) in shape.iter().enumerate().rev() {
                if d == out[lead + i] {
                    steps[lead + i][n] = if d == 1 { 0 } else { step };
                } else if d != 1 {
                    return Err(misfit());
                }
                step *= d as isize;
            }
        }
        Ok(Walk::strided(out, &steps))
    }

    /// Operands with explicit steps per axis of the result.
    pub(crate) fn strided(out: &[usize], steps: &[[isize; N]]) -> Walk<N> {
        let (mut dims, mut merged): (Vec<usize>, Vec<[isize; N]>) = (vec![], vec![]);
        for (&d, &s) in out.iter().zip(steps).rev() {
            if d == 1 {
                continue;
            }
            match (dims.last_mut(), merged.last()) {
                (Some(inner), Some(t)) if (0..N).all(|n| s[n] == t[n] * *inner as isize) => *inner *= d,
                _ => {
                    dims.push(d);
                    merged.push(s);
                }
            }
        }
        if dims.is_empty() {
            dims.push(1);
            merged.push([0; N]);
        }
        dims.reverse();
        merged.reverse();
        Walk { dims, steps: merged }
    }

    /// Calls `row(start in the result, starts in the operands, length, steps of the operands)` in order.
    pub(crate) fn rows(&self, mut row: impl FnMut(usize, [usize; N], usize, [isize; N])) {
        self.rows_from([0; N], |o, at, n, s| row(o, at.map(|i| i as usize), n, s));
    }

    /// As [`Walk::rows`], with operands that start elsewhere than at their first element.
    pub(crate) fn rows_from(&self, mut at: [isize; N], mut row: impl FnMut(usize, [isize; N], usize, [isize; N])) {
        if self.dims.contains(&0) {
            return;
        }
        let last = self.dims.len() - 1;
        let (n, steps) = (self.dims[last], self.steps[last]);
        let mut index = vec![0usize; last];
        let mut out = 0;
        loop {
            row(out, at, n, steps);
            out += n;
            let mut axis = last;
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                for (a, s) in at.iter_mut().zip(self.steps[axis]) {
                    *a += s;
                }
                if index[axis] < self.dims[axis] {
                    break;
                }
                for (a, s) in at.iter_mut().zip(self.steps[axis]) {
                    *a -= s * self.dims[axis] as isize;
                }
                index[axis] = 0;
            }
        }
    }

    /// The last two axes, where the operand lies along the last but one: a matrix to be turned.
    fn turned(&self) -> Option<(usize, usize)> {
        match (&self.dims[..], &self.steps[..]) {
            ([.., rows, columns], [.., a, b]) if N == 1 && a[0] == 1 && b[0] > 1 => Some((*rows, *columns)),
            _ => None,
        }
    }

    /// Fills `out` with copies of the first operand's elements.
    pub(crate) fn copy<T: Copy>(&self, start: [isize; N], x: &[T], out: &mut [T]) {
        // Tiles of both matrices stay in the cache, where whole columns would not.
        const TILE: usize = 16;
        if let Some((rows, columns)) = self.turned()
            && rows >= TILE
            && columns >= TILE
        {
            let last = self.dims.len() - 2;
            let (lead, step) = (&self.dims[..last], self.steps[last + 1][0]);
            let outer = Walk { dims: [lead, &[1]].concat(), steps: [&self.steps[..last], &[[0; N]]].concat() };
            outer.rows_from(start, |o, at, _, _| {
                let out = &mut out[o * rows * columns..][..rows * columns];
                let column = |c: usize, r: usize| (at[0] + c as isize * step) as usize + r;
                for r0 in (0..rows).step_by(TILE) {
                    for c0 in (0..columns).step_by(TILE) {
                        let (high, wide) = (TILE.min(rows - r0), TILE.min(columns - c0));
                        if (high, wide) == (TILE, TILE) {
                            let lines: [&[T]; TILE] = std::array::from_fn(|c| &x[column(c0 + c, r0)..][..TILE]);
                            for r in 0..TILE {
                                let line = &mut out[(r0 + r) * columns + c0..][..TILE];
                                for c in 0..TILE {
                                    line[c] = lines[c][r];
                                }
                            }
                            continue;
                        }
                        for r in r0..r0 + high {
                            let line = &mut out[r * columns + c0..][..wide];
                            line.iter_mut().enumerate().for_each(|(c, o)| *o = x[column(c0 + c, r)]);
                        }
                    }
                }
            });
            return;
        }
        self.rows_from(start, |o, at, n, steps| {
            let dst = &mut out[o..o + n];
            let at = at[0];
            match steps[0] {
                1 => dst.copy_from_slice(&x[at as usize..at as usize + n]),
                s => dst.iter_mut().enumerate().for_each(|(i, d)| *d = x[(at + i as isize * s) as usize]),
            }
        });
    }
}

impl Walk<2> {
    /// Combines two operands element by element, on all threads where there are many.
    pub(crate) fn zip<A: Copy + Sync, B: Copy + Sync, O: Send>(
        &self,
        a: &[A],
        b: &[B],
        out: &mut [O],
        f: impl Fn(A, B) -> O + Sync,
    ) {
        let threads = rayon::current_num_threads();
        let first = self.dims.first().copied().unwrap_or(0);
        if threads == 1 || out.len() < PARALLEL || first < threads {
            return self.zip_from([0; 2], a, b, out, &f);
        }
        let (inner, steps) = (out.len() / first, self.steps[0]);
        parts(out, first.div_ceil(threads) * inner, threads, |at, out| {
            let mut dims = self.dims.clone();
            dims[0] = out.len() / inner;
            let start = steps.map(|s| (at / inner) as isize * s);
            Walk { dims, steps: self.steps.clone() }.zip_from(start, a, b, out, &f);
        });
    }

    fn zip_from<A: Copy, B: Copy, O>(&self, start: [isize; 2], a: &[A], b: &[B], out: &mut [O], f: impl Fn(A, B) -> O) {
        self.rows_from(start, |o, at, n, steps| {
            let (dst, [ia, ib]) = (&mut out[o..o + n], at.map(|i| i as usize));
            match steps {
                [1, 1] => {
                    for ((d, &x), &y) in dst.iter_mut().zip(&a[ia..ia + n]).zip(&b[ib..ib + n]) {
                        *d = f(x, y);
                    }
                }
                [1, 0] => {
                    let y = b[ib];
                    dst.iter_mut().zip(&a[ia..ia + n]).for_each(|(d, &x)| *d = f(x, y));
                }
                [0, 1] => {
                    let x = a[ia];
                    dst.iter_mut().zip(&b[ib..ib + n]).for_each(|(d, &y)| *d = f(x, y));
                }
                [sa, sb] => {
                    for (i, d) in dst.iter_mut().enumerate() {
                        *d = f(a[ia + i * sa as usize], b[ib + i * sb as usize]);
                    }
                }
            }
        });
    }
}
