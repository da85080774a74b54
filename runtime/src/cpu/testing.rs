//! Helpers of the kernels' tests.

use super::{Env, KernelError, execute};
use crate::comm::Solo;
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::{Tensor, View};

pub(super) fn f32s(shape: &[usize], v: &[f32]) -> Tensor {
    Tensor::from_f32(shape, v).unwrap()
}

pub(super) fn i64s(shape: &[usize], v: &[i64]) -> Tensor {
    Tensor::from_i64(shape, v).unwrap()
}

pub(super) fn bools(shape: &[usize], v: &[bool]) -> Tensor {
    let bytes: Vec<u8> = v.iter().map(|&b| b.into()).collect();
    Tensor::from_bytes(DType::Bool, shape, &bytes).unwrap()
}

/// Reproducible values in -1..1.
pub(super) fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let v: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    f32s(shape, &v)
}

/// The same values in another element type.
pub(super) fn to(dtype: DType, x: &Tensor) -> Tensor {
    run(Op::Cast { to: dtype }, &[x], dtype, &x.shape).unwrap()
}

/// Runs an operator with one result on a single rank.
pub(super) fn run(op: Op, inputs: &[&Tensor], dtype: DType, shape: &[usize]) -> Result<Tensor, KernelError> {
    let mut out = Tensor::zeros(dtype, shape).unwrap();
    let views: Vec<View<'_>> = inputs.iter().map(|t| t.view()).collect();
    let bindings = Bindings::from([("n".to_owned(), 3)]);
    let mut env = Env { bindings: &bindings, threads: 2, comm: &mut Solo };
    execute(&op, &views, &mut [Some(out.view_mut())], &mut env)?;
    Ok(out)
}

pub(super) fn run_f64(op: Op, inputs: &[&Tensor], dtype: DType, shape: &[usize]) -> Vec<f64> {
    run(op, inputs, dtype, shape).unwrap().to_f64()
}

pub(super) fn error(op: Op, inputs: &[&Tensor], dtype: DType, shape: &[usize]) -> String {
    run(op, inputs, dtype, shape).unwrap_err().to_string()
}

pub(super) fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "element {i}: {g} instead of {w}");
    }
}
