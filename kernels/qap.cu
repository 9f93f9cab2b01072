// From the witness to the scalars of H: rows of A and B times the witness, and what is done element by element between
// and after the transforms.
//
// Rows are numbered through, those of A first and those of B after them; the products lie in this order. A term is a
// wire and the place of its factor among the distinct ones. Factors are v·R², canonical, and the witness is plain, so
// that their product is v·w in Montgomery's form.
//
// *Short* rows are one thread's each. They are sorted by length and lie in slices of 32, term by term: the first terms
// of all rows of a slice, then the second ones, filled up with terms whose factor is 0. *Long* rows are cut into parts,
// which are one block's each.
#pragma once

#include "field.cuh"

struct alignas(8) Term {
    uint32_t wire;
    uint32_t factor;
};

// out[rows[i]] for the short rows i < count. Slice s has the terms from 32·starts[s] up to 32·starts[s + 1].
KERNEL(qap_short_rows, 256, 3)
(Fr* out, const Term* terms, const uint32_t* starts, const uint32_t* rows, const Fr* factors, const Fr* witness,
 uint32_t count) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const uint32_t end = starts[i / 32 + 1];
    Fr sum;
    set_zero(sum);
    NO_UNROLL
    for (uint32_t k = starts[i / 32]; k < end; k++) {
        const Term term = terms[static_cast<uint64_t>(k) * 32 + i % 32];
        const Fr factor = factors[term.factor], value = witness[term.wire];
        sum = sum + factor * value;
    }
    out[rows[i]] = sum;
}
EXPORT(qap_short_rows)

// The sum of the block's 128 threads, in thread 0.
DEVICE Fr block_sum(const Fr& x, Fr* shared) {
    const uint32_t t = threadIdx.x;
    Fr sum = x;
    shared[t] = sum;
    NO_UNROLL
    for (uint32_t half = 64; half > 0; half /= 2) {
        __syncthreads();
        if (t < half) {
            sum = sum + shared[t + half];
            shared[t] = sum;
        }
    }
    return sum;
}

// sums[p] of part p = blockIdx.x, which has the terms from starts[p] up to starts[p + 1]. 128 threads, 32 bytes of
// shared memory for each; so qap_long_rows.
KERNEL(qap_long_parts, 128, 6)
(Fr* sums, const Term* terms, const uint32_t* starts, const Fr* factors, const Fr* witness) {
    SHARED(Fr, shared);
    const uint32_t end = starts[blockIdx.x + 1];
    Fr sum;
    set_zero(sum);
    NO_UNROLL
    for (uint32_t k = starts[blockIdx.x] + threadIdx.x; k < end; k += 128) {
        const Term term = terms[k];
        const Fr factor = factors[term.factor], value = witness[term.wire];
        sum = sum + factor * value;
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
EXPORT(qap_long_parts)

// out[rows[i]] of the long row i = blockIdx.x, whose parts are those from parts[i] up to parts[i + 1].
KERNEL(qap_long_rows, 128, 6)(Fr* out, const Fr* sums, const uint32_t* parts, const uint32_t* rows) {
    SHARED(Fr, shared);
    const uint32_t end = parts[blockIdx.x + 1];
    Fr sum;
    set_zero(sum);
    NO_UNROLL
    for (uint32_t k = parts[blockIdx.x] + threadIdx.x; k < end; k += 128) sum = sum + sums[k];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) out[rows[blockIdx.x]] = sum;
}
EXPORT(qap_long_rows)

// c = a∘b
KERNEL(qap_products, 256, 3)(Fr* c, const Fr* a, const Fr* b, uint32_t count) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Fr x = a[i], y = b[i];
    c[i] = x * y;
}
EXPORT(qap_products)

// a = scale[0]·a∘b − scale[1]·c. With plain factors in `scale` the result leaves Montgomery's form, and is canonical.
KERNEL(qap_scalars, 256, 2)(Fr* a, const Fr* b, const Fr* c, const Fr* scale, uint32_t count) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Fr x = a[i], y = b[i], z = c[i], first = scale[0], second = scale[1];
    a[i] = canonical(difference_of_products(x * y, first, z, second));
}
EXPORT(qap_scalars)
