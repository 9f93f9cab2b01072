// What the kernels need of the machine they run on: a GPU by nvcc, or a processor by kernels/host.
//
// A kernel is written
//
//     KERNEL(name, threads, blocks)(uint32_t* out, uint32_t n) { … }
//     EXPORT(name)
//
// where `threads` bounds the threads of a block and `blocks` is how many blocks of that size a multiprocessor should
// hold at once. Arguments are pointers to global memory and uint32_t, nothing else.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)

#define DEVICE static __device__ __forceinline__
// For large functions called from many places: code size and compile time matter more than the call.
#define DEVICE_CALL static __device__ __noinline__
#define KERNEL(name, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name
#define EXPORT(name)
// The block's dynamic shared memory, as an array of T.
#define SHARED(T, name) \
    extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    T* name = reinterpret_cast<T*>(shared_bytes)
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#define CONSTANT static __device__ __constant__ const
// Asks for what is there, to be nearer when it is read.
DEVICE void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

#else

#include "host/fibers.h"

#endif
