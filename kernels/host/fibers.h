// What CUDA gives a kernel, on a processor: the sources of kernels/ as plain C++17.
//
// A thread is a fiber, a block is the fibers of one thread of the operating system, and several such threads share the
// blocks of a launch. Barriers and the collectives of a warp stop a fiber until those it waits for have come. What a
// GPU leaves undefined is looked for rather than imitated: the order of threads and blocks is chosen by the launch,
// shared memory begins with a pattern that is no field element and no address, and threads that wait for ever end the
// launch with a message (fibers.cc).
//
// A fiber runs until it waits. A kernel that spins until another thread or block has written something never ends here.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <type_traits>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define FIBERS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBERS_ASAN 1
#endif
#endif
#ifndef FIBERS_ASAN
#define FIBERS_ASAN 0
#endif

struct kernels_host_launch;

namespace fibers {

struct Index {
    uint32_t x, y, z;
};

enum class Collective : uint8_t { barrier, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, match, sync };

// A place in the sources, for messages.
struct Site {
    const char* file;
    int line;
};

// What a fiber waits for or was given, and which thread it is. Only what a kernel reads lies here.
struct Thread {
    Index index;
    uint32_t lane;
};
struct Block {
    Index index, threads, grid;
    unsigned char* shared;
};

// Fibers do not change the thread they run on, so a thread's present fiber and block are all there is to know.
#define FIBERS_THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
extern FIBERS_THREAD_LOCAL const Thread* thread;
extern FIBERS_THREAD_LOCAL const Block* block;

// How many threads of the block came with a predicate that holds, once all of the block have come.
uint32_t barrier(bool predicate, Site site);
// Waits for the lanes of `mask`. Gives lane `source`'s value for a shuffle, the lanes whose value is not zero for a
// ballot, those whose value is this lane's for a match.
uint64_t collective(Collective kind, uint32_t mask, uint64_t value, uint32_t source, Site site);
// Ends the launch as failed.
[[noreturn]] void trap(Site site);

// A kernel as EXPORT makes it known: `call` runs it for the present thread.
struct Kernel {
    const char* name;
    uint32_t threads;
    void (*call)(void* const* arguments);
    // Bytes of each parameter: 8 for a pointer, 4 for a uint32_t.
    const uint8_t* parameters;
    uint32_t parameter_count;
    const Kernel* next;

    Kernel(const char* name, uint32_t threads, void (*call)(void* const*), const uint8_t* parameters, uint32_t count);
};
// All that EXPORT made known, the last first.
const Kernel* all_kernels();
// Runs a kernel, with a status of host.h.
int run(const kernels_host_launch& launch, std::string& message);

template <class T>
struct Signature;
template <class... P>
struct Signature<void(P...)> {
    static_assert(((std::is_pointer_v<P> || std::is_same_v<P, uint32_t>) && ...), "pointers and uint32_t only");
    static constexpr uint32_t count = sizeof...(P);
    static constexpr uint8_t parameters[count + 1] = {static_cast<uint8_t>(sizeof(P))..., 0};

    template <void (*F)(P...)>
    static void call(void* const* arguments) {
        spread<F>(arguments, std::index_sequence_for<P...>{});
    }

private:
    template <void (*F)(P...), size_t... I>
    static void spread([[maybe_unused]] void* const* arguments, std::index_sequence<I...>) {
        F(*static_cast<const P*>(arguments[I])...);
    }
};

template <class T>
inline uint64_t to_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "warps exchange values of 4 and 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T>
inline T from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace fibers

#define DEVICE static inline
#define DEVICE_CALL static __attribute__((noinline, unused))
#define KERNEL(name, threads, blocks) \
    static constexpr uint32_t name##_threads = (threads); \
    static void name
#define EXPORT(name) \
    static const fibers::Kernel name##_kernel{ \
        #name, name##_threads, &fibers::Signature<decltype(name)>::call<name>, \
        fibers::Signature<decltype(name)>::parameters, fibers::Signature<decltype(name)>::count};
#define SHARED(T, name) T* name = reinterpret_cast<T*>(fibers::block->shared)
// Eight, as an element has words: gcc's time explodes on larger loops that are unrolled in full.
#if defined(__clang__)
#define UNROLL _Pragma("unroll 8")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define NO_UNROLL
#define CONSTANT [[maybe_unused]] static const
[[maybe_unused]] static inline void prefetch(const void*) {}

#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// A block stays on one thread from its begin to its end. The section lets fibers.cc find and overwrite what lies there.
#define __shared__ static thread_local __attribute__((section("fibers_shared")))

#define threadIdx (fibers::thread->index)
#define blockIdx (fibers::block->index)
#define blockDim (fibers::block->threads)
#define gridDim (fibers::block->grid)
constexpr int warpSize = 32;

// The caller's place: default arguments are evaluated where the call is written.
#define FIBERS_FILE const char* file = __builtin_FILE()
#define FIBERS_LINE int line = __builtin_LINE()

inline void __syncthreads(FIBERS_FILE, FIBERS_LINE) { fibers::barrier(false, {file, line}); }
inline int __syncthreads_count(int predicate, FIBERS_FILE, FIBERS_LINE) {
    return static_cast<int>(fibers::barrier(predicate != 0, {file, line}));
}
inline int __syncthreads_or(int predicate, FIBERS_FILE, FIBERS_LINE) {
    return fibers::barrier(predicate != 0, {file, line}) != 0;
}
inline int __syncthreads_and(int predicate, FIBERS_FILE, FIBERS_LINE) {
    return fibers::barrier(predicate == 0, {file, line}) == 0;
}

inline void __syncwarp(uint32_t mask = 0xffffffff, FIBERS_FILE, FIBERS_LINE) {
    fibers::collective(fibers::Collective::sync, mask, 0, 0, {file, line});
}

// `width` divides the warp into equal parts. A source outside the thread's part gives its own value.
template <class T>
inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32, FIBERS_FILE, FIBERS_LINE) {
    uint32_t in = static_cast<uint32_t>(width) - 1;
    uint32_t from = (fibers::thread->lane & ~in) | (static_cast<uint32_t>(source) & in);
    return fibers::from_bits<T>(
        fibers::collective(fibers::Collective::shuffle, mask, fibers::to_bits(value), from, {file, line}));
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, FIBERS_FILE, FIBERS_LINE) {
    uint32_t lane = fibers::thread->lane, in = static_cast<uint32_t>(width) - 1;
    uint32_t from = (lane & in) >= delta ? lane - delta : lane;
    return fibers::from_bits<T>(
        fibers::collective(fibers::Collective::shuffle_up, mask, fibers::to_bits(value), from, {file, line}));
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, FIBERS_FILE, FIBERS_LINE) {
    uint32_t lane = fibers::thread->lane, in = static_cast<uint32_t>(width) - 1;
    uint32_t from = delta <= in - (lane & in) ? lane + delta : lane;
    return fibers::from_bits<T>(
        fibers::collective(fibers::Collective::shuffle_down, mask, fibers::to_bits(value), from, {file, line}));
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, FIBERS_FILE, FIBERS_LINE) {
    uint32_t lane = fibers::thread->lane, in = static_cast<uint32_t>(width) - 1;
    uint32_t from = lane ^ static_cast<uint32_t>(lanes);
    if (from > (lane | in)) from = lane;
    return fibers::from_bits<T>(
        fibers::collective(fibers::Collective::shuffle_xor, mask, fibers::to_bits(value), from, {file, line}));
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate, FIBERS_FILE, FIBERS_LINE) {
    return static_cast<uint32_t>(
        fibers::collective(fibers::Collective::ballot, mask, predicate != 0, 0, {file, line}));
}
inline int __any_sync(uint32_t mask, int predicate, FIBERS_FILE, FIBERS_LINE) {
    return fibers::collective(fibers::Collective::ballot, mask, predicate != 0, 0, {file, line}) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, FIBERS_FILE, FIBERS_LINE) {
    return fibers::collective(fibers::Collective::ballot, mask, predicate == 0, 0, {file, line}) == 0;
}
template <class T>
inline uint32_t __match_any_sync(uint32_t mask, T value, FIBERS_FILE, FIBERS_LINE) {
    return static_cast<uint32_t>(
        fibers::collective(fibers::Collective::match, mask, fibers::to_bits(value), 0, {file, line}));
}
// Which lanes run together is the machine's affair; that this one does is all that a kernel may count on.
inline uint32_t __activemask() { return uint32_t{1} << fibers::thread->lane; }

[[noreturn]] inline void __trap(FIBERS_FILE, FIBERS_LINE) { fibers::trap({file, line}); }

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

inline int __popc(uint32_t value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value ? __builtin_clz(static_cast<uint32_t>(value)) : 32; }
inline int __clzll(long long value) { return value ? __builtin_clzll(static_cast<unsigned long long>(value)) : 64; }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline uint32_t __brev(uint32_t value) {
    value = (value >> 1 & 0x55555555) | (value & 0x55555555) << 1;
    value = (value >> 2 & 0x33333333) | (value & 0x33333333) << 2;
    value = (value >> 4 & 0x0f0f0f0f) | (value & 0x0f0f0f0f) << 4;
    return __builtin_bswap32(value);
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
// The high word of low and high shifted left, and the low word of them shifted right.
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31));
}
template <class T>
inline T __ldg(const T* from) {
    return *from;
}

#define FIBERS_ATOMIC(name, T, operation) \
    inline T name(T* at, T value) { return operation(at, value, __ATOMIC_RELAXED); }
FIBERS_ATOMIC(atomicAdd, uint32_t, __atomic_fetch_add)
FIBERS_ATOMIC(atomicAdd, int, __atomic_fetch_add)
FIBERS_ATOMIC(atomicAdd, unsigned long long, __atomic_fetch_add)
FIBERS_ATOMIC(atomicSub, uint32_t, __atomic_fetch_sub)
FIBERS_ATOMIC(atomicOr, uint32_t, __atomic_fetch_or)
FIBERS_ATOMIC(atomicAnd, uint32_t, __atomic_fetch_and)
FIBERS_ATOMIC(atomicXor, uint32_t, __atomic_fetch_xor)
FIBERS_ATOMIC(atomicExch, uint32_t, __atomic_exchange_n)
#undef FIBERS_ATOMIC
inline uint32_t atomicCAS(uint32_t* at, uint32_t expected, uint32_t value) {
    __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
inline uint32_t atomicMax(uint32_t* at, uint32_t value) {
    uint32_t old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old < value && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
inline uint32_t atomicMin(uint32_t* at, uint32_t value) {
    uint32_t old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old > value && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

template <class T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
