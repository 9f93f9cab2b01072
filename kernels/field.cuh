// The fields of BN254: Fq of the coordinates, Fr of the scalars, Fq2 = Fq[u]/(u² + 1) of the coordinates of G2.
//
// q = 21888242871839275222246405745257275088696311157297823662689037894645226208583
// r = 21888242871839275222246405745257275088548364400416034343698204186575808495617
//
// Form: eight 32-bit words, low ones first, of the value times R = 2^256 (Montgomery's form), which is how snarkjs
// stores them. *Loose* elements are below twice the modulus p, *canonical* ones below p. Sums, differences and products
// take loose elements and give loose ones; 4p < 2^256, so nothing overflows. A product of factors below a·p and b·p is
// below (0.19·a·b + 1)·p.
//
// Products: Montgomery's, word by word, with the partial products of even words of a factor and those of odd words
// summed apart, so that each sum is one chain of carries (Emmart, Luitjens, Weems, Woolley: "Optimizing modular
// multiplication for NVIDIA's Maxwell GPUs", ARITH 2016).
#pragma once

#include "limbs.cuh"

struct FqModulus {
    // −1/q mod 2^32
    static constexpr uint32_t INVERSE = 0xe4866389u;
    DEVICE constexpr uint32_t word(int i) {
        constexpr uint32_t w[8] = {0xd87cfd47u, 0x3c208c16u, 0x6871ca8du, 0x97816a91u,
                                   0x8181585du, 0xb85045b6u, 0xe131a029u, 0x30644e72u};
        return w[i];
    }
    // R mod q
    DEVICE constexpr uint32_t one(int i) {
        constexpr uint32_t w[8] = {0xc58f0d9du, 0xd35d438du, 0xf5c70b3du, 0x0a78eb28u,
                                   0x7879462cu, 0x666ea36fu, 0x9a07df2fu, 0x0e0a77c1u};
        return w[i];
    }
    // R³ mod q
    DEVICE constexpr uint32_t cube(int i) {
        constexpr uint32_t w[8] = {0xda1530dfu, 0xb1cd6dafu, 0xa7283db6u, 0x62f210e6u,
                                   0x0ada0afbu, 0xef7f0b0cu, 0x2d592544u, 0x20fd6e90u};
        return w[i];
    }
};

struct FrModulus {
    // −1/r mod 2^32
    static constexpr uint32_t INVERSE = 0xefffffffu;
    DEVICE constexpr uint32_t word(int i) {
        constexpr uint32_t w[8] = {0xf0000001u, 0x43e1f593u, 0x79b97091u, 0x2833e848u,
                                   0x8181585du, 0xb85045b6u, 0xe131a029u, 0x30644e72u};
        return w[i];
    }
    // R mod r
    DEVICE constexpr uint32_t one(int i) {
        constexpr uint32_t w[8] = {0x4ffffffbu, 0xac96341cu, 0x9f60cd29u, 0x36fc7695u,
                                   0x7879462eu, 0x666ea36fu, 0x9a07df2fu, 0x0e0a77c1u};
        return w[i];
    }
    // R³ mod r
    DEVICE constexpr uint32_t cube(int i) {
        constexpr uint32_t w[8] = {0xb4bf0040u, 0x5e94d8e1u, 0x1cfbb6b8u, 0x2a489cbeu,
                                   0xa19fcfedu, 0x893cc664u, 0x7fcc657cu, 0x0cf8594bu};
        return w[i];
    }
};

// Word i of 2p.
template <class P>
DEVICE constexpr uint32_t twice(int i) {
    return (P::word(i) << 1) | (i > 0 ? P::word(i - 1) >> 31 : 0);
}

// An element of the field of P's modulus.
template <class P>
struct alignas(16) Prime {
    typedef P Modulus;
    uint32_t v[8];
};

typedef Prime<FqModulus> Fq;
typedef Prime<FrModulus> Fr;

template <class P>
DEVICE void set_zero(Prime<P>& r) {
    UNROLL
    for (int i = 0; i < 8; i++) r.v[i] = 0;
}

template <class P>
DEVICE void set_one(Prime<P>& r) {
    UNROLL
    for (int i = 0; i < 8; i++) r.v[i] = P::one(i);
}

// a − b, with all ones in `borrow` if a < b, else 0.
DEVICE void subtract(uint32_t r[8], const uint32_t a[8], const uint32_t b[8], uint32_t& borrow) {
    r[0] = sub_cc(a[0], b[0]);
    UNROLL
    for (int i = 1; i < 8; i++) r[i] = subc_cc(a[i], b[i]);
    borrow = subc(0, 0);
}

DEVICE void add_words(uint32_t r[8], const uint32_t a[8], const uint32_t b[8]) {
    r[0] = add_cc(a[0], b[0]);
    UNROLL
    for (int i = 1; i < 7; i++) r[i] = addc_cc(a[i], b[i]);
    r[7] = addc(a[7], b[7]);
}

// a − 2p where that is not negative: makes what is below 4p loose.
template <class P>
DEVICE Prime<P> loosen(const Prime<P>& a) {
    Prime<P> r;
    uint32_t p2[8], t[8], borrow;
    UNROLL
    for (int i = 0; i < 8; i++) p2[i] = twice<P>(i);
    subtract(t, a.v, p2, borrow);
    UNROLL
    for (int i = 0; i < 8; i++) r.v[i] = borrow ? a.v[i] : t[i];
    return r;
}

template <class P>
DEVICE Prime<P> operator+(const Prime<P>& a, const Prime<P>& b) {
    Prime<P> s;
    add_words(s.v, a.v, b.v);
    return loosen(s);
}

// a + 2p − b, below 4p: for a factor that meets one below p.
template <class P>
DEVICE Prime<P> difference_below_4p(const Prime<P>& a, const Prime<P>& b) {
    Prime<P> r;
    uint32_t p2[8], borrow;
    UNROLL
    for (int i = 0; i < 8; i++) p2[i] = twice<P>(i);
    add_words(r.v, a.v, p2);
    subtract(r.v, r.v, b.v, borrow);
    return r;
}

template <class P>
DEVICE Prime<P> operator-(const Prime<P>& a, const Prime<P>& b) {
    Prime<P> r;
    uint32_t t[8], borrow;
    subtract(t, a.v, b.v, borrow);
    r.v[0] = add_cc(t[0], twice<P>(0) & borrow);
    UNROLL
    for (int i = 1; i < 7; i++) r.v[i] = addc_cc(t[i], twice<P>(i) & borrow);
    r.v[7] = addc(t[7], twice<P>(7) & borrow);
    return r;
}

// 2p − a: not above 2p, and 2p itself only for a = 0, which stands for 0 as well. Loose enough as a factor.
template <class P>
DEVICE Prime<P> operator-(const Prime<P>& a) {
    Prime<P> r;
    uint32_t p2[8], borrow;
    UNROLL
    for (int i = 0; i < 8; i++) p2[i] = twice<P>(i);
    subtract(r.v, p2, a.v, borrow);
    return r;
}

// The canonical element, of a loose one.
template <class P>
DEVICE Prime<P> canonical(const Prime<P>& a) {
    Prime<P> r;
    uint32_t p[8], t[8], borrow;
    UNROLL
    for (int i = 0; i < 8; i++) p[i] = P::word(i);
    subtract(t, a.v, p, borrow);
    UNROLL
    for (int i = 0; i < 8; i++) r.v[i] = borrow ? a.v[i] : t[i];
    return r;
}

// Whether a loose element, or 2p, is 0 modulo p.
template <class P>
DEVICE bool is_zero(const Prime<P>& a) {
    // Almost never more than the first word is looked at.
    if (a.v[0] != 0 && a.v[0] != P::word(0) && a.v[0] != twice<P>(0)) return false;
    uint32_t zero = 0, once = 0, two = 0;
    UNROLL
    for (int i = 0; i < 8; i++) {
        zero |= a.v[i];
        once |= a.v[i] ^ P::word(i);
        two |= a.v[i] ^ twice<P>(i);
    }
    return zero == 0 || once == 0 || two == 0;
}

// Whether the words are all 0, as of what was never anything else.
template <class P>
DEVICE bool is_plain_zero(const Prime<P>& a) {
    uint32_t any = 0;
    UNROLL
    for (int i = 0; i < 8; i++) any |= a.v[i];
    return any == 0;
}

// acc = a[0], a[2], a[4], a[6], each times b.
DEVICE void products(uint32_t acc[8], const uint32_t* a, uint32_t b) {
    UNROLL
    for (int j = 0; j < 8; j += 2) {
        acc[j] = mul_lo(a[j], b);
        acc[j + 1] = mul_hi(a[j], b);
    }
}

// acc += a[0], a[2], a[4], a[6], each times b. The carry stays in the flag.
DEVICE void add_products(uint32_t acc[8], const uint32_t* a, uint32_t b) {
    acc[0] = mad_lo_cc(a[0], b, acc[0]);
    acc[1] = madc_hi_cc(a[0], b, acc[1]);
    UNROLL
    for (int j = 2; j < 8; j += 2) {
        acc[j] = madc_lo_cc(a[j], b, acc[j]);
        acc[j + 1] = madc_hi_cc(a[j], b, acc[j + 1]);
    }
}

// acc = acc / 2^64 + a[0], a[2], a[4], a[6], each times b, + the carry in the flag.
DEVICE void shift_add_products(uint32_t acc[8], const uint32_t* a, uint32_t b) {
    UNROLL
    for (int j = 0; j < 6; j += 2) {
        acc[j] = madc_lo_cc(a[j], b, acc[j + 2]);
        acc[j + 1] = madc_hi_cc(a[j], b, acc[j + 3]);
    }
    acc[6] = madc_lo_cc(a[6], b, 0);
    acc[7] = madc_hi(a[6], b, 0);
}

// The sum so far is even + 2^32·odd. Adds the multiple of p that makes its lowest word 0.
template <class P>
DEVICE void reduce_row(uint32_t even[8], uint32_t odd[8]) {
    uint32_t p[9];
    UNROLL
    for (int i = 0; i < 8; i++) p[i] = P::word(i);
    p[8] = 0;
    const uint32_t m = mul_lo(even[0], P::INVERSE);
    add_products(odd, p + 1, m);
    add_products(even, p, m);
    odd[7] = addc(odd[7], 0);
}

// Divides even + 2^32·odd, whose lowest word is 0, by 2^32 and adds a·b. The two change places: what was odd is even.
DEVICE void next_row(uint32_t even[8], uint32_t odd[8], const uint32_t* a, uint32_t b) {
    odd[0] = add_cc(odd[0], even[1]);
    shift_add_products(even, a + 1, b);
    add_products(odd, a, b);
    even[7] = addc(even[7], 0);
}

// even + 2^32·odd += a·b
DEVICE void add_row(uint32_t even[8], uint32_t odd[8], const uint32_t* a, uint32_t b) {
    add_products(odd, a + 1, b);
    add_products(even, a, b);
    odd[7] = addc(odd[7], 0);
}

// (even + 2^32·odd) / 2^32, the lowest word being 0.
DEVICE void join(uint32_t r[8], const uint32_t even[8], const uint32_t odd[8]) {
    r[0] = add_cc(odd[0], even[1]);
    UNROLL
    for (int i = 1; i < 7; i++) r[i] = addc_cc(odd[i], even[i + 1]);
    r[7] = addc(odd[7], 0);
}

template <class P>
DEVICE Prime<P> operator*(const Prime<P>& x, const Prime<P>& y) {
    uint32_t a[9], even[8], odd[8];
    UNROLL
    for (int i = 0; i < 8; i++) a[i] = x.v[i];
    a[8] = 0;
    products(odd, a + 1, y.v[0]);
    products(even, a, y.v[0]);
    reduce_row<P>(even, odd);
    next_row(even, odd, a, y.v[1]);
    reduce_row<P>(odd, even);
    UNROLL
    for (int i = 2; i < 8; i += 2) {
        next_row(odd, even, a, y.v[i]);
        reduce_row<P>(even, odd);
        next_row(even, odd, a, y.v[i + 1]);
        reduce_row<P>(odd, even);
    }
    Prime<P> r;
    join(r.v, odd, even);
    return r;
}

// x·y + z·w with one reduction.
template <class P>
DEVICE Prime<P> sum_of_products(const Prime<P>& x, const Prime<P>& y, const Prime<P>& z, const Prime<P>& w) {
    // After each row the sum is below x + z + p ≤ 5p < 2^256; at the end below (0.19·8 + 1)·p.
    uint32_t a[9], c[9], even[8], odd[8];
    UNROLL
    for (int i = 0; i < 8; i++) {
        a[i] = x.v[i];
        c[i] = z.v[i];
    }
    a[8] = c[8] = 0;
    products(odd, a + 1, y.v[0]);
    products(even, a, y.v[0]);
    add_row(even, odd, c, w.v[0]);
    reduce_row<P>(even, odd);
    next_row(even, odd, a, y.v[1]);
    add_row(odd, even, c, w.v[1]);
    reduce_row<P>(odd, even);
    UNROLL
    for (int i = 2; i < 8; i += 2) {
        next_row(odd, even, a, y.v[i]);
        add_row(even, odd, c, w.v[i]);
        reduce_row<P>(even, odd);
        next_row(even, odd, a, y.v[i + 1]);
        add_row(odd, even, c, w.v[i + 1]);
        reduce_row<P>(odd, even);
    }
    Prime<P> r;
    join(r.v, odd, even);
    return loosen(r);
}

// A product before its reduction: sixteen words, low ones first.
struct Wide {
    uint32_t v[16];
};

// acc[0…] += a[0], a[2], …, `count` of them, each times b, with the carry into the word after.
template <int COUNT>
DEVICE void add_chain(uint32_t* acc, const uint32_t* a, uint32_t b) {
    acc[0] = mad_lo_cc(a[0], b, acc[0]);
    acc[1] = madc_hi_cc(a[0], b, acc[1]);
    UNROLL
    for (int j = 1; j < COUNT; j++) {
        acc[2 * j] = madc_lo_cc(a[2 * j], b, acc[2 * j]);
        acc[2 * j + 1] = madc_hi_cc(a[2 * j], b, acc[2 * j + 1]);
    }
    acc[2 * COUNT] = addc(acc[2 * COUNT], 0);
}

// even + 2^32·odd
DEVICE Wide join_wide(const uint32_t even[17], const uint32_t odd[17]) {
    Wide t;
    t.v[0] = even[0];
    t.v[1] = add_cc(even[1], odd[0]);
    UNROLL
    for (int i = 2; i < 15; i++) t.v[i] = addc_cc(even[i], odd[i - 1]);
    t.v[15] = addc(even[15], odd[14]);
    return t;
}

// a² of eight words: each product of two different words once, twice their sum, and the squares.
DEVICE Wide wide_square(const uint32_t a[8]) {
    uint32_t even[17], odd[17];
    UNROLL
    for (int i = 0; i < 17; i++) even[i] = odd[i] = 0;
    add_chain<4>(odd + 0, a + 1, a[0]);
    add_chain<3>(even + 2, a + 2, a[0]);
    add_chain<3>(odd + 2, a + 2, a[1]);
    add_chain<3>(even + 4, a + 3, a[1]);
    add_chain<3>(odd + 4, a + 3, a[2]);
    add_chain<2>(even + 6, a + 4, a[2]);
    add_chain<2>(odd + 6, a + 4, a[3]);
    add_chain<2>(even + 8, a + 5, a[3]);
    add_chain<2>(odd + 8, a + 5, a[4]);
    add_chain<1>(even + 10, a + 6, a[4]);
    add_chain<1>(odd + 10, a + 6, a[5]);
    add_chain<1>(even + 12, a + 7, a[5]);
    add_chain<1>(odd + 12, a + 7, a[6]);
    Wide t = join_wide(even, odd);
    UNROLL
    for (int i = 15; i > 0; i--) t.v[i] = (t.v[i] << 1) | (t.v[i - 1] >> 31);
    // Word 0 has no product of two different words.
    t.v[0] = mad_lo_cc(a[0], a[0], 0);
    t.v[1] = madc_hi_cc(a[0], a[0], t.v[1]);
    UNROLL
    for (int i = 1; i < 7; i++) {
        t.v[2 * i] = madc_lo_cc(a[i], a[i], t.v[2 * i]);
        t.v[2 * i + 1] = madc_hi_cc(a[i], a[i], t.v[2 * i + 1]);
    }
    t.v[14] = madc_lo_cc(a[7], a[7], t.v[14]);
    t.v[15] = madc_hi(a[7], a[7], t.v[15]);
    return t;
}

// t/R mod p, below t/R + p.
template <class P>
DEVICE Prime<P> reduce(const Wide& t) {
    // The low half is reduced, to at most p, and the high half added.
    uint32_t p[9], even[8], odd[8];
    UNROLL
    for (int i = 0; i < 8; i++) {
        p[i] = P::word(i);
        even[i] = t.v[i];
    }
    p[8] = 0;
    uint32_t m = mul_lo(even[0], P::INVERSE);
    products(odd, p + 1, m);
    add_products(even, p, m);
    odd[7] = addc(odd[7], 0);
    UNROLL
    for (int i = 1; i < 8; i++) {
        // After each row the two change places. The carry of this sum goes into the shifted one.
        uint32_t* const low = i % 2 == 1 ? odd : even;
        uint32_t* const high = i % 2 == 1 ? even : odd;
        low[0] = add_cc(low[0], high[1]);
        m = mul_lo(low[0], P::INVERSE);
        shift_add_products(high, p + 1, m);
        add_products(low, p, m);
        high[7] = addc(high[7], 0);
    }
    Prime<P> r;
    join(r.v, odd, even);
    add_words(r.v, r.v, t.v + 8);
    return r;
}

template <class P>
DEVICE Prime<P> square(const Prime<P>& a) {
    return reduce<P>(wide_square(a.v));
}

template <class P>
DEVICE Prime<P> twice_of(const Prime<P>& a) {
    return a + a;
}

// x·y − z·w
template <class P>
DEVICE Prime<P> difference_of_products(const Prime<P>& x, const Prime<P>& y, const Prime<P>& z, const Prime<P>& w) {
    return sum_of_products(x, y, -z, w);
}

// An element c0 + c1·u, in memory; spread.cuh computes with it.
struct Fq2 {
    Fq c0, c1;
};
