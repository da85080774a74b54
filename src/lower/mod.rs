//! Lower: from the extracted graph to a plan.
//!
//! Each stage gets its steps in graph order, values that belong to no stage in every stage that reads
//! them, receives first and sends as soon as the value exists. The certificate is derived here; a plan
//! without one is never written.

mod alone;
mod buffers;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sinter_runtime::plan::{
    self, Buffer, CertificateError, InputDecl, OutputDecl, Plan, Range, Source, Stage, Step, Value, ValueId,
    WeightEntry,
};
use sinter_runtime::tensor::Tensor;

use crate::cost::CostModel;
use crate::import::Weights;
use crate::ir::{Bindings, Class, Graph, Mapping, NodeId, Op, Part, TensorType};

/// A defect of the compiler: the program cannot be executed as scheduled.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// The ranks' communication does not fit together.
    #[error("schedule: {0}")]
    Certificate(#[from] CertificateError),
    /// The plan breaks a rule of the format.
    #[error("lower: {0}")]
    Invalid(String),
}

/// The plan of a program. `reference` is the imported graph, which `run --verify` executes.
pub fn lower(graph: &Graph, reference: &Graph, mapping: Mapping, cost: &CostModel) -> Result<Plan, LowerError> {
    let inputs: Vec<InputDecl> = graph
        .nodes()
        .filter_map(|(_, n)| match &n.op {
            Op::Input { name, .. } => {
                Some(InputDecl { name: name.clone(), ty: n.ty().clone(), declared: None, kind: None, default: false })
            }
            _ => None,
        })
        .collect();
    let sizes = cost.profiles();
    let mut stages = vec![];
    let mut outputs: Vec<Option<OutputDecl>> = vec![None; graph.outputs().len()];
    let needs = stages_needed(graph, mapping.pp)?;
    for s in 0..mapping.pp {
        let mut b = Builder::new(graph, &inputs);
        b.stage(s, &needs)?;
        let here: Vec<usize> =
            (0..graph.outputs().len()).filter(|&i| home(graph, graph.outputs()[i].value) == s).collect();
        let keep = here.iter().map(|&i| b.operand(graph.outputs()[i].value)).collect::<Result<Vec<_>, _>>()?;
        let (stage, keep) = b.finish(keep, sizes);
        for (i, value) in here.into_iter().zip(keep) {
            let o = &graph.outputs()[i];
            let mut ty = graph.node(o.value).ty().clone();
            if let Some(p) = o.part {
                ty.shape[p.dim] = &ty.shape[p.dim] * &(p.parts as i64).into();
            }
            outputs[i] = Some(OutputDecl { name: o.name.clone(), ty, stage: s, value, part: o.part, kind: None });
        }
        stages.push(stage);
    }
    let reference = reference_stage(&alone::alone(reference, mapping.tp), &inputs, sizes)?;
    keep_for_reference(&mut stages, &reference);
    let certificate = plan::certify(&mapping, &stages)?;
    let plan = Plan {
        version: plan::VERSION,
        model: graph.name.clone(),
        mapping,
        inputs: inputs.clone(),
        outputs: outputs.into_iter().flatten().collect(),
        stages,
        certificate,
        reference: Some(Box::new(reference)),
        assumptions: vec![],
        random: vec![],
        files: vec![],
    };
    plan::verify(&plan).map_err(|e| LowerError::Invalid(e.to_string()))?;
    Ok(plan)
}

/// The weight that a node is, or of which it is a range that the host cuts.
fn weight_of(graph: &Graph, id: NodeId) -> Option<(&str, Option<Range>)> {
    let n = graph.node(id);
    match &n.op {
        Op::Weight { name, .. } => Some((name, None)),
        Op::Slice { axis, start, end, step: 1 } => {
            let Op::Weight { name, .. } = &graph.node(n.inputs[0]).op else { return None };
            let at = |d: i64| usize::try_from(d).ok();
            let range = Range { dim: at(*axis)?, start: at(start.as_const()?)?, end: at(end.as_const()?)? };
            Some((name, Some(range)))
        }
        _ => None,
    }
}

/// A weight that no rank needs any more is still kept in the first stage, so that the plan folder alone
/// is enough to compute what is right.
fn keep_for_reference(stages: &mut [Stage], reference: &Stage) {
    let mut held: std::collections::BTreeSet<String> = Default::default();
    let mut ranges: BTreeMap<String, Vec<Range>> = BTreeMap::new();
    for v in stages.iter().flat_map(|s| &s.values) {
        match &v.source {
            Source::Weight { weight, range: None, .. } => {
                held.insert(weight.clone());
            }
            Source::Weight { weight, range: Some(r), .. } => ranges.entry(weight.clone()).or_default().push(*r),
            _ => {}
        }
    }
    for v in &reference.values {
        // Ranges that make up the whole are as good.
        if let Source::Weight { weight, .. } = &v.source
            && let Some(list) = ranges.get_mut(weight)
        {
            list.sort_unstable();
            list.dedup();
            let extent = |dim: usize| usize::try_from(v.ty.shape.get(dim)?.as_const()?).ok();
            if Range::whole(list).is_ok_and(|(dim, end)| extent(dim) == Some(end)) {
                held.insert(weight.clone());
            }
        }
    }
    let mut names: BTreeSet<String> = stages[0].values.iter().map(|v| v.name.clone()).collect();
    let is_key = |v: &Value| match &v.source {
        Source::Weight { key, .. } => Some(key.clone()),
        _ => None,
    };
    let mut keys: BTreeSet<String> = stages[0].values.iter().filter_map(is_key).collect();
    for v in &reference.values {
        if let Source::Weight { weight, .. } = &v.source
            && held.insert(weight.clone())
        {
            let mut kept = v.clone();
            kept.name = crate::ir::unique_name(&mut names, &v.name);
            if let Source::Weight { key, .. } = &mut kept.source {
                *key = crate::ir::unique_name(&mut keys, key);
            }
            stages[0].values.push(kept);
        }
    }
}

/// The unoptimised program as a stage of its own; its results carry the outputs' names.
fn reference_stage(graph: &Graph, inputs: &[InputDecl], sizes: &[Bindings]) -> Result<Stage, LowerError> {
    let mut b = Builder::new(graph, inputs);
    b.ranges = false;
    b.stage(0, &vec![vec![0]; graph.len()])?;
    let mut keep = vec![];
    for o in graph.outputs() {
        let value = b.operand(o.value)?;
        let named = if b.stage.value(value).name == o.name {
            value
        } else {
            let v = Value { name: o.name.clone(), ty: graph.node(o.value).ty().clone(), source: Source::Alias(value) };
            b.push(v)
        };
        keep.push(named);
    }
    Ok(b.finish(keep, sizes).0)
}

fn home(graph: &Graph, id: NodeId) -> usize {
    graph.node(id).stage.unwrap_or(0)
}

/// By node, the stages that must have its value.
fn stages_needed(graph: &Graph, pp: usize) -> Result<Vec<Vec<usize>>, LowerError> {
    let mut needs: Vec<Vec<usize>> = vec![vec![]; graph.len()];
    let want = |v: &mut Vec<usize>, s: usize| {
        if !v.contains(&s) {
            v.push(s);
            v.sort_unstable();
        }
    };
    for o in graph.outputs() {
        want(&mut needs[o.value.index()], home(graph, o.value));
    }
    for (id, n) in graph.nodes().rev() {
        if let Some(s) = n.stage {
            if s >= pp {
                return Err(LowerError::Invalid(format!("`{}` is in stage {s} of {pp}", n.name)));
            }
            needs[id.index()] = if needs[id.index()].is_empty() { vec![] } else { vec![s] };
        }
        let here = needs[id.index()].clone();
        for &i in &n.inputs {
            match (&n.op, graph.node(i).stage) {
                // The sender needs the operand, not the receiver.
                (Op::Boundary { .. }, Some(from)) if !here.is_empty() => want(&mut needs[i.index()], from),
                _ => here.iter().for_each(|&s| want(&mut needs[i.index()], s)),
            }
        }
    }
    Ok(needs)
}

struct Builder<'g> {
    graph: &'g Graph,
    inputs: &'g [InputDecl],
    stage: Stage,
    values_of: HashMap<NodeId, ValueId>,
    names: std::collections::BTreeSet<String>,
    /// Whether the host cuts ranges of weights. The reference program reads whole weights.
    ranges: bool,
}

impl<'g> Builder<'g> {
    fn new(graph: &'g Graph, inputs: &'g [InputDecl]) -> Self {
        Builder {
            graph,
            inputs,
            stage: Stage::default(),
            values_of: HashMap::new(),
            names: Default::default(),
            ranges: true,
        }
    }

    fn push(&mut self, mut v: Value) -> ValueId {
        let base = v.name.clone();
        let mut i = 1;
        while !self.names.insert(v.name.clone()) {
            i += 1;
            v.name = format!("{base}.{i}");
        }
        self.stage.values.push(v);
        ValueId(self.stage.values.len() - 1)
    }

    fn stage(&mut self, s: usize, needs: &[Vec<usize>]) -> Result<(), LowerError> {
        let graph = self.graph;
        // Receives come first, by sender and in the order in which the sender has the values.
        let mut recvs: Vec<(usize, NodeId, NodeId)> = graph
            .nodes()
            .filter(|(id, n)| {
                matches!(n.op, Op::Boundary { .. }) && n.stage == Some(s) && needs[id.index()].contains(&s)
            })
            .map(|(id, n)| (home(graph, n.inputs[0]), n.inputs[0], id))
            .collect();
        recvs.sort_unstable();
        let mut sends: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        for (id, n) in
            graph.nodes().filter(|(id, n)| matches!(n.op, Op::Boundary { .. }) && !needs[id.index()].is_empty())
        {
            if n.stage != Some(s) && home(graph, n.inputs[0]) == s {
                sends.entry(n.inputs[0]).or_default().push(id);
            }
        }
        for (from, _, id) in recvs {
            let n = graph.node(id);
            let v = self.push(Value { name: n.name.clone(), ty: n.ty().clone(), source: Source::Buffer(usize::MAX) });
            self.values_of.insert(id, v);
            self.step(Op::Recv { stage: from as i64, tag: i64::from(id.0) }, vec![], vec![Some(v)], id);
        }
        for id in graph.ids() {
            if needs[id.index()].contains(&s) && !self.values_of.contains_key(&id) {
                self.node(id)?;
            }
            for u in sends.remove(&id).unwrap_or_default() {
                let stage = home(graph, u) as i64;
                let value = self.operand(id)?;
                self.step(Op::Send { stage, tag: i64::from(u.0) }, vec![value], vec![], u);
            }
        }
        Ok(())
    }

    fn step(&mut self, op: Op, inputs: Vec<ValueId>, outputs: Vec<Option<ValueId>>, of: NodeId) {
        let n = self.graph.node(of);
        let (origin, rules) = (n.origin.clone(), n.rules.clone());
        self.stage.steps.push(Step { op, inputs, outputs, origin, rules, why: n.why });
    }

    fn node(&mut self, id: NodeId) -> Result<(), LowerError> {
        let graph = self.graph;
        let n = graph.node(id);
        let value = |source: Source| Value { name: n.name.clone(), ty: n.ty().clone(), source };
        let input_index = |name: &str| {
            let at = self.inputs.iter().position(|i| i.name == name);
            at.ok_or_else(|| LowerError::Invalid(format!("input `{name}` is not declared")))
        };
        let weight_source = |of: NodeId, part: Option<Part>| match weight_of(graph, of) {
            Some((weight, range)) => Source::Weight { key: n.name.clone(), weight: weight.to_owned(), range, part },
            None => Source::Buffer(usize::MAX),
        };
        let source = match &n.op {
            Op::Input { name, .. } => Source::Input { index: input_index(name)?, part: None },
            Op::Slice { .. } if !self.ranges => Source::Buffer(usize::MAX),
            Op::Weight { .. } | Op::Slice { .. } => weight_source(id, None),
            Op::Shard { dim, axis, parts } => {
                let part = Some(Part { dim: *dim as usize, axis: *axis, parts: *parts as usize });
                match &graph.node(n.inputs[0]).op {
                    Op::Input { name, .. } => Source::Input { index: input_index(name)?, part },
                    _ => weight_source(n.inputs[0], part),
                }
            }
            Op::Reshape { .. } => Source::Alias(self.operand(n.inputs[0])?),
            Op::Get { .. } => {
                // The tuple's step has made it, unless nothing read it then.
                return Err(LowerError::Invalid(format!("`{}` reads a tuple that has no step", n.name)));
            }
            _ => Source::Buffer(usize::MAX),
        };
        if source != Source::Buffer(usize::MAX) {
            let v = self.push(value(source));
            self.values_of.insert(id, v);
            return Ok(());
        }
        let inputs = n.inputs.iter().map(|&i| self.operand(i)).collect::<Result<Vec<_>, _>>()?;
        if n.types.len() == 1 {
            let v = self.push(value(source));
            self.values_of.insert(id, v);
            self.step(n.op.clone(), inputs, vec![Some(v)], id);
            return Ok(());
        }
        // A tuple: its readers are the step's results.
        let mut outputs = vec![None; n.types.len()];
        for u in graph.users(id) {
            let reader = graph.node(u);
            if let Op::Get { index } = reader.op {
                let v = self.push(Value {
                    name: reader.name.clone(),
                    ty: reader.ty().clone(),
                    source: Source::Buffer(usize::MAX),
                });
                outputs[index as usize] = Some(v);
                self.values_of.insert(u, v);
            }
        }
        self.step(n.op.clone(), inputs, outputs, id);
        Ok(())
    }

    fn operand(&self, id: NodeId) -> Result<ValueId, LowerError> {
        let name = || self.graph.node(id).name.clone();
        self.values_of.get(&id).copied().ok_or_else(|| LowerError::Invalid(format!("`{}` is not in the stage", name())))
    }

    /// The stage, and the values to keep under their final numbers.
    fn finish(mut self, mut keep: Vec<ValueId>, sizes: &[Bindings]) -> (Stage, Vec<ValueId>) {
        self.drop_unread(&mut keep);
        let mut known = BTreeSet::new();
        self.inputs.iter().flat_map(|i| &i.ty.shape).for_each(|d| d.collect_symbols(&mut known));
        buffers::assign(&mut self.stage, &keep, sizes, &known);
        (self.stage, keep)
    }

    /// Leaves whose part alone is read are not values of the stage.
    fn drop_unread(&mut self, keep: &mut [ValueId]) {
        let mut read = vec![false; self.stage.values.len()];
        keep.iter().for_each(|v| read[v.0] = true);
        for s in &self.stage.steps {
            s.inputs.iter().for_each(|v| read[v.0] = true);
            s.outputs.iter().flatten().for_each(|v| read[v.0] = true);
        }
        for i in (0..read.len()).rev() {
            if let Source::Alias(of) = self.stage.values[i].source
                && read[i]
            {
                read[of.0] = true;
            }
        }
        let mut map = vec![ValueId(usize::MAX); read.len()];
        let mut next = 0;
        for (i, r) in read.iter().enumerate() {
            if *r {
                map[i] = ValueId(next);
                next += 1;
            }
        }
        let mut i = 0;
        self.stage.values.retain(|_| {
            i += 1;
            read[i - 1]
        });
        for v in &mut self.stage.values {
            if let Source::Alias(of) = &mut v.source {
                *of = map[of.0];
            }
        }
        for s in &mut self.stage.steps {
            s.inputs.iter_mut().for_each(|v| *v = map[v.0]);
            s.outputs.iter_mut().flatten().for_each(|v| *v = map[v.0]);
        }
        keep.iter_mut().for_each(|v| *v = map[v.0]);
    }
}

/// What each rank's weight file holds.
pub fn weight_entries<'w>(plan: &Plan, rank: usize, weights: &'w Weights) -> Result<Vec<WeightEntry<'w>>, LowerError> {
    entries(plan, &plan.stages[rank / plan.mapping.tp], rank % plan.mapping.tp, weights)
}

/// What the reference program reads: whole weights.
pub fn reference_entries<'w>(plan: &Plan, weights: &'w Weights) -> Result<Vec<WeightEntry<'w>>, LowerError> {
    plan.reference.as_deref().map_or(Ok(vec![]), |stage| entries(plan, stage, 0, weights))
}

/// The default value of an input, or a part of it for one column.
pub fn default_entry<'w>(
    plan: &Plan,
    input: &InputDecl,
    part: Option<(Part, usize)>,
    weights: &'w Weights,
) -> Result<WeightEntry<'w>, LowerError> {
    let missing = || LowerError::Invalid(format!("the default value of the input `{}` is missing", input.name));
    let w = weights.0.get(&input.name).ok_or_else(missing)?;
    let whole: Vec<usize> = w.ty.shape.iter().map(|d| d.as_const().unwrap_or(0) as usize).collect();
    let mut shape = whole.clone();
    let cut = part.map(|(p, column)| (p.dim, p.of(column, plan.mapping.size(p.axis)), p.parts));
    if let Some((dim, _, parts)) = cut {
        match shape.get_mut(dim) {
            Some(d) if d.is_multiple_of(parts) => *d /= parts,
            _ => {
                return Err(LowerError::Invalid(format!(
                    "{parts} ranks share axis {dim} of the input `{}`, which they do not divide in its default value {}",
                    input.name, w.ty
                )));
            }
        }
    }
    let key = input.name.clone();
    Ok(WeightEntry { key, dtype: w.ty.dtype, shape, source: w.data(), source_shape: whole, range: None, cut })
}

fn entries<'w>(
    plan: &Plan,
    stage: &Stage,
    column: usize,
    weights: &'w Weights,
) -> Result<Vec<WeightEntry<'w>>, LowerError> {
    let mut out = vec![];
    for v in &stage.values {
        let Source::Weight { key, weight, range, part } = &v.source else { continue };
        let w = weights.0.get(weight).ok_or_else(|| LowerError::Invalid(format!("weight `{weight}` is missing")))?;
        let constant = |t: &TensorType| t.shape.iter().map(|d| d.as_const().unwrap_or(0) as usize).collect::<Vec<_>>();
        out.push(WeightEntry {
            key: key.clone(),
            dtype: w.ty.dtype,
            shape: constant(&v.ty),
            source: w.data(),
            source_shape: constant(&w.ty),
            range: *range,
            cut: part.map(|p| (p.dim, p.of(column, plan.mapping.size(p.axis)), p.parts)),
        });
    }
    Ok(out)
}

/// The weights of all ranks in memory, from which the executor takes them as from a plan folder.
pub fn rank_weights(plan: &Plan, weights: &Weights) -> Result<BTreeMap<(usize, String), Tensor>, LowerError> {
    let mut out = BTreeMap::new();
    for rank in 0..plan.mapping.world() {
        for entry in weight_entries(plan, rank, weights)? {
            let tensor = entry.tensor().map_err(|e| LowerError::Invalid(e.to_string()))?;
            out.insert((rank, entry.key), tensor);
        }
    }
    Ok(out)
}

/// Counts of steps by operator, over all stages for one rank of each.
pub fn step_counts(stages: &[Stage]) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let mut ops = BTreeMap::new();
    let mut fused = BTreeMap::new();
    for info in crate::ir::op::table() {
        match info.class {
            Class::Fused if info.name != "kernel" => fused.insert(info.name.to_owned(), 0),
            _ if matches!(
                info.name,
                "matmul" | "attention" | "all_reduce" | "all_gather" | "add" | "rms_norm" | "layer_norm"
            ) =>
            {
                ops.insert(info.name.to_owned(), 0)
            }
            _ => None,
        };
    }
    for s in stages.iter().flat_map(|s| &s.steps) {
        let into = if s.op.info().class == Class::Fused { &mut fused } else { &mut ops };
        *into.entry(s.op.title().to_owned()).or_insert(0) += 1;
    }
    (ops, fused)
}

/// Bytes that the buffers of a stage take, in one profile.
pub fn buffer_bytes(stage: &Stage, sizes: &Bindings) -> i64 {
    stage.buffers.iter().map(|b: &Buffer| b.bytes.iter().filter_map(|d| d.eval(sizes).ok()).max().unwrap_or(0)).sum()
}
