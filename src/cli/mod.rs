//! The command line. Printing and files are here and nowhere else in this crate.

mod data;
mod explain;
mod optimize;
mod report;
mod rules;
mod run;
mod show;
mod summary;

use std::error::Error as StdError;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::rules::{BUNDLED, RuleSet};

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
    /// List the rules.
    Rules(rules::Options),
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
        Command::Rules(o) => rules::run(&o),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Err(e) if is_broken_pipe(&*e) => ExitCode::SUCCESS,
        Err(e) => {
            let text = chain(&*e);
            // Rendered diagnostics bring their own prefix.
            let prefix = if text.starts_with("error") { "" } else { "error: " };
            let _ = writeln!(std::io::stderr(), "{prefix}{text}");
            ExitCode::from(2)
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

/// Where a report goes. It is opened before any work is done, so that a bad place costs nothing.
enum ReportFile {
    /// Standard output.
    Stdout,
    /// A device, a pipe or the like, which is written as it is.
    Special(PathBuf, std::fs::File),
    /// A file, which appears whole or not at all.
    Regular(PathBuf, tempfile::NamedTempFile),
}

impl ReportFile {
    fn open(path: &str) -> Result<ReportFile, Failure> {
        if path == "-" {
            return Ok(ReportFile::Stdout);
        }
        let path = PathBuf::from(path);
        let error = |e: std::io::Error| report_error(&path, &e);
        match std::fs::metadata(&path) {
            Ok(m) if !m.is_file() => {
                let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(error)?;
                Ok(ReportFile::Special(path, file))
            }
            _ => {
                let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
                std::fs::metadata(dir).map_err(error)?;
                // The full text of these errors would name the temporary file.
                let temp = tempfile::NamedTempFile::new_in(dir).map_err(|e| report_error(&path, &e.kind()))?;
                Ok(ReportFile::Regular(path, temp))
            }
        }
    }

    fn write(self, text: &str) -> Result<(), Failure> {
        match self {
            ReportFile::Stdout => print(text),
            ReportFile::Special(path, mut file) => {
                Ok(file.write_all(text.as_bytes()).map_err(|e| report_error(&path, &e))?)
            }
            ReportFile::Regular(path, mut temp) => {
                temp.write_all(text.as_bytes()).map_err(|e| report_error(&path, &e.kind()))?;
                temp.persist(&path).map_err(|e| report_error(&path, &e.error.kind()))?;
                Ok(())
            }
        }
    }
}

fn report_error(path: &std::path::Path, e: &dyn std::fmt::Display) -> String {
    format!("cannot write the report {}: {e}", path.display())
}

/// Options for the choice of rules.
#[derive(Debug, clap::Args)]
struct RuleOptions {
    /// Also read the *.rules files of this folder.
    #[arg(long = "rules", value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Leave out a rule.
    #[arg(long = "no-rule", value_name = "NAME")]
    banned: Vec<String>,
}

impl RuleOptions {
    fn load(&self) -> Result<RuleSet, Failure> {
        let mut files: Vec<(String, String)> =
            BUNDLED.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect();
        for dir in &self.dirs {
            let error = |e: std::io::Error| format!("cannot read the rules folder {}: {e}", dir.display());
            let mut paths = vec![];
            for entry in std::fs::read_dir(dir).map_err(error)? {
                let path = entry.map_err(error)?.path();
                if path.extension().is_some_and(|e| e == "rules") {
                    paths.push(path);
                }
            }
            if paths.is_empty() {
                return Err(format!("the rules folder {} holds no *.rules file", dir.display()).into());
            }
            paths.sort();
            for p in paths {
                let text = std::fs::read_to_string(&p).map_err(|e| format!("cannot read {}: {e}", p.display()))?;
                files.push((p.display().to_string(), text));
            }
        }
        let mut rules = RuleSet::read(files.iter().map(|(n, t)| (n.as_str(), t.as_str())))?;
        rules.ban(&self.banned)?;
        Ok(rules)
    }
}
