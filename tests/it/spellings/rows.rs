//! The spellings.
//!
//! A norm computes `y` from `x` with weight `w` and bias `b`, a sum `s` from a branch `m`, a residual `r` and a bias
//! `c`. `eps` and `N` stand for the row's epsilon and the width; `F` and `T` cast to f32 and to the row's type.

use sinter::ir::DType;

/// What the norms of a row mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Rms,
    Layer,
    /// Neither: nothing must be recognised.
    Other,
}

/// The weight of the norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Gamma {
    Vector,
    /// One more than the vector.
    OnePlus,
    /// The same number for all.
    Number(f64),
}

/// A spelling.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) norm: &'static str,
    pub(crate) sum: &'static str,
    /// Norm and sum in one.
    pub(crate) joint: Option<&'static str>,
    pub(crate) opset: i64,
    pub(crate) ty: DType,
    pub(crate) rank: usize,
    pub(crate) gamma: Gamma,
    pub(crate) gamma_ty: DType,
    /// Axes of weight and bias; all but the last are 1.
    pub(crate) gamma_axes: usize,
    pub(crate) beta: bool,
    pub(crate) bias: bool,
    /// Factor of the branches.
    pub(crate) scale: f64,
    pub(crate) eps: f64,
    /// What else than the root of mean square and epsilon divides.
    pub(crate) other: Option<fn(&[f64], f64) -> f64>,
}

impl Row {
    fn new(name: &'static str, kind: Kind, norm: &'static str) -> Row {
        Row {
            name,
            kind,
            norm,
            sum: "s = Add(m, r)",
            joint: None,
            opset: 18,
            ty: DType::F32,
            rank: 3,
            gamma: Gamma::Vector,
            gamma_ty: DType::F32,
            gamma_axes: 1,
            beta: false,
            bias: false,
            scale: 1.0,
            eps: 1e-6,
            other: None,
        }
    }

    fn opset(self, opset: i64) -> Row {
        Row { opset, ..self }
    }

    fn ty(self, ty: DType) -> Row {
        // Such a small number as 1e-6 is none of f16.
        Row { ty, gamma_ty: ty, eps: if ty == DType::F32 { self.eps } else { 1e-3 }, ..self }
    }

    fn eps(self, eps: f64) -> Row {
        Row { eps, ..self }
    }

    fn rank(self, rank: usize) -> Row {
        Row { rank, ..self }
    }

    fn gamma(self, gamma: Gamma) -> Row {
        Row { gamma, ..self }
    }

    fn gamma_ty(self, gamma_ty: DType) -> Row {
        Row { gamma_ty, ..self }
    }

    fn gamma_axes(self, gamma_axes: usize) -> Row {
        Row { gamma_axes, ..self }
    }

    fn sum(self, sum: &'static str) -> Row {
        Row { sum, ..self }
    }

    fn biased(self, sum: &'static str) -> Row {
        Row { sum, bias: true, ..self }
    }

    fn joint(self, joint: &'static str) -> Row {
        Row { joint: Some(joint), ..self }
    }

    fn no_beta(self) -> Row {
        Row { beta: false, ..self }
    }
}

fn rms(name: &'static str, norm: &'static str) -> Row {
    Row::new(name, Kind::Rms, norm)
}

fn layer(name: &'static str, norm: &'static str) -> Row {
    Row { beta: true, ..Row::new(name, Kind::Layer, norm) }
}

/// The plainest spelling.
const PLAIN: &str =
    "q = Pow(x, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); n = Mul(x, r); y = Mul(n, w)";
/// In f32 inside.
const CAST_INSIDE: &str = "f = F(x); q = Pow(f, 2:f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); r = Reciprocal(s); n = Mul(f, r); h = T(n); y = Mul(h, w)";

/// The twenty spellings of the comparison with other compilers.
pub(crate) fn published() -> Vec<Row> {
    vec![
        rms(
            "pow, reciprocal, attribute written out",
            "q = Pow(x, 2); m = ReduceMean(q, -1:i[1]){keepdims=1, noop_with_empty_axes=0}; v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); n = Mul(x, r); y = Mul(n, w)",
        ),
        rms("pow, reciprocal", PLAIN),
        rms(
            "one by root",
            "q = Pow(x, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); r = Div(1, s); n = Mul(x, r); y = Mul(n, w)",
        ),
        rms("x by root", "q = Pow(x, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms(
            "weight on the left",
            "q = Pow(x, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); n = Mul(x, r); y = Mul(w, n)",
        ),
        rms(
            "root on the left",
            "q = Pow(x, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); n = Mul(r, x); y = Mul(n, w)",
        ),
        rms(
            "epsilon on the left",
            "q = Pow(x, 2); m = Mean(q); v = Add(eps, m); s = Sqrt(v); r = Reciprocal(s); n = Mul(x, r); y = Mul(n, w)",
        ),
        rms(
            "product, reciprocal",
            "q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); n = Mul(x, r); y = Mul(n, w)",
        ),
        rms(
            "product, division",
            "q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)",
        ),
        rms(
            "power of -0.5",
            "q = Pow(x, 2); m = Mean(q); v = Add(m, eps); r = Pow(v, -0.5); n = Mul(x, r); y = Mul(n, w)",
        ),
        rms(
            "epsilon with an axis",
            "q = Pow(x, 2); m = Mean(q); v = Add(m, eps[1]); s = Sqrt(v); r = Reciprocal(s); n = Mul(x, r); y = Mul(n, w)",
        ),
        rms("rank 2", PLAIN).rank(2),
        rms("residual on the left", PLAIN).sum("s = Add(r, m)"),
        rms("f16", PLAIN).ty(DType::F16),
        rms("f16 with casts", CAST_INSIDE).ty(DType::F16),
        rms("bf16 with casts", CAST_INSIDE).ty(DType::BF16),
        rms("opset 13", PLAIN).opset(13),
        rms("RMSNormalization", "y = RMSNormalization(x, w){epsilon=eps, axis=-1}").opset(23),
        // With an all-reduce in front of the sum, which every row has in turn.
        rms("residual on the left of an all-reduce", PLAIN).sum("s = Add(r, m)").opset(17),
        layer(
            "decomposed layer norm",
            "u = Mean(x); d = Sub(x, u); q = Pow(d, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)",
        ),
    ]
}

/// Spellings beyond these.
pub(crate) fn further() -> Vec<Row> {
    let mut rows = root_mean_squares();
    rows.extend(types());
    rows.extend(detours());
    rows.extend(layer_norms());
    rows.extend(sums());
    rows.extend(operators());
    rows
}

/// Ways to a mean, a root and a weight.
fn root_mean_squares() -> Vec<Row> {
    vec![
        rms("opset 11", PLAIN).opset(11),
        rms("opset 25", PLAIN).opset(25),
        rms("exponent of integers", "q = Pow(x, 2:i); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("absolute value squared", "a = Abs(x); q = Pow(a, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("power of one half", "q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Pow(v, 0.5); n = Div(x, s); y = Mul(n, w)"),
        rms("power of -1", "q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); r = Pow(s, -1); n = Mul(x, r); y = Mul(n, w)"),
        rms("root of reciprocal", "q = Mul(x, x); m = Mean(q); v = Add(m, eps); i = Reciprocal(v); r = Sqrt(i); n = Mul(x, r); y = Mul(n, w)"),
        rms("sum by number", "q = Mul(x, x); t = Sum(q); m = Div(t, N); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("sum times inverse number", "q = Pow(x, 2); t = Sum(q); m = Mul(1/N, t); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("sum of squares", "t = SumSquare(x); m = Mul(t, 1/N); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); n = Mul(r, x); y = Mul(w, n)"),
        rms("sum of squares, opset 12", "t = SumSquare(x); m = Div(t, N); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); n = Mul(r, x); y = Mul(w, n)").opset(12),
        rms("mean of scaled squares", "q = Mul(x, x); t = Mul(q, 1/N); m = Sum(t); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("euclidean norm squared", "l = L2(x); q = Mul(l, l); m = Div(q, N); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("euclidean norm by root of number", "l = L2(x); s = Div(l, rootN); n = Div(x, s); y = Mul(n, w)").eps(0.0),
        rms("euclidean norm, scaled after", "l = L2(x); n = Div(x, l); t = Mul(n, rootN); y = Mul(t, w)").eps(0.0),
        rms("euclidean norm, scaled before", "l = L2(x); t = Mul(x, rootN); n = Div(t, l); y = Mul(n, w)").eps(0.0),
        // The mean times a number: a scaled norm with another epsilon.
        Row {
            other: Some(|x, e| (x.iter().map(|v| v * v).sum::<f64>() / (x.len() as f64 - 1.0) + e).sqrt()),
            gamma: Gamma::Number(2.0),
            ..rms(
                "sum by one less",
                "q = Mul(x, x); t = Sum(q); m = Div(t, N-1); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, 2)",
            )
        },
        rms("root of sum and number times epsilon", "t = SumSquare(x); v = Add(t, N*eps); s = Sqrt(v); n = Div(x, s); a = Mul(n, rootN); y = Mul(a, w)").eps(1e-2),
        rms("epsilon inside of the mean", "q = Mul(x, x); p = Add(q, eps); m = Mean(p); s = Sqrt(m); n = Div(x, s); y = Mul(n, w)").eps(1e-2),
        rms("epsilon of three axes", "q = Pow(x, 2); m = Mean(q); v = Add(eps[1 1 1], m); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("epsilon filled", "e = Fill(x); q = Pow(x, 2); m = Mean(q); v = Add(m, e); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("epsilon expanded", "q = Pow(x, 2); m = Mean(q); e = ExpandAs(eps[1], m); v = Add(m, e); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("epsilon cast from f64", "e = F(eps:d); q = Pow(x, 2); m = Mean(q); v = Add(m, e); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("root expanded", "q = Pow(x, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); e = ExpandAs(s, x); n = Div(x, e); y = Mul(n, w)"),
        rms("weight times root", "q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); g = Mul(w, r); y = Mul(x, g)"),
        rms("weight by root", "q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); g = Div(w, s); y = Mul(x, g)"),
        rms("weight first", "q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); g = Mul(x, w); y = Mul(g, r)"),
        rms("weight first, division", "q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); g = Mul(w, x); y = Div(g, s)"),
        rms("weight folded away", "q = Pow(x, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); y = Div(x, s)").gamma(Gamma::Number(1.0)),
        rms("weight of one number", "q = Pow(x, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, 0.75)").gamma(Gamma::Number(0.75)),
        rms("weight of two axes", PLAIN).gamma_axes(2),
        rms("weight of three axes on the left", "q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(w, n)").gamma_axes(3),
        rms("one plus weight", "g = Add(w, 1); q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, g)").gamma(Gamma::OnePlus),
        rms("weight plus one on the left", "g = Add(1[1], w); q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(g, n)").gamma(Gamma::OnePlus),
        rms("norm plus norm times weight", "g = Add(w, 1); q = Mul(x, x); m = Mean(q); v = Add(m, eps); r = Pow(v, -0.5); n = Mul(x, r); y = Mul(n, g)").gamma(Gamma::OnePlus).rank(2),
        rms("axis dropped and added again", "q = Mul(x, x); m = Mean0(q); u = Unsqueeze(m); v = Add(u, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("axis added after the root", "q = Mul(x, x); m = Mean0(q); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); u = Unsqueeze(r); n = Mul(x, u); y = Mul(n, w)"),
        rms("axis of a euclidean norm dropped", "l = L20(x); s = Mul(l, 1/rootN); u = Unsqueeze(s); n = Div(x, u); y = Mul(n, w)").eps(0.0),
    ]
}

/// Element types and casts.
fn types() -> Vec<Row> {
    const OUTSIDE: &str =
        "f = F(x); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); n = Div(f, s); g = Mul(n, w); y = T(g)";
    vec![
        rms("bf16", PLAIN).ty(DType::BF16),
        rms("f16, f32 weight, one cast", OUTSIDE).ty(DType::F16).gamma_ty(DType::F32),
        rms("bf16, f32 weight, one cast", OUTSIDE).ty(DType::BF16).gamma_ty(DType::F32),
        rms("f16, weight cast to f32", "f = F(x); g = F(w); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); n = Div(f, s); h = Mul(g, n); y = T(h)").ty(DType::F16),
        rms("f16, rounded before an f32 weight", "f = F(x); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); n = Div(f, s); h = T(n); k = F(h); g = Mul(w, k); y = T(g)").ty(DType::F16).gamma_ty(DType::F32),
        rms("f16, one plus weight in f32", "f = F(x); e = F(w); g = Add(e, 1:f); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); n = Div(f, s); h = Mul(n, g); y = T(h)").ty(DType::F16).gamma(Gamma::OnePlus),
        rms("bf16, one plus f32 weight", "f = F(x); g = Add(1:f, w); q = Pow(f, 2:f); m = Mean(q); v = Add(m, eps:f); r = Pow(v, -0.5:f); n = Mul(f, r); h = Mul(n, g); y = T(h)").ty(DType::BF16).gamma(Gamma::OnePlus).gamma_ty(DType::F32),
        rms("f16, two casts of x", "f = F(x); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); r = Reciprocal(s); k = F(x); n = Mul(k, r); h = T(n); y = Mul(w, h)").ty(DType::F16),
        rms("f16, root rounded", "f = F(x); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); r = Reciprocal(s); h = T(r); n = Mul(x, h); y = Mul(n, w)").ty(DType::F16),
        rms("f16, mean rounded", "f = F(x); q = Mul(f, f); m = Mean(q); h = T(m); v = Add(h, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)").ty(DType::F16),
        rms("f16, variance rounded", "f = F(x); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); h = T(v); s = Sqrt(h); n = Div(x, s); y = Mul(n, w)").ty(DType::F16),
        rms("f16, root of variance rounded", "f = F(x); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); h = T(s); n = Div(x, h); y = Mul(n, w)").ty(DType::F16),
        rms("f16, square in f16", "q = Mul(x, x); f = F(q); m = Mean(f); v = Add(m, eps:f); s = Sqrt(v); k = F(x); n = Div(k, s); h = T(n); y = Mul(h, w)").ty(DType::F16),
        rms("f16 epsilon cast to f32", "f = F(x); e = F(eps:h); q = Mul(f, f); m = Mean(q); v = Add(m, e); s = Sqrt(v); n = Div(f, s); h = T(n); y = Mul(h, w)").ty(DType::F16),
        rms("f16 weight of an f32 stream", "g = F(w); q = Mul(x, x); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, g)").gamma_ty(DType::F16),
        rms("casts that change nothing", "t = T(x); f = Double(t); g = F(f); q = Mul(g, g); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)"),
        rms("f16 sum in f32", "f = F(x); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); n = Div(f, s); h = T(n); y = Mul(h, w)").ty(DType::F16).sum("a = F(m); b = F(r); t = Add(a, b); s = T(t)"),
    ]
}

/// Operators that change nothing, and layouts.
fn detours() -> Vec<Row> {
    vec![
        rms("identities", "i = Identity(x); q = Pow(i, 2); j = Identity(q); m = Mean(j); v = Add(m, eps); s = Sqrt(v); k = Identity(s); n = Div(x, k); o = Identity(n); y = Mul(o, w)"),
        rms("dropouts", "i = Dropout(x); q = Mul(i, i); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(i, s); d = Dropout(n, 0.1:f); y = Mul(d, w)").sum("d = Dropout(m, 0.5:f, 0:bool); s = Add(d, r)"),
        rms("dropout, opset 11", "i = Dropout(x){ratio=0.1}; q = Mul(i, i); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(i, s); y = Mul(n, w)").opset(11),
        rms("flattened and back", "f = Flat(x); q = Mul(f, f); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(f, s); g = Mul(n, w); y = Back(g, x)"),
        rms("flattened, weight after", "f = Flat(x); q = Mul(f, f); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(f, s); g = Back(n, x); y = Mul(g, w)"),
        rms("flattened in f32", "f = F(x); g = Flat(f); q = Mul(g, g); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); n = Div(g, s); h = T(n); k = Mul(h, w); y = Back(k, x)").ty(DType::F16),
        rms("cast of flattened", "g = Flat(x); f = F(g); q = Mul(f, f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); n = Div(f, s); k = Back(n, x); h = T(k); y = Mul(h, w)").ty(DType::BF16),
        rms("Flatten and back", "f = Flatten(x){axis=2}; q = Mul(f, f); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(f, s); g = Mul(n, w); y = Back(g, x)"),
        rms("reshapes in between", "f = Flat(x); b = Back(f, x); q = Mul(b, b); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); k = Flat(n); l = Back(k, x); y = Mul(l, w)"),
        rms("axis added and removed", "u = Unsqueeze0(x); q = Mul(u, u); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(u, s); g = Mul(n, w); y = Squeeze0(g)"),
        rms("axis added and removed, opset 11", "u = Unsqueeze0(x); q = Mul(u, u); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(u, s); g = Mul(n, w); y = Squeeze0(g)").opset(11),
        rms("transposed there and back", "t = Swap(x); a = Swap(t); q = Mul(a, a); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); c = Same(n); y = Mul(c, w)"),
        rms("transposed around the norm", "t = Swap(x); q = Mul(t, t); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(t, s); g = Mul(n, w); y = Swap(g)"),
        rms("expanded to the same shape", "e = ExpandAs(x, x); q = Mul(e, e); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(e, s); g = Mul(n, w); y = ExpandAs(g, x)"),
        rms("branch flattened and back", PLAIN).sum("f = Flat(m); b = Back(f, r); s = Add(b, r)"),
        rms("sum flattened and back", PLAIN).sum("f = Flat(m); g = Flat(r); t = Add(f, g); s = Back(t, r)"),
        rms("branch transposed there and back", PLAIN).sum("t = Swap(m); b = Swap(t); i = Identity(b); s = Add(i, r)"),
        rms("sum plus nothing, times one", PLAIN).sum("t = Add(m, 0); o = Mul(t, 1); s = Add(r, o)"),
    ]
}

/// Layer norms.
fn layer_norms() -> Vec<Row> {
    vec![
        layer("layer norm, product", "u = Mean(x); d = Sub(x, u); q = Mul(d, d); m = Mean(q); v = Add(eps, m); s = Sqrt(v); r = Reciprocal(s); n = Mul(r, d); g = Mul(w, n); y = Add(b, g)"),
        layer("layer norm, two differences", "u = Mean(x); d = Sub(x, u); e = Sub(x, u); q = Pow(e, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)"),
        layer("layer norm, difference the other way round", "u = Mean(x); d = Sub(x, u); e = Sub(u, x); q = Mul(e, e); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)"),
        layer("layer norm, negated mean", "u = Mean(x); o = Neg(u); d = Add(x, o); q = Mul(d, d); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)"),
        layer("layer norm, moments", "u = Mean(x); q = Mul(x, x); p = Mean(q); o = Mul(u, u); t = Sub(p, o); v = Add(t, eps); s = Sqrt(v); d = Sub(x, u); n = Div(d, s); g = Mul(n, w); y = Add(g, b)").eps(1e-5),
        layer("layer norm, moments by powers", "u = Mean(x); q = Pow(x, 2); p = Mean(q); o = Pow(u, 2); t = Sub(p, o); v = Add(t, eps); r = Pow(v, -0.5); d = Sub(x, u); n = Mul(d, r); g = Mul(n, w); y = Add(g, b)").eps(1e-5),
        layer("layer norm, sums", "a = Sum(x); u = Div(a, N); d = Sub(x, u); t = SumSquare(d); m = Mul(t, 1/N); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)"),
        layer("layer norm, batch norm form", "u = Mean(x); d = Sub(x, u); q = Mul(d, d); m = Mean(q); v = Add(m, eps); s = Sqrt(v); r = Reciprocal(s); i = Mul(r, w); a = Mul(x, i); o = Mul(u, i); t = Sub(b, o); y = Add(a, t)"),
        layer("layer norm, root times both", "u = Mean(x); d = Sub(x, u); q = Mul(d, d); m = Mean(q); v = Add(m, eps); r = Pow(v, -0.5); a = Mul(x, r); o = Mul(u, r); n = Sub(a, o); g = Mul(n, w); y = Add(g, b)"),
        layer("layer norm, weight first", "u = Mean(x); d = Sub(x, u); q = Mul(d, d); m = Mean(q); v = Add(m, eps); s = Sqrt(v); g = Mul(d, w); n = Div(g, s); y = Add(n, b)"),
        layer("layer norm without bias", "u = Mean(x); d = Sub(x, u); q = Mul(d, d); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); y = Mul(n, w)").no_beta(),
        layer("layer norm without weight and bias", "u = Mean(x); d = Sub(x, u); q = Mul(d, d); m = Mean(q); v = Add(m, eps); s = Sqrt(v); y = Div(d, s)").no_beta().gamma(Gamma::Number(1.0)),
        layer("layer norm, one plus weight", "h = Add(w, 1); u = Mean(x); d = Sub(x, u); q = Mul(d, d); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, h); y = Add(g, b)").gamma(Gamma::OnePlus),
        layer("layer norm, parameters of three axes", "u = Mean(x); d = Sub(x, u); q = Mul(d, d); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)").gamma_axes(3),
        layer("layer norm, f16", "u = Mean(x); d = Sub(x, u); q = Pow(d, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)").ty(DType::F16),
        layer("layer norm, f16 in f32", "f = F(x); u = Mean(f); d = Sub(f, u); q = Pow(d, 2:f); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); n = Div(d, s); h = T(n); g = Mul(h, w); y = Add(g, b)").ty(DType::F16),
        layer("layer norm, bf16, parameters in f32", "f = F(x); u = Mean(f); d = Sub(f, u); q = Mul(d, d); m = Mean(q); v = Add(m, eps:f); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); h = Add(g, b); y = T(h)").ty(DType::BF16).gamma_ty(DType::F32),
        layer("layer norm, f16, square in f32", "u = Mean(x); d = Sub(x, u); f = F(d); q = Pow(f, 2:f); m = Mean(q); h = T(m); v = Add(h, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)").ty(DType::F16),
        layer("layer norm, axis dropped", "u = Mean0(x); k = Unsqueeze(u); d = Sub(x, k); q = Mul(d, d); m = Mean0(q); l = Unsqueeze(m); v = Add(l, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)"),
        layer("layer norm, flattened", "f = Flat(x); u = Mean(f); d = Sub(f, u); q = Mul(d, d); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); h = Add(g, b); y = Back(h, x)"),
        layer("layer norm, rank 2, opset 11", "u = Mean(x); d = Sub(x, u); q = Pow(d, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)").rank(2).opset(11),
    ]
}

/// Residual sums.
fn sums() -> Vec<Row> {
    vec![
        rms("bias after the branch", PLAIN).biased("t = Add(m, c); s = Add(t, r)"),
        rms("bias before the branch", PLAIN).biased("t = Add(c, m); s = Add(r, t)"),
        rms("bias after the sum", PLAIN).biased("t = Add(m, r); s = Add(t, c)"),
        rms("bias before the sum", PLAIN).biased("t = Add(r, m); s = Add(c, t)"),
        rms("bias added to the residual", PLAIN).biased("t = Add(r, c); s = Add(t, m)"),
        rms("bias added to the residual on the right", PLAIN).biased("t = Add(c, r); s = Add(m, t)"),
        rms("sum of three", PLAIN).biased("s = Total(m, c, r)"),
        rms("bias, f16 with casts", CAST_INSIDE).ty(DType::F16).biased("t = Add(m, c); s = Add(r, t)"),
        layer("layer norm, bias before the sum", "y = LayerNormalization(x, w, b){epsilon=eps}")
            .biased("t = Add(r, m); s = Add(t, c)"),
        Row { scale: 0.25, ..rms("branch times a number", PLAIN).sum("t = Mul(m, 0.25); s = Add(t, r)") },
        Row { scale: 0.5, ..rms("number times branch", PLAIN).sum("t = Mul(0.5[1], m); s = Add(r, t)") },
    ]
}

/// Operators that other compilers made.
fn operators() -> Vec<Row> {
    vec![
        layer("LayerNormalization", "y = LayerNormalization(x, w, b){axis=-1, epsilon=eps}").opset(17),
        layer("LayerNormalization without bias", "y = LayerNormalization(x, w){epsilon=eps}").no_beta(),
        layer("LayerNormalization of f16", "y = LayerNormalization(x, w, b){epsilon=eps, axis=2}").ty(DType::F16),
        rms("RMSNormalization of f16, f32 weight", "f = F(x); n = RMSNormalization(f, w){epsilon=eps}; y = T(n)")
            .opset(23)
            .ty(DType::F16)
            .gamma_ty(DType::F32),
        rms("RMSNormalization, weight one, then weight", "n = RMSNormalization(x, 1[1]){epsilon=eps}; y = Mul(n, w)")
            .opset(24),
        rms(
            "SimplifiedLayerNormalization",
            "y = SimplifiedLayerNormalization(x, w){axis=-1, epsilon=eps, stash_type=1}",
        ),
        rms(
            "SimplifiedLayerNormalization of ONNX Runtime",
            "y = ms::SimplifiedLayerNormalization(x, w){axis=-1, epsilon=eps}",
        ),
        rms("SkipSimplifiedLayerNormalization", PLAIN)
            .joint("y, , , s = ms::SkipSimplifiedLayerNormalization(m, r, w){epsilon=eps}"),
        rms("SkipSimplifiedLayerNormalization, residual first", PLAIN)
            .joint("y, , , s = ms::SkipSimplifiedLayerNormalization(r, m, w){epsilon=eps}")
            .ty(DType::F16),
        Row {
            bias: true,
            ..rms("SkipSimplifiedLayerNormalization with bias", PLAIN)
                .joint("y, , , s = ms::SkipSimplifiedLayerNormalization(r, m, w, c){epsilon=eps}")
        },
        Row {
            bias: true,
            ..rms("SkipSimplifiedLayerNormalization with bias, branch first", PLAIN)
                .joint("y, , , s = ms::SkipSimplifiedLayerNormalization(m, r, w, c){epsilon=eps}")
        },
        layer("SkipLayerNormalization", "y = LayerNormalization(x, w, b){epsilon=eps}")
            .joint("y, , , s = ms::SkipLayerNormalization(m, r, w, b){epsilon=eps}"),
        layer("SkipLayerNormalization without beta", "y = LayerNormalization(x, w){epsilon=eps}")
            .joint("y, , , s = ms::SkipLayerNormalization(m, r, w){epsilon=eps}")
            .no_beta(),
        Row {
            bias: true,
            ..layer("SkipLayerNormalization with bias", "y = LayerNormalization(x, w, b){epsilon=eps}")
                .joint("y, , , s = ms::SkipLayerNormalization(r, m, w, b, c){epsilon=eps}")
        },
        Row {
            bias: true,
            ..layer("SkipLayerNormalization, bias without beta", "y = LayerNormalization(x, w){epsilon=eps}")
                .joint("y, , , s = ms::SkipLayerNormalization(m, r, w, , c){epsilon=eps}")
                .no_beta()
        },
        rms("SkipSimplifiedLayerNormalization, epsilon left out", PLAIN)
            .joint("y, , , s = ms::SkipSimplifiedLayerNormalization(m, r, w)")
            .eps(1e-12),
    ]
}

/// What looks like a norm and is none.
pub(crate) fn negative() -> Vec<Row> {
    let other =
        |name, norm, f: fn(&[f64], f64) -> f64| Row { other: Some(f), eps: 0.25, ..Row::new(name, Kind::Other, norm) };
    fn mean(x: &[f64], f: impl Fn(f64) -> f64) -> f64 {
        x.iter().map(|v| f(*v)).sum::<f64>() / x.len() as f64
    }
    vec![
        other(
            "epsilon as a bound",
            "q = Mul(x, x); m = Mean(q); v = Max(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)",
            |x, e| mean(x, |v| v * v).max(e).sqrt(),
        ),
        other(
            "euclidean norm with a bound",
            "l = L2(x); v = Clip(l, eps); n = Div(x, v); t = Mul(n, rootN); y = Mul(t, w)",
            |x, e| mean(x, |v| v * v).sqrt().max(e / (x.len() as f64).sqrt()),
        ),
        other(
            "epsilon outside of the root",
            "q = Mul(x, x); m = Mean(q); s = Sqrt(m); v = Add(s, eps); n = Div(x, v); y = Mul(n, w)",
            |x, e| mean(x, |v| v * v).sqrt() + e,
        ),
        other(
            "mean of absolute values",
            "a = Abs(x); m = Mean(a); v = Add(m, eps); n = Div(x, v); y = Mul(n, w)",
            |x, e| mean(x, f64::abs) + e,
        ),
        other(
            "cube",
            "q = Pow(x, 4); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)",
            |x, e| (mean(x, |v| v * v * v * v) + e).sqrt(),
        ),
        other(
            "epsilon subtracted",
            "q = Mul(x, x); m = Mean(q); d = Mul(m, m); v = Add(d, eps); s = Sqrt(v); n = Div(x, s); y = Mul(n, w)",
            |x, e| (mean(x, |v| v * v).powi(2) + e).sqrt(),
        ),
    ]
}

/// Epsilons that a single-precision sum with one would lose.
pub(crate) fn epsilons() -> Vec<Row> {
    const LAYER: &str = "u = Mean(x); d = Sub(x, u); q = Pow(d, 2); m = Mean(q); v = Add(m, eps); s = Sqrt(v); n = Div(d, s); g = Mul(n, w); y = Add(g, b)";
    vec![
        rms("1e-12", PLAIN).eps(1e-12),
        rms("1e-20", PLAIN).eps(1e-20),
        layer("layer norm 1e-12", LAYER).eps(1e-12),
        layer("layer norm 1e-20", LAYER).eps(1e-20),
        rms("RMSNormalization 1e-20", "y = RMSNormalization(x, w){epsilon=eps}").opset(23).eps(1e-20),
        layer("LayerNormalization 1e-12", "y = LayerNormalization(x, w, b){epsilon=eps}").eps(1e-12),
        rms("skip 1e-20", PLAIN)
            .joint("y, , , s = ms::SkipSimplifiedLayerNormalization(m, r, w){epsilon=eps}")
            .eps(1e-20),
    ]
}
