//! `com.microsoft::DynamicQuantizeLSTM`: products of codes of eight bits, everything else as in `LSTM`.
//!
//! As in ONNX Runtime with at least as many threads as samples, inputs are quantised together, and states step by step, each
//! sample's apart.

use super::recurrent::{Activation, Cell, activations, directions};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::tensor::carried;
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, floats, from_floats};
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;

/// Weights [depth, columns] without their zero points, and the scales of their columns.
struct Codes {
    codes: Vec<i32>,
    scales: Vec<f32>,
    columns: usize,
}

impl Codes {
    /// The weights of direction `d`.
    fn of(w: &View<'_>, scale: &View<'_>, zero: &View<'_>, d: usize) -> Result<Codes> {
        let (dirs, columns) = (w.shape[0], w.shape[2]);
        let wrong = |what: &str, v: &View<'_>| {
            StandardError::new(format!(
                "{what} {:?} are neither one per direction, [{dirs}], nor one per column, [{dirs}, {columns}]",
                v.shape
            ))
        };
        let per = |what: &str, v: &View<'_>| match v.shape {
            [n] if *n == dirs => Ok(1),
            [n, m] if (*n, *m) == (dirs, columns) => Ok(columns),
            _ => Err(wrong(what, v)),
        };
        let (scales, zeros) = (per("scales", scale)?, per("zero points", zero)?);
        if !matches!(w.dtype, DType::I8 | DType::U8) || zero.dtype != w.dtype {
            let why = format!("weights of {} with zero points of {} are not supported", w.dtype, zero.dtype);
            return Err(StandardError::new(why));
        }
        let codes = |v: &View<'_>, n: usize| -> Vec<i32> {
            let signed = v.dtype == DType::I8;
            let code = |&b: &u8| if signed { i32::from(b as i8) } else { i32::from(b) };
            v.bytes[d * n..(d + 1) * n].iter().map(code).collect()
        };
        let zeros = codes(zero, zeros);
        let mut codes = codes(w, w.shape[1] * columns);
        for row in codes.chunks_exact_mut(columns.max(1)) {
            row.iter_mut().enumerate().for_each(|(j, c)| *c -= zeros[if zeros.len() == 1 { 0 } else { j }]);
        }
        let scales = floats(scale)[d * scales..(d + 1) * scales].iter().map(|&s| s as f32).collect();
        Ok(Codes { codes, scales, columns })
    }

    /// Rows of numbers, quantised together, times the weights.
    fn times(&self, x: &[f32], depth: usize) -> Vec<f32> {
        let (codes, scale) = quantised(x);
        let mut out = Vec::with_capacity(x.len() / depth.max(1) * self.columns);
        let mut sums = vec![0i32; self.columns];
        for row in codes.chunks_exact(depth.max(1)) {
            sums.fill(0);
            for (&a, w) in row.iter().zip(self.codes.chunks_exact(self.columns.max(1))).filter(|(a, _)| **a != 0) {
                sums.iter_mut().zip(w).for_each(|(s, w)| *s += a * w);
            }
            let of = |j: usize| scale * self.scales[if self.scales.len() == 1 { 0 } else { j }];
            out.extend(sums.iter().enumerate().map(|(j, &s)| s as f32 * of(j)));
        }
        out
    }
}

/// Numbers as codes from 0 to 255 without their zero point, and the scale.
fn quantised(x: &[f32]) -> (Vec<i32>, f32) {
    let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(l, h), &v| (l.min(v), h.max(v)));
    let scale = if low == high { 1.0 } else { (high - low) / 255.0 };
    let zero = (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even();
    let code = |&v: &f32| (((v / scale).round_ties_even() + zero).clamp(0.0, 255.0) - zero) as i32;
    (x.iter().map(code).collect(), scale)
}

/// Extents and options of a call.
struct Network<'a> {
    batch: usize,
    input: usize,
    hidden: usize,
    lengths: &'a [usize],
    clip: f64,
    input_forget: bool,
}

/// What one direction computes with.
struct Direction<'a> {
    w: Codes,
    r: Codes,
    bias: Option<&'a [f64]>,
    peep: Option<&'a [f64]>,
    act: &'a [Activation],
    back: bool,
}

impl Network<'_> {
    /// Runs one direction; calls `write(t, sample, h)` for each step. Changes the states to the last ones.
    fn run(
        &self,
        x: &[f32],
        d: &Direction<'_>,
        h: &mut [f64],
        c: &mut [f64],
        mut write: impl FnMut(usize, usize, &[f64]),
    ) {
        let n = self.hidden;
        let steps = self.lengths.iter().copied().max().unwrap_or(0);
        let from_input = d.w.times(&x[..steps * self.batch * self.input], self.input);
        // ONNX Runtime gives each sample to a thread of its own, unless they are few and wide.
        let rows = if self.batch > 4 || n <= 256 { 1 } else { self.batch };
        let bias = |i: usize| d.bias.map_or(0.0, |b| b[i] + b[4 * n + i]);
        let peep = |gate: usize, j: usize| d.peep.map_or(0.0, |p| p[gate * n + j]);
        let act = |i: usize, v: f64| d.act[i].of(v.clamp(-self.clip, self.clip));
        for step in 0..steps {
            let live = |b: usize| step < self.lengths[b];
            // The last state of a sample counts for the range of the codes once more, and zeros from then on.
            let state =
                h.iter().enumerate().map(|(i, &v)| if step <= self.lengths[i / n.max(1)] { v as f32 } else { 0.0 });
            let state: Vec<f32> = state.collect();
            let from_state: Vec<f32> = state.chunks((rows * n).max(1)).flat_map(|s| d.r.times(s, n)).collect();
            for b in (0..self.batch).filter(|&b| live(b)) {
                let t = if d.back { self.lengths[b] - 1 - step } else { step };
                let sum = |gate: usize, j: usize| {
                    let i = gate * n + j;
                    let product = from_input[(t * self.batch + b) * 4 * n + i] + from_state[b * 4 * n + i];
                    f64::from(product) + bias(i)
                };
                for j in 0..n {
                    let at = b * n + j;
                    let input = act(0, sum(0, j) + peep(0, j) * c[at]);
                    let forget = if self.input_forget { 1.0 - input } else { act(0, sum(2, j) + peep(2, j) * c[at]) };
                    c[at] = forget * c[at] + input * act(1, sum(3, j));
                    h[at] = act(0, sum(1, j) + peep(1, j) * c[at]) * d.act[2].of(c[at]);
                }
                write(t, b, &h[b * n..(b + 1) * n]);
            }
        }
    }
}

pub(super) fn lstm(c: &Call, x: &Args<'_>) -> Result<Vec<Option<Data>>> {
    let back = directions(c)?;
    let (v, w, r) = (x.tensor(0)?, x.tensor(1)?, x.tensor(2)?);
    let misfit =
        |what: &str| StandardError::new(format!("{what} does not fit {:?}, {:?} and {:?}", v.shape, w.shape, r.shape));
    let (&[seq, batch, input], &[dirs, depth, wide], &[r_dirs, hidden, r_wide]) = (v.shape, w.shape, r.shape) else {
        return Err(misfit("a rank"));
    };
    if dirs != back.len() || r_dirs != dirs || depth != input || wide != 4 * hidden || r_wide != wide {
        return Err(misfit("an extent"));
    }
    if c.int("hidden_size").is_some_and(|h| h != hidden as i64) {
        return Err(misfit("`hidden_size`"));
    }
    let of_length = |i: usize, n: usize, what: &str| -> Result<Option<Vec<f64>>> {
        let found = x.optional(i)?.map(|v| floats(&v));
        if found.as_ref().is_some_and(|f| f.len() != n) { Err(misfit(what)) } else { Ok(found) }
    };
    let bias = of_length(3, dirs * 2 * wide, "the bias")?;
    let peep = of_length(7, dirs * 3 * hidden, "the peepholes")?;
    let n_states = count(DType::F64, &[dirs, batch, hidden])?;
    let states = |i: usize| -> Result<Vec<f64>> {
        Ok(of_length(i, n_states, "an initial state")?.unwrap_or_else(|| vec![0.0; n_states]))
    };
    let (mut y_h, mut y_c) = (states(5)?, states(6)?);
    let lengths = match x.ints(4)? {
        Some(l) => l.iter().map(|&l| usize::try_from(l).ok().filter(|&l| l <= seq)).collect::<Option<Vec<_>>>(),
        None => Some(vec![seq; batch]),
    };
    let lengths = lengths.filter(|l| l.len() == batch).ok_or_else(|| misfit("a length of a sequence"))?;
    let act = activations(c, Cell::Lstm, dirs)?;
    let net = Network {
        batch,
        input,
        hidden,
        lengths: &lengths,
        clip: c.float("clip").filter(|c| *c > 0.0).unwrap_or(f64::INFINITY),
        input_forget: c.flag("input_forget", false),
    };
    let image: Vec<f32> = floats(&v).into_iter().map(|v| v as f32).collect();
    let mut y = vec![0.0; count(DType::F64, &[seq, dirs, batch, hidden])?];
    let (w_scale, w_zero, r_scale, r_zero) = (x.tensor(8)?, x.tensor(9)?, x.tensor(10)?, x.tensor(11)?);
    for (d, &back) in back.iter().enumerate() {
        let part = |v: &Option<Vec<f64>>| v.as_ref().map(|v| v[d * v.len() / dirs..(d + 1) * v.len() / dirs].to_vec());
        let (bias, peep) = (part(&bias), part(&peep));
        let direction = Direction {
            w: Codes::of(&w, &w_scale, &w_zero, d)?,
            r: Codes::of(&r, &r_scale, &r_zero, d)?,
            bias: bias.as_deref(),
            peep: peep.as_deref(),
            act: &act[d],
            back,
        };
        let own = d * batch * hidden..(d + 1) * batch * hidden;
        let write = |t: usize, s: usize, h: &[f64]| {
            y[((t * dirs + d) * batch + s) * hidden..][..hidden].copy_from_slice(h);
        };
        net.run(&image, &direction, &mut y_h[own.clone()], &mut y_c[own], write);
    }
    let state = [dirs, batch, hidden];
    Ok(vec![
        Some(from_floats(v.dtype, &[seq, dirs, batch, hidden], y)?),
        Some(from_floats(v.dtype, &state, y_h)?),
        Some(from_floats(v.dtype, &state, y_c)?),
    ])
}

pub(super) fn lstm_type(c: &Call, x: &[Option<Operand<'_>>]) -> Result<Vec<Partial>> {
    let (v, w, r) = (required(x, 0)?, required(x, 1)?, required(x, 2)?);
    for i in 8..12 {
        required(x, i)?;
    }
    let ([seq, batch, input], [dirs, depth, wide], [_, hidden, _]) =
        (&v.ty.shape[..], &w.ty.shape[..], &r.ty.shape[..])
    else {
        return Err(StandardError::new(format!("{}, {} and {} are not of rank 3", v.ty, w.ty, r.ty)));
    };
    let differ = |a: &Dim, b: &Dim| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a != b);
    let n = Dim::from(directions(c)?.len() as i64);
    if differ(input, depth) || differ(wide, &(hidden * &Dim::from(4))) || differ(dirs, &n) {
        return Err(StandardError::new(format!("the weights {} and {} do not fit {}", w.ty, r.ty, v.ty)));
    }
    let typed = |s: &[&Dim]| carried(v.ty.dtype, s.iter().map(|d| Some((*d).clone())));
    let state = typed(&[&n, batch, hidden]);
    Ok(vec![typed(&[seq, &n, batch, hidden]), state.clone(), state])
}
