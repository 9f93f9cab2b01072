//! Finds the devices and chooses which to use.

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cpu::CpuBackend;
use super::{Backend, BackendError, DeviceInfo, DeviceKind, Plainer, selftest};
use crate::model::{BackendChoice, Instructions};

/// Time limit for the driver to list its GPUs, and then for opening them: for a GPU newer than this build, the driver
/// assembles the kernels, which takes minutes.
#[cfg(feature = "cuda")]
const OPEN_TIMEOUT: Duration = Duration::from_secs(600);
/// Time limit for the self-test of a GPU, which normally takes milliseconds: a longer one hangs.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(60);

const NOT_COMPILED: &str = "not compiled in";
const NOT_REQUESTED: &str = "not probed because another kind was requested";

/// Where to find ICICLE, and which of its devices to use.
#[derive(Clone, Debug, Default)]
pub struct IcicleOptions {
    /// This program's executable, which is run once more for each device; without it there are no devices.
    pub program: Option<PathBuf>,
    /// Folder of ICICLE's libraries; by default, where its installer puts them.
    pub libraries: Option<PathBuf>,
    /// Folder of its backends; by default, `backend` in the folder of the libraries.
    pub backends: Option<PathBuf>,
    /// Type of its devices, such as `CUDA`; by default, the first preferred type with any devices.
    pub kind: Option<String>,
    /// Environment variables to withhold from the device processes.
    pub withheld: Vec<&'static str>,
}

/// How to compute proofs on NVIDIA GPUs.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Whether the work of a small proof may be launched as one CUDA graph.
    pub graphs: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self { graphs: true }
    }
}

/// How to compute proofs on the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads that a proof may use; by default, the number of cores.
    pub threads: Option<usize>,
    /// Instruction set.
    pub instructions: Instructions,
    /// Bytes for multiples of the points of frequently used keys ([`CpuBackend::with_multiples`]).
    pub multiples: u64,
}

/// What was found out about a device, or about a kind without any devices.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// Its kind.
    pub kind: DeviceKind,
    /// The device, if there is one.
    pub device: Option<DeviceInfo>,
    /// Whether it is used.
    pub used: bool,
    /// One line: that it passed its self-test, or why it is not used.
    pub status: String,
}

/// Why a device is not used, or why none of a kind is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is none that this program can use: no driver, no device, no code for it in this build; or it was not
    /// looked for. A restart changes nothing.
    #[error("{0}")]
    Absent(String),
    /// There is one, or may be, but it or its driver fails.
    #[error("{0}")]
    Failed(String),
}

impl From<&str> for Unusable {
    fn from(why: &str) -> Self {
        Self::Absent(why.to_owned())
    }
}

impl From<String> for Unusable {
    fn from(why: String) -> Self {
        Self::Absent(why)
    }
}

/// A device that is there and cannot be used, or all devices of a kind, if their driver fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostDevice {
    /// Its label, such as `cuda:0`; that of its kind, if nothing is known of single devices.
    pub label: String,
    /// Why it cannot be used.
    pub why: String,
}

/// The devices to use, best first; the CPU is always among them, last, as the fallback.
pub struct Discovery {
    /// Devices that passed their self-test.
    pub devices: Vec<Arc<dyn Backend>>,
    /// Everything that was considered, for display.
    pub report: Vec<DeviceReport>,
    /// Devices that are there and were asked for, but do not work.
    pub lost: Vec<LostDevice>,
    /// One line: what was found and chosen.
    pub summary: String,
}

/// A device, or why it cannot be used.
pub(super) type OpenedDevice = Result<Arc<dyn Backend>, Unusable>;

/// Devices of a kind in their driver's order; or why there are none.
pub(super) type ProbeResult = Result<Vec<OpenedDevice>, Unusable>;

/// Finds devices and tests those the choice permits.
///
/// Fails if the requested kind cannot be used, if the CPU lacks the requested instructions, or if the CPU fails its
/// self-test.
pub fn discover(
    choice: BackendChoice,
    cpu: &CpuOptions,
    cuda: &CudaOptions,
    icicle: &IcicleOptions,
) -> Result<Discovery, BackendError> {
    let processor = cpu_device(cpu)?;
    let gpus = match choice {
        BackendChoice::Auto | BackendChoice::Cuda => cuda_devices(cuda),
        // Starting a driver takes time and memory.
        BackendChoice::Icicle | BackendChoice::Cpu if cfg!(feature = "cuda") => Err(NOT_REQUESTED.into()),
        BackendChoice::Icicle | BackendChoice::Cpu => Err(NOT_COMPILED.into()),
    };
    choose(choice, gpus, || icicle_devices(icicle), processor, SELF_TEST_TIMEOUT)
}

/// Tests the devices and puts them in order. ICICLE is only probed if its devices would be used: next to `cuda`, they
/// would be the same GPUs again.
fn choose(
    choice: BackendChoice,
    gpus: ProbeResult,
    icicle: impl FnOnce() -> ProbeResult,
    (cpu, status): (Arc<dyn Backend>, String),
    limit: Duration,
) -> Result<Discovery, BackendError> {
    let none = |kind, status| DeviceReport { kind, device: None, used: false, status };
    let mut lost = Vec::new();
    let mut test_kind = |kind: DeviceKind, found: ProbeResult, nothing: &str| match found {
        Ok(found) if found.is_empty() => (Vec::new(), vec![none(kind, nothing.to_owned())]),
        Ok(found) => {
            let (usable, report, failed) = self_test_all(kind, found, limit);
            lost.extend(failed);
            (usable, report)
        }
        Err(Unusable::Absent(why)) => (Vec::new(), vec![none(kind, why)]),
        Err(Unusable::Failed(why)) => {
            lost.push(LostDevice { label: kind.as_str().to_owned(), why: why.clone() });
            (Vec::new(), vec![none(kind, why)])
        }
    };
    let (mut devices, mut report) = test_kind(DeviceKind::Cuda, gpus, "no GPU found");
    let icicle = match choice {
        _ if !cfg!(feature = "icicle") => Err(NOT_COMPILED.into()),
        BackendChoice::Auto if !devices.is_empty() => Err("not probed because cuda takes precedence".into()),
        BackendChoice::Auto | BackendChoice::Icicle => icicle(),
        BackendChoice::Cuda | BackendChoice::Cpu => Err(NOT_REQUESTED.into()),
    };
    let (usable, tested) = test_kind(DeviceKind::Icicle, icicle, "no device found");
    if !usable.is_empty() {
        // They may be the same GPUs.
        lost.retain(|device| device.label.starts_with(DeviceKind::Icicle.as_str()));
    }
    devices.extend(usable);
    report.extend(tested);
    for (kind, asked) in [(DeviceKind::Cuda, BackendChoice::Cuda), (DeviceKind::Icicle, BackendChoice::Icicle)] {
        if choice == asked && report.iter().all(|r| r.kind != kind || !r.used) {
            let why: Vec<_> = report.iter().filter(|r| r.kind == kind).map(|r| r.status.as_str()).collect();
            return Err(BackendError::Unavailable { device: kind.as_str().into(), why: why.join("; ") });
        }
    }
    devices.push(cpu);
    report.push(DeviceReport { kind: DeviceKind::Cpu, device: devices.last().map(info), used: true, status });
    Ok(Discovery { summary: summary(&devices, &report), devices, report, lost })
}

fn info(device: &Arc<dyn Backend>) -> DeviceInfo {
    device.device().clone()
}

/// One line: what is used, and why nothing else is.
fn summary(devices: &[Arc<dyn Backend>], report: &[DeviceReport]) -> String {
    let named = |d: &Arc<dyn Backend>| format!("{}, {}", d.device().label(), d.device().name);
    let (first, fallback) = match devices {
        [gpus @ .., cpu] if !gpus.is_empty() => (gpus, Some(cpu)),
        all => (all, None),
    };
    let first = first.iter().map(named).collect::<Vec<_>>().join(", and ");
    let fallback = fallback.map(|cpu| format!("{} is the fallback", cpu.device().label()));
    let others = report.iter().filter(|r| !r.used).map(|r| {
        let label = r.device.as_ref().map_or_else(|| r.kind.as_str().to_owned(), DeviceInfo::label);
        format!("{label}: {}", r.status)
    });
    [format!("proving on {first}")].into_iter().chain(fallback).chain(others).collect::<Vec<_>>().join("; ")
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices(_: &CudaOptions) -> ProbeResult {
    Err(NOT_COMPILED.into())
}

/// The GPUs that NVIDIA's driver lists.
#[cfg(feature = "cuda")]
fn cuda_devices(options: &CudaOptions) -> ProbeResult {
    use super::cuda::CudaBackend;
    use super::cuda::driver::nvidia::NvidiaDriver;

    let listed = wait_for(spawn_detached(NvidiaDriver::list), OPEN_TIMEOUT);
    let listed = listed.map_err(|why| Unusable::Failed(format!("looking for GPUs {why}")))??;
    let graphs = options.graphs;
    let open = listed.into_iter().map(|gpu| {
        move || -> OpenedDevice {
            let gpu = CudaBackend::new(Arc::new(gpu.open()?));
            Ok(Arc::new(if graphs { gpu } else { gpu.without_graphs() }))
        }
    });
    Ok(open_all(open, OPEN_TIMEOUT))
}

/// Opens devices concurrently, each on its own thread, so that one that hangs does not affect the others.
#[cfg(any(test, feature = "cuda"))]
fn open_all<F>(open: impl Iterator<Item = F>, limit: Duration) -> Vec<OpenedDevice>
where
    F: FnOnce() -> OpenedDevice + Send + 'static,
{
    let started: Vec<_> = open.map(spawn_detached).collect();
    let deadline = Instant::now() + limit;
    let each = started.into_iter().map(|opening| {
        let opened = wait_for(opening, deadline.saturating_duration_since(Instant::now()));
        opened.unwrap_or_else(|why| Err(Unusable::Failed(format!("opening it {why}"))))
    });
    each.collect()
}

/// ICICLE's devices.
#[cfg(feature = "icicle")]
fn icicle_devices(wanted: &IcicleOptions) -> ProbeResult {
    super::icicle::devices(&super::icicle::Options::find(wanted)?)
}

#[cfg(not(feature = "icicle"))]
fn icicle_devices(_: &IcicleOptions) -> ProbeResult {
    Err(NOT_COMPILED.into())
}

/// Returns the devices of a kind that pass their self-test, a report on all of them, and those that fail. They are
/// tested concurrently, each on its own thread, so that one that fails, kills its context or hangs does not affect the
/// others.
fn self_test_all(
    kind: DeviceKind,
    gpus: Vec<OpenedDevice>,
    limit: Duration,
) -> (Vec<Arc<dyn Backend>>, Vec<DeviceReport>, Vec<LostDevice>) {
    let test = |gpu: Arc<dyn Backend>| {
        let (info, plainer) = (info(&gpu), gpu.plainer());
        // The advanced features may be what kills or hangs the device, after which this process cannot try the plainer
        // mode.
        let advice = plainer.map_or_else(String::new, |plainer| format!("; it may pass with {}", plainer.setting));
        // A device that fails is also closed on that thread: closing may hang like any other operation.
        (info, advice, spawn_detached(move || self_test(gpu)))
    };
    let started: Vec<_> = gpus.into_iter().map(|gpu| gpu.map(test)).collect();
    let deadline = Instant::now() + limit;
    let (mut usable, mut report, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for (ordinal, gpu) in (0..).zip(started) {
        let absent = matches!(gpu, Err(Unusable::Absent(_)));
        let (device, passed) = match gpu {
            Ok((info, advice, test)) => {
                let passed = match wait_for(test, deadline.saturating_duration_since(Instant::now())) {
                    Ok(Ok(gpu)) => Ok(gpu),
                    Ok(Err(BackendError::Unavailable { why, .. })) => Err(why),
                    Ok(Err(why)) => Err(format!("its self-test failed: {why}{advice}")),
                    Err(why) => Err(format!("its self-test {why}{advice}")),
                };
                (Some(info), passed)
            }
            Err(why) => (None, Err(format!("GPU {ordinal}: {why}"))),
        };
        let used = passed.is_ok();
        let (backend, status) = match passed {
            Ok((gpu, status)) => (Some(gpu), status),
            Err(why) => (None, why),
        };
        if !used && !absent {
            lost.push(LostDevice { label: kind.label(ordinal), why: status.clone() });
        }
        usable.extend(backend);
        report.push(DeviceReport { kind, device, used, status });
    }
    (usable, report, lost)
}

/// Returns the device or its plainer form, whichever passes the self-test, and one line about it.
fn self_test(gpu: Arc<dyn Backend>) -> Result<(Arc<dyn Backend>, String), BackendError> {
    let Err(why) = selftest::run(gpu.as_ref()) else { return Ok((gpu, "self-test passed".into())) };
    let Some(Plainer { backend, without, .. }) = gpu.plainer() else { return Err(why) };
    // The first failure tells more than the second.
    selftest::run(backend.as_ref()).map_err(|_| why.clone())?;
    Ok((backend, format!("self-test passed; not {without}: {why}")))
}

/// Stack size of a thread that opens or tests a GPU, bytes. For a GPU newer than this build, NVIDIA's driver assembles
/// PTX in this process, and its assembler may overflow the default stack of 2 MiB.
const GPU_STACK: usize = 16 << 20;

/// Starts work that may hang, on a thread that is left behind if it does: nothing can end a call that waits for a GPU.
fn spawn_detached<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (done, result) = mpsc::channel();
    // If the thread cannot be started, `done` is dropped, which `wait_for` reports.
    let _ = thread::Builder::new().name("gpu-test".into()).stack_size(GPU_STACK).spawn(move || {
        // A pool of its own: the waiting thread may be the only one of the global pool, which then could not run this
        // work.
        let result = match rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(GPU_STACK).build() {
            Ok(pool) => pool.install(work),
            Err(_) => work(),
        };
        let _ = done.send(result);
    });
    result
}

/// Waits for the result of [`spawn_detached`]. Errors: how the work ended, as the end of a sentence.
fn wait_for<T>(result: mpsc::Receiver<T>, within: Duration) -> Result<T, String> {
    result.recv_timeout(within).map_err(|e| match e {
        mpsc::RecvTimeoutError::Timeout => "did not finish in time".to_owned(),
        mpsc::RecvTimeoutError::Disconnected => "panicked; see the log".to_owned(),
    })
}

/// Returns the CPU, with the fastest instructions that pass the self-test or with the requested ones, and one line
/// about it.
fn cpu_device(options: &CpuOptions) -> Result<(Arc<dyn Backend>, String), BackendError> {
    let threads = options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, |n| n.get()));
    let sets = match options.instructions {
        Instructions::Auto => Instructions::available(),
        set => vec![set],
    };
    let mut failed = Vec::new();
    for set in sets {
        let cpu = CpuBackend::with(threads, set)?.with_multiples(options.multiples);
        match selftest::run(&cpu) {
            Ok(()) => {
                let before: String = failed.iter().map(|(name, why)| format!("; not {name}: {why}")).collect();
                return Ok((Arc::new(cpu), format!("self-test passed{before}")));
            }
            Err(why) => failed.push((set.as_str(), why)),
        }
    }
    let why = failed.pop().map(|(_, why)| why);
    Err(why.unwrap_or_else(|| BackendError::Unavailable {
        device: DeviceKind::Cpu.label(0),
        why: "no instruction set is available".into(),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Footprint, LoadedKey};
    use crate::model::ProvingKey;

    const PORTABLE: CpuOptions = CpuOptions { threads: Some(1), instructions: Instructions::Portable, multiples: 0 };

    #[derive(Clone, Copy)]
    enum Manner {
        Sound,
        Fails,
        Panics,
        Hangs,
        /// Fails, but works in its plainer form.
        Fancy,
        /// Fails or hangs, and fails in its plainer form too.
        FancyFails,
        FancyHangs,
    }

    /// A fake GPU: the CPU with special ways of loading a key.
    struct Gpu {
        cpu: CpuBackend,
        info: DeviceInfo,
        manner: Manner,
    }

    fn gpu(ordinal: u32, manner: Manner) -> OpenedDevice {
        let info = DeviceInfo { kind: DeviceKind::Cuda, name: "pretended".into(), ordinal, threads: 1, memory: 0 };
        Ok(Arc::new(Gpu { cpu: CpuBackend::new(1).unwrap(), info, manner }))
    }

    impl Backend for Gpu {
        fn device(&self) -> &DeviceInfo {
            &self.info
        }

        fn footprint(&self, key: &ProvingKey) -> Footprint {
            self.cpu.footprint(key)
        }

        fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
            match self.manner {
                Manner::Sound => self.cpu.load(key),
                Manner::Fails | Manner::Fancy | Manner::FancyFails => {
                    Err(BackendError::Device { op: "launch", code: 719 })
                }
                Manner::Panics => panic!("a pretended bug"),
                Manner::Hangs | Manner::FancyHangs => loop {
                    thread::park();
                },
            }
        }

        fn plainer(&self) -> Option<Plainer> {
            let manner = match self.manner {
                Manner::Fancy => Manner::Sound,
                Manner::FancyFails | Manner::FancyHangs => Manner::Fails,
                _ => return None,
            };
            let (without, setting) = ("by fancy means", "FANCY=off");
            gpu(self.info.ordinal, manner).ok().map(|backend| Plainer { backend, without, setting })
        }
    }

    fn chosen(choice: BackendChoice, gpus: ProbeResult) -> Result<Discovery, BackendError> {
        let cpu = cpu_device(&PORTABLE).unwrap();
        choose(choice, gpus, || Err("ICICLE is not there".into()), cpu, Duration::from_secs(5))
    }

    fn labels(found: &Discovery) -> Vec<String> {
        found.devices.iter().map(|d| d.device().label()).collect()
    }

    #[test]
    fn gpus_come_first_and_one_that_is_unfit_harms_nobody() {
        let gpus = vec![
            gpu(0, Manner::Hangs),
            gpu(1, Manner::Sound),
            gpu(2, Manner::Fails),
            gpu(3, Manner::Panics),
            Err("no code for it".into()),
            gpu(5, Manner::Fancy),
            gpu(6, Manner::FancyFails),
            gpu(7, Manner::FancyHangs),
        ];
        let found = chosen(BackendChoice::Auto, Ok(gpus)).unwrap();
        assert_eq!(labels(&found), ["cuda:1", "cuda:5", "cpu:0"]);
        let lost: Vec<_> = found.lost.iter().map(|device| device.label.as_str()).collect();
        assert_eq!(lost, ["cuda:0", "cuda:2", "cuda:3", "cuda:6", "cuda:7"], "there is no code for 4");
        let statuses: Vec<_> = found.report.iter().map(|r| (r.kind.as_str(), r.used, r.status.as_str())).collect();
        assert_eq!(
            statuses[..8],
            [
                ("cuda", false, "its self-test did not finish in time"),
                ("cuda", true, "self-test passed"),
                ("cuda", false, "its self-test failed: launch failed on the device with code 719"),
                ("cuda", false, "its self-test panicked; see the log"),
                ("cuda", false, "GPU 4: no code for it"),
                ("cuda", true, "self-test passed; not by fancy means: launch failed on the device with code 719"),
                (
                    "cuda",
                    false,
                    "its self-test failed: launch failed on the device with code 719; it may pass with FANCY=off"
                ),
                ("cuda", false, "its self-test did not finish in time; it may pass with FANCY=off"),
            ]
        );
        let says = "proving on cuda:1, pretended, and cuda:5, pretended; cpu:0 is the fallback; cuda:0: its self-test did \
                    not finish in time; ";
        assert!(found.summary.starts_with(says) && found.summary.lines().count() == 1, "{}", found.summary);
    }

    #[test]
    fn a_gpu_that_does_not_open_takes_nothing_from_the_others() {
        let open: [fn() -> OpenedDevice; 4] = [
            || gpu(0, Manner::Sound),
            || loop {
                thread::park();
            },
            || gpu(2, Manner::Sound),
            || panic!("a pretended bug"),
        ];
        let found = chosen(BackendChoice::Auto, Ok(open_all(open.into_iter(), Duration::from_secs(5)))).unwrap();
        assert_eq!(labels(&found), ["cuda:0", "cuda:2", "cpu:0"]);
        let statuses: Vec<_> = found.report.iter().map(|r| r.status.as_str()).collect();
        assert_eq!(
            statuses[..4],
            [
                "self-test passed",
                "GPU 1: opening it did not finish in time",
                "self-test passed",
                "GPU 3: opening it panicked; see the log",
            ]
        );
    }

    #[test]
    fn whoever_waits_may_be_the_only_thread_of_the_common_pool() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let found = pool.install(|| chosen(BackendChoice::Cuda, Ok(vec![gpu(0, Manner::Sound)]))).unwrap();
        assert_eq!(labels(&found), ["cuda:0", "cpu:0"]);
    }

    #[test]
    fn without_a_gpu_the_processor_proves_unless_one_was_asked_for() {
        let failed = Unusable::Failed("the NVIDIA driver did not start".to_owned());
        for (gpus, lost) in [
            (Err("no NVIDIA driver".into()), None),
            (Err(failed), Some("cuda")),
            (Ok(vec![gpu(0, Manner::Fails)]), Some("cuda:0")),
            (Ok(Vec::new()), None),
        ] {
            let why = match &gpus {
                Err(why) => why.to_string(),
                Ok(none) if none.is_empty() => "no GPU found".into(),
                Ok(_) => "its self-test failed: launch failed on the device with code 719".into(),
            };
            let again = match &gpus {
                Ok(gpus) => Ok(gpus.iter().map(|_| gpu(0, Manner::Fails)).collect()),
                Err(why) => Err(why.clone()),
            };
            let found = chosen(BackendChoice::Auto, gpus).unwrap();
            assert_eq!(labels(&found), ["cpu:0"]);
            let lost = lost.map(|label| LostDevice { label: label.to_owned(), why: why.clone() });
            assert_eq!(found.lost, lost.into_iter().collect::<Vec<_>>());
            assert!(
                found.summary.starts_with("proving on cpu:0, ") && found.summary.contains(&why),
                "{}",
                found.summary
            );
            let refused = chosen(BackendChoice::Cuda, again).map(|_| ()).unwrap_err();
            assert_eq!(refused, BackendError::Unavailable { device: "cuda".into(), why });
        }
    }

    #[cfg(feature = "icicle")]
    #[test]
    fn auto_takes_cuda_then_icicle_then_the_processor() {
        let icicle_gpu = |manner| {
            let info =
                DeviceInfo { kind: DeviceKind::Icicle, name: "pretended".into(), ordinal: 0, threads: 1, memory: 0 };
            let gpu: Arc<dyn Backend> = Arc::new(Gpu { cpu: CpuBackend::new(1).unwrap(), info, manner });
            gpu
        };
        let found = |choice, gpus: ProbeResult, icicle: ProbeResult| {
            let cpu = cpu_device(&PORTABLE).unwrap();
            choose(choice, gpus, || icicle, cpu, Duration::from_secs(5))
        };
        let both =
            found(BackendChoice::Auto, Ok(vec![gpu(0, Manner::Sound)]), Err("looked for in vain".into())).unwrap();
        assert_eq!(labels(&both), ["cuda:0", "cpu:0"]);
        assert!(both.summary.ends_with("icicle: not probed because cuda takes precedence"), "{}", both.summary);

        let icicle = Ok(vec![Ok(icicle_gpu(Manner::Sound)), Ok(icicle_gpu(Manner::Fails))]);
        let second = found(BackendChoice::Auto, Ok(vec![gpu(0, Manner::Fails)]), icicle).unwrap();
        assert_eq!(labels(&second), ["icicle:0", "cpu:0"]);
        let says = "proving on icicle:0, pretended; cpu:0 is the fallback; cuda:0: its self-test failed: ";
        assert!(second.summary.starts_with(says) && second.summary.lines().count() == 1, "{}", second.summary);

        let none = found(BackendChoice::Auto, Err("no NVIDIA driver".into()), Err("not installed".into())).unwrap();
        assert_eq!(labels(&none), ["cpu:0"]);
        assert!(none.summary.ends_with("; cuda: no NVIDIA driver; icicle: not installed"), "{}", none.summary);

        let refused =
            found(BackendChoice::Icicle, Err("not looked for".into()), Ok(vec![Ok(icicle_gpu(Manner::Fails))]));
        let why = "its self-test failed: launch failed on the device with code 719".to_owned();
        assert_eq!(refused.map(|_| ()).unwrap_err(), BackendError::Unavailable { device: "icicle".into(), why });
        let asked =
            found(BackendChoice::Cuda, Ok(vec![gpu(0, Manner::Sound)]), Err("looked for in vain".into())).unwrap();
        assert!(asked.summary.ends_with("icicle: not probed because another kind was requested"), "{}", asked.summary);
    }

    #[test]
    fn a_kind_that_is_not_there_is_refused_and_the_processor_is_not() {
        let nowhere = IcicleOptions { libraries: Some("/nowhere".into()), ..IcicleOptions::default() };
        let portable = |choice| discover(choice, &PORTABLE, &CudaOptions::default(), &nowhere);
        let refused = portable(BackendChoice::Icicle).map(|_| ()).unwrap_err().to_string();
        let why = if cfg!(feature = "icicle") { "the program's own file" } else { NOT_COMPILED };
        assert!(refused.starts_with(&format!("icicle cannot be used: {why}")), "{refused}");
        let found = portable(BackendChoice::Cpu).unwrap();
        assert_eq!(labels(&found), ["cpu:0"]);
        let looked = if cfg!(feature = "cuda") { "cuda: not probed" } else { "cuda: not compiled in" };
        assert!(found.summary.contains(looked), "{}", found.summary);
    }
}
