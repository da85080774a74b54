//! Verification of rules: both sides are evaluated on random instances, on simulated ranks.
//!
//! An instance takes every variable of the rule as a random tensor: equal on all ranks or different,
//! of any element type, with odd, prime and divisible extents. Both sides must have equal types and
//! belong to the same stage, and on each rank they must agree: exactly, up to the rounding of f64; with
//! casts that round, where the right side may lose no more than the left; and with each result rounded to
//! its element type wherever the left side is accurate there. Quantised results may be neighbours everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::eval::{Array, Evaluator, PerRank, Reason, Rounding};
use super::generate::{Instance, Miss, Trial, attempt};
use super::hints::hints;
use super::random::Random;
use super::shapes::LEVELS;
use crate::ir::{Bindings, DType, Dim, NodeId, Op, TensorType};
use crate::rules::Rule;
use crate::rules::eval::Bind;
use crate::rules::lang::{Guard, GuardKind, Head, Pattern, Purpose};
use sinter_runtime::compare::{Tolerance, unravel};

/// How thoroughly to verify.
#[derive(Clone, Copy, Debug)]
pub struct VerifyConfig {
    /// Instances that must agree.
    pub instances: usize,
    /// Most attempts at instances.
    pub attempts: usize,
    /// Seed of all random choices.
    pub seed: u64,
}

impl VerifyConfig {
    /// What the command line uses unless told otherwise.
    pub fn standard() -> VerifyConfig {
        VerifyConfig { instances: 200, attempts: 60_000, seed: 1 }
    }
}

/// What verification found out about a rule.
#[derive(Debug)]
pub enum Verdict {
    /// All instances agree.
    Holds {
        /// How many there were.
        instances: usize,
    },
    /// The smallest instance found on which the sides differ.
    Wrong(Box<CounterExample>),
    /// No instance was found, or too few: the rule was not tested.
    Untested {
        /// Instances that agree.
        instances: usize,
        /// Attempts that were made.
        attempts: usize,
        /// The guard, by number, or what else prevented most of the others.
        obstacle: Obstacle,
    },
}

/// What prevented instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The left side never had a type.
    Types,
    /// This guard did not hold.
    Guard(usize),
    /// The right side had no type.
    Right(String),
    /// The left side gave no finite number.
    Values,
}

/// An instance on which a rule is wrong.
#[derive(Debug)]
pub struct CounterExample {
    /// The program.
    pub instance: Instance,
    /// By node, by result, by rank, where it could be evaluated.
    pub values: Vec<Vec<PerRank>>,
    /// What is wrong.
    pub finding: Finding,
}

/// How the two sides of an equation differ.
#[derive(Clone, Debug)]
pub enum Finding {
    /// In element type or shape.
    Types {
        /// Types of the left side.
        left: String,
        /// Types of the right side.
        right: String,
    },
    /// In the pipeline stage that holds the value.
    Stages {
        /// Stage of the left side.
        left: i64,
        /// Stage of the right side.
        right: i64,
    },
    /// In an element.
    Values {
        /// Which equation of the rule.
        pair: usize,
        /// The tp rank.
        rank: usize,
        /// Index of the element.
        index: Vec<usize>,
        /// Its value on the left side.
        left: f64,
        /// Its value on the right side.
        right: f64,
        /// Whether results were rounded to their element types.
        rounded: bool,
    },
    /// The right side cannot be evaluated where the left side can.
    Fails(String),
}

/// Mesh sizes in turn. On one rank sharding rules are to be inert or true as well.
const MESHES: [usize; 8] = [2, 3, 2, 4, 2, 3, 4, 1];
/// Attempts at a smaller counter-example, once there is one.
const SHRINK: usize = 1500;
/// Searches for a counter-example to a rule without one of its guards.
const MUTATION_SEEDS: u64 = 60;
/// How far below the largest number the left side stays where an overflow of the right side counts.
const HEADROOM: f64 = 64.0;
/// How much more casts of the right side may lose than those of the left: their order may differ.
const CASTS: f64 = 4.0;
/// Attempts at instances with tensors without elements.
const EMPTY_ATTEMPTS: usize = 2000;
/// Attempts for each instance that is wanted, at least.
const ATTEMPTS: usize = 300;
/// Relative to the largest result, where the right side overflows: far beyond any rounding.
const OVERFLOW: f64 = 0.3;
/// Relative to the largest number that occurs; f64 has 2e-16.
const EXACT: f64 = 1e-10;

/// Verifies a rule. Guards of `:when` are left out, for they must not be needed; `without` leaves out a
/// further one, by number.
pub fn verify(rule: &Rule, without: Option<usize>, config: VerifyConfig) -> Verdict {
    let verdict = search(rule, without, config, false);
    let Verdict::Holds { .. } = verdict else { return verdict };
    // Tensors without elements agree in most rules, and say little of others: some instances beside those that count.
    let few = VerifyConfig { instances: config.instances / 10, attempts: EMPTY_ATTEMPTS, ..config };
    match search(rule, without, few, true) {
        Verdict::Wrong(c) => Verdict::Wrong(c),
        _ => verdict,
    }
}

/// Judges instances; `empty`: with tensors without elements.
fn search(rule: &Rule, without: Option<usize>, config: VerifyConfig, empty: bool) -> Verdict {
    let hints = hints(rule, without);
    let mut random = Random::new(config.seed);
    let turns = if has_class(&rule.pattern) { TURNS } else { 1 };
    let wanted = config.instances * turns.min(4);
    let (mut instances, mut by_mesh) = (0, [0usize; 5]);
    let mut misses = BTreeMap::new();
    let mut worst: Option<(usize, CounterExample)> = None;
    let mut left = if empty { config.attempts } else { config.attempts.max(ATTEMPTS * config.instances) };
    let mut tried = 0;
    while left > 0 {
        left -= 1;
        tried += 1;
        let level = match &worst {
            Some(_) => 0,
            None if tried % 4 == 0 => random.below(LEVELS),
            None => (tried * LEVELS / 600).min(LEVELS - 1),
        };
        let tp = match &worst {
            Some(_) if tried % 3 != 0 => 2,
            _ => MESHES[tried % MESHES.len()],
        };
        let trial = Trial { tp, level, turn: tried / MESHES.len(), without, empty };
        let instance = match attempt(rule, &hints, trial, &mut random) {
            Ok(i) => i,
            Err(m) => {
                *misses.entry(m).or_insert(0usize) += 1;
                continue;
            }
        };
        match judge(instance, &mut random) {
            Judgement::Agrees => {
                instances += 1;
                by_mesh[tp.min(4)] += 1;
            }
            Judgement::Useless => {}
            Judgement::Wrong(c) => {
                let size = size(&c);
                if worst.is_none() {
                    left = left.min(SHRINK);
                }
                if worst.as_ref().is_none_or(|(s, _)| size < *s) {
                    worst = Some((size, *c));
                }
            }
        }
        let spread = (2..=4).all(|m| by_mesh[m] * 8 >= wanted) && tried >= 40 * turns;
        if worst.is_none() && instances >= wanted && spread {
            return Verdict::Holds { instances };
        }
    }
    if let Some((_, c)) = worst {
        return Verdict::Wrong(Box::new(c));
    }
    if instances * 4 >= config.instances {
        return Verdict::Holds { instances };
    }
    // What comes last in the life of an attempt says most about it.
    let obstacle = match misses.iter().max_by_key(|(m, n)| (rank(m), **n)) {
        Some((Miss::Right(why), _)) => Obstacle::Right(why.clone()),
        Some((Miss::Guard(i), _)) => Obstacle::Guard(*i),
        _ if instances > 0 => Obstacle::Values,
        _ => Obstacle::Types,
    };
    Verdict::Untested { instances, attempts: tried, obstacle }
}

/// Operators that take turns for a class; at least the number of binary ones.
const TURNS: usize = 24;

fn rank(m: &Miss) -> usize {
    match m {
        Miss::Untyped => 0,
        Miss::Guard(i) => 1 + i,
        Miss::Right(_) => usize::MAX,
    }
}

fn has_class(p: &Pattern) -> bool {
    match p {
        Pattern::Op(o) => matches!(o.head, Head::Class(..)) || o.args.iter().any(has_class),
        _ => false,
    }
}

enum Judgement {
    Agrees,
    /// Nothing can be learned from it.
    Useless,
    Wrong(Box<CounterExample>),
}

/// Whether types are the same for some values of the symbols.
fn same_at(a: &[TensorType], b: &[TensorType], bindings: &Bindings) -> bool {
    let same = |x: &Dim, y: &Dim| matches!((x.eval(bindings), y.eval(bindings)), (Ok(x), Ok(y)) if x == y);
    a.len() == b.len()
        && a.iter().zip(b).all(|(x, y)| {
            x.dtype == y.dtype && x.rank() == y.rank() && x.shape.iter().zip(&y.shape).all(|(x, y)| same(x, y))
        })
}

fn judge(instance: Instance, random: &mut Random) -> Judgement {
    let finding = |instance, values, finding| Judgement::Wrong(Box::new(CounterExample { instance, values, finding }));
    let text = |ts: &[TensorType]| ts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let leaves = data(&instance, random);
    let facts = |n: NodeId| &instance.facts[n.index()];
    let types = instance.pairs.iter().find(|(l, r)| facts(*l).types != facts(*r).types);
    let stages = instance.pairs.iter().find_map(|(l, r)| match (facts(*l).stage, facts(*r).stage) {
        (Some(a), Some(b)) if a != b => Some((a, b)),
        _ => None,
    });
    let run = |rounding| {
        let mut e = Evaluator::new(&instance.graph, instance.mapping.tp, &instance.bindings, rounding);
        leaves.iter().for_each(|(n, a)| e.set(*n, a.clone()));
        if rounding != Rounding::Storage {
            let floats = instance.exact.iter().filter(|(n, _)| instance.graph.node(*n).ty().dtype.is_float());
            floats.for_each(|(n, x)| {
                let shape: Vec<usize> =
                    instance.graph.node(*n).ty().shape.iter().map(|d| d.as_const().unwrap_or(1) as usize).collect();
                let len = shape.iter().product();
                e.set(*n, Array { shape, data: vec![*x; len] });
            });
        }
        e.run()
    };
    // Symbolic extents may meet in the left side where only some of their values fit, as in `[2]` against `[n]`: the types have to be the
    // same for those.
    if let Some((l, r)) = types.filter(|(l, r)| !same_at(&facts(*l).types, &facts(*r).types, &instance.bindings)) {
        if run(Rounding::Exact).is_err_and(|e| e.id.is_none_or(|n| n.index() < instance.n_left)) {
            return Judgement::Useless;
        }
        let found = Finding::Types { left: text(&facts(*l).types), right: text(&facts(*r).types) };
        return finding(instance, vec![], found);
    }
    let exact = match run(Rounding::Exact) {
        Ok(v) => v,
        // A left side that cannot be evaluated says nothing about the right one.
        Err(e) if e.id.is_none_or(|n| n.index() < instance.n_left) => return Judgement::Useless,
        Err(e) if matches!(e.reason, Reason::TooLarge(..) | Reason::Inexact | Reason::Unsupported(..)) => {
            return Judgement::Useless;
        }
        Err(e) => {
            let found = Finding::Fails(e.to_string());
            return finding(instance, vec![], found);
        }
    };
    if let Some((left, right)) = stages {
        return finding(instance, exact, Finding::Stages { left, right });
    }
    let all = || exact.iter().flatten().flatten().flat_map(|a| &a.data);
    let scale = all().map(|x| x.abs()).filter(|x| x.is_finite()).fold(0.0, f64::max);
    let mut finite = false;
    for (pair, &(l, r)) in instance.pairs.iter().enumerate() {
        for (rank, (a, b)) in exact[l.index()].iter().flatten().zip(exact[r.index()].iter().flatten()).enumerate() {
            finite |= a.data.iter().any(|x| x.is_finite());
            if let Some(i) = differs(&a.data, &b.data, EXACT * scale, step(&instance, l)) {
                let rank = rank % instance.mapping.tp;
                let (left, right) = (a.data[i], b.data[i]);
                let index = unravel(i, &a.shape);
                let found = Finding::Values { pair, rank, index, left, right, rounded: false };
                return finding(instance, exact, found);
            }
        }
    }
    if !finite && !instance.pairs.is_empty() {
        return Judgement::Useless;
    }
    if let Ok(cast) = run(Rounding::Casts)
        && let Some(found) = casts_lose(&instance, &exact, &cast, scale)
    {
        return finding(instance, cast, found);
    }
    if let Ok(rounded) = run(Rounding::Storage)
        && let Some(found) = less_accurate(&instance, &exact, &rounded)
    {
        return finding(instance, rounded, found);
    }
    Judgement::Agrees
}

/// How far neighbours of a quantised type lie apart; 0 for other types.
fn step(instance: &Instance, n: NodeId) -> Tolerance {
    let dtype = instance.graph.node(n).types.first().map(|t| t.dtype);
    dtype.filter(|d| d.is_quantised()).map_or(Tolerance::EXACT, Tolerance::of)
}

/// The equations between tensors of numbers that are rounded, with their numbers.
fn float_pairs(instance: &Instance) -> impl Iterator<Item = (usize, NodeId, NodeId)> {
    let rounds = |d: DType| d.is_float() || d.is_quantised();
    let is_float = move |n: NodeId| instance.graph.node(n).types.first().is_some_and(|t| rounds(t.dtype));
    instance.pairs.iter().enumerate().filter(move |(_, (l, _))| is_float(*l)).map(|(i, (l, r))| (i, *l, *r))
}

/// The results of a node, each on all ranks.
fn arrays(values: &[Vec<PerRank>], n: NodeId) -> Vec<&Array> {
    values[n.index()].iter().flatten().map(|a| &**a).collect()
}

/// An element that casts of the right side lose, beyond what casts of the left side lose.
fn casts_lose(instance: &Instance, exact: &[Vec<PerRank>], cast: &[Vec<PerRank>], scale: f64) -> Option<Finding> {
    for (pair, l, r) in float_pairs(instance) {
        let (want, left, right) = (arrays(exact, l), arrays(cast, l), arrays(cast, r));
        let lost = |a: &Array, b: &Array| {
            let pairs = a.data.iter().zip(&b.data).map(|(x, y)| (x - y).abs());
            pairs.filter(|d| !d.is_nan()).fold(0.0, f64::max)
        };
        let own = want.iter().zip(&left).map(|(w, a)| lost(w, a)).fold(0.0, f64::max);
        let allowed = CASTS * own + EXACT * scale;
        for (rank, (w, b)) in want.iter().zip(&right).enumerate() {
            if let Some(i) = differs(&w.data, &b.data, allowed, step(instance, l)) {
                let (left, right) = (left[rank].data[i], b.data[i]);
                let rank = rank % instance.mapping.tp;
                return Some(Finding::Values { pair, rank, index: unravel(i, &w.shape), left, right, rounded: true });
            }
        }
    }
    None
}

/// An element that the right side gets wrong when results are rounded, and the left side does not.
fn less_accurate(instance: &Instance, exact: &[Vec<PerRank>], rounded: &[Vec<PerRank>]) -> Option<Finding> {
    let (left_nodes, right_nodes) = (0..instance.n_left, instance.n_left..exact.len());
    let numbers = |nodes: Range<usize>| exact[nodes].iter().flatten().flatten().flat_map(|a| a.data.iter().copied());
    let scale = numbers(left_nodes.clone()).map(f64::abs).filter(|x| x.is_finite()).fold(0.0, f64::max);
    // Numbers that their element type cannot hold, on the right side alone, and with the left side far from it:
    // else another order of products would do.
    let overflows = |nodes: Range<usize>, headroom: f64| {
        nodes.into_iter().any(|n| {
            let node = instance.graph.node(NodeId(n as u32));
            let room = node.types.iter().all(|t| headroom * HEADROOM <= largest(t.dtype));
            let pairs = exact[n].iter().flatten().zip(rounded[n].iter().flatten());
            let mut numbers = pairs.flat_map(|(e, r)| e.data.iter().zip(&r.data));
            room && numbers.any(|(e, r)| e.is_finite() && !r.is_finite())
        })
    };
    let overflow = overflows(right_nodes, scale) && !overflows(left_nodes, 0.0);
    // The coarsest element type on the left decides what accurate means.
    let dtypes = instance.graph.nodes().take(instance.n_left).flat_map(|(_, n)| n.types.iter().map(|t| t.dtype));
    let tolerances = dtypes.filter(|d| d.is_float()).map(Tolerance::of);
    let allowed = tolerances.map(|t| t.abs.max(t.rel)).fold(1e-6, f64::max) * scale;
    for (pair, l, r) in float_pairs(instance) {
        let (want, left, right) = (arrays(exact, l), arrays(rounded, l), arrays(rounded, r));
        for (rank, ((want, left), right)) in want.iter().zip(&left).zip(&right).enumerate() {
            if differs(&want.data, &left.data, allowed / 4.0, step(instance, l)).is_some() {
                continue;
            }
            let largest = want.data.iter().map(|x| x.abs()).fold(0.0, f64::max);
            let allowed = if overflow { allowed.min(OVERFLOW * largest) } else { allowed };
            // Without headroom on the left side an overflow on the right says nothing.
            if !overflow && want.data.iter().zip(&right.data).any(|(w, r)| w.is_finite() && !r.is_finite()) {
                continue;
            }
            if let Some(i) = differs(&want.data, &right.data, allowed, step(instance, l)) {
                return Some(Finding::Values {
                    pair,
                    rank: rank % instance.mapping.tp,
                    index: unravel(i, &want.shape),
                    left: left.data[i],
                    right: right.data[i],
                    rounded: true,
                });
            }
        }
    }
    None
}

/// The largest finite number of an element type.
fn largest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f64::from(half::f16::MAX),
        DType::BF16 => f64::from(half::bf16::MAX),
        DType::F32 => f64::from(f32::MAX),
        _ => f64::MAX,
    }
}

/// The first element that differs by more than is allowed, and than a step. NaN equals NaN, an infinity any.
fn differs(a: &[f64], b: &[f64], allowed: f64, step: Tolerance) -> Option<usize> {
    if a.len() != b.len() {
        return Some(0);
    }
    a.iter().zip(b).position(|(x, y)| {
        let allowed = allowed.max(step.abs.max(step.rel * x.abs().max(y.abs())));
        // At a pole the sign of zero decides about that of infinity, and rewriting does not keep the former.
        let equal =
            x == y || x.is_nan() && y.is_nan() || x.is_infinite() && y.is_infinite() || (x - y).abs() <= allowed;
        !equal
    })
}

/// Numbers for the leaves that their element types hold exactly: quarters, which are easy to read, or as
/// fine as the type allows, so that rounding to a coarser type shows.
fn data(instance: &Instance, random: &mut Random) -> Vec<(NodeId, Array)> {
    let mut out = vec![];
    let positive = random.chance(35);
    let fine = random.chance(60);
    for (id, n) in instance.graph.nodes() {
        if !matches!(n.op, Op::Input { .. } | Op::Weight { .. }) {
            continue;
        }
        let t = n.ty();
        let shape: Vec<usize> = t
            .shape
            .iter()
            .map(|d| d.eval(&instance.bindings).ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0))
            .collect();
        let len = shape.iter().product();
        let kind = random.below(10);
        let power = random.below(17) as i32 - 8;
        let bits = match t.dtype {
            _ if !fine => 2,
            DType::BF16 => 6,
            DType::F16 => 9,
            _ => 18,
        };
        let mut number = || match t.dtype {
            DType::Bool => random.below(2) as f64,
            d if !d.is_float() => random.below(4) as f64 - 1.0,
            _ => {
                let x = random.below(4 << bits) as f64 / f64::from(1 << bits) - 2.0;
                match kind {
                    // Zero is no positive number.
                    _ if positive && x == 0.0 => 1.0,
                    _ if positive => x.abs() * if kind == 0 { 2f64.powi(power) } else { 1.0 },
                    0 => x * 2f64.powi(power),
                    // Without a negative zero.
                    1 => x.round() + 0.0,
                    _ => x,
                }
            }
        };
        out.push((id, Array { shape, data: (0..len).map(|_| number()).collect() }));
    }
    out
}

/// How much there is to read in a counter-example.
fn size(c: &CounterExample) -> usize {
    let i = &c.instance;
    let leaves = i.graph.nodes().filter(|(_, n)| matches!(n.op, Op::Input { .. } | Op::Weight { .. }));
    let elements: i64 = leaves.filter_map(|(_, n)| n.ty().elements().eval(&i.bindings).ok()).sum();
    let symbols = if i.bindings.is_empty() { 0 } else { 8 };
    let digits =
        c.values.iter().flatten().flatten().flat_map(|a| &a.data).filter(|x| (**x * 4.0).fract() != 0.0).count();
    // The same tensor for two variables hides which of them matters.
    let tensors = || i.binds.iter().filter_map(|b| if let Some(Bind::Class(n)) = b { Some(*n) } else { None });
    let twins = tensors().count() - tensors().collect::<BTreeSet<_>>().len();
    let elements = usize::try_from(elements).unwrap_or(usize::MAX / 8);
    4 * elements + 4 * i.graph.len() + 4 * i.mapping.tp + symbols + digits + 16 * twins
}

/// The guards of `:if` with what verification finds when each of them is left out: a counter-example, where
/// the guard is needed.
pub fn mutations(rule: &Rule, config: VerifyConfig) -> Vec<(usize, Verdict)> {
    let needed = |g: &Guard| g.purpose == Purpose::Equality && matches!(g.kind, GuardKind::Holds(_));
    let guards = rule.guards.iter().enumerate().filter(|(_, g)| needed(g));
    let without = |(i, _): (usize, &Guard)| {
        let mut verdict = verify(rule, Some(i), config);
        for seed in 1..MUTATION_SEEDS {
            if matches!(verdict, Verdict::Wrong(_)) {
                break;
            }
            verdict = verify(rule, Some(i), VerifyConfig { seed: config.seed + seed, ..config });
        }
        (i, verdict)
    };
    guards.map(without).collect()
}
