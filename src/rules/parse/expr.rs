//! Guards and attribute expressions.

use super::sides::rest_name;
use super::{RuleParser, Sort, nearest};
use crate::diag::Diagnostic;
use crate::ir::{Attr, DType, MeshAxis, Real};
use crate::rules::lang::{Expr, Guard, GuardKind, Purpose};
use crate::rules::sexpr::{Datum, Kind};
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
                return None;
            }
            let v = self.bind(name, Sort::Attr, &var.span)?;
            return Some(Guard { kind: GuardKind::Let(v, expr?), purpose, span });
        }
        self.expr(d).map(|e| Guard { kind: GuardKind::Holds(e), purpose, span })
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
                    let message = format!("`{name}` takes {} arguments, not {}", f.params.len(), args.len());
                    self.error(message, &d.span, "here", Some(f.doc.to_owned()));
                    return None;
                }
                let mut out = vec![];
                for (a, kind) in args.iter().zip(f.params) {
                    let e = self.expr(a)?;
                    if let Expr::Var(v) = e {
                        let sort = self.vars[v].sort;
                        let fits = match kind {
                            vocab::Kind::Class => sort == Sort::Class,
                            vocab::Kind::Classes => sort == Sort::Classes,
                            _ => sort == Sort::Attr,
                        };
                        if !fits {
                            let message = format!("an argument of `{name}` is {}", sort.describe());
                            self.error(message, &a.span, format!("expected {kind:?}"), Some(f.doc.to_owned()));
                            return None;
                        }
                    } else if matches!(kind, vocab::Kind::Class | vocab::Kind::Classes) {
                        self.error(
                            format!("an argument of `{name}` must be a variable for a tensor"),
                            &a.span,
                            "here",
                            None,
                        );
                        return None;
                    }
                    out.push(e);
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
