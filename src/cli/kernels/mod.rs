//! `sinter kernels`: list the CUDA kernels, compile them without a GPU, check and time them on one.

mod check;
mod compile;

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use sinter_runtime::cuda::{Kernel, catalog};

use super::{Failure, Outcome, print};

/// Options of `sinter kernels`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print every kernel with its file in kernels/, the threads of a block, and what it instantiates. Needs no CUDA.
    List(Choice),
    /// Compile every kernel with NVRTC, which needs no GPU; warnings and spilled registers are failures.
    Compile(compile::Options),
    /// Run every case on a GPU and compare with references; with --bench also time the kernels.
    Check(check::Options),
}

/// Which kernels.
#[derive(Debug, Args)]
struct Choice {
    /// Only kernels whose name or file contains this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

impl Choice {
    fn kernels(&self) -> Result<Vec<Kernel>, Failure> {
        let mut kernels = catalog();
        let all = kernels.len();
        let only = self.only.as_deref().unwrap_or("");
        kernels.retain(|k| k.name.contains(only) || k.file.contains(only));
        kernels.sort();
        match &self.only {
            Some(text) if kernels.is_empty() => {
                Err(format!("none of the {all} kernels has `{text}` in its name or file; see `sinter kernels list`")
                    .into())
            }
            _ => Ok(kernels),
        }
    }
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    match &o.command {
        Command::List(choice) => list(choice),
        Command::Compile(o) => compile::run(o),
        Command::Check(o) => check::run(o),
    }
}

fn list(choice: &Choice) -> Result<Outcome, Failure> {
    let kernels = choice.kernels()?;
    let widest = |f: fn(&Kernel) -> usize| kernels.iter().map(f).max().unwrap_or(0);
    let (file, name) = (widest(|k| k.file.len()), widest(|k| k.name.len()));
    let mut t = String::new();
    for k in &kernels {
        let threads = k.threads().map_or_else(String::new, |n| n.to_string());
        let _ = writeln!(t, "{:file$}  {:name$}  {threads:>4}  {}", k.file, k.name, k.body());
    }
    let _ = writeln!(t, "{}", super::counted(kernels.len(), "kernel"));
    print(&t)?;
    Ok(Outcome::Done)
}
