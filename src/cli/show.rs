//! `sinter show`: print a model or a plan as text.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Failure, Outcome, RuleOptions, print, say};
use crate::import::{self, ImportError};
use crate::ir::{self, Mapping};
use crate::pipeline::{CompileConfig, compile};

/// Options of `sinter show`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An ONNX file, a graph in text form (*.sir), or a plan folder.
    path: PathBuf,
    /// The stage of compilation after which to print.
    #[arg(long, value_enum, default_value_t = StageName::Import)]
    stage: StageName,
    /// Tensor-parallel size, for `--stage extract`.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    tp: u16,
    /// Pipeline-parallel size, for `--stage extract`.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pp: u16,
    #[command(flatten)]
    rules: RuleOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StageName {
    Import,
    Raise,
    Extract,
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    if o.path.is_dir() {
        let (plan, _) = sinter_runtime::plan::load(&o.path)?;
        for s in 0..plan.mapping.pp {
            let file = o.path.join(format!("stage{s}.sir"));
            let text = std::fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
            print(&text)?;
        }
        return Ok(Outcome::Done);
    }
    if o.path.extension().is_some_and(|e| e == "sir") {
        let text = std::fs::read_to_string(&o.path).map_err(|e| format!("cannot read {}: {e}", o.path.display()))?;
        let graph = ir::parse(&text).map_err(|e| format!("{}: {e}", o.path.display()))?;
        ir::verify(&graph).map_err(|e| format!("{}: {e}", o.path.display()))?;
        print(&ir::print(&graph))?;
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
    if o.stage == StageName::Import {
        print(&ir::print(&imported.graph))?;
        return Ok(Outcome::Done);
    }
    let mapping = Mapping { tp: o.tp.into(), pp: o.pp.into() };
    let c = compile(&imported, &CompileConfig::standard(mapping, o.rules.load()?)?)?;
    print(&ir::print(if o.stage == StageName::Raise { &c.raised } else { &c.graph }))?;
    Ok(Outcome::Done)
}
