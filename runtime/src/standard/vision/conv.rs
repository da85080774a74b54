//! Convolutions: by matrix products over columns of image elements, by plain sums where a group has one channel.

use rayon::prelude::*;

use super::window::{Attributes, Window, unravel};
use crate::cpu::integer::{self, Left, Zero};
use crate::cpu::matmul::{Matrix, product};
use crate::cpu::simd::{map, vectorised};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::elem::{fill_by, make};
use crate::standard::infer::required;
use crate::standard::math::EXACT_DEPTH;
use crate::standard::tensor::{Numbers, parallelism};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, floats, integers};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// Elements of a block of columns.
const COLUMNS: usize = 1 << 22;

/// What a convolution computes in.
pub(super) trait Scalar: Copy + Send + Sync + 'static {
    const ZERO: Self;
    /// `self + a * b`.
    fn add_product(self, a: Self, b: Self) -> Self;
    fn plus(self, other: Self) -> Self;
    /// out := a * b.
    fn multiply(a: Matrix<'_, Self>, b: Matrix<'_, Self>, out: &mut [Self], step: usize) -> Result<()>;
}

macro_rules! float_scalar {
    ($t:ty) => {
        impl Scalar for $t {
            const ZERO: Self = 0.0;
            fn add_product(self, a: Self, b: Self) -> Self {
                self + a * b
            }
            fn plus(self, other: Self) -> Self {
                self + other
            }
            fn multiply(a: Matrix<'_, Self>, b: Matrix<'_, Self>, out: &mut [Self], step: usize) -> Result<()> {
                product(a, b, out, step, (0.0, 1.0), parallelism()).map_err(|e| StandardError::new(e.to_string()))
            }
        }
    };
}
float_scalar!(f32);
float_scalar!(f64);

/// Differences of integers of eight bits and their zero points; sums wrap.
impl Scalar for i32 {
    const ZERO: Self = 0;
    fn add_product(self, a: Self, b: Self) -> Self {
        self.wrapping_add(a.wrapping_mul(b))
    }
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    fn multiply(a: Matrix<'_, Self>, b: Matrix<'_, Self>, out: &mut [Self], step: usize) -> Result<()> {
        let left = Left::new(a.data, a.rows, a.cols, Zero::One(0));
        let y = integer::product(&left, b.data, b.cols, Zero::One(0), rayon::current_num_threads());
        for (r, row) in out.chunks_mut(step.max(1)).take(a.rows).enumerate() {
            y.row(r).for_each(|(c, v)| row[c..c + v.len()].copy_from_slice(v));
        }
        Ok(())
    }
}

impl Scalar for i64 {
    const ZERO: Self = 0;
    fn add_product(self, a: Self, b: Self) -> Self {
        self.wrapping_add(a.wrapping_mul(b))
    }
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    fn multiply(a: Matrix<'_, Self>, b: Matrix<'_, Self>, out: &mut [Self], step: usize) -> Result<()> {
        for (r, row) in out.chunks_mut(step.max(1)).take(a.rows).enumerate() {
            let row = &mut row[..b.cols];
            row.fill(0);
            for l in 0..a.cols {
                let v = a.data[r * a.row_step + l * a.col_step];
                for (c, o) in row.iter_mut().enumerate() {
                    *o = o.add_product(v, b.data[l * b.row_step + c * b.col_step]);
                }
            }
        }
        Ok(())
    }
}

/// Extents of a convolution.
pub(super) struct Sizes {
    /// Images.
    pub(super) n: usize,
    /// Channels of the image, and of the result.
    pub(super) channels: (usize, usize),
    pub(super) groups: usize,
    /// Spatial extents of the image.
    pub(super) image: Vec<usize>,
    pub(super) window: Window,
}

impl Sizes {
    pub(super) fn of(c: &Call, x: &[usize], w: &[usize]) -> Result<Sizes> {
        let misfit = || StandardError::new(format!("a weight of {w:?} does not fit an image of {x:?}"));
        let (&[n, channels, ref image @ ..], &[out, per_group, ref kernel @ ..]) = (x, w) else { return Err(misfit()) };
        let groups = groups(c)?;
        if image.is_empty()
            || kernel.len() != image.len()
            || per_group.checked_mul(groups) != Some(channels)
            || out % groups != 0
        {
            return Err(misfit());
        }
        let window = Attributes::of(c, image.len(), Some(kernel))?.on(image)?;
        let sizes = Sizes { n, channels: (channels, out), groups, image: image.to_vec(), window };
        count(DType::F64, &sizes.shape())?;
        Ok(sizes)
    }

    /// The shape of the result.
    pub(super) fn shape(&self) -> Vec<usize> {
        [&[self.n, self.channels.1], &self.window.out[..]].concat()
    }
}

fn groups(c: &Call) -> Result<usize> {
    let g = c.int("group").unwrap_or(1);
    usize::try_from(g).ok().filter(|&g| g > 0).ok_or_else(|| StandardError::new(format!("{g} groups")))
}

/// One row per channel and element of the window, one column per window: the image elements that meet. `rows` are the windows'
/// positions along all axes but the last, in row-major order.
fn columns<T: Scalar>(x: &[T], s: &Sizes, channels: usize, rows: std::ops::Range<usize>, out: &mut [T]) {
    let w = &s.window;
    let rank = s.image.len();
    let (image, plane) = (s.image[rank - 1], s.image.iter().product::<usize>());
    let per_window: usize = w.kernel.iter().product();
    let (width, stride, dilation) = (w.out[rank - 1], w.strides[rank - 1], w.dilations[rank - 1]);
    let lead: Vec<Vec<usize>> = rows.map(|r| unravel(r, &w.out[..rank - 1])).collect();
    let size = lead.len() * width;
    let fill = |(r, line): (usize, &mut [T])| {
        let (channel, k) = (r / per_window, unravel(r % per_window, &w.kernel));
        let x = &x[channel * plane..(channel + 1) * plane];
        let inside = w.inside(rank - 1, k[rank - 1], image);
        for (part, at) in line.chunks_exact_mut(width).zip(&lead) {
            let start = w.place(at, &k, &s.image);
            let Some(start) = start.filter(|_| !inside.is_empty()) else {
                part.fill(T::ZERO);
                continue;
            };
            part[..inside.start].fill(T::ZERO);
            part[inside.end..].fill(T::ZERO);
            // Not negative within the range that lies inside.
            let first = (inside.start * stride + k[rank - 1] * dilation) as i64 - w.begin[rank - 1];
            let from = &x[start * image + first as usize..];
            let part = &mut part[inside.clone()];
            match stride {
                1 => part.copy_from_slice(&from[..part.len()]),
                _ => part.iter_mut().zip(from.iter().step_by(stride)).for_each(|(o, v)| *o = *v),
            }
        }
    };
    if channels * per_window * size >= 1 << 16 {
        out.par_chunks_exact_mut(size.max(1)).enumerate().take(channels * per_window).for_each(fill);
    } else {
        out.chunks_exact_mut(size.max(1)).enumerate().take(channels * per_window).for_each(fill);
    }
}

/// The convolution; `bias` has one element per channel of the result.
pub(super) fn convolve<T: Scalar>(x: &[T], w: &[T], bias: Option<&[T]>, s: &Sizes) -> Result<Vec<T>> {
    let positions: usize = s.window.out.iter().product();
    let plane: usize = s.image.iter().product();
    let (in_group, out_group) = (s.channels.0 / s.groups, s.channels.1 / s.groups);
    let per_window: usize = s.window.kernel.iter().product();
    let depth = in_group * per_window;
    let mut out = vec![T::ZERO; s.n * s.channels.1 * positions];
    if out.is_empty() {
        return Ok(out);
    }
    if in_group == 1 && out_group <= 4 {
        direct(x, w, s, &mut out);
    } else {
        let rank = s.image.len();
        let width = s.window.out[rank - 1];
        let rows = positions / width;
        // A window of one element on every element needs no columns.
        let plain = s.window.out == s.image
            && per_window == 1
            && s.window.strides.iter().all(|&v| v == 1)
            && s.window.begin.iter().all(|&v| v == 0);
        let block = if plain { rows } else { (COLUMNS / (depth * width).max(1)).clamp(1, rows) };
        let mut scratch = vec![T::ZERO; if plain { 0 } else { depth * block * width }];
        for n in 0..s.n {
            for g in 0..s.groups {
                let x = &x[(n * s.channels.0 + g * in_group) * plane..][..in_group * plane];
                let a = Matrix::rows(&w[g * out_group * depth..][..out_group * depth], out_group, depth);
                let out = &mut out[(n * s.channels.1 + g * out_group) * positions..][..out_group * positions];
                if plain {
                    T::multiply(a, Matrix::rows(x, depth, positions), out, positions)?;
                    continue;
                }
                for first in (0..rows).step_by(block) {
                    let last = (first + block).min(rows);
                    let size = (last - first) * width;
                    let part = &mut scratch[..depth * size];
                    columns(x, s, in_group, first..last, part);
                    T::multiply(a, Matrix::rows(part, depth, size), &mut out[first * width..], positions)?;
                }
            }
        }
    }
    if let Some(b) = bias {
        for (i, part) in out.chunks_exact_mut(positions).enumerate() {
            let b = b[i % s.channels.1];
            part.iter_mut().for_each(|o| *o = o.plus(b));
        }
    }
    Ok(out)
}

/// The convolution of columns that are there already: for each image a row per channel and element of the window.
pub(super) fn convolve_columns(columns: &[f64], w: &[f64], bias: Option<&[f64]>, s: &Sizes) -> Result<Vec<f64>> {
    let positions: usize = s.window.out.iter().product();
    let depth = s.channels.0 / s.groups * s.window.kernel.iter().product::<usize>();
    let out_group = s.channels.1 / s.groups;
    let mut out = vec![0.0; s.n * s.channels.1 * positions];
    for (i, part) in out.chunks_exact_mut((out_group * positions).max(1)).enumerate() {
        let (n, g) = (i / s.groups, i % s.groups);
        let a = Matrix::rows(&w[g * out_group * depth..][..out_group * depth], out_group, depth);
        let b = Matrix::rows(&columns[(n * s.groups + g) * depth * positions..][..depth * positions], depth, positions);
        f64::multiply(a, b, part, positions)?;
        for (r, line) in part.chunks_exact_mut(positions.max(1)).enumerate() {
            let b = bias.map_or(0.0, |b| b[g * out_group + r]);
            line.iter_mut().for_each(|o| *o += b);
        }
    }
    Ok(out)
}

/// Groups of one channel: each element of the window adds the image, shifted and scaled.
fn direct<T: Scalar>(x: &[T], w: &[T], s: &Sizes, out: &mut [T]) {
    let win = &s.window;
    let rank = s.image.len();
    let positions: usize = win.out.iter().product();
    let plane: usize = s.image.iter().product();
    let per_window: usize = win.kernel.iter().product();
    let out_group = s.channels.1 / s.groups;
    let (width, image, stride) = (win.out[rank - 1], s.image[rank - 1], win.strides[rank - 1]);
    let lead: Vec<Vec<usize>> = (0..positions / width).map(|r| unravel(r, &win.out[..rank - 1])).collect();
    let one = |(i, out): (usize, &mut [T])| {
        let (n, channel) = (i / s.channels.1, i % s.channels.1);
        let x = &x[(n * s.channels.0 + channel / out_group) * plane..][..plane];
        for k in 0..per_window {
            let weight = w[channel * per_window + k];
            let k = unravel(k, &win.kernel);
            let inside = win.inside(rank - 1, k[rank - 1], image);
            if inside.is_empty() {
                continue;
            }
            let first = (inside.start * stride + k[rank - 1] * win.dilations[rank - 1]) as i64 - win.begin[rank - 1];
            for (at, part) in lead.iter().zip(out.chunks_exact_mut(width)) {
                let Some(start) = win.place(at, &k, &s.image) else { continue };
                let from = &x[start * image + first as usize..];
                let part = &mut part[inside.clone()];
                vectorised(
                    #[inline(always)]
                    || match stride {
                        1 => {
                            for (o, v) in part.iter_mut().zip(from) {
                                *o = o.add_product(weight, *v);
                            }
                        }
                        2 => {
                            for (o, v) in part.iter_mut().zip(from.chunks(2)) {
                                *o = o.add_product(weight, v[0]);
                            }
                        }
                        _ => {
                            for (o, v) in part.iter_mut().zip(from.iter().step_by(stride)) {
                                *o = o.add_product(weight, *v);
                            }
                        }
                    },
                );
            }
        }
    };
    if out.len() * per_window >= 1 << 16 {
        out.par_chunks_exact_mut(positions).enumerate().for_each(one);
    } else {
        out.chunks_exact_mut(positions).enumerate().for_each(one);
    }
}

/// The convolution of elements of one kind.
pub(super) fn convolve_numbers(
    x: &Numbers<'_>,
    w: &Numbers<'_>,
    b: Option<&Numbers<'_>>,
    s: &Sizes,
) -> Result<Numbers<'static>> {
    Ok(match (x, w, b) {
        (Numbers::F32(x), Numbers::F32(w), None) => Numbers::F32(convolve(x, w, None, s)?.into()),
        (Numbers::F32(x), Numbers::F32(w), Some(Numbers::F32(b))) => Numbers::F32(convolve(x, w, Some(b), s)?.into()),
        (Numbers::F64(x), Numbers::F64(w), None) => Numbers::F64(convolve(x, w, None, s)?.into()),
        (Numbers::F64(x), Numbers::F64(w), Some(Numbers::F64(b))) => Numbers::F64(convolve(x, w, Some(b), s)?.into()),
        (Numbers::Int(x), Numbers::Int(w), None) => Numbers::Int(convolve(x, w, None, s)?.into()),
        (Numbers::Int(x), Numbers::Int(w), Some(Numbers::Int(b))) => Numbers::Int(convolve(x, w, Some(b), s)?.into()),
        _ => return Err(StandardError::new("operands of different element types")),
    })
}

pub(super) fn conv(c: &Call, x: &Args<'_>) -> Results {
    let (image, weight, bias) = (x.tensor(0)?, x.tensor(1)?, x.optional(2)?);
    if weight.dtype != image.dtype || bias.is_some_and(|b| b.dtype != image.dtype) {
        return Err(StandardError::new("operands of different element types"));
    }
    let s = Sizes::of(c, image.shape, weight.shape)?;
    check_bias(bias.map(|b| b.shape), s.channels.1)?;
    let out =
        convolve_numbers(&Numbers::of(&image), &Numbers::of(&weight), bias.as_ref().map(Numbers::of).as_ref(), &s)?;
    Ok(vec![Some(out.finish(image.dtype, &s.shape())?)])
}

pub(super) fn check_bias(bias: Option<&[usize]>, channels: usize) -> Result<()> {
    match bias {
        Some(b) if b != [channels] => Err(StandardError::new(format!("a bias of {b:?} for {channels} channels"))),
        _ => Ok(()),
    }
}

/// The shape of a convolution: images, channels, windows.
fn conv_shape(c: &Call, x: &Operand<'_>, w: &Operand<'_>) -> Result<Vec<Option<Dim>>> {
    let misfit = || StandardError::new(format!("a weight of {} does not fit an image of {}", w.ty, x.ty));
    let ([n, channels, image @ ..], [out, per_group, kernel @ ..]) = (&x.ty.shape[..], &w.ty.shape[..]) else {
        return Err(misfit());
    };
    let groups = groups(c)? as i64;
    let wrong =
        matches!((channels.as_const(), per_group.as_const()), (Some(a), Some(b)) if b.checked_mul(groups) != Some(a));
    if wrong || image.is_empty() || image.len() != kernel.len() || out.as_const().is_some_and(|o| o % groups != 0) {
        return Err(misfit());
    }
    let fixed: Option<Vec<usize>> = kernel.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
    let spatial = match (&fixed, c.ints("kernel_shape")) {
        (None, None) => vec![None; image.len()],
        _ => Attributes::of(c, image.len(), fixed.as_deref())?.counts(image)?,
    };
    Ok([n, out].into_iter().cloned().map(Some).chain(spatial).collect())
}

pub(super) fn conv_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let image = required(x, 0)?;
    Ok(vec![Partial { dtype: image.ty.dtype, shape: Some(conv_shape(c, &image, &required(x, 1)?)?) }])
}

pub(super) fn conv_integer_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    Ok(vec![Partial { dtype: DType::I32, shape: Some(conv_shape(c, &required(x, 0)?, &required(x, 1)?)?) }])
}

pub(super) fn qlinear_conv_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let dtype = required(x, 7)?.ty.dtype;
    Ok(vec![Partial { dtype, shape: Some(conv_shape(c, &required(x, 0)?, &required(x, 3)?)?) }])
}

/// Integers of eight bits less their zero point: one for all, or one for each entry of the first axis.
fn centred(x: &Args<'_>, i: usize, zero: usize) -> Result<Vec<i32>> {
    let v = x.tensor(i)?;
    if !matches!(v.dtype, DType::U8 | DType::I8) {
        return Err(crate::standard::elem::wrong_type(v.dtype));
    }
    let z: Vec<i32> = match x.optional(zero)? {
        Some(z) => integers(&z).into_iter().map(|z| z as i32).collect(),
        None => vec![0],
    };
    let per = v.shape.first().copied().unwrap_or(1);
    let inner = (v.len() / per.max(1)).max(1);
    if z.len() != 1 && z.len() != per {
        return Err(StandardError::new(format!("{} zero points for {:?}", z.len(), v.shape)));
    }
    let mut out = vec![0; v.len()];
    let size = if z.len() == 1 { v.len().max(1) } else { inner };
    for (i, (out, from)) in out.chunks_mut(size).zip(v.bytes.chunks(size)).enumerate() {
        let z = z[i];
        if v.dtype == DType::U8 {
            map(from, out, |v| i32::from(v) - z);
        } else {
            map(from, out, |v| i32::from(v as i8) - z);
        }
    }
    Ok(out)
}

pub(super) fn conv_integer(c: &Call, x: &Args<'_>) -> Results {
    let s = Sizes::of(c, x.tensor(0)?.shape, x.tensor(1)?.shape)?;
    let (image, weight) = (centred(x, 0, 2)?, centred(x, 1, 3)?);
    let out = convolve(&image, &weight, None, &s)?;
    Ok(vec![Some(make(DType::I32, &s.shape(), out)?)])
}

pub(super) fn qlinear_conv(c: &Call, x: &Args<'_>) -> Results {
    let s = Sizes::of(c, x.tensor(0)?.shape, x.tensor(3)?.shape)?;
    let depth = s.channels.0 / s.groups * s.window.kernel.iter().product::<usize>();
    if depth > EXACT_DEPTH {
        return Err(StandardError::new(format!("sums of {depth} products do not fit 32 bits")));
    }
    let (image, weight) = (centred(x, 0, 2)?, centred(x, 3, 5)?);
    let bias = x.ints(8)?;
    check_bias(x.optional(8)?.map(|b| b.shape), s.channels.1)?;
    let sums = convolve(&image, &weight, None, &s)?;
    let one = |i: usize| x.scalar(i)?.ok_or_else(|| StandardError::new(format!("operand {i} is missing")));
    let (x_scale, y_scale) = (one(1)?, one(6)?);
    let w_scale = floats(&x.tensor(4)?);
    let zero = x.tensor(7)?;
    let z = one(7)?;
    if w_scale.len() != 1 && w_scale.len() != s.channels.1 {
        return Err(StandardError::new(format!("{} scales for {} channels", w_scale.len(), s.channels.1)));
    }
    let (low, high) = if zero.dtype == DType::I8 { (-128.0, 127.0) } else { (0.0, 255.0) };
    let positions: usize = s.window.out.iter().product();
    let plane = |at: usize, out: &mut [u8]| {
        let channel = at / positions.max(1) % s.channels.1;
        let scale = x_scale * w_scale[if w_scale.len() == 1 { 0 } else { channel }] / y_scale;
        let bias = bias.as_ref().map_or(0.0, |b| b[channel] as f64);
        // Round half to even, then move the zero point: the order of the quantisation itself.
        let one = |v: i32| (((f64::from(v) + bias) * scale).round_ties_even() + z).clamp(low, high) as i32 as u8;
        map(&sums[at..], out, one);
    };
    Ok(vec![Some(fill_by(zero.dtype, &s.shape(), positions, plane)?)])
}

/// Pads, extents and strides of a transposed convolution.
struct Transposed {
    attributes: Attributes,
    extra: Vec<i64>,
    fixed: Option<Vec<i64>>,
}

impl Transposed {
    fn of(c: &Call, rank: usize, kernel: Option<&[usize]>) -> Result<Transposed> {
        let extra = c.ints("output_padding").map_or_else(|| vec![0; rank], <[i64]>::to_vec);
        // Some exporters write the batch and channel axes, too.
        let fixed = c.ints("output_shape").map(|s| s[s.len().saturating_sub(rank)..].to_vec());
        if extra.len() < rank || fixed.as_ref().is_some_and(|f| f.len() != rank) {
            return Err(StandardError::new(format!(
                "`output_padding` or `output_shape` do not fit {rank} spatial axes"
            )));
        }
        Ok(Transposed { attributes: Attributes::of(c, rank, kernel)?, extra, fixed })
    }

    /// Elements removed before, and the extent, of an axis of `n` elements.
    fn axis(&self, i: usize, n: i64) -> (i64, i64) {
        let a = &self.attributes;
        let stride = a.strides[i] as i64;
        let full = stride * (n - 1) + self.extra[i] + a.span(i);
        let extent = match (&self.fixed, a.auto) {
            (Some(f), _) => f[i],
            (None, super::window::Auto::Upper | super::window::Auto::Lower) => n * stride,
            (None, super::window::Auto::Valid) => return (0, full),
            (None, super::window::Auto::Explicit) => return (a.pads[i], full - a.pads[i] - a.pads[a.kernel.len() + i]),
        };
        let total = full - extent;
        let begin = match a.auto {
            super::window::Auto::Upper => total.div_euclid(2),
            super::window::Auto::Explicit if a.pads.iter().any(|&p| p != 0) => a.pads[i],
            _ => total - total.div_euclid(2),
        };
        (begin, extent)
    }
}

pub(super) fn conv_transpose(c: &Call, x: &Args<'_>) -> Results {
    let (image, weight, bias) = (x.tensor(0)?, x.tensor(1)?, x.optional(2)?);
    if weight.dtype != image.dtype || bias.is_some_and(|b| b.dtype != image.dtype) {
        return Err(StandardError::new("operands of different element types"));
    }
    let misfit =
        || StandardError::new(format!("a weight of {:?} does not fit an image of {:?}", weight.shape, image.shape));
    let (&[n, channels, ref spatial @ ..], &[from, per_group, ref kernel @ ..]) = (image.shape, weight.shape) else {
        return Err(misfit());
    };
    let groups = groups(c)?;
    if spatial.is_empty() || kernel.len() != spatial.len() || from != channels || channels % groups != 0 {
        return Err(misfit());
    }
    let t = Transposed::of(c, spatial.len(), Some(kernel))?;
    let axes: Vec<(i64, i64)> = spatial.iter().enumerate().map(|(i, &d)| t.axis(i, d as i64)).collect();
    let extents: Vec<usize> = axes.iter().map(|a| usize::try_from(a.1).map_err(|_| misfit())).collect::<Result<_>>()?;
    let out_channels = per_group.checked_mul(groups).ok_or_else(misfit)?;
    let shape = [&[n, out_channels], &extents[..]].concat();
    count(DType::F64, &shape)?;
    check_bias(bias.map(|b| b.shape), out_channels)?;
    // The roles of image and result are those of a convolution that goes the other way.
    let window = Window {
        kernel: kernel.to_vec(),
        strides: t.attributes.strides.clone(),
        dilations: t.attributes.dilations.clone(),
        begin: axes.iter().map(|a| a.0).collect(),
        end: vec![0; spatial.len()],
        out: spatial.to_vec(),
    };
    let s = Sizes { n, channels: (out_channels, channels), groups, image: extents, window };
    let out = match (Numbers::of(&image), Numbers::of(&weight), bias.as_ref().map(Numbers::of)) {
        (Numbers::F32(x), Numbers::F32(w), None) => Numbers::F32(spread(&x, &w, None, &s)?.into()),
        (Numbers::F32(x), Numbers::F32(w), Some(Numbers::F32(b))) => Numbers::F32(spread(&x, &w, Some(&b), &s)?.into()),
        (Numbers::F64(x), Numbers::F64(w), None) => Numbers::F64(spread(&x, &w, None, &s)?.into()),
        (Numbers::F64(x), Numbers::F64(w), Some(Numbers::F64(b))) => Numbers::F64(spread(&x, &w, Some(&b), &s)?.into()),
        _ => return Err(StandardError::new(format!("a transposed convolution of {} is not supported", image.dtype))),
    };
    Ok(vec![Some(out.finish(image.dtype, &shape)?)])
}

/// Each image element adds the window, scaled, to the result.
fn spread<T: Scalar>(x: &[T], w: &[T], bias: Option<&[T]>, s: &Sizes) -> Result<Vec<T>> {
    let positions: usize = s.window.out.iter().product();
    let plane: usize = s.image.iter().product();
    let (out_group, in_group) = (s.channels.0 / s.groups, s.channels.1 / s.groups);
    let per_window: usize = s.window.kernel.iter().product();
    let mut out = vec![T::ZERO; s.n * s.channels.0 * plane];
    if positions == 0 || out.is_empty() {
        return Ok(out);
    }
    let depth = out_group * per_window;
    let rank = s.image.len();
    let (image, stride, width) = (s.image[rank - 1], s.window.strides[rank - 1], s.window.out[rank - 1]);
    let lead: Vec<Vec<usize>> = (0..positions / width).map(|r| unravel(r, &s.window.out[..rank - 1])).collect();
    let mut parts = vec![T::ZERO; count(DType::F64, &[depth, positions])?];
    for n in 0..s.n {
        for g in 0..s.groups {
            let a = Matrix::rows(&w[g * in_group * depth..][..in_group * depth], in_group, depth).t();
            let b = Matrix::rows(
                &x[(n * s.channels.1 + g * in_group) * positions..][..in_group * positions],
                in_group,
                positions,
            );
            T::multiply(a, b, &mut parts, positions)?;
            let out = &mut out[(n * s.channels.0 + g * out_group) * plane..][..out_group * plane];
            let one = |(channel, out): (usize, &mut [T])| {
                for k in 0..per_window {
                    let part = &parts[(channel * per_window + k) * positions..][..positions];
                    let k = unravel(k, &s.window.kernel);
                    let inside = s.window.inside(rank - 1, k[rank - 1], image);
                    if inside.is_empty() {
                        continue;
                    }
                    let first = (inside.start * stride + k[rank - 1] * s.window.dilations[rank - 1]) as i64
                        - s.window.begin[rank - 1];
                    for (at, row) in lead.iter().zip(part.chunks_exact(width)) {
                        let Some(start) = s.window.place(at, &k, &s.image) else { continue };
                        let to = out[start * image + first as usize..].iter_mut().step_by(stride);
                        to.zip(&row[inside.clone()]).for_each(|(o, v)| *o = o.plus(*v));
                    }
                }
            };
            if parts.len() >= 1 << 14 {
                out.par_chunks_exact_mut(plane).enumerate().for_each(one);
            } else {
                out.chunks_exact_mut(plane).enumerate().for_each(one);
            }
        }
    }
    if let Some(b) = bias {
        for (i, part) in out.chunks_exact_mut(plane).enumerate() {
            let b = b[i % s.channels.0];
            part.iter_mut().for_each(|o| *o = o.plus(b));
        }
    }
    Ok(out)
}

pub(super) fn conv_transpose_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (image, weight) = (required(x, 0)?, required(x, 1)?);
    let misfit = || StandardError::new(format!("a weight of {} does not fit an image of {}", weight.ty, image.ty));
    let ([n, channels, spatial @ ..], [from, per_group, kernel @ ..]) = (&image.ty.shape[..], &weight.ty.shape[..])
    else {
        return Err(misfit());
    };
    let wrong = matches!((channels.as_const(), from.as_const()), (Some(a), Some(b)) if a != b);
    if wrong || spatial.is_empty() || spatial.len() != kernel.len() {
        return Err(misfit());
    }
    let out = per_group * &Dim::from(groups(c)? as i64);
    let fixed: Option<Vec<usize>> = kernel.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
    let extents: Vec<Option<Dim>> = match (&fixed, c.ints("kernel_shape")) {
        (None, None) => vec![None; spatial.len()],
        _ => {
            let t = Transposed::of(c, spatial.len(), fixed.as_deref())?;
            // The extent grows by one stride with each element, unless it is given.
            let line = |(i, d): (usize, &Dim)| {
                let (zero, step) = (t.axis(i, 0).1, t.axis(i, 1).1 - t.axis(i, 0).1);
                Some(&(d * &Dim::from(step)) + &Dim::from(zero))
            };
            spatial.iter().enumerate().map(line).collect()
        }
    };
    let shape = [Some(n.clone()), Some(out)].into_iter().chain(extents).collect();
    Ok(vec![Partial { dtype: image.ty.dtype, shape: Some(shape) }])
}
