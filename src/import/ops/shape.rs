//! Integer arithmetic on shapes, evaluated at import.

use super::super::attrs;
use super::super::context::{Context, MAX_SYMBOLIC, OpError, Result, SymTensor, Val};
use super::super::proto::NodeProto;
use super::axis;
use crate::ir::{DType, Dim, Op, slice_bounds};
use sinter_runtime::plan::Relation;

/// Operators that exist for the sake of shapes.
pub(super) const OPS: &[&str] = &["Shape", "Size", "Constant", "ConstantOfShape", "Range"];

/// Expressions of more levels than this, or of more factors and terms than [`MAX_SIZE`], are computed during execution.
const MAX_LEVELS: usize = 24;
const MAX_SIZE: usize = 512;

/// The result, where it follows from shapes and constants alone.
pub(super) fn evaluate(cx: &mut Context<'_>, n: &NodeProto) -> Result<Option<SymTensor>> {
    let found = evaluated(cx, n)?;
    let is_small = |d: &Dim| {
        let (levels, size) = d.size();
        levels <= MAX_LEVELS && size <= MAX_SIZE
    };
    Ok(found.filter(|s| s.values.len() <= MAX_SYMBOLIC && s.values.iter().all(is_small)))
}

fn evaluated(cx: &mut Context<'_>, n: &NodeProto) -> Result<Option<SymTensor>> {
    let op = n.op_type();
    match op {
        "Shape" => {
            let x = cx.input(n, 0)?.ok_or("operand 0 is missing")?;
            let shape = match x {
                Val::Node(id) => cx.shape(id),
                Val::Sym(s) if s.scalar => vec![],
                Val::Sym(s) => vec![Dim::from(s.values.len() as i64)],
            };
            let rank = shape.len() as i64;
            let clamp = |v: i64| if v < 0 { v.saturating_add(rank) } else { v }.clamp(0, rank) as usize;
            let start = clamp(attrs::int(n, "start").unwrap_or(0));
            let end = clamp(attrs::int(n, "end").unwrap_or(rank)).max(start);
            return Ok(Some(SymTensor { dtype: DType::I64, values: shape[start..end].to_vec(), scalar: false }));
        }
        "Size" => {
            let x = cx.operand(n, 0)?;
            return Ok(Some(SymTensor { dtype: DType::I64, values: vec![cx.ty(x).elements()], scalar: true }));
        }
        "CastLike" => {
            let dtype = match cx.input(n, 1)? {
                Some(Val::Node(id)) => cx.ty(id).dtype,
                Some(Val::Sym(s)) => s.dtype,
                None => return Ok(None),
            };
            return Ok(match cx.input(n, 0)? {
                Some(Val::Sym(s)) => cast(cx, s, dtype),
                Some(Val::Node(id)) => whole_number(cx, id).and_then(|s| cast(cx, s, dtype)),
                None => None,
            });
        }
        "Constant" | "Range" => return Ok(None),
        _ => {}
    }
    let mut x = Vec::with_capacity(n.input.len());
    for i in 0..n.input.len() {
        match cx.input(n, i)? {
            Some(Val::Sym(s)) => x.push(Some(s)),
            Some(Val::Node(_)) => return Ok(None),
            None => x.push(None),
        }
    }
    let Some(Some(first)) = x.first().cloned() else { return Ok(None) };
    let get = |i: usize| x.get(i).and_then(Option::as_ref);
    let with = |values: Vec<Dim>, scalar: bool| Ok(Some(SymTensor { dtype: first.dtype, values, scalar }));
    match op {
        "Identity" => Ok(Some(first)),
        "Cast" => {
            let to = super::math::cast_target(n)?;
            Ok(cast(cx, first, to))
        }
        "Squeeze" if first.values.len() == 1 => with(first.values, true),
        "Unsqueeze" if first.scalar => {
            let axes = match get(1) {
                Some(a) => a.values.len(),
                None => attrs::ints(n, "axes").map_or(0, |a| a.len()),
            };
            if axes == 1 { with(first.values, false) } else { Ok(None) }
        }
        "Reshape" => match get(1).and_then(SymTensor::ints).as_deref() {
            Some([]) if first.values.len() == 1 => with(first.values, true),
            Some(&[m]) if m == -1 || m == first.values.len() as i64 => with(first.values, false),
            _ => Ok(None),
        },
        "Flatten" => Ok(None),
        "Concat" => {
            let parts: Vec<&SymTensor> = x.iter().flatten().collect();
            if parts.iter().any(|p| p.scalar) {
                return Err(OpError::from("`Concat` of scalars"));
            }
            if parts.iter().map(|p| p.values.len()).sum::<usize>() > MAX_SYMBOLIC {
                return Ok(None);
            }
            with(parts.into_iter().flat_map(|p| p.values.iter().cloned()).collect(), false)
        }
        "Gather" => {
            let Some(idx) = get(1) else { return Ok(None) };
            let Some(ints) = idx.ints() else { return Ok(None) };
            if first.scalar {
                return Err(OpError::from("`Gather` from a scalar"));
            }
            let values = ints
                .iter()
                .map(|&i| Ok(first.values[axis(i, first.values.len())?].clone()))
                .collect::<Result<Vec<_>>>()?;
            with(values, idx.scalar)
        }
        "Slice" => {
            let bound = |i: usize, name: &str| match get(i) {
                Some(s) => s.ints().and_then(|v| v.first().copied()),
                None => attrs::ints(n, name).and_then(|v| v.first().copied()),
            };
            let step = if get(4).is_some() { bound(4, "steps") } else { Some(1) };
            let (Some(start), Some(end), Some(step)) = (bound(1, "starts"), bound(2, "ends"), step) else {
                return Ok(None);
            };
            if step == 0 || first.scalar {
                return Ok(None);
            }
            let len = first.values.len() as i64;
            let b = slice_bounds(&Dim::from(start), &Dim::from(end), step, &Dim::from(len));
            let (Some(start), Some(count)) = (b.start.as_const(), b.count.as_const()) else { return Ok(None) };
            let at =
                |i: i64| first.values.get(usize::try_from(start.wrapping_add(i.wrapping_mul(step))).ok()?).cloned();
            match (0..count).map(at).collect::<Option<Vec<_>>>() {
                Some(values) => with(values, false),
                None => Ok(None),
            }
        }
        "Add" | "Sub" | "Mul" | "Div" | "Mod" if is_shape(first.dtype) => {
            let second = get(1).filter(|s| x.len() == 2 && s.dtype == first.dtype);
            let Some(second) = second else { return Ok(None) };
            elementwise(cx, op, &first, second, attrs::flag(n, "fmod", false))
        }
        "Sum" | "Max" | "Min" if is_shape(first.dtype) => {
            let op = if op == "Sum" { "Add" } else { op };
            let mut all = first;
            for other in x.iter().skip(1) {
                let Some(other) = other.as_ref().filter(|s| s.dtype == all.dtype) else { return Ok(None) };
                let Some(both) = elementwise(cx, op, &all, other, false)? else { return Ok(None) };
                all = both;
            }
            Ok(Some(all))
        }
        "Neg" | "Abs" | "Sign" if is_shape(first.dtype) => {
            let zero = Dim::from(0);
            let of = |d: &Dim| match op {
                "Neg" => &zero - d,
                "Abs" => d.magnitude(),
                _ => &zero.less(d) - &d.less(&zero),
            };
            let values = first.values.iter().map(|d| narrow(cx, first.dtype, of(d))).collect();
            with(values, first.scalar)
        }
        "Clip" if is_shape(first.dtype) => {
            let mut values = first.values.clone();
            for (i, clamp) in [(1, Dim::larger as fn(&Dim, &Dim) -> Dim), (2, Dim::smaller)] {
                match x.get(i) {
                    None | Some(None) => {}
                    Some(Some(b)) if b.values.len() == 1 && b.dtype == first.dtype => {
                        values.iter_mut().for_each(|v| *v = clamp(v, &b.values[0]));
                    }
                    Some(Some(_)) => return Ok(None),
                }
            }
            with(values, first.scalar)
        }
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" if is_shape(first.dtype) && !first.scalar => {
            let axes = match get(1) {
                Some(a) => a.ints(),
                None => attrs::ints(n, "axes"),
            };
            let whole = match axes.as_deref() {
                None => get(1).is_none() && !attrs::flag(n, "noop_with_empty_axes", false),
                Some([]) => !attrs::flag(n, "noop_with_empty_axes", false),
                Some(a) => a == [0] || a == [-1],
            };
            let op = match op {
                "ReduceProd" => "Mul",
                "ReduceSum" => "Add",
                "ReduceMax" => "Max",
                _ => "Min",
            };
            let one = |d: &Dim| SymTensor { dtype: first.dtype, values: vec![d.clone()], scalar: true };
            let mut values = first.values.iter();
            let Some(start) = values.next().filter(|_| whole) else { return Ok(None) };
            let mut all = one(start);
            for d in values {
                let Some(both) = elementwise(cx, op, &all, &one(d), false)? else { return Ok(None) };
                all = both;
            }
            Ok(Some(SymTensor { scalar: !attrs::flag(n, "keepdims", true), ..all }))
        }
        "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" | "And" | "Or" | "Xor" => {
            let Some(second) = get(1) else { return Ok(None) };
            let Some(pairs) = zip(&first, second) else { return Ok(None) };
            let one = Dim::from(1);
            // 1 or 0, as an expression where the symbols leave it open.
            let value = |(a, b): &(Dim, Dim)| match op {
                "Equal" => a.equal(b),
                "Less" => a.less(b),
                "Greater" => b.less(a),
                "LessOrEqual" => &one - &b.less(a),
                "GreaterOrEqual" => &one - &a.less(b),
                "And" => a * b,
                "Or" => &(a + b) - &(a * b),
                _ => &(a + b) - &(&Dim::from(2) * &(a * b)),
            };
            let values = pairs.iter().map(value).collect();
            let scalar = first.scalar && second.scalar;
            Ok(Some(SymTensor { dtype: DType::Bool, values, scalar }))
        }
        "Not" if first.dtype == DType::Bool => {
            with(first.values.iter().map(|d| &Dim::from(1) - d).collect(), first.scalar)
        }
        "Where" => {
            let (Some(a), Some(b)) = (get(1), get(2)) else { return Ok(None) };
            let (Some(yes), Some(no)) = (zip(&first, a), zip(&first, b)) else { return Ok(None) };
            let len = yes.len().max(no.len());
            if [yes.len(), no.len()].iter().any(|&l| l != 1 && l != len) {
                return Ok(None);
            }
            let at = |v: &[(Dim, Dim)], i: usize| if v.len() == 1 { v[0].clone() } else { v[i].clone() };
            let pick = |i: usize| {
                let ((c, p), (_, q)) = (at(&yes, i), at(&no, i));
                match c.as_const() {
                    Some(0) => q,
                    Some(_) => p,
                    None => &q + &(&c * &(&p - &q)),
                }
            };
            let scalar = first.scalar && a.scalar && b.scalar;
            Ok(Some(SymTensor { dtype: a.dtype, values: (0..len).map(pick).collect(), scalar }))
        }
        "ConstantOfShape" => {
            let (dtype, value) = fill(n)?;
            match first.ints().as_deref() {
                Some(&[len]) if !dtype.is_float() && (0..=64).contains(&len) => {
                    Ok(Some(SymTensor { dtype, values: vec![Dim::from(value as i64); len as usize], scalar: false }))
                }
                _ => Ok(None),
            }
        }
        "Expand" => match get(1).and_then(SymTensor::ints).as_deref() {
            Some(&[len]) if first.values.len() == 1 && (1..=64).contains(&len) => {
                with(vec![first.values[0].clone(); len as usize], false)
            }
            _ => Ok(None),
        },
        "Tile" if !first.scalar => match get(1).and_then(SymTensor::ints).as_deref() {
            Some(&[times]) if (0..=64).contains(&times) && first.values.len() * times as usize <= MAX_SYMBOLIC => {
                with((0..times).flat_map(|_| first.values.iter().cloned()).collect(), false)
            }
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// The parts of a `Split` of known integers.
pub(super) fn split(cx: &mut Context<'_>, n: &NodeProto) -> Result<Option<Vec<SymTensor>>> {
    let Some(Val::Sym(x)) = cx.input(n, 0)? else { return Ok(None) };
    let len = x.values.len();
    let sizes = match (attrs::ints(n, "split"), cx.input(n, 1)?) {
        (Some(s), _) => s,
        (None, Some(Val::Sym(s))) => match s.ints() {
            Some(s) => s,
            None => return Ok(None),
        },
        (None, Some(Val::Node(_))) => return Ok(None),
        (None, None) => {
            let parts = (n.output.len() as i64).max(1);
            if attrs::int(n, "num_outputs").is_some_and(|p| p != parts) {
                return Ok(None);
            }
            let each = (len as i64 + parts - 1) / parts;
            (0..parts).map(|i| (len as i64 - i * each).clamp(0, each)).collect()
        }
    };
    if x.scalar || sizes.iter().any(|s| *s < 0) || sizes.iter().map(|&s| i128::from(s)).sum::<i128>() != len as i128 {
        return Ok(None);
    }
    let mut rest = &x.values[..];
    let mut out = vec![];
    for s in sizes {
        let (part, behind) = rest.split_at(s as usize);
        out.push(SymTensor { dtype: x.dtype, values: part.to_vec(), scalar: false });
        rest = behind;
    }
    Ok(Some(out))
}

/// The value of a floating-point scalar constant that is a whole number.
fn whole_number(cx: &Context<'_>, id: crate::ir::NodeId) -> Option<SymTensor> {
    let Op::Const { value } = &cx.graph.node(id).op else { return None };
    let v = value.splat().filter(|v| value.shape.is_empty() && v.fract() == 0.0 && v.abs() < 1e15)?;
    Some(SymTensor { dtype: DType::I64, values: vec![Dim::from(v as i64)], scalar: true })
}

/// Whether shapes are computed in an integer type.
fn is_shape(dtype: DType) -> bool {
    matches!(dtype, DType::I64 | DType::I32)
}

/// Lowest and highest number of an integer type narrower than 64 bits, and the number of its values.
fn range(dtype: DType) -> Option<(i64, i64, i64)> {
    Some(match dtype {
        DType::I32 => (i32::MIN.into(), i32::MAX.into(), 1 << 32),
        DType::I8 => (i8::MIN.into(), i8::MAX.into(), 1 << 8),
        DType::U8 => (0, u8::MAX.into(), 1 << 8),
        _ => return None,
    })
}

/// A number wrapped to an integer type.
///
/// Sizes of tensors are often computed in 32 bits. That they fit is taken for granted and checked when extents are known.
fn narrow(cx: &mut Context<'_>, dtype: DType, d: Dim) -> Dim {
    let Some((low, high, count)) = range(dtype) else { return d };
    if d.is_within(low, high) {
        return d;
    }
    if dtype == DType::I32 && d.is_plausibly_within(low, high) && !cx.is_late(&d) {
        cx.assume(d.clone(), Relation::AtMost, Dim::from(high));
        cx.assume(d.clone(), Relation::AtLeast, Dim::from(low));
        return d;
    }
    let low = Dim::from(low);
    &(&d - &low).modulo(&Dim::from(count)) + &low
}

/// Integers in another type; `None` where the result is no tensor of known integers.
fn cast(cx: &mut Context<'_>, s: SymTensor, to: DType) -> Option<SymTensor> {
    match to {
        to if to.is_float() || !to.is_core() => None,
        DType::Bool => {
            let zero = Dim::from(0);
            let values = s.values.iter().map(|v| &Dim::from(1) - &v.equal(&zero)).collect();
            Some(SymTensor { dtype: DType::Bool, values, scalar: s.scalar })
        }
        dtype => {
            let values = s.values.into_iter().map(|d| narrow(cx, dtype, d)).collect();
            Some(SymTensor { dtype, values, scalar: s.scalar })
        }
    }
}

fn zip(a: &SymTensor, b: &SymTensor) -> Option<Vec<(Dim, Dim)>> {
    let len = match (a.values.len(), b.values.len()) {
        (x, y) if x == y => x,
        (1, y) => y,
        (x, 1) => x,
        _ => return None,
    };
    let at = |v: &[Dim], i: usize| if v.len() == 1 { v[0].clone() } else { v[i].clone() };
    Some((0..len).map(|i| (at(&a.values, i), at(&b.values, i))).collect())
}

/// `fmod` asks for remainders with the dividend's sign.
fn elementwise(cx: &mut Context<'_>, op: &str, a: &SymTensor, b: &SymTensor, fmod: bool) -> Result<Option<SymTensor>> {
    let Some(pairs) = zip(a, b) else { return Ok(None) };
    let zero = |d: &Dim| d.as_const() == Some(0);
    if matches!(op, "Div" | "Mod") && pairs.iter().any(|(_, y)| zero(y)) {
        return Err(OpError::from("division by zero in shape arithmetic"));
    }
    let value = |(x, y): &(Dim, Dim)| match op {
        "Add" => x + y,
        "Sub" => x - y,
        "Mul" => x * y,
        "Div" => x.quotient(y),
        "Mod" if fmod => x.remainder(y),
        "Mod" => x.modulo(y),
        "Max" => x.larger(y),
        _ => x.smaller(y),
    };
    let values = pairs.iter().map(|p| narrow(cx, a.dtype, value(p))).collect();
    Ok(Some(SymTensor { dtype: a.dtype, values, scalar: a.scalar && b.scalar }))
}

/// Element type and value of `ConstantOfShape`.
fn fill(n: &NodeProto) -> Result<(DType, f64)> {
    let Some(t) = attrs::tensor(n, "value") else { return Ok((DType::F32, 0.0)) };
    let w = super::super::weights::Store::new(std::path::Path::new(""))
        .load(t)
        .map_err(|e| OpError::from(e.to_string()))?;
    let lit = crate::ir::Literal { dtype: w.ty.dtype, shape: vec![1], data: w.bytes.to_vec() };
    match lit.to_f64()[..] {
        [v] => Ok((w.ty.dtype, v)),
        _ => Err(OpError::from("`value` must have one element")),
    }
}

/// Nodes of this family that depend on data, or produce it.
pub(super) fn import(cx: &mut Context<'_>, n: &NodeProto) -> Result<Vec<Val>> {
    match n.op_type() {
        "Constant" => constant(cx, n).map(|v| vec![v]),
        "Range" => {
            let mut bounds = Vec::new();
            for i in 0..3 {
                let s = cx.symbolic(n, i)?.filter(|s| s.values.len() == 1 && s.dtype == DType::I64);
                bounds.push(s.ok_or("`Range` is supported on int64 bounds that follow from shapes")?.values[0].clone());
            }
            let step =
                bounds[2].as_const().filter(|&s| s != 0).ok_or("the step of `Range` must be a nonzero constant")?;
            let op = Op::Range { start: bounds[0].clone(), limit: bounds[1].clone(), step };
            Ok(vec![Val::Node(cx.add(op, &[])?)])
        }
        "ConstantOfShape" => {
            let shape = cx.symbolic(n, 0)?.ok_or("operand 0 is missing")?.values;
            let (dtype, value) = fill(n)?;
            let scalar = cx.scalar(dtype, value);
            let id = if shape.is_empty() { scalar } else { cx.add(Op::Expand { shape }, &[scalar])? };
            Ok(vec![Val::Node(id)])
        }
        op => Err(OpError::from(format!("`{op}` is not supported on these operands"))),
    }
}

fn constant(cx: &mut Context<'_>, n: &NodeProto) -> Result<Val> {
    let name = n.output.first().map_or("", String::as_str);
    if let Some(t) = attrs::tensor(n, "value") {
        return cx.constant(name, t);
    }
    let ints = |v: &[i64], scalar| {
        Ok(Val::Sym(SymTensor { dtype: DType::I64, values: v.iter().map(|&v| Dim::from(v)).collect(), scalar }))
    };
    if let Some(v) = attrs::int(n, "value_int") {
        return ints(&[v], true);
    }
    if let Some(v) = attrs::ints(n, "value_ints") {
        return ints(&v, false);
    }
    if let Some(v) = attrs::float(n, "value_float") {
        return Ok(Val::Node(cx.scalar(DType::F32, f64::from(v))));
    }
    if let Some(v) = attrs::floats(n, "value_floats") {
        let mut t = super::super::proto::TensorProto { float_data: v, ..Default::default() };
        t.dims = vec![t.float_data.len() as i64];
        t.data_type = Some(1);
        return cx.constant(name, &t);
    }
    let value = super::super::standard::constant_value(n)?;
    if value.dtype == DType::Opaque {
        return super::super::standard::strings(cx, name, value);
    }
    let shape: Vec<Dim> = value.shape.iter().map(|&d| Dim::from(d as i64)).collect();
    let ty = crate::ir::TensorType { dtype: value.dtype, shape };
    Ok(cx.define_constant(name, super::super::weights::Weight::new(ty, value.data.into())))
}
