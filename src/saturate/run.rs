//! The runner: applies rules until nothing changes.
//!
//! Only classes below which something changed are searched again, so the work is linear in the size of
//! the graph. Limits are counts, never times, so that plans do not depend on the machine; a stop for any
//! other reason than saturation is part of the report.

use std::collections::{BTreeMap, HashMap};
use std::mem::Discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant};

use egg::Id;
use smallvec::SmallVec;

use super::analysis::{Graph, facts_of};
use super::ematch::{Match, depth, guards_hold, matches};
use super::language::{ENode, OpRef};
use crate::ir::{DType, Literal, Mapping, Op, TensorType, broadcasts_always};
use crate::rules::eval::{Bind, number, spliced, template_op};
use crate::rules::facts::Facts;
use crate::rules::lang::{Expr, Head, Pattern, Rule, Target, Template};
use crate::rules::vocab::is_close;

/// Limits of a saturation.
#[derive(Clone, Copy, Debug)]
pub struct SaturateConfig {
    /// Most rounds per phase.
    pub iter_limit: usize,
    /// Most e-nodes, as a multiple of the nodes at the start.
    pub node_factor: usize,
}

/// Rounds per phase. A chain of rules that follows a tensor through every layer takes a few rounds a layer.
const ITER_LIMIT: usize = 4096;
/// An 80-layer Llama grows about threefold at tp 2.
const NODE_FACTOR: usize = 60;

impl SaturateConfig {
    /// The limits in use unless the caller has reasons of its own.
    pub fn standard() -> SaturateConfig {
        SaturateConfig { iter_limit: ITER_LIMIT, node_factor: NODE_FACTOR }
    }
}

/// Why a saturation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// No rule changes anything any more.
    Saturated,
    /// The limit on rounds.
    IterationLimit(usize),
    /// The limit on e-nodes.
    NodeLimit(usize),
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StopReason::Saturated => f.write_str("saturated"),
            StopReason::IterationLimit(n) => write!(f, "iteration limit {n}"),
            StopReason::NodeLimit(n) => write!(f, "node limit {n}"),
        }
    }
}

/// What a rule did.
#[derive(Clone, Copy, Debug, Default)]
pub struct RuleStats {
    /// Places where its pattern and guards held.
    pub matches: usize,
    /// Times that it changed the e-graph.
    pub applied: usize,
    /// Time that matching and applying took. It decides nothing.
    pub time: Duration,
}

/// How a saturation went.
#[derive(Clone, Debug)]
pub struct SaturateStats {
    /// Why it ended.
    pub stop: StopReason,
    /// Rounds.
    pub iterations: usize,
    /// E-nodes at the end.
    pub e_nodes: usize,
    /// E-classes at the end.
    pub e_classes: usize,
    /// By rule name.
    pub rules: BTreeMap<String, RuleStats>,
}

/// One application of a rule: who made an e-node, and what was known then.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// Number of the application; what it took was made by ones with smaller numbers.
    pub id: u32,
    /// The rule.
    pub rule: Arc<Rule>,
    /// The classes that the operators of its pattern took, from the root down, first operands first.
    pub covers: SmallVec<[Id; 8]>,
    /// What the variables were bound to.
    pub binds: Vec<Option<Bind<Id>>>,
    /// By variable: the facts of the bound tensor when the guards were checked.
    pub facts: Vec<Option<Known>>,
}

/// Facts of a tensor that may become more as the e-graph grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Equal on all ranks of the tensor axis.
    pub replicated: bool,
    /// Computed from weights and constants alone.
    pub weight: bool,
    /// A weight, a constant or a graph input.
    pub leaf: bool,
    /// Computed from graph inputs, constants and vectors alone.
    pub free: bool,
}

impl Known {
    pub(super) fn of(f: &Facts) -> Known {
        Known { replicated: !f.varies_over_tp, weight: f.weight, leaf: f.leaf, free: f.free }
    }
}

/// A rule whose two sides cannot be equal.
#[derive(Debug, thiserror::Error)]
#[error(
    "rule `{rule}` ({place}) equates {left} with {right}\n  help: add a guard that excludes this case; two sides must have equal types"
)]
pub struct RuleConflict {
    /// Its name.
    pub rule: String,
    /// File and line.
    pub place: String,
    /// Type of the matched class.
    pub left: String,
    /// Type of the template.
    pub right: String,
}

/// Applies rules to an e-graph until nothing changes. `made` collects who made which e-node.
pub fn saturate(
    eg: &mut Graph,
    rules: &[&Rule],
    mapping: &Mapping,
    config: SaturateConfig,
    made: &mut Vec<(ENode, Arc<Provenance>)>,
) -> Result<SaturateStats, RuleConflict> {
    let shared: Vec<Arc<Rule>> = rules.iter().map(|r| Arc::new((*r).clone())).collect();
    let node_limit = config.node_factor * eg.total_size().max(100);
    let mut stats: Vec<RuleStats> = vec![RuleStats::default(); rules.len()];
    let depths: Vec<usize> = rules.iter().map(|r| depth(&r.pattern)).collect();
    let deepest = depths.iter().copied().max().unwrap_or(0);
    eg.rebuild();
    eg.analysis.changed.clear();
    let mut fresh: Option<Scope> = None;
    let mut iterations = 0;
    let stop = loop {
        if iterations == config.iter_limit {
            break StopReason::IterationLimit(iterations);
        }
        iterations += 1;
        let mut found: Vec<(usize, Vec<Match>)> = vec![];
        for (i, rule) in rules.iter().enumerate() {
            let mut ms = vec![];
            let start = Instant::now();
            search(eg, rule, depths[i], fresh.as_ref(), &mut ms);
            stats[i].time += start.elapsed();
            if !ms.is_empty() {
                found.push((i, ms));
            }
        }
        let mut changed = false;
        for (i, ms) in found {
            let start = Instant::now();
            for mut m in ms {
                if !guards_hold(eg, &rules[i].guards, &mut m, mapping) {
                    continue;
                }
                stats[i].matches += 1;
                if apply(eg, &shared[i], &mut m, mapping, made)? {
                    stats[i].applied += 1;
                    changed = true;
                }
            }
            stats[i].time += start.elapsed();
        }
        eg.rebuild();
        if !changed {
            break StopReason::Saturated;
        }
        if eg.total_size() > node_limit {
            break StopReason::NodeLimit(node_limit);
        }
        fresh = Some(affected(eg, deepest));
    };
    let named = rules.iter().zip(&stats).map(|(r, s)| (r.name.clone(), *s)).collect();
    let (e_nodes, e_classes) = (eg.total_size(), eg.number_of_classes());
    Ok(SaturateStats { stop, iterations, e_nodes, e_classes, rules: named })
}

/// The classes near what changed in the last round.
struct Scope {
    /// By class: how many steps it lies above what changed; `FAR` for all others.
    steps: Vec<u8>,
    /// The classes near what changed, in order.
    near: Vec<Id>,
    /// The same by operator, for those that have a term with it.
    by_op: HashMap<Discriminant<Op>, Vec<Id>>,
}

const FAR: u8 = u8::MAX;

/// Finds the classes within `deepest` steps above what changed.
fn affected(eg: &mut Graph, deepest: usize) -> Scope {
    let changed = std::mem::take(&mut eg.analysis.changed);
    let mut steps = vec![FAR; eg.nodes().len()];
    let mut near: Vec<Id> = vec![];
    let reach = |id: Id, step: u8, steps: &mut Vec<u8>, near: &mut Vec<Id>| {
        if steps[usize::from(id)] == FAR {
            steps[usize::from(id)] = step;
            near.push(id);
        }
    };
    for id in changed {
        reach(eg.find(id), 0, &mut steps, &mut near);
    }
    let mut from = 0;
    for step in 1..=deepest.min(usize::from(FAR) - 1) as u8 {
        let to = near.len();
        for i in from..to {
            for p in eg[near[i]].parents() {
                reach(eg.find(p), step, &mut steps, &mut near);
            }
        }
        from = to;
    }
    near.sort_unstable();
    let mut by_op: HashMap<Discriminant<Op>, Vec<Id>> = HashMap::new();
    for &id in &near {
        for node in &eg[id].nodes {
            let list = by_op.entry(std::mem::discriminant(&*node.op)).or_default();
            if list.last() != Some(&id) {
                list.push(id);
            }
        }
    }
    Scope { steps, near, by_op }
}

fn search(eg: &Graph, rule: &Rule, depth: usize, scope: Option<&Scope>, out: &mut Vec<Match>) {
    let Pattern::Op(root) = &rule.pattern else { return };
    let wanted = match &root.head {
        Head::Op(kind) => match discriminant(kind.0.name) {
            Some(d) => Some(d),
            None => return,
        },
        Head::Class(..) => None,
    };
    let mut all: Vec<Id> = vec![];
    let candidates: &[Id] = match (scope, wanted) {
        (Some(s), Some(d)) => s.by_op.get(&d).map_or(&[], Vec::as_slice),
        (Some(s), None) => &s.near,
        (None, wanted) => {
            match wanted {
                Some(d) => all.extend(eg.classes_for_op(&d).into_iter().flatten()),
                None => all.extend(eg.classes().map(|c| c.id)),
            }
            all.sort_unstable();
            &all
        }
    };
    // Variables lie one step below the operators, and guards read their facts.
    for &id in candidates {
        if scope.is_none_or(|s| usize::from(s.steps[usize::from(id)]) <= depth) {
            matches(eg, &rule.pattern, rule.vars.len(), id, out);
        }
    }
}

/// The discriminant of an operator by name, from any instance of it.
fn discriminant(name: &str) -> Option<Discriminant<Op>> {
    static TABLE: std::sync::LazyLock<BTreeMap<&'static str, Discriminant<Op>>> = std::sync::LazyLock::new(|| {
        crate::ir::op::instances().iter().map(|o| (o.name(), std::mem::discriminant(o))).collect()
    });
    TABLE.get(name).copied()
}

/// Adds the right side of a rule; whether anything changed.
fn apply(
    eg: &mut Graph,
    rule: &Arc<Rule>,
    m: &mut Match,
    mapping: &Mapping,
    made: &mut Vec<(ENode, Arc<Provenance>)>,
) -> Result<bool, RuleConflict> {
    let before = eg.nodes().len();
    let mut named: SmallVec<[usize; 4]> = SmallVec::new();
    let mut fresh: SmallVec<[ENode; 4]> = SmallVec::new();
    let mut unions: SmallVec<[(Id, Id); 4]> = SmallVec::new();
    let facts = |eg: &Graph, m: &Match| -> Vec<Option<Known>> {
        let known = |b: &Option<Bind<Id>>| match b {
            Some(Bind::Class(id)) => Some(Known::of(&eg[*id].data)),
            _ => None,
        };
        m.binds.iter().map(known).collect()
    };
    for (target, template) in &rule.yields {
        let Some(id) = instantiate(eg, template, m, mapping, &mut fresh) else { break };
        match target {
            Target::Root => unions.push((m.root, id)),
            Target::Var(v) => match &m.binds[*v] {
                Some(Bind::Class(c)) => unions.push((*c, id)),
                _ => {
                    m.binds[*v] = Some(Bind::Class(id));
                    named.push(*v);
                }
            },
        }
    }
    // What the right side names is no part of the match.
    named.into_iter().for_each(|v| m.binds[v] = None);
    if !fresh.is_empty() {
        let id = made.last().map_or(0, |(_, p)| p.id + 1);
        let (covers, binds) = (m.covers.clone(), m.binds.clone());
        let p = Arc::new(Provenance { id, rule: rule.clone(), covers, binds, facts: facts(eg, m) });
        made.extend(fresh.into_iter().map(|n| (n, p.clone())));
    }
    let mut changed = eg.nodes().len() > before;
    for (class, id) in unions {
        let (left, right) = (&eg[class].data, &eg[id].data);
        if left.types != right.types {
            let text = |f: &Facts| f.types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(RuleConflict {
                rule: rule.name.clone(),
                place: format!("{}:{}", rule.file, rule.line),
                left: text(left),
                right: text(right),
            });
        }
        changed |= eg.union(class, id);
    }
    Ok(changed)
}

/// Whether a number is computed by multiplication, so that it has a rounding error of its own.
fn is_product(e: &Expr) -> bool {
    matches!(e, Expr::Call(f, ..) if matches!(f.name, "*" | "/" | "root"))
}

/// A scalar constant that is there already and equal up to the rounding of its type. Factors that come and go
/// (x n, then x n / n) would else differ in their last digit each time, and never come to an end.
fn nearby(eg: &Graph, dtype: DType, value: f64) -> Option<Id> {
    let d = discriminant("const")?;
    let is = |id: Id| match &eg[id].data.constant {
        Some(c) if c.shape.is_empty() && c.dtype == dtype => c.splat().filter(|v| is_close(*v, value, dtype)),
        _ => None,
    };
    let found = eg.classes_for_op(&d)?.filter_map(|id| Some((id, is(id)?)));
    // The nearest, and of these the oldest.
    let key = |(id, v): &(Id, f64)| ((v - value).abs(), *id);
    found.map(|f| key(&f)).min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, id)| id)
}

fn instantiate(
    eg: &mut Graph,
    t: &Template,
    m: &Match,
    mapping: &Mapping,
    fresh: &mut SmallVec<[ENode; 4]>,
) -> Option<Id> {
    let (op, children) = match t {
        Template::Var(v) => {
            return match m.binds[*v].as_ref()? {
                Bind::Class(id) => Some(*id),
                _ => None,
            };
        }
        Template::Const { value: expr, like } => {
            let Some(Bind::Class(like)) = &m.binds[*like] else { return None };
            let dtype = eg[*like].data.ty().dtype;
            let value = number(eg, expr, &m.binds, mapping)?;
            if is_product(expr)
                && let Some(id) = nearby(eg, dtype, value)
            {
                return Some(id);
            }
            (OpRef::new(Op::Const { value: Literal::scalar(dtype, value) }), SmallVec::new())
        }
        Template::Op { head, args, rest } => {
            let mut children: SmallVec<[Id; 4]> = SmallVec::new();
            for a in args {
                let id = instantiate(eg, a, m, mapping, fresh)?;
                children.push(eg.find(id));
            }
            children.extend(spliced(rest, &m.binds)?.into_iter().map(|i| eg.find(i)));
            let facts: SmallVec<[&Facts; 4]> = children.iter().map(|&c| &eg[c].data).collect();
            let op = template_op(eg, head, &m.binds, mapping, &facts)?;
            (op, children)
        }
    };
    let node = ENode { op, children };
    if let Some(id) = eg.lookup(node.clone()) {
        return Some(id);
    }
    // The same term with its first two operands exchanged is no new one.
    if node.op.commutes() {
        let mut swapped = node.clone();
        swapped.children.swap(0, 1);
        if let Some(id) = eg.lookup(swapped) {
            return Some(id);
        }
    }
    // A term that has no type here, mixes stages, has no kernel for f64, or broadcasts for some values of the symbols only is none: the rule
    // does not apply.
    let facts: Vec<&Facts> = node.children.iter().map(|&c| &eg[c].data).collect();
    if node.op.computes_in_f32() && facts.iter().flat_map(|f| f.types.iter()).any(|t| t.dtype == DType::F64) {
        return None;
    }
    facts_of(&node.op, &facts).ok()?;
    let operands: Vec<&[TensorType]> = facts.iter().map(|f| &f.types[..]).collect();
    if !broadcasts_always(&node.op, &operands) {
        return None;
    }
    let id = eg.add(node.clone());
    fresh.push(node);
    Some(id)
}
