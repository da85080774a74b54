//! Norms: each takes mean and deviation over its own groups of elements.

use super::super::elem::{Float, Lanes, by_float, dtype_of_code, fill_by, round_to, wrong_type};
use super::super::{
    Args, Call, Data, StandardError, axis, broadcast, broadcast_index, count, floats, from_floats, native,
};
use crate::cpu::simd::{map, parts, squares, sum};
use crate::dtype::DType;
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;

fn epsilon(c: &Call) -> f64 {
    c.float("epsilon").unwrap_or(1e-5)
}

fn only_floats(x: &View<'_>) -> Result<()> {
    if x.dtype.is_float() { Ok(()) } else { Err(wrong_type(x.dtype)) }
}

/// Mean and population variance.
fn moments(v: &[f64]) -> (f64, f64) {
    let n = v.len() as f64;
    let mean = v.iter().sum::<f64>() / n;
    (mean, v.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n)
}

/// Values broadcast to a shape, which they must not exceed.
fn fitted(v: &View<'_>, shape: &[usize]) -> Result<Vec<f64>> {
    if broadcast(&[v.shape, shape])? != shape {
        return Err(StandardError::new(format!("{:?} does not broadcast to {shape:?}", v.shape)));
    }
    let values = floats(v);
    Ok(broadcast_index(v.shape, shape)?.into_iter().map(|i| values[i]).collect())
}

/// The shape with 1 from an axis on.
fn reduced(shape: &[usize], from: usize) -> Vec<usize> {
    shape.iter().enumerate().map(|(i, &d)| if i < from { d } else { 1 }).collect()
}

/// The type of the first stage: `stash_type`, of which the mean and the deviation are.
pub(super) fn stash(c: &Call) -> Result<DType> {
    let d = dtype_of_code(c.int("stash_type").unwrap_or(1))?;
    if d.is_float() { Ok(d) } else { Err(StandardError::new(format!("`stash_type` is {d}, no floating-point type"))) }
}

pub(super) fn layer(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (x, scale) = (args.tensor(0)?, args.tensor(1)?);
    only_floats(&x)?;
    let from = axis(c.int("axis").unwrap_or(-1), x.shape.len())?;
    let stash = stash(c)?;
    let scale = fitted(&scale, x.shape)?;
    let bias = args.optional(2)?.map(|b| fitted(&b, x.shape)).transpose()?;
    let mut y = floats(&x);
    let (mut means, mut inverses) = (vec![], vec![]);
    let width: usize = x.shape[from..].iter().product();
    for row in y.chunks_exact_mut(width.max(1)) {
        let (mean, var) = moments(row);
        let inverse = 1.0 / (var + epsilon(c)).sqrt();
        row.iter_mut().for_each(|v| *v = (*v - mean) * inverse);
        means.push(mean);
        inverses.push(inverse);
    }
    for (i, v) in y.iter_mut().enumerate() {
        // The first stage ends in the operand's type.
        *v = round_to(x.dtype, *v) * scale[i] + bias.as_ref().map_or(0.0, |b| b[i]);
    }
    let kept = reduced(x.shape, from);
    let rows = count(DType::U8, &kept)?;
    // Rows without elements have neither mean nor deviation.
    means.resize(rows, f64::NAN);
    inverses.resize(rows, f64::NAN);
    Ok(vec![
        Some(from_floats(x.dtype, x.shape, y)?),
        Some(from_floats(stash, &kept, means)?),
        Some(from_floats(stash, &kept, inverses)?),
    ])
}

/// The result has the scale's type.
pub(super) fn rms(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (x, w) = (args.tensor(0)?, args.tensor(1)?);
    only_floats(&x)?;
    stash(c)?;
    let from = axis(c.int("axis").unwrap_or(-1), x.shape.len())?;
    let scale = fitted(&w, x.shape)?;
    let mut y = floats(&x);
    let width: usize = x.shape[from..].iter().product();
    for row in y.chunks_exact_mut(width.max(1)) {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
        let root = (mean + epsilon(c)).sqrt();
        row.iter_mut().for_each(|v| *v /= root);
    }
    let y = y.into_iter().zip(scale).map(|(v, s)| round_to(x.dtype, v) * s);
    Ok(vec![Some(from_floats(w.dtype, x.shape, y)?)])
}

/// Values by channel, which must be as many as said.
fn channels(args: &Args<'_>, i: usize, n: usize) -> Result<Vec<f64>> {
    let v = args.tensor(i)?;
    if v.len() == n {
        return Ok(floats(&v));
    }
    Err(StandardError::new(format!("operand {i} has the shape {:?}; it needs {n} elements", v.shape)))
}

/// The axis of channels.
fn channel_axis(x: &View<'_>) -> Result<Lanes> {
    if x.shape.len() < 2 {
        return Err(StandardError::new(format!("{:?} has no axis of channels", x.shape)));
    }
    only_floats(x)?;
    Ok(Lanes::along(x.shape, 1))
}

/// (v - mean) * inverse * scale + bias in f64 for runs of `width` elements, whose four numbers `of` gives.
fn planes(x: &View<'_>, width: usize, of: impl Fn(usize) -> (f64, f64, f64, f64) + Sync) -> Result<Data> {
    by_float!(x.dtype, T => {
        let v = native::<T>(x);
        fill_by(x.dtype, x.shape, width, |at, out: &mut [T]| {
            let (mean, inverse, scale, bias) = of(at / width.max(1));
            map(&v[at..], out, move |v: T| T::narrow((v.wide() - mean) * inverse * scale + bias));
        })
    }, _ => Err(wrong_type(x.dtype)))
}

/// Mean and 1 / sqrt(variance + epsilon) of each run of `width` elements.
fn statistics(x: &View<'_>, width: usize, epsilon: f64) -> Result<Vec<(f64, f64)>> {
    let n = width as f64;
    let mut out = vec![(0.0, 0.0); x.len() / width.max(1)];
    let rows = |at: usize, i: usize| (at + i) * width..(at + i + 1) * width;
    let threads = rayon::current_num_threads();
    if x.dtype == DType::F32 {
        let v = native::<f32>(x);
        parts(&mut out, 8, threads, |at, part| {
            for (i, o) in part.iter_mut().enumerate() {
                let row = &v[rows(at, i)];
                let mean = sum(row) / n;
                *o = (mean, 1.0 / (squares(row, mean) / n + epsilon).sqrt());
            }
        });
    } else {
        let v = floats(x);
        parts(&mut out, 8, threads, |at, part| {
            for (i, o) in part.iter_mut().enumerate() {
                let (mean, var) = moments(&v[rows(at, i)]);
                *o = (mean, 1.0 / (var + epsilon).sqrt());
            }
        });
    }
    Ok(out)
}

/// With the given mean and variance, or in training with those of the operand, which then run into the given ones.
pub(super) fn batch(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    let mut lanes = channel_axis(&x)?;
    if c.opset < 9 && !c.flag("spatial", true) {
        // Each position is a channel of its own.
        lanes = Lanes { outer: x.shape[0], len: x.shape[1..].iter().product(), inner: 1 };
    }
    let (scale, bias) = (channels(args, 1, lanes.len)?, channels(args, 2, lanes.len)?);
    let (mean, var) = (channels(args, 3, lanes.len)?, channels(args, 4, lanes.len)?);
    let training = if c.opset < 14 { (1..5).any(|i| c.wants(i)) } else { c.flag("training_mode", false) };
    let channel = |i: usize| i / lanes.inner % lanes.len;
    let (used_mean, used_var) = if training {
        let values = floats(&x);
        let mut groups = vec![vec![]; lanes.len];
        values.iter().enumerate().for_each(|(i, &v)| groups[channel(i)].push(v));
        groups.iter().map(|g| moments(g)).unzip()
    } else {
        (mean.clone(), var.clone())
    };
    let eps = epsilon(c);
    let inverse: Vec<f64> = used_var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    if !training && lanes.inner >= 8 {
        return Ok(vec![Some(planes(&x, lanes.inner, |plane| {
            let k = plane % lanes.len;
            (used_mean[k], inverse[k], scale[k], bias[k])
        })?)]);
    }
    let values = floats(&x);
    let y = values.iter().enumerate().map(|(i, v)| {
        let k = channel(i);
        (v - used_mean[k]) * inverse[k] * scale[k] + bias[k]
    });
    let mut out = vec![Some(from_floats(x.dtype, x.shape, y)?)];
    if training {
        let m = c.float("momentum").unwrap_or(0.9);
        let statistics = args.tensor(3)?;
        let tensor = |v: Vec<f64>| from_floats(statistics.dtype, statistics.shape, v).map(Some);
        let run = |old: &[f64], new: &[f64]| old.iter().zip(new).map(|(o, n)| o * m + n * (1.0 - m)).collect();
        out.push(tensor(run(&mean, &used_mean))?);
        out.push(tensor(run(&var, &used_var))?);
        out.push(tensor(used_mean)?);
        out.push(tensor(used_var)?);
    }
    Ok(out)
}

/// Each channel of each instance for itself.
pub(super) fn instance(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    let lanes = channel_axis(&x)?;
    let (scale, bias) = (channels(args, 1, lanes.len)?, channels(args, 2, lanes.len)?);
    let of = statistics(&x, lanes.inner, epsilon(c))?;
    Ok(vec![Some(planes(&x, lanes.inner, |i| (of[i].0, of[i].1, scale[i % lanes.len], bias[i % lanes.len]))?)])
}

/// Scale and bias are by group before opset 21, by channel since.
pub(super) fn group(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    let lanes = channel_axis(&x)?;
    stash(c)?;
    let groups = usize::try_from(c.required_int("num_groups")?).unwrap_or(0);
    if groups == 0 || lanes.len % groups != 0 {
        return Err(StandardError::new(format!("{} channels cannot be cut into {groups} groups", lanes.len)));
    }
    let per_group = lanes.len / groups;
    let n = if c.opset < 21 { groups } else { lanes.len };
    let (scale, bias) = (channels(args, 1, n)?, channels(args, 2, n)?);
    let width = per_group * lanes.inner;
    let of = statistics(&x, width, epsilon(c))?;
    let y = by_float!(x.dtype, T => {
        let v = native::<T>(&x);
        fill_by(x.dtype, x.shape, lanes.inner, |at, out: &mut [T]| {
            let channel = at / lanes.inner.max(1) % lanes.len.max(1);
            let (mean, inverse) = of[at / width.max(1)];
            let k = if c.opset < 21 { channel / per_group } else { channel };
            let (scale, bias) = (scale[k], bias[k]);
            map(&v[at..], out, move |v: T| {
                // The norm is rounded before it is scaled.
                T::narrow(T::narrow((v.wide() - mean) * inverse).wide() * scale + bias)
            });
        })
    }, _ => Err(wrong_type(x.dtype)))?;
    Ok(vec![Some(y)])
}

/// Each element over a power of the squares of the channels around it.
pub(super) fn local_response(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    let lanes = channel_axis(&x)?;
    let size = usize::try_from(c.required_int("size")?).ok().filter(|&s| s > 0);
    let size = size.ok_or_else(|| StandardError::new("`size` must be positive"))?;
    let (alpha, beta) = (c.float("alpha").unwrap_or(1e-4), c.float("beta").unwrap_or(0.75));
    let bias = c.float("bias").unwrap_or(1.0);
    let (before, behind) = ((size - 1) / 2, size / 2);
    let values = floats(&x);
    let mut y = vec![0.0; values.len()];
    for start in lanes.starts() {
        let at = |k: usize| start + k * lanes.inner;
        for k in 0..lanes.len {
            let around = k.saturating_sub(before)..(k + behind + 1).min(lanes.len);
            let sum: f64 = around.map(|j| values[at(j)] * values[at(j)]).sum();
            y[at(k)] = values[at(k)] / (bias + alpha / size as f64 * sum).powf(beta);
        }
    }
    Ok(vec![Some(from_floats(x.dtype, x.shape, y)?)])
}

/// The deviation has 1e-9 added to it, as the definition does.
pub(super) fn mean_variance(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    only_floats(&x)?;
    let mut kept = x.shape.to_vec();
    for &a in c.ints("axes").unwrap_or(&[0, 2, 3]) {
        kept[axis(a, x.shape.len())?] = 1;
    }
    let index = broadcast_index(&kept, x.shape)?;
    let values = floats(&x);
    let mut groups = vec![vec![]; count(DType::U8, &kept)?];
    values.iter().zip(&index).for_each(|(&v, &i)| groups[i].push(v));
    let moments: Vec<(f64, f64)> = groups.iter().map(|g| moments(g)).collect();
    let y = values.iter().zip(&index).map(|(v, &i)| (v - moments[i].0) / (moments[i].1.sqrt() + 1e-9));
    Ok(vec![Some(from_floats(x.dtype, x.shape, y)?)])
}
