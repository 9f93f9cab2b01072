//! Which devices there are, and which are used.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cpu::{CpuBackend, Instructions};
use super::{Backend, BackendError, DeviceInfo, DeviceKind, Plainer, selftest};

/// Longest time for the driver to show its GPUs, and then to open each: for one that is newer than this build it assembles the
/// kernels, which takes minutes.
#[cfg(feature = "cuda")]
const LONGEST_LOOK: Duration = Duration::from_secs(600);
/// Longest self-test of a GPU, which takes milliseconds: one that takes so long hangs.
const LONGEST_TEST: Duration = Duration::from_secs(60);

const NOT_COMPILED: &str = "not compiled in";
const NOT_ASKED_FOR: &str = "not looked for, since another kind was asked for";

/// Which backend the user wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackendChoice {
    /// The best there is: cuda, then icicle, then cpu.
    #[default]
    Auto,
    /// NVIDIA GPUs by our own kernels, or none.
    Cuda,
    /// ICICLE's libraries, or none.
    Icicle,
    /// The processor.
    Cpu,
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda),
            "icicle" => Ok(Self::Icicle),
            "cpu" => Ok(Self::Cpu),
            _ => Err(format!("expected auto, cuda, icicle or cpu, got {:?}", s.chars().take(40).collect::<String>())),
        }
    }
}

/// Where ICICLE is looked for, and what of it is used.
#[derive(Clone, Debug, Default)]
pub struct IcicleOptions {
    /// The program's own file, which is run once more for each device; without one there are none.
    pub program: Option<PathBuf>,
    /// Folder of ICICLE's libraries; where its installer puts them, if none is given.
    pub libraries: Option<PathBuf>,
    /// Folder of its backends; `backend` beside the libraries, if none is given.
    pub backends: Option<PathBuf>,
    /// Type of its devices, such as `CUDA`; the first of those preferred that there are, if none is given.
    pub kind: Option<String>,
    /// Variables of the environment that are none of its business.
    pub withheld: Vec<&'static str>,
}

/// How proofs are computed on the processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessorOptions {
    /// Threads that a proof may use; as many as there are cores, if no number is given.
    pub threads: Option<usize>,
    /// Its instructions.
    pub instructions: Instructions,
    /// Bytes for multiples of the points of keys that prove often ([`CpuBackend::with_multiples`]).
    pub multiples: u64,
}

/// What was found of one device, or of a kind of which there is none.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// Its kind.
    pub kind: DeviceKind,
    /// The device, where there is one.
    pub device: Option<DeviceInfo>,
    /// Whether it is used.
    pub used: bool,
    /// One line: passed its self-test, or why it is not used.
    pub status: String,
}

/// The devices to use, best first; the processor is always among them, last, as the fallback.
pub struct Discovery {
    /// Devices that passed their self-test.
    pub devices: Vec<Arc<dyn Backend>>,
    /// Everything looked at, for people.
    pub report: Vec<DeviceReport>,
    /// One line: what was found and chosen.
    pub summary: String,
}

/// A device, or one sentence on why it is none.
pub(super) type Opened = Result<Arc<dyn Backend>, String>;

/// Devices of a kind in their driver's order; or one sentence for all of them.
pub(super) type Found = Result<Vec<Opened>, String>;

/// Looks for devices and tests those the choice permits.
///
/// `cuda_graphs` says whether the work of a proof may be one launch on an NVIDIA GPU. Fails if the one kind
/// asked for cannot be used, if the processor does not have the instructions asked for, or if it fails its self-test.
pub fn discover(
    choice: BackendChoice,
    cpu: &ProcessorOptions,
    cuda_graphs: bool,
    icicle: &IcicleOptions,
) -> Result<Discovery, BackendError> {
    let processor = processor(cpu)?;
    let gpus = match choice {
        BackendChoice::Auto | BackendChoice::Cuda => gpus(cuda_graphs),
        // A driver takes its time and memory to start.
        BackendChoice::Icicle | BackendChoice::Cpu if cfg!(feature = "cuda") => Err(NOT_ASKED_FOR.into()),
        BackendChoice::Icicle | BackendChoice::Cpu => Err(NOT_COMPILED.into()),
    };
    choose(choice, gpus, || by_icicle(icicle), processor, LONGEST_TEST)
}

/// Tests the devices and puts them in order. ICICLE is looked for only where its devices would be used: beside `cuda` they
/// would be the same GPUs once more.
fn choose(
    choice: BackendChoice,
    gpus: Found,
    icicle: impl FnOnce() -> Found,
    (cpu, status): (Arc<dyn Backend>, String),
    limit: Duration,
) -> Result<Discovery, BackendError> {
    let none = |kind, status| DeviceReport { kind, device: None, used: false, status };
    let looked_at = |kind, found, nothing: &str| match found {
        Ok(found) if Vec::is_empty(&found) => (Vec::new(), vec![none(kind, nothing.to_owned())]),
        Ok(found) => tested(kind, found, limit),
        Err(why) => (Vec::new(), vec![none(kind, why)]),
    };
    let (mut devices, mut report) = looked_at(DeviceKind::Cuda, gpus, "there is no GPU");
    let icicle = match choice {
        _ if !cfg!(feature = "icicle") => Err(NOT_COMPILED.into()),
        BackendChoice::Auto if !devices.is_empty() => Err("not looked for, since cuda comes first".into()),
        BackendChoice::Auto | BackendChoice::Icicle => icicle(),
        BackendChoice::Cuda | BackendChoice::Cpu => Err(NOT_ASKED_FOR.into()),
    };
    let (fit, told) = looked_at(DeviceKind::Icicle, icicle, "it has no device");
    devices.extend(fit);
    report.extend(told);
    for (kind, asked) in [(DeviceKind::Cuda, BackendChoice::Cuda), (DeviceKind::Icicle, BackendChoice::Icicle)] {
        if choice == asked && report.iter().all(|r| r.kind != kind || !r.used) {
            let why: Vec<_> = report.iter().filter(|r| r.kind == kind).map(|r| r.status.as_str()).collect();
            return Err(BackendError::Unavailable { device: kind.as_str().into(), why: why.join("; ") });
        }
    }
    devices.push(cpu);
    report.push(DeviceReport { kind: DeviceKind::Cpu, device: devices.last().map(info), used: true, status });
    Ok(Discovery { summary: summary(&devices, &report), devices, report })
}

fn info(device: &Arc<dyn Backend>) -> DeviceInfo {
    device.device().clone()
}

/// What is used, and why nothing else is.
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
fn gpus(_: bool) -> Found {
    Err(NOT_COMPILED.into())
}

/// The GPUs that NVIDIA's driver shows.
#[cfg(feature = "cuda")]
fn gpus(graphs: bool) -> Found {
    use super::cuda::CudaBackend;
    use super::cuda::driver::nvidia::NvidiaDriver;

    let shown = result(begin(NvidiaDriver::shown), LONGEST_LOOK);
    let shown = shown.map_err(|why| format!("the look for GPUs {why}"))??;
    let open = shown.into_iter().map(|gpu| {
        move || -> Opened {
            let gpu = CudaBackend::new(Arc::new(gpu.open()?));
            Ok(Arc::new(if graphs { gpu } else { gpu.without_graphs() }))
        }
    });
    Ok(opened(open, LONGEST_LOOK))
}

/// Opens devices at once and each by itself, so that one that hangs takes nothing from the others.
#[cfg(any(test, feature = "cuda"))]
fn opened<F>(open: impl Iterator<Item = F>, limit: Duration) -> Vec<Opened>
where
    F: FnOnce() -> Opened + Send + 'static,
{
    let begun: Vec<_> = open.map(begin).collect();
    let until = Instant::now() + limit;
    let each = begun.into_iter().map(|opening| {
        let opened = result(opening, until.saturating_duration_since(Instant::now()));
        opened.unwrap_or_else(|why| Err(format!("its opening {why}")))
    });
    each.collect()
}

/// ICICLE's devices.
#[cfg(feature = "icicle")]
fn by_icicle(wanted: &IcicleOptions) -> Found {
    super::icicle::devices(&super::icicle::Options::find(wanted)?)
}

#[cfg(not(feature = "icicle"))]
fn by_icicle(_: &IcicleOptions) -> Found {
    Err(NOT_COMPILED.into())
}

/// The devices of a kind that pass their self-test, and a report on all. They are tested at once and each by itself, so that one that
/// fails, kills its context or hangs takes nothing from the others.
fn tested(kind: DeviceKind, gpus: Vec<Opened>, limit: Duration) -> (Vec<Arc<dyn Backend>>, Vec<DeviceReport>) {
    let test = |gpu: Arc<dyn Backend>| {
        let (info, plainer) = (info(&gpu), gpu.plainer());
        // What it does beyond its plainer means may be what kills it or hangs, after which the same process cannot try those.
        let advice = plainer.map_or_else(String::new, |plainer| format!("; it may pass with {}", plainer.setting));
        // One that fails is closed there too: that may hang like anything on it.
        (info, advice, begin(move || passing(gpu)))
    };
    let begun: Vec<_> = gpus.into_iter().map(|gpu| gpu.map(test)).collect();
    let until = Instant::now() + limit;
    let mut fit = Vec::new();
    let mut report = Vec::new();
    for (ordinal, gpu) in begun.into_iter().enumerate() {
        let (device, passed) = match gpu {
            Ok((info, advice, test)) => {
                let passed = match result(test, until.saturating_duration_since(Instant::now())) {
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
        let (device_fit, status) = match passed {
            Ok((gpu, status)) => (Some(gpu), status),
            Err(why) => (None, why),
        };
        fit.extend(device_fit);
        report.push(DeviceReport { kind, device, used, status });
    }
    (fit, report)
}

/// The device, or the same by plainer means, whichever passes its self-test, and one line about it.
fn passing(gpu: Arc<dyn Backend>) -> Result<(Arc<dyn Backend>, String), BackendError> {
    let Err(why) = selftest::run(gpu.as_ref()) else { return Ok((gpu, "self-test passed".into())) };
    let Some(Plainer { backend, without, .. }) = gpu.plainer() else { return Err(why) };
    // What its first failure was is worth more than what came of it.
    selftest::run(backend.as_ref()).map_err(|_| why.clone())?;
    Ok((backend, format!("self-test passed; not {without}: {why}")))
}

/// Begins work that may hang, on a thread that is left behind then: nothing can end a call that waits for a GPU.
fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (done, result) = mpsc::channel();
    // Where no thread can be had, `done` is dropped, which is told below.
    let _ = thread::Builder::new().name("gpu-test".into()).spawn(move || {
        // A pool of its own, for whoever waits may be a thread of the common one and keep it from helping.
        let result = match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
            Ok(pool) => pool.install(work),
            Err(_) => work(),
        };
        let _ = done.send(result);
    });
    result
}

/// What the work gave, or how it ended.
fn result<T>(of: mpsc::Receiver<T>, within: Duration) -> Result<T, String> {
    of.recv_timeout(within).map_err(|e| match e {
        mpsc::RecvTimeoutError::Timeout => "did not end in time".to_owned(),
        mpsc::RecvTimeoutError::Disconnected => "ended in a panic of the program's code; see its log".to_owned(),
    })
}

/// The processor, with the fastest instructions that pass the self-test, or the ones asked for; and one line about it.
fn processor(options: &ProcessorOptions) -> Result<(Arc<dyn Backend>, String), BackendError> {
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
    Err(why
        .unwrap_or_else(|| BackendError::Unavailable { device: "cpu:0".into(), why: "it has no instructions".into() }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Footprint, LoadedKey};
    use crate::model::ProvingKey;

    const PORTABLE: ProcessorOptions =
        ProcessorOptions { threads: Some(1), instructions: Instructions::Portable, multiples: 0 };

    #[derive(Clone, Copy)]
    enum Manner {
        Sound,
        Fails,
        Panics,
        Hangs,
        /// Fails, and is sound by plainer means.
        Fancy,
        /// Fails or hangs, and is no better by plainer means.
        FancyFails,
        FancyHangs,
    }

    /// A pretended GPU: the processor, with its own ways of loading a key.
    struct Gpu {
        cpu: CpuBackend,
        info: DeviceInfo,
        manner: Manner,
    }

    fn gpu(ordinal: u32, manner: Manner) -> Opened {
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

    fn chosen(choice: BackendChoice, gpus: Found) -> Result<Discovery, BackendError> {
        let cpu = processor(&PORTABLE).unwrap();
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
        let told: Vec<_> = found.report.iter().map(|r| (r.kind.as_str(), r.used, r.status.as_str())).collect();
        assert_eq!(
            told[..8],
            [
                ("cuda", false, "its self-test did not end in time"),
                ("cuda", true, "self-test passed"),
                ("cuda", false, "its self-test failed: launch failed on the device with code 719"),
                ("cuda", false, "its self-test ended in a panic of the program's code; see its log"),
                ("cuda", false, "GPU 4: no code for it"),
                ("cuda", true, "self-test passed; not by fancy means: launch failed on the device with code 719"),
                (
                    "cuda",
                    false,
                    "its self-test failed: launch failed on the device with code 719; it may pass with FANCY=off"
                ),
                ("cuda", false, "its self-test did not end in time; it may pass with FANCY=off"),
            ]
        );
        let says = "proving on cuda:1, pretended, and cuda:5, pretended; cpu:0 is the fallback; cuda:0: its self-test did \
                    not end in time; ";
        assert!(found.summary.starts_with(says) && found.summary.lines().count() == 1, "{}", found.summary);
    }

    #[test]
    fn a_gpu_that_does_not_open_takes_nothing_from_the_others() {
        let open: [fn() -> Opened; 4] = [
            || gpu(0, Manner::Sound),
            || loop {
                thread::park();
            },
            || gpu(2, Manner::Sound),
            || panic!("a pretended bug"),
        ];
        let found = chosen(BackendChoice::Auto, Ok(opened(open.into_iter(), Duration::from_secs(5)))).unwrap();
        assert_eq!(labels(&found), ["cuda:0", "cuda:2", "cpu:0"]);
        let told: Vec<_> = found.report.iter().map(|r| r.status.as_str()).collect();
        assert_eq!(
            told[..4],
            [
                "self-test passed",
                "GPU 1: its opening did not end in time",
                "self-test passed",
                "GPU 3: its opening ended in a panic of the program's code; see its log",
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
        for gpus in [Err("no NVIDIA driver".to_owned()), Ok(vec![gpu(0, Manner::Fails)]), Ok(Vec::new())] {
            let why = match &gpus {
                Err(why) => why.clone(),
                Ok(none) if none.is_empty() => "there is no GPU".into(),
                Ok(_) => "its self-test failed: launch failed on the device with code 719".into(),
            };
            let again = match &gpus {
                Ok(gpus) => Ok(gpus.iter().map(|_| gpu(0, Manner::Fails)).collect()),
                Err(why) => Err(why.clone()),
            };
            let found = chosen(BackendChoice::Auto, gpus).unwrap();
            assert_eq!(labels(&found), ["cpu:0"]);
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
        let by_icicle = |manner| {
            let info =
                DeviceInfo { kind: DeviceKind::Icicle, name: "pretended".into(), ordinal: 0, threads: 1, memory: 0 };
            let gpu: Arc<dyn Backend> = Arc::new(Gpu { cpu: CpuBackend::new(1).unwrap(), info, manner });
            gpu
        };
        let found = |choice, gpus: Found, icicle: Found| {
            let cpu = processor(&PORTABLE).unwrap();
            choose(choice, gpus, || icicle, cpu, Duration::from_secs(5))
        };
        let both =
            found(BackendChoice::Auto, Ok(vec![gpu(0, Manner::Sound)]), Err("looked for in vain".into())).unwrap();
        assert_eq!(labels(&both), ["cuda:0", "cpu:0"]);
        assert!(both.summary.ends_with("icicle: not looked for, since cuda comes first"), "{}", both.summary);

        let icicle = Ok(vec![Ok(by_icicle(Manner::Sound)), Ok(by_icicle(Manner::Fails))]);
        let second = found(BackendChoice::Auto, Ok(vec![gpu(0, Manner::Fails)]), icicle).unwrap();
        assert_eq!(labels(&second), ["icicle:0", "cpu:0"]);
        let says = "proving on icicle:0, pretended; cpu:0 is the fallback; cuda:0: its self-test failed: ";
        assert!(second.summary.starts_with(says) && second.summary.lines().count() == 1, "{}", second.summary);

        let none = found(BackendChoice::Auto, Err("no NVIDIA driver".into()), Err("not installed".into())).unwrap();
        assert_eq!(labels(&none), ["cpu:0"]);
        assert!(none.summary.ends_with("; cuda: no NVIDIA driver; icicle: not installed"), "{}", none.summary);

        let refused =
            found(BackendChoice::Icicle, Err("not looked for".into()), Ok(vec![Ok(by_icicle(Manner::Fails))]));
        let why = "its self-test failed: launch failed on the device with code 719".to_owned();
        assert_eq!(refused.map(|_| ()).unwrap_err(), BackendError::Unavailable { device: "icicle".into(), why });
        let asked =
            found(BackendChoice::Cuda, Ok(vec![gpu(0, Manner::Sound)]), Err("looked for in vain".into())).unwrap();
        assert!(
            asked.summary.ends_with("icicle: not looked for, since another kind was asked for"),
            "{}",
            asked.summary
        );
    }

    #[test]
    fn a_kind_that_is_not_there_is_refused_and_the_processor_is_not() {
        let nowhere = IcicleOptions { libraries: Some("/nowhere".into()), ..IcicleOptions::default() };
        let portable = |choice| discover(choice, &PORTABLE, true, &nowhere);
        let refused = portable(BackendChoice::Icicle).map(|_| ()).unwrap_err().to_string();
        let why = if cfg!(feature = "icicle") { "the program's own file" } else { NOT_COMPILED };
        assert!(refused.starts_with(&format!("icicle cannot be used: {why}")), "{refused}");
        let found = portable(BackendChoice::Cpu).unwrap();
        assert_eq!(labels(&found), ["cpu:0"]);
        let looked = if cfg!(feature = "cuda") { "cuda: not looked for" } else { "cuda: not compiled in" };
        assert!(found.summary.contains(looked), "{}", found.summary);
    }
}
