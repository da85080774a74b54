//! Steps of optimisers: `Adagrad`, `Adam` and `Momentum` of `ai.onnx.preview.training`.

use crate::standard::infer::required;
use crate::standard::tensor::{carried, dims};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, floats, from_floats};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// Tensors per parameter among the operands: the parameter, its gradient, and its states.
fn per_parameter(c: &Call) -> usize {
    if c.op == "Adam" { 4 } else { 3 }
}

/// Number of parameters.
fn parameters(c: &Call, operands: usize) -> Result<usize> {
    let per = per_parameter(c);
    match operands.checked_sub(2) {
        Some(n) if n > 0 && n % per == 0 => Ok(n / per),
        _ => Err(StandardError::new(format!(
            "{operands} operands are not a rate, a count and {per} tensors per parameter"
        ))),
    }
}

pub(super) fn optimise(c: &Call, x: &Args<'_>) -> Results {
    let n = parameters(c, x.len())?;
    let one = |i: usize| x.scalar(i)?.ok_or_else(|| StandardError::new(format!("operand {i} is missing")));
    let (rate, step) = (one(0)?, one(1)?);
    let value = |name: &str, default: f64| c.float(name).unwrap_or(default);
    let regular = value("norm_coefficient", 0.0);
    // Results: all parameters, then all first states, then all second ones.
    let states = per_parameter(c) - 2;
    let mut out: Vec<Vec<Option<Data>>> = vec![vec![]; 1 + states];
    for i in 0..n {
        let part = |k: usize| x.tensor(2 + k * n + i);
        let v = part(0)?;
        let mut p = floats(&v);
        let mut s: Vec<Vec<f64>> = (0..states).map(|k| Ok(floats(&part(2 + k)?))).collect::<Result<_>>()?;
        let gradient = floats(&part(1)?);
        if gradient.len() != p.len() || s.iter().any(|s| s.len() != p.len()) {
            return Err(StandardError::new(format!(
                "the gradient or a state of parameter {i} has another shape than {:?}",
                v.shape
            )));
        }
        for (j, p) in p.iter_mut().enumerate() {
            let g = regular * *p + gradient[j];
            match &c.op[..] {
                "Adagrad" => {
                    let h = s[0][j] + g * g;
                    s[0][j] = h;
                    *p -= rate / (1.0 + step * value("decay_factor", 0.0)) * g / (h.sqrt() + value("epsilon", 1e-6));
                }
                "Adam" => {
                    let (alpha, beta) = (value("alpha", 0.9), value("beta", 0.999));
                    s[0][j] = alpha * s[0][j] + (1.0 - alpha) * g;
                    s[1][j] = beta * s[1][j] + (1.0 - beta) * g * g;
                    let rate = if step > 0.0 {
                        rate * (1.0 - beta.powf(step)).sqrt() / (1.0 - alpha.powf(step))
                    } else {
                        rate
                    };
                    let next = *p - rate * s[0][j] / (s[1][j].sqrt() + value("epsilon", 1e-6));
                    *p = (1.0 - value("norm_coefficient_post", 0.0)) * next;
                }
                _ => {
                    let alpha = value("alpha", 0.0);
                    let beta = if step > 0.0 { value("beta", 0.0) } else { 1.0 };
                    let m = alpha * s[0][j] + beta * g;
                    s[0][j] = m;
                    *p -= match c.text("mode") {
                        Some("standard") => rate * m,
                        Some("nesterov") => rate * (g + alpha * m),
                        m => {
                            return Err(StandardError::new(format!(
                                "`mode` is {m:?}; there are standard and nesterov"
                            )));
                        }
                    };
                }
            }
        }
        out[0].push(Some(from_floats(v.dtype, v.shape, p)?));
        for (k, s) in s.into_iter().enumerate() {
            out[1 + k].push(Some(from_floats(v.dtype, v.shape, s)?));
        }
    }
    Ok(out.concat())
}

pub(super) fn optimise_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let n = parameters(c, x.len())?;
    let mut out = vec![];
    for k in 0..per_parameter(c) - 1 {
        for i in 0..n {
            // The gradients are no results.
            let at = if k == 0 { 0 } else { k + 1 };
            let t = required(x, 2 + at * n + i)?;
            out.push(carried(t.ty.dtype, dims(&t)));
        }
    }
    Ok(out)
}
