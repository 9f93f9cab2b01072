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

mod graph;
mod lab;
mod open;
mod staging;

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::sys::{self, CUresult};

use self::open::Elapsed;
pub use self::open::ListedGpu;
use self::staging::{MAX_PIECE, Staging};
use super::super::super::BackendError;
use super::graph::{Captures, GraphStats, Work};
use super::{Address, Argument, Driver, Event, Graph, GraphCounts, Launch, Properties, Stream};
use crate::model::locked;

/// Shared memory that a block gets without opting in, in bytes.
const SHARED_UNASKED: u32 = 48 << 10;

/// Flags of events that need no timing.
const UNTIMED: c_uint = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint;

/// Most arguments of a kernel launch.
const MAX_ARGUMENTS: usize = 32;

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

impl NvidiaDriver {
    /// Returns the properties that are only for reports and performance floors.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Makes each buffer an allocation of its own, so that compute-sanitizer detects writes between buffers.
    pub fn without_suballocation(mut self) -> Self {
        self.suballocates = false;
        self
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

    /// Records an event of `order` in one stream, and makes another stream wait for it.
    fn order_by(&self, event: Event, before: Stream, after: Stream) -> Result<(), BackendError> {
        // SAFETY: both handles are of this context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.raw(), before.raw()) })?;
        self.wait(after, event)
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
        if !all.contains_key(&stream) && locked(&staging).is_in_flight() {
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
        // There is nothing to wait for in a dead context, and what the stream staged is set to zero all the same. While
        // the stream is being captured, `synchronize` fails before it makes the context current.
        let _ = self.synchronize(stream).or_else(|_| self.enter());
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

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
}
