//! The CPU as a device: the kernels of `kernels/`, compiled by the C++ compiler, with their threads as fibers.
//!
//! For tests. It is strict where a GPU is not: memory starts with a pattern, every address must lie in an allocation,
//! the bytes around each allocation must not change, and a barrier that not all threads reach is an error. After an
//! error, every later call reports it, as in CUDA after a kernel fault.
//!
//! **Order of work.** With threads in ascending order, work runs as soon as it is put into a stream. Otherwise it is
//! deferred until its stream is waited for: in descending order, only the work that must come before runs then; in
//! random order, any work that may run. The nodes of a graph run in any order that its edges permit, too. A stream that
//! fails to wait for another's work therefore finds it not done.
#![allow(unsafe_code)]

mod ffi;
mod memory;
mod run;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::slice;
use std::sync::{Mutex, MutexGuard};

pub use self::ffi::{kernels, parameters};
use self::memory::Allocation;
use self::state::{EventState, HostPointer, State, Task};
use super::graph::{Captures, GraphStats, Work};
use super::{Address, Argument, BackendError, Driver, Event, Graph, GraphCounts, Launch, Properties, Stream};
use crate::model::locked;

/// The order in which threads run between two waits, in which blocks run, and in which work runs that no event orders.
/// A result that depends on it is a race.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The lowest number first.
    Ascending,
    /// The highest number first.
    Descending,
    /// A random order, determined by the seed; another one for each launch, and after each barrier.
    Random(u64),
}

/// CUDA's codes, so that tests expect the same ones as on a GPU.
const INVALID_VALUE: i64 = 1;
const INVALID_HANDLE: i64 = 400;
const NOT_READY: i64 = 600;
const ILLEGAL_ADDRESS: i64 = 700;

/// The CPU as a device.
pub struct HostDriver {
    properties: Properties,
    order: Order,
    threads: u32,
    suballocates: bool,
    idle: Option<&'static str>,
    state: Mutex<State>,
    captures: Captures,
    graph_stats: GraphStats,
}

impl HostDriver {
    /// Creates a device with two multiprocessors, so that grids stay small, 96 KiB of shared memory
    /// and 4 GiB of memory.
    pub fn new(order: Order) -> Self {
        let properties = Properties {
            name: format!("{} by kernels/host", std::env::consts::ARCH),
            ordinal: 0,
            capability: (9, 0),
            multiprocessors: 2,
            shared_per_block: 96 << 10,
            memory: 4 << 30,
        };
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(8) as u32);
        let (state, captures, graph_stats) = Default::default();
        Self { properties, order, threads, suballocates: false, idle: None, state, captures, graph_stats }
    }

    /// Sets the number of multiprocessors.
    pub fn with_multiprocessors(mut self, multiprocessors: u32) -> Self {
        self.properties.multiprocessors = multiprocessors;
        self
    }

    /// Sets the shared memory per block, in bytes.
    pub fn with_shared_per_block(mut self, bytes: u32) -> Self {
        self.properties.shared_per_block = bytes;
        self
    }

    /// Sets the memory, in bytes.
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.properties.memory = bytes;
        self
    }

    /// Sets the compute capability.
    pub fn with_capability(mut self, major: u32, minor: u32) -> Self {
        self.properties.capability = (major, minor);
        self
    }

    /// Makes buffers parts of one allocation, as on a GPU; writes between them are then not detected.
    pub fn with_suballocation(mut self) -> Self {
        self.suballocates = true;
        self
    }

    /// Sets the number of operating-system threads that share the blocks of a launch.
    pub fn with_threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    /// Makes a kernel do nothing.
    pub fn with_idle(mut self, kernel: &'static str) -> Self {
        self.idle = Some(kernel);
        self
    }

    /// Returns the kernels that ran, each with the most dynamic shared memory of a block in bytes.
    pub fn launched(&self) -> BTreeMap<&'static str, u32> {
        self.lock().launched.clone()
    }

    /// Returns the message of the first fault.
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.as_ref().map(|(_, message)| message.clone())
    }

    /// Returns the memory in use, in bytes: 0 once everything was released.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Like `upload`, but reads `from` when the copy runs.
    ///
    /// # Safety
    /// There are `bytes` bytes at `from` until then.
    pub unsafe fn upload_later(
        &self,
        stream: Stream,
        to: Address,
        from: *const u8,
        bytes: u64,
    ) -> Result<(), BackendError> {
        self.captures.refuse(stream, "upload")?;
        let mut state = self.sound()?;
        state.stream("upload", stream)?;
        state.check("upload", to, bytes)?;
        self.enqueue(&mut state, stream, Task::UploadLater { to, from: HostPointer(from.cast_mut()), bytes }).map(drop)
    }

    /// Like `download`, but does not wait for the copy.
    ///
    /// # Safety
    /// There is space for `bytes` bytes at `to` until the copy has run.
    pub unsafe fn download_later(
        &self,
        stream: Stream,
        to: *mut u8,
        from: Address,
        bytes: u64,
    ) -> Result<(), BackendError> {
        self.captures.refuse(stream, "download")?;
        let mut state = self.sound()?;
        state.stream("download", stream)?;
        state.check("download", from, bytes)?;
        self.enqueue(&mut state, stream, Task::DownloadLater { to: HostPointer(to), from, bytes }).map(drop)
    }

    /// Returns whether an event has happened.
    pub fn has_happened(&self, event: Event) -> Result<bool, BackendError> {
        Ok(self.sound()?.event("query", event)?.at.is_some())
    }

    /// Returns whether all work of a stream has ended.
    pub fn is_done(&self, stream: Stream) -> Result<bool, BackendError> {
        let state = self.sound()?;
        state.stream("query", stream)?;
        Ok(state.streams[&stream].iter().all(|last| !state.pending.contains_key(last)))
    }

    /// Runs all work that was put into streams.
    pub fn settle(&self) -> Result<(), BackendError> {
        let mut state = self.sound()?;
        let all: Vec<u64> = state.pending.keys().copied().collect();
        self.finish(&mut state, &all)
    }

    /// Returns the number of allocations so far.
    pub fn allocations(&self) -> u64 {
        self.lock().allocated
    }

    /// Runs all work, and returns whether all memory is zero except for that of the first `allocations` allocations.
    pub fn is_zero_since(&self, allocations: u64) -> bool {
        // A fault is recorded for later calls.
        let _ = self.settle();
        let state = self.lock();
        state.allocations.values().filter(|allocation| allocation.number >= allocations).all(|allocation| {
            // SAFETY: `allocation.bytes` bytes were allocated after the first guard and written when the allocation was
            // made; no kernel is running, because the state is locked.
            let all = unsafe { slice::from_raw_parts(allocation.address() as *const u8, allocation.bytes) };
            all.iter().all(|byte| *byte == 0)
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Puts work into a stream, or captures it.
    fn begin(&self, stream: Stream, op: &'static str, work: Work) -> Result<(), BackendError> {
        let mut state = self.sound()?;
        state.stream(op, stream)?;
        self.check(&mut state, &work)?;
        if self.captures.add(stream, || work.clone()) {
            return Ok(());
        }
        self.enqueue(&mut state, stream, Task::Work(work)).map(drop)
    }

    /// Returns the state, or the fault that makes it useless.
    fn sound(&self) -> Result<MutexGuard<'_, State>, BackendError> {
        let state = self.lock();
        match &state.fault {
            Some((error, _)) => Err(error.clone()),
            None => Ok(state),
        }
    }

    fn capture(
        &self,
        stream: Stream,
        work: &mut dyn FnMut() -> Result<(), BackendError>,
    ) -> Result<Graph, BackendError> {
        self.sound()?.stream("graph", stream)?;
        let nodes = self.captures.capture(stream, work)?;
        let mut state = self.sound()?;
        let graph = Graph(state.handle());
        state.graphs.insert(graph, nodes.into());
        Ok(graph)
    }

    fn enqueue_graph(&self, stream: Stream, graph: Graph) -> Result<(), BackendError> {
        self.captures.refuse(stream, "run")?;
        let mut state = self.sound()?;
        state.stream("run", stream)?;
        let nodes = state.graphs.get(&graph).cloned();
        let nodes = nodes.ok_or(BackendError::Device { op: "run", code: INVALID_HANDLE })?;
        self.enqueue(&mut state, stream, Task::Graph(nodes)).map(drop)
    }

    /// Checks what can be known of work before it runs.
    fn check(&self, state: &mut State, work: &Work) -> Result<(), BackendError> {
        let (kernel, shared, arguments) = match work {
            Work::Zero { at, bytes } => return state.check("zero", *at, *bytes),
            Work::Launch { kernel, shared, arguments, .. } => (*kernel, *shared, arguments),
        };
        if shared > self.properties.shared_per_block {
            let (needed, available) = (shared.into(), self.properties.shared_per_block.into());
            return Err(BackendError::TooSmall { what: "bytes of shared memory of a block", needed, available });
        }
        for (number, argument) in arguments.iter().enumerate() {
            // Null is for parameters that are optional for a kernel.
            if let Argument::Pointer(address) = argument
                && address.0 != 0
                && state.remaining(*address).is_none()
            {
                let message = format!("{kernel}: argument {number} points to no allocation: {:#x}", address.0);
                return Err(state.fail(BackendError::Device { op: kernel, code: ILLEGAL_ADDRESS }, message));
            }
        }
        Ok(())
    }
}

impl Driver for HostDriver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<u64, BackendError> {
        Ok(self.properties.memory.saturating_sub(self.sound()?.used))
    }

    fn allocate(&self, bytes: u64) -> Result<Address, BackendError> {
        let mut state = self.sound()?;
        let free = self.properties.memory.saturating_sub(state.used);
        let refused = BackendError::OutOfMemory { needed: bytes, free };
        if bytes > free {
            return Err(refused);
        }
        let number = state.allocated;
        let made = usize::try_from(bytes).ok().and_then(|bytes| Allocation::new(bytes, number));
        let allocation = made.ok_or(refused)?;
        state.allocated += 1;
        let address = allocation.address();
        state.used += bytes;
        state.allocations.insert(address, allocation);
        Ok(Address(address))
    }

    /// Buffers are separate, each between guards, unless `with_suballocation` was called.
    fn suballocates(&self) -> bool {
        self.suballocates
    }

    unsafe fn release(&self, address: Address) {
        let mut state = self.lock();
        // Faults are recorded for later calls.
        let all: Vec<u64> = state.pending.keys().copied().collect();
        let _ = self.finish(&mut state, &all);
        let _ = state.check_guards("release");
        match state.allocations.remove(&address.0) {
            Some(allocation) => state.used -= allocation.bytes as u64,
            None => {
                let message = format!("release: no allocation begins at {:#x}", address.0);
                state.fail(BackendError::Device { op: "release", code: INVALID_VALUE }, message);
            }
        }
    }

    fn create_stream(&self) -> Result<Stream, BackendError> {
        let mut state = self.sound()?;
        let stream = Stream(state.handle());
        state.streams.insert(stream, Vec::new());
        Ok(stream)
    }

    fn destroy_stream(&self, stream: Stream) {
        let mut state = self.lock();
        let last = state.streams.remove(&stream).unwrap_or_default();
        // A fault is recorded for later calls.
        let _ = self.finish(&mut state, &last);
    }

    unsafe fn upload(&self, stream: Stream, to: Address, from: &[u8]) -> Result<(), BackendError> {
        self.captures.refuse(stream, "upload")?;
        let mut state = self.sound()?;
        state.stream("upload", stream)?;
        state.check("upload", to, from.len() as u64)?;
        self.enqueue(&mut state, stream, Task::Upload { to, bytes: from.to_vec() }).map(drop)
    }

    unsafe fn download(&self, stream: Stream, to: &mut [u8], from: Address) -> Result<(), BackendError> {
        self.synchronize(stream)?;
        let state = self.sound()?;
        state.check("download", from, to.len() as u64)?;
        // SAFETY: the bytes lie within an allocation, as was just checked. `to` cannot overlap it, because no reference
        // to it leaves this module.
        unsafe { (from.0 as *const u8).copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) }
        Ok(())
    }

    unsafe fn zero(&self, stream: Stream, at: Address, bytes: u64) -> Result<(), BackendError> {
        self.begin(stream, "zero", Work::Zero { at, bytes })
    }

    unsafe fn launch(&self, stream: Stream, launch: Launch<'_>) -> Result<(), BackendError> {
        self.begin(stream, "launch", Work::of(&launch))
    }

    fn synchronize(&self, stream: Stream) -> Result<(), BackendError> {
        self.captures.refuse(stream, "synchronize")?;
        let mut state = self.sound()?;
        state.stream("synchronize", stream)?;
        let last = state.streams.get(&stream).cloned().unwrap_or_default();
        self.finish(&mut state, &last)
    }

    fn record(&self, stream: Stream) -> Result<Event, BackendError> {
        if let Some(event) = self.captures.record(stream) {
            return Ok(event);
        }
        let mut state = self.sound()?;
        state.stream("record", stream)?;
        let event = Event(state.handle());
        state.events.insert(event, EventState { task: 0, at: None });
        let task = self.enqueue(&mut state, stream, Task::Event(event))?;
        if let Some(event) = state.events.get_mut(&event) {
            event.task = task;
        }
        Ok(event)
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), BackendError> {
        if self.captures.wait(stream, event)? {
            return Ok(());
        }
        let mut state = self.sound()?;
        state.stream("wait", stream)?;
        let task = state.event("wait", event)?.task;
        state.streams.entry(stream).or_default().push(task);
        Ok(())
    }

    fn elapsed(&self, from: Event, to: Event) -> Result<f32, BackendError> {
        let state = self.sound()?;
        let (from, to) = (state.event("elapsed", from)?.at, state.event("elapsed", to)?.at);
        let time = from.zip(to).and_then(|(from, to)| to.checked_duration_since(from));
        Ok(time.ok_or(BackendError::Device { op: "elapsed", code: NOT_READY })?.as_secs_f32() * 1e3)
    }

    fn destroy_event(&self, event: Event) {
        if !self.captures.destroy(event) {
            self.lock().events.remove(&event);
        }
    }

    fn graph(&self, stream: Stream, work: &mut dyn FnMut() -> Result<(), BackendError>) -> Result<Graph, BackendError> {
        self.graph_stats.made(self.capture(stream, work))
    }

    unsafe fn run(&self, stream: Stream, graph: Graph) -> Result<(), BackendError> {
        self.graph_stats.launched(self.enqueue_graph(stream, graph))
    }

    fn destroy_graph(&self, graph: Graph) {
        self.lock().graphs.remove(&graph);
    }

    fn graph_counts(&self) -> GraphCounts {
        self.graph_stats.counts()
    }
}
