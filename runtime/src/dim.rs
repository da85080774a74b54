//! Symbolic extents: sums of products of named symbols, with floor division, modulo, minimum and
//! maximum as opaque factors. Equal expressions have one normal form, so `==` is a proof.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A tensor shape: one extent per axis.
pub type Shape = Vec<Dim>;

/// Values for symbols, by name.
pub type Bindings = BTreeMap<String, i64>;

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
}

impl From<i64> for Dim {
    fn from(n: i64) -> Self {
        Dim(Repr::Const(n))
    }
}

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
        match &self.0 {
            Repr::Sum(t) => match &t[..] {
                [(m, 1)] => match &m[..] {
                    [Atom::Sym(s)] => Some(s),
                    _ => None,
                },
                _ => None,
            },
            Repr::Const(_) => None,
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
        };
        self.terms().iter().map(|(m, c)| (*c, m.iter().map(factor).collect())).collect()
    }

    fn from_terms(terms: impl IntoIterator<Item = (Vec<Atom>, i64)>) -> Dim {
        let mut map: BTreeMap<Vec<Atom>, i64> = BTreeMap::new();
        for (mut m, c) in terms {
            m.sort();
            let e = map.entry(m).or_insert(0);
            *e = e.saturating_add(c);
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
            return (b != 0 && a % b == 0).then(|| Dim::from(a / b));
        }
        if self == rhs {
            return Some(Dim::from(1));
        }
        let (a, b) = (self.terms(), rhs.terms());
        let divide = |(m, c): &(Vec<Atom>, i64), (n, d): &(Vec<Atom>, i64)| -> Option<(Vec<Atom>, i64)> {
            if *d == 0 || c % d != 0 {
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
                (&q * rhs == *self).then_some(q)
            }
        }
    }

    /// The quotient by a product, where only all terms together are a multiple of its coefficient.
    fn div_whole(&self, (atoms, d): &(Vec<Atom>, i64)) -> Option<Dim> {
        // Without factors there is no step left that could fail for another reason than the coefficients.
        let by_atoms = if *d == 1 { return None } else { self.div_exact(&Dim::from_terms([(atoms.clone(), 1)]))? };
        let terms = by_atoms.terms();
        let common = terms.iter().fold(d.unsigned_abs(), |g, (_, c)| gcd(g, c.unsigned_abs())) as i64;
        let divisor = d.checked_div(common).filter(|&n| n > 1)?;
        let rest = Dim::from_terms(terms.into_iter().map(|(m, c)| (m, c / common)));
        // A product of a constant alone has been tried by its caller.
        (rest.as_const().is_none() && rest.residue(divisor) == Dim::from(0))
            .then(|| Dim::atom(Atom::Floor(Box::new((rest, Dim::from(divisor))))))
    }

    /// `floor(self / rhs)`.
    pub fn floor_div(&self, rhs: &Dim) -> Dim {
        if let Some(q) = self.div_exact(rhs) {
            return q;
        }
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) if b != 0 => Dim::from(a.div_euclid(b)),
            (None, Some(b)) if b > 1 => {
                // Whole multiples come out.
                let (whole, rest): (Vec<_>, Vec<_>) = self.terms().into_iter().partition(|(_, c)| c % b == 0);
                let rest = Dim::from_terms(rest);
                let whole = Dim::from_terms(whole.into_iter().map(|(m, c)| (m, c / b)));
                let rest = match rest.as_const() {
                    Some(n) => Dim::from(n.div_euclid(b)),
                    None => Dim::atom(Atom::Floor(Box::new((rest, rhs.clone())))),
                };
                &whole + &rest
            }
            _ => Dim::atom(Atom::Floor(Box::new((self.clone(), rhs.clone())))),
        }
    }

    /// `self` modulo `rhs`, with the sign of the divisor.
    pub fn modulo(&self, rhs: &Dim) -> Dim {
        if self.div_exact(rhs).is_some() {
            return Dim::from(0);
        }
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) if b != 0 => Dim::from(a.rem_euclid(b)),
            (None, Some(b)) if b > 1 => {
                let rest = self.residue(b);
                match rest.as_const() {
                    Some(n) => Dim::from(n.rem_euclid(b)),
                    None => Dim::atom(Atom::Mod(Box::new((rest, rhs.clone())))),
                }
            }
            _ => Dim::atom(Atom::Mod(Box::new((self.clone(), rhs.clone())))),
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

    /// Whether it counts the blocks of something that is padded to whole blocks, such as `floor(n + mod(-n, 8), 8)`: 1 or more
    /// unless there is nothing at all.
    pub fn counts_blocks(&self) -> bool {
        matches!(&self.terms()[..], [(m, 1)] if matches!(&m[..], [Atom::Floor(f)]
            if f.1.as_const().is_some_and(|d| d > 1 && f.0.is_natural() && f.0.residue(d) == Dim::from(0))))
    }

    /// Whether the value is proven to be zero or more, symbols being extents.
    fn is_natural(&self) -> bool {
        let natural = |a: &Atom| match a {
            Atom::Sym(_) => true,
            Atom::Mod(d) => d.1.as_const().is_some_and(|n| n > 0),
            Atom::Floor(d) => d.0.is_natural() && d.1.as_const().is_some_and(|n| n > 0),
            Atom::Min(d) => d.0.is_natural() && d.1.is_natural(),
            Atom::Max(d) => d.0.is_natural() || d.1.is_natural(),
        };
        self.terms().iter().all(|(m, c)| *c >= 0 && m.iter().all(natural))
    }

    /// The smaller of two extents.
    pub fn smaller(&self, rhs: &Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.min(b)),
            _ if (rhs - self).is_natural() => self.clone(),
            _ if (self - rhs).is_natural() => rhs.clone(),
            _ => Dim::atom(Atom::Min(Box::new(ordered(self, rhs)))),
        }
    }

    /// The larger of two extents.
    pub fn larger(&self, rhs: &Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.max(b)),
            _ if (rhs - self).is_natural() => rhs.clone(),
            _ if (self - rhs).is_natural() => self.clone(),
            _ => Dim::atom(Atom::Max(Box::new(ordered(self, rhs)))),
        }
    }

    fn atom(a: Atom) -> Dim {
        Dim::from_terms([(vec![a], 1)])
    }

    /// The value under `bindings`; the error names the symbol that has none.
    pub fn eval(&self, bindings: &Bindings) -> Result<i64, String> {
        match &self.0 {
            Repr::Const(n) => Ok(*n),
            Repr::Sum(terms) => {
                let mut sum = 0i64;
                for (m, c) in terms.iter() {
                    let mut p = *c;
                    for a in m {
                        let v = a.eval(bindings)?;
                        p = p.checked_mul(v).ok_or_else(|| format!("`{self}` overflows 64 bits"))?;
                    }
                    sum = sum.checked_add(p).ok_or_else(|| format!("`{self}` overflows 64 bits"))?;
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
                        let pair = |d: &(Dim, Dim)| (d.0.substitute(map), d.1.substitute(map));
                        let v = match a {
                            Atom::Sym(s) => map.get(&**s).cloned().unwrap_or_else(|| Dim::sym(s)),
                            Atom::Floor(d) => pair(d).0.floor_div(&pair(d).1),
                            Atom::Mod(d) => pair(d).0.modulo(&pair(d).1),
                            Atom::Min(d) => pair(d).0.smaller(&pair(d).1),
                            Atom::Max(d) => pair(d).0.larger(&pair(d).1),
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
    pub fn collect_symbols(&self, out: &mut std::collections::BTreeSet<String>) {
        if let Repr::Sum(terms) = &self.0 {
            for a in terms.iter().flat_map(|(m, _)| m) {
                match a {
                    Atom::Sym(s) => {
                        out.insert(s.to_string());
                    }
                    Atom::Floor(d) | Atom::Mod(d) | Atom::Min(d) | Atom::Max(d) => {
                        d.0.collect_symbols(out);
                        d.1.collect_symbols(out);
                    }
                }
            }
        }
    }

    /// Reads an expression with `+ - * // ( )` and `min max mod floor` in function form, as exporters
    /// write them and as `Display` prints them.
    pub fn parse(text: &str) -> Result<Dim, String> {
        let mut p = Parser { text, at: 0, depth: 0 };
        let d = p.sum()?;
        p.skip();
        if p.at < text.len() {
            return Err(format!("`{text}` is not a dimension: unexpected `{}`", &text[p.at..]));
        }
        Ok(d)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn ordered(a: &Dim, b: &Dim) -> (Dim, Dim) {
    if a.cmp(b) == Ordering::Greater { (b.clone(), a.clone()) } else { (a.clone(), b.clone()) }
}

impl Atom {
    fn eval(&self, b: &Bindings) -> Result<i64, String> {
        let pair = |d: &(Dim, Dim)| Ok::<_, String>((d.0.eval(b)?, d.1.eval(b)?));
        let nonzero =
            |(x, y): (i64, i64)| if y == 0 { Err("division by zero in a dimension".to_owned()) } else { Ok((x, y)) };
        Ok(match self {
            Atom::Sym(s) => *b.get(&**s).ok_or_else(|| format!("symbol `{s}` has no value"))?,
            Atom::Floor(d) => {
                let (x, y) = nonzero(pair(d)?)?;
                x.div_euclid(y)
            }
            Atom::Mod(d) => {
                let (x, y) = nonzero(pair(d)?)?;
                x.rem_euclid(y)
            }
            Atom::Min(d) => {
                let (x, y) = pair(d)?;
                x.min(y)
            }
            Atom::Max(d) => {
                let (x, y) = pair(d)?;
                x.max(y)
            }
        })
    }
}

impl Add for &Dim {
    type Output = Dim;
    fn add(self, rhs: &Dim) -> Dim {
        match (self.as_const(), rhs.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.saturating_add(b)),
            _ => Dim::from_terms(self.terms().into_iter().chain(rhs.terms())),
        }
    }
}

impl Sub for &Dim {
    type Output = Dim;
    fn sub(self, rhs: &Dim) -> Dim {
        self + &(rhs * &Dim::from(-1))
    }
}

impl Mul for &Dim {
    type Output = Dim;
    fn mul(self, rhs: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), rhs.as_const()) {
            return Dim::from(a.saturating_mul(b));
        }
        let mut out = Vec::new();
        for (m, c) in self.terms() {
            for (n, d) in rhs.terms() {
                out.push((m.iter().chain(&n).cloned().collect(), c.saturating_mul(d)));
            }
        }
        Dim::from_terms(out)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match &self.0 {
            Repr::Const(n) => return write!(f, "{n}"),
            Repr::Sum(t) => t,
        };
        // The constant sorts first; printing it last reads as people write it.
        for (i, (m, c)) in
            terms.iter().filter(|t| !t.0.is_empty()).chain(terms.iter().filter(|t| t.0.is_empty())).enumerate()
        {
            let sign = if *c < 0 { "-" } else { "+" };
            match (i, sign) {
                (0, "-") => f.write_str("-")?,
                (0, _) => {}
                _ => write!(f, " {sign} ")?,
            }
            let magnitude = c.unsigned_abs();
            let mut first = true;
            if magnitude != 1 || m.is_empty() {
                write!(f, "{magnitude}")?;
                first = false;
            }
            for a in m {
                if !first {
                    f.write_str("*")?;
                }
                first = false;
                match a {
                    Atom::Sym(s) => f.write_str(s)?,
                    Atom::Floor(d) => write!(f, "floor({}, {})", d.0, d.1)?,
                    Atom::Mod(d) => write!(f, "mod({}, {})", d.0, d.1)?,
                    Atom::Min(d) => write!(f, "min({}, {})", d.0, d.1)?,
                    Atom::Max(d) => write!(f, "max({}, {})", d.0, d.1)?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Dim {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.as_const() {
            Some(n) => s.serialize_i64(n),
            None => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Int(i64),
            Text(String),
        }
        match Form::deserialize(d)? {
            Form::Int(n) => Ok(Dim::from(n)),
            Form::Text(t) => Dim::parse(&t).map_err(serde::de::Error::custom),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

/// Deeper nesting than this is refused: no exporter writes it, and the parser recurses.
const MAX_DEPTH: usize = 64;

impl Parser<'_> {
    fn skip(&mut self) {
        while self.text[self.at..].starts_with(char::is_whitespace) {
            self.at += self.text[self.at..].chars().next().map_or(0, char::len_utf8);
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn sum(&mut self) -> Result<Dim, String> {
        let mut d = if self.eat("-") { &Dim::from(0) - &self.product()? } else { self.product()? };
        loop {
            if self.eat("+") {
                d = &d + &self.product()?;
            } else if self.eat("-") {
                d = &d - &self.product()?;
            } else {
                return Ok(d);
            }
        }
    }

    fn product(&mut self) -> Result<Dim, String> {
        let mut d = self.factor()?;
        loop {
            if self.eat("//") {
                d = d.floor_div(&self.factor()?);
            } else if self.eat("*") {
                d = &d * &self.factor()?;
            } else {
                return Ok(d);
            }
        }
    }

    fn factor(&mut self) -> Result<Dim, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("`{}` is nested too deeply", self.text));
        }
        let out = self.factor_inner();
        self.depth -= 1;
        out
    }

    fn factor_inner(&mut self) -> Result<Dim, String> {
        let bad = |text: &str| Err(format!("`{text}` is not a dimension"));
        if self.eat("(") {
            let d = self.sum()?;
            return if self.eat(")") { Ok(d) } else { bad(self.text) };
        }
        self.skip();
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.' || c == ':')).unwrap_or(rest.len());
        let word = &rest[..len];
        if word.is_empty() {
            return bad(self.text);
        }
        self.at += len;
        if let Ok(n) = word.parse::<i64>() {
            return Ok(Dim::from(n));
        }
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return bad(self.text);
        }
        let lower = word.to_ascii_lowercase();
        if matches!(&lower[..], "floor" | "mod" | "min" | "max") && self.eat("(") {
            let a = self.sum()?;
            let b = if self.eat(",") { Some(self.sum()?) } else { None };
            if !self.eat(")") {
                return bad(self.text);
            }
            return match (&lower[..], b) {
                ("floor", None) => Ok(a),
                ("floor", Some(b)) => Ok(a.floor_div(&b)),
                ("mod", Some(b)) => Ok(a.modulo(&b)),
                ("min", Some(b)) => Ok(a.smaller(&b)),
                ("max", Some(b)) => Ok(a.larger(&b)),
                _ => bad(self.text),
            };
        }
        Ok(Dim::sym(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(s: &str) -> Dim {
        Dim::parse(s).unwrap()
    }

    #[test]
    fn expressions_have_one_normal_form() {
        assert_eq!(d("seq + past"), d("past+seq"));
        assert_eq!(d("2*(a + b) - a"), d("a + 2*b"));
        assert_eq!(d("((batch*seq)//batch)"), d("seq"));
        assert_eq!(d("a - a"), Dim::from(0));
        assert_eq!(d("2*seq + 2*past").div_exact(&d("past + seq")), Some(Dim::from(2)));
        assert_eq!(d("batch*seq").div_exact(&d("past")), None);
        assert_eq!(d("7").floor_div(&d("2")), Dim::from(3));
    }

    #[test]
    fn display_reads_back() {
        for s in [
            "0",
            "-3",
            "batch*seq",
            "-a + 2*b*b + 7",
            "floor(seq + 1, 8)",
            "min(128, seq)*2",
            "mod(8 - mod(seq, 8), 8)",
        ] {
            assert_eq!(Dim::parse(&d(s).to_string()).unwrap(), d(s), "{s}");
        }
    }

    #[test]
    fn evaluation_names_the_missing_symbol() {
        let b = Bindings::from([("seq".to_owned(), 7)]);
        assert_eq!(d("seq*2 + 1").eval(&b), Ok(15));
        assert_eq!(d("seq + past").eval(&b).unwrap_err(), "symbol `past` has no value");
    }

    #[test]
    fn bad_text_is_refused() {
        for s in ["", "a b", "3x", "(a", "a +", "min(a)", &"(".repeat(500)] {
            assert!(Dim::parse(s).is_err(), "{s}");
        }
    }

    #[test]
    fn padding_to_a_multiple_is_a_multiple() {
        let d = |t: &str| Dim::parse(t).unwrap();
        let padded = d("seq + mod(8 - mod(seq, 8), 8)");
        assert_eq!(padded, d("seq + mod(-seq, 8)"));
        assert_eq!(padded.modulo(&Dim::from(8)), Dim::from(0));
        let chunks = padded.floor_div(&Dim::from(8));
        assert_eq!(&chunks * &Dim::from(16), &padded * &Dim::from(2));
        let all = &d("8 * batch") * &padded;
        assert_eq!(all.div_exact(&d("64 * batch")), Some(chunks.clone()));
        assert_eq!(all.div_exact(&d("128 * batch")), None);
        assert_eq!(padded.smaller(&d("seq")), d("seq"));
        assert_eq!(padded.larger(&d("seq")), padded);
        assert_eq!(d("8 * seq + 3").floor_div(&Dim::from(8)), d("seq"));
        assert_eq!(d("8 * seq - 3").modulo(&Dim::from(8)), Dim::from(5));
        assert_eq!(d("a - b").smaller(&d("a")), d("min(a, a - b)").smaller(&d("a")));
        for seq in [0i64, 1, 7, 8, 9, 31] {
            let b = Bindings::from([("seq".to_owned(), seq)]);
            let want = (seq + 7) / 8 * 8;
            assert_eq!((padded.eval(&b), chunks.eval(&b)), (Ok(want), Ok(want / 8)), "{seq}");
            for (e, want) in [
                ("mod(3 * seq - 5, 4)", (3 * seq - 5).rem_euclid(4)),
                ("floor(12 * seq + 7, 6)", (12 * seq + 7).div_euclid(6)),
            ] {
                assert_eq!(d(e).eval(&b), Ok(want), "{e} at {seq}");
            }
        }
    }
}
