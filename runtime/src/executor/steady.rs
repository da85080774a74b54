//! Steps whose results are the same in every repetition, for they read weights and constants alone: they are computed in the
//! first one, and what other steps read of them is kept.

use std::collections::BTreeSet;

use crate::dtype::DType;
use crate::norm::Sum;
use crate::op::{Class, Op};
use crate::plan::{Source, Stage, Step, ValueId};

/// Steps that are computed once, and the values to keep of them.
#[derive(Default)]
pub(super) struct Steady {
    pub(super) steps: BTreeSet<usize>,
    pub(super) values: BTreeSet<ValueId>,
}

/// Whether a step computes the same from the same operands, on its rank alone.
fn is_function(step: &Step) -> bool {
    match &step.op {
        Op::Standard { call } => call.is_function(),
        Op::Send { .. } | Op::Recv { .. } | Op::Kernel { .. } | Op::VocabGather { .. } => false,
        op if op.norm().is_some_and(|n| matches!(n.sum, Sum::AllReduce(_))) => false,
        op => op.info().class != Class::Collective,
    }
}

impl Steady {
    /// The steady steps of a stage whose `outputs` the host takes.
    pub(super) fn of(stage: &Stage, outputs: impl Iterator<Item = ValueId>) -> Steady {
        let mut same: BTreeSet<ValueId> = BTreeSet::new();
        let mut out = Steady::default();
        for (i, step) in stage.steps.iter().enumerate() {
            let known = |v: &ValueId| {
                let s = stage.storage(*v);
                same.contains(&s) || matches!(stage.value(s).source, Source::Weight { .. })
            };
            let tensors = step.outputs.iter().flatten().all(|v| stage.value(*v).ty.dtype != DType::Opaque);
            if tensors && is_function(step) && step.inputs.iter().all(known) {
                same.extend(step.outputs.iter().flatten().map(|v| stage.storage(*v)));
                out.steps.insert(i);
            }
        }
        let others = stage.steps.iter().enumerate().filter(|(i, _)| !out.steps.contains(i));
        let read = others.flat_map(|(_, s)| s.inputs.iter().copied()).chain(outputs).map(|v| stage.storage(v));
        out.values = read.filter(|v| same.contains(v)).collect();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::MeshAxis;
    use crate::dtype::TensorType;
    use crate::plan::Value;

    #[test]
    fn what_reads_weights_alone_is_computed_once() {
        let value = |name: &str, source: Source| Value {
            name: name.to_owned(),
            ty: TensorType { dtype: DType::F32, shape: vec![] },
            source,
        };
        let weight = Source::Weight { key: "w".into(), weight: "w".into(), range: None, part: None };
        let step = |op: Op, inputs: &[usize], output: usize| Step {
            op,
            inputs: inputs.iter().map(|&i| ValueId(i)).collect(),
            outputs: vec![Some(ValueId(output))],
            origin: vec![],
            rules: vec![],
            why: None,
        };
        let random = crate::standard::Call { op: "RandomNormalLike".to_owned(), ..Default::default() };
        let stage = Stage {
            values: vec![
                value("w", weight),
                value("x", Source::Input { index: 0, part: None }),
                value("inner", Source::Late),
                value("outer", Source::Late),
                value("view", Source::Alias(ValueId(3))),
                value("y", Source::Late),
                value("noise", Source::Late),
                value("sum", Source::Late),
            ],
            steps: vec![
                step(Op::Exp {}, &[0], 2),
                step(Op::Neg {}, &[2], 3),
                step(Op::Add {}, &[4, 1], 5),
                step(Op::Standard { call: std::sync::Arc::new(random) }, &[0], 6),
                step(Op::AllReduce { axis: MeshAxis::Tp }, &[3], 7),
            ],
            buffers: vec![],
        };
        let found = Steady::of(&stage, std::iter::once(ValueId(5)));
        assert_eq!(found.steps, BTreeSet::from([0, 1]));
        assert_eq!(found.values, BTreeSet::from([ValueId(3)]));
    }
}
