//! Which node of one graph corresponds to which of the other.
//!
//! Equal values come first: they need no names. What a real change separates is then found from its
//! readers, its name, and its operands, the surest sign first, and each find makes more values equal.

use std::collections::{BTreeMap, HashMap};

use super::numbers::{Numbers, essence};
use crate::ir::{Class, Graph, Node, NodeId, Op};

/// Sweeps over all signs that may start again from the surest. More would only matter where each sweep finds
/// little, and then what is left goes by the weaker signs.
const MAX_RESTARTS: usize = 32;

/// Candidates of one value that are looked at.
const MAX_CANDIDATES: usize = 8;

/// Readers of a value that are looked at.
const MAX_READERS: usize = 64;

/// A reader of a value, and the position of the operand.
type Use = (NodeId, usize);

pub(super) struct Side<'a> {
    pub(super) graph: &'a Graph,
    /// The node of the other graph.
    pub(super) twin: Vec<Option<NodeId>>,
    /// Numbers of each node's results.
    pub(super) values: Vec<Vec<u32>>,
    uses: Vec<Vec<Use>>,
    names: HashMap<&'a str, NodeId>,
    /// By name without the operator that a rule appended to it, and operator.
    stems: HashMap<(&'a str, &'static str), NodeId>,
}

/// A name without the operator that a rule appended to it: `x` of `x.matmul`.
pub(super) fn stem(node: &Node) -> &str {
    let short = node.name.strip_suffix(node.op.title()).and_then(|n| n.strip_suffix('.'));
    short.filter(|n| !n.is_empty()).unwrap_or(&node.name)
}

impl<'a> Side<'a> {
    fn new(graph: &'a Graph) -> Side<'a> {
        let mut uses = vec![vec![]; graph.len()];
        let (mut names, mut stems) = (HashMap::new(), HashMap::new());
        for (id, n) in graph.nodes() {
            n.inputs.iter().enumerate().for_each(|(slot, i)| uses[i.index()].push((id, slot)));
            names.entry(n.name.as_str()).or_insert(id);
            stems.entry((stem(n), n.op.name())).or_insert(id);
        }
        Side { graph, twin: vec![None; graph.len()], values: vec![vec![]; graph.len()], uses, names, stems }
    }

    pub(super) fn node(&self, id: NodeId) -> &'a Node {
        self.graph.node(id)
    }

    pub(super) fn is_free(&self, id: NodeId) -> bool {
        self.twin[id.index()].is_none()
    }

    /// Whether it is a leaf, or the part of one that a rank holds.
    pub(super) fn is_leaf(&self, id: NodeId) -> bool {
        let mut node = self.node(id);
        while let (Op::Shard { .. }, Some(&i)) = (&node.op, node.inputs.first()) {
            node = self.node(i);
        }
        node.op.info().class == Class::Leaf
    }

    fn operands(&self, node: &Node) -> Vec<&[u32]> {
        node.inputs.iter().map(|i| &self.values[i.index()][..]).collect()
    }

    /// The only reader with an operator at a position.
    fn only(&self, id: NodeId, op: &str, slot: usize) -> Option<NodeId> {
        let mut all = self.uses[id.index()].iter().filter(|(u, s)| *s == slot && self.node(*u).op.name() == op);
        let first = all.next()?.0;
        all.next().is_none().then_some(first)
    }
}

pub(super) struct Align<'a> {
    pub(super) a: Side<'a>,
    pub(super) b: Side<'a>,
    /// Nodes of `b` whose value is that of a node of `a` with another operator.
    stand_in: HashMap<NodeId, NodeId>,
    numbers: Numbers,
}

impl<'a> Align<'a> {
    pub(super) fn new(a: &'a Graph, b: &'a Graph) -> Align<'a> {
        let mut out = Align { a: Side::new(a), b: Side::new(b), stand_in: HashMap::new(), numbers: Numbers::default() };
        for (id, n) in a.nodes() {
            let results = out.numbers.results(n, &out.a.operands(n));
            out.a.values[id.index()] = results;
        }
        out.forward();
        let signs: [fn(&mut Align<'a>) -> bool; 8] = [
            |s| s.backward(true),
            |s| s.by_name(Trust::Neighbour),
            Align::anchors,
            |s| s.backward(false),
            |s| s.by_name(Trust::NoConflict),
            Align::readers,
            |s| s.by_name(Trust::Name),
            Align::other_operator,
        ];
        let (mut sign, mut restarts) = (0, 0);
        while sign < signs.len() {
            if !signs[sign](&mut out) {
                sign += 1;
                continue;
            }
            out.forward();
            restarts += 1;
            sign = if restarts < MAX_RESTARTS { 0 } else { sign + 1 };
        }
        out
    }

    fn pair(&mut self, a: NodeId, b: NodeId) {
        self.a.twin[a.index()] = Some(b);
        self.b.twin[b.index()] = Some(a);
    }

    /// Numbers the values of `b`, and pairs nodes that compute equal values by equal operators.
    fn forward(&mut self) {
        let mut by_value: HashMap<(u32, &'static str), Vec<NodeId>> = HashMap::new();
        for (id, n) in self.a.graph.nodes().rev().filter(|(id, _)| self.a.is_free(*id)) {
            by_value.entry((self.a.values[id.index()][0], n.op.name())).or_default().push(id);
        }
        for (b, n) in self.b.graph.nodes() {
            let same = self.b.twin[b.index()].or_else(|| self.stand_in.get(&b).copied());
            let values = match same {
                Some(a) => self.a.values[a.index()].clone(),
                None => self.numbers.results(n, &self.b.operands(n)),
            };
            let first = values[0];
            self.b.values[b.index()] = values;
            if !self.b.is_free(b) {
                continue;
            }
            let Some(list) = by_value.get_mut(&(first, n.op.name())) else { continue };
            while list.last().is_some_and(|&a| !self.a.is_free(a)) {
                list.pop();
            }
            let (op, values) = (essence(&n.op), &self.b.values[b.index()]);
            let fits = |a: NodeId| {
                let m = self.a.node(a);
                self.a.is_free(a)
                    && m.op.name() == n.op.name()
                    && self.a.values[a.index()] == *values
                    && essence(&m.op) == op
                    && self.reads_alike(m, n)
            };
            let named = self.a.names.get(n.name.as_str()).copied().filter(|&a| fits(a));
            let found = named.or_else(|| list.iter().rev().take(MAX_CANDIDATES).copied().find(|&a| fits(a)));
            if let Some(a) = found {
                self.pair(a, b);
            }
        }
    }

    /// The pairs of operands of two nodes with the same operator; exchanged where that fits better.
    pub(super) fn slots(&self, a: &Node, b: &Node) -> Vec<(NodeId, NodeId)> {
        let mut out: Vec<(NodeId, NodeId)> = a.inputs.iter().copied().zip(b.inputs.iter().copied()).collect();
        if a.op.commutes() && b.op.commutes() && out.len() >= 2 {
            let agree = |x: NodeId, y: NodeId| match (self.a.twin[x.index()], self.b.twin[y.index()]) {
                (Some(t), _) => 8 * i32::from(t == y),
                (None, Some(_)) => 0,
                (None, None) => {
                    let (m, n) = (self.a.node(x), self.b.node(y));
                    let value = self.a.values[x.index()][0] == self.b.values[y.index()][0];
                    4 * i32::from(value) + 2 * i32::from(m.name == n.name) + i32::from(m.op.name() == n.op.name())
                }
            };
            let ((p, q), (r, s)) = (out[0], out[1]);
            if agree(p, s) + agree(r, q) > agree(p, q) + agree(r, s) {
                (out[0].1, out[1].1) = (s, q);
            }
        }
        out
    }

    /// Whether two free nodes may correspond, as far as the operator tells.
    fn alike(&self, a: NodeId, b: NodeId) -> bool {
        let (m, n) = (self.a.node(a), self.b.node(b));
        self.a.is_free(a)
            && self.b.is_free(b)
            && m.op.name() == n.op.name()
            && m.types.len() == n.types.len()
            && (!matches!(m.op, Op::Get { .. } | Op::Const { .. }) || m.op == n.op || m.name == n.name)
            && self.reads_alike(m, n)
    }

    /// A `get` or `boundary` goes where its operand goes.
    fn reads_alike(&self, a: &Node, b: &Node) -> bool {
        let (Op::Get { .. } | Op::Boundary { .. }, &[x, ..], &[y, ..]) = (&a.op, &a.inputs[..], &b.inputs[..]) else {
            return true;
        };
        let (m, n) = (self.a.node(x), self.b.node(y));
        match self.a.twin[x.index()] {
            Some(t) => t == y,
            None if matches!(m.op, Op::Get { .. }) => self.b.is_free(y) && m.op == n.op,
            None => self.b.is_free(y) && m.op.name() == n.op.name(),
        }
    }

    /// How many operands and readers correspond; `None` if one corresponds to another one.
    fn neighbours(&self, a: NodeId, b: NodeId) -> Option<usize> {
        let mut known = 0;
        for (x, y) in self.slots(self.a.node(a), self.b.node(b)) {
            match (self.a.twin[x.index()], self.b.twin[y.index()]) {
                (Some(t), _) if t == y => known += 1,
                (Some(_), Some(_)) => return None,
                (None, None) => {}
                // A node without counterpart may have come between, but not where there is nothing to read.
                _ if self.a.is_leaf(x) && self.b.is_leaf(y) => return None,
                _ => {}
            }
        }
        let readers = &self.b.uses[b.index()];
        for (u, slot) in self.a.uses[a.index()].iter().take(MAX_READERS) {
            let Some(t) = self.a.twin[u.index()] else { continue };
            known += usize::from(readers.contains(&(t, *slot)));
        }
        Some(known)
    }

    /// Pairs the operands of nodes that correspond, from the outputs up. With `careful`, a node stays free
    /// where one of its name waits on the other side.
    fn backward(&mut self, careful: bool) -> bool {
        let mut found = false;
        let mut given: HashMap<&str, NodeId> = HashMap::new();
        for o in self.a.graph.outputs() {
            given.entry(&o.name).or_insert(o.value);
        }
        for o in self.b.graph.outputs() {
            if let Some(&a) = given.get(o.name.as_str()) {
                found |= self.propose(a, o.value, careful);
            }
        }
        for (b, n) in self.b.graph.nodes().rev() {
            let Some(a) = self.b.twin[b.index()] else { continue };
            for (x, y) in self.slots(self.a.node(a), n) {
                found |= self.propose(x, y, careful);
            }
        }
        found
    }

    fn propose(&mut self, a: NodeId, b: NodeId, careful: bool) -> bool {
        let (m, n) = (self.a.node(a), self.b.node(b));
        if !self.alike(a, b) || self.neighbours(a, b).is_none() {
            return false;
        }
        let leaf = m.op.info().class == Class::Leaf;
        if careful && m.name != n.name {
            let waits = |side: &Side<'a>, name: &str, op: &Op| {
                side.names.get(name).is_some_and(|&i| side.is_free(i) && side.node(i).op.name() == op.name())
            };
            let unsure = !leaf && m.op != n.op;
            if unsure || waits(&self.b, &m.name, &m.op) || waits(&self.a, &n.name, &n.op) {
                return false;
            }
        }
        self.pair(a, b);
        true
    }

    /// Pairs the only readers of a kind of values that correspond.
    fn anchors(&mut self) -> bool {
        let mut found = false;
        for a in self.a.graph.ids() {
            let Some(b) = self.a.twin[a.index()] else { continue };
            for i in 0..self.a.uses[a.index()].len() {
                let (u, slot) = self.a.uses[a.index()][i];
                if !self.a.is_free(u) {
                    continue;
                }
                let op = self.a.node(u).op.name();
                if self.a.only(a, op, slot) == Some(u)
                    && let Some(v) = self.b.only(b, op, slot)
                {
                    found |= self.propose(u, v, false);
                }
            }
        }
        found
    }

    /// Pairs the free readers of a kind of values that correspond, in order, where there are equally many.
    fn readers(&mut self) -> bool {
        let mut found = false;
        for a in self.a.graph.ids() {
            let Some(b) = self.a.twin[a.index()] else { continue };
            let kinds = |side: &Side<'a>, id: NodeId| {
                let mut out: BTreeMap<(&str, usize), Vec<NodeId>> = BTreeMap::new();
                for &(u, slot) in side.uses[id.index()].iter().filter(|(u, _)| side.is_free(*u)).take(MAX_READERS) {
                    out.entry((side.node(u).op.name(), slot)).or_default().push(u);
                }
                out
            };
            let (xs, mut ys) = (kinds(&self.a, a), kinds(&self.b, b));
            for (kind, xs) in xs {
                let ys = ys.remove(&kind).unwrap_or_default();
                if xs.len() == ys.len() {
                    xs.into_iter().zip(ys).for_each(|(x, y)| found |= self.propose(x, y, false));
                }
            }
        }
        found
    }

    /// Pairs nodes of equal name and operator, operands first.
    fn by_name(&mut self, trust: Trust) -> bool {
        let mut found = false;
        for (b, n) in self.b.graph.nodes() {
            let named = [self.a.names.get(n.name.as_str()), self.a.stems.get(&(stem(n), n.op.name()))];
            let Some(a) = named.into_iter().flatten().copied().find(|&a| self.alike(a, b)) else { continue };
            let accepted = match (trust, self.neighbours(a, b)) {
                (Trust::Neighbour, known) => known.is_some_and(|k| k > 0),
                (Trust::NoConflict, known) => known.is_some(),
                (Trust::Name, _) => true,
            };
            if accepted {
                self.pair(a, b);
                found = true;
            }
        }
        found
    }

    /// Takes values of equal name as equal where the operators differ.
    fn other_operator(&mut self) -> bool {
        let mut found = false;
        for (b, n) in self.b.graph.nodes() {
            let Some(&a) = self.a.names.get(n.name.as_str()) else { continue };
            let free = self.a.is_free(a) && self.b.is_free(b) && !self.stand_in.contains_key(&b);
            if free && n.types.len() == 1 && self.a.node(a).types.len() == 1 {
                self.stand_in.insert(b, a);
                found = true;
            }
        }
        found
    }

    /// Whether two operands are the same value of the program.
    pub(super) fn same(&self, a: NodeId, b: NodeId) -> bool {
        self.a.twin[a.index()] == Some(b)
    }
}

/// What equal names need in addition.
#[derive(Clone, Copy)]
enum Trust {
    /// An operand or reader that corresponds, and none that corresponds to another one.
    Neighbour,
    /// None that corresponds to another one.
    NoConflict,
    /// Nothing.
    Name,
}
