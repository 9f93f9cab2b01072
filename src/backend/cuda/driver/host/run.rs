//! When work runs, and in which order.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_void};
use std::time::Instant;

use super::super::graph::Work;
use super::super::{Address, Argument, BackendError, Launch, Stream};
use super::ffi::{RawLaunch, kernels_host_run};
use super::state::{Pending, State, Task};
use super::{HostDriver, INVALID_VALUE, Order};

impl HostDriver {
    /// Puts a task into a stream.
    pub(super) fn enqueue(&self, state: &mut State, stream: Stream, task: Task) -> Result<u64, BackendError> {
        let number = state.handle();
        let after = state.streams.insert(stream, vec![number]).unwrap_or_default();
        state.pending.insert(number, Pending { task, after });
        if self.order == Order::Ascending {
            self.finish(state, &[number])?;
        }
        Ok(number)
    }

    /// Runs pending tasks until `tasks` have ended.
    pub(super) fn finish(&self, state: &mut State, tasks: &[u64]) -> Result<(), BackendError> {
        let mut allowed = match self.order {
            Order::Random(_) => state.pending.keys().copied().collect(),
            Order::Ascending | Order::Descending => state.needed(tasks),
        };
        while tasks.iter().any(|task| state.pending.contains_key(task)) {
            let may = |task: &u64| state.pending[task].after.iter().all(|before| !state.pending.contains_key(before));
            let ready: Vec<u64> = allowed.iter().copied().filter(may).collect();
            let chosen = ready[self.choose(state, ready.len())];
            allowed.remove(&chosen);
            if let Some(Pending { task, .. }) = state.pending.remove(&chosen) {
                self.run_task(state, task)?;
            }
        }
        Ok(())
    }

    /// Chooses an index below `count`, which is not 0, according to the order.
    fn choose(&self, state: &mut State, count: usize) -> usize {
        state.choices += 1;
        match self.order {
            Order::Ascending => 0,
            Order::Descending => count - 1,
            // Knuth's multiplier: adjacent numbers lead far apart.
            Order::Random(seed) => {
                let mixed = (seed ^ state.choices).wrapping_mul(6_364_136_223_846_793_005).rotate_right(29);
                (mixed.wrapping_mul(6_364_136_223_846_793_005) >> 33) as usize % count
            }
        }
    }

    fn run_task(&self, state: &mut State, task: Task) -> Result<(), BackendError> {
        match task {
            Task::Work(work) => self.work(state, &work),
            Task::Upload { to, bytes } => {
                // SAFETY: the bytes lay within an allocation when this was put into its stream, and memory is released
                // only when nothing is pending.
                unsafe { (to.0 as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
                Ok(())
            }
            Task::UploadLater { to, from, bytes } => {
                // SAFETY: as above; the caller of `upload_later` guarantees the bytes at `from`.
                unsafe { (to.0 as *mut u8).copy_from_nonoverlapping(from.0, bytes as usize) }
                Ok(())
            }
            Task::DownloadLater { to, from, bytes } => {
                // SAFETY: as above; the caller of `download_later` guarantees the space at `to`.
                unsafe { (from.0 as *const u8).copy_to_nonoverlapping(to.0, bytes as usize) }
                Ok(())
            }
            Task::Event(event) => {
                if let Some(event) = state.events.get_mut(&event) {
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
            Task::Graph(nodes) => {
                let mut left: BTreeSet<usize> = (0..nodes.len()).collect();
                while !left.is_empty() {
                    let may = |node: &usize| nodes[*node].after.iter().all(|before| !left.contains(before));
                    let ready: Vec<usize> = left.iter().copied().filter(may).collect();
                    let chosen = ready[self.choose(state, ready.len())];
                    left.remove(&chosen);
                    self.check(state, &nodes[chosen].work)?;
                    self.work(state, &nodes[chosen].work)?;
                }
                Ok(())
            }
        }
    }

    fn work(&self, state: &mut State, work: &Work) -> Result<(), BackendError> {
        match work {
            Work::Zero { at, bytes } => {
                // SAFETY: the bytes lie within an allocation, as `check` has found.
                unsafe { (at.0 as *mut u8).write_bytes(0, *bytes as usize) }
                Ok(())
            }
            Work::Launch { kernel, grid, block, shared, arguments } => {
                let launch = Launch { kernel, grid: *grid, block: *block, shared: *shared, arguments };
                self.launch_now(state, &launch)
            }
        }
    }

    fn launch_now(&self, state: &mut State, launch: &Launch<'_>) -> Result<(), BackendError> {
        let op = launch.kernel;
        if self.idle == Some(op) {
            return Ok(());
        }
        let most = state.launched.entry(op).or_default();
        *most = launch.shared.max(*most);
        let places: Vec<*const c_void> = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(Address(value)) => std::ptr::from_ref(value).cast(),
                Argument::U32(value) => std::ptr::from_ref(value).cast(),
            })
            .collect();
        let argument_bytes: Vec<u8> = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(_) => 8,
                Argument::U32(_) => 4,
            })
            .collect();
        let Ok(kernel) = CString::new(launch.kernel) else {
            return Err(BackendError::Device { op, code: INVALID_VALUE });
        };
        state.launches += 1;
        let (order, seed) = match self.order {
            Order::Ascending => (0, 0),
            Order::Descending => (1, 0),
            Order::Random(seed) => (2, seed.wrapping_add(state.launches)),
        };
        let raw = RawLaunch {
            kernel: kernel.as_ptr(),
            grid_x: launch.grid.0,
            grid_y: launch.grid.1,
            block: launch.block,
            shared: launch.shared,
            arguments: places.as_ptr(),
            argument_bytes: argument_bytes.as_ptr(),
            argument_count: launch.arguments.len() as u32,
            order,
            seed,
            threads: self.threads,
        };
        let mut message = [0_u8; 512];
        // SAFETY: everything in `raw` lives until the call ends, with as many arguments as it says, whose number and
        // types the callee checks; the message is truncated to its length. The caller of `launch` vouches for what the
        // kernel does with its pointers.
        let status = unsafe { kernels_host_run(&raw, message.as_mut_ptr().cast(), message.len()) };
        if status != 0 {
            let message = CStr::from_bytes_until_nul(&message).map(CStr::to_string_lossy).unwrap_or_default();
            return Err(state.fail(BackendError::Device { op, code: status.into() }, message.into_owned()));
        }
        state.check_guards(op)
    }
}
