//! Devices that compute the five commitments of a Groth16 proof. The only module with `unsafe`.
//!
//! A [`Backend`] is one device. It loads a proving key and computes five multi-scalar products for a witness. The
//! result is deterministic, so that any two backends can be compared exactly. Blinding and assembly are up to
//! `groth16`.

pub mod cpu;
#[cfg(any(feature = "cuda", feature = "kernels-on-host"))]
pub mod cuda;
mod discover;
#[cfg(feature = "icicle")]
pub mod icicle;
mod key;
pub mod mapped;
pub mod pages;
pub mod selftest;

use std::fmt;
use std::sync::Arc;

pub use discover::{CpuOptions, CudaOptions, DeviceReport, Discovery, IcicleOptions, LostDevice, Unusable, discover};

pub use crate::model::BackendChoice;
use crate::model::{G1, G2, ProvingKey, StopReason, StopToken, Witness};

/// The kind of device a backend drives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, driven by our own kernels.
    Cuda,
    /// A device driven by ICICLE's libraries.
    Icicle,
}

impl DeviceKind {
    /// The name used in output and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Icicle => "icicle",
        }
    }

    /// Returns the label of a device of this kind, such as `cpu:0`.
    pub fn label(self, ordinal: u32) -> String {
        format!("{}:{ordinal}", self.as_str())
    }
}

/// A device as found at startup.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceInfo {
    /// Kind of device.
    pub kind: DeviceKind,
    /// Name that the device reports.
    pub name: String,
    /// Number among the devices of its kind.
    pub ordinal: u32,
    /// Threads that a proof may use, on the CPU.
    pub threads: usize,
    /// Memory, bytes; 0 if unknown.
    pub memory: u64,
}

impl DeviceInfo {
    /// Returns a short label, such as `cpu:0`.
    pub fn label(&self) -> String {
        self.kind.label(self.ordinal)
    }
}

/// Memory that a key takes on a device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// While the key is loaded.
    pub resident: u64,
    /// Additionally for each proof in progress.
    pub per_proof: u64,
    /// Number of proofs whose memory (`per_proof` each) stays with the key after use, for the following proofs.
    pub proof_buffers_kept: u32,
}

impl Footprint {
    /// Bytes that the key takes permanently, including the kept memory of proofs.
    pub fn lasting(&self) -> u64 {
        self.resident.saturating_add(self.per_proof.saturating_mul(self.proof_buffers_kept.into()))
    }
}

/// The five products, before blinding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commitments {
    /// Σ wᵢ·Aᵢ
    pub a: G1,
    /// Σ wᵢ·Bᵢ in G1
    pub b1: G1,
    /// Σ wᵢ·Bᵢ in G2
    pub b2: G2,
    /// Σ wᵢ·Cᵢ over private wires
    pub c: G1,
    /// Σ hᵢ·Hᵢ over the domain
    pub h: G1,
}

/// What can go wrong on a device. Any error that is not the caller's fault ([`BackendError::is_callers_fault`]) may be
/// retried on another device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The device cannot be used.
    #[error("{device} cannot be used: {why}")]
    Unavailable {
        /// Label of the device; the name of a kind if none of its devices can be used.
        device: String,
        /// Why.
        why: String,
    },
    /// The device does not have enough memory.
    #[error("out of device memory: {needed} bytes needed, {free} free")]
    OutOfMemory {
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        free: u64,
    },
    /// A call on the device failed.
    #[error("{op} failed on the device with code {code}")]
    Device {
        /// Name of the call.
        op: &'static str,
        /// Error code.
        code: i64,
    },
    /// The device returned another number of results than it got witnesses.
    #[error("expected {expected} results from a batch, got {got}")]
    BatchResults {
        /// Number of witnesses.
        expected: usize,
        /// Number of results.
        got: usize,
    },
    /// Sizes are inconsistent.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// What has the wrong size.
        what: &'static str,
        /// Expected size.
        expected: u64,
        /// Actual size.
        got: u64,
    },
    /// A number is out of range.
    #[error("{what}: expected {bound}, got {got}")]
    OutOfRange {
        /// What is out of range.
        what: &'static str,
        /// The range.
        bound: Bound,
        /// Actual number.
        got: u64,
    },
    /// A buffer, scratch memory or another resource of the device is too small for the work. The caller is not at
    /// fault: the sizes are this program's.
    #[error("{what}: {needed} needed, {available} available")]
    TooSmall {
        /// What is too small, with the unit of the sizes.
        what: &'static str,
        /// Size needed.
        needed: u64,
        /// Size available.
        available: u64,
    },
    /// The work was asked to stop.
    #[error("stopped: {0}")]
    Stopped(StopReason),
}

impl BackendError {
    /// Whether the key or the witness is at fault, so that no other device would do better.
    pub fn is_callers_fault(&self) -> bool {
        matches!(self, Self::Shape { .. } | Self::OutOfRange { .. })
    }
}

/// The range of a number in an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Less than this.
    Below(u64),
    /// This or less.
    AtMost(u64),
    /// This or more.
    AtLeast(u64),
    /// A multiple of this.
    MultipleOf(u64),
    /// 2^k with k of at most `max_log2`.
    PowerOfTwo {
        /// Log2 of the largest.
        max_log2: u32,
    },
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below(n) => write!(f, "less than {n}"),
            Self::AtMost(n) => write!(f, "at most {n}"),
            Self::AtLeast(n) => write!(f, "at least {n}"),
            Self::MultipleOf(n) => write!(f, "a multiple of {n}"),
            Self::PowerOfTwo { max_log2 } => write!(f, "a power of two of at most 2^{max_log2}"),
        }
    }
}

/// Checks that each witness of a batch has a stop token.
fn check_stops(witnesses: &[&Witness], stops: &[&StopToken]) -> Result<(), BackendError> {
    let (expected, got) = (witnesses.len() as u64, stops.len() as u64);
    if got == expected { Ok(()) } else { Err(BackendError::Shape { what: "stop tokens of a batch", expected, got }) }
}

/// Receives progress reports.
pub trait Progress: Sync {
    /// Reports that `fraction` of the current stage is done, 0 to 1.
    fn report(&self, fraction: f32);
}

/// Ignores progress reports.
pub struct Quiet;

impl Progress for Quiet {
    fn report(&self, _: f32) {}
}

/// One device.
pub trait Backend: Send + Sync {
    /// Describes the device.
    fn device(&self) -> &DeviceInfo;
    /// Estimates the memory that a key needs.
    fn footprint(&self, key: &ProvingKey) -> Footprint;
    /// Threads a proof of this key gets while others run at the same time: at least 1; always 1 on a GPU.
    fn threads(&self, _key: &ProvingKey) -> usize {
        1
    }
    /// Prepares a key for proofs.
    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError>;
    /// Exercises what a small key does not, against independently known answers; part of the self-test.
    fn trial(&self) -> Result<(), BackendError> {
        Ok(())
    }
    /// The same device in a plainer, slower mode, to be used if it fails its self-test.
    fn plainer(&self) -> Option<Plainer> {
        None
    }
}

/// A device in a plainer mode.
pub struct Plainer {
    /// The device in that mode.
    pub backend: Arc<dyn Backend>,
    /// What it does without.
    pub without: &'static str,
    /// The setting that selects this mode from the start, for devices that the other mode breaks for good.
    pub setting: &'static str,
}

/// A key on a device.
pub trait LoadedKey: Send + Sync {
    /// The key that was loaded.
    fn key(&self) -> &Arc<ProvingKey>;
    /// Bytes of device memory that the key takes while it is loaded, if measured: the value of [`Backend::footprint`]
    /// may be an estimate.
    fn resident(&self) -> Option<u64> {
        None
    }
    /// Computes the five products for a witness of `n_vars` values. Checks `stop` between steps.
    fn commit(&self, witness: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError>;
    /// The batch size that suits the device best: 1 if batches bring no gain, as on the CPU.
    fn preferred_batch(&self) -> usize {
        1
    }
    /// Computes the products for several witnesses of one circuit, each with its own stop token; one by one unless the
    /// device overrides this. Returns one independent result per witness, in order. If the numbers of witnesses and
    /// tokens differ, every result is [`BackendError::Shape`].
    fn commit_batch(&self, witnesses: &[&Witness], stops: &[&StopToken]) -> Vec<Result<Commitments, BackendError>> {
        if let Err(error) = check_stops(witnesses, stops) {
            return vec![Err(error); witnesses.len()];
        }
        witnesses.iter().zip(stops).map(|(witness, stop)| self.commit(witness, stop, &Quiet)).collect()
    }
}
