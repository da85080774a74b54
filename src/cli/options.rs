//! Options that several commands share: the mesh, the rules, and what compilation depends on.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::Failure;
use crate::check::{self, VerifyConfig};
use crate::cost::{DEFAULT, Device, Objective};
use crate::import::Model;
use crate::ir::Mapping;
use crate::pipeline::CompileConfig;
use crate::rules::{BUNDLED, MANIFEST, Pack, Rule, RuleSet};
use crate::saturate::SaturateConfig;

/// The sizes of the mesh.
#[derive(Debug, Args)]
pub(super) struct MeshOptions {
    /// Tensor-parallel size: ranks that share each stage's weights.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    tp: u16,
    /// Pipeline-parallel size: number of stages.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pp: u16,
}

impl MeshOptions {
    /// Whether more than one rank is asked for.
    pub(super) fn is_given(&self) -> bool {
        (self.tp, self.pp) != (1, 1)
    }

    pub(super) fn mapping(&self) -> Mapping {
        Mapping { tp: self.tp.into(), pp: self.pp.into() }
    }
}

/// How a model is read.
#[derive(Debug, Args)]
pub(super) struct ModelOptions {
    /// Make up the data of weights whose data is absent, from this seed: matrices within 1/sqrt(n) of 0, vectors within
    /// 0.1 of 1. Data that is there is used. A plan records the seed in place of the data.
    #[arg(long = "random-weights", value_name = "SEED")]
    seed: Option<u64>,
    /// Make constants of inputs that have default values (initializers that are also inputs), so that weights among them are
    /// divided and folded. They are no inputs then.
    #[arg(long)]
    freeze_defaults: bool,
}

impl ModelOptions {
    /// The option that only an ONNX file can have, and what a plan has in its place.
    pub(super) fn refuse_for_plan(&self) -> Result<(), Failure> {
        if self.seed.is_some() {
            return Err("--random-weights is for an ONNX file: a plan records how its weights are made up".into());
        }
        if self.freeze_defaults {
            return Err("--freeze-defaults is for an ONNX file: a plan has its inputs already".into());
        }
        Ok(())
    }

    pub(super) fn apply(&self, model: Model) -> Model {
        model.with_random_weights(self.seed).with_frozen_defaults(self.freeze_defaults)
    }
}

/// All that decides what a model is compiled to.
#[derive(Debug, Args)]
pub(super) struct CompileOptions {
    #[command(flatten)]
    mesh: MeshOptions,
    /// Layers per stage, such as 17,15; balanced by cost where not given.
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    pp_partition: Option<Vec<usize>>,
    /// What to minimise: time with a price on weight bytes beyond a rank's share, or time alone.
    #[arg(long, value_enum, default_value_t = ObjectiveName::Memory)]
    objective: ObjectiveName,
    /// Device profile (JSON) for cost estimates; the bundled H200 profile where not given.
    #[arg(long, value_name = "FILE")]
    device: Option<PathBuf>,
    #[command(flatten)]
    rules: CheckedRules,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ObjectiveName {
    Memory,
    Latency,
}

impl CompileOptions {
    /// Whether rules of the caller are used unverified.
    pub(super) fn trusts_rules(&self) -> bool {
        self.rules.trusts()
    }

    pub(super) fn config(&self) -> Result<CompileConfig, Failure> {
        let rules = self.rules.load()?;
        let device = match &self.device {
            None => Device::parse("h200", DEFAULT)?,
            Some(p) => {
                let text = std::fs::read_to_string(p).map_err(|e| format!("cannot read {}: {e}", p.display()))?;
                Device::parse(&p.display().to_string(), &text)?
            }
        };
        Ok(CompileConfig {
            mapping: self.mesh.mapping(),
            layers_per_stage: self.pp_partition.clone(),
            objective: match self.objective {
                ObjectiveName::Memory => Objective::Memory,
                ObjectiveName::Latency => Objective::Latency,
            },
            device,
            rules,
            saturate: SaturateConfig::standard(),
        })
    }
}

/// Options for the choice of rules.
#[derive(Debug, Args)]
pub(super) struct RuleOptions {
    /// Also read the *.rules files of this folder, in the order of its pack.json if it has one.
    #[arg(long = "rules", value_name = "DIR")]
    pub(super) dirs: Vec<PathBuf>,
    /// Leave out a rule.
    #[arg(long = "no-rule", value_name = "NAME")]
    pub(super) banned: Vec<String>,
}

impl RuleOptions {
    pub(super) fn load(&self) -> Result<RuleSet, Failure> {
        let packs = self.dirs.iter().map(|d| pack(d)).collect::<Result<_, _>>()?;
        Ok(RuleSet::load(packs, &self.banned)?)
    }
}

/// The rule files of a folder, with its manifest if it has one.
fn pack(dir: &Path) -> Result<Pack, Failure> {
    let error = |e: std::io::Error| format!("cannot read the rules folder {}: {e}", dir.display());
    let read = |p: &Path| std::fs::read_to_string(p).map_err(|e| format!("cannot read {}: {e}", p.display()));
    let (mut files, mut manifest) = (vec![], None);
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == MANIFEST {
            manifest = Some(read(&path)?);
        } else if path.extension().is_some_and(|e| e == "rules") {
            files.push((name, read(&path)?));
        }
    }
    if files.is_empty() {
        return Err(format!("the rules folder {} holds no *.rules file", dir.display()).into());
    }
    Ok(Pack::read(&dir.display().to_string(), manifest.as_deref(), &files))
}

/// Rules for compilation: those of the caller must hold.
#[derive(Debug, Args)]
pub(super) struct CheckedRules {
    #[command(flatten)]
    files: RuleOptions,
    /// Use the rules of --rules folders without verifying them first.
    #[arg(long)]
    trust_rules: bool,
}

impl CheckedRules {
    /// Whether other rules than the bundled ones are asked for.
    pub(super) fn is_given(&self) -> bool {
        !self.files.dirs.is_empty() || !self.files.banned.is_empty()
    }

    /// Whether rules of the caller are used unverified.
    pub(super) fn trusts(&self) -> bool {
        self.trust_rules
    }

    /// Reads the rules, and verifies those that are not part of the program. A rule that does not hold is
    /// refused with a counter-example, which is exit code 1.
    pub(super) fn load(&self) -> Result<RuleSet, Failure> {
        let rules = self.files.load()?;
        if self.trust_rules {
            return Ok(rules);
        }
        let refused: Vec<String> = own_rules(&rules)
            .filter_map(|r| check::refusal(&rules, r, &check::verify(r, None, VerifyConfig::standard())))
            .collect();
        if refused.is_empty() { Ok(rules) } else { Err(Box::new(Refused(refused))) }
    }
}

/// The rules that are not part of the program.
pub(super) fn own_rules(rules: &RuleSet) -> impl Iterator<Item = &Rule> {
    rules.rules().iter().filter(|r| !BUNDLED.iter().any(|(file, _)| *file == r.file))
}

/// Rules of the caller that do not hold, rendered.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(super) struct Refused(Vec<String>);
