//! This processor as a device: the kernels of `kernels/`, compiled by the C++ compiler, with their threads as fibers.
//!
//! For tests. It is strict where a GPU is not: memory begins with a pattern, every address must lie in an allocation,
//! bytes around each allocation may not change, and a barrier that not all threads reach is an error. Work runs when it
//! is put on a stream; an error is told at once, and by every later call, as CUDA does after a kernel's fault.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::slice;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Address, Argument, BackendError, Driver, Event, Launch, Properties, Stream};

/// In which order threads run between two waits, and blocks. A result that depends on it is a race.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The lowest number first.
    Ascending,
    /// The highest number first.
    Descending,
    /// By chance, which the seed decides; another order for each launch, and after each barrier.
    Random(u64),
}

/// What memory holds before anything was written there. No field element has such words.
const POISON: u8 = 0xd7;
/// What lies around allocations.
const GUARD: u8 = 0x5a;
/// Bytes of the guards before and behind each allocation, and how addresses are aligned.
const GUARD_BYTES: usize = 256;
/// CUDA's codes, so that tests look for the same as on a GPU.
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

// SAFETY: these are the declarations of kernels/host/host.h. What the first asks of its caller stands at its only call;
// the second takes any number. The others change nothing but what the address sanitizer reports, if it is built in.
unsafe extern "C" {
    fn kernels_host_run(launch: *const RawLaunch, message: *mut c_char, message_bytes: usize) -> c_int;
    safe fn kernels_host_name(number: u32) -> *const c_char;
    safe fn kernels_host_forbid(start: *const c_void, bytes: usize);
    safe fn kernels_host_allow(start: *const c_void, bytes: usize);
}

/// The names of all kernels, sorted.
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

/// Host memory: a guard, as many bytes as were asked for, and a guard at once behind them.
struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

// SAFETY: the memory belongs to the allocation, which is moved and used as a whole.
unsafe impl Send for Allocation {}

impl Allocation {
    fn new(bytes: usize) -> Option<Self> {
        let all = bytes.checked_add(2 * GUARD_BYTES)?;
        let layout = Layout::from_size_align(all, GUARD_BYTES).ok()?;
        // SAFETY: the layout is not empty: it has guards.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: `all` bytes were allocated at `start`, and `bytes` of them begin behind the first guard.
        unsafe {
            start.write_bytes(GUARD, all);
            start.add(GUARD_BYTES).write_bytes(POISON, bytes);
        }
        let allocation = Self { start, layout, bytes };
        for guard in allocation.guards() {
            kernels_host_forbid(guard.as_ptr().cast(), guard.len());
        }
        Some(allocation)
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64 + GUARD_BYTES as u64
    }

    fn guards(&self) -> [&[u8]; 2] {
        // SAFETY: both guards lie within the allocation and were written when it was made. No kernel runs.
        unsafe {
            let before = slice::from_raw_parts(self.start.as_ptr(), GUARD_BYTES);
            [before, slice::from_raw_parts(self.start.as_ptr().add(GUARD_BYTES + self.bytes), GUARD_BYTES)]
        }
    }

    /// How far from the first byte, negative if before it, a byte of a guard was changed.
    fn broken(&self) -> Option<i64> {
        let [before, behind] = self.guards().map(|guard| guard.iter().position(|&byte| byte != GUARD));
        let before = before.map(|at| at as i64 - GUARD_BYTES as i64);
        before.or_else(|| behind.map(|at| at as i64 + self.bytes as i64))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        kernels_host_allow(self.start.as_ptr().cast(), self.layout.size());
        // SAFETY: allocated with this layout, and nobody else frees it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[derive(Default)]
struct State {
    allocations: BTreeMap<u64, Allocation>,
    used: u64,
    streams: HashSet<u64>,
    events: HashMap<u64, Instant>,
    handles: u64,
    launches: u64,
    fault: Option<(BackendError, String)>,
}

impl State {
    fn handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }

    /// Notes what no later call may overlook.
    fn fail(&mut self, error: BackendError, message: String) -> BackendError {
        tracing::error!(%error, "{message}");
        self.fault.get_or_insert((error.clone(), message));
        error
    }

    fn stream(&self, op: &'static str, stream: Stream) -> Result<(), BackendError> {
        if self.streams.contains(&stream.0) { Ok(()) } else { Err(BackendError::Device { op, code: INVALID_HANDLE }) }
    }

    fn event(&self, op: &'static str, event: Event) -> Result<Instant, BackendError> {
        self.events.get(&event.0).copied().ok_or(BackendError::Device { op, code: INVALID_HANDLE })
    }

    /// The allocation in which an address lies, or at whose end, and the bytes from there to the end.
    fn room(&self, address: Address) -> Option<u64> {
        let (start, allocation) = self.allocations.range(..=address.0).next_back()?;
        (start + allocation.bytes as u64).checked_sub(address.0)
    }

    /// Checks that `bytes` bytes at an address lie in one allocation.
    fn check(&self, op: &'static str, address: Address, bytes: u64) -> Result<(), BackendError> {
        match self.room(address) {
            None => Err(BackendError::Device { op, code: INVALID_VALUE }),
            Some(room) if room < bytes => Err(BackendError::Shape { what: op, expected: room, got: bytes }),
            Some(_) => Ok(()),
        }
    }

    /// An error if something wrote outside of an allocation.
    fn check_guards(&mut self, op: &'static str) -> Result<(), BackendError> {
        let broken = self.allocations.values().find_map(|allocation| Some((allocation.broken()?, allocation.bytes)));
        let Some((at, bytes)) = broken else { return Ok(()) };
        let message = format!("{op}: byte {at} of an allocation was written: expected 0 to {bytes}");
        Err(self.fail(BackendError::Device { op, code: ILLEGAL_ADDRESS }, message))
    }
}

/// The device.
pub struct HostDriver {
    properties: Properties,
    order: Order,
    threads: u32,
    state: Mutex<State>,
}

impl HostDriver {
    /// A device with two multiprocessors, so that grids stay small, 96 KiB of shared memory and 4 GiB of memory.
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
        Self { properties, order, threads, state: Mutex::default() }
    }

    /// With another number of multiprocessors.
    pub fn with_multiprocessors(mut self, multiprocessors: u32) -> Self {
        self.properties.multiprocessors = multiprocessors;
        self
    }

    /// With more or less shared memory a block, bytes.
    pub fn with_shared_per_block(mut self, bytes: u32) -> Self {
        self.properties.shared_per_block = bytes;
        self
    }

    /// With more or less memory, bytes.
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.properties.memory = bytes;
        self
    }

    /// With another compute capability.
    pub fn with_capability(mut self, major: u32, minor: u32) -> Self {
        self.properties.capability = (major, minor);
        self
    }

    /// With so many threads of the operating system that share the blocks of a launch.
    pub fn with_threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    /// What went wrong first, in words.
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.as_ref().map(|(_, message)| message.clone())
    }

    /// Memory in use, bytes: 0 when everything was released.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, or the fault that makes it useless.
    fn sound(&self) -> Result<MutexGuard<'_, State>, BackendError> {
        let state = self.lock();
        match &state.fault {
            Some((error, _)) => Err(error.clone()),
            None => Ok(state),
        }
    }

    fn run(&self, state: &mut State, launch: &Launch<'_>) -> Result<(), BackendError> {
        let op = launch.kernel;
        if launch.shared > self.properties.shared_per_block {
            let (expected, got) = (self.properties.shared_per_block.into(), launch.shared.into());
            return Err(BackendError::Shape { what: "shared memory of a block", expected, got });
        }
        for (number, argument) in launch.arguments.iter().enumerate() {
            // Null is for what a kernel may have or not.
            if let Argument::Pointer(address) = argument
                && address.0 != 0
                && state.room(*address).is_none()
            {
                let message = format!("{op}: argument {number} points to no allocation: {:#x}", address.0);
                return Err(state.fail(BackendError::Device { op, code: ILLEGAL_ADDRESS }, message));
            }
        }
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
        // kinds are checked there; the message is cut to its length. What the kernel does with its pointers is what the
        // caller of `launch` vouches for.
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
        let allocation = usize::try_from(bytes).ok().and_then(Allocation::new).ok_or(refused)?;
        let address = allocation.address();
        state.used += bytes;
        state.allocations.insert(address, allocation);
        Ok(Address(address))
    }

    unsafe fn release(&self, address: Address) {
        let mut state = self.lock();
        // A fault is noted for later calls.
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
        let stream = state.handle();
        state.streams.insert(stream);
        Ok(Stream(stream))
    }

    fn destroy_stream(&self, stream: Stream) {
        self.lock().streams.remove(&stream.0);
    }

    unsafe fn upload(&self, stream: Stream, to: Address, from: &[u8]) -> Result<(), BackendError> {
        let state = self.sound()?;
        state.stream("upload", stream)?;
        state.check("upload", to, from.len() as u64)?;
        // SAFETY: the bytes lie within an allocation, as was just checked, which `from` cannot overlap: no reference to
        // it leaves this module.
        unsafe { (to.0 as *mut u8).copy_from_nonoverlapping(from.as_ptr(), from.len()) }
        Ok(())
    }

    unsafe fn download(&self, stream: Stream, to: &mut [u8], from: Address) -> Result<(), BackendError> {
        let state = self.sound()?;
        state.stream("download", stream)?;
        state.check("download", from, to.len() as u64)?;
        // SAFETY: as above, the other way.
        unsafe { (from.0 as *const u8).copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) }
        Ok(())
    }

    unsafe fn zero(&self, stream: Stream, at: Address, bytes: u64) -> Result<(), BackendError> {
        let state = self.sound()?;
        state.stream("zero", stream)?;
        state.check("zero", at, bytes)?;
        // SAFETY: the bytes lie within an allocation, as was just checked.
        unsafe { (at.0 as *mut u8).write_bytes(0, bytes as usize) }
        Ok(())
    }

    unsafe fn launch(&self, stream: Stream, launch: Launch<'_>) -> Result<(), BackendError> {
        let mut state = self.sound()?;
        state.stream("launch", stream)?;
        self.run(&mut state, &launch)
    }

    fn synchronize(&self, stream: Stream) -> Result<(), BackendError> {
        self.sound()?.stream("synchronize", stream)
    }

    fn record(&self, stream: Stream) -> Result<Event, BackendError> {
        let mut state = self.sound()?;
        state.stream("record", stream)?;
        let event = state.handle();
        state.events.insert(event, Instant::now());
        Ok(Event(event))
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), BackendError> {
        let state = self.sound()?;
        state.stream("wait", stream)?;
        state.event("wait", event).map(drop)
    }

    fn elapsed(&self, from: Event, to: Event) -> Result<f32, BackendError> {
        let state = self.sound()?;
        let (from, to) = (state.event("elapsed", from)?, state.event("elapsed", to)?);
        let time = to.checked_duration_since(from);
        Ok(time.ok_or(BackendError::Device { op: "elapsed", code: NOT_READY })?.as_secs_f32() * 1e3)
    }

    fn destroy_event(&self, event: Event) {
        self.lock().events.remove(&event.0);
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
        // SAFETY: as many bytes were allocated.
        unsafe { driver.upload(stream, to, &bytes)? };
        driver.destroy_stream(stream);
        Ok(to)
    }

    fn download(driver: &HostDriver, from: Address, words: usize) -> Result<Vec<u32>, BackendError> {
        let stream = driver.create_stream()?;
        let mut bytes = vec![0; 4 * words];
        // SAFETY: the driver checks the bounds.
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
        // SAFETY: the tests give what check.h asks for, or what the driver refuses.
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
        let expected = BackendError::Shape { what: "shared memory of a block", expected: 1024, got: 1025 };
        assert_eq!(launch(&driver, "check_trap", 32, 1025, &[Argument::U32(0)]), Err(expected));
    }

    // The sanitizer ends the process at such a write: scripts/kernels.sh runs this test alone and sees that it does.
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
        // SAFETY: 8 bytes from the fourth lie within the allocation.
        unsafe { driver.zero(stream, Address(at.0 + 4), 8).unwrap() };
        assert_eq!(download(&driver, at, 4).unwrap(), [0xd7d7_d7d7, 0, 0, 0xd7d7_d7d7]);
    }

    #[test]
    fn copies_stay_within_one_allocation() {
        let driver = HostDriver::new(Order::Ascending);
        let stream = driver.create_stream().unwrap();
        let (first, _second) = (driver.allocate(16).unwrap(), driver.allocate(16).unwrap());
        let mut bytes = [0; 17];
        let shape = |op, room| Err(BackendError::Shape { what: op, expected: room, got: 17 });
        // SAFETY: all of these are refused.
        unsafe {
            assert_eq!(driver.upload(stream, first, &bytes), shape("upload", 16));
            assert_eq!(driver.download(stream, &mut bytes, Address(first.0 + 1)), shape("download", 15));
            assert_eq!(driver.zero(stream, Address(first.0 + 16), 17), shape("zero", 0));
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
        // SAFETY: the driver notices that nothing is there.
        unsafe { driver.release(first) };
        assert_eq!(driver.allocate(1), Err(device(INVALID_VALUE, "release")));
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
