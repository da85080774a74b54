//! Entries of a record in words.

use std::fmt::Write as _;

use super::{Bound, Entry, Made, Record, RuleText, Taken};

/// Widest column of terms and guards that others are aligned to.
const WIDE: usize = 76;

/// The functions of guards that read one fact each; all others read types and values.
const FACTS: &[(&str, u8, &str, &str)] = &[
    ("replicated", Bound::REPLICATED, "replicated over tp", "different on the ranks"),
    ("weight", Bound::WEIGHT, "from weights alone", "not from weights alone"),
    ("leaf", Bound::LEAF, "a leaf", "no leaf"),
    ("free", Bound::FREE, "free", "not free"),
];

impl Record {
    fn name(&self, tensor: u32) -> &str {
        self.tensors.get(tensor as usize).map_or("", |t| self.text(t.0))
    }

    fn ty(&self, tensor: u32) -> &str {
        self.tensors.get(tensor as usize).map_or("", |t| self.text(t.1))
    }
}

/// A term that was taken: `%y = mul(%a, %b)`; only the right side where the value has no name.
pub fn term(record: &Record, t: &Taken) -> String {
    let (head, attrs) = record.text(t.op).split_once(' ').unwrap_or((record.text(t.op), ""));
    let operands: Vec<&str> = t.operands.iter().map(|o| record.name(*o)).collect();
    let space = if attrs.is_empty() { "" } else { " " };
    let right = match operands[..] {
        [] => record.text(t.op).to_owned(),
        _ => format!("{head}({}){space}{attrs}", operands.join(", ")),
    };
    let name = record.name(t.tensor);
    if name.starts_with('%') { format!("{name} = {right}") } else { right }
}

/// What a variable stood for, without types.
pub(super) fn short(record: &Record, b: &Bound) -> Option<String> {
    match b {
        Bound::Nothing => None,
        Bound::Text(t) => Some(record.text(*t).to_owned()),
        Bound::Tensor(t, _) => Some(record.name(*t).to_owned()),
        Bound::Tensors((ts,)) => {
            Some(format!("({})", ts.iter().map(|t| record.name(*t)).collect::<Vec<_>>().join(", ")))
        }
    }
}

/// The words of a guard: functions, then variables without `?` and `...`.
fn words(guard: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut functions, mut vars) = (vec![], vec![]);
    let mut opened = false;
    for (i, word) in guard.split_inclusive(['(', ')', ' ']).enumerate() {
        let text = word.trim_end_matches(['(', ')', ' ']);
        if let Some(v) = text.strip_prefix('?') {
            let v = v.strip_suffix("...").unwrap_or(v);
            if !vars.contains(&v) {
                vars.push(v);
            }
        } else if opened && !text.is_empty() && i > 0 {
            functions.push(text);
        }
        opened = word.ends_with('(');
    }
    (functions, vars)
}

/// What a guard read: each of its variables with the facts in question.
fn readings(record: &Record, rule: &RuleText, e: &Entry, guard: &str) -> Vec<String> {
    let (functions, vars) = words(guard);
    let mut parts = vec![];
    for v in vars {
        let bound = rule.vars.iter().position(|n| n == v).and_then(|i| e.vars.get(i));
        let Some(bound) = bound else { continue };
        parts.push(match bound {
            Bound::Tensor(t, known) => {
                format!("?{v} = {}", described(record.name(*t), record.ty(*t), *known, &functions))
            }
            Bound::Tensors((ts,)) => {
                let all: Vec<String> = ts.iter().map(|t| format!("{}: {}", record.name(*t), record.ty(*t))).collect();
                format!("?{v} = ({})", all.join("; "))
            }
            Bound::Text(t) => format!("?{v} = {}", record.text(*t)),
            Bound::Nothing => continue,
        });
    }
    parts
}

/// A tensor with what some functions of guards read of it: its type, facts that were `known`, or both.
pub fn described(name: &str, ty: &str, known: u8, functions: &[&str]) -> String {
    let one_fact = |f: &&str| FACTS.iter().any(|x| x.0 == *f);
    let mut text = name.to_owned();
    if !functions.iter().any(one_fact) || !functions.iter().all(|f| *f == "not" || one_fact(f)) {
        let _ = write!(text, ": {ty}");
    }
    for (_, bit, yes, no) in FACTS.iter().filter(|f| functions.contains(&f.0)) {
        let _ = write!(text, " {}", if known & bit > 0 { yes } else { no });
    }
    text
}

/// Lines in two columns under a label, which stands before the first.
fn columns(out: &mut String, label: &str, rows: &[(String, String)]) {
    let width = rows.iter().filter(|r| !r.1.is_empty()).map(|r| r.0.chars().count()).max().unwrap_or(0).min(WIDE);
    for (i, (left, right)) in rows.iter().enumerate() {
        let label = if i == 0 { label } else { "" };
        let line = format!("       {label:5} {left:width$}   {right}");
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// Appends an application of a rule as the `number`th of a chain. What the rule says is repeated only where
/// `as_in` does not name an earlier application. `number_of` numbers the entries of the chain.
pub fn application(
    out: &mut String,
    record: &Record,
    e: &Entry,
    number: usize,
    as_in: Option<usize>,
    number_of: &dyn Fn(u32) -> usize,
) {
    let Some(rule) = record.rules.get(e.rule as usize) else { return };
    match as_in {
        None => {
            let _ = writeln!(out, "{number:4}. {} ({}, {}): {}", rule.name, rule.phase, rule.place, rule.doc);
        }
        Some(n) => {
            let _ = writeln!(out, "{number:4}. {}, as {n}", rule.name);
        }
    }
    let from = |t: &Taken| match &t.made {
        Made::By(entry) => format!("made by {}", number_of(*entry)),
        Made::Nodes(nodes) if nodes.is_empty() => match record.text(t.op).split_once(' ').map(|o| o.0) {
            Some("boundary") => "put in between the stages".to_owned(),
            _ => String::new(),
        },
        Made::Nodes(nodes) => {
            let names: Vec<&str> = nodes.iter().map(|n| record.text(*n)).collect();
            format!("ONNX {}", names.join(", "))
        }
    };
    columns(out, "took", &e.took.iter().map(|t| (term(record, t), from(t))).collect::<Vec<_>>());
    // What one guard read is not told again at the next.
    let mut told: Vec<String> = vec![];
    let mut guards: Vec<(String, String)> = vec![];
    for g in &rule.guards {
        let mut parts = readings(record, rule, e, g);
        parts.retain(|p| !told.contains(p));
        guards.push((g.clone(), parts.join(", ")));
        told.append(&mut parts);
    }
    columns(out, "held", &guards);
    let read: Vec<&str> = rule.guards.iter().flat_map(|g| words(g).1).collect();
    let others = rule.vars.iter().zip(&e.vars).filter(|(v, _)| !read.contains(&v.as_str()));
    let with: Vec<String> = others.filter_map(|(v, b)| Some(format!("?{v} = {}", short(record, b)?))).collect();
    if as_in.is_none() {
        columns(out, "gives", &[(rule.right.clone(), String::new())]);
    }
    if !with.is_empty() {
        columns(out, "with", &[(with.join(", "), String::new())]);
    }
}
