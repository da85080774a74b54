//! Derivations: from the terms of an extracted program back to those of the graph that went in.
//!
//! What an application of a rule took follows from what its variables were bound to, so that nothing
//! but the bindings is recorded while the e-graph grows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use egg::{Id, Language as _};

use super::from_ir::Program;
use super::language::{ENode, OpRef};
use super::names::Names;
use super::run::Provenance;
use crate::explain::{Entry, Record, RuleText, Taken};
use crate::ir::{Graph, NodeId, Op};
use crate::rules::RuleSet;
use crate::rules::eval::Bind;
use crate::rules::lang::{AttrPattern, Head, OpPattern, Pattern};

/// Adds the derivations of some terms to a record, and returns for each term the entry that made it.
///
/// `graph` is the one that the e-graph was made from; its nodes' entries go on.
pub(super) fn derive(
    program: &Program,
    graph: &Graph,
    names: &Names<'_>,
    rules: &RuleSet,
    terms: &[(NodeId, ENode)],
    record: &mut Record,
) -> Vec<Option<u32>> {
    let mut d = Deriver::new(program, graph, names);
    let needed = d.needed(terms);
    let mut entry_of: HashMap<u32, u32> = HashMap::new();
    let mut known: BTreeMap<String, u32> =
        record.rules.iter().enumerate().map(|(i, r)| (r.name.clone(), i as u32)).collect();
    for (id, taken) in needed {
        let p = d.applications[&id].clone();
        let rule = *known.entry(p.rule.name.clone()).or_insert_with(|| {
            let text = |span| rules.excerpt(&p.rule, span);
            record.rules.push(RuleText {
                name: p.rule.name.clone(),
                phase: p.rule.phase.name().to_owned(),
                place: format!("{}:{}", p.rule.file, p.rule.line),
                doc: p.rule.doc.clone(),
                left: text(&p.rule.left_span),
                right: text(&p.rule.right_span),
                guards: p.rule.guards.iter().map(|g| text(&g.span)).collect(),
            });
            record.rules.len() as u32 - 1
        });
        let mut took = vec![];
        for (class, node) in taken {
            let text = names.term(&node);
            let term = if names.has(class) { format!("{} = {text}", names.class(class)) } else { text };
            let (from, nodes) = match d.origin.get(&node) {
                Some(n) => (graph.node(*n).why, graph.node(*n).origin.clone()),
                None => (d.made_by(&node).and_then(|p| entry_of.get(&p).copied()), vec![]),
            };
            let nodes = if from.is_some() { vec![] } else { nodes };
            took.push(Taken { term, from, nodes });
        }
        let vars = d.variables(&p);
        record.entries.push(Entry { rule, vars, took });
        entry_of.insert(id, record.entries.len() as u32 - 1);
    }
    let of = |n: &ENode| match d.origin.get(n) {
        Some(id) => graph.node(*id).why,
        None => d.made_by(n).and_then(|p| entry_of.get(&p).copied()),
    };
    terms.iter().map(|(_, n)| of(n)).collect()
}

struct Deriver<'p> {
    program: &'p Program,
    names: &'p Names<'p>,
    /// The node of the graph that a term is.
    origin: HashMap<ENode, NodeId>,
    provenance: HashMap<ENode, &'p Arc<Provenance>>,
    applications: HashMap<u32, Arc<Provenance>>,
}

/// Classes with the terms that a pattern took in them.
type TakenTerms = Vec<(Id, ENode)>;

impl<'p> Deriver<'p> {
    fn new(program: &'p Program, graph: &Graph, names: &'p Names<'p>) -> Self {
        let eg = &program.eg;
        let mut origin = HashMap::new();
        for (id, (_, node)) in graph.ids().zip(&program.original) {
            origin.entry(node.clone().map_children(|c| eg.find(c))).or_insert(id);
        }
        Deriver { program, names, origin, provenance: program.provenance(), applications: HashMap::new() }
    }

    fn made_by(&self, node: &ENode) -> Option<u32> {
        self.provenance.get(node).map(|p| p.id)
    }

    /// The applications that lead to some terms, in order, with what each of them took.
    fn needed(&mut self, terms: &[(NodeId, ENode)]) -> BTreeMap<u32, TakenTerms> {
        let mut out: BTreeMap<u32, TakenTerms> = BTreeMap::new();
        let mut seen: BTreeSet<u32> = BTreeSet::new();
        let mut todo: Vec<&Arc<Provenance>> = vec![];
        let visit = |n: &ENode, todo: &mut Vec<&'p Arc<Provenance>>, seen: &mut BTreeSet<u32>| {
            if !self.origin.contains_key(n)
                && let Some(p) = self.provenance.get(n)
                && seen.insert(p.id)
            {
                todo.push(p);
            }
        };
        terms.iter().for_each(|(_, n)| visit(n, &mut todo, &mut seen));
        let mut applications = HashMap::new();
        while let Some(p) = todo.pop() {
            let taken = self.taken(p);
            taken.iter().for_each(|(_, n)| visit(n, &mut todo, &mut seen));
            applications.insert(p.id, p.clone());
            out.insert(p.id, taken);
        }
        self.applications = applications;
        out
    }

    /// The terms that an application took, from the root of its pattern down.
    fn taken(&self, p: &Provenance) -> TakenTerms {
        let mut out = vec![];
        let mut covers = p.covers.iter();
        if let Pattern::Op(root) = &p.rule.pattern {
            self.take(root, p, &mut covers, &mut out);
        }
        out
    }

    /// Finds the term of one operator of a pattern, and those below it; its class.
    fn take<'c>(
        &self,
        o: &OpPattern,
        p: &Provenance,
        covers: &mut impl Iterator<Item = &'c Id>,
        out: &mut TakenTerms,
    ) -> Option<Id> {
        let eg = &self.program.eg;
        let class = eg.find(*covers.next()?);
        let at = out.len();
        let mut children: Vec<Option<Id>> = vec![];
        for a in &o.args {
            children.push(match a {
                Pattern::Op(inner) => self.take(inner, p, covers, out),
                Pattern::Var(v) => match &p.binds[*v] {
                    Some(Bind::Class(c)) => Some(eg.find(*c)),
                    _ => None,
                },
                Pattern::Number(_) => None,
            });
        }
        for v in o.optional.iter().chain(&o.rest) {
            if let Some(Bind::Classes(list)) = &p.binds[*v] {
                children.extend(list.iter().map(|c| Some(eg.find(*c))));
            }
        }
        let op = match &o.head {
            Head::Class(v, _) => match &p.binds[*v] {
                Some(Bind::Op(op)) => Some(op.clone()),
                _ => None,
            },
            Head::Op(kind) => {
                let value = |a: &AttrPattern| match a {
                    AttrPattern::Is(a) => Some(a.clone()),
                    AttrPattern::Var(v) => match &p.binds[*v] {
                        Some(Bind::Attr(a)) => Some(a.clone()),
                        _ => None,
                    },
                };
                let attrs: Option<Vec<_>> = o.attrs.iter().map(value).collect();
                attrs.and_then(|a| Op::from_attrs(kind.0.name, &a)).map(OpRef::new)
            }
        };
        let fits = |n: &ENode| {
            let same = |have: &[Id]| {
                have.len() == children.len() && have.iter().zip(&children).all(|(h, c)| c.is_none_or(|c| c == *h))
            };
            let plain: Vec<Id> = n.children.iter().map(|&c| eg.find(c)).collect();
            let mut swapped = plain.clone();
            if plain.len() >= 2 {
                swapped.swap(0, 1);
            }
            op.as_ref().is_some_and(|op| *op == n.op) && (same(&plain) || n.op.commutes() && same(&swapped))
        };
        if let Some(n) = eg[class].nodes.iter().find(|n| fits(n)) {
            out.insert(at, (class, n.clone().map_children(|c| eg.find(c))));
        }
        Some(class)
    }

    fn variables(&self, p: &Provenance) -> Vec<(String, String)> {
        let mut out = vec![];
        for (v, bind) in p.binds.iter().enumerate() {
            let name = &p.rule.vars[v];
            let text = match bind {
                Some(_) | None if name == "_" => continue,
                None => continue,
                Some(Bind::Attr(a)) => a.to_string(),
                Some(Bind::Op(op)) => op.to_string(),
                Some(Bind::Class(c)) => self.names.tensor(*c, p.facts.get(v).copied().flatten()),
                Some(Bind::Classes(cs)) => {
                    cs.iter().map(|c| self.names.tensor(*c, None)).collect::<Vec<_>>().join("; ")
                }
            };
            out.push((name.clone(), text));
        }
        out
    }
}
