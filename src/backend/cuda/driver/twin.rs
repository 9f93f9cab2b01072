//! A twin of NVIDIA's driver library: the same C functions on top of the driver that runs kernels on the CPU, with
//! which tests run `nvidia` and the whole program without a GPU.
//!
//! It is built as an example, `cuda_twin`, and found as `libcuda.so.1` in a folder of `LD_LIBRARY_PATH`. It reads
//! structures by the offsets that NVIDIA's have, not by the declarations of `cudarc`, and is strict: handles must be
//! its own, the context must be current, shared memory must be opted into, and memory that is copied from or to is
//! accessed when the copy runs, which is as late as the stream permits. At the end of the context, nothing that was
//! made in it may be left, and pinned memory must be zero when it is freed; otherwise the process aborts with a line
//! that says what is wrong.
//!
//! The file `fault` next to it is read at each call: `CODE FUNCTION SKIP` makes the function fail with the code after
//! SKIP successful calls. A fourth word limits this: `once`, or a number of calls. With `for-ever`, all later calls of
//! any function fail as well, as after a kernel fault.
#![allow(unsafe_code)]
// Names, parameters and meanings are NVIDIA's.
#![allow(non_snake_case, missing_docs, clippy::missing_safety_doc, clippy::too_many_arguments)]

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use prover_worker::backend::BackendError;
use prover_worker::backend::cuda::driver::host::{self, HostDriver, Order};
use prover_worker::backend::cuda::driver::{Address, Argument, Driver, Event, Graph, Launch, Stream};

const SUCCESS: c_int = 0;
const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const NOT_INITIALIZED: c_int = 3;
const INVALID_DEVICE: c_int = 101;
const INVALID_CONTEXT: c_int = 201;
const PRIMARY_CONTEXT_ACTIVE: c_int = 708;
const INVALID_HANDLE: c_int = 400;
const NOT_FOUND: c_int = 500;
const NOT_READY: c_int = 600;

/// What this library presents: a driver for CUDA 13.0, and a device whose name tells it from NVIDIA's.
const VERSION: c_int = 13_000;
const NAME: &[u8] = b"Twin of a GPU\0";
const CONTEXT: usize = 0xc0_0e;
const MODULE: usize = 0x30_d0;
/// Shared memory that a block gets without opting in, in bytes.
const SHARED_UNASKED: u32 = 48 << 10;
/// Flags: threads that wait for the device sleep; threads that wait for an event sleep; an event has no timing.
const BLOCKING_SYNC: c_uint = 4;
const SLEEPING: c_uint = 1;
const UNTIMED: c_uint = 2;
/// Attribute that sets the dynamic shared memory of a function.
const MAX_SHARED: c_int = 8;

/// Error code of a function.
type Code = c_int;

/// A kernel, and the dynamic shared memory that it may have.
struct Function {
    name: &'static str,
    parameters: Vec<u8>,
    shared: u32,
}

/// A node of a graph that is being built.
struct Node {
    work: Work,
    after: Vec<usize>,
}

enum Work {
    Launch { function: usize, grid: (u32, u32), block: u32, shared: u32, arguments: Vec<Argument> },
    Zero { at: u64, bytes: u64 },
}

/// An event, and the flags that it was created with.
#[derive(Clone, Copy)]
struct Made {
    /// `None` if the event was not recorded yet.
    event: Option<Event>,
    flags: c_uint,
}

#[derive(Default)]
struct State {
    initialised: bool,
    retained: u32,
    /// Whether threads that wait for the device should sleep.
    sleeps: bool,
    loaded: bool,
    handles: usize,
    /// The requested fault, and the number of calls of each function since.
    asked: String,
    calls: HashMap<&'static str, u64>,
    dead: Option<Code>,
    functions: HashMap<usize, Function>,
    allocations: HashMap<u64, usize>,
    pinned: HashMap<usize, Box<[u64]>>,
    streams: HashMap<usize, Stream>,
    events: HashMap<usize, Made>,
    graphs: HashMap<usize, Vec<Node>>,
    runnable: HashMap<usize, Graph>,
}

impl State {
    fn handle(&mut self) -> usize {
        self.handles += 16;
        0x7000_0000 + self.handles
    }

    fn stream(&self, stream: usize) -> Result<Stream, Code> {
        self.streams.get(&stream).copied().ok_or(INVALID_HANDLE)
    }

    fn event(&self, event: usize) -> Result<Option<Event>, Code> {
        Ok(self.made(event)?.event)
    }

    fn made(&self, event: usize) -> Result<Made, Code> {
        self.events.get(&event).copied().ok_or(INVALID_HANDLE)
    }

    /// Returns the event if it has timing.
    fn timed(&self, event: usize) -> Result<Event, Code> {
        let Made { event, flags } = self.made(event)?;
        event.filter(|_| flags & UNTIMED == 0).ok_or(INVALID_HANDLE)
    }

    /// Returns whether all of these bytes are pinned.
    fn is_pinned(&self, at: usize, bytes: usize) -> bool {
        self.pinned.iter().any(|(start, memory)| *start <= at && at + bytes <= start + 8 * memory.len())
    }

    /// Returns the kernel and its arguments if the launch is valid.
    ///
    /// # Safety
    /// `parameters` points to as many pointers as the kernel has parameters, each to a value of the parameter's type.
    unsafe fn arguments(
        &self,
        function: usize,
        threads: [c_uint; 6],
        shared: c_uint,
        parameters: *const *const c_void,
    ) -> Result<(&'static str, Vec<Argument>), Code> {
        let kernel = self.functions.get(&function).ok_or(INVALID_HANDLE)?;
        let [x, y, z, block, others @ ..] = threads;
        let sound = x > 0 && y > 0 && y < 1 << 16 && z == 1 && block > 0 && block <= 1024 && others == [1; 2];
        if !sound || shared > kernel.shared {
            return Err(INVALID_VALUE);
        }
        let argument = |(number, bytes): (usize, &u8)| {
            // SAFETY: the caller guarantees the pointers and the values, which are of the types that
            // the kernel declares.
            unsafe {
                let place = *parameters.add(number);
                match bytes {
                    8 => Argument::Pointer(Address(place.cast::<u64>().read_unaligned())),
                    _ => Argument::U32(place.cast::<u32>().read_unaligned()),
                }
            }
        };
        Ok((kernel.name, kernel.parameters.iter().enumerate().map(argument).collect()))
    }

    /// Lists what is left of what was made in the context.
    fn left(&self) -> String {
        let counts = [
            ("allocations", self.allocations.len()),
            ("pinned memory", self.pinned.len()),
            ("streams", self.streams.len()),
            ("events", self.events.len()),
            ("graphs", self.graphs.len() + self.runnable.len()),
        ];
        let left = counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}"));
        left.collect::<Vec<_>>().join(", ")
    }
}

fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the device. Its calls may take long, so the state is not locked during them.
fn device() -> &'static HostDriver {
    static DEVICE: OnceLock<HostDriver> = OnceLock::new();
    DEVICE.get_or_init(|| HostDriver::new(Order::Random(17)))
}

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Reports what a program did that the driver would not forgive, or not notice, and aborts.
fn refuse(what: &str) -> ! {
    eprintln!("twin of the CUDA driver: {what}");
    std::process::abort()
}

/// Returns the folder that this library was loaded from.
fn folder() -> Option<&'static PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let path = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
        path.filter(|path| path.ends_with("/libcuda.so.1"))
            .map(|path| PathBuf::from(path).parent().map(PathBuf::from))
            .next()?
    };
    FOLDER.get_or_init(find).as_ref()
}

/// Returns the requested fault if this call is to fail.
fn fault(state: &mut State, function: &'static str) -> Option<Code> {
    let text = std::fs::read_to_string(folder()?.join("fault")).unwrap_or_default();
    if text != state.asked {
        state.calls.clear();
        state.asked.clone_from(&text);
    }
    let calls = state.calls.entry(function).or_default();
    *calls += 1;
    let words: Vec<&str> = text.split_whitespace().collect();
    let [code, name, skip, how @ ..] = words.as_slice() else { return None };
    let (code, skip): (_, u64) = (code.parse().ok()?, skip.parse().ok()?);
    let times = match how {
        ["once"] => Some(1),
        [times] => times.parse().ok(),
        _ => None,
    };
    if *name != function || *calls <= skip || times.is_some_and(|n: u64| *calls > skip + n) {
        return None;
    }
    if how == ["for-ever"] {
        state.dead = Some(code);
    }
    Some(code)
}

fn code(error: BackendError) -> Code {
    match error {
        BackendError::OutOfMemory { .. } => OUT_OF_MEMORY,
        BackendError::Device { code, .. } if code != 0 => code as Code,
        _ => INVALID_VALUE,
    }
}

/// Runs a function that needs no context.
fn anywhere(function: &'static str, work: impl FnOnce(&mut State) -> Result<(), Code>) -> Code {
    let mut state = state();
    if let Some(code) = state.dead.or_else(|| fault(&mut state, function)) {
        return code;
    }
    if !state.initialised && !["cuInit", "cuDriverGetVersion", "cuGetErrorName"].contains(&function) {
        return NOT_INITIALIZED;
    }
    work(&mut state).err().unwrap_or(SUCCESS)
}

/// Runs a function that needs the context to be current on its thread.
fn within(function: &'static str, work: impl FnOnce(&mut State) -> Result<(), Code>) -> Code {
    anywhere(function, |state| if CURRENT.get() == CONTEXT { work(state) } else { Err(INVALID_CONTEXT) })
}

/// Like `within`, with work on the device that may take long: what `find` returns is all that it needs of the state.
fn on_device<T>(
    function: &'static str,
    find: impl FnOnce(&mut State) -> Result<T, Code>,
    work: impl FnOnce(T) -> Result<(), BackendError>,
) -> Code {
    let mut found = None;
    let failed = within(function, |state| {
        found = Some(find(state)?);
        Ok(())
    });
    match found {
        Some(found) => work(found).err().map_or(SUCCESS, code),
        None => failed,
    }
}

/// # Safety
/// `to` is null or a place for a value.
unsafe fn put<T>(to: *mut T, value: T) -> Result<(), Code> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: `to` is not null, and the caller guarantees the place.
    unsafe { to.write(value) };
    Ok(())
}

// SAFETY of everything below: each function has the name, the parameters and the meaning of NVIDIA's, whose
// callers know that pointers must be places for results, or arrays of the stated length. No other library of the
// process has these names.

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: c_uint) -> Code {
    anywhere("cuInit", |state| {
        state.initialised = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    // SAFETY: see above.
    anywhere("cuDriverGetVersion", |_| unsafe { put(version, VERSION) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: c_int, name: *mut *const c_char) -> Code {
    let known = match code {
        SUCCESS => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        _ => c"CUDA_ERROR_OF_THE_TWIN",
    };
    // SAFETY: see above.
    unsafe { put(name, known.as_ptr()) }.err().unwrap_or(SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    // SAFETY: see above.
    anywhere("cuDeviceGetCount", |_| unsafe { put(count, 1) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    // SAFETY: see above.
    anywhere("cuDeviceGet", |_| if ordinal == 0 { unsafe { put(device, 0) } } else { Err(INVALID_DEVICE) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, bytes: c_int, device: c_int) -> Code {
    anywhere("cuDeviceGetName", |_| {
        if device != 0 || (bytes as usize) < NAME.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: see above; there is space for the name.
        unsafe { name.cast::<u8>().copy_from_nonoverlapping(NAME.as_ptr(), NAME.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _: c_int) -> Code {
    let properties = device().properties();
    anywhere("cuDeviceGetAttribute", |_| {
        let known = match attribute {
            // By their numbers in NVIDIA's header: multiprocessors, compute capability, shared memory that a block may
            // request, clock rates, bus width and cache.
            16 => properties.multiprocessors,
            75 => properties.capability.0,
            76 => properties.capability.1,
            97 => properties.shared_per_block,
            13 | 36 => 1_000_000,
            37 => 5120,
            38 => 50 << 20,
            _ => return Err(INVALID_VALUE),
        };
        // SAFETY: see above.
        unsafe { put(value, known as c_int) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _: c_int) -> Code {
    // SAFETY: see above.
    anywhere("cuDeviceTotalMem_v2", |_| unsafe { put(bytes, device().properties().memory as usize) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) -> Code {
    anywhere("cuDevicePrimaryCtxSetFlags_v2", |state| match (device, flags) {
        (0, BLOCKING_SYNC) if state.retained == 0 => {
            state.sleeps = true;
            Ok(())
        }
        // Threads may already be waiting in a context that is retained.
        (0, BLOCKING_SYNC) => Err(PRIMARY_CONTEXT_ACTIVE),
        _ => Err(INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> Code {
    anywhere("cuDevicePrimaryCtxRetain", |state| {
        if device != 0 {
            return Err(INVALID_DEVICE);
        }
        state.retained += 1;
        // SAFETY: see above.
        unsafe { put(context, CONTEXT) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_: c_int) -> Code {
    anywhere("cuDevicePrimaryCtxRelease_v2", |state| {
        state.retained = state.retained.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        state.sleeps &= state.retained > 0;
        let left = state.left();
        if state.retained == 0 && !left.is_empty() {
            refuse(&format!("the context ends, but these are left: {left}"));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: usize) -> Code {
    anywhere("cuCtxSetCurrent", |state| {
        if context != CONTEXT || state.retained == 0 {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.set(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Code {
    on_device("cuCtxSynchronize", |_| Ok(()), |()| device().settle())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut usize,
    image: *const c_void,
    options: c_uint,
    names: *mut c_int,
    values: *mut *mut c_void,
) -> Code {
    within("cuModuleLoadDataEx", |state| {
        if image.is_null() || (options > 0 && (names.is_null() || values.is_null())) {
            return Err(INVALID_VALUE);
        }
        state.loaded = true;
        // SAFETY: see above.
        unsafe { put(module, MODULE) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: usize) -> Code {
    within("cuModuleUnload", |state| {
        if module != MODULE || !std::mem::take(&mut state.loaded) {
            return Err(INVALID_HANDLE);
        }
        state.functions.clear();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) -> Code {
    within("cuModuleGetFunction", |state| {
        if module != MODULE || !state.loaded {
            return Err(INVALID_HANDLE);
        }
        // SAFETY: see above: a name is NUL-terminated.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| NOT_FOUND)?;
        let name = host::kernels().into_iter().find(|kernel| *kernel == name).ok_or(NOT_FOUND)?;
        let handle = state.handle();
        let kernel = Function { name, parameters: host::parameters(name), shared: SHARED_UNASKED };
        state.functions.insert(handle, kernel);
        // SAFETY: see above.
        unsafe { put(function, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> Code {
    let most = device().properties().shared_per_block;
    within("cuFuncSetAttribute", |state| {
        let kernel = state.functions.get_mut(&function).ok_or(INVALID_HANDLE)?;
        match (attribute, u32::try_from(value)) {
            (MAX_SHARED, Ok(value)) if value <= most => kernel.shared = value,
            _ => return Err(INVALID_VALUE),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: usize,
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> Code {
    on_device(
        "cuLaunchKernel",
        |state| {
            let threads = [grid_x, grid_y, grid_z, block_x, block_y, block_z];
            if !extra.is_null() {
                return Err(INVALID_VALUE);
            }
            // SAFETY: see above.
            let (kernel, arguments) = unsafe { state.arguments(function, threads, shared, parameters)? };
            Ok((state.stream(stream)?, kernel, arguments))
        },
        |(stream, kernel, arguments)| {
            let launch = Launch { kernel, grid: (grid_x, grid_y), block: block_x, shared, arguments: &arguments };
            // SAFETY: the caller guarantees what the arguments point to; the device checks each.
            unsafe { device().launch(stream, launch) }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    within("cuMemGetInfo_v2", |_| {
        // SAFETY: see above.
        unsafe {
            put(free, device().free_memory().map_err(code)? as usize)?;
            put(total, device().properties().memory as usize)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(at: *mut u64, bytes: usize) -> Code {
    within("cuMemAlloc_v2", |state| {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let Address(address) = device().allocate(bytes as u64).map_err(code)?;
        state.allocations.insert(address, bytes);
        // SAFETY: see above.
        unsafe { put(at, address) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(at: u64) -> Code {
    on_device(
        "cuMemFree_v2",
        |state| state.allocations.remove(&at).ok_or(INVALID_VALUE),
        |_| {
            // SAFETY: it came from `allocate`, and was not released before.
            unsafe { device().release(Address(at)) };
            Ok(())
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, _: c_uint) -> Code {
    within("cuMemHostAlloc", |state| {
        // The initial content is undefined.
        let mut memory = vec![0xd7d7_d7d7_d7d7_d7d7_u64; bytes.div_ceil(8)].into_boxed_slice();
        let at = memory.as_mut_ptr();
        state.pinned.insert(at as usize, memory);
        // SAFETY: see above.
        unsafe { put(to, at.cast()) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(at: *mut c_void) -> Code {
    on_device(
        "cuMemFreeHost",
        |state| state.pinned.remove(&(at as usize)).ok_or(INVALID_VALUE),
        |memory| {
            device().settle()?;
            if memory.iter().any(|word| *word != 0) {
                refuse("pinned memory that is freed is not zero: it may contain secrets");
            }
            Ok(())
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) -> Code {
    on_device(
        "cuMemcpyHtoDAsync_v2",
        // Of other memory, CUDA does not say when it is read.
        |state| if state.is_pinned(from as usize, bytes) { state.stream(stream) } else { Err(INVALID_VALUE) },
        // SAFETY: this is pinned memory, which is not freed before all work has ended.
        |stream| unsafe { device().upload_later(stream, Address(to), from.cast(), bytes as u64) },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) -> Code {
    on_device(
        "cuMemcpyDtoHAsync_v2",
        |state| Ok((state.stream(stream)?, state.sleeps && !state.is_pinned(to as usize, bytes))),
        |(stream, waits)| {
            // NVIDIA's function copies to memory that is not pinned before it returns, and does not promise to
            // sleep until it can.
            if waits && !device().is_done(stream)? {
                refuse("a copy to memory that is not pinned waits for its stream, but waiting threads should sleep");
            }
            // SAFETY: see above: there is space for `bytes` bytes until the stream has been waited for.
            unsafe { device().download_later(stream, to.cast(), Address(from), bytes as u64) }
        },
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: usize) -> Code {
    on_device(
        "cuMemsetD8Async",
        |state| if value == 0 && bytes > 0 { state.stream(stream) } else { Err(INVALID_VALUE) },
        // SAFETY: the device checks that the bytes lie in one allocation.
        |stream| unsafe { device().zero(stream, Address(at), bytes as u64) },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut usize, flags: c_uint) -> Code {
    within("cuStreamCreate", |state| {
        // Streams without this flag are ordered with the default stream.
        if flags != 1 {
            return Err(INVALID_VALUE);
        }
        let made = device().create_stream().map_err(code)?;
        let handle = state.handle();
        state.streams.insert(handle, made);
        // SAFETY: see above.
        unsafe { put(stream, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: usize) -> Code {
    on_device(
        "cuStreamDestroy_v2",
        |state| state.streams.remove(&stream).ok_or(INVALID_HANDLE),
        |stream| {
            device().destroy_stream(stream);
            Ok(())
        },
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: usize) -> Code {
    on_device("cuStreamSynchronize", |state| state.stream(stream), |stream| device().synchronize(stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) -> Code {
    on_device(
        "cuStreamWaitEvent",
        |state| if flags == 0 { Ok((state.stream(stream)?, state.event(event)?)) } else { Err(INVALID_VALUE) },
        // An event that was not recorded counts as having happened.
        |(stream, event)| event.map_or(Ok(()), |event| device().wait(stream, event)),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut usize, flags: c_uint) -> Code {
    within("cuEventCreate", |state| {
        if flags & !(SLEEPING | UNTIMED) != 0 {
            return Err(INVALID_VALUE);
        }
        let handle = state.handle();
        state.events.insert(handle, Made { event: None, flags });
        // SAFETY: see above.
        unsafe { put(event, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: usize, stream: usize) -> Code {
    within("cuEventRecord", |state| {
        let (before, stream) = (state.made(event)?, state.stream(stream)?);
        let recorded = device().record(stream).map_err(code)?;
        before.event.into_iter().for_each(|before| device().destroy_event(before));
        state.events.insert(event, Made { event: Some(recorded), ..before });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: usize) -> Code {
    within("cuEventQuery", |state| match state.event(event)? {
        Some(event) if !device().has_happened(event).map_err(code)? => Err(NOT_READY),
        _ => Ok(()),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: usize) -> Code {
    on_device(
        "cuEventSynchronize",
        |state| {
            let Made { event, flags } = state.made(event)?;
            if state.sleeps && flags & SLEEPING == 0 {
                refuse("a thread that waits for this event spins, whatever the context's setting, but should sleep");
            }
            Ok(event)
        },
        |event| {
            let Some(event) = event else { return Ok(()) };
            let stream = device().create_stream()?;
            let waited = device().wait(stream, event).and_then(|()| device().synchronize(stream));
            device().destroy_stream(stream);
            waited
        },
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> Code {
    within("cuEventDestroy_v2", |state| {
        let made = state.events.remove(&event).ok_or(INVALID_HANDLE)?;
        made.event.into_iter().for_each(|event| device().destroy_event(event));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(ms: *mut f32, from: usize, to: usize) -> Code {
    within("cuEventElapsedTime_v2", |state| {
        let (from, to) = (state.timed(from)?, state.timed(to)?);
        // SAFETY: see above.
        unsafe { put(ms, device().elapsed(from, to).map_err(code)?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphCreate(graph: *mut usize, flags: c_uint) -> Code {
    within("cuGraphCreate", |state| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let handle = state.handle();
        state.graphs.insert(handle, Vec::new());
        // SAFETY: see above.
        unsafe { put(graph, handle) }
    })
}

/// Adds a node to a graph. The handle of a node is its number, from 1 on, added to the graph's handle times 2^16.
///
/// # Safety
/// Those of the two functions that call it.
unsafe fn add(
    state: &mut State,
    (node, graph): (*mut usize, usize),
    (before, count): (*const usize, usize),
    work: Work,
) -> Result<(), Code> {
    let nodes = state.graphs.get_mut(&graph).ok_or(INVALID_HANDLE)?;
    // SAFETY: the caller guarantees `count` handles at `before`.
    let before = if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(before, count) } };
    let number = |handle: &usize| {
        let number = handle.checked_sub(graph << 16).filter(|number| (1..=nodes.len()).contains(number));
        number.map(|number| number - 1).ok_or(INVALID_VALUE)
    };
    let mut after = before.iter().map(number).collect::<Result<Vec<_>, _>>()?;
    after.sort_unstable();
    // NVIDIA's driver refuses duplicate edges.
    if after.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(INVALID_VALUE);
    }
    nodes.push(Node { work, after });
    let handle = (graph << 16) + nodes.len();
    // SAFETY: the caller guarantees the place.
    unsafe { put(node, handle) }
}

/// Reads a `CUDA_KERNEL_NODE_PARAMS` of the second version, by offsets.
///
/// # Safety
/// There is one at `at`.
unsafe fn kernel_node(state: &State, at: *const u8) -> Result<Work, Code> {
    // SAFETY: the caller guarantees the 72 bytes.
    let (function, numbers, parameters, others) = unsafe {
        let numbers: [u32; 7] = std::array::from_fn(|i| at.add(8 + 4 * i).cast::<u32>().read());
        let pointer = |offset: usize| at.add(offset).cast::<usize>().read();
        (pointer(0), numbers, pointer(40), [pointer(48), pointer(56), pointer(64)])
    };
    let [threads @ .., shared] = numbers;
    // Neither `extra`, nor a kernel without a context, nor another context is supported.
    if others[..2] != [0; 2] || ![0, CONTEXT].contains(&others[2]) {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller guarantees the parameters.
    let (_, arguments) = unsafe { state.arguments(function, threads, shared, parameters as *const *const c_void)? };
    Ok(Work::Launch { function, grid: (threads[0], threads[1]), block: threads[3], shared, arguments })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddKernelNode_v2(
    node: *mut usize,
    graph: usize,
    before: *const usize,
    count: usize,
    params: *const u8,
) -> Code {
    within("cuGraphAddKernelNode_v2", |state| {
        // SAFETY: see above.
        unsafe {
            let work = kernel_node(state, params)?;
            add(state, (node, graph), (before, count), work)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddMemsetNode(
    node: *mut usize,
    graph: usize,
    before: *const usize,
    count: usize,
    params: *const u8,
    context: usize,
) -> Code {
    within("cuGraphAddMemsetNode", |state| {
        // SAFETY: see above: `CUDA_MEMSET_NODE_PARAMS`, 40 bytes.
        let (at, value, size, width, height) = unsafe {
            let wide = |offset: usize| params.add(offset).cast::<u64>().read();
            let narrow = |offset: usize| params.add(offset).cast::<u32>().read();
            (wide(0), narrow(16), u64::from(narrow(20)), wide(24), wide(32))
        };
        let sound = value == 0 && [1, 2, 4].contains(&size) && at % size == 0 && width > 0 && height == 1;
        if !sound || context != CONTEXT {
            return Err(INVALID_VALUE);
        }
        // SAFETY: see above.
        unsafe { add(state, (node, graph), (before, count), Work::Zero { at, bytes: size * width }) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(runnable: *mut usize, graph: usize, flags: u64) -> Code {
    within("cuGraphInstantiateWithFlags", |state| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let made = made_of(state, graph)?;
        let handle = state.handle();
        state.runnable.insert(handle, made);
        // SAFETY: see above.
        unsafe { put(runnable, handle) }
    })
}

/// Returns the device's graph of these nodes: each is put into a stream of its own, which waits for
/// the nodes before it.
fn made_of(state: &State, graph: usize) -> Result<Graph, Code> {
    let nodes = state.graphs.get(&graph).ok_or(INVALID_HANDLE)?;
    let stream = device().create_stream().map_err(code)?;
    let streams = nodes.iter().map(|_| device().create_stream()).collect::<Result<Vec<_>, _>>().map_err(code)?;
    let made = device().graph(stream, &mut || {
        let begun = device().record(stream)?;
        let mut done = Vec::new();
        for (node, own) in nodes.iter().zip(&streams) {
            device().wait(*own, begun)?;
            node.after.iter().try_for_each(|before| device().wait(*own, done[*before]))?;
            // SAFETY: the caller guarantees what the work points to; the device checks it when the work runs.
            unsafe {
                match &node.work {
                    Work::Zero { at, bytes } => device().zero(*own, Address(*at), *bytes)?,
                    Work::Launch { function, grid, block, shared, arguments } => {
                        let invalid = BackendError::Device { op: "graph", code: INVALID_HANDLE.into() };
                        let kernel = state.functions.get(function).ok_or(invalid)?.name;
                        let (grid, block, shared) = (*grid, *block, *shared);
                        device().launch(*own, Launch { kernel, grid, block, shared, arguments })?;
                    }
                }
            }
            done.push(device().record(*own)?);
        }
        done.iter().try_for_each(|event| device().wait(stream, *event))
    });
    streams.into_iter().chain([stream]).for_each(|stream| device().destroy_stream(stream));
    made.map_err(code)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(runnable: usize, stream: usize) -> Code {
    on_device(
        "cuGraphLaunch",
        |state| Ok((state.runnable.get(&runnable).copied().ok_or(INVALID_HANDLE)?, state.stream(stream)?)),
        // SAFETY: the caller guarantees what the graph's work points to; the device checks it when the work runs.
        |(graph, stream)| unsafe { device().run(stream, graph) },
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: usize) -> Code {
    within("cuGraphDestroy", |state| state.graphs.remove(&graph).map(drop).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(runnable: usize) -> Code {
    within("cuGraphExecDestroy", |state| {
        let graph = state.runnable.remove(&runnable).ok_or(INVALID_HANDLE)?;
        device().destroy_graph(graph);
        Ok(())
    })
}
