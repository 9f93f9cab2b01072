//! AVX-512 with IFMA: sixteen elements at a time, in limbs of 52 bits.
//!
//! The instructions `vpmadd52luq` and `vpmadd52huq` multiply eight pairs of words, reading the low 52 bits of each
//! factor, and add the low or the high 52 bits of the products to eight accumulators of 64 bits. Intel CPUs have them
//! since Ice Lake, AMD's since Zen 4.
//!
//! The field ([`field`]) is written over a handful of operations on eight words ([`words`]), which have two
//! implementations: the intrinsics ([`zmm`]), and the same operations on arrays (`emulated`), for tests on any machine.

mod constants;
#[cfg(test)]
mod emulated;
mod field;
mod words;
#[cfg(target_arch = "x86_64")]
mod zmm;

#[cfg(target_arch = "x86_64")]
pub(in crate::backend::cpu) use zmm::Avx512Ifma;

/// Returns the instruction set in software, for tests of the code above it on any CPU.
#[cfg(test)]
pub(in crate::backend::cpu) fn emulation() -> impl super::Isa {
    super::outlined::Outlined(emulated::EmulatedIfma)
}

#[cfg(test)]
mod tests;
