//! The product of two vectors of eight elements: the text of the machine code.
//!
//! The compiler's own order of the same operations takes twice the time: it moves the products of a column together,
//! and then has no registers for the columns. Here two vectors of four lanes take turns, so that one computes while the
//! other waits for a digit of its reduction, and the sixteen registers are exactly enough: six columns of either, the
//! two constants that split a product, a factor, and one for everything else.

use std::arch::naked_asm;
use std::mem::MaybeUninit;

use super::Limbs;
use super::table::Table;

/// Adds the product of `ymm14` and the memory operand `$b` to two columns: the low half to `$low`, the high half to
/// `$high`, where these have the values `$low_was` and `$high_was` before.
#[rustfmt::skip] // one instruction a line
macro_rules! pair {
    ($b:expr, $low:literal, $low_was:expr, $high:literal, $high_was:expr) => {
        concat!(
            "vmovapd ymm15, ymm12\n",
            "vfmadd231pd ymm15, ymm14, ", $b, "\n",
            "vpaddq ", $high, ", ymm15, ", $high_was, "\n",
            "vsubpd ymm15, ymm13, ymm15\n",
            "vfmadd231pd ymm15, ymm14, ", $b, "\n",
            "vpaddq ", $low, ", ymm15, ", $low_was, "\n",
        )
    };
}

/// The first row: a[0]·b, into columns that have their start values.
#[rustfmt::skip] // one instruction a line
macro_rules! first_row {
    ($a:literal, $b:tt, $c0:literal, $c1:literal, $c2:literal, $c3:literal, $c4:literal, $c5:literal) => {
        concat!(
            "vmovapd ymm14, ", $a, "\n",
            pair!(at!($b 0), $c0, "[rcx + 320]", $c1, "[rcx + 352]"),
            pair!(at!($b 1), $c1, $c1, $c2, "[rcx + 384]"),
            pair!(at!($b 2), $c2, $c2, $c3, "[rcx + 416]"),
            pair!(at!($b 3), $c3, $c3, $c4, "[rcx + 448]"),
            pair!(at!($b 4), $c4, $c4, $c5, "[rcx + 480]"),
        )
    };
}

/// A further row: a[i]·b, onto columns i to i + 5.
#[rustfmt::skip] // one instruction a line
macro_rules! row {
    ($a:literal, $b:tt, $c0:literal, $c1:literal, $c2:literal, $c3:literal, $c4:literal, $c5:literal) => {
        concat!(
            "vmovapd ymm14, ", $a, "\n",
            pair!(at!($b 0), $c0, $c0, $c1, $c1),
            pair!(at!($b 1), $c1, $c1, $c2, $c2),
            pair!(at!($b 2), $c2, $c2, $c3, $c3),
            pair!(at!($b 3), $c3, $c3, $c4, $c4),
            pair!(at!($b 4), $c4, $c4, $c5, $c5),
        )
    };
}

/// The digit that makes column `$c0` vanish, times (p·k + 1)/2^51, onto the next six columns. The last of these begins
/// with its start value, in the register of the one that vanishes.
#[rustfmt::skip] // one instruction a line
macro_rules! reduce {
    ($start:literal, $c0:literal, $c1:literal, $c2:literal, $c3:literal, $c4:literal, $c5:literal) => {
        concat!(
            digit!("ymm14", $c0, "704"),
            carry!($c0, $c1),
            pair!("[rcx]", $c1, $c1, $c2, $c2),
            pair!("[rcx + 32]", $c2, $c2, $c3, $c3),
            pair!("[rcx + 64]", $c3, $c3, $c4, $c4),
            pair!("[rcx + 96]", $c4, $c4, $c5, $c5),
            pair!("[rcx + 128]", $c5, $c5, $c0, $start),
        )
    };
}

/// The multiple of p that leaves the least remainder, by the two highest columns; then the limbs of the result.
#[rustfmt::skip] // one instruction a line
macro_rules! finish {
    ($out:tt, $c4:literal, $c5:literal, $c6:literal, $c7:literal, $c8:literal, $c9:literal) => {
        concat!(
            "vpsrlq ymm15, ", $c8, ", 51\n",
            digit!("ymm14", $c8, "704"),
            "vpaddq ", $c9, ", ", $c9, ", ymm15\n",
            "vmulpd ymm14, ymm14, [rcx + 768]\n",
            "vsubpd ", $c9, ", ", $c9, ", [rcx + 832]\n",
            "vfmadd231pd ymm14, ", $c9, ", [rcx + 800]\n",
            "vroundpd ymm14, ymm14, 8\n",
            pair!("[rcx + 160]", $c4, $c4, $c5, $c5),
            pair!("[rcx + 192]", $c5, $c5, $c6, $c6),
            pair!("[rcx + 224]", $c6, $c6, $c7, $c7),
            pair!("[rcx + 256]", $c7, $c7, $c8, $c8),
            // Of the last product the low half is enough: the limb is known to be short.
            "vmovapd ", $c9, ", ymm12\n",
            "vfmadd231pd ", $c9, ", ymm14, [rcx + 288]\n",
            "vsubpd ", $c9, ", ymm13, ", $c9, "\n",
            "vfmadd231pd ", $c9, ", ymm14, [rcx + 288]\n",
            "vpaddq ", $c8, ", ", $c8, ", ", $c9, "\n",
            limb!($out 0, $c4, "704"),
            carry!($c4, $c5),
            limb!($out 1, $c5, "704"),
            carry!($c5, $c6),
            limb!($out 2, $c6, "704"),
            carry!($c6, $c7),
            limb!($out 3, $c7, "704"),
            carry!($c7, $c8),
            limb!($out 4, $c8, "736"),
        )
    };
}

/// The low 51 bits of a column as a double, less the constant at the given place.
#[rustfmt::skip] // one instruction a line
macro_rules! digit {
    ($to:literal, $column:literal, $less:literal) => {
        concat!(
            "vpand ", $to, ", ", $column, ", [rcx + 640]\n",
            "vpor ", $to, ", ", $to, ", [rcx + 672]\n",
            "vsubpd ", $to, ", ", $to, ", [rcx + ", $less, "]\n",
        )
    };
}

/// Adds what is above the low 51 bits of a column to the next. The column is lost.
#[rustfmt::skip] // one instruction a line
macro_rules! carry {
    ($column:literal, $next:literal) => {
        concat!("vpsrlq ", $column, ", ", $column, ", 51\n", "vpaddq ", $next, ", ", $next, ", ", $column, "\n")
    };
}

/// Writes a limb of the result.
#[rustfmt::skip] // one instruction a line
macro_rules! limb {
    ($out:tt $j:tt, $column:literal, $less:literal) => {
        concat!(digit!("ymm14", $column, $less), "vmovapd ", at!($out $j), ", ymm14\n")
    };
}

/// Limb j of a vector of four lanes: the first or second of a, b or out.
#[rustfmt::skip] // one instruction a line
macro_rules! at {
    (b0 $j:tt) => { at!("rdx" $j "0" "32" "64" "96" "128") };
    (b1 $j:tt) => { at!("rdx" $j "160" "192" "224" "256" "288") };
    (out0 $j:tt) => { at!("rdi" $j "0" "32" "64" "96" "128") };
    (out1 $j:tt) => { at!("rdi" $j "160" "192" "224" "256" "288") };
    ($r:literal 0 $o0:literal $o1:literal $o2:literal $o3:literal $o4:literal) => {
        concat!("[", $r, " + ", $o0, "]")
    };
    ($r:literal 1 $o0:literal $o1:literal $o2:literal $o3:literal $o4:literal) => {
        concat!("[", $r, " + ", $o1, "]")
    };
    ($r:literal 2 $o0:literal $o1:literal $o2:literal $o3:literal $o4:literal) => {
        concat!("[", $r, " + ", $o2, "]")
    };
    ($r:literal 3 $o0:literal $o1:literal $o2:literal $o3:literal $o4:literal) => {
        concat!("[", $r, " + ", $o3, "]")
    };
    ($r:literal 4 $o0:literal $o1:literal $o2:literal $o3:literal $o4:literal) => {
        concat!("[", $r, " + ", $o4, "]")
    };
}

/// Writes a·b/2^204 modulo p, in the bounds of reduced values, of factors in the bounds of loose ones (see the module
/// above).
///
/// # Safety
/// The processor must have AVX2 and FMA. `a` and `b` may be the same; `out` must be apart from both.
///
/// The function is in machine code as a whole, so that it is not repeated wherever a product is: it is larger than the
/// code of what calls it. It reads 320 bytes at either factor and 928 at the table, and writes 320 at `out`: the sizes
/// of the types of its arguments, which are aligned to the 32 bytes that it relies on. By its calling convention all
/// vector registers are the callee's. It uses no stack but for the return address, and has no jumps.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn product(out: &mut MaybeUninit<Limbs>, a: &Limbs, b: &Limbs, table: &Table) {
    naked_asm!(
        "vmovapd ymm12, [rcx + 864]",
        "vmovapd ymm13, [rcx + 896]",
        first_row!("[rsi]", b0, "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5"),
        first_row!("[rsi + 160]", b1, "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11"),
        reduce!("[rcx + 512]", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5"),
        reduce!("[rcx + 512]", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11"),
        row!("[rsi + 32]", b0, "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm0"),
        row!("[rsi + 192]", b1, "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm6"),
        reduce!("[rcx + 544]", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm0"),
        reduce!("[rcx + 544]", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm6"),
        row!("[rsi + 64]", b0, "ymm2", "ymm3", "ymm4", "ymm5", "ymm0", "ymm1"),
        row!("[rsi + 224]", b1, "ymm8", "ymm9", "ymm10", "ymm11", "ymm6", "ymm7"),
        reduce!("[rcx + 576]", "ymm2", "ymm3", "ymm4", "ymm5", "ymm0", "ymm1"),
        reduce!("[rcx + 576]", "ymm8", "ymm9", "ymm10", "ymm11", "ymm6", "ymm7"),
        row!("[rsi + 96]", b0, "ymm3", "ymm4", "ymm5", "ymm0", "ymm1", "ymm2"),
        row!("[rsi + 256]", b1, "ymm9", "ymm10", "ymm11", "ymm6", "ymm7", "ymm8"),
        reduce!("[rcx + 608]", "ymm3", "ymm4", "ymm5", "ymm0", "ymm1", "ymm2"),
        reduce!("[rcx + 608]", "ymm9", "ymm10", "ymm11", "ymm6", "ymm7", "ymm8"),
        row!("[rsi + 128]", b0, "ymm4", "ymm5", "ymm0", "ymm1", "ymm2", "ymm3"),
        row!("[rsi + 288]", b1, "ymm10", "ymm11", "ymm6", "ymm7", "ymm8", "ymm9"),
        finish!(out0, "ymm4", "ymm5", "ymm0", "ymm1", "ymm2", "ymm3"),
        finish!(out1, "ymm10", "ymm11", "ymm6", "ymm7", "ymm8", "ymm9"),
        "vzeroupper",
        "ret",
    )
}
