//! Long vectors in large pages.
//!
//! Points are read in the order of digits, which is none, and columns of a transform lie far apart: with pages of
//! 4 KiB, most reads would also look up a page.
#![allow(unsafe_code)]

/// An empty vector with room for `len` elements, in pages of 2 MiB where the system has them and the vector is long.
pub(super) fn vector<T>(len: usize) -> Vec<T> {
    let vector = Vec::with_capacity(len);
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};
        const LARGE: usize = 2 << 20;
        // Other allocations have the large pages at both ends in part.
        let start = (vector.as_ptr() as usize).next_multiple_of(LARGE);
        let end = (vector.as_ptr() as usize + len * size_of::<T>()) / LARGE * LARGE;
        if start < end {
            // SAFETY: the range is within the allocation of `vector`, and the advice changes no byte of it. A failure
            // leaves small pages.
            let _ = unsafe { madvise(start as *mut _, end - start, Advice::LinuxHugepage) };
        }
    }
    vector
}

#[cfg(test)]
mod tests {
    #[test]
    fn long_and_short_ones_hold_what_is_written() {
        for len in [0, 1, 1000, 3 << 20] {
            let mut x = super::vector::<u32>(len);
            let room = x.capacity();
            assert!(x.is_empty() && room >= len);
            x.extend(0..len as u32);
            assert!(x.capacity() == room && x.iter().enumerate().all(|(i, x)| i as u32 == *x));
        }
    }
}
