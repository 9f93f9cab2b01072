// Field elements as threads hold them: one of Fq in one lane, one of Fq2 spread over two neighbouring lanes.
//
// A point over Fq2 in one thread takes all of its registers, and a multiprocessor then holds too few threads to have
// something to do while a chain of carries waits for itself. Spread, a product in Fq2 is a sum of two products in each
// lane, and a point takes half as many registers. All lanes of a warp come
// to an operation together, and the two take the same branches.
#pragma once

#include "inverse.cuh"

// The component of an element of Fq2 that this lane holds: c0 in even lanes, c1 in odd ones.
struct Fq2Lane {
    Fq own;
};

// How many lanes hold an element, and what it is in memory.
template <class F>
struct Spread;
template <>
struct Spread<Fq> {
    static constexpr uint32_t LANES = 1;
    typedef Fq Stored;
};
template <>
struct Spread<Fq2Lane> {
    static constexpr uint32_t LANES = 2;
    typedef Fq2 Stored;
};

DEVICE bool is_odd_lane() { return (threadIdx.x & 1) != 0; }

// What the other lane of the two has.
DEVICE Fq other(const Fq& a) {
    Fq r;
    UNROLL
    for (int i = 0; i < 8; i += 2) {
        const uint64_t both = static_cast<uint64_t>(a.v[i + 1]) << 32 | a.v[i];
        const uint64_t got = __shfl_xor_sync(UINT32_MAX, both, 1);
        r.v[i] = static_cast<uint32_t>(got);
        r.v[i + 1] = static_cast<uint32_t>(got >> 32);
    }
    return r;
}

// Whether it holds in both lanes.
DEVICE bool in_both(bool here) { return __shfl_xor_sync(UINT32_MAX, here ? 1u : 0u, 1) != 0 && here; }

DEVICE Fq select(bool first, const Fq& a, const Fq& b) {
    Fq r;
    UNROLL
    for (int i = 0; i < 8; i++) r.v[i] = first ? a.v[i] : b.v[i];
    return r;
}

DEVICE Fq2Lane select(bool first, const Fq2Lane& a, const Fq2Lane& b) {
    return Fq2Lane{select(first, a.own, b.own)};
}

DEVICE void set_zero(Fq2Lane& r) { set_zero(r.own); }
DEVICE void set_one(Fq2Lane& r) {
    UNROLL
    for (int i = 0; i < 8; i++) r.own.v[i] = is_odd_lane() ? 0 : FqModulus::one(i);
}
DEVICE Fq2Lane operator+(const Fq2Lane& a, const Fq2Lane& b) { return Fq2Lane{a.own + b.own}; }
DEVICE Fq2Lane operator-(const Fq2Lane& a, const Fq2Lane& b) { return Fq2Lane{a.own - b.own}; }
DEVICE Fq2Lane operator-(const Fq2Lane& a) { return Fq2Lane{-a.own}; }
DEVICE Fq2Lane twice_of(const Fq2Lane& a) { return a + a; }
DEVICE Fq2Lane canonical(const Fq2Lane& a) { return Fq2Lane{canonical(a.own)}; }
DEVICE bool is_zero(const Fq2Lane& a) { return in_both(is_zero(a.own)); }
DEVICE bool is_plain_zero(const Fq2Lane& a) { return in_both(is_plain_zero(a.own)); }

DEVICE Fq2Lane operator*(const Fq2Lane& a, const Fq2Lane& b) {
    // Even: a0·b0 + a1·(−b1). Odd: a1·b0 + a0·b1. Karatsuba's three products over two lanes, measured, gain nothing: what
    // they save in products they cost in exchanges.
    const Fq a_other = other(a.own), b_other = other(b.own);
    const bool odd = is_odd_lane();
    return Fq2Lane{sum_of_products(a.own, select(odd, b_other, b.own), a_other, select(odd, b.own, -b_other))};
}
DEVICE Fq2Lane square(const Fq2Lane& a) {
    // Even: (a0 + a1)·(a0 − a1). Odd: a1·2·a0.
    const Fq a_other = other(a.own);
    const bool odd = is_odd_lane();
    return Fq2Lane{select(odd, a.own, a.own + a_other) * select(odd, a_other + a_other, a.own - a_other)};
}
DEVICE Fq2Lane difference_of_products(const Fq2Lane& x, const Fq2Lane& y, const Fq2Lane& z, const Fq2Lane& w) {
    return x * y - z * w;
}
DEVICE Fq2Lane inverse(const Fq2Lane& a) {
    // (a0 − a1·u)/(a0² + a1²)
    const Fq a_other = other(a.own);
    const Fq over = inverse(sum_of_products(a.own, a.own, a_other, a_other));
    const Fq product = a.own * over;
    return Fq2Lane{select(is_odd_lane(), -product, product)};
}

DEVICE Fq load(const Fq* at, Fq*) { return *at; }
DEVICE Fq2Lane load(const Fq2* at, Fq2Lane*) {
    return Fq2Lane{reinterpret_cast<const Fq*>(at)[threadIdx.x & 1]};
}
DEVICE void store(Fq* at, const Fq& a) { *at = a; }
DEVICE void store(Fq2* at, const Fq2Lane& a) { reinterpret_cast<Fq*>(at)[threadIdx.x & 1] = a.own; }

// The element at this place, or this lane's part of it.
template <class F>
DEVICE F load(const typename Spread<F>::Stored& at) {
    return load(&at, static_cast<F*>(nullptr));
}
