//! Recurrent networks: `RNN`, `GRU` and `LSTM` with all directions, layouts and activations.

use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::tensor::{Numbers, carried, multiply};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, floats, from_floats};

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
fn times(x: &[f64], rows: usize, w: &[f64], depth: usize, columns: usize) -> Result<Vec<f64>> {
    let product =
        multiply(&Numbers::F64(x.into()), &Numbers::F64(w.into()), (rows, depth, columns), (false, true), &[(0, 0)])?;
    match product {
        Numbers::F64(v) => Ok(v.into_owned()),
        _ => Err(StandardError::new("a product in another type")),
    }
}

/// The operands of one direction.
struct Weights<'a> {
    w: &'a [f64],
    r: &'a [f64],
    /// Biases of the input's and of the state's products.
    b: Option<&'a [f64]>,
    peep: Option<&'a [f64]>,
    act: &'a [Activation],
}

impl Network {
    /// Runs one direction; calls `write(t, sample, h)` for each step. Returns the last states.
    fn run(
        &self,
        x: &[f64],
        weights: &Weights<'_>,
        back: bool,
        (mut h, mut c): (Vec<f64>, Vec<f64>),
        mut write: impl FnMut(usize, usize, &[f64]),
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let (n, g) = (self.hidden, self.cell.gates());
        let wide = g * n;
        let bias = |i: usize| weights.b.map_or(0.0, |b| b[i]);
        let from_input = times(x, self.seq * self.batch, weights.w, self.input, wide)?;
        let cut = |v: f64| v.clamp(-self.clip, self.clip);
        let peep = |gate: usize, j: usize| weights.peep.map_or(0.0, |p| p[gate * n + j]);
        let act = |i: usize, v: f64| weights.act[i].of(cut(v));
        for step in 0..self.seq {
            let from_state = times(&h, self.batch, weights.r, n, wide)?;
            // The state of `GRU` times the reset gate goes through the product again.
            let mut reset = vec![0.0; if self.cell == Cell::Gru && !self.flag { self.batch * n } else { 0 }];
            let place = |b: usize| {
                let length = self.lengths[b];
                (step < length).then(|| if back { length - 1 - step } else { step })
            };
            let sum = |b: usize, t: usize, i: usize| {
                from_input[(t * self.batch + b) * wide + i] + from_state[b * wide + i] + bias(i) + bias(wide + i)
            };
            if !reset.is_empty() {
                for b in 0..self.batch {
                    let Some(t) = place(b) else { continue };
                    for j in 0..n {
                        reset[b * n + j] = act(0, sum(b, t, n + j)) * h[b * n + j];
                    }
                }
            }
            let again =
                if reset.is_empty() { vec![] } else { times(&reset, self.batch, &weights.r[2 * n * n..], n, n)? };
            for b in 0..self.batch {
                let Some(t) = place(b) else { continue };
                for j in 0..n {
                    let at = b * n + j;
                    match self.cell {
                        Cell::Rnn => h[at] = act(0, sum(b, t, j)),
                        Cell::Gru => {
                            let z = act(0, sum(b, t, j));
                            let i = 2 * n + j;
                            let input = from_input[(t * self.batch + b) * wide + i] + bias(i);
                            let state = match self.flag {
                                true => act(0, sum(b, t, n + j)) * (from_state[b * wide + i] + bias(wide + i)),
                                false => again[at] + bias(wide + i),
                            };
                            h[at] = (1.0 - z) * act(1, input + state) + z * h[at];
                        }
                        Cell::Lstm => {
                            let input = act(0, sum(b, t, j) + peep(0, j) * c[at]);
                            let forget = match self.flag {
                                true => 1.0 - input,
                                false => act(0, sum(b, t, 2 * n + j) + peep(2, j) * c[at]),
                            };
                            c[at] = forget * c[at] + input * act(1, sum(b, t, 3 * n + j));
                            // The sum that the state is made of is cut, the state itself is not, as ONNX Runtime does it.
                            h[at] = act(0, sum(b, t, n + j) + peep(1, j) * c[at]) * weights.act[2].of(c[at]);
                        }
                    }
                }
                write(t, b, &h[b * n..(b + 1) * n]);
            }
        }
        Ok((h, c))
    }
}

/// Exchanges the first two axes.
fn swapped(v: &[f64], (a, b, inner): (usize, usize, usize)) -> Vec<f64> {
    let mut out = Vec::with_capacity(v.len());
    for j in 0..b {
        for i in 0..a {
            out.extend_from_slice(&v[(i * b + j) * inner..][..inner]);
        }
    }
    out
}

pub(super) fn recurrent(c: &Call, x: &Args<'_>) -> Results {
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
    let at_least = |i: usize, n: usize, what: &str| -> Result<Option<Vec<f64>>> {
        let found = x.optional(i)?.map(|v| floats(&v));
        if found.as_ref().is_some_and(|f| f.len() != n) { Err(misfit(what)) } else { Ok(found) }
    };
    let bias = at_least(3, dirs * 2 * wide, "the bias")?;
    let states = |i: usize| -> Result<Vec<f64>> {
        let given = at_least(i, dirs * batch * hidden, "an initial state")?;
        Ok(match given {
            Some(s) if batch_first => swapped(&s, (batch, dirs, hidden)),
            Some(s) => s,
            None => vec![0.0; count(DType::F64, &[dirs, batch, hidden])?],
        })
    };
    let (h0, c0) = (states(5)?, if cell == Cell::Lstm { states(6)? } else { vec![0.0; dirs * batch * hidden] });
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
    let image = floats(&v);
    let image = if batch_first { swapped(&image, (batch, seq, input)) } else { image };
    let (w_all, r_all) = (floats(&w), floats(&r));
    let mut y = vec![0.0; count(DType::F64, &[seq, dirs, batch, hidden])?];
    let (mut y_h, mut y_c) = (vec![], vec![]);
    let part = |v: &[f64], d: usize| v[d * v.len() / dirs..(d + 1) * v.len() / dirs].to_vec();
    for (d, &back) in back.iter().enumerate() {
        let (w, r) = (part(&w_all, d), part(&r_all, d));
        let (b, p) = (bias.as_ref().map(|b| part(b, d)), peep.as_ref().map(|p| part(p, d)));
        let weights = Weights { w: &w, r: &r, b: b.as_deref(), peep: p.as_deref(), act: &act[d] };
        let write = |t: usize, s: usize, h: &[f64]| {
            let to = match batch_first {
                true => (s * seq + t) * dirs + d,
                false => (t * dirs + d) * batch + s,
            };
            y[to * hidden..][..hidden].copy_from_slice(h);
        };
        let (h, c) = net.run(&image, &weights, back, (part(&h0, d), part(&c0, d)), write)?;
        y_h.extend(h);
        y_c.extend(c);
    }
    let (y_shape, state_shape) = shapes(batch_first, seq, dirs, batch, hidden);
    let last = |v: Vec<f64>| if batch_first { swapped(&v, (dirs, batch, hidden)) } else { v };
    let mut out = vec![Some(from_floats(v.dtype, &y_shape, y)?), Some(from_floats(v.dtype, &state_shape, last(y_h))?)];
    if cell == Cell::Lstm {
        out.push(Some(from_floats(v.dtype, &state_shape, last(y_c))?));
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
