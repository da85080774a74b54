//! Conversions between float types, which every kernel relies on: all codes, ties, limits and random values.

use super::super::launch::{Launch, type_name};
use super::super::source::Kernel;
use super::{Case, CheckError, Difference, Harness, Limit, Size};
use crate::dtype::DType;
use crate::minifloat;
use crate::tensor::Tensor;

/// (x, y, n).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Arguments {
    x: u64,
    y: u64,
    n: u64,
}

const THREADS: u32 = 128;

/// A kernel that stores `expression` of each `v`.
fn kernel(name: &str, result: &str, expression: &str) -> Kernel {
    let entry = format!(
        "struct ConvertArguments {{ const float* x; {result}* y; u64 n; }};\n\
         extern \"C\" __global__ void __launch_bounds__({THREADS}) {name}(const __grid_constant__ ConvertArguments a) {{\n\
           u64 i = u64(blockIdx.x) * {THREADS} + threadIdx.x;\n\
           if (i >= a.n) return;\n\
           float v = a.x[i];\n\
           a.y[i] = {expression};\n\
         }}\n"
    );
    Kernel { file: "common.cuh", name: name.to_owned(), entry }
}

/// Values around every code of a small float, of many magnitudes, and the special ones.
fn values() -> Vec<f32> {
    let mut out = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 464.0, -464.0, 448.0, 465.0, 1e30];
    for dtype in [DType::F8E4M3FN, DType::F4E2M1] {
        let mut codes: Vec<f32> = (0..=255u8).map(|c| minifloat::decode(dtype, c) as f32).collect();
        codes.retain(|v| v.is_finite());
        codes.sort_by(f32::total_cmp);
        for w in codes.windows(2) {
            let middle = (w[0] + w[1]) / 2.0;
            out.extend([w[0], middle, f32::from_bits(middle.to_bits() ^ 1), f32::from_bits(middle.to_bits() + 1)]);
        }
    }
    let mut state = 12345u64;
    for _ in 0..4096 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        out.push(f32::from_bits((state >> 32) as u32));
    }
    out
}

fn check(h: &Harness<'_>, kernel: Kernel, to: DType, want: &[f64]) -> Result<Difference, CheckError> {
    let x = values();
    let n = x.len();
    let input = Tensor::from_f32(&[n], &x).map_err(|e| CheckError::Reference(e.to_string()))?;
    let (x, y) = (h.upload(&input)?, h.result(to, &[n])?);
    let a = Arguments { x: x.address(), y: y.address(), n: n as u64 };
    h.run(&Launch::new(kernel, n.div_ceil(THREADS as usize) as u32, THREADS, 0, &a))?;
    h.compare("y", &h.download(&y, to, &[n])?, want, Limit::Exact)
}

pub(super) fn cases() -> Vec<Case> {
    let mut out = vec![];
    for to in [DType::F16, DType::BF16] {
        out.push(Case::new("convert", format!("f32 to {to}"), Size::Small, move |h| {
            let k = kernel(&format!("convert_{to}"), type_name(to), &format!("from_f32<{}>(v)", type_name(to)));
            let want: Vec<f64> = values()
                .iter()
                .map(|&v| match to {
                    DType::F16 => half::f16::from_f32(v).to_f64(),
                    _ => half::bf16::from_f32(v).to_f64(),
                })
                .collect();
            check(h, k, to, &want)
        }));
        out.push(Case::new("convert", format!("f32 to {to} and back"), Size::Small, move |h| {
            let k = kernel(&format!("through_{to}"), "float", &format!("through<{}>(v)", type_name(to)));
            let want: Vec<f64> = values()
                .iter()
                .map(|&v| match to {
                    DType::F16 => half::f16::from_f32(v).to_f64(),
                    _ => half::bf16::from_f32(v).to_f64(),
                })
                .collect();
            check(h, k, DType::F32, &want)
        }));
    }
    for (to, function) in
        [(DType::F8E4M3FN, "to_e4m3"), (DType::F4E2M1, "u8(to_e2m1"), (DType::F32, "from_e4m3(to_e4m3")]
    {
        out.push(Case::new("convert", format!("f32 by {function}"), Size::Small, move |h| {
            let close = if function.contains('(') { "))" } else { ")" };
            let result = if to == DType::F32 { "float" } else { "u8" };
            let k = kernel(&format!("convert_{to}"), result, &format!("{function}(v{close}"));
            let code = if to == DType::F4E2M1 { to } else { DType::F8E4M3FN };
            let want: Vec<f64> = values()
                .iter()
                .map(|&v| minifloat::decode(code, minifloat::encode(code, f64::from(v), true)))
                .collect();
            check(h, k, to, &want)
        }));
    }
    out
}
