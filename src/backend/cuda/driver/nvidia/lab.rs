//! Copies and times that only benches and the checks of a GPU need.
#![allow(unsafe_code)]

use std::time::Instant;

use super::super::super::super::BackendError;
use super::super::{Address, Driver, Launch, Stream};
use super::NvidiaDriver;

impl NvidiaDriver {
    /// Uploads bytes to the device, downloads them, and returns the result.
    pub fn echo(&self, from: &[u8]) -> Result<Vec<u8>, BackendError> {
        let stream = self.create_stream()?;
        let echoed = self.allocate(from.len() as u64).and_then(|at| {
            let mut back = vec![0; from.len()];
            // SAFETY: there is space for `from.len()` bytes at `at`.
            let sent = unsafe { self.upload(stream, at, from) };
            // SAFETY: `from.len()` bytes were allocated at `at`, and `back` is as long.
            let fetched = sent.and_then(|()| unsafe { self.download(stream, &mut back, at) });
            // SAFETY: allocated above, and not used any more.
            unsafe { self.release(at) };
            fetched.map(|()| back)
        });
        self.destroy_stream(stream);
        echoed
    }

    /// Returns the milliseconds that an upload of `bytes` bytes takes, from ordinary memory until the device has them,
    /// one figure per round.
    pub fn time_uploads(&self, bytes: u64, rounds: usize) -> Result<Vec<f64>, BackendError> {
        let from = vec![0x5a_u8; bytes as usize];
        self.time_at(bytes, rounds, |stream, to| {
            // SAFETY: there is space for `bytes` bytes at `to`.
            unsafe { self.upload(stream, to, &from) }
        })
    }

    /// Returns the milliseconds that the device takes to set `bytes` bytes to zero, one figure per round.
    pub fn time_zero(&self, bytes: u64, rounds: usize) -> Result<Vec<f64>, BackendError> {
        self.time_at(bytes, rounds, |stream, at| {
            // SAFETY: there are `bytes` bytes at `at`.
            unsafe { self.zero(stream, at, bytes) }
        })
    }

    /// Returns the milliseconds of one launch of the kernel `no_op`, which has no arguments: the figure of each round
    /// is the mean of `launches` launches in a row, with one wait at the end.
    pub fn time_launches(&self, launches: u32, rounds: usize) -> Result<Vec<f64>, BackendError> {
        let no_op = Launch { kernel: "no_op", grid: (1, 1), block: 32, shared: 0, arguments: &[] };
        let stream = self.create_stream()?;
        let round = |_| {
            let start = Instant::now();
            for _ in 0..launches {
                // SAFETY: the kernel takes no arguments and touches no memory.
                unsafe { self.launch(stream, no_op)? };
            }
            self.synchronize(stream)?;
            Ok(start.elapsed().as_secs_f64() * 1e3 / f64::from(launches.max(1)))
        };
        let times = (0..rounds).map(round).collect();
        self.destroy_stream(stream);
        times
    }

    /// Returns the milliseconds between events before and after work on a stream and on `bytes` bytes of the
    /// device, one per round.
    fn time_at(
        &self,
        bytes: u64,
        rounds: usize,
        work: impl Fn(Stream, Address) -> Result<(), BackendError>,
    ) -> Result<Vec<f64>, BackendError> {
        let stream = self.create_stream()?;
        let times = self.allocate(bytes).and_then(|at| {
            let round = |_| {
                let start = self.record(stream)?;
                let worked = work(stream, at);
                let end = self.record(stream).inspect_err(|_| self.destroy_event(start))?;
                let waited = worked.and_then(|()| self.synchronize(stream));
                let time = waited.and_then(|()| self.elapsed(start, end));
                self.destroy_event(start);
                self.destroy_event(end);
                time.map(f64::from)
            };
            let times = (0..rounds).map(round).collect();
            // SAFETY: allocated above, and not used any more.
            unsafe { self.release(at) };
            times
        });
        self.destroy_stream(stream);
        times
    }
}
