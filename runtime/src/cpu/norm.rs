//! Normalisation over the last axis, alone and fused with the residual sum before it and the quantisation behind it.
//!
//! Fused kernels round the residual sum to its storage type before they normalise it, and the norm before they quantise it.

use std::borrow::Cow;

use super::convert::{floats, round_through, round_to, write_floats};
use super::{Env, KernelError, Result, collective, expect, quantize, simd};
use crate::dtype::DType;
use crate::norm::{Kind, Norm, Quant, Sum};
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

    fn apply(&self, x: &[f32], out: &mut [f32], threads: usize) {
        let n = self.weight.len();
        if n == 0 {
            return;
        }
        let size = n * (simd::BLOCK / n).max(1);
        simd::parts(&mut out[..x.len() / n * n], size, threads, |at, out| {
            for (x, out) in x[at..].chunks_exact(n).zip(out.chunks_exact_mut(n)) {
                self.row(x, out);
            }
        });
    }

    fn row(&self, x: &[f32], out: &mut [f32]) {
        let n = x.len() as f64;
        let mean = self.bias.as_ref().map_or(0.0, |_| simd::sum(x) / n);
        let square = simd::squares(x, mean) / n;
        let scale = (1.0 / (square + self.eps).sqrt()) as f32;
        let (mean, weight) = (mean as f32, &*self.weight);
        match &self.bias {
            None => simd::vectorised(
                #[inline(always)]
                move || {
                    for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
                        *o = (v - mean) * scale * w;
                    }
                },
            ),
            Some(bias) => simd::vectorised(
                #[inline(always)]
                move || {
                    for (((o, &v), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(&**bias) {
                        *o = (v - mean) * scale * w + b;
                    }
                },
            ),
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

/// Any norm: sums, normalises and quantises. A result that is `None` is not computed.
pub(super) fn norm(op: &Op, n: &Norm, x: &[View<'_>], out: &mut [Option<ViewMut<'_>>], env: &mut Env<'_>) -> Result {
    let (first, parameters) = (&x[0], &x[n.summands()..]);
    let mut out = out;
    let values = match n.sum {
        Sum::None => floats(first)?,
        Sum::Local => Cow::Owned(residual(floats(first)?.into_owned(), first, &x[1])?),
        Sum::AllReduce(_) => Cow::Owned(residual(collective::sum_of_ranks(op, first, env)?, first, &x[1])?),
    };
    if n.sum != Sum::None {
        let Some((total, others)) = out.split_last_mut() else {
            return Err(KernelError::NotAStep("no results".to_owned()));
        };
        if let Some(total) = total {
            expect(total, first.dtype, first.shape)?;
            round_to(total.dtype, &values, total.bytes)?;
        }
        out = others;
    }
    let Some((normed, quantised)) = out.split_first_mut() else {
        return Err(KernelError::NotAStep("no results".to_owned()));
    };
    if normed.is_none() && quantised.iter().all(Option::is_none) {
        return Ok(());
    }
    normed.as_ref().map_or(Ok(()), |o| expect(o, first.dtype, first.shape))?;
    let bias = (n.kind == Kind::Layer).then(|| &parameters[1]);
    let rows = Rows::new(first, &parameters[0], bias, n.eps.0)?;
    if let (Quant::None, Some(normed)) = (n.quant, &mut *normed) {
        return write_floats(normed, |o| {
            rows.apply(&values, o, env.threads);
            Ok(())
        });
    }
    let mut rounded = vec![0.0; values.len()];
    rows.apply(&values, &mut rounded, env.threads);
    round_through(first.dtype, &mut rounded)?;
    if let Some(normed) = normed {
        round_to(normed.dtype, &rounded, normed.bytes)?;
    }
    quantise(n, &rounded, first.shape, n.scale().map(|i| &x[i]), quantised)
}

/// The quantised form of a norm, which is rounded already.
fn quantise(
    n: &Norm,
    normed: &[f32],
    shape: &[usize],
    scale: Option<&View<'_>>,
    out: &mut [Option<ViewMut<'_>>],
) -> Result {
    let width = shape.last().copied().unwrap_or(0).max(1);
    match (n.quant, scale, out) {
        (Quant::Fp8, Some(scale), [q]) => {
            let Some(q) = q else { return Ok(()) };
            expect(q, DType::F8E4M3FN, shape)?;
            let step = quantize::single(scale)?;
            q.bytes.iter_mut().zip(normed).for_each(|(o, &v)| *o = quantize::fp8(v, step, scale.dtype));
            Ok(())
        }
        (Quant::Fp8Token { floor }, None, [q, scales]) => {
            q.as_ref().map_or(Ok(()), |q| expect(q, DType::F8E4M3FN, shape))?;
            let mut per_row = shape.to_vec();
            per_row.iter_mut().rev().take(1).for_each(|d| *d = 1);
            let steps: Vec<f32> =
                normed.chunks_exact(width).map(|row| quantize::fp8_scale(row, floor.0 as f32)).collect();
            if let Some(scales) = scales {
                expect(scales, DType::F32, &per_row)?;
                round_to(DType::F32, &steps, scales.bytes)?;
            }
            let Some(q) = q else { return Ok(()) };
            let rows = q.bytes.chunks_exact_mut(width).zip(normed.chunks_exact(width)).zip(&steps);
            for ((o, row), &step) in rows {
                o.iter_mut().zip(row).for_each(|(o, &v)| *o = quantize::fp8(v, step, DType::F32));
            }
            Ok(())
        }
        (Quant::Nvfp4, Some(scale), out) => quantize::quantize_nvfp4(normed, shape, quantize::single_f32(scale)?, out),
        (_, _, out) => Err(KernelError::NotAStep(format!("{} quantised results", out.len()))),
    }
}

/// The sum with the residual, rounded as it is stored.
fn residual(mut sum: Vec<f32>, x: &View<'_>, r: &View<'_>) -> Result<Vec<f32>> {
    if x.dtype != r.dtype {
        return Err(KernelError::Mixed(x.dtype, r.dtype));
    }
    if x.shape != r.shape {
        return Err(KernelError::Shape(format!("a residual {:?} for {:?}", r.shape, x.shape)));
    }
    sum.iter_mut().zip(&*floats(r)?).for_each(|(s, &v)| *s += v);
    round_through(x.dtype, &mut sum)?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, error, f32s, noise, run_f64, to};
    use super::super::{Env, execute};
    use super::*;
    use crate::attr::Real;
    use crate::comm::Solo;
    use crate::dim::Bindings;
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

    /// What the separate operators give.
    fn separately(op: Op, x: &[&Tensor], out: &[(DType, &[usize])]) -> Vec<Tensor> {
        let mut tensors: Vec<Tensor> = out.iter().map(|(d, s)| Tensor::zeros(*d, s).unwrap()).collect();
        let bindings = Bindings::new();
        let mut env = Env { bindings: &bindings, threads: 1, comm: &mut Solo };
        let views: Vec<View<'_>> = x.iter().map(|t| t.view()).collect();
        let mut results: Vec<_> = tensors.iter_mut().map(|t| Some(t.view_mut())).collect();
        execute(&op, &views, &mut results, &mut env).unwrap();
        tensors
    }

    #[test]
    fn quantised_norms_are_those_of_the_separate_operators() {
        let (shape, eps) = ([3usize, 32], Real(1e-5));
        for (dtype, op) in [DType::F32, DType::F16, DType::BF16]
            .into_iter()
            .flat_map(|d| crate::op::instances().into_iter().map(move |op| (d, op)))
        {
            let Some(n) = op.norm().filter(|n| n.quant != Quant::None) else { continue };
            let floor = Real(1e-3);
            let attrs: Vec<crate::attr::Attr> = op
                .info()
                .attrs
                .iter()
                .map(|a| match a.name {
                    "eps" => crate::attr::Attr::Real(eps),
                    "floor" => crate::attr::Attr::Real(floor),
                    _ => crate::attr::Attr::Axis(crate::attr::MeshAxis::Tp),
                })
                .collect();
            let op = Op::from_attrs(op.name(), &attrs).unwrap();
            let (x, r) = (to(dtype, &noise(&shape, 1)), to(dtype, &noise(&shape, 2)));
            let (w, b, scale) = (noise(&[32], 3), noise(&[32], 4), f32s(&[], &[0.01]));
            let sum = match n.sum {
                Sum::None => x.clone(),
                _ => separately(Op::Add {}, &[&x, &r], &[(dtype, &shape)]).remove(0),
            };
            let mut read = vec![&sum, &w];
            read.extend((n.kind == Kind::Layer).then_some(&b));
            let plain = if n.kind == Kind::Layer { Op::LayerNorm { eps } } else { Op::RmsNorm { eps } };
            let normed = separately(plain, &read, &[(dtype, &shape)]).remove(0);
            let mut want = vec![normed.clone()];
            match n.quant {
                Quant::Fp8 => {
                    want.extend(separately(Op::QuantizeFp8 {}, &[&normed, &scale], &[(DType::F8E4M3FN, &shape)]))
                }
                Quant::Fp8Token { .. } => {
                    let t = separately(Op::Fp8Scale { floor }, &[&normed], &[(DType::F32, &[3, 1])]).remove(0);
                    want.extend(separately(Op::QuantizeFp8 {}, &[&normed, &t], &[(DType::F8E4M3FN, &shape)]));
                    want.push(t);
                }
                _ => want.extend(separately(
                    Op::QuantizeNvfp4 {},
                    &[&normed, &scale],
                    &[(DType::U8, &[3, 16]), (DType::F8E4M3FN, &[512])],
                )),
            }
            want.extend((n.sum != Sum::None).then(|| sum.clone()));
            let mut operands = vec![&x];
            operands.extend((n.sum != Sum::None).then_some(&r));
            operands.extend(&read[1..]);
            operands.extend(n.scale().map(|_| &scale));
            let types: Vec<(DType, &[usize])> = want.iter().map(|t| (t.dtype, &t.shape[..])).collect();
            assert_eq!(separately(op.clone(), &operands, &types), want, "{op} of {dtype}");
            // Each result alone.
            for (i, (d, s)) in types.iter().enumerate() {
                let mut one = Tensor::zeros(*d, s).unwrap();
                let bindings = Bindings::new();
                let mut env = Env { bindings: &bindings, threads: 1, comm: &mut Solo };
                let views: Vec<View<'_>> = operands.iter().map(|t| t.view()).collect();
                let mut results: Vec<Option<ViewMut<'_>>> = types.iter().map(|_| None).collect();
                results[i] = Some(one.view_mut());
                execute(&op, &views, &mut results, &mut env).unwrap();
                assert_eq!(one, want[i], "result {i} of {op}");
            }
        }
    }
}
