//! Allocations whose surroundings are watched.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::slice;

use super::ffi::{kernels_host_allow, kernels_host_forbid};

/// Initial content of memory. No field element has such words.
const POISON: u8 = 0xd7;
/// Content of the guards around allocations.
const GUARD: u8 = 0x5a;
/// Bytes of the guards before and after each allocation, and the alignment of addresses.
const GUARD_BYTES: usize = 256;

/// Host memory: a guard, the bytes that were requested, and a guard immediately after them.
pub(super) struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
    pub(super) bytes: usize,
    /// Number of allocations before this one.
    pub(super) number: u64,
}

// SAFETY: the memory belongs to the allocation, which is moved and used as a whole.
unsafe impl Send for Allocation {}

impl Allocation {
    pub(super) fn new(bytes: usize, number: u64) -> Option<Self> {
        let all = bytes.checked_add(2 * GUARD_BYTES)?;
        let layout = Layout::from_size_align(all, GUARD_BYTES).ok()?;
        // SAFETY: the layout is not empty, because it includes guards.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: `all` bytes were allocated at `start`, and `bytes` of them begin after the first guard.
        unsafe {
            start.write_bytes(GUARD, all);
            start.add(GUARD_BYTES).write_bytes(POISON, bytes);
        }
        let allocation = Self { start, layout, bytes, number };
        for guard in allocation.guards() {
            kernels_host_forbid(guard.as_ptr().cast(), guard.len());
        }
        Some(allocation)
    }

    pub(super) fn address(&self) -> u64 {
        self.start.as_ptr() as u64 + GUARD_BYTES as u64
    }

    fn guards(&self) -> [&[u8]; 2] {
        // SAFETY: both guards lie within the allocation and were written when it was made. No kernel is running.
        unsafe {
            let before = slice::from_raw_parts(self.start.as_ptr(), GUARD_BYTES);
            [before, slice::from_raw_parts(self.start.as_ptr().add(GUARD_BYTES + self.bytes), GUARD_BYTES)]
        }
    }

    /// Returns the offset from the first byte, negative if before it, of a guard byte that was changed.
    pub(super) fn broken(&self) -> Option<i64> {
        let [before, behind] = self.guards().map(|guard| guard.iter().position(|&byte| byte != GUARD));
        let before = before.map(|at| at as i64 - GUARD_BYTES as i64);
        before.or_else(|| behind.map(|at| at as i64 + self.bytes as i64))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        kernels_host_allow(self.start.as_ptr().cast(), self.layout.size());
        // SAFETY: allocated with this layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
