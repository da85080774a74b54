//! Names of extents, and what is learned about them.

use std::collections::{BTreeMap, BTreeSet};

use sinter_runtime::plan::{Assumption, Relation};

use super::context::Context;
use super::proto::GraphProto;
use super::proto::tensor_shape_proto::dimension::Value as D;
use super::tensor_type;
use crate::ir::Dim;

/// Longer names are never read as expressions.
const MAX_EXPRESSION: usize = 256;

/// A declared name as a symbol: any characters but those that end a line.
pub(super) fn name(declared: &str) -> String {
    declared.replace(char::is_control, "_")
}

/// The symbol of an extent that is declared without a name.
pub(super) fn unnamed(input: &str, axis: usize, taken: &BTreeSet<String>) -> String {
    let plain = input.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let mut name = format!("{plain}_{axis}");
    while taken.contains(&name) {
        name.push('_');
    }
    name
}

/// What is known about the extents of inputs.
#[derive(Default)]
pub(super) struct Known {
    /// The declared names.
    pub(super) names: BTreeSet<String>,
    /// Symbols that are equal to expressions of others.
    pub(super) equal: BTreeMap<String, Dim>,
    /// What says so, in the order in which it was found.
    why: Vec<(String, String)>,
}

impl Known {
    /// The declared names. One that reads as an expression of other extents, such as `past + seq`, is that expression.
    pub(super) fn declared(graph: Option<&GraphProto>) -> Known {
        let mut known = Known::default();
        let shapes = graph.iter().flat_map(|g| &g.input).filter_map(|v| tensor_type(v)?.shape.as_ref());
        for d in shapes.flat_map(|s| &s.dim) {
            if let Some(D::DimParam(p)) = &d.value
                && !p.trim().is_empty()
            {
                known.names.insert(name(p));
            }
        }
        let parsed = |n: &String| Dim::parse(n).ok().filter(|_| n.len() <= MAX_EXPRESSION);
        let bare: BTreeSet<&String> =
            known.names.iter().filter(|n| parsed(n).is_some_and(|d| d.as_sym() == Some(n))).collect();
        let mut found = vec![];
        for n in &known.names {
            let Some(d) = parsed(n).filter(|_| !bare.contains(n)) else { continue };
            let mut symbols = BTreeSet::new();
            d.collect_symbols(&mut symbols);
            if !symbols.is_empty() && symbols.iter().all(|s| bare.contains(s)) && d.bounds().0 >= 0 {
                found.push((n.clone(), d));
            }
        }
        for (n, d) in found {
            known.add(n, d, "the inputs are declared so".to_owned());
        }
        known
    }

    /// A symbol turns out to be an expression of others.
    pub(super) fn add(&mut self, symbol: String, dim: Dim, why: String) {
        let one = BTreeMap::from([(symbol.clone(), dim.clone())]);
        for d in self.equal.values_mut() {
            *d = d.substitute(&one);
        }
        self.why.push((symbol.clone(), why));
        self.equal.insert(symbol, dim);
    }

    /// What is taken for granted.
    pub(super) fn stated(&self) -> Vec<Assumption> {
        let of = |(symbol, why): &(String, String)| Assumption {
            left: Dim::sym(symbol),
            relation: Relation::Equal,
            right: self.equal[symbol].clone(),
            why: why.clone(),
        };
        self.why.iter().map(of).collect()
    }
}

impl Context<'_> {
    /// What an equality of two extents that ONNX demands says about a symbol of the inputs.
    pub(super) fn learn(&self, a: &Dim, b: &Dim) -> Option<(String, Dim)> {
        if self.is_late(a) || self.is_late(b) {
            return None;
        }
        let mut found = vec![];
        solve(a, b, 4, &mut found);
        // No extent is tied to 0 or less.
        found.retain(|(s, d)| self.symbols.contains(s) && d.bounds().1 > 0);
        let natural = found.iter().position(|(_, d)| d.is_natural());
        (!found.is_empty()).then(|| found.swap_remove(natural.unwrap_or(0)))
    }
}

/// The symbols that an equality gives values to, with their values.
fn solve(a: &Dim, b: &Dim, depth: usize, out: &mut Vec<(String, Dim)>) {
    let solved = |name: &str, value: Dim| {
        let mut inside = BTreeSet::new();
        value.collect_symbols(&mut inside);
        (!inside.contains(name)).then(|| (name.to_owned(), value))
    };
    for (x, y) in [(b, a), (a, b)] {
        out.extend(x.as_sym().and_then(|s| solved(s, y.clone())));
    }
    // Of extents that are broadcast together, the one that is not there already.
    for (x, y) in [(a, b), (b, a)] {
        if let Some((p, q)) = x.as_join().filter(|_| depth > 0) {
            if p == y {
                solve(q, y, depth - 1, out);
            } else if q == y {
                solve(p, y, depth - 1, out);
            }
        }
    }
    // Where both are sums, a symbol that occurs once, as a term of its own.
    let rest = a - b;
    let mut symbols = BTreeSet::new();
    rest.collect_symbols(&mut symbols);
    for name in &symbols {
        let s = Dim::sym(name);
        out.extend(solved(name, &rest + &s).or_else(|| solved(name, &s - &rest)));
    }
    // A factor that both have does not matter.
    if depth > 0 {
        for name in &symbols {
            let s = Dim::sym(name);
            if let (Some(x), Some(y)) = (a.div_exact(&s), b.div_exact(&s)) {
                return solve(&x, &y, depth - 1, out);
            }
        }
        let numbers = a.products().into_iter().chain(b.products()).map(|(c, _)| c.unsigned_abs());
        let common = numbers.fold(0u64, |g, c| if g == 0 { c } else { gcd(g, c) });
        if let (Ok(n @ 2..), true) = (i64::try_from(common), out.is_empty())
            && let (Some(x), Some(y)) = (a.div_exact(&Dim::from(n)), b.div_exact(&Dim::from(n)))
        {
            solve(&x, &y, depth - 1, out);
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
