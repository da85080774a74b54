//! Norms: each takes mean and deviation over its own groups of elements.

use super::super::elem::{Lanes, dtype_of_code, round_to, wrong_type};
use super::super::{Args, Call, Data, StandardError, axis, broadcast, broadcast_index, count, floats, from_floats};
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
    let values = floats(&x);
    let channel = |i: usize| i / lanes.inner % lanes.len;
    let (used_mean, used_var) = if training {
        let mut groups = vec![vec![]; lanes.len];
        values.iter().enumerate().for_each(|(i, &v)| groups[channel(i)].push(v));
        groups.iter().map(|g| moments(g)).unzip()
    } else {
        (mean.clone(), var.clone())
    };
    let eps = epsilon(c);
    let inverse: Vec<f64> = used_var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
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
    let mut y = floats(&x);
    for (i, row) in y.chunks_exact_mut(lanes.inner.max(1)).enumerate() {
        let (mean, var) = moments(row);
        let k = i % lanes.len;
        let inverse = 1.0 / (var + epsilon(c)).sqrt();
        row.iter_mut().for_each(|v| *v = (*v - mean) * inverse * scale[k] + bias[k]);
    }
    Ok(vec![Some(from_floats(x.dtype, x.shape, y)?)])
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
    let mut y = floats(&x);
    let width = per_group * lanes.inner;
    for (i, row) in y.chunks_exact_mut(width.max(1)).enumerate() {
        let (mean, var) = moments(row);
        let inverse = 1.0 / (var + epsilon(c)).sqrt();
        let g = i % groups;
        for (j, v) in row.iter_mut().enumerate() {
            let k = if c.opset < 21 { g } else { g * per_group + j / lanes.inner };
            *v = round_to(x.dtype, (*v - mean) * inverse) * scale[k] + bias[k];
        }
    }
    Ok(vec![Some(from_floats(x.dtype, x.shape, y)?)])
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
