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

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::graph::{Captures, GraphStats, Node, Work};
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

/// Initial content of memory. No field element has such words.
const POISON: u8 = 0xd7;
/// Content of the guards around allocations.
const GUARD: u8 = 0x5a;
/// Bytes of the guards before and after each allocation, and the alignment of addresses.
const GUARD_BYTES: usize = 256;
/// CUDA's codes, so that tests expect the same ones as on a GPU.
const INVALID_VALUE: i64 = 1;
const INVALID_HANDLE: i64 = 400;
const NOT_READY: i64 = 600;
const ILLEGAL_ADDRESS: i64 = 700;

/// `struct kernels_host_launch` of `kernels/host/host.h`.
#[repr(C)]
struct RawLaunch {
    kernel: *const c_char,
    grid_x: u32,
    grid_y: u32,
    block: u32,
    shared: u32,
    arguments: *const *const c_void,
    argument_bytes: *const u8,
    argument_count: u32,
    order: u32,
    seed: u64,
    threads: u32,
}

// SAFETY: these are the declarations of kernels/host/host.h. What the functions that take names require is stated
// at their only calls; numbers may have any value. The others change nothing but what the address sanitizer
// reports, if it is built in.
unsafe extern "C" {
    fn kernels_host_run(launch: *const RawLaunch, message: *mut c_char, message_bytes: usize) -> c_int;
    safe fn kernels_host_name(number: u32) -> *const c_char;
    fn kernels_host_parameter(kernel: *const c_char, number: u32) -> u8;
    safe fn kernels_host_forbid(start: *const c_void, bytes: usize);
    safe fn kernels_host_allow(start: *const c_void, bytes: usize);
}

/// Returns the names of all kernels, sorted.
pub fn kernels() -> Vec<&'static str> {
    let mut names: Vec<&'static str> = (0..)
        .map_while(|number| {
            let name = kernels_host_name(number);
            // SAFETY: a name that is not null is a string literal of the C++ sources.
            (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_str().unwrap_or(""))
        })
        .collect();
    names.sort_unstable();
    names
}

/// Returns the bytes of each parameter of a kernel: 8 for a pointer, 4 for a number.
pub fn parameters(kernel: &str) -> Vec<u8> {
    let name = CString::new(kernel).unwrap_or_default();
    // SAFETY: the name is NUL-terminated and outlives the call.
    let bytes = (0..).map(|number| unsafe { kernels_host_parameter(name.as_ptr(), number) });
    bytes.take_while(|bytes| *bytes != 0).collect()
}

/// Host memory: a guard, the bytes that were requested, and a guard immediately after them.
struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
    /// Number of allocations before this one.
    number: u64,
}

// SAFETY: the memory belongs to the allocation, which is moved and used as a whole.
unsafe impl Send for Allocation {}

impl Allocation {
    fn new(bytes: usize, number: u64) -> Option<Self> {
        let all = bytes.checked_add(2 * GUARD_BYTES)?;
        let layout = Layout::from_size_align(all, GUARD_BYTES).ok()?;
        // SAFETY: the layout is not empty, because it includes guards.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: `all` bytes were allocated at `start`, and `bytes` of them begin after the first guard.
        unsafe {
            start.write_bytes(GUARD, all);
            start.add(GUARD_BYTES).write_bytes(POISON, bytes);
        }
        let allocation = Self { start, layout, bytes, number };
        for guard in allocation.guards() {
            kernels_host_forbid(guard.as_ptr().cast(), guard.len());
        }
        Some(allocation)
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64 + GUARD_BYTES as u64
    }

    fn guards(&self) -> [&[u8]; 2] {
        // SAFETY: both guards lie within the allocation and were written when it was made. No kernel is running.
        unsafe {
            let before = slice::from_raw_parts(self.start.as_ptr(), GUARD_BYTES);
            [before, slice::from_raw_parts(self.start.as_ptr().add(GUARD_BYTES + self.bytes), GUARD_BYTES)]
        }
    }

    /// Returns the offset from the first byte, negative if before it, of a guard byte that was changed.
    fn broken(&self) -> Option<i64> {
        let [before, behind] = self.guards().map(|guard| guard.iter().position(|&byte| byte != GUARD));
        let before = before.map(|at| at as i64 - GUARD_BYTES as i64);
        before.or_else(|| behind.map(|at| at as i64 + self.bytes as i64))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        kernels_host_allow(self.start.as_ptr().cast(), self.layout.size());
        // SAFETY: allocated with this layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A task in a stream.
enum Task {
    Work(Work),
    Upload {
        to: Address,
        bytes: Vec<u8>,
    },
    /// Copies from and to memory of the caller, which is not accessed before the task runs.
    UploadLater {
        to: Address,
        from: HostPointer,
        bytes: u64,
    },
    DownloadLater {
        to: HostPointer,
        from: Address,
        bytes: u64,
    },
    /// Marks an event as having happened.
    Event(Event),
    Graph(Arc<[Node]>),
}

/// A place in the caller's memory.
struct HostPointer(*mut u8);

// SAFETY: the caller that passes such a place guarantees that it is valid until the work has run, on whatever thread.
unsafe impl Send for HostPointer {}

struct Pending {
    task: Task,
    /// Tasks that must end before this one; those that are no longer pending have ended.
    after: Vec<u64>,
}

/// An event: the task that marks it as having happened, and the time when that ran.
#[derive(Clone, Copy)]
struct EventState {
    task: u64,
    at: Option<Instant>,
}

#[derive(Default)]
struct State {
    allocations: BTreeMap<u64, Allocation>,
    used: u64,
    /// Number of allocations so far.
    allocated: u64,
    pending: BTreeMap<u64, Pending>,
    /// The tasks that the next task of each stream comes after.
    streams: HashMap<Stream, Vec<u64>>,
    events: HashMap<Event, EventState>,
    graphs: HashMap<Graph, Arc<[Node]>>,
    handles: u64,
    launches: u64,
    /// Kernels that ran, each with the most shared memory of a block.
    launched: BTreeMap<&'static str, u32>,
    choices: u64,
    fault: Option<(BackendError, String)>,
}

impl State {
    fn handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }

    /// Records a fault, which every later call reports.
    fn fail(&mut self, error: BackendError, message: String) -> BackendError {
        tracing::error!(%error, "{message}");
        self.pending.clear();
        self.fault.get_or_insert((error.clone(), message));
        error
    }

    fn stream(&self, op: &'static str, stream: Stream) -> Result<(), BackendError> {
        if self.streams.contains_key(&stream) { Ok(()) } else { Err(BackendError::Device { op, code: INVALID_HANDLE }) }
    }

    fn event(&self, op: &'static str, event: Event) -> Result<EventState, BackendError> {
        self.events.get(&event).copied().ok_or(BackendError::Device { op, code: INVALID_HANDLE })
    }

    /// Returns the pending tasks that must run for these to end, including these.
    fn needed(&self, tasks: &[u64]) -> BTreeSet<u64> {
        let (mut needed, mut open) = (BTreeSet::new(), tasks.to_vec());
        while let Some(task) = open.pop() {
            if let Some(pending) = self.pending.get(&task)
                && needed.insert(task)
            {
                open.extend(&pending.after);
            }
        }
        needed
    }

    /// Returns the bytes from an address to the end of the allocation in which, or at whose end, it lies.
    fn remaining(&self, address: Address) -> Option<u64> {
        let (start, allocation) = self.allocations.range(..=address.0).next_back()?;
        (start + allocation.bytes as u64).checked_sub(address.0)
    }

    /// Checks that `bytes` bytes at an address lie in one allocation.
    fn check(&self, op: &'static str, address: Address, bytes: u64) -> Result<(), BackendError> {
        match self.remaining(address) {
            None => Err(BackendError::Device { op, code: INVALID_VALUE }),
            Some(room) if room < bytes => Err(BackendError::TooSmall { what: op, needed: bytes, available: room }),
            Some(_) => Ok(()),
        }
    }

    /// Returns an error if something wrote outside of an allocation.
    fn check_guards(&mut self, op: &'static str) -> Result<(), BackendError> {
        let broken = self.allocations.values().find_map(|allocation| Some((allocation.broken()?, allocation.bytes)));
        let Some((at, bytes)) = broken else { return Ok(()) };
        let message = format!("{op}: byte {at} of an allocation was written: expected 0 to {bytes}");
        Err(self.fail(BackendError::Device { op, code: ILLEGAL_ADDRESS }, message))
    }
}

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

    /// Puts a task into a stream.
    fn enqueue(&self, state: &mut State, stream: Stream, task: Task) -> Result<u64, BackendError> {
        let number = state.handle();
        let after = state.streams.insert(stream, vec![number]).unwrap_or_default();
        state.pending.insert(number, Pending { task, after });
        if self.order == Order::Ascending {
            self.finish(state, &[number])?;
        }
        Ok(number)
    }

    /// Runs pending tasks until `tasks` have ended.
    fn finish(&self, state: &mut State, tasks: &[u64]) -> Result<(), BackendError> {
        let mut allowed = match self.order {
            Order::Random(_) => state.pending.keys().copied().collect(),
            Order::Ascending | Order::Descending => state.needed(tasks),
        };
        while tasks.iter().any(|task| state.pending.contains_key(task)) {
            let may = |task: &u64| state.pending[task].after.iter().all(|before| !state.pending.contains_key(before));
            let ready: Vec<u64> = allowed.iter().copied().filter(may).collect();
            let chosen = ready[self.choose(state, ready.len())];
            allowed.remove(&chosen);
            if let Some(Pending { task, .. }) = state.pending.remove(&chosen) {
                self.run_task(state, task)?;
            }
        }
        Ok(())
    }

    /// Chooses an index below `count`, which is not 0, according to the order.
    fn choose(&self, state: &mut State, count: usize) -> usize {
        state.choices += 1;
        match self.order {
            Order::Ascending => 0,
            Order::Descending => count - 1,
            // Knuth's multiplier: adjacent numbers lead far apart.
            Order::Random(seed) => {
                let mixed = (seed ^ state.choices).wrapping_mul(6_364_136_223_846_793_005).rotate_right(29);
                (mixed.wrapping_mul(6_364_136_223_846_793_005) >> 33) as usize % count
            }
        }
    }

    fn run_task(&self, state: &mut State, task: Task) -> Result<(), BackendError> {
        match task {
            Task::Work(work) => self.work(state, &work),
            Task::Upload { to, bytes } => {
                // SAFETY: the bytes lay within an allocation when this was put into its stream, and memory is released
                // only when nothing is pending.
                unsafe { (to.0 as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
                Ok(())
            }
            Task::UploadLater { to, from, bytes } => {
                // SAFETY: as above; the caller of `upload_later` guarantees the bytes at `from`.
                unsafe { (to.0 as *mut u8).copy_from_nonoverlapping(from.0, bytes as usize) }
                Ok(())
            }
            Task::DownloadLater { to, from, bytes } => {
                // SAFETY: as above; the caller of `download_later` guarantees the space at `to`.
                unsafe { (from.0 as *const u8).copy_to_nonoverlapping(to.0, bytes as usize) }
                Ok(())
            }
            Task::Event(event) => {
                if let Some(event) = state.events.get_mut(&event) {
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
            Task::Graph(nodes) => {
                let mut left: BTreeSet<usize> = (0..nodes.len()).collect();
                while !left.is_empty() {
                    let may = |node: &usize| nodes[*node].after.iter().all(|before| !left.contains(before));
                    let ready: Vec<usize> = left.iter().copied().filter(may).collect();
                    let chosen = ready[self.choose(state, ready.len())];
                    left.remove(&chosen);
                    self.check(state, &nodes[chosen].work)?;
                    self.work(state, &nodes[chosen].work)?;
                }
                Ok(())
            }
        }
    }

    fn work(&self, state: &mut State, work: &Work) -> Result<(), BackendError> {
        match work {
            Work::Zero { at, bytes } => {
                // SAFETY: the bytes lie within an allocation, as `check` has found.
                unsafe { (at.0 as *mut u8).write_bytes(0, *bytes as usize) }
                Ok(())
            }
            Work::Launch { kernel, grid, block, shared, arguments } => {
                let launch = Launch { kernel, grid: *grid, block: *block, shared: *shared, arguments };
                self.launch_now(state, &launch)
            }
        }
    }

    fn launch_now(&self, state: &mut State, launch: &Launch<'_>) -> Result<(), BackendError> {
        let op = launch.kernel;
        if self.idle == Some(op) {
            return Ok(());
        }
        let most = state.launched.entry(op).or_default();
        *most = launch.shared.max(*most);
        let places: Vec<*const c_void> = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(Address(value)) => std::ptr::from_ref(value).cast(),
                Argument::U32(value) => std::ptr::from_ref(value).cast(),
            })
            .collect();
        let argument_bytes: Vec<u8> = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(_) => 8,
                Argument::U32(_) => 4,
            })
            .collect();
        let Ok(kernel) = CString::new(launch.kernel) else {
            return Err(BackendError::Device { op, code: INVALID_VALUE });
        };
        state.launches += 1;
        let (order, seed) = match self.order {
            Order::Ascending => (0, 0),
            Order::Descending => (1, 0),
            Order::Random(seed) => (2, seed.wrapping_add(state.launches)),
        };
        let raw = RawLaunch {
            kernel: kernel.as_ptr(),
            grid_x: launch.grid.0,
            grid_y: launch.grid.1,
            block: launch.block,
            shared: launch.shared,
            arguments: places.as_ptr(),
            argument_bytes: argument_bytes.as_ptr(),
            argument_count: launch.arguments.len() as u32,
            order,
            seed,
            threads: self.threads,
        };
        let mut message = [0_u8; 512];
        // SAFETY: everything in `raw` lives until the call ends, with as many arguments as it says, whose number and
        // types the callee checks; the message is truncated to its length. The caller of `launch` vouches for what the
        // kernel does with its pointers.
        let status = unsafe { kernels_host_run(&raw, message.as_mut_ptr().cast(), message.len()) };
        if status != 0 {
            let message = CStr::from_bytes_until_nul(&message).map(CStr::to_string_lossy).unwrap_or_default();
            return Err(state.fail(BackendError::Device { op, code: status.into() }, message.into_owned()));
        }
        state.check_guards(op)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ORDERS: [Order; 4] = [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2)];

    fn device(code: i64, op: &'static str) -> BackendError {
        BackendError::Device { op, code }
    }

    fn upload(driver: &HostDriver, words: &[u32]) -> Result<Address, BackendError> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (stream, to) = (driver.create_stream()?, driver.allocate(bytes.len() as u64)?);
        // SAFETY: `bytes.len()` bytes were allocated at `to`.
        unsafe { driver.upload(stream, to, &bytes)? };
        driver.destroy_stream(stream);
        Ok(to)
    }

    fn download(driver: &HostDriver, from: Address, words: usize) -> Result<Vec<u32>, BackendError> {
        let stream = driver.create_stream()?;
        let mut bytes = vec![0; 4 * words];
        // SAFETY: the driver checks the bounds at `from`.
        unsafe { driver.download(stream, &mut bytes, from)? };
        driver.destroy_stream(stream);
        Ok(bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect())
    }

    fn launch(
        driver: &HostDriver,
        kernel: &'static str,
        block: u32,
        shared: u32,
        arguments: &[Argument],
    ) -> Result<(), BackendError> {
        let stream = driver.create_stream()?;
        // SAFETY: the tests pass what check.h requires, or what the driver refuses.
        unsafe { driver.launch(stream, Launch { kernel, grid: (2, 1), block, shared, arguments })? };
        driver.synchronize(stream)
    }

    #[test]
    fn kernels_have_names() {
        let names = kernels();
        assert!(names.contains(&"check_barrier"), "{names:?}");
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    }

    fn block_sums(kernel: &'static str) -> Vec<Vec<u32>> {
        let in_order = |order| {
            let driver = HostDriver::new(order);
            let squares: Vec<u32> = (0..256).map(|i| i * i).collect();
            let (squares, sums) = (upload(&driver, &squares).unwrap(), driver.allocate(8).unwrap());
            launch(&driver, kernel, 256, 1024, &[Argument::Pointer(squares), Argument::Pointer(sums)]).unwrap();
            download(&driver, sums, 2).unwrap()
        };
        ORDERS.map(in_order).to_vec()
    }

    #[test]
    fn a_kernel_gives_the_same_in_all_orders() {
        assert_eq!(block_sums("check_barrier"), vec![vec![5_559_680; 2]; 4]);
    }

    #[test]
    fn a_missing_barrier_shows() {
        assert!(block_sums("check_missing_barrier").iter().any(|sums| *sums != [5_559_680; 2]));
    }

    #[test]
    fn a_divergent_barrier_is_an_error_of_this_and_all_later_calls() {
        for order in ORDERS {
            let driver = HostDriver::new(order);
            let out = driver.allocate(256).unwrap();
            let expected = device(5, "check_divergent_barrier");
            let result = launch(&driver, "check_divergent_barrier", 64, 0, &[Argument::Pointer(out)]);
            assert_eq!(result, Err(expected.clone()));
            assert_eq!(driver.create_stream(), Err(expected.clone()));
            assert_eq!(driver.free_memory(), Err(expected));
            let fault = driver.fault().unwrap();
            assert!(fault.contains("kernel check_divergent_barrier, block ("), "{fault}");
        }
    }

    #[test]
    fn what_a_launch_gets_wrong_is_told() {
        let fails = |kernel: &'static str, block, arguments: &[Argument], code, words: &str| {
            let driver = HostDriver::new(Order::Ascending);
            assert_eq!(launch(&driver, kernel, block, 0, arguments), Err(device(code, kernel)));
            let fault = driver.fault().unwrap();
            assert!(fault.contains(words), "{fault}");
        };
        fails("no_such_kernel", 32, &[], 1, "no kernel is called no_such_kernel");
        fails("check_trap", 32, &[], 2, "expected 1, got 0");
        fails("check_trap", 32, &[Argument::Pointer(Address(0))], 2, "expected a number, got a pointer");
        fails("check_trap", 33, &[Argument::U32(0)], 3, "expected 1 to 32, got 33");
        fails("check_trap", 32, &[Argument::U32(9)], 8, "thread 9 called __trap");
        fails("check_words", 1, &[Argument::Pointer(Address(16))], ILLEGAL_ADDRESS, "points to no allocation");
        let driver = HostDriver::new(Order::Ascending).with_shared_per_block(1024);
        let what = "bytes of shared memory of a block";
        let expected = BackendError::TooSmall { what, needed: 1025, available: 1024 };
        assert_eq!(launch(&driver, "check_trap", 32, 1025, &[Argument::U32(0)]), Err(expected));
    }

    // The sanitizer ends the process at such a write: scripts/kernels.sh runs this test alone and checks that it does.
    #[test]
    fn stray_writes_are_noticed() {
        let driver = HostDriver::new(Order::Ascending);
        let out = driver.allocate(4 * 63).unwrap();
        let result = launch(&driver, "check_indices", 32, 0, &[Argument::Pointer(out)]);
        assert_eq!(result, Err(device(ILLEGAL_ADDRESS, "check_indices")));
        assert_eq!(driver.fault().unwrap(), "check_indices: byte 252 of an allocation was written: expected 0 to 252");

        let driver = HostDriver::new(Order::Ascending);
        assert_eq!(launch(&driver, "check_overrun", 32, 40, &[Argument::U32(40)]), Err(device(7, "check_overrun")));
        assert!(driver.fault().unwrap().contains("byte 40 of shared memory: expected 40 bytes at most"));
    }

    #[test]
    fn memory_begins_with_a_pattern_and_zero_clears_it() {
        let driver = HostDriver::new(Order::Ascending);
        let (stream, at) = (driver.create_stream().unwrap(), driver.allocate(16).unwrap());
        assert_eq!(at.0 % 256, 0);
        assert_eq!(download(&driver, at, 4).unwrap(), [0xd7d7_d7d7; 4]);
        // SAFETY: 8 bytes from the fourth byte on lie within the allocation.
        unsafe { driver.zero(stream, Address(at.0 + 4), 8).unwrap() };
        assert_eq!(download(&driver, at, 4).unwrap(), [0xd7d7_d7d7, 0, 0, 0xd7d7_d7d7]);
    }

    #[test]
    fn copies_stay_within_one_allocation() {
        let driver = HostDriver::new(Order::Ascending);
        let stream = driver.create_stream().unwrap();
        let (first, _second) = (driver.allocate(16).unwrap(), driver.allocate(16).unwrap());
        let mut bytes = [0; 17];
        let small = |op, available| Err(BackendError::TooSmall { what: op, needed: 17, available });
        // SAFETY: all of these are refused.
        unsafe {
            assert_eq!(driver.upload(stream, first, &bytes), small("upload", 16));
            assert_eq!(driver.download(stream, &mut bytes, Address(first.0 + 1)), small("download", 15));
            assert_eq!(driver.zero(stream, Address(first.0 + 16), 17), small("zero", 0));
            assert_eq!(driver.zero(stream, Address(first.0 + 17), 1), Err(device(INVALID_VALUE, "zero")));
            assert_eq!(driver.zero(stream, Address(first.0 - 1), 1), Err(device(INVALID_VALUE, "zero")));
            assert_eq!(driver.upload(Stream(99), first, &[]), Err(device(INVALID_HANDLE, "upload")));
        }
        assert_eq!(driver.fault(), None);
    }

    #[test]
    fn memory_ends_and_comes_back() {
        let driver = HostDriver::new(Order::Ascending).with_memory(1000);
        let first = driver.allocate(600).unwrap();
        assert_eq!(driver.free_memory(), Ok(400));
        assert_eq!(driver.allocate(401), Err(BackendError::OutOfMemory { needed: 401, free: 400 }));
        // SAFETY: allocated above and not used again.
        unsafe { driver.release(first) };
        assert_eq!((driver.free_memory(), driver.used()), (Ok(1000), 0));
        // SAFETY: the driver notices that there is no allocation at this address.
        unsafe { driver.release(first) };
        assert_eq!(driver.allocate(1), Err(device(INVALID_VALUE, "release")));
    }

    /// Returns what one stream reads of a word that another sets to zero, with and without waiting for it.
    fn read_beside(order: Order, waits: bool, as_one: bool) -> u32 {
        let driver = HostDriver::new(order);
        let (one, other) = (driver.create_stream().unwrap(), driver.create_stream().unwrap());
        let at = upload(&driver, &[7, 7]).unwrap();
        let [from, to] = [at, Address(at.0 + 4)];
        let work = || {
            let begun = driver.record(one)?;
            // SAFETY: there is a word at `from`.
            unsafe { driver.zero(one, from, 4)? };
            let done = driver.record(one)?;
            driver.wait(other, if waits { done } else { begun })?;
            let arguments = [Argument::Pointer(from), Argument::Pointer(to)];
            // The sum of one word is a copy of it.
            let (kernel, grid) = ("check_barrier", (1, 1));
            // SAFETY: the kernel reads one word and writes one, and has one word of shared memory.
            unsafe { driver.launch(other, Launch { kernel, grid, block: 1, shared: 4, arguments: &arguments })? };
            let copied = driver.record(other)?;
            driver.wait(one, copied)
        };
        if as_one {
            let graph = driver.graph(one, &mut || work()).unwrap();
            assert_eq!(download(&driver, at, 2).unwrap(), [7, 7], "captured work does not run");
            // SAFETY: the graph's memory still exists.
            unsafe { driver.run(one, graph).unwrap() };
            driver.destroy_graph(graph);
        } else {
            work().unwrap();
        }
        driver.synchronize(one).unwrap();
        let [first, copied] = download(&driver, at, 2).unwrap()[..] else { panic!("two words") };
        assert_eq!(first, 0);
        copied
    }

    #[test]
    fn a_missing_wait_between_streams_shows() {
        for as_one in [false, true] {
            assert!(ORDERS.iter().all(|order| read_beside(*order, true, as_one) == 0));
            let seen: Vec<u32> = (1..9).map(|seed| read_beside(Order::Random(seed), false, as_one)).collect();
            assert!(seen.contains(&7), "{seen:?}");
            assert_eq!(read_beside(Order::Descending, false, as_one), 7);
        }
    }

    #[test]
    fn graphs_run_again_and_only_on_memory_that_is_there() {
        for order in ORDERS {
            let driver = HostDriver::new(order);
            let stream = driver.create_stream().unwrap();
            let at = upload(&driver, &[1, 2]).unwrap();
            // SAFETY: there is a word at `at`.
            let graph = driver.graph(stream, &mut || unsafe { driver.zero(stream, at, 4) }).unwrap();
            for _ in 0..2 {
                // SAFETY: there are two words at `at`; the graph's memory still exists.
                unsafe {
                    driver.upload(stream, at, &[1; 8]).unwrap();
                    driver.run(stream, graph).unwrap();
                }
                driver.synchronize(stream).unwrap();
                assert_eq!(download(&driver, at, 2).unwrap(), [0, 0x0101_0101]);
            }
            let unsupported = |op| Err(device(900, op));
            let refused = driver.graph(stream, &mut || {
                assert_eq!(driver.synchronize(stream), unsupported("synchronize"));
                // SAFETY: the driver refuses this.
                assert_eq!(unsafe { driver.run(stream, graph) }, unsupported("run"));
                // SAFETY: the driver refuses this.
                unsafe { driver.upload(stream, at, &[0; 4]) }
            });
            assert_eq!(refused, unsupported("upload").map(|()| graph));
            // SAFETY: allocated above; the driver refuses what the graph does with it afterwards.
            unsafe {
                driver.release(at);
                let ran = driver.run(stream, graph).and_then(|()| driver.synchronize(stream));
                assert_eq!(ran, Err(device(INVALID_VALUE, "zero")));
            }
            driver.destroy_graph(graph);
            // SAFETY: the driver refuses this.
            assert!(unsafe { driver.run(stream, graph) }.is_err());
        }
    }

    #[test]
    fn events_have_times_and_an_order() {
        let driver = HostDriver::new(Order::Ascending);
        let (one, other) = (driver.create_stream().unwrap(), driver.create_stream().unwrap());
        let first = driver.record(one).unwrap();
        let second = driver.record(one).unwrap();
        assert_eq!(driver.wait(other, first), Ok(()));
        assert!(driver.elapsed(first, second).unwrap() >= 0.0);
        driver.destroy_event(first);
        assert_eq!(driver.wait(other, first), Err(device(INVALID_HANDLE, "wait")));
        driver.destroy_stream(other);
        assert_eq!(driver.record(other), Err(device(INVALID_HANDLE, "record")));
    }
}
