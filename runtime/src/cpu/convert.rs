//! Reads storage types into the types that kernels compute in, and rounds results back.

use std::borrow::Cow;

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::KernelError;
use super::math::small_int;
use super::simd::{BLOCK, fold, map, parts};
use crate::dtype::{DType, bf16_from_f64, f16_from_f64};
use crate::tensor::{View, ViewMut};

/// A float type of 16 bits.
pub(crate) trait Half: Pod + Send + Sync {
    /// Reads elements; `out` has as many.
    fn widen(x: &[Self], out: &mut [f32]);
    /// Rounds to elements; `out` has as many.
    fn narrow(x: &[f32], out: &mut [Self]);
}

impl Half for f16 {
    fn widen(x: &[f16], out: &mut [f32]) {
        x.convert_to_f32_slice(out);
    }

    fn narrow(x: &[f32], out: &mut [f16]) {
        out.convert_from_f32_slice(x);
    }
}

impl Half for bf16 {
    fn widen(x: &[bf16], out: &mut [f32]) {
        map(x, out, |v| f32::from_bits(u32::from(v.to_bits()) << 16));
    }

    fn narrow(x: &[f32], out: &mut [bf16]) {
        map(x, out, |v| {
            let bits = v.to_bits();
            // To nearest, ties to even; NaN stays NaN.
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
            bf16::from_bits(if v.is_nan() { (bits >> 16) as u16 | 0x40 } else { (rounded >> 16) as u16 })
        });
    }
}

/// Lets `f` replace the elements of `x` in f32, in blocks of rows of `width` elements, and rounds them once to the storage type
/// of `out`, which is that of `x`.
pub(crate) fn float_blocks(
    x: &View<'_>,
    out: &mut ViewMut<'_>,
    width: usize,
    threads: usize,
    f: impl Fn(&mut [f32]) + Sync,
) -> Result<(), KernelError> {
    fn halves<T: Half>(
        x: &View<'_>,
        out: &mut ViewMut<'_>,
        (size, threads): (usize, usize),
        f: impl Fn(&mut [f32]) + Sync,
    ) -> Result<(), KernelError> {
        let x = typed::<T>(x.bytes);
        parts(typed_mut::<T>(out.bytes)?, size, threads, |at, o| {
            let mut wide = vec![0f32; o.len()];
            T::widen(&x[at..at + o.len()], &mut wide);
            f(&mut wide);
            T::narrow(&wide, o);
        });
        Ok(())
    }
    let width = width.max(1);
    let size = width * (BLOCK / width).max(1);
    match x.dtype {
        DType::F32 => {
            let x = typed::<f32>(x.bytes);
            parts(typed_mut(out.bytes)?, size, threads, |at, o: &mut [f32]| {
                o.copy_from_slice(&x[at..at + o.len()]);
                f(o);
            });
            Ok(())
        }
        DType::F16 => halves::<f16>(x, out, (size, threads), f),
        DType::BF16 => halves::<bf16>(x, out, (size, threads), f),
        d => Err(KernelError::DType(d)),
    }
}

/// Lets `f` compute blocks of rows of `width` elements in f32 from those of `x`, and rounds them once to the storage type of `out`, which is that of `x`.
pub(crate) fn float_map(
    x: &View<'_>,
    out: &mut ViewMut<'_>,
    width: usize,
    threads: usize,
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Result<(), KernelError> {
    if x.dtype == DType::F32 {
        let (x, width) = (typed::<f32>(x.bytes), width.max(1));
        let size = width * (BLOCK / width).max(1);
        parts(typed_mut(out.bytes)?, size, threads, |at, o: &mut [f32]| f(&x[at..at + o.len()], o));
        return Ok(());
    }
    float_blocks(x, out, width, threads, |block| {
        // Short runs stay in the first-level cache with their results.
        let size = width.max(1) * (512 / width.max(1)).max(1);
        let mut from = vec![0f32; size];
        for run in block.chunks_mut(size) {
            let from = &mut from[..run.len()];
            from.copy_from_slice(run);
            f(from, run);
        }
    })
}

/// The bytes as elements: in place where they are aligned, otherwise copied.
pub(crate) fn typed<T: Pod>(bytes: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(s) => Cow::Borrowed(s),
        Err(_) => bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect(),
    }
}

/// The bytes of a result as elements.
pub(crate) fn typed_mut<T: Pod>(bytes: &mut [u8]) -> Result<&mut [T], KernelError> {
    bytemuck::try_cast_slice_mut(bytes).map_err(|e| KernelError::Shape(format!("a result is not aligned: {e}")))
}

/// Elements of f32, f16 or bf16 storage.
pub(crate) fn floats<'a>(x: &View<'a>) -> Result<Cow<'a, [f32]>, KernelError> {
    Ok(match x.dtype {
        DType::F32 => typed(x.bytes),
        DType::F16 => {
            let mut v = vec![0.0; x.len()];
            typed::<f16>(x.bytes).convert_to_f32_slice(&mut v);
            Cow::Owned(v)
        }
        DType::BF16 => {
            let mut v = vec![0.0; x.len()];
            bf16::widen(&typed(x.bytes), &mut v);
            Cow::Owned(v)
        }
        d => return Err(KernelError::DType(d)),
    })
}

/// Widens a run of f32, f16 or bf16 bytes into `out`, which has as many elements.
pub(crate) fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    match dtype {
        DType::F32 => out.copy_from_slice(&typed::<f32>(bytes)),
        DType::F16 => typed::<f16>(bytes).convert_to_f32_slice(out),
        DType::BF16 => bf16::widen(&typed(bytes), out),
        d => return Err(KernelError::DType(d)),
    }
    Ok(())
}

/// Rounds f32 values to the storage type of `bytes`, which has as many elements.
pub(crate) fn round_to(dtype: DType, values: &[f32], bytes: &mut [u8]) -> Result<(), KernelError> {
    match dtype {
        DType::F32 => typed_mut(bytes)?.copy_from_slice(values),
        DType::F16 => typed_mut::<f16>(bytes)?.convert_from_f32_slice(values),
        DType::BF16 => bf16::narrow(values, typed_mut(bytes)?),
        d => return Err(KernelError::DType(d)),
    }
    Ok(())
}

/// Rounds values to a float storage type and back, in place.
pub(crate) fn round_through(dtype: DType, values: &mut [f32]) -> Result<(), KernelError> {
    match dtype {
        DType::F32 => {}
        DType::F16 => values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        DType::BF16 => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        d => return Err(KernelError::DType(d)),
    }
    Ok(())
}

/// Lets `compute` fill the result in f32 and rounds once to its storage type.
pub(crate) fn write_floats(
    out: &mut ViewMut<'_>,
    compute: impl FnOnce(&mut [f32]) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    match out.dtype {
        DType::F32 => compute(typed_mut(out.bytes)?),
        DType::F16 | DType::BF16 => {
            let mut v = vec![0.0; out.len()];
            compute(&mut v)?;
            round_to(out.dtype, &v, out.bytes)
        }
        d => Err(KernelError::DType(d)),
    }
}

/// Elements of an integer or boolean type.
pub(crate) fn ints<'a>(x: &View<'a>) -> Result<Cow<'a, [i64]>, KernelError> {
    Ok(match x.dtype {
        DType::I64 => typed(x.bytes),
        DType::I32 => typed::<i32>(x.bytes).iter().map(|&v| i64::from(v)).collect(),
        DType::I8 => x.bytes.iter().map(|&v| i64::from(v as i8)).collect(),
        DType::U8 => x.bytes.iter().map(|&v| i64::from(v)).collect(),
        DType::Bool => x.bytes.iter().map(|&v| i64::from(v != 0)).collect(),
        d => return Err(KernelError::DType(d)),
    })
}

/// Lets `compute` fill the result as integers, which wrap to its storage type.
pub(crate) fn write_ints(
    out: &mut ViewMut<'_>,
    compute: impl FnOnce(&mut [i64]) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    if out.dtype == DType::I64 {
        return compute(typed_mut(out.bytes)?);
    }
    if out.dtype.is_float() || !out.dtype.is_core() {
        return Err(KernelError::DType(out.dtype));
    }
    let mut v = vec![0; out.len()];
    compute(&mut v)?;
    match out.dtype {
        DType::I32 => typed_mut::<i32>(out.bytes)?.iter_mut().zip(&v).for_each(|(o, &v)| *o = v as i32),
        DType::Bool => out.bytes.iter_mut().zip(&v).for_each(|(o, &v)| *o = u8::from(v != 0)),
        _ => out.bytes.iter_mut().zip(&v).for_each(|(o, &v)| *o = v as u8),
    }
    Ok(())
}

/// Evaluates an expression with `$t` as the native type of an integer type.
macro_rules! by_integer {
    ($d:expr, $t:ident => $body:expr, _ => $other:expr) => {
        match $d {
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            _ => $other,
        }
    };
}

/// Truncates towards zero to 64 bits, of which the result takes what fits. Blocks of numbers that fit 32 bits, which nearly all
/// do, need no more: processors convert to 64 bits one by one.
fn truncate<T>(
    x: &[f32],
    out: &mut [T],
    short: impl Fn(i32) -> T + Copy + 'static,
    long: impl Fn(i64) -> T + Copy + 'static,
) {
    for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        // NaN is 0 in either form.
        let larger = |m: f32, v: f32| if v.abs() > m { v.abs() } else { m };
        let largest = fold(x, 0.0, larger, larger);
        if largest <= 4_194_304.0 {
            map(x, out, move |v| short(small_int(v.trunc())));
        } else if largest < 2_147_483_648.0 {
            map(x, out, move |v| short(v as i32));
        } else {
            map(x, out, move |v| long(v as i64));
        }
    }
}

/// Converts the element type. Floats truncate towards zero to integers and saturate; integers wrap; quantised types go to
/// and from floats.
pub(super) fn cast(x: &View<'_>, out: &mut ViewMut<'_>) -> Result<(), KernelError> {
    use DType::{BF16, Bool, F16, F32, F64, I64};
    match (x.dtype, out.dtype) {
        (a, b) if a == b => out.bytes.copy_from_slice(x.bytes),
        (a, b) if a.is_quantised() && b.is_float() => super::quantize::decode(x, out)?,
        (a, b) if a.is_float() && b.is_quantised() => super::quantize::encode(x, out)?,
        (d, _) | (_, d) if !d.is_core() => return Err(KernelError::DType(d)),
        (F16 | BF16, F32) => widen(x.dtype, x.bytes, typed_mut(out.bytes)?)?,
        (F32 | F16 | BF16, F32 | F16 | BF16) => round_to(out.dtype, &floats(x)?, out.bytes)?,
        (F32 | F16 | BF16, F64) => {
            typed_mut::<f64>(out.bytes)?.iter_mut().zip(&*floats(x)?).for_each(|(o, &v)| *o = f64::from(v));
        }
        (F64, F32) => {
            typed_mut::<f32>(out.bytes)?.iter_mut().zip(&*typed::<f64>(x.bytes)).for_each(|(o, &v)| *o = v as f32)
        }
        (F64, F16) => out
            .bytes
            .chunks_exact_mut(2)
            .zip(&*typed::<f64>(x.bytes))
            .for_each(|(o, &v)| o.copy_from_slice(&f16_from_f64(v).to_le_bytes())),
        (F64, BF16) => out
            .bytes
            .chunks_exact_mut(2)
            .zip(&*typed::<f64>(x.bytes))
            .for_each(|(o, &v)| o.copy_from_slice(&bf16_from_f64(v).to_le_bytes())),
        (F32, Bool) => map(&typed::<f32>(x.bytes), out.bytes, |v| u8::from(v != 0.0)),
        (F32, d) => {
            by_integer!(d, T => truncate(&typed::<f32>(x.bytes), typed_mut::<T>(out.bytes)?, |v| v as T, |v| v as T),
            _ => return Err(KernelError::DType(d)))
        }
        (F64 | F16 | BF16, Bool) => {
            let wide = wide(x)?;
            out.bytes.iter_mut().zip(&wide).for_each(|(o, &v)| *o = u8::from(v != 0.0));
        }
        (F64 | F16 | BF16, _) => {
            let wide = wide(x)?;
            write_ints(out, |o| {
                o.iter_mut().zip(&wide).for_each(|(o, &v)| *o = v as i64);
                Ok(())
            })?;
        }
        (Bool, F32) => map(x.bytes, typed_mut(out.bytes)?, |v| f32::from(u8::from(v != 0))),
        (Bool, I64) => map(x.bytes, typed_mut(out.bytes)?, |v| i64::from(v != 0)),
        (Bool, _) => {
            let v = ints(x)?;
            match out.dtype {
                F64 => map(&v, typed_mut(out.bytes)?, |v| v as f64),
                d if d.is_float() => write_floats(out, |o| {
                    map(&v, o, |v| v as f32);
                    Ok(())
                })?,
                _ => write_ints(out, |o| {
                    o.copy_from_slice(&v);
                    Ok(())
                })?,
            }
        }
        (a, b) => by_integer!(a, A => {
            let v = typed::<A>(x.bytes);
            match b {
                Bool => map(&v, out.bytes, |v| u8::from(v != 0)),
                F64 => map(&v, typed_mut(out.bytes)?, |v| v as f64),
                F16 | BF16 => write_floats(out, |o| {
                    map(&v, o, |v| v as f32);
                    Ok(())
                })?,
                F32 => map(&v, typed_mut(out.bytes)?, |v| v as f32),
                b => by_integer!(b, B => map(&v, typed_mut::<B>(out.bytes)?, |v| v as B),
                    _ => return Err(KernelError::DType(b))),
            }
        }, _ => return Err(KernelError::DType(a))),
    }
    Ok(())
}

/// Elements of any float type as f64.
pub(crate) fn wide(x: &View<'_>) -> Result<Vec<f64>, KernelError> {
    Ok(match x.dtype {
        DType::F64 => typed(x.bytes).into_owned(),
        _ => floats(x)?.iter().map(|&v| f64::from(v)).collect(),
    })
}
