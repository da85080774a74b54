//! Local search over selections, with exact DAG cost kept incrementally.
//!
//! The state counts how many selected terms need each class. A move selects other terms for one or more
//! classes; its gain is found by counting up what the new terms need and counting down what the old ones
//! needed, so it costs time in proportion to what changes. Moves are tried on all structurally equal
//! sites together, so that the number of rounds does not depend on the number of layers.

use std::collections::BTreeMap;

use super::space::{ClassId, Space, Term};

/// Gains are accepted only if the selection stays free of cycles.
pub(super) struct Selection<'s> {
    space: &'s Space,
    /// The selected term of each class; `None` for classes that have no finite term.
    pub(super) term: Vec<Option<u32>>,
    /// How many selected, needed terms (and roots) need the class.
    needed: Vec<u32>,
    /// What each class would cost in addition to what is needed, as of the last refresh.
    estimate: Vec<u64>,
    /// Cost of all needed terms.
    pub(super) total: u64,
    work: Vec<ClassId>,
}

/// One class takes another term.
#[derive(Clone, Copy, Debug)]
struct Flip {
    class: ClassId,
    to: u32,
}

/// Moves by site, those at structurally equal places together.
#[derive(Default)]
struct Groups {
    sites: BTreeMap<(ClassId, u64), Vec<Vec<Flip>>>,
    /// By shape, the first class that has it: groups are tried in the order of these.
    leaders: BTreeMap<u64, ClassId>,
}

impl Groups {
    /// Adds a move around a class; `kind` is equal for corresponding moves.
    fn add(&mut self, space: &Space, class: ClassId, kind: u64, flips: Vec<Flip>) {
        let leader = *self.leaders.entry(space.shape[class as usize]).or_insert(class);
        self.sites.entry((leader, kind)).or_default().push(flips);
    }
}

impl<'s> Selection<'s> {
    /// Starts from the given terms; the other classes get the cheapest way to compute them from those.
    pub(super) fn new(space: &'s Space, given: &[Option<u32>]) -> Selection<'s> {
        let (term, estimate) = complete(space, given);
        let mut s = Selection { space, term, needed: vec![0; space.len()], estimate, total: 0, work: vec![] };
        for &r in &space.roots {
            s.count_up(r);
        }
        s
    }

    /// Gives the classes that are not needed the cheapest terms from those that are, so that moves which
    /// need them are judged by what they would cost now.
    pub(super) fn refresh(&mut self) {
        (self.term, self.estimate) = complete(self.space, &self.needed_terms());
    }

    /// The selected terms of the classes that are needed.
    pub(super) fn needed_terms(&self) -> Vec<Option<u32>> {
        self.term.iter().zip(&self.needed).map(|(t, &n)| if n > 0 { *t } else { None }).collect()
    }

    pub(super) fn is_needed(&self, c: ClassId) -> bool {
        self.needed[c as usize] > 0
    }

    fn count_up(&mut self, class: ClassId) {
        self.work.push(class);
        while let Some(c) = self.work.pop() {
            let n = &mut self.needed[c as usize];
            *n += 1;
            if *n == 1 {
                match self.term[c as usize] {
                    Some(t) => {
                        let t = self.space.term(c, t);
                        self.total = self.total.saturating_add(t.cost);
                        self.work.extend(&t.needs);
                    }
                    // Never selected by a move: a class without a term has no finite cost.
                    None => self.total = u64::MAX,
                }
            }
        }
    }

    fn count_down(&mut self, class: ClassId) {
        self.work.push(class);
        while let Some(c) = self.work.pop() {
            let n = &mut self.needed[c as usize];
            *n -= 1;
            if *n == 0
                && let Some(t) = self.term[c as usize]
            {
                let t = self.space.term(c, t);
                self.total -= t.cost;
                self.work.extend(&t.needs);
            }
        }
    }

    /// Selects a term for a class and returns the one it replaces.
    fn flip(&mut self, f: Flip) -> Flip {
        let c = f.class as usize;
        let old = self.term[c];
        if self.needed[c] > 0 {
            // Counting up first keeps what both terms need from being dropped and added again.
            let new = self.space.term(f.class, f.to);
            for &n in &new.needs {
                self.count_up(n);
            }
            self.total = self.total.saturating_add(new.cost);
            if let Some(o) = old {
                let o = self.space.term(f.class, o);
                self.total -= o.cost;
                // The class must not be entered while its terms are exchanged.
                self.term[c] = Some(f.to);
                for &n in &o.needs {
                    self.count_down(n);
                }
            }
        }
        self.term[c] = Some(f.to);
        Flip { class: f.class, to: old.unwrap_or(f.to) }
    }

    fn apply(&mut self, flips: &[Flip]) -> Vec<Flip> {
        flips.iter().map(|&f| self.flip(f)).collect()
    }

    fn revert(&mut self, undo: &[Flip]) {
        for &u in undo.iter().rev() {
            self.flip(u);
        }
    }

    /// Whether the needed terms form no cycle.
    pub(super) fn acyclic(&self) -> bool {
        let mut state = vec![0u8; self.space.len()];
        let mut stack: Vec<(ClassId, usize)> = vec![];
        for &r in &self.space.roots {
            if state[r as usize] == 0 {
                state[r as usize] = 1;
                stack.push((r, 0));
            }
            while let Some((c, i)) = stack.last_mut() {
                let Some(t) = self.term[*c as usize] else { return false };
                match self.space.term(*c, t).needs.get(*i) {
                    Some(&n) => {
                        *i += 1;
                        match state[n as usize] {
                            0 => {
                                state[n as usize] = 1;
                                stack.push((n, 0));
                            }
                            1 => return false,
                            _ => {}
                        }
                    }
                    None => {
                        state[*c as usize] = 2;
                        stack.pop();
                    }
                }
            }
        }
        true
    }

    /// Tries one move at every site of a group; whether the selection improved.
    fn try_group(&mut self, sites: &[Vec<Flip>]) -> bool {
        let before = self.total;
        let mut undo: Vec<Flip> = vec![];
        // Each site on its own ...
        for site in sites {
            let at = self.total;
            let u = self.apply(site);
            if self.total < at {
                undo.extend(u);
            } else {
                self.revert(&u);
            }
        }
        if self.total < before && self.acyclic() {
            return true;
        }
        self.revert(&undo);
        if undo.is_empty() && sites.len() > 1 {
            // ... or all of them, where they only pay together.
            let all: Vec<Flip> = sites.iter().flatten().copied().collect();
            let undo = self.apply(&all);
            if self.total < before && self.acyclic() {
                return true;
            }
            self.revert(&undo);
        } else if !undo.is_empty() {
            // A cycle somewhere: find the sites that do without.
            let mut improved = false;
            for site in sites.iter().take(MAX_SINGLE_SITES) {
                let at = self.total;
                let u = self.apply(site);
                if self.total < at && self.acyclic() {
                    improved = true;
                } else {
                    self.revert(&u);
                }
            }
            return improved;
        }
        false
    }

    /// Tries all groups; whether any improved the selection.
    fn try_groups(&mut self, groups: &Groups) -> bool {
        let mut improved = false;
        for sites in groups.sites.values() {
            improved |= self.try_group(sites);
        }
        improved
    }

    /// Moves of single classes, until none helps.
    pub(super) fn improve_classes(&mut self) -> bool {
        let mut any = false;
        for _ in 0..MAX_ROUNDS {
            let mut groups = Groups::default();
            for c in 0..self.space.len() as ClassId {
                if !self.is_needed(c) || self.space.terms[c as usize].len() < 2 {
                    continue;
                }
                for t in 0..self.space.terms[c as usize].len() as u32 {
                    if self.term[c as usize] == Some(t) || !self.is_possible(c, t) {
                        continue;
                    }
                    let flip = Flip { class: c, to: t };
                    let shape = self.space.term_shape(c, t);
                    groups.add(self.space, c, shape, vec![flip]);
                    // What the term needs anew may itself be computed in another way than the one that
                    // looks cheapest while the old term's operands are still paid for.
                    for &n in self.space.term(c, t).needs.iter().filter(|&&n| !self.is_needed(n)) {
                        for u in 0..self.space.terms[n as usize].len() as u32 {
                            if self.term[n as usize] != Some(u) && self.is_possible(n, u) {
                                let key = shape.rotate_left(7) ^ self.space.term_shape(n, u);
                                let below = Flip { class: n, to: u };
                                groups.add(self.space, c, key, vec![below, flip]);
                            }
                        }
                    }
                }
            }
            if !self.try_groups(&groups) {
                break;
            }
            any = true;
        }
        any
    }

    /// Moves of all readers of a tuple at once, so that a fused kernel with several results is chosen or
    /// left as a whole.
    pub(super) fn improve_tuples(&mut self, is_tuple: impl Fn(ClassId) -> bool) -> bool {
        let mut groups = Groups::default();
        for c in 0..self.space.len() as ClassId {
            if !is_tuple(c) || self.term[c as usize].is_none() {
                continue;
            }
            let readers: Vec<Flip> = self.space.users[c as usize]
                .iter()
                .filter(|&&(p, t)| self.is_needed(p) && self.term[p as usize] != Some(t))
                .map(|&(p, t)| Flip { class: p, to: t })
                .collect();
            // A result that nothing reads yet may be what others read under another shape or layout.
            let mut all = readers.clone();
            for &(p, t) in self.space.users[c as usize].iter().filter(|&&(p, _)| !self.is_needed(p)) {
                let views = self.space.users[p as usize]
                    .iter()
                    .filter(|&&(q, u)| self.is_needed(q) && self.term[q as usize] != Some(u));
                let before = all.len();
                all.extend(views.map(|&(q, u)| Flip { class: q, to: u }));
                if all.len() > before {
                    all.push(Flip { class: p, to: t });
                }
            }
            if all.len() > readers.len() {
                groups.add(self.space, c, VIEWS | all.len() as u64, all);
            }
            if !readers.is_empty() {
                groups.add(self.space, c, readers.len() as u64, readers);
            }
            if let Some(flips) = self.leave_tuple(c).filter(|f| !f.is_empty()) {
                groups.add(self.space, c, LEAVE | flips.len() as u64, flips);
            }
        }
        self.try_groups(&groups)
    }

    /// Other terms for all that reads a tuple, or for the readers of its results where these can be computed in no other
    /// way.
    fn leave_tuple(&self, tuple: ClassId) -> Option<Vec<Flip>> {
        let mut flips = vec![];
        for result in self.readers(tuple) {
            match self.without(result, tuple) {
                Some(flip) => flips.push(flip),
                None => {
                    for reader in self.readers(result) {
                        flips.push(self.without(reader, result)?);
                    }
                }
            }
        }
        Some(flips)
    }

    /// The needed classes whose selected terms read a class.
    fn readers(&self, class: ClassId) -> Vec<ClassId> {
        let users = self.space.users[class as usize].iter();
        users.filter(|&&(p, t)| self.is_needed(p) && self.term[p as usize] == Some(t)).map(|&(p, _)| p).collect()
    }

    /// The cheapest term of a class, as things are, that does not read another.
    fn without(&self, class: ClassId, other: ClassId) -> Option<Flip> {
        let cost = |t: &Term| t.needs.iter().fold(t.cost, |s, &n| s.saturating_add(self.estimate[n as usize]));
        let terms = self.space.terms[class as usize].iter().enumerate();
        terms
            .filter(|(t, term)| !term.needs.contains(&other) && self.is_possible(class, *t as u32))
            .min_by_key(|(t, term)| (cost(term), *t))
            .map(|(t, _)| Flip { class, to: t as u32 })
    }

    /// Moves of all readers of a class away from it. A value that several terms read is paid once, so
    /// that none of them gains by leaving it alone: a weight that is read whole twice, or keys that are
    /// gathered both for a cache and for the attention.
    pub(super) fn improve_shared(&mut self) -> bool {
        let mut groups = Groups::default();
        for c in 0..self.space.len() as ClassId {
            if self.needed[c as usize] < 2 {
                continue;
            }
            let readers = self.readers(c);
            if readers.len() < 2 || readers.iter().any(|&p| self.space.terms[p as usize].len() < 2) {
                continue;
            }
            if let Some(flips) = readers.into_iter().map(|p| self.without(p, c)).collect::<Option<Vec<_>>>() {
                groups.add(self.space, c, flips.len() as u64, flips);
            }
        }
        self.try_groups(&groups)
    }

    fn is_possible(&self, c: ClassId, t: u32) -> bool {
        self.space.term(c, t).needs.iter().all(|&n| self.term[n as usize].is_some())
    }
}

/// Marks the moves that include readers of a reshaped result.
const VIEWS: u64 = 1 << 32;

/// Marks the moves away from a tuple.
const LEAVE: u64 = 1 << 33;

/// Rounds of single-class moves; each visits every class. To stop early leaves a dearer program, never a
/// wrong one.
const MAX_ROUNDS: usize = 64;

/// Sites that are tried one by one after a move on all of them made a cycle.
const MAX_SINGLE_SITES: usize = 64;

/// Terms for the classes that have none: the cheapest way from the given ones, which count as paid.
fn complete(space: &Space, given: &[Option<u32>]) -> (Vec<Option<u32>>, Vec<u64>) {
    let mut term = given.to_vec();
    let mut cost: Vec<u64> = given.iter().map(|g| if g.is_some() { 0 } else { u64::MAX }).collect();
    let mut queue: std::collections::VecDeque<ClassId> = (0..space.len() as ClassId).collect();
    let mut queued = vec![true; space.len()];
    while let Some(c) = queue.pop_front() {
        queued[c as usize] = false;
        if given[c as usize].is_some() {
            continue;
        }
        for (t, candidate) in space.terms[c as usize].iter().enumerate() {
            let sum = candidate.needs.iter().fold(candidate.cost, |s, &n| s.saturating_add(cost[n as usize]));
            if sum < cost[c as usize] {
                cost[c as usize] = sum;
                term[c as usize] = Some(t as u32);
                for &(p, _) in &space.users[c as usize] {
                    if !std::mem::replace(&mut queued[p as usize], true) {
                        queue.push_back(p);
                    }
                }
            }
        }
    }
    (term, cost)
}
