//! From selected terms to a graph in a stable order, with names and origins kept.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};

use egg::Id;

use super::ExtractError;
use super::space::{ClassId, Space};
use crate::ir::{Class, Graph, Node, NodeId, Op, Output, Part, unique_name};
use crate::saturate::Program;
use crate::saturate::language::ENode;

/// Position in the original graph, the places of the operands, the operator, the class.
type Place<'a> = (u32, Vec<u32>, &'a Op, ClassId);

/// Builds the program that takes one term of each class, and tells which term each node was; only classes
/// that the results need must have one. `graph` is the one that the e-graph was made from.
pub fn to_ir(
    program: &Program,
    graph: &Graph,
    space: &Space,
    term: &[Option<u32>],
) -> Result<(Graph, Vec<(NodeId, ENode)>), ExtractError> {
    let eg = &program.eg;
    let missing = || ExtractError("a class has no term".into());
    // What the program needs; the operands of a part of a leaf are named by it, so they come along.
    let mut needed: BTreeSet<ClassId> = BTreeSet::new();
    let mut stack = space.roots.clone();
    let operands = |c: ClassId| -> Result<Vec<ClassId>, ExtractError> {
        let t = space.term(c, term[c as usize].ok_or_else(missing)?);
        Ok(space.operands(program, t).collect())
    };
    while let Some(c) = stack.pop() {
        if needed.insert(c) {
            stack.extend(operands(c)?);
        }
    }

    // The first node of the original graph in each class gives name and position.
    let mut first: HashMap<ClassId, NodeId> = HashMap::new();
    for (id, _) in graph.nodes() {
        let class = space.dense[&eg.find(program.classes[id.index()])];
        first.entry(class).or_insert(id);
    }
    let provenance = program.provenance();
    let made_by = |c: ClassId| {
        let t = term[c as usize].map(|t| space.term(c, t))?;
        provenance.get(&t.node).copied()
    };
    let class_of = |id: Id| space.dense[&eg.find(id)];

    // Where a class stands: at the original class, or at the class for whose sake a rule made the term, or else
    // at its last operand. Ties break by the operands and the operator, never by the number of a class, which
    // a change far away may shift.
    let mut placed: HashMap<ClassId, (u32, u32)> = HashMap::new();
    let place = |c: ClassId, placed: &HashMap<ClassId, (u32, u32)>| -> Result<Place<'_>, ExtractError> {
        let below: Vec<(u32, u32)> = operands(c)?.iter().filter_map(|o| placed.get(o).copied()).collect();
        let own = first.get(&c).map(|n| n.0);
        let position = own
            .or_else(|| made_by(c)?.covers.iter().filter_map(|&k| first.get(&class_of(k)).map(|n| n.0)).max())
            .or_else(|| below.iter().map(|p| p.0).max())
            .unwrap_or(u32::MAX);
        let op = &*space.term(c, term[c as usize].ok_or_else(missing)?).node.op;
        Ok((position, below.into_iter().map(|p| p.1).collect(), op, c))
    };

    // Kahn's algorithm, the earliest place first.
    let mut waiting: HashMap<ClassId, usize> = HashMap::new();
    let mut readers: HashMap<ClassId, Vec<ClassId>> = HashMap::new();
    let mut ready = BinaryHeap::new();
    for &c in &needed {
        let mut below = operands(c)?;
        below.sort_unstable();
        below.dedup();
        if below.is_empty() {
            ready.push(Reverse(place(c, &placed)?));
        }
        waiting.insert(c, below.len());
        below.into_iter().for_each(|b| readers.entry(b).or_default().push(c));
    }
    let mut order = vec![];
    while let Some(Reverse((position, _, _, c))) = ready.pop() {
        placed.insert(c, (position, order.len() as u32));
        order.push(c);
        for &r in readers.get(&c).map_or(&[][..], Vec::as_slice) {
            let n = waiting.entry(r).or_insert(0);
            *n -= 1;
            if *n == 0 {
                ready.push(Reverse(place(r, &placed)?));
            }
        }
    }
    if order.len() != needed.len() {
        return Err(ExtractError("the selected terms form a cycle".into()));
    }

    let mut out = Graph::new(&graph.name);
    let mut terms = vec![];
    let mut map: HashMap<ClassId, NodeId> = HashMap::new();
    let mut taken: BTreeSet<String> = graph.nodes().map(|(_, n)| n.name.clone()).collect();
    // Inputs come first and all stay, in the caller's order.
    for (id, n) in graph.nodes().filter(|(_, n)| matches!(n.op, Op::Input { .. })) {
        let new = out.push(Node { inputs: vec![], ..n.clone() });
        map.insert(class_of(program.classes[id.index()]), new);
    }
    let mut results: BTreeMap<ClassId, (NodeId, Option<Part>)> = BTreeMap::new();
    for c in order {
        let t = space.term(c, term[c as usize].ok_or_else(missing)?);
        let inputs: Vec<NodeId> = operands(c)?.iter().map(|o| map[o]).collect();
        match &*t.node.op {
            Op::Output { .. } => {
                results.insert(c, (inputs[0], None));
                continue;
            }
            Op::OutputSharded { dim, axis, parts, .. } => {
                let part = Part { dim: *dim as usize, axis: *axis, parts: *parts as usize };
                results.insert(c, (inputs[0], Some(part)));
                continue;
            }
            _ if map.contains_key(&c) => continue,
            _ => {}
        }
        let source = made_by(c);
        let rules: Vec<String> = source.iter().map(|p| p.rule.name.clone()).collect();
        let origin = match (first.get(&c), source) {
            (Some(n), None) => graph.node(*n).origin.clone(),
            (_, Some(p)) => {
                // What a rule took may itself be the work of rules, in steps that the program does not keep.
                let mut names: Vec<String> = vec![];
                let mut classes: Vec<ClassId> = vec![];
                let mut todo: VecDeque<Id> = p.covers.iter().copied().collect();
                while let Some(k) = todo.pop_front().map(|k| eg.find(k)) {
                    let class = class_of(k);
                    if classes.contains(&class) {
                        continue;
                    }
                    classes.push(class);
                    for o in first.get(&class).map_or(&[][..], |n| &graph.node(*n).origin) {
                        if !names.contains(o) {
                            names.push(o.clone());
                        }
                    }
                    if !needed.contains(&class) && !eg[k].data.weight {
                        let steps = eg[k].nodes.iter().filter_map(|n| provenance.get(n));
                        todo.extend(steps.filter(|p| p.rule.phase.name() == "raise").flat_map(|p| p.covers.iter()));
                    }
                }
                names
            }
            (None, None) => vec![],
        };
        // The rules and origins of the earlier phases stay with the node.
        let earlier = first.get(&c).map_or(vec![], |n| graph.node(*n).rules.clone());
        let rules = earlier.into_iter().chain(rules).collect();
        let name = match first.get(&c) {
            Some(n) => graph.node(*n).name.clone(),
            None => {
                let near = source.and_then(|p| p.covers.iter().find_map(|&k| first.get(&class_of(k))));
                let leaf = inputs.first().filter(|_| matches!(*t.node.op, Op::Shard { .. }));
                let leaf =
                    leaf.filter(|i| out.node(**i).op.info().class == Class::Leaf).map(|i| out.node(*i).name.clone());
                let base = match (leaf, near) {
                    (Some(leaf), _) => format!("{leaf}.shard"),
                    (None, Some(n)) => format!("{}.{}", graph.node(*n).name, t.node.op.title()),
                    // A count over the whole graph would rename all later nodes where an earlier one goes.
                    (None, None) => match inputs.first().map(|&i| out.node(i)) {
                        Some(i) => format!("{}.{}", stem(&i.name, i.op.title()), t.node.op.title()),
                        None => t.node.op.title().to_owned(),
                    },
                };
                unique_name(&mut taken, &base)
            }
        };
        let data = &eg[space.ids[c as usize]].data;
        let leaf = t.node.op.info().class == Class::Leaf;
        let node = Node {
            op: (*t.node.op).clone(),
            inputs,
            types: data.types.to_vec(),
            name,
            origin,
            rules,
            why: None,
            stage: if leaf { None } else { data.stage.map(|s| s as usize) },
        };
        let id = out.push(node);
        map.insert(c, id);
        terms.push((id, t.node.clone()));
    }
    for (o, &root) in graph.outputs().iter().zip(&space.roots) {
        let (value, part) = results[&root];
        out.push_output(Output { value, part, ..o.clone() });
    }
    Ok((out, terms))
}

/// A name without the operator that was appended to it.
fn stem<'a>(name: &'a str, op: &str) -> &'a str {
    name.strip_suffix(op).and_then(|n| n.strip_suffix('.')).filter(|n| !n.is_empty()).unwrap_or(name)
}
