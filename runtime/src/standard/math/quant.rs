//! Quantisation, and products of quantised matrices.

use super::super::elem::{dtype_of_code, is_int, make, range, round_to, same_type};
use super::super::{
    Args, Call, Data, StandardError, axis, broadcast, broadcast_index, count, floats, from_floats, from_ints, integers,
    native,
};
use crate::dtype::DType;
use crate::minifloat;
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;

/// Which scale belongs to an element.
enum Scales {
    One,
    /// By position along an axis: the number of elements behind it, and the extent.
    Axis {
        inner: usize,
        len: usize,
    },
    /// As `Axis`, one for each block of positions; the number of blocks.
    Blocks {
        inner: usize,
        len: usize,
        block: usize,
        blocks: usize,
    },
}

impl Scales {
    fn new(c: &Call, shape: &[usize], scale: &[usize]) -> Result<Scales> {
        let block = c.int("block_size").unwrap_or(0);
        let wrong = |m: String| StandardError::new(format!("scales of the shape {scale:?} for {shape:?}: {m}"));
        if block < 0 {
            return Err(wrong(format!("`block_size` is {block}")));
        }
        if block == 0 && scale.iter().product::<usize>() == 1 && scale.len() <= 1 {
            return Ok(Scales::One);
        }
        let a = axis(c.int("axis").unwrap_or(1), shape.len())?;
        let (inner, len) = (shape[a + 1..].iter().product(), shape[a]);
        if block == 0 {
            if scale != [len] {
                return Err(wrong(format!("axis {a} needs {len}, blocks need `block_size`")));
            }
            return Ok(Scales::Axis { inner, len });
        }
        let block = block as usize;
        let mut want = shape.to_vec();
        want[a] = len.div_ceil(block);
        if scale != want {
            return Err(wrong(format!("blocks of {block} along axis {a} need {want:?}")));
        }
        Ok(Scales::Blocks { inner, len, block, blocks: want[a] })
    }

    fn of(&self, i: usize) -> usize {
        match *self {
            Scales::One => 0,
            Scales::Axis { inner, len } => i / inner % len,
            Scales::Blocks { inner, len, block, blocks } => {
                let (outer, at, rest) = (i / (inner * len), i / inner % len, i % inner);
                (outer * blocks + at / block) * inner + rest
            }
        }
    }
}

/// Zero points; they have the shape of the scales.
fn zero_points(args: &Args<'_>, scale: &View<'_>) -> Result<Option<Vec<f64>>> {
    let Some(z) = args.optional(2)? else { return Ok(None) };
    if z.len() != scale.len() {
        return Err(StandardError::new(format!("zero points {:?} for scales {:?}", z.shape, scale.shape)));
    }
    Ok(Some(floats(&z)))
}

/// A number in a quantised type, rounded to the even neighbour and limited to the type's range.
fn quantised(to: DType, v: f64) -> i128 {
    let (low, high) = range(to);
    (v.round_ties_even() as i128).clamp(low, high)
}

pub(super) fn quantize_linear(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (x, scale) = (args.tensor(0)?, args.tensor(1)?);
    let to = super::quantised_type(c, args.optional(2)?.map(|z| z.dtype))?;
    let precision = match c.int("precision").filter(|&p| p != 0) {
        Some(p) => dtype_of_code(p)?,
        None => scale.dtype,
    };
    let scales = Scales::new(c, x.shape, scale.shape)?;
    let zero = zero_points(args, &scale)?;
    let step: Vec<f64> = floats(&scale).into_iter().map(|s| round_to(precision, s)).collect();
    let of = |i: usize| zero.as_ref().map_or(0.0, |z| z[i]);
    let quotient = |v: f64, s: usize| round_to(precision, round_to(precision, v) / step[s]);
    let values = floats(&x);
    let values = values.iter().enumerate().map(|(i, &v)| (v, scales.of(i)));
    Ok(vec![Some(if to.is_minifloat() {
        let saturate = c.flag("saturate", true);
        make(to, x.shape, values.map(|(v, s)| minifloat::encode(to, quotient(v, s) + of(s), saturate)))
    } else {
        // The quotient is rounded before the zero point comes to it.
        from_ints(to, x.shape, values.map(|(v, s)| quantised(to, quotient(v, s).round_ties_even() + of(s))))
    }?)])
}

pub(super) fn dequantize_linear(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (x, scale) = (args.tensor(0)?, args.tensor(1)?);
    let to = match c.int("output_dtype").filter(|&p| p != 0) {
        Some(p) => dtype_of_code(p)?,
        None => scale.dtype,
    };
    if let Some(z) = args.optional(2)? {
        same_type(&x, &z)?;
    }
    let scales = Scales::new(c, x.shape, scale.shape)?;
    let zero = zero_points(args, &scale)?;
    let step = floats(&scale);
    let value = |(i, v): (usize, f64)| {
        let s = scales.of(i);
        (v - zero.as_ref().map_or(0.0, |z| z[s])) * step[s]
    };
    Ok(vec![Some(from_floats(to, x.shape, floats(&x).into_iter().enumerate().map(value))?)])
}

/// The arithmetic is in f32, as the definition asks: a scale for all numbers from 0 to 255.
pub(super) fn dynamic_quantize_linear(_: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    if x.dtype != DType::F32 {
        return Err(super::super::elem::wrong_type(x.dtype));
    }
    let values = native::<f32>(&x);
    let high = values.iter().fold(0f32, |m, &v| m.max(v));
    let low = values.iter().fold(0f32, |m, &v| m.min(v));
    let scale = if high == low { 1.0 } else { high - low } / 255.0;
    let zero = (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even();
    let y = values.iter().map(|v| ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0) as u8);
    Ok(vec![
        Some(make(DType::U8, x.shape, y)?),
        Some(make(DType::F32, &[], [scale])?),
        Some(make(DType::U8, &[], [zero as u8])?),
    ])
}

/// Shapes of a product of stacks of matrices; vectors get an axis, which the result loses again.
struct Product {
    a: Vec<usize>,
    b: Vec<usize>,
    /// Shape of the result with both axes of the matrices.
    full: Vec<usize>,
    /// Shape of the result.
    shape: Vec<usize>,
}

impl Product {
    fn new(a: &[usize], b: &[usize]) -> Result<Product> {
        if a.is_empty() || b.is_empty() {
            return Err(StandardError::new("a scalar is no matrix"));
        }
        let (mut wide_a, mut wide_b) = (a.to_vec(), b.to_vec());
        if a.len() == 1 {
            wide_a.insert(0, 1);
        }
        if b.len() == 1 {
            wide_b.push(1);
        }
        let (ra, rb) = (wide_a.len() - 2, wide_b.len() - 2);
        if wide_a[ra + 1] != wide_b[rb] {
            return Err(StandardError::new(format!("the inner extents of {a:?} and {b:?} differ")));
        }
        let batch = broadcast(&[&wide_a[..ra], &wide_b[..rb]])?;
        let mut full = batch.clone();
        full.extend([wide_a[ra], wide_b[rb + 1]]);
        let mut shape = batch;
        if a.len() > 1 {
            shape.push(wide_a[ra]);
        }
        if b.len() > 1 {
            shape.push(wide_b[rb + 1]);
        }
        Ok(Product { a: wide_a, b: wide_b, full, shape })
    }

    /// The products by row and column, summed up with `fma`.
    fn run<T: Copy>(&self, a: &[T], b: &[T], zero: T, fma: impl Fn(T, T, T) -> T) -> Result<Vec<T>> {
        let rank = self.full.len();
        let (m, n, k) = (self.full[rank - 2], self.full[rank - 1], self.a[self.a.len() - 1]);
        let batch = &self.full[..rank - 2];
        let stack_a = broadcast_index(&self.a[..self.a.len() - 2], batch)?;
        let stack_b = broadcast_index(&self.b[..self.b.len() - 2], batch)?;
        let mut out = vec![zero; count(DType::U8, &self.full)?];
        for (s, (&ia, &ib)) in stack_a.iter().zip(&stack_b).enumerate() {
            for i in 0..m {
                let row = &mut out[(s * m + i) * n..][..n];
                for l in 0..k {
                    let left = a[(ia * m + i) * k + l];
                    let right = &b[(ib * k + l) * n..][..n];
                    row.iter_mut().zip(right).for_each(|(o, r)| *o = fma(*o, left, *r));
                }
            }
        }
        Ok(out)
    }
}

/// Values for each element of a matrix: one for all, a vector for rows or columns, or what broadcasts to the matrix.
fn per_element(v: &[f64], shape: &[usize], matrix: &[usize], rows: bool) -> Result<Vec<f64>> {
    let as_column: Vec<usize>;
    let (m, n) = (matrix[matrix.len() - 2], matrix[matrix.len() - 1]);
    let shape = match shape {
        _ if v.len() == 1 => &[],
        [d] if rows && *d == m => {
            as_column = vec![m, 1];
            &as_column[..]
        }
        [d] if !rows && *d == n => shape,
        [_] => return Err(StandardError::new(format!("{} values for the matrix {matrix:?}", v.len()))),
        s => s,
    };
    if broadcast(&[shape, matrix])? != matrix {
        return Err(StandardError::new(format!("{shape:?} does not broadcast to {matrix:?}")));
    }
    Ok(broadcast_index(shape, matrix)?.into_iter().map(|i| v[i]).collect())
}

/// A matrix of integers without its zero points.
fn centred(x: &View<'_>, zero: Option<View<'_>>, matrix: &[usize], rows: bool) -> Result<Vec<i32>> {
    if !is_int(x.dtype) || x.dtype.size() > 1 {
        return Err(super::super::elem::wrong_type(x.dtype));
    }
    let values = integers(x);
    let Some(z) = zero else { return Ok(values.into_iter().map(|v| v as i32).collect()) };
    same_type(x, &z)?;
    let zero = per_element(&floats(&z), z.shape, matrix, rows)?;
    Ok(values.into_iter().zip(zero).map(|(v, z)| v as i32 - z as i32).collect())
}

/// Sums wrap in 32 bits.
pub(super) fn matmul_integer(_: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (a, b) = (args.tensor(0)?, args.tensor(1)?);
    let p = Product::new(a.shape, b.shape)?;
    let left = centred(&a, args.optional(2)?, &p.a, true)?;
    let right = centred(&b, args.optional(3)?, &p.b, false)?;
    let y = p.run(&left, &right, 0i32, |s, a, b| s.wrapping_add(a.wrapping_mul(b)))?;
    Ok(vec![Some(make(DType::I32, &p.shape, y)?)])
}

pub(super) fn qlinear_matmul(_: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (a, b, to) = (args.tensor(0)?, args.tensor(3)?, args.tensor(7)?.dtype);
    let p = Product::new(a.shape, b.shape)?;
    let real = |x: &View<'_>, scale: usize, zero: usize, matrix: &[usize], rows: bool| -> Result<Vec<f64>> {
        let (s, z) = (args.tensor(scale)?, args.tensor(zero)?);
        same_type(x, &z)?;
        let s = per_element(&floats(&s), s.shape, matrix, rows)?;
        let z = per_element(&floats(&z), z.shape, matrix, rows)?;
        Ok(floats(x).into_iter().zip(s.into_iter().zip(z)).map(|(v, (s, z))| (v - z) * s).collect())
    };
    let left = real(&a, 1, 2, &p.a, true)?;
    let right = real(&b, 4, 5, &p.b, false)?;
    let y = p.run(&left, &right, 0.0, |s, a, b| s + a * b)?;
    let (Some(scale), Some(zero)) = (args.scalar(6)?, args.scalar(7)?) else {
        return Err(StandardError::new("the result's scale or zero point is missing"));
    };
    Ok(vec![Some(if to.is_minifloat() {
        make(to, &p.shape, y.into_iter().map(|v| minifloat::encode(to, v / scale + zero, true)))
    } else {
        from_ints(to, &p.shape, y.into_iter().map(|v| quantised(to, v / scale + zero)))
    }?)])
}
