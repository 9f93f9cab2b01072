// Multi-scalar multiplication, Σ sᵢ·Pᵢ, in G1 and G2.
//
// Pippenger's method with signed digits: s = Σ dⱼ·2^(c·j), |dⱼ| ≤ 2^(c−1). A base has multiples 2^(c·g·k)·P computed
// when its key is loaded, for k = 0, 1, … while memory lasts; digit j = k·g + q is then a digit of multiple k in *group*
// q. With all multiples there is one group (g = 1): the digits of all windows share its buckets.
//
//   sort.cu                the digits that are not 0, sorted by bucket
//   bundle.cu              where buckets have many entries: sums of 2^rounds neighbours each, which then are the entries
//   accumulate             the sorted entries cut into equal parts, a thread a part; a bucket that lies in one part is
//                          summed there, and what parts share is left as *partial sums*: however the digits are spread,
//                          all threads have the same work
//   join, join_pieces, join_spans   the partial sums of a bucket put together
//   lines, bits            Σ b·B_b of a group: buckets as a matrix, the sums of its rows and columns; then, for each bit
//                          of a digit, the sum of the lines whose number has it
//
// What is left, c points a group, is put together by the host.
#pragma once

#include "bundle.cu"

// Partial sums of one bucket that one thread puts together; more make a *span*.
static constexpr uint32_t FEW = 16;
// Partial sums of a span that one block puts together.
static constexpr uint32_t PIECE = 256;
// Threads of a block that sums points: as many, or half as many over Fq2, points at a time.
static constexpr uint32_t SUM_THREADS = 128;
// Blocks of 128 threads that a multiprocessor holds at least: bound to more, kernels spill registers and are no faster.
// The host launches as many blocks as registers turn out to leave room for, which are more in G1.
static constexpr uint32_t BLOCKS = 3;

// Where the entries of each bucket begin, or its bundles of 2^rounds entries.
struct Offsets {
    const uint32_t* of_entries;
    uint32_t rounds;

    __device__ __forceinline__ uint32_t operator[](uint32_t bucket) const { return of_entries[bucket] >> rounds; }
};

// How the entries are cut into parts.
struct Parts {
    uint32_t entries, each;

    // `threads` parts, but none, save the last, of fewer than `least` entries or bundles.
    DEVICE Parts of(const Offsets& offsets, uint32_t buckets, uint32_t threads, uint32_t least) {
        Parts p;
        p.entries = offsets[buckets];
        const uint32_t each = p.entries / threads + (p.entries % threads != 0);
        p.each = each < least ? least : each;
        return p;
    }
};

// The bucket of entry `at`: the last whose offset is not above it.
DEVICE uint32_t bucket_of(const Offsets& offsets, uint32_t buckets, uint32_t at) {
    uint32_t low = 0, high = buckets;
    NO_UNROLL
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (offsets[middle] <= at) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// A sum in memory, over Fq or Fq2.
template <class F>
using StoredSum = Xyzz<typename Spread<F>::Stored>;

template <class F>
DEVICE Xyzz<F> load_sum(const StoredSum<F>& at) {
    return Xyzz<F>{load<F>(at.x), load<F>(at.y), load<F>(at.zz), load<F>(at.zzz)};
}

// The sum there if `any`, else infinity.
template <class F>
DEVICE Xyzz<F> load_sum_if(bool any, const StoredSum<F>* sums, uint64_t at) {
    Xyzz<F> sum;
    set_infinity(sum);
    if (any) sum = load_sum<F>(sums[at]);
    return sum;
}

template <class F>
DEVICE void store_sum(StoredSum<F>& at, const Xyzz<F>& sum) {
    store(&at.x, sum.x);
    store(&at.y, sum.y);
    store(&at.zz, sum.zz);
    store(&at.zzz, sum.zzz);
}

// Worker t sums part t. Of a bucket that began before the part, the sum goes to partial 2t; of one that begins in it and
// goes on after it, to 2t + 1; of any other, to the bucket. Buckets without entries are not written.
//
// Entries select points of the table; where they are BUNDLED, the points are there in their place, and some are infinity.
template <class F, bool BUNDLED>
DEVICE void accumulate(const uint32_t* entries, const Offsets& offsets, uint32_t count, const StoredAffine<F>* points,
                       uint32_t least, StoredSum<F>* buckets, StoredSum<F>* partials) {
    const uint32_t t = worker_of_grid<F>();
    const Parts parts = Parts::of(offsets, count, gridDim.x * workers<F>(), least);
    const uint64_t first = static_cast<uint64_t>(t) * parts.each;
    const bool any = first < parts.entries;
    if (!__any_sync(UINT32_MAX, any)) return;
    uint32_t at = any ? static_cast<uint32_t>(first) : 0;
    const uint32_t end = !any ? 0 : parts.entries - at < parts.each ? parts.entries : at + parts.each;
    uint32_t bucket = any ? bucket_of(offsets, count, at) : 0;
    uint32_t bucket_end = offsets[bucket + 1];
    bool begun_before = any && offsets[bucket] < at;
    Xyzz<F> sum;
    set_infinity(sum);
    bool empty = true;
    uint32_t entry = BUNDLED ? at : entries[at];
    NO_UNROLL
    for (uint32_t step = 0; step < parts.each; step++) {
        const StoredAffine<F>& p = points[BUNDLED ? entry : entry & ~NEGATED];
        const bool subtracted = !BUNDLED && (entry & NEGATED) != 0;
        // Past its end a worker adds its last entry over and over, to no effect.
        const bool done = at >= end;
        if (at + 1 < end) entry = BUNDLED ? at + 1 : entries[at + 1];
        bool cancelled, nothing;
        {
            const F x = load<F>(p.x), y = load<F>(p.y);
            nothing = BUNDLED && is_nothing(x);
            cancelled = add_affine(sum, empty || done, nothing, x, select(subtracted, -y, y));
        }
        if (empty && !nothing) {
            // Loaded once more, for registers are scarcer than loads.
            const F y = load<F>(p.y);
            set_affine(sum, load<F>(p.x), select(subtracted, -y, y));
        }
        empty = cancelled || (empty && nothing);
        if (done) continue;
        at++;
        if (at == end || at == bucket_end) {
            if (empty) set_infinity(sum);
            if (begun_before) {
                store_sum<F>(partials[2 * t], sum);
            } else if (bucket_end > at) {
                store_sum<F>(partials[2 * t + 1], sum);
            } else {
                store_sum<F>(buckets[bucket], sum);
            }
            begun_before = false;
            empty = true;
            while (at < end && bucket_end == at) {
                bucket++;
                bucket_end = offsets[bucket + 1];
            }
        }
    }
}

// A bucket whose partial sums are those of many parts: 2·first + 1, then 2·t up to part `last`.
struct Span {
    uint32_t bucket, first, last;
};

// The place of partial sum i of the span.
DEVICE uint32_t partial_of(const Span& span, uint32_t i) {
    return i == 0 ? 2 * span.first + 1 : 2 * (span.first + i);
}

// Worker t puts the bucket together that begins in part t and ends in another; a span it notes.
template <class F>
DEVICE void join(const Offsets& offsets, uint32_t count, uint32_t part_count, uint32_t least, StoredSum<F>* buckets,
                 const StoredSum<F>* partials, uint32_t* span_count, Span* spans) {
    const uint32_t t = worker_of_grid<F>();
    const Parts parts = Parts::of(offsets, count, part_count, least);
    const uint64_t first = static_cast<uint64_t>(t) * parts.each;
    const uint64_t end = first + parts.each;
    Span span = {0, t, t};
    if (t < part_count && end < parts.entries) {
        const uint32_t bucket = bucket_of(offsets, count, static_cast<uint32_t>(end) - 1);
        const uint32_t bucket_end = offsets[bucket + 1];
        if (offsets[bucket] >= first && bucket_end > end) span = Span{bucket, t, (bucket_end - 1) / parts.each};
    }
    uint32_t more = span.last - span.first;
    if (more >= FEW) {
        if (threadIdx.x % Spread<F>::LANES == 0) spans[atomicAdd(span_count, 1u)] = span;
        more = 0;
    }
    Xyzz<F> sum = load_sum_if<F>(more > 0, partials, partial_of(span, 0));
    NO_UNROLL
    for (uint32_t i = 1; __any_sync(UINT32_MAX, i <= more); i++) {
        const Xyzz<F> next = load_sum_if<F>(i <= more, partials, partial_of(span, i));
        add_point(sum, next);
    }
    if (more > 0) store_sum<F>(buckets[span.bucket], sum);
}

// The sum over the block, in worker 0; `shared` has room for a sum a worker, a power of two of them.
template <class F>
DEVICE void sum_block(Xyzz<F>& sum, StoredSum<F>* shared) {
    const uint32_t w = worker<F>();
    store_sum<F>(shared[w], sum);
    __syncthreads();
    NO_UNROLL
    for (uint32_t half = workers<F>() / 2; half > 0; half /= 2) {
        // Whole warps.
        if ((threadIdx.x & ~31u) / Spread<F>::LANES < half) {
            const Xyzz<F> next = load_sum_if<F>(w < half, shared, w + half);
            add_point(sum, next);
            if (w < half) store_sum<F>(shared[w], sum);
        }
        __syncthreads();
    }
}

// Puts each piece of the spans together, in the place of its first partial sum.
template <class F>
DEVICE void join_pieces(const uint32_t* span_count, const Span* spans, StoredSum<F>* partials, StoredSum<F>* shared) {
    const uint32_t count = *span_count;
    NO_UNROLL
    for (uint32_t s = 0; s < count; s++) {
        const Span span = spans[s];
        const uint32_t length = span.last - span.first + 1;
        // Pieces go round the blocks, each span's from another block on.
        NO_UNROLL
        for (uint32_t piece = (blockIdx.x + gridDim.x - s % gridDim.x) % gridDim.x; piece * PIECE < length;
             piece += gridDim.x) {
            const uint32_t end = (piece + 1) * PIECE < length ? (piece + 1) * PIECE : length;
            Xyzz<F> sum;
            set_infinity(sum);
            NO_UNROLL
            for (uint32_t from = piece * PIECE; from < end; from += workers<F>()) {
                const uint32_t i = from + worker<F>();
                const Xyzz<F> next = load_sum_if<F>(i < end, partials, partial_of(span, i));
                add_point(sum, next);
            }
            sum_block(sum, shared);
            if (worker<F>() == 0) store_sum<F>(partials[partial_of(span, piece * PIECE)], sum);
            __syncthreads();
        }
    }
}

// Puts the pieces of each span together.
template <class F>
DEVICE void join_spans(const uint32_t* span_count, const Span* spans, const StoredSum<F>* partials,
                       StoredSum<F>* buckets, StoredSum<F>* shared) {
    const uint32_t count = *span_count;
    NO_UNROLL
    for (uint32_t s = blockIdx.x; s < count; s += gridDim.x) {
        const Span span = spans[s];
        const uint32_t length = span.last - span.first + 1;
        Xyzz<F> sum;
        set_infinity(sum);
        NO_UNROLL
        for (uint32_t from = 0; from < length; from += workers<F>() * PIECE) {
            const uint32_t i = from + worker<F>() * PIECE;
            const Xyzz<F> next = load_sum_if<F>(i < length, partials, partial_of(span, i));
            add_point(sum, next);
        }
        sum_block(sum, shared);
        if (worker<F>() == 0) store_sum<F>(buckets[span.bucket], sum);
        __syncthreads();
    }
}

// The buckets of a group are a matrix of 2^column_bits columns. Block x sums row x, or column x − rows; block y is the
// group. sums: rows, then columns, for each group.
template <class F>
DEVICE void lines(const StoredSum<F>* buckets, uint32_t row_bits, uint32_t column_bits, StoredSum<F>* sums,
                  StoredSum<F>* shared) {
    const uint32_t rows = 1u << row_bits, columns = 1u << column_bits;
    const StoredSum<F>* mine = buckets + (static_cast<uint64_t>(blockIdx.y) << (row_bits + column_bits));
    const bool row = blockIdx.x < rows;
    const uint32_t line = row ? blockIdx.x : blockIdx.x - rows;
    const uint32_t length = row ? columns : rows;
    Xyzz<F> sum;
    set_infinity(sum);
    NO_UNROLL
    for (uint32_t from = 0; from < length; from += workers<F>()) {
        const uint32_t i = from + worker<F>();
        const uint32_t bucket = row ? (line << column_bits) + i : (i << column_bits) + line;
        const Xyzz<F> next = load_sum_if<F>(i < length, mine, bucket);
        add_point(sum, next);
    }
    sum_block(sum, shared);
    if (worker<F>() == 0) store_sum<F>(sums[static_cast<uint64_t>(blockIdx.y) * gridDim.x + blockIdx.x], sum);
}

// Block x sums the lines whose number has bit x: columns first, then rows; the last block sums all rows. Then
// Σ (b + 1)·B_b of group y is Σ_x 2^x·out[y][x] over the bits + out[y][last].
template <class F>
DEVICE void bits(const StoredSum<F>* sums, uint32_t row_bits, uint32_t column_bits, StoredSum<F>* out,
                 StoredSum<F>* shared) {
    const uint32_t rows = 1u << row_bits, columns = 1u << column_bits;
    const StoredSum<F>* mine = sums + static_cast<uint64_t>(blockIdx.y) * (rows + columns);
    const bool column = blockIdx.x < column_bits;
    const bool all = blockIdx.x == row_bits + column_bits;
    const uint32_t bit = column ? blockIdx.x : blockIdx.x - column_bits;
    const uint32_t length = all ? rows : (column ? columns : rows) / 2;
    Xyzz<F> sum;
    set_infinity(sum);
    NO_UNROLL
    for (uint32_t from = 0; from < length; from += workers<F>()) {
        const uint32_t i = from + worker<F>();
        // The i-th number that has the bit.
        const uint32_t number = all ? i : ((i >> bit) << (bit + 1)) | (1u << bit) | (i & ((1u << bit) - 1));
        const Xyzz<F> next = load_sum_if<F>(i < length, mine, column ? rows + number : number);
        add_point(sum, next);
    }
    sum_block(sum, shared);
    if (worker<F>() == 0) store_sum<F>(out[static_cast<uint64_t>(blockIdx.y) * gridDim.x + blockIdx.x], sum);
}

// table[k·n + i] = 2^(doublings·k)·points[index[i] − first], for k below `multiples`. No point is infinity.
template <class F>
DEVICE void multiples_of(const StoredAffine<F>* points, const uint32_t* index, uint32_t first, uint32_t n,
                         uint32_t doublings, uint32_t multiples, StoredAffine<F>* table) {
    const uint32_t i = worker_of_grid<F>();
    const bool any = i < n;
    const StoredAffine<F>& p = points[index[any ? i : 0] - first];
    F x = load<F>(p.x), y = load<F>(p.y);
    if (any) {
        store(&table[i].x, x);
        store(&table[i].y, y);
    }
    NO_UNROLL
    for (uint32_t k = 1; k < multiples; k++) {
        Xyzz<F> sum;
        set_affine(sum, x, y);
        NO_UNROLL
        for (uint32_t d = 0; d < doublings; d++) double_point(sum);
        // 1/zz = (zz/zzz)²
        const F over = inverse(sum.zzz);
        const F root = sum.zz * over;
        x = canonical(sum.x * square(root));
        y = canonical(sum.y * over);
        if (any) {
            StoredAffine<F>& out = table[static_cast<uint64_t>(k) * n + i];
            store(&out.x, x);
            store(&out.y, y);
        }
    }
}

#define IN_GROUP(g, F)                                                                                        \
    KERNEL(msm_accumulate_##g, 128, BLOCKS)(const uint32_t* entries, const uint32_t* offsets, uint32_t count,         \
                                            const StoredAffine<F>* table, uint32_t least, StoredSum<F>* buckets,      \
                                            StoredSum<F>* partials) {                                                 \
        accumulate<F, false>(entries, Offsets{offsets, 0}, count, table, least, buckets, partials);                   \
    }                                                                                                                 \
    KERNEL(msm_accumulate_bundles_##g, 128, BLOCKS)(const StoredAffine<F>* points, const uint32_t* offsets,           \
                                                    uint32_t rounds, uint32_t count, uint32_t least,                  \
                                                    StoredSum<F>* buckets, StoredSum<F>* partials) {                  \
        accumulate<F, true>(nullptr, Offsets{offsets, rounds}, count, points, least, buckets, partials);              \
    }                                                                                                                 \
    KERNEL(msm_join_##g, 128, BLOCKS)(const uint32_t* offsets, uint32_t rounds, uint32_t count, uint32_t part_count,  \
                                      uint32_t least, StoredSum<F>* buckets, const StoredSum<F>* partials,            \
                                      uint32_t* span_count, Span* spans) {                                            \
        join<F>(Offsets{offsets, rounds}, count, part_count, least, buckets, partials, span_count, spans);            \
    }                                                                                                                 \
    KERNEL(msm_join_pieces_##g, SUM_THREADS, BLOCKS)(const uint32_t* span_count, const Span* spans,                   \
                                                     StoredSum<F>* partials) {                                        \
        SHARED(StoredSum<F>, shared);                                                                                 \
        join_pieces<F>(span_count, spans, partials, shared);                                                          \
    }                                                                                                                 \
    KERNEL(msm_join_spans_##g, SUM_THREADS, BLOCKS)(const uint32_t* span_count, const Span* spans,                    \
                                                    const StoredSum<F>* partials, StoredSum<F>* buckets) {            \
        SHARED(StoredSum<F>, shared);                                                                                 \
        join_spans<F>(span_count, spans, partials, buckets, shared);                                                  \
    }                                                                                                                 \
    KERNEL(msm_lines_##g, SUM_THREADS, BLOCKS)(const StoredSum<F>* buckets, uint32_t row_bits, uint32_t column_bits,  \
                                               StoredSum<F>* sums) {                                                  \
        SHARED(StoredSum<F>, shared);                                                                                 \
        lines<F>(buckets, row_bits, column_bits, sums, shared);                                                       \
    }                                                                                                                 \
    KERNEL(msm_bits_##g, SUM_THREADS, BLOCKS)(const StoredSum<F>* sums, uint32_t row_bits, uint32_t column_bits,      \
                                              StoredSum<F>* out) {                                                    \
        SHARED(StoredSum<F>, shared);                                                                                 \
        bits<F>(sums, row_bits, column_bits, out, shared);                                                            \
    }                                                                                                                 \
    KERNEL(msm_table_##g, 128, BLOCKS)(const StoredAffine<F>* points, const uint32_t* index, uint32_t first,          \
                                       uint32_t n, uint32_t doublings, uint32_t multiples, StoredAffine<F>* table) {  \
        multiples_of<F>(points, index, first, n, doublings, multiples, table);                                        \
    }                                                                                                                 \
    EXPORT(msm_accumulate_##g)                                                                                        \
    EXPORT(msm_accumulate_bundles_##g)                                                                                \
    EXPORT(msm_join_##g)                                                                                              \
    EXPORT(msm_join_pieces_##g)                                                                                       \
    EXPORT(msm_join_spans_##g)                                                                                        \
    EXPORT(msm_lines_##g)                                                                                             \
    EXPORT(msm_bits_##g)                                                                                              \
    EXPORT(msm_table_##g)

IN_GROUP(g1, Fq)
IN_GROUP(g2, Fq2Lane)

#undef IN_GROUP
