//! Builds small plans in code.
#![allow(dead_code, reason = "every test file uses some of it")]

use std::collections::BTreeMap;

use sinter_runtime::attr::MeshAxis;
use sinter_runtime::dim::Dim;
use sinter_runtime::dtype::{DType, TensorType};
use sinter_runtime::op::Op;
use sinter_runtime::plan::*;
use sinter_runtime::tensor::Tensor;

pub(crate) const TP: MeshAxis = MeshAxis::Tp;

pub(crate) fn ty(shape: &[&str]) -> TensorType {
    TensorType::new(DType::F32, shape.iter().map(|s| Dim::parse(s).unwrap()).collect::<Vec<_>>())
}

pub(crate) fn part(dim: usize, parts: usize) -> Option<Part> {
    Some(Part { dim, axis: TP, parts })
}

/// Adds values and steps to a stage, every result in a buffer of its own.
#[derive(Default)]
pub(crate) struct Builder(pub(crate) Stage);

impl Builder {
    pub(crate) fn value(&mut self, name: &str, ty: TensorType, source: Source) -> ValueId {
        self.0.values.push(Value { name: name.to_owned(), ty, source });
        ValueId(self.0.values.len() - 1)
    }

    pub(crate) fn input(&mut self, index: usize, name: &str, shape: &[&str], part: Option<Part>) -> ValueId {
        self.value(name, ty(shape), Source::Input { index, part })
    }

    pub(crate) fn weight(&mut self, name: &str, shape: &[&str], part: Option<Part>) -> ValueId {
        self.value(name, ty(shape), Source::Weight { key: name.to_owned(), weight: name.to_owned(), range: None, part })
    }

    pub(crate) fn buffer(&mut self, name: &str, shape: &[&str]) -> ValueId {
        let ty = ty(shape);
        self.0.buffers.push(Buffer { bytes: vec![ty.bytes()] });
        let buffer = self.0.buffers.len() - 1;
        self.value(name, ty, Source::Buffer(buffer))
    }

    pub(crate) fn step(&mut self, op: Op, inputs: &[ValueId], outputs: &[Option<ValueId>]) {
        let (inputs, outputs) = (inputs.to_vec(), outputs.to_vec());
        self.0.steps.push(Step { op, inputs, outputs, origin: vec![], rules: vec![], why: None });
    }

    /// A step with one result.
    pub(crate) fn add(&mut self, op: Op, inputs: &[ValueId], name: &str, shape: &[&str]) -> ValueId {
        let out = self.buffer(name, shape);
        self.step(op, inputs, &[Some(out)]);
        out
    }
}

pub(crate) fn input(name: &str, shape: &[&str]) -> InputDecl {
    InputDecl { name: name.to_owned(), ty: ty(shape), declared: None, kind: None, default: false }
}

pub(crate) fn output(name: &str, shape: &[&str], stage: usize, value: ValueId, part: Option<Part>) -> OutputDecl {
    OutputDecl { name: name.to_owned(), ty: ty(shape), stage, value, part, kind: None }
}

pub(crate) fn plan(tp: usize, inputs: Vec<InputDecl>, outputs: Vec<OutputDecl>, stages: Vec<Stage>) -> Plan {
    let mapping = Mapping { tp, pp: stages.len() };
    let certificate = certify(&mapping, &stages).unwrap_or_default();
    Plan {
        version: VERSION,
        model: "test".to_owned(),
        mapping,
        inputs,
        outputs,
        stages,
        certificate,
        reference: None,
        assumptions: vec![],
        random: vec![],
        files: vec![],
    }
}

pub(crate) fn tensor(shape: &[usize], v: &[f32]) -> Tensor {
    Tensor::from_f32(shape, v).unwrap()
}

/// 0, 1, 2, ... times a scale.
pub(crate) fn count(shape: &[usize], scale: f32) -> Tensor {
    let n = shape.iter().product::<usize>();
    tensor(shape, &(0..n).map(|i| i as f32 * scale).collect::<Vec<_>>())
}

pub(crate) fn named(list: &[(&str, &Tensor)]) -> BTreeMap<String, Tensor> {
    list.iter().map(|(n, t)| ((*n).to_owned(), (*t).clone())).collect()
}

/// Two stages of two ranks each: y = relu(x @ w1) @ w2 with w1 cut by columns and w2 by rows, then an
/// element-wise stage that is cut by columns. The reference program computes the same on one rank.
pub(crate) fn mlp() -> Plan {
    let mut first = Builder::default();
    let x = first.input(0, "x", &["n", "4"], None);
    let w1 = first.weight("w1", &["4", "3"], part(1, 2));
    let w2 = first.weight("w2", &["3", "2"], part(0, 2));
    let h = first.add(Op::Matmul { trans_b: false }, &[x, w1], "h.part", &["n", "3"]);
    let r = first.add(Op::Relu {}, &[h], "r.part", &["n", "3"]);
    let p = first.add(Op::Matmul { trans_b: false }, &[r, w2], "y.partial", &["n", "2"]);
    let y = first.add(Op::AllReduce { axis: TP }, &[p], "y", &["n", "2"]);
    first.step(Op::Send { stage: 1, tag: 7 }, &[y], &[]);

    let mut second = Builder::default();
    let y = second.add(Op::Recv { stage: 0, tag: 7 }, &[], "y", &["n", "2"]);
    let mine = second.add(Op::Shard { dim: 1, axis: TP, parts: 2 }, &[y], "mine", &["n", "1"]);
    let z = second.add(Op::Neg {}, &[mine], "z.part", &["n", "1"]);
    let all = second.add(Op::AllGather { dim: 1, axis: TP, parts: 2 }, &[z], "z", &["n", "2"]);

    let mut reference = Builder::default();
    let x = reference.input(0, "x", &["n", "4"], None);
    let w1 = reference.weight("w1", &["4", "6"], None);
    let w2 = reference.weight("w2", &["6", "2"], None);
    let h = reference.add(Op::Matmul { trans_b: false }, &[x, w1], "h", &["n", "6"]);
    let r = reference.add(Op::Relu {}, &[h], "r", &["n", "6"]);
    let y = reference.add(Op::Matmul { trans_b: false }, &[r, w2], "y", &["n", "2"]);
    reference.add(Op::Neg {}, &[y], "z", &["n", "2"]);
    reference.add(Op::Neg {}, &[y], "z2", &["n", "2"]);

    let outputs = vec![output("z", &["n", "2"], 1, all, None), output("z2", &["n", "2"], 1, z, part(1, 2))];
    let mut plan = plan(2, vec![input("x", &["n", "4"])], outputs, vec![first.0, second.0]);
    plan.reference = Some(Box::new(reference.0));
    plan
}

/// The whole weights of [`mlp`].
pub(crate) fn mlp_weights() -> (Tensor, Tensor) {
    let w1: Vec<f32> = (0..24).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
    let w2: Vec<f32> = (0..12).map(|i| ((i * 5) % 7) as f32 - 3.0).collect();
    (tensor(&[4, 6], &w1), tensor(&[6, 2], &w2))
}

/// The weights of [`mlp`] as written to a rank's file.
pub(crate) fn mlp_entries<'a>(w1: &'a Tensor, w2: &'a Tensor, rank: usize) -> Vec<WeightEntry<'a>> {
    if rank >= 2 {
        return vec![];
    }
    let entry = |key: &str, t: &'a Tensor, shape: &[usize], dim| WeightEntry {
        key: key.to_owned(),
        dtype: DType::F32,
        shape: shape.to_vec(),
        source: WeightData::Bytes(t.bytes()),
        source_shape: t.shape.clone(),
        range: None,
        cut: Some((dim, rank, 2)),
    };
    vec![entry("w2", w2, &[3, 2], 0), entry("w1", w1, &[4, 3], 1)]
}
