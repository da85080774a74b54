//! Executes a plan with all of its ranks as threads of this process.
//!
//! Ranks exchange data in memory and in a fixed order, so that results do not depend on timing. Every
//! exchange is checked against the plan's certificate. The first rank that fails stops all others.

mod bind;
mod rank;
mod steady;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::comm::{CommError, Hub};
use crate::cpu::KernelError;
use crate::dim::Bindings;
use crate::dtype::{DType, TensorType};
use crate::plan::{Assumption, Certificate, InputDecl, Mapping, OutputDecl, Plan, Source, Stage, ValueId};
use crate::standard::Data;
use crate::tensor::{Tensor, byte_len, for_each_piece};

/// Why a plan could not be executed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The caller's inputs are not what the plan asks for.
    #[error("the inputs do not fit the plan: {}", .0.join("; "))]
    Inputs(Vec<String>),
    /// A rank failed; all others were stopped.
    #[error("rank {rank}, step {step} ({op}): {source}")]
    Step {
        /// The rank.
        rank: usize,
        /// Index of the step in its stage.
        step: usize,
        /// The operator with the types of its operands and results.
        op: String,
        /// What went wrong.
        source: Box<StepError>,
    },
    /// A weight is not to be had.
    #[error("weight `{key}` of rank {rank}: {why}")]
    Weight {
        /// The rank.
        rank: usize,
        /// Key in the rank's weight file.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// There is not enough memory.
    #[error("rank {rank}: no memory for {bytes} bytes of buffers")]
    Memory {
        /// The rank.
        rank: usize,
        /// The size of the buffer that was asked for.
        bytes: usize,
    },
    /// A rank failed outside of a step.
    #[error("rank {rank}: {why}")]
    Rank {
        /// The rank.
        rank: usize,
        /// What went wrong.
        why: String,
    },
    /// The plan contradicts itself, or does not work with inputs of these shapes.
    #[error("the plan cannot be executed: {0}")]
    Plan(String),
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The kernel refused, or its exchange with other ranks failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An operand or result is not to be had.
    #[error("{0}")]
    Operand(String),
    /// The kernel panicked, which is a defect of this program.
    #[error("panic: {0}")]
    Panic(String),
}

impl StepError {
    fn is_stopped(&self) -> bool {
        matches!(self, StepError::Kernel(KernelError::Comm(CommError::Stopped)))
    }
}

/// Where ranks find their weights.
pub trait WeightSource: Sync {
    /// The elements of a weight in row-major order.
    fn weight(&self, rank: usize, key: &str) -> Result<Cow<'_, [u8]>, RunError>;

    /// The value of an input that the caller does not give.
    fn default(&self, _input: &InputDecl) -> Result<Option<Tensor>, RunError> {
        Ok(None)
    }
}

/// Weights held in memory, by rank and key.
impl WeightSource for BTreeMap<(usize, String), Tensor> {
    fn weight(&self, rank: usize, key: &str) -> Result<Cow<'_, [u8]>, RunError> {
        match self.get(&(rank, key.to_owned())) {
            Some(t) => Ok(Cow::Borrowed(t.bytes())),
            None => Err(RunError::Weight { rank, key: key.to_owned(), why: "there is none".to_owned() }),
        }
    }
}

/// What a caller is told while a plan runs.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The rank.
    pub rank: usize,
    /// The step that it has finished.
    pub step: usize,
    /// Number of steps of its stage.
    pub n_steps: usize,
    /// Name of the step's operator.
    pub op: &'static str,
}

/// Changes the result of a step: the name of the value, its type and extents, its elements.
pub type Alter<'a> = &'a (dyn Fn(&str, DType, &[usize], &mut [u8]) + Sync);

/// How to execute.
#[derive(Clone, Copy)]
pub struct RunConfig<'a> {
    /// A rank that waits this long while no rank finishes a step gives up.
    pub timeout: Duration,
    /// Whether to keep intermediate values.
    pub trace: bool,
    /// Called by the ranks' threads after every step.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Number of times that the program is executed, at least 1.
    pub repeat: usize,
    /// Inputs that are no tensors of numbers: strings, sequences, optional values.
    pub data: Option<&'a BTreeMap<String, Data>>,
    /// Called with each result of a step before later steps read it.
    pub alter: Option<Alter<'a>>,
}

impl Default for RunConfig<'_> {
    fn default() -> Self {
        RunConfig { timeout: Duration::from_secs(60), trace: false, progress: None, repeat: 1, data: None, alter: None }
    }
}

/// What came of executing a plan.
#[derive(Debug, Default)]
pub struct RunResult {
    /// The whole outputs in the plan's order, as far as they are tensors of numbers.
    pub outputs: Vec<(String, Tensor)>,
    /// The other outputs in the plan's order.
    pub data: Vec<(String, Data)>,
    /// Per repetition, milliseconds from the start of the first rank to the end of the last.
    pub total_ms: Vec<f64>,
    /// Per stage and step, mean milliseconds over the repetitions in column 0, waiting included.
    pub step_ms: Vec<Vec<f64>>,
    /// With [`RunConfig::trace`]: values of column 0 by name. Where the plan has a reference program, only
    /// those that the reference has under the same name and type, so that parts are left out.
    pub trace: BTreeMap<String, Tensor>,
}

/// What is executed: the stages of a plan, or its reference program as the only stage.
struct Program<'a> {
    mapping: Mapping,
    stages: Vec<&'a Stage>,
    inputs: &'a [InputDecl],
    assumptions: &'a [Assumption],
    outputs: Vec<OutputDecl>,
    certificate: Cow<'a, Certificate>,
    /// Types by which traced values are chosen.
    reference: Option<&'a Stage>,
}

/// An input of the caller.
#[derive(Clone, Copy)]
enum Whole<'a> {
    Tensor(&'a Tensor),
    Data(&'a Data),
}

/// A program with all extents known, and what the ranks share while they execute it.
struct Job<'a> {
    program: &'a Program<'a>,
    bindings: Arc<Bindings>,
    /// Per stage and value; `None` where a symbol gets its value only during execution.
    shapes: Vec<Vec<Option<Vec<usize>>>>,
    /// Whole inputs in the plan's order.
    inputs: Vec<Whole<'a>>,
    weights: &'a dyn WeightSource,
    config: &'a RunConfig<'a>,
    hub: Hub,
    threads: usize,
}

/// Executes a plan.
pub fn run(
    plan: &Plan,
    weights: &dyn WeightSource,
    inputs: &BTreeMap<String, Tensor>,
    config: &RunConfig<'_>,
) -> Result<RunResult, RunError> {
    check(plan)?;
    let program = Program {
        mapping: plan.mapping,
        stages: plan.stages.iter().collect(),
        inputs: &plan.inputs,
        assumptions: &plan.assumptions,
        outputs: plan.outputs.clone(),
        certificate: Cow::Borrowed(&plan.certificate),
        reference: plan.reference.as_deref(),
    };
    execute(&program, weights, inputs, config)
}

/// Executes a plan's reference program on one rank.
pub fn run_reference(
    plan: &Plan,
    weights: &dyn WeightSource,
    inputs: &BTreeMap<String, Tensor>,
    config: &RunConfig<'_>,
) -> Result<RunResult, RunError> {
    check(plan)?;
    let Some(reference) = plan.reference.as_deref() else {
        return Err(RunError::Plan("it has no reference program".to_owned()));
    };
    let find = |o: &OutputDecl| {
        let value = ValueId(reference.values.iter().position(|v| v.name == o.name)?);
        Some(OutputDecl { stage: 0, value, part: None, ..o.clone() })
    };
    let outputs: Option<Vec<OutputDecl>> = plan.outputs.iter().map(find).collect();
    let program = Program {
        mapping: Mapping { tp: 1, pp: 1 },
        stages: vec![reference],
        inputs: &plan.inputs,
        assumptions: &plan.assumptions,
        outputs: outputs.ok_or_else(|| RunError::Plan("the reference program lacks an output".to_owned()))?,
        certificate: Cow::Owned(Certificate::default()),
        reference: None,
    };
    execute(&program, weights, inputs, config)
}

/// The indices of a plan must be sound before anything follows them.
fn check(plan: &Plan) -> Result<(), RunError> {
    let problems = crate::plan::structure(plan);
    if problems.is_empty() { Ok(()) } else { Err(RunError::Plan(problems.join("; "))) }
}

fn execute(
    program: &Program<'_>,
    weights: &dyn WeightSource,
    inputs: &BTreeMap<String, Tensor>,
    config: &RunConfig<'_>,
) -> Result<RunResult, RunError> {
    let none = BTreeMap::new();
    let data = config.data.unwrap_or(&none);
    let inputs = &*with_defaults(program.inputs, inputs, weights)?;
    let bindings = bind::bind(program.inputs, program.assumptions, inputs, data)?;
    let whole = |d: &InputDecl| {
        let tensor = inputs.get(&d.name).map(Whole::Tensor);
        if d.ty.dtype == DType::Opaque { data.get(&d.name).map(Whole::Data) } else { tensor }
    };
    let world = program.mapping.world();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let job = Job {
        program,
        shapes: program.stages.iter().map(|s| shapes(s, &bindings)).collect::<Result<_, _>>()?,
        bindings: Arc::new(bindings),
        inputs: program.inputs.iter().filter_map(whole).collect(),
        weights,
        config,
        hub: Hub::new(config.timeout),
        threads: (cores / world).max(1),
    };
    let failure: Mutex<Option<RunError>> = Mutex::new(None);
    let finished: Vec<Option<rank::Finished>> = std::thread::scope(|scope| {
        let start = |rank: usize| {
            let (job, failure) = (&job, &failure);
            scope.spawn(move || {
                // A rank alone is a task of the pool whose threads its kernels share, so that none has to be woken before a
                // kernel begins. Several ranks wait for each other, which tasks must not.
                let run = || match world {
                    1 => rayon::scope(|_| rank::run(job, rank)),
                    _ => rank::run(job, rank),
                };
                let result = catch_unwind(AssertUnwindSafe(run));
                let error = match result {
                    Ok(Ok(finished)) => return Some(finished),
                    Ok(Err(e)) => e,
                    Err(payload) => RunError::Rank { rank, why: format!("panic: {}", rank::panic_text(&*payload)) },
                };
                let stopped = matches!(&error, RunError::Step { source, .. } if source.is_stopped());
                if !stopped {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
                job.hub.stop();
                None
            })
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|t| t.join().ok().flatten()).collect()
    });
    if let Some(e) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(e);
    }
    let finished: Option<Vec<rank::Finished>> = finished.into_iter().collect();
    let finished = finished.ok_or_else(|| RunError::Plan("a rank ended without a result".to_owned()))?;
    let left = job.hub.leftovers();
    if !left.is_empty() {
        return Err(RunError::Plan(format!("nobody took {}", left.join(", "))));
    }
    collect(&job, finished)
}

/// The caller's inputs, and default values in place of those that are absent.
fn with_defaults<'a>(
    decls: &[InputDecl],
    given: &'a BTreeMap<String, Tensor>,
    weights: &dyn WeightSource,
) -> Result<Cow<'a, BTreeMap<String, Tensor>>, RunError> {
    let mut inputs = Cow::Borrowed(given);
    for d in decls.iter().filter(|d| d.default && !given.contains_key(&d.name)) {
        if let Some(value) = weights.default(d)? {
            inputs.to_mut().insert(d.name.clone(), value);
        }
    }
    Ok(inputs)
}

/// The extents of a type, checked to be usable; `None` where a symbol has no value yet.
fn extents(ty: &TensorType, bindings: &Bindings) -> Result<Option<Vec<usize>>, String> {
    let mut symbols = std::collections::BTreeSet::new();
    ty.shape.iter().for_each(|d| d.collect_symbols(&mut symbols));
    if symbols.iter().any(|s| !bindings.contains_key(s)) {
        return Ok(None);
    }
    let extent = |d: &crate::dim::Dim| {
        let n = d.eval(bindings)?;
        usize::try_from(n).map_err(|_| format!("the extent {d} is {n}"))
    };
    let shape: Vec<usize> = ty.shape.iter().map(extent).collect::<Result<_, String>>()?;
    byte_len(ty.dtype, &shape).ok_or_else(|| format!("{shape:?} is too large"))?;
    Ok(Some(shape))
}

/// Extents of every value of a stage, as far as they are known.
fn shapes(stage: &Stage, bindings: &Bindings) -> Result<Vec<Option<Vec<usize>>>, RunError> {
    let shapes: Vec<Option<Vec<usize>>> = stage
        .values
        .iter()
        .map(|v| extents(&v.ty, bindings).map_err(|why| RunError::Plan(format!("value `{}`: {why}", v.name))))
        .collect::<Result<_, _>>()?;
    for (i, v) in stage.values.iter().enumerate() {
        let of = stage.storage(ValueId(i));
        let count = |s: &[usize]| s.iter().product::<usize>();
        if let (Source::Alias(_), Some(a), Some(b)) = (&v.source, &shapes[i], &shapes[of.0])
            && count(a) != count(b)
        {
            let name = &stage.value(of).name;
            return Err(RunError::Plan(format!("value `{}` of {a:?} is an alias of `{name}` of {b:?}", v.name)));
        }
    }
    Ok(shapes)
}

/// Joins the outputs of the ranks.
fn collect(job: &Job<'_>, finished: Vec<rank::Finished>) -> Result<RunResult, RunError> {
    let Mapping { tp, .. } = job.program.mapping;
    let mut result = RunResult::default();
    for (i, o) in job.program.outputs.iter().enumerate() {
        let error = |why: String| RunError::Plan(format!("output `{}`: {why}", o.name));
        if o.ty.dtype == DType::Opaque {
            let rank = job.program.mapping.rank(o.stage, 0);
            let found = finished[rank].data.get(&i).ok_or_else(|| error(format!("rank {rank} has none")))?;
            result.data.push((o.name.clone(), found.clone()));
            continue;
        }
        let parts = o.part.map_or(1, |p| p.parts);
        let shape = match extents(&o.ty, &job.bindings).map_err(error)? {
            Some(shape) => shape,
            // Execution has shown the extents.
            None => {
                let rank = job.program.mapping.rank(o.stage, 0);
                let part = finished[rank].outputs.get(&i).ok_or_else(|| error(format!("rank {rank} has none")))?;
                let mut shape = part.shape.clone();
                if let Some(p) = o.part {
                    shape[p.dim] *= p.parts;
                }
                shape
            }
        };
        let mut whole = Tensor::zeros(o.ty.dtype, &shape).map_err(|e| error(e.to_string()))?;
        for index in 0..parts {
            let rank = job.program.mapping.rank(o.stage, index * tp / parts);
            let part = finished[rank].outputs.get(&i).ok_or_else(|| error(format!("rank {rank} has none")))?;
            let mut expected = shape.clone();
            let dim = o.part.map_or(0, |p| p.dim);
            if parts > 1 {
                if !expected[dim].is_multiple_of(parts) {
                    return Err(error(format!("{parts} parts along axis {dim} of {shape:?}")));
                }
                expected[dim] /= parts;
            }
            if part.shape != expected {
                return Err(error(format!("rank {rank} has {:?} instead of {expected:?}", part.shape)));
            }
            let mut at = 0;
            for_each_piece(o.ty.dtype, &shape, dim, index, parts, |r| {
                let n = r.len();
                whole.bytes_mut()[r].copy_from_slice(&part.bytes()[at..at + n]);
                at += n;
            });
        }
        result.outputs.push((o.name.clone(), whole));
    }
    let repeat = job.config.repeat.max(1);
    for i in 0..repeat {
        let start = finished.iter().map(|f| f.spans[i].0).min();
        let end = finished.iter().map(|f| f.spans[i].1).max();
        let span = start.zip(end).map_or(Duration::ZERO, |(s, e)| e.saturating_duration_since(s));
        result.total_ms.push(span.as_secs_f64() * 1e3);
    }
    for (rank, f) in finished.into_iter().enumerate() {
        if rank % tp == 0 {
            result.step_ms.push(f.step_time.iter().map(|t| t.as_secs_f64() * 1e3 / repeat as f64).collect());
            for (name, t) in f.trace {
                result.trace.entry(name).or_insert(t);
            }
        }
    }
    Ok(result)
}
