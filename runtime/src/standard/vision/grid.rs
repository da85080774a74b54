//! Images sampled at places of a grid, and grids of affine maps.
//!
//! Source: the definitions of `GridSample` and `AffineGrid` in ONNX, which follow PyTorch's `grid_sample` and `affine_grid`.

use super::window::unravel;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::tensor::{carried, extents};
use crate::standard::{
    Args, Call, Data, Operand, Partial, StandardError, count, floats, from_floats, from_ints, strides,
};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// What lies around the image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Around {
    Zeros,
    Border,
    Reflection,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nearest,
    Linear,
    Cubic,
}

/// Mirrors a place at the ends until it lies between them.
fn reflect(x: f64, low: f64, high: f64) -> f64 {
    let range = high - low;
    if range <= 0.0 {
        return low;
    }
    let beyond = if x < low {
        low - x
    } else if x > high {
        x - high
    } else {
        return x;
    };
    let turns = (beyond / range).trunc();
    let rest = beyond - turns * range;
    if (x < low) == (turns % 2.0 == 0.0) { low + rest } else { high - rest }
}

/// The ends that reflections turn at.
fn ends(n: usize, corners: bool) -> (f64, f64) {
    if corners { (0.0, n as f64 - 1.0) } else { (-0.5, n as f64 - 0.5) }
}

/// The position of a neighbour, `None` where it counts as zero.
fn neighbour(i: i64, n: usize, around: Around, corners: bool) -> Option<usize> {
    match around {
        _ if (0..n as i64).contains(&i) => Some(i as usize),
        Around::Zeros => None,
        Around::Border => Some(i.clamp(0, n as i64 - 1) as usize),
        Around::Reflection => {
            let (low, high) = ends(n, corners);
            Some((reflect(i as f64, low, high) as i64).clamp(0, n as i64 - 1) as usize)
        }
    }
}

/// The neighbours along one axis with their weights.
fn along(x: f64, n: usize, kind: Kind, around: Around, corners: bool) -> Vec<(Option<usize>, f64)> {
    let (low, high) = ends(n, corners);
    let mut x = if kind == Kind::Nearest { x.round_ties_even() } else { x };
    // Cubic weights are those of the place itself; only its neighbours are moved inside, as PyTorch does.
    if kind != Kind::Cubic && (x < low || x > high) {
        match around {
            Around::Zeros => {}
            Around::Border => x = x.clamp(0.0, n as f64 - 1.0),
            Around::Reflection => x = reflect(x, low, high),
        }
    }
    // A place that is no number, or far away, counts as zero.
    if !x.is_finite() || x.abs() > 1e15 {
        return vec![(None, 1.0)];
    }
    let at = |i: i64| neighbour(i, n, around, corners);
    let first = x.floor();
    let t = x - first;
    let i = first as i64;
    match kind {
        Kind::Nearest => vec![(at(x.trunc() as i64), 1.0)],
        Kind::Linear => vec![(at(i), 1.0 - t), (at(i + 1), t)],
        Kind::Cubic => {
            let weight = |d: f64| {
                let (a, d) = (-0.75, d.abs());
                if d <= 1.0 {
                    ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
                } else {
                    ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
                }
            };
            (-1..3).map(|k| (at(i + k), weight(t - k as f64))).collect()
        }
    }
}

/// The positions and weights of the image elements that one place shows.
pub(super) fn taps(place: &[f64], image: &[usize], kind: Kind, around: Around, corners: bool) -> Vec<(usize, f64)> {
    let steps = strides(image);
    let mut out = vec![(0usize, 1.0)];
    for (d, &x) in place.iter().enumerate() {
        let line = along(x, image[d], kind, around, corners);
        out = out
            .iter()
            .flat_map(|&(p, w)| {
                line.iter().filter_map(move |&(i, v)| i.map(|i| (i, v))).map(move |(i, v)| (p, w, i, v))
            })
            .map(|(p, w, i, v)| (p + i * steps[d], w * v))
            .collect();
    }
    out
}

pub(super) fn grid_sample(c: &Call, x: &Args<'_>) -> Results {
    let (v, g) = (x.tensor(0)?, x.tensor(1)?);
    let misfit = || StandardError::new(format!("a grid of {:?} does not fit an image of {:?}", g.shape, v.shape));
    let (&[n, channels, ref image @ ..], &[batch, ref places @ .., width]) = (v.shape, g.shape) else {
        return Err(misfit());
    };
    if image.is_empty() || batch != n || width != image.len() || places.len() != image.len() {
        return Err(misfit());
    }
    let kind = match c.text("mode").unwrap_or("linear") {
        "linear" | "bilinear" => Kind::Linear,
        "nearest" => Kind::Nearest,
        "cubic" | "bicubic" => Kind::Cubic,
        m => return Err(StandardError::new(format!("`mode` is `{m}`; there are linear, nearest and cubic"))),
    };
    let around = match c.text("padding_mode").unwrap_or("zeros") {
        "zeros" => Around::Zeros,
        "border" => Around::Border,
        "reflection" => Around::Reflection,
        m => {
            return Err(StandardError::new(format!("`padding_mode` is `{m}`; there are zeros, border and reflection")));
        }
    };
    let corners = c.flag("align_corners", false);
    let shape = [&[n, channels], places].concat();
    count(DType::F64, &shape)?;
    let (values, grid) = (floats(&v), floats(&g));
    let (plane, points): (usize, usize) = (image.iter().product(), places.iter().product());
    let mut out = vec![0.0; n * channels * points];
    if plane == 0 && !out.is_empty() {
        return Err(misfit());
    }
    for b in 0..n {
        for p in 0..points {
            let at = &grid[(b * points + p) * width..][..width];
            // The grid names the last axis first. Places are of 32 bits, as ties between neighbours show.
            let wide = g.dtype == DType::F64;
            let place: Vec<f64> = at
                .iter()
                .rev()
                .zip(image)
                .map(|(&g, &n)| {
                    let n = n as f64;
                    let x = if corners { (g + 1.0) / 2.0 * (n - 1.0) } else { ((g + 1.0) * n - 1.0) / 2.0 };
                    if wide { x } else { f64::from(x as f32) }
                })
                .collect();
            let taps = taps(&place, image, kind, around, corners);
            for ch in 0..channels {
                let from = &values[(b * channels + ch) * plane..][..plane];
                out[(b * channels + ch) * points + p] = taps.iter().map(|&(i, w)| w * from[i]).sum();
            }
        }
    }
    Ok(vec![Some(match v.dtype.is_float() || v.dtype.is_minifloat() {
        true => from_floats(v.dtype, &shape, out)?,
        false => from_ints(v.dtype, &shape, out.into_iter().map(|v| v as i128))?,
    })])
}

pub(super) fn grid_sample_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (v, g) = (required(x, 0)?, required(x, 1)?);
    let misfit = || StandardError::new(format!("a grid of {} does not fit an image of {}", g.ty, v.ty));
    let ([n, channels, image @ ..], [_, places @ .., width]) = (&v.ty.shape[..], &g.ty.shape[..]) else {
        return Err(misfit());
    };
    if places.len() != image.len() || width.as_const().is_some_and(|w| w != image.len() as i64) {
        return Err(misfit());
    }
    Ok(vec![carried(v.ty.dtype, [n, channels].into_iter().chain(places).cloned().map(Some))])
}

pub(super) fn affine_grid(c: &Call, x: &Args<'_>) -> Results {
    let theta = x.tensor(0)?;
    let size = extents(&x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the size, is missing"))?)?;
    let misfit = || StandardError::new(format!("a map of {:?} does not fit images of {size:?}", theta.shape));
    let (&[n, rows, columns], &[batch, _, ref image @ ..]) = (theta.shape, &size[..]) else { return Err(misfit()) };
    let rank = image.len();
    if n != batch || rows != rank || columns != rank + 1 {
        return Err(misfit());
    }
    let corners = c.flag("align_corners", false);
    let shape = [&[n], image, &[rank]].concat();
    count(DType::F64, &shape)?;
    let (m, points) = (floats(&theta), image.iter().product::<usize>());
    let mut out = Vec::with_capacity(n * points * rank);
    for b in 0..n {
        for p in 0..points {
            let at = unravel(p, image);
            // The last axis comes first; centres of elements unless corners align.
            let place: Vec<f64> = (0..rank)
                .rev()
                .map(|d| {
                    let (i, n) = (at[d] as f64, image[d] as f64);
                    match corners {
                        true if image[d] == 1 => 0.0,
                        true => -1.0 + 2.0 * i / (n - 1.0),
                        false => -1.0 + (2.0 * i + 1.0) / n,
                    }
                })
                .collect();
            for r in 0..rank {
                let row = &m[(b * rank + r) * (rank + 1)..][..rank + 1];
                out.push(row.iter().zip(&place).map(|(a, b)| a * b).sum::<f64>() + row[rank]);
            }
        }
    }
    Ok(vec![Some(from_floats(theta.dtype, &shape, out)?)])
}

pub(super) fn affine_grid_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (theta, size) = (required(x, 0)?, required(x, 1)?);
    let [n, rows, _] = &theta.ty.shape[..] else {
        return Err(StandardError::new(format!("{} is no batch of affine maps", theta.ty)));
    };
    let rank = size.values.map(|v| v.len() as i64 - 2).or(rows.as_const());
    let Some(rank) = rank.and_then(|r| usize::try_from(r).ok()) else {
        return Ok(vec![Partial::unranked(theta.ty.dtype)]);
    };
    let image: Vec<Option<Dim>> = match size.values {
        Some(v) => v.iter().skip(2).cloned().map(Some).collect(),
        None => vec![None; rank],
    };
    Ok(vec![carried(theta.ty.dtype, [Some(n.clone())].into_iter().chain(image).chain([Some(Dim::from(rank as i64))]))])
}
