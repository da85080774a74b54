//! Weights of few bits.

use super::convert::{floats, write_floats};
use super::{KernelError, Result, expect};
use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// (packed, scale[, zero]): numbers of `bits` bits as (number - zero) * scale.
pub(super) fn dequantize(x: &[View<'_>], bits: i64, out: &mut ViewMut<'_>) -> Result {
    let (packed, scale) = (&x[0], &x[1]);
    let misfit = || KernelError::Shape(format!("{:?} of {bits} bits with scales {:?}", packed.shape, scale.shape));
    let (Some((&bytes, lead)), Some((&runs, scale_lead))) = (packed.shape.split_last(), scale.shape.split_last())
    else {
        return Err(misfit());
    };
    if !matches!(bits, 1 | 2 | 4 | 8) || lead != scale_lead || runs == 0 {
        return Err(misfit());
    }
    if packed.dtype != DType::U8 {
        return Err(KernelError::DType(packed.dtype));
    }
    let width = bytes * (8 / bits as usize);
    if !width.is_multiple_of(runs) {
        return Err(misfit());
    }
    expect(out, scale.dtype, &[lead, &[width]].concat())?;
    let zero: Option<Vec<f32>> = match x.get(2) {
        None => None,
        Some(z) if z.shape != scale.shape => return Err(misfit()),
        Some(z) if z.dtype == DType::U8 => Some(z.bytes.iter().map(|&v| f32::from(v)).collect()),
        Some(z) => Some(floats(z)?.into_owned()),
    };
    let middle = f32::from(1u8 << (bits - 1));
    let scale = floats(scale)?;
    let zero = zero.unwrap_or_else(|| vec![middle; scale.len()]);
    write_floats(out, |o| {
        unpack(packed.bytes, bits, &scale, &zero, o);
        Ok(())
    })
}

/// Numbers of `bits` bits, the lowest bits of a byte first, in equal runs of one scale and one zero point.
pub(super) fn unpack(packed: &[u8], bits: i64, scale: &[f32], zero: &[f32], out: &mut [f32]) {
    let per_byte = 8 / bits as usize;
    let mask = u8::MAX >> (8 - bits);
    let run = out.len() / scale.len().max(1);
    if run == 0 {
        return;
    }
    for (r, values) in out.chunks_exact_mut(run).enumerate() {
        // Rows are whole bytes, so that positions count through the tensor.
        for (i, v) in values.iter_mut().enumerate() {
            let at = r * run + i;
            let number = packed[at / per_byte] >> (at % per_byte * bits as usize) & mask;
            *v = (f32::from(number) - zero[r]) * scale[r];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{error, f32s, run_f64};
    use crate::dtype::DType;
    use crate::op::Op;
    use crate::tensor::Tensor;

    #[test]
    fn low_bits_come_first() {
        let packed = Tensor::from_bytes(DType::U8, &[2, 2], &[0x21, 0x43, 0x8f, 0x70]).unwrap();
        let scale = f32s(&[2, 2], &[1., 2., 0.5, 4.]);
        let y = run_f64(Op::Dequantize { bits: 4 }, &[&packed, &scale], DType::F32, &[2, 4]);
        assert_eq!(y, [-7., -6., -10., -8., 3.5, 0., -32., -4.]);
        let zero = Tensor::from_bytes(DType::U8, &[2, 2], &[1, 3, 15, 0]).unwrap();
        let y = run_f64(Op::Dequantize { bits: 4 }, &[&packed, &scale, &zero], DType::F32, &[2, 4]);
        assert_eq!(y, [0., 1., 0., 2., 0., -3.5, 0., 28.]);
        let zero = f32s(&[2, 2], &[0.5, 0., 0., 0.]);
        let y = run_f64(Op::Dequantize { bits: 8 }, &[&packed, &scale, &zero], DType::F32, &[2, 2]);
        assert_eq!(y, [32.5, 134., 71.5, 448.]);
        let y = run_f64(Op::Dequantize { bits: 2 }, &[&packed, &f32s(&[2, 1], &[1., 1.])], DType::F32, &[2, 8]);
        assert_eq!(y[..8], [-1., -2., 0., -2., 1., -2., -2., -1.]);
        let e = error(Op::Dequantize { bits: 4 }, &[&packed, &f32s(&[2, 3], &[0.; 6])], DType::F32, &[2, 4]);
        assert!(e.contains("scales [2, 3]"), "{e}");
    }
}
