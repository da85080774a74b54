//! Rules as plain equations between trees, for comparing rules: the names of terms and the bindings of
//! `let` are written out, and the operands of commutative operators stand in one order.

use std::collections::BTreeMap;

use super::lang::{
    AttrPattern, Expr, GuardKind, Head, OpClass, OpKind, Pattern, Rule, Target, Template, TemplateHead, VarId,
};
use crate::ir::{Attr, Class};

/// A tensor, or a place for several.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Term {
    /// Any tensor.
    Var(VarId),
    /// An optional operand, or those that remain.
    Spliced(VarId),
    /// A constant whose elements are all this number.
    Number(f64),
    /// A constant that the right side makes: its value, and what gives its type.
    Const(Box<Value>, Box<Term>),
    /// An operator and its operands.
    Op(Operator, Vec<Term>),
}

/// The operator of a term.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operator {
    /// A row of the table and its attributes.
    Op(OpKind, Vec<Value>),
    /// Any operator of a class.
    Class(VarId),
    /// A declared kernel and its attributes.
    Kernel(String, Vec<Value>),
}

/// An attribute value, or an argument of a guard.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// A literal.
    Lit(Attr),
    /// An attribute variable.
    Var(VarId),
    /// A tensor.
    Tensor(Term),
    /// A function of the vocabulary.
    Call(&'static str, Vec<Value>),
}

/// A rule in this form.
#[derive(Debug)]
pub(super) struct Flat {
    /// The left side.
    pub(super) pattern: Term,
    /// What must be true.
    pub(super) guards: Vec<Value>,
    /// Pairs of equal tensors: what the left side names, and what the right side builds.
    pub(super) equations: Vec<(Term, Term)>,
    /// The classes of operator variables.
    pub(super) classes: BTreeMap<VarId, OpClass>,
    /// Variables that take all operands that remain.
    pub(super) rest: Vec<VarId>,
}

/// Functions whose two arguments may be exchanged.
const SYMMETRIC: [&str; 6] = ["=", "!=", "+", "*", "same-shape", "same-dtype"];
/// Largest rule that is compared: names that occur more than once multiply.
const MOST: usize = 4000;

impl Flat {
    /// Writes a rule out; `None` where it would be too large.
    pub(super) fn new(rule: &Rule) -> Option<Flat> {
        let mut w = Writer {
            named: BTreeMap::new(),
            lets: BTreeMap::new(),
            attrs: vec![],
            spliced: vec![],
            flat_rest: vec![],
            classes: BTreeMap::new(),
            budget: MOST,
        };
        let pattern = w.pattern(&rule.pattern)?;
        let mut guards = vec![];
        for g in &rule.guards {
            match &g.kind {
                GuardKind::Holds(e) => guards.push(w.value(e)?),
                GuardKind::Let(v, e) => {
                    let value = w.value(e)?;
                    w.lets.insert(*v, value);
                }
            }
        }
        let bound = left_variables(&rule.pattern);
        let mut equations = vec![];
        for (target, template) in &rule.yields {
            let built = w.template(template)?;
            match target {
                Target::Root => equations.push((pattern.clone(), built)),
                Target::Var(v) if bound.contains(v) => equations.push((w.tensor(*v)?, built)),
                // A second term for a new name equals the first.
                Target::Var(v) if w.named.contains_key(v) => equations.push((w.tensor(*v)?, built)),
                Target::Var(v) => {
                    w.named.insert(*v, built);
                }
            }
        }
        Some(Flat { pattern, guards, equations, classes: w.classes, rest: w.flat_rest })
    }
}

/// The tensors that the left side binds or names.
fn left_variables(p: &Pattern) -> Vec<VarId> {
    let mut out = vec![];
    let mut todo = vec![p];
    while let Some(p) = todo.pop() {
        match p {
            Pattern::Var(v) => out.push(*v),
            Pattern::Number(_) => {}
            Pattern::Op(o) => {
                out.extend(o.var);
                todo.extend(&o.args);
            }
        }
    }
    out
}

struct Writer {
    named: BTreeMap<VarId, Term>,
    lets: BTreeMap<VarId, Value>,
    attrs: Vec<VarId>,
    spliced: Vec<VarId>,
    flat_rest: Vec<VarId>,
    classes: BTreeMap<VarId, OpClass>,
    budget: usize,
}

impl Writer {
    fn pay(&mut self, n: usize) -> Option<()> {
        self.budget = self.budget.checked_sub(n)?;
        Some(())
    }

    fn pattern(&mut self, p: &Pattern) -> Option<Term> {
        self.pay(1)?;
        let o = match p {
            Pattern::Var(v) => return Some(Term::Var(*v)),
            Pattern::Number(x) => return Some(Term::Number(*x)),
            Pattern::Op(o) => o,
        };
        let operator = match &o.head {
            Head::Op(kind) => {
                let attrs = o.attrs.iter().map(|a| match a {
                    AttrPattern::Is(a) => Value::Lit(a.clone()),
                    AttrPattern::Var(v) => Value::Var(*v),
                });
                Operator::Op(*kind, attrs.collect())
            }
            Head::Class(v, class) => {
                self.classes.insert(*v, *class);
                Operator::Class(*v)
            }
        };
        self.attrs.extend(o.attrs.iter().filter_map(|a| match a {
            AttrPattern::Var(v) => Some(*v),
            AttrPattern::Is(_) => None,
        }));
        let mut args = o.args.iter().map(|a| self.pattern(a)).collect::<Option<Vec<_>>>()?;
        args.extend(o.optional.iter().chain(&o.rest).map(|v| Term::Spliced(*v)));
        self.spliced.extend(o.optional.iter().chain(&o.rest));
        self.flat_rest.extend(o.rest);
        let t = ordered(operator, args);
        if let Some(v) = o.var {
            self.named.insert(v, t.clone());
        }
        Some(t)
    }

    /// A tensor by its variable.
    fn tensor(&mut self, v: VarId) -> Option<Term> {
        match self.named.get(&v).cloned() {
            Some(t) => {
                self.pay(size(&t))?;
                Some(t)
            }
            None => Some(Term::Var(v)),
        }
    }

    fn value(&mut self, e: &Expr) -> Option<Value> {
        self.pay(1)?;
        Some(match e {
            Expr::Lit(a) => Value::Lit(a.clone()),
            Expr::Var(v) => match self.lets.get(v).cloned() {
                Some(value) => {
                    self.pay(value_size(&value))?;
                    value
                }
                None if self.attrs.contains(v) => Value::Var(*v),
                None if self.spliced.contains(v) => Value::Tensor(Term::Spliced(*v)),
                None => Value::Tensor(self.tensor(*v)?),
            },
            Expr::Call(f, args, _) => {
                let args = args.iter().map(|a| self.value(a)).collect::<Option<Vec<_>>>()?;
                call(f.name, args)
            }
        })
    }

    fn template(&mut self, t: &Template) -> Option<Term> {
        self.pay(1)?;
        Some(match t {
            Template::Var(v) => self.tensor(*v)?,
            Template::Const { value, like } => Term::Const(Box::new(self.value(value)?), Box::new(self.tensor(*like)?)),
            Template::Op { head, args, rest } => {
                let operator = match head {
                    TemplateHead::Var(v) => Operator::Class(*v),
                    TemplateHead::Kernel(k, values) => {
                        let values = values.iter().map(|e| self.value(e)).collect::<Option<_>>()?;
                        Operator::Kernel(k.name.clone(), values)
                    }
                    TemplateHead::Op(kind, values) => {
                        let values = values.iter().zip(&kind.0.attrs).map(|(e, a)| {
                            Some(match self.value(e)? {
                                Value::Lit(v) => Value::Lit(v.clone().coerce(a.kind).unwrap_or(v)),
                                v => v,
                            })
                        });
                        Operator::Op(*kind, values.collect::<Option<_>>()?)
                    }
                };
                let mut args = args.iter().map(|a| self.template(a)).collect::<Option<Vec<_>>>()?;
                args.extend(rest.iter().map(|v| Term::Spliced(*v)));
                ordered(operator, args)
            }
        })
    }
}

/// Whether the two operands of an operator may be exchanged.
pub(super) fn commutes(o: &Operator) -> bool {
    matches!(o, Operator::Op(kind, _) if kind.0.class == Class::Commutative)
}

/// The outermost operator of a term whose operands may be exchanged.
pub(super) fn commutative(t: &Term) -> Option<&'static str> {
    match t {
        Term::Op(Operator::Op(kind, _), _) if kind.0.class == Class::Commutative => Some(kind.0.name),
        Term::Op(_, args) => args.iter().find_map(commutative),
        _ => None,
    }
}

/// A term whose operands stand in one order, if that is free.
pub(super) fn ordered(operator: Operator, mut args: Vec<Term>) -> Term {
    if commutes(&operator) {
        args.sort_by_cached_key(|a| format!("{a:?}"));
    }
    Term::Op(operator, args)
}

/// A function of values: literal conditions are decided, exchangeable arguments stand in one order.
pub(super) fn call(name: &'static str, mut args: Vec<Value>) -> Value {
    match (name, &mut args[..]) {
        ("if", [Value::Lit(Attr::Bool(c)), a, b]) => return if *c { a.clone() } else { b.clone() },
        ("not", [Value::Lit(Attr::Bool(c))]) => return Value::Lit(Attr::Bool(!*c)),
        ("=" | "same-shape" | "same-dtype", [a, b]) if a == b => return Value::Lit(Attr::Bool(true)),
        _ => {}
    }
    if SYMMETRIC.contains(&name) {
        args.sort_by_cached_key(|a| format!("{a:?}"));
    }
    Value::Call(name, args)
}

fn size(t: &Term) -> usize {
    match t {
        Term::Var(_) | Term::Spliced(_) | Term::Number(_) => 1,
        Term::Const(v, like) => 1 + value_size(v) + size(like),
        Term::Op(Operator::Class(_), args) => 1 + args.iter().map(size).sum::<usize>(),
        Term::Op(Operator::Op(_, values) | Operator::Kernel(_, values), args) => {
            1 + args.iter().map(size).sum::<usize>() + values.iter().map(value_size).sum::<usize>()
        }
    }
}

fn value_size(v: &Value) -> usize {
    match v {
        Value::Lit(_) | Value::Var(_) => 1,
        Value::Tensor(t) => size(t),
        Value::Call(_, args) => 1 + args.iter().map(value_size).sum::<usize>(),
    }
}
