//! From NVIDIA's library to a GPU with our kernels loaded, or to one sentence that says why there is none.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::{ptr, thread};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::super::Properties;
use super::{Card, NvidiaDriver};
use crate::backend::Unusable;

/// Output of build.rs for `kernels/`: `FATBIN`, which has machine code for the architectures `ARCHS`
/// and PTX of the oldest.
mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Number of cores per GPU below which a thread that waits for a GPU sleeps.
const MIN_CORES_PER_GPU: usize = 4;

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

pub(super) type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> CUresult;

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
    /// Opens the GPU, or returns why it cannot be used, in one sentence. Takes minutes if the driver has to compile the
    /// kernels.
    pub fn open(self) -> Result<NvidiaDriver, Unusable> {
        let Self { ordinal, cuda, fatbin, elapsed, sleeps } = self;
        let (device, properties, mut card) = query(ordinal, cuda).map_err(Unusable::Failed)?;
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
        let not_opened = |why| Unusable::Failed(format!("{name} could not be opened: {why}"));
        explained(retained).map_err(not_opened)?;
        // SAFETY: the context was retained above.
        let loaded = explained(unsafe { sys::cuCtxSetCurrent(context) })
            .map_err(not_opened)
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
            Err(why) => Err(Unusable::Failed(format!("{name} did not load this build's device code: {why}"))),
        }
    }
}

impl NvidiaDriver {
    /// Returns every GPU that the driver lists, in its order, or a one-sentence reason if there is no driver, no
    /// GPU or no device code.
    pub fn list() -> Result<Vec<ListedGpu>, Unusable> {
        Self::list_for(thread::available_parallelism().map_or(1, |n| n.get()))
    }

    /// Like [`NvidiaDriver::list`], for a process that has `cores` cores.
    pub fn list_for(cores: usize) -> Result<Vec<ListedGpu>, Unusable> {
        let elapsed = library().map_err(Unusable::Absent)?;
        let count = init()?;
        let sleeps = sleeps(cores, count);
        let cuda = driver_version().map_err(Unusable::Failed)?;
        let Some(fatbin) = kernels::FATBIN else {
            return Err("this build has no device code (it was built with CUDA_ARCHS=none)".into());
        };
        Ok((0..count).map(|ordinal| ListedGpu { ordinal, cuda, fatbin, elapsed, sleeps }).collect())
    }

    /// Like [`NvidiaDriver::list`], but opens the GPUs, one after another.
    pub fn all() -> Result<Vec<Result<Self, Unusable>>, Unusable> {
        Ok(Self::list()?.into_iter().map(ListedGpu::open).collect())
    }
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
fn init() -> Result<u32, Unusable> {
    let none = || Unusable::from("the NVIDIA driver shows no GPU");
    let failed =
        |what: &'static str| move |why: String| Unusable::Failed(format!("the NVIDIA driver did not {what}: {why}"));
    // SAFETY: the call takes no pointers.
    let code = unsafe { sys::cuInit(0) };
    match code {
        CUresult::CUDA_ERROR_NO_DEVICE => return Err(none()),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            return Err("the libcuda.so found is the CUDA toolkit's stub, not an NVIDIA driver's".into());
        }
        code => explained(code).map_err(failed("start"))?,
    }
    let mut count = 0;
    // SAFETY: `count` is a place for the result.
    explained(unsafe { sys::cuDeviceGetCount(&mut count) }).map_err(failed("count its GPUs"))?;
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
fn load(fatbin: &[u8], properties: &Properties, cuda: (u32, u32)) -> Result<sys::CUmodule, Unusable> {
    if !has_code(kernels::ARCHS, properties.capability) {
        return Err(Unusable::Absent(no_code(kernels::ARCHS, properties)));
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
            Unusable::Absent(format!(
                "the driver of {name} (up to CUDA {major}.{minor}) is too old for this build's device code: {log}"
            ))
        }
        _ => Unusable::Failed(format!("{name} did not load this build's device code: {log}")),
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
    use super::*;

    #[test]
    fn without_a_driver_there_is_a_sentence_and_no_panic() {
        // SAFETY: NVIDIA's library is loaded, or there is none.
        let present = unsafe { sys::is_culib_present() };
        let found = NvidiaDriver::all().map(|devices| devices.len());
        if present {
            assert!(found.as_ref().map_or_else(|why| !why.to_string().is_empty(), |devices| *devices > 0), "{found:?}");
        } else {
            assert_eq!(found, Err("no NVIDIA driver: its library, libcuda.so.1, was not found".into()));
        }
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
