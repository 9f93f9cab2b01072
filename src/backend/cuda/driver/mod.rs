//! What the host code of `cuda` needs from a device, and the two implementations: a GPU through NVIDIA's driver, and
//! the CPU, which runs the very same kernel sources for tests.

#![allow(unsafe_code)]

mod graph;
#[cfg(feature = "kernels-on-host")]
pub mod host;
#[cfg(feature = "cuda")]
pub mod nvidia;

use super::super::{BackendError, DeviceKind};

/// An address in a device's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Address(pub u64);

/// A stream: work that runs in order. The work of two streams may overlap unless an event orders it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stream(u64);

/// An event: a point in a stream's work.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Event(u64);

/// A graph: work that was captured, to be launched as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Graph(u64);

/// Counts of a device's graphs so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GraphCounts {
    /// Graphs made.
    pub made: u64,
    /// Graph launches put into a stream.
    pub launches: u64,
    /// The last error that kept a graph from being made or launched.
    pub error: Option<BackendError>,
}

/// The fixed properties of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Name that the device reports.
    pub name: String,
    /// Ordinal among the devices of its driver.
    pub ordinal: u32,
    /// Compute capability, major and minor: (9, 0) for an H100.
    pub capability: (u32, u32),
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one block may request, in bytes.
    pub shared_per_block: u32,
    /// Global memory, in bytes.
    pub memory: u64,
}

impl Properties {
    /// Returns the label of the device, such as `cuda:0`.
    pub fn label(&self) -> String {
        DeviceKind::Cuda.label(self.ordinal)
    }
}

/// One argument of a kernel, of the type in the kernel's declaration in `kernels/`.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A pointer.
    Pointer(Address),
    /// A `uint32_t`.
    U32(u32),
}

/// A kernel launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the kernel in `kernels/`.
    pub kernel: &'static str,
    /// Blocks of the grid, in x and y.
    pub grid: (u32, u32),
    /// Threads per block.
    pub block: u32,
    /// Dynamic shared memory per block, in bytes.
    pub shared: u32,
    /// Arguments, in the order of the declaration.
    pub arguments: &'a [Argument],
}

/// A device that runs kernels.
///
/// Calls may come from any thread. Those that take a stream only put work into it, except for `download` and
/// `synchronize`. A kernel fault is reported by a later call.
pub trait Driver: Send + Sync {
    /// Returns the fixed properties.
    fn properties(&self) -> &Properties;

    /// Returns the free memory in bytes.
    fn free_memory(&self) -> Result<u64, BackendError>;

    /// Allocates memory, aligned to 256 bytes, with undefined content. Fails with `OutOfMemory` if too little is free.
    fn allocate(&self, bytes: u64) -> Result<Address, BackendError>;

    /// Returns whether buffers that are used together may be parts of one allocation.
    fn suballocates(&self) -> bool {
        true
    }

    /// Frees memory once all work on the device that has begun has ended, or when more memory is requested.
    ///
    /// # Safety
    /// `address` came from `allocate` of this driver, and is not used again.
    unsafe fn release(&self, address: Address);

    /// Creates a stream.
    fn create_stream(&self) -> Result<Stream, BackendError>;

    /// Waits for the stream's work and destroys the stream.
    fn destroy_stream(&self, stream: Stream);

    /// Copies `from` to the device. `from` may be changed on return, and the copy is ordered within the stream.
    ///
    /// # Safety
    /// There is space for `from.len()` bytes at `to`.
    unsafe fn upload(&self, stream: Stream, to: Address, from: &[u8]) -> Result<(), BackendError>;

    /// Copies from the device once the stream's work so far has ended, and waits for the copy.
    ///
    /// # Safety
    /// There are `to.len()` bytes at `from`.
    unsafe fn download(&self, stream: Stream, to: &mut [u8], from: Address) -> Result<(), BackendError>;

    /// Sets `bytes` bytes to zero.
    ///
    /// # Safety
    /// There are `bytes` bytes at `at`.
    unsafe fn zero(&self, stream: Stream, at: Address, bytes: u64) -> Result<(), BackendError>;

    /// Launches a kernel.
    ///
    /// # Safety
    /// The arguments are those of the kernel's declaration, and what they point to is as large as the kernel requires.
    unsafe fn launch(&self, stream: Stream, launch: Launch<'_>) -> Result<(), BackendError>;

    /// Waits until the stream's work has ended. Fails if any of that work failed.
    fn synchronize(&self, stream: Stream) -> Result<(), BackendError>;

    /// Records an event at the current end of the stream's work.
    fn record(&self, stream: Stream) -> Result<Event, BackendError>;

    /// Makes later work in the stream wait for the event, which can be waited for again.
    fn wait(&self, stream: Stream, event: Event) -> Result<(), BackendError>;

    /// Makes later work in `after` wait for the work in `before` so far.
    fn order(&self, before: Stream, after: Stream) -> Result<(), BackendError> {
        if before == after {
            return Ok(());
        }
        let event = self.record(before)?;
        let waits = self.wait(after, event);
        self.destroy_event(event);
        waits
    }

    /// Returns the milliseconds between two events that have both happened.
    fn elapsed(&self, from: Event, to: Event) -> Result<f32, BackendError>;

    /// Destroys an event.
    fn destroy_event(&self, event: Event);

    /// Captures what `work` puts into `stream`, and into streams that wait for its events, instead of running it.
    /// `work` puts kernel launches and memsets there but no uploads, waits for nothing, and finally makes `stream` wait
    /// for the other streams. Events that it records have no meaning outside of the graph.
    fn graph(&self, stream: Stream, work: &mut dyn FnMut() -> Result<(), BackendError>) -> Result<Graph, BackendError>;

    /// Launches the captured work, as if it were put into the stream again. Launches of one graph
    /// run one after another.
    ///
    /// # Safety
    /// Everything that the graph's work points to still exists.
    unsafe fn run(&self, stream: Stream, graph: Graph) -> Result<(), BackendError>;

    /// Destroys a graph once its last launch has ended.
    fn destroy_graph(&self, graph: Graph);

    /// Returns the counts of graphs so far. If a device refuses a graph, its work is done without one, so that
    /// no result shows it.
    fn graph_counts(&self) -> GraphCounts;
}
