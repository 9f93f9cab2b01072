//! What the host code of `cuda` needs of a device, and the two that give it: a GPU by NVIDIA's driver, and this
//! processor, which runs the very same kernel sources for tests.

#![allow(unsafe_code)]

mod graph;
#[cfg(feature = "kernels-on-host")]
pub mod host;
#[cfg(feature = "cuda")]
pub mod nvidia;

use super::super::BackendError;

/// A place in a device's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Address(pub u64);

/// Work in order. Work on two streams may overlap unless an event orders it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stream(u64);

/// A point in a stream's work.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Event(u64);

/// Work that was noted, to be run as one launch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Graph(u64);

/// What has come of graphs on a device so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GraphCounts {
    /// Made.
    pub made: u64,
    /// Put into a stream.
    pub launches: u64,
    /// What kept the last one from being made or launched that was not.
    pub error: Option<BackendError>,
}

/// What is fixed of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// What it calls itself.
    pub name: String,
    /// Number among those of its driver.
    pub ordinal: u32,
    /// Compute capability, major and minor: (9, 0) for an H100.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one block may ask for, bytes.
    pub shared_per_block: u32,
    /// Global memory, bytes.
    pub memory: u64,
}

/// One argument of a kernel, as its declaration in `kernels/` has it.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A pointer.
    Pointer(Address),
    /// A `uint32_t`.
    U32(u32),
}

/// A kernel to run.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Its name in `kernels/`.
    pub kernel: &'static str,
    /// Blocks, in x and y.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
    /// Arguments, in the order of the declaration.
    pub arguments: &'a [Argument],
}

/// A device that runs kernels.
///
/// Calls may come from any thread. Those that take a stream only put work there, but for `download` and `synchronize`.
/// A fault of a kernel shows at a later call.
pub trait Driver: Send + Sync {
    /// What is fixed of it.
    fn properties(&self) -> &Properties;

    /// Free memory, bytes.
    fn free_memory(&self) -> Result<u64, BackendError>;

    /// Memory, aligned to 256 bytes, with any content. Fails with `OutOfMemory`.
    fn allocate(&self, bytes: u64) -> Result<Address, BackendError>;

    /// Whether buffers that are used together may be cut from one allocation.
    fn carves(&self) -> bool {
        true
    }

    /// Gives memory back once all work on the device that was begun has ended, or when more is asked for.
    ///
    /// # Safety
    /// `address` comes from `allocate` of this driver, and is not used again.
    unsafe fn release(&self, address: Address);

    /// A stream of its own.
    fn create_stream(&self) -> Result<Stream, BackendError>;

    /// Waits for its work and forgets it.
    fn destroy_stream(&self, stream: Stream);

    /// Copies `from` to the device; on return `from` may be changed, and the copy is ordered within the stream.
    ///
    /// # Safety
    /// `to` has room for as many bytes.
    unsafe fn upload(&self, stream: Stream, to: Address, from: &[u8]) -> Result<(), BackendError>;

    /// Copies from the device when the stream's work up to here has ended, and waits for it.
    ///
    /// # Safety
    /// At `from` lie as many bytes.
    unsafe fn download(&self, stream: Stream, to: &mut [u8], from: Address) -> Result<(), BackendError>;

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// At `at` lie as many bytes.
    unsafe fn zero(&self, stream: Stream, at: Address, bytes: u64) -> Result<(), BackendError>;

    /// Runs a kernel.
    ///
    /// # Safety
    /// The arguments are those of the kernel's declaration, and what they point to is as large as it says.
    unsafe fn launch(&self, stream: Stream, launch: Launch<'_>) -> Result<(), BackendError>;

    /// Waits until the stream's work has ended. Fails if any of it did.
    fn synchronize(&self, stream: Stream) -> Result<(), BackendError>;

    /// Notes the present end of the stream's work.
    fn record(&self, stream: Stream) -> Result<Event, BackendError>;

    /// Later work on the stream waits for the event. The event is not used up.
    fn wait(&self, stream: Stream, event: Event) -> Result<(), BackendError>;

    /// Later work on `after` comes after that on `before` so far.
    fn order(&self, before: Stream, after: Stream) -> Result<(), BackendError> {
        if before == after {
            return Ok(());
        }
        let event = self.record(before)?;
        let waits = self.wait(after, event);
        self.destroy_event(event);
        waits
    }

    /// Milliseconds between two events that both have happened.
    fn elapsed(&self, from: Event, to: Event) -> Result<f32, BackendError>;

    /// Forgets an event.
    fn destroy_event(&self, event: Event);

    /// Notes what `work` puts into `stream`, and into streams that wait for its events, instead of running it. `work` puts
    /// launches and clearings there and no uploads, waits for nothing, and in the end has `stream` wait for the others.
    /// Events that it makes mean nothing outside.
    fn graph(&self, stream: Stream, work: &mut dyn FnMut() -> Result<(), BackendError>) -> Result<Graph, BackendError>;

    /// Runs what was noted, as if it were put into the stream once more. Runs of one graph follow each other.
    ///
    /// # Safety
    /// All that its work points to is still there.
    unsafe fn run(&self, stream: Stream, graph: Graph) -> Result<(), BackendError>;

    /// Forgets a graph, once its last run has ended.
    fn destroy_graph(&self, graph: Graph);

    /// What has come of graphs so far: one that a device refuses is done without, and shows nowhere else.
    fn graph_counts(&self) -> GraphCounts;
}
