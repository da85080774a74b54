//! Names for e-classes: those of the program's values, or else a term.

use egg::{Id, Language as _};

use super::derive::bits;
use super::from_ir::Program;
use super::language::ENode;
use super::run::Known;
use crate::explain::described;
use crate::ir::{Attr, Graph, NodeId, Real, value_name};

/// Depth of terms that have no name of their own.
const DEPTH: usize = 2;

pub(super) struct Names<'p> {
    program: &'p Program,
    /// By class.
    names: Vec<Option<&'p str>>,
}

impl<'p> Names<'p> {
    /// Names from the graph that went into the e-graph, then from that which came out.
    pub(super) fn new(program: &'p Program, before: &'p Graph, after: &'p Graph, classes: &[(NodeId, Id)]) -> Self {
        let eg = &program.eg;
        let mut names: Vec<Option<&str>> = vec![None; eg.nodes().len()];
        for ((_, n), id) in before.nodes().zip(&program.classes) {
            names[usize::from(eg.find(*id))].get_or_insert(&n.name);
        }
        for (id, class) in classes {
            names[usize::from(*class)].get_or_insert(&after.node(*id).name);
        }
        Names { program, names }
    }

    pub(super) fn program(&self) -> &'p Program {
        self.program
    }

    /// `%name`, or the term where there is no name.
    pub(super) fn class(&self, class: Id) -> String {
        self.at_depth(class, 0)
    }

    fn at_depth(&self, class: Id, depth: usize) -> String {
        let class = self.program.eg.find(class);
        match (self.names[usize::from(class)], self.program.eg[class].nodes.first()) {
            (Some(n), _) => value_name(n),
            (None, Some(n)) if depth < DEPTH => self.term(n, depth),
            (None, Some(n)) => format!("{}(..)", n.op.title()),
            (None, None) => "?".to_owned(),
        }
    }

    /// A term with the names of its operands.
    fn term(&self, node: &ENode, depth: usize) -> String {
        let text = node.op.to_string();
        if node.children().is_empty() {
            return text;
        }
        let operands: Vec<String> = node.children().iter().map(|&c| self.at_depth(c, depth + 1)).collect();
        let (head, attrs) = text.split_once(' ').unwrap_or((&text, ""));
        let space = if attrs.is_empty() { "" } else { " " };
        format!("{head}({}){space}{attrs}", operands.join(", "))
    }

    /// The type of a class, and the value of a constant whose elements are equal.
    pub(super) fn ty(&self, class: Id) -> String {
        let facts = &self.program.eg[self.program.eg.find(class)].data;
        let types: Vec<String> = facts.types.iter().map(ToString::to_string).collect();
        match facts.constant.as_ref().and_then(crate::ir::Literal::splat) {
            Some(x) => format!("{} of {}", types.join(", "), Attr::Real(Real(x))),
            None => types.join(", "),
        }
    }

    /// A tensor with its type, and with the facts that some functions of guards read.
    pub(super) fn tensor(&self, class: Id, functions: &[&str]) -> String {
        let class = self.program.eg.find(class);
        let known = bits(Known::of(&self.program.eg[class].data));
        described(&self.class(class), &self.ty(class), known, functions)
    }
}
