//! Losses of classifications, and the determinant.

use super::super::elem::{Lanes, wrong_type};
use super::super::{Args, Call, Data, StandardError, floats, from_floats};
use super::select::log_softmax_of;
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;

/// What is done to the losses of all elements.
pub(super) fn keeps_all(c: &Call) -> Result<bool> {
    match c.text("reduction").unwrap_or("mean") {
        "none" => Ok(true),
        "sum" | "mean" => Ok(false),
        other => Err(StandardError::new(format!("there is no reduction `{other}`; use `none`, `sum` or `mean`"))),
    }
}

/// The losses: minus the number of the target class, times its weight.
fn loss(c: &Call, args: &Args<'_>, x: &View<'_>, values: &[f64], lanes: Lanes) -> Result<Data> {
    let target = args.tensor(1)?;
    let classes = args.ints(1)?.unwrap_or_default();
    let mut want = x.shape.to_vec();
    want.remove(1);
    if target.shape != want {
        return Err(StandardError::new(format!("targets {:?} for {:?}; they must be {want:?}", target.shape, x.shape)));
    }
    let weights = args.optional(2)?.map(|w| floats(&w));
    if let Some(w) = weights.as_ref().filter(|w| w.len() != lanes.len) {
        return Err(StandardError::new(format!("{} weights for {} classes", w.len(), lanes.len)));
    }
    let ignored = c.int("ignore_index");
    let (mut losses, mut total) = (Vec::with_capacity(classes.len()), 0.0);
    for (&class, start) in classes.iter().zip(lanes.starts()) {
        if Some(class) == ignored {
            losses.push(0.0);
            continue;
        }
        let k = usize::try_from(class).ok().filter(|&k| k < lanes.len);
        let k = k.ok_or_else(|| StandardError::new(format!("target {class} is none of {} classes", lanes.len)))?;
        let weight = weights.as_ref().map_or(1.0, |w| w[k]);
        losses.push(-values[start + k * lanes.inner] * weight);
        total += weight;
    }
    if keeps_all(c)? {
        return from_floats(x.dtype, target.shape, losses);
    }
    let sum: f64 = losses.iter().sum();
    let mean = c.text("reduction").unwrap_or("mean") == "mean";
    from_floats(x.dtype, &[], [if mean { sum / total } else { sum }])
}

fn scores<'a>(args: &Args<'a>) -> Result<(View<'a>, Lanes)> {
    let x = args.tensor(0)?;
    if x.shape.len() < 2 {
        return Err(StandardError::new(format!("{:?} has no axis of classes", x.shape)));
    }
    if !x.dtype.is_float() {
        return Err(wrong_type(x.dtype));
    }
    Ok((x, Lanes::along(x.shape, 1)))
}

pub(super) fn negative_log_likelihood(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (x, lanes) = scores(args)?;
    Ok(vec![Some(loss(c, args, &x, &floats(&x), lanes)?)])
}

/// Loss and logarithms of the probabilities.
pub(super) fn softmax_cross_entropy(c: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let (x, lanes) = scores(args)?;
    let mut values = floats(&x);
    let mut lane = vec![0.0; lanes.len];
    for start in lanes.starts() {
        lane.iter_mut().zip(lanes.lane(start)).for_each(|(l, p)| *l = values[p]);
        log_softmax_of(&mut lane);
        lane.iter().zip(lanes.lane(start)).for_each(|(l, p)| values[p] = *l);
    }
    let y = loss(c, args, &x, &values, lanes)?;
    Ok(vec![Some(y), Some(from_floats(x.dtype, x.shape, values)?)])
}

/// Determinants of a stack of square matrices, by elimination with the largest pivots.
pub(super) fn det(_: &Call, args: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let x = args.tensor(0)?;
    if !x.dtype.is_float() {
        return Err(wrong_type(x.dtype));
    }
    let [batch @ .., m, n] = x.shape else {
        return Err(StandardError::new(format!("{:?} is no matrix", x.shape)));
    };
    if m != n {
        return Err(StandardError::new(format!("{m} x {n} is no square matrix")));
    }
    let n = *n;
    let values = floats(&x);
    let dets = (0..batch.iter().product::<usize>()).map(|b| {
        let mut a = values[b * n * n..][..n * n].to_vec();
        let mut det = 1.0;
        for k in 0..n {
            let pivot = (k..n).max_by(|&i, &j| a[i * n + k].abs().total_cmp(&a[j * n + k].abs())).unwrap_or(k);
            if pivot != k {
                (0..n).for_each(|j| a.swap(k * n + j, pivot * n + j));
                det = -det;
            }
            let p = a[k * n + k];
            det *= p;
            if p == 0.0 {
                return 0.0;
            }
            for i in k + 1..n {
                let f = a[i * n + k] / p;
                (k..n).for_each(|j| a[i * n + j] -= f * a[k * n + j]);
            }
        }
        det
    });
    Ok(vec![Some(from_floats(x.dtype, batch, dets)?)])
}
