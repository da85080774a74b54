//! Products of matrices of any element type.

use std::borrow::Cow;

use gemm::Parallelism;

use super::moved::{carried, dims};
use crate::cpu::convert::{floats as narrow, typed};
use crate::cpu::matmul::{Matrix, product};
use crate::cpu::skinny::Skinny;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::{self, required};
use crate::standard::{
    Args, Call, Data, Operand, Partial, StandardError, broadcast, broadcast_index, count, floats, from_bytes,
    from_floats, from_ints, integers,
};
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// Elements in the type that products are computed in: f32 for floats of 16 and 32 bits, i64 that wraps for integers.
#[derive(Clone)]
pub(in crate::standard) enum Numbers<'a> {
    F32(Cow<'a, [f32]>),
    F64(Cow<'a, [f64]>),
    Int(Cow<'a, [i64]>),
}

impl<'a> Numbers<'a> {
    /// The elements of a tensor.
    pub(in crate::standard) fn of(v: &View<'a>) -> Numbers<'a> {
        match v.dtype {
            DType::F64 => Numbers::F64(typed(v.bytes)),
            DType::I64 => Numbers::Int(typed(v.bytes)),
            d if d.is_float() => narrow(v).map_or_else(|_| Numbers::F64(floats(v).into()), Numbers::F32),
            d if d.is_minifloat() => Numbers::F64(floats(v).into()),
            _ => Numbers::Int(integers(v).into_iter().map(|i| i as i64).collect()),
        }
    }

    /// The elements at the given positions, which must be inside.
    pub(in crate::standard) fn pick(&self, at: &[usize]) -> Numbers<'static> {
        match self {
            Numbers::F32(v) => Numbers::F32(at.iter().map(|&i| v[i]).collect()),
            Numbers::F64(v) => Numbers::F64(at.iter().map(|&i| v[i]).collect()),
            Numbers::Int(v) => Numbers::Int(at.iter().map(|&i| v[i]).collect()),
        }
    }

    /// Sums of runs of `n` elements.
    pub(in crate::standard) fn sums(&self, n: usize, runs: usize) -> Numbers<'static> {
        let range = |i: usize| i * n..(i + 1) * n;
        match self {
            Numbers::F32(v) => {
                Numbers::F32((0..runs).map(|i| v[range(i)].iter().map(|&v| f64::from(v)).sum::<f64>() as f32).collect())
            }
            Numbers::F64(v) => Numbers::F64((0..runs).map(|i| v[range(i)].iter().sum()).collect()),
            Numbers::Int(v) => {
                Numbers::Int((0..runs).map(|i| v[range(i)].iter().fold(0i64, |s, v| s.wrapping_add(*v))).collect())
            }
        }
    }

    /// A tensor of the elements.
    pub(in crate::standard) fn finish(self, dtype: DType, shape: &[usize]) -> Result<Data> {
        match self {
            Numbers::F32(v) if dtype == DType::F32 => from_bytes(dtype, shape, bytemuck::cast_slice(&v)),
            Numbers::F64(v) if dtype == DType::F64 => from_bytes(dtype, shape, bytemuck::cast_slice(&v)),
            Numbers::Int(v) if dtype == DType::I64 => from_bytes(dtype, shape, bytemuck::cast_slice(&v)),
            Numbers::F32(v) => from_floats(dtype, shape, v.iter().map(|&v| f64::from(v))),
            Numbers::F64(v) => from_floats(dtype, shape, v.iter().copied()),
            Numbers::Int(v) => from_ints(dtype, shape, v.iter().map(|&v| i128::from(v))),
        }
    }
}

/// All threads of the pool at hand.
pub(in crate::standard) fn parallelism() -> Parallelism {
    match rayon::current_num_threads() {
        0 | 1 => Parallelism::None,
        n => Parallelism::Rayon(n),
    }
}

/// Products of row-major matrices of `m` x `k` and `k` x `n`, transposed in storage where the flags say so. A result for each
/// pair of matrix indices.
pub(in crate::standard) fn multiply(
    a: &Numbers<'_>,
    b: &Numbers<'_>,
    (m, k, n): (usize, usize, usize),
    (turn_a, turn_b): (bool, bool),
    batch: &[(usize, usize)],
) -> Result<Numbers<'static>> {
    let size = count(DType::F64, &[batch.len(), m, n])?;
    Ok(match (a, b) {
        (Numbers::F32(a), Numbers::F32(b)) => {
            let mut out = vec![0f32; size];
            all_products(a, b, (m, k, n), (turn_a, turn_b), batch, &mut out, (0.0, 1.0))?;
            Numbers::F32(out.into())
        }
        (Numbers::F64(a), Numbers::F64(b)) => {
            let mut out = vec![0f64; size];
            all_products(a, b, (m, k, n), (turn_a, turn_b), batch, &mut out, (0.0, 1.0))?;
            Numbers::F64(out.into())
        }
        (Numbers::Int(a), Numbers::Int(b)) => {
            let mut out = vec![0i64; size];
            for (&(i, j), out) in batch.iter().zip(out.chunks_exact_mut((m * n).max(1))) {
                let (a, b) = (&a[i * m * k..(i + 1) * m * k], &b[j * k * n..(j + 1) * k * n]);
                for (r, row) in out.chunks_exact_mut(n.max(1)).enumerate() {
                    for l in 0..k {
                        let v = a[if turn_a { l * m + r } else { r * k + l }];
                        if v == 0 {
                            continue;
                        }
                        for (c, o) in row.iter_mut().enumerate() {
                            *o = o.wrapping_add(v.wrapping_mul(b[if turn_b { c * k + l } else { l * n + c }]));
                        }
                    }
                }
            }
            Numbers::Int(out.into())
        }
        _ => return Err(StandardError::new("operands of different element types")),
    })
}

fn all_products<T: Skinny>(
    a: &[T],
    b: &[T],
    (m, k, n): (usize, usize, usize),
    (turn_a, turn_b): (bool, bool),
    batch: &[(usize, usize)],
    out: &mut [T],
    constants: (T, T),
) -> Result<()> {
    for (&(i, j), out) in batch.iter().zip(out.chunks_exact_mut((m * n).max(1))) {
        let (a, b) = (&a[i * m * k..(i + 1) * m * k], &b[j * k * n..(j + 1) * k * n]);
        let a = if turn_a { Matrix::rows(a, k, m).t() } else { Matrix::rows(a, m, k) };
        let b = if turn_b { Matrix::rows(b, n, k).t() } else { Matrix::rows(b, k, n) };
        product(a, b, out, n, constants, parallelism()).map_err(|e| StandardError::new(e.to_string()))?;
    }
    Ok(())
}

/// Leading axes, rows and columns; a vector is a row on the left and a column on the right.
fn matrix<T: Clone>(shape: &[T], left: bool, one: T) -> Result<(Vec<T>, T, T)> {
    match shape {
        [] => Err(StandardError::new("a scalar is no matrix")),
        [n] if left => Ok((vec![], one, n.clone())),
        [n] => Ok((vec![], n.clone(), one)),
        [lead @ .., r, c] => Ok((lead.to_vec(), r.clone(), c.clone())),
    }
}

pub(super) fn matmul(_: &Call, x: &Args<'_>) -> Results {
    let (a, b) = (x.tensor(0)?, x.tensor(1)?);
    if a.dtype != b.dtype {
        return Err(StandardError::new(format!("a product of {} and {}", a.dtype, b.dtype)));
    }
    let (shape, numbers) = matmul_numbers((a.shape, &Numbers::of(&a)), (b.shape, &Numbers::of(&b)))?;
    Ok(vec![Some(numbers.finish(a.dtype, &shape)?)])
}

/// The product by NumPy's rules, with its shape.
pub(in crate::standard) fn matmul_numbers(
    (a_shape, a): (&[usize], &Numbers<'_>),
    (b_shape, b): (&[usize], &Numbers<'_>),
) -> Result<(Vec<usize>, Numbers<'static>)> {
    let (a_lead, m, k) = matrix(a_shape, true, 1)?;
    let (b_lead, l, n) = matrix(b_shape, false, 1)?;
    if k != l {
        return Err(StandardError::new(format!("{a_shape:?} times {b_shape:?}: the inner extents differ")));
    }
    let lead = broadcast(&[&a_lead, &b_lead])?;
    let mut shape = lead.clone();
    shape.extend((a_shape.len() > 1).then_some(m));
    shape.extend((b_shape.len() > 1).then_some(n));
    // One matrix on the right: the leading axes of the left are more rows.
    if b_lead.iter().all(|&d| d == 1) {
        let rows = a_lead.iter().product::<usize>() * m;
        return Ok((shape, multiply(a, b, (rows, k, n), (false, false), &[(0, 0)])?));
    }
    let batch: Vec<_> = broadcast_index(&a_lead, &lead)?.into_iter().zip(broadcast_index(&b_lead, &lead)?).collect();
    Ok((shape, multiply(a, b, (m, k, n), (false, false), &batch)?))
}

pub(super) fn matmul_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (a, b) = (required(x, 0)?, required(x, 1)?);
    if a.ty.dtype != b.ty.dtype {
        return Err(StandardError::new(format!("a product of {} and {}", a.ty, b.ty)));
    }
    Ok(vec![carried(a.ty.dtype, product_shape(&a, &b)?)])
}

/// The shape of a product by NumPy's rules.
pub(in crate::standard) fn product_shape(a: &Operand<'_>, b: &Operand<'_>) -> Result<Vec<Option<Dim>>> {
    let one = Dim::from(1);
    let (a_lead, m, k) = matrix(&a.ty.shape, true, one.clone())?;
    let (b_lead, l, n) = matrix(&b.ty.shape, false, one)?;
    if matches!((k.as_const(), l.as_const()), (Some(k), Some(l)) if k != l) {
        return Err(StandardError::new(format!("{} times {}: the inner extents {k} and {l} differ", a.ty, b.ty)));
    }
    let mut shape = infer::broadcast(&[&a_lead, &b_lead])?;
    shape.extend((a.rank() > 1).then_some(Some(m)));
    shape.extend((b.rank() > 1).then_some(Some(n)));
    Ok(shape)
}

pub(super) fn gemm(c: &Call, x: &Args<'_>) -> Results {
    let (a, b) = (x.tensor(0)?, x.tensor(1)?);
    let (turn_a, turn_b) = (c.flag("transA", false), c.flag("transB", false));
    let (&[ra, ca], &[rb, cb]) = (a.shape, b.shape) else {
        return Err(StandardError::new(format!("{:?} and {:?} are not both matrices", a.shape, b.shape)));
    };
    let (m, k) = if turn_a { (ca, ra) } else { (ra, ca) };
    let (l, n) = if turn_b { (cb, rb) } else { (rb, cb) };
    let bias = x.optional(2)?;
    if k != l || a.dtype != b.dtype || bias.is_some_and(|v| v.dtype != a.dtype) {
        return Err(StandardError::new("the operands do not fit each other"));
    }
    let (alpha, beta) = (c.float("alpha").unwrap_or(1.0), c.float("beta").unwrap_or(1.0));
    let shape = [m, n];
    let sum = multiply(&Numbers::of(&a), &Numbers::of(&b), (m, k, n), (turn_a, turn_b), &[(0, 0)])?;
    let at = match bias {
        Some(v) if broadcast(&[v.shape, &shape])? != shape => {
            return Err(StandardError::new(format!("{:?} does not broadcast to {shape:?}", v.shape)));
        }
        Some(v) => Some((Numbers::of(&v), broadcast_index(v.shape, &shape)?)),
        None => None,
    };
    let out = match (sum, at) {
        (sum, None) if alpha == 1.0 => sum,
        (Numbers::F32(s), None) => Numbers::F32(s.iter().map(|&s| alpha as f32 * s).collect()),
        (Numbers::F64(s), None) => Numbers::F64(s.iter().map(|&s| alpha * s).collect()),
        (Numbers::Int(s), None) => Numbers::Int(s.iter().map(|&s| (alpha * s as f64) as i64).collect()),
        (Numbers::F32(s), Some((Numbers::F32(v), at))) => {
            Numbers::F32(s.iter().zip(at).map(|(&s, i)| alpha as f32 * s + beta as f32 * v[i]).collect())
        }
        (Numbers::F64(s), Some((Numbers::F64(v), at))) => {
            Numbers::F64(s.iter().zip(at).map(|(&s, i)| alpha * s + beta * v[i]).collect())
        }
        (Numbers::Int(s), Some((Numbers::Int(v), at))) => {
            let whole = alpha == 1.0 && beta == 1.0;
            let one = |(&s, i): (&i64, usize)| {
                if whole { s.wrapping_add(v[i]) } else { (alpha * s as f64 + beta * v[i] as f64) as i64 }
            };
            Numbers::Int(s.iter().zip(at).map(one).collect())
        }
        _ => return Err(StandardError::new("the operands do not fit each other")),
    };
    Ok(vec![Some(out.finish(a.dtype, &shape)?)])
}

pub(super) fn gemm_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (a, b) = (required(x, 0)?, required(x, 1)?);
    let pair = |o: &Operand<'_>, turn: bool| match &dims(o)[..] {
        [r, c] => Ok(if turn { (c.clone(), r.clone()) } else { (r.clone(), c.clone()) }),
        _ => Err(StandardError::new(format!("{} is no matrix", o.ty))),
    };
    let ((m, k), (l, n)) = (pair(&a, c.flag("transA", false))?, pair(&b, c.flag("transB", false))?);
    let fixed = |d: &Option<Dim>| d.as_ref().and_then(Dim::as_const);
    if matches!((fixed(&k), fixed(&l)), (Some(k), Some(l)) if k != l) {
        return Err(StandardError::new(format!("{} times {}: the inner extents differ", a.ty, b.ty)));
    }
    Ok(vec![carried(a.ty.dtype, [m, n])])
}
