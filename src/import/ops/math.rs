//! Element-wise operators, reductions, soft-max and matrix products.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, Val};
use super::super::proto::NodeProto;
use super::super::weights;
use super::axis;
use crate::ir::{DType, NodeId, Op, Safe};

/// Operators of one operand, element by element.
pub(super) const UNARY: &[&str] = &[
    "Neg",
    "Abs",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Sigmoid",
    "Tanh",
    "Erf",
    "Cos",
    "Sin",
    "Relu",
    "Floor",
    "Ceil",
    "Not",
    "IsNaN",
];

/// Operators of two operands, element by element.
pub(super) const BINARY: &[&str] = &[
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "And",
    "Or",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
];

/// All others of this family.
pub(super) const OTHERS: &[&str] = &[
    "Cast",
    "CastLike",
    "Clip",
    "Gelu",
    "Where",
    "Sum",
    "Softmax",
    "MatMul",
    "Gemm",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceSumSquare",
    "ReduceL2",
    "Identity",
    "Dropout",
];

pub(super) fn supported(op: &str) -> bool {
    [UNARY, BINARY, OTHERS].iter().any(|l| l.contains(&op))
}

fn unary(op: &str) -> Option<Op> {
    Some(match op {
        "Neg" => Op::Neg {},
        "Abs" => Op::Abs {},
        "Sqrt" => Op::Sqrt {},
        "Reciprocal" => Op::Reciprocal {},
        "Exp" => Op::Exp {},
        "Log" => Op::Log {},
        "Sigmoid" => Op::Sigmoid {},
        "Tanh" => Op::Tanh {},
        "Erf" => Op::Erf {},
        "Cos" => Op::Cos {},
        "Sin" => Op::Sin {},
        "Relu" => Op::Relu {},
        "Floor" => Op::Floor {},
        "Ceil" => Op::Ceil {},
        "Not" => Op::Not {},
        "IsNaN" => Op::IsNan {},
        _ => return None,
    })
}

fn binary(op: &str) -> Option<Op> {
    Some(match op {
        "Add" => Op::Add {},
        "Sub" => Op::Sub {},
        "Mul" => Op::Mul {},
        "Div" => Op::Div {},
        "Pow" => Op::Pow {},
        "Max" => Op::Max {},
        "Min" => Op::Min {},
        "And" => Op::And {},
        "Or" => Op::Or {},
        "Equal" => Op::Equal {},
        "Less" => Op::Less {},
        "LessOrEqual" => Op::LessEqual {},
        "Greater" => Op::Greater {},
        "GreaterOrEqual" => Op::GreaterEqual {},
        _ => return None,
    })
}

/// The element type that a `Cast` converts to.
pub(super) fn cast_target(n: &NodeProto) -> Result<DType> {
    let code = attrs::required_int(n, "to")?;
    let code = i32::try_from(code).unwrap_or(-1);
    weights::dtype(code)
        .ok_or_else(|| OpError::from(format!("element type {} is not supported", weights::dtype_name(code))))
}

pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    compute(cx, n).map(|id| vec![Val::Node(id)])
}

fn compute(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let op = n.op_type();
    if let Some(op) = unary(op) {
        let x = cx.operand(n, 0)?;
        return cx.add(op, &[x]);
    }
    if let Some(op) = binary(op) {
        // `Max` and `Min` take any number of operands.
        let mut x = cx.operand(n, 0)?;
        if n.input.len() == 1 {
            return Ok(x);
        }
        for i in 1..n.input.len() {
            let y = cx.operand(n, i)?;
            x = cx.add(op.clone(), &[x, y])?;
        }
        return Ok(x);
    }
    let x = cx.operand(n, 0)?;
    let rank = cx.ty(x).rank();
    match op {
        "Identity" => Ok(x),
        "Dropout" => match cx.input(n, 2)? {
            None => Ok(x),
            Some(Val::Sym(s)) if s.ints().is_some_and(|v| v == [0]) => Ok(x),
            Some(_) => Err(OpError::from("training mode is not supported; export the model for inference")),
        },
        "Gelu" => {
            let tanh = match attrs::text(n, "approximate").as_deref() {
                None | Some("none") => false,
                Some("tanh") => true,
                Some(other) => return Err(OpError::from(format!("approximation `{other}` is not supported"))),
            };
            cx.add(Op::Gelu { tanh }, &[x])
        }
        "Cast" | "CastLike" => {
            let to = match op {
                "Cast" => cast_target(n)?,
                _ => {
                    let like = cx.operand(n, 1)?;
                    cx.ty(like).dtype
                }
            };
            if to == DType::F8E4M3FN && !attrs::flag(n, "saturate", true) {
                return Err(OpError::from("a cast that does not saturate is a standard operator"));
            }
            if cx.ty(x).dtype == to { Ok(x) } else { cx.add(Op::Cast { to }, &[x]) }
        }
        "Clip" => {
            let mut x = x;
            let dtype = cx.ty(x).dtype;
            // Limits are attributes before opset 11, and the range of f32 where they are missing.
            let narrow = matches!(dtype, DType::F16 | DType::BF16);
            let limit = |cx: &mut Context<'_>, i: usize, name: &str, default: f32| {
                if cx.opset >= 11 {
                    return cx.optional(n, i);
                }
                let value = attrs::float(n, name).or((!narrow).then_some(default));
                Ok(value.map(|v| cx.scalar(dtype, f64::from(v))))
            };
            if let Some(low) = limit(cx, 1, "min", f32::MIN)? {
                x = cx.add(Op::Max {}, &[x, low])?;
            }
            if let Some(high) = limit(cx, 2, "max", f32::MAX)? {
                x = cx.add(Op::Min {}, &[x, high])?;
            }
            Ok(x)
        }
        "Sum" => {
            let mut x = x;
            for i in 1..n.input.len() {
                let y = cx.operand(n, i)?;
                x = cx.add(Op::Add {}, &[x, y])?;
            }
            Ok(x)
        }
        "Where" => {
            let (a, b) = (cx.operand(n, 1)?, cx.operand(n, 2)?);
            cx.add(Op::Where {}, &[x, a, b])
        }
        "Softmax" => {
            let default = if cx.opset < 13 { 1 } else { -1 };
            let a = axis(attrs::int(n, "axis").unwrap_or(default), rank)?;
            if cx.opset < 13 && a + 1 != rank {
                return Err(OpError::from("before opset 13, only the last axis is supported"));
            }
            cx.add(Op::Softmax { axis: a as i64, safe: Safe::No }, &[x])
        }
        "MatMul" => {
            let y = cx.operand(n, 1)?;
            cx.add(Op::Matmul { trans_b: false }, &[x, y])
        }
        "Gemm" => gemm(cx, n, x),
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceSumSquare" | "ReduceL2" => {
            let given = match attrs::ints(n, "axes") {
                Some(a) => Some(a),
                None => cx.const_ints(n, 1)?,
            };
            let axes = match given {
                Some(a) if !a.is_empty() => a,
                _ if attrs::flag(n, "noop_with_empty_axes", false) => {
                    return match op {
                        "ReduceSumSquare" => cx.add(Op::Mul {}, &[x, x]),
                        "ReduceL2" => cx.add(Op::Abs {}, &[x]),
                        _ => Ok(x),
                    };
                }
                _ => (0..rank as i64).collect(),
            };
            let axes: Result<Vec<i64>> = axes.iter().map(|&a| Ok(axis(a, rank)? as i64)).collect();
            let (axes, keepdims) = (axes?, attrs::flag(n, "keepdims", true));
            if matches!(op, "ReduceSumSquare" | "ReduceL2") {
                let square = cx.add(Op::Mul {}, &[x, x])?;
                let sum = cx.add(Op::ReduceSum { axes, keepdims }, &[square])?;
                return if op == "ReduceL2" { cx.add(Op::Sqrt {}, &[sum]) } else { Ok(sum) };
            }
            let op = match op {
                "ReduceMean" => Op::ReduceMean { axes, keepdims },
                "ReduceSum" => Op::ReduceSum { axes, keepdims },
                _ => Op::ReduceMax { axes, keepdims },
            };
            cx.add(op, &[x])
        }
        other => Err(OpError::from(format!("`{other}` has no importer"))),
    }
}

/// alpha * A' * B' + beta * C on matrices.
fn gemm(cx: &mut Context<'_>, n: &NodeProto, mut a: NodeId) -> Result<NodeId> {
    let b = cx.operand(n, 1)?;
    if cx.ty(a).rank() != 2 || cx.ty(b).rank() != 2 {
        return Err(OpError::from("`Gemm` takes matrices"));
    }
    if attrs::flag(n, "transA", false) {
        a = cx.transpose(a, vec![1, 0])?;
    }
    let mut y = cx.add(Op::Matmul { trans_b: attrs::flag(n, "transB", false) }, &[a, b])?;
    let dtype = cx.ty(y).dtype;
    let alpha = attrs::float(n, "alpha").unwrap_or(1.0);
    if alpha != 1.0 {
        let s = cx.scalar(dtype, f64::from(alpha));
        y = cx.add(Op::Mul {}, &[y, s])?;
    }
    let Some(mut c) = cx.optional(n, 2)? else { return Ok(y) };
    let beta = attrs::float(n, "beta").unwrap_or(1.0);
    if beta != 1.0 {
        let s = cx.scalar(dtype, f64::from(beta));
        c = cx.add(Op::Mul {}, &[c, s])?;
    }
    let sum = cx.add(Op::Add {}, &[y, c])?;
    if cx.shape(sum) != cx.shape(y) {
        return Err(OpError::from(format!("C {} does not broadcast to the product", cx.ty(c))));
    }
    Ok(sum)
}
