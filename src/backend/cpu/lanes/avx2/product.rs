//! The product of two vectors of eight elements, in assembly.
//!
//! The compiler would order such code differently: it groups the products of a column, and then lacks registers for the
//! columns. Here two vectors of four lanes alternate, so that one computes while the other waits for a digit of its
//! reduction, and the sixteen registers are exactly enough: six columns of each (0 to 5 and 6 to 11), the two constants
//! that split a product (12 and 13), a factor (14), and one for everything else (15).

use std::arch::naked_asm;
use std::mem::MaybeUninit;

use super::Limbs;
use super::table::Table;

/// Adds a product to two columns: the low half to `$low` and the high half to `$high`, whose values before are
/// `$low_was` and `$high_was`. The factors are a register and a memory operand.
#[rustfmt::skip] // one instruction per line
macro_rules! pair {
    ($a:literal, $b:expr, $low:literal, $low_was:expr, $high:literal, $high_was:expr) => {
        pair!($a, $b, $low, $low_was, $high, $high_was, "ymm15")
    };
    ($a:literal, $b:expr, $low:literal, $low_was:expr, $high:literal, $high_was:expr, $half:literal) => {
        concat!(
            "vmovapd ", $half, ", ymm12\n",
            "vfmadd231pd ", $half, ", ", $a, ", ", $b, "\n",
            "vpaddq ", $high, ", ", $half, ", ", $high_was, "\n",
            "vsubpd ", $half, ", ymm13, ", $half, "\n",
            "vfmadd231pd ", $half, ", ", $a, ", ", $b, "\n",
            "vpaddq ", $low, ", ", $half, ", ", $low_was, "\n",
        )
    };
}

/// The first row: adds `a[0]`·b to the start values of the columns.
#[rustfmt::skip] // one instruction per line
macro_rules! first_row {
    ($a:literal, $b:tt, $c0:literal, $c1:literal, $c2:literal, $c3:literal, $c4:literal, $c5:literal) => {
        concat!(
            "vmovapd ymm14, ", $a, "\n",
            pair!("ymm14", at!($b 0), $c0, "[rcx + 320]", $c1, "[rcx + 352]"),
            pair!("ymm14", at!($b 1), $c1, $c1, $c2, "[rcx + 384]"),
            pair!("ymm14", at!($b 2), $c2, $c2, $c3, "[rcx + 416]"),
            pair!("ymm14", at!($b 3), $c3, $c3, $c4, "[rcx + 448]"),
            pair!("ymm14", at!($b 4), $c4, $c4, $c5, "[rcx + 480]"),
        )
    };
}

/// A further row: computes the digit m that makes column `$c0` vanish, and adds `a[i]`·b and m·(p·k + 1)/2^51 to the
/// next six columns. The last of these begins with its start value, in the register of the column that vanishes.
#[rustfmt::skip] // one instruction per line
macro_rules! row {
    ($a:literal, $b:tt, $start:literal,
     $c0:literal, $c1:literal, $c2:literal, $c3:literal, $c4:literal, $c5:literal) => {
        concat!(
            "vpsrlq ymm15, ", $c0, ", 51\n",
            digit!($c0, $c0, "704"),
            "vpaddq ", $c1, ", ", $c1, ", ymm15\n",
            // While the digit is being computed, what does not depend on it, as far as there are registers.
            "vmovapd ymm14, ", $a, "\n",
            pair!("ymm14", at!($b 0), $c1, $c1, $c2, $c2),
            pair!("ymm14", at!($b 1), $c2, $c2, $c3, $c3),
            pair!("ymm14", at!($b 2), $c3, $c3, $c4, $c4),
            pair!("ymm14", at!($b 3), $c4, $c4, $c5, $c5),
            pair!($c0, "[rcx]", $c1, $c1, $c2, $c2),
            pair!($c0, "[rcx + 32]", $c2, $c2, $c3, $c3),
            pair!($c0, "[rcx + 64]", $c3, $c3, $c4, $c4),
            pair!($c0, "[rcx + 96]", $c4, $c4, $c5, $c5),
            // Like any pair, except that the digit's register becomes the new column's.
            "vmovapd ymm15, ymm12\n",
            "vfmadd231pd ymm15, ", $c0, ", [rcx + 128]\n",
            "vsubpd ymm14, ymm13, ymm15\n",
            "vfmadd231pd ymm14, ", $c0, ", [rcx + 128]\n",
            "vpaddq ", $c0, ", ymm15, ", $start, "\n",
            "vpaddq ", $c5, ", ", $c5, ", ymm14\n",
            "vmovapd ymm14, ", $a, "\n",
            pair!("ymm14", at!($b 4), $c5, $c5, $c0, $c0),
        )
    };
}

/// Computes the multiple of p that leaves the least remainder, from the two highest columns, in the highest.
#[rustfmt::skip] // one instruction per line
macro_rules! quotient {
    ($c8:literal, $c9:literal, $other:literal) => {
        concat!(
            "vpsrlq ", $other, ", ", $c8, ", 51\n",
            "vpaddq ", $c9, ", ", $c9, ", ", $other, "\n",
            digit!($other, $c8, "704"),
            "vmulpd ", $other, ", ", $other, ", [rcx + 768]\n",
            "vsubpd ", $c9, ", ", $c9, ", [rcx + 832]\n",
            "vfmadd231pd ", $other, ", ", $c9, ", [rcx + 800]\n",
            "vroundpd ", $c9, ", ", $other, ", 8\n",
        )
    };
}

/// Adds the low half of a product to a column.
#[rustfmt::skip] // one instruction per line
macro_rules! low_half {
    ($a:literal, $b:expr, $low:literal, $half:literal) => {
        concat!(
            "vmovapd ", $half, ", ymm12\n",
            "vfmadd231pd ", $half, ", ", $a, ", ", $b, "\n",
            "vsubpd ", $half, ", ymm13, ", $half, "\n",
            "vfmadd231pd ", $half, ", ", $a, ", ", $b, "\n",
            "vpaddq ", $low, ", ", $low, ", ", $half, "\n",
        )
    };
}

/// Subtracts the multiples of p and writes the limbs of the results, from the remaining six columns of each vector.
#[rustfmt::skip] // one instruction per line
macro_rules! finish {
    ($c4:literal, $c5:literal, $c6:literal, $c7:literal, $c8:literal, $c9:literal,
     $d4:literal, $d5:literal, $d6:literal, $d7:literal, $d8:literal, $d9:literal) => {
        concat!(
            quotient!($c8, $c9, "ymm14"),
            quotient!($d8, $d9, "ymm15"),
            pair!($c9, "[rcx + 160]", $c4, $c4, $c5, $c5, "ymm14"),
            pair!($d9, "[rcx + 160]", $d4, $d4, $d5, $d5, "ymm15"),
            pair!($c9, "[rcx + 192]", $c5, $c5, $c6, $c6, "ymm14"),
            pair!($d9, "[rcx + 192]", $d5, $d5, $d6, $d6, "ymm15"),
            pair!($c9, "[rcx + 224]", $c6, $c6, $c7, $c7, "ymm14"),
            pair!($d9, "[rcx + 224]", $d6, $d6, $d7, $d7, "ymm15"),
            pair!($c9, "[rcx + 256]", $c7, $c7, $c8, $c8, "ymm14"),
            pair!($d9, "[rcx + 256]", $d7, $d7, $d8, $d8, "ymm15"),
            // The low half of the last product is enough: the limb is known to be short.
            low_half!($c9, "[rcx + 288]", $c8, "ymm14"),
            low_half!($d9, "[rcx + 288]", $d8, "ymm15"),
            limb!(out0 0, $c4, "704"),
            limb!(out1 0, $d4, "704"),
            carry!($c4, $c5),
            carry!($d4, $d5),
            limb!(out0 1, $c5, "704"),
            limb!(out1 1, $d5, "704"),
            carry!($c5, $c6),
            carry!($d5, $d6),
            limb!(out0 2, $c6, "704"),
            limb!(out1 2, $d6, "704"),
            carry!($c6, $c7),
            carry!($d6, $d7),
            limb!(out0 3, $c7, "704"),
            limb!(out1 3, $d7, "704"),
            carry!($c7, $c8),
            carry!($d7, $d8),
            limb!(out0 4, $c8, "736"),
            limb!(out1 4, $d8, "736"),
        )
    };
}

/// The low 51 bits of a column as a double, minus the constant at the given offset.
#[rustfmt::skip] // one instruction per line
macro_rules! digit {
    ($to:literal, $column:literal, $less:literal) => {
        concat!(
            "vpand ", $to, ", ", $column, ", [rcx + 640]\n",
            "vpor ", $to, ", ", $to, ", [rcx + 672]\n",
            "vsubpd ", $to, ", ", $to, ", [rcx + ", $less, "]\n",
        )
    };
}

/// Adds the bits above the low 51 of a column to the next column. The column is overwritten.
#[rustfmt::skip] // one instruction per line
macro_rules! carry {
    ($column:literal, $next:literal) => {
        concat!("vpsrlq ", $column, ", ", $column, ", 51\n", "vpaddq ", $next, ", ", $next, ", ", $column, "\n")
    };
}

/// Writes a limb of the result.
#[rustfmt::skip] // one instruction per line
macro_rules! limb {
    ($out:tt $j:tt, $column:literal, $less:literal) => {
        concat!(digit!("ymm14", $column, $less), "vmovapd ", at!($out $j), ", ymm14\n")
    };
}

/// The operand for limb j of a vector of four lanes: the first or second of a, b or out.
#[rustfmt::skip] // one instruction per line
macro_rules! at {
    (b0 0) => { "[rdx + 0]" };
    (b0 1) => { "[rdx + 32]" };
    (b0 2) => { "[rdx + 64]" };
    (b0 3) => { "[rdx + 96]" };
    (b0 4) => { "[rdx + 128]" };
    (b1 0) => { "[rdx + 160]" };
    (b1 1) => { "[rdx + 192]" };
    (b1 2) => { "[rdx + 224]" };
    (b1 3) => { "[rdx + 256]" };
    (b1 4) => { "[rdx + 288]" };
    (out0 0) => { "[rdi + 0]" };
    (out0 1) => { "[rdi + 32]" };
    (out0 2) => { "[rdi + 64]" };
    (out0 3) => { "[rdi + 96]" };
    (out0 4) => { "[rdi + 128]" };
    (out1 0) => { "[rdi + 160]" };
    (out1 1) => { "[rdi + 192]" };
    (out1 2) => { "[rdi + 224]" };
    (out1 3) => { "[rdi + 256]" };
    (out1 4) => { "[rdi + 288]" };
}

// The layout that the assembly below relies on.
const _: () = assert!(size_of::<Limbs>() == 320 && align_of::<Limbs>() == 32);
const _: () = assert!(size_of::<Table>() == 928 && align_of::<Table>() == 32);

/// Writes a·b/2^204 modulo p, within the bounds of reduced values, for factors within those of loose ones (see the
/// parent module).
///
/// # Safety
/// The CPU must have AVX2 and FMA. `a` and `b` may be the same; `out` must overlap neither.
///
/// The whole function is in assembly, so that it is not repeated wherever a product is: it is larger than the code that
/// calls it. It reads 320 bytes of each factor and 928 of the table, and writes 320 to `out`: the sizes of its
/// arguments' types, which are aligned to the 32 bytes that it relies on. In its calling convention all vector
/// registers are caller-saved. It uses no stack but for the return address, and has no jumps.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn product(out: &mut MaybeUninit<Limbs>, a: &Limbs, b: &Limbs, table: &Table) {
    naked_asm!(
        "vmovapd ymm12, [rcx + 864]",
        "vmovapd ymm13, [rcx + 896]",
        first_row!("[rsi]", b0, "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5"),
        first_row!("[rsi + 160]", b1, "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11"),
        row!("[rsi + 32]", b0, "[rcx + 512]", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5"),
        row!("[rsi + 192]", b1, "[rcx + 512]", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11"),
        row!("[rsi + 64]", b0, "[rcx + 544]", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm0"),
        row!("[rsi + 224]", b1, "[rcx + 544]", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm6"),
        row!("[rsi + 96]", b0, "[rcx + 576]", "ymm2", "ymm3", "ymm4", "ymm5", "ymm0", "ymm1"),
        row!("[rsi + 256]", b1, "[rcx + 576]", "ymm8", "ymm9", "ymm10", "ymm11", "ymm6", "ymm7"),
        row!("[rsi + 128]", b0, "[rcx + 608]", "ymm3", "ymm4", "ymm5", "ymm0", "ymm1", "ymm2"),
        row!("[rsi + 288]", b1, "[rcx + 608]", "ymm9", "ymm10", "ymm11", "ymm6", "ymm7", "ymm8"),
        finish!("ymm4", "ymm5", "ymm0", "ymm1", "ymm2", "ymm3", "ymm10", "ymm11", "ymm6", "ymm7", "ymm8", "ymm9"),
        "vzeroupper",
        "ret",
    )
}
