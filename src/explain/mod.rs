//! Explain: how each step came about, kept as data beside the plan.
//!
//! A record of many layers repeats the same words, so texts and tensors are kept once and named by number.

mod data;
mod text;

use std::collections::BTreeSet;
use std::hash::BuildHasher as _;

use rustc_hash::{FxBuildHasher, FxHashMap};
use serde::{Deserialize, Serialize};

pub use self::data::{Bound, Entry, Made, Taken};
pub use self::text::{application, described, term};

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
    /// Names, types, operators with their attributes, attribute values.
    pub texts: Vec<String>,
    /// Tensors, each as the texts of its name and its type.
    pub tensors: Vec<(u32, u32)>,
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
    /// Names of the variables, without `?`.
    pub vars: Vec<String>,
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

impl Record {
    /// Finds the first number that names nothing, or an entry that does not come after what it builds on.
    pub fn check(&self) -> Result<(), String> {
        let text = |t: u32| (t as usize) < self.texts.len();
        let tensor = |t: u32| (t as usize) < self.tensors.len();
        if !self.tensors.iter().all(|&(name, ty)| text(name) && text(ty)) {
            return Err("a tensor has a name or a type that is not there".into());
        }
        for (i, e) in self.entries.iter().enumerate() {
            let bound = |b: &Bound| match b {
                Bound::Nothing => true,
                Bound::Text(t) => text(*t),
                Bound::Tensor(t, _) => tensor(*t),
                Bound::Tensors((ts,)) => ts.iter().copied().all(tensor),
            };
            let taken = |t: &Taken| {
                let made = match &t.made {
                    Made::By(entry) => (*entry as usize) < i,
                    Made::Nodes(nodes) => nodes.iter().copied().all(text),
                };
                made && tensor(t.tensor) && text(t.op) && t.operands.iter().copied().all(tensor)
            };
            let rule = self.rules.get(e.rule as usize);
            if rule.is_none_or(|r| e.vars.len() > r.vars.len()) || !e.vars.iter().all(bound) {
                return Err(format!("entry {i} refers to a rule, a variable or a value that is not there"));
            }
            if !e.took.iter().all(taken) {
                return Err(format!("entry {i} took a term that is not there, or that a later entry makes"));
            }
        }
        Ok(())
    }

    /// The entries that an entry builds on, in order, itself last.
    pub fn chain(&self, why: Option<u32>) -> Vec<usize> {
        let mut out = BTreeSet::new();
        let mut todo: Vec<usize> = why.map(|w| w as usize).into_iter().collect();
        while let Some(i) = todo.pop() {
            if let Some(e) = self.entries.get(i)
                && out.insert(i)
            {
                todo.extend(e.took.iter().filter_map(|t| match t.made {
                    Made::By(f) => Some(f as usize),
                    Made::Nodes(_) => None,
                }));
            }
        }
        out.into_iter().collect()
    }

    /// A text by number; empty where there is none.
    pub fn text(&self, t: u32) -> &str {
        self.texts.get(t as usize).map_or("", String::as_str)
    }
}

/// A record that grows: gives each text and each tensor one number.
#[derive(Debug, Default)]
pub struct Recorder {
    /// What is recorded so far.
    pub record: Record,
    /// By hash; where that is taken by another text, the next.
    texts: FxHashMap<u64, u32>,
    tensors: FxHashMap<(u32, u32), u32>,
}

impl Recorder {
    /// An empty record.
    pub fn new() -> Recorder {
        Recorder { record: Record { version: VERSION, ..Record::default() }, ..Recorder::default() }
    }

    /// The number of a text.
    pub fn text(&mut self, text: &str) -> u32 {
        let mut hash = FxBuildHasher.hash_one(text);
        while let Some(&n) = self.texts.get(&hash) {
            if self.record.texts[n as usize] == text {
                return n;
            }
            hash = hash.wrapping_add(1);
        }
        let n = self.record.texts.len() as u32;
        self.texts.insert(hash, n);
        self.record.texts.push(text.to_owned());
        n
    }

    /// The number of a tensor, from the numbers of its name and its type.
    pub fn tensor(&mut self, name: u32, ty: u32) -> u32 {
        let tensors = &mut self.record.tensors;
        *self.tensors.entry((name, ty)).or_insert_with(|| {
            tensors.push((name, ty));
            tensors.len() as u32 - 1
        })
    }
}
