//! What detectors need: the best boxes, and pools of regions; convolutions whose windows are bent.

use super::conv::{Sizes, check_bias, convolve_columns};
use super::grid::{Around, Kind, taps};
use super::window::{Attributes, unravel};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::tensor::carried;
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, floats, from_floats, from_ints};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// Corners of a box: (low, high) along both axes.
fn corners(b: &[f64], centred: bool) -> [(f64, f64); 2] {
    match centred {
        true => [(b[0] - b[2] / 2.0, b[0] + b[2] / 2.0), (b[1] - b[3] / 2.0, b[1] + b[3] / 2.0)],
        false => [(b[0].min(b[2]), b[0].max(b[2])), (b[1].min(b[3]), b[1].max(b[3]))],
    }
}

/// Whether two boxes share more of their union than a threshold.
fn overlap(a: &[(f64, f64); 2], b: &[(f64, f64); 2], threshold: f64) -> bool {
    let area = |r: &[(f64, f64); 2]| (r[0].1 - r[0].0) * (r[1].1 - r[1].0);
    let side = |i: usize| a[i].1.min(b[i].1) - a[i].0.max(b[i].0);
    let (w, h) = (side(0), side(1));
    if w <= 0.0 || h <= 0.0 || area(a) <= 0.0 || area(b) <= 0.0 {
        return false;
    }
    w * h / (area(a) + area(b) - w * h) > threshold
}

pub(super) fn non_max_suppression(c: &Call, x: &Args<'_>) -> Results {
    let (boxes, scores) = (x.tensor(0)?, x.tensor(1)?);
    let (&[n, count_boxes, 4], &[batch, classes, of]) = (boxes.shape, scores.shape) else {
        return Err(StandardError::new(format!("boxes of {:?} and scores of {:?}", boxes.shape, scores.shape)));
    };
    if batch != n || of != count_boxes {
        return Err(StandardError::new(format!("boxes of {:?} and scores of {:?}", boxes.shape, scores.shape)));
    }
    let one = |i: usize| -> Result<Option<f64>> {
        if x.optional(i)?.is_some_and(|v| !v.is_empty()) { x.scalar(i) } else { Ok(None) }
    };
    let most = one(2)?.unwrap_or(0.0).max(0.0) as usize;
    let threshold = one(3)?.unwrap_or(0.0);
    let least = one(4)?;
    let centred = c.flag("center_point_box", false);
    let (all_boxes, all_scores) = (floats(&boxes), floats(&scores));
    let mut out: Vec<i128> = vec![];
    for b in 0..n {
        let rects: Vec<_> =
            (0..count_boxes).map(|i| corners(&all_boxes[(b * count_boxes + i) * 4..][..4], centred)).collect();
        for class in 0..classes {
            let scores = &all_scores[(b * classes + class) * count_boxes..][..count_boxes];
            let mut order: Vec<usize> = (0..count_boxes).filter(|&i| least.is_none_or(|l| scores[i] > l)).collect();
            order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]).then(i.cmp(&j)));
            let mut kept: Vec<usize> = vec![];
            for i in order {
                if kept.len() >= most {
                    break;
                }
                if !kept.iter().any(|&k| overlap(&rects[i], &rects[k], threshold)) {
                    kept.push(i);
                    out.extend([b as i128, class as i128, i as i128]);
                }
            }
        }
    }
    Ok(vec![Some(from_ints(DType::I64, &[out.len() / 3, 3], out)?)])
}

pub(super) fn non_max_suppression_type(_: &Call, _: &[Option<Operand<'_>>]) -> Types {
    Ok(vec![carried(DType::I64, [None, Some(Dim::from(3))])])
}

/// A positive extent of an attribute.
fn extent(c: &Call, name: &str) -> Result<usize> {
    let v = c.int(name).unwrap_or(1);
    usize::try_from(v)
        .ok()
        .filter(|v| (1..1 << 24).contains(v))
        .ok_or_else(|| StandardError::new(format!("`{name}` is {v}")))
}

/// Positions and weights of the four neighbours of a place, each beyond the image taken from its edge; `None` far outside.
fn bilinear(y: f64, x: f64, h: usize, w: usize) -> Option<[(usize, f64); 4]> {
    if y < -1.0 || y > h as f64 || x < -1.0 || x > w as f64 {
        return None;
    }
    let line = |v: f64, n: usize| {
        let v = v.max(0.0);
        let low = v as usize;
        if low + 1 >= n { (n - 1, n - 1, 0.0) } else { (low, low + 1, v - low as f64) }
    };
    let ((y0, y1, ly), (x0, x1, lx)) = (line(y, h), line(x, w));
    Some([
        (y0 * w + x0, (1.0 - ly) * (1.0 - lx)),
        (y0 * w + x1, (1.0 - ly) * lx),
        (y1 * w + x0, ly * (1.0 - lx)),
        (y1 * w + x1, ly * lx),
    ])
}

pub(super) fn roi_align(c: &Call, x: &Args<'_>) -> Results {
    let (v, rois) = (x.tensor(0)?, x.tensor(1)?);
    let batch = x.ints(2)?.ok_or_else(|| StandardError::new("operand 2, the batch indices, is missing"))?;
    let misfit = || StandardError::new(format!("regions of {:?} for images of {:?}", rois.shape, v.shape));
    let (&[n, channels, h, w], &[n_rois, 4]) = (v.shape, rois.shape) else { return Err(misfit()) };
    if batch.len() != n_rois || h * w == 0 || batch.iter().any(|&b| usize::try_from(b).ok().is_none_or(|b| b >= n)) {
        return Err(misfit());
    }
    let (ph, pw) = (extent(c, "output_height")?, extent(c, "output_width")?);
    let ratio = c.int("sampling_ratio").unwrap_or(0);
    let scale = c.float("spatial_scale").unwrap_or(1.0);
    let default = if c.opset < 16 { "output_half_pixel" } else { "half_pixel" };
    let half = c.text("coordinate_transformation_mode").unwrap_or(default) == "half_pixel";
    let max = match c.text("mode").unwrap_or("avg") {
        "avg" => false,
        "max" => true,
        m => return Err(StandardError::new(format!("`mode` is `{m}`; there are avg and max"))),
    };
    let (values, regions) = (floats(&v), floats(&rois));
    let shape = [n_rois, channels, ph, pw];
    let mut out = vec![0.0; count(DType::F64, &shape)?];
    for (r, &sample) in batch.iter().enumerate() {
        let side = |i: usize| regions[r * 4 + i] * scale - if half { 0.5 } else { 0.0 };
        let (x0, y0, mut rw, mut rh) = (side(0), side(1), side(2) - side(0), side(3) - side(1));
        if !half {
            (rw, rh) = (rw.max(1.0), rh.max(1.0));
        }
        let (bin_h, bin_w) = (rh / ph as f64, rw / pw as f64);
        let grid = |bin: f64| if ratio > 0 { ratio as usize } else { bin.ceil().clamp(0.0, 65536.0) as usize };
        let (gh, gw) = (grid(bin_h), grid(bin_w));
        if gh * gw > 1 << 24 {
            return Err(StandardError::new(format!("region {r} has {gh} x {gw} samples in each part")));
        }
        for p in 0..ph * pw {
            let mut samples = vec![];
            for s in 0..gh * gw {
                let at = |start: f64, bin: f64, i: usize, g: usize, n: usize| {
                    start + i as f64 * bin + (g as f64 + 0.5) * bin / n as f64
                };
                samples.push(bilinear(at(y0, bin_h, p / pw, s / gw, gh), at(x0, bin_w, p % pw, s % gw, gw), h, w));
            }
            for ch in 0..channels {
                let from = &values[(sample as usize * channels + ch) * h * w..][..h * w];
                let terms = samples.iter().map(|s| s.map_or([0.0; 4], |t| t.map(|(i, k)| k * from[i])));
                out[(r * channels + ch) * ph * pw + p] = match max {
                    false => terms.map(|t| t.iter().sum::<f64>()).sum::<f64>() / (gh * gw).max(1) as f64,
                    // The greatest of the weighted neighbours, as ONNX's implementations compute it.
                    true => terms.flatten().reduce(f64::max).unwrap_or(0.0),
                };
            }
        }
    }
    Ok(vec![Some(from_floats(v.dtype, &shape, out)?)])
}

pub(super) fn roi_align_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (v, rois) = (required(x, 0)?, required(x, 1)?);
    let ([_, channels, _, _], [n, _]) = (&v.ty.shape[..], &rois.ty.shape[..]) else {
        return Err(StandardError::new(format!("regions {} for images {}", rois.ty, v.ty)));
    };
    let fixed = |name: &str| extent(c, name).map(|e| Some(Dim::from(e as i64)));
    Ok(vec![carried(
        v.ty.dtype,
        [Some(n.clone()), Some(channels.clone()), fixed("output_height")?, fixed("output_width")?],
    )])
}

/// The extents of the result of `MaxRoiPool`.
fn pooled(c: &Call) -> Result<(usize, usize)> {
    match c.ints("pooled_shape") {
        Some(&[h, w]) if (1..1 << 24).contains(&h) && (1..1 << 24).contains(&w) => Ok((h as usize, w as usize)),
        p => Err(StandardError::new(format!("`pooled_shape` is {p:?}, not two positive numbers"))),
    }
}

pub(super) fn max_roi_pool(c: &Call, x: &Args<'_>) -> Results {
    let (v, rois) = (x.tensor(0)?, x.tensor(1)?);
    let misfit = || StandardError::new(format!("regions of {:?} for images of {:?}", rois.shape, v.shape));
    let (&[n, channels, h, w], &[n_rois, 5]) = (v.shape, rois.shape) else { return Err(misfit()) };
    let (ph, pw) = pooled(c)?;
    let scale = c.float("spatial_scale").unwrap_or(1.0);
    let (values, regions) = (floats(&v), floats(&rois));
    let shape = [n_rois, channels, ph, pw];
    let mut out = vec![0.0; count(DType::F64, &shape)?];
    for r in 0..n_rois {
        let region = &regions[r * 5..][..5];
        let batch = region[0] as i64;
        let batch = usize::try_from(batch).ok().filter(|&b| b < n).ok_or_else(misfit)?;
        // Ends of whole elements; the last one belongs to the region.
        let side = |i: usize| (region[i] * scale).round();
        let (x0, y0) = (side(1), side(2));
        let (bin_w, bin_h) = ((side(3) - x0 + 1.0).max(1.0) / pw as f64, (side(4) - y0 + 1.0).max(1.0) / ph as f64);
        let range = |start: f64, bin: f64, i: usize, n: usize| {
            let low = (start + (i as f64 * bin).floor()).clamp(0.0, n as f64) as usize;
            low..(start + ((i + 1) as f64 * bin).ceil()).clamp(0.0, n as f64) as usize
        };
        for (i, o) in out[r * channels * ph * pw..][..channels * ph * pw].iter_mut().enumerate() {
            let (ch, p) = (i / (ph * pw), i % (ph * pw));
            let from = &values[(batch * channels + ch) * h * w..][..h * w];
            let (ys, xs) = (range(y0, bin_h, p / pw, h), range(x0, bin_w, p % pw, w));
            *o = ys.flat_map(|y| xs.clone().map(move |x| from[y * w + x])).reduce(f64::max).unwrap_or(0.0);
        }
    }
    Ok(vec![Some(from_floats(v.dtype, &shape, out)?)])
}

pub(super) fn max_roi_pool_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (v, rois) = (required(x, 0)?, required(x, 1)?);
    let ([_, channels, _, _], [n, _]) = (&v.ty.shape[..], &rois.ty.shape[..]) else {
        return Err(StandardError::new(format!("regions {} for images {}", rois.ty, v.ty)));
    };
    let (h, w) = pooled(c)?;
    let fixed = |e: usize| Some(Dim::from(e as i64));
    Ok(vec![carried(v.ty.dtype, [Some(n.clone()), Some(channels.clone()), fixed(h), fixed(w)])])
}

pub(super) fn deform_conv(c: &Call, x: &Args<'_>) -> Results {
    let (v, weight, offset) = (x.tensor(0)?, x.tensor(1)?, x.tensor(2)?);
    let s = Sizes::of(c, v.shape, weight.shape)?;
    let win = &s.window;
    let rank = s.image.len();
    let offset_groups = extent(c, "offset_group")?;
    let (kernel, positions): (usize, usize) = (win.kernel.iter().product(), win.out.iter().product());
    let misfit = || {
        StandardError::new(format!(
            "offsets of {:?} do not fit the windows {:?} of {:?}",
            offset.shape, win.out, win.kernel
        ))
    };
    let expected = [&[s.n, offset_groups * kernel * rank], &win.out[..]].concat();
    if offset.shape != expected || s.channels.0 % offset_groups != 0 {
        return Err(misfit());
    }
    let mask = x.optional(4)?;
    if mask.is_some_and(|m| m.len() != s.n * offset_groups * kernel * positions) {
        return Err(misfit());
    }
    let bias = x.optional(3)?;
    check_bias(bias.map(|b| b.shape), s.channels.1)?;
    let (values, moves, mask) = (floats(&v), floats(&offset), mask.map(|m| floats(&m)));
    let plane: usize = s.image.iter().product();
    let per_offset = s.channels.0 / offset_groups;
    // Columns as those of a convolution: a row per channel and element of the window.
    let mut columns = vec![0.0; count(DType::F64, &[s.n, s.channels.0, kernel, positions])?];
    for n in 0..s.n {
        for g in 0..offset_groups {
            for k in 0..kernel {
                let element = unravel(k, &win.kernel);
                for p in 0..positions {
                    let at = unravel(p, &win.out);
                    let place: Vec<f64> = (0..rank)
                        .map(|d| {
                            let base =
                                (at[d] * win.strides[d] + element[d] * win.dilations[d]) as f64 - win.begin[d] as f64;
                            base + moves[((n * offset_groups + g) * kernel * rank + k * rank + d) * positions + p]
                        })
                        .collect();
                    let m = mask.as_ref().map_or(1.0, |m| m[((n * offset_groups + g) * kernel + k) * positions + p]);
                    let taps = taps(&place, &s.image, Kind::Linear, Around::Zeros, true);
                    for ch in g * per_offset..(g + 1) * per_offset {
                        let from = &values[(n * s.channels.0 + ch) * plane..][..plane];
                        columns[((n * s.channels.0 + ch) * kernel + k) * positions + p] =
                            m * taps.iter().map(|&(i, w)| w * from[i]).sum::<f64>();
                    }
                }
            }
        }
    }
    let out = convolve_columns(&columns, &floats(&weight), bias.map(|b| floats(&b)).as_deref(), &s)?;
    Ok(vec![Some(from_floats(v.dtype, &s.shape(), out)?)])
}

pub(super) fn deform_conv_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (v, weight, offset) = (required(x, 0)?, required(x, 1)?, required(x, 2)?);
    let ([n, _, image @ ..], [channels, ..], [_, _, out @ ..]) =
        (&v.ty.shape[..], &weight.ty.shape[..], &offset.ty.shape[..])
    else {
        return Err(StandardError::new(format!("a weight {} for images {}", weight.ty, v.ty)));
    };
    if image.len() != out.len() {
        return Err(StandardError::new(format!("offsets {} for images {}", offset.ty, v.ty)));
    }
    if let Some(k) = c.ints("kernel_shape") {
        Attributes::of(c, k.len(), None)?;
    }
    Ok(vec![carried(v.ty.dtype, [n, channels].into_iter().chain(out).cloned().map(Some))])
}
