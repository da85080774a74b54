//! A lower bound on the cost of any program of the e-graph.
//!
//! Every class shares its cost among the classes that could need it: in any program, a class that is
//! needed pays at least a 1/p part of each operand's cost, where p is the number of its possible users.
//! Summed over the roots this bounds the cost from below. The sum is exact on trees and weak on deep
//! shared chains, so classes that every program must contain (dominators in the and-or graph of classes
//! and terms) are paid in full and count as free below.

use super::space::{ClassId, Space};

pub(super) fn lower_bound(space: &Space) -> u64 {
    let anchors = anchors(space);
    let n = space.len();
    let users: Vec<f64> = (0..n)
        .map(|c| {
            let mut above: Vec<ClassId> = space.users[c].iter().map(|u| u.0).collect();
            above.sort_unstable();
            above.dedup();
            (above.len() as f64).max(1.0)
        })
        .collect();
    // Fixed point from below: each round only raises the values.
    let mut share = vec![0f64; n];
    let own = |share: &[f64], c: usize| {
        space.terms[c]
            .iter()
            .map(|t| t.cost as f64 + t.needs.iter().map(|&k| share[k as usize]).sum::<f64>())
            .fold(f64::INFINITY, f64::min)
    };
    for _ in 0..BOUND_ROUNDS {
        let mut change = 0f64;
        for c in 0..n {
            let value = if anchors[c] { 0.0 } else { own(&share, c) / users[c] };
            if value.is_finite() && value > share[c] {
                change = change.max(value - share[c]);
                share[c] = value;
            }
        }
        if change < 0.5 {
            break;
        }
    }
    let total: f64 = (0..n).filter(|&c| anchors[c]).map(|c| own(&share, c)).filter(|v| v.is_finite()).sum();
    total as u64
}

/// Rounds of the fixed point; a bound that is stopped early is lower, never wrong.
const BOUND_ROUNDS: usize = 24;

/// Rounds of the search for dominators; without a fixed point by then, only the roots are anchors.
const ANCHOR_ROUNDS: usize = 32;

/// No dominator is known yet.
const UNKNOWN: ClassId = ClassId::MAX;
/// The common end of all chains.
const TOP: ClassId = ClassId::MAX - 1;

/// Classes that every program contains.
///
/// A class must contain whatever all its terms must contain, and a term whatever any of its operands
/// must. Each class keeps the nearest class of that kind as its parent, so that its chain of parents lies
/// in every program that contains it; of a term's operands only the one with the longest chain is kept.
/// At a fixed point this holds by induction over the height of a derivation.
fn anchors(space: &Space) -> Vec<bool> {
    let n = space.len();
    let order = derivation_order(space);
    let mut parent = vec![UNKNOWN; n];
    let mut depth = vec![0u32; n];
    let mut stable = false;
    for _ in 0..ANCHOR_ROUNDS {
        stable = true;
        for &c in &order {
            let mut nearest = UNKNOWN;
            for t in &space.terms[c as usize] {
                if t.needs.iter().any(|&k| parent[k as usize] == UNKNOWN) {
                    continue;
                }
                let deepest = t.needs.iter().copied().max_by_key(|&k| (depth[k as usize], k)).unwrap_or(TOP);
                nearest = if nearest == UNKNOWN { deepest } else { meet(nearest, deepest, &parent, &depth) };
            }
            if nearest == UNKNOWN {
                continue;
            }
            let d = if nearest == TOP { 1 } else { depth[nearest as usize] + 1 };
            if (parent[c as usize], depth[c as usize]) != (nearest, d) {
                (parent[c as usize], depth[c as usize]) = (nearest, d);
                stable = false;
            }
        }
        if stable {
            break;
        }
    }
    let mut out = vec![false; n];
    for &r in &space.roots {
        out[r as usize] = true;
        let mut c = parent[r as usize];
        while stable && c < TOP && !std::mem::replace(&mut out[c as usize], true) {
            c = parent[c as usize];
        }
    }
    out
}

fn meet(mut a: ClassId, mut b: ClassId, parent: &[ClassId], depth: &[u32]) -> ClassId {
    let level = |c: ClassId| if c == TOP { 0 } else { depth[c as usize] };
    // Before the fixed point, chains may be inconsistent for a round; giving up is the safe answer.
    for _ in 0..2 * parent.len() {
        if a == b {
            return a;
        }
        if level(a) >= level(b) {
            a = parent.get(a as usize).copied().unwrap_or(TOP);
        } else {
            b = parent.get(b as usize).copied().unwrap_or(TOP);
        }
        if a == UNKNOWN || b == UNKNOWN {
            break;
        }
    }
    TOP
}

/// The classes in an order in which each has a term whose operands come earlier.
fn derivation_order(space: &Space) -> Vec<ClassId> {
    let mut missing: Vec<Vec<usize>> =
        space.terms.iter().map(|ts| ts.iter().map(|t| t.needs.len()).collect()).collect();
    let mut done = vec![false; space.len()];
    let mut queue: std::collections::VecDeque<ClassId> =
        (0..space.len() as ClassId).filter(|&c| missing[c as usize].contains(&0)).collect();
    queue.iter().for_each(|&c| done[c as usize] = true);
    let mut order = vec![];
    while let Some(c) = queue.pop_front() {
        order.push(c);
        for &(u, t) in &space.users[c as usize] {
            let m = &mut missing[u as usize][t as usize];
            *m -= 1;
            if *m == 0 && !std::mem::replace(&mut done[u as usize], true) {
                queue.push_back(u);
            }
        }
    }
    order
}
