//! A slice whose elements several threads write, each thread elements of its own.
//!
//! Rows of a transform's columns lie far apart, so that the slice cannot be split into one part a task.

#![allow(unsafe_code)]

use std::marker::PhantomData;

/// An exclusive loan of a slice, shared among tasks that keep to elements of their own.
pub(super) struct Scattered<'a, T> {
    start: *mut T,
    len: usize,
    loan: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, which may be sent where T may; whoever reads or writes an element promises that
// no other thread has it at that time.
unsafe impl<T: Send> Sync for Scattered<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Scattered<'_, T> {}

impl<'a, T: Copy> Scattered<'a, T> {
    /// Lends a slice out.
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), loan: PhantomData }
    }

    /// Reads element `at`.
    ///
    /// # Panics
    /// On an index past the end; so `write`.
    ///
    /// # Safety
    /// No other thread writes this element at the same time.
    #[inline(always)]
    pub(super) unsafe fn read(&self, at: usize) -> T {
        assert!(at < self.len);
        // SAFETY: within the slice on loan, by the assertion; nobody writes it meanwhile, by the caller's promise.
        unsafe { self.start.add(at).read() }
    }

    /// Writes element `at`.
    ///
    /// # Safety
    /// No other thread reads or writes this element at the same time.
    #[inline(always)]
    pub(super) unsafe fn write(&self, at: usize, value: T) {
        assert!(at < self.len);
        // SAFETY: within the slice on loan, by the assertion; nobody else uses it meanwhile, by the caller's promise.
        // Nothing is dropped: T is Copy.
        unsafe { self.start.add(at).write(value) }
    }
}
