//! Types of the results of element-wise operators.

use super::super::elem::{bits, dtype_of_code};
use super::super::infer::{self, Operand, Partial, required};
use super::super::{Call, StandardError};
use crate::dim::Dim;
use crate::dtype::DType;

type Result<T> = std::result::Result<T, StandardError>;

/// A tensor of an element type with the first operand's extents.
fn shaped(dtype: DType, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let ty = required(x, 0)?.ty;
    // What holds strings has no extents before it exists.
    if ty.dtype == DType::Opaque {
        return Ok(vec![if dtype == DType::Opaque { Partial::opaque() } else { Partial::unranked(dtype) }]);
    }
    if dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    Ok(vec![Partial::known(dtype, ty.shape.iter().cloned())])
}

fn refuse(c: &Call, d: DType, takes: &str) -> StandardError {
    StandardError::new(format!("`{}` takes {takes}, got {d}", c.title()))
}

/// One result like the first operand, which has floating-point elements.
pub(super) fn float(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let d = required(x, 0)?.ty.dtype;
    if d.is_float() { infer::same(c, x) } else { Err(refuse(c, d, "floating-point numbers of 16 to 64 bits")) }
}

/// One boolean for each element of a boolean tensor.
pub(super) fn truth(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    match required(x, 0)?.ty.dtype {
        DType::Bool => infer::same(c, x),
        d => Err(refuse(c, d, "booleans")),
    }
}

/// One boolean for each floating-point element.
pub(super) fn float_truth(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    match required(x, 0)?.ty.dtype {
        d if d.is_float() || d.is_minifloat() => infer::same_bool(c, x),
        d => Err(refuse(c, d, "floating-point numbers")),
    }
}

/// All operands have one type.
fn alike(c: &Call, x: &[Option<Operand<'_>>]) -> Result<()> {
    let first = required(x, 0)?.ty.dtype;
    for i in 1..x.len() {
        let d = required(x, i)?.ty.dtype;
        if d != first {
            return Err(StandardError::new(format!(
                "`{}` takes operands of one element type, got {first} and {d}",
                c.title()
            )));
        }
    }
    Ok(())
}

/// Operands of one type, broadcast together.
pub(super) fn arithmetic(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    alike(c, x)?;
    infer::elementwise(c, x)
}

/// As `arithmetic`, with booleans as result.
pub(super) fn comparison(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    alike(c, x)?;
    if required(x, 0)?.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::unranked(DType::Bool)]);
    }
    infer::comparison(c, x)
}

/// Booleans, broadcast together.
pub(super) fn logic(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    required(x, 1)?;
    for o in x.iter().flatten() {
        if o.ty.dtype != DType::Bool {
            return Err(refuse(c, o.ty.dtype, "booleans"));
        }
    }
    infer::elementwise(c, x)
}

/// The exponent may have another type than the base.
pub(super) fn power(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    required(x, 1)?;
    infer::elementwise(c, x)
}

/// The result has the first operand's shape; the second is broadcast to it.
pub(super) fn slope(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    alike(c, x)?;
    let shape = &required(x, 0)?.ty.shape;
    let all = infer::broadcast(&[shape, &required(x, 1)?.ty.shape])?;
    let larger = |(a, d): (&Option<Dim>, &Dim)| matches!((a.as_ref().and_then(Dim::as_const), d.as_const()), (Some(a), Some(d)) if a != d);
    if all.len() != shape.len() || all.iter().zip(shape).any(larger) {
        return Err(StandardError::new(format!("the slope does not broadcast to {shape:?}")));
    }
    infer::same(c, x)
}

/// The limits have the type of what they limit, and one element each.
pub(super) fn clip(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let first = required(x, 0)?.ty;
    for o in x.iter().skip(1).flatten() {
        if o.ty.dtype != first.dtype {
            return Err(StandardError::new(format!(
                "a limit of type {} for elements of type {}",
                o.ty.dtype, first.dtype
            )));
        }
        if o.ty.shape.iter().any(|d| d.as_const().is_some_and(|d| d != 1)) {
            return Err(StandardError::new(format!("a limit has the shape {:?}; it must be one number", o.ty.shape)));
        }
    }
    infer::same(c, x)
}

/// A condition and two operands of one type, broadcast together.
pub(super) fn select(_: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let (condition, a, b) = (required(x, 0)?.ty, required(x, 1)?.ty, required(x, 2)?.ty);
    if condition.dtype != DType::Bool {
        return Err(StandardError::new(format!("the condition is {}, not bool", condition.dtype)));
    }
    if a.dtype != b.dtype {
        return Err(StandardError::new(format!("the choices have the types {} and {}", a.dtype, b.dtype)));
    }
    if a.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    Ok(vec![Partial { dtype: a.dtype, shape: Some(infer::broadcast(&[&condition.shape, &a.shape, &b.shape])?) }])
}

/// The type that the attribute `to` names.
pub(super) fn cast(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    shaped(dtype_of_code(c.required_int("to")?)?, x)
}

/// The type of the second operand.
pub(super) fn cast_like(_: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    shaped(required(x, 1)?.ty.dtype, x)
}

/// The type that the attribute `to` names, of as many bits.
pub(super) fn bit_cast(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let (from, to) = (required(x, 0)?.ty.dtype, dtype_of_code(c.required_int("to")?)?);
    if from == DType::Opaque || to == DType::Opaque {
        return Err(StandardError::new("bits of strings cannot be taken"));
    }
    if bits(from) != bits(to) {
        let m = format!("{from} has {} bits and {to} has {}; they must be equal", bits(from), bits(to));
        return Err(StandardError::new(m));
    }
    shaped(to, x)
}

/// Data and mask.
pub(super) fn dropout(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let ty = required(x, 0)?.ty;
    let mut out = infer::same(c, x)?;
    out.extend(shaped(super::dropout_mask_type(c, ty.dtype), x)?);
    Ok(out)
}

pub(super) fn quantize(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    required(x, 1)?;
    shaped(super::quantised_type(c, x.get(2).copied().flatten().map(|z| z.ty.dtype))?, x)
}

pub(super) fn dequantize(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let scale = required(x, 1)?.ty.dtype;
    let to = c.int("output_dtype").filter(|&p| p != 0).map_or(Ok(scale), dtype_of_code)?;
    if !to.is_float() {
        return Err(StandardError::new(format!("the result cannot have the type {to}")));
    }
    shaped(to, x)
}

pub(super) fn dynamic_quantize(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let d = required(x, 0)?.ty.dtype;
    if d != DType::F32 {
        return Err(refuse(c, d, "f32"));
    }
    let mut out = shaped(DType::U8, x)?;
    out.extend([Partial::known(DType::F32, []), Partial::known(DType::U8, [])]);
    Ok(out)
}

/// A product of stacks of matrices.
fn product(dtype: DType, a: &Operand<'_>, b: &Operand<'_>) -> Result<Vec<Partial>> {
    let (a, b) = (&a.ty.shape, &b.ty.shape);
    let (Some(last), Some(first)) = (a.last(), b.get(b.len().saturating_sub(2))) else {
        return Err(StandardError::new("a scalar is no matrix"));
    };
    if matches!((last.as_const(), first.as_const()), (Some(p), Some(q)) if p != q) {
        return Err(StandardError::new(format!("the inner extents of {a:?} and {b:?} differ")));
    }
    let batch = |s: &[Dim]| s[..s.len().saturating_sub(2)].to_vec();
    let mut shape = infer::broadcast(&[&batch(a), &batch(b)])?;
    if a.len() > 1 {
        shape.push(a.get(a.len() - 2).cloned());
    }
    if b.len() > 1 {
        shape.push(b.last().cloned());
    }
    Ok(vec![Partial { dtype, shape: Some(shape) }])
}

pub(super) fn matmul_integer(_: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    product(DType::I32, &required(x, 0)?, &required(x, 1)?)
}

pub(super) fn qlinear_matmul(_: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    product(required(x, 7)?.ty.dtype, &required(x, 0)?, &required(x, 3)?)
}

/// Running sums and products keep the type; the axis is one number.
pub(super) fn scan(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let axis = required(x, 1)?;
    if let Some([a]) = axis.ints().as_deref() {
        infer::axis(*a, required(x, 0)?.rank())?;
    }
    infer::same(c, x)
}
