//! Normalisation over the last axis, alone and fused with the residual sum that precedes it.
//!
//! Fused kernels round the residual sum to its storage type before they normalise it.

use std::borrow::Cow;

use super::convert::{floats, round_through, round_to, write_floats};
use super::{Env, KernelError, Result, collective, expect};
use crate::op::Op;
use crate::tensor::{View, ViewMut};

/// Weight and bias of a norm over rows of length `n`, and its epsilon.
struct Rows<'a> {
    weight: Cow<'a, [f32]>,
    /// `None`: root mean square norm. Otherwise layer norm.
    bias: Option<Cow<'a, [f32]>>,
    eps: f64,
}

impl<'a> Rows<'a> {
    /// Weight and bias, checked against the width of `x`.
    fn new(x: &View<'_>, weight: &View<'a>, bias: Option<&View<'a>>, eps: f64) -> Result<Rows<'a>> {
        parameter(x, weight)?;
        bias.map_or(Ok(()), |b| parameter(x, b))?;
        Ok(Rows { weight: floats(weight)?, bias: bias.map(floats).transpose()?, eps })
    }

    fn apply(&self, x: &[f32], out: &mut [f32]) {
        let n = self.weight.len();
        if n == 0 {
            return;
        }
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let mean = match &self.bias {
                Some(_) => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64,
                None => 0.0,
            };
            let square = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
            let scale = (1.0 / (square + self.eps).sqrt()) as f32;
            let mean = mean as f32;
            for ((o, &v), &w) in out.iter_mut().zip(x).zip(&*self.weight) {
                *o = (v - mean) * scale * w;
            }
            if let Some(bias) = &self.bias {
                out.iter_mut().zip(&**bias).for_each(|(o, &b)| *o += b);
            }
        }
    }
}

/// Checks that a parameter has one element per element of a row.
fn parameter(x: &View<'_>, p: &View<'_>) -> Result {
    match x.shape.last() {
        Some(&n) if p.len() == n && p.shape.iter().filter(|&&d| d != 1).count() <= 1 => Ok(()),
        _ => Err(KernelError::Shape(format!("a parameter {:?} for rows of {:?}", p.shape, x.shape))),
    }
}

/// (x, weight[, bias]).
pub(super) fn norm(
    x: &View<'_>,
    weight: &View<'_>,
    bias: Option<&View<'_>>,
    eps: f64,
    out: &mut ViewMut<'_>,
) -> Result {
    expect(out, x.dtype, x.shape)?;
    let rows = Rows::new(x, weight, bias, eps)?;
    let x = floats(x)?;
    write_floats(out, |o| {
        rows.apply(&x, o);
        Ok(())
    })
}

/// (x, r, weight[, bias]) to (norm(x + r), x + r).
pub(super) fn add(x: &[View<'_>], bias: Option<&View<'_>>, eps: f64, out: &mut [Option<ViewMut<'_>>]) -> Result {
    residual(floats(&x[0])?.into_owned(), &x[0], &x[1], &x[2], bias, eps, out)
}

/// (x, r, weight[, bias]) to (norm(s), s) with s = all_reduce(x) + r.
pub(super) fn all_reduce_add(
    op: &Op,
    x: &[View<'_>],
    bias: Option<&View<'_>>,
    eps: f64,
    out: &mut [Option<ViewMut<'_>>],
    env: &mut Env<'_>,
) -> Result {
    let sum = collective::sum_of_ranks(op, &x[0], env)?;
    residual(sum, &x[0], &x[1], &x[2], bias, eps, out)
}

fn residual(
    mut sum: Vec<f32>,
    x: &View<'_>,
    r: &View<'_>,
    weight: &View<'_>,
    bias: Option<&View<'_>>,
    eps: f64,
    out: &mut [Option<ViewMut<'_>>],
) -> Result {
    if x.dtype != r.dtype {
        return Err(KernelError::Mixed(x.dtype, r.dtype));
    }
    if x.shape != r.shape {
        return Err(KernelError::Shape(format!("a residual {:?} for {:?}", r.shape, x.shape)));
    }
    sum.iter_mut().zip(&*floats(r)?).for_each(|(s, &v)| *s += v);
    round_through(x.dtype, &mut sum)?;
    let [normed, total] = out else {
        return Err(KernelError::NotAStep(format!("{} results", out.len())));
    };
    if let Some(total) = total {
        expect(total, x.dtype, x.shape)?;
        round_to(total.dtype, &sum, total.bytes)?;
    }
    let Some(normed) = normed else { return Ok(()) };
    expect(normed, x.dtype, x.shape)?;
    let rows = Rows::new(x, weight, bias, eps)?;
    write_floats(normed, |o| {
        rows.apply(&sum, o);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, error, f32s, noise, run_f64, to};
    use super::super::{Env, execute};
    use super::*;
    use crate::attr::Real;
    use crate::comm::Solo;
    use crate::dim::Bindings;
    use crate::dtype::DType;
    use crate::tensor::Tensor;

    /// The definition, in f64.
    fn naive(x: &[f64], w: &[f64], b: Option<&[f64]>, eps: f64) -> Vec<f64> {
        let n = w.len();
        x.chunks(n)
            .flat_map(|row| {
                let mean = if b.is_some() { row.iter().sum::<f64>() / n as f64 } else { 0.0 };
                let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
                (0..n)
                    .map(move |i| (row[i] - mean) / (var + eps).sqrt() * w[i] + b.map_or(0.0, |b| b[i]))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn norms_follow_their_definition() {
        let (x, w, b) = (noise(&[2, 3, 8], 1), noise(&[8], 2), noise(&[8], 3));
        let eps = Real(1e-5);
        let y = run_f64(Op::RmsNorm { eps }, &[&x, &w], DType::F32, &[2, 3, 8]);
        assert_close(&y, &naive(&x.to_f64(), &w.to_f64(), None, 1e-5), 1e-6);
        let y = run_f64(Op::LayerNorm { eps }, &[&x, &w, &b], DType::F32, &[2, 3, 8]);
        assert_close(&y, &naive(&x.to_f64(), &w.to_f64(), Some(&b.to_f64()), 1e-5), 1e-6);
        let short = f32s(&[4], &[1.0; 4]);
        assert!(error(Op::RmsNorm { eps }, &[&x, &short], DType::F32, &[2, 3, 8]).contains("parameter [4]"));
    }

    #[test]
    fn fused_sums_round_before_the_norm() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (x, r, w) =
                (to(dtype, &noise(&[4, 16], 1)), to(dtype, &noise(&[4, 16], 2)), to(dtype, &noise(&[16], 3)));
            let separate = super::super::testing::run(Op::Add {}, &[&x, &r], dtype, &[4, 16]).unwrap();
            let want = run_f64(Op::RmsNorm { eps: Real(1e-6) }, &[&separate, &w], dtype, &[4, 16]);
            for op in [
                Op::AddRmsNorm { eps: Real(1e-6) },
                Op::ArResidualRmsNorm { axis: crate::attr::MeshAxis::Tp, eps: Real(1e-6) },
            ] {
                let mut y = Tensor::zeros(dtype, &[4, 16]).unwrap();
                let mut s = Tensor::zeros(dtype, &[4, 16]).unwrap();
                let bindings = Bindings::new();
                let mut env = Env { bindings: &bindings, threads: 1, comm: &mut Solo };
                let views = [x.view(), r.view(), w.view()];
                execute(&op, &views, &mut [Some(y.view_mut()), Some(s.view_mut())], &mut env).unwrap();
                assert_eq!(s, separate);
                assert_eq!(y.to_f64(), want);
                execute(&op, &views, &mut [Some(y.view_mut()), None], &mut env).unwrap();
                assert_eq!(y.to_f64(), want);
            }
        }
    }
}
