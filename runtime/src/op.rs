//! The operators: one enum with typed attributes, used by importer, e-graph, plan and executors alike.
//!
//! The table at the end of this file is the only place where an operator is declared. It yields the
//! enum, the signatures that rules are checked against, and the text and JSON forms.

use std::fmt;
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::attr::{Attr, AttrField, AttrKind, MeshAxis, Real, Safe};
use crate::body::Body;
use crate::dim::{Dim, Shape};
use crate::dtype::{DType, Literal};
use crate::norm::{Norm, Sum};
use crate::standard::Call;

/// What kind of computation an operator is; rules may quantify over `unary` and `binary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// No operand.
    Leaf,
    /// One operand, element by element.
    Unary,
    /// Two operands, element by element with NumPy broadcasting.
    Binary,
    /// As `Binary`, and the operands may be exchanged.
    Commutative,
    /// Moves elements without computing on them.
    Layout,
    /// Any other pure computation.
    Compute,
    /// Communicates between ranks, or cuts a value for one.
    Collective,
    /// One kernel for several of the above.
    Fused,
    /// A named result of the program.
    Root,
}

/// An attribute in the operator table.
#[derive(Clone, Debug)]
pub struct AttrInfo {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: AttrKind,
    /// Its value where none is written.
    pub default: Option<Attr>,
}

/// A row of the operator table.
#[derive(Clone, Debug)]
pub struct OpInfo {
    /// The name in rules, text and plans.
    pub name: &'static str,
    /// What kind of computation it is.
    pub class: Class,
    /// Fewest operands.
    pub min_inputs: usize,
    /// Most operands.
    pub max_inputs: usize,
    /// Number of results; more than one makes a tuple, read by `get`.
    pub outputs: usize,
    /// Attributes, in the order in which they may be written without a keyword.
    pub attrs: Vec<AttrInfo>,
    /// One line for people.
    pub doc: &'static str,
}

impl OpInfo {
    /// How many operands it takes, in words.
    pub fn arity(&self) -> String {
        match (self.min_inputs, self.max_inputs) {
            (a, b) if a == b => a.to_string(),
            (a, usize::MAX) => format!("at least {a}"),
            (a, b) => format!("{a} to {b}"),
        }
    }
}

/// Looks an operator up by name.
pub fn info(name: &str) -> Option<&'static OpInfo> {
    table().iter().find(|o| o.name == name)
}

impl Op {
    /// Number of results; more than one makes a tuple, read by `get`.
    pub fn outputs(&self) -> usize {
        match self {
            Op::Kernel { body } => body.results.len(),
            Op::Standard { call } => call.results.len(),
            op => op.info().outputs,
        }
    }

    /// The name under which people know it: that of a declared kernel, else that of the operator.
    pub fn title(&self) -> &str {
        match self {
            Op::Kernel { body } => &body.name,
            Op::Standard { call } => &call.op,
            op => op.name(),
        }
    }

    /// Whether the first two operands may be exchanged.
    pub fn commutes(&self) -> bool {
        self.info().class == Class::Commutative || self.norm().is_some_and(|n| n.sum == Sum::Local)
    }

    /// What a norm does, alone or fused with what stands around it; `None` for any other operator.
    pub fn norm(&self) -> Option<Norm> {
        Norm::of(self)
    }

    /// Whether its kernels compute in f32, so that operands of f64 would lose precision. Such operands have no kernel.
    pub fn computes_in_f32(&self) -> bool {
        let fused = matches!(self, Op::SiluMul {} | Op::GeluMul { .. } | Op::Rotary { .. } | Op::Attention { .. });
        fused
            || self.norm().is_some()
            || matches!(self, Op::Softmax { .. } | Op::Largest { .. } | Op::ExpertMatmul { .. })
    }
}

impl fmt::Display for Op {
    /// `name {attr = value, ...}`, attributes that have their default value left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let mut open = false;
        for (a, i) in self.attrs().iter().zip(&self.info().attrs) {
            if i.default.as_ref() == Some(a) {
                continue;
            }
            write!(f, "{}{} = {a}", if open { ", " } else { " {" }, i.name)?;
            open = true;
        }
        f.write_str(if open { "}" } else { "" })
    }
}

impl Serialize for Op {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let attrs: Map<String, Value> = self
            .attrs()
            .iter()
            .zip(&self.info().attrs)
            .filter(|(a, i)| i.default.as_ref() != Some(a))
            .map(|(a, i)| (i.name.to_owned(), a.to_json()))
            .collect();
        let mut m = s.serialize_map(Some(1 + usize::from(!attrs.is_empty())))?;
        m.serialize_entry("name", self.name())?;
        if !attrs.is_empty() {
            m.serialize_entry("attrs", &attrs)?;
        }
        m.end()
    }
}

impl<'de> Deserialize<'de> for Op {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Form {
            name: String,
            #[serde(default)]
            attrs: Map<String, Value>,
        }
        let form = Form::deserialize(d)?;
        let row = info(&form.name).ok_or_else(|| D::Error::custom(format!("no operator is called `{}`", form.name)))?;
        if let Some(extra) = form.attrs.keys().find(|k| !row.attrs.iter().any(|a| a.name == k.as_str())) {
            return Err(D::Error::custom(format!("`{}` has no attribute `{extra}`", form.name)));
        }
        let attrs: Result<Vec<Attr>, D::Error> = row
            .attrs
            .iter()
            .map(|a| match form.attrs.get(a.name) {
                Some(v) => Attr::from_json(a.kind, v)
                    .ok_or_else(|| D::Error::custom(format!("`{}`: attribute `{}` cannot be {v}", form.name, a.name))),
                None => a
                    .default
                    .clone()
                    .ok_or_else(|| D::Error::custom(format!("`{}` lacks attribute `{}`", form.name, a.name))),
            })
            .collect();
        Op::from_attrs(&form.name, &attrs?).ok_or_else(|| D::Error::custom(format!("`{}` is malformed", form.name)))
    }
}

macro_rules! ops {
    ($(
        $(#[doc = $doc:literal])+
        $variant:ident = $name:literal, $class:ident, $min:literal..=$max:expr, $outputs:literal,
        { $($(#[doc = $fdoc:literal])* $field:ident: $ty:ty $(= $default:expr)?),* $(,)? };
    )*) => {
        /// An operator with its attributes. The operands belong to the node, not to the operator.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op {
            $($(#[doc = $doc])+ $variant { $($(#[doc = $fdoc])* #[allow(missing_docs, reason = "the operator's line explains it")] $field: $ty),* },)*
        }

        impl Op {
            /// The name in rules, text and plans.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$variant { .. } => $name,)* }
            }

            /// The attribute values, in table order.
            pub fn attrs(&self) -> Vec<Attr> {
                match self { $(Op::$variant { $($field),* } => vec![$($field.to_attr()),*],)* }
            }

            /// Builds an operator from attribute values in table order.
            pub fn from_attrs(name: &str, attrs: &[Attr]) -> Option<Op> {
                let mut it = attrs.iter();
                let op = match name {
                    $($name => Op::$variant { $($field: <$ty as AttrField>::from_attr(it.next()?)?),* },)*
                    _ => return None,
                };
                it.next().is_none().then_some(op)
            }

            /// The operator's row in the table.
            pub fn info(&self) -> &'static OpInfo {
                &table()[self.index()]
            }

            pub(crate) fn index(&self) -> usize {
                #[allow(non_camel_case_types, clippy::enum_variant_names, reason = "counts the variants")]
                enum Row { $($variant),* }
                match self { $(Op::$variant { .. } => Row::$variant as usize,)* }
            }
        }

        /// One instance of every operator, with attributes of no meaning.
        pub fn instances() -> Vec<Op> {
            vec![$(Op::$variant { $($field: <$ty as AttrField>::placeholder()),* }),*]
        }

        /// Every operator.
        pub fn table() -> &'static [OpInfo] {
            static TABLE: std::sync::LazyLock<Vec<OpInfo>> = std::sync::LazyLock::new(|| vec![$(
                OpInfo {
                    name: $name,
                    class: Class::$class,
                    min_inputs: $min,
                    max_inputs: $max,
                    outputs: $outputs,
                    attrs: vec![$(AttrInfo {
                        name: stringify!($field),
                        kind: <$ty as AttrField>::KIND,
                        default: ops!(@default $ty $(, $default)?),
                    }),*],
                    doc: concat!($($doc),+).trim(),
                },
            )*]);
            &TABLE
        }
    };
    (@default $ty:ty) => { None };
    (@default $ty:ty, $default:expr) => {{ let v: $ty = $default; Some(v.to_attr()) }};
}

ops! {
    /// A graph input.
    Input = "input", Leaf, 0..=0, 1, { name: String, dtype: DType, shape: Shape };
    /// A weight: a tensor whose data lies in the model's files.
    Weight = "weight", Leaf, 0..=0, 1, { name: String, dtype: DType, shape: Shape };
    /// A small constant that is part of the program.
    Const = "const", Leaf, 0..=0, 1, { value: Literal };
    /// Symbolic extents as an i64 tensor: a vector, or a scalar when `scalar` is set.
    Dims = "dims", Leaf, 0..=0, 1, { values: Shape, scalar: bool = false };
    /// `start, start + step, ...` up to but without `limit`, as i64.
    Range = "range", Leaf, 0..=0, 1, { start: Dim, limit: Dim, step: i64 = 1 };

    /// -x.
    Neg = "neg", Unary, 1..=1, 1, {};
    /// |x|.
    Abs = "abs", Unary, 1..=1, 1, {};
    /// Square root.
    Sqrt = "sqrt", Unary, 1..=1, 1, {};
    /// 1 / x.
    Reciprocal = "reciprocal", Unary, 1..=1, 1, {};
    /// e^x.
    Exp = "exp", Unary, 1..=1, 1, {};
    /// Natural logarithm.
    Log = "log", Unary, 1..=1, 1, {};
    /// 1 / (1 + e^-x).
    Sigmoid = "sigmoid", Unary, 1..=1, 1, {};
    /// Hyperbolic tangent.
    Tanh = "tanh", Unary, 1..=1, 1, {};
    /// Error function.
    Erf = "erf", Unary, 1..=1, 1, {};
    /// Cosine.
    Cos = "cos", Unary, 1..=1, 1, {};
    /// Sine.
    Sin = "sin", Unary, 1..=1, 1, {};
    /// max(x, 0).
    Relu = "relu", Unary, 1..=1, 1, {};
    /// Largest integer not above x.
    Floor = "floor", Unary, 1..=1, 1, {};
    /// Smallest integer not below x.
    Ceil = "ceil", Unary, 1..=1, 1, {};
    /// Logical negation.
    Not = "not", Unary, 1..=1, 1, {};
    /// Whether x is not a number.
    IsNan = "is_nan", Unary, 1..=1, 1, {};
    /// x * sigmoid(x).
    Silu = "silu", Unary, 1..=1, 1, {};
    /// Gaussian error linear unit: with erf, or the tanh approximation.
    Gelu = "gelu", Unary, 1..=1, 1, { tanh: bool = false };
    /// Converts the element type.
    Cast = "cast", Unary, 1..=1, 1, { to: DType };

    /// a + b.
    Add = "add", Commutative, 2..=2, 1, {};
    /// a - b.
    Sub = "sub", Binary, 2..=2, 1, {};
    /// a * b.
    Mul = "mul", Commutative, 2..=2, 1, {};
    /// a / b; integers truncate towards zero.
    Div = "div", Binary, 2..=2, 1, {};
    /// a^b, in the type of a.
    Pow = "pow", Binary, 2..=2, 1, {};
    /// The larger element.
    Max = "max", Commutative, 2..=2, 1, {};
    /// The smaller element.
    Min = "min", Commutative, 2..=2, 1, {};
    /// Logical and.
    And = "and", Commutative, 2..=2, 1, {};
    /// Logical or.
    Or = "or", Commutative, 2..=2, 1, {};
    /// a == b.
    Equal = "equal", Commutative, 2..=2, 1, {};
    /// a < b.
    Less = "less", Binary, 2..=2, 1, {};
    /// a <= b.
    LessEqual = "less_equal", Binary, 2..=2, 1, {};
    /// a > b.
    Greater = "greater", Binary, 2..=2, 1, {};
    /// a >= b.
    GreaterEqual = "greater_equal", Binary, 2..=2, 1, {};
    /// (x, scale): x / scale in f8e4m3fn, which saturates. The quotient is computed in f32 and rounded to the type of scale before; the result has the shape of x.
    QuantizeFp8 = "quantize_fp8", Binary, 2..=2, 1, {};
    /// (condition, a, b): a where the condition holds, else b, with broadcasting.
    Where = "where", Compute, 3..=3, 1, {};

    /// Sum over axes.
    ReduceSum = "reduce_sum", Compute, 1..=1, 1, { axes: Vec<i64>, keepdims: bool = true };
    /// Arithmetic mean over axes.
    ReduceMean = "reduce_mean", Compute, 1..=1, 1, { axes: Vec<i64>, keepdims: bool = true };
    /// Largest element over axes.
    ReduceMax = "reduce_max", Compute, 1..=1, 1, { axes: Vec<i64>, keepdims: bool = true };
    /// Soft-max along an axis; `safe` says which rows are zeros instead of NaN.
    Softmax = "softmax", Compute, 1..=1, 1, { axis: i64, safe: Safe = Safe::No };
    /// Matrix product over the last two axes, leading axes broadcast; `trans_b` reads b transposed.
    Matmul = "matmul", Compute, 2..=2, 1, { trans_b: bool = false };
    /// (x, weight): x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in f32.
    RmsNorm = "rms_norm", Compute, 2..=2, 1, { eps: Real };
    /// (x, weight, bias): (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in f32.
    LayerNorm = "layer_norm", Compute, 3..=3, 1, { eps: Real };
    /// (x, cos, sin): rotary embedding of the last axis; cos and sin have half its extent and broadcast.
    Rotary = "rotary", Compute, 3..=3, 1, { interleaved: bool = false };
    /// (packed, scale[, zero]): unsigned numbers of `bits` bits, the first in the lowest bits of each byte of the last axis, as (number - zero) * scale in the type of scale. One scale is for an equal run of the last axis; without zero, 2^(bits - 1) is taken.
    Dequantize = "dequantize", Compute, 2..=3, 1, { bits: i64 };
    /// (x): the scale of each row of the last axis that makes the largest magnitude 448, the largest f8e4m3fn, and at least `floor`: f32 [.., 1].
    Fp8Scale = "fp8_scale", Compute, 1..=1, 1, { floor: Real = Real(0.0) };
    /// (x, scale): for each 16 elements of the last axis the largest magnitude / 6 * scale in f8e4m3fn, computed in f32; scale is one f32.
    Fp4Scale = "fp4_scale", Compute, 2..=2, 1, {};
    /// (x, block_scale, scale): x * (scale / block_scale) in f4e2m1, computed in f32, with a block scale for each 16 elements of the last axis; 0 where that is 0.
    QuantizeFp4 = "quantize_fp4", Compute, 3..=3, 1, {};
    /// (q): two f4e2m1 a byte, the first in the low bits, to one a byte.
    UnpackFp4 = "unpack_fp4", Compute, 1..=1, 1, {};
    /// (block scales as `quantize_nvfp4` gives them): row by row, in a shape.
    UnswizzleScales = "unswizzle_scales", Compute, 1..=1, 1, { shape: Shape };
    /// (scores): the k largest of each row of the last axis in falling order, the last of equal ones first as ONNX Runtime's `MoE` chooses them, and their positions.
    Largest = "largest", Compute, 1..=1, 2, { k: i64 };
    /// (x, w, expert[, scale[, zero]]): x [tokens, slots or 1, k] times the transposed matrix of w [experts, n, k] that `expert` [tokens, slots] names; negative ones count from the end. With `bits` other than 0, w is packed, and scale and zero are those of `dequantize`.
    ExpertMatmul = "expert_matmul", Compute, 3..=5, 1, { bits: i64 = 0 };
    /// (q, k, v[, mask[, sink]]) as [batch, heads, tokens, width]; key heads may be fewer (grouped queries). A boolean mask keeps where true, a float mask is added to the scores; sink broadcasts to [batch, heads, queries, 1] and is one more score, of a key without value; `safe` says which rows of weights are zeros instead of NaN.
    Attention = "attention", Compute, 3..=5, 1, { scale: Real, causal: bool = false, softcap: Real = Real(0.0), safe: Safe = Safe::No };

    /// The same elements under another shape.
    Reshape = "reshape", Layout, 1..=1, 1, { shape: Shape };
    /// Permutes the axes: result axis i is operand axis `perm[i]`.
    Transpose = "transpose", Layout, 1..=1, 1, { perm: Vec<i64> };
    /// Broadcasts to a shape.
    Expand = "expand", Layout, 1..=1, 1, { shape: Shape };
    /// Joins along an axis.
    Concat = "concat", Layout, 1..=usize::MAX, 1, { axis: i64 };
    /// (past, new, length): a cache [batch, heads, tokens, width] with a length for each row of the batch, after the new tokens. A row keeps its first length - new tokens of past (none where that is negative), the new ones follow, then zeros up to `tokens`.
    Append = "append", Layout, 3..=3, 1, { tokens: Dim };
    /// Elements start, start + step, ... below end along one axis.
    Slice = "slice", Layout, 1..=1, 1, { axis: i64, start: Dim, end: Dim, step: i64 = 1 };
    /// (data, indices): entries of data along an axis; negative indices count from the end.
    Gather = "gather", Layout, 2..=2, 1, { axis: i64 };
    /// (data, indices): the last axis of indices addresses data after `batch_dims` leading axes.
    GatherNd = "gather_nd", Layout, 2..=2, 1, { batch_dims: i64 = 0 };

    /// Part i * parts / size of x along dim, on rank i of the axis.
    Shard = "shard", Collective, 1..=1, 1, { dim: i64, axis: MeshAxis, parts: i64 };
    /// Joins the `parts` distinct parts that the ranks of the axis hold, along dim.
    AllGather = "all_gather", Collective, 1..=1, 1, { dim: i64, axis: MeshAxis, parts: i64 };
    /// Sum over the ranks of the axis.
    AllReduce = "all_reduce", Collective, 1..=1, 1, { axis: MeshAxis };
    /// x as seen by a pipeline stage.
    Boundary = "boundary", Collective, 1..=1, 1, { stage: i64 };
    /// (weight part, indices): rows of a vocabulary-split table; rows of other ranks are zero.
    VocabGather = "vocab_gather", Compute, 2..=2, 1, { axis: MeshAxis };

    /// (x, r, weight) to (rms_norm(x + r), x + r).
    AddRmsNorm = "add_rms_norm", Fused, 3..=3, 2, { eps: Real };
    /// (x, r, weight, bias) to (layer_norm(x + r), x + r).
    AddLayerNorm = "add_layer_norm", Fused, 4..=4, 2, { eps: Real };
    /// (x, r, weight) to (rms_norm(s), s) with s = all_reduce(x) + r; r and weight are equal on all ranks.
    ArResidualRmsNorm = "ar_residual_rms_norm", Fused, 3..=3, 2, { axis: MeshAxis, eps: Real };
    /// (x, r, weight, bias) to (layer_norm(s), s) with s = all_reduce(x) + r; all but x are equal on all ranks.
    ArResidualLayerNorm = "ar_residual_layer_norm", Fused, 4..=4, 2, { axis: MeshAxis, eps: Real };
    /// (x, weight, scale) to (n, quantize_fp8(n, scale)) with n = rms_norm(x).
    RmsNormQuantFp8 = "rms_norm_quant_fp8", Fused, 3..=3, 2, { eps: Real };
    /// (x, weight) to (n, quantize_fp8(n, t), t) with n = rms_norm(x), t = fp8_scale(n).
    RmsNormQuantFp8Token = "rms_norm_quant_fp8_token", Fused, 2..=2, 3, { eps: Real, floor: Real = Real(0.0) };
    /// (x, weight, scale) to (n, both results of quantize_nvfp4(n, scale)) with n = rms_norm(x).
    RmsNormQuantNvfp4 = "rms_norm_quant_nvfp4", Fused, 3..=3, 3, { eps: Real };
    /// (x, weight, bias, scale) to (n, quantize_fp8(n, scale)) with n = layer_norm(x).
    LayerNormQuantFp8 = "layer_norm_quant_fp8", Fused, 4..=4, 2, { eps: Real };
    /// (x, weight, bias) to (n, quantize_fp8(n, t), t) with n = layer_norm(x), t = fp8_scale(n).
    LayerNormQuantFp8Token = "layer_norm_quant_fp8_token", Fused, 3..=3, 3, { eps: Real, floor: Real = Real(0.0) };
    /// (x, weight, bias, scale) to (n, both results of quantize_nvfp4(n, scale)) with n = layer_norm(x).
    LayerNormQuantNvfp4 = "layer_norm_quant_nvfp4", Fused, 4..=4, 3, { eps: Real };
    /// (x, r, weight, scale) to (n, quantize_fp8(n, scale), s) with n = rms_norm(s), s = x + r.
    AddRmsNormQuantFp8 = "add_rms_norm_quant_fp8", Fused, 4..=4, 3, { eps: Real };
    /// (x, r, weight) to (n, quantize_fp8(n, t), t, s) with n = rms_norm(s), t = fp8_scale(n), s = x + r.
    AddRmsNormQuantFp8Token = "add_rms_norm_quant_fp8_token", Fused, 3..=3, 4, { eps: Real, floor: Real = Real(0.0) };
    /// (x, r, weight, scale) to (n, both results of quantize_nvfp4(n, scale), s) with n = rms_norm(s), s = x + r.
    AddRmsNormQuantNvfp4 = "add_rms_norm_quant_nvfp4", Fused, 4..=4, 4, { eps: Real };
    /// (x, r, weight, bias, scale) to (n, quantize_fp8(n, scale), s) with n = layer_norm(s), s = x + r.
    AddLayerNormQuantFp8 = "add_layer_norm_quant_fp8", Fused, 5..=5, 3, { eps: Real };
    /// (x, r, weight, bias) to (n, quantize_fp8(n, t), t, s) with n = layer_norm(s), t = fp8_scale(n), s = x + r.
    AddLayerNormQuantFp8Token = "add_layer_norm_quant_fp8_token", Fused, 4..=4, 4, { eps: Real, floor: Real = Real(0.0) };
    /// (x, r, weight, bias, scale) to (n, both results of quantize_nvfp4(n, scale), s) with n = layer_norm(s), s = x + r.
    AddLayerNormQuantNvfp4 = "add_layer_norm_quant_nvfp4", Fused, 5..=5, 4, { eps: Real };
    /// (x, r, weight, scale) to (n, quantize_fp8(n, scale), s) with n = rms_norm(s), s = all_reduce(x) + r; all but x are equal on all ranks.
    ArResidualRmsNormQuantFp8 = "ar_residual_rms_norm_quant_fp8", Fused, 4..=4, 3, { axis: MeshAxis, eps: Real };
    /// (x, r, weight) to (n, quantize_fp8(n, t), t, s) with n = rms_norm(s), t = fp8_scale(n), s = all_reduce(x) + r; all but x are equal on all ranks.
    ArResidualRmsNormQuantFp8Token = "ar_residual_rms_norm_quant_fp8_token", Fused, 3..=3, 4, { axis: MeshAxis, eps: Real, floor: Real = Real(0.0) };
    /// (x, r, weight, scale) to (n, both results of quantize_nvfp4(n, scale), s) with n = rms_norm(s), s = all_reduce(x) + r; all but x are equal on all ranks.
    ArResidualRmsNormQuantNvfp4 = "ar_residual_rms_norm_quant_nvfp4", Fused, 4..=4, 4, { axis: MeshAxis, eps: Real };
    /// (x, r, weight, bias, scale) to (n, quantize_fp8(n, scale), s) with n = layer_norm(s), s = all_reduce(x) + r; all but x are equal on all ranks.
    ArResidualLayerNormQuantFp8 = "ar_residual_layer_norm_quant_fp8", Fused, 5..=5, 3, { axis: MeshAxis, eps: Real };
    /// (x, r, weight, bias) to (n, quantize_fp8(n, t), t, s) with n = layer_norm(s), t = fp8_scale(n), s = all_reduce(x) + r; all but x are equal on all ranks.
    ArResidualLayerNormQuantFp8Token = "ar_residual_layer_norm_quant_fp8_token", Fused, 4..=4, 4, { axis: MeshAxis, eps: Real, floor: Real = Real(0.0) };
    /// (x, r, weight, bias, scale) to (n, both results of quantize_nvfp4(n, scale), s) with n = layer_norm(s), s = all_reduce(x) + r; all but x are equal on all ranks.
    ArResidualLayerNormQuantNvfp4 = "ar_residual_layer_norm_quant_nvfp4", Fused, 5..=5, 4, { axis: MeshAxis, eps: Real };
    /// (x, scale) to (q, b) with q = quantize_fp4(x, b, scale) two a byte, the first in the low bits, and b = fp4_scale(x, scale) in tiles of 128 rows and 4 blocks, padded with zeros: the scale of (row, block) lies at (row / 128 * tiles + block / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + block % 4, with tiles = ceil(blocks / 4).
    QuantizeNvfp4 = "quantize_nvfp4", Fused, 2..=2, 2, {};
    /// (gate, up): silu(gate) * up.
    SiluMul = "silu_mul", Fused, 2..=2, 1, {};
    /// (gate, up): gelu(gate) * up.
    GeluMul = "gelu_mul", Fused, 2..=2, 1, { tanh: bool = false };
    /// A kernel that a rule file declares; its name, results and meaning are its body's.
    Kernel = "kernel", Fused, 1..=usize::MAX, 1, { body: Body };
    /// A standard operator that none of the others expresses, computed as it is on every rank.
    Standard = "standard", Compute, 0..=usize::MAX, 1, { call: Arc<Call> };
    /// One result of a tuple.
    Get = "get", Layout, 1..=1, 1, { index: i64 };

    /// A named result; `state` marks a cache that the caller feeds back.
    Output = "output", Root, 1..=1, 1, { name: String, state: bool = false };
    /// A named result whose parts along dim stay on the ranks of the axis.
    OutputSharded = "output_sharded", Root, 1..=1, 1, { name: String, dim: i64, axis: MeshAxis, parts: i64 };
    /// Sends to the rank of the same column in another stage.
    Send = "send", Collective, 1..=1, 0, { stage: i64, tag: i64 };
    /// Receives from the rank of the same column in another stage.
    Recv = "recv", Collective, 0..=0, 1, { stage: i64, tag: i64 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rows_match_variants() {
        for (i, row) in table().iter().enumerate() {
            assert_eq!(table().iter().position(|r| r.name == row.name), Some(i));
            assert!(!row.doc.is_empty());
        }
        assert_eq!(Op::Matmul { trans_b: true }.info().name, "matmul");
    }

    #[test]
    fn json_reads_back() {
        let ops = [
            Op::Matmul { trans_b: true },
            Op::Reshape { shape: vec![Dim::sym("batch"), Dim::from(4)] },
            Op::Const { value: Literal::scalar(DType::F32, 1e-20) },
            Op::RmsNorm { eps: Real(1e-6) },
            Op::Attention { scale: Real(0.25), causal: true, softcap: Real(0.0), safe: Safe::No },
            Op::Shard { dim: 1, axis: MeshAxis::Tp, parts: 2 },
            Op::Slice { axis: 0, start: Dim::from(0), end: Dim::parse("seq + 1").unwrap(), step: 1 },
        ];
        for op in ops {
            let json = serde_json::to_string(&op).unwrap();
            assert_eq!(serde_json::from_str::<Op>(&json).unwrap(), op, "{json}");
        }
        assert!(serde_json::from_str::<Op>(r#"{"name":"matmul","attrs":{"x":1}}"#).is_err());
        assert!(serde_json::from_str::<Op>(r#"{"name":"rms_norm"}"#).is_err());
    }
}
