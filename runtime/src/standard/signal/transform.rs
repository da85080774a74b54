//! Fourier transforms, windows, and the weights of mel filters.

use std::f64::consts::PI;

use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::elem::dtype_of_code;
use crate::standard::infer::required;
use crate::standard::tensor::{carried, dims, unknown};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, axis, count, floats, from_floats};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// A complex number.
type Complex = (f64, f64);

fn add(a: Complex, b: Complex) -> Complex {
    (a.0 + b.0, a.1 + b.1)
}

fn mul(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

/// A discrete Fourier transform of one length, by the prime factors of the length (Cooley and Tukey, 1965).
struct Fourier {
    roots: Vec<Complex>,
}

impl Fourier {
    /// The transform of a length; `sign` is -1 for the forward one.
    fn new(n: usize, sign: f64) -> Fourier {
        let root = |k: usize| {
            let angle = sign * 2.0 * PI * k as f64 / n as f64;
            (angle.cos(), angle.sin())
        };
        Fourier { roots: (0..n).map(root).collect() }
    }

    fn run(&self, x: &[Complex]) -> Vec<Complex> {
        let mut out = vec![(0.0, 0.0); x.len()];
        self.part(x, 0, 1, &mut out);
        out
    }

    /// Transforms every `step`-th element from `first` on into `out`.
    fn part(&self, x: &[Complex], first: usize, step: usize, out: &mut [Complex]) {
        let n = out.len();
        if n <= 1 {
            if let Some(o) = out.first_mut() {
                *o = x[first];
            }
            return;
        }
        let p = (2..).take_while(|p| p * p <= n).find(|p| n.is_multiple_of(*p)).unwrap_or(n);
        let m = n / p;
        for r in 0..p {
            self.part(x, first + r * step, step * p, &mut out[r * m..(r + 1) * m]);
        }
        let all = self.roots.len();
        let mut column = vec![(0.0, 0.0); p];
        for k in 0..m {
            for (r, c) in column.iter_mut().enumerate() {
                *c = out[r * m + k];
            }
            for q in 0..p {
                let turn = |r: usize| self.roots[(r * (k + q * m)) % n * (all / n)];
                out[k + q * m] = column.iter().enumerate().fold((0.0, 0.0), |s, (r, c)| add(s, mul(*c, turn(r))));
            }
        }
    }
}

/// What a transform along an axis makes of how many elements.
struct Plan {
    /// Points of the transform.
    length: usize,
    /// Elements of the result along the axis.
    bins: usize,
    inverse: bool,
    /// The result is real, the operand half of a symmetric spectrum.
    real: bool,
}

fn plan(inverse: bool, onesided: bool, extent: usize, length: Option<i64>) -> Result<Plan> {
    let real = inverse && onesided;
    let default = if real { 2 * extent.saturating_sub(1) } else { extent };
    let length = match length {
        Some(l) => usize::try_from(l).map_err(|_| StandardError::new(format!("a transform of {l} points")))?,
        None => default,
    };
    if length == 0 {
        return Err(StandardError::new("a transform of no points"));
    }
    count(DType::F64, &[length, 2])?;
    let bins = if onesided && !inverse { length / 2 + 1 } else { length };
    Ok(Plan { length, bins, inverse, real })
}

/// Transforms lines of complex numbers.
fn line(p: &Plan, fourier: &Fourier, x: &[Complex]) -> Vec<Complex> {
    let mut full = vec![(0.0, 0.0); p.length];
    let known = if p.real { p.length / 2 + 1 } else { p.length };
    for (o, v) in full.iter_mut().zip(x.iter().take(known)) {
        *o = *v;
    }
    if p.real {
        // The other half mirrors the first.
        for k in known..p.length {
            let (re, im) = full[p.length - k];
            full[k] = (re, -im);
        }
        full[0].1 = 0.0;
        if p.length.is_multiple_of(2) {
            full[p.length / 2].1 = 0.0;
        }
    }
    let scale = if p.inverse { 1.0 / p.length as f64 } else { 1.0 };
    let mut out = fourier.run(&full);
    out.truncate(p.bins);
    out.iter_mut().for_each(|v| *v = (v.0 * scale, v.1 * scale));
    out
}

/// The axis of a transform: an attribute before opset 20, an operand since.
fn dft_axis(c: &Call, given: Option<i64>, rank: usize) -> Result<usize> {
    let a = if c.opset < 20 { c.int("axis").unwrap_or(1) } else { given.unwrap_or(-2) };
    let at = axis(a, rank)?;
    if at + 1 == rank {
        return Err(StandardError::new(format!("axis {a} holds the parts of complex numbers")));
    }
    Ok(at)
}

pub(super) fn dft(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let rank = v.shape.len();
    let parts = v.shape.last().copied().filter(|p| (1..=2).contains(p));
    let parts =
        parts.ok_or_else(|| StandardError::new(format!("the last axis of {:?} is neither 1 nor 2", v.shape)))?;
    let one = |i: usize| -> Result<Option<i64>> { Ok(x.ints(i)?.and_then(|v| v.first().copied())) };
    let at = dft_axis(c, one(2)?, rank)?;
    let p = plan(c.flag("inverse", false), c.flag("onesided", false), v.shape[at], one(1)?)?;
    let fourier = Fourier::new(p.length, if p.inverse { 1.0 } else { -1.0 });
    let values = floats(&v);
    let outer: usize = v.shape[..at].iter().product();
    let inner: usize = v.shape[at + 1..rank - 1].iter().product();
    let n = v.shape[at];
    let width = if p.real { 1 } else { 2 };
    let mut shape = v.shape.to_vec();
    (shape[at], shape[rank - 1]) = (p.bins, width);
    let mut out = vec![0.0; count(DType::F64, &shape)?];
    for o in 0..outer {
        for i in 0..inner {
            let at = |k: usize| ((o * n + k) * inner + i) * parts;
            let x: Vec<Complex> =
                (0..n).map(|k| (values[at(k)], if parts == 2 { values[at(k) + 1] } else { 0.0 })).collect();
            for (k, y) in line(&p, &fourier, &x).into_iter().enumerate() {
                let to = ((o * p.bins + k) * inner + i) * width;
                out[to] = y.0;
                if width == 2 {
                    out[to + 1] = y.1;
                }
            }
        }
    }
    Ok(vec![Some(from_floats(v.dtype, &shape, out)?)])
}

/// A scalar operand that is known, absent, or of unknown value.
enum Known {
    Absent,
    Value(Dim),
    Unknown,
}

fn known(x: &[Option<Operand<'_>>], i: usize) -> Known {
    match x.get(i).copied().flatten() {
        None => Known::Absent,
        Some(o) => match o.values {
            Some([d]) => Known::Value(d.clone()),
            _ => Known::Unknown,
        },
    }
}

pub(super) fn dft_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let v = required(x, 0)?;
    let given = match known(x, 2) {
        Known::Absent => None,
        Known::Value(d) => match d.as_const() {
            Some(a) => Some(a),
            None => return Ok(vec![unknown(v.ty.dtype, Some(v.rank()))]),
        },
        Known::Unknown => return Ok(vec![unknown(v.ty.dtype, Some(v.rank()))]),
    };
    let at = dft_axis(c, given, v.rank())?;
    let (inverse, onesided) = (c.flag("inverse", false), c.flag("onesided", false));
    let extent = v.ty.shape[at].clone();
    let length = match known(x, 1) {
        Known::Absent if inverse && onesided => Some(&(&extent * &Dim::from(2)) - &Dim::from(2)),
        Known::Absent => Some(extent),
        Known::Value(d) => Some(d),
        Known::Unknown => None,
    };
    let mut shape = dims(&v);
    shape[at] = if onesided && !inverse { length.map(|l| &l.floor_div(&Dim::from(2)) + &Dim::from(1)) } else { length };
    let last = shape.len() - 1;
    shape[last] = Some(Dim::from(if inverse && onesided { 1 } else { 2 }));
    Ok(vec![carried(v.ty.dtype, shape)])
}

pub(super) fn stft(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let (batch, length, parts) = match *v.shape {
        [b, l] => (b, l, 1),
        [b, l, p] if p == 1 || p == 2 => (b, l, p),
        _ => return Err(StandardError::new(format!("{:?} is no batch of signals", v.shape))),
    };
    let one = |i: usize| -> Result<Option<i64>> { Ok(x.ints(i)?.and_then(|v| v.first().copied())) };
    let positive = |v: i64, what: &str| {
        usize::try_from(v).ok().filter(|&v| v > 0).ok_or_else(|| StandardError::new(format!("the {what} is {v}")))
    };
    let step =
        positive(one(1)?.ok_or_else(|| StandardError::new("operand 1, the step, is missing"))?, "step of frames")?;
    let window = x.optional(2)?.map(|w| floats(&w));
    let frame = match (one(3)?, &window) {
        (Some(f), _) => positive(f, "length of frames")?,
        (None, Some(w)) => w.len(),
        (None, None) => length,
    };
    if frame == 0 || frame > length {
        return Err(StandardError::new(format!("frames of {frame} in signals of {length}")));
    }
    let onesided = c.flag("onesided", true);
    let p = plan(false, onesided, frame, None)?;
    let fourier = Fourier::new(p.length, -1.0);
    let frames = (length - frame) / step + 1;
    let shape = [batch, frames, p.bins, 2];
    count(DType::F64, &shape)?;
    let values = floats(&v);
    let weight = |k: usize| window.as_ref().map_or(1.0, |w| w.get(k).copied().unwrap_or(0.0));
    let mut out = vec![];
    for b in 0..batch {
        for f in 0..frames {
            let at = |k: usize| (b * length + f * step + k) * parts;
            let x: Vec<Complex> = (0..frame)
                .map(|k| (values[at(k)] * weight(k), if parts == 2 { values[at(k) + 1] * weight(k) } else { 0.0 }))
                .collect();
            out.extend(line(&p, &fourier, &x).into_iter().flat_map(|(re, im)| [re, im]));
        }
    }
    Ok(vec![Some(from_floats(v.dtype, &shape, out)?)])
}

pub(super) fn stft_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let v = required(x, 0)?;
    let [batch, length, ..] = &v.ty.shape[..] else {
        return Err(StandardError::new(format!("{} is no batch of signals", v.ty)));
    };
    let frame = match (known(x, 3), x.get(2).copied().flatten()) {
        (Known::Value(d), _) => Some(d),
        (Known::Absent, Some(w)) => w.ty.shape.first().cloned(),
        (Known::Absent, None) => Some(length.clone()),
        (Known::Unknown, _) => None,
    };
    let one = Dim::from(1);
    let frames = match (&frame, known(x, 1)) {
        (Some(f), Known::Value(s)) => Some(&(length - f).floor_div(&s) + &one),
        _ => None,
    };
    let bins = match c.flag("onesided", true) {
        true => frame.map(|f| &f.floor_div(&Dim::from(2)) + &one),
        false => frame,
    };
    Ok(vec![carried(v.ty.dtype, [Some(batch.clone()), frames, bins, Some(Dim::from(2))])])
}

/// The element type that an attribute asks for.
fn output_dtype(c: &Call) -> Result<DType> {
    dtype_of_code(c.int("output_datatype").unwrap_or(1))
}

pub(super) fn window(c: &Call, x: &Args<'_>) -> Results {
    let size = x.scalar(0)?.ok_or_else(|| StandardError::new("operand 0, the size, is missing"))?;
    if !(0.0..1e12).contains(&size) {
        return Err(StandardError::new(format!("a window of {size}")));
    }
    let n = size as usize;
    let dtype = output_dtype(c)?;
    count(dtype, &[n])?;
    let period = if c.flag("periodic", true) { size } else { (size - 1.0).max(1.0) };
    let value = |i: usize| {
        let turn = 2.0 * PI * i as f64 / period;
        match &c.op[..] {
            "HannWindow" => 0.5 - 0.5 * turn.cos(),
            // The weights of the definition: 25/46 and 21/46.
            "HammingWindow" => 25.0 / 46.0 - 21.0 / 46.0 * turn.cos(),
            _ => 0.42 - 0.5 * turn.cos() + 0.08 * (2.0 * turn).cos(),
        }
    };
    Ok(vec![Some(from_floats(dtype, &[n], (0..n).map(value))?)])
}

pub(super) fn window_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let n = match known(x, 0) {
        Known::Value(d) => Some(d),
        _ => None,
    };
    Ok(vec![carried(output_dtype(c)?, [n])])
}

pub(super) fn mel_weights(c: &Call, x: &Args<'_>) -> Results {
    let one = |i: usize| x.scalar(i)?.ok_or_else(|| StandardError::new(format!("operand {i} is missing")));
    let (bins, length, rate, low, high) = (one(0)?, one(1)?, one(2)?, one(3)?, one(4)?);
    if !(0.0..1e9).contains(&bins) || !(0.0..1e9).contains(&length) || rate <= 0.0 {
        return Err(StandardError::new(format!("{bins} filters of {length} points at a rate of {rate}")));
    }
    let (n, rows) = (bins as usize, (length / 2.0).floor() as usize + 1);
    let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
    let step = (mel(high) - mel(low)) / (n + 2) as f64;
    let edge = |i: usize| {
        let hertz = 700.0 * (10f64.powf((i as f64 * step + mel(low)) / 2595.0) - 1.0);
        ((length + 1.0) * hertz / rate).floor()
    };
    let edges: Vec<f64> = (0..n + 2).map(edge).collect();
    if edges.iter().any(|e| !(0.0..=rows as f64).contains(e)) {
        return Err(StandardError::new(format!("filters from {low} to {high} Hz reach beyond {rows} frequencies")));
    }
    let dtype = output_dtype(c)?;
    let mut out = vec![0.0; count(DType::F64, &[rows, n])?];
    for i in 0..n {
        let (left, centre, right) = (edges[i] as usize, edges[i + 1] as usize, edges[i + 2] as usize);
        if left == centre && centre < rows {
            out[centre * n + i] = 1.0;
        }
        for j in left..(centre + 1).min(rows) {
            if centre > left {
                out[j * n + i] = (j - left) as f64 / (centre - left) as f64;
            }
        }
        for j in centre..right.min(rows) {
            out[j * n + i] = (right - j) as f64 / (right - centre) as f64;
        }
    }
    Ok(vec![Some(from_floats(dtype, &[rows, n], out)?)])
}

pub(super) fn mel_weights_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let dim = |i: usize| match known(x, i) {
        Known::Value(d) => Some(d),
        _ => None,
    };
    required(x, 0)?;
    let rows = dim(1).map(|d| &d.floor_div(&Dim::from(2)) + &Dim::from(1));
    Ok(vec![carried(output_dtype(c)?, [rows, dim(0)])])
}
