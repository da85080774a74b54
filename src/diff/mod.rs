//! What differs between two graphs, in as few lines as a reviewer needs.
//!
//! Nodes are aligned by the values that they compute, and only then by name, so that one lost fusion is one
//! difference and not a renumbered file. Equal differences at corresponding places, such as all layers, are one
//! line with a count. Names of inner values and weights are no part of what a program computes: a renamed value
//! is a note, not a difference. Names of inputs and outputs are.

mod align;
mod find;
mod numbers;
mod text;

use std::collections::BTreeMap;

use crate::ir::{Class, Graph, op};

/// What kind of difference; in the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The sizes of the mesh.
    Mapping,
    /// A graph input: added, removed, renamed or moved.
    Input,
    /// A graph output: added, removed, moved, or of another form or value.
    Output,
    /// Fewer fused operators compute the same region.
    FusionLost,
    /// More fused operators do.
    FusionGained,
    /// As many, but other ones.
    FusionChanged,
    /// Other operators between the same values.
    Replaced,
    /// Operators that only the first graph has.
    Removed,
    /// Operators that only the second graph has.
    Added,
    /// Attributes of an operator.
    Attributes,
    /// Element type or shape, where it starts to differ.
    Type,
    /// The pipeline stage of a node.
    Stage,
    /// The values that an operator reads, all of which both graphs have.
    Operands,
    /// The communication of the ranks.
    Certificate,
}

impl Kind {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Mapping => "mapping",
            Kind::Input => "input",
            Kind::Output => "output",
            Kind::FusionLost => "fusion-lost",
            Kind::FusionGained => "fusion-gained",
            Kind::FusionChanged => "fusion-changed",
            Kind::Replaced => "replaced",
            Kind::Removed => "removed",
            Kind::Added => "added",
            Kind::Attributes => "attributes",
            Kind::Type => "type",
            Kind::Stage => "stage",
            Kind::Operands => "operands",
            Kind::Certificate => "certificate",
        }
    }
}

/// One difference, at one or more corresponding places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hunk {
    /// What kind.
    pub kind: Kind,
    /// The pipeline stage, where it has one.
    pub stage: Option<usize>,
    /// What the first graph has: operators in graph order, or the form before.
    pub before: Vec<String>,
    /// What the second graph has.
    pub after: Vec<String>,
    /// Where.
    pub sites: Vec<Site>,
}

/// A place where two graphs differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// The name that stands for it.
    pub name: String,
    /// Value names, one for each of the hunk's `before` where that lists operators.
    pub before: Vec<String>,
    /// The same for `after`.
    pub after: Vec<String>,
    /// Lines of the text form, after `-` or `+`.
    pub lines: Vec<String>,
}

/// Nodes by operator.
pub type Counts = BTreeMap<String, usize>;

/// The differences between two graphs.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    /// In order of kind, stage and place.
    pub hunks: Vec<Hunk>,
    /// What is no difference but good to know.
    pub notes: Vec<String>,
    /// Nodes of the first graph by operator.
    pub before: Counts,
    /// Nodes of the second graph by operator.
    pub after: Counts,
}

/// Compares two verified graphs.
pub fn diff(a: &Graph, b: &Graph) -> Diff {
    find::find(a, b)
}

impl Diff {
    /// Whether the graphs are the same program.
    pub fn is_equal(&self) -> bool {
        self.hunks.is_empty()
    }

    /// Adds a difference that the graphs do not show; it is told in the order of kinds.
    pub fn push(&mut self, kind: Kind, before: String, after: String) {
        let at = self.hunks.iter().position(|h| h.kind > kind).unwrap_or(self.hunks.len());
        let hunk = Hunk { kind, stage: None, before: vec![before], after: vec![after], sites: vec![Site::default()] };
        self.hunks.insert(at, hunk);
    }
}

/// Nodes of fused operators.
pub fn fused(counts: &Counts) -> usize {
    // What is no operator is a declared kernel.
    let is_fused = |name: &str| op::info(name).is_none_or(|i| i.class == Class::Fused);
    counts.iter().filter(|(name, _)| is_fused(name)).map(|(_, n)| n).sum()
}
