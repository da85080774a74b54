//! Rules: the language of rule files, its vocabulary, and the bundled set.

pub mod facts;
pub mod lang;
mod parse;
pub mod sexpr;
pub mod vocab;

use std::collections::BTreeMap;

pub use self::lang::{Phase, Rule};
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
}

impl RuleSet {
    /// Reads files given as (name, text). All defects of all files are reported.
    pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<RuleSet, RuleError> {
        let mut rules: Vec<Rule> = vec![];
        let mut rendered = vec![];
        let mut places: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for (name, text) in files {
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
        if rendered.is_empty() { Ok(RuleSet { rules }) } else { Err(RuleError::Invalid(rendered)) }
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

    /// The rules of a phase, in file order.
    pub fn phase(&self, phase: Phase) -> Vec<&Rule> {
        self.rules.iter().filter(|r| r.phase == phase).collect()
    }

    /// Removes rules by name.
    pub fn ban(&mut self, names: &[String]) -> Result<(), RuleError> {
        for name in names {
            if !self.rules.iter().any(|r| r.name == *name) {
                let close = self.rules.iter().find(|r| r.name.contains(name.as_str()) || name.contains(&r.name));
                let hint = close.map_or(String::new(), |r| format!(" (`{}`?)", r.name));
                return Err(RuleError::NoSuchRule { name: name.clone(), hint });
            }
            self.rules.retain(|r| r.name != *name);
        }
        Ok(())
    }
}
