//! A GPU through NVIDIA's driver, whose library is looked up at run time.
//!
//! Without that library, without a GPU, or with a driver that cannot use our kernels, the caller gets a
//! one-sentence reason, never a panic: `cudarc` panics if the library or one of its functions is missing, so both
//! are looked up first.
//!
//! Calls may come from any thread: each makes the device's primary context current on its thread, which costs next to
//! nothing. A kernel fault (code 700, an illegal address, and the like) kills that context: every later call, for
//! whatever key or proof, fails with the same code until the process ends. The device's slot is then useless, and
//! nothing here tries to revive it.
//!
//! Witnesses are secret. All uploads, however small, pass through our own pinned memory, which is set to zero once the
//! device has read it, at the latest at the next download or synchronisation of the stream. Overwriting data on the
//! device is up to the caller. Downloads go through buffers of NVIDIA's driver, out of our reach: they are for results.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Instant;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use rayon::prelude::*;
use zeroize::Zeroize;

use super::super::super::BackendError;
use super::graph::{Captures, GraphStats, Node, Work};
use super::{Address, Argument, Driver, Event, Graph, GraphCounts, Launch, Properties, Stream};
use crate::model::locked;

/// Output of build.rs for `kernels/`: `FATBIN`, which has machine code for the architectures `ARCHS`
/// and PTX of the oldest.
mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Number of cores per GPU below which a thread that waits for a GPU sleeps.
const MIN_CORES_PER_GPU: usize = 4;

/// Shared memory that a block gets without opting in, in bytes.
const SHARED_UNASKED: u32 = 48 << 10;

/// Flags of events that need no timing.
const UNTIMED: c_uint = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint;

/// Most arguments of a kernel launch.
const MAX_ARGUMENTS: usize = 32;

/// Pinned memory of a stream that uploads, in bytes.
const STAGING_BYTES: usize = 16 << 20;

/// Bytes copied to pinned memory at once. While one piece crosses the bus, the CPU copies the next: small enough for
/// the transfer to begin soon, large enough for the calls (some microseconds) not to matter.
const MAX_PIECE: usize = 2 << 20;

/// Size in bytes from which on a copy uses several cores, because one core copies slower than the bus.
const MIN_PARALLEL: usize = 512 << 10;

/// Alignment of pieces, in bytes.
const ALIGNMENT: usize = 256;

/// Most pieces in flight at once: with small pieces, the ring would hold too many to search.
const MAX_PIECES: usize = 1024;

/// Every function of the driver's library that is called here, except for the one of `elapsed`. An old
/// driver may lack some.
const FUNCTIONS: [&str; 42] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxSetFlags_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuGraphCreate",
    "cuGraphAddKernelNode_v2",
    "cuGraphAddMemsetNode",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// Names of the function that `elapsed` calls: drivers before 12.8 have only the older one, and from CUDA 13 on
/// `cudarc` knows only the newer one.
const ELAPSED: [&str; 2] = ["cuEventElapsedTime_v2", "cuEventElapsedTime"];

type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> CUresult;

/// Properties of a device and its driver that are only for reports and performance floors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Newest CUDA version that the driver supports, major and minor.
    pub cuda: (u32, u32),
    /// Highest clock rate of the multiprocessors, in kHz.
    pub clock_khz: u32,
    /// Highest clock rate of the memory, in kHz.
    pub memory_clock_khz: u32,
    /// Width of the memory bus, in bits.
    pub bus_bits: u32,
    /// Level-2 cache, in bytes.
    pub l2_bytes: u32,
    /// Whether threads that wait for the device sleep.
    pub sleeps: bool,
}

/// One NVIDIA GPU, with our kernels loaded.
pub struct NvidiaDriver {
    properties: Properties,
    card: Card,
    device: sys::CUdevice,
    context: sys::CUcontext,
    module: sys::CUmodule,
    elapsed: Elapsed,
    kernels: RwLock<HashMap<&'static str, Kernel>>,
    /// Pinned memory of each stream that uploads, and pinned memory that no stream uses any more.
    staging: Mutex<HashMap<Stream, Arc<Mutex<Staging>>>>,
    spare: Mutex<Vec<Staging>>,
    captures: Captures,
    graph_stats: GraphStats,
    released: Released,
    /// Events that order streams, for reuse.
    events: Mutex<Vec<Event>>,
    suballocates: bool,
}

/// Memory that was released but is not yet returned to the driver.
#[derive(Default)]
struct Released {
    waiting: Mutex<Vec<u64>>,
    freeing: Mutex<()>,
}

impl Released {
    fn push(&self, address: u64) {
        locked(&self.waiting).push(address);
    }

    /// Frees the released memory. Concurrent callers wait for this, because memory that another thread has taken from
    /// the list but not freed yet would look to them as if it were in use.
    fn free(&self, free: impl FnOnce(Vec<u64>)) {
        let _freeing = locked(&self.freeing);
        let waiting = std::mem::take(&mut *locked(&self.waiting));
        if !waiting.is_empty() {
            free(waiting);
        }
    }
}

#[derive(Clone, Copy)]
struct Kernel {
    function: sys::CUfunction,
    /// Dynamic shared memory that it may have, in bytes.
    shared: u32,
}

// SAFETY: the pointers are handles of the driver, which accepts them on any thread where their context is current, and
// every call here first makes it current. Mutable state is behind locks.
unsafe impl Send for NvidiaDriver {}
// SAFETY: as above; the driver's functions may be called by several threads at once.
unsafe impl Sync for NvidiaDriver {}

/// A GPU that the driver lists, to be opened.
pub struct ListedGpu {
    ordinal: u32,
    /// Newest CUDA version that the driver supports.
    cuda: (u32, u32),
    fatbin: &'static [u8],
    elapsed: Elapsed,
    /// Whether threads that wait for the device should sleep.
    sleeps: bool,
}

impl ListedGpu {
    /// Opens the GPU, or returns a one-sentence reason why it cannot be used. Takes minutes if the driver has to
    /// compile the kernels.
    pub fn open(self) -> Result<NvidiaDriver, String> {
        let Self { ordinal, cuda, fatbin, elapsed, sleeps } = self;
        let (device, properties, mut card) = query(ordinal, cuda)?;
        let name = properties.name.clone();
        if sleeps {
            let flags = sys::CUctx_flags_enum::CU_CTX_SCHED_BLOCKING_SYNC as u32;
            // If the driver refuses, threads spin, as they do by default.
            // SAFETY: `device` is a handle from the driver.
            card.sleeps = unsafe { sys::cuDevicePrimaryCtxSetFlags_v2(device, flags) } == CUresult::CUDA_SUCCESS;
        }
        let mut context = ptr::null_mut();
        // SAFETY: `device` is a handle from the driver, and `context` is a place for the result.
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        explained(retained).map_err(|why| format!("{name} could not be opened: {why}"))?;
        // SAFETY: the context was retained above.
        let loaded = explained(unsafe { sys::cuCtxSetCurrent(context) })
            .map_err(|why| format!("{name} could not be opened: {why}"))
            .and_then(|()| load(fatbin, &properties, cuda));
        let module = loaded.inspect_err(|_| {
            // SAFETY: retained above, and released once.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(device) };
        })?;
        let (kernels, staging, spare, captures, graph_stats, released, events) = Default::default();
        let opened = NvidiaDriver {
            properties,
            card,
            device,
            context,
            module,
            elapsed,
            kernels,
            staging,
            spare,
            captures,
            graph_stats,
            released,
            events,
            suballocates: true,
        };
        // A driver that loads code lazily compiles the kernels now: here, where that may take minutes, and not within
        // the time limit of a self-test.
        match opened.kernel("no_op", 0) {
            Ok(_) => Ok(opened),
            Err(why) => Err(format!("{name} did not load this build's device code: {why}")),
        }
    }
}

impl NvidiaDriver {
    /// Returns every GPU that the driver lists, in its order, or a one-sentence reason if there is no driver, no
    /// GPU or no device code.
    pub fn list() -> Result<Vec<ListedGpu>, String> {
        Self::list_for(thread::available_parallelism().map_or(1, |n| n.get()))
    }

    /// Like [`NvidiaDriver::list`], for a process that has `cores` cores.
    pub fn list_for(cores: usize) -> Result<Vec<ListedGpu>, String> {
        let elapsed = library()?;
        let count = init()?;
        let sleeps = sleeps(cores, count);
        let cuda = driver_version()?;
        let Some(fatbin) = kernels::FATBIN else {
            return Err("this build has no device code (it was built with CUDA_ARCHS=none)".into());
        };
        Ok((0..count).map(|ordinal| ListedGpu { ordinal, cuda, fatbin, elapsed, sleeps }).collect())
    }

    /// Like [`NvidiaDriver::list`], but opens the GPUs, one after another.
    pub fn all() -> Result<Vec<Result<Self, String>>, String> {
        Ok(Self::list()?.into_iter().map(ListedGpu::open).collect())
    }

    /// Returns the properties that are only for reports and performance floors.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Makes each buffer an allocation of its own, so that compute-sanitizer detects writes between buffers.
    pub fn without_suballocation(mut self) -> Self {
        self.suballocates = false;
        self
    }

    /// Uploads bytes to the device, downloads them, and returns the result.
    pub fn echo(&self, from: &[u8]) -> Result<Vec<u8>, BackendError> {
        let stream = self.create_stream()?;
        let echoed = self.allocate(from.len() as u64).and_then(|at| {
            let mut back = vec![0; from.len()];
            // SAFETY: there is space for `from.len()` bytes at `at`.
            let sent = unsafe { self.upload(stream, at, from) };
            // SAFETY: `from.len()` bytes were allocated at `at`, and `back` is as long.
            let fetched = sent.and_then(|()| unsafe { self.download(stream, &mut back, at) });
            // SAFETY: allocated above, and not used any more.
            unsafe { self.release(at) };
            fetched.map(|()| back)
        });
        self.destroy_stream(stream);
        echoed
    }

    /// Returns the milliseconds that an upload of `bytes` bytes takes, from ordinary memory until the device has them,
    /// one figure per round.
    pub fn time_uploads(&self, bytes: u64, rounds: usize) -> Result<Vec<f64>, BackendError> {
        let from = vec![0x5a_u8; bytes as usize];
        self.time_at(bytes, rounds, |stream, to| {
            // SAFETY: there is space for `bytes` bytes at `to`.
            unsafe { self.upload(stream, to, &from) }
        })
    }

    /// Returns the milliseconds that the device takes to set `bytes` bytes to zero, one figure per round.
    pub fn time_zero(&self, bytes: u64, rounds: usize) -> Result<Vec<f64>, BackendError> {
        self.time_at(bytes, rounds, |stream, at| {
            // SAFETY: there are `bytes` bytes at `at`.
            unsafe { self.zero(stream, at, bytes) }
        })
    }

    /// Returns the milliseconds of one launch of the kernel `no_op`, which has no arguments: the figure of each round
    /// is the mean of `launches` launches in a row, with one wait at the end.
    pub fn time_launches(&self, launches: u32, rounds: usize) -> Result<Vec<f64>, BackendError> {
        let no_op = Launch { kernel: "no_op", grid: (1, 1), block: 32, shared: 0, arguments: &[] };
        let stream = self.create_stream()?;
        let round = |_| {
            let start = Instant::now();
            for _ in 0..launches {
                // SAFETY: the kernel takes no arguments and touches no memory.
                unsafe { self.launch(stream, no_op)? };
            }
            self.synchronize(stream)?;
            Ok(start.elapsed().as_secs_f64() * 1e3 / f64::from(launches.max(1)))
        };
        let times = (0..rounds).map(round).collect();
        self.destroy_stream(stream);
        times
    }

    /// Returns the milliseconds between events before and after work on a stream and on `bytes` bytes of the
    /// device, one per round.
    fn time_at(
        &self,
        bytes: u64,
        rounds: usize,
        work: impl Fn(Stream, Address) -> Result<(), BackendError>,
    ) -> Result<Vec<f64>, BackendError> {
        let stream = self.create_stream()?;
        let times = self.allocate(bytes).and_then(|at| {
            let round = |_| {
                let start = self.record(stream)?;
                let worked = work(stream, at);
                let end = self.record(stream).inspect_err(|_| self.destroy_event(start))?;
                let waited = worked.and_then(|()| self.synchronize(stream));
                let time = waited.and_then(|()| self.elapsed(start, end));
                self.destroy_event(start);
                self.destroy_event(end);
                time.map(f64::from)
            };
            let times = (0..rounds).map(round).collect();
            // SAFETY: allocated above, and not used any more.
            unsafe { self.release(at) };
            times
        });
        self.destroy_stream(stream);
        times
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<(), BackendError> {
        // SAFETY: the context is retained as long as `self` exists.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// Returns the kernel, allowed to use `shared` bytes of shared memory.
    fn kernel(&self, name: &'static str, shared: u32) -> Result<sys::CUfunction, BackendError> {
        let known = self.kernels.read().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        if let Some(kernel) = known.filter(|kernel| shared <= kernel.shared) {
            return Ok(kernel.function);
        }
        let mut kernels = self.kernels.write().unwrap_or_else(PoisonError::into_inner);
        let mut kernel = match kernels.get(name) {
            Some(kernel) => *kernel,
            None => {
                let text = CString::new(name).map_err(|_| not_found(name))?;
                let mut function = ptr::null_mut();
                // SAFETY: the module is loaded as long as `self` exists, and the name is NUL-terminated.
                check(name, unsafe { sys::cuModuleGetFunction(&mut function, self.module, text.as_ptr()) })?;
                Kernel { function, shared: SHARED_UNASKED }
            }
        };
        if shared > kernel.shared {
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to the loaded module.
            check(name, unsafe { sys::cuFuncSetAttribute(kernel.function, most, shared as c_int) })?;
            kernel.shared = shared;
        }
        kernels.insert(name, kernel);
        Ok(kernel.function)
    }

    /// Returns the pinned memory of a stream.
    fn staging(&self, stream: Stream) -> Result<Arc<Mutex<Staging>>, BackendError> {
        let mut all = locked(&self.staging);
        if let Some(staging) = all.get(&stream) {
            return Ok(staging.clone());
        }
        let spare = locked(&self.spare).pop();
        let staging = Arc::new(Mutex::new(spare.map_or_else(|| Staging::new(self.card.sleeps), Ok)?));
        all.insert(stream, staging.clone());
        Ok(staging)
    }

    /// Returns released memory to the driver. The context must be current.
    fn free_released(&self) {
        self.released.free(|released| {
            // If this fails, the context is dead, and its memory goes with the process.
            // SAFETY: the call takes no arguments.
            let _ = unsafe { sys::cuCtxSynchronize() };
            for address in released {
                // SAFETY: the address came from `allocate`, nothing refers to it any more, and no work on the
                // device uses it now.
                let _ = unsafe { sys::cuMemFree_v2(address) };
            }
        });
    }

    /// Runs `work`, which allocates memory; if memory runs out, frees what was released and runs `work` once more. The
    /// context must be current.
    fn with_memory<T>(&self, mut work: impl FnMut() -> Result<T, BackendError>) -> Result<T, BackendError> {
        match work() {
            Err(BackendError::OutOfMemory { .. }) => {
                self.free_released();
                work()
            }
            done => done,
        }
    }

    /// Makes an executable graph of these nodes. The context must be current.
    fn instantiate(&self, nodes: &[Node]) -> Result<Graph, BackendError> {
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` is a place for the result.
        check("cuGraphCreate", unsafe { sys::cuGraphCreate(&mut graph, 0) })?;
        let made = self.add_nodes(graph, nodes).and_then(|()| {
            let mut runnable = ptr::null_mut();
            // SAFETY: the graph was made above, and `runnable` is a place for the result.
            let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut runnable, graph, 0) };
            check("cuGraphInstantiate", code).map(|()| Graph(runnable as u64))
        });
        // SAFETY: made above, and destroyed once; the executable graph does not depend on it.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        made
    }

    /// Records an event of `order` in one stream, and makes another stream wait for it.
    fn order_by(&self, event: Event, before: Stream, after: Stream) -> Result<(), BackendError> {
        // SAFETY: both handles are of this context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.raw(), before.raw()) })?;
        self.wait(after, event)
    }

    /// Adds nodes to a graph of the driver.
    fn add_nodes(&self, graph: sys::CUgraph, nodes: &[Node]) -> Result<(), BackendError> {
        let mut made: Vec<sys::CUgraphNode> = Vec::with_capacity(nodes.len());
        for Node { work, after } in nodes {
            let unmade =
                BackendError::Shape { what: "nodes before one of a graph", expected: made.len() as u64, got: 0 };
            let after: Option<Vec<_>> = after.iter().map(|node| made.get(*node).copied()).collect();
            let after = after.ok_or(unmade)?;
            let mut node = ptr::null_mut();
            let (op, code) = match work {
                Work::Launch { kernel, grid: (x, y), block, shared, arguments } => {
                    let mut words = words(arguments)?;
                    let mut places = pointers(&mut words);
                    let params = sys::CUDA_KERNEL_NODE_PARAMS {
                        func: self.kernel(kernel, *shared)?,
                        gridDimX: *x,
                        gridDimY: *y,
                        gridDimZ: 1,
                        blockDimX: *block,
                        blockDimY: 1,
                        blockDimZ: 1,
                        sharedMemBytes: *shared,
                        kernelParams: places.as_mut_ptr(),
                        extra: ptr::null_mut(),
                        kern: ptr::null_mut(),
                        ctx: ptr::null_mut(),
                    };
                    // SAFETY: `after` has `after.len()` nodes of this graph; the arguments are those that `launch` was
                    // called with, whose caller vouched for them, and are copied before the call returns.
                    let code =
                        unsafe { sys::cuGraphAddKernelNode_v2(&mut node, graph, after.as_ptr(), after.len(), &params) };
                    (*kernel, code)
                }
                Work::Zero { at, bytes } => {
                    // By words if possible.
                    let size = if at.0 % 4 == 0 && bytes % 4 == 0 { 4 } else { 1 };
                    let width = *bytes as usize / size;
                    let params = sys::CUDA_MEMSET_NODE_PARAMS {
                        dst: at.0,
                        pitch: *bytes as usize,
                        value: 0,
                        elementSize: size as u32,
                        width,
                        height: 1,
                    };
                    // SAFETY: as above; the caller of `zero` vouched for the range.
                    let code = unsafe {
                        let (after, count) = (after.as_ptr(), after.len());
                        sys::cuGraphAddMemsetNode(&mut node, graph, after, count, &params, self.context)
                    };
                    ("cuGraphAddMemsetNode", code)
                }
            };
            check(op, code)?;
            made.push(node);
        }
        Ok(())
    }

    /// Sets to zero what the device has read of the stream's uploads. If that is everything, their pinned memory
    /// becomes available to other streams, so that there is no more of it than there are uploads at a time.
    fn tidy(&self, stream: Stream) -> Result<(), BackendError> {
        let Some(staging) = locked(&self.staging).remove(&stream) else { return Ok(()) };
        let tidied = locked(&staging).tidy();
        let mut all = locked(&self.staging);
        // Meanwhile, another thread may have put something into the stream, through this memory or through memory of
        // its own; in the latter case that memory stays the stream's, and the pieces here are waited for when this
        // memory is used again.
        if !all.contains_key(&stream) && !locked(&staging).pieces.is_empty() {
            all.insert(stream, staging);
            return tidied;
        }
        drop(all);
        // If another thread still holds this memory, it is done with it soon, and drops it.
        locked(&self.spare)
            .extend(Arc::into_inner(staging).map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner)));
        tidied
    }
}

impl Driver for NvidiaDriver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<u64, BackendError> {
        self.enter()?;
        self.free_released();
        free()
    }

    fn allocate(&self, bytes: u64) -> Result<Address, BackendError> {
        self.enter()?;
        self.free_released();
        self.with_memory(|| {
            let mut at = 0;
            // The driver refuses zero bytes. Its addresses are multiples of 256.
            // SAFETY: `at` is a place for the result.
            let code = unsafe { sys::cuMemAlloc_v2(&mut at, bytes.max(1) as usize) };
            if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return Err(BackendError::OutOfMemory { needed: bytes, free: free()? });
            }
            check("cuMemAlloc", code)?;
            Ok(Address(at))
        })
    }

    fn suballocates(&self) -> bool {
        self.suballocates
    }

    /// The memory goes back to the driver before the next allocation: freeing it waits for all work on the device,
    /// which is done once for everything that was released meanwhile.
    unsafe fn release(&self, address: Address) {
        self.released.push(address.0);
    }

    fn create_stream(&self) -> Result<Stream, BackendError> {
        self.enter()?;
        let mut stream = ptr::null_mut();
        // Not ordered with the default stream, which is unused.
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `stream` is a place for the result.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        Ok(Stream(stream as u64))
    }

    fn destroy_stream(&self, stream: Stream) {
        // There is nothing to wait for in a dead context, and what the stream staged is set to zero all the same.
        let _ = self.synchronize(stream);
        let staging = locked(&self.staging).remove(&stream).and_then(Arc::into_inner);
        locked(&self.spare).extend(staging.map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner)));
        // SAFETY: it came from `create_stream`, and is destroyed once.
        let _ = unsafe { sys::cuStreamDestroy_v2(stream.raw()) };
    }

    /// If an upload is larger than the pinned memory (16 MiB), this waits until the stream has reached the first part
    /// of it: large uploads belong on a stream of their own.
    // All uploads go through pinned memory, however small: for other memory, CUDA says that a copy "might be
    // synchronous", which does not promise that `from` may be changed on return.
    unsafe fn upload(&self, stream: Stream, to: Address, from: &[u8]) -> Result<(), BackendError> {
        if from.is_empty() {
            return Ok(());
        }
        self.captures.refuse(stream, "upload")?;
        self.enter()?;
        let staging = self.staging(stream)?;
        let mut staging = locked(&staging);
        let mut at = to.0;
        for piece in from.chunks(MAX_PIECE) {
            // SAFETY: the caller guarantees the space at `to`, of which each piece gets its part.
            unsafe { staging.send(stream, at, piece)? };
            at += piece.len() as u64;
        }
        Ok(())
    }

    unsafe fn download(&self, stream: Stream, to: &mut [u8], from: Address) -> Result<(), BackendError> {
        self.captures.refuse(stream, "download")?;
        self.enter()?;
        // At this point, the device is usually still busy computing, and has read its inputs long ago.
        if self.card.sleeps {
            // The copy would wait, too, because `to` is not pinned, but whether the thread sleeps is not documented.
            self.synchronize(stream)?;
        } else {
            self.tidy(stream)?;
        }
        if !to.is_empty() {
            // SAFETY: the caller guarantees the bytes at `from`; `to` outlives the copy, because the stream is waited
            // for before the return. If that fails, the context is dead and copies no more.
            let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from.0, to.len(), stream.raw()) };
            check("cuMemcpyDtoHAsync", code)?;
        }
        self.synchronize(stream)
    }

    unsafe fn zero(&self, stream: Stream, at: Address, bytes: u64) -> Result<(), BackendError> {
        if bytes == 0 || self.captures.add(stream, || Work::Zero { at, bytes }) {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller guarantees the bytes at `at`.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at.0, 0, bytes as usize, stream.raw()) })
    }

    unsafe fn launch(&self, stream: Stream, launch: Launch<'_>) -> Result<(), BackendError> {
        let mut words = words(launch.arguments)?;
        if self.captures.add(stream, || Work::of(&launch)) {
            return Ok(());
        }
        self.enter()?;
        let function = self.kernel(launch.kernel, launch.shared)?;
        let mut places = pointers(&mut words);
        let (x, y) = launch.grid;
        // SAFETY: the caller guarantees the arguments, which the driver copies before it returns.
        let code = unsafe {
            let (shared, stream, none) = (launch.shared, stream.raw(), ptr::null_mut());
            sys::cuLaunchKernel(function, x, y, 1, launch.block, 1, 1, shared, stream, places.as_mut_ptr(), none)
        };
        check(launch.kernel, code)
    }

    fn synchronize(&self, stream: Stream) -> Result<(), BackendError> {
        self.captures.refuse(stream, "synchronize")?;
        let waited = self.enter().and_then(|()| {
            // SAFETY: it came from `create_stream` and was not destroyed.
            check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.raw()) })
        });
        // Even if the stream failed: its secrets must not stay.
        let tidied = self.tidy(stream);
        waited.and(tidied)
    }

    fn record(&self, stream: Stream) -> Result<Event, BackendError> {
        if let Some(event) = self.captures.record(stream) {
            return Ok(event);
        }
        self.enter()?;
        let event = create_event(sys::CUevent_flags_enum::CU_EVENT_DEFAULT as c_uint)?;
        // SAFETY: both handles are of this context.
        let recorded = check("cuEventRecord", unsafe { sys::cuEventRecord(event, stream.raw()) });
        recorded.inspect_err(|_| self.destroy_event(Event(event as u64)))?;
        Ok(Event(event as u64))
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), BackendError> {
        if self.captures.wait(stream, event)? {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: both handles are of this context, and neither was destroyed.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream.raw(), event.raw(), 0) })
    }

    /// Uses an event without timing, one of a few that are reused: a wait refers to what the event stood for when the
    /// wait was put into the stream.
    fn order(&self, before: Stream, after: Stream) -> Result<(), BackendError> {
        if before == after {
            return Ok(());
        }
        if let Some(captured) = self.captures.record(before) {
            let waits = self.wait(after, captured);
            self.captures.destroy(captured);
            return waits;
        }
        self.enter()?;
        let untimed = || create_event(UNTIMED).map(|event| Event(event as u64));
        let event = locked(&self.events).pop().map_or_else(untimed, Ok)?;
        let ordered = self.order_by(event, before, after);
        locked(&self.events).push(event);
        ordered
    }

    fn elapsed(&self, from: Event, to: Event) -> Result<f32, BackendError> {
        self.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: both were recorded and not destroyed; the function is the driver's own, with this signature.
        check("cuEventElapsedTime", unsafe { (self.elapsed)(&mut milliseconds, from.raw(), to.raw()) })?;
        Ok(milliseconds)
    }

    fn destroy_event(&self, event: Event) {
        if !self.captures.destroy(event) && self.enter().is_ok() {
            // SAFETY: it came from `record`, and is destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(event.raw()) };
        }
    }

    /// Kernels that have never run may have to be loaded, which the driver does while the graph is made.
    fn graph(&self, stream: Stream, work: &mut dyn FnMut() -> Result<(), BackendError>) -> Result<Graph, BackendError> {
        let nodes = self.captures.capture(stream, work);
        self.graph_stats.made(nodes.and_then(|nodes| {
            self.enter()?;
            self.with_memory(|| self.instantiate(&nodes))
        }))
    }

    unsafe fn run(&self, stream: Stream, graph: Graph) -> Result<(), BackendError> {
        self.captures.refuse(stream, "run")?;
        self.enter()?;
        self.graph_stats.launched(self.with_memory(|| {
            // SAFETY: it came from `graph` and was not destroyed; the caller guarantees that its memory still exists.
            check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0 as sys::CUgraphExec, stream.raw()) })
        }))
    }

    fn destroy_graph(&self, graph: Graph) {
        if self.enter().is_ok() {
            // SAFETY: it came from `graph`, and is destroyed once.
            let _ = unsafe { sys::cuGraphExecDestroy(graph.0 as sys::CUgraphExec) };
        }
    }

    fn graph_counts(&self) -> GraphCounts {
        self.graph_stats.counts()
    }
}

impl Drop for NvidiaDriver {
    fn drop(&mut self) {
        // Whatever cannot be freed here is left to the end of the process.
        let _ = self.enter();
        // SAFETY: no call is in progress, because nothing else refers to `self`.
        let _ = unsafe { sys::cuCtxSynchronize() };
        self.free_released();
        std::mem::take(&mut *locked(&self.events)).into_iter().for_each(|event| self.destroy_event(event));
        let mut spare = std::mem::take(&mut *locked(&self.spare));
        let used = std::mem::take(&mut *locked(&self.staging)).into_values().filter_map(Arc::into_inner);
        spare.extend(used.map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner)));
        drop(spare);
        // SAFETY: all work has ended, and neither the module nor the context is used again.
        let _ = unsafe { (sys::cuModuleUnload(self.module), sys::cuDevicePrimaryCtxRelease_v2(self.device)) };
    }
}

/// Pinned memory through which one stream's uploads go: a ring of pieces, each of which is reused once the
/// device has read it.
///
/// Used and dropped only where its context is current.
struct Staging {
    memory: NonNull<u8>,
    /// Pieces that the device may still read, in the order of the stream and of the ring.
    pieces: VecDeque<Piece>,
    /// Events for reuse, and the flags with which they are created.
    events: Vec<sys::CUevent>,
    flags: c_uint,
    /// Offset of the next piece.
    next: usize,
}

/// Whether to wait for a piece.
enum Wait {
    Not,
    /// Until the device has read it. The bytes in this range are overwritten next, and need not be set to zero.
    Until(Range<usize>),
}

struct Piece {
    at: usize,
    bytes: usize,
    /// Event after the copy.
    read: sys::CUevent,
}

// SAFETY: the memory belongs to this value only, and the events are handles that any thread may use.
unsafe impl Send for Staging {}

impl Staging {
    /// `sleeps` says whether threads that wait for its pieces sleep: for events, that is a property of each event,
    /// whatever the context's setting is.
    fn new(sleeps: bool) -> Result<Self, BackendError> {
        let sleeping = if sleeps { sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as c_uint } else { 0 };
        let flags = UNTIMED | sleeping;
        let mut memory = ptr::null_mut();
        // SAFETY: `memory` is a place for the result.
        let code = unsafe { sys::cuMemHostAlloc(&mut memory, STAGING_BYTES, 0) };
        // This is host memory, hence not `OutOfMemory`, whatever the code.
        let failed = BackendError::Device { op: "cuMemHostAlloc", code: code as i64 };
        let memory = NonNull::new(memory.cast()).filter(|_| code == CUresult::CUDA_SUCCESS).ok_or(failed)?;
        // SAFETY: `STAGING_BYTES` bytes were just allocated. They are set to zero so that slices of them are initialised.
        unsafe { memory.write_bytes(0, STAGING_BYTES) };
        Ok(Self { memory, pieces: VecDeque::new(), events: Vec::new(), flags, next: 0 })
    }

    /// Copies at most `MAX_PIECE` bytes to pinned memory, and puts their upload into the stream.
    ///
    /// # Safety
    /// There is space for `from.len()` bytes at `to` on the device.
    unsafe fn send(&mut self, stream: Stream, to: u64, from: &[u8]) -> Result<(), BackendError> {
        let read = self.events.pop().map_or_else(|| create_event(self.flags), Ok)?;
        let at = self.reserve(from.len()).inspect_err(|_| self.events.push(read))?;
        copy(self.slice(at, from.len()), from);
        let pinned = self.memory.as_ptr().wrapping_add(at);
        // SAFETY: the caller guarantees the space at `to`; the piece stays unchanged until `read` has happened.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, pinned.cast(), from.len(), stream.raw()) };
        let sent = check("cuMemcpyHtoDAsync", code).and_then(|()| {
            // SAFETY: both handles are of this context.
            check("cuEventRecord", unsafe { sys::cuEventRecord(read, stream.raw()) })
        });
        if let Err(error) = sent {
            // The copy may be in flight without an event after it.
            // SAFETY: the stream is of this context.
            let _ = unsafe { sys::cuStreamSynchronize(stream.raw()) };
            self.wipe(at, from.len());
            self.events.push(read);
            return Err(error);
        }
        self.pieces.push_back(Piece { at, bytes: from.len(), read });
        self.next = (at + from.len()).next_multiple_of(ALIGNMENT);
        Ok(())
    }

    /// Returns the offset of free space in the ring, once the device has read what was there.
    fn reserve(&mut self, bytes: usize) -> Result<usize, BackendError> {
        let at = if self.next + bytes > STAGING_BYTES { 0 } else { self.next };
        let end = at + bytes;
        while self.pieces.len() >= MAX_PIECES || self.pieces.iter().any(|p| p.at < end && at < p.at + p.bytes) {
            self.retire(Wait::Until(at..end))?;
        }
        Ok(at)
    }

    /// Sets to zero what the device has read.
    fn tidy(&mut self) -> Result<(), BackendError> {
        while !self.pieces.is_empty() {
            if !self.retire(Wait::Not)? {
                break;
            }
        }
        Ok(())
    }

    /// Takes back the oldest piece if the device has read it, or waits for that. Returns whether it took one back.
    fn retire(&mut self, wait: Wait) -> Result<bool, BackendError> {
        let Some(piece) = self.pieces.pop_front() else { return Ok(false) };
        // SAFETY: the event was recorded and not destroyed.
        let code = unsafe {
            match wait {
                Wait::Not => sys::cuEventQuery(piece.read),
                Wait::Until(_) => sys::cuEventSynchronize(piece.read),
            }
        };
        if code == CUresult::CUDA_ERROR_NOT_READY {
            self.pieces.push_front(piece);
            return Ok(false);
        }
        let read = check("cuEventSynchronize", code);
        let overwritten = match wait {
            Wait::Until(soon) => soon.start <= piece.at && piece.at + piece.bytes <= soon.end,
            Wait::Not => false,
        };
        self.events.push(piece.read);
        if read.is_err() {
            // The context is dead and copies no more, so all of the memory is ours again. Earlier pieces that were to
            // be overwritten are in no list any more, but still in the memory.
            self.events.extend(self.pieces.drain(..).map(|piece| piece.read));
            self.wipe(0, STAGING_BYTES);
        } else if !overwritten {
            self.wipe(piece.at, piece.bytes);
        }
        read.map(|()| true)
    }

    fn slice(&mut self, at: usize, bytes: usize) -> &mut [u8] {
        assert!(at <= STAGING_BYTES && bytes <= STAGING_BYTES - at, "a piece is within its ring");
        // SAFETY: the range is within the allocation, initialised, and borrowed from `self`; the device does not read
        // it, because it belongs to no piece in flight.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr().add(at), bytes) }
    }

    fn wipe(&mut self, at: usize, bytes: usize) {
        let slice = self.slice(at, bytes);
        // In words, because byte by byte it would take several times as long.
        // SAFETY: any bytes are a valid `u64`.
        let (head, words, tail) = unsafe { slice.align_to_mut::<u64>() };
        head.zeroize();
        words.zeroize();
        tail.zeroize();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        while self.retire(Wait::Until(0..0)).is_ok_and(|any| any) {}
        // SAFETY: nothing is in flight any more, and neither the memory nor the events are used again.
        unsafe {
            for event in self.events.drain(..) {
                let _ = sys::cuEventDestroy_v2(event);
            }
            let _ = sys::cuMemFreeHost(self.memory.as_ptr().cast());
        }
    }
}

/// Copies as fast as memory allows.
fn copy(to: &mut [u8], from: &[u8]) {
    if from.len() < MIN_PARALLEL {
        to.copy_from_slice(from);
    } else {
        const SHARE: usize = MIN_PARALLEL / 2;
        to.par_chunks_mut(SHARE).zip(from.par_chunks(SHARE)).for_each(|(to, from)| to.copy_from_slice(from));
    }
}

/// Returns a kernel's arguments, one word each: little-endian, so that a uint32_t is at the start of its word.
fn words(arguments: &[Argument]) -> Result<[u64; MAX_ARGUMENTS], BackendError> {
    let (needed, available) = (arguments.len() as u64, MAX_ARGUMENTS as u64);
    if needed > available {
        return Err(BackendError::TooSmall { what: "places for arguments of a kernel", needed, available });
    }
    let mut words = [0; MAX_ARGUMENTS];
    for (word, argument) in words.iter_mut().zip(arguments) {
        *word = match *argument {
            Argument::Pointer(address) => address.0,
            Argument::U32(value) => value.into(),
        };
    }
    Ok(words)
}

/// Returns pointers to the arguments, as the driver expects them.
fn pointers(words: &mut [u64; MAX_ARGUMENTS]) -> [*mut c_void; MAX_ARGUMENTS] {
    let mut pointers = [ptr::null_mut(); MAX_ARGUMENTS];
    for (pointer, word) in pointers.iter_mut().zip(words) {
        *pointer = ptr::from_mut(word).cast();
    }
    pointers
}

impl Stream {
    fn raw(self) -> sys::CUstream {
        self.0 as sys::CUstream
    }
}

impl Event {
    fn raw(self) -> sys::CUevent {
        self.0 as sys::CUevent
    }
}

fn create_event(flags: c_uint) -> Result<sys::CUevent, BackendError> {
    let mut event = ptr::null_mut();
    // SAFETY: `event` is a place for the result.
    check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
    Ok(event)
}

/// Returns the free memory of the current context's device, in bytes.
fn free() -> Result<u64, BackendError> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: `free` and `total` are places for the results.
    let code = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
    if code != CUresult::CUDA_SUCCESS {
        return Err(BackendError::Device { op: "cuMemGetInfo", code: code as i64 });
    }
    Ok(free as u64)
}

fn check(op: &'static str, code: CUresult) -> Result<(), BackendError> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            // The driver does not say how much it needed: more than there is.
            let free = free()?;
            Err(BackendError::OutOfMemory { needed: free.saturating_add(1), free })
        }
        code => Err(BackendError::Device { op, code: code as i64 }),
    }
}

fn not_found(kernel: &'static str) -> BackendError {
    BackendError::Device { op: kernel, code: CUresult::CUDA_ERROR_NOT_FOUND as i64 }
}

/// Turns an error code into readable text.
fn explained(code: CUresult) -> Result<(), String> {
    if code == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name: *const c_char = ptr::null();
    // SAFETY: `name` is a place for the result, which is a constant of the library or left null.
    let name = unsafe {
        let _ = sys::cuGetErrorName(code, &mut name);
        if name.is_null() { "unnamed error".into() } else { CStr::from_ptr(name).to_string_lossy() }
    };
    Err(format!("{name} ({})", code as u32))
}

/// Returns whether threads that wait for a GPU should sleep. By default the driver lets them spin, one for each proof
/// in progress, which keeps a core from the witnesses of the next proofs. Waking up takes tens of microseconds per
/// wait, so sleeping is not meant for machines with cores to spare. Not measured on a GPU so far.
fn sleeps(cores: usize, gpus: u32) -> bool {
    cores < MIN_CORES_PER_GPU * gpus as usize
}

/// Finds the driver's library, checks that it has all functions that are needed, and returns that of `elapsed`.
fn library() -> Result<Elapsed, String> {
    // SAFETY: loading NVIDIA's library runs its initialisers, which any program that uses it has to trust.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver: its library, libcuda.so.1, was not found".into());
    }
    // SAFETY: as above.
    let library = unsafe { sys::culib() };
    for name in FUNCTIONS {
        // SAFETY: the symbol is looked up but not called.
        if unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err() {
            return Err(format!("the NVIDIA driver is too old: its library lacks {name}"));
        }
    }
    // SAFETY: both functions have this signature.
    let found = ELAPSED.iter().find_map(|name| unsafe { library.get::<Elapsed>(name.as_bytes()) }.ok());
    found
        .map(|elapsed| *elapsed)
        .ok_or_else(|| format!("the NVIDIA driver is too old: its library lacks {}", ELAPSED[1]))
}

/// Starts the driver, and returns the number of devices, which is not zero.
fn init() -> Result<u32, String> {
    let none = || "the NVIDIA driver shows no GPU".to_owned();
    // SAFETY: the call takes no pointers.
    let code = unsafe { sys::cuInit(0) };
    match code {
        CUresult::CUDA_ERROR_NO_DEVICE => return Err(none()),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            return Err("the libcuda.so found is the CUDA toolkit's stub, not an NVIDIA driver's".into());
        }
        code => explained(code).map_err(|why| format!("the NVIDIA driver did not start: {why}"))?,
    }
    let mut count = 0;
    // SAFETY: `count` is a place for the result.
    explained(unsafe { sys::cuDeviceGetCount(&mut count) })
        .map_err(|why| format!("the NVIDIA driver did not count its GPUs: {why}"))?;
    u32::try_from(count).ok().filter(|count| *count > 0).ok_or_else(none)
}

/// Returns the newest CUDA version that the driver supports.
fn driver_version() -> Result<(u32, u32), String> {
    let mut version = 0;
    // SAFETY: `version` is a place for the result.
    explained(unsafe { sys::cuDriverGetVersion(&mut version) })
        .map_err(|why| format!("the NVIDIA driver did not report its version: {why}"))?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

/// Returns a device's handle and its properties.
fn query(ordinal: u32, cuda: (u32, u32)) -> Result<(sys::CUdevice, Properties, Card), String> {
    let failed = |why| format!("GPU {ordinal} did not report its properties: {why}");
    let mut device = 0;
    let mut name = [0; 256];
    let mut memory = 0;
    // SAFETY: there are places for all results, and the length is that of `name`.
    let codes = unsafe {
        [
            sys::cuDeviceGet(&mut device, ordinal as c_int),
            sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device),
            sys::cuDeviceTotalMem_v2(&mut memory, device),
        ]
    };
    codes.into_iter().try_for_each(explained).map_err(failed)?;
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: `value` is a place for the result.
        explained(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) }).map_err(failed)?;
        Ok::<u32, String>(value.unsigned_abs())
    };
    let properties = Properties {
        name: CStr::from_bytes_until_nul(&name).map_or_else(|_| String::new(), |n| n.to_string_lossy().into_owned()),
        ordinal,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        memory: memory as u64,
    };
    // Nothing depends on these: 0 if a device does not report them.
    let card = Card {
        cuda,
        clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE).unwrap_or(0),
        memory_clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).unwrap_or(0),
        bus_bits: attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH).unwrap_or(0),
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).unwrap_or(0),
        sleeps: false,
    };
    Ok((device, properties, card))
}

/// Loads our kernels into the current context.
fn load(fatbin: &[u8], properties: &Properties, cuda: (u32, u32)) -> Result<sys::CUmodule, String> {
    if !has_code(kernels::ARCHS, properties.capability) {
        return Err(no_code(kernels::ARCHS, properties));
    }
    // Leaked, once per device: the driver may compile kernels as late as their first use, and nothing guarantees that
    // it does not write to the log then.
    let log = vec![0u8; 8 << 10].leak();
    let options = Box::leak(Box::new([
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ]));
    let values: &mut [*mut c_void; 2] =
        Box::leak(Box::new([log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len())]));
    let mut module = ptr::null_mut();
    // SAFETY: the image is complete, states its own size and is aligned (build.rs); there are as many options and
    // values as stated, and the log has the size that is passed with it.
    let code = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&mut module, fatbin.as_ptr().cast(), 2, options, values)
    };
    let Err(why) = explained(code) else { return Ok(module) };
    let name = &properties.name;
    let log = CStr::from_bytes_until_nul(log).map(|log| log.to_string_lossy()).unwrap_or_default();
    let log = log.split_whitespace().collect::<Vec<_>>().join(" ");
    let log = if log.is_empty() { why } else { format!("{why}: {}", log.chars().take(400).collect::<String>()) };
    Err(match code {
        // There is code for the device, so it is the driver that cannot read it.
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_INVALID_IMAGE
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            let (major, minor) = cuda;
            format!("the driver of {name} (up to CUDA {major}.{minor}) is too old for this build's device code: {log}")
        }
        _ => format!("{name} did not load this build's device code: {log}"),
    })
}

/// Returns whether code for these architectures (90 for 9.0) runs on a device: the driver compiles the PTX of the
/// oldest for any newer device that has no machine code of its own.
fn has_code(archs: &[u32], (major, minor): (u32, u32)) -> bool {
    archs.iter().min().is_some_and(|oldest| *oldest <= 10 * major + minor)
}

fn no_code(archs: &[u32], properties: &Properties) -> String {
    let (name, (major, minor)) = (&properties.name, properties.capability);
    let archs: Vec<_> = archs.iter().map(|arch| format!("{}.{}", arch / 10, arch % 10)).collect();
    let archs = archs.join(", ");
    format!(
        "{name} has compute capability {major}.{minor}, and this build has device code for {archs} only (CUDA_ARCHS)"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn without_a_driver_there_is_a_sentence_and_no_panic() {
        // SAFETY: NVIDIA's library is loaded, or there is none.
        let present = unsafe { sys::is_culib_present() };
        let found = NvidiaDriver::all().map(|devices| devices.len());
        if present {
            assert!(found.as_ref().map_or_else(|why| !why.is_empty(), |devices| *devices > 0), "{found:?}");
        } else {
            assert_eq!(found, Err("no NVIDIA driver: its library, libcuda.so.1, was not found".into()));
        }
    }

    #[test]
    fn who_asks_for_memory_waits_for_what_another_is_giving_back() {
        let released = Released::default();
        released.push(1);
        let freed = AtomicBool::new(false);
        let taken = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                released.free(|addresses| {
                    assert_eq!(addresses, [1]);
                    taken.wait();
                    // Takes time, as the device's work does: a caller that does not wait for this is detected.
                    std::thread::sleep(Duration::from_millis(200));
                    freed.store(true, Ordering::SeqCst);
                });
            });
            taken.wait();
            released.free(|_| panic!("nothing waits"));
            assert!(freed.load(Ordering::SeqCst), "memory was being freed, and the caller did not wait for it");
        });
    }

    #[test]
    fn who_waits_sleeps_where_cores_are_few() {
        let few = [(1, 1), (3, 1), (7, 2), (31, 8)];
        let many = [(4, 1), (8, 2), (64, 8)];
        assert!(few.iter().all(|(cores, gpus)| sleeps(*cores, *gpus)));
        assert!(!many.iter().any(|(cores, gpus)| sleeps(*cores, *gpus)));
    }

    #[test]
    fn code_runs_from_the_oldest_architecture_on() {
        let archs = [75, 80, 86, 89, 90, 100, 120];
        for (capability, runs) in [
            ((7, 0), false),
            ((7, 5), true),
            ((8, 0), true),
            ((8, 7), true),
            ((9, 0), true),
            ((10, 0), true),
            ((12, 0), true),
            ((12, 1), true),
            ((13, 0), true),
        ] {
            assert_eq!(has_code(&archs, capability), runs, "{capability:?}");
        }
        assert!(!has_code(&[86], (8, 0)) && has_code(&[90], (10, 0)) && !has_code(&[], (9, 0)));
        let properties = Properties {
            name: "Tesla V100".into(),
            ordinal: 0,
            capability: (7, 0),
            multiprocessors: 80,
            shared_per_block: 0,
            memory: 0,
        };
        assert_eq!(
            no_code(&archs, &properties),
            "Tesla V100 has compute capability 7.0, and this build has device code for 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, \
             12.0 only (CUDA_ARCHS)"
        );
    }
}
