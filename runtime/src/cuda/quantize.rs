//! Launchers of `quantize.cu`: codes of eight and four bits, without a norm before them.

use super::launch::{Check, type_code, type_name};
use super::norm::{Family, Rows};
use super::{DeviceInfo, Kernel, Launch, LaunchError, View, ViewMut};
use crate::attr::Real;
use crate::dtype::DType;
use crate::norm::Quant;

/// Threads of a block of quantize_fp8.
const THREADS: u32 = 256;

/// `QuantizeArguments` of quantize.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Arguments {
    x: u64,
    scale: u64,
    q: u64,
    n: i64,
    scale_type: u32,
    quotient_type: u32,
}

/// quantize_fp8 with so many packs per thread; 0: any alignment.
fn kernel(dtype: DType, packs: usize) -> Kernel {
    let (name, body) = match packs {
        0 => ("any".to_owned(), format!("quantize_fp8_any<{}>", type_name(dtype))),
        _ => (format!("packs{packs}"), format!("quantize_fp8<{}, {packs}>", type_name(dtype))),
    };
    Kernel::new("quantize.cu", format!("quantize_fp8_{dtype}_{name}"), THREADS, "QuantizeArguments", &body)
}

const TOKEN: Quant = Quant::Fp8Token { floor: Real(0.0) };

/// Every kernel of this launcher.
pub(super) fn catalog() -> Vec<Kernel> {
    let mut out: Vec<Kernel> = [DType::F32, DType::F16, DType::BF16]
        .into_iter()
        .flat_map(|d| [0, 1, 4].map(|packs| kernel(d, packs)))
        .collect();
    out.extend(Family::quantiser("fp8_token", TOKEN).kernels());
    out.extend(Family::quantiser("quantize_nvfp4", Quant::Nvfp4).kernels());
    out
}

/// q = x / scale in f8e4m3fn, with one scale; the quotient is rounded to the type of the scale before.
pub fn quantize_fp8(x: &View<'_>, scale: &View<'_>, q: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    let c = Check("quantize_fp8");
    c.float("x", x)?;
    c.view("x", x)?;
    c.float("scale", scale)?;
    c.view("scale", scale)?;
    c.that(scale.len() == 1, || format!("scale {:?} is not one number", scale.shape))?;
    c.typed("q", q, DType::F8E4M3FN, x.shape)?;
    c.apart(("q", q), ("x", x))?;
    c.apart(("q", q), ("scale", scale))?;
    let n = if x.is_empty() { 0 } else { x.len() };
    let threads = THREADS as usize;
    let (packs, per_block) = if [x, q].iter().all(|v| v.address.is_multiple_of(16)) {
        let per_pack = 16 / x.dtype.size();
        // Few elements are spread over all multiprocessors.
        let packs = if n / per_pack > 8 * threads * info.multiprocessors as usize { 4 } else { 1 };
        (packs, threads * packs * per_pack)
    } else {
        (0, threads)
    };
    let Ok(grid) = i32::try_from(n.div_ceil(per_block)) else {
        return c.fail(format!("x {:?} has too many elements for one launch at this alignment", x.shape));
    };
    let a = Arguments {
        x: x.address,
        scale: scale.address,
        q: q.address,
        n: n as i64,
        scale_type: type_code(scale.dtype),
        quotient_type: type_code(scale.dtype),
    };
    Ok(Launch::new(kernel(x.dtype, packs), grid as u32, THREADS, 0, &a))
}

/// (q, scales) = (quantize_fp8(x, scales), fp8_scale(x)): f8e4m3fn with a scale for each row, f32 [.., 1].
pub fn fp8_token(
    x: &View<'_>,
    floor: f64,
    q: &ViewMut<'_>,
    scales: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    let mut rows = Rows::new(Check("fp8_token"), x)?;
    rows.quantise(Quant::Fp8Token { floor: Real(floor) }, None, &[Some(*q), Some(*scales)])?;
    rows.launch(&Family::quantiser("fp8_token", TOKEN), info)
}

/// Two f4e2m1 a byte, and swizzled block scales; scale is one f32.
pub fn quantize_nvfp4(
    x: &View<'_>,
    scale: &View<'_>,
    q: &ViewMut<'_>,
    scales: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    let mut rows = Rows::new(Check("quantize_nvfp4"), x)?;
    rows.quantise(Quant::Nvfp4, Some(scale), &[Some(*q), Some(*scales)])?;
    rows.launch(&Family::quantiser("quantize_nvfp4", Quant::Nvfp4), info)
}
