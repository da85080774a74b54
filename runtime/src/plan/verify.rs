//! Checks that a plan is whole before anything relies on it.

use std::collections::BTreeSet;

use super::{Mapping, Part, Plan, Source, Stage, Step, ValueId, certify};
use crate::attr::{Attr, MeshAxis};
use crate::dim::Dim;
use crate::op::Op;

/// What is wrong with a plan; always a defect of whoever made it.
#[derive(Debug, thiserror::Error)]
#[error("the plan is malformed: {}", .0.join("; "))]
pub struct VerifyError(pub Vec<String>);

/// After this many problems the rest is not looked at.
const MAX_PROBLEMS: usize = 16;

/// Checks all that the executor relies on, the certificate included.
pub fn verify(plan: &Plan) -> Result<(), VerifyError> {
    let mut problems = structure(plan);
    if problems.is_empty() {
        match certify(&plan.mapping, &plan.stages) {
            Err(e) => problems.push(e.to_string()),
            Ok(c) if c != plan.certificate => {
                problems.push("the certificate is not that of the stages".to_owned());
            }
            Ok(_) => {}
        }
    }
    problems.truncate(MAX_PROBLEMS);
    if problems.is_empty() { Ok(()) } else { Err(VerifyError(problems)) }
}

/// What is wrong with a plan, its certificate aside.
pub(crate) fn structure(plan: &Plan) -> Vec<String> {
    let Mapping { tp, pp } = plan.mapping;
    let mut problems = vec![];
    if plan.version != super::VERSION {
        problems.push(format!("version {} instead of {}", plan.version, super::VERSION));
    }
    if tp == 0 || pp == 0 || tp.checked_mul(pp).is_none_or(|n| n > 1 << 16) {
        return vec![format!("a mesh of {tp} x {pp} ranks")];
    }
    if plan.stages.len() != pp {
        return vec![format!("{} stages for pp = {pp}", plan.stages.len())];
    }
    let mut known = BTreeSet::new();
    let mut names = BTreeSet::new();
    for input in &plan.inputs {
        known.extend(input.ty.shape.iter().chain(input.shape()).filter_map(|d| d.as_sym().map(str::to_owned)));
        if input.declared.as_ref().is_some_and(|d| d.len() != input.ty.rank()) {
            problems.push(format!(
                "input `{}` is declared with {} axes and is {}",
                input.name,
                input.shape().len(),
                input.ty
            ));
        }
        if !names.insert(&input.name) {
            problems.push(format!("two inputs are called `{}`", input.name));
        }
    }
    for input in &plan.inputs {
        let dims = input.ty.shape.iter().chain(input.shape());
        unknown_symbols(&known, dims, &format!("input `{}`", input.name), &mut problems);
    }
    for a in &plan.assumptions {
        unknown_symbols(&known, [&a.left, &a.right].into_iter(), &format!("assumption `{a}`"), &mut problems);
    }
    let all = known.union(&plan.late_symbols()).cloned().collect();
    let symbols = Symbols { inputs: known, all };
    for (i, stage) in plan.stages.iter().enumerate() {
        let outputs: Vec<ValueId> = plan.outputs.iter().filter(|o| o.stage == i).map(|o| o.value).collect();
        check_stage(plan, plan.mapping, stage, &format!("stage {i}"), &symbols, &outputs, &mut problems);
    }
    for o in &plan.outputs {
        unknown_symbols(&symbols.all, o.ty.shape.iter(), &format!("output `{}`", o.name), &mut problems);
        let value = plan.stages.get(o.stage).and_then(|s| s.values.get(o.value.0));
        match value {
            None => problems
                .push(format!("output `{}` is value {} of stage {}, which does not exist", o.name, o.value.0, o.stage)),
            Some(v) => {
                let mut whole = v.ty.clone();
                if let Some(p) = &o.part {
                    check_part(plan.mapping, p, whole.rank(), &format!("output `{}`", o.name), &mut problems);
                    if let Some(d) = whole.shape.get_mut(p.dim) {
                        *d = &*d * &Dim::from(p.parts as i64);
                    }
                    if p.axis != MeshAxis::Tp {
                        problems.push(format!("output `{}` is cut along {}", o.name, p.axis.name()));
                    }
                }
                if whole.dtype != o.ty.dtype || whole.rank() != o.ty.rank() {
                    problems.push(format!("output `{}` is {} but its value gives {whole}", o.name, o.ty));
                }
            }
        }
    }
    if let Some(reference) = &plan.reference {
        let find = |name: &str| reference.values.iter().position(|v| v.name == name).map(ValueId);
        for o in plan.outputs.iter().filter(|o| find(&o.name).is_none()) {
            problems.push(format!("the reference program has no value `{}`", o.name));
        }
        let outputs: Vec<ValueId> = plan.outputs.iter().filter_map(|o| find(&o.name)).collect();
        let single = Mapping { tp: 1, pp: 1 };
        check_stage(plan, single, reference, "reference program", &symbols, &outputs, &mut problems);
    }
    problems
}

/// Symbols that have values.
struct Symbols {
    /// From the start: extents of inputs.
    inputs: BTreeSet<String>,
    /// By the end: those, and what results of standard operators show.
    all: BTreeSet<String>,
}

fn unknown_symbols<'a>(
    known: &BTreeSet<String>,
    dims: impl Iterator<Item = &'a Dim>,
    at: &str,
    problems: &mut Vec<String>,
) {
    let mut used = BTreeSet::new();
    dims.for_each(|d| d.collect_symbols(&mut used));
    for s in used.difference(known) {
        problems.push(format!("{at} uses the symbol `{s}`, which is no extent of an input"));
    }
}

fn check_part(mapping: Mapping, part: &Part, rank: usize, at: &str, problems: &mut Vec<String>) {
    if part.parts == 0 || !mapping.size(part.axis).is_multiple_of(part.parts) {
        problems.push(format!(
            "{at}: {} parts for {} ranks along {}",
            part.parts,
            mapping.size(part.axis),
            part.axis.name()
        ));
    }
    if part.dim >= rank {
        problems.push(format!("{at}: a cut along axis {} of a tensor of rank {rank}", part.dim));
    }
}

fn check_stage(
    plan: &Plan,
    mapping: Mapping,
    stage: &Stage,
    at: &str,
    symbols: &Symbols,
    outputs: &[ValueId],
    problems: &mut Vec<String>,
) {
    let before = problems.len();
    let mut names = BTreeSet::new();
    for (i, v) in stage.values.iter().enumerate() {
        let here = format!("{at}, value `{}`", v.name);
        if !names.insert(&v.name) {
            problems.push(format!("{at}: two values are called `{}`", v.name));
        }
        unknown_symbols(&symbols.all, v.ty.shape.iter(), &here, problems);
        match &v.source {
            Source::Input { index, part } => match plan.inputs.get(*index) {
                None => problems.push(format!("{here}: input {index} does not exist")),
                Some(input) => {
                    if input.ty.dtype != v.ty.dtype || input.ty.rank() != v.ty.rank() {
                        problems.push(format!("{here} is {}, but input `{}` is {}", v.ty, input.name, input.ty));
                    }
                    if let Some(p) = part {
                        check_part(mapping, p, v.ty.rank(), &here, problems);
                    }
                }
            },
            Source::Weight { part, range, .. } => {
                if range.is_some_and(|r| r.dim >= v.ty.rank() || r.start > r.end) {
                    problems.push(format!("{here}: it has no such range of its weight"));
                }
                if v.ty.shape.iter().any(|d| d.as_const().is_none_or(|d| d < 0)) {
                    problems.push(format!("{here}: a weight of symbolic type {}", v.ty));
                }
                if let Some(p) = part {
                    check_part(mapping, p, v.ty.rank(), &here, problems);
                }
            }
            Source::Buffer(b) if *b >= stage.buffers.len() => {
                problems.push(format!("{here}: buffer {b} does not exist"))
            }
            Source::Buffer(_) | Source::Late => {}
            Source::Alias(_) => check_alias(stage, ValueId(i), &here, problems),
        }
    }
    for (i, b) in stage.buffers.iter().enumerate() {
        unknown_symbols(&symbols.inputs, b.bytes.iter(), &format!("{at}, buffer {i}"), problems);
    }
    for (i, step) in stage.steps.iter().enumerate() {
        check_step(mapping, stage, step, &format!("{at}, step {i} ({})", step.op.name()), &symbols.all, problems);
    }
    if outputs.iter().any(|o| o.0 >= stage.values.len()) {
        problems.push(format!("{at}: an output is no value of it"));
    }
    // Storage may only be followed once the indices are known to be sound.
    if problems.len() == before {
        check_storage(stage, at, outputs, problems);
    }
}

fn check_alias(stage: &Stage, start: ValueId, here: &str, problems: &mut Vec<String>) {
    let mut id = start;
    for _ in 0..=stage.values.len() {
        match stage.values.get(id.0) {
            None => return problems.push(format!("{here}: an alias of value {}, which does not exist", id.0)),
            Some(v) => match v.source {
                Source::Alias(of) => id = of,
                _ if v.ty.dtype != stage.value(start).ty.dtype => {
                    return problems.push(format!("{here}: an alias of the {} `{}`", v.ty.dtype, v.name));
                }
                _ => return,
            },
        }
    }
    problems.push(format!("{here}: aliases form a circle"));
}

fn check_step(
    mapping: Mapping,
    stage: &Stage,
    step: &Step,
    here: &str,
    known: &BTreeSet<String>,
    problems: &mut Vec<String>,
) {
    let info = step.op.info();
    if matches!(
        step.op,
        Op::Input { .. }
            | Op::Weight { .. }
            | Op::Boundary { .. }
            | Op::Output { .. }
            | Op::OutputSharded { .. }
            | Op::Get { .. }
    ) {
        problems.push(format!("{here}: this operator cannot be a step"));
    }
    if step.inputs.len() < info.min_inputs || step.inputs.len() > info.max_inputs {
        problems.push(format!("{here}: {} operands", step.inputs.len()));
    }
    if step.outputs.len() != step.op.outputs() {
        problems.push(format!("{here}: {} results instead of {}", step.outputs.len(), step.op.outputs()));
    }
    for v in step.inputs.iter().chain(step.outputs.iter().flatten()) {
        if v.0 >= stage.values.len() {
            problems.push(format!("{here}: value {} does not exist", v.0));
        }
    }
    for attr in step.op.attrs() {
        match &attr {
            Attr::Dim(d) => unknown_symbols(known, std::iter::once(d), here, problems),
            Attr::Dims(d) => unknown_symbols(known, d.iter(), here, problems),
            Attr::Axis(axis) if *axis != MeshAxis::Tp && !matches!(step.op, Op::Shard { .. }) => {
                problems.push(format!("{here}: communication along {}", axis.name()));
            }
            _ => {}
        }
    }
    if let Op::Shard { axis, parts, .. } | Op::AllGather { axis, parts, .. } = step.op {
        let size = mapping.size(axis) as i64;
        if parts <= 0 || size % parts != 0 {
            problems.push(format!("{here}: {parts} parts for {size} ranks"));
        }
    }
    if matches!(step.op, Op::Recv { .. }) && step.outputs.iter().all(Option::is_none) {
        problems.push(format!("{here}: nothing takes what is received"));
    }
}

/// Checks that every value is defined before it is used, and that no buffer is overwritten before its last use.
fn check_storage(stage: &Stage, at: &str, outputs: &[ValueId], problems: &mut Vec<String>) {
    // The value that each buffer holds at the moment.
    let mut holds: Vec<Option<ValueId>> = vec![None; stage.buffers.len()];
    let mut late: BTreeSet<ValueId> = BTreeSet::new();
    let readable = |holds: &[Option<ValueId>], late: &BTreeSet<ValueId>, id: ValueId| {
        let storage = stage.storage(id);
        match stage.value(storage).source {
            Source::Late if !late.contains(&storage) => Some("has no value yet".to_owned()),
            Source::Buffer(b) if holds[b].is_none() => Some("has no value yet".to_owned()),
            Source::Buffer(b) if holds[b] != Some(storage) => Some(format!(
                "shares buffer {b} with `{}`, which was written since",
                holds[b].map_or("", |v| &stage.value(v).name)
            )),
            _ => None,
        }
    };
    let mut defined = BTreeSet::new();
    for (i, step) in stage.steps.iter().enumerate() {
        let here = format!("{at}, step {i} ({})", step.op.name());
        for &v in &step.inputs {
            if let Some(why) = readable(&holds, &late, v) {
                problems.push(format!("{here} reads `{}`, which {why}", stage.value(v).name));
            }
        }
        let mut written = BTreeSet::new();
        for &v in step.outputs.iter().flatten() {
            let name = &stage.value(v).name;
            if !defined.insert(v) {
                problems.push(format!("{here} writes `{name}` for the second time"));
            }
            if stage.value(v).source == Source::Late {
                late.insert(v);
                continue;
            }
            let Source::Buffer(b) = stage.value(v).source else {
                problems.push(format!("{here} writes `{name}`, which is not in a buffer"));
                continue;
            };
            let reads = |&x: &ValueId| matches!(stage.value(stage.storage(x)).source, Source::Buffer(o) if o == b);
            if !written.insert(b) || step.inputs.iter().any(reads) {
                problems.push(format!("{here} writes `{name}` over another of its own operands or results"));
            }
            holds[b] = Some(v);
        }
    }
    for &o in outputs {
        if let Some(why) = readable(&holds, &late, o) {
            problems.push(format!("{at}: at the end, output value `{}` {why}", stage.value(o).name));
        }
    }
}
