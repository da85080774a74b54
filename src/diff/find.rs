//! From an alignment to the differences, grouped.

use std::collections::BTreeMap;

use super::align::{Align, Side, stem};
use super::{Counts, Diff, Hunk, Kind, Site};
use crate::ir::{Class, Graph, Node, NodeId, Op, Output, print_node, value_name};

/// Equal keys are one hunk: kind, stage, before, after.
type Key = (Kind, Option<usize>, Vec<String>, Vec<String>);

struct Finder<'a> {
    al: Align<'a>,
    found: Vec<(Key, Site)>,
    notes: Vec<String>,
}

pub(super) fn find(a: &Graph, b: &Graph) -> Diff {
    let mut f = Finder { al: Align::new(a, b), found: vec![], notes: vec![] };
    f.inputs();
    f.outputs();
    f.regions();
    f.pairs();
    // Sites stay in graph order; so do the hunks of one kind and stage.
    let mut index: BTreeMap<Key, usize> = BTreeMap::new();
    let mut hunks: Vec<Hunk> = vec![];
    for (key, site) in f.found {
        let at = *index.entry(key).or_insert_with_key(|(kind, stage, before, after)| {
            let (before, after) = (before.clone(), after.clone());
            hunks.push(Hunk { kind: *kind, stage: *stage, before, after, sites: vec![] });
            hunks.len() - 1
        });
        hunks[at].sites.push(site);
    }
    hunks.sort_by_key(|h| (h.kind, h.stage));
    Diff { hunks, notes: f.notes, before: counts(a), after: counts(b) }
}

fn counts(graph: &Graph) -> Counts {
    let mut out = Counts::new();
    for (_, n) in graph.nodes() {
        *out.entry(n.op.title().to_owned()).or_insert(0) += 1;
    }
    out
}

fn is_input(node: &Node) -> bool {
    matches!(node.op, Op::Input { .. })
}

/// The name of a node for people: a tuple is named after what it was made from.
fn label(node: &Node) -> String {
    value_name(if node.types.len() > 1 { stem(node) } else { &node.name })
}

fn types(node: &Node) -> String {
    let list: Vec<String> = node.types.iter().map(ToString::to_string).collect();
    list.join(", ")
}

/// What an output is beside its name and value.
fn form(o: &Output) -> [String; 2] {
    let part = o.part.map(|p| format!("{} parts of axis {} over {}", p.parts, p.dim, p.axis.name()));
    [if o.state { "state" } else { "no state" }.to_owned(), part.unwrap_or("whole".to_owned())]
}

/// Sets that grow together.
struct Sets(Vec<usize>);

impl Sets {
    fn find(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    /// The smaller index stands for the set.
    fn join(&mut self, i: usize, j: usize) {
        let (i, j) = (self.find(i), self.find(j));
        self.0[i.max(j)] = i.min(j);
    }
}

impl<'a> Finder<'a> {
    fn add(&mut self, kind: Kind, stage: Option<usize>, before: Vec<String>, after: Vec<String>, site: Site) {
        self.found.push(((kind, stage, before, after), site));
    }

    fn lines(&self, a: impl IntoIterator<Item = NodeId>, b: impl IntoIterator<Item = NodeId>) -> Vec<String> {
        let (before, after) = (self.al.a.graph, self.al.b.graph);
        let before = a.into_iter().map(|i| format!("-{}", print_node(before, i)));
        before.chain(b.into_iter().map(|i| format!("+{}", print_node(after, i)))).collect()
    }

    /// Inputs are the caller's: their names and order count.
    fn inputs(&mut self) {
        let (a, b) = (self.al.a.graph, self.al.b.graph);
        let mut order = vec![];
        for (i, n) in a.nodes().filter(|(_, n)| is_input(n)) {
            let Some(t) = self.al.a.twin[i.index()] else {
                let site = Site { lines: self.lines([i], []), ..Site::default() };
                self.add(Kind::Input, None, vec![print_node(a, i)], vec![], site);
                continue;
            };
            order.push((t, n));
            if b.node(t).name != n.name {
                let site = Site { lines: self.lines([i], [t]), ..Site::default() };
                self.add(Kind::Input, None, vec![label(n)], vec![label(b.node(t))], site);
            }
        }
        let new: Vec<NodeId> = b.ids().filter(|&i| is_input(b.node(i)) && self.al.b.is_free(i)).collect();
        for i in new {
            let site = Site { lines: self.lines([], [i]), ..Site::default() };
            self.add(Kind::Input, None, vec![], vec![print_node(b, i)], site);
        }
        if !order.is_sorted_by_key(|(t, _)| *t) {
            let before = order.iter().map(|(_, n)| label(n)).collect();
            order.sort_by_key(|(t, _)| *t);
            let after = order.iter().map(|(t, _)| label(b.node(*t))).collect();
            self.add(Kind::Input, None, before, after, Site::default());
        }
    }

    fn outputs(&mut self) {
        let (a, b) = (self.al.a.graph, self.al.b.graph);
        let by_name: BTreeMap<&str, usize> =
            b.outputs().iter().enumerate().map(|(i, o)| (o.name.as_str(), i)).collect();
        let known: BTreeMap<&str, ()> = a.outputs().iter().map(|o| (o.name.as_str(), ())).collect();
        let text = |g: &Graph, o: &Output| format!("{:?} = {}", o.name, label(g.node(o.value)));
        let mut order = vec![];
        for o in a.outputs() {
            let Some(&at) = by_name.get(o.name.as_str()) else {
                self.add(Kind::Output, None, vec![text(a, o)], vec![], Site::default());
                continue;
            };
            order.push(at);
            let p = &b.outputs()[at];
            let site = Site { name: format!("{:?}", o.name), ..Site::default() };
            let (before, after): (Vec<String>, Vec<String>) =
                form(o).into_iter().zip(form(p)).filter(|(x, y)| x != y).unzip();
            if !before.is_empty() {
                self.add(Kind::Output, None, before, after, site.clone());
            }
            let told = self.al.a.is_free(o.value) || self.al.b.is_free(p.value);
            if !told && !self.al.same(o.value, p.value) {
                let (before, after) = (label(a.node(o.value)), label(b.node(p.value)));
                self.add(Kind::Output, None, vec![before], vec![after], site);
            }
        }
        for o in b.outputs().iter().filter(|o| !known.contains_key(o.name.as_str())) {
            self.add(Kind::Output, None, vec![], vec![text(b, o)], Site::default());
        }
        if !order.is_sorted() {
            let names = |list: &[usize]| list.iter().map(|&i| format!("{:?}", b.outputs()[i].name)).collect();
            let before = names(&order);
            order.sort_unstable();
            self.add(Kind::Output, None, before, names(&order), Site::default());
        }
    }

    /// Connected nodes without counterpart, of both graphs, that lie between the same values.
    fn regions(&mut self) {
        let (a, b) = (self.al.a.graph, self.al.b.graph);
        let n = a.len();
        let mut sets = Sets((0..n + b.len()).collect());
        // Nodes with one result that have a value, in each graph.
        let mut holders: BTreeMap<u32, (Vec<NodeId>, Vec<NodeId>)> = BTreeMap::new();
        for (id, _) in a.nodes().filter(|(_, n)| n.types.len() == 1) {
            holders.entry(self.al.a.values[id.index()][0]).or_default().0.push(id);
        }
        for (id, _) in b.nodes().filter(|(_, n)| n.types.len() == 1) {
            holders.entry(self.al.b.values[id.index()][0]).or_default().1.push(id);
        }
        for (xs, ys) in holders.values() {
            let xs = xs.iter().filter(|i| self.al.a.is_free(**i)).map(|i| i.index());
            let ys = ys.iter().filter(|i| self.al.b.is_free(**i)).map(|i| n + i.index());
            let (xs, ys): (Vec<usize>, Vec<usize>) = (xs.collect(), ys.collect());
            if let (Some(&x), false) = (xs.first(), ys.is_empty()) {
                xs[1..].iter().chain(&ys).for_each(|&y| sets.join(x, y));
            }
        }
        for (side, base) in [(&self.al.a, 0), (&self.al.b, n)] {
            for (id, node) in side.graph.nodes().filter(|(i, _)| side.is_free(*i)) {
                for &p in node.inputs.iter().filter(|p| side.is_free(**p) && !side.is_leaf(**p)) {
                    // A value that both graphs have is a border, unless it is only what a tuple holds.
                    let whole = side.node(p).types.len() > 1;
                    let both =
                        holders.get(&side.values[p.index()][0]).is_some_and(|h| !h.0.is_empty() && !h.1.is_empty());
                    if whole || !both {
                        sets.join(base + id.index(), base + p.index());
                    }
                }
            }
            // What is read goes with its first reader. Readers come later, so each reader's set is known.
            let mut reader: Vec<Option<NodeId>> = vec![None; side.graph.len()];
            for (id, node) in side.graph.nodes().rev().filter(|(i, _)| side.is_free(*i)) {
                node.inputs.iter().for_each(|p| reader[p.index()] = Some(id));
            }
            for id in side.graph.ids().filter(|&i| side.is_free(i) && side.is_leaf(i)) {
                if let Some(r) = reader[id.index()] {
                    sets.join(base + id.index(), base + r.index());
                }
            }
        }
        // Both feed the same operand of nodes that correspond, or the same output.
        let mut feeds = vec![];
        for (x, node) in a.nodes() {
            if let Some(y) = self.al.a.twin[x.index()] {
                feeds.extend(self.al.slots(node, b.node(y)));
            }
        }
        let given: BTreeMap<&str, NodeId> = b.outputs().iter().map(|o| (o.name.as_str(), o.value)).collect();
        feeds.extend(a.outputs().iter().filter_map(|o| Some((o.value, *given.get(o.name.as_str())?))));
        for (x, y) in feeds {
            if self.al.a.is_free(x) && self.al.b.is_free(y) {
                sets.join(x.index(), n + y.index());
            }
        }

        let mut regions: BTreeMap<usize, (Vec<NodeId>, Vec<NodeId>)> = BTreeMap::new();
        for id in a.ids().filter(|&i| self.al.a.is_free(i) && !is_input(a.node(i))) {
            regions.entry(sets.find(id.index())).or_default().0.push(id);
        }
        for id in b.ids().filter(|&i| self.al.b.is_free(i) && !is_input(b.node(i))) {
            regions.entry(sets.find(n + id.index())).or_default().1.push(id);
        }
        for (xs, ys) in regions.into_values() {
            self.region(&xs, &ys);
        }
    }

    fn region(&mut self, xs: &[NodeId], ys: &[NodeId]) {
        let (a, b) = (&self.al.a, &self.al.b);
        let work = |s: &Side<'a>, id: NodeId| !s.is_leaf(id) && !matches!(s.node(id).op, Op::Get { .. });
        let any = xs.iter().any(|&i| work(a, i)) || ys.iter().any(|&i| work(b, i));
        let told = |s: &Side<'a>, ids: &[NodeId]| -> Vec<&'a Node> {
            ids.iter().filter(|&&i| !any || work(s, i)).map(|&i| s.node(i)).collect()
        };
        let (before, after) = (told(a, xs), told(b, ys));
        let is_fused = |n: &Node| n.op.info().class == Class::Fused;
        let fused = |list: &[&Node]| list.iter().filter(|n| is_fused(n)).count();
        let kind = match (fused(&before), fused(&after)) {
            (f, g) if f > g => Kind::FusionLost,
            (f, g) if f < g => Kind::FusionGained,
            (1.., _) => Kind::FusionChanged,
            _ if after.is_empty() => Kind::Removed,
            _ if before.is_empty() => Kind::Added,
            _ => Kind::Replaced,
        };
        let all = || before.iter().chain(&after);
        let stage = all().find_map(|n| n.stage);
        let ops = |list: &[&Node]| list.iter().map(|n| n.op.title().to_owned()).collect();
        let names = |list: &[&Node]| list.iter().map(|n| label(n)).collect();
        let site = Site {
            name: all().find(|n| is_fused(n)).or(all().next()).map(|n| label(n)).unwrap_or_default(),
            before: names(&before),
            after: names(&after),
            lines: self.lines(xs.iter().copied(), ys.iter().copied()),
        };
        self.add(kind, stage, ops(&before), ops(&after), site);
    }

    /// Nodes that correspond but are not the same.
    fn pairs(&mut self) {
        let (a, b) = (self.al.a.graph, self.al.b.graph);
        let (mut renamed, mut weights, mut retyped) = (vec![], 0, 0);
        for (x, m) in a.nodes() {
            let Some(y) = self.al.a.twin[x.index()] else { continue };
            let n = b.node(y);
            if m.name != n.name && !is_input(m) {
                renamed.push(format!("{} -> {}", value_name(&m.name), value_name(&n.name)));
                weights += usize::from(matches!(m.op, Op::Weight { .. }));
            }
            let site = || Site { name: label(m), lines: self.lines([x], [y]), ..Site::default() };
            let name = m.op.title();
            let (before, after) = changed_attributes(&m.op, &n.op);
            let same_attributes = before.is_empty();
            let slots = self.al.slots(m, n);
            let mut found = vec![];
            if !same_attributes {
                let text = |list: &[String]| vec![format!("{name} {{{}}}", list.join(", "))];
                found.push((Kind::Attributes, n.stage, text(&before), text(&after), site()));
            }
            if m.types != n.types {
                // A type follows from operands and attributes; only where it starts is a difference of its own.
                let follows = slots.iter().any(|(p, q)| {
                    self.al.a.is_free(*p) || self.al.b.is_free(*q) || a.node(*p).types != b.node(*q).types
                });
                if follows || !same_attributes {
                    retyped += 1;
                } else {
                    let text = |n: &Node| vec![format!("{name}: {}", types(n))];
                    found.push((Kind::Type, None, text(m), text(n), site()));
                }
            }
            if m.stage != n.stage {
                let text = |n: &Node| vec![n.stage.map_or("any stage".to_owned(), |s| format!("stage {s}"))];
                found.push((Kind::Stage, None, text(m), text(n), site()));
            }
            // Where an operand has no counterpart, its region is told instead.
            let other =
                slots.iter().any(|(p, q)| !self.al.same(*p, *q) && !self.al.a.is_free(*p) && !self.al.b.is_free(*q));
            if other || m.inputs.len() != n.inputs.len() {
                let list = |g: &Graph, n: &Node| n.inputs.iter().map(|i| label(g.node(*i))).collect::<Vec<_>>();
                let text = |l: Vec<String>| vec![format!("{name}({})", l.join(", "))];
                found.push((Kind::Operands, n.stage, text(list(a, m)), text(list(b, n)), site()));
            }
            for (kind, stage, before, after, site) in found {
                self.add(kind, stage, before, after, site);
            }
        }
        if retyped > 0 {
            self.notes.push(format!("{retyped} more values have another type because of this"));
        }
        if !renamed.is_empty() {
            let shown = renamed.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let more = if renamed.len() > 3 { ", ..." } else { "" };
            let weights = if weights > 0 { format!(", {weights} of them weights") } else { String::new() };
            let s = if renamed.len() == 1 { "" } else { "s" };
            self.notes.push(format!("{} renamed value{s}{weights}: {shown}{more}", renamed.len()));
        }
    }
}

/// The attributes that differ, before and after; names and types of inputs and weights are compared apart.
fn changed_attributes(a: &Op, b: &Op) -> (Vec<String>, Vec<String>) {
    if a == b || matches!(a, Op::Input { .. } | Op::Weight { .. }) {
        return (vec![], vec![]);
    }
    let (mut before, mut after) = (vec![], vec![]);
    for ((x, y), info) in a.attrs().iter().zip(&b.attrs()).zip(&a.info().attrs).filter(|((x, y), _)| x != y) {
        before.push(format!("{} = {x}", info.name));
        after.push(format!("{} = {y}", info.name));
    }
    (before, after)
}
