// Kernels that check fibers.h itself: what a kernel may count on, and that what it may not do is found. They stand beside
// the others in the tests' build, so that Rust's tests can launch them, and in check.cc with the sanitizers.
#pragma once

#include "../platform.cuh"

// Which thread is which.
KERNEL(check_indices, 256, 1)(uint32_t* out) {
    uint32_t block = blockIdx.y * gridDim.x + blockIdx.x;
    out[block * blockDim.x + threadIdx.x] = block << 16 | threadIdx.x;
}
EXPORT(check_indices)

// Sums a block's values by halves.
KERNEL(check_barrier, 256, 1)(const uint32_t* in, uint32_t* out) {
    SHARED(uint32_t, values);
    values[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    for (uint32_t half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = values[0];
}
EXPORT(check_barrier)

// The same without the barrier that every round needs.
KERNEL(check_missing_barrier, 256, 1)(const uint32_t* in, uint32_t* out) {
    SHARED(uint32_t, values);
    values[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    for (uint32_t half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
    }
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = values[0];
}
EXPORT(check_missing_barrier)

// A value goes from each lane to the one above within a warp, without the __syncwarp that it needs.
KERNEL(check_missing_syncwarp, 32, 1)(uint32_t* out, uint32_t synchronise) {
    __shared__ uint32_t values[32];
    values[threadIdx.x] = threadIdx.x;
    if (synchronise) __syncwarp();
    out[threadIdx.x] = values[(threadIdx.x + 1) % 32] + values[(threadIdx.x + 31) % 32];
}
EXPORT(check_missing_syncwarp)

KERNEL(check_warp, 64, 1)(uint32_t* out, uint64_t* wide) {
    uint32_t t = threadIdx.x, lane = t % 32;
    uint32_t* to = out + 16 * t;
    to[0] = __shfl_sync(0xffffffff, t, 5);
    to[1] = __shfl_up_sync(0xffffffff, t, 3);
    to[2] = __shfl_down_sync(0xffffffff, t, 3);
    to[3] = __shfl_xor_sync(0xffffffff, t, 6);
    to[4] = __ballot_sync(0xffffffff, lane % 3 == 0);
    to[5] = static_cast<uint32_t>(__any_sync(0xffffffff, t == 40));
    to[6] = static_cast<uint32_t>(__all_sync(0xffffffff, t < 40));
    to[7] = __match_any_sync(0xffffffff, lane % 5);
    to[8] = __shfl_down_sync(0xffffffff, t, 1, 8);
    to[9] = __shfl_up_sync(0xffffffff, t, 1, 8);
    to[10] = __shfl_sync(0xffffffff, t, 3, 8);
    // Even and odd lanes apart, and each again and again before the other.
    uint32_t sum = 0, mask = lane % 2 ? 0xaaaaaaaa : 0x55555555;
    for (uint32_t i = 0; i <= lane % 2; i++) sum += __shfl_xor_sync(mask, t, 2);
    to[11] = sum;
    to[12] = __shfl_sync(0xffffffff, to[11], 0);
    wide[t] = __shfl_xor_sync(0xffffffff, uint64_t{t} << 40 | t, 1);
}
EXPORT(check_warp)

// Threads that have returned are not waited for.
KERNEL(check_returned, 64, 1)(uint32_t* out) {
    if (threadIdx.x % 32 >= 20) return;
    out[threadIdx.x] = __ballot_sync(0xffffffff, 1);
    if (threadIdx.x >= 10) return;
    __syncthreads();
    out[threadIdx.x] += static_cast<uint32_t>(__syncthreads_count(threadIdx.x < 7));
}
EXPORT(check_returned)

KERNEL(check_atomics, 128, 1)(uint32_t* out, unsigned long long* wide) {
    uint32_t t = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&out[0], t);
    atomicMax(&out[1], t);
    atomicMin(&out[2], t);
    atomicOr(&out[3], 1u << t % 32);
    atomicAdd(wide, 1ull << 33);
}
EXPORT(check_atomics)

KERNEL(check_words, 1, 1)(uint32_t* out) {
    out[0] = static_cast<uint32_t>(__popc(0xf0f0u));
    out[1] = static_cast<uint32_t>(__clz(1));
    out[2] = static_cast<uint32_t>(__clz(0));
    out[3] = static_cast<uint32_t>(__ffs(0x10));
    out[4] = __brev(0x80000001u << 1);
    out[5] = __umulhi(0xffffffff, 0xffffffff);
    out[6] = __funnelshift_r(0x11111111, 0x22222222, 4);
    out[7] = __funnelshift_l(0x11111111, 0x22222222, 4);
    out[8] = __ldg(&out[5]);
    uint4 four = make_uint4(1, 2, 3, 4);
    out[9] = four.x + four.y + four.z + four.w;
}
EXPORT(check_words)

// What shared memory holds at a block's begin.
KERNEL(check_poison, 32, 1)(uint32_t* out) {
    SHARED(uint32_t, dynamic);
    __shared__ uint32_t fixed[32];
    out[2 * (blockIdx.x * blockDim.x + threadIdx.x)] = dynamic[threadIdx.x];
    out[2 * (blockIdx.x * blockDim.x + threadIdx.x) + 1] = fixed[threadIdx.x];
    dynamic[threadIdx.x] = fixed[threadIdx.x] = 1;
}
EXPORT(check_poison)

KERNEL(check_divergent_barrier, 64, 1)(uint32_t* out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncwarp();
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}
EXPORT(check_divergent_barrier)

KERNEL(check_barrier_in_warp, 64, 1)(uint32_t* out) {
    if (threadIdx.x == 7) {
        __syncthreads();
    } else {
        out[threadIdx.x] = __ballot_sync(0xffffffff, 1);
    }
}
EXPORT(check_barrier_in_warp)

KERNEL(check_foreign_mask, 32, 1)(uint32_t* out) { out[threadIdx.x] = __ballot_sync(0x0000ffff, 1); }
EXPORT(check_foreign_mask)

KERNEL(check_overrun, 32, 1)(uint32_t at) {
    SHARED(unsigned char, bytes);
    if (threadIdx.x == 3) bytes[at] = 0;
}
EXPORT(check_overrun)

KERNEL(check_trap, 32, 1)(uint32_t at) {
    if (threadIdx.x == at) __trap();
    __syncthreads();
}
EXPORT(check_trap)

KERNEL(check_switches, 256, 1)(uint32_t* out, uint32_t rounds) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < rounds; i++) {
        __syncthreads();
        sum += i;
    }
    out[threadIdx.x] = sum;
}
EXPORT(check_switches)
