//! Value numbers: equal numbers stand for equal values, whatever operators compute them.
//!
//! A fused operator has the numbers of the operators that it stands for, so that a value keeps its number
//! where a fusion is lost or gained. A fused operator that is not in `meaning` gets numbers of its own;
//! then names and neighbours tell what corresponds.

use std::collections::HashMap;

use crate::ir::norm::{Norm, Quant, Sum};
use crate::ir::{Class, DType, Node, Op};

/// Numbers given so far, to graphs that are compared.
#[derive(Default)]
pub(super) struct Numbers {
    table: HashMap<(Op, Vec<u32>), u32>,
    /// By the number of packed or swizzled numbers, that of the same numbers one by one.
    plain: HashMap<u32, u32>,
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
            Op::UnpackFp4 {} | Op::UnswizzleScales { .. } => {
                if let Some(&n) = first(0).and_then(|n| self.plain.get(&n)) {
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
        match op {
            Op::SiluMul {} => {
                let gate = self.of(Op::Silu {}, vec![x]);
                Some(vec![self.of(Op::Mul {}, vec![gate, y])])
            }
            Op::GeluMul { tanh } => {
                let gate = self.of(Op::Gelu { tanh: *tanh }, vec![x]);
                Some(vec![self.of(Op::Mul {}, vec![gate, y])])
            }
            Op::QuantizeNvfp4 {} => Some(self.nvfp4(x, y)),
            op => self.norm(&op.norm()?, operands),
        }
    }

    fn norm(&mut self, n: &Norm, operands: &[u32]) -> Option<Vec<u32>> {
        let sum = match n.sum {
            Sum::None => None,
            Sum::Local => Some(self.of(Op::Add {}, operands.get(..2)?.to_vec())),
            Sum::AllReduce(axis) => {
                let reduced = self.of(Op::AllReduce { axis }, vec![*operands.first()?]);
                Some(self.of(Op::Add {}, vec![reduced, *operands.get(1)?]))
            }
        };
        let parameters = operands.get(n.summands()..n.summands() + n.parameters())?;
        let read = [&[sum.unwrap_or(operands[0])], parameters].concat();
        let normed = self.of(n.plain(), read);
        let mut results = vec![normed];
        match (n.quant, n.scale().and_then(|i| operands.get(i))) {
            (Quant::Fp8, Some(&scale)) => results.push(self.of(Op::QuantizeFp8 {}, vec![normed, scale])),
            (Quant::Fp8Token { floor }, _) => {
                let scale = self.of(Op::Fp8Scale { floor }, vec![normed]);
                results.extend([self.of(Op::QuantizeFp8 {}, vec![normed, scale]), scale]);
            }
            (Quant::Nvfp4, Some(&scale)) => results.extend(self.nvfp4(normed, scale)),
            _ => {}
        }
        results.extend(sum);
        Some(results)
    }

    /// Packed codes and swizzled scales, which `plain` takes back to those that stand one by one.
    fn nvfp4(&mut self, x: u32, scale: u32) -> Vec<u32> {
        let blocks = self.of(Op::Fp4Scale {}, vec![x, scale]);
        let codes = self.of(Op::QuantizeFp4 {}, vec![x, blocks, scale]);
        let tuple = self.of(Op::QuantizeNvfp4 {}, vec![x, scale]);
        let packed = self.of(Op::Get { index: 0 }, vec![tuple]);
        let swizzled = self.of(Op::Get { index: 1 }, vec![tuple]);
        self.plain.extend([(packed, codes), (swizzled, blocks)]);
        vec![packed, swizzled]
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
