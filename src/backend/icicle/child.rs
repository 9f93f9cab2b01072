//! The child's side: a process that does nothing but drive one of ICICLE's devices.
//!
//! Messages arrive over the socket that is its standard input. A thread reads them, so that the end of the parent,
//! which closes the socket, ends this process at once, whatever the device is doing; and so that a stop request is seen
//! while a proof runs. ICICLE's output goes to standard output, which the parent redirects, not between the messages.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use ark_ff::{BigInteger256, PrimeField};
use bytes::Bytes;
use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, setrlimit};
use zeroize::Zeroizing;

use super::super::BackendError;
use super::algebra::ELEMENT;
use super::answers;
use super::key::{Key, Step};
use super::library::Icicle;
use super::protocol::{self, Decoder, Failure, Hello, Load, Message, ProtocolError, SECTIONS, from_child, to_child};
use crate::model::{Fr, G1Affine, G2Affine, KeyHeader, KeySections, ProvingKey, StopReason, VerificationKey, limbs};

/// The device a child drives.
#[derive(Debug, Clone)]
pub struct Task {
    /// Folder of ICICLE's libraries.
    pub libraries: PathBuf,
    /// Folder of its backends.
    pub backends: PathBuf,
    /// Type of the device; by default, the first preferred type with any devices.
    pub kind: Option<String>,
    /// Number of the device.
    pub ordinal: u32,
}

/// Drives the device until the parent is gone; returns only if it cannot start.
///
/// # Errors
/// One sentence, which is also sent to the parent, if there is one.
pub fn serve(task: &Task) -> Result<(), String> {
    // A core dump of an aborted process would contain a witness.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|e| format!("core dumps could not be disabled: {e}"))?;
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(|e| format!("standard input: {e}"))?;
    let socket = UnixStream::from(stdin);
    socket
        .peer_addr()
        .map_err(|e| format!("expected the program itself as the parent, and a socket as standard input ({e})"))?;
    let listener = socket.try_clone().map_err(|e| format!("the socket: {e}"))?;
    let mut parent = Parent { to: BufWriter::new(socket) };
    let stopped = Arc::new(AtomicU64::new(0));
    let messages =
        listen(listener, stopped.clone()).map_err(|e| format!("could not start the listener thread: {e}"))?;
    let begun = parent.step(Step::Start, 0).map_err(|e| e.to_string()).and_then(|()| begin(task));
    match begun {
        Ok((icicle, hello)) => {
            parent.answer(from_child::HELLO, &hello);
            Child { icicle, keys: HashMap::new(), parent, messages, stopped }.run()
        }
        Err(why) => {
            parent.answer(from_child::FAILED, &Failure::Other(why.clone()).body());
            Err(why)
        }
    }
}

/// Opens the libraries and tests the device.
fn begin(task: &Task) -> Result<(Rc<Icicle>, Vec<u8>), String> {
    let (icicle, found) = Icicle::open(&task.libraries, &task.backends, task.kind.as_deref(), task.ordinal)?;
    answers::check(&icicle)?;
    Ok((icicle, Hello::body(&found)))
}

/// Ends the process without running the cleanup of libraries that may be active.
fn exit_now() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

/// Reads the parent's messages; stop requests are recorded at once. Ends the process when the parent is gone.
fn listen(mut socket: UnixStream, stopped: Arc<AtomicU64>) -> io::Result<Receiver<Message>> {
    // One at a time: the parent waits while a section of a key is processed.
    let (send, messages) = mpsc::sync_channel(1);
    thread::Builder::new().name("parent".into()).spawn(move || {
        while let Ok(message) = protocol::read(&mut socket) {
            if message.kind == to_child::STOP {
                let mut decoder = Decoder(&message.body);
                if let Ok(number) = decoder.u64() {
                    stopped.fetch_max(number, Ordering::Release);
                }
            } else if send.send(message).is_err() {
                break;
            }
        }
        exit_now()
    })?;
    Ok(messages)
}

/// The connection to the parent.
struct Parent {
    to: BufWriter<UnixStream>,
}

impl Parent {
    fn try_answer(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        protocol::write(&mut self.to, kind, body)?;
        self.to.flush()
    }

    /// Sends an answer; if that fails, the parent is gone.
    fn answer(&mut self, kind: u8, body: &[u8]) {
        if self.try_answer(kind, body).is_err() {
            exit_now()
        }
    }

    fn step(&mut self, step: Step, percent: u8) -> io::Result<()> {
        self.try_answer(from_child::STEP, &protocol::step(step, percent))
    }
}

struct Child {
    icicle: Rc<Icicle>,
    keys: HashMap<u64, Key<Rc<Icicle>>>,
    parent: Parent,
    messages: Receiver<Message>,
    /// The highest number of a proof to stop.
    stopped: Arc<AtomicU64>,
}

/// Why a message was not handled.
enum RequestError {
    /// The work failed.
    Work(BackendError),
    /// The message is invalid, so the next may be too.
    Message(ProtocolError),
}

impl From<BackendError> for RequestError {
    fn from(e: BackendError) -> Self {
        Self::Work(e)
    }
}

impl From<ProtocolError> for RequestError {
    fn from(e: ProtocolError) -> Self {
        Self::Message(e)
    }
}

impl Child {
    fn run(mut self) -> ! {
        loop {
            let message = self.next();
            let failed = match message.kind {
                to_child::LOAD => self.load(&message.body),
                to_child::COMMIT => self.commit(Zeroizing::new(message.body)),
                to_child::UNLOAD => self.unload(&message.body),
                kind => Err(RequestError::Message(ProtocolError(format!(
                    "expected a message of kind 1, 3 or 4, got {kind}"
                )))),
            };
            match failed {
                Ok(()) => {}
                Err(RequestError::Work(e)) => self.parent.answer(from_child::FAILED, &Failure::from(e).body()),
                Err(RequestError::Message(ProtocolError(why))) => {
                    self.parent.answer(from_child::FAILED, &Failure::Other(why).body());
                    exit_now()
                }
            }
        }
    }

    fn next(&self) -> Message {
        self.messages.recv().unwrap_or_else(|_| exit_now())
    }

    fn load(&mut self, body: &[u8]) -> Result<(), RequestError> {
        let load = Load::read(body)?;
        let mut sections = [const { Bytes::new() }; SECTIONS];
        for section in &mut sections {
            let message = self.next();
            if message.kind != to_child::SECTION {
                return Err(ProtocolError(format!("expected a section of a key, got kind {}", message.kind)).into());
            }
            *section = message.body.into();
        }
        self.parent.answer(from_child::STEP, &protocol::step(Step::Load, 0));
        let key = Key::new(&self.icicle, proving_key(&load, sections))?;
        self.keys.insert(load.key, key);
        self.parent.answer(from_child::LOADED, &[]);
        Ok(())
    }

    fn commit(&mut self, body: Zeroizing<Vec<u8>>) -> Result<(), RequestError> {
        let mut decoder = Decoder(&body);
        let (number, id) = (decoder.u64()?, decoder.u64()?);
        let key = self.keys.get(&id).ok_or_else(|| ProtocolError(format!("expected a loaded key, got number {id}")))?;
        let bytes = decoder.0;
        if bytes.len() != key.wires() * ELEMENT {
            let (expected, got) = (key.wires() * ELEMENT, bytes.len());
            return Err(ProtocolError(format!("expected {expected} bytes of a witness, got {got}")).into());
        }
        let w: Zeroizing<Vec<BigInteger256>> = Zeroizing::new(bytes.chunks_exact(ELEMENT).map(limbs).collect());
        drop(body);
        if w.iter().any(|value| *value >= Fr::MODULUS) {
            return Err(ProtocolError("expected values of a witness below r, got a larger one".into()).into());
        }
        let parent = std::cell::RefCell::new(&mut self.parent);
        let on_step = |step, percent| {
            parent.borrow_mut().answer(from_child::STEP, &protocol::step(step, percent));
            // The parent has the token and knows the reason.
            let stops = self.stopped.load(Ordering::Acquire) >= number;
            if stops { Err(BackendError::Stopped(StopReason::Cancelled)) } else { Ok(()) }
        };
        let commitments = key.commit(&self.icicle, &w, &on_step)?;
        self.parent.answer(from_child::COMMITMENTS, &protocol::commitments(&commitments));
        Ok(())
    }

    fn unload(&mut self, body: &[u8]) -> Result<(), RequestError> {
        let mut decoder = Decoder(body);
        let key = decoder.u64()?;
        decoder.end()?;
        self.keys.remove(&key);
        Ok(())
    }
}

/// Assembles a key from sections. Its fixed points, which only the assembly of a proof needs, stay with the parent.
fn proving_key(load: &Load, [coefficients, a, b1, b2, c, h]: [Bytes; SECTIONS]) -> ProvingKey {
    let (g1, g2) = (G1Affine::identity(), G2Affine::identity());
    let vk = VerificationKey { alpha_g1: g1, beta_g2: g2, gamma_g2: g2, delta_g2: g2, ic: Vec::new() };
    let (n_vars, n_public, domain_size) = (load.n_vars, load.n_public, load.domain_size);
    ProvingKey {
        header: KeyHeader { n_vars, n_public, domain_size, beta_g1: g1, delta_g1: g1, vk },
        sections: KeySections { coefficients, a, b1, b2, c, h },
    }
}
