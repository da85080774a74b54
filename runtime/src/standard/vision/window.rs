//! Windows that slide over the spatial axes of images: what convolutions and pools share.

use crate::dim::Dim;
use crate::standard::{Call, StandardError};

type Result<T> = std::result::Result<T, StandardError>;

/// Extents of a window and how it moves, one entry per spatial axis.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// Elements of the window.
    pub(super) kernel: Vec<usize>,
    /// Steps from window to window.
    pub(super) strides: Vec<usize>,
    /// Steps from element to element of a window.
    pub(super) dilations: Vec<usize>,
    /// Elements added before the image.
    pub(super) begin: Vec<i64>,
    /// Elements added behind the image.
    pub(super) end: Vec<i64>,
    /// Number of windows.
    pub(super) out: Vec<usize>,
}

/// The attributes of a window, before the image is known.
pub(super) struct Attributes {
    pub(super) kernel: Vec<usize>,
    pub(super) strides: Vec<usize>,
    pub(super) dilations: Vec<usize>,
    pub(super) pads: Vec<i64>,
    pub(super) auto: Auto,
    pub(super) ceil: bool,
}

/// Where the elements around the image come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Auto {
    /// The attribute `pads`.
    Explicit,
    /// As many windows as steps fit the image; the odd element behind.
    Upper,
    /// The odd element before.
    Lower,
    /// None.
    Valid,
}

/// A list of positive integers, one per spatial axis.
fn positive(c: &Call, name: &str, rank: usize, default: usize) -> Result<Vec<usize>> {
    let Some(list) = c.ints(name) else { return Ok(vec![default; rank]) };
    let found: Option<Vec<usize>> =
        list.iter().map(|&v| usize::try_from(v).ok().filter(|v| (1..1 << 31).contains(v))).collect();
    found.filter(|v| v.len() == rank).ok_or_else(|| {
        StandardError::new(format!("`{name}` is {list:?}, not one positive number for each of {rank} axes"))
    })
}

impl Attributes {
    /// The attributes for a number of spatial axes; `kernel` where an operand has its extents.
    pub(super) fn of(c: &Call, rank: usize, kernel: Option<&[usize]>) -> Result<Attributes> {
        let kernel = match (c.ints("kernel_shape"), kernel) {
            (None, Some(k)) => k.to_vec(),
            (None, None) => return Err(StandardError::new("attribute `kernel_shape` is missing")),
            (Some(_), known) => {
                let named = positive(c, "kernel_shape", rank, 1)?;
                if known.is_some_and(|k| k != named) {
                    return Err(StandardError::new(format!("`kernel_shape` is {named:?}, the weight's is {known:?}")));
                }
                named
            }
        };
        let auto = match c.text("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" | "" => Auto::Explicit,
            "SAME_UPPER" => Auto::Upper,
            "SAME_LOWER" => Auto::Lower,
            "VALID" => Auto::Valid,
            a => {
                return Err(StandardError::new(format!(
                    "`auto_pad` is `{a}`; there are NOTSET, SAME_UPPER, SAME_LOWER and VALID"
                )));
            }
        };
        let pads = c.ints("pads").map_or_else(|| vec![0; 2 * rank], <[i64]>::to_vec);
        if kernel.len() != rank || pads.len() != 2 * rank || pads.iter().any(|p| p.unsigned_abs() >= 1 << 31) {
            return Err(StandardError::new(format!(
                "a window of {kernel:?} with pads {pads:?} for {rank} spatial axes"
            )));
        }
        let strides = positive(c, "strides", rank, 1)?;
        Ok(Attributes {
            kernel,
            strides,
            dilations: positive(c, "dilations", rank, 1)?,
            pads,
            auto,
            ceil: c.flag("ceil_mode", false),
        })
    }

    /// Elements that a window spans along an axis.
    pub(super) fn span(&self, i: usize) -> i64 {
        (self.kernel[i].max(1) as i64 - 1).saturating_mul(self.dilations[i] as i64).saturating_add(1)
    }

    /// The windows on an image.
    pub(super) fn on(&self, image: &[usize]) -> Result<Window> {
        let rank = self.kernel.len();
        if image.len() != rank {
            return Err(StandardError::new(format!("an image of {image:?} for a window of {:?}", self.kernel)));
        }
        let (mut begin, mut end, mut out) = (vec![0; rank], vec![0; rank], vec![0; rank]);
        for (i, &n) in image.iter().enumerate() {
            let (n, stride, span) = (n as i64, self.strides[i] as i64, self.span(i));
            let count = match self.auto {
                Auto::Upper | Auto::Lower => {
                    let count = (n + stride - 1) / stride;
                    let total = ((count - 1) * stride + span - n).max(0);
                    let half = if self.auto == Auto::Upper { total / 2 } else { total - total / 2 };
                    (begin[i], end[i]) = (half, total - half);
                    count
                }
                Auto::Explicit | Auto::Valid => {
                    if self.auto == Auto::Explicit {
                        (begin[i], end[i]) = (self.pads[i], self.pads[rank + i]);
                    }
                    let room = n + begin[i] + end[i] - span;
                    // A window wider than the image leaves room below 0, and rounding upwards makes place for it.
                    if self.ceil {
                        let count = (room + stride - 1).div_euclid(stride) + 1;
                        // The last window starts within the image or what was added before it.
                        if (count - 1) * stride >= n + begin[i] { count - 1 } else { count }
                    } else {
                        room.div_euclid(stride) + 1
                    }
                }
            };
            out[i] = usize::try_from(count).unwrap_or(0);
        }
        Ok(Window {
            kernel: self.kernel.clone(),
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            begin,
            end,
            out,
        })
    }

    /// The number of windows on an image of symbolic extents.
    pub(super) fn counts(&self, image: &[Dim]) -> Result<Vec<Option<Dim>>> {
        let fixed: Option<Vec<usize>> = image.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
        if let Some(f) = fixed {
            return Ok(self.on(&f)?.out.iter().map(|&n| Some(Dim::from(n as i64))).collect());
        }
        let rank = self.kernel.len();
        if image.len() != rank {
            return Err(StandardError::new(format!("an image of {image:?} for a window of {:?}", self.kernel)));
        }
        let one = |i: usize| -> Result<Option<Dim>> {
            let stride = Dim::from(self.strides[i] as i64);
            if let Some(n) = image[i].as_const() {
                let alone = Attributes {
                    kernel: vec![self.kernel[i]],
                    strides: vec![self.strides[i]],
                    dilations: vec![self.dilations[i]],
                    pads: vec![self.pads[i], self.pads[rank + i]],
                    ..*self
                };
                return Ok(alone.on(&[n.max(0) as usize])?.out.first().map(|&n| Dim::from(n as i64)));
            }
            Ok(match self.auto {
                Auto::Upper | Auto::Lower => {
                    Some((&image[i] + &Dim::from(self.strides[i] as i64 - 1)).floor_div(&stride))
                }
                _ if self.ceil => None,
                auto => {
                    let pads = if auto == Auto::Explicit { self.pads[i] + self.pads[rank + i] } else { 0 };
                    let room = &image[i] + &Dim::from(pads - self.span(i));
                    Some(&room.floor_div(&stride) + &Dim::from(1))
                }
            })
        };
        (0..rank).map(one).collect()
    }
}

impl Window {
    /// The range of windows along an axis whose element `k` lies within the image.
    pub(super) fn inside(&self, axis: usize, k: usize, image: usize) -> std::ops::Range<usize> {
        let stride = self.strides[axis] as i64;
        let shift = (k * self.dilations[axis]) as i64 - self.begin[axis];
        let first = if shift >= 0 { 0 } else { (-shift + stride - 1) / stride };
        let behind = image as i64 - shift;
        let last = if behind <= 0 { 0 } else { (behind + stride - 1) / stride };
        let last = last.clamp(0, self.out[axis] as i64);
        first.min(last) as usize..last as usize
    }

    /// The element of the image that element `k` of window `o` shows.
    pub(super) fn position(&self, axis: usize, o: usize, k: usize, image: usize) -> Option<usize> {
        let at = (o * self.strides[axis] + k * self.dilations[axis]) as i64 - self.begin[axis];
        usize::try_from(at).ok().filter(|&at| at < image)
    }

    /// The position in the leading axes of an image that element `k` of window `at` shows.
    pub(super) fn place(&self, at: &[usize], k: &[usize], image: &[usize]) -> Option<usize> {
        let axes = at.iter().zip(k).zip(image).enumerate();
        axes.map(|(d, ((&o, &k), &n))| (self.position(d, o, k, n), n)).try_fold(0, |to, (p, n)| Some(to * n + p?))
    }
}

/// Where windows lie on an image, line by line: what a kernel that goes along the last axis needs.
pub(super) struct Lines {
    /// Extent of the image's last axis.
    pub(super) extent: usize,
    /// Windows along the last axis, and the step from one to the next.
    pub(super) width: usize,
    pub(super) stride: usize,
    /// Elements of a window along the last axis, the step between them, and what is added before the image.
    pub(super) kernel: usize,
    pub(super) dilation: usize,
    pub(super) begin: i64,
    /// Elements of a window along the last axis: the windows for which an element lies inside the image, and the first one's place.
    pub(super) steps: Vec<(std::ops::Range<usize>, usize)>,
    /// For each line of a window and each line of windows the line of the image; `usize::MAX` outside.
    pub(super) places: Vec<Vec<usize>>,
}

impl Lines {
    pub(super) fn of(w: &Window, image: &[usize]) -> Lines {
        let last = image.len() - 1;
        let (extent, width, stride) = (image[last], w.out[last], w.strides[last]);
        let step = |k: usize| {
            let inside = w.inside(last, k, extent);
            // Not negative within the range that lies inside.
            let first = (inside.start * stride + k * w.dilations[last]) as i64 - w.begin[last];
            (inside, first.max(0) as usize)
        };
        let (lines, windows) = (&w.kernel[..last], &w.out[..last]);
        let place = |k: &[usize], at: usize| w.place(&unravel(at, windows), k, image).unwrap_or(usize::MAX);
        let of_line = |k: usize| {
            let k = unravel(k, lines);
            (0..windows.iter().product()).map(|at| place(&k, at)).collect()
        };
        Lines {
            extent,
            width,
            stride,
            kernel: w.kernel[last],
            dilation: w.dilations[last],
            begin: w.begin[last],
            steps: (0..w.kernel[last]).map(step).collect(),
            places: (0..lines.iter().product()).map(of_line).collect(),
        }
    }
}

/// Calls `f` with each element of `out` and every `stride`-th of `from`. To be inlined into what is vectorised.
#[inline(always)]
pub(super) fn strided<T: Copy, A>(out: &mut [A], from: &[T], stride: usize, f: impl Fn(&mut A, T)) {
    match stride {
        1 => out.iter_mut().zip(from).for_each(|(o, &v)| f(o, v)),
        2 => {
            let (pairs, rest) = from.as_chunks::<2>();
            let (whole, end) = out.split_at_mut(pairs.len().min(out.len()));
            whole.iter_mut().zip(pairs).for_each(|(o, v)| f(o, v[0]));
            end.iter_mut().zip(rest).for_each(|(o, &v)| f(o, v));
        }
        _ => out.iter_mut().zip(from.iter().step_by(stride)).for_each(|(o, &v)| f(o, v)),
    }
}

/// The coordinates of an index in row-major order.
pub(super) fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for d in (0..shape.len()).rev() {
        at[d] = index % shape[d].max(1);
        index /= shape[d].max(1);
    }
    at
}
