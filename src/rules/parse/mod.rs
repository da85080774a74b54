//! From s-expressions to checked rules. Every defect of a file is reported, not only the first.

mod expr;
mod kernel;
mod kinds;
mod sides;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::flat::{self, Flat};
use super::lang::{Guard, GuardKind, Kernel, OpClass, Phase, Purpose, Rule, VarId};
use super::sexpr::{self, Datum, Kind, Span};
use super::signature::ValueSort;
use super::subsume;
use crate::diag::Diagnostic;
use crate::ir::AttrKind;

/// Reads the rules of one file. `phase` in a rule may be left out after a `(phase NAME)` form.
pub fn parse_file(file: &str, text: &str) -> Result<Vec<Rule>, Vec<Diagnostic>> {
    let (rules, _, errors) = read_file(file, text);
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}

/// The rules and kernels of one file that are free of mistakes, and the mistakes.
pub(super) fn read_file(file: &str, text: &str) -> (Vec<Rule>, Vec<Arc<Kernel>>, Vec<Diagnostic>) {
    let data = match sexpr::parse(text) {
        Ok(data) => data,
        Err(e) => {
            let mut d = Diagnostic::new(file, e.message, e.span, "");
            if let Some((label, span)) = e.note {
                d = d.at(span, label);
            }
            return (vec![], vec![], vec![d]);
        }
    };
    let mut errors = vec![];
    let mut rules = vec![];
    let mut phase = None;
    // Kernels first: a rule may use one that is declared below it.
    let mut kernels: Vec<Arc<Kernel>> = vec![];
    for d in &data {
        if let Some([head, rest @ ..]) = d.list()
            && head.sym() == Some("kernel")
        {
            let mut p = RuleParser::new(file, text, &[]);
            let kernel = p.kernel(d, rest);
            if p.errors.is_empty() {
                kernels.extend(kernel.map(Arc::new));
            }
            errors.append(&mut p.errors);
        }
    }
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
                let mut p = RuleParser::new(file, text, &kernels);
                let rule = p.rule(d, rest, phase);
                if p.errors.is_empty() {
                    rules.extend(rule);
                }
                errors.append(&mut p.errors);
            }
            (Some("kernel"), _) => {}
            (Some("phase"), [name]) => errors.push(
                Diagnostic::new(file, "unknown phase", name.span.clone(), "not a phase")
                    .help("phases are raise, shard and fuse"),
            ),
            _ => errors.push(
                Diagnostic::new(
                    file,
                    "expected `(rule ...)`, `(kernel ...)` or `(phase NAME)`",
                    head.span.clone(),
                    "not understood",
                )
                .help("phases are raise, shard and fuse"),
            ),
        }
    }
    (rules, kernels, errors)
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
    /// What an attribute value is, as far as it is known.
    value: ValueSort,
    /// The kind of the attribute that binds it.
    kind: Option<AttrKind>,
}

struct RuleParser<'a> {
    file: &'a str,
    text: &'a str,
    errors: Vec<Diagnostic>,
    vars: Vec<Var>,
    /// Every variable that the left side mentions, also where it is malformed.
    mentioned: BTreeSet<String>,
    /// Variables that a guard or the right side reads.
    used: BTreeSet<VarId>,
    /// Names that stand for two things, which was reported.
    doubtful: BTreeSet<String>,
    /// The kernels that the file declares.
    kernels: &'a [Arc<Kernel>],
}

/// The nearest name, for a hint.
pub(super) fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
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

/// A number of things.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl<'a> RuleParser<'a> {
    fn new(file: &'a str, text: &'a str, kernels: &'a [Arc<Kernel>]) -> RuleParser<'a> {
        RuleParser {
            file,
            text,
            errors: vec![],
            vars: vec![],
            mentioned: BTreeSet::new(),
            used: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            kernels,
        }
    }
}

impl RuleParser<'_> {
    fn error(&mut self, message: impl Into<String>, span: &Span, label: impl Into<String>, help: Option<String>) {
        let mut d = self.diagnostic(message, span, label);
        d.help = help;
        self.errors.push(d);
    }

    fn diagnostic(&self, message: impl Into<String>, span: &Span, label: impl Into<String>) -> Diagnostic {
        Diagnostic::new(self.file, message, span.clone(), label)
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
                    if !matches!(&k[..], "phase" | "match" | "if" | "when" | "yield") {
                        let help = "a rule has :phase, :match, :if, :when and :yield".to_owned();
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
        mentions(left, &mut self.mentioned);
        let pattern = self.pattern_side(left);
        let mut guards = vec![];
        for (key, purpose) in [("if", Purpose::Equality), ("when", Purpose::Profit)] {
            let Some(d) = keys.get(key) else { continue };
            match d.list() {
                Some(list) => guards.extend(list.iter().filter_map(|g| self.guard(g, purpose))),
                None => self.error(format!("`:{key}` takes a list of guards"), &d.span, "not a list", None),
            }
        }
        let yields = self.yield_side(right);
        self.unused(&guards);
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
        let rule = Rule {
            name,
            phase,
            file: self.file.to_owned(),
            name_span,
            left_span: left.span.clone(),
            right_span: right.span.clone(),
            line: self.text[..whole.span.start].matches('\n').count() + 1,
            doc: self.comment_above(whole.span.start),
            vars: self.vars.iter().map(|v| v.name.clone()).collect(),
            pattern: pattern?,
            guards,
            yields,
        };
        if self.errors.is_empty() {
            self.audit(&rule, left, right);
        }
        Some(rule)
    }

    /// Bindings that nothing reads.
    fn unused(&mut self, guards: &[Guard]) {
        for g in guards {
            let GuardKind::Let(v, _) = g.kind else { continue };
            let name = self.vars[v].name.clone();
            if !self.used.contains(&v) && !name.starts_with('_') && self.errors.is_empty() {
                let help = format!("remove it; where it is a condition that the value exists, call it `?_{name}`");
                self.error(format!("`?{name}` is never used"), &g.span, "bound here", Some(help));
            }
        }
    }

    /// Checks of a rule that is well-formed: what it states must be possible, and not nothing.
    fn audit(&mut self, rule: &Rule, left: &Datum, right: &Datum) {
        kinds::check(self, &rule.name, left, right);
        if !self.errors.is_empty() {
            return;
        }
        let Some(flat) = Flat::new(rule) else { return };
        let name = &rule.name;
        if let Some(at) = flat.equations.iter().position(|(l, r)| l == r) {
            let help = (flat.equations.len() == 1 && left.words(self.text) != right.words(self.text))
                .then(|| flat::commutative(&flat.equations[at].0))
                .flatten()
                .map(|op| format!("the operands of `{op}` match in both orders already"));
            let all = flat.equations.iter().all(|(l, r)| l == r);
            let message = if all { "both sides of" } else { "the two sides of an equation of" };
            self.error(format!("{message} rule `{name}` are equal"), &right.span, "nothing would change", help);
        } else if let Some(op) = subsume::regroups(&flat) {
            let d = self
                .diagnostic(
                    format!("rule `{name}` applies to its own result again and again"),
                    &right.span,
                    format!("the same operands of `{op}`, in other groups"),
                )
                .at(left.span.clone(), "matches the right side as well");
            self.errors.push(d.help("direct it towards one form, with a guard that says which operand moves"));
        }
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
            return Some(self.new_variable("_", sort, span));
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
                self.doubtful.insert(name.to_owned());
                None
            }
            None => Some(self.new_variable(name, sort, span)),
        }
    }

    fn new_variable(&mut self, name: &str, sort: Sort, span: &Span) -> VarId {
        let (value, kind) = (ValueSort::Any, None);
        self.vars.push(Var { name: name.to_owned(), sort, span: span.clone(), value, kind });
        self.vars.len() - 1
    }

    /// A variable that must be bound already.
    fn bound(&mut self, name: &str, span: &Span) -> Option<VarId> {
        if self.doubtful.contains(name) {
            return None;
        }
        if let Some(v) = self.find(name) {
            self.used.insert(v);
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
}

impl Datum {
    fn words<'t>(&self, text: &'t str) -> Vec<&'t str> {
        text[self.span.clone()].split_whitespace().collect()
    }
}

/// The names of the variables in a datum, without operator class or dots.
fn mentions(d: &Datum, out: &mut BTreeSet<String>) {
    match &d.kind {
        Kind::Var(v) => {
            let name = sides::rest_name(v).unwrap_or(v);
            out.insert(name.split(':').next().unwrap_or(name).to_owned());
        }
        Kind::List(items) => items.iter().for_each(|i| mentions(i, out)),
        _ => {}
    }
}
