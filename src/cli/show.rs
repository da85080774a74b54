//! `sinter show`: print a model or a plan as text.

use std::path::PathBuf;

use clap::Args;

use super::graphs::{self, StageName};
use super::options::{CheckedRules, MeshOptions};
use super::{Failure, Outcome, print, say};
use crate::import::{self, ImportError};
use crate::ir;
use crate::pipeline::CompileConfig;

/// Options of `sinter show`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An ONNX file, a graph in text form (*.sir), or a plan folder.
    path: PathBuf,
    /// The stage of compilation after which to print.
    #[arg(long, value_enum, default_value_t = StageName::Import)]
    stage: StageName,
    #[command(flatten)]
    mesh: MeshOptions,
    #[command(flatten)]
    rules: CheckedRules,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    if o.path.is_dir() {
        let (plan, _) = sinter_runtime::plan::load(&o.path)?;
        graphs::stage_texts(&o.path, &plan)?.iter().try_for_each(|t| print(t))?;
        return Ok(Outcome::Done);
    }
    if graphs::is_text(&o.path) {
        print(&ir::print(&graphs::text_file(&o.path)?))?;
        return Ok(Outcome::Done);
    }
    let model = import::open(&o.path)?;
    let imported = match model.import() {
        Ok(i) => i,
        Err(e @ ImportError::Unknown { .. }) if o.stage == StageName::Import => {
            // The graph is shown as it stands in the file.
            say(&format!("note: {e}"));
            print(&model.listing())?;
            return Ok(Outcome::Done);
        }
        Err(e) => return Err(e.into()),
    };
    let graph =
        graphs::at_stage(imported, o.stage, || Ok(CompileConfig::standard(o.mesh.mapping(), o.rules.load()?)?))?;
    print(&ir::print(&graph))?;
    Ok(Outcome::Done)
}
