//! What is to be added up: entries sorted into segments.

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::super::digits::{Digits, MINUS, halved};

/// Entries by segment. An entry is the index of a point, with [`MINUS`] where it is taken away and, of halved scalars, with
/// [`super::super::digits::IMAGE`] where it is for the point's image.
///
/// As secret as the scalars it was made from: overwritten when dropped.
pub(super) struct Segments {
    entries: Zeroizing<Vec<u32>>,
    /// Where each segment starts, and where the last one ends.
    starts: Zeroizing<Vec<usize>>,
}

impl Segments {
    /// All entries in one segment.
    fn one(entries: Zeroizing<Vec<u32>>) -> Self {
        let starts = Zeroizing::new(vec![0, entries.len()]);
        Self { entries, starts }
    }

    /// Entries sorted into `count` segments; `items` calls its argument with the segment and the entry of each, and
    /// does so again in the same order.
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

    /// Number of segments.
    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The entries of some segments.
    pub(super) fn range(&self, segments: std::ops::Range<usize>) -> std::ops::Range<usize> {
        self.starts[segments.start]..self.starts[segments.end]
    }

    /// Calls `each` with every segment that has entries in a range, and those entries.
    pub(super) fn walk(&self, range: std::ops::Range<usize>, mut each: impl FnMut(usize, &[u32])) {
        let mut segment = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let mut at = range.start;
        while at < range.end {
            let end = self.starts[segment + 1].min(range.end);
            if at < end {
                each(segment, &self.entries[at..end]);
            }
            at = end;
            segment += 1;
        }
    }
}

/// Scalars, sorted for all the sums over them: which points go to which bucket of which window.
///
/// Memory: 4 bytes for each digit that is not zero, and 8 for each bucket.
pub(in crate::backend::cpu) struct Sorted {
    /// Bits of a window.
    pub(super) window: usize,
    /// Number of windows.
    pub(super) windows: usize,
    /// Whether the scalars are halved.
    pub(super) halved: bool,
    /// Segment w·2^(window − 1) + k − 1 has the points whose digit in window w is ±k.
    pub(super) buckets: Segments,
    /// One segment: the points whose scalar is 1 or −1.
    pub(super) units: Segments,
}

impl Sorted {
    /// Sorts plain scalars below r by their digits, in a pass over each window (counting sort).
    pub(in crate::backend::cpu) fn new(scalars: &[ark_ff::BigInteger256]) -> Self {
        let Digits { window, rows, wires, units } = Digits::new(scalars);
        let (windows, half) = (rows.len(), 1usize << (window - 1));
        let mut starts = Zeroizing::new(vec![0usize; windows * half + 1]);
        starts[1..].par_chunks_mut(half).zip(&rows).for_each(|(counts, row)| {
            for digit in row.iter().filter(|digit| **digit != 0) {
                counts[usize::from(digit.unsigned_abs()) - 1] += 1;
            }
        });
        let mut total = 0;
        for start in starts.iter_mut() {
            total += *start;
            *start = total;
        }
        let mut entries = Zeroizing::new(vec![0u32; total]);
        let mut rest = entries.as_mut_slice();
        let tasks = rows.into_iter().enumerate().map(|(w, row)| {
            let starts = &starts[w * half..=(w + 1) * half];
            let (mine, others) = std::mem::take(&mut rest).split_at_mut(starts[half] - starts[0]);
            rest = others;
            (row, starts, mine)
        });
        let tasks: Vec<_> = tasks.collect();
        tasks.into_par_iter().for_each(|(row, starts, mine)| {
            let mut free: Zeroizing<Vec<usize>> = Zeroizing::new(starts.iter().map(|s| s - starts[0]).collect());
            for (digit, wire) in row.iter().zip(wires.iter()) {
                if *digit != 0 {
                    let at = &mut free[usize::from(digit.unsigned_abs()) - 1];
                    mine[*at] = if *digit < 0 { wire | MINUS } else { *wire };
                    *at += 1;
                }
            }
        });
        let halved = halved(scalars.len());
        Self { window, windows, halved, buckets: Segments { entries, starts }, units: Segments::one(units) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorting_keeps_the_order_and_walks_skip_what_is_empty() {
        let items = [(3usize, 10u32), (0, 11), (3, 12 | MINUS), (5, 13), (0, 14)];
        let s = Segments::sort(7, |each| items.iter().for_each(|(id, entry)| each(*id, *entry)));
        assert_eq!(s.len(), 7);
        let walked = |range| {
            let mut all = Vec::new();
            s.walk(range, |segment, entries| all.push((segment, entries.to_vec())));
            all
        };
        assert_eq!(walked(0..5), [(0, vec![11, 14]), (3, vec![10, 12 | MINUS]), (5, vec![13])]);
        assert_eq!(walked(1..3), [(0, vec![14]), (3, vec![10])]);
        assert_eq!(walked(2..2), []);
        assert_eq!(s.range(1..4), 2..4);
        assert_eq!(s.range(0..7), 0..5);
        let empty = Segments::sort(0, |_| ());
        empty.walk(0..0, |_, _| unreachable!("no entries"));
    }
}
