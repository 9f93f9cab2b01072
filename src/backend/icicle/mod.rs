//! Devices driven by ICICLE's shared libraries, which are loaded at run time.
//!
//! ICICLE is C++, and an exception that leaves one of its functions aborts the process. So each device is driven by a
//! child process, the program itself (`icicle-device`): if the child aborts, hangs or sends invalid answers, only its
//! current proof is lost, and the next proof gets a new child.
//!
//! `sys` is the C ABI, `library` a safe layer over it, `algebra` the operations that a proof needs, `key` the proof
//! composed of them, and `answers` the known answers that every device must compute before it is used. These run in the
//! child, which `child` implements; `process` is the parent's side, and `protocol` the messages between them.

mod algebra;
mod answers;
mod child;
mod key;
#[doc(hidden)]
pub mod lab;
mod library;
mod process;
mod protocol;
mod sys;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub use child::{Task, serve};

use self::process::{ChildError, Process};
use super::discover::{IcicleOptions, ProbeResult, Unusable};
use super::key::{check_domain, check_entries, check_points};
use super::{Backend, BackendError, Bound, Commitments, DeviceInfo, DeviceKind, Footprint, LoadedKey, Progress};
use crate::model::{ENTRY_BYTES, ProvingKey, StopToken, Witness, locked};

/// Where ICICLE's installer puts its libraries.
const DEFAULT_LIBRARIES: &str = "/opt/icicle/lib";
/// How often a thread that waits for a device checks its stop token.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Time limits for a child.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For opening its libraries, starting its device and computing the known answers.
    pub start: Duration,
    /// For silence between two steps.
    pub step: Duration,
    /// For stopping on request; then the child is killed.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { start: Duration::from_secs(60), step: Duration::from_secs(600), stop: Duration::from_secs(5) }
    }
}

/// How children are started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program's executable, which is also run as the child.
    pub program: PathBuf,
    /// Folder of ICICLE's libraries.
    pub libraries: PathBuf,
    /// Folder of its backends.
    pub backends: PathBuf,
    /// Type of the devices; by default, the first preferred type with any devices.
    pub kind: Option<String>,
    /// Environment variables that children do not get.
    pub withheld: Vec<&'static str>,
    /// Time limits.
    pub limits: Limits,
}

impl Options {
    /// Locates ICICLE: where the user says, or where its installer puts it.
    ///
    /// # Errors
    /// One sentence if it is not found.
    pub fn find(wanted: &IcicleOptions) -> Result<Self, String> {
        let libraries = match &wanted.libraries {
            Some(folder) => folder.clone(),
            None if Path::new(DEFAULT_LIBRARIES).is_dir() => DEFAULT_LIBRARIES.into(),
            None => {
                return Err(format!("not installed: there is no {DEFAULT_LIBRARIES}, and ICICLE_LIB_DIR is not set"));
            }
        };
        let program = wanted.program.clone().ok_or("the program's own file, which drives it, cannot be found")?;
        Ok(Self {
            program,
            backends: wanted.backends.clone().unwrap_or_else(|| libraries.join("backend")),
            libraries,
            kind: wanted.kind.clone(),
            withheld: wanted.withheld.clone(),
            limits: Limits::default(),
        })
    }
}

/// Starts every device of the requested type: returns for each a backend, or one sentence on why it cannot be used.
///
/// # Errors
/// One sentence if there are no devices.
pub fn devices(options: &Options) -> ProbeResult {
    let backend = |found: Result<(IcicleBackend, u32), BackendError>| match found {
        Ok((backend, count)) => Ok((Arc::new(backend) as Arc<dyn Backend>, count)),
        Err(BackendError::Unavailable { why, .. }) => Err(why),
        Err(e) => Err(e.to_string()),
    };
    let (first, count) = backend(IcicleBackend::start(options, 0))?;
    let others = std::thread::scope(|scope| {
        let begun: Vec<_> = (1..count).map(|i| scope.spawn(move || IcicleBackend::start(options, i))).collect();
        let ended = begun.into_iter().map(|thread| match thread.join() {
            Ok(found) => backend(found).map(|(backend, _)| backend).map_err(Unusable::Failed),
            Err(_) => Err(Unusable::Failed("its start panicked; see the log".into())),
        });
        ended.collect::<Vec<_>>()
    });
    Ok(std::iter::once(Ok(first)).chain(others).collect())
}

/// A device driven by ICICLE.
pub struct IcicleBackend {
    info: DeviceInfo,
    device: Arc<Device>,
}

/// A slot for the device's child, and the right to talk to it.
struct Device {
    options: Options,
    ordinal: u32,
    label: String,
    slot: Mutex<ChildSlot>,
    released: Condvar,
    next_key: AtomicU64,
}

#[derive(Default)]
struct ChildSlot {
    /// Whether some thread is talking to the child.
    busy: bool,
    child: Option<Process>,
    /// Keys that the child may unload.
    unused_keys: Vec<u64>,
}

impl IcicleBackend {
    /// Starts a child for a device. Also returns how many devices of its type there are.
    ///
    /// # Errors
    /// `Unavailable`, with one sentence.
    pub fn start(options: &Options, ordinal: u32) -> Result<(Self, u32), BackendError> {
        let label = DeviceKind::Icicle.label(ordinal);
        let (child, hello) = Process::start(options, &label, ordinal)?;
        let info = DeviceInfo {
            kind: DeviceKind::Icicle,
            name: format!("{} {ordinal} by ICICLE {}", hello.kind, hello.release),
            ordinal,
            threads: 1,
            memory: hello.memory,
        };
        // Later children drive the type that was found.
        let options = Options { kind: Some(hello.kind), ..options.clone() };
        let slot = Mutex::new(ChildSlot { child: Some(child), ..ChildSlot::default() });
        let device = Device { options, ordinal, label, slot, released: Condvar::new(), next_key: AtomicU64::new(0) };
        Ok((Self { info, device: Arc::new(device) }, hello.count))
    }
}

impl Backend for IcicleBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn footprint(&self, key: &ProvingKey) -> Footprint {
        // The domain of transforms has twice as many roots as points; a proof has four vectors and one sum at a time.
        let domain = u64::from(key.header.domain_size);
        let points = (key.size() - key.sections.coefficients.len()) as u64;
        let summed = domain.max(u64::from(key.header.n_vars)).min(library::MAX_POINTS);
        let per_proof = 4 * 32 * domain + summed * library::BYTES_PER_POINT;
        Footprint { resident: points + 2 * 32 * domain, per_proof, proof_buffers_kept: 1 }
    }

    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
        // The caller's mistakes are found here, where they can be reported in full.
        check_domain(&key)?;
        check_points(&key)?;
        let (entry, got) = (ENTRY_BYTES as u64, key.sections.coefficients.len() as u64);
        if !got.is_multiple_of(entry) {
            let bound = Bound::MultipleOf(entry);
            return Err(BackendError::OutOfRange { what: "bytes of matrix entries", bound, got });
        }
        check_entries(&key)?;
        let id = self.device.next_key.fetch_add(1, Ordering::Relaxed);
        self.device.with_child(None, |child| child.load(id, &key))?;
        Ok(Arc::new(IcicleKey { device: self.device.clone(), key, id }))
    }
}

/// A key that a child has loaded, or will load before using it.
struct IcicleKey {
    device: Arc<Device>,
    key: Arc<ProvingKey>,
    id: u64,
}

impl LoadedKey for IcicleKey {
    fn key(&self) -> &Arc<ProvingKey> {
        &self.key
    }

    fn commit(&self, witness: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
        let (expected, got) = (u64::from(self.key.header.n_vars), witness.len() as u64);
        if got != expected {
            return Err(BackendError::Shape { what: "witness values", expected, got });
        }
        on.report(0.0);
        let commitments = self.device.with_child(Some(stop), |child| {
            if !child.loaded.contains(&self.id) {
                child.load(self.id, &self.key)?;
            }
            child.commit(self.id, witness, stop, on)
        })?;
        on.report(1.0);
        Ok(commitments)
    }
}

impl Drop for IcicleKey {
    fn drop(&mut self) {
        self.device.lock().unused_keys.push(self.id);
        // Its memory is wanted now, if the child is idle; otherwise when the current work is done.
        if let Some(mut guard) = self.device.try_acquire() {
            guard.unload_unused();
        }
    }
}

/// The exclusive right to talk to a device's child, until dropped.
struct ChildGuard<'a> {
    device: &'a Device,
    child: Option<Process>,
}

impl Drop for ChildGuard<'_> {
    fn drop(&mut self) {
        let mut slot = self.device.lock();
        (slot.busy, slot.child) = (false, self.child.take());
        self.device.released.notify_one();
    }
}

impl ChildGuard<'_> {
    /// Tells the child which keys are no longer needed.
    fn unload_unused(&mut self) {
        let keys = std::mem::take(&mut self.device.lock().unused_keys);
        for id in keys {
            if let Some(Err(ChildError::Fatal(_))) = self.child.as_mut().map(|child| child.unload(id)) {
                self.child = None;
            }
        }
    }
}

impl Device {
    fn lock(&self) -> MutexGuard<'_, ChildSlot> {
        locked(&self.slot)
    }

    fn try_acquire(&self) -> Option<ChildGuard<'_>> {
        let mut slot = self.lock();
        if std::mem::replace(&mut slot.busy, true) {
            return None;
        }
        Some(ChildGuard { device: self, child: slot.child.take() })
    }

    /// Waits for the exclusive right to the child.
    fn acquire(&self, stop: Option<&StopToken>) -> Result<ChildGuard<'_>, BackendError> {
        loop {
            if let Some(why) = stop.and_then(StopToken::stopped) {
                return Err(BackendError::Stopped(why));
            }
            if let Some(guard) = self.try_acquire() {
                return Ok(guard);
            }
            let slot = self.lock();
            if slot.busy {
                drop(self.released.wait_timeout(slot, POLL_INTERVAL));
            }
        }
    }

    /// Talks to the child, starting one if there is none. A child that must not be used again is ended.
    fn with_child<T>(
        &self,
        stop: Option<&StopToken>,
        talk: impl FnOnce(&mut Process) -> Result<T, ChildError>,
    ) -> Result<T, BackendError> {
        let mut guard = self.acquire(stop)?;
        if guard.child.as_mut().is_some_and(Process::has_ended) {
            // It ended while idle, so no work was lost.
            guard.child = None;
        }
        guard.unload_unused();
        let child = match &mut guard.child {
            Some(child) => child,
            none => {
                let begun = Instant::now();
                let (child, _) = Process::start(&self.options, &self.label, self.ordinal)?;
                tracing::info!(device = %self.label, seconds = begun.elapsed().as_secs_f64(), "started a new process for the device");
                none.insert(child)
            }
        };
        match talk(child) {
            Ok(done) => Ok(done),
            Err(ChildError::Recoverable(e)) => Err(e),
            Err(ChildError::Fatal(e)) => {
                tracing::warn!(device = %self.label, error = %e, "ending the process of the device");
                guard.child = None;
                Err(e)
            }
        }
    }
}
