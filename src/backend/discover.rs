//! Which devices there are, and which are used.

use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;

use super::cpu::{CpuBackend, Instructions};
use super::{Backend, BackendError, DeviceInfo, DeviceKind, selftest};

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

/// What was found of one kind of device.
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

/// Looks for devices and tests those the choice permits.
///
/// `threads` is the number a proof on the processor may use, all cores by default, and `cpu` the instructions it is
/// computed with. Fails if the one kind asked for cannot be used, if the processor does not have the instructions asked
/// for, or if it fails its self-test.
pub fn discover(choice: BackendChoice, threads: Option<usize>, cpu: Instructions) -> Result<Discovery, BackendError> {
    let mut report = vec![gated(DeviceKind::Cuda), gated(DeviceKind::Icicle)];
    for (kind, asked) in [(DeviceKind::Cuda, BackendChoice::Cuda), (DeviceKind::Icicle, BackendChoice::Icicle)] {
        if choice == asked {
            let why = report.iter().find(|r| r.kind == kind).map_or_else(String::new, |r| r.status.clone());
            return Err(BackendError::Unavailable { device: kind.as_str().into(), why });
        }
    }
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    let (cpu, status) = processor(threads.unwrap_or(all), cpu)?;
    report.push(DeviceReport { kind: DeviceKind::Cpu, device: Some(cpu.device().clone()), used: true, status });
    let others: Vec<_> =
        report.iter().filter(|r| !r.used).map(|r| format!("{}: {}", r.kind.as_str(), r.status)).collect();
    let summary = format!("proving on {}, {}; {}", cpu.device().label(), cpu.device().name, others.join("; "));
    Ok(Discovery { devices: vec![cpu], report, summary })
}

/// The processor, with the fastest instructions that pass the self-test, or the ones asked for; and one line about it.
fn processor(threads: usize, instructions: Instructions) -> Result<(Arc<dyn Backend>, String), BackendError> {
    let sets = match instructions {
        Instructions::Auto => Instructions::available(),
        set => vec![set],
    };
    let mut failed = Vec::new();
    for set in sets {
        let cpu = CpuBackend::with(threads, set)?;
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

/// A kind of device that this version has no driver for yet: says so, whether or not its feature is compiled in.
fn gated(kind: DeviceKind) -> DeviceReport {
    let compiled = match kind {
        DeviceKind::Cuda => cfg!(feature = "cuda"),
        DeviceKind::Icicle => cfg!(feature = "icicle"),
        DeviceKind::Cpu => true,
    };
    let status = if compiled { "not implemented in this version" } else { "not compiled in" };
    DeviceReport { kind, device: None, used: false, status: status.into() }
}
