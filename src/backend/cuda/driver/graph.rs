//! Work that is noted once and then run as one launch, as often as it is wanted.
//!
//! Putting a kernel into a stream takes the host some microseconds, and the five products of a small proof are a hundred
//! kernels that take the device little longer. While a stream's work is *noted* ([`Notes`]), nothing of it runs: launches
//! and clearings become the nodes of a graph, and what a stream and its events order become the edges. A stream that waits
//! for an event of noted work is noted, too, from there on, as in CUDA's stream capture. Each driver makes of the nodes
//! what it runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::{Address, Argument, BackendError, Event, Graph, GraphCounts, Launch, Stream};
use crate::model::locked;

/// CUDA's codes for what cannot be noted: other calls than launches, clearings and events; streams that the first one does
/// not wait for at the end; events of one graph in another, or of none.
const UNSUPPORTED: i64 = 900;
const UNJOINED: i64 = 904;
const ISOLATION: i64 = 905;

/// What marks the number of an event of noted work. Neither addresses nor counts have this bit.
const NOTED: u64 = 1 << 63;

/// Something that a graph does.
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

/// Some work, and which nodes before it in the graph must have ended.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) work: Work,
    pub(super) after: Vec<usize>,
}

/// Counts what comes of a driver's graphs.
#[derive(Default)]
pub(super) struct Tally {
    made: AtomicU64,
    launches: AtomicU64,
    error: Mutex<Option<BackendError>>,
}

impl Tally {
    /// Passes on what came of making one.
    pub(super) fn made(&self, made: Result<Graph, BackendError>) -> Result<Graph, BackendError> {
        self.count(&self.made, made)
    }

    /// Passes on what came of launching one.
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

/// The graphs that are being noted on a driver's streams.
#[derive(Default)]
pub(super) struct Notes {
    /// How many: mostly none, which no call should need a lock to know.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By the stream that each began with.
    graphs: HashMap<Stream, Vec<Node>>,
    /// Of each stream that is noted, its graph's first stream, and the nodes that its next one comes after.
    streams: HashMap<Stream, (Stream, Vec<usize>)>,
    /// The same of events.
    events: HashMap<Event, (Stream, Vec<usize>)>,
    numbers: u64,
}

impl Notes {
    /// The nodes of what `work` puts into `stream` and into those that wait for it.
    ///
    /// # Errors
    /// Those of `work`; `Device` with code 904 if at the end `stream` has not waited for all of them, with 905 if `stream` is
    /// being noted already.
    pub(super) fn take(
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
        let noting = Noting { notes: self, stream };
        work()?;
        let (nodes, last) = self.end(stream);
        std::mem::forget(noting);
        if before(&nodes, last).iter().any(|joined| !joined) {
            return Err(BackendError::Device { op: "graph", code: UNJOINED });
        }
        Ok(nodes)
    }

    /// The nodes of a graph that is noted no longer, and those that its first stream ended with.
    fn end(&self, stream: Stream) -> (Vec<Node>, Vec<usize>) {
        let mut inner = self.lock();
        self.count.fetch_sub(1, Ordering::AcqRel);
        let nodes = inner.graphs.remove(&stream).unwrap_or_default();
        let last = inner.streams.remove(&stream).map(|(_, last)| last).unwrap_or_default();
        inner.streams.retain(|_, (first, _)| *first != stream);
        inner.events.retain(|_, (first, _)| *first != stream);
        (nodes, last)
    }

    /// Notes work, if the stream's is noted; says whether it is.
    pub(super) fn put(&self, stream: Stream, work: impl FnOnce() -> Work) -> bool {
        if self.none() {
            return false;
        }
        let mut inner = self.lock();
        let Inner { graphs, streams, .. } = &mut *inner;
        let Some((first, last)) = streams.get_mut(&stream) else { return false };
        let Some(nodes) = graphs.get_mut(first) else { return false };
        nodes.push(Node { work: work(), after: std::mem::replace(last, vec![nodes.len()]) });
        true
    }

    /// An event after the stream's work, if that is noted.
    pub(super) fn record(&self, stream: Stream) -> Option<Event> {
        if self.none() {
            return None;
        }
        let mut inner = self.lock();
        let at = inner.streams.get(&stream)?.clone();
        inner.numbers += 1;
        let event = Event(NOTED | inner.numbers);
        inner.events.insert(event, at);
        Some(event)
    }

    /// Lets a stream's later work come after an event's, if either is noted; says whether one is.
    ///
    /// # Errors
    /// `Device` with code 905 if they do not belong to the same graph, or one of them to none. A stream that belongs to none
    /// becomes a part of the event's.
    pub(super) fn wait(&self, stream: Stream, event: Event) -> Result<bool, BackendError> {
        if self.none() && event.0 & NOTED == 0 {
            return Ok(false);
        }
        let isolated = Err(BackendError::Device { op: "wait", code: ISOLATION });
        let mut inner = self.lock();
        let Inner { streams, events, .. } = &mut *inner;
        match (streams.get_mut(&stream), events.get(&event)) {
            (None, None) if event.0 & NOTED == 0 => return Ok(false),
            (None, Some(at)) => drop(streams.insert(stream, at.clone())),
            (Some((first, last)), Some((graph, nodes))) if first == graph => {
                last.extend(nodes.iter().filter(|node| !last.contains(node)).copied().collect::<Vec<_>>());
            }
            _ => return isolated,
        }
        Ok(true)
    }

    /// Forgets an event; says whether it was one of noted work.
    pub(super) fn destroy(&self, event: Event) -> bool {
        let noted = event.0 & NOTED != 0;
        if noted {
            self.lock().events.remove(&event);
        }
        noted
    }

    /// An error if the stream's work is noted: `op` needs it to run.
    pub(super) fn refuse(&self, stream: Stream, op: &'static str) -> Result<(), BackendError> {
        let noted = !self.none() && self.lock().streams.contains_key(&stream);
        if noted { Err(BackendError::Device { op, code: UNSUPPORTED }) } else { Ok(()) }
    }

    fn none(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        locked(&self.inner)
    }
}

/// Ends the noting of a graph whose work failed or panicked.
struct Noting<'a> {
    notes: &'a Notes,
    stream: Stream,
}

impl Drop for Noting<'_> {
    fn drop(&mut self) {
        self.notes.end(self.stream);
    }
}

/// Which nodes are among `last` or come before them.
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

    fn code(notes: &Notes, mut work: impl FnMut() -> Result<(), BackendError>) -> i64 {
        match notes.take(A, &mut work) {
            Err(BackendError::Device { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn streams_and_events_become_edges() {
        let notes = Notes::default();
        assert!(!notes.put(A, zero(1)) && notes.record(A).is_none());
        let nodes = notes.take(A, &mut || {
            assert!(notes.put(A, zero(1)) && !notes.put(B, zero(1)));
            let begun = notes.record(A).unwrap();
            assert!(notes.put(A, zero(2)));
            assert!(notes.wait(B, begun)? && notes.put(B, zero(3)) && notes.put(B, zero(4)));
            let done = notes.record(B).unwrap();
            // Twice the same is one edge.
            assert!(notes.wait(A, done)? && notes.wait(A, done)? && notes.put(A, zero(5)));
            assert!(notes.destroy(begun) && notes.destroy(done) && !notes.destroy(Event(7)));
            assert!(notes.refuse(A, "upload").is_err() && notes.refuse(Stream(3), "upload").is_ok());
            Ok(())
        });
        assert_eq!(edges(&nodes.unwrap()), [vec![], vec![0], vec![0], vec![2], vec![1, 3]]);
        assert!(!notes.put(A, zero(1)) && !notes.put(B, zero(1)) && notes.refuse(A, "upload").is_ok());
        assert_eq!(notes.take(A, &mut || Ok(())).unwrap().len(), 0);
    }

    #[test]
    fn what_cannot_be_noted() {
        let notes = Notes::default();
        let isolated = BackendError::Device { op: "wait", code: ISOLATION };
        // A stream that is not waited for; an error of the work; a graph within the same; an event from outside.
        assert_eq!(
            code(&notes, || {
                notes.put(A, zero(1));
                notes.wait(B, notes.record(A).unwrap())?;
                notes.put(B, zero(1));
                Ok(())
            }),
            UNJOINED
        );
        assert_eq!(code(&notes, || Err(BackendError::Device { op: "launch", code: 3 })), 3);
        assert_eq!(code(&notes, || notes.take(A, &mut || Ok(())).map(drop)), ISOLATION);
        assert_eq!(code(&notes, || notes.wait(A, Event(5)).map(drop)), ISOLATION);
        // One of another graph, and of one that has ended.
        let event = std::cell::Cell::new(Event(0));
        let taken = notes.take(B, &mut || {
            event.set(notes.record(B).unwrap());
            Ok(())
        });
        assert_eq!(taken.unwrap().len(), 0);
        assert_eq!(code(&notes, || notes.wait(A, event.get()).map(drop)), ISOLATION);
        assert_eq!(notes.wait(A, event.get()), Err(isolated.clone()));
        let both = notes.take(B, &mut || {
            event.set(notes.record(B).unwrap());
            notes.take(A, &mut || notes.wait(A, event.get()).map(drop)).map(drop)
        });
        assert_eq!(both.map(|nodes| nodes.len()), Err(isolated));
        assert_eq!(notes.take(A, &mut || Ok(())).unwrap().len(), 0);
    }
}
