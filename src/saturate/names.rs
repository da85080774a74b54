//! Names for e-classes: those of the program's values, or else a term.

use std::collections::HashMap;

use egg::{Id, Language as _};

use super::from_ir::Program;
use super::language::ENode;
use super::run::Known;
use crate::ir::{Graph, NodeId};

/// Depth of terms that have no name of their own.
const DEPTH: usize = 2;

pub(super) struct Names<'p> {
    program: &'p Program,
    names: HashMap<Id, String>,
}

impl<'p> Names<'p> {
    /// Names from the graph that went into the e-graph, then from that which came out.
    pub(super) fn new(program: &'p Program, before: &Graph, after: &Graph, terms: &[(NodeId, ENode)]) -> Self {
        let eg = &program.eg;
        let mut names = HashMap::new();
        for ((_, n), id) in before.nodes().zip(&program.classes) {
            names.entry(eg.find(*id)).or_insert_with(|| n.name.clone());
        }
        for (id, node) in terms {
            if let Some(class) = eg.lookup(node.clone()) {
                names.entry(eg.find(class)).or_insert_with(|| after.node(*id).name.clone());
            }
        }
        Names { program, names }
    }

    pub(super) fn has(&self, class: Id) -> bool {
        self.names.contains_key(&self.program.eg.find(class))
    }

    /// `%name`, or the term where there is no name.
    pub(super) fn class(&self, class: Id) -> String {
        self.at_depth(class, 0)
    }

    fn at_depth(&self, class: Id, depth: usize) -> String {
        let class = self.program.eg.find(class);
        match (self.names.get(&class), self.program.eg[class].nodes.first()) {
            (Some(n), _) => format!("%{n}"),
            (None, Some(n)) if depth < DEPTH => self.nested(n, depth),
            (None, Some(n)) => format!("{}(..)", n.op.name()),
            (None, None) => "?".to_owned(),
        }
    }

    /// A term with the names of its operands.
    pub(super) fn term(&self, node: &ENode) -> String {
        self.nested(node, 0)
    }

    fn nested(&self, node: &ENode, depth: usize) -> String {
        let operands: Vec<String> = node.children().iter().map(|&c| self.at_depth(c, depth + 1)).collect();
        if node.children().is_empty() {
            return node.op.to_string();
        }
        let text = node.op.to_string();
        let (head, attrs) = text.split_once(' ').unwrap_or((&text, ""));
        let space = if attrs.is_empty() { "" } else { " " };
        format!("{head}({}){space}{attrs}", operands.join(", "))
    }

    /// A tensor with its type and, where they are given, its facts.
    pub(super) fn tensor(&self, class: Id, known: Option<Known>) -> String {
        let class = self.program.eg.find(class);
        let types: Vec<String> = self.program.eg[class].data.types.iter().map(ToString::to_string).collect();
        let mut text = format!("{}: {}", self.class(class), types.join(", "));
        if let Some(k) = known {
            text += if k.replicated { ", replicated" } else { ", varying" };
            for (holds, word) in [(k.weight, ", weight"), (k.leaf, ", leaf"), (k.free, ", free")] {
                text += if holds { word } else { "" };
            }
        }
        text
    }
}
