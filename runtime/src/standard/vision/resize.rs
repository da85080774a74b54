//! Images of another size: one axis at a time, each element a weighted sum of its neighbours.
//!
//! Source of the coordinates and weights: the definition of `Resize` in ONNX; cubic weights after R. G. Keys, "Cubic
//! convolution interpolation for digital image processing", 1981.

use std::borrow::Cow;

use crate::cpu::convert::floats as narrow;
use crate::cpu::simd::{pairs, rows, vectorised};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::elem::fill_by;
use crate::standard::infer::required;
use crate::standard::tensor::{Numbers, carried, dims};
use crate::standard::{
    Args, Call, Data, Operand, Partial, StandardError, axis, count, floats, from_floats, from_ints, native,
};
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// What the extents become, per axis.
#[derive(Clone, Debug)]
struct Target {
    scales: Vec<f64>,
    extents: Vec<usize>,
    /// Start and end of the region, in parts of the extent.
    roi: Vec<(f64, f64)>,
}

/// The operands' positions: region, scales, sizes.
fn positions(c: &Call) -> (usize, usize, usize) {
    if c.op == "Upsample" || c.opset < 11 { (usize::MAX, 1, usize::MAX) } else { (1, 2, 3) }
}

/// The axes that are resized.
fn resized_axes(c: &Call, rank: usize) -> Result<Vec<usize>> {
    c.ints("axes").map_or_else(|| Ok((0..rank).collect()), |a| a.iter().map(|&a| axis(a, rank)).collect())
}

fn target(c: &Call, x: &Args<'_>, shape: &[usize]) -> Result<Target> {
    let on = resized_axes(c, shape.len())?;
    let (roi_at, scales_at, sizes_at) = positions(c);
    let list =
        |i: usize| -> Result<Option<Vec<f64>>> { Ok(x.optional(i)?.map(|v| floats(&v)).filter(|v| !v.is_empty())) };
    let scales = match c.floats("scales") {
        Some(s) => Some(s),
        None => list(scales_at)?,
    };
    let sizes = list(sizes_at)?;
    let mut t = Target { scales: vec![1.0; shape.len()], extents: shape.to_vec(), roi: vec![(0.0, 1.0); shape.len()] };
    let misfit = |what: &str, n: usize| StandardError::new(format!("{n} {what} for {} axes of {shape:?}", on.len()));
    if let Some(r) = list(roi_at)?.filter(|_| coordinates(c) == "tf_crop_and_resize") {
        if r.len() != 2 * on.len() {
            return Err(misfit("ends of the region", r.len()));
        }
        on.iter().enumerate().for_each(|(i, &a)| t.roi[a] = (r[i], r[on.len() + i]));
    }
    match (scales, sizes) {
        (Some(s), None) => {
            if s.len() != on.len() || s.iter().any(|s| s.is_nan() || *s <= 0.0) {
                return Err(misfit("scales", s.len()));
            }
            for (&a, &s) in on.iter().zip(&s) {
                t.scales[a] = s;
                let length = t.roi[a].1 - t.roi[a].0;
                let factor = if coordinates(c) == "tf_crop_and_resize" { length * s } else { s };
                t.extents[a] = (shape[a] as f64 * factor).floor().clamp(0.0, 1e15) as usize;
            }
        }
        (None, Some(s)) => {
            if s.len() != on.len() || s.iter().any(|s| *s < 0.0) {
                return Err(misfit("sizes", s.len()));
            }
            let ratio: Vec<f64> = on.iter().zip(&s).map(|(&a, &s)| s / shape[a] as f64).collect();
            let one = match c.text("keep_aspect_ratio_policy").unwrap_or("stretch") {
                "stretch" => None,
                "not_larger" => Some(ratio.iter().copied().fold(f64::INFINITY, f64::min)),
                "not_smaller" => Some(ratio.iter().copied().fold(0.0, f64::max)),
                p => {
                    return Err(StandardError::new(format!(
                        "`keep_aspect_ratio_policy` is `{p}`; there are stretch, not_larger and not_smaller"
                    )));
                }
            };
            for (i, &a) in on.iter().enumerate() {
                t.scales[a] = one.unwrap_or(ratio[i]);
                t.extents[a] = one.map_or(s[i], |o| (o * shape[a] as f64 + 0.5).floor()) as usize;
            }
        }
        _ => return Err(StandardError::new("there are not either scales or sizes")),
    }
    Ok(t)
}

/// How an element's place in the image is found.
fn coordinates(c: &Call) -> &str {
    match c.op == "Upsample" || c.opset < 11 {
        true => "asymmetric",
        false => c.text("coordinate_transformation_mode").unwrap_or("half_pixel"),
    }
}

/// The place in an axis of `n` elements that element `y` of the result shows.
fn place(mode: &str, y: f64, n: usize, extent: usize, scale: f64, (start, end): (f64, f64)) -> Result<f64> {
    let (n, length) = (n as f64, scale * n as f64);
    Ok(match mode {
        "align_corners" => {
            if length == 1.0 {
                0.0
            } else {
                y * (n - 1.0) / (length - 1.0)
            }
        }
        "asymmetric" => y / scale,
        "tf_crop_and_resize" => {
            let at = if extent == 1 {
                (end - start) * (n - 1.0) / 2.0
            } else {
                y * (end - start) * (n - 1.0) / (extent as f64 - 1.0)
            };
            at + start * (n - 1.0)
        }
        "pytorch_half_pixel" => {
            if extent == 1 {
                -0.5
            } else {
                (y + 0.5) / scale - 0.5
            }
        }
        "half_pixel" => (y + 0.5) / scale - 0.5,
        "tf_half_pixel_for_nn" => (y + 0.5) / scale,
        "half_pixel_symmetric" => {
            let adjustment = extent as f64 / length;
            n / 2.0 * (1.0 - adjustment) + (y + 0.5) / scale - 0.5
        }
        m => return Err(StandardError::new(format!("`coordinate_transformation_mode` is `{m}`, which is unknown"))),
    })
}

/// Weights of the neighbours of a place, with the position of the first; `None` where the place lies outside the region.
type Weights = Option<(i64, Vec<f64>)>;

/// The cubic weight at a distance.
fn cubic(a: f64, x: f64) -> f64 {
    let x = x.abs();
    match x {
        x if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
        _ => 0.0,
    }
}

/// The weights of an axis.
fn weights(c: &Call, n: usize, extent: usize, scale: f64, roi: (f64, f64)) -> Result<Vec<Weights>> {
    let mode = coordinates(c);
    let (kind, anti) = (c.text("mode").unwrap_or("nearest"), c.flag("antialias", false));
    let a = c.float("cubic_coeff_a").unwrap_or(-0.75);
    // Before opset 11 the nearest place was the one behind along axes that shrink.
    let rounding = match mode_is_old(c) {
        true if scale < 1.0 => "ceil",
        true => "floor",
        false => c.text("nearest_mode").unwrap_or("round_prefer_floor"),
    };
    let mut out = Vec::with_capacity(extent);
    for y in 0..extent {
        let at = place(mode, y as f64, n, extent, scale, roi)?;
        if mode == "tf_crop_and_resize" && (at < 0.0 || at > n as f64 - 1.0) {
            out.push(None);
            continue;
        }
        let whole = at.floor();
        // The neighbour on the left counts as the one in the middle, so a whole place lies at the end of its step.
        let ratio = if at == whole { 1.0 } else { at - whole };
        let left = if at == whole { whole as i64 - 1 } else { whole as i64 };
        let narrow = scale.min(1.0);
        let (first, mut list) = match kind {
            "nearest" => {
                if anti {
                    return Err(StandardError::new("`antialias` with the mode nearest is not supported"));
                }
                let nearest = match rounding {
                    "round_prefer_floor" => (at - 0.5).ceil(),
                    "round_prefer_ceil" => (at + 0.5).floor(),
                    "floor" => whole,
                    "ceil" => at.ceil(),
                    m => return Err(StandardError::new(format!("`nearest_mode` is `{m}`, which is unknown"))),
                };
                (nearest as i64, vec![1.0])
            }
            "linear" | "bilinear" if anti => {
                let start = (-1.0 / narrow).floor() as i64 + 1;
                let weight = |i: i64| (1.0 - ((i as f64 - ratio) * narrow).abs()).clamp(0.0, 1.0);
                (left + start, (start..start + 2 - 2 * start).map(weight).collect::<Vec<_>>())
            }
            "linear" | "bilinear" => (left, vec![1.0 - ratio, ratio]),
            "cubic" if anti => {
                let start = (-2.0 / narrow).floor() as i64 + 1;
                (left + start, (start..2 - start).map(|i| cubic(a, narrow * (i as f64 - ratio))).collect())
            }
            "cubic" => (left - 1, (-1..3).map(|i| cubic(a, f64::from(i) - ratio)).collect()),
            m => return Err(StandardError::new(format!("`mode` is `{m}`; there are nearest, linear and cubic"))),
        };
        let exclude = c.flag("exclude_outside", false);
        if exclude {
            list.iter_mut()
                .enumerate()
                .filter(|(i, _)| !(0..n as i64).contains(&(first + *i as i64)))
                .for_each(|(_, w)| *w = 0.0);
        }
        if anti || exclude {
            let sum: f64 = list.iter().sum();
            list.iter_mut().filter(|_| sum != 0.0).for_each(|w| *w /= sum);
        }
        out.push(Some((first, list)));
    }
    Ok(out)
}

/// Whether the operator is of the time before rounding had modes.
fn mode_is_old(c: &Call) -> bool {
    c.op == "Upsample" || c.opset < 11
}

pub(super) fn resize(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let t = target(c, x, v.shape)?;
    count(DType::F64, &t.extents)?;
    // An axis of its own may be too long where another one is empty.
    t.extents.iter().try_for_each(|&n| count(DType::F64, &[n]).map(|_| ()))?;
    let beyond = c.float("extrapolation_value").unwrap_or(0.0);
    if let Some(moved) = nearest(c, &v, &t)? {
        return Ok(vec![Some(moved)]);
    }
    let mut axes = vec![];
    for (a, (&n, &extent)) in v.shape.iter().zip(&t.extents).enumerate() {
        if extent == n && (t.scales[a] - 1.0).abs() < 1e-9 && t.roi[a] == (0.0, 1.0) {
            continue;
        }
        if n == 0 && extent > 0 {
            return Err(StandardError::new(format!("axis {a} of {:?} is empty and cannot grow", v.shape)));
        }
        axes.push((a, weights(c, n, extent, t.scales[a], t.roi[a])?));
    }
    // The last axis comes first, for its lines are the shortest then where images grow.
    axes.reverse();
    if let (DType::F32 | DType::F16 | DType::BF16, Ok(values)) = (v.dtype, narrow(&v)) {
        let values = interpolate(values, v.shape, &axes, beyond)?;
        return Ok(vec![Some(Numbers::F32(values).finish(v.dtype, &t.extents)?)]);
    }
    let values = interpolate(floats(&v).into(), v.shape, &axes, beyond)?;
    Ok(vec![Some(match v.dtype {
        d if d.is_float() || d.is_minifloat() => from_floats(d, &t.extents, values.iter().copied())?,
        d => {
            let (low, high) = limits(d);
            from_ints(d, &t.extents, values.iter().map(|v| v.round_ties_even().clamp(low, high) as i128))?
        }
    })])
}

/// What images are interpolated in.
trait Real:
    Copy + Default + PartialEq + Send + Sync + 'static + std::ops::Add<Output = Self> + std::ops::Mul<Output = Self>
{
    fn of(v: f64) -> Self;
}

impl Real for f32 {
    fn of(v: f64) -> f32 {
        v as f32
    }
}

impl Real for f64 {
    fn of(v: f64) -> f64 {
        v
    }
}

/// The weighted sums along one axis after another.
fn interpolate<'a, T: Real>(
    mut values: Cow<'a, [T]>,
    shape: &[usize],
    axes: &[(usize, Vec<Weights>)],
    beyond: f64,
) -> Result<Cow<'a, [T]>> {
    let mut shape = shape.to_vec();
    for (a, weights) in axes {
        let (n, extent) = (shape[*a], weights.len());
        let outer: usize = shape[..*a].iter().product();
        let inner: usize = shape[a + 1..].iter().product();
        let mut next = vec![T::default(); count(DType::F64, &[outer, extent, inner])?];
        // The neighbours of each place that count, the positions of those outside the image moved to its ends.
        let near: Vec<Option<Vec<(usize, T)>>> = weights
            .iter()
            .map(|w| {
                let (first, list) = w.as_ref()?;
                let at = |i: usize| (first + i as i64).clamp(0, n as i64 - 1) as usize;
                Some(list.iter().enumerate().filter(|(_, w)| **w != 0.0).map(|(i, w)| (at(i), T::of(*w))).collect())
            })
            .collect();
        // Most places have two neighbours at most.
        let two: Option<Vec<[(usize, T); 2]>> = near
            .iter()
            .map(|near| match near.as_deref()? {
                [one] => Some([*one, (one.0, T::default())]),
                [one, other] => Some([*one, *other]),
                _ => None,
            })
            .collect();
        let size = (extent * inner).max(1);
        rows(&mut next, size, rayon::current_num_threads(), |at, line| {
            let from = &values[at / size * n * inner..][..n * inner];
            if let (1, Some(two)) = (inner, &two) {
                for (o, &[(k, w), (l, u)]) in line.iter_mut().zip(two) {
                    // 0 times an infinite neighbour is not 0.
                    let second = if u == T::default() { u } else { u * from[l] };
                    *o = w * from[k] + second;
                }
                return;
            }
            if inner == 1 {
                for (o, near) in line.iter_mut().zip(&near) {
                    *o = match near {
                        None => T::of(beyond),
                        Some(near) => near.iter().fold(T::default(), |sum, &(k, w)| sum + w * from[k]),
                    };
                }
                return;
            }
            for (part, near) in line.chunks_exact_mut(inner.max(1)).zip(&near) {
                let Some(near) = near else {
                    part.fill(T::of(beyond));
                    continue;
                };
                let row = |k: usize| &from[k * inner..(k + 1) * inner];
                match near[..] {
                    [(k, w), (l, u)] => {
                        let (x, y) = (row(k), row(l));
                        vectorised(
                            #[inline(always)]
                            move || {
                                for ((o, &x), &y) in part.iter_mut().zip(x).zip(y) {
                                    *o = w * x + u * y;
                                }
                            },
                        )
                    }
                    _ => near.iter().for_each(|&(k, w)| pairs(part, row(k), move |o, v| o + w * v)),
                }
            }
        });
        values = Cow::Owned(next);
        shape[*a] = extent;
    }
    Ok(values)
}

/// The result where each element is one of the image: the position of each is the product of those along the axes.
fn nearest(c: &Call, v: &View<'_>, t: &Target) -> Result<Option<Data>> {
    let kind = c.text("mode").unwrap_or("nearest");
    if kind != "nearest" || c.flag("antialias", false) || coordinates(c) == "tf_crop_and_resize" || v.is_empty() {
        return Ok(None);
    }
    let mut at: Vec<Vec<usize>> = vec![];
    for (a, (&n, &extent)) in v.shape.iter().zip(&t.extents).enumerate() {
        let same = extent == n && (t.scales[a] - 1.0).abs() < 1e-9 && t.roi[a] == (0.0, 1.0);
        if same {
            at.push((0..n).collect());
            continue;
        }
        let weights = weights(c, n, extent, t.scales[a], t.roi[a])?;
        at.push(weights.iter().flatten().map(|(first, _)| (*first).clamp(0, n as i64 - 1) as usize).collect());
    }
    // Planes of the last two axes; those of a line are one high.
    if at.len() == 1 {
        at.insert(0, vec![0]);
    }
    let [lead @ .., high, wide] = &at[..] else { return Ok(None) };
    let (extent, width) = (v.shape.last().copied().unwrap_or(1), wide.len());
    let doubled = width.is_multiple_of(2) && wide.iter().enumerate().all(|(i, &from)| from == i / 2);
    let plane: usize = v.shape[v.shape.len().saturating_sub(2)..].iter().product();
    macro_rules! moved {
        ($t:ty) => {{
            let from = native::<$t>(v);
            fill_by(v.dtype, &t.extents, high.len() * width, |start, out: &mut [$t]| {
                let (mut at, mut step, mut base) = (start / (high.len() * width), plane, 0);
                for (d, places) in lead.iter().enumerate().rev() {
                    base += places[at % places.len()] * step;
                    at /= places.len();
                    step *= v.shape[d];
                }
                for (r, &line) in high.iter().enumerate() {
                    if r > 0 && high[r - 1] == line {
                        out.copy_within((r - 1) * width..r * width, r * width);
                        continue;
                    }
                    let from = &from[base + line * extent..][..extent];
                    let row = &mut out[r * width..][..width];
                    if doubled {
                        row.as_chunks_mut::<2>().0.iter_mut().zip(from).for_each(|(o, v)| *o = [*v; 2]);
                    } else {
                        row.iter_mut().zip(wide).for_each(|(o, &i)| *o = from[i]);
                    }
                }
            })
        }};
    }
    Ok(Some(match v.dtype.size() {
        1 => moved!(u8)?,
        2 => moved!(u16)?,
        4 => moved!(u32)?,
        _ => moved!(u64)?,
    }))
}

/// The range of an integer type.
fn limits(d: DType) -> (f64, f64) {
    match d {
        DType::Bool => (0.0, 1.0),
        DType::U2 => (0.0, 3.0),
        DType::U4 => (0.0, 15.0),
        DType::U8 => (0.0, 255.0),
        DType::U16 => (0.0, 65535.0),
        DType::U32 => (0.0, f64::from(u32::MAX)),
        DType::U64 => (0.0, u64::MAX as f64),
        DType::I2 => (-2.0, 1.0),
        DType::I4 => (-8.0, 7.0),
        DType::I8 => (-128.0, 127.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::I32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
        _ => (i64::MIN as f64, i64::MAX as f64),
    }
}

pub(super) fn resize_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let v = required(x, 0)?;
    let on = resized_axes(c, v.rank())?;
    let (_, _, sizes_at) = positions(c);
    let mut shape = dims(&v);
    let sizes = x.get(sizes_at).copied().flatten().and_then(|o| o.values);
    let stretch = c.text("keep_aspect_ratio_policy").is_none_or(|p| p == "stretch");
    for (i, &a) in on.iter().enumerate() {
        shape[a] = match (c.floats("scales"), v.ty.shape[a].as_const()) {
            (Some(s), Some(n)) => s.get(i).map(|s| Dim::from((n as f64 * s).floor() as i64)),
            _ => sizes.filter(|_| stretch).and_then(|s| s.get(i).cloned()),
        };
    }
    Ok(vec![carried(v.ty.dtype, shape)])
}
