//! Pools: the greatest, the mean or the norm of windows; and back from the greatest.

use bytemuck::Pod;

use super::window::{Attributes, Window, unravel};
use crate::cpu::simd::{self, parts, vectorised};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::elem::fill_by;
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
    if fits(image) && fits(&w.out) {
        Ok(())
    } else {
        Err(StandardError::new(format!("an image of {image:?} is not supported")))
    }
}

/// Lets the elements of each window that lie inside the image change the window's result, row by row: `f(result, element)`.
fn slide<T: Copy, A: Copy>(
    w: &Window,
    image: &[usize],
    lead: &[Vec<usize>],
    (x, out): (&[T], &mut [A]),
    f: impl Fn(A, T) -> A,
) {
    let rank = image.len();
    let (width, stride) = (w.out[rank - 1], w.strides[rank - 1]);
    for k in 0..w.kernel.iter().product() {
        let k = unravel(k, &w.kernel);
        let inside = w.inside(rank - 1, k[rank - 1], image[rank - 1]);
        if inside.is_empty() {
            continue;
        }
        let first = (inside.start * stride + k[rank - 1] * w.dilations[rank - 1]) as i64 - w.begin[rank - 1];
        for (at, row) in lead.iter().zip(out.chunks_exact_mut(width)) {
            let Some(start) = w.place(at, &k, image) else { continue };
            let (from, row) = (&x[start * image[rank - 1] + first as usize..], &mut row[inside.clone()]);
            vectorised(
                #[inline(always)]
                || match stride {
                    1 => {
                        for (o, &v) in row.iter_mut().zip(from) {
                            *o = f(*o, v);
                        }
                    }
                    2 => {
                        for (o, v) in row.iter_mut().zip(from.chunks(2)) {
                            *o = f(*o, v[0]);
                        }
                    }
                    _ => {
                        for (o, &v) in row.iter_mut().zip(from.iter().step_by(stride)) {
                            *o = f(*o, v);
                        }
                    }
                },
            );
        }
    }
}

/// The positions of the windows along all axes but the last.
fn leading(w: &Window) -> Vec<Vec<usize>> {
    let rank = w.out.len();
    (0..w.out[..rank - 1].iter().product()).map(|r| unravel(r, &w.out[..rank - 1])).collect()
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
    let (values, lead) = (native::<T>(v), leading(w));
    let y = fill_by(v.dtype, shape, windows, |at, out: &mut [T]| {
        let from = &values[at / windows * plane..][..plane];
        out.fill(lowest);
        // What is not ordered is NaN, which wins and stays.
        let larger = |a: T, b: T| if b > a || b.partial_cmp(&b).is_none() { b } else { a };
        slide(w, image, &lead, (from, out), |a, b| if a.partial_cmp(&a).is_none() { a } else { larger(a, b) });
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

/// The sum of a function of the elements of each window, and how many there are.
fn window_sums(v: &View<'_>, w: &Window, image: &[usize], of: impl Fn(f64) -> f64 + Sync) -> (Vec<f64>, Vec<f64>) {
    let (plane, windows): (usize, usize) = (image.iter().product(), w.out.iter().product());
    let lead = leading(w);
    let mut sums = vec![0.0; v.shape[0] * v.shape[1] * windows];
    let threads = rayon::current_num_threads();
    let values = floats(v);
    parts(&mut sums, windows, threads, |at, out| {
        slide(w, image, &lead, (&values[at / windows * plane..][..plane], out), |s, v| s + of(v));
    });
    let mut counts = vec![0.0; windows];
    slide(w, image, &lead, (&vec![(); plane], &mut counts), |n, ()| n + 1.0);
    (sums, counts)
}

pub(super) fn average_pool(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let image = spatial(v.shape)?;
    let w = window_of(c, v.shape)?;
    small(image, &w)?;
    let (sums, mut counts) = window_sums(&v, &w, image, |v| v);
    if c.flag("count_include_pad", false) {
        counts = padded_counts(&w, image);
    }
    let n = counts.len().max(1);
    let means = sums.into_iter().enumerate().map(|(i, s)| if counts[i % n] > 0.0 { s / counts[i % n] } else { 0.0 });
    Ok(vec![Some(from_floats(v.dtype, &[&v.shape[..2], &w.out[..]].concat(), means)?)])
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
    let (sums, _) = window_sums(&v, &w, image, |v| v.abs().powf(p));
    Ok(vec![Some(from_floats(
        v.dtype,
        &[&v.shape[..2], &w.out[..]].concat(),
        sums.into_iter().map(|s| s.powf(1.0 / p)),
    )?)])
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
