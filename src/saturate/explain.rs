//! What the record of a compilation says about an extracted program.

use super::derive::derive;
use super::from_ir::Program;
use super::language::ENode;
use super::names::Names;
use super::why_not::{Context, why_not};
use crate::explain::{Recorder, WhyNot};
use crate::ir::{Graph, Mapping, NodeId};
use crate::rules::RuleSet;

/// Adds the derivations of an extracted program to a record, and to its nodes the entries that made
/// them. `before` is the graph that the e-graph was made from, `terms` the e-nodes that were extracted.
pub fn explain(
    program: &Program,
    before: &Graph,
    after: &mut Graph,
    terms: &[(NodeId, ENode)],
    rules: &RuleSet,
    recorder: &mut Recorder,
) {
    let names = Names::new(program, before, after, terms);
    let why = derive(program, before, &names, rules, terms, recorder);
    for ((id, _), w) in terms.iter().zip(why) {
        after.node_mut(*id).why = w;
    }
}

/// Why the all-reduces, residual sums and norms of an extracted program are not part of fused operators.
pub fn unfused(
    program: &Program,
    before: &Graph,
    after: &Graph,
    terms: &[(NodeId, ENode)],
    rules: &RuleSet,
    mapping: &Mapping,
) -> Vec<WhyNot> {
    let names = Names::new(program, before, after, terms);
    why_not(&Context::new(program, &names, rules, mapping, after, terms), after, terms)
}
