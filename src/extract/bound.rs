//! A lower bound on the cost of any program of the e-graph.
//!
//! Every class shares its cost among the classes that could need it: in any program, a class that is
//! needed pays at least a 1/p part of each operand's cost, where p is the number of its possible users.
//! Summed over the roots this bounds the cost from below. The sum is exact on trees and weak on deep
//! shared chains, so classes that every program must contain are paid in full and count as free below.

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

/// Classes that every program contains: the roots, and what all terms of such a class need.
fn anchors(space: &Space) -> Vec<bool> {
    let mut must = vec![false; space.len()];
    let mut work: Vec<ClassId> = space.roots.clone();
    while let Some(c) = work.pop() {
        if std::mem::replace(&mut must[c as usize], true) {
            continue;
        }
        let mut terms = space.terms[c as usize].iter();
        let Some(first) = terms.next() else { continue };
        let mut common = first.needs.to_vec();
        for t in terms {
            common.retain(|n| t.needs.contains(n));
        }
        work.extend(common);
    }
    must
}
