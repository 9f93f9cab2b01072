// Kernels that are only checked: each operation of the fields, on operands of the caller's choice.
#pragma once

#include "curve.cuh"

static constexpr int OPERATIONS = 7;

// out = canonical a·b, a², a + b, a − b, −a, a·b + b², 1/a (0 of 0), for loose a and b.
template <class F>
DEVICE void operations(const F& a, const F& b, F out[OPERATIONS]) {
    out[0] = a * b;
    out[1] = square(a);
    out[2] = a + b;
    out[3] = a - b;
    // Which may be 2p.
    out[4] = -a + b - b;
    // a·b + b·b, as a·b − (−b)·b.
    out[5] = difference_of_products(a, b, -b, b);
    out[6] = inverse(a);
    UNROLL
    for (int k = 0; k < OPERATIONS; k++) out[k] = canonical(out[k]);
}

#define CHECK(name, F)                                                                                               \
    KERNEL(name, 64, 1)(const F* a, const F* b, F* out, uint32_t n) {                                                 \
        const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;                                                     \
        if (i < n) operations(a[i], b[i], out + OPERATIONS * i);                                                      \
    }                                                                                                                 \
    EXPORT(name)

CHECK(check_fq_operations, Fq)
CHECK(check_fr_operations, Fr)

#undef CHECK

// The same in Fq2, two lanes an element.
KERNEL(check_fq2_operations, 64, 1)(const Fq2* a, const Fq2* b, Fq2* out, uint32_t n) {
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) / Spread<Fq2Lane>::LANES;
    const uint32_t mine = i < n ? i : 0;
    Fq2Lane results[OPERATIONS];
    operations(load<Fq2Lane>(a[mine]), load<Fq2Lane>(b[mine]), results);
    UNROLL
    for (int k = 0; k < OPERATIONS; k++) {
        if (i < n) store(out + OPERATIONS * i + k, results[k]);
    }
}
EXPORT(check_fq2_operations)
