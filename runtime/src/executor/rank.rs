//! One rank: its buffers, its steps and its side of every exchange.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Job, Progress, RunError, StepError};
use crate::attr::MeshAxis;
use crate::comm::{CommError, Communicator};
use crate::cpu::{Env, KernelError, execute};
use crate::dim::Dim;
use crate::plan::{Call, GroupCertificate, Source, Stage, Step, ValueId, tensor_group, transfer_group};
use crate::tensor::{Aligned, Tensor, View, ViewMut, byte_len, for_each_piece};

/// What a rank hands back.
pub(super) struct Finished {
    /// Its (parts of) outputs, by index into the program's outputs.
    pub(super) outputs: BTreeMap<usize, Tensor>,
    /// Start and end of every repetition.
    pub(super) spans: Vec<(Instant, Instant)>,
    /// Per step, summed over the repetitions.
    pub(super) step_time: Vec<Duration>,
    /// Values by name, for column 0.
    pub(super) trace: Vec<(String, Tensor)>,
}

/// An input as the rank sees it.
enum Given<'a> {
    Whole(&'a [u8]),
    Part(Aligned),
}

struct Rank<'a> {
    job: &'a Job<'a>,
    stage: &'a Stage,
    shapes: &'a [Vec<usize>],
    rank: usize,
    inputs: BTreeMap<ValueId, Given<'a>>,
    buffers: Vec<Aligned>,
}

/// Executes all steps of a rank.
pub(super) fn run(job: &Job<'_>, rank: usize) -> Result<Finished, RunError> {
    let mapping = job.program.mapping;
    let mut comm = Comm::new(job, rank, rank / mapping.tp, rank % mapping.tp);
    let mut r = Rank::new(job, rank, &comm)?;
    let n = r.stage.steps.len();
    let mut done =
        Finished { outputs: BTreeMap::new(), spans: vec![], step_time: vec![Duration::ZERO; n], trace: vec![] };
    let repeat = job.config.repeat.max(1);
    for repetition in 0..repeat {
        if repetition > 0 {
            comm.restart().map_err(|e| r.error_at(n.saturating_sub(1), KernelError::Comm(e).into()))?;
        }
        let start = Instant::now();
        let trace = job.config.trace && repetition == 0 && comm.column == 0;
        for (i, step) in r.stage.steps.iter().enumerate() {
            let begin = Instant::now();
            r.step(step, &mut comm).map_err(|e| r.error_at(i, e))?;
            done.step_time[i] += begin.elapsed();
            job.hub.advance();
            if trace {
                r.record(step, &mut done.trace).map_err(|e| r.error_at(i, e))?;
            }
            if let Some(progress) = job.config.progress {
                progress(Progress { rank, step: i, n_steps: n, op: step.op.name() });
            }
        }
        comm.check_complete().map_err(|e| r.error_at(n.saturating_sub(1), KernelError::Comm(e).into()))?;
        done.spans.push((start, Instant::now()));
    }
    done.outputs = r.outputs(&comm)?;
    Ok(done)
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
        let mut r = Rank { job, stage, shapes: &job.shapes[comm.stage], rank, inputs: BTreeMap::new(), buffers };
        for (i, v) in stage.values.iter().enumerate() {
            if let Source::Input { index, part } = &v.source {
                let tensor = job.inputs[*index];
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
        let ty = |v: &ValueId| format!("{}{:?}", self.stage.value(*v).ty.dtype, self.shapes[v.0]);
        let list = |v: Vec<String>| v.join(", ");
        let inputs = list(step.inputs.iter().map(ty).collect());
        let outputs = list(step.outputs.iter().map(|o| o.as_ref().map_or("_".to_owned(), ty)).collect());
        RunError::Step {
            rank: self.rank,
            step: index,
            op: format!("{} ({inputs}) -> ({outputs})", step.op.name()),
            source: Box::new(source),
        }
    }

    fn bytes_of(&self, id: ValueId) -> Result<usize, StepError> {
        byte_len(self.stage.value(id).ty.dtype, &self.shapes[id.0])
            .ok_or_else(|| StepError::Operand(format!("`{}` is too large", self.stage.value(id).name)))
    }

    /// The data of a value.
    fn data(&self, id: ValueId) -> Result<Cow<'_, [u8]>, StepError> {
        let storage = self.stage.storage(id);
        let n = self.bytes_of(id)?;
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
        // The buffers of the results are taken out while the step runs, so that operands can be borrowed.
        let mut taken: Vec<Option<(usize, Aligned)>> = vec![];
        for o in &step.outputs {
            let buffer = o.and_then(|id| match self.stage.value(id).source {
                Source::Buffer(b) => Some(b),
                _ => None,
            });
            taken.push(buffer.map(|b| (b, std::mem::take(&mut self.buffers[b]))));
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.compute(step, &mut taken, comm)));
        for (b, buffer) in taken.into_iter().flatten() {
            self.buffers[b] = buffer;
        }
        result.unwrap_or_else(|payload| Err(StepError::Panic(panic_text(&*payload))))
    }

    fn compute(
        &self,
        step: &Step,
        taken: &mut [Option<(usize, Aligned)>],
        comm: &mut Comm<'_>,
    ) -> Result<(), StepError> {
        let data: Vec<Cow<'_, [u8]>> = step.inputs.iter().map(|&v| self.data(v)).collect::<Result<_, _>>()?;
        let operands = step.inputs.iter().zip(&data);
        let inputs: Vec<View<'_>> = operands
            .map(|(v, bytes)| View { dtype: self.stage.value(*v).ty.dtype, shape: &self.shapes[v.0], bytes })
            .collect();
        let mut outputs: Vec<Option<ViewMut<'_>>> = vec![];
        for (id, buffer) in step.outputs.iter().zip(taken) {
            let (Some(id), Some((_, buffer))) = (id, buffer) else {
                outputs.push(None);
                continue;
            };
            let (n, room) = (self.bytes_of(*id)?, buffer.bytes().len());
            let value = self.stage.value(*id);
            let bytes = buffer.bytes_mut().get_mut(..n).ok_or_else(|| {
                StepError::Operand(format!("`{}` needs {n} bytes, its buffer has {room}", value.name))
            })?;
            outputs.push(Some(ViewMut { dtype: value.ty.dtype, shape: &self.shapes[id.0], bytes }));
        }
        let mut env = Env { bindings: &self.job.bindings, threads: self.job.threads, comm };
        Ok(execute(&step.op, &inputs, &mut outputs, &mut env)?)
    }

    /// Keeps the results of a step under the names of all values that show them.
    fn record(&self, step: &Step, trace: &mut Vec<(String, Tensor)>) -> Result<(), StepError> {
        for (i, v) in self.stage.values.iter().enumerate() {
            let id = ValueId(i);
            let wanted = match self.job.program.reference {
                Some(r) => r.values.iter().any(|w| w.name == v.name && w.ty == v.ty),
                None => true,
            };
            if wanted && step.outputs.contains(&Some(self.stage.storage(id))) {
                let t = Tensor::from_bytes(v.ty.dtype, &self.shapes[i], &self.data(id)?);
                trace.push((v.name.clone(), t.map_err(|e| StepError::Operand(e.to_string()))?));
            }
        }
        Ok(())
    }

    /// The outputs that the host takes from this rank.
    fn outputs(&self, comm: &Comm<'_>) -> Result<BTreeMap<usize, Tensor>, RunError> {
        let mut out = BTreeMap::new();
        for (i, o) in self.job.program.outputs.iter().enumerate().filter(|(_, o)| o.stage == comm.stage) {
            let parts = o.part.map_or(1, |p| p.parts);
            let size = self.job.program.mapping.tp;
            if (0..parts).any(|p| p * size / parts == comm.column) {
                let error = |e: String| RunError::Plan(format!("output `{}`: {e}", o.name));
                let data = self.data(o.value).map_err(|e| error(e.to_string()))?;
                let value = self.stage.value(o.value);
                let t = Tensor::from_bytes(value.ty.dtype, &self.shapes[o.value.0], &data);
                out.insert(i, t.map_err(|e| error(e.to_string()))?);
            }
        }
        Ok(out)
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
}

impl<'a> Comm<'a> {
    fn new(job: &'a Job<'a>, rank: usize, stage: usize, column: usize) -> Comm<'a> {
        Comm { job, rank, stage, column, position: BTreeMap::new(), serial: 0, restarts: 0 }
    }

    /// Waits for all ranks and begins the sequences again.
    fn restart(&mut self) -> Result<(), CommError> {
        let all: Vec<usize> = (0..self.job.program.mapping.world()).collect();
        self.job.hub.exchange("all ranks", self.restarts, self.restarts, &all, self.rank, Arc::default())?;
        self.restarts += 1;
        self.position.clear();
        Ok(())
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
                && c.shape.iter().zip(x.shape).all(|(d, &n)| d.eval(&self.job.bindings) == Ok(n as i64))
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
        self.next(&transfer_group(self.stage, stage, self.column), "send", x)?;
        let to = self.job.program.mapping.rank(stage, self.column);
        self.job.hub.send(self.rank, to, tag, x.bytes.into());
        Ok(())
    }

    fn recv(&mut self, stage: usize, tag: i64, out: &mut ViewMut<'_>) -> Result<(), CommError> {
        let group = transfer_group(stage, self.stage, self.column);
        let x = View { dtype: out.dtype, shape: out.shape, bytes: &[] };
        let position = self.next(&group, "send", &x)?;
        let from = self.job.program.mapping.rank(stage, self.column);
        let (sent, data) = self.job.hub.recv(from, self.rank, &group, position)?;
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
