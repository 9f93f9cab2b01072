// Every kernel, compiled for this processor, and the C interface. The kernels register themselves by EXPORT when the
// library is loaded.
#include "../kernels.cu"

#include "check.h"

#include <stdio.h>

#include "host.h"

#if FIBERS_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes) (static_cast<void>(start), static_cast<void>(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes) (static_cast<void>(start), static_cast<void>(bytes))
#endif

extern "C" int kernels_host_run(const kernels_host_launch* launch, char* message, size_t message_bytes) {
    std::string what;
    int status = fibers::run(*launch, what);
    if (message_bytes) snprintf(message, message_bytes, "%s", what.c_str());
    return status;
}

extern "C" const char* kernels_host_name(uint32_t number) {
    const fibers::Kernel* kernel = fibers::all_kernels();
    while (kernel && number--) kernel = kernel->next;
    return kernel ? kernel->name : nullptr;
}

extern "C" uint8_t kernels_host_parameter(const char* name, uint32_t number) {
    const fibers::Kernel* kernel = fibers::all_kernels();
    while (kernel && std::string(kernel->name) != name) kernel = kernel->next;
    return kernel && number < kernel->parameter_count ? kernel->parameters[number] : uint8_t{0};
}

extern "C" void kernels_host_forbid(const void* start, size_t bytes) { ASAN_POISON_MEMORY_REGION(start, bytes); }
extern "C" void kernels_host_allow(const void* start, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(start, bytes); }
