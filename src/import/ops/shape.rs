//! Integer arithmetic on shapes, evaluated at import.

use super::super::attrs;
use super::super::context::{Context, OpError, Result, SymTensor, Val};
use super::super::proto::NodeProto;
use super::axis;
use crate::ir::{DType, Dim, Op};

/// Operators that exist for the sake of shapes.
pub(super) const OPS: &[&str] = &["Shape", "Size", "Constant", "ConstantOfShape", "Range"];

/// The result, where it follows from shapes and constants alone.
pub(super) fn evaluate(cx: &mut Context<'_>, n: &NodeProto) -> Result<Option<SymTensor>> {
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
            let clamp = |v: i64| if v < 0 { v + rank } else { v }.clamp(0, rank) as usize;
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
                Some(Val::Sym(s)) => cast(s, dtype),
                Some(Val::Node(id)) => whole_number(cx, id).and_then(|s| cast(s, dtype)),
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
        "Cast" => Ok(cast(first, super::math::cast_target(n)?)),
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
            let step = bound(4, "steps").unwrap_or(1);
            let (Some(start), Some(end)) = (bound(1, "starts"), bound(2, "ends")) else { return Ok(None) };
            if step <= 0 || first.scalar {
                return Ok(None);
            }
            let len = first.values.len() as i64;
            let clamp = |v: i64| if v < 0 { v.saturating_add(len) } else { v }.clamp(0, len) as usize;
            let (start, end) = (clamp(start), clamp(end));
            with(first.values[start..end.max(start)].iter().step_by(step as usize).cloned().collect(), false)
        }
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Max" | "Min" if is_shape(first.dtype) => {
            let second = get(1).filter(|s| x.len() == 2 && s.dtype == first.dtype);
            let Some(second) = second else { return Ok(None) };
            let found = elementwise(op, &first, second, attrs::flag(n, "fmod", false))?;
            // What wraps is left to the operator itself.
            let fits = |d: &Dim| d.as_const().is_none_or(|v| wrap(first.dtype, v) == v);
            Ok(found.filter(|s| s.values.iter().all(fits)))
        }
        "Neg" if is_shape(first.dtype) => with(first.values.iter().map(|d| d * &Dim::from(-1)).collect(), first.scalar),
        "Equal" => {
            let Some(second) = get(1) else { return Ok(None) };
            // Equal expressions are equal; different ones only where both are constant. An extent is never
            // negative, so it differs from every negative constant.
            let same = |a: &Dim, b: &Dim| match (a.as_const(), b.as_const()) {
                _ if a == b => Some(1),
                (Some(_), Some(_)) => Some(0),
                (Some(c), None) | (None, Some(c)) if c < 0 => Some(0),
                _ => None,
            };
            let Some(pairs) = zip(&first, second) else { return Ok(None) };
            let values: Option<Vec<Dim>> = pairs.iter().map(|(a, b)| same(a, b).map(Dim::from)).collect();
            let scalar = first.scalar && second.scalar;
            Ok(values.map(|values| SymTensor { dtype: DType::Bool, values, scalar }))
        }
        "Where" => {
            let (Some(c), Some(a), Some(b)) = (first.ints(), get(1), get(2)) else { return Ok(None) };
            let len = c.len().max(a.values.len()).max(b.values.len());
            let at = |v: &[Dim], i: usize| if v.len() == 1 { v[0].clone() } else { v[i].clone() };
            if [c.len(), a.values.len(), b.values.len()].iter().any(|&l| l != 1 && l != len) {
                return Ok(None);
            }
            let pick =
                |i: usize| if c[if c.len() == 1 { 0 } else { i }] != 0 { at(&a.values, i) } else { at(&b.values, i) };
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
        "Not" if first.dtype == DType::Bool => Ok(first
            .ints()
            .map(|v| SymTensor { values: v.iter().map(|&b| Dim::from(i64::from(b == 0))).collect(), ..first })),
        "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" | "And" | "Or" | "Xor" => {
            let Some(second) = get(1) else { return Ok(None) };
            let Some(pairs) = zip(&first, second) else { return Ok(None) };
            let holds = |a: i64, b: i64| match op {
                "Less" => a < b,
                "Greater" => a > b,
                "LessOrEqual" => a <= b,
                "GreaterOrEqual" => a >= b,
                "And" => a != 0 && b != 0,
                "Or" => a != 0 || b != 0,
                _ => (a != 0) != (b != 0),
            };
            let value = |(a, b): &(Dim, Dim)| Some(Dim::from(i64::from(holds(a.as_const()?, b.as_const()?))));
            let values: Option<Vec<Dim>> = pairs.iter().map(value).collect();
            let scalar = first.scalar && second.scalar;
            Ok(values.map(|values| SymTensor { dtype: DType::Bool, values, scalar }))
        }
        _ => Ok(None),
    }
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

/// A number wrapped to an integer type.
fn wrap(dtype: DType, v: i64) -> i64 {
    match dtype {
        DType::I32 => i64::from(v as i32),
        DType::I8 => i64::from(v as i8),
        DType::U8 => i64::from(v as u8),
        _ => v,
    }
}

/// Integers in another type; `None` where the result is no tensor of known integers.
fn cast(s: SymTensor, to: DType) -> Option<SymTensor> {
    match to {
        to if to.is_float() || !to.is_core() => None,
        // A cast to bool changes values, which only constants can show.
        DType::Bool => {
            let values = s.ints()?.iter().map(|&v| Dim::from(i64::from(v != 0))).collect();
            Some(SymTensor { dtype: DType::Bool, values, scalar: s.scalar })
        }
        dtype => {
            let values = s.values.into_iter().map(|d| d.as_const().map_or(d, |v| Dim::from(wrap(dtype, v))));
            Some(SymTensor { dtype, values: values.collect(), scalar: s.scalar })
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
fn elementwise(op: &str, a: &SymTensor, b: &SymTensor, fmod: bool) -> Result<Option<SymTensor>> {
    let Some(pairs) = zip(a, b) else { return Ok(None) };
    let zero = |d: &Dim| d.as_const() == Some(0);
    if matches!(op, "Div" | "Mod") && pairs.iter().any(|(_, y)| zero(y)) {
        return Err(OpError::from("division by zero in shape arithmetic"));
    }
    let values = pairs
        .iter()
        .map(|(x, y)| match (op, x.as_const(), y.as_const()) {
            ("Add", _, _) => x + y,
            ("Sub", _, _) => x - y,
            ("Mul", _, _) => x * y,
            // Constants may be negative: quotients are truncated.
            ("Div", Some(p), Some(q)) => Dim::from(p.wrapping_div(q)),
            ("Mod", Some(p), Some(q)) if fmod => Dim::from(p.wrapping_rem(q)),
            ("Mod", Some(p), Some(q)) => Dim::from(match p.wrapping_rem(q) {
                r if r != 0 && (r < 0) != (q < 0) => r + q,
                r => r,
            }),
            ("Div", _, _) => x.floor_div(y),
            ("Mod", _, _) => x.modulo(y),
            ("Max", _, _) => x.larger(y),
            _ => x.smaller(y),
        })
        .collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(dtype: DType, v: &[i64]) -> SymTensor {
        SymTensor { dtype, values: v.iter().map(|&v| Dim::from(v)).collect(), scalar: false }
    }

    #[test]
    fn constants_follow_integer_arithmetic() {
        let (a, b) = (ints(DType::I64, &[-7, 7, -7]), ints(DType::I64, &[2, -2, -2]));
        let of = |op: &str, fmod| elementwise(op, &a, &b, fmod).unwrap().unwrap().ints().unwrap();
        assert_eq!(of("Div", false), [-3, -3, 3]);
        assert_eq!(of("Mod", false), [1, -1, -1]);
        assert_eq!(of("Mod", true), [-1, 1, -1]);
        assert!(elementwise("Div", &a, &ints(DType::I64, &[0]), false).is_err());
    }

    #[test]
    fn casts_of_constants_wrap() {
        let x = ints(DType::I64, &[300, -1, 1 << 40]);
        let to = |d| cast(x.clone(), d).and_then(|s| s.ints());
        assert_eq!(to(DType::I8).unwrap(), [44, -1, 0]);
        assert_eq!(to(DType::U8).unwrap(), [44, 255, 0]);
        assert_eq!(to(DType::I32).unwrap(), [300, -1, 0]);
        assert_eq!(to(DType::Bool).unwrap(), [1, 1, 1]);
        assert!(to(DType::F8E5M2).is_none() && to(DType::U64).is_none());
    }
}
