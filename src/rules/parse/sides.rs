//! The two sides of a rule: patterns and templates.

use std::collections::BTreeMap;

use super::expr::literal;
use super::{RuleParser, Sort, Var, count, nearest};
use crate::ir::{Attr, AttrKind, DType, OpInfo, op};
use crate::rules::lang::{
    AttrPattern, Expr, Head, OpClass, OpKind, OpPattern, Pattern, Target, Template, TemplateHead, VarId,
};
use crate::rules::sexpr::{Datum, Kind, Span};
use crate::rules::signature::ValueSort;

/// Largest pattern. Names are written out, so that a few of them can make one that nothing can match.
const LARGEST: usize = 1000;

impl RuleParser<'_> {
    pub(super) fn pattern_side(&mut self, d: &Datum) -> Option<Pattern> {
        match roots(d) {
            None => self.pattern(d, None),
            Some(pairs) => {
                // Earlier terms are reachable from the last one through their names.
                let mut named: BTreeMap<String, Pattern> = BTreeMap::new();
                let mut last = None;
                for (var, span, term) in pairs {
                    let id = self.bind(var, Sort::Class, span);
                    let p = self.pattern(term, id);
                    let Some(mut p) = p else { continue };
                    inline(&mut p, &named, &self.vars);
                    if size(&p) > LARGEST {
                        let help = "a named term counts wherever it is used".to_owned();
                        let message = format!("the pattern has more than {LARGEST} terms");
                        self.error(message, span, "with the terms that this one uses", Some(help));
                        return None;
                    }
                    named.insert(var.to_owned(), p.clone());
                    last = Some((var, span, p));
                }
                let (_, _, p) = last?;
                let mut inside = vec![];
                variables(&p, &mut inside);
                for (var, span, _) in roots(d)? {
                    if self.find(var).is_some_and(|v| !inside.contains(&v)) {
                        self.error(
                            format!("term `?{var}` is not connected to the last term"),
                            span,
                            "nothing that leads to the last term uses it",
                            Some("the terms of a match must form one connected pattern, the last one its root".into()),
                        );
                    }
                }
                Some(p)
            }
        }
    }

    fn pattern(&mut self, d: &Datum, var: Option<VarId>) -> Option<Pattern> {
        match &d.kind {
            Kind::Var(v) => self.bind(v, Sort::Class, &d.span).map(Pattern::Var),
            Kind::Int(n) => Some(Pattern::Number(*n as f64)),
            Kind::Float(x) => Some(Pattern::Number(*x)),
            Kind::Sym(s) if s == "true" => Some(Pattern::Number(1.0)),
            Kind::Sym(s) if s == "false" => Some(Pattern::Number(0.0)),
            Kind::Sym(_) | Kind::Key(_) => {
                self.error(
                    "expected a term",
                    &d.span,
                    "not a term",
                    Some("terms are ?variables, numbers and (operator ...)".into()),
                );
                None
            }
            Kind::List(items) => {
                let Some((head, rest)) = items.split_first() else {
                    self.error("empty term", &d.span, "here", None);
                    return None;
                };
                if let Kind::Var(v) = &head.kind {
                    return self.class_pattern(v, head, rest, var);
                }
                let info = self.operator(head)?;
                let (args, attrs) = self.split_args(info, rest, &d.span)?;
                let mut out = OpPattern {
                    var,
                    head: Head::Op(OpKind(info)),
                    attrs: vec![],
                    args: vec![],
                    optional: vec![],
                    rest: None,
                };
                let mut ok = true;
                for a in args {
                    match rest_var(a) {
                        Some(_) if out.rest.is_some() => {
                            let help = "`?x...` takes all operands that are left, so it comes last".to_owned();
                            self.error("an operand after `...`", &a.span, "nothing is left for it", Some(help));
                            ok = false;
                        }
                        Some(name) => match self.bind(name, Sort::Classes, &a.span) {
                            Some(v) if is_optional(a) => out.optional.push(v),
                            Some(v) => out.rest = Some(v),
                            None => ok = false,
                        },
                        None if out.rest.is_some() || !out.optional.is_empty() => {
                            let help = "write the operands that are always there first".to_owned();
                            self.error("an operand after an optional one", &a.span, "here", Some(help));
                            ok = false;
                        }
                        None => match self.pattern(a, None) {
                            Some(p) => out.args.push(p),
                            None => ok = false,
                        },
                    }
                }
                for (i, a) in info.attrs.iter().enumerate() {
                    let p = match attrs[i] {
                        Some(Datum { kind: Kind::Var(v), span }) => {
                            self.bind_attr(v, a.kind, span).map(AttrPattern::Var)
                        }
                        Some(d) => self.attr_literal(d, a.kind, info, a.name).map(AttrPattern::Is),
                        None => match &a.default {
                            Some(v) => Some(AttrPattern::Is(v.clone())),
                            None => {
                                let help = format!("write `:{} ?{}`", a.name, a.name);
                                let message = format!("attribute `{}` of `{}` is not given", a.name, info.name);
                                self.error(message, &d.span, "in this term", Some(help));
                                None
                            }
                        },
                    };
                    match p {
                        Some(p) => out.attrs.push(p),
                        None => ok = false,
                    }
                }
                ok.then(|| Pattern::Op(Box::new(out)))
            }
        }
    }

    /// `(?f:unary x)`.
    fn class_pattern(&mut self, word: &str, head: &Datum, rest: &[Datum], var: Option<VarId>) -> Option<Pattern> {
        let Some((name, class)) = word.split_once(':').and_then(|(n, c)| Some((n, OpClass::parse(c)?))) else {
            let help = "an operator variable is written ?f:unary or ?f:binary".to_owned();
            self.error("expected an operator", &head.span, "this variable has no operator class", Some(help));
            return None;
        };
        let f = self.bind(name, Sort::Operator(class), &head.span);
        if rest.len() != class.arity() {
            self.error(
                format!("`?{name}` takes {}, not {}", count(class.arity(), "operand"), rest.len()),
                &head.span,
                "here",
                None,
            );
            return None;
        }
        let args: Vec<_> = rest.iter().map(|a| self.pattern(a, None)).collect();
        let args = args.into_iter().collect::<Option<Vec<_>>>()?;
        Some(Pattern::Op(Box::new(OpPattern {
            var,
            head: Head::Class(f?, class),
            attrs: vec![],
            args,
            optional: vec![],
            rest: None,
        })))
    }

    fn operator(&mut self, head: &Datum) -> Option<&'static OpInfo> {
        let Some(name) = head.sym() else {
            self.error("expected an operator", &head.span, "not a name", None);
            return None;
        };
        let info = op::info(name);
        if info.is_none() {
            let kernels = self.kernels.iter().map(|k| k.name.as_str());
            let help = nearest(name, op::table().iter().map(|o| o.name).chain(kernels));
            self.error(format!("unknown operator `{name}`"), &head.span, "no operator has this name", help);
        }
        info
    }

    /// Splits what follows an operator into operands and attributes (in table order).
    pub(super) fn split_args<'d>(
        &mut self,
        info: &'static OpInfo,
        items: &'d [Datum],
        whole: &Span,
    ) -> Option<(Vec<&'d Datum>, Vec<Option<&'d Datum>>)> {
        let mut attrs: Vec<Option<&Datum>> = vec![None; info.attrs.len()];
        let mut plain = vec![];
        let mut ok = true;
        let mut i = 0;
        while i < items.len() {
            let Kind::Key(k) = &items[i].kind else {
                plain.push(&items[i]);
                i += 1;
                continue;
            };
            match (info.attrs.iter().position(|a| a.name == k), items.get(i + 1)) {
                (Some(at), Some(v)) if attrs[at].is_none() => attrs[at] = Some(v),
                (Some(_), Some(_)) => {
                    self.error(format!("attribute `{k}` is given twice"), &items[i].span, "again here", None);
                    ok = false;
                }
                (Some(_), None) => {
                    self.error(format!("attribute `{k}` has no value"), &items[i].span, "here", None);
                    ok = false;
                }
                (None, _) => {
                    let help = nearest(k, info.attrs.iter().map(|a| a.name));
                    self.error(
                        format!("`{}` has no attribute `{k}`", info.name),
                        &items[i].span,
                        "unknown attribute",
                        help,
                    );
                    ok = false;
                }
            }
            i += 2;
        }
        let has_rest = plain.iter().any(|d| rest_var(d).is_some());
        if let Some(d) = plain.iter().find(|d| rest_var(d).is_some())
            && info.min_inputs == info.max_inputs
        {
            let help = "only operators with a variable number of operands have optional or remaining ones".to_owned();
            self.error(
                format!("`{}` takes exactly {}", info.name, count(info.min_inputs, "operand")),
                &d.span,
                "here",
                Some(help),
            );
            return None;
        }
        // What exceeds the operands of an operator of fixed arity are its attributes, in table order.
        let operands =
            if info.max_inputs == usize::MAX || has_rest { plain.len() } else { plain.len().min(info.max_inputs) };
        let (args, extra) = plain.split_at(operands);
        if extra.len() > attrs.len() || args.len() < info.min_inputs && !has_rest {
            let operands = match (info.min_inputs, info.max_inputs) {
                (a, b) if a == b => count(a, "operand"),
                _ => format!("{} operands", info.arity()),
            };
            let and =
                if attrs.is_empty() { String::new() } else { format!(" and {}", count(attrs.len(), "attribute")) };
            let message = format!("`{}` takes {operands}{and}, not {}", info.name, plain.len());
            let names: Vec<&str> = info.attrs.iter().map(|a| a.name).collect();
            let help = (!names.is_empty()).then(|| format!("its attributes are {}", names.join(", ")));
            self.error(message, whole, "in this term", help);
            return None;
        }
        for (at, d) in extra.iter().enumerate() {
            if attrs[at].replace(d).is_some() {
                self.error(
                    format!("attribute `{}` is given twice", info.attrs[at].name),
                    &d.span,
                    "by position here",
                    None,
                );
                ok = false;
            }
        }
        ok.then(|| (args.to_vec(), attrs))
    }

    /// The variable of an attribute. Values of two kinds are never equal.
    fn bind_attr(&mut self, name: &str, kind: AttrKind, span: &Span) -> Option<VarId> {
        let v = self.bind(name, Sort::Attr, span)?;
        let var = &mut self.vars[v];
        match var.kind {
            Some(was) if was != kind => {
                let (was, there) = (kind_name(was), var.span.clone());
                let now = kind_name(kind);
                let d = self.diagnostic(format!("`?{name}` is {was} and {now}"), span, format!("{now} here"));
                let help = format!("write two variables, and compare them with the guard `(= ?{name} ?other)`");
                self.errors.push(d.at(there, format!("{was} here")).help(help));
                self.doubtful.insert(name.to_owned());
                None
            }
            _ => {
                (var.kind, var.value) = (Some(kind), ValueSort::of_kind(kind));
                Some(v)
            }
        }
    }

    fn attr_literal(&mut self, d: &Datum, kind: AttrKind, info: &OpInfo, name: &str) -> Option<Attr> {
        let value = literal(d).and_then(|a| a.coerce(kind));
        if value.is_none() {
            let message = format!("attribute `{name}` of `{}` must be {}", info.name, kind_name(kind));
            let label = literal(d).map_or("not a value", |a| ValueSort::of_literal(&a).describe());
            self.error(message, &d.span, format!("this is {label}"), literal_help(kind));
        }
        value
    }

    /// An attribute on the right side.
    fn attr_value(&mut self, d: &Datum, kind: AttrKind, info: &OpInfo, name: &str) -> Option<Expr> {
        if literal(d).is_some() || d.list().is_some_and(<[Datum]>::is_empty) {
            return self.attr_literal(d, kind, info, name).map(Expr::Lit);
        }
        let e = self.expr(d)?;
        let what = format!("attribute `{name}` of `{}`", info.name);
        self.expect(&e, &d.span, ValueSort::of_kind(kind), kind_name(kind), &what).then_some(e)
    }

    pub(super) fn yield_side(&mut self, d: &Datum) -> Vec<(Target, Template)> {
        match roots(d) {
            None => self.template(d).map(|t| (Target::Root, t)).into_iter().collect(),
            Some(pairs) => {
                let mut out = vec![];
                let mut new = vec![];
                for (var, span, term) in pairs {
                    let t = self.template(term);
                    let is_new = self.find(var).is_none();
                    let v = self.bind(var, Sort::Class, span);
                    match v {
                        Some(v) if is_new => new.push((v, var, span)),
                        // A second equation for a new term uses the first.
                        Some(v) => drop(self.used.insert(v)),
                        None => {}
                    }
                    out.extend(v.zip(t).map(|(v, t)| (Target::Var(v), t)));
                }
                for (v, var, span) in new {
                    if !self.used.contains(&v) && self.errors.is_empty() {
                        let help = "a new name in :yield is for the terms after it; the left side does not bind it";
                        self.error(format!("`?{var}` is never used"), span, "built here", Some(help.to_owned()));
                    }
                }
                out
            }
        }
    }

    pub(super) fn template(&mut self, d: &Datum) -> Option<Template> {
        match &d.kind {
            Kind::Var(v) => {
                let id = self.bound(v, &d.span)?;
                if self.vars[id].sort != Sort::Class {
                    let sort = self.vars[id].sort.describe();
                    self.error(format!("`?{v}` is {sort}"), &d.span, "expected a tensor", None);
                    return None;
                }
                Some(Template::Var(id))
            }
            Kind::List(items) => {
                let Some((head, rest)) = items.split_first() else {
                    self.error("empty term", &d.span, "here", None);
                    return None;
                };
                if let Kind::Var(name) = &head.kind {
                    let f = self.bound(name, &head.span)?;
                    let Sort::Operator(class) = self.vars[f].sort else {
                        self.error(format!("`?{name}` is no operator"), &head.span, "here", None);
                        return None;
                    };
                    if rest.len() != class.arity() {
                        let message =
                            format!("`?{name}` takes {}, not {}", count(class.arity(), "operand"), rest.len());
                        self.error(message, &d.span, "here", None);
                        return None;
                    }
                    let args = rest.iter().map(|a| self.template(a)).collect::<Vec<_>>();
                    let args = args.into_iter().collect::<Option<Vec<_>>>()?;
                    return Some(Template::Op { head: TemplateHead::Var(f), args, rest: vec![] });
                }
                if head.sym() == Some("const") {
                    return self.constant(d, rest);
                }
                if let Some(k) = self.kernels.iter().find(|k| head.sym() == Some(k.name.as_str())).cloned() {
                    return self.kernel_term(&k, d, rest);
                }
                let info = self.operator(head)?;
                let (args, attrs) = self.split_args(info, rest, &d.span)?;
                let (mut out, mut rest, mut ok) = (vec![], vec![], true);
                for a in args {
                    match rest_var(a) {
                        Some(name) => match self.bound(name, &a.span) {
                            Some(v) if self.vars[v].sort == Sort::Classes => rest.push(v),
                            Some(v) => {
                                let message = format!("`?{name}` is {}", self.vars[v].sort.describe());
                                self.error(message, &a.span, "expected optional or remaining operands", None);
                                ok = false;
                            }
                            None => ok = false,
                        },
                        None if !rest.is_empty() => {
                            let help = "write the operands that are always there first".to_owned();
                            self.error("an operand after an optional one", &a.span, "here", Some(help));
                            ok = false;
                        }
                        None => match self.template(a) {
                            Some(t) => out.push(t),
                            None => ok = false,
                        },
                    }
                }
                let mut values = vec![];
                for (i, a) in info.attrs.iter().enumerate() {
                    let e = match (attrs[i], &a.default) {
                        (Some(d), _) => self.attr_value(d, a.kind, info, a.name),
                        (None, Some(v)) => Some(Expr::Lit(v.clone())),
                        (None, None) => {
                            let message = format!("attribute `{}` of `{}` is not given", a.name, info.name);
                            self.error(message, &d.span, "in this term", Some(format!("write `:{} VALUE`", a.name)));
                            None
                        }
                    };
                    match e {
                        Some(e) => values.push(e),
                        None => ok = false,
                    }
                }
                ok.then_some(Template::Op { head: TemplateHead::Op(OpKind(info), values), args: out, rest })
            }
            _ => {
                let help = "a number on the right side is written (const 0.5 :like ?x)".to_owned();
                self.error("expected a term", &d.span, "not a term", Some(help));
                None
            }
        }
    }

    /// `(const VALUE :like ?x)`.
    fn constant(&mut self, whole: &Datum, rest: &[Datum]) -> Option<Template> {
        match rest {
            [value, Datum { kind: Kind::Key(k), .. }, Datum { kind: Kind::Var(v), span }] if k == "like" => {
                let number = self
                    .expr(value)
                    .filter(|e| self.expect(e, &value.span, ValueSort::Number, "a number", "the value of a constant"));
                let like = self.bound(v, span)?;
                if self.vars[like].sort != Sort::Class {
                    let sort = self.vars[like].sort.describe();
                    self.error(format!("`?{v}` is {sort}"), span, "expected a tensor", None);
                    return None;
                }
                let value = number;
                Some(Template::Const { value: value?, like })
            }
            _ => {
                self.error("expected `(const VALUE :like ?x)`", &whole.span, "here", None);
                None
            }
        }
    }
}

/// An attribute kind in words.
fn kind_name(kind: AttrKind) -> &'static str {
    match kind {
        AttrKind::Int => "an integer",
        AttrKind::Ints => "a list of integers",
        AttrKind::Real => "a number",
        AttrKind::Bool => "true or false",
        AttrKind::DType => "an element type",
        AttrKind::Dim => "an extent",
        AttrKind::Dims => "a shape",
        AttrKind::Axis => "a mesh axis",
        AttrKind::Safe => "false, true or always",
        AttrKind::Str => "a name",
        AttrKind::Lit => "a constant",
        AttrKind::Body => "the body of a kernel",
        AttrKind::Call => "a call",
    }
}

/// How to write a literal of a kind, where that is not plain.
fn literal_help(kind: AttrKind) -> Option<String> {
    let text = match kind {
        AttrKind::Axis => "mesh axes are tp and pp".to_owned(),
        AttrKind::Ints | AttrKind::Dims => "a list is written (0 2 1)".to_owned(),
        AttrKind::DType => format!("element types are {}", DType::OWN.map(DType::name).join(", ")),
        _ => return None,
    };
    Some(text)
}

/// The name in `?x...` or `?x?`: a variable for several tensors.
pub(super) fn rest_name(word: &str) -> Option<&str> {
    word.strip_suffix("...").or_else(|| word.strip_suffix('?'))
}

pub(super) fn rest_var(d: &Datum) -> Option<&str> {
    match &d.kind {
        Kind::Var(v) => rest_name(v),
        _ => None,
    }
}

/// `?x?`
fn is_optional(d: &Datum) -> bool {
    matches!(&d.kind, Kind::Var(v) if v.ends_with('?'))
}

/// `((?a term) (?b term))`, or `None` for a single term.
#[allow(clippy::type_complexity, reason = "a local helper")]
pub(super) fn roots(d: &Datum) -> Option<Vec<(&str, &Span, &Datum)>> {
    let items = d.list()?;
    if items.is_empty() {
        return None;
    }
    items
        .iter()
        .map(|i| match i.list()? {
            [Datum { kind: Kind::Var(v), span }, term] => Some((v.as_str(), span, term)),
            _ => None,
        })
        .collect()
}

fn size(p: &Pattern) -> usize {
    match p {
        Pattern::Var(_) | Pattern::Number(_) => 1,
        Pattern::Op(o) => 1 + o.args.iter().map(size).sum::<usize>(),
    }
}

fn inline(p: &mut Pattern, named: &BTreeMap<String, Pattern>, vars: &[Var]) {
    match p {
        Pattern::Var(v) => {
            if let Some(q) = named.get(&vars[*v].name) {
                *p = q.clone();
            }
        }
        Pattern::Number(_) => {}
        Pattern::Op(o) => o.args.iter_mut().for_each(|a| inline(a, named, vars)),
    }
}

fn variables(p: &Pattern, out: &mut Vec<VarId>) {
    match p {
        Pattern::Var(v) => out.push(*v),
        Pattern::Number(_) => {}
        Pattern::Op(o) => {
            out.extend(o.var);
            o.args.iter().for_each(|a| variables(a, out));
        }
    }
}
