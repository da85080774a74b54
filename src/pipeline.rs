//! The only place that lists the stages: import, raise, partition, saturate, extract, lower.
//!
//! Straight-line code; the verifier runs between any two stages.

use crate::cost::{CostModel, DEFAULT, Device, DeviceError, Objective};
use crate::explain::{Record, Recorder};
use crate::extract::{self, ExtractError, ExtractStats, Extracted};
use crate::import::Imported;
use crate::ir::{Graph, Mapping, Op, VerifyError, verify};
use crate::lower::{self, LowerError};
use crate::partition::{self, PartitionError};
use crate::rules::{Phase, RuleSet};
use crate::saturate::{self, Program, RuleConflict, SaturateConfig, SaturateStats, StopReason};
use crate::timing::Timings;
use sinter_runtime::plan::Plan;

/// What to compile for.
pub struct CompileConfig {
    /// Sizes of the mesh axes.
    pub mapping: Mapping,
    /// Layers per stage; by cost where not given.
    pub layers_per_stage: Option<Vec<usize>>,
    /// What extraction minimises.
    pub objective: Objective,
    /// The device that costs are estimated for.
    pub device: Device,
    /// The rules.
    pub rules: RuleSet,
    /// Limits of saturation.
    pub saturate: SaturateConfig,
}

impl CompileConfig {
    /// What is used unless the caller has reasons of its own: the bundled device, the objective `memory`.
    pub fn standard(mapping: Mapping, rules: RuleSet) -> Result<CompileConfig, DeviceError> {
        Ok(CompileConfig {
            mapping,
            layers_per_stage: None,
            objective: Objective::Memory,
            device: Device::parse("h200", DEFAULT)?,
            rules,
            saturate: SaturateConfig::standard(),
        })
    }
}

/// A compiled model.
#[derive(Debug)]
pub struct Compiled {
    /// What the ranks execute.
    pub plan: Plan,
    /// The extracted program, SPMD, with stages.
    pub graph: Graph,
    /// The raised program before partition.
    pub raised: Graph,
    /// Saturation of the raised program and of the final one.
    pub saturate: Vec<(Phase, SaturateStats)>,
    /// Costs along the way. `original` is the imported program.
    pub extract: ExtractStats,
    /// How each step came about.
    pub record: Record,
    /// Time by stage.
    pub timings: Timings,
    /// The device and profiles that costs are estimated for.
    pub device: String,
}

/// A model that cannot be compiled as asked.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A stage made a graph that is wrong: a defect of the compiler.
    #[error("after {stage}: {source}\n  this is a defect of sinter; please report it with the model")]
    Verify {
        /// The stage.
        stage: &'static str,
        /// What is wrong.
        source: VerifyError,
    },
    /// A rule equates what cannot be equal.
    #[error(transparent)]
    Rule(#[from] RuleConflict),
    /// The model communicates between another number of ranks.
    #[error(
        "--tp {tp} does not fit: the model communicates between {stated} ranks already\n  help: use --tp {stated}, or export the model without communication"
    )]
    Ranks {
        /// Ranks that the model states.
        stated: usize,
        /// Ranks asked for.
        tp: usize,
    },
    /// The mapping does not fit the model.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// A defect of the compiler.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// A defect of the compiler.
    #[error(transparent)]
    Lower(#[from] LowerError),
}

fn checked(stage: &'static str, graph: Graph) -> Result<Graph, CompileError> {
    match verify(&graph) {
        Ok(()) => Ok(graph),
        Err(source) => Err(CompileError::Verify { stage, source }),
    }
}

/// Compiles an imported model.
pub fn compile(model: &Imported, config: &CompileConfig) -> Result<Compiled, CompileError> {
    compile_with(model, config, &|_, program, graph, cost| extract::extract(program, graph, cost))
}

/// Chooses a program from the e-graph that the rules of some phases saturated. The graph is the one that
/// the e-graph was made from.
pub type Extractor<'a> = &'a dyn Fn(&[Phase], &Program, &Graph, &CostModel) -> Result<Extracted, ExtractError>;

/// Compiles an imported model with an extraction of the caller's.
pub fn compile_with(
    model: &Imported,
    config: &CompileConfig,
    extractor: Extractor<'_>,
) -> Result<Compiled, CompileError> {
    let mut t = Timings::default();
    let mapping = config.mapping;
    let imported = checked("import", model.graph.clone())?;
    if let Some(stated) = model.ranks.filter(|&r| r != mapping.tp) {
        return Err(CompileError::Ranks { stated, tp: mapping.tp });
    }
    // A model that communicates is the program of one rank: its weights are shares already.
    let is_share = communicates(&imported);
    let objective = if is_share { Objective::Latency } else { config.objective };
    let cost = CostModel::new(config.device.clone(), mapping, objective, &imported);

    let mut log = Log { stats: vec![], recorder: Recorder::new() };
    let mut inner = Timings::default();
    let raised = rewrite(&imported, &[Phase::Raise], config, &cost, extractor, &mut log, &mut inner)?;
    for &(name, ms) in inner.entries() {
        t.add(if name == "explain" { name } else { "raise" }, ms);
    }
    let original = raised.stats;
    let raised = checked("raise", mark_caches(raised.graph))?;
    if !is_share {
        partition::check_heads(&raised, mapping.tp)?;
    }
    let staged =
        t.time("partition", || partition::partition(&raised, mapping.pp, config.layers_per_stage.as_deref(), &cost))?;
    let staged = checked("partition", staged)?;

    let found = rewrite(&staged, &[Phase::Shard, Phase::Fuse], config, &cost, extractor, &mut log, &mut t)?;
    let graph = checked("extract", found.graph)?;
    let mut plan = t.time("lower", || lower::lower(&graph, &imported, mapping, &cost))?;
    for i in &mut plan.inputs {
        i.kind = model.kinds.get(&i.name).cloned();
        i.default = model.defaults.contains(&i.name);
    }
    plan.outputs.iter_mut().for_each(|o| o.kind = model.kinds.get(&o.name).cloned());
    plan.inputs.iter_mut().for_each(|i| i.declared = model.declared.get(&i.name).cloned());
    plan.assumptions.clone_from(&model.assumptions);
    plan.random = model.weights.random().cloned().collect();
    let extract =
        ExtractStats { original_ns: original.original_ns, original_time_ns: original.original_time_ns, ..found.stats };
    let Log { stats: saturate, recorder } = log;
    let record = recorder.record;
    Ok(Compiled { plan, graph, raised, saturate, extract, record, timings: t, device: cost.describe() })
}

/// What is told of the way.
struct Log {
    stats: Vec<(Phase, SaturateStats)>,
    recorder: Recorder,
}

/// Saturates a graph with the rules of some phases, one after the other, and extracts a program.
fn rewrite(
    graph: &Graph,
    phases: &[Phase],
    config: &CompileConfig,
    cost: &CostModel,
    extractor: Extractor<'_>,
    log: &mut Log,
    t: &mut Timings,
) -> Result<Extracted, CompileError> {
    let mut program = saturate::load(graph);
    for &phase in phases {
        let mut rules = config.rules.phase(phase);
        if communicates(graph) {
            rules.retain(|r| !r.cuts());
        }
        let made = &mut program.made;
        let run = || saturate::saturate(&mut program.eg, &rules, &config.mapping, config.saturate, made);
        log.stats.push((phase, t.time("saturate", run)?));
    }
    let mut found = t.time("extract", || extractor(phases, &program, graph, cost))?;
    t.time("explain", || {
        let graphs = (graph, &mut found.graph);
        let to = (&config.mapping, phases);
        saturate::explain(&program, graphs, &found.terms, &config.rules, to, &mut log.recorder);
    });
    Ok(found)
}

/// Whether a graph has sums over ranks: as it comes from the importer, these are the model's own.
fn communicates(graph: &Graph) -> bool {
    graph.nodes().any(|(_, n)| matches!(n.op, Op::AllReduce { .. }))
}

/// Marks the outputs that extend an input: caches, which the caller feeds back, so that their parts may
/// stay on the ranks.
fn mark_caches(mut graph: Graph) -> Graph {
    let caches: Vec<bool> = graph
        .outputs()
        .iter()
        .map(|o| {
            let n = graph.node(o.value);
            matches!(n.op, Op::Concat { .. } | Op::Append { .. })
                && n.inputs.iter().any(|&i| matches!(graph.node(i).op, Op::Input { .. }))
        })
        .collect();
    for (o, c) in graph.outputs_mut().iter_mut().zip(caches) {
        o.state = c;
    }
    graph
}

impl Compiled {
    /// Why the saturation stopped: `saturated` only if every phase was.
    pub fn stop(&self) -> String {
        let early = self.saturate.iter().find(|(_, s)| s.stop != StopReason::Saturated);
        early.map_or_else(|| "saturated".to_owned(), |(p, s)| format!("{} in phase {}", s.stop, p.name()))
    }
}
