//! The search space of an extraction: classes and their candidate terms with costs, in dense numbers.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use egg::{Id, Language as _};
use rustc_hash::FxHasher;
use smallvec::SmallVec;

use crate::cost::CostModel;
use crate::ir::{Class as OpClass, Op, TensorType};
use crate::saturate::Program;
use crate::saturate::language::ENode;

/// A class, by dense number.
pub type ClassId = u32;

/// A candidate term.
pub struct Term {
    /// The term itself.
    pub node: ENode,
    /// What the term itself costs, without its operands.
    pub cost: u64,
    /// Part of `cost` that is a price on memory, not time.
    pub(super) surplus: u64,
    /// Distinct classes that it needs. Empty for a part of a leaf, which the host cuts.
    pub(super) needs: SmallVec<[ClassId; 4]>,
}

/// All classes with their terms, in a fixed order.
pub struct Space {
    pub(super) terms: Vec<Vec<Term>>,
    pub(super) ids: Vec<Id>,
    pub(super) roots: Vec<ClassId>,
    /// The terms that need a class.
    pub(super) users: Vec<Vec<(ClassId, u32)>>,
    pub(super) dense: HashMap<Id, ClassId>,
    /// Equal for classes at corresponding places of identical layers.
    pub(super) shape: Vec<u64>,
}

/// Rounds of refinement of the structural hash: how far two sites must look alike.
const SHAPE_ROUNDS: usize = 3;

impl Space {
    /// The candidates of a program with their costs.
    pub fn new(program: &Program, cost: &CostModel) -> Space {
        let eg = &program.eg;
        let mut ids: Vec<Id> = eg.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        let dense: HashMap<Id, ClassId> = ids.iter().enumerate().map(|(i, &id)| (id, i as ClassId)).collect();
        let mut terms: Vec<Vec<Term>> = Vec::with_capacity(ids.len());
        for &id in &ids {
            let class = &eg[id];
            let mut list = Vec::with_capacity(class.nodes.len());
            // To cut a computed weight, a rank would hold the whole; where its part is computed from parts, nothing else
            // is a candidate.
            let whole = |n: &ENode| {
                let of = n.children().first().map(|&c| &eg[c].data);
                matches!(*n.op, Op::Shard { .. }) && of.is_some_and(|f| f.weight && !f.leaf)
            };
            let only_parts = class.nodes.iter().any(|n| !whole(n));
            for node in class.nodes.iter().filter(|n| !only_parts || !whole(n)) {
                let mut needs: SmallVec<[ClassId; 4]> = node.children().iter().map(|&c| dense[&eg.find(c)]).collect();
                let inputs: SmallVec<[&[TensorType]; 4]> =
                    node.children().iter().map(|&c| &eg[c].data.types[..]).collect();
                let mut time = cost.time(&node.op, &inputs, &class.data.types);
                let mut surplus = 0;
                match &*node.op {
                    Op::Weight { .. } => surplus = cost.surplus(class.data.ty()),
                    // A boundary on what every stage can compute, or a part of a leaf, costs nothing.
                    Op::Boundary { .. } if eg[node.children()[0]].data.free => time = 0,
                    Op::Slice { .. } if class.data.range_of_weight => {
                        surplus = cost.surplus(class.data.ty());
                        time = 0;
                        needs.clear();
                    }
                    Op::Shard { .. } if eg[node.children()[0]].data.leaf => {
                        time = 0;
                        needs.clear();
                    }
                    _ => {}
                }
                needs.sort_unstable();
                needs.dedup();
                // A term that needs its own class can never be part of a program.
                if !needs.contains(&dense[&id]) {
                    list.push(Term { node: node.clone(), cost: time + surplus, surplus, needs });
                }
            }
            terms.push(list);
        }
        let mut users: Vec<Vec<(ClassId, u32)>> = vec![vec![]; ids.len()];
        for (c, list) in terms.iter().enumerate() {
            for (t, term) in list.iter().enumerate() {
                for &n in &term.needs {
                    users[n as usize].push((c as ClassId, t as u32));
                }
            }
        }
        let roots = program.roots.iter().map(|&r| dense[&eg.find(r)]).collect();
        let shape = shapes(&terms, &users, &ids, &dense, program);
        Space { terms, ids, roots, users, dense, shape }
    }

    /// Makes the terms of some operators dearer by a factor; their costs before, in class and term order.
    pub(super) fn scale(&mut self, which: impl Fn(&Op) -> bool, factor: u64) -> Vec<u64> {
        let terms = self.terms.iter_mut().flatten().filter(|t| which(&t.node.op));
        let scaled = terms.map(|t| {
            let dearer = t.cost.saturating_mul(factor);
            std::mem::replace(&mut t.cost, dearer)
        });
        scaled.collect()
    }

    /// Restores the costs that `scale` of the same operators returned.
    pub(super) fn restore(&mut self, which: impl Fn(&Op) -> bool, costs: Vec<u64>) {
        let terms = self.terms.iter_mut().flatten().filter(|t| which(&t.node.op));
        terms.zip(costs).for_each(|(t, c)| t.cost = c);
    }

    /// Number of classes.
    pub fn len(&self) -> usize {
        self.terms.len()
    }

    /// Whether there is no class.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The candidates of a class.
    pub fn terms(&self, class: ClassId) -> &[Term] {
        &self.terms[class as usize]
    }

    /// The classes of the results.
    pub fn roots(&self) -> &[ClassId] {
        &self.roots
    }

    /// The classes of a term's operands. Unlike what it needs, they include the leaf of a part.
    pub fn operands<'a>(&'a self, program: &'a Program, term: &'a Term) -> impl Iterator<Item = ClassId> + 'a {
        term.node.children().iter().map(|&x| self.dense[&program.eg.find(x)])
    }

    pub(super) fn term(&self, class: ClassId, term: u32) -> &Term {
        &self.terms[class as usize][term as usize]
    }

    /// A number that is equal for corresponding terms of classes with equal shape.
    pub(super) fn term_shape(&self, class: ClassId, term: u32) -> u64 {
        term_hash(&self.term(class, term).node, |c| self.shape[self.dense[&c] as usize])
    }
}

fn term_hash(node: &ENode, shape: impl Fn(Id) -> u64) -> u64 {
    let mut h = FxHasher::default();
    match &*node.op {
        // Names differ from layer to layer.
        op if op.info().class == OpClass::Leaf && !matches!(op, Op::Const { .. }) => op.name().hash(&mut h),
        Op::Output { state, .. } => ("output", state).hash(&mut h),
        Op::OutputSharded { dim, parts, .. } => ("output_sharded", dim, parts).hash(&mut h),
        _ => node.op.hash(&mut h),
    }
    // Parts of leaves drop out of `needs`, but not of the shape.
    node.children().iter().for_each(|&c| shape(c).hash(&mut h));
    h.finish()
}

fn shapes(
    terms: &[Vec<Term>],
    users: &[Vec<(ClassId, u32)>],
    ids: &[Id],
    dense: &HashMap<Id, ClassId>,
    program: &Program,
) -> Vec<u64> {
    let eg = &program.eg;
    let mut now: Vec<u64> = ids
        .iter()
        .map(|&id| {
            let f = &eg[id].data;
            let mut h = FxHasher::default();
            (&f.types, f.varies_over_tp, f.weight, f.stage).hash(&mut h);
            h.finish()
        })
        .collect();
    for _ in 0..SHAPE_ROUNDS {
        now = (0..terms.len())
            .map(|c| {
                let mut below: Vec<u64> =
                    terms[c].iter().map(|t| term_hash(&t.node, |x| now[dense[&x] as usize])).collect();
                below.sort_unstable();
                let mut above: Vec<u64> = users[c].iter().map(|&(p, _)| now[p as usize]).collect();
                above.sort_unstable();
                let mut h = FxHasher::default();
                (now[c], below, above).hash(&mut h);
                h.finish()
            })
            .collect();
    }
    now
}
