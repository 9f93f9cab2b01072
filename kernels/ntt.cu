// Number-theoretic transforms over Fr of 2^0 to 2^27 elements, in place.
//
// The inverse takes values in natural order to coefficients in bit-reversed order, by decimation in frequency and
// without the division by n; the forward transform goes back, by decimation in time, on the domain itself or on the
// coset ω₂ₙ·⟨ωₙ⟩. Nothing is ever permuted.
//
// A *stage* pairs elements whose indices differ in one bit; a *pass* is a kernel that does the stages of several
// neighbouring bits, from `low` on. A block has a *tile* of 2^tile elements, which lie in shared memory between groups
// of stages. A thread holds 2^R of them, those that differ in a *window* of R bits of the index within the tile.
//
//     index within the tile:   row (tile − columns bits)  column (columns bits)
//     index in the vector:     part of the block's number, row from bit `low` on, rest of it, column
//
// In the pass of the lowest bits there are no columns, and where the tile has more bits than the pass has stages, it is
// several sequences after each other. Otherwise the pass has all bits of the row, and at least R of them.
//
// Roots: for each pass a table of ω^i, 0 ≤ i ≤ 2^m, where ω has order 2^(m+1) and m is the bit after the pass's highest.
// Inverses are found by ω^−i = −ω^(2^m − i).
//
// Products by roots: not Montgomery's but Shoup's. With ⌊w·2^256/p⌋ beside w, the quotient of x·w by p comes from the
// upper half of one product, and the remainder from the lower halves of two: 107 wide products of words or what takes
// as long, where Montgomery's takes 133. Elements keep their form, and roots are plain.
#pragma once

#include "field.cuh"

// Half an element: what one access to shared memory moves.
struct alignas(16) Half {
    uint32_t v[4];
};

// A fixed factor.
struct Root {
    // ⌊value·2^256/p⌋
    Fr ratio;
    // Plain, canonical.
    Fr value;
};

// Word i of 2^256 − p, whose lowest word is not 0.
DEVICE constexpr uint32_t minus_modulus(int i) { return i == 0 ? 0 - FrModulus::word(0) : ~FrModulus::word(i); }

// Word i of −1/p mod 2^256.
DEVICE constexpr uint32_t minus_inverse(int i) {
    constexpr uint32_t w[8] = {0xefffffffu, 0xc2e1f593u, 0x4c6911b3u, 0x6586864bu,
                               0x99062391u, 0xe39a9828u, 0x0d8341b2u, 0x73f82f1du};
    return w[i];
}

// q = ⌊a·b/2^256⌋ or, for less than 2^−29 of all values of a·b mod 2^256, 1 less: words 0 to 5 of the sum are left out.
DEVICE void upper_product(uint32_t q[8], const uint32_t a[8], const uint32_t b[8]) {
    // Words 6 to 15 of the sums of products at even words and of those at odd ones.
    uint32_t sums[2][17];
    UNROLL
    for (int k = 0; k < 17; k++) sums[0][k] = sums[1][k] = 0;
    UNROLL
    for (int j = 0; j < 8; j++) {
        UNROLL
        for (int odd = 0; odd < 2; odd++) {
            uint32_t* const sum = sums[odd];
            const int begin = j < 7 ? 6 + odd : 8 - odd, top = j + 7 - (j + 7 + odd) % 2;
            UNROLL
            for (int k = begin; k <= top; k += 2) {
                sum[k] = k == begin ? mad_lo_cc(a[k - j], b[j], sum[k]) : madc_lo_cc(a[k - j], b[j], sum[k]);
                // Nothing lies at the highest word yet.
                sum[k + 1] = k == j + 7 ? madc_hi(a[k - j], b[j], 0) : madc_hi_cc(a[k - j], b[j], sum[k + 1]);
            }
            if (top < j + 7 && j > 0) sum[top + 2] = addc(0, 0);
        }
    }
    add_cc(sums[0][7], sums[1][7]);
    UNROLL
    for (int i = 0; i < 7; i++) q[i] = addc_cc(sums[0][8 + i], sums[1][8 + i]);
    q[7] = addc(sums[0][15], sums[1][15]);
}

// Adds a·b mod 2^256 to the sum of products at even words and of those at odd ones from 1 on.
DEVICE void add_lower_product(uint32_t even[8], uint32_t odd[7], const uint32_t a[8], const uint32_t b[8]) {
    UNROLL
    for (int j = 0; j < 8; j++) {
        UNROLL
        for (int k = j + j % 2; k < 8; k += 2) {
            even[k] = k == j + j % 2 ? mad_lo_cc(a[k - j], b[j], even[k]) : madc_lo_cc(a[k - j], b[j], even[k]);
            even[k + 1] = k == 6 ? madc_hi(a[k - j], b[j], even[k + 1]) : madc_hi_cc(a[k - j], b[j], even[k + 1]);
        }
        const int begin = j + 1 - j % 2;
        UNROLL
        for (int k = begin; k < 7; k += 2) {
            odd[k - 1] = k == begin ? mad_lo_cc(a[k - j], b[j], odd[k - 1]) : madc_lo_cc(a[k - j], b[j], odd[k - 1]);
            odd[k] = madc_hi_cc(a[k - j], b[j], odd[k]);
        }
        if (begin < 7) odd[6] = addc(odd[6], 0);
        odd[6] += a[7 - j] * b[j];
    }
}

// What both add up to.
DEVICE void join_lower(uint32_t r[8], const uint32_t even[8], const uint32_t odd[7]) {
    r[0] = even[0];
    r[1] = add_cc(even[1], odd[0]);
    UNROLL
    for (int i = 2; i < 7; i++) r[i] = addc_cc(even[i], odd[i - 1]);
    r[7] = addc(even[7], odd[6]);
}

// x·w for any x below 0.99·2^256, loose.
DEVICE Fr operator*(const Fr& x, const Root& w) {
    // x·w/p − q < 1 + x/2^256 + 2^−29
    uint32_t q[8], even[8], odd[7], negative[8];
    const Fr ratio = w.ratio;
    upper_product(q, x.v, ratio.v);
    UNROLL
    for (int i = 0; i < 8; i++) {
        even[i] = 0;
        negative[i] = minus_modulus(i);
    }
    UNROLL
    for (int i = 0; i < 7; i++) odd[i] = 0;
    add_lower_product(even, odd, q, negative);
    // Read no earlier, for want of registers.
    const Fr value = w.value;
    add_lower_product(even, odd, x.v, value.v);
    Fr r;
    join_lower(r.v, even, odd);
    return r;
}

// A pass over one tile, as its thread sees it.
struct Pass {
    uint32_t size;     // log of the elements of a vector
    uint32_t low;      // lowest bit of the pass
    uint32_t stages;   // bits of the pass
    uint32_t tile;     // log of the elements of a tile
    uint32_t columns;  // log of the columns of a tile
    uint32_t order;    // m of the table of roots
};

// Where element x of a tile lies in each half of shared memory. Eight neighbouring threads access 16 bytes each at a
// time: whatever the window (1 to 3 bits, anywhere), the three bits in which their x differ give eight places modulo 8.
DEVICE uint32_t place(uint32_t x) {
    // What bits 3, 4 and 5 add to the low ones: 7, 5 and 6.
    return x ^ ((0x43162570u >> (4 * ((x >> 3) & 7))) & 7);
}

// Index within the tile of the first element of this thread, for the window from bit `window` on.
template <int R>
DEVICE uint32_t first_of(uint32_t window) {
    const uint32_t t = threadIdx.x, below = (1u << window) - 1;
    return ((t & ~below) << R) | (t & below);
}

// Index in the vector of element x of the tile.
DEVICE uint32_t index_of(const Pass& pass, uint32_t x) {
    const uint32_t column = x & ((1u << pass.columns) - 1), row = x >> pass.columns;
    const uint32_t other = blockIdx.x & ((1u << (pass.low - pass.columns)) - 1);
    const uint32_t high = blockIdx.x >> (pass.low - pass.columns);
    return (high << (pass.low + pass.tile - pass.columns)) | (row << pass.low) | (other << pass.columns) | column;
}

// Of the vectors after each other, the one that this block works on.
template <class T>
DEVICE T* vector_of(const Pass& pass, T* data) {
    return data + (static_cast<uint64_t>(blockIdx.y) << pass.size);
}

// Lowest bit in the vector's index of the window.
DEVICE uint32_t bit_of(const Pass& pass, uint32_t window) { return pass.low + window - pass.columns; }

template <int R>
DEVICE void load(const Pass& pass, Fr x[1 << R], const Fr* data, uint32_t window) {
    const uint32_t first = index_of(pass, first_of<R>(window)), bit = bit_of(pass, window);
    data = vector_of(pass, data);
    UNROLL
    for (uint32_t q = 0; q < 1u << R; q++) {
        const uint32_t i = first + (q << bit);
        // Vectors shorter than a thread's elements.
        if (i < 1u << pass.size) {
            x[q] = data[i];
        } else {
            set_zero(x[q]);
        }
    }
}

template <int R>
DEVICE void store(const Pass& pass, const Fr x[1 << R], Fr* data, uint32_t window) {
    const uint32_t first = index_of(pass, first_of<R>(window)), bit = bit_of(pass, window);
    data = vector_of(pass, data);
    UNROLL
    for (uint32_t q = 0; q < 1u << R; q++) {
        const uint32_t i = first + (q << bit);
        if (i < 1u << pass.size) data[i] = x[q];
    }
}

// Gives each thread the elements of window `to` in place of those of window `from`.
template <int R>
DEVICE void exchange(const Pass& pass, Fr x[1 << R], Half* shared, uint32_t from, uint32_t to) {
    if (from == to) return;
    Half* const upper = shared + (1u << pass.tile);
    const uint32_t out = first_of<R>(from), in = first_of<R>(to);
    // What was exchanged before has been read.
    __syncthreads();
    UNROLL
    for (uint32_t q = 0; q < 1u << R; q++) {
        const uint32_t at = place(out + (q << from));
        shared[at] = Half{{x[q].v[0], x[q].v[1], x[q].v[2], x[q].v[3]}};
        upper[at] = Half{{x[q].v[4], x[q].v[5], x[q].v[6], x[q].v[7]}};
    }
    __syncthreads();
    UNROLL
    for (uint32_t q = 0; q < 1u << R; q++) {
        const uint32_t at = place(in + (q << to));
        const Half a = shared[at], b = upper[at];
        UNROLL
        for (int i = 0; i < 4; i++) {
            x[q].v[i] = a.v[i];
            x[q].v[4 + i] = b.v[i];
        }
    }
}

// The same between windows of one bit that are neighbours, of which the lower one is `bit`, within warps: a thread keeps one
// of its two elements and gives the other one to the lane that has the other value of that bit.
DEVICE void exchange_in_warp(Fr x[2], uint32_t bit) {
    const bool odd = (threadIdx.x >> bit & 1) != 0;
    UNROLL
    for (int i = 0; i < 8; i++) {
        const uint32_t got = __shfl_xor_sync(UINT32_MAX, odd ? x[0].v[i] : x[1].v[i], 1u << bit);
        x[0].v[i] = odd ? got : x[0].v[i];
        x[1].v[i] = odd ? x[1].v[i] : got;
    }
}

// By whichever way is the shorter: within warps where blocks are whole warps, which those of short vectors are not.
template <int R>
DEVICE void move(const Pass& pass, Fr x[1 << R], Half* shared, uint32_t from, uint32_t to) {
    const uint32_t bit = from < to ? from : to;
    if (R == 1 && from != to && from + to == 2 * bit + 1 && bit < 5 && blockDim.x % 32 == 0) {
        exchange_in_warp(x, bit);
    } else {
        exchange<R>(pass, x, shared, from, to);
    }
}

// Stages of the bits from `begin` up to `end`, all in the window, from the highest down. Loose to loose.
template <int R>
DEVICE void inverse_stages(const Pass& pass, Fr x[1 << R], const Root* roots, uint32_t window, uint32_t begin,
                           uint32_t end) {
    const uint32_t low = bit_of(pass, window);
    const uint32_t rest = index_of(pass, first_of<R>(window)) & ((1u << low) - 1);
    UNROLL
    for (int r = R - 1; r >= 0; r--) {
        if (window + r < begin || window + r >= end) continue;
        const uint32_t half = 1u << (low + r), step = pass.order - low - r;
        UNROLL
        for (uint32_t q = 0; q < 1u << R; q++) {
            if (q >> r & 1) continue;
            Fr &a = x[q], &b = x[q | 1u << r];
            const uint32_t within = q & ((1u << r) - 1);
            if (low == 0 && within == 0) {
                const Fr difference = difference_below_4p(a, b);
                a = a + b;
                b = loosen(difference);
            } else {
                // (a − b)·ω^−e = (b − a)·ω^(half − e)
                const Root& root = roots[(half - rest - (within << low)) << step];
                const Fr difference = difference_below_4p(b, a);
                a = a + b;
                b = difference * root;
            }
        }
    }
}

// Stages of the bits from `begin` up to `end`, all in the window, from the lowest up; on the coset if `coset` is 1.
// Elements below 4p to elements below 4p.
template <int R>
DEVICE void forward_stages(const Pass& pass, Fr x[1 << R], const Root* roots, uint32_t coset, uint32_t window,
                           uint32_t begin, uint32_t end) {
    const uint32_t low = bit_of(pass, window);
    const uint32_t rest = index_of(pass, first_of<R>(window)) & ((1u << low) - 1);
    UNROLL
    for (int r = 0; r < R; r++) {
        if (window + r < begin || window + r >= end) continue;
        // The polynomials of this stage are evaluated at the n/half-th power of a point x, which is ω^e of order
        // 2·half, or on the coset ω^(2e + 1) of order 4·half: the shift is in the roots.
        const uint32_t step = pass.order - low - r - 1;
        UNROLL
        for (uint32_t q = 0; q < 1u << R; q++) {
            if (q >> r & 1) continue;
            Fr &a = x[q], &b = x[q | 1u << r];
            const uint32_t within = q & ((1u << r) - 1);
            Fr product;
            if (low + coset == 0 && within == 0) {
                product = loosen(b);
            } else {
                const Root& root = roots[(2 * (rest + (within << low)) + coset) << step];
                product = b * root;
            }
            const Fr sum = loosen(a);
            add_words(a.v, sum.v, product.v);
            b = difference_below_4p(sum, product);
        }
    }
}

// Window of the first group of the inverse's stages.
template <int R>
DEVICE uint32_t inverse_begin(const Pass& pass) {
    const uint32_t end = pass.columns + pass.stages;
    return end > R ? end - R : 0;
}

// All stages of the inverse in this pass. The thread has the elements of the window from `last` on at the end.
template <int R>
DEVICE void inverse_groups(const Pass& pass, Fr x[1 << R], const Root* roots, Half* shared, uint32_t last) {
    uint32_t end = pass.columns + pass.stages;
    NO_UNROLL
    while (end > pass.columns) {
        // The group of fewer stages comes first, so that those of the lowest bits, with roots of 1, are together.
        const uint32_t begin = end - 1 - (end - 1 - pass.columns) % R;
        const uint32_t window = end > R ? end - R : 0;
        inverse_stages<R>(pass, x, roots, window, begin, end);
        move<R>(pass, x, shared, window, begin > pass.columns ? begin - R : last);
        end = begin;
    }
}

// All stages of the forward transform in this pass, from elements of the window from `window` on. Gives the last one.
template <int R>
DEVICE uint32_t forward_groups(const Pass& pass, Fr x[1 << R], const Root* roots, uint32_t coset, Half* shared,
                               uint32_t window) {
    const uint32_t end = pass.columns + pass.stages;
    NO_UNROLL
    for (uint32_t begin = pass.columns; begin < end; begin += R) {
        const uint32_t next = begin < pass.tile - R ? begin : pass.tile - R;
        move<R>(pass, x, shared, window, next);
        window = next;
        forward_stages<R>(pass, x, roots, coset, window, begin, begin + R < end ? begin + R : end);
    }
    UNROLL
    for (int q = 0; q < 1 << R; q++) x[q] = loosen(x[q]);
    return window;
}

template <int R>
DEVICE void inverse_pass(const Pass& pass, Fr* data, const Root* roots, Half* shared) {
    // Neighbouring threads write neighbouring elements; where a thread has two of them, both lie beside each other.
    const uint32_t last = pass.low == 0 && R > 1 ? pass.tile - R : pass.columns;
    Fr x[1 << R];
    load<R>(pass, x, data, inverse_begin<R>(pass));
    inverse_groups<R>(pass, x, roots, shared, last);
    store<R>(pass, x, data, last);
}

template <int R>
DEVICE void forward_pass(const Pass& pass, Fr* data, const Root* roots, uint32_t coset, Half* shared) {
    // Neighbouring threads read neighbouring elements, as they are written.
    const uint32_t first = pass.low == 0 && R > 1 ? pass.tile - R : pass.columns;
    Fr x[1 << R];
    load<R>(pass, x, data, first);
    const uint32_t last = forward_groups<R>(pass, x, roots, coset, shared, first);
    store<R>(pass, x, data, last);
}

// The inverse's pass of the lowest bits, its last, and the forward transform's, its first, on the coset. `low` and
// `columns` are 0.
template <int R>
DEVICE void turn_pass(const Pass& pass, Fr* data, const Root* roots, Half* shared) {
    Fr x[1 << R];
    load<R>(pass, x, data, inverse_begin<R>(pass));
    inverse_groups<R>(pass, x, roots, shared, 0);
    const uint32_t last = forward_groups<R>(pass, x, roots, 1, shared, 0);
    store<R>(pass, x, data, last);
}

// Blocks of 2^(tile − R) threads with 2^(tile + 5) bytes of shared memory; grid.x · 2^tile = 2^size where that is not
// less than a tile, grid.y vectors after each other.
#define PASSES(R, threads, blocks) \
    KERNEL(ntt_inverse_##R, threads, blocks) \
    (Fr * data, const Root* roots, uint32_t size, uint32_t low, uint32_t stages, uint32_t tile, uint32_t columns) { \
        SHARED(Half, shared); \
        inverse_pass<R>(Pass{size, low, stages, tile, columns, low + stages}, data, roots, shared); \
    } \
    EXPORT(ntt_inverse_##R) \
    KERNEL(ntt_forward_##R, threads, blocks) \
    (Fr * data, const Root* roots, uint32_t coset, uint32_t size, uint32_t low, uint32_t stages, uint32_t tile, \
     uint32_t columns) { \
        SHARED(Half, shared); \
        forward_pass<R>(Pass{size, low, stages, tile, columns, low + stages}, data, roots, coset, shared); \
    } \
    EXPORT(ntt_forward_##R) \
    KERNEL(ntt_turn_##R, threads, blocks) \
    (Fr * data, const Root* roots, uint32_t size, uint32_t low, uint32_t stages, uint32_t tile, uint32_t columns) { \
        SHARED(Half, shared); \
        turn_pass<R>(Pass{size, low, stages, tile, columns, low + stages}, data, roots, shared); \
    } \
    EXPORT(ntt_turn_##R)

PASSES(1, 256, 3)
PASSES(2, 256, 3)
PASSES(3, 256, 2)

// roots[i] = ω^i for i < count, from powers[k] = ω^(2^k).
KERNEL(ntt_roots, 256, 2)(Root* roots, const Fr* powers, uint32_t count) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    Fr power, one;
    set_one(power);
    NO_UNROLL
    for (uint32_t k = 0; i >> k != 0; k++) {
        if (i >> k & 1) power = power * powers[k];
    }
    power = canonical(power);
    // Montgomery's form is the remainder of w·2^256, so that p divides w·2^256 less it: the quotient is −power/p
    // modulo 2^256.
    uint32_t even[8], odd[7], inverse[8];
    UNROLL
    for (int k = 0; k < 8; k++) {
        even[k] = 0;
        inverse[k] = minus_inverse(k);
    }
    UNROLL
    for (int k = 0; k < 7; k++) odd[k] = 0;
    add_lower_product(even, odd, power.v, inverse);
    Root root;
    join_lower(root.ratio.v, even, odd);
    set_zero(one);
    one.v[0] = 1;
    root.value = canonical(power * one);
    roots[i] = root;
}
EXPORT(ntt_roots)
