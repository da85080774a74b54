//! The command line. Printing and files are here and nowhere else in this crate.

mod data;
mod diff;
mod emit;
mod explain;
mod graphs;
mod judge;
mod kernels;
mod names;
mod optimize;
mod options;
mod report;
mod rules;
mod run;
mod show;
mod snapshot;
mod summary;

use std::error::Error as StdError;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sinter_runtime::plan::{self, PLAN_FILE, Plan, PlanWeights};

/// Compiles model graphs for a grid of devices, and runs the result on all ranks.
#[derive(Debug, Parser)]
#[command(name = "sinter", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compile a model into a plan.
    Optimize(optimize::Options),
    /// Execute a plan, or a model as a plan for one rank.
    Run(run::Options),
    /// Print a model, or a plan, as text.
    Show(show::Options),
    /// Tell how the steps of a plan came about, and why others are not fused.
    Explain(explain::Options),
    /// Compare two models, texts or plans.
    Diff(diff::Options),
    /// Compare what a model compiles to with a file under review.
    Snapshot(snapshot::Options),
    /// Work with rules: list, verify, test, count, start new ones.
    Rules(rules::Options),
    /// Work with CUDA kernels: list, compile and compare with a table, check and time on a GPU.
    Kernels(kernels::Options),
}

/// How a command ended.
enum Outcome {
    Done,
    /// A check said no: a difference is too large, or a demand is unmet.
    CheckFailed,
}

type Failure = Box<dyn StdError + Send + Sync>;

/// Parses the arguments of the process, runs the command, and returns the exit code: 0 done, 1 a check
/// said no, 2 usage, input or internal error.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors.
            let code = if e.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
            let _ = e.print();
            return code;
        }
    };
    let outcome = match cli.command {
        Command::Optimize(o) => optimize::run(&o),
        Command::Run(o) => run::run(&o),
        Command::Show(o) => show::run(&o),
        Command::Explain(o) => explain::run(&o),
        Command::Diff(o) => diff::run(&o),
        Command::Snapshot(o) => snapshot::run(&o),
        Command::Rules(o) => rules::run(&o),
        Command::Kernels(o) => kernels::run(&o),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Err(e) if is_broken_pipe(&*e) => ExitCode::SUCCESS,
        Err(e) => {
            let code = if e.downcast_ref::<options::Refused>().is_some() { 1 } else { 2 };
            let text = chain(&*e);
            // Rendered diagnostics bring their own prefix.
            let prefix = if text.starts_with("error") { "" } else { "error: " };
            let _ = writeln!(std::io::stderr(), "{prefix}{text}");
            ExitCode::from(code)
        }
    }
}

/// The message of an error and of its causes that it does not repeat.
fn chain(e: &(dyn StdError + 'static)) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        if !text.contains(&c.to_string()) {
            text = format!("{text}: {c}");
        }
        cause = c.source();
    }
    text
}

fn is_broken_pipe(e: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(e);
    while let Some(c) = cause {
        if c.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = c.source();
    }
    false
}

/// Loads the plan in a folder.
fn load_plan(dir: &Path) -> Result<(Plan, PlanWeights), Failure> {
    if dir.is_dir() && !dir.join(PLAN_FILE).exists() {
        let what = crate::import::folder(dir).to_string();
        return Err(what.replacen("is not an ONNX model: it is a folder", "is a folder without a plan", 1).into());
    }
    Ok(plan::load(dir)?)
}

/// A number of things.
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", plural(n))
}

/// The ending of a word that stands for `n` things.
fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// Prints a command's product.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints what is meant for the person at the terminal.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes a report, if one is wanted, and the text for people: to standard output, or, where the report
/// is there, to standard error.
fn deliver(file: Option<OutFile>, report: &impl serde::Serialize, text: &str) -> Result<(), Failure> {
    let taken = matches!(&file, Some(OutFile { place: Place::Stdout, .. }));
    if let Some(file) = file {
        file.write(&(serde_json::to_string_pretty(report)? + "\n"))?;
    }
    if taken {
        say(text.trim_end());
        return Ok(());
    }
    print(text)
}

/// Where a text goes. It is opened before any work is done, so that a bad place costs nothing.
struct OutFile {
    /// What the text is.
    what: &'static str,
    path: PathBuf,
    place: Place,
}

enum Place {
    /// Standard output.
    Stdout,
    /// A device, a pipe or the like, which is written as it is.
    Special(std::fs::File),
    /// A file, which appears whole or not at all.
    Regular(tempfile::NamedTempFile),
}

impl OutFile {
    /// A report; `-` is standard output.
    fn report(path: &str) -> Result<OutFile, Failure> {
        if path == "-" {
            return Ok(OutFile { what: "report", path: path.into(), place: Place::Stdout });
        }
        OutFile::open("report", Path::new(path))
    }

    fn open(what: &'static str, path: &Path) -> Result<OutFile, Failure> {
        let error = |e: &dyn std::fmt::Display| write_error(what, path, e);
        let place = match std::fs::metadata(path) {
            Ok(m) if !m.is_file() => {
                Place::Special(std::fs::OpenOptions::new().write(true).open(path).map_err(|e| error(&e))?)
            }
            _ => {
                let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                std::fs::metadata(dir).map_err(|e| error(&e))?;
                // The full text of these errors would name the temporary file.
                Place::Regular(temporary(dir).map_err(|e| error(&e.kind()))?)
            }
        };
        Ok(OutFile { what, path: path.to_owned(), place })
    }

    fn write(self, text: &str) -> Result<(), Failure> {
        let error = |e: &dyn std::fmt::Display| write_error(self.what, &self.path, e);
        match self.place {
            Place::Stdout => print(text),
            Place::Special(mut file) => Ok(file.write_all(text.as_bytes()).map_err(|e| error(&e))?),
            Place::Regular(mut temp) => {
                temp.write_all(text.as_bytes()).map_err(|e| error(&e.kind()))?;
                temp.persist(&self.path).map_err(|e| error(&e.error.kind()))?;
                Ok(())
            }
        }
    }
}

/// A temporary file with the permissions of any other new file: it becomes one.
fn temporary(dir: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}

fn write_error(what: &str, path: &Path, e: &dyn std::fmt::Display) -> String {
    format!("cannot write the {what} {}: {e}", path.display())
}
