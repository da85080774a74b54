//! Rules: the language of rule files, its vocabulary, and the bundled set.

pub mod eval;
pub mod facts;
mod flat;
pub mod lang;
mod pack;
mod parse;
mod reference;
pub mod sexpr;
pub mod signature;
mod subsume;
pub mod text;
pub mod vocab;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::flat::Flat;
pub use self::lang::{Kernel, Phase, Purpose, Rule};
pub use self::pack::{MANIFEST, Pack, is_kebab_case};
pub use self::parse::parse_file;
pub use self::reference::reference;
use crate::diag::Diagnostic;

/// The rule files that are part of the program, by name.
pub const BUNDLED: &[(&str, &str)] = &[
    ("rules/algebra.rules", include_str!("../../rules/algebra.rules")),
    ("rules/raise.rules", include_str!("../../rules/raise.rules")),
    ("rules/raise-attention.rules", include_str!("../../rules/raise-attention.rules")),
    ("rules/raise-quant.rules", include_str!("../../rules/raise-quant.rules")),
    ("rules/recover.rules", include_str!("../../rules/recover.rules")),
    ("rules/shard.rules", include_str!("../../rules/shard.rules")),
    ("rules/shard-contrib.rules", include_str!("../../rules/shard-contrib.rules")),
    ("rules/shard-quant.rules", include_str!("../../rules/shard-quant.rules")),
    ("rules/experts.rules", include_str!("../../rules/experts.rules")),
    ("rules/boundary.rules", include_str!("../../rules/boundary.rules")),
    ("rules/fuse.rules", include_str!("../../rules/fuse.rules")),
    ("rules/fuse-quant.rules", include_str!("../../rules/fuse-quant.rules")),
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
    kernels: Vec<Arc<Kernel>>,
    sources: BTreeMap<String, String>,
    packs: Vec<Pack>,
}

impl RuleSet {
    /// Reads files given as (name, text). All defects of all files are reported.
    pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<RuleSet, RuleError> {
        RuleSet::assemble(vec![Pack::loose(files)], &[])
    }

    /// These rules and those of another file.
    pub fn with(&self, file: &str, text: &str) -> Result<RuleSet, RuleError> {
        let mut more = RuleSet::read([(file, text)])?;
        more.rules.splice(0..0, self.rules.iter().cloned());
        Ok(more)
    }

    /// The bundled rules.
    pub fn bundled() -> Result<RuleSet, RuleError> {
        RuleSet::load(vec![], &[])
    }

    /// The bundled rules and those of packs, in this order, without the rules of the given names. All
    /// defects are reported. A rule that is left out makes no other one superfluous.
    pub fn load(packs: Vec<Pack>, without: &[String]) -> Result<RuleSet, RuleError> {
        let mut all = vec![Pack::loose(BUNDLED.iter().copied())];
        all.extend(packs);
        let mut rules = RuleSet::assemble(all, without)?;
        rules.packs.remove(0);
        rules.ban(without)?;
        Ok(rules)
    }

    fn assemble(packs: Vec<Pack>, without: &[String]) -> Result<RuleSet, RuleError> {
        let mut set = RuleSet { rules: vec![], banned: vec![], kernels: vec![], sources: BTreeMap::new(), packs };
        let mut rendered = vec![];
        // By rule.
        let mut pack_of = vec![];
        for (i, pack) in set.packs.iter().enumerate() {
            rendered.extend(pack.defects.iter().cloned());
            let same = set.packs[..i].iter().find(|p| p.name == pack.name);
            if let (Some(name), Some(other)) = (&pack.name, same) {
                rendered
                    .push(format!("error: two rule packs are called `{name}`: {} and {}", other.folder, pack.folder));
            }
            for (name, text) in &pack.files {
                set.sources.insert(name.clone(), text.clone());
                let (rules, kernels, errors) = parse::read_file(name, text);
                rendered.extend(errors.iter().map(|e| e.render(text)));
                pack_of.resize(pack_of.len() + rules.len(), i);
                set.rules.extend(rules);
                set.kernels.extend(kernels);
            }
        }
        rendered.extend(taken_kernels(&set.kernels).iter().map(|e| e.render(set.source(&e.file))));
        rendered.extend(taken_names(&set.rules).iter().map(|e| e.render(set.source(&e.file))));
        rendered.extend(set.subsumed(&pack_of, without).iter().map(|e| e.render(set.source(&e.file))));
        if rendered.is_empty() { Ok(set) } else { Err(RuleError::Invalid(rendered)) }
    }

    /// Rules that follow from one other rule, of the same pack or of an earlier one.
    fn subsumed(&self, pack_of: &[usize], without: &[String]) -> Vec<Diagnostic> {
        let flat: Vec<Option<Flat>> =
            self.rules.iter().map(|r| if without.contains(&r.name) { None } else { Flat::new(r) }).collect();
        let mut errors = vec![];
        for (i, rule) in self.rules.iter().enumerate() {
            let Some(special) = &flat[i] else { continue };
            for (j, other) in self.rules.iter().enumerate() {
                let Some(general) = &flat[j] else { continue };
                let earlier = other.phase <= rule.phase && pack_of[j] <= pack_of[i];
                if i == j || !earlier || !subsume::subsumes(general, special) {
                    continue;
                }
                let same = subsume::subsumes(special, general);
                // Of two equal rules the later one is superfluous.
                if same && j > i && other.phase == rule.phase && pack_of[i] == pack_of[j] {
                    continue;
                }
                let says = if same { "says the same as" } else { "is subsumed by" };
                let mut d = Diagnostic::new(
                    &rule.file,
                    format!("rule `{}` {says} `{}`", rule.name, other.name),
                    rule.name_span.clone(),
                    format!("wherever this matches, `{}` yields the same", other.name),
                );
                if other.file == rule.file {
                    d = d.at(other.name_span.clone(), "the other rule");
                } else {
                    d = d.note(format!("`{}` is defined in {}:{}", other.name, other.file, other.line));
                }
                let help = format!("remove `{}`, or leave the other out with --no-rule {}", rule.name, other.name);
                errors.push(d.help(if pack_of[i] == pack_of[j] { format!("remove `{}`", rule.name) } else { help }));
                break;
            }
        }
        errors
    }

    /// The packs beside the bundled rules, in the order in which they were read.
    pub fn packs(&self) -> &[Pack] {
        &self.packs
    }

    /// The pack of a rule; `None` for a bundled one.
    pub fn pack_of(&self, rule: &Rule) -> Option<&Pack> {
        self.packs.iter().find(|p| p.files.iter().any(|(f, _)| *f == rule.file))
    }

    /// Every rule, in file order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The kernels that rule files declare.
    pub fn kernels(&self) -> &[Arc<Kernel>] {
        &self.kernels
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
            let names = || self.rules.iter().map(|r| r.name.as_str());
            let part = || {
                Some(format!(
                    "did you mean `{}`?",
                    names().find(|n| !name.is_empty() && (n.contains(name) || name.contains(n)))?
                ))
            };
            let hint = parse::nearest(name, names()).or_else(part);
            let hint = hint.map_or(String::new(), |h| format!("\n  help: {h}"));
            RuleError::NoSuchRule { name: name.to_owned(), hint }
        })
    }

    /// Removes rules by name.
    pub fn ban(&mut self, names: &[String]) -> Result<(), RuleError> {
        for name in names.iter().filter(|n| !self.banned.iter().any(|r| r.name == **n)).collect::<BTreeSet<_>>() {
            self.get(name)?;
            self.banned.extend(self.rules.extract_if(.., |r| r.name == *name));
        }
        Ok(())
    }
}

/// Kernels of one name in several files: reports could not tell them apart.
fn taken_kernels(kernels: &[Arc<Kernel>]) -> Vec<Diagnostic> {
    let mut errors = vec![];
    for (i, k) in kernels.iter().enumerate() {
        if let Some(first) = kernels[..i].iter().find(|f| f.name == k.name) {
            let message = format!("the kernel `{}` is declared already", k.name);
            let d = Diagnostic::new(&k.file, message, k.name_span.clone(), "declared again here");
            errors.push(d.help(format!("first declared in {}:{}", first.file, first.line)));
        }
    }
    errors
}

/// Rules whose name is taken by an earlier one.
fn taken_names(rules: &[Rule]) -> Vec<Diagnostic> {
    let mut first: BTreeMap<&str, &Rule> = BTreeMap::new();
    let mut errors = vec![];
    for r in rules {
        let Some(before) = first.get(r.name.as_str()) else {
            first.insert(&r.name, r);
            continue;
        };
        let message = format!("the name `{}` is taken", r.name);
        let d = Diagnostic::new(&r.file, message, r.name_span.clone(), "defined again here");
        errors.push(d.help(format!("first defined in {}, line {}", before.file, before.line)));
    }
    errors
}
