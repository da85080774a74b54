//! Symbolic extents, and the integers that models compute from them.
//!
//! A [`Dim`] is a sum of products of named symbols, with divisions, remainders, minima, maxima and broadcasts as opaque
//! factors. Equal expressions have one normal form wherever the rules below find it, so `==` is a proof of equality and `!=`
//! is none of difference. A symbol is the extent of a tensor: zero or more, and at most [`MAX_EXTENT`]. Sums and products
//! wrap at 64 bits, as those of ONNX do.

mod bounds;
mod shapes;
#[cfg(test)]
mod tests;
mod text;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

pub use shapes::{SliceBounds, count_steps, reshaped, slice_bounds};

/// A tensor shape: one extent per axis.
pub type Shape = Vec<Dim>;

/// Values for symbols, by name.
pub type Bindings = BTreeMap<String, i64>;

/// The largest extent of an axis.
pub const MAX_EXTENT: i64 = i32::MAX as i64;

/// A symbolic integer.
///
/// ```
/// use sinter_runtime::dim::Dim;
/// let total = Dim::parse("seq + past").unwrap();
/// assert_eq!(total, &Dim::sym("past") + &Dim::sym("seq"));
/// let twice = &total * &Dim::from(2);
/// assert_eq!(twice.div_exact(&total), Some(Dim::from(2)));
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Const(i64),
    /// Sorted by monomial, no zero coefficient, never a lone constant.
    Sum(Arc<Vec<(Vec<Atom>, i64)>>),
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Atom {
    Sym(Arc<str>),
    Floor(Box<(Dim, Dim)>),
    Mod(Box<(Dim, Dim)>),
    Min(Box<(Dim, Dim)>),
    Max(Box<(Dim, Dim)>),
    Div(Box<(Dim, Dim)>),
    Join(Box<(Dim, Dim)>),
}

/// A factor of a product in [`Dim::products`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Factor {
    /// A named symbol.
    Symbol(String),
    /// `floor(a / b)`.
    Floor(Dim, Dim),
    /// `a` modulo `b`, with the sign of the divisor.
    Mod(Dim, Dim),
    /// The smaller one.
    Min(Dim, Dim),
    /// The larger one.
    Max(Dim, Dim),
    /// `a / b`, rounded towards zero.
    Div(Dim, Dim),
    /// The extent that two extents have together by broadcasting: `b` where `a` is 1, `a` otherwise.
    Join(Dim, Dim),
}

impl From<i64> for Dim {
    fn from(n: i64) -> Self {
        Dim(Repr::Const(n))
    }
}

/// Products of sums that multiplied out have more factors and terms than this stay products.
const MAX_SIZE: usize = 4096;

impl Dim {
    /// A named symbol, such as `batch`.
    pub fn sym(name: &str) -> Dim {
        Dim::from_terms([(vec![Atom::Sym(name.into())], 1)])
    }

    /// The value, when no symbol is left.
    pub fn as_const(&self) -> Option<i64> {
        match self.0 {
            Repr::Const(n) => Some(n),
            Repr::Sum(_) => None,
        }
    }

    /// The symbol's name, when the expression is one bare symbol.
    pub fn as_sym(&self) -> Option<&str> {
        match self.as_atom() {
            Some(Atom::Sym(s)) => Some(s),
            _ => None,
        }
    }

    /// The only factor of the only term.
    fn as_atom(&self) -> Option<&Atom> {
        match &self.0 {
            Repr::Sum(t) => match &t[..] {
                [(m, 1)] => match &m[..] {
                    [atom] => Some(atom),
                    _ => None,
                },
                _ => None,
            },
            Repr::Const(_) => None,
        }
    }

    /// The two extents, when the expression is what they have together by broadcasting.
    pub fn as_join(&self) -> Option<(&Dim, &Dim)> {
        match self.as_atom() {
            Some(Atom::Join(d)) => Some((&d.0, &d.1)),
            _ => None,
        }
    }

    fn terms(&self) -> Vec<(Vec<Atom>, i64)> {
        match &self.0 {
            Repr::Const(0) => vec![],
            Repr::Const(n) => vec![(vec![], *n)],
            Repr::Sum(t) => t.to_vec(),
        }
    }

    /// The sum of products that the expression is: each with its coefficient, a constant without factors.
    ///
    /// ```
    /// use sinter_runtime::dim::{Dim, Factor};
    /// let d = Dim::parse("2 * seq").unwrap();
    /// assert_eq!(d.products(), [(2, vec![Factor::Symbol("seq".to_owned())])]);
    /// ```
    pub fn products(&self) -> Vec<(i64, Vec<Factor>)> {
        let factor = |a: &Atom| match a {
            Atom::Sym(s) => Factor::Symbol(s.to_string()),
            Atom::Floor(d) => Factor::Floor(d.0.clone(), d.1.clone()),
            Atom::Mod(d) => Factor::Mod(d.0.clone(), d.1.clone()),
            Atom::Min(d) => Factor::Min(d.0.clone(), d.1.clone()),
            Atom::Max(d) => Factor::Max(d.0.clone(), d.1.clone()),
            Atom::Div(d) => Factor::Div(d.0.clone(), d.1.clone()),
            Atom::Join(d) => Factor::Join(d.0.clone(), d.1.clone()),
        };
        self.terms().iter().map(|(m, c)| (*c, m.iter().map(factor).collect())).collect()
    }

    fn from_terms(terms: impl IntoIterator<Item = (Vec<Atom>, i64)>) -> Dim {
        let mut map: BTreeMap<Vec<Atom>, i64> = BTreeMap::new();
        for (mut m, c) in terms {
            m.sort();
            let e = map.entry(m).or_insert(0);
            *e = e.wrapping_add(c);
        }
        map.retain(|_, c| *c != 0);
        // d * floor(x / d) == x where d divides x.
        let whole = map.iter().find_map(|(m, &c)| {
            let at = m.iter().position(|a| match a {
                Atom::Floor(f) => f.1.as_const().is_some_and(|d| d > 1 && c % d == 0 && f.0.residue(d) == Dim::from(0)),
                _ => false,
            })?;
            Some((m.clone(), at))
        });
        if let Some((mut m, at)) = whole {
            let c = map.remove(&m).unwrap_or(0);
            if let Atom::Floor(f) = m.remove(at) {
                let factor = Dim::from_terms([(m, c / f.1.as_const().unwrap_or(1))]);
                return &Dim::from_terms(map) + &(&factor * &f.0);
            }
        }
        match map.len() {
            0 => Dim::from(0),
            1 if map.contains_key(&vec![]) => Dim::from(map[&vec![]]),
            _ => Dim(Repr::Sum(Arc::new(map.into_iter().collect()))),
        }
    }

    /// `self / rhs` when the division leaves no remainder for every value of the symbols.
    pub fn div_exact(&self, rhs: &Dim) -> Option<Dim> {
        if let (Some(a), Some(b)) = (self.as_const(), rhs.as_const()) {
            return (a.checked_rem(b) == Some(0)).then(|| Dim::from(a / b));
        }
        if self == rhs {
            return Some(Dim::from(1));
        }
        let (a, b) = (self.terms(), rhs.terms());
        let divide = |(m, c): &(Vec<Atom>, i64), (n, d): &(Vec<Atom>, i64)| -> Option<(Vec<Atom>, i64)> {
            if c.checked_rem(*d) != Some(0) {
                return None;
            }
            let mut rest = m.clone();
            for atom in n {
                let at = rest.iter().position(|x| x == atom)?;
                rest.remove(at);
            }
            Some((rest, c / d))
        };
        match &b[..] {
            [] => None,
            [one] => match a.iter().map(|t| divide(t, one)).collect::<Option<Vec<_>>>() {
                Some(terms) => Some(Dim::from_terms(terms)),
                None => self.div_whole(one),
            },
            _ => {
                let q = Dim::from_terms([divide(a.last()?, b.last()?)?]);
                if &q * rhs == *self {
                    return Some(q);
                }
                // Long division, by the last term.
                let (mut rest, mut sum) = (self.clone(), Dim::from(0));
                for _ in 0..a.len() {
                    let Some(top) = rest.terms().last().and_then(|t| divide(t, &b[b.len() - 1])) else { break };
                    let q = Dim::from_terms([top]);
                    rest = &rest - &(&q * rhs);
                    sum = &sum + &q;
                }
                (rest == Dim::from(0)).then_some(sum)
            }
        }
    }

    /// The quotient by a product, where only all terms together are a multiple of its coefficient.
    fn div_whole(&self, (atoms, d): &(Vec<Atom>, i64)) -> Option<Dim> {
        // Without factors there is no step left that could fail for another reason than the coefficients.
        let by_atoms = if *d == 1 { return None } else { self.div_exact(&Dim::from_terms([(atoms.clone(), 1)]))? };
        let terms = by_atoms.terms();
        let common = terms.iter().fold(d.unsigned_abs(), |g, (_, c)| gcd(g, c.unsigned_abs()));
        let common = i64::try_from(common).ok()?;
        let divisor = d.checked_div(common).filter(|&n| n > 1)?;
        let rest = Dim::from_terms(terms.into_iter().map(|(m, c)| (m, c / common)));
        // A product of a constant alone has been tried by its caller.
        (rest.as_const().is_none() && rest.residue(divisor) == Dim::from(0))
            .then(|| Dim::atom(Atom::Floor(Box::new((rest, Dim::from(divisor))))))
    }

    /// `self / rhs`, rounded down.
    pub fn floor_div(&self, rhs: &Dim) -> Dim {
        if let Some(q) = self.div_exact(rhs) {
            return q;
        }
        let atom = || Dim::atom(Atom::Floor(Box::new((self.clone(), rhs.clone()))));
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) => floor_i64(a, b).map_or_else(atom, Dim::from),
            (None, Some(i64::MIN)) => atom(),
            (None, Some(b)) if b < 0 => self.negated().floor_div(&Dim::from(-b)),
            (None, Some(b)) if b > 1 => self.floor_by(b),
            _ => atom(),
        }
    }

    /// The floor of the quotient by a number above 1.
    fn floor_by(&self, b: i64) -> Dim {
        // Whole multiples come out.
        let mut whole = vec![];
        let mut rest = vec![];
        for (m, c) in self.terms() {
            match c.rem_euclid(b) {
                0 => whole.push((m, c / b)),
                r if m.is_empty() => {
                    whole.push((vec![], c.div_euclid(b)));
                    rest.push((m, r));
                }
                _ => rest.push((m, c)),
            }
        }
        let whole = Dim::from_terms(whole);
        let rest_terms = rest.clone();
        let rest = Dim::from_terms(rest);
        if let Some(n) = rest.as_const() {
            return &whole + &Dim::from(n.div_euclid(b));
        }
        // floor((g * y + c) / (g * b)) is floor((y + floor(c / g)) / b).
        let varying = rest_terms.iter().filter(|(m, _)| !m.is_empty());
        let g = varying.fold(b.unsigned_abs(), |g, (_, c)| gcd(g, c.unsigned_abs())) as i64;
        if g > 1 {
            let rest = Dim::from_terms(rest_terms.into_iter().map(|(m, c)| (m, c.div_euclid(g))));
            return &whole + &rest.floor_div(&Dim::from(b / g));
        }
        // floor((floor(x / p) + y) / b) is floor((x + p * y) / (p * b)).
        let inner = rest_terms.iter().position(|(m, c)| {
            *c == 1 && matches!(&m[..], [Atom::Floor(f)] if f.1.as_const().is_some_and(|p| p > 1 && p.checked_mul(b).is_some()))
        });
        if let Some(at) = inner
            && let [Atom::Floor(f)] = &rest_terms[at].0[..]
            && let Some(p) = f.1.as_const()
        {
            let others =
                Dim::from_terms(rest_terms.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, t)| t.clone()));
            return &whole + &(&f.0 + &(&others * &f.1)).floor_div(&Dim::from(p * b));
        }
        &whole + &Dim::atom(Atom::Floor(Box::new((rest, Dim::from(b)))))
    }

    /// `self / rhs`, rounded towards zero, as ONNX divides integers.
    pub fn quotient(&self, rhs: &Dim) -> Dim {
        let atom = || Dim::atom(Atom::Div(Box::new((self.clone(), rhs.clone()))));
        if let (Some(a), Some(b)) = (self.as_const(), rhs.as_const()) {
            return if b == 0 { atom() } else { Dim::from(a.wrapping_div(b)) };
        }
        if rhs.as_const() != Some(0)
            && let Some(q) = self.div_exact(rhs)
        {
            return q;
        }
        match rhs.as_const() {
            Some(0 | i64::MIN) => return atom(),
            Some(b) if b < 0 => return self.quotient(&Dim::from(-b)).negated(),
            _ => {}
        }
        if rhs.is_natural() {
            if self.is_natural() {
                return self.floor_div(rhs);
            }
            if self.negated().is_natural() {
                return self.negated().floor_div(rhs).negated();
            }
        }
        if let (Some(Atom::Div(d)), Some(b)) = (self.as_atom(), rhs.as_const())
            && let Some(product) = d.1.as_const().and_then(|p| p.checked_mul(b))
        {
            return d.0.quotient(&Dim::from(product));
        }
        atom()
    }

    /// What [`Dim::quotient`] leaves, which has the sign of the dividend.
    pub fn remainder(&self, rhs: &Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) if b != 0 => Dim::from(a.wrapping_rem(b)),
            _ if self.is_natural() && rhs.is_natural() => self.modulo(rhs),
            _ => self - &(rhs * &self.quotient(rhs)),
        }
    }

    /// `self` modulo `rhs`, with the sign of the divisor.
    pub fn modulo(&self, rhs: &Dim) -> Dim {
        let atom = || Dim::atom(Atom::Mod(Box::new((self.clone(), rhs.clone()))));
        if rhs.as_const() != Some(0) && self.div_exact(rhs).is_some() {
            return Dim::from(0);
        }
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) => mod_i64(a, b).map_or_else(atom, Dim::from),
            (None, Some(i64::MIN)) => atom(),
            (None, Some(b)) if b < -1 => self.negated().modulo(&Dim::from(-b)).negated(),
            (None, Some(-1 | 1)) => Dim::from(0),
            (None, Some(b)) if b > 1 => {
                let (low, high) = self.bounds();
                if low >= 0 && high < i128::from(b) {
                    return self.clone();
                }
                let rest = self.residue(b);
                match rest.as_const() {
                    Some(n) => Dim::from(n.rem_euclid(b)),
                    None => Dim::atom(Atom::Mod(Box::new((rest, rhs.clone())))),
                }
            }
            _ => atom(),
        }
    }

    /// A simpler expression that leaves the same remainder modulo `n`, which is above 1.
    fn residue(&self, n: i64) -> Dim {
        let mut sum = Dim::from(0);
        for (m, c) in self.terms() {
            // The coefficient of the smallest magnitude.
            let c = c.rem_euclid(n);
            let c = if c > n / 2 { c - n } else { c };
            if c == 0 {
                continue;
            }
            let term = match &m[..] {
                // What is taken modulo a multiple of n leaves the same remainder as itself.
                [Atom::Mod(d)] if d.1.as_const().is_some_and(|k| k % n == 0) => &Dim::from(c) * &d.0.residue(n),
                _ => Dim::from_terms([(m, c)]),
            };
            sum = &sum + &term;
        }
        match &sum.0 {
            Repr::Sum(terms) if terms.iter().any(|(_, c)| c.rem_euclid(n) == 0) => sum.residue(n),
            Repr::Const(c) => Dim::from(c.rem_euclid(n)),
            Repr::Sum(_) => sum,
        }
    }

    /// The smaller one.
    pub fn smaller(&self, rhs: &Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.min(b)),
            _ if (rhs - self).is_natural() => self.clone(),
            _ if (self - rhs).is_natural() => rhs.clone(),
            _ => Dim::atom(Atom::Min(Box::new(ordered(self, rhs)))),
        }
    }

    /// The larger one.
    pub fn larger(&self, rhs: &Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.max(b)),
            _ if (rhs - self).is_natural() => rhs.clone(),
            _ if (self - rhs).is_natural() => self.clone(),
            _ => Dim::atom(Atom::Max(Box::new(ordered(self, rhs)))),
        }
    }

    /// The number without its sign.
    pub fn magnitude(&self) -> Dim {
        match self.as_const() {
            Some(n) => Dim::from(n.wrapping_abs()),
            None => self.larger(&self.negated()),
        }
    }

    fn negated(&self) -> Dim {
        self * &Dim::from(-1)
    }

    /// 1 where `self < rhs`, else 0.
    pub fn less(&self, rhs: &Dim) -> Dim {
        (rhs - self).larger(&Dim::from(0)).smaller(&Dim::from(1))
    }

    /// 1 where the two are equal, else 0.
    pub fn equal(&self, rhs: &Dim) -> Dim {
        &(&Dim::from(1) - &self.less(rhs)) - &rhs.less(self)
    }

    /// The extent that two extents have together by broadcasting. Where they do not fit together, the value does not matter.
    pub fn join(&self, rhs: &Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            _ if self == rhs => return self.clone(),
            (Some(1), _) => return rhs.clone(),
            (_, Some(1)) => return self.clone(),
            // An extent other than 1 decides.
            (Some(_), _) => return self.clone(),
            (_, Some(_)) => return rhs.clone(),
            _ => {}
        }
        // Nested broadcasts are one set of extents.
        let mut all = vec![];
        self.joined(&mut all);
        rhs.joined(&mut all);
        all.sort();
        all.dedup();
        let mut i = 0;
        while i < all.len() {
            if (0..all.len()).any(|j| j != i && all[j].decides_over(&all[i])) {
                all.remove(i);
                i = 0;
            } else {
                i += 1;
            }
        }
        let mut all = all.into_iter();
        let first = all.next().unwrap_or_else(|| Dim::from(1));
        all.fold(first, |a, b| Dim::atom(Atom::Join(Box::new((a, b)))))
    }

    fn joined(&self, out: &mut Vec<Dim>) {
        match self.as_atom() {
            Some(Atom::Join(d)) => {
                d.0.joined(out);
                d.1.joined(out);
            }
            _ => out.push(self.clone()),
        }
    }

    /// Whether the broadcast of the two is `self` wherever they fit together: `self` is never 1, or `other` is equal to it wherever
    /// it is not 0. (Together with 0, an extent is 0 or 1, and both give 0.)
    fn decides_over(&self, other: &Dim) -> bool {
        if self.bounds().0 > 1 {
            return true;
        }
        // The smaller of `self` and a number above 1 is 1 where `self` is; where it is that number instead, the two do not fit.
        if let Some(Atom::Min(pair)) = other.as_atom() {
            let limit = if pair.0 == *self { &pair.1 } else { &pair.0 };
            if (pair.0 == *self || pair.1 == *self) && limit.bounds().0 > 1 {
                return true;
            }
        }
        let Repr::Sum(terms) = &self.0 else { return false };
        let [(atoms, 1..)] = &terms[..] else { return false };
        // Where a product of symbols is not 0, each of them is 1 or more.
        let mut one_more = BTreeMap::new();
        for a in atoms {
            let Atom::Sym(s) = a else { return false };
            one_more.insert(s.to_string(), &Dim::sym(s) + &Dim::from(1));
        }
        self.substitute(&one_more) == other.substitute(&one_more)
    }

    fn atom(a: Atom) -> Dim {
        Dim::from_terms([(vec![a], 1)])
    }

    /// The value under `bindings`. The error names the symbol that has none, or says what cannot be computed.
    pub fn eval(&self, bindings: &Bindings) -> Result<i64, String> {
        match &self.0 {
            Repr::Const(n) => Ok(*n),
            Repr::Sum(terms) => {
                let mut sum = 0i64;
                for (m, c) in terms.iter() {
                    let mut p = *c;
                    for a in m {
                        p = p.wrapping_mul(a.eval(bindings)?);
                    }
                    sum = sum.wrapping_add(p);
                }
                Ok(sum)
            }
        }
    }

    /// Replaces symbols by expressions.
    pub fn substitute(&self, map: &BTreeMap<String, Dim>) -> Dim {
        match &self.0 {
            Repr::Const(_) => self.clone(),
            Repr::Sum(terms) => {
                let mut sum = Dim::from(0);
                for (m, c) in terms.iter() {
                    let mut p = Dim::from(*c);
                    for a in m {
                        let v = match a {
                            Atom::Sym(s) => map.get(&**s).cloned().unwrap_or_else(|| Dim::sym(s)),
                            _ => a.rebuilt(&|d| d.substitute(map)),
                        };
                        p = &p * &v;
                    }
                    sum = &sum + &p;
                }
                sum
            }
        }
    }

    /// Adds the names of the symbols that occur to `out`.
    pub fn collect_symbols(&self, out: &mut BTreeSet<String>) {
        if let Repr::Sum(terms) = &self.0 {
            for a in terms.iter().flat_map(|(m, _)| m) {
                match (a, a.operands()) {
                    (_, Some((x, y))) => {
                        x.collect_symbols(out);
                        y.collect_symbols(out);
                    }
                    (Atom::Sym(s), None) => {
                        out.insert(s.to_string());
                    }
                    _ => {}
                }
            }
        }
    }

    /// Levels of nesting, and number of factors and terms in all.
    pub fn size(&self) -> (usize, usize) {
        let Repr::Sum(terms) = &self.0 else { return (0, 1) };
        let mut total = (0usize, 0usize);
        for (m, _) in terms.iter() {
            total.1 += 1;
            for a in m {
                total.1 += 1;
                if let Some((x, y)) = a.operands() {
                    let (x, y) = (x.size(), y.size());
                    total.0 = total.0.max(1 + x.0.max(y.0));
                    total.1 = total.1.saturating_add(x.1).saturating_add(y.1);
                }
            }
        }
        total
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn floor_i64(a: i64, b: i64) -> Option<i64> {
    if b == 0 {
        return None;
    }
    let q = a.wrapping_div(b);
    Some(if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q })
}

fn mod_i64(a: i64, b: i64) -> Option<i64> {
    if b == 0 {
        return None;
    }
    let r = a.wrapping_rem(b);
    Some(if r != 0 && (r < 0) != (b < 0) { r + b } else { r })
}

fn ordered(a: &Dim, b: &Dim) -> (Dim, Dim) {
    if a.cmp(b) == Ordering::Greater { (b.clone(), a.clone()) } else { (a.clone(), b.clone()) }
}

impl Atom {
    fn operands(&self) -> Option<(&Dim, &Dim)> {
        match self {
            Atom::Sym(_) => None,
            Atom::Floor(d) | Atom::Mod(d) | Atom::Min(d) | Atom::Max(d) | Atom::Div(d) | Atom::Join(d) => {
                Some((&d.0, &d.1))
            }
        }
    }

    /// The same operation on other operands.
    fn rebuilt(&self, of: &dyn Fn(&Dim) -> Dim) -> Dim {
        match self {
            Atom::Sym(s) => Dim::sym(s),
            Atom::Floor(d) if d.1.as_const() == Some(1) => Dim::opaque(&of(&d.0)),
            Atom::Floor(d) => of(&d.0).floor_div(&of(&d.1)),
            Atom::Mod(d) => of(&d.0).modulo(&of(&d.1)),
            Atom::Min(d) => of(&d.0).smaller(&of(&d.1)),
            Atom::Max(d) => of(&d.0).larger(&of(&d.1)),
            Atom::Div(d) => of(&d.0).quotient(&of(&d.1)),
            Atom::Join(d) => of(&d.0).join(&of(&d.1)),
        }
    }

    fn eval(&self, b: &Bindings) -> Result<i64, String> {
        let zero = || "division by zero in a dimension".to_owned();
        let value = |d: &(Dim, Dim)| Ok::<_, String>((d.0.eval(b)?, d.1.eval(b)?));
        Ok(match self {
            Atom::Sym(s) => *b.get(&**s).ok_or_else(|| format!("symbol `{s}` has no value"))?,
            Atom::Floor(d) => value(d).and_then(|(x, y)| floor_i64(x, y).ok_or_else(zero))?,
            Atom::Mod(d) => value(d).and_then(|(x, y)| mod_i64(x, y).ok_or_else(zero))?,
            Atom::Div(d) => {
                let (x, y) = value(d)?;
                if y == 0 {
                    return Err(zero());
                }
                x.wrapping_div(y)
            }
            Atom::Min(d) => value(d).map(|(x, y)| x.min(y))?,
            Atom::Max(d) => value(d).map(|(x, y)| x.max(y))?,
            Atom::Join(d) => match value(d)? {
                (1, y) => y,
                (x, y) if y == 1 || x == y => x,
                (x, y) => return Err(format!("the extents {} = {x} and {} = {y} do not broadcast", d.0, d.1)),
            },
        })
    }
}

impl Dim {
    /// The expression as one factor.
    fn opaque(&self) -> Dim {
        match &self.0 {
            Repr::Sum(t) if t.len() > 1 => Dim::atom(Atom::Floor(Box::new((self.clone(), Dim::from(1))))),
            _ => self.clone(),
        }
    }
}

impl Add for &Dim {
    type Output = Dim;
    fn add(self, rhs: &Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.wrapping_add(b)),
            (Some(0), _) => rhs.clone(),
            (_, Some(0)) => self.clone(),
            _ => Dim::from_terms(self.terms().into_iter().chain(rhs.terms())),
        }
    }
}

impl Sub for &Dim {
    type Output = Dim;
    fn sub(self, rhs: &Dim) -> Dim {
        self.add(&rhs.negated())
    }
}

impl Mul for &Dim {
    type Output = Dim;
    fn mul(self, rhs: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), rhs.as_const()) {
            return Dim::from(a.wrapping_mul(b));
        }
        let (a, b) = (self.terms(), rhs.terms());
        if (a.len() > 1 || b.len() > 1) && self.as_const().is_none() && rhs.as_const().is_none() {
            let (x, y) = (self.size().1, rhs.size().1);
            if a.len().saturating_mul(y).saturating_add(b.len().saturating_mul(x)) > MAX_SIZE {
                return &self.opaque() * &rhs.opaque();
            }
        }
        let mut out = Vec::with_capacity(a.len() * b.len());
        for (m, c) in &a {
            for (n, d) in &b {
                out.push((m.iter().chain(n).cloned().collect(), c.wrapping_mul(*d)));
            }
        }
        Dim::from_terms(out)
    }
}
