//! Counter-examples for people: the rule with what each side gives, and the tensors that show it.

use super::eval::Array;
use super::verify::{CounterExample, Finding, Obstacle, Verdict, VerifyConfig};
use crate::diag::Diagnostic;
use crate::ir::{Attr, Literal, Op};
use crate::rules::eval::Bind;
use crate::rules::facts::Facts;
use crate::rules::{Rule, RuleSet};

/// Most numbers of a tensor that are printed.
const SHOWN: usize = 12;

/// Why a rule is refused, rendered with its place; `None` where it holds.
pub fn refusal(rules: &RuleSet, rule: &Rule, verdict: &Verdict) -> Option<String> {
    let d = |message: String, span, label: String| Diagnostic::new(&rule.file, message, span, label);
    let d = match verdict {
        Verdict::Holds { .. } => return None,
        Verdict::Wrong(c) => {
            let (message, left, right, help) = wrong(rule, c);
            let mut d = d(message, rule.right_span.clone(), right).at(rule.left_span.clone(), left);
            for line in example(rule, c) {
                d = d.note(line);
            }
            d.help(help)
        }
        Verdict::Untested { instances, attempts, obstacle } => {
            let message = format!("rule `{}` could not be tested", rule.name);
            let needed = VerifyConfig::standard().instances.div_ceil(4);
            let found = format!("{attempts} random attempts gave {instances} instances of {needed} that are needed");
            let (span, label) = match obstacle {
                Obstacle::Guard(i) => match rule.guards.get(*i) {
                    Some(g) => (g.span.clone(), "this guard held too rarely".to_owned()),
                    None => (rule.name_span.clone(), String::new()),
                },
                Obstacle::Right(why) => (rule.right_span.clone(), format!("not well typed: {why}")),
                Obstacle::Types => (rule.left_span.clone(), "no well-typed instance was found".to_owned()),
                Obstacle::Values => (rule.left_span.clone(), "gave no finite number".to_owned()),
            };
            d(message, span, label).note(found).help(
                "make the pattern and its guards satisfiable and as general as they are true; \
                 --trust-rules accepts rules that are not verified",
            )
        }
    };
    Some(d.render(rules.source(&rule.file)))
}

/// Message, label of the left side, label of the right side, advice.
fn wrong(rule: &Rule, c: &CounterExample) -> (String, String, String, String) {
    let name = &rule.name;
    match &c.finding {
        Finding::Types { left, right } => (
            format!("the two sides of rule `{name}` have different types"),
            format!("has type {left}"),
            format!("has type {right}"),
            "add a guard that excludes this case, or make the right side give the type of the left".to_owned(),
        ),
        Finding::Stages { left, right } => (
            format!("the two sides of rule `{name}` belong to different pipeline stages"),
            format!("is in stage {left}"),
            format!("is in stage {right}"),
            "a value passes to another stage by `boundary` alone, unless `(free ?x)` holds".to_owned(),
        ),
        Finding::Fails(why) => (
            format!("the right side of rule `{name}` cannot be computed where the left side can"),
            "can be computed".to_owned(),
            why.clone(),
            "add a guard that excludes this case".to_owned(),
        ),
        Finding::Values { rank, index, left, right, rounded, .. } => {
            let at = if index.is_empty() { String::new() } else { format!(" at {index:?}") };
            let on = if c.instance.mapping.tp > 1 { format!(" on rank {rank}") } else { String::new() };
            let (message, help) = if *rounded {
                (
                    format!("the right side of rule `{name}` loses precision"),
                    "compute in the element type of the left side; a fusion does not change the accumulation type",
                )
            } else {
                (
                    format!("the two sides of rule `{name}` differ"),
                    "correct the equation, or add a guard that excludes this case",
                )
            };
            let (mut l, mut r) = (number(*left), number(*right));
            if l == r {
                (l, r) = (left.to_string(), right.to_string());
            }
            (message, format!("gives {l}{at}{on}"), format!("gives {r}{at}{on}"), help.to_owned())
        }
    }
}

/// The variables with their values.
fn example(rule: &Rule, c: &CounterExample) -> Vec<String> {
    let i = &c.instance;
    let mut lines = vec![];
    let symbols: Vec<String> = i.bindings.iter().map(|(n, v)| format!(", {n} = {v}")).collect();
    let pp = if i.mapping.pp > 1 { format!(" x pp {}", i.mapping.pp) } else { String::new() };
    lines.push(format!("counter-example with tp {}{pp}{}", i.mapping.tp, symbols.concat()));
    for (v, bind) in rule.vars.iter().zip(&i.binds) {
        match bind {
            None => {}
            Some(_) if v == "_" => {}
            Some(Bind::Attr(a)) => lines.push(format!("?{v} = {}", attr(a))),
            Some(Bind::Op(op)) => lines.push(format!("?{v} = {}", &**op)),
            // Names that the right side gives.
            Some(Bind::Class(n)) if n.index() >= i.n_left => {}
            Some(Bind::Class(n)) => lines.push(format!("?{v} = {}", tensor(c, *n))),
            Some(Bind::Classes(ns)) => {
                let all: Vec<String> = ns.iter().map(|n| tensor(c, *n)).collect();
                lines.push(format!("?{v} = ({})", all.join("; ")));
            }
        }
    }
    lines
}

fn attr(a: &Attr) -> String {
    a.to_string()
}

fn tensor(c: &CounterExample, n: crate::ir::NodeId) -> String {
    let facts: &Facts = &c.instance.facts[n.index()];
    let types: Vec<String> = facts.types.iter().map(ToString::to_string).collect();
    let types = types.join(", ");
    if let Op::Const { value } = &c.instance.graph.node(n).op {
        return format!("constant {types}: {}", literal(value));
    }
    let layout = match (facts.weight, facts.varies_over_tp) {
        (_, true) if c.instance.mapping.tp > 1 => "different on the ranks",
        (true, false) => "weight",
        (false, false) if c.instance.mapping.tp > 1 => "equal on the ranks",
        _ => "any tensor",
    };
    let Some(ranks) = c.values.get(n.index()).and_then(|v| v.first()) else { return format!("{types}, {layout}") };
    let same = ranks.windows(2).all(|w| w[0] == w[1]);
    let text = match ranks.first() {
        Some(a) if same => numbers(a),
        _ => ranks.iter().enumerate().map(|(r, a)| format!("rank {r} {}", numbers(a))).collect::<Vec<_>>().join(", "),
    };
    format!("{types}, {layout}: {text}")
}

fn literal(l: &Literal) -> String {
    match l.splat() {
        Some(x) => number(x),
        None => l.to_string(),
    }
}

fn numbers(a: &Array) -> String {
    let list: Vec<String> = a.data.iter().take(SHOWN).map(|x| number(*x)).collect();
    let more = if a.data.len() > SHOWN { ", .." } else { "" };
    format!("[{}{more}]", list.join(", "))
}

/// A number with as many digits as people can compare.
fn number(x: f64) -> String {
    if x == x.trunc() && x.abs() < 1e6 || !x.is_finite() {
        return format!("{x}");
    }
    let magnitude = x.abs();
    if (1e-3..1e6).contains(&magnitude) {
        let text = format!("{x:.6}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    format!("{x:.4e}")
}
