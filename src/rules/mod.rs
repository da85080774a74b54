//! Rules: the language of rule files, its vocabulary, and the bundled set.

pub mod eval;
pub mod facts;
pub mod lang;
mod parse;
pub mod sexpr;
pub mod text;
pub mod vocab;

use std::collections::BTreeMap;

pub use self::lang::{Phase, Purpose, Rule};
pub use self::parse::parse_file;
use crate::diag::Diagnostic;

/// The rule files that are part of the program, by name.
pub const BUNDLED: &[(&str, &str)] = &[
    ("rules/algebra.rules", include_str!("../../rules/algebra.rules")),
    ("rules/raise.rules", include_str!("../../rules/raise.rules")),
    ("rules/raise-attention.rules", include_str!("../../rules/raise-attention.rules")),
    ("rules/shard.rules", include_str!("../../rules/shard.rules")),
    ("rules/boundary.rules", include_str!("../../rules/boundary.rules")),
    ("rules/fuse.rules", include_str!("../../rules/fuse.rules")),
];

/// Defects of rule files, rendered.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// Every defect found, rendered with its place.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// A rule named on the command line does not exist.
    #[error("no rule is called `{name}`; `sinter rules list` shows all{hint}")]
    NoSuchRule {
        /// The name.
        name: String,
        /// A suggestion.
        hint: String,
    },
}

/// The rules of several files, checked together.
#[derive(Clone, Debug)]
pub struct RuleSet {
    rules: Vec<Rule>,
    banned: Vec<Rule>,
    sources: BTreeMap<String, String>,
}

impl RuleSet {
    /// Reads files given as (name, text). All defects of all files are reported.
    pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<RuleSet, RuleError> {
        let mut rules: Vec<Rule> = vec![];
        let mut rendered = vec![];
        let mut places: BTreeMap<String, (String, usize)> = BTreeMap::new();
        let mut sources = BTreeMap::new();
        for (name, text) in files {
            sources.insert(name.to_owned(), text.to_owned());
            match parse_file(name, text) {
                Ok(found) => {
                    for r in found {
                        if let Some((file, line)) = places.insert(r.name.clone(), (r.file.clone(), r.line)) {
                            let d = Diagnostic::new(
                                name,
                                format!("the name `{}` is taken", r.name),
                                r.name_span.clone(),
                                "defined again here",
                            );
                            rendered.push(d.help(format!("first defined in {file}, line {line}")).render(text));
                        }
                        rules.push(r);
                    }
                }
                Err(errors) => rendered.extend(errors.iter().map(|e| e.render(text))),
            }
        }
        if rendered.is_empty() {
            Ok(RuleSet { rules, banned: vec![], sources })
        } else {
            Err(RuleError::Invalid(rendered))
        }
    }

    /// These rules and those of another file.
    pub fn with(&self, file: &str, text: &str) -> Result<RuleSet, RuleError> {
        let mut more = RuleSet::read([(file, text)])?;
        more.rules.splice(0..0, self.rules.iter().cloned());
        Ok(more)
    }

    /// The bundled rules.
    pub fn bundled() -> Result<RuleSet, RuleError> {
        RuleSet::read(BUNDLED.iter().copied())
    }

    /// Every rule, in file order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rules that were removed by [`RuleSet::ban`].
    pub fn banned(&self) -> &[Rule] {
        &self.banned
    }

    /// The text of a file.
    pub fn source(&self, file: &str) -> &str {
        self.sources.get(file).map_or("", String::as_str)
    }

    /// The text of a part of a rule's file, its white space reduced to single blanks.
    pub fn excerpt(&self, rule: &Rule, span: &sexpr::Span) -> String {
        let text = self.source(&rule.file).get(span.clone()).unwrap_or("");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The rules of a phase, in file order.
    pub fn phase(&self, phase: Phase) -> Vec<&Rule> {
        self.rules.iter().filter(|r| r.phase == phase).collect()
    }

    /// A rule by name.
    pub fn get(&self, name: &str) -> Result<&Rule, RuleError> {
        self.rules.iter().find(|r| r.name == name).ok_or_else(|| {
            let close = self.rules.iter().find(|r| r.name.contains(name) || name.contains(&r.name));
            let hint = close.map_or(String::new(), |r| format!(" (`{}`?)", r.name));
            RuleError::NoSuchRule { name: name.to_owned(), hint }
        })
    }

    /// Removes rules by name.
    pub fn ban(&mut self, names: &[String]) -> Result<(), RuleError> {
        for name in names {
            self.get(name)?;
            self.banned.extend(self.rules.extract_if(.., |r| r.name == *name));
        }
        Ok(())
    }
}
