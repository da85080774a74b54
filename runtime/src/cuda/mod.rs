//! CUDA kernels of the runtime: sources, compilation by NVRTC, launchers with their checks, and the device.
//!
//! Nothing here needs CUDA to build. The driver and NVRTC are loaded when they are first used; a machine without them gets
//! one error that says what is missing. A launcher is a pure function from operands to a [`Launch`]: it checks element
//! types, shapes, alignment and sizes, and picks kernel, grid and block. [`Device`] compiles the kernel, keeps it in
//! a cache, and launches it.

pub mod all_reduce;
pub mod all_reduce_norm;
mod cache;
mod chain;
pub mod check;
pub mod copy;
mod device;
pub mod elementwise;
pub mod exchange;
pub mod gather;
mod index;
mod launch;
mod library;
pub mod norm;
mod nvrtc;
pub mod quantize;
pub mod report;
pub mod rotary;
pub mod softmax;
mod source;

pub use cache::ModuleCache;
pub use chain::{Chain, Operand, PlannedChain};
pub use device::{Device, DeviceBuffer, Event, Stream};
pub use launch::{DeviceInfo, Launch, LaunchError, View, ViewMut};
pub use library::{driver_present, require_driver, require_nvrtc};
pub use nvrtc::{Compiled, Compiler, Image, Target};
pub use source::{FILES, Kernel, module_source};

/// Why something about CUDA failed.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// A library is not on this machine.
    #[error("{library} was not found: {help}")]
    Missing {
        /// The library, with its file name.
        library: &'static str,
        /// What to do.
        help: String,
    },
    /// A library lacks a function; it is too old.
    #[error("{library} has no function `{symbol}`; one of CUDA 12.8 or newer is needed")]
    Symbol {
        /// The library.
        library: &'static str,
        /// The function.
        symbol: &'static str,
    },
    /// The driver sees no device, or not the one asked for.
    #[error("{0}")]
    NoDevice(String),
    /// A call of the driver failed.
    #[error("{call}: {message}")]
    Driver {
        /// What was called.
        call: String,
        /// The driver's name and description of the error.
        message: String,
    },
    /// NVRTC refused a kernel.
    #[error("NVRTC cannot compile `{kernel}` for {target}: {log}")]
    Compile {
        /// The kernel.
        kernel: String,
        /// The architecture.
        target: String,
        /// The compiler's messages.
        log: String,
    },
    /// A rank waited for another one in vain.
    #[error(
        "rank {rank} waited {waited_ms} ms for rank {peer} in call {call} of the exchange; the other rank has died or does something else"
    )]
    Exchange {
        /// The rank that gave up.
        rank: usize,
        /// The rank that did not send.
        peer: usize,
        /// The number of the call, from 0.
        call: u32,
        /// How long it waited, in milliseconds.
        waited_ms: u64,
    },
    /// A launch was refused before the driver was called.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Every kernel that a launcher may ask for, by name. `make kernels` compiles them all.
pub fn catalog() -> Vec<Kernel> {
    let families = [
        elementwise::catalog(),
        copy::catalog(),
        gather::catalog(),
        rotary::catalog(),
        softmax::catalog(),
        norm::catalog(),
        quantize::catalog(),
        all_reduce::catalog(),
        all_reduce_norm::catalog(),
    ];
    families.into_iter().flatten().collect()
}

type Result<T> = std::result::Result<T, CudaError>;
