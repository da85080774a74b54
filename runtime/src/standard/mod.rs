//! ONNX operators that sinter's own operators do not express: executed on one rank, as they are, for any element type.
//!
//! Each operator is a row in the table of its family: name, kernel, and the rule for the types of its results. A kernel
//! reads any operand, and makes results of whatever shape the operands ask for; so shapes may depend on data.

mod call;
mod control;
mod data;
mod elem;
mod infer;
mod kind;
mod math;
#[cfg(test)]
mod probe;
mod program;
mod reduce;
mod signal;
mod tensor;
#[cfg(test)]
mod testing;
mod vision;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

pub use call::{Call, Constant, Program, ProgramNode, Value};
pub use data::{
    Arg, Args, Data, Strings, axis, broadcast, broadcast_index, count, floats, from_bools, from_bytes, from_floats,
    from_ints, integers, native, strides, with_limit,
};
pub use infer::{Operand, Partial};
pub use kind::{Extents, Kind, Known, kinds};

use crate::tensor::TensorError;

/// Why a call cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StandardError {
    /// What is wrong, with the operand's position and shape.
    pub message: String,
    /// Whether a result would have more bytes than the limit.
    pub too_large: bool,
}

impl StandardError {
    /// An error with a message.
    pub fn new(message: impl Into<String>) -> StandardError {
        StandardError { message: message.into(), too_large: false }
    }
}

impl From<TensorError> for StandardError {
    fn from(e: TensorError) -> Self {
        StandardError::new(e.to_string())
    }
}

/// Computes a call: one value per position of [`Call::wanted`] up to the last that is wanted; those not wanted may be left out
/// as `None`.
pub type Kernel = fn(&Call, &Args<'_>) -> Result<Vec<Option<Data>>, StandardError>;

/// The types of the results by position, as far as they follow from those of the operands. The error says what does not fit.
pub type Infer = fn(&Call, &[Option<Operand<'_>>]) -> Result<Vec<Partial>, StandardError>;

/// An operator.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Domain; empty for the default one.
    pub domain: &'static str,
    /// Operator type.
    pub name: &'static str,
    /// What computes it.
    pub kernel: Kernel,
    /// Types of its results.
    pub infer: Infer,
}

/// A row of a family's table, in the default domain.
const fn row(name: &'static str, kernel: Kernel, infer: Infer) -> Entry {
    Entry { domain: "", name, kernel, infer }
}

/// The tables of all families.
const FAMILIES: &[&[Entry]] = &[control::OPS, math::OPS, reduce::OPS, signal::OPS, tensor::OPS, vision::OPS];

/// The operator of a domain and name.
pub fn lookup(domain: &str, name: &str) -> Option<&'static Entry> {
    static TABLE: LazyLock<HashMap<(&'static str, &'static str), &'static Entry>> =
        LazyLock::new(|| FAMILIES.iter().flat_map(|f| f.iter()).map(|e| ((e.domain, e.name), e)).collect());
    let domain = if domain == "ai.onnx" { "" } else { domain };
    TABLE.get(&(domain, name)).copied()
}

/// Every operator: domain and name.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    FAMILIES.iter().flat_map(|f| f.iter()).map(|e| (e.domain, e.name))
}

/// Computes a call. `operands` are those that are present, then those of bodies. The results are the wanted ones.
pub fn run(call: &Call, operands: &[Arg<'_>]) -> Result<Vec<Data>, StandardError> {
    let error = |m: String| StandardError::new(format!("{}: {m}", call.title()));
    let entry = lookup(&call.domain, &call.op);
    let entry = entry.ok_or_else(|| error("there is no such operator; it is not supported".to_owned()))?;
    let mut rest = operands.iter();
    let mut at = vec![];
    for &p in &call.present {
        at.push(if p { Some(*rest.next().ok_or_else(|| error("an operand is missing".to_owned()))?) } else { None });
    }
    let args = Args { at, captured: rest.copied().collect() };
    let describe = || args.at.iter().map(|a| a.map_or("-".to_owned(), |a| a.describe())).collect::<Vec<_>>().join(", ");
    // A kernel that panics on some operands is a defect, but not one that ends the process.
    let computed = catch_unwind(AssertUnwindSafe(|| (entry.kernel)(call, &args)));
    let computed =
        computed.unwrap_or_else(|_| Err(StandardError::new("panic in the kernel, a defect of this program")));
    let results = computed.map_err(|e| StandardError {
        too_large: e.too_large,
        ..error(format!("{} (operands: {})", e.message, describe()))
    })?;
    let mut out = vec![];
    for (i, _) in call.wanted.iter().enumerate().filter(|(_, w)| **w) {
        match results.get(i).cloned().flatten() {
            Some(d) => out.push(d),
            None => return Err(error(format!("result {i} is not supported"))),
        }
    }
    Ok(out)
}
