//! Quantisation, and products of quantised matrices.

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;

use super::super::elem::{dtype_of_code, fill, fill_by, is_int, make, range, round_to, same_type};
use super::super::{
    Args, Call, Data, StandardError, axis, broadcast, broadcast_index, count, floats, from_floats, from_ints, integers,
    native,
};
use crate::cpu::convert::{floats as narrow_floats, round_through};
use crate::cpu::integer::{self, Left, Zero, product};
use crate::cpu::math;
use crate::cpu::simd::{self, BLOCK, map, vectorised};
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

    /// Elements in a run whose scales are all one, or lie one after the other.
    fn run(&self) -> usize {
        match *self {
            Scales::One => BLOCK,
            Scales::Axis { inner: 1, len } => len,
            Scales::Blocks { inner: 1, len, block, .. } if len % block != 0 => 1,
            Scales::Blocks { inner: 1, block, .. } => block,
            Scales::Axis { inner, .. } | Scales::Blocks { inner, .. } => inner,
        }
    }

    /// Whether each element of a run has a scale of its own.
    fn varies(&self) -> bool {
        match *self {
            Scales::One => false,
            Scales::Axis { inner, .. } => inner == 1,
            Scales::Blocks { inner, .. } => inner > 1,
        }
    }

    /// Calls `f(run of x, its scale or scales, the same of the zero points, run of the result)` for all runs of a result.
    fn runs<T: Pod + Send, X: Sync>(
        &self,
        (dtype, shape): (DType, &[usize]),
        x: &[X],
        (scale, zero): (&[f32], &[f32]),
        f: impl Fn(&[X], &[f32], &[f32], &mut [T]) + Sync,
    ) -> Result<Data> {
        let run = self.run().max(1);
        let size = run * (BLOCK / run).max(1);
        fill_by(dtype, shape, size, |start, out: &mut [T]| {
            for (i, part) in out.chunks_mut(run).enumerate() {
                let at = start + i * run;
                let first = self.of(at);
                let which = first..if self.varies() { first + part.len() } else { first + 1 };
                f(&x[at..at + part.len()], &scale[which.clone()], &zero[which], part);
            }
        })
    }
}

/// Evaluates an expression with `$t` as the native type of an integer type of 8 or 16 bits.
macro_rules! by_short {
    ($d:expr, $t:ident => $body:expr) => {
        match $d {
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            DType::I16 => {
                type $t = i16;
                $body
            }
            DType::U16 => {
                type $t = u16;
                $body
            }
            d => Err(super::super::elem::wrong_type(d)),
        }
    };
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
    let narrow = |d: DType| matches!(d, DType::F32 | DType::F16 | DType::BF16);
    if narrow(x.dtype) && narrow(precision) && is_int(to) && to.size() < 4 {
        return quantize_blocks(&x, to, precision, &scales, &step, zero.as_deref());
    }
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

/// Quantisation to integers of at most 16 bits in f32, where all of its steps are exact or rounded as in the precision: a
/// quotient of two f16 or bf16 that is rounded twice is the one that is rounded once.
fn quantize_blocks(
    x: &View<'_>,
    to: DType,
    precision: DType,
    scales: &Scales,
    step: &[f64],
    zero: Option<&[f64]>,
) -> Result<Vec<Option<Data>>> {
    let failed = |e: crate::cpu::KernelError| StandardError::new(e.to_string());
    let mut values = narrow_floats(x).map_err(failed)?;
    if precision != DType::F32 && precision != x.dtype {
        round_through(precision, values.to_mut()).map_err(failed)?;
    }
    let step: Vec<f32> = step.iter().map(|&s| s as f32).collect();
    let zero: Vec<f32> = zero.map_or(vec![0.0; step.len()], |z| z.iter().map(|&z| z as f32).collect());
    let (low, high) = range(to);
    let (low, high) = (low as f32, high as f32);
    by_short!(to, T => {
        let one = move |q: f32, z: f32| {
            let v = q.round_ties_even() + z;
            let v = if v < low { low } else { v };
            let v = if v > high { high } else { v };
            math::small_int(v) as T
        };
        let through = move |q: f32| match precision {
            DType::F16 => f16::from_f32(q).to_f32(),
            DType::BF16 => bf16::from_f32(q).to_f32(),
            _ => q,
        };
        scales.runs((to, x.shape), &values, (&step, &zero), |x, step, zero, out: &mut [T]| match (step, zero) {
            (&[s], &[z]) if precision == DType::F32 => map(x, out, move |v| one(v / s, z)),
            (&[s], &[z]) => map(x, out, move |v| one(through(v / s), z)),
            _ => vectorised(
                #[inline(always)]
                move || {
                    for (i, o) in out.iter_mut().enumerate() {
                        let q = x[i] / step[i];
                        *o = one(if precision == DType::F32 { q } else { through(q) }, zero[i]);
                    }
                },
            ),
        })
    })
    .map(|d| vec![Some(d)])
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
    // The product of an integer of 16 bits and an f32 is rounded once in f32.
    if to == DType::F32 && scale.dtype == DType::F32 {
        let step = native::<f32>(&scale);
        let zeros: Vec<f32> = zero.as_ref().map_or(vec![0.0; step.len()], |z| z.iter().map(|&z| z as f32).collect());
        let result = (DType::F32, x.shape);
        macro_rules! exact {
            ($t:ty) => {
                scales.runs(result, &native::<$t>(&x), (&step, &zeros), |x, step, zero, out: &mut [f32]| {
                    match (step, zero) {
                        (&[s], &[z]) => map(x, out, move |v: $t| (f32::from(v) - z) * s),
                        _ => vectorised(
                            #[inline(always)]
                            move || {
                                for (i, o) in out.iter_mut().enumerate() {
                                    *o = (f32::from(x[i]) - zero[i]) * step[i];
                                }
                            },
                        ),
                    }
                })
            };
        }
        let done = match x.dtype {
            // Integers of fewer bits have a byte each.
            DType::U8 | DType::U4 | DType::U2 => Some(exact!(u8)),
            DType::I8 | DType::I4 | DType::I2 => Some(exact!(i8)),
            DType::U16 => Some(exact!(u16)),
            DType::I16 => Some(exact!(i16)),
            DType::I32 if zero.as_ref().is_none_or(|z| z.iter().all(|z| *z == 0.0)) => {
                let one = |v: i32, s: f32| (f64::from(v) * f64::from(s)) as f32;
                let v = native::<i32>(&x);
                Some(scales.runs(result, &v, (&step, &zeros), |x, step, _, out: &mut [f32]| match step {
                    &[s] => map(x, out, move |v| one(v, s)),
                    _ => out.iter_mut().enumerate().for_each(|(i, o)| *o = one(x[i], step[i])),
                }))
            }
            _ => None,
        };
        if let Some(d) = done {
            return Ok(vec![Some(d?)]);
        }
    }
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
    let high = simd::fold(&values, 0f32, |m: f32, v| if v > m { v } else { m }, |a, b| if b > a { b } else { a });
    let low = simd::fold(&values, 0f32, |m: f32, v| if v < m { v } else { m }, |a, b| if b < a { b } else { a });
    // As ONNX Runtime where all elements are 0, or there are none.
    let scale = if high == low { 1.0 } else { (high - low) / 255.0 };
    let zero = (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even();
    let y = move |v: f32| math::small_int(((v / scale).round_ties_even() + zero).clamp(0.0, 255.0)) as u8;
    Ok(vec![
        Some(fill(DType::U8, x.shape, |at, out: &mut [u8]| map(&values[at..], out, y))?),
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

/// Values of an operand of a product: one for all, or a vector by row of the left, by column of the right matrix. `None` for the
/// other forms.
fn by_line(v: Option<&View<'_>>, lines: usize) -> Option<Vec<f64>> {
    match v {
        None => Some(vec![0.0]),
        Some(v) if v.len() == 1 || v.shape == [lines] => Some(floats(v)),
        Some(_) => None,
    }
}

/// The products of all pairs of matrices of 8-bit integers without their zero points.
fn integer_products(p: &Product, a: &View<'_>, b: &View<'_>, zero: (&[f64], &[f64])) -> Result<Vec<integer::Product>> {
    let rank = p.full.len();
    let (m, n, k) = (p.full[rank - 2], p.full[rank - 1], p.a[p.a.len() - 1]);
    let batch = &p.full[..rank - 2];
    let stack_a = broadcast_index(&p.a[..p.a.len() - 2], batch)?;
    let stack_b = broadcast_index(&p.b[..p.b.len() - 2], batch)?;
    let whole = |z: &[f64]| z.iter().map(|&z| z as i16).collect::<Vec<_>>();
    let (za, zb) = (whole(zero.0), whole(zero.1));
    fn zeros(z: &[i16]) -> Zero<'_> {
        if let [z] = *z { Zero::One(z) } else { Zero::Each(z) }
    }
    // Several matrices keep the threads busy without each being cut.
    let threads = if stack_a.len() > 1 { 1 } else { rayon::current_num_threads() };
    let right = |left: &Left, elements: &[u8]| match b.dtype {
        DType::I8 => product::<i8>(left, bytemuck::cast_slice(elements), n, zeros(&zb), threads),
        _ => product(left, elements, n, zeros(&zb), threads),
    };
    let one = |(&i, &j): (&usize, &usize)| {
        let (x, y) = (&a.bytes[i * m * k..(i + 1) * m * k], &b.bytes[j * k * n..(j + 1) * k * n]);
        let left = match a.dtype {
            DType::I8 => Left::new::<i8>(bytemuck::cast_slice(x), m, k, zeros(&za)),
            _ => Left::new(x, m, k, zeros(&za)),
        };
        right(&left, y)
    };
    Ok(stack_a.par_iter().zip(&stack_b).map(one).collect())
}

fn bytes(x: &View<'_>) -> bool {
    matches!(x.dtype, DType::I8 | DType::U8)
}

/// Sums wrap in 32 bits.
pub(super) fn matmul_integer(_: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (a, b) = (args.tensor(0)?, args.tensor(1)?);
    let p = Product::new(a.shape, b.shape)?;
    let (za, zb) = (args.optional(2)?, args.optional(3)?);
    za.as_ref().map_or(Ok(()), |z| same_type(&a, z))?;
    zb.as_ref().map_or(Ok(()), |z| same_type(&b, z))?;
    let (m, n) = (p.full[p.full.len() - 2], p.full[p.full.len() - 1]);
    if let (true, true, Some(za), Some(zb)) = (bytes(&a), bytes(&b), by_line(za.as_ref(), m), by_line(zb.as_ref(), n)) {
        let products = integer_products(&p, &a, &b, (&za, &zb))?;
        let write = |at: usize, row: &mut [i32]| {
            let r = at / n;
            products[r / m].row(r % m).for_each(|(c, v)| row[c..c + v.len()].copy_from_slice(v));
        };
        return Ok(vec![Some(fill_by(DType::I32, &p.shape, n, write)?)]);
    }
    let left = centred(&a, za, &p.a, true)?;
    let right = centred(&b, zb, &p.b, false)?;
    let y = p.run(&left, &right, 0i32, |s, a, b| s.wrapping_add(a.wrapping_mul(b)))?;
    Ok(vec![Some(make(DType::I32, &p.shape, y)?)])
}

/// The inner extent up to which sums of products of 9-bit numbers fit 32 bits.
pub(in crate::standard) const EXACT_DEPTH: usize = (i32::MAX / (255 * 255)) as usize;

pub(super) fn qlinear_matmul(_: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (a, b, to) = (args.tensor(0)?, args.tensor(3)?, args.tensor(7)?.dtype);
    let p = Product::new(a.shape, b.shape)?;
    let (Some(scale), Some(zero)) = (args.scalar(6)?, args.scalar(7)?) else {
        return Err(StandardError::new("the result's scale or zero point is missing"));
    };
    let (sa, za, sb, zb) = (args.tensor(1)?, args.tensor(2)?, args.tensor(4)?, args.tensor(5)?);
    same_type(&a, &za)?;
    same_type(&b, &zb)?;
    let (m, n, k) = (p.full[p.full.len() - 2], p.full[p.full.len() - 1], p.a[p.a.len() - 1]);
    let lines = (by_line(Some(&sa), m), by_line(Some(&za), m), by_line(Some(&sb), n), by_line(Some(&zb), n));
    if let (Some(sa), Some(za), Some(sb), Some(zb)) = lines
        && bytes(&a)
        && bytes(&b)
        && k <= EXACT_DEPTH
        && is_int(to)
        && to.size() == 1
    {
        let products = integer_products(&p, &a, &b, (&za, &zb))?;
        let (low, high) = range(to);
        let (low, high) = (low as f64, high as f64);
        let y = by_short!(to, T => fill_by(to, &p.shape, n, |at, row: &mut [T]| {
            let r = at / n;
            let of_row = sa[if sa.len() == 1 { 0 } else { r % m }];
            for (c, sums) in products[r / m].row(r % m) {
                let out = &mut row[c..c + sums.len()];
                let one = move |v: i32, s: f64| {
                    math::int_of((f64::from(v) * (of_row * s) / scale + zero).round_ties_even().clamp(low, high)) as T
                };
                match sb[..] {
                    [s] => map(sums, out, move |v| one(v, s)),
                    _ => {
                        let scales = &sb[c..];
                        vectorised(
                            #[inline(always)]
                            move || {
                                for ((o, &v), &s) in out.iter_mut().zip(sums).zip(scales) {
                                    *o = one(v, s);
                                }
                            },
                        );
                    }
                }
            }
        }))?;
        return Ok(vec![Some(y)]);
    }
    let real = |x: &View<'_>, s: &View<'_>, z: &View<'_>, matrix: &[usize], rows: bool| -> Result<Vec<f64>> {
        let s = per_element(&floats(s), s.shape, matrix, rows)?;
        let z = per_element(&floats(z), z.shape, matrix, rows)?;
        Ok(floats(x).into_iter().zip(s.into_iter().zip(z)).map(|(v, (s, z))| (v - z) * s).collect())
    };
    let left = real(&a, &sa, &za, &p.a, true)?;
    let right = real(&b, &sb, &zb, &p.b, false)?;
    let y = p.run(&left, &right, 0.0, |s, a, b| s + a * b)?;
    Ok(vec![Some(if to.is_minifloat() {
        make(to, &p.shape, y.into_iter().map(|v| minifloat::encode(to, v / scale + zero, true)))
    } else {
        from_ints(to, &p.shape, y.into_iter().map(|v| quantised(to, v / scale + zero)))
    }?)])
}
