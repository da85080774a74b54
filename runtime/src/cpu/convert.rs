//! Reads storage types into the types that kernels compute in, and rounds results back.

use std::borrow::Cow;

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::KernelError;
use crate::dtype::{DType, bf16_from_f64, f16_from_f64};
use crate::tensor::{View, ViewMut};

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
            widen_bf16(&typed(x.bytes), &mut v);
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
        DType::BF16 => widen_bf16(&typed(bytes), out),
        d => return Err(KernelError::DType(d)),
    }
    Ok(())
}

fn widen_bf16(x: &[bf16], out: &mut [f32]) {
    for (o, v) in out.iter_mut().zip(x) {
        *o = f32::from_bits(u32::from(v.to_bits()) << 16);
    }
}

/// Rounds f32 values to the storage type of `bytes`, which has as many elements.
pub(crate) fn round_to(dtype: DType, values: &[f32], bytes: &mut [u8]) -> Result<(), KernelError> {
    match dtype {
        DType::F32 => typed_mut(bytes)?.copy_from_slice(values),
        DType::F16 => typed_mut::<f16>(bytes)?.convert_from_f32_slice(values),
        DType::BF16 => typed_mut::<bf16>(bytes)?.convert_from_f32_slice(values),
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

/// Converts the element type. Floats truncate towards zero to integers and saturate; integers wrap; quantised types go to
/// and from floats.
pub(super) fn cast(x: &View<'_>, out: &mut ViewMut<'_>) -> Result<(), KernelError> {
    use DType::{BF16, Bool, F16, F32, F64};
    match (x.dtype, out.dtype) {
        (a, b) if a == b => out.bytes.copy_from_slice(x.bytes),
        (a, b) if a.is_quantised() && b.is_float() => super::quantize::decode(x, out)?,
        (a, b) if a.is_float() && b.is_quantised() => super::quantize::encode(x, out)?,
        (d, _) | (_, d) if !d.is_core() => return Err(KernelError::DType(d)),
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
        (F64 | F32 | F16 | BF16, Bool) => {
            let wide = wide(x)?;
            out.bytes.iter_mut().zip(&wide).for_each(|(o, &v)| *o = u8::from(v != 0.0));
        }
        (F64 | F32 | F16 | BF16, _) => {
            let wide = wide(x)?;
            write_ints(out, |o| {
                o.iter_mut().zip(&wide).for_each(|(o, &v)| *o = v as i64);
                Ok(())
            })?;
        }
        (_, F64) => typed_mut::<f64>(out.bytes)?.iter_mut().zip(&*ints(x)?).for_each(|(o, &v)| *o = v as f64),
        (_, F32 | F16 | BF16) => {
            let v = ints(x)?;
            write_floats(out, |o| {
                o.iter_mut().zip(&*v).for_each(|(o, &v)| *o = v as f32);
                Ok(())
            })?;
        }
        _ => {
            let v = ints(x)?;
            write_ints(out, |o| {
                o.copy_from_slice(&v);
                Ok(())
            })?;
        }
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
