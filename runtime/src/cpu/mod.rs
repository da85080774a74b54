//! The CPU back end: one kernel per operator. Loops over elements are vectorised and cut into blocks for threads (`simd.rs`).
//!
//! f32, f16 and bf16 compute and accumulate in f32 or wider and round once to the storage type. A kernel
//! checks all that it assumes of shapes and types and returns a [`KernelError`] where that does not hold.

mod attention;
mod cache;
mod collective;
pub(crate) mod convert;
mod declared;
mod elementwise;
mod experts;
mod gather;
pub(crate) mod integer;
mod layout;
pub(crate) mod math;
pub(crate) mod matmul;
mod norm;
mod packed;
pub mod quantize;
pub(crate) mod reduce;
pub(crate) mod simd;
pub(crate) mod skinny;
mod unary;
pub(crate) mod walk;

use crate::comm::{CommError, Communicator};
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::op::Op;
use crate::tensor::{View, ViewMut};

/// Why a kernel could not compute its result.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel has no implementation for the element type.
    #[error("no kernel for elements of type {0}")]
    DType(DType),
    /// The operands have different element types.
    #[error("operands of types {0} and {1} do not go together")]
    Mixed(DType, DType),
    /// The shapes do not fit each other or the attributes.
    #[error("{0}")]
    Shape(String),
    /// An index lies outside the tensor.
    #[error("index {index} is outside the extent {extent}")]
    Index {
        /// The index as given.
        index: i64,
        /// Number of entries.
        extent: usize,
    },
    /// An integer was divided by zero.
    #[error("integer division by zero")]
    DivisionByZero,
    /// A symbolic extent has no value, or no usable one.
    #[error("{0}")]
    Extent(String),
    /// The operator cannot be a step, or has the wrong number of operands.
    #[error("not a step: {0}")]
    NotAStep(String),
    /// The exchange with other ranks failed.
    #[error(transparent)]
    Comm(#[from] CommError),
}

type Result<T = ()> = std::result::Result<T, KernelError>;

/// What a kernel may use besides its operands.
pub struct Env<'a> {
    /// Values of the symbols.
    pub bindings: &'a Bindings,
    /// Number of threads for one kernel.
    pub threads: usize,
    /// The exchange with other ranks.
    pub comm: &'a mut dyn Communicator,
}

impl Env<'_> {
    fn eval(&self, d: &Dim) -> Result<i64> {
        d.eval(self.bindings).map_err(KernelError::Extent)
    }
}

/// Computes one step. A result that is `None` is not needed.
pub fn execute(op: &Op, x: &[View<'_>], out: &mut [Option<ViewMut<'_>>], env: &mut Env<'_>) -> Result {
    let info = op.info();
    if x.len() < info.min_inputs || x.len() > info.max_inputs || out.len() != op.outputs() {
        return Err(KernelError::NotAStep(format!("{} operands and {} results", x.len(), out.len())));
    }
    let fits = x.iter().all(|v| crate::tensor::byte_len(v.dtype, v.shape) == Some(v.bytes.len()));
    if !fits || !out.iter().flatten().all(|v| crate::tensor::byte_len(v.dtype, v.shape) == Some(v.bytes.len())) {
        return Err(KernelError::Shape("an operand or result has another length than its shape".to_owned()));
    }
    match op {
        Op::AllReduce { .. } => return collective::all_reduce(op, &x[0], out[0].as_mut(), env),
        Op::AllGather { dim, parts, .. } => {
            return collective::all_gather(op, &x[0], *dim, *parts, out[0].as_mut(), env);
        }
        Op::Send { stage, tag } => return collective::send(&x[0], *stage, *tag, env),
        Op::QuantizeNvfp4 {} => {
            let (values, scale) = (convert::floats(&x[0])?, quantize::single_f32(&x[1])?);
            return quantize::quantize_nvfp4(&values, x[0].shape, scale, out);
        }
        Op::Largest { k } => return experts::largest(&x[0], *k, out),
        Op::Kernel { body } => return declared::kernel(body, x, out, env),
        Op::Recv { stage, tag } => match out[0].as_mut() {
            Some(out) => return collective::recv(*stage, *tag, out, env),
            None => return Err(KernelError::NotAStep("a receive without a result".to_owned())),
        },
        op => {
            if let Some(n) = op.norm() {
                return norm::norm(op, &n, x, out, env);
            }
        }
    }
    let Some(out) = out.first_mut().and_then(Option::as_mut) else { return Ok(()) };
    match op {
        Op::Const { value } => {
            let shape = value.shape.clone();
            expect(out, value.dtype, &shape)?;
            if value.data.len() != out.bytes.len() {
                return Err(KernelError::Shape(format!("a literal of {shape:?} with {} bytes", value.data.len())));
            }
            out.bytes.copy_from_slice(&value.data);
            Ok(())
        }
        Op::Dims { values, .. } => layout::dims(values, out, env),
        Op::Range { start, limit, step } => layout::range(env.eval(start)?, env.eval(limit)?, *step, out),
        Op::Cast { to } => {
            expect(out, *to, x[0].shape)?;
            convert::cast(&x[0], out)
        }
        Op::Where {} => elementwise::select(&x[0], &x[1], &x[2], out),
        Op::SiluMul {} => unary::gated(&x[0], &x[1], out, env.threads, |v| simd::each(v, math::silu)),
        Op::GeluMul { tanh: true } => unary::gated(&x[0], &x[1], out, env.threads, |v| simd::each(v, math::gelu_tanh)),
        Op::GeluMul { tanh: false } => unary::gated(&x[0], &x[1], out, env.threads, |v| simd::each(v, math::gelu_erf)),
        Op::ReduceSum { axes, keepdims } => reduce::reduce(reduce::Kind::Sum, &x[0], axes, *keepdims, out),
        Op::ReduceMean { axes, keepdims } => reduce::reduce(reduce::Kind::Mean, &x[0], axes, *keepdims, out),
        Op::ReduceMax { axes, keepdims } => reduce::reduce(reduce::Kind::Max, &x[0], axes, *keepdims, out),
        Op::Softmax { axis, safe } => reduce::softmax(&x[0], *axis, *safe, out, env.threads),
        Op::Matmul { trans_b } => matmul::matmul(&x[0], &x[1], *trans_b, out, env.threads),
        Op::QuantizeFp8 {} => quantize::quantize_fp8(&x[0], &x[1], out),
        Op::Fp8Scale { floor } => quantize::fp8_scales(&x[0], floor.0, out),
        Op::Fp4Scale {} => quantize::fp4_scales(&x[0], &x[1], out),
        Op::QuantizeFp4 {} => quantize::quantize_fp4(&x[0], &x[1], &x[2], out),
        Op::UnpackFp4 {} => quantize::unpack_fp4(&x[0], out),
        Op::UnswizzleScales { .. } => quantize::unswizzle_scales(&x[0], out),
        Op::Rotary { interleaved } => attention::rotary(&x[0], &x[1], &x[2], *interleaved, out),
        Op::Attention { scale, causal, softcap, safe } => {
            let how =
                attention::Scores { scale: scale.0 as f32, causal: *causal, softcap: softcap.0 as f32, safe: *safe };
            attention::attention(x, &how, out, env.threads)
        }
        Op::Dequantize { bits } => packed::dequantize(x, *bits, out),
        Op::ExpertMatmul { bits } => experts::product_by_expert(x, *bits, out),
        Op::Append { tokens } => cache::append(x, env.eval(tokens)?, out),
        Op::Reshape { .. } => layout::reshape(&x[0], out),
        Op::Transpose { perm } => layout::transpose(&x[0], perm, out),
        Op::Expand { .. } => layout::expand(&x[0], out),
        Op::Concat { axis } => layout::concat(x, *axis, out),
        Op::Slice { axis, start, end, step } => {
            layout::slice(&x[0], *axis, env.eval(start)?, env.eval(end)?, *step, out)
        }
        Op::Gather { axis } => gather::gather(&x[0], &x[1], *axis, out),
        Op::GatherNd { batch_dims } => gather::gather_nd(&x[0], &x[1], *batch_dims, out),
        Op::VocabGather { axis } => gather::vocab_gather(&x[0], &x[1], *axis, out, env),
        Op::Shard { dim, axis, parts } => collective::shard(&x[0], *dim, *axis, *parts, out, env),
        op if x.len() == 1 && op.info().class == crate::op::Class::Unary => unary::unary(op, &x[0], out, env.threads),
        op if x.len() == 2 => elementwise::binary(op, &x[0], &x[1], out),
        op => Err(KernelError::NotAStep(op.name().to_owned())),
    }
}

/// Checks the type that a kernel computes against the declared type of the result.
fn expect(out: &ViewMut<'_>, dtype: DType, shape: &[usize]) -> Result {
    if out.dtype == dtype && out.shape == shape {
        return Ok(());
    }
    Err(KernelError::Shape(format!(
        "the result is {dtype}{shape:?}, but the plan declares {}{:?}",
        out.dtype, out.shape
    )))
}

/// An axis that may count from the end.
fn resolve_axis(axis: i64, rank: usize) -> Result<usize> {
    let n = rank as i64;
    let a = if axis < 0 { axis.saturating_add(n) } else { axis };
    usize::try_from(a)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| KernelError::Shape(format!("no axis {axis} in a tensor of rank {rank}")))
}

/// The shape that operands have together by NumPy's rules.
fn broadcast_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let n = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(n).map_or(1, |j| s[j]);
    (0..n)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(KernelError::Shape(format!("{a:?} and {b:?} do not broadcast"))),
        })
        .collect()
}

/// Runs a body with `T` bound to an unsigned integer of the element's width.
macro_rules! by_width {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype.size() {
            1 => {
                type $t = u8;
                $body
            }
            2 => {
                type $t = u16;
                $body
            }
            4 => {
                type $t = u32;
                $body
            }
            _ => {
                type $t = u64;
                $body
            }
        }
    };
}
use by_width;

#[cfg(test)]
mod testing;
