//! A slice that several threads write, each to elements of its own.
//!
//! The rows of a transform's columns lie far apart, so the slice cannot be split into one part per task.

#![allow(unsafe_code)]

use std::marker::PhantomData;

/// An exclusive borrow of a slice, shared among tasks that each access elements of their own.
pub(super) struct Scattered<'a, T> {
    start: *mut T,
    len: usize,
    loan: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, which may be sent where T may; callers that read or write an element promise that
// no other thread accesses it at the same time.
unsafe impl<T: Send> Sync for Scattered<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Scattered<'_, T> {}

impl<'a, T: Copy> Scattered<'a, T> {
    /// Borrows a slice.
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), loan: PhantomData }
    }

    /// Reads element `at`.
    ///
    /// # Panics
    /// If `at` is past the end; so does `write`.
    ///
    /// # Safety
    /// No other thread may write this element at the same time.
    #[inline(always)]
    pub(super) unsafe fn read(&self, at: usize) -> T {
        assert!(at < self.len);
        // SAFETY: the element is within the borrowed slice, by the assertion; no other thread writes it at the same
        // time, by the caller's promise.
        unsafe { self.start.add(at).read() }
    }

    /// Writes element `at`.
    ///
    /// # Safety
    /// No other thread may read or write this element at the same time.
    #[inline(always)]
    pub(super) unsafe fn write(&self, at: usize, value: T) {
        assert!(at < self.len);
        // SAFETY: the element is within the borrowed slice, by the assertion; no other thread accesses it at the same
        // time, by the caller's promise. Nothing is dropped: T is Copy.
        unsafe { self.start.add(at).write(value) }
    }
}
