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
    Kernel::without_spills("quantize.cu", format!("quantize_fp8_{dtype}_{name}"), THREADS, "QuantizeArguments", &body)
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
    c.that(scale.shape.iter().all(|&d| d == 1), || format!("scale {:?} is not one number", scale.shape))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view(address: u64, dtype: DType, shape: &[usize]) -> View<'_> {
        View { address, dtype, shape, bytes: usize::MAX / 2 }
    }

    fn fp8(x: u64, shape: &[usize]) -> Result<String, String> {
        let (x, q) = (view(x, DType::BF16, shape), view(1 << 50, DType::F8E4M3FN, shape));
        let scale = view(1 << 52, DType::F32, &[1]);
        quantize_fp8(&x, &scale, &q, &DeviceInfo::h200()).map(|l| l.to_string()).map_err(|e| e.what)
    }

    #[test]
    fn grids_cover_all_elements() {
        assert_eq!(fp8(16, &[64, 8192]).unwrap(), "quantize_fp8_bf16_packs1 grid 256 block 256 shared 0");
        assert_eq!(fp8(16, &[4096, 8192]).unwrap(), "quantize_fp8_bf16_packs4 grid 4096 block 256 shared 0");
        assert_eq!(fp8(16, &[3]).unwrap(), "quantize_fp8_bf16_packs1 grid 1 block 256 shared 0");
        assert_eq!(fp8(18, &[64, 8]).unwrap(), "quantize_fp8_bf16_any grid 2 block 256 shared 0");
        assert_eq!(fp8(16, &[0, 8]).unwrap(), "quantize_fp8_bf16_packs1 grid 0 block 256 shared 0");
        assert!(fp8(18, &[1 << 39, 2]).unwrap_err().contains("too many elements"));
        assert!(fp8((1 << 50) - 16, &[64]).unwrap_err().contains("q and x share memory"));
        let catalog = catalog();
        assert_eq!(catalog.len(), 3 * 3 + 2 * 27);
        for shape in [&[64usize, 8192][..], &[4096, 8192]] {
            let name = fp8(16, shape).unwrap();
            assert!(catalog.iter().any(|k| name.starts_with(&k.name)), "{name}");
        }
    }

    #[test]
    fn rows_are_quantised_by_the_kernels_of_norms() {
        let (info, shape, scales) = (DeviceInfo::h200(), [300, 8192], [300, 1]);
        let x = view(1 << 40, DType::F16, &shape);
        let q = view(2 << 40, DType::F8E4M3FN, &shape);
        let launch = fp8_token(&x, 0.0, &q, &view(3 << 40, DType::F32, &scales), &info).unwrap();
        assert_eq!(launch.to_string(), "fp8_token_f16_block2 grid 300 block 512 shared 0");
        assert!(catalog().contains(&launch.kernel));
        let e = fp8_token(&x, 0.0, &q, &view(3 << 40, DType::F32, &shape), &info).unwrap_err();
        assert!(e.what.contains("expected f32[300, 1]"), "{e}");
        let none = [3, 0];
        let (x0, q0) = (view(1 << 40, DType::F16, &none), view(2 << 40, DType::F8E4M3FN, &none));
        let e = fp8_token(&x0, 0.0, &q0, &view(3 << 40, DType::F32, &[3, 1]), &info).unwrap_err();
        assert!(e.what.contains("rows without elements"), "{e}");

        let (q, sf) = (view(2 << 40, DType::U8, &[300, 4096]), view(3 << 40, DType::F8E4M3FN, &[384 * 512]));
        let scale = view(4 << 40, DType::F32, &[]);
        let launch = quantize_nvfp4(&x, &scale, &q, &sf, &info).unwrap();
        assert_eq!(launch.to_string(), "quantize_nvfp4_f16_block2 grid 384 block 512 shared 0");
        assert!(catalog().contains(&launch.kernel));
        let half = view(4 << 40, DType::F16, &[]);
        assert!(quantize_nvfp4(&x, &half, &q, &sf, &info).unwrap_err().what.contains("scale is not f32"));
        let odd = [300, 8200];
        let e = quantize_nvfp4(&view(1 << 40, DType::F16, &odd), &scale, &q, &sf, &info).unwrap_err();
        assert!(e.what.contains("blocks of 16"), "{e}");
    }
}
