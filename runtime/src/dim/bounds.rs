//! What is known of the value of an expression whatever extents its symbols have.

use super::{Atom, Dim, MAX_EXTENT, Repr};

/// Beyond this, in either direction, nothing is known.
const FAR: i128 = 1 << 100;

/// No product of extents exceeds this: it is a number of elements.
const MAX_ELEMENTS: i128 = 1 << 52;

/// How many expressions one proof may look at.
const BUDGET: usize = 64;

type Bounds = (i128, i128);

fn times(a: Bounds, b: Bounds) -> Bounds {
    let all = [a.0.saturating_mul(b.0), a.0.saturating_mul(b.1), a.1.saturating_mul(b.0), a.1.saturating_mul(b.1)];
    let fold = |f: fn(i128, i128) -> i128| all.into_iter().reduce(f).unwrap_or(0).clamp(-FAR, FAR);
    (fold(i128::min), fold(i128::max))
}

impl Dim {
    /// A lower and an upper bound of the value, far away where nothing is known.
    pub fn bounds(&self) -> (i128, i128) {
        self.bounds_with(MAX_EXTENT.into(), MAX_ELEMENTS)
    }

    /// The bounds where no extent and no product of extents is larger than stated.
    fn bounds_with(&self, extent: i128, elements: i128) -> Bounds {
        let terms = match &self.0 {
            Repr::Const(n) => return ((*n).into(), (*n).into()),
            Repr::Sum(t) => t,
        };
        let mut sum = (0i128, 0i128);
        for (m, c) in terms.iter() {
            let mut product = (1, 1);
            for a in m {
                product = times(product, a.bounds(extent, elements));
            }
            if m.len() > 1 && m.iter().all(|a| matches!(a, Atom::Sym(_))) {
                product.1 = product.1.min(elements);
            }
            let term = times(product, ((*c).into(), (*c).into()));
            sum = ((sum.0 + term.0).clamp(-FAR, FAR), (sum.1 + term.1).clamp(-FAR, FAR));
        }
        // Sums that leave 64 bits wrap.
        if sum.0 < i64::MIN.into() || sum.1 > i64::MAX.into() { (-FAR, FAR) } else { sum }
    }

    /// Whether the value lies within numbers whatever extents the symbols have.
    pub fn is_within(&self, low: i64, high: i64) -> bool {
        let (a, b) = self.bounds();
        a >= low.into() && b <= high.into()
    }

    /// Whether the value lies within numbers for extents of up to a million, and products of extents of up to 2^30.
    pub fn is_plausibly_within(&self, low: i64, high: i64) -> bool {
        let (a, b) = self.bounds_with(1 << 20, 1 << 30);
        a >= low.into() && b <= high.into()
    }

    /// Whether the value is proven to be zero or more.
    pub fn is_natural(&self) -> bool {
        self.natural(&mut BUDGET.clone())
    }

    fn natural(&self, budget: &mut usize) -> bool {
        if self.bounds().0 >= 0 {
            return true;
        }
        let Repr::Sum(terms) = &self.0 else { return false };
        if *budget == 0 || self.bounds().1 < 0 {
            return false;
        }
        *budget -= 1;
        for (m, c) in terms.iter() {
            for (at, atom) in m.iter().enumerate() {
                let Some((a, b)) = atom.operands() else { continue };
                // The other factors of the term, with its sign: c * rest * atom.
                let mut others = m.clone();
                others.remove(at);
                let rest = Dim::from_terms([(others, 1)]);
                if rest.bounds().0 < 0 {
                    continue;
                }
                let factor = &rest * &Dim::from(*c);
                let base = self - &Dim::from_terms([(m.clone(), *c)]);
                let with = |v: &Dim| &base + &(&factor * v);
                let up = *c > 0;
                let found = match atom {
                    Atom::Sym(_) => false,
                    Atom::Max(_) if up => with(a).natural(budget) || with(b).natural(budget),
                    Atom::Min(_) if !up => with(a).natural(budget) || with(b).natural(budget),
                    Atom::Max(_) | Atom::Min(_) => with(a).natural(budget) && with(b).natural(budget),
                    Atom::Floor(_) | Atom::Div(_) => match b.as_const() {
                        // p * floor(a / p) lies between a - p + 1 and a.
                        Some(p) if p > 1 && (matches!(atom, Atom::Floor(_)) || a.bounds().0 >= 0) => {
                            let edge = if up { a - &Dim::from(p - 1) } else { a.clone() };
                            (&(&base * &Dim::from(p)) + &(&factor * &edge)).natural(budget)
                        }
                        _ => false,
                    },
                    // Between 0 and p - 1, and not above a where a is no less than 0.
                    Atom::Mod(_) => match b.as_const() {
                        Some(p) if p > 0 && up => with(&Dim::from(0)).natural(budget),
                        Some(p) if p > 0 => {
                            with(&Dim::from(p - 1)).natural(budget) || a.bounds().0 >= 0 && with(a).natural(budget)
                        }
                        _ => false,
                    },
                    // One of the two, where they fit together.
                    Atom::Join(_) => with(a).natural(budget) && with(b).natural(budget),
                };
                if found {
                    return true;
                }
            }
        }
        false
    }
}

impl Atom {
    fn bounds(&self, extent: i128, elements: i128) -> Bounds {
        let unknown = (-FAR, FAR);
        let Some((a, b)) = self.operands() else { return (0, extent) };
        let (x, y) = (a.bounds_with(extent, elements), b.bounds_with(extent, elements));
        match self {
            Atom::Sym(_) => (0, extent),
            Atom::Min(_) => (x.0.min(y.0), x.1.min(y.1)),
            Atom::Max(_) => (x.0.max(y.0), x.1.max(y.1)),
            Atom::Join(_) => (x.0.min(y.0), x.1.max(y.1)),
            Atom::Floor(_) if y.0 > 0 => {
                let all = [x.0.div_euclid(y.0), x.0.div_euclid(y.1), x.1.div_euclid(y.0), x.1.div_euclid(y.1)];
                (all.into_iter().min().unwrap_or(-FAR), all.into_iter().max().unwrap_or(FAR))
            }
            Atom::Div(_) if y.0 > 0 => {
                let all = [x.0 / y.0, x.0 / y.1, x.1 / y.0, x.1 / y.1];
                (all.into_iter().min().unwrap_or(-FAR), all.into_iter().max().unwrap_or(FAR))
            }
            // A divisor of 0 gives no value at all.
            Atom::Floor(_) | Atom::Div(_) if y.0 >= 0 && x.0 >= 0 => (0, x.1),
            Atom::Mod(_) if y.0 >= 0 => (0, if x.0 >= 0 { x.1.min((y.1 - 1).max(0)) } else { (y.1 - 1).max(0) }),
            Atom::Mod(_) if y.1 <= 0 => ((y.0 + 1).min(0), 0),
            Atom::Floor(_) | Atom::Div(_) | Atom::Mod(_) => unknown,
        }
    }
}
