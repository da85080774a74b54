//! Attention and rotary embedding.

use gemm::Parallelism;
use rayon::prelude::*;

use super::convert::{floats, write_floats};
use super::matmul::{Matrix, product};
use super::reduce::softmax_row;
use super::walk::Walk;
use super::{KernelError, Result, expect};
use crate::attr::Safe;
use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// How scores are made from products.
pub(super) struct Scores {
    pub(super) scale: f32,
    pub(super) causal: bool,
    /// 0 for none.
    pub(super) softcap: f32,
    pub(super) safe: Safe,
}

/// What is added to the scores, with its steps per axis of [batch, heads, queries, keys].
enum Mask<'a> {
    None,
    Keep(&'a [u8], [usize; 4]),
    Add(std::borrow::Cow<'a, [f32]>, [usize; 4]),
}

impl Mask<'_> {
    fn of<'a>(mask: Option<&View<'a>>, shape: [usize; 4]) -> Result<Mask<'a>> {
        let Some(mask) = mask else { return Ok(Mask::None) };
        let misfit = || KernelError::Shape(format!("a mask {:?} for scores {shape:?}", mask.shape));
        let lead = 4usize.checked_sub(mask.shape.len()).ok_or_else(misfit)?;
        let (mut steps, mut step) = ([0; 4], 1);
        for (i, &d) in mask.shape.iter().enumerate().rev() {
            if d == shape[lead + i] {
                steps[lead + i] = if d == 1 { 0 } else { step };
            } else if d != 1 {
                return Err(misfit());
            }
            step *= d;
        }
        Ok(match mask.dtype {
            DType::Bool => Mask::Keep(mask.bytes, steps),
            _ => Mask::Add(floats(mask)?, steps),
        })
    }

    fn apply(&self, [b, h, i]: [usize; 3], row: &mut [f32]) {
        let start = |s: &[usize; 4]| b * s[0] + h * s[1] + i * s[2];
        match self {
            Mask::None => {}
            Mask::Keep(keep, s) => {
                for (j, v) in row.iter_mut().enumerate() {
                    if keep[start(s) + j * s[3]] == 0 {
                        *v = f32::NEG_INFINITY;
                    }
                }
            }
            Mask::Add(add, s) => row.iter_mut().enumerate().for_each(|(j, v)| *v += add[start(s) + j * s[3]]),
        }
    }
}

/// Soft-max of a row beside one more score, which takes its share and gives nothing.
fn softmax_with_sink(row: &mut [f32], sink: f32, safe: Safe) {
    let max = row.iter().copied().fold(sink, f32::max);
    let mut sum = (sink - max).exp();
    for v in row.iter_mut() {
        *v = (*v - max).exp();
        sum += *v;
    }
    if safe == Safe::Always && sum.is_nan() {
        row.fill(0.0);
        return;
    }
    row.iter_mut().for_each(|v| *v /= sum);
}

/// Queries for which scores are held at a time.
const BLOCK: usize = 64;

/// (q, k, v[, mask]) as [batch, heads, tokens, width]. Query head h reads key head h / (heads / key heads).
pub(super) fn attention(x: &[View<'_>], how: &Scores, out: &mut ViewMut<'_>, threads: usize) -> Result {
    let (q, k, v) = (&x[0], &x[1], &x[2]);
    let misfit = || KernelError::Shape(format!("queries {:?}, keys {:?}, values {:?}", q.shape, k.shape, v.shape));
    let (&[b, hq, s, d], &[bk, hk, t, dk], &[bv, hv, tv, dv]) = (q.shape, k.shape, v.shape) else {
        return Err(misfit());
    };
    if (bk, bv, hv, tv, dk) != (b, b, hk, t, d) || hk == 0 || hq % hk != 0 {
        return Err(misfit());
    }
    if k.dtype != q.dtype || v.dtype != q.dtype {
        return Err(KernelError::Mixed(q.dtype, if k.dtype == q.dtype { v.dtype } else { k.dtype }));
    }
    expect(out, q.dtype, &[b, hq, s, dv])?;
    let mask = Mask::of(x.get(3), [b, hq, s, t])?;
    // One more score per query, as if there were one more key.
    let sink = match x.get(4) {
        Some(sink) if sink.dtype.is_float() => Mask::of(Some(sink), [b, hq, s, 1])?,
        Some(sink) => return Err(KernelError::DType(sink.dtype)),
        None => Mask::None,
    };
    let (q, k, v) = (floats(q)?, floats(k)?, floats(v)?);
    let per_head = |index: usize, out: &mut [f32]| -> Result {
        let (bi, h) = (index / hq, index % hq);
        let kv = bi * hk + h / (hq / hk);
        let q = &q[index * s * d..(index + 1) * s * d];
        let k = Matrix::rows(&k[kv * t * d..(kv + 1) * t * d], t, d).t();
        let v = Matrix::rows(&v[kv * t * dv..(kv + 1) * t * dv], t, dv);
        let mut scores = vec![0.0f32; BLOCK.min(s) * t];
        for first in (0..s).step_by(BLOCK) {
            let n = BLOCK.min(s - first);
            let scores = &mut scores[..n * t];
            let rows = Matrix::rows(&q[first * d..(first + n) * d], n, d);
            product(rows, k, scores, t, (0.0, how.scale), Parallelism::None)?;
            for i in 0..n {
                let row = &mut scores[i * t..(i + 1) * t];
                if how.softcap != 0.0 {
                    row.iter_mut().for_each(|v| *v = how.softcap * (*v / how.softcap).tanh());
                }
                mask.apply([bi, h, first + i], row);
                if how.causal {
                    // The last query sees every key; keys before the first query are a cache.
                    let seen = (first + i + 1 + t).saturating_sub(s).min(t);
                    row[seen..].fill(f32::NEG_INFINITY);
                }
                match sink {
                    Mask::None => softmax_row(row, how.safe),
                    _ => {
                        let mut one = [0.0];
                        sink.apply([bi, h, first + i], &mut one);
                        softmax_with_sink(row, one[0], how.safe);
                    }
                }
            }
            let weights = Matrix::rows(&*scores, n, t);
            product(weights, v, &mut out[first * dv..(first + n) * dv], dv, (0.0, 1.0), Parallelism::None)?;
        }
        Ok(())
    };
    write_floats(out, |o| {
        let n = s * dv;
        if o.is_empty() {
            return Ok(());
        }
        if threads > 1 {
            o.par_chunks_exact_mut(n).enumerate().try_for_each(|(i, o)| per_head(i, o))
        } else {
            o.chunks_exact_mut(n).enumerate().try_for_each(|(i, o)| per_head(i, o))
        }
    })
}

/// (x, cos, sin): rotates pairs of the last axis; cos and sin have half its extent and broadcast.
pub(super) fn rotary(x: &View<'_>, cos: &View<'_>, sin: &View<'_>, interleaved: bool, out: &mut ViewMut<'_>) -> Result {
    expect(out, x.dtype, x.shape)?;
    let misfit = || KernelError::Shape(format!("rotary of {:?} by {:?} and {:?}", x.shape, cos.shape, sin.shape));
    let (&width, lead) = x.shape.split_last().ok_or_else(misfit)?;
    if width % 2 != 0 {
        return Err(misfit());
    }
    let half = width / 2;
    let pairs = [lead, &[half]].concat();
    let walk = Walk::broadcast(&pairs, [cos.shape, sin.shape])?;
    let (x, c, s) = (floats(x)?, floats(cos)?, floats(sin)?);
    write_floats(out, |o| {
        walk.rows(|start, [ic, is], n, [sc, ss]| {
            for i in 0..n {
                let (c, s) = (c[ic + i * sc as usize], s[is + i * ss as usize]);
                let (row, j) = ((start + i) / half * width, (start + i) % half);
                let (lo, hi) = if interleaved { (row + 2 * j, row + 2 * j + 1) } else { (row + j, row + j + half) };
                o[lo] = x[lo] * c - x[hi] * s;
                o[hi] = x[hi] * c + x[lo] * s;
            }
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, bools, error, f32s, noise, run_f64, to};
    use super::*;
    use crate::attr::Real;
    use crate::op::Op;
    use crate::tensor::Tensor;

    fn op(causal: bool, softcap: f64, safe: Safe) -> Op {
        Op::Attention { scale: Real(0.5), causal, softcap: Real(softcap), safe }
    }

    /// Attention by its definition, in f64; `bias` is indexed by [query, key].
    fn naive(q: &Tensor, k: &Tensor, v: &Tensor, bias: &dyn Fn(usize, usize) -> f64, softcap: f64) -> Vec<f64> {
        let ([b, hq, s, d], [_, hk, t, dv]) = (dims(q), dims(v));
        let (q, k, v) = (q.to_f64(), k.to_f64(), v.to_f64());
        let mut out = vec![];
        for (bh, i) in (0..b * hq).flat_map(|bh| (0..s).map(move |i| (bh, i))) {
            let kv = bh / hq * hk + bh % hq / (hq / hk);
            let scores: Vec<f64> = (0..t)
                .map(|j| {
                    let x: f64 = 0.5 * (0..d).map(|l| q[(bh * s + i) * d + l] * k[(kv * t + j) * d + l]).sum::<f64>();
                    (if softcap == 0.0 { x } else { softcap * (x / softcap).tanh() }) + bias(i, j)
                })
                .collect();
            let sum: f64 = scores.iter().map(|x| x.exp()).sum();
            out.extend((0..dv).map(|l| (0..t).map(|j| scores[j].exp() / sum * v[(kv * t + j) * dv + l]).sum::<f64>()));
        }
        out
    }

    fn dims(t: &Tensor) -> [usize; 4] {
        t.shape.clone().try_into().unwrap()
    }

    #[test]
    fn follows_the_definition_with_grouped_heads() {
        // More queries than one block, and fewer than the keys.
        let (q, k, v) = (noise(&[2, 4, 70, 8], 1), noise(&[2, 2, 75, 8], 2), noise(&[2, 2, 75, 6], 3));
        let shape = [2, 4, 70, 6];
        let plain = run_f64(op(false, 0.0, Safe::No), &[&q, &k, &v], DType::F32, &shape);
        assert_close(&plain, &naive(&q, &k, &v, &|_, _| 0.0, 0.0), 1e-5);
        let below = |i: usize, j: usize| if j <= i + 5 { 0.0 } else { f64::NEG_INFINITY };
        let causal = run_f64(op(true, 2.0, Safe::No), &[&q, &k, &v], DType::F32, &shape);
        assert_close(&causal, &naive(&q, &k, &v, &below, 2.0), 1e-5);
        // The same through a boolean and a float mask.
        let keep: Vec<bool> = (0..70 * 75).map(|n| n % 75 <= n / 75 + 5).collect();
        let masked = run_f64(op(false, 2.0, Safe::No), &[&q, &k, &v, &bools(&[70, 75], &keep)], DType::F32, &shape);
        assert_eq!(masked, causal);
        let add: Vec<f32> = keep.iter().map(|&k| if k { 0.0 } else { f32::NEG_INFINITY }).collect();
        let added = run_f64(op(false, 2.0, Safe::No), &[&q, &k, &v, &f32s(&[1, 1, 70, 75], &add)], DType::F32, &shape);
        assert_eq!(added, causal);
        let half = [&q, &k, &v].map(|x| to(DType::BF16, x));
        let got = run_f64(op(true, 2.0, Safe::No), &[&half[0], &half[1], &half[2]], DType::BF16, &shape);
        assert_close(&got, &naive(&half[0], &half[1], &half[2], &below, 2.0), 1e-2);
    }

    #[test]
    fn hidden_rows_are_zero_or_nan() {
        let x = noise(&[1, 1, 2, 4], 1);
        let mask = bools(&[1, 1, 2, 2], &[false, false, true, true]);
        let y = run_f64(op(false, 0.0, Safe::Masked), &[&x, &x, &x, &mask], DType::F32, &[1, 1, 2, 4]);
        assert_eq!(y[..4], [0.0; 4]);
        let y = run_f64(op(false, 0.0, Safe::No), &[&x, &x, &x, &mask], DType::F32, &[1, 1, 2, 4]);
        assert!(y[0].is_nan() && !y[4].is_nan());
        let e = error(op(false, 0.0, Safe::No), &[&x, &x, &noise(&[1, 1, 3, 4], 2)], DType::F32, &[1, 1, 2, 4]);
        assert!(e.contains("values [1, 1, 3, 4]"), "{e}");
        let e = error(op(false, 0.0, Safe::No), &[&x, &x, &x, &bools(&[3], &[true; 3])], DType::F32, &[1, 1, 2, 4]);
        assert!(e.contains("a mask [3]"), "{e}");
    }

    #[test]
    fn rotates_both_layouts() {
        let x = f32s(&[1, 4], &[1., 2., 3., 4.]);
        let (c, s) = (f32s(&[2], &[0.5, 0.25]), f32s(&[2], &[2., 3.]));
        let y = run_f64(Op::Rotary { interleaved: false }, &[&x, &c, &s], DType::F32, &[1, 4]);
        assert_eq!(y, [0.5 - 6., 0.5 - 12., 1.5 + 2., 1. + 6.]);
        let y = run_f64(Op::Rotary { interleaved: true }, &[&x, &c, &s], DType::F32, &[1, 4]);
        assert_eq!(y, [0.5 - 4., 1. + 2., 0.75 - 12., 1. + 9.]);
        // [batch, heads, tokens, width] by [batch, 1, tokens, half].
        let x = noise(&[2, 3, 5, 4], 1);
        let (c, s) = (noise(&[2, 1, 5, 2], 2), noise(&[2, 1, 5, 2], 3));
        let y = run_f64(Op::Rotary { interleaved: false }, &[&x, &c, &s], DType::F32, &[2, 3, 5, 4]);
        let (xv, cv, sv) = (x.to_f64(), c.to_f64(), s.to_f64());
        for (i, got) in y.iter().enumerate() {
            let (row, j) = (i / 4, i % 4);
            let trig = (row / 15 * 5 + row % 5) * 2 + j % 2;
            let other = if j < 2 { -xv[i + 2] } else { xv[i - 2] };
            assert!((got - (xv[i] * cv[trig] + other * sv[trig])).abs() < 1e-6);
        }
        assert!(
            error(Op::Rotary { interleaved: false }, &[&f32s(&[3], &[0.; 3]), &c, &s], DType::F32, &[3])
                .contains("rotary")
        );
    }
}
