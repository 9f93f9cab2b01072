//! Device memory that is freed when it is no longer used.
//!
//! Buffers that are used together are suballocated from one allocation, an [`Arena`]: allocating memory from a driver
//! is slow, and so is clearing many small buffers.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::super::BackendError;
use super::driver::{Address, Argument, Driver, Stream};

/// Alignment of buffers in bytes, which is also that of allocations.
const ALIGNMENT: u64 = 256;

/// Returns the bytes that a buffer takes in an [`Arena`], padding included.
const fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Returns the bytes that buffers of these sizes take together in an [`Arena`], padding included.
pub(super) fn padded_total(sizes: &[u64]) -> u64 {
    sizes.iter().map(|bytes| padded(*bytes)).sum()
}

/// An allocation, released when it is dropped.
struct Allocation {
    driver: Arc<dyn Driver>,
    address: Address,
    bytes: u64,
}

impl Allocation {
    fn new(driver: &Arc<dyn Driver>, bytes: u64) -> Result<Arc<Self>, BackendError> {
        let address = driver.allocate(bytes)?;
        Ok(Arc::new(Self { driver: driver.clone(), address, bytes }))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the address came from `allocate`, and nothing uses it any more: arguments made from buffers in this
        // allocation are consumed by launches, and `release` waits for their work.
        unsafe { self.driver.release(self.address) }
    }
}

/// A buffer in device memory. Its content is undefined until it is written.
pub(super) struct Buffer {
    /// `None` if the buffer is empty; its address is null then.
    allocation: Option<Arc<Allocation>>,
    address: Address,
    bytes: u64,
}

impl Buffer {
    /// Allocates a buffer of `bytes` bytes by itself.
    pub(super) fn new(driver: &Arc<dyn Driver>, bytes: u64) -> Result<Self, BackendError> {
        if bytes == 0 {
            return Ok(Self::empty());
        }
        let allocation = Allocation::new(driver, bytes)?;
        Ok(Self { address: allocation.address, allocation: Some(allocation), bytes })
    }

    fn empty() -> Self {
        Self { allocation: None, address: Address::default(), bytes: 0 }
    }

    /// Allocates a buffer by itself and uploads `content` to it.
    pub(super) fn with(driver: &Arc<dyn Driver>, stream: Stream, content: &[u8]) -> Result<Self, BackendError> {
        let buffer = Self::new(driver, content.len() as u64)?;
        buffer.upload(stream, 0, content)?;
        Ok(buffer)
    }

    /// Returns the size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the address of the buffer as a kernel argument.
    pub(super) fn argument(&self) -> Argument {
        Argument::Pointer(self.address)
    }

    /// Returns the address of byte `offset` as a kernel argument.
    pub(super) fn argument_at(&self, offset: u64) -> Argument {
        debug_assert!(offset <= self.bytes, "{offset} in a buffer of {}", self.bytes);
        Argument::Pointer(Address(self.address.0 + offset))
    }

    /// Writes `from` at byte `offset`.
    pub(super) fn upload(&self, stream: Stream, offset: u64, from: &[u8]) -> Result<(), BackendError> {
        let range = self.range("bytes of a buffer to upload to", offset, from.len() as u64)?;
        let Some((driver, to)) = range else { return Ok(()) };
        // SAFETY: `range` checked that the bytes lie in this buffer.
        unsafe { driver.upload(stream, to, from) }
    }

    /// Reads from byte `offset` on, after all work in the stream so far.
    pub(super) fn download(&self, stream: Stream, offset: u64, to: &mut [u8]) -> Result<(), BackendError> {
        let range = self.range("bytes of a buffer to download from", offset, to.len() as u64)?;
        let Some((driver, from)) = range else { return Ok(()) };
        // SAFETY: `range` checked that the bytes lie in this buffer.
        unsafe { driver.download(stream, to, from) }
    }

    /// Sets `bytes` bytes from byte `offset` on to zero.
    pub(super) fn zero(&self, stream: Stream, offset: u64, bytes: u64) -> Result<(), BackendError> {
        let Some((driver, at)) = self.range("bytes of a buffer to clear", offset, bytes)? else { return Ok(()) };
        // SAFETY: `range` checked that the bytes lie in this buffer.
        unsafe { driver.zero(stream, at, bytes) }
    }

    /// Returns the driver and the address of byte `offset` if `bytes` bytes lie there, or `None` if
    /// the buffer is empty.
    fn range(
        &self,
        what: &'static str,
        offset: u64,
        bytes: u64,
    ) -> Result<Option<(&dyn Driver, Address)>, BackendError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => {
                Ok(self.allocation.as_ref().map(|allocation| (&*allocation.driver, Address(self.address.0 + offset))))
            }
            end => Err(BackendError::TooSmall { what, needed: end.unwrap_or(u64::MAX), available: self.bytes }),
        }
    }
}

/// Memory for buffers that are used together: one allocation, of which they take one part after another. On a driver
/// for tests each is an allocation of its own, so that writes between buffers are detected.
pub(super) struct Arena {
    driver: Arc<dyn Driver>,
    /// One allocation, or one for each buffer.
    allocations: Vec<Arc<Allocation>>,
    /// Bytes in total, and bytes that buffers have taken.
    bytes: u64,
    used: u64,
}

impl Arena {
    /// Allocates memory for buffers that take `bytes` bytes together, as computed by [`padded_total`].
    pub(super) fn new(driver: &Arc<dyn Driver>, bytes: u64) -> Result<Self, BackendError> {
        let mut arena = Self { driver: driver.clone(), allocations: Vec::new(), bytes, used: 0 };
        if driver.suballocates() && bytes > 0 {
            arena.allocations.push(Allocation::new(driver, bytes)?);
        }
        Ok(arena)
    }

    /// Allocates the next buffers.
    ///
    /// # Errors
    /// `TooSmall` if too few bytes are left.
    pub(super) fn allocate<const N: usize>(&mut self, sizes: [u64; N]) -> Result<[Buffer; N], BackendError> {
        let end = self.used + padded_total(&sizes);
        if end > self.bytes {
            let what = "bytes of an arena";
            return Err(BackendError::TooSmall { what, needed: end, available: self.bytes });
        }
        let mut buffers = sizes.map(|_| Buffer::empty());
        for (buffer, bytes) in buffers.iter_mut().zip(sizes).filter(|(_, bytes)| *bytes > 0) {
            *buffer = self.next(bytes)?;
        }
        Ok(buffers)
    }

    fn next(&mut self, bytes: u64) -> Result<Buffer, BackendError> {
        if !self.driver.suballocates() {
            let buffer = Buffer::new(&self.driver, bytes)?;
            self.allocations.extend(buffer.allocation.clone());
            self.used += padded(bytes);
            return Ok(buffer);
        }
        let allocation = self.allocations.first().cloned();
        let address = allocation.as_ref().map_or(0, |allocation| allocation.address.0) + self.used;
        self.used += padded(bytes);
        Ok(Buffer { allocation, address: Address(address), bytes })
    }

    /// Sets the whole arena to zero.
    pub(super) fn zero(&self, stream: Stream) -> Result<(), BackendError> {
        // SAFETY: `allocation.bytes` bytes were allocated at `allocation.address`.
        self.allocations
            .iter()
            .try_for_each(|allocation| unsafe { self.driver.zero(stream, allocation.address, allocation.bytes) })
    }
}

#[cfg(all(test, feature = "kernels-on-host"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::driver::host::{HostDriver, Order};
    use super::*;

    fn content(stream: Stream, buffer: &Buffer) -> Vec<u8> {
        let mut bytes = vec![9; buffer.bytes() as usize];
        buffer.download(stream, 0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn buffers_of_an_arena_are_one_allocation_and_are_cleared_at_once() {
        const SIZES: [u64; 5] = [1, 0, 257, 256, 8];
        let host = HostDriver::new(Order::Ascending);
        for (host, allocations, used) in
            [(host.with_suballocation(), 1, 1280), (HostDriver::new(Order::Ascending), 4, 522)]
        {
            let host = Arc::new(host);
            let driver: Arc<dyn Driver> = host.clone();
            let stream = driver.create_stream().unwrap();
            let mut arena = Arena::new(&driver, padded_total(&SIZES)).unwrap();
            let buffers = arena.allocate(SIZES).unwrap();
            assert_eq!((host.allocations(), host.used()), (allocations, used));
            for (i, buffer) in buffers.iter().enumerate() {
                assert_eq!(buffer.bytes(), SIZES[i]);
                assert!(buffer.address.0.is_multiple_of(ALIGNMENT));
                buffer.upload(stream, 0, &vec![i as u8 + 1; SIZES[i] as usize]).unwrap();
            }
            for (i, buffer) in buffers.iter().enumerate() {
                assert_eq!(content(stream, buffer), vec![i as u8 + 1; SIZES[i] as usize], "buffer {i}");
            }
            arena.zero(stream).unwrap();
            assert!(buffers.iter().all(|buffer| content(stream, buffer).iter().all(|byte| *byte == 0)));
            let what = "bytes of an arena";
            assert_eq!(arena.allocate([1]).err(), Some(BackendError::TooSmall { what, needed: 1536, available: 1280 }));
            // The buffers keep their memory after the arena is dropped.
            drop(arena);
            assert_eq!((content(stream, &buffers[2]).len(), host.used()), (257, used));
            drop(buffers);
            assert_eq!((host.used(), host.fault()), (0, None));
        }
    }

    #[test]
    fn an_empty_buffer_takes_no_memory_and_has_no_content() {
        let host = Arc::new(HostDriver::new(Order::Ascending));
        let driver: Arc<dyn Driver> = host.clone();
        let stream = driver.create_stream().unwrap();
        let empty = Buffer::with(&driver, stream, &[]).unwrap();
        assert_eq!((empty.bytes(), host.allocations()), (0, 0));
        empty.zero(stream, 0, 0).and_then(|()| empty.download(stream, 0, &mut [])).unwrap();
        let what = "bytes of a buffer to upload to";
        assert_eq!(empty.upload(stream, 0, &[1]), Err(BackendError::TooSmall { what, needed: 1, available: 0 }));
    }
}
