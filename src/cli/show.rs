//! `sinter show`: print a model or a plan as text.

use std::path::PathBuf;

use clap::{Args, ValueEnum as _};

use super::graphs::{self, StageName};
use super::options::{CheckedRules, MeshOptions};
use super::{Failure, Outcome, load_plan, print, say};
use crate::import::{self, ImportError};
use crate::ir;
use crate::pipeline::CompileConfig;

/// Options of `sinter show`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An ONNX file, a graph in text form (*.sir), or a plan folder.
    path: PathBuf,
    /// The stage of compilation after which to print a model (import, raise or extract; import where not given), or the
    /// number of the pipeline stage of a plan to print.
    #[arg(long, value_name = "NAME|N", value_parser = wanted)]
    stage: Option<Wanted>,
    #[command(flatten)]
    mesh: MeshOptions,
    #[command(flatten)]
    rules: CheckedRules,
}

/// What of a model or plan is printed.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// The graph after a stage of compilation.
    After(StageName),
    /// A pipeline stage of a plan.
    Part(usize),
}

fn wanted(text: &str) -> Result<Wanted, String> {
    if let Ok(n) = text.parse() {
        return Ok(Wanted::Part(n));
    }
    let name = StageName::from_str(text, false).map(Wanted::After);
    name.map_err(|_| {
        "stages of compilation are import, raise and extract; a number is a pipeline stage of a plan".to_owned()
    })
}

impl Options {
    /// Refuses options that would change nothing.
    fn refuse_compilation(&self, what: &str) -> Result<(), Failure> {
        if self.mesh.is_given() || self.rules.is_given() {
            return Err(
                format!("--tp, --pp, --rules and --no-rule are for an ONNX file: {what} is printed as it is").into()
            );
        }
        Ok(())
    }
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    if o.path.is_dir() {
        let (plan, _) = load_plan(&o.path)?;
        o.refuse_compilation("a plan")?;
        let texts = graphs::stage_texts(&o.path, &plan)?;
        match o.stage {
            // A plan is what extraction made.
            None | Some(Wanted::After(StageName::Extract)) => texts.iter().try_for_each(|t| print(t))?,
            Some(Wanted::Part(n)) => match texts.get(n) {
                Some(t) => print(t)?,
                None => {
                    let last = texts.len().saturating_sub(1);
                    return Err(format!("--stage {n}: the pipeline stages of the plan are 0 to {last}").into());
                }
            },
            Some(Wanted::After(_)) => {
                return Err("--stage import and --stage raise are for an ONNX file: a plan holds the extracted program alone\n  help: leave \
                            --stage out, or give the number of a pipeline stage"
                    .into());
            }
        }
        return Ok(Outcome::Done);
    }
    if graphs::is_text(&o.path) {
        o.refuse_compilation("a graph in text form")?;
        if o.stage.is_some() {
            return Err("--stage is for an ONNX file or a plan: a graph in text form is printed as it is".into());
        }
        print(&ir::print(&graphs::text_file(&o.path)?))?;
        return Ok(Outcome::Done);
    }
    let stage = match o.stage {
        None => StageName::Import,
        Some(Wanted::After(stage)) => stage,
        Some(Wanted::Part(n)) => {
            return Err(format!(
                "--stage {n} names a pipeline stage, which plans have: after which stage of compilation shall the model be \
                 printed, import, raise or extract?"
            )
            .into());
        }
    };
    let model = import::open(&o.path)?;
    let imported = match model.import() {
        Ok(i) => i,
        Err(e @ ImportError::Unknown { .. }) if stage == StageName::Import => {
            // The graph is shown as it stands in the file.
            say(&format!("note: {e}"));
            print(&model.listing())?;
            return Ok(Outcome::Done);
        }
        Err(e) => return Err(e.into()),
    };
    let graph = graphs::at_stage(imported, stage, || Ok(CompileConfig::standard(o.mesh.mapping(), o.rules.load()?)?))?;
    print(&ir::print(&graph))?;
    Ok(Outcome::Done)
}
