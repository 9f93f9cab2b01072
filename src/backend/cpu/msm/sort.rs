//! The terms of the sums: entries sorted into segments.
#![allow(unsafe_code)] // windows are sorted in parallel, into one list

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::super::digits::{Digits, MINUS, Multiples};
use super::super::scattered::Scattered;

/// Entries by segment. An entry is the index of a point or of a multiple of it ([`Multiples`]), with [`MINUS`] set if
/// it is subtracted.
///
/// As secret as the scalars they were made from: overwritten when dropped.
pub(super) struct Segments {
    entries: Zeroizing<Vec<u32>>,
    /// The start of each segment, and the end of the last one.
    starts: Zeroizing<Vec<usize>>,
}

impl Segments {
    /// Puts all entries in one segment.
    fn one(entries: Zeroizing<Vec<u32>>) -> Self {
        let starts = Zeroizing::new(vec![0, entries.len()]);
        Self { entries, starts }
    }

    /// Sorts entries into `count` segments. `items` calls its argument with the segment and the entry of each item; it
    /// is called twice and must yield the same order.
    pub(super) fn sort(count: usize, items: impl Fn(&mut dyn FnMut(usize, u32))) -> Self {
        let mut starts = Zeroizing::new(vec![0usize; count + 1]);
        items(&mut |segment, _| starts[segment + 1] += 1);
        for segment in 0..count {
            starts[segment + 1] += starts[segment];
        }
        let mut entries = Zeroizing::new(vec![0; starts[count]]);
        let mut free = starts.clone();
        items(&mut |segment, entry| {
            entries[free[segment]] = entry;
            free[segment] += 1;
        });
        Self { entries, starts }
    }

    /// Returns the number of segments.
    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns the range of the entries of some segments.
    pub(super) fn range(&self, segments: std::ops::Range<usize>) -> std::ops::Range<usize> {
        self.starts[segments.start]..self.starts[segments.end]
    }

    /// Returns all entries in a range, whatever their segments.
    pub(super) fn entries(&self, range: std::ops::Range<usize>) -> &[u32] {
        &self.entries[range]
    }

    /// Iterates over the segments that have entries in a range, with those entries.
    #[inline(always)]
    pub(super) fn pieces(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = (usize, &[u32])> {
        let mut segment = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let mut at = range.start;
        std::iter::from_fn(move || {
            while at < range.end {
                let (from, this) = (at, segment);
                at = self.starts[segment + 1].min(range.end);
                segment += 1;
                if from < at {
                    return Some((this, &self.entries[from..at]));
                }
            }
            None
        })
    }
}

/// Scalars, sorted for all the sums over them: which points go to which bucket of which window.
///
/// Memory: 4 bytes for each digit that is not zero, and 8 for each bucket.
pub(in crate::backend::cpu) struct Sorted {
    /// Bits of a window.
    pub(super) window: usize,
    /// Number of windows that have buckets of their own: one if there are multiples for all windows.
    pub(super) windows: usize,
    /// The multiples that the scalars were recoded for.
    pub(super) multiples: Multiples,
    /// Scalars that are not 0, 1 or −1.
    pub(in crate::backend::cpu) dense: usize,
    /// Segment w·2^(window − 1) + k − 1 has the points whose digit in window w is ±k.
    pub(super) buckets: Segments,
    /// One segment: the points whose scalar is 1 or −1.
    pub(super) units: Segments,
}

impl Sorted {
    /// Sorts plain scalars below r by their digits, by a counting sort of each window, for sections that have these
    /// multiples of their points.
    pub(in crate::backend::cpu) fn new(scalars: &[ark_ff::BigInteger256], multiples: Multiples) -> Self {
        let Digits { window, rows, wires, units } = Digits::new(scalars, multiples);
        let half = 1usize << (window - 1);
        // By window, then by bucket: first a window's number of entries in a bucket, then the place of its next one.
        let mut places = Zeroizing::new(vec![0usize; rows.len() * half]);
        places.par_chunks_mut(half).zip(&rows).for_each(|(counts, row)| {
            for digit in row.iter().filter(|digit| **digit != 0) {
                counts[usize::from(digit.unsigned_abs()) - 1] += 1;
            }
        });
        let (shared, windows) = match multiples {
            Multiples::Windows { wire, .. } => (Some(wire), 1),
            Multiples::None | Multiples::Image => (None, rows.len()),
        };
        let mut starts = Zeroizing::new(Vec::with_capacity(windows * half + 1));
        let mut total = 0;
        for segment in 0..windows * half {
            starts.push(total);
            // The segment is this bucket of one window, or of all windows.
            for place in places[segment..].iter_mut().step_by(half).take(if shared.is_some() { rows.len() } else { 1 })
            {
                (total, *place) = (total + *place, total);
            }
        }
        starts.push(total);
        let mut entries = Zeroizing::new(vec![0u32; total]);
        let scattered = Scattered::new(entries.as_mut_slice());
        places.par_chunks_mut(half).zip(rows).enumerate().for_each(|(w, (free, row))| {
            let multiple = shared.map_or(0, |wire| (w as u32) << wire);
            for (digit, wire) in row.iter().zip(wires.iter()) {
                if *digit != 0 {
                    let at = &mut free[usize::from(digit.unsigned_abs()) - 1];
                    let entry = multiple | wire;
                    // SAFETY: a window has as many entries for a bucket as were counted, from its place in the bucket's
                    // segment on, and the places of the others begin after them: no other thread accesses this element.
                    unsafe { scattered.write(*at, if *digit < 0 { entry | MINUS } else { entry }) };
                    *at += 1;
                }
            }
        });
        let dense = wires.len() / if multiples == Multiples::Image { 2 } else { 1 };
        let (buckets, units) = (Segments { entries, starts }, Segments::one(units));
        Self { window, windows, multiples, dense, buckets, units }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorting_keeps_the_order_and_pieces_skip_what_is_empty() {
        let items = [(3usize, 10u32), (0, 11), (3, 12 | MINUS), (5, 13), (0, 14)];
        let s = Segments::sort(7, |each| items.iter().for_each(|(id, entry)| each(*id, *entry)));
        assert_eq!(s.len(), 7);
        let walked = |range| s.pieces(range).map(|(segment, entries)| (segment, entries.to_vec())).collect::<Vec<_>>();
        assert_eq!(walked(0..5), [(0, vec![11, 14]), (3, vec![10, 12 | MINUS]), (5, vec![13])]);
        assert_eq!(walked(1..3), [(0, vec![14]), (3, vec![10])]);
        assert_eq!(walked(2..2), []);
        assert_eq!(s.range(1..4), 2..4);
        assert_eq!(s.range(0..7), 0..5);
        let empty = Segments::sort(0, |_| ());
        assert_eq!(empty.pieces(0..0).count(), 0);
    }
}
