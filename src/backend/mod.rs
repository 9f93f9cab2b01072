//! Devices that compute the five commitments of a Groth16 proof. The only room with `unsafe`.
//!
//! A [`Backend`] is one device. It loads a proving key and computes, for a witness, five multi-scalar products:
//! deterministic, so that any two backends compare exactly. Blinding and assembly are `groth16`'s.

pub mod cpu;
#[cfg(any(feature = "cuda", feature = "kernels-on-host"))]
pub mod cuda;
mod discover;
#[cfg(feature = "icicle")]
pub mod icicle;
pub mod mapped;
pub mod pages;
pub mod selftest;

use std::sync::Arc;

pub use discover::{BackendChoice, DeviceReport, Discovery, IcicleOptions, ProcessorOptions, discover};

use crate::model::{G1, G2, ProvingKey, StopReason, StopToken, Witness};

/// What kind of device a backend drives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by our own kernels.
    Cuda,
    /// A device by ICICLE's libraries.
    Icicle,
}

impl DeviceKind {
    /// As printed and used in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Icicle => "icicle",
        }
    }
}

/// A device as found at start.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceInfo {
    /// Its kind.
    pub kind: DeviceKind,
    /// What it calls itself.
    pub name: String,
    /// Number among its kind.
    pub ordinal: u32,
    /// Threads a proof may use, for the CPU.
    pub threads: usize,
    /// Memory, bytes; 0 where unknown.
    pub memory: u64,
}

impl DeviceInfo {
    /// Short label, such as `cpu:0`.
    pub fn label(&self) -> String {
        format!("{}:{}", self.kind.as_str(), self.ordinal)
    }
}

/// Memory a key needs on a device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// As long as the key is loaded.
    pub resident: u64,
    /// More for each proof in flight.
    pub per_proof: u64,
    /// How many proofs' memory stays with the key once it was used, for the next ones.
    pub kept: u32,
}

impl Footprint {
    /// Bytes that the key takes in the long run.
    pub fn lasting(&self) -> u64 {
        self.resident.saturating_add(self.per_proof.saturating_mul(self.kept.into()))
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

/// What can go wrong on a device. Only `Shape` is the caller's fault; any other permits another device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The device cannot be used.
    #[error("{device} cannot be used: {why}")]
    Unavailable {
        /// Which device.
        device: String,
        /// Why.
        why: String,
    },
    /// The device's memory does not suffice.
    #[error("out of device memory: {needed} bytes needed, {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// A call on the device failed.
    #[error("{op} failed on the device with code {code}")]
    Device {
        /// Which call.
        op: &'static str,
        /// Its code.
        code: i64,
    },
    /// Sizes do not fit together.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// What has the wrong size.
        what: &'static str,
        /// The size it should have.
        expected: u64,
        /// The size it has.
        got: u64,
    },
    /// The work was asked to stop.
    #[error("stopped: {0}")]
    Stopped(StopReason),
}

/// That the sections have as many points as the header's numbers say, for devices that take points as they come.
///
/// # Errors
/// `Shape` for the first section that has not.
#[cfg(any(feature = "cuda", feature = "kernels-on-host", feature = "icicle"))]
fn check_lengths(key: &ProvingKey) -> Result<(), BackendError> {
    let (h, s) = (&key.header, &key.sections);
    let (wires, domain) = (u64::from(h.n_vars), u64::from(h.domain_size));
    let Some(private) = wires.checked_sub(u64::from(h.n_public) + 1) else {
        let (what, expected) = ("wires of a key, at least", u64::from(h.n_public) + 1);
        return Err(BackendError::Shape { what, expected, got: wires });
    };
    for (what, section, count, bytes) in [
        ("bytes of A's points", &s.a, wires, crate::model::G1_BYTES),
        ("bytes of B's points in G1", &s.b1, wires, crate::model::G1_BYTES),
        ("bytes of B's points in G2", &s.b2, wires, crate::model::G2_BYTES),
        ("bytes of C's points", &s.c, private, crate::model::G1_BYTES),
        ("bytes of H's points", &s.h, domain, crate::model::G1_BYTES),
    ] {
        let (expected, got) = (count * bytes as u64, section.len() as u64);
        if got != expected {
            return Err(BackendError::Shape { what, expected, got });
        }
    }
    Ok(())
}

/// That each witness of a batch has a token.
fn check_stops(witnesses: &[&Witness], stops: &[&StopToken]) -> Result<(), BackendError> {
    let (expected, got) = (witnesses.len() as u64, stops.len() as u64);
    if got == expected { Ok(()) } else { Err(BackendError::Shape { what: "stop tokens of a batch", expected, got }) }
}

/// Hears how far work is.
pub trait Progress: Sync {
    /// `fraction` of the present stage is done, 0 to 1.
    fn report(&self, fraction: f32);
}

/// Nobody listens.
pub struct Quiet;

impl Progress for Quiet {
    fn report(&self, _: f32) {}
}

/// One device.
pub trait Backend: Send + Sync {
    /// What it is.
    fn device(&self) -> &DeviceInfo;
    /// Memory a key would need.
    fn footprint(&self, key: &ProvingKey) -> Footprint;
    /// Threads of [`DeviceInfo::threads`] that a proof has while others run beside it, at least one: on the CPU, where as
    /// many proofs can run at once as there are cores for. One where a proof takes none of the CPU's.
    fn threads(&self, _key: &ProvingKey) -> usize {
        1
    }
    /// Makes a key ready for proofs.
    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError>;
    /// Tries what a small key does not have it do, against answers that are known otherwise: a part of the self-test.
    fn trial(&self) -> Result<(), BackendError> {
        Ok(())
    }
    /// The same device by plainer and slower means, to be used where it fails its self-test.
    fn plainer(&self) -> Option<Plainer> {
        None
    }
}

/// A device by plainer means.
pub struct Plainer {
    /// It.
    pub backend: Arc<dyn Backend>,
    /// What it does without.
    pub without: &'static str,
    /// The setting by which it is so from the start: what the other means do to a device may be the end of it.
    pub setting: &'static str,
}

/// A key on a device.
pub trait LoadedKey: Send + Sync {
    /// The key it was loaded from.
    fn key(&self) -> &Arc<ProvingKey>;
    /// Bytes of the device that it takes as long as it is loaded, where they were counted: what [`Backend::footprint`] says
    /// beforehand may be a guess.
    fn resident(&self) -> Option<u64> {
        None
    }
    /// The five products for a witness of `n_vars` values. Looks at `stop` between steps.
    fn commit(&self, witness: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError>;
    /// How many witnesses at once the device likes best: 1 where it gains nothing from several, as on the CPU.
    fn batch(&self) -> usize {
        1
    }
    /// The products for several witnesses of one circuit, each with a stop token of its own; one by one unless the
    /// device knows better. One result a witness, in their order, and each its own: what befalls one leaves the others
    /// alone. Unequally many witnesses and tokens are [`BackendError::Shape`] for each witness.
    fn commit_batch(&self, witnesses: &[&Witness], stops: &[&StopToken]) -> Vec<Result<Commitments, BackendError>> {
        if let Err(error) = check_stops(witnesses, stops) {
            return vec![Err(error); witnesses.len()];
        }
        witnesses.iter().zip(stops).map(|(witness, stop)| self.commit(witness, stop, &Quiet)).collect()
    }
}
