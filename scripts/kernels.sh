#!/usr/bin/env bash
# Usage: scripts/kernels.sh [--write] [--budget]
#
# Checks kernels/ without a GPU: the fibers that run kernels on a CPU and the backend's tests over them, under gcc's
# sanitizers; and the output of nvcc for every architecture (CUDA_ARCHS), with warnings as errors, against
# kernels/budget.txt. --write rewrites docs/gpu/compiler.md, --budget kernels/budget.txt. Installs nvcc from PyPI where
# there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

options=()
for option in "$@"; do
    case $option in
        --write | --budget) options+=("$option") ;;
        *)
            echo "expected --write or --budget, got $option" >&2
            exit 2
            ;;
    esac
done

if [ "${CUDA_ARCHS:-}" != none ] && [ -z "${NVCC:-}" ] && ! command -v nvcc >/dev/null &&
    [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    scripts/nvcc.sh
fi
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/kernels"
echo "kernels on this processor, with the sanitizers"
compile=("${CXX:-c++}" -std=c++17 -g1 -Wall -Wextra -Werror -pthread -fsanitize=address,undefined
    -fno-sanitize-recover=all)
library=$target/kernels/libkernels_on_host.so
# As build.rs builds it, plus the sanitizers.
"${compile[@]}" -O2 -fPIC -shared -ftls-model=initial-exec -fvisibility=hidden -Wl,-soname,libkernels_on_host.so \
    kernels/host/host.cc kernels/host/fibers.cc -o "$library"
"${compile[@]}" -O1 kernels/host/check.cc "$library" -o "$target/kernels/check"
LD_LIBRARY_PATH=$target/kernels "$target/kernels/check"

# The same for the host code and every kernel, by the Rust tests that scripts/test.sh runs without the sanitizers, with
# this library instead of theirs. Skipped are tests that take minutes with sanitizers and launch nothing that others do
# not. The sanitizer's runtime must be the first library of the process; Rust's own threads and caches look like leaks.
echo "the backend's tests on this processor, with the sanitizers"
triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
sanitized() {
    env ASAN_OPTIONS=detect_leaks=0 \
        "CARGO_TARGET_${triple}_RUNNER=env LD_PRELOAD=$("${CXX:-c++}" -print-file-name=libasan.so):$library" \
        cargo test --locked --all-features --lib "$@"
}
sanitized backend::cuda -- --skip stray_writes \
    --skip cuda::tests::any_ --skip cuda::tests::many_ --skip kernel_that_does_nothing --skip transforms_of \
    --skip many_scalars --skip cuda::key::
# The sanitizers must be active: they abort the test of a kernel that writes out of bounds.
if sanitized stray_writes >"$target/kernels/stray.txt" 2>&1 ||
    ! grep -q "ERROR: AddressSanitizer" "$target/kernels/stray.txt"; then
    cat "$target/kernels/stray.txt"
    echo "a stray write was not noticed by the sanitizers" >&2
    exit 1
fi

if [ "${CUDA_ARCHS:-}" = none ]; then
    echo "!! CUDA_ARCHS=none: the kernels are not compiled for GPUs, and the compiler's report is not checked" >&2
    exit 0
fi
echo "kernels for GPUs"
# With the examples, so that dependencies have the same features as in the clippy run of scripts/test.sh and are not
# compiled again.
cargo check --locked --all-features --lib --examples --message-format=json-render-diagnostics |
    python3 scripts/kernels.py "${options[@]}"
