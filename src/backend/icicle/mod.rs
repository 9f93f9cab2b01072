//! Devices by ICICLE's shared libraries, which are looked for when the program runs.
//!
//! ICICLE is C++, and an exception that leaves one of its functions aborts the process. So each device is driven by a
//! child process, the program itself (`icicle-device`): one that aborts, hangs or answers nonsense costs the proof it was
//! at, and the next proof gets a fresh one.
//!
//! `sys` is the C ABI, `library` a safe layer over it, `algebra` what a proof needs of a device, `key` the proof put
//! together from that, and `answers` what every device must know before it is used. These run in the child, which `child`
//! is; `process` is the parent's side, and `protocol` what is between.

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

use self::process::{Process, Trouble};
use super::cpu::sparse;
use super::discover::{Found, IcicleOptions};
use super::{Backend, BackendError, Commitments, DeviceInfo, DeviceKind, Footprint, LoadedKey, Progress};
use crate::model::{ENTRY_BYTES, ProvingKey, StopToken, Witness, locked};

/// Where the installer of ICICLE puts its libraries.
const DEFAULT_LIBRARIES: &str = "/opt/icicle/lib";
/// How often somebody who waits for a device looks at the stop token.
const TICK: Duration = Duration::from_millis(20);

/// How long a child may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To open its libraries, start its device and know its answers.
    pub start: Duration,
    /// Without a word, between two steps.
    pub step: Duration,
    /// To stop when it is asked to; then it is ended.
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
    /// The program, which is its own child.
    pub program: PathBuf,
    /// Folder of ICICLE's libraries.
    pub libraries: PathBuf,
    /// Folder of its backends.
    pub backends: PathBuf,
    /// Type of the devices; the first of those preferred that there are, if none is given.
    pub kind: Option<String>,
    /// Variables that children do not get.
    pub withheld: Vec<&'static str>,
    /// How long they may take.
    pub limits: Limits,
}

impl Options {
    /// Where ICICLE is, by what the user says or where its installer puts it.
    ///
    /// # Errors
    /// One sentence where there is none.
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

/// Every device of the type asked for: a backend, or one sentence on why it is none.
///
/// # Errors
/// One sentence where there are none at all.
pub fn devices(options: &Options) -> Found {
    let backend = |found: Result<(IcicleBackend, u32), BackendError>| match found {
        Ok((backend, count)) => Ok((Arc::new(backend) as Arc<dyn Backend>, count)),
        Err(BackendError::Unavailable { why, .. }) => Err(why),
        Err(e) => Err(e.to_string()),
    };
    let (first, count) = backend(IcicleBackend::start(options, 0))?;
    let others = std::thread::scope(|scope| {
        let begun: Vec<_> = (1..count).map(|i| scope.spawn(move || IcicleBackend::start(options, i))).collect();
        let ended = begun.into_iter().map(|thread| match thread.join() {
            Ok(found) => backend(found).map(|(backend, _)| backend),
            Err(_) => Err("its start ended in a panic of the program's code; see its log".into()),
        });
        ended.collect::<Vec<_>>()
    });
    Ok(std::iter::once(Ok(first)).chain(others).collect())
}

/// A device of ICICLE's.
pub struct IcicleBackend {
    info: DeviceInfo,
    device: Arc<Device>,
}

/// A child's place, and who may talk to it.
struct Device {
    options: Options,
    ordinal: u32,
    label: String,
    place: Mutex<Place>,
    left: Condvar,
    keys: AtomicU64,
}

#[derive(Default)]
struct Place {
    /// Somebody talks to the child at present.
    taken: bool,
    child: Option<Process>,
    /// Keys that the child need not keep.
    dropped: Vec<u64>,
}

impl IcicleBackend {
    /// Starts a child for a device. Also says how many devices of its type there are.
    ///
    /// # Errors
    /// `Unavailable`, with a sentence.
    pub fn start(options: &Options, ordinal: u32) -> Result<(Self, u32), BackendError> {
        let label = format!("{}:{ordinal}", DeviceKind::Icicle.as_str());
        let (child, hello) = Process::start(options, &label, ordinal)?;
        let info = DeviceInfo {
            kind: DeviceKind::Icicle,
            name: format!("{} {ordinal} by ICICLE {}", hello.kind, hello.release),
            ordinal,
            threads: 1,
            memory: hello.memory,
        };
        // The type that was found is the one that later children drive.
        let options = Options { kind: Some(hello.kind), ..options.clone() };
        let place = Mutex::new(Place { child: Some(child), ..Place::default() });
        let device = Device { options, ordinal, label, place, left: Condvar::new(), keys: AtomicU64::new(0) };
        Ok((Self { info, device: Arc::new(device) }, hello.count))
    }
}

impl Backend for IcicleBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn footprint(&self, key: &ProvingKey) -> Footprint {
        // The domain of transforms has roots twice as many as points; a proof has four vectors and one sum at a time.
        let domain = u64::from(key.header.domain_size);
        let points = (key.size() - key.sections.coefficients.len()) as u64;
        let summed = domain.max(u64::from(key.header.n_vars)).min(library::MOST_POINTS);
        let per_proof = 4 * 32 * domain + summed * library::BYTES_A_POINT;
        Footprint { resident: points + 2 * 32 * domain, per_proof, kept: 1 }
    }

    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
        // What is the caller's fault is found here, where it can be told in full.
        key::check(&key)?;
        let (what, expected) = ("bytes of matrix entries, a multiple of", ENTRY_BYTES as u64);
        let got = key.sections.coefficients.len() as u64;
        if !got.is_multiple_of(expected) {
            return Err(BackendError::Shape { what, expected, got });
        }
        sparse::check(&key)?;
        let id = self.device.keys.fetch_add(1, Ordering::Relaxed);
        self.device.with_child(None, |child| child.load(id, &key))?;
        Ok(Arc::new(IcicleKey { device: self.device.clone(), key, id }))
    }
}

/// A key that a child has, or will be brought before it is needed.
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
        self.device.lock().dropped.push(self.id);
        // Its memory is wanted now, if nobody is at work; otherwise when they are done.
        if let Some(mut turn) = self.device.try_take() {
            turn.forget();
        }
    }
}

/// The sole right to talk to a device's child, until dropped.
struct Turn<'a> {
    device: &'a Device,
    child: Option<Process>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut place = self.device.lock();
        (place.taken, place.child) = (false, self.child.take());
        self.device.left.notify_one();
    }
}

impl Turn<'_> {
    /// Passes on which keys are not needed any more.
    fn forget(&mut self) {
        let dropped = std::mem::take(&mut self.device.lock().dropped);
        for id in dropped {
            if let Some(Err(Trouble::Fatal(_))) = self.child.as_mut().map(|child| child.forget(id)) {
                self.child = None;
            }
        }
    }
}

impl Device {
    fn lock(&self) -> MutexGuard<'_, Place> {
        locked(&self.place)
    }

    fn try_take(&self) -> Option<Turn<'_>> {
        let mut place = self.lock();
        if std::mem::replace(&mut place.taken, true) {
            return None;
        }
        Some(Turn { device: self, child: place.child.take() })
    }

    /// Waits for the child.
    fn take(&self, stop: Option<&StopToken>) -> Result<Turn<'_>, BackendError> {
        loop {
            if let Some(why) = stop.and_then(StopToken::stopped) {
                return Err(BackendError::Stopped(why));
            }
            if let Some(turn) = self.try_take() {
                return Ok(turn);
            }
            let place = self.lock();
            if place.taken {
                drop(self.left.wait_timeout(place, TICK));
            }
        }
    }

    /// Talks to the child, a fresh one if there is none. One that must not be used again is ended.
    fn with_child<T>(
        &self,
        stop: Option<&StopToken>,
        talk: impl FnOnce(&mut Process) -> Result<T, Trouble>,
    ) -> Result<T, BackendError> {
        let mut turn = self.take(stop)?;
        if turn.child.as_mut().is_some_and(Process::has_ended) {
            // While nobody used it, so that nobody lost anything.
            turn.child = None;
        }
        turn.forget();
        let child = match &mut turn.child {
            Some(child) => child,
            none => {
                let begun = Instant::now();
                let (child, _) = Process::start(&self.options, &self.label, self.ordinal)?;
                tracing::info!(device = %self.label, seconds = begun.elapsed().as_secs_f64(), "a fresh process drives it");
                none.insert(child)
            }
        };
        match talk(child) {
            Ok(done) => Ok(done),
            Err(Trouble::Harmless(e)) => Err(e),
            Err(Trouble::Fatal(e)) => {
                tracing::warn!(device = %self.label, error = %e, "its process is ended");
                turn.child = None;
                Err(e)
            }
        }
    }
}
