//! From s-expressions to checked rules. Every defect of a file is reported, not only the first.

use std::collections::{BTreeMap, BTreeSet};

use super::lang::{
    AttrPattern, Expr, Guard, Head, OpClass, OpKind, OpPattern, Pattern, Phase, Rule, Target, Template, TemplateHead,
    VarId,
};
use super::sexpr::{self, Datum, Kind, Span};
use super::vocab::{self, function};
use crate::diag::Diagnostic;
use crate::ir::{Attr, AttrKind, DType, MeshAxis, OpInfo, Real, op};

/// Reads the rules of one file. `phase` in a rule may be left out after a `(phase NAME)` form.
pub fn parse_file(file: &str, text: &str) -> Result<Vec<Rule>, Vec<Diagnostic>> {
    let data = sexpr::parse(text).map_err(|e| {
        let d = Diagnostic::new(file, e.message, e.span, "");
        vec![match e.note {
            Some((label, span)) => d.at(span, label),
            None => d,
        }]
    })?;
    let mut errors = vec![];
    let mut rules = vec![];
    let mut phase = None;
    for d in &data {
        let Some([head, rest @ ..]) = d.list() else {
            errors.push(Diagnostic::new(file, "expected `(rule ...)`", d.span.clone(), "this is no rule"));
            continue;
        };
        match (head.sym(), rest) {
            (Some("phase"), [name]) if name.sym().and_then(Phase::parse).is_some() => {
                phase = name.sym().and_then(Phase::parse);
            }
            (Some("rule"), _) => {
                let mut p = RuleParser { file, text, errors: vec![], vars: vec![], mentioned: BTreeSet::new() };
                let rule = p.rule(d, rest, phase);
                errors.append(&mut p.errors);
                rules.extend(rule);
            }
            (Some("phase"), [name]) => errors.push(
                Diagnostic::new(file, "unknown phase", name.span.clone(), "not a phase")
                    .help("phases are raise, shard and fuse"),
            ),
            _ => errors.push(
                Diagnostic::new(file, "expected `(rule ...)` or `(phase NAME)`", head.span.clone(), "not understood")
                    .help("phases are raise, shard and fuse"),
            ),
        }
    }
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}

/// What a variable stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Class,
    Classes,
    Attr,
    Operator(OpClass),
}

impl Sort {
    fn describe(self) -> &'static str {
        match self {
            Sort::Class => "a tensor",
            Sort::Classes => "several tensors",
            Sort::Attr => "an attribute value",
            Sort::Operator(_) => "an operator",
        }
    }
}

struct Var {
    name: String,
    sort: Sort,
    span: Span,
}

struct RuleParser<'a> {
    file: &'a str,
    text: &'a str,
    errors: Vec<Diagnostic>,
    vars: Vec<Var>,
    /// Every variable that the left side mentions, also where it is malformed.
    mentioned: BTreeSet<String>,
}

/// The nearest name, for a hint.
fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    let distance = |a: &str, b: &str| {
        let b: Vec<char> = b.chars().collect();
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.chars().enumerate() {
            let mut last = row[0];
            row[0] = i + 1;
            for (j, y) in b.iter().enumerate() {
                let cost = (last + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
                last = std::mem::replace(&mut row[j + 1], cost);
            }
        }
        row[b.len()]
    };
    names
        .map(|n| (distance(word, n), n))
        .min()
        .filter(|(d, n)| *d <= 2.max(n.len() / 3))
        .map(|(_, n)| format!("did you mean `{n}`?"))
}

impl RuleParser<'_> {
    fn error(&mut self, message: impl Into<String>, span: &Span, label: impl Into<String>, help: Option<String>) {
        let mut d = Diagnostic::new(self.file, message, span.clone(), label);
        d.help = help;
        self.errors.push(d);
    }

    fn rule(&mut self, whole: &Datum, items: &[Datum], phase: Option<Phase>) -> Option<Rule> {
        let Some((name, name_span, items)) =
            items.split_first().and_then(|(n, r)| Some((n.sym()?.to_owned(), n.span.clone(), r)))
        else {
            self.error("the rule has no name", &whole.span, "expected `(rule name ...)`", None);
            return None;
        };
        let (mut phase, mut sides, mut keys) = (phase, vec![], BTreeMap::new());
        let mut i = 0;
        while i < items.len() {
            match (&items[i].kind, items.get(i + 1)) {
                (Kind::Key(k), Some(v)) => {
                    if !matches!(&k[..], "phase" | "match" | "if" | "yield") {
                        let help = "a rule has :phase, :match, :if and :yield".to_owned();
                        self.error(format!("unknown keyword `:{k}`"), &items[i].span, "here", Some(help));
                    } else if keys.insert(k.clone(), v).is_some() {
                        self.error(format!("`:{k}` is given twice"), &items[i].span, "again here", None);
                    }
                    i += 2;
                }
                (Kind::Key(k), None) => {
                    self.error(format!("`:{k}` has no value"), &items[i].span, "here", None);
                    i += 1;
                }
                _ => {
                    sides.push(&items[i]);
                    i += 1;
                }
            }
        }
        if let Some(p) = keys.get("phase") {
            match p.sym().and_then(Phase::parse) {
                Some(p) => phase = Some(p),
                None => {
                    self.error("unknown phase", &p.span, "not a phase", Some("phases are raise, shard and fuse".into()))
                }
            }
        }
        let (left, right) = match (&sides[..], keys.get("match"), keys.get("yield")) {
            ([], Some(l), Some(r)) => (*l, *r),
            ([l, arrow, r], None, None) if arrow.sym() == Some("=>") => (*l, *r),
            _ => {
                let help = "write `LEFT => RIGHT`, or `:match LEFT :yield RIGHT`".to_owned();
                self.error(format!("rule `{name}` has no two sides"), &whole.span, "in this rule", Some(help));
                return None;
            }
        };
        if left.kind_text(self.text) == right.kind_text(self.text) {
            self.error(format!("both sides of rule `{name}` are equal"), &right.span, "nothing would change", None);
        }
        mentions(left, &mut self.mentioned);
        let pattern = self.pattern_side(left);
        let guards = match keys.get("if") {
            None => vec![],
            Some(d) => match d.list() {
                Some(list) => list.iter().filter_map(|g| self.guard(g)).collect(),
                None => {
                    self.error("`:if` takes a list of guards", &d.span, "not a list", None);
                    vec![]
                }
            },
        };
        let yields = self.yield_side(right);
        let Some(phase) = phase else {
            // An unknown phase has been reported already.
            if keys.contains_key("phase") {
                return None;
            }
            self.error(
                format!("rule `{name}` has no phase"),
                &whole.span,
                "in this rule",
                Some("write `:phase fuse`, or `(phase fuse)` above".into()),
            );
            return None;
        };
        Some(Rule {
            name,
            phase,
            file: self.file.to_owned(),
            name_span,
            line: self.text[..whole.span.start].matches('\n').count() + 1,
            doc: self.comment_above(whole.span.start),
            vars: self.vars.iter().map(|v| v.name.clone()).collect(),
            pattern: pattern?,
            guards,
            yields,
        })
    }

    /// The comment lines directly above an offset.
    fn comment_above(&self, at: usize) -> String {
        let mut lines: Vec<&str> = vec![];
        for line in self.text[..at].lines().rev() {
            match line.trim().strip_prefix(";;") {
                Some(c) => lines.push(c.trim()),
                None => break,
            }
        }
        lines.reverse();
        lines.join(" ")
    }

    fn find(&self, name: &str) -> Option<VarId> {
        self.vars.iter().position(|v| v.name == name)
    }

    /// The variable of a name, made if need be; an error where it already stands for something else.
    fn bind(&mut self, name: &str, sort: Sort, span: &Span) -> Option<VarId> {
        if name == "_" {
            self.vars.push(Var { name: "_".into(), sort, span: span.clone() });
            return Some(self.vars.len() - 1);
        }
        match self.find(name) {
            Some(v) if self.vars[v].sort == sort => Some(v),
            Some(v) => {
                let (was, there) = (self.vars[v].sort.describe(), self.vars[v].span.clone());
                let d = Diagnostic::new(
                    self.file,
                    format!("`?{name}` stands for {} and for {was}", sort.describe()),
                    span.clone(),
                    format!("{} here", sort.describe()),
                );
                self.errors.push(d.at(there, format!("{was} here")));
                None
            }
            None => {
                self.vars.push(Var { name: name.to_owned(), sort, span: span.clone() });
                Some(self.vars.len() - 1)
            }
        }
    }

    /// A variable that must be bound already.
    fn bound(&mut self, name: &str, span: &Span) -> Option<VarId> {
        if let Some(v) = self.find(name) {
            return Some(v);
        }
        // A defect of the left side that was reported already is the reason.
        if self.mentioned.contains(name) {
            return None;
        }
        let names: Vec<String> = self.vars.iter().map(|v| v.name.clone()).filter(|n| n != "_").collect();
        let hint =
            nearest(name, names.iter().map(String::as_str)).map(|h| h.replace('`', "").replace("mean ", "mean ?"));
        let list: Vec<String> = names.iter().map(|n| format!("?{n}")).collect();
        let help = hint.unwrap_or_else(|| match &list[..] {
            [] => "the left side binds no variable".to_owned(),
            _ => format!("bound are {}", list.join(" ")),
        });
        self.error(
            format!("variable `?{name}` is not bound"),
            span,
            "used here, but the left side does not bind it",
            Some(help),
        );
        None
    }

    fn pattern_side(&mut self, d: &Datum) -> Option<Pattern> {
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
                let mut out = OpPattern { var, head: Head::Op(OpKind(info)), attrs: vec![], args: vec![], rest: None };
                let mut ok = true;
                for a in args {
                    match rest_var(a) {
                        Some(name) => match self.bind(name, Sort::Classes, &a.span) {
                            Some(v) => out.rest = Some(v),
                            None => ok = false,
                        },
                        None => match self.pattern(a, None) {
                            Some(p) => out.args.push(p),
                            None => ok = false,
                        },
                    }
                }
                for (i, a) in info.attrs.iter().enumerate() {
                    let p = match attrs[i] {
                        Some(Datum { kind: Kind::Var(v), span }) => {
                            self.bind(v, Sort::Attr, span).map(AttrPattern::Var)
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
                format!("`?{name}` takes {} operands, not {}", class.arity(), rest.len()),
                &head.span,
                "here",
                None,
            );
            return None;
        }
        let args: Vec<_> = rest.iter().map(|a| self.pattern(a, None)).collect();
        let args = args.into_iter().collect::<Option<Vec<_>>>()?;
        Some(Pattern::Op(Box::new(OpPattern { var, head: Head::Class(f?, class), attrs: vec![], args, rest: None })))
    }

    fn operator(&mut self, head: &Datum) -> Option<&'static OpInfo> {
        let Some(name) = head.sym() else {
            self.error("expected an operator", &head.span, "not a name", None);
            return None;
        };
        let info = op::info(name);
        if info.is_none() {
            let help = nearest(name, op::table().iter().map(|o| o.name));
            self.error(format!("unknown operator `{name}`"), &head.span, "no operator has this name", help);
        }
        info
    }

    /// Splits what follows an operator into operands and attributes (in table order).
    fn split_args<'d>(
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
        // What exceeds the operands of an operator of fixed arity are its attributes, in table order.
        let operands =
            if info.max_inputs == usize::MAX || has_rest { plain.len() } else { plain.len().min(info.max_inputs) };
        let (args, extra) = plain.split_at(operands);
        if extra.len() > attrs.len() || args.len() < info.min_inputs && !has_rest {
            let takes = info.arity();
            let message = format!(
                "`{}` takes {takes} operands and {} attributes, not {} terms",
                info.name,
                attrs.len(),
                plain.len()
            );
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

    fn attr_literal(&mut self, d: &Datum, kind: AttrKind, info: &OpInfo, name: &str) -> Option<Attr> {
        let value = literal(d).and_then(|a| a.coerce(kind));
        if value.is_none() {
            let message = format!("attribute `{name}` of `{}` is of kind {kind:?}", info.name);
            self.error(message, &d.span, "not of that kind", None);
        }
        value
    }

    fn guard(&mut self, d: &Datum) -> Option<Guard> {
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
            return Some(Guard::Let(v, expr?));
        }
        self.expr(d).map(Guard::Holds)
    }

    fn expr(&mut self, d: &Datum) -> Option<Expr> {
        match &d.kind {
            Kind::Var(v) => {
                let name = v.strip_suffix("...").unwrap_or(v);
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

    fn yield_side(&mut self, d: &Datum) -> Vec<(Target, Template)> {
        match roots(d) {
            None => self.template(d).map(|t| (Target::Root, t)).into_iter().collect(),
            Some(pairs) => {
                let mut out = vec![];
                for (var, span, term) in pairs {
                    let t = self.template(term);
                    let v = self.bind(var, Sort::Class, span);
                    out.extend(v.zip(t).map(|(v, t)| (Target::Var(v), t)));
                }
                out
            }
        }
    }

    fn template(&mut self, d: &Datum) -> Option<Template> {
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
                        self.error(format!("`?{name}` takes {} operands", class.arity()), &d.span, "here", None);
                        return None;
                    }
                    let args = rest.iter().map(|a| self.template(a)).collect::<Vec<_>>();
                    let args = args.into_iter().collect::<Option<Vec<_>>>()?;
                    return Some(Template::Op { head: TemplateHead::Var(f), args, rest: None });
                }
                if head.sym() == Some("const") {
                    return self.constant(d, rest);
                }
                let info = self.operator(head)?;
                let (args, attrs) = self.split_args(info, rest, &d.span)?;
                let (mut out, mut rest, mut ok) = (vec![], None, true);
                for a in args {
                    match rest_var(a) {
                        Some(name) => {
                            rest = self.bound(name, &a.span);
                            ok &= rest.is_some_and(|v| self.vars[v].sort == Sort::Classes);
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
                        (Some(d), _) => self.expr(d),
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
                let value = self.expr(value);
                let like = self.bound(v, span)?;
                Some(Template::Const { value: value?, like })
            }
            _ => {
                self.error("expected `(const VALUE :like ?x)`", &whole.span, "here", None);
                None
            }
        }
    }
}

impl Datum {
    fn kind_text<'t>(&self, text: &'t str) -> Vec<&'t str> {
        text[self.span.clone()].split_whitespace().collect()
    }
}

/// `?x...`
fn rest_var(d: &Datum) -> Option<&str> {
    match &d.kind {
        Kind::Var(v) => v.strip_suffix("..."),
        _ => None,
    }
}

fn literal(d: &Datum) -> Option<Attr> {
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

/// `((?a term) (?b term))`, or `None` for a single term.
#[allow(clippy::type_complexity, reason = "a local helper")]
fn roots(d: &Datum) -> Option<Vec<(&str, &Span, &Datum)>> {
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

/// The names of the variables in a datum, without operator class or dots.
fn mentions(d: &Datum, out: &mut BTreeSet<String>) {
    match &d.kind {
        Kind::Var(v) => {
            let name = v.strip_suffix("...").unwrap_or(v);
            out.insert(name.split(':').next().unwrap_or(name).to_owned());
        }
        Kind::List(items) => items.iter().for_each(|i| mentions(i, out)),
        _ => {}
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
