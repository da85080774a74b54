//! Patterns as text.

use super::lang::{AttrPattern, Head, Pattern, Rule};

/// A pattern in the form of rule files, down to a depth; what lies deeper is `..`.
pub fn pattern(rule: &Rule, p: &Pattern, depth: usize) -> String {
    let o = match p {
        Pattern::Var(v) => return format!("?{}", rule.vars[*v]),
        Pattern::Number(x) => return x.to_string(),
        Pattern::Op(o) => o,
    };
    let mut parts = vec![];
    match &o.head {
        Head::Op(kind) => parts.push(kind.0.name.to_owned()),
        Head::Class(v, _) => parts.push(format!("?{}", rule.vars[*v])),
    }
    if depth == 0 {
        return format!("({} ..)", parts[0]);
    }
    parts.extend(o.args.iter().map(|a| pattern(rule, a, depth - 1)));
    parts.extend(o.optional.iter().map(|v| format!("?{}?", rule.vars[*v])));
    parts.extend(o.rest.iter().map(|v| format!("?{}...", rule.vars[*v])));
    if let Head::Op(kind) = &o.head {
        for (a, info) in o.attrs.iter().zip(&kind.0.attrs) {
            match a {
                AttrPattern::Is(v) if info.default.as_ref() == Some(v) => {}
                AttrPattern::Is(v) => parts.push(format!(":{} {v}", info.name)),
                AttrPattern::Var(v) => parts.push(format!(":{} ?{}", info.name, rule.vars[*v])),
            }
        }
    }
    format!("({})", parts.join(" "))
}
