//! Why not: the rule that comes nearest to fusing an operator, and what it lacks.
//!
//! A rule is laid over the e-graph so that one operator of its pattern lies on the site. From there the
//! pattern is followed upwards to its root and then down again; the first term or guard that is not met,
//! in the attempt that gets furthest, is the reason.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use egg::{Id, Language as _};

use super::analysis::{Graph as EGraph, facts_of};
use super::ematch::{Match, head_matches, matches};
use super::from_ir::Program;
use super::language::ENode;
use super::names::Names;
use crate::explain::WhyNot;
use crate::ir::{Attr, Class, Graph, Literal, Mapping, NodeId, Op, value_name};
use crate::rules::eval::{Bind, Binds, eval, holds, spliced, template_op};
use crate::rules::facts::Facts;
use crate::rules::lang::{
    AttrPattern, Expr, GuardKind, Head, OpPattern, Pattern, Rule, Target, Template, TemplateHead, VarId,
};
use crate::rules::vocab::is_close;
use crate::rules::{RuleSet, text};

/// What the search has at hand.
pub(super) struct Context<'p> {
    program: &'p Program,
    names: &'p Names<'p>,
    rules: &'p RuleSet,
    mapping: &'p Mapping,
    /// The extracted program.
    graph: &'p Graph,
    /// By class: the node that was extracted.
    chosen: Vec<Option<NodeId>>,
    /// The rules that make fused operators, and whether they are left out.
    fusing: Vec<(&'p Rule, bool)>,
}

impl<'p> Context<'p> {
    pub(super) fn new(
        names: &'p Names<'p>,
        rules: &'p RuleSet,
        mapping: &'p Mapping,
        graph: &'p Graph,
        classes: &[(NodeId, Id)],
    ) -> Self {
        let program = names.program();
        let mut chosen = vec![None; program.eg.nodes().len()];
        classes.iter().for_each(|(id, class)| chosen[usize::from(*class)] = Some(*id));
        let active = rules.rules().iter().map(|r| (r, false));
        let banned = rules.banned().iter().map(|r| (r, true));
        let mut fusing: Vec<(&Rule, bool)> = active.chain(banned).filter(|(r, _)| fuses(r)).collect();
        // A model with layer norms alone is not told of RMS norms.
        let made = program.made.iter().map(|(n, _)| n.op.name());
        let there: BTreeSet<&str> = program.original.iter().map(|(_, n)| n.op.name()).chain(made).collect();
        fusing.sort_by_key(|(r, _)| !operators_are_in(&r.pattern, &there));
        Context { program, names, rules, mapping, graph, chosen, fusing }
    }

    fn chosen(&self, class: Id) -> Option<NodeId> {
        self.chosen[usize::from(self.program.eg.find(class))]
    }
}

/// Depth down to which patterns are shown.
const WHOLE: usize = 3;

/// What a term that is met counts.
const TERM: usize = 2;

/// How near an attempt came: by terms that are missing, then terms met, then guards met.
type Score = (Reverse<usize>, usize, usize);

fn score(rule: &Rule, met: usize, held: usize) -> Score {
    fn operators(p: &Pattern) -> usize {
        match p {
            Pattern::Op(o) => 1 + o.args.iter().map(operators).sum::<usize>(),
            Pattern::Number(_) => 1,
            Pattern::Var(_) => 0,
        }
    }
    (Reverse((TERM * operators(&rule.pattern)).saturating_sub(met)), met, held)
}

/// The first thing that is not met.
#[derive(Clone, Debug)]
struct Unmet {
    what: String,
    tensor: String,
    reason: String,
}

/// Whether the result of an operator is something that fused kernels take: an all-reduce, a norm, or the
/// sum of two tensors of equal type that are no weights.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let n = graph.node(id);
    match &n.op {
        Op::AllReduce { .. } | Op::RmsNorm { .. } | Op::LayerNorm { .. } => true,
        Op::Add {} => {
            let computed = |i: &NodeId| !matches!(graph.node(*i).op, Op::Weight { .. } | Op::Const { .. });
            let same = graph.node(n.inputs[0]).types == graph.node(n.inputs[1]).types;
            same && n.inputs.iter().all(computed) && n.ty().rank() >= 2 && n.ty().dtype.is_float()
        }
        _ => false,
    }
}

/// The reason for every all-reduce, residual sum and norm of an extracted program that stands apart.
pub(super) fn why_not(c: &Context<'_>, classes: &[(NodeId, Id)]) -> Vec<WhyNot> {
    let mut out = vec![];
    for (id, class) in classes.iter().filter(|(id, _)| is_site(c.graph, *id)) {
        let n = c.graph.node(*id);
        let (rule, unmet) = nearest(c, *class, &n.op);
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

/// The rule that comes nearest to taking an operator of a class into a fused kernel. Of rules that come
/// equally near, the first; one that is left out only where it comes nearer than all others.
fn nearest(c: &Context<'_>, class: Id, op: &Op) -> (String, Unmet) {
    let mut best: Option<(Score, &Rule, bool, Unmet)> = None;
    for &(rule, banned) in &c.fusing {
        for path in places(&rule.pattern, op) {
            let (score, unmet) = lay(c, rule, &path, class);
            if best.as_ref().is_none_or(|(s, ..)| score > *s) {
                best = Some((score, rule, banned, unmet));
            }
        }
    }
    let Some((_, rule, banned, unmet)) = best else {
        let reason = format!("no rule fuses {}", op.name());
        return (String::new(), Unmet { what: String::new(), tensor: c.names.class(class), reason });
    };
    let reason = match (banned, unmet.what.is_empty()) {
        (true, true) => format!("`{}` is left out by --no-rule", rule.name),
        (true, false) => format!("{}; the rule is left out by --no-rule as well", unmet.reason),
        (false, _) => unmet.reason,
    };
    (rule.name.clone(), Unmet { reason, ..unmet })
}

/// Whether all operators of a pattern are among some.
fn operators_are_in(p: &Pattern, names: &BTreeSet<&str>) -> bool {
    let Pattern::Op(o) = p else { return true };
    let here = match &o.head {
        Head::Op(k) => names.contains(k.0.name),
        Head::Class(..) => true,
    };
    here && o.args.iter().all(|a| operators_are_in(a, names))
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
        let here = match &o.head {
            Head::Op(k) => k.0.name == op.name(),
            Head::Class(_, class) => class.contains_class(op.info().class),
        };
        if here {
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
    let (mut met, below) = down(c, rule, p, class);
    let mut roots = vec![class];
    for (k, o) in line.iter().enumerate().rev().skip(1) {
        let mut above: Vec<Id> = vec![];
        for &r in &roots {
            let reads = |n: &ENode| head_matches(o, n) && operand_is(eg, n, path[k], r);
            above.extend(eg[r].parents().map(|p| eg.find(p)).filter(|p| eg[*p].nodes.iter().any(reads)));
        }
        above.sort_unstable();
        above.dedup();
        if above.is_empty() {
            // What the site itself lacks comes first.
            let unmet = below.unwrap_or_else(|| {
                let tensor = c.names.class(roots[0]);
                let what = text::pattern(rule, &Pattern::Op(Box::new((*o).clone())), 1);
                let reason = format!("`{}` wants {what} to read {tensor}; {}", rule.name, readers(c, roots[0]));
                Unmet { what, tensor, reason }
            });
            return (score(rule, met, 0), unmet);
        }
        met += TERM;
        roots = above;
    }
    let attempts = roots.into_iter().map(|root| from_root(c, rule, root, line.len() > 1, class));
    let mut best: Option<(Score, Unmet)> = None;
    for attempt in attempts {
        if best.as_ref().is_none_or(|(s, _)| attempt.0 > *s) {
            best = Some(attempt);
        }
    }
    best.unwrap_or_else(|| {
        let tensor = c.names.class(class);
        let reason = format!("`{}` does not match at {tensor}", rule.name);
        (score(rule, 0, 0), Unmet { what: text::pattern(rule, &rule.pattern, WHOLE), tensor, reason })
    })
}

/// Most readers that a reason names.
const READERS: usize = 3;

/// What reads a tensor, in words.
fn readers(c: &Context<'_>, class: Id) -> String {
    let eg = &c.program.eg;
    let mut list: Vec<String> = match c.chosen(class) {
        Some(id) => {
            let mut readers: Vec<String> = vec![];
            for u in c.graph.users(id) {
                let n = c.graph.node(u);
                readers.push(match &n.op {
                    Op::Boundary { stage } => format!("stage {stage}"),
                    op => format!("{} {}", op.name(), value_name(&n.name)),
                });
            }
            let results = c.graph.outputs().iter().filter(|o| o.value == id);
            readers.extend(results.map(|o| format!("output {}", value_name(&o.name))));
            readers
        }
        None => vec![],
    };
    if list.is_empty() {
        let reading = |p: Id| eg[p].nodes.iter().filter(|n| n.children().iter().any(|x| eg.find(*x) == eg.find(class)));
        list = eg[class].parents().flat_map(|p| reading(eg.find(p))).map(|n| n.op.name().to_owned()).collect();
        list.sort_unstable();
        list.dedup();
    }
    match list.len() {
        0 => "nothing reads it".to_owned(),
        n if n > READERS => {
            format!("it is read by {} and {} more", list[..READERS].join(", "), n - READERS)
        }
        _ => format!("it is read by {}", list.join(", ")),
    }
}

fn operand_is(eg: &EGraph, n: &ENode, position: usize, class: Id) -> bool {
    let at = |i: usize| n.children.get(i).is_some_and(|c| eg.find(*c) == eg.find(class));
    at(position) || n.op.commutes() && position < 2 && at(1 - position)
}

/// How far a pattern is met at a class and below, and the first term that is not.
fn down(c: &Context<'_>, rule: &Rule, p: &Pattern, class: Id) -> (usize, Option<Unmet>) {
    let eg = &c.program.eg;
    let class = eg.find(class);
    let o = match p {
        Pattern::Var(_) => return (0, None),
        Pattern::Number(x) => {
            let facts = &eg[class].data;
            return match facts.constant.as_ref().and_then(Literal::splat) {
                Some(have) if is_close(have, *x, facts.ty().dtype) => (TERM, None),
                have => {
                    let instead = have.map_or("no constant".to_owned(), |h| h.to_string());
                    (0, Some(lacks(c, rule, x.to_string(), class, &format!("is {instead}"))))
                }
            };
        }
        Pattern::Op(o) => o,
    };
    let mut best: Option<(usize, Option<Unmet>)> = None;
    let mut keep = |met: usize, unmet: Option<Unmet>| {
        if best.as_ref().is_none_or(|(b, _)| met > *b) {
            best = Some((met, unmet));
        }
    };
    for n in eg[class].nodes.iter().filter(|n| head_matches(o, n)) {
        if let Some(unmet) = attribute(c, rule, o, n, class) {
            // Nearer than another operator, but not met.
            keep(TERM / 2, Some(unmet));
            continue;
        }
        let orders: &[[usize; 2]] = if n.op.commutes() { &[[0, 1], [1, 0]] } else { &[[0, 1]] };
        for order in orders {
            let (mut met, mut unmet) = (TERM, None);
            for (i, a) in o.args.iter().enumerate() {
                let at = order.get(i).copied().unwrap_or(i);
                let (m, u) = down(c, rule, a, n.children[at]);
                met += m;
                unmet = unmet.or(u);
            }
            keep(met, unmet);
        }
    }
    best.unwrap_or_else(|| (0, Some(lacks(c, rule, text::pattern(rule, p, WHOLE), class, &made(c, class)))))
}

/// What makes a tensor, in words.
fn made(c: &Context<'_>, class: Id) -> String {
    if let Some(id) = c.chosen(class) {
        let n = c.graph.node(id);
        let from = n.inputs.first().map(|i| c.graph.node(*i));
        return match (&n.op, from) {
            (Op::Boundary { .. }, Some(f)) => {
                format!("comes from stage {}, as {}", f.stage.unwrap_or(0), value_name(&f.name))
            }
            (op, None) => format!("is the {} {}", op.name(), value_name(&n.name)),
            (op, Some(_)) => {
                let names: Vec<String> = n.inputs.iter().map(|i| value_name(&c.graph.node(*i).name)).collect();
                format!("is made by {}({})", op.name(), names.join(", "))
            }
        };
    }
    let mut ops: Vec<&str> = c.program.eg[c.program.eg.find(class)].nodes.iter().map(|n| n.op.name()).collect();
    ops.sort_unstable();
    ops.dedup();
    format!("is made by {}", ops.join(" or "))
}

fn lacks(c: &Context<'_>, rule: &Rule, what: String, class: Id, instead: &str) -> Unmet {
    let tensor = c.names.class(class);
    Unmet { reason: format!("`{}` wants {what} where {tensor} {instead}", rule.name), what, tensor }
}

/// An attribute of a term that is not the one that a pattern wants.
fn attribute(c: &Context<'_>, rule: &Rule, o: &OpPattern, n: &ENode, class: Id) -> Option<Unmet> {
    let Head::Op(kind) = &o.head else { return None };
    let differs = |(want, have): (&AttrPattern, &Attr)| matches!(want, AttrPattern::Is(a) if a != have);
    let attrs = n.op.attrs();
    let at = o.attrs.iter().zip(&attrs).position(differs)?;
    let AttrPattern::Is(want) = &o.attrs[at] else { return None };
    // The pattern leaves out what has its default.
    let what = format!("{} = {want} of {}", kind.0.attrs[at].name, kind.0.name);
    let instead = format!("has {} = {}", kind.0.attrs[at].name, attrs[at]);
    Some(lacks(c, rule, what, class, &instead))
}

/// Follows a pattern down from a class that its root fits; then guards and right side.
fn from_root(c: &Context<'_>, rule: &Rule, root: Id, through: bool, site: Id) -> (Score, Unmet) {
    let eg = &c.program.eg;
    let (met, unmet) = down(c, rule, &rule.pattern, root);
    if let Some(u) = unmet {
        return (score(rule, met, 0), u);
    }
    let mut found = vec![];
    matches(eg, &rule.pattern, rule.vars.len(), root, &mut found);
    let any = !found.is_empty();
    let here = |m: &Match| !through || m.covers.iter().any(|k| eg.find(*k) == eg.find(site));
    let mut best: Option<(usize, Unmet)> = None;
    for mut m in found.into_iter().filter(here) {
        let (held, unmet) = guards(c, rule, &mut m.binds, root);
        if best.as_ref().is_none_or(|(b, _)| held > *b) {
            best = Some((held, unmet));
        }
    }
    match best {
        Some((held, unmet)) => (score(rule, met, held), unmet),
        None => {
            let at = c.names.class(root);
            let what = text::pattern(rule, &rule.pattern, WHOLE);
            let why = if any {
                format!("matches at {at} without {}", c.names.class(site))
            } else {
                format!("wants {what} at {at}, where a variable that occurs twice would stand for two things")
            };
            (score(rule, met, 0), Unmet { what, tensor: at, reason: format!("`{}` {why}", rule.name) })
        }
    }
}

/// How many guards hold, and the first that does not; then the right side, then the choice.
fn guards(c: &Context<'_>, rule: &Rule, binds: &mut Binds<Id>, root: Id) -> (usize, Unmet) {
    let eg = &c.program.eg;
    for (i, g) in rule.guards.iter().enumerate() {
        if holds(eg, g, binds, c.mapping) {
            continue;
        }
        let what = c.rules.excerpt(rule, &g.span);
        let (verb, e) = match &g.kind {
            GuardKind::Holds(e) => ("does not hold", e),
            GuardKind::Let(_, e) => ("has no value", e),
        };
        let mut vars = vec![];
        variables(e, &mut vars);
        let mut named = vec![];
        functions(e, &mut named);
        let values: Vec<String> = vars.iter().filter_map(|v| value(c, rule, binds, *v, &named)).collect();
        let classes = vars.iter().filter_map(|v| match &binds[*v] {
            Some(Bind::Class(id)) => Some(*id),
            _ => None,
        });
        // Of several tensors, the one that is unlike the result.
        let unlike = |id: &Id| eg[*id].data.types != eg[root].data.types;
        let tensor = classes.clone().find(unlike).or(classes.clone().next()).unwrap_or(root);
        let with = if values.is_empty() { String::new() } else { format!(": {}", values.join(", ")) };
        let reason = format!("guard {what} of `{}` {verb}{with}", rule.name);
        return (i, Unmet { what, tensor: c.names.class(tensor), reason });
    }
    let held = rule.guards.len();
    if let Err(why) = right(c, rule, binds) {
        let reason = format!("the right side of `{}` has no type: {why}", rule.name);
        return (held, Unmet { what: "the right side".to_owned(), tensor: c.names.class(root), reason });
    }
    let (tensor, but) = chosen_instead(c, rule, binds, root);
    let reason = format!("`{}` applies, but {but}", rule.name);
    (held + 1, Unmet { what: String::new(), tensor, reason })
}

/// What the program does instead of a rule that applies, and the tensor that tells.
fn chosen_instead(c: &Context<'_>, rule: &Rule, binds: &Binds<Id>, root: Id) -> (String, String) {
    let targets = rule.yields.iter().filter_map(|(t, _)| match t {
        Target::Root => Some(root),
        Target::Var(v) => match &binds[*v] {
            Some(Bind::Class(id)) => Some(*id),
            _ => None,
        },
    });
    for class in targets {
        let Some(n) = c.chosen(class).map(|id| c.graph.node(id)) else { continue };
        let tensor = c.names.class(class);
        if let (Op::Get { .. }, Some(f)) = (&n.op, n.inputs.first().map(|i| c.graph.node(*i))) {
            let first = f.inputs.first().map_or_else(String::new, |i| value_name(&c.graph.node(*i).name));
            let but = format!("{tensor} is made by {}({first}, ..) instead", f.op.name());
            return (tensor, but);
        }
        if n.op.info().class == Class::Fused {
            let but = format!("{tensor} is made by {} instead", n.op.name());
            return (tensor, but);
        }
    }
    let tensor = c.names.class(root);
    let but = match c.chosen(root) {
        None => format!("the program that is estimated to cost least does not compute {tensor}"),
        Some(_) => "a program without it is estimated to cost less".to_owned(),
    };
    (tensor, but)
}

fn variables(e: &Expr, out: &mut Vec<VarId>) {
    match e {
        Expr::Lit(_) => {}
        Expr::Var(v) if !out.contains(v) => out.push(*v),
        Expr::Var(_) => {}
        Expr::Call(_, args, _) => args.iter().for_each(|a| variables(a, out)),
    }
}

/// Names of the functions of an expression.
fn functions(e: &Expr, out: &mut Vec<&'static str>) {
    if let Expr::Call(f, args, _) = e {
        out.push(f.name);
        args.iter().for_each(|a| functions(a, out));
    }
}

/// What a variable of a guard stood for, with the facts that the guard reads.
fn value(c: &Context<'_>, rule: &Rule, binds: &Binds<Id>, v: VarId, functions: &[&str]) -> Option<String> {
    let name = &rule.vars[v];
    Some(match binds[v].as_ref()? {
        Bind::Class(id) => format!("?{name} = {}", c.names.tensor(*id, functions)),
        Bind::Classes(ids) => {
            let all: Vec<String> = ids.iter().map(|i| c.names.tensor(*i, &[])).collect();
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
            let value = Literal::scalar(eg[*like].data.ty().dtype, 0.0);
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
