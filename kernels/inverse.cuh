// Inverses modulo p, by division steps (Bernstein, Yang: "Fast constant-time gcd computation and modular inversion", TCHES
// 2019; with δ from 1/2 on, 590 steps are enough for any modulus below 2^256, as Wuille has shown by computation).
//
// A step takes (δ, f, g) with f odd to (1 − δ, g, (g − f)/2) if δ > 0 and g is odd, else to (1 + δ, f, (g + f·(g mod 2))/2).
// From f = p, g = a it gets to f = ±1, g = 0. What 30 steps do to f and g depends on their low 30 bits only, and is a matrix
// by which the long numbers, and d and e with f = d·a and g = e·a modulo p, are multiplied at once.
//
// Every operand takes as many steps, so that the threads of a warp stay together.
#pragma once

#include "field.cuh"

static constexpr int LIMBS = 9;
static constexpr int LIMB_BITS = 30;
static constexpr int32_t LIMB_MASK = (1 << LIMB_BITS) - 1;
static constexpr int STEPS = 600;

// A number of 30-bit limbs, low ones first, of which the highest has the sign.
struct Signed {
    int32_t v[LIMBS];
};

// What LIMB_BITS steps multiply (f, g) and (d, e) by, times 2^LIMB_BITS: |u| + |v| and |q| + |r| are not above that.
struct StepMatrix {
    int32_t u, v, q, r;
};

// Limb i of p.
template <class P>
DEVICE constexpr int32_t modulus_limb(int i) {
    const int word = i * LIMB_BITS / 32, shift = i * LIMB_BITS % 32;
    const uint64_t high = word < 7 ? P::word(word + 1) : 0;
    return static_cast<int32_t>(((high << 32 | P::word(word)) >> shift) & static_cast<uint64_t>(LIMB_MASK));
}

DEVICE Signed limbs_of(const uint32_t words[8]) {
    Signed s;
    UNROLL
    for (int i = 0; i < LIMBS; i++) {
        const int word = i * LIMB_BITS / 32, shift = i * LIMB_BITS % 32;
        const uint64_t high = word < 7 ? words[word + 1] : 0;
        s.v[i] = static_cast<int32_t>(((high << 32 | words[word]) >> shift) & static_cast<uint64_t>(LIMB_MASK));
    }
    return s;
}

// The next steps, for f and g of these low bits; `delta` is 2·δ.
DEVICE StepMatrix steps(int32_t& delta, uint32_t f, uint32_t g) {
    StepMatrix m = {1, 0, 0, 1};
    UNROLL
    for (int i = 0; i < LIMB_BITS; i++) {
        const bool odd = (g & 1) != 0, swap = odd && delta > 0;
        const uint32_t f_before = f;
        const int32_t u = m.u, v = m.v;
        const int32_t sign = swap ? -1 : odd ? 1 : 0;
        f = swap ? g : f;
        m.u = 2 * (swap ? m.q : m.u);
        m.v = 2 * (swap ? m.r : m.v);
        g = (g + static_cast<uint32_t>(sign) * f_before) >> 1;
        m.q += sign * u;
        m.r += sign * v;
        delta = (swap ? -delta : delta) + 2;
    }
    return m;
}

// (f, g) times the matrix, which is divisible by 2^LIMB_BITS.
DEVICE void update(Signed& f, Signed& g, const StepMatrix& m) {
    int64_t to_f = 0, to_g = 0;
    UNROLL
    for (int i = 0; i < LIMBS; i++) {
        to_f += static_cast<int64_t>(m.u) * f.v[i] + static_cast<int64_t>(m.v) * g.v[i];
        to_g += static_cast<int64_t>(m.q) * f.v[i] + static_cast<int64_t>(m.r) * g.v[i];
        if (i > 0) {
            f.v[i - 1] = static_cast<int32_t>(to_f) & LIMB_MASK;
            g.v[i - 1] = static_cast<int32_t>(to_g) & LIMB_MASK;
        }
        to_f >>= LIMB_BITS;
        to_g >>= LIMB_BITS;
    }
    f.v[LIMBS - 1] = static_cast<int32_t>(to_f);
    g.v[LIMBS - 1] = static_cast<int32_t>(to_g);
}

// (d, e) times the matrix, divided by 2^LIMB_BITS modulo p. Both stay in (−2p, p).
template <class P>
DEVICE void update_modulo(Signed& d, Signed& e, const StepMatrix& m) {
    // p times these is added: once for each that is negative, and what makes the lowest limb 0.
    constexpr int32_t over = static_cast<int32_t>((0 - P::INVERSE) & static_cast<uint32_t>(LIMB_MASK));
    const int32_t d_sign = d.v[LIMBS - 1] >> 31, e_sign = e.v[LIMBS - 1] >> 31;
    int32_t d_times = (m.u & d_sign) + (m.v & e_sign), e_times = (m.q & d_sign) + (m.r & e_sign);
    int64_t to_d = static_cast<int64_t>(m.u) * d.v[0] + static_cast<int64_t>(m.v) * e.v[0];
    int64_t to_e = static_cast<int64_t>(m.q) * d.v[0] + static_cast<int64_t>(m.r) * e.v[0];
    d_times -= static_cast<int32_t>(static_cast<uint32_t>(over) * static_cast<uint32_t>(to_d) +
                                    static_cast<uint32_t>(d_times)) & LIMB_MASK;
    e_times -= static_cast<int32_t>(static_cast<uint32_t>(over) * static_cast<uint32_t>(to_e) +
                                    static_cast<uint32_t>(e_times)) & LIMB_MASK;
    to_d = (to_d + static_cast<int64_t>(modulus_limb<P>(0)) * d_times) >> LIMB_BITS;
    to_e = (to_e + static_cast<int64_t>(modulus_limb<P>(0)) * e_times) >> LIMB_BITS;
    UNROLL
    for (int i = 1; i < LIMBS; i++) {
        to_d += static_cast<int64_t>(m.u) * d.v[i] + static_cast<int64_t>(m.v) * e.v[i];
        to_e += static_cast<int64_t>(m.q) * d.v[i] + static_cast<int64_t>(m.r) * e.v[i];
        to_d += static_cast<int64_t>(modulus_limb<P>(i)) * d_times;
        to_e += static_cast<int64_t>(modulus_limb<P>(i)) * e_times;
        d.v[i - 1] = static_cast<int32_t>(to_d) & LIMB_MASK;
        e.v[i - 1] = static_cast<int32_t>(to_e) & LIMB_MASK;
        to_d >>= LIMB_BITS;
        to_e >>= LIMB_BITS;
    }
    d.v[LIMBS - 1] = static_cast<int32_t>(to_d);
    e.v[LIMBS - 1] = static_cast<int32_t>(to_e);
}

// The inverse, loose; 0 of 0.
template <class P>
DEVICE_CALL Prime<P> inverse(const Prime<P>& a) {
    Signed f, g = limbs_of(canonical(a).v), d, e;
    UNROLL
    for (int i = 0; i < LIMBS; i++) {
        f.v[i] = modulus_limb<P>(i);
        d.v[i] = 0;
        e.v[i] = i == 0 ? 1 : 0;
    }
    int32_t delta = 1;
    NO_UNROLL
    for (int done = 0; done < STEPS; done += LIMB_BITS) {
        const uint32_t low_f = static_cast<uint32_t>(f.v[0]) | static_cast<uint32_t>(f.v[1]) << LIMB_BITS;
        const uint32_t low_g = static_cast<uint32_t>(g.v[0]) | static_cast<uint32_t>(g.v[1]) << LIMB_BITS;
        const StepMatrix m = steps(delta, low_f, low_g);
        update_modulo<P>(d, e, m);
        update(f, g, m);
    }
    // d·f is the inverse, in (−2p, 2p); with 2p it is positive, and below 4p.
    const bool minus = f.v[LIMBS - 1] < 0;
    int64_t sum = 0;
    UNROLL
    for (int i = 0; i < LIMBS; i++) {
        sum += (minus ? -d.v[i] : d.v[i]) + 2 * static_cast<int64_t>(modulus_limb<P>(i));
        d.v[i] = static_cast<int32_t>(sum) & LIMB_MASK;
        sum >>= LIMB_BITS;
    }
    Prime<P> r, cube;
    UNROLL
    for (int i = 0; i < 8; i++) {
        const int limb = 32 * i / LIMB_BITS, shift = 32 * i % LIMB_BITS;
        r.v[i] = static_cast<uint32_t>(d.v[limb]) >> shift | static_cast<uint32_t>(d.v[limb + 1]) << (LIMB_BITS - shift);
        cube.v[i] = P::cube(i);
    }
    // Of a·R it is 1/(a·R): the product by R³ gives R/a.
    return loosen(r) * cube;
}
