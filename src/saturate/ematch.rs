//! Matching of rule patterns against e-classes, with typed attributes.

use egg::Id;
use smallvec::SmallVec;

use super::analysis::Graph;
use super::language::ENode;
use crate::ir::{Class, Mapping, TensorType};
use crate::rules::eval::{Bind, Known, holds, numbers_are_neutral};
use crate::rules::facts::Facts;
use crate::rules::lang::{AttrPattern, Guard, Head, OpPattern, Pattern, VarId};
use crate::rules::vocab::is_close;

/// A match: values for the variables, and the e-classes that the pattern's operators took.
#[derive(Clone, Debug)]
pub(super) struct Match {
    /// The class where the pattern matched.
    pub(super) root: Id,
    /// By variable.
    pub(super) binds: Vec<Option<Bind<Id>>>,
    /// Classes of the pattern's inner operators.
    pub(super) covers: SmallVec<[Id; 8]>,
}

/// Appends every match of a pattern in a class.
pub(super) fn matches(eg: &Graph, pattern: &Pattern, n_vars: usize, root: Id, out: &mut Vec<Match>) {
    let root = eg.find(root);
    let mut state = Matcher { eg, root, binds: vec![None; n_vars], covers: SmallVec::new(), out };
    state.go(Some(&Todo { pattern, class: root, next: None }));
}

/// Obligations that are still open: a list on the stack, so that backtracking costs nothing.
struct Todo<'t> {
    pattern: &'t Pattern,
    class: Id,
    next: Option<&'t Todo<'t>>,
}

struct Matcher<'a> {
    eg: &'a Graph,
    root: Id,
    binds: Vec<Option<Bind<Id>>>,
    covers: SmallVec<[Id; 8]>,
    out: &'a mut Vec<Match>,
}

impl Matcher<'_> {
    fn go(&mut self, todo: Option<&Todo<'_>>) {
        let Some(t) = todo else {
            self.out.push(Match { root: self.root, binds: self.binds.clone(), covers: self.covers.clone() });
            return;
        };
        let class = self.eg.find(t.class);
        match t.pattern {
            Pattern::Var(v) => {
                if let Some(undo) = self.bind(*v, || Bind::Class(class)) {
                    self.go(t.next);
                    self.undo(*v, undo);
                }
            }
            Pattern::Number(c) => {
                let f = &self.eg[class].data;
                if f.constant.as_ref().and_then(|l| l.splat()).is_some_and(|v| is_close(v, *c, f.ty().dtype)) {
                    self.go(t.next);
                }
            }
            Pattern::Op(p) => {
                let named = match p.var {
                    None => None,
                    Some(v) => match self.bind(v, || Bind::Class(class)) {
                        Some(undo) => Some((v, undo)),
                        None => return,
                    },
                };
                self.covers.push(class);
                for i in 0..self.eg[class].nodes.len() {
                    let node = &self.eg[class].nodes[i];
                    if head_matches(p, node) {
                        self.node(p, node, t.next);
                    }
                }
                self.covers.pop();
                if let Some((v, undo)) = named {
                    self.undo(v, undo);
                }
            }
        }
    }

    fn node(&mut self, p: &OpPattern, node: &ENode, next: Option<&Todo<'_>>) {
        // Bind the operator or its attributes, then the operands; undo in reverse.
        let mut undo: SmallVec<[(VarId, bool); 8]> = SmallVec::new();
        let mut ok = true;
        match &p.head {
            Head::Class(v, _) => match self.bind(*v, || Bind::Op(node.op.clone())) {
                Some(u) => undo.push((*v, u)),
                None => ok = false,
            },
            Head::Op(_) if p.attrs.is_empty() => {}
            Head::Op(_) => {
                for (want, have) in p.attrs.iter().zip(node.op.attrs()) {
                    match want {
                        AttrPattern::Is(a) if *a == have => {}
                        AttrPattern::Is(_) => ok = false,
                        AttrPattern::Var(v) => match self.bind(*v, || Bind::Attr(have)) {
                            Some(u) => undo.push((*v, u)),
                            None => ok = false,
                        },
                    }
                    if !ok {
                        break;
                    }
                }
            }
        }
        let mut left = node.children.get(p.args.len()..).unwrap_or(&[]);
        for (&v, all) in p.optional.iter().map(|v| (v, false)).chain(p.rest.iter().map(|v| (v, true))) {
            let (taken, rest) = left.split_at(if all { left.len() } else { left.len().min(1) });
            left = rest;
            match ok.then(|| self.bind(v, || Bind::Classes(SmallVec::from_slice(taken)))).flatten() {
                Some(u) => undo.push((v, u)),
                None => ok = false,
            }
        }
        if ok {
            self.operands(p, node, &node.children, next);
            let commutes = node.op.row().class == Class::Commutative;
            if let ([a, b], [x, y]) = (&p.args[..], &node.children[..])
                && commutes
                && x != y
                && a != b
            {
                let swapped = [*y, *x];
                self.operands(p, node, &swapped, next);
            }
        }
        for (v, u) in undo.into_iter().rev() {
            self.undo(v, u);
        }
    }

    fn operands(&mut self, p: &OpPattern, node: &ENode, classes: &[Id], next: Option<&Todo<'_>>) {
        if p.args.iter().any(|a| matches!(a, Pattern::Number(_))) {
            let types: SmallVec<[&[TensorType]; 4]> = classes.iter().map(|&c| &self.eg[c].data.types[..]).collect();
            let result = self.covers.last().map_or(&[][..], |&c| &self.eg[c].data.types[..]);
            if !numbers_are_neutral(&node.op, &types, &p.args, result) {
                return;
            }
        }
        match (&p.args[..], classes) {
            ([p, rest @ ..], [c, others @ ..]) => self.chain(p, *c, rest, others, next),
            _ => self.go(next),
        }
    }

    /// Builds the list of obligations for the operands on the stack, first operand first.
    fn chain(&mut self, p: &Pattern, c: Id, rest: &[Pattern], others: &[Id], next: Option<&Todo<'_>>) {
        match (rest.split_last(), others.get(..rest.len()).and_then(<[Id]>::split_last)) {
            (Some((last, rest)), Some((class, others))) => {
                self.chain(p, c, rest, others, Some(&Todo { pattern: last, class: *class, next }));
            }
            _ => self.go(Some(&Todo { pattern: p, class: c, next })),
        }
    }

    /// Binds a variable; `None` where it is bound to something else, else whether it was unbound before.
    fn bind(&mut self, v: VarId, value: impl FnOnce() -> Bind<Id>) -> Option<bool> {
        let value = value();
        match &self.binds[v] {
            None => {
                self.binds[v] = Some(value);
                Some(true)
            }
            Some(old) => {
                let equal = match (old, &value) {
                    (Bind::Class(a), Bind::Class(b)) => self.eg.find(*a) == self.eg.find(*b),
                    (a, b) => a == b,
                };
                equal.then_some(false)
            }
        }
    }

    fn undo(&mut self, v: VarId, was_unbound: bool) {
        if was_unbound {
            self.binds[v] = None;
        }
    }
}

/// Whether a term has the operator of a pattern, and as many operands.
pub(super) fn head_matches(p: &OpPattern, node: &ENode) -> bool {
    let head = match &p.head {
        Head::Op(kind) => std::ptr::eq(node.op.row(), kind.0),
        Head::Class(_, class) => class.contains_class(node.op.row().class),
    };
    let most = if p.rest.is_some() { usize::MAX } else { p.args.len() + p.optional.len() };
    head && (p.args.len()..=most).contains(&node.children.len())
}

impl Known<Id> for Graph {
    fn facts(&self, id: Id) -> &Facts {
        &self[id].data
    }
}

/// Checks the guards in order; bindings become part of the match.
pub(super) fn guards_hold(eg: &Graph, guards: &[Guard], m: &mut Match, mapping: &Mapping) -> bool {
    guards.iter().all(|g| holds(eg, g, &mut m.binds, mapping))
}

/// Depth of a pattern: how far below its root it looks.
pub(super) fn depth(p: &Pattern) -> usize {
    match p {
        Pattern::Var(_) | Pattern::Number(_) => 0,
        Pattern::Op(o) => 1 + o.args.iter().map(depth).max().unwrap_or(0),
    }
}
