/* Kernels that run on this processor, for the tests of the host code (src/backend/cuda/driver/host) and of kernels/. */
#ifndef KERNELS_HOST_H
#define KERNELS_HOST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What the library shows: all else in it is hidden. */
#define KERNELS_HOST_SHOWN __attribute__((visibility("default")))

/* How a launch ended. Anything but OK comes with a message. */
enum {
    KERNELS_HOST_OK = 0,
    /* No kernel of that name is exported. */
    KERNELS_HOST_UNKNOWN_KERNEL = 1,
    /* Too few or too many arguments, or a pointer where a number belongs or the other way round. */
    KERNELS_HOST_WRONG_ARGUMENTS = 2,
    /* No blocks, no threads, or more threads than the kernel's bound. */
    KERNELS_HOST_WRONG_SIZE = 3,
    /* More shared memory than a block may have. */
    KERNELS_HOST_SHARED_TOO_LARGE = 4,
    /* Threads of a block wait for one another at different barriers, or some in a barrier and others in a warp. */
    KERNELS_HOST_DIVERGENT_BARRIER = 5,
    /* A part of a collective's lanes never comes to it, or the calling lane is not of its mask. */
    KERNELS_HOST_BROKEN_COLLECTIVE = 6,
    /* A write behind the end of the block's shared memory. */
    KERNELS_HOST_SHARED_OVERRUN = 7,
    /* The kernel called __trap. */
    KERNELS_HOST_TRAP = 8,
    /* This machine has no memory or no threads for it. */
    KERNELS_HOST_NO_RESOURCES = 9
};

/* In which order threads run between two waits, and blocks. */
enum { KERNELS_HOST_ASCENDING = 0, KERNELS_HOST_DESCENDING = 1, KERNELS_HOST_RANDOM = 2 };

/* Shared memory that a block of any kernel may have, bytes. */
enum { KERNELS_HOST_MAX_SHARED = 227 * 1024 };

struct kernels_host_launch {
    const char* kernel;
    uint32_t grid_x, grid_y;
    uint32_t block;
    /* Dynamic shared memory of a block, bytes. */
    uint32_t shared;
    /* Where each argument lies, and its bytes: 8 for a pointer, 4 for a number. */
    void* const* arguments;
    const uint8_t* argument_bytes;
    uint32_t argument_count;
    uint32_t order;
    /* Chooses among random orders. */
    uint64_t seed;
    /* Threads of the operating system that share the blocks. */
    uint32_t threads;
};

/* Runs a kernel to its end. The message is cut where there is no room for it and always ends with a zero byte. */
KERNELS_HOST_SHOWN int kernels_host_run(const struct kernels_host_launch* launch, char* message, size_t message_bytes);

/* The names of exported kernels, and null for numbers beyond them. */
KERNELS_HOST_SHOWN const char* kernels_host_name(uint32_t number);

/* Bytes of each parameter of a kernel, 8 for a pointer and 4 for a number; 0 beyond its last, and for a name that is none's. */
KERNELS_HOST_SHOWN uint8_t kernels_host_parameter(const char* kernel, uint32_t number);

/* Tells the address sanitizer, where it is built in, that kernels may not touch these bytes, or may again. */
KERNELS_HOST_SHOWN void kernels_host_forbid(const void* start, size_t bytes);
KERNELS_HOST_SHOWN void kernels_host_allow(const void* start, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
