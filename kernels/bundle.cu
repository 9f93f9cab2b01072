// Sums of *bundles* of 2^rounds sorted entries, which are of one bucket (sort.cu): affine additions, a round of them for
// each halving, before what is left is summed as in msm.cu.
//
// An affine addition takes five products and a square where one to a sum in XYZZ takes eight and two, but for an inverse;
// so many are computed together, of which one inverse serves all (Montgomery's trick: P. L. Montgomery, "Speeding the
// Pollard and elliptic curve methods of factorization", 1987). In a round, a worker multiplies the denominators of all its
// additions, noting the product before each; the block inverts the products of its workers together, by a tree; and the
// worker goes back through its additions.
//
// Points in between are loose; a y may be 2p as well, which is 0. Infinity is an x whose highest word is NONE, and stands for
// an entry that is NONE, too.
#pragma once

#include "curve.cuh"
#include "sort.cu"

// Threads of a block.
static constexpr uint32_t BUNDLE_THREADS = 256;

// An affine point in memory, over Fq or Fq2.
template <class F>
using StoredAffine = Affine<typename Spread<F>::Stored>;

// *Workers* sum points: a thread each over Fq, two neighbouring threads over Fq2.
template <class F>
DEVICE uint32_t worker() {
    return threadIdx.x / Spread<F>::LANES;
}
template <class F>
DEVICE uint32_t workers() {
    return blockDim.x / Spread<F>::LANES;
}
template <class F>
DEVICE uint32_t worker_of_grid() {
    return blockIdx.x * workers<F>() + worker<F>();
}

DEVICE bool is_nothing(const Fq& x) { return x.v[7] == NONE; }
DEVICE bool is_nothing(const Fq2Lane& x) { return is_nothing(x.own); }
DEVICE void set_nothing(Fq& x) {
    UNROLL
    for (int i = 0; i < 8; i++) x.v[i] = NONE;
}
DEVICE void set_nothing(Fq2Lane& x) { set_nothing(x.own); }

// The inverse of each worker's element, none of which is zero. A power of two of workers; `tree` has room for two elements
// of each: node i is the product of nodes 2i and 2i + 1, then its inverse.
template <class F>
DEVICE F inverse_in_block(const F& mine, typename Spread<F>::Stored* tree) {
    const uint32_t w = worker<F>(), all = workers<F>();
    // Whole warps come to a product.
    const uint32_t first = (threadIdx.x & ~31u) / Spread<F>::LANES;
    store(&tree[all + w], mine);
    __syncthreads();
    NO_UNROLL
    for (uint32_t nodes = all / 2; nodes > 0; nodes /= 2) {
        if (first < nodes) {
            const uint32_t node = nodes + (w < nodes ? w : 0);
            const F product = load<F>(tree[2 * node]) * load<F>(tree[2 * node + 1]);
            if (w < nodes) store(&tree[node], product);
        }
        __syncthreads();
    }
    if (first == 0) {
        const F root = inverse(load<F>(tree[1]));
        // The lanes that compute to no effect have read, too.
        __syncwarp();
        if (w == 0) store(&tree[1], root);
    }
    __syncthreads();
    NO_UNROLL
    for (uint32_t nodes = 1; nodes < all; nodes *= 2) {
        if (first < nodes) {
            const uint32_t node = nodes + (w < nodes ? w : 0);
            const F over = load<F>(tree[node]), left = load<F>(tree[2 * node]), right = load<F>(tree[2 * node + 1]);
            const F over_left = over * right, over_right = over * left;
            __syncwarp();
            if (w < nodes) {
                store(&tree[2 * node], over_left);
                store(&tree[2 * node + 1], over_right);
            }
        }
        __syncthreads();
    }
    return load<F>(tree[all + w]);
}

// One of the two summands of an addition.
template <class F>
struct Summand {
    const StoredAffine<F>* at;
    // Of an entry.
    bool subtracted, nothing;

    __device__ __forceinline__ F x() const {
        F x = load<F>(at->x);
        if (nothing) set_nothing(x);
        return x;
    }
    __device__ __forceinline__ F y() const {
        const F y = load<F>(at->y);
        return select(subtracted, -y, y);
    }
};

// An addition P + Q, as far as the two x tell.
template <class F>
struct Addition {
    Summand<F> p, q;
    F x_p, x_q;
    // What is inverted: the difference of the x, or 1 if either is infinity, or where the x are equal 2·y, or 1 if the sum
    // is infinity.
    F denominator;
    // Either is infinity; the x of both points are equal; they are opposite points.
    bool single, same, opposite;

    DEVICE Addition of(const Summand<F>& p, const Summand<F>& q, const F& x_p, const F& x_q) {
        Addition a;
        F one;
        set_one(one);
        a.p = p;
        a.q = q;
        a.x_p = x_p;
        a.x_q = x_q;
        a.single = is_nothing(x_p) || is_nothing(x_q);
        a.denominator = select(a.single, one, x_q - x_p);
        a.same = is_zero(a.denominator);
        a.opposite = false;
        if (__any_sync(UINT32_MAX, a.same)) {
            const F y = p.y();
            a.opposite = !is_zero(q.y() - y) && a.same;
            a.denominator = select(a.same, select(a.opposite, one, twice_of(y)), a.denominator);
        }
        return a;
    }

    // The sum, given 1/denominator.
    __device__ __forceinline__ void sum(const F& y_p, const F& y_q, const F& over, F& x, F& y) const {
        F rise = y_q - y_p;
        if (__any_sync(UINT32_MAX, same)) {
            const F square_of_x = square(x_p);
            rise = select(same, twice_of(square_of_x) + square_of_x, rise);
        }
        const F slope = rise * over;
        x = square(slope) - x_p - x_q;
        y = slope * (x_p - x) - y_p;
        const bool only_q = is_nothing(x_p);
        x = select(single, select(only_q, x_q, x_p), x);
        y = select(single, select(only_q, y_q, y_p), y);
        if (opposite) set_nothing(x);
    }
};

// The bundles of a worker in a pass over all workers' bundles, and the present round.
template <class F>
struct Bundles {
    const uint32_t* entries;
    const StoredAffine<F>* table;
    // Room for as many as each worker has additions in the first round: neighbouring workers' beside each other.
    StoredAffine<F>* points;
    // Of all bundles: how many, how many workers there are; of this worker: its number, its bundles, the first one's number.
    uint32_t all, grid, worker, each, first;
    uint32_t rounds, round;

    // Halvings after this round.
    __device__ __forceinline__ uint32_t left() const { return rounds - round; }
    __device__ __forceinline__ uint32_t additions() const { return each << left(); }

    // Addition k of a round is the one number k mod 2^left of bundle k / 2^left.
    __device__ __forceinline__ uint32_t bundle(uint32_t k) const { return first + (k >> left()) * grid; }

    // What tells where the summands are: the two entries, in the first round, or NONE.
    __device__ __forceinline__ uint2 pair(uint32_t k) const {
        uint2 pair = {NONE, NONE};
        if (round == 1 && k < additions() && bundle(k) < all) {
            const uint64_t at = (static_cast<uint64_t>(bundle(k)) << rounds) + 2 * (k & ((1u << left()) - 1));
            pair = *reinterpret_cast<const uint2*>(entries + at);
        }
        return pair;
    }

    // A bundle's points lie 2^(rounds − 1) places apart at first; sums are put in place of the first summand.
    __device__ __forceinline__ StoredAffine<F>* place(uint32_t k, uint32_t which) const {
        const uint32_t point = 2 * (k & ((1u << left()) - 1)) + which;
        const uint32_t slot = ((k >> left()) << (rounds - 1)) + (round == 1 ? point / 2 : point << (round - 2));
        return points + (static_cast<uint64_t>(slot) * grid + worker);
    }

    // Summand 0 or 1 of addition k. Beyond the last addition, nothing.
    __device__ __forceinline__ Summand<F> summand(uint32_t k, uint32_t which, uint32_t entry) const {
        if (round > 1 && k < additions()) return Summand<F>{place(k, which), false, false};
        const bool nothing = entry == NONE;
        return Summand<F>{table + (nothing ? 0 : entry & ~NEGATED), !nothing && (entry & NEGATED) != 0, nothing};
    }
};

// out[b] = the sum of entries b·2^rounds up to (b + 1)·2^rounds, for each bundle there is. A worker has at most so many
// additions in the first round, no fewer than a bundle has, and `points` and `products` have room for as many of each worker
// of the grid: the more, the less inverses cost. Shared: two elements a worker.
//
// What an addition reads is asked for while the one before is computed: entries lie anywhere in memory.
template <class F>
DEVICE void bundles(const uint32_t* entries, const uint32_t* offsets, uint32_t count, const StoredAffine<F>* table,
                    uint32_t rounds, uint32_t additions_at_most, StoredAffine<F>* points,
                    typename Spread<F>::Stored* products, StoredAffine<F>* out, typename Spread<F>::Stored* tree) {
    Bundles<F> b = {entries, table, points, offsets[count] >> rounds, gridDim.x * workers<F>(), worker_of_grid<F>(), 0, 0,
                    rounds, 1};
    const uint32_t most = b.grid * (2 * additions_at_most >> rounds);
    const uint32_t passes = b.all / most + (b.all % most != 0);
    if (passes == 0) return;
    const uint32_t bundles = b.all / b.grid + (b.all % b.grid != 0), each = bundles / passes + (bundles % passes != 0);
    products += b.worker;
    // Of the two blocks of a multiprocessor, one begins with half a pass: when one waits for its inverse, the other does not.
    const bool shifted = passes > 1 && each > 1 && blockIdx.x >= gridDim.x / 2;
    NO_UNROLL
    for (uint32_t done = 0; done < bundles; done += b.each) {
        b.each = shifted && done == 0 ? each / 2 : each;
        if (b.each > bundles - done) b.each = bundles - done;
        b.first = done * b.grid + b.worker;
        NO_UNROLL
        for (b.round = 1; b.round <= rounds; b.round++) {
            const uint32_t additions = b.additions();
            F product;
            set_one(product);
            {
                uint2 pair = b.pair(0), next_pair = b.pair(1);
                F x_p = b.summand(0, 0, pair.x).x(), x_q = b.summand(0, 1, pair.y).x();
                NO_UNROLL
                for (uint32_t k = 0; k < additions; k++) {
                    const uint2 after = b.pair(k + 2);
                    const F next_p = b.summand(k + 1, 0, next_pair.x).x(), next_q = b.summand(k + 1, 1, next_pair.y).x();
                    store(&products[static_cast<uint64_t>(k) * b.grid], product);
                    const Summand<F> p = b.summand(k, 0, pair.x), q = b.summand(k, 1, pair.y);
                    product = product * Addition<F>::of(p, q, x_p, x_q).denominator;
                    pair = next_pair;
                    next_pair = after;
                    x_p = next_p;
                    x_q = next_q;
                }
            }
            F over = inverse_in_block(product, tree);
            uint2 pair = b.pair(additions - 1), next_pair = b.pair(additions - 2);
            F x_p = b.summand(additions - 1, 0, pair.x).x(), x_q = b.summand(additions - 1, 1, pair.y).x();
            NO_UNROLL
            for (uint32_t k = additions; k-- > 0;) {
                const Summand<F> p = b.summand(k, 0, pair.x), q = b.summand(k, 1, pair.y);
                const F y_p = p.y(), y_q = q.y();
                const F before = load<F>(products[static_cast<uint64_t>(k) * b.grid]);
                // k − 1 and k − 2 may be beyond the last addition: below 0.
                const uint2 after = b.pair(k - 2);
                const Summand<F> p_next = b.summand(k - 1, 0, next_pair.x), q_next = b.summand(k - 1, 1, next_pair.y);
                const F next_p = p_next.x(), next_q = q_next.x();
                prefetch(&p_next.at->y);
                prefetch(&q_next.at->y);
                const Addition<F> a = Addition<F>::of(p, q, x_p, x_q);
                const F over_this = over * before;
                over = over * a.denominator;
                F x, y;
                a.sum(y_p, y_q, over_this, x, y);
                const uint32_t bundle = b.bundle(k);
                StoredAffine<F>* to = b.left() == 0 ? out + bundle : b.place(k, 0);
                if (b.left() > 0 || bundle < b.all) {
                    store(&to->x, x);
                    store(&to->y, y);
                }
                pair = next_pair;
                next_pair = after;
                x_p = next_p;
                x_q = next_q;
            }
        }
    }
}

#define IN_GROUP(g, F)                                                                                                \
    KERNEL(msm_bundles_##g, BUNDLE_THREADS, 2)(const uint32_t* entries, const uint32_t* offsets, uint32_t count,      \
                                               const StoredAffine<F>* table, uint32_t rounds, uint32_t additions,     \
                                               StoredAffine<F>* points, Spread<F>::Stored* products,                  \
                                               StoredAffine<F>* out) {                                                \
        SHARED(Spread<F>::Stored, tree);                                                                              \
        bundles<F>(entries, offsets, count, table, rounds, additions, points, products, out, tree);                   \
    }                                                                                                                 \
    EXPORT(msm_bundles_##g)

IN_GROUP(g1, Fq)
IN_GROUP(g2, Fq2Lane)

#undef IN_GROUP
