//! Which rules say nothing new: one is an instance of another, changes nothing, or regroups a sum.

use std::collections::BTreeMap;

use super::flat::{Flat, Operator, Term, Value, call, commutes, ordered};
use super::lang::{OpKind, VarId};
use crate::ir::Attr;

/// Most steps of one comparison: nested operands in both orders multiply.
const STEPS: usize = 20_000;
/// Operators for which any grouping of their operands gives the same value.
const ASSOCIATIVE: [&str; 6] = ["add", "mul", "max", "min", "and", "or"];

/// Whether everything that `a` states follows from `b`.
pub(super) fn subsumes(b: &Flat, a: &Flat) -> bool {
    matches(&b.pattern, b, &a.pattern, a, &mut |s| {
        let guards = b.guards.iter().all(|g| {
            let g = s.value(g);
            g == Value::Lit(Attr::Bool(true)) || a.guards.contains(&g)
        });
        guards
            && a.equations.iter().all(|(left, right)| {
                b.equations.iter().any(|(l, r)| {
                    let (l, r) = (s.term(l), s.term(r));
                    l == *left && r == *right || l == *right && r == *left
                })
            })
    })
}

/// The operator whose operands a rule without guards only regroups, so that it applies to its own result.
pub(super) fn regroups(rule: &Flat) -> Option<&'static str> {
    let [(left, right)] = &rule.equations[..] else { return None };
    let Term::Op(Operator::Op(kind, _), _) = left else { return None };
    if !rule.guards.is_empty() || *left != rule.pattern || left == right || !ASSOCIATIVE.contains(&kind.0.name) {
        return None;
    }
    let (mut l, mut r) = (vec![], vec![]);
    leaves(left, *kind, &mut l);
    leaves(right, *kind, &mut r);
    let key = |t: &&Term| format!("{t:?}");
    l.sort_by_cached_key(key);
    r.sort_by_cached_key(key);
    let again = || parts(right).into_iter().any(|t| matches(&rule.pattern, rule, t, rule, &mut |_| true));
    (l == r && again()).then_some(kind.0.name)
}

/// The operands of a nest of one operator.
fn leaves<'t>(t: &'t Term, of: OpKind, out: &mut Vec<&'t Term>) {
    match t {
        Term::Op(Operator::Op(kind, _), args) if *kind == of => args.iter().for_each(|a| leaves(a, of, out)),
        _ => out.push(t),
    }
}

/// A term and all below it.
fn parts(t: &Term) -> Vec<&Term> {
    let mut out = vec![];
    let mut todo = vec![t];
    while let Some(t) = todo.pop() {
        out.push(t);
        if let Term::Op(_, args) = t {
            todo.extend(args);
        }
    }
    out
}

/// What the variables of the general rule stand for in the special one.
#[derive(Clone, Default)]
struct Subst {
    terms: BTreeMap<VarId, Term>,
    values: BTreeMap<VarId, Value>,
    operators: BTreeMap<VarId, Operator>,
    spliced: BTreeMap<VarId, Vec<Term>>,
}

fn put<T: PartialEq + Clone>(map: &mut BTreeMap<VarId, T>, v: VarId, value: &T) -> bool {
    match map.get(&v) {
        Some(old) => old == value,
        None => {
            map.insert(v, value.clone());
            true
        }
    }
}

impl Subst {
    fn term(&self, t: &Term) -> Term {
        match t {
            Term::Var(v) => self.terms.get(v).unwrap_or(t).clone(),
            // Only as an operand or an argument, where its terms are spliced in.
            Term::Spliced(_) | Term::Number(_) => t.clone(),
            Term::Const(value, like) => Term::Const(Box::new(self.value(value)), Box::new(self.term(like))),
            Term::Op(o, args) => {
                let o = match o {
                    Operator::Op(kind, values) => Operator::Op(*kind, values.iter().map(|v| self.value(v)).collect()),
                    Operator::Kernel(name, values) => {
                        Operator::Kernel(name.clone(), values.iter().map(|v| self.value(v)).collect())
                    }
                    Operator::Class(v) => self.operators.get(v).unwrap_or(o).clone(),
                };
                let mut out = vec![];
                for a in args {
                    match a {
                        Term::Spliced(v) => out.extend(self.spliced.get(v).into_iter().flatten().cloned()),
                        a => out.push(self.term(a)),
                    }
                }
                ordered(o, out)
            }
        }
    }

    fn value(&self, v: &Value) -> Value {
        match v {
            Value::Lit(_) => v.clone(),
            Value::Var(i) => self.values.get(i).unwrap_or(v).clone(),
            Value::Tensor(Term::Spliced(i)) => match self.spliced.get(i).map(Vec::as_slice) {
                Some([one]) => Value::Tensor(one.clone()),
                Some(all) => Value::Call("", all.iter().cloned().map(Value::Tensor).collect()),
                None => v.clone(),
            },
            Value::Tensor(t) => Value::Tensor(self.term(t)),
            Value::Call(name, args) => call(name, args.iter().map(|a| self.value(a)).collect()),
        }
    }
}

/// Whether a pattern matches a term in some way that `accept` takes.
fn matches(p: &Term, general: &Flat, t: &Term, special: &Flat, accept: &mut dyn FnMut(&Subst) -> bool) -> bool {
    let mut m = Matcher { general, special, steps: STEPS, accept };
    m.go(vec![(p, t)], Subst::default())
}

struct Matcher<'a> {
    general: &'a Flat,
    special: &'a Flat,
    steps: usize,
    accept: &'a mut dyn FnMut(&Subst) -> bool,
}

impl<'a> Matcher<'a> {
    fn go(&mut self, mut todo: Vec<(&'a Term, &'a Term)>, mut s: Subst) -> bool {
        let Some(left) = self.steps.checked_sub(1) else { return false };
        self.steps = left;
        let Some((p, t)) = todo.pop() else { return (self.accept)(&s) };
        match (p, t) {
            (Term::Var(v), _) => put(&mut s.terms, *v, t) && self.go(todo, s),
            (Term::Number(x), Term::Number(y)) => x == y && self.go(todo, s),
            (Term::Op(po, ps), Term::Op(to, ts)) => {
                if !self.operator(po, to, &mut s) {
                    return false;
                }
                let fixed = ps.iter().take_while(|p| !matches!(p, Term::Spliced(_))).count();
                let given = ts.iter().take_while(|t| !matches!(t, Term::Spliced(_))).count();
                if given < fixed || !self.remaining(&ps[fixed..], &ts[fixed..], &mut s) {
                    return false;
                }
                if let ([p, q], [x, y]) = (&ps[..fixed], &ts[..fixed])
                    && commutes(to)
                {
                    let mut swapped = todo.clone();
                    swapped.extend([(p, y), (q, x)]);
                    todo.extend([(p, x), (q, y)]);
                    return self.go(todo, s.clone()) || self.go(swapped, s);
                }
                todo.extend(ps.iter().zip(ts).take(fixed));
                self.go(todo, s)
            }
            _ => false,
        }
    }

    fn operator(&self, p: &Operator, t: &Operator, s: &mut Subst) -> bool {
        match (p, t) {
            (Operator::Op(a, want), Operator::Op(b, have)) => {
                a == b
                    && want.iter().zip(have).all(|(w, h)| match w {
                        Value::Var(v) => put(&mut s.values, *v, h),
                        w => w == h,
                    })
            }
            (Operator::Class(v), Operator::Op(kind, _)) => {
                self.general.classes.get(v).is_some_and(|c| c.contains_class(kind.0.class))
                    && put(&mut s.operators, *v, t)
            }
            (Operator::Class(v), Operator::Class(w)) => {
                self.general.classes.get(v) == self.special.classes.get(w) && put(&mut s.operators, *v, t)
            }
            // No pattern has a kernel.
            (Operator::Kernel(..), _) | (_, Operator::Kernel(..)) | (Operator::Op(..), Operator::Class(_)) => false,
        }
    }

    /// Optional and remaining operands.
    fn remaining(&self, ps: &[Term], mut ts: &[Term], s: &mut Subst) -> bool {
        for p in ps {
            let Term::Spliced(v) = p else { return false };
            let taken = if self.general.rest.contains(v) { ts.len() } else { ts.len().min(1) };
            let (now, later) = ts.split_at(taken);
            // An optional operand cannot stand for several.
            let several = now.iter().any(|t| matches!(t, Term::Spliced(w) if self.special.rest.contains(w)));
            if several && !self.general.rest.contains(v) || !put(&mut s.spliced, *v, &now.to_vec()) {
                return false;
            }
            ts = later;
        }
        ts.is_empty()
    }
}
