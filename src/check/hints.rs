//! What a rule's guards tell about its variables: where to look for instances.
//!
//! Hints only steer the search. Whether a guard holds is decided by evaluating it.

use std::collections::BTreeMap;

use crate::ir::Attr;
use crate::rules::Rule;
use crate::rules::lang::{Expr, GuardKind, VarId};

/// Hints for one variable of a rule.
#[derive(Clone, Debug, Default)]
pub(super) struct Hint {
    /// A constant with one element.
    pub(super) scalar: bool,
    /// A constant whose elements are equal.
    pub(super) constant: bool,
    /// One element, whatever the number of axes.
    pub(super) single: bool,
    /// A constant of any shape, also of one that widens the result.
    pub(super) misshapen: bool,
    /// The number that a constant is equal to.
    pub(super) value: Option<f64>,
    /// Computed from weights.
    pub(super) weight: bool,
    /// A leaf.
    pub(super) leaf: bool,
    /// Not a leaf.
    pub(super) computed: bool,
    /// Equal on all ranks.
    pub(super) replicated: bool,
    /// Number of axes.
    pub(super) rank: Option<usize>,
    /// A vector as long as the last axis of another tensor.
    pub(super) vector_of: Option<VarId>,
    /// As another tensor.
    pub(super) shaped_as: Option<VarId>,
    /// Broadcasts to the shape of another tensor.
    pub(super) covered_by: Option<VarId>,
    /// Extent 1 along an axis of another tensor, where it has that axis.
    pub(super) broadcasts_over: Option<(VarId, Expr)>,
    /// An attribute that equals one of these.
    pub(super) equals: Vec<Expr>,
    /// A permutation that exchanges the last two axes.
    pub(super) swaps_last_two: bool,
    /// The shapes of `repeats-heads` and `merges-batch`: function, tensor, position.
    pub(super) shape_of: Option<(&'static str, VarId, usize)>,
}

/// The hints of a rule, by variable. In place of a guard that is left out, look where it barely fails.
pub(super) fn hints(rule: &Rule, without: Option<usize>) -> BTreeMap<VarId, Hint> {
    let mut out = BTreeMap::new();
    for (i, g) in rule.guards.iter().enumerate() {
        let GuardKind::Holds(Expr::Call(f, args, _)) = &g.kind else { continue };
        if Some(i) == without {
            near_miss(f.name, args, &mut out);
        } else {
            learn(f.name, args, &mut out);
        }
    }
    out
}

fn near_miss(name: &'static str, args: &[Expr], out: &mut BTreeMap<VarId, Hint>) {
    // Constants, but of any shape.
    let misshapen = |h: &mut Hint| (h.constant, h.misshapen) = (true, true);
    let calls = |name: &str| match args.first() {
        Some(Expr::Call(f, inner, _)) if f.name == name => inner.first(),
        _ => None,
    };
    match (name, args.first()) {
        ("scalar", Some(Expr::Var(v))) => misshapen(out.entry(*v).or_default()),
        ("=", _) => {
            if let Some(Expr::Var(v)) = calls("elements") {
                misshapen(out.entry(*v).or_default());
            }
        }
        // The right number of copies in the wrong places.
        ("repeats-heads", Some(Expr::Var(x))) => {
            out.entry(*x).or_default().rank = Some(4);
            for (at, a) in args.iter().enumerate().skip(1) {
                if let Expr::Var(v) = a {
                    out.entry(*v).or_default().shape_of = Some(("tiles-heads", *x, at));
                }
            }
        }
        _ => {}
    }
}

fn learn(name: &'static str, args: &[Expr], out: &mut BTreeMap<VarId, Hint>) {
    let var = |i: usize| match args.get(i) {
        Some(Expr::Var(v)) => Some(*v),
        _ => None,
    };
    let mut on = |v: Option<VarId>, f: &mut dyn FnMut(&mut Hint)| {
        if let Some(v) = v {
            f(out.entry(v).or_default());
        }
    };
    match name {
        "scalar" => on(var(0), &mut |h| (h.scalar, h.constant) = (true, true)),
        "constant" => on(var(0), &mut |h| h.constant = true),
        "weight" => on(var(0), &mut |h| h.weight = true),
        "leaf" => on(var(0), &mut |h| h.leaf = true),
        "replicated" | "free" => on(var(0), &mut |h| h.replicated = true),
        "vector-of" => on(var(0), &mut |h| h.vector_of = var(1)),
        "same-shape" => {
            on(var(1), &mut |h| h.shaped_as = var(0));
            on(var(0), &mut |h| h.shaped_as = var(1));
        }
        "covers-shape" => on(var(1), &mut |h| h.covered_by = var(0)),
        "broadcasts-over" => {
            if let (Some(x), Some(axis)) = (var(1), args.get(2)) {
                on(var(0), &mut |h| h.broadcasts_over = Some((x, axis.clone())));
            }
        }
        "swaps-last-two" => on(var(0), &mut |h| h.swaps_last_two = true),
        "repeats-heads" | "merges-batch" => {
            if let Some(x) = var(0) {
                on(Some(x), &mut |h| h.rank = Some(4));
                for i in 1..args.len() {
                    on(var(i), &mut |h| h.shape_of = Some((name, x, i)));
                }
            }
        }
        "not" => {
            if let Some(Expr::Call(f, inner, _)) = args.first()
                && let ("leaf", Some(Expr::Var(v))) = (f.name, inner.first())
            {
                on(Some(*v), &mut |h| h.computed = true);
            }
        }
        "=" => {
            for (a, b) in [(0, 1), (1, 0)] {
                on(var(a), &mut |h| h.equals.extend(args.get(b).cloned()));
                if let (Some(Expr::Call(f, inner, _)), Some(Expr::Lit(lit))) = (args.get(a), args.get(b)) {
                    let of = match inner.first() {
                        Some(Expr::Var(v)) => Some(*v),
                        _ => None,
                    };
                    match (f.name, lit) {
                        ("elements", Attr::Int(1)) => on(of, &mut |h| (h.constant, h.single) = (true, true)),
                        ("rank", Attr::Int(n)) => on(of, &mut |h| h.rank = usize::try_from(*n).ok()),
                        ("value", Attr::Real(x)) => on(of, &mut |h| (h.constant, h.value) = (true, Some(x.0))),
                        ("value", Attr::Int(n)) => on(of, &mut |h| (h.constant, h.value) = (true, Some(*n as f64))),
                        _ => {}
                    }
                }
            }
        }
        _ => {}
    }
}
