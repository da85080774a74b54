//! One rank: its buffers, its steps and its side of every exchange.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::steady::Steady;
use super::{Job, Progress, RunError, StepError, Whole};
use crate::attr::MeshAxis;
use crate::comm::{CommError, Communicator};
use crate::cpu::{Env, KernelError, execute};
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::op::Op;
use crate::plan::{Call, GroupCertificate, Source, Stage, Step, ValueId, tensor_group, transfer_group};
use crate::standard::{self, Arg, Data};
use crate::tensor::{Aligned, Tensor, View, ViewMut, byte_len, for_each_piece};

/// Bytes of results that are kept for later repetitions at most.
const MAX_KEPT: usize = 1 << 30;

/// What a rank hands back.
pub(super) struct Finished {
    /// Its (parts of) outputs, by index into the program's outputs.
    pub(super) outputs: BTreeMap<usize, Tensor>,
    /// Outputs that are no tensors of numbers, likewise.
    pub(super) data: BTreeMap<usize, Data>,
    /// Start and end of every repetition.
    pub(super) spans: Vec<(Instant, Instant)>,
    /// Per step, summed over the repetitions.
    pub(super) step_time: Vec<Duration>,
    /// Values by name, for column 0.
    pub(super) trace: Vec<(String, Tensor)>,
}

/// Outputs by index: tensors of numbers, and others.
type Outputs = (BTreeMap<usize, Tensor>, BTreeMap<usize, Data>);

/// An input as the rank sees it.
enum Given<'a> {
    Whole(&'a [u8]),
    Part(Aligned),
}

struct Rank<'a> {
    job: &'a Job<'a>,
    stage: &'a Stage,
    /// Values of the symbols so far.
    bindings: Arc<Bindings>,
    /// Extents by value, as far as they are known.
    shapes: Cow<'a, [Option<Vec<usize>>]>,
    rank: usize,
    inputs: BTreeMap<ValueId, Given<'a>>,
    buffers: Vec<Aligned>,
    /// Results outside of buffers, as long as they are needed.
    late: BTreeMap<ValueId, Data>,
    /// By step, the results outside of buffers that no later step reads.
    expiring: BTreeMap<usize, Vec<ValueId>>,
    /// Results that later repetitions read again.
    kept: BTreeMap<ValueId, Tensor>,
}

/// Storage of a result while its step runs.
enum Taken {
    Buffer(usize, Aligned),
    Late(ValueId, Tensor),
}

/// Executes all steps of a rank.
pub(super) fn run(job: &Job<'_>, rank: usize) -> Result<Finished, RunError> {
    let mapping = job.program.mapping;
    let mut comm = Comm::new(job, rank, rank / mapping.tp, rank % mapping.tp);
    let mut r = Rank::new(job, rank, &comm)?;
    let n = r.stage.steps.len();
    let mut done = Finished {
        outputs: BTreeMap::new(),
        data: BTreeMap::new(),
        spans: vec![],
        step_time: vec![Duration::ZERO; n],
        trace: vec![],
    };
    let repeat = job.config.repeat.max(1);
    // A single pass needs none of it, and would only hold memory.
    let mut steady = match repeat {
        1 => Steady::default(),
        _ => Steady::of(r.stage, job.program.outputs.iter().filter(|o| o.stage == comm.stage).map(|o| o.value)),
    };
    for repetition in 0..repeat {
        if repetition > 0 {
            comm.restart().map_err(|e| r.error_at(n.saturating_sub(1), KernelError::Comm(e).into()))?;
            r.restart().map_err(|e| r.error_at(0, e))?;
            comm.bindings = r.bindings.clone();
        }
        let start = Instant::now();
        let trace = job.config.trace && repetition == 0 && comm.column == 0;
        for (i, step) in r.stage.steps.iter().enumerate() {
            let steady_step = steady.steps.contains(&i);
            if !steady_step || repetition == 0 {
                let begin = Instant::now();
                r.step(step, &mut comm).map_err(|e| r.error_at(i, e))?;
                done.step_time[i] += begin.elapsed();
            }
            job.hub.advance();
            if let Some(alter) = job.config.alter {
                r.alter(step, alter).map_err(|e| r.error_at(i, e))?;
            }
            if trace {
                r.record(step, &mut done.trace).map_err(|e| r.error_at(i, e))?;
            }
            if steady_step && repetition == 0 {
                r.keep(step, &steady).map_err(|e| r.error_at(i, e))?;
                if r.kept.values().map(|t| t.bytes().len()).sum::<usize>() > MAX_KEPT {
                    // Nothing is kept then: memory must not follow the weights.
                    r.kept.clear();
                    steady = Steady::default();
                }
            }
            for id in r.expiring.get(&i).into_iter().flatten() {
                r.late.remove(id);
            }
            if let Some(progress) = job.config.progress {
                progress(Progress { rank, step: i, n_steps: n, op: step.op.name() });
            }
        }
        comm.check_complete().map_err(|e| r.error_at(n.saturating_sub(1), KernelError::Comm(e).into()))?;
        done.spans.push((start, Instant::now()));
    }
    for o in job.program.outputs.iter().filter(|o| o.stage == comm.stage) {
        r.find_shape(o.value).map_err(|e| r.error_at(n.saturating_sub(1), e))?;
    }
    (done.outputs, done.data) = r.outputs(&comm)?;
    Ok(done)
}

/// By step, the values outside of buffers that are read or made there for the last time.
fn expiring(stage: &Stage, keep: impl Iterator<Item = ValueId>) -> BTreeMap<usize, Vec<ValueId>> {
    let mut last: BTreeMap<ValueId, usize> = BTreeMap::new();
    for (i, s) in stage.steps.iter().enumerate() {
        for v in s.inputs.iter().chain(s.outputs.iter().flatten()) {
            let storage = stage.storage(*v);
            if stage.value(storage).source == Source::Late {
                last.insert(storage, i);
            }
        }
    }
    for v in keep {
        last.remove(&stage.storage(v));
    }
    let mut out: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
    last.into_iter().for_each(|(v, i)| out.entry(i).or_default().push(v));
    out
}

/// The message of a panic.
pub(super) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

impl<'a> Rank<'a> {
    fn new(job: &'a Job<'a>, rank: usize, comm: &Comm<'_>) -> Result<Rank<'a>, RunError> {
        let stage = job.program.stages[comm.stage];
        let mut buffers = vec![];
        for i in 0..stage.buffers.len() {
            let bytes = stage.buffer_bytes(i, &job.bindings).map_err(RunError::Plan)?;
            let bytes = usize::try_from(bytes).map_err(|_| RunError::Plan(format!("buffer {i} has {bytes} bytes")))?;
            buffers.push(Aligned::zeroed(bytes).map_err(|_| RunError::Memory { rank, bytes })?);
        }
        let mut r = Rank {
            job,
            stage,
            bindings: job.bindings.clone(),
            shapes: Cow::Borrowed(&job.shapes[comm.stage]),
            rank,
            inputs: BTreeMap::new(),
            buffers,
            late: BTreeMap::new(),
            kept: BTreeMap::new(),
            expiring: expiring(stage, job.program.outputs.iter().filter(|o| o.stage == comm.stage).map(|o| o.value)),
        };
        for (i, v) in stage.values.iter().enumerate() {
            if let Source::Input { index, part } = &v.source {
                let tensor = match job.inputs[*index] {
                    Whole::Tensor(t) => t,
                    // It is read where it is.
                    Whole::Data(_) => continue,
                };
                let given = match part {
                    None => Given::Whole(tensor.bytes()),
                    Some(p) => {
                        let index = p.of(comm.index(p.axis), comm.size(p.axis));
                        Given::Part(r.cut(tensor, p.dim, index, p.parts)?)
                    }
                };
                r.inputs.insert(ValueId(i), given);
            }
        }
        Ok(r)
    }

    fn cut(&self, t: &Tensor, dim: usize, index: usize, parts: usize) -> Result<Aligned, RunError> {
        if !t.shape[dim].is_multiple_of(parts) {
            return Err(RunError::Inputs(vec![format!(
                "{parts} ranks share axis {dim} of {:?}, which they do not divide",
                t.shape
            )]));
        }
        let bytes = t.bytes().len() / parts;
        let mut out = Aligned::zeroed(bytes).map_err(|_| RunError::Memory { rank: self.rank, bytes })?;
        let mut at = 0;
        for_each_piece(t.dtype, &t.shape, dim, index, parts, |r| {
            let n = r.len();
            out.bytes_mut()[at..at + n].copy_from_slice(&t.bytes()[r]);
            at += n;
        });
        Ok(out)
    }

    fn error_at(&self, index: usize, source: StepError) -> RunError {
        let Some(step) = self.stage.steps.get(index) else {
            return RunError::Rank { rank: self.rank, why: source.to_string() };
        };
        let ty = |v: &ValueId| match &self.shapes[v.0] {
            Some(shape) => format!("{}{shape:?}", self.stage.value(*v).ty.dtype),
            None => self.stage.value(*v).ty.to_string(),
        };
        let list = |v: Vec<String>| v.join(", ");
        let inputs = list(step.inputs.iter().map(ty).collect());
        let outputs = list(step.outputs.iter().map(|o| o.as_ref().map_or("_".to_owned(), ty)).collect());
        RunError::Step {
            rank: self.rank,
            step: index,
            op: format!("{} ({inputs}) -> ({outputs})", step.op.title()),
            source: Box::new(source),
        }
    }

    fn shape(&self, id: ValueId) -> Result<&[usize], StepError> {
        self.shapes[id.0].as_deref().ok_or_else(|| {
            let v = self.stage.value(id);
            StepError::Operand(format!("nothing has shown the extents of `{}`, {}", v.name, v.ty))
        })
    }

    /// Makes the extents of a value known, where all of their symbols have values.
    fn find_shape(&mut self, id: ValueId) -> Result<(), StepError> {
        if self.shapes[id.0].is_none() {
            let v = self.stage.value(id);
            let shape = super::extents(&v.ty, &self.bindings)
                .map_err(|why| StepError::Operand(format!("value `{}`: {why}", v.name)))?;
            self.shapes.to_mut()[id.0] = shape;
        }
        Ok(())
    }

    /// Gives symbols the values that the extents of a result show, and compares the others.
    fn bind(&mut self, id: ValueId, shape: &[usize]) -> Result<(), StepError> {
        let v = self.stage.value(id);
        let error = |why: String| StepError::Operand(format!("the result `{}` has the shape {shape:?}, {why}", v.name));
        if v.ty.rank() != shape.len() {
            return Err(error(format!("which is not {}", v.ty)));
        }
        for (d, &n) in v.ty.shape.iter().zip(shape) {
            match d.as_sym() {
                Some(s) if !self.bindings.contains_key(s) => {
                    Arc::make_mut(&mut self.bindings).insert(s.to_owned(), n as i64);
                }
                _ => match d.eval(&self.bindings) {
                    Ok(m) if m == n as i64 => {}
                    Ok(m) => return Err(error(format!("but {} says {d} = {m}", v.ty))),
                    Err(e) => return Err(error(e)),
                },
            }
        }
        self.shapes.to_mut()[id.0] = Some(shape.to_vec());
        Ok(())
    }

    /// Forgets what the last repetition has shown, but for the extents of what is kept.
    fn restart(&mut self) -> Result<(), StepError> {
        self.bindings = self.job.bindings.clone();
        self.shapes = Cow::Borrowed(&self.job.shapes[self.rank / self.job.program.mapping.tp]);
        self.late.clear();
        let shapes: Vec<(ValueId, Vec<usize>)> = self.kept.iter().map(|(id, t)| (*id, t.shape.clone())).collect();
        shapes.iter().try_for_each(|(id, shape)| self.bind(*id, shape))
    }

    fn bytes_of(&self, id: ValueId) -> Result<usize, StepError> {
        byte_len(self.stage.value(id).ty.dtype, self.shape(id)?)
            .ok_or_else(|| StepError::Operand(format!("`{}` is too large", self.stage.value(id).name)))
    }

    /// The data of a value.
    fn data(&self, id: ValueId) -> Result<Cow<'_, [u8]>, StepError> {
        let storage = self.stage.storage(id);
        let n = self.bytes_of(id)?;
        if let Some(t) = self.kept.get(&storage) {
            return Ok(Cow::Borrowed(t.bytes()));
        }
        let bytes = match &self.stage.value(storage).source {
            Source::Input { .. } => match self.inputs.get(&storage) {
                Some(Given::Whole(b)) => Cow::Borrowed(*b),
                Some(Given::Part(b)) => Cow::Borrowed(b.bytes()),
                None => Cow::Borrowed(&[][..]),
            },
            Source::Weight { key, .. } => {
                self.job.weights.weight(self.rank, key).map_err(|e| StepError::Operand(e.to_string()))?
            }
            Source::Buffer(b) => Cow::Borrowed(self.buffers[*b].bytes().get(..n).unwrap_or_default()),
            Source::Late => match self.late.get(&storage) {
                Some(Data::Tensor(t)) => Cow::Borrowed(t.bytes()),
                _ => Cow::Borrowed(&[][..]),
            },
            Source::Alias(_) => Cow::Borrowed(&[][..]),
        };
        if bytes.len() != n {
            let name = &self.stage.value(id).name;
            return Err(StepError::Operand(format!("`{name}` needs {n} bytes, its storage has {}", bytes.len())));
        }
        Ok(bytes)
    }

    /// Executes a step; a panic becomes an error.
    fn step(&mut self, step: &Step, comm: &mut Comm<'_>) -> Result<(), StepError> {
        if self.job.hub.is_stopped() {
            return Err(KernelError::Comm(CommError::Stopped).into());
        }
        let guarded = |f: &mut dyn FnMut() -> Result<(), StepError>| {
            catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| Err(StepError::Panic(panic_text(&*payload))))
        };
        for &v in &step.inputs {
            self.find_shape(v)?;
        }
        if let Op::Standard { call } = &step.op {
            guarded(&mut || self.standard(step, call))?;
            comm.bindings = self.bindings.clone();
            return Ok(());
        }
        if let Op::Recv { stage, .. } = step.op
            && step.outputs.iter().flatten().any(|o| self.shapes[o.0].is_none())
        {
            let shown = comm.peek(stage as usize).map_err(KernelError::Comm)?;
            let own = Arc::make_mut(&mut self.bindings);
            shown.iter().for_each(|(s, &n)| {
                own.entry(s.clone()).or_insert(n);
            });
            comm.bindings = self.bindings.clone();
        }
        if self.transfer(step, comm)?.is_some() {
            return Ok(());
        }
        // The buffers of the results are taken out while the step runs, so that operands can be borrowed.
        let mut taken: Vec<Option<Taken>> = vec![];
        for o in &step.outputs {
            if let Some(id) = o {
                self.find_shape(*id)?;
            }
            let storage = match o.map(|id| (id, &self.stage.value(id).source)) {
                Some((_, Source::Buffer(b))) => Some(Taken::Buffer(*b, std::mem::take(&mut self.buffers[*b]))),
                Some((id, Source::Late)) => {
                    let t = Tensor::zeros(self.stage.value(id).ty.dtype, self.shape(id)?);
                    Some(Taken::Late(id, t.map_err(|e| StepError::Operand(e.to_string()))?))
                }
                _ => None,
            };
            taken.push(storage);
        }
        let result = guarded(&mut || self.compute(step, &mut taken, comm));
        for t in taken.into_iter().flatten() {
            match t {
                Taken::Buffer(b, buffer) => self.buffers[b] = buffer,
                Taken::Late(id, t) => {
                    self.late.insert(id, t.into());
                }
            }
        }
        result
    }

    /// Computes a standard operator, and learns extents from its results.
    fn standard(&mut self, step: &Step, call: &standard::Call) -> Result<(), StepError> {
        let data: Vec<Cow<'_, [u8]>> = step
            .inputs
            .iter()
            .map(|&v| if self.is_opaque(v) { Ok(Cow::Borrowed(&[][..])) } else { self.data(v) })
            .collect::<Result<_, _>>()?;
        let mut operands = vec![];
        for (&v, bytes) in step.inputs.iter().zip(&data) {
            operands.push(if self.is_opaque(v) {
                self.opaque(v)?.arg()
            } else {
                Arg::Tensor(View { dtype: self.stage.value(v).ty.dtype, shape: self.shape(v)?, bytes })
            });
        }
        let results = standard::run(call, &operands).map_err(|e| StepError::Operand(e.to_string()))?;
        for (o, d) in step.outputs.iter().zip(results) {
            let Some(id) = *o else { continue };
            let v = self.stage.value(id);
            // Where nothing is known about a result, it may be anything.
            if v.ty.dtype == DType::Opaque {
                self.shapes.to_mut()[id.0] = Some(vec![]);
                self.late.insert(id, d);
                continue;
            }
            if d.dtype() != v.ty.dtype {
                let (name, got) = (&v.name, d.describe());
                return Err(StepError::Operand(format!("the result `{name}` is {got}, the plan says {}", v.ty)));
            }
            if let Data::Tensor(t) = &d {
                self.bind(id, &t.shape)?;
            }
            self.late.insert(id, d);
        }
        Ok(())
    }

    fn is_opaque(&self, id: ValueId) -> bool {
        self.stage.value(id).ty.dtype == DType::Opaque
    }

    /// A value that is no tensor of numbers.
    fn opaque(&self, id: ValueId) -> Result<&Data, StepError> {
        let storage = self.stage.storage(id);
        let found = match &self.stage.value(storage).source {
            Source::Input { index, .. } => match self.job.inputs.get(*index) {
                Some(Whole::Data(d)) => Some(*d),
                _ => None,
            },
            _ => self.late.get(&storage),
        };
        found.ok_or_else(|| StepError::Operand(format!("`{}` has no value", self.stage.value(id).name)))
    }

    /// Sends or receives a value that is no tensor of numbers; `None` where the step moves a tensor.
    fn transfer(&mut self, step: &Step, comm: &mut Comm<'_>) -> Result<Option<()>, StepError> {
        let view = View { dtype: DType::Opaque, shape: &[], bytes: &[] };
        let other =
            |stage: i64| usize::try_from(stage).map_err(|_| StepError::Operand(format!("there is no stage {stage}")));
        match (&step.op, &step.inputs[..], &step.outputs[..]) {
            (Op::Send { stage, tag }, [v], _) if self.is_opaque(*v) => {
                let data = self.opaque(*v)?.clone();
                comm.send_parcel(other(*stage)?, *tag, &view, Some(data)).map_err(KernelError::Comm)?;
            }
            (Op::Recv { stage, tag, .. }, _, [Some(o)]) if self.is_opaque(*o) => {
                let data = comm.recv_data(other(*stage)?, *tag, &view).map_err(KernelError::Comm)?;
                self.shapes.to_mut()[o.0] = Some(vec![]);
                self.late.insert(*o, data);
            }
            _ => return Ok(None),
        }
        Ok(Some(()))
    }

    fn compute(&self, step: &Step, taken: &mut [Option<Taken>], comm: &mut Comm<'_>) -> Result<(), StepError> {
        let data: Vec<Cow<'_, [u8]>> = step.inputs.iter().map(|&v| self.data(v)).collect::<Result<_, _>>()?;
        let operands = step.inputs.iter().zip(&data);
        let inputs: Vec<View<'_>> = operands
            .map(|(v, bytes)| Ok(View { dtype: self.stage.value(*v).ty.dtype, shape: self.shape(*v)?, bytes }))
            .collect::<Result<_, StepError>>()?;
        let mut outputs: Vec<Option<ViewMut<'_>>> = vec![];
        for (id, buffer) in step.outputs.iter().zip(taken) {
            let (Some(id), Some(buffer)) = (id, buffer) else {
                outputs.push(None);
                continue;
            };
            let buffer = match buffer {
                Taken::Buffer(_, b) => b,
                Taken::Late(_, t) => {
                    outputs.push(Some(t.view_mut()));
                    continue;
                }
            };
            let (n, room) = (self.bytes_of(*id)?, buffer.bytes().len());
            let value = self.stage.value(*id);
            let bytes = buffer.bytes_mut().get_mut(..n).ok_or_else(|| {
                StepError::Operand(format!("`{}` needs {n} bytes, its buffer has {room}", value.name))
            })?;
            outputs.push(Some(ViewMut { dtype: value.ty.dtype, shape: self.shape(*id)?, bytes }));
        }
        let mut env = Env { bindings: &self.bindings, threads: self.job.threads, comm };
        Ok(execute(&step.op, &inputs, &mut outputs, &mut env)?)
    }

    /// Keeps what other steps read of a steady step, with the extents that it has shown.
    fn keep(&mut self, step: &Step, steady: &Steady) -> Result<(), StepError> {
        for id in step.outputs.iter().flatten().filter(|id| steady.values.contains(id)) {
            let (dtype, shape) = (self.stage.value(*id).ty.dtype, self.shape(*id)?);
            let t = Tensor::from_bytes(dtype, shape, &self.data(*id)?);
            self.kept.insert(*id, t.map_err(|e| StepError::Operand(e.to_string()))?);
        }
        Ok(())
    }

    /// Lets the caller change the results of a step.
    fn alter(&mut self, step: &Step, alter: super::Alter<'_>) -> Result<(), StepError> {
        let stage = self.stage;
        for id in step.outputs.iter().flatten() {
            let value = stage.value(*id);
            if value.ty.dtype == DType::Opaque {
                continue;
            }
            let (n, shape) = (self.bytes_of(*id)?, self.shape(*id)?.to_vec());
            let bytes = match &value.source {
                Source::Buffer(b) => self.buffers[*b].bytes_mut().get_mut(..n),
                _ => match self.late.get_mut(id) {
                    Some(Data::Tensor(t)) => Some(Arc::make_mut(t).bytes_mut()),
                    _ => None,
                },
            };
            if let Some(bytes) = bytes {
                alter(&value.name, value.ty.dtype, &shape, bytes);
            }
        }
        Ok(())
    }

    /// Keeps the results of a step under the names of all values that show them.
    fn record(&self, step: &Step, trace: &mut Vec<(String, Tensor)>) -> Result<(), StepError> {
        for (i, v) in self.stage.values.iter().enumerate() {
            let id = ValueId(i);
            let wanted = match self.job.program.reference {
                Some(r) => r.values.iter().any(|w| w.name == v.name && w.ty == v.ty),
                None => true,
            };
            if wanted && v.ty.dtype != DType::Opaque && step.outputs.contains(&Some(self.stage.storage(id))) {
                let shape = super::extents(&v.ty, &self.bindings).ok().flatten();
                let (Some(shape), Ok(data)) = (shape, self.data(id)) else { continue };
                let t = Tensor::from_bytes(v.ty.dtype, &shape, &data);
                trace.push((v.name.clone(), t.map_err(|e| StepError::Operand(e.to_string()))?));
            }
        }
        Ok(())
    }

    /// The outputs that the host takes from this rank.
    fn outputs(&self, comm: &Comm<'_>) -> Result<Outputs, RunError> {
        let (mut out, mut data) = (BTreeMap::new(), BTreeMap::new());
        for (i, o) in self.job.program.outputs.iter().enumerate().filter(|(_, o)| o.stage == comm.stage) {
            let parts = o.part.map_or(1, |p| p.parts);
            let size = self.job.program.mapping.tp;
            if (0..parts).any(|p| p * size / parts == comm.column) {
                let error = |e: String| RunError::Plan(format!("output `{}`: {e}", o.name));
                if self.is_opaque(o.value) {
                    data.insert(i, self.opaque(o.value).map_err(|e| error(e.to_string()))?.clone());
                    continue;
                }
                let bytes = self.data(o.value).map_err(|e| error(e.to_string()))?;
                let value = self.stage.value(o.value);
                let shape = self.shape(o.value).map_err(|e| error(e.to_string()))?;
                let t = Tensor::from_bytes(value.ty.dtype, shape, &bytes);
                out.insert(i, t.map_err(|e| error(e.to_string()))?);
            }
        }
        Ok((out, data))
    }
}

/// A rank's side of the exchange, which follows the certificate.
struct Comm<'a> {
    job: &'a Job<'a>,
    rank: usize,
    stage: usize,
    column: usize,
    /// Position in each group's sequence, within this repetition.
    position: BTreeMap<String, usize>,
    /// Calls of the tensor group over all repetitions.
    serial: usize,
    restarts: usize,
    /// Values of the symbols so far.
    bindings: Arc<Bindings>,
}

impl<'a> Comm<'a> {
    fn new(job: &'a Job<'a>, rank: usize, stage: usize, column: usize) -> Comm<'a> {
        let bindings = job.bindings.clone();
        Comm { job, rank, stage, column, position: BTreeMap::new(), serial: 0, restarts: 0, bindings }
    }

    /// The symbols that come with the next parcel from a stage.
    fn peek(&self, stage: usize) -> Result<Arc<Bindings>, CommError> {
        let group = transfer_group(stage, self.stage, self.column);
        let position = self.position.get(&group).copied().unwrap_or(0);
        self.job.hub.peek(self.job.program.mapping.rank(stage, self.column), self.rank, &group, position)
    }

    /// Waits for all ranks and begins the sequences again.
    fn restart(&mut self) -> Result<(), CommError> {
        let all: Vec<usize> = (0..self.job.program.mapping.world()).collect();
        self.job.hub.exchange("all ranks", self.restarts, self.restarts, &all, self.rank, Arc::default())?;
        self.restarts += 1;
        self.position.clear();
        Ok(())
    }

    /// Sends data, or what is no tensor of numbers, to the rank of the same column in another stage.
    fn send_parcel(&mut self, stage: usize, tag: i64, x: &View<'_>, value: Option<Data>) -> Result<(), CommError> {
        self.next(&transfer_group(self.stage, stage, self.column), "send", x)?;
        let to = self.job.program.mapping.rank(stage, self.column);
        self.job.hub.send(self.rank, to, tag, x.bytes.into(), value, self.bindings.clone());
        Ok(())
    }

    /// Receives what is no tensor of numbers.
    fn recv_data(&mut self, stage: usize, tag: i64, x: &View<'_>) -> Result<Data, CommError> {
        let group = transfer_group(stage, self.stage, self.column);
        let position = self.next(&group, "send", x)?;
        let from = self.job.program.mapping.rank(stage, self.column);
        match self.job.hub.recv(from, self.rank, &group, position)? {
            (sent, _, Some(value)) if sent == tag => Ok(value),
            (sent, data, _) => Err(CommError::Mismatch {
                rank: self.rank,
                group,
                position,
                expected: format!("tag {tag} with no tensor of numbers"),
                got: format!("tag {sent} with {} bytes", data.len()),
            }),
        }
    }

    fn group(&self, name: &str) -> Option<&'a GroupCertificate> {
        self.job.program.certificate.groups.iter().find(|g| g.group == name)
    }

    /// Checks the next call of a group against the certificate and returns its position.
    fn next(&mut self, group: &str, op: &str, x: &View<'_>) -> Result<usize, CommError> {
        let position = self.position.get(group).copied().unwrap_or(0);
        let expected = self.group(group).and_then(|g| g.calls.get(position));
        let evaluates = |c: &Call| {
            c.shape.len() == x.shape.len()
                && c.shape.iter().zip(x.shape).all(|(d, &n)| d.eval(&self.bindings) == Ok(n as i64))
        };
        if !expected.is_some_and(|c| c.op == op && c.dtype == x.dtype && evaluates(c)) {
            let shape = x.shape.iter().map(|&n| Dim::from(n as i64)).collect();
            return Err(CommError::Mismatch {
                rank: self.rank,
                group: group.to_owned(),
                position,
                expected: expected.map_or_else(|| "no call".to_owned(), Call::to_string),
                got: Call { op: op.to_owned(), dtype: x.dtype, shape }.to_string(),
            });
        }
        self.position.insert(group.to_owned(), position + 1);
        Ok(position)
    }

    /// Checks that the rank has made every call of the certificate.
    fn check_complete(&self) -> Result<(), CommError> {
        for g in self.job.program.certificate.groups.iter().filter(|g| g.ranks.contains(&self.rank)) {
            let position = self.position.get(&g.group).copied().unwrap_or(0);
            if let Some(call) = g.calls.get(position) {
                return Err(CommError::Mismatch {
                    rank: self.rank,
                    group: g.group.clone(),
                    position,
                    expected: call.to_string(),
                    got: "the end of the program".to_owned(),
                });
            }
        }
        Ok(())
    }
}

impl Communicator for Comm<'_> {
    fn index(&self, axis: MeshAxis) -> usize {
        match axis {
            MeshAxis::Tp => self.column,
            MeshAxis::Pp => self.stage,
        }
    }

    fn size(&self, axis: MeshAxis) -> usize {
        self.job.program.mapping.size(axis)
    }

    fn exchange(&mut self, op: &'static str, x: &View<'_>) -> Result<Vec<Arc<[u8]>>, CommError> {
        let group = tensor_group(self.stage);
        let position = self.next(&group, op, x)?;
        let mapping = self.job.program.mapping;
        let ranks: Vec<usize> = (0..mapping.tp).map(|c| mapping.rank(self.stage, c)).collect();
        let serial = self.serial;
        self.serial += 1;
        self.job.hub.exchange(&group, serial, position, &ranks, self.column, x.bytes.into())
    }

    fn send(&mut self, stage: usize, tag: i64, x: &View<'_>) -> Result<(), CommError> {
        self.send_parcel(stage, tag, x, None)
    }

    fn recv(&mut self, stage: usize, tag: i64, out: &mut ViewMut<'_>) -> Result<(), CommError> {
        let group = transfer_group(stage, self.stage, self.column);
        let x = View { dtype: out.dtype, shape: out.shape, bytes: &[] };
        let position = self.next(&group, "send", &x)?;
        let from = self.job.program.mapping.rank(stage, self.column);
        let (sent, data, _) = self.job.hub.recv(from, self.rank, &group, position)?;
        if sent != tag || data.len() != out.bytes.len() {
            return Err(CommError::Mismatch {
                rank: self.rank,
                group,
                position,
                expected: format!("tag {tag} with {} bytes", out.bytes.len()),
                got: format!("tag {sent} with {} bytes", data.len()),
            });
        }
        out.bytes.copy_from_slice(&data);
        Ok(())
    }
}
