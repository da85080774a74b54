//! Type inference: element type and symbolic shape of every operator's results.

mod quant;

use super::{Body, DType, Dim, Op, Shape, TensorType, count_steps};
use quant::{block_scales, narrow, norm, nvfp4, quantize_fp8, single, swizzled, with_last};

/// Why an operator cannot be applied to its operands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InferError {
    /// What does not fit.
    pub message: String,
    /// Two extents that would have to be equal, where the symbols leave that open.
    pub conflict: Option<(Dim, Dim)>,
    /// Whether the symbolic one of them may be 1 instead.
    pub or_one: bool,
}

impl From<String> for InferError {
    fn from(message: String) -> Self {
        InferError { message, conflict: None, or_one: false }
    }
}

type Result<T> = std::result::Result<T, InferError>;

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(InferError::from(message.into()))
}

/// The shape of two operands under NumPy broadcasting.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Shape> {
    let rank = a.len().max(b.len());
    let one = Dim::from(1);
    let at = |s: &[Dim], i: usize| if i + s.len() >= rank { s[i + s.len() - rank].clone() } else { one.clone() };
    (0..rank)
        .map(|i| {
            let (x, y) = (at(a, i), at(b, i));
            match (x.as_const(), y.as_const()) {
                _ if x == y => Ok(x),
                (Some(1), _) => Ok(y),
                (_, Some(1)) => Ok(x),
                (None, None) if akin(&x, &y) => same("broadcast extents", &x, &y).map(|()| x),
                (None, None) => Ok(x.join(&y)),
                // Execution shows whether a symbolic extent is 1 or the number.
                (p, q) => Err(InferError {
                    message: format!("shapes {a:?} and {b:?} do not broadcast: {x} against {y}"),
                    conflict: (p.is_none() || q.is_none()).then_some((x, y)),
                    or_one: true,
                }),
            }
        })
        .collect()
}

/// Whether two extents are sums of symbols that share one, such as the keys of two layers, `past_0 + seq` and `past_1 + seq`. One of them may be 1
/// and the other not, but no model means that: they are taken to be equal, which is stated and checked where inputs are bound.
fn akin(x: &Dim, y: &Dim) -> bool {
    let symbols = |d: &Dim| {
        let mut s = std::collections::BTreeSet::new();
        d.collect_symbols(&mut s);
        let sum = s.iter().fold(Dim::from(0), |sum, name| &sum + &Dim::sym(name));
        (s.len() > 1 && (d - &sum).as_const().is_some()).then_some(s)
    };
    matches!((symbols(x), symbols(y)), (Some(a), Some(b)) if !a.is_disjoint(&b))
}

/// Whether the operands of an operator broadcast for all values of the symbols. [`infer`] takes it for granted that extents fit together where
/// some values do: a model's own nodes are valid, terms that rules make of them need not be.
pub fn broadcasts_always(op: &Op, operands: &[&[TensorType]]) -> bool {
    let x: Vec<&[Dim]> = operands.iter().filter_map(|t| Some(&t.first()?.shape[..])).collect();
    let fit = |a: &[Dim], b: &[Dim]| {
        let one = Dim::from(1);
        a.iter().rev().zip(b.iter().rev()).all(|(p, q)| p == q || *p == one || *q == one)
    };
    let lead = |s: &[Dim]| s[..s.len().saturating_sub(2)].to_vec();
    match (op, &x[..]) {
        (Op::Where { .. }, [c, a, b]) => fit(c, a) && fit(c, b) && fit(a, b),
        (Op::Expand { shape }, [a]) => fit(a, shape),
        (Op::Matmul { .. }, [a, b]) => fit(&lead(a), &lead(b)),
        (_, [a, b]) if matches!(op.info().class, super::Class::Binary | super::Class::Commutative) => fit(a, b),
        _ => true,
    }
}

fn same(what: &str, x: &Dim, y: &Dim) -> Result<()> {
    if x == y {
        return Ok(());
    }
    let open = x.as_const().is_none() || y.as_const().is_none();
    let conflict = open.then(|| (x.clone(), y.clone()));
    Err(InferError { message: format!("{what} differ: {x} and {y}"), conflict, or_one: false })
}

/// Refuses an operand that does not broadcast to a shape.
fn spreads(what: &str, x: &TensorType, want: &[Dim]) -> Result<()> {
    let message = format!("{what} {x} does not broadcast to {want:?}");
    let Some(lead) = want.len().checked_sub(x.rank()) else { return fail(message) };
    match x.shape.iter().zip(&want[lead..]).find(|(a, b)| a.as_const() != Some(1) && a != b) {
        Some((a, b)) => same("extents", a, b).map_err(|e| InferError { message, ..e }),
        None => Ok(()),
    }
}

fn axis(of: i64, rank: usize) -> Result<usize> {
    usize::try_from(of).ok().filter(|&a| a < rank).map_or_else(|| fail(format!("axis {of} is outside rank {rank}")), Ok)
}

fn elements(shape: &[Dim]) -> Dim {
    shape.iter().fold(Dim::from(1), |n, d| &n * d)
}

/// The result types of `op` on operands of the given types; an operand that is a tuple has several.
///
/// Errors say which extents or element types do not fit; `conflict` is set where two symbolic extents
/// would have to be equal, so that the importer can learn that they are.
pub fn infer(op: &Op, inputs: &[&[TensorType]]) -> Result<Vec<TensorType>> {
    let info = op.info();
    if inputs.len() < info.min_inputs || inputs.len() > info.max_inputs {
        return fail(format!("`{}` takes {} operands, not {}", info.name, info.arity(), inputs.len()));
    }
    if let Op::Get { index } = op {
        let Some(t) = usize::try_from(*index).ok().and_then(|i| inputs[0].get(i)) else {
            return fail(format!("result {index} of a tuple of {}", inputs[0].len()));
        };
        return Ok(vec![t.clone()]);
    }
    if let Some(i) = inputs.iter().position(|t| t.len() != 1) {
        return fail(format!("operand {i} of `{}` has {} results; read one with `get`", info.name, inputs[i].len()));
    }
    let x: Vec<&TensorType> = inputs.iter().map(|t| &t[0]).collect();
    one_result(op, &x).map(|r| match r {
        Inferred::One(t) => vec![t],
        Inferred::Many(ts) => ts,
    })
}

enum Inferred {
    One(TensorType),
    Many(Vec<TensorType>),
}

fn one_result(op: &Op, x: &[&TensorType]) -> Result<Inferred> {
    let ty = |dtype: DType, shape: Shape| Ok(Inferred::One(TensorType { dtype, shape }));
    match op {
        Op::Input { dtype, shape, .. } | Op::Weight { dtype, shape, .. } => ty(*dtype, shape.clone()),
        Op::Const { value } => Ok(Inferred::One(value.tensor_type())),
        Op::Dims { values, scalar } => {
            if *scalar && values.len() != 1 {
                return fail("a scalar `dims` has exactly one value");
            }
            ty(DType::I64, if *scalar { vec![] } else { vec![Dim::from(values.len() as i64)] })
        }
        Op::Range { step: 0, .. } => fail("`range` with step 0"),
        Op::Range { start, limit, step } => {
            if let (Some(a), Some(b)) = (start.as_const(), limit.as_const()) {
                let (span, step) = (i128::from(b) - i128::from(a), i128::from(*step));
                let n = i64::try_from((span + step - step.signum()) / step);
                let n = n.map_err(|_| InferError::from("`range` of too many elements".to_owned()))?;
                return ty(DType::I64, vec![Dim::from(n.max(0))]);
            }
            ty(DType::I64, vec![count_steps(start, limit, *step)])
        }

        Op::Not {} => {
            if x[0].dtype != DType::Bool {
                return fail(format!("`not` takes bool, not {}", x[0].dtype));
            }
            ty(DType::Bool, x[0].shape.clone())
        }
        Op::IsNan {} => {
            computable(op, x)?;
            ty(DType::Bool, x[0].shape.clone())
        }
        Op::Cast { to } => {
            let from = x[0].dtype;
            if from != *to && (from.is_quantised() && !to.is_float() || to.is_quantised() && !from.is_float()) {
                return fail(format!("`cast` of {from} to {to}: quantised types go to and from floats"));
            }
            ty(*to, x[0].shape.clone())
        }
        Op::Neg {} | Op::Abs {} | Op::Relu {} => {
            number(op, x)?;
            ty(x[0].dtype, x[0].shape.clone())
        }
        Op::Sqrt {}
        | Op::Reciprocal {}
        | Op::Exp {}
        | Op::Log {}
        | Op::Sigmoid {}
        | Op::Tanh {}
        | Op::Erf {}
        | Op::Cos {}
        | Op::Sin {}
        | Op::Floor {}
        | Op::Ceil {}
        | Op::Silu {}
        | Op::Gelu { .. } => {
            float(op, x[0])?;
            ty(x[0].dtype, x[0].shape.clone())
        }

        Op::Add {} | Op::Sub {} | Op::Mul {} | Op::Div {} | Op::Max {} | Op::Min {} => {
            same_dtype(op, x)?;
            number(op, x)?;
            ty(x[0].dtype, broadcast(&x[0].shape, &x[1].shape)?)
        }
        Op::Pow {} => {
            computable(op, x)?;
            ty(x[0].dtype, broadcast(&x[0].shape, &x[1].shape)?)
        }
        Op::QuantizeFp8 {} => quantize_fp8(op, x).map(Inferred::One),
        Op::And {} | Op::Or {} => {
            if x[0].dtype != DType::Bool || x[1].dtype != DType::Bool {
                return fail(format!("`{}` takes bool, not {} and {}", op.name(), x[0].dtype, x[1].dtype));
            }
            ty(DType::Bool, broadcast(&x[0].shape, &x[1].shape)?)
        }
        Op::Equal {} | Op::Less {} | Op::LessEqual {} | Op::Greater {} | Op::GreaterEqual {} => {
            same_dtype(op, x)?;
            computable(op, x)?;
            ty(DType::Bool, broadcast(&x[0].shape, &x[1].shape)?)
        }
        Op::SiluMul {} | Op::GeluMul { .. } => {
            same_dtype(op, x)?;
            float(op, x[0])?;
            ty(x[0].dtype, broadcast(&x[0].shape, &x[1].shape)?)
        }
        Op::Where {} => {
            if x[0].dtype != DType::Bool {
                return fail(format!("the condition of `where` is {}, not bool", x[0].dtype));
            }
            same_dtype(op, &x[1..])?;
            ty(x[1].dtype, broadcast(&x[0].shape, &broadcast(&x[1].shape, &x[2].shape)?)?)
        }

        Op::ReduceSum { axes, keepdims } | Op::ReduceMean { axes, keepdims } | Op::ReduceMax { axes, keepdims } => {
            computable(op, x)?;
            if matches!(op, Op::ReduceMean { .. }) && !x[0].dtype.is_float() {
                // The mean of integers is truncated, which no rule about means knows.
                return fail(format!("`reduce_mean` of {}", x[0].dtype));
            }
            let rank = x[0].rank();
            let mut cut = vec![false; rank];
            for &a in axes {
                if std::mem::replace(&mut cut[axis(a, rank)?], true) {
                    return fail(format!("axis {a} is named twice"));
                }
            }
            let shape = x[0].shape.iter().zip(&cut).filter_map(|(d, &c)| match (c, keepdims) {
                (false, _) => Some(d.clone()),
                (true, true) => Some(Dim::from(1)),
                (true, false) => None,
            });
            ty(x[0].dtype, shape.collect())
        }
        Op::Softmax { axis: a, .. } => {
            float(op, x[0])?;
            axis(*a, x[0].rank())?;
            ty(x[0].dtype, x[0].shape.clone())
        }
        Op::Matmul { trans_b } => matmul(op, x, *trans_b).map(Inferred::One),
        Op::Fp8Scale { .. } => {
            narrow(op, x[0])?;
            ty(DType::F32, with_last(op, &x[0].shape, |_| Some(Dim::from(1)))?)
        }
        Op::Fp4Scale {} => {
            single(op, x[1], Some(DType::F32))?;
            narrow(op, x[0])?;
            ty(DType::F8E4M3FN, block_scales(op, &x[0].shape)?)
        }
        Op::QuantizeFp4 {} => {
            single(op, x[2], Some(DType::F32))?;
            narrow(op, x[0])?;
            let want = TensorType { dtype: DType::F8E4M3FN, shape: block_scales(op, &x[0].shape)? };
            if *x[1] != want {
                return fail(format!("`quantize_fp4` of {} takes block scales {want}, not {}", x[0], x[1]));
            }
            ty(DType::F4E2M1, x[0].shape.clone())
        }
        Op::QuantizeNvfp4 {} => {
            single(op, x[1], Some(DType::F32))?;
            narrow(op, x[0])?;
            nvfp4(op, &x[0].shape).map(Inferred::Many)
        }
        Op::UnpackFp4 {} => {
            if x[0].dtype != DType::U8 {
                return fail(format!("`unpack_fp4` takes u8, not {}", x[0].dtype));
            }
            ty(DType::F4E2M1, with_last(op, &x[0].shape, |d| Some(d * &Dim::from(2)))?)
        }
        Op::UnswizzleScales { shape } => {
            let Some((blocks, lead)) = shape.split_last() else { return fail("`unswizzle_scales` of a scalar") };
            let want = TensorType { dtype: DType::F8E4M3FN, shape: vec![swizzled(lead, blocks)] };
            if *x[0] != want {
                return fail(format!("`unswizzle_scales` to {shape:?} takes {want}, not {}", x[0]));
            }
            ty(DType::F8E4M3FN, shape.clone())
        }
        Op::Rotary { .. } => {
            float(op, x[0])?;
            let (last, lead) =
                x[0].shape.split_last().ok_or_else(|| InferError::from("`rotary` of a scalar".to_owned()))?;
            let half = last.div_exact(&Dim::from(2)).ok_or_else(|| InferError::from(format!("width {last} is odd")))?;
            for t in &x[1..] {
                same_dtype(op, &[x[0], t])?;
                let mut want = lead.to_vec();
                want.push(half.clone());
                spreads("cos or sin", t, &want)?;
            }
            ty(x[0].dtype, x[0].shape.clone())
        }
        Op::Attention { .. } => attention(op, x).map(Inferred::One),
        Op::Dequantize { bits } => dequantize(*bits, x).map(Inferred::One),
        Op::ExpertMatmul { bits } => expert_matmul(op, *bits, x).map(Inferred::One),
        Op::Largest { k } => {
            float(op, x[0])?;
            let Some((last, lead)) = x[0].shape.split_last() else { return fail("`largest` of a scalar") };
            if *k < 0 || last.as_const().is_some_and(|n| n < *k) {
                return fail(format!("the {k} largest of {}", x[0]));
            }
            let mut shape = lead.to_vec();
            shape.push(Dim::from(*k));
            let ty = |dtype| TensorType { dtype, shape: shape.clone() };
            Ok(Inferred::Many(vec![ty(x[0].dtype), ty(DType::I64)]))
        }

        Op::Reshape { shape } => {
            same("element counts", &elements(&x[0].shape), &elements(shape))?;
            ty(x[0].dtype, shape.clone())
        }
        Op::Transpose { perm } => {
            let mut seen = vec![false; x[0].rank()];
            if perm.len() != x[0].rank() {
                return fail(format!("permutation {perm:?} of rank {}", x[0].rank()));
            }
            for &p in perm {
                if std::mem::replace(&mut seen[axis(p, x[0].rank())?], true) {
                    return fail(format!("{perm:?} is no permutation"));
                }
            }
            ty(x[0].dtype, perm.iter().map(|&p| x[0].shape[p as usize].clone()).collect())
        }
        Op::Expand { shape } => ty(x[0].dtype, broadcast(&x[0].shape, shape)?),
        Op::Concat { axis: a } => {
            same_dtype(op, x)?;
            let a = axis(*a, x[0].rank())?;
            let mut shape = x[0].shape.clone();
            for t in &x[1..] {
                if t.rank() != shape.len() {
                    return fail(format!("`concat` of {} and {t}", x[0]));
                }
                for (i, d) in t.shape.iter().enumerate() {
                    if i == a {
                        shape[i] = &shape[i] + d;
                    } else {
                        same(&format!("extents of axis {i} in `concat`"), &shape[i], d)?;
                    }
                }
            }
            ty(x[0].dtype, shape)
        }
        Op::Slice { axis: a, start, end, step } => {
            let a = axis(*a, x[0].rank())?;
            let mut shape = x[0].shape.clone();
            if *step < 1 {
                return fail("`slice` needs a positive step");
            }
            shape[a] = count_steps(start, end, *step);
            if let (Some(s), Some(e), Some(n)) = (start.as_const(), end.as_const(), x[0].shape[a].as_const())
                && (s < 0 || e < s || e > n)
            {
                return fail(format!("`slice` {s}..{e} of an axis of {n}"));
            }
            ty(x[0].dtype, shape)
        }
        Op::Append { tokens } => append(op, x, tokens).map(Inferred::One),
        Op::Gather { axis: a } => {
            let a = axis(*a, x[0].rank())?;
            index_type(op, x[1])?;
            let mut shape = x[0].shape[..a].to_vec();
            shape.extend(x[1].shape.iter().cloned());
            shape.extend(x[0].shape[a + 1..].iter().cloned());
            ty(x[0].dtype, shape)
        }
        Op::VocabGather { .. } => {
            index_type(op, x[1])?;
            if x[0].rank() != 2 {
                return fail(format!("`vocab_gather` of {}", x[0]));
            }
            let mut shape = x[1].shape.clone();
            shape.push(x[0].shape[1].clone());
            ty(x[0].dtype, shape)
        }
        Op::GatherNd { batch_dims } => {
            index_type(op, x[1])?;
            let b = usize::try_from(*batch_dims).unwrap_or(usize::MAX);
            let n = x[1].shape.last().and_then(Dim::as_const).and_then(|n| usize::try_from(n).ok());
            let Some(n) = n.filter(|n| b < x[1].rank() && b + n <= x[0].rank()) else {
                return fail(format!("`gather_nd` of {} by {} with {batch_dims} batch axes", x[0], x[1]));
            };
            let mut shape = x[1].shape[..x[1].rank() - 1].to_vec();
            shape.extend(x[0].shape[b + n..].iter().cloned());
            ty(x[0].dtype, shape)
        }

        Op::Shard { dim, parts, .. } => {
            let d = axis(*dim, x[0].rank())?;
            let mut shape = x[0].shape.clone();
            let Some(part) = (*parts > 0).then(|| shape[d].div_exact(&Dim::from(*parts))).flatten() else {
                return fail(format!("axis {d} of {} does not divide into {parts} parts", x[0]));
            };
            shape[d] = part;
            ty(x[0].dtype, shape)
        }
        Op::AllGather { dim, parts, .. } => {
            let d = axis(*dim, x[0].rank())?;
            let mut shape = x[0].shape.clone();
            shape[d] = &shape[d] * &Dim::from(*parts);
            ty(x[0].dtype, shape)
        }
        Op::AllReduce { .. } => {
            computable(op, x)?;
            ty(x[0].dtype, x[0].shape.clone())
        }
        Op::Boundary { .. } | Op::Output { .. } => ty(x[0].dtype, x[0].shape.clone()),
        Op::OutputSharded { dim, parts, .. } => {
            let d = axis(*dim, x[0].rank())?;
            let mut shape = x[0].shape.clone();
            shape[d] = &shape[d] * &Dim::from(*parts);
            ty(x[0].dtype, shape)
        }
        Op::Kernel { body } => kernel(body, x),
        Op::Standard { call } => Ok(match &call.results[..] {
            [t] => Inferred::One(t.clone()),
            all => Inferred::Many(all.to_vec()),
        }),
        op => match op.norm() {
            Some(n) => norm(op, &n, x),
            None => fail(format!("`{}` has no place in a graph", op.name())),
        },
    }
}

/// A body fits its operands where each of its steps has the type that is written down.
fn kernel(body: &Body, x: &[&TensorType]) -> Result<Inferred> {
    if !body.is_sound() || x.len() != body.operands {
        return fail(format!("`{}` takes {} operands, not {}", body.name, body.operands, x.len()));
    }
    let mut types: Vec<TensorType> = x.iter().map(|t| (*t).clone()).collect();
    for s in &body.steps {
        let operands: Vec<&[TensorType]> = s.inputs.iter().map(|&n| std::slice::from_ref(&types[n])).collect();
        let got = infer(&s.op, &operands)?;
        if got[..] != [s.ty.clone()] {
            return fail(format!("`{}` in kernel `{}` gives {} and not {}", s.op.name(), body.name, got[0], s.ty));
        }
        types.push(s.ty.clone());
    }
    Ok(match &body.results[..] {
        [n] => Inferred::One(types[*n].clone()),
        all => Inferred::Many(all.iter().map(|&n| types[n].clone()).collect()),
    })
}

fn float(op: &Op, t: &TensorType) -> Result<()> {
    if t.dtype.is_float() {
        Ok(())
    } else {
        fail(format!("`{}` takes floating-point numbers, not {}", op.name(), t.dtype))
    }
}

fn index_type(op: &Op, t: &TensorType) -> Result<()> {
    match t.dtype {
        DType::I64 | DType::I32 => Ok(()),
        d => fail(format!("the indices of `{}` are {d}, not i64 or i32", op.name())),
    }
}

fn same_dtype(op: &Op, x: &[&TensorType]) -> Result<()> {
    match x.iter().find(|t| t.dtype != x[0].dtype) {
        Some(t) => fail(format!("`{}` of {} and {}", op.name(), x[0].dtype, t.dtype)),
        None => Ok(()),
    }
}

/// Refuses elements that are only moved and converted.
fn computable(op: &Op, x: &[&TensorType]) -> Result<()> {
    match x.iter().find(|t| t.dtype.is_quantised()) {
        Some(t) => fail(format!("`{}` does not take {}; cast it to a float first", op.name(), t.dtype)),
        None => Ok(()),
    }
}

fn number(op: &Op, x: &[&TensorType]) -> Result<()> {
    computable(op, x)?;
    if x[0].dtype == DType::Bool { fail(format!("`{}` does not take bool", op.name())) } else { Ok(()) }
}

fn matmul(op: &Op, x: &[&TensorType], trans_b: bool) -> Result<TensorType> {
    float(op, x[0])?;
    same_dtype(op, x)?;
    let (a, b) = (&x[0].shape, &x[1].shape);
    if a.is_empty() || b.len() < 2 {
        return fail(format!("`matmul` of {} and {}", x[0], x[1]));
    }
    let (bk, bn) = if trans_b { (b.len() - 1, b.len() - 2) } else { (b.len() - 2, b.len() - 1) };
    same("inner extents of `matmul`", &a[a.len() - 1], &b[bk])?;
    let lead = if a.len() == 1 { &[][..] } else { &a[..a.len() - 2] };
    let mut shape = broadcast(lead, &b[..b.len() - 2])?;
    if a.len() > 1 {
        shape.push(a[a.len() - 2].clone());
    }
    shape.push(b[bn].clone());
    Ok(TensorType { dtype: x[0].dtype, shape })
}

fn attention(op: &Op, x: &[&TensorType]) -> Result<TensorType> {
    float(op, x[0])?;
    same_dtype(op, &x[..3])?;
    let (q, k, v) = (&x[0].shape, &x[1].shape, &x[2].shape);
    if q.len() != 4 || k.len() != 4 || v.len() != 4 {
        return fail(format!("`attention` takes [batch, heads, tokens, width], not {}, {}, {}", x[0], x[1], x[2]));
    }
    same("batches of `attention`", &q[0], &k[0])?;
    same("batches of `attention`", &q[0], &v[0])?;
    same("key and value heads", &k[1], &v[1])?;
    same("key and value tokens", &k[2], &v[2])?;
    same("query and key widths", &q[3], &k[3])?;
    if q[1].div_exact(&k[1]).is_none() {
        return fail(format!("{} query heads are no multiple of {} key heads", q[1], k[1]));
    }
    if let Some(mask) = x.get(3) {
        if mask.dtype != DType::Bool && !mask.dtype.is_float() {
            return fail(format!("the mask of `attention` is {}", mask.dtype));
        }
        let want = vec![q[0].clone(), q[1].clone(), q[2].clone(), k[2].clone()];
        spreads("the mask", mask, &want)?;
    }
    if let Some(sink) = x.get(4) {
        float(op, sink)?;
        let want = vec![q[0].clone(), q[1].clone(), q[2].clone(), Dim::from(1)];
        spreads("the sink", sink, &want)?;
    }
    let shape = vec![q[0].clone(), q[1].clone(), q[2].clone(), v[3].clone()];
    Ok(TensorType { dtype: x[0].dtype, shape })
}

fn dequantize(bits: i64, x: &[&TensorType]) -> Result<TensorType> {
    let (packed, scale) = (x[0], x[1]);
    if !matches!(bits, 1 | 2 | 4 | 8) || packed.dtype != DType::U8 || !scale.dtype.is_float() {
        return fail(format!("`dequantize` of {packed} with {bits} bits and scales {scale}"));
    }
    let (Some((bytes, lead)), Some((runs, scale_lead))) = (packed.shape.split_last(), scale.shape.split_last()) else {
        return fail(format!("`dequantize` of {packed} with scales {scale}"));
    };
    let width = bytes * &Dim::from(8 / bits);
    if lead != scale_lead || width.div_exact(runs).is_none() {
        return fail(format!("the scales {scale} do not fit {packed} of {bits} bits"));
    }
    if let Some(zero) = x.get(2)
        && (zero.shape != scale.shape || zero.dtype != DType::U8 && zero.dtype != scale.dtype)
    {
        return fail(format!("the zero points {zero} do not fit the scales {scale}"));
    }
    let mut shape = lead.to_vec();
    shape.push(width);
    Ok(TensorType { dtype: scale.dtype, shape })
}

fn append(op: &Op, x: &[&TensorType], tokens: &Dim) -> Result<TensorType> {
    let (past, new, length) = (x[0], x[1], x[2]);
    same_dtype(op, &x[..2])?;
    index_type(op, length)?;
    if past.rank() != 4 || new.rank() != 4 || length.rank() != 1 {
        return fail(format!("`append` of {past}, {new} and lengths {length}"));
    }
    for (axis, what) in [(0, "batches"), (1, "heads"), (3, "widths")] {
        same(&format!("{what} of `append`"), &past.shape[axis], &new.shape[axis])?;
    }
    same("batches of `append`", &past.shape[0], &length.shape[0])?;
    let mut shape = past.shape.clone();
    shape[2] = tokens.clone();
    Ok(TensorType { dtype: past.dtype, shape })
}

fn expert_matmul(op: &Op, bits: i64, x: &[&TensorType]) -> Result<TensorType> {
    float(op, x[0])?;
    index_type(op, x[2])?;
    let all = || format!("`expert_matmul` of {}, {} and {} with {bits} bits", x[0], x[1], x[2]);
    let ([tokens, own, k], [experts, n, _], [t, slots]) = (&x[0].shape[..], &x[1].shape[..], &x[2].shape[..]) else {
        return fail(all());
    };
    let w = match (bits, x.len()) {
        (0, 3) => x[1].clone(),
        (1.., 4 | 5) => {
            let mut packed = vec![x[1], x[3]];
            packed.extend(x.get(4));
            dequantize(bits, &packed)?
        }
        _ => return fail(all()),
    };
    same_dtype(op, &[x[0], &w])?;
    same("tokens of `expert_matmul`", tokens, t)?;
    same("inner extents of `expert_matmul`", k, &w.shape[2])?;
    if own != slots && own.as_const() != Some(1) || experts.as_const() == Some(0) {
        return fail(all());
    }
    Ok(TensorType { dtype: x[0].dtype, shape: vec![tokens.clone(), slots.clone(), n.clone()] })
}
