//! Uploads through pinned memory, which is set to zero once the device has read it.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::c_uint;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::slice;

use cudarc::driver::sys::{self, CUresult};
use rayon::prelude::*;
use zeroize::Zeroize;

use super::super::super::super::BackendError;
use super::super::Stream;
use super::{UNTIMED, check, create_event};

/// Pinned memory of a stream that uploads, in bytes.
const STAGING_BYTES: usize = 16 << 20;

/// Bytes copied to pinned memory at once. While one piece crosses the bus, the CPU copies the next: small enough for
/// the transfer to begin soon, large enough for the calls (some microseconds) not to matter.
pub(super) const MAX_PIECE: usize = 2 << 20;

/// Size in bytes from which on a copy uses several cores, because one core copies slower than the bus.
const MIN_PARALLEL: usize = 512 << 10;

/// Alignment of pieces, in bytes.
const ALIGNMENT: usize = 256;

/// Most pieces in flight at once: with small pieces, the ring would hold too many to search.
const MAX_PIECES: usize = 1024;

/// Pinned memory through which one stream's uploads go: a ring of pieces, each of which is reused once the
/// device has read it.
///
/// Used and dropped only where its context is current.
pub(super) struct Staging {
    memory: NonNull<u8>,
    /// Pieces that the device may still read, in the order of the stream and of the ring.
    pieces: VecDeque<Piece>,
    /// Events for reuse, and the flags with which they are created.
    events: Vec<sys::CUevent>,
    flags: c_uint,
    /// Offset of the next piece.
    next: usize,
}

/// Whether to wait for a piece.
enum Wait {
    Not,
    /// Until the device has read it. The bytes in this range are overwritten next, and need not be set to zero.
    Until(Range<usize>),
}

struct Piece {
    at: usize,
    bytes: usize,
    /// Event after the copy.
    read: sys::CUevent,
}

// SAFETY: the memory belongs to this value only, and the events are handles that any thread may use.
unsafe impl Send for Staging {}

impl Staging {
    /// `sleeps` says whether threads that wait for its pieces sleep: for events, that is a property of each event,
    /// whatever the context's setting is.
    pub(super) fn new(sleeps: bool) -> Result<Self, BackendError> {
        let sleeping = if sleeps { sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as c_uint } else { 0 };
        let flags = UNTIMED | sleeping;
        let mut memory = ptr::null_mut();
        // SAFETY: `memory` is a place for the result.
        let code = unsafe { sys::cuMemHostAlloc(&mut memory, STAGING_BYTES, 0) };
        // This is host memory, hence not `OutOfMemory`, whatever the code.
        let failed = BackendError::Device { op: "cuMemHostAlloc", code: code as i64 };
        let memory = NonNull::new(memory.cast()).filter(|_| code == CUresult::CUDA_SUCCESS).ok_or(failed)?;
        // SAFETY: `STAGING_BYTES` bytes were just allocated. They are set to zero so that slices of them are
        // initialised.
        unsafe { memory.write_bytes(0, STAGING_BYTES) };
        Ok(Self { memory, pieces: VecDeque::new(), events: Vec::new(), flags, next: 0 })
    }

    /// Copies at most `MAX_PIECE` bytes to pinned memory, and puts their upload into the stream.
    ///
    /// # Safety
    /// There is space for `from.len()` bytes at `to` on the device.
    pub(super) unsafe fn send(&mut self, stream: Stream, to: u64, from: &[u8]) -> Result<(), BackendError> {
        let read = self.events.pop().map_or_else(|| create_event(self.flags), Ok)?;
        let at = self.reserve(from.len()).inspect_err(|_| self.events.push(read))?;
        copy(self.slice(at, from.len()), from);
        let pinned = self.memory.as_ptr().wrapping_add(at);
        // SAFETY: the caller guarantees the space at `to`; the piece stays unchanged until `read` has happened.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, pinned.cast(), from.len(), stream.raw()) };
        let sent = check("cuMemcpyHtoDAsync", code).and_then(|()| {
            // SAFETY: both handles are of this context.
            check("cuEventRecord", unsafe { sys::cuEventRecord(read, stream.raw()) })
        });
        if let Err(error) = sent {
            // The copy may be in flight without an event after it.
            // SAFETY: the stream is of this context.
            let _ = unsafe { sys::cuStreamSynchronize(stream.raw()) };
            self.wipe(at, from.len());
            self.events.push(read);
            return Err(error);
        }
        self.pieces.push_back(Piece { at, bytes: from.len(), read });
        self.next = (at + from.len()).next_multiple_of(ALIGNMENT);
        Ok(())
    }

    /// Returns the offset of free space in the ring, once the device has read what was there.
    fn reserve(&mut self, bytes: usize) -> Result<usize, BackendError> {
        let at = if self.next + bytes > STAGING_BYTES { 0 } else { self.next };
        let end = at + bytes;
        while self.pieces.len() >= MAX_PIECES || self.pieces.iter().any(|p| p.at < end && at < p.at + p.bytes) {
            self.retire(Wait::Until(at..end))?;
        }
        Ok(at)
    }

    /// Returns whether the device may still read some of this memory.
    pub(super) fn is_in_flight(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Sets to zero what the device has read.
    pub(super) fn tidy(&mut self) -> Result<(), BackendError> {
        while !self.pieces.is_empty() {
            if !self.retire(Wait::Not)? {
                break;
            }
        }
        Ok(())
    }

    /// Takes back the oldest piece if the device has read it, or waits for that. Returns whether it took one back.
    fn retire(&mut self, wait: Wait) -> Result<bool, BackendError> {
        let Some(piece) = self.pieces.pop_front() else { return Ok(false) };
        // SAFETY: the event was recorded and not destroyed.
        let code = unsafe {
            match wait {
                Wait::Not => sys::cuEventQuery(piece.read),
                Wait::Until(_) => sys::cuEventSynchronize(piece.read),
            }
        };
        if code == CUresult::CUDA_ERROR_NOT_READY {
            self.pieces.push_front(piece);
            return Ok(false);
        }
        let read = check("cuEventSynchronize", code);
        let overwritten = match wait {
            Wait::Until(soon) => soon.start <= piece.at && piece.at + piece.bytes <= soon.end,
            Wait::Not => false,
        };
        self.events.push(piece.read);
        if read.is_err() {
            // The context is dead and copies no more, so all of the memory is ours again. Earlier pieces that were to
            // be overwritten are in no list any more, but still in the memory.
            self.events.extend(self.pieces.drain(..).map(|piece| piece.read));
            self.wipe(0, STAGING_BYTES);
        } else if !overwritten {
            self.wipe(piece.at, piece.bytes);
        }
        read.map(|()| true)
    }

    fn slice(&mut self, at: usize, bytes: usize) -> &mut [u8] {
        assert!(at <= STAGING_BYTES && bytes <= STAGING_BYTES - at, "a piece is within its ring");
        // SAFETY: the range is within the allocation, initialised, and borrowed from `self`; the device does not read
        // it, because it belongs to no piece in flight.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr().add(at), bytes) }
    }

    fn wipe(&mut self, at: usize, bytes: usize) {
        let slice = self.slice(at, bytes);
        // In words, because byte by byte it would take several times as long.
        // SAFETY: any bytes are a valid `u64`.
        let (head, words, tail) = unsafe { slice.align_to_mut::<u64>() };
        head.zeroize();
        words.zeroize();
        tail.zeroize();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        while self.retire(Wait::Until(0..0)).is_ok_and(|any| any) {}
        // SAFETY: nothing is in flight any more, and neither the memory nor the events are used again.
        unsafe {
            for event in self.events.drain(..) {
                let _ = sys::cuEventDestroy_v2(event);
            }
            let _ = sys::cuMemFreeHost(self.memory.as_ptr().cast());
        }
    }
}

/// Copies as fast as memory allows.
fn copy(to: &mut [u8], from: &[u8]) {
    if from.len() < MIN_PARALLEL {
        to.copy_from_slice(from);
    } else {
        const SHARE: usize = MIN_PARALLEL / 2;
        to.par_chunks_mut(SHARE).zip(from.par_chunks(SHARE)).for_each(|(to, from)| to.copy_from_slice(from));
    }
}
