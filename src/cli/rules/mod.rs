//! `sinter rules`: list, count and verify the rules, run their cases, start new ones, print the reference.

mod new;
mod stats;
mod test;
mod verify;

use std::fmt::Write as _;

use clap::{Args, Subcommand};

use super::options::RuleOptions;
use super::{Failure, Outcome, print};
use crate::rules::reference;

/// Options of `sinter rules`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print every rule with its phase, its place and its equation.
    List {
        #[command(flatten)]
        rules: RuleOptions,
    },
    /// Evaluate both sides of rules on random tensors and simulated ranks.
    Verify(verify::Options),
    /// Run the cases of rule folders: DIR/*.rules are the rules, DIR/cases/*.txt their cases.
    Test(test::Options),
    /// Write a first rule with its cases, as a starting point.
    New(new::Options),
    /// Count what each rule does on a model, and how long it takes.
    Stats(stats::Options),
    /// Print the reference of the rule language: phases, operators, guards and functions.
    Reference,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    match &o.command {
        Command::List { rules } => list(rules),
        Command::Verify(o) => verify::run(o),
        Command::Test(o) => test::run(o),
        Command::New(o) => new::run(o),
        Command::Stats(o) => stats::run(o),
        Command::Reference => print(&reference()).map(|()| Outcome::Done),
    }
}

fn list(rules: &RuleOptions) -> Result<Outcome, Failure> {
    let rules = rules.load()?;
    // Names that are longer than any name should be do not push all others apart.
    let width = rules.rules().iter().map(|r| r.name.len()).filter(|n| *n <= 60).max().unwrap_or(0);
    let mut out = String::new();
    let mut folder = "";
    for r in rules.rules() {
        // The rules of a pack follow its name.
        if let Some(p) = rules.pack_of(r).filter(|p| p.folder != folder) {
            folder = &p.folder;
            if let Some(name) = &p.name {
                let version = p.version.as_deref().unwrap_or("");
                let _ = writeln!(out, "pack {name} {version} ({folder})");
            }
        }
        let _ = writeln!(out, "{:5}  {:width$}  {}  ({}:{})", r.phase.name(), r.name, r.doc, r.file, r.line);
    }
    for k in rules.kernels() {
        let _ = writeln!(out, "kernel {}  {}  ({}:{})", k.name, k.doc, k.file, k.line);
    }
    print(&out)?;
    Ok(Outcome::Done)
}
