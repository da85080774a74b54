//! Presence of the CUDA libraries: every missing library or function is one error that names it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::{driver, nvrtc};

use super::{CudaError, Result};

/// The functions of the driver that this crate calls.
const DRIVER: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceCanAccessPeer",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxEnablePeerAccess",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventElapsedTime_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuLaunchKernel",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// The functions of NVRTC that this crate calls.
const NVRTC: &[&str] = &[
    "nvrtcVersion",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetSupportedArchs",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
    "nvrtcGetPTXSize",
    "nvrtcGetPTX",
    "nvrtcGetErrorString",
];

/// The variable that names NVRTC's library, or the folder that has it.
const NVRTC_PATH: &str = "SINTER_NVRTC";

fn lacks(library: &libloading::Library, symbols: &'static [&'static str]) -> Option<&'static str> {
    // SAFETY: the address is looked up and never called.
    symbols.iter().copied().find(|s| unsafe { library.get::<*const ()>(s.as_bytes()) }.is_err())
}

/// Whether the CUDA driver is on this machine.
pub fn driver_present() -> bool {
    // SAFETY: loads a library whose initialisers are NVIDIA's.
    unsafe { driver::sys::is_culib_present() }
}

/// Checks that the driver and all of its functions that are needed can be called.
pub fn require_driver() -> Result<()> {
    if !driver_present() {
        return Err(CudaError::Missing {
            library: "the CUDA driver (libcuda.so)",
            help: "install NVIDIA's driver, or run on CPU ranks".to_owned(),
        });
    }
    // SAFETY: the library is present.
    match lacks(unsafe { driver::sys::culib() }, DRIVER) {
        Some(symbol) => Err(CudaError::Symbol { library: "the CUDA driver (libcuda.so)", symbol }),
        None => Ok(()),
    }
}

/// Checks that NVRTC can be called. The library that `SINTER_NVRTC` names is preferred to the system's.
pub fn require_nvrtc() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    const NAME: &str = "NVRTC (libnvrtc.so)";
    let loaded = LOADED.get_or_init(|| match std::env::var_os(NVRTC_PATH) {
        Some(path) => preload(Path::new(&path)),
        None => Ok(()),
    });
    if let Err(help) = loaded {
        return Err(CudaError::Missing { library: NAME, help: help.clone() });
    }
    // SAFETY: loads a library whose initialisers are NVIDIA's.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        let help = format!(
            "install the CUDA toolkit, or the package nvidia-cuda-nvrtc with pip, and set {NVRTC_PATH} to the folder that has it"
        );
        return Err(CudaError::Missing { library: NAME, help });
    }
    // SAFETY: the library is present.
    match lacks(unsafe { nvrtc::sys::culib() }, NVRTC) {
        Some(symbol) => Err(CudaError::Symbol { library: NAME, symbol }),
        None => Ok(()),
    }
}

/// Loads NVRTC and what belongs to it from a folder or by file name; later searches by name then find it.
fn preload(path: &Path) -> std::result::Result<(), String> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{NVRTC_PATH} is {}: {e}", path.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|p| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("libnvrtc") && name.contains(".so") && !name.contains(".alt.")
    });
    // The built-in functions come first: the compiler asks for them by name.
    files.sort_by_key(|p| (!p.to_string_lossy().contains("builtins"), p.clone()));
    if !files.iter().any(|p| !p.to_string_lossy().contains("builtins")) {
        return Err(format!("{NVRTC_PATH} is {}, which has no libnvrtc.so", path.display()));
    }
    for file in files {
        open(&file).map_err(|e| format!("{NVRTC_PATH}: {}: {e}", file.display()))?;
    }
    Ok(())
}

/// Loads a library for the rest of the process.
fn open(file: &Path) -> std::result::Result<(), libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the user names this library as NVRTC; its initialisers run.
    let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) }?;
    std::mem::forget(library);
    Ok(())
}
