//! Expressions of extents that only execution shows, as nodes.

use std::sync::Arc;

use sinter_runtime::standard::{Call, Value};

use super::context::{Context, OpError, Result, SymTensor, Val};
use crate::ir::{DType, Dim, Factor, NodeId, Op, TensorType};

/// A node with the values of a tensor of known expressions.
pub(super) fn values(cx: &mut Context<'_>, s: &SymTensor) -> Result<NodeId> {
    let each = s.values.iter().map(|d| extent(cx, d)).collect::<Result<Vec<_>>>()?;
    let all = match each[..] {
        [one] => one,
        _ => cx.add(Op::Concat { axis: 0 }, &each)?,
    };
    let all = if s.scalar { cx.reshape(all, vec![])? } else { all };
    if s.dtype == DType::I64 { Ok(all) } else { cx.add(Op::Cast { to: s.dtype }, &[all]) }
}

/// A vector of one element.
fn extent(cx: &mut Context<'_>, d: &Dim) -> Result<NodeId> {
    let known = |cx: &mut Context<'_>, d: Dim| {
        cx.materialise(&Val::Sym(SymTensor { dtype: DType::I64, values: vec![d], scalar: false }), "")
    };
    if !cx.is_late(d) {
        return known(cx, d.clone());
    }
    if let Some(s) = d.as_sym() {
        let (value, axis) = cx.shown_by(s).ok_or_else(|| OpError::from(format!("nothing shows the extent `{s}`")))?;
        let at = |v: usize| Value::Int(v as i64);
        let attrs = [("start".to_owned(), at(axis)), ("end".to_owned(), at(axis + 1))].into();
        return call(cx, Call { op: "Shape".to_owned(), attrs, ..Call::default() }, &[value], DType::I64);
    }
    let mut sum: Option<NodeId> = None;
    for (c, factors) in d.products() {
        let mut product = known(cx, Dim::from(c))?;
        for f in &factors {
            let v = factor(cx, f)?;
            product = cx.add(Op::Mul {}, &[product, v])?;
        }
        sum = Some(match sum {
            Some(s) => cx.add(Op::Add {}, &[s, product])?,
            None => product,
        });
    }
    sum.ok_or_else(|| OpError::from(format!("`{d}` has no terms")))
}

fn factor(cx: &mut Context<'_>, f: &Factor) -> Result<NodeId> {
    let (a, b) = match f {
        Factor::Symbol(s) => return extent(cx, &Dim::sym(s)),
        Factor::Floor(a, b)
        | Factor::Mod(a, b)
        | Factor::Min(a, b)
        | Factor::Max(a, b)
        | Factor::Div(a, b)
        | Factor::Join(a, b) => (extent(cx, a)?, extent(cx, b)?),
    };
    let named = |op: &str| Call { op: op.to_owned(), ..Call::default() };
    match f {
        Factor::Min(..) => cx.add(Op::Min {}, &[a, b]),
        Factor::Max(..) => cx.add(Op::Max {}, &[a, b]),
        Factor::Mod(..) => call(cx, named("Mod"), &[a, b], DType::I64),
        Factor::Join(..) => {
            let one =
                cx.materialise(&Val::Sym(SymTensor { dtype: DType::I64, values: vec![1.into()], scalar: false }), "")?;
            let is_one = cx.add(Op::Equal {}, &[a, one])?;
            cx.add(Op::Where {}, &[is_one, b, a])
        }
        // Rounded down: what the remainder leaves divides.
        Factor::Floor(..) => {
            let rest = call(cx, named("Mod"), &[a, b], DType::I64)?;
            let whole = cx.add(Op::Sub {}, &[a, rest])?;
            call(cx, named("Div"), &[whole, b], DType::I64)
        }
        _ => call(cx, named("Div"), &[a, b], DType::I64),
    }
}

/// A standard operator with one result, a vector of one element.
fn call(cx: &mut Context<'_>, call: Call, x: &[NodeId], dtype: DType) -> Result<NodeId> {
    let call = Call {
        // The opset of which these operators mean what they mean here.
        opset: 18,
        present: vec![true; x.len()],
        wanted: vec![true],
        results: vec![TensorType { dtype, shape: vec![1.into()] }],
        ..call
    };
    cx.add(Op::Standard { call: Arc::new(call) }, x)
}
