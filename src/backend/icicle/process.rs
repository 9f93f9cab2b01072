//! The parent's side: starts a child, talks to it, and handles one that dies, hangs or sends invalid messages.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::super::{BackendError, Commitments, Progress};
use super::key::Step;
use super::library;
use super::protocol::{
    self, Body, Failure, HEAD, Hello, LONGEST_ANSWER, Load, Message, Nonsense, from_child, to_child,
};
use super::{Limits, Options};
use crate::model::{ProvingKey, StopReason, StopToken, Witness, locked};

/// How often a wait is checked for its limits.
const TICK: Duration = Duration::from_millis(20);
/// How long a child that closed its socket may take to exit.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// Bytes kept of a line of the child's output.
const LONGEST_LINE: usize = 300;

/// Why a message failed, and whether the child is still usable.
#[derive(Debug, PartialEq)]
pub(super) enum Trouble {
    /// The child is unaffected: the key, the witness or a lack of memory is at fault, or the work was asked to stop.
    Harmless(BackendError),
    /// The child must not be used again.
    Fatal(BackendError),
}

impl Trouble {
    pub(super) fn into_error(self) -> BackendError {
        match self {
            Self::Harmless(e) | Self::Fatal(e) => e,
        }
    }
}

/// A child that is killed when dropped, whatever it is doing.
struct Guarded(Option<Child>);

impl Guarded {
    /// Returns the exit status, if the child exits soon.
    fn ended(&mut self) -> Option<ExitStatus> {
        let until = Instant::now() + LAST_BREATH;
        loop {
            match self.0.as_mut()?.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        let _ = child.kill();
        if !matches!(child.try_wait(), Ok(Some(_))) {
            // A child that is inside its driver ends when the driver returns.
            let reaper = thread::Builder::new().name("icicle-reaper".into());
            let _ = reaper.spawn(move || child.wait());
        }
    }
}

/// The last non-empty line that a child printed.
type LastLine = Arc<Mutex<String>>;

/// Reads the child's output: logs each line and remembers the last. Ends with the child.
fn listen(from: impl Read + Send + 'static, label: String, last: LastLine) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("icicle-log".into()).spawn(move || {
        let mut from = io::BufReader::new(from);
        let mut line = Vec::new();
        // A line without an end is read in pieces.
        while matches!(io::BufRead::read_until(&mut (&mut from).take(4096), b'\n', &mut line), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if !text.is_empty() {
                tracing::debug!(device = %label, line = %text, "output of the icicle process");
                let end = text.floor_char_boundary(LONGEST_LINE);
                text[..end].clone_into(&mut locked(&last));
            }
            line.clear();
        }
    })
}

/// What to wait for, and for how long.
struct Patience<'a> {
    stop: Option<&'a StopToken>,
    /// How long the child may be silent.
    silence: Duration,
    heard: Instant,
    /// When a child that was asked to stop is killed.
    until: Option<Instant>,
}

/// A child that drives a device.
pub(super) struct Process {
    child: Guarded,
    socket: UnixStream,
    label: String,
    limits: Limits,
    /// Received bytes of an incomplete message.
    received: Vec<u8>,
    /// The child's current step.
    step: Step,
    last: LastLine,
    /// The thread that reads its output.
    listener: JoinHandle<()>,
    /// Keys that it has loaded.
    pub(super) loaded: HashSet<u64>,
    /// Number of the latest proof requested.
    number: u64,
}

impl Process {
    /// Starts a child for a device and waits until it has computed the known answers.
    pub(super) fn start(options: &Options, label: &str, ordinal: u32) -> Result<(Self, Hello), BackendError> {
        let unavailable = |why: String| BackendError::Unavailable { device: label.to_owned(), why };
        let (socket, theirs) = UnixStream::pair().map_err(|e| unavailable(format!("no socket: {e}")))?;
        let cannot = |e: io::Error| unavailable(format!("its process could not be started: {e}"));
        let mut command = Command::new(&options.program);
        command.arg("icicle-device").arg("--libraries").arg(&options.libraries);
        command.arg("--backends").arg(&options.backends).arg("--ordinal").arg(ordinal.to_string());
        if let Some(kind) = &options.kind {
            command.arg("--kind").arg(kind);
        }
        for name in &options.withheld {
            command.env_remove(name);
        }
        // Its standard output must not mix with results, so both streams go to the log.
        let (prints, printed) = io::pipe().map_err(cannot)?;
        let stdout = printed.try_clone().map_err(cannot)?;
        command.stdin(OwnedFd::from(theirs)).stdout(stdout).stderr(printed);
        let child = Guarded(Some(command.spawn().map_err(cannot)?));
        // This drops this process's copies of the child's ends; while they exist, the child's end would go unnoticed.
        drop(command);
        let last = LastLine::default();
        let listener = listen(prints, label.to_owned(), last.clone()).map_err(cannot)?;
        socket.set_read_timeout(Some(TICK)).and_then(|()| socket.set_write_timeout(Some(TICK))).map_err(cannot)?;
        let (received, loaded) = (Vec::new(), HashSet::new());
        let (label, limits, step) = (label.to_owned(), options.limits, Step::Start);
        let mut process = Self { child, socket, label, limits, received, step, last, listener, loaded, number: 0 };
        let hello = process.greet().map_err(Trouble::into_error)?;
        Ok((process, hello))
    }

    fn greet(&mut self) -> Result<Hello, Trouble> {
        let mut patience = self.patience(None, self.limits.start);
        loop {
            let message = self.next(&mut patience)?;
            match message.kind {
                from_child::HELLO => return Hello::read(&message.body).map_err(|e| self.nonsense(&e)),
                from_child::STEP => self.step = self.read_step(&message)?.0,
                from_child::FAILED => return Err(self.failed(&message)),
                kind => return Err(self.out_of_turn(kind)),
            }
        }
    }

    /// Whether the child has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.0.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// Sends a key to the child.
    pub(super) fn load(&mut self, id: u64, key: &ProvingKey) -> Result<(), Trouble> {
        let (header, s) = (&key.header, &key.sections);
        let (n_vars, n_public, domain_size) = (header.n_vars, header.n_public, header.domain_size);
        let load = Load { key: id, n_vars, n_public, domain_size };
        let mut patience = self.patience(None, self.limits.step);
        self.step = Step::Load;
        self.send(to_child::LOAD, &[&load.body()], &mut patience)?;
        for section in [&s.coefficients, &s.a, &s.b1, &s.b2, &s.c, &s.h] {
            self.send(to_child::SECTION, &[section], &mut patience)?;
            super::super::mapped::release(section);
        }
        loop {
            let message = self.next(&mut patience)?;
            match message.kind {
                from_child::STEP => self.step = self.read_step(&message)?.0,
                from_child::LOADED => break,
                from_child::FAILED => return Err(self.failed(&message)),
                kind => return Err(self.out_of_turn(kind)),
            }
        }
        self.loaded.insert(id);
        Ok(())
    }

    /// Requests the products of a witness with a loaded key.
    pub(super) fn commit(
        &mut self,
        id: u64,
        witness: &Witness,
        stop: &StopToken,
        on: &dyn Progress,
    ) -> Result<Commitments, Trouble> {
        self.number += 1;
        let begin = Body::default().u64(self.number).u64(id).0;
        let mut patience = self.patience(Some(stop), self.limits.step);
        self.send(to_child::COMMIT, &[&begin, library::bytes_of(witness.values())], &mut patience)?;
        loop {
            let message = self.next(&mut patience)?;
            match message.kind {
                from_child::STEP => {
                    let (step, percent) = self.read_step(&message)?;
                    self.step = step;
                    on.report(f32::from(percent) / 100.0);
                }
                from_child::COMMITMENTS => {
                    let commitments = protocol::read_commitments(&message.body).map_err(|e| self.nonsense(&e))?;
                    // The request to stop came too late.
                    return match stop.stopped() {
                        Some(why) => Err(Trouble::Harmless(BackendError::Stopped(why))),
                        None => Ok(commitments),
                    };
                }
                from_child::FAILED => {
                    let failed = self.failed(&message);
                    return Err(match (failed, stop.stopped()) {
                        (Trouble::Harmless(BackendError::Stopped(_)), Some(why)) => {
                            Trouble::Harmless(BackendError::Stopped(why))
                        }
                        (failed, _) => failed,
                    });
                }
                kind => return Err(self.out_of_turn(kind)),
            }
        }
    }

    /// Tells the child that a key is no longer needed.
    pub(super) fn forget(&mut self, id: u64) -> Result<(), Trouble> {
        if !self.loaded.remove(&id) {
            return Ok(());
        }
        let mut patience = self.patience(None, self.limits.step);
        self.send(to_child::FORGET, &[&id.to_le_bytes()], &mut patience)
    }

    fn patience<'a>(&self, stop: Option<&'a StopToken>, silence: Duration) -> Patience<'a> {
        Patience { stop, silence, heard: Instant::now(), until: None }
    }

    /// Checks whether to keep waiting. Sends a stop request, once, if the child should stop.
    fn wait_on(&mut self, patience: &mut Patience<'_>) -> Result<(), Trouble> {
        let now = Instant::now();
        if let Some(why) = patience.stop.and_then(StopToken::stopped) {
            match patience.until {
                // A proof that ran out of time is not necessarily to blame for that: report the device.
                Some(until) if now >= until && why == StopReason::TimedOut => {
                    let (seconds, step) = (self.limits.stop.as_secs_f64(), self.step.as_str());
                    let why = format!("its process was still in {step} {seconds} s after the deadline of the proof");
                    return Err(self.fatal(why));
                }
                Some(until) if now >= until => return Err(Trouble::Fatal(BackendError::Stopped(why))),
                Some(_) => {}
                None => {
                    patience.until = Some(now + self.limits.stop);
                    let message = self.number.to_le_bytes();
                    // Small enough to be sent at once; if not, the child does not read, and is killed soon.
                    let _ = protocol::write(&mut self.socket, to_child::STOP, &message);
                }
            }
        }
        if now.saturating_duration_since(patience.heard) >= patience.silence {
            let (seconds, step) = (patience.silence.as_secs_f64(), self.step.as_str());
            return Err(self.fatal(format!("its process was silent for {seconds:.0} s in {step}")));
        }
        Ok(())
    }

    /// Sends a message with these parts.
    fn send(&mut self, kind: u8, parts: &[&[u8]], patience: &mut Patience<'_>) -> Result<(), Trouble> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        let head = protocol::head(kind, length);
        for mut part in std::iter::once(&head[..]).chain(parts.iter().copied()) {
            while !part.is_empty() {
                match self.socket.write(part) {
                    Ok(0) => return Err(self.lost()),
                    Ok(n) => {
                        part = &part[n..];
                        // Reading is a sign of life.
                        patience.heard = Instant::now();
                    }
                    Err(e) if is_a_tick(&e) => {
                        // Stopping in the middle of a message would leave the child with half of it.
                        let waits = Patience { stop: None, until: None, ..*patience };
                        self.wait_on(&mut { waits })?;
                    }
                    Err(_) => return Err(self.lost()),
                }
            }
        }
        Ok(())
    }

    /// Returns the child's next message.
    fn next(&mut self, patience: &mut Patience<'_>) -> Result<Message, Trouble> {
        let mut piece = [0; 4096];
        loop {
            if let Some(message) = self.take()? {
                patience.heard = Instant::now();
                return Ok(message);
            }
            match self.socket.read(&mut piece) {
                Ok(0) => return Err(self.lost()),
                Ok(n) => self.received.extend_from_slice(&piece[..n]),
                Err(e) if is_a_tick(&e) => {}
                Err(_) => return Err(self.lost()),
            }
            self.wait_on(patience)?;
        }
    }

    /// Takes a complete message from the received bytes.
    fn take(&mut self) -> Result<Option<Message>, Trouble> {
        let Some((head, rest)) = self.received.split_first_chunk::<HEAD>() else { return Ok(None) };
        let (kind, length) = protocol::read_head(head);
        if length > LONGEST_ANSWER {
            return Err(self.nonsense(&Nonsense(format!(
                "expected messages of at most {LONGEST_ANSWER} bytes, got one of {length}"
            ))));
        }
        let Some(body) = rest.get(..length as usize) else { return Ok(None) };
        let body = body.to_vec();
        self.received.drain(..HEAD + body.len());
        Ok(Some(Message { kind, body }))
    }

    fn read_step(&self, message: &Message) -> Result<(Step, u8), Trouble> {
        protocol::read_step(&message.body).map_err(|e| self.nonsense(&e))
    }

    fn fatal(&self, why: String) -> Trouble {
        Trouble::Fatal(BackendError::Unavailable { device: self.label.clone(), why })
    }

    fn nonsense(&self, Nonsense(why): &Nonsense) -> Trouble {
        self.fatal(format!("its process sent an invalid message in {}: {why}", self.step.as_str()))
    }

    fn out_of_turn(&self, kind: u8) -> Trouble {
        self.nonsense(&Nonsense(format!("expected another kind of message than {kind}")))
    }

    /// Converts a failure that the child reports. After an error code of the device, none of its results is trusted.
    fn failed(&self, message: &Message) -> Trouble {
        match Failure::read(&message.body) {
            Ok(Failure::Says(why)) => self.fatal(why),
            Ok(Failure::Code { op, code }) => Trouble::Fatal(BackendError::Device { op, code }),
            Ok(Failure::OutOfMemory { needed, free }) => Trouble::Harmless(BackendError::OutOfMemory { needed, free }),
            Ok(Failure::Stopped) => Trouble::Harmless(BackendError::Stopped(StopReason::Cancelled)),
            Err(e) => self.nonsense(&e),
        }
    }

    /// Describes how a child that closed its socket ended.
    fn lost(&mut self) -> Trouble {
        let step = self.step.as_str();
        let how = match self.child.ended() {
            Some(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("was ended by signal {signal}{}", signal_name(signal)),
                (None, code) => format!("ended with code {}", code.unwrap_or_default()),
            },
            None => "closed its socket".to_owned(),
        };
        // Its last output may still be on its way.
        let until = Instant::now() + LAST_BREATH;
        while !self.listener.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        let last = locked(&self.last).clone();
        let last = if last.is_empty() { String::new() } else { format!("; its last output: {last}") };
        self.fatal(format!("its process {how} in {step}{last}"))
    }
}

/// Names of signals that end broken code.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        _ => "",
    }
}

/// Whether a socket operation timed out after one tick.
fn is_a_tick(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
