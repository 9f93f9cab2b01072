# `just` lists the recipes. Each is a plain command that works without just, too.

_default:
    @just --list

# Every check, as CI runs it.
test:
    ./scripts/test.sh

# The tests alone, the kernels' on this processor and ICICLE's twin among them; arguments go to nextest.
t *args:
    CUDA_ARCHS="${CUDA_ARCHS:-none}" cargo nextest run --all-features {{args}}

# Format, then the lints, which need no code for GPUs.
lint:
    cargo fmt --all
    CUDA_ARCHS=none cargo clippy --all-targets --all-features -- -D warnings

# The crate's documentation, private items and all.
doc:
    CUDA_ARCHS=none RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --all-features

# Licences, advisories, doubled crates, sources.
deny:
    cargo deny check

# Register the bundled circuit and prove real inputs through the queue.
demo:
    cargo run --release -- demo

# The kernels without a GPU: run by this processor with sanitizers, and compiled for every GPU within their budget.
# --write writes docs/gpu/compiler.md, --budget kernels/budget.txt.
kernels *options:
    scripts/kernels.sh {{options}}

# The checks and benches that need a GPU, where there is one; else they are built, to be carried to one.
gpu *options:
    scripts/gpu_check.sh {{options}}

# groth16-prover by itself, statically linked: target/<TARGET>/small/groth16-prover.
prover target="x86_64-unknown-linux-gnu":
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile small --no-default-features \
        --bin groth16-prover --target {{target}}

# Container image for machines without a GPU.
image tag="prover-worker:cpu":
    docker build -f Dockerfile.cpu -t {{tag}} .

# Container image for machines with NVIDIA GPUs.
image-cuda tag="prover-worker:cuda":
    docker build -f Dockerfile.cuda -t {{tag}} .

# All tests as a program for aarch64 Linux, under qemu; or whether it compiles for macOS (`just cross macos`).
cross system="linux":
    scripts/cross.sh {{system}}

# Faults on a fleet for as long as you like (an hour unless FAULT_SECONDS says otherwise): workers killed and frozen,
# servers wiped, stopped and cut off. FAULT_SEED decides what happens.
soak:
    FAULT_SECONDS="${FAULT_SECONDS:-3600}" cargo test --release --test faults -- --exact --nocapture \
        fleet::soak::nothing_is_lost_and_nothing_is_done_twice

# The store at a million ended jobs, and through submit, claim and finish by 64 callers: asserts the medians, so it wants
# a quiet machine.
scale:
    cargo nextest run --test store --run-ignored only --no-capture a_million two_thousand
