//! Extract: the cheapest program of an e-graph, by DAG cost.
//!
//! A shared value is paid once, a tuple once for all its readers, and cycles are excluded. The search
//! starts from the original program, so the result is never worse.

mod bound;
mod search;
mod space;
#[cfg(test)]
mod tests;
mod to_ir;

use egg::Language as _;

use self::search::Selection;
pub use self::space::{ClassId, Space, Term};
pub use self::to_ir::to_ir;
use crate::cost::CostModel;
use crate::ir::{Graph, NodeId, Op};
use crate::saturate::Program;
use crate::saturate::language::ENode;

/// What an extraction found.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// The program.
    pub graph: Graph,
    /// The e-node that each node was, but for inputs.
    pub terms: Vec<(NodeId, ENode)>,
    /// Costs along the way.
    pub stats: ExtractStats,
}

/// Costs in nanoseconds over all profiles. Except for the `_time_ns`, they include the price on weight
/// bytes beyond a rank's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtractStats {
    /// The program as it was given.
    pub original_ns: u64,
    /// After moves of single classes.
    pub greedy_ns: u64,
    /// The result.
    pub chosen_ns: u64,
    /// No program of the e-graph costs less.
    pub bound_ns: u64,
    /// Estimated time of the program as it was given.
    pub original_time_ns: u64,
    /// Estimated time of the result.
    pub chosen_time_ns: u64,
}

/// The extraction failed, which only a defect of the compiler can cause.
#[derive(Debug, thiserror::Error)]
#[error("extraction: {0}")]
pub struct ExtractError(pub String);

/// Rounds of alternating single and joint moves.
const MAX_ROUNDS: usize = 16;

/// How much dearer gathering is in the second descent.
const GATHER_FACTOR: u64 = 8;

/// Finds the cheapest program. `graph` is the one that the e-graph was made from; its names are kept.
pub fn extract(program: &Program, graph: &Graph, cost: &CostModel) -> Result<Extracted, ExtractError> {
    let mut space = Space::new(program, cost);
    let given = original(program, &space)?;
    let is_tuple = |c: u32| program.eg[space.ids[c as usize]].data.types.len() > 1;
    let tuples: Vec<bool> = (0..space.len() as u32).map(is_tuple).collect();

    let mut stats = ExtractStats::default();
    let first = {
        let mut s = Selection::new(&space, &given);
        stats.original_ns = s.total;
        stats.original_time_ns = time(&space, &s);
        s.improve_classes();
        stats.greedy_ns = s.total;
        descend(&mut s, &tuples);
        (s.total, s.needed_terms())
    };
    // Cutting a tensor through a whole block pays only once nothing in the block gathers it any more. A
    // second descent on dearer gathers finds such programs; its result then descends on the true costs.
    let gathers = |op: &Op| matches!(op, Op::AllGather { .. });
    let true_costs = space.scale(gathers, GATHER_FACTOR);
    let second = if true_costs.is_empty() {
        None
    } else {
        let mut s = Selection::new(&space, &given);
        s.improve_classes();
        descend(&mut s, &tuples);
        let terms = s.needed_terms();
        space.restore(gathers, true_costs);
        let mut s = Selection::new(&space, &terms);
        s.improve_classes();
        descend(&mut s, &tuples);
        Some((s.total, s.needed_terms()))
    };
    let best = match second {
        Some(s) if s.0 < first.0 => s.1,
        _ => first.1,
    };
    let s = Selection::new(&space, &best);
    stats.chosen_ns = s.total;
    stats.chosen_time_ns = time(&space, &s);
    stats.bound_ns = bound::lower_bound(&space).min(stats.chosen_ns);
    let (graph, terms) = to_ir(program, graph, &space, &s.term)?;
    Ok(Extracted { graph, terms, stats })
}

/// Alternates joint and single moves until neither helps.
fn descend(s: &mut Selection<'_>, tuples: &[bool]) {
    for _ in 0..MAX_ROUNDS {
        s.refresh();
        let joint = s.improve_tuples(|c| tuples[c as usize]) | s.improve_shared();
        s.refresh();
        let single = s.improve_classes();
        if !joint && !single {
            break;
        }
    }
}

fn time(space: &Space, s: &Selection<'_>) -> u64 {
    (0..space.len() as u32)
        .filter(|&c| s.is_needed(c))
        .filter_map(|c| s.term[c as usize].map(|t| space.term(c, t)))
        .map(|t| t.cost - t.surplus)
        .sum()
}

/// The terms of the original program.
fn original(program: &Program, space: &Space) -> Result<Vec<Option<u32>>, ExtractError> {
    let mut given = vec![None; space.len()];
    for (id, node) in &program.original {
        let class = space.dense[&program.eg.find(*id)];
        if given[class as usize].is_some() {
            continue;
        }
        let node = node.clone().map_children(|c| program.eg.find(c));
        let at = space.terms[class as usize].iter().position(|t| t.node == node);
        // A term that became its own operand (x == reshape(x)) has another one in its class.
        given[class as usize] = at.map(|t| t as u32);
    }
    Ok(given)
}
