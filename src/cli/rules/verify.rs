//! `sinter rules verify`: evaluate both sides of rules on random tensors and simulated ranks.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::super::options::RuleOptions;
use super::super::{Failure, OutFile, Outcome, counted, deliver, say};
use crate::check::{self, Verdict, VerifyConfig, refusal};
use crate::rules::{Rule, RuleSet};

/// Options of `sinter rules verify`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    rules: RuleOptions,
    /// Verify this rule only; may be repeated.
    #[arg(long, value_name = "NAME")]
    rule: Vec<String>,
    /// Seed of the random choices.
    #[arg(long, default_value_t = VerifyConfig::standard().seed)]
    seed: u64,
    /// Instances that must agree, for each rule.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    instances: u32,
    /// Also verify each rule without each guard of its `:if`; a guard that nothing shows to be needed is refused.
    #[arg(long)]
    mutate: bool,
    /// Write a report as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report<'r> {
    schema: u32,
    seed: u64,
    held: usize,
    refused: usize,
    rules: Vec<Entry<'r>>,
}

#[derive(Debug, Serialize)]
struct Entry<'r> {
    name: &'r str,
    place: String,
    /// `holds`, `wrong` or `untested`.
    verdict: &'static str,
    instances: usize,
    /// What people are told.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    /// With `--mutate`: guards that nothing shows to be needed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    idle_guards: Vec<String>,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let report_file = o.report.as_deref().map(OutFile::report).transpose()?;
    let rules = o.rules.load()?;
    for name in &o.rule {
        rules.get(name)?;
    }
    let config = VerifyConfig { instances: o.instances as usize, seed: o.seed, ..VerifyConfig::standard() };
    let start = Instant::now();
    let mut report = Report { schema: 1, seed: o.seed, held: 0, refused: 0, rules: vec![] };
    for rule in rules.rules().iter().filter(|r| o.rule.is_empty() || o.rule.contains(&r.name)) {
        let entry = judge(&rules, rule, config, o.mutate);
        for text in entry.refusal.iter().chain(&entry.idle_guards) {
            say(text);
        }
        let ok = entry.refusal.is_none() && entry.idle_guards.is_empty();
        *(if ok { &mut report.held } else { &mut report.refused }) += 1;
        report.rules.push(entry);
    }
    let text = summary(&report, start.elapsed());
    deliver(report_file, &report, &text)?;
    Ok(if report.refused == 0 { Outcome::Done } else { Outcome::CheckFailed })
}

fn judge<'r>(rules: &RuleSet, rule: &'r Rule, config: VerifyConfig, mutate: bool) -> Entry<'r> {
    let verdict = check::verify(rule, None, config);
    let (word, instances) = match &verdict {
        Verdict::Holds { instances } => ("holds", *instances),
        Verdict::Wrong(_) => ("wrong", 0),
        Verdict::Untested { instances, .. } => ("untested", *instances),
    };
    let mut idle_guards = vec![];
    if mutate && word == "holds" {
        for (i, v) in check::mutations(rule, config) {
            if !matches!(v, Verdict::Wrong(_)) {
                let guard = rules.excerpt(rule, &rule.guards[i].span);
                idle_guards.push(format!(
                    "error: rule `{}` ({}:{}) holds without {guard}, as far as verification sees\n  \
                     help: if the guard only keeps the rule from where it does not pay, move it to `:when`",
                    rule.name, rule.file, rule.line
                ));
            }
        }
    }
    let place = format!("{}:{}", rule.file, rule.line);
    let refusal = refusal(rules, rule, &verdict);
    Entry { name: &rule.name, place, verdict: word, instances, refusal, idle_guards }
}

fn summary(r: &Report<'_>, time: Duration) -> String {
    let width = r.rules.iter().map(|e| e.name.len()).max().unwrap_or(0);
    let mut t = String::new();
    for e in &r.rules {
        let what = match e.verdict {
            "holds" if e.idle_guards.is_empty() => format!("holds on {} instances", e.instances),
            "holds" => format!("holds also without {} of its guards", e.idle_guards.len()),
            "wrong" => "is wrong".to_owned(),
            _ => "could not be tested".to_owned(),
        };
        t += &format!("{:width$}  {what}\n", e.name);
    }
    let hold = if r.held == 1 { "holds" } else { "hold" };
    t + &format!("{} {hold}, {} refused, in {:.1} s\n", counted(r.held, "rule"), r.refused, time.as_secs_f64())
}
