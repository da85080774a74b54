//! Bodies of declared kernels: what one kernel computes, in terms of other operators.
//!
//! A rule file may declare a fused kernel by the operators that it stands for. The body is what executors
//! compute where they have no kernel of that name, and what its results are compared with where they have.

use std::fmt;

use crate::attr::{Attr, split_top_level};
use crate::dtype::{DType, TensorType};
use crate::op::{self, Op};

/// What a declared kernel computes, for operands of known types.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Body {
    /// The kernel's name.
    pub name: String,
    /// Number of operands. They have the numbers from 0, the steps those that follow.
    pub operands: usize,
    /// The operators in order.
    pub steps: Vec<BodyStep>,
    /// Numbers of the results.
    pub results: Vec<usize>,
}

/// An operator of a body.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BodyStep {
    /// What is computed; one result, without communication.
    pub op: Op,
    /// Numbers of its operands, all smaller than its own.
    pub inputs: Vec<usize>,
    /// Type of its result.
    pub ty: TensorType,
}

impl Body {
    /// Whether the numbers refer to what comes before, and the operators may be part of a kernel.
    pub fn is_sound(&self) -> bool {
        let step = |(i, s): (usize, &BodyStep)| {
            let info = s.op.info();
            let arity = (info.min_inputs..=info.max_inputs).contains(&s.inputs.len());
            arity && may_be_part(&s.op) && s.inputs.iter().all(|&n| n < self.operands + i)
        };
        let defined = self.operands + self.steps.len();
        self.steps.iter().enumerate().all(step)
            && !self.results.is_empty()
            && self.results.iter().all(|&n| (self.operands..defined).contains(&n))
    }

    /// Reads the form that `Display` writes.
    pub fn parse(text: &str) -> Option<Body> {
        let (head, rest) = text.split_once(" { ")?;
        let (name, operands) = head.strip_suffix(')')?.split_once('(')?;
        let (steps, results) = rest.rsplit_once(" } -> ")?;
        let numbers = |s: &str| -> Option<Vec<usize>> {
            s.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| s.parse().ok()).collect()
        };
        let step = |s: &str| {
            let (call, attrs) = s.split_once(" {").map_or((s, ""), |(c, a)| (c, a.strip_suffix('}').unwrap_or(a)));
            let (ty, call) = call.split_once(" = ")?;
            let (op, inputs) = call.strip_suffix(')')?.split_once('(')?;
            Some(BodyStep { op: operator(op, attrs)?, inputs: numbers(inputs)?, ty: tensor_type(ty)? })
        };
        let steps: Option<Vec<BodyStep>> =
            steps.split("; ").map(str::trim).filter(|s| !s.is_empty()).map(step).collect();
        let (name, operands) = (name.to_owned(), operands.parse().ok()?);
        let body = Body { name, operands, steps: steps?, results: numbers(results)? };
        body.is_sound().then_some(body)
    }
}

/// Whether an operator may be part of a declared kernel: it has one result, computes, and stays on its rank.
pub fn may_be_part(op: &Op) -> bool {
    let info = op.info();
    let local = !matches!(info.class, op::Class::Collective | op::Class::Root | op::Class::Fused);
    let leaf = info.class == op::Class::Leaf && !matches!(op, Op::Const { .. });
    local && !leaf && info.outputs == 1 && !matches!(op, Op::VocabGather { .. } | Op::Get { .. } | Op::Standard { .. })
}

fn operator(name: &str, attrs: &str) -> Option<Op> {
    let info = op::info(name)?;
    let given: Vec<(&str, &str)> =
        split_top_level(attrs).into_iter().filter_map(|a| a.split_once(" = ")).map(|(n, v)| (n.trim(), v)).collect();
    let value = |a: &op::AttrInfo| match given.iter().find(|(n, _)| *n == a.name) {
        Some((_, v)) => Attr::parse(a.kind, v),
        None => a.default.clone(),
    };
    Op::from_attrs(name, &info.attrs.iter().map(value).collect::<Option<Vec<_>>>()?)
}

fn tensor_type(text: &str) -> Option<TensorType> {
    let (dtype, _) = text.split_once('[')?;
    match Attr::parse(crate::attr::AttrKind::Dims, &text[dtype.len()..])? {
        Attr::Dims(shape) => Some(TensorType { dtype: DType::parse(dtype)?, shape }),
        _ => None,
    }
}

impl fmt::Display for Body {
    /// `name(operands) { type = op(numbers) {attributes}; .. } -> numbers`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |v: &[usize]| v.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        write!(f, "{}({}) {{ ", self.name, self.operands)?;
        for (i, s) in self.steps.iter().enumerate() {
            let text = s.op.to_string();
            let (op, attrs) =
                text.split_once(' ').map_or((text.as_str(), String::new()), |(o, a)| (o, format!(" {a}")));
            let sep = if i == 0 { "" } else { "; " };
            write!(f, "{sep}{} = {op}({}){attrs}", s.ty, list(&s.inputs))?;
        }
        write!(f, " }} -> {}", list(&self.results))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Real;
    use crate::dim::Dim;

    fn example() -> Body {
        let ty = TensorType::new(DType::F32, vec![Dim::sym("n"), Dim::from(4)]);
        let step = |op, inputs: &[usize]| BodyStep { op, inputs: inputs.to_vec(), ty: ty.clone() };
        Body {
            name: "scaled_norm".into(),
            operands: 2,
            steps: vec![step(Op::RmsNorm { eps: Real(1e-6) }, &[0, 1]), step(Op::Gelu { tanh: true }, &[2])],
            results: vec![3, 2],
        }
    }

    #[test]
    fn text_reads_back() {
        let text = example().to_string();
        assert_eq!(Body::parse(&text), Some(example()), "{text}");
        let op = Op::Kernel { body: example() };
        let json = serde_json::to_string(&op).unwrap();
        assert_eq!(serde_json::from_str::<Op>(&json).unwrap(), op, "{json}");
        for damage in ["-> 3, 9", "-> 0", "rms_norm(0, 7)", "all_reduce(0)"] {
            let wrong = match damage.starts_with("->") {
                true => text.replace("-> 3, 2", damage),
                false => text.replace("rms_norm(0, 1) {eps = 1e-6}", damage),
            };
            assert_ne!(wrong, text);
            assert_eq!(Body::parse(&wrong), None, "{wrong}");
        }
    }
}
