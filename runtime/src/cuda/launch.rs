//! What the driver is asked to launch, and the checks that come before.

use std::fmt;

use super::Kernel;
use crate::dtype::DType;
use crate::tensor::byte_len;

/// Why a launch is refused before the driver is called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kernel}: {what}")]
pub struct LaunchError {
    /// The operator.
    pub kernel: &'static str,
    /// Which operand or attribute is wrong, and what would be right.
    pub what: String,
}

/// An operand in device memory.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Address of the first element.
    pub address: u64,
    /// Element type.
    pub dtype: DType,
    /// Extents; elements lie in row-major order.
    pub shape: &'a [usize],
    /// Bytes from the address to the end of the allocation.
    pub bytes: usize,
}

/// A result in device memory; it has the form of an operand.
pub type ViewMut<'a> = View<'a>;

impl View<'_> {
    /// Number of elements; the checks of a launcher have excluded overflow.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Length of the last axis, and number of rows.
    pub fn rows(&self) -> Option<(usize, usize)> {
        let (&n, outer) = self.shape.split_last()?;
        Some((n, outer.iter().product()))
    }
}

/// What launchers must know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device's name.
    pub name: String,
    /// Compute capability, such as 90.
    pub capability: u32,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Threads that one multiprocessor holds.
    pub threads_per_multiprocessor: u32,
    /// Bytes of shared memory that one block may ask for.
    pub shared_bytes: u32,
}

impl DeviceInfo {
    /// An H200, as NVIDIA's data sheet describes it; launchers are tested with it where there is no device.
    pub fn h200() -> DeviceInfo {
        DeviceInfo {
            name: "NVIDIA H200".to_owned(),
            capability: 90,
            multiprocessors: 132,
            threads_per_multiprocessor: 2048,
            shared_bytes: 227 * 1024,
        }
    }
}

/// One launch: everything that the driver needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What runs.
    pub kernel: Kernel,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The structure of arguments, as the kernel's file declares it.
    pub arguments: Vec<u64>,
}

impl Launch {
    /// A launch whose arguments are the structure `a`, which has the layout of the kernel's.
    pub fn new<A: bytemuck::NoUninit>(kernel: Kernel, grid: u32, block: u32, shared: u32, a: &A) -> Launch {
        let bytes = bytemuck::bytes_of(a);
        let mut arguments = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut arguments)[..bytes.len()].copy_from_slice(bytes);
        Launch { kernel, grid, block, shared, arguments }
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} grid {} block {} shared {}", self.kernel.name, self.grid, self.block, self.shared)
    }
}

/// The checks of one launcher; each failure names the operator.
#[derive(Clone, Copy)]
pub(super) struct Check(pub(super) &'static str);

impl Check {
    pub(super) fn fail<T>(self, what: impl Into<String>) -> Result<T, LaunchError> {
        Err(LaunchError { kernel: self.0, what: what.into() })
    }

    pub(super) fn that(self, holds: bool, what: impl FnOnce() -> String) -> Result<(), LaunchError> {
        if holds { Ok(()) } else { self.fail(what()) }
    }

    /// Checks that an operand lies in its allocation, and starts at a multiple of its element size.
    pub(super) fn view(self, name: &str, v: &View<'_>) -> Result<(), LaunchError> {
        let Some(needed) = byte_len(v.dtype, v.shape) else {
            return self.fail(format!("{name} {}{:?} is too large", v.dtype, v.shape));
        };
        self.that(needed <= v.bytes, || {
            format!("{name} {}{:?} needs {needed} bytes, its memory has {}", v.dtype, v.shape, v.bytes)
        })?;
        self.that(needed == 0 || v.address != 0, || format!("{name} has no address"))?;
        self.that(v.address.is_multiple_of(v.dtype.size() as u64), || {
            format!("{name} at {:#x} is not aligned to its elements of {} bytes", v.address, v.dtype.size())
        })?;
        let end = v.address.checked_add(needed as u64);
        self.that(end.is_some(), || format!("{name} reaches beyond the address space"))
    }

    /// As [`Check::view`], with the element type and the shape that it must have.
    pub(super) fn typed(self, name: &str, v: &View<'_>, dtype: DType, shape: &[usize]) -> Result<(), LaunchError> {
        self.that(v.dtype == dtype && v.shape == shape, || {
            format!("{name} is {}{:?}, expected {dtype}{shape:?}", v.dtype, v.shape)
        })?;
        self.view(name, v)
    }

    /// An element type that kernels compute with.
    pub(super) fn float(self, name: &str, v: &View<'_>) -> Result<(), LaunchError> {
        self.that(matches!(v.dtype, DType::F32 | DType::F16 | DType::BF16), || {
            format!("{name} has elements of type {}; f32, f16 and bf16 are supported", v.dtype)
        })
    }

    /// Checks that two operands do not share memory.
    pub(super) fn apart(self, a: (&str, &View<'_>), b: (&str, &View<'_>)) -> Result<(), LaunchError> {
        let end = |v: &View<'_>| v.address.saturating_add(byte_len(v.dtype, v.shape).unwrap_or(usize::MAX) as u64);
        let overlap = a.1.address < end(b.1) && b.1.address < end(a.1) && !a.1.is_empty() && !b.1.is_empty();
        self.that(!overlap, || format!("{} and {} share memory", a.0, b.0))
    }
}

/// The name of an element type in kernel sources and kernel names.
pub(super) fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        other => other.name(),
    }
}

/// The number of an element type in arguments; `common.cuh` has the same numbers.
pub(super) fn type_code(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::BF16 => 2,
        _ => 0,
    }
}

/// An operand with exactly its bytes, for tests of launchers.
#[cfg(test)]
pub(super) fn view_at(address: u64, dtype: DType, shape: &[usize]) -> View<'_> {
    View { address, dtype, shape, bytes: byte_len(dtype, shape).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_checked_before_anything_else() {
        let c = Check("rms_norm");
        let v = |address, shape: &'static [usize], bytes| View { address, dtype: DType::F32, shape, bytes };
        assert_eq!(c.view("x", &v(16, &[2, 3], 24)), Ok(()));
        let error = |v: &View<'_>| c.view("x", v).unwrap_err().to_string();
        assert_eq!(error(&v(16, &[2, 3], 23)), "rms_norm: x f32[2, 3] needs 24 bytes, its memory has 23");
        assert!(error(&v(18, &[2], 8)).contains("not aligned"));
        assert!(error(&v(0, &[2], 8)).contains("no address"));
        assert!(error(&v(4, &[usize::MAX, 2], 8)).contains("too large"));
        assert!(error(&v(u64::MAX - 3, &[2], 8)).contains("address space"));
        assert!(c.typed("x", &v(16, &[2], 8), DType::F32, &[3]).unwrap_err().what.contains("expected f32[3]"));
        assert!(c.apart(("x", &v(16, &[2], 8)), ("y", &v(20, &[2], 8))).is_err());
        assert!(c.apart(("x", &v(16, &[2], 8)), ("y", &v(24, &[2], 8))).is_ok());
    }
}
