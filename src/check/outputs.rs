//! The outputs of a graph by the evaluator, from tensors and to tensors.

use std::collections::BTreeMap;

use sinter_runtime::minifloat;
use sinter_runtime::tensor::Tensor;

use super::eval::{Array, Evaluator, Rounding, whole};
use crate::import::Weights;
use crate::ir::{self, Bindings, DType, Graph, Op};
use sinter_runtime::dtype::{bf16_from_f64, f16_from_f64};

/// The outputs of a graph on `tp` ranks, rounded as storage rounds them. The error says what has no value.
pub fn outputs(
    graph: &Graph,
    tp: usize,
    bindings: &Bindings,
    inputs: &BTreeMap<String, Tensor>,
    weights: &Weights,
) -> Result<Vec<(String, Tensor)>, String> {
    let array = |t: &Tensor| Array { shape: t.shape.clone(), data: t.to_f64() };
    let mut evaluator = Evaluator::new(graph, tp, bindings, Rounding::Storage);
    for (id, n) in graph.nodes() {
        match &n.op {
            Op::Input { name, .. } => {
                let t = inputs.get(name).ok_or_else(|| format!("input `{name}` is missing"))?;
                evaluator.set(id, array(t));
            }
            Op::Weight { name, .. } => {
                let w = weights.0.get(name).ok_or_else(|| format!("weight `{name}` is missing"))?;
                let extent = |d: &ir::Dim| usize::try_from(d.eval(bindings)?).map_err(|e| e.to_string());
                let shape: Vec<usize> = w.ty.shape.iter().map(extent).collect::<Result<_, _>>()?;
                let t = Tensor::from_bytes(w.ty.dtype, &shape, &w.bytes).map_err(|e| e.to_string())?;
                evaluator.set(id, array(&t));
            }
            _ => {}
        }
    }
    let values = evaluator.run().map_err(|e| e.to_string())?;
    let output = |o: &ir::Output| {
        let ranks = values[o.value.index()].first().ok_or("a node without a result")?;
        let a = whole(ranks, o.part).map_err(|e| format!("{}: {e}", o.name))?;
        Ok((o.name.clone(), tensor(graph.node(o.value).ty().dtype, &a)?))
    };
    graph.outputs().iter().map(output).collect()
}

/// A tensor of an element type, of values that have it.
fn tensor(dtype: DType, a: &Array) -> Result<Tensor, String> {
    let mut bytes = vec![];
    for &v in &a.data {
        match dtype {
            DType::F64 => bytes.extend(v.to_le_bytes()),
            DType::F32 => bytes.extend((v as f32).to_le_bytes()),
            DType::F16 => bytes.extend(f16_from_f64(v).to_le_bytes()),
            DType::BF16 => bytes.extend(bf16_from_f64(v).to_le_bytes()),
            DType::I64 => bytes.extend((v as i64).to_le_bytes()),
            DType::I32 => bytes.extend((v as i32).to_le_bytes()),
            DType::I8 => bytes.extend((v as i8).to_le_bytes()),
            d if d.is_quantised() => bytes.push(minifloat::encode(d, v, true)),
            _ => bytes.push(v as u8),
        }
    }
    Tensor::from_bytes(dtype, &a.shape, &bytes).map_err(|e| e.to_string())
}
