//! `sinter rules`: list the rules.

use std::fmt::Write as _;

use clap::{Args, Subcommand};

use super::options::RuleOptions;
use super::{Failure, Outcome, print};

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
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let Command::List { rules } = &o.command;
    let rules = rules.load()?;
    let width = rules.rules().iter().map(|r| r.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for r in rules.rules() {
        let _ = writeln!(out, "{:5}  {:width$}  {}  ({}:{})", r.phase.name(), r.name, r.doc, r.file, r.line);
    }
    print(&out)?;
    Ok(Outcome::Done)
}
