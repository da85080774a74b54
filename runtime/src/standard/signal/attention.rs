//! Attention with a running state, causal convolutions with one, and attention whose scores a body may change.

use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::elem::dtype_of_code;
use crate::standard::infer::required;
use crate::standard::tensor::{Numbers, carried, dims, multiply};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, floats, from_floats};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// Heads of queries, and of keys and values.
fn heads(c: &Call) -> Result<(usize, usize)> {
    let one = |name: &str| -> Result<usize> {
        let n = c.required_int(name)?;
        usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(|| StandardError::new(format!("`{name}` is {n}")))
    };
    let (q, kv) = (one("q_num_heads")?, one("kv_num_heads")?);
    if q % kv != 0 {
        return Err(StandardError::new(format!("{q} heads of queries are no multiple of {kv} heads of keys")));
    }
    Ok((q, kv))
}

/// How the state changes: whether it decays, and whether what it holds of a key is taken off before.
fn update_rule(c: &Call) -> Result<(bool, bool)> {
    Ok(match c.text("update_rule").unwrap_or("gated_delta") {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        r => {
            return Err(StandardError::new(format!(
                "`update_rule` is `{r}`; there are linear, gated, delta and gated_delta"
            )));
        }
    })
}

pub(super) fn linear_attention(c: &Call, x: &Args<'_>) -> Results {
    let (q, k, v) = (x.tensor(0)?, x.tensor(1)?, x.tensor(2)?);
    let (hq, hk) = heads(c)?;
    let (gated, delta) = update_rule(c)?;
    let misfit =
        |what: &str| StandardError::new(format!("{what} does not fit {:?}, {:?} and {:?}", q.shape, k.shape, v.shape));
    let (&[b, t, wq], &[bk, tk, wk], &[bv, tv, wv]) = (q.shape, k.shape, v.shape) else { return Err(misfit("a rank")) };
    if (bk, tk, bv, tv) != (b, t, b, t) || wq % hq != 0 || wk != wq / hq * hk || wv % hk != 0 {
        return Err(misfit("an extent"));
    }
    let (dk, dv, group) = (wq / hq, wv / hk, hq / hk);
    let (decay, beta) = (x.optional(4)?, x.optional(5)?);
    if decay.is_some() != gated || beta.is_some() != delta {
        return Err(StandardError::new("the decay or beta does not go with `update_rule`"));
    }
    let last = |v: &Option<crate::tensor::View<'_>>| v.and_then(|v| v.shape.last().copied()).unwrap_or(0);
    let (decay_width, beta_width) = (last(&decay), last(&beta));
    let wrong = |v: &Option<crate::tensor::View<'_>>, w: usize| v.is_some_and(|v| v.shape != [b, t, w]);
    if gated && (decay_width != hk && decay_width != hk * dk || wrong(&decay, decay_width)) {
        return Err(misfit("the decay"));
    }
    if delta && (beta_width != hk && beta_width != 1 || wrong(&beta, beta_width)) {
        return Err(misfit("beta"));
    }
    let past = x.optional(3)?;
    let state_shape = [b, hk, dk, dv];
    if past.is_some_and(|p| p.shape != state_shape) {
        return Err(misfit("the state"));
    }
    count(DType::F64, &state_shape)?;
    let mut state = past.map_or_else(|| vec![0.0; b * hk * dk * dv], |p| floats(&p));
    let scale = c.float("scale").filter(|s| *s != 0.0).unwrap_or(1.0 / (dk as f64).sqrt());
    let (q_all, k_all, v_all) = (floats(&q), floats(&k), floats(&v));
    let (decay, beta) = (decay.map(|d| floats(&d)), beta.map(|d| floats(&d)));
    let mut out = vec![0.0; count(DType::F64, &[b, t, hq * dv])?];
    for sample in 0..b {
        for h in 0..hk {
            let state = &mut state[(sample * hk + h) * dk * dv..][..dk * dv];
            for i in 0..t {
                let row = sample * t + i;
                let key = &k_all[row * wk + h * dk..][..dk];
                let mut value = v_all[row * wv + h * dv..][..dv].to_vec();
                if let Some(d) = &decay {
                    for (e, line) in state.chunks_exact_mut(dv.max(1)).enumerate() {
                        let at = if decay_width == hk { h } else { h * dk + e };
                        let factor = d[row * decay_width + at].exp();
                        line.iter_mut().for_each(|s| *s *= factor);
                    }
                }
                if let Some(bt) = &beta {
                    let factor = bt[row * beta_width + if beta_width == 1 { 0 } else { h }];
                    for (m, v) in value.iter_mut().enumerate() {
                        let held: f64 = key.iter().enumerate().map(|(e, k)| k * state[e * dv + m]).sum();
                        *v = factor * (*v - held);
                    }
                }
                for (line, k) in state.chunks_exact_mut(dv.max(1)).zip(key) {
                    line.iter_mut().zip(&value).for_each(|(s, v)| *s += k * v);
                }
                for g in h * group..(h + 1) * group {
                    let query = &q_all[row * wq + g * dk..][..dk];
                    let to = &mut out[row * hq * dv + g * dv..][..dv];
                    for (line, q) in state.chunks_exact(dv.max(1)).zip(query) {
                        to.iter_mut().zip(line).for_each(|(o, s)| *o += scale * q * s);
                    }
                }
            }
        }
    }
    let state_dtype = past.map_or(q.dtype, |p| p.dtype);
    Ok(vec![Some(from_floats(q.dtype, &[b, t, hq * dv], out)?), Some(from_floats(state_dtype, &state_shape, state)?)])
}

pub(super) fn linear_attention_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (q, v) = (required(x, 0)?, required(x, 2)?);
    let (hq, hk) = heads(c)?;
    update_rule(c)?;
    let ([b, t, wq], [_, _, wv]) = (&q.ty.shape[..], &v.ty.shape[..]) else {
        return Err(StandardError::new(format!("{} and {} are not of rank 3", q.ty, v.ty)));
    };
    let n = |n: usize| Dim::from(n as i64);
    let (dk, dv) = (wq.floor_div(&n(hq)), wv.floor_div(&n(hk)));
    let y = carried(q.ty.dtype, [Some(b.clone()), Some(t.clone()), Some(&dv * &n(hq))]);
    let dtype = x.get(3).copied().flatten().map_or(q.ty.dtype, |p| p.ty.dtype);
    Ok(vec![y, carried(dtype, [Some(b.clone()), Some(n(hk)), Some(dk), Some(dv)])])
}

pub(super) fn causal_conv(c: &Call, x: &Args<'_>) -> Results {
    let (v, w) = (x.tensor(0)?, x.tensor(1)?);
    let misfit = |what: &str| StandardError::new(format!("{what} does not fit {:?} and {:?}", v.shape, w.shape));
    let (&[b, channels, length], &[wc, 1, k]) = (v.shape, w.shape) else { return Err(misfit("a rank")) };
    if wc != channels || k == 0 {
        return Err(misfit("an extent"));
    }
    let silu = match c.text("activation").unwrap_or("none") {
        "none" => false,
        "silu" | "swish" => true,
        a => return Err(StandardError::new(format!("`activation` is `{a}`; there are none, silu and swish"))),
    };
    let (bias, past) = (x.optional(2)?, x.optional(3)?);
    if bias.is_some_and(|v| v.shape != [channels]) || past.is_some_and(|p| p.shape != [b, channels, k - 1]) {
        return Err(misfit("the bias or the state"));
    }
    let (values, weight) = (floats(&v), floats(&w));
    let (bias, past) = (bias.map(|v| floats(&v)), past.map(|p| floats(&p)));
    let shape = [b, channels, length];
    let mut out = Vec::with_capacity(values.len());
    let mut state = vec![];
    for i in 0..b * channels {
        let mut line = past.as_ref().map_or_else(|| vec![0.0; k - 1], |p| p[i * (k - 1)..(i + 1) * (k - 1)].to_vec());
        line.extend_from_slice(&values[i * length..(i + 1) * length]);
        let channel = i % channels;
        let weight = &weight[channel * k..(channel + 1) * k];
        for at in 0..length {
            let sum: f64 = line[at..at + k].iter().zip(weight).map(|(a, b)| a * b).sum();
            let y = sum + bias.as_ref().map_or(0.0, |b| b[channel]);
            out.push(if silu { y / (1.0 + (-y).exp()) } else { y });
        }
        state.extend_from_slice(&line[length..]);
    }
    Ok(vec![Some(from_floats(v.dtype, &shape, out)?), Some(from_floats(v.dtype, &[b, channels, k - 1], state)?)])
}

pub(super) fn causal_conv_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (v, w) = (required(x, 0)?, required(x, 1)?);
    let ([b, channels, _], [_, _, k]) = (&v.ty.shape[..], &w.ty.shape[..]) else {
        return Err(StandardError::new(format!("{} and {} are not of rank 3", v.ty, w.ty)));
    };
    let past = k - &Dim::from(1);
    Ok(vec![carried(v.ty.dtype, dims(&v)), carried(v.ty.dtype, [Some(b.clone()), Some(channels.clone()), Some(past)])])
}

pub(super) fn flex_attention(c: &Call, x: &Args<'_>) -> Results {
    if c.attrs.contains_key("score_mod") || c.attrs.contains_key("prob_mod") {
        return Err(StandardError::new("a body that changes scores is not supported"));
    }
    if let Some(code) = c.int("softmax_precision") {
        dtype_of_code(code)?;
    }
    let (q, k, v) = (x.tensor(0)?, x.tensor(1)?, x.tensor(2)?);
    let misfit = || StandardError::new(format!("{:?}, {:?} and {:?} do not fit each other", q.shape, k.shape, v.shape));
    let (&[b, hq, l, e], &[bk, hk, s, ek], &[bv, hv, sv, ev]) = (q.shape, k.shape, v.shape) else {
        return Err(misfit());
    };
    if (bk, bv) != (b, b) || hk != hv || s != sv || e != ek || hk == 0 || hq % hk != 0 {
        return Err(misfit());
    }
    let scale = c.float("scale").unwrap_or(1.0 / (e as f64).sqrt());
    let group = hq / hk;
    let pairs: Vec<(usize, usize)> = (0..b * hq).map(|i| (i, i / hq * hk + i % hq / group)).collect();
    let wide = |v: &crate::tensor::View<'_>| Numbers::F64(floats(v).into());
    let Numbers::F64(scores) = multiply(&wide(&q), &wide(&k), (l, e, s), (false, true), &pairs)? else {
        return Err(misfit());
    };
    let mut scores = scores.into_owned();
    for row in scores.chunks_exact_mut(s.max(1)) {
        let top = row.iter().map(|v| v * scale).fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|v| *v = (*v * scale - top).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    }
    let shape = [b, hq, l, ev];
    let out = multiply(&Numbers::F64(scores.into()), &wide(&v), (l, s, ev), (false, false), &pairs)?;
    Ok(vec![Some(out.finish(v.dtype, &shape)?)])
}

pub(super) fn flex_attention_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (q, v) = (required(x, 0)?, required(x, 2)?);
    let mut shape = dims(&q);
    match (shape.last_mut(), v.ty.shape.last()) {
        (Some(d), Some(e)) => *d = Some(e.clone()),
        _ => return Err(StandardError::new(format!("{} and {} are not of rank 4", q.ty, v.ty))),
    }
    Ok(vec![carried(v.ty.dtype, shape)])
}
