//! Explain: how each step came about, kept as data beside the plan.

use serde::{Deserialize, Serialize};

/// The name of the file in the plan folder.
pub const FILE: &str = "explain.json";

/// The version of the file's format.
pub const VERSION: u32 = 1;

/// Derivations of the terms of a program, and reasons for what was not fused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// The rules that occur.
    pub rules: Vec<RuleText>,
    /// Applications of rules, each after those that it builds on.
    pub entries: Vec<Entry>,
    /// What stands apart although a fused kernel exists for it.
    pub unfused: Vec<WhyNot>,
}

/// A rule as text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleText {
    /// Its name.
    pub name: String,
    /// When it runs.
    pub phase: String,
    /// File and line.
    pub place: String,
    /// The equation in words.
    pub doc: String,
    /// The left side.
    pub left: String,
    /// The right side.
    pub right: String,
    /// The guards.
    pub guards: Vec<String>,
}

/// One application of a rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Index of the rule.
    pub rule: u32,
    /// The variables with what they stood for, and what was known of it.
    pub vars: Vec<(String, String)>,
    /// The terms that the left side took.
    pub took: Vec<Taken>,
}

/// A term that a rule's left side took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// The term.
    pub term: String,
    /// The entry that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    /// Where none did: the ONNX nodes that it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
}

/// Why an operator stands apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyNot {
    /// The operator: an all-reduce, a residual sum or a norm.
    pub op: String,
    /// Name of the value.
    pub node: String,
    /// Its stage.
    pub stage: usize,
    /// The rule that comes nearest.
    pub rule: String,
    /// The first term or guard of the rule that is not met.
    pub unmet: String,
    /// The tensor that fails it.
    pub tensor: String,
    /// All of this in a sentence.
    pub reason: String,
}
