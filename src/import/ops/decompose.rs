//! Operators that a few of sinter's own express: they are taken apart, so that rules see what they do.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, Val};
use super::super::proto::NodeProto;
use super::axis;
use crate::ir::{DType, Dim, NodeId, Op, Shape};

pub(super) const OPS: &[&str] = &["Softplus", "Pad", "Trilu", "OneHot", "Einsum", "ScatterND"];

pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    let x = cx.operand(n, 0)?;
    let y = match n.op_type() {
        "Softplus" => softplus(cx, x)?,
        "Pad" => pad(cx, n, x)?,
        "Trilu" => trilu(cx, n, x)?,
        "OneHot" => one_hot(cx, n)?,
        "Einsum" => einsum(cx, n)?,
        "ScatterND" => scatter(cx, n, x)?,
        other => return Err(OpError::from(format!("`{other}` has no importer"))),
    };
    Ok(vec![Val::Node(y)])
}

/// max(x, 0) + log(1 + exp(-|x|)), which does not overflow.
fn softplus(cx: &mut Context<'_>, x: NodeId) -> Result<NodeId> {
    let abs = cx.add(Op::Abs {}, &[x])?;
    let negative = cx.add(Op::Neg {}, &[abs])?;
    let exp = cx.add(Op::Exp {}, &[negative])?;
    let one = cx.scalar(cx.ty(x).dtype, 1.0);
    let sum = cx.add(Op::Add {}, &[exp, one])?;
    let log = cx.add(Op::Log {}, &[sum])?;
    let relu = cx.add(Op::Relu {}, &[x])?;
    cx.add(Op::Add {}, &[relu, log])
}

/// Constant padding: constants are joined on; what a negative pad takes away is cut off.
fn pad(cx: &mut Context<'_>, n: &NodeProto, mut x: NodeId) -> Result<NodeId> {
    match attrs::text(n, "mode").as_deref() {
        None | Some("constant") => {}
        Some(mode) => return Err(OpError::from(format!("padding by `{mode}` is not supported"))),
    }
    let rank = cx.shape(x).len();
    let pads: Shape = match attrs::ints(n, "pads") {
        Some(v) => v.into_iter().map(Dim::from).collect(),
        None => cx.symbolic(n, 1)?.ok_or("the pads are missing")?.values,
    };
    let axes = match cx.const_ints(n, 3)? {
        Some(list) => list.into_iter().map(|a| axis(a, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(OpError::from(format!("{} pads for {} axes", pads.len(), axes.len())));
    }
    let dtype = cx.ty(x).dtype;
    let value = match (cx.optional(n, 2)?, attrs::float(n, "value")) {
        (Some(v), _) => cx.reshape(v, vec![])?,
        (None, v) => cx.scalar(dtype, f64::from(v.unwrap_or(0.0))),
    };
    for (i, &a) in axes.iter().enumerate() {
        let (before, after) = (&pads[i], &pads[i + axes.len()]);
        let zero = Dim::from(0);
        // What is taken away and what is added, whatever sign the numbers have.
        let less = |d: &Dim| (&zero - d).larger(&zero);
        let (start, cut) = (less(before), less(after));
        let (before, after) = (&before.larger(&zero), &after.larger(&zero));
        if start != zero || cut != zero {
            let extent = cx.shape(x)[a].clone();
            let end = (&extent - &cut).larger(&zero);
            x = cx.add(Op::Slice { axis: a as i64, start: start.smaller(&end), end, step: 1 }, &[x])?;
        }
        let fill = |cx: &mut Context<'_>, count: &Dim| {
            let mut shape = cx.shape(x);
            shape[a] = count.clone();
            cx.add(Op::Expand { shape }, &[value])
        };
        let mut parts = vec![];
        if *before != zero {
            parts.push(fill(cx, before)?);
        }
        parts.push(x);
        if *after != zero {
            parts.push(fill(cx, after)?);
        }
        if parts.len() > 1 {
            x = cx.add(Op::Concat { axis: a as i64 }, &parts)?;
        }
    }
    Ok(x)
}

/// The upper or lower triangle; the rest is zero.
fn trilu(cx: &mut Context<'_>, n: &NodeProto, x: NodeId) -> Result<NodeId> {
    let shape = cx.shape(x);
    let [.., rows, columns] = &shape[..] else { return Err(OpError::from("it takes matrices")) };
    let (rows, columns) = (rows.clone(), columns.clone());
    let k = match cx.const_ints(n, 1)? {
        None => 0,
        Some(v) => *v.first().ok_or("`k` is empty")?,
    };
    let zero = Dim::from(0);
    // Column c of row r is kept where c >= r + k (upper), or c <= r + k (lower).
    let r = cx.add(Op::Range { start: Dim::from(k), limit: &rows + &Dim::from(k), step: 1 }, &[])?;
    let r = cx.reshape(r, vec![rows, Dim::from(1)])?;
    let c = cx.add(Op::Range { start: zero, limit: columns.clone(), step: 1 }, &[])?;
    let c = cx.reshape(c, vec![Dim::from(1), columns])?;
    let op = if attrs::flag(n, "upper", true) { Op::GreaterEqual {} } else { Op::LessEqual {} };
    let keep = cx.add(op, &[c, r])?;
    if cx.ty(x).dtype == DType::Bool {
        return cx.add(Op::And {}, &[x, keep]);
    }
    let zero = cx.scalar(cx.ty(x).dtype, 0.0);
    cx.add(Op::Where {}, &[keep, x, zero])
}

/// (indices, depth, [off, on]): on where the position along the new axis is the index.
fn one_hot(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let indices = cx.operand(n, 0)?;
    if !matches!(cx.ty(indices).dtype, DType::I64 | DType::I32) {
        return Err(OpError::from("indices other than integers of 32 or 64 bits are not supported"));
    }
    let depth = match &cx.symbolic(n, 1)?.ok_or("the depth is missing")?.values[..] {
        [d] => d.clone(),
        _ => return Err(OpError::from("the depth has several elements")),
    };
    let values = cx.operand(n, 2)?;
    if cx.shape(values) != [Dim::from(2)] {
        return Err(OpError::from(format!("the values are {}, not two", cx.ty(values))));
    }
    let mut shape = cx.shape(indices);
    let a = axis(attrs::int(n, "axis").unwrap_or(-1), shape.len() + 1)?;
    shape.insert(a, Dim::from(1));
    let mut at = cx.reshape(indices, shape.clone())?;
    if cx.ty(at).dtype != DType::I64 {
        at = cx.add(Op::Cast { to: DType::I64 }, &[at])?;
    }
    let range = cx.add(Op::Range { start: Dim::from(0), limit: depth.clone(), step: 1 }, &[])?;
    let mut along = vec![Dim::from(1); shape.len()];
    along[a] = depth.clone();
    let range = cx.reshape(range, along)?;
    // Negative indices count from the end.
    let same = cx.add(Op::Equal {}, &[at, range])?;
    let total = cx.materialise_dim(&depth)?;
    let wrapped = cx.add(Op::Add {}, &[at, total])?;
    let same_wrapped = cx.add(Op::Equal {}, &[wrapped, range])?;
    let hit = cx.add(Op::Or {}, &[same, same_wrapped])?;
    let pick = |cx: &mut Context<'_>, i: i64| -> Result<NodeId> {
        let part = cx.add(Op::Slice { axis: 0, start: Dim::from(i), end: Dim::from(i + 1), step: 1 }, &[values])?;
        cx.reshape(part, vec![])
    };
    let (off, on) = (pick(cx, 0)?, pick(cx, 1)?);
    cx.add(Op::Where {}, &[hit, on, off])
}

/// Products of two operands by letters: batch, left, right and summed axes become a matrix product.
fn einsum(cx: &mut Context<'_>, n: &NodeProto) -> Result<NodeId> {
    let unsupported = || OpError::from("only products of one or two operands by single letters are supported");
    let equation: String =
        attrs::text(n, "equation").ok_or("`equation` is missing")?.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, result) = match equation.split_once("->") {
        Some((l, r)) => (l, r.to_owned()),
        None => {
            let once = |c: &char| equation.matches(*c).count() == 1 && c.is_ascii_alphabetic();
            let mut letters: Vec<char> = equation.chars().filter(once).collect();
            letters.sort_unstable();
            (&equation[..], letters.into_iter().collect())
        }
    };
    let terms: Vec<Vec<char>> = left.split(',').map(|t| t.chars().collect()).collect();
    let result: Vec<char> = result.chars().collect();
    let distinct = |t: &[char]| t.iter().enumerate().all(|(i, c)| c.is_ascii_alphabetic() && !t[..i].contains(c));
    if terms.len() != n.input.len() || terms.len() > 2 || !terms.iter().all(|t| distinct(t)) || !distinct(&result) {
        return Err(unsupported());
    }
    let mut operands: Vec<(NodeId, Vec<char>)> = vec![];
    for (i, term) in terms.iter().enumerate() {
        let x = cx.operand(n, i)?;
        if cx.shape(x).len() != term.len() {
            return Err(OpError::from(format!(
                "operand {i} is {}, the equation gives it {} axes",
                cx.ty(x),
                term.len()
            )));
        }
        // Axes that occur nowhere else are summed first.
        let elsewhere = |c: &char| result.contains(c) || terms.iter().enumerate().any(|(j, t)| j != i && t.contains(c));
        let axes: Vec<i64> = (0..term.len()).filter(|&a| !elsewhere(&term[a])).map(|a| a as i64).collect();
        let kept = term.iter().copied().filter(|c| elsewhere(c)).collect();
        let x = if axes.is_empty() { x } else { cx.add(Op::ReduceSum { axes, keepdims: false }, &[x])? };
        operands.push((x, kept));
    }
    let arrange = |cx: &mut Context<'_>, x: NodeId, have: &[char], want: &[char]| -> Result<NodeId> {
        let perm: Option<Vec<i64>> = want.iter().map(|c| have.iter().position(|h| h == c).map(|p| p as i64)).collect();
        cx.transpose(x, perm.ok_or_else(unsupported)?)
    };
    let [(a, la), (b, lb)] = &operands[..] else {
        let (x, letters) = operands.first().ok_or_else(unsupported)?;
        return arrange(cx, *x, letters, &result);
    };
    let pick = |from: &[char], test: &dyn Fn(&char) -> bool| -> Vec<char> {
        from.iter().copied().filter(|c| test(c)).collect()
    };
    let batch = pick(&result, &|c| la.contains(c) && lb.contains(c));
    let sum = pick(la, &|c| lb.contains(c) && !result.contains(c));
    let rows = pick(&result, &|c| la.contains(c) && !lb.contains(c));
    let columns = pick(&result, &|c| lb.contains(c) && !la.contains(c));
    if sum.is_empty() {
        // An element-wise product, each operand with extent 1 where it lacks an axis.
        let mut sides = vec![];
        for (x, letters) in [(*a, la), (*b, lb)] {
            let own = pick(&result, &|c| letters.contains(c));
            let x = arrange(cx, x, letters, &own)?;
            let mut extents = cx.shape(x).into_iter();
            let shape = result.iter().map(|c| if own.contains(c) { extents.next() } else { Some(Dim::from(1)) });
            let shape: Option<Shape> = shape.collect();
            sides.push(cx.reshape(x, shape.ok_or_else(unsupported)?)?);
        }
        return cx.add(Op::Mul {}, &sides);
    }
    let extent = |cx: &Context<'_>, c: &char| -> Dim {
        let of = |x: NodeId, l: &[char]| l.iter().position(|k| k == c).map(|i| cx.shape(x)[i].clone());
        of(*a, la).or_else(|| of(*b, lb)).unwrap_or_else(|| Dim::from(1))
    };
    let extents = |cx: &Context<'_>, l: &[char]| -> Shape { l.iter().map(|c| extent(cx, c)).collect() };
    let product = |s: &[Dim]| s.iter().fold(Dim::from(1), |p, d| &p * d);
    let side = |cx: &mut Context<'_>, x: NodeId, have: &[char], first: &[char], second: &[char]| -> Result<NodeId> {
        let x = arrange(cx, x, have, &[&batch[..], first, second].concat())?;
        let mut shape = extents(cx, &batch);
        shape.push(product(&extents(cx, first)));
        shape.push(product(&extents(cx, second)));
        cx.reshape(x, shape)
    };
    let p = side(cx, *a, la, &rows, &sum)?;
    let q = side(cx, *b, lb, &sum, &columns)?;
    let y = cx.add(Op::Matmul { trans_b: false }, &[p, q])?;
    let order = [&batch[..], &rows, &columns].concat();
    let shape = extents(cx, &order);
    let y = cx.reshape(y, shape)?;
    arrange(cx, y, &order, &result)
}

/// Rows that follow one another are replaced: what lies before, the updates, what lies behind.
fn scatter(cx: &mut Context<'_>, n: &NodeProto, x: NodeId) -> Result<NodeId> {
    if attrs::text(n, "reduction").is_some_and(|r| r != "none") {
        return Err(OpError::from("a reduction is not supported"));
    }
    let (indices, updates) = (cx.operand(n, 1)?, cx.operand(n, 2)?);
    let shape = cx.shape(x);
    let known = progression(cx, indices).filter(|_| cx.shape(indices).len() == 2);
    let (Some((start, end)), Some(extent)) = (known, shape.first().cloned()) else {
        return Err(OpError::from("positions that do not follow one another are not supported"));
    };
    let mut expected = shape.clone();
    expected[0] = &end - &start;
    if cx.shape(updates) != expected {
        return Err(OpError::from(format!("the updates are {}, not {expected:?}", cx.ty(updates))));
    }
    let mut parts = vec![];
    let zero = Dim::from(0);
    // What lies before the updates, the updates, what lies behind.
    for kept in [Some((&zero, &start)), None, Some((&end, &extent))] {
        match kept {
            None => parts.push(updates),
            Some((from, to)) if from != to => {
                parts.push(cx.add(Op::Slice { axis: 0, start: from.clone(), end: to.clone(), step: 1 }, &[x])?);
            }
            Some(_) => {}
        }
    }
    if let [one] = parts[..] { Ok(one) } else { cx.add(Op::Concat { axis: 0 }, &parts) }
}

/// First value and end of a tensor of integers each one more than the last, in row-major order.
fn progression(cx: &Context<'_>, id: NodeId) -> Option<(Dim, Dim)> {
    let node = cx.graph.node(id);
    match &node.op {
        Op::Reshape { .. } | Op::Cast { .. } => progression(cx, node.inputs[0]),
        Op::Range { start, limit, step: 1 } => Some((start.clone(), limit.clone())),
        Op::Slice { axis: 0, start, end, step: 1 } => {
            let (first, _) = progression(cx, node.inputs[0]).filter(|_| cx.ty(node.inputs[0]).rank() == 1)?;
            Some((&first + start, &first + end))
        }
        Op::Const { value } => {
            let v = value.to_i64()?;
            let first = *v.first()?;
            let rises = v.iter().enumerate().all(|(i, &x)| x == first.wrapping_add(i as i64));
            let end = first.checked_add(v.len() as i64)?;
            (rises && first >= 0).then(|| (Dim::from(first), Dim::from(end)))
        }
        _ => None,
    }
}
