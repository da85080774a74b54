//! Element-wise operators on any element type: arithmetic, comparison, bits, activations, conversions, quantisation.

mod binary;
mod cast;
mod quant;
mod scan;
#[cfg(test)]
mod tests;
mod types;
mod unary;

pub(super) use quant::EXACT_DEPTH;

use super::elem::dtype_of_code;
use super::{Call, Entry, StandardError, infer, row};
use crate::dtype::DType;

/// The operators of this family.
pub(super) const OPS: &[Entry] = &[
    row("Abs", unary::abs, infer::same),
    row("Acos", unary::acos, types::float),
    row("Acosh", unary::acosh, types::float),
    row("Add", binary::add, types::arithmetic),
    row("And", binary::and, types::logic),
    row("Asin", unary::asin, types::float),
    row("Asinh", unary::asinh, types::float),
    row("Atan", unary::atan, types::float),
    row("Atanh", unary::atanh, types::float),
    row("BitCast", cast::bit_cast, types::bit_cast),
    row("BitShift", binary::bit_shift, types::arithmetic),
    row("BitwiseAnd", binary::bitwise_and, types::arithmetic),
    row("BitwiseNot", unary::bitwise_not, infer::same),
    row("BitwiseOr", binary::bitwise_or, types::arithmetic),
    row("BitwiseXor", binary::bitwise_xor, types::arithmetic),
    row("Cast", cast::cast, types::cast),
    row("CastLike", cast::cast_like, types::cast_like),
    row("Ceil", unary::ceil, types::float),
    row("Celu", unary::celu, types::float),
    row("Clip", unary::clip, types::clip),
    row("Cos", unary::cos, types::float),
    row("Cosh", unary::cosh, types::float),
    row("CumProd", scan::cum_prod, types::scan),
    row("CumSum", scan::cum_sum, types::scan),
    row("DequantizeLinear", quant::dequantize_linear, types::dequantize),
    row("Div", binary::div, types::arithmetic),
    row("Dropout", unary::dropout, types::dropout),
    row("DynamicQuantizeLinear", quant::dynamic_quantize_linear, types::dynamic_quantize),
    row("Elu", unary::elu, types::float),
    row("Equal", binary::equal, types::comparison),
    row("Erf", unary::erf, types::float),
    row("Exp", unary::exp, types::float),
    row("Floor", unary::floor, types::float),
    row("Gelu", unary::gelu, types::float),
    row("Greater", binary::greater, types::comparison),
    row("GreaterOrEqual", binary::greater_equal, types::comparison),
    row("HardSigmoid", unary::hard_sigmoid, types::float),
    row("HardSwish", unary::hard_swish, types::float),
    row("IsInf", unary::is_inf, types::float_truth),
    row("IsNaN", unary::is_nan, types::float_truth),
    row("LeakyRelu", unary::leaky_relu, types::float),
    row("Less", binary::less, types::comparison),
    row("LessOrEqual", binary::less_equal, types::comparison),
    row("Log", unary::log, types::float),
    row("MatMulInteger", quant::matmul_integer, types::matmul_integer),
    row("Max", binary::max, types::arithmetic),
    row("Mean", binary::mean, types::arithmetic),
    row("Min", binary::min, types::arithmetic),
    row("Mish", unary::mish, types::float),
    row("Mod", binary::modulo, types::arithmetic),
    row("Mul", binary::mul, types::arithmetic),
    row("Neg", unary::neg, infer::same),
    row("Not", unary::not, types::truth),
    row("Or", binary::or, types::logic),
    row("PRelu", binary::prelu, types::slope),
    row("Pow", binary::pow, types::power),
    row("QLinearMatMul", quant::qlinear_matmul, types::qlinear_matmul),
    row("QuantizeLinear", quant::quantize_linear, types::quantize),
    row("Reciprocal", unary::reciprocal, types::float),
    row("Relu", unary::relu, infer::same),
    row("Round", unary::round, types::float),
    row("Selu", unary::selu, types::float),
    row("Shrink", unary::shrink, infer::same),
    row("Sigmoid", unary::sigmoid, types::float),
    row("Sign", unary::sign, infer::same),
    row("Sin", unary::sin, types::float),
    row("Sinh", unary::sinh, types::float),
    row("Softplus", unary::softplus, types::float),
    row("Softsign", unary::softsign, types::float),
    row("Sqrt", unary::sqrt, types::float),
    row("Sub", binary::sub, types::arithmetic),
    row("Sum", binary::sum, types::arithmetic),
    row("Swish", unary::swish, types::float),
    row("Tan", unary::tan, types::float),
    row("Tanh", unary::tanh, types::float),
    row("ThresholdedRelu", unary::thresholded_relu, types::float),
    row("Where", binary::select, types::select),
    row("Xor", binary::xor, types::logic),
];

/// The mask of `Dropout` has the data's type before opset 10.
fn dropout_mask_type(c: &Call, data: DType) -> DType {
    if c.opset < 10 { data } else { DType::Bool }
}

/// The type that `QuantizeLinear` makes.
fn quantised_type(c: &Call, zero: Option<DType>) -> Result<DType, StandardError> {
    let asked = c.int("output_dtype").filter(|&p| p != 0).map(dtype_of_code).transpose()?;
    let to = match (asked, zero) {
        (Some(a), Some(z)) if a != z => {
            return Err(StandardError::new(format!("`output_dtype` is {a}, but the zero point is {z}")));
        }
        (a, z) => z.or(a).unwrap_or(DType::U8),
    };
    if matches!(to, DType::I64 | DType::U64 | DType::U32 | DType::Bool | DType::Opaque) || to.is_float() {
        return Err(StandardError::new(format!("{to} is no type of quantised elements")));
    }
    Ok(to)
}
