// Runs the blocks of a launch: fibers, their order, and what they wait for.
#include "fibers.h"

#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "host.h"

#if defined(__x86_64__) && !defined(FIBERS_PORTABLE)
#define FIBERS_BY_HAND 1
#else
#define FIBERS_BY_HAND 0
#include <ucontext.h>
#endif

#if FIBERS_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fibers {

FIBERS_THREAD_LOCAL const Thread* thread = nullptr;
FIBERS_THREAD_LOCAL const Block* block = nullptr;

namespace {

constexpr uint32_t max_threads = 1024;
constexpr uint32_t warp_lanes = 32;
constexpr size_t stack_bytes = size_t{256} * 1024;
// Bytes behind a block's shared memory that no kernel may change. The sanitizer watches them itself.
constexpr size_t shared_guard = FIBERS_ASAN ? 0 : 256;
// As a word of a field element it is above the modulus, as an address it is not mapped, as an index it is too large.
constexpr unsigned char poison = 0xd7;
constexpr uint64_t poison_word = 0xd7d7d7d7d7d7d7d7;

const Kernel* kernels = nullptr;

// SplitMix64.
struct Random {
    uint64_t state;

    uint64_t next() {
        uint64_t word = state += 0x9e3779b97f4a7c15;
        word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9;
        word = (word ^ word >> 27) * 0x94d049bb133111eb;
        return word ^ word >> 31;
    }
};

// Where a stack was left. The sanitizer keeps an account of stacks and is told of every change.
struct Context {
#if FIBERS_BY_HAND
    void* pointer = nullptr;
#else
    ucontext_t context;
#endif
#if FIBERS_ASAN
    void* fake_stack = nullptr;
    const void* bottom = nullptr;
    size_t size = 0;
#endif
};

struct Warp;
struct Fiber : Thread {
    Context context;
    char* stack;
    Warp* warp;
    Site site;
    uint64_t value, result;
    uint32_t mask, source;
    Collective kind;
};

struct Warp {
    Fiber* fibers;
    // Lanes that have not returned; of these, those that may run and those in a collective. The others are at the barrier.
    uint32_t live, ready, waiting;
};

// A launch that is under way.
struct Launch {
    const kernels_host_launch* what;
    const Kernel* kernel;
    std::vector<uint32_t> blocks;
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    int status = KERNELS_HOST_OK;
    std::string message;
};

// One thread's fibers and the block that they run.
struct Worker : Block {
    Launch* launch = nullptr;
    Context scheduler;
    std::unique_ptr<Fiber[]> fibers{new Fiber[max_threads]};
    Warp warps[max_threads / warp_lanes];
    uint32_t warp_count = 0, live = 0;
    uint32_t at_barrier = 0, predicates = 0, barrier_result = 0;
    Site barrier_site{};
    bool failed = false;
    Random random{0};
    char* stacks = nullptr;
    uint32_t stacks_ready = 0;

    Worker();
    ~Worker();
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    void prepare(uint32_t threads);
    void run_blocks();
    void run_block(uint32_t number);
    void sweep();
    void pass(Warp& warp);
    void resume(Fiber& fiber);
    void report_stuck();
    void fail(int status, const std::string& what);
};

FIBERS_THREAD_LOCAL Worker* worker = nullptr;

Fiber* present() {
    // `thread` is only ever set to a Fiber.
    return const_cast<Fiber*>(static_cast<const Fiber*>(thread));
}

bool operator!=(const Site& a, const Site& b) {
    return a.line != b.line || (a.file != b.file && strcmp(a.file, b.file) != 0);
}

const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...) {
    char buffer[512];
    va_list values;
    va_start(values, format);
    vsnprintf(buffer, sizeof buffer, format, values);
    va_end(values);
    return buffer;
}

const char* collective_name(Collective kind) {
    switch (kind) {
        case Collective::barrier: return "__syncthreads";
        case Collective::shuffle: return "__shfl_sync";
        case Collective::shuffle_up: return "__shfl_up_sync";
        case Collective::shuffle_down: return "__shfl_down_sync";
        case Collective::shuffle_xor: return "__shfl_xor_sync";
        case Collective::ballot: return "a vote";
        case Collective::match: return "__match_any_sync";
        case Collective::sync: return "__syncwarp";
    }
    return "a collective";
}

// --- Stacks -----------------------------------------------------------------------------------------------------------

void run_fiber();

#if FIBERS_BY_HAND
// Leaves the stack's pointer at `from` and goes on where `to` was left. Inline, and by a jump: a return would go where the
// processor's own account of calls does not expect it. What compilers keep below the pointer is stepped over.
__attribute__((always_inline)) inline void change(Context& from, Context& to) {
    void** left = &from.pointer;
    void* taken = to.pointer;
    __asm__ volatile(
        "leaq -128(%%rsp), %%rsp\n\t"
        "pushq %%rbp\n\t"
        "leaq 1f(%%rip), %%rax\n\t"
        "pushq %%rax\n\t"
        "movq %%rsp, (%0)\n\t"
        "movq %1, %%rsp\n\t"
        "popq %%rax\n\t"
        "jmpq *%%rax\n"
        "1:\n\t"
        "popq %%rbp\n\t"
        "leaq 128(%%rsp), %%rsp"
        : "+D"(left), "+S"(taken)
        :
        : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",
          "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
          "memory", "cc");
}

// Stacks lie a power of two apart; without an offset the tops of all would share a few sets of the cache.
void begin(Fiber& fiber, uint32_t number) {
    void** top = reinterpret_cast<void**>(fiber.stack + stack_bytes - (number % 64) * 192 - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&run_fiber);
    fiber.context.pointer = top;
}
#else
void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

void begin(Fiber& fiber, uint32_t) {
    getcontext(&fiber.context.context);
    fiber.context.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.context.uc_stack.ss_size = stack_bytes;
    fiber.context.context.uc_link = nullptr;
    makecontext(&fiber.context.context, run_fiber, 0);
}
#endif

// From the scheduler to a fiber, and back when it waits or has ended.
inline void Worker::resume(Fiber& fiber) {
    thread = &fiber;
#if FIBERS_ASAN
    __sanitizer_start_switch_fiber(&scheduler.fake_stack, fiber.stack, stack_bytes);
#endif
    change(scheduler, fiber.context);
#if FIBERS_ASAN
    __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
#endif
}

inline void suspend(Fiber& fiber, [[maybe_unused]] bool for_ever) {
    Worker& here = *worker;
#if FIBERS_ASAN
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &fiber.context.fake_stack, here.scheduler.bottom,
                                   here.scheduler.size);
#endif
    change(fiber.context, here.scheduler);
#if FIBERS_ASAN
    __sanitizer_finish_switch_fiber(fiber.context.fake_stack, &here.scheduler.bottom, &here.scheduler.size);
#endif
}

// Lets the lanes of `mask` go on if all that live have come to the same collective.
void complete(Warp& warp, uint32_t mask, Collective kind) {
    uint32_t lanes = mask & warp.live;
    if (lanes == 0 || (warp.waiting & lanes) != lanes) return;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        const Fiber& fiber = warp.fibers[__builtin_ctz(rest)];
        if (fiber.mask != mask || fiber.kind != kind) return;
    }
    uint32_t ballot = 0;
    if (kind == Collective::ballot) {
        for (uint32_t rest = lanes; rest; rest &= rest - 1) {
            uint32_t lane = static_cast<uint32_t>(__builtin_ctz(rest));
            ballot |= static_cast<uint32_t>(warp.fibers[lane].value) << lane;
        }
    }
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        Fiber& fiber = warp.fibers[__builtin_ctz(rest)];
        switch (kind) {
            case Collective::ballot: fiber.result = ballot; break;
            case Collective::match: {
                uint32_t same = 0;
                for (uint32_t others = lanes; others; others &= others - 1) {
                    uint32_t lane = static_cast<uint32_t>(__builtin_ctz(others));
                    same |= static_cast<uint32_t>(warp.fibers[lane].value == fiber.value) << lane;
                }
                fiber.result = same;
                break;
            }
            // A lane that is not there has no value to give.
            default: fiber.result = lanes >> fiber.source & 1 ? warp.fibers[fiber.source].value : poison_word;
        }
    }
    warp.waiting &= ~lanes;
    warp.ready |= lanes;
}

// A fiber's whole life. It never returns: there is nothing on its stack to return to.
void run_fiber() {
#if FIBERS_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &worker->scheduler.bottom, &worker->scheduler.size);
#endif
    Launch& launch = *worker->launch;
    launch.kernel->call(launch.what->arguments);

    Fiber& fiber = *present();
    Warp& warp = *fiber.warp;
    warp.live &= ~(uint32_t{1} << fiber.lane);
    worker->live--;
    // Those who waited for this lane need not any more.
    for (uint32_t rest = warp.waiting; rest; rest &= rest - 1) {
        const Fiber& other = warp.fibers[__builtin_ctz(rest)];
        complete(warp, other.mask, other.kind);
    }
    suspend(fiber, true);
    abort();
}

// --- Statically shared memory -----------------------------------------------------------------------------------------

// The linker's names for the ends of the section as it lies in the file, from which every thread has a copy. They are
// missing where no kernel has such memory.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_fibers_shared[], __stop_fibers_shared[];

struct Range {
    unsigned char* begin = nullptr;
    size_t bytes = 0;
};

// This thread's copy of the section: as far into the thread's copy of the segment as the section is into the segment.
// Shared arrays in templates are outside of it, since gcc puts those into sections of its own.
Range static_shared() {
    Range range;
    if (!__start_fibers_shared) return range;
    auto visit = [](dl_phdr_info* object, size_t, void* to) {
        uintptr_t section = reinterpret_cast<uintptr_t>(__start_fibers_shared);
        for (int i = 0; i < object->dlpi_phnum; i++) {
            const auto& segment = object->dlpi_phdr[i];
            uintptr_t begin = object->dlpi_addr + segment.p_vaddr;
            if (segment.p_type != PT_TLS || section < begin || section >= begin + segment.p_memsz) continue;
            Range& range = *static_cast<Range*>(to);
            range.begin = static_cast<unsigned char*>(object->dlpi_tls_data) + (section - begin);
            range.bytes = static_cast<size_t>(__stop_fibers_shared - __start_fibers_shared);
            return 1;
        }
        return 0;
    };
    dl_iterate_phdr(visit, &range);
    return range;
}

// --- Blocks -----------------------------------------------------------------------------------------------------------

Worker::Worker() {
    void* memory = mmap(nullptr, stack_bytes * max_threads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks = static_cast<char*>(memory);
    for (uint32_t i = 0; i < max_threads; i++) {
        fibers[i].stack = stacks + stack_bytes * i;
        fibers[i].index = {i, 0, 0};
        fibers[i].lane = i % warp_lanes;
        fibers[i].warp = &warps[i / warp_lanes];
    }
    for (uint32_t i = 0; i < max_threads / warp_lanes; i++) warps[i].fibers = &fibers[i * warp_lanes];
}

Worker::~Worker() { munmap(stacks, stack_bytes * max_threads); }

// A stack's lowest page is closed, so that an overflow is a fault there and not a change to another fiber.
void Worker::prepare(uint32_t count) {
    for (; stacks_ready < count; stacks_ready++) {
        if (mprotect(fibers[stacks_ready].stack, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE) != 0) {
            throw std::bad_alloc();
        }
    }
}

// Of several failures of a launch the first is kept.
void Worker::fail(int status, const std::string& what) {
    failed = true;
    std::lock_guard<std::mutex> lock(launch->mutex);
    if (launch->failed.exchange(true)) return;
    launch->status = status;
    launch->message =
        text("kernel %s, block (%u, %u): ", launch->kernel->name, this->index.x, this->index.y) + what;
}

// Nothing can run, and some have not returned.
void Worker::report_stuck() {
    for (uint32_t w = 0; w < warp_count; w++) {
        const Warp& warp = warps[w];
        if (!warp.waiting) continue;
        const Fiber& fiber = warp.fibers[__builtin_ctz(warp.waiting)];
        uint32_t lanes = fiber.mask & warp.live, here = 0;
        for (uint32_t rest = warp.waiting & lanes; rest; rest &= rest - 1) {
            const Fiber& other = warp.fibers[__builtin_ctz(rest)];
            if (other.mask == fiber.mask && other.kind == fiber.kind) here |= uint32_t{1} << other.lane;
        }
        uint32_t missing = lanes & ~here;
        const Fiber& absent = warp.fibers[missing ? __builtin_ctz(missing) : fiber.lane];
        bool in_warp = warp.waiting >> absent.lane & 1;
        return fail(KERNELS_HOST_BROKEN_COLLECTIVE,
                    text("%s of lanes 0x%08x at %s:%d in warp %u: expected lanes 0x%08x, got 0x%08x; lane %u waits in "
                         "%s of lanes 0x%08x at %s:%d",
                         collective_name(fiber.kind), fiber.mask, base_name(fiber.site.file), fiber.site.line, w, lanes,
                         here, absent.lane, in_warp ? collective_name(absent.kind) : "__syncthreads",
                         in_warp ? absent.mask : 0xffffffff, base_name(absent.site.file), absent.site.line));
    }
    fail(KERNELS_HOST_DIVERGENT_BARRIER, text("__syncthreads: expected %u threads, got %u", live, at_barrier));
}

void Worker::pass(Warp& warp) {
    uint32_t lanes = warp.ready;
    warp.ready = 0;
    switch (launch->what->order) {
        case KERNELS_HOST_ASCENDING:
            for (; lanes && !failed; lanes &= lanes - 1) resume(warp.fibers[__builtin_ctz(lanes)]);
            break;
        case KERNELS_HOST_DESCENDING:
            for (; lanes && !failed;) {
                uint32_t lane = 31 - static_cast<uint32_t>(__builtin_clz(lanes));
                lanes ^= uint32_t{1} << lane;
                resume(warp.fibers[lane]);
            }
            break;
        default: {
            // An odd step goes once round all lanes.
            uint64_t word = random.next();
            uint32_t lane = word & 31, step = (word >> 5 & 31) | 1;
            for (; lanes && !failed; lane = (lane + step) & 31) {
                if (!(lanes >> lane & 1)) continue;
                lanes ^= uint32_t{1} << lane;
                resume(warp.fibers[lane]);
            }
        }
    }
}

// Runs fibers until all wait for others. Ascending and descending, a warp goes as far as it can before the next: what
// one warp must wait for in another is then missing in one of the two. At random, warps take turns.
void Worker::sweep() {
    switch (launch->what->order) {
        case KERNELS_HOST_ASCENDING:
            for (uint32_t w = 0; w < warp_count; w++) {
                while (warps[w].ready && !failed) pass(warps[w]);
            }
            break;
        case KERNELS_HOST_DESCENDING:
            for (uint32_t w = warp_count; w-- > 0;) {
                while (warps[w].ready && !failed) pass(warps[w]);
            }
            break;
        default:
            for (;;) {
                uint32_t count = 0;
                uint32_t ready[max_threads / warp_lanes];
                for (uint32_t w = 0; w < warp_count; w++) {
                    if (warps[w].ready) ready[count++] = w;
                }
                if (count == 0 || failed) break;
                pass(warps[ready[random.next() % count]]);
            }
    }
}

void Worker::run_block(uint32_t number) {
    const kernels_host_launch& what = *launch->what;
    this->index = {number % what.grid_x, number / what.grid_x, 0};
    random.state = what.seed ^ uint64_t{number} << 32;
    random.next();
    live = what.block;
    at_barrier = predicates = 0;
    failed = false;
    if (shared) memset(shared, poison, what.shared + shared_guard);
    for (uint32_t i = 0; i < live; i++) begin(fibers[i], i);
    for (uint32_t w = 0; w < warp_count; w++) {
        uint32_t lanes = std::min(warp_lanes, live - w * warp_lanes);
        warps[w].live = warps[w].ready = 0xffffffff >> (warp_lanes - lanes);
        warps[w].waiting = 0;
    }
    for (;;) {
        sweep();
        if (failed || live == 0) break;
        if (at_barrier != live) {
            report_stuck();
            break;
        }
        // All that live are at the barrier.
        barrier_result = predicates;
        at_barrier = predicates = 0;
        for (uint32_t w = 0; w < warp_count; w++) warps[w].ready = warps[w].live;
    }
    if (failed) return;
    for (size_t i = 0; i < shared_guard; i++) {
        unsigned char byte = shared[what.shared + i];
        if (byte == poison) continue;
        return fail(KERNELS_HOST_SHARED_OVERRUN,
                    text("byte %zu of shared memory: expected %u bytes at most, got a write of 0x%02x",
                         what.shared + i, what.shared, byte));
    }
}

void Worker::run_blocks() {
    const kernels_host_launch& what = *launch->what;
    fibers::block = this;
    worker = this;
    grid = {what.grid_x, what.grid_y, 1};
    threads = {what.block, 1, 1};
    warp_count = (what.block + warp_lanes - 1) / warp_lanes;
    Range range = static_shared();
    size_t number;
    while (!launch->failed && (number = launch->next++) < launch->blocks.size()) {
        if (range.bytes) memset(range.begin, poison, range.bytes);
        run_block(launch->blocks[number]);
    }
#if FIBERS_ASAN
    // Fibers that were abandoned have left their marks.
    for (uint32_t i = 0; i < what.block; i++) {
        char* begin = fibers[i].stack + sysconf(_SC_PAGESIZE);
        __asan_unpoison_memory_region(begin, stack_bytes - static_cast<size_t>(sysconf(_SC_PAGESIZE)));
    }
#endif
    fibers::block = nullptr;
    worker = nullptr;
    thread = nullptr;
}

// Stacks are kept from launch to launch: to map them anew costs more than a small launch does.
class Workers {
public:
    std::unique_ptr<Worker> take() {
        std::lock_guard<std::mutex> lock(mutex);
        if (idle.empty()) return std::make_unique<Worker>();
        std::unique_ptr<Worker> worker = std::move(idle.back());
        idle.pop_back();
        return worker;
    }
    void give(std::unique_ptr<Worker> worker) {
        std::lock_guard<std::mutex> lock(mutex);
        idle.push_back(std::move(worker));
    }

private:
    std::mutex mutex;
    std::vector<std::unique_ptr<Worker>> idle;
};

Workers& workers() {
    static Workers all;
    return all;
}

std::vector<uint32_t> block_order(const kernels_host_launch& what) {
    std::vector<uint32_t> order(size_t{what.grid_x} * what.grid_y);
    for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<uint32_t>(i);
    if (what.order == KERNELS_HOST_DESCENDING) std::reverse(order.begin(), order.end());
    if (what.order == KERNELS_HOST_RANDOM) {
        Random random{what.seed};
        for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random.next() % i]);
    }
    return order;
}

}  // namespace

// --- What kernels call ------------------------------------------------------------------------------------------------

uint32_t barrier(bool predicate, Site site) {
    Fiber& fiber = *present();
    Worker& here = *worker;
    fiber.site = site;
    if (here.at_barrier == 0) here.barrier_site = site;
    if (site != here.barrier_site) {
        // A GPU may let this pass, and CUDA does not allow it.
        here.fail(KERNELS_HOST_DIVERGENT_BARRIER,
                  text("thread %u waits in __syncthreads at %s:%d, others in that at %s:%d", fiber.index.x,
                       base_name(site.file), site.line, base_name(here.barrier_site.file), here.barrier_site.line));
    }
    here.at_barrier++;
    here.predicates += predicate;
    suspend(fiber, false);
    return here.barrier_result;
}

uint64_t collective(Collective kind, uint32_t mask, uint64_t value, uint32_t source, Site site) {
    Fiber& fiber = *present();
    Warp& warp = *fiber.warp;
    fiber.site = site;
    fiber.value = value;
    fiber.mask = mask;
    fiber.source = source;
    fiber.kind = kind;
    if (mask >> fiber.lane & 1) {
        warp.waiting |= uint32_t{1} << fiber.lane;
        complete(warp, mask, kind);
    } else {
        worker->fail(KERNELS_HOST_BROKEN_COLLECTIVE,
                     text("%s at %s:%d: expected the calling lane in its mask, got lane %u and 0x%08x",
                          collective_name(kind), base_name(site.file), site.line, fiber.lane, mask));
    }
    suspend(fiber, false);
    return fiber.result;
}

void trap(Site site) {
    Fiber& fiber = *present();
    worker->fail(KERNELS_HOST_TRAP, text("thread %u called __trap at %s:%d", fiber.index.x, base_name(site.file),
                                         site.line));
    suspend(fiber, true);
    abort();
}

Kernel::Kernel(const char* name, uint32_t threads, void (*call)(void* const*), const uint8_t* parameters, uint32_t count)
    : name(name), threads(threads), call(call), parameters(parameters), parameter_count(count), next(kernels) {
    kernels = this;
}

// --- What the host calls ----------------------------------------------------------------------------------------------

static int run_checked(const kernels_host_launch& what, std::string& message) {
    const Kernel* kernel = kernels;
    while (kernel && strcmp(kernel->name, what.kernel) != 0) kernel = kernel->next;
    if (!kernel) {
        message = text("no kernel is called %s", what.kernel);
        return KERNELS_HOST_UNKNOWN_KERNEL;
    }
    if (what.argument_count != kernel->parameter_count) {
        message = text("kernel %s, arguments: expected %u, got %u", kernel->name, kernel->parameter_count,
                       what.argument_count);
        return KERNELS_HOST_WRONG_ARGUMENTS;
    }
    for (uint32_t i = 0; i < what.argument_count; i++) {
        if (what.argument_bytes[i] == kernel->parameters[i]) continue;
        auto noun = [](uint8_t bytes) { return bytes == 8 ? "a pointer" : "a number"; };
        message = text("kernel %s, argument %u: expected %s, got %s", kernel->name, i, noun(kernel->parameters[i]),
                       noun(what.argument_bytes[i]));
        return KERNELS_HOST_WRONG_ARGUMENTS;
    }
    uint32_t bound = std::min(kernel->threads, max_threads);
    if (what.block == 0 || what.block > bound) {
        message = text("kernel %s, threads of a block: expected 1 to %u, got %u", kernel->name, bound, what.block);
        return KERNELS_HOST_WRONG_SIZE;
    }
    // The limits of a GPU's grid.
    if (what.grid_x == 0 || what.grid_y == 0 || what.grid_x > 0x7fffffff || what.grid_y > 0xffff ||
        uint64_t{what.grid_x} * what.grid_y > 0xffffffff) {
        message = text("kernel %s, blocks: expected at least 1 x 1 and at most 2147483647 x 65535, got %u x %u",
                       kernel->name, what.grid_x, what.grid_y);
        return KERNELS_HOST_WRONG_SIZE;
    }
    if (what.shared > KERNELS_HOST_MAX_SHARED) {
        message = text("kernel %s, bytes of shared memory: expected at most %d, got %u", kernel->name,
                       KERNELS_HOST_MAX_SHARED, what.shared);
        return KERNELS_HOST_SHARED_TOO_LARGE;
    }

    Launch launch;
    launch.what = &what;
    launch.kernel = kernel;
    launch.blocks = block_order(what);
    size_t count = std::min<size_t>(std::max(what.threads, 1u), launch.blocks.size());
    std::vector<std::unique_ptr<Worker>> crew;
    std::vector<std::unique_ptr<unsigned char, void (*)(void*)>> shared;
    for (size_t i = 0; i < count; i++) {
        crew.push_back(workers().take());
        // As far aligned as malloc does it, which is enough for any vector that a kernel reads.
        shared.emplace_back(static_cast<unsigned char*>(malloc(what.shared + shared_guard)), free);
        if (!shared.back() && what.shared + shared_guard) throw std::bad_alloc();
        crew[i]->launch = &launch;
        crew[i]->shared = shared[i].get();
        crew[i]->prepare(what.block);
    }
    std::vector<std::thread> threads;
    try {
        for (size_t i = 1; i < count; i++) threads.emplace_back([&crew, i] { crew[i]->run_blocks(); });
    } catch (const std::system_error&) {
        // Fewer threads do the work, too.
    }
    crew[0]->run_blocks();
    for (auto& thread : threads) thread.join();
    for (auto& worker : crew) workers().give(std::move(worker));
    message = launch.message;
    return launch.status;
}

int run(const kernels_host_launch& what, std::string& message) {
    try {
        return run_checked(what, message);
    } catch (const std::exception& error) {
        message = error.what();
        return KERNELS_HOST_NO_RESOURCES;
    }
}

const Kernel* all_kernels() { return kernels; }

}  // namespace fibers
