//! Random shapes: extents from a small pool, and shapes that stand in some relation to others.

use super::random::Random;
use crate::ir::{DType, Dim, Shape, TensorType};

/// The extents that one instance is made of. Few of them, so that equal ones meet by chance.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    dims: Vec<Dim>,
    tp: i64,
}

/// Number of sizes of pools, from the smallest extents to the largest.
pub(super) const LEVELS: usize = 3;

impl Pool {
    /// Extents for a mesh of `tp` ranks: odd and prime ones, multiples of the mesh, sometimes a symbol; `empty`: 0 among them.
    pub(super) fn new(random: &mut Random, tp: usize, level: usize, symbol: Option<Dim>, empty: bool) -> Pool {
        let tp = tp as i64;
        let all: &[i64] = match level {
            0 => &[1, 2, 3, tp, 2 * tp],
            1 => &[1, 2, 3, 4, 5, tp, 2 * tp, 3 * tp],
            _ => &[1, 2, 3, 4, 5, 6, 7, 11, tp, 2 * tp, 3 * tp, 4 * tp],
        };
        let mut dims: Vec<Dim> = (0..3).map(|_| Dim::from(*random.pick(all))).collect();
        dims.push(Dim::from(tp * (1 + random.below(2) as i64)));
        dims.push(Dim::from(2 * (1 + random.below(2 + level) as i64)));
        dims.extend(symbol);
        if empty {
            dims[0] = Dim::from(0);
        }
        Pool { dims, tp }
    }

    pub(super) fn dim(&self, r: &mut Random) -> Dim {
        r.pick(&self.dims).clone()
    }

    pub(super) fn even(&self, r: &mut Random) -> Dim {
        let halves: Vec<&Dim> = self.dims.iter().filter(|d| d.div_exact(&Dim::from(2)).is_some()).collect();
        if halves.is_empty() { Dim::from(2) } else { (*r.pick(&halves)).clone() }
    }

    /// A multiple of the number of ranks.
    pub(super) fn multiple(&self, r: &mut Random) -> Dim {
        Dim::from(self.tp * (1 + r.below(2) as i64))
    }

    pub(super) fn shape(&self, r: &mut Random, rank: usize) -> Shape {
        (0..rank).map(|_| self.dim(r)).collect()
    }
}

pub(super) fn ty(dtype: DType, shape: Shape) -> TensorType {
    TensorType { dtype, shape }
}

fn one() -> Dim {
    Dim::from(1)
}

/// Extents of a constant, with 1 for symbols.
pub(super) fn extents(shape: &[Dim]) -> Vec<usize> {
    shape.iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok()).unwrap_or(1)).collect()
}

/// A shape that broadcasts to another, most often the same.
pub(super) fn broadcasts_to(r: &mut Random, shape: &[Dim]) -> Shape {
    let mut s = shape.to_vec();
    match r.below(8) {
        0 => s.clear(),
        1 => s = s.split_off(s.len().saturating_sub(1)),
        2 => s = s.split_off(r.below(s.len() + 1)),
        3 if !s.is_empty() => {
            let i = r.below(s.len());
            s[i] = one();
        }
        4 if !s.is_empty() => {
            let n = s.len();
            s[n - 1] = one();
        }
        _ => {}
    }
    s
}

/// A shape that broadcasts with another; the result may be larger than either.
pub(super) fn partner(r: &mut Random, pool: &Pool, shape: &[Dim]) -> Shape {
    if r.chance(12) {
        let mut s = shape.to_vec();
        match s.iter().position(|d| d.as_const() == Some(1)) {
            Some(i) => s[i] = pool.dim(r),
            None => s.insert(0, pool.dim(r)),
        }
        return s;
    }
    broadcasts_to(r, shape)
}

/// A shape with as many elements.
pub(super) fn reshaped(r: &mut Random, shape: &[Dim]) -> Shape {
    let mut s = shape.to_vec();
    for _ in 0..1 + r.below(2) {
        let n = s.len();
        match r.below(9) {
            // Joins two neighbours.
            0..=2 if n >= 2 => {
                let i = r.below(n - 1);
                let right = s.remove(i + 1);
                s[i] = &s[i] * &right;
            }
            // Splits an axis.
            3..=5 if n >= 1 => {
                let i = r.below(n);
                let parts = Dim::from(*r.pick(&[2, 3, 4]));
                if let Some(rest) = s[i].div_exact(&parts) {
                    if r.chance(50) {
                        s[i] = parts;
                        s.insert(i + 1, rest);
                    } else {
                        s[i] = rest;
                        s.insert(i + 1, parts);
                    }
                }
            }
            6 => s.insert(r.below(n + 1), one()),
            7 => {
                if let Some(i) = s.iter().position(|d| d.as_const() == Some(1)) {
                    s.remove(i);
                }
            }
            // Exchanges extents: the same elements in other rows, which is no transposition.
            8 if n >= 2 => s.swap(r.below(n), r.below(n)),
            _ => {}
        }
    }
    s
}

/// A permutation of the axes, often a familiar one.
pub(super) fn permutation(r: &mut Random, rank: usize) -> Vec<i64> {
    let mut p: Vec<i64> = (0..rank as i64).collect();
    match r.below(4) {
        0 if rank >= 2 => p.swap(rank - 1, rank - 2),
        1 if rank == 4 => p.swap(1, 2),
        _ => r.shuffle(&mut p),
    }
    p
}
