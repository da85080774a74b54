//! Norms, alone or fused with the sum before them and the quantisation behind them: one description for all of them.

use std::sync::LazyLock;

use crate::attr::{Attr, MeshAxis, Real};
use crate::op::{self, Op};

/// Which norm it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `rms_norm`: a weight.
    Rms,
    /// `layer_norm`: a weight and a bias.
    Layer,
}

/// What is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// The first operand.
    None,
    /// The sum of the first two.
    Local,
    /// The sum over the ranks of the first, and the second.
    AllReduce(MeshAxis),
}

/// How the norm, rounded to the type of the first operand, is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// Not at all.
    None,
    /// `quantize_fp8` with the last operand.
    Fp8,
    /// `quantize_fp8` with the `fp8_scale` of each row.
    Fp8Token {
        /// Least scale.
        floor: Real,
    },
    /// `quantize_nvfp4` with the last operand.
    Nvfp4,
}

/// A norm with the sum before it and the quantisation behind it.
///
/// Operands: the summands, weight, bias, scale. Results: the norm, its quantised form (codes, then scales where there
/// are any), the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm {
    /// Which norm it is.
    pub kind: Kind,
    /// What is normalised.
    pub sum: Sum,
    /// How the norm is quantised.
    pub quant: Quant,
    /// What is added to the variance.
    pub eps: Real,
}

/// The norms among the rows of the operator table, by row: their names say what they do. Attributes have no meaning.
static ROWS: LazyLock<Vec<Option<Norm>>> = LazyLock::new(|| op::table().iter().map(|row| named(row.name)).collect());

fn named(name: &str) -> Option<Norm> {
    let (sum, rest) = if let Some(rest) = name.strip_prefix("ar_residual_") {
        (Sum::AllReduce(MeshAxis::Tp), rest)
    } else if let Some(rest) = name.strip_prefix("add_") {
        (Sum::Local, rest)
    } else {
        (Sum::None, name)
    };
    let (kind, rest) = if let Some(rest) = rest.strip_prefix("rms_norm") {
        (Kind::Rms, rest)
    } else {
        (Kind::Layer, rest.strip_prefix("layer_norm")?)
    };
    let quant = match rest {
        "" => Quant::None,
        "_quant_fp8" => Quant::Fp8,
        "_quant_fp8_token" => Quant::Fp8Token { floor: Real(0.0) },
        "_quant_nvfp4" => Quant::Nvfp4,
        _ => return None,
    };
    Some(Norm { kind, sum, quant, eps: Real(0.0) })
}

impl Norm {
    /// What an operator with this name does, attributes aside.
    pub fn by_name(name: &str) -> Option<Norm> {
        let row = op::table().iter().position(|r| r.name == name)?;
        ROWS.get(row).copied().flatten()
    }

    pub(crate) fn of(op: &Op) -> Option<Norm> {
        let mut norm = ROWS.get(op.index()).copied().flatten()?;
        for (value, info) in op.attrs().into_iter().zip(&op.info().attrs) {
            match (info.name, value) {
                ("eps", Attr::Real(v)) => norm.eps = v,
                ("axis", Attr::Axis(a)) => norm.sum = Sum::AllReduce(a),
                ("floor", Attr::Real(floor)) => norm.quant = Quant::Fp8Token { floor },
                _ => {}
            }
        }
        Some(norm)
    }

    /// The operator of the norm alone.
    pub fn plain(&self) -> Op {
        match self.kind {
            Kind::Rms => Op::RmsNorm { eps: self.eps },
            Kind::Layer => Op::LayerNorm { eps: self.eps },
        }
    }

    /// The operator without the quantisation.
    pub fn without_quant(&self) -> Op {
        let eps = self.eps;
        match (self.kind, self.sum) {
            (_, Sum::None) => self.plain(),
            (Kind::Rms, Sum::Local) => Op::AddRmsNorm { eps },
            (Kind::Layer, Sum::Local) => Op::AddLayerNorm { eps },
            (Kind::Rms, Sum::AllReduce(axis)) => Op::ArResidualRmsNorm { axis, eps },
            (Kind::Layer, Sum::AllReduce(axis)) => Op::ArResidualLayerNorm { axis, eps },
        }
    }

    /// Number of operands that are summed.
    pub fn summands(&self) -> usize {
        if self.sum == Sum::None { 1 } else { 2 }
    }

    /// Number of weights and biases.
    pub fn parameters(&self) -> usize {
        match self.kind {
            Kind::Rms => 1,
            Kind::Layer => 2,
        }
    }

    /// Position of the operand that scales, where there is one.
    pub fn scale(&self) -> Option<usize> {
        matches!(self.quant, Quant::Fp8 | Quant::Nvfp4).then(|| self.summands() + self.parameters())
    }

    /// The axis over which it communicates.
    pub fn axis(&self) -> Option<MeshAxis> {
        match self.sum {
            Sum::AllReduce(axis) => Some(axis),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_table_fit_their_names() {
        let mut norms = 0;
        for op in op::instances() {
            let Some(n) = op.norm() else { continue };
            norms += 1;
            let operands = n.summands() + n.parameters() + usize::from(n.scale().is_some());
            let quantised = match n.quant {
                Quant::None => 0,
                Quant::Fp8 => 1,
                Quant::Fp8Token { .. } | Quant::Nvfp4 => 2,
            };
            let results = 1 + quantised + usize::from(n.sum != Sum::None);
            let info = op.info();
            assert_eq!(
                (info.min_inputs, info.max_inputs, info.outputs),
                (operands, operands, results),
                "{}",
                info.name
            );
            assert_eq!(Norm::by_name(info.name), Some(n));
            assert_eq!(n.without_quant().norm(), Some(Norm { quant: Quant::None, ..n }));
        }
        assert_eq!(norms, 24);
        let op = Op::ArResidualLayerNormQuantFp8Token { axis: MeshAxis::Pp, eps: Real(0.5), floor: Real(0.25) };
        let n = op.norm().unwrap();
        assert_eq!((n.eps, n.axis(), n.quant), (Real(0.5), Some(MeshAxis::Pp), Quant::Fp8Token { floor: Real(0.25) }));
        assert!(Op::AddRmsNormQuantFp8 { eps: Real(0.0) }.commutes() && !op.commutes());
        assert_eq!(Op::Add {}.norm(), None);
    }
}
