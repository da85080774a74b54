//! Value numbers: equal numbers stand for equal values, whatever operators compute them.
//!
//! A fused operator has the numbers of the operators that it stands for, so that a value keeps its number
//! where a fusion is lost or gained. A fused operator that is not in `meaning` gets numbers of its own;
//! then names and neighbours tell what corresponds.

use std::collections::HashMap;

use crate::ir::{Class, DType, Node, Op};

/// Numbers given so far, to graphs that are compared.
#[derive(Default)]
pub(super) struct Numbers {
    table: HashMap<(Op, Vec<u32>), u32>,
}

impl Numbers {
    fn of(&mut self, op: Op, mut operands: Vec<u32>) -> u32 {
        if op.info().class == Class::Commutative {
            operands.sort_unstable();
        }
        let next = self.table.len() as u32;
        *self.table.entry((op, operands)).or_insert(next)
    }

    /// The numbers of a node's results, from those of its operands' results.
    pub(super) fn results(&mut self, node: &Node, operands: &[&[u32]]) -> Vec<u32> {
        let first = |i: usize| operands.get(i).and_then(|o| o.first()).copied();
        match &node.op {
            Op::Get { index } => {
                let of = operands.first().and_then(|o| o.get(usize::try_from(*index).ok()?));
                if let Some(&n) = of {
                    return vec![n];
                }
            }
            // The same value, on other ranks.
            Op::Boundary { .. } => {
                if let Some(n) = first(0) {
                    return vec![n];
                }
            }
            _ => {}
        }
        let operands: Vec<u32> = operands.iter().filter_map(|o| o.first()).copied().collect();
        if let Some(numbers) = self.meaning(&node.op, &operands) {
            return numbers;
        }
        let n = self.of(essence(&node.op), operands);
        if node.types.len() <= 1 {
            return vec![n];
        }
        (0..node.types.len()).map(|i| self.of(Op::Get { index: i as i64 }, vec![n])).collect()
    }

    /// The numbers of a fused operator's results.
    fn meaning(&mut self, op: &Op, operands: &[u32]) -> Option<Vec<u32>> {
        if let Op::Kernel { body } = op {
            let mut numbers = operands.to_vec();
            for s in &body.steps {
                let inputs = s.inputs.iter().filter_map(|&n| numbers.get(n).copied()).collect();
                numbers.push(self.of(s.op.clone(), inputs));
            }
            return body.results.iter().map(|&n| numbers.get(n).copied()).collect();
        }
        let &[x, y, ..] = operands else { return None };
        let (sum, norm) = match op {
            Op::SiluMul {} => {
                let gate = self.of(Op::Silu {}, vec![x]);
                return Some(vec![self.of(Op::Mul {}, vec![gate, y])]);
            }
            Op::GeluMul { tanh } => {
                let gate = self.of(Op::Gelu { tanh: *tanh }, vec![x]);
                return Some(vec![self.of(Op::Mul {}, vec![gate, y])]);
            }
            Op::AddRmsNorm { eps } => (x, Op::RmsNorm { eps: *eps }),
            Op::AddLayerNorm { eps } => (x, Op::LayerNorm { eps: *eps }),
            Op::ArResidualRmsNorm { axis, eps } => {
                (self.of(Op::AllReduce { axis: *axis }, vec![x]), Op::RmsNorm { eps: *eps })
            }
            Op::ArResidualLayerNorm { axis, eps } => {
                (self.of(Op::AllReduce { axis: *axis }, vec![x]), Op::LayerNorm { eps: *eps })
            }
            _ => return None,
        };
        let sum = self.of(Op::Add {}, vec![sum, y]);
        let mut read = vec![sum];
        read.extend(&operands[2..]);
        Some(vec![self.of(norm, read), sum])
    }
}

/// An operator without what is compared apart: an input or weight is its name, its type is not.
pub(super) fn essence(op: &Op) -> Op {
    match op {
        Op::Input { name, .. } => Op::Input { name: name.clone(), dtype: DType::F32, shape: vec![] },
        Op::Weight { name, .. } => Op::Weight { name: name.clone(), dtype: DType::F32, shape: vec![] },
        op => op.clone(),
    }
}
