//! Guards and attribute expressions.

use super::sides::rest_name;
use super::{RuleParser, Sort, count, nearest};
use crate::diag::Diagnostic;
use crate::ir::{Attr, DType, MeshAxis, Real, Safe};
use crate::rules::lang::{Expr, Guard, GuardKind, Purpose};
use crate::rules::sexpr::{Datum, Kind, Span};
use crate::rules::signature::{ValueSort, parameter};
use crate::rules::vocab::{self, function};

impl RuleParser<'_> {
    pub(super) fn guard(&mut self, d: &Datum, purpose: Purpose) -> Option<Guard> {
        let span = d.span.clone();
        if let Some([head, var, value]) = d.list()
            && head.sym() == Some("let")
        {
            let Kind::Var(name) = &var.kind else {
                self.error("`let` binds a variable", &var.span, "not a variable", None);
                return None;
            };
            if purpose == Purpose::Profit {
                let help = "bindings belong to :if, and the guards of :when may read them".to_owned();
                self.error("`let` in :when", &d.span, "not a condition", Some(help));
            }
            let expr = self.expr(value);
            if let Some(v) = self.find(name) {
                let there = self.vars[v].span.clone();
                let d = Diagnostic::new(
                    self.file,
                    format!("`?{name}` is bound already"),
                    var.span.clone(),
                    "shadowed here",
                );
                self.errors.push(d.at(there, "first bound here"));
                self.doubtful.insert(name.clone());
                return None;
            }
            let v = self.bind(name, Sort::Attr, &var.span)?;
            let expr = expr?;
            if let Expr::Var(from) = expr
                && self.vars[from].sort != Sort::Attr
            {
                let sort = self.vars[from].sort.describe();
                let help = "a tensor needs no second name".to_owned();
                self.error("`let` binds attribute values", &value.span, sort, Some(help));
                return None;
            }
            self.vars[v].value = ValueSort::of_expr(&expr, &|v| self.vars[v].value);
            return Some(Guard { kind: GuardKind::Let(v, expr), purpose, span });
        }
        let e = self.expr(d)?;
        self.expect(&e, &d.span, ValueSort::Bool, "true or false", "a guard").then_some(Guard {
            kind: GuardKind::Holds(e),
            purpose,
            span,
        })
    }

    /// Whether an expression may have a value of a sort; reports it where it cannot.
    pub(super) fn expect(&mut self, e: &Expr, span: &Span, want: ValueSort, words: &str, what: &str) -> bool {
        let have = match e {
            Expr::Var(v) if self.vars[*v].sort != Sort::Attr => self.vars[*v].sort.describe(),
            e => {
                let have = ValueSort::of_expr(e, &|v| self.vars[v].value);
                if have.fits(want) {
                    return true;
                }
                have.describe()
            }
        };
        let help = match e {
            Expr::Call(f, ..) => Some(format!("`{}`: {}", f.name, f.doc)),
            _ => None,
        };
        self.error(format!("{what} must be {words}"), span, format!("this is {have}"), help);
        false
    }

    pub(super) fn expr(&mut self, d: &Datum) -> Option<Expr> {
        match &d.kind {
            Kind::Var(v) => {
                let name = rest_name(v).unwrap_or(v);
                self.bound(name, &d.span).map(Expr::Var)
            }
            // A list of integers is a value.
            Kind::List(items) if !items.is_empty() && literal(d).is_some() => literal(d).map(Expr::Lit),
            Kind::List(items) => {
                let name = items.first().and_then(Datum::sym).unwrap_or("");
                let Some(f) = function(name) else {
                    let help = nearest(name, vocab::FUNCTIONS.iter().map(|f| f.name));
                    let span = items.first().map_or(&d.span, |h| &h.span);
                    self.error(format!("unknown guard or function `{name}`"), span, "not in the vocabulary", help);
                    return None;
                };
                let args = &items[1..];
                if args.len() != f.params.len() {
                    let message = format!("`{name}` takes {}, not {}", count(f.params.len(), "argument"), args.len());
                    self.error(message, &d.span, "here", Some(f.doc.to_owned()));
                    return None;
                }
                let mut out = vec![];
                for (i, (a, kind)) in args.iter().zip(f.params).enumerate() {
                    let e = self.expr(a)?;
                    let what = format!("argument {} of `{name}`", i + 1);
                    let fits = match (ValueSort::of_parameter(*kind), &e) {
                        (Some(want), e) => self.expect(e, &a.span, want, want.describe(), &what),
                        (None, Expr::Var(v)) => {
                            let sort = self.vars[*v].sort;
                            let fits = if *kind == vocab::Kind::Class { Sort::Class } else { Sort::Classes } == sort;
                            if !fits {
                                let message = format!("{what} must be {}", parameter(*kind));
                                let label = format!("this is {}", sort.describe());
                                self.error(message, &a.span, label, Some(f.doc.to_owned()));
                            }
                            fits
                        }
                        (None, e) => {
                            let have = ValueSort::of_expr(e, &|v| self.vars[v].value);
                            let message = format!("{what} must be {}", parameter(*kind));
                            let help = "write a variable that the left side binds to a tensor".to_owned();
                            self.error(message, &a.span, format!("this is {}", have.describe()), Some(help));
                            false
                        }
                    };
                    if !fits {
                        return None;
                    }
                    out.push(e);
                }
                if let ("=", [x, y]) = (name, &out[..]) {
                    let sort = |e| ValueSort::of_expr(e, &|v: usize| self.vars[v].value);
                    let (x, y) = (sort(x), sort(y));
                    if !x.fits(y) {
                        let message = format!("{} never equals {}", x.describe(), y.describe());
                        self.error(message, &d.span, "never true", None);
                        return None;
                    }
                }
                Some(Expr::Call(f, out, d.span.clone()))
            }
            _ => match literal(d) {
                Some(a) => Some(Expr::Lit(a)),
                None => {
                    self.error("expected a value", &d.span, "not a value", Some("mesh axes are tp and pp".into()));
                    None
                }
            },
        }
    }
}

pub(super) fn literal(d: &Datum) -> Option<Attr> {
    Some(match &d.kind {
        Kind::Int(n) => Attr::Int(*n),
        Kind::Float(x) => Attr::Real(Real(*x)),
        Kind::Sym(s) if s == "true" => Attr::Bool(true),
        Kind::Sym(s) if s == "false" => Attr::Bool(false),
        Kind::Sym(s) if s == Safe::Always.name() => Attr::Safe(Safe::Always),
        Kind::Sym(s) => MeshAxis::parse(s).map(Attr::Axis).or_else(|| DType::parse(s).map(Attr::DType))?,
        Kind::List(items) => {
            let ints = items.iter().map(|i| match i.kind {
                Kind::Int(n) => Some(n),
                _ => None,
            });
            Attr::Ints(ints.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}
