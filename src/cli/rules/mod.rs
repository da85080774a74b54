//! `sinter rules`: list and verify the rules, run their cases, start new ones.

mod new;
mod test;

use std::fmt::Write as _;

use clap::{Args, Subcommand};

use super::options::RuleOptions;
use super::{Failure, Outcome, print, say};
use crate::check::{Verdict, VerifyConfig, refusal, verify};

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
    Verify(VerifyOptions),
    /// Run the cases of rule folders: DIR/*.rules are the rules, DIR/cases/*.txt their cases.
    Test(test::Options),
    /// Write a first rule with its cases, as a starting point.
    New(new::Options),
}

#[derive(Debug, Args)]
struct VerifyOptions {
    #[command(flatten)]
    rules: RuleOptions,
    /// Verify this rule only; may be repeated.
    #[arg(long, value_name = "NAME")]
    rule: Vec<String>,
    /// Seed of the random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instances that must agree, for each rule.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    instances: u32,
    /// Also verify each rule without each guard of its `:if`: a guard that no counter-example needs is refused.
    #[arg(long)]
    mutate: bool,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    match &o.command {
        Command::List { rules } => list(rules),
        Command::Verify(o) => verify_all(o),
        Command::Test(o) => test::run(o),
        Command::New(o) => new::run(o),
    }
}

fn list(rules: &RuleOptions) -> Result<Outcome, Failure> {
    let rules = rules.load()?;
    let width = rules.rules().iter().map(|r| r.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for r in rules.rules() {
        let _ = writeln!(out, "{:5}  {:width$}  {}  ({}:{})", r.phase.name(), r.name, r.doc, r.file, r.line);
    }
    print(&out)?;
    Ok(Outcome::Done)
}

fn verify_all(o: &VerifyOptions) -> Result<Outcome, Failure> {
    let rules = o.rules.load()?;
    for name in &o.rule {
        rules.get(name)?;
    }
    let config = VerifyConfig { instances: o.instances as usize, seed: o.seed, ..VerifyConfig::standard() };
    let chosen = rules.rules().iter().filter(|r| o.rule.is_empty() || o.rule.contains(&r.name));
    let (mut held, mut refused) = (0, 0);
    for rule in chosen {
        let start = std::time::Instant::now();
        let verdict = verify(rule, None, config);
        match (&verdict, refusal(&rules, rule, &verdict)) {
            (Verdict::Holds { instances }, _) => {
                held += 1;
                print(&format!("ok  {}: {instances} instances {:?}\n", rule.name, start.elapsed()))?;
                if o.mutate {
                    for (i, g) in rule.guards.iter().enumerate() {
                        if g.purpose == crate::rules::Purpose::Equality
                            && matches!(g.kind, crate::rules::lang::GuardKind::Holds(_))
                        {
                            let v = verify(rule, Some(i), config);
                            let what = match &v {
                                Verdict::Wrong(_) => "needed".to_owned(),
                                Verdict::Holds { instances } => format!("NOT NEEDED ({instances})"),
                                Verdict::Untested { instances, .. } => format!("UNTESTED {instances}"),
                            };
                            print(&format!("   {what} {} {:?}\n", rules.excerpt(rule, &g.span), start.elapsed()))?;
                        }
                    }
                }
            }
            (_, text) => {
                refused += 1;
                say(&text.unwrap_or_default());
            }
        }
    }
    print(&format!("{held} rules hold, {refused} are refused\n"))?;
    Ok(if refused == 0 { Outcome::Done } else { Outcome::CheckFailed })
}
