// Points of BN254's curves y² = x³ + b over F, which is Fq (G1) or Fq2 (G2), as threads hold them (spread.cuh).
//
// Formulas: https://hyperelliptic.org/EFD/g1p/auto-shortw-xyzz.html (madd-2008-s, add-2008-s, dbl-2008-s-1; 8M+2S, 12M+2S,
// 6M+4S with a = 0). Both curves have a = 0 and no point of order two.
//
// All threads of a warp come to an addition together, those that have nothing to add with infinity: elements may be spread
// over lanes, and a warp takes as long in any case.
#pragma once

#include "spread.cuh"

// (x, y), or (0, 0) for infinity, as in snarkjs' files.
template <class F>
struct Affine {
    F x, y;
};

// (x/zz, y/zzz) with zz³ = zzz²; infinity has a zz of plain zeros, and any x, y.
template <class F>
struct Xyzz {
    F x, y, zz, zzz;
};

template <class F>
DEVICE bool is_infinity(const Xyzz<F>& p) {
    return is_plain_zero(p.zz);
}

template <class F>
DEVICE void set_infinity(Xyzz<F>& p) {
    set_zero(p.x);
    set_zero(p.y);
    set_zero(p.zz);
    set_zero(p.zzz);
}

// The affine point, which is not infinity.
template <class F>
DEVICE void set_affine(Xyzz<F>& r, const F& x, const F& y) {
    r.x = x;
    r.y = y;
    set_one(r.zz);
    set_one(r.zzz);
}

// 2·p, p not infinity.
template <class F>
DEVICE_CALL void double_point(Xyzz<F>& p) {
    const F u = twice_of(p.y);
    const F v = square(u);
    const F w = u * v;
    const F s = p.x * v;
    const F xx = square(p.x);
    const F m = twice_of(xx) + xx;
    p.x = square(m) - twice_of(s);
    p.y = difference_of_products(m, s - p.x, w, p.y);
    p.zz = p.zz * v;
    p.zzz = p.zzz * w;
}

// a, or else b.
template <class F>
DEVICE Xyzz<F> select(bool first, const Xyzz<F>& a, const Xyzz<F>& b) {
    return Xyzz<F>{select(first, a.x, b.x), select(first, a.y, b.y), select(first, a.zz, b.zz),
                   select(first, a.zzz, b.zzz)};
}

// For lanes where `same`: replaces `sum`, which is of no use, by the sum of p and a point of the same x, which is p itself
// where `r`, a multiple of the difference of their y's, is zero, and −p elsewhere. Hardly ever happens.
template <class F>
DEVICE void add_same_x(Xyzz<F>& sum, bool same, const Xyzz<F>& p, const F& r) {
    const bool twice = is_zero(r);
    Xyzz<F> doubled = p, infinity;
    double_point(doubled);
    set_infinity(infinity);
    sum = select(same, select(twice, doubled, infinity), sum);
}

// p += o, either of which may be infinity. Out of line: a dozen products in a dozen kernels take the compiler minutes.
template <class F>
DEVICE_CALL void add_point(Xyzz<F>& p, const Xyzz<F>& o) {
    const bool nothing = is_infinity(o), alone = is_infinity(p);
    if (!__any_sync(UINT32_MAX, !nothing && !alone)) {
        p = select(nothing, p, o);
        return;
    }
    const F u = p.x * o.zz;
    const F s = p.y * o.zzz;
    const F h = o.x * p.zz - u;
    const F r = o.y * p.zzz - s;
    const bool same = is_zero(h) && !nothing && !alone;
    const F hh = square(h);
    const F hhh = h * hh;
    const F q = u * hh;
    Xyzz<F> sum;
    sum.zz = p.zz * o.zz * hh;
    sum.zzz = p.zzz * o.zzz * hhh;
    sum.x = square(r) - hhh - twice_of(q);
    sum.y = difference_of_products(r, q - sum.x, s, hhh);
    if (__any_sync(UINT32_MAX, same)) add_same_x(sum, same, p, r);
    p = select(nothing, p, select(alone, o, sum));
}

// p += (x, y), neither being infinity, or nothing where `nothing` says so; what becomes of p in a lane that is `idle` does
// not matter. Tells whether the sum is infinity.
template <class F>
DEVICE bool add_affine(Xyzz<F>& p, bool idle, bool nothing, const F& x, const F& y) {
    const F h = x * p.zz - p.x;
    if (__any_sync(UINT32_MAX, (is_zero(h) || nothing) && !idle)) {
        Xyzz<F> sum = p, point;
        set_affine(point, x, y);
        if (nothing) set_infinity(point);
        add_point(sum, point);
        p = sum;
        return is_infinity(p) && !idle;
    }
    const F r = y * p.zzz - p.y;
    const F hh = square(h);
    const F hhh = h * hh;
    const F q = p.x * hh;
    p.zz = p.zz * hh;
    p.zzz = p.zzz * hhh;
    p.x = square(r) - hhh - twice_of(q);
    p.y = difference_of_products(r, q - p.x, p.y, hhh);
    return false;
}
