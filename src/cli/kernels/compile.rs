//! `sinter kernels compile`: compile kernels with NVRTC, and compare registers and memory with the committed table.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use sinter_runtime::cuda::Compiler;
use sinter_runtime::cuda::report::{ARCHS, Report, Table, compile_all};

use super::super::{Failure, OutFile, Outcome, print, say};
use super::Choice;

/// Options of `sinter kernels compile`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    choice: Choice,
    /// Compute capabilities to compile for; 80,90,100 where not given.
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    arch: Vec<u32>,
    /// Write the table of registers and memory as Markdown, in place of printing it.
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    table: Option<PathBuf>,
    /// Compare with this table: kernels that are new or gone, and numbers above the recorded ones, are failures.
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let kernels = o.choice.kernels()?;
    let table_file = o.table.as_deref().map(|p| OutFile::open("table", p)).transpose()?;
    let recorded = o.check.as_ref().map(|p| read(p)).transpose()?;
    let compiler = Compiler::new()?;
    if let (Some(t), Some(path)) = (&recorded, &o.check) {
        let ((a, b), (major, minor)) = (t.nvrtc, compiler.version);
        if t.nvrtc != compiler.version {
            let made = format!("{} was made by NVRTC {a}.{b}, this is NVRTC {major}.{minor}", path.display());
            return Err(format!("{made}: their numbers differ; name NVRTC {a}.{b} by SINTER_NVRTC").into());
        }
    }
    let mut archs = if o.arch.is_empty() { ARCHS.to_vec() } else { o.arch.clone() };
    archs.sort_unstable();
    archs.dedup();
    let start = Instant::now();
    let report = compile_all(&compiler, &kernels, &archs)?;
    let time = start.elapsed();
    let mut problems = report.problems.clone();
    if let Some(recorded) = &recorded {
        // A kernel without a row has a problem of its own, unless it is gone from the catalogue.
        let only = o.choice.only.as_deref().unwrap_or("");
        let kept = |name: &str| match kernels.iter().any(|k| k.name == name) {
            true => report.table.rows.contains_key(name),
            false => only.is_empty(),
        };
        problems.extend(report.table.differences(recorded, kept));
    }
    problems.iter().for_each(|p| say(p));
    match table_file {
        Some(file) => file.write(&report.table.markdown())?,
        None if o.check.is_none() => print(&report.table.markdown())?,
        None => {}
    }
    print(&summary(&report, kernels.len(), &archs, time))?;
    if problems.is_empty() {
        return Ok(Outcome::Done);
    }
    say(&format!("check failed: {} problems; `make kernels-bless` accepts new numbers", problems.len()));
    Ok(Outcome::CheckFailed)
}

fn read(path: &PathBuf) -> Result<Table, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Table::parse(&text).map_err(|e| format!("{} is no table of kernels: {e}", path.display()).into())
}

fn summary(r: &Report, n: usize, archs: &[u32], time: Duration) -> String {
    let (major, minor) = r.table.nvrtc;
    let names: Vec<String> = archs.iter().map(|a| format!("sm_{a}")).collect();
    let most = r.table.rows.iter().flat_map(|(name, row)| row.iter().map(move |u| (u.registers, name))).max();
    let most = most.map_or_else(String::new, |(n, name)| format!("; at most {n} registers ({name})"));
    format!(
        "NVRTC {major}.{minor}: {n} kernels for {} in {} programs, {:.1} s{most}\n",
        names.join(", "),
        r.programs,
        time.as_secs_f64()
    )
}
