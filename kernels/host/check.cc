// Checks fibers.h and fibers.cc themselves: what kernels may count on, and that what they may not do is found.
// scripts/kernels.sh builds it with the sanitizers and runs it.
#include <stdio.h>
#include <stdlib.h>

#include <chrono>
#include <initializer_list>
#include <string>
#include <vector>

#include "fibers.h"
#include "host.h"

namespace {

uint32_t failures = 0, checks = 0;

void expect(bool holds, const std::string& what) {
    checks++;
    if (holds) return;
    failures++;
    fprintf(stderr, "FAILED: %s\n", what.c_str());
}

void expect_equal(const std::string& what, uint64_t expected, uint64_t got) {
    expect(expected == got, what + ": expected " + std::to_string(expected) + ", got " + std::to_string(got));
}

struct Order {
    uint32_t order;
    uint64_t seed;
};
const std::vector<Order> orders = {{KERNELS_HOST_ASCENDING, 0},
                                   {KERNELS_HOST_DESCENDING, 0},
                                   {KERNELS_HOST_RANDOM, 1},
                                   {KERNELS_HOST_RANDOM, 2}};

struct Run {
    const char* kernel;
    uint32_t grid_x = 1, grid_y = 1, block = 32, shared = 0;
    Order order{KERNELS_HOST_ASCENDING, 0};
    uint32_t threads = 1;
    std::string message{};

    template <class... A>
    int operator()(A... arguments) {
        void* places[] = {&arguments..., nullptr};
        uint8_t bytes[] = {static_cast<uint8_t>(sizeof(A))..., 0};
        kernels_host_launch launch{kernel, grid_x, grid_y,     block,       shared, places,
                                   bytes,  sizeof...(A), order.order, order.seed, threads};
        char text[512];
        int status = kernels_host_run(&launch, text, sizeof text);
        message = text;
        return status;
    }
};

void check_order(Order order, uint32_t threads) {
    std::string where = " (order " + std::to_string(order.order) + ", threads " + std::to_string(threads) + ")";
    {
        std::vector<uint32_t> out(3 * 2 * 100);
        Run run{"check_indices", 3, 2, 100, 0, order, threads};
        expect_equal("indices, status" + where, 0, static_cast<uint64_t>(run(out.data())));
        for (uint32_t i = 0; i < out.size(); i++) expect_equal("indices" + where, (i / 100) << 16 | i % 100, out[i]);
    }
    {
        std::vector<uint32_t> in(256), out(4);
        for (uint32_t i = 0; i < 256; i++) in[i] = i * i;
        Run run{"check_barrier", 4, 1, 256, 1024, order, threads};
        expect_equal("barrier, status" + where, 0, static_cast<uint64_t>(run(in.data(), out.data())));
        for (uint32_t sum : out) expect_equal("barrier" + where, 5559680, sum);
    }
    {
        std::vector<uint32_t> out(64 * 16);
        std::vector<uint64_t> wide(64);
        Run run{"check_warp", 1, 1, 64, 0, order, threads};
        expect_equal("warp, status" + where, 0, static_cast<uint64_t>(run(out.data(), wide.data())));
        for (uint32_t t = 0; t < 64; t++) {
            uint32_t lane = t % 32, first = t - lane, same = 0;
            for (uint32_t i = lane % 5; i < 32; i += 5) same |= 1u << i;
            const uint32_t* got = &out[16 * t];
            expect_equal("shuffle" + where, first + 5, got[0]);
            expect_equal("shuffle up" + where, lane < 3 ? t : t - 3, got[1]);
            expect_equal("shuffle down" + where, lane > 28 ? t : t + 3, got[2]);
            expect_equal("shuffle xor" + where, t ^ 6, got[3]);
            expect_equal("ballot" + where, 0x49249249, got[4]);
            expect_equal("any" + where, t >= 32, got[5]);
            expect_equal("all" + where, t < 32, got[6]);
            expect_equal("match" + where, same, got[7]);
            expect_equal("shuffle down of eight" + where, t % 8 == 7 ? t : t + 1, got[8]);
            expect_equal("shuffle up of eight" + where, t % 8 == 0 ? t : t - 1, got[9]);
            expect_equal("shuffle of eight" + where, t / 8 * 8 + 3, got[10]);
            expect_equal("halves of a warp" + where, (t ^ 2) * (1 + t % 2), got[11]);
            expect_equal("shuffle after halves" + where, first ^ 2, got[12]);
            expect_equal("shuffle of 8 bytes" + where, uint64_t{t ^ 1} << 40 | (t ^ 1), wide[t]);
        }
    }
    {
        std::vector<uint32_t> out(64);
        Run run{"check_returned", 1, 1, 50, 0, order, threads};
        expect_equal("returned, status" + where, 0, static_cast<uint64_t>(run(out.data())));
        for (uint32_t t = 0; t < 64; t++) {
            uint32_t expected = t < 10 ? 0xfffff + 7 : t < 20 ? 0xfffff : t >= 32 && t < 50 ? 0x3ffff : 0;
            expect_equal("returned" + where, expected, out[t]);
        }
    }
    {
        std::vector<uint32_t> out = {0, 0, 0xffffffff, 0};
        unsigned long long wide = 0;
        Run run{"check_atomics", 8, 1, 128, 0, order, threads};
        expect_equal("atomics, status" + where, 0, static_cast<uint64_t>(run(out.data(), &wide)));
        expect_equal("atomic add" + where, 1024 * 1023 / 2, out[0]);
        expect_equal("atomic max" + where, 1023, out[1]);
        expect_equal("atomic min" + where, 0, out[2]);
        expect_equal("atomic or" + where, 0xffffffff, out[3]);
        expect_equal("atomic add of 8 bytes" + where, uint64_t{1024} << 33, wide);
    }
    {
        std::vector<uint32_t> out(5 * 64);
        Run run{"check_poison", 5, 1, 32, 128, order, threads};
        expect_equal("poison, status" + where, 0, static_cast<uint64_t>(run(out.data())));
        for (uint32_t word : out) expect_equal("poison" + where, 0xd7d7d7d7, word);
    }
}

void check_failures(Order order, uint32_t threads) {
    std::string where = " (order " + std::to_string(order.order) + ", threads " + std::to_string(threads) + ")";
    std::vector<uint32_t> out(64);
    auto fails = [&](int status, const char* part, Run run, auto... arguments) {
        run.order = order;
        run.threads = threads;
        int got = run(arguments...);
        std::string name = std::string(run.kernel) + where;
        expect_equal(name, static_cast<uint64_t>(status), static_cast<uint64_t>(got));
        expect(run.message.find(part) != std::string::npos, name + ": \"" + run.message + "\" lacks \"" + part + "\"");
    };
    fails(KERNELS_HOST_DIVERGENT_BARRIER, "check_divergent_barrier, block (", Run{"check_divergent_barrier", 4, 1, 64},
          out.data());
    fails(KERNELS_HOST_BROKEN_COLLECTIVE, "expected lanes 0xffffffff, got 0xffffff7f; lane 7 waits in __syncthreads",
          Run{"check_barrier_in_warp", 1, 1, 64}, out.data());
    fails(KERNELS_HOST_BROKEN_COLLECTIVE, "expected the calling lane in its mask", Run{"check_foreign_mask"}, out.data());
#if !FIBERS_ASAN
    fails(KERNELS_HOST_SHARED_OVERRUN, "expected 40 bytes at most", Run{"check_overrun", 2, 1, 32, 40}, 40u);
#endif
    fails(KERNELS_HOST_TRAP, "thread 9 called __trap", Run{"check_trap", 2}, 9u);
    fails(KERNELS_HOST_UNKNOWN_KERNEL, "no kernel is called no_such_kernel", Run{"no_such_kernel"});
    fails(KERNELS_HOST_WRONG_ARGUMENTS, "expected 1, got 2", Run{"check_trap"}, 1u, 2u);
    fails(KERNELS_HOST_WRONG_ARGUMENTS, "argument 0: expected a number, got a pointer", Run{"check_trap"}, out.data());
    fails(KERNELS_HOST_WRONG_SIZE, "expected 1 to 32, got 33", Run{"check_trap", 1, 1, 33}, 1u);
    fails(KERNELS_HOST_WRONG_SIZE, "got 0 x 1", Run{"check_trap", 0, 1, 32}, 1u);
    fails(KERNELS_HOST_SHARED_TOO_LARGE, "got 1000000", Run{"check_trap", 1, 1, 32, 1000000}, 1u);
    // A launch that failed leaves nothing behind.
    check_order(order, threads);
}

// A race must give a wrong result in one of the orders, and the sound kernel the right one in all of them.
void check_races() {
    std::vector<uint32_t> in(256);
    for (uint32_t i = 0; i < 256; i++) in[i] = i * i;
    uint32_t wrong = 0;
    for (Order order : orders) {
        uint32_t sum = 0;
        Run run{"check_missing_barrier", 1, 1, 256, 1024, order};
        expect_equal("missing barrier, status", 0, static_cast<uint64_t>(run(in.data(), &sum)));
        wrong += sum != 5559680;
    }
    expect(wrong > 0, "a missing barrier gives the right sum in every order");
    for (uint32_t synchronise : {0u, 1u}) {
        wrong = 0;
        for (Order order : orders) {
            std::vector<uint32_t> out(32);
            Run run{"check_missing_syncwarp", 1, 1, 32, 0, order};
            expect_equal("missing syncwarp, status", 0, static_cast<uint64_t>(run(out.data(), synchronise)));
            for (uint32_t t = 0; t < 32; t++) wrong += out[t] != (t + 1) % 32 + (t + 31) % 32;
        }
        expect((wrong > 0) == (synchronise == 0), "__syncwarp and its absence cannot be told apart");
    }
}

void check_word_operations() {
    std::vector<uint32_t> out(10);
    Run run{"check_words", 1, 1, 1};
    expect_equal("words, status", 0, static_cast<uint64_t>(run(out.data())));
    const uint32_t expected[10] = {8, 31, 32, 5, 0x40000000, 0xfffffffe, 0x21111111, 0x22222221, 0xfffffffe, 10};
    for (uint32_t i = 0; i < 10; i++) expect_equal("word " + std::to_string(i), expected[i], out[i]);
}

void measure() {
    std::vector<uint32_t> out(256);
    uint32_t rounds = 2000;
    Run run{"check_switches", 1, 1, 256};
    auto begin = std::chrono::steady_clock::now();
    int status = run(out.data(), rounds);
    double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
    expect_equal("switches, status", 0, static_cast<uint64_t>(status));
    printf("a thread through a barrier: %.1f ns\n", ns / rounds / 256);
}

}  // namespace

int main() {
    for (Order order : orders) {
        for (uint32_t threads : {1u, 3u}) {
            check_order(order, threads);
            check_failures(order, threads);
        }
    }
    check_races();
    check_word_operations();
    measure();
    printf("%u checks, %u failed\n", checks, failures);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
