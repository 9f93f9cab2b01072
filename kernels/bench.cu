// Kernels that are only timed: what the arithmetic costs where nothing else is in the way.
#pragma once

#include "msm.cu"

KERNEL(no_op, 32, 1)() {}
EXPORT(no_op)

// Each thread multiplies `count` times; io has an element a thread.
KERNEL(bench_fq_products, 512, 1)(Fq* io, uint32_t count) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const Fq a = io[i];
    Fq b = a;
    NO_UNROLL
    for (uint32_t k = 0; k < count; k++) b = b * a;
    io[i] = b;
}
EXPORT(bench_fq_products)

KERNEL(bench_fq_squares, 512, 1)(Fq* io, uint32_t count) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    Fq b = io[i];
    NO_UNROLL
    for (uint32_t k = 0; k < count; k++) b = square(b);
    io[i] = b;
}
EXPORT(bench_fq_squares)

// Two threads an element.
KERNEL(bench_fq2_products, 256, 1)(Fq* io, uint32_t count) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const Fq2Lane a = {io[i]};
    Fq2Lane b = a;
    NO_UNROLL
    for (uint32_t k = 0; k < count; k++) b = b * a;
    io[i] = b.own;
}
EXPORT(bench_fq2_products)

// Additions of an affine point, which is on no curve, as in `accumulate` but for the loads. io has a sum a worker.
template <class F>
DEVICE void additions(StoredSum<F>* io, uint32_t count) {
    const uint32_t i = worker_of_grid<F>();
    Xyzz<F> sum = load_sum<F>(io[i]);
    const F x = sum.x, y = sum.zz;
    NO_UNROLL
    for (uint32_t k = 0; k < count; k++) add_affine(sum, false, false, x, y);
    store_sum<F>(io[i], sum);
}
KERNEL(bench_g1_additions, 128, BLOCKS)(StoredSum<Fq>* io, uint32_t count) { additions<Fq>(io, count); }
EXPORT(bench_g1_additions)
KERNEL(bench_g2_additions, 128, 2)(StoredSum<Fq2Lane>* io, uint32_t count) { additions<Fq2Lane>(io, count); }
EXPORT(bench_g2_additions)
