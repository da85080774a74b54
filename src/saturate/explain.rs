//! What the record of a compilation says about an extracted program.

use egg::Id;

use super::derive::derive;
use super::from_ir::Program;
use super::language::ENode;
use super::names::Names;
use super::why_not::{Context, why_not};
use crate::explain::{Recorder, WhyNot};
use crate::ir::{Graph, Mapping, NodeId};
use crate::rules::{Phase, RuleSet};

/// The class of each node of an extracted program.
fn classes(program: &Program, terms: &[(NodeId, ENode)]) -> Vec<(NodeId, Id)> {
    let eg = &program.eg;
    terms.iter().filter_map(|(id, term)| Some((*id, eg.find(eg.lookup(term.clone())?)))).collect()
}

/// Adds the derivations of an extracted program to a record, and to its nodes the entries that made
/// them. `before` is the graph that the e-graph was made from, `terms` the e-nodes that were extracted.
/// After the last phase also why operators are not fused.
pub fn explain(
    program: &Program,
    (before, after): (&Graph, &mut Graph),
    terms: &[(NodeId, ENode)],
    rules: &RuleSet,
    (mapping, phases): (&Mapping, &[Phase]),
    recorder: &mut Recorder,
) {
    let classes = classes(program, terms);
    let names = Names::new(program, before, after, &classes);
    let why = derive(program, before, &names, rules, terms, recorder);
    if phases.contains(&Phase::Fuse) {
        recorder.record.unfused = why_not(&Context::new(&names, rules, mapping, after, &classes), &classes);
    }
    for ((id, _), w) in terms.iter().zip(why) {
        after.node_mut(*id).why = w;
    }
}

/// Why the all-reduces, residual sums and norms of an extracted program are not part of fused operators.
pub fn unfused(
    program: &Program,
    (before, after): (&Graph, &Graph),
    terms: &[(NodeId, ENode)],
    rules: &RuleSet,
    mapping: &Mapping,
) -> Vec<WhyNot> {
    let classes = classes(program, terms);
    let names = Names::new(program, before, after, &classes);
    why_not(&Context::new(&names, rules, mapping, after, &classes), &classes)
}
