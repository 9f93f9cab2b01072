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
    self, Encoder, Failure, HEADER_BYTES, Hello, Load, MAX_ANSWER_BYTES, Message, ProtocolError, from_child, to_child,
};
use super::{Limits, Options};
use crate::model::{ProvingKey, StopReason, StopToken, Witness, locked};

/// How often a wait is checked for its limits.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a child that closed its socket may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes kept of a line of the child's output.
const MAX_LINE_BYTES: usize = 300;

/// Why a message failed, and whether the child is still usable.
#[derive(Debug, PartialEq)]
pub(super) enum ChildError {
    /// The child is unaffected: the key, the witness or a lack of memory is at fault, or the work was asked to stop.
    Recoverable(BackendError),
    /// The child must not be used again.
    Fatal(BackendError),
}

impl ChildError {
    pub(super) fn into_error(self) -> BackendError {
        match self {
            Self::Recoverable(e) | Self::Fatal(e) => e,
        }
    }
}

/// A child that is killed when dropped, whatever it is doing.
struct KillOnDrop(Option<Child>);

impl KillOnDrop {
    /// Returns the exit status, if the child exits soon.
    fn ended(&mut self) -> Option<ExitStatus> {
        let until = Instant::now() + EXIT_TIMEOUT;
        loop {
            match self.0.as_mut()?.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for KillOnDrop {
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
fn log_output(from: impl Read + Send + 'static, label: String, last: LastLine) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("icicle-log".into()).spawn(move || {
        let mut from = io::BufReader::new(from);
        let mut line = Vec::new();
        // A line without an end is read in pieces.
        while matches!(io::BufRead::read_until(&mut (&mut from).take(4096), b'\n', &mut line), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if !text.is_empty() {
                tracing::debug!(device = %label, line = %text, "output of the icicle process");
                let end = text.floor_char_boundary(MAX_LINE_BYTES);
                text[..end].clone_into(&mut locked(&last));
            }
            line.clear();
        }
    })
}

/// What to wait for, and for how long.
struct Deadlines<'a> {
    stop: Option<&'a StopToken>,
    /// How long the child may be silent.
    max_silence: Duration,
    /// When it last sent or read anything.
    last_heard: Instant,
    /// When a child that was asked to stop is killed.
    kill_at: Option<Instant>,
}

impl<'a> Deadlines<'a> {
    fn new(stop: Option<&'a StopToken>, max_silence: Duration) -> Self {
        Self { stop, max_silence, last_heard: Instant::now(), kill_at: None }
    }
}

/// A child that drives a device.
pub(super) struct Process {
    child: KillOnDrop,
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
    proof_number: u64,
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
        let child = KillOnDrop(Some(command.spawn().map_err(cannot)?));
        // This drops this process's copies of the child's ends; while they exist, the child's end would go unnoticed.
        drop(command);
        let last = LastLine::default();
        let listener = log_output(prints, label.to_owned(), last.clone()).map_err(cannot)?;
        socket
            .set_read_timeout(Some(POLL_INTERVAL))
            .and_then(|()| socket.set_write_timeout(Some(POLL_INTERVAL)))
            .map_err(cannot)?;
        let (received, loaded) = (Vec::new(), HashSet::new());
        let (label, limits, step) = (label.to_owned(), options.limits, Step::Start);
        let mut process =
            Self { child, socket, label, limits, received, step, last, listener, loaded, proof_number: 0 };
        let hello = process.handshake().map_err(ChildError::into_error)?;
        Ok((process, hello))
    }

    fn handshake(&mut self) -> Result<Hello, ChildError> {
        let mut deadlines = Deadlines::new(None, self.limits.start);
        loop {
            let message = self.next(&mut deadlines)?;
            match message.kind {
                from_child::HELLO => return Hello::read(&message.body).map_err(|e| self.invalid_message(&e)),
                from_child::STEP => self.step = self.read_step(&message)?.0,
                from_child::FAILED => return Err(self.failed(&message)),
                kind => return Err(self.unexpected_message(kind)),
            }
        }
    }

    /// Whether the child has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.0.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// Sends a key to the child.
    pub(super) fn load(&mut self, id: u64, key: &ProvingKey) -> Result<(), ChildError> {
        let (header, s) = (&key.header, &key.sections);
        let (n_vars, n_public, domain_size) = (header.n_vars, header.n_public, header.domain_size);
        let load = Load { key: id, n_vars, n_public, domain_size };
        let mut deadlines = Deadlines::new(None, self.limits.step);
        self.step = Step::Load;
        self.send(to_child::LOAD, &[&load.body()], &mut deadlines)?;
        for section in [&s.coefficients, &s.a, &s.b1, &s.b2, &s.c, &s.h] {
            self.send(to_child::SECTION, &[section], &mut deadlines)?;
            super::super::mapped::release(section);
        }
        loop {
            let message = self.next(&mut deadlines)?;
            match message.kind {
                from_child::STEP => self.step = self.read_step(&message)?.0,
                from_child::LOADED => break,
                from_child::FAILED => return Err(self.failed(&message)),
                kind => return Err(self.unexpected_message(kind)),
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
    ) -> Result<Commitments, ChildError> {
        self.proof_number += 1;
        let begin = Encoder::default().u64(self.proof_number).u64(id).0;
        let mut deadlines = Deadlines::new(Some(stop), self.limits.step);
        self.send(to_child::COMMIT, &[&begin, library::bytes_of(witness.values())], &mut deadlines)?;
        loop {
            let message = self.next(&mut deadlines)?;
            match message.kind {
                from_child::STEP => {
                    let (step, percent) = self.read_step(&message)?;
                    self.step = step;
                    on.report(f32::from(percent) / 100.0);
                }
                from_child::COMMITMENTS => {
                    let commitments =
                        protocol::read_commitments(&message.body).map_err(|e| self.invalid_message(&e))?;
                    // The request to stop came too late.
                    return match stop.stopped() {
                        Some(why) => Err(ChildError::Recoverable(BackendError::Stopped(why))),
                        None => Ok(commitments),
                    };
                }
                from_child::FAILED => {
                    let failed = self.failed(&message);
                    return Err(match (failed, stop.stopped()) {
                        (ChildError::Recoverable(BackendError::Stopped(_)), Some(why)) => {
                            ChildError::Recoverable(BackendError::Stopped(why))
                        }
                        (failed, _) => failed,
                    });
                }
                kind => return Err(self.unexpected_message(kind)),
            }
        }
    }

    /// Tells the child that a key is no longer needed.
    pub(super) fn unload(&mut self, id: u64) -> Result<(), ChildError> {
        if !self.loaded.remove(&id) {
            return Ok(());
        }
        let mut deadlines = Deadlines::new(None, self.limits.step);
        self.send(to_child::UNLOAD, &[&id.to_le_bytes()], &mut deadlines)
    }

    /// Checks whether to keep waiting. Sends a stop request, once, if the child should stop.
    fn check_deadlines(&mut self, deadlines: &mut Deadlines<'_>) -> Result<(), ChildError> {
        let now = Instant::now();
        if let Some(why) = deadlines.stop.and_then(StopToken::stopped) {
            match deadlines.kill_at {
                // A proof that ran out of time is not necessarily to blame for that: report the device.
                Some(kill_at) if now >= kill_at && why == StopReason::TimedOut => {
                    let (seconds, step) = (self.limits.stop.as_secs_f64(), self.step.as_str());
                    let why = format!("its process was still in {step} {seconds} s after the deadline of the proof");
                    return Err(self.fatal(why));
                }
                Some(kill_at) if now >= kill_at => return Err(ChildError::Fatal(BackendError::Stopped(why))),
                Some(_) => {}
                None => {
                    deadlines.kill_at = Some(now + self.limits.stop);
                    let message = self.proof_number.to_le_bytes();
                    // Small enough to be sent at once; if not, the child does not read, and is killed soon.
                    let _ = protocol::write(&mut self.socket, to_child::STOP, &message);
                }
            }
        }
        if now.saturating_duration_since(deadlines.last_heard) >= deadlines.max_silence {
            let (seconds, step) = (deadlines.max_silence.as_secs_f64(), self.step.as_str());
            return Err(self.fatal(format!("its process was silent for {seconds:.0} s in {step}")));
        }
        Ok(())
    }

    /// Sends a message with these parts.
    fn send(&mut self, kind: u8, parts: &[&[u8]], deadlines: &mut Deadlines<'_>) -> Result<(), ChildError> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        let header = protocol::encode_header(kind, length);
        for mut part in std::iter::once(&header[..]).chain(parts.iter().copied()) {
            while !part.is_empty() {
                match self.socket.write(part) {
                    Ok(0) => return Err(self.disconnected()),
                    Ok(n) => {
                        part = &part[n..];
                        // Reading is a sign of life.
                        deadlines.last_heard = Instant::now();
                    }
                    Err(e) if is_timeout(&e) => {
                        // Stopping in the middle of a message would leave the child with half of it.
                        let waits = Deadlines { stop: None, kill_at: None, ..*deadlines };
                        self.check_deadlines(&mut { waits })?;
                    }
                    Err(_) => return Err(self.disconnected()),
                }
            }
        }
        Ok(())
    }

    /// Returns the child's next message.
    fn next(&mut self, deadlines: &mut Deadlines<'_>) -> Result<Message, ChildError> {
        let mut piece = [0; 4096];
        loop {
            if let Some(message) = self.take()? {
                deadlines.last_heard = Instant::now();
                return Ok(message);
            }
            match self.socket.read(&mut piece) {
                Ok(0) => return Err(self.disconnected()),
                Ok(n) => self.received.extend_from_slice(&piece[..n]),
                Err(e) if is_timeout(&e) => {}
                Err(_) => return Err(self.disconnected()),
            }
            self.check_deadlines(deadlines)?;
        }
    }

    /// Takes a complete message from the received bytes.
    fn take(&mut self) -> Result<Option<Message>, ChildError> {
        let Some((header, rest)) = self.received.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let (kind, length) = protocol::decode_header(header);
        if length > MAX_ANSWER_BYTES {
            return Err(self.invalid_message(&ProtocolError(format!(
                "expected messages of at most {MAX_ANSWER_BYTES} bytes, got one of {length}"
            ))));
        }
        let Some(body) = rest.get(..length as usize) else { return Ok(None) };
        let body = body.to_vec();
        self.received.drain(..HEADER_BYTES + body.len());
        Ok(Some(Message { kind, body }))
    }

    fn read_step(&self, message: &Message) -> Result<(Step, u8), ChildError> {
        protocol::read_step(&message.body).map_err(|e| self.invalid_message(&e))
    }

    fn fatal(&self, why: String) -> ChildError {
        ChildError::Fatal(BackendError::Unavailable { device: self.label.clone(), why })
    }

    fn invalid_message(&self, ProtocolError(why): &ProtocolError) -> ChildError {
        self.fatal(format!("its process sent an invalid message in {}: {why}", self.step.as_str()))
    }

    fn unexpected_message(&self, kind: u8) -> ChildError {
        self.invalid_message(&ProtocolError(format!("expected another kind of message than {kind}")))
    }

    /// Converts a failure that the child reports. After an error code of the device, none of its results is trusted.
    fn failed(&self, message: &Message) -> ChildError {
        match Failure::read(&message.body) {
            Ok(Failure::Other(why)) => self.fatal(why),
            Ok(Failure::Code { op, code }) => ChildError::Fatal(BackendError::Device { op, code }),
            Ok(Failure::OutOfMemory { needed, free }) => {
                ChildError::Recoverable(BackendError::OutOfMemory { needed, free })
            }
            Ok(Failure::Stopped) => ChildError::Recoverable(BackendError::Stopped(StopReason::Cancelled)),
            Err(e) => self.invalid_message(&e),
        }
    }

    /// Describes how a child that closed its socket ended.
    fn disconnected(&mut self) -> ChildError {
        let step = self.step.as_str();
        let how = match self.child.ended() {
            Some(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("was ended by signal {signal}{}", signal_name(signal)),
                (None, code) => format!("ended with code {}", code.unwrap_or_default()),
            },
            None => "closed its socket".to_owned(),
        };
        // Its last output may still be on its way.
        let until = Instant::now() + EXIT_TIMEOUT;
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
fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
