//! Eight words of 64 bits, and the field's operations on them.

use super::super::{Isa, Pair};

/// Eight words of 64 bits. All operations work word by word and wrap around.
///
/// Each operation names its instruction, which is defined in volume 2 of Intel's manual *Intel 64 and IA-32
/// Architectures Software Developer's Manual*.
pub(in crate::backend::cpu) trait Words: Copy + Send + Sync + 'static {
    /// The instruction set that computes with these words.
    type Isa: Isa;

    /// Returns the instruction set, whose presence the words prove.
    fn isa(self) -> Self::Isa;
    /// Returns the same word eight times (`vpbroadcastq`).
    fn splat(isa: Self::Isa, word: u64) -> Self;
    /// Loads eight words from memory (`vmovdqu64`).
    fn load(isa: Self::Isa, words: &[u64; 8]) -> Self;
    /// Returns the words as an array.
    fn to_array(self) -> [u64; 8];

    /// self + other (`vpaddq`)
    fn add(self, other: Self) -> Self;
    /// self − other (`vpsubq`)
    fn sub(self, other: Self) -> Self;
    /// self & other (`vpandq`)
    fn and(self, other: Self) -> Self;
    /// self | other (`vporq`)
    fn or(self, other: Self) -> Self;
    /// self / 2^N of unsigned words (`vpsrlq`)
    fn shr<const N: u32>(self) -> Self;
    /// ⌊self / 2^N⌋ of words in two's complement (`vpsraq`)
    fn sar<const N: u32>(self) -> Self;
    /// self·2^N (`vpsllq`)
    fn shl<const N: u32>(self) -> Self;
    /// self + (a·b mod 2^52), of the low 52 bits of a and b (`vpmadd52luq`)
    fn madd_low(self, a: Self, b: Self) -> Self;
    /// self + ⌊a·b / 2^52⌋, of the low 52 bits of a and b (`vpmadd52huq`)
    fn madd_high(self, a: Self, b: Self) -> Self;
    /// Word k is the word of `table` at the index in the low three bits of word k of self (`vpermq`).
    fn look_up(self, table: Self) -> Self;
    /// Like [`Words::look_up`], for sixteen words in two tables, by the low four bits (`vpermt2q`).
    fn look_up_16(self, tables: [Self; 2]) -> Self;
    /// `other` in the words whose bit is set in `mask`, self in the others (`vpblendmq`)
    fn blend(self, other: Self, mask: u8) -> Self;
    /// The mask of the words that equal those of `other`, among those set in `mask` (`vpcmpeqq` with a mask)
    fn equal(self, other: Self, mask: u8) -> u8;
    /// The mask of the words whose highest bit is set (`vpmovq2m`)
    fn negative(self) -> u8;

    /// Moves word k + N mod 8 to word k (`valignq`).
    fn rotate<const N: i32>(self) -> Self;
    /// Moves word q of vector k to word k of vector q (by `vpunpcklqdq`, `vpunpckhqdq` and `vshufi64x2`).
    fn transpose(square: [Self; 8]) -> [Self; 8];
    /// Loads limb i of element e of pair k into word k of vector i of `[e]`: the transpose of eight pairs.
    fn gather(isa: Self::Isa, pairs: [&Pair; 8]) -> [[Self; 4]; 2];
    /// The inverse of [`Words::gather`].
    fn scatter(limbs: [[Self; 4]; 2], pairs: &mut [Pair; 8]);
    /// Overwrites the words with zeros, as `zeroize` does.
    fn clear(&mut self);
}
