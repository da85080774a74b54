//! Recurrent networks: `RNN`, `GRU` and `LSTM` with all directions, layouts and activations.

use std::borrow::Cow;

use crate::cpu::convert::floats as narrow;
use crate::cpu::{math, simd};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::tensor::{Numbers, carried, multiply};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, floats};
use crate::tensor::View;

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// An activation with its parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activation {
    kind: Kind,
    alpha: f64,
    beta: f64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Relu,
    Tanh,
    Sigmoid,
    Affine,
    LeakyRelu,
    ThresholdedRelu,
    ScaledTanh,
    HardSigmoid,
    Elu,
    Softsign,
    Softplus,
}

impl Activation {
    /// The activation of a name with its default parameters, and which of them it has.
    fn named(name: &str) -> Result<(Activation, bool, bool)> {
        let (kind, alpha, beta) = match &name.to_ascii_lowercase()[..] {
            "relu" => (Kind::Relu, None, None),
            "tanh" => (Kind::Tanh, None, None),
            "sigmoid" => (Kind::Sigmoid, None, None),
            "affine" => (Kind::Affine, Some(1.0), Some(0.0)),
            "leakyrelu" => (Kind::LeakyRelu, Some(0.01), None),
            "thresholdedrelu" => (Kind::ThresholdedRelu, Some(1.0), None),
            "scaledtanh" => (Kind::ScaledTanh, Some(1.0), Some(1.0)),
            "hardsigmoid" => (Kind::HardSigmoid, Some(0.2), Some(0.5)),
            "elu" => (Kind::Elu, Some(1.0), None),
            "softsign" => (Kind::Softsign, None, None),
            "softplus" => (Kind::Softplus, None, None),
            _ => return Err(StandardError::new(format!("the activation `{name}` is unknown"))),
        };
        let activation = Activation { kind, alpha: alpha.unwrap_or(0.0), beta: beta.unwrap_or(0.0) };
        Ok((activation, alpha.is_some(), beta.is_some()))
    }

    pub(super) fn of(&self, x: f64) -> f64 {
        let (alpha, beta) = (self.alpha, self.beta);
        match self.kind {
            Kind::Relu => x.max(0.0),
            Kind::Tanh => x.tanh(),
            Kind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Kind::Affine => alpha * x + beta,
            Kind::LeakyRelu => {
                if x < 0.0 {
                    alpha * x
                } else {
                    x
                }
            }
            Kind::ThresholdedRelu => {
                if x > alpha {
                    x
                } else {
                    0.0
                }
            }
            Kind::ScaledTanh => alpha * (beta * x).tanh(),
            Kind::HardSigmoid => (alpha * x + beta).clamp(0.0, 1.0),
            Kind::Elu => {
                if x < 0.0 {
                    alpha * x.exp_m1()
                } else {
                    x
                }
            }
            Kind::Softsign => x / (1.0 + x.abs()),
            Kind::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        }
    }
}

/// What networks compute in: f32 for floats of 16 and 32 bits, else f64.
trait Real: Copy + Send + Sync + 'static {
    fn from(v: f64) -> Self;
    fn wide(self) -> f64;
    fn sigmoid(v: &mut [Self]);
    fn tanh(v: &mut [Self]);
    /// x + y, element by element.
    fn add(x: &mut [Self], y: &[Self]);
    /// x * y, element by element.
    fn mul(x: &mut [Self], y: &[Self]);
    /// a * b + c * d, element by element, into `a`.
    fn mix(a: &mut [Self], b: &[Self], c: &[Self], d: &[Self]);
    fn numbers(v: &[Self]) -> Numbers<'_>;
    fn cow(v: Numbers<'_>) -> Option<Cow<'_, [Self]>>;
}

macro_rules! real {
    ($t:ident, $variant:ident, $sigmoid:expr, $tanh:expr) => {
        impl Real for $t {
            fn from(v: f64) -> Self {
                v as $t
            }
            fn wide(self) -> f64 {
                self as f64
            }
            fn sigmoid(v: &mut [Self]) {
                simd::each(v, $sigmoid);
            }
            fn tanh(v: &mut [Self]) {
                simd::each(v, $tanh);
            }
            fn add(x: &mut [Self], y: &[Self]) {
                simd::pairs(x, y, |x, y| x + y);
            }
            fn mul(x: &mut [Self], y: &[Self]) {
                simd::pairs(x, y, |x, y| x * y);
            }
            fn mix(a: &mut [Self], b: &[Self], c: &[Self], d: &[Self]) {
                simd::vectorised(
                    #[inline(always)]
                    move || {
                        for (((a, &b), &c), &d) in a.iter_mut().zip(b).zip(c).zip(d) {
                            *a = *a * b + c * d;
                        }
                    },
                );
            }
            fn numbers(v: &[Self]) -> Numbers<'_> {
                Numbers::$variant(v.into())
            }
            fn cow(v: Numbers<'_>) -> Option<Cow<'_, [Self]>> {
                match v {
                    Numbers::$variant(v) => Some(v),
                    _ => None,
                }
            }
        }
    };
}
real!(f32, F32, math::sigmoid, math::tanh);
real!(f64, F64, |x: f64| 1.0 / (1.0 + (-x).exp()), f64::tanh);

impl Activation {
    /// Of each element.
    fn apply<S: Real>(&self, v: &mut [S]) {
        match self.kind {
            Kind::Sigmoid => S::sigmoid(v),
            Kind::Tanh => S::tanh(v),
            _ => v.iter_mut().for_each(|x| *x = S::from(self.of(x.wide()))),
        }
    }
}

/// Which network.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    Rnn,
    Gru,
    Lstm,
}

impl Cell {
    fn of(c: &Call) -> Cell {
        match &c.op[..] {
            "GRU" => Cell::Gru,
            "LSTM" => Cell::Lstm,
            _ => Cell::Rnn,
        }
    }

    fn gates(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }

    fn defaults(self) -> &'static [&'static str] {
        match self {
            Cell::Rnn => &["Tanh"],
            Cell::Gru => &["Sigmoid", "Tanh"],
            Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

/// Whether each direction goes backwards.
pub(super) fn directions(c: &Call) -> Result<&'static [bool]> {
    match c.text("direction").unwrap_or("forward") {
        "forward" => Ok(&[false]),
        "reverse" => Ok(&[true]),
        "bidirectional" => Ok(&[false, true]),
        d => Err(StandardError::new(format!("`direction` is `{d}`; there are forward, reverse and bidirectional"))),
    }
}

/// The activations of all directions; parameters are consumed by those that have them.
pub(super) fn activations(c: &Call, cell: Cell, n: usize) -> Result<Vec<Vec<Activation>>> {
    let per = cell.defaults().len();
    let names: Vec<&str> = match c.texts("activations") {
        Some(t) => t.iter().map(String::as_str).collect(),
        None => cell.defaults().repeat(n),
    };
    if names.len() != per * n {
        return Err(StandardError::new(format!("{} activations for {n} directions of {per}", names.len())));
    }
    let mut alpha = c.floats("activation_alpha").unwrap_or_default().into_iter();
    let mut beta = c.floats("activation_beta").unwrap_or_default().into_iter();
    let mut all = vec![];
    for name in names {
        let (mut a, has_alpha, has_beta) = Activation::named(name)?;
        if has_alpha {
            a.alpha = alpha.next().unwrap_or(a.alpha);
        }
        if has_beta {
            a.beta = beta.next().unwrap_or(a.beta);
        }
        all.push(a);
    }
    Ok(all.chunks(per).map(<[_]>::to_vec).collect())
}

/// Extents and operands of a call, batch-major where the layout says so.
struct Network {
    cell: Cell,
    seq: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    lengths: Vec<usize>,
    clip: f64,
    /// `input_forget` of LSTM, `linear_before_reset` of GRU.
    flag: bool,
}

/// Rows times the transpose of a matrix.
fn times<S: Real>(x: &[S], rows: usize, w: &[S], depth: usize, columns: usize) -> Result<Vec<S>> {
    let product = multiply(&S::numbers(x), &S::numbers(w), (rows, depth, columns), (false, true), &[(0, 0)])?;
    let product = S::cow(product).ok_or_else(|| StandardError::new("a product in another type"))?;
    Ok(product.into_owned())
}

/// The operands of one direction.
struct Weights<'a, S> {
    w: &'a [S],
    r: &'a [S],
    /// Biases of the input's and of the state's products.
    b: Option<&'a [S]>,
    peep: Option<&'a [S]>,
    act: &'a [Activation],
}

impl Network {
    /// An activation of what is cut to the limits.
    fn act<S: Real>(&self, a: &Activation, v: &mut [S]) {
        if self.clip.is_finite() {
            v.iter_mut().for_each(|x| *x = S::from(x.wide().clamp(-self.clip, self.clip)));
        }
        a.apply(v);
    }

    /// Runs one direction; calls `write(t, sample, h)` for each step. Returns the last states.
    fn run<S: Real>(
        &self,
        x: &[S],
        weights: &Weights<'_, S>,
        back: bool,
        (mut h, mut c): (Vec<S>, Vec<S>),
        mut write: impl FnMut(usize, usize, &[S]),
    ) -> Result<(Vec<S>, Vec<S>)> {
        let (n, g) = (self.hidden, self.cell.gates());
        let wide = g * n;
        let act = weights.act;
        let mut from_input = times(x, self.seq * self.batch, weights.w, self.input, wide)?;
        // The biases are those of both products, but for the state's of the last gate of `GRU`, which the reset gate meets.
        let apart = if self.cell == Cell::Gru { 2 * n } else { wide };
        if let Some((b, rest)) = weights.b.map(|b| b.split_at(wide)) {
            let mut both = b.to_vec();
            S::add(&mut both[..apart], &rest[..apart]);
            from_input.chunks_exact_mut(wide.max(1)).for_each(|row| S::add(row, &both));
        }
        let state_bias = weights.b.map(|b| &b[wide + apart..]).unwrap_or_default();
        let (zero, one) = (S::from(0.0), vec![S::from(1.0); n]);
        let mut reset = vec![zero; if self.cell == Cell::Gru && !self.flag { self.batch * n } else { 0 }];
        for step in 0..self.seq {
            let from_state = times(&h, self.batch, weights.r, n, wide)?;
            let place = |b: usize| {
                let length = self.lengths[b];
                (step < length).then(|| if back { length - 1 - step } else { step })
            };
            // The gates of a sample before their activation, from one to another.
            let gates = |b: usize, t: usize, range: std::ops::Range<usize>| {
                let mut v = from_input[(t * self.batch + b) * wide..][range.clone()].to_vec();
                S::add(&mut v, &from_state[b * wide..][range]);
                v
            };
            // The state of `GRU` times the reset gate goes through the product again.
            if !reset.is_empty() {
                for b in 0..self.batch {
                    let Some(t) = place(b) else { continue };
                    let mut r = gates(b, t, n..2 * n);
                    self.act(&act[0], &mut r);
                    S::mul(&mut r, &h[b * n..(b + 1) * n]);
                    reset[b * n..(b + 1) * n].copy_from_slice(&r);
                }
            }
            let again =
                if reset.is_empty() { vec![] } else { times(&reset, self.batch, &weights.r[2 * n * n..], n, n)? };
            for b in 0..self.batch {
                let Some(t) = place(b) else { continue };
                let h = &mut h[b * n..(b + 1) * n];
                match self.cell {
                    Cell::Rnn => {
                        let mut v = gates(b, t, 0..n);
                        self.act(&act[0], &mut v);
                        h.copy_from_slice(&v);
                    }
                    Cell::Gru => {
                        let mut zr = gates(b, t, 0..2 * n);
                        self.act(&act[0], &mut zr);
                        let (z, r) = zr.split_at_mut(n);
                        let input = &from_input[(t * self.batch + b) * wide..][2 * n..wide];
                        let mut state = match self.flag {
                            true => from_state[b * wide + 2 * n..][..n].to_vec(),
                            false => again[b * n..(b + 1) * n].to_vec(),
                        };
                        if !state_bias.is_empty() {
                            S::add(&mut state, state_bias);
                        }
                        if self.flag {
                            S::mix(&mut state, r, input, &one);
                        } else {
                            S::add(&mut state, input);
                        }
                        self.act(&act[1], &mut state);
                        // (1 - z) * new + z * old.
                        let rest: Vec<S> = z.iter().map(|z| S::from(1.0 - z.wide())).collect();
                        S::mix(h, z, &rest, &state);
                    }
                    Cell::Lstm => {
                        let mut v = gates(b, t, 0..wide);
                        let c = &mut c[b * n..(b + 1) * n];
                        let peep = |gate: usize, v: &mut [S], c: &[S]| {
                            if let Some(p) = weights.peep {
                                S::mix(v, &one, &p[gate * n..(gate + 1) * n], c);
                            }
                        };
                        let (input, rest) = v.split_at_mut(n);
                        let (output, rest) = rest.split_at_mut(n);
                        let (forget, new) = rest.split_at_mut(n);
                        peep(0, input, c);
                        self.act(&act[0], input);
                        if self.flag {
                            forget.iter_mut().zip(&*input).for_each(|(f, i)| *f = S::from(1.0 - i.wide()));
                        } else {
                            peep(2, forget, c);
                            self.act(&act[0], forget);
                        }
                        self.act(&act[1], new);
                        S::mix(c, forget, input, new);
                        peep(1, output, c);
                        self.act(&act[0], output);
                        // The sum that the state is made of is cut, the state itself is not, as ONNX Runtime does it.
                        new.copy_from_slice(c);
                        act[2].apply(new);
                        h.copy_from_slice(output);
                        S::mul(h, new);
                    }
                }
                write(t, b, h);
            }
        }
        Ok((h, c))
    }
}

/// Exchanges the first two axes.
fn swapped<S: Real>(v: &[S], (a, b, inner): (usize, usize, usize)) -> Vec<S> {
    let mut out = Vec::with_capacity(v.len());
    for j in 0..b {
        for i in 0..a {
            out.extend_from_slice(&v[(i * b + j) * inner..][..inner]);
        }
    }
    out
}

pub(super) fn recurrent(c: &Call, x: &Args<'_>) -> Results {
    match x.tensor(0)?.dtype {
        DType::F32 | DType::F16 | DType::BF16 => network::<f32>(c, x),
        _ => network::<f64>(c, x),
    }
}

/// The elements of an operand, in place where they have the type already.
fn elements<'a, S: Real>(v: &View<'a>) -> Result<Cow<'a, [S]>> {
    let found = match S::numbers(&[]) {
        Numbers::F32(_) => Numbers::F32(narrow(v).map_err(|e| StandardError::new(e.to_string()))?),
        _ => Numbers::F64(floats(v).into()),
    };
    S::cow(found).ok_or_else(|| StandardError::new("an operand in another type"))
}

fn network<S: Real>(c: &Call, x: &Args<'_>) -> Results {
    let cell = Cell::of(c);
    let back = directions(c)?;
    let (v, w, r) = (x.tensor(0)?, x.tensor(1)?, x.tensor(2)?);
    let misfit =
        |what: &str| StandardError::new(format!("{what} does not fit {:?}, {:?} and {:?}", v.shape, w.shape, r.shape));
    let (&[a, b, input], &[dirs, wide, depth], &[r_dirs, r_wide, hidden]) = (v.shape, w.shape, r.shape) else {
        return Err(misfit("a rank"));
    };
    let g = cell.gates();
    if dirs != back.len() || r_dirs != dirs || depth != input || wide != g * hidden || r_wide != wide {
        return Err(misfit("an extent"));
    }
    if c.int("hidden_size").is_some_and(|h| h != hidden as i64) {
        return Err(misfit("`hidden_size`"));
    }
    let batch_first = c.int("layout").unwrap_or(0) == 1;
    let (seq, batch) = if batch_first { (b, a) } else { (a, b) };
    let at_least = |i: usize, n: usize, what: &str| -> Result<Option<Cow<'_, [S]>>> {
        let found = x.optional(i)?.map(|v| elements::<S>(&v)).transpose()?;
        if found.as_ref().is_some_and(|f| f.len() != n) { Err(misfit(what)) } else { Ok(found) }
    };
    let bias = at_least(3, dirs * 2 * wide, "the bias")?;
    let states = |i: usize| -> Result<Vec<S>> {
        let given = at_least(i, dirs * batch * hidden, "an initial state")?;
        Ok(match given {
            Some(s) if batch_first => swapped(&s, (batch, dirs, hidden)),
            Some(s) => s.into_owned(),
            None => vec![S::from(0.0); count(DType::F64, &[dirs, batch, hidden])?],
        })
    };
    let (h0, c0) =
        (states(5)?, if cell == Cell::Lstm { states(6)? } else { vec![S::from(0.0); dirs * batch * hidden] });
    let peep = if cell == Cell::Lstm { at_least(7, dirs * 3 * hidden, "the peepholes")? } else { None };
    let lengths = match x.ints(4)? {
        Some(l) => l.iter().map(|&l| usize::try_from(l).ok().filter(|&l| l <= seq)).collect::<Option<Vec<_>>>(),
        None => Some(vec![seq; batch]),
    };
    let lengths = lengths.filter(|l| l.len() == batch).ok_or_else(|| misfit("a length of a sequence"))?;
    let act = activations(c, cell, dirs)?;
    let clip = c.float("clip").filter(|c| *c > 0.0).unwrap_or(f64::INFINITY);
    let flag = match cell {
        Cell::Gru => c.flag("linear_before_reset", false),
        _ => c.flag("input_forget", false),
    };
    let net = Network { cell, seq, batch, input, hidden, lengths, clip, flag };
    let image = elements::<S>(&v)?;
    let image = if batch_first { Cow::Owned(swapped(&image, (batch, seq, input))) } else { image };
    let (w_all, r_all) = (elements::<S>(&w)?, elements::<S>(&r)?);
    let mut y = vec![S::from(0.0); count(DType::F64, &[seq, dirs, batch, hidden])?];
    let (mut y_h, mut y_c) = (vec![], vec![]);
    fn part<S>(v: &[S], d: usize, dirs: usize) -> &[S] {
        &v[d * v.len() / dirs..(d + 1) * v.len() / dirs]
    }
    for (d, &back) in back.iter().enumerate() {
        let (w, r) = (part(&w_all, d, dirs), part(&r_all, d, dirs));
        let (b, p) = (bias.as_ref().map(|b| part(b, d, dirs)), peep.as_ref().map(|p| part(p, d, dirs)));
        let weights = Weights { w, r, b, peep: p, act: &act[d] };
        let write = |t: usize, s: usize, h: &[S]| {
            let to = match batch_first {
                true => (s * seq + t) * dirs + d,
                false => (t * dirs + d) * batch + s,
            };
            y[to * hidden..][..hidden].copy_from_slice(h);
        };
        let start = (part(&h0, d, dirs).to_vec(), part(&c0, d, dirs).to_vec());
        let (h, c) = net.run(&image, &weights, back, start, write)?;
        y_h.extend(h);
        y_c.extend(c);
    }
    let (y_shape, state_shape) = shapes(batch_first, seq, dirs, batch, hidden);
    let last = |v: Vec<S>| if batch_first { swapped(&v, (dirs, batch, hidden)) } else { v };
    let tensor = |shape: &[usize], values: Vec<S>| S::numbers(&values).finish(v.dtype, shape).map(Some);
    let mut out = vec![tensor(&y_shape, y)?, tensor(&state_shape, last(y_h))?];
    if cell == Cell::Lstm {
        out.push(tensor(&state_shape, last(y_c))?);
    }
    Ok(out)
}

/// Shapes of the states of all steps, and of the last.
fn shapes<T: Clone>(batch_first: bool, seq: T, dirs: T, batch: T, hidden: T) -> (Vec<T>, Vec<T>) {
    match batch_first {
        true => (vec![batch.clone(), seq, dirs.clone(), hidden.clone()], vec![batch, dirs, hidden]),
        false => (vec![seq, dirs.clone(), batch.clone(), hidden.clone()], vec![dirs, batch, hidden]),
    }
}

pub(super) fn recurrent_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (v, w, r) = (required(x, 0)?, required(x, 1)?, required(x, 2)?);
    let ([a, b, input], [dirs, wide, depth], [_, _, hidden]) = (&v.ty.shape[..], &w.ty.shape[..], &r.ty.shape[..])
    else {
        return Err(StandardError::new(format!("{}, {} and {} are not of rank 3", v.ty, w.ty, r.ty)));
    };
    let differ = |a: &Dim, b: &Dim| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a != b);
    let gates = Dim::from(Cell::of(c).gates() as i64);
    let n = directions(c)?.len() as i64;
    if differ(input, depth) || differ(wide, &(hidden * &gates)) || differ(dirs, &Dim::from(n)) {
        return Err(StandardError::new(format!("the weights {} and {} do not fit {}", w.ty, r.ty, v.ty)));
    }
    let batch_first = c.int("layout").unwrap_or(0) == 1;
    let (seq, batch) = if batch_first { (b, a) } else { (a, b) };
    let (y, state) = shapes(batch_first, seq.clone(), Dim::from(n), batch.clone(), hidden.clone());
    let typed = |s: &[Dim]| carried(v.ty.dtype, s.iter().cloned().map(Some));
    Ok(vec![typed(&y), typed(&state), typed(&state)])
}
