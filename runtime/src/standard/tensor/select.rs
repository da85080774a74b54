//! Elements in another order, triangles, and columns back into images.

use super::moved::{Source, assemble, carried, extents};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::{
    Args, Call, Data, Operand, Partial, StandardError, axis, count, floats, from_floats, from_ints, integers, strides,
};
use crate::tensor::Tensor;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

pub(super) fn reverse_sequence(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let lengths = x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the lengths, is missing"))?;
    let batch = axis(c.int("batch_axis").unwrap_or(1), data.rank())?;
    let time = axis(c.int("time_axis").unwrap_or(0), data.rank())?;
    let n = data.shape[time];
    let lengths: Vec<usize> = lengths.iter().filter_map(|&l| usize::try_from(l).ok().filter(|&l| l <= n)).collect();
    if batch == time || lengths.len() != data.shape[batch] {
        return Err(StandardError::new(format!(
            "the lengths do not fit {:?} with the axes {batch} and {time}",
            data.shape
        )));
    }
    let steps = strides(data.shape);
    let starts = (0..data.len()).map(|i| {
        let t = i / steps[time] % n;
        let length = lengths[i / steps[batch] % data.shape[batch]];
        if t < length { i - t * steps[time] + (length - 1 - t) * steps[time] } else { i }
    });
    Ok(vec![Some(data.take(data.shape, 1, starts)?)])
}

/// The block size of `DepthToSpace` and `SpaceToDepth`.
fn block_size(c: &Call) -> Result<usize> {
    usize::try_from(c.required_int("blocksize")?)
        .ok()
        .filter(|&b| (1..1 << 24).contains(&b))
        .ok_or_else(|| StandardError::new("`blocksize` is not positive"))
}

pub(super) fn depth_to_space(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let b = block_size(c)?;
    let &[n, depth, h, w] = data.shape else {
        return Err(StandardError::new(format!("{:?} has not four axes", data.shape)));
    };
    if depth % (b * b) != 0 {
        return Err(StandardError::new(format!("{depth} channels do not make blocks of {b} x {b}")));
    }
    let channels = depth / (b * b);
    // Strides in the operand of the axes n, channel, h, row of block, w, column of block.
    let s = strides(data.shape);
    let (channel, row, column) = match c.text("mode").unwrap_or("DCR") {
        "DCR" => (s[1], s[1] * b * channels, s[1] * channels),
        "CRD" => (s[1] * b * b, s[1] * b, s[1]),
        m => return Err(StandardError::new(format!("the mode `{m}` is unknown; there are DCR and CRD"))),
    };
    let walk = [s[0], channel, s[2], row, s[3], column].map(|v| v as isize);
    Ok(vec![Some(data.strided(&[n, channels, h * b, w * b], &[n, channels, h, b, w, b], &walk, 0)?)])
}

pub(super) fn depth_to_space_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    let b = Dim::from(block_size(c)? as i64);
    match &data.ty.shape[..] {
        _ if data.ty.dtype == DType::Opaque => Ok(vec![Partial::opaque()]),
        [n, d, h, w] => Ok(vec![carried(
            data.ty.dtype,
            [Some(n.clone()), Some(d.floor_div(&(&b * &b))), Some(h * &b), Some(w * &b)],
        )]),
        _ => Err(StandardError::new(format!("{} has not four axes", data.ty))),
    }
}

pub(super) fn space_to_depth(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let b = block_size(c)?;
    let &[n, channels, h, w] = data.shape else {
        return Err(StandardError::new(format!("{:?} has not four axes", data.shape)));
    };
    if h % b != 0 || w % b != 0 {
        return Err(StandardError::new(format!("an image of {h} x {w} does not consist of blocks of {b} x {b}")));
    }
    let s = strides(data.shape);
    let walk = [s[0], s[2], s[3], s[1], s[2] * b, s[3] * b].map(|v| v as isize);
    let shape = [n, channels * b * b, h / b, w / b];
    Ok(vec![Some(data.strided(&shape, &[n, b, b, channels, h / b, w / b], &walk, 0)?)])
}

pub(super) fn space_to_depth_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    let b = Dim::from(block_size(c)? as i64);
    match &data.ty.shape[..] {
        _ if data.ty.dtype == DType::Opaque => Ok(vec![Partial::opaque()]),
        [n, d, h, w] => Ok(vec![carried(
            data.ty.dtype,
            [Some(n.clone()), Some(&(d * &b) * &b), Some(h.floor_div(&b)), Some(w.floor_div(&b))],
        )]),
        _ => Err(StandardError::new(format!("{} has not four axes", data.ty))),
    }
}

pub(super) fn trilu(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let k = x.ints(1)?.and_then(|k| k.first().copied()).unwrap_or(0);
    let upper = c.flag("upper", true);
    let &[.., rows, columns] = data.shape else {
        return Err(StandardError::new(format!("{:?} has no matrices", data.shape)));
    };
    if let Some(v) = data.numbers() {
        // Bytes of zeros are zeros of every type.
        let size = v.dtype.size();
        let row = columns * size;
        let mut t = Tensor::from_bytes(v.dtype, v.shape, v.bytes)?;
        for (i, line) in t.bytes_mut().chunks_exact_mut(row.max(1)).enumerate() {
            let r = (i % rows.max(1)) as i64;
            // The first column on the other side of the diagonal, or the first on its side.
            let edge = (r.saturating_add(k).saturating_add(i64::from(!upper))).clamp(0, columns as i64) as usize * size;
            if upper { line[..edge].fill(0) } else { line[edge..].fill(0) }
        }
        return Ok(vec![Some(t.into())]);
    }
    let blank = super::build::blank(data.dtype())?;
    let blank = Source::data(&blank).ok_or_else(|| StandardError::new("no value to fill with"))?;
    let keep = |i: usize| {
        let beyond = (i % columns) as i64 - (i / columns % rows) as i64;
        if upper { beyond >= k } else { beyond <= k }
    };
    let picks = (0..data.len()).map(|i| if keep(i) { (0, i) } else { (1, 0) });
    Ok(vec![Some(assemble(data.shape, 1, &[data, blank], picks)?)])
}

/// Extents, strides and the like of the windows of `Col2Im`.
struct Windows {
    image: Vec<usize>,
    block: Vec<usize>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    strides: Vec<i64>,
}

impl Windows {
    fn of(c: &Call, image: &[i64], block: &[i64]) -> Result<Windows> {
        let d = image.len();
        let list = |name: &str, n: usize, v: i64| c.ints(name).map_or_else(|| vec![v; n], <[i64]>::to_vec);
        let w = Windows {
            image: extents(image)?,
            block: extents(block)?,
            dilations: list("dilations", d, 1),
            pads: list("pads", 2 * d, 0),
            strides: list("strides", d, 1),
        };
        let small = |v: &i64| (1..1 << 31).contains(v);
        if w.block.len() != d
            || w.dilations.len() != d
            || w.pads.len() != 2 * d
            || w.strides.len() != d
            || !w.strides.iter().chain(&w.dilations).all(small)
            || !w.pads.iter().all(|p| (0..1 << 31).contains(p))
            || w.block.contains(&0)
        {
            return Err(StandardError::new(format!(
                "the attributes do not fit images of {image:?} and blocks of {block:?}"
            )));
        }
        Ok(w)
    }

    /// Positions of the window along each axis.
    fn columns(&self) -> Vec<usize> {
        let column = |i: usize| {
            let span = self.image[i] as i64 + self.pads[i] + self.pads[self.image.len() + i]
                - self.dilations[i] * (self.block[i] as i64 - 1)
                - 1;
            if span < 0 { 0 } else { (span / self.strides[i] + 1) as usize }
        };
        (0..self.image.len()).map(column).collect()
    }
}

pub(super) fn col2im(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let image = x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the image's shape, is missing"))?;
    let block = x.ints(2)?.ok_or_else(|| StandardError::new("operand 2, the block's shape, is missing"))?;
    let w = Windows::of(c, &image, &block)?;
    let columns = w.columns();
    let (per_block, positions) = (count(DType::U8, &w.block)?, count(DType::U8, &columns)?);
    let &[n, depth, length] = v.shape else {
        return Err(StandardError::new(format!("{:?} has not three axes", v.shape)));
    };
    if depth % per_block != 0 || length != positions {
        return Err(StandardError::new(format!(
            "{:?} does not hold blocks of {block:?} at {positions} positions of an image of {image:?}",
            v.shape
        )));
    }
    let planes = n * (depth / per_block);
    let size = count(DType::U8, &w.image)?;
    let shape = [&[n, depth / per_block], &w.image[..]].concat();
    count(DType::F64, &shape)?;
    // For each element of a block and each position, where it lands in the image.
    let steps = strides(&w.image);
    let mut targets = Vec::with_capacity(per_block * positions);
    for k in 0..per_block {
        for p in 0..positions {
            let (mut k, mut p, mut at) = (k, p, Some(0usize));
            for d in (0..w.image.len()).rev() {
                let i = (p % columns[d]) as i64 * w.strides[d] - w.pads[d] + (k % w.block[d]) as i64 * w.dilations[d];
                let i = usize::try_from(i).ok().filter(|&i| i < w.image[d]);
                at = at.zip(i).map(|(at, i)| at + i * steps[d]);
                k /= w.block[d];
                p /= columns[d];
            }
            targets.push(at);
        }
    }
    let run = per_block * positions;
    if v.dtype.is_float() || v.dtype.is_minifloat() {
        let (from, mut out) = (floats(&v), vec![0.0; planes * size]);
        for plane in 0..planes {
            for (t, value) in targets.iter().zip(&from[plane * run..(plane + 1) * run]) {
                t.iter().for_each(|t| out[plane * size + t] += value);
            }
        }
        return Ok(vec![Some(from_floats(v.dtype, &shape, out)?)]);
    }
    let (from, mut out) = (integers(&v), vec![0i128; planes * size]);
    for plane in 0..planes {
        for (t, value) in targets.iter().zip(&from[plane * run..(plane + 1) * run]) {
            t.iter().for_each(|t| out[plane * size + t] += value);
        }
    }
    Ok(vec![Some(from_ints(v.dtype, &shape, out)?)])
}

pub(super) fn col2im_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (data, image, block) = (required(x, 0)?, required(x, 1)?, required(x, 2)?);
    let [n, depth, _] = &data.ty.shape[..] else {
        return Err(StandardError::new(format!("{} has not three axes", data.ty)));
    };
    if let (Some(i), Some(b)) = (image.ints(), block.ints()) {
        Windows::of(c, &i, &b)?;
    }
    let rank = super::moved::length(&image).or(super::moved::length(&block));
    let Some(rank) = rank else { return Ok(vec![Partial::unranked(data.ty.dtype)]) };
    let channels = block.values.map(|b| depth.floor_div(&b.iter().fold(Dim::from(1), |n, d| &n * d)));
    let spatial = match image.values {
        Some(v) => v.iter().cloned().map(Some).collect(),
        None => vec![None; rank],
    };
    Ok(vec![carried(data.ty.dtype, [Some(n.clone()), channels].into_iter().chain(spatial))])
}
