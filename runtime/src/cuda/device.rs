//! A CUDA device: memory, streams, compiled kernels and launches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::source::{Kernel, module_source};
use super::{Compiler, CudaError, DeviceInfo, Launch, ModuleCache, Result, Target, View, require_driver};
use crate::dtype::DType;

fn failed(call: impl Into<String>) -> impl FnOnce(DriverError) -> CudaError {
    let call = call.into();
    move |e| CudaError::Driver { call, message: e.to_string() }
}

/// A device with its compiler and the kernels that were loaded.
pub struct Device {
    context: Arc<CudaContext>,
    info: DeviceInfo,
    compiler: Compiler,
    target: Target,
    cache: ModuleCache,
    functions: Mutex<BTreeMap<String, (Kernel, CudaFunction)>>,
    rank_streams: Mutex<Vec<Stream>>,
}

/// A sequence of work on a device.
#[derive(Clone)]
pub struct Stream(Arc<CudaStream>);

impl Stream {
    /// Waits until all work is done.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize().map_err(failed("cuStreamSynchronize"))
    }

    /// Makes later work on this stream wait for a point in another one.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.0.wait(&event.0).map_err(failed("cuStreamWaitEvent"))
    }

    /// The driver's handle.
    pub fn handle(&self) -> sys::CUstream {
        self.0.cu_stream()
    }
}

/// A point in a stream's work.
pub struct Event(cudarc::driver::CudaEvent);

impl Event {
    /// Microseconds from this point to a later one; waits until both are reached.
    pub fn microseconds_to(&self, later: &Event) -> Result<f64> {
        let ms = self.0.elapsed_ms(&later.0).map_err(failed("cuEventElapsedTime"))?;
        Ok(f64::from(ms) * 1e3)
    }
}

/// Memory on a device, freed when dropped.
pub struct DeviceBuffer {
    context: Arc<CudaContext>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl DeviceBuffer {
    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// A tensor at the start of the buffer.
    pub fn view<'a>(&'a self, dtype: DType, shape: &'a [usize]) -> View<'a> {
        View { address: self.address, dtype, shape, bytes: self.bytes }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // Freeing waits for the device, so that no kernel still uses the memory. A failure was reported by the work
        // that caused it.
        if self.context.bind_to_thread().is_ok() && self.address != 0 {
            // SAFETY: the address came from the allocation in `Device::alloc` and is freed once.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Device {
    /// Number of devices that the driver sees.
    pub fn count() -> Result<usize> {
        require_driver()?;
        let n = CudaContext::device_count().map_err(failed("cuDeviceGetCount"))?;
        Ok(usize::try_from(n).unwrap_or(0))
    }

    /// Opens a device by its number, with the user's cache of modules.
    pub fn open(ordinal: usize) -> Result<Device> {
        Device::open_with(ordinal, ModuleCache::of_user())
    }

    /// Opens a device by its number.
    pub fn open_with(ordinal: usize, cache: ModuleCache) -> Result<Device> {
        let n = Device::count()?;
        if ordinal >= n {
            return Err(CudaError::NoDevice(match n {
                0 => "the CUDA driver sees no device; run on CPU ranks".to_owned(),
                _ => format!("there is no CUDA device {ordinal}; the driver sees {n}, numbered from 0"),
            }));
        }
        let compiler = Compiler::new()?;
        let context = CudaContext::new(ordinal).map_err(failed(format!("opening CUDA device {ordinal}")))?;
        // SAFETY: events order work between streams of cudarc's own buffers, of which there are none here.
        unsafe { context.disable_event_tracking() };
        let info = describe(&context)?;
        let target = compiler.target(info.capability)?;
        Ok(Device {
            context,
            info,
            compiler,
            target,
            cache,
            functions: Mutex::default(),
            rank_streams: Mutex::default(),
        })
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// What launchers must know.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// NVRTC's version.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// Lets kernels on this device address the memory of another one.
    pub fn reach(&self, other: &Device) -> Result<()> {
        if self.context.ordinal() == other.context.ordinal() {
            return Ok(());
        }
        let (from, to) = (self.context.ordinal(), other.context.ordinal());
        let mut can = 0;
        let devices = (self.context.cu_device(), other.context.cu_device());
        // SAFETY: both devices are open; the function writes one integer.
        let asked = unsafe { sys::cuDeviceCanAccessPeer(&mut can, devices.0, devices.1) };
        asked.result().map_err(failed("cuDeviceCanAccessPeer"))?;
        if can == 0 {
            return Err(CudaError::NoDevice(format!("device {from} cannot address the memory of device {to}")));
        }
        self.bind()?;
        // SAFETY: both contexts are alive.
        match unsafe { sys::cuCtxEnablePeerAccess(other.context.cu_ctx(), 0) } {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            r => r.result().map_err(failed(format!("cuCtxEnablePeerAccess from device {from} to {to}"))),
        }
    }

    /// The newest CUDA version that the driver supports, major and minor.
    pub fn driver_version(&self) -> Result<(i32, i32)> {
        let mut v = 0;
        // SAFETY: the function is present, and writes one integer.
        let asked = unsafe { sys::cuDriverGetVersion(&mut v) };
        asked.result().map_err(failed("cuDriverGetVersion"))?;
        Ok((v / 1000, v % 1000 / 10))
    }

    /// A new stream that does not wait for others.
    pub fn stream(&self) -> Result<Stream> {
        self.context.new_stream().map(Stream).map_err(failed("cuStreamCreate"))
    }

    /// The stream of one of the ranks that share the device, made once. The driver deals streams out to its queues, of which there are
    /// CUDA_DEVICE_MAX_CONNECTIONS. Where two ranks come to share a queue, the second launch of one, which waits for its first, keeps back the launch
    /// of the other that the first one waits for.
    pub fn rank_stream(&self, rank: usize) -> Result<Stream> {
        let mut streams = self.rank_streams.lock().unwrap_or_else(PoisonError::into_inner);
        while streams.len() <= rank {
            streams.push(self.stream()?);
        }
        Ok(streams[rank].clone())
    }

    /// Memory of undefined contents. No bytes take one.
    pub fn alloc(&self, bytes: usize) -> Result<DeviceBuffer> {
        self.bind()?;
        // SAFETY: the memory is not read before it is written by a copy or a kernel.
        let address = unsafe { result::malloc_sync(bytes.max(1)) };
        let address = address.map_err(failed(format!("allocating {bytes} bytes")))?;
        Ok(DeviceBuffer { context: self.context.clone(), address, bytes })
    }

    /// Sets every byte of a buffer.
    pub fn fill(&self, stream: &Stream, buffer: &DeviceBuffer, byte: u8) -> Result<()> {
        self.bind()?;
        // SAFETY: the range is the buffer's.
        unsafe { result::memset_d8_async(buffer.address, byte, buffer.bytes, stream.handle()) }
            .map_err(failed("cuMemsetD8Async"))
    }

    /// Copies bytes to the start of a buffer and waits.
    pub fn upload(&self, stream: &Stream, buffer: &DeviceBuffer, bytes: &[u8]) -> Result<()> {
        self.upload_at(stream, buffer, 0, bytes)
    }

    /// Copies bytes to a position in a buffer and waits.
    pub fn upload_at(&self, stream: &Stream, buffer: &DeviceBuffer, start: usize, bytes: &[u8]) -> Result<()> {
        if start.checked_add(bytes.len()).is_none_or(|end| end > buffer.bytes) {
            let message = format!("{} bytes at {start} do not fit into {}", bytes.len(), buffer.bytes);
            return Err(CudaError::Driver { call: "copying to the device".to_owned(), message });
        }
        self.bind()?;
        // SAFETY: the source outlives the copy, for the stream is waited for; the range was checked.
        unsafe { result::memcpy_htod_async(buffer.address + start as u64, bytes, stream.handle()) }
            .map_err(failed("copying to the device"))?;
        stream.synchronize()
    }

    /// Copies the first bytes of a buffer to the host.
    pub fn download(&self, stream: &Stream, buffer: &DeviceBuffer, out: &mut [u8]) -> Result<()> {
        self.download_at(stream, buffer, 0, out)
    }

    /// Copies bytes from a position in a buffer to the host.
    pub fn download_at(&self, stream: &Stream, buffer: &DeviceBuffer, start: usize, out: &mut [u8]) -> Result<()> {
        if start.checked_add(out.len()).is_none_or(|end| end > buffer.bytes) {
            let message = format!("{} bytes at {start} asked for, the buffer has {}", out.len(), buffer.bytes);
            return Err(CudaError::Driver { call: "copying from the device".to_owned(), message });
        }
        self.bind()?;
        // SAFETY: the destination outlives the copy, for the stream is waited for; the range was checked.
        unsafe { result::memcpy_dtoh_async(out, buffer.address + start as u64, stream.handle()) }
            .map_err(failed("copying from the device"))?;
        stream.synchronize()
    }

    /// Copies one buffer to another of at least its length.
    pub fn copy(&self, stream: &Stream, from: &DeviceBuffer, to: &DeviceBuffer) -> Result<()> {
        if from.bytes > to.bytes {
            let message = format!("{} bytes do not fit into {}", from.bytes, to.bytes);
            return Err(CudaError::Driver { call: "copying on the device".to_owned(), message });
        }
        self.bind()?;
        // SAFETY: both ranges were checked; the buffers are two allocations.
        unsafe { result::memcpy_dtod_async(to.address, from.address, from.bytes, stream.handle()) }
            .map_err(failed("copying on the device"))
    }

    /// The point that a stream has reached in its work.
    pub fn record(&self, stream: &Stream) -> Result<Event> {
        stream.0.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map(Event).map_err(failed("cuEventRecord"))
    }

    /// Compiles and loads a kernel, unless that has been done.
    pub fn load(&self, kernel: &Kernel) -> Result<()> {
        self.function(kernel).map(|_| ())
    }

    /// How many blocks of a kernel one multiprocessor holds at a time.
    pub fn resident_blocks(&self, kernel: &Kernel, block: u32, shared: u32) -> Result<u32> {
        let f = self.function(kernel)?;
        f.occupancy_max_active_blocks_per_multiprocessor(block, shared as usize, None)
            .map_err(failed("cuOccupancyMaxActiveBlocksPerMultiprocessor"))
    }

    /// Registers of a thread of a kernel.
    pub fn registers(&self, kernel: &Kernel) -> Result<u32> {
        let n = self.function(kernel)?.num_regs().map_err(failed("cuFuncGetAttribute"))?;
        Ok(u32::try_from(n).unwrap_or(0))
    }

    /// Enqueues a launch.
    ///
    /// # Safety
    ///
    /// The addresses of the launch must be of live memory on this device, of at least the sizes that the launcher was
    /// told, until the stream has done the work.
    pub unsafe fn launch(&self, stream: &Stream, launch: &Launch) -> Result<()> {
        if launch.grid == 0 {
            return Ok(());
        }
        let f = self.function(&launch.kernel)?;
        self.bind()?;
        if launch.shared > 48 * 1024 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            f.set_attribute(attribute, launch.shared as i32).map_err(failed("cuFuncSetAttribute"))?;
        }
        let mut arguments = [launch.arguments.as_ptr() as *mut std::ffi::c_void];
        // SAFETY: the caller vouches for the addresses; the kernel has one parameter, of the launcher's structure.
        unsafe {
            result::launch_kernel(
                f.cu_function(),
                (launch.grid, 1, 1),
                (launch.block, 1, 1),
                launch.shared,
                stream.handle(),
                &mut arguments,
            )
        }
        .map_err(failed(format!("launching {launch}")))
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))
    }

    fn function(&self, kernel: &Kernel) -> Result<CudaFunction> {
        let functions = || self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, f)) = functions().get(&kernel.name).filter(|(known, _)| known == kernel) {
            return Ok(f.clone());
        }
        // Threads compile side by side. Two that want the same kernel both load it, and the later one is kept.
        let f = self
            .module(&kernel.name, &module_source(&[kernel]))?
            .load_function(&kernel.name)
            .map_err(failed(format!("cuModuleGetFunction of `{}`", kernel.name)))?;
        functions().insert(kernel.name.clone(), (kernel.clone(), f.clone()));
        Ok(f)
    }

    fn module(&self, name: &str, source: &str) -> Result<Arc<CudaModule>> {
        let key = ModuleCache::key(source, self.target, &self.compiler);
        let load = |image| self.context.load_module(Ptx::from_binary(image));
        // A cached module that the driver refuses is compiled again.
        if let Some(module) = self.cache.load(&key).and_then(|image| load(image).ok()) {
            return Ok(module);
        }
        let compiled = self.compiler.compile(name, source, self.target, false)?;
        let module = load(compiled.image.clone()).map_err(failed(format!("cuModuleLoadData of `{name}`")))?;
        self.cache.store(&key, &compiled.image);
        Ok(module)
    }
}

fn describe(context: &CudaContext) -> Result<DeviceInfo> {
    use sys::CUdevice_attribute_enum as A;
    let get = |a: A, what: &str| {
        let n = context.attribute(a).map_err(failed(format!("cuDeviceGetAttribute: {what}")))?;
        Ok::<u32, CudaError>(u32::try_from(n).unwrap_or(0))
    };
    Ok(DeviceInfo {
        name: context.name().map_err(failed("cuDeviceGetName"))?,
        capability: 10 * get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, "compute capability")?
            + get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, "compute capability")?,
        multiprocessors: get(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, "multiprocessors")?,
        threads_per_multiprocessor: get(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, "threads")?,
        shared_bytes: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, "shared memory")?,
    })
}
