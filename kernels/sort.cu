// The digits of scalars, sorted by bucket: the first part of a multi-scalar multiplication (msm.cu).
//
// Only memory near a block's own is fast at writing single words, so entries go to their buckets in two steps, each of
// which puts them in order in shared memory first. Buckets whose numbers differ in their low bits only make a *bin*:
//
//   bins, starts   the entries of each bin counted, and from that where each bin begins
//   partition      the digits of a block of scalars, in order of their bins, written to these
//   count, offsets the entries of each bucket counted, and from that where each bucket begins
//   place          a *chunk* of a bin, in order of its buckets, written to these
//
// Where entries are to be summed in bundles of 2^rounds (bundle.cu), a bucket has a multiple of so many, the last ones of
// which are NONE, and `totals` finds how many the buckets of a bin have together.
//
// A bin is cut into chunks of about equal size, however large it is, so that equal digits are shared work. With few
// buckets each is a bin of its own, and the second step is left out.
//
// The order within a bucket is left to chance: sums do not depend on it.
#pragma once

#include "curve.cuh"

// An entry: the place of a multiple in the table, and whether it is subtracted.
static constexpr uint32_t NEGATED = 1u << 31;
// Threads of a block at most. Those that partition say which is theirs in so many bits.
static constexpr uint32_t SORT_BITS = 9;
static constexpr uint32_t SORT_THREADS = 1u << SORT_BITS;
// Threads of a block that counts entries of bins.
static constexpr uint32_t BIN_THREADS = 256;
// Threads of the one block that finds where bins begin.
static constexpr uint32_t START_THREADS = 1024;
// Threads of a block that finds where the buckets of a bin begin.
static constexpr uint32_t OFFSET_THREADS = 256;
// Entries of a chunk a thread, at most.
static constexpr uint32_t ITEMS = 8;
// Low bits of a bucket's number, at most.
static constexpr uint32_t LOW_BITS = 12;
// Words of shared memory that sums over a block take.
static constexpr uint32_t WARPS = 32;
// No bucket, no bin and no entry.
static constexpr uint32_t NONE = UINT32_MAX;

// The signed digits of a scalar below r, the lowest first.
struct Digits {
    uint32_t v[8];
    uint32_t carry;
    bool negative;

    DEVICE Digits of(const uint4* scalar) {
        Digits d;
        const uint4 low = scalar[0], high = scalar[1];
        const uint32_t s[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        uint32_t r[8], minus[8], borrow;
        UNROLL
        for (int i = 0; i < 8; i++) r[i] = FrModulus::word(i);
        // −s instead of s where that is the smaller: a short scalar has few digits on either side of 0.
        subtract(minus, r, s, borrow);
        uint32_t ignored[8];
        subtract(ignored, minus, s, borrow);
        d.negative = borrow != 0;
        UNROLL
        for (int i = 0; i < 8; i++) d.v[i] = d.negative ? minus[i] : s[i];
        d.carry = 0;
        return d;
    }

    // The magnitude of the next digit of c bits, and whether it is subtracted.
    __device__ __forceinline__ uint32_t next(uint32_t c, bool& subtracted) {
        uint32_t digit = (v[0] & ((1u << c) - 1)) + carry;
        UNROLL
        for (int i = 0; i < 7; i++) v[i] = (v[i] >> c) | (v[i + 1] << (32 - c));
        v[7] >>= c;
        const bool high = digit > (1u << (c - 1));
        carry = high ? 1 : 0;
        if (high) digit = (1u << c) - digit;
        subtracted = high != negative;
        return digit;
    }
};

// Scalar i of those that `index` names. scalars: plain, two uint4 each.
DEVICE Digits digits_of(const uint4* scalars, const uint32_t* index, uint32_t i) {
    return Digits::of(scalars + 2 * static_cast<uint64_t>(index[i]));
}

// The sum of `value` over the threads of the block before this one; `total` is that over all. `warps`: WARPS words.
DEVICE uint32_t sum_before(uint32_t value, uint32_t* warps, uint32_t& total) {
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    uint32_t sum = value;
    UNROLL
    for (uint32_t step = 1; step < 32; step *= 2) {
        const uint32_t before = __shfl_up_sync(UINT32_MAX, sum, step);
        if (lane >= step) sum += before;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    uint32_t before = 0;
    total = 0;
    for (uint32_t i = 0; i < blockDim.x / 32; i++) {
        if (i < warp) before += warps[i];
        total += warps[i];
    }
    __syncthreads();
    return before + sum - value;
}

// Adds each lane's item to the count of its key, and gives its rank. Those of the first lane's key count together, or
// equal digits would queue at one word. Keys may be NONE; all lanes of the warp come.
DEVICE uint32_t take(uint32_t* counts, uint32_t key) {
    const uint32_t lane = threadIdx.x & 31;
    const uint32_t some = __ballot_sync(UINT32_MAX, key != NONE);
    if (some == 0) return 0;
    const uint32_t leader = __ffs(some) - 1;
    const uint32_t same = __ballot_sync(UINT32_MAX, key == __shfl_sync(UINT32_MAX, key, leader));
    const bool follows = (same >> lane & 1) != 0;
    uint32_t rank = 0;
    if (lane == leader || (key != NONE && !follows)) rank = atomicAdd(counts + key, follows ? __popc(same) : 1);
    const uint32_t first = __shfl_sync(UINT32_MAX, rank, leader);
    return follows ? first + __popc(same & ((1u << lane) - 1)) : rank;
}

// counts[k] becomes the sum of those before it, and what the block has of key k is given a place in memory: moves[k] is
// what leads there from the place within the block. `next`: the next free place of each key. Gives the sum of all.
DEVICE uint32_t reserve(uint32_t* counts, uint32_t* moves, uint32_t keys, uint32_t* next, uint32_t* warps) {
    uint32_t before = 0;
    for (uint32_t first = 0; first < keys; first += blockDim.x) {
        const uint32_t key = first + threadIdx.x;
        const uint32_t count = key < keys ? counts[key] : 0;
        uint32_t total;
        const uint32_t start = before + sum_before(count, warps, total);
        if (key < keys) {
            counts[key] = start;
            moves[key] = count;
        }
        before += total;
    }
    // Each thread asks for what it has written itself, four at a time: an answer takes long.
    for (uint32_t first = threadIdx.x; first < keys; first += 4 * blockDim.x) {
        uint32_t place[4];
        UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t key = first + i * blockDim.x;
            const uint32_t count = key < keys ? moves[key] : 0;
            place[i] = count != 0 ? atomicAdd(next + key, count) : 0;
        }
        UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t key = first + i * blockDim.x;
            if (key < keys) moves[key] = place[i] - counts[key];
        }
    }
    __syncthreads();
    return before;
}

DEVICE void clear(uint32_t* words, uint32_t n) {
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) words[i] = 0;
    __syncthreads();
}

// Counts the entries of each bin. Shared: a word a bin.
KERNEL(msm_bins, BIN_THREADS, 4)(const uint4* scalars, const uint32_t* index, uint32_t n, uint32_t c,
                                 uint32_t windows, uint32_t groups, uint32_t low_bits, uint32_t bins,
                                 uint32_t* counts) {
    SHARED(uint32_t, mine);
    clear(mine, bins);
    for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        Digits digits = digits_of(scalars, index, static_cast<uint32_t>(i));
        uint32_t group = 0;
        NO_UNROLL
        for (uint32_t j = 0; j < windows; j++) {
            bool subtracted;
            const uint32_t digit = digits.next(c, subtracted);
            const uint32_t bucket = (group << (c - 1)) + digit - 1;
            if (digit != 0) atomicAdd(mine + (bucket >> low_bits), 1u);
            if (++group == groups) group = 0;
        }
    }
    __syncthreads();
    for (uint32_t bin = threadIdx.x; bin < bins; bin += blockDim.x) {
        if (mine[bin] != 0) atomicAdd(counts + bin, mine[bin]);
    }
}

// starts[b] = the entries of the bins before b, and chunks[b] = their chunks, for b up to `bins`; each count becomes
// the next free place of its bin, which is the first. A chunk has `most` entries at most. One block.
//
// Shared: WARPS words.
KERNEL(msm_starts, START_THREADS, 1)(uint32_t* counts, uint32_t bins, uint32_t most, uint32_t* starts,
                                     uint32_t* chunks) {
    SHARED(uint32_t, warps);
    uint32_t start = 0, chunk = 0;
    for (uint32_t first = 0; first < bins; first += blockDim.x) {
        const uint32_t bin = first + threadIdx.x;
        const uint32_t count = bin < bins ? counts[bin] : 0;
        uint32_t entries, pieces;
        const uint32_t starts_at = start + sum_before(count, warps, entries);
        const uint32_t chunks_at = chunk + sum_before(count / most + (count % most != 0), warps, pieces);
        if (bin < bins) {
            counts[bin] = starts_at;
            starts[bin] = starts_at;
            chunks[bin] = chunks_at;
        }
        start += entries;
        chunk += pieces;
    }
    if (threadIdx.x == 0) {
        starts[bins] = start;
        chunks[bins] = chunk;
    }
}

// Writes each entry into its bin, and beside it the low bits of its bucket. next: the next free place of each bin.
//
// Shared: WARPS words, two words a bin, then a word and a half for each digit of the block's scalars.
KERNEL(msm_partition, SORT_THREADS, 2)(const uint4* scalars, const uint32_t* index, uint32_t n, uint32_t c,
                                       uint32_t windows, uint32_t groups, uint32_t low_bits, uint32_t bins,
                                       uint32_t* next, uint32_t* entries, uint16_t* lows) {
    SHARED(uint32_t, warps);
    uint32_t* counts = warps + WARPS;
    uint32_t* moves = counts + bins;
    uint32_t* buckets = moves + bins;
    // Which thread's scalar, which multiple, whether it is subtracted.
    uint16_t* sources = reinterpret_cast<uint16_t*>(buckets + windows * blockDim.x);
    const uint32_t base = blockIdx.x * blockDim.x;
    const bool mine = base + threadIdx.x < n;
    const uint32_t i = mine ? base + threadIdx.x : 0;
    clear(counts, bins);

    Digits digits = digits_of(scalars, index, i);
    uint32_t group = 0;
    NO_UNROLL
    for (uint32_t j = 0; j < windows; j++) {
        bool subtracted;
        const uint32_t digit = digits.next(c, subtracted);
        const uint32_t bucket = (group << (c - 1)) + digit - 1;
        if (mine && digit != 0) atomicAdd(counts + (bucket >> low_bits), 1u);
        if (++group == groups) group = 0;
    }
    __syncthreads();
    const uint32_t count = reserve(counts, moves, bins, next, warps);

    // The digits once more: there are too many to keep them.
    digits = digits_of(scalars, index, i);
    group = 0;
    uint32_t source = threadIdx.x;
    NO_UNROLL
    for (uint32_t j = 0; j < windows; j++) {
        bool subtracted;
        const uint32_t digit = digits.next(c, subtracted);
        const uint32_t bucket = (group << (c - 1)) + digit - 1;
        const bool some = mine && digit != 0;
        const uint32_t at = take(counts, some ? bucket >> low_bits : NONE);
        if (some) {
            buckets[at] = bucket;
            sources[at] = static_cast<uint16_t>(source | (subtracted ? 1u << 15 : 0));
        }
        if (++group == groups) {
            group = 0;
            source += SORT_THREADS;
        }
    }
    __syncthreads();
    for (uint32_t at = threadIdx.x; at < count; at += blockDim.x) {
        const uint32_t bucket = buckets[at], from = sources[at];
        const uint32_t to = at + moves[bucket >> low_bits];
        const uint32_t multiple = (from & 0x7fff) >> SORT_BITS;
        const uint32_t place = multiple * n + base + (from & (SORT_THREADS - 1));
        entries[to] = place | (from >> 15 != 0 ? NEGATED : 0);
        if (low_bits != 0) lows[to] = static_cast<uint16_t>(bucket & ((1u << low_bits) - 1));
    }
}

// A part of a bin.
struct Chunk {
    uint32_t bin, first, size;

    // Chunk `number`, which is one of them; all threads of the block look for its bin.
    DEVICE Chunk of(const uint32_t* starts, const uint32_t* chunks, uint32_t bins, uint32_t number, uint32_t* found) {
        for (uint32_t bin = threadIdx.x; bin < bins; bin += blockDim.x) {
            if (chunks[bin] <= number && number < chunks[bin + 1]) *found = bin;
        }
        __syncthreads();
        Chunk chunk;
        chunk.bin = *found;
        __syncthreads();
        const uint32_t start = starts[chunk.bin], end = starts[chunk.bin + 1];
        const uint32_t parts = chunks[chunk.bin + 1] - chunks[chunk.bin];
        const uint32_t each = (end - start) / parts + ((end - start) % parts != 0);
        // The last of very many may be beyond the end.
        const uint64_t first = start + static_cast<uint64_t>(each) * (number - chunks[chunk.bin]);
        chunk.first = first < end ? static_cast<uint32_t>(first) : end;
        chunk.size = end - chunk.first < each ? end - chunk.first : each;
        return chunk;
    }
};

// Counts the entries of each bucket. A block a chunk. Shared: WARPS words and one for each bucket of a bin.
KERNEL(msm_count, SORT_THREADS, 2)(const uint16_t* lows, const uint32_t* starts, const uint32_t* chunks,
                                   uint32_t bins, uint32_t low_bits, uint32_t* counts) {
    SHARED(uint32_t, warps);
    uint32_t* mine = warps + WARPS;
    if (blockIdx.x >= chunks[bins]) return;
    clear(mine, 1u << low_bits);
    const Chunk chunk = Chunk::of(starts, chunks, bins, blockIdx.x, warps);
    uint32_t low[ITEMS];
    UNROLL
    for (uint32_t k = 0; k < ITEMS; k++) {
        const uint32_t at = k * blockDim.x + threadIdx.x;
        low[k] = at < chunk.size ? lows[chunk.first + at] : NONE;
    }
    UNROLL
    for (uint32_t k = 0; k < ITEMS; k++) {
        if (low[k] != NONE) atomicAdd(mine + low[k], 1u);
    }
    __syncthreads();
    uint32_t* to = counts + (chunk.bin << low_bits);
    for (uint32_t key = threadIdx.x; key < 1u << low_bits; key += blockDim.x) {
        if (mine[key] != 0) atomicAdd(to + key, mine[key]);
    }
}

// The entries that a bucket has room for, in bundles of 2^rounds.
DEVICE uint32_t whole_bundles(uint32_t count, uint32_t rounds) {
    return (count + ((1u << rounds) - 1)) >> rounds << rounds;
}

// totals[b] = the entries of bin b in whole bundles. A block a bin. Shared: WARPS words.
KERNEL(msm_totals, OFFSET_THREADS, 4)(const uint32_t* counts, uint32_t low_bits, uint32_t rounds, uint32_t* totals) {
    SHARED(uint32_t, warps);
    uint32_t mine = 0, total;
    for (uint32_t key = threadIdx.x; key < 1u << low_bits; key += blockDim.x) {
        mine += whole_bundles(counts[(blockIdx.x << low_bits) + key], rounds);
    }
    sum_before(mine, warps, total);
    if (threadIdx.x == 0) totals[blockIdx.x] = total;
}

// offsets[b] = the entries of the buckets before b, in whole bundles; each count becomes the next free place of its bucket,
// which is the first, and what will be free of a bucket's places becomes NONE. totals: the entries of each bin, in whole
// bundles. A block a bin. Shared: WARPS words.
KERNEL(msm_offsets, OFFSET_THREADS, 4)(const uint32_t* totals, uint32_t bins, uint32_t low_bits, uint32_t rounds,
                                       uint32_t* counts, uint32_t* offsets, uint32_t* entries) {
    SHARED(uint32_t, warps);
    const uint32_t bin = blockIdx.x, keys = 1u << low_bits;
    uint32_t mine = 0, before;
    for (uint32_t other = threadIdx.x; other < bin; other += blockDim.x) mine += totals[other];
    sum_before(mine, warps, before);
    for (uint32_t first = 0; first < keys; first += blockDim.x) {
        const uint32_t key = first + threadIdx.x, bucket = (bin << low_bits) + key;
        const uint32_t count = key < keys ? counts[bucket] : 0, room = whole_bundles(count, rounds);
        uint32_t total;
        const uint32_t offset = before + sum_before(room, warps, total);
        if (key < keys) {
            counts[bucket] = offset;
            offsets[bucket] = offset;
            for (uint32_t i = count; i < room; i++) entries[offset + i] = NONE;
        }
        before += total;
    }
    if (bin == bins - 1 && threadIdx.x == 0) offsets[bins << low_bits] = before;
}

// Writes each entry of the bins into its bucket. A block a chunk. next: the next free place of each bucket.
//
// Shared: WARPS words, two words for each bucket of a bin, then a word and a half for each of ITEMS entries a thread.
KERNEL(msm_place, SORT_THREADS, 2)(const uint32_t* in, const uint16_t* lows, const uint32_t* starts,
                                   const uint32_t* chunks, uint32_t bins, uint32_t low_bits, uint32_t* next,
                                   uint32_t* entries) {
    SHARED(uint32_t, warps);
    const uint32_t keys = 1u << low_bits;
    uint32_t* counts = warps + WARPS;
    uint32_t* moves = counts + keys;
    uint32_t* sorted = moves + keys;
    uint16_t* sorted_lows = reinterpret_cast<uint16_t*>(sorted + ITEMS * blockDim.x);
    if (blockIdx.x >= chunks[bins]) return;
    clear(counts, keys);
    const Chunk chunk = Chunk::of(starts, chunks, bins, blockIdx.x, warps);
    uint32_t entry[ITEMS], low[ITEMS];
    UNROLL
    for (uint32_t k = 0; k < ITEMS; k++) {
        const uint32_t at = k * blockDim.x + threadIdx.x;
        low[k] = at < chunk.size ? lows[chunk.first + at] : NONE;
        entry[k] = at < chunk.size ? in[chunk.first + at] : 0;
    }
    UNROLL
    for (uint32_t k = 0; k < ITEMS; k++) {
        const uint32_t rank = take(counts, low[k]);
        if (low[k] != NONE) low[k] |= rank << LOW_BITS;
    }
    __syncthreads();
    reserve(counts, moves, keys, next + (chunk.bin << low_bits), warps);
    UNROLL
    for (uint32_t k = 0; k < ITEMS; k++) {
        if (low[k] == NONE) continue;
        const uint32_t key = low[k] & ((1u << LOW_BITS) - 1);
        const uint32_t at = counts[key] + (low[k] >> LOW_BITS);
        sorted[at] = entry[k];
        sorted_lows[at] = static_cast<uint16_t>(key);
    }
    __syncthreads();
    for (uint32_t at = threadIdx.x; at < chunk.size; at += blockDim.x) {
        entries[at + moves[sorted_lows[at]]] = sorted[at];
    }
}

EXPORT(msm_bins)
EXPORT(msm_starts)
EXPORT(msm_partition)
EXPORT(msm_count)
EXPORT(msm_totals)
EXPORT(msm_offsets)
EXPORT(msm_place)
