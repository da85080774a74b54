//! Graphs from files: a model after a stage of compilation, a text, the stages of a plan.

use std::path::Path;

use clap::ValueEnum;
use sinter_runtime::plan::Plan;

use super::Failure;
use crate::import::Imported;
use crate::ir::{self, Graph};
use crate::pipeline::{CompileConfig, compile};

/// A stage of compilation after which there is a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum StageName {
    Import,
    Raise,
    Extract,
}

/// The graph of a model after a stage. `config` is asked only where the stage needs it.
pub(super) fn at_stage(
    model: Imported,
    stage: StageName,
    config: impl FnOnce() -> Result<CompileConfig, Failure>,
) -> Result<Graph, Failure> {
    if stage == StageName::Import {
        return Ok(model.graph);
    }
    let c = compile(&model, &config()?)?;
    Ok(if stage == StageName::Raise { c.raised } else { c.graph })
}

/// Whether a path names a graph in text form.
pub(super) fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "sir")
}

fn read(path: &Path) -> Result<String, Failure> {
    Ok(std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?)
}

/// Reads a graph in text form from a file.
pub(super) fn text_file(path: &Path) -> Result<Graph, Failure> {
    parse(path, &read(path)?)
}

/// Reads a graph in text form. `path` is where it comes from.
pub(super) fn parse(path: &Path, text: &str) -> Result<Graph, Failure> {
    let graph = ir::parse(text).map_err(|e| format!("{}: {e}", path.display()))?;
    ir::verify(&graph).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(graph)
}

/// The texts of a plan's stages, in order.
pub(super) fn stage_texts(dir: &Path, plan: &Plan) -> Result<Vec<String>, Failure> {
    (0..plan.mapping.pp).map(|s| read(&dir.join(format!("stage{s}.sir")))).collect()
}
