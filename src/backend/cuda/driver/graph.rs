//! Work that is captured once and then launched as a whole, as often as needed.
//!
//! Launching a kernel takes the host some microseconds, and the five MSMs of a small proof are a hundred kernels that
//! take the device little longer. While a stream's work is *captured* ([`Captures`]), none of it runs: kernel launches
//! and memsets become the nodes of a graph, and the order given by streams and their events becomes the edges. A stream
//! that waits for an event of captured work is captured, too, from there on, as in CUDA's stream capture. Each driver
//! turns the nodes into what it can run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::{Address, Argument, BackendError, Event, Graph, GraphCounts, Launch, Stream};
use crate::model::locked;

/// CUDA's codes for what cannot be captured: calls other than launches, memsets and events; streams that the first one
/// does not wait for at the end; events that belong to another graph or to none.
const UNSUPPORTED: i64 = 900;
const UNJOINED: i64 = 904;
const ISOLATION: i64 = 905;

/// Bit that marks the numbers of events of captured work. Neither addresses nor counts have it.
const CAPTURED: u64 = 1 << 63;

/// An operation of a graph.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Runs a kernel.
    Launch { kernel: &'static str, grid: (u32, u32), block: u32, shared: u32, arguments: Vec<Argument> },
    /// Sets bytes to zero.
    Zero { at: Address, bytes: u64 },
}

impl Work {
    pub(super) fn of(launch: &Launch<'_>) -> Self {
        let Launch { kernel, grid, block, shared, arguments } = *launch;
        Self::Launch { kernel, grid, block, shared, arguments: arguments.to_vec() }
    }
}

/// An operation, and the earlier nodes of the graph that must have ended.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) work: Work,
    pub(super) after: Vec<usize>,
}

/// Counts of a driver's graphs, and the last error.
#[derive(Default)]
pub(super) struct GraphStats {
    made: AtomicU64,
    launches: AtomicU64,
    error: Mutex<Option<BackendError>>,
}

impl GraphStats {
    /// Counts the result of making a graph, and passes it on.
    pub(super) fn made(&self, made: Result<Graph, BackendError>) -> Result<Graph, BackendError> {
        self.count(&self.made, made)
    }

    /// Counts the result of launching a graph, and passes it on.
    pub(super) fn launched(&self, launched: Result<(), BackendError>) -> Result<(), BackendError> {
        self.count(&self.launches, launched)
    }

    fn count<T>(&self, what: &AtomicU64, came: Result<T, BackendError>) -> Result<T, BackendError> {
        match &came {
            Ok(_) => drop(what.fetch_add(1, Ordering::Relaxed)),
            Err(error) => *self.error() = Some(error.clone()),
        }
        came
    }

    fn error(&self) -> MutexGuard<'_, Option<BackendError>> {
        locked(&self.error)
    }

    pub(super) fn counts(&self) -> GraphCounts {
        let [made, launches] = [&self.made, &self.launches].map(|count| count.load(Ordering::Relaxed));
        GraphCounts { made, launches, error: self.error().clone() }
    }
}

/// The graphs that are being captured on a driver's streams.
#[derive(Default)]
pub(super) struct Captures {
    /// Number of these graphs: mostly 0, which calls can see without taking the lock.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Nodes of each graph, by the stream that its capture began with.
    graphs: HashMap<Stream, Vec<Node>>,
    /// For each captured stream: its graph's first stream, and the nodes that its next node comes after.
    streams: HashMap<Stream, (Stream, Vec<usize>)>,
    /// The same for each event.
    events: HashMap<Event, (Stream, Vec<usize>)>,
    numbers: u64,
}

impl Captures {
    /// Captures what `work` puts into `stream` and into streams that wait for it, and returns the nodes.
    ///
    /// # Errors
    /// Those of `work`; `Device` with code 904 if `stream` has not waited for all captured work at the end, or with
    /// code 905 if `stream` is already being captured.
    pub(super) fn capture(
        &self,
        stream: Stream,
        work: &mut dyn FnMut() -> Result<(), BackendError>,
    ) -> Result<Vec<Node>, BackendError> {
        {
            let mut inner = self.lock();
            if inner.streams.contains_key(&stream) {
                return Err(BackendError::Device { op: "graph", code: ISOLATION });
            }
            inner.graphs.insert(stream, Vec::new());
            inner.streams.insert(stream, (stream, Vec::new()));
            self.count.fetch_add(1, Ordering::AcqRel);
        }
        let guard = CaptureGuard { captures: self, stream };
        work()?;
        let (nodes, last) = self.end(stream);
        std::mem::forget(guard);
        if before(&nodes, last).iter().any(|joined| !joined) {
            return Err(BackendError::Device { op: "graph", code: UNJOINED });
        }
        Ok(nodes)
    }

    /// Ends the capture of a graph, and returns its nodes and those that its first stream ended with.
    fn end(&self, stream: Stream) -> (Vec<Node>, Vec<usize>) {
        let mut inner = self.lock();
        self.count.fetch_sub(1, Ordering::AcqRel);
        let nodes = inner.graphs.remove(&stream).unwrap_or_default();
        let last = inner.streams.remove(&stream).map(|(_, last)| last).unwrap_or_default();
        inner.streams.retain(|_, (first, _)| *first != stream);
        inner.events.retain(|_, (first, _)| *first != stream);
        (nodes, last)
    }

    /// Captures an operation if the stream is being captured; returns whether it is.
    pub(super) fn add(&self, stream: Stream, work: impl FnOnce() -> Work) -> bool {
        if self.is_idle() {
            return false;
        }
        let mut inner = self.lock();
        let Inner { graphs, streams, .. } = &mut *inner;
        let Some((first, last)) = streams.get_mut(&stream) else { return false };
        let Some(nodes) = graphs.get_mut(first) else { return false };
        nodes.push(Node { work: work(), after: std::mem::replace(last, vec![nodes.len()]) });
        true
    }

    /// Returns an event after the stream's work so far if the stream is being captured.
    pub(super) fn record(&self, stream: Stream) -> Option<Event> {
        if self.is_idle() {
            return None;
        }
        let mut inner = self.lock();
        let at = inner.streams.get(&stream)?.clone();
        inner.numbers += 1;
        let event = Event(CAPTURED | inner.numbers);
        inner.events.insert(event, at);
        Some(event)
    }

    /// Makes a stream's later work come after an event if either is captured; returns whether one is.
    ///
    /// # Errors
    /// `Device` with code 905 if the stream and the event belong to different graphs, or if only the stream belongs to
    /// one. A stream that belongs to none joins the event's graph.
    pub(super) fn wait(&self, stream: Stream, event: Event) -> Result<bool, BackendError> {
        if self.is_idle() && event.0 & CAPTURED == 0 {
            return Ok(false);
        }
        let isolated = Err(BackendError::Device { op: "wait", code: ISOLATION });
        let mut inner = self.lock();
        let Inner { streams, events, .. } = &mut *inner;
        match (streams.get_mut(&stream), events.get(&event)) {
            (None, None) if event.0 & CAPTURED == 0 => return Ok(false),
            (None, Some(at)) => drop(streams.insert(stream, at.clone())),
            (Some((first, last)), Some((graph, nodes))) if first == graph => {
                last.extend(nodes.iter().filter(|node| !last.contains(node)).copied().collect::<Vec<_>>());
            }
            _ => return isolated,
        }
        Ok(true)
    }

    /// Forgets an event; returns whether it was one of captured work.
    pub(super) fn destroy(&self, event: Event) -> bool {
        let captured = event.0 & CAPTURED != 0;
        if captured {
            self.lock().events.remove(&event);
        }
        captured
    }

    /// Returns an error if the stream is being captured, because `op` needs its work to run.
    pub(super) fn refuse(&self, stream: Stream, op: &'static str) -> Result<(), BackendError> {
        let captured = !self.is_idle() && self.lock().streams.contains_key(&stream);
        if captured { Err(BackendError::Device { op, code: UNSUPPORTED }) } else { Ok(()) }
    }

    fn is_idle(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        locked(&self.inner)
    }
}

/// Ends the capture of a graph whose work failed or panicked.
struct CaptureGuard<'a> {
    captures: &'a Captures,
    stream: Stream,
}

impl Drop for CaptureGuard<'_> {
    fn drop(&mut self) {
        self.captures.end(self.stream);
    }
}

/// Returns which nodes are in `last` or come before a node in `last`.
fn before(nodes: &[Node], mut last: Vec<usize>) -> Vec<bool> {
    let mut found = vec![false; nodes.len()];
    while let Some(node) = last.pop() {
        if !std::mem::replace(&mut found[node], true) {
            last.extend(&nodes[node].after);
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const A: Stream = Stream(1);
    const B: Stream = Stream(2);

    fn zero(bytes: u64) -> impl FnOnce() -> Work {
        move || Work::Zero { at: Address(256), bytes }
    }

    fn edges(nodes: &[Node]) -> Vec<Vec<usize>> {
        nodes.iter().map(|node| node.after.clone()).collect()
    }

    fn code(captures: &Captures, mut work: impl FnMut() -> Result<(), BackendError>) -> i64 {
        match captures.capture(A, &mut work) {
            Err(BackendError::Device { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn streams_and_events_become_edges() {
        let captures = Captures::default();
        assert!(!captures.add(A, zero(1)) && captures.record(A).is_none());
        let nodes = captures.capture(A, &mut || {
            assert!(captures.add(A, zero(1)) && !captures.add(B, zero(1)));
            let begun = captures.record(A).unwrap();
            assert!(captures.add(A, zero(2)));
            assert!(captures.wait(B, begun)? && captures.add(B, zero(3)) && captures.add(B, zero(4)));
            let done = captures.record(B).unwrap();
            // Waiting twice adds one edge.
            assert!(captures.wait(A, done)? && captures.wait(A, done)? && captures.add(A, zero(5)));
            assert!(captures.destroy(begun) && captures.destroy(done) && !captures.destroy(Event(7)));
            assert!(captures.refuse(A, "upload").is_err() && captures.refuse(Stream(3), "upload").is_ok());
            Ok(())
        });
        assert_eq!(edges(&nodes.unwrap()), [vec![], vec![0], vec![0], vec![2], vec![1, 3]]);
        assert!(!captures.add(A, zero(1)) && !captures.add(B, zero(1)) && captures.refuse(A, "upload").is_ok());
        assert_eq!(captures.capture(A, &mut || Ok(())).unwrap().len(), 0);
    }

    #[test]
    fn what_cannot_be_captured() {
        let captures = Captures::default();
        let isolated = BackendError::Device { op: "wait", code: ISOLATION };
        // A stream that is not waited for; an error of the work; a capture within one of the same stream; an
        // event from outside.
        assert_eq!(
            code(&captures, || {
                captures.add(A, zero(1));
                captures.wait(B, captures.record(A).unwrap())?;
                captures.add(B, zero(1));
                Ok(())
            }),
            UNJOINED
        );
        assert_eq!(code(&captures, || Err(BackendError::Device { op: "launch", code: 3 })), 3);
        assert_eq!(code(&captures, || captures.capture(A, &mut || Ok(())).map(drop)), ISOLATION);
        assert_eq!(code(&captures, || captures.wait(A, Event(5)).map(drop)), ISOLATION);
        // An event of another graph, and of one that has ended.
        let event = std::cell::Cell::new(Event(0));
        let taken = captures.capture(B, &mut || {
            event.set(captures.record(B).unwrap());
            Ok(())
        });
        assert_eq!(taken.unwrap().len(), 0);
        assert_eq!(code(&captures, || captures.wait(A, event.get()).map(drop)), ISOLATION);
        assert_eq!(captures.wait(A, event.get()), Err(isolated.clone()));
        let both = captures.capture(B, &mut || {
            event.set(captures.record(B).unwrap());
            captures.capture(A, &mut || captures.wait(A, event.get()).map(drop)).map(drop)
        });
        assert_eq!(both.map(|nodes| nodes.len()), Err(isolated));
        assert_eq!(captures.capture(A, &mut || Ok(())).unwrap().len(), 0);
    }
}
