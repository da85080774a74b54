//! Why not: the rule that comes nearest to fusing an operator, and what it lacks.
//!
//! A rule is laid over the e-graph so that one operator of its pattern lies on the site. From there the
//! pattern is followed upwards to its root and then down again; the first term or guard that is not met,
//! in the attempt that gets furthest, is the reason.

use std::collections::HashMap;

use egg::{Id, Language as _};

use super::analysis::{Graph as EGraph, facts_of};
use super::ematch::matches;
use super::from_ir::Program;
use super::language::ENode;
use super::names::Names;
use crate::explain::WhyNot;
use crate::ir::{Attr, Class, Graph, Mapping, NodeId, Op};
use crate::rules::eval::{Bind, Binds, eval, holds, spliced, template_op};
use crate::rules::facts::Facts;
use crate::rules::lang::{
    AttrPattern, Expr, GuardKind, Head, OpPattern, Pattern, Rule, Target, Template, TemplateHead, VarId,
};
use crate::rules::{RuleSet, text};

/// What the search has at hand.
pub(super) struct Context<'p> {
    pub(super) program: &'p Program,
    pub(super) names: &'p Names<'p>,
    pub(super) rules: &'p RuleSet,
    pub(super) mapping: &'p Mapping,
    /// The operators that were extracted, by class.
    pub(super) chosen: HashMap<Id, &'static str>,
}

/// Depth down to which patterns are shown.
const WHOLE: usize = 3;

/// How far an attempt came: terms met, then guards met.
type Score = (usize, usize);

/// The first thing that is not met.
#[derive(Clone, Debug)]
struct Unmet {
    what: String,
    tensor: String,
    reason: String,
}

/// Whether the result of an operator is something that fused kernels take: an all-reduce, a norm, or the
/// sum of two computed tensors of equal type.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let n = graph.node(id);
    match &n.op {
        Op::AllReduce { .. } | Op::RmsNorm { .. } | Op::LayerNorm { .. } => true,
        Op::Add {} => {
            let computed = |i: &NodeId| graph.node(*i).op.info().class != Class::Leaf;
            let same = graph.node(n.inputs[0]).types == graph.node(n.inputs[1]).types;
            same && n.inputs.iter().all(computed) && n.ty().rank() >= 2 && n.ty().dtype.is_float()
        }
        _ => false,
    }
}

/// The reason for every all-reduce, residual sum and norm of an extracted program that stands apart.
pub(super) fn why_not(c: &Context<'_>, graph: &Graph, terms: &[(NodeId, ENode)]) -> Vec<WhyNot> {
    let mut out = vec![];
    for (id, term) in terms.iter().filter(|(id, _)| is_site(graph, *id)) {
        let Some(class) = c.program.eg.lookup(term.clone()) else { continue };
        let n = graph.node(*id);
        let (rule, unmet) = nearest(c, c.program.eg.find(class), &n.op);
        out.push(WhyNot {
            op: n.op.name().to_owned(),
            node: n.name.clone(),
            stage: n.stage.unwrap_or(0),
            rule,
            unmet: unmet.what,
            tensor: unmet.tensor,
            reason: unmet.reason,
        });
    }
    out
}

/// The rule that comes nearest to taking an operator of a class into a fused kernel.
fn nearest(c: &Context<'_>, class: Id, op: &Op) -> (String, Unmet) {
    let mut best: Option<(Score, &Rule, bool, Unmet)> = None;
    let active = c.rules.rules().iter().map(|r| (r, false));
    let banned = c.rules.banned().iter().map(|r| (r, true));
    for (rule, banned) in active.chain(banned).filter(|(r, _)| fuses(r)) {
        for path in places(&rule.pattern, op) {
            let (score, unmet) = lay(c, rule, &path, class);
            if best.as_ref().is_none_or(|(s, _, b, _)| (score, !banned) > (*s, !*b)) {
                best = Some((score, rule, banned, unmet));
            }
        }
    }
    match best {
        None => {
            let reason = format!("no rule fuses {}", op.name());
            (String::new(), Unmet { what: String::new(), tensor: c.names.class(class), reason })
        }
        Some((_, rule, true, unmet)) if unmet.what.is_empty() => {
            let reason = format!("`{}` is left out by --no-rule", rule.name);
            (rule.name.clone(), Unmet { reason, ..unmet })
        }
        Some((_, rule, _, unmet)) => {
            (rule.name.clone(), Unmet { reason: format!("`{}`: {}", rule.name, unmet.reason), ..unmet })
        }
    }
}

/// Whether a rule makes a fused operator.
fn fuses(rule: &Rule) -> bool {
    fn fused(t: &Template) -> bool {
        match t {
            Template::Op { head, args, .. } => {
                let here = match head {
                    TemplateHead::Op(k, _) => k.0.class == Class::Fused,
                    TemplateHead::Kernel(..) => true,
                    TemplateHead::Var(_) => false,
                };
                here || args.iter().any(fused)
            }
            _ => false,
        }
    }
    rule.yields.iter().any(|(_, t)| fused(t))
}

/// The operators of a pattern that are of one kind, each as the operand positions that lead to it.
fn places(p: &Pattern, op: &Op) -> Vec<Vec<usize>> {
    fn walk(p: &Pattern, op: &Op, at: &mut Vec<usize>, out: &mut Vec<Vec<usize>>) {
        let Pattern::Op(o) = p else { return };
        if matches!(&o.head, Head::Op(k) if k.0.name == op.name()) {
            out.push(at.clone());
        }
        for (i, a) in o.args.iter().enumerate() {
            at.push(i);
            walk(a, op, at, out);
            at.pop();
        }
    }
    let mut out = vec![];
    walk(p, op, &mut vec![], &mut out);
    out
}

/// Lays a rule over the e-graph so that the operator at `path` lies on a class.
fn lay(c: &Context<'_>, rule: &Rule, path: &[usize], class: Id) -> (Score, Unmet) {
    let eg = &c.program.eg;
    // The operators from the root down to the site.
    let mut line: Vec<&OpPattern> = vec![];
    let mut p = &rule.pattern;
    for i in path.iter().map(Some).chain([None]) {
        let Pattern::Op(o) = p else { break };
        line.push(o);
        if let Some(&i) = i {
            p = &o.args[i];
        }
    }
    // The site itself, down from there.
    let mut met = 0;
    let below = down(c, rule, p, class);
    let mut roots = vec![class];
    for (k, o) in line.iter().enumerate().rev().skip(1) {
        let position = path[k];
        let mut above: Vec<Id> = vec![];
        for &r in &roots {
            for parent in eg[r].parents() {
                let parent = eg.find(parent);
                let reads = |n: &ENode| head_fits(o, n) && operand_is(eg, n, position, r);
                if eg[parent].nodes.iter().any(reads) {
                    above.push(parent);
                }
            }
        }
        above.sort_unstable();
        above.dedup();
        if above.is_empty() {
            let tensor = c.names.class(roots[0]);
            let readers = readers(eg, &roots);
            let what = text::pattern(rule, &Pattern::Op(Box::new((*o).clone())), WHOLE);
            let reason = format!("{what} does not read {tensor}; {readers}");
            return ((met + below.0, 0), Unmet { what, tensor, reason });
        }
        met += 1;
        roots = above;
    }
    let mut best: Option<(Score, Unmet)> = None;
    for root in roots {
        let attempt = from_root(c, rule, root, line.len() > 1, class);
        if best.as_ref().is_none_or(|(s, _)| attempt.0 > *s) {
            best = Some(attempt);
        }
    }
    best.unwrap_or(((0, 0), below.1.unwrap_or_else(|| unknown(c, class))))
}

fn unknown(c: &Context<'_>, class: Id) -> Unmet {
    let tensor = c.names.class(class);
    Unmet { what: String::new(), reason: format!("it does not match at {tensor}"), tensor }
}

/// What reads some classes, in words.
fn readers(eg: &EGraph, classes: &[Id]) -> String {
    let mut names: Vec<&str> = vec![];
    for &c in classes {
        for p in eg[c].parents() {
            let reading =
                eg[eg.find(p)].nodes.iter().filter(|n| n.children().iter().any(|x| eg.find(*x) == eg.find(c)));
            names.extend(reading.map(|n| n.op.name()));
        }
    }
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "nothing reads it".to_owned() } else { format!("it is read by {}", names.join(", ")) }
}

fn head_fits(o: &OpPattern, n: &ENode) -> bool {
    let head = match &o.head {
        Head::Op(kind) => std::ptr::eq(n.op.row(), kind.0),
        Head::Class(_, class) => class.contains_class(n.op.row().class),
    };
    head && n.children.len() >= o.args.len()
}

fn operand_is(eg: &EGraph, n: &ENode, position: usize, class: Id) -> bool {
    let at = |i: usize| n.children.get(i).is_some_and(|c| eg.find(*c) == eg.find(class));
    at(position) || n.op.row().class == Class::Commutative && at(1 - position.min(1))
}

/// How many operators of a pattern are met at a class and below, and the first that is not.
fn down(c: &Context<'_>, rule: &Rule, p: &Pattern, class: Id) -> (usize, Option<Unmet>) {
    let eg = &c.program.eg;
    let class = eg.find(class);
    let o = match p {
        Pattern::Var(_) => return (0, None),
        Pattern::Number(x) => {
            let constant = eg[class].data.constant.as_ref().and_then(crate::ir::Literal::splat);
            return match constant {
                Some(_) => (1, None),
                None => (0, Some(lacks(c, &x.to_string(), class, "no constant".to_owned()))),
            };
        }
        Pattern::Op(o) => o,
    };
    let mut best: Option<(usize, Option<Unmet>)> = None;
    for n in eg[class].nodes.iter().filter(|n| head_fits(o, n)) {
        if let Some(unmet) = attribute(c, rule, o, n, class) {
            if best.is_none() {
                best = Some((0, Some(unmet)));
            }
            continue;
        }
        let orders: &[[usize; 2]] = if n.op.row().class == Class::Commutative { &[[0, 1], [1, 0]] } else { &[[0, 1]] };
        for order in orders {
            let (mut met, mut unmet) = (1, None);
            for (i, a) in o.args.iter().enumerate() {
                let at = order.get(i).copied().unwrap_or(i);
                let (m, u) = down(c, rule, a, n.children[at]);
                met += m;
                unmet = unmet.or(u);
            }
            if best.as_ref().is_none_or(|(b, _)| met > *b) {
                best = Some((met, unmet));
            }
        }
    }
    best.unwrap_or_else(|| {
        let mut made: Vec<&str> = match c.chosen.get(&class) {
            Some(op) => vec![op],
            None => eg[class].nodes.iter().map(|n| n.op.name()).collect(),
        };
        made.sort_unstable();
        made.dedup();
        (0, Some(lacks(c, &text::pattern(rule, p, WHOLE), class, format!("made by {}", made.join(", ")))))
    })
}

fn lacks(c: &Context<'_>, what: &str, class: Id, instead: String) -> Unmet {
    let tensor = c.names.class(class);
    Unmet { what: what.to_owned(), reason: format!("{what} is wanted, but {tensor} is {instead}"), tensor }
}

/// An attribute of a term that is not the one that a pattern wants.
fn attribute(c: &Context<'_>, rule: &Rule, o: &OpPattern, n: &ENode, class: Id) -> Option<Unmet> {
    let Head::Op(kind) = &o.head else { return None };
    let differs = |(want, have): (&AttrPattern, &Attr)| matches!(want, AttrPattern::Is(a) if a != have);
    let attrs = n.op.attrs();
    let at = o.attrs.iter().zip(&attrs).position(differs)?;
    let what = text::pattern(rule, &Pattern::Op(Box::new(o.clone())), WHOLE);
    let tensor = c.names.class(class);
    let reason = format!("{what} is wanted, but {tensor} has {} = {}", kind.0.attrs[at].name, attrs[at]);
    Some(Unmet { what, tensor, reason })
}

/// Follows a pattern down from a class that its root fits; then guards and right side.
fn from_root(c: &Context<'_>, rule: &Rule, root: Id, through: bool, site: Id) -> (Score, Unmet) {
    let eg = &c.program.eg;
    let (met, unmet) = down(c, rule, &rule.pattern, root);
    if let Some(u) = unmet {
        return ((met, 0), u);
    }
    let mut found = vec![];
    matches(eg, &rule.pattern, rule.vars.len(), root, &mut found);
    let here = |m: &super::ematch::Match| !through || m.covers.iter().any(|k| eg.find(*k) == eg.find(site));
    let mut best: Option<(usize, Unmet)> = None;
    for mut m in found.into_iter().filter(here) {
        let (held, unmet) = guards(c, rule, &mut m.binds, root);
        if best.as_ref().is_none_or(|(b, _)| held > *b) {
            best = Some((held, unmet));
        }
    }
    match best {
        Some((held, unmet)) => ((met, held), unmet),
        None => {
            let tensor = c.names.class(root);
            let what = text::pattern(rule, &rule.pattern, WHOLE);
            let reason = format!("the terms at {tensor} do not share the tensors that {what} names twice");
            ((met, 0), Unmet { what, tensor, reason })
        }
    }
}

/// How many guards hold, and the first that does not; then the right side, then the cost.
fn guards(c: &Context<'_>, rule: &Rule, binds: &mut Binds<Id>, root: Id) -> (usize, Unmet) {
    let eg = &c.program.eg;
    for (i, g) in rule.guards.iter().enumerate() {
        if holds(eg, g, binds, c.mapping) {
            continue;
        }
        let what = c.rules.excerpt(rule, &g.span);
        let (GuardKind::Holds(e) | GuardKind::Let(_, e)) = &g.kind;
        let mut vars = vec![];
        variables(e, &mut vars);
        let values: Vec<String> = vars.iter().filter_map(|v| value(c, rule, binds, *v)).collect();
        let tensor = vars.iter().find_map(|v| match &binds[*v] {
            Some(Bind::Class(id)) => Some(c.names.class(*id)),
            _ => None,
        });
        let with = if values.is_empty() { String::new() } else { format!(" with {}", values.join(", ")) };
        let reason = format!("guard {what} does not hold{with}");
        return (i, Unmet { what, tensor: tensor.unwrap_or_else(|| c.names.class(root)), reason });
    }
    let held = rule.guards.len();
    let tensor = c.names.class(root);
    match right(c, rule, binds) {
        Err(why) => (
            held,
            Unmet { what: "the right side".to_owned(), tensor, reason: format!("the right side has no type: {why}") },
        ),
        Ok(()) => {
            let reason = "it applies, but a program without it is estimated to cost less".to_owned();
            (held + 1, Unmet { what: String::new(), tensor, reason })
        }
    }
}

fn variables(e: &Expr, out: &mut Vec<VarId>) {
    match e {
        Expr::Lit(_) => {}
        Expr::Var(v) if !out.contains(v) => out.push(*v),
        Expr::Var(_) => {}
        Expr::Call(_, args, _) => args.iter().for_each(|a| variables(a, out)),
    }
}

fn value(c: &Context<'_>, rule: &Rule, binds: &Binds<Id>, v: VarId) -> Option<String> {
    let name = &rule.vars[v];
    Some(match binds[v].as_ref()? {
        Bind::Class(id) => {
            format!("?{name} = {}", c.names.tensor(*id, Some(super::run::Known::of(&c.program.eg[*id].data))))
        }
        Bind::Classes(ids) => {
            let all: Vec<String> = ids.iter().map(|i| c.names.tensor(*i, None)).collect();
            format!("?{name} = ({})", all.join("; "))
        }
        Bind::Attr(a) => format!("?{name} = {a}"),
        Bind::Op(op) => format!("?{name} = {}", &**op),
    })
}

/// Whether the right side has a type under a match.
fn right(c: &Context<'_>, rule: &Rule, binds: &mut Binds<Id>) -> Result<(), String> {
    let mut named: Vec<(VarId, Facts)> = vec![];
    for (target, t) in &rule.yields {
        let f = template(c, t, binds, &named)?;
        if let Target::Var(v) = target
            && binds[*v].is_none()
        {
            named.push((*v, f));
        }
    }
    Ok(())
}

fn template(c: &Context<'_>, t: &Template, binds: &Binds<Id>, named: &[(VarId, Facts)]) -> Result<Facts, String> {
    let eg = &c.program.eg;
    match t {
        Template::Var(v) => match (&binds[*v], named.iter().find(|(n, _)| n == v)) {
            (Some(Bind::Class(id)), _) => Ok(eg[*id].data.clone()),
            (_, Some((_, f))) => Ok(f.clone()),
            _ => Err("a variable is not bound".to_owned()),
        },
        Template::Const { value, like } => {
            let Some(Bind::Class(like)) = &binds[*like] else { return Err("a variable is not bound".to_owned()) };
            eval(eg, value, binds, c.mapping).ok_or("a constant has no value")?;
            let value = crate::ir::Literal::scalar(eg[*like].data.ty().dtype, 0.0);
            facts_of(&Op::Const { value }, &[])
        }
        Template::Op { head, args, rest } => {
            let mut children = args.iter().map(|a| template(c, a, binds, named)).collect::<Result<Vec<_>, _>>()?;
            children.extend(spliced(rest, binds).into_iter().flatten().map(|i| eg[i].data.clone()));
            let children: Vec<&Facts> = children.iter().collect();
            let op = template_op(eg, head, binds, c.mapping, &children).ok_or("an attribute has no value")?;
            facts_of(&op, &children)
        }
    }
}
