//! `sinter snapshot`: keep what a model compiles to under review, as a file beside it.

use std::path::PathBuf;

use clap::Args;

use super::graphs::{self, StageName};
use super::options::CompileOptions;
use super::{Failure, OutFile, Outcome, print, say};
use crate::diff::diff;
use crate::import;
use crate::ir;

/// Options of `sinter snapshot`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The ONNX file.
    model: PathBuf,
    /// The text of its graph. A missing file is written, unless the environment variable CI is set.
    file: PathBuf,
    /// Accept the graph as it is now.
    #[arg(long)]
    update: bool,
    /// The stage of compilation whose graph is kept.
    #[arg(long, value_enum, default_value_t = StageName::Extract)]
    stage: StageName,
    #[command(flatten)]
    compile: CompileOptions,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let name = o.file.display();
    let kept = match std::fs::read_to_string(&o.file) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(format!("cannot read {name}: {e}").into()),
    };
    if kept.is_none() && !o.update && in_ci() {
        say(&format!(
            "check failed: there is no snapshot {name}, and none is written where CI is set\n  help: run the command on your machine and commit the file"
        ));
        return Ok(Outcome::CheckFailed);
    }
    // What cannot be read is no obstacle to its replacement.
    let before = match &kept {
        Some(text) => match graphs::parse(&o.file, text) {
            Ok(g) => Some(g),
            Err(_) if o.update => None,
            Err(e) => return Err(format!("{e}\n  help: `--update` replaces the file").into()),
        },
        None => None,
    };
    let writes = kept.is_none() || o.update;
    let file = if writes { Some(OutFile::open("snapshot", &o.file)?) } else { None };
    let model = import::open(&o.model)?.import()?;
    let graph = graphs::at_stage(model, o.stage, || o.compile.config())?;
    let text = ir::print(&graph);
    let same_text = kept.as_ref().is_some_and(|k| k.lines().eq(text.lines()));
    if same_text {
        print(&format!("{name} is up to date\n"))?;
        return Ok(Outcome::Done);
    }
    let difference = before.map(|b| diff(&b, &graph));
    let shown = difference.as_ref().map_or_else(String::new, |d| d.text(false));
    if let Some(file) = file {
        file.write(&text)?;
        print(&format!("{shown}wrote {name}: {}\n", super::counted(graph.len(), "node")))?;
        return Ok(Outcome::Done);
    }
    print(&shown)?;
    if difference.is_some_and(|d| d.is_equal()) {
        print(&format!("{name} is the same program; names or order differ, and `--update` brings it up to date\n"))?;
        return Ok(Outcome::Done);
    }
    say(&format!("check failed: the graph is not the one in {name}; `--update` accepts it"));
    Ok(Outcome::CheckFailed)
}

/// Whether a person is there to commit a new file.
fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|v| !v.is_empty() && v != "0" && v != "false")
}
