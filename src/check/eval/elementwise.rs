//! Operators that compute element by element, with NumPy's broadcasting.

use super::layout::{broadcast, spread};
use super::special::erf;
use super::{Array, EXACT_LIMIT, Local, Reason, Result, fits, misfit};
use crate::ir::{DType, Op};

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn gelu(tanh: bool, x: f64) -> f64 {
    let cdf = if tanh {
        (std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044_715 * x.powi(3))).tanh()
    } else {
        erf(x / std::f64::consts::SQRT_2)
    };
    0.5 * x * (1.0 + cdf)
}

/// The larger number; NaN wins.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

fn truth(b: bool) -> f64 {
    f64::from(u8::from(b))
}

impl Local<'_> {
    fn map(&self, f: impl Fn(f64) -> f64) -> Result<Vec<Array>> {
        fits(&self.x[0].shape, &self.declared[0])?;
        Ok(vec![Array::new(&self.x[0].shape, self.x[0].data.iter().map(|&v| f(v)).collect())])
    }

    /// Any unary operator.
    pub(super) fn unary(&self) -> Result<Vec<Array>> {
        let dtype = self.dtypes[0];
        let wants = match self.op {
            Op::Cast { to } => {
                let mixed = |a: DType, b: DType| a.is_quantised() && a != b && !b.is_float();
                !mixed(dtype, *to) && !mixed(*to, dtype)
            }
            Op::IsNan {} => !dtype.is_quantised(),
            Op::Not {} => dtype == DType::Bool,
            Op::Neg {} | Op::Abs {} | Op::Relu {} => dtype != DType::Bool && !dtype.is_quantised(),
            _ => dtype.is_float(),
        };
        if !wants {
            return Err(Reason::Unsupported(format!("{dtype}")));
        }
        match self.op {
            Op::Neg {} => self.map(|x| -x),
            Op::Abs {} => self.map(f64::abs),
            Op::Sqrt {} => self.map(f64::sqrt),
            Op::Reciprocal {} => self.map(|x| 1.0 / x),
            Op::Exp {} => self.map(f64::exp),
            Op::Log {} => self.map(f64::ln),
            Op::Sigmoid {} => self.map(sigmoid),
            Op::Tanh {} => self.map(f64::tanh),
            Op::Erf {} => self.map(erf),
            Op::Cos {} => self.map(f64::cos),
            Op::Sin {} => self.map(f64::sin),
            Op::Relu {} => self.map(|x| larger(x, 0.0)),
            Op::Floor {} => self.map(f64::floor),
            Op::Ceil {} => self.map(f64::ceil),
            Op::Not {} => self.map(|x| 1.0 - x),
            Op::IsNan {} => self.map(|x| truth(x.is_nan())),
            Op::Silu {} => self.map(|x| x * sigmoid(x)),
            Op::Gelu { tanh } => self.map(|x| gelu(*tanh, x)),
            Op::Cast { to } => self.cast(*to),
            op => Err(Reason::Unsupported(format!("the unary operator `{}`", op.name()))),
        }
    }

    /// Floats truncate towards zero; integers wrap to their type when they are stored. A float without an
    /// exact integer, whose cast ONNX leaves open, is an error there.
    fn cast(&self, to: DType) -> Result<Vec<Array>> {
        match to {
            DType::Bool => self.map(|x| truth(x != 0.0)),
            _ if to.is_float() || to.is_quantised() => self.map(|x| x),
            _ => self.map(f64::trunc),
        }
    }

    fn zip(&self, f: impl Fn(f64, f64) -> f64) -> Result<Vec<Array>> {
        let (a, b) = (self.x[0], self.x[1]);
        let shape = broadcast(&a.shape, &b.shape)?;
        fits(&shape, &self.declared[0])?;
        let data = if a.shape == b.shape {
            a.data.iter().zip(&b.data).map(|(&x, &y)| f(x, y)).collect()
        } else {
            let (i, j) = (spread(&a.shape, &shape)?, spread(&b.shape, &shape)?);
            i.into_iter().zip(j).map(|(i, j)| f(a.data[i], b.data[j])).collect()
        };
        Ok(vec![Array::new(&shape, data)])
    }

    /// Any binary operator.
    pub(super) fn binary(&self) -> Result<Vec<Array>> {
        let (a, b) = (self.dtypes[0], self.dtypes[1]);
        if a != b && !matches!(self.op, Op::Pow {}) {
            return misfit(format!("operands of {a} and {b}"));
        }
        let arithmetic =
            matches!(self.op, Op::Add {} | Op::Sub {} | Op::Mul {} | Op::Div {} | Op::Pow {} | Op::Max {} | Op::Min {});
        if arithmetic && a == DType::Bool || matches!(self.op, Op::And {} | Op::Or {}) && a != DType::Bool {
            return Err(Reason::Unsupported(format!("{a}")));
        }
        match self.op {
            Op::Add {} => self.zip(|x, y| x + y),
            Op::Sub {} => self.zip(|x, y| x - y),
            Op::Mul {} => self.zip(|x, y| x * y),
            Op::Div {} if a.is_float() => self.zip(|x, y| x / y),
            Op::Div {} => {
                if !self.declared[0].contains(&0) && self.x[1].data.contains(&0.0) {
                    return Err(Reason::DivisionByZero);
                }
                // As integers, because a quotient of f64 numbers may round up to the next integer.
                self.zip(|x, y| (x as i64).checked_div(y as i64).map_or(f64::NAN, |q| q as f64))
            }
            Op::Pow {} => self.pow(),
            Op::Max {} => self.zip(larger),
            Op::Min {} => self.zip(smaller),
            Op::And {} => self.zip(|x, y| truth(x != 0.0 && y != 0.0)),
            Op::Or {} => self.zip(|x, y| truth(x != 0.0 || y != 0.0)),
            Op::Equal {} => self.zip(|x, y| truth(x == y)),
            Op::Less {} => self.zip(|x, y| truth(x < y)),
            Op::LessEqual {} => self.zip(|x, y| truth(x <= y)),
            Op::Greater {} => self.zip(|x, y| truth(x > y)),
            Op::GreaterEqual {} => self.zip(|x, y| truth(x >= y)),
            Op::SiluMul {} => self.zip(|gate, up| gate * sigmoid(gate) * up),
            Op::GeluMul { tanh } => self.zip(|gate, up| gelu(*tanh, gate) * up),
            op => Err(Reason::Unsupported(format!("the binary operator `{}`", op.name()))),
        }
    }

    /// In the type of the base: a power of an integer truncates towards zero.
    fn pow(&self) -> Result<Vec<Array>> {
        let (a, b) = (self.dtypes[0], self.dtypes[1]);
        if a.is_float() {
            return self.zip(f64::powf);
        }
        if b.is_float() {
            return self.zip(|x, y| x.powf(y).trunc());
        }
        let powers = self.zip(int_pow)?;
        // Only zero to a negative power is infinite.
        match powers.iter().any(|p| p.data.contains(&f64::INFINITY)) {
            true => Err(Reason::DivisionByZero),
            false => Ok(powers),
        }
    }

    /// (condition, a, b).
    pub(super) fn select(&self) -> Result<Vec<Array>> {
        let [c, a, b] = self.x else { return misfit("`where` takes three operands") };
        if self.dtypes[0] != DType::Bool || self.dtypes[1] != self.dtypes[2] {
            return misfit(format!("operands of {:?}", self.dtypes));
        }
        let shape = broadcast(&c.shape, &broadcast(&a.shape, &b.shape)?)?;
        fits(&shape, &self.declared[0])?;
        let (i, j, k) = (spread(&c.shape, &shape)?, spread(&a.shape, &shape)?, spread(&b.shape, &shape)?);
        let pick = |((i, j), k): ((usize, usize), usize)| if c.data[i] != 0.0 { a.data[j] } else { b.data[k] };
        Ok(vec![Array::new(&shape, i.into_iter().zip(j).zip(k).map(pick).collect())])
    }
}

/// A power of integers; beyond 2^53 it is NaN, and zero to a negative power is infinite.
fn int_pow(x: f64, y: f64) -> f64 {
    let odd = y % 2.0 != 0.0;
    if x == 1.0 || y == 0.0 {
        1.0
    } else if x == -1.0 {
        if odd { -1.0 } else { 1.0 }
    } else if x == 0.0 {
        if y < 0.0 { f64::INFINITY } else { 0.0 }
    } else if y < 0.0 {
        0.0
    } else if y > 53.0 {
        f64::NAN
    } else {
        let power = (0..y as u32).fold(1.0, |p: f64, _| p * x);
        if power.abs() < EXACT_LIMIT { power } else { f64::NAN }
    }
}
