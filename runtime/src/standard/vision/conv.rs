//! Convolutions: by matrix products over columns of image elements, by plain sums where a group has one channel.

use rayon::prelude::*;

use super::window::{Attributes, Lines, Window, strided};
use crate::cpu::integer::{self, Left, Zero};
use crate::cpu::math::int_of;
use crate::cpu::matmul::{Matrix, product};
use crate::cpu::simd::{map, vectorised};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::elem::{fill_by, fill_whole};
use crate::standard::infer::required;
use crate::standard::math::EXACT_DEPTH;
use crate::standard::tensor::{Numbers, parallelism};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, floats, integers};
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// Elements of a block of columns.
const COLUMNS: usize = 1 << 22;

/// What a convolution computes in.
pub(super) trait Scalar: Copy + Send + Sync + 'static {
    /// What products are added up in.
    type Sum: Copy + Send + Sync + 'static;
    const ZERO: Self;
    /// `sum + a * b`.
    fn add_product(sum: Self::Sum, a: Self, b: Self) -> Self::Sum;
    fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum;
    /// out := a * b.
    fn multiply(a: Matrix<'_, Self>, b: Matrix<'_, Self>, out: &mut [Self::Sum], step: usize) -> Result<()>;
}

macro_rules! float_scalar {
    ($t:ty) => {
        impl Scalar for $t {
            type Sum = $t;
            const ZERO: Self = 0.0;
            #[inline(always)]
            fn add_product(sum: Self, a: Self, b: Self) -> Self {
                sum + a * b
            }
            #[inline(always)]
            fn add(a: Self, b: Self) -> Self {
                a + b
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
impl Scalar for i16 {
    type Sum = i32;
    const ZERO: Self = 0;
    #[inline(always)]
    fn add_product(sum: i32, a: Self, b: Self) -> i32 {
        sum.wrapping_add(i32::from(a) * i32::from(b))
    }
    #[inline(always)]
    fn add(a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }
    fn multiply(a: Matrix<'_, Self>, b: Matrix<'_, Self>, out: &mut [i32], step: usize) -> Result<()> {
        let left = Left::new(a.data, a.rows, a.cols, Zero::One(0));
        let y = integer::product(&left, b.data, b.cols, Zero::One(0), rayon::current_num_threads());
        for (r, row) in out.chunks_mut(step.max(1)).take(a.rows).enumerate() {
            y.row(r).for_each(|(c, v)| row[c..c + v.len()].copy_from_slice(v));
        }
        Ok(())
    }
}

impl Scalar for i64 {
    type Sum = i64;
    const ZERO: Self = 0;
    #[inline(always)]
    fn add_product(sum: Self, a: Self, b: Self) -> Self {
        sum.wrapping_add(a.wrapping_mul(b))
    }
    #[inline(always)]
    fn add(a: Self, b: Self) -> Self {
        a.wrapping_add(b)
    }
    fn multiply(a: Matrix<'_, Self>, b: Matrix<'_, Self>, out: &mut [Self], step: usize) -> Result<()> {
        for (r, row) in out.chunks_mut(step.max(1)).take(a.rows).enumerate() {
            let row = &mut row[..b.cols];
            row.fill(0);
            for l in 0..a.cols {
                let v = a.data[r * a.row_step + l * a.col_step];
                for (c, o) in row.iter_mut().enumerate() {
                    *o = Self::add_product(*o, v, b.data[l * b.row_step + c * b.col_step]);
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

/// One row per channel and element of the window, one column per window: the image elements that meet. `rows` are the lines of windows.
fn columns<T: Scalar>(x: &[T], lines: &Lines, plane: usize, rows: std::ops::Range<usize>, out: &mut [T]) {
    let (kernel, width, extent) = (lines.steps.len(), lines.width, lines.extent);
    let size = rows.len() * width;
    let fill = |(r, line): (usize, &mut [T])| {
        let (places, (inside, first)) = (&lines.places[r / kernel % lines.places.len()], &lines.steps[r % kernel]);
        let x = &x[r / (kernel * lines.places.len()) * plane..][..plane];
        for (part, &place) in line.chunks_exact_mut(width).zip(&places[rows.clone()]) {
            if place == usize::MAX || inside.is_empty() {
                part.fill(T::ZERO);
                continue;
            }
            part[..inside.start].fill(T::ZERO);
            part[inside.end..].fill(T::ZERO);
            strided(
                &mut part[inside.clone()],
                &x[place * extent + first..(place + 1) * extent],
                lines.stride,
                |o, v| {
                    *o = v;
                },
            );
        }
    };
    if out.len() >= 1 << 16 {
        out.par_chunks_exact_mut(size.max(1)).enumerate().for_each(fill);
    } else {
        out.chunks_exact_mut(size.max(1)).enumerate().for_each(fill);
    }
}

/// The convolution, into zeros; `bias` has one element per channel of the result.
fn convolve<T: Scalar>(x: &[T], w: &[T], bias: Option<&[T::Sum]>, s: &Sizes, out: &mut [T::Sum]) -> Result<()> {
    let positions: usize = s.window.out.iter().product();
    let plane: usize = s.image.iter().product();
    let (in_group, out_group) = (s.channels.0 / s.groups, s.channels.1 / s.groups);
    let per_window: usize = s.window.kernel.iter().product();
    let depth = in_group * per_window;
    if out.is_empty() {
        return Ok(());
    }
    if in_group == 1 && out_group <= 4 {
        direct(x, w, s, out);
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
        let lines = Lines::of(&s.window, &s.image);
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
                    columns(x, &lines, plane, first..last, part);
                    T::multiply(a, Matrix::rows(part, depth, size), &mut out[first * width..], positions)?;
                }
            }
        }
    }
    if let Some(b) = bias {
        for (i, part) in out.chunks_exact_mut(positions).enumerate() {
            let b = b[i % s.channels.1];
            part.iter_mut().for_each(|o| *o = T::add(*o, b));
        }
    }
    Ok(())
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
fn direct<T: Scalar>(x: &[T], w: &[T], s: &Sizes, out: &mut [T::Sum]) {
    let lines = Lines::of(&s.window, &s.image);
    let positions: usize = s.window.out.iter().product();
    let plane: usize = s.image.iter().product();
    let per_window: usize = s.window.kernel.iter().product();
    let out_group = s.channels.1 / s.groups;
    let one = |(i, out): (usize, &mut [T::Sum])| {
        let (n, channel) = (i / s.channels.1, i % s.channels.1);
        let x = &x[(n * s.channels.0 + channel / out_group) * plane..][..plane];
        let (weights, lines) = (&w[channel * per_window..][..per_window], &lines);
        vectorised(
            #[inline(always)]
            move || {
                for (places, weights) in lines.places.iter().zip(weights.chunks_exact(lines.steps.len())) {
                    for (out, &place) in out.chunks_exact_mut(lines.width).zip(places) {
                        if place == usize::MAX {
                            continue;
                        }
                        let from = &x[place * lines.extent..][..lines.extent];
                        for ((inside, first), &weight) in lines.steps.iter().zip(weights) {
                            if !inside.is_empty() {
                                let add = |o: &mut T::Sum, v: T| *o = T::add_product(*o, weight, v);
                                strided(&mut out[inside.clone()], &from[*first..], lines.stride, add);
                            }
                        }
                    }
                }
            },
        );
    };
    if out.len() * per_window >= 1 << 16 {
        out.par_chunks_exact_mut(positions).enumerate().for_each(one);
    } else {
        out.chunks_exact_mut(positions).enumerate().for_each(one);
    }
}

/// What a convolution of either direction computes: image, weight, bias, extents and the zeros that it fills.
type Convolution<T> = fn(&[T], &[T], Option<&[T]>, &Sizes, &mut [T]) -> Result<()>;

/// The convolution of tensors of one element type, in the type that it is computed in.
fn convolved(
    (dtype, shape): (DType, &[usize]),
    (x, w, bias): (&View<'_>, &View<'_>, Option<&View<'_>>),
    s: &Sizes,
    (single, double, int): (Convolution<f32>, Convolution<f64>, Convolution<i64>),
) -> Result<Data> {
    let n = count(DType::F64, shape)?;
    let bias = bias.map(Numbers::of);
    let mixed = || StandardError::new("operands of different element types");
    macro_rules! run {
        ($variant:ident, $own:expr, $zero:expr, $f:ident, $x:ident, $w:ident) => {{
            let bias = match &bias {
                None => None,
                Some(Numbers::$variant(b)) => Some(&b[..]),
                Some(_) => return Err(mixed()),
            };
            if dtype == $own {
                return fill_whole(dtype, shape, |out| $f(&$x, &$w, bias, s, out));
            }
            let mut out = vec![$zero; n];
            $f(&$x, &$w, bias, s, &mut out)?;
            Numbers::$variant(out.into()).finish(dtype, shape)
        }};
    }
    match (Numbers::of(x), Numbers::of(w)) {
        (Numbers::F32(x), Numbers::F32(w)) => run!(F32, DType::F32, 0f32, single, x, w),
        (Numbers::F64(x), Numbers::F64(w)) => run!(F64, DType::F64, 0f64, double, x, w),
        (Numbers::Int(x), Numbers::Int(w)) => run!(Int, DType::I64, 0i64, int, x, w),
        _ => Err(mixed()),
    }
}

pub(super) fn conv(c: &Call, x: &Args<'_>) -> Results {
    let (image, weight, bias) = (x.tensor(0)?, x.tensor(1)?, x.optional(2)?);
    if weight.dtype != image.dtype || bias.is_some_and(|b| b.dtype != image.dtype) {
        return Err(StandardError::new("operands of different element types"));
    }
    let s = Sizes::of(c, image.shape, weight.shape)?;
    check_bias(bias.map(|b| b.shape), s.channels.1)?;
    let forwards: (Convolution<f32>, Convolution<f64>, Convolution<i64>) = (convolve, convolve, convolve);
    Ok(vec![Some(convolved((image.dtype, &s.shape()), (&image, &weight, bias.as_ref()), &s, forwards)?)])
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
fn centred(x: &Args<'_>, i: usize, zero: usize) -> Result<Vec<i16>> {
    let v = x.tensor(i)?;
    if !matches!(v.dtype, DType::U8 | DType::I8) {
        return Err(crate::standard::elem::wrong_type(v.dtype));
    }
    let z: Vec<i16> = match x.optional(zero)? {
        Some(z) => integers(&z).into_iter().map(|z| z as i16).collect(),
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
            map(from, out, move |v| i16::from(v) - z);
        } else {
            map(from, out, move |v| i16::from(v as i8) - z);
        }
    }
    Ok(out)
}

pub(super) fn conv_integer(c: &Call, x: &Args<'_>) -> Results {
    let s = Sizes::of(c, x.tensor(0)?.shape, x.tensor(1)?.shape)?;
    let (image, weight) = (centred(x, 0, 2)?, centred(x, 1, 3)?);
    Ok(vec![Some(fill_whole(DType::I32, &s.shape(), |out| convolve(&image, &weight, None, &s, out))?)])
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
    let mut sums = vec![0; count(DType::I32, &s.shape())?];
    convolve(&image, &weight, None, &s, &mut sums)?;
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
        let one = move |v: i32| int_of((((f64::from(v) + bias) * scale).round_ties_even() + z).clamp(low, high)) as u8;
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
    if !image.dtype.is_float() {
        return Err(StandardError::new(format!("a transposed convolution of {} is not supported", image.dtype)));
    }
    let backwards: (Convolution<f32>, Convolution<f64>, Convolution<i64>) = (spread, spread, spread);
    Ok(vec![Some(convolved((image.dtype, &shape), (&image, &weight, bias.as_ref()), &s, backwards)?)])
}

/// Each image element adds the window, scaled, to the result, which is zeros before.
fn spread<T: Scalar<Sum = T>>(x: &[T], w: &[T], bias: Option<&[T]>, s: &Sizes, out: &mut [T]) -> Result<()> {
    let positions: usize = s.window.out.iter().product();
    let plane: usize = s.image.iter().product();
    let (out_group, in_group) = (s.channels.0 / s.groups, s.channels.1 / s.groups);
    let per_window: usize = s.window.kernel.iter().product();
    if out.is_empty() {
        return Ok(());
    }
    let depth = out_group * per_window;
    let lines = Lines::of(&s.window, &s.image);
    let mut parts = vec![T::ZERO; count(DType::F64, &[depth, positions])?];
    // An image without elements leaves the bias.
    for n in 0..if positions == 0 { 0 } else { s.n } {
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
                let (parts, lines) = (&parts[channel * per_window * positions..], &lines);
                vectorised(
                    #[inline(always)]
                    move || {
                        let kernel = lines.places.iter().flat_map(|p| lines.steps.iter().map(move |s| (p, s)));
                        for (part, (places, (inside, first))) in parts.chunks_exact(positions).zip(kernel) {
                            for (row, &place) in part.chunks_exact(lines.width).zip(places) {
                                if place == usize::MAX || inside.is_empty() {
                                    continue;
                                }
                                let line = &mut out[place * lines.extent..][..lines.extent];
                                let (to, from) = (&mut line[*first..], &row[inside.clone()]);
                                match lines.stride {
                                    1 => to.iter_mut().zip(from).for_each(|(o, v)| *o = T::add(*o, *v)),
                                    2 => {
                                        let (pairs, rest) = to.as_chunks_mut::<2>();
                                        let (whole, end) = from.split_at(pairs.len().min(from.len()));
                                        pairs.iter_mut().zip(whole).for_each(|(o, v)| o[0] = T::add(o[0], *v));
                                        rest.iter_mut().zip(end).for_each(|(o, v)| *o = T::add(*o, *v));
                                    }
                                    n => to.iter_mut().step_by(n).zip(from).for_each(|(o, v)| *o = T::add(*o, *v)),
                                }
                            }
                        }
                    },
                );
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
            part.iter_mut().for_each(|o| *o = T::add(*o, b));
        }
    }
    Ok(())
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
