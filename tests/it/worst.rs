//! The worst choices: whatever the e-graph of a model says is equal must compute the same.
//!
//! The cheapest program takes few of the terms that rules make. Here the dearest ones are taken, and
//! random ones, in both e-graphs of a compilation.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use sinter::check::choice::{Preference, choose};
use sinter::extract::{self, ExtractStats, Extracted};
use sinter::import::Imported;
use sinter::lower;
use sinter::partition::PartitionError;
use sinter::pipeline::{CompileError, compile_with};
use sinter::rules::Phase;
use sinter_runtime::compare::{Tolerance, compare};
use sinter_runtime::executor::{self, RunConfig};

use crate::fixtures;

/// Number of random choices; `SINTER_SEEDS` asks for more.
const SEEDS: u64 = 3;

/// What the choices covered.
#[derive(Default)]
struct Coverage {
    /// Rules with terms in an e-graph.
    made: BTreeSet<String>,
    /// Rules with terms in a program that was executed.
    executed: BTreeSet<String>,
    /// Classes in whose stead another term than the cheapest was taken.
    changed: usize,
    programs: usize,
}

/// Compiles with a choice of terms, in the raised program too where `raise` says so, and runs all ranks.
/// `Ok(false)`: the raised program cannot be divided into stages.
fn check(
    dir: &Path,
    model: &Imported,
    (tp, pp): (usize, usize),
    choice: Preference<'_>,
    raise: bool,
    coverage: &RefCell<Coverage>,
) -> Result<bool, String> {
    let compiled = compile_with(model, &fixtures::config(tp, pp), &|phases, program, graph, cost| {
        if phases == [Phase::Raise] && !raise {
            return extract::extract(program, graph, cost);
        }
        let chosen = choose(program, graph, cost, choice)?;
        let mut c = coverage.borrow_mut();
        c.made.extend(program.provenance().values().map(|p| p.rule.name.clone()));
        c.executed.extend(chosen.graph.nodes().flat_map(|(_, n)| n.rules.iter().cloned()));
        c.changed += chosen.preferred;
        Ok(Extracted { graph: chosen.graph, terms: chosen.terms, stats: ExtractStats::default() })
    });
    let compiled = match compiled {
        Ok(c) => c,
        // Layers are told by their attention, and the choice may leave one in its parts.
        Err(CompileError::Partition(PartitionError::TooManyStages { .. })) if raise => return Ok(false),
        Err(e) => return Err(e.to_string()),
    };
    let plan = &compiled.plan;
    let weights = lower::rank_weights(plan, &model.weights).map_err(|e| e.to_string())?;
    let inputs: Vec<String> = plan.inputs.iter().map(|i| i.name.clone()).collect();
    let outputs: Vec<String> = plan.outputs.iter().map(|o| o.name.clone()).collect();
    let expected = fixtures::tensors(dir, "output", &outputs);
    let inputs = fixtures::tensors(dir, "input", &inputs);
    let result = executor::run(plan, &weights, &inputs, &RunConfig::default()).map_err(|e| e.to_string())?;
    for (name, t) in result.outputs {
        let c = compare(&t, &expected[&name], Tolerance::F32);
        if !c.pass {
            return Err(format!("{name} differs by {:.3e} {}", c.max_abs, c.reason.unwrap_or_default()));
        }
    }
    coverage.borrow_mut().programs += 1;
    Ok(true)
}

#[test]
fn the_worst_choices_compute_the_same() {
    let seeds = std::env::var("SINTER_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    let choices: Vec<Preference<'_>> =
        std::iter::once(Preference::Dearest).chain((0..seeds).map(Preference::Random)).collect();
    let mut problems = vec![];
    let mut whole = 0;
    let coverage = RefCell::default();
    for dir in fixtures::BUNDLED.iter().map(|n| fixtures::model(n)) {
        let model = fixtures::import(&dir);
        for mapping in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            for (choice, raise) in choices.iter().flat_map(|&c| [(c, false), (c, true)]) {
                match check(&dir, &model, mapping, choice, raise, &coverage) {
                    Ok(ran) => whole += usize::from(!ran),
                    Err(e) => {
                        let name = dir.file_name().unwrap().display().to_string();
                        problems.push(format!("{name} {mapping:?} {choice:?} raise {raise}: {e}"));
                    }
                }
            }
        }
    }
    let c = coverage.into_inner();
    println!(
        "{} programs, {} classes with other terms than the cheapest; {} choices cannot be divided into stages",
        c.programs, c.changed, whole
    );
    println!("not executed: {:?}", c.made.difference(&c.executed).collect::<Vec<_>>());
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    assert!(c.changed > 10 * c.programs, "the choices are hardly other than the cheapest");
    assert!(whole * 10 < c.programs, "too few programs were executed");
}
