//! Compilation of CUDA C++ by NVRTC, which needs no GPU.

use std::ffi::{CStr, CString, c_char};
use std::fmt;

use cudarc::nvrtc::{result, sys};

use super::source::FILES;
use super::{CudaError, Result, require_nvrtc};

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Machine code for one compute capability, such as 90.
    Machine(u32),
    /// PTX for a compute capability, which the driver translates for newer devices.
    Ptx(u32),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Machine(arch) => write!(f, "sm_{arch}"),
            Target::Ptx(arch) => write!(f, "compute_{arch}"),
        }
    }
}

/// What the driver loads: machine code or PTX, as NVRTC gave it.
pub type Image = Vec<u8>;

/// A compiled program.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What the driver loads.
    pub image: Image,
    /// Messages; with `report`, registers and memory of each kernel among them.
    pub log: String,
}

/// NVRTC, found and checked.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// Major and minor version.
    pub version: (i32, i32),
    /// The compute capabilities for which it makes machine code, ascending.
    pub supported: Vec<u32>,
}

impl Compiler {
    /// Loads NVRTC.
    pub fn new() -> Result<Compiler> {
        require_nvrtc()?;
        let failed = |call: &str, r: sys::nvrtcResult| {
            r.result().map_err(|e| CudaError::Driver { call: call.to_owned(), message: e.to_string() })
        };
        let (mut major, mut minor, mut n) = (0, 0, 0);
        // SAFETY: the functions are present, and write one integer each.
        unsafe {
            failed("nvrtcVersion", sys::nvrtcVersion(&mut major, &mut minor))?;
            failed("nvrtcGetNumSupportedArchs", sys::nvrtcGetNumSupportedArchs(&mut n))?;
        }
        let mut archs = vec![0; usize::try_from(n).unwrap_or(0)];
        // SAFETY: the vector has the number of elements that the library named.
        failed("nvrtcGetSupportedArchs", unsafe { sys::nvrtcGetSupportedArchs(archs.as_mut_ptr()) })?;
        let mut supported: Vec<u32> = archs.into_iter().filter_map(|a| u32::try_from(a).ok()).collect();
        supported.sort_unstable();
        Ok(Compiler { version: (major, minor), supported })
    }

    /// What to compile for a device: its machine code, or PTX where the device is newer than this NVRTC.
    pub fn target(&self, capability: u32) -> Result<Target> {
        if self.supported.contains(&capability) {
            return Ok(Target::Machine(capability));
        }
        self.supported.iter().rev().find(|&&a| a < capability).map(|&a| Target::Ptx(a)).ok_or_else(|| {
            let (major, minor) = self.version;
            CudaError::NoDevice(format!(
                "NVRTC {major}.{minor} makes no code for compute capability {capability}; it supports {:?}",
                self.supported
            ))
        })
    }

    /// The options of a compilation; they are part of what identifies a cached module.
    pub fn options(target: Target, report: bool) -> Vec<String> {
        let mut out = vec![format!("--gpu-architecture={target}"), "--std=c++17".to_owned()];
        if report {
            out.extend(["--ptxas-options=--verbose".to_owned(), "--ptxas-options=--warn-on-spills".to_owned()]);
        }
        out
    }

    /// Compiles a program that may include the files of `kernels/`. `name` is for messages.
    pub fn compile(&self, name: &str, source: &str, target: Target, report: bool) -> Result<Compiled> {
        let fail = |log: String| CudaError::Compile { kernel: name.to_owned(), target: target.to_string(), log };
        let c = |s: &str| CString::new(s).map_err(|_| fail("a source has a zero byte".to_owned()));
        let (source, file) = (c(source)?, c(&format!("{name}.cu"))?);
        let names = FILES.iter().map(|(n, _)| c(n)).collect::<Result<Vec<_>>>()?;
        let texts = FILES.iter().map(|(_, t)| c(t)).collect::<Result<Vec<_>>>()?;
        let pointers = |v: &[CString]| v.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>();
        let (names, texts) = (pointers(&names), pointers(&texts));
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings end with zero and live until the program is destroyed; both lists have the stated length.
        unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                source.as_ptr(),
                file.as_ptr(),
                FILES.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        }
        .result()
        .map_err(|e| fail(e.to_string()))?;
        let program = Program(program);
        // SAFETY: the program is alive.
        let compiled = unsafe { result::compile_program(program.0, &Compiler::options(target, report)) };
        let log = program.log();
        compiled.map_err(|e| fail(format!("{e}\n{log}")))?;
        let image = program.image(target).map_err(|e| fail(e.to_string()))?;
        Ok(Compiled { image, log })
    }
}

/// A program of NVRTC, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program is alive.
        let Ok(log) = (unsafe { result::get_program_log(self.0) }) else { return String::new() };
        if !log.contains(&0) {
            return String::new();
        }
        // SAFETY: the buffer holds a zero byte, checked above.
        unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().trim().to_owned()
    }

    fn image(&self, target: Target) -> std::result::Result<Image, result::NvrtcError> {
        let mut n = 0;
        // SAFETY: the program is alive; the buffer has the length that the library named.
        unsafe {
            match target {
                Target::Machine(_) => sys::nvrtcGetCUBINSize(self.0, &mut n).result()?,
                Target::Ptx(_) => sys::nvrtcGetPTXSize(self.0, &mut n).result()?,
            }
            let mut image = vec![0u8; n];
            match target {
                Target::Machine(_) => sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()).result()?,
                Target::Ptx(_) => sys::nvrtcGetPTX(self.0, image.as_mut_ptr().cast()).result()?,
            }
            Ok(image)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nothing uses the program after this. A failure leaks memory and nothing else.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
