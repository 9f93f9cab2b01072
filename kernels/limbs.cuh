// Additions, subtractions and products of 32-bit words that pass a carry on.
//
// On a GPU each is one instruction, and the carry is the machine's condition code: nothing may come between the
// instructions of a chain but others of it, which `asm volatile` and straight-line code give. On a processor the carry
// is a variable.
#pragma once

#include "platform.cuh"

#if defined(__CUDACC__)

#define TWO_OPERANDS(name, instruction) \
    DEVICE uint32_t name(uint32_t a, uint32_t b) { \
        uint32_t r; \
        asm volatile(instruction " %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); \
        return r; \
    }
#define THREE_OPERANDS(name, instruction) \
    DEVICE uint32_t name(uint32_t a, uint32_t b, uint32_t c) { \
        uint32_t r; \
        asm volatile(instruction " %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); \
        return r; \
    }

// `_cc` sets the carry, a `c` before it uses the carry.
TWO_OPERANDS(add_cc, "add.cc.u32")
TWO_OPERANDS(addc_cc, "addc.cc.u32")
TWO_OPERANDS(addc, "addc.u32")
TWO_OPERANDS(sub_cc, "sub.cc.u32")
TWO_OPERANDS(subc_cc, "subc.cc.u32")
TWO_OPERANDS(subc, "subc.u32")
TWO_OPERANDS(mul_lo, "mul.lo.u32")
TWO_OPERANDS(mul_hi, "mul.hi.u32")
THREE_OPERANDS(mad_lo_cc, "mad.lo.cc.u32")
THREE_OPERANDS(madc_lo_cc, "madc.lo.cc.u32")
THREE_OPERANDS(madc_hi_cc, "madc.hi.cc.u32")
THREE_OPERANDS(madc_hi, "madc.hi.u32")

#undef TWO_OPERANDS
#undef THREE_OPERANDS

#else

// The carry of the chain that is being computed. Chains do not cross a barrier, so fibers of one thread share it.
static thread_local uint32_t carry_flag;

DEVICE uint32_t with_carry_out(uint64_t sum) {
    carry_flag = static_cast<uint32_t>(sum >> 32) & 1;
    return static_cast<uint32_t>(sum);
}
DEVICE uint32_t add_cc(uint32_t a, uint32_t b) { return with_carry_out(uint64_t{a} + b); }
DEVICE uint32_t addc_cc(uint32_t a, uint32_t b) { return with_carry_out(uint64_t{a} + b + carry_flag); }
DEVICE uint32_t addc(uint32_t a, uint32_t b) { return a + b + carry_flag; }
DEVICE uint32_t sub_cc(uint32_t a, uint32_t b) { return with_carry_out(uint64_t{a} - b); }
DEVICE uint32_t subc_cc(uint32_t a, uint32_t b) { return with_carry_out(uint64_t{a} - b - carry_flag); }
DEVICE uint32_t subc(uint32_t a, uint32_t b) { return a - b - carry_flag; }
DEVICE uint32_t mul_lo(uint32_t a, uint32_t b) { return a * b; }
DEVICE uint32_t mul_hi(uint32_t a, uint32_t b) { return static_cast<uint32_t>((uint64_t{a} * b) >> 32); }
DEVICE uint32_t mad_lo_cc(uint32_t a, uint32_t b, uint32_t c) { return add_cc(mul_lo(a, b), c); }
DEVICE uint32_t madc_lo_cc(uint32_t a, uint32_t b, uint32_t c) { return addc_cc(mul_lo(a, b), c); }
DEVICE uint32_t madc_hi_cc(uint32_t a, uint32_t b, uint32_t c) { return addc_cc(mul_hi(a, b), c); }
DEVICE uint32_t madc_hi(uint32_t a, uint32_t b, uint32_t c) { return addc(mul_hi(a, b), c); }

#endif
