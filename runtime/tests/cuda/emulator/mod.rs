//! Builds the emulated driver and NVRTC with the host's C++ compiler and puts them in the place of NVIDIA's, so that the whole
//! path from a launcher to a kernel runs without a GPU.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use sinter_runtime::cuda::{Device, ModuleCache};

struct Emulator {
    driver: Library,
    modules: PathBuf,
}

/// Makes a library from a source beside this file, unless that is done; its name is that which the loader is asked for.
fn build(source: &Path, folder: &Path, name: &str) -> Library {
    let text = std::fs::read(source).unwrap();
    let place = folder.join(blake3::hash(&text).to_hex().as_str());
    let library = place.join(name);
    if !library.exists() {
        std::fs::create_dir_all(&place).unwrap();
        let partial = place.join(format!("{name}.{}", std::process::id()));
        let out = Command::new("c++")
            .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Werror", "-pthread"])
            .arg(format!("-Wl,-soname,{name}"))
            .arg(source)
            .arg("-o")
            .arg(&partial)
            .output()
            .expect("a C++ compiler: install g++");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::rename(partial, &library).unwrap();
    }
    // SAFETY: a library of this repository without initialisers that matter.
    unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL) }.unwrap()
}

fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/emulator");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
        // The loader finds a library of the right name that is loaded already.
        let driver = build(&here.join("driver.cpp"), &folder, "libcuda.so");
        let nvrtc = build(&here.join("nvrtc.cpp"), &folder, "libnvrtc.so");
        // Modules depend on the header that stands for CUDA.
        let header = std::fs::read(here.join("emulated.hpp")).unwrap();
        let modules = folder.join("modules").join(&blake3::hash(&header).to_hex().as_str()[..16]);
        std::fs::create_dir_all(&modules).unwrap();
        let c = |p: &Path| CString::new(p.to_str().unwrap()).unwrap();
        let (include, out) = (c(&here), c(&modules));
        // SAFETY: the function has this type and copies both strings.
        unsafe {
            let configure = nvrtc.get::<unsafe extern "C" fn(*const i8, *const i8)>(b"emulated_configure").unwrap();
            configure(include.as_ptr(), out.as_ptr());
        }
        std::mem::forget(nvrtc);
        Emulator { driver, modules }
    })
}

/// The emulated device; compiled kernels are kept between runs of the tests.
pub(crate) fn device() -> &'static Arc<Device> {
    static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let cache = ModuleCache::at(&emulator().modules);
        Arc::new(Device::open_with(0, cache).unwrap())
    })
}

/// Runs with only `count` blocks, from `first` on, of each launch of this thread.
pub(crate) fn with_blocks<T>(first: u32, count: u32, run: impl FnOnce() -> T) -> T {
    // SAFETY: the function has this type.
    let limit = unsafe { emulator().driver.get::<unsafe extern "C" fn(u32, u32)>(b"emulated_limit_blocks") }.unwrap();
    // SAFETY: it sets two numbers of this thread.
    unsafe { limit(first, count) };
    let out = run();
    // SAFETY: as above.
    unsafe { limit(0, u32::MAX) };
    out
}

/// Makes launches run their threads in random order, with pauses; 0 ends that.
pub(crate) fn disorder(seed: u64) {
    // SAFETY: the function has this type and sets a number.
    unsafe { emulator().driver.get::<unsafe extern "C" fn(u64)>(b"emulated_disorder").unwrap()(seed) }
}
