//! Pools: the greatest, the mean or the norm of windows; and back from the greatest.

use bytemuck::Pod;

use super::window::{Attributes, Lines, Window, unravel};
use crate::cpu::simd::{self, vectorised};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::elem::{Float, by_float, fill_by};
use crate::standard::infer::required;
use crate::standard::tensor::{carried, dims};
use crate::standard::{
    Args, Call, Data, Operand, Partial, StandardError, count, floats, from_floats, from_ints, native, strides,
};
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// Spatial extents of an image with batch and channel axes.
fn spatial(shape: &[usize]) -> Result<&[usize]> {
    match shape {
        [_, _, rest @ ..] if !rest.is_empty() => Ok(rest),
        _ => Err(StandardError::new(format!("{shape:?} has no spatial axes behind batch and channels"))),
    }
}

fn window_of(c: &Call, shape: &[usize]) -> Result<Window> {
    let image = spatial(shape)?;
    let w = Attributes::of(c, image.len(), None)?.on(image)?;
    count(DType::F64, &[&shape[..2], &w.out[..]].concat())?;
    Ok(w)
}

/// For each window and each of its elements inside the image: calls `visit(window, position)`.
fn for_each(w: &Window, image: &[usize], mut visit: impl FnMut(usize, usize)) {
    let steps = strides(image);
    // Positions along each axis, per window and element.
    let per_window: usize = w.kernel.iter().product();
    for o in 0..w.out.iter().product() {
        let at = unravel(o, &w.out);
        for k in 0..per_window {
            let mut k = k;
            let mut to = Some(0usize);
            for d in (0..image.len()).rev() {
                let p = w.position(d, at[d], k % w.kernel[d], image[d]);
                to = to.zip(p).map(|(t, p)| t + p * steps[d]);
                k /= w.kernel[d];
            }
            if let Some(t) = to {
                visit(o, t);
            }
        }
    }
}

/// The number of elements of each window, those added around the image included.
fn padded_counts(w: &Window, image: &[usize]) -> Vec<f64> {
    let along = |d: usize, o: usize| -> usize {
        let room = image[d] as i64 + w.begin[d] + w.end[d];
        (0..w.kernel[d]).filter(|k| ((o * w.strides[d] + k * w.dilations[d]) as i64) < room).count()
    };
    (0..w.out.iter().product())
        .map(|o| unravel(o, &w.out).iter().enumerate().map(|(d, &o)| along(d, o) as f64).product())
        .collect()
}

/// Positions that the windows show, as a table for all channels: (window, position).
fn table(w: &Window, image: &[usize]) -> Vec<(u32, u32)> {
    let mut out = vec![];
    for_each(w, image, |o, t| out.push((o as u32, t as u32)));
    out
}

/// Refuses images whose positions do not fit the tables.
fn small(image: &[usize], w: &Window) -> Result<()> {
    let fits = |s: &[usize]| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_some_and(|n| n < u32::MAX as usize);
    // A line of windows, with what is added around the image, is held at once.
    let (last, most) = (w.out.len() - 1, 1usize << 28);
    let span = w.out[last].checked_mul(w.strides[last]).zip(w.kernel[last].checked_mul(w.dilations[last]));
    let held = span.and_then(|(a, b)| a.checked_add(b)).is_some_and(|n| n <= most) && w.begin[last] <= most as i64;
    if fits(image) && fits(&w.out) && held {
        Ok(())
    } else {
        Err(StandardError::new(format!("an image of {image:?} is not supported")))
    }
}

/// Elements that are folded at a time.
const RUN: usize = 16;

/// Folds the elements of each window that lie inside the image: `f(result, element)`. The lines of the image that a line of windows
/// shows become one first, and `join` then joins its elements; `start` is neutral to both.
///
/// Results are kept apart from what is folded: where the greater of two is stored in the place of one, the compiler stores it only
/// where it is the other, which is slow.
fn slide<T: Copy, A: Copy>(
    lines: &Lines,
    (x, out): (&[T], &mut [A]),
    start: A,
    f: impl Fn(A, T) -> A + Copy + 'static,
    join: impl Fn(A, A) -> A + Copy + 'static,
) {
    let &Lines { extent, width, stride, kernel, dilation, begin, .. } = lines;
    // Elements around the image are neutral. Those before it may be fewer than none.
    let span = width.saturating_sub(1) * stride + (kernel - 1) * dilation + 1;
    let mut padded = vec![start; span + RUN * stride];
    let (cut, at) = (begin.min(0).unsigned_abs() as usize, begin.max(0) as usize);
    let count = extent.saturating_sub(cut).min(span.saturating_sub(at));
    let padded = &mut padded[..];
    vectorised(
        #[inline(always)]
        move || {
            for (i, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
                let shown = lines.places.iter().map(|p| p[i]).filter(|&p| p != usize::MAX);
                for c in (0..count).step_by(RUN) {
                    let mut run = [start; RUN];
                    for place in shown.clone() {
                        let from = &x[place * extent + cut + c..][..count - c];
                        match from.first_chunk::<RUN>() {
                            Some(from) => {
                                for j in 0..RUN {
                                    run[j] = f(run[j], from[j]);
                                }
                            }
                            None => run.iter_mut().zip(from).for_each(|(o, &v)| *o = f(*o, v)),
                        }
                    }
                    let to = &mut padded[at + c..at + count];
                    let n = to.len().min(RUN);
                    to[..n].copy_from_slice(&run[..n]);
                }
                for (c, out) in out.chunks_mut(RUN).enumerate() {
                    let mut run = [start; RUN];
                    for k in 0..kernel {
                        let from = &padded[c * RUN * stride + k * dilation..];
                        match stride {
                            1 => {
                                let Some(from) = from.first_chunk::<RUN>() else { continue };
                                for j in 0..RUN {
                                    run[j] = join(run[j], from[j]);
                                }
                            }
                            2 => {
                                let Some(from) = from.first_chunk::<{ 2 * RUN }>() else { continue };
                                for j in 0..RUN {
                                    run[j] = join(run[j], from[2 * j]);
                                }
                            }
                            _ => run.iter_mut().zip(from.iter().step_by(stride)).for_each(|(o, &v)| *o = join(*o, v)),
                        }
                    }
                    out.copy_from_slice(&run[..out.len()]);
                }
            }
        },
    );
}

/// The greatest elements in the type itself.
fn max_plane<T: Copy + PartialOrd + Pod + Send + Sync>(
    v: &View<'_>,
    w: &Window,
    shape: &[usize],
    lowest: T,
) -> Results {
    let image = spatial(v.shape)?;
    let (plane, windows): (usize, usize) = (image.iter().product(), w.out.iter().product());
    let (values, lines) = (native::<T>(v), Lines::of(w, image));
    let y = fill_by(v.dtype, shape, windows, |at, out: &mut [T]| {
        let from = &values[at / windows * plane..][..plane];
        // What does not equal itself is NaN, which wins and stays.
        #[allow(clippy::eq_op, reason = "the test for NaN that every type has")]
        let larger = |a: T, b: T| {
            let b = if b > a || b != b { b } else { a };
            if a != a { a } else { b }
        };
        slide(&lines, (from, out), lowest, larger, larger);
    })?;
    Ok(vec![Some(y)])
}

pub(super) fn max_pool(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let image = spatial(v.shape)?;
    let w = window_of(c, v.shape)?;
    small(image, &w)?;
    if !c.wants(1) {
        let shape = [&v.shape[..2], &w.out[..]].concat();
        match v.dtype {
            DType::F32 => return max_plane(&v, &w, &shape, f32::NEG_INFINITY),
            DType::U8 => return max_plane(&v, &w, &shape, u8::MIN),
            DType::I8 => return max_plane(&v, &w, &shape, i8::MIN),
            _ => {}
        }
    }
    let table = table(&w, image);
    let (plane, windows): (usize, usize) = (image.iter().product(), w.out.iter().product());
    let shape = [&v.shape[..2], &w.out[..]].concat();
    let planes = v.shape[0] * v.shape[1];
    let values = floats(&v);
    let lowest = if v.dtype.is_float() || v.dtype.is_minifloat() { f64::NEG_INFINITY } else { f64::MIN };
    let mut best = vec![lowest; planes * windows];
    let mut place = vec![-1i64; planes * windows];
    for p in 0..planes {
        let (from, best, place) =
            (&values[p * plane..][..plane], &mut best[p * windows..][..windows], &mut place[p * windows..][..windows]);
        for &(o, t) in &table {
            let (o, t) = (o as usize, t as usize);
            if place[o] < 0 || from[t] > best[o] || from[t].is_nan() && !best[o].is_nan() {
                best[o] = from[t];
                place[o] = t as i64;
            }
        }
    }
    let y = from_floats(v.dtype, &shape, best)?;
    if !c.wants(1) {
        return Ok(vec![Some(y)]);
    }
    let column_major = c.int("storage_order").unwrap_or(0) == 1;
    let index = |(i, t): (usize, &i64)| -> i128 {
        let t = (*t).max(0) as usize;
        let within = match column_major {
            false => t,
            // The first spatial axis varies fastest.
            true => unravel(t, image).iter().zip(image).rev().fold(0, |n, (i, d)| n * d + i),
        };
        (i / windows.max(1) * plane + within) as i128
    };
    let indices = from_ints(DType::I64, &shape, place.iter().enumerate().map(index))?;
    Ok(vec![Some(y), Some(indices)])
}

/// The number of elements of each window that lie inside the image.
fn inside_counts(w: &Window, image: &[usize]) -> Vec<f64> {
    let mut counts = vec![0.0; w.out.iter().product()];
    let plane: usize = image.iter().product();
    slide(&Lines::of(w, image), (&vec![(); plane], &mut counts), 0.0, |n, ()| n + 1.0, |a, b| a + b);
    counts
}

/// The windows' sums in f64 of a function of their elements, and a function of each sum and its window.
fn window_sums(
    v: &View<'_>,
    w: &Window,
    of: impl Fn(f64) -> f64 + Copy + Sync + 'static,
    finish: impl Fn(f64, usize) -> f64 + Sync,
) -> Result<Data> {
    let image = spatial(v.shape)?;
    let shape = [&v.shape[..2], &w.out[..]].concat();
    let (plane, windows) = (image.iter().product::<usize>(), w.out.iter().product::<usize>());
    let lines = Lines::of(w, image);
    by_float!(v.dtype, T => {
        let values = native::<T>(v);
        fill_by(v.dtype, &shape, windows, |at, out: &mut [T]| {
            let mut sums = vec![0.0; out.len()];
            let from = &values[at / windows * plane..][..plane];
            slide(&lines, (from, &mut sums), 0.0, move |s, v: T| s + of(v.wide()), |a, b| a + b);
            vectorised(
                #[inline(always)]
                || out.iter_mut().zip(&sums).enumerate().for_each(|(i, (o, &s))| *o = T::narrow(finish(s, i))),
            );
        })
    }, _ => {
        let values = floats(v);
        let mut sums = vec![0.0; count(DType::F64, &shape)?];
        for (i, out) in sums.chunks_exact_mut(windows.max(1)).enumerate() {
            slide(&lines, (&values[i * plane..][..plane], out), 0.0, move |s, v| s + of(v), |a, b| a + b);
            out.iter_mut().enumerate().for_each(|(i, s)| *s = finish(*s, i));
        }
        from_floats(v.dtype, &shape, sums)
    })
}

pub(super) fn average_pool(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let image = spatial(v.shape)?;
    let w = window_of(c, v.shape)?;
    small(image, &w)?;
    let counts = if c.flag("count_include_pad", false) { padded_counts(&w, image) } else { inside_counts(&w, image) };
    let mean = |sum: f64, i: usize| if counts[i] > 0.0 { sum / counts[i] } else { 0.0 };
    Ok(vec![Some(window_sums(&v, &w, |v| v, mean)?)])
}

/// The exponent of the norm.
fn norm(c: &Call) -> f64 {
    c.int("p").map(|p| p as f64).or(c.float("p")).unwrap_or(2.0)
}

pub(super) fn lp_pool(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let image = spatial(v.shape)?;
    let w = window_of(c, v.shape)?;
    small(image, &w)?;
    let p = norm(c);
    Ok(vec![Some(window_sums(&v, &w, move |v| v.abs().powf(p), |s, _| s.powf(1.0 / p))?)])
}

pub(super) fn pool_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let x = required(x, 0)?;
    let [n, channels, image @ ..] = &x.ty.shape[..] else {
        return Err(StandardError::new(format!("{} has no spatial axes behind batch and channels", x.ty)));
    };
    if image.is_empty() {
        return Err(StandardError::new(format!("{} has no spatial axes behind batch and channels", x.ty)));
    }
    let windows = Attributes::of(c, image.len(), None)?.counts(image)?;
    let shape: Vec<Option<Dim>> = [n, channels].into_iter().cloned().map(Some).chain(windows).collect();
    Ok(vec![carried(x.ty.dtype, shape.clone()), carried(DType::I64, shape)])
}

/// Reduces all spatial axes.
fn global(x: &Args<'_>, of: impl Fn(&[f64]) -> f64 + Sync) -> Results {
    let v = x.tensor(0)?;
    let plane: usize = spatial(v.shape)?.iter().product();
    let mut shape = vec![1; v.shape.len()];
    shape[..2].copy_from_slice(&v.shape[..2]);
    let values = floats(&v);
    let out = (0..v.shape[0] * v.shape[1]).map(|p| of(&values[p * plane..(p + 1) * plane]));
    Ok(vec![Some(from_floats(v.dtype, &shape, out)?)])
}

pub(super) fn global_average_pool(_: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let plane: usize = spatial(v.shape)?.iter().product();
    if v.dtype == DType::F32 && plane > 0 {
        let mut shape = vec![1; v.shape.len()];
        shape[..2].copy_from_slice(&v.shape[..2]);
        let values = native::<f32>(&v);
        let mean = |at: usize, out: &mut [f32]| {
            for (i, o) in out.iter_mut().enumerate() {
                *o = (simd::sum(&values[(at + i) * plane..][..plane]) / plane as f64) as f32;
            }
        };
        return Ok(vec![Some(fill_by(DType::F32, &shape, 64, mean)?)]);
    }
    global(x, |v| v.iter().sum::<f64>() / v.len() as f64)
}

pub(super) fn global_max_pool(_: &Call, x: &Args<'_>) -> Results {
    global(x, |v| v.iter().fold(f64::NEG_INFINITY, |m, &v| if v.is_nan() || v > m { v } else { m }))
}

pub(super) fn global_lp_pool(c: &Call, x: &Args<'_>) -> Results {
    let p = norm(c);
    global(x, |v| v.iter().map(|v| v.abs().powf(p)).sum::<f64>().powf(1.0 / p))
}

pub(super) fn global_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let x = required(x, 0)?;
    if x.rank() < 3 {
        return Err(StandardError::new(format!("{} has no spatial axes behind batch and channels", x.ty)));
    }
    let mut shape = dims(&x);
    shape[2..].fill(Some(Dim::from(1)));
    Ok(vec![carried(x.ty.dtype, shape)])
}

/// The extent that a pool's image had, of an axis of `n` windows.
fn unpooled(a: &Attributes, i: usize, n: &Dim) -> Dim {
    let step = Dim::from(a.strides[i] as i64);
    let rest = a.kernel[i] as i64 - a.strides[i] as i64 - a.pads[i] - a.pads[a.kernel.len() + i];
    &(n * &step) + &Dim::from(rest)
}

pub(super) fn max_unpool(c: &Call, x: &Args<'_>) -> Results {
    let (v, at) = (x.tensor(0)?, x.ints(1)?.unwrap_or_default());
    let image = spatial(v.shape)?;
    let a = Attributes::of(c, image.len(), None)?;
    let mut shape = v.shape[..2].to_vec();
    for (i, &n) in image.iter().enumerate() {
        let extent = unpooled(&a, i, &Dim::from(n as i64)).as_const().and_then(|n| usize::try_from(n).ok());
        shape.push(extent.ok_or_else(|| StandardError::new(format!("{image:?} is no pooled image")))?);
    }
    let target = match x.ints(2)? {
        Some(s) => crate::standard::tensor::extents(&s)?,
        None => shape.clone(),
    };
    let total = count(DType::F64, &shape)?;
    let bad = |i: &i64| usize::try_from(*i).ok().is_none_or(|i| i >= total);
    if at.len() != v.len() || at.iter().any(bad) || target.len() != shape.len() {
        return Err(StandardError::new(format!(
            "the indices or the shape {target:?} do not fit an image of {shape:?}"
        )));
    }
    count(DType::F64, &target)?;
    let mut out = vec![0.0; target.iter().product()];
    let steps = strides(&target);
    for (i, value) in at.iter().zip(floats(&v)) {
        let place = unravel(*i as usize, &shape);
        // What lies outside a smaller target is lost.
        if place.iter().zip(&target).all(|(p, n)| p < n) {
            out[place.iter().zip(&steps).map(|(p, s)| p * s).sum::<usize>()] = value;
        }
    }
    Ok(vec![Some(match v.dtype.is_float() || v.dtype.is_minifloat() {
        true => from_floats(v.dtype, &target, out)?,
        false => from_ints(v.dtype, &target, out.into_iter().map(|v| v as i128))?,
    })])
}

pub(super) fn max_unpool_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let v = required(x, 0)?;
    let target = x.get(2).copied().flatten();
    if let Some(t) = target {
        let shape = t.values.map_or_else(|| vec![None; v.rank()], |d| d.iter().cloned().map(Some).collect());
        return Ok(vec![carried(v.ty.dtype, shape)]);
    }
    let [n, channels, image @ ..] = &v.ty.shape[..] else {
        return Err(StandardError::new(format!("{} has no spatial axes behind batch and channels", v.ty)));
    };
    let a = Attributes::of(c, image.len(), None)?;
    let extents = image.iter().enumerate().map(|(i, d)| Some(unpooled(&a, i, d)));
    Ok(vec![carried(v.ty.dtype, [n, channels].into_iter().cloned().map(Some).chain(extents))])
}
