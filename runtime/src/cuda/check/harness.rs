//! What cases share: tensors on the device, launches, and comparison with a reference.

use std::sync::Arc;

use super::super::{Device, DeviceBuffer, Launch, Stream};
use super::CheckError;
use crate::dtype::{DType, element_f64};
use crate::tensor::{Tensor, byte_len};

/// The byte that every result holds before a kernel runs. As a float of any type it is a value that no case expects, and a boolean
/// is 0 or 1; [`compare`] refuses other bytes.
const POISON: u8 = 0xfb;

/// A device with a stream, for cases.
pub struct Harness<'a> {
    /// The device.
    pub device: &'a Arc<Device>,
    /// The stream of all launches.
    pub stream: Stream,
}

/// How far a result lies from the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Largest |got - wanted|.
    pub max_abs: f64,
    /// ||got - wanted|| / ||wanted||.
    pub relative: f64,
    /// Elements compared.
    pub elements: usize,
}

impl Difference {
    /// The worse of two.
    pub fn join(self, other: Difference) -> Difference {
        Difference {
            max_abs: self.max_abs.max(other.max_abs),
            relative: self.relative.max(other.relative),
            elements: self.elements + other.elements,
        }
    }
}

/// What a comparison accepts.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Every element is the same.
    Exact,
    /// Each element within `steps` roundings of its storage type, measured at the larger magnitude of wanted value and `floor`.
    Steps {
        /// Units in the last place of the element type.
        steps: f64,
        /// Smallest magnitude at which a unit is measured.
        floor: f64,
    },
    /// Codes of a small float: neighbours are accepted in at most this share of all elements, all others are the same. The
    /// reference rounds another sum than the kernel, so that a tie may fall to the other side.
    Codes {
        /// Share of elements.
        share: f64,
    },
}

impl Limit {
    /// What a kernel with f32 arithmetic and one rounding to `dtype` keeps.
    pub fn of(dtype: DType) -> Limit {
        match dtype {
            DType::F32 => Limit::Steps { steps: 16.0, floor: 0.1 },
            _ => Limit::Steps { steps: 1.01, floor: 0.1 },
        }
    }
}

/// The relative distance between neighbours of a float type.
pub(super) fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 0.5f64.powi(10),
        DType::BF16 => 0.5f64.powi(7),
        DType::F8E4M3FN => 0.125,
        _ => 0.0,
    }
}

impl Harness<'_> {
    /// A harness with a stream of its own.
    pub fn new(device: &Arc<Device>) -> Result<Harness<'_>, CheckError> {
        Ok(Harness { device, stream: device.stream()? })
    }

    /// Copies a tensor to the device.
    pub fn upload(&self, t: &Tensor) -> Result<DeviceBuffer, CheckError> {
        let buffer = self.device.alloc(t.bytes().len())?;
        self.device.upload(&self.stream, &buffer, t.bytes())?;
        Ok(buffer)
    }

    /// Memory for a result, filled with a byte that no case expects.
    pub fn result(&self, dtype: DType, shape: &[usize]) -> Result<DeviceBuffer, CheckError> {
        let n =
            byte_len(dtype, shape).ok_or_else(|| CheckError::Reference(format!("{dtype}{shape:?} is too large")))?;
        let buffer = self.device.alloc(n)?;
        self.poison(&self.stream, &buffer)?;
        Ok(buffer)
    }

    /// Fills a result with a byte that no case expects, before later work on the same stream.
    pub fn poison(&self, stream: &Stream, buffer: &DeviceBuffer) -> Result<(), CheckError> {
        Ok(self.device.fill(stream, buffer, POISON)?)
    }

    /// Copies a result to the host.
    pub fn download(&self, buffer: &DeviceBuffer, dtype: DType, shape: &[usize]) -> Result<Tensor, CheckError> {
        self.download_on(&self.stream, buffer, dtype, shape)
    }

    /// Copies a result of another stream to the host.
    pub fn download_on(
        &self,
        stream: &Stream,
        buffer: &DeviceBuffer,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Tensor, CheckError> {
        let mut t = Tensor::zeros(dtype, shape).map_err(|e| CheckError::Reference(e.to_string()))?;
        self.device.download(stream, buffer, t.bytes_mut())?;
        Ok(t)
    }

    /// Launches and waits.
    pub fn run(&self, launch: &Launch) -> Result<(), CheckError> {
        // SAFETY: cases pass views of buffers that outlive this call, and the work is waited for.
        unsafe { self.device.launch(&self.stream, launch) }?;
        Ok(self.stream.synchronize()?)
    }

    /// Launches on another stream and does not wait.
    pub fn enqueue(&self, stream: &Stream, launch: &Launch) -> Result<(), CheckError> {
        // SAFETY: cases wait for the stream before they drop the buffers; dropping a buffer waits for the device.
        Ok(unsafe { self.device.launch(stream, launch) }?)
    }

    /// Compares a result with what is wanted.
    pub fn compare(&self, name: &str, got: &Tensor, want: &[f64], limit: Limit) -> Result<Difference, CheckError> {
        compare(name, got, want, limit)
    }
}

fn compare(name: &str, got: &Tensor, want: &[f64], limit: Limit) -> Result<Difference, CheckError> {
    if got.len() != want.len() {
        return Err(CheckError::Reference(format!("{name}: {} values for {}", want.len(), got.len())));
    }
    let size = got.dtype.size();
    let (mut d, mut error, mut norm, mut neighbours) = (Difference::default(), 0.0f64, 0.0f64, 0usize);
    let wrong = |i: usize, g: f64, w: f64| {
        let place = format!("{name}: element {i} of {}{:?}", got.dtype, got.shape);
        Err(CheckError::Differs(format!("{place} is {g}, expected {w}")))
    };
    for (i, (bytes, &w)) in got.bytes().chunks_exact(size).zip(want).enumerate() {
        let g = match got.dtype {
            DType::Bool if bytes[0] > 1 => f64::from(bytes[0]),
            _ => element_f64(got.dtype, bytes),
        };
        d.elements += 1;
        if g == w || (g.is_nan() && w.is_nan()) {
            norm += if w.is_finite() { w * w } else { 0.0 };
            continue;
        }
        let off = (g - w).abs();
        let fine = match limit {
            Limit::Exact => false,
            Limit::Steps { steps, floor } => off <= steps * unit(got.dtype) * w.abs().max(floor),
            Limit::Codes { .. } => {
                neighbours += 1;
                // One code up or down; the distance doubles at a power of two.
                off <= 2.0 * unit(got.dtype) * w.abs().max(g.abs()).max(0.015_625)
            }
        };
        if !fine || !off.is_finite() {
            return wrong(i, g, w);
        }
        d.max_abs = d.max_abs.max(off);
        error += off * off;
        norm += w * w;
    }
    d.relative = if error == 0.0 { 0.0 } else { (error / norm).sqrt() };
    if let Limit::Codes { share } = limit
        && neighbours as f64 > share * want.len() as f64 + 1.0
    {
        let n = want.len();
        return Err(CheckError::Differs(format!("{name}: {neighbours} of {n} codes differ from the reference")));
    }
    Ok(d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_finds_what_exceeds_its_limit() {
        let t = Tensor::from_f32(&[3], &[1.0, -2.0, f32::NAN]).unwrap();
        let run = |want: &[f64], limit| compare("y", &t, want, limit);
        assert_eq!(run(&[1.0, -2.0, f64::NAN], Limit::Exact).unwrap().elements, 3);
        assert!(run(&[1.0, -2.0000001, f64::NAN], Limit::Exact).is_err());
        assert!(run(&[1.0, -2.0000001, f64::NAN], Limit::of(DType::F32)).is_ok());
        assert!(run(&[1.0, -2.1, f64::NAN], Limit::of(DType::F32)).unwrap_err().to_string().contains("element 1"));
        assert!(run(&[1.0, -2.0, 0.0], Limit::of(DType::F32)).is_err());
        assert!(run(&[1.0], Limit::Exact).is_err());
        let unwritten = Tensor::from_bytes(DType::Bool, &[2], &[1, POISON]).unwrap();
        assert!(compare("y", &unwritten, &[1.0, 1.0], Limit::Exact).is_err());
        let codes = Tensor::from_bytes(DType::F8E4M3FN, &[2], &[0x38, 0x39]).unwrap();
        assert!(compare("q", &codes, &[1.0, 1.0], Limit::Codes { share: 0.0 }).is_ok());
        assert!(compare("q", &codes, &[1.125, 1.0], Limit::Codes { share: 0.0 }).is_err());
        assert!(compare("q", &codes, &[1.0, 2.0], Limit::Codes { share: 1.0 }).is_err());
    }
}
