//! Memory in huge pages.
//!
//! Points are read in the order of digits, which is effectively random, and columns of a transform are far apart: with
//! 4 KiB pages, most reads would also miss the TLB. In addition, the first write to memory costs a page fault per page.
#![allow(unsafe_code)]

/// Returns an empty vector with capacity for `len` elements, in 2 MiB pages if the system has them and the vector is
/// long.
pub fn vector<T>(len: usize) -> Vec<T> {
    let vector = Vec::with_capacity(len);
    advise(vector.as_ptr() as usize, len * size_of::<T>());
    vector
}

/// Requests 2 MiB pages for memory that has hardly been touched.
pub fn prefer_huge(memory: &mut [u8]) {
    advise(memory.as_ptr() as usize, memory.len());
}

/// Requests 2 MiB pages in an address range, which the caller owns.
#[cfg(target_os = "linux")]
fn advise(start: usize, bytes: usize) {
    if let Some((start, bytes)) = huge_pages(start, bytes) {
        use rustix::mm::{Advice, madvise};
        // SAFETY: the range is within memory that the caller owns, and the advice changes no byte of it. On failure the
        // pages stay small. The advice may outlive the allocation if the allocator reuses the range, which does no
        // harm.
        let _ = unsafe { madvise(start as *mut _, bytes, Advice::LinuxHugepage) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_start: usize, _bytes: usize) {}

/// The whole huge pages within an address range: those at either end are partly used by other allocations.
#[cfg(target_os = "linux")]
fn huge_pages(start: usize, bytes: usize) -> Option<(usize, usize)> {
    const HUGE: usize = 2 << 20;
    let (first, end) = (start.next_multiple_of(HUGE), (start + bytes) / HUGE * HUGE);
    (first < end).then(|| (first, end - first))
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn only_whole_pages_are_asked_for() {
        const MB: usize = 1 << 20;
        assert_eq!(super::huge_pages(0, 2 * MB - 1), None);
        assert_eq!(super::huge_pages(2 * MB, 2 * MB), Some((2 * MB, 2 * MB)));
        assert_eq!(super::huge_pages(2 * MB + 1, 4 * MB - 2), None);
        assert_eq!(super::huge_pages(3 * MB, 5 * MB), Some((4 * MB, 4 * MB)));
        assert_eq!(super::huge_pages(2 * MB - 64, 4 * MB), Some((2 * MB, 2 * MB)));
    }

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
