//! Ways to damage a file.

use proptest::prelude::*;
use proptest::sample::Index;

/// Numbers that tend to break readers.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    3,
    10,
    12,
    32,
    255,
    1 << 28,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 63,
    u64::MAX - 11,
    u64::MAX - 23,
    u64::MAX,
];

/// One change to a file.
#[derive(Debug, Clone)]
pub enum Mutation {
    /// Flips a bit.
    Bit(Index, u8),
    /// Sets a byte.
    Byte(Index, u8),
    /// Cuts the file.
    Truncate(Index),
    /// Adds bytes at the end.
    Extend(Vec<u8>),
    /// Copies bytes from one place over others.
    Splice { from: Index, to: Index, length: usize },
    /// Inserts a copy of bytes from one place at another.
    Insert { from: Index, to: Index, length: usize },
    /// Removes bytes.
    Remove(Index, usize),
    /// Sets four bytes to a number, at any place or, in a section file, in the header of a section.
    Word(Index, u32),
    /// Sets eight bytes likewise.
    Long(Index, u64),
    /// Sets the id (0), length (1) or first word (2) of a section.
    Section(Index, u8, u64),
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => prop::sample::select(&NUMBERS[..]),
        2 => 0u64..40,
        1 => any::<u64>(),
        1 => (0u32..64, 0u64..3).prop_map(|(bit, n)| (1u64 << bit).wrapping_add(n).wrapping_sub(1)),
    ]
}

/// Any single change.
pub fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), 0u8..8).prop_map(|(i, b)| Mutation::Bit(i, b)),
        2 => (at(), any::<u8>()).prop_map(|(i, b)| Mutation::Byte(i, b)),
        1 => at().prop_map(Mutation::Truncate),
        1 => prop::collection::vec(any::<u8>(), 1..20).prop_map(Mutation::Extend),
        1 => (at(), at(), 1usize..150).prop_map(|(from, to, length)| Mutation::Splice { from, to, length }),
        1 => (at(), at(), 1usize..150).prop_map(|(from, to, length)| Mutation::Insert { from, to, length }),
        1 => (at(), 1usize..150).prop_map(|(i, n)| Mutation::Remove(i, n)),
        1 => (at(), number()).prop_map(|(i, n)| Mutation::Word(i, n as u32)),
        1 => (at(), number()).prop_map(|(i, n)| Mutation::Long(i, n)),
        4 => (at(), 0u8..3, number()).prop_map(|(i, field, n)| Mutation::Section(i, field, n)),
    ]
}

fn overwrite(file: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in file.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Returns the offsets of the sections of a file, as far as its lengths are right; none for JSON.
fn sections(file: &[u8]) -> Vec<usize> {
    let mut out = Vec::new();
    let mut at = 12;
    while file.len().saturating_sub(at) >= 12 {
        out.push(at);
        let length = u64::from_le_bytes(file[at + 4..at + 12].try_into().unwrap());
        at = at.saturating_add(12).saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
    }
    out
}

impl Mutation {
    /// Makes the change. An empty file can only be extended.
    pub fn apply(&self, file: &mut Vec<u8>) {
        if let Self::Extend(bytes) = self {
            file.extend(bytes);
        }
        if file.is_empty() {
            return;
        }
        let n = file.len();
        match self {
            Self::Bit(i, bit) => file[i.index(n)] ^= 1 << bit,
            Self::Byte(i, byte) => file[i.index(n)] = *byte,
            Self::Truncate(i) => file.truncate(i.index(n)),
            Self::Extend(_) => {}
            Self::Splice { from, to, length } => {
                let from = from.index(n);
                let piece = file[from..n.min(from + length)].to_vec();
                overwrite(file, to.index(n), &piece);
            }
            Self::Insert { from, to, length } => {
                let from = from.index(n);
                let piece = file[from..n.min(from + length)].to_vec();
                let to = to.index(n);
                file.splice(to..to, piece);
            }
            Self::Remove(i, length) => {
                let i = i.index(n);
                file.drain(i..n.min(i + length));
            }
            Self::Word(i, word) => overwrite(file, i.index(n), &word.to_le_bytes()),
            Self::Long(i, long) => overwrite(file, i.index(n), &long.to_le_bytes()),
            Self::Section(i, field, value) => {
                let starts = sections(file);
                if starts.is_empty() {
                    return;
                }
                let at = starts[i.index(starts.len())];
                match field {
                    0 => overwrite(file, at, &(*value as u32).to_le_bytes()),
                    1 => overwrite(file, at + 4, &value.to_le_bytes()),
                    _ => overwrite(file, at + 12, &(*value as u32).to_le_bytes()),
                }
            }
        }
    }
}

/// One of `originals`, damaged in up to four ways, sometimes in none.
pub fn damaged(originals: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (prop::sample::select(originals), prop::collection::vec(mutation(), 0..4)).prop_map(|(mut file, mutations)| {
        mutations.iter().for_each(|m| m.apply(&mut file));
        file
    })
}
