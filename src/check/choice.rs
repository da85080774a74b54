//! Other choices than the cheapest: programs that an e-graph says are equal, but that extraction leaves.
//!
//! The cost model takes few of the terms that rules make. All of them must compute the same, so checks
//! take a rule's own terms wherever there is a choice, the dearest ones, or any.

use super::random::Random;
use crate::cost::CostModel;
use crate::extract::{ClassId, ExtractError, Space, to_ir};
use crate::ir::{Class, Graph, NodeId, Op};
use crate::saturate::Program;
use crate::saturate::language::ENode;

/// Which terms are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference<'a> {
    /// Those that a rule made.
    MadeBy(&'a str),
    /// Any, by a seed.
    Random(u64),
    /// Those that cost most by themselves.
    Dearest,
}

/// A chosen program.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The program.
    pub graph: Graph,
    /// The e-node that each node was, but for inputs.
    pub terms: Vec<(NodeId, ENode)>,
    /// Classes that the program needs and that have a term of the preferred kind. For `Random` and
    /// `Dearest`, those whose term is not the cheapest one.
    pub preferred: usize,
}

/// What a term costs that computes; leaves, their parts and terms of the preferred rule cost 1. Costs are
/// positive, so that the cheapest terms form no cycle.
const COMPUTED: u64 = 1000;

/// Takes preferred terms wherever they form no cycle, the cheapest ones elsewhere.
pub fn choose(
    program: &Program,
    graph: &Graph,
    cost: &CostModel,
    preference: Preference<'_>,
) -> Result<Chosen, ExtractError> {
    let space = Space::new(program, cost);
    let made = match preference {
        Preference::MadeBy(rule) => program.made_by(rule),
        _ => Default::default(),
    };
    let mut s = Selection::cheapest(program, &space, |c, t| {
        let term = &space.terms(c)[t];
        let leaf = match &*term.node.op {
            Op::Shard { .. } => program.eg[term.node.children[0]].data.leaf,
            op => op.info().class == Class::Leaf,
        };
        if leaf || made.contains(&term.node) { 1 } else { COMPUTED }
    });
    let plain = s.term.clone();
    let mut classes: Vec<ClassId> = (0..space.len() as ClassId).collect();
    let mut random = match preference {
        Preference::Random(seed) => Some(Random::new(seed)),
        _ => None,
    };
    if let Some(r) = &mut random {
        r.shuffle(&mut classes);
    }
    for c in classes {
        let terms = space.terms(c);
        let mut wanted: Vec<usize> = (0..terms.len()).collect();
        match preference {
            Preference::MadeBy(_) => wanted.retain(|&t| made.contains(&terms[t].node)),
            Preference::Dearest => wanted.sort_by_key(|&t| std::cmp::Reverse(terms[t].cost)),
            Preference::Random(_) => random.iter_mut().for_each(|r| r.shuffle(&mut wanted)),
        }
        // An input stays one: the caller gives it whatever the program makes of it.
        if terms.iter().any(|t| matches!(*t.node.op, Op::Input { .. })) {
            continue;
        }
        for t in wanted {
            if s.take(c, t) {
                break;
            }
        }
    }
    let needed = s.needed();
    let is_preferred = |c: &ClassId| match (preference, s.term[*c as usize]) {
        (Preference::MadeBy(_), Some(t)) => made.contains(&space.terms(*c)[t as usize].node),
        (_, t) => t != plain[*c as usize],
    };
    let preferred = needed.iter().filter(|c| is_preferred(c)).count();
    let (graph, terms) = to_ir(program, graph, &space, &s.term)?;
    Ok(Chosen { graph, terms, preferred })
}

/// One term for each class, free of cycles.
struct Selection<'p> {
    space: &'p Space,
    program: &'p Program,
    term: Vec<Option<u32>>,
    /// Classes that the search for a cycle has seen, by the number of the search.
    seen: Vec<u32>,
    search: u32,
}

impl<'p> Selection<'p> {
    /// The cheapest terms as trees; `own` is what a term costs by itself, at least 1.
    fn cheapest(program: &'p Program, space: &'p Space, own: impl Fn(ClassId, usize) -> u64) -> Self {
        let mut best: Vec<Option<(u64, u32)>> = vec![None; space.len()];
        loop {
            let mut changed = false;
            for c in 0..space.len() as ClassId {
                for (t, term) in space.terms(c).iter().enumerate() {
                    let mut operands = space.operands(program, term);
                    let sum = operands.try_fold(own(c, t), |s, o| Some(s.saturating_add(best[o as usize]?.0)));
                    if let Some(sum) = sum
                        && best[c as usize].is_none_or(|(b, _)| sum < b)
                    {
                        best[c as usize] = Some((sum, t as u32));
                        changed = true;
                    }
                }
            }
            if !changed {
                let term = best.into_iter().map(|b| b.map(|(_, t)| t)).collect();
                return Selection { space, program, term, seen: vec![0; space.len()], search: 0 };
            }
        }
    }

    /// Takes a term unless it leads back to its class; whether it was taken.
    fn take(&mut self, class: ClassId, term: usize) -> bool {
        let Some(candidate) = self.space.terms(class).get(term) else { return false };
        self.search += 1;
        let mut work: Vec<ClassId> = self.space.operands(self.program, candidate).collect();
        while let Some(c) = work.pop() {
            if c == class {
                return false;
            }
            if std::mem::replace(&mut self.seen[c as usize], self.search) == self.search {
                continue;
            }
            // A class without a term can be part of no program.
            let Some(t) = self.term[c as usize] else { return false };
            work.extend(self.space.operands(self.program, &self.space.terms(c)[t as usize]));
        }
        self.term[class as usize] = Some(term as u32);
        true
    }

    /// The classes that the results lead to, in order.
    fn needed(&self) -> Vec<ClassId> {
        let mut needed = vec![false; self.space.len()];
        let mut work = self.space.roots().to_vec();
        while let Some(c) = work.pop() {
            if std::mem::replace(&mut needed[c as usize], true) {
                continue;
            }
            if let Some(t) = self.term[c as usize] {
                work.extend(self.space.operands(self.program, &self.space.terms(c)[t as usize]));
            }
        }
        (0..self.space.len() as ClassId).filter(|&c| needed[c as usize]).collect()
    }
}
