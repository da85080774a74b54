//! What the record of a compilation says about an extracted program.

use super::derive::derive;
use super::from_ir::Program;
use super::language::ENode;
use super::names::Names;
use super::why_not::{Context, why_not};
use crate::explain::Record;
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
    mapping: &Mapping,
    record: &mut Record,
) {
    let names = Names::new(program, before, after, terms);
    let why = derive(program, before, &names, rules, terms, record);
    let class = |n: &ENode| Some((program.eg.find(program.eg.lookup(n.clone())?), n.op.name()));
    let chosen = terms.iter().filter_map(|(_, n)| class(n)).collect();
    record.unfused = why_not(&Context { program, names: &names, rules, mapping, chosen }, after, terms);
    for ((id, _), w) in terms.iter().zip(why) {
        after.node_mut(*id).why = w;
    }
}
