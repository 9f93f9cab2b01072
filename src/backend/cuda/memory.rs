//! Device memory that is given back when it is no longer used.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::super::BackendError;
use super::driver::{Address, Argument, Driver, Stream};

/// Device memory. Its content is anything until it is written.
pub(super) struct Buffer {
    driver: Arc<dyn Driver>,
    address: Address,
    bytes: u64,
}

impl Buffer {
    /// Room for `bytes` bytes (at least one, so that an address is there).
    pub(super) fn new(driver: &Arc<dyn Driver>, bytes: u64) -> Result<Self, BackendError> {
        let bytes = bytes.max(1);
        let address = driver.allocate(bytes)?;
        Ok(Self { driver: driver.clone(), address, bytes })
    }

    /// The same with content.
    pub(super) fn with(driver: &Arc<dyn Driver>, stream: Stream, content: &[u8]) -> Result<Self, BackendError> {
        let buffer = Self::new(driver, content.len() as u64)?;
        buffer.upload(stream, 0, content)?;
        Ok(buffer)
    }

    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it lies, as a kernel's argument.
    pub(super) fn argument(&self) -> Argument {
        Argument::Pointer(self.address)
    }

    /// Where byte `offset` lies, as a kernel's argument.
    pub(super) fn argument_at(&self, offset: u64) -> Argument {
        debug_assert!(offset <= self.bytes, "{offset} in a buffer of {}", self.bytes);
        Argument::Pointer(Address(self.address.0 + offset))
    }

    /// Writes at byte `offset`.
    pub(super) fn upload(&self, stream: Stream, offset: u64, from: &[u8]) -> Result<(), BackendError> {
        let to = self.range("upload to the device", offset, from.len() as u64)?;
        // SAFETY: `range` checked that the bytes lie in this buffer.
        unsafe { self.driver.upload(stream, to, from) }
    }

    /// Reads from byte `offset`, after all work of the stream.
    pub(super) fn download(&self, stream: Stream, offset: u64, to: &mut [u8]) -> Result<(), BackendError> {
        let from = self.range("download from the device", offset, to.len() as u64)?;
        // SAFETY: `range` checked that the bytes lie in this buffer.
        unsafe { self.driver.download(stream, to, from) }
    }

    /// Sets `bytes` bytes from `offset` on to zero.
    pub(super) fn zero(&self, stream: Stream, offset: u64, bytes: u64) -> Result<(), BackendError> {
        let at = self.range("clearing device memory", offset, bytes)?;
        // SAFETY: `range` checked that the bytes lie in this buffer.
        unsafe { self.driver.zero(stream, at, bytes) }
    }

    /// The address of `offset`, if `bytes` bytes lie there.
    fn range(&self, what: &'static str, offset: u64, bytes: u64) -> Result<Address, BackendError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(Address(self.address.0 + offset)),
            end => Err(BackendError::Shape { what, expected: self.bytes, got: end.unwrap_or(u64::MAX) }),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the address came from `allocate`, and nobody has it any more: arguments made from this buffer are used
        // up by launches, whose work `release` waits for.
        unsafe { self.driver.release(self.address) }
    }
}
