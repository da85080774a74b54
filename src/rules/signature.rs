//! Which values fit where: what functions give, and what their parameters and attributes take.

use super::lang::Expr;
use super::vocab::Kind;
use crate::ir::{Attr, AttrKind};

/// What sort of value an expression has, as far as it is known before a rule runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueSort {
    /// An integer, a floating-point number or an extent.
    Number,
    /// A list of integers or extents.
    List,
    /// A mesh axis.
    Axis,
    /// `true` or `false`.
    Bool,
    /// An element type.
    DType,
    /// A name.
    Text,
    /// A small tensor.
    Tensor,
    /// Any of these.
    Any,
}

impl ValueSort {
    /// Values of an attribute kind.
    pub fn of_kind(kind: AttrKind) -> ValueSort {
        match kind {
            AttrKind::Int | AttrKind::Real | AttrKind::Dim => ValueSort::Number,
            AttrKind::Ints | AttrKind::Dims => ValueSort::List,
            AttrKind::Bool => ValueSort::Bool,
            AttrKind::DType => ValueSort::DType,
            AttrKind::Axis => ValueSort::Axis,
            AttrKind::Safe => ValueSort::Any,
            AttrKind::Str => ValueSort::Text,
            AttrKind::Lit | AttrKind::Body | AttrKind::Call => ValueSort::Tensor,
        }
    }

    /// The sort of a literal.
    pub fn of_literal(a: &Attr) -> ValueSort {
        match a {
            Attr::Int(_) | Attr::Real(_) | Attr::Dim(_) => ValueSort::Number,
            Attr::Ints(_) | Attr::Dims(_) => ValueSort::List,
            Attr::Bool(_) => ValueSort::Bool,
            Attr::DType(_) => ValueSort::DType,
            Attr::Axis(_) => ValueSort::Axis,
            Attr::Safe(_) => ValueSort::Any,
            Attr::Str(_) => ValueSort::Text,
            Attr::Lit(_) | Attr::Body(_) | Attr::Call(_) => ValueSort::Tensor,
        }
    }

    /// What a parameter takes; `None` where it is for tensors.
    pub fn of_parameter(kind: Kind) -> Option<ValueSort> {
        Some(match kind {
            Kind::Class | Kind::Classes => return None,
            Kind::Number => ValueSort::Number,
            Kind::List => ValueSort::List,
            Kind::Axis => ValueSort::Axis,
            Kind::Bool => ValueSort::Bool,
            Kind::Any => ValueSort::Any,
        })
    }

    /// The sort of an expression, given those of the variables.
    pub fn of_expr(e: &Expr, variable: &impl Fn(usize) -> ValueSort) -> ValueSort {
        match e {
            Expr::Lit(a) => ValueSort::of_literal(a),
            Expr::Var(v) => variable(*v),
            Expr::Call(f, args, _) if f.name == "if" => match &args[..] {
                [_, a, b] => match ValueSort::of_expr(a, variable) {
                    ValueSort::Any => ValueSort::of_expr(b, variable),
                    sort => sort,
                },
                _ => ValueSort::Any,
            },
            Expr::Call(f, ..) => result(f.name),
        }
    }

    /// Whether a value of this sort may be one of the other.
    pub fn fits(self, want: ValueSort) -> bool {
        self == want || self == ValueSort::Any || want == ValueSort::Any
    }

    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            ValueSort::Number => "a number",
            ValueSort::List => "a list",
            ValueSort::Axis => "a mesh axis",
            ValueSort::Bool => "true or false",
            ValueSort::DType => "an element type",
            ValueSort::Text => "a name",
            ValueSort::Tensor => "a constant",
            ValueSort::Any => "any value",
        }
    }
}

/// What a function of the vocabulary gives.
pub fn result(name: &str) -> ValueSort {
    match name {
        "value" | "rank" | "last" | "elements" | "dim" | "size" | "+" | "-" | "*" | "/" | "larger" | "root"
        | "item" | "index" | "length" | "reshape-axis" | "aligned-axis" => ValueSort::Number,
        "shape" | "only" | "axes" | "split" | "split-last" | "with" | "gathered" | "compose" | "swap-last-two" => {
            ValueSort::List
        }
        "replicated" | "weight" | "leaf" | "free" | "constant" | "scalar" | "same-shape" | "same-dtype"
        | "vector-of" | "divides" | "=" | "!=" | "<" | "not" | "broadcasts-over" | "all-broadcast-over"
        | "covers-shape" | "float" | "close" | "widens" | "swaps-last-two" | "merges-batch" | "repeats-heads" => {
            ValueSort::Bool
        }
        "dtype" => ValueSort::DType,
        _ => ValueSort::Any,
    }
}

/// What a parameter takes, in words.
pub fn parameter(kind: Kind) -> &'static str {
    match kind {
        Kind::Class => "a tensor",
        Kind::Classes => "several tensors",
        other => ValueSort::of_parameter(other).unwrap_or(ValueSort::Any).describe(),
    }
}
