//! The search and the bound on random spaces, against the optimum found by trying every selection.

use std::collections::HashMap;

use egg::Id;
use smallvec::SmallVec;

use super::bound::lower_bound;
use super::search::Selection;
use super::space::{ClassId, Space, Term};
use crate::ir::Op;
use crate::saturate::language::{ENode, OpRef};

/// A small generator of numbers below a limit (Numerical Recipes' linear congruence).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// Classes whose first terms form an acyclic program; the other terms may need anything.
fn random_space(r: &mut Random, n: usize) -> Space {
    let mut terms: Vec<Vec<Term>> = vec![];
    for c in 0..n {
        let mut list = vec![];
        for t in 0..1 + r.below(3) {
            let mut needs: SmallVec<[ClassId; 4]> = SmallVec::new();
            for _ in 0..r.below(4) {
                let k = if t == 0 { c + 1 + r.below(3) as usize } else { r.below(n as u64) as usize };
                if k < n && k != c {
                    needs.push(k as ClassId);
                }
            }
            needs.sort_unstable();
            needs.dedup();
            let node = ENode { op: OpRef::new(Op::Neg {}), children: SmallVec::new() };
            list.push(Term { node, cost: r.below(20), surplus: r.below(2), needs });
        }
        terms.push(list);
    }
    let mut users: Vec<Vec<(ClassId, u32)>> = vec![vec![]; n];
    for (c, list) in terms.iter().enumerate() {
        for (t, term) in list.iter().enumerate() {
            term.needs.iter().for_each(|&k| users[k as usize].push((c as ClassId, t as u32)));
        }
    }
    let ids: Vec<Id> = (0..n).map(Id::from).collect();
    let dense: HashMap<Id, ClassId> = ids.iter().enumerate().map(|(i, &id)| (id, i as ClassId)).collect();
    // Few distinct shapes, so that groups of several sites occur.
    let shape = (0..n).map(|_| r.below(3)).collect();
    Space { terms, ids, roots: vec![0], users, dense, shape }
}

/// Cost of what the root needs; `None` where that is a cycle.
fn cost(space: &Space, choice: &[u32]) -> Option<u64> {
    fn visit(space: &Space, choice: &[u32], c: ClassId, state: &mut [u8]) -> Option<u64> {
        match state[c as usize] {
            1 => return None,
            2 => return Some(0),
            _ => state[c as usize] = 1,
        }
        let t = space.term(c, choice[c as usize]);
        let mut sum = t.cost;
        for &n in &t.needs {
            sum += visit(space, choice, n, state)?;
        }
        state[c as usize] = 2;
        Some(sum)
    }
    visit(space, choice, space.roots[0], &mut vec![0; choice.len()])
}

fn optimum(space: &Space) -> u64 {
    let mut choice = vec![0u32; space.len()];
    let mut best = u64::MAX;
    loop {
        best = best.min(cost(space, &choice).unwrap_or(u64::MAX));
        let Some(next) = (0..choice.len()).find(|&c| (choice[c] as usize) + 1 < space.terms[c].len()) else {
            return best;
        };
        choice[..next].fill(0);
        choice[next] += 1;
    }
}

#[test]
fn search_and_bound_enclose_the_optimum() {
    let mut gap = 0;
    for seed in 0..400 {
        let mut r = Random(seed);
        let space = random_space(&mut r, 8);
        let given: Vec<Option<u32>> = vec![Some(0); space.len()];
        let mut s = Selection::new(&space, &given);
        let original = s.total;
        assert_eq!(Some(original), cost(&space, &vec![0; space.len()]), "seed {seed}");
        s.improve_classes();
        s.refresh();
        s.improve_tuples(|c| c % 3 == 0);
        s.improve_shared();
        s.improve_classes();
        let choice: Vec<u32> = s.term.iter().map(|t| t.unwrap_or(0)).collect();
        assert!(s.acyclic(), "seed {seed}");
        assert_eq!(Some(s.total), cost(&space, &choice), "seed {seed}: the incremental cost is exact");
        let best = optimum(&space);
        assert!(lower_bound(&space) <= best, "seed {seed}: bound {} above optimum {best}", lower_bound(&space));
        assert!(best <= s.total && s.total <= original, "seed {seed}");
        gap += usize::from(s.total > best);
    }
    assert_eq!(gap, 0, "not optimal on so many of 400 spaces");
}
